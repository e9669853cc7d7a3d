/* aid_norm.h - a norm with random weights, what it is to give in double precision, and how
 * far from that a result may be. */
#ifndef BATCHD_TESTS_AID_NORM_H
#define BATCHD_TESTS_AID_NORM_H

#include "tests/aid_ops.h"

struct random_norm { /* its numbers go with the bed */
    struct norm norm;
    float *w, *bias; /* [n], what was loaded; bias NULL = none */
    int n;
};

struct random_norm norm_new(struct bed *b, enum norm_kind kind, int n, bool has_bias);

/* out[n] of a row x[n]. */
void naive_norm(double *out, const float *x, const struct random_norm *norm);

/* How far from `want` the number in `column` may be. Near a mean that is much larger than the
 * deviation a difference keeps fewer bits: hence `size`, the row's largest number. */
double norm_slack(const struct bed *b, const struct random_norm *norm, double want, double size, int column);
double size_of(const float *x, int n); /* of the largest in x[n] */

#endif
