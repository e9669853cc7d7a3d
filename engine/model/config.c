/* config.c - see config.h. */
#include "engine/model/config.h"
#include "engine/model/quantization.h"
#include "base/file.h"
#include "base/mem.h"

#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_CONFIG = 1 << 20 }; /* bytes; real ones have a few thousand */

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
    const json_t *object;
    const char *where; /* what messages put before a key: "config.json: " */
    struct err *err;
    int r;
};

static const int64_t REQUIRED = INT64_MIN;

/* NULL where the key is absent or null. */
static const json_t *get(const struct reader *rd, const char *key) {
    const json_t *v = json_object_get(rd->object, key);
    return json_is_null(v) ? NULL : v;
}

static bool is_absent(const struct reader *rd, const char *key) {
    return json_object_get(rd->object, key) == NULL;
}

/* "config.json: key: value is/must ...". */
static void complain(struct reader *rd, int code, const char *key, const char *what) {
    if (rd->r < 0) return;
    char value[64] = {0};
    if (json_dumpb(json_object_get(rd->object, key), value, 60, JSON_ENCODE_ANY | JSON_COMPACT) > 60)
        memcpy(value + strlen(value), "...", 4);
    rd->r = err_set(rd->err, code, "%s%s: %s %s", rd->where, key, value, what);
}

static void missing(struct reader *rd, const char *key) {
    if (rd->r == 0) rd->r = err_set(rd->err, E_PARSE, "%s%s is missing", rd->where, key);
}

static int64_t read_int(struct reader *rd, const char *key, int64_t by_default, int64_t least, int64_t most) {
    const json_t *v = get(rd, key);
    char range[80];
    if (!v && by_default != REQUIRED) return by_default;
    snprintf(range, sizeof range, "is not in %lld .. %lld", (long long)least, (long long)most);
    if (!v) missing(rd, key);
    else if (!json_is_integer(v)) complain(rd, E_PARSE, key, "is not a whole number");
    else if (json_integer_value(v) < least || json_integer_value(v) > most) complain(rd, E_RANGE, key, range);
    return rd->r < 0 ? least : json_integer_value(v);
}

/* by_default NaN: the key must be there. */
static double read_number(struct reader *rd, const char *key, double by_default, double least, double most) {
    const json_t *v = get(rd, key);
    char range[80];
    if (!v && !isnan(by_default)) return by_default;
    snprintf(range, sizeof range, "is not in %g .. %g", least, most);
    if (!v) missing(rd, key);
    else if (!json_is_number(v)) complain(rd, E_PARSE, key, "is not a number");
    else if (!(json_number_value(v) >= least && json_number_value(v) <= most)) complain(rd, E_RANGE, key, range);
    return rd->r < 0 ? least : json_number_value(v);
}

static bool read_bool(struct reader *rd, const char *key, bool by_default) {
    const json_t *v = get(rd, key);
    if (!v) return by_default;
    if (!json_is_boolean(v)) complain(rd, E_PARSE, key, "is not true or false");
    return json_is_true(v);
}

/* NULL where there is none; borrowed from the file's tree. */
static const char *read_text(struct reader *rd, const char *key) {
    const json_t *v = get(rd, key);
    if (v && !json_is_string(v)) complain(rd, E_PARSE, key, "is not a string");
    return json_string_value(v);
}

static void refuse(struct reader *rd, const char *key, const char *value, const char *supported) {
    if (rd->r < 0) return;
    rd->r = err_set(rd->err, E_UNSUPPORTED, "%s%s \"%.80s\" is not supported (%s)", rd->where, key, value, supported);
}

/* ---------------------------------------------------------------- config.json */

static void read_family(struct reader *rd, struct model_config *c) {
    const char *family = read_text(rd, "model_type"), *act = read_text(rd, "hidden_act");
    if (!family) missing(rd, "model_type");
    else if (strcmp(family, "llama") != 0 && strcmp(family, "mistral") != 0)
        refuse(rd, "model_type", family, "llama, mistral are");
    else strcpy(c->info.family, family);
    if (act && strcmp(act, "silu") != 0) refuse(rd, "hidden_act", act, "silu is");
    if (rd->r == 0) rd->r = quantization_check_config(get(rd, "quantization_config"), rd->where, rd->err);
}

static bool is_mistral(const struct model_config *c) {
    return strcmp(c->info.family, "mistral") == 0;
}

