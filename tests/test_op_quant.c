/* test_op_quant.c - products with quantized weights against the rule of ops.h in double
 * precision, and batch invariance. */
#include "tests/aid_quant.h"

#include "base/mem.h"

#include <math.h>

typedef struct tensor rows_fn(struct bed *b, int64_t m, int64_t k);

/* As in a trained model: outliers in the same few columns of most rows; here each has about 7 of 10 columns. */
static struct tensor make_rows_alike(struct bed *b, int64_t m, int64_t k) {
    float *x = bed_floats(b, m * k);
    for (int64_t i = 0; i < m * k; i++) {
        x[i] = bed_random(b) * 3;
        if (i % k % (k / 10 + 1) == 0 && bed_random_below(b, 10) < 7) x[i] *= 10;
    }
    return bed_tensor(b, b->dtype, m, k, x);
}

/* Which columns of x[m, k] are out of the codes of row r. */
static void mark_outliers(bool *is_out, const struct weight *w, const float *x, int r, int m, int64_t k) {
    bool is_batch = w->outliers == INT8_OUTLIERS_BATCH;
    for (int64_t i = 0; i < k; i++) is_out[i] = false;
    for (int64_t at = is_batch ? 0 : r; at < (is_batch ? m : r + 1); at++)
        for (int64_t i = 0; i < k; i++) is_out[i] |= fabsf(x[at * k + i]) >= INT8_OUTLIER;
}

/* One number of the product by the rule, and a bound on the error of f32 sums; of fp8 also on
 * that of a GPU's sums, which keep fewer bits, and of a sum's rounding to y's dtype. */
static double expected(const struct bed *b, const struct reference *ref, const float *x, const float *x_codes,
                       float x_scale, const bool *is_out, int64_t column, enum dtype y_dtype, double *slack) {
    int64_t k = ref->w->k;
    const float *codes = ref->codes + column * k, *value = ref->value + column * k;
    double sum = 0, size = 0;
    if (quant_is_4bit(ref->w->quant)) {
        for (int64_t i = 0; i < k; i++) {
            sum += (double)x[i] * (double)value[i];
            size += fabs((double)x[i] * (double)value[i]);
        }
        *slack = size * (double)k * 0x1p-24;
        return sum;
    }
    for (int64_t i = 0; i < k; i++) {
        sum += (double)x_codes[i] * (double)codes[i];
        size += fabs((double)x_codes[i] * (double)codes[i]);
    }
    double scale = (double)x_scale * (double)ref->scale[column];
    if (ref->w->quant == QUANT_INT8) {
        scale /= 127.0 * 127.0;
        size = fabs(sum);
    } else {
        size = size * (double)k + (strcmp(dev_kind(b->dev), "cpu") == 0 ? 0 : size * 0x1p11);
        if (y_dtype != DTYPE_F32) size += fabs(sum) * 0x1p15;
    }
    sum *= scale;
    size *= 4 * scale; /* roundings of the scales */
    for (int64_t i = 0; ref->w->quant == QUANT_INT8 && i < k; i++) {
        if (!is_out[i]) continue;
        sum += (double)x[i] * (double)value[i];
        size += (double)k * fabs((double)x[i] * (double)value[i]);
    }
    *slack = size * 0x1p-24;
    return sum;
}

static void check_product(struct bed *b, int m, int n, int k, enum quant_kind kind, enum int8_outliers outliers,
                          enum dtype y_dtype, rows_fn *rows) {
    struct reference ref = reference_new(b, n, k, kind);
    ref.w->outliers = outliers;
    struct activation x = {.x = rows(b, m, k)};
    struct tensor room = bed_random_tensor(b, y_dtype, m + 1, n, 1);
    float *xs = bed_get(b, &x.x), *before = bed_get(b, &room), *x_codes = bed_floats(b, k);
    struct product y = {.y = rows_from(&room, 0, m)};
    uint8_t *codes = mem_zalloc((size_t)k, 1);
    bool *is_out = mem_zalloc((size_t)k, sizeof *is_out);
    op_linear(b->dev, &y, &x, ref.w);
    assert_ptr_equal(y.weight, ref.w);
    float *got = bed_get(b, &room);
    for (int r = 0; r < m; r++) {
        float scale = kind == QUANT_FP8 ? quant_fp8(codes, xs + r * k, k)
                                        : quant_int8_activation((int8_t *)codes, xs + r * k, k, INT8_OUTLIER);
        mark_outliers(is_out, ref.w, xs, r, m, k);
        for (int i = 0; i < k; i++)
            x_codes[i] = kind == QUANT_FP8 ? fp8_to_f32(codes[i]) : is_out[i] ? 0 : (float)(int8_t)codes[i];
        for (int c = 0; c < n; c++) {
            double slack, want = expected(b, &ref, xs + r * k, x_codes, scale, is_out, c, y_dtype, &slack);
            assert_near(b, got[r * n + c], want, slack, y_dtype, quant_name(kind), r, c);
        }
    }
    for (int c = 0; c < n; c++) assert_true(got[m * n + c] == before[m * n + c]); /* nothing beyond */
    free(codes);
    free(is_out);
    weight_free(b->dev, ref.w);
}

