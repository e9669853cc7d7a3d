/* test_params.c - sampling parameters: names, types and limits as docs/input.md lists them. */
#include "tests/unit.h"

#include "base/mem.h"
#include "jobs/jobs.h"

#include <jansson.h>
#include <math.h>

/* ---------------------------------------------------------------- values that are taken */

static void every_key_takes_the_ends_of_its_range(void **state) {
    static const char *const good[][2] = {
        {"max_completion_tokens", "1"}, {"max_completion_tokens", "1048576"},
        {"max_tokens", "1"},          {"max_tokens", "1048576"},  {"max_tokens", "20.0"}, {"min_tokens", "0"},
        {"min_tokens", "1048576"},    {"temperature", "0"},       {"temperature", "10"},  {"temperature", "0.7"},
        {"top_p", "1"},               {"top_p", "1e-9"},          {"top_k", "0"},         {"top_k", "16777216"}, {"top_k", "-1"},
        {"min_p", "0"},               {"min_p", "1"},             {"seed", "0"},          {"seed", "9223372036854775807"},
        {"stop", "\"END\""},          {"stop", "[\"a\", \"b\"]"}, {"stop", "[]"},         {"stop_token_ids", "[0, 16777215]"},
        {"stop_token_ids", "[]"},     {"ignore_eos", "true"},     {"ignore_eos", "false"},
        {"presence_penalty", "-2"},   {"presence_penalty", "2"},  {"frequency_penalty", "-2"}, {"frequency_penalty", "2.0"},
        {"repetition_penalty", "1e-9"}, {"repetition_penalty", "10"}, {"logit_bias", "{}"},
        {"logit_bias", "{\"0\": -100, \"16777215\": 100, \"007\": 0.5}"},
        {"allowed_token_ids", "[0, 16777215]"}, {"banned_token_ids", "[]"}, {"banned_token_ids", "[3, 3]"},
        {"logprobs", "0"}, {"logprobs", "20"}, {"logprobs", "true"}, {"logprobs", "false"}, {"top_logprobs", "20"},
        {"prompt_logprobs", "0"}, {"prompt_logprobs", "20"}, {"prompt_logprobs", "false"}};
    struct err err = ERR_INIT;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        struct params p = {0};
        assert_ok(params_set_json(&p, good[i][0], good[i][1], &err), &err);
        assert_int_not_equal(p.set, 0);
        assert_true(params_is_key(good[i][0]));
        params_clear(&p);
    }
}

static void values_arrive(void **state) {
    struct err err = ERR_INIT;
    struct params p = {0};
    assert_ok(params_set_json(&p, "max_tokens", "77", &err), &err);
    assert_ok(params_set_json(&p, "temperature", "0.7", &err), &err);
    assert_ok(params_set_json(&p, "seed", "9223372036854775807", &err), &err);
    assert_ok(params_set_json(&p, "stop", "[\"\\n\\n\", \"Ende\"]", &err), &err);
    assert_ok(params_set_json(&p, "stop_token_ids", "[5, 9]", &err), &err);
    assert_ok(params_set_json(&p, "ignore_eos", "true", &err), &err);
    assert_int_equal(p.set, PARAM_MAX_TOKENS | PARAM_TEMPERATURE | PARAM_SEED | PARAM_STOP | PARAM_STOP_TOKEN_IDS | PARAM_IGNORE_EOS);
    assert_int_equal(p.max_tokens, 77);
    assert_true(p.temperature == 0.7);
    assert_true(p.seed == INT64_MAX);
    assert_int_equal(p.n_stop, 2);
    assert_string_equal(p.stop[0], "\n\n");
    assert_string_equal(p.stop[1], "Ende");
    assert_int_equal(p.n_stop_token_ids, 2);
    assert_int_equal(p.stop_token_ids[1], 9);
    assert_true(p.ignore_eos);
    params_clear(&p);
    assert_int_equal(p.set, 0);
}

