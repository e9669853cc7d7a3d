/* cuda_random.cuh - the numbers of dummy weights. */
#ifndef BATCHD_KERNELS_CUDA_RANDOM_CUH
#define BATCHD_KERNELS_CUDA_RANDOM_CUH

#include <stdint.h>

__host__ __device__ __forceinline__ uint64_t mix64(uint64_t x) { /* splitmix64's finaliser */
    x ^= x >> 30;
    x *= 0xbf58476d1ce4e5b9ull;
    x ^= x >> 27;
    x *= 0x94d049bb133111ebull;
    return x ^ x >> 31;
}

/* The i-th of normal numbers, by Box and Muller from a counter; seed has been mixed. */
__device__ __forceinline__ float random_normal(uint64_t seed, int64_t i) {
    uint64_t r = mix64(seed + (uint64_t)i * 0x9e3779b97f4a7c15ull);
    float u = ((float)(uint32_t)(r >> 32) + 0.5f) * 0x1p-32f, v = (float)(uint32_t)r * 0x1p-32f;
    return sqrtf(-2.0f * logf(u < 1.0f ? u : 1.0f - 0x1p-24f)) * cospif(2.0f * v);
}

#endif
