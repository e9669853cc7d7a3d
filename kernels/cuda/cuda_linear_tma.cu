/* cuda_linear_tma.cu - products of few rows on compute capability 9.0: the bits of
 * cuda_linear_few.cu, at the speed of the memory.
 *
 * A block's warps take up to 16 rows of w each and share the rows of x. One warp more has the
 * tensor memory accelerator bring both into a ring, 256 columns a stage in four boxes of 64; a
 * stage is full when its bytes have arrived (`full`) and empty when every warp has taken its
 * fragments from it (`empty`). The accelerator swaps chunks of 16 bytes within 128
 * (CU_TENSOR_MAP_SWIZZLE_128B: chunk ^ row % 8), so that fragments are read without bank
 * conflicts. A warp's products wait for each other, so nothing but them may take time: that is
 * why stages are long and another warp does the fetching. */
#include "kernels/cuda/cuda_linear_tile.cuh"
#include "kernels/cuda/cuda_tma.cuh"

#include <assert.h>

enum {
    BOXES = 4, /* of w, and of x, in a stage */
    MAX_STAGES = 32
};

template <typename U> struct tma_args {
    U *y; /* [m, n] */
    int32_t m, n, k;
    int32_t warp_rows;         /* rows of w a warp */
    int32_t n_stages;          /* of the ring */
    uint32_t w_bytes, x_bytes; /* of a box, with what aligns the next; a stage has those of w first */
};

/* ---------------------------------------------------------------- kernel */

/* Rows of w from first_row of a box on. */
template <int TILES>
__device__ __forceinline__ tile_lane<TILES> tma_lane_of(int lane, int first_row, int n_rows, int m) {
    tile_lane<TILES> at;
    int row = first_row + tile_w_row(lane, n_rows);
    at.a = (uint32_t)(row * TMA_ROW_BYTES);
    at.a_swap = (uint32_t)(row & 7);
#pragma unroll
    for (int t = 0; t < TILES; t++) {
        int token = tile_x_row(lane, t, m);
        at.b[t] = (uint32_t)(token * TMA_ROW_BYTES);
        at.b_swap[t] = (uint32_t)(token & 7);
    }
    return at;
}

struct tma_ring { /* addresses in shared memory */
    uint32_t room, stage_bytes, full, empty;
    int n_stages;
};

/* Where one side of the ring is. The barriers of a stage change parity at every round. */
struct tma_cursor {
    int stage;
    uint32_t parity;
};

__device__ __forceinline__ void cursor_next(tma_cursor &c, const tma_ring &ring) {
    if (++c.stage == ring.n_stages) c.stage = 0, c.parity ^= 1;
}

/* The fetching warp: one thread of it. */
template <typename U>
__device__ __forceinline__ void tma_produce(const tma_ring &ring, const CUtensorMap *w_map,
                                            const CUtensorMap *x_map, const struct tma_args<U> &args,
                                            int first, int n_rounds, int n_warps) {
    uint32_t bytes = (uint32_t)((args.warp_rows * n_warps + args.m) * TMA_ROW_BYTES * BOXES);
    auto fetch = [&](const CUtensorMap *map, uint32_t box, uint32_t box_bytes, int n, int stage, int row) {
        for (int b = 0; b < BOXES; b++)
            tma_fetch(box + (uint32_t)b * box_bytes, map, (n * BOXES + b) * TMA_COLUMNS, row,
                      ring.full + 8 * (uint32_t)stage);
    };
    /* Weights do not come from the kernel before: the ring is filled with them while it runs. */
    int n_ahead = min(ring.n_stages, n_rounds);
    for (int s = 0; s < n_ahead; s++) {
        barrier_expect(ring.full + 8 * (uint32_t)s, bytes);
        fetch(w_map, ring.room + (uint32_t)s * ring.stage_bytes, args.w_bytes, s, s, first);
    }
    cuda_follow();
    tma_cursor c = {0, 1};
    for (int n = 0; n < n_rounds; n++) {
        uint32_t w_box = ring.room + (uint32_t)c.stage * ring.stage_bytes;
        if (n >= n_ahead) {
            barrier_wait(ring.empty + 8 * (uint32_t)c.stage, c.parity);
            barrier_expect(ring.full + 8 * (uint32_t)c.stage, bytes);
            fetch(w_map, w_box, args.w_bytes, n, c.stage, first);
        }
        fetch(x_map, w_box + BOXES * args.w_bytes, args.x_bytes, n, c.stage, 0);
        cursor_next(c, ring);
    }
}

