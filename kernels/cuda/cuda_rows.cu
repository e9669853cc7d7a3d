/* cuda_rows.cu - operations that treat each row by itself: embedding, residual and norm,
 * bias and RoPE with the KV write, gate, gather. Memory-bound: 16 bytes a thread where the
 * shape allows (V = elements in 16 bytes), else one element (V = 1).
 *
 * Rounding is that of the CPU backend: a product with its bias is rounded as a linear
 * module's output is; so are the sum into the residual stream, the norm's quotient and
 * the activation function. */
#include "kernels/cuda/cuda.h"

#include <stdio.h>

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

static const float *bias_of(const struct product *y) {
    return y && y->weight ? (const float *)y->weight->bias.data : NULL;
}

static bool is_aligned(const void *p) { return ((uintptr_t)p & 15) == 0; }

/* ---------------------------------------------------------------- embedding */

struct tokens { /* of a step's rows, and where they are kept */
    const int32_t *token, *position, *slot, *last_sample;
    int32_t *history; /* or NULL */
    const int32_t *block_table;
    int32_t stride;
};

template <typename T, int V>
__global__ void embed_kernel(T *residual, const T *table, struct tokens t, int64_t h, int64_t ld,
                             int64_t n_ids) {
    int64_t row = blockIdx.x;
    int32_t id = t.token[row];
    if (id < 0) id = t.last_sample[~id];
    if (id < 0 || id >= n_ids) id = 0; /* a sample of logits that were not finite: its sequence ends */
    if (t.history && threadIdx.x == 0)
        *history_at(t.history, t.block_table, t.stride, t.slot[row], t.position[row]) = id;
    for (int64_t i = (int64_t)threadIdx.x * V; i < h; i += (int64_t)blockDim.x * V)
        store<T, V>(residual + row * h + i, load<T, V>(table + (int64_t)id * ld + i));
}

template <typename T>
static void embed_rows(struct cuda_dev *cuda, struct tensor *residual, const struct weight *table,
                       const struct step *step) {
    int64_t h = table->k;
    constexpr int V = 16 / sizeof(T);
    dim3 grid((unsigned)step->n_rows);
    struct tokens t = {step->token,           step->position,    step->slot,
                       cuda->dev.last_sample, cuda->dev.history, step->block_table,
                       step->block_table_stride};
    if (h % V == 0)
        embed_kernel<T, V><<<grid, 128, 0, cuda->stream>>>((T *)residual->data, (const T *)table->data, t, h,
                                                           table->k_pad, table->n);
    else
        embed_kernel<T, 1><<<grid, 128, 0, cuda->stream>>>((T *)residual->data, (const T *)table->data, t, h,
                                                           table->k_pad, table->n);
    cuda_launched(cuda, "embed");
}

void cuda_embed(struct dev *dev, struct tensor *residual, const struct weight *table,
                const struct step *step) {
    cuda_loader_drain(cuda_of(dev));
    if (residual->dtype == DTYPE_BF16)
        embed_rows<__nv_bfloat16>(cuda_of(dev), residual, table, step);
    else
        embed_rows<float>(cuda_of(dev), residual, table, step);
}

/* ---------------------------------------------------------------- residual and norm */

/* The sum over the block, in one fixed order, for all threads. */
__device__ __forceinline__ float block_sum(float x) {
    __shared__ float partial[32];
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, n_warps = blockDim.x >> 5;
    for (int d = 16; d > 0; d >>= 1) x += __shfl_xor_sync(~0u, x, d);
    if (lane == 0) partial[warp] = x;
    __syncthreads();
    float sum = lane < n_warps ? partial[lane] : 0.0f;
    for (int d = 16; d > 0; d >>= 1) sum += __shfl_xor_sync(~0u, sum, d);
    return sum;
}

enum { NORM_THREADS = 256, NORM_KEPT = 4 }; /* packs of the row that a thread keeps in registers */

