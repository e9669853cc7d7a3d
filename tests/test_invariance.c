/* test_invariance.c - the same tokens whatever shares the batch: every order of many requests,
 * steps large and small, threads, look-ahead, preemption, tiny pools; and that steps mix
 * prefill and decode. */
#include "tests/aid_engine.h"
#include "tests/aid_jobs.h"

#include "base/hash.h"
#include "base/mem.h"
#include "engine/sample/logprobs.h"

#include <jansson.h>
#include <sys/stat.h>

enum { N = 500, MAX_PROMPT = 90, MAX_NEW = 150 };

static int count; /* requests of a run: N, fewer on the CPU and where it has to be quick */

static uint32_t next_random(uint32_t *state) {
    *state = *state * 1664525u + 1013904223u;
    return *state >> 8;
}

/* ---------------------------------------------------------------- many requests */

struct outcome {
    enum finish_reason finish;
    int32_t *tokens;
    size_t n_tokens;
    struct logprobs logprobs, prompt_logprobs;
    int32_t preemptions, order; /* how many finished before it */
    int64_t scheduled_ns, last_token_ns;
};

struct outcomes {
    struct outcome at[N];
    int64_t preemptions, steps, cached;
};

static void outcomes_clear(struct outcomes *o) {
    for (int i = 0; i < count; i++) {
        free(o->at[i].tokens);
        logprobs_clear(&o->at[i].logprobs);
        logprobs_clear(&o->at[i].prompt_logprobs);
    }
    *o = (struct outcomes){0};
}

/* Request i of the set: random ids, a third of them behind a prefix that others share;
 * odd ones are drawn at temperature 0.8, some with penalties, bias or bans. */
static struct engine_request *make_request(int i, int32_t vocab) {
    struct engine_request *r = engine_request_new();
    uint32_t state = (uint32_t)i * 2654435761u + 17, shared = 99;
    r->tag = (uint64_t)i;
    r->n_tokens = 2 + next_random(&state) % (MAX_PROMPT - 2);
    r->tokens = mem_zalloc(r->n_tokens, sizeof *r->tokens);
    for (size_t k = 0; k < r->n_tokens; k++) {
        bool common = i % 3 == 0 && k < 64;
        r->tokens[k] = (int32_t)(3 + next_random(common ? &shared : &state) % (uint32_t)(vocab - 3));
    }
    struct sampling *s = &r->sampling;
    s->max_tokens = (int32_t)(1 + next_random(&state) % MAX_NEW);
    s->seed = (uint64_t)i * 77;
    s->ignore_eos = i % 5 != 0;
    if (i % 2) s->temperature = 0.8f;
    if (i % 4 == 3) s->top_p = 0.9f;
    if (i % 8 == 5) s->top_k = 20;
    if (i % 8 == 1) s->min_p = 0.02f;
    if (i % 6 == 2) s->repetition_penalty = 1.3f;
    if (i % 7 == 4) s->presence_penalty = 0.8f, s->frequency_penalty = 0.3f;
    if (i % 9 < 3) s->logprobs = i % 9 * 3;
    if (i % 13 == 6) s->prompt_logprobs = i % 4;
    if (i % 10 == 8) {
        s->n_logit_bias = s->n_banned_token_ids = 3;
        s->logit_bias_ids = mem_zalloc(3, sizeof(int32_t));
        s->logit_bias = mem_zalloc(3, sizeof(float));
        s->banned_token_ids = mem_zalloc(3, sizeof(int32_t));
        for (int k = 0; k < 3; k++) {
            s->logit_bias_ids[k] = 3 + (i * 5 + k * 7) % (vocab - 3);
            s->logit_bias[k] = 2.5f;
            s->banned_token_ids[k] = 3 + (i + k * 11) % (vocab - 3);
        }
    }
    return r;
}

static void take(struct engine *e, struct outcomes *out, int order) {
    struct engine_completion *c = collect(e);
    assert_true(c->tag < (uint64_t)count);
    struct outcome *o = &out->at[c->tag];
    assert_null(o->tokens);
    if (c->finish == FINISH_ERROR) fail_msg("request %d: %s: %s", (int)c->tag, c->error_code, c->error);
    assert_int_equal(c->text_bytes, SIZE_MAX);
    assert_true(c->scheduled_ns > 0 && c->first_token_ns >= c->scheduled_ns && c->last_token_ns >= c->first_token_ns);
    *o = (struct outcome){c->finish,      c->tokens, c->n_tokens,     c->logprobs,     c->prompt_logprobs,
                          c->preemptions, order,     c->scheduled_ns, c->last_token_ns};
    out->preemptions += c->preemptions;
    c->tokens = NULL;
    c->logprobs = c->prompt_logprobs = (struct logprobs){0};
    engine_completion_free(c);
}

