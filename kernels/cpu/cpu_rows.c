/* cpu_rows.c - operations that treat each row by itself; threads share the rows. */
#include "kernels/cpu/cpu.h"

#include <string.h>

struct norm {
    const struct cpu_dev *cpu;
    struct activation *out;
    struct tensor *residual;
    const struct product *y;
    const float *w;
    float eps;
};

static void norm_part(void *arg, int part, int n_parts, int thread) {
    const struct norm *n = arg;
    int64_t begin, end;
    pool_share(n->residual->shape[0], part, n_parts, &begin, &end);
    const float *bias = n->y && n->y->weight ? n->y->weight->bias.data : NULL;
    for (int64_t r = begin; r < end; r++)
        n->cpu->simd->rms_norm(row_of(&n->out->x, r), row_of(n->residual, r), n->y ? row_of(&n->y->y, r) : NULL, bias,
                               n->w, n->residual->shape[1], n->eps, n->residual->dtype == DTYPE_BF16);
}

void cpu_residual_norm(struct dev *dev, struct activation *out, struct tensor *residual, const struct product *y,
                       const struct tensor *w, float eps) {
    struct norm n = {cpu_of(dev), out, residual, y, w->data, eps};
    int parts = pool_parts(n.cpu->pool, residual->shape[0], 0.3 * (double)residual->shape[1]);
    pool_run(n.cpu->pool, norm_part, &n, parts);
}

struct glu {
    const struct cpu_dev *cpu;
    struct activation *out;
    const struct product *gate_up;
};

static void glu_part(void *arg, int part, int n_parts, int thread) {
    const struct glu *g = arg;
    int64_t begin, end;
    pool_share(g->out->x.shape[0], part, n_parts, &begin, &end);
    const float *bias = g->gate_up->weight ? g->gate_up->weight->bias.data : NULL;
    for (int64_t r = begin; r < end; r++)
        g->cpu->simd->glu(row_of(&g->out->x, r), row_of(&g->gate_up->y, r), bias, g->out->x.shape[1],
                          g->out->x.dtype == DTYPE_BF16);
}

void cpu_glu(struct dev *dev, struct activation *out, const struct product *gate_up) {
    struct glu g = {cpu_of(dev), out, gate_up};
    pool_run(g.cpu->pool, glu_part, &g, pool_parts(g.cpu->pool, out->x.shape[0], 1.0 * (double)out->x.shape[1]));
}

void cpu_gather(struct dev *dev, struct activation *out, const struct activation *x, const struct step *step) {
    size_t bytes = (size_t)x->x.shape[1] * dtype_bytes(x->x.dtype);
    for (int32_t s = 0; s < step->n_samples; s++)
        memcpy(row_of(&out->x, s), row_of(&x->x, step->samples[s].row), bytes);
}
