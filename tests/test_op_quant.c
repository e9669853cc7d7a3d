/* test_op_quant.c - products with quantized weights against the rule of ops.h in double
 * precision, from numbers that quantize.h's functions make; and batch invariance. */
#include "tests/aid_matrix.h"
#include "tests/aid_ops.h"

#include "base/mem.h"

#include <inttypes.h>
#include <math.h>

static const enum quant_kind kinds[] = {QUANT_INT8, QUANT_FP4, QUANT_NF4, QUANT_NF4_DQ, QUANT_FP8};
enum { N_KINDS = sizeof kinds / sizeof *kinds };

struct reference { /* of a weight: what its codes are worth */
    struct weight *w;
    float *codes; /* [n][k]: 8-bit kinds, without the scale */
    float *value; /* [n][k] in the weight's dtype */
    float *scale; /* [n] */
};

/* One tensor's rows, as weight_load must quantize them. */
static void quantize_rows(struct bed *b, struct reference *ref, const float *w, int64_t first, int64_t rows,
                          int64_t k) {
    int64_t n = rows * k, blocks = quant_blocks(n, QUANT_BLOCK);
    float *codes = ref->codes + first * k, *value = ref->value + first * k;
    uint8_t *packed = mem_zalloc((size_t)n, 1);
    float *absmax = bed_floats(b, blocks), *absmax2 = bed_floats(b, blocks), mean;
    if (quant_is_4bit(ref->w->quant)) {
        quant_4bit(packed, absmax, w, n, QUANT_BLOCK, ref->w->quant);
        if (ref->w->quant == QUANT_NF4_DQ) {
            uint8_t *q = mem_zalloc((size_t)blocks, 1);
            quant_nested(q, absmax2, &mean, absmax, blocks);
            quant_nested_back(absmax, q, absmax2, mean, blocks);
            free(q);
        }
        quant_4bit_back(value, packed, absmax, 0, n, QUANT_BLOCK, quant_codes(ref->w->quant));
    }
    for (int64_t r = 0; r < rows && !quant_is_4bit(ref->w->quant); r++) {
        float *scale = &ref->scale[first + r];
        if (ref->w->quant == QUANT_INT8) *scale = quant_int8((int8_t *)packed, w + r * k, k);
        else *scale = quant_fp8(packed, w + r * k, k);
        for (int64_t i = 0; i < k; i++)
            codes[r * k + i] = ref->w->quant == QUANT_INT8 ? (float)(int8_t)packed[i] : fp8_to_f32(packed[i]);
        if (ref->w->quant == QUANT_INT8) quant_int8_back(value + r * k, (int8_t *)packed, *scale, k);
    }
    for (int64_t i = 0; i < n; i++) value[i] = rounded(value[i], b->dtype);
    free(packed);
}

/* A weight of two tensors, the second loaded first. */
static struct reference make_weight(struct bed *b, int64_t n, int64_t k, enum quant_kind kind) {
    struct reference ref = {weight_new_quantized(b->dev, n, k, b->dtype, kind), bed_floats(b, n * k),
                            bed_floats(b, n * k), bed_floats(b, n)};
    float *w = bed_floats(b, n * k);
    int64_t cut = n / 3;
    assert_non_null(ref.w);
    for (int64_t i = 0; i < n * k; i++) w[i] = rounded(bed_random(b) * (float)(1 + i / k % 3), b->dtype);
    struct tensor lower = tensor_2d(w + cut * k, DTYPE_F32, n - cut, k), upper = tensor_2d(w, DTYPE_F32, cut, k);
    weight_load(b->dev, ref.w, cut, &lower);
    quantize_rows(b, &ref, w + cut * k, cut, n - cut, k);
    if (cut > 0) {
        weight_load(b->dev, ref.w, 0, &upper);
        quantize_rows(b, &ref, w, 0, cut, k);
    }
    return ref;
}

typedef struct tensor rows_fn(struct bed *b, int64_t m, int64_t k);

/* Activations of which about one in 40 is an outlier. */
static struct tensor make_rows(struct bed *b, int64_t m, int64_t k) {
    float *x = bed_floats(b, m * k);
    for (int64_t i = 0; i < m * k; i++) {
        x[i] = bed_random(b) * 3;
        if (bed_random_below(b, 40) == 0) x[i] = x[i] < 0 ? x[i] - 6 : x[i] + 6;
    }
    return bed_tensor(b, b->dtype, m, k, x);
}

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
    struct reference ref = make_weight(b, n, k, kind);
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

/* ---------------------------------------------------------------- bitsandbytes' rule of outliers */

struct foreign_product { /* of products.txt: a case that bitsandbytes has computed */
    char dtype[16];
    int64_t m, n, k, n_outliers, n_columns;
    uint64_t seed;
    float *x, *w;
    float *integers, *whole; /* [m, n] */
};