static void permute(int which[N], bool shuffle) {
    uint32_t state = 5;
    for (int i = 0; i < count; i++) which[i] = i;
    for (int i = count - 1; shuffle && i > 0; i--) {
        int k = (int)(next_random(&state) % (uint32_t)(i + 1)), kept = which[i];
        which[i] = which[k];
        which[k] = kept;
    }
}

static void run_all(struct outcomes *out, const struct run *run) {
    struct engine *e = open_engine(run);
    int32_t vocab = engine_model(e)->vocab;
    int which[N], n_taken = 0;
    *out = (struct outcomes){0};
    permute(which, run->order == SHUFFLED);
    for (int i = 0; i < count; i++) {
        struct engine_request *r = make_request(which[i], vocab);
        while (!engine_submit(e, r, 0)) take(e, out, n_taken++);
        if (run->order == ALONE) take(e, out, n_taken++);
    }
    while (n_taken < count) take(e, out, n_taken++);
    struct engine_stats stats;
    engine_stats(e, &stats);
    out->steps = stats.n_steps;
    out->cached = stats.n_cached_tokens;
    assert_int_equal(stats.n_preemptions, out->preemptions);
    assert_true(stats.device.n_steps > 0 && stats.device.n_steps <= stats.n_steps);
    assert_true(stats.device.busy_ns > 0 && stats.device.idle_ns >= 0);
    if (run->rows > 0 && run->rows < ENGINE_LARGE_STEP) assert_int_equal(stats.device_large.n_steps, 0);
    engine_close(e);
}

/* Bit for bit. */
static bool is_same_logprobs(const struct logprobs *a, const struct logprobs *b) {
    size_t n = (size_t)a->n, tops = n * (size_t)a->n_top;
    if (a->n != b->n || a->n_top != b->n_top || n == 0) return a->n == b->n;
    return memcmp(a->token, b->token, n * sizeof(float)) == 0 && memcmp(a->rank, b->rank, n * sizeof(int32_t)) == 0 &&
           (tops == 0 || memcmp(a->top_ids, b->top_ids, tops * sizeof(int32_t)) == 0) &&
           (tops == 0 || memcmp(a->top, b->top, tops * sizeof(float)) == 0);
}

static void assert_same(const struct outcomes *got, const struct outcomes *want, const struct run *run) {
    for (int i = 0; i < count; i++) {
        const struct outcome *a = &got->at[i], *b = &want->at[i];
        if (a->n_tokens != b->n_tokens || a->finish != b->finish ||
            memcmp(a->tokens, b->tokens, a->n_tokens * sizeof *a->tokens) != 0 ||
            !is_same_logprobs(&a->logprobs, &b->logprobs) || !is_same_logprobs(&a->prompt_logprobs, &b->prompt_logprobs))
            fail_msg("request %d differs: %s, %d threads, T %d, look-ahead %d, order %d", i, run->dtype, run->threads,
                     run->rows, run->lookahead, run->order);
    }
}

static int n_distinct(const struct outcomes *o) {
    int n = 0;
    for (int i = 0; i < count; i++) {
        bool seen = false;
        for (int k = 0; k < i && !seen; k++)
            seen = o->at[i].n_tokens == o->at[k].n_tokens &&
                   memcmp(o->at[i].tokens, o->at[k].tokens, o->at[i].n_tokens * sizeof(int32_t)) == 0;
        n += !seen;
    }
    return n;
}

/* ---------------------------------------------------------------- batch invariance */

static const char *invariance_model(char path[600]) {
    if (!test_data()) return demo;
    snprintf(path, 600, "%s/models/stories260K", test_data());
    return path;
}

