/* cuda_decode_4bit.cu - 4-bit codes become numbers of the compute dtype, for a product. */
#include "kernels/cuda/cuda_mma.cuh"
#include "kernels/cuda/cuda_quantize.h"

#include <string.h>

/* The quick kernel: CODES a thread at a time, in one word, and WORDS of them. */
enum { DECODE_THREADS = 256, CODES = 8, WORDS = 4 };

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

template <typename T>
__device__ __forceinline__ uint4 eight_numbers(uint32_t word, float absmax, const float *codes) {
    uint32_t two[CODES / 2];
#pragma unroll
    for (int i = 0; i < CODES / 2; i++) /* of two codes in a byte the first is the high one */
        two[i] = two_of<T>(codes[word >> (8 * i + 4) & 15] * absmax, codes[word >> 8 * i & 15] * absmax);
    return make_uint4(two[0], two[1], two[2], two[3]);
}

/* n numbers without gaps, in whole blocks; `packed` begins with them, `first_block` is theirs. */
template <typename T>
__global__ void __launch_bounds__(DECODE_THREADS)
    decode4_rows_kernel(uint4 *out, const uint32_t *packed, struct scales4 s, int64_t first_block,
                        int64_t n) {
    __shared__ float codes[16]; /* in sixteen banks: any codes are read at once */
    if (threadIdx.x < 16) codes[threadIdx.x] = s.codes[threadIdx.x];
    __syncthreads();
    int64_t n_words = n / CODES, first = (int64_t)blockIdx.x * DECODE_THREADS * WORDS + threadIdx.x;
    uint32_t word[WORDS];
    float absmax[WORDS];
#pragma unroll
    for (int i = 0; i < WORDS; i++) {
        int64_t at = first + i * DECODE_THREADS;
        if (at >= n_words) break;
        word[i] = packed[at];
        absmax[i] = absmax_at(s, first_block + (at * CODES >> s.block_shift));
    }
#pragma unroll
    for (int i = 0; i < WORDS; i++) {
        int64_t at = first + i * DECODE_THREADS;
        if (at >= n_words) break;
        out[at] = eight_numbers<T>(word[i], absmax[i], codes);
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
    const uint8_t *packed = (const uint8_t *)w->data + g->offset;
    struct scales4 s = scales_of(g);
    int64_t first = g->from_row * w->k, n = g->n_rows * w->k, at_once = DECODE_THREADS * WORDS * CODES;
    if constexpr (sizeof(T) == 2)
        if (w->k % g->block == 0) {
            decode4_rows_kernel<T>
                <<<(unsigned)((n + at_once - 1) / at_once), DECODE_THREADS, 0, cuda->stream>>>(
                    (uint4 *)(out + g->first_row * w->k), (const uint32_t *)(packed + first / 2), s,
                    first / g->block, n);
            return;
        }
    decode4_kernel<T><<<(unsigned)g->n_rows, DECODE_THREADS, 0, cuda->stream>>>(
        out + g->first_row * w->k_pad, w->k_pad, packed, s, g->from_row, w->k);
}

template <typename T> static void decode(struct cuda_dev *cuda, T *out, const struct weight *w) {
    for (int32_t i = 0; i < w->n_segments; i++) decode_segment<T>(cuda, out, w, &w->segments[i]);
    if (w->n_pad > w->n)
        cudaMemsetAsync(out + w->n * w->k_pad, 0, (size_t)((w->n_pad - w->n) * w->k_pad) * sizeof(T),
                        cuda->stream);
    cuda_launched(cuda, "4-bit weights");
}

void cuda_decode_4bit(struct cuda_dev *cuda, void *out, const struct weight *w) {
    if (w->dtype == DTYPE_F32)
        decode<float>(cuda, (float *)out, w);
    else if (w->dtype == DTYPE_F16)
        decode<__half>(cuda, (__half *)out, w);
    else
        decode<__nv_bfloat16>(cuda, (__nv_bfloat16 *)out, w);
}
