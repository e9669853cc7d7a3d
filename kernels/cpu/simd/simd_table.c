/* simd_table.c - the table of one instruction set's loops. */
#include "kernels/cpu/simd/simd.h"
#include "kernels/cpu/simd/vec.h"

void SIMD_NAME(matmul)(const struct matmul *a);
void SIMD_NAME(widen)(float *out, const uint16_t *bf16, int64_t n);
void SIMD_NAME(narrow)(uint16_t *bf16, const float *x, int64_t n);
void SIMD_NAME(residual_norm)(const struct norm_row *row);
void SIMD_NAME(glu)(void *out, const void *gate_up, const float *bias, int64_t n, enum act act, bool bf16);
void SIMD_NAME(act)(void *out, const void *y, const float *bias, int64_t n, enum act act, bool bf16);
void SIMD_NAME(head)(const struct head *h);
void SIMD_NAME(attend)(const struct attention_row *row);
void SIMD_NAME(decode4)(float *out, const uint8_t *packed, int64_t first, int64_t n, const float codes[16],
                        float absmax, bool bf16);
void SIMD_NAME(decode_i8)(float *out, const int8_t *codes, int64_t n);
void SIMD_NAME(decode_f8)(float *out, const uint8_t *codes, int64_t n);
void SIMD_NAME(decode_f8_scaled)(float *out, const uint8_t *codes, int64_t n, float scale, bool bf16);
void SIMD_NAME(to_panel)(float *panel, const float *rows, int64_t ld, int64_t k);
void SIMD_NAME(softcap)(float *x, int64_t n, float cap);
void SIMD_NAME(logits)(float *l, const float *logits, const float *bias, float temperature, int64_t n);
float SIMD_NAME(max)(const float *x, int64_t n, bool *has_nan);
void SIMD_NAME(exps)(float *out, const float *x, int64_t n);

extern const struct simd SIMD_NAME(simd);
const struct simd SIMD_NAME(simd) = {
    .matmul = SIMD_NAME(matmul),
    .widen = SIMD_NAME(widen),
    .narrow = SIMD_NAME(narrow),
    .residual_norm = SIMD_NAME(residual_norm),
    .glu = SIMD_NAME(glu),
    .act = SIMD_NAME(act),
    .head = SIMD_NAME(head),
    .attend = SIMD_NAME(attend),
    .decode4 = SIMD_NAME(decode4),
    .decode_i8 = SIMD_NAME(decode_i8),
    .decode_f8 = SIMD_NAME(decode_f8),
    .decode_f8_scaled = SIMD_NAME(decode_f8_scaled),
    .to_panel = SIMD_NAME(to_panel),
    .softcap = SIMD_NAME(softcap),
    .logits = SIMD_NAME(logits),
    .max = SIMD_NAME(max),
    .exps = SIMD_NAME(exps),
};