/* A warp's sums over all of k. */
template <typename T, typename U, int TILES>
__device__ __forceinline__ void tma_consume(float sums[TILES][4], const tma_ring &ring,
                                            const struct tma_args<U> &args, const tile_lane<TILES> &at,
                                            int n_rounds, int lane) {
    tile_fragments<TILES> f[2];
    tma_cursor c = {0, 0};
    uint32_t w_box = ring.room, x_box = w_box + BOXES * args.w_bytes;
    barrier_wait(ring.full, 0);
    tile_load(f[0], w_box, x_box, at, lane);
    for (int n = 0; n < n_rounds; n++) {
#pragma unroll
        for (int b = 0; b < BOXES; b++) {
            /* The next box's fragments while this one's are multiplied. */
            if (b + 1 < BOXES) {
                tile_load(f[(b + 1) % 2], w_box + (uint32_t)(b + 1) * args.w_bytes,
                          x_box + (uint32_t)(b + 1) * args.x_bytes, at, lane);
            } else if (n + 1 < n_rounds) {
                __syncwarp();
                if (lane == 0) barrier_arrive(ring.empty + 8 * (uint32_t)c.stage);
                cursor_next(c, ring);
                w_box = ring.room + (uint32_t)c.stage * ring.stage_bytes;
                x_box = w_box + BOXES * args.w_bytes;
                barrier_wait(ring.full + 8 * (uint32_t)c.stage, c.parity);
                tile_load(f[0], w_box, x_box, at, lane);
            }
            tile_multiply<T, TILES>(sums, f[b % 2]);
        }
    }
}

