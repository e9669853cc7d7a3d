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
#include "kernels/cuda/cuda_attention_products.cuh"

enum { WGMMA_ROWS = 64, WGMMA_GROUPS = 2, WGMMA_WARPS = 4 * WGMMA_GROUPS };

/* ---------------------------------------------------------------- the ring */

template <int HD> struct wide_tile { /* 64 keys: HD / 64 boxes of 64 x 64, side by side */
    static constexpr int BOXES = HD / TMA_COLUMNS, BOX_BYTES = ATTENTION_TILE * TMA_ROW_BYTES;
    static constexpr int BYTES = BOXES * BOX_BYTES, BLOCK_BYTES = KV_BLOCK * TMA_ROW_BYTES;
    static constexpr int STAGES = HD > 128 ? 4 : 6;                            /* of the ring */
    static constexpr int RING = (STAGES + WGMMA_GROUPS) * BYTES + 16 * STAGES; /* with queries and barriers */
};

/* An fp8 cache: codes on their way through shared memory, and the scales of the ring's stages. */
template <typename T, int HD> struct wide_codes {
    using kind = head_kind<T, HD, true, true>;
    static constexpr int STAGES = 3, AT = (wide_tile<HD>::RING + 127) / 128 * 128,
                         SCALES = AT + STAGES * kind::BYTES;
    static constexpr int ROOM = SCALES + wide_tile<HD>::STAGES * ATTENTION_TILE * 4;
    using feed = kv_ring<kind, 4, STAGES, WGMMA_WARPS * 32>;
};

/* Where a chunk of 8 numbers of a row lies, in a tile of 64 rows. */
template <int HD> __device__ __forceinline__ uint32_t wide_at(uint32_t tile_room, int row, int chunk) {
    return tile_room + (uint32_t)(chunk / 8 * wide_tile<HD>::BOX_BYTES + row * TMA_ROW_BYTES +
                                  ((chunk % 8 ^ (row & 7)) << 4));
}

