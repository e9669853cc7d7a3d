/* test_export.c - finished rows read back and written out: JSONL as jansson reads it, CSV
 * as Python's csv reads it, files that are whole or not there. */
#include "tests/unit.h"
#include "tests/aid_jobs.h"

#include "base/buf.h"
#include "base/file.h"
#include "base/mem.h"

#include <glob.h>
#include <jansson.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum { NOBODY = 65534 };

/* ---------------------------------------------------------------- aids */

static const char nul_text[] = "a\0b";

static struct result_row failed_result(int64_t job, int64_t row) {
    return (struct result_row){.job_id = job, .row = row, .status = ROW_FAILED, .finish_reason = "error", .prompt_tokens = 3, .attempt = 2,
                               .wait_us = 1, .queue_us = -1, .prefill_us = -1, .ttft_us = -1, .decode_us = -1, .e2e_us = -1,
                               .error_code = "context_length", .error = "the prompt, \"row\", is too long"};
}

/* Submit rows "a", "b", ... one for each of `r`, and publish these as their results; the job. */
static int64_t published_job(struct store *s, struct result_row *r, size_t n) {
    struct err err = ERR_INIT;
    struct submit_report report;
    struct worker *w;
    struct lease l;
    struct buf text = BUF_INIT(0);
    bool found;
    buf_puts(&text, "prompt\n");
    for (size_t i = 0; i < n; i++) buf_printf(&text, "%c\n", 'a' + (int)i);
    assert_ok(submit_text(s, "in.csv", text.data, (struct submit_options){0}, &report, &err), &err);
    assert_ok(worker_open(&w, s, &(struct worker_options){.device = "cpu"}, &err), &err);
    assert_ok(worker_lease(w, report.job_id, &l, &found, &err), &err);
    assert_true(found);
    for (size_t i = 0; i < n; i++) r[i].job_id = report.job_id;
    assert_ok(worker_publish(w, r, n, &err), &err);
    lease_clear(&l);
    worker_close(w);
    buf_clear(&text);
    return report.job_id;
}

/* Submit `text` as `name` and publish all of its rows, each with the next of `completions`
 * (then from the first again); NULL among them = a failed row. */
static int64_t finished_job(struct store *s, const char *name, const char *text, const char *const *completions, int n) {
    struct err err = ERR_INIT;
    struct submit_report report;
    struct worker *w;
    struct lease l;
    bool found = true;
    assert_ok(submit_text(s, name, text, (struct submit_options){0}, &report, &err), &err);
    assert_ok(worker_open(&w, s, &(struct worker_options){.device = "cpu"}, &err), &err);
    while (worker_lease(w, report.job_id, &l, &found, &err) == 0 && found) {
        for (size_t i = 0; i < l.n_rows; i++) {
            const char *c = completions[l.rows[i].row % n];
            struct result_row r = c ? ok_result(report.job_id, l.rows[i].row, c) : failed_result(report.job_id, l.rows[i].row);
            if (c == nul_text) r.text_bytes = 3;
            assert_ok(worker_publish(w, &r, 1, &err), &err);
        }
        lease_clear(&l);
    }
    worker_close(w);
    return report.job_id;
}

/* Export to a file of this name under the test's folder; its text. */
static char *exported(struct store *s, int64_t job, const char *name, struct export_options o, int64_t expected_rows) {
    struct err err = ERR_INIT;
    char *path = temp_path(name), *text;
    int64_t n_rows = -1;
    size_t n;
    o.path = path;
    o.force = true;
    assert_ok(job_export(s, job, &o, &n_rows, &err), &err);
    assert_int_equal(n_rows, expected_rows);
    assert_ok(file_read(path, 1 << 24, &text, &n, &err), &err);
    free(path);
    return text;
}

/* A JSON array of the lines of a JSONL text. */
static json_t *lines_of(char *text) {
    json_t *all = json_array();
    char *save = NULL;
    for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        json_error_t why;
        json_t *o = json_loads(line, JSON_ALLOW_NUL | JSON_REJECT_DUPLICATES, &why);
        if (!o) fail_msg("%s: %s", why.text, line);
        json_array_append_new(all, o);
    }
    free(text);
    return all;
}

