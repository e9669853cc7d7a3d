/* cuda_linear_int8.cu - products of int8 codes by int8 codes on the tensor cores; ops.h has the
 * rule.
 *
 *   rows --quantize--> codes, and bits of the columns that some row keeps out of them
 *   bits --list--> columns, of each GROUP of rows and of all; those of the weight --gather--> [u][n]
 *   codes --multiply--> integers --finish, with the gathered columns--> y
 *
 * Most outliers are in the same few columns of all rows. So a block of the last kernel computes a
 * GROUP of rows, and turns each of their columns' codes into numbers once for all of them. Where
 * rows differ it goes row by row. Either way a row adds what is its own in ascending k, and so has
 * the same bits.
 *
 * INT8_OUTLIERS_BATCH: all rows' columns are known before the first row is quantized, and every
 * GROUP lists them all. */
#include "kernels/cuda/cuda_fp8.cuh"
#include "kernels/cuda/cuda_linear.h"
#include "kernels/cuda/cuda_quantize.h"

#include <assert.h>

/* SLAB: rows at once, which bounds the memory of codes. PIECE: integers at once, of some columns of y, so
 * many that they are still in the cache (50 MB on an H200) when they are read back. */
enum { SLAB = 2048, THREADS = 256, WARP = 32, GROUP = THREADS / WARP, GROUPS = SLAB / GROUP, PIECE = 8 << 20 };

/* ---------------------------------------------------------------- scratch */

struct int8_room {
    int8_t *codes;      /* [m][k] */
    float *scale;       /* [m] */
    uint32_t *in_some;  /* [words] of 32 columns: the bits of all rows, */
    uint32_t *in_group; /* [GROUPS][words]: and those of a group, right behind */
    int32_t *n_listed;  /* [GROUPS + 1]: columns of a group, and of all */
    uint16_t *listed;   /* [GROUPS + 1][k]: those, ascending */
    int32_t *place;     /* [k]: of a column among those of all */
    int8_t *gathered;   /* [k][n]: the weight's codes in those columns */
    int32_t *integers;  /* [m][columns of a piece] */
    int32_t words;
    bool by_batch;
};

/* Columns of y at once for m rows: all, or one of as many even pieces as a slab needs. */
static int64_t piece_columns(const struct weight *w, int64_t m) {
    int64_t pieces = m * w->n <= PIECE ? 1 : (SLAB * w->n + PIECE - 1) / PIECE;
    return ((w->n + pieces - 1) / pieces + 15) / 16 * 16;
}

static struct int8_room room_at(char *base, const struct weight *w, size_t *bytes) {
    size_t m = SLAB, k = (size_t)w->k, n = (size_t)w->n, words = (k + 31) / 32;
    size_t of_slab = m * (size_t)piece_columns(w, SLAB), of_few = m * n < PIECE ? m * n : (size_t)PIECE;
    struct int8_room r = {};
    const struct room_part parts[] = {{(void **)&r.codes, m * k},
                                      {(void **)&r.scale, m * sizeof(float)},
                                      {(void **)&r.in_some, (GROUPS + 1) * words * sizeof(uint32_t)},
                                      {(void **)&r.n_listed, (GROUPS + 1) * sizeof(int32_t)},
                                      {(void **)&r.listed, (GROUPS + 1) * k * sizeof(uint16_t)},
                                      {(void **)&r.place, k * sizeof(int32_t)},
                                      {(void **)&r.gathered, k * n},
                                      {(void **)&r.integers, (of_slab > of_few ? of_slab : of_few) * sizeof(int32_t)}};
    *bytes = room_lay_out(base, parts, sizeof parts / sizeof *parts);
    r.in_group = r.in_some + words;
    r.words = (int32_t)words;
    r.by_batch = w->outliers == INT8_OUTLIERS_BATCH;
    return r;
}

size_t cuda_int8_room(const struct weight *w) {
    size_t bytes;
    room_at(NULL, w, &bytes);
    return bytes;
}

/* ---------------------------------------------------------------- numbers to codes */

__device__ __forceinline__ bool is_outlier(float x) { return !(fabsf(x) < (float)INT8_OUTLIER); } /* a NaN is one */

/* One block a row. */
template <typename T> __global__ void mark_kernel(uint32_t *words, const T *x, int64_t k) {
    cuda_begin();
    const T *in = x + (int64_t)blockIdx.x * k;
    for (int64_t first = (int64_t)threadIdx.x / WARP * WARP; first < k; first += THREADS) {
        int64_t i = first + threadIdx.x % WARP;
        uint32_t bits = __ballot_sync(~0u, i < k && is_outlier(cuda_float(in[i])));
        if (bits && threadIdx.x % WARP == 0) atomicOr(&words[first / 32], bits);
    }
}

