/* test_template.c - prompts from columns: against Python's str.format, errors, prompt_build. */
#include "tests/unit.h"
#include "jobs/template.h"

#include "base/hash.h"
#include "base/mem.h"
#include "jobs/jobs.h"

#include <jansson.h>

static const char *json_cell(void *object, const char *name) {
    return json_string_value(json_object_get(object, name));
}

/* ---------------------------------------------------------------- against Python */

/* Compile and render; the text is the caller's, NULL where the template is refused. */
static char *render(const char *text, char *const *columns, size_t n, json_t *cells) {
    struct err err = ERR_INIT;
    struct template *t = NULL;
    struct buf out = BUF_INIT(0);
    int r = template_compile(&t, text, columns, n, &err);
    if (r < 0) assert_int_equal(r, E_USAGE);
    else assert_ok(template_render(t, &out, json_cell, cells, &err), &err);
    template_free(t);
    return r < 0 ? NULL : buf_take(&out);
}

static void texts_are_those_of_python(void **state) {
    static char *const columns[] = {"a", "two words", "é"};
    FILE *f = fopen("tests/data/template/cases.jsonl", "r");
    assert_non_null(f);
    char *line = NULL;
    size_t cap = 0;
    int n = 0, refused = 0;
    for (; getline(&line, &cap, f) > 0; n++) {
        json_t *c = json_loads(line, 0, NULL);
        const char *template_text = json_string_value(json_object_get(c, "template"));
        const char *expected = json_string_value(json_object_get(c, "text"));
        char *got = render(template_text, columns, 3, json_object_get(c, "cells"));
        refused += !got;
        if (!got != !expected || (got && strcmp(got, expected) != 0))
            fail_msg("\"%s\" gives \"%s\", not \"%s\"", template_text, got ? got : "(refused)", expected ? expected : "(refused)");
        free(got);
        json_decref(c);
    }
    assert_int_equal(n, 400);
    assert_in_range(refused, 100, 350);
    free(line);
    fclose(f);
}

/* ---------------------------------------------------------------- names and errors */

static void a_name_may_hold_a_filters_sign(void **state) {
    static char *const columns[] = {"a|trim", "a:3", "a", "ratio a|b"};
    json_t *cells = json_pack("{s:s, s:s, s:s, s:s}", "a|trim", " bar ", "a:3", "colon", "a", " abcdef ", "ratio a|b", "slash");
    static const char *const cases[][2] = {
        {"{a|trim}", " bar "}, {"{a:3}", "colon"}, {"{a:2}", " a"}, {"{ratio a|b}", "slash"}, {"{a|json}", "\" abcdef \""}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *known = render(cases[i][0], columns, 4, cells), *unknown = NULL;
        assert_string_equal(known, cases[i][1]);
        /* JSONL and the SQL function know the columns only when they render */
        if (!strstr(cases[i][0], "ratio")) {
            unknown = render(cases[i][0], NULL, 0, cells);
            assert_string_equal(unknown, cases[i][1]);
        }
        free(known);
        free(unknown);
    }
    json_decref(cells);
}

static void errors_say_where_and_what_to_do(void **state) {
    static char *const columns[] = {"question", "context", "id"};
    static const struct {
        const char *text, *part;
    } cases[] = {
        {"{qestion}", "no column \"qestion\". Did you mean \"question\"? Columns: question, context, id"},
        {"{zzz}", "no column \"zzz\". Columns: question, context, id"},
        {"{Question}", "no column \"Question\""},
        {"ab {question", "template: a lone { at character 4; write it twice to mean the brace itself"},
        {"} {question}", "template: a lone } at character 1"},
        {"{question{context}}", "template: a lone { at character 1"},
        {"{question|upper}", "template: no filter \"upper\"; trim and json are there"},
        {"{question:0}", "no column \"question:0\""},
        {"{question:-3}", "no column \"question:-3\""},
        {"{question: 3}", "no column \"question: 3\""},
        {"{}", "no column \"\""},
    };
    struct err err = ERR_INIT;
    struct template *t = NULL;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_err(template_compile(&t, cases[i].text, columns, 3, &err), E_USAGE, cases[i].part, &err);
    assert_err(template_compile(&t, "{a}", columns, 0, &err), E_USAGE, "Columns: (none)", &err);
    assert_null(t);
}

static void a_missing_cell_is_the_rows_fault(void **state) {
    struct err err = ERR_INIT;
    struct template *t;
    struct buf out = BUF_INIT(0);
    json_t *cells = json_pack("{s:s}", "a", "x");
    assert_ok(template_compile(&t, "{a} {b|trim}", NULL, 0, &err), &err);
    assert_err(template_render(t, &out, json_cell, cells, &err), E_PARSE, "the row has no \"b\", which the template wants", &err);
    buf_clear(&out);
    template_free(t);
    json_decref(cells);
}

