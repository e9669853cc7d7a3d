/* test_op_outliers.c - which columns of activations an int8 product keeps out of its codes: by each
 * row alone, or by all rows of the batch, as bitsandbytes does. */
#include "tests/aid_matrix.h"
#include "tests/aid_quant.h"

#include "base/mem.h"

#include <inttypes.h>
#include <math.h>

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

/* ---------------------------------------------------------------- company */

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
    struct reference ref = reference_new(b, N, K, QUANT_INT8);
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

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(columns_of_outliers_are_those_of_bitsandbytes),
    cmocka_unit_test(a_row_sees_its_company_under_the_rule_of_the_batch_alone),
};

UNIT_MAIN(tests)
