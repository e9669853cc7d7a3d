/* cpu_quant.c - products with quantized weights; ops.h has the rules.
 *
 * A few panels at a time are turned into f32 numbers in a thread's own scratch and multiplied
 * with all rows by the loop that plain weights use, so its order of sums holds here too.
 * int8: that loop adds in f32, where sums of at most SPAN products of two 8-bit integers are
 * exact; a longer K is cut, and the pieces are added as integers. */
#include "kernels/cpu/cpu.h"

#include <assert.h>
#include <math.h>
#include <string.h>

enum { SPAN = 1024, DECODED = 256, MAX_GROUP = 4 };
_Static_assert(127 * 127 * SPAN < 1 << 24, "f32 holds integers up to 2^24");

struct quant_linear {
    struct cpu_dev *cpu;
    const struct weight *w;
    const struct tensor *raw; /* activations as they came */
    struct tensor *y;
    int64_t m, span;          /* span: columns of K that are multiplied at once */
    int64_t group;            /* panels that are decoded at once */
    float *x;                 /* [K / span][m][span], the last piece narrower: what is multiplied */
    float *row_scale;         /* [m], 8-bit kinds */
    bool *is_out;             /* [K], int8: columns in which some row has an outlier */
    char *scratch;            /* thread by thread */
    size_t thread_bytes;
};

/* ---------------------------------------------------------------- activations */

static float raw_number(const struct tensor *t, int64_t row, int64_t k) {
    int64_t i = row * t->shape[1] + k;
    return t->dtype == DTYPE_BF16 ? bf16_to_f32(((const uint16_t *)t->data)[i]) : ((const float *)t->data)[i];
}

/* Are columns with an outlier out of the codes of all rows? */
static bool takes_columns(const struct quant_linear *l) {
    return l->w->outliers == INT8_OUTLIERS_BATCH;
}

enum { MARKED = 64 }; /* columns */

/* Threads share columns, not rows, so that no two write to the same place. */
static void mark_part(void *arg, int part, int n_parts, int thread) {
    const struct quant_linear *l = arg;
    int64_t at, end, k = l->w->k;
    pool_share((k + MARKED - 1) / MARKED, part, n_parts, &at, &end);
    memset(l->is_out + at * MARKED, 0, (size_t)((end - at) * MARKED) * sizeof *l->is_out);
    for (at *= MARKED, end = end * MARKED < k ? end * MARKED : k; at < end; at += MARKED) {
        int64_t n = end - at < MARKED ? end - at : MARKED;
        for (int64_t r = 0; r < l->m; r++) {
            float numbers[MARKED];
            for (int64_t i = 0; i < n; i++) numbers[i] = raw_number(l->raw, r, at + i);
            quant_int8_mark(l->is_out + at, numbers, n, INT8_OUTLIER);
        }
    }
}

/* codes: [K], numbers: [K] of scratch. */
static void quantize_row(struct quant_linear *l, int64_t r, float *numbers, uint8_t *codes) {
    const struct simd *simd = l->cpu->simd;
    int64_t k = l->w->k;
    if (l->raw->dtype == DTYPE_BF16) simd->widen(numbers, row_of(l->raw, r), k);
    else memcpy(numbers, row_of(l->raw, r), (size_t)k * sizeof *numbers);
    if (quant_is_decoded(l->w->quant)) {
        memcpy(l->x + r * k, numbers, (size_t)k * sizeof *numbers);
    } else if (l->w->quant == QUANT_FP8) {
        l->row_scale[r] = quant_fp8(codes, numbers, k);
        simd->decode_f8(l->x + r * k, codes, k);
    } else {
        l->row_scale[r] = quant_int8_activation((int8_t *)codes, numbers, k, INT8_OUTLIER);
        if (takes_columns(l)) quant_int8_take_out((int8_t *)codes, l->is_out, k);
        for (int64_t at = 0; at < k; at += l->span) {
            int64_t n = k - at < l->span ? k - at : l->span;
            simd->decode_i8(l->x + at * l->m + r * n, (int8_t *)codes + at, n);
        }
    }
}

