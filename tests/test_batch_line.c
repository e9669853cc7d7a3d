/* test_batch_line.c - lines of the batch files that OpenAI's interface and vLLM's run_batch
 * take: they load as they are; what they ask that is not built is refused by name. The shape is
 * that of OpenAI's published batch format. */
#include "tests/unit.h"
#include "tests/aid_jobs.h"

#include "jobs/batch_line.h"
#include "jobs/json_text.h"

#define CHAT "\"method\": \"POST\", \"url\": \"/v1/chat/completions\""
#define COMPLETIONS "\"method\": \"POST\", \"url\": \"/v1/completions\""
#define HELLO "\"messages\": [{\"role\": \"user\", \"content\": \"hello\"}]"

/* ---------------------------------------------------------------- lines that load */

static void the_body_is_the_row_and_custom_id_its_id(void **state) {
    struct err err = ERR_INIT;
    struct store *s = fresh_store("chat.db");
    struct submit_report report;
    assert_ok(submit_text(s, "x.jsonl",
                          "{\"custom_id\": \"a-1\", " CHAT ", \"body\": {\"model\": \"m\", " HELLO
                          ", \"max_completion_tokens\": 9, \"temperature\": 0.2, \"stop\": [\"END\"], \"seed\": 4, \"n\": 1, \"stream\": false,"
                          " \"logprobs\": true, \"top_logprobs\": 2, \"presence_penalty\": 0.5, \"frequency_penalty\": -1, \"top_p\": 0.9,"
                          " \"logit_bias\": {\"5\": -100}, \"response_format\": {\"type\": \"text\"}, \"user\": \"u\"}}\n",
                          (struct submit_options){0}, &report, &err), &err);
    assert_look(s, "SELECT custom_id FROM request", "a-1");
    assert_look(s, "SELECT params FROM request",
                "{\"max_tokens\":9,\"temperature\":0.20000000000000001,\"top_p\":0.90000000000000002,\"seed\":4,\"stop\":[\"END\"],"
                "\"presence_penalty\":0.5,\"frequency_penalty\":-1.0,\"logit_bias\":{\"5\":-100.0},\"logprobs\":0,\"top_logprobs\":2}");
    assert_ok(submit_text(s, "y.jsonl", "{\"custom_id\": \"a-1\", " CHAT ", \"body\": {" HELLO ", \"temperature\": 0.2}}\n",
                          (struct submit_options){0}, &report, &err), &err);
    assert_look(s, "SELECT input FROM request WHERE id >> 32 = 2", "{\"messages\":[{\"role\":\"user\",\"content\":\"hello\"}],\"temperature\":0.2}");
    store_close(s);
}

static void what_a_row_says_to_the_model_is_in_its_body(void **state) {
    struct err err = ERR_INIT;
    struct store *s = fresh_store("prompt.db");
    struct submit_report report;
    struct worker *w;
    struct lease l;
    struct job_work job;
    struct prompt p;
    bool found;
    assert_ok(submit_text(s, "x.jsonl",
                          "{\"custom_id\": \"c\", \"method\": \"POST\", \"url\": \"/v1/completions\", \"body\": {\"prompt\": \"Once\", \"max_tokens\": 3}}\n"
                          "{\"custom_id\": \"d\", " CHAT ", \"body\": {" HELLO ", \"tools\": [{\"name\": \"t\"}], \"tool_choice\": \"auto\"}}\n",
                          (struct submit_options){0}, &report, &err), &err);
    assert_ok(worker_open(&w, s, &(struct worker_options){.device = "cpu"}, &err), &err);
    assert_ok(worker_next_job(w, report.job_id, &job, &found, &err), &err);
    assert_ok(worker_lease(w, report.job_id, &l, &found, &err), &err);
    assert_int_equal(l.n_rows, 2);
    assert_ok(prompt_build(&p, &job, &l.rows[0], &err), &err);
    assert_int_equal(p.kind, PROMPT_RAW);
    assert_string_equal(p.text, "Once");
    assert_int_equal(p.params.max_tokens, 3);
    prompt_clear(&p);
    assert_ok(prompt_build(&p, &job, &l.rows[1], &err), &err);
    assert_int_equal(p.kind, PROMPT_MESSAGES);
    assert_string_equal(p.variables, "{\"tools\":[{\"name\":\"t\"}],\"messages\":[{\"role\":\"user\",\"content\":\"hello\"}]}");
    prompt_clear(&p);
    job_work_clear(&job);
    lease_clear(&l);
    worker_close(w);
    store_close(s);
}

