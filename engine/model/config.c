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

/* ---------------------------------------------------------------- config.json */

static void read_family(struct reader *rd, struct model_config *c) {
    char supported[220];
    const char *type = reader_text(rd, "model_type");
    snprintf(supported, sizeof supported, "%s are", families_list());
    if (!type) {
        reader_missing(rd, "model_type");
        return;
    }
    const struct family *f = c->family = families_find(type);
    if (!f) {
        reader_refuse(rd, "model_type", type, supported);
        return;
    }
    snprintf(c->info.family, sizeof c->info.family, "%s", type);
    c->norm = f->norm;
    c->block = f->block;
    c->mlp = f->mlp;
    c->biases = f->biases;
    c->qkv = f->qkv;
    c->names = f->names;
    c->embed_scale = 1.0f;
}

static void read_act(struct reader *rd, struct model_config *c) {
    static const struct {
        const char *name;
        enum act act;
    } known[] = {{"silu", ACT_SILU},          {"swish", ACT_SILU},         {"gelu", ACT_GELU},
                 {"gelu_new", ACT_GELU_TANH}, {"gelu_fast", ACT_GELU_TANH}, {"gelu_pytorch_tanh", ACT_GELU_TANH}};
    const char *key = c->family->keys->act, *name = key ? reader_text(rd, key) : NULL;
    if (!name) name = c->family->act_default;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strcmp(name, known[i].name) == 0) {
            c->act = known[i].act;
            return;
        }
    reader_refuse(rd, key, name, "silu, gelu, gelu_new, gelu_pytorch_tanh are");
}

static void read_head_dim(struct reader *rd, struct model_config *c) {
    struct model_info *m = &c->info;
    const struct key_names *keys = c->family->keys;
    int32_t by_default = c->family->head_dim_default;
    if (by_default == 0 || !reader_is_absent(rd, "head_dim")) by_default = m->hidden / m->n_heads;
    if (!reader_get(rd, "head_dim") && by_default == m->hidden / m->n_heads && m->hidden % m->n_heads != 0)
        rd->r = err_set(rd->err, E_RANGE, "%s%s: %d is not a multiple of %s: %d", rd->where, keys->hidden, m->hidden,
                        keys->n_heads, m->n_heads);
    else m->head_dim = (int32_t)reader_int(rd, "head_dim", by_default, 1, 1 << 20);
    if (rd->r == 0 && (m->head_dim % 8 != 0 || m->head_dim > MAX_HEAD_DIM))
        rd->r = err_set(rd->err, E_UNSUPPORTED, "%shead_dim %d is not supported (multiples of 8 up to %d are)",
                        rd->where, m->head_dim, MAX_HEAD_DIM);
    c->attention_scale = 1.0f / sqrtf((float)m->head_dim);
}

static void read_heads(struct reader *rd, struct model_config *c) {
    struct model_info *m = &c->info;
    const struct key_names *keys = c->family->keys;
    m->n_heads = (int32_t)reader_int(rd, keys->n_heads, READER_REQUIRED, 1, 4096);
    m->n_kv_heads = m->n_heads;
    if (keys->n_kv_heads) {
        int32_t by_default = c->family->n_kv_heads_default;
        if (by_default == 0 || !reader_is_absent(rd, keys->n_kv_heads)) by_default = m->n_heads;
        m->n_kv_heads = (int32_t)reader_int(rd, keys->n_kv_heads, by_default, 1, 4096);
    }
    if (rd->r < 0) return;
    if (m->n_heads % m->n_kv_heads == 0) read_head_dim(rd, c);
    else
        rd->r = err_set(rd->err, E_RANGE, "%s%s: %d is not a multiple of %s: %d", rd->where, keys->n_heads, m->n_heads,
                        keys->n_kv_heads, m->n_kv_heads);
}

static void read_shape(struct reader *rd, struct model_config *c) {
    struct model_info *m = &c->info;
    const struct family *f = c->family;
    m->hidden = (int32_t)reader_int(rd, f->keys->hidden, READER_REQUIRED, 1, 1 << 20);
    m->n_layers = (int32_t)reader_int(rd, f->keys->n_layers, READER_REQUIRED, 1, MAX_LAYERS);
    int64_t intermediate = f->mlp_ratio_default ? (int64_t)m->hidden * f->mlp_ratio_default : READER_REQUIRED;
    if (f->keys->intermediate) intermediate = reader_int(rd, f->keys->intermediate, intermediate, 1, 1 << 22);
    m->intermediate = (int32_t)intermediate;
    m->vocab = (int32_t)reader_int(rd, "vocab_size", READER_REQUIRED, 1, 1 << 24);
    m->context = (int32_t)reader_int(rd, f->keys->context, f->context_default, 1, 1 << 28);
    m->tied_embeddings = reader_bool(rd, "tie_word_embeddings", f->tied_default);
    c->norm_eps = (float)reader_number(rd, f->keys->norm_eps, f->eps_default, 0.0, 1.0);
    read_heads(rd, c);
}

