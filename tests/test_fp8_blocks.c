/* test_fp8_blocks.c - weights in fp8 with scales for blocks: every number, every border. Whole
 * models against torch are in test_quantization.c. */
#include "tests/unit.h"
#include "tests/aid_jobs.h"

#include "base/mem.h"
#include "engine/model/fp8_blocks.h"
#include "engine/model/quantization.h"

static const char name[] = "a.weight";

/* One weight [n, k] of all codes but NaN in turn, with scales [sn, sk] of the dtype "F32" or
 * "BF16"; sk 0: with scales [sn]. */
static struct checkpoint *make(const char *suffix, int64_t n, int64_t k, int64_t sn, int64_t sk, const char *scale_dtype) {
    char header[400], shape[40], *path = temp_path("w.safetensors");
    bool is_f32 = strcmp(scale_dtype, "F32") == 0;
    snprintf(shape, sizeof shape, sk ? "%ld,%ld" : "%ld", (long)sn, (long)sk);
    if (sk == 0) sk = 1;
    long codes = (long)(n * k), scales = (long)(sn * sk * (is_f32 ? 4 : 2));
    int bytes = snprintf(header, sizeof header,
                         "{\"a.weight\":{\"dtype\":\"F8_E4M3\",\"shape\":[%ld,%ld],\"data_offsets\":[0,%ld]},"
                         "\"a.%s\":{\"dtype\":\"%s\",\"shape\":[%s],\"data_offsets\":[%ld,%ld]}}",
                         (long)n, (long)k, codes, suffix, scale_dtype, shape, codes, codes + scales);
    uint64_t length = (uint64_t)bytes;
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fwrite(&length, 8, 1, f);
    fwrite(header, 1, (size_t)bytes, f);
    for (long i = 0; i < codes; i++) putc((int)((i * 7 % 127) | (i % 3 ? 0 : 128)), f);
    for (int64_t i = 0; i < sn * sk; i++) {
        float x = 0.01f * (float)(i + 1);
        uint16_t half = bf16_from_f32(x);
        fwrite(is_f32 ? (void *)&x : (void *)&half, is_f32 ? 4 : 2, 1, f);
    }
    fclose(f);
    struct checkpoint *c;
    struct err err = ERR_INIT;
    assert_ok(checkpoint_open_file(&c, path, &err), &err);
    free(path);
    return c;
}

static float scale_at(const struct checkpoint *c, const char *suffix, int64_t i) {
    char scale_name[40];
    float x;
    snprintf(scale_name, sizeof scale_name, "a.%s", suffix);
    const struct checkpoint_tensor *t = checkpoint_find(c, scale_name);
    numbers_read(&x, (const char *)t->data + (size_t)i * dtype_bytes(t->dtype), t->dtype, 1);
    return x;
}

static void check_numbers(const char *suffix, int64_t n, int64_t k, struct fp8_block block, const char *scale_dtype,
                          enum dtype dtype) {
    int64_t sn = (n + block.rows - 1) / block.rows, sk = (k + block.cols - 1) / block.cols;
    struct checkpoint *c = make(suffix, n, k, sn, sk, scale_dtype);
    const uint8_t *codes = checkpoint_find(c, name)->data;
    struct tensor t;
    struct err err = ERR_INIT;
    assert_true(fp8_blocks_is(c, name));
    assert_ok(fp8_blocks_read(NULL, c, name, n, k, block, dtype, &err), &err);
    assert_ok(fp8_blocks_read(&t, c, name, n, k, block, dtype, &err), &err);
    assert_int_equal(t.dtype, dtype == DTYPE_BF16 ? DTYPE_BF16 : DTYPE_F32);
    for (int64_t i = 0; i < n * k; i++) {
        float x = fp8_to_f32(codes[i]) * scale_at(c, suffix, i / k / block.rows * sk + i % k / block.cols);
        if (t.dtype == DTYPE_BF16) assert_int_equal(((uint16_t *)t.data)[i], bf16_from_f32(x));
        else assert_memory_equal((float *)t.data + i, &x, 4);
    }
    free(t.data);
    checkpoint_close(c);
}

static void a_number_is_code_times_scale(void **state) {
    check_numbers("weight_scale_inv", 1, 1, (struct fp8_block){128, 128}, "F32", DTYPE_F32);
    check_numbers("weight_scale_inv", 300, 257, (struct fp8_block){128, 128}, "F32", DTYPE_F32);
    check_numbers("weight_scale_inv", 256, 128, (struct fp8_block){128, 128}, "BF16", DTYPE_BF16);
    check_numbers("weight_scale", 33, 70, (struct fp8_block){16, 24}, "BF16", DTYPE_F16);
    check_numbers("weight_scale", 5, 9, (struct fp8_block){1, 4}, "F32", DTYPE_BF16);
    check_numbers("weight_scale_inv", 2100, 1000, (struct fp8_block){128, 128}, "F32", DTYPE_BF16); /* several threads */
}

