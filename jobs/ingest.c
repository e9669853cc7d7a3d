/* ingest.c - a file becomes a job: all of its rows, or nothing.
 *
 * Rows go in under the state 'loading', in transactions of bounded size; the last
 * one makes the leases and the state 'queued'. Whatever goes wrong before that,
 * the job is removed. A loader that was killed leaves a job that the next loader
 * or worker removes (unfinished.h). */
#include "base/clock.h"
#include "base/hash.h"
#include "base/mem.h"
#include "base/suggest.h"
#include "base/utf8.h"
#include "jobs/batch_line.h"
#include "jobs/chat_settings.h"
#include "jobs/json_text.h"
#include "jobs/locks.h"
#include "jobs/messages.h"
#include "jobs/row_reader.h"
#include "jobs/seen_ids.h"
#include "jobs/store.h"
#include "jobs/template.h"
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
    enum input_format format;
    struct row_reader *reader;
    char **columns;          /* CSV: names of the header */
    size_t n_columns;
    int32_t prompt_column, id_column; /* CSV; -1 = none */
    char **param_keys;       /* CSV: sampling key of each column, or NULL */
    char *prompt_name, *id_name; /* as the job records them */
    int64_t job_id, chunk_rows, chunk_bytes;
    bool in_chunk;
    int lock;                /* held while loading: this job's loader is alive */
    struct template *template; /* JSONL: of the first line */
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

static void make_reject(struct reject *out, const struct input_row *row, const char *code, const char *message) {
    *out = (struct reject){.line = row->line, .byte = row->byte};
    snprintf(out->code, sizeof out->code, "%s", code);
    snprintf(out->message, sizeof out->message, "%.*s", (int)sizeof out->message - 1, message);
    utf8_trim(out->message);
}

static const char *code_name(int code) {
    switch (code) {
    case E_RANGE: return "out_of_range";
    case E_UNSUPPORTED: return "unsupported_parameter";
    default: return "bad_value";
    }
}

/* ---------------------------------------------------------------- header */

static int32_t find_column(const struct loader *l, const char *name) {
    for (size_t i = 0; i < l->n_columns; i++)
        if (strcmp(l->columns[i], name) == 0) return (int32_t)i;
    return -1;
}

static int wanted_column(struct loader *l, const char *name, const char *flag, int32_t *out) {
    *out = find_column(l, name);
    if (*out >= 0) return 0;
    struct buf all = BUF_INIT(500);
    for (size_t i = 0; i < l->n_columns; i++) buf_printf(&all, "%s%s", i ? ", " : "", l->columns[i]);
    const char *near = suggest(name, (const char *const *)l->columns, l->n_columns);
    int r = near ? err_set(l->err, E_USAGE, "%s: no column \"%s\" (%s). Did you mean \"%s\"? Columns: %s", l->source.name,
                           name, flag, near, all.data)
                 : err_set(l->err, E_USAGE, "%s: no column \"%s\" (%s). Columns: %s", l->source.name, name, flag,
                           all.data ? all.data : "");
    buf_clear(&all);
    return r;
}

static int pick_prompt_column(struct loader *l) {
    if (l->o->prompt_col) return wanted_column(l, l->o->prompt_col, "--prompt-col", &l->prompt_column);
    l->prompt_column = find_column(l, "prompt");
    if (l->prompt_column < 0 && l->n_columns == 1) {
        l->prompt_column = 0;
        if (!l->o->settings->template_text && strpbrk(l->columns[0], ";\t|"))
            return err_set(l->err, E_USAGE, "%s: one column, \"%s\"; if it is several, divide them by commas, or by tabs with"
                           " --format tsv; if not, say --prompt-col", l->source.name, l->columns[0]);
    }
    if (l->prompt_column >= 0 || l->o->settings->template_text) return 0;
    struct buf all = BUF_INIT(500);
    for (size_t i = 0; i < l->n_columns; i++) buf_printf(&all, "%s%s", i ? ", " : "", l->columns[i]);
    int r = err_set(l->err, E_USAGE, "%s: no column \"prompt\"; say --prompt-col NAME or --template. Columns: %s",
                    l->source.name, all.data ? all.data : "");
    buf_clear(&all);
    return r;
}

static int pick_id_column(struct loader *l) {
    if (l->o->id_col) return wanted_column(l, l->o->id_col, "--id-col", &l->id_column);
    l->id_column = find_column(l, "custom_id");
    if (l->id_column < 0) l->id_column = find_column(l, "id");
    return 0;
}