template <typename T, int V>
__global__ void __launch_bounds__(NORM_THREADS)
    norm_kernel(T *out, T *residual, const T *y, const float *bias, const float *w, int64_t h, float eps) {
    int64_t row = blockIdx.x;
    T *res = residual + row * h;
    const T *add = y ? y + row * h : NULL;
    float kept[NORM_KEPT][V];
    float sum = 0.0f;
    int k = 0;
    for (int64_t i = (int64_t)threadIdx.x * V; i < h; i += NORM_THREADS * V, k++) {
        pack_of<T, V> r = load<T, V>(res + i);
        if (add) {
            pack_of<T, V> a = load<T, V>(add + i);
#pragma unroll
            for (int j = 0; j < V; j++)
                r.x[j] = cuda_round<T>(cuda_float(r.x[j]) + biased<T>(a.x[j], bias, i + j));
            store<T, V>(res + i, r);
        }
#pragma unroll
        for (int j = 0; j < V; j++) {
            float x = cuda_float(r.x[j]);
            sum = fmaf(x, x, sum);
        }
#pragma unroll
        for (int c = 0; c < NORM_KEPT; c++) /* constant indices keep it in registers */
            if (c == k)
#pragma unroll
                for (int j = 0; j < V; j++) kept[c][j] = cuda_float(r.x[j]);
    }
    float scale = 1.0f / sqrtf(block_sum(sum) / (float)h + eps);
    k = 0;
    for (int64_t i = (int64_t)threadIdx.x * V; i < h; i += NORM_THREADS * V, k++) {
        pack_of<T, V> o;
        float x[V];
        if (k < NORM_KEPT) {
#pragma unroll
            for (int c = 0; c < NORM_KEPT; c++)
                if (c == k)
#pragma unroll
                    for (int j = 0; j < V; j++) x[j] = kept[c][j];
        } else {
            pack_of<T, V> r = load<T, V>(res + i);
#pragma unroll
            for (int j = 0; j < V; j++) x[j] = cuda_float(r.x[j]);
        }
#pragma unroll
        for (int j = 0; j < V; j++)
            o.x[j] = cuda_round<T>(w[i + j] * cuda_float(cuda_round<T>(x[j] * scale)));
        store<T, V>(out + row * h + i, o);
    }
}

template <typename T>
static void norm_rows(struct cuda_dev *cuda, struct activation *out, struct tensor *residual,
                      const struct product *y, const struct tensor *w, float eps) {
    int64_t h = residual->shape[1];
    constexpr int V = 16 / sizeof(T);
    dim3 grid((unsigned)residual->shape[0]);
    T *o = (T *)out->x.data, *r = (T *)residual->data;
    const T *add = y ? (const T *)y->y.data : NULL;
    if (h % V == 0)
        norm_kernel<T, V>
            <<<grid, NORM_THREADS, 0, cuda->stream>>>(o, r, add, bias_of(y), (const float *)w->data, h, eps);
    else
        norm_kernel<T, 1>
            <<<grid, NORM_THREADS, 0, cuda->stream>>>(o, r, add, bias_of(y), (const float *)w->data, h, eps);
    cuda_launched(cuda, "residual_norm");
}

void cuda_residual_norm(struct dev *dev, struct activation *out, struct tensor *residual,
                        const struct product *y, const struct tensor *w, float eps) {
    if (residual->dtype == DTYPE_BF16)
        norm_rows<__nv_bfloat16>(cuda_of(dev), out, residual, y, w, eps);
    else
        norm_rows<float>(cuda_of(dev), out, residual, y, w, eps);
}

/* ---------------------------------------------------------------- bias, RoPE, KV write */

struct qkv_args {
    int32_t n_heads, n_kv_heads, head_dim, half, max_position; /* half of the dimensions that turn */
    int32_t block_table_stride;
    const float *bias, *cos, *sin;
    const int32_t *position, *slot, *block_table;
};

