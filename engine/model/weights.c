/* weights.c - see weights.h. Tensor names come from the family's description.
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
    bool keeps_fp8_blocks; /* the device does; otherwise they are loaded as numbers */
    struct weights *w;
    struct weights_plan plan;
    size_t n_used; /* checkpoint tensors that the model needs */
    uint64_t dummy_seed;
    bool is_search; /* a plan that also looks for numbers that are not finite */
    struct err *err;
};

/* ---------------------------------------------------------------- checkpoint tensors */

static void shape_text(char *out, size_t size, const struct checkpoint_tensor *t) {
    size_t n = (size_t)snprintf(out, size, "[");
    for (int32_t i = 0; i < t->n_dims; i++)
        n += (size_t)snprintf(out + n, size - n, "%s%" PRId64, i ? ", " : "", t->shape[i]);
    snprintf(out + n, size - n, "]");
}

/* A tensor of this shape, as rows of its last dimension (a vector: as rows of one). */
static int find(struct loader *l, const char *name, int32_t n_dims, const int64_t *shape, struct tensor *out) {
    const struct checkpoint_tensor *t = checkpoint_find(l->checkpoint, name);
    struct checkpoint_tensor expected = {.n_dims = n_dims};
    if (!t) return err_set(l->err, E_PARSE, "no tensor %s", name);
    if (!t->is_float)
        return err_set(l->err, E_UNSUPPORTED, "tensor %s has dtype %s; F32, F16 and BF16 are supported", name,
                       t->dtype_text);
    memcpy(expected.shape, shape, (size_t)n_dims * sizeof *shape);
    if (t->n_dims != n_dims || memcmp(t->shape, shape, (size_t)n_dims * sizeof *shape) != 0) {
        char has[200], wanted[200];
        shape_text(has, sizeof has, t);
        shape_text(wanted, sizeof wanted, &expected);
        return err_set(l->err, E_PARSE, "%s has shape %s, expected %s", name, has, wanted);
    }
    int64_t cols = n_dims > 1 ? shape[n_dims - 1] : 1, rows = shape[0];
    for (int32_t i = 1; i < n_dims - 1; i++) rows *= shape[i];
    *out = tensor_2d((void *)t->data, t->dtype, rows, cols);
    l->n_used++;
    return 0;
}

/* How the rows of a checkpoint tensor are spread over a canonical weight: n_groups times the
 * same pieces, piece i of group g going to piece_to[i] + g * piece_rows[i]. A plain tensor
 * is one piece. */
struct spread {
    int n_groups, n_pieces;
    int64_t piece_rows[3], piece_to[3];
};

static int64_t spread_rows(const struct spread *s) {
    int64_t n = 0;
    for (int i = 0; i < s->n_pieces; i++) n += s->piece_rows[i] * s->n_groups;
    return n;
}

/* One run a piece and group, in the tensor's order; the caller frees them. */
static struct weight_run *spread_runs(const struct spread *s, int *n_runs) {
    struct weight_run *runs = mem_zalloc((size_t)(s->n_groups * s->n_pieces), sizeof *runs);
    int64_t from = 0;
    *n_runs = 0;
    for (int g = 0; g < s->n_groups; g++)
        for (int i = 0; i < s->n_pieces; from += s->piece_rows[i++])
            runs[(*n_runs)++] =
                (struct weight_run){from, s->piece_to[i] + g * s->piece_rows[i], s->piece_rows[i]};
    return runs;
}

/* A tensor that the checkpoint has quantized. */
static int load_quantized(struct loader *l, struct weight *w, const struct spread *s, int64_t k, const char *name) {
    struct quantized_tensor t;
    int n_runs, r = w ? quantized_tensor_check(l->checkpoint, name, l->err) : 0;
    if (r == 0) r = quantized_tensor_read(&t, l->checkpoint, name, spread_rows(s), k, l->err);
    if (r < 0) return r;
    l->n_used += (size_t)t.n_tensors;
    struct weight_run *runs = spread_runs(s, &n_runs);
    if (w) weight_load_quantized(l->dev, w, &t.q, runs, n_runs);
    free(runs);
    quantized_tensor_clear(&t);
    return 0;
}