static void quantize_part(void *arg, int part, int n_parts, int thread) {
    struct quant_linear *l = arg;
    int64_t begin, end;
    float *numbers = (float *)(l->scratch + (size_t)thread * l->thread_bytes);
    pool_share(l->m, part, n_parts, &begin, &end);
    for (int64_t r = begin; r < end; r++) quantize_row(l, r, numbers, (uint8_t *)(numbers + l->w->k));
}

/* ---------------------------------------------------------------- weights */

static float absmax_of(const struct weight_segment *s, int64_t block) {
    if (!s->absmax2.data) return ((const float *)s->absmax.data)[block];
    float value = ((const float *)s->map.data)[((const uint8_t *)s->absmax.data)[block]];
    return value * ((const float *)s->absmax2.data)[block / QUANT_NESTED_BLOCK] + s->mean;
}

/* Columns [first, first + n) of a row. */
static void decode_4bit(const struct quant_linear *l, float *out, int64_t row, int64_t first, int64_t n) {
    const struct weight *w = l->w;
    const struct weight_segment *s = weight_segment_of(w, row);
    const uint8_t *packed = (const uint8_t *)w->data + s->offset;
    int64_t at = (row - s->first_row + s->from_row) * w->k + first, end = at + n;
    while (at < end) {
        int64_t block = at / s->block, stop = (block + 1) * s->block < end ? (block + 1) * s->block : end;
        l->cpu->simd->decode4(out, packed, at, stop - at, s->codes, absmax_of(s, block), w->dtype == DTYPE_BF16);
        out += stop - at;
        at = stop;
    }
}

/* The columns behind these are wanted after those of fifteen other rows: more streams than a
 * processor foresees. */
static void prefetch_codes(const uint8_t *codes, int64_t first, int64_t n, int64_t k_pad) {
    for (int64_t at = first; at < first + n && at < k_pad; at += 64) __builtin_prefetch(codes + at);
}

static void decode_fp8_blocks(const struct quant_linear *l, float *out, int64_t row, int64_t first, int64_t n) {
    const struct weight *w = l->w;
    const struct weight_segment *s = weight_segment_of(w, row);
    const uint8_t *codes = (const uint8_t *)w->data + row * w->k_pad;
    int64_t block_row = (row - s->first_row + s->from_row) / w->block_rows, size = w->block_cols, end = first + n;
    prefetch_codes(codes, end, n, w->k_pad);
    const float *scale = (const float *)s->absmax.data + block_row * quant_blocks(w->k, size);
    for (int64_t at = first, stop; at < end; out += stop - at, at = stop) {
        stop = (at / size + 1) * size < end ? (at / size + 1) * size : end;
        l->cpu->simd->decode_f8_scaled(out, codes + at, stop - at, scale[at / size], w->dtype == DTYPE_BF16);
    }
}

static void decode(const struct quant_linear *l, float *out, int64_t row, int64_t first, int64_t n) {
    const struct weight *w = l->w;
    const char *codes = (const char *)w->data + row * w->k_pad + first;
    if (row >= w->n) memset(out, 0, (size_t)n * sizeof *out);
    else if (w->quant == QUANT_INT8) l->cpu->simd->decode_i8(out, (const int8_t *)codes, n);
    else if (w->quant == QUANT_FP8) l->cpu->simd->decode_f8(out, (const uint8_t *)codes, n);
    else if (w->quant == QUANT_FP8_BLOCK) decode_fp8_blocks(l, out, row, first, n);
    else decode_4bit(l, out, row, first, n);
}

/* Columns [first, first + n) of consecutive panels, each [n][PANEL]. */
static void decode_panels(const struct quant_linear *l, float *out, float *rows, int64_t panel, int64_t n_panels,
                          int64_t first, int64_t n) {
    for (int64_t p = 0; p < n_panels; p++)
        for (int64_t at = 0; at < n; at += DECODED) {
            int64_t width = n - at < DECODED ? n - at : DECODED;
            for (int64_t c = 0; c < PANEL; c++)
                decode(l, rows + c * DECODED, (panel + p) * PANEL + c, first + at, width);
            l->cpu->simd->to_panel(out + (p * n + at) * PANEL, rows, DECODED, width);
        }
}

/* ---------------------------------------------------------------- the product */

struct rooms { /* of a thread */
    float *panels; /* [group][span][PANEL] */
    float *rows;   /* [PANEL][DECODED] */
    float *sums;   /* [m][group * PANEL], 8-bit kinds */
    int32_t *integers; /* the same, int8 */
};

