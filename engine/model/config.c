/* config.c - see config.h. */
#include "engine/model/config.h"
#include "base/file.h"
#include "base/mem.h"

#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_CONFIG = 4 << 20 };

static int read_json(json_t **out, const char *path, struct err *err) {
    char *text;
    size_t n;
    int r = file_read(path, MAX_CONFIG, &text, &n, err);
    if (r < 0) return r;
    json_error_t why;
    json_t *root = json_loadb(text, n, 0, &why);
    free(text);
    if (!root) return err_set(err, E_PARSE, "%s:%d: %s", path, why.line, why.text);
    if (json_is_object(root)) {
        *out = root;
        return 0;
    }
    json_decref(root);
    return err_set(err, E_PARSE, "%s is not a JSON object", path);
}

/* ---------------------------------------------------------------- reading keys */

struct reader { /* the first error stops all later reads */
    const json_t *root;
    struct err *err;
    int r;
};

static const json_t *get(const struct reader *rd, const char *key) {
    const json_t *v = json_object_get(rd->root, key);
    return json_is_null(v) ? NULL : v;
}

static int64_t read_int(struct reader *rd, const char *key, int64_t missing, int64_t least, int64_t most) {
    const json_t *v = get(rd, key);
    if (rd->r < 0) return missing;
    if (!v && missing >= least) return missing;
    if (!v) rd->r = err_set(rd->err, E_PARSE, "config.json: no %s", key);
    else if (!json_is_integer(v)) rd->r = err_set(rd->err, E_PARSE, "config.json: %s is not a whole number", key);
    else if (json_integer_value(v) < least || json_integer_value(v) > most)
        rd->r = err_set(rd->err, E_RANGE, "config.json: %s: %lld is not in %lld .. %lld", key,
                        (long long)json_integer_value(v), (long long)least, (long long)most);
    return rd->r < 0 ? missing : json_integer_value(v);
}

static double read_number(struct reader *rd, const json_t *object, const char *key, double missing, double least,
                          double most) {
    const json_t *v = json_object_get(object, key);
    if (rd->r < 0) return missing;
    if (!v || json_is_null(v)) {
        if (isnan(missing)) rd->r = err_set(rd->err, E_PARSE, "config.json: no %s", key);
        return missing;
    }
    double x = json_number_value(v);
    if (!json_is_number(v)) rd->r = err_set(rd->err, E_PARSE, "config.json: %s is not a number", key);
    else if (!(x >= least && x <= most))
        rd->r = err_set(rd->err, E_RANGE, "config.json: %s: %g is not in %g .. %g", key, x, least, most);
    return rd->r < 0 ? missing : x;
}

static bool read_bool(struct reader *rd, const char *key, bool missing) {
    const json_t *v = get(rd, key);
    if (rd->r < 0 || !v) return missing;
    if (!json_is_boolean(v)) rd->r = err_set(rd->err, E_PARSE, "config.json: %s is not true or false", key);
    return json_is_true(v);
}

static const char *read_text(struct reader *rd, const char *key) {
    const json_t *v = get(rd, key);
    if (rd->r < 0 || !v) return NULL;
    if (!json_is_string(v)) rd->r = err_set(rd->err, E_PARSE, "config.json: %s is not a string", key);
    return json_string_value(v);
}

static void refuse(struct reader *rd, const char *key, const char *value, const char *supported) {
    if (rd->r < 0) return;
    rd->r = err_set(rd->err, E_UNSUPPORTED, "config.json: %s \"%s\" is not supported (%s)", key, value, supported);
}

/* ---------------------------------------------------------------- config.json */

static void read_family(struct reader *rd, struct model_config *c) {
    const char *family = read_text(rd, "model_type");
    if (rd->r < 0) return;
    if (!family) rd->r = err_set(rd->err, E_PARSE, "config.json: no model_type");
    else if (strcmp(family, "llama") != 0 && strcmp(family, "mistral") != 0)
        refuse(rd, "model_type", family, "llama and mistral are");
    else strcpy(c->info.family, family);
    const char *act = read_text(rd, "hidden_act");
    if (act && strcmp(act, "silu") != 0) refuse(rd, "hidden_act", act, "silu is");
    if (get(rd, "quantization_config")) {
        const char *method = json_string_value(json_object_get(get(rd, "quantization_config"), "quant_method"));
        refuse(rd, "quantization_config.quant_method", method ? method : "?", "checkpoints of 16 or 32 bit are");
    }
}

