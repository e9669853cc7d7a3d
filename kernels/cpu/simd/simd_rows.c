/* simd_rows.c - what is done to one row at a time: widening, norm, activation function,
 * RoPE, and the first pass over logits. */
#include "kernels/cpu/simd/simd.h"
#include "kernels/cpu/simd/vec.h"

void SIMD_NAME(widen)(float *out, const uint16_t *bf16, int64_t n);
void SIMD_NAME(narrow)(uint16_t *bf16, const float *x, int64_t n);
void SIMD_NAME(residual_norm)(const struct norm_row *row);
void SIMD_NAME(glu)(void *out, const void *gate_up, const float *bias, int64_t n, enum act act, bool bf16);
void SIMD_NAME(act)(void *out, const void *y, const float *bias, int64_t n, enum act act, bool bf16);
void SIMD_NAME(head)(const struct head *h);
void SIMD_NAME(softcap)(float *x, int64_t n, float cap);
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

/* Sums over a row are eight partial sums, element i in lane i % 8. */

/* residual += y, or y + z, each with its bias; the sum of its squares. */
VEC float add_and_square(void *residual, const void *y, const float *y_bias, const void *z, const float *z_bias,
                         int64_t n, bool bf16) {
    f8 sum = f8_all(0.0f);
    EIGHTS(n, {
        f8 x = take(residual, i, m, bf16);
        if (y) {
            f8 add = take_biased(y, y_bias, i, m, bf16);
            if (z) {
                add += take_biased(z, z_bias, i, m, bf16);
                if (bf16) add = f8_round_bf16(add);
            }
            x += add;
            if (bf16) x = f8_round_bf16(x);
            put(residual, i, m, x, bf16);
        }
        sum = f8_fma(x, x, sum);
    });
    return f8_sum(sum);
}

/* x with its bias; the sum of its squares. */
VEC float bias_and_square(void *out, const void *x, const float *bias, int64_t n, bool bf16) {
    f8 sum = f8_all(0.0f);
    EIGHTS(n, {
        f8 v = take_biased(x, bias, i, m, bf16);
        put(out, i, m, v, bf16);
        sum = f8_fma(v, v, sum);
    });
    return f8_sum(sum);
}

VEC void rms_norm(void *out, const void *x, float squares, const struct norm *norm, int64_t n, bool one_plus,
                  bool bf16) {
    const float *w = norm->weight.data;
    f8 scale = f8_all(1.0f / sqrtf(squares / (float)n + norm->eps));
    EIGHTS(n, {
        f8 v = take(x, i, m, bf16) * scale, weight = take(w, i, m, false);
        if (one_plus) weight += f8_all(1.0f);
        else if (bf16) v = f8_round_bf16(v);
        put(out, i, m, weight * v, bf16);
    });
}

VEC float mean_of(const void *x, int64_t n, bool bf16) {
    f8 sum = f8_all(0.0f);
    EIGHTS(n, sum += take(x, i, m, bf16));
    return f8_sum(sum) / (float)n;
}

VEC float variance_of(const void *x, float mean, int64_t n, bool bf16) {
    f8 sum = f8_all(0.0f);
    EIGHTS(n, {
        f8 off = take(x, i, m, bf16) - f8_all(mean);
        for (int64_t j = m; j < 8; j++) off[j] = 0.0f; /* lanes beyond the row */
        sum = f8_fma(off, off, sum);
    });
    return f8_sum(sum) / (float)n;
}

VEC void layer_norm(void *out, const void *x, const struct norm *norm, int64_t n, bool bf16) {
    const float *w = norm->weight.data, *bias = norm->bias.data;
    float mean = mean_of(x, n, bf16);
    f8 scale = f8_all(1.0f / sqrtf(variance_of(x, mean, n, bf16) + norm->eps));
    EIGHTS(n, {
        f8 v = (take(x, i, m, bf16) - f8_all(mean)) * scale * take(w, i, m, false);
        put(out, i, m, bias ? v + take(bias, i, m, false) : v, bf16);
    });
}

/* out = norm(x), where `squares` is the sum of x's; out may be x. */
VEC void apply_norm(void *out, const void *x, float squares, const struct norm *norm, int64_t n, bool bf16) {
    switch (norm->kind) {
    case NORM_RMS: rms_norm(out, x, squares, norm, n, false, bf16); break;
    case NORM_RMS_ONE_PLUS: rms_norm(out, x, squares, norm, n, true, bf16); break;
    case NORM_LAYER: layer_norm(out, x, norm, n, bf16); break;
    }
}

VEC void residual_norm(const struct norm_row *r, bool bf16) {
    float squares;
    if (r->post) {
        squares = bias_and_square(r->out, r->y, r->y_bias, r->n, bf16); /* out serves as scratch */
        apply_norm(r->out, r->out, squares, r->post, r->n, bf16);
        squares = add_and_square(r->residual, r->out, NULL, NULL, NULL, r->n, bf16);
    } else {
        squares = add_and_square(r->residual, r->y, r->y_bias, r->z, r->z_bias, r->n, bf16);
    }
    apply_norm(r->out, r->residual, squares, r->norm, r->n, bf16);
}