/* As rows_with_outliers() in tests/data/quantize/make.py. */
static float *rows_with_outliers(const struct foreign_product *f) {
    float *x = random_matrix(f->m, f->k, f->seed);
    for (int64_t i = 0; i < f->m * f->k; i++) x[i] *= 4;
    for (int64_t j = 0; j < f->n_outliers; j++)
        x[j % f->m * f->k + (37 * j + (int64_t)f->seed) % f->k] = (float)((6 + 3 * j) * (j % 2 ? -1 : 1));
    return x;
}

/* How many columns of x have an outlier, and that they are those of the file. */
static void check_columns(const struct foreign_product *f, FILE *file) {
    int64_t column, n = 0;
    bool *is_out = mem_zalloc((size_t)f->k, sizeof *is_out);
    for (int64_t r = 0; r < f->m; r++) quant_int8_mark(is_out, f->x + r * f->k, f->k, INT8_OUTLIER);
    for (int64_t i = 0; i < f->n_columns; i++) {
        assert_int_equal(fscanf(file, "%" SCNd64, &column), 1);
        assert_true(is_out[column]);
    }
    for (int64_t i = 0; i < f->k; i++) n += is_out[i];
    assert_int_equal(n, f->n_columns);
    free(is_out);
}

static bool read_foreign(struct bed *b, struct foreign_product *f, FILE *file) {
    if (fscanf(file, "%15s %" SCNd64 " %" SCNd64 " %" SCNd64 " %" SCNd64 " %" SCNu64 " %" SCNd64, f->dtype, &f->m, &f->n,
               &f->k, &f->n_outliers, &f->seed, &f->n_columns) != 7)
        return false;
    f->x = rows_with_outliers(f);
    f->w = random_matrix(f->n, f->k, f->seed + 1);
    f->integers = bed_floats(b, f->m * f->n);
    f->whole = bed_floats(b, f->m * f->n);
    check_columns(f, file);
    for (int64_t i = 0; i < 2 * f->m * f->n; i++) {
        float *row = i / f->n % 2 ? f->whole : f->integers;
        assert_int_equal(fscanf(file, "%f", row + i / f->n / 2 * f->n + i % f->n), 1);
    }
    return true;
}

/* Its codes are those of float16 numbers, whatever the compute dtype is. */
static struct weight *foreign_weight(struct bed *b, const struct foreign_product *f) {
    struct weight *w = weight_new_quantized(b->dev, f->n, f->k, b->dtype, QUANT_INT8);
    int8_t *codes = mem_zalloc((size_t)(f->n * f->k), 1);
    float *scale = bed_floats(b, f->n);
    for (int64_t r = 0; r < f->n; r++) scale[r] = quant_int8(codes + r * f->k, f->w + r * f->k, f->k);
    struct quantized q = {.n_rows = f->n, .codes = codes, .scale = scale};
    struct err err = ERR_INIT;
    weight_load_quantized(b->dev, w, &q, &(struct weight_run){0, 0, f->n}, 1);
    assert_ok(dev_sync(b->dev, &err), &err);
    free(codes);
    return w;
}

/* The largest distance from its product, in units of what may be: 1.9e-5 of the part of the integers, for its
 * 1 / 127^2 is off by so much; and roundings to the dtype, of both wholes and of its part of the integers. */
static double distance_from(struct bed *b, const struct foreign_product *f, enum int8_outliers outliers) {
    double most = 0, eps = b->dtype == DTYPE_F32 ? 0x1p-22 : b->dtype == DTYPE_BF16 ? 0x1p-8 : 0x1p-11;
    struct weight *w = foreign_weight(b, f);
    struct activation x = {.x = bed_tensor(b, b->dtype, f->m, f->k, f->x)};
    struct product y = {.y = bed_tensor(b, b->dtype, f->m, f->n, NULL)};
    w->outliers = outliers;
    op_linear(b->dev, &y, &x, w);
    float *got = bed_get(b, &y.y);
    for (int64_t i = 0; i < f->m * f->n; i++) {
        double integers = fabs((double)f->integers[i]), whole = fabs((double)f->whole[i]);
        double may = integers * (1.9e-5 + eps) + 2 * eps * whole + 0x1p-20;
        double is = fabs((double)got[i] - (double)f->whole[i]) / may;
        if (!(is <= most)) most = is;
    }
    weight_free(b->dev, w);
    return most;
}

/* And the other rule gives something else, wherever a row has company in a column. */
static void foreign_products(struct bed *b) {
    FILE *file = fopen("tests/data/quantize/products.txt", "r");
    struct foreign_product f;
    int n = 0, n_apart = 0;
    assert_non_null(file);
    while (op_linear_knows_outliers(b->dev, INT8_OUTLIERS_BATCH) && read_foreign(b, &f, file)) {
        n++;
        if (strcmp(f.dtype, dtype_name(b->dtype)) == 0) {
            double batch = distance_from(b, &f, INT8_OUTLIERS_BATCH), row = distance_from(b, &f, INT8_OUTLIERS_ROW);
            if (!(batch <= 1))
                fail_msg("%s [%" PRId64 ", %" PRId64 "] x %" PRId64 ": off by %.2f of what may be", f.dtype, f.m, f.k,
                         f.n, batch);
            n_apart += row > 1;
        }
        free(f.x);
        free(f.w);
    }
    if (n > 0) assert_int_equal(n, 21);
    if (n > 0) assert_true(n_apart >= 2);
    fclose(file);
}

