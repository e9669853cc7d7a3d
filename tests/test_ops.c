/* test_ops.c - every operation against a plain reference in double precision, and batch
 * invariance: a row's bits are the same whatever else is in the step.
 *
 * Each case runs on every instruction set of this machine, in both compute dtypes, with
 * one thread and with two, whose bits must agree (aid_ops.h). op_sample has a file of its
 * own. Slacks are bounds on f32 sums: the number of additions times 2^-24, times the sum
 * of the terms' sizes. */
#include "tests/aid_ops.h"

#include <math.h>

/* ---------------------------------------------------------------- weights, linear, embed */

/* Rows come in any of three dtypes, from an odd address, in pieces; embed gives them back. */
static void check_loading(struct bed *b, enum dtype from) {
    enum { N = 21, K = 19 };
    float want[N * K];
    char raw[1 + N * K * 4];
    for (int i = 0; i < N * K; i++) {
        want[i] = rounded(bed_random(b), from);
        uint16_t h = from == DTYPE_F16 ? f16_from_f32(want[i]) : bf16_from_f32(want[i]);
        if (from == DTYPE_F32) memcpy(raw + 1 + i * 4, &want[i], 4);
        else memcpy(raw + 1 + i * 2, &h, 2);
    }
    struct weight *w = weight_new(b->dev, N, K, b->dtype);
    struct tensor first = tensor_2d(raw + 1, from, 5, K);
    struct tensor rest = tensor_2d(raw + 1 + 5 * K * dtype_bytes(from), from, N - 5, K);
    weight_load(b->dev, w, 5, &rest);
    weight_load(b->dev, w, 0, &first);

    static struct bed_step s;
    int32_t last_sample[] = {3, 17, -1, 0};
    struct tensor on_device = tensor_1d(last_sample, DTYPE_I32, 4);
    struct tensor last = bed_tensor(b, DTYPE_I32, 4, 1, NULL);
    dev_upload(b->dev, last.data, last_sample, tensor_bytes(&on_device));
    step_set_last_sample(b->dev, last.data);
    step_begin(&s, 1);
    for (int i = 0; i < N; i++) step_add(&s, i % BED_SLOTS, 0, 1);
    for (int i = 0; i < N; i++) s.token[i] = N - 1 - i;
    s.token[4] = ~1;
    s.token[5] = ~2; /* that draw failed: any row will do, nobody reads it */
    struct tensor out = bed_tensor(b, b->dtype, N, K, NULL);
    op_embed(b->dev, &out, w, step_upload(b->dev, &s.step));
    float *got = bed_get(b, &out);
    for (int r = 0; r < N; r++)
        for (int k = 0; k < K && r != 5; k++)
            assert_true(got[r * K + k] == rounded(want[(r == 4 ? 17 : N - 1 - r) * K + k], b->dtype));
    weight_free(b->dev, w);
}

static void loading(struct bed *b) {
    check_loading(b, DTYPE_F32);
    check_loading(b, DTYPE_F16);
    check_loading(b, DTYPE_BF16);
}

static void weights_of_any_dtype_come_back_from_embed(void **state) {
    each_bed(loading);
}

static void check_linear(struct bed *b, int m, int n, int k, enum dtype w_dtype, enum dtype y_dtype) {
    float *w_host, *bias;
    struct weight *w = bed_weight(b, n, k, w_dtype, &w_host, &bias); /* the bias stays pending */
    struct tensor x = bed_random_tensor(b, b->dtype, m, k, 1);
    struct tensor room = bed_random_tensor(b, y_dtype, m + 1, n, 1);
    float *before = bed_get(b, &room), *xs = bed_get(b, &x);
    struct activation in = {.x = x};
    struct product y = {.y = rows_from(&room, 0, m)};
    op_linear(b->dev, &y, &in, w);
    assert_ptr_equal(y.weight, w);
    float *got = bed_get(b, &room);
    for (int r = 0; r < m; r++)
        for (int c = 0; c < n; c++) {
            double sum = 0, size = 0;
            for (int i = 0; i < k; i++) {
                double term = (double)xs[r * k + i] * (double)w_host[c * k + i];
                sum += term;
                size += fabs(term);
            }
            assert_near(b, got[r * n + c], sum, size * k * 0x1p-24, y_dtype, "linear", r, c);
        }
    for (int c = 0; c < n; c++) assert_true(got[m * n + c] == before[m * n + c]); /* nothing beyond */
}

