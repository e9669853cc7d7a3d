/* test_ops.c - operations on rows against a plain reference in double precision, and batch
 * invariance: a row's bits are the same whatever else is in the step.
 *
 * Each case runs on every instruction set of this machine, in both compute dtypes, with
 * one thread and with two, whose bits must agree (aid_ops.h). Attention, sampling, experts
 * and quantized weights have files of their own, test_op_*.c. Slacks are bounds on f32 sums:
 * the number of additions times 2^-24, times the sum of the terms' sizes. */
#include "tests/aid_norm.h"
#include "tests/aid_ops.h"

#include "base/mem.h"

#include <math.h>

/* ---------------------------------------------------------------- weights, linear, embed */

/* Rows come in any of three dtypes, from an odd address, in pieces; embed gives them back. */
static void check_loading(struct bed *b, enum dtype from) {
    enum { N = 21, K = 19 };
    float want[N * K];
    char raw[1 + N * K * 4];
    for (int i = 0; i < N * K; i++) {
        want[i] = rounded(bed_random(b), from);
        uint16_t h = from == DTYPE_F16 ? f16_from_f32(want[i]) : bf16_from_f32(want[i]);
        if (from == DTYPE_F32) memcpy(raw + 1 + i * 4, &want[i], 4);
        else memcpy(raw + 1 + i * 2, &h, 2);
    }
    struct weight *w = weight_new(b->dev, N, K, b->dtype);
    struct tensor first = tensor_2d(raw + 1, from, 5, K);
    struct tensor rest = tensor_2d(raw + 1 + 5 * K * dtype_bytes(from), from, N - 5, K);
    weight_load(b->dev, w, 5, &rest);
    weight_load(b->dev, w, 0, &first);

    static struct bed_step s;
    int32_t last_sample[] = {3, 17, -1, 0};
    struct tensor on_device = tensor_1d(last_sample, DTYPE_I32, 4);
    struct tensor last = bed_tensor(b, DTYPE_I32, 4, 1, NULL);
    dev_upload(b->dev, last.data, last_sample, tensor_bytes(&on_device));
    step_set_last_sample(b->dev, last.data);
    step_begin(&s, 1);
    for (int i = 0; i < N; i++) step_add(&s, i % BED_SLOTS, 0, 1);
    for (int i = 0; i < N; i++) s.token[i] = N - 1 - i;
    s.token[4] = ~1;
    s.token[5] = ~2; /* that draw failed: any row will do, nobody reads it */
    struct tensor out = bed_tensor(b, b->dtype, N, K, NULL);
    static const float scales[] = {1.0f, 5.75f}; /* the second as Gemma's: a number that bf16 holds */
    for (int i = 0; i < 2; i++) {
        op_embed(b->dev, &out, w, scales[i], step_upload(b->dev, &s.step));
        float *got = bed_get(b, &out);
        for (int r = 0; r < N; r++)
            for (int k = 0; k < K && r != 5; k++) {
                float x = rounded(want[(r == 4 ? 17 : N - 1 - r) * K + k], b->dtype);
                assert_true(got[r * K + k] == rounded(scales[i] * x, b->dtype));
            }
    }
    weight_free(b->dev, w);
}

static void loading(struct bed *b) {
    check_loading(b, DTYPE_F32);
    check_loading(b, DTYPE_F16);
    check_loading(b, DTYPE_BF16);
}

static void weights_of_any_dtype_come_back_from_embed(void **state) {
    each_bed(loading);
}

static void check_linear(struct bed *b, int m, int n, int k, enum dtype w_dtype, enum dtype y_dtype) {
    float *w_host, *bias;
    struct weight *w = bed_weight(b, n, k, w_dtype, &w_host, &bias); /* the bias stays pending */
    struct tensor x = bed_random_tensor(b, b->dtype, m, k, 1);
    struct tensor room = bed_random_tensor(b, y_dtype, m + 1, n, 1);
    float *before = bed_get(b, &room), *xs = bed_get(b, &x);
    struct activation in = {.x = x};
    struct product y = {.y = rows_from(&room, 0, m)};
    op_linear(b->dev, &y, &in, w);
    assert_ptr_equal(y.weight, w);
    float *got = bed_get(b, &room);
    for (int r = 0; r < m; r++)
        for (int c = 0; c < n; c++) {
            double sum = 0, size = 0;
            for (int i = 0; i < k; i++) {
                double term = (double)xs[r * k + i] * (double)w_host[c * k + i];
                sum += term;
                size += fabs(term);
            }
            assert_near(b, got[r * n + c], sum, size * k * 0x1p-24, y_dtype, "linear", r, c);
        }
    for (int c = 0; c < n; c++) assert_true(got[m * n + c] == before[m * n + c]); /* nothing beyond */
}

