/* test_forward.c - the forward pass against numbers from elsewhere, and against
 * itself: a row's logits are the same bits whatever else is in the step.
 *
 * Oracles: a small trained model with ids and top-5 logits of a plain fp32 forward
 * pass (outside test data), and random models of each family with every feature
 * switched on, computed by transformers (tests/models/make_tiny.py). */
#include "tests/aid_model.h"

#include "base/mem.h"

#include <jansson.h>
#include <math.h>

static size_t int_array(const json_t *a, int32_t *out) {
    assert_true(json_array_size(a) > 0 && json_array_size(a) <= RIG_CONTEXT);
    for (size_t i = 0; i < json_array_size(a); i++) out[i] = (int32_t)json_integer_value(json_array_get(a, i));
    return json_array_size(a);
}

static const char *stories(const char *name) {
    static char path[600];
    snprintf(path, sizeof path, "%s/models/%s", test_data(), name);
    return path;
}

/* Call fn for each line of DIR/file. */
static int each_line(struct rig *r, const char *dir, const char *file, void (*fn)(struct rig *, const json_t *)) {
    char path[700];
    snprintf(path, sizeof path, "%s/%s", dir, file);
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    char *line = NULL;
    size_t cap = 0;
    int n = 0;
    for (; getline(&line, &cap, f) > 0; n++) {
        json_t *root = json_loads(line, 0, NULL);
        assert_non_null(root);
        fn(r, root);
        json_decref(root);
    }
    free(line);
    fclose(f);
    return n;
}

/* ---------------------------------------------------------------- the trained model */

/* top: [[id, logit], ...] of one step. */
static void check_top(const float *logits, const json_t *top) {
    assert_int_equal(json_array_size(top), 5);
    for (size_t i = 0; i < 5; i++) {
        const json_t *pair = json_array_get(top, i);
        double want = json_number_value(json_array_get(pair, 1));
        float got = logits[json_integer_value(json_array_get(pair, 0))];
        if (!(fabs(want - (double)got) <= 1e-3)) fail_msg("logit %zu: %g, reference %g", i, (double)got, want);
    }
}

/* Prefill in one chunk, then decode what was drawn. */
static void check_story(struct rig *r, const json_t *line) {
    int32_t ids[RIG_CONTEXT], want[RIG_CONTEXT];
    int32_t n = (int32_t)int_array(json_object_get(line, "prompt_ids"), ids);
    size_t n_want = int_array(json_object_get(line, "greedy_ids"), want);
    const json_t *top = json_object_get(line, "top5");
    assert_int_equal(json_array_size(top), n_want);
    struct batch b = {0};
    batch_add(&b, 0, ids, 0, n, 1);
    for (size_t i = 0; i < n_want; i++) {
        struct step_result result = rig_run(r, &b);
        assert_int_equal(result.drawn[0], want[i]);
        check_top(result.logits, json_array_get(top, i));
        b = (struct batch){0};
        batch_add(&b, 0, &result.drawn[0], n + (int32_t)i, 1, 1);
    }
}

static void check_stories(const char *name) {
    if (!test_data()) skip();
    struct rig r;
    rig_open(&r, stories(name), &(struct rig_options){DTYPE_F32, 2, false});
    assert_int_equal(each_line(&r, stories(name), "reference_greedy.jsonl", check_story), 5);
    rig_close(&r);
}

static void stories_fp32_gives_the_reference_ids_and_logits(void **state) {
    check_stories("stories260K");
}
static void stories_bf16_gives_the_reference_ids_and_logits(void **state) {
    check_stories("stories260K-bf16");
}
static void stories_f16_sharded_gives_the_reference_ids_and_logits(void **state) {
    check_stories("stories260K-f16-sharded");
}

/* ---------------------------------------------------------------- transformers */

/* One line of reference.jsonl: a prompt with its greedy continuation, and the logits
 * [n - from][vocab] of its last positions. */
struct reference {
    int32_t ids[RIG_CONTEXT], n, n_prompt, from;
    int32_t greedy[RIG_CONTEXT], n_greedy;
    float *logits;
    double bf16_error; /* rms, of transformers' own bf16 */
};