/* The rows of a CSV file as Python's csv reads them, or NULL without Python. */
static json_t *python_rows(const char *name) {
    char *path = temp_path(name), *command = NULL, *line = NULL;
    size_t cap = 0;
    struct buf b = BUF_INIT(0);
    buf_printf(&b, "python3 -c 'import csv, json, sys\n"
                   "print(json.dumps(list(csv.reader(open(\"%s\", newline=\"\", encoding=\"utf-8\"), strict=True))))'", path);
    command = buf_take(&b);
    FILE *f = popen(command, "r");
    json_t *rows = f && getline(&line, &cap, f) > 0 ? json_loads(line, 0, NULL) : NULL;
    int status = f ? pclose(f) : 0;
    free(line);
    free(command);
    free(path);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 127) return NULL;
    assert_non_null(rows);
    return rows;
}

static const char *cell(const json_t *rows, size_t row, size_t column) {
    const char *text = json_string_value(json_array_get(json_array_get(rows, row), column));
    if (!text) fail_msg("no cell %zu, %zu", row, column);
    return text;
}

/* ---------------------------------------------------------------- JSONL */

static void jsonl_says_all_of_a_row(void **state) {
    static const char *const completions[] = {"fine", NULL, "two\nlines, \"quotes\" and \xf0\x9f\x98\x80", nul_text, ""};
    struct store *s = fresh_store("jsonl.db");
    int64_t job = finished_job(s, "in.csv", "custom_id,prompt,n\na,\"x, \"\"y\"\"\",1\nb,ü,2\n,z,3\nd,q,4\ne,r,5\n", completions, 5);
    json_t *rows = lines_of(exported(s, job, "all.jsonl", (struct export_options){0}, 5));
    const json_t *first = json_array_get(rows, 0), *second = json_array_get(rows, 1);
    json_t *expected = json_pack(
        "{s:s, s:i, s:s, s:s, s:s, s:n, s:{s:i, s:i, s:i, s:i}, s:{s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:i, s:i}, s:{s:s, s:s, s:s}}",
        "id", "a", "row", 0, "status", "ok", "completion", "fine", "finish_reason", "stop", "error", "usage", "prompt_tokens", 3,
        "completion_tokens", 5, "total_tokens", 8, "cached_tokens", 0, "metrics", "wait_ms", 0.001, "queue_ms", 0.002, "prefill_ms", 3.0,
        "ttft_ms", 3.002, "decode_ms", 8.0, "tpot_ms", 2.0, "e2e_ms", 11.002, "preemptions", 0, "attempt", 1, "input", "custom_id", "a",
        "prompt", "x, \"y\"", "n", "1");
    assert_non_null(expected);
    assert_true(json_equal(first, expected));
    json_decref(expected);
    assert_string_equal(json_string_value(json_object_get(second, "status")), "failed");
    assert_string_equal(json_string_value(json_object_get(second, "finish_reason")), "error");
    assert_true(json_is_null(json_object_get(second, "completion")));
    expected = json_pack("{s:s, s:s}", "code", "context_length", "message", "the prompt, \"row\", is too long");
    assert_true(json_equal(json_object_get(second, "error"), expected));
    json_decref(expected);
    assert_true(json_is_null(json_object_get(json_object_get(second, "metrics"), "ttft_ms")));
    assert_string_equal(json_string_value(json_object_get(json_array_get(rows, 2), "id")), "2"); /* a row without an id has its number */
    assert_string_equal(json_string_value(json_object_get(json_array_get(rows, 2), "completion")), completions[2]);
    const json_t *nul = json_object_get(json_array_get(rows, 3), "completion");
    assert_int_equal(json_string_length(nul), 3);
    assert_memory_equal(json_string_value(nul), "a\0b", 3);
    assert_string_equal(json_string_value(json_object_get(json_array_get(rows, 4), "completion")), "");
    json_decref(rows);
    store_close(s);
}

