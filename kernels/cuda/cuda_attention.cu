/* cuda_attention.cu - paged attention on the GPU: on the tensor cores for 16-bit numbers, by the
 * plain kernel for float32. */
#include "kernels/cuda/cuda_attention.cuh"
#include "kernels/cuda/cuda_attention_plain.cuh"

template <bool FP8>
static void plain_attention(struct cuda_dev *cuda, struct activation *out, const struct tensor *q,
                            const void *slab, const struct attention_args &a, const struct step *step) {
    int64_t pairs = (int64_t)step->n_rows * a.n_heads;
    unsigned blocks = (unsigned)((pairs + PLAIN_WARPS - 1) / PLAIN_WARPS);
    cuda_launch(cuda, "attention", plain_attention_kernel<FP8>, dim3(blocks), PLAIN_WARPS * 32, 0,
                (float *)out->x.data, (const float *)q->data, slab, step->position, step->slot,
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
    bool is_fp8 = kv->dtype == DTYPE_F8_E4M3;
    if (shape->head_dim > MAX_HEAD_DIM || shape->head_dim % 8 != 0) {
        dev_fail(dev, E_UNSUPPORTED, "heads of %d dimensions; multiples of 8 up to %d are supported",
                 shape->head_dim, MAX_HEAD_DIM);
        return;
    }
    if (q->dtype == DTYPE_F32) {
        auto run = is_fp8 ? plain_attention<true> : plain_attention<false>;
        run(cuda, out, q, kv->slab[layer], a, step);
    } else {
        attention_fn *run = q->dtype == DTYPE_F16 ? (is_fp8 ? cuda_attention_f16_fp8 : cuda_attention_f16)
                                                  : (is_fp8 ? cuda_attention_bf16_fp8 : cuda_attention_bf16);
        run(cuda, out, q, kv, layer, &a, step);
    }
}