static void check_products(struct bed *b, enum quant_kind kind, enum int8_outliers outliers) {
    static const int shapes[][3] = {{1, 1, 1}, {2, 17, 33}, {3, 48, 7}, {5, 33, 100}, {7, 100, 64}, {13, 131, 320}};
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
        check_product(b, shapes[s][0], shapes[s][1], shapes[s][2], kind, outliers, b->dtype, make_rows);
    check_product(b, 2, 40, 1500, kind, outliers, DTYPE_F32, make_rows);
    check_product(b, 9, 64, 1536, kind, outliers, b->dtype, make_rows); /* outliers in most columns, */
    check_product(b, 4, 48, 512, kind, outliers, b->dtype, make_rows);  /* in few, */
    check_product(b, 3, 32, 512, kind, outliers, DTYPE_F32, make_rows);
    if (kind == QUANT_INT8) check_product(b, 21, 1040, 96, kind, outliers, b->dtype, make_rows_alike);
}

static void products(struct bed *b) {
    for (int i = 0; i < N_KINDS; i++) {
        check_products(b, kinds[i], INT8_OUTLIERS_ROW);
        for (int m = 3; quant_is_4bit(kinds[i]) && m <= 30; m += 9)
            check_product(b, m, 96, 768, kinds[i], INT8_OUTLIERS_ROW, b->dtype, make_rows);
    }
    if (op_linear_knows_outliers(b->dev, INT8_OUTLIERS_BATCH)) check_products(b, QUANT_INT8, INT8_OUTLIERS_BATCH);
}

static void products_follow_the_rule_of_each_kind(void **state) {
    each_bed(products);
}

/* The longest sum of the largest numbers: 33 million, where f32 has lost the last two bits. */
static void exact_integers(struct bed *b) {
    enum { K = 2112, N = 16 };
    float *w = bed_floats(b, N * K), *x = bed_floats(b, K);
    for (int i = 0; i < N * K; i++) w[i] = 1;
    for (int i = 0; i < K; i++) x[i] = 2;
    w[0] = 126.0f / 127; /* one code less */
    w[K + 3] = -1.0f / 127;
    struct weight *weight = weight_new_quantized(b->dev, N, K, b->dtype, QUANT_INT8);
    struct tensor host = tensor_2d(w, DTYPE_F32, N, K);
    weight_load(b->dev, weight, 0, &host);
    struct activation in = {.x = bed_tensor(b, b->dtype, 1, K, x)};
    struct product y = {.y = bed_tensor(b, DTYPE_F32, 1, N, NULL)};
    op_linear(b->dev, &y, &in, weight);
    float *got = bed_get(b, &y.y);
    static const int32_t sum[] = {127 * 127 * K - 127, 127 * 127 * K - 128 * 127, 127 * 127 * K};
    for (int c = 0; c < N; c++)
        assert_true(got[c] == (float)sum[c < 2 ? c : 2] * 2.0f * (1.0f / (127 * 127)));
    weight_free(b->dev, weight);
}

static void products_of_integers_are_exact(void **state) {
    each_bed(exact_integers);
}

static void check_bits(struct bed *b, int n, int k, enum quant_kind kind, rows_fn *rows) {
    static const int counts[] = {1, 2, 3, 5, 7, 8, 13, 16, 21, 32, 64, 99};
    struct reference ref = reference_new(b, n, k, kind);
    struct tensor x = rows(b, 100, k);
    assert_alone_as_together(b, ref.w, &x, counts, sizeof counts / sizeof *counts);
    weight_free(b->dev, ref.w);
}

