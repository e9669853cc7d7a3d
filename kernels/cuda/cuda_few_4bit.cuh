/* cuda_few_4bit.cuh - what the two kernels of few rows with 4-bit weights share: how a stage of
 * the ring lies in shared memory, and how codes become fragments of a product.
 *
 * Rows of x are A and 8 rows of w are B. A row's 64 columns, a block of the format, are 8 words;
 * lane l needs byte l % 4 of each, since B wants columns 2 (l % 4) and the next. */
#ifndef BATCHD_KERNELS_CUDA_FEW_4BIT_CUH
#define BATCHD_KERNELS_CUDA_FEW_4BIT_CUH

#include "kernels/cuda/cuda_mma.cuh"
#include "kernels/cuda/cuda_quantize.h"

enum {
    FEW4_ROWS = 32,     /* of x, the most */
    FEW4_COLUMNS = 256, /* of a stage */
    FEW4_BLOCKS = FEW4_COLUMNS / QUANT_BLOCK,
    FEW4_STEPS = QUANT_BLOCK / 16,
    CODE_BYTES = FEW4_COLUMNS / 2,
    X_BYTES = FEW4_COLUMNS * 2,
    ABSMAX_BYTES = 16, /* of a row in a stage */
    FEW4_OTHER_BYTES = 6144, /* beside the stages: values, maps and what the device takes */
    MAX_PARTS = 4,
    N_TILE = 8,
};

struct part4 { /* a segment; pointers are to its first row */
    int32_t first_row, n_rows;
    const uint8_t *codes; /* [n_rows][k / 2] */
    const char *absmax;   /* [n_rows][k / 64] of f32, or of u8, and: */
    const float *absmax2; /* NULL: absmax are not codes */
    const float *map;
    int64_t first_block; /* of the tensor */
    float mean;
    float values[16]; /* of codes */
};

template <typename T> struct few4_args {
    T *y;       /* [m, n] */
    const T *x; /* [m, k] */
    int32_t m, n, k, n_parts;
    struct part4 parts[MAX_PARTS];
};

/* 64 columns: A of 16 rows of x each (of 8 in rows 0 .. 7 where TILES is 1), B of 8 of w. */
template <int TILES, int NT> struct few4_fragments {
    static constexpr int SETS = (TILES + 1) / 2;
    uint32_t a[SETS][FEW4_STEPS][4], b[NT][FEW4_STEPS][2];
};

struct few4_stage { /* addresses in shared memory */
    uint32_t codes, x, absmax;
};

/* ---------------------------------------------------------------- shared memory */

/* 4 bytes to shared memory. */
__device__ __forceinline__ void copy_word(uint32_t to, const void *from) {
#if CUDA_HAS_ASYNC_COPY
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to), "l"(from));
#else
    asm volatile("st.shared.b32 [%0], %1;" ::"r"(to), "r"(*(const uint32_t *)from) : "memory");
#endif
}

__device__ __forceinline__ float shared_float(uint32_t at) {
    float x;
    asm volatile("ld.shared.f32 %0, [%1];" : "=f"(x) : "r"(at));
    return x;
}

__device__ __forceinline__ uint32_t shared_byte(uint32_t at) {
    uint32_t x;
    asm volatile("ld.shared.u8 %0, [%1];" : "=r"(x) : "r"(at));
    return x;
}

__device__ __forceinline__ void shared_words(uint32_t w[4], uint32_t at) {
    asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(w[0]), "=r"(w[1]), "=r"(w[2]), "=r"(w[3])
                 : "r"(at));
}

/* Chunks of 16 bytes are swapped by XOR, so that eight rows of one column lie in different banks. */
__device__ __forceinline__ uint32_t few4_at(uint32_t base, int row, int row_bytes, int chunk) {
    return base + (uint32_t)(row * row_bytes + ((chunk ^ (row & 7)) << 4));
}

/* A table of 16 values is read at any 32 places at once: each value has its bank. It may change
 * never, so reading it need not stay in order. */
__device__ __forceinline__ float table_value(uint32_t table, uint32_t offset) {
    float x;
    asm("ld.shared.f32 %0, [%1];" : "=f"(x) : "r"(table | offset));
    return x;
}

/* ---------------------------------------------------------------- parts of a weight */

struct few4_row {        /* of w, as a lane knows it */
    uint32_t table, map; /* addresses of what codes are worth, and codes of absmax */
    float mean;
    bool is_nested;
};

/* The part that has a row; the last for rows that are not there. */
template <typename T> __device__ __forceinline__ int few4_part_of(const few4_args<T> &a, int row) {
    int p = 0;
    while (p + 1 < a.n_parts && row >= a.parts[p].first_row + a.parts[p].n_rows) p++;
    return p;
}

/* What a lane knows of rows `row` .. `row` + 7, which are of one part. */
template <typename T>
__device__ __forceinline__ few4_row few4_row_at(const few4_args<T> &a, const float (&values)[MAX_PARTS][16],
                                                const float (&maps)[MAX_PARTS][256], int row) {
    int p = few4_part_of(a, row);
    return {(uint32_t)__cvta_generic_to_shared(values[p]), (uint32_t)__cvta_generic_to_shared(maps[p]),
            a.parts[p].mean, a.parts[p].absmax2 != NULL};
}

