/* engine.c - the engine thread: requests in, steps through the device, completions out.
 *
 *   engine_submit -> inbox -> scheduler -> step -> runner -> scheduler -> outbox -> engine_collect
 *
 * Scheduler, runner, model and device belong to the engine thread from open to close;
 * other threads reach it through the inbox only, and read its copies of statistics
 * and failure under the lock. */
#include "engine/engine.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/mailbox.h"
#include "base/mem.h"
#include "engine/engine_call.h"
#include "engine/model/measure.h"
#include "engine/model/model.h"
#include "engine/plan.h"
#include "engine/schedule/blocks.h"
#include "engine/schedule/scheduler.h"

#include <assert.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

const struct engine_options ENGINE_OPTIONS_DEFAULT = {
    .device = "auto", .dtype = "auto", .load_format = "auto", .lookahead = -1};

enum { MAX_SEQS = 4096, MAX_ROWS = 65535 }; /* no more blocks of threads in a grid's y */

#define STOPPED "the engine has stopped"

enum message_kind { MESSAGE_REQUEST, MESSAGE_ABORT, MESSAGE_CALL };

struct call { /* for the engine thread, on the caller's stack */
    engine_call_fn *fn;
    void *arg;
    int result;
    struct err err;
    struct mailbox *answered;
};

struct message { /* to the engine thread, which frees it */
    enum message_kind kind;
    struct engine_request *request;
    uint64_t first, last;
    struct call *call;
};

struct engine {
    struct dev *dev;
    struct model *model;
    struct runner *runner;
    struct scheduler *scheduler;
    struct tokenizer *tokenizer; /* NULL: dummy weights without tokenizer.json */
    struct model_info info;
    int32_t max_model_len, max_num_seqs, lookahead;
    bool is_gpu;
    FILE *step_log;
    char device_name[100];
    double device_open_s;

    struct mailbox *inbox, *outbox;
    atomic_int n_aborts;  /* in the inbox: it is read to its end for them */
    atomic_bool stop;
    bool has_thread;
    pthread_t thread;

    int32_t n_under_way;  /* steps; engine thread */

    pthread_mutex_t lock; /* of what follows */
    struct engine_stats stats;
    struct err failure;
};

/* ---------------------------------------------------------------- open: how large everything is */

static const char *word_of(const char *given, const char *otherwise) {
    return given ? given : otherwise;
}

static int check_range(const char *flag, int64_t value, int64_t max, struct err *err) {
    if (value >= 0 && value <= max) return 0;
    return err_set(err, E_USAGE, "%s: %" PRId64 " is not in 0 .. %" PRId64, flag, value, max);
}

static int check_options(const struct engine_options *o, struct err *err) {
    const char *device = word_of(o->device, "auto"), *format = word_of(o->load_format, "auto");
    if (strcmp(device, "auto") != 0 && strcmp(device, "cpu") != 0 && strcmp(device, "cuda") != 0)
        return err_set(err, E_USAGE, "no device \"%s\": auto, cpu and cuda are known", device);
    if (strcmp(format, "auto") != 0 && strcmp(format, "dummy") != 0)
        return err_set(err, E_USAGE, "no load format \"%s\": auto and dummy are known", format);
    const char *kv_dtype = word_of(o->kv_cache_dtype, "auto");
    if (strcmp(kv_dtype, "auto") != 0 && strcmp(kv_dtype, "fp8") != 0)
        return err_set(err, E_USAGE, "no KV cache dtype \"%s\": auto and fp8 are known", kv_dtype);
    struct quantization quantization;
    int known = quantization_parse(&quantization, o->quantization, err);
    if (known < 0) return known;
    if (o->lookahead < -1 || o->lookahead > RUNNER_DEPTH - 1)
        return err_set(err, E_USAGE, "look-ahead %d is not in 0 .. %d", o->lookahead, RUNNER_DEPTH - 1);
    int r = check_range("--max-num-seqs", o->max_num_seqs, MAX_SEQS, err);
    if (r == 0) r = check_range("--max-num-batched-tokens", o->max_num_batched_tokens, MAX_ROWS, err);
    if (r == 0) r = check_range("--max-model-len", o->max_model_len, INT32_MAX, err);
    if (r == 0) r = check_range("--kv-cache-memory-bytes", o->kv_cache_memory_bytes, INT64_MAX, err);
    return r;
}

