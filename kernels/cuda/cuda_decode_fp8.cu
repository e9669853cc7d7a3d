/* cuda_decode_fp8.cu - e4m3 codes with scales of blocks become numbers of the compute dtype, for a
 * product: code times scale in f32, rounded once. */
#include "kernels/cuda/cuda_mma.cuh"
#include "kernels/cuda/cuda_quantize.h"
#include "kernels/cuda/cuda_rows.cuh"

/* The quick kernel: CODES a thread at a time, in two words, of ROWS rows. */
enum { BLOCKS_THREADS = 128, CODES = 8, ROWS = 8, MAX_BLOCKS_PARTS = 4, MAX_GRID_Y = 65535 };

struct scales8 { /* of a segment */
    const float *scale; /* of its tensor: [blocks of rows][n_cols] */
    int32_t first_row;  /* in the weight */
    int32_t from_row;   /* in the tensor */
};

struct block_shape {
    int32_t rows, cols, n_cols; /* n_cols: blocks of columns */
    int32_t shift;              /* log2 of rows, or -1 */
};

/* The scale of the first block of columns. */
__device__ __forceinline__ const float *row_scales(const scales8 &s, const block_shape &b, int32_t row) {
    uint32_t at = (uint32_t)(row - s.first_row + s.from_row);
    uint32_t block = b.shift >= 0 ? at >> b.shift : at / (uint32_t)b.rows;
    return s.scale + (int64_t)block * b.n_cols;
}

/* ---------------------------------------------------------------- any weight */

__device__ __forceinline__ float number_of_code(uint8_t code) {
    float size = __fmul_rn(__uint_as_float((uint32_t)(code & 0x7f) << 20), 0x1p120f); /* exact */
    return code & 0x80 ? -size : size;
}

/* One block of threads a row, of a segment's; zeros from k on. */
template <typename T>
__global__ void decode_blocks_kernel(T *out, const uint8_t *codes, scales8 s, block_shape b, int64_t k, int64_t k_pad) {
    int64_t row = s.first_row + (int64_t)blockIdx.x;
    const float *scale = row_scales(s, b, (int32_t)row);
    for (int64_t i = threadIdx.x; i < k_pad; i += blockDim.x) {
        float x = i < k ? __fmul_rn(number_of_code(codes[row * k_pad + i]), scale[(uint32_t)i / (uint32_t)b.cols]) : 0.0f;
        out[row * k_pad + i] = cuda_round<T>(x);
    }
}

/* ---------------------------------------------------------------- rows of whole groups of codes */

struct blocks_args {
    uint4 *out;
    const uint2 *codes;
    int32_t groups; /* of CODES, in a row; each within a block */
    int32_t first_row, end_row;
    block_shape block;
    int32_t n_parts;
    struct scales8 parts[MAX_BLOCKS_PARTS]; /* ascending */
};

/* Four codes of a word become two pairs. A half holds what a code is worth exactly. */
template <typename T> __device__ __forceinline__ void four_numbers(uint32_t two[2], uint32_t word, float scale) {
    uint32_t low = codes_low<__half>(word), high = codes_high<__half>(word);
    float2 a = __half22float2(*(__half2 *)&low), b = __half22float2(*(__half2 *)&high);
    two[0] = two_of<T>(__fmul_rn(a.x, scale), __fmul_rn(a.y, scale));
    two[1] = two_of<T>(__fmul_rn(b.x, scale), __fmul_rn(b.y, scale));
}

template <typename T> __device__ __forceinline__ uint4 eight_numbers(uint2 word, float scale) {
    uint32_t two[CODES / 2];
    four_numbers<T>(two, word.x, scale);
    four_numbers<T>(two + 2, word.y, scale);
    return make_uint4(two[0], two[1], two[2], two[3]);
}

__device__ __forceinline__ float scale_at(const blocks_args &a, int32_t row, int32_t column) {
    int p = 0;
    while (p + 1 < a.n_parts && row >= a.parts[p + 1].first_row) p++;
    return row_scales(a.parts[p], a.block, row)[column];
}

/* A thread has the same columns of ROWS rows. Codes and scales are there before the kernel in
 * front of this one is over; numbers may only be written afterwards, since it may still read
 * those of the weight before. */
