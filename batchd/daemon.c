/* daemon.c - the jobs thread: leases, the pipeline that a job's model needs, commits.
 *
 * One loop does it all: feed rows while there is room, take what is finished, commit
 * when a batch is full or a quarter of a second old. The thread waits in
 * pipeline_take, never for the engine. When the next job needs another model, the
 * rows inside are finished first and the engine is changed. */
#include "batchd/daemon.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/mailbox.h"
#include "base/mem.h"
#include "batchd/job_model.h"
#include "batchd/pipeline.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    COMMIT_ROWS = 256,
    COMMIT_MS = 250,
    BEAT_MS = 5000,
    LOOK_MS = 500,     /* for new jobs and cancelled ones */
    DRAIN_MS = 10000,
    RETRY_MS = 1000,   /* a full disk, a long lock */
};

struct daemon {
    struct daemon_options o;
    pthread_t thread;
    struct mailbox *ended;     /* closed when the thread is through */
    atomic_bool stop;
    pthread_mutex_t lock;      /* of stats */
    struct daemon_stats stats;
    struct err err;            /* why it ended */

    /* from here on the jobs thread's own */
    struct store *store;
    struct worker *worker;
    struct pipeline *pipeline; /* NULL until a job needs it */
    struct job_model model;    /* what the pipeline runs */
    char *dtype, *quantization, *kv_cache_dtype;
    int64_t max_model_len, weights_id; /* weights_id: of the model, -1 = no job has noted it yet */
    struct job_ref *job;       /* leased from last */
    struct lease lease;        /* rows that are not fed yet, from next_row on */
    size_t next_row;
    int64_t inside;            /* rows in the pipeline */
    struct row_work *batch[COMMIT_ROWS];
    size_t n_batch;
    int64_t batch_since_ms, last_beat_ms, last_look_ms, drain_since_ms;
    bool nothing_ready;        /* the last look found no lease */
    bool waits;                /* for a full disk or a long lock; it has been told */
};

static int64_t now_ms(void) {
    return clock_mono_ns() / 1000000;
}

/* ---------------------------------------------------------------- rows */

static void job_unref(struct job_ref *job) {
    if (!job || --job->refs > 0) return;
    chat_template_free(job->chat_template);
    job_work_clear(&job->work);
    free(job);
}

static void row_free(struct row_work *row) {
    job_unref(row->job);
    free(row->row.input);
    free(row->row.params);
    buf_clear(&row->text);
    buf_clear(&row->logprobs);
    buf_clear(&row->prompt_logprobs);
    free(row);
}

/* The lease's next row; its strings move along. */
static struct row_work *row_new(struct daemon *d) {
    struct row_work *row = mem_zalloc(1, sizeof *row);
    row->job = d->job;
    d->job->refs++;
    row->row = d->lease.rows[d->next_row];
    d->lease.rows[d->next_row] = (struct request_row){0};
    d->next_row++;
    row->leased_ns = d->lease.leased_mono_ns;
    row->result = (struct result_row){
        .job_id = d->lease.job_id,
        .row = row->row.row,
        .wait_us = d->lease.leased_wall_us - d->job->work.submitted_us,
        .queue_us = -1,
        .prefill_us = -1,
        .ttft_us = -1,
        .decode_us = -1,
        .e2e_us = -1,
        .attempt = 1,
    };
    if (row->result.wait_us < 0) row->result.wait_us = 0; /* the wall clock was set back */
    return row;
}

/* ---------------------------------------------------------------- commits */

static bool is_passing(int r) {
    return r == E_FULL || r == E_BUSY;
}

static void count_published(struct daemon *d) {
    pthread_mutex_lock(&d->lock);
    d->stats.rows_published = worker_n_published(d->worker);
    pthread_mutex_unlock(&d->lock);
}

static void tell_waiting(struct daemon *d, const struct err *why) {
    if (!d->waits) log_warn("work waits: %s", why->text);
    d->waits = true;
}

