/* test_forward.c - the forward pass against reference ids and logits of a small
 * trained model, in fp32, bf16 and sharded fp16 checkpoints, computed in float32. */
#include "tests/unit.h"

#include "base/file.h"
#include "base/mem.h"
#include "engine/model/model.h"

#include <jansson.h>
#include <math.h>

enum { MAX_CONTEXT = 512, BLOCKS_PER_SEQ = MAX_CONTEXT / KV_BLOCK, SLOTS = 2 };

struct bench { /* an opened model with room for two sequences */
    struct dev *dev;
    struct model *model;
    struct runner *runner;
    int32_t table[SLOTS * BLOCKS_PER_SEQ];
};

static void open_bench(struct bench *b, const char *dir, enum dtype dtype, int threads) {
    struct err err = ERR_INIT;
    assert_ok(dev_open(&b->dev, &(struct dev_options){.kind = "cpu", .threads = threads}, &err), &err);
    assert_ok(model_open(&b->model, b->dev, &(struct model_options){.dir = dir, .dtype = dtype}, &err), &err);
    struct runner_options o = {SLOTS * BLOCKS_PER_SEQ, SLOTS, 64, 4};
    assert_ok(runner_open(&b->runner, b->model, &o, &err), &err);
    runner_keep_logits(b->runner, true);
    for (int32_t i = 0; i < SLOTS * BLOCKS_PER_SEQ; i++) b->table[i] = SLOTS * BLOCKS_PER_SEQ - 1 - i;
}

static void close_bench(struct bench *b) {
    runner_close(b->runner);
    model_close(b->model);
    dev_close(b->dev);
}

/* Rows of one sequence; the last one samples greedily. token NULL: the slot's last sample. */
static void submit_rows(struct bench *b, int32_t slot, const int32_t *token, int32_t first, int32_t n) {
    int32_t tokens[64], positions[64], slots[64];
    for (int32_t i = 0; i < n; i++) {
        tokens[i] = token ? token[i] : ~slot;
        positions[i] = first + i;
        slots[i] = slot;
    }
    struct step_sequence seq = {slot, 0, n, first};
    struct step_sample sample = {.row = n - 1, .slot = slot, .position = first + n, .top_p = 1.0f};
    struct step step = {.n_rows = n,
                        .token = tokens,
                        .position = positions,
                        .slot = slots,
                        .n_sequences = 1,
                        .sequences = &seq,
                        .block_table = b->table,
                        .block_table_stride = BLOCKS_PER_SEQ,
                        .n_samples = 1,
                        .samples = &sample};
    struct err err = ERR_INIT;
    assert_ok(step_submit(b->runner, &step, &err), &err);
}

static struct step_result collect(struct bench *b) {
    struct step_result r;
    struct err err = ERR_INIT;
    assert_ok(step_collect(b->runner, &r, &err), &err);
    return r;
}

/* Prefill in chunks; returns the result of the last. */
static struct step_result prefill(struct bench *b, int32_t slot, const int32_t *ids, int32_t n, int32_t chunk) {
    struct step_result r = {0};
    for (int32_t at = 0; at < n; at += chunk) {
        submit_rows(b, slot, ids + at, at, n - at < chunk ? n - at : chunk);
        r = collect(b);
    }
    return r;
}

static size_t int_array(const json_t *a, int32_t *out) {
    for (size_t i = 0; i < json_array_size(a); i++) out[i] = (int32_t)json_integer_value(json_array_get(a, i));
    return json_array_size(a);
}

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

static void check_reference_line(struct bench *b, const json_t *line, int32_t chunk) {
    int32_t ids[MAX_CONTEXT], want[MAX_CONTEXT];
    size_t n = int_array(json_object_get(line, "prompt_ids"), ids);
    size_t n_want = int_array(json_object_get(line, "greedy_ids"), want);
    const json_t *top = json_object_get(line, "top5");
    assert_true(n > 0 && n_want > 0);
    struct step_result r = prefill(b, 0, ids, (int32_t)n, chunk);
    for (size_t i = 0; i < n_want; i++) {
        assert_int_equal(r.drawn[0], want[i]);
        check_top(r.logits, json_array_get(top, i));
        submit_rows(b, 0, &want[i], (int32_t)(n + i), 1);
        r = collect(b);
    }
}

