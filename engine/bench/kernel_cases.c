/* kernel_cases.c - the operations of a forward pass at the sizes at which engines run them. */
#include "engine/bench/kernel_bench.h"

#include <stdio.h>

/* Fewer and smaller on the CPU, whose kernels are a thousand times slower. */
enum { MOST_ROWS = 4096, MOST_ROWS_CPU = 64, SAMPLES = 2048, SAMPLES_CPU = 32 };

static int32_t rows_of_step(const struct kernel_bench *b) {
    return b->is_cpu ? MOST_ROWS_CPU : MOST_ROWS;
}

static int32_t samples_of_step(const struct kernel_bench *b) {
    return b->is_cpu ? SAMPLES_CPU : SAMPLES;
}

static double bytes_of(const struct kernel_bench *b, double numbers) {
    return numbers * (double)dtype_bytes(b->dtype);
}

enum { SETS = 64 }; /* room for as many as bench_sets gives */

/* ---------------------------------------------------------------- matrix products */

struct linear {
    const struct weight *weights[SETS];
    int32_t n_sets;
    struct activation x;
    struct product y;
};

static void run_linear(struct kernel_bench *b, void *arg, int32_t i) {
    struct linear *l = arg;
    op_linear(b->dev, &l->y, &l->x, l->weights[i % l->n_sets]);
}

/* y[M, n] = x[M, k] w[n, k]^T for several M. The bytes are the weight's alone. */
static const int32_t all_rows[] = {1, 8, 64, 512, 2048, 4096};

static void one_linear(struct kernel_bench *b, const char *name, int64_t n, int64_t k, enum quant_kind quant,
                       enum dtype y_dtype) {
    double bytes = (double)weight_bytes_planned(n, k, b->dtype, quant, 1);
    struct linear l = {.n_sets = bench_sets(b, bytes)};
    for (int32_t i = 0; i < l.n_sets; i++) l.weights[i] = bench_weight(b, n, k, quant);
    struct tensor x = bench_tensor(b, b->dtype, rows_of_step(b), k);
    struct tensor y = bench_tensor(b, y_dtype, rows_of_step(b), n);
    for (size_t i = 0; i < sizeof all_rows / sizeof *all_rows && all_rows[i] <= rows_of_step(b); i++) {
        int64_t m = all_rows[i];
        char kernel[32], what[48];
        l.x.x = tensor_2d(x.data, x.dtype, m, k);
        l.y.y = tensor_2d(y.data, y.dtype, m, n);
        snprintf(kernel, sizeof kernel, "linear %s", name);
        snprintf(what, sizeof what, "M %d, N %d, K %d", (int)m, (int)n, (int)k);
        bench_time(b, kernel, what, bytes, 2.0 * (double)m * (double)n * (double)k, run_linear, &l, l.n_sets);
    }
    bench_case_end(b);
}

void bench_linear(struct kernel_bench *b) {
    const struct kernel_shape *s = b->shape;
    int64_t q = (int64_t)s->n_heads * s->head_dim, kv = (int64_t)s->n_kv_heads * s->head_dim;
    one_linear(b, "qkv", q + 2 * kv, s->hidden, b->quant, b->dtype);
    one_linear(b, "o", s->hidden, q, b->quant, b->dtype);
    if (s->gated) one_linear(b, "gate_up", 2 * (int64_t)s->intermediate, s->hidden, b->quant, b->dtype);
    else one_linear(b, "up", s->intermediate, s->hidden, b->quant, b->dtype);
    one_linear(b, "down", s->hidden, s->intermediate, b->quant, b->dtype);
    one_linear(b, "lm_head", s->vocab, s->hidden, QUANT_NONE, DTYPE_F32);
}

/* ---------------------------------------------------------------- mixtures of experts */

enum { MOST_EXPERTS = 64 };

struct experts {
    struct weight *up[MOST_EXPERTS], *down[MOST_EXPERTS];
    struct moe moe;
    struct moe_room room;
    struct tensor out, router, x; /* with room for the most rows */
    int64_t m;
};

static struct tensor first_rows(const struct tensor *t, int64_t m) {
    return tensor_2d(t->data, t->dtype, m, t->shape[1]);
}

static void run_experts(struct kernel_bench *b, void *arg, int32_t i) {
    struct experts *e = arg;
    struct tensor out = first_rows(&e->out, e->m);
    struct activation x = {.x = first_rows(&e->x, e->m)};
    struct product router = {.y = first_rows(&e->router, e->m)};
    op_moe_experts(b->dev, &out, &x, &router, &e->moe, &e->room);
}

