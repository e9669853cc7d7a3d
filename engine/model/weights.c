/* weights.c - see weights.h. Tensor names are those of Hugging Face's Llama family.
 *
 * One walk over the names of a model serves both functions: without a device it
 * checks and counts (the plan), with one it also loads. So nothing is allocated
 * for a checkpoint that does not fit its config.json. */
#include "engine/model/weights.h"
#include "base/log.h"
#include "base/mem.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_TENSOR_NAME = 128 };

struct loader {
    struct dev *dev; /* NULL = plan only */
    const struct model_config *c;
    const struct checkpoint *checkpoint; /* NULL = dummy weights */
    enum dtype dtype;
    const struct quantization *quantization;
    struct weights *w;
    struct weights_plan plan;
    size_t n_used; /* checkpoint tensors that the model needs */
    uint64_t dummy_seed;
    struct err *err;
};

/* ---------------------------------------------------------------- checkpoint tensors */

static void shape_text(char *out, size_t size, const struct checkpoint_tensor *t) {
    size_t n = (size_t)snprintf(out, size, "[");
    for (int32_t i = 0; i < t->n_dims; i++)
        n += (size_t)snprintf(out + n, size - n, "%s%" PRId64, i ? ", " : "", t->shape[i]);
    snprintf(out + n, size - n, "]");
}

/* n_dims 1: [rows]; 2: [rows, cols]. */
static int find(struct loader *l, const char *name, int32_t n_dims, int64_t rows, int64_t cols, struct tensor *out) {
    const struct checkpoint_tensor *t = checkpoint_find(l->checkpoint, name);
    if (!t) return err_set(l->err, E_PARSE, "no tensor %s", name);
    if (!t->is_float)
        return err_set(l->err, E_UNSUPPORTED, "tensor %s has dtype %s; F32, F16 and BF16 are supported", name,
                       t->dtype_text);
    if (t->n_dims != n_dims || t->shape[0] != rows || (n_dims == 2 && t->shape[1] != cols)) {
        char has[200], expected[64];
        shape_text(has, sizeof has, t);
        snprintf(expected, sizeof expected, n_dims == 1 ? "[%" PRId64 "]" : "[%" PRId64 ", %" PRId64 "]", rows, cols);
        return err_set(l->err, E_PARSE, "%s has shape %s, expected %s", name, has, expected);
    }
    *out = tensor_2d((void *)t->data, t->dtype, rows, cols);
    l->n_used++;
    return 0;
}

/* A tensor that the checkpoint has quantized. */
static int load_quantized(struct loader *l, struct weight *w, int64_t first, int64_t rows, int64_t k, const char *name) {
    struct quantized_tensor t;
    int r = quantized_tensor_read(&t, l->checkpoint, name, rows, k, l->err);
    if (r < 0) return r;
    l->n_used += (size_t)t.n_tensors;
    if (w) weight_load_quantized(l->dev, w, &t.q, &(struct weight_run){0, first, rows}, 1);
    quantized_tensor_clear(&t);
    return 0;
}

/* Rows [first, first + rows) of a weight of k columns; w NULL in a plan. */
static int load_rows(struct loader *l, struct weight *w, int64_t first, int64_t rows, int64_t k, const char *name) {
    struct tensor t = {0};
    l->plan.n_params += rows * k;
    if (l->checkpoint && quantized_kind(l->checkpoint, name) != QUANT_NONE)
        return load_quantized(l, w, first, rows, k, name);
    int r = l->checkpoint ? find(l, name, 2, rows, k, &t) : 0;
    if (r < 0 || !w) return r;
    if (l->checkpoint && w->quant != QUANT_NONE && (r = quantization_check_finite(&t, name, l->err)) < 0) return r;
    if (l->checkpoint) weight_load(l->dev, w, first, &t);
    else weight_random(l->dev, w, first, rows, ++l->dummy_seed, (float)(1.0 / sqrt((double)w->k)));
    return 0;
}

/* A bias is there exactly when config.json says so. */
static int load_bias(struct loader *l, struct weight *w, int64_t first, int64_t rows, const char *name, bool expected) {
    struct tensor t;
    if (expected) l->plan.n_params += rows;
    if (!l->checkpoint) return 0;
    if (!expected && checkpoint_find(l->checkpoint, name))
        return err_set(l->err, E_UNSUPPORTED, "tensor %s is there, but config.json says that the layer has no bias",
                       name);
    int r = expected ? find(l, name, 1, rows, 1, &t) : 0;
    if (r == 0 && expected && w) weight_load_bias(l->dev, w, first, &t);
    return r;
}

static float number_at(const struct tensor *t, int64_t i) {
    float f;
    uint16_t h;
    const char *at = (const char *)t->data + (size_t)i * dtype_bytes(t->dtype);
    if (t->dtype == DTYPE_F32) {
        memcpy(&f, at, sizeof f);
        return f;
    }
    memcpy(&h, at, sizeof h);
    return t->dtype == DTYPE_BF16 ? bf16_to_f32(h) : f16_to_f32(h);
}

