/* cuda_decode_4bit.cu - 4-bit codes become numbers of the compute dtype, for a product. */
#include "kernels/cuda/cuda_mma.cuh"
#include "kernels/cuda/cuda_quantize.h"
#include "kernels/cuda/cuda_rows.cuh"

#include <string.h>

/* The quick kernel: CODES a thread at a time, in one word, and WORDS of them. */
enum { DECODE_THREADS = 256, CODES = 8, WORDS = 8, MAX_DECODE_PARTS = 4 };

struct scales4 { /* of a 4-bit tensor */
    float codes[16];
    const float *absmax; /* or NULL, and: */
    const uint8_t *absmax_codes;
    const float *absmax2, *map;
    float mean;
    int block_shift; /* log2 of the block */
};

__device__ __forceinline__ float absmax_at(const struct scales4 &s, int64_t block) {
    if (s.absmax) return s.absmax[block];
    return __fadd_rn(__fmul_rn(s.map[s.absmax_codes[block]], s.absmax2[block / QUANT_NESTED_BLOCK]), s.mean);
}

/* ---------------------------------------------------------------- any weight */

/* One block of threads a row: row blockIdx.x of the segment, from row from_row on of its tensor. */
template <typename T>
__global__ void decode4_kernel(T *out, int64_t ld, const uint8_t *packed, struct scales4 s, int64_t from_row,
                               int64_t k) {
    __shared__ float codes[16];
    if (threadIdx.x < 16) codes[threadIdx.x] = s.codes[threadIdx.x];
    __syncthreads();
    int64_t first = (from_row + blockIdx.x) * k;
    T *row = out + blockIdx.x * ld;
    for (int64_t i = threadIdx.x; i < ld; i += blockDim.x) {
        int64_t at = first + i;
        if (i >= k) {
            row[i] = cuda_round<T>(0.0f);
            continue;
        }
        uint8_t pair = packed[at / 2];
        row[i] = cuda_round<T>(codes[at % 2 ? pair & 15 : pair >> 4] * absmax_at(s, at >> s.block_shift));
    }
}

/* ---------------------------------------------------------------- rows of whole blocks */

struct decode_part { /* a segment; w's numbers are words of CODES without gaps */
    uint32_t first;  /* its first word in w */
    const uint32_t *packed;
    int64_t first_block; /* in its tensor */
    struct scales4 scales;
};

struct decode_args {
    uint4 *out;
    uint32_t first, end; /* words */
    int32_t n_parts;
    struct decode_part parts[MAX_DECODE_PARTS];
};

template <typename T>
__device__ __forceinline__ uint4 eight_numbers(uint32_t word, float absmax, const float *codes) {
    uint32_t two[CODES / 2];
#pragma unroll
    for (int i = 0; i < CODES / 2; i++) /* of two codes in a byte the first is the high one */
        two[i] = two_of<T>(codes[word >> (8 * i + 4) & 15] * absmax, codes[word >> 8 * i & 15] * absmax);
    return make_uint4(two[0], two[1], two[2], two[3]);
}

/* Codes are there before the kernel in front of this one is over; numbers may only be written
 * afterwards, since it may still read those of the weight before. */
template <typename T>
__global__ void __launch_bounds__(DECODE_THREADS) decode4_rows_kernel(const __grid_constant__ decode_args a) {
    __shared__ float codes[MAX_DECODE_PARTS][16]; /* in sixteen banks: any codes are read at once */
    uint32_t first = a.first + blockIdx.x * (DECODE_THREADS * WORDS) + threadIdx.x, word[WORDS];
    float absmax[WORDS];
    int part[WORDS];
    cuda_release();
#pragma unroll
    for (int i = 0; i < WORDS; i++) {
        uint32_t at = first + i * DECODE_THREADS;
        int p = 0;
        if (at >= a.end) break;
        while (p + 1 < a.n_parts && at >= a.parts[p + 1].first) p++;
        const struct decode_part &from = a.parts[p];
        uint32_t in_part = at - from.first;
        part[i] = p;
        word[i] = from.packed[in_part];
        absmax[i] = absmax_at(from.scales, from.first_block + (in_part >> (from.scales.block_shift - 3)));
    }
    if (threadIdx.x < a.n_parts * 16)
        codes[threadIdx.x / 16][threadIdx.x % 16] = a.parts[threadIdx.x / 16].scales.codes[threadIdx.x % 16];
    __syncthreads();
    cuda_follow();
#pragma unroll
    for (int i = 0; i < WORDS; i++) {
        uint32_t at = first + i * DECODE_THREADS;
        if (at < a.end) a.out[at] = eight_numbers<T>(word[i], absmax[i], codes[part[i]]);
    }
}

