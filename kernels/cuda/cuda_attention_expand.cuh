/* cuda_attention_expand.cuh - chunks of prompts over an fp8 cache, whose codes become 16-bit
 * numbers once a step and layer, and not once for each 128 rows that read them.
 *
 * The numbers lie in scratch memory, those of a sequence in consecutive tiles of 64 keys (struct
 * attention_item says in which), so that the tensor memory accelerator fetches a tile at once. They
 * are in the order that wide_fp8_kernel's producer makes, with the scales beside them, and keys
 * that there are not are zeros: consumers see the same either way, and give the same bits. */
#ifndef BATCHD_KERNELS_CUDA_ATTENTION_EXPAND_CUH
#define BATCHD_KERNELS_CUDA_ATTENTION_EXPAND_CUH

#include "kernels/cuda/cuda_attention_wgmma.cuh"

/* Where they lie: [2: keys, values][n_kv_heads][n_tiles][ATTENTION_TILE] rows of HD numbers, and a
 * scale for each. */
template <typename T> struct expanded_rows {
    T *numbers;
    float *scales;
    int32_t n_kv_heads, n_tiles;

    __host__ __device__ int64_t n_rows() const { return (int64_t)2 * n_kv_heads * n_tiles * ATTENTION_TILE; }
    __device__ __forceinline__ int32_t row_of(int32_t which, int32_t kv_head, int32_t tile) const {
        return ((which * n_kv_heads + kv_head) * n_tiles + tile) * ATTENTION_TILE;
    }
};

template <typename T> static expanded_rows<T> expanded_rows_at(void *room, const struct expanded_room *r) {
    expanded_rows<T> rows = {(T *)room, NULL, r->n_kv_heads, r->n_tiles};
    rows.scales = (float *)(rows.numbers + rows.n_rows() * r->head_dim);
    return rows;
}

/* ---------------------------------------------------------------- from codes */

enum { EXPAND_THREADS = 256 };

/* A block: one tile of a head's keys (blockIdx.z = 0) or values (1). */
template <typename T, int HD>
__global__ void __launch_bounds__(EXPAND_THREADS)
    expand_kernel(expanded_rows<T> to, const char *slab, const struct expanded_tile *tiles,
                  const int32_t *block_table, attention_args a) {
    constexpr int UNITS = HD / 16;
    cuda_begin();
    const struct expanded_tile tile = tiles[blockIdx.x];
    const int32_t *table = block_table + (int64_t)tile.slot * a.block_table_stride;
    int32_t which = blockIdx.z, first = to.row_of(which, blockIdx.y, blockIdx.x);
    int32_t begin = first_key_of(a, tile.first_position) - tile.first_key;
    int32_t end = min(tile.end - tile.first_key, ATTENTION_TILE);
    if (begin >= end) return; /* behind the window */
    auto codes_of = [&](int key) {
        int64_t at = kv_tile_of(a, table[(tile.first_key + key) / KV_BLOCK], which, blockIdx.y);
        return slab + at * kv_tile_bytes(HD, 1, true);
    };
    for (int i = (int)threadIdx.x; i < ATTENTION_TILE * UNITS; i += EXPAND_THREADS) {
        int key = i / UNITS, unit = i % UNITS;
        uint4 codes = make_uint4(0, 0, 0, 0), wide[2];
        if (key >= begin && key < end) codes = *(const uint4 *)(codes_of(key) + key % KV_BLOCK * HD + unit * 16);
        codes_widened<T>((uint32_t *)&wide[0], (uint32_t *)&wide[1], (const uint32_t *)&codes, which == 1);
        uint4 *out = (uint4 *)(to.numbers + (int64_t)(first + key) * HD + unit * 16);
        out[0] = wide[0];
        out[1] = wide[1];
    }
    if (threadIdx.x < ATTENTION_TILE) {
        int key = (int)threadIdx.x;
        bool there = key >= begin && key < end;
        to.scales[first + key] =
            there ? ((const float *)(codes_of(key) + KV_BLOCK * HD))[key % KV_BLOCK] : 0.0f;
    }
}

/* ---------------------------------------------------------------- attention */

/* Behind the ring, the scales of its stages. */
template <int HD> struct wide_expanded {
    static constexpr int SCALES = (wide_tile<HD>::RING + 127) / 128 * 128;
    static constexpr int ROOM = SCALES + wide_tile<HD>::STAGES * ATTENTION_TILE * 4;
};

/* One thread: wide_produce from numbers that lie in tiles. */
template <typename T, int HD>
__device__ __forceinline__ void expanded_produce(const wide_ring<HD> &ring, const CUtensorMap *numbers,
                                                 const expanded_rows<T> &from, int32_t kv_head,
                                                 int32_t first_tile, int n_tiles) {
    using shape = wide_tile<HD>;
    constexpr int SCALE_BYTES = ATTENTION_TILE * 4;
    for (int stage = 0; stage < 2 * n_tiles; stage++) {
        int32_t row = from.row_of(stage & 1, kv_head, first_tile + stage / 2);
        uint32_t full = ring.full_of(stage);
        if (stage >= shape::STAGES) barrier_wait(ring.empty_of(stage), ring.round_of(stage) ^ 1);
        barrier_expect(full, (uint32_t)(shape::BYTES + SCALE_BYTES));
#pragma unroll
        for (int box = 0; box < shape::BOXES; box++)
            tma_fetch(ring.tile_of(stage) + (uint32_t)(box * shape::BOX_BYTES), numbers, box * TMA_COLUMNS,
                      row, full);
        bulk_fetch(ring.scales_of(stage), from.scales + row, SCALE_BYTES, full);
    }
}

/* numbers: `from`'s, in boxes of ATTENTION_TILE rows. */
template <typename T, int HD>
__global__ void __launch_bounds__((WGMMA_WARPS + 4) * 32, 1)
    expanded_attention_kernel(T *out, const T *q, const __grid_constant__ CUtensorMap numbers,
                              expanded_rows<T> from, const struct attention_item *items, attention_args a) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    extern __shared__ __align__(1024) char wide_room[];
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    wide_ring<HD> ring = wide_begin<HD>((uint32_t)__cvta_generic_to_shared(wide_room), 1);
    ring.scales = ring.room + wide_expanded<HD>::SCALES;
    wide_work w;
    if (!wide_work_of(w, a, items)) return;
    if (warp >= WGMMA_WARPS) {
        registers_give<24>();
        if (warp == WGMMA_WARPS && lane == 0)
            expanded_produce<T, HD>(ring, &numbers, from, w.kv_head,
                                    w.item.tile + w.first_tile / ATTENTION_TILE, w.n_tiles);
    } else {
        registers_take<240>();
        wide_consume<T, HD, true>(out, q, ring, a, w, w.block_row + warp * 16, lane);
    }
#endif
}

#endif
