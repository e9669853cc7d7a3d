/* runner.c - the steps of a model: KV cache, slots, and a ring of results.
 *
 * All tensors of a step are allocated when the runner opens; a step allocates
 * nothing. Results wait in a ring of RUNNER_DEPTH until they are collected. */
#include "base/clock.h"
#include "base/mem.h"
#include "engine/model/model_private.h"

#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { N_SCALES = 4 }; /* of a workspace */
enum { SMALL_ROWS = 64, MEETINGS = 4 }; /* rows of a step worth recording, and after how many like it */

struct pending { /* one step under way */
    int32_t n_samples;
    int32_t *drawn_host; /* what was drawn on its way back, in memory of dev_host_alloc */
    struct sample_logprobs *logprobs_host; /* likewise, where the step has some */
    bool has_logprobs;
    int64_t mark;    /* behind that copy */
    int64_t timed;   /* dev_step_begin's number of it */
    bool is_large, is_first; /* first: after a rest */
    float *logits;   /* on the host, [max_samples, vocab], where they are kept */
};

struct runner {
    struct model *model; /* borrowed */
    struct dev *dev;
    struct runner_options options;
    struct kv_cache *kv;
    struct workspace ws;
    int32_t *last_sample; /* on the device, [n_slots] */
    int32_t *history;     /* on the device, [n_blocks][KV_BLOCK]: see step_set_history */
    int32_t *drawn;       /* on the device, [max_samples]; of the newest step */
    struct sample_logprobs *logprobs; /* likewise */
    uint8_t meetings[SMALL_ROWS + 1]; /* of decode steps, by rows; up to MEETINGS */
    struct pending ring[RUNNER_DEPTH];
    int first, n;         /* oldest step under way, and how many */
    bool keep_logits;
    bool notes_tokens;    /* embedding writes them to the history */
    bool rested;          /* no step since the last runner_rest */
    struct engine_device_time device_time, device_time_large;
    int64_t n_growths;
};

static int room(struct runner *r, struct tensor *t, enum dtype dtype, int64_t rows, int64_t cols, struct err *err) {
    *t = tensor_2d(NULL, dtype, rows, cols);
    t->data = dev_alloc(r->dev, tensor_bytes(t));
    if (t->data) return 0;
    return err_set(err, E_NO_MEMORY, "no memory for a step's tensors of %lld x %lld; lower --max-num-batched-tokens",
                   (long long)rows, (long long)cols);
}

/* MLPs that a row goes through. */
static int64_t mlps_of_row(const struct model_config *c) {
    return c->mlp == MLP_EXPERTS ? c->experts_per_row : 1;
}

static int open_moe_room(struct runner *r, struct err *err) {
    const struct model_config *c = &r->model->config;
    int64_t t = r->options.max_rows, k = c->experts_per_row, h = c->info.hidden;
    enum dtype d = r->model->dtype;
    struct workspace *w = &r->ws;
    int e = room(r, &w->router, d, t, c->n_experts, err);
    if (e == 0) e = room(r, &w->moe.choice, DTYPE_I32, t, k, err);
    if (e == 0) e = room(r, &w->moe.share, DTYPE_F32, t, k, err);
    if (e == 0) e = room(r, &w->moe.places, DTYPE_I32, t, k, err);
    if (e == 0) e = room(r, &w->moe.first, DTYPE_I32, c->n_experts + 1, 1, err);
    if (e == 0) e = room(r, &w->moe.gathered, d, t * k, h, err);
    if (e == 0) e = room(r, &w->moe.down, d, t * k, h, err);
    w->moe.up = w->up;
    w->moe.active = w->active;
    return e;
}

static int64_t moe_row_bytes(const struct model *model) {
    const struct model_config *c = &model->config;
    if (c->mlp != MLP_EXPERTS) return 0;
    int64_t number = (int64_t)dtype_bytes(model->dtype);
    int64_t places = 2 * (int64_t)c->info.hidden * number + 3 * (int64_t)sizeof(int32_t);
    return number * c->n_experts + c->experts_per_row * places;
}

