/* test_quantize.c - quantized formats against bitsandbytes, PyTorch and the formulas in
 * numpy, byte for byte; tests/data/quantize/make.py says how the fixtures came about. */
#include "tests/aid_matrix.h"
#include "tests/unit.h"

#include "base/hash.h"
#include "base/mem.h"
#include "kernels/quantize.h"
#include "kernels/tensor.h"

#include <inttypes.h>
#include <math.h>

/* ---------------------------------------------------------------- fixtures */

static void round_to(float *w, int64_t n, const char *dtype) {
    for (int64_t i = 0; i < n; i++) {
        if (strcmp(dtype, "bfloat16") == 0) w[i] = bf16_to_f32(bf16_from_f32(w[i]));
        if (strcmp(dtype, "float16") == 0) w[i] = f16_to_f32(f16_from_f32(w[i]));
    }
}

struct fixture {
    char kind[24], dtype[16];
    int64_t rows, cols, block;
    uint64_t seed;
    char hash[5][17]; /* codes, absmax or scales, absmax2 or columns taken out, offset, numbers */
};

static void same_bytes(const struct fixture *f, int which, const void *data, size_t bytes) {
    static const char *const what[] = {"codes", "scales", "absmax2 (int8: columns)", "offset", "dequantized numbers"};
    char hex[SHA256_HEX];
    struct sha256 *s = sha256_new();
    sha256_add(s, data, bytes);
    sha256_finish(s, hex);
    if (strncmp(hex, f->hash[which], 16) != 0)
        fail_msg("%s %s [%" PRId64 ", %" PRId64 "], block %" PRId64 ", seed %" PRIu64 ": the %s differ", f->kind,
                 f->dtype, f->rows, f->cols, f->block, f->seed, what[which]);
}

static void check_4bit(const struct fixture *f, const float *w) {
    int64_t n = f->rows * f->cols, n_blocks = quant_blocks(n, f->block);
    enum quant_kind kind;
    assert_true(quant_from_name(&kind, f->kind));
    uint8_t *packed = mem_zalloc((size_t)(n + 1) / 2, 1), *codes = mem_zalloc((size_t)n_blocks, 1);
    float *absmax = mem_zalloc((size_t)n_blocks, 4), *absmax2 = mem_zalloc((size_t)n_blocks, 4), offset;
    float *back = mem_zalloc((size_t)n, 4);
    quant_4bit(packed, absmax, w, n, f->block, kind);
    same_bytes(f, 0, packed, (size_t)(n + 1) / 2);
    if (kind == QUANT_NF4_DQ) {
        quant_nested(codes, absmax2, &offset, absmax, n_blocks);
        same_bytes(f, 3, &offset, 4);
        same_bytes(f, 2, absmax2, (size_t)quant_blocks(n_blocks, QUANT_NESTED_BLOCK) * 4);
        same_bytes(f, 1, codes, (size_t)n_blocks);
        quant_nested_back(absmax, codes, absmax2, offset, n_blocks);
    } else same_bytes(f, 1, absmax, (size_t)n_blocks * 4);
    quant_4bit_back(back, packed, absmax, 0, n, f->block, quant_codes(kind));
    same_bytes(f, 4, back, (size_t)n * 4);
    for (int64_t i = 0; i < n; i += n / 7 + 1) { /* a part is what it is in the whole */
        float part[3];
        int64_t m = n - i < 3 ? n - i : 3;
        quant_4bit_back(part, packed, absmax, i, m, f->block, quant_codes(kind));
        assert_memory_equal(part, back + i, (size_t)m * 4);
    }
    free(packed);
    free(codes);
    free(absmax);
    free(absmax2);
    free(back);
}

static void check_8bit(const struct fixture *f, const float *w) {
    int64_t n = f->rows * f->cols;
    uint8_t *q = mem_zalloc((size_t)n, 1);
    float *scale = mem_zalloc((size_t)f->rows, 4), *back = mem_zalloc((size_t)n, 4);
    bool is_fp8 = strcmp(f->kind, "fp8") == 0, is_batch = strcmp(f->kind, "int8-batch") == 0;
    bool is_activation = is_batch || strcmp(f->kind, "int8-activation") == 0;
    bool *is_out = mem_zalloc((size_t)f->cols, sizeof *is_out);
    for (int64_t r = 0; r < f->rows; r++) {
        int64_t at = r * f->cols;
        if (is_fp8) {
            scale[r] = quant_fp8(q + at, w + at, f->cols);
            for (int64_t i = 0; i < f->cols; i++) back[at + i] = fp8_to_f32(q[at + i]) * scale[r];
        } else if (is_activation) {
            for (int64_t i = 0; i < f->cols; i++) back[i] = w[at + i] * 8;
            scale[r] = quant_int8_activation((int8_t *)q + at, back, f->cols, 6.0f);
            quant_int8_mark(is_out, back, f->cols, 6.0f);
        } else {
            scale[r] = quant_int8((int8_t *)q + at, w + at, f->cols);
            quant_int8_back(back + at, (int8_t *)q + at, scale[r], f->cols);
        }
    }
    for (int64_t r = 0; is_batch && r < f->rows; r++) quant_int8_take_out((int8_t *)q + r * f->cols, is_out, f->cols);
    same_bytes(f, 0, q, (size_t)n);
    same_bytes(f, 1, scale, (size_t)f->rows * 4);
    if (is_batch) same_bytes(f, 2, is_out, (size_t)f->cols);
    if (!is_activation) same_bytes(f, 4, back, (size_t)n * 4);
    free(q);
    free(scale);
    free(back);
    free(is_out);
}

