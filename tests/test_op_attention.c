/* test_op_attention.c - op_qkv_finish and op_attention, which share the KV cache, against a plain
 * reference in double precision; and the same bits however a prompt is cut into steps.
 *
 * As in test_ops.c, each case runs on every instruction set and with every number of threads. */
#include "tests/aid_norm.h"
#include "tests/aid_ops.h"

#include "base/mem.h"

#include <math.h>

/* ---------------------------------------------------------------- a layer's KV cache */

struct heads { /* one layer's cache in the middle of three, and what reads and writes it */
    struct attention_shape shape;
    struct kv_cache *kv;
    struct rope rope;
    float inv_freq[128];
};

static void heads_open(struct bed *b, struct heads *h, struct attention_shape shape, int32_t n_rotated,
                       enum dtype kv_dtype) {
    struct err err = {0};
    *h = (struct heads){.shape = shape};
    for (int i = 0; i < n_rotated / 2; i++) h->inv_freq[i] = powf(100.0f, -2.0f * (float)i / (float)n_rotated);
    assert_ok(kv_cache_open(&h->kv, b->dev, kv_dtype, 3, BED_BLOCKS, shape.n_kv_heads, shape.head_dim, &err), &err);
    assert_ok(rope_open(&h->rope, b->dev, h->inv_freq, n_rotated, BED_STRIDE * KV_BLOCK, 1.0f, &err), &err);
}

static void heads_close(struct bed *b, struct heads *h) {
    kv_cache_close(b->dev, h->kv);
    rope_close(b->dev, &h->rope);
}

/* A layer's slab as [blocks * 2 * kv_heads * KV_BLOCK][head_dim]. */
static struct tensor slab_of(const struct heads *h, int layer) {
    int64_t rows = (int64_t)BED_BLOCKS * 2 * h->shape.n_kv_heads * KV_BLOCK;
    return tensor_2d(h->kv->slab[layer], h->kv->dtype, rows, h->shape.head_dim);
}

static size_t fp8_tile_bytes(const struct heads *h) {
    return (size_t)KV_BLOCK * ((size_t)h->shape.head_dim + sizeof(float));
}

/* An fp8 slab's tiles from rows of numbers, a key or value each. */
static void put_fp8(struct bed *b, const struct heads *h, const struct tensor *slab, const float *numbers) {
    size_t n_tiles = (size_t)slab->shape[0] / KV_BLOCK, bytes = fp8_tile_bytes(h), hd = (size_t)h->shape.head_dim;
    uint8_t *tiles = mem_zalloc(n_tiles, bytes);
    for (size_t i = 0; i < n_tiles * KV_BLOCK; i++) {
        uint8_t *tile = tiles + i / KV_BLOCK * bytes;
        float scale = quant_fp8(tile + i % KV_BLOCK * hd, numbers + i * hd, (int64_t)hd);
        if (isnan(numbers[i * hd])) scale = NAN;
        memcpy(tile + KV_BLOCK * hd + i % KV_BLOCK * 4, &scale, 4);
    }
    dev_upload(b->dev, slab->data, tiles, n_tiles * bytes);
    free(tiles);
}

static float *get_fp8(struct bed *b, const struct heads *h, const struct tensor *slab) {
    size_t n_tiles = (size_t)slab->shape[0] / KV_BLOCK, bytes = fp8_tile_bytes(h), hd = (size_t)h->shape.head_dim;
    uint8_t *tiles = mem_zalloc(n_tiles, bytes);
    float *numbers = bed_floats(b, slab->shape[0] * slab->shape[1]), scale;
    dev_download(b->dev, tiles, slab->data, n_tiles * bytes);
    for (size_t i = 0; i < n_tiles * KV_BLOCK; i++) {
        const uint8_t *tile = tiles + i / KV_BLOCK * bytes;
        memcpy(&scale, tile + KV_BLOCK * hd + i % KV_BLOCK * 4, 4);
        for (size_t d = 0; d < hd; d++) numbers[i * hd + d] = fp8_to_f32(tile[i % KV_BLOCK * hd + d]) * scale;
    }
    free(tiles);
    return numbers;
}

/* What a layer's slab holds, a key or value a row. */
static float *cache_of(struct bed *b, const struct heads *h, int layer) {
    struct tensor slab = slab_of(h, layer);
    return h->kv->dtype == DTYPE_F8_E4M3 ? get_fp8(b, h, &slab) : bed_get(b, &slab);
}

/* Which row of it holds a position's key (which = 0) or value (1). */
static int64_t slab_row(const struct heads *h, const struct bed_step *s, int32_t slot, int32_t position, int which,
                        int32_t kv_head) {
    int64_t block = s->table[slot * BED_STRIDE + position / KV_BLOCK];
    return ((block * 2 + which) * h->shape.n_kv_heads + kv_head) * KV_BLOCK + position % KV_BLOCK;
}

/* ---------------------------------------------------------------- qkv_finish */

