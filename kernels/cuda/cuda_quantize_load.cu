/* cuda_quantize_load.cu - numbers become codes on the device, while a model is loaded: the
 * bytes are those that the functions of kernels/quantize.h make. */
#include "kernels/cuda/cuda_fp8.cuh"
#include "kernels/cuda/cuda_quantize.h"
#include "kernels/cuda/cuda_random.cuh"

enum { QUANTIZE_THREADS = 256, NUMBERS = 8 /* of 4 bits, a thread */, GROUP = QUANT_BLOCK / NUMBERS };

/* ---------------------------------------------------------------- where numbers come from */

template <typename F> struct in_memory {
    const F *at;
};

struct made_up {
    uint64_t seed;
    float deviation;
};

template <typename F> __device__ __forceinline__ float number_of(const in_memory<F> &s, int64_t i) {
    return cuda_float(s.at[i]);
}

__device__ __forceinline__ float number_of(const made_up &s, int64_t i) {
    return random_normal(s.seed, i) * s.deviation;
}

/* As the model has it: in the weight's dtype. */
__device__ __forceinline__ float rounded_to(enum dtype dtype, float x) {
    if (dtype == DTYPE_BF16) return cuda_float(cuda_round<__nv_bfloat16>(x));
    return dtype == DTYPE_F16 ? cuda_float(cuda_round<__half>(x)) : x;
}

template <typename S>
__device__ __forceinline__ float rounded_number(const struct quantizing &q, const S &source, int64_t i) {
    float x = number_of(source, i);
    if (!isfinite(x)) *q.not_finite = 1;
    return rounded_to(q.dtype, x);
}

/* ---------------------------------------------------------------- 4 bits */

__device__ __forceinline__ float clamp1(float x) { return x < -1 ? -1 : x > 1 ? 1 : x; }

/* The middles between neighbours, as quantize_4bit.c has them. */
__device__ __forceinline__ uint32_t nearest_nf4(const float *middle, float x) {
    uint32_t code = 0;
#pragma unroll
    for (uint32_t half = 8; half > 0; half /= 2)
        if (x > middle[code + half - 1]) code += half;
    return code;
}

__device__ __forceinline__ uint32_t nearest_fp4(float x) {
    float size = fabsf(x);
    uint32_t rank = (size > 0.00260417f) + (size > 0.0859375f) + (size > 0.20833333f) + (size > 0.29166667f) +
                    (size > 0.4166667f) + (size > 0.583333f) + (size > 0.8333333f);
    return (0x32547610u >> 4 * rank & 15) | (x < 0 ? 8 : 0); /* sizes ascend in codes 0 1 6 7 4 5 2 3 */
}

__constant__ float nf4_middle[15] = {
    -0.848096371f, -0.610632896f,  -0.45999527f,  -0.33967942f, -0.234607399f,
    -0.137911737f, -0.0455250181f, 0.0397901498f, 0.120255247f, 0.203521252f,
    0.292013764f,  0.389312536f,   0.501663446f,  0.64278692f,  0.861478448f,
};

/* n numbers; GROUP threads share a block's absmax. */
template <typename S> __global__ void quantize4_kernel(struct quantizing q, S source, int64_t n) {
    __shared__ float middle[15];
    if (threadIdx.x < 15) middle[threadIdx.x] = nf4_middle[threadIdx.x];
    __syncthreads();
    int64_t first = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * NUMBERS;
    float x[NUMBERS], most = 0;
#pragma unroll
    for (int i = 0; i < NUMBERS; i++) {
        x[i] = first + i < n ? rounded_number(q, source, first + i) : 0.0f;
        most = fmaxf(most, fabsf(x[i]));
    }
    for (int d = GROUP / 2; d > 0; d /= 2) most = fmaxf(most, __shfl_xor_sync(0xffffffff, most, d));
    if (first >= n) return;
    if (threadIdx.x % GROUP == 0) q.scale[first / QUANT_BLOCK] = most;
    float scale = __fdiv_rn(1.0f, most > 1e-38f ? most : 1e-38f);
    uint32_t word = 0;
#pragma unroll
    for (int i = 0; i < NUMBERS; i++) {
        float y = clamp1(__fmul_rn(x[i], scale));
        uint32_t code = q.kind == QUANT_FP4 ? nearest_fp4(y) : nearest_nf4(middle, y);
        word |= code << (4 * (i ^ 1)); /* the first of two in the high half */
    }
    if (first + NUMBERS <= n) {
        *(uint32_t *)(q.codes + first / 2) = word;
        return;
    }
    for (int64_t i = 0; i < (n - first + 1) / 2; i++) q.codes[first / 2 + i] = (uint8_t)(word >> 8 * i);
}

