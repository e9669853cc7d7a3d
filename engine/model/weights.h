/* weights.h - a model's weights on a device, in canonical form: Q|K|V rows in one
 * weight, gate|up in another, whatever the checkpoint's own division is. What a family
 * does not have is NULL, or a norm without a weight. */
#ifndef BATCHD_ENGINE_MODEL_WEIGHTS_H
#define BATCHD_ENGINE_MODEL_WEIGHTS_H

#include "engine/model/config.h"
#include "engine/model/quantization.h"
#include "engine/model/safetensors.h"
#include "engine/model/weight_cache.h"
#include "kernels/dev.h"
#include "kernels/ops.h"

struct layer_weights {
    struct norm attention_norm, mlp_norm; /* [hidden]; mlp_norm: none where a parallel block has one norm */
    struct norm post_attention_norm, post_mlp_norm; /* [hidden]: BLOCK_SANDWICH */
    struct norm q_norm, k_norm;           /* [head_dim] */
    struct weight *qkv;                   /* [(heads + 2 kv_heads) head_dim, hidden] */
    struct weight *o;                     /* [hidden, heads head_dim] */
    struct weight *router;                /* [n_experts, hidden]: MLP_EXPERTS, which has no up and down of its own */
    struct weight **expert_up, **expert_down; /* [n_experts], each as the next two */
    struct weight *up;                    /* [2 intermediate, hidden]: gate|up; MLP_PLAIN: [intermediate, hidden] */
    struct weight *down;                  /* [hidden, intermediate] */
};

struct weights {
    struct layer_weights *layers;
    int32_t n_layers, n_experts;
    int64_t scratch_bytes;      /* that a GPU holds for products with them, as planned */
    struct weight *embed;       /* [vocab, hidden] */
    struct weight *lm_head;     /* the same as embed where they are tied */
    struct norm final_norm;     /* [hidden] */
    struct weight_cache *cache; /* which may still be writing; NULL: none */
};

static inline bool norm_exists(const struct norm *n) {
    return n->weight.data != NULL;
}

struct weights_plan {
    int64_t bytes;    /* on the device, in the dtype and with the quantization asked for */
    struct weight_scratch scratch; /* on a GPU */
    int64_t n_params; /* a tied embedding counts once */
    bool is_quantized; /* some weights are, or become so */
    bool has_int8;    /* to int8 */
    bool tied;        /* the config says so, or the checkpoint has no lm_head.weight */
};

static inline int64_t weights_scratch_bytes(const struct weights_plan *p) {
    return (int64_t)(p->scratch.numbers + p->scratch.codes);
}

/* What weights_load would do: every tensor is checked for existence, dtype and
 * shape, and an error names it; nothing is allocated. checkpoint NULL: as config.json alone says.
 * Embedding, norms and lm_head are never quantized. keeps_fp8_blocks: of the device, as
 * weight_keeps_fp8_blocks says. */
int weights_plan(struct weights_plan *out, const struct model_config *c, const struct checkpoint *checkpoint,
                 enum dtype dtype, const struct quantization *quantization, bool keeps_fp8_blocks, struct err *err);

/* Plan, then copy the tensors to the device, or what the cache has of them. checkpoint NULL:
 * random weights, N(0, 1/sqrt K), norms 1, no bias. The cache is taken over, after an error too; NULL:
 * none. E_NO_MEMORY says what is needed, a GPU's scratch for products with them included, and what
 * there is. */
int weights_load(struct weights *out, struct dev *dev, const struct model_config *c,
                 const struct checkpoint *checkpoint, enum dtype dtype, const struct quantization *quantization,
                 struct weight_cache *cache, struct err *err);
void weights_clear(struct dev *dev, struct weights *w);

/* Device memory that weights and norms take. */
int64_t weights_bytes(const struct weights *w);

#endif
