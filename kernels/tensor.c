/* tensor.c - see tensor.h. */
#include "kernels/tensor.h"

#include <assert.h>
#include <string.h>

static const struct {
    size_t bytes;
    const char *name;
} dtypes[] = {
    [DTYPE_F32] = {4, "float32"}, [DTYPE_F16] = {2, "float16"}, [DTYPE_BF16] = {2, "bfloat16"},
    [DTYPE_I32] = {4, "int32"},   [DTYPE_I8] = {1, "int8"},     [DTYPE_U8] = {1, "uint8"},
    [DTYPE_F8_E4M3] = {1, "float8_e4m3"},
};

size_t dtype_bytes(enum dtype t) {
    return dtypes[t].bytes;
}

const char *dtype_name(enum dtype t) {
    return dtypes[t].name;
}

struct tensor tensor_2d(void *data, enum dtype t, int64_t rows, int64_t cols) {
    return (struct tensor){.data = data, .dtype = t, .n_dims = 2, .shape = {rows, cols}};
}

struct tensor tensor_1d(void *data, enum dtype t, int64_t n) {
    return (struct tensor){.data = data, .dtype = t, .n_dims = 1, .shape = {n, 1}};
}

size_t tensor_bytes(const struct tensor *t) {
    return dtype_bytes(t->dtype) * (size_t)t->shape[0] * (size_t)t->shape[1];
}

static uint32_t bits_of(float x) {
    uint32_t u;
    memcpy(&u, &x, 4);
    return u;
}

static float float_of(uint32_t u) {
    float x;
    memcpy(&x, &u, 4);
    return x;
}

uint16_t bf16_from_f32(float x) {
    uint32_t u = bits_of(x);
    if ((u & 0x7fffffff) > 0x7f800000) return (uint16_t)(u >> 16 | 0x40); /* NaN stays one */
    return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

float bf16_to_f32(uint16_t x) {
    return float_of((uint32_t)x << 16);
}

uint16_t f16_from_f32(float x) {
    uint32_t u = bits_of(x), sign = u >> 16 & 0x8000, mag = u & 0x7fffffff;
    if (mag > 0x7f800000) return (uint16_t)(sign | 0x7e00);
    if (mag >= 0x477ff000) return (uint16_t)(sign | 0x7c00); /* 65520 and above round to infinity */
    if (mag < 0x38800000) { /* subnormal: adding 0.5 leaves the rounded multiple of 2^-24 in the low bits */
        return (uint16_t)(sign | (bits_of(float_of(mag) + 0.5f) - 0x3f000000));
    }
    return (uint16_t)(sign | ((mag + 0xfff + (mag >> 13 & 1) - 0x38000000) >> 13));
}

float f16_to_f32(uint16_t x) {
    uint32_t sign = (uint32_t)(x & 0x8000) << 16, exponent = x >> 10 & 31, mantissa = x & 0x3ff;
    if (exponent == 31) return float_of(sign | 0x7f800000 | mantissa << 13);
    if (exponent == 0) { /* subnormal: mantissa * 2^-24 */
        float m = (float)mantissa * 0x1p-24f;
        return sign ? -m : m;
    }
    return float_of(sign | (exponent + 112) << 23 | mantissa << 13);
}

void numbers_read(float *out, const void *from, enum dtype t, int64_t n) {
    const char *at = from;
    uint16_t h;
    assert(t == DTYPE_F32 || t == DTYPE_F16 || t == DTYPE_BF16);
    if (t == DTYPE_F32) {
        memcpy(out, at, (size_t)n * sizeof *out);
        return;
    }
    for (int64_t i = 0; i < n; i++) {
        memcpy(&h, at + 2 * i, 2);
        out[i] = t == DTYPE_BF16 ? bf16_to_f32(h) : f16_to_f32(h);
    }
}

float number_rounded(float x, enum dtype t) {
    if (t == DTYPE_BF16) return bf16_to_f32(bf16_from_f32(x));
    return t == DTYPE_F16 ? f16_to_f32(f16_from_f32(x)) : x;
}
