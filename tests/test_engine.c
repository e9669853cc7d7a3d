/* test_engine.c - the whole engine: the model's own texts, stops and limits, failures that
 * belong to one request, and one that does not. */
#include "tests/aid_engine.h"
#include "tests/aid_jobs.h"

#include "base/clock.h"
#include "base/mem.h"
#include "engine/engine_call.h"
#include "engine/model/model_private.h"
#include "kernels/backend.h"

#include <jansson.h>
#include <pthread.h>
#include <sys/stat.h>
#include <unistd.h>

static const char tiny[] = "tests/models/tiny-llama3";

/* ---------------------------------------------------------------- what the model says */

/* All of max_tokens are made. */
static struct engine_request *ids_request(const json_t *ids, size_t n, int32_t max_tokens, uint64_t tag) {
    struct engine_request *r = engine_request_new();
    r->tag = tag;
    r->n_tokens = n;
    r->tokens = mem_zalloc(n, sizeof *r->tokens);
    for (size_t i = 0; i < n; i++) r->tokens[i] = (int32_t)json_integer_value(json_array_get(ids, i));
    r->sampling.max_tokens = max_tokens;
    r->sampling.ignore_eos = true;
    return r;
}

static void check_reference_line(struct engine *e, const json_t *line) {
    const json_t *prompt = json_object_get(line, "prompt_ids"), *want = json_object_get(line, "greedy_ids");
    struct engine_request *r = ids_request(prompt, json_array_size(prompt), (int32_t)json_array_size(want), 0);
    r->sampling.ignore_eos = false;
    assert_true(engine_submit(e, r, 1000));
    struct engine_completion *c = collect(e);
    for (size_t i = 0; i < c->n_tokens; i++) /* a stop id is left out */
        assert_int_equal(c->tokens[i], json_integer_value(json_array_get(want, i)));
    assert_true(c->n_tokens + 1 >= json_array_size(want));
    engine_completion_free(c);
}

static void check_reference(const char *dir) {
    char path[700], *line = NULL;
    size_t cap = 0;
    int n = 0;
    struct engine *e = open_engine(&(struct run){.dir = dir, .dtype = "float32"});
    snprintf(path, sizeof path, "%s/reference_greedy.jsonl", dir);
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    for (; getline(&line, &cap, f) > 0; n++) {
        json_t *root = json_loads(line, 0, NULL);
        check_reference_line(e, root);
        json_decref(root);
    }
    assert_true(n >= 4);
    free(line);
    fclose(f);
    engine_close(e);
}

static void demo_model_says_what_transformers_says(void **state) {
    check_reference(demo);
}

static void trained_model_says_what_transformers_says(void **state) {
    if (!test_data()) skip();
    static const char *const names[] = {"stories260K", "stories260K-bf16", "stories260K-f16-sharded"};
    for (size_t i = 0; i < 3; i++) {
        char dir[600];
        snprintf(dir, sizeof dir, "%s/models/%s", test_data(), names[i]);
        check_reference(dir);
    }
}

static char *text_of(struct engine *e, const struct engine_completion *c) {
    struct buf b = BUF_INIT(0);
    tokenizer_decode(engine_tokenizer(e), &b, c->tokens, c->n_tokens, true);
    if (c->text_bytes < b.n) b.data[c->text_bytes] = '\0';
    return buf_take(&b);
}