/* What it holds is written before it is read. */
static struct tensor integers(struct kernel_bench *b, int64_t rows, int64_t cols) {
    struct tensor t = bench_tensor(b, DTYPE_F32, rows, cols);
    t.dtype = DTYPE_I32;
    return t;
}

static void take_experts(struct kernel_bench *b, struct experts *e, int64_t t) {
    const struct kernel_shape *s = b->shape;
    int64_t h = s->hidden, f = s->intermediate, places = t * s->top_k;
    for (int32_t i = 0; i < s->n_experts; i++) {
        e->up[i] = bench_weight(b, 2 * f, h, b->quant);
        e->down[i] = bench_weight(b, h, f, b->quant);
    }
    e->moe = (struct moe){s->n_experts, s->top_k, ACT_SILU, e->up, e->down};
    e->out = bench_tensor(b, b->dtype, t, h);
    e->x = bench_tensor(b, b->dtype, t, h);
    e->router = bench_tensor(b, b->dtype, t, s->n_experts);
    e->room = (struct moe_room){.choice = integers(b, t, s->top_k),
                                .share = bench_tensor(b, DTYPE_F32, t, s->top_k),
                                .places = integers(b, t, s->top_k),
                                .first = integers(b, s->n_experts + 1, 1),
                                .gathered = bench_tensor(b, b->dtype, places, h),
                                .up = bench_tensor(b, b->dtype, places, 2 * f),
                                .active = bench_tensor(b, b->dtype, places, f),
                                .down = bench_tensor(b, b->dtype, places, h)};
}

/* M rows that choose at random. The bytes are the weights of as many experts as so many rows
 * choose on the average. */
void bench_experts(struct kernel_bench *b) {
    const struct kernel_shape *s = b->shape;
    struct experts e;
    if (s->n_experts == 0 || !op_has_moe_experts(b->dev)) return;
    take_experts(b, &e, rows_of_step(b));
    double numbers = 3.0 * s->hidden * s->intermediate, unchosen = 1;
    double bytes = b->error ? 0 : (double)(weight_bytes(e.up[0]) + weight_bytes(e.down[0]));
    int32_t rows = 0;
    for (size_t i = 0; i < sizeof all_rows / sizeof *all_rows && all_rows[i] <= rows_of_step(b); i++) {
        for (; rows < all_rows[i]; rows++) unchosen *= 1 - (double)s->top_k / s->n_experts;
        char what[48];
        e.m = all_rows[i];
        snprintf(what, sizeof what, "M %d, %d of %d experts", rows, s->top_k, s->n_experts);
        bench_time(b, "experts", what, bytes * s->n_experts * (1 - unchosen),
                   2.0 * rows * s->top_k * numbers, run_experts, &e, 1);
    }
    bench_case_end(b);
}

/* ---------------------------------------------------------------- attention */

static struct attention_shape attention_of(const struct kernel_shape *s) {
    return (struct attention_shape){
        .n_heads = s->n_heads, .n_kv_heads = s->n_kv_heads, .head_dim = s->head_dim, .scale = 0.1f};
}

struct attention {
    struct activation out;
    struct tensor q;
    struct attention_shape shape;
    const struct step *step;
};

static void run_attention(struct kernel_bench *b, void *arg, int32_t i) {
    struct attention *a = arg;
    op_attention(b->dev, &a->out, &a->q, b->kv, i % b->kv->n_layers, &a->shape, a->step);
}

/* What a runner of such steps takes before the first. */
static void reserve_step(struct kernel_bench *b, const struct step *s, enum dtype kv_dtype) {
    step_reserve(b->dev, &(struct step_limits){.n_rows = s->n_rows,
                                               .n_slots = s->n_sequences,
                                               .n_blocks = s->block_table_stride,
                                               .kv_dtype = kv_dtype,
                                               .head_dim = b->shape->head_dim,
                                               .n_heads = b->shape->n_heads,
                                               .n_kv_heads = b->shape->n_kv_heads});
}

/* n_seqs sequences of `rows` rows each behind `first` positions, in each layer of a cache. */
static void one_attention(struct kernel_bench *b, enum dtype kv_dtype, const char *kernel, const char *what,
                          int32_t n_seqs, int32_t first, int32_t rows, double bytes, double flop) {
    int64_t width = (int64_t)b->shape->n_heads * b->shape->head_dim;
    int32_t n_layers = bytes > 0 ? bench_sets(b, bytes) : 1;
    struct bench_step s;
    struct attention a = {.shape = attention_of(b->shape)};
    bench_step_init(&s, n_seqs, first, rows, false);
    bench_kv(b, kv_dtype, n_layers, s.n_blocks);
    a.q = bench_tensor(b, b->dtype, s.step.n_rows, width);
    a.out.x = bench_tensor(b, b->dtype, s.step.n_rows, width);
    if (b->error == 0) {
        reserve_step(b, &s.step, kv_dtype);
        a.step = step_upload(b->dev, &s.step);
    }
    bench_time(b, kernel, what, bytes, flop, run_attention, &a, n_layers);
    bench_case_end(b);
    bench_step_clear(&s);
}

