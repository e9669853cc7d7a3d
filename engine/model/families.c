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

#define LLAMA_NAMES                                                                                             \
    .embed = "model.embed_tokens", .final_norm = "model.norm", .layer = "model.layers.%d.",                     \
    .attention_norm = "input_layernorm", .mlp_norm = "post_attention_layernorm",                                \
    .q = "self_attn.q_proj", .k = "self_attn.k_proj", .v = "self_attn.v_proj",                                  \
    .o = "self_attn.o_proj", .gate = "mlp.gate_proj", .up = "mlp.up_proj", .down = "mlp.down_proj"

static const struct tensor_names llama_names = {LLAMA_NAMES};

static void refuse_true(struct reader *rd, const char *key) {
    if (reader_bool(rd, key, false)) reader_complain(rd, E_UNSUPPORTED, key, "is not supported in this family");
}

/* ---------------------------------------------------------------- Llama */

static void llama_specials(struct model_config *c, struct reader *rd) {
    if (reader_bool(rd, "attention_bias", false)) c->biases |= BIAS_QKV | BIAS_O;
    if (reader_bool(rd, "mlp_bias", false)) c->biases |= BIAS_MLP;
}

/* Projections of these never have a bias, whatever config.json says of one. */
static void no_biases(struct model_config *c, struct reader *rd) {
    refuse_true(rd, "attention_bias");
    refuse_true(rd, "mlp_bias");
}

/* ---------------------------------------------------------------- Mixtral */

static const struct tensor_names mixtral_names = {
    .embed = "model.embed_tokens",
    .final_norm = "model.norm",
    .layer = "model.layers.%d.",
    .attention_norm = "input_layernorm",
    .mlp_norm = "post_attention_layernorm",
    .q = "self_attn.q_proj",
    .k = "self_attn.k_proj",
    .v = "self_attn.v_proj",
    .o = "self_attn.o_proj",
    .router = "block_sparse_moe.gate",
    .expert = "block_sparse_moe.experts.%d.",
    .gate = "w1",
    .up = "w3",
    .down = "w2",
    .fused_router = "mlp.gate",
    .fused_up = "mlp.experts.gate_up_proj",
    .fused_down = "mlp.experts.down_proj",
};

static void mixtral_specials(struct model_config *c, struct reader *rd) {
    no_biases(c, rd);
    c->n_experts = (int32_t)reader_int(rd, "num_local_experts", 8, 1, 1024);
    c->experts_per_row = (int32_t)reader_int(rd, "num_experts_per_tok", 2, 1, c->n_experts);
}

/* ---------------------------------------------------------------- Qwen */

static const struct tensor_names qwen3_names = {
    LLAMA_NAMES,
    .q_norm = "self_attn.q_norm",
    .k_norm = "self_attn.k_norm",
};