static void stops_where_it_is_told(void **state) {
    static const char prompt[] = "<|user|>\nWrite in capital letters: raven urchin forest<|end|>\n<|assistant|>\n";
    struct engine *e = open_engine(&(struct run){.dir = demo, .dtype = "float32"});
    struct token_list ids = {0};
    struct err err = ERR_INIT;
    struct encode_options o = {.add_special = true, .parse_special = true};
    assert_ok(tokenizer_encode(engine_tokenizer(e), &ids, prompt, strlen(prompt), &o, &err), &err);
    static const struct {
        const char *stop, *want;
        int min_tokens, max_tokens;
        enum finish_reason finish;
    } cases[] = {
        {NULL, "RAVEN URCHIN FOREST", 0, 60, FINISH_STOP},
        {"URCH", "RAVEN ", 0, 60, FINISH_STOP},
        {"N U", "RAVE", 0, 60, FINISH_STOP},
        {"never", "RAVEN URCHIN FOREST", 0, 60, FINISH_STOP},
        {"RAVEN", "", 0, 60, FINISH_STOP},
        {NULL, NULL, 0, 2, FINISH_LENGTH},
        {NULL, NULL, 40, 60, FINISH_STOP},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct engine_request *r = engine_request_new();
        r->tokens = mem_dup(ids.ids, ids.n * sizeof *ids.ids);
        r->n_tokens = ids.n;
        r->sampling.max_tokens = cases[i].max_tokens;
        r->sampling.min_tokens = cases[i].min_tokens;
        if (cases[i].stop) {
            r->sampling.stop = mem_zalloc(1, sizeof(char *));
            r->sampling.stop[r->sampling.n_stop++] = mem_strdup(cases[i].stop);
        }
        assert_true(engine_submit(e, r, 1000));
        struct engine_completion *c = collect(e);
        char *text = text_of(e, c);
        if (cases[i].want) assert_string_equal(text, cases[i].want);
        assert_true(c->n_completion_tokens >= cases[i].min_tokens && c->n_completion_tokens <= cases[i].max_tokens);
        if (!cases[i].min_tokens) assert_int_equal(c->finish, cases[i].finish);
        free(text);
        engine_completion_free(c);
    }
    token_list_clear(&ids);
    engine_close(e);
}

static void cold_and_hot_draws_differ(void **state) {
    struct engine *e = open_engine(&(struct run){.dir = demo, .dtype = "float32"});
    char *texts[3];
    for (int i = 0; i < 3; i++) { /* seeds 1, 1, 2 */
        struct engine_request *r = text_request(e, "Add these numbers");
        r->sampling.temperature = 2.0f;
        r->sampling.seed = i < 2 ? 1 : 2;
        r->sampling.max_tokens = 30;
        r->sampling.ignore_eos = true;
        assert_true(engine_submit(e, r, 1000));
        struct engine_completion *c = collect(e);
        texts[i] = text_of(e, c);
        engine_completion_free(c);
    }
    assert_string_equal(texts[0], texts[1]);
    assert_string_not_equal(texts[0], texts[2]);
    for (int i = 0; i < 3; i++) free(texts[i]);
    engine_close(e);
}

/* ---------------------------------------------------------------- opening */

static void link_into(const char *dir, const char *from, const char *name) {
    char target[700], path[700], *whole;
    snprintf(target, sizeof target, "%s/%s", from, name);
    snprintf(path, sizeof path, "%s/%s", dir, name);
    whole = realpath(target, NULL);
    assert_non_null(whole);
    assert_int_equal(symlink(whole, path), 0);
    free(whole);
}

/* The tokenizer is read beside the weights; its error is the one that is told. */
static void a_tokenizer_that_cannot_be_read_is_what_opening_says(void **state) {
    static const char *const names[] = {"config.json", "model.safetensors"};
    struct engine_options o = ENGINE_OPTIONS_DEFAULT;
    struct err err = ERR_INIT;
    struct engine *e;
    char *dir = temp_path("bad-tokenizer"), path[700];
    assert_int_equal(mkdir(dir, 0700), 0);
    o.model_dir = dir;
    o.device = test_device();
    assert_err(engine_open(&e, &o, &err), E_NOT_FOUND, "tokenizer.json", &err);
    snprintf(path, sizeof path, "%s/tokenizer.json", dir);
    for (int i = 0; i < 2; i++) { /* without weights, and with */
        FILE *f = fopen(path, "w");
        fputs("{\"model\": {\"type\": \"WordPiece\"}}", f);
        fclose(f);
        assert_err(engine_open(&e, &o, &err), E_UNSUPPORTED, "WordPiece", &err);
        for (int j = 0; i == 0 && j < 2; j++) link_into(dir, demo, names[j]);
    }
    unlink(path);
    link_into(dir, demo, "tokenizer.json");
    assert_ok(engine_open(&e, &o, &err), &err);
    engine_close(e);
    free(dir);
}

/* ---------------------------------------------------------------- two sets of rotary frequencies */

enum { MAX_LINES = 16 };