static void linear(struct bed *b) {
    static const int shapes[][3] = {{1, 1, 1},    {2, 17, 33},  {3, 48, 7},    {4, 16, 64},  {5, 33, 100},
                                    {6, 64, 256}, {7, 100, 31}, {13, 131, 67}, {29, 80, 48}, {64, 40, 96}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        const int *s = shapes[i];
        check_linear(b, s[0], s[1], s[2], b->dtype, b->dtype);
        check_linear(b, s[0], s[1], s[2], b->dtype, DTYPE_F32); /* logits */
    }
    check_linear(b, 9, 45, 50, b->dtype == DTYPE_F32 ? DTYPE_BF16 : b->dtype, b->dtype);
}

static void linear_is_the_matrix_product(void **state) {
    each_bed(linear);
}

static void check_linear_bits(struct bed *b, int n, int k) {
    static const int counts[] = {1, 2, 3, 4, 5, 7, 16, 64, 199};
    float *ignored;
    struct weight *w = bed_weight(b, n, k, b->dtype, &ignored, NULL);
    struct tensor x = bed_random_tensor(b, b->dtype, 200, k, 1);
    assert_alone_as_together(b, w, &x, counts, sizeof counts / sizeof *counts);
}

static void linear_bits(struct bed *b) {
    check_linear_bits(b, 37, 50);
    check_linear_bits(b, 208, 64);
}

static void linear_does_not_see_other_rows(void **state) {
    each_bed(linear_bits);
}

/* Whichever way is the quickest, the numbers stay what they were. */
static void check_tuning(struct bed *b, int m, int n, int k) {
    float *ignored;
    struct weight *w = bed_weight(b, n, k, b->dtype, &ignored, NULL);
    struct activation x = {.x = bed_random_tensor(b, b->dtype, m, k, 2)};
    struct product y = {.y = bed_tensor(b, b->dtype, m, n, NULL)};
    struct linear_tuning t;
    op_linear(b->dev, &y, &x, w);
    float *before = bed_get(b, &y.y);
    op_linear_tune(b->dev, &y, &x, w, &t);
    float *during = bed_get(b, &y.y);
    op_linear(b->dev, &y, &x, w);
    float *after = bed_get(b, &y.y);
    assert_memory_equal(during, before, (size_t)m * (size_t)n * sizeof *before);
    assert_memory_equal(after, before, (size_t)m * (size_t)n * sizeof *before);
    assert_ptr_equal(y.weight, w);
    assert_true(t.most_rows >= m);
    if (strcmp(dev_kind(b->dev), "cpu") == 0 || b->dtype == DTYPE_F32) assert_int_equal(t.n_candidates, 0);
    if (t.n_candidates == 0) return;
    assert_true(t.n_right >= 1 && t.n_right <= t.n_candidates);
    assert_true(t.best_ns > 0 && t.best_ns <= t.first_ns && *t.algorithm);
}

static void tuning(struct bed *b) {
    check_tuning(b, 3, 64, 64);
    check_tuning(b, 200, 208, 64);
    check_tuning(b, 130, 37, 50);
}

static void tuning_changes_no_number(void **state) {
    each_bed(tuning);
}

/* ---------------------------------------------------------------- norm, gate, gather */

enum added { NOTHING, ONE, TWO, NORMED }; /* to the residual stream */

