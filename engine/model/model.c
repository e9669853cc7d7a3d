/* model.c - opening a model folder: description, dtype, weights, tables. */
#include "engine/model/model.h"
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

int model_read_folder(struct model_config *config, struct checkpoint **c, const char *dir, bool dummy,
                      struct err *err) {
    *c = NULL;
    int r = config_read(config, dir, err);
    if (r == 0 && !dummy) r = checkpoint_open(c, dir, err);
    if (r == 0) r = complete_info(config, *c, err);
    return r;
}

int model_read_info(struct model_info *out, const char *dir, bool dummy, struct err *err) {
    struct model_config config;
    struct checkpoint *c;
    int r = model_read_folder(&config, &c, dir, dummy, err);
    checkpoint_close(c);
    if (r == 0) *out = config.info;
    return r;
}

int model_describe(struct model_info *out, const char *model_dir, struct err *err) {
    return model_read_info(out, model_dir, false, err);
}

int model_describe_config(struct model_info *out, const char *model_dir, struct err *err) {
    return model_read_info(out, model_dir, true, err);
}

/* Half the bytes where the checkpoint has them too and the device computes with them. */
static enum dtype dtype_of_checkpoint(const struct model_info *info, const struct dev *dev) {
    bool is_bf16 = strcmp(info->dtype, "bfloat16") == 0, is_f16 = strcmp(info->dtype, "float16") == 0;
    if (is_bf16 && dev_computes(dev, DTYPE_BF16)) return DTYPE_BF16;
    return (is_bf16 || is_f16) && dev_computes(dev, DTYPE_F16) ? DTYPE_F16 : DTYPE_F32;
}

int model_pick_dtype(enum dtype *out, const char *asked, const struct model_info *info, const struct dev *dev,
                     struct err *err) {
    enum dtype dtype;
    if (!asked || strcmp(asked, "auto") == 0) dtype = dtype_of_checkpoint(info, dev);
    else if (strcmp(asked, "float32") == 0) dtype = DTYPE_F32;
    else if (strcmp(asked, "bfloat16") == 0) dtype = DTYPE_BF16;
    else if (strcmp(asked, "float16") == 0 || strcmp(asked, "half") == 0) dtype = DTYPE_F16;
    else return err_set(err, E_USAGE, "no dtype \"%s\": auto, float32, bfloat16 and float16 are known", asked);
    if (!dev_computes(dev, dtype))
        return err_set(err, E_UNSUPPORTED, "dtype %s does not run on %s; float32 and %s do", asked, dev_name(dev),
                       dev_computes(dev, DTYPE_BF16) ? "bfloat16" : "float16");
    *out = dtype;
    return 0;
}

static int open_rope(struct model *m, bool is_long, int32_t n, struct err *err) {
    const struct positions *p = &m->config.positions;
    float inv_freq[MAX_HEAD_DIM / 2];
    int64_t bytes = 4 * (int64_t)n * (p->n_rotated / 2) * (int64_t)sizeof(float); /* cos and sin, host and device */
    if (bytes > dev_memory_available(m->dev))
        return err_set(err, E_NO_MEMORY, "no memory for the positions of %d tokens; lower --max-model-len", n);
    positions_inv_freq(p, is_long, inv_freq);
    return rope_open(&m->rope[is_long], m->dev, inv_freq, p->n_rotated, n, p->attention_factor, err);
}

/* Positions of a table; 0: there is no such table. longrope: sequences up to its switch and longer ones each
 * have a table of their own. */
static int32_t table_length(const struct model_config *c, int32_t max_positions, bool is_long) {
    int32_t n = max_positions > 0 ? max_positions : c->info.context, change = c->info.rope_switch;
    bool has_two = change > 0 && change < n;
    if (is_long) return has_two ? n : 0;
    return has_two ? change : n;
}

static int open_ropes(struct model *m, int32_t max_positions, struct err *err) {
    int32_t n_long = table_length(&m->config, max_positions, true);
    int r = open_rope(m, false, table_length(&m->config, max_positions, false), err);
    return r == 0 && n_long > 0 ? open_rope(m, true, n_long, err) : r;
}

