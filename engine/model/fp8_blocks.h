/* fp8_blocks.h - weights in e4m3 with one scale for each block of rows and columns, most often
 * 128 x 128: X.weight (F8_E4M3) and X.weight_scale_inv (quant_method fp8), or X.weight_scale
 * (compressed-tensors). Despite its name weight_scale_inv is what a code is multiplied with.
 *
 * A device that multiplies with such weights (weight_keeps_fp8_blocks) keeps codes and scales: a
 * byte a weight. Otherwise, and where --quantization makes something else of them, they are turned
 * back into numbers as they are loaded: code times scale in f32, rounded to the compute dtype. From
 * there on they are weights like any others. The bits of products are the same. */
#ifndef BATCHD_ENGINE_MODEL_FP8_BLOCKS_H
#define BATCHD_ENGINE_MODEL_FP8_BLOCKS_H

#include "base/err.h"
#include "engine/model/safetensors.h"
#include "kernels/tensor.h"

#include <stdbool.h>

struct fp8_block { /* of config.json; all zero = there are none */
    int32_t rows, cols;
};

/* Is the tensor, a weight's, of this kind? */
bool fp8_blocks_is(const struct checkpoint *c, const char *name);

struct fp8_blocks {       /* of a weight [rows, k] */
    const uint8_t *codes; /* [rows][k]; the checkpoint's */
    float *scale;         /* [rows / block.rows, rounded up][k / block.cols, rounded up]; the caller's to free */
};

/* What is there, read to the end: all numbers are finite. With out NULL nothing but dtypes, shapes
 * and scales is checked. E_PARSE, E_UNSUPPORTED: what is wrong with which tensor. */
int fp8_blocks_keep(struct fp8_blocks *out, const struct checkpoint *c, const char *name, int64_t rows, int64_t k,
                    struct fp8_block block, struct err *err);

/* The same as numbers: [rows, k] in `dtype` (F16: in F32), in memory of the caller's to free. */
int fp8_blocks_read(struct tensor *out, const struct checkpoint *c, const char *name, int64_t rows, int64_t k,
                    struct fp8_block block, enum dtype dtype, struct err *err);

#endif
