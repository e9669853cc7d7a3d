/* model.c - putting a model on a device: dtype, weights, tables. */
#include "engine/model/model.h"
#include "base/mem.h"
#include "engine/model/model_private.h"

#include <stdlib.h>
#include <string.h>

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

/* What these options ask for, and this device has not. */
static int check_device(const struct dev *dev, const struct model_config *config, const struct model_options *options,
                        struct err *err) {
    if (config->mlp == MLP_EXPERTS && !op_has_moe_experts(dev))
        return err_set(err, E_UNSUPPORTED, "mixtures of experts do not run on %s; --device cpu does", dev_kind(dev));
    if (!op_linear_knows_outliers(dev, options->quantization.outliers))
        return err_set(err, E_UNSUPPORTED, "--int8-outliers batch does not run on %s; row does, and so does --device cpu",
                       dev_kind(dev));
    return 0;
}

static int open_from(struct model *m, struct model_folder *f, const struct model_options *options, struct err *err) {
    m->config = f->config;
    int r = check_device(m->dev, &m->config, options, err);
    if (r == 0)
        r = weights_load(&m->weights, m->dev, &m->config, f->checkpoint, m->dtype, &options->quantization,
                         model_folder_take_cache(f, options), err);
    if (r == 0) r = open_ropes(m, options->max_positions, err);
    return r < 0 ? r : open_attention(m, err);
}

int model_open(struct model **out, struct dev *dev, const struct model_options *options, struct err *err) {
    struct model_folder *own = NULL, *folder = options->folder;
    struct model *m = mem_zalloc(1, sizeof *m);
    m->dev = dev;
    m->dtype = options->dtype;
    m->kv_dtype = options->fp8_kv_cache ? DTYPE_F8_E4M3 : options->dtype;
    int r = folder ? 0 : model_folder_open(&own, options->dir, options->dummy, err);
    if (r == 0) r = open_from(m, folder ? folder : own, options, err);
    model_folder_close(own);
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