template <typename T> static void mark(struct cuda_dev *cuda, uint32_t *words, const struct tensor *x) {
    cuda_launch(cuda, "outliers", mark_kernel<T>, (unsigned)x->shape[0], THREADS, 0, words, (const T *)x->data,
                x->shape[1]);
}

void int8_mark_columns(struct cuda_dev *cuda, uint32_t *words, const struct tensor *x) {
    BY_DTYPE(x->dtype, mark, cuda, words, x);
}

/* One block a row. */
template <typename T> __global__ void __launch_bounds__(THREADS) quantize_kernel(int8_room out, const T *x, int64_t k) {
    __shared__ float partial[32];
    constexpr int V = 8;
    cuda_begin();
    int64_t row = blockIdx.x;
    const T *in = x + row * k;
    uint32_t *in_group = out.in_group + row / GROUP * out.words;
    float most = 0.0f;
    for (int64_t i = (int64_t)threadIdx.x * V; i < k; i += THREADS * V) {
        pack_of<T, V> v = load<T, V>(in + i);
#pragma unroll
        for (int j = 0; j < V; j++) {
            float size = fabsf(cuda_float(v.x[j]));
            if (size < (float)INT8_OUTLIER) most = fmaxf(most, size);
        }
    }
    most = block_max(most, partial);
    float factor = most > 0.0f ? __fmul_rn(1.0f / most, 127.0f) : 0.0f;
    if (!isfinite(factor)) most = factor = 0.0f; /* so small a row is lost in any case */
    if (threadIdx.x == 0) out.scale[row] = most;
    for (int64_t i = (int64_t)threadIdx.x * V; i < k; i += THREADS * V) {
        pack_of<T, V> v = load<T, V>(in + i);
        pack_of<int8_t, V> codes;
        unsigned is_out = out.by_batch ? out.in_some[i / 32] >> (i % 32) & ((1 << V) - 1) : 0;
#pragma unroll
        for (int j = 0; j < V; j++) {
            float number = cuda_float(v.x[j]);
            is_out |= (unsigned)is_outlier(number) << j;
            codes.x[j] = is_out >> j & 1 ? (int8_t)0 : (int8_t)rintf(number * factor);
        }
        store<int8_t, V>(out.codes + row * k + i, codes);
        if (is_out == 0 || out.by_batch) continue;
        atomicOr(&in_group[i / 32], is_out << (i % 32));
        atomicOr(&out.in_some[i / 32], is_out << (i % 32));
    }
}

/* ---------------------------------------------------------------- columns */

/* One warp: the set bits of words[n_words] as an ascending list, which `add` takes; how many. */
template <typename List>
__device__ __forceinline__ int32_t list_bits(const uint32_t *words, int32_t n_words, List add) {
    int lane = (int)threadIdx.x % WARP;
    int32_t n = 0;
    for (int32_t first = 0; first < n_words; first += WARP) {
        int32_t word = first + lane;
        uint32_t bits = word < n_words ? words[word] : 0;
        int32_t mine = __popc(bits), upto = mine;
        if (__ballot_sync(~0u, mine > 0) == 0) continue;
        for (int d = 1; d < WARP; d *= 2) {
            int32_t other = __shfl_up_sync(~0u, upto, d);
            if (lane >= d) upto += other;
        }
        for (int32_t at = n + upto - mine; bits; bits &= bits - 1) add(at++, word * 32 + __ffs((int)bits) - 1);
        n += __shfl_sync(~0u, upto, WARP - 1);
    }
    return n;
}

/* One warp a list: block 0 that of all rows, the others those of groups. */
__global__ void list_kernel(int8_room room, int64_t k) {
    cuda_begin();
    int32_t n, group = blockIdx.x == 0 ? (int32_t)GROUPS : (int32_t)blockIdx.x - 1;
    uint16_t *list = room.listed + group * k;
    if (blockIdx.x == 0)
        n = list_bits(room.in_some, room.words, [&](int32_t at, int32_t column) {
            list[at] = (uint16_t)column;
            room.place[column] = at;
        });
    else
        n = list_bits(room.in_group + (int64_t)group * room.words, room.words,
                      [&](int32_t at, int32_t column) { list[at] = (uint16_t)column; });
    if (threadIdx.x == 0) room.n_listed[group] = n;
}

