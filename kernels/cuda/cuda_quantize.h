/* cuda_quantize.h - what the files of quantized products share.
 *
 *   cuda_quantize.cu         which of them serves a product, their scratch, and 8-bit codes where
 *                            the device or the shape does not suit the next
 *   cuda_linear_8bit.cu      8-bit codes on tensor cores: fp8, and the choice between it and
 *   cuda_linear_int8.cu      int8
 *   cuda_linear_4bit.cu      products with codes that become numbers, by one of the next three
 *   cuda_few_4bit.cu         few rows: codes of 4 bits are decoded in registers
 *   cuda_decode_4bit.cu      codes become numbers in scratch
 *   cuda_decode_fp8.cu       codes of fp8 with scales of blocks too
 *   cuda_quantize_load.cu    numbers become codes when a model is loaded
 *   cuda_quantize_nested.cu  and absmax codes too: double quantization */
#ifndef BATCHD_KERNELS_CUDA_QUANTIZE_H
#define BATCHD_KERNELS_CUDA_QUANTIZE_H

#include "kernels/cuda/cuda.h"
#include "kernels/product_room.h"

struct cuda_quant { /* scratch, as large as the largest weight so far needs it */
    void *weights; /* of the compute dtype: [n_pad][k_pad]; int8: [K / span][n_pad][span, padded] */
    size_t weights_bytes;
    void *rows; /* 8-bit kinds: of a slab of rows */
    size_t rows_bytes;
};

/* Lays the parts of a room out one behind the other; *at[i] becomes where part i is. */
static inline void room_lay_out(char *base, void **const *at, const size_t *parts, int n_parts) {
    for (int i = 0; i < n_parts; base += room_rounded(parts[i++])) *at[i] = base;
}

/* y[m, n] = x[m, k] numbers[n_pad, k]^T, rows ld apart: the ordinary product. The numbers stand
 * for w's codes, or those of some of its columns. y: w's dtype, or F32. */
void quantized_multiply(struct cuda_dev *cuda, const struct tensor *y, const void *x, const struct weight *w,
                        const void *numbers, int64_t k, int64_t ld);

/* cuda_linear_8bit.cu. Which 8-bit weights are for it; its scratch is a room of product_room.h. */
bool cuda_multiplies_codes(const struct cuda_dev *cuda, const struct weight *w);
void cuda_linear_8bit(struct cuda_dev *cuda, struct product *y, const struct activation *x, const struct weight *w);

/* cuda_linear_int8.cu; y and x as cuda_linear has them. */
void cuda_linear_int8(struct cuda_dev *cuda, struct tensor *y, const struct tensor *x, const struct weight *w);

/* A bit for each column in which some row of x[m, k] has an outlier: of words[k / 32, rounded up], which are
 * 0. Queued. */
void int8_mark_columns(struct cuda_dev *cuda, uint32_t *words, const struct tensor *x);

/* cuda_linear_4bit.cu; y and x as cuda_linear has them. The second: fp8 with scales of blocks. */
void cuda_linear_4bit(struct cuda_dev *cuda, const struct tensor *y, const struct tensor *x,
                      const struct weight *w);
void cuda_linear_fp8_blocks(struct cuda_dev *cuda, const struct tensor *y, const struct tensor *x,
                            const struct weight *w);

/* cuda_few_4bit.cu: the bits of cuda_decode_4bit and cuda_linear_few, where that kernel's are the
 * reference (algorithms_follow_ours). Rows of y that it takes, and weights: any of whole blocks
 * of QUANT_BLOCK in rows of a multiple of 256 numbers, in few segments. */
bool few_4bit_can(const struct cuda_dev *cuda, const struct tensor *y, const struct weight *w);
void cuda_few_4bit(struct cuda_dev *cuda, const struct tensor *y, const struct tensor *x, const struct weight *w);

/* numbers[n_pad][k_pad] of the weight's dtype, of either kind, queued. The two that it chooses
 * from leave rows n .. n_pad - 1 as they are. */
void cuda_decode(struct cuda_dev *cuda, void *numbers, const struct weight *w);
void cuda_decode_4bit(struct cuda_dev *cuda, void *numbers, const struct weight *w);
void cuda_decode_fp8_blocks(struct cuda_dev *cuda, void *numbers, const struct weight *w);

struct quantizing { /* numbers of a tensor, or rows of one, on their way into a weight; memory is the device's */
    enum quant_kind kind;
    enum dtype dtype;     /* the weight's; numbers are rounded to it first */
    int64_t n_rows, k;
    int64_t k_pad;        /* 8-bit kinds: from row to row of codes */
    uint8_t *codes;       /* aligned to 4 bytes */
    float *scale;         /* of rows, or the absmax of blocks */
    int32_t *not_finite;  /* becomes 1 where a number is NaN or infinite */
};

/* Queued on the stream. numbers: [n_rows][k] on the device. */
void quantize_numbers(cudaStream_t stream, const struct quantizing *q, const void *numbers, enum dtype from);

/* The same of the numbers that cuda_weight_random makes; QUANT_FP8_BLOCK: under a scale of 1, for which
 * the deviation is, and what is beyond 448 becomes 448. */
void quantize_random(cudaStream_t stream, const struct quantizing *q, uint64_t seed, float deviation);

/* quant_nested of n absmax on the device, on its stream; waits, and returns their mean. */
float quantize_nested(struct cuda_dev *cuda, uint8_t *codes, float *absmax2, const float *absmax, int64_t n);

#endif
