/* cpu_attention.c - bias, norm, RoPE and the KV write; then attention over the cache.
 * Threads share rows, and (row, head) pairs; the arithmetic is in simd/. */
#include "kernels/cpu/cpu.h"

#include <assert.h>
#include <math.h>
#include <string.h>

static const int32_t *block_table_of(const struct step *step, int64_t row) {
    return step->block_table + (int64_t)step->slot[row] * step->block_table_stride;
}

struct qkv {
    const struct cpu_dev *cpu;
    struct tensor *q;
    struct kv_cache *kv;
    int32_t layer;
    const struct product *qkv;
    const struct attention_shape *shape;
    const struct head_rules *rules;
    const struct step *step;
};

/* A key's (which = 0) or value's (1) tile in the cache. */
static char *kv_tile(const struct kv_cache *kv, int32_t layer, int64_t block, int which, int32_t kv_head) {
    int64_t tile = (block * 2 + which) * kv->n_kv_heads + kv_head;
    assert(block >= 0 && block < kv->n_blocks);
    return (char *)kv->slab[layer] + tile * (kv_cache_block_bytes(kv->dtype, 1, 1, kv->head_dim) / 2);
}

/* Where a position's key or value lies. */
static void *kv_slot(const struct qkv *a, int64_t row, int which, int32_t kv_head) {
    int32_t position = a->step->position[row];
    char *tile = kv_tile(a->kv, a->layer, block_table_of(a->step, row)[position / KV_BLOCK], which, kv_head);
    return tile + (size_t)(position % KV_BLOCK * a->kv->head_dim) * dtype_bytes(a->kv->dtype);
}

/* Scales of an fp8 tile: one a token. */
static float *tile_scales(char *tile, int32_t head_dim) {
    return (float *)(void *)(tile + KV_BLOCK * head_dim);
}

static void store_fp8(const struct qkv *a, int64_t row, int which, int32_t kv_head, const float *numbers) {
    int32_t position = a->step->position[row];
    char *tile = kv_tile(a->kv, a->layer, block_table_of(a->step, row)[position / KV_BLOCK], which, kv_head);
    float *scale = &tile_scales(tile, a->kv->head_dim)[position % KV_BLOCK];
    *scale = quant_fp8(kv_slot(a, row, which, kv_head), numbers, a->kv->head_dim);
    for (int32_t d = 0; d < a->kv->head_dim; d++)
        if (!isfinite(numbers[d])) *scale = NAN; /* what is not finite leaves no trace in the largest, nor in its code */
}

static void qkv_row(const struct qkv *a, int64_t r) {
    const struct attention_shape *shape = a->shape;
    const struct head_rules *rules = a->rules;
    const struct tensor *in = &a->qkv->y;
    int32_t hd = shape->head_dim, n_kv = shape->n_kv_heads, half = rules->rope->n_rotated / 2;
    int64_t angles = (int64_t)a->step->position[r] * half;
    assert(half == 0 || a->step->position[r] < rules->rope->cos.shape[0]);
    const float *bias = a->qkv->weight ? a->qkv->weight->bias.data : NULL;
    float numbers[MAX_HEAD_DIM];
    bool is_fp8 = a->kv->dtype == DTYPE_F8_E4M3;
    struct head head = {.in_bf16 = in->dtype == DTYPE_BF16, .clip = rules->clip, .n = hd};
    if (half > 0) {
        head.cos = (const float *)rules->rope->cos.data + angles;
        head.sin = (const float *)rules->rope->sin.data + angles;
    }
    for (int32_t h = 0; h < shape->n_heads + 2 * n_kv; h++) {
        int32_t kv_head = h - shape->n_heads;
        bool is_q = kv_head < 0, is_v = kv_head >= n_kv;
        head.in = (const char *)row_of(in, r) + (size_t)(h * hd) * dtype_bytes(in->dtype);
        head.bias = bias ? bias + (int64_t)h * hd : NULL;
        head.norm = is_q ? rules->q_norm : is_v ? NULL : rules->k_norm;
        head.n_rotated = is_v ? 0 : rules->rope->n_rotated;
        head.out_bf16 = (is_q ? a->q->dtype : a->kv->dtype) == DTYPE_BF16;
        if (is_q) head.out = (char *)row_of(a->q, r) + (size_t)(h * hd) * dtype_bytes(a->q->dtype);
        else head.out = is_fp8 ? numbers : kv_slot(a, r, is_v, is_v ? kv_head - n_kv : kv_head);
        a->cpu->simd->head(&head);
        if (!is_q && is_fp8) store_fp8(a, r, is_v, is_v ? kv_head - n_kv : kv_head, numbers);
    }
}

