/* cuda_linear_8bit.cu - products of 8-bit codes by 8-bit codes on the tensor cores; ops.h has
 * the rules.
 *
 * fp8: the sums come out in y's dtype, for the next operation to scale. int8: the sums are
 * exact integers, which one more kernel scales, and to which it adds the outliers: each row has
 * a list of its own, and the weight's columns that some row lists are gathered into [u][n]. */
#include "kernels/cuda/cuda_fp8.cuh"
#include "kernels/cuda/cuda_linear.h"
#include "kernels/cuda/cuda_quantize.h"

#include <assert.h>

/* Rows at once, which bounds the memory of codes and of integers. */
enum { FP8_SLAB = 4096, INT8_SLAB = 2048, THREADS = 256, WARP = 32 };

bool cuda_multiplies_codes(const struct cuda_dev *cuda, const struct weight *w) {
    bool is_known = (w->quant == QUANT_FP8 && cuda->capability >= 89) ||
                    (w->quant == QUANT_INT8 && cuda->capability >= 75);
    if (w->k > UINT16_MAX) return false; /* a column's number in a row's list */
    return is_known && w->dtype != DTYPE_F32 && w->n % 16 == 0 && w->k % 16 == 0;
}

/* ---------------------------------------------------------------- scratch */

struct fp8_room {
    uint8_t *codes; /* [m][k] */
    float *scale;   /* [m] */
};

struct int8_room {
    int8_t *codes;       /* [m][k] */
    float *scale;        /* [m] */
    int32_t *n_outliers; /* [m] */
    uint16_t *outliers;  /* [m][k]: their columns, ascending */
    uint32_t *in_some;   /* [k / 32 and one]: a bit for each column that a row lists */
    int32_t *columns;    /* [k]: those, ascending */
    int32_t *place;      /* [k]: of a column among them */
    int32_t *n_columns;  /* [1] */
    int8_t *gathered;    /* [k][n]: the weight's codes in those columns */
    int32_t *integers;   /* [m][n] */
};

struct part {
    void **at;
    size_t bytes;
};

/* Lays parts out one behind the other; the bytes of all. */
static size_t lay_out(char *base, const struct part *parts, int n) {
    size_t at = 0;
    for (int i = 0; i < n; i++) {
        *parts[i].at = base + at;
        at += (parts[i].bytes + 255) / 256 * 256;
    }
    return at;
}

static struct fp8_room fp8_room_at(char *base, const struct weight *w, size_t *bytes) {
    struct fp8_room r;
    const struct part parts[] = {{(void **)&r.codes, (size_t)(FP8_SLAB * w->k)},
                                 {(void **)&r.scale, FP8_SLAB * sizeof(float)}};
    *bytes = lay_out(base, parts, 2);
    return r;
}

static struct int8_room int8_room_at(char *base, const struct weight *w, size_t *bytes) {
    size_t m = INT8_SLAB, k = (size_t)w->k, n = (size_t)w->n;
    struct int8_room r;
    const struct part parts[] = {{(void **)&r.codes, m * k},
                                 {(void **)&r.scale, m * sizeof(float)},
                                 {(void **)&r.n_outliers, m * sizeof(int32_t)},
                                 {(void **)&r.outliers, m * k * sizeof(uint16_t)},
                                 {(void **)&r.in_some, (k / 32 + 1) * sizeof(uint32_t)},
                                 {(void **)&r.columns, k * sizeof(int32_t)},
                                 {(void **)&r.place, k * sizeof(int32_t)},
                                 {(void **)&r.n_columns, sizeof(int32_t)},
                                 {(void **)&r.gathered, k * n},
                                 {(void **)&r.integers, m * n * sizeof(int32_t)}};
    *bytes = lay_out(base, parts, sizeof parts / sizeof *parts);
    return r;
}

size_t cuda_codes_room(const struct weight *w) {
    size_t bytes;
    if (w->quant == QUANT_FP8)
        fp8_room_at(NULL, w, &bytes);
    else
        int8_room_at(NULL, w, &bytes);
    return bytes;
}

/* ---------------------------------------------------------------- the product of codes */

static void multiply(struct cuda_dev *cuda, void *y, enum dtype out, const void *x, int64_t m, const struct weight *w) {
    struct linear_shape s = {w->n, w->k, w->k_pad, w->quant == QUANT_FP8 ? DTYPE_F8_E4M3 : DTYPE_I8, out};
    struct linear_operands o = {y, x, w->data};
    algorithms_multiply(cuda, &s, m, &o);
}

/* ---------------------------------------------------------------- fp8 */