template <int HD> struct wide_ring {
    static constexpr int STAGES = wide_tile<HD>::STAGES;
    uint32_t room, queries, full, empty, scales; /* addresses in shared memory */

    __device__ __forceinline__ uint32_t tile_of(int stage) const {
        return room + (uint32_t)(stage % STAGES * wide_tile<HD>::BYTES);
    }
    __device__ __forceinline__ uint32_t full_of(int stage) const {
        return full + (uint32_t)(stage % STAGES * 8);
    }
    __device__ __forceinline__ uint32_t empty_of(int stage) const {
        return empty + (uint32_t)(stage % STAGES * 8);
    }
    __device__ __forceinline__ uint32_t scales_of(int stage) const { /* of an fp8 cache */
        return scales + (uint32_t)(stage % STAGES * ATTENTION_TILE * 4);
    }
    static __device__ __forceinline__ uint32_t round_of(int stage) { return (uint32_t)(stage / STAGES) & 1; }
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

/* 16 codes of a key as 16-bit numbers, eight and eight, as they are (values), or in the order in
 * which mma.sync's kernel multiplies them (keys). */
template <typename T>
__device__ __forceinline__ void codes_widened(uint32_t one[4], uint32_t two[4], const uint32_t codes[4],
                                              bool in_order) {
#pragma unroll
    for (int i = 0; i < 4; i++)
        if (in_order) {
            (i < 2 ? one : two)[i % 2 * 2] = codes_low<T>(codes[i]);
            (i < 2 ? one : two)[i % 2 * 2 + 1] = codes_high<T>(codes[i]);
        } else {
            one[i] = codes_even<T>(codes[i]);
            two[i] = codes_odd<T>(codes[i]);
        }
}

/* They, in a tile's row. */
template <typename T, int HD, bool IN_ORDER>
__device__ __forceinline__ void widen_codes(uint32_t tile_room, int row, int unit, const uint32_t codes[4]) {
    uint32_t one[4], two[4];
    codes_widened<T>(one, two, codes, IN_ORDER);
    store_shared(wide_at<HD>(tile_room, row, 2 * unit), one);
    store_shared(wide_at<HD>(tile_room, row, 2 * unit + 1), two);
}

/* Some keys or values that have come, from row `first` of a tile on. */
template <typename T, int HD, bool VALUES>
__device__ __forceinline__ void widen_stage(uint32_t tile_room, uint32_t from, int first, int thread) {
    using kind = typename wide_codes<T, HD>::kind;
    for (int i = thread; i < kind::KEYS * kind::STEPS; i += 128) {
        uint32_t codes[4];
        int row = i % kind::KEYS, unit = i / kind::KEYS;
        load_shared(codes, from + (uint32_t)kind::at(row, unit));
        widen_codes<T, HD, VALUES>(tile_room, first + row, unit, codes);
    }
}

/* The producer's four warps, for an fp8 cache: what wide_produce does, by way of the codes. */
template <typename T, int HD>
__device__ __forceinline__ void wide_produce_fp8(const wide_ring<HD> &ring,
                                                 const typename wide_codes<T, HD>::feed &feed,
                                                 const attention_args &a, int n_tiles) {
    using kind = typename wide_codes<T, HD>::kind;
    const int thread = feed.thread();
    for (int i = 0; i < wide_codes<T, HD>::STAGES - 1; i++) feed.fetch(a, i);
    for (int stage = 0; stage < 2 * n_tiles; stage++) {
        uint32_t tile = ring.tile_of(stage);
        if (stage >= wide_tile<HD>::STAGES) barrier_wait(ring.empty_of(stage), ring.round_of(stage) ^ 1);
        for (int part = 0; part < kind::PARTS; part++) {
            int first = part * kind::KEYS;
            uint32_t from = feed.next(a, stage * kind::PARTS + part);
            if (stage & 1)
                widen_stage<T, HD, true>(tile, from, first, thread);
            else
                widen_stage<T, HD, false>(tile, from, first, thread);
            if (thread < kind::KEYS / 4) {
                uint32_t scales[4];
                load_shared(scales, from + (uint32_t)(kind::SCALES + thread * 16));
                store_shared(ring.scales_of(stage) + (uint32_t)(first * 4 + thread * 16), scales);
            }
        }
        shared_publish();
        barrier_arrive(ring.full_of(stage));
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
        const uint32_t zeros[4] = {0, 0, 0, 0};
        store_shared(at, zeros);
    }
    shared_publish();
    named_sync<1, WGMMA_WARPS * 32>();
}

/* ---------------------------------------------------------------- kernel */

/* 16 numbers of q, as query_pairs of mma.sync's kernel takes them. */
__device__ __forceinline__ void order_as_codes(uint32_t one[4], uint32_t two[4]) {
    const uint32_t all[8] = {one[0], one[1], one[2], one[3], two[0], two[1], two[2], two[3]};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        one[i] = even_halves(all[2 * i], all[2 * i + 1]);
        two[i] = odd_halves(all[2 * i], all[2 * i + 1]);
    }
}

/* A warpgroup's 64 rows of q, in boxes like a tile's; for an fp8 cache in the order of its keys. */
template <typename T, int HD, bool FP8>
__device__ __forceinline__ void wide_queries(uint32_t room, const T *q, const attention_args &a,
                                             int32_t kv_head, int32_t first_row, int32_t n_rows,
                                             int32_t group_row) {
    constexpr int UNITS = HD / 16; /* of two chunks */
    for (int i = (int)threadIdx.x % 128; i < WGMMA_ROWS * UNITS; i += 128) {
        int row = i / UNITS, unit = i % UNITS;
        int32_t r = group_row + row;
        uint4 v = make_uint4(0, 0, 0, 0), w = v;
        if (r < n_rows) {
            int64_t head = (int64_t)(first_row + r / a.group) * a.n_heads + kv_head * a.group + r % a.group;
            const uint4 *from = (const uint4 *)(q + head * HD + unit * 16);
            v = from[0];
            w = from[1];
        }
        uint32_t one[4] = {v.x, v.y, v.z, v.w}, two[4] = {w.x, w.y, w.z, w.w};
        if (FP8) order_as_codes(one, two);
        store_shared(wide_at<HD>(room, row, 2 * unit), one);
        store_shared(wide_at<HD>(room, row, 2 * unit + 1), two);
    }
    shared_publish();
    if (threadIdx.x < 128)
        named_sync<2, 128>();
    else
        named_sync<3, 128>();
}

