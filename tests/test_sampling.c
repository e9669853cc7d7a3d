/* test_sampling.c - sampling parameters through the whole engine: the demo model's greedy
 * texts under penalties, bias and bans are those that transformers generates, and so are
 * their logprobs (tests/data/sampling/make_generated.py), whatever else runs and however
 * often it is preempted. */
#include "tests/unit.h"

#include "base/mem.h"
#include "engine/engine.h"

#include <jansson.h>
#include <math.h>

static const char demo[] = "tests/models/demo";

enum { MAX_LINES = 20 };

static struct lines {
    json_t *at[MAX_LINES];
    int n;
} lines;

static int read_lines(void **state) {
    char *line = NULL;
    size_t cap = 0;
    FILE *f = fopen("tests/data/sampling/generated.jsonl", "r");
    while (f && getline(&line, &cap, f) > 0 && lines.n < MAX_LINES) lines.at[lines.n++] = json_loads(line, 0, NULL);
    free(line);
    return f ? fclose(f) : -1;
}

static int free_lines(void **state) {
    for (int i = 0; i < lines.n; i++) json_decref(lines.at[i]);
    return 0;
}

/* ---------------------------------------------------------------- requests */

static int32_t *ids_of(const json_t *list, size_t *n) {
    *n = json_array_size(list);
    int32_t *ids = *n ? mem_zalloc(*n, sizeof *ids) : NULL;
    for (size_t i = 0; i < *n; i++) ids[i] = (int32_t)json_integer_value(json_array_get(list, i));
    return ids;
}

static void set_bias(struct sampling *s, json_t *bias) {
    const char *key;
    json_t *v;
    s->logit_bias_ids = mem_zalloc(json_object_size(bias), sizeof(int32_t));
    s->logit_bias = mem_zalloc(json_object_size(bias), sizeof(float));
    json_object_foreach(bias, key, v) {
        s->logit_bias_ids[s->n_logit_bias] = atoi(key);
        s->logit_bias[s->n_logit_bias++] = (float)json_number_value(v);
    }
}

static float number(const json_t *params, const char *key, float otherwise) {
    const json_t *v = json_object_get(params, key);
    return v ? (float)json_number_value(v) : otherwise;
}

static struct engine_request *request_of(int i) {
    const json_t *line = lines.at[i], *params = json_object_get(line, "params");
    struct engine_request *r = engine_request_new();
    struct sampling *s = &r->sampling;
    r->tag = (uint64_t)i;
    r->tokens = ids_of(json_object_get(line, "prompt_ids"), &r->n_tokens);
    s->max_tokens = (int32_t)json_array_size(json_object_get(line, "ids"));
    s->ignore_eos = true;
    s->logprobs = (i + 2) % 4; /* the fixture has the 3 highest */
    s->prompt_logprobs = i % 3 == 0 ? -1 : (i + 1) % 4;
    s->repetition_penalty = number(params, "repetition_penalty", 1);
    s->presence_penalty = number(params, "presence_penalty", 0);
    s->frequency_penalty = number(params, "frequency_penalty", 0);
    s->banned_token_ids = ids_of(json_object_get(params, "banned_token_ids"), &s->n_banned_token_ids);
    if (json_object_get(params, "logit_bias")) set_bias(s, json_object_get(params, "logit_bias"));
    return r;
}

static void assert_logprob(double got, const json_t *want) {
    if (fabs(got - json_number_value(want)) > 1e-3) fail_msg("logprob %g, not %g", got, json_number_value(want));
}

static double number_at(const json_t *pair, int i) {
    return json_number_value(json_array_get(pair, (size_t)i));
}

/* The k-th of the highest; alternatives that nearly tie may change places. */
static void check_top(const struct logprobs *l, int32_t i, int32_t k, const json_t *tops) {
    const json_t *want = json_array_get(tops, (size_t)k);
    int32_t at = i * l->n_top + k;
    assert_logprob((double)l->top[at], json_array_get(want, 1));
    if (l->top_ids[at] == (int32_t)number_at(want, 0)) return;
    double above = k > 0 ? (double)(l->top[at - 1] - l->top[at]) : 1;
    double below = k + 1 < l->n_top ? (double)(l->top[at] - l->top[at + 1]) : 0;
    assert_true(above < 1e-3 || below < 1e-3);
}