/* One head: bias, clip, norm over the head (q and k), rotation (q and k). */
static void check_qkv_head(struct bed *b, const struct heads *h, const struct head_rules *rules,
                           const struct random_norm *norm, const float *in, const float *bias, const float *got,
                           int32_t position, bool turns, bool is_fp8, int64_t row) {
    int32_t half = turns ? rules->rope->n_rotated / 2 : 0, hd = h->shape.head_dim;
    float x[256];
    double ready[256], off[256];
    for (int32_t i = 0; i < hd; i++) {
        x[i] = rounded(in[i] + (bias ? bias[i] : 0), b->dtype);
        if (rules->clip > 0) x[i] = rounded(fminf(fmaxf(x[i], -rules->clip), rules->clip), b->dtype);
        ready[i] = (double)x[i];
        off[i] = 0;
    }
    if (norm && turns) {
        naive_norm(ready, x, norm);
        for (int32_t i = 0; i < hd; i++) {
            off[i] = norm_slack(b, norm, ready[i], size_of(x, hd), i);
            if (b->dtype != DTYPE_F32) off[i] += fabs(ready[i]) * 0x1p-8;
        }
    }
    double want[256], slack[256], most = 0, most_got = 0, most_slack = 0;
    for (int32_t i = 0; i < hd; i++) {
        want[i] = ready[i];
        slack[i] = off[i];
        if (i < 2 * half) {
            int32_t pair = i < half ? i + half : i - half;
            double angle = (double)((float)position * h->inv_freq[i % half]);
            want[i] = ready[i] * cos(angle) + (i < half ? -ready[pair] : ready[pair]) * sin(angle);
            slack[i] += off[pair] + (fabs(ready[i]) + fabs(ready[pair])) * 0x1p-21;
        }
        most = fmax(most, fabs(want[i]));
        most_got = fmax(most_got, fabs((double)got[i]));
        most_slack = fmax(most_slack, slack[i]);
    }
    if (is_fp8) assert_near(b, most_got, most, most_slack + most * 0x1p-20, b->dtype, "448", row, 0);
    for (int32_t i = 0; i < hd; i++) { /* half a step: of four bits; below the normal numbers of 2^-9 */
        if (is_fp8) slack[i] += fmax(fabs(want[i]) * 0x1.04p-4, most / 448 * 0x1.04p-10);
        assert_near(b, got[i], want[i], slack[i], b->dtype, is_fp8 ? "k or v in fp8" : "q, k or v", row, i);
    }
}

struct qkv_case {
    int32_t n_heads, n_kv_heads, head_dim, n_rotated;
    bool has_bias;
    float clip;
    bool has_norm;
    enum norm_kind norm;
};

static void check_qkv(struct bed *b, const struct qkv_case *c, enum dtype kv_dtype) {
    static struct bed_step s;
    struct attention_shape shape = {.n_heads = c->n_heads, .n_kv_heads = c->n_kv_heads, .head_dim = c->head_dim};
    struct heads h;
    heads_open(b, &h, shape, c->n_rotated, kv_dtype);
    step_begin(&s, 5);
    step_add(&s, 2, 30, 5); /* across a block's end */
    step_add(&s, 0, 0, 1);
    step_add(&s, 3, 1200, 3);
    int32_t hd = shape.head_dim, n_kv = shape.n_kv_heads, m = s.step.n_rows;
    int32_t q_width = shape.n_heads * hd, width = q_width + 2 * n_kv * hd;
    float *ignored, *bias = NULL;
    struct weight *w = bed_weight(b, width, 1, b->dtype, &ignored, c->has_bias ? &bias : NULL);
    struct random_norm norms[2] = {norm_new(b, c->norm, hd, c->norm == NORM_LAYER),
                                   norm_new(b, c->norm, hd, c->norm == NORM_LAYER)};
    struct head_rules rules = {.clip = c->clip, .rope = &h.rope};
    if (c->has_norm) rules.q_norm = &norms[0].norm;
    if (c->has_norm) rules.k_norm = &norms[1].norm;
    struct product qkv = {.y = bed_random_tensor(b, b->dtype, m, width, 2), .weight = w};
    struct tensor q = bed_tensor(b, b->dtype, m, q_width, NULL);
    op_qkv_finish(b->dev, &q, h.kv, 1, &qkv, &shape, &rules, step_upload(b->dev, &s.step));
    bool is_fp8 = kv_dtype == DTYPE_F8_E4M3;
    float *in = bed_get(b, &qkv.y), *qs = bed_get(b, &q), *cache = cache_of(b, &h, 1);
    for (int32_t r = 0; r < m; r++)
        for (int32_t i = 0; i < shape.n_heads + 2 * n_kv; i++) {
            int32_t kv_head = i - shape.n_heads, which = kv_head >= n_kv;
            const float *got = qs + r * q_width + i * hd;
            if (kv_head >= 0) got = cache + slab_row(&h, &s, s.slot[r], s.position[r], which, kv_head % n_kv) * hd;
            check_qkv_head(b, &h, &rules, c->has_norm ? &norms[kv_head >= 0] : NULL, in + r * width + i * hd,
                           bias ? bias + i * hd : NULL, got, s.position[r], kv_head < n_kv, is_fp8 && kv_head >= 0, r);
        }
    int64_t n_written = 0, n_numbers = slab_of(&h, 1).shape[0] * hd;
    for (int64_t i = 0; i < n_numbers; i++) n_written += cache[i] != 0;
    assert_true(n_written <= (int64_t)m * 2 * n_kv * hd); /* and nowhere else */
    float *untouched = cache_of(b, &h, 0);
    for (int64_t i = 0; i < n_numbers; i++) assert_true(untouched[i] == 0);
    heads_close(b, &h);
}