static void penalties_and_lists_arrive(void **state) {
    struct err err = ERR_INIT;
    struct params p = {0};
    assert_ok(params_set_json(&p, "presence_penalty", "-0.5", &err), &err);
    assert_ok(params_set_text(&p, "frequency_penalty", "0.25", &err), &err);
    assert_ok(params_set_json(&p, "repetition_penalty", "1.2", &err), &err);
    assert_ok(params_set_json(&p, "logit_bias", "{\"9\": 1}", &err), &err);
    assert_ok(params_set_text(&p, "logit_bias", "{\"7\": -3.5, \"12\": 100}", &err), &err);
    assert_ok(params_set_json(&p, "allowed_token_ids", "[4, 2]", &err), &err);
    assert_ok(params_set_json(&p, "banned_token_ids", "[8, 9, 10]", &err), &err);
    assert_int_equal(p.set, PARAM_PRESENCE_PENALTY | PARAM_FREQUENCY_PENALTY | PARAM_REPETITION_PENALTY | PARAM_LOGIT_BIAS |
                                PARAM_ALLOWED_TOKEN_IDS | PARAM_BANNED_TOKEN_IDS);
    assert_true(p.presence_penalty == -0.5 && p.frequency_penalty == 0.25 && p.repetition_penalty == 1.2);
    assert_int_equal(p.n_logit_bias, 2);
    assert_int_equal(p.logit_bias_ids[0], 7);
    assert_true(p.logit_bias[0] == -3.5 && p.logit_bias[1] == 100);
    assert_int_equal(p.n_allowed_token_ids, 2);
    assert_int_equal(p.allowed_token_ids[1], 2);
    assert_int_equal(p.n_banned_token_ids, 3);
    assert_int_equal(p.banned_token_ids[0], 8);
    params_clear(&p);
}

/* A number as in completions; true as in chat, where top_logprobs says how many. */
static void logprobs_come_in_two_forms(void **state) {
    static const struct {
        const char *json;
        int64_t n;
        const char *again;
    } cases[] = {{"5", 5, "{\"logprobs\":5}"}, {"true", 0, "{\"logprobs\":0}"}, {"false", -1, "{\"logprobs\":false}"}};
    struct err err = ERR_INIT;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct params p = {0};
        assert_ok(params_set_json(&p, "logprobs", cases[i].json, &err), &err);
        assert_int_equal(p.logprobs, cases[i].n);
        char *text = params_to_json(&p);
        assert_string_equal(text, cases[i].again);
        free(text);
        params_clear(&p);
    }
}

static void text_is_json_where_it_can_be(void **state) {
    struct err err = ERR_INIT;
    struct params p = {0};
    assert_ok(params_set_text(&p, "temperature", "0.25", &err), &err);
    assert_ok(params_set_text(&p, "max_tokens", " 12 ", &err), &err);
    assert_ok(params_set_text(&p, "ignore_eos", "true", &err), &err);
    assert_ok(params_set_text(&p, "stop_token_ids", "[1,2,3]", &err), &err);
    assert_ok(params_set_text(&p, "n", "1", &err), &err);
    assert_true(p.temperature == 0.25);
    assert_int_equal(p.max_tokens, 12);
    assert_int_equal(p.n_stop_token_ids, 3);
    params_clear(&p);
}

/* A stop string may look like a number, a list or white space. */
static void a_stop_text_is_taken_as_it_stands(void **state) {
    static const char *const texts[] = {"END", "7", "[1]", "\"x\"", "true", " ", "日本"};
    struct err err = ERR_INIT;
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        struct params p = {0};
        assert_ok(params_set_text(&p, "stop", texts[i], &err), &err);
        assert_int_equal(p.n_stop, 1);
        assert_string_equal(p.stop[0], texts[i]);
        params_clear(&p);
    }
}

static void null_sets_nothing(void **state) {
    static const char *const keys[] = {"max_tokens", "temperature", "stop", "seed", "ignore_eos", "n", "logprobs", "tools"};
    struct err err = ERR_INIT;
    struct params p = {0};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) assert_ok(params_set_json(&p, keys[i], "null", &err), &err);
    assert_int_equal(p.set, 0);
}

/* ---------------------------------------------------------------- values that are refused */