enum { TILE_ROWS = 64, TILE_COLUMNS = 128, TILE_STRIDE = TILE_COLUMNS + 16, LANES = TILE_ROWS / 4 };

/* The listed columns of a tile of the weight, which goes through shared memory, for they are
 * read along one dimension and written along the other. LANES threads write a column. */
__global__ void __launch_bounds__(THREADS)
    gather_columns_kernel(int8_room room, const int8_t *codes, int64_t n, int64_t k) {
    __shared__ __align__(16) int8_t tile[TILE_ROWS][TILE_STRIDE];
    cuda_begin();
    int64_t row = (int64_t)blockIdx.x * TILE_ROWS, column = (int64_t)blockIdx.y * TILE_COLUMNS;
    const uint32_t *listed = room.in_some + column / 32;
    int words = (int)(k - column < TILE_COLUMNS ? (k - column + 31) / 32 : TILE_COLUMNS / 32);
    uint32_t some = 0;
    for (int i = 0; i < words; i++) some |= listed[i];
    if (some == 0) return;
    for (int i = threadIdx.x; i < TILE_ROWS * TILE_COLUMNS / 16; i += THREADS) {
        int r = i / (TILE_COLUMNS / 16), c = i % (TILE_COLUMNS / 16) * 16;
        if (row + r < n && column + c < k)
            *(uint4 *)&tile[r][c] = *(const uint4 *)(codes + (row + r) * k + column + c);
    }
    __syncthreads();
    int r = (int)threadIdx.x % LANES * 4;
    if (row + r >= n) return;
    for (int c = (int)threadIdx.x / LANES; c < words * 32; c += THREADS / LANES) {
        if (!(listed[c / 32] >> (c % 32) & 1)) continue;
        char4 four = make_char4(tile[r][c], tile[r + 1][c], tile[r + 2][c], tile[r + 3][c]);
        *(char4 *)(room.gathered + (int64_t)room.place[column + c] * n + row + r) = four;
    }
}

static void find_columns(struct cuda_dev *cuda, const struct int8_room *room, const struct weight *w, int64_t n_groups) {
    dim3 tiles((unsigned)((w->n + TILE_ROWS - 1) / TILE_ROWS), (unsigned)((w->k + TILE_COLUMNS - 1) / TILE_COLUMNS));
    cuda_launch(cuda, "outliers", list_kernel, (unsigned)n_groups + 1, WARP, 0, *room, w->k);
    cuda_launch(cuda, "outliers", gather_columns_kernel, tiles, THREADS, 0, *room, (const int8_t *)w->data, w->n, w->k);
}

/* ---------------------------------------------------------------- integers to numbers */

enum { V = 4, LISTED = 2 * WARP }; /* columns of y a thread; listed columns at once */

struct own_outlier {
    int32_t place; /* among the gathered columns */
    float x;
};

struct listed_outliers { /* of a group's rows in LISTED columns */
    int32_t place[LISTED];
    float x[LISTED][GROUP];               /* 0: it is in the row's codes */
    int32_t n_own[GROUP];
    own_outlier own[GROUP][LISTED];       /* the same, row by row */
};

/* One warp a row looks up what it has in listed columns [0, n). */
template <typename T>
__device__ __forceinline__ void look_up(listed_outliers *o, const int8_room &room, const T *x, const uint16_t *listed,
                                        int32_t n, bool is_row) {
    int r = (int)threadIdx.x / WARP, lane = (int)threadIdx.x % WARP;
    int32_t n_own = 0;
#pragma unroll
    for (int i = lane; i < LISTED; i += WARP) {
        int32_t column = i < n ? listed[i] : 0, place = room.place[column];
        float number = i < n && is_row ? cuda_float(x[column]) : 0.0f;
        bool is_own = i < n && is_row && (room.by_batch || is_outlier(number));
        uint32_t all = __ballot_sync(~0u, is_own);
        own_outlier one = {place, number};
        if (is_own) o->own[r][n_own + __popc(all & ((1u << lane) - 1))] = one;
        n_own += __popc(all);
        o->x[i][r] = is_own ? number : 0.0f;
        if (r == 0) o->place[i] = place;
    }
    if (lane == 0) o->n_own[r] = n_own;
}

/* A byte of four codes. 2^23 + 128 + code is a number whose last byte is the code's, its sign turned; the
 * machine's own conversion is slow. */
__device__ __forceinline__ float code_number(uint32_t four, int i) {
    return __uint_as_float(__byte_perm(four ^ 0x80808080u, 0x4b000000u, 0x7650u | (unsigned)i)) - 8388736.0f;
}

