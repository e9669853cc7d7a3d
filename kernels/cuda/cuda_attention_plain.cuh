/* cuda_attention_plain.cuh - attention of one query row and head by one warp, in float32
 * without tensor cores, over a cache of float32 or fp8. The reduction tree is op_attention's. */
#ifndef BATCHD_KERNELS_CUDA_ATTENTION_PLAIN_CUH
#define BATCHD_KERNELS_CUDA_ATTENTION_PLAIN_CUH

#include "kernels/cuda/cuda_attention.cuh"

#include <cuda_fp8.h>

enum { PLAIN_WARPS = 4, PLAIN_DIMS = MAX_HEAD_DIM / 32 }; /* output columns of a lane: lane, lane + 32, ... */

struct plain_query { /* one row and head */
    const float *q;
    float slope; /* ALiBi's */
    int32_t position;
};

struct plain_partial {
    float m, l, o[PLAIN_DIMS];
};

__device__ __forceinline__ float warp_max(float x) {
    for (int d = 16; d > 0; d >>= 1) x = fmaxf(x, __shfl_xor_sync(~0u, x, d));
    return x;
}

__device__ __forceinline__ float warp_sum(float x) {
    for (int d = 16; d > 0; d >>= 1) x += __shfl_xor_sync(~0u, x, d);
    return x;
}

template <bool FP8> struct plain_kv { /* a key or value of a head */
    const float *number;
    const uint8_t *code;
    float scale;

    __device__ __forceinline__ plain_kv(const attention_args &a, const void *slab, const int32_t *table,
                                        int32_t key, int which, int32_t kv_head) {
        const char *tile = (const char *)slab + kv_tile_of(a, table[key / KV_BLOCK], which, kv_head) *
                                                    kv_tile_bytes(a.head_dim, FP8 ? 1 : 4, FP8);
        int row = key % KV_BLOCK;
        number = (const float *)tile + (FP8 ? 0 : row * a.head_dim);
        code = (const uint8_t *)tile + (FP8 ? row * a.head_dim : 0);
        scale = FP8 ? ((const float *)(tile + KV_BLOCK * a.head_dim))[row] : 1.0f;
    }
    __device__ __forceinline__ float at(int32_t d) const { /* without the scale */
        if (!FP8) return number[d];
        return __half2float(__half(__nv_cvt_fp8_to_halfraw(code[d], __NV_E4M3)));
    }
};

/* The score of one key, in the exponent's base 2. */
template <bool FP8>
__device__ __forceinline__ float plain_score(const attention_args &a, const void *slab, const int32_t *table,
                                             const plain_query &query, int32_t key, int32_t kv_head) {
    const plain_kv<FP8> k(a, slab, table, key, 0, kv_head);
    float sum = 0.0f;
    for (int32_t d = 0; d < a.head_dim; d++) sum = fmaf(query.q[d], k.at(d), sum);
    if (FP8) sum *= k.scale;
    if (a.is_adjusted) sum = adjusted_score(a, sum, query.slope, key, query.position);
    return sum * a.scale_log2;
}

/* Take keys [first, end) of the tile into the split's sums; p is the warp's room for weights. */
template <bool FP8>
__device__ void plain_tile(const attention_args &a, const void *slab, const int32_t *table,
                           const plain_query &q, float *p, int32_t kv_head, int32_t tile, int32_t first,
                           int32_t end, plain_partial &part) {
    int lane = threadIdx.x & 31;
    float s[2], max = -INFINITY;
    for (int j = 0; j < 2; j++) {
        int32_t key = tile + lane + 32 * j;
        s[j] = key >= first && key < end ? plain_score<FP8>(a, slab, table, q, key, kv_head) : -INFINITY;
        max = fmaxf(max, s[j]);
    }
    float m = fmaxf(part.m, warp_max(max));
    float keep = part.m > -INFINITY ? exp2f(part.m - m) : 0.0f;
    float e0 = exp2f(s[0] - m), e1 = exp2f(s[1] - m);
    part.l = fmaf(part.l, keep, warp_sum(e0 + e1));
    part.m = m;
    p[lane] = e0;
    p[lane + 32] = e1;
    __syncwarp();
    for (int i = 0; i < PLAIN_DIMS; i++) {
        int32_t d = lane + 32 * i;
        if (d >= a.head_dim) break;
        float sum = 0.0f;
        for (int32_t key = first; key < end; key++) {
            const plain_kv<FP8> v(a, slab, table, key, 1, kv_head);
            sum = fmaf(FP8 ? p[key - tile] * v.scale : p[key - tile], v.at(d), sum);
        }
        part.o[i] = fmaf(part.o[i], keep, sum);
    }
    __syncwarp();
}

