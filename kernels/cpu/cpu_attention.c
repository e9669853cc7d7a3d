/* cpu_attention.c - bias, RoPE and the KV write; then attention over the cache.
 * Threads share (row, head) pairs; a pair's arithmetic is in simd_attention.c. */
#include "base/mem.h"
#include "kernels/cpu/cpu.h"

#include <assert.h>
#include <string.h>

enum { MAX_HEAD_DIM = 256 };

struct qkv {
    const struct cpu_dev *cpu;
    struct tensor *q;
    struct kv_cache *kv;
    int32_t layer;
    const struct product *qkv;
    const struct attention_shape *shape;
    const struct rope *rope;
    const struct step *step;
};

static void load_head(float *out, const struct tensor *t, int64_t row, int64_t first, const float *bias, int32_t n) {
    for (int32_t i = 0; i < n; i++) {
        float v = t->dtype == DTYPE_BF16 ? bf16_to_f32(((const uint16_t *)row_of(t, row))[first + i])
                                         : ((const float *)row_of(t, row))[first + i];
        if (bias) {
            v += bias[first + i];
            if (t->dtype == DTYPE_BF16) v = bf16_to_f32(bf16_from_f32(v));
        }
        out[i] = v;
    }
}

static void store_head(void *out, enum dtype dtype, const float *x, int32_t n) {
    if (dtype == DTYPE_F32) memcpy(out, x, (size_t)n * sizeof *x);
    else
        for (int32_t i = 0; i < n; i++) ((uint16_t *)out)[i] = bf16_from_f32(x[i]);
}

static void rotate(float *x, const struct rope *rope, int32_t position) {
    int32_t half = rope->n_rotated / 2;
    const float *c = (const float *)rope->cos.data + (int64_t)position * half;
    const float *s = (const float *)rope->sin.data + (int64_t)position * half;
    for (int32_t i = 0; i < half; i++) {
        float a = x[i], b = x[i + half];
        x[i] = a * c[i] - b * s[i];
        x[i + half] = b * c[i] + a * s[i];
    }
}

static void qkv_row(const struct qkv *a, int64_t r) {
    const struct attention_shape *shape = a->shape;
    int32_t hd = shape->head_dim, position = a->step->position[r];
    const int32_t *table = a->step->block_table + (int64_t)a->step->slot[r] * a->step->block_table_stride;
    int32_t block = table[position / KV_BLOCK], at = position % KV_BLOCK * hd;
    const float *bias = a->qkv->weight ? a->qkv->weight->bias.data : NULL;
    size_t q_bytes = dtype_bytes(a->q->dtype), kv_bytes = dtype_bytes(a->kv->dtype);
    float head[MAX_HEAD_DIM];
    for (int32_t h = 0; h < shape->n_heads; h++) {
        load_head(head, &a->qkv->y, r, (int64_t)h * hd, bias, hd);
        rotate(head, a->rope, position);
        store_head((char *)row_of(a->q, r) + (size_t)(h * hd) * q_bytes, a->q->dtype, head, hd);
    }
    for (int32_t h = 0; h < 2 * shape->n_kv_heads; h++) {
        int which = h >= shape->n_kv_heads;
        load_head(head, &a->qkv->y, r, (int64_t)(shape->n_heads + h) * hd, bias, hd);
        if (which == 0) rotate(head, a->rope, position);
        char *tile = kv_tile(a->kv, a->layer, block, which, h % shape->n_kv_heads);
        store_head(tile + (size_t)at * kv_bytes, a->kv->dtype, head, hd);
    }
}

static void qkv_part(void *arg, int part, int n_parts) {
    const struct qkv *a = arg;
    int64_t begin, end;
    pool_share(a->step->n_rows, part, n_parts, &begin, &end);
    for (int64_t r = begin; r < end; r++) qkv_row(a, r);
}

void cpu_qkv_finish(struct dev *dev, struct tensor *q, struct kv_cache *kv, int32_t layer,
                    const struct product *qkv, const struct attention_shape *shape, const struct rope *rope,
                    const struct step *step) {
    assert(shape->head_dim <= MAX_HEAD_DIM && shape->head_dim % 8 == 0);
    struct qkv a = {cpu_of(dev), q, kv, layer, qkv, shape, rope, step};
    pool_run(a.cpu->pool, qkv_part, &a);
}

struct attention {
    const struct cpu_dev *cpu;
    struct activation *out;
    const struct tensor *q;
    const struct kv_cache *kv;
    int32_t layer;
    const struct attention_shape *shape;
    const struct step *step;
};

static void attention_head(const struct attention *a, int64_t r, int32_t h) {
    const struct attention_shape *shape = a->shape;
    int32_t hd = shape->head_dim;
    float q[MAX_HEAD_DIM], out[MAX_HEAD_DIM], scratch[2 * MAX_HEAD_DIM];
    load_head(q, a->q, r, (int64_t)h * hd, NULL, hd);
    struct attention_row row = {
        .q = q,
        .out = out,
        .slab = a->kv->slab[a->layer],
        .block_table = a->step->block_table + (int64_t)a->step->slot[r] * a->step->block_table_stride,
        .kv_head = h / (shape->n_heads / shape->n_kv_heads),
        .n_kv_heads = shape->n_kv_heads,
        .head_dim = hd,
        .position = a->step->position[r],
        .scale = shape->scale,
        .bf16 = a->kv->dtype == DTYPE_BF16,
        .scratch = scratch,
    };
    if (shape->sliding_window > 0 && row.position >= shape->sliding_window)
        row.first_key = row.position - shape->sliding_window + 1;
    a->cpu->simd->attend(&row);
    char *at = (char *)row_of(&a->out->x, r) + (size_t)(h * hd) * dtype_bytes(a->out->x.dtype);
    store_head(at, a->out->x.dtype, out, hd);
}

/* Later rows of a prompt see more keys, so each thread takes every n-th pair. */
static void attention_part(void *arg, int part, int n_parts) {
    const struct attention *a = arg;
    int64_t pairs = (int64_t)a->step->n_rows * a->shape->n_heads;
    for (int64_t i = part; i < pairs; i += n_parts)
        attention_head(a, i / a->shape->n_heads, (int32_t)(i % a->shape->n_heads));
}

void cpu_attention(struct dev *dev, struct activation *out, const struct tensor *q, const struct kv_cache *kv,
                   int32_t layer, const struct attention_shape *shape, const struct step *step) {
    struct attention a = {cpu_of(dev), out, q, kv, layer, shape, step};
    pool_run(a.cpu->pool, attention_part, &a);
}