static void read_shape(struct reader *rd, struct model_config *c) {
    struct model_info *m = &c->info;
    m->hidden = (int32_t)read_int(rd, "hidden_size", -1, 1, 1 << 20);
    m->n_layers = (int32_t)read_int(rd, "num_hidden_layers", -1, 1, 4096);
    m->n_heads = (int32_t)read_int(rd, "num_attention_heads", -1, 1, 4096);
    m->n_kv_heads = (int32_t)read_int(rd, "num_key_value_heads", m->n_heads, 1, 4096);
    m->intermediate = (int32_t)read_int(rd, "intermediate_size", -1, 1, 1 << 22);
    m->vocab = (int32_t)read_int(rd, "vocab_size", -1, 1, 1 << 24);
    m->context = (int32_t)read_int(rd, "max_position_embeddings", 2048, 1, 1 << 28);
    if (rd->r < 0) return;
    int64_t by_default = m->hidden % m->n_heads == 0 ? m->hidden / m->n_heads : -1;
    m->head_dim = (int32_t)read_int(rd, "head_dim", by_default, 1, 256);
    if (rd->r < 0) return;
    if (m->n_heads % m->n_kv_heads != 0)
        rd->r = err_set(rd->err, E_RANGE, "config.json: num_attention_heads %d is no multiple of num_key_value_heads %d",
                        m->n_heads, m->n_kv_heads);
    else if (m->head_dim % 8 != 0 || m->head_dim > 256)
        rd->r = err_set(rd->err, E_UNSUPPORTED,
                        "config.json: head_dim %d is not supported (multiples of 8 up to 256 are)", m->head_dim);
}

static void read_rope(struct reader *rd, struct model_config *c) {
    const json_t *params = get(rd, "rope_parameters"), *scaling = get(rd, "rope_scaling");
    const json_t *theta_from = params && json_object_get(params, "rope_theta") ? params : rd->root;
    c->rope_theta = (float)read_number(rd, theta_from, "rope_theta", 10000.0, 1.0, 1e12);
    if (!scaling) scaling = params;
    if (rd->r < 0 || !scaling) return;
    const char *type = json_string_value(json_object_get(scaling, "rope_type"));
    if (!type) type = json_string_value(json_object_get(scaling, "type"));
    if (!type || strcmp(type, "default") == 0) return;
    if (strcmp(type, "linear") == 0) c->rope_scaling = ROPE_LINEAR;
    else if (strcmp(type, "llama3") == 0) c->rope_scaling = ROPE_LLAMA3;
    else {
        refuse(rd, "rope_scaling.rope_type", type, "default, linear and llama3 are");
        return;
    }
    c->rope_factor = (float)read_number(rd, scaling, "factor", (double)NAN, 1.0, 1e6);
    if (c->rope_scaling != ROPE_LLAMA3) return;
    c->rope_low_freq_factor = (float)read_number(rd, scaling, "low_freq_factor", (double)NAN, 1e-6, 1e6);
    c->rope_high_freq_factor = (float)read_number(rd, scaling, "high_freq_factor", (double)NAN, 1e-6, 1e6);
    c->rope_original_context =
        (int32_t)read_number(rd, scaling, "original_max_position_embeddings", (double)NAN, 1, 1 << 28);
    if (rd->r == 0 && c->rope_high_freq_factor <= c->rope_low_freq_factor)
        rd->r = err_set(rd->err, E_RANGE, "config.json: rope_scaling.high_freq_factor is not above low_freq_factor");
}

static void read_rest(struct reader *rd, struct model_config *c) {
    c->norm_eps = (float)read_number(rd, rd->root, "rms_norm_eps", 1e-6, 1e-12, 1.0);
    c->info.tied_embeddings = read_bool(rd, "tie_word_embeddings", false);
    if (strcmp(c->info.family, "mistral") == 0)
        c->info.sliding_window = (int32_t)read_int(rd, "sliding_window", 0, 0, 1 << 28);
    const char *dtype = read_text(rd, get(rd, "torch_dtype") ? "torch_dtype" : "dtype");
    if (dtype) snprintf(c->torch_dtype, sizeof c->torch_dtype, "%s", dtype);
}