static void qkv(struct bed *b) {
    static const struct qkv_case cases[] = {
        {4, 2, 16, 16, .has_bias = false},
        {3, 3, 24, 24, .has_bias = true},
        {2, 1, 8, 4, .has_bias = true},
        {3, 3, 80, 32, .has_bias = true}, /* Phi-2 */
        {5, 1, 16, 0, .has_bias = false}, /* ALiBi */
        {3, 3, 16, 0, .clip = 0.75f},
        {4, 2, 64, 64, .has_norm = true, .norm = NORM_RMS},
        {4, 2, 24, 8, .has_bias = true, .has_norm = true, .norm = NORM_LAYER},
        {2, 1, 256, 256, .has_bias = true, .clip = 1.5f, .has_norm = true, .norm = NORM_RMS_ONE_PLUS},
        {8, 2, 128, 128, .has_bias = true},
        {1, 1, 256, 256, .has_bias = false},
        {2, 2, 40, 16, .has_bias = true},
        {5, 3, 112, 112, .has_bias = false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        check_qkv(b, &cases[i], b->dtype);
        check_qkv(b, &cases[i], DTYPE_F8_E4M3);
    }
}

static void qkv_finish_norms_and_turns_heads_and_fills_the_cache(void **state) {
    each_bed(qkv);
}

/* ---------------------------------------------------------------- attention */

/* A score after its scale: soft cap, then ALiBi with the head's slope. */
static double naive_score(const struct attention_shape *shape, double score, double slope, int32_t key,
                          int32_t position) {
    if (shape->softcap > 0) score = (double)shape->softcap * tanh(score / (double)shape->softcap);
    double far = slope * key - slope * position;
    if (shape->alibi_bf16)
        far = (double)rounded((float)(slope * key), DTYPE_BF16) - (double)rounded((float)(slope * position), DTYPE_BF16);
    return score + (double)shape->alibi_scale * far;
}

/* softmax(score(q, k)) v of one row and head, over keys the row sees. */
static void naive_attention(double *out, const struct heads *h, const struct bed_step *s, const float *q,
                            const float *cache, int32_t row, int32_t kv_head, double slope) {
    int32_t hd = h->shape.head_dim, position = s->position[row], first = 0;
    double score[BED_STRIDE * KV_BLOCK], most = -INFINITY, total = 0;
    if (h->shape.sliding_window && position >= h->shape.sliding_window) first = position - h->shape.sliding_window + 1;
    for (int32_t j = first; j <= position; j++) {
        const float *k = cache + slab_row(h, s, s->slot[row], j, 0, kv_head) * hd;
        score[j] = 0;
        for (int32_t d = 0; d < hd; d++) score[j] += (double)q[d] * (double)k[d];
        score[j] = naive_score(&h->shape, score[j] * (double)h->shape.scale, slope, j, position);
        most = fmax(most, score[j]);
    }
    for (int32_t d = 0; d < hd; d++) out[d] = 0;
    for (int32_t j = first; j <= position; j++) {
        const float *v = cache + slab_row(h, s, s->slot[row], j, 1, kv_head) * hd;
        double p = exp(score[j] - most);
        total += p;
        for (int32_t d = 0; d < hd; d++) out[d] += p * (double)v[d];
    }
    for (int32_t d = 0; d < hd; d++) out[d] /= total;
}

/* Random keys and values where a slot has positions [from, n); what no row sees is NaN. */
static void fill_cache(struct bed *b, const struct heads *h, const struct bed_step *s, const int32_t (*seen)[2]) {
    struct tensor slab = slab_of(h, 1);
    int32_t hd = h->shape.head_dim;
    float *numbers = bed_floats(b, slab.shape[0] * hd);
    for (int64_t i = 0; i < slab.shape[0] * hd; i++) numbers[i] = NAN;
    for (int32_t slot = 0; slot < BED_SLOTS; slot++)
        for (int32_t j = seen[slot][0]; j < seen[slot][1]; j++)
            for (int32_t i = 0; i < 2 * h->shape.n_kv_heads; i++)
                for (int32_t d = 0; d < hd; d++)
                    numbers[slab_row(h, s, slot, j, i % 2, i / 2) * hd + d] = bed_random(b);
    if (h->kv->dtype == DTYPE_F8_E4M3) {
        put_fp8(b, h, &slab, numbers);
        return;
    }
    struct tensor filled = bed_tensor(b, h->kv->dtype, slab.shape[0], hd, numbers);
    float *raw = bed_floats(b, slab.shape[0] * hd);
    dev_download(b->dev, raw, filled.data, tensor_bytes(&filled));
    dev_upload(b->dev, slab.data, raw, tensor_bytes(&filled));
}

/* Rows at the given positions, one in each slot, -1 = none; slot 3 has a run of five. */
static void check_attention_over(struct bed *b, enum dtype kv_dtype, struct attention_shape shape,
                                 const int32_t position[BED_SLOTS]) {
    static struct bed_step s;
    struct heads h;
    int32_t seen[BED_SLOTS][2] = {{0}}, hd = shape.head_dim, width = shape.n_heads * shape.head_dim;
    float *slopes = bed_floats(b, shape.n_heads);
    for (int32_t i = 0; i < shape.n_heads; i++) slopes[i] = rounded(exp2f(-1.5f * (float)i), DTYPE_BF16);
    if (shape.alibi_scale > 0) shape.alibi = bed_tensor(b, DTYPE_F32, shape.n_heads, 1, slopes).data;
    heads_open(b, &h, shape, hd, kv_dtype);
    step_begin(&s, 9);
    for (int32_t slot = 0; slot < BED_SLOTS; slot++) {
        if (position[slot] < 0) continue;
        int32_t n = slot == 3 ? 5 : 1, window = shape.sliding_window;
        step_add(&s, slot, position[slot], n);
        seen[slot][0] = window && position[slot] >= window ? position[slot] - window + 1 : 0;
        seen[slot][1] = position[slot] + n;
    }
    fill_cache(b, &h, &s, seen);
    struct tensor q = bed_random_tensor(b, b->dtype, s.step.n_rows, width, 4);
    struct activation out = {.x = bed_tensor(b, b->dtype, s.step.n_rows, width, NULL)};
    op_attention(b->dev, &out, &q, h.kv, 1, &shape, step_upload(b->dev, &s.step));
    float *qs = bed_get(b, &q), *got = bed_get(b, &out.x), *cache = cache_of(b, &h, 1);
    /* Tensor cores take the weights in bf16; values are below 1. */
    double slack = b->dtype != DTYPE_F32 && strcmp(dev_kind(b->dev), "cuda") == 0 ? 0x1p-9 : 1e-5;
    for (int32_t r = 0; r < s.step.n_rows; r++)
        for (int32_t i = 0; i < shape.n_heads; i++) {
            double want[256];
            int32_t at = r * width + i * hd;
            naive_attention(want, &h, &s, qs + at, cache, r, i / (shape.n_heads / shape.n_kv_heads), (double)slopes[i]);
            for (int32_t d = 0; d < hd; d++)
                assert_near(b, got[at + d], want[d], slack, b->dtype, "attention", r, i * hd + d);
        }
    heads_close(b, &h);
}

static void check_attention(struct bed *b, struct attention_shape shape, const int32_t position[BED_SLOTS]) {
    check_attention_over(b, b->dtype, shape, position);
}

static struct attention_shape shape_of(int32_t n_heads, int32_t n_kv_heads, int32_t head_dim, int32_t window) {
    return (struct attention_shape){.n_heads = n_heads, .n_kv_heads = n_kv_heads, .head_dim = head_dim,
                                    .scale = 1 / sqrtf((float)head_dim), .sliding_window = window};
}

static struct attention_shape capped(struct attention_shape shape, float softcap) {
    shape.scale *= 4; /* so that the cap is felt */
    shape.softcap = softcap;
    return shape;
}

static struct attention_shape with_alibi(struct attention_shape shape, float scale, bool in_bf16) {
    shape.alibi_scale = scale;
    shape.alibi_bf16 = in_bf16;
    return shape;
}

static void attention(struct bed *b) {
    static const int32_t begin[] = {0, 1, 31, 0}, tiles[] = {63, 64, 130, 60};
    static const int32_t splits[] = {511, 512, 1100, 1020}, far[] = {-1, -1, 700, 510};
    check_attention(b, shape_of(4, 2, 8, 0), begin);
    check_attention(b, shape_of(3, 1, 24, 0), tiles);
    check_attention(b, shape_of(2, 2, 32, 0), tiles);
    check_attention(b, shape_of(2, 1, 48, 20), tiles);
    check_attention(b, shape_of(1, 1, 64, 0), tiles);
    check_attention(b, shape_of(2, 1, 120, 3), begin);
    check_attention(b, shape_of(1, 1, 256, 0), begin);
    check_attention(b, shape_of(2, 1, 16, 0), splits);
    check_attention(b, shape_of(2, 1, 16, 100), far);
    check_attention(b, shape_of(1, 1, 16, 600), far);
    check_attention(b, shape_of(8, 2, 128, 0), tiles);
    check_attention(b, shape_of(8, 2, 64, 70), far);
    check_attention(b, shape_of(20, 1, 80, 0), tiles); /* more heads in a group than rows in a tile */
}

static void attention_is_softmax_over_the_keys_in_sight(void **state) {
    each_bed(attention);
}

/* Sizes that have no kernel of their own on a GPU, and the widest. */
static void sizes(struct bed *b) {
    static const int32_t tiles[] = {63, 64, 130, 60}, far[] = {511, 512, 1100, 700};
    check_attention(b, shape_of(4, 2, 40, 0), tiles);
    check_attention(b, shape_of(3, 3, 72, 20), tiles);
    check_attention(b, shape_of(2, 1, 104, 0), tiles);
    check_attention(b, shape_of(2, 1, 136, 0), tiles);
    check_attention(b, shape_of(2, 2, 160, 70), tiles);
    check_attention(b, shape_of(3, 1, 192, 0), far);
    check_attention(b, shape_of(4, 1, 248, 0), tiles);
    check_attention(b, shape_of(20, 1, 256, 0), tiles);
    check_attention(b, shape_of(2, 2, 256, 600), far);
}

static void heads_of_any_size(void **state) {
    each_bed(sizes);
}

static void fp8_attention(struct bed *b) {
    static const int32_t tiles[] = {63, 64, 130, 60}, far[] = {511, 512, 1100, 700};
    const struct attention_shape shapes[] = {shape_of(4, 2, 8, 0),     shape_of(3, 1, 24, 20),  shape_of(2, 2, 40, 0),
                                             shape_of(8, 2, 64, 0),    shape_of(3, 1, 72, 0),   shape_of(2, 2, 80, 70),
                                             shape_of(2, 1, 96, 0),    shape_of(4, 4, 112, 20), shape_of(8, 2, 128, 0),
                                             shape_of(20, 1, 128, 70), shape_of(2, 1, 136, 0),  shape_of(2, 2, 160, 70),
                                             shape_of(3, 1, 192, 0),   shape_of(4, 1, 248, 0),  shape_of(2, 2, 256, 0)};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        check_attention_over(b, DTYPE_F8_E4M3, shapes[i], tiles);
    check_attention_over(b, DTYPE_F8_E4M3, shape_of(8, 2, 128, 0), far);
    check_attention_over(b, DTYPE_F8_E4M3, shape_of(2, 1, 256, 600), far);
    check_attention_over(b, DTYPE_F8_E4M3, capped(shape_of(2, 1, 256, 70), 2), tiles);
    check_attention_over(b, DTYPE_F8_E4M3, with_alibi(shape_of(7, 7, 64, 0), 1, false), far);
}

static void attention_reads_an_fp8_cache(void **state) {
    each_bed(fp8_attention);
}

static void scored_attention(struct bed *b) {
    static const int32_t begin[] = {0, 1, 31, 0}, tiles[] = {63, 64, 130, 60}, far[] = {511, 512, 1100, 700};
    check_attention(b, capped(shape_of(4, 2, 16, 0), 1.5f), begin);
    check_attention(b, capped(shape_of(2, 1, 256, 70), 2), tiles);
    check_attention(b, capped(shape_of(2, 1, 64, 0), 50), far);
    check_attention(b, with_alibi(shape_of(3, 3, 16, 0), 1, false), begin);
    check_attention(b, with_alibi(shape_of(7, 7, 64, 0), 1, false), far);
    check_attention(b, with_alibi(shape_of(5, 1, 32, 90), 1, false), tiles);
    check_attention(b, with_alibi(shape_of(3, 3, 64, 0), 0.125f, true), tiles);
    check_attention(b, with_alibi(shape_of(6, 6, 8, 0), 0.35f, true), far);
    check_attention(b, with_alibi(capped(shape_of(4, 2, 24, 40), 3), 1, false), tiles);
}

static void scores_are_capped_and_slope(void **state) {
    each_bed(scored_attention);
}

/* ---------------------------------------------------------------- the same bits */

/* How a prompt comes: `chunk` rows a step, from fine_from on one; in each step `guests` rows of
 * other sequences before and after it. */
struct pace {
    int chunk, fine_from, guests;
    uint64_t shuffle;
};

/* A prompt of N rows through qkv_finish and attention. */
static float *run_prompt(struct bed *b, struct attention_shape shape, enum dtype kv_dtype, const struct tensor *rows,
                         struct pace pace) {
    static struct bed_step s;
    struct heads h;
    int32_t n = (int32_t)rows->shape[0], width = shape.n_heads * shape.head_dim, guests = pace.guests;
    float *all = bed_floats(b, (int64_t)n * width);
    heads_open(b, &h, shape, shape.head_dim, kv_dtype);
    for (int32_t done = 0, size, until; done < n; done += size) {
        until = done < pace.fine_from ? pace.fine_from : n;
        size = pace.fine_from && done >= pace.fine_from ? 1 : pace.chunk;
        if (done + size > until) size = until - done;
        step_begin(&s, pace.shuffle);
        if (guests) step_add(&s, 0, done, guests);
        step_add(&s, 1, done, size);
        if (guests) step_add(&s, 2, 0, guests);
        int32_t t = s.step.n_rows;
        struct product qkv = {.y = bed_random_tensor(b, b->dtype, t, rows->shape[1], 2)};
        struct tensor mine = rows_from(rows, done, size), place = rows_from(&qkv.y, guests, size);
        float *raw = bed_floats(b, size * rows->shape[1]);
        dev_download(b->dev, raw, mine.data, tensor_bytes(&mine));
        dev_upload(b->dev, place.data, raw, tensor_bytes(&mine));
        struct tensor q = bed_tensor(b, b->dtype, t, width, NULL);
        struct activation out = {.x = bed_tensor(b, b->dtype, t, width, NULL)};
        const struct step *step = step_upload(b->dev, &s.step);
        op_qkv_finish(b->dev, &q, h.kv, 2, &qkv, &shape, &(struct head_rules){.rope = &h.rope}, step);
        op_attention(b->dev, &out, &q, h.kv, 2, &shape, step);
        struct tensor result = rows_from(&out.x, guests, size);
        memcpy(all + done * width, bed_get(b, &result), (size_t)(size * width) * sizeof *all);
    }
    heads_close(b, &h);
    return all;
}

/* Cut in any way, the same bits. */
static void check_bits(struct bed *b, struct attention_shape shape, enum dtype kv_dtype) {
    enum { N = 150 };
    static const int chunks[] = {1, 7, 16, 64};
    int32_t width = shape.n_heads * shape.head_dim;
    struct tensor rows = bed_random_tensor(b, b->dtype, N, width + 2 * shape.n_kv_heads * shape.head_dim, 2);
    float *want = run_prompt(b, shape, kv_dtype, &rows, (struct pace){N, 0, 0, 3});
    for (size_t c = 0; c < sizeof chunks / sizeof *chunks; c++) {
        float *got = run_prompt(b, shape, kv_dtype, &rows, (struct pace){chunks[c], 0, (int)c, 100 + c});
        assert_memory_equal(got, want, (size_t)(N * width) * sizeof *want);
    }
}

static void attention_bits(struct bed *b) {
    const struct attention_shape plain[] = {shape_of(2, 1, 16, 0), shape_of(2, 2, 32, 70), shape_of(4, 1, 72, 0),
                                            shape_of(2, 1, 256, 0)};
    const struct attention_shape fp8[] = {shape_of(2, 1, 16, 0), shape_of(4, 1, 80, 70), shape_of(4, 1, 128, 0),
                                          shape_of(1, 1, 256, 0)};
    for (int i = 0; i < 4; i++) {
        check_bits(b, plain[i], b->dtype);
        check_bits(b, fp8[i], DTYPE_F8_E4M3);
    }
}

/* A GPU turns the codes of a chunk's keys into numbers beforehand where there is room: the same bits. */
static void check_expanded(struct bed *b, struct attention_shape shape) {
    enum { N = 230 };
    const struct step_limits without = {.n_rows = BED_ROWS, .n_slots = BED_SLOTS, .n_blocks = BED_STRIDE};
    struct step_limits with = without;
    with.kv_dtype = DTYPE_F8_E4M3;
    with.head_dim = shape.head_dim;
    with.n_heads = shape.n_heads;
    with.n_kv_heads = shape.n_kv_heads;
    int32_t width = shape.n_heads * shape.head_dim;
    struct tensor rows = bed_random_tensor(b, b->dtype, N, width + 2 * shape.n_kv_heads * shape.head_dim, 2);
    for (int chunk = 70; chunk <= N; chunk += 80) {
        const struct pace pace = {chunk, 0, 2, 7 + (uint64_t)chunk};
        step_reserve(b->dev, &without);
        float *want = run_prompt(b, shape, DTYPE_F8_E4M3, &rows, pace);
        step_reserve(b->dev, &with);
        float *got = run_prompt(b, shape, DTYPE_F8_E4M3, &rows, pace);
        assert_memory_equal(got, want, (size_t)(N * width) * sizeof *want);
    }
}

static void expanded(struct bed *b) {
    check_expanded(b, shape_of(8, 2, 64, 0));
    if (strcmp(dev_kind(b->dev), "cuda") != 0) return; /* which knows one way alone */
    check_expanded(b, shape_of(8, 1, 128, 0));
    check_expanded(b, shape_of(16, 4, 128, 75));
    check_expanded(b, shape_of(4, 1, 256, 100));
    check_expanded(b, capped(shape_of(8, 2, 128, 0), 2));
    check_expanded(b, with_alibi(shape_of(4, 1, 64, 0), 1, false));
}

static void codes_expanded_beforehand_give_the_same_bits(void **state) {
    each_bed(expanded);
}

static void chunks_neighbours_and_block_order_do_not_matter(void **state) {
    each_bed(attention_bits);
}

/* With so many heads a GPU has blocks enough to give each a warp, where the rows of a chunk share
 * a block of four: the same bits. */
static void check_crowd(struct bed *b, int32_t group, int32_t head_dim, enum dtype kv_dtype, int32_t n) {
    enum { CROWD = 88 }; /* times three sequences: two blocks and more for each multiprocessor */
    struct attention_shape shape = shape_of(group * CROWD, CROWD, head_dim, 0);
    int32_t width = shape.n_heads * head_dim;
    struct tensor rows = bed_random_tensor(b, b->dtype, n, width + 2 * CROWD * head_dim, 2);
    float *want = run_prompt(b, shape, kv_dtype, &rows, (struct pace){200, 0, 0, 3});
    float *got = run_prompt(b, shape, kv_dtype, &rows, (struct pace){200, n - 3, 1, 4});
    assert_memory_equal(got, want, (size_t)n * (size_t)width * sizeof *want);
}

static void crowds(struct bed *b) {
    if (strcmp(dev_kind(b->dev), "cuda") != 0) return; /* a CPU has one kernel */
    static const int32_t sizes[] = {40, 64, 80, 128, 160, 256};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        check_crowd(b, 1, sizes[i], b->dtype, 70);
        check_crowd(b, 2, sizes[i], DTYPE_F8_E4M3, 70);
    }
    check_crowd(b, 1, 64, b->dtype, 520);
    check_crowd(b, 1, 256, b->dtype, 520);
    check_crowd(b, 1, 128, DTYPE_F8_E4M3, 520);
}

