/* cuda_attention_bf16.cu - attention on the tensor cores for __nv_bfloat16. */
#include "kernels/cuda/cuda_attention_launch.cuh"

void cuda_attention_bf16(struct cuda_dev *cuda, struct activation *out, const struct tensor *q,
                         const struct kv_cache *kv, int32_t layer, const struct attention_args *a,
                         const struct split_room *room, const struct step *step) {
    attention_of_type<__nv_bfloat16, false>(cuda, out, q, kv, layer, a, room, step);
}