/* Where the row's key (which = 0) or value (1) of a head lies, in elements of the slab. */
__device__ __forceinline__ int64_t kv_at(const qkv_args &a, int64_t row, int32_t position, int which,
                                         int32_t head) {
    int64_t block = a.block_table[(int64_t)a.slot[row] * a.block_table_stride + position / KV_BLOCK];
    return (((block * 2 + which) * a.n_kv_heads + head) * KV_BLOCK + position % KV_BLOCK) * a.head_dim;
}

template <typename T, int V> __global__ void qkv_kernel(T *q, T *slab, const T *qkv, qkv_args a) {
    int64_t row = blockIdx.x;
    int32_t position = a.position[row], hd = a.head_dim;
    int32_t n_heads = a.n_heads + 2 * a.n_kv_heads;
    int32_t units = a.half / V, rest = (hd - 2 * a.half) / V, per_head = units + rest;
    int32_t per_v = hd / V; /* values do not turn */
    const T *in = qkv + row * (int64_t)n_heads * hd;
    int32_t n_turning = (a.n_heads + a.n_kv_heads) * per_head, n = n_turning + a.n_kv_heads * per_v;
    for (int32_t u = threadIdx.x; u < n; u += blockDim.x) {
        bool is_v = u >= n_turning;
        int32_t h = is_v ? a.n_heads + a.n_kv_heads + (u - n_turning) / per_v : u / per_head;
        int32_t part = is_v ? (u - n_turning) % per_v : u % per_head;
        const T *x = in + (int64_t)h * hd;
        const float *bias = a.bias ? a.bias + (int64_t)h * hd : NULL;
        int32_t kv_head = h - a.n_heads;
        T *to = kv_head < 0 ? q + (row * a.n_heads + h) * (int64_t)hd
                            : slab + kv_at(a, row, position, is_v, is_v ? kv_head - a.n_kv_heads : kv_head);
        if (is_v || part >= units) { /* passes through */
            int32_t i = is_v ? part * V : 2 * a.half + (part - units) * V;
            pack_of<T, V> v = load<T, V>(x + i);
#pragma unroll
            for (int j = 0; j < V; j++) v.x[j] = cuda_round<T>(biased<T>(v.x[j], bias, i + j));
            store<T, V>(to + i, v);
            continue;
        }
        int32_t i = part * V;
        pack_of<T, V> lo = load<T, V>(x + i), hi = load<T, V>(x + a.half + i);
        const float *cs = a.cos + (int64_t)position * a.half + i,
                    *sn = a.sin + (int64_t)position * a.half + i;
#pragma unroll
        for (int j = 0; j < V; j++) {
            float p = biased<T>(lo.x[j], bias, i + j), r = biased<T>(hi.x[j], bias, a.half + i + j);
            lo.x[j] = cuda_round<T>(p * cs[j] - r * sn[j]);
            hi.x[j] = cuda_round<T>(r * cs[j] + p * sn[j]);
        }
        store<T, V>(to + i, lo);
        store<T, V>(to + a.half + i, hi);
    }
}

template <typename T>
static void qkv_rows(struct cuda_dev *cuda, struct tensor *q, struct kv_cache *kv, int32_t layer,
                     const struct product *qkv, const struct attention_shape *shape, const struct rope *rope,
                     const struct step *step) {
    constexpr int V = 16 / sizeof(T);
    struct qkv_args a = {shape->n_heads,
                         shape->n_kv_heads,
                         shape->head_dim,
                         rope->n_rotated / 2,
                         (int32_t)rope->cos.shape[0],
                         step->block_table_stride,
                         bias_of(qkv),
                         (const float *)rope->cos.data,
                         (const float *)rope->sin.data,
                         step->position,
                         step->slot,
                         step->block_table};
    dim3 grid((unsigned)step->n_rows);
    bool wide = a.half % V == 0 && (a.head_dim - 2 * a.half) % V == 0;
    if (wide)
        qkv_kernel<T, V>
            <<<grid, 192, 0, cuda->stream>>>((T *)q->data, (T *)kv->slab[layer], (const T *)qkv->y.data, a);
    else
        qkv_kernel<T, 1>
            <<<grid, 192, 0, cuda->stream>>>((T *)q->data, (T *)kv->slab[layer], (const T *)qkv->y.data, a);
    cuda_launched(cuda, "qkv_finish");
}