static void an_input_line_comes_back_as_written(void **state) {
    static const char *const completions[] = {"x"};
    static const char line[] = "{\"prompt\": \"p\", \"pi\": 3.14159265358979, \"price\": 0.10, \"id\": \"k\"}";
    struct store *s = fresh_store("line.db");
    char text[200];
    snprintf(text, sizeof text, "%s\n\"bare\"\n", line);
    int64_t job = finished_job(s, "in.jsonl", text, completions, 1);
    char *out = exported(s, job, "line.jsonl", (struct export_options){0}, 2);
    assert_non_null(strstr(out, line));
    json_t *rows = lines_of(out);
    assert_string_equal(json_string_value(json_object_get(json_object_get(json_array_get(rows, 1), "input"), "prompt")), "bare");
    json_decref(rows);
    free(exported(s, job, "line.csv", (struct export_options){0}, 2));
    rows = python_rows("line.csv");
    if (rows) assert_string_equal(cell(rows, 0, 1), "input");
    if (rows) assert_string_equal(cell(rows, 1, 1), line);
    json_decref(rows);
    store_close(s);
}

/* ---------------------------------------------------------------- CSV */

static const char *const awkward[] = {"plain", "a,b", "say \"x\"", "two\nlines", "\r\n", " outer blanks ", "", "=1+1", "+x", "-x", "@x", "\tx",
                                      "\rx", "日本 😀", "\"", ",", "'", "x\ry", "x\n", NULL};
enum { N_AWKWARD = sizeof awkward / sizeof *awkward };

static void csv_is_what_python_reads(void **state) {
    struct store *s = fresh_store("csv.db");
    struct buf text = BUF_INIT(0);
    buf_puts(&text, "id,prompt,\"odd, \"\"name\"\"\"\r\n");
    for (int i = 0; i < N_AWKWARD; i++) buf_printf(&text, "k%d,\"p, %d\",\"=%d\"\r\n", i, i, i);
    int64_t job = finished_job(s, "in.csv", text.data, awkward, N_AWKWARD);
    for (int raw = 0; raw < 2; raw++) {
        free(exported(s, job, "out.csv", (struct export_options){.csv_raw = raw}, N_AWKWARD));
        json_t *rows = python_rows("out.csv");
        if (!rows) skip();
        static const char *const header[] = {"id", "prompt", "odd, \"name\"", "completion", "finish_reason", "prompt_tokens",
                                             "completion_tokens", "ttft_ms", "e2e_ms", "error"};
        assert_int_equal(json_array_size(rows), 1 + N_AWKWARD);
        for (int k = 0; k < 10; k++) assert_string_equal(cell(rows, 0, k), header[k]);
        for (int i = 0; i < N_AWKWARD; i++) {
            char id[20], prompt[20], odd[20];
            const char *c = awkward[i] ? awkward[i] : "";
            snprintf(id, sizeof id, "k%d", i);
            snprintf(prompt, sizeof prompt, "p, %d", i);
            snprintf(odd, sizeof odd, "%s=%d", raw ? "" : "'", i);
            assert_int_equal(json_array_size(json_array_get(rows, 1 + i)), 10);
            assert_string_equal(cell(rows, 1 + i, 0), id);
            assert_string_equal(cell(rows, 1 + i, 1), prompt);
            assert_string_equal(cell(rows, 1 + i, 2), odd);
            bool formula = *c && strchr("=+-@\t\r", *c);
            const char *got = cell(rows, 1 + i, 3);
            if (formula && !raw) assert_int_equal(*got++, '\'');
            assert_string_equal(got, c);
            assert_string_equal(cell(rows, 1 + i, 4), awkward[i] ? "stop" : "error");
            assert_string_equal(cell(rows, 1 + i, 7), awkward[i] ? "3.002" : "");
            assert_string_equal(cell(rows, 1 + i, 9), awkward[i] ? "" : "context_length: the prompt, \"row\", is too long");
        }
        json_decref(rows);
    }
    buf_clear(&text);
    store_close(s);
}

