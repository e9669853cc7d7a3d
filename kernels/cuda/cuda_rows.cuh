/* cuda_rows.cuh - what the kernels of rows share: 16 bytes a thread, a product's bias,
 * activation functions, and the choice of a kernel by dtype. */
#ifndef BATCHD_KERNELS_CUDA_ROWS_CUH
#define BATCHD_KERNELS_CUDA_ROWS_CUH

#include "kernels/cuda/cuda.h"

template <typename T, int V> struct alignas(sizeof(T) * V) pack_of {
    T x[V];
};

template <typename T, int V> __device__ __forceinline__ pack_of<T, V> load(const T *p) {
    return *(const pack_of<T, V> *)p;
}

template <typename T, int V> __device__ __forceinline__ void store(T *p, const pack_of<T, V> &v) {
    *(pack_of<T, V> *)p = v;
}

/* A product's number with its bias, rounded as the linear module's output. */
template <typename T> __device__ __forceinline__ float biased(T x, const float *bias, int64_t i) {
    float v = cuda_float(x);
    return bias ? cuda_float(cuda_round<T>(v + bias[i])) : v;
}

static inline const float *bias_of(const struct product *y) {
    return y && y->weight ? (const float *)y->weight->bias.data : NULL;
}

/* f<T>(...) for the T of a dtype. */
#define BY_DTYPE(t, f, ...)                                                                                  \
    do {                                                                                                     \
        if ((t) == DTYPE_BF16)                                                                               \
            f<__nv_bfloat16>(__VA_ARGS__);                                                                   \
        else if ((t) == DTYPE_F16)                                                                           \
            f<__half>(__VA_ARGS__);                                                                          \
        else                                                                                                 \
            f<float>(__VA_ARGS__);                                                                           \
    } while (0)

#endif
