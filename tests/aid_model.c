/* aid_model.c - see aid_model.h. */
#include "tests/aid_model.h"

#include "kernels/backend.h"

#include <string.h>

static void open_device(struct rig *r, const struct rig_options *options) {
    struct err err = ERR_INIT;
    memset(r, 0, sizeof *r);
    assert_ok(dev_open(&r->dev, &(struct dev_options){.kind = test_device(), .threads = options->threads}, &err), &err);
    if (!dev_computes(r->dev, options->dtype)) { /* a GPU without bfloat16 */
        dev_close(r->dev);
        skip();
    }
}

static struct model_options options_of(const char *dir, const struct rig_options *options, const char *quantization,
                                       const struct weight_cache_options *cache, int32_t max_positions) {
    struct err err = ERR_INIT;
    struct model_options model = {
        .dir = dir, .dtype = options->dtype, .dummy = options->dummy, .max_positions = max_positions};
    if (cache) model.cache = *cache;
    assert_ok(quantization_parse(&model.quantization, quantization, &err), &err);
    return model;
}

static void open_model(struct rig *r, const struct model_options *model) {
    struct err err = ERR_INIT;
    struct runner_options runner = {
        .n_blocks = RIG_SLOTS * RIG_BLOCKS, .n_slots = RIG_SLOTS, .max_rows = RIG_ROWS, .max_samples = RIG_ROWS};
    assert_ok(model_open(&r->model, r->dev, model, &err), &err);
    assert_ok(runner_open(&r->runner, r->model, &runner, &err), &err);
    runner_keep_logits(r->runner, true);
    r->vocab = model_get_info(r->model)->vocab;
    int32_t change = model_get_info(r->model)->rope_switch;
    r->rope = change > 0 && model->max_positions > change;
    for (int32_t s = 0; s < RIG_SLOTS; s++)
        for (int32_t b = 0; b < RIG_BLOCKS; b++)
            r->table[s * RIG_BLOCKS + b] = (RIG_BLOCKS - 1 - b) * RIG_SLOTS + s;
}

static void open_rig(struct rig *r, const char *dir, const struct rig_options *options, const char *quantization,
                     const struct weight_cache_options *cache, int32_t max_positions) {
    struct model_options model = options_of(dir, options, quantization, cache, max_positions);
    open_device(r, options);
    open_model(r, &model);
}

void rig_open(struct rig *r, const char *dir, const struct rig_options *options) {
    open_rig(r, dir, options, NULL, NULL, RIG_CONTEXT);
}

void rig_open_for(struct rig *r, const char *dir, const struct rig_options *options, int32_t max_positions) {
    open_rig(r, dir, options, NULL, NULL, max_positions);
}

void rig_open_quantized(struct rig *r, const char *dir, const struct rig_options *options, const char *quantization) {
    open_rig(r, dir, options, quantization, NULL, RIG_CONTEXT);
}

void rig_open_cached(struct rig *r, const char *dir, const struct rig_options *options, const char *quantization,
                     const struct weight_cache_options *cache) {
    open_rig(r, dir, options, quantization, cache, RIG_CONTEXT);
}

void rig_open_begun(struct rig *r, const char *dir, const struct rig_options *options, enum dtype expected,
                    const char *quantization, const struct weight_cache_options *cache) {
    struct model_options model = options_of(dir, options, quantization, cache, RIG_CONTEXT), early = model;
    struct err err = ERR_INIT;
    early.dtype = expected;
    assert_ok(model_folder_open(&model.folder, dir, options->dummy, &err), &err);
    model_folder_begin(model.folder, &early);
    open_device(r, options);
    open_model(r, &model);
    model_folder_close(model.folder);
}

void rig_open_expanded(struct rig *r, const char *dir, const struct rig_options *options, const char *quantization) {
    struct model_options model = options_of(dir, options, quantization, NULL, RIG_CONTEXT);
    open_device(r, options);
    const struct backend *own = r->dev->backend;
    struct backend other = *own;
    other.keeps_fp8_blocks = false;
    r->dev->backend = &other; /* only loading asks */
    open_model(r, &model);
    r->dev->backend = own;
}

void rig_close(struct rig *r) {
    runner_close(r->runner);
    model_close(r->model);
    dev_close(r->dev);
}

void batch_add(struct batch *b, int32_t slot, const int32_t *token, int32_t first, int32_t n, int32_t n_wanted) {
    assert_true(b->n_rows + n <= RIG_ROWS && b->n_sequences < RIG_SLOTS && n_wanted <= n);
    b->sequences[b->n_sequences++] = (struct step_sequence){slot, b->n_rows, n, first};
    for (int32_t i = 0; i < n; i++, b->n_rows++) {
        b->token[b->n_rows] = token ? token[i] : ~slot;
        b->position[b->n_rows] = first + i;
        b->slot[b->n_rows] = slot;
        if (i < n - n_wanted) continue;
        b->samples[b->n_samples++] =
            (struct step_sample){.row = b->n_rows, .slot = slot, .position = first + i + 1, .top_p = 1.0f};
    }
}

void rig_submit(struct rig *r, const struct batch *b) {
    struct step step = {.n_rows = b->n_rows,
                        .token = b->token,
                        .position = b->position,
                        .slot = b->slot,
                        .n_sequences = b->n_sequences,
                        .sequences = b->sequences,
                        .block_table = r->table,
                        .block_table_stride = RIG_BLOCKS,
                        .n_samples = b->n_samples,
                        .samples = b->samples,
                        .rope = r->rope};
    struct err err = ERR_INIT;
    assert_ok(step_submit(r->runner, &step, &err), &err);
}

struct step_result rig_collect(struct rig *r) {
    struct step_result result;
    struct err err = ERR_INIT;
    assert_ok(step_collect(r->runner, &result, &err), &err);
    return result;
}

struct step_result rig_run(struct rig *r, const struct batch *b) {
    rig_submit(r, b);
    struct step_result result = rig_collect(r);
    assert_int_equal(result.n_samples, b->n_samples);
    return result;
}

int32_t rig_logits(struct rig *r, int32_t slot, const int32_t *ids, int32_t n, int32_t chunk, int32_t from,
                   float *logits) {
    int32_t drawn = -1;
    for (int32_t at = 0; at < n; at += chunk) {
        int32_t rows = n - at < chunk ? n - at : chunk;
        int32_t wanted = at + rows - (from > at ? from : at);
        struct batch b = {0};
        batch_add(&b, slot, ids + at, at, rows, wanted > 0 ? wanted : 0);
        struct step_result result = rig_run(r, &b);
        if (wanted <= 0) continue;
        size_t row = (size_t)r->vocab;
        memcpy(logits + (size_t)(at + rows - wanted - from) * row, result.logits,
               (size_t)wanted * row * sizeof *logits);
        drawn = result.drawn[wanted - 1];
    }
    return drawn;
}
