/* worker.c - the right to serve a database, and leases of its rows.
 *
 * A file lock stops a second daemon early. Correctness does not rest on it but on
 * the epoch: a starting worker raises it, and every writing transaction of a worker
 * reads it first (worker_begin) and gives up when it is no longer its own. */
#include "jobs/worker.h"
#include "base/clock.h"
#include "base/mem.h"
#include "jobs/submit.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

/* ---------------------------------------------------------------- lock */

static char *lock_path(const char *db_path) {
    struct buf b = BUF_INIT(0);
    buf_printf(&b, "%s.lock", db_path);
    return buf_take(&b);
}

static int read_pid(int fd) {
    char text[32] = {0};
    return pread(fd, text, sizeof text - 1, 0) > 0 ? atoi(text) : 0;
}

static int take_lock(int *out, const char *db_path, int64_t wait_ms, struct err *err) {
    char *path = lock_path(db_path);
    int r = 0, fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    int64_t deadline = clock_mono_ns() + wait_ms * 1000000;
    if (fd < 0) r = err_set(err, E_PERMISSION, "cannot open %s: %s", path, strerror(errno));
    while (r == 0 && flock(fd, LOCK_EX | LOCK_NB) < 0) {
        if (clock_mono_ns() < deadline) clock_sleep_ms(50);
        else r = err_set(err, E_BUSY, "another batchd (pid %d) serves %s; wait for it or stop it", read_pid(fd), db_path);
    }
    if (r == 0) {
        char text[32];
        int n = snprintf(text, sizeof text, "%d\n", (int)getpid());
        if (ftruncate(fd, 0) < 0 || pwrite(fd, text, (size_t)n, 0) < 0)
            r = err_set(err, errno == ENOSPC ? E_FULL : E_IO, "cannot write %s: %s", path, strerror(errno));
    }
    free(path);
    if (r == 0) *out = fd;
    else if (fd >= 0) close(fd);
    return r;
}

bool worker_is_alive(const char *db_path, int *pid) {
    char *path = lock_path(db_path);
    int fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    free(path);
    if (fd < 0) return false;
    bool alive = flock(fd, LOCK_SH | LOCK_NB) < 0;
    if (alive && pid) *pid = read_pid(fd);
    close(fd);
    return alive;
}

/* ---------------------------------------------------------------- epoch */

int worker_begin(struct worker *w, struct err *err) {
    int r = sql_exec(w->s, "BEGIN IMMEDIATE", err);
    if (r < 0) return r;
    sqlite3_stmt *st = sql_prepare(w->s, "SELECT epoch FROM daemon WHERE id = 1", err);
    r = st ? sql_step(w->s, st, err) : E_IO;
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
    r = st ? 0 : E_IO;
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
    int r = take_lock(&w->lock, store_path(s), options->lock_wait_ms, err);
    if (r == 0) {
        submit_clean(s);
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
    if (!st) r = E_IO;
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

/* Jobs of the highest priority take turns: the one after the job served last. */
int worker_next_job(struct worker *w, int64_t only, struct job_work *out, bool *found, struct err *err) {
    sqlite3_stmt *st = sql_prepare(
        w->s,
        "SELECT j.job_id, model, dtype, quantization, kv_cache_dtype, max_model_len, template, system, chat, seed,"
        " params, columns, prompt_column, id_column, submitted_at FROM job j"
        " WHERE state IN ('queued', 'running') AND (?1 = 0 OR j.job_id = ?1)"
        " AND EXISTS (SELECT 1 FROM lease l WHERE l.job_id = j.job_id AND l.state = 0)"
        " ORDER BY priority DESC, j.job_id <= ?2, j.job_id LIMIT 1",
        err);
    if (!st) return err ? err->code : E_IO;
    sql_bind_int(st, 1, only);
    sql_bind_int(st, 2, w->last_job);
    int r = sql_step(w->s, st, err);
    *found = r == 1;
    if (r == 1) {
        struct job_work j = {0};
        load_settings(st, &j);
        w->last_job = j.job_id;
        *out = j;
    }
    sqlite3_reset(st);
    return r < 0 ? r : 0;
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
                                   "SELECT q.id, batchd_text(q.input), q.params FROM request q"
                                   " LEFT JOIN result r ON r.id = q.id WHERE q.id BETWEEN ?1 AND ?2 AND r.id IS NULL",
                                   err);
    if (!st) return E_IO;
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
                                   " (SELECT lease_no FROM lease WHERE job_id = ?1 AND state = 0 ORDER BY lease_no LIMIT 1)"
                                   " RETURNING lease_no, first_row, n_rows",
                                   err);
    if (!st) return E_IO;
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
    if (!st) return E_IO;
    sql_bind_int(st, 1, job_id);
    sql_bind_int(st, 2, clock_wall_us());
    return sql_run(w->s, st, err);
}

int worker_lease(struct worker *w, int64_t job_id, struct lease *out, bool *found, struct err *err) {
    struct lease l = {.job_id = job_id};
    int64_t first = 0, n = 0;
    int r = worker_begin(w, err);
    if (r < 0) return r;
    r = claim(w, &l, &first, &n, err);
    *found = r == 1;
    if (r == 1) r = mark_running(w, job_id, err);
    if (r == 0 && *found) r = read_rows(w, &l, first, n, err);
    r = worker_commit(w, r < 0 ? r : 0, err);
    if (r < 0) lease_clear(&l);
    else if (*found) {
        l.leased_mono_ns = clock_mono_ns();
        l.leased_wall_us = clock_wall_us();
        *out = l;
    }
    return r;
}

/* ---------------------------------------------------------------- jobs that end early */

int worker_fail_job(struct worker *w, int64_t job_id, const char *message, struct err *err) {
    int r = worker_begin(w, err);
    if (r < 0) return r;
    sqlite3_stmt *st = sql_prepare(w->s,
                                   "UPDATE job SET state = 'failed', error = ?2, finished_at = ?3"
                                   " WHERE job_id = ?1 AND state IN ('queued', 'running')",
                                   err);
    if (!st) r = E_IO;
    else {
        sql_bind_int(st, 1, job_id);
        sql_bind_text(st, 2, message);
        sql_bind_int(st, 3, clock_wall_us());
        r = sql_run(w->s, st, err);
    }
    return worker_commit(w, r, err);
}

int worker_cancelled(struct worker *w, int64_t *ids, size_t cap, struct err *err) {
    sqlite3_stmt *st = sql_prepare(w->s,
                                   "SELECT DISTINCT l.job_id FROM lease l JOIN job j ON j.job_id = l.job_id"
                                   " WHERE l.state = 1 AND j.state = 'cancelled' AND l.epoch = ?1",
                                   err);
    if (!st) return E_IO;
    sql_bind_int(st, 1, w->epoch);
    int n = 0, r;
    while ((r = sql_step(w->s, st, err)) == 1 && (size_t)n < cap) ids[n++] = sqlite3_column_int64(st, 0);
    sqlite3_reset(st);
    if (r < 0 || n == 0) return r < 0 ? r : 0;
    r = worker_begin(w, err);
    if (r == 0)
        r = worker_commit(w, sql_exec(w->s, "UPDATE lease SET state = 2, epoch = NULL WHERE state = 1 AND job_id IN"
                                            " (SELECT job_id FROM job WHERE state = 'cancelled')", err), err);
    return r < 0 ? r : n;
}