static void qkv_part(void *arg, int part, int n_parts, int thread) {
    const struct qkv *a = arg;
    int64_t begin, end;
    pool_share(a->step->n_rows, part, n_parts, &begin, &end);
    for (int64_t r = begin; r < end; r++) qkv_row(a, r);
}

void cpu_qkv_finish(struct dev *dev, struct tensor *q, struct kv_cache *kv, int32_t layer,
                    const struct product *qkv, const struct attention_shape *shape, const struct head_rules *rules,
                    const struct step *step) {
    struct qkv a = {cpu_of(dev), q, kv, layer, qkv, shape, rules, step};
    pool_run(a.cpu->pool, qkv_part, &a, pool_parts(a.cpu->pool, step->n_rows, 0.5 * (double)qkv->y.shape[1]));
}

struct attention {
    struct cpu_dev *cpu;
    struct activation *out;
    const struct tensor *q;
    const struct kv_cache *kv;
    int32_t layer;
    const struct attention_shape *shape;
    const struct step *step;
    char *scratch;       /* fp8: thread by thread, an int32 table and f32 tiles of one head */
    size_t thread_bytes;
    int64_t n_blocks;    /* of the longest row */
};

static int32_t first_key(const struct attention *a, int64_t r) {
    int32_t position = a->step->position[r], window = a->shape->sliding_window;
    return window > 0 && position >= window ? position - window + 1 : 0;
}

/* The keys and values that a row sees of a head, as f32 in scratch: block i of the sequence is
 * block i there. They are there already if the row's head before was of the same group. */
static void decode_fp8(const struct attention *a, struct attention_row *row, int thread, bool is_decoded) {
    int32_t *table = (int32_t *)(void *)(a->scratch + (size_t)thread * a->thread_bytes), hd = row->head_dim;
    float *tiles = (float *)(void *)(table + (a->n_blocks + 15) / 16 * 16);
    for (int32_t i = row->first_key / KV_BLOCK; i <= row->position / KV_BLOCK && !is_decoded; i++)
        for (int which = 0; which < 2; which++) {
            char *tile = kv_tile(a->kv, a->layer, row->block_table[i], which, row->kv_head);
            float *to = tiles + (int64_t)(i * 2 + which) * KV_BLOCK * hd;
            const float *scale = tile_scales(tile, hd);
            int32_t n = row->position - i * KV_BLOCK < KV_BLOCK - 1 ? row->position - i * KV_BLOCK + 1 : KV_BLOCK;
            table[i] = i;
            a->cpu->simd->decode_f8(to, (uint8_t *)tile, (int64_t)KV_BLOCK * hd);
            for (int32_t t = 0; t < n; t++) {
                const float by = scale[t]; /* `to` might be the scales, for all that the compiler knows */
                for (int32_t d = 0; d < hd; d++) to[t * hd + d] *= by;
            }
        }
    row->slab = tiles;
    row->block_table = table;
    row->kv_head = 0;
    row->n_kv_heads = 1;
}

