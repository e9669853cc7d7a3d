/* cuda_mma.cuh - the instructions that the tensor-core kernels are made of: copies into
 * shared memory, fragments out of it, products of 16 x 8 x 16.
 *
 * A warp's fragments are those of mma.m16n8k16 (PTX ISA, "Matrix Fragments for
 * mma.m16n8k16"): lane l holds rows l / 4 and l / 4 + 8 of A and of the sums. T is
 * __nv_bfloat16 or __half; sums are f32. Compute capability 7.5 has no asynchronous copies
 * and steps of 8 only; there a copy is a load and a store, and a product two of 8. */
#ifndef BATCHD_KERNELS_CUDA_MMA_CUH
#define BATCHD_KERNELS_CUDA_MMA_CUH

#include "kernels/cuda/cuda.h"

#define CUDA_HAS_ASYNC_COPY (!defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800)

/* 4, 8 or 16 bytes to an address in shared memory; zeros where there is nothing to copy. 16 pass
 * by the first cache. */
template <int BYTES = 16>
__device__ __forceinline__ void copy_async(uint32_t to, const void *from, bool there) {
#if CUDA_HAS_ASYNC_COPY
    int bytes = there ? BYTES : 0;
    if constexpr (BYTES == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes));
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(from), "n"(BYTES),
                     "r"(bytes));
#else
#pragma unroll
    for (int i = 0; i < BYTES; i += 4) {
        uint32_t v = there ? *(const uint32_t *)((const char *)from + i) : 0u;
        asm volatile("st.shared.b32 [%0], %1;" ::"r"(to + i), "r"(v) : "memory");
    }
#endif
}

__device__ __forceinline__ void copies_commit() {
#if CUDA_HAS_ASYNC_COPY
    asm volatile("cp.async.commit_group;");
#endif
}

/* All but the newest N groups have arrived (for this thread; others need a barrier). */
template <int N> __device__ __forceinline__ void copies_wait() {
#if CUDA_HAS_ASYNC_COPY
    asm volatile("cp.async.wait_group %0;" ::"n"(N));
#endif
}

/* THREADS of a block, whole warps, wait for each other; others do not. */
template <int BARRIER, int THREADS> __device__ __forceinline__ void named_sync() {
    asm volatile("bar.sync %0, %1;" ::"n"(BARRIER), "n"(THREADS) : "memory");
}

/* 16 bytes of a lane's own, kept in shared memory. */
__device__ __forceinline__ void store_shared(uint32_t to, const uint32_t v[4]) {
    asm volatile("st.shared.v4.b32 [%0], {%1,%2,%3,%4};" ::"r"(to), "r"(v[0]), "r"(v[1]), "r"(v[2]), "r"(v[3])
                 : "memory");
}

__device__ __forceinline__ void load_shared(uint32_t v[4], uint32_t from) {
    asm volatile("ld.shared.v4.b32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3])
                 : "r"(from));
}

__device__ __forceinline__ float2 load_two(uint32_t from) {
    float2 v;
    asm volatile("ld.shared.v2.f32 {%0,%1}, [%2];" : "=f"(v.x), "=f"(v.y) : "r"(from));
    return v;
}

/* Four numbers that wait in local memory: the compiler is not to keep them in registers. */
__device__ __forceinline__ void store_own(float *to, const float v[4]) {
    asm volatile("st.local.v4.f32 [%0], {%1,%2,%3,%4};" ::"l"(__cvta_generic_to_local(to)), "f"(v[0]),
                 "f"(v[1]), "f"(v[2]), "f"(v[3])
                 : "memory");
}

__device__ __forceinline__ void load_own(float v[4], const float *from) {
    asm volatile("ld.local.v4.f32 {%0,%1,%2,%3}, [%4];"
                 : "=f"(v[0]), "=f"(v[1]), "=f"(v[2]), "=f"(v[3])
                 : "l"(__cvta_generic_to_local(from))
                 : "memory");
}

