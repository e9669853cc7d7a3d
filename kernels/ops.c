/* ops.c - what the operations of all backends have in common: checks of shapes,
 * dispatch, and the memory of KV cache and RoPE tables. */
#include "kernels/ops.h"
#include "base/mem.h"
#include "base/team.h"
#include "kernels/backend.h"

#include <assert.h>
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

/* ---------------------------------------------------------------- KV cache, RoPE */

int64_t kv_cache_block_bytes(enum dtype dtype, int32_t n_layers, int32_t n_kv_heads, int32_t head_dim) {
    int64_t token = head_dim * (int64_t)dtype_bytes(dtype) + (dtype == DTYPE_F8_E4M3 ? (int64_t)sizeof(float) : 0);
    return (int64_t)n_layers * 2 * n_kv_heads * KV_BLOCK * token;
}

int kv_cache_open(struct kv_cache **out, struct dev *dev, enum dtype dtype, int32_t n_layers, int32_t n_blocks,
                  int32_t n_kv_heads, int32_t head_dim, struct err *err) {
    struct kv_cache *kv = mem_zalloc(1, sizeof *kv);
    *kv = (struct kv_cache){dtype, n_layers, n_blocks, n_kv_heads, head_dim, NULL};
    kv->slab = mem_zalloc((size_t)n_layers, sizeof *kv->slab);
    size_t bytes = (size_t)n_blocks * (size_t)kv_cache_block_bytes(dtype, 1, n_kv_heads, head_dim);
    for (int32_t i = 0; i < n_layers; i++) {
        kv->slab[i] = dev_alloc(dev, bytes);
        if (kv->slab[i]) continue;
        kv_cache_close(dev, kv);
        return err_set(err, E_NO_MEMORY, "no memory for a KV cache of %d layers x %zu bytes; lower --kv-cache-memory-bytes",
                       n_layers, bytes);
    }
    *out = kv;
    return 0;
}

void kv_cache_close(struct dev *dev, struct kv_cache *kv) {
    if (!kv) return;
    for (int32_t i = 0; i < kv->n_layers; i++) dev_free(dev, kv->slab[i]);
    free(kv->slab);
    free(kv);
}

/* Tables on their way: rows of them are filled by as many threads as there are cores. */
struct filling {
    float *cosines, *sines; /* [n_rows][half] */
    const float *inv_freq;
    size_t n_rows, half;
    float scaling;
    atomic_size_t next;
};

enum { ROWS_A_PIECE = 256, NUMBERS_A_THREAD = 1 << 16 };

static void fill_row(const struct filling *f, size_t p) {
    for (size_t i = 0; i < f->half; i++) {
        float angle = (float)p * f->inv_freq[i];
        f->cosines[p * f->half + i] = (float)cos((double)angle) * f->scaling;
        f->sines[p * f->half + i] = (float)sin((double)angle) * f->scaling;
    }
}

static void *fill_rows(void *arg) {
    struct filling *f = arg;
    for (size_t p; (p = atomic_fetch_add(&f->next, ROWS_A_PIECE)) < f->n_rows;)
        for (size_t i = p; i < p + ROWS_A_PIECE && i < f->n_rows; i++) fill_row(f, i);
    return NULL;
}