static void plain_lines_stand_between_them(void **state) {
    struct err err = ERR_INIT;
    struct store *s = fresh_store("mixed.db");
    struct submit_report report;
    assert_ok(submit_text(s, "x.jsonl",
                          "{\"prompt\": \"a\", \"id\": \"p\", \"body\": \"text\"}\n"
                          "{\"custom_id\": \"q\", " CHAT ", \"body\": {" HELLO "}}\n"
                          "{\"prompt\": \"b\", \"custom_id\": \"r\", \"body\": {\"x\": 1}}\n"
                          "\"bare\"\n"
                          "{" CHAT ", \"body\": {" HELLO "}}\n",
                          (struct submit_options){0}, &report, &err), &err);
    assert_look(s, "SELECT group_concat(coalesce(custom_id, 'none')) FROM (SELECT custom_id FROM request ORDER BY id)", "p,q,r,none,none");
    assert_look(s, "SELECT input FROM request ORDER BY id LIMIT 1", "{\"prompt\": \"a\", \"id\": \"p\", \"body\": \"text\"}");
    assert_int_equal(look_int(store_path(s), "SELECT count(*) FROM request WHERE input -> '$.messages' IS NOT NULL"), 2);
    assert_err(submit_text(s, "y.jsonl", "{\"custom_id\": \"q\", " CHAT ", \"body\": {" HELLO "}}\n{\"prompt\": \"a\", \"id\": \"q\"}\n",
                           (struct submit_options){0}, &report, &err), E_PARSE, "y.jsonl:2: id \"q\" is on line 1 already", &err);
    store_close(s);
}

static void a_prompt_that_is_a_list_of_one_string_is_that_string(void **state) {
    struct err err = ERR_INIT;
    struct store *s = fresh_store("list.db");
    struct submit_report report;
    struct job_settings set = {.template_text = (char *)"Say {prompt}"};
    static const char text[] = "{\"custom_id\": \"a\", " COMPLETIONS ", \"body\": {\"prompt\": [\"Once\"], \"top_p\": 0.1, \"max_tokens\": 3}}\n"
                               "{\"id\": \"b\", \"prompt\": [\"upon\"]}\n";
    assert_ok(submit_text(s, "x.jsonl", text, (struct submit_options){0}, &report, &err), &err);
    assert_look(s, "SELECT input FROM request WHERE custom_id = 'a'", "{\"prompt\":\"Once\",\"top_p\":0.1,\"max_tokens\":3}");
    assert_look(s, "SELECT input FROM request WHERE custom_id = 'b'", "{\"id\":\"b\",\"prompt\":\"upon\"}");
    assert_ok(submit_text(s, "y.jsonl", "{\"prompt\": [\"upon\"]}\n", (struct submit_options){.settings = &set}, &report, &err), &err);
    assert_look(s, "SELECT input FROM request WHERE id >> 32 = 2", "{\"prompt\": [\"upon\"]}"); /* data, as it is */
    store_close(s);
}

/* As in a CSV file: what a template is filled from is data, whatever its keys are called. */
static void with_a_template_a_body_is_a_column(void **state) {
    struct err err = ERR_INIT;
    struct store *s = fresh_store("template.db");
    struct submit_report report;
    struct job_settings set = {.template_text = (char *)"Mail from {custom_id}: {body}"};
    assert_ok(submit_text(s, "x.jsonl", "{\"custom_id\": \"a\", \"body\": {\"n\": 2}}\n{\"custom_id\": \"b\", \"body\": \"text\"}\n",
                          (struct submit_options){.settings = &set}, &report, &err), &err);
    assert_look(s, "SELECT input FROM request ORDER BY id LIMIT 1", "{\"custom_id\": \"a\", \"body\": {\"n\": 2}}");
    store_close(s);
}

/* ---------------------------------------------------------------- lines that are refused */

