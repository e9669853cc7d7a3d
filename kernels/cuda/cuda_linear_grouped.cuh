/* cuda_linear_grouped.cuh - what the two ways of a grouped product share: cuda_linear_grouped.cu
 * on compute capability 9.0a, cuda_linear_grouped_mma.cu elsewhere. */
#ifndef BATCHD_KERNELS_CUDA_LINEAR_GROUPED_CUH
#define BATCHD_KERNELS_CUDA_LINEAR_GROUPED_CUH

#include "kernels/cuda/cuda_linear_grouped.h"
#include "kernels/cuda/cuda_mma.cuh"

struct group_args {
    const int32_t *first; /* [n_groups + 1] */
    int32_t n_groups, n, k;
};

struct group_tile {
    int32_t group, row, column; /* of y */
    int32_t n_rows;             /* of the group, from that row on */
};

/* Four lanes have two columns each of v[0 .. 3], 8 columns apart; lane i gets all of v[i]. */
__device__ __forceinline__ void transpose_4(uint32_t v[4], int lane) {
#pragma unroll
    for (int d = 1; d <= 2; d *= 2)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (i & d) continue;
            bool upper = lane & d;
            uint32_t got = __shfl_xor_sync(~0u, upper ? v[i] : v[i + d], d);
            if (upper)
                v[i] = got;
            else
                v[i + d] = got;
        }
}

/* A warp's sums of 16 rows and 32 columns from `column` on, of which the first n_rows and those
 * below n are y's; 16 bytes a lane. y: the first row. */
template <typename T>
__device__ __forceinline__ void store_32(T *y, const float (*sums)[4], int32_t n_rows, int32_t column,
                                         int32_t n, int lane) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int32_t row = (lane >> 2) + 8 * half, at = column + 8 * (lane & 3);
        uint32_t v[4];
#pragma unroll
        for (int i = 0; i < 4; i++) v[i] = two_of<T>(sums[i][2 * half], sums[i][2 * half + 1]);
        transpose_4(v, lane);
        if (row < n_rows && at < n)
            *(uint4 *)(y + (int64_t)row * n + at) = make_uint4(v[0], v[1], v[2], v[3]);
    }
}

/* cuda_linear_grouped_mma.cu: the way of every device of compute capability 8.0 and above. */
void grouped_plain(struct cuda_dev *cuda, struct tensor *y, const struct tensor *x,
                   const struct group_weights &w, const struct group_args &a);

#endif
