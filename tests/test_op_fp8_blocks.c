/* test_op_fp8_blocks.c - products with weights in fp8 with scales for blocks: to the bit those with the
 * numbers that the codes stand for, whatever the sizes of blocks and wherever rows go. A device
 * that does not multiply with such weights says so, and has nothing to show. */
#include "tests/aid_ops.h"

#include "base/mem.h"

#include <math.h>

struct twins { /* the same weight twice */
    struct weight *codes, *numbers;
};

struct blocks {
    int64_t rows, cols;
};

/* A tensor [n, k] of any codes but NaN, its scales between 1/64 and 2; zeros and negative ones
 * among them. */
static struct quantized make_tensor(struct bed *b, int64_t n, int64_t k, struct blocks block) {
    uint8_t *codes = (uint8_t *)bed_floats(b, (n * k + 3) / 4);
    int64_t n_scales = quant_blocks(n, block.rows) * quant_blocks(k, block.cols);
    float *scale = bed_floats(b, n_scales);
    for (int64_t i = 0; i < n * k; i++) codes[i] = (uint8_t)(bed_random_below(b, 127) | bed_random_below(b, 2) << 7);
    for (int64_t i = 0; i < n_scales; i++) scale[i] = i % 11 == 10 ? 0.0f : ldexpf(bed_random(b), 1 - (int)(i % 7));
    return (struct quantized){.n_rows = n, .codes = codes, .scale = scale};
}

/* What a tensor's codes are worth, rounded as the weight's dtype is. */
static float *numbers_of(struct bed *b, const struct quantized *q, int64_t k, struct blocks block) {
    float *out = bed_floats(b, q->n_rows * k);
    for (int64_t i = 0; i < q->n_rows * k; i++) {
        float scale = q->scale[i / k / block.rows * quant_blocks(k, block.cols) + i % k / block.cols];
        out[i] = rounded(fp8_to_f32(((const uint8_t *)q->codes)[i]) * scale, b->dtype);
    }
    return out;
}

static void load_twins(struct bed *b, const struct twins *t, const struct quantized *q, struct blocks block,
                       const struct weight_run *runs, int n_runs) {
    struct tensor host = tensor_2d(numbers_of(b, q, t->codes->k, block), DTYPE_F32, q->n_rows, t->codes->k);
    weight_load_quantized(b->dev, t->codes, q, runs, n_runs);
    weight_load_runs(b->dev, t->numbers, &host, runs, n_runs);
}

/* Of two tensors. The first one's rows stay together, behind the second's first half and before
 * its rest, which has come before it. */
static struct twins make_twins(struct bed *b, int64_t n, int64_t k, struct blocks block) {
    struct twins t = {weight_new_fp8_blocks(b->dev, n, k, b->dtype, block.rows, block.cols), weight_new(b->dev, n, k, b->dtype)};
    int64_t one = n / 3, two = n - one, half = two / 2;
    struct weight_run runs[] = {{0, half + one, two - half}, {two - half, 0, half}};
    struct err err = {0};
    assert_non_null(t.codes);
    assert_non_null(t.numbers);
    struct quantized q = make_tensor(b, two, k, block);
    load_twins(b, &t, &q, block, runs, half > 0 ? 2 : 1);
    if (one > 0) {
        q = make_tensor(b, one, k, block);
        load_twins(b, &t, &q, block, &(struct weight_run){0, half, one}, 1);
    }
    assert_ok(dev_sync(b->dev, &err), &err);
    return t;
}

static void free_twins(struct bed *b, const struct twins *t) {
    weight_free(b->dev, t->codes);
    weight_free(b->dev, t->numbers);
}

static void check_product(struct bed *b, const struct twins *t, const struct tensor *rows, int64_t m, enum dtype y_dtype) {
    int64_t n = t->codes->n;
    struct activation x = {.x = rows_from(rows, 0, m)};
    struct tensor room = bed_random_tensor(b, y_dtype, m + 1, n, 1);
    float *before = bed_get(b, &room);
    struct product y = {.y = rows_from(&room, 0, m)}, plain = {.y = bed_tensor(b, y_dtype, m, n, NULL)};
    op_linear(b->dev, &y, &x, t->codes);
    op_linear(b->dev, &plain, &x, t->numbers);
    assert_ptr_equal(y.weight, t->codes);
    assert_null(y.row_scale);
    float *got = bed_get(b, &room), *want = bed_get(b, &plain.y);
    for (int64_t i = 0; i < m * n; i++)
        if (memcmp(&got[i], &want[i], sizeof *got) != 0)
            fail_msg("%s: [%d x %d], %d rows: row %d, column %d is %g, not %g", dev_name(b->dev), (int)n, (int)t->codes->k,
                     (int)m, (int)(i / n), (int)(i % n), (double)got[i], (double)want[i]);
    assert_memory_equal(got + m * n, before + m * n, (size_t)n * sizeof *got); /* nothing beyond */
}

