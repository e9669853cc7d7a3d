/* readers.c - jobs, results and rejects, in short read transactions. */
#include "base/clock.h"
#include "base/mem.h"
#include "jobs/store.h"

#include <stdlib.h>
#include <string.h>

enum { PAGE_ROWS = 256, PAGE_BYTES = 8 << 20 }; /* what is read in one transaction */

/* ---------------------------------------------------------------- jobs */

#define JOB_COLUMNS                                                                                                    \
    "job_id, key, name, state, model, error, n_rows, n_done, n_failed, n_rejected, prompt_tokens, completion_tokens,"  \
    " priority, submitted_at, started_at, finished_at"

/* Before version 3 nothing was noted of weights. */
#define SELECT_JOB "SELECT " JOB_COLUMNS ", (SELECT sha256 FROM weights w WHERE w.weights_id = job.weights_id) FROM job"
#define SELECT_OLD_JOB "SELECT " JOB_COLUMNS ", NULL FROM job"
#define BY_ID_OR_KEY " WHERE CASE WHEN ?2 IS NULL THEN job_id = ?1 ELSE key = ?2 END"

static void read_job(sqlite3_stmt *st, struct job_info *j) {
    *j = (struct job_info){
        .job_id = sqlite3_column_int64(st, 0),
        .key = sql_text(st, 1),
        .name = sql_text(st, 2),
        .state = sql_text(st, 3),
        .model = sql_text(st, 4),
        .error = sql_text(st, 5),
        .n_rows = sqlite3_column_int64(st, 6),
        .n_done = sqlite3_column_int64(st, 7),
        .n_failed = sqlite3_column_int64(st, 8),
        .n_rejected = sqlite3_column_int64(st, 9),
        .prompt_tokens = sqlite3_column_int64(st, 10),
        .completion_tokens = sqlite3_column_int64(st, 11),
        .priority = sqlite3_column_int(st, 12),
        .submitted_us = sqlite3_column_int64(st, 13),
        .started_us = sqlite3_column_int64(st, 14),
        .finished_us = sqlite3_column_int64(st, 15),
        .weights = sql_text(st, 16),
    };
}

void job_info_clear(struct job_info *j) {
    char **texts[] = {&j->key, &j->name, &j->state, &j->model, &j->error, &j->weights};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) free(*texts[i]);
    *j = (struct job_info){0};
}

int job_get(struct store *s, int64_t job_id, const char *key, struct job_info *out, struct err *err) {
    sqlite3_stmt *st = sql_prepare(s, s->version < 3 ? SELECT_OLD_JOB BY_ID_OR_KEY : SELECT_JOB BY_ID_OR_KEY, err);
    if (!st) return sql_error(s, err);
    sql_bind_int(st, 1, job_id);
    sql_bind_text(st, 2, key);
    int r = sql_step(s, st, err);
    if (r == 1) read_job(st, out);
    sqlite3_reset(st);
    if (r == 0 && key) return err_set(err, E_NOT_FOUND, "no job with key \"%s\" in %s", key, store_path(s));
    if (r == 0) return err_set(err, E_NOT_FOUND, "no job %lld in %s", (long long)job_id, store_path(s));
    return r < 0 ? r : 0;
}

int job_list(struct store *s, struct job_info **out, size_t *n, struct err *err) {
    sqlite3_stmt *st = sql_prepare(s, s->version < 3 ? SELECT_OLD_JOB " ORDER BY job_id" : SELECT_JOB " ORDER BY job_id", err);
    struct job_info *jobs = NULL;
    size_t count = 0, cap = 0;
    int r;
    if (!st) return sql_error(s, err);
    while ((r = sql_step(s, st, err)) == 1) {
        if (count == cap) {
            cap = cap ? cap * 2 : 16;
            jobs = mem_realloc(jobs, cap, sizeof *jobs);
        }
        read_job(st, &jobs[count++]);
    }
    if (r < 0) {
        for (size_t i = 0; i < count; i++) job_info_clear(&jobs[i]);
        free(jobs);
        return r;
    }
    *out = jobs;
    *n = count;
    return 0;
}

bool job_is_final(const struct job_info *j) {
    static const char *const open[] = {"loading", "queued", "running"};
    for (size_t i = 0; i < sizeof open / sizeof *open; i++)
        if (strcmp(j->state, open[i]) == 0) return false;
    return true;
}