static void tell_going_on(struct daemon *d) {
    if (d->waits) log_info("work goes on");
    d->waits = false;
}

/* A full disk stops publication, not the daemon: try again until there is room or a stop. */
static int publish(struct daemon *d, const struct result_row *rows, size_t n) {
    struct err err = ERR_INIT;
    int r;
    while (is_passing(r = worker_publish(d->worker, rows, n, &err)) && !d->stop) {
        tell_waiting(d, &err);
        clock_sleep_ms(RETRY_MS);
    }
    if (r == 0) tell_going_on(d);
    return r < 0 ? err_set(&d->err, r, "%s", err.text) : 0;
}

static int commit(struct daemon *d) {
    struct result_row rows[COMMIT_ROWS];
    if (d->n_batch == 0) return 0;
    for (size_t i = 0; i < d->n_batch; i++) rows[i] = d->batch[i]->result;
    int r = publish(d, rows, d->n_batch);
    if (r == 0) count_published(d);
    for (size_t i = 0; i < d->n_batch; i++) row_free(d->batch[i]);
    d->n_batch = 0;
    d->nothing_ready = false;
    return r;
}

static void take_finished(struct daemon *d, struct row_work *row) {
    d->inside--;
    if (row->dropped) {
        row_free(row);
        return;
    }
    if (d->n_batch == 0) d->batch_since_ms = now_ms();
    d->batch[d->n_batch++] = row;
}

static bool commit_is_due(const struct daemon *d) {
    return d->n_batch == COMMIT_ROWS || (d->n_batch > 0 && (d->inside == 0 || now_ms() - d->batch_since_ms >= COMMIT_MS));
}

/* ---------------------------------------------------------------- models */

static bool same_text(const char *a, const char *b, const char *otherwise) {
    return strcmp(a ? a : otherwise, b ? b : otherwise) == 0;
}

static bool pipeline_fits(const struct daemon *d, const struct job_settings *set, const struct job_model *model) {
    return d->pipeline && job_model_is_same(&d->model, model) && same_text(d->dtype, set->dtype, "auto") &&
           same_text(d->quantization, set->quantization, "none") &&
           same_text(d->kv_cache_dtype, set->kv_cache_dtype, "auto") &&
           d->max_model_len == set->max_model_len;
}

static void close_pipeline(struct daemon *d) {
    pthread_mutex_lock(&d->lock);
    d->stats.engine_is_loaded = false;
    pthread_mutex_unlock(&d->lock);
    pipeline_close(d->pipeline);
    d->pipeline = NULL;
    job_model_clear(&d->model);
    free(d->dtype);
    free(d->quantization);
    free(d->kv_cache_dtype);
    d->dtype = d->quantization = d->kv_cache_dtype = NULL;
}

/* Takes the model; what is left in it is the caller's to clear. */
static int open_pipeline(struct daemon *d, const struct job_settings *set, struct job_model *model, struct err *err) {
    struct engine_options o = d->o.engine;
    int64_t start = clock_mono_ns();
    close_pipeline(d);
    int r = job_model_look(model, d->store, err);
    if (r < 0) return r;
    o.model_dir = model->dir;
    o.dtype = set->dtype ? set->dtype : "auto";
    o.quantization = set->quantization;
    o.kv_cache_dtype = set->kv_cache_dtype;
    o.max_model_len = set->max_model_len;
    r = pipeline_open(&d->pipeline, &o, err);
    if (r < 0) return r;
    d->model = *model;
    *model = (struct job_model){0};
    d->weights_id = -1;
    d->dtype = mem_strdup(set->dtype);
    d->quantization = mem_strdup(set->quantization);
    d->kv_cache_dtype = mem_strdup(set->kv_cache_dtype);
    d->max_model_len = set->max_model_len;
    log_info("%s loaded on %s in %.1f s", d->model.dir, engine_device_name(pipeline_engine(d->pipeline)),
             (double)(clock_mono_ns() - start) / 1e9);
    const struct model_info *info = engine_model(pipeline_engine(d->pipeline));
    if (*info->not_applied) log_warn("its generation_config.json asks for %s, which is not applied", info->not_applied);
    return 0;
}

