/* cuda_linear_grouped.h - products of many weights at once: the experts of a mixture.
 *
 * The rows of x lie sorted by group, and which rows are whose is known on the device alone:
 * rows first[g] .. first[g + 1] - 1 are multiplied with w[g]. A row's bits are those of
 * cuda_linear_few.cu, the reference of all products, whatever else is in its group. */
#ifndef BATCHD_KERNELS_CUDA_LINEAR_GROUPED_H
#define BATCHD_KERNELS_CUDA_LINEAR_GROUPED_H

#include "kernels/cuda/cuda.h"

enum { MOST_GROUPS = 16 };

/* Can these weights, of one shape, be groups? They are BF16 or F16 as x is, not quantized, in
 * multiples of 8, and the device is of compute capability 8.0 or above. */
bool cuda_is_groupable(const struct cuda_dev *cuda, enum dtype x, struct weight *const *w, int32_t n_groups);

/* y[P, n]; x[P, k]; first: i32 [n_groups + 1] on the device, ascending from 0, the last at most
 * P. Rows from there on are left as they are. */
void cuda_linear_grouped(struct cuda_dev *cuda, struct tensor *y, const struct tensor *x,
                         struct weight *const *w, int32_t n_groups, const int32_t *first);

#endif
