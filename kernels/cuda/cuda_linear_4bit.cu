/* cuda_linear_4bit.cu - products with weights whose codes become numbers: of 4 bits, and of fp8
 * with scales of blocks. Few rows are multiplied with 4-bit codes that are decoded on their way
 * to the tensor cores (cuda_few_4bit.cu); otherwise codes become numbers of the compute dtype in
 * scratch, which go through the ordinary products. The bits are the same. */
#include "kernels/cuda/cuda_linear.h"
#include "kernels/cuda/cuda_quantize.h"

void cuda_decode(struct cuda_dev *cuda, void *numbers, const struct weight *w) {
    size_t row = (size_t)w->k_pad * dtype_bytes(w->dtype), rows = (size_t)(w->n_pad - w->n);
    if (w->quant == QUANT_FP8_BLOCK)
        cuda_decode_fp8_blocks(cuda, numbers, w);
    else
        cuda_decode_4bit(cuda, numbers, w);
    if (rows == 0) return;
    void *behind = (char *)numbers + (size_t)w->n * row;
    cuda_ok(cuda, cudaMemsetAsync(behind, 0, rows * row, cuda->stream), "rows of zeros");
}

/* A product of few rows begins to fetch its weights before it waits for the kernel in front of
 * it (cuda_follow), since weights do not change; these do. With this in front, what it begins
 * beside is not the kernel that writes them. */
__global__ void settle_kernel() {}

static void decode(struct cuda_dev *cuda, const struct tensor *y, const struct weight *w) {
    cuda_decode(cuda, cuda->quant->weights, w);
    if (y->shape[0] <= TMA_ROWS) settle_kernel<<<1, 1, 0, cuda->stream>>>();
}

void cuda_linear_fp8_blocks(struct cuda_dev *cuda, const struct tensor *y, const struct tensor *x,
                            const struct weight *w) {
    decode(cuda, y, w);
    quantized_multiply(cuda, y, x->data, w, cuda->quant->weights, w->k, w->k_pad);
}

void cuda_linear_4bit(struct cuda_dev *cuda, const struct tensor *y, const struct tensor *x,
                      const struct weight *w) {
    struct linear_shape s = {w->n, w->k, w->k_pad, w->dtype, y->dtype};
    void *numbers = cuda->quant->weights;
    bool is_few = few_4bit_can(cuda, y, w), is_known = algorithms_know(cuda, &s);
    if (is_few && is_known && algorithms_follow_ours(cuda, &s, numbers)) {
        cuda_few_4bit(cuda, y, x, w);
        return;
    }
    decode(cuda, y, w);
    if (is_few && !is_known) algorithms_follow_ours(cuda, &s, numbers); /* for the next time */
    quantized_multiply(cuda, y, x->data, w, numbers, w->k, w->k_pad);
}
