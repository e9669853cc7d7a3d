/* cuda_attention_products.cuh - the warpgroup products that attention is made of, and what a warpgroup
 * does beside them (compute capability 9.0a). See cuda_wgmma.cuh. T is __nv_bfloat16 or __half. */
#ifndef BATCHD_KERNELS_CUDA_ATTENTION_PRODUCTS_CUH
#define BATCHD_KERNELS_CUDA_ATTENTION_PRODUCTS_CUH

#include "kernels/cuda/cuda_tma.cuh"
#include "kernels/cuda/cuda_wgmma.cuh"

#define WGMMA_SHARED_64(type)                                                                                \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"                                                \
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type " "                             \
                 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, "    \
                 "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "                        \
                 "%32, %33, p, 1, 1, 0, 0;\n}"                                                               \
                 : WGMMA_OUT_8(0)                                                                            \
                 : "l"(a), "l"(b), "r"((int)accumulate))
#define WGMMA_64(type)                                                                                       \
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type " "                             \
                 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, "    \
                 "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "                        \
                 "{%32, %33, %34, %35}, %36, 1, 1, 1, 1;"                                                    \
                 : WGMMA_OUT_8(0)                                                                            \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))
#define WGMMA_128(type)                                                                                      \
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type " "                            \
                 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, "    \
                 "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, "     \
                 "%36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, "     \
                 "%53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "                                  \
                 "{%64, %65, %66, %67}, %68, 1, 1, 1, 1;"                                                    \
                 : WGMMA_OUT_8(0), WGMMA_OUT_8(8)                                                            \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))

/* Matrices in shared memory are named by descriptors (wgmma_matrix). These return at once; see
 * wgmma_wait. First: d[64, 64] = a[64, 16] b[16, 64] (+ d), both as rows of 16. */
template <typename T>
__device__ __forceinline__ void wgmma_scores(float (*d)[4], uint64_t a, uint64_t b, bool accumulate) {
    if constexpr (is_half<T>)
        WGMMA_SHARED_64("f16");
    else
        WGMMA_SHARED_64("bf16");
}

/* d[64, N] += a[64, 16] b[16, N]: a's fragments in registers, b as 16 rows of N. */
template <typename T, int N>
__device__ __forceinline__ void wgmma_values(float (*d)[4], const uint32_t a[4], uint64_t b) {
    if constexpr (N == 64 && is_half<T>)
        WGMMA_64("f16");
    else if constexpr (N == 64)
        WGMMA_64("bf16");
    else if constexpr (is_half<T>)
        WGMMA_128("f16");
    else
        WGMMA_128("bf16");
}

/* What this thread wrote into shared memory, wgmma and the tensor memory accelerator see from here
 * on; others' after a barrier. */
__device__ __forceinline__ void shared_publish() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/* Barriers are there for all. */
__device__ __forceinline__ void barriers_publish() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

/* A warpgroup hands registers over, or takes them. */
template <int EACH> __device__ __forceinline__ void registers_give() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(EACH));
}

template <int EACH> __device__ __forceinline__ void registers_take() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(EACH));
}

#endif
