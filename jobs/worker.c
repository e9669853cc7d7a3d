/* worker.c - the right to serve a database, and leases of its rows.
 *
 * A file lock stops a second daemon early. Correctness does not rest on it but on
 * the epoch: a starting worker raises it, and every writing transaction of a worker
 * reads it first (worker_begin) and gives up when it is no longer its own. */
#include "jobs/chat_settings.h"
#include "jobs/worker.h"
#include "base/clock.h"
#include "base/mem.h"
#include "jobs/locks.h"
#include "jobs/unfinished.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---------------------------------------------------------------- epoch */

int worker_begin(struct worker *w, struct err *err) {
    int r = store_check_place(w->s, err);
    if (r == 0) r = sql_exec(w->s, "BEGIN IMMEDIATE", err);
    if (r < 0) return r;
    sqlite3_stmt *st = sql_prepare(w->s, "SELECT epoch FROM daemon WHERE id = 1", err);
    r = st ? sql_step(w->s, st, err) : sql_error(w->s, err);
    int64_t epoch = r == 1 ? sqlite3_column_int64(st, 0) : -1;
    if (st) sqlite3_reset(st);
    if (r >= 0 && epoch == w->epoch) return 0;
    sql_rollback(w->s);
    if (r < 0) return r;
    return err_set(err, E_FENCED, "another batchd has taken over %s (epoch %lld, this one is %lld)", store_path(w->s),
                   (long long)epoch, (long long)w->epoch);
}

int worker_commit(struct worker *w, int r, struct err *err) {
    if (r == 0) r = sql_exec(w->s, "COMMIT", err);
    if (r < 0) sql_rollback(w->s);
    return r;
}

static int start_epoch(struct worker *w, const char *device, struct err *err) {
    int r = sql_exec(w->s, "BEGIN IMMEDIATE", err);
    if (r < 0) return r;
    sqlite3_stmt *st = sql_prepare(w->s,
                                   "UPDATE daemon SET epoch = epoch + 1, pid = ?1, device = ?2, state = 'starting',"
                                   " started_at = ?3, beat_at = ?3 WHERE id = 1 RETURNING epoch",
                                   err);
    r = st ? 0 : sql_error(w->s, err);
    if (st) {
        sql_bind_int(st, 1, getpid());
        sql_bind_text(st, 2, device);
        sql_bind_int(st, 3, clock_wall_us());
        r = sql_step(w->s, st, err);
        if (r == 1) w->epoch = sqlite3_column_int64(st, 0);
        sqlite3_reset(st);
    }
    if (r >= 0) r = sql_exec(w->s, "UPDATE lease SET state = 0, epoch = NULL WHERE state = 1", err);
    return worker_commit(w, r < 0 ? r : 0, err);
}

int worker_open(struct worker **out, struct store *s, const struct worker_options *options, struct err *err) {
    struct worker *w = mem_zalloc(1, sizeof *w);
    w->s = s;
    w->lock = -1;
    w->on_short = options->on_short;
    int r = lock_daemon(&w->lock, store_path(s), options->lock_wait_ms, err);
    if (r == 0) {
        unfinished_clean(s);
        r = start_epoch(w, options->device, err);
    }
    if (r < 0) {
        if (w->lock >= 0) close(w->lock);
        free(w);
        return r;
    }
    *out = w;
    return 0;
}

int worker_beat(struct worker *w, const char *state, struct err *err) {
    int r = worker_begin(w, err);
    if (r < 0) return r;
    sqlite3_stmt *st = sql_prepare(w->s, "UPDATE daemon SET state = ?1, beat_at = ?2 WHERE id = 1", err);
    if (!st) r = sql_error(w->s, err);
    else {
        sql_bind_text(st, 1, state);
        sql_bind_int(st, 2, clock_wall_us());
        r = sql_run(w->s, st, err);
    }
    return worker_commit(w, r, err);
}

int worker_release(struct worker *w, struct err *err) {
    int r = worker_begin(w, err);
    if (r == 0) r = sql_exec(w->s, "UPDATE lease SET state = 0, epoch = NULL WHERE state = 1", err);
    else return r;
    return worker_commit(w, r, err);
}

