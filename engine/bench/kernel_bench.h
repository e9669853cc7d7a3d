/* kernel_bench.h - one operation at a time, on a device without a model: what its cases are
 * made from (kernel_bench.c) and the cases themselves (kernel_cases.c).
 *
 * A case takes memory for several sets of operands, so many that a set has left the caches
 * when its turn comes again; then the operation runs over the sets, round and round, between
 * two stamps of the device's clock. Belongs to the thread that called engine_bench_kernels. */
#ifndef BATCHD_ENGINE_BENCH_KERNEL_BENCH_H
#define BATCHD_ENGINE_BENCH_KERNEL_BENCH_H

#include "engine/engine.h"
#include "kernels/dev.h"
#include "kernels/ops.h"

struct kernel_shape { /* sizes of a model's layer */
    const char *name;
    int32_t hidden, n_heads, n_kv_heads, head_dim, n_rotated, intermediate, vocab;
    bool gated;    /* the MLP has a gate beside up */
    bool parallel; /* attention and MLP side by side, behind one layer norm: Phi */
    int32_t n_experts, top_k; /* 0: one MLP */
};

struct kernel_bench {
    struct dev *dev;
    enum dtype dtype;
    enum quant_kind quant; /* of the weights of layers */
    bool is_cpu;
    const struct kernel_shape *shape;
    struct engine_roof roof;
    engine_kernel_fn *each;
    void *arg;
    uint64_t seed, n_recorded; /* of random numbers; recordings, for their keys */
    int error;       /* the first; later calls do nothing */
    struct err *err;

    /* of the case that runs; bench_case_end gives them back */
    void **memory;
    struct weight **weights;
    int32_t n_memory, n_weights;
    struct kv_cache *kv;
    struct rope rope;
};

/* How many sets of so many bytes a case rotates over. */
int32_t bench_sets(const struct kernel_bench *b, double bytes);

/* Random numbers on the device, good until bench_case_end. After an error: no tensor, NULL. */
struct tensor bench_tensor(struct kernel_bench *b, enum dtype dtype, int64_t rows, int64_t cols);
struct weight *bench_weight(struct kernel_bench *b, int64_t n, int64_t k, enum quant_kind quant);
void bench_kv(struct kernel_bench *b, enum dtype dtype, int32_t n_layers, int32_t n_blocks); /* b->kv */
void bench_case_end(struct kernel_bench *b);

/* A step of n_seqs sequences, each of `rows` rows behind `first` positions that are computed
 * already; of each the last row wants a token if `samples`. The blocks of a sequence are
 * neither together nor in order. */
struct bench_step {
    struct step step;
    int32_t n_blocks; /* of all sequences */
    int32_t *ids;     /* token, position, slot, block table */
    struct step_sequence *sequences;
    struct step_sample *samples;
};
void bench_step_init(struct bench_step *s, int32_t n_seqs, int32_t first, int32_t rows, bool samples);
void bench_step_clear(struct bench_step *s);

/* Run the operation on set i % n_sets. */
typedef void bench_fn(struct kernel_bench *b, void *arg, int32_t i);

/* Time it and hand the figure over. bytes and flop: of one run; the roof is bytes at the copy
 * rate or flop at the matrix rate, whichever takes longer. */
void bench_time(struct kernel_bench *b, const char *kernel, const char *what, double bytes, double flop, bench_fn *fn,
                void *arg, int32_t n_sets);

/* kernel_cases.c: all cases of b->shape. */
void bench_linear(struct kernel_bench *b);
void bench_experts(struct kernel_bench *b);
void bench_attention(struct kernel_bench *b);
void bench_rows(struct kernel_bench *b);
void bench_sample(struct kernel_bench *b);

#endif
