/* test_jsonl.c - JSONL and plain lines as input: the accepted rows equal Python's, what a
 * row may say, what is stored of it, how bad lines are named. */
#include "tests/unit.h"
#include "tests/aid_jobs.h"

#include "base/buf.h"
#include "jobs/row_reader.h"

#include <inttypes.h>

/* ---------------------------------------------------------------- against Python */

static void check_row(const json_t *expected, const struct input_row *row, int n) {
    const char *line = json_string_value(json_array_get(expected, 1));
    if (json_integer_value(json_array_get(expected, 0)) != row->line || !json_equal(json_array_get(expected, 2), row->json) ||
        strlen(line) != row->text_bytes || memcmp(line, row->text, row->text_bytes) != 0)
        fail_msg("case %d: line %" PRId64 " is \"%.*s\"", n, row->line, (int)row->text_bytes, row->text);
}

static void check_case(const json_t *c, int n) {
    const json_t *text = json_object_get(c, "text"), *rows = json_object_get(c, "rows"), *rejects = json_object_get(c, "rejects");
    struct source source = {.name = "x.jsonl", .data = json_string_value(text), .size = json_string_length(text)};
    struct row_reader *r = row_reader_new(&source, INPUT_JSONL);
    struct input_row row;
    struct reject reject;
    enum read_result got;
    size_t n_rows = 0, n_rejects = 0;
    while ((got = row_reader_next(r, &row, &reject)) != READ_END) {
        if (got == READ_ROW) check_row(json_array_get(rows, n_rows++), &row, n);
        else if (reject.line != json_integer_value(json_array_get(rejects, n_rejects++)))
            fail_msg("case %d: line %" PRId64 " is refused: %s", n, reject.line, reject.message);
    }
    if (n_rows != json_array_size(rows) || n_rejects != json_array_size(rejects)) fail_msg("case %d: %zu rows, %zu rejects", n, n_rows, n_rejects);
    row_reader_free(r);
}

static void rows_are_those_of_python(void **state) {
    FILE *f = fopen("tests/data/jsonl/cases.jsonl", "r");
    assert_non_null(f);
    char *line = NULL;
    size_t cap = 0;
    int n = 0;
    while (getline(&line, &cap, f) > 0) {
        json_t *c = json_loads(line, 0, NULL);
        check_case(c, ++n);
        json_decref(c);
    }
    assert_int_equal(n, 80);
    free(line);
    fclose(f);
}

/* ---------------------------------------------------------------- bad lines */

