/* cuda_sample_row.cuh - how a block draws one token from one row of logits, by the rule that
 * ops.h states.
 *
 * What a row asks for decides how often it is read:
 *
 *   greedy, or temperature alone   once
 *   min_p                          twice: the highest logit, then the draw
 *   top_p                          twice: the highest logit and a histogram, which tells
 *                                  roughly where the threshold will be; then the mass, the
 *                                  draw among those surely above it, and a list, in shared
 *                                  memory, of those near it, where the threshold is found
 *   top_k, and top_p besides       twice: the highest logit and a histogram, then those
 *                                  near the top go into the list, where the thresholds
 *                                  and the draw are found
 *   either, and the list was       once more for the draw and twice for each threshold:
 *   wrong or too short (many       a histogram of the whole row, then one bin of it goes
 *   ties, large top_k)             into the list (if it is too large, a read for each of
 *                                  the integer's digits)
 *
 * The draw is an argmax of l + noise, and almost no token can win: a token whose noise,
 * at its highest, would not reach the best score so far needs no random number, and one
 * whose random number is too low needs no logarithm. Both tests let a doubtful token
 * through, so that they never change the result, whatever the threads' order.
 *
 * A threshold is searched as on the CPU: by histograms of integer weights, whose sums do
 * not depend on their order. Before the digits of the order-preserving integer comes the
 * distance from the top, for logits share their leading bits, and shared-memory atomics
 * on one address wait for each other. */
#ifndef BATCHD_KERNELS_CUDA_CUDA_SAMPLE_ROW_CUH
#define BATCHD_KERNELS_CUDA_CUDA_SAMPLE_ROW_CUH

#include "kernels/cuda/cuda.h"
#include "kernels/philox.h"

#ifndef SAMPLE_THREADS
#define SAMPLE_THREADS 512
#endif
#ifndef SAMPLE_LIST
#define SAMPLE_LIST 3072
#endif

enum {
    THREADS = SAMPLE_THREADS,
    WARPS = THREADS / 32,
    AHEAD = 4,   /* groups of four logits that a thread loads before it looks at them */
    BINS = 2048, /* of a histogram */
    BINS_OF_THREAD = BINS / THREADS,
    LIST = SAMPLE_LIST,      /* tokens near the top that are kept in shared memory */
    SLICE = 8192,            /* of the vocabulary, whose tokens are counted at a time */
    BINS_A_UNIT = 64,        /* of l */
    BINS_ABOVE_SAMPLE = 256, /* left for logits higher than the highest of a few */
};

static const float LOG2_E = 1.44269504f;

/* The noise lies between these: -log(-log u) of u = 2^-33 and u = 1 - 2^-24. */
static const float LEAST_NOISE = -3.2f, MOST_NOISE = 16.7f;

/* The probability of l = max - 27.8 is below 2^-40: no mass. */
static const float NO_MASS = 27.8f;

/* Below it 1 / temperature is no measure of distances; it takes its place where only an
 * upper bound is needed. */
static const float LEAST_TEMPERATURE = 1e-6f;

/* ---------------------------------------------------------------- order */

/* Larger float, larger integer, as on the CPU; all ones for the NaN that max_or_nan gives. */
__device__ __forceinline__ uint32_t order_key(float x) {
    uint32_t u = __float_as_uint(x);
    return u & 0x80000000u ? ~u : u | 0x80000000u;
}

