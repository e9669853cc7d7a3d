/* cpu_linear.c - weights in panels, the product with them, and the embedding,
 * which is read from the same panels.
 *
 * Layout of a weight: [n_pad / 16][K][16], element (n, k) at panel n / 16,
 * row k, column n % 16. Threads share the panels, never a sum. */
#include "base/mem.h"
#include "kernels/cpu/cpu.h"

#include <string.h>

size_t cpu_weight_bytes(int64_t n_pad, int64_t k_pad, enum dtype dtype) {
    return (size_t)n_pad * (size_t)k_pad * dtype_bytes(dtype);
}

static int64_t panel_index(const struct weight *w, int64_t n, int64_t k) {
    return (n / PANEL * w->k + k) * PANEL + n % PANEL;
}

static float host_float(const char *at, enum dtype dtype) {
    float f;
    uint16_t h;
    if (dtype == DTYPE_F32) {
        memcpy(&f, at, 4);
        return f;
    }
    memcpy(&h, at, 2);
    return dtype == DTYPE_BF16 ? bf16_to_f32(h) : f16_to_f32(h);
}

void cpu_weight_load(struct dev *dev, struct weight *w, int64_t first_row, const struct tensor *host) {
    size_t step = dtype_bytes(host->dtype);
    const char *at = host->data;
    for (int64_t r = 0; r < host->shape[0]; r++)
        for (int64_t k = 0; k < w->k; k++, at += step) {
            int64_t i = panel_index(w, first_row + r, k);
            if (w->dtype == DTYPE_BF16) ((uint16_t *)w->data)[i] = bf16_from_f32(host_float(at, host->dtype));
            else ((float *)w->data)[i] = host_float(at, host->dtype);
        }
}

struct linear {
    const struct cpu_dev *cpu;
    const struct weight *w;
    const float *x; /* [m][k] */
    float *y;       /* [m][ldy] */
    int64_t m, ldy;
};

static void linear_part(void *arg, int part, int n_parts) {
    const struct linear *l = arg;
    int64_t begin, end, k = l->w->k;
    pool_share(l->w->n_pad / PANEL, part, n_parts, &begin, &end);
    if (begin == end) return;
    bool bf16 = l->w->dtype == DTYPE_BF16;
    const char *panels = (const char *)l->w->data + (size_t)(begin * k * PANEL) * dtype_bytes(l->w->dtype);
    l->cpu->simd->matmul(l->y + begin * PANEL, l->ldy, l->x, k, l->m, panels, bf16, k, end - begin,
                         l->w->n - begin * PANEL);
}

/* Activations and products of other dtypes pass through f32 scratch; a sum is rounded once. */
void cpu_linear(struct dev *dev, struct product *y, const struct activation *x, const struct weight *w) {
    struct cpu_dev *cpu = cpu_of(dev);
    int64_t m = x->x.shape[0];
    bool widen = x->x.dtype == DTYPE_BF16, narrow = y->y.dtype == DTYPE_BF16;
    size_t x_floats = widen ? (size_t)(m * w->k + 15) / 16 * 16 : 0, y_floats = narrow ? (size_t)(m * w->n) : 0;
    float *scratch = cpu_scratch(cpu, (x_floats + y_floats) * sizeof *scratch);
    struct linear l = {cpu, w, x->x.data, y->y.data, m, w->n};
    if (widen) {
        cpu->simd->widen(scratch, x->x.data, m * w->k);
        l.x = scratch;
    }
    if (narrow) l.y = scratch + x_floats;
    pool_run(cpu->pool, linear_part, &l);
    if (narrow) cpu->simd->narrow(y->y.data, l.y, m * w->n);
}

void cpu_embed(struct dev *dev, struct tensor *residual, const struct weight *table, const struct step *step) {
    for (int32_t r = 0; r < step->n_rows; r++) {
        int32_t token = step->token[r];
        if (token < 0) token = dev->last_sample[~token];
        if (token < 0) token = 0; /* a surplus row behind a draw that failed; nobody reads it */
        void *out = row_of(residual, r);
        for (int64_t k = 0; k < table->k; k++) {
            int64_t i = panel_index(table, token, k);
            if (table->dtype == DTYPE_BF16) ((uint16_t *)out)[k] = ((const uint16_t *)table->data)[i];
            else ((float *)out)[k] = ((const float *)table->data)[i];
        }
    }
}
