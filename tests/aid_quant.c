/* aid_quant.c - see aid_quant.h. */
#include "tests/aid_quant.h"

#include "base/mem.h"

const enum quant_kind kinds[N_KINDS] = {QUANT_INT8, QUANT_FP4, QUANT_NF4, QUANT_NF4_DQ, QUANT_FP8};

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

struct reference reference_new(struct bed *b, int64_t n, int64_t k, enum quant_kind kind) {
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

struct tensor make_rows(struct bed *b, int64_t m, int64_t k) {
    float *x = bed_floats(b, m * k);
    for (int64_t i = 0; i < m * k; i++) {
        x[i] = bed_random(b) * 3;
        if (bed_random_below(b, 40) == 0) x[i] = x[i] < 0 ? x[i] - 6 : x[i] + 6;
    }
    return bed_tensor(b, b->dtype, m, k, x);
}
