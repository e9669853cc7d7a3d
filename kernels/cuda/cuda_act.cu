/* cuda_act.cu - activation functions between two products, with a gate or without.
 *
 * Rounding is that of the CPU backend: the product is rounded as a linear module's output is,
 * and so is the function's result. Where codes are wanted, a block of threads takes a whole
 * row, whose numbers wait in shared memory until the largest of them is known. */
#include "kernels/cuda/cuda_fp8.cuh"

/* x sigmoid(u). What is to be rounded to 16 bits has a few bits to spare, and these kernels
 * would wait for arithmetic, not for memory. */
template <typename T> __device__ __forceinline__ float gated_by(float x, float u) {
    if (sizeof(T) == 2) return __fdividef(x, 1.0f + __expf(-u));
    return x / (1.0f + expf(-u));
}

template <typename T, enum act ACT> __device__ __forceinline__ float activated(float x) {
    if (ACT == ACT_SILU) return gated_by<T>(x, x);
    if (ACT == ACT_GELU) return 0.5f * x * (1.0f + erff(x * 0.70710678f));
    /* (1 + tanh u) / 2 is the sigmoid of 2 u */
    return gated_by<T>(x, 1.59576912f * (x + 0.044715f * x * x * x));
}

/* Numbers [i, i + V) of a row of f, of which y has g, or where it is [gate | up] g and u. */
template <typename T, int V> struct operands {
    pack_of<T, V> g, u;
};

template <typename T, int V, bool GATED>
__device__ __forceinline__ operands<T, V> load_operands(const T *y, int64_t i, int64_t f) {
    operands<T, V> o;
    o.g = load<T, V>(y + i);
    if (GATED) o.u = load<T, V>(y + f + i);
    return o;
}

/* act(g), or act(g) * u. */
template <typename T, int V, enum act ACT, bool GATED>
__device__ __forceinline__ pack_of<T, V> act_pack(const operands<T, V> &in, const pending_row &p, int64_t i,
                                                  int64_t f) {
    pack_of<T, V> o;
    floats<V> g = finished<T, V>(in.g, p, i), u;
    if (GATED) u = finished<T, V>(in.u, p, f + i);
#pragma unroll
    for (int j = 0; j < V; j++) {
        o.x[j] = cuda_round<T>(activated<T, ACT>(g.x[j]));
        if (GATED) o.x[j] = cuda_round<T>(cuda_float(o.x[j]) * u.x[j]);
    }
    return o;
}

template <typename T, int V, enum act ACT, bool GATED>
__global__ void act_kernel(T *out, const T *y, pending p, int64_t f) {
    cuda_begin();
    int64_t row = blockIdx.y, i = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * V;
    if (i >= f) return;
    const T *in = y + row * (GATED ? 2 : 1) * f;
    operands<T, V> o = load_operands<T, V, GATED>(in, i, f);
    store<T, V>(out + row * f + i, act_pack<T, V, ACT, GATED>(o, row_pending<T>(p, row), i, f));
}

enum { CODES_THREADS = 256, MOST_SHARED = 200 << 10, AHEAD = 2 }; /* packs a thread loads at once */

template <typename T, enum act ACT, bool GATED>
__global__ void __launch_bounds__(CODES_THREADS, 3) act_codes_kernel(fp8_rows out, const T *y, pending p, int64_t f) {
    extern __shared__ __align__(16) char room[];
    __shared__ float partial[32];
    constexpr int V = 8;
    T *numbers = (T *)room;
    cuda_begin();
    int64_t row = blockIdx.x;
    const T *in = y + row * (GATED ? 2 : 1) * f;
    pending_row pending = row_pending<T>(p, row);
    float most = 0.0f;
    int64_t stride = (int64_t)blockDim.x * V;
    for (int64_t first = (int64_t)threadIdx.x * V; first < f; first += AHEAD * stride) {
        operands<T, V> loaded[AHEAD];
#pragma unroll
        for (int a = 0; a < AHEAD; a++)
            if (first + a * stride < f) loaded[a] = load_operands<T, V, GATED>(in, first + a * stride, f);
#pragma unroll
        for (int a = 0; a < AHEAD; a++) {
            int64_t i = first + a * stride;
            if (i >= f) break;
            pack_of<T, V> o = act_pack<T, V, ACT, GATED>(loaded[a], pending, i, f);
#pragma unroll
            for (int j = 0; j < V; j++) most = fmaxf(most, fabsf(cuda_float(o.x[j])));
            store<T, V>(numbers + i, o); /* each thread reads back what it wrote itself */
        }
    }
    float scale = fp8_scale(block_max(most, partial));
    if (threadIdx.x == 0) out.scale[row] = scale;
    for (int64_t i = (int64_t)threadIdx.x * V; i < f; i += stride) {
        pack_of<T, V> o = load<T, V>(numbers + i);
        float x[V];
#pragma unroll
        for (int j = 0; j < V; j++) x[j] = cuda_float(o.x[j]);
        fp8_store(out.codes + row * f + i, x, 1.0f / scale);
    }
}

