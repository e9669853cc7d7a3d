/* positions.c - see positions.h. */
#include "engine/model/positions.h"
#include "kernels/tensor.h"

#include <math.h>
#include <string.h>

/* ---------------------------------------------------------------- reading */

static void read_linear(struct positions *p, struct reader *rd) {
    p->scaling = ROPE_LINEAR;
    p->factor = (float)reader_number(rd, "factor", (double)NAN, 1.0, 1e6);
}

static void read_llama3(struct positions *p, struct reader *rd) {
    p->scaling = ROPE_LLAMA3;
    p->factor = (float)reader_number(rd, "factor", (double)NAN, 1.0, 1e6);
    p->low_freq_factor = (float)reader_number(rd, "low_freq_factor", (double)NAN, 1e-6, 1e6);
    p->high_freq_factor = (float)reader_number(rd, "high_freq_factor", (double)NAN, 1e-6, 1e6);
    if (p->high_freq_factor <= p->low_freq_factor)
        reader_complain(rd, E_RANGE, "high_freq_factor", "is not above low_freq_factor");
}

static double yarn_magnitude(double factor, double mscale) {
    return factor <= 1 ? 1.0 : 0.1 * mscale * log(factor) + 1.0;
}

static void read_yarn(struct positions *p, struct reader *rd, int32_t context) {
    p->scaling = ROPE_YARN;
    double factor = reader_number(rd, "factor", (double)context / p->original_context, 1.0, 1e6);
    double mscale = reader_number(rd, "mscale", 0, 0, 1e6), all_dim = reader_number(rd, "mscale_all_dim", 0, 0, 1e6);
    double attention = yarn_magnitude(factor, 1);
    if (mscale > 0 && all_dim > 0) attention = yarn_magnitude(factor, mscale) / yarn_magnitude(factor, all_dim);
    p->factor = (float)factor;
    p->attention_factor = (float)reader_number(rd, "attention_factor", attention, 1e-6, 1e6);
    p->beta_fast = (float)reader_number(rd, "beta_fast", 32, 1e-6, 1e6);
    p->beta_slow = (float)reader_number(rd, "beta_slow", 1, 1e-6, 1e6);
    p->truncate = reader_bool(rd, "truncate", true);
}

/* n_rotated / 2 positive numbers. */
static void read_factors(float *out, struct reader *rd, const char *key, int32_t n) {
    const json_t *list = reader_get(rd, key);
    if (!list) reader_missing(rd, key);
    else if (json_array_size(list) != (size_t)n)
        reader_complain(rd, E_RANGE, key, "is not a list of one number for each two rotated dimensions");
    for (int32_t i = 0; rd->r == 0 && i < n; i++) {
        const json_t *v = json_array_get(list, (size_t)i);
        out[i] = (float)json_number_value(v);
        if (!(out[i] >= 1e-6f && out[i] <= 1e6f))
            reader_complain(rd, E_RANGE, key, "is not a list of numbers in 1e-6 .. 1e6");
    }
}

static void read_longrope(struct positions *p, struct reader *rd, int32_t context) {
    p->scaling = ROPE_LONGROPE;
    double original = p->original_context;
    double factor = reader_number(rd, "factor", (double)context / original, 1e-6, 1e6);
    double attention = factor <= 1 || original <= 1 ? 1.0 : sqrt(1 + log(factor) / log(original));
    p->attention_factor = (float)reader_number(rd, "attention_factor", attention, 1e-6, 1e6);
    read_factors(p->short_factor, rd, "short_factor", p->n_rotated / 2);
    read_factors(p->long_factor, rd, "long_factor", p->n_rotated / 2);
}

static void read_scaling(struct positions *p, struct reader *rd, int32_t context) {
    static const char supported[] = "default, linear, llama3, longrope, yarn are";
    const char *type = reader_text(rd, reader_get(rd, "rope_type") ? "rope_type" : "type");
    if (!type || strcmp(type, "default") == 0) {
        if (reader_get(rd, "factor"))
            reader_complain(rd, E_UNSUPPORTED, "factor", "needs a rope_type (linear, llama3, longrope, yarn)");
        return;
    }
    /* older files of Phi-3 call longrope "su" or "yarn" */
    bool is_longrope = strcmp(type, "longrope") == 0 || strcmp(type, "su") == 0 || reader_get(rd, "long_factor");
    if (is_longrope) read_longrope(p, rd, context);
    else if (strcmp(type, "linear") == 0) read_linear(p, rd);
    else if (strcmp(type, "llama3") == 0) read_llama3(p, rd);
    else if (strcmp(type, "yarn") == 0) read_yarn(p, rd, context);
    else reader_refuse(rd, "rope_type", type, supported);
}

static void set_rotated(struct positions *p, struct reader *rd, const struct family *f, int32_t head_dim,
                        double partial) {
    if (rd->r == 0 && f->partial_default <= 0 && partial < 1)
        rd->r = err_set(rd->err, E_UNSUPPORTED, "%spartial_rotary_factor: %g is not supported in this family", rd->where,
                        partial);
    p->n_rotated = (int32_t)((double)head_dim * partial);
    if (rd->r == 0 && (p->n_rotated < 2 || p->n_rotated % 2 != 0))
        rd->r = err_set(rd->err, E_UNSUPPORTED, "%spartial_rotary_factor: %g of head_dim %d is not supported (an even "
                        "number of dimensions is)", rd->where, partial, head_dim);
}

/* Newer families have one object of parameters for each kind of layer. */
static void refuse_kinds_of_layers(struct reader *rd) {
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)rd->object, key, value)
        if (json_is_object(value))
            reader_complain(rd, E_UNSUPPORTED, key, "is not supported (the same parameters in all layers are)");
}

