/* forward.c - the forward pass of the Llama family (Llama, Mistral, TinyLlama,
 * SmolLM2): pre-norm blocks of grouped-query attention with RoPE and a gated MLP.
 *
 *   r  = embed(token)
 *   for each layer:  r += O attention(rope(QKV norm(r)));  r += down(silu(gate) up)
 *   logits = head norm(r), for the rows that want them */
#include "engine/model/model_private.h"

static void attention_block(struct model *m, const struct layer_weights *w, int32_t layer, struct workspace *ws,
                            struct kv_cache *kv, const struct activation *x, struct product *out,
                            const struct step *step) {
    int64_t t = step->n_rows;
    struct product qkv = {.y = rows_of(&ws->qkv, t)};
    struct tensor q = rows_of(&ws->q, t);
    struct activation attended = {.x = rows_of(&ws->attended, t)};
    op_linear(m->dev, &qkv, x, w->qkv);
    op_qkv_finish(m->dev, &q, kv, layer, &qkv, &m->shape, &m->rope, step);
    op_attention(m->dev, &attended, &q, kv, layer, &m->shape, step);
    op_linear(m->dev, out, &attended, w->o);
}

static void mlp_block(struct model *m, const struct layer_weights *w, struct workspace *ws, const struct activation *x,
                      struct product *out, int64_t t) {
    struct product gate_up = {.y = rows_of(&ws->gate_up, t)};
    struct activation gated = {.x = rows_of(&ws->gated, t)};
    op_linear(m->dev, &gate_up, x, w->gate_up);
    op_glu(m->dev, &gated, &gate_up);
    op_linear(m->dev, out, &gated, w->down);
}

void forward(struct model *m, struct workspace *ws, struct kv_cache *kv, const struct step *step,
             struct product *logits) {
    int64_t t = step->n_rows;
    float eps = m->config.norm_eps;
    struct tensor residual = rows_of(&ws->residual, t);
    struct activation x = {.x = rows_of(&ws->x, t)};
    struct product y = {.y = rows_of(&ws->projected, t)};
    const struct product *pending = NULL; /* what the residual stream has yet to take in */

    op_embed(m->dev, &residual, m->weights.embed, step);
    for (int32_t i = 0; i < m->weights.n_layers; i++) {
        const struct layer_weights *w = &m->weights.layers[i];
        op_residual_norm(m->dev, &x, &residual, pending, &w->attention_norm, eps);
        attention_block(m, w, i, ws, kv, &x, &y, step);
        pending = &y;
        op_residual_norm(m->dev, &x, &residual, pending, &w->mlp_norm, eps);
        mlp_block(m, w, ws, &x, &y, t);
    }
    op_residual_norm(m->dev, &x, &residual, pending, &m->weights.final_norm, eps);

    struct activation wanted = {.x = rows_of(&ws->wanted, step->n_samples)};
    *logits = (struct product){.y = rows_of(&ws->logits, step->n_samples)};
    op_gather(m->dev, &wanted, &x, step);
    op_linear(m->dev, logits, &wanted, m->weights.lm_head);
}