static void bad_lines_are_refused_by_name(void **state) {
    static const struct {
        const char *line, *code, *part;
    } cases[] = {
        {"{\"prompt\": \"x\"} y", "json", "not JSON: end of file expected near 'y' (column 17)"},
        {"{\"prompt\": \"x\"", "json", "not JSON: "},
        {"{\"prompt\": \"a\", \"prompt\": \"b\"}", "json", "duplicate object key"},
        {"[\"prompt\"]", "json", "neither an object nor a string"},
        {"{\"prompt\": \"a\\u0000b\"}", "nul", "the character \\u0000 at column 21"},
        {"{\"prompt\": \"x\", \"seed\": 18446744073709551616}", "json", "a number at column "},
        {"{\"text\": \"x\"}", "bad_value", "neither \"prompt\" nor \"messages\""},
        {"{\"prompt\": 7}", "bad_value", "prompt: not a string"},
        {"{\"prompt\": null}", "bad_value", "prompt: not a string"},
        {"{\"prompt\": \"x\", \"messages\": []}", "bad_value", "both a prompt and messages"},
        {"{\"messages\": \"hi\"}", "bad_value", "messages: not a list of messages"},
        {"{\"messages\": []}", "bad_value", "messages: not a list of messages"},
        {"{\"messages\": [{\"role\": \"user\"}]}", "bad_value", "messages: each needs \"role\" and \"content\""},
        {"{\"messages\": [{\"role\": \"\", \"content\": \"x\"}]}", "bad_value", "messages: each needs"},
        {"{\"messages\": [{\"role\": \"user\", \"content\": [{\"type\": \"text\"}]}]}", "unsupported_content", "a part of a content that is no text"},
        {"{\"prompt\": \"x\", \"id\": [1]}", "bad_value", "the id is neither a string nor a whole number"},
        {"{\"prompt\": \"x\", \"temperature\": 11}", "out_of_range", "temperature: 11 is not in 0 .. 10"},
        {"{\"prompt\": \"x\", \"temperature\": \"hot\"}", "bad_value", "temperature: not a number"},
        {"{\"prompt\": \"x\", \"top_p\": 0}", "out_of_range", "top_p: 0 is not above 0 and up to 1"},
        {"{\"prompt\": \"x\", \"max_tokens\": 0}", "out_of_range", "max_tokens: 0 is not in 1 .. 1048576"},
        {"{\"prompt\": \"x\", \"@max_tokens\": 0}", "out_of_range", "max_tokens: 0 is not in 1 .. 1048576"},
        {"{\"prompt\": \"x\", \"n\": 2}", "unsupported_parameter", "n: 2 is not built yet; only 1 is"},
        {"{\"prompt\": \"x\", \"echo\": true}", "unsupported_parameter", "echo: true is not built yet"},
        {"{\"prompt\": \"x\", \"logprobs\": 21}", "out_of_range", "logprobs: 21 is not in 0 .. 20"},
        {"{\"prompt\": \"x\", \"@temprature\": 1}", "bad_value", "no sampling parameter \"temprature\""},
        {"{\"prompt\": \"caf\xe9\"}", "utf8", "not UTF-8 at byte 31; convert the file, for instance with iconv"},
    };
    struct err err = ERR_INIT;
    struct store *s = fresh_store("bad.db");
    struct submit_report report;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[400], where[200];
        snprintf(text, sizeof text, "{\"prompt\": \"a\"}\n%s\n{\"prompt\": \"b\"}\n", cases[i].line);
        snprintf(where, sizeof where, "x.jsonl:2: ");
        assert_err(submit_text(s, "x.jsonl", text, (struct submit_options){0}, &report, &err), E_PARSE, cases[i].part, &err);
        assert_non_null(strstr(err.text, where));
        assert_non_null(strstr(err.text, "nothing was stored; mend the line, or use --reject skip"));
        assert_int_equal(look_int(store_path(s), "SELECT (SELECT count(*) FROM job) + (SELECT count(*) FROM request)"), 0);
        assert_ok(submit_text(s, "x.jsonl", text, (struct submit_options){.skip_rejects = true}, &report, &err), &err);
        assert_int_equal(report.n_rows, 2);
        assert_int_equal(report.n_rejected, 1);
        assert_int_equal(report.rejects[0].line, 2);
        assert_int_equal(report.rejects[0].byte, 16);
        assert_string_equal(report.rejects[0].code, cases[i].code);
        look_exec(store_path(s), "DELETE FROM request; DELETE FROM reject; DELETE FROM lease; DELETE FROM job");
    }
    store_close(s);
}

static void a_nul_byte_and_a_huge_line_are_refused(void **state) {
    struct err err = ERR_INIT;
    struct store *s = fresh_store("huge.db");
    struct submit_report report;
    struct job_settings none = {0};
    char *path = temp_path("nul.jsonl");
    temp_write(path, "{\"prompt\": \"a\0b\"}\n{\"prompt\": \"c\"}\n", 34);
    struct submit_options o = {.path = path, .settings = &none};
    assert_err(job_submit(s, &o, &report, &err), E_PARSE, "nul.jsonl:1: a NUL byte at byte 13", &err);
    struct buf text = BUF_INIT(0);
    size_t n = (size_t)20 << 20;
    buf_puts(&text, "{\"prompt\": \"a\"}\n{\"prompt\": \"");
    memset(buf_reserve(&text, n), 'x', n);
    text.n += n;
    buf_puts(&text, "\"}\n{\"prompt\": \"b\"}\n");
    assert_err(submit_text(s, "huge.jsonl", text.data, (struct submit_options){0}, &report, &err), E_PARSE,
               "huge.jsonl:2: the line has 20971534 bytes, more than 16 MiB", &err);
    assert_string_equal(report.rejects[0].code, "field_size");
    buf_clear(&text);
    free(path);
    store_close(s);
}

