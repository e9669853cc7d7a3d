/* tensor.h - numbers with a type and a shape, on some device.
 *
 * A struct tensor is a view: row-major, contiguous, it owns nothing. Whoever
 * called dev_alloc for the memory frees it. Compiles as C17 and as C++17. */
#ifndef BATCHD_KERNELS_TENSOR_H
#define BATCHD_KERNELS_TENSOR_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum dtype { DTYPE_F32, DTYPE_F16, DTYPE_BF16, DTYPE_I32, DTYPE_I8, DTYPE_U8, DTYPE_F8_E4M3 };

size_t dtype_bytes(enum dtype t);      /* of one element */
const char *dtype_name(enum dtype t);  /* "float32", "bfloat16", ... */

struct tensor {
    void *data;       /* on the device; NULL = no tensor */
    enum dtype dtype;
    int32_t n_dims;   /* 1 or 2 */
    int64_t shape[2]; /* rows, columns; a vector has shape {n, 1} */
};

struct tensor tensor_2d(void *data, enum dtype t, int64_t rows, int64_t cols);
struct tensor tensor_1d(void *data, enum dtype t, int64_t n);
size_t tensor_bytes(const struct tensor *t);

/* bf16 and fp16 as their 16 bits; rounding is to nearest, ties to even, NaN stays NaN. */
uint16_t bf16_from_f32(float x);
float bf16_to_f32(uint16_t x);
uint16_t f16_from_f32(float x);
float f16_to_f32(uint16_t x);

/* f32 [n] from host memory in F32, F16 or BF16, which need not be aligned. */
void numbers_read(float *out, const void *from, enum dtype t, int64_t n);

/* The number nearest to x that t holds; t is F32, F16 or BF16. */
float number_rounded(float x, enum dtype t);

#ifdef __cplusplus
}
#endif
#endif
