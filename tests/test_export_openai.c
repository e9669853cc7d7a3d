/* test_export_openai.c - rows as lines of the output files of OpenAI's batch interface. The shape
 * is that of OpenAI's published reference; tests/e2e/flow.bats reads such a file as a user would. */
#include "tests/unit.h"
#include "tests/aid_jobs.h"

#include "base/file.h"

#include <jansson.h>

#define HELLO "\"messages\": [{\"role\": \"user\", \"content\": \"hello\"}]"
#define CHAT_LINE "{\"custom_id\": \"chat\", \"method\": \"POST\", \"url\": \"/v1/chat/completions\", \"body\": {\"model\": \"cloud-4\", " HELLO "}}\n"

static const struct job_settings of_qwen = {.model = (char *)"/models/org/qwen"};

/* Submit `text`, publish these results of its first rows, all finished at one time; the lines of
 * the export, in an array. */
static json_t *exported(const char *name, const char *text, const struct job_settings *settings, struct result_row *rows, size_t n,
                        struct result_filter filter) {
    struct err err = ERR_INIT;
    struct store *s = fresh_store("t.db");
    struct submit_report report;
    struct worker *w;
    struct lease l;
    bool found;
    int64_t n_rows;
    assert_ok(submit_text(s, name, text, (struct submit_options){.settings = settings}, &report, &err), &err);
    assert_ok(worker_open(&w, s, &(struct worker_options){.device = "cpu"}, &err), &err);
    assert_ok(worker_lease(w, report.job_id, &l, &found, &err), &err);
    for (size_t i = 0; i < n; i++) rows[i].job_id = report.job_id;
    assert_ok(worker_publish(w, rows, n, &err), &err);
    look_exec(store_path(s), "UPDATE result SET finished_at = 1795000000999999");
    char *path = temp_path("out.jsonl"), *out;
    size_t bytes;
    struct export_options o = {.path = path, .format = EXPORT_OPENAI, .filter = filter, .force = true};
    assert_ok(job_export(s, report.job_id, &o, &n_rows, &err), &err);
    assert_ok(file_read(path, 1 << 20, &out, &bytes, &err), &err);
    json_t *lines = json_array();
    char *save = NULL;
    for (char *line = strtok_r(out, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        json_error_t why;
        json_t *v = json_loads(line, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &why);
        if (!v) fail_msg("%s: %s", why.text, line);
        json_array_append_new(lines, v);
    }
    assert_int_equal(json_array_size(lines), n_rows);
    free(out);
    free(path);
    lease_clear(&l);
    worker_close(w);
    store_close(s);
    return lines;
}

static void assert_json(const json_t *got, const char *expected) {
    json_t *want = json_loads(expected, JSON_DECODE_ANY, NULL);
    assert_non_null(want);
    if (!json_equal(got, want)) {
        char *text = json_dumps(got, JSON_ENCODE_ANY);
        fail_msg("%s\nis not\n%s", text, expected);
    }
    json_decref(want);
}

static const json_t *body_of(const json_t *lines, size_t i) {
    return json_object_get(json_object_get(json_array_get(lines, i), "response"), "body");
}

/* The body's object, of the line of one row. */
static void assert_object(const char *name, const char *text, const struct job_settings *settings, const char *object) {
    struct result_row row = ok_result(0, 0, "x");
    json_t *lines = exported(name, text, settings, &row, 1, (struct result_filter){0});
    assert_string_equal(json_string_value(json_object_get(body_of(lines, 0), "object")), object);
    json_decref(lines);
}

/* ---------------------------------------------------------------- lines */

static void chat_text_and_failures_each_have_their_form(void **state) {
    struct result_row rows[] = {ok_result(0, 0, "Hi \"you\"\n"), ok_result(0, 1, "upon a time"), ok_result(0, 2, "no")};
    rows[1].finish_reason = "length";
    rows[1].cached_tokens = 2;
    rows[2] = (struct result_row){.row = 2, .status = ROW_FAILED, .finish_reason = "error", .prompt_tokens = 3, .attempt = 1, .queue_us = -1,
                                  .prefill_us = -1, .ttft_us = -1, .decode_us = -1, .e2e_us = -1, .error_code = "context_length",
                                  .error = "the prompt, \"row\", is too long"};
    json_t *lines = exported("in.jsonl", CHAT_LINE "{\"id\": \"text\", \"prompt\": \"Once\"}\n{\"prompt\": \"long\"}\n", &of_qwen, rows, 3,
                             (struct result_filter){0});
    assert_json(json_array_get(lines, 0),
                "{\"id\": \"batch_req_1-0\", \"custom_id\": \"chat\", \"error\": null, \"response\": {\"status_code\": 200, \"request_id\": \"req_1-0\","
                " \"body\": {\"id\": \"chatcmpl-1-0\", \"object\": \"chat.completion\", \"created\": 1795000000, \"model\": \"qwen\", \"choices\":"
                " [{\"index\": 0, \"message\": {\"role\": \"assistant\", \"content\": \"Hi \\\"you\\\"\\n\", \"refusal\": null}, \"logprobs\": null,"
                " \"finish_reason\": \"stop\"}], \"usage\": {\"prompt_tokens\": 3, \"completion_tokens\": 5, \"total_tokens\": 8,"
                " \"prompt_tokens_details\": {\"cached_tokens\": 0}}}}}");
    assert_json(json_array_get(lines, 1),
                "{\"id\": \"batch_req_1-1\", \"custom_id\": \"text\", \"error\": null, \"response\": {\"status_code\": 200, \"request_id\": \"req_1-1\","
                " \"body\": {\"id\": \"cmpl-1-1\", \"object\": \"text_completion\", \"created\": 1795000000, \"model\": \"qwen\", \"choices\":"
                " [{\"index\": 0, \"text\": \"upon a time\", \"logprobs\": null, \"finish_reason\": \"length\"}], \"usage\": {\"prompt_tokens\": 3,"
                " \"completion_tokens\": 5, \"total_tokens\": 8, \"prompt_tokens_details\": {\"cached_tokens\": 2}}}}}");
    assert_json(json_array_get(lines, 2),
                "{\"id\": \"batch_req_1-2\", \"custom_id\": \"2\", \"response\": null, \"error\": {\"code\": \"context_length\", \"message\":"
                " \"the prompt, \\\"row\\\", is too long\"}}");
    json_decref(lines);
}

static void what_the_row_was_says_which_form(void **state) {
    struct job_settings with_template = {.template_text = (char *)"Say {x}"}, always = {.chat = (char *)"always", .system_text = (char *)"s"};
    assert_object("in.jsonl", "{" HELLO "}\n", NULL, "chat.completion");
    assert_object("in.jsonl", "{\"prompt\": \"a\", \"system\": \"b\"}\n", NULL, "text_completion");
    assert_object("in.jsonl", "{\"prompt\": \"a\"}\n", &always, "text_completion");
    assert_object("in.jsonl", "{" HELLO ", \"x\": 1}\n", &with_template, "text_completion"); /* messages were data */
    assert_object("in.csv", "messages,prompt\na,b\n", NULL, "text_completion");
    assert_object("in.txt", "{\"messages\": 1}\n", NULL, "text_completion");
}

static void a_model_is_called_by_its_last_name(void **state) {
    static const char *const cases[][2] = {{"/models/org/qwen", "qwen"}, {"qwen", "qwen"}, {NULL, ""}, {"/m/caf\xe9", "caf\xef\xbf\xbd"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct result_row row = ok_result(0, 0, "x");
        struct job_settings set = {.model = (char *)cases[i][0]};
        json_t *lines = exported("in.jsonl", "\"x\"\n", &set, &row, 1, (struct result_filter){0});
        assert_string_equal(json_string_value(json_object_get(body_of(lines, 0), "model")), cases[i][1]);
        json_decref(lines);
    }
}

static void only_ok_leaves_failed_rows_out(void **state) {
    struct result_row rows[] = {ok_result(0, 1, "b"), ok_result(0, 0, "a")};
    rows[1].status = ROW_FAILED;
    rows[1].finish_reason = "error";
    rows[1].error_code = "bad_prompt";
    json_t *lines = exported("in.jsonl", "\"x\"\n\"y\"\n", NULL, rows, 2, (struct result_filter){.only_ok = true});
    assert_int_equal(json_array_size(lines), 1);
    assert_string_equal(json_string_value(json_object_get(json_array_get(lines, 0), "custom_id")), "1");
    json_decref(lines);
}

/* ---------------------------------------------------------------- logprobs */

static const char stored[] = "{\"tokens\":[\"é\",\"bytes:\\\\xe2\\\\x82\",\"bytes:\"],\"token_logprobs\":[-0.1234567,-2.0,-9999.0],"
                             "\"top_logprobs\":[{\"é\":-0.1234567,\"a\":-3.5},{\"bytes:\\\\xe2\\\\x82\":-2.0},{}],\"text_offset\":[0,1,1]}";
static const char of_prompt[] = "[null,{\"7\":{\"logprob\":-1.5,\"rank\":1,\"decoded_token\":\"a\\u0000\"}}]";

static void logprobs_have_the_form_of_their_interface(void **state) {
    struct result_row rows[] = {ok_result(0, 0, "x"), ok_result(0, 1, "y")};
    for (int i = 0; i < 2; i++) {
        rows[i].logprobs = (struct packed_text){stored, strlen(stored), CODEC_RAW};
        rows[i].prompt_logprobs = (struct packed_text){of_prompt, strlen(of_prompt), CODEC_RAW};
    }
    json_t *lines = exported("in.jsonl", CHAT_LINE "\"text\"\n", NULL, rows, 2, (struct result_filter){0});
    const json_t *chat = json_array_get(json_object_get(body_of(lines, 0), "choices"), 0);
    const json_t *text = json_array_get(json_object_get(body_of(lines, 1), "choices"), 0);
    assert_json(json_object_get(chat, "logprobs"),
                "{\"refusal\": null, \"content\": ["
                "{\"token\": \"é\", \"logprob\": -0.1234567, \"bytes\": [195, 169], \"top_logprobs\":"
                " [{\"token\": \"é\", \"logprob\": -0.1234567, \"bytes\": [195, 169]}, {\"token\": \"a\", \"logprob\": -3.5, \"bytes\": [97]}]},"
                "{\"token\": \"bytes:\\\\xe2\\\\x82\", \"logprob\": -2.0, \"bytes\": [226, 130], \"top_logprobs\":"
                " [{\"token\": \"bytes:\\\\xe2\\\\x82\", \"logprob\": -2.0, \"bytes\": [226, 130]}]},"
                "{\"token\": \"bytes:\", \"logprob\": -9999.0, \"bytes\": [98, 121, 116, 101, 115, 58], \"top_logprobs\": []}]}");
    assert_json(json_object_get(text, "logprobs"), stored);
    json_t *prompt = json_loads(of_prompt, JSON_ALLOW_NUL, NULL);
    assert_true(json_equal(json_object_get(body_of(lines, 0), "prompt_logprobs"), prompt));
    assert_true(json_equal(json_object_get(text, "prompt_logprobs"), prompt));
    assert_null(json_object_get(chat, "prompt_logprobs"));
    json_decref(prompt);
    json_decref(lines);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(chat_text_and_failures_each_have_their_form),
    cmocka_unit_test(what_the_row_was_says_which_form),
    cmocka_unit_test(a_model_is_called_by_its_last_name),
    cmocka_unit_test(only_ok_leaves_failed_rows_out),
    cmocka_unit_test(logprobs_have_the_form_of_their_interface),
};

UNIT_MAIN(tests)