/* What a CSV export says can be submitted again: our reader agrees with Python's. */
static void csv_can_be_submitted_again(void **state) {
    struct err err = ERR_INIT;
    struct store *s = fresh_store("again.db");
    struct submit_report report;
    int64_t job = finished_job(s, "in.csv", "id,prompt\n1,a\n2,b\n3,c\n4,d\n", awkward + 1, 4);
    free(exported(s, job, "again.csv", (struct export_options){.csv_raw = true}, 4));
    char *path = temp_path("again.csv");
    struct job_settings none = {0};
    assert_ok(job_submit(s, &(struct submit_options){.path = path, .prompt_col = "completion", .settings = &none}, &report, &err), &err);
    assert_int_equal(report.n_rows, 4);
    char *input = look_text(store_path(s), "SELECT group_concat(json_extract(input, '$[2]'), '|') FROM (SELECT input FROM request WHERE id >> 32 = 2 ORDER BY id)");
    assert_string_equal(input, "a,b|say \"x\"|two\nlines|\r\n");
    free(input);
    free(path);
    store_close(s);
}

static void columns_of_the_input_that_are_ours_are_renamed(void **state) {
    static const char *const completions[] = {"x"};
    struct store *s = fresh_store("names.db");
    int64_t job = finished_job(s, "in.csv", "prompt,completion,input_completion,error,row\na,b,c,d,e\n", completions, 1);
    char *text = exported(s, job, "names.csv", (struct export_options){0}, 1);
    static const char header[] = "id,prompt,input_input_completion,input_completion,input_error,row,completion,finish_reason,prompt_tokens,"
                                 "completion_tokens,ttft_ms,e2e_ms,error\r\n";
    if (strncmp(text, header, strlen(header)) != 0) fail_msg("%s", text);
    assert_non_null(strstr(text, "\r\n0,a,b,c,d,e,x,stop,"));
    free(text);
    store_close(s);
}

static void the_format_follows_the_name(void **state) {
    static const char *const completions[] = {"x"};
    static const struct {
        const char *name;
        enum export_format format;
        char first;
    } cases[] = {{"f.csv", EXPORT_AUTO, 'i'}, {"f.CSV", EXPORT_AUTO, 'i'}, {"f.jsonl", EXPORT_AUTO, '{'}, {"f", EXPORT_AUTO, '{'},
                 {"f.csv", EXPORT_JSONL, '{'}, {"f.jsonl", EXPORT_CSV, 'i'}};
    struct store *s = fresh_store("format.db");
    int64_t job = finished_job(s, "in.csv", "prompt\na\n", completions, 1);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *text = exported(s, job, cases[i].name, (struct export_options){.format = cases[i].format}, 1);
        assert_int_equal(text[0], cases[i].first);
        free(text);
    }
    store_close(s);
}

/* ---------------------------------------------------------------- which rows */

struct seen {
    int64_t n, last, stop_at;
    int64_t n_failed;
};

static int see(void *arg, const struct result_view *v, struct err *err) {
    struct seen *seen = arg;
    assert_true(v->row > seen->last);
    seen->last = v->row;
    seen->n_failed += strcmp(v->status, "failed") == 0;
    return ++seen->n == seen->stop_at ? err_set(err, E_INTERRUPTED, "enough") : 0;
}

static void filters_choose_rows_in_order(void **state) {
    static const char *const completions[] = {"x", "y", NULL};
    static const struct {
        struct result_filter f;
        int64_t n, n_failed, last;
    } cases[] = {
        {{0}, 900, 300, 899},
        {{.only_ok = true}, 600, 0, 898},
        {{.only_failed = true}, 300, 300, 899},
        {{.limit = 7}, 7, 2, 6},
        {{.limit = 256}, 256, 85, 255},
        {{.limit = 257}, 257, 85, 256},
        {{.first_row = 890}, 10, 4, 899},
        {{.first_row = 10, .end_row = 20}, 10, 3, 19},
        {{.first_row = 10, .end_row = 20, .only_failed = true, .limit = 2}, 2, 2, 14},
        {{.first_row = 900}, 0, 0, -1},
        {{.limit = 5000}, 900, 300, 899},
    };
    struct err err = ERR_INIT;
    struct store *s = fresh_store("filter.db");
    struct buf text = BUF_INIT(0);
    buf_puts(&text, "prompt\n");
    for (int i = 0; i < 900; i++) buf_printf(&text, "row %d\n", i);
    int64_t job = finished_job(s, "in.csv", text.data, completions, 3);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct seen seen = {.last = -1};
        assert_ok(results_each(s, job, &cases[i].f, see, &seen, &err), &err);
        assert_int_equal(seen.n, cases[i].n);
        assert_int_equal(seen.n_failed, cases[i].n_failed);
        assert_int_equal(seen.last, cases[i].last);
        free(exported(s, job, "filter.jsonl", (struct export_options){.filter = cases[i].f}, cases[i].n));
    }
    struct seen seen = {.last = -1, .stop_at = 300};
    assert_err(results_each(s, job, &cases[0].f, see, &seen, &err), E_INTERRUPTED, "enough", &err);
    assert_int_equal(seen.n, 300);
    seen = (struct seen){.last = -1};
    assert_ok(results_each(s, job + 1, &cases[0].f, see, &seen, &err), &err);
    assert_int_equal(seen.n, 0);
    buf_clear(&text);
    store_close(s);
}