void worker_close(struct worker *w) {
    if (!w) return;
    if (worker_release(w, NULL) == 0) worker_beat(w, "stopped", NULL);
    close(w->lock);
    free(w);
}

/* ---------------------------------------------------------------- jobs and leases */

static void load_settings(sqlite3_stmt *st, struct job_work *j) {
    struct job_settings *set = &j->settings;
    j->job_id = sqlite3_column_int64(st, 0);
    set->model = sql_text(st, 1);
    set->dtype = sql_text(st, 2);
    set->quantization = sql_text(st, 3);
    set->kv_cache_dtype = sql_text(st, 4);
    set->max_model_len = sqlite3_column_int64(st, 5);
    set->template_text = sql_text(st, 6);
    set->system_text = sql_text(st, 7);
    set->chat = sql_text(st, 8);
    set->seed = (uint64_t)sqlite3_column_int64(st, 9);
    params_from_json(&set->params, (const char *)sqlite3_column_text(st, 10), NULL);
    j->submitted_us = sqlite3_column_int64(st, 14);
    chat_settings_from_json(set, (const char *)sqlite3_column_text(st, 15));
    j->weights_id = sqlite3_column_int64(st, 16);
    json_t *columns = json_loads((const char *)sqlite3_column_text(st, 11) ? (const char *)sqlite3_column_text(st, 11) : "[]",
                                 0, NULL);
    j->n_columns = json_array_size(columns);
    j->columns = j->n_columns ? mem_zalloc(j->n_columns, sizeof *j->columns) : NULL;
    j->prompt_column = j->id_column = -1;
    const char *prompt = (const char *)sqlite3_column_text(st, 12), *id = (const char *)sqlite3_column_text(st, 13);
    j->prompt_key = mem_strdup(prompt);
    for (size_t i = 0; i < j->n_columns; i++) {
        j->columns[i] = mem_strdup(json_string_value(json_array_get(columns, i)));
        if (prompt && strcmp(j->columns[i], prompt) == 0) j->prompt_column = (int32_t)i;
        if (id && strcmp(j->columns[i], id) == 0) j->id_column = (int32_t)i;
    }
    json_decref(columns);
}

void job_work_clear(struct job_work *j) {
    for (size_t i = 0; i < j->n_columns; i++) free(j->columns[i]);
    free(j->columns);
    free(j->prompt_key);
    job_settings_clear(&j->settings);
    *j = (struct job_work){0};
}

#define IS_READY "state IN ('queued', 'running') AND " LEASE_IS_READY("job.job_id")

/* The first job in the order of the index job_ready, so that a hundred thousand waiting
 * jobs cost no more than one; *job_id 0 = nothing is ready. */
static int first_ready(struct worker *w, int64_t *job_id, int64_t *priority, struct err *err) {
    sqlite3_stmt *st = sql_prepare(
        w->s, "SELECT job_id, priority FROM job WHERE " IS_READY " ORDER BY priority DESC, job_id LIMIT 1", err);
    if (!st) return sql_error(w->s, err);
    int r = sql_step(w->s, st, err);
    *job_id = r == 1 ? sqlite3_column_int64(st, 0) : 0;
    *priority = r == 1 ? sqlite3_column_int64(st, 1) : 0;
    sqlite3_reset(st);
    return r < 0 ? r : 0;
}

/* The next job of that priority behind the one served last, if there is one. */
static int take_turns(struct worker *w, int64_t *job_id, int64_t priority, struct err *err) {
    sqlite3_stmt *st = sql_prepare(
        w->s, "SELECT job_id FROM job WHERE " IS_READY " AND priority = ?1 AND job_id > ?2 ORDER BY job_id LIMIT 1", err);
    if (!st) return sql_error(w->s, err);
    sql_bind_int(st, 1, priority);
    sql_bind_int(st, 2, w->last_job);
    int r = sql_step(w->s, st, err);
    if (r == 1) *job_id = sqlite3_column_int64(st, 0);
    sqlite3_reset(st);
    return r < 0 ? r : 0;
}

