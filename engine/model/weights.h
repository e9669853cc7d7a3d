/* weights.h - a model's weights on a device, in canonical form: Q|K|V rows in one
 * weight, gate|up in another, whatever the checkpoint's own division is. */
#ifndef BATCHD_ENGINE_MODEL_WEIGHTS_H
#define BATCHD_ENGINE_MODEL_WEIGHTS_H

#include "engine/model/config.h"
#include "engine/model/safetensors.h"
#include "kernels/dev.h"
#include "kernels/ops.h"

struct layer_weights {
    struct tensor attention_norm, mlp_norm; /* f32 [hidden] */
    struct weight *qkv;                     /* [(heads + 2 kv_heads) head_dim, hidden] */
    struct weight *o;                       /* [hidden, heads head_dim] */
    struct weight *gate_up;                 /* [2 intermediate, hidden] */
    struct weight *down;                    /* [hidden, intermediate] */
};

struct weights {
    struct layer_weights *layers;
    int32_t n_layers;
    struct weight *embed;       /* [vocab, hidden] */
    struct weight *lm_head;     /* the same as embed where they are tied */
    struct tensor final_norm;   /* f32 [hidden] */
    int64_t bytes;              /* on the device */
};

/* Copy a checkpoint's tensors to the device; each is checked for existence and
 * shape, and an error names it. checkpoint NULL: random weights, N(0, 1/sqrt K). */
int weights_load(struct weights *out, struct dev *dev, const struct model_config *c,
                 const struct checkpoint *checkpoint, enum dtype dtype, struct err *err);
void weights_clear(struct dev *dev, struct weights *w);

#endif
