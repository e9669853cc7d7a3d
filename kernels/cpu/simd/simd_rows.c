/* simd_rows.c - what is done to one row at a time: widening, norm, gate, RoPE, and the
 * first pass over logits. */
#include "kernels/cpu/simd/simd.h"
#include "kernels/cpu/simd/vec.h"

void SIMD_NAME(widen)(float *out, const uint16_t *bf16, int64_t n);
void SIMD_NAME(narrow)(uint16_t *bf16, const float *x, int64_t n);
void SIMD_NAME(rms_norm)(void *out, void *residual, const void *y, const float *bias, const float *w, int64_t n,
                         float eps, bool bf16);
void SIMD_NAME(glu)(void *out, const void *gate_up, const float *bias, int64_t n, bool bf16);
void SIMD_NAME(head)(const struct head *h);
void SIMD_NAME(logits)(float *l, const float *logits, const float *bias, float temperature, int64_t n);
float SIMD_NAME(max)(const float *x, int64_t n, bool *has_nan);
void SIMD_NAME(exps)(float *out, const float *x, int64_t n);

/* A statement for i = 0, 8, 16 .. with m = 8 lanes, and a last time with m < 8 where n asks for it. */
#define EIGHTS(n, ...)                            \
    do {                                          \
        int64_t i = 0, m = 8;                     \
        for (; i + 8 <= (n); i += 8) __VA_ARGS__; \
        m = (n)-i;                                \
        if (m > 0) __VA_ARGS__;                   \
    } while (0)

VEC f8 take(const void *p, int64_t i, int64_t m, bool bf16) {
    return m == 8 ? load(p, i, bf16) : load_part(p, i, m, bf16);
}

VEC void put(void *p, int64_t i, int64_t m, f8 v, bool bf16) {
    if (m == 8) store(p, i, v, bf16);
    else store_part(p, i, m, v, bf16);
}

/* A product's numbers with their bias, rounded as the linear module's output is. */
VEC f8 take_biased(const void *p, const float *bias, int64_t i, int64_t m, bool bf16) {
    f8 v = take(p, i, m, bf16);
    if (!bias) return v;
    v += take(bias, i, m, false);
    return bf16 ? f8_round_bf16(v) : v;
}

void SIMD_NAME(widen)(float *out, const uint16_t *bf16, int64_t n) {
    EIGHTS(n, put(out, i, m, take(bf16, i, m, true), false));
}

void SIMD_NAME(narrow)(uint16_t *bf16, const float *x, int64_t n) {
    EIGHTS(n, put(bf16, i, m, take(x, i, m, false), true));
}

/* ---------------------------------------------------------------- norm */

/* residual += y; the sum of its squares in eight partial sums, element i in lane i % 8. */
VEC float add_and_square(void *residual, const void *y, const float *bias, int64_t n, bool bf16) {
    f8 sum = f8_all(0.0f);
    EIGHTS(n, {
        f8 x = take(residual, i, m, bf16);
        if (y) {
            x += take_biased(y, bias, i, m, bf16);
            if (bf16) x = f8_round_bf16(x);
            put(residual, i, m, x, bf16);
        }
        sum = f8_fma(x, x, sum);
    });
    return f8_sum(sum);
}

VEC void rms_norm(void *out, void *residual, const void *y, const float *bias, const float *w, int64_t n, float eps,
                  bool bf16) {
    float mean = add_and_square(residual, y, bias, n, bf16) / (float)n;
    f8 scale = f8_all(1.0f / sqrtf(mean + eps));
    EIGHTS(n, {
        f8 x = take(residual, i, m, bf16) * scale;
        if (bf16) x = f8_round_bf16(x);
        put(out, i, m, take(w, i, m, false) * x, bf16);
    });
}

void SIMD_NAME(rms_norm)(void *out, void *residual, const void *y, const float *bias, const float *w, int64_t n,
                         float eps, bool bf16) {
    if (bf16) rms_norm(out, residual, y, bias, w, n, eps, true);
    else rms_norm(out, residual, y, bias, w, n, eps, false);
}