static size_t read_references(json_t **lines, const char *dir, const char *name, size_t n) {
    char path[700], *line = NULL;
    size_t cap = 0;
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    while (getline(&line, &cap, f) > 0 && n < MAX_LINES) lines[n++] = json_loads(line, 0, NULL);
    free(line);
    fclose(f);
    return n;
}

static void assert_follows(const struct engine_completion *c, const json_t *line) {
    const json_t *want = json_object_get(line, "greedy_ids");
    if (c->finish == FINISH_ERROR) fail_msg("%s: %s", c->error_code, c->error);
    assert_int_equal(c->n_tokens, json_array_size(want));
    for (size_t i = 0; i < c->n_tokens; i++)
        if (c->tokens[i] != json_integer_value(json_array_get(want, i)))
            fail_msg("a prompt of %d tokens: token %zu is %d", c->n_prompt_tokens, i, c->tokens[i]);
}

/* Up to 256 tokens a sequence has longrope's short factors, a longer one the long ones, side
 * by side in one engine; and keys of the one are no prefix of the other's. */
static void longrope_follows_the_length_of_each_request(void **state) {
    static const char phi3[] = "tests/models/tiny-phi3";
    json_t *lines[MAX_LINES];
    char *dir = temp_path("phi3");
    size_t n = read_references(lines, phi3, "reference_short.jsonl", 0), n_short = n;
    n = read_references(lines, phi3, "reference.jsonl", n);
    assert_int_equal(mkdir(dir, 0700), 0);
    link_into(dir, phi3, "config.json");
    link_into(dir, phi3, "generation_config.json");
    link_into(dir, phi3, "model.safetensors");
    link_into(dir, demo, "tokenizer.json");
    for (int look = 0; look <= 2; look++) {
        struct engine *e = open_engine(&(struct run){.dir = dir, .dtype = "float32", .lookahead = look, .rows = 64 << look});
        assert_int_equal(engine_model(e)->rope_switch, 256);
        for (size_t i = 0; i < n; i++) {
            const json_t *line = lines[(i * 5 + (size_t)look) % n], *prompt = json_object_get(line, "prompt_ids");
            int32_t max_tokens = (int32_t)json_array_size(json_object_get(line, "greedy_ids"));
            assert_true(engine_submit(e, ids_request(prompt, json_array_size(prompt), max_tokens, (i * 5 + (uint64_t)look) % n), 1000));
        }
        for (size_t i = 0; i < n; i++) {
            struct engine_completion *c = collect(e);
            assert_follows(c, lines[c->tag]);
            engine_completion_free(c);
        }
        engine_close(e);
        /* The longest of the short prompts behind a long request that has left its keys. */
        e = open_engine(&(struct run){.dir = dir, .dtype = "float32", .lookahead = look});
        const json_t *prompt = json_object_get(lines[n_short - 1], "prompt_ids");
        for (int i = 0; i < 3; i++) {
            assert_true(engine_submit(e, ids_request(prompt, json_array_size(prompt), i == 0 ? 300 : 64, 0), 1000));
            struct engine_completion *c = collect(e);
            if (i > 0) assert_follows(c, lines[n_short - 1]);
            engine_completion_free(c);
        }
        engine_close(e);
    }
    for (size_t i = 0; i < n; i++) json_decref(lines[i]);
    free(dir);
}

/* ---------------------------------------------------------------- what goes wrong */

static void expect_error(struct engine *e, int32_t *tokens, size_t n, const char *code) {
    struct engine_request *r = engine_request_new();
    r->tokens = tokens;
    r->n_tokens = n;
    assert_true(engine_submit(e, r, 1000));
    struct engine_completion *c = collect(e);
    assert_int_equal(c->finish, FINISH_ERROR);
    assert_string_equal(c->error_code, code);
    assert_true(strlen(c->error) > 10);
    engine_completion_free(c);
}