static void check_dtype(const char *dtype, const char *kv_dtype, bool is_quick) {
    char path[600];
    struct outcomes alone, got;
    struct run run = {.dir = invariance_model(path), .dtype = dtype, .kv_dtype = kv_dtype, .threads = 1, .rows = 512, .order = ALONE};
    run_all(&alone, &run);
    /* Short answers may meet; the demo model, out of its depth, repeats itself. */
    int distinct = n_distinct(&alone), least = run.dir == demo ? count / 2 : count - 8;
    if (distinct < least) fail_msg("%d different answers of %d, not %d", distinct, count, least);
    int n_runs = 0;
    for (run.order = TOGETHER; run.order <= SHUFFLED; run.order++)
        for (run.threads = 1; run.threads <= 2; run.threads++)
            for (run.rows = 64; run.rows <= 512; run.rows *= 8)
                for (run.lookahead = 0; run.lookahead <= 2; run.lookahead++) {
                    if (is_quick && n_runs++ % 5 != 0) continue;
                    run_all(&got, &run);
                    assert_same(&got, &alone, &run);
                    assert_true(got.cached > 0);
                    outcomes_clear(&got);
                }
    outcomes_clear(&alone);
}

static void float32_is_batch_invariant(void **state) {
    check_dtype("float32", NULL, test_is_quick());
}

static void bfloat16_is_batch_invariant(void **state) {
    check_dtype("bfloat16", NULL, test_is_quick());
}

static void an_fp8_cache_is_batch_invariant(void **state) {
    check_dtype("bfloat16", "fp8", true);
    if (is_cuda()) check_dtype("float16", "fp8", true);
}

/* Requests of a run alone, and shuffled in steps of few rows and of many. */
static void check_shuffled(struct run run, int fewest, int most, int factor) {
    struct outcomes alone, got;
    run.order = ALONE;
    run_all(&alone, &run);
    assert_true(n_distinct(&alone) > count / 2);
    run.order = SHUFFLED;
    for (run.rows = fewest; run.rows <= most; run.rows *= factor) {
        run_all(&got, &run);
        assert_same(&got, &alone, &run);
        outcomes_clear(&got);
    }
    outcomes_clear(&alone);
}

/* Both ways that a device may have: the trained model's sizes are not all multiples of 16. */
static void quantized_weights_are_batch_invariant(void **state) {
    static const char *const kinds[] = {"int8", "fp8", "nf4", "nf4-dq"};
    char path[600];
    const char *dirs[] = {demo, invariance_model(path)};
    for (int i = 0; i < 8; i++) {
        struct run run = {.dir = dirs[i % 2], .dtype = "bfloat16", .quantization = kinds[i / 2], .rows = 256};
        if (i % 2 ? run.dir == demo : !is_cuda()) continue; /* the demo model is large for a CPU */
        check_shuffled(run, 32, 512, 16);
    }
}

/* Rows that choose other experts are in other products on a GPU, of sizes that it alone knows. */
static void mixtures_are_batch_invariant(void **state) {
    struct run run = {.dir = "tests/models/tiny-mixtral", .dtype = "bfloat16", .load_format = "dummy", .rows = 512};
    check_shuffled(run, 16, 1024, 8);
}

/* As many bytes as n blocks of KV_BLOCK tokens take in float32. */
static int64_t bytes_of_blocks(const char *dir, int64_t n) {
    struct model_info m;
    struct err err = ERR_INIT;
    assert_ok(model_describe(&m, dir, &err), &err);
    return n * 32 * m.n_layers * 2 * m.n_kv_heads * m.head_dim * 4;
}

/* Steps large enough for every algorithm, chosen anew, tuned, and read from the file that
 * remembers them; also with so few blocks that rows are preempted. */
static void large_steps_and_remembered_algorithms(void **state) {
    if (!is_cuda()) skip();
    char path[600], *cache = temp_path("cache");
    struct outcomes small, got;
    struct run run = {.dir = invariance_model(path), .dtype = "bfloat16", .rows = 64, .seqs = 512, .order = SHUFFLED, .lookahead = 1};
    run_all(&small, &run);
    setenv("XDG_CACHE_HOME", cache, 1);
    for (run.rows = 1024; run.rows <= 4096; run.rows *= 2)
        for (int start = 0; start < 3; start++) { /* the file is there from the second on */
            run.order = start % 2 ? TOGETHER : SHUFFLED;
            run.kv_bytes = start == 2 ? bytes_of_blocks(run.dir, 64) / 2 : 0; /* bytes_of_blocks is for float32 */
            run_all(&got, &run);
            assert_same(&got, &small, &run);
            if (start == 2 && got.preemptions < (test_is_quick() ? 5 : 50)) fail_msg("%d preemptions", (int)got.preemptions);
            outcomes_clear(&got);
        }
    unsetenv("XDG_CACHE_HOME");
    outcomes_clear(&small);
    free(cache);
}