/* One row of each of n sequences. */
static void decode(struct kernel_bench *b, enum dtype kv_dtype, int32_t context, int32_t n) {
    double position = (double)kv_cache_block_bytes(kv_dtype, 1, b->shape->n_kv_heads, b->shape->head_dim) / KV_BLOCK;
    char what[48];
    snprintf(what, sizeof what, "context %d, %d sequence%s", context, n, n == 1 ? "" : "s");
    one_attention(b, kv_dtype, kv_dtype == b->dtype ? "attention decode" : "attention decode fp8", what, n, context - 1,
                  1, position * n * context, 0);
}

/* As many sequences as fill the device: 4 GB of keys and values in a layer, as an engine has with
 * most of an H200's memory, and no more than it runs at once. */
static void crowded_decode(struct kernel_bench *b, enum dtype kv_dtype, int32_t context) {
    const struct kernel_shape *s = b->shape;
    double position = (double)kv_cache_block_bytes(kv_dtype, 1, s->n_kv_heads, s->head_dim) / KV_BLOCK;
    double all = b->is_cpu ? 4e6 : 4e9;
    double available = (double)dev_memory_available(b->dev) / 4;
    if (all > available) all = available;
    int32_t n = (int32_t)(all / position / context), most = b->is_cpu ? 16 : 2048;
    if (n > most) n = most;
    decode(b, kv_dtype, context, n < 1 ? 1 : n);
}

/* Few long ones: the tail of a job. */
static void lonely_decode(struct kernel_bench *b, enum dtype kv_dtype) {
    static const int32_t cases[][2] = {{2048, 1}, {8192, 1}, {8192, 8}, {32768, 1}}; /* the CPU: the first */
    for (int i = 0; i < (b->is_cpu ? 1 : 4); i++) decode(b, kv_dtype, cases[i][0], cases[i][1]);
}

/* Whole prompts, 8,192 rows together; the causal half counts. */
static void prefill(struct kernel_bench *b, enum dtype kv_dtype, int32_t length) {
    const struct kernel_shape *s = b->shape;
    int32_t n = (b->is_cpu ? 256 : 8192) / length;
    double pairs = (double)length * (length + 1) / 2;
    char what[48];
    snprintf(what, sizeof what, "%d prompts of %d", n, length);
    one_attention(b, kv_dtype, kv_dtype == b->dtype ? "attention prefill" : "attention prefill fp8", what, n, 0, length, 0,
                  4.0 * n * s->n_heads * s->head_dim * pairs);
}

void bench_attention(struct kernel_bench *b) {
    static const int32_t contexts[] = {128, 512, 1024, 2048}, lengths[] = {512, 2048, 8192};
    const enum dtype caches[] = {b->dtype, DTYPE_F8_E4M3};
    for (int c = 0; c < 2; c++) {
        for (int i = 0; i < (b->is_cpu ? 2 : 4); i++) crowded_decode(b, caches[c], contexts[i]);
        lonely_decode(b, caches[c]);
        if (b->is_cpu) prefill(b, caches[c], 128);
        for (int i = 0; i < 3 && !b->is_cpu; i++) prefill(b, caches[c], lengths[i]);
    }
}

/* ---------------------------------------------------------------- row by row */

struct rows {
    struct tensor in[SETS], out[SETS]; /* what is read, and written */
    struct tensor residual[SETS], also_in[SETS];
    struct norm norm;
    const struct weight *table;
    const struct step *step;
    struct attention_shape shape;
    int32_t n_sets;
};

static void run_norm(struct kernel_bench *b, void *arg, int32_t i) {
    struct rows *r = arg;
    int32_t k = i % r->n_sets;
    struct product y = {.y = r->in[k]}, z = {.y = r->also_in[k]};
    struct activation out = {.x = r->out[k]};
    struct addend add = {.y = &y, .z = b->shape->parallel ? &z : NULL};
    op_residual_norm(b->dev, &out, &r->residual[k], &add, &r->norm);
}