static void a_prompt_has_a_ceiling(void **state) {
    struct err err = ERR_INIT;
    struct template *t;
    struct buf out = BUF_INIT(10);
    json_t *cells = json_pack("{s:s}", "a", "123456");
    assert_ok(template_compile(&t, "{a}{a}", NULL, 0, &err), &err);
    assert_int_equal(template_render(t, &out, json_cell, cells, &err), E_RANGE);
    buf_clear(&out);
    template_free(t);
    json_decref(cells);
}

/* ---------------------------------------------------------------- prompts of rows */

static struct prompt build(struct job_settings set, char **columns, size_t n, int32_t prompt_column, const char *input, const char *params) {
    struct err err = ERR_INIT;
    struct job_work job = {.job_id = 1, .settings = set, .columns = columns, .n_columns = n, .prompt_column = prompt_column,
                           .id_column = -1, .prompt_key = (char *)"prompt"};
    struct request_row row = {.row = 4, .input = (char *)input, .params = (char *)params};
    struct prompt p = {0};
    assert_ok(prompt_build(&p, &job, &row, &err), &err);
    return p;
}

static void cells_become_prompts(void **state) {
    char *columns[] = {"prompt", "topic"};
    struct prompt p = build((struct job_settings){0}, columns, 2, 0, "[\"Say it.\", \"rain\"]", NULL);
    assert_int_equal(p.kind, PROMPT_TEXT);
    assert_string_equal(p.text, "Say it.");
    prompt_clear(&p);
    p = build((struct job_settings){.template_text = (char *)"{prompt} About {topic}."}, columns, 2, 0, "[\"Say it.\", \"rain\"]", NULL);
    assert_int_equal(p.kind, PROMPT_TEXT);
    assert_string_equal(p.text, "Say it. About rain.");
    prompt_clear(&p);
}

/* A JSON value that is no string stands in the prompt as a person would write it. */
static void json_values_become_text(void **state) {
    struct job_settings set = {.template_text = (char *)"{s}|{i}|{f}|{g}|{b}|{n}|{l}"};
    struct prompt p = build(set, NULL, 0, -1,
                            "{\"s\": \"x\", \"i\": -12, \"f\": 0.1, \"g\": 3.14159, \"b\": true, \"n\": null, \"l\": [1, \"é\"]}", NULL);
    assert_string_equal(p.text, "x|-12|0.1|3.14159|true||[1,\"é\"]");
    prompt_clear(&p);
    set.template_text = (char *)"{l} {o}";
    p = build(set, NULL, 0, -1,
              "{\"l\": [0.1, -2.50, 7, 1e-7, true, \"1.10\", \"a\\\"0.1000\\\\\"], \"o\": {\"0.1000\": [[3.14159]], \"e\": null}}", NULL);
    assert_string_equal(p.text, "[0.1,-2.5,7,1e-07,true,\"1.10\",\"a\\\"0.1000\\\\\"] {\"0.1000\":[[3.14159]],\"e\":null}");
    prompt_clear(&p);
    set.template_text = (char *)"{a} {b} {c} {d}";
    p = build(set, NULL, 0, -1, "{\"a\": 2.0, \"b\": 0.30000000000000004, \"c\": -1.5e300, \"d\": 1e-7}", NULL);
    assert_string_equal(p.text, "2.0 0.30000000000000004 -1.5e+300 1e-07");
    prompt_clear(&p);
}