/* A tensor in fp8 with scales for blocks, as it is. w NULL: in a plan. */
static int keep_blocks(struct loader *l, struct weight *w, const struct spread *s, int64_t k, const char *name) {
    struct fp8_blocks t;
    int64_t rows = spread_rows(s);
    int n_runs, r = fp8_blocks_keep(w ? &t : NULL, l->checkpoint, name, rows, k, l->c->fp8_block, l->err);
    l->n_used += 2;
    if (r < 0 || !w) return r;
    struct weight_run *runs = spread_runs(s, &n_runs);
    weight_load_quantized(l->dev, w, &(struct quantized){.n_rows = rows, .codes = t.codes, .scale = t.scale}, runs, n_runs);
    free(runs);
    free(t.scale);
    return 0;
}

/* The same as numbers, from here on. */
static int expand_blocks(struct loader *l, struct weight *w, const struct spread *s, int64_t k, const char *name) {
    struct tensor t;
    int n_runs, r = fp8_blocks_read(&t, l->checkpoint, name, spread_rows(s), k, l->c->fp8_block, l->dtype, l->err);
    l->n_used += 2;
    if (r < 0) return r;
    struct weight_run *runs = spread_runs(s, &n_runs);
    weight_load_runs(l->dev, w, &t, runs, n_runs);
    r = dev_sync(l->dev, l->err); /* the numbers go now */
    if (r < 0) err_wrap(l->err, "tensor %s", name);
    free(runs);
    free(t.data);
    return r;
}

/* Numbers that are to be quantized must be finite; where the device sees to it, its error sets
 * off the search for the tensor. */
static int check_finite(const struct loader *l, const struct tensor *t, const char *name) {
    bool is_due = l->dev ? !weight_load_finds_nan(l->dev) : l->is_search;
    return is_due && l->checkpoint ? quantization_check_finite(t, name, l->err) : 0;
}

/* One checkpoint tensor's rows of a weight of k columns; w NULL in a plan. */
static int load_rows(struct loader *l, struct weight *w, const struct spread *s, int64_t k, const char *name,
                     bool quantizes) {
    struct tensor t = {0};
    int n_runs;
    l->plan.n_params += spread_rows(s) * k;
    if (l->checkpoint && quantized_kind(l->checkpoint, name) != QUANT_NONE) return load_quantized(l, w, s, k, name);
    if (l->checkpoint && fp8_blocks_is(l->checkpoint, name))
        return w && w->quant != QUANT_FP8_BLOCK ? expand_blocks(l, w, s, k, name) : keep_blocks(l, w, s, k, name);
    int r = l->checkpoint ? find(l, name, 2, (int64_t[]){spread_rows(s), k}, &t) : 0;
    if (r == 0 && quantizes) r = check_finite(l, &t, name);
    if (r < 0 || !w) return r;
    struct weight_run *runs = spread_runs(s, &n_runs);
    float deviation = (float)(1.0 / sqrt((double)k));
    if (l->checkpoint) weight_load_runs(l->dev, w, &t, runs, n_runs);
    else
        for (int i = 0; i < n_runs; i++)
            weight_random(l->dev, w, runs[i].to, runs[i].n_rows, ++l->dummy_seed, deviation);
    free(runs);
    return 0;
}

/* A bias is there exactly when config.json says so. */
static int load_bias(struct loader *l, struct weight *w, const struct spread *s, const char *name, bool expected) {
    struct tensor t;
    int n_runs;
    if (expected) l->plan.n_params += spread_rows(s);
    if (!l->checkpoint) return 0;
    if (!expected && checkpoint_find(l->checkpoint, name))
        return err_set(l->err, E_UNSUPPORTED, "tensor %s is there, but config.json says that the layer has no bias",
                       name);
    int r = expected ? find(l, name, 1, (int64_t[]){spread_rows(s)}, &t) : 0;
    if (r < 0 || !expected || !w) return r;
    struct weight_run *runs = spread_runs(s, &n_runs);
    for (int i = 0; i < n_runs; i++) {
        char *at = (char *)t.data + (size_t)runs[i].from * dtype_bytes(t.dtype);
        struct tensor numbers = tensor_1d(at, t.dtype, runs[i].n_rows);
        weight_load_bias(l->dev, w, runs[i].to, &numbers);
    }
    free(runs);
    return 0;
}

