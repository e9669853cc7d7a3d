/* ingest.c - a file becomes a job: all of its rows, or nothing.
 *
 * Rows go in under the state 'loading', in transactions of bounded size; the last
 * one makes the leases and the state 'queued'. Whatever goes wrong before that,
 * the job is removed. A loader that was killed leaves a job that the next loader
 * or worker removes (unfinished.h). */
#include "base/clock.h"
#include "base/hash.h"
#include "base/utf8.h"
#include "jobs/chat_settings.h"
#include "jobs/locks.h"
#include "jobs/row_form.h"
#include "jobs/seen_ids.h"
#include "jobs/store.h"
#include "jobs/unfinished.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { CHUNK_ROWS = 4096, CHUNK_BYTES = 8 << 20, LEASE_ROWS = 256, PROGRESS_ROWS = 1024 };

struct loader {
    struct store *s;
    const struct submit_options *o;
    struct submit_report *report;
    struct source source;
    struct row_reader *reader;
    struct row_form form;
    int64_t job_id, chunk_rows, chunk_bytes;
    bool in_chunk;
    int lock;                /* held while loading: this job's loader is alive */
    struct seen_ids ids;
    struct buf packed;
    struct err *err;
};

/* ---------------------------------------------------------------- rejects */

static int store_reject(struct loader *l, const struct reject *r) {
    sqlite3_stmt *st = sql_prepare(l->s, "INSERT INTO reject VALUES (?1, ?2, ?3, ?4, ?5)", l->err);
    if (!st) return sql_error(l->s, l->err);
    sql_bind_int(st, 1, l->job_id);
    sql_bind_int(st, 2, r->line);
    sql_bind_int(st, 3, r->byte);
    sql_bind_text(st, 4, r->code);
    sql_bind_text(st, 5, r->message);
    return sql_run(l->s, st, l->err);
}

static int begin_chunk(struct loader *l);

static int take_reject(struct loader *l, const struct reject *r) {
    int64_t n = l->report->n_rejected++;
    if (n < 10) l->report->rejects[n] = *r;
    if (row_reader_is_lost(l->reader))
        return err_set(l->err, E_PARSE, "%s:%" PRId64 ": %s; nothing was stored", l->source.name, r->line, r->message);
    if (!l->o->skip_rejects) return 0;
    int e = begin_chunk(l);
    return e < 0 ? e : store_reject(l, r);
}

/* ---------------------------------------------------------------- transactions */

static int begin_chunk(struct loader *l) {
    if (l->in_chunk) return 0;
    int r = sql_exec(l->s, "BEGIN IMMEDIATE", l->err);
    if (r == 0) l->in_chunk = true;
    return r;
}

static int end_chunk(struct loader *l) {
    if (!l->in_chunk) return 0;
    int r = sql_exec(l->s, "COMMIT", l->err);
    if (r < 0) sql_rollback(l->s);
    l->in_chunk = false;
    l->chunk_rows = l->chunk_bytes = 0;
    if (r == 0) clock_sleep_ms(1); /* a daemon that waits to commit gets its turn */
    return r;
}

/* ---------------------------------------------------------------- one row */

static bool make_request(struct loader *l, const struct input_row *row, struct request *q, struct reject *reject) {
    char text[200];
    if (!row_form_request(&l->form, row, q, reject)) return false;
    int64_t before = q->custom_id ? seen_ids_add(&l->ids, q->custom_id, row->line) : 0;
    if (!before) return true;
    snprintf(text, sizeof text, "id \"%.100s\" is on line %" PRId64 " already", q->custom_id, before);
    row_form_reject(reject, row, "duplicate_id", text);
    return false;
}

static int insert_request(struct loader *l, const struct request *q) {
    enum text_codec codec;
    size_t n = strlen(q->input);
    if (l->report->n_rows > UINT32_MAX)
        return err_set(l->err, E_RANGE, "%s has more than 4,294,967,296 rows; split it", l->source.name);
    int r = begin_chunk(l);
    if (r < 0) return r;
    sqlite3_stmt *st = sql_prepare(l->s, "INSERT INTO request VALUES (?1, ?2, ?3, ?4)", l->err);
    if (!st) return sql_error(l->s, l->err);
    buf_reset(&l->packed);
    text_compress(&l->packed, &codec, q->input, n);
    sql_bind_int(st, 1, row_id(l->job_id, l->report->n_rows));
    sql_bind_text(st, 2, q->custom_id);
    if (codec == CODEC_RAW) sqlite3_bind_text64(st, 3, l->packed.data, l->packed.n, SQLITE_STATIC, SQLITE_UTF8);
    else sqlite3_bind_blob64(st, 3, l->packed.data, l->packed.n, SQLITE_STATIC);
    char *params = q->params.set ? params_to_json(&q->params) : NULL;
    sql_bind_text(st, 4, params);
    free(params);
    r = sql_run(l->s, st, l->err);
    l->report->n_rows++;
    l->chunk_rows++;
    l->chunk_bytes += (int64_t)l->packed.n;
    if (r == 0 && (l->chunk_rows >= CHUNK_ROWS || l->chunk_bytes >= CHUNK_BYTES)) r = end_chunk(l);
    return r;
}