static void read_heads(struct reader *rd, struct model_config *c) {
    struct model_info *m = &c->info;
    m->n_heads = (int32_t)read_int(rd, "num_attention_heads", REQUIRED, 1, 4096);
    int32_t n_kv = is_mistral(c) && is_absent(rd, "num_key_value_heads") ? 8 : m->n_heads;
    m->n_kv_heads = (int32_t)read_int(rd, "num_key_value_heads", n_kv, 1, 4096);
    if (rd->r < 0) return;
    if (m->n_heads % m->n_kv_heads != 0)
        rd->r = err_set(rd->err, E_RANGE,
                        "%snum_attention_heads: %d is not a multiple of num_key_value_heads: %d", rd->where, m->n_heads,
                        m->n_kv_heads);
    else if (!get(rd, "head_dim") && m->hidden % m->n_heads != 0)
        rd->r = err_set(rd->err, E_RANGE, "%shidden_size: %d is not a multiple of num_attention_heads: %d", rd->where,
                        m->hidden, m->n_heads);
    else m->head_dim = (int32_t)read_int(rd, "head_dim", m->hidden / m->n_heads, 1, 1 << 20);
    if (rd->r == 0 && (m->head_dim % 8 != 0 || m->head_dim > MAX_HEAD_DIM))
        rd->r = err_set(rd->err, E_UNSUPPORTED, "%shead_dim %d is not supported (multiples of 8 up to %d are)",
                        rd->where, m->head_dim, MAX_HEAD_DIM);
}

static void read_shape(struct reader *rd, struct model_config *c) {
    struct model_info *m = &c->info;
    m->hidden = (int32_t)read_int(rd, "hidden_size", REQUIRED, 1, 1 << 20);
    m->n_layers = (int32_t)read_int(rd, "num_hidden_layers", REQUIRED, 1, 4096);
    m->intermediate = (int32_t)read_int(rd, "intermediate_size", REQUIRED, 1, 1 << 22);
    m->vocab = (int32_t)read_int(rd, "vocab_size", REQUIRED, 1, 1 << 24);
    m->context = (int32_t)read_int(rd, "max_position_embeddings", is_mistral(c) ? 131072 : 2048, 1, 1 << 28);
    m->tied_embeddings = read_bool(rd, "tie_word_embeddings", false);
    c->norm_eps = (float)read_number(rd, "rms_norm_eps", 1e-6, 0.0, 1.0);
    read_heads(rd, c);
}

/* Mistral's projections never have a bias, whatever its config.json says of one. */
static void read_biases(struct reader *rd, struct model_config *c) {
    c->attention_bias = read_bool(rd, "attention_bias", false);
    c->mlp_bias = read_bool(rd, "mlp_bias", false);
    if (!is_mistral(c)) return;
    if (c->attention_bias) refuse(rd, "attention_bias", "true", "mistral has none");
    if (c->mlp_bias) refuse(rd, "mlp_bias", "true", "mistral has none");
}

static void read_window(struct reader *rd, struct model_config *c) {
    if (!is_mistral(c)) return;
    int32_t by_default = is_absent(rd, "sliding_window") ? 4096 : 0;
    c->info.sliding_window = (int32_t)read_int(rd, "sliding_window", by_default, 1, 1 << 28);
    const json_t *types = get(rd, "layer_types");
    const char *expected = c->info.sliding_window > 0 ? "sliding_attention" : "full_attention";
    for (size_t i = 0; i < json_array_size(types); i++) {
        const char *type = json_string_value(json_array_get(types, i));
        if (!type || strcmp(type, expected) != 0)
            refuse(rd, "layer_types", type ? type : "?", "one kind of attention in all layers is");
    }
}

static void refuse_partial_rotation(struct reader *rd) {
    if (read_number(rd, "partial_rotary_factor", 1.0, 0.0, 1.0) < 1.0)
        complain(rd, E_UNSUPPORTED, "partial_rotary_factor", "is not supported (1 is)");
}

static void read_scaling(struct reader *rd, struct model_config *c) {
    const char *type = read_text(rd, get(rd, "rope_type") ? "rope_type" : "type");
    if (!type || strcmp(type, "default") == 0) {
        if (get(rd, "factor"))
            complain(rd, E_UNSUPPORTED, "factor", "needs a rope_type (linear, llama3 are supported)");
        return;
    }
    bool is_llama3 = strcmp(type, "llama3") == 0;
    if (!is_llama3 && strcmp(type, "linear") != 0) {
        refuse(rd, "rope_type", type, "default, linear, llama3 are");
        return;
    }
    c->rope_scaling = is_llama3 ? ROPE_LLAMA3 : ROPE_LINEAR;
    c->rope_factor = (float)read_number(rd, "factor", (double)NAN, 1.0, 1e6);
    if (!is_llama3) return;
    c->rope_low_freq_factor = (float)read_number(rd, "low_freq_factor", (double)NAN, 1e-6, 1e6);
    c->rope_high_freq_factor = (float)read_number(rd, "high_freq_factor", (double)NAN, 1e-6, 1e6);
    c->rope_original_context =
        (int32_t)read_int(rd, "original_max_position_embeddings", c->rope_original_context, 1, 1 << 28);
    if (c->rope_high_freq_factor <= c->rope_low_freq_factor)
        complain(rd, E_RANGE, "high_freq_factor", "is not above low_freq_factor");
}

