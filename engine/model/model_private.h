/* model_private.h - what model.c, forward.c and runner.c share. */
#ifndef BATCHD_ENGINE_MODEL_MODEL_PRIVATE_H
#define BATCHD_ENGINE_MODEL_MODEL_PRIVATE_H

#include "engine/model/config.h"
#include "engine/model/model.h"
#include "engine/model/weights.h"

struct model {
    struct dev *dev; /* borrowed */
    struct model_config config;
    struct weights weights;
    struct rope rope[2];              /* of a step's `rope`; the second where there is a rope_switch */
    float *alibi;                     /* on the device; NULL = none */
    struct attention_shape attention; /* of a layer without a window */
    float embed_scale;                /* rounded to the compute dtype */
    enum dtype dtype, kv_dtype;
};

/* The tensors of one step, with room for max_rows rows; views are cut to size. */
struct workspace {
    struct tensor residual; /* [T, hidden] */
    struct tensor x;        /* [T, hidden]: normed */
    struct tensor scale_x;  /* f32 [T]: of codes in x; those of `active`, and scales pending on products, are: */
    struct tensor scale_active, scale_projected, scale_projected2;
    struct tensor qkv;      /* [T, (heads + 2 kv_heads) head_dim] */
    struct tensor q;        /* [T, heads head_dim] */
    struct tensor attended; /* [T, heads head_dim] */
    struct tensor projected; /* [T, hidden]: o and down */
    struct tensor projected2; /* [T, hidden]: down beside o, in parallel blocks only */
    struct tensor up;       /* [P, 2 intermediate]: gate|up; without a gate [P, intermediate]. P = T, times a */
    struct tensor active;   /* [P, intermediate]    row's experts where there are any */
    struct tensor router;   /* [T, n_experts], and what mixtures of experts need besides */
    struct moe_room moe;    /* its `up` and `active` are the two above */
    struct tensor wanted;   /* [S, hidden]: rows that want logits */
    struct tensor logits;   /* f32 [S, vocab] */
};

struct model_folder {
    struct model_config config;    /* with all that only the weights tell */
    struct checkpoint *checkpoint; /* NULL: weights are dummies */
    struct weight_cache *cache;    /* see model_folder_begin */
    enum dtype dtype;              /* of the weights there */
};

/* The cache of quantized weights that the options ask for, read already or not; the caller's. NULL:
 * none is wanted. */
struct weight_cache *model_folder_take_cache(struct model_folder *f, const struct model_options *options);

/* Device memory of the tables of positions; max_positions 0 = the model's context. */
int64_t model_table_bytes(const struct model_config *c, int32_t max_positions);

/* Columns of `up`. */
static inline int64_t up_width(const struct model_config *c) {
    return (c->mlp == MLP_PLAIN ? 1 : 2) * (int64_t)c->info.intermediate;
}

/* One forward pass: the step's logits, bias pending. */
void forward(struct model *m, struct workspace *ws, struct kv_cache *kv, const struct step *step,
             struct product *logits);

/* `rows` rows of a tensor that has room for more. */
static inline struct tensor rows_of(const struct tensor *t, int64_t rows) {
    return tensor_2d(t->data, t->dtype, rows, t->shape[1]);
}

#endif