static int64_t min64(int64_t a, int64_t b) {
    return a < b ? a : b;
}

static int64_t kv_bytes(const struct engine *e, const struct engine_options *o, const struct runner_options *runner) {
    int64_t available = dev_memory_available(e->dev);
    if (o->kv_cache_memory_bytes > 0) return o->kv_cache_memory_bytes;
    if (!e->is_gpu) return min64((int64_t)1 << 30, available / 4);
    int64_t of_model = model_weight_bytes(e->model) + model_beside_bytes(e->model);
    return plan_kv_bytes(o, available, of_model, runner_step_bytes(e->model, runner));
}

/* How many KV blocks there shall be, and whether the longest sequence fits them. */
static int size_kv_cache(struct engine *e, const struct engine_options *o, enum dtype dtype, struct runner_options *runner,
                         struct err *err) {
    const struct model_info *m = &e->info;
    if (plan_has_fp8_cache(o)) dtype = DTYPE_F8_E4M3;
    int64_t block = kv_cache_block_bytes(dtype, m->n_layers, m->n_kv_heads, m->head_dim);
    int64_t bytes = kv_bytes(e, o, runner), needed = blocks_for(e->max_model_len);
    int64_t n = o->kv_cache_memory_bytes > 0 ? min64(bytes / block, INT32_MAX)
                                             : plan_kv_blocks(bytes, block, e->max_num_seqs, e->max_model_len);
    if (n < needed && (o->max_model_len > 0 || n == 0))
        return err_set(err, E_NO_MEMORY,
                       "a sequence of %d tokens takes %" PRId64 " KV blocks of %" PRId64 " KiB; %" PRId64
                       " KiB hold %" PRId64 ": raise --kv-cache-memory-bytes or lower --max-model-len",
                       e->max_model_len, needed, block >> 10, bytes >> 10, n);
    if (n < needed) {
        log_info("the KV cache of %" PRId64 " MiB holds %" PRId64 " of the model's %d tokens: --max-model-len %" PRId64,
                 bytes >> 20, n * KV_BLOCK, e->max_model_len, n * KV_BLOCK);
        e->max_model_len = (int32_t)n * KV_BLOCK;
    }
    runner->n_blocks = (int32_t)n;
    return 0;
}

/* The tokenizer is read beside device and weights: a vocabulary of 128,000 takes half a second. */
struct tokenizer_reader {
    const char *dir;
    struct tokenizer *tokenizer;
    int result;
    struct err err;
    atomic_bool has_failed; /* so that weights need not be read */
    pthread_t thread;
    bool is_running;
};

static void *read_tokenizer(void *arg) {
    struct tokenizer_reader *t = arg;
    t->result = tokenizer_open(&t->tokenizer, t->dir, &t->err);
    if (t->result < 0) t->has_failed = true;
    return NULL;
}

static void reader_begin(struct tokenizer_reader *t, const char *dir, bool dummy) {
    char path[4096];
    snprintf(path, sizeof path, "%s/tokenizer.json", dir);
    bool is_there = access(path, F_OK) == 0;
    if (dummy && !is_there) return;
    t->dir = dir;
    t->is_running = is_there && pthread_create(&t->thread, NULL, read_tokenizer, t) == 0;
    if (!t->is_running) read_tokenizer(t);
}

/* r, or the tokenizer's error, which comes before any other. */
static int reader_end(struct tokenizer_reader *t, struct engine *e, int r, struct err *err) {
    if (t->is_running) pthread_join(t->thread, NULL);
    e->tokenizer = t->tokenizer;
    if (t->result == 0) return r;
    return err_set(err, t->result, "%s", t->err.text);
}

/* All that needs no device. model->folder is the caller's to close, after an error too. */
static int read_folder(struct engine *e, const struct engine_options *o, struct model_options *model, struct err *err) {
    *model = (struct model_options){.fp8_kv_cache = plan_has_fp8_cache(o), .cache = {o->cache_dir, o->cache_bytes}};
    int r = model_folder_open(&model->folder, o->model_dir, plan_is_dummy(o), err);
    if (r == 0) r = quantization_parse(&model->quantization, o->quantization, err);
    if (r < 0) return r;
    e->info = *model_folder_info(model->folder);
    if (o->max_model_len > e->info.context)
        return err_set(err, E_USAGE, "--max-model-len %" PRId64 " is more than the model's context of %d tokens",
                       o->max_model_len, e->info.context);
    e->max_model_len = o->max_model_len > 0 ? (int32_t)o->max_model_len : e->info.context;
    model->max_positions = e->max_model_len;
    model->dtype = plan_dtype(o, &e->info);
    model_folder_begin(model->folder, model);
    return 0;
}