/* ---------------------------------------------------------------- launch */

static struct scales4 scales_of(const struct weight_segment *g) {
    struct scales4 s = {};
    memcpy(s.codes, g->codes, sizeof s.codes);
    if (g->absmax2.data) {
        s.absmax_codes = (const uint8_t *)g->absmax.data;
        s.absmax2 = (const float *)g->absmax2.data;
        s.map = (const float *)g->map.data;
        s.mean = g->mean;
    } else {
        s.absmax = (const float *)g->absmax.data;
    }
    while ((int64_t)1 << s.block_shift < g->block) s.block_shift++;
    return s;
}

template <typename T>
static void decode_segment(struct cuda_dev *cuda, T *out, const struct weight *w,
                           const struct weight_segment *g) {
    decode4_kernel<T><<<(unsigned)g->n_rows, DECODE_THREADS, 0, cuda->stream>>>(
        out + g->first_row * w->k_pad, w->k_pad, (const uint8_t *)w->data + g->offset, scales_of(g),
        g->from_row, w->k);
}

/* Rows of whole blocks, in segments that follow each other. */
template <typename T>
static void decode_rows(struct cuda_dev *cuda, T *out, const struct weight *w, const struct weight_segment *g,
                        int32_t n_segments) {
    decode_args a = {};
    const struct weight_segment *last = &g[n_segments - 1];
    a.out = (uint4 *)out;
    a.first = (uint32_t)(g->first_row * w->k / CODES);
    a.end = (uint32_t)((last->first_row + last->n_rows) * w->k / CODES);
    a.n_parts = n_segments;
    for (int32_t i = 0; i < n_segments; i++) {
        int64_t from = g[i].from_row * w->k;
        a.parts[i] = {(uint32_t)(g[i].first_row * w->k / CODES),
                      (const uint32_t *)((const uint8_t *)w->data + g[i].offset + from / 2),
                      from / g[i].block, scales_of(&g[i])};
    }
    unsigned at_once = DECODE_THREADS * WORDS;
    cuda_launch(cuda, "4-bit weights", decode4_rows_kernel<T>,
                dim3((a.end - a.first + at_once - 1) / at_once), DECODE_THREADS, 0, a);
}

static bool has_whole_blocks(const struct weight *w) {
    bool is_whole = w->n * w->k / CODES < UINT32_MAX;
    for (int32_t i = 0; i < w->n_segments; i++) is_whole = is_whole && w->k % w->segments[i].block == 0;
    return is_whole;
}

template <typename T> static void decode(struct cuda_dev *cuda, void *numbers, const struct weight *w) {
    T *out = (T *)numbers;
    bool is_quick = sizeof(T) == 2 && has_whole_blocks(w);
    if constexpr (sizeof(T) == 2)
        for (int32_t i = 0; is_quick && i < w->n_segments; i += MAX_DECODE_PARTS)
            decode_rows<T>(cuda, out, w, &w->segments[i],
                           w->n_segments - i < MAX_DECODE_PARTS ? w->n_segments - i : MAX_DECODE_PARTS);
    for (int32_t i = 0; !is_quick && i < w->n_segments; i++) decode_segment<T>(cuda, out, w, &w->segments[i]);
    cuda_launched(cuda, "4-bit weights");
}

void cuda_decode_4bit(struct cuda_dev *cuda, void *numbers, const struct weight *w) {
    BY_DTYPE(w->dtype, decode, cuda, numbers, w);
}
