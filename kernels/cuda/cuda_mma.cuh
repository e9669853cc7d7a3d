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

/* 16 bytes to an address in shared memory; zeros where there is nothing to copy. */
__device__ __forceinline__ void copy_async(uint32_t to, const void *from, bool there) {
#if CUDA_HAS_ASYNC_COPY
    int bytes = there ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes));
#else
    uint4 v = there ? *(const uint4 *)from : make_uint4(0, 0, 0, 0);
    asm volatile("st.shared.v4.b32 [%0], {%1,%2,%3,%4};" ::"r"(to), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
                 : "memory");
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

#endif
