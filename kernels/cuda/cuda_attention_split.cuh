/* cuda_attention_split.cuh - decoding with few sequences: the splits of a row side by side.
 *
 * A walk over a row's keys makes fresh sums for each split of ATTENTION_SPLIT of them and folds
 * the splits from left to right. Here a block makes the sums of one split, as cuda_attention_mma.cuh
 * does, and leaves them in the device's scratch; a second kernel folds them in the same order by
 * the same operations. So the bits are those of the walk, and whoever launches may choose by what
 * is quicker. */
#ifndef BATCHD_KERNELS_CUDA_ATTENTION_SPLIT_CUH
#define BATCHD_KERNELS_CUDA_ATTENTION_SPLIT_CUH

#include "kernels/cuda/cuda_attention_mma.cuh"

/* ---------------------------------------------------------------- the sums of one split */

/* Which of a row's splits has the number `index`: its first tile, and the end of its keys. False:
 * the row has no such split. */
__device__ __forceinline__ bool split_keys(int32_t &first_tile, int32_t &end, const attention_args &a,
                                           int32_t position, int32_t index) {
    int32_t first = first_key_of(a, position), split = first / ATTENTION_SPLIT + index;
    first_tile = max(first / ATTENTION_TILE * ATTENTION_TILE, split * ATTENTION_SPLIT);
    end = min(position + 1, (split + 1) * ATTENTION_SPLIT);
    return split * ATTENTION_SPLIT <= position;
}

__device__ __forceinline__ int32_t n_splits_of(const attention_args &a, int32_t position) {
    return position / ATTENTION_SPLIT - first_key_of(a, position) / ATTENTION_SPLIT + 1;
}

/* Where a split's sums are kept: of item, head and split. */
__device__ __forceinline__ int64_t split_place(const split_room &room, const attention_args &a, int32_t item,
                                               int32_t head, int32_t index) {
    return ((int64_t)item * a.n_heads + head) * room.n_splits + index;
}

/* The columns are those of store_rows. */
template <typename H>
__device__ __forceinline__ void store_split(const split_room &to, const mma_sums<H::WIDTH> &sums,
                                            const attention_args &a, int32_t item, int32_t kv_head,
                                            int32_t index, int32_t tile_row, int lane) {
    int hd = H::head_dim(a);
#pragma unroll
    for (int h = 0; h < 2; h++) {
        int32_t r = tile_row + lane / 4 + 8 * h;
        if (r >= a.group) continue;
        int64_t place = split_place(to, a, item, kv_head * a.group + r, index);
        float *o = to.o + place * hd;
        if ((lane & 3) == 0) to.ml[place] = make_float2(sums.m[h], sums.l[h]);
#pragma unroll
        for (int i = 0; i < H::WIDTH / 8; i++) {
            if (H::FP8 && i % 2) continue;
            int d = 8 * i + (H::FP8 ? 4 : 2) * (lane & 3);
            if (!H::EXACT && d >= hd) continue;
            const float(*from)[4] = sums.o + i;
            if constexpr (H::FP8)
                *(float4 *)(o + d) =
                    make_float4(from[0][2 * h], from[1][2 * h], from[0][2 * h + 1], from[1][2 * h + 1]);
            else
                *(float2 *)(o + d) = make_float2(from[0][2 * h], from[0][2 * h + 1]);
        }
    }
}

/* A block of one warp: an item of one token, a KV head, a split, 16 rows. */
template <typename H, int STAGES>
__global__ void __launch_bounds__(32, H::LEAST_BLOCKS)
    mma_split_kernel(split_room to, const typename H::number *q, const void *slab,
                     const struct attention_item *items, const int32_t *block_table, attention_args a) {
    extern __shared__ __align__(128) char room[];
    cuda_begin();
    const struct attention_item item = items[blockIdx.x];
    int32_t kv_head = blockIdx.y, index = (int32_t)blockIdx.z % to.n_splits;
    int32_t tile_row = (int32_t)blockIdx.z / to.n_splits * 16, first_tile, end;
    int lane = threadIdx.x;
    if (!split_keys(first_tile, end, a, item.first_position, index)) return;
    int n_tiles = (end - first_tile + ATTENTION_TILE - 1) / ATTENTION_TILE;
    uint32_t shared = (uint32_t)__cvta_generic_to_shared(room);
    kv_ring<H, 1, STAGES> ring = {shared,
                                  (const char *)slab,
                                  block_table + (int64_t)item.slot * a.block_table_stride,
                                  first_tile,
                                  2 * H::PARTS * n_tiles,
                                  first_key_of(a, item.first_position),
                                  end,
                                  kv_head};
    for (int i = 0; i < STAGES - 1; i++) ring.fetch(a, i);
    query_rows<H> queries;
    queries.room = shared + (uint32_t)(STAGES * H::BYTES + lane * 16);
    load_queries<H>(queries, q, a, kv_head, item.first_row, a.group, tile_row, lane);
    const mma_rows rows = rows_of_lane(a, item, kv_head, tile_row, lane);
    mma_sums<H::WIDTH> sums;
    int stage = 0;
    walk_tiles<H>(sums, ring, queries, rows, a, 0, n_tiles, stage, lane);
    store_split<H>(to, sums, a, blockIdx.x, kv_head, index, tile_row, lane);
}

/* ---------------------------------------------------------------- the fold */

enum { FOLD_AHEAD = 16 }; /* splits that are on their way at once */

struct split_pair { /* two columns of a row's sums */
    float m, l;
    float2 o;
};

__device__ __forceinline__ split_pair fold_pair(const split_pair &kept, split_pair next) {
    float x, y;
    fold_weights(x, y, kept.m, kept.l, next.m, next.l);
    next.o.x = fmaf(next.o.x, y, kept.o.x * x);
    next.o.y = fmaf(next.o.y, y, kept.o.y * x);
    return next;
}

/* A thread folds two columns of one row and head. With few blocks a multiprocessor, which the
 * compiler is told, it has registers for all that is on its way. */
template <typename T>
__global__ void __launch_bounds__(MAX_HEAD_DIM / 2, 4)
    fold_splits_kernel(T *out, split_room from, const struct attention_item *items, attention_args a) {
    cuda_begin();
    const struct attention_item item = items[blockIdx.x];
    int32_t head = blockIdx.y, n = n_splits_of(a, item.first_position);
    int32_t d = 2 * (int32_t)threadIdx.x;
    if (d >= a.head_dim) return;
    int64_t place = split_place(from, a, blockIdx.x, head, 0);
    auto load = [=](int32_t index) {
        float2 ml = from.ml[place + index];
        split_pair sums = {ml.x, ml.y, *(const float2 *)(from.o + (place + index) * a.head_dim + d)};
        return sums;
    };
    split_pair all = load(0);
    for (int32_t first = 1; first < n; first += FOLD_AHEAD) {
        split_pair next[FOLD_AHEAD];
#pragma unroll
        for (int i = 0; i < FOLD_AHEAD; i++) next[i] = load(min(first + i, n - 1));
#pragma unroll
        for (int i = 0; i < FOLD_AHEAD; i++) {
            const split_pair both = fold_pair(all, next[i]);
            all = first + i < n ? both : all;
        }
    }
    float inverse = 1.0f / all.l;
    T *to = out + ((int64_t)item.first_row * a.n_heads + head) * a.head_dim + d;
    *(uint32_t *)to = two_of<T>(all.o.x * inverse, all.o.y * inverse);
}

#endif