static int take_row(struct loader *l, const struct input_row *row) {
    struct request q = {0};
    struct reject reject;
    int r = row->json ? row_form_begin(&l->form, row, l->err) : 0;
    if (r < 0) return r;
    if (!make_request(l, row, &q, &reject)) r = take_reject(l, &reject);
    else if (l->report->n_rejected == 0 || l->o->skip_rejects) r = insert_request(l, &q);
    request_clear(&q);
    return r;
}

/* A bare string is a prompt: the line stands for an object that holds it. */
static int take_string(struct loader *l, const struct input_row *row) {
    json_t *o = json_pack("{s:O}", l->form.prompt_name, row->json);
    char *text = json_dumps(o, JSON_COMPACT);
    struct input_row object = *row;
    object.json = o;
    object.text = text;
    object.text_bytes = strlen(text);
    int r = take_row(l, &object);
    free(text);
    json_decref(o);
    return r;
}

static int load_rows(struct loader *l) {
    struct input_row row;
    struct reject reject;
    enum read_result got;
    int r = 0;
    for (int64_t n = 0; r == 0 && (got = row_reader_next(l->reader, &row, &reject)) != READ_END; n++) {
        r = got == READ_REJECT ? take_reject(l, &reject) : json_is_string(row.json) ? take_string(l, &row) : take_row(l, &row);
        if (l->o->stop && *l->o->stop && r == 0) r = err_set(l->err, E_INTERRUPTED, "stopped; nothing was stored");
        if (l->o->progress && n % PROGRESS_ROWS == 0)
            l->o->progress(l->o->progress_arg, l->report->n_rows, row_reader_byte(l->reader), (int64_t)l->source.size);
    }
    if (r < 0) return r;
    const struct submit_report *p = l->report;
    if (p->n_rejected == 1 && !l->o->skip_rejects)
        return err_set(l->err, E_PARSE, "%s:%" PRId64 ": %s; nothing was stored; mend the line, or use --reject skip",
                       l->source.name, p->rejects[0].line, p->rejects[0].message);
    if (p->n_rejected > 0 && !l->o->skip_rejects)
        return err_set(l->err, E_PARSE, "%s: %" PRId64 " bad lines, nothing was stored; mend them, or use --reject skip",
                       l->source.name, p->n_rejected);
    if (p->n_rows == 0 && p->n_rejected == 0)
        return err_set(l->err, E_PARSE, "%s has no rows%s; add some", l->source.name, l->form.columns ? " behind its header" : "");
    if (p->n_rows == 0) return err_set(l->err, E_PARSE, "%s: all %" PRId64 " lines are bad", l->source.name, p->n_rejected);
    return 0;
}

/* ---------------------------------------------------------------- the job */

static char *columns_json(const struct loader *l) {
    if (!l->form.columns) return NULL;
    json_t *a = json_array();
    for (size_t i = 0; i < l->form.n_columns; i++) json_array_append_new(a, json_string(l->form.columns[i]));
    char *text = json_dumps(a, JSON_COMPACT);
    json_decref(a);
    return text;
}

static int family_id(struct loader *l, int64_t *id) {
    char hex[SHA256_HEX];
    struct sha256 *h = sha256_new();
    sha256_add_text(h, l->o->settings->model);
    sha256_add_text(h, l->o->settings->template_text);
    sha256_add_text(h, l->o->settings->system_text);
    sha256_finish(h, hex);
    sqlite3_stmt *st = sql_prepare(l->s, "INSERT INTO family(hash) VALUES (?1) ON CONFLICT(hash) DO UPDATE SET hash = hash RETURNING family_id", l->err);
    if (!st) return sql_error(l->s, l->err);
    sql_bind_text(st, 1, hex);
    int r = sql_step(l->s, st, l->err);
    if (r == 1) *id = sqlite3_column_int64(st, 0);
    sqlite3_reset(st);
    return r < 0 ? r : 0;
}

