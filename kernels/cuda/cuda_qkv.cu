/* cuda_qkv.cu - from a product to queries and the KV cache: bias, clip, norm, RoPE and the KV
 * write. Memory-bound: 16 bytes a thread where the shape allows (V = elements in 16 bytes),
 * else one element (V = 1).
 *
 * Rounding is that of the CPU backend: a product with its bias is rounded as a linear
 * module's output is. */
#include "kernels/cuda/cuda_rows.cuh"

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
    cuda_begin();
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

/* Heads that are clipped or normed, a warp each: numbers wait in shared memory for the sum
 * over the head, and for RoPE, which pairs dimensions of different lanes. */
struct head_args {
    float clip;                         /* 0 = none */
    const float *q_w, *q_b, *k_w, *k_b; /* norms; q_w NULL = none */
    float q_eps, k_eps;
    enum norm_kind kind;
};

enum { HEAD_WARPS = 4, HEAD_MOST = 256 };

__device__ __forceinline__ float lanes_sum(float x) {
    for (int d = 16; d > 0; d >>= 1) x += __shfl_xor_sync(~0u, x, d);
    return x;
}

/* room[0 .. hd) becomes its norm, rounded as op_residual_norm's. */
template <typename T>
__device__ void norm_head(float *room, int32_t hd, enum norm_kind kind, const float *w, const float *b,
                          float eps) {
    int lane = threadIdx.x & 31;
    float mean = 0.0f, squares = 0.0f;
    if (kind == NORM_LAYER) {
        for (int32_t i = lane; i < hd; i += 32) mean += room[i];
        mean = lanes_sum(mean) / (float)hd;
    }
    for (int32_t i = lane; i < hd; i += 32) squares = fmaf(room[i] - mean, room[i] - mean, squares);
    float scale = 1.0f / sqrtf(lanes_sum(squares) / (float)hd + eps);
    for (int32_t i = lane; i < hd; i += 32) {
        float x = (room[i] - mean) * scale, weight = kind == NORM_RMS_ONE_PLUS ? 1.0f + w[i] : w[i];
        if (kind == NORM_RMS) x = cuda_float(cuda_round<T>(x));
        x *= weight;
        room[i] = cuda_float(cuda_round<T>(b ? x + b[i] : x));
    }
}

template <typename T>
__global__ void __launch_bounds__(HEAD_WARPS * 32)
    heads_kernel(T *q, T *slab, const T *qkv, qkv_args a, head_args rules) {
    cuda_begin();
    __shared__ float rooms[HEAD_WARPS][HEAD_MOST];
    int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    int64_t row = blockIdx.x;
    int32_t n_heads = a.n_heads + 2 * a.n_kv_heads, hd = a.head_dim, h = blockIdx.y * HEAD_WARPS + warp;
    if (h >= n_heads) return; /* a whole warp; nothing below waits for the block */
    int32_t position = a.position[row], kv_head = h - a.n_heads;
    bool is_v = kv_head >= a.n_kv_heads;
    const T *in = qkv + (row * n_heads + h) * (int64_t)hd;
    const float *bias = a.bias ? a.bias + (int64_t)h * hd : NULL;
    float *room = rooms[warp];
    for (int32_t i = lane; i < hd; i += 32) {
        float x = biased<T>(in[i], bias, i);
        if (rules.clip > 0)
            x = x > rules.clip ? rules.clip : x < -rules.clip ? -rules.clip : x; /* NaN stays */
        room[i] = cuda_float(cuda_round<T>(x));
    }
    if (!is_v && rules.q_w) /* a lane reads what it wrote itself */
        norm_head<T>(room, hd, rules.kind, kv_head < 0 ? rules.q_w : rules.k_w,
                     kv_head < 0 ? rules.q_b : rules.k_b, kv_head < 0 ? rules.q_eps : rules.k_eps);
    __syncwarp();
    T *to = kv_head < 0 ? q + (row * a.n_heads + h) * (int64_t)hd
                        : slab + kv_at(a, row, position, is_v, is_v ? kv_head - a.n_kv_heads : kv_head);
    int32_t half = is_v ? 0 : a.half;
    for (int32_t i = lane; i < hd; i += 32) {
        float x = room[i];
        if (i < 2 * half) {
            int32_t angle = i < half ? i : i - half;
            float cs = a.cos[(int64_t)position * a.half + angle],
                  sn = a.sin[(int64_t)position * a.half + angle];
            x = i < half ? x * cs - room[i + half] * sn : x * cs + room[i - half] * sn;
        }
        to[i] = cuda_round<T>(x);
    }
}

static struct head_args head_args_of(const struct head_rules *rules) {
    struct head_args h = {rules->clip};
    if (!rules->q_norm) return h;
    h.q_w = (const float *)rules->q_norm->weight.data;
    h.q_b = (const float *)rules->q_norm->bias.data;
    h.k_w = (const float *)rules->k_norm->weight.data;
    h.k_b = (const float *)rules->k_norm->bias.data;
    h.q_eps = rules->q_norm->eps;
    h.k_eps = rules->k_norm->eps;
    h.kind = rules->q_norm->kind;
    return h;
}

template <typename T>
static void qkv_rows(struct cuda_dev *cuda, struct tensor *q, struct kv_cache *kv, int32_t layer,
                     const struct product *qkv, const struct attention_shape *shape,
                     const struct head_rules *rules, const struct step *step) {
    constexpr int V = 16 / sizeof(T);
    const struct rope *rope = rules->rope;
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
    T *to = (T *)q->data, *slab = (T *)kv->slab[layer];
    const T *in = (const T *)qkv->y.data;
    bool wide = a.half % V == 0 && (a.head_dim - 2 * a.half) % V == 0;
    if (rules->clip > 0 || rules->q_norm) {
        grid.y = (unsigned)((a.n_heads + 2 * a.n_kv_heads + HEAD_WARPS - 1) / HEAD_WARPS);
        cuda_launch(cuda, "qkv_finish", heads_kernel<T>, grid, HEAD_WARPS * 32, 0, to, slab, in, a,
                    head_args_of(rules));
    } else if (wide)
        cuda_launch(cuda, "qkv_finish", qkv_kernel<T, V>, grid, 192, 0, to, slab, in, a);
    else
        cuda_launch(cuda, "qkv_finish", qkv_kernel<T, 1>, grid, 192, 0, to, slab, in, a);
}

void cuda_qkv_finish(struct dev *dev, struct tensor *q, struct kv_cache *kv, int32_t layer,
                     const struct product *qkv, const struct attention_shape *shape,
                     const struct head_rules *rules, const struct step *step) {
    if (shape->head_dim > HEAD_MOST) {
        dev_fail(dev, E_UNSUPPORTED, "heads of %d dimensions; %d at most", shape->head_dim, HEAD_MOST);
        return;
    }
    BY_DTYPE(qkv->y.dtype, qkv_rows, cuda_of(dev), q, kv, layer, qkv, shape, rules, step);
}
