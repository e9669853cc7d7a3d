/* cuda_attention_launch.cuh - which kernel serves a step, for one dtype. Included by one file
 * for each (cuda_attention_bf16.cu, cuda_attention_f16.cu), which compile side by side. */
#ifndef BATCHD_KERNELS_CUDA_ATTENTION_LAUNCH_CUH
#define BATCHD_KERNELS_CUDA_ATTENTION_LAUNCH_CUH

#include "kernels/cuda/cuda_attention_mma.cuh"
#include "kernels/cuda/cuda_attention_wgmma.cuh"

template <typename T> struct attention_call {
    struct cuda_dev *cuda;
    T *out;
    const T *q, *slab;
    enum dtype dtype;
    int64_t slab_rows; /* of head_dim numbers */
    const struct cuda_step *step;
    struct attention_args a;
};

/* Shared memory above what a kernel may use unasked. */
template <typename K> static void allow_shared(struct cuda_dev *cuda, K kernel, int bytes, bool *allowed) {
    if (*allowed) return;
    *allowed = cuda_ok(cuda, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
                       "attention");
}

/* n items from `first`, `rows` rows of (token, head) pairs each at most. */
template <typename T, int HD, int WARPS>
static void launch_mma(const struct attention_call<T> *c, int32_t first, int32_t n, int32_t rows) {
    constexpr int STAGES = WARPS == 1 ? 3 : 4, BYTES = STAGES * tile_shape<HD>::BYTES, TILE = WARPS * 16;
    static bool allowed;
    auto kernel = mma_attention_kernel<T, HD, WARPS, STAGES>;
    allow_shared(c->cuda, kernel, BYTES, &allowed);
    dim3 grid((unsigned)n, (unsigned)c->a.n_kv_heads, (unsigned)((rows + TILE - 1) / TILE));
    cuda_launch(c->cuda, "attention", kernel, grid, WARPS * 32, BYTES, c->out, c->q, c->slab,
                c->step->items + first, c->step->step.block_table, c->a);
}

template <typename T, int HD>
static bool launch_wide(const struct attention_call<T> *c, int32_t first, int32_t n, int32_t rows) {
    constexpr int BYTES = (WGMMA_STAGES + WGMMA_GROUPS) * wide_tile<HD>::BYTES + 16 * WGMMA_STAGES,
                  TILE = WGMMA_ROWS * WGMMA_GROUPS;
    static bool allowed;
    CUtensorMap map;
    auto kernel = wide_attention_kernel<T, HD>;
    if (!c->cuda->has_wgmma || !tma_map(&map, c->dtype, c->slab, c->slab_rows, HD, HD, KV_BLOCK))
        return false;
    allow_shared(c->cuda, kernel, BYTES, &allowed);
    dim3 grid((unsigned)n, (unsigned)c->a.n_kv_heads, (unsigned)((rows + TILE - 1) / TILE));
    cuda_launch(c->cuda, "attention", kernel, grid, (WGMMA_WARPS + 4) * 32, BYTES, c->out, c->q, map,
                c->step->items + first, c->step->step.block_table, c->a);
    return true;
}

/* As many warps as an item has tiles of 16 rows, 4 at most. */
template <typename T, int HD>
static void launch_items(const struct attention_call<T> *c, int32_t first, int32_t n, int32_t tokens) {
    int32_t rows = tokens * c->a.group;
    if (n == 0) return;
    if constexpr (HD == 64 || HD == 128)
        if (rows >= WGMMA_ROWS && tokens > 1 && launch_wide<T, HD>(c, first, n, rows)) return;
    /* With few blocks nothing hides the time that one warp takes to copy a tile. */
    bool is_lonely = n * c->a.n_kv_heads < 2 * c->cuda->prop.multiProcessorCount;
    if (rows <= 16 && !is_lonely)
        launch_mma<T, HD, 1>(c, first, n, rows);
    else if (rows <= 32 && !is_lonely)
        launch_mma<T, HD, 2>(c, first, n, rows);
    else
        launch_mma<T, HD, 4>(c, first, n, rows);
}

template <typename T, int HD> static void attend(const struct attention_call<T> *c) {
    int32_t n_single = c->step->n_single;
    launch_items<T, HD>(c, 0, n_single, 1);
    launch_items<T, HD>(c, n_single, c->step->n_items - n_single, c->step->most_tokens);
}

/* False: no kernel for this head_dim. */
template <typename T> static bool try_attention(const struct attention_call<T> *c) {
    switch (c->a.head_dim) {
    case 8:
        attend<T, 8>(c);
        return true;
    case 16:
        attend<T, 16>(c);
        return true;
    case 32:
        attend<T, 32>(c);
        return true;
    case 64:
        attend<T, 64>(c);
        return true;
    case 80:
        attend<T, 80>(c);
        return true;
    case 96:
        attend<T, 96>(c);
        return true;
    case 112:
        attend<T, 112>(c);
        return true;
    case 128:
        attend<T, 128>(c);
        return true;
    default:
        return false;
    }
}

template <typename T>
static bool attention_of_type(struct cuda_dev *cuda, struct activation *out, const struct tensor *q,
                              const struct kv_cache *kv, int32_t layer, const struct attention_args *a,
                              const struct step *step) {
    struct attention_call<T> c = {
        cuda, (T *)out->x.data, (const T *)q->data, (const T *)kv->slab[layer], kv->dtype,
            (int64_t)kv->n_blocks * 2 * kv->n_kv_heads *KV_BLOCK, cuda_step_of(step), *a
    };
    return try_attention<T>(&c);
}

#endif