void SIMD_NAME(residual_norm)(const struct norm_row *row) {
    if (row->bf16) residual_norm(row, true);
    else residual_norm(row, false);
}

/* ---------------------------------------------------------------- activation functions */

VEC f8 f8_silu(f8 g) { /* g / (1 + e^-g); e^-g is held below infinity */
    f8 minus = -g;
    i8 huge = minus > f8_all(88.0f);
    return g / (f8_all(1.0f) + f8_exp(f8_select(huge, f8_all(88.0f), minus)));
}

VEC f8 f8_gelu(f8 x) {
    return f8_all(0.5f) * x * (f8_all(1.0f) + f8_erf(x * f8_all(0.70710678f)));
}

VEC f8 f8_gelu_tanh(f8 x) { /* (1 + tanh u) / 2 is the sigmoid of 2 u */
    f8 u = f8_all(0.79788456f) * (x + f8_all(0.044715f) * x * x * x), minus = u * f8_all(-2.0f);
    i8 huge = minus > f8_all(88.0f);
    return x / (f8_all(1.0f) + f8_exp(f8_select(huge, f8_all(88.0f), minus)));
}

VEC f8 f8_act(f8 x, enum act act) {
    return act == ACT_SILU ? f8_silu(x) : act == ACT_GELU ? f8_gelu(x) : f8_gelu_tanh(x);
}

VEC void glu(void *out, const void *gate_up, const float *bias, int64_t n, enum act act, bool bf16) {
    const void *up = (const char *)gate_up + n * (bf16 ? 2 : 4);
    const float *up_bias = bias ? bias + n : NULL;
    EIGHTS(n, {
        f8 s = f8_act(take_biased(gate_up, bias, i, m, bf16), act);
        if (bf16) s = f8_round_bf16(s); /* the activation function is a module of its own */
        put(out, i, m, s * take_biased(up, up_bias, i, m, bf16), bf16);
    });
}

VEC void act_row(void *out, const void *y, const float *bias, int64_t n, enum act act, bool bf16) {
    EIGHTS(n, put(out, i, m, f8_act(take_biased(y, bias, i, m, bf16), act), bf16));
}

/* A call of f(..., act, bf16) for each pair of them, so that its loop decides neither. */
#define BY_ACT(act, bf16, f, ...)                                           \
    do {                                                                    \
        if ((act) == ACT_SILU && (bf16)) f(__VA_ARGS__, ACT_SILU, true);    \
        else if ((act) == ACT_SILU) f(__VA_ARGS__, ACT_SILU, false);        \
        else if ((act) == ACT_GELU && (bf16)) f(__VA_ARGS__, ACT_GELU, true);\
        else if ((act) == ACT_GELU) f(__VA_ARGS__, ACT_GELU, false);        \
        else if (bf16) f(__VA_ARGS__, ACT_GELU_TANH, true);                 \
        else f(__VA_ARGS__, ACT_GELU_TANH, false);                          \
    } while (0)

void SIMD_NAME(glu)(void *out, const void *gate_up, const float *bias, int64_t n, enum act act, bool bf16) {
    BY_ACT(act, bf16, glu, out, gate_up, bias, n);
}

void SIMD_NAME(act)(void *out, const void *y, const float *bias, int64_t n, enum act act, bool bf16) {
    BY_ACT(act, bf16, act_row, out, y, bias, n);
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

/* A head's numbers clipped and normed, in room that a later RoPE reads; rounded to bf16
 * where the product is. */
VEC void clip_and_norm(void *room, const struct head *h, bool bf16) {
    float squares = bias_and_square(room, h->in, h->bias, h->n, bf16);
    f8 most = f8_all(h->clip), least = f8_all(-h->clip);
    if (h->clip > 0)
        EIGHTS(h->n, {
            f8 x = take(room, i, m, bf16);
            x = f8_select(x > most, most, x); /* NaN stays */
            put(room, i, m, f8_select(x < least, least, x), bf16);
        });
    if (h->clip > 0 && h->norm) squares = bias_and_square(room, room, NULL, h->n, bf16);
    if (h->norm) apply_norm(room, room, squares, h->norm, h->n, bf16);
}

void SIMD_NAME(head)(const struct head *h) {
    float room[MAX_HEAD_DIM];
    struct head ready = *h;
    if (h->clip > 0 || h->norm) {
        if (h->in_bf16) clip_and_norm(room, h, true);
        else clip_and_norm(room, h, false);
        ready.in = room;
        ready.bias = NULL;
        h = &ready;
    }
    if (h->in_bf16 && h->out_bf16) head(h, true, true);
    else if (h->in_bf16) head(h, true, false);
    else if (h->out_bf16) head(h, false, true);
    else head(h, false, false);
}

/* ---------------------------------------------------------------- logits */

void SIMD_NAME(softcap)(float *x, int64_t n, float cap) {
    EIGHTS(n, put(x, i, m, f8_all(cap) * f8_tanh(take(x, i, m, false) / f8_all(cap)), false));
}

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
