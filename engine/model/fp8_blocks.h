/* fp8_blocks.h - weights in e4m3 with one scale for each block of rows and columns, most often
 * 128 x 128: X.weight (F8_E4M3) and X.weight_scale_inv (quant_method fp8), or X.weight_scale
 * (compressed-tensors). Despite its name weight_scale_inv is what a code is multiplied with.
 *
 * They are turned back into numbers as they are loaded: code times scale in f32, rounded to the
 * compute dtype. From there on they are weights like any others, and --quantization makes of
 * them what it makes of those. */
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

/* [rows, k] in `dtype` (F16: in F32), in memory of the caller's to free. With out NULL nothing but
 * dtypes and shapes is checked. E_PARSE, E_UNSUPPORTED: what is wrong with which tensor; a number
 * that is not finite is an error too. */
int fp8_blocks_read(struct tensor *out, const struct checkpoint *c, const char *name, int64_t rows, int64_t k,
                    struct fp8_block block, enum dtype dtype, struct err *err);

#endif