static void what_is_not_built_is_refused_by_name(void **state) {
    static const struct {
        const char *line, *code, *part;
    } cases[] = {
        {"\"method\": \"GET\", \"url\": \"/v1/chat/completions\", \"body\": {" HELLO "}", "unsupported_parameter",
         "method: \"GET\" is not built; only \"POST\" is"},
        {"\"method\": \"POST\", \"url\": \"/v1/embeddings\", \"body\": {\"input\": \"x\"}", "unsupported_parameter",
         "url: \"/v1/embeddings\" is not built; only /v1/chat/completions and /v1/completions are"},
        {"\"method\": \"POST\", \"url\": \"/v1/responses\", \"body\": {\"input\": \"x\"}", "unsupported_parameter", "url: \"/v1/responses\""},
        {"\"method\": \"POST\", \"body\": {" HELLO "}", "bad_value", "url: missing or no string"},
        {"\"url\": \"/v1/chat/completions\", \"body\": {" HELLO "}", "bad_value", "method: missing or no string"},
        {CHAT ", \"body\": {\"prompt\": \"x\"}", "bad_value",
         "body: no \"messages\", which /v1/chat/completions needs; a prompt goes to /v1/completions"},
        {COMPLETIONS ", \"body\": {" HELLO "}", "bad_value",
         "body: no \"prompt\", which /v1/completions needs; messages go to /v1/chat/completions"},
        {COMPLETIONS ", \"body\": {\"prompt\": [1, 2]}", "unsupported_content",
         "prompt: token ids are not built; give the text that they stand for"},
        {COMPLETIONS ", \"body\": {\"prompt\": [[1, 2], [3]]}", "unsupported_content", "prompt: token ids are not built"},
        {COMPLETIONS ", \"body\": {\"prompt\": [\"a\", \"b\"]}", "unsupported_content",
         "prompt: a list of 2 strings; give each a line of its own"},
        {COMPLETIONS ", \"body\": {\"prompt\": []}", "bad_value", "prompt: neither a string nor a list of one"},
        {COMPLETIONS ", \"body\": {\"prompt\": [\"a\", 1]}", "bad_value", "prompt: neither a string nor a list of one"},
        {COMPLETIONS ", \"body\": {\"prompt\": 1}", "bad_value", "prompt: not a string"},
        {CHAT ", \"body\": {}", "bad_value", "body: no \"messages\""},
        {CHAT ", \"body\": {\"messages\": []}", "bad_value", "messages: not a list of messages"},
        {CHAT ", \"body\": {" HELLO ", \"prompt\": \"x\"}", "bad_value", "both a prompt and messages"},
        {CHAT ", \"body\": {" HELLO ", \"n\": 2}", "unsupported_parameter", "n: 2 is not built yet; only 1 is"},
        {CHAT ", \"body\": {" HELLO ", \"stream\": true}", "unsupported_parameter", "stream: true is not built yet; leave it out"},
        {CHAT ", \"body\": {" HELLO ", \"response_format\": {\"type\": \"json_object\"}}", "unsupported_parameter",
         "response_format: {\"type\":\"json_object\"} is not built yet; only {\"type\": \"text\"} is"},
        {CHAT ", \"body\": {" HELLO ", \"temperature\": 11}", "out_of_range", "temperature: 11 is not in 0 .. 10"},
        {CHAT ", \"body\": {" HELLO ", \"max_tokens\": 4, \"max_completion_tokens\": 5}", "bad_value",
         "max_completion_tokens: 5 here and 4 as max_tokens"},
    };
    struct err err = ERR_INIT;
    struct store *s = fresh_store("bad.db");
    struct submit_report report;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[600];
        snprintf(text, sizeof text, "{\"custom_id\": \"a\", " CHAT ", \"body\": {" HELLO "}}\n{\"custom_id\": \"b\", %s}\n", cases[i].line);
        assert_err(submit_text(s, "x.jsonl", text, (struct submit_options){0}, &report, &err), E_PARSE, cases[i].part, &err);
        assert_non_null(strstr(err.text, "x.jsonl:2: "));
        assert_non_null(strstr(err.text, "nothing was stored; mend the line, or use --reject skip"));
        assert_int_equal(look_int(store_path(s), "SELECT (SELECT count(*) FROM job) + (SELECT count(*) FROM request)"), 0);
        assert_ok(submit_text(s, "x.jsonl", text, (struct submit_options){.skip_rejects = true}, &report, &err), &err);
        assert_int_equal(report.n_rows, 1);
        assert_int_equal(report.n_rejected, 1);
        assert_string_equal(report.rejects[0].code, cases[i].code);
        look_exec(store_path(s), "DELETE FROM request; DELETE FROM reject; DELETE FROM lease; DELETE FROM job");
    }
    store_close(s);
}