static void run_qkv(struct kernel_bench *b, void *arg, int32_t i) {
    struct rows *r = arg;
    int32_t k = i % r->n_sets;
    struct product qkv = {.y = r->in[k]};
    op_qkv_finish(b->dev, &r->out[k], b->kv, k, &qkv, &r->shape, &(struct head_rules){.rope = &b->rope}, r->step);
}

static void run_glu(struct kernel_bench *b, void *arg, int32_t i) {
    struct rows *r = arg;
    int32_t k = i % r->n_sets;
    struct product gate_up = {.y = r->in[k]};
    struct activation out = {.x = r->out[k]};
    op_glu(b->dev, &out, &gate_up, ACT_SILU);
}

static void run_act(struct kernel_bench *b, void *arg, int32_t i) {
    struct rows *r = arg;
    int32_t k = i % r->n_sets;
    struct product y = {.y = r->in[k]};
    struct activation out = {.x = r->out[k]};
    op_act(b->dev, &out, &y, ACT_GELU_TANH);
}

static void run_gather(struct kernel_bench *b, void *arg, int32_t i) {
    struct rows *r = arg;
    int32_t k = i % r->n_sets;
    struct activation x = {.x = r->in[k]}, out = {.x = r->out[k]};
    op_gather(b->dev, &out, &x, r->step);
}

static void run_embed(struct kernel_bench *b, void *arg, int32_t i) {
    struct rows *r = arg;
    op_embed(b->dev, &r->out[i % r->n_sets], r->table, 1.0f, r->step);
}

/* Sets of a tensor read and one written. */
static void take_sets(struct kernel_bench *b, struct rows *r, int64_t rows_in, int64_t in, int64_t rows_out, int64_t out) {
    r->n_sets = bench_sets(b, bytes_of(b, (double)rows_in * (double)in + (double)rows_out * (double)out));
    for (int32_t i = 0; i < r->n_sets; i++) {
        if (in) r->in[i] = bench_tensor(b, b->dtype, rows_in, in);
        r->out[i] = bench_tensor(b, b->dtype, rows_out, out);
    }
}

static void norm(struct kernel_bench *b, int32_t t) {
    bool parallel = b->shape->parallel;
    struct rows r = {.norm = {.kind = parallel ? NORM_LAYER : NORM_RMS, .eps = 1e-5f}};
    int64_t h = b->shape->hidden;
    char what[48];
    take_sets(b, &r, t, h, t, h);
    for (int32_t i = 0; i < r.n_sets; i++) r.residual[i] = bench_tensor(b, b->dtype, t, h);
    for (int32_t i = 0; i < r.n_sets && parallel; i++) r.also_in[i] = bench_tensor(b, b->dtype, t, h);
    r.norm.weight = bench_tensor(b, DTYPE_F32, h, 1);
    if (parallel) r.norm.bias = bench_tensor(b, DTYPE_F32, h, 1);
    snprintf(what, sizeof what, "%d rows of %d", t, (int)h);
    bench_time(b, "residual_norm", what, bytes_of(b, (parallel ? 5.0 : 4.0) * t * (double)h), 0, run_norm, &r, r.n_sets);
    bench_case_end(b);
}

/* Rows of prompts of 128 tokens; a layer of the cache for each set. */
static void qkv_finish(struct kernel_bench *b, enum dtype kv_dtype, int32_t t) {
    const struct kernel_shape *s = b->shape;
    struct rows r = {.shape = attention_of(s)};
    int64_t q = (int64_t)s->n_heads * s->head_dim, width = q + 2 * (int64_t)s->n_kv_heads * s->head_dim;
    int32_t length = t < 128 ? t : 128;
    struct bench_step step;
    float inv_freq[256];
    char what[48];
    for (int i = 0; i < 256; i++) inv_freq[i] = 1.0f / (float)(i + 1);
    bench_step_init(&step, t / length, 0, length, false);
    take_sets(b, &r, t, width, t, q);
    bench_kv(b, kv_dtype, r.n_sets, step.n_blocks);
    if (b->error == 0) b->error = rope_open(&b->rope, b->dev, inv_freq, s->n_rotated, length, 1, b->err);
    if (b->error == 0) r.step = step_upload(b->dev, &step.step);
    snprintf(what, sizeof what, "%d rows of %d", t, (int)width);
    double cached = (double)kv_cache_block_bytes(kv_dtype, 1, s->n_kv_heads, s->head_dim) / KV_BLOCK;
    double bytes = bytes_of(b, t * (double)(width + q)) + t * cached;
    bench_time(b, kv_dtype == b->dtype ? "qkv_finish" : "qkv_finish fp8", what, bytes, 0, run_qkv, &r, r.n_sets);
    bench_case_end(b);
    bench_step_clear(&step);
}