static void ids_are_unique_and_of_two_kinds(void **state) {
    struct err err = ERR_INIT;
    struct store *s = fresh_store("ids.db");
    struct submit_report report;
    assert_err(submit_text(s, "x.jsonl", "{\"prompt\":\"a\",\"id\":7}\n\n{\"prompt\":\"b\",\"id\":\"7\"}\n", (struct submit_options){0}, &report, &err),
               E_PARSE, "x.jsonl:3: id \"7\" is on line 1 already", &err);
    assert_string_equal(report.rejects[0].code, "duplicate_id");
    struct buf text = BUF_INIT(0); /* an id that the message cuts within a character */
    for (int i = 0; i < 80; i++) buf_puts(&text, i == 0 ? "{\"prompt\":\"a\",\"id\":\"" : i == 40 ? "\"}\n{\"prompt\":\"b\",\"id\":\"" : "\xe6\x97\xa5");
    buf_puts(&text, "\"}\n");
    assert_int_equal(submit_text(s, "x.jsonl", text.data, (struct submit_options){0}, &report, &err), E_PARSE);
    assert_non_null(strstr(report.rejects[0].message, "\xef\xbf\xbd\" is on line 1 already"));
    buf_clear(&text);
    assert_ok(submit_text(s, "x.jsonl",
                          "{\"prompt\":\"a\",\"id\":-7}\n{\"prompt\":\"b\",\"custom_id\":\"c\",\"id\":-7}\n{\"prompt\":\"d\",\"id\":null}\n\"e\"\n"
                          "{\"prompt\":\"f\",\"id\":\"\"}\n{\"prompt\":\"g\",\"id\":\"\"}\n",
                          (struct submit_options){0}, &report, &err), &err);
    assert_look(s, "SELECT group_concat(coalesce(custom_id, 'none')) FROM (SELECT custom_id FROM request ORDER BY id)", "-7,c,none,none,none,none");
    assert_ok(submit_text(s, "y.jsonl", "{\"prompt\":\"a\",\"id\":1,\"key\":\"k1\"}\n{\"prompt\":\"b\",\"id\":1}\n",
                          (struct submit_options){.id_col = "key"}, &report, &err), &err);
    assert_look(s, "SELECT group_concat(coalesce(custom_id, 'none')) FROM (SELECT custom_id FROM request WHERE id >> 32 = (SELECT max(job_id) FROM job) ORDER BY id)", "k1,none");
    store_close(s);
}

static void files_without_rows_are_refused(void **state) {
    struct err err = ERR_INIT;
    struct store *s = fresh_store("empty.db");
    struct submit_report report;
    assert_err(submit_text(s, "x.jsonl", "", (struct submit_options){0}, &report, &err), E_PARSE, "x.jsonl is empty; it needs rows", &err);
    assert_err(submit_text(s, "x.jsonl", "\n \n\r\n", (struct submit_options){0}, &report, &err), E_PARSE, "x.jsonl has no rows; add some", &err);
    assert_err(submit_text(s, "x.jsonl", "{x\n7\n", (struct submit_options){.skip_rejects = true}, &report, &err), E_PARSE,
               "x.jsonl: all 2 lines are bad", &err);
    assert_int_equal(look_int(store_path(s), "SELECT (SELECT count(*) FROM job) + (SELECT count(*) FROM request) + (SELECT count(*) FROM reject)"), 0);
    store_close(s);
}

/* ---------------------------------------------------------------- what is stored */

