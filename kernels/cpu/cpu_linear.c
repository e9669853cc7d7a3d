/* cpu_linear.c - weights in panels, the product with them, and the embedding,
 * which is read from the same panels.
 *
 * Layout of a weight: [n_pad / 16][K][16], element (n, k) in panel n / 16, row k, at
 * panel_column(n % 16). Threads share panels and rows, never a sum. */
#include "kernels/cpu/cpu.h"

#include <assert.h>
#include <string.h>

size_t cpu_weight_bytes(int64_t n_pad, int64_t k_pad, enum dtype dtype) {
    return (size_t)n_pad * (size_t)k_pad * dtype_bytes(dtype);
}

/* Where a panel's row keeps a column; see PANEL in simd.h. */
static int64_t panel_column(int64_t column, enum dtype dtype) {
    return dtype == DTYPE_BF16 ? column % 8 * 2 + column / 8 : column;
}

/* Element (n, 0); (n, k) is k * PANEL further. */
static int64_t column_start(const struct weight *w, int64_t n) {
    return n / PANEL * w->k * PANEL + panel_column(n % PANEL, w->dtype);
}

/* ---------------------------------------------------------------- loading */

struct loading {
    struct weight *w;
    int64_t first_row;
    const struct tensor *host;
};

static float load_f32(const char *at) {
    float f;
    memcpy(&f, at, sizeof f);
    return f;
}

static uint16_t load_u16(const char *at) {
    uint16_t h;
    memcpy(&h, at, sizeof h);
    return h;
}

/* One checkpoint row, which is one column of its panel. */
static void load_row(struct weight *w, int64_t n, const char *from, enum dtype dtype) {
    int64_t at = column_start(w, n), k = w->k;
    float *f = (float *)w->data + at;
    uint16_t *h = (uint16_t *)w->data + at;
    bool to_f32 = w->dtype == DTYPE_F32;
    if (dtype == DTYPE_F32 && to_f32)
        for (int64_t i = 0; i < k; i++) f[i * PANEL] = load_f32(from + 4 * i);
    else if (dtype == DTYPE_F32)
        for (int64_t i = 0; i < k; i++) h[i * PANEL] = bf16_from_f32(load_f32(from + 4 * i));
    else if (dtype == DTYPE_BF16 && to_f32)
        for (int64_t i = 0; i < k; i++) f[i * PANEL] = bf16_to_f32(load_u16(from + 2 * i));
    else if (dtype == DTYPE_BF16)
        for (int64_t i = 0; i < k; i++) h[i * PANEL] = load_u16(from + 2 * i);
    else if (to_f32)
        for (int64_t i = 0; i < k; i++) f[i * PANEL] = f16_to_f32(load_u16(from + 2 * i));
    else
        for (int64_t i = 0; i < k; i++) h[i * PANEL] = bf16_from_f32(f16_to_f32(load_u16(from + 2 * i)));
}

static void load_part(void *arg, int part, int n_parts, int thread) {
    const struct loading *l = arg;
    int64_t begin, end, row_bytes = l->w->k * (int64_t)dtype_bytes(l->host->dtype);
    pool_share(l->host->shape[0], part, n_parts, &begin, &end);
    for (int64_t r = begin; r < end; r++)
        load_row(l->w, l->first_row + r, (const char *)l->host->data + r * row_bytes, l->host->dtype);
}

void cpu_weight_load(struct dev *dev, struct weight *w, int64_t first_row, const struct tensor *host) {
    struct loading l = {w, first_row, host};
    struct pool *pool = cpu_of(dev)->pool;
    pool_run(pool, load_part, &l, pool_parts(pool, host->shape[0], (double)w->k));
}

/* ---------------------------------------------------------------- the product */

struct widening {
    const struct cpu_dev *cpu;
    float *out;
    const uint16_t *x;
    int64_t n;
};

static void widen_part(void *arg, int part, int n_parts, int thread) {
    const struct widening *a = arg;
    int64_t begin, end;
    pool_share(a->n, part, n_parts, &begin, &end);
    a->cpu->simd->widen(a->out + begin, a->x + begin, end - begin);
}

/* Activations as f32: themselves, or widened into scratch. */
static const float *f32_rows(struct cpu_dev *cpu, const struct tensor *x) {
    if (x->dtype == DTYPE_F32) return x->data;
    int64_t n = x->shape[0] * x->shape[1];
    struct widening a = {cpu, cpu_scratch(cpu, (size_t)n * sizeof(float)), x->data, n};
    if (a.out) pool_run(cpu->pool, widen_part, &a, pool_parts(cpu->pool, n, 0.1));
    return a.out;
}

void cpu_linear_reserve(struct dev *dev, const struct weight *w, int64_t max_rows) {
    struct cpu_dev *cpu = cpu_of(dev);
    if (w->quant != QUANT_NONE) cpu_scratch(cpu, cpu_quantized_bytes(cpu, w, max_rows));
    else if (w->dtype != DTYPE_F32) cpu_scratch(cpu, (size_t)max_rows * (size_t)w->k * sizeof(float));
}

