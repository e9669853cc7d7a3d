/* quantize.h - the formats of quantized numbers, as pure functions on host memory.
 *
 * These are the definition: what a device computes must have the same bits. 4-bit weights
 * and int8 weights are byte for byte what bitsandbytes makes of the same tensor, so that a
 * checkpoint saved by one is read by the other.
 *
 *   nf4, fp4   the tensor, flattened, in blocks of 64; a block has an absmax in f32, a number
 *              is the nearest of 16 codes times absmax; two codes a byte, the first in the
 *              high half
 *   nf4-dq     nf4 whose absmax are quantized too: less their mean, in blocks of 256, to 8 bits
 *   int8       a scale a row, 127 = the row's absmax (LLM.int8)
 *   fp8        e4m3 without infinities, a scale a row, 448 = the row's absmax
 *   fp8-block  e4m3, a scale for each block of rows and columns: a number is code * scale, rounded
 *              to the compute dtype. Checkpoints have it; nothing is quantized to it but dummies */
#ifndef BATCHD_KERNELS_QUANTIZE_H
#define BATCHD_KERNELS_QUANTIZE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum quant_kind { QUANT_NONE, QUANT_INT8, QUANT_FP4, QUANT_NF4, QUANT_NF4_DQ, QUANT_FP8, QUANT_FP8_BLOCK };
enum { N_QUANT_KINDS = QUANT_FP8 + 1 }; /* that can be asked for: all but the last */

const char *quant_name(enum quant_kind kind);                /* "none", "int8", ... "nf4-dq" */
bool quant_from_name(enum quant_kind *out, const char *name); /* false: none that can be asked for */

/* Whose outliers LLM.int8 takes out of a row's codes: the row's own; or every column in which some
 * row of the product has one, as bitsandbytes does. */
enum int8_outliers { INT8_OUTLIERS_ROW, INT8_OUTLIERS_BATCH };

bool int8_outliers_from_name(enum int8_outliers *out, const char *name); /* "row", "batch" */

static inline bool quant_is_4bit(enum quant_kind kind) {
    return kind == QUANT_FP4 || kind == QUANT_NF4 || kind == QUANT_NF4_DQ;
}

/* Codes become numbers of the compute dtype for a product, and activations stay as they are. */
static inline bool quant_is_decoded(enum quant_kind kind) {
    return quant_is_4bit(kind) || kind == QUANT_FP8_BLOCK;
}

static inline int64_t quant_blocks(int64_t n, int64_t block) { /* how many hold n numbers */
    return (n + block - 1) / block;
}

/* ---------------------------------------------------------------- 4 bits */

enum { QUANT_BLOCK = 64, QUANT_NESTED_BLOCK = 256 };

const float *quant_codes(enum quant_kind kind); /* the 16 values of nf4 or fp4, by code */

/* A block size that the formats know: a power of two from 32 to 4096. */
bool quant_block_is_valid(int64_t block);

/* packed[(n + 1) / 2], absmax[quant_blocks(n, block)] of w[n]; a missing last number packs
 * as if it were 0. A number between two codes goes to the lower one where it is in the
 * middle. w must be finite. */
void quant_4bit(uint8_t *packed, float *absmax, const float *w, int64_t n, int64_t block, enum quant_kind kind);

/* w[n] = numbers first .. first + n - 1 of a packed tensor. */
void quant_4bit_back(float *w, const uint8_t *packed, const float *absmax, int64_t first, int64_t n, int64_t block,
                     const float codes[16]);

/* ---------------------------------------------------------------- the absmax themselves, in 8 bits */

/* The 256 values of the signed dynamic map, ascending. */
const float *quant_dynamic_map(void);

/* codes[n], absmax2[quant_blocks(n, QUANT_NESTED_BLOCK)] and *offset, their mean, of absmax[n].
 *
 * A number is first put on the nearest of QUANT_STEPS even steps between -1 and 1 and then takes the
 * map's nearest value: so does bitsandbytes on a CPU. Its GPU kernel leaves out the steps,
 * which changes one code in a thousand, to its neighbour. */
void quant_nested(uint8_t *codes, float *absmax2, float *offset, const float *absmax, int64_t n);
void quant_nested_back(float *absmax, const uint8_t *codes, const float *absmax2, float offset, int64_t n);

/* The map's nearest code of each of the QUANT_STEPS even steps. */
enum { QUANT_STEPS = 65536 };
const uint8_t *quant_nested_steps(void);

/* The mean in f32, summed in the order in which PyTorch sums a vector on a processor with
 * eight lanes and in one thread; the offset's last bits depend on that order. */
float quant_mean(const float *x, int64_t n);

/* ---------------------------------------------------------------- 8 bits */

/* q[n] and the return value, the scale, of one weight row. The numbers are rounded to fp16
 * first, as bitsandbytes does; w = q * scale / 127. */
float quant_int8(int8_t *q, const float *w, int64_t n);
void quant_int8_back(float *w, const int8_t *q, float scale, int64_t n);

/* One row of activations. Numbers of size `threshold` and above are outliers: 0 in q, and
 * no part of the scale. x = q * scale / 127. */
float quant_int8_activation(int8_t *q, const float *x, int64_t n, float threshold);

/* INT8_OUTLIERS_BATCH: is_out[n] |= where x has an outlier; a NaN is one. Then, when all rows have
 * been seen, those columns of a row's codes become 0. Its scale is what it was: numbers below the
 * threshold count, in those columns too. */
void quant_int8_mark(bool *is_out, const float *x, int64_t n, float threshold);
void quant_int8_take_out(int8_t *q, const bool *is_out, int64_t n);

/* The nearest e4m3 number, ties to even; what is beyond 448 becomes 448, NaN stays NaN. */
uint8_t fp8_from_f32(float x);
float fp8_to_f32(uint8_t x);

/* A row of weights or activations; the scale is returned; w = q * scale. */
float quant_fp8(uint8_t *q, const float *w, int64_t n);

#ifdef __cplusplus
}
#endif
#endif
