/* test_op_fp8_rows.c - rows of fp8 codes with a scale each: activations between operations, products
 * whose scales are pending, keys and values in a cache. */
#include "tests/aid_quant.h"

#include "base/mem.h"

#include <math.h>

/* ---------------------------------------------------------------- between operations */

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

/* ---------------------------------------------------------------- keys and values */

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

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(codes_from_producers_are_those_of_their_numbers),
    cmocka_unit_test(pending_scales_change_nothing),
    cmocka_unit_test(an_fp8_cache_is_an_f32_cache_of_rounded_numbers),
};

UNIT_MAIN(tests)