static int open_workspace(struct runner *r, struct err *err) {
    const struct model_config *c = &r->model->config;
    const struct model_info *m = &c->info;
    int64_t t = r->options.max_rows, s = r->options.max_samples;
    int64_t q = (int64_t)m->n_heads * m->head_dim, kv = (int64_t)m->n_kv_heads * m->head_dim;
    int64_t mlps = mlps_of_row(c);
    enum dtype d = r->model->dtype;
    struct workspace *w = &r->ws;
    int e = room(r, &w->residual, d, t, m->hidden, err);
    if (e == 0) e = room(r, &w->x, d, t, m->hidden, err);
    struct tensor *scales[] = {&w->scale_x, &w->scale_active, &w->scale_projected, &w->scale_projected2};
    for (int i = 0; e == 0 && i < N_SCALES; i++) e = room(r, scales[i], DTYPE_F32, t, 1, err);
    if (e == 0) e = room(r, &w->qkv, d, t, q + 2 * kv, err);
    if (e == 0) e = room(r, &w->q, d, t, q, err);
    if (e == 0) e = room(r, &w->attended, d, t, q, err);
    if (e == 0) e = room(r, &w->projected, d, t, m->hidden, err);
    if (e == 0 && c->block == BLOCK_PARALLEL) e = room(r, &w->projected2, d, t, m->hidden, err);
    if (e == 0) e = room(r, &w->up, d, t * mlps, up_width(c), err);
    if (e == 0) e = room(r, &w->active, d, t * mlps, m->intermediate, err);
    if (e == 0 && c->mlp == MLP_EXPERTS) e = open_moe_room(r, err);
    if (e == 0) e = room(r, &w->wanted, d, s, m->hidden, err);
    if (e == 0) e = room(r, &w->logits, DTYPE_F32, s, m->vocab, err);
    return e;
}

int64_t runner_tensor_bytes(const struct model *model, const struct runner_options *o) {
    const struct model_info *m = &model->config.info;
    int64_t heads = 3 * (int64_t)m->n_heads * m->head_dim + 2 * (int64_t)m->n_kv_heads * m->head_dim;
    int64_t hidden = (model->config.block == BLOCK_PARALLEL ? 4 : 3) * (int64_t)m->hidden;
    int64_t mlp = mlps_of_row(&model->config) * (up_width(&model->config) + m->intermediate);
    int64_t row = (hidden + heads + mlp) * (int64_t)dtype_bytes(model->dtype);
    row += moe_row_bytes(model) + N_SCALES * 4;
    int64_t sample = (int64_t)m->hidden * (int64_t)dtype_bytes(model->dtype) + 4 * (int64_t)m->vocab;
    return o->max_rows * row + o->max_samples * sample;
}

/* Lists that requests bring have no bound; these are long ones. */
enum { BANNED_OF_SAMPLE = 16, LISTED = 1 << 16 };

struct step_limits runner_limits(const struct model *model, const struct runner_options *o) {
    const struct model_info *m = &model->config.info;
    int32_t n_blocks = (o->max_len + KV_BLOCK - 1) / KV_BLOCK;
    return (struct step_limits){.n_rows = o->max_rows,
                                .n_samples = o->max_samples,
                                .n_slots = o->n_slots,
                                .n_blocks = o->max_len > 0 && n_blocks < o->n_blocks ? n_blocks : o->n_blocks,
                                .n_banned = o->max_samples * BANNED_OF_SAMPLE,
                                .n_bias = LISTED,
                                .n_allowed = LISTED,
                                .vocab = m->vocab,
                                .kv_dtype = model->kv_dtype,
                                .head_dim = m->head_dim,
                                .n_heads = m->n_heads,
                                .n_kv_heads = m->n_kv_heads};
}

int64_t runner_step_bytes(const struct model *model, const struct runner_options *o) {
    struct step_limits limits = runner_limits(model, o);
    return runner_tensor_bytes(model, o) + step_reserve_bytes(model->dev, &limits);
}

