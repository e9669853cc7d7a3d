/* cuda_linear.h - what the files of matrix products share.
 *
 *   cuda_linear.cu       which of them serves a product; the plain kernel
 *   cuda_linear_few.cu   up to 16 rows, by our own kernel; the reference for all others
 *   cuda_linear_tma.cu   the same bits quicker, up to 32 rows, on compute capability 9.0
 *   cuda_linear_8bit.cu  codes of fp8 by codes, on the tensor cores; cuda_linear_int8.cu: of int8
 *   cuda_linear_grouped.cu  many weights at once, for mixtures of experts (its own header)
 *   cuda_linear_lt.cu    cuBLASLt: a product under a given algorithm, and its candidates
 *   cuda_algorithm.cu    which of those may be used, which is quick, and the file that remembers
 *   cuda_weights.cu      weights on their way to the device
 *
 * Batch invariance: a row's sums must not depend on how many rows the step has. Our kernel
 * adds up in ascending steps of 16 columns in one accumulator, and cuBLASLt's algorithms that
 * do not split K have been found to do the same; so any of them may serve a number of rows,
 * once it has been seen to give the reference's bits on the real operands. Codes of 8 bits have
 * cuBLASLt's first algorithm as their reference. */
#ifndef BATCHD_KERNELS_CUDA_LINEAR_H
#define BATCHD_KERNELS_CUDA_LINEAR_H

#include "kernels/cuda/cuda.h"

#include <cublasLt.h>

enum { FEW_ROWS = 16, TMA_ROWS = 32 }; /* the most that each takes */
enum { LINEAR_WORKSPACE = 32 << 20, MAX_CANDIDATES = 16 };

struct linear_shape { /* y[m, n] = x[m, k] w[n, k]^T, without m */
    int64_t n, k, ldw;
    enum dtype in, out; /* in: BF16 or F16, out the same or F32; F8_E4M3, out any of these; I8, out I32 */
};

static inline bool linear_shape_equal(const struct linear_shape *a, const struct linear_shape *b) {
    return a->n == b->n && a->k == b->k && a->ldw == b->ldw && a->in == b->in && a->out == b->out;
}

struct linear_operands {
    void *y;
    const void *x, *w;
};

/* The operands of rows [first, ...) alone. */
static inline struct linear_operands linear_rows(const struct linear_shape *s,
                                                 const struct linear_operands *o, int64_t first) {
    size_t in = dtype_bytes(s->in), out = dtype_bytes(s->out);
    return {(char *)o->y + (size_t)(first * s->n) * out, (const char *)o->x + (size_t)(first * s->k) * in,
            o->w};
}

struct cuda_linear {
    cublasLtHandle_t lt;
    void *workspace;
    struct algorithms *algorithms; /* cuda_algorithm.cu */
};

/* m rows, 1 .. FEW_ROWS. Needs compute capability 8.0, and n and k in multiples of 8. */
void cuda_linear_few(struct cuda_dev *cuda, const struct linear_shape *s, int64_t m,
                     const struct linear_operands *o);

/* 1 .. TMA_ROWS rows; false where the device has no tensor memory accelerator. */
bool cuda_linear_tma(struct cuda_dev *cuda, const struct linear_shape *s, int64_t m,
                     const struct linear_operands *o);

/* cuda_linear_lt.cu. A product under an algorithm; false: it does not run. */
bool lt_multiply(struct cuda_dev *cuda, const struct linear_shape *s, int64_t m,
                 const struct linear_operands *o, const cublasLtMatmulAlgo_t *algorithm);
/* The algorithms that may be used for m rows, the likely quickest first; how many. */
int lt_candidates(struct cuda_dev *cuda, const struct linear_shape *s, int64_t m,
                  cublasLtMatmulAlgo_t out[MAX_CANDIDATES]);
/* Is this algorithm, from a file, one for such a product on this device? */
bool lt_accepts(struct cuda_dev *cuda, const struct linear_shape *s, int64_t m,
                const cublasLtMatmulAlgo_t *algorithm);
/* Its numbers in cublasLtMatmulAlgoConfigAttributes_t, for people. */
void lt_describe(char *out, size_t bytes, const cublasLtMatmulAlgo_t *algorithm);

/* cuda_algorithm.cu */
bool algorithms_open(struct cuda_dev *cuda);
void algorithms_close(struct cuda_dev *cuda);
/* Do this shape's products follow our own kernel's bits? Else cuBLASLt's first algorithm is
 * the reference, and our kernel must not be used. */
bool algorithms_follow_ours(struct cuda_dev *cuda, const struct linear_shape *s, const void *w);
/* Has that been asked before? Then w is not looked at. */
bool algorithms_know(const struct cuda_dev *cuda, const struct linear_shape *s);
/* m rows, by the algorithm for so many. */
void algorithms_multiply(struct cuda_dev *cuda, const struct linear_shape *s, int64_t m,
                         const struct linear_operands *o);

#endif
