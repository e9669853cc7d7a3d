/* weights.c - see weights.h. Tensor names are those of Hugging Face's Llama family. */
#include "engine/model/weights.h"
#include "base/hash.h"
#include "base/mem.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct loader {
    struct dev *dev;
    const struct model_config *c;
    const struct checkpoint *checkpoint; /* NULL = dummy weights */
    enum dtype dtype;
    uint64_t dummy_seed;
    struct weights *w;
    struct err *err;
};

/* ---------------------------------------------------------------- checkpoint tensors */

static int find(const struct loader *l, const char *name, int64_t rows, int64_t cols, struct tensor *out) {
    const struct checkpoint_tensor *t = checkpoint_find(l->checkpoint, name);
    if (!t) return err_set(l->err, E_PARSE, "no tensor %s", name);
    if (!t->is_float)
        return err_set(l->err, E_UNSUPPORTED, "tensor %s has dtype %s; F32, F16 and BF16 are supported", name,
                       t->dtype_text);
    bool fits = cols == 1 ? t->n_dims == 1 && t->shape[0] == rows
                          : t->n_dims == 2 && t->shape[0] == rows && t->shape[1] == cols;
    if (!fits && t->n_dims == 2)
        return err_set(l->err, E_PARSE, "tensor %s has shape [%" PRId64 ", %" PRId64 "], config.json makes it [%" PRId64 ", %" PRId64 "]",
                       name, t->shape[0], t->shape[1], rows, cols);
    if (!fits)
        return err_set(l->err, E_PARSE, "tensor %s has %d dimensions, the first %" PRId64 "; config.json makes it [%" PRId64 ", %" PRId64 "]",
                       name, t->n_dims, t->shape[0], rows, cols);
    *out = tensor_2d((void *)t->data, t->dtype, rows, cols);
    return 0;
}

/* Normal numbers by Box and Muller from a counter; the same on every machine. */
static void dummy_rows(struct loader *l, float *out, int64_t n, double deviation) {
    for (int64_t i = 0; i < n; i += 2) {
        uint64_t r = hash64_mix(++l->dummy_seed, 0x64756d6d79);
        double u = ((double)(r >> 32) + 0.5) / 4294967296.0, v = (double)(uint32_t)r / 4294967296.0;
        double radius = sqrt(-2.0 * log(u)) * deviation;
        out[i] = (float)(radius * cos(6.283185307179586 * v));
        if (i + 1 < n) out[i + 1] = (float)(radius * sin(6.283185307179586 * v));
    }
}

/* Rows [first, first + rows) of w from the tensor `name`. */
static int load_rows(struct loader *l, struct weight *w, int64_t first, int64_t rows, const char *name) {
    struct tensor t;
    if (l->checkpoint) {
        int r = find(l, name, rows, w->k, &t);
        if (r == 0) weight_load(l->dev, w, first, &t);
        return r;
    }
    float *numbers = mem_try_zalloc((size_t)rows, (size_t)w->k * sizeof *numbers);
    if (!numbers) return err_set(l->err, E_NO_MEMORY, "no memory for dummy weights of %s", name);
    dummy_rows(l, numbers, rows * w->k, 1.0 / sqrt((double)w->k));
    t = tensor_2d(numbers, DTYPE_F32, rows, w->k);
    weight_load(l->dev, w, first, &t);
    free(numbers);
    return 0;
}

/* A bias that config.json may promise and the checkpoint may hold; absent is none. */
static int load_bias(struct loader *l, struct weight *w, int64_t first, int64_t rows, const char *name) {
    struct tensor t;
    if (!l->checkpoint || !checkpoint_find(l->checkpoint, name)) return 0;
    int r = find(l, name, rows, 1, &t);
    if (r == 0) weight_load_bias(l->dev, w, first, &t);
    return r;
}

static int load_vector(struct loader *l, struct tensor *out, int64_t n, const char *name) {
    struct tensor t = {0};
    if (l->checkpoint) {
        int r = find(l, name, n, 1, &t);
        if (r < 0) return r;
    }
    float *values = mem_zalloc((size_t)n, sizeof *values);
    for (int64_t i = 0; i < n; i++) {
        uint16_t h = 0;
        if (!t.data) values[i] = 1.0f;
        else if (t.dtype == DTYPE_F32) memcpy(&values[i], (const char *)t.data + i * 4, 4);
        else {
            memcpy(&h, (const char *)t.data + i * 2, 2);
            values[i] = t.dtype == DTYPE_BF16 ? bf16_to_f32(h) : f16_to_f32(h);
        }
        if (l->dtype == DTYPE_BF16) values[i] = bf16_to_f32(bf16_from_f32(values[i]));
    }
    *out = tensor_1d(dev_alloc(l->dev, (size_t)n * 4), DTYPE_F32, n);
    if (out->data) dev_upload(l->dev, out->data, values, (size_t)n * 4);
    free(values);
    if (!out->data) return err_set(l->err, E_NO_MEMORY, "no memory for %s", name);
    l->w->bytes += n * 4;
    return 0;
}

