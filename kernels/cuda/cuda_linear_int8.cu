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
#include "kernels/cuda/cuda_mma.cuh"
#include "kernels/cuda/cuda_quantize.h"

#include <assert.h>

enum { SLAB = INT8_SLAB, STRIP = INT8_STRIP, GROUP = INT8_GROUP, GROUPS = INT8_GROUPS, WARP = 32, THREADS = GROUP * WARP };

/* ---------------------------------------------------------------- scratch */

struct int8_room { /* the parts of product_room.h */
    int8_t *codes;
    float *scale;
    uint32_t *in_some;  /* [words] of 32 columns: the bits of all rows, */
    uint32_t *in_group; /* [GROUPS][words]: and those of a group, right behind */
    int32_t *n_listed;
    uint16_t *listed;   /* ascending; the list of all is the last */
    int32_t *place;
    uint8_t *gathered;  /* codes are 128 more than they are */
    int32_t *integers;
    int32_t words;
    bool by_batch;
};

static struct int8_room room_at(char *base, const struct weight *w) {
    struct int8_room r = {};
    size_t parts[N_INT8_PARTS];
    void **at[N_INT8_PARTS];
    at[INT8_CODES] = (void **)&r.codes;
    at[INT8_SCALE] = (void **)&r.scale;
    at[INT8_BITS] = (void **)&r.in_some;
    at[INT8_N_LISTED] = (void **)&r.n_listed;
    at[INT8_LISTED] = (void **)&r.listed;
    at[INT8_PLACE] = (void **)&r.place;
    at[INT8_GATHERED] = (void **)&r.gathered;
    at[INT8_INTEGERS] = (void **)&r.integers;
    int8_room_parts(parts, w->n, w->k);
    room_lay_out(base, at, parts, N_INT8_PARTS);
    r.words = (int32_t)int8_bit_words(w->k);
    r.in_group = r.in_some + r.words;
    r.by_batch = w->outliers == INT8_OUTLIERS_BATCH;
    return r;
}

/* ---------------------------------------------------------------- numbers to codes */

/* A NaN is one. */
__device__ __forceinline__ bool is_outlier(float x) { return !(fabsf(x) < (float)INT8_OUTLIER); }

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
    cuda_launch(cuda, "outliers", mark_kernel<T>, (unsigned)x->shape[0], THREADS, 0, words,
                (const T *)x->data, x->shape[1]);
}

void int8_mark_columns(struct cuda_dev *cuda, uint32_t *words, const struct tensor *x) {
    BY_DTYPE(x->dtype, mark, cuda, words, x);
}

/* x, of at most 2^22, to the nearest integer, ties to even, and its last byte: at 1.5 * 2^23 a float's last
 * bit counts ones. The machine's own conversion is slow. */
__device__ __forceinline__ int8_t nearest_code(float x) {
    return (int8_t)__float_as_uint(__fadd_rn(x, 12582912.0f));
}