int rope_open(struct rope *out, struct dev *dev, const float *inv_freq, int32_t n_rotated, int32_t max_position,
              float attention_scaling, struct err *err) {
    if (n_rotated == 0) {
        *out = (struct rope){0};
        return 0;
    }
    size_t half = (size_t)n_rotated / 2, n = (size_t)max_position * half;
    float *cosines = mem_try_zalloc(n, sizeof *cosines), *sines = mem_try_zalloc(n, sizeof *sines);
    struct tensor c = tensor_2d(dev_alloc(dev, n * 4), DTYPE_F32, max_position, (int64_t)half);
    struct tensor s = tensor_2d(dev_alloc(dev, n * 4), DTYPE_F32, max_position, (int64_t)half);
    int r = 0;
    if (!cosines || !sines || !c.data || !s.data) {
        r = err_set(err, E_NO_MEMORY, "no memory for RoPE tables of %d positions", max_position);
        dev_free(dev, c.data);
        dev_free(dev, s.data);
        goto out;
    }
    struct filling filling = {cosines, sines, inv_freq, (size_t)max_position, half, attention_scaling, 0};
    team_do((int64_t)n / NUMBERS_A_THREAD, fill_rows, &filling);
    dev_upload(dev, c.data, cosines, n * 4);
    dev_upload(dev, s.data, sines, n * 4);
    *out = (struct rope){n_rotated, c, s};
out:
    free(cosines);
    free(sines);
    return r;
}

void rope_close(struct dev *dev, struct rope *rope) {
    dev_free(dev, rope->cos.data);
    dev_free(dev, rope->sin.data);
    rope->cos.data = rope->sin.data = NULL;
}

/* ---------------------------------------------------------------- operations */

/* False: the device has failed, and the operation does nothing. */
static bool op_begins(struct dev *dev, enum op_class c) {
    if (dev->failed.code) return false;
    profile_op(dev, c);
    return true;
}

void op_linear(struct dev *dev, struct product *y, const struct activation *x, const struct weight *w) {
    assert(x->x.shape[1] == w->k && y->y.shape[0] == x->x.shape[0] && y->y.shape[1] == w->n);
    assert(op_linear_knows_outliers(dev, w->outliers));
    y->weight = w;
    y->row_scale = NULL;
    if (x->x.shape[0] > 0 && op_begins(dev, CLASS_LINEAR)) dev->backend->linear(dev, y, x, w);
}

void op_linear_reserve(struct dev *dev, const struct weight *w, int64_t max_rows) {
    if (dev->backend->linear_reserve) dev->backend->linear_reserve(dev, w, max_rows);
}

bool op_linear_knows_outliers(const struct dev *dev, enum int8_outliers rule) {
    return rule == INT8_OUTLIERS_ROW || dev->backend->knows_outliers_of_batch;
}

bool op_linear_can_tune(const struct dev *dev) {
    return dev->backend->linear_tune != NULL;
}

void op_linear_tune(struct dev *dev, struct product *y, const struct activation *x, const struct weight *w,
                    struct linear_tuning *out) {
    assert(x->x.shape[1] == w->k && y->y.shape[0] == x->x.shape[0] && y->y.shape[1] == w->n);
    *out = (struct linear_tuning){.most_rows = x->x.shape[0]};
    y->weight = w;
    y->row_scale = NULL;
    if (!op_linear_can_tune(dev)) op_linear(dev, y, x, w);
    else if (x->x.shape[0] > 0 && op_begins(dev, CLASS_LINEAR)) dev->backend->linear_tune(dev, y, x, w, out);
}

bool op_linear_takes(const struct dev *dev, const struct weight *w, enum dtype codes) {
    return dev->backend->linear_takes && dev->backend->linear_takes(dev, w, codes);
}

void op_quantize(struct dev *dev, struct activation *out, const struct activation *x) {
    assert(out->x.shape[0] == x->x.shape[0] && out->x.shape[1] == x->x.shape[1]);
    assert(out->x.dtype == DTYPE_F8_E4M3 && out->row_scale.shape[0] >= x->x.shape[0]);
    if (op_begins(dev, CLASS_LINEAR)) dev->backend->quantize(dev, out, x);
}

void op_embed(struct dev *dev, struct tensor *residual, const struct weight *table, float scale,
              const struct step *step) {
    assert(residual->shape[0] == step->n_rows && residual->shape[1] == table->k);
    if (op_begins(dev, CLASS_EMBED)) dev->backend->embed(dev, residual, table, scale, step);
}