/* ---------------------------------------------------------------- gate */

VEC f8 f8_silu(f8 g) { /* g / (1 + e^-g); e^-g is held below infinity */
    f8 minus = -g;
    i8 huge = minus > f8_all(88.0f);
    return g / (f8_all(1.0f) + f8_exp(f8_select(huge, f8_all(88.0f), minus)));
}

VEC void glu(void *out, const void *gate_up, const float *bias, int64_t n, bool bf16) {
    const void *up = (const char *)gate_up + n * (bf16 ? 2 : 4);
    const float *up_bias = bias ? bias + n : NULL;
    EIGHTS(n, {
        f8 s = f8_silu(take_biased(gate_up, bias, i, m, bf16));
        if (bf16) s = f8_round_bf16(s); /* the activation function is a module of its own */
        put(out, i, m, s * take_biased(up, up_bias, i, m, bf16), bf16);
    });
}

void SIMD_NAME(glu)(void *out, const void *gate_up, const float *bias, int64_t n, bool bf16) {
    if (bf16) glu(out, gate_up, bias, n, true);
    else glu(out, gate_up, bias, n, false);
}

/* ---------------------------------------------------------------- RoPE */

/* The angle's arithmetic stays in f32 up to the one rounding at the end. */
VEC void head(const struct head *h, bool in_bf16, bool out_bf16) {
    int32_t half = h->n_rotated / 2, rest = h->n - h->n_rotated;
    size_t in_bytes = in_bf16 ? 2 : 4, out_bytes = out_bf16 ? 2 : 4;
    const char *upper = (const char *)h->in + (size_t)half * in_bytes, *tail = upper + (size_t)half * in_bytes;
    char *out_upper = (char *)h->out + (size_t)half * out_bytes, *out_tail = out_upper + (size_t)half * out_bytes;
    const float *upper_bias = h->bias ? h->bias + half : NULL, *tail_bias = h->bias ? upper_bias + half : NULL;
    EIGHTS(half, {
        f8 a = take_biased(h->in, h->bias, i, m, in_bf16), b = take_biased(upper, upper_bias, i, m, in_bf16);
        f8 c = take(h->cos, i, m, false), s = take(h->sin, i, m, false);
        put(h->out, i, m, a * c - b * s, out_bf16);
        put(out_upper, i, m, b * c + a * s, out_bf16);
    });
    EIGHTS(rest, put(out_tail, i, m, take_biased(tail, tail_bias, i, m, in_bf16), out_bf16));
}

void SIMD_NAME(head)(const struct head *h) {
    if (h->in_bf16 && h->out_bf16) head(h, true, true);
    else if (h->in_bf16) head(h, true, false);
    else if (h->out_bf16) head(h, false, true);
    else head(h, false, false);
}

/* ---------------------------------------------------------------- logits */

void SIMD_NAME(logits)(float *l, const float *logits, const float *bias, float temperature, int64_t n) {
    f8 t = f8_all(temperature);
    EIGHTS(n, put(l, i, m, take_biased(logits, bias, i, m, false) / t, false));
}

float SIMD_NAME(max)(const float *x, int64_t n, bool *has_nan) {
    f8 most = f8_all(-INFINITY);
    i8 number = most == most;
    EIGHTS(n, {
        f8 v = m == 8 ? f8_load(x + i) : f8_all(-INFINITY);
        for (int64_t j = 0; m < 8 && j < m; j++) v[j] = x[i + j];
        number &= v == v;
        most = f8_larger(v, most);
    });
    *has_nan = false;
    for (int j = 0; j < 8; j++) *has_nan |= !number[j];
    return f8_max(most);
}

void SIMD_NAME(exps)(float *out, const float *x, int64_t n) {
    EIGHTS(n, put(out, i, m, f8_exp(take(x, i, m, false)), false));
}