static int join_reject(void *arg, const struct reject *r, struct err *err) {
    buf_printf(arg, "%lld/%lld %s;", (long long)r->line, (long long)r->byte, r->code);
    return 0;
}

static void rejects_come_in_line_order(void **state) {
    struct err err = ERR_INIT;
    struct store *s = fresh_store("rejects.db");
    struct submit_report report;
    struct buf out = BUF_INIT(0);
    assert_ok(submit_text(s, "in.csv", "id,prompt\n1\n2,b\n3,c,d\n2,e\n", (struct submit_options){.skip_rejects = true}, &report, &err), &err);
    assert_ok(rejects_each(s, report.job_id, join_reject, &out, &err), &err);
    assert_string_equal(out.data, "2/10 column_count;4/16 column_count;5/22 duplicate_id;");
    buf_clear(&out);
    store_close(s);
}

/* ---------------------------------------------------------------- the file */

static struct export_options to(const char *path) {
    return (struct export_options){.path = path};
}

static void a_file_in_the_way_stays(void **state) {
    static const char *const completions[] = {"x"};
    struct err err = ERR_INIT;
    struct store *s = fresh_store("way.db");
    int64_t a = finished_job(s, "in.csv", "prompt\na\n", completions, 1), b = finished_job(s, "in.csv", "prompt\nb\n", completions, 1), n;
    char *path = temp_path("way.jsonl"), *other = temp_path("theirs.jsonl"), *text;
    struct export_options o = to(path);
    size_t size;
    temp_write(other, "mine\n", 5);
    o.path = other;
    assert_err(job_export(s, a, &o, &n, &err), E_EXISTS, "theirs.jsonl exists and is not this job's own export; name another file or use --force", &err);
    assert_int_equal(job_export_check(s, a, &o, &err), E_EXISTS);
    assert_ok(file_read(other, 100, &text, &size, &err), &err);
    assert_string_equal(text, "mine\n");
    free(text);
    o.force = true;
    assert_ok(job_export(s, a, &o, &n, &err), &err);
    o = to(path);
    assert_ok(job_export_check(s, a, &o, &err), &err);
    assert_ok(job_export(s, a, &o, &n, &err), &err);
    assert_ok(job_export(s, a, &o, &n, &err), &err); /* its own, untouched */
    assert_err(job_export(s, b, &o, &n, &err), E_EXISTS, "is not this job's own export", &err);
    FILE *f = fopen(path, "a");
    fputs("a note\n", f);
    fclose(f);
    assert_err(job_export(s, a, &o, &n, &err), E_EXISTS, "is not this job's own export", &err);
    free(path);
    free(other);
    store_close(s);
}

static size_t count_files(const char *pattern) {
    glob_t g;
    char *path = temp_path(pattern);
    size_t n = glob(path, 0, NULL, &g) == 0 ? g.gl_pathc : 0;
    if (n) globfree(&g);
    free(path);
    return n;
}

