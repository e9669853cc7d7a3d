/* cuda_linear_grouped_mma.cu - grouped products by mma.m16n8k16, for devices without warpgroup
 * products; cuda_linear_grouped.h says what they are.
 *
 * As many blocks as fit on the device take one tile of 128 rows x 128 columns after the other.
 * Stages of 64 columns of x and of w come into a ring by cp.async; eight warps multiply 64 x 32
 * each, in ascending steps of 16 columns. */
#include "kernels/cuda/cuda_linear_grouped.cuh"

enum {
    ROWS = 128,
    COLUMNS = 128,
    WARP_ROWS = 64,
    WARP_COLUMNS = 32,
    THREADS = ROWS / WARP_ROWS * (COLUMNS / WARP_COLUMNS) * 32,
    STEP = 64, /* columns of a stage */
    CHUNKS = STEP / 8,
    ROW_BYTES = STEP * 2,
    STAGES = 3,
    STAGE_BYTES = (ROWS + COLUMNS) * ROW_BYTES,
    ROOM_BYTES = STAGES * STAGE_BYTES
};

/* The i-th tile; false behind the last. Tiles of a group that lie above each other come one
 * after the other. `first` is a copy of the arguments' in shared memory. */
__device__ __forceinline__ bool tile_at(group_tile &t, const int32_t *first, const group_args &a, int32_t i) {
    int32_t wide = (a.n + COLUMNS - 1) / COLUMNS;
    for (int32_t g = 0; g < a.n_groups; g++) {
        int32_t n_rows = first[g + 1] - first[g], high = (n_rows + ROWS - 1) / ROWS;
        if (i < high * wide) {
            int32_t row = i % high * ROWS;
            t = {g, first[g] + row, i / high * COLUMNS, n_rows - row};
            return true;
        }
        i -= high * wide;
    }
    return false;
}

/* Chunks of 16 bytes are swapped by XOR, so that eight rows of one column lie in different banks. */
__device__ __forceinline__ uint32_t chunk_at(uint32_t stage, int row, int chunk) {
    return stage + (uint32_t)(row * ROW_BYTES + ((chunk ^ (row & 7)) << 4));
}

/* Rows of x, then of w; zeros for what is not the group's or the weight's. */
template <typename T>
__device__ __forceinline__ void stage_fetch(uint32_t stage, const T *x, const T *w, int64_t ld,
                                            const group_tile &t, const group_args &a, int32_t k) {
    int chunk = (int)threadIdx.x % CHUNKS;
    k += chunk * 8;
#pragma unroll
    for (int i = 0; i < (ROWS + COLUMNS) * CHUNKS / THREADS; i++) {
        int row = (int)threadIdx.x / CHUNKS + i * (THREADS / CHUNKS);
        bool is_x = row < ROWS, there = k < a.k && (is_x ? row < t.n_rows : t.column + row - ROWS < a.n);
        const T *from = is_x ? x + (int64_t)(t.row + row) * a.k : w + (t.column + row - ROWS) * ld;
        copy_async(chunk_at(stage, row, chunk), there ? from + k : x, there);
    }
}

/* A warp's share of a stage. */
template <typename T>
__device__ __forceinline__ void stage_multiply(float sums[4][4][4], uint32_t stage, int row, int column,
                                               int lane) {
#pragma unroll
    for (int s = 0; s < STEP / 16; s++) {
        uint32_t x[4][4], w[2][4];
#pragma unroll
        for (int i = 0; i < 4; i++)
            load_matrices(x[i], chunk_at(stage, row + 16 * i + (lane & 15), 2 * s + (lane >> 4)));
#pragma unroll
        for (int i = 0; i < 2; i++) {
            int r = ROWS + column + 16 * i + (lane & 7) + (lane >> 4) * 8;
            load_matrices(w[i], chunk_at(stage, r, 2 * s + (lane >> 3 & 1)));
        }
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < 4; j++)
                multiply_add<T>(sums[i][j], x[i], w[j / 2][j % 2 * 2], w[j / 2][j % 2 * 2 + 1]);
    }
}

template <typename T>
__global__ void __launch_bounds__(THREADS)
    grouped_mma_kernel(T *y, const T *x, const struct group_weights w, const group_args a) {
    extern __shared__ __align__(1024) char grouped_mma_room[];
    __shared__ int32_t first[MOST_GROUPS + 1];
    int lane = (int)threadIdx.x & 31, warp = (int)threadIdx.x >> 5;
    int row = warp % (ROWS / WARP_ROWS) * WARP_ROWS, column = warp / (ROWS / WARP_ROWS) * WARP_COLUMNS;
    int n_rounds = (a.k + STEP - 1) / STEP;
    uint32_t room = (uint32_t)__cvta_generic_to_shared(grouped_mma_room);
    cuda_begin();
    if ((int)threadIdx.x <= a.n_groups) first[threadIdx.x] = a.first[threadIdx.x];
    __syncthreads();
    group_tile t;
    for (int32_t i = (int32_t)blockIdx.x; tile_at(t, first, a, i); i += (int32_t)gridDim.x) {
        float sums[4][4][4] = {};
        auto fetch = [&](int n) {
            if (n < n_rounds)
                stage_fetch(room + (uint32_t)(n % STAGES * STAGE_BYTES), x, (const T *)w.of[t.group], w.ld, t,
                            a, n * STEP);
            copies_commit();
        };
        for (int n = 0; n < STAGES - 1; n++) fetch(n);
        for (int n = 0; n < n_rounds; n++) {
            copies_wait<STAGES - 2>();
            __syncthreads(); /* all have this stage, and are done with the one before, which is next */
            fetch(n + STAGES - 1);
            if (row < t.n_rows)
                stage_multiply<T>(sums, room + (uint32_t)(n % STAGES * STAGE_BYTES), row, column, lane);
        }
        copies_wait<0>();
        __syncthreads();
#pragma unroll
        for (int j = 0; j < WARP_ROWS / 16; j++) {
            int32_t at = row + 16 * j;
            store_32<T>(y + (int64_t)(t.row + at) * a.n, sums[j], t.n_rows - at, t.column + column, a.n,
                        lane);
        }
    }
}

template <typename T>
static void launch_plain(struct cuda_dev *cuda, struct tensor *y, const struct tensor *x,
                         const struct group_weights &w, const struct group_args &a) {
    auto kernel = grouped_mma_kernel<T>;
    static bool allowed;
    static int fit; /* blocks on a multiprocessor */
    if (!cuda_allow_shared(cuda, "linear", kernel, ROOM_BYTES, &allowed)) return;
    if (fit == 0) {
        cudaError_t e = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&fit, kernel, THREADS, ROOM_BYTES);
        if (!cuda_ok(cuda, e, "linear")) return;
    }
    cuda_launch(cuda, "grouped matrix products", kernel,
                dim3((unsigned)(fit * cuda->prop.multiProcessorCount)), THREADS, ROOM_BYTES, (T *)y->data,
                (const T *)x->data, w, a);
}

void grouped_plain(struct cuda_dev *cuda, struct tensor *y, const struct tensor *x,
                   const struct group_weights &w, const struct group_args &a) {
    if (w.dtype == DTYPE_F16)
        launch_plain<__half>(cuda, y, x, w, a);
    else
        launch_plain<__nv_bfloat16>(cuda, y, x, w, a);
}