/* Two numbers rounded at once. */
template <typename T> __device__ __forceinline__ float2 rounded_pair(float a, float b);
template <> __device__ __forceinline__ float2 rounded_pair<__half>(float a, float b) {
    return __half22float2(__floats2half2_rn(a, b));
}
template <> __device__ __forceinline__ float2 rounded_pair<__nv_bfloat16>(float a, float b) {
    return __bfloat1622float2(__floats2bfloat162_rn(a, b));
}

/* V of the weight's numbers in a gathered column, as LLM.int8's 16-bit part has them. */
template <typename T>
__device__ __forceinline__ floats<V> weight_numbers(const int8_t *codes, const pack_of<float, V> &scale) {
    uint32_t four = *(const uint32_t *)codes;
    floats<V> w;
#pragma unroll
    for (int j = 0; j < V; j++) w.x[j] = __fmul_rn(__fmul_rn(code_number(four, j), scale.x[j]), 1.0f / 127);
#pragma unroll
    for (int j = 0; j < V; j += 2) {
        float2 two = rounded_pair<T>(w.x[j], w.x[j + 1]);
        w.x[j] = two.x;
        w.x[j + 1] = two.y;
    }
    return w;
}

/* A product of two numbers of 16 bits is exact in f32: one rounding, that of the sum. */
__device__ __forceinline__ void add(float sum[V], float x, const floats<V> &w) {
#pragma unroll
    for (int j = 0; j < V; j++) sum[j] = __fmaf_rn(x, w.x[j], sum[j]);
}

/* The n listed columns, all rows at once: 0 times a number changes no sum. */
template <typename T>
__device__ __forceinline__ void add_together(float sum[GROUP][V], const listed_outliers &o, int32_t n, const int8_t *gathered,
                                             int64_t stride, const pack_of<float, V> &scale) {
#pragma unroll 2
    for (int32_t i = 0; i < n; i++) {
        floats<V> w = weight_numbers<T>(gathered + o.place[i] * stride, scale);
        floats<GROUP> x = load_floats<GROUP>(o.x[i]);
#pragma unroll
        for (int r = 0; r < GROUP; r++) add(sum[r], x.x[r], w);
    }
}

/* Row by row. */
template <typename T>
__device__ __forceinline__ void add_own(float sum[GROUP][V], const listed_outliers &o, const int8_t *gathered, int64_t stride,
                                        const pack_of<float, V> &scale) {
#pragma unroll
    for (int r = 0; r < GROUP; r++) {
        int32_t n = o.n_own[r];
#pragma unroll 4
        for (int32_t i = 0; i < n; i++) {
            own_outlier one = o.own[r][i];
            add(sum[r], one.x, weight_numbers<T>(gathered + one.place * stride, scale));
        }
    }
}

struct piece { /* columns of y */
    int64_t first, n;
};

template <typename U, typename T>
__global__ void __launch_bounds__(THREADS, 3) finish_kernel(U *y, int8_room room, const T *x, const float *column_scale,
                                                            piece p, int64_t m, int64_t n, int64_t k) {
    __shared__ __align__(16) listed_outliers outliers;
    cuda_begin();
    int64_t first = (int64_t)blockIdx.y * GROUP, of_piece = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * V;
    int64_t column = p.first + of_piece, my_row = first + threadIdx.x / WARP;
    bool is_inside = of_piece < p.n;
    pack_of<float, V> scale = {};
    pack_of<int32_t, V> integers[GROUP] = {};
    float sum[GROUP][V];
    if (is_inside) scale = load<float, V>(column_scale + column);
#pragma unroll
    for (int r = 0; r < GROUP; r++)
        if (is_inside && first + r < m) integers[r] = load<int32_t, V>(room.integers + (first + r) * p.n + of_piece);
    int64_t group = room.by_batch ? (int64_t)GROUPS : (int64_t)blockIdx.y;
    const uint16_t *listed = room.listed + group * k;
    int32_t n_listed = room.n_listed[group];
    x += my_row * k;
    if (n_listed > 0) look_up<T>(&outliers, room, x, listed, n_listed, my_row < m); /* while integers are on their way */
#pragma unroll
    for (int r = 0; r < GROUP; r++) {
        float row_scale = first + r < m ? room.scale[first + r] : 0.0f;
#pragma unroll
        for (int j = 0; j < V; j++) /* + 0: a -0 would become 0 where other rows of the group have outliers */
            sum[r][j] = __fmaf_rn(__fmul_rn((float)integers[r].x[j], __fmul_rn(row_scale, scale.x[j])),
                                  1.0f / (127 * 127), 0.0f);
    }
    for (int32_t at = 0; at < n_listed; at += LISTED) {
        int32_t n_now = min(n_listed - at, (int32_t)LISTED), n_own = 0;
        if (at > 0) {
            __syncthreads();
            look_up<T>(&outliers, room, x, listed + at, n_now, my_row < m);
        }
        __syncthreads();
        for (int r = 0; r < GROUP; r++) n_own += outliers.n_own[r];
        if (!is_inside) continue;
        if (n_own >= 2 * n_now) /* as dear, each turning its own codes into numbers */
            add_together<T>(sum, outliers, n_now, room.gathered + column, n, scale);
        else
            add_own<T>(sum, outliers, room.gathered + column, n, scale);
    }
#pragma unroll
    for (int r = 0; r < GROUP; r++) {
        if (!is_inside || first + r >= m) continue;
        pack_of<U, V> out;
#pragma unroll
        for (int j = 0; j < V; j++) out.x[j] = cuda_round<U>(sum[r][j]);
        store<U, V>(y + (first + r) * n + column, out);
    }
}

