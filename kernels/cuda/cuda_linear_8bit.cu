/* cuda_linear_8bit.cu - products of 8-bit codes by 8-bit codes on the tensor cores: which weights
 * they serve, and those of fp8; ops.h has the rules. fp8's sums come out in y's dtype, for the next
 * operation to scale. int8 has cuda_linear_int8.cu. */
#include "kernels/cuda/cuda_fp8.cuh"
#include "kernels/cuda/cuda_linear.h"
#include "kernels/cuda/cuda_quantize.h"

#include <assert.h>

enum { THREADS = 256 };

bool cuda_multiplies_codes(const struct cuda_dev *cuda, const struct weight *w) {
    bool is_known = (w->quant == QUANT_FP8 && cuda->capability >= 89) ||
                    (w->quant == QUANT_INT8 && cuda->capability >= 75);
    if (w->k > UINT16_MAX) return false; /* a column's number in a row's list */
    return is_known && w->dtype != DTYPE_F32 && w->n % 16 == 0 && w->k % 16 == 0;
}

/* ---------------------------------------------------------------- scratch */

struct fp8_room { /* the parts of product_room.h */
    uint8_t *codes;
    float *scale;
};

static struct fp8_room fp8_room_at(char *base, const struct weight *w) {
    struct fp8_room r;
    size_t parts[N_FP8_PARTS];
    void **at[N_FP8_PARTS];
    at[FP8_CODES] = (void **)&r.codes;
    at[FP8_SCALE] = (void **)&r.scale;
    fp8_room_parts(parts, w->k);
    room_lay_out(base, at, parts, N_FP8_PARTS);
    return r;
}

/* ---------------------------------------------------------------- the product of codes */

static void multiply(struct cuda_dev *cuda, void *y, enum dtype out, const void *x, int64_t m, const struct weight *w) {
    struct linear_shape s = {w->n, w->k, w->k_pad, DTYPE_F8_E4M3, out};
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
    size_t in = dtype_bytes(x->dtype), out = dtype_bytes(y->dtype);
    struct fp8_room room = fp8_room_at((char *)cuda->quant->rows, w);
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

/* ---------------------------------------------------------------- any of them */

bool cuda_linear_takes(const struct dev *dev, const struct weight *w, enum dtype codes) {
    return codes == DTYPE_F8_E4M3 && w->quant == QUANT_FP8 &&
           cuda_multiplies_codes((const struct cuda_dev *)dev, w);
}

void cuda_linear_8bit(struct cuda_dev *cuda, struct product *y, const struct activation *x, const struct weight *w) {
    if (w->quant == QUANT_FP8)
        fp8_product(cuda, y, x, w);
    else
        cuda_linear_int8(cuda, &y->y, &x->x, w);
}