/* What the device decides where no flag does. */
static struct runner_options runner_defaults(struct engine *e, const struct engine_options *o) {
    struct runner_options runner = plan_runner(o, e->is_gpu);
    e->max_num_seqs = runner.n_slots;
    e->lookahead = o->lookahead >= 0 ? o->lookahead : e->is_gpu ? 1 : 0;
    return runner;
}

static int open_device(struct engine *e, const struct engine_options *o, struct err *err) {
    struct dev_options device = {.kind = word_of(o->device, "auto"), .threads = o->threads};
    int64_t start = clock_mono_ns();
    int r = dev_open(&e->dev, &device, err);
    if (r < 0) return r;
    e->device_open_s = (double)(clock_mono_ns() - start) / 1e9;
    dev_profile(e->dev, o->profile_every);
    e->is_gpu = strcmp(dev_kind(e->dev), "cpu") != 0;
    snprintf(e->device_name, sizeof e->device_name, "%s", dev_name(e->dev));
    return 0;
}

static int open_runner(struct engine *e, const struct engine_options *o, struct model_options *model,
                       struct runner_options *runner, struct err *err) {
    *runner = runner_defaults(e, o);
    int r = model_pick_dtype(&model->dtype, o->dtype, &e->info, e->dev, err);
    if (r == 0) r = model_open(&e->model, e->dev, model, err);
    if (r == 0) r = size_kv_cache(e, o, model->dtype, runner, err);
    runner->max_len = e->max_model_len;
    return r < 0 ? r : runner_open(&e->runner, e->model, runner, err);
}

static int open_parts(struct engine *e, const struct engine_options *o, struct err *err) {
    struct tokenizer_reader reader = {0};
    struct runner_options runner = {0};
    struct model_options model = {0};
    reader_begin(&reader, o->model_dir, plan_is_dummy(o));
    int r = read_folder(e, o, &model, err);
    if (r == 0 && !reader.has_failed) r = open_device(e, o, err);
    if (r == 0 && !reader.has_failed) r = open_runner(e, o, &model, &runner, err);
    model_folder_close(model.folder);
    r = reader_end(&reader, e, r, err);
    if (r < 0) return r;
    struct scheduler_options scheduler = {.model = &e->info,
                                          .tokenizer = e->tokenizer,
                                          .max_model_len = e->max_model_len,
                                          .n_blocks = runner.n_blocks,
                                          .n_slots = runner.n_slots,
                                          .max_rows = runner.max_rows,
                                          .max_samples = runner.max_samples,
                                          .depth = e->lookahead + 1};
    e->scheduler = scheduler_new(&scheduler);
    return 0;
}

/* ---------------------------------------------------------------- the engine thread */

static void publish_stats(struct engine *e) {
    struct engine_stats now;
    scheduler_stats(e->scheduler, &now);
    runner_device_time(e->runner, &now.device, &now.device_large);
    pthread_mutex_lock(&e->lock);
    e->stats = now;
    pthread_mutex_unlock(&e->lock);
}

/* Hand completions over; waits where nobody collects them. */
static void deliver(struct engine *e) {
    struct engine_completion *c;
    while ((c = scheduler_take_done(e->scheduler))) {
        bool delivered = false;
        while (!delivered && !e->stop) delivered = mailbox_put(e->outbox, c, 100);
        if (!delivered) engine_completion_free(c);
    }
}

static void log_tags(FILE *out, const char *name, const uint64_t *tags, int32_t n) {
    fprintf(out, ",\"%s\":[", name);
    for (int32_t i = 0; i < n; i++) fprintf(out, "%s%" PRIu64, i ? "," : "", tags[i]);
    fputc(']', out);
}