static void check_shape(struct bed *b, int64_t n, int64_t k, struct blocks block) {
    static const int counts[] = {1, 2, 7, 16, 17, 32, 33, 64, 100};
    struct twins t = make_twins(b, n, k, block);
    struct tensor x = bed_random_tensor(b, b->dtype, 100, k, 3);
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) check_product(b, &t, &x, counts[i], b->dtype);
    check_product(b, &t, &x, 5, DTYPE_F32);
    free_twins(b, &t);
}

static void products(struct bed *b) {
    static const int64_t shapes[][4] = {{1, 1, 128, 128},   {17, 33, 16, 24},    {48, 7, 1, 4},      {75, 96, 128, 128},
                                        {131, 320, 24, 48}, {96, 256, 128, 128}, {160, 264, 32, 8},  {80, 128, 7, 1},
                                        {64, 200, 3, 1000}, {72, 104, 1000, 20}, {40, 24, 16, 10}};
    if (!weight_keeps_fp8_blocks(b->dev)) return;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        check_shape(b, shapes[i][0], shapes[i][1], (struct blocks){shapes[i][2], shapes[i][3]});
    if (test_is_quick()) return;
    check_shape(b, 300, 1500, (struct blocks){128, 128});
    check_shape(b, 264, 1536, (struct blocks){128, 128});
    check_shape(b, 512, 4096, (struct blocks){128, 128});
}

static void products_have_the_bits_of_the_numbers(void **state) {
    each_bed(products);
}

/* A tensor's rows by threes, the last first: more runs than a launch of a kernel has room for. */
static void scattered(struct bed *b) {
    enum { N = 93, PIECE = 3, RUNS = N / PIECE };
    static const int64_t shapes[][3] = {{256, 16, 128}, {40, 7, 24}};
    if (!weight_keeps_fp8_blocks(b->dev)) return;
    struct weight_run runs[RUNS];
    for (int i = 0; i < RUNS; i++) runs[i] = (struct weight_run){i * PIECE, N - (i + 1) * PIECE, PIECE};
    for (int i = 0; i < 2; i++) {
        int64_t k = shapes[i][0];
        struct blocks block = {shapes[i][1], shapes[i][2]};
        struct twins t = {weight_new_fp8_blocks(b->dev, N, k, b->dtype, block.rows, block.cols),
                          weight_new(b->dev, N, k, b->dtype)};
        struct quantized q = make_tensor(b, N, k, block);
        load_twins(b, &t, &q, block, runs, RUNS);
        struct tensor x = bed_random_tensor(b, b->dtype, 20, k, 3);
        check_product(b, &t, &x, 3, b->dtype);
        check_product(b, &t, &x, 20, b->dtype);
        free_twins(b, &t);
    }
}

static void rows_of_a_tensor_may_go_to_many_places(void **state) {
    each_bed(scattered);
}

/* Every code, under scales that put numbers among those without an exponent, on ties of bfloat16
 * and at the end of what there is: one row of x picks one column of the weight. */
static void every_code(struct bed *b) {
    static const float scales[] = {1.0f, 0x1p-130f, 3e-39f, 1.00390625f, 0.3333333f, 7e35f, -1.0f, 0.0f};
    enum { N = 256, K = sizeof scales / sizeof *scales };
    if (!weight_keeps_fp8_blocks(b->dev)) return;
    struct twins t = {weight_new_fp8_blocks(b->dev, N, K, b->dtype, N, 1), weight_new(b->dev, N, K, b->dtype)};
    uint8_t codes[N * K];
    float eye[K * K] = {0};
    for (int i = 0; i < N * K; i++) codes[i] = (i / K & 0x7f) == 0x7f ? 0 : (uint8_t)(i / K);
    for (int i = 0; i < K; i++) eye[i * K + i] = 1;
    struct quantized q = {.n_rows = N, .codes = codes, .scale = scales};
    load_twins(b, &t, &q, (struct blocks){N, 1}, &(struct weight_run){0, 0, N}, 1);
    struct tensor x = bed_tensor(b, b->dtype, K, K, eye);
    check_product(b, &t, &x, K, b->dtype);
    check_product(b, &t, &x, K, DTYPE_F32);
    free_twins(b, &t);
}

