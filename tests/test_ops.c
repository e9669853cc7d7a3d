/* test_ops.c - every operation against a plain reference in double precision, and batch
 * invariance: a row's bits are the same whatever else is in the step.
 *
 * Each case runs on every instruction set of this machine, in both compute dtypes, with
 * one thread and with two, whose bits must agree (aid_ops.h). op_sample and op_moe_experts
 * have files of their own. Slacks are bounds on f32 sums: the number of additions times
 * 2^-24, times the sum of the terms' sizes. */
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

/* Any run of m rows gives what the same rows give among 200. */
static void check_linear_bits(struct bed *b, int n, int k) {
    enum { ALL = 200 };
    static const int counts[] = {1, 2, 3, 4, 5, 7, 16, 64, 199};
    float *ignored;
    struct weight *w = bed_weight(b, n, k, b->dtype, &ignored, NULL);
    struct activation x = {.x = bed_random_tensor(b, b->dtype, ALL, k, 1)};
    struct product all = {.y = bed_tensor(b, b->dtype, ALL, n, NULL)};
    op_linear(b->dev, &all, &x, w);
    float *want = bed_get(b, &all.y);
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        int m = counts[i], at[] = {0, 1, ALL / 2 + 1, ALL - m};
        for (size_t j = 0; j < 4; j++) {
            if (at[j] + m > ALL) continue;
            struct activation some = {.x = rows_from(&x.x, at[j], m)};
            struct product y = {.y = bed_tensor(b, b->dtype, m, n, NULL)};
            op_linear(b->dev, &y, &some, w);
            assert_memory_equal(bed_get(b, &y.y), want + at[j] * n, (size_t)(m * n) * sizeof *want);
        }
    }
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

/* What of a norm is to be expected, in double precision, from the numbers of a row. */
static void naive_norm(double *out, const float *x, const struct norm *norm, const float *w, const float *bias, int n) {
    double mean = 0, squares = 0;
    for (int i = 0; i < n; i++) mean += norm->kind == NORM_LAYER ? (double)x[i] / n : 0;
    for (int i = 0; i < n; i++) squares += ((double)x[i] - mean) * ((double)x[i] - mean);
    double scale = 1 / sqrt(squares / n + (double)norm->eps);
    for (int i = 0; i < n; i++) {
        double weight = norm->kind == NORM_RMS_ONE_PLUS ? 1 + (double)w[i] : (double)w[i];
        out[i] = ((double)x[i] - mean) * scale * weight + (bias ? (double)bias[i] : 0);
    }
}

/* How far from it a result may be. Near a mean that is much larger than the deviation a
 * difference keeps fewer bits: hence `size`, the row's largest number. */
static double norm_slack(const struct bed *b, const struct norm *norm, double want, double bias, double w, double size,
                         int n) {
    if (norm->kind == NORM_RMS && b->dtype != DTYPE_F32) return fabs(want) * 0x1p-8; /* rounded twice */
    double center = norm->kind == NORM_LAYER ? size * fabs(w) : 0;
    return (fabs(want) + fabs(bias) + center) * (n + 8) * 0x1p-23;
}

struct random_norm {
    struct norm norm;
    float *w, *bias; /* on the host; bias NULL = none */
};

static struct random_norm norm_new(struct bed *b, enum norm_kind kind, int n, bool has_bias) {
    struct random_norm r = {.norm = {.kind = kind, .eps = 1e-5f}, .w = bed_floats(b, n)};
    for (int i = 0; i < n; i++) r.w[i] = (kind != NORM_RMS_ONE_PLUS) + bed_random(b);
    r.norm.weight = bed_tensor(b, DTYPE_F32, n, 1, r.w);
    if (!has_bias) return r;
    r.bias = bed_floats(b, n);
    for (int i = 0; i < n; i++) r.bias[i] = bed_random(b);
    r.norm.bias = bed_tensor(b, DTYPE_F32, n, 1, r.bias);
    return r;
}

enum added { NOTHING, ONE, TWO, NORMED }; /* to the residual stream */

