/* cuda_attention_rows.cuh - what the tensor-core kernels do with 16 rows of a warp between
 * their two products: scores of a tile of 64 keys become weights, and the sums of tiles and
 * splits are kept.
 *
 * Fragments are those of mma.m16n8k16 (cuda_mma.cuh): a lane holds of rows lane / 4 and
 * lane / 4 + 8 two neighbouring columns in eight. Which number of a head a column of the
 * output is does not matter here. */
#ifndef BATCHD_KERNELS_CUDA_ATTENTION_ROWS_CUH
#define BATCHD_KERNELS_CUDA_ATTENTION_ROWS_CUH

#include "kernels/cuda/cuda_attention.cuh"
#include "kernels/cuda/cuda_mma.cuh"

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

/* The sums of splits so far, while the next one's are made; in local memory where a lane has no
 * registers for both. */
template <int HP, bool LOCAL> struct kept_sums {
    float m[2], l[2];
    alignas(16) float o[HP / 8][4];

    __device__ __forceinline__ void put(int i, const float v[4]) {
        if constexpr (LOCAL)
            store_own(o[i], v);
        else
            for (int c = 0; c < 4; c++) o[i][c] = v[c];
    }
    __device__ __forceinline__ void get(float v[4], int i) const {
        if constexpr (LOCAL)
            load_own(v, o[i]);
        else
            for (int c = 0; c < 4; c++) v[c] = o[i][c];
    }
};

template <int HP, bool LOCAL>
__device__ __forceinline__ void sums_keep(kept_sums<HP, LOCAL> &kept, const mma_sums<HP> &sums) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
        kept.m[h] = sums.m[h];
        kept.l[h] = sums.l[h];
    }
#pragma unroll
    for (int i = 0; i < HP / 8; i++) kept.put(i, sums.o[i]);
}

/* The next split's m and l become those of all so far; what is kept is to be multiplied by x, what is
 * next by y. */
__device__ __forceinline__ void fold_weights(float &x, float &y, float kept_m, float kept_l, float &m,
                                             float &l) {
    float most = fmaxf(kept_m, m), base = most > -INFINITY ? most : 0.0f;
    x = fast_exp2(kept_m - base);
    y = fast_exp2(m - base);
    l = fmaf(l, y, kept_l * x);
    m = most;
}

/* The next split's sums become those of all splits so far. */
template <int HP, bool LOCAL>
__device__ __forceinline__ void sums_fold(const kept_sums<HP, LOCAL> &kept, mma_sums<HP> &next) {
    float x[2], y[2];
#pragma unroll
    for (int h = 0; h < 2; h++) fold_weights(x[h], y[h], kept.m[h], kept.l[h], next.m[h], next.l[h]);
#pragma unroll
    for (int i = 0; i < HP / 8; i++) {
        float before[4];
        kept.get(before, i);
#pragma unroll
        for (int c = 0; c < 4; c++) next.o[i][c] = fmaf(next.o[i][c], y[c >> 1], before[c] * x[c >> 1]);
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

#endif
