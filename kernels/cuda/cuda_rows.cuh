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

/* What a product has pending; each may be NULL. */
struct pending {
    const float *bias, *columns, *rows; /* scales */
};

static inline const float *bias_of(const struct product *y) {
    return y && y->weight ? (const float *)y->weight->bias.data : NULL;
}

static inline struct pending pending_of(const struct product *y) {
    struct pending p = {bias_of(y)};
    if (!y || !y->weight || !y->row_scale) return p;
    p.columns = (const float *)y->weight->scale.data;
    p.rows = y->row_scale;
    return p;
}

struct pending_row { /* of one row of it */
    const float *bias, *columns;
    float scale;
};

/* What sums of fp8 codes have been divided by. */
template <typename T> __device__ __forceinline__ float fp8_shift() { return 1.0f; }
template <> __device__ __forceinline__ float fp8_shift<__half>() { return (float)(1 << FP8_F16_SHIFT); }

template <typename T>
__device__ __forceinline__ pending_row row_pending(const struct pending &p, int64_t row) {
    return {p.bias, p.columns, p.columns ? p.rows[row] * fp8_shift<T>() : 0.0f};
}

/* A product's number with its bias, rounded as the linear module's output. */
template <typename T> __device__ __forceinline__ float biased(T x, const float *bias, int64_t i) {
    float v = cuda_float(x);
    return bias ? cuda_float(cuda_round<T>(v + bias[i])) : v;
}

/* A product's number i of a row, finished: rounded as the linear module's output. */
template <typename T> __device__ __forceinline__ float finished(T x, const pending_row &p, int64_t i) {
    float v = cuda_float(x);
    if (p.columns) v = cuda_float(cuda_round<T>(__fmul_rn(v, __fmul_rn(p.scale, p.columns[i]))));
    return p.bias ? cuda_float(cuda_round<T>(v + p.bias[i])) : v;
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