/* Random models have no outliers. Six columns of what LLM.int8 multiplies get some, so that a
 * benchmark pays for them as for a trained model's. */
enum { DUMMY_OUTLIERS = 6, DUMMY_OUTLIER = 15 };

static void add_dummy_outliers(const struct loader *l, float *values, int64_t n) {
    if (l->checkpoint || l->quantization->kind != QUANT_INT8 || n <= DUMMY_OUTLIERS) return;
    for (int64_t i = 0; i < DUMMY_OUTLIERS; i++) values[i * n / DUMMY_OUTLIERS] += DUMMY_OUTLIER;
}

/* n numbers of a norm, f32 on the device; rounded where the model computes in fewer bits. */
static int load_vector(struct loader *l, struct tensor *out, int64_t n, const char *name, float dummy) {
    struct tensor t = {0};
    l->plan.n_params += n;
    l->plan.bytes += n * (int64_t)sizeof(float);
    int r = l->checkpoint ? find(l, name, 1, &n, &t) : 0;
    if (r < 0 || !l->dev) return r;
    *out = tensor_1d(dev_alloc(l->dev, (size_t)n * sizeof(float)), DTYPE_F32, n);
    if (!out->data) return err_set(l->err, E_NO_MEMORY, "no memory for %s", name);
    float *values = mem_zalloc((size_t)n, sizeof *values);
    if (t.data) numbers_read(values, t.data, t.dtype, n);
    for (int64_t i = 0; i < n; i++) values[i] = number_rounded(t.data ? values[i] : dummy, l->dtype);
    add_dummy_outliers(l, values, n);
    dev_upload(l->dev, out->data, values, (size_t)n * sizeof *values);
    free(values);
    return 0;
}

/* part NULL: the family has no such norm. */
static int load_norm(struct loader *l, struct norm *out, int64_t n, const char *prefix, const char *part) {
    char weight[MAX_TENSOR_NAME], bias[MAX_TENSOR_NAME];
    if (!part) return 0;
    *out = (struct norm){.kind = l->c->norm, .eps = l->c->norm_eps};
    snprintf(weight, sizeof weight, "%s%s.weight", prefix, part);
    snprintf(bias, sizeof bias, "%s%s.bias", prefix, part);
    int r = load_vector(l, &out->weight, n, weight, l->c->norm == NORM_RMS_ONE_PLUS ? 0.0f : 1.0f);
    if (r == 0 && (l->c->biases & BIAS_NORM)) r = load_vector(l, &out->bias, n, bias, 0.0f);
    return r;
}

/* ---------------------------------------------------------------- canonical weights */

struct part { /* one checkpoint tensor of a weight */
    const char *name;
    struct spread spread;
};

static struct spread plain(int64_t n_rows, int64_t to) {
    return (struct spread){1, 1, {n_rows}, {to}};
}

/* Dummy weights are in fp8 with scales for blocks where config.json says that the checkpoint's are. */
static bool has_fp8_blocks(const struct loader *l, const char *name) {
    return l->checkpoint ? fp8_blocks_is(l->checkpoint, name) : l->c->fp8_block.rows > 0;
}

/* What the parts of a layer's weight become: what the checkpoint has made of them, or what
 * was asked for. One weight is of one kind. */