static void check_norm(struct bed *b, enum norm_kind kind, int m, int n, enum added added, bool has_bias) {
    struct random_norm norm = norm_new(b, kind, n, kind == NORM_LAYER && has_bias);
    struct random_norm post = norm_new(b, kind, n, kind == NORM_LAYER && has_bias);
    float *ignored, *bias = NULL, *xs[2];
    struct weight *weight = bed_weight(b, n, 1, b->dtype, &ignored, has_bias ? &bias : NULL);
    struct product y = {.y = bed_random_tensor(b, b->dtype, m, n, 2), .weight = weight};
    struct product z = {.y = bed_random_tensor(b, b->dtype, m, n, 2), .weight = weight};
    struct tensor residual = bed_random_tensor(b, b->dtype, m, n, 3);
    struct activation out = {.x = bed_tensor(b, b->dtype, m, n, NULL)};
    struct addend add = {.y = added != NOTHING ? &y : NULL, .z = added == TWO ? &z : NULL,
                         .post = added == NORMED ? &post.norm : NULL};
    float *rs = bed_get(b, &residual), *biased = bed_floats(b, n);
    double *want = mem_zalloc((size_t)n, sizeof *want);
    xs[0] = bed_get(b, &y.y);
    xs[1] = bed_get(b, &z.y);
    op_residual_norm(b->dev, &out, &residual, added != NOTHING ? &add : NULL, &norm.norm);
    float *got = bed_get(b, &out.x), *stream = bed_get(b, &residual);
    for (int r = 0; r < m; r++) {
        for (int c = 0; c < n; c++) {
            biased[c] = 0;
            for (int i = 0; i < (added == TWO ? 2 : added != NOTHING); i++) {
                float v = rounded(xs[i][r * n + c] + (bias ? bias[c] : 0), b->dtype);
                biased[c] = rounded(biased[c] + v, b->dtype);
            }
        }
        naive_norm(want, biased, &post);
        double biased_size = size_of(biased, n);
        for (int c = 0; c < n; c++) {
            double slack = 0, plus = (double)biased[c];
            if (added == NORMED) {
                plus = want[c];
                slack = norm_slack(b, &post, plus, biased_size, c);
                if (b->dtype != DTYPE_F32) slack += fabs(plus) * 0x1p-8; /* is rounded before it is added */
            }
            double sum = (double)rs[r * n + c] + plus;
            slack += (fabs(sum) + fabs(plus)) * 0x1p-22;
            assert_near(b, stream[r * n + c], sum, slack, b->dtype, "residual", r, c);
        }
        const float *row = stream + r * n;
        double row_size = size_of(row, n);
        naive_norm(want, row, &norm);
        for (int c = 0; c < n; c++) {
            double slack = norm_slack(b, &norm, want[c], row_size, c);
            if (kind == NORM_LAYER && n == 1) slack = 1; /* a row of one number has no deviation */
            assert_near(b, got[r * n + c], want[c], slack, b->dtype, "norm", r, c);
        }
    }
    free(want);
}

static void norm(struct bed *b) {
    static const int widths[] = {1, 7, 8, 48, 259};
    static const enum norm_kind kinds[] = {NORM_RMS, NORM_RMS_ONE_PLUS, NORM_LAYER};
    for (size_t i = 0; i < sizeof widths / sizeof *widths; i++)
        for (int k = 0; k < 3; k++) {
            check_norm(b, kinds[k], 5, widths[i], NOTHING, false);
            check_norm(b, kinds[k], 5, widths[i], ONE, false);
            check_norm(b, kinds[k], 1, widths[i], ONE, true);
            check_norm(b, kinds[k], 3, widths[i], TWO, true);
            check_norm(b, kinds[k], 2, widths[i], TWO, false);
            if (widths[i] > 1) check_norm(b, kinds[k], 3, widths[i], NORMED, true);
        }
    if (test_is_quick()) return;
    for (int k = 0; k < 3; k++) { /* more than a GPU's block keeps in registers */
        check_norm(b, kinds[k], 2, 9001, TWO, true);
        check_norm(b, kinds[k], 2, 9008, NORMED, true);
    }
}

static void residual_norm_adds_then_norms(void **state) {
    each_bed(norm);
}

/* As the papers define them. */
static double naive_act(enum act act, double x) {
    if (act == ACT_SILU) return x / (1 + exp(-x));
    if (act == ACT_GELU) return 0.5 * x * erfc(-x * sqrt(0.5));
    return 0.5 * x * (1 + tanh(sqrt(2 / 3.14159265358979324) * (x + 0.044715 * x * x * x)));
}

/* Of an activation function: relative in silu, which is quick to fall; else of the size of x,
 * for 1 + erf and 1 + tanh cancel. */
static double act_slack(enum act act, double x, double want) {
    return fabs(want) * 2e-6 + (act == ACT_SILU ? 1e-30 : fabs(x) * 3e-7);
}

static const enum act acts[] = {ACT_SILU, ACT_GELU, ACT_GELU_TANH};