/* ---------------------------------------------------------------- canonical weights */

struct part { /* one checkpoint tensor of a weight */
    const char *name;
    int64_t rows;
};

/* Put the parts' rows (and biases) under each other in one weight. */
static int load_weight(struct loader *l, struct weight **out, int64_t k, const char *prefix, const struct part *parts,
                       int n_parts) {
    int64_t n = 0, first = 0;
    for (int i = 0; i < n_parts; i++) n += parts[i].rows;
    *out = weight_new(l->dev, n, k, l->dtype);
    if (!*out)
        return err_set(l->err, E_NO_MEMORY, "no memory for %s%s: %" PRId64 " x %" PRId64 " numbers of %s; available are %" PRId64 " bytes",
                       prefix, parts[0].name, n, k, dtype_name(l->dtype), dev_memory_available(l->dev));
    for (int i = 0; i < n_parts; first += parts[i++].rows) {
        char name[160], bias[160];
        snprintf(name, sizeof name, "%s%s.weight", prefix, parts[i].name);
        snprintf(bias, sizeof bias, "%s%s.bias", prefix, parts[i].name);
        int r = load_rows(l, *out, first, parts[i].rows, name);
        if (r == 0) r = load_bias(l, *out, first, parts[i].rows, bias);
        if (r < 0) return r;
    }
    l->w->bytes += (int64_t)weight_bytes(*out);
    return 0;
}

static int load_layer(struct loader *l, int32_t i) {
    const struct model_info *m = &l->c->info;
    struct layer_weights *w = &l->w->layers[i];
    int64_t q = (int64_t)m->n_heads * m->head_dim, kv = (int64_t)m->n_kv_heads * m->head_dim;
    char prefix[64], name[128];
    snprintf(prefix, sizeof prefix, "model.layers.%d.", i);

    snprintf(name, sizeof name, "%sinput_layernorm.weight", prefix);
    int r = load_vector(l, &w->attention_norm, m->hidden, name);
    if (r == 0)
        r = load_weight(l, &w->qkv, m->hidden, prefix,
                        (struct part[]){{"self_attn.q_proj", q}, {"self_attn.k_proj", kv}, {"self_attn.v_proj", kv}}, 3);
    if (r == 0) r = load_weight(l, &w->o, q, prefix, &(struct part){"self_attn.o_proj", m->hidden}, 1);
    snprintf(name, sizeof name, "%spost_attention_layernorm.weight", prefix);
    if (r == 0) r = load_vector(l, &w->mlp_norm, m->hidden, name);
    if (r == 0)
        r = load_weight(l, &w->gate_up, m->hidden, prefix,
                        (struct part[]){{"mlp.gate_proj", m->intermediate}, {"mlp.up_proj", m->intermediate}}, 2);
    if (r == 0) r = load_weight(l, &w->down, m->intermediate, prefix, &(struct part){"mlp.down_proj", m->hidden}, 1);
    return r;
}

/* Tied where config.json says so, and where the checkpoint has no head of its own. */
static int load_head(struct loader *l) {
    const struct model_info *m = &l->c->info;
    bool tied = m->tied_embeddings || (l->checkpoint && !checkpoint_find(l->checkpoint, "lm_head.weight"));
    if (tied) {
        l->w->lm_head = l->w->embed;
        return 0;
    }
    return load_weight(l, &l->w->lm_head, m->hidden, "", &(struct part){"lm_head", m->vocab}, 1);
}

int weights_load(struct weights *out, struct dev *dev, const struct model_config *c,
                 const struct checkpoint *checkpoint, enum dtype dtype, struct err *err) {
    const struct model_info *m = &c->info;
    struct weights w = {.n_layers = m->n_layers};
    w.layers = mem_zalloc((size_t)m->n_layers, sizeof *w.layers);
    struct loader l = {dev, c, checkpoint, dtype, 0, &w, err};
    int r = load_weight(&l, &w.embed, m->hidden, "model.", &(struct part){"embed_tokens", m->vocab}, 1);
    for (int32_t i = 0; r == 0 && i < m->n_layers; i++) r = load_layer(&l, i);
    if (r == 0) r = load_vector(&l, &w.final_norm, m->hidden, "model.norm.weight");
    if (r == 0) r = load_head(&l);
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
