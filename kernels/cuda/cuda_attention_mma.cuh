/* cuda_attention_mma.cuh - attention on the tensor cores (mma.sync m16n8k16); T is
 * __nv_bfloat16 or __half.
 *
 * A block takes one item (query tokens of one sequence) and one KV head. Its rows are
 * (token, head of the group) pairs, 16 to a warp; the warps share tiles of 64 keys that
 * cp.async brings into a ring in shared memory, K and V in turn. What is computed for a
 * row is the same whatever the item, the warp and the number of warps: scores of a tile
 * by k steps of 16 ascending; its maximum; exponents of base 2; the sum of a tile's
 * weights in one fixed order of lanes; P V by k steps of 16 keys ascending. Tiles of
 * which a row sees nothing leave its sums as they are, bit for bit. */
#ifndef BATCHD_KERNELS_CUDA_ATTENTION_MMA_CUH
#define BATCHD_KERNELS_CUDA_ATTENTION_MMA_CUH

#include "kernels/cuda/cuda_attention.cuh"
#include "kernels/cuda/cuda_mma.cuh"

/* Shared memory of a tile: 64 rows of HP elements. Eight rows must begin in eight different
 * groups of banks: chunks of 16 bytes are swapped by XOR where a row has a multiple of
 * eight of them, else rows are padded to an odd number. */
template <int HD> struct tile_shape {
    static constexpr int HP = (HD + 15) / 16 * 16, CHUNKS = HP / 8, REAL_CHUNKS = HD / 8;
    static constexpr bool XOR = CHUNKS % 8 == 0;
    static constexpr int STRIDE = XOR ? CHUNKS : CHUNKS | 1; /* chunks from row to row */
    static constexpr int BYTES = ATTENTION_TILE * STRIDE * 16;
    static __device__ __forceinline__ int at(int row, int chunk) { /* bytes */
        return (row * STRIDE + (XOR ? chunk ^ (row & 7) : chunk)) * 16;
    }
};

/* exp2 of what may be -inf, by the special function unit. */
__device__ __forceinline__ float fast_exp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* One warp's 16 rows: sums of a split, or of all so far. Lane: rows lane / 4 and lane / 4 + 8. */
template <int HP> struct mma_sums {
    float m[2], l[2], o[HP / 8][4];
};

template <int HP> __device__ __forceinline__ void sums_clear(mma_sums<HP> &s) {
    s.m[0] = s.m[1] = -INFINITY;
    s.l[0] = s.l[1] = 0.0f;
#pragma unroll
    for (int i = 0; i < HP / 8; i++) s.o[i][0] = s.o[i][1] = s.o[i][2] = s.o[i][3] = 0.0f;
}

/* Fold the next split into all. */
template <int HP> __device__ __forceinline__ void sums_fold(mma_sums<HP> &all, const mma_sums<HP> &next) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float m = fmaxf(all.m[h], next.m[h]), base = m > -INFINITY ? m : 0.0f;
        float x = fast_exp2(all.m[h] - base), y = fast_exp2(next.m[h] - base);
        all.l[h] = fmaf(next.l[h], y, all.l[h] * x);
        all.m[h] = m;
#pragma unroll
        for (int i = 0; i < HP / 8; i++) {
            all.o[i][2 * h] = fmaf(next.o[i][2 * h], y, all.o[i][2 * h] * x);
            all.o[i][2 * h + 1] = fmaf(next.o[i][2 * h + 1], y, all.o[i][2 * h + 1] * x);
        }
    }
}

/* How many tiles from first_tile on end with the split of tile n. */
__device__ __forceinline__ int tiles_to_split_end(int32_t first_tile, int n) {
    int32_t split = (first_tile + n * ATTENTION_TILE) / ATTENTION_SPLIT;
    return ((split + 1) * ATTENTION_SPLIT - first_tile) / ATTENTION_TILE;
}

/* What a lane knows of its two rows. */
struct mma_rows {
    int32_t first[2], end[2]; /* keys in sight; end 0 = no such row */
    float slope[2];           /* ALiBi's */
};

