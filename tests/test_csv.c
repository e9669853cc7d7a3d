/* test_csv.c - CSV input: the accepted rows equal Python's, bad lines are named exactly. */
#include "tests/unit.h"
#include "tests/aid_jobs.h"

#include "base/buf.h"
#include "base/file.h"
#include "base/mem.h"
#include "jobs/row_reader.h"

#include <inttypes.h>
#include <unistd.h>

/* ---------------------------------------------------------------- against Python */

static void check_row(const json_t *expected, const struct input_row *row, int64_t n) {
    if (json_array_size(expected) != row->n_cells) fail_msg("case %" PRId64 ": %zu cells", n, row->n_cells);
    for (size_t i = 0; i < row->n_cells; i++)
        if (strcmp(json_string_value(json_array_get(expected, i)), row->cells[i]) != 0)
            fail_msg("case %" PRId64 ": cell \"%s\"", n, row->cells[i]);
}

static void check_reject(const json_t *expected, const struct reject *got, int64_t n) {
    bool quote = strcmp(got->code, "stray_quote") == 0 || strcmp(got->code, "unterminated_quote") == 0;
    const char *kind = quote ? "quote" : got->code;
    if (json_integer_value(json_array_get(expected, 0)) != got->line ||
        strcmp(json_string_value(json_array_get(expected, 1)), kind) != 0)
        fail_msg("case %" PRId64 ": reject of line %" PRId64 ": %s", n, got->line, got->code);
}

static void check_case(const json_t *c, int64_t n) {
    const json_t *text = json_object_get(c, "text"), *rows = json_object_get(c, "rows"), *rejects = json_object_get(c, "rejects");
    struct source source = {.name = "x.csv", .data = json_string_value(text), .size = json_string_length(text)};
    struct row_reader *r = row_reader_new(&source, INPUT_CSV);
    struct input_row row;
    struct reject reject;
    enum read_result got;
    size_t n_rows = 0, n_rejects = 0;
    bool lost = false;
    while (!lost && (got = row_reader_next(r, &row, &reject)) != READ_END) {
        if (got == READ_ROW) check_row(json_array_get(rows, n_rows++), &row, n);
        else check_reject(json_array_get(rejects, n_rejects++), &reject, n);
        lost = got == READ_REJECT && row_reader_is_lost(r);
    }
    if (n_rows != json_array_size(rows) || n_rejects != json_array_size(rejects) ||
        lost != json_is_true(json_object_get(c, "lost")))
        fail_msg("case %" PRId64 ": %zu rows, %zu rejects, lost %d", n, n_rows, n_rejects, lost);
    row_reader_free(r);
}

static void rows_are_those_of_python(void **state) {
    FILE *f = fopen("tests/data/csv/cases.jsonl", "r");
    assert_non_null(f);
    char *line = NULL;
    size_t cap = 0;
    int64_t n = 0;
    while (getline(&line, &cap, f) > 0) {
        json_t *c = json_loads(line, 0, NULL);
        check_case(c, ++n);
        json_decref(c);
    }
    assert_int_equal(n, 600);
    free(line);
    fclose(f);
}

/* The count is the one that the data's README states. */
static void shared_prompts_have_848_rows(void **state) {
    if (!test_data()) skip();
    struct err err = ERR_INIT;
    struct source source;
    char *path = path_join(test_data(), "prompts/awesome_chatgpt_prompts.csv");
    assert_ok(source_open(&source, path, &err), &err);
    struct row_reader *r = row_reader_new(&source, INPUT_CSV);
    struct input_row row;
    struct reject reject;
    int64_t n = 0;
    while (row_reader_next(r, &row, &reject) == READ_ROW) n++;
    assert_int_equal(row_reader_byte(r), (int64_t)source.size);
    assert_int_equal(n, 1 + 848);
    row_reader_free(r);
    source_close(&source);
    free(path);
}

/* ---------------------------------------------------------------- single traits */