static void linear(struct bed *b) {
    static const int shapes[][3] = {{1, 1, 1},    {2, 17, 33},  {3, 48, 7},    {4, 16, 64},  {5, 33, 100},
                                    {6, 64, 256}, {7, 100, 31}, {13, 131, 67}, {29, 80, 48}, {64, 40, 96}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        const int *s = shapes[i];
        check_linear(b, s[0], s[1], s[2], b->dtype, b->dtype);
        check_linear(b, s[0], s[1], s[2], b->dtype, DTYPE_F32); /* logits */
    }
    check_linear(b, 9, 45, 50, DTYPE_BF16, b->dtype);
}

static void linear_is_the_matrix_product(void **state) {
    each_bed(linear);
}

/* Any run of m rows gives what the same rows give among 200. */
static void check_linear_bits(struct bed *b, int n, int k) {
    enum { ALL = 200 };
    static const int counts[] = {1, 2, 3, 4, 5, 7, 16, 64, 199};
    float *ignored;
    struct weight *w = bed_weight(b, n, k, b->dtype, &ignored, NULL);
    struct activation x = {.x = bed_random_tensor(b, b->dtype, ALL, k, 1)};
    struct product all = {.y = bed_tensor(b, b->dtype, ALL, n, NULL)};
    op_linear(b->dev, &all, &x, w);
    float *want = bed_get(b, &all.y);
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        int m = counts[i], at[] = {0, 1, ALL / 2 + 1, ALL - m};
        for (size_t j = 0; j < 4; j++) {
            if (at[j] + m > ALL) continue;
            struct activation some = {.x = rows_from(&x.x, at[j], m)};
            struct product y = {.y = bed_tensor(b, b->dtype, m, n, NULL)};
            op_linear(b->dev, &y, &some, w);
            assert_memory_equal(bed_get(b, &y.y), want + at[j] * n, (size_t)(m * n) * sizeof *want);
        }
    }
}

static void linear_bits(struct bed *b) {
    check_linear_bits(b, 37, 50);
    check_linear_bits(b, 208, 64);
}

static void linear_does_not_see_other_rows(void **state) {
    each_bed(linear_bits);
}

/* ---------------------------------------------------------------- norm, gate, gather */

static void check_norm(struct bed *b, int m, int n, bool has_y, bool has_bias) {
    const float eps = 1e-5f;
    float *w_host, *bias = NULL;
    struct weight *weight = bed_weight(b, n, 1, b->dtype, &w_host, has_bias ? &bias : NULL);
    struct product y = {.y = bed_random_tensor(b, b->dtype, m, n, 2), .weight = weight};
    struct tensor residual = bed_random_tensor(b, b->dtype, m, n, 3);
    float *w = bed_floats(b, n), *rs = bed_get(b, &residual), *ys = bed_get(b, &y.y);
    for (int i = 0; i < n; i++) w[i] = 1 + bed_random(b);
    struct tensor norm = bed_tensor(b, DTYPE_F32, n, 1, w);
    struct activation out = {.x = bed_tensor(b, b->dtype, m, n, NULL)};
    op_residual_norm(b->dev, &out, &residual, has_y ? &y : NULL, &norm, eps);
    float *got = bed_get(b, &out.x), *stream = bed_get(b, &residual);
    for (int r = 0; r < m; r++) {
        double squares = 0;
        for (int c = 0; c < n; c++) {
            double add = !has_y ? 0 : (double)ys[r * n + c] + (bias ? (double)bias[c] : 0.0);
            if (b->dtype == DTYPE_BF16) add = (double)rounded((float)add, DTYPE_BF16);
            double want = (double)rs[r * n + c] + add;
            assert_near(b, stream[r * n + c], want, (fabs(want) + fabs(add)) * 0x1p-22, b->dtype, "residual", r, c);
            squares += (double)stream[r * n + c] * (double)stream[r * n + c];
        }
        double scale = 1 / sqrt(squares / n + (double)eps);
        for (int c = 0; c < n; c++) {
            double x = (double)stream[r * n + c] * scale;
            double slack = fabs(x * (double)w[c]) * (b->dtype == DTYPE_BF16 ? 0x1p-8 : (n + 8) * 0x1p-24);
            assert_near(b, got[r * n + c], x * (double)w[c], slack, b->dtype, "norm", r, c);
        }
    }
}

