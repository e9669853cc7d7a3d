/* model.c - opening a model folder: description, dtype, weights, tables. */
#include "engine/model/model.h"
#include "base/mem.h"
#include "engine/model/model_private.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *dtype_of_weights(const struct checkpoint *c, const char *torch_dtype) {
    for (size_t i = 0; c && i < checkpoint_n_tensors(c); i++)
        if (checkpoint_at(c, i)->is_float) return dtype_name(checkpoint_at(c, i)->dtype);
    return *torch_dtype ? torch_dtype : "float32";
}

static int64_t kv_bytes_per_token(const struct model_info *m, enum dtype dtype) {
    return (int64_t)m->n_layers * 2 * m->n_kv_heads * m->head_dim * (int64_t)dtype_bytes(dtype);
}

static int64_t count_params(const struct model_info *m, const struct checkpoint *c) {
    int64_t n = 0;
    for (size_t i = 0; c && i < checkpoint_n_tensors(c); i++)
        n += (int64_t)(checkpoint_at(c, i)->bytes / (checkpoint_at(c, i)->is_float ? dtype_bytes(checkpoint_at(c, i)->dtype) : 1));
    if (c) return n;
    int64_t h = m->hidden, q = (int64_t)m->n_heads * m->head_dim, kv = (int64_t)m->n_kv_heads * m->head_dim;
    n = m->n_layers * (2 * h + 2 * q * h + 2 * kv * h + 3 * h * m->intermediate) + h + (int64_t)m->vocab * h;
    return m->tied_embeddings ? n : n + (int64_t)m->vocab * h;
}

static void complete_info(struct model_config *config, const struct checkpoint *c) {
    struct model_info *m = &config->info;
    snprintf(m->dtype, sizeof m->dtype, "%s", dtype_of_weights(c, config->torch_dtype));
    m->n_params = count_params(m, c);
    m->kv_bytes_per_token = kv_bytes_per_token(m, strcmp(m->dtype, "float32") == 0 ? DTYPE_F32 : DTYPE_BF16);
    if (c && !checkpoint_find(c, "lm_head.weight")) m->tied_embeddings = true;
}

int model_describe(struct model_info *out, const char *model_dir, struct err *err) {
    struct model_config config;
    struct checkpoint *c = NULL;
    int r = config_read(&config, model_dir, err);
    if (r == 0) r = checkpoint_open(&c, model_dir, err);
    if (r < 0) return r;
    complete_info(&config, c);
    checkpoint_close(c);
    *out = config.info;
    return 0;
}

int model_pick_dtype(enum dtype *out, const char *asked, const struct model_info *info, struct err *err) {
    if (!asked || strcmp(asked, "auto") == 0) asked = strcmp(info->dtype, "bfloat16") == 0 ? "bfloat16" : "float32";
    if (strcmp(asked, "float32") == 0) *out = DTYPE_F32;
    else if (strcmp(asked, "bfloat16") == 0) *out = DTYPE_BF16;
    else if (strcmp(asked, "float16") == 0 || strcmp(asked, "half") == 0)
        return err_set(err, E_UNSUPPORTED, "dtype %s does not run on the CPU; float32 and bfloat16 do", asked);
    else return err_set(err, E_USAGE, "no dtype \"%s\": auto, float32 and bfloat16 are known", asked);
    return 0;
}

static int open_rope(struct model *m, int32_t max_positions, struct err *err) {
    const struct model_info *info = &m->config.info;
    float inv_freq[128];
    config_inv_freq(&m->config, inv_freq);
    int32_t n = max_positions > 0 ? max_positions : info->context;
    return rope_open(&m->rope, m->dev, inv_freq, info->head_dim, n, 1.0f, err);
}

int model_open(struct model **out, struct dev *dev, const struct model_options *options, struct err *err) {
    struct checkpoint *c = NULL;
    struct model *m = mem_zalloc(1, sizeof *m);
    m->dev = dev;
    m->dtype = options->dtype;
    int r = config_read(&m->config, options->dir, err);
    if (r == 0 && !options->dummy) r = checkpoint_open(&c, options->dir, err);
    if (r < 0) goto out;
    complete_info(&m->config, c);
    const struct model_info *info = &m->config.info;
    m->shape = (struct attention_shape){info->n_heads, info->n_kv_heads, info->head_dim,
                                        1.0f / sqrtf((float)info->head_dim), info->sliding_window};
    r = weights_load(&m->weights, dev, &m->config, c, m->dtype, err);
    if (r == 0) r = open_rope(m, options->max_positions, err);
out:
    checkpoint_close(c);
    if (r < 0) model_close(m);
    else *out = m;
    return r;
}

void model_close(struct model *m) {
    if (!m) return;
    rope_close(m->dev, &m->rope);
    weights_clear(m->dev, &m->weights);
    free(m);
}

const struct model_info *model_get_info(const struct model *m) {
    return &m->config.info;
}

int64_t model_weight_bytes(const struct model *m) {
    return m->weights.bytes;
}
