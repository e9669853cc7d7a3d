/* export.c - finished rows of a job as lines of JSON (export_json.h) or CSV, in input order.
 *
 * The file is written beside its final name and renamed, so it is whole or not
 * there. A file that the same job exported last, and nobody has touched since, is
 * replaced without --force: its size and time are remembered in the job, those of the
 * coming file beside those of the old one until the rename is done. */
#include "base/file.h"
#include "base/mem.h"
#include "base/utf8.h"
#include "jobs/export_json.h"
#include "jobs/store.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <libgen.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

struct exporter {
    FILE *f;
    const struct export_options *o;
    enum export_format format;
    struct export_job job;
    bool own_id;    /* CSV: a column id of our own, where the input has none of that name */
    size_t n_own;   /* CSV: of own_columns, those with logprobs only where there are some */
    size_t cell;    /* CSV: cells of the line so far */
    int64_t n;
};

/* ---------------------------------------------------------------- CSV */

static const char *const own_columns[] = {"completion", "finish_reason", "prompt_tokens", "completion_tokens", "ttft_ms",
                                          "e2e_ms",     "error",         "logprobs",      "prompt_logprobs"};
enum { OWN_COLUMNS = sizeof own_columns / sizeof *own_columns, N_LOGPROBS = 2 };

/* A cell that a spreadsheet would take for a formula gets a ' in front, unless --csv-raw. */
static void write_bytes(struct exporter *e, const char *text, size_t n) {
    bool formula = !e->o->csv_raw && n > 0 && memchr("=+-@\t\r", *text, 6);
    bool outer_blank = n > 0 && (isspace((unsigned char)text[0]) || isspace((unsigned char)text[n - 1]));
    bool quote = formula || outer_blank;
    for (size_t i = 0; i < n && !quote; i++) quote = text[i] == ',' || text[i] == '"' || text[i] == '\r' || text[i] == '\n';
    if (quote) putc('"', e->f);
    if (formula) putc('\'', e->f);
    for (size_t i = 0; i < n; i++) {
        if (text[i] == '"') putc('"', e->f);
        putc(text[i], e->f);
    }
    if (quote) putc('"', e->f);
}

static void write_cell(struct exporter *e, const char *text) {
    if (e->cell++ > 0) putc(',', e->f);
    write_bytes(e, text, strlen(text));
}

static void end_line(struct exporter *e) {
    fputs("\r\n", e->f);
    e->cell = 0;
}

static bool has_column(const struct exporter *e, const char *name) {
    for (size_t i = 0; i < e->job.n_columns; i++)
        if (strcmp(e->job.columns[i], name) == 0) return true;
    return false;
}

static bool is_own(const struct exporter *e, const char *name) {
    for (size_t i = 0; i < e->n_own; i++)
        if (strcmp(own_columns[i], name) == 0) return true;
    return false;
}

static void write_header(struct exporter *e) {
    e->own_id = !has_column(e, "id");
    if (e->own_id) write_cell(e, "id");
    for (size_t i = 0; i < e->job.n_columns; i++) {
        struct buf name = BUF_INIT(0);
        buf_puts(&name, e->job.columns[i]);
        while (is_own(e, name.data) || (strcmp(name.data, e->job.columns[i]) != 0 && has_column(e, name.data))) {
            char *plain = buf_take(&name);
            buf_printf(&name, "input_%s", plain);
            free(plain);
        }
        write_cell(e, name.data);
        buf_clear(&name);
    }
    if (e->job.n_columns == 0) write_cell(e, "input");
    for (size_t i = 0; i < e->n_own; i++) write_cell(e, own_columns[i]);
    end_line(e);
}

static void write_number(struct exporter *e, double x) {
    char text[40] = "";
    if (x >= 0) snprintf(text, sizeof text, "%.10g", x);
    write_cell(e, text);
}

