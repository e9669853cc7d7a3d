/* cuda_linear_grouped.h - products of many weights at once: the experts of a mixture.
 *
 * The rows of x lie sorted by group, and which rows are whose is known on the device alone:
 * rows first[g] .. first[g + 1] - 1 are multiplied with w[g]. A row's bits are those of
 * cuda_linear_few.cu, the reference of all products, whatever else is in its group. */
#ifndef BATCHD_KERNELS_CUDA_LINEAR_GROUPED_H
#define BATCHD_KERNELS_CUDA_LINEAR_GROUPED_H

#include "kernels/cuda/cuda.h"

enum { MOST_GROUPS = 16 };

struct group_weights { /* w[n, k] of each group, on the device */
    enum dtype dtype;  /* BF16 or F16 */
    int32_t n_groups;  /* 1 .. MOST_GROUPS */
    int64_t n, k, ld;  /* multiples of 8; ld: numbers from row to row */
    const void *of[MOST_GROUPS];
};

/* Weights of one shape as groups. False where they cannot be: they are quantized, or not in
 * BF16 or F16, or not in multiples of 8, or too many, or the device is below compute capability
 * 8.0. */
bool cuda_group_weights(struct group_weights *out, const struct cuda_dev *cuda, struct weight *const *w,
                        int32_t n_groups);

/* y[P, n]; x[P, k], of the weights' dtype; first: i32 [n_groups + 1] on the device, ascending.
 * Rows outside of all groups are left as they are. */
void cuda_linear_grouped(struct cuda_dev *cuda, struct tensor *y, const struct tensor *x,
                         const struct group_weights *w, const int32_t *first);

#endif