struct linear {
    const struct cpu_dev *cpu;
    const struct weight *w;
    const float *x; /* [m][k] */
    const struct tensor *y;
    int64_t m;
    int row_parts; /* the rows are cut too where there are fewer panels than parts */
};

static void linear_part(void *arg, int part, int n_parts, int thread) {
    const struct linear *l = arg;
    const struct weight *w = l->w;
    int64_t panel, panel_end, row, row_end;
    pool_share(w->n_pad / PANEL, part / l->row_parts, n_parts / l->row_parts, &panel, &panel_end);
    pool_share(l->m, part % l->row_parts, l->row_parts, &row, &row_end);
    if (panel == panel_end || row == row_end) return;
    l->cpu->simd->matmul(&(struct matmul){
        .y = (char *)row_of(l->y, row) + (size_t)(panel * PANEL) * dtype_bytes(l->y->dtype),
        .ldy = l->y->shape[1],
        .y_bf16 = l->y->dtype == DTYPE_BF16,
        .x = l->x + row * w->k,
        .m = row_end - row,
        .k = w->k,
        .w = (const char *)w->data + (size_t)(panel * w->k * PANEL) * dtype_bytes(w->dtype),
        .w_bf16 = w->dtype == DTYPE_BF16,
        .n_panels = panel_end - panel,
        .n_cols = w->n - panel * PANEL,
    });
}

enum { ROWS_PER_PART = 24 }; /* fewer would read the weights too often */

void cpu_linear(struct dev *dev, struct product *y, const struct activation *x, const struct weight *w) {
    struct cpu_dev *cpu = cpu_of(dev);
    if (w->quant != QUANT_NONE) {
        cpu_linear_quantized(cpu, y, x, w);
        return;
    }
    struct linear l = {cpu, w, f32_rows(cpu, &x->x), &y->y, x->x.shape[0], 1};
    if (!l.x) return;
    int64_t n_panels = w->n_pad / PANEL;
    double read_ns = w->dtype == DTYPE_BF16 ? 0.2 : 0.5, panel_ns = (double)w->k * (read_ns + 0.31 * (double)l.m);
    int parts = pool_parts(cpu->pool, n_panels * (1 + l.m / ROWS_PER_PART), panel_ns / (double)(1 + l.m / ROWS_PER_PART));
    int panel_parts = parts < n_panels ? parts : (int)n_panels;
    l.row_parts = parts / panel_parts;
    pool_run(cpu->pool, linear_part, &l, panel_parts * l.row_parts);
}

/* ---------------------------------------------------------------- the embedding */

struct embedding {
    const struct dev *dev;
    struct tensor *residual;
    const struct weight *table;
    float scale;
    const struct step *step;
};

static void note_token(const struct embedding *e, int64_t r, int32_t token) {
    const struct step *step = e->step;
    *history_at(e->dev->history, step->block_table, step->block_table_stride, step->slot[r], step->position[r]) = token;
}

static void embed_part(void *arg, int part, int n_parts, int thread) {
    const struct embedding *e = arg;
    const struct weight *table = e->table;
    float scale = e->scale;
    int64_t begin, end;
    assert(table->quant == QUANT_NONE);
    pool_share(e->step->n_rows, part, n_parts, &begin, &end);
    for (int64_t r = begin; r < end; r++) {
        int32_t token = e->step->token[r];
        if (token < 0) token = e->dev->last_sample[~token];
        if (token < 0) token = 0; /* a surplus row behind a draw that failed; nobody reads it */
        assert(token < table->n);
        if (e->dev->history) note_token(e, r, token);
        void *out = row_of(e->residual, r);
        int64_t at = column_start(table, token);
        const uint16_t *h = (const uint16_t *)table->data + at;
        const float *f = (const float *)table->data + at;
        if (table->dtype == DTYPE_BF16 && scale == 1.0f)
            for (int64_t k = 0; k < table->k; k++) ((uint16_t *)out)[k] = h[k * PANEL];
        else if (table->dtype == DTYPE_BF16)
            for (int64_t k = 0; k < table->k; k++)
                ((uint16_t *)out)[k] = bf16_from_f32(scale * bf16_to_f32(h[k * PANEL]));
        else
            for (int64_t k = 0; k < table->k; k++) ((float *)out)[k] = scale * f[k * PANEL];
    }
}

void cpu_embed(struct dev *dev, struct tensor *residual, const struct weight *table, float scale,
               const struct step *step) {
    struct embedding e = {dev, residual, table, scale, step};
    struct pool *pool = cpu_of(dev)->pool;
    pool_run(pool, embed_part, &e, pool_parts(pool, step->n_rows, (double)table->k));
}