static void other_scales_are_not_of_blocks(void **state) {
    struct checkpoint *rows = make("weight_scale", 7, 5, 7, 1, "F32"), *one = make("weight_scale", 7, 5, 1, 1, "F32");
    assert_false(fp8_blocks_is(rows, name));
    assert_false(fp8_blocks_is(one, name));
    assert_false(fp8_blocks_is(one, "a.weight_scale"));
    assert_false(fp8_blocks_is(one, "b.weight"));
    checkpoint_close(rows);
    checkpoint_close(one);
}

/* transformers calls it weight_scale_inv where there are no blocks either. */
static void one_scale_is_that_of_all_rows_under_either_name(void **state) {
    static const char *const suffixes[] = {"weight_scale_inv", "weight_scale"};
    for (int i = 0; i < 2; i++) {
        struct checkpoint *c = make(suffixes[i], 7, 5, 1, 0, "BF16");
        struct quantized_tensor t;
        struct err err = ERR_INIT;
        assert_int_equal(quantized_kind(c, name), QUANT_FP8);
        assert_ok(quantized_tensor_read(&t, c, name, 7, 5, &err), &err);
        for (int r = 0; r < 7; r++) assert_true(t.scale[r] == scale_at(c, suffixes[i], 0));
        quantized_tensor_clear(&t);
        checkpoint_close(c);
    }
}

static void put_code(int code, long from_end) {
    char *path = temp_path("w.safetensors");
    FILE *f = fopen(path, "r+");
    assert_non_null(f);
    fseek(f, -from_end, SEEK_END);
    putc(code, f);
    fclose(f);
    free(path);
}

static void a_plan_does_not_read_the_codes(void **state) {
    struct checkpoint *c = make("weight_scale", 7, 5, 7, 1, "F32");
    struct quantized_tensor t;
    struct err err = ERR_INIT;
    assert_ok(quantized_tensor_check(c, name, &err), &err);
    put_code(0xff, 7 * 4 + 7 * 5 - (3 * 5 + 2));
    assert_ok(quantized_tensor_read(&t, c, name, 7, 5, &err), &err);
    quantized_tensor_clear(&t);
    assert_err(quantized_tensor_check(c, name, &err), E_PARSE, "a.weight: the number at [3, 2] is not finite", &err);
    checkpoint_close(c);
}

static void refused(int64_t sn, int64_t sk, const char *scale_dtype, struct fp8_block block, int64_t k, int code,
                    const char *part) {
    struct checkpoint *c = make("weight_scale_inv", 40, 30, sn, sk, scale_dtype);
    struct tensor t;
    struct err err = ERR_INIT;
    assert_err(fp8_blocks_read(NULL, c, name, 40, k, block, DTYPE_F32, &err), code, part, &err);
    assert_err(fp8_blocks_read(&t, c, name, 40, k, block, DTYPE_F32, &err), code, part, &err);
    checkpoint_close(c);
}

static void what_does_not_fit_is_refused_by_name(void **state) {
    struct fp8_block block = {16, 16};
    refused(3, 2, "F32", (struct fp8_block){0}, 30, E_PARSE, "a.weight_scale_inv has scales for blocks, but config.json");
    refused(3, 3, "F32", block, 30, E_PARSE, "a.weight_scale_inv has shape [3, 3], expected [3, 2] for blocks of 16 x 16");
    refused(2, 2, "F32", block, 30, E_PARSE, "expected [3, 2]");
    refused(3, 2, "F32", block, 31, E_PARSE, "a.weight does not have the shape [40, 31]");
    refused(3, 2, "I16", block, 30, E_UNSUPPORTED, "a.weight_scale_inv has dtype I16");
}

/* Patch the file in the mapping: it is private to this process's folder. */
static void numbers_that_are_not_finite_are_refused(void **state) {
    struct checkpoint *c = make("weight_scale_inv", 40, 30, 3, 2, "F32");
    char *path = temp_path("w.safetensors");
    FILE *f = fopen(path, "r+");
    long behind = 40 * 30 + 6 * 4;
    struct tensor t;
    struct err err = ERR_INIT;
    fseek(f, -behind + 20 * 30 + 17, SEEK_END);
    putc(0x7f, f);
    fflush(f);
    assert_err(fp8_blocks_read(&t, c, name, 40, 30, (struct fp8_block){16, 16}, DTYPE_F32, &err), E_PARSE,
               "a.weight: a number from [20, 16] on is not finite", &err);
    float infinite = 1.0f / 0.0f;
    fseek(f, -4, SEEK_END);
    fwrite(&infinite, 4, 1, f);
    fclose(f);
    assert_err(fp8_blocks_read(&t, c, name, 40, 30, (struct fp8_block){16, 16}, DTYPE_F32, &err), E_PARSE,
               "a.weight_scale_inv: number 5 is not finite", &err);
    checkpoint_close(c);
    free(path);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(a_number_is_code_times_scale),
    cmocka_unit_test(other_scales_are_not_of_blocks),
    cmocka_unit_test(one_scale_is_that_of_all_rows_under_either_name),
    cmocka_unit_test(a_plan_does_not_read_the_codes),
    cmocka_unit_test(what_does_not_fit_is_refused_by_name),
    cmocka_unit_test(numbers_that_are_not_finite_are_refused),
};

UNIT_MAIN(tests)