static void blocks_of_one_warp_give_the_same_bits(void **state) {
    each_bed(crowds);
}

/* ---------------------------------------------------------------- long contexts */

enum { LONG_ROWS = 3 };

struct long_case { /* rows of as many sequences, whose keys share their blocks */
    struct attention_shape shape;
    bool is_fp8;
    int32_t n_splits;            /* that are taken side by side, when there is room */
    int32_t position[LONG_ROWS]; /* the farthest first; -1: no more */
};

struct long_rows {
    struct heads h;
    struct tensor q;
    struct activation out;
    struct step step;
    struct step_sequence sequences[LONG_ROWS];
    int32_t slot[LONG_ROWS], *table;
};

static void long_open(struct bed *b, struct long_rows *l, const struct long_case *c) {
    struct attention_shape shape = c->shape;
    enum dtype kv_dtype = c->is_fp8 ? DTYPE_F8_E4M3 : b->dtype;
    int32_t n = 0, n_blocks = c->position[0] / KV_BLOCK + 1, width = shape.n_heads * shape.head_dim;
    struct err err = {0};
    float *slopes = bed_floats(b, shape.n_heads);
    for (int32_t i = 0; i < shape.n_heads; i++) slopes[i] = exp2f(-0.75f * (float)i);
    if (shape.alibi_scale > 0) shape.alibi = bed_tensor(b, DTYPE_F32, shape.n_heads, 1, slopes).data;
    *l = (struct long_rows){.h.shape = shape};
    assert_ok(kv_cache_open(&l->h.kv, b->dev, kv_dtype, 1, n_blocks, shape.n_kv_heads, shape.head_dim, &err), &err);
    int64_t rows = (int64_t)n_blocks * 2 * shape.n_kv_heads * KV_BLOCK;
    struct tensor slab = tensor_2d(l->h.kv->slab[0], kv_dtype, rows, shape.head_dim);
    float *numbers = bed_floats(b, rows * shape.head_dim);
    for (int64_t i = 0; i < rows * shape.head_dim; i++) numbers[i] = bed_random(b);
    if (c->is_fp8) put_fp8(b, &l->h, &slab, numbers);
    else dev_copy(b->dev, slab.data, bed_tensor(b, kv_dtype, rows, shape.head_dim, numbers).data, tensor_bytes(&slab));
    l->table = mem_zalloc((size_t)n_blocks * LONG_ROWS, sizeof *l->table);
    for (; n < LONG_ROWS && c->position[n] >= 0; n++) {
        l->sequences[n] = (struct step_sequence){n, n, 1, c->position[n]};
        l->slot[n] = n;
        for (int32_t i = 0; i < n_blocks; i++) l->table[n * n_blocks + i] = n == 1 ? n_blocks - 1 - i : (i + 7 * n) % n_blocks;
    }
    l->step = (struct step){.n_rows = n, .position = c->position, .slot = l->slot, .n_sequences = n,
                            .sequences = l->sequences, .block_table = l->table, .block_table_stride = n_blocks};
    l->q = bed_random_tensor(b, b->dtype, n, width, 4);
    l->out.x = bed_tensor(b, b->dtype, n, width, NULL);
}