/* A norm of rows of n numbers, of which only NORM_LAYER has a bias. */
static bool norm_fits(const struct norm *norm, int64_t n) {
    return norm->weight.dtype == DTYPE_F32 && norm->weight.shape[0] == n &&
           (!norm->bias.data || (norm->kind == NORM_LAYER && norm->bias.shape[0] == n));
}

static bool product_fits(const struct product *y, const struct tensor *residual) {
    return y->y.shape[0] == residual->shape[0] && y->y.shape[1] == residual->shape[1];
}

void op_residual_norm(struct dev *dev, struct activation *out, struct tensor *residual, const struct addend *add,
                      const struct norm *norm) {
    static const struct addend nothing;
    if (!add) add = &nothing;
    assert(out->x.shape[0] == residual->shape[0] && out->x.shape[1] == residual->shape[1]);
    assert(norm_fits(norm, residual->shape[1]));
    assert(!add->y || product_fits(add->y, residual));
    assert(!add->z || (add->y && product_fits(add->z, residual)));
    assert(!add->post || (add->y && !add->z && add->post->kind == norm->kind));
    assert(!add->post || norm_fits(add->post, residual->shape[1]));
    if (op_begins(dev, CLASS_NORM)) dev->backend->residual_norm(dev, out, residual, add, norm);
}

void op_qkv_finish(struct dev *dev, struct tensor *q, struct kv_cache *kv, int32_t layer, const struct product *qkv,
                   const struct attention_shape *shape, const struct head_rules *rules, const struct step *step) {
    assert(qkv->y.shape[1] == (int64_t)(shape->n_heads + 2 * shape->n_kv_heads) * shape->head_dim);
    assert(q->shape[0] == step->n_rows && q->shape[1] == (int64_t)shape->n_heads * shape->head_dim);
    assert(rules->rope->n_rotated <= shape->head_dim && rules->rope->n_rotated % 2 == 0 && rules->clip >= 0);
    assert(!rules->q_norm == !rules->k_norm);
    assert(!rules->q_norm || norm_fits(rules->q_norm, shape->head_dim));
    assert(!rules->k_norm || (norm_fits(rules->k_norm, shape->head_dim) && rules->k_norm->kind == rules->q_norm->kind));
    if (op_begins(dev, CLASS_QKV)) dev->backend->qkv_finish(dev, q, kv, layer, qkv, shape, rules, step);
}

void op_attention(struct dev *dev, struct activation *out, const struct tensor *q, const struct kv_cache *kv,
                  int32_t layer, const struct attention_shape *shape, const struct step *step) {
    assert(out->x.shape[0] == step->n_rows && out->x.shape[1] == q->shape[1]);
    assert(shape->n_heads % shape->n_kv_heads == 0);
    if (op_begins(dev, CLASS_ATTENTION)) dev->backend->attention(dev, out, q, kv, layer, shape, step);
}

int32_t op_attention_splits(const struct dev *dev, const struct attention_shape *shape, enum dtype dtype,
                            const struct step *step) {
    return dev->backend->attention_splits ? dev->backend->attention_splits(dev, shape, dtype, step) : 1;
}

void op_glu(struct dev *dev, struct activation *out, const struct product *gate_up, enum act act) {
    assert(gate_up->y.shape[1] == 2 * out->x.shape[1] && gate_up->y.shape[0] == out->x.shape[0]);
    if (op_begins(dev, CLASS_ACTIVATION)) dev->backend->glu(dev, out, gate_up, act);
}

void op_act(struct dev *dev, struct activation *out, const struct product *y, enum act act) {
    assert(y->y.shape[1] == out->x.shape[1] && y->y.shape[0] == out->x.shape[0]);
    if (op_begins(dev, CLASS_ACTIVATION)) dev->backend->act(dev, out, y, act);
}