template <typename T>
__global__ void __launch_bounds__(BLOCKS_THREADS) decode_groups_kernel(const __grid_constant__ blocks_args a) {
    int32_t group = (int32_t)(blockIdx.x * BLOCKS_THREADS + threadIdx.x);
    int32_t first = a.first_row + (int32_t)blockIdx.y * ROWS, end = min(a.end_row, first + ROWS);
    int32_t column = (int32_t)((uint32_t)group * CODES / (uint32_t)a.block.cols);
    int64_t at = (int64_t)first * a.groups + group;
    uint2 word[ROWS];
    float scale[ROWS];
    if (group >= a.groups) end = first;
    cuda_release();
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        if (first + i >= end) break;
        word[i] = a.codes[at + (int64_t)i * a.groups];
        scale[i] = scale_at(a, first + i, column);
    }
    cuda_follow();
#pragma unroll
    for (int i = 0; i < ROWS; i++)
        if (first + i < end) a.out[at + (int64_t)i * a.groups] = eight_numbers<T>(word[i], scale[i]);
}

/* ---------------------------------------------------------------- launch */

static scales8 scales_of(const struct weight_segment *g) {
    return {(const float *)g->absmax.data, (int32_t)g->first_row, (int32_t)g->from_row};
}

static block_shape shape_of(const struct weight *w) {
    block_shape b = {(int32_t)w->block_rows, (int32_t)w->block_cols, (int32_t)quant_blocks(w->k, w->block_cols), 0};
    while (1 << b.shift < b.rows) b.shift++;
    if (1 << b.shift != b.rows) b.shift = -1;
    return b;
}

/* Segments that follow each other. */
template <typename T>
static void decode_groups(struct cuda_dev *cuda, T *out, const struct weight *w, const struct weight_segment *g,
                          int32_t n_segments) {
    blocks_args a = {};
    a.out = (uint4 *)out;
    a.codes = (const uint2 *)w->data;
    a.groups = (int32_t)(w->k / CODES);
    a.first_row = (int32_t)g->first_row;
    a.end_row = (int32_t)(g[n_segments - 1].first_row + g[n_segments - 1].n_rows);
    a.block = shape_of(w);
    a.n_parts = n_segments;
    for (int32_t i = 0; i < n_segments; i++) a.parts[i] = scales_of(&g[i]);
    dim3 grid((unsigned)((a.groups + BLOCKS_THREADS - 1) / BLOCKS_THREADS),
              (unsigned)((a.end_row - a.first_row + ROWS - 1) / ROWS));
    cuda_launch(cuda, "fp8 weights", decode_groups_kernel<T>, grid, BLOCKS_THREADS, 0, a);
}

/* Rows without padding, of groups that each lie in one block. */
static bool has_whole_groups(const struct weight *w) {
    return w->k == w->k_pad && w->block_cols % CODES == 0 && w->n <= (int64_t)MAX_GRID_Y * ROWS;
}

template <typename T> static void decode(struct cuda_dev *cuda, void *numbers, const struct weight *w) {
    T *out = (T *)numbers;
    bool is_quick = sizeof(T) == 2 && has_whole_groups(w);
    if constexpr (sizeof(T) == 2)
        for (int32_t i = 0; is_quick && i < w->n_segments; i += MAX_BLOCKS_PARTS)
            decode_groups<T>(cuda, out, w, &w->segments[i],
                             w->n_segments - i < MAX_BLOCKS_PARTS ? w->n_segments - i : MAX_BLOCKS_PARTS);
    for (int32_t i = 0; !is_quick && i < w->n_segments; i++)
        decode_blocks_kernel<T><<<(unsigned)w->segments[i].n_rows, BLOCKS_THREADS, 0, cuda->stream>>>(
            out, (const uint8_t *)w->data, scales_of(&w->segments[i]), shape_of(w), w->k, w->k_pad);
    cuda_launched(cuda, "fp8 weights");
}

void cuda_decode_fp8_blocks(struct cuda_dev *cuda, void *numbers, const struct weight *w) {
    BY_DTYPE(w->dtype, decode, cuda, numbers, w);
}
