/* cuda_norm.cu - the sum into the residual stream and the norm behind it, one block a row.
 *
 * The row stays in registers between the passes (up to NORM_KEPT packs a thread; what is
 * beyond is read again). Sums go over each thread's numbers in ascending order, then over
 * the block in one fixed order. Rounding is that of the CPU backend: a product with its
 * bias is rounded as a linear module's output is, so are the sums into the stream, and
 * the norm's quotient where NORM_RMS says so. Codes are those of the rounded norm. */
#include "kernels/cuda/cuda_fp8.cuh"

enum { NORM_THREADS = 256, NORM_KEPT = 4 };

enum added { ADD_ONE, ADD_TWO, ADD_NORMED }; /* nothing or y; y + z; post(y) */

struct norm_args {
    const void *y, *z; /* y NULL: nothing to add */
    struct pending y_pending, z_pending;
    const float *w, *b, *post_w, *post_b; /* weights and biases of the norms; a bias may be NULL */
    float eps, post_eps;
    struct fp8_rows fp8; /* what is wanted in place of numbers */
};

/* The sum over the block, in one fixed order, for all threads. */
__device__ __forceinline__ float block_sum(float x, float *partial) {
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, n_warps = blockDim.x >> 5;
    for (int d = 16; d > 0; d >>= 1) x += __shfl_xor_sync(~0u, x, d);
    if (lane == 0) partial[warp] = x;
    __syncthreads();
    float sum = lane < n_warps ? partial[lane] : 0.0f;
    for (int d = 16; d > 0; d >>= 1) sum += __shfl_xor_sync(~0u, sum, d);
    return sum;
}

/* ---------------------------------------------------------------- a thread's share of a row */

template <int V> struct share {
    float kept[NORM_KEPT][V];
};

/* Constant indices keep it in registers. */
template <typename T, int V>
__device__ __forceinline__ void keep(share<V> &s, int k, const pack_of<T, V> &v) {
#pragma unroll
    for (int c = 0; c < NORM_KEPT; c++)
        if (c == k)
#pragma unroll
            for (int j = 0; j < V; j++) s.kept[c][j] = cuda_float(v.x[j]);
}

/* The k-th pack, which lies at p in memory. */
template <typename T, int V>
__device__ __forceinline__ void recall(float x[V], const share<V> &s, int k, const T *p) {
    if (k < NORM_KEPT) {
#pragma unroll
        for (int c = 0; c < NORM_KEPT; c++)
            if (c == k)
#pragma unroll
                for (int j = 0; j < V; j++) x[j] = s.kept[c][j];
    } else {
        pack_of<T, V> r = load<T, V>(p);
#pragma unroll
        for (int j = 0; j < V; j++) x[j] = cuda_float(r.x[j]);
    }
}

/* ---------------------------------------------------------------- norms */

struct moments {
    float mean, scale; /* mean 0 but for NORM_LAYER */
};

/* A thread's part of the first sum: of squares, or of the numbers themselves. */
template <enum norm_kind KIND> __device__ __forceinline__ float take(float sum, float x) {
    return KIND == NORM_LAYER ? sum + x : fmaf(x, x, sum);
}

/* The moments of a row of which each thread has a share and `sum`; `row` is where it lies. */
template <typename T, int V, enum norm_kind KIND>
__device__ __forceinline__ moments moments_of(float sum, const share<V> &s, const T *row, int64_t h,
                                              float eps, float partial[2][32]) {
    moments m = {0.0f, 0.0f};
    float total = block_sum(sum, partial[0]);
    if (KIND == NORM_LAYER) {
        float x[V], squares = 0.0f;
        int k = 0;
        m.mean = total / (float)h;
        for (int64_t i = (int64_t)threadIdx.x * V; i < h; i += NORM_THREADS * V, k++) {
            recall<T, V>(x, s, k, row + i);
#pragma unroll
            for (int j = 0; j < V; j++) squares = fmaf(x[j] - m.mean, x[j] - m.mean, squares);
        }
        total = block_sum(squares, partial[1]);
    }
    m.scale = 1.0f / sqrtf(total / (float)h + eps);
    return m;
}

/* Numbers i .. i + V - 1 of a row, with the norm's weights and, unless NULL, biases. */
template <typename T, int V, enum norm_kind KIND>
__device__ __forceinline__ pack_of<T, V> normed(const float x[V], const moments &m, const float *weight,
                                                const float *bias, int64_t i) {
    floats<V> w = load_floats<V>(weight + i), b = {};
    pack_of<T, V> o;
    if (KIND == NORM_LAYER && bias) b = load_floats<V>(bias + i);
#pragma unroll
    for (int j = 0; j < V; j++) {
        if (KIND == NORM_RMS) o.x[j] = cuda_round<T>(w.x[j] * cuda_float(cuda_round<T>(x[j] * m.scale)));
        if (KIND == NORM_RMS_ONE_PLUS) o.x[j] = cuda_round<T>((1.0f + w.x[j]) * (x[j] * m.scale));
        if (KIND == NORM_LAYER) {
            float v = (x[j] - m.mean) * m.scale * w.x[j];
            o.x[j] = cuda_round<T>(bias ? v + b.x[j] : v);
        }
    }
    return o;
}

