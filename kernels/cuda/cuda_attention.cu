/* cuda_attention.cu - paged attention on the GPU: tensor cores where there is a kernel for the
 * head size, else the plain kernel. */
#include "kernels/cuda/cuda_attention.cuh"
#include "kernels/cuda/cuda_attention_plain.cuh"

template <typename T>
static void plain_attention(struct cuda_dev *cuda, struct activation *out, const struct tensor *q,
                            const void *slab, const struct attention_args &a, const struct step *step) {
    int64_t pairs = (int64_t)step->n_rows * a.n_heads;
    unsigned blocks = (unsigned)((pairs + PLAIN_WARPS - 1) / PLAIN_WARPS);
    cuda_launch(cuda, "attention", plain_attention_kernel<T>, dim3(blocks), PLAIN_WARPS * 32, 0,
                (T *)out->x.data, (const T *)q->data, (const T *)slab, step->position, step->slot,
                step->block_table, a, pairs);
}

static struct attention_args args_of(const struct attention_shape *shape, const struct step *step) {
    const float log2_e = 1.44269504f;
    struct attention_args a = {};
    a.n_heads = shape->n_heads;
    a.n_kv_heads = shape->n_kv_heads;
    a.group = shape->n_heads / shape->n_kv_heads;
    a.head_dim = shape->head_dim;
    a.window = shape->sliding_window;
    a.block_table_stride = step->block_table_stride;
    a.is_adjusted = shape->softcap > 0 || shape->alibi;
    a.scale = shape->scale;
    a.scale_log2 = a.is_adjusted ? log2_e : shape->scale * log2_e;
    a.softcap = shape->softcap;
    a.alibi = shape->alibi;
    a.alibi_scale = shape->alibi_scale;
    a.alibi_bf16 = shape->alibi_bf16;
    return a;
}

void cuda_attention(struct dev *dev, struct activation *out, const struct tensor *q,
                    const struct kv_cache *kv, int32_t layer, const struct attention_shape *shape,
                    const struct step *step) {
    struct cuda_dev *cuda = cuda_of(dev);
    struct attention_args a = args_of(shape, step);
    const void *slab = kv->slab[layer];
    if (shape->head_dim > MAX_HEAD_DIM) {
        dev_fail(dev, E_UNSUPPORTED, "heads of %d dimensions; %d at most", shape->head_dim, MAX_HEAD_DIM);
        return;
    }
    if (kv->dtype == DTYPE_F32) {
        plain_attention<float>(cuda, out, q, slab, a, step);
    } else if (kv->dtype == DTYPE_F16) {
        if (!cuda_attention_f16(cuda, out, q, kv, layer, &a, step))
            plain_attention<__half>(cuda, out, q, slab, a, step);
    } else {
        if (!cuda_attention_bf16(cuda, out, q, kv, layer, &a, step))
            plain_attention<__nv_bfloat16>(cuda, out, q, slab, a, step);
    }
}
