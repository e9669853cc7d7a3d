/* cuda_sample_logits.cuh - a row of logits as a block reads it, four a thread and turn: bias added,
 * banned ids at -inf. */
#ifndef BATCHD_KERNELS_CUDA_CUDA_SAMPLE_LOGITS_CUH
#define BATCHD_KERNELS_CUDA_CUDA_SAMPLE_LOGITS_CUH

#include "kernels/cuda/cuda_sample_block.cuh"

enum { AHEAD = 4 }; /* groups of four logits that a thread loads before it looks at them */

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

/* look(v, group) for each group of four that falls to this thread. */
template <typename Look> __device__ __forceinline__ void each_group(const struct source *s, Look look) {
    for (int turn = 0, n = n_turns(s); turn < n; turn += AHEAD) {
        float4 v[AHEAD];
        groups_of_turns(v, s, turn);
#pragma unroll
        for (int a = 0; a < AHEAD; a++) look(v[a], (int)threadIdx.x + (turn + a) * THREADS);
    }
}

#endif