/* ---------------------------------------------------------------- the product */

template <typename U, typename T>
static void finish(struct cuda_dev *cuda, void *y, const struct int8_room *room, const T *x, const struct weight *w,
                   struct piece p, int64_t m) {
    int64_t columns = THREADS * V;
    dim3 grid((unsigned)((p.n + columns - 1) / columns), (unsigned)((m + GROUP - 1) / GROUP));
    cuda_launch(cuda, "integers to numbers", finish_kernel<U, T>, grid, THREADS, 0, (U *)y, *room, x,
                (const float *)w->scale.data, p, m, w->n, w->k);
}

static void forget_columns(struct cuda_dev *cuda, const struct int8_room *room, int64_t n_groups) {
    size_t bytes = (size_t)((n_groups + 1) * room->words) * sizeof *room->in_some;
    cuda_ok(cuda, cudaMemsetAsync(room->in_some, 0, bytes, cuda->stream), "quantize");
}

template <typename T>
static void slab_product(struct cuda_dev *cuda, void *y, enum dtype out, const T *x, const struct weight *w,
                         const struct int8_room *room, int64_t m) {
    int64_t n_groups = (m + GROUP - 1) / GROUP;
    if (!room->by_batch) forget_columns(cuda, room, n_groups);
    cuda_launch(cuda, "quantize", quantize_kernel<T>, (unsigned)m, THREADS, 0, *room, x, w->k);
    if (!room->by_batch) find_columns(cuda, room, w, n_groups);
    int64_t columns = piece_columns(w, m);
    for (int64_t first = 0; first < w->n; first += columns) {
        struct piece p = {first, w->n - first < columns ? w->n - first : columns};
        struct linear_shape s = {p.n, w->k, w->k_pad, DTYPE_I8, DTYPE_I32};
        struct linear_operands o = {room->integers, room->codes, (const int8_t *)w->data + first * w->k_pad};
        algorithms_multiply(cuda, &s, m, &o);
        if (out == DTYPE_F32)
            finish<float, T>(cuda, y, room, x, w, p, m);
        else
            finish<T, T>(cuda, y, room, x, w, p, m);
    }
}

template <typename T>
static void product(struct cuda_dev *cuda, struct tensor *y, const struct tensor *x, const struct weight *w) {
    size_t bytes;
    struct int8_room room = room_at((char *)cuda->quant->rows, w, &bytes);
    if (room.by_batch) {
        forget_columns(cuda, &room, 0);
        int8_mark_columns(cuda, room.in_some, x);
        find_columns(cuda, &room, w, 0);
    }
    for (int64_t r = 0, m; r < y->shape[0]; r += m) {
        m = y->shape[0] - r < SLAB ? y->shape[0] - r : SLAB;
        slab_product<T>(cuda, (char *)y->data + (size_t)(r * w->n) * dtype_bytes(y->dtype), y->dtype,
                        (const T *)x->data + r * w->k, w, &room, m);
    }
}

void cuda_linear_int8(struct cuda_dev *cuda, struct tensor *y, const struct tensor *x, const struct weight *w) {
    if (w->dtype == DTYPE_F16)
        product<__half>(cuda, y, x, w);
    else
        product<__nv_bfloat16>(cuda, y, x, w);
}