/* The system hands out more memory than there is, so ask before. */
static int open_kv_cache(struct runner *r, struct err *err) {
    const struct model_info *m = &r->model->config.info;
    int64_t block = kv_cache_block_bytes(r->model->kv_dtype, m->n_layers, m->n_kv_heads, m->head_dim);
    int64_t available = dev_memory_available(r->dev);
    if (r->options.n_blocks > available / block)
        return err_set(err, E_NO_MEMORY,
                       "%d KV blocks need %" PRId64 " KiB each, %" PRId64
                       " MiB are available; lower --kv-cache-memory-bytes",
                       r->options.n_blocks, block >> 10, available >> 20);
    return kv_cache_open(&r->kv, r->dev, r->model->kv_dtype, m->n_layers, r->options.n_blocks, m->n_kv_heads, m->head_dim,
                         err);
}

/* What is drawn, and what draws need to know. */
static bool open_samples(struct runner *r) {
    size_t samples = (size_t)r->options.max_samples, logprobs = samples * sizeof(struct sample_logprobs);
    r->last_sample = dev_alloc(r->dev, (size_t)r->options.n_slots * sizeof *r->last_sample);
    r->history = dev_alloc(r->dev, (size_t)r->options.n_blocks * KV_BLOCK * sizeof *r->history);
    r->drawn = dev_alloc(r->dev, samples * sizeof *r->drawn);
    r->logprobs = dev_alloc(r->dev, logprobs);
    bool ok = r->last_sample && r->history && r->drawn && r->logprobs;
    for (int i = 0; i < RUNNER_DEPTH; i++) {
        struct pending *p = &r->ring[i];
        p->drawn_host = dev_host_alloc(r->dev, samples * sizeof *p->drawn_host);
        p->logprobs_host = dev_host_alloc(r->dev, logprobs);
        ok = ok && p->drawn_host && p->logprobs_host;
    }
    step_set_last_sample(r->dev, r->last_sample);
    step_set_history(r->dev, r->history);
    r->notes_tokens = true;
    return ok;
}

static void reserve_product(struct runner *r, const struct weight *w) {
    int64_t rows = r->options.max_rows > r->options.max_samples ? r->options.max_rows : r->options.max_samples;
    if (w) op_linear_reserve(r->dev, w, rows);
}

/* So that a step allocates nothing: what its operations need beside their tensors. */
static int reserve(struct runner *r, struct err *err) {
    const struct weights *w = &r->model->weights;
    struct step_limits limits = runner_limits(r->model, &r->options);
    step_reserve(r->dev, &limits);
    for (int32_t i = 0; i < w->n_layers; i++) {
        const struct layer_weights *l = &w->layers[i];
        const struct weight *all[] = {l->qkv, l->o, l->router, l->up, l->down};
        for (size_t k = 0; k < sizeof all / sizeof *all; k++) reserve_product(r, all[k]);
        for (int32_t e = 0; l->expert_up && e < w->n_experts; e++) {
            reserve_product(r, l->expert_up[e]);
            reserve_product(r, l->expert_down[e]);
        }
    }
    reserve_product(r, w->lm_head);
    return dev_sync(r->dev, err);
}

int runner_open(struct runner **out, struct model *m, const struct runner_options *options, struct err *err) {
    struct runner *r = mem_zalloc(1, sizeof *r);
    r->model = m;
    r->dev = m->dev;
    r->options = *options;
    r->rested = true;
    int e = open_kv_cache(r, err);
    if (e == 0) e = open_workspace(r, err);
    if (e < 0) {
        runner_close(r);
        return e;
    }
    bool ok = open_samples(r);
    if (!ok) {
        runner_close(r);
        return err_set(err, E_NO_MEMORY, "no memory for the slots of %d sequences; lower --max-num-seqs",
                       options->n_slots);
    }
    e = reserve(r, err);
    if (e < 0) {
        runner_close(r);
        return e;
    }
    *out = r;
    return 0;
}

