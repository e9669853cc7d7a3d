/* cuda_fp8.cuh - numbers and fp8 codes: one by one, and rows of numbers to rows of codes with a
 * scale each: quant_fp8 of quantize.h, by a block of threads. */
#ifndef BATCHD_KERNELS_CUDA_FP8_CUH
#define BATCHD_KERNELS_CUDA_FP8_CUH

#include "kernels/cuda/cuda_rows.cuh"

#include <cuda_fp8.h>

/* Of the nearest e4m3 number, ties to the even one; 448 beyond it. As fp8_from_f32 of quantize.h,
 * but for the sign of a NaN. */
__device__ __forceinline__ uint8_t fp8_code(float x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
    return (uint8_t)__nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E4M3);
#else /* the library's way goes through f64 */
    uint32_t u = __float_as_uint(x), sign = u >> 24 & 0x80, size = u & 0x7fffffff;
    if (size > 0x7f800000) return (uint8_t)(sign | 0x7f);
    if (size >= 0x43e00000) return (uint8_t)(sign | 0x7e);
    if (size < 0x3c800000)
        return (uint8_t)(sign | (__float_as_uint(__fadd_rn(__uint_as_float(size), 16384.0f)) - 0x46800000));
    return (uint8_t)(sign | (size + 0x7ffff + (size >> 20 & 1) - (120u << 23)) >> 20);
#endif
}

/* What a code is worth; a NaN's becomes 480. */
__device__ __forceinline__ float fp8_number(uint8_t code) {
    float size = __uint_as_float((uint32_t)(code & 0x7f) << 20) * 0x1p120f;
    return code & 0x80 ? -size : size;
}

/* Where codes go; NULL: there are none to make. */
struct fp8_rows {
    uint8_t *codes; /* [T][k] */
    float *scale;   /* [T] */
};

__device__ __forceinline__ float fp8_scale(float most) {
    float scale = most / 448.0f;
    return scale > 0x1p-100f ? scale : 0x1p-100f;
}

/* Eight numbers / scale, as codes. */
__device__ __forceinline__ void fp8_store(uint8_t *to, const float x[8], float inverse) {
    uint2 v;
    unsigned pairs[4];
#pragma unroll
    for (int i = 0; i < 4; i++)
        pairs[i] = __nv_cvt_float2_to_fp8x2(make_float2(x[2 * i] * inverse, x[2 * i + 1] * inverse),
                                            __NV_SATFINITE, __NV_E4M3);
    v.x = pairs[0] | pairs[1] << 16;
    v.y = pairs[2] | pairs[3] << 16;
    *(uint2 *)to = v;
}

/* The largest over the block, for all threads; a NaN is left out. partial: shared, 32. */
__device__ __forceinline__ float block_max(float x, float *partial) {
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, n_warps = blockDim.x >> 5;
    for (int d = 16; d > 0; d >>= 1) x = fmaxf(x, __shfl_xor_sync(~0u, x, d));
    if (lane == 0) partial[warp] = x;
    __syncthreads();
    float most = lane < n_warps ? partial[lane] : 0.0f;
    for (int d = 16; d > 0; d >>= 1) most = fmaxf(most, __shfl_xor_sync(~0u, most, d));
    return most;
}

#endif