__device__ __forceinline__ float order_float(uint32_t key) {
    return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

__device__ __forceinline__ float max_of(float4 x) {
    return max_or_nan(max_or_nan(x.x, x.y), max_or_nan(x.z, x.w));
}

/* Which of the four it is. */
__device__ __forceinline__ int first_of(float4 v, float x) {
    return v.x == x ? 0 : v.y == x ? 1 : v.z == x ? 2 : 3;
}

__device__ __forceinline__ float pick(float4 x, int j) {
    return j == 0 ? x.x : j == 1 ? x.y : j == 2 ? x.z : x.w;
}

/* Number and id in one integer: the higher number is larger, then the lower id. -0 equals 0. */
__device__ __forceinline__ uint64_t ranked(float x, int32_t id) {
    return (uint64_t)order_key(x + 0.0f) << 32 | (uint32_t)~id;
}

__device__ __forceinline__ float ranked_float(uint64_t r) { return order_float((uint32_t)(r >> 32)); }
__device__ __forceinline__ int32_t ranked_id(uint64_t r) { return ~(int32_t)(uint32_t)r; }

/* ---------------------------------------------------------------- what a block shares */

static __shared__ struct {
    union {
        struct {
            union {
                uint64_t bins[BINS];
                uint32_t halves[2 * BINS]; /* of bins, the lower first */
                uint32_t counts[BINS];
            };
            float4 list_x[LIST / 4]; /* logits, bias added */
            int32_t list_id[LIST];
        };
        uint32_t slice[SLICE]; /* before a row is drawn from: cuda_sample_adjust.cuh */
    };
    int32_t n_listed;
    int32_t bracket_from, bracket_to;
    uint32_t best_key; /* order_key of the best score so far */
    int32_t found_bin;
    uint64_t found_before;
    uint64_t partial[WARPS];
} sh;

/* The largest in the block, for all threads. */
__device__ uint64_t block_max(uint64_t x) {
    for (int d = 16; d > 0; d >>= 1) {
        uint64_t other = __shfl_xor_sync(~0u, (unsigned long long)x, d);
        x = other > x ? other : x;
    }
    __syncthreads(); /* partial may still be read */
    if ((threadIdx.x & 31) == 0) sh.partial[threadIdx.x >> 5] = x;
    __syncthreads();
    for (int w = 0; w < WARPS; w++) x = sh.partial[w] > x ? sh.partial[w] : x;
    return x;
}

__device__ uint64_t block_sum(uint64_t x) {
    for (int d = 16; d > 0; d >>= 1) x += __shfl_xor_sync(~0u, (unsigned long long)x, d);
    __syncthreads();
    if ((threadIdx.x & 31) == 0) sh.partial[threadIdx.x >> 5] = x;
    __syncthreads();
    x = 0;
    for (int w = 0; w < WARPS; w++) x += sh.partial[w];
    return x;
}

/* The sum of the threads before this one. */
__device__ uint64_t block_sum_before(uint64_t x) {
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    uint64_t sum = x;
    for (int d = 1; d < 32; d <<= 1) {
        uint64_t below = __shfl_up_sync(~0u, (unsigned long long)sum, d);
        if (lane >= d) sum += below;
    }
    __syncthreads();
    if (lane == 31) sh.partial[warp] = sum;
    __syncthreads();
    for (int w = 0; w < warp; w++) sum += sh.partial[w];
    return sum - x;
}

/* ---------------------------------------------------------------- logits, four at a time */

struct source { /* of four logits; a thread takes groups threadIdx.x + turn * THREADS */
    const float *x;
    const float *bias; /* or NULL */
    int32_t n;
    bool is_vector; /* every group is whole and aligned */
    const int32_t *banned;
    int32_t n_banned;
    uint64_t banned_turns; /* bit turn % 64: this thread may meet a banned id */
};

__device__ __forceinline__ int n_groups(const struct source *s) { return (s->n + 3) / 4; }

__device__ __forceinline__ uint64_t banned_turns(const struct source *s) {
    uint64_t turns = 0;
    for (int32_t i = 0; i < s->n_banned; i++) {
        int32_t id = s->banned[i];
        if (id >= 0 && id < s->n && id / 4 % THREADS == threadIdx.x) turns |= 1ull << (id / 4 / THREADS % 64);
    }
    return turns;
}

__device__ struct source row_source(const float *x, const float *bias, int32_t n, const int32_t *banned,
                                    int32_t n_banned) {
    struct source s = {x, bias, n, false, banned, n_banned, 0};
    s.is_vector = n % 4 == 0 && (((uintptr_t)x | (uintptr_t)bias) & 15) == 0;
    s.banned_turns = banned_turns(&s);
    return s;
}

/* What lies beyond the last logit is `outside`. */
__device__ __forceinline__ float4 load4(const float *x, int32_t n, bool is_vector, int group, float outside) {
    float4 v = make_float4(outside, outside, outside, outside);
    int i = group * 4;
    if (is_vector) {
        if (i < n) v = *(const float4 *)(x + i);
    } else {
        if (i < n) v.x = x[i];
        if (i + 1 < n) v.y = x[i + 1];
        if (i + 2 < n) v.z = x[i + 2];
        if (i + 3 < n) v.w = x[i + 3];
    }
    return v;
}

__device__ __forceinline__ float4 plus(float4 a, float4 b) {
    return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}

__device__ __forceinline__ float4 without_banned(float4 v, int group, const int32_t *banned,
                                                 int32_t n_banned) {
    for (int32_t i = 0; i < n_banned; i++) {
        int32_t id = banned[i];
        if (id < 0 || id / 4 != group) continue;
        if (id % 4 == 0) v.x = -INFINITY;
        if (id % 4 == 1) v.y = -INFINITY;
        if (id % 4 == 2) v.z = -INFINITY;
        if (id % 4 == 3) v.w = -INFINITY;
    }
    return v;
}

/* One group, wherever it is. */
__device__ float4 group_at(const struct source *s, int group) {
    float4 v = load4(s->x, s->n, s->is_vector, group, -INFINITY);
    if (s->bias) v = plus(v, load4(s->bias, s->n, s->is_vector, group, 0.0f));
    return without_banned(v, group, s->banned, s->n_banned);
}

/* The groups of turns `turn` .. turn + AHEAD - 1. All loads first: their latency is what a
 * pass over the row costs. */
__device__ __forceinline__ void groups_of_turns(float4 v[AHEAD], const struct source *s, int turn) {
    int group = threadIdx.x + turn * THREADS;
    if (s->is_vector) {
#pragma unroll
        for (int a = 0; a < AHEAD; a++) v[a] = load4(s->x, s->n, true, group + a * THREADS, -INFINITY);
    } else {
#pragma unroll
        for (int a = 0; a < AHEAD; a++) v[a] = load4(s->x, s->n, false, group + a * THREADS, -INFINITY);
    }
    if (s->bias)
#pragma unroll
        for (int a = 0; a < AHEAD; a++)
            v[a] = plus(v[a], load4(s->bias, s->n, s->is_vector, group + a * THREADS, 0.0f));
    if (s->banned_turns)
#pragma unroll
        for (int a = 0; a < AHEAD; a++)
            if (s->banned_turns >> ((turn + a) % 64) & 1)
                v[a] = without_banned(v[a], group + a * THREADS, s->banned, s->n_banned);
}

__device__ __forceinline__ int n_turns(const struct source *s) {
    return (n_groups(s) + THREADS - 1) / THREADS;
}

/* ---------------------------------------------------------------- distance from the top */

struct ruler {   /* bin 0 is the top; -inf and what is far below are in none */
    float scale; /* bins for one of a logit */
    float top;   /* in bins */
};

__device__ __forceinline__ struct ruler ruler_at(float temperature, float top, int bins_above) {
    float scale = (float)BINS_A_UNIT / fmaxf(temperature, LEAST_TEMPERATURE);
    return {scale, top * scale + (float)bins_above};
}

/* Where a logit is on the ruler; its bin, unless it is beyond an end. Never larger for a larger
 * logit, which is all that correctness needs. */
__device__ __forceinline__ float place_of(const struct ruler *r, float x) {
    return fmaf(-x, r->scale, r->top);
}

__device__ __forceinline__ int bin_of(const struct ruler *r, float x) {
    return (int)fminf(fmaxf(place_of(r, x), 0.0f), (float)(BINS - 1));
}

__device__ __forceinline__ void bins_clear() {
    __syncthreads();
    for (int i = threadIdx.x; i < BINS; i += THREADS) sh.bins[i] = 0;
    __syncthreads();
}

/* The sum in a bin, by the additions of 32 bits that shared memory has. */
__device__ __forceinline__ void bins_add(int bin, uint64_t weight) {
    uint32_t low = (uint32_t)weight, high = (uint32_t)(weight >> 32);
    if (low && atomicAdd(&sh.halves[2 * bin], low) > ~low) high++;
    if (high) atomicAdd(&sh.halves[2 * bin + 1], high);
}

enum bin_weights { BINS_HOLD_MASS, BINS_HOLD_COUNTS };

__device__ __forceinline__ uint64_t bin_weight(enum bin_weights weights, int bin) {
    return weights == BINS_HOLD_COUNTS ? sh.counts[bin] : sh.bins[bin];
}

/* The mass of a bin's logits, roughly, from their number; `top`: the highest logit's place on
 * the ruler. A top beyond the ruler's beginning is in bin 0, without its likes. */
__device__ __forceinline__ uint64_t bin_mass_guess(int bin, float top) {
    uint64_t n = sh.counts[bin], one = 1ull << 40;
    float below = fminf((top - (float)bin - 0.5f) * (LOG2_E / BINS_A_UNIT), 0.0f);
    uint64_t each = (uint64_t)__float2ull_rz(exp2f(below) * 0x1p40f);
    return bin == 0 && top < 0.0f && n > 0 ? one + (n - 1) * each : n * each;
}

/* sh.found_bin = the first bin with which the weights reach `target`, BINS if none, and
 * sh.found_before = the weight of the bins before it. w: those of the thread's own bins. */
__device__ void bins_find(const uint64_t w[BINS_OF_THREAD], uint64_t target) {
    uint64_t sum = 0;
    int first = threadIdx.x * BINS_OF_THREAD;
    __syncthreads(); /* what was found before has been read */
    if (threadIdx.x == 0) sh.found_bin = BINS;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < BINS_OF_THREAD; i++) sum += w[i];
    uint64_t before = block_sum_before(sum);
    if (before < target && before + sum >= target) {
        bool found = false;
#pragma unroll
        for (int i = 0; i < BINS_OF_THREAD; i++) {
            if (!found && before + w[i] >= target) {
                sh.found_bin = first + i;
                sh.found_before = before;
                found = true;
            }
            before += w[i];
        }
    }
    __syncthreads();
}