static void write_csv(struct exporter *e, const struct result_view *v) {
    char number[24];
    json_t *cells = json_loads(v->input, 0, NULL);
    if (e->own_id) write_cell(e, export_row_id(v, number));
    if (e->job.n_columns > 0)
        for (size_t i = 0; i < e->job.n_columns; i++) {
            const char *cell = json_string_value(json_array_get(cells, i));
            write_cell(e, cell ? cell : "");
        }
    else write_cell(e, v->input);
    write_cell(e, "");
    write_bytes(e, v->completion ? v->completion : "", v->completion_bytes);
    write_cell(e, v->finish_reason);
    write_number(e, v->prompt_tokens);
    write_number(e, v->completion_tokens);
    write_number(e, v->ttft_ms);
    write_number(e, v->e2e_ms);
    struct buf error = BUF_INIT(0);
    if (v->error_code) buf_printf(&error, "%s: %s", v->error_code, v->error ? v->error : "");
    write_cell(e, error.data ? error.data : "");
    buf_clear(&error);
    if (e->n_own == OWN_COLUMNS) {
        write_cell(e, v->logprobs ? v->logprobs : "");
        write_cell(e, v->prompt_logprobs ? v->prompt_logprobs : "");
    }
    end_line(e);
    json_decref(cells);
}

/* ---------------------------------------------------------------- the file */

static bool is_stdout(const struct export_options *o) {
    return !o->path || strcmp(o->path, "-") == 0;
}

static int write_error(const struct export_options *o, struct err *err) {
    return err_set(err, errno == ENOSPC ? E_FULL : E_IO, "cannot write to %s: %s", is_stdout(o) ? "standard output" : o->path,
                   strerror(errno));
}

static int write_row(void *arg, const struct result_view *v, struct err *err) {
    struct exporter *e = arg;
    switch (e->format) {
    case EXPORT_CSV: write_csv(e, v); break;
    case EXPORT_OPENAI: export_openai_line(e->f, &e->job, v); break;
    default: export_json_line(e->f, &e->job, v);
    }
    e->n++;
    return ferror(e->f) ? write_error(e->o, err) : 0;
}

/* Before version 3 it is not known which folder answered jobs that name no model. */
#define SELECT_JOB(weights)                                                                                            \
    "SELECT columns, coalesce(model, " weights "), prompt_column, template IS NOT NULL FROM job WHERE job_id = ?1"

static int load_job(struct exporter *e, struct store *s, int64_t job_id, struct err *err) {
    sqlite3_stmt *st = sql_prepare(s, s->version < 3 ? SELECT_JOB("NULL")
                                      : SELECT_JOB("(SELECT path FROM weights w WHERE w.weights_id = job.weights_id)"), err);
    if (!st) return sql_error(s, err);
    sql_bind_int(st, 1, job_id);
    int r = sql_step(s, st, err);
    if (r == 0) r = err_set(err, E_NOT_FOUND, "no job %" PRId64 " in %s", job_id, store_path(s));
    const char *text = r == 1 ? (const char *)sqlite3_column_text(st, 0) : NULL;
    json_t *names = text ? json_loads(text, 0, NULL) : NULL;
    struct export_job *job = &e->job;
    job->job_id = job_id;
    job->columns = mem_zalloc(json_array_size(names) + 1, sizeof *job->columns);
    for (; job->n_columns < json_array_size(names); job->n_columns++)
        job->columns[job->n_columns] = mem_strdup(json_string_value(json_array_get(names, job->n_columns)));
    json_decref(names);
    if (r == 1) {
        const char *model = (const char *)sqlite3_column_text(st, 1);
        job->model = model ? utf8_repaired(model) : NULL; /* names of folders may be any bytes */
        job->prompt_key = sql_text(st, 2);
        job->has_template = sqlite3_column_int(st, 3);
    }
    sqlite3_reset(st);
    return r < 0 ? r : 0;
}

static void clear_job(struct export_job *job) {
    for (size_t i = 0; i < job->n_columns; i++) free(job->columns[i]);
    free(job->columns);
    free(job->model);
    free(job->prompt_key);
}

