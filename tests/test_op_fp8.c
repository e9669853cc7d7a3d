/* test_op_fp8.c - how numbers become fp8 codes: all numbers that bfloat16 has up to 448, and in
 * float32 the border between each two codes with its neighbours, as weights and as activations.
 *
 * A row with 448 in it has a scale of 1, so its codes are the nearest of the format's numbers.
 * They come back as 448 times a number, which every dtype of sums holds. */
#include "tests/aid_ops.h"

#include <math.h>

enum { K = 64, COLUMNS = K - 1 }; /* numbers to be looked at in a row; behind them is 448 */

/* What codes 0 .. 126 are worth: a sign, four bits of exponent, three of mantissa. */
static double worth(int code) {
    int exponent = code >> 3, mantissa = code & 7;
    return exponent == 0 ? ldexp(mantissa, -9) : ldexp(8 + mantissa, exponent - 10);
}

/* By a look at all of them; of two that are as near the even code. */
static double nearest(double x) {
    int best = 0;
    for (int code = 1; code <= 126; code++) {
        double mine = fabs(fabs(x) - worth(code)), its = fabs(fabs(x) - worth(best));
        if (mine < its || (mine == its && code % 2 == 0)) best = code;
    }
    return copysign(worth(best), x);
}

struct numbers {
    float *x;  /* [n_rows][K] */
    int64_t n; /* so far */
};

static void add(struct numbers *to, float x) {
    to->x[to->n / COLUMNS * K + to->n % COLUMNS] = x;
    to->n++;
}

/* Those that the dtype holds; n_rows of them, zeros behind the last. */
static float *all_numbers(struct bed *b, int64_t *n_rows) {
    enum { MOST = 2 * (0x43e1 + 3 * 126) };
    *n_rows = (MOST / COLUMNS + 16) / 16 * 16; /* sizes that tensor cores take */
    struct numbers all = {.x = bed_floats(b, *n_rows * K)};
    for (int64_t r = 0; r < *n_rows; r++) all.x[r * K + COLUMNS] = 448;
    for (int sign = -1; sign <= 1; sign += 2) {
        for (uint32_t h = 0; h <= 0x43e0; h++) add(&all, (float)sign * bf16_to_f32((uint16_t)h));
        for (int code = 0; code < 126; code++) {
            float border = (float)((worth(code) + worth(code + 1)) / 2);
            add(&all, (float)sign * border);
            add(&all, (float)sign * nextafterf(border, 0));
            add(&all, (float)sign * nextafterf(border, 448));
        }
    }
    for (int64_t i = 0; i < *n_rows * K; i++) all.x[i] = rounded(all.x[i], b->dtype);
    return all.x;
}

/* x[m, K] w[n, K]^T in f32; the weight quantized. */
static float *multiply(struct bed *b, const float *x, int64_t m, float *w, int64_t n) {
    struct weight *weight = weight_new_quantized(b->dev, n, K, b->dtype, QUANT_FP8);
    struct tensor host = tensor_2d(w, DTYPE_F32, n, K);
    assert_non_null(weight);
    weight_load(b->dev, weight, 0, &host);
    struct activation in = {.x = bed_tensor(b, b->dtype, m, K, x)};
    struct product y = {.y = bed_tensor(b, DTYPE_F32, m, n, NULL)};
    op_linear(b->dev, &y, &in, weight);
    float *got = bed_get(b, &y.y);
    weight_free(b->dev, weight);
    return got;
}

/* 448 on the diagonal: a product with it is the other operand, transposed or not. */
static float *diagonal(struct bed *b) {
    float *d = bed_floats(b, K * K);
    for (int i = 0; i < K; i++) d[i * K + i] = 448;
    return d;
}

static void assert_nearest(float got, float number) {
    double want = nearest((double)number);
    if ((double)got != 448 * want) fail_msg("%a becomes %a, not %a", (double)number, (double)got / 448, want);
}

static void weights(struct bed *b) {
    int64_t n;
    float *w = all_numbers(b, &n), *got = multiply(b, diagonal(b), K, w, n);
    for (int64_t r = 0; r < n; r++)
        for (int64_t k = 0; k < K; k++) assert_nearest(got[k * n + r], w[r * K + k]);
}

static void weights_become_the_nearest_codes(void **state) {
    each_bed(weights);
}

static void activations(struct bed *b) {
    int64_t m;
    float *x = all_numbers(b, &m), *got = multiply(b, x, m, diagonal(b), K);
    for (int64_t i = 0; i < m * K; i++) assert_nearest(got[i], x[i]);
}

static void activations_become_the_nearest_codes(void **state) {
    each_bed(activations);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(weights_become_the_nearest_codes),
    cmocka_unit_test(activations_become_the_nearest_codes),
};
UNIT_MAIN(tests)