/* ---------------------------------------------------------------- the kernel */

/* out = post(y), with out as the place where y lies with its bias while it is needed. */
template <typename T, int V, enum norm_kind KIND>
__device__ __forceinline__ void norm_addend(T *out, const norm_args &a, int64_t row, int64_t h,
                                            float partial[2][32]) {
    const T *y = (const T *)a.y + row * h;
    pending_row y_pending = row_pending<T>(a.y_pending, row);
    share<V> s;
    float sum = 0.0f;
    int k = 0;
    for (int64_t i = (int64_t)threadIdx.x * V; i < h; i += NORM_THREADS * V, k++) {
        pack_of<T, V> v = load<T, V>(y + i);
        floats<V> f = finished<T, V>(v, y_pending, i);
#pragma unroll
        for (int j = 0; j < V; j++) {
            v.x[j] = cuda_round<T>(f.x[j]);
            sum = take<KIND>(sum, f.x[j]);
        }
        keep<T, V>(s, k, v);
        store<T, V>(out + i, v);
    }
    moments m = moments_of<T, V, KIND>(sum, s, out, h, a.post_eps, partial);
    k = 0;
    for (int64_t i = (int64_t)threadIdx.x * V; i < h; i += NORM_THREADS * V, k++) {
        float x[V];
        recall<T, V>(x, s, k, out + i);
        store<T, V>(out + i, normed<T, V, KIND>(x, m, a.post_w, a.post_b, i));
    }
}

template <typename T, int V, enum norm_kind KIND>
__device__ __forceinline__ pack_of<T, V> normed_pack(const share<V> &s, int k, const T *res, const moments &m,
                                                     const norm_args &a, int64_t i) {
    float x[V];
    recall<T, V>(x, s, k, res + i);
    return normed<T, V, KIND>(x, m, a.w, a.b, i);
}

/* The row's norm as codes. */
template <typename T, int V, enum norm_kind KIND>
__device__ __forceinline__ void store_codes(share<V> &s, const T *res, const moments &m, const norm_args &a,
                                            int64_t row, int64_t h, float *partial) {
    float most = 0.0f;
    int k = 0;
    for (int64_t i = (int64_t)threadIdx.x * V; i < h; i += NORM_THREADS * V, k++) {
        pack_of<T, V> o = normed_pack<T, V, KIND>(s, k, res, m, a, i);
#pragma unroll
        for (int j = 0; j < V; j++) most = fmaxf(most, fabsf(cuda_float(o.x[j])));
        keep<T, V>(s, k, o);
    }
    float scale = fp8_scale(block_max(most, partial));
    if (threadIdx.x == 0) a.fp8.scale[row] = scale;
    k = 0;
    for (int64_t i = (int64_t)threadIdx.x * V; i < h; i += NORM_THREADS * V, k++) {
        float x[V];
        pack_of<T, V> o;
        if (k >= NORM_KEPT) {
            o = normed_pack<T, V, KIND>(s, k, res, m, a, i);
#pragma unroll
            for (int j = 0; j < V; j++) x[j] = cuda_float(o.x[j]);
        } else
            recall<T, V>(x, s, k, res);
        fp8_store(a.fp8.codes + row * h + i, x, 1.0f / scale);
    }
}