/* A stage's columns of x go to `to`; `tid` is one of n_threads that fetch. */
template <typename T>
__device__ __forceinline__ void few4_fetch_x(const few4_args<T> &a, uint32_t to, int stage, int tid,
                                             int n_threads) {
    for (int i = tid; i < a.m * (X_BYTES / 16); i += n_threads) {
        int row = i / (X_BYTES / 16), chunk = i % (X_BYTES / 16);
        copy_async(few4_at(to, row, X_BYTES, chunk),
                   a.x + (int64_t)row * a.k + stage * FEW4_COLUMNS + chunk * 8, true);
    }
}

/* The tables of all parts, by all threads of the block. */
template <typename T>
__device__ __forceinline__ void few4_fill_tables(float (&values)[MAX_PARTS][16], float (&maps)[MAX_PARTS][256],
                                                 const few4_args<T> &a, int tid, int n_threads) {
    for (int i = tid; i < a.n_parts * 16; i += n_threads)
        values[i / 16][i % 16] = a.parts[i / 16].values[i % 16];
    for (int p = 0; p < a.n_parts; p++)
        for (int i = tid; a.parts[p].map && i < 256; i += n_threads) maps[p][i] = a.parts[p].map[i];
}

/* ---------------------------------------------------------------- fragments */

template <int TILES, int NT>
__device__ __forceinline__ void few4_load_x(few4_fragments<TILES, NT> &f, uint32_t x, int block, int m,
                                            int lane) {
    if constexpr (TILES == 1) {
#pragma unroll
        for (int s = 0; s < FEW4_STEPS; s += 2) {
            uint32_t r[4];
            load_matrices(r, few4_at(x, min(lane & 7, m - 1), X_BYTES, 8 * block + 2 * s + (lane >> 3)));
            f.a[0][s][0] = r[0], f.a[0][s][1] = 0, f.a[0][s][2] = r[1], f.a[0][s][3] = 0;
            f.a[0][s + 1][0] = r[2], f.a[0][s + 1][1] = 0, f.a[0][s + 1][2] = r[3], f.a[0][s + 1][3] = 0;
        }
    } else {
#pragma unroll
        for (int q = 0; q < TILES / 2; q++)
#pragma unroll
            for (int s = 0; s < FEW4_STEPS; s++)
                load_matrices(f.a[q][s], few4_at(x, min(16 * q + (lane & 15), m - 1), X_BYTES,
                                                 8 * block + 2 * s + (lane >> 4)));
    }
}

__device__ __forceinline__ float few4_absmax(const struct few4_row &r, uint32_t absmax, int block) {
    if (!r.is_nested) return shared_float(absmax + 4 * (uint32_t)block);
    float value = shared_float(r.map + 4 * shared_byte(absmax + (uint32_t)block));
    return __fadd_rn(__fmul_rn(value, shared_float(absmax + 4)), r.mean);
}

/* A block of one row: its words become the lane's part of B. */
template <typename T>
__device__ __forceinline__ void few4_decode(uint32_t b[FEW4_STEPS][2], const struct few4_row &r, float absmax,
                                            uint32_t codes, int row, int block, int lane) {
    uint32_t w[8];
    shared_words(w, few4_at(codes, row, CODE_BYTES, 2 * block));
    shared_words(w + 4, few4_at(codes, row, CODE_BYTES, 2 * block + 1));
#pragma unroll
    for (int i = 0; i < 8; i++) {
        /* Four times the code is its value's place; the first of two codes is the high one. */
        uint32_t turned = __funnelshift_r(w[i], w[i], (8 * (lane & 3) + 30) & 31);
        float first = table_value(r.table, turned >> 4 & 0x3c), second = table_value(r.table, turned & 0x3c);
        b[i / 2][i % 2] = two_of<T>(__fmul_rn(first, absmax), __fmul_rn(second, absmax));
    }
}

template <typename T, int TILES, int NT>
__device__ __forceinline__ void few4_multiply(float sums[NT][(TILES + 1) / 2][4],
                                              const few4_fragments<TILES, NT> &f) {
#pragma unroll
    for (int s = 0; s < FEW4_STEPS; s++)
#pragma unroll
        for (int t = 0; t < NT; t++)
#pragma unroll
            for (int q = 0; q < (TILES + 1) / 2; q++)
                multiply_add<T>(sums[t][q], f.a[q][s], f.b[t][s][0], f.b[t][s][1]);
}

/* The sums of 8 rows of w from `row` on. */
template <typename T, int SETS>
__device__ __forceinline__ void few4_store(const few4_args<T> &a, const float sums[SETS][4], int row, int lane) {
#pragma unroll
    for (int q = 0; q < SETS; q++)
#pragma unroll
        for (int c = 0; c < 4; c++) {
            int token = 16 * q + (lane >> 2) + 8 * (c >> 1), column = row + 2 * (lane & 3) + (c & 1);
            if (column < a.n && token < a.m) a.y[(int64_t)token * a.n + column] = cuda_round<T>(sums[q][c]);
        }
}

#endif
