/* families.c - the families, one description each; see families.h. */
#include "engine/model/families.h"
#include "engine/model/config.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* ---------------------------------------------------------------- names that many share */

static const struct key_names common_keys = {
    .hidden = "hidden_size",
    .n_layers = "num_hidden_layers",
    .n_heads = "num_attention_heads",
    .n_kv_heads = "num_key_value_heads",
    .intermediate = "intermediate_size",
    .context = "max_position_embeddings",
    .norm_eps = "rms_norm_eps",
    .act = "hidden_act",
};

#define LLAMA_NAMES                                                                     \
    .embed = "model.embed_tokens", .final_norm = "model.norm", .layer = "model.layers.%d.",   \
    .attention_norm = "input_layernorm", .mlp_norm = "post_attention_layernorm",              \
    .q = "self_attn.q_proj", .k = "self_attn.k_proj", .v = "self_attn.v_proj",                \
    .o = "self_attn.o_proj", .gate = "mlp.gate_proj", .up = "mlp.up_proj", .down = "mlp.down_proj"

static const struct tensor_names llama_names = {LLAMA_NAMES};

/* ---------------------------------------------------------------- Llama */

static void llama_specials(struct model_config *c, struct reader *rd) {
    if (reader_bool(rd, "attention_bias", false)) c->biases |= BIAS_QKV | BIAS_O;
    if (reader_bool(rd, "mlp_bias", false)) c->biases |= BIAS_MLP;
}

/* Projections of these never have a bias, whatever config.json says of one. */
static void no_biases(struct model_config *c, struct reader *rd) {
    static const char *const keys[] = {"attention_bias", "mlp_bias"};
    for (int i = 0; i < 2; i++)
        if (reader_bool(rd, keys[i], false)) reader_complain(rd, E_UNSUPPORTED, keys[i], "is not supported in this family");
}

/* ---------------------------------------------------------------- Phi: Phi-1, 1.5, 2 */

static const struct key_names phi_keys = {
    .hidden = "hidden_size",
    .n_layers = "num_hidden_layers",
    .n_heads = "num_attention_heads",
    .n_kv_heads = "num_key_value_heads",
    .intermediate = "intermediate_size",
    .context = "max_position_embeddings",
    .norm_eps = "layer_norm_eps",
    .act = "hidden_act",
};

static const struct tensor_names phi_names = {
    .embed = "model.embed_tokens",
    .final_norm = "model.final_layernorm",
    .layer = "model.layers.%d.",
    .attention_norm = "input_layernorm",
    .q = "self_attn.q_proj",
    .k = "self_attn.k_proj",
    .v = "self_attn.v_proj",
    .q_norm = "self_attn.q_layernorm",
    .k_norm = "self_attn.k_layernorm",
    .o = "self_attn.dense",
    .up = "mlp.fc1",
    .down = "mlp.fc2",
};

static void phi_specials(struct model_config *c, struct reader *rd) {
    c->qk_norm = reader_bool(rd, "qk_layernorm", false);
}

/* ---------------------------------------------------------------- the table */

static const struct family families[] = {
    {
        .model_type = "llama",
        .norm = NORM_RMS,
        .block = BLOCK_SEQUENTIAL,
        .mlp = MLP_GATED,
        .act_default = "silu",
        .qkv = QKV_SEPARATE,
        .windows = WINDOWS_NONE,
        .context_default = 2048,
        .eps_default = 1e-6,
        .theta_default = 1e4,
        .partial_default = 1,
        .keys = &common_keys,
        .names = &llama_names,
        .specials = llama_specials,
    },
    {
        .model_type = "mistral",
        .norm = NORM_RMS,
        .block = BLOCK_SEQUENTIAL,
        .mlp = MLP_GATED,
        .act_default = "silu",
        .qkv = QKV_SEPARATE,
        .windows = WINDOWS_ALL,
        .window_default = 4096,
        .context_default = 131072,
        .n_kv_heads_default = 8,
        .eps_default = 1e-6,
        .theta_default = 1e4,
        .partial_default = 1,
        .keys = &common_keys,
        .names = &llama_names,
        .specials = no_biases,
    },
    {
        .model_type = "phi",
        .norm = NORM_LAYER,
        .block = BLOCK_PARALLEL,
        .mlp = MLP_PLAIN,
        .act_default = "gelu_new",
        .biases = BIAS_QKV | BIAS_O | BIAS_MLP | BIAS_NORM | BIAS_HEAD,
        .qkv = QKV_SEPARATE,
        .windows = WINDOWS_NONE,
        .context_default = 2048,
        .eps_default = 1e-5,
        .theta_default = 1e4,
        .partial_default = 0.5,
        .keys = &phi_keys,
        .names = &phi_names,
        .specials = phi_specials,
    },
};

enum { N_FAMILIES = sizeof families / sizeof *families };

const struct family *families_find(const char *model_type) {
    for (size_t i = 0; i < N_FAMILIES; i++)
        if (strcmp(families[i].model_type, model_type) == 0) return &families[i];
    return NULL;
}

const char *families_list(void) {
    static _Thread_local char list[200];
    size_t n = 0;
    for (size_t i = 0; i < N_FAMILIES; i++)
        n += (size_t)snprintf(list + n, sizeof list - n, "%s%s", i ? ", " : "", families[i].model_type);
    return list;
}