/* The second row cannot be decoded: the old file stays, nothing else is left. */
static void a_failed_export_changes_nothing(void **state) {
    static const char *const completions[] = {"first", "second"};
    struct err err = ERR_INIT;
    struct store *s = fresh_store("atomic.db");
    int64_t job = finished_job(s, "in.csv", "prompt\na\nb\n", completions, 2), n = -7;
    char *path = temp_path("atomic.jsonl"), *before, *after;
    size_t size;
    struct export_options o = to(path);
    assert_ok(job_export(s, job, &o, &n, &err), &err);
    assert_ok(file_read(path, 10000, &before, &size, &err), &err);
    look_exec(store_path(s), "UPDATE result SET codec = 1, completion = x'28b52ffd0102' WHERE id & 1 = 1");
    n = -7;
    assert_err(job_export(s, job, &o, &n, &err), E_IO, "batchd_text: ", &err);
    assert_int_equal(n, -7);
    assert_ok(file_read(path, 10000, &after, &size, &err), &err);
    assert_string_equal(after, before);
    assert_int_equal(count_files("atomic.jsonl*"), 1);
    free(before);
    free(after);
    free(path);
    store_close(s);
}

static void places_that_cannot_hold_it(void **state) {
    static const char *const completions[] = {"x"};
    struct err err = ERR_INIT;
    struct store *s = fresh_store("places.db");
    int64_t job = finished_job(s, "in.csv", "prompt\na\n", completions, 1), n = -7;
    char *folder = temp_path("a-folder"), *nowhere = temp_path("none/x.jsonl");
    mkdir(folder, 0700);
    struct export_options o = {.path = folder, .force = true};
    assert_err(job_export(s, job, &o, &n, &err), E_EXISTS, "a-folder is a folder; name a file", &err);
    o.path = nowhere;
    assert_err(job_export(s, job, &o, &n, &err), E_NOT_FOUND, "no folder ", &err);
    o.path = "/dev/full";
    assert_err(job_export(s, job, &o, &n, &err), E_FULL, "No space left", &err);
    o.path = "/dev/null";
    assert_int_equal(n, -7);
    assert_ok(job_export(s, job, &o, &n, &err), &err);
    assert_int_equal(n, 1);
    struct stat st;
    assert_int_equal(stat("/dev/null", &st), 0);
    assert_true(S_ISCHR(st.st_mode));
    char *path = temp_path("unknown.jsonl");
    o.path = path;
    assert_err(job_export(s, 77, &o, &n, &err), E_NOT_FOUND, "no job 77 in ", &err);
    assert_int_not_equal(access(path, F_OK), 0);
    free(path);
    free(folder);
    free(nowhere);
    store_close(s);
}

static void a_folder_without_rights_is_named(void **state) {
    if (geteuid() != 0) skip(); /* only root can become somebody else */
    static const char *const completions[] = {"x"};
    struct store *s = fresh_store("rights.db");
    int64_t job = finished_job(s, "in.csv", "prompt\na\n", completions, 1);
    char *path = temp_path("rights.jsonl"), *folder = temp_path("");
    chmod(folder, 0755);
    pid_t child = fork();
    if (child == 0) {
        struct err err = ERR_INIT;
        struct export_options o = to(path);
        int r = setresgid(NOBODY, NOBODY, NOBODY) == 0 && setresuid(NOBODY, NOBODY, NOBODY) == 0 ? job_export_check(s, job, &o, &err) : 0;
        _exit(r == E_PERMISSION && strstr(err.text, "is not writable for you") ? 0 : 1);
    }
    int status;
    waitpid(child, &status, 0);
    assert_int_equal(status, 0);
    free(path);
    free(folder);
    store_close(s);
}

/* ---------------------------------------------------------------- texts */

static void long_texts_are_frames_and_come_back(void **state) {
    struct store *s = fresh_store("frames.db");
    struct buf text = BUF_INIT(0), packed = BUF_INIT(0);
    enum text_codec codec;
    for (int i = 0; i < 500; i++) buf_printf(&text, "line %d of a long text é\n", i);
    text_compress(&packed, &codec, "short", 5);
    assert_int_equal(codec, CODEC_RAW);
    assert_string_equal(packed.data, "short");
    buf_reset(&packed);
    text_compress(&packed, &codec, text.data, text.n);
    assert_int_equal(codec, CODEC_ZSTD);
    assert_true(packed.n + 8 < text.n);
    struct result_row r = ok_result(0, 0, "");
    r.codec = codec;
    r.text = packed.data;
    r.text_bytes = packed.n;
    int64_t job = published_job(s, &r, 1);
    json_t *rows = lines_of(exported(s, job, "frames.jsonl", (struct export_options){0}, 1));
    assert_string_equal(json_string_value(json_object_get(json_array_get(rows, 0), "completion")), text.data);
    json_decref(rows);
    buf_clear(&text);
    buf_clear(&packed);
    store_close(s);
}

