/* cuda_linear_grouped.cu - see cuda_linear_grouped.h; on compute capability 9.0a, whose way this
 * is, and which of the ways is taken.
 *
 * One block a multiprocessor takes one tile of 128 rows x 256 columns after the other. Two
 * warpgroups multiply, 64 rows each; one warp more has the tensor memory accelerator bring
 * boxes of 64 columns of x and of w into a ring, and runs ahead into the next tile while the
 * sums of one are written. Sums are one accumulator over ascending steps of 16 columns.
 *
 * Tiles of a group that lie above each other come one after the other: they are in flight
 * together, so that a weight leaves the memory once. A warpgroup of whose 64 rows none is the
 * group's does not multiply: the last tile of a group costs half if it is less than half full. */
#include "kernels/cuda/cuda_linear_grouped.cuh"
#include "kernels/cuda/cuda_tma.cuh"
#include "kernels/cuda/cuda_wgmma.cuh"

#include <assert.h>

enum {
    GROUP_ROWS = 64, /* of a warpgroup */
    ROWS = 2 * GROUP_ROWS,
    COLUMNS = 256,
    WARPS = ROWS / GROUP_ROWS * 4, /* that multiply */
    STAGES = 4,
    X_BYTES = ROWS * TMA_ROW_BYTES,
    STAGE_BYTES = X_BYTES + COLUMNS * TMA_ROW_BYTES,
    ROOM_BYTES = STAGES * (STAGE_BYTES + 2 * 8)
};

struct group_maps {
    CUtensorMap of[MOST_GROUPS];
};

/* ---------------------------------------------------------------- the ring */

/* One side's place in it. The barriers of a stage change parity at every round. */
struct group_ring {
    uint32_t room; /* in shared memory: stages, then their barriers */
    int stage;
    uint32_t parity;

    __device__ __forceinline__ uint32_t x() const { return room + (uint32_t)(stage * STAGE_BYTES); }
    __device__ __forceinline__ uint32_t w() const { return x() + X_BYTES; }
    __device__ __forceinline__ uint32_t full() const {
        return room + (uint32_t)(STAGES * STAGE_BYTES + stage * 8);
    }
    __device__ __forceinline__ uint32_t empty() const { return full() + STAGES * 8; }
    __device__ __forceinline__ void next() {
        if (++stage == STAGES) stage = 0, parity ^= 1;
    }
};

__device__ __forceinline__ void ring_init(group_ring ring) {
    for (; ring.stage < STAGES; ring.stage++) {
        barrier_init(ring.full(), 1);
        barrier_init(ring.empty(), WARPS);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

/* One thread fetches a tile's operands. Where the tile hangs over its group, rows of the next
 * come along: what is multiplied with them is not written. */
__device__ __forceinline__ void group_produce(group_ring &ring, const CUtensorMap *x, const CUtensorMap *w,
                                              const group_tile &t, int n_rounds) {
    for (int n = 0; n < n_rounds; n++, ring.next()) {
        barrier_wait(ring.empty(), ring.parity);
        barrier_expect(ring.full(), STAGE_BYTES);
        tma_fetch(ring.x(), x, n * TMA_COLUMNS, t.row, ring.full());
        tma_fetch(ring.w(), w, n * TMA_COLUMNS, t.column, ring.full());
    }
}

/* ---------------------------------------------------------------- sums */

#define WGMMA_SHARED_256(type)                                                                               \
    asm volatile("wgmma.mma_async.sync.aligned.m64n256k16.f32." type "." type " "                            \
                 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, "              \
                 "%17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "               \
                 "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, "               \
                 "%47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, "               \
                 "%62, %63, %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, "               \
                 "%77, %78, %79, %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, "               \
                 "%92, %93, %94, %95, %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, "              \
                 "%106, %107, %108, %109, %110, %111, %112, %113, %114, %115, %116, %117, "                  \
                 "%118, %119, %120, %121, %122, %123, %124, %125, %126, %127}, "                             \
                 "%128, %129, 1, 1, 1, 0, 0;"                                                                \
                 : WGMMA_OUT_8(0), WGMMA_OUT_8(8), WGMMA_OUT_8(16), WGMMA_OUT_8(24)                          \
                 : "l"(a), "l"(b))

/* d[64, 256] += a[64, 16] b[256, 16]^T */
template <typename T> __device__ __forceinline__ void multiply_256(float (*d)[4], uint64_t a, uint64_t b) {
    if constexpr (is_half<T>)
        WGMMA_SHARED_256("f16");
    else
        WGMMA_SHARED_256("bf16");
}

__device__ __forceinline__ void stage_release(const group_ring &ring, int lane) {
    if (lane == 0) barrier_arrive(ring.empty());
}

/* A warpgroup's sums over all of k. A stage is given back when its products are done, which
 * is known when the next stage's have begun. */
template <typename T>
__device__ __forceinline__ void group_multiply(float (*sums)[4], group_ring &ring, int warpgroup, int n_rounds,
                                               int lane) {
    uint32_t rows = (uint32_t)(warpgroup * GROUP_ROWS * TMA_ROW_BYTES);
    group_ring before = ring;
#pragma unroll
    for (int j = 0; j < COLUMNS / 8; j++) sums[j][0] = sums[j][1] = sums[j][2] = sums[j][3] = 0.0f;
    for (int n = 0; n < n_rounds; n++) {
        barrier_wait(ring.full(), ring.parity);
        wgmma_fence();
#pragma unroll
        for (uint32_t step = 0; step < TMA_COLUMNS / 16; step++)
            multiply_256<T>(sums, wgmma_matrix(ring.x() + rows + step * 32, 16),
                            wgmma_matrix(ring.w() + step * 32, 16));
        wgmma_commit();
        wgmma_wait<1>();
        if (n > 0) stage_release(before, lane);
        before = ring;
        ring.next();
    }
    wgmma_wait<0>();
    stage_release(before, lane);
}

/* The stages of a tile of which the warpgroup has no rows. */
__device__ __forceinline__ void group_skip(group_ring &ring, int n_rounds, int lane) {
    for (int n = 0; n < n_rounds; n++, ring.next()) {
        barrier_wait(ring.full(), ring.parity);
        stage_release(ring, lane);
    }
}

/* ---------------------------------------------------------------- kernel */

/* The fetching warp's warpgroup gives its registers to the others. */
template <typename T>
__global__ void __launch_bounds__((WARPS + 4) * 32, 1)
    grouped_kernel(T *y, const __grid_constant__ CUtensorMap x_map,
                   const __grid_constant__ struct group_maps w_maps, const __grid_constant__ group_args a) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    extern __shared__ __align__(1024) char grouped_room[];
    __shared__ int32_t first[MOST_GROUPS + 1];
    int lane = (int)threadIdx.x & 31, warp = (int)threadIdx.x >> 5;
    int n_rounds = (a.k + TMA_COLUMNS - 1) / TMA_COLUMNS;
    group_ring ring = {(uint32_t)__cvta_generic_to_shared(grouped_room), 0, 0};
    if (threadIdx.x == 0) ring_init(ring);
    cuda_begin();
    if ((int)threadIdx.x <= a.n_groups) first[threadIdx.x] = a.first[threadIdx.x];
    __syncthreads();
    group_tile t;
    if (warp >= WARPS) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
        if (warp > WARPS || lane > 0) return;
        ring.parity = 1; /* stages are empty at first */
        for (int32_t i = (int32_t)blockIdx.x; tile_at<ROWS, COLUMNS>(t, first, a, i); i += (int32_t)gridDim.x)
            group_produce(ring, &x_map, &w_maps.of[t.group], t, n_rounds);
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
        float sums[COLUMNS / 8][4];
        for (int32_t i = (int32_t)blockIdx.x; tile_at<ROWS, COLUMNS>(t, first, a, i); i += (int32_t)gridDim.x) {
            int32_t row = warp / 4 * GROUP_ROWS;
            if (row >= t.n_rows) {
                group_skip(ring, n_rounds, lane);
                continue;
            }
            group_multiply<T>(sums, ring, warp / 4, n_rounds, lane);
            row += warp % 4 * 16;
            T *to = y + (int64_t)(t.row + row) * a.n;
#pragma unroll
            for (int j = 0; j < COLUMNS / 8; j += 4)
                store_32<T>(to, sums + j, t.n_rows - row, t.column + 8 * j, a.n, lane);
        }
    }
#endif
}