static float *long_attend(struct bed *b, struct long_rows *l, int32_t *n_splits) {
    const struct step *step = step_upload(b->dev, &l->step);
    *n_splits = op_attention_splits(b->dev, &l->h.shape, b->dtype, step);
    op_attention(b->dev, &l->out, &l->q, l->h.kv, 0, &l->h.shape, step);
    return bed_get(b, &l->out.x);
}

static void long_close(struct bed *b, struct long_rows *l) {
    kv_cache_close(b->dev, l->h.kv);
    free(l->table);
}

/* Room for what any of the cases needs. */
static void reserve_long(struct bed *b) {
    step_reserve(b->dev, &(struct step_limits){.n_rows = BED_SLOTS, .n_slots = BED_SLOTS, .n_blocks = 1024,
                                               .kv_dtype = b->dtype, .head_dim = 256, .n_heads = 32, .n_kv_heads = 8});
}

/* Split by split as long as nobody has made room for their sums, then side by side: the same bits. */
static void check_long(struct bed *b, const struct long_case *cases, size_t n_cases) {
    struct long_rows rows[16];
    float *want[16];
    int32_t n_splits;
    assert_true(n_cases <= 16);
    for (size_t i = 0; i < n_cases; i++) {
        long_open(b, &rows[i], &cases[i]);
        want[i] = long_attend(b, &rows[i], &n_splits);
        assert_int_equal(n_splits, 1);
    }
    reserve_long(b);
    for (size_t i = 0; i < n_cases; i++) {
        float *got = long_attend(b, &rows[i], &n_splits);
        size_t n = (size_t)rows[i].out.x.shape[0] * (size_t)rows[i].out.x.shape[1];
        assert_int_equal(n_splits, b->dtype == DTYPE_F32 ? 1 : cases[i].n_splits);
        if (memcmp(got, want[i], n * sizeof *got) != 0) fail_msg("%s, case %zu: other bits", dtype_name(b->dtype), i);
        long_close(b, &rows[i]);
    }
}

