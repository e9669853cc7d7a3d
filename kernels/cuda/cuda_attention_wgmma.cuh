/* cuda_attention_wgmma.cuh - attention of many rows on compute capability 9.0: chunks of
 * prompts, at the rate of its warpgroup products (wgmma).
 *
 * A block takes 128 rows of one item and one KV head, 64 a warpgroup; one warp more has the
 * tensor memory accelerator bring tiles of 64 keys into a ring, K and V in turn. Arithmetic
 * and its order are those of cuda_attention_mma.cuh: steps of 16 ascending, the same weights,
 * the same tree; only the instruction that multiplies is another, and gives the same bits.
 * While one warpgroup turns scores into weights, the other multiplies. */
#ifndef BATCHD_KERNELS_CUDA_ATTENTION_WGMMA_CUH
#define BATCHD_KERNELS_CUDA_ATTENTION_WGMMA_CUH

#include "kernels/cuda/cuda_attention_mma.cuh"
#include "kernels/cuda/cuda_tma.cuh"
#include "kernels/cuda/cuda_wgmma.cuh"

enum { WGMMA_ROWS = 64, WGMMA_GROUPS = 2, WGMMA_WARPS = 4 * WGMMA_GROUPS };

/* ---------------------------------------------------------------- instructions */

#define WGMMA_SHARED_64(type)                                                                                \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"                                                \
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type " "                             \
                 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, "    \
                 "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "                        \
                 "%32, %33, p, 1, 1, 0, 0;\n}"                                                               \
                 : WGMMA_OUT_8(0)                                                                            \
                 : "l"(a), "l"(b), "r"((int)accumulate))
#define WGMMA_64(type)                                                                                       \
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type " "                             \
                 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, "    \
                 "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "                        \
                 "{%32, %33, %34, %35}, %36, 1, 1, 1, 1;"                                                    \
                 : WGMMA_OUT_8(0)                                                                            \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))
#define WGMMA_128(type)                                                                                      \
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type " "                            \
                 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, "    \
                 "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, "     \
                 "%36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, "     \
                 "%53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "                                  \
                 "{%64, %65, %66, %67}, %68, 1, 1, 1, 1;"                                                    \
                 : WGMMA_OUT_8(0), WGMMA_OUT_8(8)                                                            \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))

/* Matrices in shared memory are named by descriptors (wgmma_matrix). These return at once; see
 * wgmma_wait. First: d[64, 64] = a[64, 16] b[16, 64] (+ d), both as rows of 16. */
template <typename T>
__device__ __forceinline__ void wgmma_scores(float (*d)[4], uint64_t a, uint64_t b, bool accumulate) {
    if constexpr (is_half<T>)
        WGMMA_SHARED_64("f16");
    else
        WGMMA_SHARED_64("bf16");
}

/* d[64, N] += a[64, 16] b[16, N]: a's fragments in registers, b as 16 rows of N. */
template <typename T, int N>
__device__ __forceinline__ void wgmma_values(float (*d)[4], const uint32_t a[4], uint64_t b) {
    if constexpr (N == 64 && is_half<T>)
        WGMMA_64("f16");
    else if constexpr (N == 64)
        WGMMA_64("bf16");
    else if constexpr (is_half<T>)
        WGMMA_128("f16");
    else
        WGMMA_128("bf16");
}

/* ---------------------------------------------------------------- the ring */

template <int HD> struct wide_tile { /* 64 keys: HD / 64 boxes of 64 x 64, side by side */
    static constexpr int BOXES = HD / TMA_COLUMNS, BOX_BYTES = ATTENTION_TILE * TMA_ROW_BYTES;
    static constexpr int BYTES = BOXES * BOX_BYTES, BLOCK_BYTES = KV_BLOCK * TMA_ROW_BYTES;
    static constexpr int STAGES = HD > 128 ? 4 : 6; /* of the ring */
    static constexpr int ROOM = (STAGES + WGMMA_GROUPS) * BYTES + 16 * STAGES;
};

template <int HD> struct wide_ring {
    static constexpr int STAGES = wide_tile<HD>::STAGES;
    uint32_t room, queries, full, empty; /* addresses in shared memory */

    __device__ __forceinline__ uint32_t tile_of(int stage) const {
        return room + (uint32_t)(stage % STAGES * wide_tile<HD>::BYTES);
    }
    __device__ __forceinline__ uint32_t full_of(int stage) const {
        return full + (uint32_t)(stage % STAGES * 8);
    }
    __device__ __forceinline__ uint32_t empty_of(int stage) const {
        return empty + (uint32_t)(stage % STAGES * 8);
    }
    static __device__ __forceinline__ uint32_t round_of(int stage) {
        return (uint32_t)(stage / STAGES) & 1;
    }
};

/* One thread: every tile of keys and of values, where the ring has room. Blocks behind `end`
 * are not fetched: the table says nothing of them. */