/* Shapes that a GPU multiplies without turning codes back first, where rows are few; blocks of
 * rows of several sizes. */
static void bits_of_few(struct bed *b) {
    static const int shapes[][2] = {{96, 256}, {96, 512}, {24, 2560}, {4104, 768}, {5160, 512}, {6168, 512}, {28680, 256}};
    bool is_cpu = strcmp(dev_kind(b->dev), "cpu") == 0;
    for (int i = 0; i < (is_cpu ? 2 : 7); i++) {
        check_bits(b, shapes[i][0], shapes[i][1], QUANT_NF4, make_rows);
        check_bits(b, shapes[i][0], shapes[i][1], i % 2 ? QUANT_FP4 : QUANT_NF4_DQ, make_rows);
    }
}

static void products_of_few_rows_have_the_bits_of_many(void **state) {
    each_bed(bits_of_few);
}

static void bits(struct bed *b) {
    for (int i = 0; i < N_KINDS; i++) check_bits(b, 75, 96, kinds[i], make_rows);
    for (int i = 0; i < N_KINDS; i++) check_bits(b, 80, test_is_quick() ? 96 : 1100, kinds[i], make_rows);
    for (int i = 0; i < N_KINDS; i++) check_bits(b, 96, test_is_quick() ? 64 : 1536, kinds[i], make_rows);
    check_bits(b, 1040, 96, QUANT_INT8, make_rows_alike);
}

static void products_do_not_see_other_rows(void **state) {
    each_bed(bits);
}

/* A tensor that was quantized elsewhere: other blocks, a map of its own. */
static void foreign(struct bed *b) {
    enum { N = 20, K = 96, BLOCK = 32 };
    int64_t blocks = N * K / BLOCK;
    struct reference ref = {weight_new_quantized(b->dev, N, K, b->dtype, QUANT_NF4_DQ), bed_floats(b, N * K),
                            bed_floats(b, N * K), bed_floats(b, N)};
    float *w = bed_floats(b, N * K), *absmax = bed_floats(b, blocks), *absmax2 = bed_floats(b, 1), map[256], codes[16];
    uint8_t packed[N * K / 2], nested[N * K / BLOCK];
    float mean;
    for (int i = 0; i < N * K; i++) w[i] = bed_random(b);
    for (int i = 0; i < 256; i++) map[i] = quant_dynamic_map()[i] * 1.01f;
    for (int i = 0; i < 16; i++) codes[i] = quant_codes(QUANT_NF4)[i] * 0.99f;
    quant_4bit(packed, absmax, w, N * K, BLOCK, QUANT_NF4);
    quant_nested(nested, absmax2, &mean, absmax, blocks);
    struct quantized q = {.n_rows = N, .codes = packed, .block = BLOCK, .values = codes, .absmax_codes = nested,
                          .absmax2 = absmax2, .map = map, .mean = mean};
    weight_load_quantized(b->dev, ref.w, &q, &(struct weight_run){0, 0, N}, 1);
    for (int64_t i = 0; i < blocks; i++) absmax[i] = map[nested[i]] * absmax2[0] + mean;
    quant_4bit_back(ref.value, packed, absmax, 0, N * K, BLOCK, codes);
    for (int i = 0; i < N * K; i++) ref.value[i] = rounded(ref.value[i], b->dtype);
    struct activation x = {.x = make_rows(b, 4, K)};
    struct product y = {.y = bed_tensor(b, b->dtype, 4, N, NULL)};
    op_linear(b->dev, &y, &x, ref.w);
    float *got = bed_get(b, &y.y), *xs = bed_get(b, &x.x);
    for (int r = 0; r < 4; r++)
        for (int c = 0; c < N; c++) {
            double slack, want = expected(b, &ref, xs + r * K, NULL, 0, NULL, c, DTYPE_F32, &slack);
            assert_near(b, got[r * N + c], want, slack, b->dtype, "foreign nf4", r, c);
        }
    weight_free(b->dev, ref.w);
}

static void tensors_quantized_elsewhere_keep_their_maps(void **state) {
    each_bed(foreign);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(products_follow_the_rule_of_each_kind),
    cmocka_unit_test(products_of_integers_are_exact),
    cmocka_unit_test(products_do_not_see_other_rows),
    cmocka_unit_test(products_of_few_rows_have_the_bits_of_many),
    cmocka_unit_test(tensors_quantized_elsewhere_keep_their_maps),
};

UNIT_MAIN(tests)