template <bool FP8>
__device__ void plain_split(const attention_args &a, const void *slab, const int32_t *table,
                            const plain_query &q, float *p, int32_t kv_head, int32_t split, int32_t first_key,
                            int32_t end, plain_partial &part) {
    part = {};
    part.m = -INFINITY;
    int32_t first = first_key > split ? first_key : split;
    if (end > split + ATTENTION_SPLIT) end = split + ATTENTION_SPLIT;
    for (int32_t tile = first / ATTENTION_TILE * ATTENTION_TILE; tile < end; tile += ATTENTION_TILE) {
        int32_t last = end < tile + ATTENTION_TILE ? end : tile + ATTENTION_TILE;
        plain_tile<FP8>(a, slab, table, q, p, kv_head, tile, first > tile ? first : tile, last, part);
    }
}

__device__ __forceinline__ void plain_fold(plain_partial &all, const plain_partial &next) {
    float m = fmaxf(all.m, next.m), x = exp2f(all.m - m), y = exp2f(next.m - m);
    all.l = fmaf(next.l, y, all.l * x);
    for (int i = 0; i < PLAIN_DIMS; i++) all.o[i] = fmaf(next.o[i], y, all.o[i] * x);
    all.m = m;
}

template <bool FP8>
__global__ void __launch_bounds__(PLAIN_WARPS * 32)
    plain_attention_kernel(float *out, const float *q, const void *slab, const int32_t *position,
                           const int32_t *slot, const int32_t *block_table, attention_args a,
                           int64_t n_pairs) {
    cuda_begin();
    __shared__ float q_room[PLAIN_WARPS][MAX_HEAD_DIM], p_room[PLAIN_WARPS][ATTENTION_TILE];
    int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    int64_t pair = (int64_t)blockIdx.x * PLAIN_WARPS + warp;
    if (pair >= n_pairs) return;
    int64_t row = pair / a.n_heads;
    int32_t head = (int32_t)(pair % a.n_heads), end = position[row] + 1;
    const float *from = q + pair * a.head_dim;
    for (int32_t d = lane; d < a.head_dim; d += 32) q_room[warp][d] = from[d];
    __syncwarp();
    const int32_t *table = block_table + (int64_t)slot[row] * a.block_table_stride;
    int32_t first_key = first_key_of(a, position[row]), kv_head = head / a.group;
    const plain_query query = {q_room[warp], a.alibi ? a.alibi[head] : 0.0f, position[row]};
    plain_partial all, next;
    for (int32_t split = first_key / ATTENTION_SPLIT * ATTENTION_SPLIT, n = 0; split < end;
         split += ATTENTION_SPLIT, n++) {
        plain_split<FP8>(a, slab, table, query, p_room[warp], kv_head, split, first_key, end, n ? next : all);
        if (n) plain_fold(all, next);
    }
    float *to = out + pair * a.head_dim;
    for (int i = 0; i < PLAIN_DIMS; i++) {
        int32_t d = lane + 32 * i;
        if (d < a.head_dim) to[d] = all.o[i] / all.l;
    }
}

#endif