__device__ void bins_search(enum bin_weights weights, uint64_t target) {
    uint64_t w[BINS_OF_THREAD];
    __syncthreads(); /* the histogram is complete */
#pragma unroll
    for (int i = 0; i < BINS_OF_THREAD; i++) w[i] = bin_weight(weights, threadIdx.x * BINS_OF_THREAD + i);
    bins_find(w, target);
}

/* ---------------------------------------------------------------- the highest logit */

/* ranked() of the highest; its float is NaN where a logit is. With a ruler, also the number
 * of logits in each bin but the last. */
template <bool COUNT> __device__ uint64_t highest(const struct source *s, const struct ruler *ruler) {
    float most = -INFINITY, best = -INFINITY;
    int32_t id = -1;
    if (COUNT) bins_clear();
    for (int turn = 0, n = n_turns(s); turn < n; turn += AHEAD) {
        float4 v[AHEAD];
        groups_of_turns(v, s, turn);
#pragma unroll
        for (int a = 0; a < AHEAD; a++) {
            float m = max_of(v[a]);
            most = max_or_nan(most, m);
            if (m > best) {
                best = m;
                id = (threadIdx.x + (turn + a) * THREADS) * 4 + first_of(v[a], m);
            }
            if constexpr (COUNT) {
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    int bin = bin_of(ruler, pick(v[a], j));
                    if (bin < BINS - 1 && pick(v[a], j) > -INFINITY) atomicAdd(&sh.counts[bin], 1u);
                }
            }
        }
    }
    return block_max(ranked(most, id));
}

/* One of a few groups all over the row: *x = its highest logit, and the id of it; -1 if that
 * is -inf or no number. */
