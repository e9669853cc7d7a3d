/* cuda_attention.cuh - what the attention kernels share: arguments, and where keys lie. */
#ifndef BATCHD_KERNELS_CUDA_ATTENTION_CUH
#define BATCHD_KERNELS_CUDA_ATTENTION_CUH

#include "kernels/cuda/cuda.h"

enum { MAX_HEAD_DIM = 256 };

struct attention_args {
    int32_t n_heads, n_kv_heads, group, head_dim, window, block_table_stride;
    float scale_log2; /* from a score to an exponent of base 2; adjusted scores are scaled already */
    bool is_adjusted; /* scores are scaled, soft-capped, biased by position: struct attention_shape */
    bool alibi_bf16;
    float scale, softcap, alibi_scale;
    const float *alibi;
};

/* ALiBi's term for a key, seen from a position. */
__device__ __forceinline__ float alibi_of(const attention_args &a, float slope, int32_t key,
                                          int32_t position) {
    if (!a.alibi_bf16) return a.alibi_scale * slope * (float)(key - position);
    float of_key = __bfloat162float(__float2bfloat16_rn(slope * (float)key));
    return a.alibi_scale * (of_key - __bfloat162float(__float2bfloat16_rn(slope * (float)position)));
}

/* By one exponential; off by some 1e-7, which a score of any size can bear. */
__device__ __forceinline__ float short_tanh(float x) { return 1.0f - 2.0f / (1.0f + exp2f(2.88539008f * x)); }

__device__ __forceinline__ float adjusted_score(const attention_args &a, float product, float slope,
                                                int32_t key, int32_t position) {
    float s = product * a.scale;
    if (a.softcap > 0) s = a.softcap * short_tanh(s / a.softcap);
    return slope != 0 ? s + alibi_of(a, slope, key, position) : s;
}

/* A slab is tiles: those of a block's keys (which = 0) and values (1) of each head. */
__device__ __forceinline__ int64_t kv_tile_of(const attention_args &a, int32_t block, int which,
                                              int32_t kv_head) {
    return ((int64_t)block * 2 + which) * a.n_kv_heads + kv_head;
}

/* A tile is KV_BLOCK rows of head_dim; behind fp8 codes, their scales. */
__device__ __forceinline__ int kv_tile_bytes(int32_t head_dim, int bytes_each, bool is_fp8) {
    return KV_BLOCK * (head_dim * bytes_each + (is_fp8 ? 4 : 0));
}

__device__ __forceinline__ int32_t first_key_of(const attention_args &a, int32_t position) {
    return a.window > 0 && position >= a.window ? position - a.window + 1 : 0;
}

/* Where sums of splits wait to be folded, for each item of one token, head and split. */
struct split_room {
    int32_t n_splits; /* places of a row and head; 1: none are used, a block walks all of a row's splits */
    float *o;         /* [items][n_heads][n_splits][head_dim] */
    float2 *ml;       /* [items][n_heads][n_splits]: m, l */
};

/* Kernels on the tensor cores, of one compute dtype and one kind of cache each. */
typedef void attention_fn(struct cuda_dev *cuda, struct activation *out, const struct tensor *q,
                          const struct kv_cache *kv, int32_t layer, const struct attention_args *a,
                          const struct split_room *room, const struct step *step);
attention_fn cuda_attention_bf16, cuda_attention_bf16_fp8, cuda_attention_f16, cuda_attention_f16_fp8;

#endif
