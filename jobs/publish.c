/* publish.c - results become visible: one transaction for the rows, the counters of
 * their jobs, and the leases that are complete with them. */
#include "base/clock.h"
#include "base/mem.h"
#include "jobs/worker.h"

#include <stdlib.h>
#include <string.h>

struct tally { /* what a transaction adds to one job */
    int64_t job_id, done, failed, prompt, cached, completion;
};

static int finish_code(const char *reason) {
    return strcmp(reason, "stop") == 0 ? 0 : strcmp(reason, "length") == 0 ? 1 : 2;
}

static void bind_packed(sqlite3_stmt *st, int i, const struct packed_text *t) {
    if (!t->data) sqlite3_bind_null(st, i);
    else if (t->codec == CODEC_RAW) sqlite3_bind_text64(st, i, t->data, t->bytes, SQLITE_STATIC, SQLITE_UTF8);
    else sqlite3_bind_blob64(st, i, t->data, t->bytes, SQLITE_STATIC);
}

static void bind_result(sqlite3_stmt *st, const struct result_row *r, int64_t epoch) {
    sql_bind_int(st, 1, row_id(r->job_id, r->row));
    sql_bind_int(st, 2, r->status);
    sql_bind_int(st, 3, finish_code(r->finish_reason));
    sql_bind_int(st, 4, r->status == ROW_OK ? r->codec : CODEC_RAW);
    if (r->status != ROW_OK) sqlite3_bind_null(st, 5);
    else if (r->codec == CODEC_RAW) sqlite3_bind_text64(st, 5, r->text ? r->text : "", r->text_bytes, SQLITE_STATIC, SQLITE_UTF8);
    else sqlite3_bind_blob64(st, 5, r->text, r->text_bytes, SQLITE_STATIC);
    const int32_t counts[] = {r->prompt_tokens, r->cached_tokens, r->completion_tokens};
    for (int i = 0; i < 3; i++) sql_bind_int(st, 6 + i, counts[i]);
    const int64_t times[] = {r->wait_us, r->queue_us, r->prefill_us, r->ttft_us, r->decode_us, r->e2e_us};
    for (int i = 0; i < 6; i++) sql_bind_int_or_null(st, 9 + i, times[i]);
    sql_bind_int(st, 15, r->preemptions);
    sql_bind_int(st, 16, r->attempt);
    sql_bind_int(st, 17, (int64_t)r->seed);
    sql_bind_int(st, 18, epoch);
    sql_bind_int(st, 19, clock_wall_us());
    sql_bind_text(st, 20, r->error_code);
    sql_bind_text(st, 21, r->error);
    bind_packed(st, 22, &r->logprobs);
    bind_packed(st, 23, &r->prompt_logprobs);
}

/* 1 = went in; 0 = has a result already, its job takes none any more, or its request is gone. */
static int insert_result(struct worker *w, const struct result_row *r, struct err *err) {
    sqlite3_stmt *st = sql_prepare(w->s,
                                   "INSERT INTO result SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14,"
                                   " ?15, ?16, ?17, ?18, ?19, ?20, ?21, ?22, ?23"
                                   " WHERE EXISTS (SELECT 1 FROM job WHERE job_id = ?1 >> 32 AND state = 'running')"
                                   " AND EXISTS (SELECT 1 FROM request WHERE id = ?1)"
                                   " ON CONFLICT(id) DO NOTHING",
                                   err);
    if (!st) return sql_error(w->s, err);
    bind_result(st, r, w->epoch);
    int e = sql_run(w->s, st, err);
    return e < 0 ? e : sqlite3_changes(w->s->db) > 0;
}

static struct tally *tally_of(struct tally *t, size_t *n, int64_t job_id) {
    for (size_t i = 0; i < *n; i++)
        if (t[i].job_id == job_id) return &t[i];
    t[*n] = (struct tally){.job_id = job_id};
    return &t[(*n)++];
}

static int count(struct worker *w, const struct tally *t, struct err *err) {
    sqlite3_stmt *st = sql_prepare(w->s,
                                   "UPDATE job SET n_done = n_done + ?2, n_failed = n_failed + ?3, prompt_tokens ="
                                   " prompt_tokens + ?4, cached_tokens = cached_tokens + ?5,"
                                   " completion_tokens = completion_tokens + ?6 WHERE job_id = ?1",
                                   err);
    if (!st) return sql_error(w->s, err);
    const int64_t values[] = {t->job_id, t->done, t->failed, t->prompt, t->cached, t->completion};
    for (int i = 0; i < 6; i++) sql_bind_int(st, i + 1, values[i]);
    return sql_run(w->s, st, err);
}

