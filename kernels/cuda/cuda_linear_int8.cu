/* cuda_linear_int8.cu - products of int8 codes by int8 codes on the tensor cores; ops.h has the
 * rule. The sums are exact integers, which one more kernel scales, and to which it adds the
 * outliers: each row has a list of its own, and the weight's columns that some row lists are
 * gathered into [u][n]. */
#include "kernels/cuda/cuda_fp8.cuh"
#include "kernels/cuda/cuda_linear.h"
#include "kernels/cuda/cuda_quantize.h"

/* Rows at once, which bounds the memory of codes and of integers. */
enum { INT8_SLAB = 2048, THREADS = 256, WARP = 32 };

/* ---------------------------------------------------------------- scratch */

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

static struct int8_room int8_room_at(char *base, const struct weight *w, size_t *bytes) {
    size_t m = INT8_SLAB, k = (size_t)w->k, n = (size_t)w->n;
    struct int8_room r;
    const struct room_part parts[] = {{(void **)&r.codes, m * k},
                                      {(void **)&r.scale, m * sizeof(float)},
                                      {(void **)&r.n_outliers, m * sizeof(int32_t)},
                                      {(void **)&r.outliers, m * k * sizeof(uint16_t)},
                                      {(void **)&r.in_some, (k / 32 + 1) * sizeof(uint32_t)},
                                      {(void **)&r.columns, k * sizeof(int32_t)},
                                      {(void **)&r.place, k * sizeof(int32_t)},
                                      {(void **)&r.n_columns, sizeof(int32_t)},
                                      {(void **)&r.gathered, k * n},
                                      {(void **)&r.integers, m * n * sizeof(int32_t)}};
    *bytes = room_lay_out(base, parts, sizeof parts / sizeof *parts);
    return r;
}

size_t cuda_int8_room(const struct weight *w) {
    size_t bytes;
    int8_room_at(NULL, w, &bytes);
    return bytes;
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
    struct linear_shape shape = {w->n, w->k, w->k_pad, DTYPE_I8, DTYPE_I32};
    struct linear_operands o = {room.integers, room.codes, w->data};
    algorithms_multiply(cuda, &shape, m, &o);
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

void cuda_linear_int8(struct cuda_dev *cuda, struct tensor *y, const struct tensor *x, const struct weight *w) {
    if (w->dtype == DTYPE_F16)
        int8_product<__half>(cuda, y, x, w);
    else
        int8_product<__nv_bfloat16>(cuda, y, x, w);
}