static void norm(struct bed *b) {
    static const int widths[] = {1, 7, 8, 48, 259};
    for (size_t i = 0; i < sizeof widths / sizeof *widths; i++) {
        check_norm(b, 5, widths[i], false, false);
        check_norm(b, 5, widths[i], true, false);
        check_norm(b, 1, widths[i], true, true);
    }
}

static void residual_norm_adds_then_divides_by_the_rms(void **state) {
    each_bed(norm);
}

static void check_glu(struct bed *b, int m, int n, bool has_bias, float range) {
    float *ignored, *bias = NULL;
    struct weight *w = bed_weight(b, 2 * n, 1, b->dtype, &ignored, has_bias ? &bias : NULL);
    struct product in = {.y = bed_random_tensor(b, b->dtype, m, 2 * n, range), .weight = w};
    struct activation out = {.x = bed_tensor(b, b->dtype, m, n, NULL)};
    op_glu(b->dev, &out, &in);
    float *got = bed_get(b, &out.x), *xs = bed_get(b, &in.y);
    for (int r = 0; r < m; r++)
        for (int c = 0; c < n; c++) {
            const float *row = xs + r * 2 * n;
            float gate = rounded(row[c] + (bias ? bias[c] : 0), b->dtype);
            float up = rounded(row[n + c] + (bias ? bias[n + c] : 0), b->dtype);
            double want = (double)gate / (1 + exp(-(double)gate)) * (double)up;
            double slack = fabs(want) * (b->dtype == DTYPE_BF16 ? 0x1p-8 : 2e-6) + 1e-30; /* silu is rounded too */
            assert_near(b, got[r * n + c], want, slack, b->dtype, "glu", r, c);
        }
}

static void glu(struct bed *b) {
    static const int widths[] = {1, 8, 27, 96};
    for (size_t i = 0; i < sizeof widths / sizeof *widths; i++) {
        check_glu(b, 4, widths[i], false, 4);
        check_glu(b, 3, widths[i], true, 60);
    }
    check_glu(b, 2, 50, false, 500); /* e^-gate beyond what f32 holds */
}

static void glu_is_silu_of_the_gate_times_up(void **state) {
    each_bed(glu);
}

static void gather(struct bed *b) {
    enum { M = 9, N = 11, WANTED = 4 };
    struct step_sample samples[WANTED] = {{.row = 0}, {.row = 3}, {.row = 4}, {.row = 8}};
    struct step step = {.n_rows = M, .n_samples = WANTED, .samples = samples};
    struct activation x = {.x = bed_random_tensor(b, b->dtype, M, N, 1)};
    struct activation out = {.x = bed_tensor(b, b->dtype, WANTED, N, NULL)};
    op_gather(b->dev, &out, &x, step_upload(b->dev, &step));
    float *got = bed_get(b, &out.x), *xs = bed_get(b, &x.x);
    for (int s = 0; s < WANTED; s++)
        assert_memory_equal(got + s * N, xs + samples[s].row * N, N * sizeof *xs);
}

static void gather_takes_the_rows_that_want_logits(void **state) {
    each_bed(gather);
}

/* Rows by themselves and rows together: the same bits. */
static void row_bits(struct bed *b) {
    enum { M = 200, N = 93 }; /* enough work for two threads */
    float *w = bed_floats(b, N);
    for (int i = 0; i < N; i++) w[i] = 1 + bed_random(b);
    struct tensor norm_w = bed_tensor(b, DTYPE_F32, N, 1, w), residual = bed_random_tensor(b, b->dtype, M, N, 3);
    struct tensor again = bed_tensor(b, b->dtype, M, N, bed_get(b, &residual));
    struct product y = {.y = bed_random_tensor(b, b->dtype, M, N, 1)};
    struct product gates = {.y = bed_random_tensor(b, b->dtype, M, 2 * N, 4)};
    struct activation normed = {.x = bed_tensor(b, b->dtype, M, N, NULL)}, gated = normed;
    gated.x = bed_tensor(b, b->dtype, M, N, NULL);
    op_residual_norm(b->dev, &normed, &residual, &y, &norm_w, 1e-6f);
    op_glu(b->dev, &gated, &gates);
    float *norm_all = bed_get(b, &normed.x), *glu_all = bed_get(b, &gated.x), *stream = bed_get(b, &residual);
    for (int r = 0; r < M; r++) {
        struct tensor one_residual = rows_from(&again, r, 1);
        struct product one_y = {.y = rows_from(&y.y, r, 1)}, one_gate = {.y = rows_from(&gates.y, r, 1)};
        struct activation out = {.x = bed_tensor(b, b->dtype, 1, N, NULL)};
        op_residual_norm(b->dev, &out, &one_residual, &one_y, &norm_w, 1e-6f);
        assert_memory_equal(bed_get(b, &out.x), norm_all + r * N, N * sizeof(float));
        assert_memory_equal(bed_get(b, &one_residual), stream + r * N, N * sizeof(float));
        op_glu(b->dev, &out, &one_gate);
        assert_memory_equal(bed_get(b, &out.x), glu_all + r * N, N * sizeof(float));
    }
}