static struct reject first_reject(const char *text, size_t n, enum input_format format) {
    struct source source = {.name = "x", .data = text, .size = n};
    struct row_reader *r = row_reader_new(&source, format);
    struct input_row row;
    struct reject reject = {0};
    enum read_result got;
    while ((got = row_reader_next(r, &row, &reject)) == READ_ROW) continue;
    row_reader_free(r);
    if (got == READ_END) reject.code[0] = '\0';
    return reject;
}

static void bad_bytes_are_rejected(void **state) {
    struct reject r = first_reject("a,b\n1,\0\n", 8, INPUT_CSV);
    assert_string_equal(r.code, "nul");
    assert_int_equal(r.line, 2);
    r = first_reject("a,b\n1,2\n3,\xff\n", 12, INPUT_CSV);
    assert_string_equal(r.code, "utf8");
    assert_int_equal(r.line, 3);
    assert_int_equal(r.byte, 8);
    assert_non_null(strstr(r.message, "byte 10"));
    assert_non_null(strstr(r.message, "iconv"));
}

static void a_byte_order_mark_is_no_name(void **state) {
    const char *text = "\xef\xbb\xbfprompt,b\n1,2\n";
    struct source source = {.name = "x", .data = text, .size = strlen(text)};
    struct row_reader *r = row_reader_new(&source, INPUT_CSV);
    struct input_row row;
    struct reject reject;
    assert_int_equal(row_reader_next(r, &row, &reject), READ_ROW);
    assert_string_equal(row.cells[0], "prompt");
    row_reader_free(r);
}

static void blanks_around_fields_are_trimmed(void **state) {
    const char *text = "a,b\n x y , \" z \" \n";
    struct source source = {.name = "x", .data = text, .size = strlen(text)};
    struct row_reader *r = row_reader_new(&source, INPUT_CSV);
    struct input_row row;
    struct reject reject;
    row_reader_next(r, &row, &reject);
    assert_int_equal(row_reader_next(r, &row, &reject), READ_ROW);
    assert_string_equal(row.cells[0], "x y");
    assert_string_equal(row.cells[1], " z ");
    row_reader_free(r);
}

static void tabs_make_rows_of_empty_cells(void **state) {
    const char *text = "a\tb\n\t\nc\t\"d\te\"\n";
    struct source source = {.name = "x.tsv", .data = text, .size = strlen(text)};
    struct row_reader *r = row_reader_new(&source, row_format(&source, INPUT_AUTO));
    struct input_row row;
    struct reject reject;
    row_reader_next(r, &row, &reject);
    assert_int_equal(row_reader_next(r, &row, &reject), READ_ROW);
    assert_int_equal(row.n_cells, 2);
    assert_string_equal(row.cells[1], "");
    assert_int_equal(row_reader_next(r, &row, &reject), READ_ROW);
    assert_string_equal(row.cells[1], "d\te");
    row_reader_free(r);
}

static void an_unterminated_quote_says_where_it_opens(void **state) {
    const char *text = "a,b\n1,2\n\"x\"\"y\",\"open\nmore\nlast\n";
    struct reject r = first_reject(text, strlen(text), INPUT_CSV);
    assert_string_equal(r.code, "unterminated_quote");
    assert_int_equal(r.line, 3);
    assert_non_null(strstr(r.message, "starting at byte 15 (lines 3-5 "));
}

/* 20 MiB in one field: a reject, and the rows around it are kept. */
static void a_huge_field_is_rejected(void **state) {
    struct err err = ERR_INIT;
    struct buf text = BUF_INIT(0);
    buf_puts(&text, "id,prompt\n1,one\n2,\"");
    size_t n = (size_t)20 << 20;
    memset(buf_reserve(&text, n), 'x', n);
    text.n += n;
    buf_puts(&text, "\"\n3,three\n");
    struct store *s = fresh_store("huge.db");
    struct submit_report report;
    assert_ok(submit_text(s, "huge.csv", text.data, (struct submit_options){.skip_rejects = true}, &report, &err), &err);
    assert_int_equal(report.n_rows, 2);
    assert_int_equal(report.n_rejected, 1);
    assert_string_equal(report.rejects[0].code, "field_size");
    assert_int_equal(report.rejects[0].line, 3);
    assert_err(submit_text(s, "huge.csv", text.data, (struct submit_options){0}, &report, &err), E_PARSE, "huge.csv:3: a field has more than 16 MiB", &err);
    store_close(s);
    buf_clear(&text);
}