void runner_close(struct runner *r) {
    if (!r) return;
    struct workspace *w = &r->ws;
    struct tensor *all[] = {&w->residual, &w->x,      &w->qkv,        &w->q,         &w->attended, &w->projected,
                            &w->projected2, &w->up,   &w->active,     &w->router,    &w->moe.choice, &w->moe.share,
                            &w->moe.places, &w->moe.first, &w->moe.gathered, &w->moe.down, &w->wanted,
                            &w->logits, &w->scale_x, &w->scale_active, &w->scale_projected, &w->scale_projected2};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) dev_free(r->dev, all[i]->data);
    for (int i = 0; i < RUNNER_DEPTH; i++) {
        dev_host_free(r->dev, r->ring[i].drawn_host);
        dev_host_free(r->dev, r->ring[i].logprobs_host);
        free(r->ring[i].logits);
    }
    step_set_history(r->dev, NULL);
    dev_free(r->dev, r->last_sample);
    dev_free(r->dev, r->drawn);
    dev_free(r->dev, r->logprobs);
    dev_free(r->dev, r->history);
    kv_cache_close(r->dev, r->kv);
    free(r);
}

const struct runner_options *runner_get_options(const struct runner *r) {
    return &r->options;
}

void runner_keep_logits(struct runner *r, bool keep) {
    size_t n = (size_t)r->options.max_samples * (size_t)r->model->config.info.vocab;
    r->keep_logits = keep;
    for (int i = 0; keep && i < RUNNER_DEPTH; i++)
        if (!r->ring[i].logits) r->ring[i].logits = mem_zalloc(n, sizeof(float));
}

static void run_step(struct runner *r, const struct step *step, struct product *logits) {
    forward(r->model, &r->ws, r->kv, step, logits);
    op_sample(r->dev, r->drawn, r->last_sample, r->logprobs, logits, step);
}

/* A step of a few decode rows is the same launches every time. Its number of rows, or 0
 * where it is none or the device cannot record. */
static int32_t small_rows(const struct runner *r, const struct step *host) {
    bool is_decode = host->n_sequences == host->n_rows && host->n_samples == host->n_rows;
    if (!is_decode || host->n_rows > SMALL_ROWS || host->has_adjusted || host->has_logprobs) return 0;
    if (r->keep_logits || !dev_can_record(r->dev)) return 0;
    for (int32_t i = 0; i < host->n_samples; i++) /* banned ids lie before what the graph knows the place of */
        if (host->samples[i].n_banned > 0) return 0;
    return host->n_rows;
}

static void run_or_replay(struct runner *r, const struct step *host, const struct step *step, struct product *logits) {
    int32_t rows = small_rows(r, host);
    uint64_t key = (uint64_t)step->block_table_stride << 16 | (uint64_t)rows << 2 | (uint64_t)host->rope << 1 | r->notes_tokens;
    if (rows > 0 && dev_replay(r->dev, key)) return;
    bool record = rows > 0 && r->meetings[rows] >= MEETINGS;
    if (rows > 0 && !record) r->meetings[rows]++;
    if (record) dev_record(r->dev);
    run_step(r, step, logits);
    if (record) dev_record_end(r->dev, key);
}

static void submit(struct runner *r, const struct step *step) {
    struct pending *p = &r->ring[(r->first + r->n) % RUNNER_DEPTH];
    const struct step *on_device = step_upload(r->dev, step);
    struct product logits;
    p->timed = dev_step_begin(r->dev);
    p->is_first = r->rested;
    p->is_large = step->n_rows >= ENGINE_LARGE_STEP;
    r->rested = false;
    run_or_replay(r, step, on_device, &logits);
    dev_step_end(r->dev);
    p->n_samples = step->n_samples;
    p->has_logprobs = step->has_logprobs;
    if (r->keep_logits && step->n_samples > 0) {
        op_logits_finish(r->dev, &logits, 0.0f); /* the sampler took the bias itself */
        dev_download(r->dev, p->logits, logits.y.data, tensor_bytes(&logits.y));
    }
    dev_fetch(r->dev, p->drawn_host, r->drawn, (size_t)p->n_samples * sizeof *p->drawn_host);
    if (p->has_logprobs)
        dev_fetch(r->dev, p->logprobs_host, r->logprobs, (size_t)p->n_samples * sizeof *p->logprobs_host);
    p->mark = dev_mark(r->dev);
    r->n++;
}