static int load_job(struct worker *w, int64_t job_id, struct job_work *out, bool *found, struct err *err) {
    sqlite3_stmt *st = sql_prepare(
        w->s,
        "SELECT job_id, model, dtype, quantization, kv_cache_dtype, max_model_len, template, system, chat, seed,"
        " params, columns, prompt_column, id_column, submitted_at, chat_settings, weights_id FROM job WHERE job_id = ?1 AND " IS_READY,
        err);
    if (!st) return sql_error(w->s, err);
    sql_bind_int(st, 1, job_id);
    int r = sql_step(w->s, st, err);
    *found = r == 1;
    if (r == 1) {
        struct job_work j = {0};
        load_settings(st, &j);
        *out = j;
    }
    sqlite3_reset(st);
    return r < 0 ? r : 0;
}

/* One snapshot for all of it: a job that is cancelled between the choice and the look at it
 * would otherwise pass for "nothing is ready", which ends a daemon that runs once. */
int worker_next_job(struct worker *w, int64_t only, struct job_work *out, bool *found, struct err *err) {
    int64_t job_id = only, priority;
    int r = sql_exec(w->s, "BEGIN", err);
    if (r < 0) return r;
    if (!only) r = first_ready(w, &job_id, &priority, err);
    if (r == 0 && !only && job_id) r = take_turns(w, &job_id, priority, err);
    *found = false;
    if (r == 0 && job_id) r = load_job(w, job_id, out, found, err);
    if (r == 0 && *found) w->last_job = job_id;
    sql_rollback(w->s);
    return r;
}

void lease_clear(struct lease *l) {
    for (size_t i = 0; i < l->n_rows; i++) {
        free(l->rows[i].input);
        free(l->rows[i].params);
    }
    free(l->rows);
    *l = (struct lease){0};
}

static int read_rows(struct worker *w, struct lease *l, int64_t first, int64_t n, struct err *err) {
    sqlite3_stmt *st = sql_prepare(w->s,
                                   "SELECT q.id, batchd_text(q.input, 0), q.params FROM request q"
                                   " LEFT JOIN result r ON r.id = q.id WHERE q.id BETWEEN ?1 AND ?2 AND r.id IS NULL",
                                   err);
    if (!st) return sql_error(w->s, err);
    sql_bind_int(st, 1, row_id(l->job_id, first));
    sql_bind_int(st, 2, row_id(l->job_id, first + n - 1));
    l->rows = mem_zalloc((size_t)n, sizeof *l->rows);
    int r;
    while ((r = sql_step(w->s, st, err)) == 1)
        l->rows[l->n_rows++] = (struct request_row){
            .row = sqlite3_column_int64(st, 0) - row_id(l->job_id, 0), .input = sql_text(st, 1), .params = sql_text(st, 2)};
    return r;
}

static int claim(struct worker *w, struct lease *l, int64_t *first, int64_t *n, struct err *err) {
    sqlite3_stmt *st = sql_prepare(w->s,
                                   "UPDATE lease SET state = 1, epoch = ?2 WHERE job_id = ?1 AND lease_no ="
                                   " (SELECT lease_no FROM lease INDEXED BY lease_ready WHERE job_id = ?1 AND state = 0 ORDER BY lease_no LIMIT 1)"
                                   " AND EXISTS (SELECT 1 FROM job WHERE job_id = ?1 AND state IN ('queued', 'running'))"
                                   " RETURNING lease_no, first_row, n_rows",
                                   err);
    if (!st) return sql_error(w->s, err);
    sql_bind_int(st, 1, l->job_id);
    sql_bind_int(st, 2, w->epoch);
    int r = sql_step(w->s, st, err);
    if (r == 1) {
        l->lease_no = sqlite3_column_int64(st, 0);
        *first = sqlite3_column_int64(st, 1);
        *n = sqlite3_column_int64(st, 2);
    }
    sqlite3_reset(st);
    return r;
}

