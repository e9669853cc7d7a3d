/* cuda_linear_grouped.cu - see cuda_linear_grouped.h; on compute capability 9.0a, whose way this
 * is, and which of the ways is taken.
 *
 * One block a multiprocessor takes one tile of 128 rows x 256 columns after the other. Two
 * warpgroups multiply, 64 rows each; one warp more has the tensor memory accelerator bring
 * boxes of 64 columns of x and of w into a ring, and runs ahead into the next tile while the
 * sums of one are written. Sums are one accumulator over ascending steps of 16 columns. A
 * warpgroup of whose 64 rows none is the group's does not multiply.
 *
 * What limits many rows is the way from the cache to the multiprocessors. So two blocks are a
 * cluster and have one operand in common, of which each fetches half for both: w, where their
 * tiles lie above each other; x, where they lie side by side, which is the last row of tiles of
 * a group that has an odd number of them. Few rows wait for the memory alone, and blocks would
 * wait for each other besides: there each is by itself. */
#include "kernels/cuda/cuda_linear_grouped.cuh"
#include "kernels/cuda/cuda_tma.cuh"
#include "kernels/cuda/cuda_wgmma.cuh"

#include <assert.h>

enum {
    GROUP_ROWS = 64, /* of a warpgroup */
    ROWS = 2 * GROUP_ROWS,
    COLUMNS = 256,
    WARPS = ROWS / GROUP_ROWS * 4, /* that multiply */
    THREADS = (WARPS + 4) * 32,
    STAGES = 4,
    X_BYTES = ROWS * TMA_ROW_BYTES,
    W_BYTES = COLUMNS * TMA_ROW_BYTES,
    STAGE_BYTES = X_BYTES + W_BYTES,
    ROOM_BYTES = STAGES * (STAGE_BYTES + 2 * 8)
};
enum { FEW_PLACES = 64 }; /* rows of all groups; above, blocks are clusters of two */

struct group_maps {
    CUtensorMap x, w[MOST_GROUPS]; /* in boxes of half a tile */
};

/* ---------------------------------------------------------------- tiles */

struct cluster_tile {
    group_tile tile;         /* this block's */
    bool shares_x, shares_w; /* with the other of its cluster; not both */
};

/* Of a group with `high` tiles above each other, the i-th of a cluster of one: those above each
 * other come one after the other, so that they are in flight together and a weight leaves the
 * memory once. */
__device__ __forceinline__ void tile_alone(cluster_tile &t, int32_t i, int32_t high) {
    t.shares_x = t.shares_w = false;
    t.tile.row = i % high;
    t.tile.column = i / high;
}

/* Of a cluster of two: two columns of tiles, then the next two. */
__device__ __forceinline__ void tile_of_two(cluster_tile &t, int32_t i, int32_t high, int32_t rank) {
    int32_t half = high / 2, at = i % high;
    t.shares_w = at < 2 * half;
    t.shares_x = !t.shares_w;
    t.tile.row = t.shares_w ? at % half * 2 + rank : high - 1;
    t.tile.column = i / high * 2 + (t.shares_w ? at / half : rank);
}

/* The i-th tile of a cluster; false behind the last. */
template <int CLUSTER>
__device__ __forceinline__ bool tile_at(cluster_tile &t, const int32_t *first, const group_args &a, int32_t i,
                                        int32_t rank) {
    int32_t wide = (a.n + CLUSTER * COLUMNS - 1) / (CLUSTER * COLUMNS);
    for (int32_t g = 0; g < a.n_groups; g++) {
        int32_t n_rows = first[g + 1] - first[g], high = (n_rows + ROWS - 1) / ROWS;
        if (i < high * wide) {
            if (CLUSTER == 1)
                tile_alone(t, i, high);
            else
                tile_of_two(t, i, high, rank);
            int32_t row = t.tile.row * ROWS;
            t.tile = {g, first[g] + row, t.tile.column * COLUMNS, n_rows - row};
            return true;
        }
        i -= high * wide;
    }
    return false;
}

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

/* A stage is empty when the warps of all the cluster have left theirs, for it is written from
 * everywhere. */
