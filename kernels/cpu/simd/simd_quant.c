/* simd_quant.c - codes of quantized weights back into numbers, a row at a time, and rows
 * into panels. The numbers are those of quantize.h to the bit. */
#include "kernels/cpu/simd/simd.h"
#include "kernels/cpu/simd/vec.h"

void SIMD_NAME(decode4)(float *out, const uint8_t *packed, int64_t first, int64_t n, const float codes[16],
                        float absmax, bool bf16);
void SIMD_NAME(decode_i8)(float *out, const int8_t *codes, int64_t n);
void SIMD_NAME(decode_f8)(float *out, const uint8_t *codes, int64_t n);
void SIMD_NAME(decode_f8_scaled)(float *out, const uint8_t *codes, int64_t n, float scale, bool bf16);
void SIMD_NAME(to_panel)(float *panel, const float *rows, int64_t ld, int64_t k);

#if defined __AVX2__
VEC __m256 of_sixteen(__m256 low, __m256 high, __m256i code) {
    __m256 a = _mm256_permutevar8x32_ps(low, code), b = _mm256_permutevar8x32_ps(high, code);
    return _mm256_blendv_ps(a, b, _mm256_castsi256_ps(_mm256_slli_epi32(code, 28))); /* bit 3 chooses */
}
#endif

void SIMD_NAME(decode4)(float *out, const uint8_t *packed, int64_t first, int64_t n, const float codes[16],
                        float absmax, bool bf16) {
    f8 low = f8_load(codes) * f8_all(absmax), high = f8_load(codes + 8) * f8_all(absmax);
    float value[16];
    int64_t i = 0;
    if (bf16) {
        low = f8_round_bf16(low);
        high = f8_round_bf16(high);
    }
    f8_store(value, low);
    f8_store(value + 8, high);
    if (n > 0 && first % 2) out[i++] = value[packed[first / 2] & 15];
#if defined __AVX2__
    const __m128i four_bits = _mm_set1_epi8(15);
    for (; i + 16 <= n; i += 16) {
        __m128i bytes = _mm_loadl_epi64((const __m128i *)(packed + (first + i) / 2));
        __m128i even = _mm_and_si128(_mm_srli_epi16(bytes, 4), four_bits), odd = _mm_and_si128(bytes, four_bits);
        __m128i all = _mm_unpacklo_epi8(even, odd);
        _mm256_storeu_ps(out + i, of_sixteen((__m256)low, (__m256)high, _mm256_cvtepu8_epi32(all)));
        all = _mm_srli_si128(all, 8);
        _mm256_storeu_ps(out + i + 8, of_sixteen((__m256)low, (__m256)high, _mm256_cvtepu8_epi32(all)));
    }
#endif
    for (; i < n; i++) out[i] = value[(first + i) % 2 ? packed[(first + i) / 2] & 15 : packed[(first + i) / 2] >> 4];
}

void SIMD_NAME(decode_i8)(float *out, const int8_t *codes, int64_t n) {
    for (int64_t i = 0; i < n; i++) out[i] = (float)codes[i];
}

/* Exponent and mantissa move into their places, and the exponent to its other zero; 2^-7 (1 + m / 8),
 * which a code without an exponent becomes, is then put right. No number on the way is below the
 * normal ones, which processors are slow with. */
VEC f8 f8_of_codes(u8 code) {
    f8 size = (f8)(((code & 0x7f) << 20) + (120u << 23));
    size = f8_select((i8)((code & 0x78) == 0), (size - f8_all(0x1p-7f)) * f8_all(2.0f), size);
    return (f8)((u8)size | (code & 0x80) << 24);
}

/* Eight bytes; compilers take them one by one where they are not told otherwise. */
VEC u8 u8_of_bytes(const uint8_t *p) {
#if defined __AVX2__
    return (u8)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p));
#else
    typedef uint8_t b8 __attribute__((vector_size(8)));
    b8 eight;
    memcpy(&eight, p, sizeof eight);
    return __builtin_convertvector(eight, u8);
#endif
}