/* A tile's scores, or weights, times the scales of its keys, or values. */
__device__ __forceinline__ void times_scales(float s[8][4], uint32_t scales, int lane) {
#pragma unroll
    for (int j = 0; j < 8; j++) {
        float2 scale = load_two(scales + (uint32_t)(8 * j + 2 * (lane & 3)) * 4);
        s[j][0] *= scale.x;
        s[j][1] *= scale.y;
        s[j][2] *= scale.x;
        s[j][3] *= scale.y;
    }
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

struct wide_work { /* of a block */
    struct attention_item item;
    int32_t kv_head, block_row;
    int32_t first, end; /* keys in sight of its rows */
    int32_t first_tile, n_tiles;
};

/* A warp's 16 rows: all tiles, and what comes out of them. */
template <typename T, int HD, bool FP8>
__device__ __forceinline__ void wide_consume(T *out, const T *q, const wide_ring<HD> &ring,
                                             const attention_args &a, const wide_work &w, int32_t tile_row,
                                             int lane) {
    int32_t n_rows = w.item.n_rows * a.group, n_tiles = w.n_tiles;
    uint32_t p[4][4], queries = ring.queries + (uint32_t)((int)threadIdx.x / 128 * wide_tile<HD>::BYTES);
    wide_queries<T, HD, FP8>(queries, q, a, w.kv_head, w.item.first_row, n_rows,
                             tile_row / WGMMA_ROWS * WGMMA_ROWS);
    const mma_rows rows = rows_of_lane(a, w.item, w.kv_head, tile_row, lane);
    mma_sums<HD> sums;
    kept_sums<HD, (HD > 128)> kept;
    float s[8][4];
    auto release = [&](int stage) {
        if (lane == 0) barrier_arrive(ring.empty_of(stage));
    };
    barrier_wait(ring.full_of(0), 0);
    wide_scores<T, HD>(s, queries, ring.tile_of(0));
    wgmma_wait<0>();
    if (FP8) times_scales(s, ring.scales_of(0), lane);
    release(0);
    for (int n = 0, split_end; n < n_tiles; n = split_end) {
        bool is_first = n == 0;
        split_end = min(n_tiles, tiles_to_split_end(w.first_tile, n));
        sums_clear(sums);
        for (; n < split_end; n++) {
            int32_t tile = w.first_tile + n * ATTENTION_TILE;
            int values = 2 * n + 1, next_keys = 2 * n + 2;
            tile_weights(s, sums, rows, tile, a, lane);
            if (!FP8) weights_packed<T>(p, s);
            barrier_wait(ring.full_of(values), ring.round_of(values));
            if (FP8) {
                times_scales(s, ring.scales_of(values), lane);
                weights_packed<T>(p, s);
            } else if (tile + ATTENTION_TILE > w.end)
                clear_values<HD>(ring.tile_of(values), w.end - tile);
            wide_values<T, HD>(sums.o, p, ring.tile_of(values));
            if (n + 1 < n_tiles) {
                barrier_wait(ring.full_of(next_keys), ring.round_of(next_keys));
                wide_scores<T, HD>(s, queries, ring.tile_of(next_keys));
            }
            wgmma_wait<0>();
            if (FP8 && n + 1 < n_tiles) times_scales(s, ring.scales_of(next_keys), lane);
            release(values);
            if (n + 1 < n_tiles) release(next_keys);
        }
        if (!is_first) sums_fold(kept, sums);
        if (split_end < n_tiles) sums_keep(kept, sums);
    }
    store_rows<head_kind<T, HD, true, false>>(out, sums, a, w.kv_head, w.item.first_row, n_rows, tile_row,
                                              lane);
}

/* Barriers of the ring, in the block's shared memory. */
template <int HD> __device__ __forceinline__ wide_ring<HD> wide_begin(uint32_t room, uint32_t n_producers) {
    wide_ring<HD> ring;
    ring.room = room;
    ring.queries = room + wide_tile<HD>::STAGES * wide_tile<HD>::BYTES;
    ring.full = ring.queries + WGMMA_GROUPS * wide_tile<HD>::BYTES;
    ring.empty = ring.full + 8 * wide_tile<HD>::STAGES;
    ring.scales = 0;
    if (threadIdx.x == 0) {
        for (int s = 0; s < wide_tile<HD>::STAGES; s++) {
            barrier_init(ring.full_of(s), n_producers);
            barrier_init(ring.empty_of(s), WGMMA_WARPS);
        }
        barriers_publish();
    }
    __syncthreads();
    cuda_begin();
    return ring;
}

/* False: a block without rows. */
__device__ __forceinline__ bool wide_work_of(wide_work &w, const attention_args &a,
                                             const struct attention_item *items) {
    w.item = items[blockIdx.x];
    w.kv_head = blockIdx.y;
    w.block_row = (int32_t)blockIdx.z * WGMMA_ROWS * WGMMA_GROUPS;
    int32_t n_rows = w.item.n_rows * a.group;
    if (w.block_row >= n_rows) return false;
    int32_t last_row = min(n_rows, w.block_row + WGMMA_ROWS * WGMMA_GROUPS) - 1;
    w.end = w.item.first_position + last_row / a.group + 1;
    w.first = first_key_of(a, w.item.first_position + w.block_row / a.group);
    w.first_tile = w.first / ATTENTION_TILE * ATTENTION_TILE;
    w.n_tiles = (w.end - w.first_tile + ATTENTION_TILE - 1) / ATTENTION_TILE;
    return true;
}

/* The producer's warpgroup gives its registers to the others. */
template <typename T, int HD>
__global__ void __launch_bounds__((WGMMA_WARPS + 4) * 32, 1)
    wide_attention_kernel(T *out, const T *q, const __grid_constant__ CUtensorMap kv,
                          const struct attention_item *items, const int32_t *block_table, attention_args a) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    extern __shared__ __align__(1024) char wide_room[];
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const wide_ring<HD> ring = wide_begin<HD>((uint32_t)__cvta_generic_to_shared(wide_room), 1);
    wide_work w;
    if (!wide_work_of(w, a, items)) return;
    if (warp >= WGMMA_WARPS) {
        registers_give<24>();
        const int32_t *table = block_table + (int64_t)w.item.slot * a.block_table_stride;
        if (warp == WGMMA_WARPS && lane == 0)
            wide_produce<HD>(ring, &kv, table, a, w.kv_head, w.first_tile, w.end, w.n_tiles);
    } else {
        registers_take<240>();
        wide_consume<T, HD, false>(out, q, ring, a, w, w.block_row + warp * 16, lane);
    }
#endif
}