/* Row r of an item: token r / group, head r % group of the KV head's. */
__device__ __forceinline__ mma_rows rows_of_lane(const attention_args &a, const attention_item &item,
                                                 int32_t kv_head, int32_t tile_row, int lane) {
    mma_rows rows;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        int32_t r = tile_row + lane / 4 + 8 * h, position = item.first_position + r / a.group;
        rows.first[h] = first_key_of(a, position);
        rows.end[h] = r < item.n_rows * a.group ? position + 1 : 0;
        rows.slope[h] = a.alibi ? a.alibi[kv_head * a.group + r % a.group] : 0.0f;
    }
    return rows;
}

template <typename T, int HD>
__device__ __forceinline__ void tile_scores(float s[8][4], const uint32_t q[][4], uint32_t k_tile, int lane) {
    using shape = tile_shape<HD>;
#pragma unroll
    for (int j = 0; j < 8; j++) s[j][0] = s[j][1] = s[j][2] = s[j][3] = 0.0f;
    /* Lanes 0-7, 8-15, ... name the rows of four 8 x 8 matrices: k halves of one and the next eight keys. */
    int key = (lane & 7) + ((lane >> 4) << 3), half = lane >> 3 & 1;
#pragma unroll
    for (int step = 0; step < shape::HP / 16; step++)
#pragma unroll
        for (int j = 0; j < 8; j += 2) {
            uint32_t b[4];
            load_matrices(b, k_tile + (uint32_t)shape::at(8 * j + key, 2 * step + half));
            multiply_add<T>(s[j], q[step], b[0], b[1]);
            multiply_add<T>(s[j + 1], q[step], b[2], b[3]);
        }
}

/* Are all keys of a tile in sight of the lane's rows? Rows that are not there do not count. */
__device__ __forceinline__ bool sees_all(const mma_rows &rows, int32_t tile) {
    bool all = true;
#pragma unroll
    for (int h = 0; h < 2; h++) all = all && rows.first[h] <= tile && rows.end[h] >= tile + ATTENTION_TILE;
    return all;
}

__device__ __forceinline__ void hide_keys(float s[8][4], const mma_rows &rows, int32_t tile, int lane) {
#pragma unroll
    for (int j = 0; j < 8; j++)
#pragma unroll
        for (int c = 0; c < 4; c++) {
            int32_t key = tile + 8 * j + 2 * (lane & 3) + (c & 1);
            int h = c >> 1;
            if (key < rows.first[h] || key >= rows.end[h]) s[j][c] = -INFINITY;
        }
}

__device__ __forceinline__ void adjust_scores(float s[8][4], const attention_args &a, const mma_rows &rows,
                                              int32_t tile, int lane) {
#pragma unroll
    for (int j = 0; j < 8; j++)
#pragma unroll
        for (int c = 0; c < 4; c++)
            s[j][c] = adjusted_score(a, s[j][c], rows.slope[c >> 1], tile + 8 * j + 2 * (lane & 3) + (c & 1),
                                     rows.end[c >> 1] - 1);
}