static void reference_read(struct reference *ref, const json_t *line, int32_t vocab) {
    const json_t *logits = json_object_get(line, "logits");
    ref->n_prompt = (int32_t)int_array(json_object_get(line, "prompt_ids"), ref->ids);
    ref->n_greedy = (int32_t)int_array(json_object_get(line, "greedy_ids"), ref->greedy);
    ref->n = ref->n_prompt + ref->n_greedy - 1;
    memcpy(ref->ids + ref->n_prompt, ref->greedy, (size_t)(ref->n_greedy - 1) * sizeof *ref->greedy);
    ref->from = (int32_t)json_integer_value(json_object_get(line, "from"));
    ref->bf16_error = json_real_value(json_object_get(line, "bf16_error"));
    assert_int_equal(json_array_size(logits), ref->n - ref->from);
    ref->logits = mem_zalloc((size_t)(ref->n - ref->from) * (size_t)vocab, sizeof(float));
    for (int32_t p = 0; p < ref->n - ref->from; p++) {
        const json_t *row = json_array_get(logits, (size_t)p);
        assert_int_equal(json_array_size(row), vocab);
        for (int32_t v = 0; v < vocab; v++)
            ref->logits[p * vocab + v] = (float)json_number_value(json_array_get(row, (size_t)v));
    }
}

static double rms(const float *x, const float *minus, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) {
        double d = (double)x[i] - (minus ? (double)minus[i] : 0.0);
        sum += d * d;
    }
    return sqrt(sum / (double)n);
}

static int32_t argmax(const float *x, int32_t n) {
    int32_t best = 0;
    for (int32_t i = 1; i < n; i++)
        if (x[i] > x[best]) best = i;
    return best;
}

static float gap_of_top_two(const float *x, int32_t n) {
    int32_t best = argmax(x, n);
    float second = -INFINITY;
    for (int32_t i = 0; i < n; i++)
        if (i != best && x[i] > second) second = x[i];
    return x[best] - second;
}

/* Greedy decoding from the prompt gives the same ids. */
static void check_greedy(struct rig *r, const struct reference *ref) {
    float *ignored = mem_zalloc((size_t)r->vocab, sizeof *ignored);
    int32_t drawn = rig_logits(r, 0, ref->ids, ref->n_prompt, RIG_ROWS, ref->n_prompt - 1, ignored);
    for (int32_t i = 0; i < ref->n_greedy; i++) {
        assert_int_equal(drawn, ref->greedy[i]);
        struct batch b = {0};
        batch_add(&b, 0, &drawn, ref->n_prompt + i, 1, 1);
        drawn = rig_run(r, &b).drawn[0];
    }
    free(ignored);
}

/* float32: every logit within 1e-4 of the row's largest; the same ids. */
static void check_f32(struct rig *r, const json_t *line) {
    struct reference ref;
    reference_read(&ref, line, r->vocab);
    size_t n_rows = (size_t)(ref.n - ref.from), vocab = (size_t)r->vocab;
    float *got = mem_zalloc(n_rows * vocab, sizeof *got);
    rig_logits(r, 0, ref.ids, ref.n, RIG_ROWS, ref.from, got);
    for (size_t i = 0; i < n_rows; i++) {
        const float *want = ref.logits + i * vocab;
        double scale = 0;
        for (size_t v = 0; v < vocab; v++) scale = fmax(scale, fabs((double)want[v]));
        for (size_t v = 0; v < vocab; v++) {
            double off = fabs((double)got[i * vocab + v] - (double)want[v]);
            if (!(off <= 1e-4 * scale))
                fail_msg("position %d, id %zu: off by %g of %g", ref.from + (int)i, v, off, scale);
        }
    }
    check_greedy(r, &ref);
    free(got);
    free(ref.logits);
}

/* bf16, teacher-forced: at most 1.5 times transformers' own bf16 error; the same argmax
 * except where the fp32 top two are closer than 5 % of the logits' rms. */
static void check_bf16(struct rig *r, const json_t *line) {
    struct reference ref;
    reference_read(&ref, line, r->vocab);
    size_t n_rows = (size_t)(ref.n - ref.from), n = n_rows * (size_t)r->vocab;
    float *got = mem_zalloc(n, sizeof *got);
    rig_logits(r, 0, ref.ids, ref.n, RIG_ROWS, ref.from, got);
    double off = rms(got, ref.logits, n), scale = rms(ref.logits, NULL, n);
    if (!(off <= 1.5 * ref.bf16_error))
        fail_msg("%d ids: rms error %g, transformers has %g", ref.n, off, ref.bf16_error);
    for (size_t i = 0; i < n_rows; i++) {
        const float *want = ref.logits + i * (size_t)r->vocab;
        if ((double)gap_of_top_two(want, r->vocab) < 0.05 * scale) continue;
        assert_int_equal(argmax(got + i * (size_t)r->vocab, r->vocab), argmax(want, r->vocab));
    }
    free(got);
    free(ref.logits);
}

