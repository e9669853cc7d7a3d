/* product_room.h - the scratch in which a GPU multiplies 8-bit codes by 8-bit codes.
 *
 * Arithmetic alone: kernels/cuda/ lays its memory out by it, and a plan of what a model takes
 * counts by it where there is no GPU. Of a weight w[n, k] with n and k in multiples of 16, and of
 * rows in 16 bits; other products, and fp8's below compute capability 8.9, go another way
 * (cuda_quantize.cu), with other scratch. A device has one room, for the weight that needs most. */
#ifndef BATCHD_KERNELS_PRODUCT_ROOM_H
#define BATCHD_KERNELS_PRODUCT_ROOM_H

#include "kernels/quantize.h"

/* Rows that become codes at once, and of int8's, rows that are multiplied at once: they bound the memory of
 * codes and of integers. The outliers of an INT8_GROUP of rows are listed together. */
enum { FP8_SLAB = 4096, INT8_SLAB = 4096, INT8_STRIP = 2048, INT8_GROUP = 8, INT8_GROUPS = INT8_SLAB / INT8_GROUP };

/* A part begins at a multiple of 256 bytes. */
static inline size_t room_rounded(size_t bytes) {
    return (bytes + 255) / 256 * 256;
}

static inline size_t room_bytes(const size_t *parts, int n_parts) {
    size_t bytes = 0;
    for (int i = 0; i < n_parts; i++) bytes += room_rounded(parts[i]);
    return bytes;
}

/* ---------------------------------------------------------------- fp8 */

enum fp8_part {
    FP8_CODES, /* [FP8_SLAB][k] */
    FP8_SCALE, /* f32 [FP8_SLAB] */
    N_FP8_PARTS
};

static inline void fp8_room_parts(size_t parts[N_FP8_PARTS], int64_t k) {
    parts[FP8_CODES] = FP8_SLAB * (size_t)k;
    parts[FP8_SCALE] = FP8_SLAB * sizeof(float);
}

/* ---------------------------------------------------------------- int8 */

enum int8_part {
    INT8_CODES,    /* [INT8_SLAB][k] */
    INT8_SCALE,    /* f32 [INT8_SLAB] */
    INT8_BITS,     /* u32 [1 + INT8_GROUPS][k / 32]: columns with outliers, of all rows and of each group */
    INT8_N_LISTED, /* i32 [INT8_GROUPS + 1]: how many, of each group and of all */
    INT8_LISTED,   /* u16 [INT8_GROUPS + 1][k]: which */
    INT8_PLACE,    /* i32 [k]: of a column among those of all */
    INT8_GATHERED, /* [k][n]: the weight's codes in those columns */
    INT8_INTEGERS, /* i32 [INT8_STRIP][n] */
    N_INT8_PARTS
};

static inline size_t int8_bit_words(int64_t k) { /* of 32 columns */
    return ((size_t)k + 31) / 32;
}

static inline void int8_room_parts(size_t parts[N_INT8_PARTS], int64_t n, int64_t k) {
    const size_t lists = INT8_GROUPS + 1, columns = (size_t)k, outputs = (size_t)n;
    parts[INT8_CODES] = INT8_SLAB * columns;
    parts[INT8_SCALE] = INT8_SLAB * sizeof(float);
    parts[INT8_BITS] = lists * int8_bit_words(k) * sizeof(uint32_t);
    parts[INT8_N_LISTED] = lists * sizeof(int32_t);
    parts[INT8_LISTED] = lists * columns * sizeof(uint16_t);
    parts[INT8_PLACE] = columns * sizeof(int32_t);
    parts[INT8_GATHERED] = columns * outputs;
    parts[INT8_INTEGERS] = INT8_STRIP * outputs * sizeof(int32_t);
}

/* ---------------------------------------------------------------- either */

/* 0: products with this kind have none. */
static inline size_t product_room_bytes(enum quant_kind kind, int64_t n, int64_t k) {
    size_t fp8[N_FP8_PARTS], int8[N_INT8_PARTS];
    fp8_room_parts(fp8, k);
    int8_room_parts(int8, n, k);
    if (kind == QUANT_INT8) return room_bytes(int8, N_INT8_PARTS);
    return kind == QUANT_FP8 ? room_bytes(fp8, N_FP8_PARTS) : 0;
}

#endif
