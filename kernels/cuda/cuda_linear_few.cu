/* cuda_linear_few.cu - products of few rows: reading the weights is all the work.
 *
 * A warp takes up to 16 rows of w and all of k. Its sums are one accumulator over ascending
 * steps of 16 (mma.m16n8k16): that is also the order in which cuBLASLt's kernels without
 * split-K add up, and so this kernel's bits are the reference for every number of rows
 * (cuda_algorithm.cu). Each warp has a ring in shared memory of its own; a stage is 64 columns
 * of its rows of w and of x. Devices of compute capability 9.0 have a quicker way to the same
 * bits, cuda_linear_tma.cu. */
#include "kernels/cuda/cuda_linear.h"
#include "kernels/cuda/cuda_mma.cuh"

#include <assert.h>

enum { TILE_ROWS = 16, STAGE_COLUMNS = 64, ROW_BYTES = STAGE_COLUMNS * 2, STEPS = STAGE_COLUMNS / 16 };

template <typename T, typename U> struct few_args {
    U *y;                  /* [m, n] */
    const T *x;            /* [m, k] */
    const T *w;            /* [n, ldw] */
    int32_t m, n, k, tile; /* tile: rows of w that a warp takes */
    int64_t ldw;
};

/* Columns of a stage: A is 16 rows of w, B 8 TILES rows of x. */
template <int TILES> struct few_fragments {
    uint32_t a[STEPS][4], b[TILES][STEPS][2];
};

/* Chunks of 16 bytes are swapped by XOR, so that eight rows of one column lie in different banks. */
__device__ __forceinline__ uint32_t few_at(uint32_t stage, int row, int chunk) {
    return stage + (uint32_t)(row * ROW_BYTES + ((chunk ^ (row & 7)) << 4));
}

/* Rows that are not there give sums that nobody reads. */
template <int TILES>
__device__ __forceinline__ void few_load(few_fragments<TILES> &f, uint32_t stage, int rows, int m, int lane) {
    int row = min(lane & 15, rows - 1);
#pragma unroll
    for (int s = 0; s < STEPS; s++) load_matrices(f.a[s], few_at(stage, row, 2 * s + (lane >> 4)));
#pragma unroll
    for (int t = 0; t < TILES; t++) {
        int token = rows + min(8 * t + (lane & 7), m - 1);
#pragma unroll
        for (int s = 0; s < STEPS; s += 2) {
            uint32_t r[4];
            load_matrices(r, few_at(stage, token, 2 * s + (lane >> 3)));
            f.b[t][s][0] = r[0], f.b[t][s][1] = r[1];
            f.b[t][s + 1][0] = r[2], f.b[t][s + 1][1] = r[3];
        }
    }
}

template <typename T, int TILES>
__device__ __forceinline__ void few_multiply(float sums[TILES][4], const few_fragments<TILES> &f) {
#pragma unroll
    for (int s = 0; s < STEPS; s++)
#pragma unroll
        for (int t = 0; t < TILES; t++) multiply_add<T>(sums[t], f.a[s], f.b[t][s][0], f.b[t][s][1]);
}

