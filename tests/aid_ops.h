/* aid_ops.h - a device to try operations on, with tensors, weights and steps that go
 * away with it, and each case on every kind of device that this machine has.
 *
 * Numbers go to the device and come back through dev_upload and dev_download only, so
 * that a case holds for any backend. */
#ifndef BATCHD_TESTS_AID_OPS_H
#define BATCHD_TESTS_AID_OPS_H

#include "tests/unit.h"

#include "kernels/ops.h"

enum { BED_SLOTS = 4, BED_STRIDE = 48, BED_BLOCKS = BED_SLOTS * BED_STRIDE, BED_ROWS = 256 };

struct bed {
    struct dev *dev;
    enum dtype dtype; /* compute dtype: F32 or BF16 */
    uint64_t random;
    uint64_t digest;  /* of all that bed_get has brought back */
    void **held[3];   /* what bed_clear gives back: host memory, device memory, weights */
    size_t n_held[3];
};

/* Run `fn` on every instruction set, with one thread and with two, in F32 and in BF16; on a
 * GPU where test_device() says so. Fails where two threads give other bits than one. */
void each_bed(void (*fn)(struct bed *));

float bed_random(struct bed *b); /* uniform in [-1, 1) */
int32_t bed_random_below(struct bed *b, int32_t n);
float *bed_floats(struct bed *b, int64_t n); /* zeros on the host */

/* Device memory; NULL numbers leave zeros. Numbers are rounded to the dtype. */
struct tensor bed_tensor(struct bed *b, enum dtype dtype, int64_t rows, int64_t cols, const float *numbers);
struct tensor bed_random_tensor(struct bed *b, enum dtype dtype, int64_t rows, int64_t cols, float range);
float *bed_get(struct bed *b, const struct tensor *t); /* as f32, on the host */

/* w[n, k] and, where bias is asked for, n numbers of it; *w_host, *bias_host: what was loaded. */
struct weight *bed_weight(struct bed *b, int64_t n, int64_t k, enum dtype dtype, float **w_host, float **bias_host);

struct tensor rows_from(const struct tensor *t, int64_t first, int64_t n); /* a view of n rows */
float rounded(float x, enum dtype dtype);

/* |got - want| must not exceed `slack`, nor, for BF16, that and the last rounding. */
void assert_near(const struct bed *b, double got, double want, double slack, enum dtype dtype, const char *what,
                 int64_t row, int64_t column);

/* The product of any run of m rows, for each count m, has the bits of the same rows in that of all of x. */
void assert_alone_as_together(struct bed *b, const struct weight *w, const struct tensor *x, const int *counts,
                              int n_counts);

struct bed_step { /* all zero but for table = empty */
    struct step step;
    int32_t token[BED_ROWS], position[BED_ROWS], slot[BED_ROWS];
    struct step_sequence sequences[BED_ROWS];
    int32_t table[BED_SLOTS * BED_STRIDE];
};

/* An empty step whose slots own all blocks in an order that `shuffle` names. */
void step_begin(struct bed_step *s, uint64_t shuffle);
void step_add(struct bed_step *s, int32_t slot, int32_t first_position, int32_t n_rows);

#endif
