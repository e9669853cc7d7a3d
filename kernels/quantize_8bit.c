/* quantize_8bit.c - the kinds by name, int8 and fp8; see quantize.h. */
#include "kernels/quantize.h"
#include "kernels/tensor.h"

#include <math.h>
#include <string.h>

static const char *const names[] = {
    [QUANT_NONE] = "none",     [QUANT_INT8] = "int8", [QUANT_FP4] = "fp4",             [QUANT_NF4] = "nf4",
    [QUANT_NF4_DQ] = "nf4-dq", [QUANT_FP8] = "fp8",   [QUANT_FP8_BLOCK] = "fp8-block",
};

const char *quant_name(enum quant_kind kind) {
    return names[kind];
}

bool quant_from_name(enum quant_kind *out, const char *name) {
    for (int i = 0; i < N_QUANT_KINDS; i++)
        if (strcmp(names[i], name) == 0) {
            *out = (enum quant_kind)i;
            return true;
        }
    return false;
}

bool int8_outliers_from_name(enum int8_outliers *out, const char *name) {
    bool is_batch = strcmp(name, "batch") == 0;
    if (!is_batch && strcmp(name, "row") != 0) return false;
    *out = is_batch ? INT8_OUTLIERS_BATCH : INT8_OUTLIERS_ROW;
    return true;
}

/* ---------------------------------------------------------------- int8 */

static float fp16(float x) {
    return f16_to_f32(f16_from_f32(x));
}

float quant_int8(int8_t *q, const float *w, int64_t n) {
    float most = 0;
    for (int64_t i = 0; i < n; i++) {
        float size = fabsf(fp16(w[i]));
        most = size > most ? size : most;
    }
    float scale = 1.0f / most * 127.0f; /* rounded twice, as PyTorch divides a number by a tensor */
    for (int64_t i = 0; i < n; i++) q[i] = most > 0 ? (int8_t)rintf(fp16(w[i]) * scale) : 0;
    return most;
}

void quant_int8_back(float *w, const int8_t *q, float scale, int64_t n) {
    for (int64_t i = 0; i < n; i++) w[i] = (float)q[i] * scale * (1.0f / 127);
}

float quant_int8_activation(int8_t *q, const float *x, int64_t n, float threshold) {
    float most = 0;
    for (int64_t i = 0; i < n; i++) {
        float size = fabsf(x[i]);
        most = size > most && size < threshold ? size : most;
    }
    float scale = most > 0 ? 1.0f / most * 127.0f : 0;
    if (!isfinite(scale)) { /* so small a row is lost in any case */
        most = 0;
        scale = 0;
    }
    for (int64_t i = 0; i < n; i++) q[i] = fabsf(x[i]) < threshold ? (int8_t)rintf(x[i] * scale) : 0;
    return most;
}

void quant_int8_mark(bool *is_out, const float *x, int64_t n, float threshold) {
    for (int64_t i = 0; i < n; i++) is_out[i] |= !(fabsf(x[i]) < threshold);
}

void quant_int8_take_out(int8_t *q, const bool *is_out, int64_t n) {
    for (int64_t i = 0; i < n; i++) q[i] = is_out[i] ? 0 : q[i];
}

/* ---------------------------------------------------------------- fp8 */

uint8_t fp8_from_f32(float x) {
    uint32_t u, sign, size;
    memcpy(&u, &x, 4);
    sign = u >> 24 & 0x80;
    size = u & 0x7fffffff;
    if (size > 0x7f800000) return (uint8_t)(sign | 0x7f);
    if (size >= 0x43e00000) return (uint8_t)(sign | 0x7e); /* 448 */
    if (size < 0x3c800000) { /* below 2^-6: a multiple of 2^-9, which 2^14 leaves in the low bits */
        float shifted;
        memcpy(&shifted, &size, 4);
        shifted += 16384.0f;
        memcpy(&u, &shifted, 4);
        return (uint8_t)(sign | (u - 0x46800000));
    }
    return (uint8_t)(sign | (size + 0x7ffff + (size >> 20 & 1) - (120u << 23)) >> 20);
}

float fp8_to_f32(uint8_t x) {
    int exponent = x >> 3 & 15, mantissa = x & 7;
    float size = exponent == 15 && mantissa == 7 ? NAN
                 : exponent == 0                 ? ldexpf((float)mantissa, -9)
                                                 : ldexpf((float)(8 + mantissa), exponent - 10);
    return x & 0x80 ? -size : size;
}

float quant_fp8(uint8_t *q, const float *w, int64_t n) {
    float most = 0;
    for (int64_t i = 0; i < n; i++) most = fabsf(w[i]) > most ? fabsf(w[i]) : most;
    float scale = most / 448.0f;
    if (!(scale > 0x1p-100f)) scale = 0x1p-100f; /* a row of zeros; and 1 / scale stays finite */
    float inverse = 1.0f / scale;
    for (int64_t i = 0; i < n; i++) q[i] = fp8_from_f32(w[i] * inverse);
    return scale;
}
