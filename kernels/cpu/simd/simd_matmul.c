/* simd_matmul.c - rows of activations times panels of weights.
 *
 * A panel holds 16 output columns as [K][16], so that a vector's lanes are output
 * columns and each output is one chain of multiply-adds in ascending k, begun at 0.
 * How many rows and panels a tile takes changes what stays in registers, never the
 * chain. */
#include "kernels/cpu/simd/simd.h"
#include "kernels/cpu/simd/vec.h"

/* A tile's sums fill the registers but for those that hold weights and activations; eight
 * sums or more hide the latency of the multiply-add. PANELS(R): panels beside R rows. */
#if defined __AVX512F__
enum { WIDE_BYTES = 64, TILE_ROWS = 6, PANELS_MANY = 2 };
#define PANELS(R) ((R) == 1 ? 8 : (R) == 2 ? 6 : (R) == 3 ? 4 : (R) == 4 ? 3 : 2)
#elif defined __AVX__
enum { WIDE_BYTES = 32, TILE_ROWS = 6, PANELS_MANY = 1 };
#define PANELS(R) ((R) == 1 ? 4 : (R) == 2 ? 3 : (R) == 3 ? 2 : 1)
#else
enum { WIDE_BYTES = 16, TILE_ROWS = 3, PANELS_MANY = 1 };
#define PANELS(R) ((R) == 1 ? 3 : 1)
#endif

typedef float wide __attribute__((vector_size(WIDE_BYTES)));
typedef uint32_t wide_u __attribute__((vector_size(WIDE_BYTES)));
typedef uint16_t wide_h __attribute__((vector_size(WIDE_BYTES / 2)));

enum { LANES = WIDE_BYTES / 4, PARTS = PANEL / LANES, MAX_SUMS = 12 };

VEC wide wide_all(float x) {
#if defined __AVX512F__
    return (wide)_mm512_set1_ps(x);
#elif defined __AVX__
    return (wide)_mm256_set1_ps(x);
#else
    return (wide){x, x, x, x};
#endif
}