static const struct refused {
    const char *key, *json;
    int code;
    const char *part;
} refusals[] = {
    {"max_tokens", "0", E_RANGE, "max_tokens: 0 is not in 1 .. 1048576"},
    {"max_tokens", "1048577", E_RANGE, "max_tokens: 1048577 is not in"},
    {"max_tokens", "1.5", E_PARSE, "max_tokens: 1.5 is not a whole number"},
    {"max_tokens", "\"many\"", E_PARSE, "max_tokens: not a number"},
    {"max_tokens", "true", E_PARSE, "max_tokens: not a number"},
    {"max_tokens", "9223372036854775807", E_RANGE, "max_tokens: "},
    {"max_completion_tokens", "0", E_RANGE, "max_completion_tokens: 0 is not in 1 .. 1048576"},
    {"max_completion_tokens", "8", E_PARSE, "max_completion_tokens: 8 here and 9 as max_tokens, which is the same; leave one out"},
    {"min_tokens", "-1", E_RANGE, "min_tokens: -1 is not in 0 .. 1048576"},
    {"temperature", "11", E_RANGE, "temperature: 11 is not in 0 .. 10"},
    {"temperature", "-0.5", E_RANGE, "temperature: -0.5 is not in 0 .. 10"},
    {"temperature", "[]", E_PARSE, "temperature: not a number"},
    {"top_p", "0", E_RANGE, "top_p: 0 is not above 0 and up to 1"},
    {"top_p", "1.01", E_RANGE, "top_p: 1.01 is not above 0 and up to 1"},
    {"top_k", "-2", E_RANGE, "top_k: -2 is not in -1 .. 16777216"},
    {"min_p", "1.5", E_RANGE, "min_p: 1.5 is not in 0 .. 1"},
    {"seed", "-1", E_RANGE, "seed: not a whole number in 0 .."},
    {"seed", "1.5", E_RANGE, "seed: not a whole number"},
    {"seed", "9223372036854775808", E_PARSE, "seed: too big integer"},
    {"stop", "7", E_PARSE, "stop: neither a string nor a list of strings"},
    {"stop", "[\"a\", 7]", E_PARSE, "stop: holds something that is not a string"},
    {"stop", "\"\"", E_RANGE, "stop: a string of 0 bytes"},
    {"stop", "[\"a\", \"\"]", E_RANGE, "stop: a string of 0 bytes"},
    {"stop_token_ids", "3", E_PARSE, "stop_token_ids: not a list of token ids"},
    {"stop_token_ids", "[1.5]", E_PARSE, "stop_token_ids: holds something that is not a token id"},
    {"stop_token_ids", "[-4]", E_RANGE, "stop_token_ids: -4 is not in"},
    {"stop_token_ids", "[16777216]", E_RANGE, "stop_token_ids: 16777216 is not in 0 .. 16777215"},
    {"logprobs", "21", E_RANGE, "logprobs: 21 is not in 0 .. 20"},
    {"logprobs", "1.5", E_PARSE, "logprobs: 1.5 is not a whole number"},
    {"logprobs", "\"all\"", E_PARSE, "logprobs: neither a number nor true or false"},
    {"prompt_logprobs", "-1", E_RANGE, "prompt_logprobs: -1 is not in 0 .. 20"},
    {"top_logprobs", "-1", E_RANGE, "top_logprobs: -1 is not in 0 .. 20"},
    {"presence_penalty", "2.1", E_RANGE, "presence_penalty: 2.1 is not in -2 .. 2"},
    {"frequency_penalty", "-3", E_RANGE, "frequency_penalty: -3 is not in -2 .. 2"},
    {"frequency_penalty", "\"x\"", E_PARSE, "frequency_penalty: not a number"},
    {"repetition_penalty", "0", E_RANGE, "repetition_penalty: 0 is not above 0 and up to 10"},
    {"logit_bias", "[1]", E_PARSE, "logit_bias: not an object of token ids and numbers"},
    {"logit_bias", "{\"a\": 1}", E_PARSE, "logit_bias: \"a\" is not a token id"},
    {"logit_bias", "{\"-1\": 1}", E_PARSE, "logit_bias: \"-1\" is not a token id"},
    {"logit_bias", "{\"16777216\": 1}", E_PARSE, "logit_bias: \"16777216\" is not a token id"},
    {"logit_bias", "{\"1\": \"x\"}", E_PARSE, "logit_bias: the value of 1 is not a number"},
    {"logit_bias", "{\"1\": 101}", E_RANGE, "logit_bias: 101 is not in -100 .. 100"},
    {"allowed_token_ids", "7", E_PARSE, "allowed_token_ids: not a list of token ids"},
    {"banned_token_ids", "[-1]", E_RANGE, "banned_token_ids: -1 is not in"},
    {"ignore_eos", "1", E_PARSE, "ignore_eos: neither true nor false"},
    {"temprature", "1", E_NOT_FOUND, "no sampling parameter \"temprature\""},
    {"", "1", E_NOT_FOUND, "no sampling parameter \"\""},
    {"temperature", "0.5 x", E_PARSE, "temperature: "},
    {"temperature", "", E_PARSE, "temperature: "},
};

