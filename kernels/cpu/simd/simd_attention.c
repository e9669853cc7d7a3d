/* simd_attention.c - attention of one query row and head over the paged cache.
 *
 * The reduction tree is the same for every row: tiles of 64 keys, ascending, inside
 * absolute splits of 512. Each split starts with (m, l, O) = (-inf, 0, 0); splits are
 * folded left to right without normalising; one division at the end. Keys that the
 * row does not see are never read, so what lies in their places does not matter. */
#include "kernels/cpu/simd/simd.h"
#include "kernels/cpu/simd/vec.h"
#include "kernels/ops.h"

void SIMD_NAME(attend)(const struct attention_row *row);

static inline __attribute__((always_inline)) int64_t tile_offset(const struct attention_row *row, int32_t key, int which) {
    int64_t block = row->block_table[key / KV_BLOCK];
    return ((block * 2 + which) * row->n_kv_heads + row->kv_head) * KV_BLOCK * row->head_dim +
           (int64_t)(key % KV_BLOCK) * row->head_dim;
}

static inline __attribute__((always_inline)) f8 load_kv(const void *slab, int64_t at, bool bf16) {
    return bf16 ? f8_load_bf16((const uint16_t *)slab + at) : f8_load((const float *)slab + at);
}

/* Scores of keys [first, end) of a tile; returns the highest. */
static inline __attribute__((always_inline)) float tile_scores(const struct attention_row *row, float *s, int32_t tile,
                                                               int32_t first, int32_t end, bool bf16) {
    float max = -INFINITY;
    for (int32_t key = first; key < end; key++) {
        int64_t at = tile_offset(row, key, 0);
        f8 sum = f8_all(0.0f);
        for (int32_t d = 0; d < row->head_dim; d += 8)
            sum = f8_fma(f8_load(row->q + d), load_kv(row->slab, at + d, bf16), sum);
        float score = f8_sum(sum) * row->scale;
        s[key - tile] = score;
        max = score > max ? score : max;
    }
    return max;
}

struct partial { /* what a split has summed so far; O lies elsewhere */
    float m, l;
};

static inline __attribute__((always_inline)) float exp_one(float x) {
    return f8_exp(f8_all(x))[0];
}

/* Take keys [first, end) of the tile that begins at `tile` into a split's sums. */
static inline __attribute__((always_inline)) void take_tile(const struct attention_row *row, struct partial *p, float *o,
                                                            int32_t tile, int32_t first, int32_t end, bool bf16) {
    float s[ATTENTION_TILE];
    for (int i = 0; i < ATTENTION_TILE; i++) s[i] = -INFINITY;
    float max = tile_scores(row, s, tile, first, end, bf16);
    float m = max > p->m ? max : p->m;
    if (!(m > -INFINITY)) m = max; /* NaN scores go on as NaN */
    float keep = p->m > -INFINITY ? exp_one(p->m - m) : 0.0f;
    f8 sum = f8_all(0.0f);
    for (int i = 0; i < ATTENTION_TILE; i += 8) {
        f8 e = f8_exp(f8_load(s + i) - f8_all(m));
        f8_store(s + i, e);
        sum += e;
    }
    p->l = f1_fma(p->l, keep, f8_sum(sum));
    p->m = m;
    for (int32_t d = 0; d < row->head_dim; d += 8) {
        f8 acc = f8_load(o + d) * f8_all(keep);
        for (int32_t key = first; key < end; key++)
            acc = f8_fma(f8_all(s[key - tile]), load_kv(row->slab, tile_offset(row, key, 1) + d, bf16), acc);
        f8_store(o + d, acc);
    }
}

/* Fold the next split into the running sums. */
static void fold(struct partial *all, float *o_all, const struct partial *p, const float *o, int32_t head_dim) {
    float m = p->m > all->m ? p->m : all->m;
    float a = exp_one(all->m - m), b = exp_one(p->m - m);
    all->l = f1_fma(p->l, b, all->l * a);
    all->m = m;
    for (int32_t d = 0; d < head_dim; d += 8)
        f8_store(o_all + d, f8_fma(f8_load(o + d), f8_all(b), f8_load(o_all + d) * f8_all(a)));
}

static inline __attribute__((always_inline)) void attend(const struct attention_row *row, bool bf16) {
    int32_t end = row->position + 1, hd = row->head_dim;
    float *o_all = row->scratch, *o = row->scratch + hd;
    struct partial all = {-INFINITY, 0.0f};
    int32_t split = row->first_key / ATTENTION_SPLIT * ATTENTION_SPLIT;
    for (bool is_first = true; split < end; split += ATTENTION_SPLIT, is_first = false) {
        struct partial p = {-INFINITY, 0.0f};
        float *sums = is_first ? o_all : o;
        memset(sums, 0, (size_t)hd * sizeof *sums);
        int32_t split_end = split + ATTENTION_SPLIT < end ? split + ATTENTION_SPLIT : end;
        int32_t tile = split;
        if (row->first_key > tile) tile = row->first_key / ATTENTION_TILE * ATTENTION_TILE;
        for (; tile < split_end; tile += ATTENTION_TILE) {
            int32_t first = tile > row->first_key ? tile : row->first_key;
            int32_t last = tile + ATTENTION_TILE < split_end ? tile + ATTENTION_TILE : split_end;
            take_tile(row, &p, sums, tile, first, last, bf16);
        }
        if (is_first) all = p;
        else fold(&all, o_all, &p, o, hd);
    }
    for (int32_t d = 0; d < hd; d++) row->out[d] = o_all[d] / all.l;
}

void SIMD_NAME(attend)(const struct attention_row *row) {
    if (row->bf16) attend(row, true);
    else attend(row, false);
}