static void check_tiny(const char *dir, enum dtype dtype) {
    struct rig r;
    rig_open(&r, dir, &(struct rig_options){dtype, 2, false});
    int n = each_line(&r, dir, "reference.jsonl", dtype == DTYPE_F32 ? check_f32 : check_bf16);
    assert_in_range(n, 4, 5);
    rig_close(&r);
}

/* Biases everywhere, llama3 RoPE scaling, a head of its own, head_dim unlike hidden / heads. */
static void tiny_llama3_fp32_agrees_with_transformers(void **state) {
    check_tiny("tests/models/tiny-llama3", DTYPE_F32);
}
static void tiny_llama3_bf16_is_as_good_as_transformers(void **state) {
    check_tiny("tests/models/tiny-llama3", DTYPE_BF16);
}

/* A window of 8 tokens, one KV head, tied embeddings. */
static void tiny_mistral_fp32_agrees_with_transformers(void **state) {
    check_tiny("tests/models/tiny-mistral", DTYPE_F32);
}
static void tiny_mistral_bf16_is_as_good_as_transformers(void **state) {
    check_tiny("tests/models/tiny-mistral", DTYPE_BF16);
}

/* LayerNorm, biases, partial rotation, one norm for both halves of a parallel block, normed Q
 * and K, a head with a bias. */
static void tiny_phi_fp32_agrees_with_transformers(void **state) {
    check_tiny("tests/models/tiny-phi", DTYPE_F32);
}
static void tiny_phi_bf16_is_as_good_as_transformers(void **state) {
    check_tiny("tests/models/tiny-phi", DTYPE_BF16);
}

/* Biases of Q, K and V alone, yarn, a window in the later layers. */
static void tiny_qwen2_fp32_agrees_with_transformers(void **state) {
    check_tiny("tests/models/tiny-qwen2", DTYPE_F32);
}
static void tiny_qwen2_bf16_is_as_good_as_transformers(void **state) {
    check_tiny("tests/models/tiny-qwen2", DTYPE_BF16);
}

/* Norms of Q and K, heads wider than hidden / heads. */
static void tiny_qwen3_fp32_agrees_with_transformers(void **state) {
    check_tiny("tests/models/tiny-qwen3", DTYPE_F32);
}
static void tiny_qwen3_bf16_is_as_good_as_transformers(void **state) {
    check_tiny("tests/models/tiny-qwen3", DTYPE_BF16);
}

/* 1 + w, scaled embeddings, GELU by tanh. */
static void tiny_gemma_fp32_agrees_with_transformers(void **state) {
    check_tiny("tests/models/tiny-gemma", DTYPE_F32);
}
static void tiny_gemma_bf16_is_as_good_as_transformers(void **state) {
    check_tiny("tests/models/tiny-gemma", DTYPE_BF16);
}

/* Sandwich norms, soft caps, a window in every other layer. */
static void tiny_gemma2_fp32_agrees_with_transformers(void **state) {
    check_tiny("tests/models/tiny-gemma2", DTYPE_F32);
}
static void tiny_gemma2_bf16_is_as_good_as_transformers(void **state) {
    check_tiny("tests/models/tiny-gemma2", DTYPE_BF16);
}

/* Multi-query attention, GELU by erf. */
static void tiny_falcon_7b_fp32_agrees_with_transformers(void **state) {
    check_tiny("tests/models/tiny-falcon-7b", DTYPE_F32);
}
static void tiny_falcon_7b_bf16_is_as_good_as_transformers(void **state) {
    check_tiny("tests/models/tiny-falcon-7b", DTYPE_BF16);
}

/* Groups of heads in one tensor, two norms in a parallel block. */
static void tiny_falcon_40b_fp32_agrees_with_transformers(void **state) {
    check_tiny("tests/models/tiny-falcon-40b", DTYPE_F32);
}
static void tiny_falcon_40b_bf16_is_as_good_as_transformers(void **state) {
    check_tiny("tests/models/tiny-falcon-40b", DTYPE_BF16);
}