bool job_is_given_up(const struct job_info *j) {
    return strcmp(j->state, "failed") == 0 || strcmp(j->state, "cancelled") == 0;
}

int job_cancel(struct store *s, int64_t job_id, const char *reason, struct err *err) {
    sqlite3_stmt *st = sql_prepare(s,
                                   "UPDATE job SET state = 'cancelled', error = ?2, finished_at = ?3"
                                   " WHERE job_id = ?1 AND state IN ('queued', 'running')",
                                   err);
    if (!st) return sql_error(s, err);
    sql_bind_int(st, 1, job_id);
    sql_bind_text(st, 2, reason);
    sql_bind_int(st, 3, clock_wall_us());
    int r = sql_run(s, st, err);
    if (r < 0) return r;
    if (sqlite3_changes(s->db) > 0) return 0;
    struct job_info j;
    r = job_get(s, job_id, NULL, &j, err);
    if (r < 0) return r;
    if (strcmp(j.state, "loading") == 0)
        r = err_set(err, E_BUSY, "job %lld is still being loaded; cancel it when it is, or end its submit", (long long)job_id);
    else r = err_set(err, E_EXISTS, "job %lld is %s already", (long long)job_id, j.state);
    job_info_clear(&j);
    return r;
}

/* ---------------------------------------------------------------- results */

static double ms(sqlite3_stmt *st, int column) {
    return sqlite3_column_type(st, column) == SQLITE_NULL ? -1.0 : (double)sqlite3_column_int64(st, column) / 1000.0;
}

static void view_of(sqlite3_stmt *st, int64_t job_id, struct result_view *v) {
    static const char *const finishes[] = {"stop", "length", "error"};
    int64_t tokens = sqlite3_column_int64(st, 6);
    *v = (struct result_view){
        .row = sqlite3_column_int64(st, 0) - row_id(job_id, 0),
        .custom_id = (const char *)sqlite3_column_text(st, 1),
        .status = sqlite3_column_int(st, 2) == ROW_OK ? "ok" : "failed",
        .finish_reason = finishes[sqlite3_column_int(st, 3) % 3],
        .prompt_tokens = sqlite3_column_int(st, 4),
        .cached_tokens = sqlite3_column_int(st, 5),
        .completion_tokens = (int32_t)tokens,
        .wait_ms = ms(st, 7),
        .queue_ms = ms(st, 8),
        .prefill_ms = ms(st, 9),
        .ttft_ms = ms(st, 10),
        .decode_ms = ms(st, 11),
        .e2e_ms = ms(st, 12),
        .preemptions = sqlite3_column_int(st, 13),
        .attempt = sqlite3_column_int(st, 14),
        .error_code = (const char *)sqlite3_column_text(st, 15),
        .error = (const char *)sqlite3_column_text(st, 16),
        .completion = (const char *)sqlite3_column_text(st, 17),
        .completion_bytes = (size_t)sqlite3_column_bytes(st, 17),
        .input = (const char *)sqlite3_column_text(st, 18),
        .logprobs = (const char *)sqlite3_column_text(st, 19),
        .prompt_logprobs = (const char *)sqlite3_column_text(st, 20),
        .finished_us = sqlite3_column_int64(st, 21),
    };
    v->tpot_ms = tokens >= 2 && v->decode_ms >= 0 ? v->decode_ms / (double)(tokens - 1) : -1.0;
}

/* A page is read whole and then handed out, so that a slow reader of the output, a pipe
 * into `less` for instance, holds no transaction open. */
struct page {
    struct result_view rows[PAGE_ROWS];
    size_t n, bytes;
};

static const char *copied(const char *text, size_t n, struct page *p) {
    if (!text) return NULL;
    p->bytes += n;
    return mem_strndup(text, n);
}

static const char *copied_text(const char *text, struct page *p) {
    return copied(text, text ? strlen(text) : 0, p);
}

static void page_add(struct page *p, const struct result_view *borrowed) {
    struct result_view *v = &p->rows[p->n++];
    *v = *borrowed;
    v->custom_id = copied_text(v->custom_id, p);
    v->error_code = copied_text(v->error_code, p);
    v->error = copied_text(v->error, p);
    v->input = copied_text(v->input, p);
    v->completion = copied(v->completion, v->completion_bytes, p);
    v->logprobs = copied_text(v->logprobs, p);
    v->prompt_logprobs = copied_text(v->prompt_logprobs, p);
}