__device__ __forceinline__ int32_t glance(const struct source *s, float *x) {
    int group = (int)((int64_t)threadIdx.x * n_groups(s) / THREADS);
    float4 v = group_at(s, group);
    *x = fmaxf(fmaxf(v.x, v.y), fmaxf(v.z, v.w)); /* NaN is passed over */
    if (!(*x > -INFINITY)) return -1;
    return group * 4 + first_of(v, *x);
}

/* ---------------------------------------------------------------- thresholds */

struct limits {   /* what a token must satisfy to be drawn */
    uint32_t key; /* order_key(l) at least; top_k and top_p */
    float least;  /* l at least; min_p */
};

__device__ __forceinline__ bool is_kept(const struct limits *limits, float l) {
    return order_key(l) >= limits->key && l >= limits->least;
}

/* The probability in fixed point, as on the CPU: 2^40 is that of the highest. */
__device__ __forceinline__ uint64_t mass_of(float l, float max) {
    return l - max < -NO_MASS ? 0 : (uint64_t)__float2ull_rz(expf(l - max) * 0x1p40f);
}

struct search {
    float temperature;
    struct ruler ruler;   /* bin 0 is at the highest logit */
    float max;            /* the highest l */
    struct limits limits; /* so far */
};

/* 0 = this one does not count. */
__device__ __forceinline__ uint64_t weight_of(const struct search *q, bool by_mass, float l) {
    if (!(l > -INFINITY) || order_key(l) < q->limits.key) return 0;
    return by_mass ? mass_of(l, q->max) : 1;
}

__device__ uint64_t total_mass(const struct source *s, const struct search *q) {
    uint64_t sum = 0;
    for (int turn = 0, n = n_turns(s); turn < n; turn += AHEAD) {
        float4 v[AHEAD];
        groups_of_turns(v, s, turn);
#pragma unroll
        for (int a = 0; a < AHEAD; a++)
            for (int j = 0; j < 4; j++) sum += weight_of(q, true, pick(v[a], j) / q->temperature);
    }
    return block_sum(sum);
}

/* What a pass of the search looks at: first the bin of the ruler, then the digits of
 * ~order_key (so that a lower digit is a higher number) of what lies in the bin found. */
struct search_pass {
    int shift, bits; /* of the digit; 0 bits = the ruler's bin */
    int bin;
    uint32_t prefix; /* of ~order_key, known from earlier passes */
};

/* The bin of the pass, or -1. */
__device__ __forceinline__ int pass_bin(const struct search_pass *p, const struct search *q, float x,
                                        float l) {
    int bin = bin_of(&q->ruler, x);
    if (p->bits == 0) return bin;
    if (bin != p->bin) return -1;
    uint32_t rank = ~order_key(l), known = p->shift + p->bits == 32 ? 0 : ~0u << (p->shift + p->bits);
    if ((rank & known) != p->prefix) return -1;
    return (int)(rank >> p->shift & ((1u << p->bits) - 1));
}

__device__ void pass_fill(const struct source *s, const struct search *q, bool by_mass,
                          const struct search_pass *p) {
    bins_clear();
    for (int turn = 0, n = n_turns(s); turn < n; turn += AHEAD) {
        float4 v[AHEAD];
        groups_of_turns(v, s, turn);
#pragma unroll
        for (int a = 0; a < AHEAD; a++) {
            for (int j = 0; j < 4; j++) {
                float x = pick(v[a], j), l = x / q->temperature;
                int bin = x > -INFINITY ? pass_bin(p, q, x, l) : -1;
                uint64_t w = bin >= 0 ? weight_of(q, by_mass, l) : 0;
                if (w) bins_add(bin, w);
            }
        }
    }
}

__device__ __forceinline__ struct source list_source() {
    return {(const float *)sh.list_x, NULL, sh.n_listed, false, NULL, 0, 0};
}

/* The logits of one bin of the ruler, into the list. False: there are too many. */
__device__ bool list_bin(const struct source *s, const struct search *q, int bin) {
    __syncthreads();
    if (threadIdx.x == 0) sh.n_listed = 0;
    __syncthreads();
    for (int turn = 0, n = n_turns(s); turn < n; turn += AHEAD) {
        float4 v[AHEAD];
        groups_of_turns(v, s, turn);
#pragma unroll
        for (int a = 0; a < AHEAD; a++) {
            for (int j = 0; j < 4; j++) {
                float x = pick(v[a], j);
                if (!(x > -INFINITY) || bin_of(&q->ruler, x) != bin) continue;
                int at = atomicAdd(&sh.n_listed, 1);
                if (at < LIST) ((float *)sh.list_x)[at] = x;
            }
        }
    }
    __syncthreads();
    return sh.n_listed <= LIST;
}

/* The highest key such that the weight of all keys >= it is at least target; 0 if none. In a
 * row, it has use for the list. */
__device__ __noinline__ uint32_t threshold_key(struct source s, struct search q, bool by_mass,
                                               uint64_t target) {
    struct search_pass p = {0, 0, 0, 0};
    for (int i = 0; i < 4; i++) {
        if (i > 0) p.bits = i < 3 ? 11 : 10;
        p.shift = i == 1 ? 21 : i == 2 ? 10 : 0;
        pass_fill(&s, &q, by_mass, &p);
        bins_search(BINS_HOLD_MASS, target);
        int bin = sh.found_bin;
        if (bin == BINS) return 0;
        target -= sh.found_before;
        if (i > 0)
            p.prefix |= (uint32_t)bin << p.shift;
        else
            p.bin = bin;
        if (i == 0 && s.x != (const float *)sh.list_x && list_bin(&s, &q, bin)) s = list_source();
    }
    return ~p.prefix;
}