static void a_line_is_stored_as_it_is_written(void **state) {
    struct err err = ERR_INIT;
    struct store *s = fresh_store("stored.db");
    struct submit_report report;
    assert_ok(submit_text(s, "x.jsonl", "{\"prompt\": \"\\u00e9\",  \"price\":0.10, \"temperature\": 0.5, \"stop\": \"X\"}\r\n",
                          (struct submit_options){0}, &report, &err), &err);
    assert_look(s, "SELECT input FROM request", "{\"prompt\": \"\\u00e9\",  \"price\":0.10, \"temperature\": 0.5, \"stop\": \"X\"}");
    assert_look(s, "SELECT params FROM request", "{\"temperature\":0.5,\"stop\":[\"X\"]}");
    assert_ok(submit_text(s, "x.jsonl", "\"just \\\"this\\\"\"\n", (struct submit_options){0}, &report, &err), &err);
    assert_look(s, "SELECT input FROM request WHERE id >> 32 = 2", "{\"prompt\":\"just \\\"this\\\"\"}");
    assert_ok(submit_text(s, "x.jsonl", "{\"q\": \"why\", \"prompt\": 7}\n", (struct submit_options){.prompt_col = "q"}, &report, &err), &err);
    assert_look(s, "SELECT prompt_column FROM job WHERE job_id = 3", "q");
    assert_int_equal(look_int(store_path(s), "SELECT columns IS NULL FROM job WHERE job_id = 3"), 1);
    store_close(s);
}

/* A line that a template is filled from is data: its keys count as parameters only where
 * the user says so. */
static void keys_of_data_are_no_parameters(void **state) {
    struct err err = ERR_INIT;
    struct store *s = fresh_store("data.db");
    struct submit_report report;
    struct job_settings set = {.template_text = (char *)"{n} {seed}"};
    assert_ok(submit_text(s, "x.jsonl", "{\"n\": 2, \"seed\": \"oak\", \"top_k\": 5, \"@max_tokens\": 4, \"min_p\": 0.1}\n",
                          (struct submit_options){.settings = &set, .param_cols = "top_p,top_k"}, &report, &err), &err);
    assert_look(s, "SELECT params FROM request", "{\"max_tokens\":4,\"top_k\":5}");
    store_close(s);
}

/* ---------------------------------------------------------------- templates */

static void the_first_line_names_a_templates_columns(void **state) {
    struct err err = ERR_INIT;
    struct store *s = fresh_store("template.db");
    struct submit_report report;
    struct job_settings set = {.template_text = (char *)"About {topic}: {question}"};
    struct submit_options o = {.settings = &set};
    assert_err(submit_text(s, "x.jsonl", "{\"topics\": \"a\", \"question\": \"b\"}\n", o, &report, &err), E_USAGE,
               "x.jsonl:1: no column \"topic\". Did you mean \"topics\"? Columns: topics, question", &err);
    const char *text = "{\"topic\": \"a\", \"question\": \"b\"}\n{\"topic\": \"c\"}\n{\"topic\": null, \"question\": 4}\n";
    assert_err(submit_text(s, "x.jsonl", text, o, &report, &err), E_PARSE,
               "x.jsonl:2: the row has no \"question\", which the template wants", &err);
    o.skip_rejects = true;
    assert_ok(submit_text(s, "x.jsonl", text, o, &report, &err), &err);
    assert_int_equal(report.n_rows, 2);
    assert_string_equal(report.rejects[0].code, "missing_key");
    store_close(s);
}

static void a_bare_string_fills_a_template_too(void **state) {
    struct err err = ERR_INIT;
    struct store *s = fresh_store("string.db");
    struct submit_report report;
    struct job_settings set = {.template_text = (char *)"Say: {prompt}"};
    assert_ok(submit_text(s, "x.jsonl", "\"a\"\n\"b\"\n", (struct submit_options){.settings = &set}, &report, &err), &err);
    set.template_text = (char *)"Say: {promt}";
    assert_err(submit_text(s, "x.jsonl", "\"a\"\n", (struct submit_options){.settings = &set}, &report, &err), E_USAGE,
               "no column \"promt\". Did you mean \"prompt\"?", &err);
    set.template_text = (char *)"Say: {a}";
    assert_err(submit_text(s, "x.jsonl", "{\"a\": \"x\"}\n\"b\"\n", (struct submit_options){.settings = &set}, &report, &err), E_PARSE,
               "x.jsonl:2: the row has no \"a\"", &err);
    store_close(s);
}