template <int HD>
__device__ __forceinline__ void wide_produce(const wide_ring<HD> &ring, const CUtensorMap *kv,
                                             const int32_t *table, const attention_args &a, int32_t kv_head,
                                             int32_t first_tile, int32_t end, int n_tiles) {
    using shape = wide_tile<HD>;
    for (int stage = 0; stage < 2 * n_tiles; stage++) {
        int32_t tile = first_tile + stage / 2 * ATTENTION_TILE, which = stage & 1;
        int n_blocks = tile + KV_BLOCK < end ? 2 : 1;
        if (stage >= shape::STAGES) barrier_wait(ring.empty_of(stage), ring.round_of(stage) ^ 1);
        barrier_expect(ring.full_of(stage), (uint32_t)(n_blocks * shape::BOXES * shape::BLOCK_BYTES));
        for (int b = 0; b < n_blocks; b++) {
            int32_t block = table[tile / KV_BLOCK + b];
            int32_t row = (int32_t)kv_tile_of(a, block, which, kv_head) * KV_BLOCK;
#pragma unroll
            for (int box = 0; box < shape::BOXES; box++)
                tma_fetch(ring.tile_of(stage) + (uint32_t)(box * shape::BOX_BYTES + b * shape::BLOCK_BYTES),
                          kv, box * TMA_COLUMNS, row, ring.full_of(stage));
        }
    }
}

/* Values behind `end` were never written, and 0 times NaN is NaN. For all consumers. */
template <int HD> __device__ __forceinline__ void clear_values(uint32_t tile_room, int first_row) {
    using shape = wide_tile<HD>;
    constexpr int CHUNKS = TMA_ROW_BYTES / 16;
    int n = shape::BOXES * (ATTENTION_TILE - first_row) * CHUNKS;
    for (int i = (int)threadIdx.x; i < n; i += WGMMA_WARPS * 32) {
        int row = first_row + i / CHUNKS % (ATTENTION_TILE - first_row);
        int box = i / CHUNKS / (ATTENTION_TILE - first_row);
        uint32_t at = tile_room + (uint32_t)(box * shape::BOX_BYTES + row * TMA_ROW_BYTES + i % CHUNKS * 16);
        asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(at), "r"(0) : "memory");
    }
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    asm volatile("bar.sync 1, %0;" ::"n"(WGMMA_WARPS * 32) : "memory");
}

/* ---------------------------------------------------------------- kernel */

/* A warpgroup's 64 rows of q, in boxes like a tile's. */
template <typename T, int HD>
__device__ __forceinline__ void wide_queries(uint32_t room, const T *q, const attention_args &a,
                                             int32_t kv_head, int32_t first_row, int32_t n_rows,
                                             int32_t group_row) {
    constexpr int CHUNKS = HD / 8;
    for (int i = (int)threadIdx.x % 128; i < WGMMA_ROWS * CHUNKS; i += 128) {
        int row = i / CHUNKS, chunk = i % CHUNKS;
        int32_t r = group_row + row;
        uint4 v = make_uint4(0, 0, 0, 0);
        if (r < n_rows) {
            int64_t head = (int64_t)(first_row + r / a.group) * a.n_heads + kv_head * a.group + r % a.group;
            v = *(const uint4 *)(q + head * HD + chunk * 8);
        }
        uint32_t at = room + (uint32_t)(chunk / 8 * WGMMA_ROWS * TMA_ROW_BYTES + row * TMA_ROW_BYTES +
                                        ((chunk % 8 ^ (row & 7)) << 4));
        asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(v.x), "r"(v.y), "r"(v.z),
                     "r"(v.w)
                     : "memory");
    }
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    asm volatile("bar.sync %0, 128;" ::"r"(2 + (int)threadIdx.x / 128) : "memory");
}

template <typename T, int HD>
__device__ __forceinline__ void wide_scores(float s[8][4], uint32_t queries, uint32_t k_tile) {
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < HD / 16; step++) {
        uint32_t at = (uint32_t)(step / 4 * wide_tile<HD>::BOX_BYTES + step % 4 * 32);
        wgmma_scores<T>(s, wgmma_matrix(queries + at, 16), wgmma_matrix(k_tile + at, 16), step > 0);
    }
    wgmma_commit();
}

/* 128 columns of o at a time. */
template <typename T, int HD>
__device__ __forceinline__ void wide_values(float (*o)[4], const uint32_t p[4][4], uint32_t v_tile) {
    using shape = wide_tile<HD>;
    constexpr int COLUMNS = HD < 128 ? HD : 128, PARTS = HD / COLUMNS;
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < 4; step++)
#pragma unroll
        for (int part = 0; part < PARTS; part++) {
            int at = step * 16 * TMA_ROW_BYTES + part * shape::BOX_BYTES * (COLUMNS / TMA_COLUMNS);
            wgmma_values<T, COLUMNS>(o + part * COLUMNS / 8, p[step],
                                     wgmma_matrix(v_tile + (uint32_t)at, shape::BOX_BYTES));
        }
    wgmma_commit();
}

template <typename T> __device__ __forceinline__ void weights_packed(uint32_t p[4][4], const float s[8][4]) {
#pragma unroll
    for (int step = 0; step < 4; step++) {
        p[step][0] = two_of<T>(s[2 * step][0], s[2 * step][1]);
        p[step][1] = two_of<T>(s[2 * step][2], s[2 * step][3]);
        p[step][2] = two_of<T>(s[2 * step + 1][0], s[2 * step + 1][1]);
        p[step][3] = two_of<T>(s[2 * step + 1][2], s[2 * step + 1][3]);
    }
}