/* ALiBi as Falcon rounds it, six heads. */
static void tiny_falcon_rw_fp32_agrees_with_transformers(void **state) {
    check_tiny("tests/models/tiny-falcon-rw", DTYPE_F32);
}
static void tiny_falcon_rw_bf16_is_as_good_as_transformers(void **state) {
    check_tiny("tests/models/tiny-falcon-rw", DTYPE_BF16);
}

/* ALiBi of six heads, clipped Q, K and V. */
static void tiny_mpt_fp32_agrees_with_transformers(void **state) {
    check_tiny("tests/models/tiny-mpt", DTYPE_F32);
}
static void tiny_mpt_bf16_is_as_good_as_transformers(void **state) {
    check_tiny("tests/models/tiny-mpt", DTYPE_BF16);
}

/* Three of five experts for each token; with the experts' tensors apart, and all in one. */
static void check_mixtral(enum dtype dtype) {
    check_tiny("tests/models/tiny-mixtral", dtype);
    struct rig r;
    rig_open(&r, "tests/models/tiny-mixtral-fused", &(struct rig_options){dtype, 2, false});
    each_line(&r, "tests/models/tiny-mixtral", "reference.jsonl", dtype == DTYPE_F32 ? check_f32 : check_bf16);
    rig_close(&r);
}
static void tiny_mixtral_fp32_agrees_with_transformers(void **state) {
    check_mixtral(DTYPE_F32);
}
static void tiny_mixtral_bf16_is_as_good_as_transformers(void **state) {
    check_mixtral(DTYPE_BF16);
}

/* Fused tensors, a window, and longrope: an engine for at most 256 tokens takes the short factors. */
static void check_phi3(enum dtype dtype) {
    static const char dir[] = "tests/models/tiny-phi3";
    check_tiny(dir, dtype);
    struct rig r;
    rig_open_for(&r, dir, &(struct rig_options){dtype, 2, false}, 256);
    assert_int_equal(each_line(&r, dir, "reference_short.jsonl", dtype == DTYPE_F32 ? check_f32 : check_bf16), 5);
    rig_close(&r);
}
static void tiny_phi3_fp32_agrees_with_transformers(void **state) {
    check_phi3(DTYPE_F32);
}
static void tiny_phi3_bf16_is_as_good_as_transformers(void **state) {
    check_phi3(DTYPE_BF16);
}

/* ---------------------------------------------------------------- the same bits */

static void random_ids(int32_t *ids, int32_t n, int32_t vocab, uint32_t seed) {
    for (int32_t i = 0; i < n; i++) {
        seed = seed * 1664525u + 1013904223u;
        ids[i] = i == 0 ? 1 : 3 + (int32_t)(seed >> 8) % (vocab - 3);
    }
}

static const char *const models[] = {
    "tests/models/tiny-llama3",    "tests/models/tiny-mistral",   "tests/models/tiny-phi",
    "tests/models/tiny-gemma2",    "tests/models/tiny-qwen3",     "tests/models/tiny-mpt",
    "tests/models/tiny-falcon-40b", "tests/models/tiny-falcon-rw", "tests/models/tiny-mixtral",
};
enum { N_MODELS = sizeof models / sizeof *models };

/* The same prompt in chunks of any size, in another slot, on other threads: the same bits.
 * 600 tokens pass the border of attention's splits. */
static void chunks_change_no_bit(void **state) {
    static const int32_t chunks[] = {RIG_ROWS, 33, 1, 7, 32};
    enum { N = 600, FROM = N - 40 };
    for (int model = 0; model < N_MODELS; model++)
        for (int bf16 = 0; bf16 < 2; bf16++) {
            float *first = NULL;
            for (int threads = 1; threads <= 3; threads++) {
                struct rig r;
                int32_t ids[N];
                rig_open(&r, models[model], &(struct rig_options){bf16 ? DTYPE_BF16 : DTYPE_F32, threads, false});
                random_ids(ids, N, r.vocab, 1);
                size_t bytes = (N - FROM) * (size_t)r.vocab * sizeof(float);
                float *got = mem_alloc(bytes);
                for (size_t c = 0; c < (threads == 1 ? 5 : 2); c++) {
                    rig_logits(&r, (int32_t)c % RIG_SLOTS, ids, N, chunks[c], FROM, got);
                    if (!first) first = mem_dup(got, bytes);
                    assert_memory_equal(first, got, bytes);
                }
                free(got);
                rig_close(&r);
            }
            free(first);
        }
}