template <typename T> __global__ void fp8_rows_kernel(fp8_rows out, const T *x, int64_t k) {
    __shared__ float partial[32];
    constexpr int V = 8;
    cuda_begin();
    int64_t row = blockIdx.x;
    const T *in = x + row * k;
    float most = 0.0f;
    for (int64_t i = (int64_t)threadIdx.x * V; i < k; i += THREADS * V) {
        pack_of<T, V> v = load<T, V>(in + i);
#pragma unroll
        for (int j = 0; j < V; j++) most = fmaxf(most, fabsf(cuda_float(v.x[j])));
    }
    float scale = fp8_scale(block_max(most, partial));
    if (threadIdx.x == 0) out.scale[row] = scale;
    for (int64_t i = (int64_t)threadIdx.x * V; i < k; i += THREADS * V) {
        pack_of<T, V> v = load<T, V>(in + i);
        float numbers[V];
#pragma unroll
        for (int j = 0; j < V; j++) numbers[j] = cuda_float(v.x[j]);
        fp8_store(out.codes + row * k + i, numbers, 1.0f / scale);
    }
}

template <typename T> static void fp8_quantize(struct cuda_dev *cuda, fp8_rows out, const void *x, int64_t m, int64_t k) {
    cuda_launch(cuda, "quantize", fp8_rows_kernel<T>, (unsigned)m, THREADS, 0, out, (const T *)x, k);
}

static void quantize_fp8(struct cuda_dev *cuda, fp8_rows out, const void *x, enum dtype dtype, int64_t m, int64_t k) {
    if (dtype == DTYPE_F16)
        fp8_quantize<__half>(cuda, out, x, m, k);
    else
        fp8_quantize<__nv_bfloat16>(cuda, out, x, m, k);
}

void cuda_quantize(struct dev *dev, struct activation *out, const struct activation *x) {
    fp8_rows rows = {(uint8_t *)out->x.data, (float *)out->row_scale.data};
    quantize_fp8(cuda_of(dev), rows, x->x.data, x->x.dtype, x->x.shape[0], x->x.shape[1]);
}

/* What is pending but the bias, in place. */
template <typename T> __global__ void scale_kernel(T *y, pending p, int64_t n) {
    cuda_begin();
    constexpr int V = 16 / sizeof(T);
    int64_t row = blockIdx.y, i = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * V;
    if (i >= n) return;
    T *at = y + row * n + i;
    floats<V> v = finished<T, V>(load<T, V>(at), row_pending<T>(p, row), i);
    pack_of<T, V> out;
#pragma unroll
    for (int j = 0; j < V; j++) out.x[j] = cuda_round<T>(v.x[j]);
    store<T, V>(at, out);
}

template <typename T>
static void scale_rows(struct cuda_dev *cuda, void *y, const float *row_scale, int64_t m, const struct weight *w) {
    int64_t columns = THREADS * (int64_t)(16 / sizeof(T)); /* w->n is a multiple of 16 */
    dim3 grid((unsigned)((w->n + columns - 1) / columns), (unsigned)m);
    pending p = {NULL, (const float *)w->scale.data, row_scale};
    cuda_launch(cuda, "scales of a product", scale_kernel<T>, grid, THREADS, 0, (T *)y, p, w->n);
}

/* Numbers are made codes a slab at a time; their scales go to `scale`, or if that is NULL into y. */
static void fp8_of_numbers(struct cuda_dev *cuda, struct tensor *y, const struct tensor *x, const struct weight *w,
                           float *scale) {
    size_t bytes, in = dtype_bytes(x->dtype), out = dtype_bytes(y->dtype);
    struct fp8_room room = fp8_room_at((char *)cuda->quant->rows, w, &bytes);
    for (int64_t r = 0, m; r < y->shape[0]; r += m) {
        m = y->shape[0] - r < FP8_SLAB ? y->shape[0] - r : FP8_SLAB;
        char *to = (char *)y->data + (size_t)(r * w->n) * out;
        fp8_rows rows = {room.codes, scale ? scale + r : room.scale};
        quantize_fp8(cuda, rows, (const char *)x->data + (size_t)(r * w->k) * in, x->dtype, m, w->k);
        multiply(cuda, to, y->dtype, room.codes, m, w);
        if (!scale) BY_DTYPE(y->dtype, scale_rows, cuda, to, room.scale, m, w);
    }
}

static void fp8_product(struct cuda_dev *cuda, struct product *y, const struct activation *x, const struct weight *w) {
    float *room = (float *)y->scale_room.data;
    const float *scale = (const float *)x->row_scale.data;
    if (x->x.dtype != DTYPE_F8_E4M3) {
        fp8_of_numbers(cuda, &y->y, &x->x, w, room);
        y->row_scale = room;
        return;
    }
    multiply(cuda, y->y.data, y->y.dtype, x->x.data, y->y.shape[0], w);
    if (room)
        y->row_scale = scale;
    else
        BY_DTYPE(y->y.dtype, scale_rows, cuda, y->y.data, scale, y->y.shape[0], w);
}

/* ---------------------------------------------------------------- int8: numbers to codes */

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