static int mark_running(struct worker *w, int64_t job_id, struct err *err) {
    sqlite3_stmt *st = sql_prepare(w->s,
                                   "UPDATE job SET state = 'running', started_at = coalesce(started_at, ?2)"
                                   " WHERE job_id = ?1 AND state = 'queued'",
                                   err);
    if (!st) return sql_error(w->s, err);
    sql_bind_int(st, 1, job_id);
    sql_bind_int(st, 2, clock_wall_us());
    return sql_run(w->s, st, err);
}

/* Claim the next lease with rows to do: 1, or 0 when there is none. One whose rows all have
 * results by now (they were published after it was given back), or are gone, is closed at
 * once, because nobody would publish into it again. */
static int claim_rows(struct worker *w, struct lease *l, struct err *err) {
    int64_t first = 0, n = 0;
    int r;
    while ((r = claim(w, l, &first, &n, err)) == 1) {
        r = mark_running(w, l->job_id, err);
        if (r == 0) r = read_rows(w, l, first, n, err);
        if (r < 0) return r;
        if (l->n_rows > 0) return 1;
        free(l->rows);
        l->rows = NULL;
        r = worker_close_done(w, l->job_id, err);
        if (r < 0) return r;
    }
    return r;
}

int worker_lease(struct worker *w, int64_t job_id, struct lease *out, bool *found, struct err *err) {
    struct lease l = {.job_id = job_id};
    int r = worker_begin(w, err);
    if (r < 0) return r;
    r = claim_rows(w, &l, err);
    bool has_rows = r == 1;
    r = worker_commit(w, r < 0 ? r : 0, err);
    if (r < 0) {
        lease_clear(&l);
        return r;
    }
    *found = has_rows;
    if (has_rows) {
        l.leased_mono_ns = clock_mono_ns();
        l.leased_wall_us = clock_wall_us();
        *out = l;
    }
    return 0;
}

/* ---------------------------------------------------------------- jobs that end early */

int worker_fail_job(struct worker *w, int64_t job_id, const char *message, struct err *err) {
    int r = worker_begin(w, err);
    if (r < 0) return r;
    sqlite3_stmt *st = sql_prepare(w->s,
                                   "UPDATE job SET state = 'failed', error = ?2, finished_at = ?3"
                                   " WHERE job_id = ?1 AND state IN ('queued', 'running')",
                                   err);
    if (!st) r = sql_error(w->s, err);
    else {
        sql_bind_int(st, 1, job_id);
        sql_bind_text(st, 2, message);
        sql_bind_int(st, 3, clock_wall_us());
        r = sql_run(w->s, st, err);
    }
    return worker_commit(w, r, err);
}

static int drop_leases(struct worker *w, int64_t job_id, struct err *err) {
    sqlite3_stmt *st = sql_prepare(w->s, "UPDATE lease SET state = 2, epoch = NULL WHERE job_id = ?1 AND state = 1", err);
    if (!st) return sql_error(w->s, err);
    sql_bind_int(st, 1, job_id);
    return sql_run(w->s, st, err);
}

int worker_cancelled(struct worker *w, int64_t *ids, size_t cap, struct err *err) {
    sqlite3_stmt *st = sql_prepare(w->s,
                                   "SELECT DISTINCT l.job_id FROM lease l JOIN job j ON j.job_id = l.job_id"
                                   " WHERE l.state = 1 AND j.state = 'cancelled' AND l.epoch = ?1",
                                   err);
    if (!st) return sql_error(w->s, err);
    sql_bind_int(st, 1, w->epoch);
    int n = 0, r = 1;
    while ((size_t)n < cap && (r = sql_step(w->s, st, err)) == 1) ids[n++] = sqlite3_column_int64(st, 0);
    sqlite3_reset(st);
    if (r < 0 || n == 0) return r < 0 ? r : 0;
    r = worker_begin(w, err);
    if (r < 0) return r;
    for (int i = 0; r == 0 && i < n; i++) r = drop_leases(w, ids[i], err);
    r = worker_commit(w, r, err);
    return r < 0 ? r : n;
}