static void each_line(const char *model, void (*fn)(struct bench *, const json_t *, int32_t), struct bench *b,
                      int32_t chunk) {
    char path[500];
    snprintf(path, sizeof path, "%s/models/%s/reference_greedy.jsonl", test_data(), model);
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    char *line = NULL;
    size_t cap = 0;
    while (getline(&line, &cap, f) > 0) {
        json_t *root = json_loads(line, 0, NULL);
        assert_non_null(root);
        fn(b, root, chunk);
        json_decref(root);
    }
    free(line);
    fclose(f);
}

static void reference(const char *model) {
    if (!test_data()) skip();
    char dir[500];
    snprintf(dir, sizeof dir, "%s/models/%s", test_data(), model);
    struct bench b;
    open_bench(&b, dir, DTYPE_F32, 2);
    each_line(model, check_reference_line, &b, 64);
    close_bench(&b);
}

static void stories_fp32_gives_the_reference_ids_and_logits(void **state) {
    reference("stories260K");
}
static void stories_bf16_gives_the_reference_ids_and_logits(void **state) {
    reference("stories260K-bf16");
}
static void stories_f16_sharded_gives_the_reference_ids_and_logits(void **state) {
    reference("stories260K-f16-sharded");
}

/* The same prompt in chunks of any size, in another slot, on other threads: the same bits. */
static void chunks_change_no_bit(void **state) {
    if (!test_data()) skip();
    char dir[500];
    snprintf(dir, sizeof dir, "%s/models/stories260K", test_data());
    enum { N = 150 };
    int32_t ids[N];
    for (int i = 0; i < N; i++) ids[i] = i == 0 ? 1 : 3 + (i * 37) % 500;
    for (int d = 0; d < 2; d++) {
        float *first = NULL;
        size_t bytes = 0;
        for (int threads = 1; threads <= 3; threads++) {
            struct bench b;
            open_bench(&b, dir, d ? DTYPE_BF16 : DTYPE_F32, threads);
            bytes = (size_t)model_get_info(b.model)->vocab * sizeof(float);
            static const int32_t chunks[] = {64, 1, 7, 32, 33};
            for (size_t c = 0; c < 5; c++) {
                struct step_result r = prefill(&b, (int32_t)c % SLOTS, ids, N, chunks[c]);
                if (!first) first = mem_dup(r.logits, bytes);
                assert_memory_equal(first, r.logits, bytes);
            }
            close_bench(&b);
        }
        free(first);
    }
}

/* Decode rows that name "the last sample of the slot", three steps deep. */
static void unseen_samples_continue_the_sequence(void **state) {
    if (!test_data()) skip();
    char dir[500];
    snprintf(dir, sizeof dir, "%s/models/stories260K", test_data());
    struct bench b;
    open_bench(&b, dir, DTYPE_F32, 1);
    int32_t prompt[] = {1, 403, 407, 261, 378}, seen[40], n = 0;
    struct step_result r = prefill(&b, 0, prompt, 5, 64);
    seen[n++] = r.drawn[0];
    for (int i = 0; i < 39; i++) {
        submit_rows(&b, 0, &seen[n - 1], 5 + i, 1);
        seen[n++] = collect(&b).drawn[0];
    }
    prefill(&b, 1, prompt, 5, 64);
    int32_t submitted = 0, collected = 0;
    while (collected < 39) {
        while (submitted < 39 && submitted - collected < RUNNER_DEPTH) submit_rows(&b, 1, NULL, 5 + submitted++, 1);
        assert_int_equal(collect(&b).drawn[0], seen[1 + collected++]);
    }
    close_bench(&b);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(stories_fp32_gives_the_reference_ids_and_logits),
    cmocka_unit_test(stories_bf16_gives_the_reference_ids_and_logits),
    cmocka_unit_test(stories_f16_sharded_gives_the_reference_ids_and_logits),
    cmocka_unit_test(chunks_change_no_bit),
    cmocka_unit_test(unseen_samples_continue_the_sequence),
};
UNIT_MAIN(tests)
