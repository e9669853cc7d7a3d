/* families.h - what tells one family of models from another.
 *
 * There is one forward pass (forward.c). A family is a description that it reads: norm,
 * positions, attention, MLP, form of the block, specials, and how its checkpoints and
 * config.json call things. Some families leave choices to config.json: config.c
 * fills a model_config with the family's answers and then lets the file speak. */
#ifndef BATCHD_ENGINE_MODEL_FAMILIES_H
#define BATCHD_ENGINE_MODEL_FAMILIES_H

#include "engine/model/config_reader.h"
#include "kernels/ops.h"

#include <stdbool.h>
#include <stdint.h>

struct model_config;

enum block_form {
    BLOCK_SEQUENTIAL, /* r += attention(norm(r)); r += mlp(norm(r)) */
    BLOCK_PARALLEL,   /* r += attention(norm(r)) + mlp(norm(r)); the norms may be one and the same */
    BLOCK_SANDWICH,   /* r += norm(attention(norm(r))); r += norm(mlp(norm(r))) */
};

enum mlp_form {
    MLP_GATED, /* down(act(gate x) * up x) */
    MLP_PLAIN, /* down(act(up x)) */
    MLP_EXPERTS, /* of several gated ones those that a router chooses, each with its share */
};

enum qkv_layout {
    QKV_SEPARATE,     /* three tensors */
    QKV_CONCATENATED, /* one: all heads of Q, then of K, then of V */
    QKV_GROUPED,      /* one: for each KV head its heads of Q, then its K, then its V */
};

enum windows {
    WINDOWS_NONE,  /* every layer sees all that came before */
    WINDOWS_ALL,   /* `sliding_window` holds in every layer */
    WINDOWS_LATE,  /* in layers from `max_window_layers` on, or where `layer_types` says */
    WINDOWS_OTHER, /* in every other layer from the first, or where `layer_types` says */
};

enum biases { BIAS_QKV = 1, BIAS_O = 2, BIAS_MLP = 4, BIAS_NORM = 8, BIAS_HEAD = 16 };

struct key_names { /* in config.json */
    const char *hidden, *n_layers, *n_heads, *n_kv_heads; /* n_kv_heads NULL: every head has its own */
    const char *intermediate, *context, *norm_eps, *act;  /* act NULL: act_default always */
};

/* In a checkpoint, without ".weight" and ".bias"; NULL = there is none. Names of a layer follow
 * its prefix. */
struct tensor_names {
    const char *embed, *final_norm, *layer; /* layer: with %d */
    const char *attention_norm, *mlp_norm;  /* mlp_norm NULL: a parallel block with one norm */
    const char *post_attention_norm, *post_mlp_norm; /* BLOCK_SANDWICH */
    const char *q, *k, *v;                  /* k, v NULL: q is all three */
    const char *q_norm, *k_norm, *o;
    const char *gate, *up, *down;           /* up NULL: gate is gate and up, in this order */
    const char *router, *expert;            /* MLP_EXPERTS: gate, up and down follow `expert`, with %d */
    const char *fused_router, *fused_up, *fused_down; /* or all experts in one tensor [n_experts, rows, columns] */
};

struct alias { /* what older files call a key */
    const char *old, *key;
};

struct family {
    const char *model_type;
    enum norm_kind norm;
    enum block_form block;
    enum mlp_form mlp;
    const char *act_default;
    unsigned biases;              /* enum biases, or-ed */
    enum qkv_layout qkv;
    enum windows windows;
    int32_t window_default;       /* where `sliding_window` is absent; 0 = none */
    int32_t context_default, n_kv_heads_default, head_dim_default; /* 0: n_heads; hidden / n_heads */
    int32_t mlp_ratio_default;    /* intermediate / hidden where its key is absent; 0 = it must be there */
    double eps_default, theta_default; /* theta 0: no rotary embedding */
    double partial_default;           /* share of a head's dimensions that turn; 0 = all, and the file has no say */
    int32_t original_context_default; /* of longrope, and only the file's outermost key is heard; 0 = the context */
    bool tied_default;
    int32_t eos_default;              /* the stop id where `eos_token_id` is absent; 0 = none */
    const struct alias *aliases;      /* up to one without a key; NULL = none */
    const struct key_names *keys;
    const struct tensor_names *names;
    void (*specials)(struct model_config *c, struct reader *rd); /* last; may change what is above */
};

/* NULL where there is none. */
const struct family *families_find(const char *model_type);

/* "llama, mistral, ..." */
const char *families_list(void);

#endif
