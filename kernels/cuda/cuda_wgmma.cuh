/* cuda_wgmma.cuh - products of a whole warpgroup, four warps (compute capability 9.0a): what
 * the kernels that use them share.
 *
 * Matrices lie in shared memory in boxes of 64 columns as the tensor memory accelerator leaves
 * them (cuda_tma.cuh), and are named by descriptors. The sums of a warpgroup are 64 rows of f32:
 * warp i has rows 16 i .. 16 i + 15, laid out as by mma.m16n8k16 for each 8 columns. The products
 * return at once; wgmma_wait tells when they are done. */
#ifndef BATCHD_KERNELS_CUDA_WGMMA_CUH
#define BATCHD_KERNELS_CUDA_WGMMA_CUH

#include "kernels/cuda/cuda.h"

#define WGMMA_OUT(j) "+f"(d[j][0]), "+f"(d[j][1]), "+f"(d[j][2]), "+f"(d[j][3])
#define WGMMA_OUT_8(j)                                                                                       \
    WGMMA_OUT(j), WGMMA_OUT(j + 1), WGMMA_OUT(j + 2), WGMMA_OUT(j + 3), WGMMA_OUT(j + 4), WGMMA_OUT(j + 5),  \
        WGMMA_OUT(j + 6), WGMMA_OUT(j + 7)

template <typename T> constexpr bool is_half = sizeof(T) == 2 && !__is_same(T, __nv_bfloat16);

__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

__device__ __forceinline__ void wgmma_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

/* All but the newest N groups are done. */
template <int N> __device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

/* A matrix in shared memory in boxes of 64 columns (PTX ISA, "Matrix Descriptor"): eight rows
 * take 1,024 bytes, and `leading` bytes lie between boxes side by side. */
__device__ __forceinline__ uint64_t wgmma_matrix(uint32_t address, uint32_t leading) {
    const uint64_t swizzle_128 = 1, stride = 1024;
    return (uint64_t)(address >> 4 & 0x3fff) | (uint64_t)(leading >> 4) << 16 | stride >> 4 << 32 |
           swizzle_128 << 62;
}

#endif