/* Scores to weights; the sums so far are scaled to the new maximum. */
template <int HP>
__device__ __forceinline__ void tile_weights(float s[8][4], mma_sums<HP> &sums, const mma_rows &rows,
                                             int32_t tile, const attention_args &a, int lane) {
    if (a.is_adjusted) adjust_scores(s, a, rows, tile, lane);
    if (!__all_sync(~0u, sees_all(rows, tile))) hide_keys(s, rows, tile, lane);
    float keep[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float max = s[0][2 * h], sum = 0.0f;
#pragma unroll
        for (int j = 0; j < 8; j++)
#pragma unroll
            for (int c = 2 * h; c < 2 * h + 2; c++) max = max_or_nan(max, s[j][c]);
        max = max_or_nan(max, __shfl_xor_sync(~0u, max, 1));
        max = max_or_nan(max, __shfl_xor_sync(~0u, max, 2));
        float m = max_or_nan(sums.m[h], max * a.scale_log2), base = m == -INFINITY ? 0.0f : m;
        keep[h] = fast_exp2(sums.m[h] - base);
#pragma unroll
        for (int j = 0; j < 8; j++)
#pragma unroll
            for (int c = 2 * h; c < 2 * h + 2; c++) {
                s[j][c] = fast_exp2(fmaf(s[j][c], a.scale_log2, -base));
                sum += s[j][c];
            }
        sum += __shfl_xor_sync(~0u, sum, 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
        sums.l[h] = fmaf(sums.l[h], keep[h], sum);
        sums.m[h] = m;
    }
    if (__all_sync(~0u, keep[0] == 1.0f && keep[1] == 1.0f)) return; /* times one changes nothing */
#pragma unroll
    for (int i = 0; i < HP / 8; i++)
#pragma unroll
        for (int c = 0; c < 4; c++) sums.o[i][c] *= keep[c >> 1];
}

template <typename T, int HD>
__device__ __forceinline__ void tile_values(const float s[8][4], mma_sums<tile_shape<HD>::HP> &sums,
                                            uint32_t v_tile, int lane) {
    using shape = tile_shape<HD>;
    int key = lane & 15, column = lane >> 4;
#pragma unroll
    for (int step = 0; step < 4; step++) {
        uint32_t p[4] = {two_of<T>(s[2 * step][0], s[2 * step][1]), two_of<T>(s[2 * step][2], s[2 * step][3]),
                         two_of<T>(s[2 * step + 1][0], s[2 * step + 1][1]),
                         two_of<T>(s[2 * step + 1][2], s[2 * step + 1][3])};
#pragma unroll
        for (int i = 0; i < shape::HP / 8; i += 2) {
            uint32_t b[4];
            load_matrices_transposed(b, v_tile + (uint32_t)shape::at(16 * step + key, i + column));
            multiply_add<T>(sums.o[i], p, b[0], b[1]);
            multiply_add<T>(sums.o[i + 1], p, b[2], b[3]);
        }
    }
}

template <int WARPS> __device__ __forceinline__ void block_sync() {
    if (WARPS == 1)
        __syncwarp();
    else
        __syncthreads();
}

/* The ring: stage 2 n holds tile n's keys, stage 2 n + 1 its values. */
template <typename T, int HD, int WARPS, int STAGES> struct kv_ring {
    using shape = tile_shape<HD>;
    uint32_t room; /* shared memory */
    const T *slab;
    const int32_t *table;
    int32_t first_tile, n_stages;
    int32_t first, end; /* keys outside are zeros: their weight is 0, and 0 times NaN is NaN */
    int32_t kv_head;

    __device__ __forceinline__ uint32_t tile_of(int stage) const {
        return room + (uint32_t)(stage % STAGES * shape::BYTES);
    }

    __device__ __forceinline__ void fetch(const attention_args &a, int stage) const {
        if (stage < n_stages) {
            int32_t tile = first_tile + stage / 2 * ATTENTION_TILE, which = stage & 1;
            uint32_t to = tile_of(stage);
#pragma unroll
            for (int b = 0; b < ATTENTION_TILE / KV_BLOCK; b++) {
                int32_t key = tile + b * KV_BLOCK;
                const T *from = slab + (key < end ? kv_tile_at(a, table[key / KV_BLOCK], which, kv_head) : 0);
                for (int i = (int)threadIdx.x; i < KV_BLOCK * shape::REAL_CHUNKS; i += WARPS * 32) {
                    int row = i / shape::REAL_CHUNKS, chunk = i % shape::REAL_CHUNKS;
                    copy_async(to + (uint32_t)shape::at(b * KV_BLOCK + row, chunk), from + (size_t)i * 8,
                               key + row >= first && key + row < end);
                }
            }
        }
        copies_commit(); /* an empty group too: groups are counted */
    }
};

/* Chunks behind a head_dim that is no multiple of 16 are zeros for good. */
template <int HD, int WARPS, int STAGES> __device__ void clear_padding(char *room) {
    using shape = tile_shape<HD>;
    if constexpr (shape::REAL_CHUNKS < shape::CHUNKS)
        for (int i = (int)threadIdx.x; i < STAGES * ATTENTION_TILE; i += WARPS * 32)
            *(uint4 *)(room + i / ATTENTION_TILE * shape::BYTES +
                       shape::at(i % ATTENTION_TILE, shape::REAL_CHUNKS)) = uint4{};
}

/* Row r of the item: token r / group, head r % group of the KV head's. */
template <typename T, int HD>
__device__ __forceinline__ void load_queries(uint32_t q[][4], const T *queries, const attention_args &a,
                                             int32_t kv_head, int32_t first_row, int32_t n_rows,
                                             int32_t tile_row, int lane) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
        int32_t r = tile_row + lane / 4 + 8 * h;
        bool there = r < n_rows;
        int64_t row = first_row + (there ? r / a.group : 0);
        const T *at = queries + (row * a.n_heads + kv_head * a.group + (there ? r % a.group : 0)) * HD;
#pragma unroll
        for (int step = 0; step < tile_shape<HD>::HP / 16; step++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int d = 16 * step + 8 * half + 2 * (lane & 3);
                q[step][h + 2 * half] = there && d < HD ? *(const uint32_t *)(at + d) : 0u;
            }
    }
}