/* ---------------------------------------------------------------- sliding windows */

static void slide(struct model_config *c, int32_t layer, bool yes) {
    uint8_t bit = (uint8_t)(1u << layer % 8);
    if (yes) c->slides[layer / 8] |= bit;
    else c->slides[layer / 8] &= (uint8_t)~bit;
}

/* layer_types, where it is there, one kind a layer; WINDOWS_ALL leaves no choice. */
static void read_layer_types(struct reader *rd, struct model_config *c) {
    const json_t *types = reader_get(rd, "layer_types");
    bool has_choice = c->family->windows != WINDOWS_ALL;
    if (!types || rd->r < 0) return;
    if (has_choice && json_array_size(types) != (size_t)c->info.n_layers)
        reader_complain(rd, E_RANGE, "layer_types", "is not a list of one kind a layer");
    for (int32_t i = 0; rd->r == 0 && i < (int32_t)json_array_size(types) && i < c->info.n_layers; i++) {
        const char *type = json_string_value(json_array_get(types, (size_t)i));
        bool slides = type && strcmp(type, "sliding_attention") == 0;
        if (!slides && (!type || strcmp(type, "full_attention") != 0))
            reader_refuse(rd, "layer_types", type ? type : "?", "full_attention, sliding_attention are");
        else if (slides && c->info.sliding_window == 0)
            reader_refuse(rd, "layer_types", type, "it needs a sliding_window");
        else if (!has_choice && slides != config_layer_slides(c, i))
            reader_refuse(rd, "layer_types", type, "one kind of attention in all layers is");
        else slide(c, i, slides);
    }
}

static void read_windows(struct reader *rd, struct model_config *c) {
    struct model_info *m = &c->info;
    enum windows windows = c->family->windows;
    if (windows == WINDOWS_NONE) return;
    int32_t by_default = reader_is_absent(rd, "sliding_window") ? c->family->window_default : 0;
    if (windows != WINDOWS_LATE || reader_bool(rd, "use_sliding_window", false))
        m->sliding_window = (int32_t)reader_int(rd, "sliding_window", by_default, 1, 1 << 28);
    if (rd->r < 0) return;
    int32_t first = windows == WINDOWS_LATE ? (int32_t)reader_int(rd, "max_window_layers", 28, 0, MAX_LAYERS) : 0;
    for (int32_t i = 0; m->sliding_window > 0 && i < m->n_layers; i++)
        slide(c, i, i >= first && (windows != WINDOWS_OTHER || i % 2 == 0));
    read_layer_types(rd, c);
}

static void read_positions(struct reader *rd, struct model_config *c) {
    const struct family *f = c->family;
    c->positions.attention_factor = 1.0f;
    if (f->theta_default <= 0) return;
    positions_read_rope(&c->positions, rd, f, c->info.head_dim, c->info.context);
    bool has_two = c->positions.scaling == ROPE_LONGROPE && c->info.context > c->positions.original_context;
    c->info.rope_switch = has_two ? c->positions.original_context : 0;
}

static void read_dtype(struct reader *rd, struct model_config *c) {
    const char *dtype = reader_text(rd, reader_get(rd, "dtype") ? "dtype" : "torch_dtype");
    if (dtype) snprintf(c->torch_dtype, sizeof c->torch_dtype, "%s", dtype);
}

static void read_stop_ids(struct reader *rd, struct model_info *m) {
    const json_t *v = reader_get(rd, "eos_token_id");
    if (!v || rd->r < 0) return;
    size_t n = json_is_array(v) ? json_array_size(v) : 1;
    if (n > sizeof m->stop_ids / sizeof *m->stop_ids) {
        reader_complain(rd, E_RANGE, "eos_token_id", "lists more than 16 ids");
        return;
    }
    for (size_t i = 0; i < n; i++) {
        const json_t *id = json_is_array(v) ? json_array_get(v, i) : v;
        if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) >= m->vocab)
            reader_complain(rd, E_RANGE, "eos_token_id", "is not a token id below vocab_size, nor a list of such");
        m->stop_ids[i] = (int32_t)json_integer_value(id);
    }
    m->n_stop_ids = (int32_t)n;
}

/* Before the file has its say; an id beyond a small vocabulary stops nothing. */
static void set_default_stop(const struct reader *rd, struct model_config *c) {
    int32_t id = c->family->eos_default;
    if (!reader_is_absent(rd, "eos_token_id") || id == 0 || id >= c->info.vocab) return;
    c->info.stop_ids[0] = id;
    c->info.n_stop_ids = 1;
}