static struct rooms rooms_of(const struct quant_linear *l, int thread, size_t *bytes) {
    float *at = (float *)(l->scratch + (size_t)thread * l->thread_bytes);
    size_t panels = (size_t)(l->group * l->span * PANEL), sums = (size_t)(l->m * l->group * PANEL);
    if (quant_is_decoded(l->w->quant)) sums = 0;
    if (bytes) *bytes = (panels + PANEL * DECODED + 2 * sums) * sizeof *at;
    return (struct rooms){at, at + panels, at + panels + PANEL * DECODED,
                          (int32_t *)(void *)(at + panels + PANEL * DECODED + sums)};
}

static float weight_number(const struct weight *w, int64_t row, int64_t k, float scale) {
    float x;
    quant_int8_back(&x, (const int8_t *)w->data + row * w->k_pad + k, scale, 1);
    return number_rounded(x, w->dtype);
}

/* A column's numbers are made once for all rows; each row takes what is its own, in ascending k. */
static void add_outliers(const struct quant_linear *l, float *sums, int64_t ld, int64_t first_column, int64_t n) {
    const float *scale = (const float *)l->w->scale.data + first_column;
    float numbers[MAX_GROUP * PANEL];
    for (int64_t k = 0; k < l->w->k; k++) {
        if (!l->is_out[k]) continue;
        for (int64_t c = 0; c < n; c++) numbers[c] = weight_number(l->w, first_column + c, k, scale[c]);
        for (int64_t r = 0; r < l->m; r++) {
            float x = raw_number(l->raw, r, k);
            if (!takes_columns(l) && fabsf(x) < INT8_OUTLIER) continue;
            for (int64_t c = 0; c < n; c++) sums[r * ld + c] += x * numbers[c];
        }
    }
}

/* What is pending on sums of codes, and on to y. */
static void finish(const struct quant_linear *l, const struct rooms *rooms, int64_t first_column, int64_t n) {
    int64_t ld = l->group * PANEL;
    const float *scale = (const float *)l->w->scale.data + first_column;
    for (int64_t r = 0; r < l->m; r++) {
        float *sums = rooms->sums + r * ld;
        const int32_t *integers = rooms->integers + r * ld;
        for (int64_t c = 0; c < n; c++) {
            if (l->w->quant == QUANT_FP8) sums[c] = number_rounded(sums[c], l->y->dtype) * (l->row_scale[r] * scale[c]);
            else sums[c] = (float)integers[c] * (l->row_scale[r] * scale[c]) * (1.0f / (127 * 127));
        }
    }
    if (l->w->quant == QUANT_INT8) add_outliers(l, rooms->sums, ld, first_column, n);
    for (int64_t r = 0; r < l->m; r++) {
        const float *sums = rooms->sums + r * ld;
        char *y = (char *)row_of(l->y, r) + (size_t)first_column * dtype_bytes(l->y->dtype);
        if (l->y->dtype == DTYPE_BF16) l->cpu->simd->narrow((uint16_t *)(void *)y, sums, n);
        else memcpy(y, sums, (size_t)n * sizeof *sums);
    }
}

static void multiply(const struct quant_linear *l, void *y, int64_t ldy, bool y_bf16, const float *panels,
                     int64_t n_panels, int64_t n_cols, int64_t first, int64_t n) {
    l->cpu->simd->matmul(&(struct matmul){.y = y,
                                          .ldy = ldy,
                                          .y_bf16 = y_bf16,
                                          .x = l->x + first * l->m,
                                          .m = l->m,
                                          .k = n,
                                          .w = panels,
                                          .w_bf16 = false,
                                          .n_panels = n_panels,
                                          .n_cols = n_cols});
}