/* ---------------------------------------------------------------- leases */

static void drop_lease(struct daemon *d) {
    lease_clear(&d->lease);
    d->next_row = 0;
}

enum fit { FIT_NOW, FIT_LATER, FIT_NEVER };

/* A job whose model cannot be loaded fails, and the daemon goes on to the next; one that
 * is served alone stays as it is, and the daemon ends: flags of the caller may be at fault. */
static enum fit give_up_job(struct daemon *d, int64_t job_id, const struct err *why) {
    if (d->o.only_job) {
        pthread_mutex_lock(&d->lock);
        d->stats.model_failed = true;
        pthread_mutex_unlock(&d->lock);
        d->err = *why;
        return FIT_NEVER;
    }
    log_error("job %lld: %s", (long long)job_id, why->text);
    int r = worker_fail_job(d->worker, job_id, why->text, &d->err);
    return r < 0 && !is_passing(r) ? FIT_NEVER : FIT_LATER;
}

/* Is the pipeline, or can it be made, the one that this job needs? */
static enum fit fit_pipeline(struct daemon *d, const struct job_work *work) {
    struct err err = ERR_INIT;
    struct job_model model = {0};
    enum fit fit = FIT_NOW;
    int r = job_model_resolve(&model, d->store, &work->settings, d->o.default_model, &err);
    if (r == 0 && !pipeline_fits(d, &work->settings, &model)) {
        if (d->inside > 0 || d->n_batch > 0) fit = FIT_LATER;
        else r = open_pipeline(d, &work->settings, &model, &err);
    }
    job_model_clear(&model);
    return r == 0 ? fit : give_up_job(d, work->job_id, &err);
}

/* Once a job: from here on its results are made with these weights and no others. */
static int note_weights(struct daemon *d, const struct job_work *work, enum fit *fit, struct err *err) {
    struct weights_seen seen = job_model_seen(&d->model);
    if (work->weights_id == d->weights_id) return 0;
    int r = worker_note_weights(d->worker, work->job_id, &seen, &d->weights_id, err);
    if (r != E_CONFIG) return r;
    *fit = give_up_job(d, work->job_id, err);
    return 0;
}

/* Takes both. */
static void use_job(struct daemon *d, struct job_work *work, struct chat_template *chat_template) {
    job_unref(d->job);
    d->job = mem_zalloc(1, sizeof *d->job);
    d->job->work = *work;
    d->job->chat_template = chat_template;
    d->job->refs = 1;
    pthread_mutex_lock(&d->lock);
    d->stats.job_id = work->job_id;
    pthread_mutex_unlock(&d->lock);
}

/* The job's own chat template; it was checked at the submit, by a batchd that may have been newer. */
static enum fit fit_chat_template(struct daemon *d, const struct job_work *work, struct chat_template **out) {
    struct err err = ERR_INIT;
    const char *text = work->settings.chat_template;
    if (!text || chat_template_new(out, text, strlen(text), &err) == 0) return FIT_NOW;
    err_wrap(&err, "chat template");
    return give_up_job(d, work->job_id, &err);
}

static int passing_or(struct daemon *d, int r, const struct err *err) {
    if (r == 0) return 0;
    if (!is_passing(r)) return err_set(&d->err, r, "%s", err->text);
    tell_waiting(d, err);
    return 0;
}

