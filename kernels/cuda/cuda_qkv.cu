/* cuda_qkv.cu - from a product to queries and the KV cache: bias, clip, norm, RoPE and the KV
 * write. Memory-bound: 16 bytes a thread where the shape allows (V = elements in 16 bytes),
 * else one element (V = 1).
 *
 * Rounding is that of the CPU backend: a product with its bias is rounded as a linear
 * module's output is. What goes into an fp8 cache is not rounded before it is quantized. */
#include "kernels/cuda/cuda_fp8.cuh"

struct qkv_args {
    int32_t n_heads, n_kv_heads, head_dim, half, max_position; /* half of the dimensions that turn */
    int32_t block_table_stride;
    struct pending pending;
    const float *cos, *sin;
    const int32_t *position, *slot, *block_table;
};

/* Which tile of the slab takes the row's key (which = 0) or value (1) of a head. */
__device__ __forceinline__ int64_t tile_of(const qkv_args &a, int64_t row, int32_t position, int which,
                                           int32_t head) {
    int64_t block = a.block_table[(int64_t)a.slot[row] * a.block_table_stride + position / KV_BLOCK];
    return (block * 2 + which) * a.n_kv_heads + head;
}

/* Where it lies there, in elements of the slab. */
__device__ __forceinline__ int64_t kv_at(const qkv_args &a, int64_t row, int32_t position, int which,
                                         int32_t head) {
    return (tile_of(a, row, position, which, head) * KV_BLOCK + position % KV_BLOCK) * a.head_dim;
}

/* The same in an fp8 slab. */
struct fp8_place {
    uint8_t *codes; /* [head_dim] */
    float *scale;
};

__device__ __forceinline__ fp8_place fp8_at(void *slab, const qkv_args &a, int64_t row, int32_t position,
                                            int which, int32_t head) {
    uint8_t *tile = (uint8_t *)slab + tile_of(a, row, position, which, head) * KV_BLOCK * (a.head_dim + 4);
    return {tile + position % KV_BLOCK * a.head_dim,
            (float *)(tile + KV_BLOCK * a.head_dim) + position % KV_BLOCK};
}

/* 448 = the head's largest size; NaN where a number is not finite, which so becomes NaN again. */
__device__ __forceinline__ float head_scale(float most) { return most < INFINITY ? fp8_scale(most) : NAN; }

template <typename T, int V> __global__ void qkv_kernel(T *q, T *slab, const T *qkv, qkv_args a) {
    cuda_begin();
    int64_t row = blockIdx.x;
    int32_t position = a.position[row], hd = a.head_dim;
    int32_t n_heads = a.n_heads + 2 * a.n_kv_heads;
    int32_t units = a.half / V, rest = (hd - 2 * a.half) / V, per_head = units + rest;
    int32_t per_v = hd / V; /* values do not turn */
    const T *in = qkv + row * (int64_t)n_heads * hd;
    pending_row pending = row_pending<T>(a.pending, row);
    int32_t n_turning = (a.n_heads + a.n_kv_heads) * per_head, n = n_turning + a.n_kv_heads * per_v;
    for (int32_t u = threadIdx.x; u < n; u += blockDim.x) {
        bool is_v = u >= n_turning;
        int32_t h = is_v ? a.n_heads + a.n_kv_heads + (u - n_turning) / per_v : u / per_head;
        int32_t part = is_v ? (u - n_turning) % per_v : u % per_head;
        const T *x = in + (int64_t)h * hd;
        int32_t kv_head = h - a.n_heads, first = h * hd;
        T *to = kv_head < 0 ? q + (row * a.n_heads + h) * (int64_t)hd
                            : slab + kv_at(a, row, position, is_v, is_v ? kv_head - a.n_kv_heads : kv_head);
        if (is_v || part >= units) { /* passes through */
            int32_t i = is_v ? part * V : 2 * a.half + (part - units) * V;
            pack_of<T, V> v = load<T, V>(x + i);
            floats<V> f = finished<T, V>(v, pending, first + i);
#pragma unroll
            for (int j = 0; j < V; j++) v.x[j] = cuda_round<T>(f.x[j]);
            store<T, V>(to + i, v);
            continue;
        }
        int32_t i = part * V;
        pack_of<T, V> lo = load<T, V>(x + i), hi = load<T, V>(x + a.half + i);
        floats<V> p = finished<T, V>(lo, pending, first + i), r = finished<T, V>(hi, pending, first + a.half + i);
        floats<V> cs = load_floats<V>(a.cos + (int64_t)position * a.half + i),
                  sn = load_floats<V>(a.sin + (int64_t)position * a.half + i);
#pragma unroll
        for (int j = 0; j < V; j++) {
            lo.x[j] = cuda_round<T>(p.x[j] * cs.x[j] - r.x[j] * sn.x[j]);
            hi.x[j] = cuda_round<T>(r.x[j] * cs.x[j] + p.x[j] * sn.x[j]);
        }
        store<T, V>(to + i, lo);
        store<T, V>(to + a.half + i, hi);
    }
}