static void check_glu(struct bed *b, enum act act, int m, int n, bool has_bias, float range) {
    float *ignored, *bias = NULL;
    struct weight *w = bed_weight(b, 2 * n, 1, b->dtype, &ignored, has_bias ? &bias : NULL);
    struct product in = {.y = bed_random_tensor(b, b->dtype, m, 2 * n, range), .weight = w};
    struct activation out = {.x = bed_tensor(b, b->dtype, m, n, NULL)};
    op_glu(b->dev, &out, &in, act);
    float *got = bed_get(b, &out.x), *xs = bed_get(b, &in.y);
    for (int r = 0; r < m; r++)
        for (int c = 0; c < n; c++) {
            const float *row = xs + r * 2 * n;
            float gate = rounded(row[c] + (bias ? bias[c] : 0), b->dtype);
            float up = rounded(row[n + c] + (bias ? bias[n + c] : 0), b->dtype);
            double s = naive_act(act, (double)gate), slack = act_slack(act, (double)gate, s);
            if (b->dtype != DTYPE_F32) slack += fabs(s) * 0x1p-8; /* is rounded too */
            if (b->dtype == DTYPE_F16) slack += 0x1p-25; /* to a multiple of 2^-24 */
            assert_near(b, got[r * n + c], s * (double)up, slack * fabs((double)up), b->dtype, "glu", r, c);
        }
}

static void check_act(struct bed *b, enum act act, int m, int n, bool has_bias, float range) {
    float *ignored, *bias = NULL;
    struct weight *w = bed_weight(b, n, 1, b->dtype, &ignored, has_bias ? &bias : NULL);
    struct product in = {.y = bed_random_tensor(b, b->dtype, m, n, range), .weight = w};
    struct activation out = {.x = bed_tensor(b, b->dtype, m, n, NULL)};
    op_act(b->dev, &out, &in, act);
    float *got = bed_get(b, &out.x), *xs = bed_get(b, &in.y);
    for (int r = 0; r < m; r++)
        for (int c = 0; c < n; c++) {
            double x = (double)rounded(xs[r * n + c] + (bias ? bias[c] : 0), b->dtype), want = naive_act(act, x);
            assert_near(b, got[r * n + c], want, act_slack(act, x, want), b->dtype, "act", r, c);
        }
}

static void activations(struct bed *b) {
    static const int widths[] = {1, 8, 27, 96};
    float far = b->dtype == DTYPE_F16 ? 200 : 500; /* e^-gate beyond what f32 holds, far * far within fp16 */
    for (int a = 0; a < 3; a++) {
        for (size_t i = 0; i < sizeof widths / sizeof *widths; i++) {
            check_glu(b, acts[a], 4, widths[i], false, 4);
            check_glu(b, acts[a], 3, widths[i], true, 60);
            check_act(b, acts[a], 4, widths[i], false, 4);
            check_act(b, acts[a], 3, widths[i], true, 60);
        }
        check_glu(b, acts[a], 2, 50, false, far);
        check_act(b, acts[a], 2, 50, false, far);
    }
}

static void glu_and_act_are_the_activation_functions(void **state) {
    each_bed(activations);
}

static void check_logits(struct bed *b, int m, int n, bool has_bias, float cap) {
    float *ignored, *bias = NULL;
    struct weight *w = bed_weight(b, n, 1, b->dtype, &ignored, has_bias ? &bias : NULL);
    struct product logits = {.y = bed_random_tensor(b, DTYPE_F32, m, n, 80), .weight = w};
    float *before = bed_get(b, &logits.y);
    op_logits_finish(b->dev, &logits, cap);
    assert_null(logits.weight);
    float *got = bed_get(b, &logits.y);
    for (int r = 0; r < m; r++)
        for (int c = 0; c < n; c++) {
            double want = (double)(before[r * n + c] + (bias ? bias[c] : 0));
            if (cap > 0) want = (double)cap * tanh(want / (double)cap);
            assert_near(b, got[r * n + c], want, cap > 0 ? (double)cap * 4e-7 : 0, DTYPE_F32, "logits", r, c);
        }
}

static void logits(struct bed *b) {
    check_logits(b, 3, 77, true, 0);
    check_logits(b, 2, 64, false, 30);
    check_logits(b, 5, 131, true, 0.5f);
    check_logits(b, 1, 8, false, 0);
}

