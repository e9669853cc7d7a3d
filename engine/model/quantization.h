/* quantization.h - which weights are quantized on load, and the tensors of checkpoints that
 * are quantized already: by bitsandbytes, or to fp8.
 *
 * A linear layer X of such a checkpoint is
 *   4 bit  X.weight (bytes, whatever their dtype), X.weight.absmax, X.weight.quant_map,
 *          X.weight.quant_state.bitsandbytes__nf4 or __fp4 (JSON in bytes), and with double
 *          quantization X.weight.nested_absmax and X.weight.nested_quant_map
 *   8 bit  X.weight (I8), X.SCB, X.weight_format
 *   fp8    X.weight (F8_E4M3), X.weight_scale: one number, or one a row (quant_method fp8, and
 *          compressed-tensors in the format float-quantized). Activations are quantized row by
 *          row whatever the checkpoint says of them, so X.input_scale is not needed. With scales
 *          for blocks it is turned back when it is loaded (fp8_blocks.h) and none of these.
 * Layers that it left alone are floats as anywhere else. */
#ifndef BATCHD_ENGINE_MODEL_QUANTIZATION_H
#define BATCHD_ENGINE_MODEL_QUANTIZATION_H

#include "base/err.h"
#include "engine/model/fp8_blocks.h"
#include "engine/model/safetensors.h"
#include "kernels/ops.h"

#include <jansson.h>

struct quantization {     /* all zero = weights as the checkpoint has them */
    enum quant_kind kind; /* what float weights of layers become */
    const char *skip;     /* modules that stay as they are, apart by commas; NULL = none */
    enum int8_outliers outliers; /* of int8 weights, those of a checkpoint too */
};

/* "nf4", "nf4 except A,B", "int8 outliers batch", "none outliers batch except A"; NULL is none.
 * Borrows the text. E_USAGE: there is no such kind, or rule of outliers, or the kind has none. */
int quantization_parse(struct quantization *out, const char *text, struct err *err);

/* config.json's quantization_config, NULL = none. E_UNSUPPORTED names the key, with `where` in
 * front, and the value. */
int quantization_check_config(const json_t *config, const char *where, struct err *err);

/* weight_block_size, or block_structure of compressed-tensors; all zero where there is neither.
 * E_RANGE: not two sizes. */
int quantization_read_block(struct fp8_block *out, const json_t *config, const char *where, struct err *err);

/* Whether `skip` names the module or a run of its dotted parts: "q_proj" and
 * "layers.0.mlp" are in model.layers.0.mlp.q_proj. */
bool quantization_skips(const struct quantization *q, const char *module);

/* What the tensor `name` (a weight's) is: the kind of its codes, or QUANT_NONE for floats and
 * where there is no such tensor. */
enum quant_kind quantized_kind(const struct checkpoint *c, const char *name);

struct quantized_tensor { /* all zero = empty; give back with quantized_tensor_clear */
    struct quantized q;   /* borrows from the checkpoint and from what follows */
    float *scale, *values, *absmax, *absmax2, *map;
    int32_t n_tensors;    /* of the checkpoint that it is made of */
};

/* A weight of rows x k that quantized_kind knows. E_PARSE, E_UNSUPPORTED: what is wrong with
 * which tensor. */
int quantized_tensor_read(struct quantized_tensor *out, const struct checkpoint *c, const char *name, int64_t rows,
                          int64_t k, struct err *err);
void quantized_tensor_clear(struct quantized_tensor *t);

/* E_PARSE: a code that is no number, and where. Reads all of the tensor, which the function above
 * does not: a plan looks at headers and scales alone. */
int quantized_tensor_check(const struct checkpoint *c, const char *name, struct err *err);

/* E_PARSE names the first number of a float tensor that is NaN or infinite. */
int quantization_check_finite(const struct tensor *t, const char *name, struct err *err);

#endif
