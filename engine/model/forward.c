/* forward.c - the forward pass of every family.
 *
 *   r  = scale embed(token)
 *   for each layer, after the form of its block:
 *     sequential   r += O attention(QKV norm(r));         r += mlp(norm(r))
 *     parallel     r += O attention(QKV norm(r)) + mlp(norm(r))
 *     sandwich     r += norm(O attention(QKV norm(r)));   r += norm(mlp(norm(r)))
 *   where mlp(x) = down(act(gate x) * up x), or without a gate down(act(up x)), or the sum of
 *   some of several, chosen by router x
 *   logits = head norm(r), for the rows that want them
 *
 * A sum into r waits for the norm that follows it, and both are one operation. What comes
 * before a product is asked for codes where that product takes them. */
#include "engine/model/model_private.h"

static bool takes_fp8(const struct model *m, const struct weight *w) {
    return op_linear_takes(m->dev, w, DTYPE_F8_E4M3);
}

/* out = O attention(QKV x) */
static void attention(struct model *m, const struct layer_weights *w, int32_t layer, struct workspace *ws,
                      struct kv_cache *kv, const struct activation *x, struct product *out, const struct step *step) {
    int64_t t = step->n_rows;
    const struct model_config *c = &m->config;
    struct product qkv = {.y = rows_of(&ws->qkv, t), .scale_room = rows_of(&ws->scale_projected2, t)}; /* z comes later */
    struct tensor q = rows_of(&ws->q, t);
    struct activation attended = {.x = rows_of(&ws->attended, t)};
    struct attention_shape shape = m->attention;
    struct head_rules rules = {.clip = c->clip_qkv, .rope = &m->rope[step->rope]};
    if (config_layer_slides(c, layer)) shape.sliding_window = c->info.sliding_window;
    if (c->qk_norm) {
        rules.q_norm = &w->q_norm;
        rules.k_norm = &w->k_norm;
    }
    op_linear(m->dev, &qkv, x, w->qkv);
    op_qkv_finish(m->dev, &q, kv, layer, &qkv, &shape, &rules, step);
    op_attention(m->dev, &attended, &q, kv, layer, &shape, step);
    op_linear(m->dev, out, &attended, w->o);
}

static void experts(struct model *m, const struct layer_weights *w, struct workspace *ws, const struct activation *x,
                    struct product *out, int64_t t) {
    const struct model_config *c = &m->config;
    struct product router = {.y = rows_of(&ws->router, t)};
    struct moe moe = {c->n_experts, c->experts_per_row, c->act, w->expert_up, w->expert_down};
    op_linear(m->dev, &router, x, w->router);
    op_moe_experts(m->dev, &out->y, x, &router, &moe, &ws->moe);
    out->weight = NULL; /* nothing is pending */
}

static void mlp(struct model *m, const struct layer_weights *w, struct workspace *ws, const struct activation *x,
                struct product *out, int64_t t) {
    struct product up = {.y = rows_of(&ws->up, t)};
    struct activation active = {.x = rows_of(&ws->active, t), .row_scale = rows_of(&ws->scale_active, t)};
    if (m->config.mlp == MLP_EXPERTS) {
        experts(m, w, ws, x, out, t);
        return;
    }
    up.scale_room = rows_of(&ws->scale_projected2, t); /* no product there before up is done with */
    active.wants_fp8 = takes_fp8(m, w->down);
    op_linear(m->dev, &up, x, w->up);
    if (m->config.mlp == MLP_GATED) op_glu(m->dev, &active, &up, m->config.act);
    else op_act(m->dev, &active, &up, m->config.act);
    op_linear(m->dev, out, &active, w->down);
}

/* Norms x for the products that come next; either may be NULL. */
static void norm_for(struct model *m, struct activation *x, struct tensor *r, const struct addend *add,
                     const struct norm *norm, const struct weight *first, const struct weight *second) {
    x->wants_fp8 = (first || second) && (!first || takes_fp8(m, first)) && (!second || takes_fp8(m, second));
    op_residual_norm(m->dev, x, r, add, norm);
}

static const struct norm *norm_or_none(const struct norm *n) {
    return norm_exists(n) ? n : NULL;
}

void forward(struct model *m, struct workspace *ws, struct kv_cache *kv, const struct step *step,
             struct product *logits) {
    int64_t t = step->n_rows;
    struct tensor r = rows_of(&ws->residual, t);
    struct activation x = {.x = rows_of(&ws->x, t), .row_scale = rows_of(&ws->scale_x, t)};
    struct product y = {.y = rows_of(&ws->projected, t), .scale_room = rows_of(&ws->scale_projected, t)};
    struct product z = {.y = rows_of(&ws->projected2, t), .scale_room = rows_of(&ws->scale_projected2, t)};
    struct addend pending = {0}; /* what r has yet to take in */

    op_embed(m->dev, &r, m->weights.embed, m->embed_scale, step);
    for (int32_t i = 0; i < m->weights.n_layers; i++) {
        const struct layer_weights *w = &m->weights.layers[i];
        bool shares_x = m->config.block == BLOCK_PARALLEL && !norm_exists(&w->mlp_norm);
        norm_for(m, &x, &r, &pending, &w->attention_norm, w->qkv, shares_x ? w->up : NULL);
        attention(m, w, i, ws, kv, &x, &y, step);
        if (m->config.block == BLOCK_PARALLEL) {
            if (!shares_x) norm_for(m, &x, &r, NULL, &w->mlp_norm, w->up, NULL);
            mlp(m, w, ws, &x, &z, t);
            pending = (struct addend){.y = &y, .z = &z};
        } else {
            pending = (struct addend){.y = &y, .post = norm_or_none(&w->post_attention_norm)};
            norm_for(m, &x, &r, &pending, &w->mlp_norm, w->up, NULL);
            mlp(m, w, ws, &x, &y, t);
            pending = (struct addend){.y = &y, .post = norm_or_none(&w->post_mlp_norm)};
        }
    }
    norm_for(m, &x, &r, &pending, &m->weights.final_norm, NULL, NULL);

    struct activation wanted = {.x = rows_of(&ws->wanted, step->n_samples)};
    *logits = (struct product){.y = rows_of(&ws->logits, step->n_samples)};
    op_gather(m->dev, &wanted, &x, step);
    op_linear(m->dev, logits, &wanted, m->weights.lm_head);
    if (m->config.logit_softcap > 0) op_logits_finish(m->dev, logits, m->config.logit_softcap);
}