/* ---------------------------------------------------------------- submit */

static void bad_files_are_refused_with_a_remedy(void **state) {
    static const struct {
        const char *text;
        int code;
        const char *part;
    } cases[] = {
        {"", E_PARSE, "is empty; it needs"},
        {"prompt,x\n", E_PARSE, "no rows behind its header"},
        {"prompt,x\na,b\nc\n", E_PARSE, "x.csv:3: 1 columns, the header has 2"},
        {"prompt,x\na,\"b\nc,d\n", E_PARSE, "x.csv:2: unterminated quote starting at byte 11"},
        {"prompt,x\na,b\"c\n", E_PARSE, "x.csv:2: a quote inside a field"},
        {"prompt,id\na,1\nb,2\nc,1\n", E_PARSE, "id \"1\" is on line 2 already"},
        {"text,x\na,b\n", E_USAGE, "Columns: text, x"},
        {"prompt,prompt\na,b\n", E_PARSE, "two columns are named \"prompt\""},
        {"prompt,@temprature\na,b\n", E_USAGE, "names no sampling parameter"},
        {"prompt,@temperature\na,11\n", E_PARSE, "temperature: 11 is not in 0 .. 10"},
        {"prompt,@n\na,2\n", E_PARSE, "n: 2 is not built yet"},
    };
    struct err err = ERR_INIT;
    struct store *s = fresh_store("bad.db");
    struct submit_report report;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_err(submit_text(s, "x.csv", cases[i].text, (struct submit_options){0}, &report, &err), cases[i].code, cases[i].part, &err);
    assert_int_equal(look_int(store_path(s), "SELECT (SELECT count(*) FROM job) + (SELECT count(*) FROM request) + (SELECT count(*) FROM reject)"), 0);
    store_close(s);
}

static void unknown_columns_come_with_a_suggestion(void **state) {
    struct err err = ERR_INIT;
    struct store *s = fresh_store("column.db");
    struct submit_report report;
    struct job_settings set = {.template_text = (char *)"Say {txt}"};
    assert_err(submit_text(s, "x.csv", "id,text\n1,a\n", (struct submit_options){.settings = &set}, &report, &err), E_USAGE,
               "no column \"txt\". Did you mean \"text\"?", &err);
    assert_err(submit_text(s, "x.csv", "id,text\n1,a\n", (struct submit_options){.prompt_col = "tex"}, &report, &err), E_USAGE,
               "no column \"tex\" (--prompt-col). Did you mean \"text\"?", &err);
    assert_err(submit_text(s, "x.csv", "id,prompt\n1,a\n", (struct submit_options){.id_col = "key"}, &report, &err), E_USAGE,
               "--id-col", &err);
    store_close(s);
}

static void files_that_cannot_be_read_are_told_apart(void **state) {
    struct err err = ERR_INIT;
    struct store *s = fresh_store("files.db");
    struct submit_report report;
    struct job_settings none = {0};
    struct submit_options o = {.path = "/nonexistent/x.csv", .settings = &none};
    assert_err(job_submit(s, &o, &report, &err), E_NOT_FOUND, "No such file", &err);
    o.path = "/tmp";
    assert_err(job_submit(s, &o, &report, &err), E_IO, "is a folder", &err);
    o.path = "/dev/zero";
    assert_err(job_submit(s, &o, &report, &err), E_IO, "is a device", &err);
    store_close(s);
}

