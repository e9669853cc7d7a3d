/* test_engine.c - the whole engine: the same tokens whatever shares the batch, the
 * model's own texts, stops and limits, failures that belong to one request. */
#include "tests/aid_jobs.h"
#include "tests/unit.h"

#include "base/clock.h"
#include "base/hash.h"
#include "base/mem.h"
#include "engine/engine.h"
#include "engine/sample/logprobs.h"

#include <jansson.h>
#include <math.h>
#include <sys/stat.h>
#include <unistd.h>

static const char demo[] = "tests/models/demo", tiny[] = "tests/models/tiny-llama3";

enum { N = 500, MAX_PROMPT = 90, MAX_NEW = 150 };

static int count; /* requests of a run: N, fewer on the CPU and where it has to be quick */

static uint32_t next_random(uint32_t *state) {
    *state = *state * 1664525u + 1013904223u;
    return *state >> 8;
}

static bool is_cuda(void) {
    return strcmp(test_device(), "cuda") == 0;
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

struct run {
    const char *dir, *dtype, *load_format; /* load_format NULL: weights from files */
    const char *kv_dtype;                  /* NULL = as dtype */
    const char *quantization;              /* NULL = none */
    int threads, rows, lookahead, seqs;
    int64_t kv_bytes, max_len;
    enum { ALONE, TOGETHER, SHUFFLED } order;
    FILE *step_log;
};

static struct engine *open_engine(const struct run *run) {
    struct engine *e;
    struct err err = ERR_INIT;
    struct engine_options o = ENGINE_OPTIONS_DEFAULT;
    o.model_dir = run->dir;
    o.device = test_device();
    o.dtype = run->dtype;
    o.kv_cache_dtype = run->kv_dtype;
    if (run->quantization) o.quantization = run->quantization;
    o.threads = run->threads;
    o.max_num_batched_tokens = run->rows;
    o.lookahead = run->lookahead;
    o.max_num_seqs = run->seqs;
    o.kv_cache_memory_bytes = run->kv_bytes;
    o.max_model_len = run->max_len;
    o.step_log = run->step_log;
    if (run->load_format) o.load_format = run->load_format;
    int r = engine_open(&e, &o, &err);
    if (r == E_UNSUPPORTED && is_cuda()) skip(); /* a GPU without bfloat16 */
    assert_ok(r, &err);
    return e;
}

static struct engine_completion *collect(struct engine *e) {
    struct engine_completion *c = engine_collect(e, 120000);
    assert_non_null(c);
    return c;
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
            if (start == 2 && got.preemptions < 50) fail_msg("%d preemptions", (int)got.preemptions);
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

/* ---------------------------------------------------------------- what the model says */

static struct engine_request *text_request(struct engine *e, const char *text) {
    struct engine_request *r = engine_request_new();
    struct token_list ids = {0};
    struct err err = ERR_INIT;
    struct encode_options o = {.add_special = true};
    assert_ok(tokenizer_encode(engine_tokenizer(e), &ids, text, strlen(text), &o, &err), &err);
    r->tokens = ids.ids;
    r->n_tokens = ids.n;
    return r;
}

static void check_reference_line(struct engine *e, const json_t *line) {
    struct engine_request *r = engine_request_new();
    const json_t *prompt = json_object_get(line, "prompt_ids"), *want = json_object_get(line, "greedy_ids");
    r->n_tokens = json_array_size(prompt);
    r->tokens = mem_zalloc(r->n_tokens, sizeof *r->tokens);
    for (size_t i = 0; i < r->n_tokens; i++) r->tokens[i] = (int32_t)json_integer_value(json_array_get(prompt, i));
    r->sampling.max_tokens = (int32_t)json_array_size(want);
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

/* ---------------------------------------------------------------- two sets of rotary frequencies */

static void link_into(const char *dir, const char *from, const char *name) {
    char target[700], path[700], *whole;
    snprintf(target, sizeof target, "%s/%s", from, name);
    snprintf(path, sizeof path, "%s/%s", dir, name);
    whole = realpath(target, NULL);
    assert_non_null(whole);
    assert_int_equal(symlink(whole, path), 0);
    free(whole);
}

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
        struct engine_request *r = make_request(i, engine_model(e)->vocab);
        r->sampling.max_tokens = 4;
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

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
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
        cmocka_unit_test(time_without_work_is_not_idle),
        cmocka_unit_test(refuses_options_that_make_no_sense),
        cmocka_unit_test(dummy_weights_need_no_tokenizer),
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
        cmocka_unit_test(longrope_follows_the_length_of_each_request),
    };
    count = test_is_quick() ? 64 : is_cuda() ? N : 208;
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