/* A lease is done when no request in it lacks a result: one that somebody deleted gets none. The
 * walk ends at the first that does. */
static int close_leases(struct worker *w, int64_t job_id, struct err *err) {
    sqlite3_stmt *st = sql_prepare(w->s,
                                   "UPDATE lease INDEXED BY lease_taken SET state = 2, epoch = NULL"
                                   " WHERE job_id = ?1 AND state = 1 AND epoch = ?2 AND NOT EXISTS (SELECT 1 FROM request q"
                                   "  WHERE q.id BETWEEN (?1 << 32) + first_row AND (?1 << 32) + first_row + n_rows - 1"
                                   "  AND NOT EXISTS (SELECT 1 FROM result r WHERE r.id = q.id))",
                                   err);
    if (!st) return sql_error(w->s, err);
    sql_bind_int(st, 1, job_id);
    sql_bind_int(st, 2, w->epoch);
    return sql_run(w->s, st, err);
}

/* A job is done when its rows are, or when no lease is left: then some rows are gone. */
static int close_job(struct worker *w, int64_t job_id, struct err *err) {
    sqlite3_stmt *st = sql_prepare(w->s,
                                   "UPDATE job SET finished_at = ?2, state = CASE WHEN n_done + n_failed < n_rows THEN 'failed'"
                                   " WHEN n_failed > 0 THEN 'partial' ELSE 'done' END, error = CASE WHEN n_done + n_failed < n_rows"
                                   " THEN (n_rows - n_done - n_failed) || ' of its ' || n_rows || ' rows are gone from the database,"
                                   " deleted by somebody; submit them once more' END WHERE job_id = ?1 AND state = 'running'"
                                   " AND (n_done + n_failed = n_rows OR NOT (" LEASE_IS_READY("?1") " OR EXISTS (SELECT 1 FROM lease"
                                   "  INDEXED BY lease_taken WHERE job_id = ?1 AND state = 1 AND epoch = ?3))) RETURNING error",
                                   err);
    if (!st) return sql_error(w->s, err);
    sql_bind_int(st, 1, job_id);
    sql_bind_int(st, 2, clock_wall_us());
    sql_bind_int(st, 3, w->epoch);
    int r = sql_step(w->s, st, err);
    const char *why = r == 1 ? (const char *)sqlite3_column_text(st, 0) : NULL;
    if (why && w->on_short) w->on_short(job_id, why);
    sqlite3_reset(st);
    return r < 0 ? r : 0;
}

int worker_close_done(struct worker *w, int64_t job_id, struct err *err) {
    int r = close_leases(w, job_id, err);
    return r < 0 ? r : close_job(w, job_id, err);
}

static int insert_all(struct worker *w, const struct result_row *rows, size_t n, struct tally *tallies, size_t *n_tallies,
                      struct err *err) {
    for (size_t i = 0; i < n; i++) {
        struct tally *t = tally_of(tallies, n_tallies, rows[i].job_id);
        int r = insert_result(w, &rows[i], err);
        if (r < 0) return r;
        if (r == 0) continue;
        *(rows[i].status == ROW_OK ? &t->done : &t->failed) += 1;
        t->prompt += rows[i].prompt_tokens;
        t->cached += rows[i].cached_tokens;
        t->completion += rows[i].completion_tokens;
    }
    return 0;
}

int worker_publish(struct worker *w, const struct result_row *rows, size_t n, struct err *err) {
    struct err local = ERR_INIT;
    if (!err) err = &local;
    int r = worker_begin(w, err);
    if (r < 0) return r;
    struct tally *tallies = mem_zalloc(n ? n : 1, sizeof *tallies);
    size_t n_tallies = 0;
    r = insert_all(w, rows, n, tallies, &n_tallies, err);
    for (size_t i = 0; r == 0 && i < n_tallies; i++) {
        r = count(w, &tallies[i], err);
        if (r == 0) r = worker_close_done(w, tallies[i].job_id, err);
    }
    r = worker_commit(w, r, err);
    for (size_t i = 0; r == 0 && i < n_tallies; i++) w->n_published += tallies[i].done + tallies[i].failed;
    free(tallies);
    return r;
}

int64_t worker_n_published(const struct worker *w) {
    return w->n_published;
}