static void a_refused_value_is_named_and_changes_nothing(void **state) {
    struct err err = ERR_INIT;
    for (size_t i = 0; i < sizeof refusals / sizeof *refusals; i++) {
        const struct refused *c = &refusals[i];
        struct params p = {0};
        assert_ok(params_from_json(&p, "{\"temperature\": 0.5, \"max_tokens\": 9, \"stop\": [\"x\"], \"stop_token_ids\": [8], \"logit_bias\": {\"5\": 1}}", &err), &err);
        char *before = params_to_json(&p);
        assert_err(params_set_json(&p, c->key, c->json, &err), c->code, c->part, &err);
        char *after = params_to_json(&p);
        assert_string_equal(after, before);
        free(before);
        free(after);
        params_clear(&p);
    }
}

static void stops_have_a_ceiling(void **state) {
    struct err err = ERR_INIT;
    struct params p = {0};
    char text[300], list[1000] = "[";
    memset(text, 'x', 256);
    text[256] = '\0';
    assert_ok(params_set_text(&p, "stop", text, &err), &err);
    text[256] = 'x';
    text[257] = '\0';
    assert_err(params_set_text(&p, "stop", text, &err), E_RANGE, "stop: a string of 257 bytes; 1 .. 256", &err);
    for (int i = 0; i < 17; i++) strcat(list, i ? ",\"s\"" : "\"s\"");
    strcat(list, "]");
    assert_err(params_set_json(&p, "stop", list, &err), E_RANGE, "stop: 17 strings, at most 16", &err);
    strcpy(list, "[");
    for (int i = 0; i < 65; i++) strcat(list, i ? ",1" : "1");
    strcat(list, "]");
    assert_err(params_set_json(&p, "stop_token_ids", list, &err), E_RANGE, "stop_token_ids: 65 ids, at most 64", &err);
    params_clear(&p);
}

static void lists_of_ids_have_a_ceiling(void **state) {
    struct err err = ERR_INIT;
    struct params p = {0};
    for (int n = 1024; n <= 1025; n++) {
        json_t *ids = json_array(), *bias = json_object();
        for (int i = 0; i < n; i++) {
            char key[16];
            snprintf(key, sizeof key, "%d", i);
            json_array_append_new(ids, json_integer(i));
            json_object_set_new(bias, key, json_integer(1));
        }
        char *list = json_dumps(ids, 0), *object = json_dumps(bias, 0);
        if (n == 1024) {
            assert_ok(params_set_json(&p, "banned_token_ids", list, &err), &err);
            assert_ok(params_set_json(&p, "logit_bias", object, &err), &err);
        } else {
            assert_err(params_set_json(&p, "banned_token_ids", list, &err), E_RANGE, "1025 ids, at most 1024", &err);
            assert_err(params_set_json(&p, "logit_bias", object, &err), E_RANGE, "1025 ids, at most 1024", &err);
        }
        free(list);
        free(object);
        json_decref(ids);
        json_decref(bias);
    }
    params_clear(&p);
}

/* Known by name: fine where the value changes nothing, else refused by name. */
static void keys_that_are_not_built_are_refused_by_name(void **state) {
    static const char *const harmless[][2] = {
        {"n", "1"},      {"n", "1.0"},          {"best_of", "1"},    {"length_penalty", "1"},
        {"tools", "[]"}, {"echo", "false"},     {"stream", "false"}, {"bad_words", "[]"},
        {"tool_choice", "\"none\""}, {"tool_choice", "\"auto\""},
        {"include_stop_str_in_output", "false"}, {"guided_choice", "null"}, {"truncate_prompt_tokens", "null"}, {"response_format", "{\"type\": \"text\"}"}};
    static const char *const refused[][3] = {
        {"n", "2", "n: 2 is not built yet; only 1 is"},
        {"n", "0", "n: 0 is not built yet; only 1 is"},
        {"n", "\"1\"", "n: \"1\" is not built yet"},
        {"best_of", "3", "best_of: 3 is not built yet"},
        {"bad_words", "[\"x\"]", "bad_words: [\"x\"] is not built yet"},
        {"tools", "[{}]", "tools: [{}] is not built yet"},
        {"tool_choice", "\"required\"", "tool_choice: \"required\" is not built yet; only \"none\" and \"auto\" are"},
        {"response_format", "{\"type\": \"json_object\"}", "response_format: {\"type\":\"json_object\"} is not built yet; only {\"type\": \"text\"} is"},
        {"guided_choice", "[\"a\", \"b\"]", "guided_choice: [\"a\",\"b\"] is not built yet"},
        {"guided_regex", "\"a+\"", "guided_regex: \"a+\" is not built yet"},
        {"guided_grammar", "\"g\"", "guided_grammar: \"g\" is not built yet"},
        {"structured_outputs", "{\"json\": {}}", "structured_outputs: {\"json\":{}} is not built yet"},
        {"include_stop_str_in_output", "true", "include_stop_str_in_output: true is not built yet"},
        {"truncate_prompt_tokens", "0", "truncate_prompt_tokens: 0 is not built yet"},
        {"stream", "true", "stream: true is not built yet; leave it out"},
    };
    struct err err = ERR_INIT;
    struct params p = {0};
    for (size_t i = 0; i < sizeof harmless / sizeof *harmless; i++) {
        assert_true(params_is_key(harmless[i][0]));
        assert_ok(params_set_json(&p, harmless[i][0], harmless[i][1], &err), &err);
    }
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++)
        assert_err(params_set_json(&p, refused[i][0], refused[i][1], &err), E_UNSUPPORTED, refused[i][2], &err);
    assert_int_equal(p.set, 0);
    assert_false(params_is_key("prompt"));
}

