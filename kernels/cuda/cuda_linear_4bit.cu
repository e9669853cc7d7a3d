/* cuda_linear_4bit.cu - products with 4-bit weights: codes become numbers of the compute dtype
 * in scratch, which go through the ordinary products. */
#include "kernels/cuda/cuda_quantize.h"

#include <string.h>

enum { DECODE_THREADS = 256 };

/* ---------------------------------------------------------------- codes to numbers */

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

template <typename T> static void decode_4bit(struct cuda_dev *cuda, T *out, const struct weight *w) {
    for (int32_t i = 0; i < w->n_segments; i++) {
        const struct weight_segment *g = &w->segments[i];
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
        decode4_kernel<T><<<(unsigned)g->n_rows, DECODE_THREADS, 0, cuda->stream>>>(
            out + g->first_row * w->k_pad, w->k_pad, (const uint8_t *)w->data + g->offset, s, g->from_row,
            w->k);
    }
    if (w->n_pad > w->n)
        cudaMemsetAsync(out + w->n * w->k_pad, 0, (size_t)((w->n_pad - w->n) * w->k_pad) * sizeof(T),
                        cuda->stream);
    cuda_launched(cuda, "4-bit weights");
}

/* A product of few rows begins to fetch its weights before it waits for the kernel in front of
 * it (cuda_follow), since weights do not change; these do. With this in front, what it begins
 * beside is not the kernel that writes them. */
__global__ void settle_kernel() {}

/* ---------------------------------------------------------------- the product */

template <typename T>
static void product(struct cuda_dev *cuda, const struct tensor *y, const struct tensor *x,
                    const struct weight *w) {
    decode_4bit<T>(cuda, (T *)cuda->quant->weights, w);
    settle_kernel<<<1, 1, 0, cuda->stream>>>();
    quantized_multiply(cuda, y, x->data, w, cuda->quant->weights, w->k, w->k_pad);
}

void cuda_linear_4bit(struct cuda_dev *cuda, const struct tensor *y, const struct tensor *x,
                      const struct weight *w) {
    if (w->dtype == DTYPE_F32)
        product<float>(cuda, y, x, w);
    else if (w->dtype == DTYPE_F16)
        product<__half>(cuda, y, x, w);
    else
        product<__nv_bfloat16>(cuda, y, x, w);
}