/* Four 8 x 8 matrices of 16-bit numbers; lanes 8 i .. 8 i + 7 name the rows of matrix i. */
__device__ __forceinline__ void load_matrices(uint32_t r[4], uint32_t from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(from));
}

__device__ __forceinline__ void load_matrices_transposed(uint32_t r[4], uint32_t from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(from));
}

/* c[16, 8] += a[16, 16] b[16, 8] */
template <typename T>
__device__ __forceinline__ void multiply_add(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1);

template <>
__device__ __forceinline__ void multiply_add<__nv_bfloat16>(float c[4], const uint32_t a[4], uint32_t b0,
                                                            uint32_t b1) {
#if CUDA_HAS_ASYNC_COPY
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                 "{%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
    __trap(); /* such a device is never given bfloat16 */
#endif
}

template <>
__device__ __forceinline__ void multiply_add<__half>(float c[4], const uint32_t a[4], uint32_t b0,
                                                     uint32_t b1) {
#if CUDA_HAS_ASYNC_COPY
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                 "{%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(b0));
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[2]), "r"(a[3]), "r"(b1));
#endif
}

/* Two numbers, rounded, as a fragment holds them: the lower in the lower half. */
template <typename T> __device__ __forceinline__ uint32_t two_of(float lo, float hi);

template <> __device__ __forceinline__ uint32_t two_of<__nv_bfloat16>(float lo, float hi) {
    __nv_bfloat162 v = __floats2bfloat162_rn(lo, hi);
    return *(uint32_t *)&v;
}

template <> __device__ __forceinline__ uint32_t two_of<__half>(float lo, float hi) {
    __half2 v = __floats2half2_rn(lo, hi);
    return *(uint32_t *)&v;
}

/* exp2 of what may be -inf, by the special function unit. */
__device__ __forceinline__ float fast_exp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* Two e4m3 codes, each in the upper byte of a half, as numbers of T: what is behind the sign
 * moves to where T has it, and a power of two makes up for the other exponent's zero. Exact,
 * numbers below the normal ones too; a NaN's code would become 480. */
template <typename T> __device__ __forceinline__ uint32_t codes_as(uint32_t upper);

template <> __device__ __forceinline__ uint32_t codes_as<__nv_bfloat16>(uint32_t upper) {
    uint32_t moved = (upper & 0x80008000u) | (upper >> 4 & 0x07f007f0u), power = 0x7b807b80u; /* 2^120 */
    __nv_bfloat162 v = __hmul2(*(__nv_bfloat162 *)&moved, *(__nv_bfloat162 *)&power);
    return *(uint32_t *)&v;
}

template <> __device__ __forceinline__ uint32_t codes_as<__half>(uint32_t upper) {
    uint32_t moved = (upper & 0x80008000u) | (upper >> 1 & 0x3f803f80u), power = 0x5c005c00u; /* 2^8 */
    __half2 v = __hmul2(*(__half2 *)&moved, *(__half2 *)&power);
    return *(uint32_t *)&v;
}

/* Of four 16-bit numbers the first and third, the second and fourth. */
__device__ __forceinline__ uint32_t even_halves(uint32_t a, uint32_t b) { return __byte_perm(a, b, 0x5410); }
__device__ __forceinline__ uint32_t odd_halves(uint32_t a, uint32_t b) { return __byte_perm(a, b, 0x7632); }

/* Of four codes two: the first, the last, those in even bytes, those in odd ones. */
template <typename T> __device__ __forceinline__ uint32_t codes_low(uint32_t codes) {
    return codes_as<T>(__byte_perm(codes, 0, 0x1404));
}
template <typename T> __device__ __forceinline__ uint32_t codes_high(uint32_t codes) {
    return codes_as<T>(__byte_perm(codes, 0, 0x3424));
}
template <typename T> __device__ __forceinline__ uint32_t codes_even(uint32_t codes) {
    return codes_as<T>(codes << 8);
}
template <typename T> __device__ __forceinline__ uint32_t codes_odd(uint32_t codes) {
    return codes_as<T>(codes);
}

#endif