int64_t model_table_bytes(const struct model_config *c, int32_t max_positions) {
    int64_t n = (int64_t)table_length(c, max_positions, false) + table_length(c, max_positions, true);
    return 2 * n * (c->positions.n_rotated / 2) * (int64_t)sizeof(float); /* cos and sin */
}

/* Everything about attention but the layer's window, and ALiBi's slopes on the device. */
static int open_attention(struct model *m, struct err *err) {
    const struct model_config *c = &m->config;
    int32_t n_heads = c->info.n_heads;
    m->attention = (struct attention_shape){.n_heads = n_heads,
                                            .n_kv_heads = c->info.n_kv_heads,
                                            .head_dim = c->info.head_dim,
                                            .scale = c->attention_scale,
                                            .softcap = c->attention_softcap};
    if (c->positions.alibi == ALIBI_NONE) return 0;
    float *slopes = mem_zalloc((size_t)n_heads, sizeof *slopes);
    positions_alibi_slopes(&c->positions, n_heads, slopes);
    m->alibi = dev_alloc(m->dev, (size_t)n_heads * sizeof *slopes);
    if (m->alibi) dev_upload(m->dev, m->alibi, slopes, (size_t)n_heads * sizeof *slopes);
    free(slopes);
    if (!m->alibi) return err_set(err, E_NO_MEMORY, "no memory for the slopes of %d heads", n_heads);
    m->attention.alibi = m->alibi;
    m->attention.alibi_bf16 = c->positions.alibi == ALIBI_FALCON; /* which also scales it with the scores */
    m->attention.alibi_scale = m->attention.alibi_bf16 ? c->attention_scale : 1.0f;
    return 0;
}

/* As transformers holds the factor: in the model's dtype. */
static float embed_scale(const struct model *m) {
    return number_rounded(m->config.embed_scale, m->dtype);
}

int model_open(struct model **out, struct dev *dev, const struct model_options *options, struct err *err) {
    struct checkpoint *c;
    struct model *m = mem_zalloc(1, sizeof *m);
    m->dev = dev;
    m->dtype = options->dtype;
    m->kv_dtype = options->fp8_kv_cache ? DTYPE_F8_E4M3 : options->dtype;
    int r = model_read_folder(&m->config, &c, options->dir, options->dummy, err);
    if (r == 0 && m->config.mlp == MLP_EXPERTS && !op_has_moe_experts(dev))
        r = err_set(err, E_UNSUPPORTED, "mixtures of experts do not run on %s; --device cpu does", dev_kind(dev));
    if (r == 0 && !op_linear_knows_outliers(dev, options->quantization.outliers))
        r = err_set(err, E_UNSUPPORTED, "--int8-outliers batch does not run on %s; row does, and so does --device cpu",
                    dev_kind(dev));
    if (r == 0) r = weights_load(&m->weights, dev, &m->config, c, m->dtype, &options->quantization, &options->cache, err);
    if (r == 0) r = open_ropes(m, options->max_positions, err);
    if (r == 0) r = open_attention(m, err);
    checkpoint_close(c);
    if (r < 0) {
        model_close(m);
        return r;
    }
    m->embed_scale = embed_scale(m);
    *out = m;
    return 0;
}

void model_close(struct model *m) {
    if (!m) return;
    dev_free(m->dev, m->alibi);
    for (int i = 0; i < 2; i++) rope_close(m->dev, &m->rope[i]);
    weights_clear(m->dev, &m->weights);
    free(m);
}

const struct model_info *model_get_info(const struct model *m) {
    return &m->config.info;
}

int64_t model_weight_bytes(const struct model *m) {
    return weights_bytes(&m->weights);
}

int64_t model_beside_bytes(const struct model *m) {
    int64_t bytes = m->weights.scratch_bytes;
    for (int i = 0; i < 2; i++)
        if (m->rope[i].n_rotated > 0) bytes += (int64_t)(tensor_bytes(&m->rope[i].cos) + tensor_bytes(&m->rope[i].sin));
    return bytes;
}