static void norm_and_glu_do_not_see_other_rows(void **state) {
    each_bed(row_bits);
}

/* ---------------------------------------------------------------- KV cache and attention */

struct heads { /* one layer's cache in the middle of three, and what reads and writes it */
    struct attention_shape shape;
    struct kv_cache *kv;
    struct rope rope;
    float inv_freq[128];
};

static void heads_open(struct bed *b, struct heads *h, struct attention_shape shape, int32_t n_rotated) {
    struct err err = {0};
    *h = (struct heads){.shape = shape};
    for (int i = 0; i < n_rotated / 2; i++) h->inv_freq[i] = powf(100.0f, -2.0f * (float)i / (float)n_rotated);
    assert_ok(kv_cache_open(&h->kv, b->dev, b->dtype, 3, BED_BLOCKS, shape.n_kv_heads, shape.head_dim, &err), &err);
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

/* Which row of it holds a position's key (which = 0) or value (1). */
static int64_t slab_row(const struct heads *h, const struct bed_step *s, int32_t slot, int32_t position, int which,
                        int32_t kv_head) {
    int64_t block = s->table[slot * BED_STRIDE + position / KV_BLOCK];
    return ((block * 2 + which) * h->shape.n_kv_heads + kv_head) * KV_BLOCK + position % KV_BLOCK;
}

static void check_qkv_head(struct bed *b, const struct heads *h, const float *in, const float *bias, const float *got,
                           int32_t position, bool turns, int64_t row) {
    int32_t half = turns ? h->rope.n_rotated / 2 : 0;
    for (int32_t i = 0; i < h->shape.head_dim; i++) {
        double x = (double)rounded(in[i] + (bias ? bias[i] : 0), b->dtype), want = x, slack = 0;
        if (i < 2 * half) {
            int32_t pair = i < half ? i + half : i - half;
            double other = (double)rounded(in[pair] + (bias ? bias[pair] : 0), b->dtype);
            double angle = (double)((float)position * h->inv_freq[i % half]);
            want = x * cos(angle) + (i < half ? -other : other) * sin(angle);
            slack = (fabs(x) + fabs(other)) * 0x1p-21;
        }
        assert_near(b, got[i], want, slack, b->dtype, "q, k or v", row, i);
    }
}

static void check_qkv(struct bed *b, struct attention_shape shape, int32_t n_rotated, bool has_bias) {
    static struct bed_step s;
    struct heads h;
    heads_open(b, &h, shape, n_rotated);
    step_begin(&s, 5);
    step_add(&s, 2, 30, 5); /* across a block's end */
    step_add(&s, 0, 0, 1);
    step_add(&s, 3, 1200, 3);
    int32_t hd = shape.head_dim, n_kv = shape.n_kv_heads, m = s.step.n_rows;
    int32_t q_width = shape.n_heads * hd, width = q_width + 2 * n_kv * hd;
    float *ignored, *bias = NULL;
    struct weight *w = bed_weight(b, width, 1, b->dtype, &ignored, has_bias ? &bias : NULL);
    struct product qkv = {.y = bed_random_tensor(b, b->dtype, m, width, 2), .weight = w};
    struct tensor q = bed_tensor(b, b->dtype, m, q_width, NULL);
    op_qkv_finish(b->dev, &q, h.kv, 1, &qkv, &shape, &h.rope, step_upload(b->dev, &s.step));
    struct tensor slab = slab_of(&h, 1), other_layer = slab_of(&h, 0);
    float *in = bed_get(b, &qkv.y), *qs = bed_get(b, &q), *cache = bed_get(b, &slab);
    for (int32_t r = 0; r < m; r++)
        for (int32_t i = 0; i < shape.n_heads + 2 * n_kv; i++) {
            int32_t kv_head = i - shape.n_heads, which = kv_head >= n_kv;
            const float *got = qs + r * q_width + i * hd;
            if (kv_head >= 0) got = cache + slab_row(&h, &s, s.slot[r], s.position[r], which, kv_head % n_kv) * hd;
            check_qkv_head(b, &h, in + r * width + i * hd, bias ? bias + i * hd : NULL, got, s.position[r],
                           kv_head < n_kv, r);
        }
    int64_t n_written = 0;
    for (int64_t i = 0; i < slab.shape[0] * hd; i++) n_written += cache[i] != 0;
    assert_true(n_written <= (int64_t)m * 2 * n_kv * hd); /* and nowhere else */
    float *untouched = bed_get(b, &other_layer);
    for (int64_t i = 0; i < slab.shape[0] * hd; i++) assert_true(untouched[i] == 0);
    heads_close(b, &h);
}

static void qkv(struct bed *b) {
    check_qkv(b, (struct attention_shape){.n_heads = 4, .n_kv_heads = 2, .head_dim = 16}, 16, false);
    check_qkv(b, (struct attention_shape){.n_heads = 3, .n_kv_heads = 3, .head_dim = 24}, 24, true);
    check_qkv(b, (struct attention_shape){.n_heads = 2, .n_kv_heads = 1, .head_dim = 8}, 4, true);
}

static void qkv_finish_turns_heads_and_fills_the_cache(void **state) {
    each_bed(qkv);
}

/* softmax(scale q k^T) v of one row and head, over keys the row sees. */
static void naive_attention(double *out, const struct heads *h, const struct bed_step *s, const float *q,
                            const float *cache, int32_t row, int32_t kv_head) {
    int32_t hd = h->shape.head_dim, position = s->position[row], first = 0;
    double score[BED_STRIDE * KV_BLOCK], most = -INFINITY, total = 0;
    if (h->shape.sliding_window && position >= h->shape.sliding_window) first = position - h->shape.sliding_window + 1;
    for (int32_t j = first; j <= position; j++) {
        const float *k = cache + slab_row(h, s, s->slot[row], j, 0, kv_head) * hd;
        score[j] = 0;
        for (int32_t d = 0; d < hd; d++) score[j] += (double)q[d] * (double)k[d];
        score[j] *= (double)h->shape.scale;
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
    struct tensor filled = bed_tensor(b, h->kv->dtype, slab.shape[0], hd, numbers);
    float *raw = bed_floats(b, slab.shape[0] * hd);
    dev_download(b->dev, raw, filled.data, tensor_bytes(&filled));
    dev_upload(b->dev, slab.data, raw, tensor_bytes(&filled));
}

/* Rows at the given positions, one in each slot, -1 = none; slot 3 has a run of five. */
static void check_attention(struct bed *b, struct attention_shape shape, const int32_t position[BED_SLOTS]) {
    static struct bed_step s;
    struct heads h;
    int32_t seen[BED_SLOTS][2] = {{0}}, hd = shape.head_dim, width = shape.n_heads * shape.head_dim;
    heads_open(b, &h, shape, hd);
    step_begin(&s, 9);
    for (int32_t slot = 0; slot < BED_SLOTS; slot++) {
        if (position[slot] < 0) continue;
        int32_t n = slot == 3 ? 5 : 1, window = shape.sliding_window;
        step_add(&s, slot, position[slot], n);
        seen[slot][0] = window && position[slot] >= window ? position[slot] - window + 1 : 0;
        seen[slot][1] = position[slot] + n;
    }
    fill_cache(b, &h, &s, seen);
    struct tensor slab = slab_of(&h, 1), q = bed_random_tensor(b, b->dtype, s.step.n_rows, width, 4);
    struct activation out = {.x = bed_tensor(b, b->dtype, s.step.n_rows, width, NULL)};
    op_attention(b->dev, &out, &q, h.kv, 1, &shape, step_upload(b->dev, &s.step));
    float *qs = bed_get(b, &q), *got = bed_get(b, &out.x), *cache = bed_get(b, &slab);
    /* Tensor cores take the weights in bf16; values are below 1. */
    double slack = b->dtype == DTYPE_BF16 && strcmp(dev_kind(b->dev), "cuda") == 0 ? 0x1p-9 : 1e-5;
    for (int32_t r = 0; r < s.step.n_rows; r++)
        for (int32_t i = 0; i < shape.n_heads; i++) {
            double want[256];
            int32_t at = r * width + i * hd;
            naive_attention(want, &h, &s, qs + at, cache, r, i / (shape.n_heads / shape.n_kv_heads));
            for (int32_t d = 0; d < hd; d++)
                assert_near(b, got[at + d], want[d], slack, b->dtype, "attention", r, i * hd + d);
        }
    heads_close(b, &h);
}

static struct attention_shape shape_of(int32_t n_heads, int32_t n_kv_heads, int32_t head_dim, int32_t window) {
    return (struct attention_shape){n_heads, n_kv_heads, head_dim, 1 / sqrtf((float)head_dim), window};
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

/* A prompt of N rows through qkv_finish and attention, cut at the given sizes in turn,
 * with `guests` rows of other sequences before and after it in each step. */
static float *run_prompt(struct bed *b, struct attention_shape shape, const struct tensor *rows, int chunk, int guests,
                         uint64_t shuffle) {
    static struct bed_step s;
    struct heads h;
    int32_t n = (int32_t)rows->shape[0], width = shape.n_heads * shape.head_dim;
    float *all = bed_floats(b, (int64_t)n * width);
    heads_open(b, &h, shape, shape.head_dim);
    for (int32_t done = 0, size; done < n; done += size) {
        size = done + chunk < n ? chunk : n - done;
        step_begin(&s, shuffle);
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
        op_qkv_finish(b->dev, &q, h.kv, 2, &qkv, &shape, &h.rope, step);
        op_attention(b->dev, &out, &q, h.kv, 2, &shape, step);
        struct tensor result = rows_from(&out.x, guests, size);
        memcpy(all + done * width, bed_get(b, &result), (size_t)(size * width) * sizeof *all);
    }
    heads_close(b, &h);
    return all;
}

static void attention_bits(struct bed *b) {
    enum { N = 150 };
    static const struct attention_shape shapes[] = {{2, 1, 16, 0.25f, 0}, {2, 2, 32, 0.2f, 70}};
    for (size_t i = 0; i < 2; i++) {
        struct attention_shape shape = shapes[i];
        int32_t width = shape.n_heads * shape.head_dim;
        struct tensor rows = bed_random_tensor(b, b->dtype, N, width + 2 * shape.n_kv_heads * shape.head_dim, 2);
        float *want = run_prompt(b, shape, &rows, N, 0, 3);
        static const int chunks[] = {1, 7, 16, 64};
        for (size_t c = 0; c < sizeof chunks / sizeof *chunks; c++) {
            float *got = run_prompt(b, shape, &rows, chunks[c], (int)c, 100 + c);
            assert_memory_equal(got, want, (size_t)(N * width) * sizeof *want);
        }
    }
}

static void chunks_neighbours_and_block_order_do_not_matter(void **state) {
    each_bed(attention_bits);
}

/* A NaN that a row does see is not swept under the rug. */
static void attention_nan(struct bed *b) {
    static struct bed_step s;
    struct attention_shape shape = shape_of(1, 1, 16, 0);
    struct heads h;
    heads_open(b, &h, shape, 16);
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

static void a_nan_in_sight_stays_nan(void **state) {
    each_bed(attention_nan);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(weights_of_any_dtype_come_back_from_embed),
    cmocka_unit_test(linear_is_the_matrix_product),
    cmocka_unit_test(linear_does_not_see_other_rows),
    cmocka_unit_test(residual_norm_adds_then_divides_by_the_rms),
    cmocka_unit_test(glu_is_silu_of_the_gate_times_up),
    cmocka_unit_test(gather_takes_the_rows_that_want_logits),
    cmocka_unit_test(norm_and_glu_do_not_see_other_rows),
    cmocka_unit_test(qkv_finish_turns_heads_and_fills_the_cache),
    cmocka_unit_test(attention_is_softmax_over_the_keys_in_sight),
    cmocka_unit_test(chunks_neighbours_and_block_order_do_not_matter),
    cmocka_unit_test(a_nan_in_sight_stays_nan),
};
UNIT_MAIN(tests)