static void objects_become_prompts(void **state) {
    struct prompt p = build((struct job_settings){0}, NULL, 0, -1, "{\"prompt\": \"as it is\"}", NULL);
    assert_int_equal(p.kind, PROMPT_RAW);
    assert_string_equal(p.text, "as it is");
    prompt_clear(&p);
    p = build((struct job_settings){.chat = (char *)"always"}, NULL, 0, -1, "{\"prompt\": \"x\"}", NULL);
    assert_int_equal(p.kind, PROMPT_TEXT);
    prompt_clear(&p);
    p = build((struct job_settings){.system_text = (char *)"Be brief."}, NULL, 0, -1,
              "{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}, {\"role\": \"assistant\", \"content\": \"yes\"}]}", NULL);
    assert_int_equal(p.kind, PROMPT_MESSAGES);
    assert_string_equal(p.variables, "{\"messages\":[{\"role\":\"system\",\"content\":\"Be brief.\"},"
                                     "{\"role\":\"user\",\"content\":\"hi\"},{\"role\":\"assistant\",\"content\":\"yes\"}]}");
    prompt_clear(&p);
    p = build((struct job_settings){.chat_kwargs = (char *)"{\"a\": 1, \"b\": 2, \"messages\": 0}"}, NULL, 0, -1,
              "{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}], \"tools\": [{\"x\": [null]}],"
              " \"chat_template_kwargs\": {\"b\": false}, \"other\": 1}", NULL);
    json_t *got = json_loads(p.variables, 0, NULL);
    json_t *want = json_loads("{\"a\": 1, \"b\": false, \"messages\": [{\"role\": \"user\", \"content\": \"hi\"}], \"tools\": [{\"x\": [null]}]}", 0, NULL);
    assert_true(json_equal(got, want));
    json_decref(got);
    json_decref(want);
    prompt_clear(&p);
    p = build((struct job_settings){.system_text = (char *)"Be brief."}, (char *[]){(char *)"prompt"}, 1, 0, "[\"hi\"]", NULL);
    assert_int_equal(p.kind, PROMPT_TEXT);
    assert_string_equal(p.variables, "{\"messages\":[{\"role\":\"system\",\"content\":\"Be brief.\"},"
                                     "{\"role\":\"user\",\"content\":\"hi\"}]}");
    prompt_clear(&p);
    p = build((struct job_settings){.system_text = (char *)"Be brief."}, NULL, 0, -1, "{\"prompt\": \"x\", \"system\": \"Own.\"}", NULL);
    assert_int_equal(p.kind, PROMPT_MESSAGES);
    assert_string_equal(p.variables, "{\"messages\":[{\"role\":\"system\",\"content\":\"Own.\"},"
                                     "{\"role\":\"user\",\"content\":\"x\"}]}");
    prompt_clear(&p);
}

static void the_row_lies_over_the_job(void **state) {
    struct err err = ERR_INIT;
    struct job_settings set = {.seed = 11};
    assert_ok(params_from_json(&set.params, "{\"temperature\": 1, \"max_tokens\": 8}", &err), &err);
    struct prompt p = build(set, NULL, 0, -1, "{\"prompt\": \"x\"}", "{\"max_tokens\": 3, \"seed\": 99}");
    assert_true(p.params.temperature == 1);
    assert_int_equal(p.params.max_tokens, 3);
    assert_int_equal(p.seed, 99);
    prompt_clear(&p);
    p = build(set, NULL, 0, -1, "{\"prompt\": \"x\"}", NULL);
    uint64_t of_job = p.seed;
    assert_true(of_job <= INT64_MAX); /* fits a column of the database */
    prompt_clear(&p);
    set.seed = 12;
    p = build(set, NULL, 0, -1, "{\"prompt\": \"x\"}", NULL);
    assert_true(p.seed != of_job);
    prompt_clear(&p);
    set.params.set |= PARAM_SEED; /* a seed among the job's parameters is the job's seed */
    set.params.seed = 11;
    p = build(set, NULL, 0, -1, "{\"prompt\": \"x\"}", NULL);
    assert_true(p.seed == of_job);
    prompt_clear(&p);
    params_clear(&set.params);
}

static void rows_without_a_prompt_fail(void **state) {
    static const char *const inputs[] = {"{\"text\": \"x\"}", "{\"prompt\": 7}", "[]", "{\"messages\": [{\"role\": \"user\"}]}", "nonsense"};
    struct err err = ERR_INIT;
    struct job_work job = {.prompt_column = 0, .prompt_key = (char *)"prompt"};
    for (size_t i = 0; i < sizeof inputs / sizeof *inputs; i++) {
        struct request_row row = {.input = (char *)inputs[i]};
        struct prompt p = {0};
        assert_int_equal(prompt_build(&p, &job, &row, &err), E_PARSE);
        assert_null(p.text);
        assert_null(p.variables);
    }
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(texts_are_those_of_python),
    cmocka_unit_test(a_name_may_hold_a_filters_sign),
    cmocka_unit_test(errors_say_where_and_what_to_do),
    cmocka_unit_test(a_missing_cell_is_the_rows_fault),
    cmocka_unit_test(a_prompt_has_a_ceiling),
    cmocka_unit_test(cells_become_prompts),
    cmocka_unit_test(json_values_become_text),
    cmocka_unit_test(objects_become_prompts),
    cmocka_unit_test(the_row_lies_over_the_job),
    cmocka_unit_test(rows_without_a_prompt_fail),
};

UNIT_MAIN(tests)