/* Data columns never become sampling parameters by accident: `@key`, or named by --param-cols. */
static int pick_param_columns(struct loader *l) {
    struct buf list = BUF_INIT(0);
    int r = 0;
    for (size_t i = 0; i < l->n_columns; i++)
        if (l->columns[i][0] == '@') l->param_keys[i] = mem_strdup(l->columns[i] + 1);
    buf_puts(&list, l->o->param_cols ? l->o->param_cols : "");
    char *save = NULL;
    for (char *name = list.data ? strtok_r(list.data, ",", &save) : NULL; r == 0 && name; name = strtok_r(NULL, ",", &save)) {
        int32_t column;
        r = wanted_column(l, name, "--param-cols", &column);
        if (r == 0 && !l->param_keys[column]) l->param_keys[column] = mem_strdup(name);
    }
    for (size_t i = 0; r == 0 && i < l->n_columns; i++)
        if (l->param_keys[i] && !params_is_key(l->param_keys[i]))
            r = err_set(l->err, E_USAGE, "%s: column \"%s\" names no sampling parameter", l->source.name, l->columns[i]);
    buf_clear(&list);
    return r;
}

static int read_header(struct loader *l) {
    struct input_row row;
    struct reject reject;
    enum read_result got = row_reader_next(l->reader, &row, &reject);
    if (got == READ_END) return err_set(l->err, E_PARSE, "%s is empty; it needs a header and rows", l->source.name);
    if (got == READ_REJECT)
        return err_set(l->err, E_PARSE, "%s:%" PRId64 ": bad header: %s", l->source.name, reject.line, reject.message);
    l->columns = mem_zalloc(row.n_cells, sizeof *l->columns);
    l->param_keys = mem_zalloc(row.n_cells, sizeof *l->param_keys);
    for (; l->n_columns < row.n_cells; l->n_columns++) {
        const char *name = row.cells[l->n_columns];
        if (find_column(l, name) >= 0)
            return err_set(l->err, E_PARSE, "%s:%" PRId64 ": two columns are named \"%s\"; rename one", l->source.name, row.line, name);
        l->columns[l->n_columns] = mem_strdup(name);
    }
    return 0;
}

static int set_up_csv(struct loader *l) {
    int r = read_header(l);
    if (r == 0) r = pick_prompt_column(l);
    if (r == 0) r = pick_id_column(l);
    if (r == 0) r = pick_param_columns(l);
    if (r == 0 && l->prompt_column >= 0) l->prompt_name = mem_strdup(l->columns[l->prompt_column]);
    if (r == 0 && l->id_column >= 0) l->id_name = mem_strdup(l->columns[l->id_column]);
    return r;
}