static void splits(struct bed *b) {
    if (strcmp(dev_kind(b->dev), "cuda") != 0) return; /* a CPU always walks */
    const struct long_case cases[] = {
        {shape_of(8, 2, 128, 0), false, 3, {1025, 1024, 1023}},
        {shape_of(2, 1, 16, 0), false, 4, {1536, 1535, 511}},
        {shape_of(4, 2, 64, 0), false, 5, {2049, 2048, 2047}},
        {shape_of(20, 1, 80, 0), false, 4, {1600, 1100, 0}}, /* two tiles of rows */
        {shape_of(71, 1, 64, 0), false, 4, {1700, 600, -1}},  /* five */
        {shape_of(2, 2, 256, 0), false, 4, {1999, 512, 63}},
        {shape_of(3, 1, 72, 700), false, 3, {2000, 1300, 800}}, /* windows: not all splits are in sight */
        {shape_of(4, 1, 96, 1024), false, 3, {1600, 1535, 1023}},
        {shape_of(3, 1, 192, 1500), false, 4, {4000, 3071, 1499}},
        {capped(shape_of(2, 1, 112, 0), 2), false, 3, {1300, 1151, 1087}},
        {with_alibi(shape_of(7, 7, 64, 0), 0.125f, false), false, 3, {1300, 1024, 40}},
        {with_alibi(capped(shape_of(4, 2, 24, 900), 3), 0.125f, true), false, 3, {1300, 1024, 40}},
    };
    check_long(b, cases, sizeof cases / sizeof *cases);
}

