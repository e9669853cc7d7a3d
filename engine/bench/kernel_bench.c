/* kernel_bench.c - see kernel_bench.h. */
#include "engine/bench/kernel_bench.h"
#include "base/log.h"
#include "base/mem.h"
#include "engine/model/measure.h"
#include "engine/model/quantization.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

static const struct kernel_shape shapes[] = {
    {"phi-2", 2560, 32, 32, 80, 32, 10240, 51200, false, true, 0, 0},
    {"mistral-7b", 4096, 32, 8, 128, 128, 14336, 32000, true, false, 0, 0},
    {"llama-3.1-8b", 4096, 32, 8, 128, 128, 14336, 128256, true, false, 0, 0},
    {"gemma-7b", 3072, 16, 16, 256, 256, 24576, 256000, true, false, 0, 0},
    {"llama-70b", 8192, 64, 8, 128, 128, 28672, 128256, true, false, 0, 0},
    {"mixtral-8x7b", 4096, 32, 8, 128, 128, 14336, 32000, true, false, 8, 2},
    {"small", 256, 4, 2, 64, 64, 768, 4096, true, false, 4, 2}, /* for the CPU */
};
enum { N_SHAPES = sizeof shapes / sizeof *shapes };

static const struct part {
    const char *name;
    void (*run)(struct kernel_bench *b);
} parts[] = {{"linear", bench_linear}, {"experts", bench_experts}, {"attention", bench_attention}, {"rows", bench_rows},
             {"sample", bench_sample}};
enum { N_PARTS = sizeof parts / sizeof *parts };

/* ---------------------------------------------------------------- operands of a case */

enum { MOST_SETS = 64, MOST_SETS_CPU = 8 };

/* Several times the cache of the largest GPUs (50 to 100 MB). */
static const double cold_bytes = 384e6, cold_bytes_cpu = 32e6;

int32_t bench_sets(const struct kernel_bench *b, double bytes) {
    double n = (b->is_cpu ? cold_bytes_cpu : cold_bytes) / bytes + 1;
    int32_t most = b->is_cpu ? MOST_SETS_CPU : MOST_SETS;
    return n < most ? (int32_t)n : most;
}

static void fail(struct kernel_bench *b, int code) {
    if (b->error == 0) b->error = code;
}

/* NULL after an error. */
static void *take(struct kernel_bench *b, size_t bytes) {
    void *p = b->error == 0 ? dev_alloc(b->dev, bytes) : NULL;
    if (p) {
        b->memory = mem_realloc(b->memory, (size_t)b->n_memory + 1, sizeof *b->memory);
        b->memory[b->n_memory++] = p;
    } else if (b->error == 0) {
        fail(b, err_set(b->err, E_NO_MEMORY, "%s: no memory for operands of %zu MiB", b->shape->name, bytes >> 20));
    }
    return p;
}

static void fill(struct kernel_bench *b, struct tensor *t) {
    if (b->error == 0) fail(b, measure_fill(b->dev, t, ++b->seed, 1, b->err));
}

struct tensor bench_tensor(struct kernel_bench *b, enum dtype dtype, int64_t rows, int64_t cols) {
    struct tensor t = tensor_2d(NULL, dtype, rows, cols);
    t.data = take(b, tensor_bytes(&t));
    fill(b, &t);
    return t;
}

struct weight *bench_weight(struct kernel_bench *b, int64_t n, int64_t k, enum quant_kind quant) {
    struct weight *w = b->error == 0 ? weight_new_quantized(b->dev, n, k, b->dtype, quant) : NULL;
    if (w) {
        weight_random(b->dev, w, 0, n, ++b->seed, 0.02f);
        b->weights = mem_realloc(b->weights, (size_t)b->n_weights + 1, sizeof *b->weights);
        b->weights[b->n_weights++] = w;
    } else if (b->error == 0) {
        fail(b, err_set(b->err, E_NO_MEMORY, "%s: no memory for a weight of %" PRId64 " x %" PRId64, b->shape->name, n, k));
    }
    return w;
}

void bench_kv(struct kernel_bench *b, enum dtype dtype, int32_t n_layers, int32_t n_blocks) {
    const struct kernel_shape *s = b->shape;
    if (b->error) return;
    fail(b, kv_cache_open(&b->kv, b->dev, dtype, n_layers, n_blocks, s->n_kv_heads, s->head_dim, b->err));
    for (int32_t i = 0; b->error == 0 && i < n_layers; i++) {
        /* The bytes of random numbers are codes, and scales, too: finite ones. */
        int64_t tiles = (int64_t)n_blocks * 2 * s->n_kv_heads, bytes = kv_cache_block_bytes(dtype, 1, 1, s->head_dim) / 2;
        struct tensor slab = tensor_2d(b->kv->slab[i], b->dtype, tiles, bytes / (int64_t)dtype_bytes(b->dtype));
        fill(b, &slab);
    }
}