static void log_step(const struct engine *e) {
    const struct step_report *r = scheduler_report(e->scheduler);
    if (!e->step_log) return;
    fprintf(e->step_log,
            "{\"step\":%" PRId64 ",\"rows\":%d,\"prefill\":%d,\"decode\":%d,\"running\":%d,\"waiting\":%d,\"kv_blocks\":%d",
            r->step, r->n_rows, r->n_prefill, r->n_decode, r->n_running, r->n_waiting, r->n_blocks_used);
    log_tags(e->step_log, "finished", r->finished, r->n_finished);
    log_tags(e->step_log, "preempted", r->preempted, r->n_preempted);
    fputs("}\n", e->step_log);
}

/* Fill the device's queue, then take the oldest step's results. 0 or E_*. */
static int run_steps(struct engine *e, struct err *err) {
    const struct step *step;
    while (e->n_under_way <= e->lookahead && (step = scheduler_plan(e->scheduler, clock_mono_ns()))) {
        int r = step_submit(e->runner, step, err);
        if (r < 0) return r;
        e->n_under_way++;
    }
    if (e->n_under_way == 0) return 0;
    struct step_result result;
    int r = step_collect(e->runner, &result, err);
    if (r < 0) return r;
    e->n_under_way--;
    scheduler_apply(e->scheduler, result.drawn, result.logprobs, clock_mono_ns());
    log_step(e);
    return 0;
}

/* All requests may be finished while a step that was submitted ahead is still under way. 0, or
 * the E_* of that step: what fn returns is its caller's alone. */
static int answer_call(struct engine *e, struct call *c, struct err *err) {
    int r = 0;
    while (r == 0 && e->n_under_way > 0) r = run_steps(e, err);
    assert(r < 0 || (scheduler_is_idle(e->scheduler) && e->n_under_way == 0));
    c->result = r == 0 ? c->fn(e->model, e->runner, c->arg, &c->err) : err_set(&c->err, r, "%s", err->text);
    mailbox_put(c->answered, c, -1); /* and c is gone */
    return r;
}

static int read_message(struct engine *e, struct message *m, struct err *err) {
    int r = 0;
    switch (m->kind) {
    case MESSAGE_REQUEST: scheduler_add(e->scheduler, m->request); break;
    case MESSAGE_ABORT:
        scheduler_abort(e->scheduler, m->first, m->last);
        e->n_aborts--;
        break;
    case MESSAGE_CALL: r = answer_call(e, m->call, err); break;
    }
    free(m);
    return r;
}

/* As many requests as can be scheduled soon; the rest waits in the inbox, which makes
 * the caller wait. With nothing to do, wait for a message. 0 or E_*. */
static int read_inbox(struct engine *e, struct err *err) {
    bool idle = scheduler_is_idle(e->scheduler) && e->n_under_way == 0;
    struct message *m;
    int r = 0;
    if (idle) deliver(e);
    if (idle) runner_rest(e->runner);
    while (r == 0 && (scheduler_n_waiting(e->scheduler) < e->max_num_seqs || e->n_aborts > 0)) {
        m = mailbox_take(e->inbox, idle ? -1 : 0);
        if (!m) return 0;
        r = read_message(e, m, err);
        idle = false;
    }
    return r;
}

/* Of a closed inbox. Who waits for the answer to a call is told. */
static void drop_messages(struct mailbox *inbox) {
    struct message *m;
    while ((m = mailbox_take(inbox, 0))) {
        if (m->kind == MESSAGE_CALL) {
            m->call->result = err_set(&m->call->err, E_DEVICE, STOPPED);
            mailbox_put(m->call->answered, m->call, -1);
        }
        engine_request_free(m->request);
        free(m);
    }
}

/* What is finished is still delivered; then collectors learn that nothing more comes. */
static void fail(struct engine *e, const struct err *err) {
    deliver(e);
    pthread_mutex_lock(&e->lock);
    e->failure = *err;
    pthread_mutex_unlock(&e->lock);
    mailbox_close(e->inbox);
    drop_messages(e->inbox);
    mailbox_close(e->outbox);
}

static void *engine_main(void *arg) {
    struct engine *e = arg;
    struct err err = ERR_INIT;
    while (!e->stop) {
        int r = read_inbox(e, &err);
        if (r == 0) r = run_steps(e, &err);
        if (r < 0) {
            fail(e, &err);
            break;
        }
        publish_stats(e); /* before the completions that it counts are seen */
        deliver(e);
    }
    return NULL;
}