static double size_of(const float *x, int n) {
    double most = 0;
    for (int i = 0; i < n; i++) most = fmax(most, fabs((double)x[i]));
    return most;
}

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
        naive_norm(want, biased, &post.norm, post.w, post.bias, n);
        for (int c = 0; c < n; c++) {
            double slack = 0, plus = (double)biased[c];
            if (added == NORMED) {
                plus = want[c];
                slack = norm_slack(b, &post.norm, plus, post.bias ? (double)post.bias[c] : 0, (double)post.w[c],
                                   size_of(biased, n), n);
                if (b->dtype != DTYPE_F32) slack += fabs(plus) * 0x1p-8; /* is rounded before it is added */
            }
            double sum = (double)rs[r * n + c] + plus;
            slack += (fabs(sum) + fabs(plus)) * 0x1p-22;
            assert_near(b, stream[r * n + c], sum, slack, b->dtype, "residual", r, c);
        }
        const float *row = stream + r * n;
        naive_norm(want, row, &norm.norm, norm.w, norm.bias, n);
        for (int c = 0; c < n; c++) {
            double slack = norm_slack(b, &norm.norm, want[c], norm.bias ? (double)norm.bias[c] : 0, (double)norm.w[c],
                                      size_of(row, n), n);
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

/* ---------------------------------------------------------------- KV cache and attention */

struct heads { /* one layer's cache in the middle of three, and what reads and writes it */
    struct attention_shape shape;
    struct kv_cache *kv;
    struct rope rope;
    float inv_freq[128];
};

static void heads_open(struct bed *b, struct heads *h, struct attention_shape shape, int32_t n_rotated,
                       enum dtype kv_dtype) {
    struct err err = {0};
    *h = (struct heads){.shape = shape};
    for (int i = 0; i < n_rotated / 2; i++) h->inv_freq[i] = powf(100.0f, -2.0f * (float)i / (float)n_rotated);
    assert_ok(kv_cache_open(&h->kv, b->dev, kv_dtype, 3, BED_BLOCKS, shape.n_kv_heads, shape.head_dim, &err), &err);
    assert_ok(rope_open(&h->rope, b->dev, h->inv_freq, n_rotated, BED_STRIDE * KV_BLOCK, 1.0f, &err), &err);
}

static void heads_close(struct bed *b, struct heads *h) {
    kv_cache_close(b->dev, h->kv);
    rope_close(b->dev, &h->rope);
}

/* A layer's slab as [blocks * 2 * kv_heads * KV_BLOCK][head_dim]. */
static struct tensor slab_of(const struct heads *h, int layer) {
    int64_t rows = (int64_t)BED_BLOCKS * 2 * h->shape.n_kv_heads * KV_BLOCK;
    return tensor_2d(h->kv->slab[layer], h->kv->dtype, rows, h->shape.head_dim);
}

static size_t fp8_tile_bytes(const struct heads *h) {
    return (size_t)KV_BLOCK * ((size_t)h->shape.head_dim + sizeof(float));
}

/* An fp8 slab's tiles from rows of numbers, a key or value each. */
static void put_fp8(struct bed *b, const struct heads *h, const struct tensor *slab, const float *numbers) {
    size_t n_tiles = (size_t)slab->shape[0] / KV_BLOCK, bytes = fp8_tile_bytes(h), hd = (size_t)h->shape.head_dim;
    uint8_t *tiles = mem_zalloc(n_tiles, bytes);
    for (size_t i = 0; i < n_tiles * KV_BLOCK; i++) {
        uint8_t *tile = tiles + i / KV_BLOCK * bytes;
        float scale = quant_fp8(tile + i % KV_BLOCK * hd, numbers + i * hd, (int64_t)hd);
        if (isnan(numbers[i * hd])) scale = NAN;
        memcpy(tile + KV_BLOCK * hd + i % KV_BLOCK * 4, &scale, 4);
    }
    dev_upload(b->dev, slab->data, tiles, n_tiles * bytes);
    free(tiles);
}

static float *get_fp8(struct bed *b, const struct heads *h, const struct tensor *slab) {
    size_t n_tiles = (size_t)slab->shape[0] / KV_BLOCK, bytes = fp8_tile_bytes(h), hd = (size_t)h->shape.head_dim;
    uint8_t *tiles = mem_zalloc(n_tiles, bytes);
    float *numbers = bed_floats(b, slab->shape[0] * slab->shape[1]), scale;
    dev_download(b->dev, tiles, slab->data, n_tiles * bytes);
    for (size_t i = 0; i < n_tiles * KV_BLOCK; i++) {
        const uint8_t *tile = tiles + i / KV_BLOCK * bytes;
        memcpy(&scale, tile + KV_BLOCK * hd + i % KV_BLOCK * 4, 4);
        for (size_t d = 0; d < hd; d++) numbers[i * hd + d] = fp8_to_f32(tile[i % KV_BLOCK * hd + d]) * scale;
    }
    free(tiles);
    return numbers;
}

/* What a layer's slab holds, a key or value a row. */
static float *cache_of(struct bed *b, const struct heads *h, int layer) {
    struct tensor slab = slab_of(h, layer);
    return h->kv->dtype == DTYPE_F8_E4M3 ? get_fp8(b, h, &slab) : bed_get(b, &slab);
}

/* Which row of it holds a position's key (which = 0) or value (1). */
static int64_t slab_row(const struct heads *h, const struct bed_step *s, int32_t slot, int32_t position, int which,
                        int32_t kv_head) {
    int64_t block = s->table[slot * BED_STRIDE + position / KV_BLOCK];
    return ((block * 2 + which) * h->shape.n_kv_heads + kv_head) * KV_BLOCK + position % KV_BLOCK;
}

/* One head: bias, clip, norm over the head (q and k), rotation (q and k). */
static void check_qkv_head(struct bed *b, const struct heads *h, const struct head_rules *rules,
                           const struct random_norm *norm, const float *in, const float *bias, const float *got,
                           int32_t position, bool turns, bool is_fp8, int64_t row) {
    int32_t half = turns ? rules->rope->n_rotated / 2 : 0, hd = h->shape.head_dim;
    float x[256];
    double ready[256], off[256];
    for (int32_t i = 0; i < hd; i++) {
        x[i] = rounded(in[i] + (bias ? bias[i] : 0), b->dtype);
        if (rules->clip > 0) x[i] = rounded(fminf(fmaxf(x[i], -rules->clip), rules->clip), b->dtype);
        ready[i] = (double)x[i];
        off[i] = 0;
    }
    if (norm && turns) {
        naive_norm(ready, x, &norm->norm, norm->w, norm->bias, hd);
        for (int32_t i = 0; i < hd; i++) {
            off[i] = norm_slack(b, &norm->norm, ready[i], norm->bias ? (double)norm->bias[i] : 0, (double)norm->w[i],
                                size_of(x, hd), hd);
            if (b->dtype != DTYPE_F32) off[i] += fabs(ready[i]) * 0x1p-8;
        }
    }
    double want[256], slack[256], most = 0, most_got = 0, most_slack = 0;
    for (int32_t i = 0; i < hd; i++) {
        want[i] = ready[i];
        slack[i] = off[i];
        if (i < 2 * half) {
            int32_t pair = i < half ? i + half : i - half;
            double angle = (double)((float)position * h->inv_freq[i % half]);
            want[i] = ready[i] * cos(angle) + (i < half ? -ready[pair] : ready[pair]) * sin(angle);
            slack[i] += off[pair] + (fabs(ready[i]) + fabs(ready[pair])) * 0x1p-21;
        }
        most = fmax(most, fabs(want[i]));
        most_got = fmax(most_got, fabs((double)got[i]));
        most_slack = fmax(most_slack, slack[i]);
    }
    if (is_fp8) assert_near(b, most_got, most, most_slack + most * 0x1p-20, b->dtype, "448", row, 0);
    for (int32_t i = 0; i < hd; i++) { /* half a step: of four bits; below the normal numbers of 2^-9 */
        if (is_fp8) slack[i] += fmax(fabs(want[i]) * 0x1.04p-4, most / 448 * 0x1.04p-10);
        assert_near(b, got[i], want[i], slack[i], b->dtype, is_fp8 ? "k or v in fp8" : "q, k or v", row, i);
    }
}

struct qkv_case {
    int32_t n_heads, n_kv_heads, head_dim, n_rotated;
    bool has_bias;
    float clip;
    bool has_norm;
    enum norm_kind norm;
};

static void check_qkv(struct bed *b, const struct qkv_case *c, enum dtype kv_dtype) {
    static struct bed_step s;
    struct attention_shape shape = {.n_heads = c->n_heads, .n_kv_heads = c->n_kv_heads, .head_dim = c->head_dim};
    struct heads h;
    heads_open(b, &h, shape, c->n_rotated, kv_dtype);
    step_begin(&s, 5);
    step_add(&s, 2, 30, 5); /* across a block's end */
    step_add(&s, 0, 0, 1);
    step_add(&s, 3, 1200, 3);
    int32_t hd = shape.head_dim, n_kv = shape.n_kv_heads, m = s.step.n_rows;
    int32_t q_width = shape.n_heads * hd, width = q_width + 2 * n_kv * hd;
    float *ignored, *bias = NULL;
    struct weight *w = bed_weight(b, width, 1, b->dtype, &ignored, c->has_bias ? &bias : NULL);
    struct random_norm norms[2] = {norm_new(b, c->norm, hd, c->norm == NORM_LAYER),
                                   norm_new(b, c->norm, hd, c->norm == NORM_LAYER)};
    struct head_rules rules = {.clip = c->clip, .rope = &h.rope};
    if (c->has_norm) rules.q_norm = &norms[0].norm;
    if (c->has_norm) rules.k_norm = &norms[1].norm;
    struct product qkv = {.y = bed_random_tensor(b, b->dtype, m, width, 2), .weight = w};
    struct tensor q = bed_tensor(b, b->dtype, m, q_width, NULL);
    op_qkv_finish(b->dev, &q, h.kv, 1, &qkv, &shape, &rules, step_upload(b->dev, &s.step));
    bool is_fp8 = kv_dtype == DTYPE_F8_E4M3;
    float *in = bed_get(b, &qkv.y), *qs = bed_get(b, &q), *cache = cache_of(b, &h, 1);
    for (int32_t r = 0; r < m; r++)
        for (int32_t i = 0; i < shape.n_heads + 2 * n_kv; i++) {
            int32_t kv_head = i - shape.n_heads, which = kv_head >= n_kv;
            const float *got = qs + r * q_width + i * hd;
            if (kv_head >= 0) got = cache + slab_row(&h, &s, s.slot[r], s.position[r], which, kv_head % n_kv) * hd;
            check_qkv_head(b, &h, &rules, c->has_norm ? &norms[kv_head >= 0] : NULL, in + r * width + i * hd,
                           bias ? bias + i * hd : NULL, got, s.position[r], kv_head < n_kv, is_fp8 && kv_head >= 0, r);
        }
    int64_t n_written = 0, n_numbers = slab_of(&h, 1).shape[0] * hd;
    for (int64_t i = 0; i < n_numbers; i++) n_written += cache[i] != 0;
    assert_true(n_written <= (int64_t)m * 2 * n_kv * hd); /* and nowhere else */
    float *untouched = cache_of(b, &h, 0);
    for (int64_t i = 0; i < n_numbers; i++) assert_true(untouched[i] == 0);
    heads_close(b, &h);
}

static void qkv(struct bed *b) {
    static const struct qkv_case cases[] = {
        {4, 2, 16, 16, .has_bias = false},
        {3, 3, 24, 24, .has_bias = true},
        {2, 1, 8, 4, .has_bias = true},
        {3, 3, 80, 32, .has_bias = true}, /* Phi-2 */
        {5, 1, 16, 0, .has_bias = false}, /* ALiBi */
        {3, 3, 16, 0, .clip = 0.75f},
        {4, 2, 64, 64, .has_norm = true, .norm = NORM_RMS},
        {4, 2, 24, 8, .has_bias = true, .has_norm = true, .norm = NORM_LAYER},
        {2, 1, 256, 256, .has_bias = true, .clip = 1.5f, .has_norm = true, .norm = NORM_RMS_ONE_PLUS},
        {8, 2, 128, 128, .has_bias = true},
        {1, 1, 256, 256, .has_bias = false},
        {2, 2, 40, 16, .has_bias = true},
        {5, 3, 112, 112, .has_bias = false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        check_qkv(b, &cases[i], b->dtype);
        check_qkv(b, &cases[i], DTYPE_F8_E4M3);
    }
}

static void qkv_finish_norms_and_turns_heads_and_fills_the_cache(void **state) {
    each_bed(qkv);
}

/* A score after its scale: soft cap, then ALiBi with the head's slope. */
static double naive_score(const struct attention_shape *shape, double score, double slope, int32_t key,
                          int32_t position) {
    if (shape->softcap > 0) score = (double)shape->softcap * tanh(score / (double)shape->softcap);
    double far = slope * key - slope * position;
    if (shape->alibi_bf16)
        far = (double)rounded((float)(slope * key), DTYPE_BF16) - (double)rounded((float)(slope * position), DTYPE_BF16);
    return score + (double)shape->alibi_scale * far;
}

/* softmax(score(q, k)) v of one row and head, over keys the row sees. */
static void naive_attention(double *out, const struct heads *h, const struct bed_step *s, const float *q,
                            const float *cache, int32_t row, int32_t kv_head, double slope) {
    int32_t hd = h->shape.head_dim, position = s->position[row], first = 0;
    double score[BED_STRIDE * KV_BLOCK], most = -INFINITY, total = 0;
    if (h->shape.sliding_window && position >= h->shape.sliding_window) first = position - h->shape.sliding_window + 1;
    for (int32_t j = first; j <= position; j++) {
        const float *k = cache + slab_row(h, s, s->slot[row], j, 0, kv_head) * hd;
        score[j] = 0;
        for (int32_t d = 0; d < hd; d++) score[j] += (double)q[d] * (double)k[d];
        score[j] = naive_score(&h->shape, score[j] * (double)h->shape.scale, slope, j, position);
        most = fmax(most, score[j]);
    }
    for (int32_t d = 0; d < hd; d++) out[d] = 0;
    for (int32_t j = first; j <= position; j++) {
        const float *v = cache + slab_row(h, s, s->slot[row], j, 1, kv_head) * hd;
        double p = exp(score[j] - most);
        total += p;
        for (int32_t d = 0; d < hd; d++) out[d] += p * (double)v[d];
    }
    for (int32_t d = 0; d < hd; d++) out[d] /= total;
}

/* Random keys and values where a slot has positions [from, n); what no row sees is NaN. */
static void fill_cache(struct bed *b, const struct heads *h, const struct bed_step *s, const int32_t (*seen)[2]) {
    struct tensor slab = slab_of(h, 1);
    int32_t hd = h->shape.head_dim;
    float *numbers = bed_floats(b, slab.shape[0] * hd);
    for (int64_t i = 0; i < slab.shape[0] * hd; i++) numbers[i] = NAN;
    for (int32_t slot = 0; slot < BED_SLOTS; slot++)
        for (int32_t j = seen[slot][0]; j < seen[slot][1]; j++)
            for (int32_t i = 0; i < 2 * h->shape.n_kv_heads; i++)
                for (int32_t d = 0; d < hd; d++)
                    numbers[slab_row(h, s, slot, j, i % 2, i / 2) * hd + d] = bed_random(b);
    if (h->kv->dtype == DTYPE_F8_E4M3) {
        put_fp8(b, h, &slab, numbers);
        return;
    }
    struct tensor filled = bed_tensor(b, h->kv->dtype, slab.shape[0], hd, numbers);
    float *raw = bed_floats(b, slab.shape[0] * hd);
    dev_download(b->dev, raw, filled.data, tensor_bytes(&filled));
    dev_upload(b->dev, slab.data, raw, tensor_bytes(&filled));
}

/* Rows at the given positions, one in each slot, -1 = none; slot 3 has a run of five. */
static void check_attention_over(struct bed *b, enum dtype kv_dtype, struct attention_shape shape,
                                 const int32_t position[BED_SLOTS]) {
    static struct bed_step s;
    struct heads h;
    int32_t seen[BED_SLOTS][2] = {{0}}, hd = shape.head_dim, width = shape.n_heads * shape.head_dim;
    float *slopes = bed_floats(b, shape.n_heads);
    for (int32_t i = 0; i < shape.n_heads; i++) slopes[i] = rounded(exp2f(-1.5f * (float)i), DTYPE_BF16);
    if (shape.alibi_scale > 0) shape.alibi = bed_tensor(b, DTYPE_F32, shape.n_heads, 1, slopes).data;
    heads_open(b, &h, shape, hd, kv_dtype);
    step_begin(&s, 9);
    for (int32_t slot = 0; slot < BED_SLOTS; slot++) {
        if (position[slot] < 0) continue;
        int32_t n = slot == 3 ? 5 : 1, window = shape.sliding_window;
        step_add(&s, slot, position[slot], n);
        seen[slot][0] = window && position[slot] >= window ? position[slot] - window + 1 : 0;
        seen[slot][1] = position[slot] + n;
    }
    fill_cache(b, &h, &s, seen);
    struct tensor q = bed_random_tensor(b, b->dtype, s.step.n_rows, width, 4);
    struct activation out = {.x = bed_tensor(b, b->dtype, s.step.n_rows, width, NULL)};
    op_attention(b->dev, &out, &q, h.kv, 1, &shape, step_upload(b->dev, &s.step));
    float *qs = bed_get(b, &q), *got = bed_get(b, &out.x), *cache = cache_of(b, &h, 1);
    /* Tensor cores take the weights in bf16; values are below 1. */
    double slack = b->dtype != DTYPE_F32 && strcmp(dev_kind(b->dev), "cuda") == 0 ? 0x1p-9 : 1e-5;
    for (int32_t r = 0; r < s.step.n_rows; r++)
        for (int32_t i = 0; i < shape.n_heads; i++) {
            double want[256];
            int32_t at = r * width + i * hd;
            naive_attention(want, &h, &s, qs + at, cache, r, i / (shape.n_heads / shape.n_kv_heads), (double)slopes[i]);
            for (int32_t d = 0; d < hd; d++)
                assert_near(b, got[at + d], want[d], slack, b->dtype, "attention", r, i * hd + d);
        }
    heads_close(b, &h);
}

static void check_attention(struct bed *b, struct attention_shape shape, const int32_t position[BED_SLOTS]) {
    check_attention_over(b, b->dtype, shape, position);
}

static struct attention_shape shape_of(int32_t n_heads, int32_t n_kv_heads, int32_t head_dim, int32_t window) {
    return (struct attention_shape){.n_heads = n_heads, .n_kv_heads = n_kv_heads, .head_dim = head_dim,
                                    .scale = 1 / sqrtf((float)head_dim), .sliding_window = window};
}

static struct attention_shape capped(struct attention_shape shape, float softcap) {
    shape.scale *= 4; /* so that the cap is felt */
    shape.softcap = softcap;
    return shape;
}

static struct attention_shape with_alibi(struct attention_shape shape, float scale, bool in_bf16) {
    shape.alibi_scale = scale;
    shape.alibi_bf16 = in_bf16;
    return shape;
}

static void attention(struct bed *b) {
    static const int32_t begin[] = {0, 1, 31, 0}, tiles[] = {63, 64, 130, 60};
    static const int32_t splits[] = {511, 512, 1100, 1020}, far[] = {-1, -1, 700, 510};
    check_attention(b, shape_of(4, 2, 8, 0), begin);
    check_attention(b, shape_of(3, 1, 24, 0), tiles);
    check_attention(b, shape_of(2, 2, 32, 0), tiles);
    check_attention(b, shape_of(2, 1, 48, 20), tiles);
    check_attention(b, shape_of(1, 1, 64, 0), tiles);
    check_attention(b, shape_of(2, 1, 120, 3), begin);
    check_attention(b, shape_of(1, 1, 256, 0), begin);
    check_attention(b, shape_of(2, 1, 16, 0), splits);
    check_attention(b, shape_of(2, 1, 16, 100), far);
    check_attention(b, shape_of(1, 1, 16, 600), far);
    check_attention(b, shape_of(8, 2, 128, 0), tiles);
    check_attention(b, shape_of(8, 2, 64, 70), far);
    check_attention(b, shape_of(20, 1, 80, 0), tiles); /* more heads in a group than rows in a tile */
}

/* Sizes that have no kernel of their own on a GPU, and the widest. */
static void sizes(struct bed *b) {
    static const int32_t tiles[] = {63, 64, 130, 60}, far[] = {511, 512, 1100, 700};
    check_attention(b, shape_of(4, 2, 40, 0), tiles);
    check_attention(b, shape_of(3, 3, 72, 20), tiles);
    check_attention(b, shape_of(2, 1, 104, 0), tiles);
    check_attention(b, shape_of(2, 1, 136, 0), tiles);
    check_attention(b, shape_of(2, 2, 160, 70), tiles);
    check_attention(b, shape_of(3, 1, 192, 0), far);
    check_attention(b, shape_of(4, 1, 248, 0), tiles);
    check_attention(b, shape_of(20, 1, 256, 0), tiles);
    check_attention(b, shape_of(2, 2, 256, 600), far);
}

static void heads_of_any_size(void **state) {
    each_bed(sizes);
}

static void fp8_attention(struct bed *b) {
    static const int32_t tiles[] = {63, 64, 130, 60}, far[] = {511, 512, 1100, 700};
    const struct attention_shape shapes[] = {shape_of(4, 2, 8, 0),     shape_of(3, 1, 24, 20),  shape_of(2, 2, 40, 0),
                                             shape_of(8, 2, 64, 0),    shape_of(3, 1, 72, 0),   shape_of(2, 2, 80, 70),
                                             shape_of(2, 1, 96, 0),    shape_of(4, 4, 112, 20), shape_of(8, 2, 128, 0),
                                             shape_of(20, 1, 128, 70), shape_of(2, 1, 136, 0),  shape_of(2, 2, 160, 70),
                                             shape_of(3, 1, 192, 0),   shape_of(4, 1, 248, 0),  shape_of(2, 2, 256, 0)};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        check_attention_over(b, DTYPE_F8_E4M3, shapes[i], tiles);
    check_attention_over(b, DTYPE_F8_E4M3, shape_of(8, 2, 128, 0), far);
    check_attention_over(b, DTYPE_F8_E4M3, shape_of(2, 1, 256, 600), far);
    check_attention_over(b, DTYPE_F8_E4M3, capped(shape_of(2, 1, 256, 70), 2), tiles);
    check_attention_over(b, DTYPE_F8_E4M3, with_alibi(shape_of(7, 7, 64, 0), 1, false), far);
}

static void attention_reads_an_fp8_cache(void **state) {
    each_bed(fp8_attention);
}

static void scored_attention(struct bed *b) {
    static const int32_t begin[] = {0, 1, 31, 0}, tiles[] = {63, 64, 130, 60}, far[] = {511, 512, 1100, 700};
    check_attention(b, capped(shape_of(4, 2, 16, 0), 1.5f), begin);
    check_attention(b, capped(shape_of(2, 1, 256, 70), 2), tiles);
    check_attention(b, capped(shape_of(2, 1, 64, 0), 50), far);
    check_attention(b, with_alibi(shape_of(3, 3, 16, 0), 1, false), begin);
    check_attention(b, with_alibi(shape_of(7, 7, 64, 0), 1, false), far);
    check_attention(b, with_alibi(shape_of(5, 1, 32, 90), 1, false), tiles);
    check_attention(b, with_alibi(shape_of(3, 3, 64, 0), 0.125f, true), tiles);
    check_attention(b, with_alibi(shape_of(6, 6, 8, 0), 0.35f, true), far);
    check_attention(b, with_alibi(capped(shape_of(4, 2, 24, 40), 3), 1, false), tiles);
}

static void scores_are_capped_and_slope(void **state) {
    each_bed(scored_attention);
}

static void attention_is_softmax_over_the_keys_in_sight(void **state) {
    each_bed(attention);
}

/* How a prompt comes: `chunk` rows a step, from fine_from on one; in each step `guests` rows of
 * other sequences before and after it. */
struct pace {
    int chunk, fine_from, guests;
    uint64_t shuffle;
};

/* A prompt of N rows through qkv_finish and attention. */
static float *run_prompt(struct bed *b, struct attention_shape shape, enum dtype kv_dtype, const struct tensor *rows,
                         struct pace pace) {
    static struct bed_step s;
    struct heads h;
    int32_t n = (int32_t)rows->shape[0], width = shape.n_heads * shape.head_dim, guests = pace.guests;
    float *all = bed_floats(b, (int64_t)n * width);
    heads_open(b, &h, shape, shape.head_dim, kv_dtype);
    for (int32_t done = 0, size, until; done < n; done += size) {
        until = done < pace.fine_from ? pace.fine_from : n;
        size = pace.fine_from && done >= pace.fine_from ? 1 : pace.chunk;
        if (done + size > until) size = until - done;
        step_begin(&s, pace.shuffle);
        if (guests) step_add(&s, 0, done, guests);
        step_add(&s, 1, done, size);
        if (guests) step_add(&s, 2, 0, guests);
        int32_t t = s.step.n_rows;
        struct product qkv = {.y = bed_random_tensor(b, b->dtype, t, rows->shape[1], 2)};
        struct tensor mine = rows_from(rows, done, size), place = rows_from(&qkv.y, guests, size);
        float *raw = bed_floats(b, size * rows->shape[1]);
        dev_download(b->dev, raw, mine.data, tensor_bytes(&mine));
        dev_upload(b->dev, place.data, raw, tensor_bytes(&mine));
        struct tensor q = bed_tensor(b, b->dtype, t, width, NULL);
        struct activation out = {.x = bed_tensor(b, b->dtype, t, width, NULL)};
        const struct step *step = step_upload(b->dev, &s.step);
        op_qkv_finish(b->dev, &q, h.kv, 2, &qkv, &shape, &(struct head_rules){.rope = &h.rope}, step);
        op_attention(b->dev, &out, &q, h.kv, 2, &shape, step);
        struct tensor result = rows_from(&out.x, guests, size);
        memcpy(all + done * width, bed_get(b, &result), (size_t)(size * width) * sizeof *all);
    }
    heads_close(b, &h);
    return all;
}

/* Cut in any way, the same bits. */
static void check_bits(struct bed *b, struct attention_shape shape, enum dtype kv_dtype) {
    enum { N = 150 };
    static const int chunks[] = {1, 7, 16, 64};
    int32_t width = shape.n_heads * shape.head_dim;
    struct tensor rows = bed_random_tensor(b, b->dtype, N, width + 2 * shape.n_kv_heads * shape.head_dim, 2);
    float *want = run_prompt(b, shape, kv_dtype, &rows, (struct pace){N, 0, 0, 3});
    for (size_t c = 0; c < sizeof chunks / sizeof *chunks; c++) {
        float *got = run_prompt(b, shape, kv_dtype, &rows, (struct pace){chunks[c], 0, (int)c, 100 + c});
        assert_memory_equal(got, want, (size_t)(N * width) * sizeof *want);
    }
}

static void attention_bits(struct bed *b) {
    check_bits(b, shape_of(2, 1, 16, 0), b->dtype);
    check_bits(b, shape_of(2, 2, 32, 70), b->dtype);
    check_bits(b, shape_of(4, 1, 72, 0), b->dtype);
    check_bits(b, shape_of(2, 1, 256, 0), b->dtype);
    check_bits(b, shape_of(2, 1, 16, 0), DTYPE_F8_E4M3);
    check_bits(b, shape_of(4, 1, 80, 70), DTYPE_F8_E4M3);
    check_bits(b, shape_of(4, 1, 128, 0), DTYPE_F8_E4M3);
    check_bits(b, shape_of(1, 1, 256, 0), DTYPE_F8_E4M3);
}

static void chunks_neighbours_and_block_order_do_not_matter(void **state) {
    each_bed(attention_bits);
}

/* With so many heads a GPU has blocks enough to give each a warp, where the rows of a chunk share
 * a block of four: the same bits. */
static void check_crowd(struct bed *b, int32_t group, int32_t head_dim, enum dtype kv_dtype, int32_t n) {
    enum { CROWD = 88 }; /* times three sequences: two blocks and more for each multiprocessor */
    struct attention_shape shape = shape_of(group * CROWD, CROWD, head_dim, 0);
    int32_t width = shape.n_heads * head_dim;
    struct tensor rows = bed_random_tensor(b, b->dtype, n, width + 2 * CROWD * head_dim, 2);
    float *want = run_prompt(b, shape, kv_dtype, &rows, (struct pace){200, 0, 0, 3});
    float *got = run_prompt(b, shape, kv_dtype, &rows, (struct pace){200, n - 3, 1, 4});
    assert_memory_equal(got, want, (size_t)n * (size_t)width * sizeof *want);
}

static void crowds(struct bed *b) {
    if (strcmp(dev_kind(b->dev), "cuda") != 0) return; /* a CPU has one kernel */
    static const int32_t sizes[] = {40, 64, 80, 128, 160, 256};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        check_crowd(b, 1, sizes[i], b->dtype, 70);
        check_crowd(b, 2, sizes[i], DTYPE_F8_E4M3, 70);
    }
    check_crowd(b, 1, 64, b->dtype, 520);
    check_crowd(b, 1, 256, b->dtype, 520);
    check_crowd(b, 1, 128, DTYPE_F8_E4M3, 520);
}

static void blocks_of_one_warp_give_the_same_bits(void **state) {
    each_bed(crowds);
}

/* A NaN that a row does see is not swept under the rug. */
static void check_nan(struct bed *b, enum dtype kv_dtype) {
    static struct bed_step s;
    struct attention_shape shape = shape_of(1, 1, 16, 0);
    struct heads h;
    heads_open(b, &h, shape, 16, kv_dtype);
    step_begin(&s, 9);
    step_add(&s, 0, 70, 1);
    fill_cache(b, &h, &s, (const int32_t[BED_SLOTS][2]){{1, 71}}); /* key 0 is NaN */
    struct tensor q = bed_random_tensor(b, b->dtype, 1, 16, 1);
    struct activation out = {.x = bed_tensor(b, b->dtype, 1, 16, NULL)};
    op_attention(b->dev, &out, &q, h.kv, 1, &shape, step_upload(b->dev, &s.step));
    float *got = bed_get(b, &out.x);
    for (int i = 0; i < 16; i++) assert_true(isnan(got[i]));
    heads_close(b, &h);
}

/* One number of a head that is not finite: the whole head is NaN in an fp8 cache. */
static void check_nan_written(struct bed *b, float bad) {
    enum { HD = 16, WIDTH = 3 * HD };
    static struct bed_step s;
    struct attention_shape shape = shape_of(1, 1, HD, 0);
    struct heads h;
    float in[WIDTH];
    heads_open(b, &h, shape, HD, DTYPE_F8_E4M3);
    step_begin(&s, 9);
    step_add(&s, 0, 0, 1);
    for (int i = 0; i < WIDTH; i++) in[i] = i == WIDTH - 3 ? bad : bed_random(b);
    struct product qkv = {.y = bed_tensor(b, b->dtype, 1, WIDTH, in)};
    struct tensor q = bed_tensor(b, b->dtype, 1, HD, NULL);
    op_qkv_finish(b->dev, &q, h.kv, 1, &qkv, &shape, &(struct head_rules){.rope = &h.rope}, step_upload(b->dev, &s.step));
    float *cache = cache_of(b, &h, 1);
    for (int d = 0; d < HD; d++) {
        assert_true(isfinite(cache[slab_row(&h, &s, 0, 0, 0, 0) * HD + d]));
        assert_true(isnan(cache[slab_row(&h, &s, 0, 0, 1, 0) * HD + d]));
    }
    heads_close(b, &h);
}

static void nans(struct bed *b) {
    check_nan(b, b->dtype);
    check_nan(b, DTYPE_F8_E4M3);
    check_nan_written(b, NAN);
    check_nan_written(b, INFINITY);
}

static void a_nan_in_sight_stays_nan(void **state) {
    each_bed(nans);
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
    cmocka_unit_test(qkv_finish_norms_and_turns_heads_and_fills_the_cache),
    cmocka_unit_test(attention_is_softmax_over_the_keys_in_sight),
    cmocka_unit_test(heads_of_any_size),
    cmocka_unit_test(attention_reads_an_fp8_cache),
    cmocka_unit_test(scores_are_capped_and_slope),
    cmocka_unit_test(chunks_neighbours_and_block_order_do_not_matter),
    cmocka_unit_test(blocks_of_one_warp_give_the_same_bits),
    cmocka_unit_test(a_nan_in_sight_stays_nan),
};
UNIT_MAIN(tests)