void bench_case_end(struct kernel_bench *b) {
    for (int32_t i = 0; i < b->n_memory; i++) dev_free(b->dev, b->memory[i]);
    for (int32_t i = 0; i < b->n_weights; i++) weight_free(b->dev, b->weights[i]);
    kv_cache_close(b->dev, b->kv);
    rope_close(b->dev, &b->rope);
    b->n_memory = b->n_weights = 0;
    b->kv = NULL;
}

/* ---------------------------------------------------------------- steps */

/* A permutation of 0 .. n - 1. */
static void shuffle(int32_t *ids, int32_t n) {
    uint32_t state = 12345;
    for (int32_t i = 0; i < n; i++) ids[i] = i;
    for (int32_t i = n - 1; i > 0; i--) {
        state = state * 1664525u + 1013904223u;
        int32_t k = (int32_t)(((uint64_t)state * (uint64_t)(i + 1)) >> 32), was = ids[i];
        ids[i] = ids[k];
        ids[k] = was;
    }
}

void bench_step_init(struct bench_step *s, int32_t n_seqs, int32_t first, int32_t rows, bool samples) {
    int32_t t = n_seqs * rows, stride = (first + rows + KV_BLOCK - 1) / KV_BLOCK;
    s->n_blocks = n_seqs * stride;
    s->ids = mem_zalloc(3 * (size_t)t + (size_t)s->n_blocks, sizeof *s->ids);
    s->sequences = mem_zalloc((size_t)n_seqs, sizeof *s->sequences);
    s->samples = mem_zalloc((size_t)n_seqs, sizeof *s->samples);
    int32_t *token = s->ids, *position = token + t, *slot = position + t, *table = slot + t;
    for (int32_t i = 0; i < n_seqs; i++) {
        s->sequences[i] =
            (struct step_sequence){.slot = i, .first_row = i * rows, .n_rows = rows, .first_position = first};
        s->samples[i].row = (i + 1) * rows - 1;
        s->samples[i].slot = i;
        s->samples[i].position = first + rows;
        s->samples[i].seed = (uint64_t)i;
        s->samples[i].top_p = 1;
        for (int32_t r = 0; r < rows; r++) {
            position[i * rows + r] = first + r;
            slot[i * rows + r] = i;
        }
    }
    shuffle(table, s->n_blocks);
    s->step = (struct step){.n_rows = t, .token = token, .position = position, .slot = slot, .n_sequences = n_seqs,
                            .sequences = s->sequences, .block_table = table, .block_table_stride = stride,
                            .n_samples = samples ? n_seqs : 0, .samples = s->samples};
}

void bench_step_clear(struct bench_step *s) {
    free(s->ids);
    free(s->sequences);
    free(s->samples);
    *s = (struct bench_step){0};
}

/* ---------------------------------------------------------------- time */

enum { ROUNDS = 3, LEAST_RUNS = 3, MOST_RUNS = 8000, RECORDED_RUNS = 16 };
static const double round_ns = 20e6; /* long enough that starting the first run counts little */
static const double settling_ns = 2e9; /* at most */

/* A host queues an operation in some microseconds. Shorter ones are recorded and replayed, as
 * engines do with small steps, where the device can. */
static const double short_ns = 50e3;

struct timed {
    bench_fn *fn;
    void *arg;
    uint64_t key;
    int32_t n_recorded; /* runs that a replay makes; 0 = it is not recorded */
};

/* n runs, or as many as whole replays make of them; nanoseconds of one. */
static double time_runs(struct kernel_bench *b, const struct timed *t, int32_t n) {
    int32_t n_replays = t->n_recorded ? (n + t->n_recorded - 1) / t->n_recorded : 0;
    dev_stamp(b->dev, 0);
    for (int32_t i = 0; i < n_replays; i++) dev_replay(b->dev, t->key);
    for (int32_t i = 0; i < n && n_replays == 0; i++) t->fn(b, t->arg, i);
    dev_stamp(b->dev, 1);
    return dev_stamp_ns(b->dev, 0, 1) / (n_replays ? n_replays * t->n_recorded : n);
}

/* The time of one run, roughly, when the device has settled on how to do it. */
static double warm_up(struct kernel_bench *b, const struct timed *t) {
    double ns = time_runs(b, t, LEAST_RUNS);
    if (!b->is_cpu && ns * MEASURE_SETTLING_RUNS < settling_ns) time_runs(b, t, MEASURE_SETTLING_RUNS);
    for (int r = 0; r < ROUNDS; r++) {
        double again = time_runs(b, t, LEAST_RUNS);
        if (r == 0 || again < ns) ns = again;
    }
    return ns;
}

/* Each set as often as the others, so that a replay finds them cold. What cannot be recorded
 * is queued run by run. */