/* Has any result of the job logprobs? The records' heads alone are read. */
static int find_logprobs(struct exporter *e, struct store *s, int64_t job_id, struct err *err) {
    e->n_own = OWN_COLUMNS - N_LOGPROBS;
    if (s->version == 1) return 0;
    sqlite3_stmt *st = sql_prepare(s,
                                   "SELECT EXISTS (SELECT 1 FROM result WHERE id BETWEEN ?1 AND ?2"
                                   " AND (typeof(logprobs) <> 'null' OR typeof(prompt_logprobs) <> 'null'))",
                                   err);
    if (!st) return sql_error(s, err);
    sql_bind_int(st, 1, row_id(job_id, 0));
    sql_bind_int(st, 2, row_id(job_id, UINT32_MAX));
    int r = sql_step(s, st, err);
    if (r == 1 && sqlite3_column_int(st, 0)) e->n_own = OWN_COLUMNS;
    sqlite3_reset(st);
    return r < 0 ? r : 0;
}

static int write_all(struct exporter *e, struct store *s, int64_t job_id, struct err *err) {
    int r = load_job(e, s, job_id, err);
    if (r == 0 && e->format == EXPORT_CSV) r = find_logprobs(e, s, job_id, err);
    if (r == 0 && e->format == EXPORT_CSV) write_header(e);
    if (r == 0) r = results_each(s, job_id, &e->o->filter, write_row, e, err);
    return r;
}

/* Size and time of change: a file that still has the mark is the one we wrote. */
static bool mark_of(const char *path, char mark[80]) {
    struct stat st;
    if (stat(path, &st) < 0) return false;
    snprintf(mark, 80, "%lld %lld.%09ld", (long long)st.st_size, (long long)st.st_mtim.tv_sec, st.st_mtim.tv_nsec);
    return true;
}

static int check_target(struct store *s, int64_t job_id, const char *path, const char *absolute, struct err *err) {
    char now[80];
    if (!mark_of(path, now)) return 0;
    sqlite3_stmt *st = sql_prepare(s,
                                   "SELECT 1 FROM job WHERE job_id = ?1 AND export_path = ?2"
                                   " AND instr(';' || export_mark || ';', ';' || ?3 || ';')",
                                   err);
    if (!st) return sql_error(s, err);
    sql_bind_int(st, 1, job_id);
    sql_bind_text(st, 2, absolute);
    sql_bind_text(st, 3, now);
    int r = sql_step(s, st, err);
    sqlite3_reset(st);
    if (r != 0) return r < 0 ? r : 0;
    return err_set(err, E_EXISTS, "%s exists and is not this job's own export; name another file or use --force", path);
}

/* A failure here loses no row; only that the file is ours would be forgotten. */
static void remember_target(struct store *s, int64_t job_id, const char *path, const char *absolute, bool beside_old) {
    char mark[80];
    sqlite3_stmt *st = sql_prepare(s,
                                   "UPDATE job SET export_mark = CASE WHEN ?4 AND export_path = ?2"
                                   " THEN export_mark || ';' || ?3 ELSE ?3 END, export_path = ?2 WHERE job_id = ?1",
                                   NULL);
    if (!st || !mark_of(path, mark)) return;
    sql_bind_int(st, 1, job_id);
    sql_bind_text(st, 2, absolute);
    sql_bind_text(st, 3, mark);
    sql_bind_int(st, 4, beside_old);
    sql_run(s, st, NULL);
}

/* A device or a pipe is written to where it stands; a rename would replace it. */
static bool is_special(const char *path) {
    struct stat st;
    return stat(path, &st) == 0 && !S_ISREG(st.st_mode) && !S_ISDIR(st.st_mode);
}

static enum export_format format_of(const struct export_options *o) {
    const char *dot = o->path ? strrchr(o->path, '.') : NULL;
    if (o->format != EXPORT_AUTO) return o->format;
    return dot && strcasecmp(dot, ".csv") == 0 ? EXPORT_CSV : EXPORT_JSONL;
}