/* ---------------------------------------------------------------- stress */

static const char long_config[] =
    "{\"model_type\": \"llama\", \"hidden_size\": 64, \"intermediate_size\": 128, \"num_hidden_layers\": 2,"
    " \"num_attention_heads\": 4, \"num_key_value_heads\": 2, \"vocab_size\": 512, \"torch_dtype\": \"bfloat16\","
    " \"max_position_embeddings\": 4096}";

struct long_run {
    uint64_t *digest; /* of each request's tokens */
    int64_t preemptions;
};

/* Request i: a prompt of 1 to `most` tokens, short ones more often, and up to 150 or 400 more. */
static struct engine_request *long_request(int i, int most) {
    struct engine_request *r = engine_request_new();
    uint32_t state = (uint32_t)i * 2654435761u + 5;
    r->tag = (uint64_t)i;
    r->n_tokens = 1 + (next_random(&state) % (uint32_t)most) * (next_random(&state) % (uint32_t)most) / (uint32_t)most;
    r->tokens = mem_zalloc(r->n_tokens, sizeof *r->tokens);
    for (size_t k = 0; k < r->n_tokens; k++) r->tokens[k] = (int32_t)(next_random(&state) % 512);
    r->sampling.max_tokens = (int32_t)(1 + next_random(&state) % (uint32_t)(most < 1000 ? 150 : 400));
    r->sampling.ignore_eos = true;
    if (i % 2) r->sampling.temperature = 1, r->sampling.seed = (uint64_t)i;
    return r;
}

static void run_long(struct long_run *out, const char *dir, int n, int most, int64_t kv_bytes) {
    struct err err = ERR_INIT;
    struct engine *e;
    struct engine_options o = ENGINE_OPTIONS_DEFAULT;
    struct engine_stats stats;
    o.model_dir = dir;
    o.device = test_device();
    o.load_format = "dummy";
    o.max_num_seqs = 256;
    o.kv_cache_memory_bytes = kv_bytes;
    assert_ok(engine_open(&e, &o, &err), &err);
    *out = (struct long_run){.digest = mem_zalloc((size_t)n, sizeof *out->digest)};
    for (int given = 0, taken = 0; taken < n;) {
        struct engine_request *r = given < n ? long_request(given, most) : NULL;
        if (r && engine_submit(e, r, 0)) {
            given++;
            continue;
        }
        engine_request_free(r);
        struct engine_completion *c = collect(e);
        if (c->finish != FINISH_LENGTH) fail_msg("request %d ends otherwise: %s", (int)c->tag, c->error);
        out->digest[c->tag] = hash64(c->tokens, c->n_tokens * sizeof *c->tokens, c->n_tokens);
        out->preemptions += c->preemptions;
        engine_completion_free(c);
        taken++;
    }
    engine_stats(e, &stats);
    assert_int_equal(stats.kv_blocks_used, 0); /* none leaks */
    assert_int_equal(stats.n_running + stats.n_waiting, 0);
    engine_close(e);
}

static void long_prompts_in_a_tiny_pool(void **state) {
    int n = is_cuda() ? 10000 : test_is_quick() ? 40 : 150, most = is_cuda() ? 1600 : 200;
    char *dir = temp_path("long"), *path = temp_path("long/config.json");
    const int64_t block = 2 * 2 * 2 * 32 * 16 * 2; /* 2 layers, K and V, 2 heads of 16, bf16 */
    struct long_run roomy, tight;
    assert_int_equal(mkdir(dir, 0700), 0);
    temp_write(path, long_config, sizeof long_config - 1);
    run_long(&roomy, dir, n, most, block * 40000);
    run_long(&tight, dir, n, most, block * (is_cuda() ? 160 : 20));
    assert_int_equal(roomy.preemptions, 0);
    if (tight.preemptions < (is_cuda() ? 1000 : 10)) fail_msg("%d preemptions", (int)tight.preemptions);
    print_message("%d requests, %d preemptions\n", n, (int)tight.preemptions);
    assert_memory_equal(tight.digest, roomy.digest, (size_t)n * sizeof *tight.digest);
    free(roomy.digest);
    free(tight.digest);
    free(dir);
    free(path);
}