static void a_document_over_several_lines_is_named_as_such(void **state) {
    static const char *const texts[] = {"[{\"prompt\": \"a\"},\n{\"prompt\": \"b\"}]\n", "[\n{\"prompt\": \"a\"}\n]\n",
                                        "{\n \"prompt\": \"a\"\n}\n"};
    struct err err = ERR_INIT;
    struct store *s = fresh_store("document.db");
    struct submit_report report;
    for (int i = 0; i < 6; i++)
        assert_err(submit_text(s, "x.json", texts[i / 2], (struct submit_options){.skip_rejects = i % 2}, &report, &err), E_PARSE,
                   "x.json:1: a JSON document over several lines; JSONL is one object a line", &err);
    assert_ok(submit_text(s, "x.jsonl", "[1]\n{\"prompt\": \"b\"}\n", (struct submit_options){.skip_rejects = true}, &report, &err), &err);
    assert_int_equal(report.n_rows, 1);
    store_close(s);
}

/* ---------------------------------------------------------------- plain lines, formats */

static void plain_lines_are_prompts(void **state) {
    struct err err = ERR_INIT;
    struct store *s = fresh_store("lines.db");
    struct submit_report report;
    assert_ok(submit_text(s, "x.txt", "first, with \"quotes\"\r\n\n  {braces}\nlast", (struct submit_options){0}, &report, &err), &err);
    assert_int_equal(report.n_rows, 3);
    assert_look(s, "SELECT group_concat(input, ';') FROM (SELECT input FROM request ORDER BY id)",
                "[\"first, with \\\"quotes\\\"\"];[\"  {braces}\"];[\"last\"]");
    assert_err(submit_text(s, "x.txt", "a\n\xff\n", (struct submit_options){0}, &report, &err), E_PARSE, "x.txt:2: not UTF-8 at byte 2", &err);
    store_close(s);
}

static void formats_are_told_by_name_then_by_content(void **state) {
    static const struct {
        const char *name, *text;
        enum input_format asked, expected;
    } cases[] = {
        {"a.csv", "{}", INPUT_AUTO, INPUT_CSV},        {"a.TSV", "", INPUT_AUTO, INPUT_TSV},
        {"a.ndjson", "a,b", INPUT_AUTO, INPUT_JSONL},  {"a.txt", "{}", INPUT_AUTO, INPUT_LINES},
        {"a", " \n{\"a\":1}", INPUT_AUTO, INPUT_JSONL}, {"a", "\xef\xbb\xbf{}", INPUT_AUTO, INPUT_JSONL},
        {"a", "a,b\n", INPUT_AUTO, INPUT_CSV},         {"a.csv", "", INPUT_LINES, INPUT_LINES},
        {"a.json", "[\n{}]", INPUT_AUTO, INPUT_JSONL},
        {".csv", "{}", INPUT_AUTO, INPUT_JSONL},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct source source = {.name = cases[i].name, .data = cases[i].text, .size = strlen(cases[i].text)};
        assert_int_equal(row_format(&source, cases[i].asked), cases[i].expected);
    }
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(rows_are_those_of_python),
    cmocka_unit_test(bad_lines_are_refused_by_name),
    cmocka_unit_test(a_document_over_several_lines_is_named_as_such),
    cmocka_unit_test(a_nul_byte_and_a_huge_line_are_refused),
    cmocka_unit_test(ids_are_unique_and_of_two_kinds),
    cmocka_unit_test(files_without_rows_are_refused),
    cmocka_unit_test(a_line_is_stored_as_it_is_written),
    cmocka_unit_test(keys_of_data_are_no_parameters),
    cmocka_unit_test(the_first_line_names_a_templates_columns),
    cmocka_unit_test(a_bare_string_fills_a_template_too),
    cmocka_unit_test(plain_lines_are_prompts),
    cmocka_unit_test(formats_are_told_by_name_then_by_content),
};

UNIT_MAIN(tests)
