/* simd_table.c - the table of one instruction set's loops. */
#include "kernels/cpu/simd/simd.h"
#include "kernels/cpu/simd/vec.h"

void SIMD_NAME(matmul)(float *y, int64_t ldy, const float *x, int64_t ldx, int64_t m, const void *w, bool w_bf16,
                       int64_t k, int64_t n_panels, int64_t n_cols);
void SIMD_NAME(widen)(float *out, const uint16_t *bf16, int64_t n);
void SIMD_NAME(narrow)(uint16_t *bf16, const float *x, int64_t n);
void SIMD_NAME(exps)(float *out, const float *x, int64_t n);
void SIMD_NAME(rms_norm)(void *out, void *residual, const void *y, const float *bias, const float *w, int64_t n,
                         float eps, bool bf16);
void SIMD_NAME(glu)(void *out, const void *gate_up, const float *bias, int64_t n, bool bf16);
void SIMD_NAME(attend)(const struct attention_row *row);

extern const struct simd SIMD_NAME(simd);
const struct simd SIMD_NAME(simd) = {
    .matmul = SIMD_NAME(matmul),
    .widen = SIMD_NAME(widen),
    .narrow = SIMD_NAME(narrow),
    .rms_norm = SIMD_NAME(rms_norm),
    .glu = SIMD_NAME(glu),
    .attend = SIMD_NAME(attend),
    .exps = SIMD_NAME(exps),
};
