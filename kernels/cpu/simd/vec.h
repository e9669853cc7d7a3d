/* vec.h - vectors of floats in GNU C, bf16 in and out of them, and e^x.
 *
 * f8 is eight floats on every processor and fixes the shape of sums; `wide` is what
 * the processor does in one instruction, for the matrix product, where lanes are
 * output columns and their number does not matter to the result.
 *
 * Included by the files of this folder only. All functions are static: an inline
 * function that the linker merged across instruction sets would crash. */
#ifndef BATCHD_KERNELS_CPU_SIMD_VEC_H
#define BATCHD_KERNELS_CPU_SIMD_VEC_H

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#if defined __AVX__
#include <immintrin.h>
#endif

#define SIMD_JOIN_(a, b) a##_##b
#define SIMD_JOIN(a, b) SIMD_JOIN_(a, b)
#define SIMD_NAME(f) SIMD_JOIN(f, SIMD_VARIANT)

#define VEC static inline __attribute__((always_inline, unused))

typedef float f8 __attribute__((vector_size(32)));
typedef int32_t i8 __attribute__((vector_size(32)));
typedef uint32_t u8 __attribute__((vector_size(32)));
typedef uint16_t h8 __attribute__((vector_size(16)));

VEC f8 f8_load(const float *p) {
    f8 v;
    memcpy(&v, p, sizeof v);
    return v;
}

VEC void f8_store(float *p, f8 v) {
    memcpy(p, &v, sizeof v);
}

VEC f8 f8_all(float x) {
    return (f8){x, x, x, x, x, x, x, x};
}