/* ---------------------------------------------------------------- the list of those near the top */

/* The bins before it go into the list: as many as fit, and no more than top_k needs. */
__device__ int list_end(int32_t top_k) {
    bins_search(BINS_HOLD_COUNTS, LIST + 1);
    int end = sh.found_bin < BINS - 1 ? sh.found_bin : BINS - 1;
    if (top_k <= 0) return end;
    bins_search(BINS_HOLD_COUNTS, (uint64_t)top_k);
    return sh.found_bin < end ? sh.found_bin + 1 : end;
}

struct listing {
    uint64_t mass;  /* of the whole row, if wanted */
    float unlisted; /* the highest logit that is not in the list */
};

/* The bins before `end` of the ruler that counted them. From the row's end to its beginning:
 * what was read last is the likeliest to be in the L2 cache still. */
__device__ struct listing list_fill(const struct source *s, const struct search *q, const struct ruler *ruler,
                                    int end, bool want_mass) {
    uint64_t mass = 0;
    float unlisted = -INFINITY;
    if (threadIdx.x == 0) sh.n_listed = 0;
    __syncthreads();
    for (int turn = (n_turns(s) - 1) / AHEAD * AHEAD; turn >= 0; turn -= AHEAD) {
        float4 v[AHEAD];
        groups_of_turns(v, s, turn);
#pragma unroll
        for (int a = 0; a < AHEAD; a++) {
            float m = max_of(v[a]);
            bool has_listed = m > -INFINITY && bin_of(ruler, m) < end;
            if (!has_listed) unlisted = fmaxf(unlisted, m);
            if (!has_listed && !(want_mass && m / q->temperature - q->max >= -NO_MASS)) continue;
            for (int j = 0; j < 4; j++) {
                float x = pick(v[a], j);
                if (want_mass) mass += mass_of(x / q->temperature, q->max);
                if (x == -INFINITY) continue;
                if (bin_of(ruler, x) >= end) {
                    unlisted = fmaxf(unlisted, x);
                    continue;
                }
                int at = atomicAdd(&sh.n_listed, 1);
                ((float *)sh.list_x)[at] = x;
                sh.list_id[at] = (threadIdx.x + (turn + a) * THREADS) * 4 + j;
            }
        }
    }
    mass = block_sum(mass); /* and the list is complete */
    return {mass, ranked_float(block_max(ranked(unlisted, 0)))};
}

/* ---------------------------------------------------------------- the draw */

struct drawing { /* of one thread */
    float temperature;
    struct limits limits;
    uint32_t position, k0, k1;
    float scale; /* log2(e) / temperature: from a logit to an exponent of two */
    float floor; /* no winner scores less; as an exponent of two, with some slack */
    float best;
    int32_t id; /* -1 = none yet */
};

/* The slack is for what rounding does to l and to the sums. */
__device__ __forceinline__ float floor_of(float score) {
    return (score - (1e-4f + 1e-6f * fabsf(score))) * LOG2_E;
}

__device__ struct drawing drawing_of(const struct step_sample *s, const struct limits *limits, float floor) {
    struct drawing d;
    d.temperature = s->temperature;
    d.limits = *limits;
    d.position = (uint32_t)s->position;
    d.k0 = (uint32_t)s->seed;
    d.k1 = (uint32_t)(s->seed >> 32);
    d.scale = LOG2_E / fmaxf(s->temperature, LEAST_TEMPERATURE);
    d.floor = floor;
    d.best = -INFINITY;
    d.id = -1;
    return d;
}

__device__ __forceinline__ struct philox_block noise_of(const struct drawing *d, int32_t group) {
    return philox4x32((uint32_t)group, d->position, 0, 0x62617463u, d->k0, d->k1);
}

__device__ __forceinline__ uint32_t word_of(struct philox_block r, int j) {
    return j == 0 ? r.word[0] : j == 1 ? r.word[1] : j == 2 ? r.word[2] : r.word[3];
}

/* Philox's word as a number in (0, 1), and -log(-log u); the same steps as on the CPU. */
__device__ __forceinline__ float gumbel(uint32_t word) {
    float u = ((float)word + 0.5f) * 0x1p-32f;
    if (u >= 1.0f) u = 1.0f - 0x1p-24f;
    return -logf(-logf(u));
}

/* A token that may win. Below LEAST_TEMPERATURE the floor is not on the scale of l, and stays. */
__device__ __forceinline__ void consider(struct drawing *d, int32_t id, float x, uint32_t word) {
    float l = x / d->temperature;
    if (!is_kept(&d->limits, l)) return;
    float score = l + gumbel(word);
    if (score < d->best || (score == d->best && id > d->id) || score == -INFINITY) return;
    d->best = score;
    d->id = id;
    if (d->temperature < LEAST_TEMPERATURE) return;
    d->floor = fmaxf(d->floor, floor_of(score));
    atomicMax(&sh.best_key, order_key(score));
}

/* Could this exponent with this word win? l - log(-log u) <= l - log(1 - u), so e^(l - floor)
 * must reach 1 - u. Of 1 - u only 23 bits are made, rounded down: 2 - u as a float. */
