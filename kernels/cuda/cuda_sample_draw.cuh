/* cuda_sample_draw.cuh - the draw among the tokens that a threshold leaves.
 *
 * It is an argmax of l + noise, and almost no token can win: a token whose noise,
 * at its highest, would not reach the best score so far needs no random number, and one
 * whose random number is too low needs no logarithm. Both tests let a doubtful token
 * through, so that they never change the result, whatever the threads' order. */
#ifndef BATCHD_KERNELS_CUDA_CUDA_SAMPLE_DRAW_CUH
#define BATCHD_KERNELS_CUDA_CUDA_SAMPLE_DRAW_CUH

#include "kernels/cuda/cuda_sample_threshold.cuh"
#include "kernels/philox.h"

/* The noise lies between these: -log(-log u) of u = 2^-33 and u = 1 - 2^-24. */
static const float LEAST_NOISE = -3.2f, MOST_NOISE = 16.7f;

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

#endif