/* a * b + c, rounded once where the instruction set can. */
VEC f8 f8_fma(f8 a, f8 b, f8 c) {
#if defined __FMA__
    return (f8)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

VEC float f1_fma(float a, float b, float c) {
#if defined __FMA__
    return __builtin_fmaf(a, b, c);
#else
    return a * b + c;
#endif
}

VEC f8 f8_select(i8 mask, f8 a, f8 b) { /* mask lanes: -1 takes a, 0 takes b */
    return (f8)(((i8)a & mask) | ((i8)b & ~mask));
}

/* Always the same tree. */
VEC float f8_sum(f8 v) {
    return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
}

/* The sums of eight vectors, each by f8_sum's tree. */
VEC f8 f8_sums(const f8 v[8]) {
#if defined __AVX__
    /* Two vectors share a register, halves already added; keys 0-3 in the low half, 4-7 in the high one. */
#define FOLD(a, b)                                                                                      \
    _mm256_add_ps(_mm256_permute2f128_ps((__m256)(a), (__m256)(b), 0x20),                               \
                  _mm256_permute2f128_ps((__m256)(a), (__m256)(b), 0x31))
    __m256 a = FOLD(v[0], v[4]), b = FOLD(v[1], v[5]), c = FOLD(v[2], v[6]), d = FOLD(v[3], v[7]);
#undef FOLD
    __m256 ab = _mm256_add_ps(_mm256_shuffle_ps(a, b, 0x44), _mm256_shuffle_ps(a, b, 0xee));
    __m256 cd = _mm256_add_ps(_mm256_shuffle_ps(c, d, 0x44), _mm256_shuffle_ps(c, d, 0xee));
    return (f8)_mm256_add_ps(_mm256_shuffle_ps(ab, cd, 0x88), _mm256_shuffle_ps(ab, cd, 0xdd));
#else
    f8 s;
    for (int i = 0; i < 8; i++) s[i] = f8_sum(v[i]);
    return s;
#endif
}

VEC f8 f8_larger(f8 a, f8 b) { /* lane by lane; b where either is NaN */
    return f8_select(a > b, a, b);
}

VEC float f8_max(f8 v) {
    float m = v[0];
    for (int i = 1; i < 8; i++) m = v[i] > m ? v[i] : m;
    return m;
}

/* e^x for x <= 88; below -87 it is 0, and NaN stays NaN. x = n ln 2 + r with |r| <= 0.35,
 * and e^r by its series up to r^7 / 7!, whose rest is below 2^-27 of it. The relative error
 * is below 1.2e-7 with fused multiply-adds and below 2e-7 without. */
VEC f8 f8_exp(f8 x) {
    const float ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f, magic = 12582912.0f;
    i8 underflow = x < f8_all(-87.0f), number = x == x;
    f8 y = f8_select(underflow, f8_all(-87.0f), x);
    f8 shifted = f8_fma(y, f8_all(1.44269504f), f8_all(magic)); /* n in the low bits of the mantissa */
    f8 n = shifted - f8_all(magic);
    f8 r = f8_fma(n, f8_all(-ln2_high), y);
    r = f8_fma(n, f8_all(-ln2_low), r);
    f8 e = f8_all(1.0f / 5040);
    e = f8_fma(e, r, f8_all(1.0f / 720));
    e = f8_fma(e, r, f8_all(1.0f / 120));
    e = f8_fma(e, r, f8_all(1.0f / 24));
    e = f8_fma(e, r, f8_all(1.0f / 6));
    e = f8_fma(e, r, f8_all(0.5f));
    e = f8_fma(e, r, f8_all(1.0f));
    e = f8_fma(e, r, f8_all(1.0f));
    u8 power = ((u8)shifted - (u8)f8_all(magic)) << 23;
    f8 result = (f8)((u8)e + power);
    result = (f8)((i8)result & ~underflow);
    return f8_select(number, result, x);
}

/* 1 - 2 / (1 + e^2x): off by 1e-7 at most. */
VEC f8 f8_tanh(f8 x) {
    f8 y = f8_select(x > f8_all(40.0f), f8_all(40.0f), x);
    y = f8_select(y < f8_all(-40.0f), f8_all(-40.0f), y);
    return f8_all(1.0f) - f8_all(2.0f) / (f8_all(1.0f) + f8_exp(y + y));
}

/* Abramowitz and Stegun, 7.1.26: off by 1.5e-7 at most. */
VEC f8 f8_erf(f8 x) {
    const float a[5] = {0.254829592f, -0.284496736f, 1.421413741f, -1.453152027f, 1.061405429f};
    i8 negative = x < f8_all(0.0f);
    f8 y = f8_select(negative, -x, x);
    f8 t = f8_all(1.0f) / f8_fma(f8_all(0.3275911f), y, f8_all(1.0f)), poly = f8_all(a[4]);
    for (int i = 3; i >= 0; i--) poly = f8_fma(poly, t, f8_all(a[i]));
    f8 erf = f8_all(1.0f) - poly * t * f8_exp(-(y * y));
    return f8_select(negative, -erf, erf);
}

/* ---------------------------------------------------------------- bf16 */

VEC float bf16_widen(uint16_t h) {
    uint32_t u = (uint32_t)h << 16;
    float x;
    memcpy(&x, &u, 4);
    return x;
}

VEC f8 f8_load_bf16(const uint16_t *p) {
    h8 h;
    memcpy(&h, p, sizeof h);
#if defined __AVX2__
    return (f8)_mm256_slli_epi32(_mm256_cvtepu16_epi32((__m128i)h), 16);
#else
    return (f8)(__builtin_convertvector(h, u8) << 16);
#endif
}

/* The upper half of each lane becomes the nearest bf16, ties to even; NaN stays NaN. */
VEC u8 f8_rounded_bits(f8 v) {
    u8 u = (u8)v, rounded = u + 0x7fff + (u >> 16 & 1);
    return (u8)f8_select(v == v, (f8)rounded, (f8)(u | 0x400000));
}

VEC f8 f8_round_bf16(f8 v) {
    return (f8)(f8_rounded_bits(v) & 0xffff0000u);
}

VEC void f8_store_bf16(uint16_t *p, f8 v) {
    h8 h = __builtin_convertvector(f8_rounded_bits(v) >> 16, h8);
    memcpy(p, &h, sizeof h);
}

/* ---------------------------------------------------------------- numbers of either dtype */

VEC f8 load(const void *p, int64_t i, bool bf16) {
    return bf16 ? f8_load_bf16((const uint16_t *)p + i) : f8_load((const float *)p + i);
}

VEC void store(void *p, int64_t i, f8 v, bool bf16) {
    if (bf16) f8_store_bf16((uint16_t *)p + i, v);
    else f8_store((float *)p + i, v);
}

/* The first n < 8 of eight numbers; zeros after them. */
VEC f8 load_part(const void *p, int64_t i, int64_t n, bool bf16) {
    f8 v = f8_all(0.0f);
    for (int64_t j = 0; j < n; j++)
        v[j] = bf16 ? bf16_widen(((const uint16_t *)p)[i + j]) : ((const float *)p)[i + j];
    return v;
}

VEC void store_part(void *p, int64_t i, int64_t n, f8 v, bool bf16) {
    u8 bits = f8_rounded_bits(v) >> 16;
    for (int64_t j = 0; j < n; j++) {
        if (bf16) ((uint16_t *)p)[i + j] = (uint16_t)bits[j];
        else ((float *)p)[i + j] = v[j];
    }
}

#endif
