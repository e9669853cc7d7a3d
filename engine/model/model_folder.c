/* model_folder.c - a model folder that was read: what config.json and the headers of the weights say
 * of the model. */
#include "base/mem.h"
#include "engine/model/model_private.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct checkpoint_tensor *embedding_of(const struct model_config *config, const struct checkpoint *c) {
    char name[128];
    snprintf(name, sizeof name, "%s.weight", config->names->embed);
    return checkpoint_find(c, name);
}

/* The embedding is there in every checkpoint; norms are at times kept in f32. */
static const char *checkpoint_dtype(const struct model_config *config, const struct checkpoint *c) {
    const struct checkpoint_tensor *t = c ? embedding_of(config, c) : NULL;
    if (t && t->is_float) return dtype_name(t->dtype);
    return *config->torch_dtype ? config->torch_dtype : "float32";
}

/* Where config.json says that the embedding is the head too, a checkpoint may still have a head:
 * one that is the same, or one that was trained apart, which counts then. */
static bool has_head_apart(const struct model_config *config, const struct checkpoint *c) {
    const struct checkpoint_tensor *head = checkpoint_find(c, "lm_head.weight"), *embed = embedding_of(config, c);
    if (!head) return false;
    return !embed || embed->bytes != head->bytes || embed->dtype != head->dtype ||
           memcmp(embed->data, head->data, head->bytes) != 0;
}

/* What only the weights tell, after a check that all of them are there; c NULL: dummy weights. */
static int complete_info(struct model_config *config, const struct checkpoint *c, struct err *err) {
    struct model_info *m = &config->info;
    struct weights_plan plan;
    if (c && m->tied_embeddings && has_head_apart(config, c)) m->tied_embeddings = false;
    int r = weights_plan(&plan, config, c, DTYPE_F32, &(struct quantization){0}, false, err);
    if (r < 0) return r;
    snprintf(m->dtype, sizeof m->dtype, "%s", checkpoint_dtype(config, c));
    int64_t number = strcmp(m->dtype, "float32") == 0 ? 4 : 2;
    m->kv_bytes_per_token = (int64_t)m->n_layers * 2 * m->n_kv_heads * m->head_dim * number;
    m->n_params = plan.n_params;
    m->tied_embeddings = plan.tied;
    return 0;
}

int model_folder_open(struct model_folder **out, const char *dir, bool dummy, struct err *err) {
    struct model_folder *f = mem_zalloc(1, sizeof *f);
    *out = NULL;
    int r = config_read(&f->config, dir, err);
    if (r == 0 && !dummy) r = checkpoint_open(&f->checkpoint, dir, err);
    if (r == 0) r = complete_info(&f->config, f->checkpoint, err);
    if (r < 0) model_folder_close(f);
    else *out = f;
    return r;
}

void model_folder_close(struct model_folder *f) {
    if (!f) return;
    weight_cache_close(f->cache);
    checkpoint_close(f->checkpoint);
    free(f);
}

const struct model_info *model_folder_info(const struct model_folder *f) {
    return &f->config.info;
}

void model_folder_begin(struct model_folder *f, const struct model_options *options) {
    weight_cache_close(f->cache);
    f->dtype = options->dtype;
    f->cache = weight_cache_open(&options->cache, f->checkpoint, &f->config, options->dtype, &options->quantization);
}

struct weight_cache *model_folder_take_cache(struct model_folder *f, const struct model_options *options) {
    if (!f->cache || f->dtype != options->dtype) model_folder_begin(f, options);
    struct weight_cache *cache = f->cache;
    f->cache = NULL;
    return cache;
}

static int describe(struct model_info *out, const char *dir, bool dummy, struct err *err) {
    struct model_folder *f;
    int r = model_folder_open(&f, dir, dummy, err);
    if (r < 0) return r;
    *out = f->config.info;
    model_folder_close(f);
    return 0;
}

int model_describe(struct model_info *out, const char *model_dir, struct err *err) {
    return describe(out, model_dir, false, err);
}

int model_describe_config(struct model_info *out, const char *model_dir, struct err *err) {
    return describe(out, model_dir, true, err);
}