template <typename T> __global__ void int8_rows_kernel(int8_room out, const T *x, int64_t k) {
    extern __shared__ uint32_t is_outlier[]; /* [k / 32, rounded up]: bits */
    __shared__ float partial[32];
    constexpr int V = 8;
    int32_t n_words = (int32_t)((k + 31) / 32);
    cuda_begin();
    int64_t row = blockIdx.x;
    const T *in = x + row * k;
    float most = 0.0f;
    for (int32_t i = threadIdx.x; i < n_words; i += THREADS) is_outlier[i] = 0;
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
        unsigned outliers = 0;
#pragma unroll
        for (int j = 0; j < V; j++) {
            float number = cuda_float(v.x[j]);
            bool is_one = !(fabsf(number) < (float)INT8_OUTLIER); /* a NaN is one */
            outliers |= (unsigned)is_one << j;
            codes.x[j] = is_one ? (int8_t)0 : (int8_t)rintf(number * factor);
        }
        store<int8_t, V>(out.codes + row * k + i, codes);
        if (outliers) atomicOr(&is_outlier[i / 32], outliers << (i % 32));
        if (outliers) atomicOr(&out.in_some[i / 32], outliers << (i % 32));
    }
    __syncthreads();
    if (threadIdx.x >= WARP) return;
    uint16_t *list = out.outliers + row * k;
    int32_t n = list_bits(is_outlier, n_words, [&](int32_t at, int32_t column) { list[at] = (uint16_t)column; });
    if (threadIdx.x == 0) out.n_outliers[row] = n;
}