static char *absolute_path(const char *path) {
    char here[4096];
    if (path[0] == '/' || !getcwd(here, sizeof here)) return mem_strdup(path);
    return path_join(here, path);
}

static int check_folder(const char *path, struct err *err) {
    char *copy = mem_strdup(path), *dir = dirname(copy);
    int r = 0;
    if (access(dir, F_OK) < 0) r = err_set(err, E_NOT_FOUND, "no folder %s for %s; make it first", dir, path);
    else if (access(dir, W_OK) < 0) r = err_set(err, E_PERMISSION, "the folder %s is not writable for you", dir);
    free(copy);
    return r;
}

/* The database, or a file that SQLite or we keep beside it: nobody means that, --force or not. */
static bool is_database(struct store *s, const struct stat *target) {
    static const char *const tails[] = {"", "-wal", "-shm", ".lock"};
    bool same = false;
    for (size_t i = 0; i < sizeof tails / sizeof *tails && !same; i++) {
        struct stat st;
        struct buf path = BUF_INIT(0);
        buf_printf(&path, "%s%s", store_path(s), tails[i]);
        same = stat(path.data, &st) == 0 && st.st_dev == target->st_dev && st.st_ino == target->st_ino;
        buf_clear(&path);
    }
    return same;
}

int job_export_check(struct store *s, int64_t job_id, const struct export_options *options, struct err *err) {
    struct stat st;
    if (is_stdout(options) || is_special(options->path)) return 0;
    bool exists = stat(options->path, &st) == 0;
    if (exists && S_ISDIR(st.st_mode)) return err_set(err, E_EXISTS, "%s is a folder; name a file", options->path);
    if (exists && is_database(s, &st))
        return err_set(err, E_EXISTS, "%s is the database itself, or belongs to it; name another file", options->path);
    int w = check_folder(options->path, err);
    if (w < 0 || options->force) return w;
    char *absolute = absolute_path(options->path);
    int r = check_target(s, job_id, options->path, absolute, err);
    free(absolute);
    return r;
}

static int export_to_file(struct exporter *e, struct store *s, int64_t job_id, struct err *err) {
    const char *path = e->o->path;
    struct file_new *file = NULL;
    int r = job_export_check(s, job_id, e->o, err);
    if (r == 0) r = file_new_open(&file, path, err);
    if (r < 0) return r;
    char *absolute = absolute_path(path);
    e->f = file_new_stream(file);
    r = write_all(e, s, job_id, err);
    if (r == 0) {
        fflush(e->f); /* size and time of the file are final; commit looks for errors */
        remember_target(s, job_id, file_new_path(file), absolute, true);
        r = file_new_commit(file, err);
    } else file_new_abort(file);
    if (r == 0) remember_target(s, job_id, path, absolute, false);
    free(absolute);
    return r;
}

static int export_to_stream(struct exporter *e, struct store *s, int64_t job_id, struct err *err) {
    e->f = is_stdout(e->o) ? stdout : fopen(e->o->path, "we");
    if (!e->f) return err_set(err, E_PERMISSION, "cannot open %s: %s", e->o->path, strerror(errno));
    int r = write_all(e, s, job_id, err);
    bool failed = e->f == stdout ? fflush(stdout) != 0 : fclose(e->f) != 0;
    if (r == 0 && failed) r = write_error(e->o, err);
    return r;
}

int job_export(struct store *s, int64_t job_id, const struct export_options *options, int64_t *n_rows, struct err *err) {
    struct exporter e = {.o = options, .format = format_of(options)};
    bool stream = is_stdout(options) || is_special(options->path);
    int r = stream ? export_to_stream(&e, s, job_id, err) : export_to_file(&e, s, job_id, err);
    clear_job(&e.job);
    if (r == 0) *n_rows = e.n;
    return r;
}