/* Three sequences in the same steps, prefill chunks beside decode rows, in another order
 * each time: every logit has the bits it has alone. */
static void company_changes_no_bit(void **state) {
    enum { N = 90, SEQUENCES = 3 };
    for (int bf16 = 0; bf16 < 2; bf16++) {
        struct rig r;
        int32_t ids[SEQUENCES][N], at[SEQUENCES] = {0};
        float *alone[SEQUENCES];
        rig_open(&r, models[0], &(struct rig_options){bf16 ? DTYPE_BF16 : DTYPE_F32, 2, false});
        size_t row = (size_t)r.vocab * sizeof(float);
        for (int32_t s = 0; s < SEQUENCES; s++) {
            random_ids(ids[s], N, r.vocab, (uint32_t)s + 10);
            alone[s] = mem_alloc(N * row);
            rig_logits(&r, 3, ids[s], N, RIG_ROWS, 0, alone[s]);
        }
        for (int step = 0; at[0] < N || at[1] < N || at[2] < N; step++) {
            struct batch b = {0};
            int32_t who[RIG_ROWS], position[RIG_ROWS];
            for (int32_t i = 0; i < SEQUENCES; i++) {
                int32_t s = (i + step) % SEQUENCES, n = (step * 5 + s * 7) % 12 + 1;
                if (s == 1) n = 1; /* one that decodes all the while */
                if (n > N - at[s]) n = N - at[s];
                if (n == 0) continue;
                for (int32_t k = 0; k < n; k++) {
                    who[b.n_samples + k] = s;
                    position[b.n_samples + k] = at[s] + k;
                }
                batch_add(&b, s, ids[s] + at[s], at[s], n, n);
                at[s] += n;
            }
            struct step_result result = rig_run(&r, &b);
            for (int32_t k = 0; k < b.n_samples; k++)
                assert_memory_equal(result.logits + (size_t)k * (size_t)r.vocab,
                                    alone[who[k]] + (size_t)position[k] * (size_t)r.vocab, row);
        }
        for (int32_t s = 0; s < SEQUENCES; s++) free(alone[s]);
        rig_close(&r);
    }
}

/* Rows that nobody asked logits of change nothing, and a step may have none at all. */
static void a_step_without_samples(void **state) {
    struct rig r;
    int32_t ids[40];
    rig_open(&r, models[0], &(struct rig_options){DTYPE_F32, 1, false});
    random_ids(ids, 40, r.vocab, 5);
    float *all = mem_zalloc((size_t)r.vocab, sizeof *all), *last = mem_zalloc((size_t)r.vocab, sizeof *last);
    rig_logits(&r, 0, ids, 40, 40, 39, all);
    rig_logits(&r, 1, ids, 40, 8, 39, last); /* four steps of five have no sample */
    assert_memory_equal(all, last, (size_t)r.vocab * sizeof *all);
    free(all);
    free(last);
    rig_close(&r);
}

/* Where a slot has several samples in a step, the last of them is the slot's last sample. */
static void the_last_of_several_samples_stays(void **state) {
    struct rig r;
    int32_t ids[RIG_ROWS];
    rig_open(&r, models[0], &(struct rig_options){DTYPE_F32, 2, false});
    random_ids(ids, RIG_ROWS, r.vocab, 7);
    struct batch all = {0}, next = {0}, same = {0};
    batch_add(&all, 0, ids, 0, RIG_ROWS, RIG_ROWS);
    int32_t drawn = rig_run(&r, &all).drawn[RIG_ROWS - 1];
    batch_add(&next, 0, NULL, RIG_ROWS, 1, 1);
    float *logits = mem_dup(rig_run(&r, &next).logits, (size_t)r.vocab * sizeof *logits);
    batch_add(&same, 0, &drawn, RIG_ROWS, 1, 1);
    assert_memory_equal(logits, rig_run(&r, &same).logits, (size_t)r.vocab * sizeof *logits);
    free(logits);
    rig_close(&r);
}