/* The inner loop takes q and gives the result in f32. */
static void attention_head(const struct attention *a, int64_t r, int32_t h, int thread, bool is_first) {
    const struct attention_shape *shape = a->shape;
    int32_t hd = shape->head_dim;
    _Alignas(32) float q[MAX_HEAD_DIM], out[MAX_HEAD_DIM];
    if (a->q->dtype == DTYPE_BF16) a->cpu->simd->widen(q, (const uint16_t *)row_of(a->q, r) + h * hd, hd);
    else memcpy(q, (const float *)row_of(a->q, r) + h * hd, (size_t)hd * sizeof *q);
    struct attention_row row = {
        .q = q,
        .out = out,
        .slab = a->kv->slab[a->layer],
        .block_table = block_table_of(a->step, r),
        .kv_head = h / (shape->n_heads / shape->n_kv_heads),
        .n_kv_heads = shape->n_kv_heads,
        .head_dim = hd,
        .position = a->step->position[r],
        .first_key = first_key(a, r),
        .scale = shape->scale,
        .softcap = shape->softcap,
        .slope = shape->alibi ? shape->alibi[h] : 0.0f,
        .alibi_scale = shape->alibi_scale,
        .alibi_bf16 = shape->alibi_bf16,
        .bf16 = a->kv->dtype == DTYPE_BF16,
    };
    if (a->kv->dtype == DTYPE_F8_E4M3) decode_fp8(a, &row, thread, !is_first && h % (shape->n_heads / shape->n_kv_heads) != 0);
    a->cpu->simd->attend(&row);
    if (a->out->x.dtype == DTYPE_BF16) a->cpu->simd->narrow((uint16_t *)row_of(&a->out->x, r) + h * hd, out, hd);
    else memcpy((float *)row_of(&a->out->x, r) + h * hd, out, (size_t)hd * sizeof *out);
}

static void attention_part(void *arg, int part, int n_parts, int thread) {
    const struct attention *a = arg;
    int64_t begin, end;
    pool_share((int64_t)a->step->n_rows * a->shape->n_heads, part, n_parts, &begin, &end);
    for (int64_t i = begin; i < end; i++)
        attention_head(a, i / a->shape->n_heads, (int32_t)(i % a->shape->n_heads), thread, i == begin);
}

/* Of one thread: a table, and keys and values of one head as f32. */
static size_t scratch_bytes(int64_t n_blocks, int64_t head_dim) {
    return (size_t)((n_blocks + 15) / 16 * 16) * sizeof(int32_t) +
           (size_t)(n_blocks * 2 * KV_BLOCK * head_dim) * sizeof(float);
}

size_t cpu_attention_bytes(struct cpu_dev *cpu, const struct step_limits *limits) {
    if (limits->kv_dtype != DTYPE_F8_E4M3) return 0;
    return (size_t)pool_n_threads(cpu->pool) * scratch_bytes(limits->n_blocks, limits->head_dim);
}

static bool take_scratch(struct attention *a) {
    for (int64_t r = 0; r < a->step->n_rows; r++)
        if (a->step->position[r] / KV_BLOCK >= a->n_blocks) a->n_blocks = a->step->position[r] / KV_BLOCK + 1;
    a->thread_bytes = scratch_bytes(a->n_blocks, a->shape->head_dim);
    a->scratch = cpu_scratch(a->cpu, (size_t)pool_n_threads(a->cpu->pool) * a->thread_bytes);
    return a->scratch != NULL;
}

void cpu_attention(struct dev *dev, struct activation *out, const struct tensor *q, const struct kv_cache *kv,
                   int32_t layer, const struct attention_shape *shape, const struct step *step) {
    assert(shape->head_dim <= MAX_HEAD_DIM && shape->head_dim % 8 == 0);
    struct attention a = {cpu_of(dev), out, q, kv, layer, shape, step, NULL, 0, 0};
    int64_t keys = 0, pairs = (int64_t)step->n_rows * shape->n_heads;
    for (int64_t r = 0; r < step->n_rows; r++) keys += step->position[r] + 1 - first_key(&a, r);
    if (kv->dtype == DTYPE_F8_E4M3 && !take_scratch(&a)) return;
    double pair_ns = 100 + (double)keys / step->n_rows * (2 + 0.08 * shape->head_dim);
    pool_run(a.cpu->pool, attention_part, &a, pool_parts(a.cpu->pool, pairs, pair_ns));
}