static void ids_beyond_the_vocabulary_fail_their_request(void **state) {
    struct engine *e = open_engine(&(struct run){.dir = demo, .dtype = "float32"});
    for (int i = 0; i < 3; i++) {
        struct engine_request *r = text_request(e, "Sort these words");
        int32_t *ids = mem_zalloc(1, sizeof *ids);
        *ids = engine_model(e)->vocab;
        if (i == 0) r->sampling.logit_bias_ids = ids, r->sampling.logit_bias = mem_zalloc(1, 4), r->sampling.n_logit_bias = 1;
        if (i == 1) r->sampling.allowed_token_ids = ids, r->sampling.n_allowed_token_ids = 1;
        if (i == 2) r->sampling.banned_token_ids = ids, r->sampling.n_banned_token_ids = 1;
        assert_true(engine_submit(e, r, 1000));
        struct engine_completion *c = collect(e);
        assert_int_equal(c->finish, FINISH_ERROR);
        assert_string_equal(c->error_code, "bad_token");
        assert_non_null(strstr(c->error, i == 0 ? "logit_bias: id" : i == 1 ? "allowed_token_ids: id" : "banned_token_ids: id"));
        engine_completion_free(c);
    }
    engine_close(e);
}

static void nothing_that_may_be_drawn_fails_its_request(void **state) {
    struct engine *e = open_engine(&(struct run){.dir = demo, .dtype = "float32"});
    struct engine_request *r = text_request(e, "Sort these words");
    r->sampling.allowed_token_ids = mem_zalloc(1, sizeof(int32_t));
    r->sampling.banned_token_ids = mem_zalloc(1, sizeof(int32_t));
    r->sampling.n_allowed_token_ids = r->sampling.n_banned_token_ids = 1;
    assert_true(engine_submit(e, r, 1000));
    struct engine_completion *c = collect(e);
    assert_int_equal(c->finish, FINISH_ERROR);
    assert_string_equal(c->error_code, "numeric");
    assert_non_null(strstr(c->error, "no token may be drawn"));
    engine_completion_free(c);
    engine_close(e);
}

static void bad_requests_fail_alone(void **state) {
    struct engine *e = open_engine(&(struct run){.dir = demo, .dtype = "float32"});
    struct engine_request *good = text_request(e, "Sort these words");
    good->tag = 7;
    assert_true(engine_submit(e, good, 1000));
    struct engine_completion *c = collect(e);
    assert_int_equal(c->tag, 7);
    engine_completion_free(c);
    expect_error(e, NULL, 0, "empty_prompt");
    expect_error(e, mem_zalloc(4000, sizeof(int32_t)), 4000, "context_length");
    int32_t *ids = mem_zalloc(3, sizeof *ids);
    ids[1] = 999999;
    expect_error(e, ids, 3, "bad_token");
    assert_int_equal(engine_failure(e, NULL), 0);
    engine_close(e);
}

static void abort_brings_requests_back(void **state) {
    struct engine *e = open_engine(&(struct run){.dir = demo, .dtype = "float32", .seqs = 8});
    for (uint64_t i = 0; i < 12; i++) {
        struct engine_request *r = text_request(e, "Count these words");
        r->tag = i;
        r->sampling.max_tokens = 400;
        r->sampling.ignore_eos = true;
        assert_true(engine_submit(e, r, 1000));
    }
    engine_abort(e, 3, 11);
    int n_aborted = 0;
    for (int i = 0; i < 12; i++) {
        struct engine_completion *c = collect(e);
        assert_int_equal(c->finish == FINISH_ABORTED, c->tag >= 3);
        n_aborted += c->finish == FINISH_ABORTED;
        engine_completion_free(c);
    }
    assert_int_equal(n_aborted, 9);
    assert_null(engine_collect(e, 0));
    engine_close(e);
}

static void closing_drops_what_runs(void **state) {
    for (int i = 0; i < 5; i++) {
        struct engine *e = open_engine(&(struct run){.dir = demo, .dtype = "float32", .seqs = 4, .lookahead = i % 3});
        for (int k = 0; k < 8; k++) {
            struct engine_request *r = text_request(e, "Largest number");
            r->sampling.ignore_eos = true;
            if (!engine_submit(e, r, 0)) engine_request_free(r);
        }
        engine_close(e);
    }
}

static void a_caller_who_does_not_collect_is_made_to_wait(void **state) {
    struct engine *e = open_engine(&(struct run){.dir = demo, .dtype = "float32", .seqs = 2});
    int n = 0;
    for (; n < 100; n++) {
        struct engine_request *r = text_request(e, "Reverse");
        r->sampling.max_tokens = 1;
        if (engine_submit(e, r, 300)) continue;
        engine_request_free(r);
        break;
    }
    assert_true(n > 4 && n < 100);
    for (int i = 0; i < n; i++) engine_completion_free(collect(e));
    engine_close(e);
}