static void page_clear(struct page *p) {
    for (size_t i = 0; i < p->n; i++) {
        const char *texts[] = {p->rows[i].custom_id, p->rows[i].error_code, p->rows[i].error, p->rows[i].input,
                               p->rows[i].completion, p->rows[i].logprobs, p->rows[i].prompt_logprobs};
        for (size_t k = 0; k < sizeof texts / sizeof *texts; k++) free((char *)texts[k]);
    }
    p->n = p->bytes = 0;
}

/* A database of version 1 has no logprobs. */
#define PAGE_OF(logprobs)                                                                        \
    "SELECT r.id, q.custom_id, r.status, r.finish, r.prompt_tokens, r.cached_tokens,"            \
    " r.completion_tokens, r.wait_us, r.queue_us, r.prefill_us, r.ttft_us, r.decode_us,"         \
    " r.e2e_us, r.preemptions, r.attempt, r.error_code, r.error,"                                \
    " batchd_text(r.completion), coalesce(batchd_text(q.input, 0), 'null'), "                    \
    logprobs ", r.finished_at"                                                                   \
    " FROM result r JOIN request q ON q.id = r.id WHERE r.id BETWEEN ?1 AND ?2"                  \
    " AND (?3 < 0 OR r.status = ?3) ORDER BY r.id LIMIT ?4"

static int read_page(struct store *s, int64_t job_id, const struct result_filter *f, int64_t from, int64_t limit,
                     struct page *page, struct err *err) {
    sqlite3_stmt *st = sql_prepare(s, s->version == 1 ? PAGE_OF("NULL, NULL") : PAGE_OF("batchd_text(r.logprobs), batchd_text(r.prompt_logprobs)"), err);
    if (!st) return sql_error(s, err);
    sql_bind_int(st, 1, row_id(job_id, from));
    sql_bind_int(st, 2, row_id(job_id, f->end_row > 0 ? f->end_row - 1 : UINT32_MAX));
    sql_bind_int(st, 3, f->only_ok ? ROW_OK : f->only_failed ? ROW_FAILED : -1);
    sql_bind_int(st, 4, limit);
    int r = 1;
    while (page->bytes < PAGE_BYTES && (r = sql_step(s, st, err)) == 1) {
        struct result_view v;
        view_of(st, job_id, &v);
        page_add(page, &v);
    }
    sqlite3_reset(st);
    return r < 0 ? r : 0;
}

int results_each(struct store *s, int64_t job_id, const struct result_filter *filter,
                 int (*fn)(void *arg, const struct result_view *v, struct err *err), void *arg, struct err *err) {
    struct page *page = mem_zalloc(1, sizeof *page);
    int64_t from = filter->first_row, count = 0;
    int r = 0;
    while (r == 0 && (filter->limit == 0 || count < filter->limit)) {
        int64_t left = filter->limit ? filter->limit - count : PAGE_ROWS;
        r = read_page(s, job_id, filter, from, left < PAGE_ROWS ? left : PAGE_ROWS, page, err);
        if (r == 0 && page->n == 0) break;
        if (r == 0) from = page->rows[page->n - 1].row + 1;
        count += (int64_t)page->n;
        for (size_t i = 0; r == 0 && i < page->n; i++) r = fn(arg, &page->rows[i], err);
        page_clear(page);
    }
    free(page);
    return r;
}

int rejects_each(struct store *s, int64_t job_id, int (*fn)(void *arg, const struct reject *r, struct err *err),
                 void *arg, struct err *err) {
    sqlite3_stmt *st = sql_prepare(s, "SELECT line, byte, code, message FROM reject WHERE job_id = ?1 ORDER BY line", err);
    int r;
    if (!st) return sql_error(s, err);
    sql_bind_int(st, 1, job_id);
    while ((r = sql_step(s, st, err)) == 1) {
        struct reject one = {.line = sqlite3_column_int64(st, 0), .byte = sqlite3_column_int64(st, 1)};
        snprintf(one.code, sizeof one.code, "%s", (const char *)sqlite3_column_text(st, 2));
        snprintf(one.message, sizeof one.message, "%s", (const char *)sqlite3_column_text(st, 3));
        r = fn(arg, &one, err);
        if (r < 0) break;
    }
    sqlite3_reset(st);
    return r;
}