template <int CLUSTER> __device__ __forceinline__ void ring_init(group_ring ring) {
    for (; ring.stage < STAGES; ring.stage++) {
        barrier_init(ring.full(), 1);
        barrier_init(ring.empty(), CLUSTER * WARPS);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

/* Both halves of a box, or one of them for two blocks. */
__device__ __forceinline__ void fetch_halves(uint32_t to, uint32_t half_bytes, const CUtensorMap *map, int k,
                                             int row, int half_rows, uint32_t barrier, bool shares,
                                             int rank) {
    if (shares) {
        tma_fetch_both(to + (uint32_t)rank * half_bytes, map, k, row + rank * half_rows, barrier);
        return;
    }
    tma_fetch(to, map, k, row, barrier);
    tma_fetch(to + half_bytes, map, k, row + half_rows, barrier);
}

/* One thread fetches a tile's operands. Where the tile hangs over its group, rows of the next
 * come along: what is multiplied with them is not written. */
__device__ __forceinline__ void group_produce(group_ring &ring, const struct group_maps &maps,
                                              const cluster_tile &t, int rank, int n_rounds) {
    const CUtensorMap *w = &maps.w[t.tile.group];
    for (int n = 0; n < n_rounds; n++, ring.next()) {
        int k = n * TMA_COLUMNS;
        barrier_wait(ring.empty(), ring.parity);
        barrier_expect(ring.full(), STAGE_BYTES);
        fetch_halves(ring.x(), X_BYTES / 2, &maps.x, k, t.tile.row, ROWS / 2, ring.full(), t.shares_x, rank);
        fetch_halves(ring.w(), W_BYTES / 2, w, k, t.tile.column, COLUMNS / 2, ring.full(), t.shares_w, rank);
    }
}

template <int CLUSTER> __device__ __forceinline__ void stage_release(const group_ring &ring, int lane) {
    if (CLUSTER > 1) {
        if (lane < CLUSTER) barrier_arrive_in(ring.empty(), (uint32_t)lane);
    } else if (lane == 0) {
        barrier_arrive(ring.empty());
    }
}

/* ---------------------------------------------------------------- sums */

#define WGMMA_SHARED_256(type)                                                                               \
    asm volatile("wgmma.mma_async.sync.aligned.m64n256k16.f32." type "." type " "                            \
                 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, "    \
                 "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, "     \
                 "%36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, "     \
                 "%53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, %64, %65, %66, %67, %68, %69, "     \
                 "%70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, %85, %86, "     \
                 "%87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, %98, %99, %100, %101, %102, "       \
                 "%103, %104, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, %115, %116, "      \
                 "%117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}, "                       \
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

/* A warpgroup's sums over all of k. A stage is given back when its products are done, which
 * is known when the next stage's have begun. */
template <typename T, int CLUSTER>
__device__ __forceinline__ void group_multiply(float (*sums)[4], group_ring &ring, int warpgroup,
                                               int n_rounds, int lane) {
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
        if (n > 0) stage_release<CLUSTER>(before, lane);
        before = ring;
        ring.next();
    }
    wgmma_wait<0>();
    stage_release<CLUSTER>(before, lane);
}

/* The stages of a tile of which the warpgroup has no rows. */
template <int CLUSTER> __device__ __forceinline__ void group_skip(group_ring &ring, int n_rounds, int lane) {
    for (int n = 0; n < n_rounds; n++, ring.next()) {
        barrier_wait(ring.full(), ring.parity);
        stage_release<CLUSTER>(ring, lane);
    }
}

/* ---------------------------------------------------------------- kernel */

/* The fetching warp's warpgroup gives its registers to the others. */
template <typename T, int CLUSTER>
__global__ void __launch_bounds__(THREADS, 1)
    grouped_kernel(T *y, const __grid_constant__ struct group_maps maps,
                   const __grid_constant__ group_args a) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    extern __shared__ __align__(1024) char grouped_room[];
    __shared__ int32_t first[MOST_GROUPS + 1];
    int lane = (int)threadIdx.x & 31, warp = (int)threadIdx.x >> 5,
        rank = CLUSTER > 1 ? (int)cluster_rank() : 0;
    int n_rounds = (a.k + TMA_COLUMNS - 1) / TMA_COLUMNS;
    group_ring ring = {(uint32_t)__cvta_generic_to_shared(grouped_room), 0, 0};
    if (threadIdx.x == 0) ring_init<CLUSTER>(ring);
    cuda_begin();
    if ((int)threadIdx.x <= a.n_groups) first[threadIdx.x] = a.first[threadIdx.x];
    __syncthreads();
    if (CLUSTER > 1) cluster_sync();
    cluster_tile t;
    int32_t cluster = (int32_t)blockIdx.x / CLUSTER, n_clusters = (int32_t)gridDim.x / CLUSTER;
    if (warp >= WARPS) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        ring.parity = 1; /* stages are empty at first */
        if (warp == WARPS && lane == 0)
            for (int32_t i = cluster; tile_at<CLUSTER>(t, first, a, i, rank); i += n_clusters)
                group_produce(ring, maps, t, rank, n_rounds);
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
        float sums[COLUMNS / 8][4];
        for (int32_t i = cluster; tile_at<CLUSTER>(t, first, a, i, rank); i += n_clusters) {
            int32_t row = warp / 4 * GROUP_ROWS;
            if (row >= t.tile.n_rows) {
                group_skip<CLUSTER>(ring, n_rounds, lane);
                continue;
            }
            group_multiply<T, CLUSTER>(sums, ring, warp / 4, n_rounds, lane);
            row += warp % 4 * 16;
            T *to = y + (int64_t)(t.tile.row + row) * a.n;
#pragma unroll
            for (int j = 0; j < COLUMNS / 8; j += 4)
                store_32<T>(to, sums + j, t.tile.n_rows - row, t.tile.column + 8 * j, a.n, lane);
        }
    }
    __syncwarp();
    if (CLUSTER > 1) cluster_sync(); /* the other block may still write here */