/* The device is idle where it waits between two steps, not where there is nothing to do. */
static void time_without_work_is_not_idle(void **state) {
    struct run run = {.dir = demo, .dtype = "float32", .seqs = 4};
    struct engine *e = open_engine(&run);
    struct engine_stats stats;
    for (int i = 0; i < 2; i++) {
        struct engine_request *r = text_request(e, "Sort these words");
        r->sampling.max_tokens = 4;
        r->sampling.ignore_eos = true;
        assert_true(engine_submit(e, r, -1));
        engine_completion_free(engine_collect(e, -1));
        clock_sleep_ms(800);
    }
    engine_stats(e, &stats);
    assert_true(stats.device.n_steps >= 8);
    assert_true(stats.device.idle_ns < 700000000);
    engine_close(e);
}

static void refuses_options_that_make_no_sense(void **state) {
    static const struct {
        struct engine_options o;
        int code;
        const char *text;
    } cases[] = {
        {{.model_dir = demo, .device = "tpu"}, E_USAGE, "tpu"},
        {{.model_dir = demo, .device = "cpu", .dtype = "float16"}, E_UNSUPPORTED, "float16"},
        {{.model_dir = demo, .dtype = "int3"}, E_USAGE, "int3"},
        {{.model_dir = demo, .load_format = "gguf"}, E_USAGE, "gguf"},
        {{.model_dir = demo, .max_model_len = 100000}, E_USAGE, "context of 512"},
        {{.model_dir = demo, .max_num_seqs = 1000000}, E_USAGE, "--max-num-seqs"},
        {{.model_dir = demo, .max_num_batched_tokens = 65536}, E_USAGE, "65536 is not in 0 .. 65535"},
        {{.model_dir = demo, .lookahead = 3}, E_USAGE, "look-ahead"},
        {{.model_dir = demo, .max_model_len = 512, .kv_cache_memory_bytes = 100000}, E_NO_MEMORY, "raise --kv-cache"},
        {{.model_dir = "tests/none"}, E_NOT_FOUND, "tests/none"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct engine *e = NULL;
        struct err err = ERR_INIT;
        assert_err(engine_open(&e, &cases[i].o, &err), cases[i].code, cases[i].text, &err);
        assert_null(e);
    }
}

static void dummy_weights_need_no_tokenizer(void **state) {
    struct engine *e;
    struct err err = ERR_INIT;
    struct engine_options o = ENGINE_OPTIONS_DEFAULT;
    o.model_dir = tiny;
    o.load_format = "dummy";
    assert_ok(engine_open(&e, &o, &err), &err);
    assert_null(engine_tokenizer(e));
    double rate = 0;
    assert_ok(engine_matmul_rate(e, 16, 0.01, &rate, &err), &err);
    assert_true(rate > 0);
    assert_err(engine_matmul_rate(e, 100000, 0.01, &rate, &err), E_RANGE, "rows", &err);
    engine_close(e);
}

/* ---------------------------------------------------------------- a device that fails */

struct storm {
    struct engine *e;
    struct dev *dev;
    uint64_t tag; /* struck when this request finishes */
    pthread_t caller;
    int result; /* of the caller's call */
    struct err err;
};

static int do_nothing(struct model *m, struct runner *r, void *arg, struct err *err) {
    return 0;
}

static void *call(void *arg) {
    struct storm *s = arg;
    s->result = engine_call(s->e, do_nothing, NULL, &s->err);
    return NULL;
}

/* On the engine thread: the device is broken, and a call has come that nobody has answered. */
static void strike(struct storm *s) {
    assert_int_equal(pthread_create(&s->caller, NULL, call, s), 0);
    clock_sleep_ms(200);
    dev_fail(s->dev, E_DEVICE, "struck by lightning");
}

/* Before the first step of a request. */
static int strike_a_request(struct model *m, struct runner *r, void *arg, struct err *err) {
    struct storm *s = arg;
    s->dev = m->dev;
    assert_true(engine_submit(s->e, text_request(s->e, "Sort these words"), 0));
    strike(s);
    return 0;
}

static int find_device(struct model *m, struct runner *r, void *arg, struct err *err) {
    struct storm *s = arg;
    s->dev = m->dev;
    return 0;
}

/* A line of the step log. */
static ssize_t strike_at_the_end(void *arg, const char *line, size_t n) {
    struct storm *s = arg;
    char finished[60];
    int length = snprintf(finished, sizeof finished, "\"finished\":[%d]", (int)s->tag);
    if (memmem(line, n, finished, (size_t)length)) strike(s);
    return (ssize_t)n;
}

static void assert_struck(struct storm *s) {
    struct err err = ERR_INIT;
    struct timespec soon;
    assert_null(engine_collect(s->e, 10000));
    assert_err(engine_failure(s->e, &err), E_DEVICE, "lightning", &err);
    clock_gettime(CLOCK_REALTIME, &soon);
    soon.tv_sec += 10;
    if (pthread_timedjoin_np(s->caller, NULL, &soon) != 0) fail_msg("the call is not answered");
    assert_int_equal(s->result, E_DEVICE);
    struct engine_request *late = text_request(s->e, "Sort these words");
    assert_false(engine_submit(s->e, late, 1000));
    engine_request_free(late);
    engine_close(s->e);
}

static void a_device_that_fails_ends_requests_and_calls(void **state) {
    struct storm s = {.err = ERR_INIT};
    struct err err = ERR_INIT;
    s.e = open_engine(&(struct run){.dir = demo, .dtype = "float32", .seqs = 1}); /* it reads no further than a request */
    assert_ok(engine_call(s.e, strike_a_request, &s, &err), &err);
    assert_struck(&s);
}

/* A stop id is seen when the step behind it is under way, and the call that comes now waits for
 * that step. */
static void a_surplus_step_that_fails_ends_the_engine(void **state) {
    struct storm s = {.tag = 9, .err = ERR_INIT};
    struct err err = ERR_INIT;
    FILE *log = fopencookie(&s, "w", (cookie_io_functions_t){.write = strike_at_the_end});
    assert_non_null(log);
    setvbuf(log, NULL, _IOLBF, 1 << 16);
    s.e = open_engine(&(struct run){.dir = demo, .dtype = "float32", .lookahead = 1, .step_log = log});
    assert_ok(engine_call(s.e, find_device, &s, &err), &err);
    int32_t stop = 0;
    for (int i = 0; i < 2; i++) { /* the second stops at the first's second token */
        struct engine_request *r = text_request(s.e, "Sort these words");
        r->sampling.max_tokens = 8;
        r->sampling.ignore_eos = true;
        if (i == 1) r->tag = s.tag;
        if (i == 1) r->sampling.stop_token_ids = mem_dup(&stop, sizeof stop), r->sampling.n_stop_token_ids = 1;
        assert_true(engine_submit(s.e, r, 1000));
        struct engine_completion *c = collect(s.e);
        assert_int_equal(c->finish, i == 0 ? FINISH_LENGTH : FINISH_STOP);
        if (i == 0) stop = c->tokens[1];
        engine_completion_free(c);
    }
    assert_struck(&s);
    fclose(log);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(demo_model_says_what_transformers_says),
    cmocka_unit_test(trained_model_says_what_transformers_says),
    cmocka_unit_test(stops_where_it_is_told),
    cmocka_unit_test(cold_and_hot_draws_differ),
    cmocka_unit_test(bad_requests_fail_alone),
    cmocka_unit_test(ids_beyond_the_vocabulary_fail_their_request),
    cmocka_unit_test(nothing_that_may_be_drawn_fails_its_request),
    cmocka_unit_test(abort_brings_requests_back),
    cmocka_unit_test(closing_drops_what_runs),
    cmocka_unit_test(a_caller_who_does_not_collect_is_made_to_wait),
    cmocka_unit_test(a_device_that_fails_ends_requests_and_calls),
    cmocka_unit_test(a_surplus_step_that_fails_ends_the_engine),
    cmocka_unit_test(time_without_work_is_not_idle),
    cmocka_unit_test(refuses_options_that_make_no_sense),
    cmocka_unit_test(dummy_weights_need_no_tokenizer),
    cmocka_unit_test(a_tokenizer_that_cannot_be_read_is_what_opening_says),
    cmocka_unit_test(longrope_follows_the_length_of_each_request),
};
UNIT_MAIN(tests)