static int insert_job(struct loader *l, const char *content) {
    const struct job_settings *set = l->o->settings;
    int64_t family = 0;
    int r = family_id(l, &family);
    if (r < 0) return r;
    sqlite3_stmt *st = sql_prepare(
        l->s,
        "INSERT INTO job(key, name, state, priority, family_id, model, dtype, quantization, kv_cache_dtype, max_model_len,"
        " template, system, chat, seed, params, columns, prompt_column, id_column, source_name, content, submitted_at, chat_settings)"
        " VALUES (?1, ?2, 'loading', ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21)",
        l->err);
    if (!st) return sql_error(l->s, l->err);
    char *params = params_to_json(&set->params), *columns = columns_json(l), *chat = chat_settings_to_json(set);
    char *source = utf8_repaired(l->source.name), *base = strrchr(source, '/');
    sql_bind_text(st, 1, l->o->key);
    sql_bind_text(st, 2, l->o->name ? l->o->name : base ? base + 1 : source);
    sql_bind_int(st, 3, l->o->priority);
    sql_bind_int(st, 4, family);
    sql_bind_text(st, 5, set->model);
    sql_bind_text(st, 6, set->dtype);
    sql_bind_text(st, 7, set->quantization);
    sql_bind_text(st, 8, set->kv_cache_dtype);
    sql_bind_int_or_null(st, 9, set->max_model_len > 0 ? set->max_model_len : -1);
    sql_bind_text(st, 10, set->template_text);
    sql_bind_text(st, 11, set->system_text);
    sql_bind_text(st, 12, set->chat ? set->chat : "auto");
    sql_bind_int(st, 13, (int64_t)set->seed);
    sql_bind_text(st, 14, params);
    sql_bind_text(st, 15, columns);
    sql_bind_text(st, 16, l->form.prompt_name);
    sql_bind_text(st, 17, l->form.id_name);
    sql_bind_text(st, 18, source);
    sql_bind_text(st, 19, content);
    sql_bind_int(st, 20, clock_wall_us());
    sql_bind_text(st, 21, chat);
    r = sql_run(l->s, st, l->err);
    l->job_id = sqlite3_last_insert_rowid(l->s->db);
    free(source);
    free(params);
    free(columns);
    free(chat);
    return r;
}

/* The job that has this key already: 1 = the same content, E_PARSE = another. */
static int find_key(struct loader *l, const char *content) {
    if (!l->o->key) return 0;
    sqlite3_stmt *st = sql_prepare(l->s, "SELECT job_id, content, n_rows, n_rejected, state FROM job WHERE key = ?1", l->err);
    if (!st) return sql_error(l->s, l->err);
    sql_bind_text(st, 1, l->o->key);
    int r = sql_step(l->s, st, l->err);
    if (r == 1) {
        const char *theirs = (const char *)sqlite3_column_text(st, 1);
        if (strcmp((const char *)sqlite3_column_text(st, 4), "loading") == 0)
            r = err_set(l->err, E_BUSY, "key \"%s\" is being submitted by another process", l->o->key);
        else if (strcmp(theirs, content) != 0)
            r = err_set(l->err, E_PARSE, "key \"%s\" belongs to job %lld, which has other rows or settings", l->o->key,
                        (long long)sqlite3_column_int64(st, 0));
        else {
            l->report->existed = true;
            l->report->job_id = sqlite3_column_int64(st, 0);
            l->report->n_rows = sqlite3_column_int64(st, 2);
            l->report->n_rejected = sqlite3_column_int64(st, 3);
        }
    }
    sqlite3_reset(st);
    return r;
}

static int make_leases(struct loader *l) {
    int64_t rows = l->o->lease_rows > 0 ? l->o->lease_rows : LEASE_ROWS, n = l->report->n_rows;
    sqlite3_stmt *st = sql_prepare(l->s,
                                   "WITH RECURSIVE k(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM k WHERE (i + 1) * ?2 < ?3)"
                                   " INSERT INTO lease(job_id, lease_no, first_row, n_rows)"
                                   " SELECT ?1, i, i * ?2, min(?2, ?3 - i * ?2) FROM k",
                                   l->err);
    if (!st) return sql_error(l->s, l->err);
    sql_bind_int(st, 1, l->job_id);
    sql_bind_int(st, 2, rows);
    sql_bind_int(st, 3, n);
    return sql_run(l->s, st, l->err);
}

