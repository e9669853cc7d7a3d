/* aid_quant.h - quantized weights beside what their codes are worth, which quantize.h's functions
 * make on the host, and rows of activations with outliers. */
#ifndef BATCHD_TESTS_AID_QUANT_H
#define BATCHD_TESTS_AID_QUANT_H

#include "tests/aid_ops.h"

enum { N_KINDS = 5 };
extern const enum quant_kind kinds[N_KINDS]; /* but for fp8 with scales of blocks: test_op_fp8_blocks.c */

struct reference {    /* of a weight; its numbers go with the bed */
    struct weight *w; /* the caller's */
    float *codes;     /* [n][k]: 8-bit kinds, without the scale */
    float *value;     /* [n][k] in the weight's dtype */
    float *scale;     /* [n] */
};

/* A weight of two random tensors, the second loaded first. */
struct reference reference_new(struct bed *b, int64_t n, int64_t k, enum quant_kind kind);

/* x[m, k], of which about one number in 40 is an outlier. */
struct tensor make_rows(struct bed *b, int64_t m, int64_t k);

#endif