/* Decode rows that name "the last sample of the slot", as deep as the ring allows. */
static void unseen_samples_continue_the_sequence(void **state) {
    enum { N_NEW = 60, PROMPT = 5 };
    for (int depth = 1; depth <= RUNNER_DEPTH; depth++) {
        struct rig r;
        int32_t prompt[PROMPT], seen[N_NEW];
        rig_open(&r, models[0], &(struct rig_options){DTYPE_F32, 1, false});
        random_ids(prompt, PROMPT, r.vocab, 3);
        float *ignored = mem_zalloc((size_t)r.vocab, sizeof *ignored);
        seen[0] = rig_logits(&r, 0, prompt, PROMPT, PROMPT, PROMPT - 1, ignored);
        for (int i = 1; i < N_NEW; i++) {
            struct batch b = {0};
            batch_add(&b, 0, &seen[i - 1], PROMPT + i - 1, 1, 1);
            seen[i] = rig_run(&r, &b).drawn[0];
        }
        struct batch b = {0};
        batch_add(&b, 1, prompt, 0, PROMPT, 1);
        rig_submit(&r, &b);
        for (int submitted = 1, collected = 0; collected < N_NEW; collected++) {
            while (submitted < N_NEW && submitted - collected < depth) {
                b = (struct batch){0};
                batch_add(&b, 1, NULL, PROMPT + submitted++ - 1, 1, 1);
                rig_submit(&r, &b);
            }
            assert_int_equal(rig_collect(&r).drawn[0], seen[collected]);
        }
        free(ignored);
        rig_close(&r);
    }
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(stories_fp32_gives_the_reference_ids_and_logits),
    cmocka_unit_test(stories_bf16_gives_the_reference_ids_and_logits),
    cmocka_unit_test(stories_f16_sharded_gives_the_reference_ids_and_logits),
    cmocka_unit_test(tiny_llama3_fp32_agrees_with_transformers),
    cmocka_unit_test(tiny_llama3_bf16_is_as_good_as_transformers),
    cmocka_unit_test(tiny_mistral_fp32_agrees_with_transformers),
    cmocka_unit_test(tiny_mistral_bf16_is_as_good_as_transformers),
    cmocka_unit_test(tiny_phi_fp32_agrees_with_transformers),
    cmocka_unit_test(tiny_phi_bf16_is_as_good_as_transformers),
    cmocka_unit_test(tiny_qwen2_fp32_agrees_with_transformers),
    cmocka_unit_test(tiny_qwen2_bf16_is_as_good_as_transformers),
    cmocka_unit_test(tiny_qwen3_fp32_agrees_with_transformers),
    cmocka_unit_test(tiny_qwen3_bf16_is_as_good_as_transformers),
    cmocka_unit_test(tiny_gemma_fp32_agrees_with_transformers),
    cmocka_unit_test(tiny_gemma_bf16_is_as_good_as_transformers),
    cmocka_unit_test(tiny_gemma2_fp32_agrees_with_transformers),
    cmocka_unit_test(tiny_gemma2_bf16_is_as_good_as_transformers),
    cmocka_unit_test(tiny_falcon_7b_fp32_agrees_with_transformers),
    cmocka_unit_test(tiny_falcon_7b_bf16_is_as_good_as_transformers),
    cmocka_unit_test(tiny_falcon_40b_fp32_agrees_with_transformers),
    cmocka_unit_test(tiny_falcon_40b_bf16_is_as_good_as_transformers),
    cmocka_unit_test(tiny_falcon_rw_fp32_agrees_with_transformers),
    cmocka_unit_test(tiny_falcon_rw_bf16_is_as_good_as_transformers),
    cmocka_unit_test(tiny_mpt_fp32_agrees_with_transformers),
    cmocka_unit_test(tiny_mpt_bf16_is_as_good_as_transformers),
    cmocka_unit_test(tiny_phi3_fp32_agrees_with_transformers),
    cmocka_unit_test(tiny_phi3_bf16_is_as_good_as_transformers),
    cmocka_unit_test(tiny_mixtral_fp32_agrees_with_transformers),
    cmocka_unit_test(tiny_mixtral_bf16_is_as_good_as_transformers),
    cmocka_unit_test(chunks_change_no_bit),
    cmocka_unit_test(company_changes_no_bit),
    cmocka_unit_test(a_step_without_samples),
    cmocka_unit_test(the_last_of_several_samples_stays),
    cmocka_unit_test(unseen_samples_continue_the_sequence),
};
UNIT_MAIN(tests)