static void read_model(struct reader *rd, struct model_config *c) {
    const json_t *quantization = reader_get(rd, "quantization_config");
    if (rd->r == 0) rd->r = quantization_check_config(quantization, rd->where, rd->err);
    if (rd->r == 0) rd->r = quantization_read_block(&c->fp8_block, quantization, rd->where, rd->err);
    read_shape(rd, c);
    read_act(rd, c);
    read_windows(rd, c);
    read_positions(rd, c);
    if (c->family->specials) c->family->specials(c, rd);
    read_dtype(rd, c);
    set_default_stop(rd, c);
    read_stop_ids(rd, &c->info);
}

/* ---------------------------------------------------------------- generation_config.json */

/* As transformers has it: a penalty holds in any case, the rest only where the file asks for
 * sampling at all, since without do_sample it decodes greedily whatever temperature stands
 * beside it. Where top_k is absent its own default holds. */
static void read_sampling(struct reader *rd, struct model_info *m) {
    m->repetition_penalty = (float)reader_number(rd, "repetition_penalty", 1.0, 1e-3, 100.0);
    if (!reader_bool(rd, "do_sample", false)) return;
    m->has_temperature = true;
    m->temperature = (float)reader_number(rd, "temperature", 1.0, 0.0, 100.0);
    m->has_top_p = reader_get(rd, "top_p") != NULL;
    m->top_p = (float)reader_number(rd, "top_p", 1.0, 1e-6, 1.0);
    m->has_top_k = true;
    m->top_k = (int32_t)reader_int(rd, "top_k", 50, 0, INT32_MAX);
    m->has_min_p = reader_get(rd, "min_p") != NULL;
    m->min_p = (float)reader_number(rd, "min_p", 0.0, 0.0, 1.0);
}

/* Keys that change what transformers generates and that nothing here stands for, with the value
 * that asks for nothing; null, false and empty lists never do. */
static void note_not_applied(const struct reader *rd, struct model_info *m) {
    static const struct {
        const char *key;
        double neutral;
        bool samples; /* counts only beside do_sample */
    } keys[] = {{"num_beams", 1, false},          {"min_length", 0, false},
                {"min_new_tokens", 0, false},     {"no_repeat_ngram_size", 0, false},
                {"encoder_repetition_penalty", 1, false}, {"bad_words_ids", 0, false},
                {"suppress_tokens", 0, false},    {"begin_suppress_tokens", 0, false},
                {"sequence_bias", 0, false},      {"forced_bos_token_id", NAN, false},
                {"forced_eos_token_id", NAN, false}, {"exponential_decay_length_penalty", 0, false},
                {"guidance_scale", 1, false},     {"typical_p", 1, true},
                {"epsilon_cutoff", 0, true},      {"eta_cutoff", 0, true}};
    size_t n = 0;
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        const json_t *v = reader_get(rd, keys[i].key);
        bool is_neutral = !v || json_is_false(v) || (json_is_number(v) && json_number_value(v) == keys[i].neutral) ||
                          (json_is_array(v) && json_array_size(v) == 0) || (json_is_object(v) && json_object_size(v) == 0);
        if (is_neutral || (keys[i].samples && !m->has_temperature)) continue;
        n += (size_t)snprintf(m->not_applied + n, sizeof m->not_applied - n, "%s%s", n ? ", " : "", keys[i].key);
        if (n >= sizeof m->not_applied) break;
    }
}

static int read_generation(struct model_info *m, const char *dir, struct err *err) {
    char *path = path_join(dir, "generation_config.json");
    json_t *root = NULL;
    struct err why = ERR_INIT;
    int r = read_json(&root, path, &why);
    free(path);
    m->repetition_penalty = 1.0f;
    if (r == E_NOT_FOUND) return 0;
    if (r < 0) return err_set(err, r, "%s", why.text);
    struct reader rd = {root, "generation_config.json: ", err, 0};
    read_stop_ids(&rd, m);
    read_sampling(&rd, m);
    note_not_applied(&rd, m);
    json_decref(root);
    return rd.r;
}

/* What older files call a key counts where the key is not there. */
static void rename_keys(json_t *root, const struct alias *alias) {
    for (; alias && alias->key; alias++) {
        json_t *v = json_object_get(root, alias->old);
        if (v && !json_object_get(root, alias->key)) json_object_set(root, alias->key, v);
    }
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
    if (rd.r == 0) rename_keys(root, c.family->aliases);
    if (rd.r == 0) read_model(&rd, &c);
    r = rd.r < 0 ? rd.r : read_generation(&c.info, model_dir, err);
    json_decref(root);
    if (r == 0) *out = c;
    return r;
}