/* A warp's 16 rows: all tiles, and what comes out of them. */
template <typename T, int HD>
__device__ __forceinline__ void wide_consume(T *out, const T *q, const wide_ring<HD> &ring,
                                             const attention_args &a, const struct attention_item &item,
                                             int32_t kv_head, int32_t tile_row, int32_t first_tile,
                                             int32_t end, int n_tiles, int lane) {
    int32_t n_rows = item.n_rows * a.group;
    uint32_t p[4][4], queries = ring.queries + (uint32_t)((int)threadIdx.x / 128 * wide_tile<HD>::BYTES);
    wide_queries<T, HD>(queries, q, a, kv_head, item.first_row, n_rows, tile_row / WGMMA_ROWS * WGMMA_ROWS);
    const mma_rows rows = rows_of_lane(a, item, kv_head, tile_row, lane);
    mma_sums<HD> sums;
    kept_sums<HD> kept;
    float s[8][4];
    auto release = [&](int stage) {
        if (lane == 0) barrier_arrive(ring.empty_of(stage));
    };
    barrier_wait(ring.full_of(0), 0);
    wide_scores<T, HD>(s, queries, ring.tile_of(0));
    wgmma_wait<0>();
    release(0);
    for (int n = 0, split_end; n < n_tiles; n = split_end) {
        bool is_first = n == 0;
        split_end = min(n_tiles, tiles_to_split_end(first_tile, n));
        sums_clear(sums);
        for (; n < split_end; n++) {
            int32_t tile = first_tile + n * ATTENTION_TILE;
            int values = 2 * n + 1, next_keys = 2 * n + 2;
            tile_weights(s, sums, rows, tile, a, lane);
            weights_packed<T>(p, s);
            barrier_wait(ring.full_of(values), ring.round_of(values));
            if (tile + ATTENTION_TILE > end) clear_values<HD>(ring.tile_of(values), end - tile);
            wide_values<T, HD>(sums.o, p, ring.tile_of(values));
            if (n + 1 < n_tiles) {
                barrier_wait(ring.full_of(next_keys), ring.round_of(next_keys));
                wide_scores<T, HD>(s, queries, ring.tile_of(next_keys));
            }
            wgmma_wait<0>();
            release(values);
            if (n + 1 < n_tiles) release(next_keys);
        }
        if (!is_first) sums_fold(kept, sums);
        if (split_end < n_tiles) sums_keep(kept, sums);
    }
    store_rows<head_kind<T, HD, true, false>>(out, sums, a, kv_head, item.first_row, n_rows, tile_row, lane);
}

/* The producer's warpgroup gives its registers to the others. */
template <typename T, int HD>
__global__ void __launch_bounds__((WGMMA_WARPS + 4) * 32, 1)
    wide_attention_kernel(T *out, const T *q, const __grid_constant__ CUtensorMap kv,
                          const struct attention_item *items, const int32_t *block_table, attention_args a) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    extern __shared__ __align__(1024) char wide_room[];
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    wide_ring<HD> ring;
    ring.room = (uint32_t)__cvta_generic_to_shared(wide_room);
    ring.queries = ring.room + wide_tile<HD>::STAGES * wide_tile<HD>::BYTES;
    ring.full = ring.queries + WGMMA_GROUPS * wide_tile<HD>::BYTES;
    ring.empty = ring.full + 8 * wide_tile<HD>::STAGES;
    if (threadIdx.x == 0) {
        for (int s = 0; s < wide_tile<HD>::STAGES; s++) {
            barrier_init(ring.full_of(s), 1);
            barrier_init(ring.empty_of(s), WGMMA_WARPS);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();
    cuda_begin();
    const struct attention_item item = items[blockIdx.x];
    int32_t kv_head = blockIdx.y, n_rows = item.n_rows * a.group;
    int32_t block_row = (int32_t)blockIdx.z * WGMMA_ROWS * WGMMA_GROUPS;
    if (block_row >= n_rows) return;
    int32_t last_row = min(n_rows, block_row + WGMMA_ROWS * WGMMA_GROUPS) - 1;
    int32_t end = item.first_position + last_row / a.group + 1;
    int32_t first = first_key_of(a, item.first_position + block_row / a.group);
    int32_t first_tile = first / ATTENTION_TILE * ATTENTION_TILE;
    int32_t n_tiles = (end - first_tile + ATTENTION_TILE - 1) / ATTENTION_TILE;
    if (warp >= WGMMA_WARPS) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
        const int32_t *table = block_table + (int64_t)item.slot * a.block_table_stride;
        if (warp == WGMMA_WARPS && lane == 0)
            wide_produce<HD>(ring, &kv, table, a, kv_head, first_tile, end, n_tiles);
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
        wide_consume<T, HD>(out, q, ring, a, item, kv_head, block_row + warp * 16, first_tile, end, n_tiles,
                            lane);
    }
#endif
}

#endif