static void columns_of_outliers_are_those_of_bitsandbytes(void **state) {
    each_bed(foreign_products);
}

/* Rows 0 and n - 1 of few give the same row 0 by themselves and with thousands of zeros between them. */
static void check_far_company(struct bed *b, struct weight *w, const float *few, int n) {
    enum { FAR = 2100 };
    int64_t k = w->k;
    float *far = bed_floats(b, FAR * k), *near = bed_floats(b, 2 * k), *first[2];
    memcpy(far, few, (size_t)k * sizeof *far);
    memcpy(far + (FAR - 1) * k, few + (n - 1) * k, (size_t)k * sizeof *far);
    memcpy(near, few, (size_t)k * sizeof *near);
    memcpy(near + k, few + (n - 1) * k, (size_t)k * sizeof *near);
    for (int i = 0; i < 2; i++) {
        int64_t m = i ? FAR : 2;
        struct activation x = {.x = bed_tensor(b, b->dtype, m, k, i ? far : near)};
        struct product y = {.y = bed_tensor(b, b->dtype, m, w->n, NULL)};
        op_linear(b->dev, &y, &x, w);
        first[i] = bed_get(b, &y.y);
    }
    assert_memory_equal(first[0], first[1], (size_t)w->n * sizeof **first);
}

/* A row of small numbers alone; beside a row whose outlier takes a column out of it; and beside one with none.
 * Likewise where that row comes long after it. */
static void company(struct bed *b) {
    enum { N = 48, K = 96, OUTLIER = 17 };
    if (!op_linear_knows_outliers(b->dev, INT8_OUTLIERS_BATCH)) return;
    struct reference ref = make_weight(b, N, K, QUANT_INT8);
    float *numbers = bed_floats(b, 4 * K);
    for (int i = 0; i < 4 * K; i++) numbers[i] = bed_random(b) * 3;
    numbers[3 * K + OUTLIER] = 60;
    struct tensor x = bed_tensor(b, b->dtype, 4, K, numbers), y = bed_tensor(b, b->dtype, 4, N, NULL);
    for (int rule = INT8_OUTLIERS_ROW; rule <= INT8_OUTLIERS_BATCH; rule++) {
        float *first[5];
        ref.w->outliers = (enum int8_outliers)rule;
        for (int m = 1; m <= 4; m++) {
            struct activation in = {.x = rows_from(&x, 0, m)};
            struct product out = {.y = rows_from(&y, 0, m)};
            op_linear(b->dev, &out, &in, ref.w);
            first[m] = bed_get(b, &out.y);
        }
        size_t row = N * sizeof **first;
        assert_memory_equal(first[1], first[2], row);
        assert_memory_equal(first[1], first[3], row);
        assert_int_equal(memcmp(first[1], first[4], row) != 0, rule == INT8_OUTLIERS_BATCH);
    }
    check_far_company(b, ref.w, numbers, 4);
    weight_free(b->dev, ref.w);
}