static void fp8_splits(struct bed *b) {
    if (strcmp(dev_kind(b->dev), "cuda") != 0) return;
    const struct long_case cases[] = {
        {shape_of(8, 2, 128, 0), true, 3, {1025, 1024, 1023}}, {shape_of(2, 1, 40, 0), true, 4, {1536, 1535, 511}},
        {shape_of(4, 1, 64, 0), true, 5, {2049, 2048, 2047}},  {shape_of(20, 1, 80, 0), true, 4, {1600, 1100, 0}},
        {shape_of(2, 2, 256, 600), true, 3, {1999, 512, 63}},  {capped(shape_of(3, 1, 136, 0), 2), true, 3, {1300, 1024, 5}},
    };
    check_long(b, cases, sizeof cases / sizeof *cases);
}

/* More splits than a fold takes in at once, and than run at once. */
static void many_splits(struct bed *b) {
    if (strcmp(dev_kind(b->dev), "cuda") != 0 || b->dtype == DTYPE_F32) return;
    const struct long_case cases[] = {
        {shape_of(32, 8, 128, 0), false, 20, {10015, 9999, -1}}, {shape_of(16, 8, 64, 0), false, 36, {18000, 8703, 8704}},
        {shape_of(8, 8, 160, 9000), false, 19, {10015, 9000, 8999}}, {shape_of(16, 8, 256, 0), true, 20, {9999, 512, -1}},
        {shape_of(32, 8, 128, 0), true, 36, {18000, 17919, 17920}},
    };
    check_long(b, cases, sizeof cases / sizeof *cases);
}