static void record(struct kernel_bench *b, struct timed *t, int32_t n_sets) {
    struct err err = ERR_INIT;
    int32_t n = (RECORDED_RUNS + n_sets - 1) / n_sets * n_sets;
    fail(b, dev_sync(b->dev, b->err));
    if (b->error || !dev_can_record(b->dev)) return;
    t->key = ++b->n_recorded;
    dev_record(b->dev);
    for (int32_t i = 0; i < n; i++) t->fn(b, t->arg, i);
    dev_record_end(b->dev, t->key);
    if (dev_sync(b->dev, &err) == 0 && dev_replay(b->dev, t->key)) t->n_recorded = n;
    else log_debug("not recorded: %s", err.text);
}

/* Nanoseconds of one run, the best of a few rounds. */
static double best_round(struct kernel_bench *b, struct timed *t, int32_t n_sets) {
    double best = warm_up(b, t);
    if (best < short_ns) record(b, t, n_sets);
    if (t->n_recorded) best = time_runs(b, t, t->n_recorded);
    int32_t n = best > 0 && round_ns / best < MOST_RUNS ? (int32_t)(round_ns / best) : MOST_RUNS;
    if (n < n_sets) n = n_sets; /* each set is cold when its turn comes */
    if (n < LEAST_RUNS) n = LEAST_RUNS;
    for (int r = 0; r < ROUNDS; r++) {
        double ns = time_runs(b, t, n);
        if (r == 0 || ns < best) best = ns;
    }
    return best;
}

void bench_time(struct kernel_bench *b, const char *kernel, const char *what, double bytes, double flop, bench_fn *fn,
                void *arg, int32_t n_sets) {
    if (b->error) return;
    double seconds = best_round(b, &(struct timed){.fn = fn, .arg = arg}, n_sets) / 1e9;
    fail(b, dev_sync(b->dev, b->err));
    if (b->error) return;
    double copy_s = bytes / b->roof.copy_bytes_per_s, matrix_s = flop / b->roof.flop_per_s;
    struct engine_kernel_figure f = {.shape = b->shape->name, .kernel = kernel, .what = what, .seconds = seconds,
                                     .bytes = bytes, .flop = flop, .roof_seconds = copy_s > matrix_s ? copy_s : matrix_s};
    b->each(b->arg, &f);
}

/* ---------------------------------------------------------------- the whole */

static int no_such(struct err *err, const char *what, const char *name) {
    return err_set(err, E_USAGE, "bench kernels: no %s \"%s\"", what, name);
}

static bool wanted(const struct engine_kernel_options *o, const char *part) {
    for (size_t i = 0; i < o->n_parts; i++)
        if (strcmp(o->parts[i], part) == 0) return true;
    return o->n_parts == 0;
}

static bool is_part(const char *name) {
    for (size_t i = 0; i < N_PARTS; i++)
        if (strcmp(parts[i].name, name) == 0) return true;
    return false;
}

/* The shapes asked for, as a bit each. */
static int pick_shapes(uint32_t *out, const char *asked, bool is_cpu, struct err *err) {
    if (!asked) asked = is_cpu ? "small" : "all";
    *out = 0;
    for (size_t i = 0; i < N_SHAPES; i++) {
        bool is_small = strcmp(shapes[i].name, "small") == 0;
        if (strcmp(asked, shapes[i].name) == 0 || (strcmp(asked, "all") == 0 && !is_small)) *out |= 1u << i;
    }
    return *out ? 0 : no_such(err, "shape", asked);
}

static int bench_all(struct kernel_bench *b, const struct engine_kernel_options *o, uint32_t which) {
    for (size_t s = 0; s < N_SHAPES; s++)
        for (size_t p = 0; p < N_PARTS && b->error == 0; p++) {
            b->shape = &shapes[s];
            if ((which >> s & 1) && wanted(o, parts[p].name)) parts[p].run(b);
        }
    return b->error;
}

int engine_bench_kernels(const struct engine_kernel_options *o, struct engine_kernel_device *device,
                         engine_kernel_fn *each, void *arg, struct err *err) {
    struct kernel_bench b = {.each = each, .arg = arg, .err = err};
    struct quantization quantization;
    uint32_t which = 0;
    if (quantization_parse(&quantization, o->quantization, err) < 0) return E_USAGE;
    b.quant = quantization.kind;
    for (size_t i = 0; i < o->n_parts; i++)
        if (!is_part(o->parts[i])) return no_such(err, "part", o->parts[i]);
    int r = dev_open(&b.dev, &(struct dev_options){.kind = o->device, .threads = o->threads}, err);
    if (r < 0) return r;
    b.is_cpu = strcmp(dev_kind(b.dev), "cpu") == 0;
    r = model_pick_dtype(&b.dtype, o->dtype, &(struct model_info){.dtype = "bfloat16"}, b.dev, err);
    if (r == 0) r = pick_shapes(&which, o->shape, b.is_cpu, err);
    if (r == 0) r = measure_device(&b.roof, b.dev, b.dtype, QUANT_NONE, err);
    if (r == 0) {
        device->roof = b.roof;
        snprintf(device->name, sizeof device->name, "%s", dev_name(b.dev));
        r = bench_all(&b, o, which);
    }
    free(b.memory);
    free(b.weights);
    dev_close(b.dev);
    return r;
}