/* rope_theta and rope_scaling, which transformers 5 writes as one object rope_parameters. */
static void read_rope(struct reader *rd, struct model_config *c) {
    bool has_scaling = get(rd, "rope_scaling") != NULL;
    const char *key = has_scaling ? "rope_scaling" : "rope_parameters";
    const json_t *object = get(rd, key);
    c->rope_theta = (float)read_number(rd, "rope_theta", 10000.0, 1.0, 1e12);
    c->rope_original_context = (int32_t)read_int(rd, "original_max_position_embeddings", c->info.context, 1, 1 << 28);
    refuse_partial_rotation(rd);
    if (!object || rd->r < 0) return;
    if (!json_is_object(object)) {
        complain(rd, E_PARSE, key, "is not an object");
        return;
    }
    struct reader nested = {object, has_scaling ? "config.json: rope_scaling." : "config.json: rope_parameters.",
                            rd->err, 0};
    c->rope_theta = (float)read_number(&nested, "rope_theta", (double)c->rope_theta, 1.0, 1e12);
    refuse_partial_rotation(&nested);
    read_scaling(&nested, c);
    rd->r = nested.r;
}

static void read_dtype(struct reader *rd, struct model_config *c) {
    const char *dtype = read_text(rd, get(rd, "torch_dtype") ? "torch_dtype" : "dtype");
    if (dtype) snprintf(c->torch_dtype, sizeof c->torch_dtype, "%s", dtype);
}

static void read_stop_ids(struct reader *rd, struct model_info *m) {
    const json_t *v = get(rd, "eos_token_id");
    if (!v || rd->r < 0) return;
    size_t n = json_is_array(v) ? json_array_size(v) : 1;
    if (n > sizeof m->stop_ids / sizeof *m->stop_ids) {
        complain(rd, E_RANGE, "eos_token_id", "lists more than 16 ids");
        return;
    }
    for (size_t i = 0; i < n; i++) {
        const json_t *id = json_is_array(v) ? json_array_get(v, i) : v;
        if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) >= m->vocab)
            complain(rd, E_RANGE, "eos_token_id", "is not a token id below vocab_size, nor a list of such");
        m->stop_ids[i] = (int32_t)json_integer_value(id);
    }
    m->n_stop_ids = (int32_t)n;
}

/* ---------------------------------------------------------------- generation_config.json */

/* Sampling defaults hold only where the file asks for sampling at all: transformers
 * decodes greedily without do_sample, whatever temperature stands beside it. */
static void read_sampling(struct reader *rd, struct model_info *m) {
    if (!read_bool(rd, "do_sample", false)) return;
    m->has_temperature = true;
    m->temperature = (float)read_number(rd, "temperature", 1.0, 0.0, 100.0);
    m->has_top_p = get(rd, "top_p") != NULL;
    m->top_p = (float)read_number(rd, "top_p", 1.0, 1e-6, 1.0);
    m->has_top_k = get(rd, "top_k") != NULL;
    m->top_k = (int32_t)read_int(rd, "top_k", 0, 0, INT32_MAX);
}

static int read_generation(struct model_info *m, const char *dir, struct err *err) {
    char *path = path_join(dir, "generation_config.json");
    json_t *root = NULL;
    struct err why = ERR_INIT;
    int r = read_json(&root, path, &why);
    free(path);
    if (r == E_NOT_FOUND) return 0;
    if (r < 0) return err_set(err, r, "%s", why.text);
    struct reader rd = {root, "generation_config.json: ", err, 0};
    read_stop_ids(&rd, m);
    read_sampling(&rd, m);
    json_decref(root);
    return rd.r;
}

int config_read(struct model_config *out, const char *model_dir, struct err *err) {
    struct model_config c = {0};
    json_t *root = NULL;
    char *path = path_join(model_dir, "config.json");
    int r = read_json(&root, path, err);
    free(path);
    if (r == E_NOT_FOUND)
        return err_set(err, r, "%s has no config.json; a model is a folder with config.json, tokenizer.json and "
                               "model.safetensors", model_dir);
    if (r < 0) return r;
    struct reader rd = {root, "config.json: ", err, 0};
    read_family(&rd, &c);
    read_shape(&rd, &c);
    read_biases(&rd, &c);
    read_window(&rd, &c);
    read_rope(&rd, &c);
    read_dtype(&rd, &c);
    read_stop_ids(&rd, &c.info);
    r = rd.r < 0 ? rd.r : read_generation(&c.info, model_dir, err);
    json_decref(root);
    if (r == 0) *out = c;
    return r;
}

/* ---------------------------------------------------------------- RoPE */

static float llama3_frequency(const struct model_config *c, float f) {
    float wavelength = 6.283185307179586f / f, context = (float)c->rope_original_context;
    if (wavelength > context / c->rope_low_freq_factor) return f / c->rope_factor;
    if (wavelength < context / c->rope_high_freq_factor) return f;
    float smooth = (context / wavelength - c->rope_low_freq_factor) /
                   (c->rope_high_freq_factor - c->rope_low_freq_factor);
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
