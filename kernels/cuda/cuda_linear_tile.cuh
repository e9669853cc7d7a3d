/* cuda_linear_tile.cuh - what the two kernels of few rows share (cuda_linear_few.cu,
 * cuda_linear_tma.cu): a warp's tile of y, 16 rows of w by 8 TILES rows of x, its fragments of
 * 64 columns of both, and the order in which they are multiplied, on which their bits depend. */
#ifndef BATCHD_KERNELS_CUDA_LINEAR_TILE_CUH
#define BATCHD_KERNELS_CUDA_LINEAR_TILE_CUH

#include "kernels/cuda/cuda_linear.h"
#include "kernels/cuda/cuda_mma.cuh"

enum { TILE_ROWS = 16, TILE_COLUMNS = 64, TILE_ROW_BYTES = TILE_COLUMNS * 2, TILE_STEPS = TILE_COLUMNS / 16 };

template <int TILES> struct tile_fragments { /* A is of w, B of x */
    uint32_t a[TILE_STEPS][4], b[TILES][TILE_STEPS][2];
};

/* Where a lane finds its rows in shared memory, 128 bytes each, and what their chunks of 16
 * bytes are swapped by (XOR), so that eight rows of one column lie in different banks. */
template <int TILES> struct tile_lane {
    uint32_t a, a_swap, b[TILES], b_swap[TILES];
};

/* Chunk s of the row at `row`. */
__device__ __forceinline__ uint32_t tile_chunk(uint32_t row, uint32_t swap, int chunk) {
    return row + (((uint32_t)chunk ^ swap) << 4);
}

/* The row of w, and the rows of x, that a lane names to load_matrices. Rows that are not there
 * give sums that nobody reads. */
__device__ __forceinline__ int tile_w_row(int lane, int rows) { return min(lane & 15, rows - 1); }
__device__ __forceinline__ int tile_x_row(int lane, int t, int m) { return min(8 * t + (lane & 7), m - 1); }

/* w_at and x_at are added to the lane's own places. */
template <int TILES>
__device__ __forceinline__ void tile_load(tile_fragments<TILES> &f, uint32_t w_at, uint32_t x_at,
                                          const tile_lane<TILES> &at, int lane) {
#pragma unroll
    for (int s = 0; s < TILE_STEPS; s++)
        load_matrices(f.a[s], tile_chunk(w_at + at.a, at.a_swap, 2 * s + (lane >> 4)));
#pragma unroll
    for (int t = 0; t < TILES; t++)
#pragma unroll
        for (int s = 0; s < TILE_STEPS; s += 2) {
            uint32_t r[4];
            load_matrices(r, tile_chunk(x_at + at.b[t], at.b_swap[t], 2 * s + (lane >> 3)));
            f.b[t][s][0] = r[0], f.b[t][s][1] = r[1];
            f.b[t][s + 1][0] = r[2], f.b[t][s + 1][1] = r[3];
        }
}

/* One accumulator for each sum, columns in ascending steps of 16. */
template <typename T, int TILES>
__device__ __forceinline__ void tile_multiply(float sums[TILES][4], const tile_fragments<TILES> &f) {
#pragma unroll
    for (int s = 0; s < TILE_STEPS; s++)
#pragma unroll
        for (int t = 0; t < TILES; t++) multiply_add<T>(sums[t], f.a[s], f.b[t][s][0], f.b[t][s][1]);
}

/* To y[m, n], whose columns [first, first + rows) are the tile's. */
template <typename U, int TILES>
__device__ __forceinline__ void tile_store(U *y, int m, int n, const float sums[TILES][4], int first,
                                           int rows, int lane) {
#pragma unroll
    for (int t = 0; t < TILES; t++)
#pragma unroll
        for (int c = 0; c < 4; c++) {
            int row = (lane >> 2) + 8 * (c >> 1), token = 8 * t + 2 * (lane & 3) + (c & 1);
            if (row < rows && token < m) y[(int64_t)token * n + first + row] = cuda_round<U>(sums[t][c]);
        }
}

/* f<T, U>(...) for the types of x and y. */
#define BY_LINEAR_DTYPES(s, f, ...)                                                                          \
    ((s)->in == DTYPE_F16 && (s)->out == DTYPE_F32 ? f<__half, float>(__VA_ARGS__)                           \
     : (s)->in == DTYPE_F16                        ? f<__half, __half>(__VA_ARGS__)                          \
     : (s)->out == DTYPE_F32                       ? f<__nv_bfloat16, float>(__VA_ARGS__)                    \
                                                   : f<__nv_bfloat16, __nv_bfloat16>(__VA_ARGS__))

#endif
