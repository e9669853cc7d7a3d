/* cuda_sample_block.cuh - what the threads of a block that draws a token have in common: their
 * number, the order of logits as integers, shared memory, the largest and the sum in the block. */
#ifndef BATCHD_KERNELS_CUDA_CUDA_SAMPLE_BLOCK_CUH
#define BATCHD_KERNELS_CUDA_CUDA_SAMPLE_BLOCK_CUH

#include "kernels/cuda/cuda.h"

enum {
    THREADS = 512,
    WARPS = THREADS / 32,
    BINS = 2048,  /* of a histogram */
    LIST = 3072,  /* tokens near the top that are kept in shared memory */
    SLICE = 8192, /* of the vocabulary, whose tokens are counted at a time */
};

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

__device__ __forceinline__ bool is_number(float highest) { return fabsf(highest) < INFINITY; }

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

#endif
