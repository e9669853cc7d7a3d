/* tune_bench.c - `bench tune`: each product that the model makes, at each number of rows that a
 * step may have, timed in all the ways that the device knows. The device remembers what it finds.
 *
 * Runs on the engine thread, with operands of its own beside the model's weights. */
#include "engine/engine_call.h"
#include "engine/model/measure.h"
#include "engine/model/model_private.h"

#include <stdio.h>
#include <string.h>

enum { MAX_KINDS = 64, TIMED_RUNS = 20 };

struct kind { /* of products: weights of one shape, of which the first is multiplied */
    const char *name;
    const struct weight *weight;
    enum dtype out;
    int32_t n_weights;
    int64_t most_rows;
};

struct tuner {
    struct dev *dev;
    struct kind kinds[MAX_KINDS];
    int32_t n_kinds;
    enum dtype dtype; /* of activations */
    struct tensor x, y; /* room for the largest operands */
    engine_tuning_fn *each;
    void *arg;
};

/* ---------------------------------------------------------------- what is multiplied */

static bool is_same_kind(const struct kind *k, const struct weight *w, enum dtype out) {
    const struct weight *v = k->weight;
    return v->n == w->n && v->k == w->k && v->dtype == w->dtype && v->quant == w->quant && k->out == out;
}

static void add_weight(struct tuner *t, const char *name, const struct weight *w, enum dtype out, int64_t most_rows) {
    if (!w) return;
    for (int32_t i = 0; i < t->n_kinds; i++) {
        struct kind *k = &t->kinds[i];
        if (!is_same_kind(k, w, out)) continue;
        k->n_weights++;
        if (k->most_rows < most_rows) k->most_rows = most_rows;
        return;
    }
    if (t->n_kinds < MAX_KINDS) t->kinds[t->n_kinds++] = (struct kind){name, w, out, 1, most_rows};
}

static void add_layer(struct tuner *t, const struct model *m, const struct layer_weights *w, int64_t rows) {
    add_weight(t, "qkv", w->qkv, t->dtype, rows);
    add_weight(t, "o", w->o, t->dtype, rows);
    add_weight(t, "router", w->router, t->dtype, rows);
    add_weight(t, "up", w->up, t->dtype, rows);
    add_weight(t, "down", w->down, t->dtype, rows);
    for (int32_t e = 0; m->config.mlp == MLP_EXPERTS && e < m->weights.n_experts; e++) {
        add_weight(t, "expert up", w->expert_up[e], t->dtype, rows);
        add_weight(t, "expert down", w->expert_down[e], t->dtype, rows);
    }
}

static void add_model(struct tuner *t, const struct model *m, const struct runner_options *o) {
    for (int32_t i = 0; i < m->weights.n_layers; i++) add_layer(t, m, &m->weights.layers[i], o->max_rows);
    add_weight(t, "head", m->weights.lm_head, DTYPE_F32, o->max_samples);
}

/* ---------------------------------------------------------------- operands */

static int take(struct tuner *t, struct tensor *out, enum dtype dtype, int64_t rows, int64_t cols, struct err *err) {
    *out = tensor_2d(NULL, dtype, rows, cols);
    out->data = dev_alloc(t->dev, tensor_bytes(out));
    if (out->data) return 0;
    return err_set(err, E_NO_MEMORY, "no memory for operands of %zu MiB; lower --gpu-memory-utilization",
                   tensor_bytes(out) >> 20);
}

static int open_operands(struct tuner *t, struct err *err) {
    int64_t rows = 0, k_most = 0, y = 0;
    for (int32_t i = 0; i < t->n_kinds; i++) {
        const struct kind *k = &t->kinds[i];
        if (k->most_rows > rows) rows = k->most_rows;
        if (k->weight->k > k_most) k_most = k->weight->k;
        if (k->most_rows * k->weight->n > y) y = k->most_rows * k->weight->n;
    }
    int r = take(t, &t->x, t->dtype, rows, k_most, err);
    if (r == 0) r = take(t, &t->y, DTYPE_F32, 1, y, err);
    return r < 0 ? r : measure_fill(t->dev, &t->x, 1, 1, err);
}

/* ---------------------------------------------------------------- time */

static double seconds_of(struct tuner *t, struct product *y, const struct activation *x, const struct weight *w) {
    op_linear(t->dev, y, x, w);
    dev_stamp(t->dev, 0);
    for (int i = 0; i < TIMED_RUNS; i++) op_linear(t->dev, y, x, w);
    dev_stamp(t->dev, 1);
    return dev_stamp_ns(t->dev, 0, 1) / TIMED_RUNS / 1e9;
}

static int tune_rows(struct tuner *t, const struct kind *k, int64_t rows, struct err *err) {
    const struct weight *w = k->weight;
    struct activation x = {.x = tensor_2d(t->x.data, t->dtype, rows, w->k)};
    struct product y = {.y = tensor_2d(t->y.data, k->out, rows, w->n)};
    struct linear_tuning found;
    op_linear_tune(t->dev, &y, &x, w, &found);
    struct engine_tuning figure = {.product = k->name,
                                   .n = w->n,
                                   .k = w->k,
                                   .n_weights = k->n_weights,
                                   .n_rows = (int32_t)rows,
                                   .n_candidates = found.n_candidates,
                                   .n_right = found.n_right,
                                   .first_seconds = found.first_ns / 1e9,
                                   .seconds = found.best_ns / 1e9};
    snprintf(figure.algorithm, sizeof figure.algorithm, "%s", found.algorithm);
    if (found.best_ns == 0) figure.first_seconds = figure.seconds = seconds_of(t, &y, &x, w);
    int r = dev_sync(t->dev, err);
    if (r == 0) t->each(t->arg, &figure);
    return r;
}

/* 1, 2, 4 ... rows, and the most. */
static int tune_kind(struct tuner *t, const struct kind *k, struct err *err) {
    int r = 0;
    for (int64_t rows = 1; r == 0 && rows < k->most_rows; rows *= 2) r = tune_rows(t, k, rows, err);
    return r < 0 ? r : tune_rows(t, k, k->most_rows, err);
}

/* ---------------------------------------------------------------- the whole */

struct tune_call {
    engine_tuning_fn *each;
    void *arg;
};

static int tune(struct model *m, struct runner *runner, void *arg, struct err *err) {
    const struct tune_call *c = arg;
    struct tuner t = {.dev = m->dev, .dtype = m->dtype, .each = c->each, .arg = c->arg};
    if (!op_linear_can_tune(m->dev)) return 0;
    add_model(&t, m, runner_get_options(runner));
    runner_note_tokens(runner, false); /* random numbers come by op_embed, with ids that no sequence has */
    int r = open_operands(&t, err);
    runner_note_tokens(runner, true);
    for (int32_t i = 0; r == 0 && i < t.n_kinds; i++) r = tune_kind(&t, &t.kinds[i], err);
    dev_free(m->dev, t.x.data);
    dev_free(m->dev, t.y.data);
    return r;
}

int engine_tune(struct engine *e, engine_tuning_fn *each, void *arg, struct err *err) {
    return engine_call(e, tune, &(struct tune_call){each, arg}, err);
}