/* How many lines the file has; each is computed anew. */
static int check_file(const char *path) {
    FILE *file = fopen(path, "r");
    struct fixture f;
    int n = 0;
    assert_non_null(file);
    while (fscanf(file, "%23s %15s %" SCNd64 " %" SCNd64 " %" SCNd64 " %" SCNu64 " %16s %16s %16s %16s %16s", f.kind,
                  f.dtype, &f.rows, &f.cols, &f.block, &f.seed, f.hash[0], f.hash[1], f.hash[2], f.hash[3],
                  f.hash[4]) == 11) {
        float *w = random_matrix(f.rows, f.cols, f.seed);
        round_to(w, f.rows * f.cols, f.dtype);
        if (f.block > 0) check_4bit(&f, w);
        else check_8bit(&f, w);
        free(w);
        n++;
    }
    assert_true(feof(file));
    fclose(file);
    return n;
}

static void twenty_matrices_are_those_of_bitsandbytes(void **state) {
    assert_int_equal(check_file("tests/data/quantize/bitsandbytes.txt"), 5 * 20);
}

static void odd_sizes_fp4_and_fp8_are_as_the_formulas_say(void **state) {
    assert_int_equal(check_file("tests/data/quantize/formulas.txt"), 11 * 7);
}

static void means_are_summed_in_pytorchs_order(void **state) {
    FILE *file = fopen("tests/data/quantize/means.txt", "r");
    int64_t n;
    uint64_t seed;
    uint32_t want, got;
    int lines = 0;
    assert_non_null(file);
    for (; fscanf(file, "%" SCNd64 " %" SCNu64 " %" SCNx32, &n, &seed, &want) == 3; lines++) {
        float *x = random_matrix(1, n, seed);
        for (int64_t i = 0; i < n; i++) x[i] = fabsf(x[i]);
        float mean = quant_mean(x, n);
        memcpy(&got, &mean, 4);
        if (got != want) fail_msg("the mean of %" PRId64 " numbers is %08x, not %08x", n, got, want);
        free(x);
    }
    fclose(file);
    assert_int_equal(lines, 22);
}

/* ---------------------------------------------------------------- tables and single numbers */

static void expect_table(const char *name, const void *data, size_t bytes) {
    FILE *file = fopen("tests/data/quantize/tables.txt", "r");
    char has[32], hash[17], hex[SHA256_HEX];
    struct sha256 *s = sha256_new();
    sha256_add(s, data, bytes);
    sha256_finish(s, hex);
    assert_non_null(file);
    while (fscanf(file, "%31s %16s", has, hash) == 2)
        if (strcmp(has, name) == 0) {
            fclose(file);
            if (strncmp(hex, hash, 16) != 0) fail_msg("table %s differs", name);
            return;
        }
    fail_msg("no table %s", name);
}

static void tables_are_the_published_ones(void **state) {
    expect_table("nf4", quant_codes(QUANT_NF4), 16 * 4);
    expect_table("dynamic", quant_dynamic_map(), 256 * 4);
}

static int ascending(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return x < y ? -1 : x > y;
}

static void fp8_rounds_to_nearest_ties_to_even(void **state) {
    float value[254], near[3 * 253];
    uint8_t code[3 * 253];
    int n = 0;
    for (int c = 0; c < 256; c++) {
        if ((c & 0x7f) == 0x7f) continue;
        value[n++] = fp8_to_f32((uint8_t)c);
        if (c != 0x80) assert_int_equal(fp8_from_f32(fp8_to_f32((uint8_t)c)), c);
    }
    qsort(value, 254, sizeof *value, ascending);
    for (int i = 0; i < 253; i++) {
        near[i] = (value[i] + value[i + 1]) / 2;
        if (near[i] == 0) near[i] = 0; /* between -0 and 0: 0 */
        near[253 + i] = nextafterf(near[i], -1e9f);
        near[506 + i] = nextafterf(near[i], 1e9f);
    }
    expect_table("fp8-middles", near, 253 * 4);
    for (int i = 0; i < 3 * 253; i++) code[i] = fp8_from_f32(near[i]);
    expect_table("fp8-of-middles", code, sizeof code);
}