static int finish_job(struct loader *l) {
    int r = begin_chunk(l);
    if (r == 0) r = make_leases(l);
    sqlite3_stmt *st = r < 0 ? NULL : sql_prepare(l->s, "UPDATE job SET state = 'queued', n_rows = ?2, n_rejected = ?3 WHERE job_id = ?1", l->err);
    if (!st) return sql_error(l->s, l->err);
    sql_bind_int(st, 1, l->job_id);
    sql_bind_int(st, 2, l->report->n_rows);
    sql_bind_int(st, 3, l->report->n_rejected);
    r = sql_run(l->s, st, l->err);
    if (r == 0) r = end_chunk(l);
    return r;
}

/* Whoever had the number before may not have let go of its lock yet. */
static int lock_job(struct loader *l) {
    enum { TRIES = 100, RETRY_MS = 10 };
    int r;
    for (int i = 0; (r = lock_loader(&l->lock, store_path(l->s), l->job_id, l->err)) == E_BUSY && i < TRIES; i++)
        clock_sleep_ms(RETRY_MS);
    return r;
}

static int start_job(struct loader *l, const char *content) {
    int r = sql_exec(l->s, "BEGIN IMMEDIATE", l->err);
    if (r < 0) return r;
    r = find_key(l, content);
    if (r == 0) r = insert_job(l, content);
    if (r == 0) r = lock_job(l); /* before anybody sees the job */
    if (r == 0) r = sql_exec(l->s, "COMMIT", l->err);
    else {
        sql_rollback(l->s);
        return r;
    }
    if (r < 0) sql_rollback(l->s);
    return r;
}

static int content_of(const struct submit_options *o, const struct source *source, char hex[65]) {
    const struct job_settings *set = o->settings;
    struct sha256 *h = sha256_new();
    char *params = params_to_json(&set->params), *chat = chat_settings_to_json(set), numbers[128];
    const char *texts[] = {set->model,         set->dtype,       set->quantization, set->kv_cache_dtype, set->template_text,
                           set->system_text,   set->chat,        o->prompt_col,     o->id_col,           o->param_cols,
                           params};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) sha256_add_text(h, texts[i]);
    if (chat) sha256_add_text(h, chat); /* without it a job is the same as it was before there was one */
    snprintf(numbers, sizeof numbers, "%" PRIu64 " %" PRId64 " %d %d", set->seed, set->max_model_len,
             (int)row_format(source, o->format), o->skip_rejects);
    sha256_add_text(h, numbers);
    sha256_add(h, source->data, source->size);
    sha256_finish(h, hex);
    free(params);
    free(chat);
    return 0;
}

int submit_content_key(const struct submit_options *options, char hex[65], struct err *err) {
    struct source source;
    if (source_is_read_once(options->path)) return 1;
    int r = source_open(&source, options->path, err);
    if (r < 0) return r;
    content_of(options, &source, hex);
    source_close(&source);
    return 0;
}

static void loader_clear(struct loader *l) {
    row_reader_free(l->reader);
    row_form_clear(&l->form);
    source_close(&l->source);
    if (l->lock >= 0) close(l->lock);
    seen_ids_clear(&l->ids);
    buf_clear(&l->packed);
}

int job_submit(struct store *s, const struct submit_options *options, struct submit_report *report, struct err *err) {
    struct err local = ERR_INIT;
    struct loader l = {.s = s, .o = options, .report = report, .packed = BUF_INIT(0), .lock = -1, .err = err ? err : &local};
    char content[65];
    *report = (struct submit_report){0};
    int r = source_open(&l.source, options->path, l.err);
    if (r < 0) return r;
    report->input_is_read = true;
    enum input_format format = row_format(&l.source, options->format);
    if (l.source.size == 0) r = err_set(l.err, E_PARSE, "%s is empty; it needs rows", l.source.name);
    content_of(options, &l.source, content);
    l.reader = row_reader_new(&l.source, format);
    l.form = (struct row_form){.o = options, .source_name = l.source.name, .report = report};
    if (r == 0) r = row_form_init(&l.form, l.reader, format, l.err);
    if (r == 0) unfinished_clean(s);
    if (r == 0) r = start_job(&l, content);
    if (r == 0) {
        r = load_rows(&l);
        if (r == 0) r = finish_job(&l);
        if (r == 0) report->job_id = l.job_id;
        else {
            sql_rollback(s);
            unfinished_remove(s, l.job_id);
        }
    }
    loader_clear(&l);
    return r < 0 ? r : 0;
}

void job_settings_clear(struct job_settings *s) {
    free(s->model);
    free(s->dtype);
    free(s->quantization);
    free(s->kv_cache_dtype);
    free(s->template_text);
    free(s->system_text);
    free(s->chat);
    free(s->chat_template);
    free(s->chat_kwargs);
    params_clear(&s->params);
    *s = (struct job_settings){0};
}