template <typename T, int V, enum norm_kind KIND, enum added ADD, bool CODES>
__global__ void __launch_bounds__(NORM_THREADS)
    norm_kernel(T *out_rows, T *residual, norm_args a, int64_t h) {
    cuda_begin();
    __shared__ float partial[4][32];
    int64_t row = blockIdx.x;
    T *res = residual + row * h, *out = out_rows + row * h;
    const T *y = a.y ? (const T *)a.y + row * h : NULL, *z = (const T *)a.z + row * h;
    if (ADD == ADD_NORMED) {
        norm_addend<T, V, KIND>(out, a, row, h, partial + 2);
        y = out; /* each thread reads back what it wrote itself */
    }
    pending_row y_pending = row_pending<T>(a.y_pending, row), z_pending = row_pending<T>(a.z_pending, row);
    share<V> s;
    float sum = 0.0f;
    int k = 0;
    for (int64_t i = (int64_t)threadIdx.x * V; i < h; i += NORM_THREADS * V, k++) {
        pack_of<T, V> r = load<T, V>(res + i);
        if (y) {
            pack_of<T, V> v = load<T, V>(y + i);
            floats<V> add, u;
            if (ADD == ADD_TWO) u = finished<T, V>(load<T, V>(z + i), z_pending, i);
            if (ADD == ADD_NORMED) {
#pragma unroll
                for (int j = 0; j < V; j++) add.x[j] = cuda_float(v.x[j]);
            } else
                add = finished<T, V>(v, y_pending, i);
#pragma unroll
            for (int j = 0; j < V; j++) {
                if (ADD == ADD_TWO) add.x[j] = cuda_float(cuda_round<T>(add.x[j] + u.x[j]));
                r.x[j] = cuda_round<T>(cuda_float(r.x[j]) + add.x[j]);
            }
            store<T, V>(res + i, r);
        }
#pragma unroll
        for (int j = 0; j < V; j++) sum = take<KIND>(sum, cuda_float(r.x[j]));
        keep<T, V>(s, k, r);
    }
    moments m = moments_of<T, V, KIND>(sum, s, res, h, a.eps, partial);
    if constexpr (CODES) {
        store_codes<T, V, KIND>(s, res, m, a, row, h, partial[2]);
        return;
    }
    k = 0;
    for (int64_t i = (int64_t)threadIdx.x * V; i < h; i += NORM_THREADS * V, k++)
        store<T, V>(out + i, normed_pack<T, V, KIND>(s, k, res, m, a, i));
}

/* ---------------------------------------------------------------- which of them */

struct norm_call {
    struct cuda_dev *cuda;
    struct activation *out;
    struct tensor *residual;
    norm_args args;
    enum norm_kind kind;
    enum added added;
};

template <typename T, int V, enum norm_kind KIND, enum added ADD, bool CODES>
static void launch(const norm_call &c) {
    dim3 grid((unsigned)c.residual->shape[0]);
    cuda_launch(c.cuda, "residual_norm", norm_kernel<T, V, KIND, ADD, CODES>, grid, NORM_THREADS, 0,
                (T *)c.out->x.data, (T *)c.residual->data, c.args, c.residual->shape[1]);
}

/* Codes are made of whole packs of eight. */
template <typename T, int V, enum norm_kind KIND, enum added ADD> static void launch_codes(const norm_call &c) {
    if constexpr (V == 8) {
        if (c.args.fp8.codes) {
            launch<T, V, KIND, ADD, true>(c);
            return;
        }
    }
    launch<T, V, KIND, ADD, false>(c);
}

template <typename T, int V, enum norm_kind KIND> static void launch_added(const norm_call &c) {
    if (c.added == ADD_TWO)
        launch_codes<T, V, KIND, ADD_TWO>(c);
    else if (c.added == ADD_NORMED)
        launch<T, V, KIND, ADD_NORMED, false>(c);
    else
        launch_codes<T, V, KIND, ADD_ONE>(c);
}

template <typename T, int V> static void launch_kind(const norm_call &c) {
    if (c.kind == NORM_RMS)
        launch_added<T, V, NORM_RMS>(c);
    else if (c.kind == NORM_LAYER)
        launch_added<T, V, NORM_LAYER>(c);
    else
        launch_added<T, V, NORM_RMS_ONE_PLUS>(c);
}

template <typename T> static void norm_rows(const norm_call &c) {
    constexpr int V = 16 / sizeof(T);
    if (c.residual->shape[1] % V == 0)
        launch_kind<T, V>(c);
    else
        launch_kind<T, 1>(c);
}

void cuda_residual_norm(struct dev *dev, struct activation *out, struct tensor *residual,
                        const struct addend *add, const struct norm *norm) {
    norm_call c = {cuda_of(dev), out, residual};
    c.kind = norm->kind;
    c.added = add->z ? ADD_TWO : add->post ? ADD_NORMED : ADD_ONE;
    c.args.y = add->y ? add->y->y.data : NULL;
    c.args.z = add->z ? add->z->y.data : NULL;
    c.args.y_pending = pending_of(add->y);
    c.args.z_pending = pending_of(add->z);
    c.args.w = (const float *)norm->weight.data;
    c.args.b = (const float *)norm->bias.data;
    c.args.eps = norm->eps;
    if (add->post) {
        c.args.post_w = (const float *)add->post->weight.data;
        c.args.post_b = (const float *)add->post->bias.data;
        c.args.post_eps = add->post->eps;
    }
    bool is_16_bit = residual->dtype != DTYPE_F32 && residual->shape[1] % 8 == 0;
    out->x.dtype = residual->dtype;
    if (out->wants_fp8 && is_16_bit && c.added != ADD_NORMED) { /* which keeps numbers where the codes go */
        c.args.fp8 = {(uint8_t *)out->x.data, (float *)out->row_scale.data};
        out->x.dtype = DTYPE_F8_E4M3;
    }
    BY_DTYPE(residual->dtype, norm_rows, c);
}