/* A norm's weights, f32 on the device; rounded where the model computes in bf16. */
static int load_norm(struct loader *l, struct tensor *out, const char *prefix, const char *part) {
    int64_t n = l->c->info.hidden;
    char name[MAX_TENSOR_NAME];
    struct tensor t = {0};
    snprintf(name, sizeof name, "%s%s.weight", prefix, part);
    l->plan.n_params += n;
    l->plan.bytes += n * (int64_t)sizeof(float);
    int r = l->checkpoint ? find(l, name, 1, n, 1, &t) : 0;
    if (r < 0 || !l->dev) return r;
    *out = tensor_1d(dev_alloc(l->dev, (size_t)n * sizeof(float)), DTYPE_F32, n);
    if (!out->data) return err_set(l->err, E_NO_MEMORY, "no memory for %s", name);
    float *values = mem_zalloc((size_t)n, sizeof *values);
    for (int64_t i = 0; i < n; i++) {
        values[i] = t.data ? number_at(&t, i) : 1.0f;
        if (l->dtype == DTYPE_BF16) values[i] = bf16_to_f32(bf16_from_f32(values[i]));
    }
    dev_upload(l->dev, out->data, values, (size_t)n * sizeof *values);
    free(values);
    return 0;
}

/* ---------------------------------------------------------------- canonical weights */

struct part { /* one checkpoint tensor of a weight */
    const char *name;
    int64_t rows;
};

/* What the parts of a layer's weight become: what the checkpoint has made of them, or what
 * was asked for. One weight is of one kind. */
static int weight_kind(struct loader *l, enum quant_kind *out, const char *prefix, const struct part *parts,
                       int n_parts) {
    const struct quantization *q = l->quantization;
    bool is_skipped = false;
    int n_quantized = 0;
    *out = q->kind;
    for (int i = 0; i < n_parts; i++) {
        char module[MAX_TENSOR_NAME], name[MAX_TENSOR_NAME];
        snprintf(module, sizeof module, "%s%s", prefix, parts[i].name);
        snprintf(name, sizeof name, "%s%s.weight", prefix, parts[i].name);
        enum quant_kind kind = l->checkpoint ? quantized_kind(l->checkpoint, name) : QUANT_NONE;
        if (quantization_skips(q, module)) is_skipped = true;
        if (kind == QUANT_NONE) continue;
        if ((n_quantized > 0 || q->kind != QUANT_NONE) && kind != *out)
            return err_set(l->err, E_UNSUPPORTED, "tensor %s is quantized to %s already, which cannot become %s", name,
                           quant_name(kind), quant_name(*out));
        *out = kind;
        n_quantized++;
    }
    if (n_quantized > 0 && n_quantized < n_parts)
        return err_set(l->err, E_UNSUPPORTED, "of the tensors from %s%s to %s some are quantized and some are not", prefix,
                       parts[0].name, parts[n_parts - 1].name);
    if (is_skipped && n_quantized == 0) *out = QUANT_NONE;
    return 0;
}

static int64_t padded(int64_t n) {
    return (n + 15) / 16 * 16;
}

/* Put the parts' rows (and biases) under each other in one weight of k columns. */
static int load_weight(struct loader *l, struct weight **out, int64_t k, bool has_bias, const char *prefix,
                       const struct part *parts, int n_parts) {
    int64_t n = 0, first = 0;
    enum quant_kind kind = QUANT_NONE;
    bool is_layers = strncmp(prefix, "model.layers.", 13) == 0;
    int kind_known = is_layers ? weight_kind(l, &kind, prefix, parts, n_parts) : 0;
    if (kind_known < 0) return kind_known;
    l->plan.is_quantized |= kind != QUANT_NONE;
    for (int i = 0; i < n_parts; i++) n += parts[i].rows;
    l->plan.bytes += (int64_t)weight_bytes_planned(n, k, l->dtype, kind, n_parts) + (has_bias ? padded(n) * 4 : 0);
    if (l->dev) {
        *out = weight_new_quantized(l->dev, n, k, l->dtype, kind);
        if (!*out) return err_set(l->err, E_NO_MEMORY, "no memory for %s%s", prefix, parts[0].name);
    }
    for (int i = 0; i < n_parts; first += parts[i++].rows) {
        char name[MAX_TENSOR_NAME], bias[MAX_TENSOR_NAME];
        snprintf(name, sizeof name, "%s%s.weight", prefix, parts[i].name);
        snprintf(bias, sizeof bias, "%s%s.bias", prefix, parts[i].name);
        struct weight *w = l->dev ? *out : NULL;
        int r = load_rows(l, w, first, parts[i].rows, k, name);
        if (r == 0) r = load_bias(l, w, first, parts[i].rows, bias, has_bias);
        if (r < 0) return r;
    }
    return 0;
}