__device__ __forceinline__ bool may_win(float exponent, uint32_t word) {
    float reach;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(reach) : "f"(exponent));
    return reach + (1.0f + 0x1p-21f) >= __uint_as_float(0x3f800000u | ~word >> 9);
}

/* `most` is the highest of the group; of its tokens those with a bit in `wanted`. */
__device__ __forceinline__ void consider_group(struct drawing *d, int32_t group, float4 v, float most,
                                               unsigned wanted) {
    if (!(fmaf(most, d->scale, -d->floor) >= -MOST_NOISE * LOG2_E)) return;
    struct philox_block r = noise_of(d, group);
    unsigned hits = 0;
#pragma unroll
    for (int j = 0; j < 4; j++)
        if (may_win(fmaf(pick(v, j), d->scale, -d->floor), r.word[j])) hits |= 1u << j;
    for (hits &= wanted; hits; hits &= hits - 1) {
        int j = __ffs((int)hits) - 1;
        consider(d, group * 4 + j, pick(v, j), word_of(r, j));
    }
}

/* What other threads have found raises the floor. Whether one sees it now or later changes
 * how much is computed, not what wins. */
__device__ __forceinline__ void raise_floor(struct drawing *d, uint32_t *seen) {
    uint32_t key = *(volatile uint32_t *)&sh.best_key;
    if (key == *seen) return;
    *seen = key;
    d->floor = fmaxf(d->floor, floor_of(order_float(key)));
}

/* Over the whole row. *most: the highest logit, NaN where one is. */
__device__ void draw_pass(const struct source *s, struct drawing *d, float *most) {
    uint32_t seen = order_key(-INFINITY);
    *most = -INFINITY;
    for (int turn = 0, n = n_turns(s); turn < n; turn += AHEAD) {
        float4 v[AHEAD];
        groups_of_turns(v, s, turn);
        raise_floor(d, &seen);
#pragma unroll
        for (int a = 0; a < AHEAD; a++) {
            float m = max_of(v[a]);
            *most = max_or_nan(*most, m);
            consider_group(d, threadIdx.x + (turn + a) * THREADS, v[a], m, 15);
        }
    }
}

__device__ void draw_listed(struct drawing *d) {
    for (int i = threadIdx.x; i < sh.n_listed; i += THREADS) {
        float x = ((const float *)sh.list_x)[i];
        int32_t id = sh.list_id[i];
        if (!(fmaf(x, d->scale, -d->floor) >= -MOST_NOISE * LOG2_E)) continue;
        if (!is_kept(&d->limits, x / d->temperature)) continue;
        consider(d, id, x, word_of(noise_of(d, id / 4), id % 4));
    }
}

__device__ __forceinline__ void best_clear() {
    if (threadIdx.x == 0) sh.best_key = order_key(-INFINITY);
    __syncthreads();
}

/* ---------------------------------------------------------------- a row */

__device__ __forceinline__ bool is_number(float highest) { return fabsf(highest) < INFINITY; }

__device__ __noinline__ int32_t sample_greedy(struct source s) {
    uint64_t top = highest<false>(&s, NULL);
    return is_number(ranked_float(top)) ? ranked_id(top) : -1;
}

/* Temperature and nothing else: what the pass needs to know at its beginning comes from a
 * glance at the row, what can go wrong is looked at when it is over. */
__device__ __noinline__ int32_t sample_plain(struct source s, const struct step_sample *sample) {
    struct limits none = {0, -INFINITY};
    struct drawing d = drawing_of(sample, &none, -INFINITY);
    float x, most;
    best_clear();
    int32_t likely = glance(&s, &x);
    if (likely >= 0) consider(&d, likely, x, word_of(noise_of(&d, likely / 4), likely % 4));
    __syncthreads();
    draw_pass(&s, &d, &most);
    float max = ranked_float(block_max(ranked(most, 0)));
    if (!is_number(max)) return -1;
    if (isinf(max / sample->temperature)) return sample_greedy(s);
    return ranked_id(block_max(ranked(d.best, d.id)));
}

/* 0 = off */
__device__ __forceinline__ int32_t top_k_of(const struct source *s, const struct step_sample *sample) {
    return sample->top_k > 0 && sample->top_k < s->n ? sample->top_k : 0;
}

/* A ruler for a row whose highest logit is not known yet. */
__device__ struct ruler ruler_by_glance(const struct source *s, float temperature) {
    float x;
    glance(s, &x);
    float top = ranked_float(block_max(ranked(x, 0)));
    return ruler_at(temperature, is_number(top) ? top : 0.0f, BINS_ABOVE_SAMPLE);
}

__device__ __forceinline__ uint64_t top_p_target(uint64_t total, float top_p) {
    uint64_t target = __double2ull_rz(ceil((double)total * (double)top_p));
    return target < 1 ? 1 : target;
}

/* top_k and top_p within the list. False: it is too short to tell. */
__device__ bool limit_in_list(struct search *q, const struct listing *listing, int32_t top_k, float top_p) {
    struct source list = list_source();
    if (top_k) {
        if (list.n < top_k) return false;
        q->limits.key = threshold_key(list, *q, false, (uint64_t)top_k);
    }
    if (top_p < 1.0f) {
        uint64_t listed = total_mass(&list, q);
        uint64_t target = top_p_target(top_k ? listed : listing->mass, top_p);
        if (listed < target) return false;
        q->limits.key = threshold_key(list, *q, true, target);
    }
    return order_key(listing->unlisted / q->temperature) < q->limits.key; /* all that tie are in it */
}