/* An fp8 cache: LANES threads a head, so that they know its largest number. A thread takes two
 * pieces of 8 numbers: a pair that RoPE turns, or two neighbours; half is a multiple of 8. */
struct two_pieces {
    int32_t at[2]; /* first number; head_dim = none */
    float x[2][8];
};

__device__ __forceinline__ void find_pieces(two_pieces &p, int32_t lane, int32_t half, int32_t hd) {
    int32_t n_turning = half / 8, piece = 2 * lane; /* n_turning pairs come first */
    bool turns = lane < n_turning;
    p.at[0] = turns ? 8 * lane : min(8 * piece, hd);
    p.at[1] = turns ? half + 8 * lane : min(8 * piece + 8, hd);
}

template <typename T>
__device__ __forceinline__ void load_pieces(two_pieces &p, const T *x, const pending_row &pending, int32_t first,
                                            int32_t hd) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
        floats<8> f = {};
        if (p.at[i] < hd) f = finished<T, 8>(load<T, 8>(x + p.at[i]), pending, first + p.at[i]);
#pragma unroll
        for (int j = 0; j < 8; j++) p.x[i][j] = f.x[j];
    }
}

__device__ __forceinline__ void turn_pieces(two_pieces &p, const float *cosines, const float *sines) {
    floats<8> cs = load_floats<8>(cosines), sn = load_floats<8>(sines);
#pragma unroll
    for (int j = 0; j < 8; j++) {
        float lo = p.x[0][j], hi = p.x[1][j];
        p.x[0][j] = lo * cs.x[j] - hi * sn.x[j];
        p.x[1][j] = hi * cs.x[j] + lo * sn.x[j];
    }
}

template <int LANES> __device__ __forceinline__ float largest(const two_pieces &p) {
    float most = 0.0f;
#pragma unroll
    for (int i = 0; i < 16; i++) most = max_or_nan(most, fabsf(p.x[i / 8][i % 8]));
#pragma unroll
    for (int d = LANES / 2; d > 0; d >>= 1) most = max_or_nan(most, __shfl_xor_sync(~0u, most, d));
    return most;
}

__device__ __forceinline__ void store_codes(const fp8_place &to, const two_pieces &p, float scale,
                                            int32_t hd) {
    float inverse = 1.0f / scale;
#pragma unroll
    for (int i = 0; i < 2; i++)
        if (p.at[i] < hd) fp8_store(to.codes + p.at[i], p.x[i], inverse);
}

template <typename T> __device__ __forceinline__ void store_pieces(T *to, const two_pieces &p, int32_t hd) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
        pack_of<T, 8> v;