static void text_that_is_no_value(void **state) {
    struct err err = ERR_INIT;
    struct params p = {0};
    assert_err(params_set_text(&p, "temperature", "", &err), E_PARSE, "temperature: not a number", &err);
    assert_err(params_set_text(&p, "temperature", "NaN", &err), E_PARSE, "temperature: not a number", &err);
    assert_err(params_set_text(&p, "temperature", "1e999", &err), E_PARSE, "temperature: not a number", &err);
    assert_err(params_set_text(&p, "max_tokens", "0x10", &err), E_PARSE, "max_tokens: not a number", &err);
    assert_err(params_set_text(&p, "ignore_eos", "yes", &err), E_PARSE, "ignore_eos: neither true nor false", &err);
    assert_err(params_set_text(&p, "stop", "\xff", &err), E_PARSE, "stop: not UTF-8", &err);
    assert_err(params_set_text(&p, "n", "2", &err), E_UNSUPPORTED, "n: 2 is not built yet; only 1 is", &err);
    assert_int_equal(p.set, 0);
}

/* ---------------------------------------------------------------- JSON, layers */

/* max_completion_tokens is OpenAI's later name of max_tokens. */
static void one_limit_has_two_names(void **state) {
    struct err err = ERR_INIT;
    struct params p = {0}, q = {0};
    assert_ok(params_from_json(&p, "{\"max_completion_tokens\": 7}", &err), &err);
    assert_int_equal(p.set, PARAM_MAX_TOKENS);
    assert_int_equal(p.max_tokens, 7);
    char *text = params_to_json(&p);
    assert_string_equal(text, "{\"max_tokens\":7}");
    free(text);
    assert_ok(params_set_json(&p, "max_tokens", "7", &err), &err); /* both, and they agree */
    assert_ok(params_set_text(&p, "max_tokens", "8", &err), &err); /* a flag given again: the last one counts */
    assert_err(params_set_text(&p, "max_completion_tokens", "7", &err), E_PARSE, "max_completion_tokens: 7 here and 8 as max_tokens", &err);
    assert_int_equal(p.max_tokens, 8);
    assert_ok(params_set_json(&q, "max_completion_tokens", "5", &err), &err);
    assert_ok(params_set_json(&q, "max_tokens", "null", &err), &err);
    assert_err(params_set_json(&q, "max_tokens", "6", &err), E_PARSE, "max_tokens: 6 here and 5 as max_completion_tokens", &err);
    params_overlay(&p, &q); /* a row's own over the job's, by whichever name */
    assert_int_equal(p.max_tokens, 5);
}