/* A recorded graph serves all steps whose tables are as wide: positions come from memory. */
static void replays(struct bed *b) {
    if (!dev_can_record(b->dev) || b->dtype == DTYPE_F32) return;
    const struct long_case late = {shape_of(8, 2, 128, 0), false, 4, {1600, 1100, 700}};
    struct long_case early = late;
    struct long_rows l;
    int32_t n_splits;
    reserve_long(b);
    long_open(b, &l, &late);
    float *want = long_attend(b, &l, &n_splits);
    for (int32_t i = 0; i < LONG_ROWS; i++) early.position[i] = l.sequences[i].first_position -= 512;
    l.step.position = early.position;
    const struct step *step = step_upload(b->dev, &l.step);
    assert_int_equal(n_splits, late.n_splits);
    assert_int_equal(op_attention_splits(b->dev, &l.h.shape, b->dtype, step), late.n_splits);
    dev_record(b->dev);
    op_attention(b->dev, &l.out, &l.q, l.h.kv, 0, &l.h.shape, step);
    dev_record_end(b->dev, 1);
    size_t bytes = (size_t)l.out.x.shape[0] * (size_t)l.out.x.shape[1] * sizeof *want;
    assert_true(memcmp(bed_get(b, &l.out.x), want, bytes) != 0);
    for (int32_t i = 0; i < LONG_ROWS; i++) l.sequences[i].first_position = late.position[i];
    l.step.position = late.position;
    step_upload(b->dev, &l.step);
    assert_true(dev_replay(b->dev, 1));
    assert_memory_equal(bed_get(b, &l.out.x), want, bytes);
    long_close(b, &l);
}

static void splits_side_by_side_give_the_bits_of_a_walk(void **state) {
    each_bed(splits);
    each_bed(fp8_splits);
    each_bed(many_splits);
}

/* Against the reference; rows that are alone in their sequence are among chunks. */
static void long_contexts(struct bed *b) {
    static const int32_t far[] = {1023, 1024, 1535, 1300};
    const struct attention_shape wide = shape_of(4, 2, 128, 0), windowed = shape_of(2, 1, 72, 700);
    reserve_long(b);
    check_attention(b, wide, far);
    check_attention(b, windowed, far);
    check_attention(b, shape_of(1, 1, 256, 1100), far);
    check_attention(b, with_alibi(capped(shape_of(2, 2, 64, 0), 3), 0.125f, false), far);
    check_attention_over(b, DTYPE_F8_E4M3, wide, far);
    check_attention_over(b, DTYPE_F8_E4M3, windowed, far);
}

static void a_graph_of_splits_serves_later_positions(void **state) {
    each_bed(replays);
}

static void attention_over_long_contexts(void **state) {
    each_bed(long_contexts);
}

/* ---------------------------------------------------------------- numbers that are none */

/* A NaN that a row does see is not swept under the rug. */
static void check_nan(struct bed *b, enum dtype kv_dtype) {
    static struct bed_step s;
    struct attention_shape shape = shape_of(1, 1, 16, 0);
    struct heads h;
    heads_open(b, &h, shape, 16, kv_dtype);
    step_begin(&s, 9);
    step_add(&s, 0, 70, 1);
    fill_cache(b, &h, &s, (const int32_t[BED_SLOTS][2]){{1, 71}}); /* key 0 is NaN */
    struct tensor q = bed_random_tensor(b, b->dtype, 1, 16, 1);
    struct activation out = {.x = bed_tensor(b, b->dtype, 1, 16, NULL)};
    op_attention(b->dev, &out, &q, h.kv, 1, &shape, step_upload(b->dev, &s.step));
    float *got = bed_get(b, &out.x);
    for (int i = 0; i < 16; i++) assert_true(isnan(got[i]));
    heads_close(b, &h);
}

/* One number of a head that is not finite: the whole head is NaN in an fp8 cache. */
static void check_nan_written(struct bed *b, float bad) {
    enum { HD = 16, WIDTH = 3 * HD };
    static struct bed_step s;
    struct attention_shape shape = shape_of(1, 1, HD, 0);
    struct heads h;
    float in[WIDTH];
    heads_open(b, &h, shape, HD, DTYPE_F8_E4M3);
    step_begin(&s, 9);
    step_add(&s, 0, 0, 1);
    for (int i = 0; i < WIDTH; i++) in[i] = i == WIDTH - 3 ? bad : bed_random(b);
    struct product qkv = {.y = bed_tensor(b, b->dtype, 1, WIDTH, in)};
    struct tensor q = bed_tensor(b, b->dtype, 1, HD, NULL);
    op_qkv_finish(b->dev, &q, h.kv, 1, &qkv, &shape, &(struct head_rules){.rope = &h.rope}, step_upload(b->dev, &s.step));
    float *cache = cache_of(b, &h, 1);
    for (int d = 0; d < HD; d++) {
        assert_true(isfinite(cache[slab_row(&h, &s, 0, 0, 0, 0) * HD + d]));
        assert_true(isnan(cache[slab_row(&h, &s, 0, 0, 1, 0) * HD + d]));
    }
    heads_close(b, &h);
}

static void nans(struct bed *b) {
    check_nan(b, b->dtype);
    check_nan(b, DTYPE_F8_E4M3);
    check_nan_written(b, NAN);
    check_nan_written(b, INFINITY);
}

static void a_nan_in_sight_stays_nan(void **state) {
    each_bed(nans);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(qkv_finish_norms_and_turns_heads_and_fills_the_cache),
    cmocka_unit_test(attention_is_softmax_over_the_keys_in_sight),
    cmocka_unit_test(heads_of_any_size),
    cmocka_unit_test(attention_reads_an_fp8_cache),
    cmocka_unit_test(scores_are_capped_and_slope),
    cmocka_unit_test(chunks_neighbours_and_block_order_do_not_matter),
    cmocka_unit_test(blocks_of_one_warp_give_the_same_bits),
    cmocka_unit_test(splits_side_by_side_give_the_bits_of_a_walk),
    cmocka_unit_test(a_graph_of_splits_serves_later_positions),
    cmocka_unit_test(attention_over_long_contexts),
    cmocka_unit_test(codes_expanded_beforehand_give_the_same_bits),
    cmocka_unit_test(a_nan_in_sight_stays_nan),
};
UNIT_MAIN(tests)