#pragma unroll
        for (int j = 0; j < 8; j++) v.x[j] = cuda_round<T>(p.x[i][j]);
        if (p.at[i] < hd) store<T, 8>(to + p.at[i], v);
    }
}

template <typename T, int LANES> __global__ void qkv_fp8_kernel(T *q, void *slab, const T *qkv, qkv_args a) {
    cuda_begin();
    int64_t row = blockIdx.x;
    int32_t position = a.position[row], hd = a.head_dim, lane = threadIdx.x % LANES;
    int32_t n = a.n_heads + 2 * a.n_kv_heads, n_turning = a.n_heads + a.n_kv_heads;
    pending_row pending = row_pending<T>(a.pending, row);
    const float *cs = a.cos + (int64_t)position * a.half, *sn = a.sin + (int64_t)position * a.half;
    for (int32_t first = 0; first < n; first += blockDim.x / LANES) { /* whole warps, for their maxima */
        int32_t h = first + threadIdx.x / LANES, half = h < n_turning ? a.half : 0;
        bool there = h < n;
        two_pieces p;
        find_pieces(p, lane, half, hd);
        if (!there) p.at[0] = p.at[1] = hd;
        load_pieces<T>(p, qkv + (row * n + h) * hd, pending, h * hd, hd);
        if (lane < half / 8 && there) turn_pieces(p, cs + 8 * lane, sn + 8 * lane);
        float scale = head_scale(largest<LANES>(p));
        if (h < a.n_heads) {
            store_pieces<T>(q + (row * a.n_heads + h) * (int64_t)hd, p, hd);
        } else if (there) {
            int32_t kv_head = h - a.n_heads;
            bool is_v = kv_head >= a.n_kv_heads;
            fp8_place to = fp8_at(slab, a, row, position, is_v, is_v ? kv_head - a.n_kv_heads : kv_head);
            store_codes(to, p, scale, hd);
            if (lane == 0) *to.scale = scale;
        }
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

/* A number of a head after RoPE. */
__device__ __forceinline__ float turned(const qkv_args &a, const float *room, int32_t position, int32_t half,
                                        int32_t i) {
    if (i >= 2 * half) return room[i];
    int32_t angle = i < half ? i : i - half;
    float cs = a.cos[(int64_t)position * a.half + angle], sn = a.sin[(int64_t)position * a.half + angle];
    return i < half ? room[i] * cs - room[i + half] * sn : room[i] * cs + room[i - half] * sn;
}

__device__ __forceinline__ void store_head_fp8(const fp8_place &to, const qkv_args &a, const float *room,
                                               int32_t position, int32_t half) {
    int lane = threadIdx.x & 31;
    float most = 0.0f;
    for (int32_t i = lane; i < a.head_dim; i += 32)
        most = max_or_nan(most, fabsf(turned(a, room, position, half, i)));
    for (int d = 16; d > 0; d >>= 1) most = max_or_nan(most, __shfl_xor_sync(~0u, most, d));
    float scale = head_scale(most), inverse = 1.0f / scale;
    for (int32_t i = lane; i < a.head_dim; i += 32)
        to.codes[i] = fp8_code(turned(a, room, position, half, i) * inverse);
    if (lane == 0) *to.scale = scale;
}

template <typename T, bool FP8>
__global__ void __launch_bounds__(HEAD_WARPS * 32)
    heads_kernel(T *q, void *slab, const T *qkv, qkv_args a, head_args rules) {
    cuda_begin();
    __shared__ float rooms[HEAD_WARPS][HEAD_MOST];
    int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    int64_t row = blockIdx.x;
    int32_t n_heads = a.n_heads + 2 * a.n_kv_heads, hd = a.head_dim, h = blockIdx.y * HEAD_WARPS + warp;
    if (h >= n_heads) return; /* a whole warp; nothing below waits for the block */
    int32_t position = a.position[row], kv_head = h - a.n_heads;
    bool is_v = kv_head >= a.n_kv_heads;
    const T *in = qkv + (row * n_heads + h) * (int64_t)hd;
    pending_row pending = row_pending<T>(a.pending, row);
    float *room = rooms[warp];
    for (int32_t i = lane; i < hd; i += 32) {
        float x = finished<T, 1>(load<T, 1>(in + i), pending, (int64_t)h * hd + i).x[0];
        if (rules.clip > 0)
            x = x > rules.clip ? rules.clip : x < -rules.clip ? -rules.clip : x; /* NaN stays */
        room[i] = cuda_float(cuda_round<T>(x));
    }
    if (!is_v && rules.q_w) /* a lane reads what it wrote itself */
        norm_head<T>(room, hd, rules.kind, kv_head < 0 ? rules.q_w : rules.k_w,
                     kv_head < 0 ? rules.q_b : rules.k_b, kv_head < 0 ? rules.q_eps : rules.k_eps);
    __syncwarp();
    int32_t half = is_v ? 0 : a.half, head = is_v ? kv_head - a.n_kv_heads : kv_head;
    if (FP8 && kv_head >= 0) {
        store_head_fp8(fp8_at(slab, a, row, position, is_v, head), a, room, position, half);
        return;
    }
    T *to = kv_head < 0 ? q + (row * a.n_heads + h) * (int64_t)hd
                        : (T *)slab + kv_at(a, row, position, is_v, head);
    for (int32_t i = lane; i < hd; i += 32) to[i] = cuda_round<T>(turned(a, room, position, half, i));
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
static void finish_by_heads(struct cuda_dev *cuda, T *q, void *slab, const T *qkv, const qkv_args &a,
                            const head_args &rules, bool is_fp8, int32_t n_rows) {
    auto kernel = is_fp8 ? heads_kernel<T, true> : heads_kernel<T, false>;
    int32_t n_heads = a.n_heads + 2 * a.n_kv_heads;
    dim3 grid((unsigned)n_rows, (unsigned)((n_heads + HEAD_WARPS - 1) / HEAD_WARPS));
    cuda_launch(cuda, "qkv_finish", kernel, grid, HEAD_WARPS * 32, 0, q, slab, qkv, a, rules);
}

template <typename T>
static void finish_fp8(struct cuda_dev *cuda, T *q, void *slab, const T *qkv, const qkv_args &a,
                       int32_t n_rows) {
    auto kernel = a.head_dim <= 64    ? qkv_fp8_kernel<T, 4>
                  : a.head_dim <= 128 ? qkv_fp8_kernel<T, 8>
                                      : qkv_fp8_kernel<T, 16>;
    cuda_launch(cuda, "qkv_finish", kernel, dim3((unsigned)n_rows), 192, 0, q, slab, qkv, a);
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
                         pending_of(qkv),
                         (const float *)rope->cos.data,
                         (const float *)rope->sin.data,
                         step->position,
                         step->slot,
                         step->block_table};
    const T *in = (const T *)qkv->y.data;
    T *to = (T *)q->data;
    void *slab = kv->slab[layer];
    bool is_fp8 = kv->dtype == DTYPE_F8_E4M3;
    dim3 grid((unsigned)step->n_rows);
    if (rules->clip > 0 || rules->q_norm || (is_fp8 && (V != 8 || a.half % 8 != 0)))
        return finish_by_heads(cuda, to, slab, in, a, head_args_of(rules), is_fp8, step->n_rows);
    if constexpr (V == 8)
        if (is_fp8) return finish_fp8(cuda, to, slab, in, a, step->n_rows);
    if (a.half % V == 0 && (a.head_dim - 2 * a.half) % V == 0)
        cuda_launch(cuda, "qkv_finish", qkv_kernel<T, V>, grid, 192, 0, to, (T *)slab, in, a);
    else
        cuda_launch(cuda, "qkv_finish", qkv_kernel<T, 1>, grid, 192, 0, to, (T *)slab, in, a);
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