static void qwen3_specials(struct model_config *c, struct reader *rd) {
    c->qk_norm = true;
    if (reader_bool(rd, "attention_bias", false)) c->biases |= BIAS_QKV | BIAS_O;
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

/* ---------------------------------------------------------------- Phi-3, 3.5, 4 */

static const struct tensor_names phi3_names = {
    .embed = "model.embed_tokens",
    .final_norm = "model.norm",
    .layer = "model.layers.%d.",
    .attention_norm = "input_layernorm",
    .mlp_norm = "post_attention_layernorm",
    .q = "self_attn.qkv_proj",
    .o = "self_attn.o_proj",
    .gate = "mlp.gate_up_proj",
    .down = "mlp.down_proj",
};

/* ---------------------------------------------------------------- Gemma */

static void every_gemma(struct model_config *c, struct reader *rd) {
    refuse_true(rd, "use_bidirectional_attention");
    if (reader_bool(rd, "attention_bias", false)) c->biases |= BIAS_QKV | BIAS_O;
    c->embed_scale = sqrtf((float)c->info.hidden);
}

static void gemma_specials(struct model_config *c, struct reader *rd) {
    every_gemma(c, rd);
    if (c->act == ACT_GELU) c->act = ACT_GELU_TANH; /* what the official files of Gemma 1 mean by "gelu" */
}

static const struct key_names gemma2_keys = {
    .hidden = "hidden_size",
    .n_layers = "num_hidden_layers",
    .n_heads = "num_attention_heads",
    .n_kv_heads = "num_key_value_heads",
    .intermediate = "intermediate_size",
    .context = "max_position_embeddings",
    .norm_eps = "rms_norm_eps",
    .act = "hidden_activation",
};

static const struct tensor_names gemma2_names = {
    .embed = "model.embed_tokens",
    .final_norm = "model.norm",
    .layer = "model.layers.%d.",
    .attention_norm = "input_layernorm",
    .post_attention_norm = "post_attention_layernorm",
    .mlp_norm = "pre_feedforward_layernorm",
    .post_mlp_norm = "post_feedforward_layernorm",
    .q = "self_attn.q_proj",
    .k = "self_attn.k_proj",
    .v = "self_attn.v_proj",
    .o = "self_attn.o_proj",
    .gate = "mlp.gate_proj",
    .up = "mlp.up_proj",
    .down = "mlp.down_proj",
};

/* A null says that there is no cap. */
static float read_cap(struct reader *rd, const char *key, double by_default) {
    if (!reader_is_absent(rd, key)) by_default = 0;
    return (float)reader_number(rd, key, by_default, 1e-3, 1e6);
}

static void gemma2_specials(struct model_config *c, struct reader *rd) {
    every_gemma(c, rd);
    c->attention_scale = 1.0f / sqrtf((float)reader_number(rd, "query_pre_attn_scalar", 256, 1e-6, 1e9));
    c->attention_softcap = read_cap(rd, "attn_logit_softcapping", 50);
    c->logit_softcap = read_cap(rd, "final_logit_softcapping", 30);
}

/* ---------------------------------------------------------------- Falcon: RW, 7B, 11B, 40B, 180B */

static const struct alias falcon_aliases[] = {
    {"n_embed", "hidden_size"}, {"n_layer", "num_hidden_layers"}, {"n_head", "num_attention_heads"},
    {"n_head_kv", "num_kv_heads"}, {NULL, NULL}};

static const struct key_names falcon_keys = {
    .hidden = "hidden_size",
    .n_layers = "num_hidden_layers",
    .n_heads = "num_attention_heads",
    .intermediate = "ffn_hidden_size",
    .context = "max_position_embeddings",
    .norm_eps = "layer_norm_epsilon",
    .act = "activation",
};

#define FALCON_NAMES                                                                                            \
    .embed = "transformer.word_embeddings", .final_norm = "transformer.ln_f", .layer = "transformer.h.%d.",     \
    .q = "self_attention.query_key_value", .o = "self_attention.dense", .up = "mlp.dense_h_to_4h",              \
    .down = "mlp.dense_4h_to_h"

static const struct tensor_names falcon_names = {FALCON_NAMES, .attention_norm = "input_layernorm"};
static const struct tensor_names falcon_two_norms = {FALCON_NAMES, .attention_norm = "ln_attn", .mlp_norm = "ln_mlp"};
static const struct tensor_names falcon_sequential = {
    FALCON_NAMES, .attention_norm = "input_layernorm", .mlp_norm = "post_attention_layernorm"};

static int32_t falcon_kv_heads(const struct model_config *c, struct reader *rd, bool is_new) {
    if (!is_new && reader_bool(rd, "multi_query", true)) return 1;
    int32_t n = (int32_t)reader_int(rd, "num_kv_heads", c->info.n_heads, 1, 4096);
    if (rd->r == 0 && (c->info.n_heads % n != 0 || (!is_new && n != c->info.n_heads)))
        reader_complain(rd, E_RANGE, "num_kv_heads", "does not go with num_attention_heads");
    return n;
}

/* new_decoder_architecture (40B and later): groups of heads, parallel, two norms or one. Before
 * it: 7B is multi-query and parallel with one norm; RW has all heads of K and V, blocks
 * one after the other, biases and ALiBi, which is scaled as the scores are. */
static void falcon_specials(struct model_config *c, struct reader *rd) {
    bool is_new = reader_bool(rd, "new_decoder_architecture", false), parallel = reader_bool(rd, "parallel_attn", true);
    int64_t n_norms = reader_int(rd, "num_ln_in_parallel_attn", is_new ? 2 : 1, 1, 2);
    refuse_true(rd, "apply_residual_connection_post_layernorm");
    if (is_new && !parallel)
        reader_complain(rd, E_UNSUPPORTED, "parallel_attn", "does not go with new_decoder_architecture");
    if (!is_new && n_norms == 2)
        reader_complain(rd, E_UNSUPPORTED, "num_ln_in_parallel_attn", "needs new_decoder_architecture");
    if (!parallel) {
        c->block = BLOCK_SEQUENTIAL;
        c->names = &falcon_sequential;
    } else if (n_norms == 2) {
        c->names = &falcon_two_norms;
    }
    c->info.n_kv_heads = falcon_kv_heads(c, rd, is_new);
    if (reader_bool(rd, "bias", false)) c->biases |= BIAS_QKV | BIAS_O | BIAS_MLP;
    if (!reader_bool(rd, "alibi", false)) return;
    c->positions.n_rotated = 0;
    c->positions.alibi = ALIBI_FALCON;
}

/* ---------------------------------------------------------------- MPT: 7B, 30B */

static const struct key_names mpt_keys = {
    .hidden = "d_model",
    .n_layers = "n_layers",
    .n_heads = "n_heads",
    .context = "max_seq_len",
    .norm_eps = "layer_norm_epsilon",
};

static const struct tensor_names mpt_names = {
    .embed = "transformer.wte",
    .final_norm = "transformer.norm_f",
    .layer = "transformer.blocks.%d.",
    .attention_norm = "norm_1",
    .mlp_norm = "norm_2",
    .q = "attn.Wqkv",
    .o = "attn.out_proj",
    .up = "ffn.up_proj",
    .down = "ffn.down_proj",
};

static void mpt_attention(struct model_config *c, struct reader *rd) {
    if (!reader_bool(rd, "alibi", true)) reader_complain(rd, E_UNSUPPORTED, "alibi", "is not supported (true is)");
    refuse_true(rd, "qk_ln");
    refuse_true(rd, "prefix_lm");
    refuse_true(rd, "attn_uses_sequence_id");
    const char *type = reader_text(rd, "attn_type");
    if (type && strcmp(type, "multihead_attention") != 0)
        reader_refuse(rd, "attn_type", type, "multihead_attention is");
    c->positions.alibi = ALIBI_MPT;
    c->positions.alibi_bias_max = (float)reader_number(rd, "alibi_bias_max", 8, 1, 1024);
    c->attention_scale = (float)reader_number(rd, "softmax_scale", (double)c->attention_scale, 1e-6, 1e6);
    c->clip_qkv = (float)reader_number(rd, "clip_qkv", 0, 0, 1e6);
}

static void mpt_specials(struct model_config *c, struct reader *rd) {
    const char *norm = reader_text(rd, "norm_type");
    if (norm && strcmp(norm, "low_precision_layernorm") != 0 && strcmp(norm, "layernorm") != 0)
        reader_refuse(rd, "norm_type", norm, "layernorm, low_precision_layernorm are");
    if (!reader_bool(rd, "no_bias", true)) reader_complain(rd, E_UNSUPPORTED, "no_bias", "is not supported (true is)");
    if (reader_get(rd, "logit_scale")) reader_complain(rd, E_UNSUPPORTED, "logit_scale", "is not supported (null is)");
    if (reader_int(rd, "expansion_ratio", 4, 1, 1024) != 4)
        reader_complain(rd, E_UNSUPPORTED, "expansion_ratio", "is not supported (4 is)");
    const json_t *attention = reader_get(rd, "attn_config");
    if (attention && !json_is_object(attention)) reader_complain(rd, E_PARSE, "attn_config", "is not an object");
    struct reader nested = {attention, "config.json: attn_config.", rd->err, rd->r};
    mpt_attention(c, &nested);
    rd->r = nested.r;
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
        .eos_default = 2,
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
        .eos_default = 2,
        .keys = &common_keys,
        .names = &llama_names,
        .specials = no_biases,
    },
    {
        .model_type = "mixtral",
        .norm = NORM_RMS,
        .block = BLOCK_SEQUENTIAL,
        .mlp = MLP_EXPERTS,
        .act_default = "silu",
        .qkv = QKV_SEPARATE,
        .windows = WINDOWS_ALL,
        .context_default = 131072,
        .n_kv_heads_default = 8,
        .eps_default = 1e-5,
        .theta_default = 1e6,
        .eos_default = 2,
        .keys = &common_keys,
        .names = &mixtral_names,
        .specials = mixtral_specials,
    },
    {
        .model_type = "qwen2",
        .norm = NORM_RMS,
        .block = BLOCK_SEQUENTIAL,
        .mlp = MLP_GATED,
        .act_default = "silu",
        .biases = BIAS_QKV,
        .qkv = QKV_SEPARATE,
        .windows = WINDOWS_LATE,
        .window_default = 4096,
        .context_default = 32768,
        .n_kv_heads_default = 32,
        .eps_default = 1e-6,
        .theta_default = 1e4,
        .keys = &common_keys,
        .names = &llama_names,
    },
    {
        .model_type = "qwen3",
        .norm = NORM_RMS,
        .block = BLOCK_SEQUENTIAL,
        .mlp = MLP_GATED,
        .act_default = "silu",
        .qkv = QKV_SEPARATE,
        .windows = WINDOWS_LATE,
        .window_default = 4096,
        .context_default = 32768,
        .n_kv_heads_default = 32,
        .head_dim_default = 128,
        .eps_default = 1e-6,
        .theta_default = 1e4,
        .keys = &common_keys,
        .names = &qwen3_names,
        .specials = qwen3_specials,
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
        .eos_default = 2,
        .keys = &phi_keys,
        .names = &phi_names,
        .specials = phi_specials,
    },
    {
        .model_type = "phi3",
        .norm = NORM_RMS,
        .block = BLOCK_SEQUENTIAL,
        .mlp = MLP_GATED,
        .act_default = "silu",
        .qkv = QKV_CONCATENATED,
        .windows = WINDOWS_ALL,
        .context_default = 4096,
        .eps_default = 1e-5,
        .theta_default = 1e4,
        .partial_default = 1,
        .original_context_default = 4096,
        .eos_default = 32000,
        .keys = &common_keys,
        .names = &phi3_names,
        .specials = no_biases,
    },
    {
        .model_type = "gemma",
        .norm = NORM_RMS_ONE_PLUS,
        .block = BLOCK_SEQUENTIAL,
        .mlp = MLP_GATED,
        .act_default = "gelu_pytorch_tanh",
        .qkv = QKV_SEPARATE,
        .windows = WINDOWS_NONE,
        .context_default = 8192,
        .n_kv_heads_default = 16,
        .head_dim_default = 256,
        .eps_default = 1e-6,
        .theta_default = 1e4,
        .tied_default = true,
        .eos_default = 1,
        .keys = &common_keys,
        .names = &llama_names,
        .specials = gemma_specials,
    },
    {
        .model_type = "gemma2",
        .norm = NORM_RMS_ONE_PLUS,
        .block = BLOCK_SANDWICH,
        .mlp = MLP_GATED,
        .act_default = "gelu_pytorch_tanh",
        .qkv = QKV_SEPARATE,
        .windows = WINDOWS_OTHER,
        .window_default = 4096,
        .context_default = 8192,
        .n_kv_heads_default = 4,
        .head_dim_default = 256,
        .eps_default = 1e-6,
        .theta_default = 1e4,
        .tied_default = true,
        .eos_default = 1,
        .keys = &gemma2_keys,
        .names = &gemma2_names,
        .specials = gemma2_specials,
    },
    {
        .model_type = "falcon",
        .norm = NORM_LAYER,
        .block = BLOCK_PARALLEL,
        .mlp = MLP_PLAIN,
        .act_default = "gelu",
        .biases = BIAS_NORM,
        .qkv = QKV_GROUPED,
        .windows = WINDOWS_NONE,
        .context_default = 2048,
        .mlp_ratio_default = 4,
        .eps_default = 1e-5,
        .theta_default = 1e4,
        .tied_default = true,
        .eos_default = 11,
        .aliases = falcon_aliases,
        .keys = &falcon_keys,
        .names = &falcon_names,
        .specials = falcon_specials,
    },
    {
        .model_type = "mpt",
        .norm = NORM_LAYER,
        .block = BLOCK_SEQUENTIAL,
        .mlp = MLP_PLAIN,
        .act_default = "gelu",
        .qkv = QKV_CONCATENATED,
        .windows = WINDOWS_NONE,
        .context_default = 2048,
        .mlp_ratio_default = 4,
        .eps_default = 1e-5,
        .tied_default = true,
        .keys = &mpt_keys,
        .names = &mpt_names,
        .specials = mpt_specials,
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