/* Over an fp8 cache: the producer's warps turn codes into numbers. */
template <typename T, int HD>
__global__ void __launch_bounds__((WGMMA_WARPS + 4) * 32, 1)
    wide_fp8_kernel(T *out, const T *q, const void *slab, const struct attention_item *items,
                    const int32_t *block_table, attention_args a) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    extern __shared__ __align__(1024) char wide_room[];
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    wide_ring<HD> ring = wide_begin<HD>((uint32_t)__cvta_generic_to_shared(wide_room), 128);
    ring.scales = ring.room + wide_codes<T, HD>::SCALES;
    wide_work w;
    if (!wide_work_of(w, a, items)) return;
    if (warp >= WGMMA_WARPS) {
        registers_give<40>();
        const typename wide_codes<T, HD>::feed feed = {ring.room + wide_codes<T, HD>::AT,
                                                       (const char *)slab,
                                                       block_table +
                                                           (int64_t)w.item.slot * a.block_table_stride,
                                                       w.first_tile,
                                                       2 * wide_codes<T, HD>::kind::PARTS * w.n_tiles,
                                                       w.first,
                                                       w.end,
                                                       w.kv_head};
        wide_produce_fp8<T, HD>(ring, feed, a, w.n_tiles);
    } else {
        registers_take<232>();
        wide_consume<T, HD, true>(out, q, ring, a, w, w.block_row + warp * 16, lane);
    }
#endif
}

#endif
