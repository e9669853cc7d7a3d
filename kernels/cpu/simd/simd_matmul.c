/* simd_matmul.c - rows of activations times panels of weights.
 *
 * A panel holds 16 output columns as [K][16], so that a vector's lanes are output
 * columns and each output is one chain of multiply-adds in ascending k. How many
 * rows and panels a tile takes changes what stays in registers, never the chain. */
#include "kernels/cpu/simd/simd.h"
#include "kernels/cpu/simd/vec.h"

#define ALWAYS static inline __attribute__((always_inline))

struct half { /* 8 of a panel's 16 columns */
    f8 v;
};

ALWAYS f8 load_weight(const void *w, int64_t at, bool w_bf16) {
    return w_bf16 ? f8_load_bf16((const uint16_t *)w + at) : f8_load((const float *)w + at);
}

static void store_panel(float *y, f8 a, f8 b, int64_t cols) {
    if (cols >= PANEL) {
        f8_store(y, a);
        f8_store(y + 8, b);
        return;
    }
    float all[PANEL];
    f8_store(all, a);
    f8_store(all + 8, b);
    memcpy(y, all, (size_t)cols * sizeof *y);
}

/* R rows x P panels with all sums in registers. R, P and w_bf16 are constants at every call. */
ALWAYS void tile(int R, int P, float *y, int64_t ldy, const float *x, int64_t ldx, const void *w, bool w_bf16,
                 int64_t k, int64_t n_cols) {
    struct half sum[6][4][2];
#pragma GCC unroll 6
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int p = 0; p < P; p++) sum[r][p][0].v = sum[r][p][1].v = f8_all(0.0f);
    for (int64_t i = 0; i < k; i++) {
        f8 b[4][2];
#pragma GCC unroll 4
        for (int p = 0; p < P; p++) {
            b[p][0] = load_weight(w, (p * k + i) * PANEL, w_bf16);
            b[p][1] = load_weight(w, (p * k + i) * PANEL + 8, w_bf16);
        }
#pragma GCC unroll 6
        for (int r = 0; r < R; r++) {
            f8 a = f8_all(x[r * ldx + i]);
#pragma GCC unroll 4
            for (int p = 0; p < P; p++) {
                sum[r][p][0].v = f8_fma(a, b[p][0], sum[r][p][0].v);
                sum[r][p][1].v = f8_fma(a, b[p][1], sum[r][p][1].v);
            }
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int p = 0; p < P; p++)
            store_panel(y + r * ldy + p * PANEL, sum[r][p][0].v, sum[r][p][1].v, n_cols - p * PANEL);
}

/* One row: as many panels at once as hide the latency of the multiply-add. */
ALWAYS void one_row(float *y, const float *x, const void *w, bool w_bf16, int64_t k, int64_t n_panels,
                    int64_t n_cols) {
    const char *at = w;
    int64_t panel_bytes = k * PANEL * (w_bf16 ? 2 : 4);
    int64_t p = 0;
    for (; p + 4 <= n_panels; p += 4)
        tile(1, 4, y + p * PANEL, 0, x, 0, at + p * panel_bytes, w_bf16, k, n_cols - p * PANEL);
    for (; p < n_panels; p++)
        tile(1, 1, y + p * PANEL, 0, x, 0, at + p * panel_bytes, w_bf16, k, n_cols - p * PANEL);
}

/* Several rows: a panel stays in the first-level cache while the rows pass. */
ALWAYS void many_rows(float *y, int64_t ldy, const float *x, int64_t ldx, int64_t m, const void *w, bool w_bf16,
                      int64_t k, int64_t n_panels, int64_t n_cols) {
    const char *at = w;
    int64_t panel_bytes = k * PANEL * (w_bf16 ? 2 : 4);
    for (int64_t p = 0; p < n_panels; p++, at += panel_bytes) {
        int64_t cols = n_cols - p * PANEL, r = 0;
        float *out = y + p * PANEL;
        for (; r + 6 <= m; r += 6) tile(6, 1, out + r * ldy, ldy, x + r * ldx, ldx, at, w_bf16, k, cols);
        switch (m - r) {
        case 5: tile(5, 1, out + r * ldy, ldy, x + r * ldx, ldx, at, w_bf16, k, cols); break;
        case 4: tile(4, 1, out + r * ldy, ldy, x + r * ldx, ldx, at, w_bf16, k, cols); break;
        case 3: tile(3, 1, out + r * ldy, ldy, x + r * ldx, ldx, at, w_bf16, k, cols); break;
        case 2: tile(2, 1, out + r * ldy, ldy, x + r * ldx, ldx, at, w_bf16, k, cols); break;
        case 1: tile(1, 1, out + r * ldy, ldy, x + r * ldx, ldx, at, w_bf16, k, cols); break;
        default: break;
        }
    }
}

void SIMD_NAME(matmul)(float *y, int64_t ldy, const float *x, int64_t ldx, int64_t m, const void *w, bool w_bf16,
                       int64_t k, int64_t n_panels, int64_t n_cols);

void SIMD_NAME(matmul)(float *y, int64_t ldy, const float *x, int64_t ldx, int64_t m, const void *w, bool w_bf16,
                       int64_t k, int64_t n_panels, int64_t n_cols) {
    if (m == 1) {
        if (w_bf16) one_row(y, x, w, true, k, n_panels, n_cols);
        else one_row(y, x, w, false, k, n_panels, n_cols);
        return;
    }
    if (w_bf16) many_rows(y, ldy, x, ldx, m, w, true, k, n_panels, n_cols);
    else many_rows(y, ldy, x, ldx, m, w, false, k, n_panels, n_cols);
}