static int weight_kind(struct loader *l, enum quant_kind *out, const char *prefix, const struct part *parts,
                       int n_parts) {
    const struct quantization *q = l->quantization;
    bool is_skipped = false;
    int n_quantized = 0, n_in_blocks = 0;
    *out = q->kind;
    for (int i = 0; i < n_parts; i++) {
        char module[MAX_TENSOR_NAME], name[MAX_TENSOR_NAME];
        snprintf(module, sizeof module, "%s%s", prefix, parts[i].name);
        snprintf(name, sizeof name, "%s%s.weight", prefix, parts[i].name);
        enum quant_kind kind = l->checkpoint ? quantized_kind(l->checkpoint, name) : QUANT_NONE;
        if (quantization_skips(q, module)) is_skipped = true;
        n_in_blocks += has_fp8_blocks(l, name);
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
    if (*out == QUANT_NONE && n_in_blocks == n_parts && l->keeps_fp8_blocks) *out = QUANT_FP8_BLOCK;
    return 0;
}

static int64_t padded(int64_t n) {
    return (n + 15) / 16 * 16;
}

static void plan_kind(struct loader *l, enum quant_kind kind) {
    l->plan.is_quantized |= kind != QUANT_NONE;
    l->plan.has_int8 |= kind == QUANT_INT8;
}

static void plan_scratch(struct loader *l, int64_t n, int64_t k, enum quant_kind kind) {
    struct weight_scratch *most = &l->plan.scratch, s = weight_scratch_planned(n, k, l->dtype, kind);
    if (s.numbers > most->numbers) most->numbers = s.numbers;
    if (s.codes > most->codes) most->codes = s.codes;
}

static int64_t planned_bytes(const struct loader *l, int64_t n, int64_t k, enum quant_kind kind, const struct part *parts,
                             int n_parts) {
    int64_t bytes = (int64_t)weight_bytes_planned(n, k, l->dtype, kind, n_parts);
    for (int i = 0; kind == QUANT_FP8_BLOCK && i < n_parts; i++)
        bytes += quant_blocks(spread_rows(&parts[i].spread), l->c->fp8_block.rows) *
                 quant_blocks(k, l->c->fp8_block.cols) * (int64_t)sizeof(float);
    return bytes;
}

/* From the cache of what was quantized before; else it is to be kept there. What the checkpoint
 * has in the same form is not worth a copy. */
static bool is_in_cache(const struct loader *l, struct weight *w, const char *name) {
    if (w->quant == QUANT_NONE || w->quant == QUANT_FP8_BLOCK) return false;
    if (weight_cache_load(l->w->cache, l->dev, w, name)) return true;
    weight_cache_keep(l->w->cache, w, name);
    return false;
}

/* NULL when there is no memory for it. */
static struct weight *new_weight(const struct loader *l, int64_t n, int64_t k, enum quant_kind kind) {
    const struct fp8_block *block = &l->c->fp8_block;
    if (kind == QUANT_FP8_BLOCK) return weight_new_fp8_blocks(l->dev, n, k, l->dtype, block->rows, block->cols);
    struct weight *w = weight_new_quantized(l->dev, n, k, l->dtype, kind);
    if (w && kind == QUANT_INT8) w->outliers = l->quantization->outliers;
    return w;
}

/* Put the parts' rows (and biases) together in one weight of k columns. The prefix is that of a
 * layer, or "" for what is never quantized. */
static int load_weight(struct loader *l, struct weight **out, int64_t k, bool has_bias, const char *prefix,
                       const struct part *parts, int n_parts) {
    int64_t n = 0;
    enum quant_kind kind = QUANT_NONE;
    int kind_known = *prefix ? weight_kind(l, &kind, prefix, parts, n_parts) : 0;
    if (kind_known < 0) return kind_known;
    plan_kind(l, kind);
    for (int i = 0; i < n_parts; i++) n += spread_rows(&parts[i].spread);
    plan_scratch(l, n, k, kind);
    l->plan.bytes += planned_bytes(l, n, k, kind, parts, n_parts) + (has_bias ? padded(n) * 4 : 0);
    if (l->dev) {
        *out = new_weight(l, n, k, kind);
        if (!*out) return err_set(l->err, E_NO_MEMORY, "no memory for %s%s", prefix, parts[0].name);
    }
    struct weight *w = l->dev ? *out : NULL;
    char name[2 * MAX_TENSOR_NAME], bias[2 * MAX_TENSOR_NAME];
    snprintf(name, sizeof name, "%s%s", prefix, parts[0].name);
    bool is_cached = w && is_in_cache(l, w, name);
    for (int i = 0; i < n_parts; i++) {
        snprintf(name, sizeof name, "%s%s.weight", prefix, parts[i].name);
        snprintf(bias, sizeof bias, "%s%s.bias", prefix, parts[i].name);
        int r = load_rows(l, is_cached ? NULL : w, &parts[i].spread, k, name, kind != QUANT_NONE && !is_cached);
        if (r == 0) r = load_bias(l, w, &parts[i].spread, bias, has_bias);
        if (r < 0) return r;
    }
    return 0;
}

/* A weight that is one tensor of n rows. */
static int load_one(struct loader *l, struct weight **out, int64_t n, int64_t k, bool has_bias, const char *prefix,
                    const char *name) {
    const struct part part = {name, plain(n, 0)};
    return load_weight(l, out, k, has_bias, prefix, &part, 1);
}

static int load_qkv(struct loader *l, struct weight **out, const char *at) {
    const struct model_info *m = &l->c->info;
    const struct tensor_names *names = l->c->names;
    int64_t hd = m->head_dim, q = m->n_heads * hd, kv = m->n_kv_heads * hd, group = q / m->n_kv_heads;
    bool has_bias = l->c->biases & BIAS_QKV;
    switch (l->c->qkv) {
    case QKV_SEPARATE: {
        const struct part parts[] = {
            {names->q, plain(q, 0)}, {names->k, plain(kv, q)}, {names->v, plain(kv, q + kv)}};
        return load_weight(l, out, m->hidden, has_bias, at, parts, 3);
    }
    case QKV_CONCATENATED: return load_one(l, out, q + 2 * kv, m->hidden, has_bias, at, names->q);
    case QKV_GROUPED: break;
    }
    const struct part grouped = {names->q, {m->n_kv_heads, 3, {group, hd, hd}, {0, q, q + kv}}};
    return load_weight(l, out, m->hidden, has_bias, at, &grouped, 1);
}

static int load_up(struct loader *l, struct weight **out, const char *at) {
    const struct tensor_names *names = l->c->names;
    int64_t f = l->c->info.intermediate, h = l->c->info.hidden;
    bool has_bias = l->c->biases & BIAS_MLP;
    if (l->c->mlp == MLP_PLAIN) return load_one(l, out, f, h, has_bias, at, names->up);
    if (!names->up) return load_one(l, out, 2 * f, h, has_bias, at, names->gate);
    const struct part parts[] = {{names->gate, plain(f, 0)}, {names->up, plain(f, f)}};
    return load_weight(l, out, h, has_bias, at, parts, 2);
}

/* One expert's share of a tensor that holds all of them. */
static int load_slice(struct loader *l, struct weight **out, int64_t n, int64_t k, int32_t e, const char *prefix,
                      const char *part) {
    char name[MAX_TENSOR_NAME], slice_name[MAX_TENSOR_NAME + 16];
    struct tensor all;
    int64_t shape[] = {l->c->n_experts, n, k};
    snprintf(name, sizeof name, "%s%s", prefix, part);
    enum quant_kind kind = quantization_skips(l->quantization, name) ? QUANT_NONE : l->quantization->kind;
    l->plan.n_params += n * k;
    l->plan.bytes += (int64_t)weight_bytes_planned(n, k, l->dtype, kind, 1);
    plan_kind(l, kind);
    plan_scratch(l, n, k, kind);
    int r = find(l, name, 3, shape, &all);
    if (e > 0) l->n_used--; /* one tensor, however many take their share of it */
    if (r < 0) return r;
    struct tensor slice = tensor_2d((char *)all.data + (size_t)(e * n * k) * dtype_bytes(all.dtype), all.dtype, n, k);
    if (kind != QUANT_NONE) r = check_finite(l, &slice, name);
    if (r < 0 || !l->dev) return r;
    *out = new_weight(l, n, k, kind);
    if (!*out) return err_set(l->err, E_NO_MEMORY, "no memory for %s", name);
    snprintf(slice_name, sizeof slice_name, "%s#%d", name, e);
    if (!is_in_cache(l, *out, slice_name)) weight_load(l->dev, *out, 0, &slice);
    return 0;
}

static int load_expert(struct loader *l, struct layer_weights *w, int32_t e, const char *at, bool fused) {
    const struct tensor_names *names = l->c->names;
    int64_t f = l->c->info.intermediate, h = l->c->info.hidden;
    struct weight *ignored = NULL, **up = l->dev ? &w->expert_up[e] : &ignored;
    struct weight **down = l->dev ? &w->expert_down[e] : &ignored;
    if (fused) {
        int r = load_slice(l, up, 2 * f, h, e, at, names->fused_up);
        return r < 0 ? r : load_slice(l, down, h, f, e, at, names->fused_down);
    }
    char expert[MAX_TENSOR_NAME], prefix[2 * MAX_TENSOR_NAME];
    snprintf(expert, sizeof expert, names->expert, e);
    snprintf(prefix, sizeof prefix, "%s%s", at, expert);
    const struct part parts[] = {{names->gate, plain(f, 0)}, {names->up, plain(f, f)}};
    int r = load_weight(l, up, h, false, prefix, parts, 2);
    return r < 0 ? r : load_one(l, down, h, f, false, prefix, names->down);
}

/* The router keeps its dtype: a small error there sends a row to other experts. */
static int load_experts(struct loader *l, struct layer_weights *w, const char *at) {
    const struct tensor_names *names = l->c->names;
    int32_t n = l->c->n_experts;
    char fused_up[MAX_TENSOR_NAME], router[MAX_TENSOR_NAME];
    snprintf(fused_up, sizeof fused_up, "%s%s", at, names->fused_up);
    bool fused = l->checkpoint && checkpoint_find(l->checkpoint, fused_up);
    snprintf(router, sizeof router, "%s%s", at, fused ? names->fused_router : names->router);
    if (l->dev) {
        w->expert_up = mem_zalloc((size_t)n, sizeof(struct weight *));
        w->expert_down = mem_zalloc((size_t)n, sizeof(struct weight *));
    }
    int r = load_one(l, &w->router, n, l->c->info.hidden, false, "", router);
    for (int32_t e = 0; r == 0 && e < n; e++) r = load_expert(l, w, e, at, fused);
    return r;
}

static int load_mlp(struct loader *l, struct layer_weights *w, const char *at) {
    const struct model_info *m = &l->c->info;
    if (l->c->mlp == MLP_EXPERTS) return load_experts(l, w, at);
    int r = load_up(l, &w->up, at);
    if (r < 0) return r;
    return load_one(l, &w->down, m->hidden, m->intermediate, l->c->biases & BIAS_MLP, at, l->c->names->down);
}

static int load_layer(struct loader *l, int32_t i) {
    const struct model_info *m = &l->c->info;
    const struct tensor_names *names = l->c->names;
    struct layer_weights *w = &l->w->layers[i];
    int64_t h = m->hidden, q = (int64_t)m->n_heads * m->head_dim;
    char at[64];
    snprintf(at, sizeof at, names->layer, i);

    int r = load_norm(l, &w->attention_norm, h, at, names->attention_norm);
    if (r == 0) r = load_qkv(l, &w->qkv, at);
    if (r == 0 && l->c->qk_norm) r = load_norm(l, &w->q_norm, m->head_dim, at, names->q_norm);
    if (r == 0 && l->c->qk_norm) r = load_norm(l, &w->k_norm, m->head_dim, at, names->k_norm);
    if (r == 0) r = load_one(l, &w->o, h, q, l->c->biases & BIAS_O, at, names->o);
    if (r == 0) r = load_norm(l, &w->post_attention_norm, h, at, names->post_attention_norm);
    if (r == 0) r = load_norm(l, &w->mlp_norm, h, at, names->mlp_norm);
    if (r == 0) r = load_mlp(l, w, at);
    if (r == 0) r = load_norm(l, &w->post_mlp_norm, h, at, names->post_mlp_norm);
    return r;
}

static int load_all(struct loader *l) {
    const struct model_info *m = &l->c->info;
    const struct tensor_names *names = l->c->names;
    l->plan = (struct weights_plan){0};
    l->n_used = 0;
    int r = load_one(l, &l->w->embed, m->vocab, m->hidden, false, "", names->embed);
    for (int32_t i = 0; r == 0 && i < m->n_layers; i++) r = load_layer(l, i);
    if (r == 0) r = load_norm(l, &l->w->final_norm, m->hidden, "", names->final_norm);
    if (r < 0) return r;
    l->plan.tied = m->tied_embeddings || (l->checkpoint && !checkpoint_find(l->checkpoint, "lm_head.weight"));
    if (!l->plan.tied)
        return load_one(l, &l->w->lm_head, m->vocab, m->hidden, l->c->biases & BIAS_HEAD, "", "lm_head");
    if (l->c->biases & BIAS_HEAD)
        return err_set(l->err, E_UNSUPPORTED, "the embedding is also the head, which has a bias in this family");
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
    if (r == 0 && l->quantization->outliers != INT8_OUTLIERS_ROW && !l->plan.has_int8)
        return err_set(l->err, E_UNSUPPORTED, "--int8-outliers batch: none of the model's weights are int8; "
                                              "--quantization int8 makes them so");
    return r;
}

int weights_plan(struct weights_plan *out, const struct model_config *c, const struct checkpoint *checkpoint,
                 enum dtype dtype, const struct quantization *quantization, bool keeps_fp8_blocks, struct err *err) {
    struct loader l = {.c = c, .checkpoint = checkpoint, .dtype = dtype, .quantization = quantization,
                       .keeps_fp8_blocks = keeps_fp8_blocks, .err = err};
    int r = plan(&l);
    if (r == 0) *out = l.plan;
    return r;
}

static int64_t scratch_on(const struct dev *dev, const struct weights_plan *p) {
    return weight_has_scratch(dev) ? weights_scratch_bytes(p) : 0;
}

static int64_t bytes_on(const struct dev *dev, const struct weights_plan *p) {
    return p->bytes + scratch_on(dev, p);
}

/* What is needed, what there is, and a quantization that would fit: the finest of them. */
static int refuse_size(const struct loader *l, int64_t available) {
    static const char *const kinds[] = {"int8", "nf4", "nf4-dq"};
    char remedy[80] = "";
    bool is_quantized = l->quantization && l->quantization->kind != QUANT_NONE;
    for (size_t i = 0; !is_quantized && !*remedy && i < sizeof kinds / sizeof *kinds; i++) {
        struct quantization q;
        struct weights_plan p;
        if (quantization_parse(&q, kinds[i], NULL) < 0) continue;
        if (weights_plan(&p, l->c, l->checkpoint, l->dtype, &q, l->keeps_fp8_blocks, NULL) < 0) continue;
        if (bytes_on(l->dev, &p) > available) continue;
        snprintf(remedy, sizeof remedy, "; --quantization %s takes %" PRId64, kinds[i], bytes_on(l->dev, &p) >> 20);
    }
    return err_set(l->err, E_NO_MEMORY, "the weights need %" PRId64 " MiB in %s, %" PRId64 " MiB are available%s",
                   bytes_on(l->dev, &l->plan) >> 20, dtype_name(l->dtype), available >> 20, remedy);
}

/* Everything into *w, which is empty; after an error it is so again. The cache stays. */
static int load_weights(struct loader *l, struct weight_cache *cache) {
    struct weights *w = l->w;
    *w = (struct weights){.n_layers = l->c->info.n_layers, .n_experts = l->c->n_experts, .cache = cache};
    w->scratch_bytes = scratch_on(l->dev, &l->plan);
    w->layers = mem_zalloc((size_t)w->n_layers, sizeof *w->layers);
    int r = load_all(l);
    int synced = dev_sync(l->dev, r == 0 ? l->err : NULL); /* after an error too: pieces may be under way */
    if (r == 0) r = synced;
    if (r == E_PARSE && weight_load_finds_nan(l->dev)) {
        l->is_search = true;
        int found = plan(l);
        if (found < 0) r = found;
    }
    w->cache = NULL;
    if (r < 0) weights_clear(l->dev, w);
    return r;
}

static int plan_that_fits(struct loader *l) {
    int r = plan(l);
    if (r < 0) return r;
    int64_t available = dev_memory_available(l->dev);
    if (bytes_on(l->dev, &l->plan) > available) return refuse_size(l, available);
    if (l->checkpoint && checkpoint_n_tensors(l->checkpoint) > l->n_used)
        log_debug("%zu tensors of the checkpoint are not used", checkpoint_n_tensors(l->checkpoint) - l->n_used);
    return 0;
}

int weights_load(struct weights *out, struct dev *dev, const struct model_config *c,
                 const struct checkpoint *checkpoint, enum dtype dtype, const struct quantization *quantization,
                 struct weight_cache *cache, struct err *err) {
    struct weights w;
    struct loader l = {.dev = dev,
                       .c = c,
                       .checkpoint = checkpoint,
                       .dtype = dtype,
                       .quantization = quantization,
                       .keeps_fp8_blocks = weight_keeps_fp8_blocks(dev),
                       .w = &w,
                       .err = err};
    int r = plan_that_fits(&l);
    if (r == 0) r = load_weights(&l, cache);
    if (r == 0 && !weight_cache_is_whole(cache)) {
        weights_clear(dev, &w);
        r = load_weights(&l, cache);
    }
    if (r < 0) {
        weight_cache_close(cache);
        return r;
    }
    weight_cache_begin(cache, dev);
    w.cache = cache;
    *out = w;
    return 0;
}

/* ---------------------------------------------------------------- all that is held */

static struct norm *norm_at(struct layer_weights *l, int i) {
    struct norm *const norms[] = {&l->attention_norm, &l->mlp_norm, &l->post_attention_norm,
                                  &l->post_mlp_norm,  &l->q_norm,   &l->k_norm};
    return i < (int)(sizeof norms / sizeof *norms) ? norms[i] : NULL;
}

enum { LAYER_WEIGHTS = 5 };

/* Of LAYER_WEIGHTS + 2 n_experts; NULL where the layer has no such weight. */
static struct weight *weight_at(const struct layer_weights *l, int i) {
    struct weight *const weights[LAYER_WEIGHTS] = {l->qkv, l->o, l->up, l->down, l->router};
    if (i < LAYER_WEIGHTS) return weights[i];
    i -= LAYER_WEIGHTS;
    struct weight **experts = i % 2 ? l->expert_down : l->expert_up;
    return experts ? experts[i / 2] : NULL;
}

static void norm_clear(struct dev *dev, struct norm *n) {
    dev_free(dev, n->weight.data);
    dev_free(dev, n->bias.data);
}

void weights_clear(struct dev *dev, struct weights *w) {
    weight_cache_close(w->cache);
    for (int32_t i = 0; w->layers && i < w->n_layers; i++) {
        struct layer_weights *l = &w->layers[i];
        struct norm *norm;
        for (int k = 0; (norm = norm_at(l, k)); k++) norm_clear(dev, norm);
        for (int k = 0; k < LAYER_WEIGHTS + 2 * w->n_experts; k++) weight_free(dev, weight_at(l, k));
        free(l->expert_up);
        free(l->expert_down);
    }
    free(w->layers);
    if (w->lm_head != w->embed) weight_free(dev, w->lm_head);
    weight_free(dev, w->embed);
    norm_clear(dev, &w->final_norm);
    *w = (struct weights){0};
}

static int64_t norm_bytes(const struct norm *n) {
    return 4 * ((n->weight.data ? n->weight.shape[0] : 0) + (n->bias.data ? n->bias.shape[0] : 0));
}

int64_t weights_bytes(const struct weights *w) {
    int64_t bytes = (int64_t)weight_bytes(w->embed) + norm_bytes(&w->final_norm);
    if (w->lm_head != w->embed) bytes += (int64_t)weight_bytes(w->lm_head);
    for (int32_t i = 0; i < w->n_layers; i++) {
        struct layer_weights *l = &w->layers[i];
        const struct norm *norm;
        for (int k = 0; (norm = norm_at(l, k)); k++) bytes += norm_bytes(norm);
        for (int k = 0; k < LAYER_WEIGHTS + 2 * w->n_experts; k++)
            if (weight_at(l, k)) bytes += (int64_t)weight_bytes(weight_at(l, k));
    }
    return bytes;
}
