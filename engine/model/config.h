/* config.h - config.json and generation_config.json, checked.
 *
 * Everything the arithmetic depends on is read here; a key with a value that this
 * program does not compute is an error that names both, never a silent guess. A
 * key that is absent means what it means to transformers. */
#ifndef BATCHD_ENGINE_MODEL_CONFIG_H
#define BATCHD_ENGINE_MODEL_CONFIG_H

#include "base/err.h"
#include "engine/engine.h"

#include <stdbool.h>
#include <stdint.h>

enum { MAX_HEAD_DIM = 256 };

enum rope_scaling { ROPE_DEFAULT, ROPE_LINEAR, ROPE_LLAMA3 };

struct model_config {
    struct model_info info; /* all but n_params, dtype and kv_bytes_per_token, which need the weights */
    float norm_eps;
    bool attention_bias;    /* q, k, v and o have one */
    bool mlp_bias;          /* gate, up and down have one */
    float rope_theta;
    enum rope_scaling rope_scaling;
    float rope_factor;                                 /* linear, llama3 */
    float rope_low_freq_factor, rope_high_freq_factor; /* llama3 */
    int32_t rope_original_context;                     /* llama3 */
    char torch_dtype[16];                              /* as config.json says, or "" */
};

/* E_NOT_FOUND: no config.json; E_PARSE, E_RANGE: a value that makes no sense;
 * E_UNSUPPORTED: names the key and the value. */
int config_read(struct model_config *out, const char *model_dir, struct err *err);

/* inv_freq[head_dim / 2] of rotary position embedding, scaling applied; formulas as in
 * transformers' modeling_rope_utils.py (default, linear, llama3). */
void config_inv_freq(const struct model_config *c, float *inv_freq);

#endif