/* ---------------------------------------------------------------- which of them */

template <typename T, enum act ACT, bool GATED>
static void launch_codes(struct cuda_dev *cuda, struct activation *out, const struct product *y) {
    int64_t f = out->x.shape[1];
    size_t bytes = (size_t)f * sizeof(T);
    void (*kernel)(fp8_rows, const T *, pending, int64_t) = act_codes_kernel<T, ACT, GATED>;
    if (bytes > 48 << 10 &&
        !cuda_ok(cuda, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes),
                 "glu"))
        return;
    unsigned threads = (unsigned)(f / 8 + AHEAD * 32 - 1) / (AHEAD * 32) * 32;
    if (threads > CODES_THREADS) threads = CODES_THREADS;
    cuda_launch(cuda, "glu", kernel, (unsigned)out->x.shape[0], threads, bytes,
                fp8_rows{(uint8_t *)out->x.data, (float *)out->row_scale.data}, (const T *)y->y.data,
                pending_of(y), f);
}

template <typename T, int V, enum act ACT, bool GATED>
static void launch_act(struct cuda_dev *cuda, struct activation *out, const struct product *y) {
    int64_t f = out->x.shape[1];
    dim3 grid((unsigned)((f / V + 127) / 128), (unsigned)out->x.shape[0]);
    if constexpr (V == 8) {
        if (out->x.dtype == DTYPE_F8_E4M3) {
            launch_codes<T, ACT, GATED>(cuda, out, y);
            return;
        }
    }
    cuda_launch(cuda, GATED ? "glu" : "act", act_kernel<T, V, ACT, GATED>, grid, 128, 0, (T *)out->x.data,
                (const T *)y->y.data, pending_of(y), f);
}

template <typename T, int V, bool GATED>
static void launch_by_act(struct cuda_dev *cuda, struct activation *out, const struct product *y,
                          enum act act) {
    if (act == ACT_SILU)
        launch_act<T, V, ACT_SILU, GATED>(cuda, out, y);
    else if (act == ACT_GELU)
        launch_act<T, V, ACT_GELU, GATED>(cuda, out, y);
    else
        launch_act<T, V, ACT_GELU_TANH, GATED>(cuda, out, y);
}

template <typename T>
static void act_rows(struct cuda_dev *cuda, struct activation *out, const struct product *y, enum act act,
                     bool gated) {
    constexpr int V = 16 / sizeof(T);
    bool wide = out->x.shape[1] % V == 0;
    if (gated && wide)
        launch_by_act<T, V, true>(cuda, out, y, act);
    else if (gated)
        launch_by_act<T, 1, true>(cuda, out, y, act);
    else if (wide)
        launch_by_act<T, V, false>(cuda, out, y, act);
    else
        launch_by_act<T, 1, false>(cuda, out, y, act);
}

static void activate(struct cuda_dev *cuda, struct activation *out, const struct product *y, enum act kind,
                     bool gated) {
    enum dtype t = y->y.dtype;
    int64_t f = out->x.shape[1], bytes = f * (int64_t)dtype_bytes(t);
    bool emits_fp8 = out->wants_fp8 && t != DTYPE_F32 && f % 8 == 0 && bytes <= MOST_SHARED;
    out->x.dtype = emits_fp8 ? DTYPE_F8_E4M3 : t;
    BY_DTYPE(t, act_rows, cuda, out, y, kind, gated);
}

void cuda_glu(struct dev *dev, struct activation *out, const struct product *gate_up, enum act kind) {
    activate(cuda_of(dev), out, gate_up, kind, true);
}

void cuda_act(struct dev *dev, struct activation *out, const struct product *y, enum act kind) {
    activate(cuda_of(dev), out, y, kind, false);
}
