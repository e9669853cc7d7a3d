/* aid_norm.c - see aid_norm.h. */
#include "tests/aid_norm.h"

#include <math.h>

struct random_norm norm_new(struct bed *b, enum norm_kind kind, int n, bool has_bias) {
    struct random_norm r = {.norm = {.kind = kind, .eps = 1e-5f}, .w = bed_floats(b, n), .n = n};
    for (int i = 0; i < n; i++) r.w[i] = (kind != NORM_RMS_ONE_PLUS) + bed_random(b);
    r.norm.weight = bed_tensor(b, DTYPE_F32, n, 1, r.w);
    if (!has_bias) return r;
    r.bias = bed_floats(b, n);
    for (int i = 0; i < n; i++) r.bias[i] = bed_random(b);
    r.norm.bias = bed_tensor(b, DTYPE_F32, n, 1, r.bias);
    return r;
}

void naive_norm(double *out, const float *x, const struct random_norm *norm) {
    int n = norm->n;
    double mean = 0, squares = 0;
    for (int i = 0; i < n; i++) mean += norm->norm.kind == NORM_LAYER ? (double)x[i] / n : 0;
    for (int i = 0; i < n; i++) squares += ((double)x[i] - mean) * ((double)x[i] - mean);
    double scale = 1 / sqrt(squares / n + (double)norm->norm.eps);
    for (int i = 0; i < n; i++) {
        double weight = norm->norm.kind == NORM_RMS_ONE_PLUS ? 1 + (double)norm->w[i] : (double)norm->w[i];
        out[i] = ((double)x[i] - mean) * scale * weight + (norm->bias ? (double)norm->bias[i] : 0);
    }
}

double size_of(const float *x, int n) {
    double most = 0;
    for (int i = 0; i < n; i++) most = fmax(most, fabs((double)x[i]));
    return most;
}

double norm_slack(const struct bed *b, const struct random_norm *norm, double want, double size, int column) {
    enum norm_kind kind = norm->norm.kind;
    if (kind == NORM_RMS && b->dtype != DTYPE_F32) return fabs(want) * 0x1p-8; /* rounded twice */
    double center = kind == NORM_LAYER ? size * fabs((double)norm->w[column]) : 0;
    double bias = norm->bias ? fabs((double)norm->bias[column]) : 0;
    return (fabs(want) + bias + center) * (norm->n + 8) * 0x1p-23;
}