static int load_layer(struct loader *l, int32_t i) {
    const struct model_info *m = &l->c->info;
    struct layer_weights *w = &l->w->layers[i];
    int64_t h = m->hidden, q = (int64_t)m->n_heads * m->head_dim, kv = (int64_t)m->n_kv_heads * m->head_dim;
    bool attention_bias = l->c->attention_bias, mlp_bias = l->c->mlp_bias;
    char at[64];
    snprintf(at, sizeof at, "model.layers.%d.", i);

    const struct part qkv[] = {{"self_attn.q_proj", q}, {"self_attn.k_proj", kv}, {"self_attn.v_proj", kv}};
    const struct part o = {"self_attn.o_proj", h}, down = {"mlp.down_proj", h};
    const struct part gate_up[] = {{"mlp.gate_proj", m->intermediate}, {"mlp.up_proj", m->intermediate}};
    int r = load_norm(l, &w->attention_norm, at, "input_layernorm");
    if (r == 0) r = load_weight(l, &w->qkv, h, attention_bias, at, qkv, 3);
    if (r == 0) r = load_weight(l, &w->o, q, attention_bias, at, &o, 1);
    if (r == 0) r = load_norm(l, &w->mlp_norm, at, "post_attention_layernorm");
    if (r == 0) r = load_weight(l, &w->gate_up, h, mlp_bias, at, gate_up, 2);
    if (r == 0) r = load_weight(l, &w->down, m->intermediate, mlp_bias, at, &down, 1);
    return r;
}

static int load_all(struct loader *l) {
    const struct model_info *m = &l->c->info;
    const struct part embed = {"embed_tokens", m->vocab}, head = {"lm_head", m->vocab};
    l->plan = (struct weights_plan){0};
    l->n_used = 0;
    int r = load_weight(l, &l->w->embed, m->hidden, false, "model.", &embed, 1);
    for (int32_t i = 0; r == 0 && i < m->n_layers; i++) r = load_layer(l, i);
    if (r == 0) r = load_norm(l, &l->w->final_norm, "model.", "norm");
    if (r < 0) return r;
    l->plan.tied = m->tied_embeddings || (l->checkpoint && !checkpoint_find(l->checkpoint, "lm_head.weight"));
    if (!l->plan.tied) return load_weight(l, &l->w->lm_head, m->hidden, false, "", &head, 1);
    l->w->lm_head = l->w->embed;
    return 0;
}

/* load_all without a device. */
static int plan(struct loader *l) {
    struct loader planner = *l;
    struct weights nothing = {.layers = mem_zalloc((size_t)l->c->info.n_layers, sizeof *nothing.layers)};
    planner.dev = NULL;
    planner.w = &nothing;
    int r = load_all(&planner);
    free(nothing.layers);
    l->plan = planner.plan;
    l->n_used = planner.n_used;
    return r;
}

int weights_plan(struct weights_plan *out, const struct model_config *c, const struct checkpoint *checkpoint,
                 enum dtype dtype, const struct quantization *quantization, struct err *err) {
    struct loader l = {.c = c, .checkpoint = checkpoint, .dtype = dtype, .quantization = quantization, .err = err};
    int r = plan(&l);
    if (r == 0) *out = l.plan;
    return r;
}

int weights_load(struct weights *out, struct dev *dev, const struct model_config *c,
                 const struct checkpoint *checkpoint, enum dtype dtype, const struct quantization *quantization,
                 struct err *err) {
    struct weights w = {.n_layers = c->info.n_layers};
    struct loader l = {.dev = dev,
                       .c = c,
                       .checkpoint = checkpoint,
                       .dtype = dtype,
                       .quantization = quantization,
                       .w = &w,
                       .err = err};
    int r = plan(&l);
    if (r < 0) return r;
    if (l.plan.is_quantized && strcmp(dev_kind(dev), "cpu") != 0)
        return err_set(err, E_UNSUPPORTED, "quantized weights run on the CPU alone: --device cpu");
    int64_t available = dev_memory_available(dev);
    if (l.plan.bytes > available)
        return err_set(err, E_NO_MEMORY, "the weights need %" PRId64 " MiB in %s, %" PRId64 " MiB are available",
                       l.plan.bytes >> 20, dtype_name(dtype), available >> 20);
    if (checkpoint && checkpoint_n_tensors(checkpoint) > l.n_used)
        log_debug("%zu tensors of the checkpoint are not used", checkpoint_n_tensors(checkpoint) - l.n_used);
    w.layers = mem_zalloc((size_t)w.n_layers, sizeof *w.layers);
    r = load_all(&l);
    if (r == 0) r = dev_sync(dev, err);
    if (r < 0) weights_clear(dev, &w);
    else *out = w;
    return r;
}

void weights_clear(struct dev *dev, struct weights *w) {
    for (int32_t i = 0; w->layers && i < w->n_layers; i++) {
        struct layer_weights *l = &w->layers[i];
        dev_free(dev, l->attention_norm.data);
        dev_free(dev, l->mlp_norm.data);
        weight_free(dev, l->qkv);
        weight_free(dev, l->o);
        weight_free(dev, l->gate_up);
        weight_free(dev, l->down);
    }
    free(w->layers);
    if (w->lm_head != w->embed) weight_free(dev, w->lm_head);
    weight_free(dev, w->embed);
    dev_free(dev, w->final_norm.data);
    *w = (struct weights){0};
}
