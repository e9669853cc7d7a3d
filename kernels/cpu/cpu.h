/* cpu.h - the CPU device from inside.
 *
 * Operations run on the calling thread and the device's pool, and are done when
 * they return. Inner loops come from a table (simd.h), chosen for this processor. */
#ifndef BATCHD_KERNELS_CPU_CPU_H
#define BATCHD_KERNELS_CPU_CPU_H

#include "kernels/backend.h"
#include "kernels/cpu/pool.h"
#include "kernels/cpu/simd/simd.h"

struct cpu_dev {
    struct dev dev;           /* first: a struct dev * of this backend is one of these */
    struct pool *pool;
    const struct simd *simd;
    size_t n_allocations;     /* that have not come back */
    void *scratch;            /* grows as operations ask, never shrinks */
    size_t scratch_bytes;
    int64_t stamps[N_STAMPS]; /* clock_mono_ns */
};

static inline struct cpu_dev *cpu_of(struct dev *dev) {
    return (struct cpu_dev *)dev;
}

/* At least `bytes` of scratch for the operation that runs now; NULL, and the device has
 * failed, where memory is short. */
void *cpu_scratch(struct cpu_dev *cpu, size_t bytes);

/* Row `i` of a tensor of any dtype. */
static inline void *row_of(const struct tensor *t, int64_t i) {
    return (char *)t->data + (size_t)(i * t->shape[1]) * dtype_bytes(t->dtype);
}

/* cpu_linear.c */
size_t cpu_weight_bytes(int64_t n_pad, int64_t k_pad, enum dtype dtype);
void cpu_weight_load(struct dev *dev, struct weight *w, int64_t first_row, const struct tensor *host);
void cpu_linear(struct dev *dev, struct product *y, const struct activation *x, const struct weight *w);
void cpu_linear_reserve(struct dev *dev, const struct weight *w, int64_t max_rows);
void cpu_embed(struct dev *dev, struct tensor *residual, const struct weight *table, float scale,
               const struct step *step);

/* cpu_quant.c: cpu_linear where the weight is quantized. */
void cpu_linear_quantized(struct cpu_dev *cpu, struct product *y, const struct activation *x, const struct weight *w);
size_t cpu_quantized_bytes(struct cpu_dev *cpu, const struct weight *w, int64_t n_rows); /* of scratch */

/* cpu_rows.c */
void cpu_residual_norm(struct dev *dev, struct activation *out, struct tensor *residual, const struct addend *add,
                       const struct norm *norm);
void cpu_glu(struct dev *dev, struct activation *out, const struct product *gate_up, enum act act);
void cpu_act(struct dev *dev, struct activation *out, const struct product *y, enum act act);
void cpu_gather(struct dev *dev, struct activation *out, const struct activation *x, const struct step *step);
void cpu_logits_finish(struct dev *dev, struct product *logits, float softcap);

/* cpu_moe.c */
void cpu_moe_experts(struct dev *dev, struct tensor *out, const struct activation *x, const struct product *router,
                     const struct moe *moe, const struct moe_room *room);

/* cpu_attention.c */
size_t cpu_attention_bytes(struct cpu_dev *cpu, const struct step_limits *limits); /* of scratch, at most */
void cpu_qkv_finish(struct dev *dev, struct tensor *q, struct kv_cache *kv, int32_t layer,
                    const struct product *qkv, const struct attention_shape *shape, const struct head_rules *rules,
                    const struct step *step);
void cpu_attention(struct dev *dev, struct activation *out, const struct tensor *q, const struct kv_cache *kv,
                   int32_t layer, const struct attention_shape *shape, const struct step *step);

/* cpu_sample.c */
void cpu_sample(struct dev *dev, int32_t *drawn, int32_t *last_sample, struct sample_logprobs *logprobs,
                const struct product *logits, const struct step *step);
void cpu_sample_reserve(struct dev *dev, int64_t n_samples, int64_t vocab);

#endif