/* ---------------------------------------------------------------- 8 bits */

/* One block a row. int8 rounds numbers to fp16 first. */
template <typename S> __global__ void quantize8_kernel(struct quantizing q, S source) {
    bool is_fp8 = q.kind == QUANT_FP8;
    __shared__ float partial[32];
    int64_t first = blockIdx.x * q.k;
    uint8_t *codes = q.codes + blockIdx.x * q.k_pad;
    float most = 0;
    for (int64_t i = threadIdx.x; i < q.k; i += blockDim.x) {
        float x = rounded_number(q, source, first + i);
        most = fmaxf(most, fabsf(is_fp8 ? x : rounded_to(DTYPE_F16, x)));
    }
    most = block_max(most, partial);
    float scale = most, factor = __fmul_rn(__fdiv_rn(1.0f, most), 127.0f);
    if (is_fp8) {
        scale = fp8_scale(most);
        factor = __fdiv_rn(1.0f, scale);
    }
    if (threadIdx.x == 0) q.scale[blockIdx.x] = scale;
    for (int64_t i = threadIdx.x; i < q.k; i += blockDim.x) {
        float x = rounded_number(q, source, first + i);
        if (is_fp8)
            codes[i] = fp8_code(__fmul_rn(x, factor));
        else
            codes[i] = most > 0 ? (uint8_t)(int)rintf(__fmul_rn(rounded_to(DTYPE_F16, x), factor)) : 0;
    }
}

template <typename S> __global__ void codes_kernel(struct quantizing q, S source) {
    for (int64_t i = threadIdx.x; i < q.k; i += blockDim.x)
        q.codes[blockIdx.x * q.k_pad + i] = fp8_code(number_of(source, blockIdx.x * q.k + i));
}

/* ---------------------------------------------------------------- launch */

template <typename S> static void quantize(cudaStream_t stream, const struct quantizing *q, const S &source) {
    int64_t n = q->n_rows * q->k, a_block = QUANTIZE_THREADS * NUMBERS;
    if (quant_is_4bit(q->kind))
        quantize4_kernel<S>
            <<<(unsigned)((n + a_block - 1) / a_block), QUANTIZE_THREADS, 0, stream>>>(*q, source, n);
    else
        quantize8_kernel<S><<<(unsigned)q->n_rows, QUANTIZE_THREADS, 0, stream>>>(*q, source);
}

void quantize_numbers(cudaStream_t stream, const struct quantizing *q, const void *numbers, enum dtype from) {
    if (from == DTYPE_F32)
        quantize(stream, q, in_memory<float>{(const float *)numbers});
    else if (from == DTYPE_F16)
        quantize(stream, q, in_memory<__half>{(const __half *)numbers});
    else
        quantize(stream, q, in_memory<__nv_bfloat16>{(const __nv_bfloat16 *)numbers});
}

void quantize_random(cudaStream_t stream, const struct quantizing *q, uint64_t seed, float deviation) {
    made_up source = {mix64(seed), deviation};
    if (q->kind == QUANT_FP8_BLOCK)
        codes_kernel<<<(unsigned)q->n_rows, QUANTIZE_THREADS, 0, stream>>>(*q, source);
    else
        quantize(stream, q, source);
}
