/* simd.h - the inner loops of the CPU device, once per instruction set.
 *
 * The files of this folder are compiled several times, each time with another
 * -march and SIMD_VARIANT, and each time fill one struct simd. Nothing outside
 * may use wide vectors, and nothing in here is called but through the table.
 *
 * Order of arithmetic is part of the contract: the same numbers in give the same
 * bits out, whatever the number of rows and whichever thread runs. Lanes hold
 * output columns, or a fixed set of eight partial sums; a multiply-add is fused
 * where the instruction set has it, always. */
#ifndef BATCHD_KERNELS_CPU_SIMD_SIMD_H
#define BATCHD_KERNELS_CPU_SIMD_SIMD_H

#include <stdbool.h>
#include <stdint.h>

enum { PANEL = 16 }; /* output columns of a weight panel, laid out [K][PANEL] */

struct attention_row {      /* one query row and head */
    const float *q;         /* [head_dim] */
    float *out;             /* [head_dim] */
    const void *slab;       /* a layer of the KV cache */
    const int32_t *block_table; /* of the sequence */
    int32_t kv_head, n_kv_heads, head_dim;
    int32_t position;       /* the row's own; keys 0 .. position are visible */
    int32_t first_key;      /* 0, or where the sliding window begins */
    float scale;
    bool bf16;              /* dtype of the cache */
    float *scratch;         /* 2 * head_dim numbers */
};

struct simd {
    /* y[m][ldy] = x[m][k] w^T for one or more panels: columns [0, 16 n_panels) of y, of
     * which the last panel's are written up to n_cols. x is f32 rows of ldx; w is f32 or bf16. */
    void (*matmul)(float *y, int64_t ldy, const float *x, int64_t ldx, int64_t m, const void *w, bool w_bf16,
                   int64_t k, int64_t n_panels, int64_t n_cols);

    void (*widen)(float *out, const uint16_t *bf16, int64_t n);
    void (*narrow)(uint16_t *bf16, const float *x, int64_t n);

    /* residual += y (+ bias), rounded where bf16 says so; out = residual / rms * w. */
    void (*rms_norm)(void *out, void *residual, const void *y, const float *bias, const float *w, int64_t n,
                     float eps, bool bf16);
    void (*glu)(void *out, const void *gate_up, const float *bias, int64_t n, bool bf16);
    void (*attend)(const struct attention_row *row);
    void (*exps)(float *out, const float *x, int64_t n); /* e^x; the same bits as in the others */
};

#endif
