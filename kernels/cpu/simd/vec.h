/* vec.h - vectors of eight and sixteen floats in GNU C, and e^x on them.
 *
 * Included by the files of this folder only. All functions are static: an inline
 * function that the linker merged across instruction sets would crash. */
#ifndef BATCHD_KERNELS_CPU_SIMD_VEC_H
#define BATCHD_KERNELS_CPU_SIMD_VEC_H

#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined __x86_64__
#include <immintrin.h>
#endif

typedef float f8 __attribute__((vector_size(32)));
typedef int32_t i8 __attribute__((vector_size(32)));

#define SIMD_JOIN_(a, b) a##_##b
#define SIMD_JOIN(a, b) SIMD_JOIN_(a, b)
#define SIMD_NAME(f) SIMD_JOIN(f, SIMD_VARIANT)

/* Without AVX a vector of 32 bytes cannot be passed by value in a stable way; these are
 * all inlined, so the warning is of no concern. */
#pragma GCC diagnostic ignored "-Wpsabi"

#define VEC static inline __attribute__((always_inline, unused))

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

/* Eight bf16 numbers to f32. */
VEC f8 f8_load_bf16(const uint16_t *p) {
#if defined __AVX2__
    __m128i h = _mm_loadu_si128((const __m128i *)p);
    return (f8)_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
#else
    i8 v;
    for (int i = 0; i < 8; i++) v[i] = (int32_t)((uint32_t)p[i] << 16);
    return (f8)v;
#endif
}

/* Always the same tree. */
VEC float f8_sum(f8 v) {
    return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
}

VEC float f8_max(f8 v) {
    float m = v[0];
    for (int i = 1; i < 8; i++) m = v[i] > m ? v[i] : m;
    return m;
}

VEC f8 f8_select(i8 mask, f8 a, f8 b) { /* mask lanes: -1 takes a, 0 takes b */
    return (f8)(((i8)a & mask) | ((i8)b & ~mask));
}

/* e^x for x <= 88; below -87 it is 0. x = n ln 2 + r with |r| <= 0.35, and e^r by its
 * series up to r^7 / 7!, whose rest is below 2^-30; the relative error is about 1e-7. */
VEC f8 f8_exp(f8 x) {
    const float ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f, magic = 12582912.0f;
    i8 underflow = x < f8_all(-87.0f);
    x = f8_select(underflow, f8_all(-87.0f), x);
    f8 shifted = f8_fma(x, f8_all(1.44269504f), f8_all(magic)); /* n in the low bits of the mantissa */
    f8 n = shifted - f8_all(magic);
    f8 r = f8_fma(n, f8_all(-ln2_high), x);
    r = f8_fma(n, f8_all(-ln2_low), r);
    f8 e = f8_all(1.0f / 5040);
    e = f8_fma(e, r, f8_all(1.0f / 720));
    e = f8_fma(e, r, f8_all(1.0f / 120));
    e = f8_fma(e, r, f8_all(1.0f / 24));
    e = f8_fma(e, r, f8_all(1.0f / 6));
    e = f8_fma(e, r, f8_all(0.5f));
    e = f8_fma(e, r, f8_all(1.0f));
    e = f8_fma(e, r, f8_all(1.0f));
    i8 power = ((i8)shifted - (i8)f8_all(magic)) << 23;
    f8 result = (f8)((i8)e + power);
    return f8_select(underflow, f8_all(0.0f), result);
}

VEC uint16_t bf16_round(float x) { /* nearest, ties to even; NaN stays NaN */
    uint32_t u;
    memcpy(&u, &x, 4);
    if ((u & 0x7fffffff) > 0x7f800000) return (uint16_t)(u >> 16 | 0x40);
    return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

VEC float bf16_widen(uint16_t h) {
    uint32_t u = (uint32_t)h << 16;
    float x;
    memcpy(&x, &u, 4);
    return x;
}

#endif