#endif
}

/* ---------------------------------------------------------------- launch */

bool cuda_group_weights(struct group_weights *out, const struct cuda_dev *cuda, struct weight *const *w,
                        int32_t n_groups) {
    struct group_weights g = {w[0]->dtype, n_groups, w[0]->n, w[0]->k, w[0]->k_pad, {}};
    if (cuda->capability < 80 || n_groups > MOST_GROUPS) return false;
    if ((g.dtype != DTYPE_BF16 && g.dtype != DTYPE_F16) || g.n % 8 || g.k % 8) return false;
    for (int32_t i = 0; i < n_groups; i++) {
        assert(w[i]->n == g.n && w[i]->k == g.k && w[i]->dtype == g.dtype);
        if (w[i]->quant != QUANT_NONE) return false;
        g.of[i] = w[i]->data;
    }
    *out = g;
    return true;
}

/* As cuda_launch, in clusters. */
template <typename T, int CLUSTER>
static void launch_grouped(struct cuda_dev *cuda, struct tensor *y, const struct group_maps &maps,
                           const struct group_args &a) {
    auto kernel = grouped_kernel<T, CLUSTER>;
    static bool allowed;
    cuda_allow_shared(cuda, "linear", kernel, ROOM_BYTES, &allowed);
    cudaLaunchAttribute attributes[2] = {};
    attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[0].val.programmaticStreamSerializationAllowed = 1;
    attributes[1].id = cudaLaunchAttributeClusterDimension;
    attributes[1].val.clusterDim.x = CLUSTER;
    attributes[1].val.clusterDim.y = attributes[1].val.clusterDim.z = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3((unsigned)(cuda->prop.multiProcessorCount / CLUSTER * CLUSTER));
    config.blockDim = dim3(THREADS);
    config.dynamicSmemBytes = ROOM_BYTES;
    config.stream = cuda->stream;
    config.attrs = attributes;
    config.numAttrs = CLUSTER > 1 ? 2 : 1;
    cuda_ok(cuda, cudaLaunchKernelEx(&config, kernel, (T *)y->data, maps, a), "grouped matrix products");
}

/* False where the driver cannot describe the matrices. */
template <typename T, int CLUSTER>
static bool grouped_by_tma(struct cuda_dev *cuda, struct tensor *y, const struct tensor *x,
                           const struct group_weights &w, const struct group_args &a) {
    struct group_maps maps = {};
    if (!tma_map(&maps.x, w.dtype, x->data, x->shape[0], w.k, w.k, ROWS / 2)) return false;
    for (int32_t g = 0; g < w.n_groups; g++)
        if (!tma_map(&maps.w[g], w.dtype, w.of[g], w.n, w.k, w.ld, COLUMNS / 2)) return false;
    launch_grouped<T, CLUSTER>(cuda, y, maps, a);
    return true;
}

template <typename T>
static bool grouped_by_wgmma(struct cuda_dev *cuda, struct tensor *y, const struct tensor *x,
                             const struct group_weights &w, const struct group_args &a) {
    if (!cuda->has_wgmma) return false;
    if (x->shape[0] <= FEW_PLACES) return grouped_by_tma<T, 1>(cuda, y, x, w, a);
    return grouped_by_tma<T, 2>(cuda, y, x, w, a);
}

void cuda_linear_grouped(struct cuda_dev *cuda, struct tensor *y, const struct tensor *x,
                         const struct group_weights *w, const int32_t *first) {
    struct group_args a = {first, w->n_groups, (int32_t)w->n, (int32_t)w->k};
    bool done;
    assert(x->dtype == w->dtype && y->dtype == w->dtype && y->shape[0] == x->shape[0]);
    assert(x->shape[1] == w->k && y->shape[1] == w->n);
    cuda_loader_drain(cuda);
    if (w->dtype == DTYPE_F16)
        done = grouped_by_wgmma<__half>(cuda, y, x, *w, a);
    else
        done = grouped_by_wgmma<__nv_bfloat16>(cuda, y, x, *w, a);
    if (!done) grouped_plain(cuda, y, x, *w, a);
}
