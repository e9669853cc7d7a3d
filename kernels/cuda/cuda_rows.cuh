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

/* V numbers; p is aligned to 16 bytes where V is a multiple of 4. One by one they would be as
 * many loads, each with the lanes' numbers far apart. */
template <int V> struct floats {
    float x[V];
};

template <int V> __device__ __forceinline__ floats<V> load_floats(const float *p) {
    floats<V> f;
    if constexpr (V % 4 == 0) {
#pragma unroll
        for (int i = 0; i < V; i += 4) {
            float4 four = *(const float4 *)(p + i);
            f.x[i] = four.x;
            f.x[i + 1] = four.y;
            f.x[i + 2] = four.z;
            f.x[i + 3] = four.w;
        }
    } else {
#pragma unroll
        for (int i = 0; i < V; i++) f.x[i] = p[i];
    }
    return f;
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

/* A product's numbers i .. i + V - 1 of a row, finished: rounded as the linear module's output. */
template <typename T, int V>
__device__ __forceinline__ floats<V> finished(const pack_of<T, V> &x, const pending_row &p, int64_t i) {
    floats<V> v;
#pragma unroll
    for (int j = 0; j < V; j++) v.x[j] = cuda_float(x.x[j]);
    if (p.columns) {
        floats<V> scale = load_floats<V>(p.columns + i);
#pragma unroll
        for (int j = 0; j < V; j++)
            v.x[j] = cuda_float(cuda_round<T>(__fmul_rn(v.x[j], __fmul_rn(p.scale, scale.x[j]))));
    }
    if (p.bias) {
        floats<V> bias = load_floats<V>(p.bias + i);
#pragma unroll
        for (int j = 0; j < V; j++) v.x[j] = cuda_float(cuda_round<T>(v.x[j] + bias.x[j]));
    }
    return v;
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