/* Against lists of numbers and of [id, number] pairs. */
static void check_logprobs(const struct logprobs *l, const json_t *of_tokens, const json_t *tops) {
    assert_int_equal(l->n, json_array_size(of_tokens));
    for (int32_t i = 0; i < l->n; i++) {
        assert_logprob((double)l->token[i], json_array_get(of_tokens, (size_t)i));
        for (int32_t k = 0; k < l->n_top; k++) check_top(l, i, k, json_array_get(tops, (size_t)i));
        assert_true(l->rank[i] >= 1);
        if (l->rank[i] <= l->n_top) assert_true(l->top[i * l->n_top + l->rank[i] - 1] == l->token[i]);
        else if (l->n_top > 0) assert_true(l->token[i] < l->top[(i + 1) * l->n_top - 1]);
    }
}

static void check_completion(const struct engine_completion *c) {
    const json_t *want = json_object_get(lines.at[c->tag], "ids");
    assert_int_equal(c->finish, FINISH_LENGTH);
    assert_int_equal(c->n_tokens, json_array_size(want));
    for (size_t k = 0; k < c->n_tokens; k++)
        if (c->tokens[k] != json_integer_value(json_array_get(want, k)))
            fail_msg("line %d: token %zu is %d, not %d", (int)c->tag, k, c->tokens[k],
                     (int)json_integer_value(json_array_get(want, k)));
    const json_t *line = lines.at[c->tag];
    check_logprobs(&c->logprobs, json_object_get(line, "logprobs"), json_object_get(line, "top"));
    if (c->tag % 3 == 0) assert_int_equal(c->prompt_logprobs.n, 0);
    else check_logprobs(&c->prompt_logprobs, json_object_get(line, "prompt_logprobs"), json_object_get(line, "prompt_top"));
}

/* ---------------------------------------------------------------- cases */

static int64_t bytes_of_blocks(int64_t n) {
    struct model_info m;
    struct err err = ERR_INIT;
    assert_ok(model_describe(&m, demo, &err), &err);
    return n * 32 * m.n_layers * 2 * m.n_kv_heads * m.head_dim * 4;
}

/* All lines, `rounds` times over; how often one of them was preempted. */
static int64_t run_lines(const struct engine_options *options, int rounds) {
    struct engine *e;
    struct err err = ERR_INIT;
    int64_t preemptions = 0;
    assert_ok(engine_open(&e, options, &err), &err);
    for (int round = 0; round < rounds; round++) {
        for (int i = 0; i < lines.n; i++) assert_true(engine_submit(e, request_of(i), 10000));
        for (int i = 0; i < lines.n; i++) {
            struct engine_completion *c = engine_collect(e, 120000);
            assert_non_null(c);
            check_completion(c);
            preemptions += c->preemptions;
            engine_completion_free(c);
        }
    }
    engine_close(e);
    return preemptions;
}

static struct engine_options options_of(int lookahead, int rows) {
    struct engine_options o = ENGINE_OPTIONS_DEFAULT;
    o.model_dir = demo;
    o.device = test_device();
    o.dtype = "float32";
    o.lookahead = lookahead;
    o.max_num_batched_tokens = rows;
    return o;
}

static void texts_are_those_of_transformers(void **state) {
    assert_true(lines.n >= 8);
    for (int lookahead = 0; lookahead <= 2; lookahead++) {
        struct engine_options o = options_of(lookahead, lookahead == 1 ? 16 : 256);
        run_lines(&o, 2); /* the second time behind a cached prefix */
    }
}

static void preemption_forgets_no_token(void **state) {
    for (int lookahead = 0; lookahead <= 2; lookahead++) {
        struct engine_options o = options_of(lookahead, 64);
        o.max_model_len = 160;
        o.kv_cache_memory_bytes = bytes_of_blocks(7);
        assert_true(run_lines(&o, 1) > 0);
    }
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(texts_are_those_of_transformers),
        cmocka_unit_test(preemption_forgets_no_token),
    };
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, read_lines, free_lines);
}
