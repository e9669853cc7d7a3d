/* test_op_quant_load.c - numbers of a tensor on their way into a quantized weight: the bytes are
 * those of quantize.h's functions, however many threads make them and wherever rows go. */
#include "tests/aid_quant.h"

#include "base/mem.h"

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

/* ---------------------------------------------------------------- rows that part, bytes in all */

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

/* bytes = 4.127 bits a number for nf4-dq, and so on; the plan is never less than the truth. */
static void sizes(struct bed *b) {
    enum { N = 96, K = 256 };
    static const double bits_each[] = {8 + 32.0 / K, 4.5, 4.5, 4 + 8.0 / 64, 8 + 32.0 / K};
    for (int i = 0; i < N_KINDS; i++) {
        struct reference ref = reference_new(b, N, K, kinds[i]);
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
    cmocka_unit_test(every_number_becomes_the_code_of_its_format),
    cmocka_unit_test(tensors_of_many_pieces_are_quantized_as_one),
    cmocka_unit_test(large_tensors_are_quantized_by_threads_to_the_same_bytes),
    cmocka_unit_test(rows_of_a_tensor_may_go_to_several_places),
    cmocka_unit_test(dummy_weights_are_the_same_again),
    cmocka_unit_test(weights_take_as_many_bytes_as_planned),
};

UNIT_MAIN(tests)
