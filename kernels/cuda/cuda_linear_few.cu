/* cuda_linear_few.cu - products of few rows: reading the weights is all the work.
 *
 * A warp takes up to 16 rows of w and all of k. Its sums are one accumulator over ascending
 * steps of 16 (mma.m16n8k16): that is also the order in which cuBLASLt's kernels without
 * split-K add up, and so this kernel's bits are the reference for every number of rows
 * (cuda_algorithm.cu). Each warp has a ring in shared memory of its own; a stage is 64 columns
 * of its rows of w and of x. Devices of compute capability 9.0 have a quicker way to the same
 * bits, cuda_linear_tma.cu. */
#include "kernels/cuda/cuda_linear_tile.cuh"

#include <assert.h>

template <typename T, typename U> struct few_args {
    U *y;                  /* [m, n] */
    const T *x;            /* [m, k] */
    const T *w;            /* [n, ldw] */
    int32_t m, n, k, tile; /* tile: rows of w that a warp takes */
    int64_t ldw;
};

/* The accelerator is not there to swap chunks: the copies do. */
__device__ __forceinline__ uint32_t few_at(uint32_t stage, int row, int chunk) {
    return tile_chunk(stage + (uint32_t)(row * TILE_ROW_BYTES), (uint32_t)(row & 7), chunk);
}

/* In a stage the rows of x follow those of w. */
template <int TILES> __device__ __forceinline__ tile_lane<TILES> few_lane_of(int lane, int rows, int m) {
    tile_lane<TILES> at;
    int row = tile_w_row(lane, rows);
    at.a = (uint32_t)(row * TILE_ROW_BYTES);
    at.a_swap = (uint32_t)(row & 7);
#pragma unroll
    for (int t = 0; t < TILES; t++) {
        int token = rows + tile_x_row(lane, t, m);
        at.b[t] = (uint32_t)(token * TILE_ROW_BYTES);
        at.b_swap[t] = (uint32_t)(token & 7);
    }
    return at;
}

template <typename T, typename U, int TILES, int STAGES>
__global__ void __launch_bounds__(32) few_kernel(few_args<T, U> a) {
    extern __shared__ __align__(1024) char few_room[];
    cuda_begin();
    constexpr int COPIES = (TILE_ROWS + 8 * TILES) / 4; /* rows that a lane copies 16 bytes of */
    int lane = (int)threadIdx.x, first = (int)blockIdx.x * a.tile, rows = min(a.tile, a.n - first);
    int n_stages = (a.k + TILE_COLUMNS - 1) / TILE_COLUMNS, chunk = lane & 7, lane_row = lane >> 3;
    uint32_t room = (uint32_t)__cvta_generic_to_shared(few_room),
             stage_bytes = (uint32_t)((a.tile + a.m) * TILE_ROW_BYTES);
    const T *from[COPIES];
#pragma unroll
    for (int i = 0; i < COPIES; i++) {
        int row = lane_row + 4 * i;
        from[i] = row < rows ? a.w + (first + row) * a.ldw : a.x + (int64_t)(row - rows) * a.k;
        from[i] += chunk * 8;
    }
    auto fetch = [&](int stage) {
        int column = stage * TILE_COLUMNS;
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
    tile_lane<TILES> at = few_lane_of<TILES>(lane, rows, a.m);
    tile_fragments<TILES> f[2];
    for (int s = 0; s < STAGES - 1; s++) fetch(s);
    copies_wait<STAGES - 2>();
    __syncwarp();
    tile_load(f[0], room, room, at, lane);
    for (int s = 0; s < n_stages; s += 2) {
#pragma unroll
        for (int h = 0; h < 2; h++) { /* the next stage's fragments while this one's are multiplied */
            if (s + h >= n_stages) break;
            fetch(s + h + STAGES - 1);
            copies_wait<STAGES - 2>();
            __syncwarp();
            uint32_t next = room + (uint32_t)((s + h + 1) % STAGES) * stage_bytes;
            tile_load(f[1 - h], next, next, at, lane);
            tile_multiply<T, TILES>(sums, f[h]);
        }
    }
    copies_wait<0>();
    tile_store<U, TILES>(a.y, a.m, a.n, sums, first, rows, lane);
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
    static bool allowed;
    cuda_allow_shared(cuda, "linear", kernel, STAGES * (TILE_ROWS + 8 * TILES) * TILE_ROW_BYTES, &allowed);
    size_t bytes = (size_t)STAGES * (size_t)(a.tile + a.m) * TILE_ROW_BYTES;
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
    BY_LINEAR_DTYPES(s, few_rows, cuda, s, m, o);
}