void positions_read_rope(struct positions *p, struct reader *rd, const struct family *f, int32_t head_dim,
                         int32_t context) {
    const json_t *scaling = reader_get(rd, "rope_scaling");
    bool has_scaling = scaling && !(json_is_object(scaling) && json_object_size(scaling) == 0);
    const char *key = has_scaling ? "rope_scaling" : "rope_parameters";
    const json_t *object = reader_get(rd, key);
    if (object && !json_is_object(object)) reader_complain(rd, E_PARSE, key, "is not an object");
    struct reader nested = {object, has_scaling ? "config.json: rope_scaling." : "config.json: rope_parameters.",
                            rd->err, rd->r};
    refuse_kinds_of_layers(&nested);
    p->attention_factor = 1.0f;
    double theta = reader_number(rd, "rope_theta", f->theta_default, 1.0, 1e12);
    double partial = f->partial_default > 0 ? f->partial_default : 1.0;
    partial = reader_number(rd, "partial_rotary_factor", partial, 0.0, 1.0);
    p->original_context = (int32_t)reader_int(&nested, "original_max_position_embeddings", context, 1, 1 << 28);
    if (f->original_context_default) p->original_context = f->original_context_default;
    if (nested.r < 0) rd->r = nested.r; /* the first complaint is the one that is told */
    p->original_context =
        (int32_t)reader_int(rd, "original_max_position_embeddings", p->original_context, 1, 1 << 28);
    nested.r = rd->r;
    p->theta = (float)reader_number(&nested, "rope_theta", theta, 1.0, 1e12);
    partial = reader_number(&nested, "partial_rotary_factor", partial, 0.0, 1.0);
    if (nested.r == 0) set_rotated(p, rd, f, head_dim, partial);
    if (object && nested.r == 0 && rd->r == 0) read_scaling(p, &nested, context);
    if (nested.r < 0) rd->r = nested.r;
}

/* ---------------------------------------------------------------- rotary frequencies */

static float llama3_frequency(const struct positions *p, float f) {
    float wavelength = 6.283185307179586f / f, context = (float)p->original_context;
    if (wavelength > context / p->low_freq_factor) return f / p->factor;
    if (wavelength < context / p->high_freq_factor) return f;
    float smooth = (context / wavelength - p->low_freq_factor) / (p->high_freq_factor - p->low_freq_factor);
    return (1.0f - smooth) * f / p->factor + smooth * f;
}

/* The dimension (a fraction) whose wave turns so many times within the original context. */
static double yarn_dimension(const struct positions *p, double turns) {
    double tau = 6.283185307179586;
    return p->n_rotated * log(p->original_context / (turns * tau)) / (2 * log((double)p->theta));
}

static float yarn_frequency(const struct positions *p, float f, int32_t i) {
    double low = yarn_dimension(p, (double)p->beta_fast), high = yarn_dimension(p, (double)p->beta_slow);
    if (p->truncate) {
        low = floor(low);
        high = ceil(high);
    }
    low = fmax(low, 0);
    high = fmin(high, p->n_rotated - 1);
    if (low == high) high += 0.001;
    float ramp = (float)fmin(fmax((i - low) / (high - low), 0), 1);
    return f / p->factor * ramp + f * (1.0f - ramp);
}

void positions_inv_freq(const struct positions *p, bool is_long, float *inv_freq) {
    const float *ext = is_long ? p->long_factor : p->short_factor;
    for (int32_t i = 0; i < p->n_rotated / 2; i++) {
        float f = 1.0f / powf(p->theta, (float)(2 * i) / (float)p->n_rotated);
        switch (p->scaling) {
        case ROPE_DEFAULT: break;
        case ROPE_LINEAR: f /= p->factor; break;
        case ROPE_LLAMA3: f = llama3_frequency(p, f); break;
        case ROPE_YARN: f = yarn_frequency(p, f, i); break;
        case ROPE_LONGROPE: f /= ext[i]; break;
        }
        inv_freq[i] = f;
    }
}

/* ---------------------------------------------------------------- ALiBi */

/* Slopes 2^-(max i / n), i = 1 .. n, where n is the next power of two; where there are fewer
 * heads, those of even i come first. */
static void mpt_slopes(float bias_max, int32_t n_heads, float *slopes) {
    int32_t n = 1;
    while (n < n_heads) n *= 2;
    for (int32_t h = 0; h < n_heads; h++) {
        int32_t i = h + 1;
        if (n != n_heads) i = h < n / 2 ? 2 * h + 2 : 2 * (h - n / 2) + 1;
        slopes[h] = 1.0f / powf(2.0f, (float)i * (bias_max / (float)n));
    }
}

/* The paper's: powers of 2^(-8 / n) for the power of two below, then odd powers of 2^(-4 / n).
 * Falcon rounds them to bfloat16. */
static void falcon_slopes(int32_t n_heads, float *slopes) {
    int32_t n = 1;
    while (2 * n <= n_heads) n *= 2;
    float base = (float)exp2(-8.0 / n), extra = (float)exp2(-4.0 / n);
    for (int32_t h = 0; h < n_heads; h++) {
        float slope = h < n ? powf(base, (float)(h + 1)) : powf(extra, (float)(2 * (h - n) + 1));
        slopes[h] = bf16_to_f32(bf16_from_f32(slope));
    }
}

void positions_alibi_slopes(const struct positions *p, int32_t n_heads, float *slopes) {
    if (p->alibi == ALIBI_MPT) mpt_slopes(p->alibi_bias_max, n_heads, slopes);
    else falcon_slopes(n_heads, slopes);
}
