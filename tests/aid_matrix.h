/* aid_matrix.h - matrices that Python makes too, so that fixtures need not hold them. */
#ifndef BATCHD_TESTS_AID_MATRIX_H
#define BATCHD_TESTS_AID_MATRIX_H

#include <stdint.h>

/* As random_matrix() in tests/data/quantize/make.py; exact in f32, F16 and BF16 need rounding. The caller's. */
float *random_matrix(int64_t rows, int64_t cols, uint64_t seed);

#endif