static void alone_with_two_threads_and_lookahead(void **state) {
    char path[600];
    struct outcomes a, b;
    struct run run = {.dir = invariance_model(path), .dtype = "float32", .threads = 1, .rows = 512, .order = ALONE};
    run_all(&a, &run);
    run.threads = run.lookahead = 2;
    run.rows = 64;
    run_all(&b, &run);
    assert_same(&b, &a, &run);
    outcomes_clear(&a);
    outcomes_clear(&b);
}

static void preempted_requests_go_on_as_if_nothing_had_been(void **state) {
    char path[600];
    struct outcomes roomy, tight;
    struct run run = {.dir = invariance_model(path), .dtype = "float32", .threads = 1, .order = TOGETHER, .max_len = 256};
    run_all(&roomy, &run);
    assert_int_equal(roomy.preemptions, 0);
    run.kv_bytes = bytes_of_blocks(run.dir, 16);
    for (run.lookahead = 0; run.lookahead <= 2; run.lookahead++)
        for (run.rows = 64; run.rows <= 512; run.rows *= 8) {
            run_all(&tight, &run);
            assert_same(&tight, &roomy, &run);
            if (tight.preemptions < (test_is_quick() ? 10 : 50)) fail_msg("%d preemptions", (int)tight.preemptions);
            outcomes_clear(&tight);
        }
    outcomes_clear(&roomy);
}

/* ---------------------------------------------------------------- continuous batching */

/* A request that came later and ended earlier, though the older one was already at work. */
static bool short_overtakes_long(const struct outcomes *o) {
    for (int i = 0; i < count; i++)
        for (int k = i + 1; k < count; k++)
            if (o->at[k].scheduled_ns > o->at[i].scheduled_ns && o->at[k].scheduled_ns < o->at[i].last_token_ns &&
                o->at[k].order < o->at[i].order)
                return true;
    return false;
}

static void steps_mix_prefill_and_decode(void **state) {
    char *log = NULL, *save = NULL;
    size_t n_log = 0;
    FILE *f = open_memstream(&log, &n_log);
    struct outcomes o;
    struct run run = {.dir = demo, .dtype = "float32", .rows = 64, .seqs = 32, .order = TOGETHER, .step_log = f};
    run_all(&o, &run);
    assert_int_equal(fclose(f), 0);
    int64_t n_steps = 0, n_mixed = 0, n_finished = 0;
    for (char *line = strtok_r(log, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        json_t *step = json_loads(line, 0, NULL);
        assert_non_null(step);
        json_int_t prefill = json_integer_value(json_object_get(step, "prefill"));
        json_int_t decode = json_integer_value(json_object_get(step, "decode"));
        json_int_t rows = json_integer_value(json_object_get(step, "rows"));
        assert_int_equal(json_integer_value(json_object_get(step, "step")), ++n_steps);
        assert_int_equal(rows, prefill + decode);
        assert_true(rows > 0 && rows <= 64);
        assert_true(json_integer_value(json_object_get(step, "running")) <= 32);
        n_mixed += prefill > 0 && decode > 0;
        n_finished += (int64_t)json_array_size(json_object_get(step, "finished"));
        json_decref(step);
    }
    assert_int_equal(n_steps, o.steps);
    assert_int_equal(n_finished, count);
    assert_true(n_mixed > 10);
    assert_true(short_overtakes_long(&o));
    outcomes_clear(&o);
    free(log);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(steps_mix_prefill_and_decode),
        cmocka_unit_test(preempted_requests_go_on_as_if_nothing_had_been),
        cmocka_unit_test(alone_with_two_threads_and_lookahead),
        cmocka_unit_test(float32_is_batch_invariant),
        cmocka_unit_test(bfloat16_is_batch_invariant),
        cmocka_unit_test(an_fp8_cache_is_batch_invariant),
        cmocka_unit_test(quantized_weights_are_batch_invariant),
        cmocka_unit_test(mixtures_are_batch_invariant),
        cmocka_unit_test(large_steps_and_remembered_algorithms),
        cmocka_unit_test(long_prompts_in_a_tiny_pool),
    };
    count = test_is_quick() ? 64 : is_cuda() ? N : 208;
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