__device__ void limit_in_row(const struct source *s, struct search *q, uint64_t row_mass, int32_t top_k,
                             float top_p) {
    q->limits.key = 0;
    if (top_k) q->limits.key = threshold_key(*s, *q, false, (uint64_t)top_k);
    if (top_p >= 1.0f) return;
    uint64_t target = top_p_target(top_k ? total_mass(s, q) : row_mass, top_p);
    q->limits.key = threshold_key(*s, *q, true, target);
}

/* The highest logit is a candidate always, and its score a floor from the beginning. */
__device__ struct drawing filtered_drawing(const struct step_sample *sample, const struct limits *limits,
                                           float top) {
    float scaled = top / fmaxf(sample->temperature, LEAST_TEMPERATURE);
    return drawing_of(sample, limits, floor_of(scaled + LEAST_NOISE));
}

__device__ int32_t draw_filtered(const struct source *s, const struct step_sample *sample,
                                 const struct limits *limits, float top, bool is_listed) {
    float most;
    struct drawing d = filtered_drawing(sample, limits, top);
    best_clear();
    if (is_listed)
        draw_listed(&d);
    else
        draw_pass(s, &d, &most);
    return ranked_id(block_max(ranked(d.best, d.id)));
}

/* ---------------------------------------------------------------- top_p alone */

struct bracket { /* places on the ruler that counted: what lies from `from` to before `to` is listed */
    float from, to;
};

/* Bins [0, *end) fit into the list, and if they hold the threshold all before it goes there too.
 * Else as many bins around that of the threshold as fit; none if it alone is too large. */
__device__ void bracket_around(int bin, int end) {
    int from = bin, to = bin + 1;
    uint32_t n = sh.counts[bin];
    bool grows = n <= LIST;
    if (!grows) from = to = 0;
    for (int turn = 0; grows; turn++) { /* the guess is good to a part of a bin */
        int next = turn % 2 ? from - 1 : to;
        grows = turn < 8 && next >= 1 && next < BINS - 1 && (n += sh.counts[next]) <= LIST;
        if (!grows) break;
        if (turn % 2)
            from = next;
        else
            to = next + 1;
    }
    sh.bracket_from = bin < end ? 0 : from;
    sh.bracket_to = bin < end ? end : to;
}

/* Where the threshold will be, from the numbers of logits that highest<true> left in the bins. */
__device__ struct bracket bracket_of(const struct ruler *ruler, float top, float top_p) {
    float top_place = place_of(ruler, top);
    uint64_t w[BINS_OF_THREAD], sum = 0;
    __syncthreads(); /* the histogram is complete */
#pragma unroll
    for (int i = 0; i < BINS_OF_THREAD; i++)
        sum += w[i] = bin_mass_guess(threadIdx.x * BINS_OF_THREAD + i, top_place);
    bins_find(w, top_p_target(block_sum(sum), top_p));
    int bin = sh.found_bin;
    int end = list_end(0);
    if (threadIdx.x == 0) bracket_around(bin < BINS - 1 ? bin : BINS - 1, end);
    __syncthreads();
    float from = (float)sh.bracket_from, to = (float)sh.bracket_to;
    return {from > 0.0f ? from : -INFINITY, to > 0.0f ? to : -INFINITY};
}

/* The bracket's own ruler: its logits have bins enough for each to be nearly alone in one. */
__device__ __forceinline__ struct ruler zoomed(const struct ruler *ruler, const struct bracket *bracket) {
    float from = fmaxf(bracket->from, 0.0f), factor = (float)BINS / (bracket->to - from);
    return {ruler->scale * factor, (ruler->top - from) * factor};
}

/* x / by, rounded as division rounds, in five steps; reciprocal: 1 / by. */
__device__ __forceinline__ float divided(float x, float by, float reciprocal) {
    float q = x * reciprocal;
    float near = fmaf(fmaf(-q, by, x), reciprocal, q);
    float exact = fmaf(fmaf(-near, by, x), reciprocal, near);
    return fabsf(q) < INFINITY ? exact : q;
}

struct nucleus {          /* what a pass over the row has found */
    uint64_t mass, above; /* of the whole row; of what lies before the bracket */
    float below;          /* the highest logit behind the bracket */
};

/* A group of four: their mass, and which of them lie before the bracket. */
__device__ __forceinline__ unsigned nucleus_group(struct nucleus *found, const struct search *q,
                                                  const struct ruler *ruler, const struct bracket *bracket,
                                                  float reciprocal, float4 v, int group) {
    unsigned above = 0;
#pragma unroll
    for (int j = 0; j < 4; j++) {
        float x = pick(v, j), place = place_of(ruler, x);
        uint64_t mass = mass_of(divided(x, q->temperature, reciprocal), q->max);
        found->mass += mass;
        if (place < bracket->from) {
            found->above += mass;
            above |= 1u << j;
        } else if (place < bracket->to) {
            int at = atomicAdd(&sh.n_listed, 1);
            ((float *)sh.list_x)[at] = x;
            sh.list_id[at] = group * 4 + j;
        } else {
            found->below = fmaxf(found->below, x);
        }
    }
    return above;
}

/* Mass, list, and the draw among those before the bracket. What has no mass is below any
 * threshold. From the row's end to its beginning, as in list_fill. */