template <typename T, typename U, int TILES>
__global__ void __launch_bounds__(160)
    tma_kernel(const __grid_constant__ CUtensorMap w_map, const __grid_constant__ CUtensorMap x_map,
               const __grid_constant__ struct tma_args<U> args) {
#if __CUDA_ARCH__ >= 900
    extern __shared__ __align__(1024) char tma_room[];
    int lane = (int)threadIdx.x & 31, warp = (int)threadIdx.x >> 5, n_warps = ((int)blockDim.x >> 5) - 1;
    int first = (int)blockIdx.x * args.warp_rows * n_warps;
    int n_rounds = (args.k + BOXES * TMA_COLUMNS - 1) / (BOXES * TMA_COLUMNS);
    tma_ring ring;
    ring.room = (uint32_t)__cvta_generic_to_shared(tma_room);
    ring.n_stages = args.n_stages;
    ring.stage_bytes = BOXES * (args.w_bytes + args.x_bytes);
    ring.full = ring.room + (uint32_t)args.n_stages * ring.stage_bytes;
    ring.empty = ring.full + 8 * MAX_STAGES;
    if (threadIdx.x == 0) {
        for (uint32_t s = 0; s < (uint32_t)args.n_stages; s++) {
            barrier_init(ring.full + 8 * s, 1);
            barrier_init(ring.empty + 8 * s, (uint32_t)n_warps);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();
    cuda_release();
    if (warp == n_warps) {
        if (lane == 0) tma_produce(ring, &w_map, &x_map, args, first, n_rounds, n_warps);
        return;
    }
    int column = first + warp * args.warp_rows;
    float sums[TILES][4] = {};
    tile_lane<TILES> at = tma_lane_of<TILES>(lane, warp * args.warp_rows, args.warp_rows, args.m);
    tma_consume<T, U, TILES>(sums, ring, args, at, n_rounds, lane);
    tile_store<U, TILES>(args.y, args.m, args.n, sums, column, min(args.warp_rows, args.n - column), lane);
#endif
}

/* ---------------------------------------------------------------- launch */

struct tma_plan {
    int warps, warp_rows, stages;
};

static uint32_t aligned_bytes(int rows) {
    return (uint32_t)((rows * TMA_ROW_BYTES + TMA_ALIGNMENT - 1) / TMA_ALIGNMENT * TMA_ALIGNMENT);
}

/* Blocks of nearly the same number of rows on every multiprocessor, and a ring as deep as
 * shared memory allows. */
static struct tma_plan plan_of(const struct cuda_dev *cuda, int64_t n, int64_t m) {
    int processors = cuda->prop.multiProcessorCount;
    int room = (int)cuda->prop.sharedMemPerMultiprocessor - 4096;
    struct tma_plan best = {4, TILE_ROWS, 2};
    double least = 1e30;
    for (int warps = 2; warps <= 4; warps += 2)
        for (int rows = 4; rows <= TILE_ROWS; rows++) {
            int64_t blocks = (n + warps * rows - 1) / (warps * rows);
            int64_t a_processor = (blocks + processors - 1) / processors;
            int resident = (int)(a_processor < 4 ? a_processor : 4);
            int stage = BOXES * (int)(aligned_bytes(warps * rows) + aligned_bytes((int)m));
            int stages = (room / resident - 2048) / stage;
            if (stages > MAX_STAGES) stages = MAX_STAGES;
            if (stages < 2) continue;
            double rounds = (double)a_processor * warps * rows,
                   traffic = 1.0 + (double)m / (warps * rows) / 4;
            double flight = (double)resident * stages * warps * rows * TMA_ROW_BYTES * BOXES;
            double cost = rounds * traffic * (flight < 65536 ? 65536 / flight : 1.0);
            if (cost < least * 0.999) least = cost, best = {warps, rows, stages};
        }
    return best;
}

template <typename T, typename U, int TILES>
static bool launch_tma(struct cuda_dev *cuda, const struct linear_shape *s, int64_t m,
                       const struct linear_operands *o) {
    struct tma_plan plan = plan_of(cuda, s->n, m);
    int rows = plan.warps * plan.warp_rows;
    struct tma_args<U> args = {
        (U *)o->y, (int32_t)m, (int32_t)s->n, (int32_t)s->k, plan.warp_rows, plan.stages, aligned_bytes(rows),
            aligned_bytes((int)m)
    };
    CUtensorMap w_map, x_map;
    if (!tma_map(&w_map, s->in, o->w, s->n, s->k, s->ldw, rows)) return false;
    if (!tma_map(&x_map, s->in, o->x, m, s->k, s->k, (int)m)) return false;
    auto kernel = tma_kernel<T, U, TILES>;
    static bool allowed;
    cuda_allow_shared(cuda, "linear", kernel, (int)cuda->prop.sharedMemPerBlockOptin, &allowed);
    size_t bytes = (size_t)plan.stages * BOXES * (args.w_bytes + args.x_bytes) + 2 * 8 * MAX_STAGES;
    cuda_launch(cuda, "a matrix product of few rows", kernel, dim3((unsigned)((s->n + rows - 1) / rows)),
                (unsigned)(plan.warps + 1) * 32, bytes, w_map, x_map, args);
    return true;
}

template <typename T, typename U>
static bool tma_rows(struct cuda_dev *cuda, const struct linear_shape *s, int64_t m,
                     const struct linear_operands *o) {
    if (m <= 8) return launch_tma<T, U, 1>(cuda, s, m, o);
    if (m <= 16) return launch_tma<T, U, 2>(cuda, s, m, o);
    return launch_tma<T, U, 4>(cuda, s, m, o);
}

bool cuda_linear_tma(struct cuda_dev *cuda, const struct linear_shape *s, int64_t m,
                     const struct linear_operands *o) {
    assert(m >= 1 && m <= TMA_ROWS && s->n % 8 == 0 && s->k % 8 == 0);
    if (cuda->capability < 90) return false;
    return BY_LINEAR_DTYPES(s, tma_rows, cuda, s, m, o);
}