/* One block a row. */
template <typename T>
__global__ void __launch_bounds__(THREADS) quantize_kernel(int8_room out, const T *x, int64_t k) {
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
            codes.x[j] = is_out >> j & 1 ? (int8_t)0 : nearest_code(__fmul_rn(number, factor));
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
    constexpr int AHEAD = 8; /* words of a lane on their way at once */
    int lane = (int)threadIdx.x % WARP;
    int32_t n = 0;
    for (int32_t first = lane; first < (n_words + WARP - 1) / WARP * WARP; first += AHEAD * WARP) {
        uint32_t several[AHEAD];
#pragma unroll
        for (int i = 0; i < AHEAD; i++) several[i] = first + i * WARP < n_words ? words[first + i * WARP] : 0;
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            uint32_t bits = several[i];
            int32_t mine = __popc(bits), upto = mine, column = (first + i * WARP) * 32;
            if (__ballot_sync(~0u, mine > 0) == 0) continue;
            for (int d = 1; d < WARP; d *= 2) {
                int32_t other = __shfl_up_sync(~0u, upto, d);
                if (lane >= d) upto += other;
            }
            for (int32_t at = n + upto - mine; bits; bits &= bits - 1)
                add(at++, column + __ffs((int)bits) - 1);
            n += __shfl_sync(~0u, upto, WARP - 1);
        }
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

enum { TILE_ROWS = 64, TILE_COLUMNS = 128, LANES = TILE_ROWS / 4, UNIT = 16 };

/* Where a tile's code is in shared memory. Every four rows have their units of 16 codes in another order, so
 * that threads which write a column, each four rows of it, read different banks. */
__device__ __forceinline__ int tile_at(int row, int column) {
    return row * TILE_COLUMNS + ((column / UNIT ^ row / 4) % (TILE_COLUMNS / UNIT)) * UNIT + column % UNIT;
}

/* The listed columns of a tile of the weight, which goes through shared memory, for they are
 * read along one dimension and written along the other. LANES threads write a column. */
__global__ void __launch_bounds__(THREADS)
    gather_columns_kernel(int8_room room, const int8_t *codes, int64_t n, int64_t k) {
    __shared__ __align__(16) uint8_t tile[TILE_ROWS * TILE_COLUMNS];
    cuda_begin();
    int64_t row = (int64_t)blockIdx.x * TILE_ROWS, column = (int64_t)blockIdx.y * TILE_COLUMNS;
    const uint32_t *listed = room.in_some + column / 32;
    int words = (int)(k - column < TILE_COLUMNS ? (k - column + 31) / 32 : TILE_COLUMNS / 32);
    uint32_t some = 0;
    for (int i = 0; i < words; i++) some |= listed[i];
    if (some == 0) return;
    for (int i = threadIdx.x; i < TILE_ROWS * TILE_COLUMNS / UNIT; i += THREADS) {
        int r = i / (TILE_COLUMNS / UNIT), c = i % (TILE_COLUMNS / UNIT) * UNIT;
        if (row + r < n && column + c < k)
            *(uint4 *)&tile[tile_at(r, c)] = *(const uint4 *)(codes + (row + r) * k + column + c);
    }
    __syncthreads();
    int r = (int)threadIdx.x % LANES * 4;
    if (row + r >= n) return;
    for (int c = (int)threadIdx.x / LANES; c < words * 32; c += THREADS / LANES) {
        if (!(listed[c / 32] >> (c % 32) & 1)) continue;
        uchar4 four = make_uchar4(tile[tile_at(r, c)], tile[tile_at(r + 1, c)], tile[tile_at(r + 2, c)],
                                  tile[tile_at(r + 3, c)]);
        *(uint32_t *)(room.gathered + (int64_t)room.place[column + c] * n + row + r) =
            *(uint32_t *)&four ^ 0x80808080u;
    }
}

static void find_columns(struct cuda_dev *cuda, const struct int8_room *room, const struct weight *w,
                         int64_t n_groups) {
    dim3 tiles((unsigned)((w->n + TILE_ROWS - 1) / TILE_ROWS),
               (unsigned)((w->k + TILE_COLUMNS - 1) / TILE_COLUMNS));
    cuda_launch(cuda, "outliers", list_kernel, (unsigned)n_groups + 1, WARP, 0, *room, w->k);
    cuda_launch(cuda, "outliers", gather_columns_kernel, tiles, THREADS, 0, *room, (const int8_t *)w->data,
                w->n, w->k);
}

/* ---------------------------------------------------------------- integers to numbers */

/* Columns of y a thread and a block; listed columns at once. */
enum { V = 4, COLUMNS = THREADS * V, LISTED = WARP };

struct own_outlier {
    int32_t at; /* of codes[][] */
    float x;
};

struct listed_outliers {            /* of a group's rows in LISTED columns */
    uint8_t codes[LISTED][COLUMNS]; /* of the weight, as gathered */
    float x[LISTED][GROUP];         /* 0: it is in the row's codes */
    int32_t place[LISTED];          /* among the gathered columns */
    int32_t n_own[GROUP];
    own_outlier own[GROUP][LISTED]; /* x again, row by row */
};

struct looked_up { /* by a lane: a listed column, of its warp's row */
    int32_t place;
    float x;
};

/* The first LISTED of n listed columns. */
template <typename T>
__device__ __forceinline__ looked_up look_up(const int8_room &room, const T *x, const uint16_t *listed,
                                             int32_t n, bool is_row) {
    int lane = (int)threadIdx.x % WARP;
    if (lane >= n) return {0, 0.0f};
    int32_t column = listed[lane];
    return {room.place[column], is_row ? cuda_float(x[column]) : 0.0f};
}

__device__ __forceinline__ void note(listed_outliers *o, looked_up found, bool by_batch) {
    int r = (int)threadIdx.x / WARP, lane = (int)threadIdx.x % WARP;
    bool is_own = by_batch ? found.x != 0.0f : is_outlier(found.x);
    uint32_t all = __ballot_sync(~0u, is_own);
    own_outlier one = {lane * COLUMNS, found.x};
    if (is_own) o->own[r][__popc(all & ((1u << lane) - 1))] = one;
    o->x[lane][r] = is_own ? found.x : 0.0f;
    if (r == 0) o->place[lane] = found.place;
    if (lane == 0) o->n_own[r] = __popc(all);
}

/* The codes of the n columns noted, for the block's columns of y, of which there are `left`. */
__device__ __forceinline__ void fetch(listed_outliers *o, int32_t n, const uint8_t *gathered, int64_t stride,
                                      int64_t left) {
    constexpr int UNITS = COLUMNS / UNIT;
    for (int32_t i = (int32_t)threadIdx.x; i < n * UNITS; i += THREADS) {
        int at = i / UNITS, column = i % UNITS * UNIT;
        copy_async((uint32_t)__cvta_generic_to_shared(&o->codes[at][column]),
                   gathered + o->place[at] * stride + column, column < left);
    }
    copies_commit();
}

/* A byte of four codes that are 128 more than they are. 2^23 and the byte is a number whose last byte it is;
 * the machine's own conversion is slow. */
__device__ __forceinline__ float code_number(uint32_t four, int i) {
    return __uint_as_float(__byte_perm(four, 0x4b000000u, 0x7650u | (unsigned)i)) - 8388736.0f;
}

/* Two numbers rounded at once. */
template <typename T> __device__ __forceinline__ float2 rounded_pair(float a, float b);
template <> __device__ __forceinline__ float2 rounded_pair<__half>(float a, float b) {
    return __half22float2(__floats2half2_rn(a, b));
}
template <> __device__ __forceinline__ float2 rounded_pair<__nv_bfloat16>(float a, float b) {
    __nv_bfloat162 two = __floats2bfloat162_rn(a, b);
    uint32_t bits = *(const uint32_t *)&two; /* the upper half of a float each */
    return make_float2(__uint_as_float(bits << 16), __uint_as_float(bits & 0xffff0000u));
}

/* The weight's numbers in a listed column, for a thread's columns of y, as LLM.int8's 16-bit part has them.
 */
template <typename T>
__device__ __forceinline__ floats<V> weight_numbers(const uint8_t *codes, const pack_of<float, V> &scale) {
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
__device__ __forceinline__ void add_together(float sum[GROUP][V], const listed_outliers &o, int32_t n,
                                             const pack_of<float, V> &scale) {
#pragma unroll 2
    for (int32_t i = 0; i < n; i++) {
        floats<V> w = weight_numbers<T>(&o.codes[i][threadIdx.x * V], scale);
        floats<GROUP> x = load_floats<GROUP>(o.x[i]);
#pragma unroll
        for (int r = 0; r < GROUP; r++) add(sum[r], x.x[r], w);
    }
}

/* Row by row. */
template <typename T>
__device__ __forceinline__ void add_own(float sum[GROUP][V], const listed_outliers &o,
                                        const pack_of<float, V> &scale) {
    const uint8_t *codes = &o.codes[0][threadIdx.x * V];
#pragma unroll
    for (int r = 0; r < GROUP; r++) {
        int32_t n = o.n_own[r];
#pragma unroll 4
        for (int32_t i = 0; i < n; i++) {
            own_outlier one = o.own[r][i];
            add(sum[r], one.x, weight_numbers<T>(codes + one.at, scale));
        }
    }
}

struct strip { /* of a slab's rows */
    int64_t first, m;
};

/* Blocks of the same columns follow each other: the gathered codes that they share stay in the cache. */
template <typename U, typename T>
__global__ void __launch_bounds__(THREADS, 3)
    finish_kernel(U *y, int8_room room, const T *x, const float *column_scale, strip rows, int64_t n,
                  int64_t k) {
    __shared__ __align__(16) listed_outliers outliers;
    cuda_begin();
    int64_t group = rows.first / GROUP + blockIdx.x, first = group * GROUP, end = rows.first + rows.m;
    int64_t of_block = (int64_t)blockIdx.y * COLUMNS, column = of_block + threadIdx.x * V;
    int64_t my_row = first + threadIdx.x / WARP;
    bool is_inside = column < n;
    pack_of<float, V> scale = {};
    pack_of<int32_t, V> integers[GROUP] = {};
    float sum[GROUP][V];
    if (is_inside) scale = load<float, V>(column_scale + column);
#pragma unroll
    for (int r = 0; r < GROUP; r++)
        if (is_inside && first + r < end)
            integers[r] = load<int32_t, V>(room.integers + (first + r - rows.first) * n + column);
    int64_t list = room.by_batch ? (int64_t)GROUPS : group;
    const uint16_t *listed = room.listed + list * k;
    int32_t n_listed = room.n_listed[list];
    x += my_row * k;
    looked_up found =
        look_up<T>(room, x, listed, n_listed, my_row < end); /* while integers are on their way */
#pragma unroll
    for (int r = 0; r < GROUP; r++) {
        float row_scale = first + r < end ? room.scale[first + r] : 0.0f;
#pragma unroll
        for (int j = 0; j < V; j++) /* + 0: a -0 would become 0 where other rows of the group have outliers */
            sum[r][j] = __fmaf_rn(__fmul_rn((float)integers[r].x[j], __fmul_rn(row_scale, scale.x[j])),
                                  1.0f / (127 * 127), 0.0f);
    }
    for (int32_t at = 0; at < n_listed; at += LISTED) {
        int32_t n_now = min(n_listed - at, (int32_t)LISTED), n_own = 0;
        if (at > 0) __syncthreads(); /* the columns before have been added */
        note(&outliers, found, room.by_batch);
        __syncthreads();
        fetch(&outliers, n_now, room.gathered + of_block, n, n - of_block);
        found = look_up<T>(room, x, listed + at + LISTED, n_listed - at - LISTED, my_row < end);
        copies_wait<0>();
        __syncthreads();
        for (int r = 0; r < GROUP; r++) n_own += outliers.n_own[r];
        if (n_own >= 2 * n_now) /* as dear, each turning its own codes into numbers */
            add_together<T>(sum, outliers, n_now, scale);
        else
            add_own<T>(sum, outliers, scale);
    }
#pragma unroll
    for (int r = 0; r < GROUP; r++) {
        if (!is_inside || first + r >= end) continue;
        pack_of<U, V> out;
#pragma unroll
        for (int j = 0; j < V; j++) out.x[j] = cuda_round<U>(sum[r][j]);
        store<U, V>(y + (first + r) * n + column, out);
    }
}

/* ---------------------------------------------------------------- the product */

template <typename U, typename T>
static void finish(struct cuda_dev *cuda, void *y, const struct int8_room *room, const T *x,
                   const struct weight *w, struct strip rows) {
    dim3 grid((unsigned)((rows.m + GROUP - 1) / GROUP), (unsigned)((w->n + COLUMNS - 1) / COLUMNS));
    cuda_launch(cuda, "integers to numbers", finish_kernel<U, T>, grid, THREADS, 0, (U *)y, *room, x,
                (const float *)w->scale.data, rows, w->n, w->k);
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
    struct linear_shape s = {w->n, w->k, w->k_pad, DTYPE_I8, DTYPE_I32};
    for (struct strip rows = {}; rows.first < m; rows.first += STRIP) {
        rows.m = m - rows.first < STRIP ? m - rows.first : STRIP;
        struct linear_operands o = {room->integers, room->codes + rows.first * w->k, w->data};
        algorithms_multiply(cuda, &s, rows.m, &o);
        if (out == DTYPE_F32)
            finish<float, T>(cuda, y, room, x, w, rows);
        else
            finish<T, T>(cuda, y, room, x, w, rows);
    }
}

template <typename T>
static void product(struct cuda_dev *cuda, struct tensor *y, const struct tensor *x, const struct weight *w) {
    struct int8_room room = room_at((char *)cuda->quant->rows, w);
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

void cuda_linear_int8(struct cuda_dev *cuda, struct tensor *y, const struct tensor *x,
                      const struct weight *w) {
    if (w->dtype == DTYPE_F16)
        product<__half>(cuda, y, x, w);
    else
        product<__nv_bfloat16>(cuda, y, x, w);
}