/* ---------------------------------------------------------------- open and close */

int engine_open(struct engine **out, const struct engine_options *options, struct err *err) {
    int r = check_options(options, err);
    if (r < 0) return r;
    struct engine *e = mem_zalloc(1, sizeof *e);
    pthread_mutex_init(&e->lock, NULL);
    e->step_log = options->step_log;
    r = open_parts(e, options, err);
    if (r == 0) {
        e->inbox = mailbox_new((size_t)e->max_num_seqs * 2);
        e->outbox = mailbox_new((size_t)e->max_num_seqs * 4);
        publish_stats(e);
        e->has_thread = pthread_create(&e->thread, NULL, engine_main, e) == 0;
        if (!e->has_thread) r = err_set(err, E_NO_MEMORY, "cannot start the engine thread");
    }
    if (r < 0) engine_close(e);
    else *out = e;
    return r;
}

static void drop_completions(struct mailbox *outbox) {
    struct engine_completion *c;
    while ((c = mailbox_take(outbox, 0))) engine_completion_free(c);
}

void engine_close(struct engine *e) {
    if (!e) return;
    e->stop = true;
    if (e->inbox) mailbox_close(e->inbox);
    if (e->has_thread) pthread_join(e->thread, NULL);
    if (e->inbox) drop_messages(e->inbox);
    if (e->outbox) drop_completions(e->outbox);
    mailbox_free(e->inbox);
    mailbox_free(e->outbox);
    scheduler_free(e->scheduler);
    if (e->dev) dev_sync(e->dev, NULL);
    runner_close(e->runner);
    model_close(e->model);
    dev_close(e->dev);
    tokenizer_close(e->tokenizer);
    pthread_mutex_destroy(&e->lock);
    free(e);
}

/* ---------------------------------------------------------------- from other threads */

const struct model_info *engine_model(const struct engine *e) {
    return &e->info;
}

const struct tokenizer *engine_tokenizer(const struct engine *e) {
    return e->tokenizer;
}

int32_t engine_max_model_len(const struct engine *e) {
    return e->max_model_len;
}

int32_t engine_max_num_seqs(const struct engine *e) {
    return e->max_num_seqs;
}

double engine_device_open_s(const struct engine *e) {
    return e->device_open_s;
}

const char *engine_device_name(const struct engine *e) {
    return e->device_name;
}

static bool send(struct engine *e, const struct message *message, int64_t timeout_ms) {
    struct message *m = mem_dup(message, sizeof *message);
    if (mailbox_put(e->inbox, m, timeout_ms)) return true;
    free(m);
    return false;
}

bool engine_submit(struct engine *e, struct engine_request *r, int64_t timeout_ms) {
    return send(e, &(struct message){.kind = MESSAGE_REQUEST, .request = r}, timeout_ms);
}

struct engine_completion *engine_collect(struct engine *e, int64_t timeout_ms) {
    return mailbox_take(e->outbox, timeout_ms);
}

void engine_abort(struct engine *e, uint64_t first, uint64_t last) {
    e->n_aborts++;
    if (!send(e, &(struct message){.kind = MESSAGE_ABORT, .first = first, .last = last}, -1)) e->n_aborts--;
}

int engine_failure(struct engine *e, struct err *err) {
    pthread_mutex_lock(&e->lock);
    int code = e->failure.code;
    if (code && err) *err = e->failure;
    pthread_mutex_unlock(&e->lock);
    return code;
}

void engine_stats(struct engine *e, struct engine_stats *out) {
    pthread_mutex_lock(&e->lock);
    *out = e->stats;
    pthread_mutex_unlock(&e->lock);
}

void engine_work(const struct engine *e, struct engine_work *out) {
    measure_work(out, e->model);
}

int engine_call(struct engine *e, engine_call_fn *fn, void *arg, struct err *err) {
    struct call c = {.fn = fn, .arg = arg, .err = ERR_INIT, .answered = mailbox_new(1)};
    if (!send(e, &(struct message){.kind = MESSAGE_CALL, .call = &c}, -1)) {
        mailbox_free(c.answered);
        return err_set(err, E_DEVICE, STOPPED);
    }
    mailbox_take(c.answered, -1);
    mailbox_free(c.answered);
    if (c.result < 0) err_set(err, c.result, "%s", c.err.text);
    return c.result;
}
