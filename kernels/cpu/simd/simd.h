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

#include "kernels/ops.h"

#include <stdbool.h>
#include <stdint.h>

/* A weight panel is 16 output columns as [K][16]. An f32 row of it holds columns
 * 0 1 2 .. 15; a bf16 row holds them as 0 8 1 9 2 10 .. 7 15, so that a load of 32-bit
 * lanes brings columns 0-7 in the low halves and 8-15 in the high halves, and widening
 * them takes a shift and a mask. */
enum { PANEL = 16 };

struct matmul {        /* y[m][n_cols] = x[m][k] w^T for some consecutive panels of w */
    void *y;           /* f32 or bf16; a sum is rounded once */
    int64_t ldy;       /* numbers from row to row */
    bool y_bf16;
    const float *x;    /* [m][k] */
    int64_t m, k;
    const void *w;     /* [n_panels][k][PANEL] */
    bool w_bf16;
    int64_t n_panels, n_cols; /* columns beyond n_cols are not written */
};

struct norm_row {           /* a row of op_residual_norm */
    void *out, *residual;   /* [n] */
    const void *y, *z;      /* [n] or NULL */
    const float *y_bias, *z_bias;
    const struct norm *post, *norm; /* post may be NULL */
    int64_t n;
    bool bf16;
};

struct head {           /* one head of a product, on its way to q or to the cache */
    void *out;          /* [n] */
    bool out_bf16;
    const void *in;     /* [n] */
    bool in_bf16;
    const float *bias;  /* [n] or NULL */
    float clip;         /* 0 = none */
    const struct norm *norm; /* NULL = none */
    const float *cos, *sin; /* [n_rotated / 2] of the position */
    int32_t n, n_rotated;
};

enum { MAX_HEAD_DIM = 256 };

struct attention_row {      /* one query row and head */
    const float *q;         /* [head_dim], a multiple of 8 up to MAX_HEAD_DIM */
    float *out;             /* [head_dim] */
    const void *slab;       /* a layer of the KV cache */
    const int32_t *block_table; /* of the sequence */
    int32_t kv_head, n_kv_heads, head_dim;
    int32_t position;       /* the row's own; keys first_key .. position are visible */
    int32_t first_key;      /* 0, or where the sliding window begins */
    float scale;
    float softcap;          /* 0 = none */
    float slope;            /* ALiBi; 0 = none. The others are attention_shape's */
    float alibi_scale;
    bool alibi_bf16;
    bool bf16;              /* dtype of the cache */
};

struct simd {
    void (*matmul)(const struct matmul *a);
    void (*widen)(float *out, const uint16_t *bf16, int64_t n);
    void (*narrow)(uint16_t *bf16, const float *x, int64_t n);

    void (*residual_norm)(const struct norm_row *row);
    void (*glu)(void *out, const void *gate_up, const float *bias, int64_t n, enum act act, bool bf16);
    void (*act)(void *out, const void *y, const float *bias, int64_t n, enum act act, bool bf16);
    void (*head)(const struct head *h); /* bias, clip, norm, RoPE */
    void (*attend)(const struct attention_row *row);

    /* Quantized weights. decode4: numbers first .. of packed pairs that share an absmax, rounded
     * where bf16 says so, as with decode_f8_scaled. to_panel: sixteen rows, ld apart, into k rows of a panel. */
    void (*decode4)(float *out, const uint8_t *packed, int64_t first, int64_t n, const float codes[16], float absmax,
                    bool bf16);
    void (*decode_i8)(float *out, const int8_t *codes, int64_t n);
    void (*decode_f8)(float *out, const uint8_t *codes, int64_t n);
    void (*decode_f8_scaled)(float *out, const uint8_t *codes, int64_t n, float scale, bool bf16);
    void (*to_panel)(float *panel, const float *rows, int64_t ld, int64_t k);

    /* l = (logits + bias) / temperature; bias may be NULL, l may be logits. */
    void (*softcap)(float *x, int64_t n, float cap); /* x = cap tanh(x / cap) */
    void (*logits)(float *l, const float *logits, const float *bias, float temperature, int64_t n);
    float (*max)(const float *x, int64_t n, bool *has_nan);    /* of what is not NaN; -inf for n = 0 */
    void (*exps)(float *out, const float *x, int64_t n); /* e^x; the same bits as in the others */
};

#endif