/* One lease, if there is one that the pipeline can take. */
static int take_lease(struct daemon *d, bool *taken) {
    struct job_work work;
    struct chat_template *chat_template = NULL;
    bool found = false;
    struct err err = ERR_INIT;
    *taken = false;
    int r = worker_next_job(d->worker, d->o.only_job, &work, &found, &err);
    if (r == 0 && !found) d->nothing_ready = true;
    if (r < 0 || !found) return passing_or(d, r, &err);
    enum fit fit = fit_pipeline(d, &work);
    if (fit == FIT_NOW) fit = fit_chat_template(d, &work, &chat_template);
    if (fit == FIT_NOW) r = note_weights(d, &work, &fit, &err);
    if (fit != FIT_NOW || r < 0) {
        job_work_clear(&work);
        chat_template_free(chat_template);
        return r < 0 ? passing_or(d, r, &err) : fit == FIT_NEVER ? d->err.code : 0;
    }
    drop_lease(d);
    r = worker_lease(d->worker, work.job_id, &d->lease, taken, &err);
    if (r == 0) tell_going_on(d);
    if (r == 0 && *taken) use_job(d, &work, chat_template);
    else {
        job_work_clear(&work);
        chat_template_free(chat_template);
    }
    return passing_or(d, r, &err);
}

static bool lease_has_rows(const struct daemon *d) {
    return d->next_row < d->lease.n_rows;
}

static int feed(struct daemon *d) {
    for (;;) {
        while (lease_has_rows(d) && d->inside < pipeline_capacity(d->pipeline)) {
            pipeline_feed(d->pipeline, row_new(d));
            d->inside++;
        }
        if (lease_has_rows(d) || d->stop) return 0;
        bool taken;
        int r = take_lease(d, &taken);
        if (r < 0 || !taken) return r;
    }
}

/* ---------------------------------------------------------------- the loop */

static int look_around(struct daemon *d) {
    int64_t now = now_ms(), ids[32];
    struct err err = ERR_INIT;
    int r = 0;
    if (now - d->last_look_ms < LOOK_MS) return 0;
    d->last_look_ms = now;
    d->nothing_ready = false;
    int n = worker_cancelled(d->worker, ids, 32, &err);
    for (int i = 0; i < n && d->pipeline; i++)
        engine_abort(pipeline_engine(d->pipeline), (uint64_t)ids[i] << 32, (uint64_t)ids[i] << 32 | UINT32_MAX);
    for (int i = 0; i < n; i++)
        if (ids[i] == d->lease.job_id) drop_lease(d);
    if (n < 0) r = n;
    if (r == 0 && now - d->last_beat_ms >= BEAT_MS) {
        d->last_beat_ms = now;
        r = worker_beat(d->worker, d->stop ? "draining" : d->inside > 0 ? "running" : "idle", &err);
    }
    if (r < 0 && !is_passing(r)) return err_set(&d->err, r, "%s", err.text);
    return 0;
}

static void share_stats(struct daemon *d) {
    if (!d->pipeline) return;
    struct engine_stats s;
    engine_stats(pipeline_engine(d->pipeline), &s);
    pthread_mutex_lock(&d->lock);
    d->stats.engine = s;
    d->stats.engine_is_loaded = true;
    pthread_mutex_unlock(&d->lock);
}

static bool is_finished(const struct daemon *d) {
    bool idle = d->inside == 0 && d->n_batch == 0;
    if (d->stop) return idle;
    return idle && d->nothing_ready && !lease_has_rows(d) && (d->o.once || d->o.only_job);
}

/* What still runs when the time to drain is over is given up: its leases bring it back. */
static void hurry(struct daemon *d) {
    if (!d->stop || d->inside == 0) return;
    if (d->drain_since_ms == 0) d->drain_since_ms = now_ms();
    if (now_ms() - d->drain_since_ms > DRAIN_MS) engine_abort(pipeline_engine(d->pipeline), 0, UINT64_MAX);
}

static int check_engine(struct daemon *d) {
    struct err err = ERR_INIT;
    if (!d->pipeline || engine_failure(pipeline_engine(d->pipeline), &err) == 0) return 0;
    return err_set(&d->err, E_DEVICE, "the engine failed: %s", err.text);
}

