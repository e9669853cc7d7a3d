/* simd_rows.c - what is done to one row at a time: widening, rounding, norm, gate. */
#include "kernels/cpu/simd/simd.h"
#include "kernels/cpu/simd/vec.h"

void SIMD_NAME(widen)(float *out, const uint16_t *bf16, int64_t n);
void SIMD_NAME(narrow)(uint16_t *bf16, const float *x, int64_t n);
void SIMD_NAME(exps)(float *out, const float *x, int64_t n);
void SIMD_NAME(rms_norm)(void *out, void *residual, const void *y, const float *bias, const float *w, int64_t n,
                         float eps, bool bf16);
void SIMD_NAME(glu)(void *out, const void *gate_up, const float *bias, int64_t n, bool bf16);

void SIMD_NAME(widen)(float *out, const uint16_t *bf16, int64_t n) {
    for (int64_t i = 0; i < n; i++) out[i] = bf16_widen(bf16[i]);
}

void SIMD_NAME(narrow)(uint16_t *bf16, const float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++) bf16[i] = bf16_round(x[i]);
}

void SIMD_NAME(exps)(float *out, const float *x, int64_t n) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) f8_store(out + i, f8_exp(f8_load(x + i)));
    float tail[8] = {0};
    memcpy(tail, x + i, (size_t)(n - i) * sizeof *x);
    f8_store(tail, f8_exp(f8_load(tail)));
    memcpy(out + i, tail, (size_t)(n - i) * sizeof *x);
}

/* Sum of squares in eight partial sums, element i in lane i % 8. */
static float sum_of_squares(const float *x, int64_t n) {
    f8 sum = f8_all(0.0f);
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        f8 v = f8_load(x + i);
        sum = f8_fma(v, v, sum);
    }
    if (i < n) {
        float tail[8] = {0};
        memcpy(tail, x + i, (size_t)(n - i) * sizeof *x);
        f8 v = f8_load(tail);
        sum = f8_fma(v, v, sum);
    }
    return f8_sum(sum);
}

static void rms_norm_f32(float *out, float *residual, const float *y, const float *bias, const float *w, int64_t n,
                         float eps) {
    if (y && bias)
        for (int64_t i = 0; i < n; i++) residual[i] += y[i] + bias[i];
    else if (y)
        for (int64_t i = 0; i < n; i++) residual[i] += y[i];
    float scale = 1.0f / sqrtf(sum_of_squares(residual, n) / (float)n + eps);
    for (int64_t i = 0; i < n; i++) out[i] = w[i] * (residual[i] * scale);
}

static void rms_norm_bf16(uint16_t *out, uint16_t *residual, const uint16_t *y, const float *bias, const float *w,
                          int64_t n, float eps) {
    f8 sum = f8_all(0.0f);
    for (int64_t i = 0; i < n; i += 8) {
        float x[8] = {0};
        int64_t m = n - i < 8 ? n - i : 8;
        for (int64_t j = 0; j < m; j++) {
            x[j] = bf16_widen(residual[i + j]);
            if (!y) continue;
            float add = bf16_widen(y[i + j]);
            if (bias) add = bf16_widen(bf16_round(add + bias[i + j]));
            residual[i + j] = bf16_round(x[j] + add);
            x[j] = bf16_widen(residual[i + j]);
        }
        f8 v = f8_load(x);
        sum = f8_fma(v, v, sum);
    }
    float scale = 1.0f / sqrtf(f8_sum(sum) / (float)n + eps);
    for (int64_t i = 0; i < n; i++)
        out[i] = bf16_round(w[i] * bf16_widen(bf16_round(bf16_widen(residual[i]) * scale)));
}

void SIMD_NAME(rms_norm)(void *out, void *residual, const void *y, const float *bias, const float *w, int64_t n,
                         float eps, bool bf16) {
    if (bf16) rms_norm_bf16(out, residual, y, bias, w, n, eps);
    else rms_norm_f32(out, residual, y, bias, w, n, eps);
}

VEC f8 f8_silu(f8 g) { /* g / (1 + e^-g); e^-g is held below infinity */
    f8 minus = -g;
    i8 huge = minus > f8_all(88.0f);
    return g / (f8_all(1.0f) + f8_exp(f8_select(huge, f8_all(88.0f), minus)));
}

static void gate_eight(float *out, const float *gate, const float *up, bool bf16) {
    f8 s = f8_silu(f8_load(gate));
    if (bf16) { /* the activation function is a module of its own: its result is rounded */
        float t[8];
        f8_store(t, s);
        for (int j = 0; j < 8; j++) t[j] = bf16_widen(bf16_round(t[j]));
        s = f8_load(t);
    }
    f8_store(out, s * f8_load(up));
}

static float gate_input(const void *gate_up, const float *bias, int64_t i, bool bf16) {
    float v = bf16 ? bf16_widen(((const uint16_t *)gate_up)[i]) : ((const float *)gate_up)[i];
    if (!bias) return v;
    v += bias[i];
    return bf16 ? bf16_widen(bf16_round(v)) : v;
}

void SIMD_NAME(glu)(void *out, const void *gate_up, const float *bias, int64_t n, bool bf16) {
    for (int64_t i = 0; i < n; i += 8) {
        float gate[8] = {0}, up[8] = {0}, result[8];
        int64_t m = n - i < 8 ? n - i : 8;
        for (int64_t j = 0; j < m; j++) {
            gate[j] = gate_input(gate_up, bias, i + j, bf16);
            up[j] = gate_input(gate_up, bias, n + i + j, bf16);
        }
        gate_eight(result, gate, up, bf16);
        for (int64_t j = 0; j < m; j++) {
            if (bf16) ((uint16_t *)out)[i + j] = bf16_round(result[j]);
            else ((float *)out)[i + j] = result[j];
        }
    }
}