/* One warp: the columns of all rows. */
__global__ void list_columns_kernel(int8_room room, int64_t k) {
    cuda_begin();
    int32_t n = list_bits(room.in_some, (int32_t)((k + 31) / 32), [&](int32_t at, int32_t column) {
        room.columns[at] = column;
        room.place[column] = at;
    });
    if (threadIdx.x == 0) *room.n_columns = n;
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

/* ---------------------------------------------------------------- int8: integers to numbers */

enum { FINISH_ROWS = THREADS / WARP, FINISH_COLUMNS = 4, LISTED = 64 }; /* of a block; of a thread; at once */

struct listed { /* outliers of FINISH_ROWS rows, LISTED of each */
    int32_t n[FINISH_ROWS];
    int32_t at[FINISH_ROWS][LISTED]; /* among the gathered columns */
    float x[FINISH_ROWS][LISTED];
};

/* A warp looks up its row's outliers from `first` on. */
template <typename T>
__device__ __forceinline__ void look_up(listed *o, const int8_room &room, const T *x, int64_t row, int64_t k,
                                        int32_t first) {
    int warp = threadIdx.x / WARP;
    int32_t n = room.n_outliers[row] - first;
    if (n > LISTED) n = LISTED;
    for (int32_t i = threadIdx.x % WARP; i < n; i += WARP) {
        int32_t column = room.outliers[row * k + first + i];
        o->at[warp][i] = room.place[column];
        o->x[warp][i] = cuda_float(x[row * k + column]);
    }
    if (threadIdx.x % WARP == 0) o->n[warp] = n > 0 ? n : 0;
}

/* The codes of a weight are made numbers as in LLM.int8's 16-bit part. */
template <typename U, typename T>
__global__ void __launch_bounds__(THREADS)
    int8_finish_kernel(U *y, int8_room room, const T *x, const float *column_scale, int64_t m, int64_t n, int64_t k) {
    __shared__ listed outliers;
    constexpr int V = FINISH_COLUMNS;
    cuda_begin();
    int64_t first = (int64_t)blockIdx.y * FINISH_ROWS, column = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * V;
    int64_t my_row = first + threadIdx.x / WARP;
    bool is_inside = column < n;
    pack_of<float, V> scale = {};
    float sum[FINISH_ROWS][V];
    if (is_inside) scale = load<float, V>(column_scale + column);
#pragma unroll
    for (int r = 0; r < FINISH_ROWS; r++) {
        if (!is_inside || first + r >= m) continue;
        pack_of<int32_t, V> v = load<int32_t, V>(room.integers + (first + r) * n + column);
        float row_scale = room.scale[first + r];
#pragma unroll
        for (int j = 0; j < V; j++)
            sum[r][j] = __fmul_rn(__fmul_rn((float)v.x[j], __fmul_rn(row_scale, scale.x[j])), 1.0f / (127 * 127));
    }
    int32_t mine = my_row < m ? room.n_outliers[my_row] : 0;
    for (int32_t at = 0; __syncthreads_or(at < mine); at += LISTED) {
        if (my_row < m) look_up<T>(&outliers, room, x, my_row, k, at);
        __syncthreads();
        int32_t n_listed[FINISH_ROWS], longest = 0;
#pragma unroll
        for (int r = 0; r < FINISH_ROWS; r++) {
            n_listed[r] = is_inside && first + r < m ? outliers.n[r] : 0;
            longest = max(longest, n_listed[r]);
        }
        for (int32_t o = 0; o < longest; o++) {
            pack_of<int8_t, V> code[FINISH_ROWS]; /* all rows' before the first is used */
#pragma unroll
            for (int r = 0; r < FINISH_ROWS; r++)
                if (o < n_listed[r])
                    code[r] = load<int8_t, V>(room.gathered + (int64_t)outliers.at[r][o] * n + column);
#pragma unroll
            for (int r = 0; r < FINISH_ROWS; r++) {
                if (o >= n_listed[r]) continue;
                float number = outliers.x[r][o];
#pragma unroll
                for (int j = 0; j < V; j++) {
                    float w = __fmul_rn(__fmul_rn((float)code[r].x[j], scale.x[j]), 1.0f / 127);
                    sum[r][j] = __fadd_rn(sum[r][j], __fmul_rn(number, cuda_float(cuda_round<T>(w))));
                }
            }
        }
    }
#pragma unroll
    for (int r = 0; r < FINISH_ROWS; r++) {
        if (!is_inside || first + r >= m) continue;
        pack_of<U, V> out;
#pragma unroll
        for (int j = 0; j < V; j++) out.x[j] = cuda_round<U>(sum[r][j]);
        store<U, V>(y + (first + r) * n + column, out);
    }
}

/* ---------------------------------------------------------------- int8: the product */

template <typename U, typename T>
static void int8_finish(struct cuda_dev *cuda, void *y, const struct int8_room *room, const T *x, const struct weight *w,
                        int64_t m) {
    int64_t columns = THREADS * FINISH_COLUMNS;
    dim3 grid((unsigned)((w->n + columns - 1) / columns), (unsigned)((m + FINISH_ROWS - 1) / FINISH_ROWS));
    cuda_launch(cuda, "integers to numbers", int8_finish_kernel<U, T>, grid, THREADS, 0, (U *)y, *room, x,
                (const float *)w->scale.data, m, w->n, w->k);
}

template <typename T>
static void int8_slab(struct cuda_dev *cuda, void *y, enum dtype out, const T *x, const struct weight *w, int64_t m) {
    size_t bytes;
    struct int8_room room = int8_room_at((char *)cuda->quant->rows, w, &bytes);
    cuda_ok(cuda, cudaMemsetAsync(room.in_some, 0, (size_t)(w->k / 32 + 1) * sizeof *room.in_some, cuda->stream),
            "quantize");
    size_t bits = (size_t)(w->k + 31) / 32 * sizeof(uint32_t);
    dim3 tiles((unsigned)((w->n + TILE_ROWS - 1) / TILE_ROWS), (unsigned)((w->k + TILE_COLUMNS - 1) / TILE_COLUMNS));
    cuda_launch(cuda, "quantize", int8_rows_kernel<T>, (unsigned)m, THREADS, bits, room, x, w->k);
    cuda_launch(cuda, "outliers", list_columns_kernel, 1, WARP, 0, room, w->k);
    cuda_launch(cuda, "outliers", gather_columns_kernel, tiles, THREADS, 0, room, (const int8_t *)w->data, w->n, w->k);
    multiply(cuda, room.integers, DTYPE_I32, room.codes, m, w);
    if (out == DTYPE_F32)
        int8_finish<float, T>(cuda, y, &room, x, w, m);
    else
        int8_finish<T, T>(cuda, y, &room, x, w, m);
}

template <typename T>
static void int8_product(struct cuda_dev *cuda, struct tensor *y, const struct tensor *x, const struct weight *w) {
    for (int64_t r = 0, m; r < y->shape[0]; r += m) {
        m = y->shape[0] - r < INT8_SLAB ? y->shape[0] - r : INT8_SLAB;
        int8_slab<T>(cuda, (char *)y->data + (size_t)(r * w->n) * dtype_bytes(y->dtype), y->dtype,
                     (const T *)x->data + r * w->k, w, m);
    }
}

/* ---------------------------------------------------------------- any of them */

bool cuda_linear_takes(const struct dev *dev, const struct weight *w, enum dtype codes) {
    return codes == DTYPE_F8_E4M3 && w->quant == QUANT_FP8 &&
           cuda_multiplies_codes((const struct cuda_dev *)dev, w);
}

void cuda_linear_8bit(struct cuda_dev *cuda, struct product *y, const struct activation *x, const struct weight *w) {
    if (w->quant == QUANT_FP8)
        fp8_product(cuda, y, x, w);
    else if (w->dtype == DTYPE_F16)
        int8_product<__half>(cuda, &y->y, &x->x, w);
    else
        int8_product<__nv_bfloat16>(cuda, &y->y, &x->x, w);
}