/* ---------------------------------------------------------------- launch */

bool cuda_group_weights(struct group_weights *out, const struct cuda_dev *cuda, struct weight *const *w,
                        int32_t n_groups) {
    struct group_weights g = {w[0]->dtype, n_groups, w[0]->n, w[0]->k, w[0]->k_pad, {}};
    if (cuda->prop.major < 8 || n_groups > MOST_GROUPS) return false;
    if ((g.dtype != DTYPE_BF16 && g.dtype != DTYPE_F16) || g.n % 8 || g.k % 8) return false;
    for (int32_t i = 0; i < n_groups; i++) {
        assert(w[i]->n == g.n && w[i]->k == g.k && w[i]->dtype == g.dtype);
        if (w[i]->quant != QUANT_NONE) return false;
        g.of[i] = w[i]->data;
    }
    *out = g;
    return true;
}

template <typename T>
static void launch_grouped(struct cuda_dev *cuda, struct tensor *y, const CUtensorMap &x_map,
                           const struct group_maps &w_maps, const struct group_args &a) {
    auto kernel = grouped_kernel<T>;
    static bool prepared;
    if (!prepared)
        prepared = cuda_ok(
            cuda, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, ROOM_BYTES), "linear");
    cuda_launch(cuda, "grouped matrix products", kernel, dim3((unsigned)cuda->prop.multiProcessorCount),
                (WARPS + 4) * 32, ROOM_BYTES, (T *)y->data, x_map, w_maps, a);
}

/* False where the driver cannot describe the matrices. */
static bool grouped_by_tma(struct cuda_dev *cuda, struct tensor *y, const struct tensor *x,
                           const struct group_weights &w, const struct group_args &a) {
    struct group_maps w_maps = {};
    CUtensorMap x_map;
    if (!tma_map(&x_map, w.dtype, x->data, x->shape[0], w.k, w.k, ROWS)) return false;
    for (int32_t g = 0; g < w.n_groups; g++)
        if (!tma_map(&w_maps.of[g], w.dtype, w.of[g], w.n, w.k, w.ld, COLUMNS)) return false;
    if (w.dtype == DTYPE_F16)
        launch_grouped<__half>(cuda, y, x_map, w_maps, a);
    else
        launch_grouped<__nv_bfloat16>(cuda, y, x_map, w_maps, a);
    return true;
}

void cuda_linear_grouped(struct cuda_dev *cuda, struct tensor *y, const struct tensor *x,
                         const struct group_weights *w, const int32_t *first) {
    struct group_args a = {first, w->n_groups, (int32_t)w->n, (int32_t)w->k};
    assert(x->dtype == w->dtype && y->dtype == w->dtype && y->shape[0] == x->shape[0]);
    assert(x->shape[1] == w->k && y->shape[1] == w->n);
    cuda_loader_drain(cuda);
    if (!cuda->has_wgmma || !grouped_by_tma(cuda, y, x, *w, a)) grouped_plain(cuda, y, x, *w, a);
}