static void fp8_of_every_bfloat16(void **state) {
    uint8_t *code = mem_zalloc(65536, 1);
    size_t n = 0;
    for (uint32_t h = 0; h < 65536; h++)
        if (isfinite(bf16_to_f32((uint16_t)h))) code[n++] = fp8_from_f32(bf16_to_f32((uint16_t)h));
    expect_table("fp8-of-bfloat16", code, n);
    free(code);
    assert_int_equal(fp8_from_f32(INFINITY), 0x7e);
    assert_int_equal(fp8_from_f32(-INFINITY), 0xfe);
    assert_int_equal(fp8_from_f32(NAN) & 0x7f, 0x7f);
    assert_true(isnan(fp8_to_f32(0x7f)) && isnan(fp8_to_f32(0xff)));
}

/* A block whose absmax is 1 shows a number as it is. */
static uint8_t one_code(float x, enum quant_kind kind) {
    float w[32] = {1, x}, absmax;
    uint8_t packed[16];
    quant_4bit(packed, &absmax, w, 32, 32, kind);
    assert_true(absmax == 1);
    return packed[0] & 15;
}

static void a_number_in_the_middle_takes_the_lower_code(void **state) {
    const float *nf4 = quant_codes(QUANT_NF4);
    for (uint8_t c = 0; c < 15; c++) {
        float middle = (nf4[c] + nf4[c + 1]) / 2;
        assert_int_equal(one_code(middle, QUANT_NF4), c);
        assert_int_equal(one_code(nextafterf(middle, 2), QUANT_NF4), c + 1);
    }
    static const float fp4[] = {0.00260417f, 0.0859375f, 0.20833333f, 0.29166667f, 0.4166667f, 0.583333f, 0.8333333f};
    static const uint8_t order[] = {0, 1, 6, 7, 4, 5, 2, 3};
    for (int i = 0; i < 7; i++) {
        assert_int_equal(one_code(fp4[i], QUANT_FP4), order[i]);
        assert_int_equal(one_code(nextafterf(fp4[i], 2), QUANT_FP4), order[i + 1]);
        assert_int_equal(one_code(-fp4[i], QUANT_FP4), order[i] | 8);
        assert_int_equal(one_code(nextafterf(-fp4[i], -2), QUANT_FP4), order[i + 1] | 8);
    }
}

static void zeros_stay_zeros(void **state) {
    float w[100] = {0}, absmax[4] = {9, 9, 9, 9}, absmax2 = 9, offset = 9, back[100];
    uint8_t packed[50], codes[4];
    int8_t q[100];
    quant_4bit(packed, absmax, w, 100, 32, QUANT_NF4);
    quant_nested(codes, &absmax2, &offset, absmax, 4);
    quant_nested_back(absmax, codes, &absmax2, offset, 4);
    quant_4bit_back(back, packed, absmax, 0, 100, 32, quant_codes(QUANT_NF4));
    for (int i = 0; i < 100; i++) assert_true(back[i] == 0);
    assert_true(quant_int8(q, w, 100) == 0 && q[0] == 0 && q[99] == 0);
    assert_true(quant_int8_activation(q, w, 100, 6) == 0 && q[0] == 0 && q[99] == 0);
    float scale = quant_fp8(packed, w, 50);
    assert_true(scale > 0 && isfinite(1 / scale) && packed[0] == 0 && packed[49] == 0);
    w[3] = 1e-44f; /* the smallest of numbers do not divide by zero */
    assert_true(quant_int8_activation(q, w, 100, 6) == 0 && q[3] == 0);
    quant_4bit(packed, absmax, w, 100, 32, QUANT_FP4);
    quant_4bit_back(back, packed, absmax, 0, 100, 32, quant_codes(QUANT_FP4));
    for (int i = 0; i < 100; i++) assert_true(fabsf(back[i]) <= 1e-44f);
}

static void kinds_have_names(void **state) {
    enum quant_kind kind;
    for (int i = 0; i < N_QUANT_KINDS; i++) {
        assert_true(quant_from_name(&kind, quant_name((enum quant_kind)i)));
        assert_int_equal(kind, i);
    }
    assert_false(quant_from_name(&kind, "int4"));
    assert_true(quant_block_is_valid(32) && quant_block_is_valid(4096));
    assert_false(quant_block_is_valid(16) || quant_block_is_valid(96) || quant_block_is_valid(8192));
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(twenty_matrices_are_those_of_bitsandbytes),
    cmocka_unit_test(odd_sizes_fp4_and_fp8_are_as_the_formulas_say),
    cmocka_unit_test(means_are_summed_in_pytorchs_order),
    cmocka_unit_test(tables_are_the_published_ones),
    cmocka_unit_test(fp8_rounds_to_nearest_ties_to_even),
    cmocka_unit_test(fp8_of_every_bfloat16),
    cmocka_unit_test(a_number_in_the_middle_takes_the_lower_code),
    cmocka_unit_test(zeros_stay_zeros),
    cmocka_unit_test(kinds_have_names),
};

UNIT_MAIN(tests)