static void bad_lines_are_kept_apart_when_asked(void **state) {
    struct err err = ERR_INIT;
    struct store *s = fresh_store("skip.db");
    struct submit_report report;
    const char *text = "id,prompt\n1,one\n2,two,2\n3,\"a\nb\"\n4,st\"ray\n5,five\n1,again\n6,\"open\n7,seven\n";
    assert_ok(submit_text(s, "skip.csv", text, (struct submit_options){.skip_rejects = true}, &report, &err), &err);
    assert_int_equal(report.n_rows, 4);
    assert_int_equal(report.n_rejected, 4);
    char *all = look_text(store_path(s), "SELECT group_concat(line || ' ' || code, ', ') FROM (SELECT * FROM rejects ORDER BY line)");
    assert_string_equal(all, "3 column_count, 6 stray_quote, 8 duplicate_id, 9 unterminated_quote");
    free(all);
    all = look_text(store_path(s), "SELECT group_concat(custom_id) FROM (SELECT * FROM request ORDER BY id)");
    assert_string_equal(all, "1,3,5,7");
    free(all);
    assert_int_equal(look_int(store_path(s), "SELECT n_rejected FROM jobs"), 4);
    store_close(s);
}

/* Where there is one column, a piece of a row looks like a row. */
static void one_column_and_a_bad_quote_always_stop(void **state) {
    struct err err = ERR_INIT;
    struct store *s = fresh_store("one.db");
    struct submit_report report;
    const char *text = "prompt\nfine\n\"a\nb\" c\nd\n";
    assert_err(submit_text(s, "one.csv", text, (struct submit_options){.skip_rejects = true}, &report, &err), E_PARSE,
               "one.csv:3: a quote inside a field", &err);
    assert_int_equal(look_int(store_path(s), "SELECT count(*) FROM request"), 0);
    assert_ok(submit_text(s, "one.csv", "prompt\n\"a\nb\xff\nc\"\nd\n", (struct submit_options){.skip_rejects = true}, &report, &err), &err);
    assert_int_equal(report.n_rows, 1);
    store_close(s);
}

static void the_first_ten_bad_lines_are_reported(void **state) {
    struct err err = ERR_INIT;
    struct store *s = fresh_store("ten.db");
    struct submit_report report;
    struct buf text = BUF_INIT(0);
    buf_puts(&text, "a,prompt\n");
    for (int i = 0; i < 12; i++) buf_puts(&text, "x\n");
    assert_err(submit_text(s, "ten.csv", text.data, (struct submit_options){0}, &report, &err), E_PARSE, "ten.csv: 12 bad lines, nothing was stored", &err);
    assert_int_equal(report.n_rejected, 12);
    for (int i = 0; i < 10; i++) assert_int_equal(report.rejects[i].line, 2 + i);
    store_close(s);
    buf_clear(&text);
}

static void standard_input_is_read_once(void **state) {
    struct err err = ERR_INIT;
    struct store *s = fresh_store("stdin.db");
    struct submit_report report;
    struct job_settings none = {0};
    int ends[2], old = dup(0);
    assert_int_equal(pipe(ends), 0);
    const char *text = "prompt\nfrom a pipe\n";
    assert_int_equal(write(ends[1], text, strlen(text)), (ssize_t)strlen(text));
    close(ends[1]);
    dup2(ends[0], 0);
    struct submit_options o = {.path = "-", .settings = &none};
    assert_ok(job_submit(s, &o, &report, &err), &err);
    dup2(old, 0);
    close(old);
    close(ends[0]);
    assert_int_equal(report.n_rows, 1);
    store_close(s);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(rows_are_those_of_python),
    cmocka_unit_test(shared_prompts_have_848_rows),
    cmocka_unit_test(bad_bytes_are_rejected),
    cmocka_unit_test(a_byte_order_mark_is_no_name),
    cmocka_unit_test(blanks_around_fields_are_trimmed),
    cmocka_unit_test(tabs_make_rows_of_empty_cells),
    cmocka_unit_test(an_unterminated_quote_says_where_it_opens),
    cmocka_unit_test(a_huge_field_is_rejected),
    cmocka_unit_test(bad_files_are_refused_with_a_remedy),
    cmocka_unit_test(unknown_columns_come_with_a_suggestion),
    cmocka_unit_test(files_that_cannot_be_read_are_told_apart),
    cmocka_unit_test(bad_lines_are_kept_apart_when_asked),
    cmocka_unit_test(one_column_and_a_bad_quote_always_stop),
    cmocka_unit_test(the_first_ten_bad_lines_are_reported),
    cmocka_unit_test(standard_input_is_read_once),
};

UNIT_MAIN(tests)
