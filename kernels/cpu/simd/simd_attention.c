/* simd_attention.c - attention of one query row and head over the paged cache.
 *
 * The reduction tree is the same for every row: tiles of 64 keys, ascending, inside
 * absolute splits of 512. Each split starts with (m, l, O) = (-inf, 0, 0); splits are
 * folded left to right without normalising; one division at the end. A tile's sums
 * depend on the row's own keys alone: scores are made for eight keys at a time and
 * those that the row does not see become -inf; values of such keys are not touched. */
#include "kernels/cpu/simd/simd.h"
#include "kernels/cpu/simd/vec.h"

void SIMD_NAME(attend)(const struct attention_row *row);

/* Number of the first element of a key (which = 0) or value (1) in the slab. The 32
 * keys of a block follow each other. */
VEC int64_t kv_at(const struct attention_row *row, int32_t key, int which) {
    int64_t block = row->block_table[key / KV_BLOCK];
    int64_t tile = (block * 2 + which) * row->n_kv_heads + row->kv_head;
    return (tile * KV_BLOCK + key % KV_BLOCK) * row->head_dim;
}

/* Scores of keys key .. key + 7; key is a multiple of 8. */
VEC f8 eight_scores(const struct attention_row *row, int32_t key, bool bf16) {
    const int32_t hd = row->head_dim;
    int64_t at = kv_at(row, key, 0);
    f8 sum[8];
#pragma GCC unroll 8
    for (int j = 0; j < 8; j++) sum[j] = f8_all(0.0f);
    for (int32_t d = 0; d < hd; d += 8) {
        f8 q = f8_load(row->q + d);
#pragma GCC unroll 8
        for (int j = 0; j < 8; j++) sum[j] = f8_fma(q, load(row->slab, at + (int64_t)j * hd + d, bf16), sum[j]);
    }
    return f8_sums(sum) * f8_all(row->scale);
}

/* A key's part of ALiBi; that of the row itself is taken away, so that numbers stay small. */
VEC f8 alibi(const struct attention_row *row, i8 key) {
    if (!row->alibi_bf16)
        return f8_all(row->alibi_scale * row->slope) * __builtin_convertvector(key - row->position, f8);
    f8 slope = f8_all(row->slope), own = f8_round_bf16(slope * f8_all((float)row->position));
    return f8_all(row->alibi_scale) * (f8_round_bf16(slope * __builtin_convertvector(key, f8)) - own);
}

/* s = scores of the tile up to the last eight that hold keys, -inf outside [first, end);
 * returns the highest. */
VEC float tile_scores(const struct attention_row *row, float *s, int32_t tile, int32_t first, int32_t end, bool bf16) {
    const i8 lane = {0, 1, 2, 3, 4, 5, 6, 7};
    const f8 none = f8_all(-INFINITY);
    f8 max = none;
    for (int32_t key = tile; key < end; key += 8) {
        f8 score = none;
        if (key + 8 > first) {
            score = eight_scores(row, key, bf16);
            if (row->softcap > 0) score = f8_all(row->softcap) * f8_tanh(score / f8_all(row->softcap));
            if (row->slope != 0) score += alibi(row, lane + key);
            if (key < first || key + 8 > end) {
                i8 number = lane + key;
                score = f8_select((number >= first) & (number < end), score, none);
            }
        }
        f8_store(s + (key - tile), score);
        max = f8_larger(score, max);
    }
    return f8_max(max);
}

/* sum[c] += s[key] * V[key][8 c ..] for a run of keys of one block. Key number k goes into
 * chain k % chains, so that short heads too keep the multiply-adds busy. */
VEC void run_of_values(f8 *sum, const void *slab, int64_t at, int32_t hd, const float *s, int32_t first, int32_t end,
                       int chunks, int chains, bool bf16) {
    int32_t key = first;
    for (; key < end && key % chains; key++)
        for (int c = 0; c < chunks; c++) {
            f8 *to = &sum[key % chains * chunks + c];
            *to = f8_fma(f8_all(s[key]), load(slab, at + (int64_t)key * hd + 8 * c, bf16), *to);
        }
    f8 chain[8];
#pragma GCC unroll 8
    for (int i = 0; i < chunks * chains; i++) chain[i] = sum[i];
    for (; key + chains <= end; key += chains)
#pragma GCC unroll 4
        for (int j = 0; j < chains; j++) {
            f8 weight = f8_all(s[key + j]);
#pragma GCC unroll 8
            for (int c = 0; c < chunks; c++)
                chain[j * chunks + c] = f8_fma(weight, load(slab, at + (int64_t)(key + j) * hd + 8 * c, bf16),
                                               chain[j * chunks + c]);
        }
#pragma GCC unroll 8
    for (int i = 0; i < chunks * chains; i++) sum[i] = chain[i];
    for (; key < end; key++)
        for (int c = 0; c < chunks; c++) {
            f8 *to = &sum[key % chains * chunks + c];
            *to = f8_fma(f8_all(s[key]), load(slab, at + (int64_t)key * hd + 8 * c, bf16), *to);
        }
}