static void a_line_is_told_from_data(void **state) {
    static const struct {
        const char *line;
        bool is;
    } cases[] = {
        {"{\"custom_id\": \"a\", \"body\": {}}", true},
        {"{\"method\": \"POST\", \"body\": {}}", true},
        {"{\"url\": \"/v1/embeddings\", \"body\": {}}", true},
        {"{\"body\": {}}", false},
        {"{\"id\": 1, \"body\": {}}", false},
        {"{\"custom_id\": \"a\", \"body\": \"text\"}", false},
        {"{\"custom_id\": \"a\", \"body\": []}", false},
        {"{\"custom_id\": \"a\", \"body\": {}, \"prompt\": \"x\"}", false},
        {"{\"custom_id\": \"a\", \"body\": {}, \"messages\": []}", false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        json_t *line = json_loads(cases[i].line, 0, NULL);
        assert_int_equal(batch_line_is(line, "prompt"), cases[i].is);
        json_decref(line);
    }
}

static void urls_may_have_a_host_in_front(void **state) {
    struct err err = ERR_INIT;
    json_t *line = json_loads("{\"method\": \"POST\", \"url\": \"https://host:8000/v1/completions\", \"body\": {\"prompt\": \"x\"}}", 0, NULL);
    assert_ok(batch_line_check(line, "prompt", &err), &err);
    json_object_set_new(line, "url", json_string("/v2/completions"));
    assert_err(batch_line_check(line, "prompt", &err), E_UNSUPPORTED, "url: \"/v2/completions\" is not built", &err);
    json_decref(line);
}

/* ---------------------------------------------------------------- the model that lines name */

static void another_model_is_noted_once(void **state) {
    static const struct {
        const char *asked, *model, *noted;
    } cases[] = {
        {"cloud-4", "/models/qwen", "cloud-4"}, {"qwen", "/models/qwen", ""}, {"org/qwen", "/models/qwen", ""},
        {"org/qwen", "qwen", ""},               {"cloud-4", NULL, "cloud-4"},
    };
    struct err err = ERR_INIT;
    struct store *s = fresh_store("model.db");
    struct submit_report report;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[400];
        struct job_settings set = {.model = (char *)cases[i].model};
        snprintf(text, sizeof text, "{" CHAT ", \"body\": {\"model\": \"%s\", " HELLO "}}\n{" CHAT ", \"body\": {" HELLO "}}\n", cases[i].asked);
        assert_ok(submit_text(s, "x.jsonl", text, (struct submit_options){.settings = &set}, &report, &err), &err);
        assert_string_equal(report.other_model, cases[i].noted);
    }
    assert_ok(submit_text(s, "x.jsonl", "{" CHAT ", \"body\": {\"model\": \"b\", " HELLO "}}\n{" CHAT ", \"body\": {\"model\": \"a\", " HELLO "}}\n",
                          (struct submit_options){0}, &report, &err), &err);
    assert_string_equal(report.other_model, "b");
    assert_ok(submit_text(s, "x.jsonl", "{\"prompt\": \"x\", \"model\": \"b\"}\n", (struct submit_options){0}, &report, &err), &err);
    assert_string_equal(report.other_model, "");
    store_close(s);
}

static void numbers_of_a_body_stay_readable(void **state) {
    json_t *v = json_loads("{\"a\": 0.10, \"b\": [1e-7, 3, -2.5, 1.0], \"c\": \"0.10 \\\" \\u00e9\"}", 0, NULL);
    char *text = json_text(v);
    assert_string_equal(text, "{\"a\":0.1,\"b\":[1e-07,3,-2.5,1.0],\"c\":\"0.10 \\\" \u00e9\"}");
    json_decref(v);
    free(text);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(the_body_is_the_row_and_custom_id_its_id),
    cmocka_unit_test(what_a_row_says_to_the_model_is_in_its_body),
    cmocka_unit_test(plain_lines_stand_between_them),
        cmocka_unit_test(a_prompt_that_is_a_list_of_one_string_is_that_string),
    cmocka_unit_test(with_a_template_a_body_is_a_column),
    cmocka_unit_test(what_is_not_built_is_refused_by_name),
    cmocka_unit_test(a_line_is_told_from_data),
    cmocka_unit_test(urls_may_have_a_host_in_front),
    cmocka_unit_test(another_model_is_noted_once),
    cmocka_unit_test(numbers_of_a_body_stay_readable),
};

UNIT_MAIN(tests)