void cuda_qkv_finish(struct dev *dev, struct tensor *q, struct kv_cache *kv, int32_t layer,
                     const struct product *qkv, const struct attention_shape *shape, const struct rope *rope,
                     const struct step *step) {
    if (qkv->y.dtype == DTYPE_BF16)
        qkv_rows<__nv_bfloat16>(cuda_of(dev), q, kv, layer, qkv, shape, rope, step);
    else
        qkv_rows<float>(cuda_of(dev), q, kv, layer, qkv, shape, rope, step);
}

/* ---------------------------------------------------------------- gate */

template <typename T, int V>
__global__ void glu_kernel(T *out, const T *gate_up, const float *bias, int64_t f) {
    int64_t row = blockIdx.y;
    int64_t i = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * V;
    if (i >= f) return;
    pack_of<T, V> g = load<T, V>(gate_up + row * 2 * f + i), u = load<T, V>(gate_up + row * 2 * f + f + i), o;
#pragma unroll
    for (int j = 0; j < V; j++) {
        float x = biased<T>(g.x[j], bias, i + j);
        float s = cuda_float(cuda_round<T>(x / (1.0f + expf(-x))));
        o.x[j] = cuda_round<T>(s * biased<T>(u.x[j], bias, f + i + j));
    }
    store<T, V>(out + row * f + i, o);
}

template <typename T>
static void glu_rows(struct cuda_dev *cuda, struct activation *out, const struct product *gate_up) {
    constexpr int V = 16 / sizeof(T);
    int64_t f = out->x.shape[1], t = out->x.shape[0];
    bool wide = f % V == 0;
    int64_t units = wide ? f / V : f;
    dim3 grid((unsigned)((units + 127) / 128), (unsigned)t);
    T *o = (T *)out->x.data;
    const T *in = (const T *)gate_up->y.data;
    if (wide)
        glu_kernel<T, V><<<grid, 128, 0, cuda->stream>>>(o, in, bias_of(gate_up), f);
    else
        glu_kernel<T, 1><<<grid, 128, 0, cuda->stream>>>(o, in, bias_of(gate_up), f);
    cuda_launched(cuda, "glu");
}

void cuda_glu(struct dev *dev, struct activation *out, const struct product *gate_up) {
    if (out->x.dtype == DTYPE_BF16)
        glu_rows<__nv_bfloat16>(cuda_of(dev), out, gate_up);
    else
        glu_rows<float>(cuda_of(dev), out, gate_up);
}

/* ---------------------------------------------------------------- gather */

template <typename U>
__global__ void gather_kernel(U *out, const U *x, const struct step_sample *samples, int64_t n) {
    int64_t s = blockIdx.x, row = samples[s].row;
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) out[s * n + i] = x[row * n + i];
}

void cuda_gather(struct dev *dev, struct activation *out, const struct activation *x,
                 const struct step *step) {
    struct cuda_dev *cuda = cuda_of(dev);
    int64_t bytes = x->x.shape[1] * (int64_t)dtype_bytes(x->x.dtype);
    if (step->n_samples == 0) return;
    if (bytes % 16 == 0 && is_aligned(out->x.data) && is_aligned(x->x.data))
        gather_kernel<uint4><<<(unsigned)step->n_samples, 128, 0, cuda->stream>>>(
            (uint4 *)out->x.data, (const uint4 *)x->x.data, step->samples, bytes / 16);
    else
        gather_kernel<uint16_t><<<(unsigned)step->n_samples, 128, 0, cuda->stream>>>(
            (uint16_t *)out->x.data, (const uint16_t *)x->x.data, step->samples, bytes / 2);
    cuda_launched(cuda, "gather");
}
