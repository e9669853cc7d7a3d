/* cuda_sample_bins.cuh - a histogram of logits by their distance from the top, and the pass over
 * a row that makes it while it looks for the highest.
 *
 * Bins hold numbers of logits or integer weights, whose sums do not depend on their order. */
#ifndef BATCHD_KERNELS_CUDA_CUDA_SAMPLE_BINS_CUH
#define BATCHD_KERNELS_CUDA_CUDA_SAMPLE_BINS_CUH

#include "kernels/cuda/cuda_sample_logits.cuh"

enum {
    BINS_OF_THREAD = BINS / THREADS,
    BINS_A_UNIT = 64,        /* of l */
    BINS_ABOVE_SAMPLE = 256, /* left for logits higher than the highest of a few */
};

static const float LOG2_E = 1.44269504f;

/* Below it 1 / temperature is no measure of distances; it takes its place where only an
 * upper bound is needed. */
static const float LEAST_TEMPERATURE = 1e-6f;

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

/* ---------------------------------------------------------------- the histogram */

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

/* A ruler for a row whose highest logit is not known yet. */
__device__ struct ruler ruler_by_glance(const struct source *s, float temperature) {
    float x;
    glance(s, &x);
    float top = ranked_float(block_max(ranked(x, 0)));
    return ruler_at(temperature, is_number(top) ? top : 0.0f, BINS_ABOVE_SAMPLE);
}

#endif