/* As text or as a frame, and only where there are some. */
static void logprobs_are_part_of_a_line_where_there_are_some(void **state) {
    struct store *s = fresh_store("logprobs.db");
    struct buf json = BUF_INIT(0), packed = BUF_INIT(0);
    enum text_codec codec;
    buf_puts(&json, "{\"tokens\":[\"a\"");
    for (int i = 0; i < 300; i++) buf_puts(&json, ",\"\xc3\xa9\"");
    buf_puts(&json, "],\"token_logprobs\":[-0.25,null]}");
    text_compress(&packed, &codec, json.data, json.n);
    assert_int_equal(codec, CODEC_ZSTD);
    struct result_row r[] = {ok_result(0, 0, "x"), ok_result(0, 1, "y"), ok_result(0, 2, "z")};
    r[0].logprobs = (struct packed_text){packed.data, packed.n, codec};
    r[2].logprobs = (struct packed_text){"{\"tokens\":[]}", 13, CODEC_RAW};
    int64_t job = published_job(s, r, 3);
    json_t *rows = lines_of(exported(s, job, "logprobs.jsonl", (struct export_options){0}, 3));
    json_t *want = json_loads(json.data, 0, NULL);
    assert_true(json_equal(json_object_get(json_array_get(rows, 0), "logprobs"), want));
    assert_null(json_object_get(json_array_get(rows, 1), "logprobs"));
    assert_int_equal(json_array_size(json_object_get(json_object_get(json_array_get(rows, 2), "logprobs"), "tokens")), 0);
    assert_non_null(json_object_get(json_array_get(rows, 0), "input"));
    json_decref(want);
    json_decref(rows);
    buf_clear(&json);
    buf_clear(&packed);
    store_close(s);
}

/* Its row failed for that; the line says so, and the cells of a CSV line stay under their names. */
static void a_damaged_input_is_null(void **state) {
    struct store *s = fresh_store("damaged.db");
    struct result_row r[] = {ok_result(0, 0, "x"), failed_result(0, 1)};
    int64_t job = published_job(s, r, 2);
    look_exec(store_path(s), "UPDATE request SET input = x'28B52FFD2000' WHERE id & 4294967295 = 1");
    json_t *rows = lines_of(exported(s, job, "damaged.jsonl", (struct export_options){0}, 2));
    assert_string_equal(json_string_value(json_object_get(json_array_get(rows, 0), "completion")), "x");
    assert_true(json_is_null(json_object_get(json_array_get(rows, 1), "input")));
    json_decref(rows);
    char *text = exported(s, job, "damaged.csv", (struct export_options){0}, 2);
    assert_non_null(strstr(text, "\r\n1,,,error,"));
    free(text);
    store_close(s);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(a_damaged_input_is_null),
    cmocka_unit_test(jsonl_says_all_of_a_row),
    cmocka_unit_test(an_input_line_comes_back_as_written),
    cmocka_unit_test(csv_is_what_python_reads),
    cmocka_unit_test(csv_can_be_submitted_again),
    cmocka_unit_test(columns_of_the_input_that_are_ours_are_renamed),
    cmocka_unit_test(the_format_follows_the_name),
    cmocka_unit_test(filters_choose_rows_in_order),
    cmocka_unit_test(rejects_come_in_line_order),
    cmocka_unit_test(a_file_in_the_way_stays),
    cmocka_unit_test(a_failed_export_changes_nothing),
    cmocka_unit_test(places_that_cannot_hold_it),
    cmocka_unit_test(a_folder_without_rights_is_named),
    cmocka_unit_test(long_texts_are_frames_and_come_back),
    cmocka_unit_test(logprobs_are_part_of_a_line_where_there_are_some),
};

UNIT_MAIN(tests)