VEC wide wide_fma(wide a, wide b, wide c) {
#if defined __AVX512F__
    return (wide)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined __FMA__
    return (wide)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

/* Columns part * LANES .. of a panel's row of bf16 (see PANEL in simd.h). */
VEC wide widen_part(const uint16_t *row, int part) {
#if defined __AVX512F__
    __m256i pairs = _mm256_loadu_si256((const __m256i *)row);
    __m512i low = _mm512_castsi256_si512(_mm256_slli_epi32(pairs, 16));
    return (wide)_mm512_inserti32x8(low, _mm256_and_si256(pairs, _mm256_set1_epi32((int)0xffff0000)), 1);
#else
    wide_u pairs;
    memcpy(&pairs, row + part % (8 / LANES) * (2 * LANES), sizeof pairs);
    return part * LANES < 8 ? (wide)(pairs << 16) : (wide)(pairs & 0xffff0000u);
#endif
}

VEC wide load_weights(const void *w, int64_t row, int part, bool w_bf16) {
    if (w_bf16) return widen_part((const uint16_t *)w + row * PANEL, part);
    wide v;
    memcpy(&v, (const float *)w + row * PANEL + part * LANES, sizeof v);
    return v;
}

VEC void store_whole(void *y, int64_t at, wide v, bool y_bf16) {
    if (y_bf16) { /* as f8_store_bf16 */
        wide_u u = (wide_u)v, number = (wide_u)(v == v), rounded = u + 0x7fff + (u >> 16 & 1);
        wide_h h = __builtin_convertvector(((rounded & number) | ((u | 0x400000) & ~number)) >> 16, wide_h);
        memcpy((uint16_t *)y + at, &h, sizeof h);
    } else memcpy((float *)y + at, &v, sizeof v);
}

/* The first n_cols < LANES. Passed by value and out of line, so that sums stay in registers. */
static __attribute__((noinline)) void store_few(void *y, int64_t at, wide v, int64_t n_cols, bool y_bf16) {
    char all[WIDE_BYTES];
    store_whole(all, 0, v, y_bf16);
    if (n_cols > 0) memcpy((char *)y + at * (y_bf16 ? 2 : 4), all, (size_t)n_cols * (y_bf16 ? 2 : 4));
}

/* Rows r .. r + R - 1 times panels p .. p + P - 1, all sums in registers. R, P and w_bf16
 * are constants at every call. */
VEC void tile(const struct matmul *a, int64_t r, int R, int64_t p, int P, bool w_bf16) {
    wide sum[TILE_ROWS][MAX_SUMS];
    const int64_t k = a->k, panel_bytes = k * PANEL * (w_bf16 ? 2 : 4);
    const float *x = a->x + r * k;
    const char *w = (const char *)a->w + p * panel_bytes;
#pragma GCC unroll 6
    for (int i = 0; i < R; i++)
#pragma GCC unroll 12
        for (int j = 0; j < P * PARTS; j++) sum[i][j] = wide_all(0.0f);
    for (int64_t at = 0; at < k; at++) {
        if (R < P * PARTS) { /* activations stay in registers, weights pass */
            wide row[TILE_ROWS];
#pragma GCC unroll 6
            for (int i = 0; i < R; i++) row[i] = wide_all(x[i * k + at]);
#pragma GCC unroll 12
            for (int j = 0; j < P * PARTS; j++) {
                wide b = load_weights(w + j / PARTS * panel_bytes, at, j % PARTS, w_bf16);
#pragma GCC unroll 6
                for (int i = 0; i < R; i++) sum[i][j] = wide_fma(row[i], b, sum[i][j]);
            }
        } else {
            wide column[MAX_SUMS];
#pragma GCC unroll 12
            for (int j = 0; j < P * PARTS; j++)
                column[j] = load_weights(w + j / PARTS * panel_bytes, at, j % PARTS, w_bf16);
#pragma GCC unroll 6
            for (int i = 0; i < R; i++) {
                wide b = wide_all(x[i * k + at]);
#pragma GCC unroll 12
                for (int j = 0; j < P * PARTS; j++) sum[i][j] = wide_fma(b, column[j], sum[i][j]);
            }
        }
    }
#pragma GCC unroll 6
    for (int i = 0; i < R; i++)
#pragma GCC unroll 12
        for (int j = 0; j < P * PARTS; j++) {
            int64_t at = (r + i) * a->ldy + p * PANEL + j * LANES, n_cols = a->n_cols - p * PANEL - j * LANES;
            if (n_cols >= LANES) store_whole(a->y, at, sum[i][j], a->y_bf16);
            else store_few(a->y, at, sum[i][j], n_cols, a->y_bf16);
        }
}

/* R rows by all panels: as many at a time as `some`, then one by one. */
#define ROWS(R, some)                                                                                   \
    case R:                                                                                             \
        for (; p + (some) <= end; p += (some)) tile(a, r, R, p, some, w_bf16);                          \
        for (; p < end; p++) tile(a, r, R, p, 1, w_bf16);                                               \
        break

/* At most TILE_ROWS rows: nothing is read twice but the weights' last few panels. */
VEC void few_rows(const struct matmul *a, bool w_bf16) {
    int64_t r = 0, p = 0, end = a->n_panels;
    switch (a->m) {
        ROWS(1, PANELS(1));
        ROWS(2, PANELS(2));
        ROWS(3, PANELS(3));
#if defined __AVX__
        ROWS(4, PANELS(4));
        ROWS(5, PANELS(5));
        ROWS(6, PANELS(6));
#endif
    default: break;
    }
}

VEC void rows_by_panels(const struct matmul *a, int64_t r, int64_t n, int64_t p, int64_t end, bool w_bf16) {
    switch (n) {
        ROWS(1, PANELS_MANY);
        ROWS(2, PANELS_MANY);
        ROWS(3, PANELS_MANY);
#if defined __AVX__
        ROWS(4, PANELS_MANY);
        ROWS(5, PANELS_MANY);
        ROWS(6, PANELS_MANY);
#endif
    default: break;
    }
}

/* Many rows, cut as evenly as can be: a panel stays in the cache while they pass. */
VEC void many_rows(const struct matmul *a, bool w_bf16) {
    for (int64_t p = 0; p < a->n_panels; p += PANELS_MANY) {
        int64_t end = p + PANELS_MANY < a->n_panels ? p + PANELS_MANY : a->n_panels;
        for (int64_t r = 0; r < a->m; r += TILE_ROWS)
            rows_by_panels(a, r, a->m - r < TILE_ROWS ? a->m - r : TILE_ROWS, p, end, w_bf16);
    }
}

void SIMD_NAME(matmul)(const struct matmul *a);

void SIMD_NAME(matmul)(const struct matmul *a) {
    if (a->m <= TILE_ROWS && a->w_bf16) few_rows(a, true);
    else if (a->m <= TILE_ROWS) few_rows(a, false);
    else if (a->w_bf16) many_rows(a, true);
    else many_rows(a, false);
}