static void a_row_sees_its_company_under_the_rule_of_the_batch_alone(void **state) {
    each_bed(company);
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

/* Any run of m rows gives what the same rows give among 100. */
static void check_bits(struct bed *b, int n, int k, enum quant_kind kind, rows_fn *rows) {
    enum { ALL = 100 };
    static const int counts[] = {1, 2, 3, 5, 7, 8, 13, 16, 21, 32, 64, 99};
    struct reference ref = make_weight(b, n, k, kind);
    struct activation x = {.x = rows(b, ALL, k)};
    struct product all = {.y = bed_tensor(b, b->dtype, ALL, n, NULL)};
    op_linear(b->dev, &all, &x, ref.w);
    float *want = bed_get(b, &all.y);
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        int m = counts[i], at[] = {0, 1, ALL / 2 + 1, ALL - m};
        for (size_t j = 0; j < 4; j++) {
            if (at[j] + m > ALL) continue;
            struct activation some = {.x = rows_from(&x.x, at[j], m)};
            struct product y = {.y = bed_tensor(b, b->dtype, m, n, NULL)};
            op_linear(b->dev, &y, &some, ref.w);
            assert_memory_equal(bed_get(b, &y.y), want + at[j] * n, (size_t)(m * n) * sizeof *want);
        }
    }
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

/* Rows of one tensor that go to several places are quantized before they part. */
static void check_spread(struct bed *b, int64_t K) {
    enum { N = 24 };
    static const struct weight_run runs[] = {{8, 0, 8}, {0, 8, 8}, {16, 16, 8}}, all = {0, 0, N};
    for (int i = 0; i < N_KINDS; i++) {
        struct activation x = {.x = make_rows(b, 5, K)};
        struct product y[2];
        struct tensor host = tensor_2d(bed_floats(b, N * K), DTYPE_F32, N, K);
        for (int j = 0; j < N * K; j++) ((float *)host.data)[j] = bed_random(b) * (float)(1 + j / K % 5);
        for (int j = 0; j < 2; j++) {
            struct weight *w = weight_new_quantized(b->dev, N, K, b->dtype, kinds[i]);
            weight_load_runs(b->dev, w, &host, j ? runs : &all, j ? 3 : 1);
            y[j].y = bed_tensor(b, b->dtype, 5, N, NULL);
            op_linear(b->dev, &y[j], &x, w);
            weight_free(b->dev, w);
        }
        float *whole = bed_get(b, &y[0].y), *parted = bed_get(b, &y[1].y);
        for (int r = 0; r < 5; r++)
            for (int c = 0; c < N; c++)
                assert_true(parted[r * N + (c < 8 ? c + 8 : c < 16 ? c - 8 : c)] == whole[r * N + c]);
    }
}

static void spread(struct bed *b) {
    check_spread(b, 40); /* blocks straddle rows */
    for (int i = 0; i < 2; i++) check_spread(b, 3072); /* the second time by the kernel for few rows */
}

static void rows_of_a_tensor_may_go_to_several_places(void **state) {
    each_bed(spread);
}

/* A tensor so large that threads share it has the scales that one thread gives it. */
static void large(struct bed *b) {
    enum { N = 700, K = 1000 };
    if (test_is_quick() && b->dtype == DTYPE_F32) return;
    float *w = bed_floats(b, N * K), *absmax = bed_floats(b, N * K / QUANT_BLOCK + 1), *row = bed_floats(b, N);
    uint8_t *packed = mem_zalloc(N, K), *got = mem_zalloc(N, K + 8);
    for (int i = 0; i < N * K; i++) w[i] = rounded(bed_random(b), b->dtype);
    struct tensor host = tensor_2d(w, DTYPE_F32, N, K);
    for (int i = 0; i < N_KINDS; i++) {
        struct weight *weight = weight_new_quantized(b->dev, N, K, b->dtype, kinds[i]);
        weight_load(b->dev, weight, 0, &host);
        if (quant_is_4bit(kinds[i])) {
            quant_4bit(packed, absmax, w, N * K, QUANT_BLOCK, kinds[i]);
            dev_download(b->dev, got, weight->data, N * K / 2);
            assert_memory_equal(got, packed, N * K / 2);
        } else {
            for (int r = 0; r < N; r++)
                row[r] = kinds[i] == QUANT_INT8 ? quant_int8((int8_t *)packed + r * K, w + r * K, K)
                                                : quant_fp8(packed + r * K, w + r * K, K);
            dev_download(b->dev, got, weight->data, (size_t)(N * weight->k_pad));
            for (int r = 0; r < N; r++) assert_memory_equal(got + r * weight->k_pad, packed + r * K, K);
            dev_download(b->dev, absmax, weight->scale.data, N * 4);
            assert_memory_equal(absmax, row, N * 4);
        }
        weight_free(b->dev, weight);
    }
    free(packed);
    free(got);
}

static void large_tensors_are_quantized_by_threads_to_the_same_bytes(void **state) {
    each_bed(large);
}

/* ---------------------------------------------------------------- codes and scales between operations */

/* [n, k], or NULL where products do not take codes in the bed's dtype. */
static struct weight *fp8_weight(struct bed *b, int64_t n, int64_t k) {
    struct weight *w = weight_new_quantized(b->dev, n, k, b->dtype, QUANT_FP8);
    assert_non_null(w);
    if (op_linear_takes(b->dev, w, DTYPE_F8_E4M3)) {
        float *numbers = bed_floats(b, n * k);
        for (int64_t i = 0; i < n * k; i++) numbers[i] = bed_random(b);
        struct tensor host = tensor_2d(numbers, DTYPE_F32, n, k);
        weight_load(b->dev, w, 0, &host);
        return w;
    }
    weight_free(b->dev, w);
    return NULL;
}

static struct activation codes_room(struct bed *b, int64_t m, int64_t k) {
    return (struct activation){.x = bed_tensor(b, b->dtype, m, k, NULL),
                               .row_scale = bed_tensor(b, DTYPE_F32, m, 1, NULL),
                               .wants_fp8 = true};
}

/* `got`, which was asked for codes, has those that op_quantize makes of the plain one, which
 * quant_fp8 makes of a row. */
static void check_codes(struct bed *b, const struct activation *got, const struct activation *plain) {
    size_t m = (size_t)got->x.shape[0], k = (size_t)got->x.shape[1];
    struct activation again = codes_room(b, (int64_t)m, (int64_t)k);
    uint8_t *codes = mem_zalloc(3 * m, k), *other = codes + m * k, *row = other + m * k;
    float *numbers = bed_get(b, &plain->x);
    again.x.dtype = DTYPE_F8_E4M3;
    op_quantize(b->dev, &again, plain);
    assert_int_equal(got->x.dtype, DTYPE_F8_E4M3);
    assert_int_equal(plain->x.dtype, b->dtype);
    dev_download(b->dev, codes, got->x.data, m * k);
    dev_download(b->dev, other, again.x.data, m * k);
    float *scale = bed_get(b, &got->row_scale);
    assert_memory_equal(codes, other, m * k);
    assert_memory_equal(scale, bed_get(b, &again.row_scale), m * sizeof *scale);
    for (size_t r = 0; r < m; r++) {
        assert_true(quant_fp8(row, numbers + r * k, (int64_t)k) == scale[r]);
        assert_memory_equal(codes + r * k, row, k);
    }
    free(codes);
}

static void producers(struct bed *b) {
    static const int sizes[] = {64, 4096, 10240};
    struct weight *w = fp8_weight(b, 16, 64);
    if (!w) return;
    weight_free(b->dev, w);
    for (size_t i = 0; i < 3; i++) {
        int n = sizes[i], m = 7;
        struct norm norm = {NORM_RMS, 1e-5f, bed_random_tensor(b, DTYPE_F32, n, 1, 2), {0}};
        norm.weight = tensor_1d(norm.weight.data, DTYPE_F32, n);
        struct product gates = {.y = bed_random_tensor(b, b->dtype, m, 2 * n, 4)};
        struct product y = {.y = rows_from(&gates.y, 0, m)};
        y.y = bed_random_tensor(b, b->dtype, m, n, 4);
        struct tensor residual = bed_random_tensor(b, b->dtype, m, n, 3);
        struct activation plain = codes_room(b, m, n), codes = codes_room(b, m, n);
        plain.wants_fp8 = false;
        op_residual_norm(b->dev, &plain, &residual, NULL, &norm);
        op_residual_norm(b->dev, &codes, &residual, NULL, &norm);
        check_codes(b, &codes, &plain);
        op_glu(b->dev, &plain, &gates, ACT_SILU);
        op_glu(b->dev, &codes, &gates, ACT_SILU);
        check_codes(b, &codes, &plain);
        op_act(b->dev, &plain, &y, ACT_GELU_TANH);
        op_act(b->dev, &codes, &y, ACT_GELU_TANH);
        check_codes(b, &codes, &plain);
    }
}

static void codes_from_producers_are_those_of_their_numbers(void **state) {
    each_bed(producers);
}

static void assert_same(struct bed *b, const struct tensor *x, const struct tensor *y) {
    assert_memory_equal(bed_get(b, x), bed_get(b, y), (size_t)(x->shape[0] * x->shape[1]) * sizeof(float));
}

/* A product whose scales are pending, of numbers and of their codes, becomes in the next
 * operation what the scaled product becomes. */
static void pending_scales(struct bed *b) {
    enum { M = 37, N = 128, K = 256 };
    struct weight *w = fp8_weight(b, N, K);
    if (!w) return;
    struct activation x = {.x = make_rows(b, M, K)}, codes = codes_room(b, M, K);
    codes.x.dtype = DTYPE_F8_E4M3;
    op_quantize(b->dev, &codes, &x);
    struct product y[3];
    for (int i = 0; i < 3; i++) {
        y[i] = (struct product){.y = bed_tensor(b, b->dtype, M, N, NULL)};
        if (i > 0) y[i].scale_room = bed_tensor(b, DTYPE_F32, M, 1, NULL);
        op_linear(b->dev, &y[i], i < 2 ? &x : &codes, w);
        assert_true(!y[i].row_scale == (i == 0));
    }
    struct tensor stream = bed_random_tensor(b, b->dtype, M, N, 3), residual[3], normed[3], gated[3];
    struct norm norm = {NORM_LAYER, 1e-5f, tensor_1d(bed_random_tensor(b, DTYPE_F32, N, 1, 2).data, DTYPE_F32, N), {0}};
    for (int i = 0; i < 3; i++) {
        struct activation out = {.x = bed_tensor(b, b->dtype, M, N, NULL)};
        residual[i] = bed_tensor(b, b->dtype, M, N, bed_get(b, &stream));
        op_residual_norm(b->dev, &out, &residual[i], &(struct addend){.y = &y[i], .z = &y[i]}, &norm);
        op_residual_norm(b->dev, &out, &residual[i], &(struct addend){.y = &y[i]}, &norm);
        normed[i] = out.x;
        out.x = bed_tensor(b, b->dtype, M, N / 2, NULL);
        op_glu(b->dev, &out, &y[i], ACT_SILU);
        gated[i] = out.x;
    }
    for (int i = 1; i < 3; i++) {
        assert_same(b, &gated[0], &gated[i]);
        assert_same(b, &normed[0], &normed[i]);
        assert_same(b, &residual[0], &residual[i]);
    }
    weight_free(b->dev, w);
}

static void pending_scales_change_nothing(void **state) {
    each_bed(pending_scales);
}

/* ---------------------------------------------------------------- numbers into codes */

/* Numbers that try a quantizer: blocks of zeros, of one size, very small and very large ones, and
 * what lies in the middle between two codes of a block whose largest is 1. */
static void fill_hard(struct bed *b, float *w, int64_t n, enum dtype dtype) {
    for (int64_t i = 0; i < n; i++) {
        int64_t kind = i / 97 % 8;
        float middle = (quant_codes(QUANT_NF4)[i % 15] + quant_codes(QUANT_NF4)[i % 15 + 1]) / 2, x = bed_random(b);
        w[i] = kind == 0   ? 0
               : kind == 1 ? (i % 2 ? 0.75f : -0.75f)
               : kind == 2 ? x * 0x1p-20f
               : kind == 3 ? x * 30000
               : kind == 4 ? (i % 7 == 0 ? 1 : middle)
               : kind == 5 ? (float)(i % 25 - 12) / 12
                           : x;
        w[i] = rounded(w[i], dtype);
    }
}

static void pack(void *out, const float *w, int64_t n, enum dtype dtype) {
    for (int64_t i = 0; i < n; i++)
        if (dtype == DTYPE_F32) ((float *)out)[i] = w[i];
        else ((uint16_t *)out)[i] = dtype == DTYPE_BF16 ? bf16_from_f32(w[i]) : f16_from_f32(w[i]);
}

static void assert_holds(struct bed *b, const struct tensor *t, const void *want, int64_t n) {
    size_t bytes = (size_t)n * dtype_bytes(t->dtype);
    void *got = mem_alloc(bytes);
    assert_non_null(t->data);
    dev_download(b->dev, got, t->data, bytes);
    assert_memory_equal(got, want, bytes);
    free(got);
}

static void assert_4bit(struct bed *b, const struct weight *w, const float *numbers, int64_t n) {
    int64_t blocks = quant_blocks(n, QUANT_BLOCK);
    const struct weight_segment *s = &w->segments[0];
    uint8_t *packed = mem_zalloc((size_t)n, 1), *nested = mem_zalloc((size_t)blocks, 1);
    float *absmax = mem_zalloc((size_t)blocks, 4), *absmax2 = mem_zalloc((size_t)blocks, 4), mean;
    quant_4bit(packed, absmax, numbers, n, QUANT_BLOCK, w->quant);
    struct tensor codes = tensor_1d(w->data, DTYPE_U8, n);
    assert_holds(b, &codes, packed, (n + 1) / 2);
    if (w->quant == QUANT_NF4_DQ) {
        quant_nested(nested, absmax2, &mean, absmax, blocks);
        assert_holds(b, &s->absmax, nested, blocks);
        assert_holds(b, &s->absmax2, absmax2, quant_blocks(blocks, QUANT_NESTED_BLOCK));
        assert_holds(b, &s->map, quant_dynamic_map(), 256);
        assert_memory_equal(&s->mean, &mean, sizeof mean);
    } else assert_holds(b, &s->absmax, absmax, blocks);
    free(packed);
    free(nested);
    free(absmax);
    free(absmax2);
}

static void assert_8bit(struct bed *b, const struct weight *w, const float *numbers) {
    uint8_t *codes = mem_zalloc((size_t)w->n, (size_t)w->k_pad);
    float *scale = mem_zalloc((size_t)w->n, sizeof *scale);
    for (int64_t r = 0; r < w->n; r++) {
        uint8_t *row = codes + r * w->k_pad;
        scale[r] = w->quant == QUANT_INT8 ? quant_int8((int8_t *)row, numbers + r * w->k, w->k)
                                          : quant_fp8(row, numbers + r * w->k, w->k);
    }
    struct tensor data = tensor_1d(w->data, DTYPE_U8, w->n * w->k_pad);
    assert_holds(b, &data, codes, w->n * w->k_pad);
    assert_holds(b, &w->scale, scale, w->n);
    free(codes);
    free(scale);
}

/* The bytes that a weight has of numbers in the dtype `from`. */
static void check_load(struct bed *b, int64_t n, int64_t k, enum quant_kind kind, enum dtype from) {
    float *numbers = mem_zalloc((size_t)(n * k), sizeof *numbers);
    void *file = mem_zalloc((size_t)(n * k), dtype_bytes(from));
    struct weight *w = weight_new_quantized(b->dev, n, k, b->dtype, kind);
    struct tensor host = tensor_2d(file, from, n, k);
    fill_hard(b, numbers, n * k, from);
    pack(file, numbers, n * k, from);
    weight_load(b->dev, w, 0, &host);
    for (int64_t i = 0; i < n * k; i++) numbers[i] = rounded(numbers[i], b->dtype);
    if (quant_is_4bit(kind)) assert_4bit(b, w, numbers, n * k);
    else assert_8bit(b, w, numbers);
    weight_free(b->dev, w);
    free(numbers);
    free(file);
}

static void loads(struct bed *b) {
    static const int shapes[][2] = {{1, 1}, {7, 13}, {3, 64}, {5, 33}, {40, 129}, {16, 1024}, {129, 520}};
    static const enum dtype from[] = {DTYPE_F32, DTYPE_BF16, DTYPE_F16};
    for (int i = 0; i < N_KINDS; i++)
        for (int d = 0; d < 3; d++)
            for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
                check_load(b, shapes[s][0], shapes[s][1], kinds[i], from[d]);
}

static void every_number_becomes_the_code_of_its_format(void **state) {
    each_bed(loads);
}

/* So many absmax that each level of their mean's sum is in use, in several pieces. */
static void large_nested(struct bed *b) {
    if (b->dtype == DTYPE_F32 || (test_is_quick() && strcmp(dev_kind(b->dev), "cpu") == 0)) return;
    check_load(b, 5101, 2048, QUANT_NF4_DQ, DTYPE_BF16);
    check_load(b, 1501, 2001, QUANT_NF4, DTYPE_F32);
    check_load(b, 1501, 2001, QUANT_FP8, DTYPE_BF16);
    check_load(b, 1501, 2001, QUANT_INT8, DTYPE_BF16);
}

static void tensors_of_many_pieces_are_quantized_as_one(void **state) {
    each_bed(large_nested);
}

/* Random numbers are the same again; on a GPU they are those of a plain weight. */
static void made_up(struct bed *b) {
    enum { N = 21, K = 96 };
    for (int i = 0; i < N_KINDS; i++) {
        size_t bytes = quant_is_4bit(kinds[i]) ? N * K / 2 : N * K;
        uint8_t got[3][N * K];
        for (int j = 0; j < 3; j++) {
            struct weight *w = weight_new_quantized(b->dev, N, K, b->dtype, kinds[i]);
            weight_random(b->dev, w, 0, N, j < 2 ? 11 : 12, 0.1f);
            dev_download(b->dev, got[j], w->data, bytes);
            weight_free(b->dev, w);
        }
        assert_memory_equal(got[0], got[1], bytes);
        assert_memory_not_equal(got[0], got[2], bytes);
        if (strcmp(dev_kind(b->dev), "cuda") != 0) continue;
        struct weight *plain = weight_new(b->dev, N, K, b->dtype);
        struct weight *w = weight_new_quantized(b->dev, N, K, b->dtype, kinds[i]);
        weight_random(b->dev, plain, 0, N, 11, 0.1f);
        weight_random(b->dev, w, 0, N, 11, 0.1f);
        struct tensor numbers = tensor_2d(plain->data, b->dtype, N, K);
        if (quant_is_4bit(kinds[i])) assert_4bit(b, w, bed_get(b, &numbers), N * K);
        else assert_8bit(b, w, bed_get(b, &numbers));
        weight_free(b->dev, plain);
        weight_free(b->dev, w);
    }
}

static void dummy_weights_are_the_same_again(void **state) {
    each_bed(made_up);
}

/* ---------------------------------------------------------------- keys and values in fp8 */

enum { HD = 24, KV_HEADS = 2, HEADS = 4, POSITIONS = 600, PIECE = 200 };

/* Keys and values of 600 positions of slot 2; the last rows' queries. */
static void write_cache(struct bed *b, struct kv_cache *kv, const struct tensor *qkv, struct tensor *q,
                        const struct attention_shape *shape, const struct head_rules *rules, struct bed_step *s) {
    for (int at = 0; at < POSITIONS; at += PIECE) {
        struct product rows = {.y = rows_from(qkv, at, PIECE)};
        memset(s, 0, sizeof *s);
        step_begin(s, 4);
        step_add(s, 2, at, PIECE);
        op_qkv_finish(b->dev, q, kv, 1, &rows, shape, rules, step_upload(b->dev, &s->step));
    }
}

/* The fp8 cache holds what quant_fp8 makes of an f32 cache's numbers, which become what that is worth. */
static void check_tiles(struct bed *b, struct kv_cache *fp8, struct kv_cache *f32, const struct bed_step *s) {
    size_t tile_bytes = KV_BLOCK * (HD + 4), n = (size_t)BED_BLOCKS * 2 * KV_HEADS;
    assert_int_equal(kv_cache_block_bytes(DTYPE_F8_E4M3, 1, KV_HEADS, HD), 2 * KV_HEADS * tile_bytes);
    char *tiles = mem_zalloc(n, tile_bytes);
    float *numbers = bed_floats(b, (int64_t)n * KV_BLOCK * HD);
    dev_download(b->dev, tiles, fp8->slab[1], n * tile_bytes);
    dev_download(b->dev, numbers, f32->slab[1], n * KV_BLOCK * HD * 4);
    for (int32_t position = 0; position < POSITIONS; position++)
        for (int32_t i = 0; i < 2 * KV_HEADS; i++) {
            size_t tile = (size_t)s->table[2 * BED_STRIDE + position / KV_BLOCK] * 2 * KV_HEADS + (size_t)i;
            uint8_t want[HD], *got = (uint8_t *)tiles + tile * tile_bytes + position % KV_BLOCK * HD;
            float *at = numbers + (tile * KV_BLOCK + (size_t)(position % KV_BLOCK)) * HD, scale;
            memcpy(&scale, tiles + tile * tile_bytes + KV_BLOCK * HD + position % KV_BLOCK * 4, 4);
            assert_true(quant_fp8(want, at, HD) == scale);
            assert_memory_equal(got, want, HD);
            for (int d = 0; d < HD; d++) at[d] = fp8_to_f32(got[d]) * scale;
        }
    dev_upload(b->dev, f32->slab[1], numbers, n * KV_BLOCK * HD * 4);
    free(tiles);
}

static void check_fp8_cache(struct bed *b, int32_t window) {
    static struct bed_step s;
    struct err err = {0};
    struct attention_shape shape = {.n_heads = HEADS, .n_kv_heads = KV_HEADS, .head_dim = HD, .scale = 0.3f,
                                    .sliding_window = window};
    struct rope rope;
    float inv_freq[HD / 2];
    for (int i = 0; i < HD / 2; i++) inv_freq[i] = powf(100.0f, (float)-i / HD);
    struct kv_cache *fp8, *f32;
    assert_ok(kv_cache_open(&fp8, b->dev, DTYPE_F8_E4M3, 2, BED_BLOCKS, KV_HEADS, HD, &err), &err);
    assert_ok(kv_cache_open(&f32, b->dev, DTYPE_F32, 2, BED_BLOCKS, KV_HEADS, HD, &err), &err);
    assert_ok(rope_open(&rope, b->dev, inv_freq, HD, POSITIONS, 1.0f, &err), &err);
    struct head_rules rules = {.rope = &rope};
    struct tensor qkv = bed_random_tensor(b, b->dtype, POSITIONS, (HEADS + 2 * KV_HEADS) * HD, 2);
    struct tensor q = bed_tensor(b, b->dtype, PIECE, HEADS * HD, NULL);
    write_cache(b, f32, &qkv, &q, &shape, &rules, &s);
    write_cache(b, fp8, &qkv, &q, &shape, &rules, &s);
    check_tiles(b, fp8, f32, &s);
    struct activation one = {.x = bed_tensor(b, b->dtype, PIECE, HEADS * HD, NULL)};
    struct activation two = {.x = bed_tensor(b, b->dtype, PIECE, HEADS * HD, NULL)};
    op_attention(b->dev, &one, &q, fp8, 1, &shape, step_upload(b->dev, &s.step));
    op_attention(b->dev, &two, &q, f32, 1, &shape, step_upload(b->dev, &s.step));
    float *got = bed_get(b, &one.x), *want = bed_get(b, &two.x);
    for (int i = 0; i < PIECE * HEADS * HD; i++) assert_true(got[i] == want[i]);
    kv_cache_close(b->dev, fp8);
    kv_cache_close(b->dev, f32);
    rope_close(b->dev, &rope);
}

static void fp8_cache(struct bed *b) {
    if (strcmp(dev_kind(b->dev), "cpu") != 0) return; /* a GPU scales scores and weights: test_op_attention.c */
    check_fp8_cache(b, 0);
    check_fp8_cache(b, 70);
}

static void an_fp8_cache_is_an_f32_cache_of_rounded_numbers(void **state) {
    each_bed(fp8_cache);
}

/* bytes = 4.127 bits a number for nf4-dq, and so on; the plan is never less than the truth. */
static void sizes(struct bed *b) {
    enum { N = 96, K = 256 };
    static const double bits_each[] = {8 + 32.0 / K, 4.5, 4.5, 4 + 8.0 / 64, 8 + 32.0 / K};
    for (int i = 0; i < N_KINDS; i++) {
        struct reference ref = make_weight(b, N, K, kinds[i]);
        double least = bits_each[i] * N * K / 8, has = (double)weight_bytes(ref.w);
        assert_true(has >= least && has <= least + 2 * 257 * 4 + 8);
        assert_true(weight_bytes_planned(N, K, b->dtype, kinds[i], 2) >= weight_bytes(ref.w));
        weight_free(b->dev, ref.w);
    }
}

static void weights_take_as_many_bytes_as_planned(void **state) {
    each_bed(sizes);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(products_follow_the_rule_of_each_kind),
    cmocka_unit_test(columns_of_outliers_are_those_of_bitsandbytes),
    cmocka_unit_test(a_row_sees_its_company_under_the_rule_of_the_batch_alone),
    cmocka_unit_test(products_of_integers_are_exact),
    cmocka_unit_test(products_do_not_see_other_rows),
    cmocka_unit_test(products_of_few_rows_have_the_bits_of_many),
    cmocka_unit_test(tensors_quantized_elsewhere_keep_their_maps),
    cmocka_unit_test(rows_of_a_tensor_may_go_to_several_places),
    cmocka_unit_test(codes_from_producers_are_those_of_their_numbers),
    cmocka_unit_test(pending_scales_change_nothing),
    cmocka_unit_test(large_tensors_are_quantized_by_threads_to_the_same_bytes),
    cmocka_unit_test(every_number_becomes_the_code_of_its_format),
    cmocka_unit_test(tensors_of_many_pieces_are_quantized_as_one),
    cmocka_unit_test(dummy_weights_are_the_same_again),
    cmocka_unit_test(an_fp8_cache_is_an_f32_cache_of_rounded_numbers),
    cmocka_unit_test(weights_take_as_many_bytes_as_planned),
};

UNIT_MAIN(tests)