static void json_goes_around(void **state) {
    static const char text[] =
        "{\"max_tokens\":5,\"min_tokens\":2,\"temperature\":0.30000000000000004,\"top_p\":0.9,\"top_k\":40,\"min_p\":0.05,"
        "\"seed\":9223372036854775807,\"stop\":[\"\\n\",\"\\u00e9\"],\"stop_token_ids\":[1,2],\"ignore_eos\":false,"
        "\"presence_penalty\":0.5,\"frequency_penalty\":-2.0,\"repetition_penalty\":1.1,\"logit_bias\":{\"5\":-1.5,\"3\":2.0},"
        "\"allowed_token_ids\":[9,1],\"banned_token_ids\":[],\"logprobs\":3,\"top_logprobs\":7,\"prompt_logprobs\":2}";
    struct err err = ERR_INIT;
    struct params p = {0}, q = {0};
    assert_ok(params_from_json(&p, text, &err), &err);
    char *once = params_to_json(&p);
    json_t *a = json_loads(text, 0, NULL), *b = json_loads(once, 0, NULL);
    assert_true(json_equal(a, b));
    assert_ok(params_from_json(&q, once, &err), &err);
    char *twice = params_to_json(&q);
    assert_string_equal(once, twice);
    assert_true(q.temperature == 0.1 + 0.2);
    json_decref(a);
    json_decref(b);
    free(once);
    free(twice);
    params_clear(&p);
    params_clear(&q);
}

static void nothing_set_is_an_empty_object(void **state) {
    struct params p = {0};
    char *text = params_to_json(&p);
    assert_string_equal(text, "{}");
    free(text);
}

static void an_object_is_taken_whole_or_not_at_all(void **state) {
    struct err err = ERR_INIT;
    struct params p = {0};
    assert_ok(params_from_json(&p, "{\"max_tokens\": 5, \"stop\": [\"a\"]}", &err), &err);
    assert_err(params_from_json(&p, "{\"max_tokens\": 6, \"stop\": [\"b\", \"c\"], \"top_p\": 3}", &err), E_RANGE, "top_p: 3", &err);
    assert_err(params_from_json(&p, "{\"max_tokens\": 6, \"nonsense\": 1}", &err), E_NOT_FOUND, "\"nonsense\"", &err);
    assert_err(params_from_json(&p, "[1]", &err), E_PARSE, "not a JSON object", &err);
    assert_err(params_from_json(&p, "{", &err), E_PARSE, "not a JSON object", &err);
    assert_int_equal(p.max_tokens, 5);
    assert_int_equal(p.n_stop, 1);
    assert_false(p.set & PARAM_TOP_P);
    params_clear(&p);
}

static void layers_lie_over_each_other(void **state) {
    struct err err = ERR_INIT;
    struct params p = {0}, over = {0};
    assert_ok(params_from_json(&p, "{\"max_tokens\": 5, \"temperature\": 1, \"stop\": [\"a\", \"b\"], \"ignore_eos\": true, \"stop_token_ids\": [4],"
                                   " \"logit_bias\": {\"1\": 1, \"2\": 2}, \"banned_token_ids\": [1]}", &err), &err);
    assert_ok(params_from_json(&over, "{\"temperature\": 0, \"stop\": [], \"ignore_eos\": false, \"seed\": 3, \"stop_token_ids\": [6, 7],"
                                      " \"logit_bias\": {\"9\": -4}, \"allowed_token_ids\": [3]}", &err), &err);
    params_overlay(&p, &over);
    params_overlay(&p, &over); /* copies: neither frees what is the other's */
    params_clear(&over);
    char *text = params_to_json(&p);
    assert_string_equal(text, "{\"max_tokens\":5,\"temperature\":0.0,\"seed\":3,\"stop\":[],\"stop_token_ids\":[6,7],\"ignore_eos\":false,"
                              "\"logit_bias\":{\"9\":-4.0},\"allowed_token_ids\":[3],\"banned_token_ids\":[1]}");
    free(text);
    params_clear(&p);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(every_key_takes_the_ends_of_its_range),
    cmocka_unit_test(values_arrive),
    cmocka_unit_test(penalties_and_lists_arrive),
    cmocka_unit_test(logprobs_come_in_two_forms),
    cmocka_unit_test(text_is_json_where_it_can_be),
    cmocka_unit_test(a_stop_text_is_taken_as_it_stands),
    cmocka_unit_test(null_sets_nothing),
    cmocka_unit_test(a_refused_value_is_named_and_changes_nothing),
    cmocka_unit_test(stops_have_a_ceiling),
    cmocka_unit_test(lists_of_ids_have_a_ceiling),
    cmocka_unit_test(keys_that_are_not_built_are_refused_by_name),
    cmocka_unit_test(text_that_is_no_value),
    cmocka_unit_test(one_limit_has_two_names),
    cmocka_unit_test(json_goes_around),
    cmocka_unit_test(nothing_set_is_an_empty_object),
    cmocka_unit_test(an_object_is_taken_whole_or_not_at_all),
    cmocka_unit_test(layers_lie_over_each_other),
};

UNIT_MAIN(tests)