static void every_code_is_worth_what_it_says(void **state) {
    each_bed(every_code);
}

/* A byte a number and a scale a block of each tensor. */
static void sizes(struct bed *b) {
    enum { N = 75, K = 200 };
    if (!weight_keeps_fp8_blocks(b->dev)) return;
    struct blocks block = {16, 24};
    struct twins t = make_twins(b, N, K, block);
    size_t codes = 80 * 208, scales = 4 * (quant_blocks(25, 16) + quant_blocks(50, 16)) * 9;
    assert_int_equal(weight_bytes(t.codes), codes + scales);
    assert_int_equal(weight_bytes_planned(N, K, b->dtype, QUANT_FP8_BLOCK, 2), codes);
    free_twins(b, &t);
}

static void weights_take_a_byte_a_number(void **state) {
    each_bed(sizes);
}

/* The numbers of a weight [n, k], through a product with the unit matrix. */
static float *numbers_in(struct bed *b, const struct weight *w) {
    float *eye = bed_floats(b, w->k * w->k);
    for (int64_t i = 0; i < w->k; i++) eye[i * w->k + i] = 1;
    struct activation x = {.x = bed_tensor(b, b->dtype, w->k, w->k, eye)};
    struct product y = {.y = bed_tensor(b, b->dtype, w->k, w->n, NULL)};
    op_linear(b->dev, &y, &x, w);
    return bed_get(b, &y.y);
}

static void made_up(struct bed *b) {
    enum { N = 100, K = 136 };
    if (!weight_keeps_fp8_blocks(b->dev)) return;
    float *all[3];
    for (int i = 0; i < 3; i++) {
        struct weight *w = weight_new_fp8_blocks(b->dev, N, K, b->dtype, 32, 48);
        assert_non_null(w);
        weight_random(b->dev, w, 0, 40, i == 2 ? 9 : 5, 0.02f);
        weight_random(b->dev, w, 40, N - 40, 6, 0.02f);
        all[i] = numbers_in(b, w);
        weight_free(b->dev, w);
    }
    double sum = 0, squares = 0;
    for (int i = 0; i < N * K; i++) {
        sum += (double)all[0][i];
        squares += (double)all[0][i] * (double)all[0][i];
    }
    assert_true(fabs(sum / (N * K)) < 0.02 / 20 && fabs(sqrt(squares / (N * K)) / 0.02 - 1) < 0.05);
    assert_memory_equal(all[0], all[1], N * K * sizeof(float));
    for (int k = 0; k < K; k++)
        for (int r = 0; r < N; r++)
            if (r >= 40) assert_true(all[2][k * N + r] == all[0][k * N + r]);
    assert_true(memcmp(all[0], all[2], N * K * sizeof(float)) != 0);
}

static void dummy_weights_are_the_same_again(void **state) {
    each_bed(made_up);
}

/* A weight as large as a layer's: other loops and launches than those of small ones. */
static void large(struct bed *b) {
    static const int counts[] = {1, 8, 64, 70};
    bool is_cpu = strcmp(dev_kind(b->dev), "cpu") == 0;
    if (!weight_keeps_fp8_blocks(b->dev) || (is_cpu && test_is_quick())) return;
    int64_t n = is_cpu ? 1040 : 6160, k = is_cpu ? 1032 : 4096;
    struct twins t = make_twins(b, n, k, (struct blocks){128, 128});
    struct tensor x = bed_random_tensor(b, b->dtype, 70, k, 3);
    for (int i = 0; i < 4; i++) check_product(b, &t, &x, counts[i], b->dtype);
    free_twins(b, &t);
}

static void large_weights_have_the_bits_of_their_numbers(void **state) {
    each_bed(large);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(products_have_the_bits_of_the_numbers),
    cmocka_unit_test(rows_of_a_tensor_may_go_to_many_places),
    cmocka_unit_test(every_code_is_worth_what_it_says),
    cmocka_unit_test(weights_take_a_byte_a_number),
    cmocka_unit_test(dummy_weights_are_the_same_again),
    cmocka_unit_test(large_weights_have_the_bits_of_their_numbers),
};

UNIT_MAIN(tests)