void op_moe_experts(struct dev *dev, struct tensor *out, const struct activation *x, const struct product *router,
                    const struct moe *moe, const struct moe_room *room) {
    int64_t t = x->x.shape[0], places = t * moe->top_k;
    assert(out->shape[0] == t && out->shape[1] == x->x.shape[1] && router->y.shape[0] == t);
    assert(router->y.shape[1] == moe->n_experts && moe->top_k > 0 && moe->top_k <= moe->n_experts);
    assert(room->choice.shape[0] >= t && room->choice.shape[1] == moe->top_k && room->share.shape[1] == moe->top_k);
    assert(room->places.shape[0] >= t && room->places.shape[1] == moe->top_k);
    assert(room->first.shape[0] == moe->n_experts + 1 && room->gathered.shape[0] >= places);
    assert(room->up.shape[0] >= places && room->active.shape[0] >= places && room->down.shape[0] >= places);
    assert(op_has_moe_experts(dev));
    if (op_begins(dev, CLASS_LINEAR)) dev->backend->moe_experts(dev, out, x, router, moe, room);
}

bool op_has_moe_experts(const struct dev *dev) {
    return dev->backend->moe_experts != NULL;
}

void op_gather(struct dev *dev, struct activation *out, const struct activation *x, const struct step *step) {
    assert(out->x.shape[0] == step->n_samples && out->x.shape[1] == x->x.shape[1]);
    if (op_begins(dev, CLASS_EMBED)) dev->backend->gather(dev, out, x, step);
}

void op_logits_finish(struct dev *dev, struct product *logits, float softcap) {
    assert(logits->y.dtype == DTYPE_F32);
    bool is_pending = softcap > 0 || (logits->weight && logits->weight->bias.data);
    if (is_pending && op_begins(dev, CLASS_SAMPLE)) dev->backend->logits_finish(dev, logits, softcap);
    logits->weight = NULL;
}

void op_sample(struct dev *dev, int32_t *drawn, int32_t *last_sample, struct sample_logprobs *logprobs,
               const struct product *logits, const struct step *step) {
    assert(logits->y.dtype == DTYPE_F32 && logits->y.shape[0] == step->n_samples);
    assert(logprobs || !step->has_logprobs);
    if (step->n_samples > 0 && op_begins(dev, CLASS_SAMPLE))
        dev->backend->sample(dev, drawn, last_sample, logprobs, logits, step);
}

void op_sample_reserve(struct dev *dev, int64_t n_samples, int64_t vocab) {
    dev->backend->sample_reserve(dev, n_samples, vocab);
}

void step_reserve(struct dev *dev, const struct step_limits *limits) {
    dev->backend->sample_reserve(dev, limits->n_samples, limits->vocab);
    if (dev->backend->step_reserve) dev->backend->step_reserve(dev, limits);
}

int64_t step_reserve_bytes(const struct dev *dev, const struct step_limits *limits) {
    return dev->backend->step_reserve_bytes ? dev->backend->step_reserve_bytes(dev, limits) : 0;
}

/* Enough for the chunks of most steps; the keys of others stay codes, which costs time alone. */
int32_t step_expanded_tiles(const struct step_limits *limits, int64_t *bytes) {
    const int64_t most_bytes = (int64_t)128 << 20;
    int64_t hd = limits->head_dim, tile = 2 * (int64_t)limits->n_kv_heads * ATTENTION_TILE * (hd * 2 + 4);
    *bytes = 0;
    if (limits->kv_dtype != DTYPE_F8_E4M3 || limits->n_kv_heads < 1 || !HAS_WIDE_HEADS(hd)) return 0;
    int64_t n = limits->n_rows / ATTENTION_TILE + 1024, fit = most_bytes / tile;
    if (n > fit) n = fit;
    *bytes = n * tile;
    return (int32_t)n;
}

const struct step *step_upload(struct dev *dev, const struct step *host) {
    return dev->backend->step_upload(dev, host);
}

void step_set_last_sample(struct dev *dev, int32_t *last_sample) {
    dev->last_sample = last_sample;
}

void step_set_history(struct dev *dev, int32_t *history) {
    dev->history = history;
}