static void activation(struct kernel_bench *b, int32_t t) {
    struct rows r = {0};
    bool gated = b->shape->gated;
    int64_t f = b->shape->intermediate, in = gated ? 2 * f : f;
    char what[48];
    take_sets(b, &r, t, in, t, f);
    snprintf(what, sizeof what, gated ? "%d rows of 2 x %d" : "%d rows of %d", t, (int)f);
    bench_time(b, gated ? "glu" : "act", what, bytes_of(b, t * (double)(in + f)), 0, gated ? run_glu : run_act, &r, r.n_sets);
    bench_case_end(b);
}

/* One row in two wants logits. */
static void gather(struct kernel_bench *b, int32_t t) {
    struct rows r = {0};
    int64_t h = b->shape->hidden;
    struct bench_step step;
    char what[48];
    bench_step_init(&step, t / 2, 0, 2, true);
    take_sets(b, &r, t, h, t / 2, h);
    if (b->error == 0) r.step = step_upload(b->dev, &step.step);
    snprintf(what, sizeof what, "%d of %d rows of %d", t / 2, t, (int)h);
    bench_time(b, "gather", what, bytes_of(b, 1.0 * t * (double)h), 0, run_gather, &r, r.n_sets);
    bench_case_end(b);
    bench_step_clear(&step);
}

/* Each row another id, spread over the table. */
static void embed(struct kernel_bench *b, int32_t t) {
    struct rows r = {0};
    const struct kernel_shape *s = b->shape;
    struct bench_step step;
    char what[48];
    bench_step_init(&step, t, 0, 1, false);
    for (int32_t i = 0; i < t; i++) step.ids[i] = (int32_t)((int64_t)i * s->vocab / t);
    take_sets(b, &r, 0, 0, t, s->hidden);
    r.table = bench_weight(b, s->vocab, s->hidden, QUANT_NONE);
    if (b->error == 0) r.step = step_upload(b->dev, &step.step);
    snprintf(what, sizeof what, "%d rows of %d", t, s->hidden);
    bench_time(b, "embed", what, bytes_of(b, 2.0 * t * s->hidden), 0, run_embed, &r, r.n_sets);
    bench_case_end(b);
    bench_step_clear(&step);
}

void bench_rows(struct kernel_bench *b) {
    int32_t t = rows_of_step(b);
    norm(b, t);
    qkv_finish(b, b->dtype, t);
    qkv_finish(b, DTYPE_F8_E4M3, t);
    activation(b, t);
    embed(b, t);
    gather(b, t);
}

/* ---------------------------------------------------------------- sampling */

struct sample {
    struct product logits;
    struct tensor drawn, last_sample;
    const struct step *step;
};

static void run_sample(struct kernel_bench *b, void *arg, int32_t i) {
    struct sample *s = arg;
    op_sample(b->dev, s->drawn.data, s->last_sample.data, NULL, &s->logits, s->step);
}

static void one_sample(struct kernel_bench *b, struct sample *a, const char *kernel, float temperature, float top_p) {
    int32_t n = (int32_t)a->logits.y.shape[0];
    struct bench_step s;
    char what[48];
    bench_step_init(&s, n, 0, 1, true);
    for (int32_t i = 0; i < n; i++) {
        s.samples[i].temperature = temperature;
        s.samples[i].top_p = top_p;
    }
    if (b->error == 0) a->step = step_upload(b->dev, &s.step);
    snprintf(what, sizeof what, "%d rows of %d", n, b->shape->vocab);
    bench_time(b, kernel, what, 4.0 * n * b->shape->vocab, 0, run_sample, a, 1);
    bench_step_clear(&s);
}

/* The bytes are the logits, read once. */
void bench_sample(struct kernel_bench *b) {
    int32_t n = samples_of_step(b);
    struct sample a = {.logits.y = bench_tensor(b, DTYPE_F32, n, b->shape->vocab)};
    a.drawn = bench_tensor(b, DTYPE_F32, n, 1);
    a.last_sample = bench_tensor(b, DTYPE_F32, n, 1);
    if (b->error == 0) op_sample_reserve(b->dev, n, b->shape->vocab);
    one_sample(b, &a, "sample greedy", 0, 1);
    one_sample(b, &a, "sample temperature", 0.8f, 1);
    one_sample(b, &a, "sample top-p", 0.8f, 0.95f);
    bench_case_end(b);
}
