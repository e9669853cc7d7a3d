/* cuda_attention.cu - paged attention on the GPU: which kernel serves a step. */
#include "kernels/cuda/cuda_attention.cuh"
#include "kernels/cuda/cuda_attention_mma.cuh"
#include "kernels/cuda/cuda_attention_plain.cuh"

template <typename T>
static void plain_attention(struct cuda_dev *cuda, struct activation *out, const struct tensor *q,
                            const void *slab, const struct attention_args &a, const struct step *step) {
    int64_t pairs = (int64_t)step->n_rows * a.n_heads;
    unsigned blocks = (unsigned)((pairs + PLAIN_WARPS - 1) / PLAIN_WARPS);
    plain_attention_kernel<T><<<blocks, PLAIN_WARPS * 32, 0, cuda->stream>>>(
        (T *)out->x.data, (const T *)q->data, (const T *)slab, step->position, step->slot, step->block_table,
        a, pairs);
    cuda_launched(cuda, "attention");
}

/* ---------------------------------------------------------------- tensor cores */

struct mma_call {
    struct cuda_dev *cuda;
    __nv_bfloat16 *out;
    const __nv_bfloat16 *q, *slab;
    const struct cuda_step *step;
    struct attention_args a;
};

template <int HD, int WARPS>
static void launch_items(const struct mma_call *c, int32_t first, int32_t n, int32_t row_tiles) {
    constexpr int STAGES = WARPS == 1 ? 3 : 4, BYTES = STAGES * tile_shape<HD>::BYTES;
    static bool prepared;
    if (n == 0) return;
    auto kernel = mma_attention_kernel<HD, WARPS, STAGES>;
    if (!prepared)
        prepared =
            cuda_ok(c->cuda, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, BYTES),
                    "attention");
    dim3 grid((unsigned)n, (unsigned)c->a.n_kv_heads, (unsigned)((row_tiles + WARPS - 1) / WARPS));
    kernel<<<grid, WARPS * 32, BYTES, c->cuda->stream>>>(c->out, c->q, c->slab, c->step->items + first,
                                                         c->step->step.block_table, c->a);
    cuda_launched(c->cuda, "attention");
}

/* As many warps as an item has tiles of 16 rows, 4 at most. */
template <int HD>
static void launch_warps(const struct mma_call *c, int32_t first, int32_t n, int32_t row_tiles) {
    if (row_tiles == 1)
        launch_items<HD, 1>(c, first, n, row_tiles);
    else if (row_tiles == 2)
        launch_items<HD, 2>(c, first, n, row_tiles);
    else
        launch_items<HD, 4>(c, first, n, row_tiles);
}

template <int HD> static void mma_attention(const struct mma_call *c) {
    int32_t group = c->a.group, n_single = c->step->n_single;
    launch_warps<HD>(c, 0, n_single, (group + 15) / 16);
    launch_warps<HD>(c, n_single, c->step->n_items - n_single, (group * ATTENTION_QUERIES + 15) / 16);
}

/* False: no kernel for this head_dim. */
static bool try_mma(const struct mma_call *c) {
    switch (c->a.head_dim) {
    case 8:
        mma_attention<8>(c);
        return true;
    case 16:
        mma_attention<16>(c);
        return true;
    case 32:
        mma_attention<32>(c);
        return true;
    case 64:
        mma_attention<64>(c);
        return true;
    case 80:
        mma_attention<80>(c);
        return true;
    case 96:
        mma_attention<96>(c);
        return true;
    case 112:
        mma_attention<112>(c);
        return true;
    case 128:
        mma_attention<128>(c);
        return true;
    default:
        return false;
    }
}

void cuda_attention(struct dev *dev, struct activation *out, const struct tensor *q,
                    const struct kv_cache *kv, int32_t layer, const struct attention_shape *shape,
                    const struct step *step) {
    struct cuda_dev *cuda = cuda_of(dev);
    struct attention_args a = {
        shape->n_heads,        shape->n_kv_heads,        shape->n_heads / shape->n_kv_heads, shape->head_dim,
        shape->sliding_window, step->block_table_stride, shape->scale * 1.44269504f};
    if (shape->softcap > 0 || shape->alibi) {
        dev_fail(dev, E_UNSUPPORTED, "soft-capped scores and ALiBi do not run on CUDA; --device cpu does");
        return;
    }
    if (shape->head_dim > MAX_HEAD_DIM) {
        dev_fail(dev, E_UNSUPPORTED, "heads of %d dimensions; %d at most", shape->head_dim, MAX_HEAD_DIM);
        return;
    }
    struct mma_call c = {cuda,
                         (__nv_bfloat16 *)out->x.data,
                         (const __nv_bfloat16 *)q->data,
                         (const __nv_bfloat16 *)kv->slab[layer],
                         cuda_step_of(step),
                         a};
    if (kv->dtype == DTYPE_BF16 && try_mma(&c)) return;
    if (kv->dtype == DTYPE_BF16)
        plain_attention<__nv_bfloat16>(cuda, out, q, kv->slab[layer], a, step);
    else
        plain_attention<float>(cuda, out, q, kv->slab[layer], a, step);
}