template <typename T, int HD>
__device__ __forceinline__ void store_rows(T *out, const mma_sums<tile_shape<HD>::HP> &sums,
                                           const attention_args &a, int32_t kv_head, int32_t first_row,
                                           int32_t n_rows, int32_t tile_row, int lane) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
        int32_t r = tile_row + lane / 4 + 8 * h;
        if (r >= n_rows) continue;
        int64_t row = first_row + r / a.group;
        T *to = out + (row * a.n_heads + kv_head * a.group + r % a.group) * HD;
        float inverse = 1.0f / sums.l[h];
#pragma unroll
        for (int i = 0; i < HD / 8; i++)
            *(uint32_t *)(to + 8 * i + 2 * (lane & 3)) =
                two_of<T>(sums.o[i][2 * h] * inverse, sums.o[i][2 * h + 1] * inverse);
    }
}

template <typename T, int HD, int WARPS, int STAGES>
__global__ void __launch_bounds__(WARPS * 32)
    mma_attention_kernel(T *out, const T *q, const T *slab, const struct attention_item *items,
                         const int32_t *block_table, attention_args a) {
    using shape = tile_shape<HD>;
    extern __shared__ __align__(128) char room[];
    cuda_begin();
    const struct attention_item item = items[blockIdx.x];
    int32_t kv_head = blockIdx.y, n_rows = item.n_rows * a.group;
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    int32_t block_row = (int32_t)blockIdx.z * WARPS * 16, tile_row = block_row + warp * 16;
    if (block_row >= n_rows) return;
    int32_t last_token = min(n_rows, block_row + WARPS * 16) - 1,
            end = item.first_position + last_token / a.group + 1;
    int32_t first = first_key_of(a, item.first_position + block_row / a.group);
    int32_t first_tile = first / ATTENTION_TILE * ATTENTION_TILE;
    int32_t n_tiles = (end - first_tile + ATTENTION_TILE - 1) / ATTENTION_TILE;
    kv_ring<T, HD, WARPS, STAGES> ring = {(uint32_t)__cvta_generic_to_shared(room),
                                          slab,
                                          block_table + (int64_t)item.slot * a.block_table_stride,
                                          first_tile,
                                          2 * n_tiles,
                                          first,
                                          end,
                                          kv_head};
    clear_padding<HD, WARPS, STAGES>(room);
    for (int i = 0; i < STAGES - 1; i++) ring.fetch(a, i);
    uint32_t queries[shape::HP / 16][4];
    load_queries<T, HD>(queries, q, a, kv_head, item.first_row, n_rows, tile_row, lane);
    const mma_rows rows = rows_of_lane(a, item, kv_head, tile_row, lane);
    mma_sums<shape::HP> all, sums;
    for (int n = 0, split_end; n < n_tiles; n = split_end) {
        bool is_first = n == 0;
        split_end = min(n_tiles, tiles_to_split_end(first_tile, n));
        sums_clear(sums);
        for (; n < split_end; n++) {
            float s[8][4];
            copies_wait<STAGES - 2>();
            block_sync<WARPS>(); /* the keys are there, and everybody is through with the last values */
            ring.fetch(a, 2 * n + STAGES - 1);
            tile_scores<T, HD>(s, queries, ring.tile_of(2 * n), lane);
            tile_weights<shape::HP>(s, sums, rows, first_tile + n * ATTENTION_TILE, a, lane);
            copies_wait<STAGES - 2>();
            block_sync<WARPS>(); /* the values are there, and everybody is through with the keys */
            ring.fetch(a, 2 * n + STAGES);
            tile_values<T, HD>(s, sums, ring.tile_of(2 * n + 1), lane);
        }
        if (is_first)
            all = sums;
        else
            sums_fold(all, sums);
    }
    store_rows<T, HD>(out, all, a, kv_head, item.first_row, n_rows, tile_row, lane);
}

#endif
