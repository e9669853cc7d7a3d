/* config.h - config.json and generation_config.json, checked.
 *
 * Everything the arithmetic depends on is read here; a key with a value that this
 * program does not compute is an error that names both, never a silent guess. A
 * key that is absent means what it means to transformers. */
#ifndef BATCHD_ENGINE_MODEL_CONFIG_H
#define BATCHD_ENGINE_MODEL_CONFIG_H

#include "base/err.h"
#include "engine/engine.h"
#include "engine/model/families.h"
#include "engine/model/fp8_blocks.h"
#include "engine/model/positions.h"

#include <stdbool.h>
#include <stdint.h>

enum { MAX_LAYERS = 4096 };

struct model_config {
    struct model_info info; /* all but n_params, dtype and kv_bytes_per_token, which need the weights */
    const struct family *family;
    char torch_dtype[16];   /* as config.json says, or "" */
    struct fp8_block fp8_block; /* of a checkpoint in fp8 with scales for blocks */

    /* The family's description, completed by the file. */
    enum norm_kind norm;
    float norm_eps;
    enum block_form block;
    enum mlp_form mlp;
    enum act act;
    int32_t n_experts, experts_per_row; /* MLP_EXPERTS */
    unsigned biases;                  /* enum biases, or-ed */
    enum qkv_layout qkv;
    const struct tensor_names *names;
    bool qk_norm;                     /* heads of Q and K are normed, with weights of their own */
    struct positions positions;
    uint8_t slides[MAX_LAYERS / 8];   /* a bit a layer: info.sliding_window holds there; see config_layer_slides */

    float attention_scale;            /* head_dim^-0.5 unless the family says otherwise */
    float attention_softcap, logit_softcap; /* 0 = none */
    float clip_qkv;                   /* 0 = none */
    float embed_scale;
};

/* E_NOT_FOUND: no config.json; E_PARSE, E_RANGE: a value that makes no sense;
 * E_UNSUPPORTED: names the key and the value. */
int config_read(struct model_config *out, const char *model_dir, struct err *err);

static inline bool config_layer_slides(const struct model_config *c, int32_t layer) {
    return c->slides[layer / 8] >> layer % 8 & 1;
}

#endif