int step_submit(struct runner *r, const struct step *step, struct err *err) {
    assert(r->n < RUNNER_DEPTH);
    assert(step->n_rows > 0 && step->n_rows <= r->options.max_rows && step->n_samples <= r->options.max_samples);
    int64_t n_growths = dev_n_growths(r->dev);
    bool forbidden = mem_forbid(true);
    submit(r, step);
    mem_forbid(forbidden);
    r->n_growths += dev_n_growths(r->dev) - n_growths;
    return 0;
}

int64_t runner_n_growths(const struct runner *r) {
    return r->n_growths;
}

static void add_time(struct engine_device_time *to, const struct dev_step_time *t, bool is_first) {
    to->n_steps++;
    to->busy_ns += t->busy_ns;
    if (!is_first) to->idle_ns += t->gap_ns;
}

void runner_device_time(const struct runner *r, struct engine_device_time *all, struct engine_device_time *large) {
    *all = r->device_time;
    *large = r->device_time_large;
}

void runner_rest(struct runner *r) {
    r->rested = true;
}

void runner_note_tokens(struct runner *r, bool on) {
    r->notes_tokens = on;
    step_set_history(r->dev, on ? r->history : NULL);
}

int step_collect(struct runner *r, struct step_result *out, struct err *err) {
    assert(r->n > 0);
    struct pending *p = &r->ring[r->first];
    r->first = (r->first + 1) % RUNNER_DEPTH;
    r->n--;
    int e = dev_wait(r->dev, p->mark, err);
    if (e < 0) return e;
    struct dev_step_time t = dev_step_time(r->dev, p->timed);
    add_time(&r->device_time, &t, p->is_first);
    if (p->is_large) add_time(&r->device_time_large, &t, p->is_first);
    *out = (struct step_result){p->drawn_host, p->has_logprobs ? p->logprobs_host : NULL,
                                r->keep_logits ? p->logits : NULL, p->n_samples};
    return 0;
}

/* Every product of a step, with nothing between them. */
static void matmuls(struct runner *r, int64_t t) {
    struct model *m = r->model;
    struct workspace *ws = &r->ws;
    struct activation x = {.x = rows_of(&ws->x, t)}, attended = {.x = rows_of(&ws->attended, t)};
    struct activation active = {.x = rows_of(&ws->active, t)};
    struct product qkv = {.y = rows_of(&ws->qkv, t)}, y = {.y = rows_of(&ws->projected, t)};
    struct product up = {.y = rows_of(&ws->up, t)};
    for (int32_t i = 0; i < m->weights.n_layers; i++) {
        const struct layer_weights *w = &m->weights.layers[i];
        op_linear(r->dev, &qkv, &x, w->qkv);
        op_linear(r->dev, &y, &attended, w->o);
        bool is_mixture = m->config.mlp == MLP_EXPERTS;
        for (int32_t e = 0; e < mlps_of_row(&m->config); e++) {
            op_linear(r->dev, &up, &x, is_mixture ? w->expert_up[e] : w->up);
            op_linear(r->dev, &y, &active, is_mixture ? w->expert_down[e] : w->down);
        }
    }
    int64_t s = t < r->options.max_samples ? t : r->options.max_samples;
    struct activation wanted = {.x = rows_of(&ws->wanted, s)};
    struct product logits = {.y = rows_of(&ws->logits, s)};
    op_linear(r->dev, &logits, &wanted, m->weights.lm_head);
}

int runner_matmul_rate(struct runner *r, int32_t n_rows, double seconds, double *rows_per_s, struct err *err) {
    assert(r->n == 0);
    if (n_rows < 1 || n_rows > r->options.max_rows)
        return err_set(err, E_RANGE, "%d rows are not in 1 .. %d", n_rows, r->options.max_rows);
    matmuls(r, n_rows); /* caches and clocks warm up */
    int e = dev_sync(r->dev, err);
    int64_t start = clock_mono_ns(), now = start, steps = 0;
    while (e == 0 && now - start < (int64_t)(seconds * 1e9)) {
        matmuls(r, n_rows);
        e = dev_sync(r->dev, err);
        now = clock_mono_ns();
        steps++;
    }
    if (e == 0) *rows_per_s = (double)steps * n_rows / ((double)(now - start) / 1e9);
    return e;
}
