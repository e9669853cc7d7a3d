/* cuda_sample_threshold.cuh - top_k's and top_p's thresholds: the lowest logit that may be drawn.
 *
 * A threshold is searched as on the CPU: by histograms of integer weights, whose sums do
 * not depend on their order. Before the digits of the order-preserving integer comes the
 * distance from the top, for logits share their leading bits, and shared-memory atomics
 * on one address wait for each other. It is searched in a list of those near the top, in
 * shared memory, and in the whole row where that is too short (many ties, large top_k). */
#ifndef BATCHD_KERNELS_CUDA_CUDA_SAMPLE_THRESHOLD_CUH
#define BATCHD_KERNELS_CUDA_CUDA_SAMPLE_THRESHOLD_CUH

#include "kernels/cuda/cuda_sample_bins.cuh"

/* The probability of l = max - 27.8 is below 2^-40: no mass. */
static const float NO_MASS = 27.8f;

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
    each_group(s, [&](float4 v, int) {
        for (int j = 0; j < 4; j++) sum += weight_of(q, true, pick(v, j) / q->temperature);
    });
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
    each_group(s, [=](float4 v, int) {
        for (int j = 0; j < 4; j++) {
            float x = pick(v, j);
            if (!(x > -INFINITY) || bin_of(&q->ruler, x) != bin) continue;
            int at = atomicAdd(&sh.n_listed, 1);
            if (at < LIST) ((float *)sh.list_x)[at] = x;
        }
    });
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

/* ---------------------------------------------------------------- in the list, in the row */

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

#endif
