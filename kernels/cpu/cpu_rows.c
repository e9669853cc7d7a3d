/* cpu_rows.c - operations that treat each row by itself; threads share the rows. */
#include "kernels/cpu/cpu.h"

#include <string.h>

static const float *bias_of(const struct product *y) {
    return y && y->weight ? y->weight->bias.data : NULL;
}

struct norming {
    const struct cpu_dev *cpu;
    struct activation *out;
    struct tensor *residual;
    const struct addend *add;
    const struct norm *norm;
};

static void norm_part(void *arg, int part, int n_parts, int thread) {
    const struct norming *n = arg;
    const struct addend *add = n->add;
    int64_t begin, end;
    pool_share(n->residual->shape[0], part, n_parts, &begin, &end);
    for (int64_t r = begin; r < end; r++)
        n->cpu->simd->residual_norm(&(struct norm_row){
            .out = row_of(&n->out->x, r),
            .residual = row_of(n->residual, r),
            .y = add->y ? row_of(&add->y->y, r) : NULL,
            .z = add->z ? row_of(&add->z->y, r) : NULL,
            .y_bias = bias_of(add->y),
            .z_bias = bias_of(add->z),
            .post = add->post,
            .norm = n->norm,
            .n = n->residual->shape[1],
            .bf16 = n->residual->dtype == DTYPE_BF16,
        });
}

void cpu_residual_norm(struct dev *dev, struct activation *out, struct tensor *residual, const struct addend *add,
                       const struct norm *norm) {
    struct norming n = {cpu_of(dev), out, residual, add, norm};
    int parts = pool_parts(n.cpu->pool, residual->shape[0], 0.3 * (double)residual->shape[1]);
    pool_run(n.cpu->pool, norm_part, &n, parts);
}

struct activating {
    void (*row)(void *out, const void *y, const float *bias, int64_t n, enum act act, bool bf16); /* of simd.h */
    struct activation *out;
    const struct product *in;
    enum act act;
};

static void act_part(void *arg, int part, int n_parts, int thread) {
    const struct activating *a = arg;
    int64_t begin, end;
    pool_share(a->out->x.shape[0], part, n_parts, &begin, &end);
    for (int64_t r = begin; r < end; r++)
        a->row(row_of(&a->out->x, r), row_of(&a->in->y, r), bias_of(a->in), a->out->x.shape[1], a->act,
               a->out->x.dtype == DTYPE_BF16);
}

static void act_rows(struct dev *dev, struct activating *a) {
    struct pool *pool = cpu_of(dev)->pool;
    pool_run(pool, act_part, a, pool_parts(pool, a->out->x.shape[0], 1.0 * (double)a->out->x.shape[1]));
}

void cpu_glu(struct dev *dev, struct activation *out, const struct product *gate_up, enum act act) {
    act_rows(dev, &(struct activating){cpu_of(dev)->simd->glu, out, gate_up, act});
}

void cpu_act(struct dev *dev, struct activation *out, const struct product *y, enum act act) {
    act_rows(dev, &(struct activating){cpu_of(dev)->simd->act, out, y, act});
}

void cpu_gather(struct dev *dev, struct activation *out, const struct activation *x, const struct step *step) {
    size_t bytes = (size_t)x->x.shape[1] * dtype_bytes(x->x.dtype);
    for (int32_t s = 0; s < step->n_samples; s++)
        memcpy(row_of(&out->x, s), row_of(&x->x, step->samples[s].row), bytes);
}

struct finishing {
    const struct cpu_dev *cpu;
    struct product *logits;
    float softcap;
};

static void finish_part(void *arg, int part, int n_parts, int thread) {
    const struct finishing *f = arg;
    int64_t begin, end, n = f->logits->y.shape[1];
    pool_share(f->logits->y.shape[0], part, n_parts, &begin, &end);
    for (int64_t r = begin; r < end; r++) {
        float *row = row_of(&f->logits->y, r);
        f->cpu->simd->logits(row, row, bias_of(f->logits), 1.0f, n);
        if (f->softcap > 0) f->cpu->simd->softcap(row, n, f->softcap);
    }
}

void cpu_logits_finish(struct dev *dev, struct product *logits, float softcap) {
    struct finishing f = {cpu_of(dev), logits, softcap};
    int64_t rows = logits->y.shape[0];
    pool_run(f.cpu->pool, finish_part, &f, pool_parts(f.cpu->pool, rows, 1.0 * (double)logits->y.shape[1]));
}