static int set_up_input(struct loader *l) {
    const char *text = l->o->settings->template_text;
    l->prompt_column = l->id_column = -1;
    int r = 0;
    if (l->format == INPUT_CSV || l->format == INPUT_TSV) r = set_up_csv(l);
    else if (l->format == INPUT_LINES) {
        l->columns = mem_zalloc(1, sizeof *l->columns);
        l->param_keys = mem_zalloc(1, sizeof *l->param_keys);
        l->columns[l->n_columns++] = mem_strdup("prompt");
        l->prompt_column = 0;
        l->prompt_name = mem_strdup("prompt");
    } else {
        l->prompt_name = mem_strdup(l->o->prompt_col ? l->o->prompt_col : "prompt");
        l->id_name = mem_strdup(l->o->id_col);
    }
    struct template *t = NULL;
    if (r == 0 && text) r = template_compile(&t, text, l->columns, l->n_columns, l->err);
    if (t) l->report->prompts_are_alike = !template_has_columns(t);
    template_free(t);
    return r;
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

struct request { /* a row on its way into the table */
    const char *custom_id; /* borrowed, NULL = none */
    char id_text[32];
    char *input;           /* JSON */
    struct params params;
};

static void request_clear(struct request *q) {
    free(q->input);
    params_clear(&q->params);
}

static bool bad(struct reject *reject, const struct input_row *row, const char *code, const char *message) {
    make_reject(reject, row, code, message);
    return false;
}

static bool csv_request(struct loader *l, const struct input_row *row, struct request *q, struct reject *reject) {
    struct err err = ERR_INIT;
    json_t *cells = json_array();
    for (size_t i = 0; i < row->n_cells; i++) json_array_append_new(cells, json_string(row->cells[i]));
    q->input = json_dumps(cells, JSON_COMPACT);
    json_decref(cells);
    for (size_t i = 0; i < row->n_cells; i++) {
        if (!l->param_keys[i] || !*row->cells[i]) continue;
        int r = params_set_text(&q->params, l->param_keys[i], row->cells[i], &err);
        if (r < 0) return bad(reject, row, code_name(r), err.text);
    }
    if (l->id_column >= 0 && *row->cells[l->id_column]) q->custom_id = row->cells[l->id_column];
    return true;
}

static bool json_id(struct loader *l, const struct input_row *row, struct request *q, struct reject *reject) {
    static const char *const names[] = {"custom_id", "id"};
    const json_t *id = l->id_name ? json_object_get(row->json, l->id_name) : NULL;
    for (int i = 0; !l->id_name && !id && i < 2; i++) id = json_object_get(row->json, names[i]);
    if (!id || json_is_null(id) || (json_is_string(id) && json_string_length(id) == 0)) return true;
    if (json_is_integer(id)) {
        snprintf(q->id_text, sizeof q->id_text, "%" JSON_INTEGER_FORMAT, json_integer_value(id));
        q->custom_id = q->id_text;
    } else if (json_is_string(id)) q->custom_id = json_string_value(id);
    else return bad(reject, row, "bad_value", "the id is neither a string nor a whole number");
    return true;
}

/* From here on `object` is what asks: the line itself, or the body of a line of a batch file. */
static bool check_messages(const struct input_row *row, const json_t *object, struct reject *reject) {
    const char *code, *problem = messages_problem(json_object_get(object, "messages"), &code);
    if (!problem) problem = messages_extras_problem(object, &code);
    return !problem || bad(reject, row, code, problem);
}

static bool json_prompt(struct loader *l, const struct input_row *row, const json_t *object, struct reject *reject) {
    const json_t *prompt = json_object_get(object, l->prompt_name), *messages = json_object_get(object, "messages");
    char text[200];
    if (l->o->settings->template_text) return true; /* its cells are looked up when it is rendered */
    if (prompt && messages) return bad(reject, row, "bad_value", "both a prompt and messages");
    if (messages) return check_messages(row, object, reject);
    if (json_is_string(prompt)) return true;
    snprintf(text, sizeof text, prompt ? "%.60s: not a string" : "neither \"%.60s\" nor \"messages\"", l->prompt_name);
    return bad(reject, row, "bad_value", text);
}

static bool is_listed(const char *list, const char *name) {
    size_t n = strlen(name);
    for (const char *at = list; at && *at; at += strcspn(at, ","), at += *at == ',')
        if (strcspn(at, ",") == n && strncmp(at, name, n) == 0) return true;
    return false;
}

/* A line with a prompt or messages is a request: its sampling keys count by their names. A
 * line that a template is filled from is data, as in a CSV file. */
static bool is_param(const struct loader *l, const json_t *object, const char *key) {
    if (messages_is_extra(key) && json_object_get(object, "messages")) return false;
    if (*key == '@' || is_listed(l->o->param_cols, key)) return true;
    return params_is_key(key) && !l->o->settings->template_text && strcmp(key, l->prompt_name) != 0;
}

static const char *is_there(void *object, const char *name) {
    return json_object_get(object, name) ? "" : NULL;
}

/* The first line of a JSONL file names the columns that a template may use; later lines
 * that lack one are bad lines. */
static int check_template(struct loader *l, const struct input_row *row) {
    size_t n = 0;
    const char *key;
    json_t *v;
    if (l->template || !l->o->settings->template_text) return 0;
    char **keys = mem_zalloc(json_object_size(row->json), sizeof *keys);
    json_object_foreach((json_t *)row->json, key, v) keys[n++] = (char *)key;
    int r = template_compile(&l->template, l->o->settings->template_text, keys, n, l->err);
    free(keys);
    return r < 0 ? err_wrap(l->err, "%s:%" PRId64, l->source.name, row->line) : 0;
}

static bool json_params(struct loader *l, const struct input_row *row, const json_t *object, struct params *out, struct reject *reject) {
    struct err err = ERR_INIT;
    const char *key;
    json_t *v;
    json_object_foreach((json_t *)object, key, v) {
        if (!is_param(l, object, key)) continue;
        char *text = json_dumps(v, JSON_ENCODE_ANY | JSON_COMPACT);
        int r = params_set_json(out, key + (*key == '@'), text, &err); /* key itself is the loop's */
        free(text);
        if (r < 0) return bad(reject, row, code_name(r), err.text);
    }
    return true;
}

/* The first of the models that the file asks for and the job does not have, for a warning. */
static void note_model(struct loader *l, const json_t *line) {
    char *note = l->report->other_model;
    const char *other = batch_line_other_model(line, l->o->settings->model);
    if (*note || !other) return;
    snprintf(note, sizeof l->report->other_model, "%s", other);
    utf8_trim(note);
}

static bool batch_request(struct loader *l, const struct input_row *row, struct request *q, struct reject *reject) {
    struct err err = ERR_INIT;
    const json_t *body = json_object_get(row->json, "body");
    int r = batch_line_check(row->json, l->prompt_name, &err);
    if (r < 0) return bad(reject, row, code_name(r), err.text);
    if (!json_prompt(l, row, body, reject) || !json_params(l, row, body, &q->params, reject)) return false;
    note_model(l, row->json);
    q->input = json_text(body);
    return true;
}

static bool json_request(struct loader *l, const struct input_row *row, struct request *q, struct reject *reject) {
    struct err err = ERR_INIT;
    if (!json_id(l, row, q, reject)) return false;
    if (!l->template && batch_line_is(row->json, l->prompt_name)) return batch_request(l, row, q, reject);
    if (!json_prompt(l, row, row->json, reject)) return false;
    struct buf nothing = BUF_INIT(0);
    bool whole = !l->template || template_render(l->template, &nothing, is_there, (void *)row->json, &err) == 0;
    buf_clear(&nothing);
    if (!whole) return bad(reject, row, "missing_key", err.text);
    if (!json_params(l, row, row->json, &q->params, reject)) return false;
    q->input = mem_strndup(row->text, row->text_bytes); /* as written: 0.10 stays 0.10 */
    return true;
}

static bool make_request(struct loader *l, const struct input_row *row, struct request *q, struct reject *reject) {
    char text[200];
    bool ok = row->json ? json_request(l, row, q, reject) : csv_request(l, row, q, reject);
    if (!ok || !q->custom_id) return ok;
    int64_t before = seen_ids_add(&l->ids, q->custom_id, row->line);
    if (!before) return true;
    snprintf(text, sizeof text, "id \"%.100s\" is on line %" PRId64 " already", q->custom_id, before);
    return bad(reject, row, "duplicate_id", text);
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
    int r = row->json ? check_template(l, row) : 0;
    if (r < 0) return r;
    if (!make_request(l, row, &q, &reject)) r = take_reject(l, &reject);
    else if (l->report->n_rejected == 0 || l->o->skip_rejects) r = insert_request(l, &q);
    request_clear(&q);
    return r;
}

/* A bare string is a prompt: the line stands for an object that holds it. */
static int take_string(struct loader *l, const struct input_row *row) {
    json_t *o = json_pack("{s:O}", l->prompt_name, row->json);
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
        return err_set(l->err, E_PARSE, "%s has no rows%s; add some", l->source.name, l->columns ? " behind its header" : "");
    if (p->n_rows == 0) return err_set(l->err, E_PARSE, "%s: all %" PRId64 " lines are bad", l->source.name, p->n_rejected);
    return 0;
}

/* ---------------------------------------------------------------- the job */

static char *columns_json(const struct loader *l) {
    if (!l->columns) return NULL;
    json_t *a = json_array();
    for (size_t i = 0; i < l->n_columns; i++) json_array_append_new(a, json_string(l->columns[i]));
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
    sql_bind_text(st, 16, l->prompt_name);
    sql_bind_text(st, 17, l->id_name);
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
    template_free(l->template);
    source_close(&l->source);
    if (l->lock >= 0) close(l->lock);
    for (size_t i = 0; i < l->n_columns; i++) {
        free(l->columns[i]);
        free(l->param_keys[i]);
    }
    free(l->columns);
    free(l->param_keys);
    free(l->prompt_name);
    free(l->id_name);
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
    l.format = row_format(&l.source, options->format);
    if (l.source.size == 0) r = err_set(l.err, E_PARSE, "%s is empty; it needs rows", l.source.name);
    content_of(options, &l.source, content);
    l.reader = row_reader_new(&l.source, l.format);
    if (r == 0) r = set_up_input(&l);
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