static int read_stop_ids(struct model_info *m, const json_t *v, const char *file, struct err *err) {
    const json_t *one = json_is_array(v) ? NULL : v;
    size_t n = one ? 1 : json_array_size(v);
    if (n > sizeof m->stop_ids / sizeof *m->stop_ids)
        return err_set(err, E_RANGE, "%s: eos_token_id lists %zu ids, at most 16 are supported", file, n);
    for (size_t i = 0; i < n; i++) {
        const json_t *id = one ? one : json_array_get(v, i);
        if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) >= m->vocab)
            return err_set(err, E_RANGE, "%s: eos_token_id holds something that is not a token id below %d", file,
                           m->vocab);
        m->stop_ids[i] = (int32_t)json_integer_value(id);
    }
    m->n_stop_ids = (int32_t)n;
    return 0;
}

static void read_default(const json_t *root, const char *key, bool *has, float *value) {
    const json_t *v = json_object_get(root, key);
    if (!json_is_number(v) || *has) return;
    *has = true;
    *value = (float)json_number_value(v);
}

/* Defaults of sampling count only where the file asks for sampling at all. */
static int read_generation(struct model_info *m, const char *path, struct err *err) {
    json_t *root;
    int r = read_json(&root, path, err);
    if (r == E_NOT_FOUND) return 0;
    if (r < 0) return r;
    const json_t *eos = json_object_get(root, "eos_token_id");
    if (eos && !json_is_null(eos)) r = read_stop_ids(m, eos, "generation_config.json", err);
    if (r == 0 && json_is_true(json_object_get(root, "do_sample"))) {
        read_default(root, "temperature", &m->has_temperature, &m->temperature);
        read_default(root, "top_p", &m->has_top_p, &m->top_p);
        const json_t *top_k = json_object_get(root, "top_k");
        m->has_top_k = json_is_integer(top_k) && json_integer_value(top_k) >= 0 && json_integer_value(top_k) < INT32_MAX;
        if (m->has_top_k) m->top_k = (int32_t)json_integer_value(top_k);
        if (!m->has_temperature) {
            m->has_temperature = true;
            m->temperature = 1.0f;
        }
    }
    json_decref(root);
    return r;
}

int config_read(struct model_config *out, const char *model_dir, struct err *err) {
    struct model_config c = {0};
    json_t *root = NULL;
    char *path = path_join(model_dir, "config.json"), *generation = path_join(model_dir, "generation_config.json");
    int r = read_json(&root, path, err);
    if (r < 0) goto out;
    struct reader rd = {root, err, 0};
    read_family(&rd, &c);
    read_shape(&rd, &c);
    read_rope(&rd, &c);
    read_rest(&rd, &c);
    r = rd.r;
    const json_t *eos = json_object_get(root, "eos_token_id");
    if (r == 0 && eos && !json_is_null(eos)) r = read_stop_ids(&c.info, eos, "config.json", err);
    if (r == 0) r = read_generation(&c.info, generation, err);
    if (r == 0) *out = c;
out:
    json_decref(root);
    free(path);
    free(generation);
    return r;
}

/* ---------------------------------------------------------------- RoPE */

static float llama3_frequency(const struct model_config *c, float f) {
    float wavelength = 6.283185307179586f / f, context = (float)c->rope_original_context;
    if (wavelength > context / c->rope_low_freq_factor) return f / c->rope_factor;
    if (wavelength < context / c->rope_high_freq_factor) return f;
    float smooth = (context / wavelength - c->rope_low_freq_factor) / (c->rope_high_freq_factor - c->rope_low_freq_factor);
    return (1.0f - smooth) * f / c->rope_factor + smooth * f;
}

void config_inv_freq(const struct model_config *c, float *inv_freq) {
    for (int32_t i = 0; i < c->info.head_dim / 2; i++) {
        float f = 1.0f / powf(c->rope_theta, (float)(2 * i) / (float)c->info.head_dim);
        if (c->rope_scaling == ROPE_LINEAR) f /= c->rope_factor;
        if (c->rope_scaling == ROPE_LLAMA3) f = llama3_frequency(c, f);
        inv_freq[i] = f;
    }
}