static void logits_finish_adds_the_bias_and_caps(void **state) {
    each_bed(logits);
}

static void gather(struct bed *b) {
    enum { M = 9, N = 11, WANTED = 4 };
    struct step_sample samples[WANTED] = {{.row = 0}, {.row = 3}, {.row = 4}, {.row = 8}};
    struct step step = {.n_rows = M, .n_samples = WANTED, .samples = samples};
    struct activation x = {.x = bed_random_tensor(b, b->dtype, M, N, 1)};
    struct activation out = {.x = bed_tensor(b, b->dtype, WANTED, N, NULL)};
    op_gather(b->dev, &out, &x, step_upload(b->dev, &step));
    float *got = bed_get(b, &out.x), *xs = bed_get(b, &x.x);
    for (int s = 0; s < WANTED; s++)
        assert_memory_equal(got + s * N, xs + samples[s].row * N, N * sizeof *xs);
}

static void gather_takes_the_rows_that_want_logits(void **state) {
    each_bed(gather);
}

/* Rows by themselves and rows together: the same bits. */
static void check_row_bits(struct bed *b, enum norm_kind kind, enum act act) {
    enum { M = 200, N = 93 }; /* enough work for two threads */
    struct norm norm = norm_new(b, kind, N, kind == NORM_LAYER).norm;
    struct tensor residual = bed_random_tensor(b, b->dtype, M, N, 3);
    struct tensor again = bed_tensor(b, b->dtype, M, N, bed_get(b, &residual));
    struct product y = {.y = bed_random_tensor(b, b->dtype, M, N, 1)};
    struct product gates = {.y = bed_random_tensor(b, b->dtype, M, 2 * N, 4)};
    struct activation normed = {.x = bed_tensor(b, b->dtype, M, N, NULL)}, gated = normed, active = normed;
    gated.x = bed_tensor(b, b->dtype, M, N, NULL);
    active.x = bed_tensor(b, b->dtype, M, N, NULL);
    op_residual_norm(b->dev, &normed, &residual, &(struct addend){.y = &y}, &norm);
    op_glu(b->dev, &gated, &gates, act);
    op_act(b->dev, &active, &y, act);
    float *norm_all = bed_get(b, &normed.x), *glu_all = bed_get(b, &gated.x), *stream = bed_get(b, &residual);
    float *act_all = bed_get(b, &active.x);
    for (int r = 0; r < M; r++) {
        struct tensor one_residual = rows_from(&again, r, 1);
        struct product one_y = {.y = rows_from(&y.y, r, 1)}, one_gate = {.y = rows_from(&gates.y, r, 1)};
        struct activation out = {.x = bed_tensor(b, b->dtype, 1, N, NULL)};
        op_residual_norm(b->dev, &out, &one_residual, &(struct addend){.y = &one_y}, &norm);
        assert_memory_equal(bed_get(b, &out.x), norm_all + r * N, N * sizeof(float));
        assert_memory_equal(bed_get(b, &one_residual), stream + r * N, N * sizeof(float));
        op_glu(b->dev, &out, &one_gate, act);
        assert_memory_equal(bed_get(b, &out.x), glu_all + r * N, N * sizeof(float));
        op_act(b->dev, &out, &one_y, act);
        assert_memory_equal(bed_get(b, &out.x), act_all + r * N, N * sizeof(float));
    }
}

static void row_bits(struct bed *b) {
    check_row_bits(b, NORM_RMS, ACT_SILU);
    check_row_bits(b, NORM_RMS_ONE_PLUS, ACT_GELU_TANH);
    check_row_bits(b, NORM_LAYER, ACT_GELU);
}

static void norm_and_act_do_not_see_other_rows(void **state) {
    each_bed(row_bits);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(weights_of_any_dtype_come_back_from_embed),
    cmocka_unit_test(linear_is_the_matrix_product),
    cmocka_unit_test(linear_does_not_see_other_rows),
    cmocka_unit_test(tuning_changes_no_number),
    cmocka_unit_test(residual_norm_adds_then_norms),
    cmocka_unit_test(glu_and_act_are_the_activation_functions),
    cmocka_unit_test(logits_finish_adds_the_bias_and_caps),
    cmocka_unit_test(gather_takes_the_rows_that_want_logits),
    cmocka_unit_test(norm_and_act_do_not_see_other_rows),
};
UNIT_MAIN(tests)