/* o[d ..] = o[d ..] * keep + the tile's values, for `chunks` times 8 columns. */
VEC void take_values(const struct attention_row *row, float *o, const float *s, float keep, int32_t tile,
                     int32_t first, int32_t end, int32_t d, int chunks, int chains, bool bf16) {
    f8 sum[8];
    for (int i = 0; i < chunks * chains; i++) sum[i] = f8_all(0.0f);
    for (int32_t block = tile; block < end; block += KV_BLOCK) {
        int32_t from = first > block ? first : block, to = end < block + KV_BLOCK ? end : block + KV_BLOCK;
        if (from >= to) continue;
        run_of_values(sum, row->slab, kv_at(row, block, 1) + d, row->head_dim, s + (block - tile), from - block,
                      to - block, chunks, chains, bf16);
    }
    for (int c = 0; c < chunks; c++) {
        f8 total = sum[c];
        if (chains == 2) total = sum[c] + sum[chunks + c];
        if (chains == 4) total = (sum[c] + sum[2 * chunks + c]) + (sum[chunks + c] + sum[3 * chunks + c]);
        f8_store(o + d + 8 * c, f8_fma(f8_load(o + d + 8 * c), f8_all(keep), total));
    }
}

struct partial { /* what a split has summed so far */
    float m, l;
    float o[MAX_HEAD_DIM];
};

VEC float exp_one(float x) {
    return f8_exp(f8_all(x))[0];
}

/* Take keys [first, end) of the tile that begins at `tile` into a split's sums. */
VEC void take_tile(const struct attention_row *row, struct partial *p, int32_t tile, int32_t first, int32_t end,
                   bool bf16) {
    float s[ATTENTION_TILE];
    float max = tile_scores(row, s, tile, first, end, bf16);
    float m = max > p->m ? max : p->m;
    float keep = p->m > -INFINITY ? exp_one(p->m - m) : 0.0f;
    f8 sum = f8_all(0.0f);
#pragma GCC unroll 2
    for (int i = 0; i < end - tile; i += 8) {
        f8 e = f8_exp(f8_load(s + i) - f8_all(m));
        f8_store(s + i, e);
        sum += e;
    }
    p->l = f1_fma(p->l, keep, f8_sum(sum));
    p->m = m;
    int32_t d = 0, hd = row->head_dim;
    for (; d + 64 <= hd; d += 64) take_values(row, p->o, s, keep, tile, first, end, d, 8, 1, bf16);
    for (; d + 32 <= hd; d += 32) take_values(row, p->o, s, keep, tile, first, end, d, 4, 2, bf16);
    for (; d + 16 <= hd; d += 16) take_values(row, p->o, s, keep, tile, first, end, d, 2, 4, bf16);
    for (; d < hd; d += 8) take_values(row, p->o, s, keep, tile, first, end, d, 1, 4, bf16);
}

/* Keys [first, end) of the split that begins at `split`. */
VEC void take_split(const struct attention_row *row, struct partial *p, int32_t split, int32_t end, bool bf16) {
    p->m = -INFINITY;
    p->l = 0.0f;
    memset(p->o, 0, (size_t)row->head_dim * sizeof *p->o);
    int32_t first = row->first_key > split ? row->first_key : split;
    if (end > split + ATTENTION_SPLIT) end = split + ATTENTION_SPLIT;
    for (int32_t tile = first / ATTENTION_TILE * ATTENTION_TILE; tile < end; tile += ATTENTION_TILE) {
        int32_t last = end < tile + ATTENTION_TILE ? end : tile + ATTENTION_TILE;
        take_tile(row, p, tile, first > tile ? first : tile, last, bf16);
    }
}

/* Fold the next split into the running sums. */
VEC void fold(struct partial *all, const struct partial *p, int32_t head_dim) {
    float m = p->m > all->m ? p->m : all->m;
    float a = exp_one(all->m - m), b = exp_one(p->m - m);
    all->l = f1_fma(p->l, b, all->l * a);
    all->m = m;
    for (int32_t d = 0; d < head_dim; d += 8)
        f8_store(all->o + d, f8_fma(f8_load(p->o + d), f8_all(b), f8_load(all->o + d) * f8_all(a)));
}

VEC void attend(const struct attention_row *row, bool bf16) {
    struct partial all, next, *p = &all;
    int32_t end = row->position + 1;
    for (int32_t split = row->first_key / ATTENTION_SPLIT * ATTENTION_SPLIT; split < end; split += ATTENTION_SPLIT) {
        take_split(row, p, split, end, bf16);
        if (p == &next) fold(&all, &next, row->head_dim);
        p = &next;
    }
    for (int32_t d = 0; d < row->head_dim; d += 8) f8_store(row->out + d, f8_load(all.o + d) / f8_all(all.l));
}

void SIMD_NAME(attend)(const struct attention_row *row) {
    if (row->bf16) attend(row, true);
    else attend(row, false);
}