#if defined __F16C__
/* Sixteen numbers times 2^-8: with the lower seven bits moved by one a code is a half, whose
 * exponent has another zero. */
VEC void sixteen_of_codes(f8 out[2], const uint8_t *codes) {
    __m256i upper = _mm256_slli_epi16(_mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)codes)), 8);
    __m256i half = _mm256_and_si256(_mm256_srai_epi16(upper, 1), _mm256_set1_epi16((int16_t)0xbf80));
    out[0] = (f8)_mm256_cvtph_ps(_mm256_castsi256_si128(half));
    out[1] = (f8)_mm256_cvtph_ps(_mm256_extracti128_si256(half, 1));
}
#endif

void SIMD_NAME(decode_f8)(float *out, const uint8_t *codes, int64_t n) {
    int64_t i = 0;
#if defined __F16C__
    f8 x[2];
    for (; i + 16 <= n; i += 16) {
        sixteen_of_codes(x, codes + i);
        f8_store(out + i, x[0] * f8_all(256));
        f8_store(out + i + 8, x[1] * f8_all(256));
    }
#endif
    for (; i + 8 <= n; i += 8) f8_store(out + i, f8_of_codes(u8_of_bytes(codes + i)));
    for (; i < n; i++) out[i] = f8_of_codes((u8){codes[i]})[0];
}

/* There is no NaN among them. */
VEC f8 f8_numbers(f8 x, bool bf16) {
    u8 u = (u8)x;
    return bf16 ? (f8)((u + 0x7fff + (u >> 16 & 1)) & 0xffff0000u) : x;
}

VEC f8 f8_of_scaled(u8 code, float scale, bool bf16) {
    return f8_numbers(f8_of_codes(code) * f8_all(scale), bf16);
}

#if defined __F16C__
/* A power of two more in the scale changes no bit of a product. Returns how many numbers it made. */
VEC int64_t sixteens_of_scaled(float *out, const uint8_t *codes, int64_t n, float scale, bool bf16) {
    f8 x[2], times = f8_all(scale * 256);
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
        sixteen_of_codes(x, codes + i);
        f8_store(out + i, f8_numbers(x[0] * times, bf16));
        f8_store(out + i + 8, f8_numbers(x[1] * times, bf16));
    }
    return i;
}
#endif

void SIMD_NAME(decode_f8_scaled)(float *out, const uint8_t *codes, int64_t n, float scale, bool bf16) {
    int64_t i = 0;
#if defined __F16C__
    if (isfinite(scale * 256)) i = bf16 ? sixteens_of_scaled(out, codes, n, scale, true) : sixteens_of_scaled(out, codes, n, scale, false);
#endif
    for (; i + 8 <= n; i += 8) f8_store(out + i, f8_of_scaled(u8_of_bytes(codes + i), scale, bf16));
    for (; i < n; i++) out[i] = f8_of_scaled((u8){codes[i]}, scale, bf16)[0];
}

#if defined __AVX2__
VEC void eight_by_eight(float *out, const float *rows, int64_t ld) {
    __m256 r[8], t[8];
    for (int i = 0; i < 8; i++) r[i] = _mm256_loadu_ps(rows + i * ld);
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        r[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
        r[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
        r[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
        r[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
    for (int i = 0; i < 4; i++) {
        _mm256_storeu_ps(out + i * PANEL, _mm256_permute2f128_ps(r[i], r[i + 4], 0x20));
        _mm256_storeu_ps(out + (i + 4) * PANEL, _mm256_permute2f128_ps(r[i], r[i + 4], 0x31));
    }
}
#endif

void SIMD_NAME(to_panel)(float *panel, const float *rows, int64_t ld, int64_t k) {
    int64_t i = 0;
#if defined __AVX2__
    for (; i + 8 <= k; i += 8)
        for (int c = 0; c < PANEL; c += 8) eight_by_eight(panel + i * PANEL + c, rows + c * ld + i, ld);
#endif
    for (; i < k; i++)
        for (int c = 0; c < PANEL; c++) panel[i * PANEL + c] = rows[c * ld + i];
}