template <typename T, typename U, int TILES, int STAGES>
__global__ void __launch_bounds__(32) few_kernel(few_args<T, U> a) {
    extern __shared__ __align__(1024) char few_room[];
    cuda_begin();
    constexpr int COPIES = (TILE_ROWS + 8 * TILES) / 4; /* rows that a lane copies 16 bytes of */
    int lane = (int)threadIdx.x, first = (int)blockIdx.x * a.tile, rows = min(a.tile, a.n - first);
    int n_stages = (a.k + STAGE_COLUMNS - 1) / STAGE_COLUMNS, chunk = lane & 7, lane_row = lane >> 3;
    uint32_t room = (uint32_t)__cvta_generic_to_shared(few_room),
             stage_bytes = (uint32_t)((a.tile + a.m) * ROW_BYTES);
    const T *from[COPIES];
#pragma unroll
    for (int i = 0; i < COPIES; i++) {
        int row = lane_row + 4 * i;
        from[i] = row < rows ? a.w + (first + row) * a.ldw : a.x + (int64_t)(row - rows) * a.k;
        from[i] += chunk * 8;
    }
    auto fetch = [&](int stage) {
        int column = stage * STAGE_COLUMNS;
        if (stage < n_stages) {
            uint32_t to = room + (uint32_t)(stage % STAGES) * stage_bytes;
#pragma unroll
            for (int i = 0; i < COPIES; i++) {
                int row = lane_row + 4 * i;
                if (row < rows + a.m)
                    copy_async(few_at(to, row, chunk), from[i] + column, column + chunk * 8 < a.k);
            }
        }
        copies_commit();
    };
    float sums[TILES][4] = {};
    few_fragments<TILES> f[2];
    for (int s = 0; s < STAGES - 1; s++) fetch(s);
    copies_wait<STAGES - 2>();
    __syncwarp();
    few_load(f[0], room, rows, a.m, lane);
    for (int s = 0; s < n_stages; s += 2) {
#pragma unroll
        for (int h = 0; h < 2; h++) { /* the next stage's fragments while this one's are multiplied */
            if (s + h >= n_stages) break;
            fetch(s + h + STAGES - 1);
            copies_wait<STAGES - 2>();
            __syncwarp();
            few_load(f[1 - h], room + (uint32_t)((s + h + 1) % STAGES) * stage_bytes, rows, a.m, lane);
            few_multiply<T, TILES>(sums, f[h]);
        }
    }
    copies_wait<0>();
#pragma unroll
    for (int t = 0; t < TILES; t++)
#pragma unroll
        for (int c = 0; c < 4; c++) {
            int row = (lane >> 2) + 8 * (c >> 1), token = 8 * t + 2 * (lane & 3) + (c & 1);
            if (row < rows && token < a.m)
                a.y[(int64_t)token * a.n + first + row] = cuda_round<U>(sums[t][c]);
        }
}

/* ---------------------------------------------------------------- launch */

/* Rows of w a warp: so that the warps of the last round fill the card. Fewer than 16 when
 * the weight is small, for then there would be too few warps to keep the memory busy. */
static int tile_of(int64_t n, int processors) {
    int best = TILE_ROWS;
    int64_t least = INT64_MAX;
    for (int tile = TILE_ROWS; tile >= 4; tile--) {
        int64_t tiles = (n + tile - 1) / tile, rounds = (tiles + processors - 1) / processors;
        int64_t cost = rounds * tile * 16 + (rounds < 4 ? 16 * (4 - rounds) : 0) + (16 - tile);
        if (cost < least) least = cost, best = tile;
    }
    return best;
}

template <typename T, typename U, int TILES, int STAGES>
static void launch_few(struct cuda_dev *cuda, const struct few_args<T, U> &a) {
    auto kernel = few_kernel<T, U, TILES, STAGES>;
    static bool prepared;
    const int most = STAGES * (TILE_ROWS + 8 * TILES) * ROW_BYTES;
    if (!prepared)
        prepared = cuda_ok(
            cuda, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most), "linear");
    size_t bytes = (size_t)STAGES * (size_t)(a.tile + a.m) * ROW_BYTES;
    cuda_launch(cuda, "a matrix product of few rows", kernel, dim3((unsigned)((a.n + a.tile - 1) / a.tile)),
                32, bytes, a);
}

template <typename T, typename U>
static void few_rows(struct cuda_dev *cuda, const struct linear_shape *s, int64_t m,
                     const struct linear_operands *o) {
    int processors = cuda->prop.multiProcessorCount, tile = tile_of(s->n, processors);
    struct few_args<T, U> a = {
        (U *)o->y, (const T *)o->x, (const T *)o->w, (int32_t)m, (int32_t)s->n, (int32_t)s->k, tile, s->ldw
    };
    bool is_small = s->n < 48 * (int64_t)processors; /* few warps a processor: each must ask for more */
    if (m <= 8 && is_small)
        launch_few<T, U, 1, 24>(cuda, a);
    else if (m <= 8)
        launch_few<T, U, 1, 8>(cuda, a);
    else
        launch_few<T, U, 2, 8>(cuda, a);
}

void cuda_linear_few(struct cuda_dev *cuda, const struct linear_shape *s, int64_t m,
                     const struct linear_operands *o) {
    assert(m >= 1 && m <= FEW_ROWS && s->n % 8 == 0 && s->k % 8 == 0);
    if (s->in == DTYPE_F16 && s->out == DTYPE_F32)
        few_rows<__half, float>(cuda, s, m, o);
    else if (s->in == DTYPE_F16)
        few_rows<__half, __half>(cuda, s, m, o);
    else if (s->out == DTYPE_F32)
        few_rows<__nv_bfloat16, float>(cuda, s, m, o);
    else
        few_rows<__nv_bfloat16, __nv_bfloat16>(cuda, s, m, o);
}
