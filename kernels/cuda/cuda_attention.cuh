/* cuda_attention.cuh - what the attention kernels share: arguments, and where keys lie. */
#ifndef BATCHD_KERNELS_CUDA_ATTENTION_CUH
#define BATCHD_KERNELS_CUDA_ATTENTION_CUH

#include "kernels/cuda/cuda.h"

enum { MAX_HEAD_DIM = 256 };

struct attention_args {
    int32_t n_heads, n_kv_heads, group, head_dim, window, block_table_stride;
    float scale_log2; /* the scale times log2(e): exponents are of base 2 */
};

/* Elements from the slab's beginning to a block's keys (which = 0) or values (1) of a head;
 * its KV_BLOCK rows of head_dim follow each other. */
__device__ __forceinline__ int64_t kv_tile_at(const attention_args &a, int32_t block, int which,
                                              int32_t kv_head) {
    return (((int64_t)block * 2 + which) * a.n_kv_heads + kv_head) * KV_BLOCK * a.head_dim;
}

__device__ __forceinline__ int32_t first_key_of(const attention_args &a, int32_t position) {
    return a.window > 0 && position >= a.window ? position - a.window + 1 : 0;
}

#endif