static int serve_rows(struct daemon *d) {
    int r = 0;
    while (r == 0 && !is_finished(d)) {
        r = look_around(d);
        if (r == 0 && !d->nothing_ready && !d->stop) r = feed(d);
        int64_t wait = d->inside > 0 ? 20 : d->stop || (d->nothing_ready && d->o.once) ? 0 : 100;
        struct row_work *row = d->pipeline ? pipeline_take(d->pipeline, wait) : NULL;
        if (!d->pipeline && wait) clock_sleep_ms(wait);
        for (; row; row = d->n_batch < COMMIT_ROWS ? pipeline_take(d->pipeline, 0) : NULL) take_finished(d, row);
        if (r == 0 && commit_is_due(d)) r = commit(d);
        share_stats(d);
        hurry(d);
        if (r == 0) r = check_engine(d);
    }
    return r;
}

static void end_batch(struct daemon *d, bool save) {
    if (save) commit(d);
    for (size_t i = 0; i < d->n_batch; i++) row_free(d->batch[i]);
    d->n_batch = 0;
}

/* The next row out of a pipeline that is given up, NULL when none comes for two seconds. While
 * none comes the engine is told again: the feeder still hands over rows that it had been given. */
static struct row_work *take_given_up(struct daemon *d) {
    struct row_work *row = pipeline_take(d->pipeline, 0);
    for (int i = 0; !row && i < 20; i++) {
        engine_abort(pipeline_engine(d->pipeline), 0, UINT64_MAX);
        row = pipeline_take(d->pipeline, 100);
    }
    return row;
}

/* After an error: what is finished is still committed if that can be, also rows that had not
 * come out of the pipeline when the error did. */
static void wind_up(struct daemon *d, int r) {
    bool can_save = r == E_DEVICE || r == 0;
    struct row_work *row;
    end_batch(d, can_save);
    while (d->pipeline && d->inside > 0 && (row = take_given_up(d))) {
        take_finished(d, row);
        if (d->n_batch == COMMIT_ROWS) end_batch(d, can_save);
    }
    end_batch(d, can_save);
    close_pipeline(d);
    lease_clear(&d->lease);
    job_unref(d->job);
}

static void tell_short(int64_t job_id, const char *why) {
    log_error("job %lld: %s", (long long)job_id, why);
}

static void *jobs_thread(void *arg) {
    struct daemon *d = arg;
    struct worker_options wo = {.lock_wait_ms = d->o.lock_wait_ms, .device = d->o.engine.device,
                                .on_short = d->o.only_job ? NULL : tell_short}; /* who serves one job says how it ended */
    int r = store_open(&d->store, d->o.db_path, STORE_CREATE, &d->err);
    if (r == 0) r = worker_open(&d->worker, d->store, &wo, &d->err);
    if (r == 0) {
        if (!d->o.only_job) log_info("serving %s (pid %d)", d->o.db_path, (int)getpid());
        r = serve_rows(d);
        wind_up(d, r);
    }
    worker_close(d->worker);
    store_close(d->store);
    d->err.code = r;
    mailbox_close(d->ended);
    if (d->o.on_end) d->o.on_end();
    return NULL;
}

int daemon_start(struct daemon **out, const struct daemon_options *options, struct err *err) {
    struct daemon *d = mem_zalloc(1, sizeof *d);
    d->o = *options;
    d->ended = mailbox_new(1);
    pthread_mutex_init(&d->lock, NULL);
    if (pthread_create(&d->thread, NULL, jobs_thread, d) != 0) abort();
    *out = d;
    return 0;
}

void daemon_ask_stop(struct daemon *d) {
    d->stop = true;
}

bool daemon_wait(struct daemon *d, int64_t timeout_ms) {
    mailbox_take(d->ended, timeout_ms);
    return mailbox_is_closed(d->ended);
}

void daemon_stats(struct daemon *d, struct daemon_stats *out) {
    pthread_mutex_lock(&d->lock);
    *out = d->stats;
    pthread_mutex_unlock(&d->lock);
}

int daemon_join(struct daemon *d, struct err *err) {
    pthread_join(d->thread, NULL);
    int r = d->err.code;
    if (r < 0 && err) *err = d->err;
    mailbox_free(d->ended);
    pthread_mutex_destroy(&d->lock);
    free(d);
    return r;
}