__device__ struct nucleus nucleus_pass(const struct source *s, const struct search *q,
                                       const struct ruler *ruler, const struct bracket *bracket,
                                       struct drawing *d) {
    struct nucleus found = {0, 0, -INFINITY};
    float reciprocal = 1.0f / q->temperature;
    uint32_t seen = order_key(-INFINITY);
    if (threadIdx.x == 0) sh.n_listed = 0;
    best_clear();
    for (int turn = (n_turns(s) - 1) / AHEAD * AHEAD; turn >= 0; turn -= AHEAD) {
        float4 v[AHEAD];
        groups_of_turns(v, s, turn);
        raise_floor(d, &seen);
#pragma unroll
        for (int a = 0; a < AHEAD; a++) {
            int group = threadIdx.x + (turn + a) * THREADS;
            float m = max_of(v[a]);
            if (divided(m, q->temperature, reciprocal) - q->max < -NO_MASS) continue;
            unsigned above = nucleus_group(&found, q, ruler, bracket, reciprocal, v[a], group);
            /* The keys of Philox's rounds are made anew: kept, they would be spilled. */
            asm volatile("" : "+r"(d->k0), "+r"(d->k1));
            if (above) consider_group(d, group, v[a], m, above);
        }
    }
    found.mass = block_sum(found.mass); /* and the list is complete */
    found.above = block_sum(found.above);
    found.below = ranked_float(block_max(ranked(found.below, 0)));
    return found;
}

/* The threshold, from the list; 0 if it is not there. */
__device__ uint32_t nucleus_key(const struct nucleus *found, const struct search *q,
                                const struct ruler *ruler, float top_p) {
    uint64_t target = top_p_target(found->mass, top_p);
    if (found->above >= target) return 0;
    struct search in_list = *q;
    in_list.ruler = *ruler;
    uint32_t key = threshold_key(list_source(), in_list, true, target - found->above);
    return order_key(found->below / q->temperature) < key ? key : 0; /* all that tie are in the list */
}

/* A call by itself: inlined, it takes registers from sample_plain. */
__device__ __noinline__ int32_t sample_nucleus(const struct source *s, const struct step_sample *sample) {
    float temperature = sample->temperature, top_p = sample->top_p;
    struct ruler guessed = ruler_by_glance(s, temperature);
    uint64_t best = highest<true>(s, &guessed);
    float top = ranked_float(best), max = top / temperature;
    if (!is_number(top)) return -1;
    if (isinf(max)) return ranked_id(best);
    struct search q = {temperature, ruler_at(temperature, top, 0), max, {0, -INFINITY}};
    struct limits limits = {0, sample->min_p > 0.0f ? max + logf(sample->min_p) : -INFINITY};
    struct bracket bracket = bracket_of(&guessed, top, top_p);
    struct drawing d = filtered_drawing(sample, &limits, top);
    struct nucleus found = nucleus_pass(s, &q, &guessed, &bracket, &d);
    struct ruler fine = zoomed(&guessed, &bracket);
    limits.key = d.limits.key = nucleus_key(&found, &q, &fine, top_p);
    if (limits.key) {
        draw_listed(&d);
        return ranked_id(block_max(ranked(d.best, d.id)));
    }
    limit_in_row(s, &q, found.mass, 0, top_p);
    limits.key = q.limits.key;
    return draw_filtered(s, sample, &limits, top, false);
}

/* ---------------------------------------------------------------- any row */

/* The token drawn, -1 where there is none; for all threads. */
__device__ __noinline__ int32_t sample_filtered(struct source s, const struct step_sample *sample) {
    int32_t top_k = top_k_of(&s, sample);
    if (!top_k && sample->top_p < 1.0f && sample->temperature >= LEAST_TEMPERATURE)
        return sample_nucleus(&s, sample);
    float top_p = sample->top_p, min_p = sample->min_p, temperature = sample->temperature;
    bool has_threshold = top_k || top_p < 1.0f, is_listed = false;
    struct ruler guessed = {0, 0};
    if (has_threshold) guessed = ruler_by_glance(&s, temperature);
    uint64_t best = has_threshold ? highest<true>(&s, &guessed) : highest<false>(&s, NULL);
    float top = ranked_float(best), max = top / temperature;
    if (!is_number(top)) return -1;
    if (isinf(max)) return ranked_id(best);
    struct search q = {temperature, ruler_at(temperature, top, 0), max, {0, -INFINITY}};
    if (has_threshold) {
        int end = list_end(top_k);
        struct listing listing = list_fill(&s, &q, &guessed, end, top_p < 1.0f && !top_k);
        is_listed = limit_in_list(&q, &listing, top_k, top_p);
        if (!is_listed) limit_in_row(&s, &q, listing.mass, top_k, top_p);
    }
    if (min_p > 0.0f) q.limits.least = max + logf(min_p);
    return draw_filtered(&s, sample, &q.limits, top, is_listed);
}

__device__ __forceinline__ int32_t sample_row(const struct source *s, const struct step_sample *sample) {
    int32_t top_k = top_k_of(s, sample);
    bool is_filtered = top_k || sample->top_p < 1.0f || sample->min_p > 0.0f;
    if (sample->temperature <= 0.0f) return sample_greedy(*s);
    if (is_filtered || sample->temperature < LEAST_TEMPERATURE) return sample_filtered(*s, sample);
    return sample_plain(*s, sample);
}

#endif