static void group_product(const struct quant_linear *l, const struct rooms *rooms, int64_t panel, int64_t n_panels) {
    const struct weight *w = l->w;
    int64_t column = panel * PANEL, ld = l->group * PANEL;
    int64_t n_cols = w->n - column < n_panels * PANEL ? w->n - column : n_panels * PANEL;
    if (w->quant == QUANT_INT8) memset(rooms->integers, 0, (size_t)(l->m * ld) * sizeof *rooms->integers);
    for (int64_t first = 0; first < w->k; first += l->span) {
        int64_t n = w->k - first < l->span ? w->k - first : l->span;
        decode_panels(l, rooms->panels, rooms->rows, panel, n_panels, first, n);
        if (quant_is_decoded(w->quant)) {
            char *y = (char *)l->y->data + (size_t)column * dtype_bytes(l->y->dtype);
            multiply(l, y, l->y->shape[1], l->y->dtype == DTYPE_BF16, rooms->panels, n_panels, n_cols, first, n);
            return;
        }
        multiply(l, rooms->sums, ld, false, rooms->panels, n_panels, n_cols, first, n);
        if (w->quant == QUANT_INT8)
            for (int64_t i = 0; i < l->m * ld; i++)
                if (i % ld < n_cols) rooms->integers[i] += (int32_t)rooms->sums[i];
    }
    finish(l, rooms, column, n_cols);
}

static void product_part(void *arg, int part, int n_parts, int thread) {
    const struct quant_linear *l = arg;
    struct rooms rooms = rooms_of(l, thread, NULL);
    int64_t panel, end;
    pool_share(l->w->n_pad / PANEL, part, n_parts, &panel, &end);
    for (; panel < end; panel += l->group)
        group_product(l, &rooms, panel, end - panel < l->group ? end - panel : l->group);
}

/* Of scratch; *fixed: what the threads share. */
static size_t scratch_bytes(struct quant_linear *l, size_t *fixed) {
    size_t k = (size_t)l->w->k, x = (size_t)l->m * k, quantizing = k * sizeof(float) + k, multiplying;
    rooms_of(l, 0, &multiplying);
    l->thread_bytes = ((quantizing > multiplying ? quantizing : multiplying) + 63) / 64 * 64;
    *fixed = (x * 4 + (size_t)l->m * 4 + k + MARKED + 63) / 64 * 64;
    return *fixed + (size_t)pool_n_threads(l->cpu->pool) * l->thread_bytes;
}

/* Room for everything, in one piece of scratch. */
static bool take_scratch(struct quant_linear *l) {
    size_t x = (size_t)l->m * (size_t)l->w->k, fixed, bytes = scratch_bytes(l, &fixed);
    char *at = cpu_scratch(l->cpu, bytes);
    l->x = (float *)(void *)at;
    l->row_scale = l->x + x;
    l->is_out = (bool *)(l->row_scale + l->m);
    l->scratch = at + fixed;
    return at != NULL;
}

static struct quant_linear quant_linear_of(struct cpu_dev *cpu, const struct weight *w, int64_t m) {
    int64_t n_panels = w->n_pad / PANEL, share = n_panels / pool_n_threads(cpu->pool);
    return (struct quant_linear){
        .cpu = cpu,
        .w = w,
        .m = m,
        .span = w->quant == QUANT_INT8 && w->k > SPAN ? SPAN : w->k,
        .group = share < 1 ? 1 : share > MAX_GROUP ? MAX_GROUP : share,
    };
}

size_t cpu_quantized_bytes(struct cpu_dev *cpu, const struct weight *w, int64_t n_rows) {
    struct quant_linear l = quant_linear_of(cpu, w, n_rows);
    size_t fixed;
    return scratch_bytes(&l, &fixed);
}

void cpu_linear_quantized(struct cpu_dev *cpu, struct product *y, const struct activation *x, const struct weight *w) {
    int64_t n_panels = w->n_pad / PANEL, m = x->x.shape[0];
    struct quant_linear l = quant_linear_of(cpu, w, m);
    l.raw = &x->x;
    l.y = &y->y;
    if (!take_scratch(&l)) return;
    int64_t pieces = (w->k + MARKED - 1) / MARKED;
    if (w->quant == QUANT_INT8) pool_run(cpu->pool, mark_part, &l, pool_parts(cpu->pool, pieces, 1.0 * MARKED * (double)m));
    pool_run(cpu->pool, quantize_part, &l, pool_parts(cpu->pool, m, 2.0 * (double)w->k));
    double panel_ns = (double)w->k * (2.0 + 0.31 * (double)m);
    int64_t n_groups = (n_panels + l.group - 1) / l.group;
    pool_run(cpu->pool, product_part, &l, pool_parts(cpu->pool, n_groups, panel_ns * (double)l.group));
}
