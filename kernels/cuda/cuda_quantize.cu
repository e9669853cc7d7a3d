/* cuda_quantize.cu - products with quantized weights; ops.h has the rules.
 *
 * Codes become numbers of the compute dtype in scratch and go through the ordinary products,
 * whose bits do not depend on the number of rows. Codes of 8 bits are exact in every compute
 * dtype, and so are their products in f32. The scales of rows and columns are applied to f32
 * sums afterwards.
 *
 * int8: sums of at most SPAN products of two integers are exact in f32; a longer K is cut, and
 * the pieces are added as integers. */
#include "kernels/cuda/cuda_fp8.cuh"
#include "kernels/cuda/cuda_quantize.h"

#include "base/mem.h"

#include <assert.h>
#include <stdlib.h>

/* SLAB: rows that are multiplied at once, which bounds the memory of sums. */
enum { SPAN = 1024, SLAB = 512, THREADS = 256, WARP = 32 };

struct slab {
    void *codes;         /* [K / span][m][span] of the compute dtype */
    float *scale;        /* [m] */
    int32_t *n_outliers; /* [m] */
    int32_t *outlier_k;  /* [m][K], ascending */
    float *outlier_x;    /* [m][K] */
    float *sums;         /* [m][n] */
    int32_t *integers;   /* [m][n] */
    uint32_t *in_some;   /* [K / 32 and one]: INT8_OUTLIERS_BATCH: a bit for each column of outliers */
    bool by_batch;
};

static int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

static int64_t span_of(const struct weight *w) { return w->quant == QUANT_INT8 && w->k > SPAN ? SPAN : w->k; }

/* ---------------------------------------------------------------- scratch */

/* Graphs hold addresses, so they go when memory moves. */
static bool grow(struct cuda_dev *cuda, void **p, size_t *has, size_t bytes) {
    if (bytes <= *has) return true;
    assert(!cuda->is_recording);
    cudaStreamSynchronize(cuda->stream);
    cuda_graphs_close(cuda);
    cudaFree(*p);
    *p = NULL;
    *has = 0;
    if (!cuda_ok(cuda, cudaMalloc(p, bytes), "scratch memory of quantized products")) return false;
    *has = bytes;
    cuda->dev.n_growths++;
    return true;
}

static struct slab slab_at(char *base, const struct weight *w, enum dtype dtype, int64_t m, size_t *bytes) {
    size_t at = 0, rows = (size_t)m;
    struct slab s = {};
    size_t sizes[] = {rows * (size_t)w->k * dtype_bytes(dtype),
                      rows * sizeof(float),
                      rows * sizeof(int32_t),
                      rows * (size_t)w->k * sizeof(int32_t),
                      rows * (size_t)w->k * sizeof(float),
                      rows * (size_t)w->n * sizeof(float),
                      rows * (size_t)w->n * sizeof(int32_t),
                      ((size_t)w->k / 32 + 1) * sizeof(uint32_t)};
    void **parts[] = {&s.codes,
                      (void **)&s.scale,
                      (void **)&s.n_outliers,
                      (void **)&s.outlier_k,
                      (void **)&s.outlier_x,
                      (void **)&s.sums,
                      (void **)&s.integers,
                      (void **)&s.in_some};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        *parts[i] = base + at;
        at += (sizes[i] + 255) / 256 * 256;
    }
    *bytes = at;
    s.by_batch = w->quant == QUANT_INT8 && w->outliers == INT8_OUTLIERS_BATCH;
    return s;
}

static size_t expanded_bytes(const struct weight *w) {
    int64_t span = span_of(w), pieces = (w->k + span - 1) / span;
    return (size_t)(pieces * w->n_pad * round_up(span, 16)) * dtype_bytes(w->dtype);
}

void cuda_quantized_reserve(struct dev *dev, const struct weight *w) {
    struct cuda_dev *cuda = cuda_of(dev);
    size_t bytes = 0;
    if (!cuda->quant) cuda->quant = (struct cuda_quant *)mem_zalloc(1, sizeof *cuda->quant);
    struct cuda_quant *q = cuda->quant;
    if (cuda_multiplies_codes(cuda, w)) {
        grow(cuda, &q->rows, &q->rows_bytes, product_room_bytes(w->quant, w->n, w->k));
        return;
    }
    if (!quant_is_decoded(w->quant)) slab_at(NULL, w, w->dtype, SLAB, &bytes);
    if (grow(cuda, &q->weights, &q->weights_bytes, expanded_bytes(w)))
        grow(cuda, &q->rows, &q->rows_bytes, bytes);
}

void cuda_quantized_close(struct cuda_dev *cuda) {
    if (!cuda->quant) return;
    cudaFree(cuda->quant->weights);
    cudaFree(cuda->quant->rows);
    free(cuda->quant);
    cuda->quant = NULL;
}

/* ---------------------------------------------------------------- weights: codes to numbers */

/* Columns [first, first + span) of row blockIdx.x; zeros beyond the weight's own. */
template <typename T>
__global__ void decode8_kernel(T *out, const uint8_t *codes, int64_t n, int64_t k, int64_t k_pad,
                               int64_t first, int64_t span, int64_t ld, bool is_fp8) {
    const uint8_t *row = codes + blockIdx.x * k_pad + first;
    for (int64_t i = threadIdx.x; i < ld; i += blockDim.x) {
        bool inside = blockIdx.x < n && i < span && first + i < k;
        float x = !inside ? 0.0f : is_fp8 ? fp8_number(row[i]) : (float)(int8_t)row[i];
        out[blockIdx.x * ld + i] = cuda_round<T>(x);
    }
}

template <typename T> static void decode_8bit(struct cuda_dev *cuda, T *out, const struct weight *w) {
    int64_t span = span_of(w), ld = round_up(span, 16);
    for (int64_t first = 0; first < w->k; first += span, out += w->n_pad * ld)
        decode8_kernel<T><<<(unsigned)w->n_pad, THREADS, 0, cuda->stream>>>(
            out, (const uint8_t *)w->data, w->n, w->k, w->k_pad, first, span, ld, w->quant == QUANT_FP8);
    cuda_launched(cuda, "8-bit weights");
}

/* ---------------------------------------------------------------- activations: numbers to codes */

__device__ __forceinline__ float nearest_fp8(float x) { return x == x ? fp8_number(fp8_code(x)) : x; }

__device__ __forceinline__ float warp_max(float x) {
    for (int i = WARP / 2; i > 0; i /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffff, x, i));
    return x;
}

/* One warp a row. Code i of row r goes to piece i / span, at r and i % span. */
template <typename T>
__global__ void quantize_rows_kernel(struct slab s, const T *x, int64_t m, int64_t k, int64_t span,
                                     bool is_fp8) {
    int64_t r = blockIdx.x;
    int lane = (int)threadIdx.x;
    const T *row = x + r * k;
    float most = 0.0f;
    for (int64_t i = lane; i < k; i += WARP) {
        float size = fabsf(cuda_float(row[i]));
        if (is_fp8 || size < (float)INT8_OUTLIER) most = fmaxf(most, size); /* a NaN is left out */
    }
    most = warp_max(most);
    float scale = is_fp8 ? fp8_scale(most) : most;
    float factor = is_fp8 ? 1.0f / scale : most > 0.0f ? __fmul_rn(1.0f / most, 127.0f) : 0.0f;
    if (!is_fp8 && !isfinite(factor)) scale = factor = 0.0f;
    int32_t n_outliers = 0;
    for (int64_t at = 0; at < k; at += WARP) {
        int64_t i = at + lane;
        float v = i < k ? cuda_float(row[i]) : 0.0f;
        bool is_outlier = !is_fp8 && !(fabsf(v) < (float)INT8_OUTLIER);
        if (s.by_batch) is_outlier = s.in_some[at / WARP] >> lane & 1;
        unsigned ballot = __ballot_sync(0xffffffff, is_outlier);
        if (is_outlier) {
            int64_t place = r * k + n_outliers + __popc(ballot & ((1u << lane) - 1));
            s.outlier_k[place] = (int32_t)i;
            s.outlier_x[place] = v;
        }
        n_outliers += __popc(ballot);
        if (i >= k) continue;
        float code = is_fp8 ? nearest_fp8(v * factor) : is_outlier ? 0.0f : rintf(v * factor);
        int64_t piece = i / span, width = k - piece * span < span ? k - piece * span : span;
        ((T *)s.codes)[piece * span * m + r * width + i % span] = cuda_round<T>(code);
    }
    if (lane != 0) return;
    s.scale[r] = scale;
    s.n_outliers[r] = n_outliers;
}

/* ---------------------------------------------------------------- sums to the product */

__global__ void add_integers_kernel(int32_t *integers, const float *sums, int64_t n, bool is_first) {
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) integers[i] = (is_first ? 0 : integers[i]) + (int32_t)sums[i];
}

struct columns { /* a segment's */
    int64_t first, n;
    const float *scale;
    const int8_t *codes; /* of the segment's first row, k_pad apart */
    int64_t k_pad;
};

/* y: [m][ld], of which these columns are written. */
template <typename U, typename W>
__global__ void finish_kernel(U *y, struct slab s, struct columns c, int64_t ld, int64_t k, bool is_fp8) {
    int64_t r = blockIdx.y, i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= c.n) return;
    int64_t at = r * ld + c.first + i;
    float scale = __fmul_rn(s.scale[r], c.scale[i]);
    float shift = fp8_shift<U>();
    float sum = is_fp8 ? __fmul_rn(cuda_float(cuda_round<U>(s.sums[at] / shift)), scale * shift)
                       : __fmul_rn(__fmul_rn((float)s.integers[at], scale), 1.0f / (127 * 127));
    for (int32_t o = 0; o < s.n_outliers[r]; o++) {
        int8_t code = c.codes[i * c.k_pad + s.outlier_k[r * k + o]];
        float w = cuda_float(cuda_round<W>(__fmul_rn(__fmul_rn((float)code, c.scale[i]), 1.0f / 127)));
        sum = __fadd_rn(sum, __fmul_rn(s.outlier_x[r * k + o], w));
    }
    y[at] = cuda_round<U>(sum);
}

template <typename U, typename W>
static void finish(struct cuda_dev *cuda, U *y, const struct slab *s, const struct weight *w, int64_t m) {
    for (int32_t i = 0; i < w->n_segments; i++) {
        const struct weight_segment *g = &w->segments[i];
        struct columns c = {g->first_row, g->n_rows, (const float *)w->scale.data + g->first_row,
                            (const int8_t *)w->data + g->first_row * w->k_pad, w->k_pad};
        dim3 grid((unsigned)((c.n + THREADS - 1) / THREADS), (unsigned)m);
        finish_kernel<U, W><<<grid, THREADS, 0, cuda->stream>>>(y, *s, c, w->n, w->k, w->quant == QUANT_FP8);
    }
    cuda_launched(cuda, "the end of a quantized product");
}

/* ---------------------------------------------------------------- the product */

void quantized_multiply(struct cuda_dev *cuda, const struct tensor *y, const void *x, const struct weight *w,
                        const void *numbers, int64_t k, int64_t ld) {
    struct weight plain = *w;
    plain.quant = QUANT_NONE;
    plain.data = (void *)numbers;
    plain.k = k;
    plain.k_pad = ld;
    struct product product = {};
    struct activation in = {};
    product.y = *y;
    in.x = tensor_2d((void *)x, w->dtype, y->shape[0], k);
    cuda_linear(&cuda->dev, &product, &in, &plain);
}

/* Under the rule of the batch, of all rows' outliers. */
static void mark_columns(struct cuda_dev *cuda, const struct slab *s, const struct tensor *x) {
    size_t bytes = ((size_t)x->shape[1] / 32 + 1) * sizeof *s->in_some;
    if (!s->by_batch) return;
    cuda_ok(cuda, cudaMemsetAsync(s->in_some, 0, bytes, cuda->stream), "quantize");
    int8_mark_columns(cuda, s->in_some, x);
}

/* m <= SLAB rows of 8-bit codes; the weights are decoded. */
template <typename T>
static void slab_product(struct cuda_dev *cuda, const struct tensor *y, const T *x, const struct weight *w,
                         const struct slab &s) {
    int64_t m = y->shape[0], span = span_of(w), ld = round_up(span, 16), n = m * w->n;
    const T *numbers = (const T *)cuda->quant->weights;
    struct tensor sums = tensor_2d(s.sums, DTYPE_F32, m, w->n);
    quantize_rows_kernel<T>
        <<<(unsigned)m, WARP, 0, cuda->stream>>>(s, x, m, w->k, span, w->quant == QUANT_FP8);
    for (int64_t first = 0; first < w->k; first += span, numbers += w->n_pad * ld) {
        int64_t k = w->k - first < span ? w->k - first : span;
        quantized_multiply(cuda, &sums, (const T *)s.codes + first * m, w, numbers, k, ld);
        if (w->quant == QUANT_INT8)
            add_integers_kernel<<<(unsigned)((n + THREADS - 1) / THREADS), THREADS, 0, cuda->stream>>>(
                s.integers, s.sums, n, first == 0);
    }
    if (y->dtype == DTYPE_F32)
        finish<float, T>(cuda, (float *)y->data, &s, w, m);
    else
        finish<T, T>(cuda, (T *)y->data, &s, w, m);
}

template <typename T>
static void product(struct cuda_dev *cuda, const struct tensor *y, const struct tensor *x,
                    const struct weight *w) {
    size_t bytes;
    struct slab s = slab_at((char *)cuda->quant->rows, w, w->dtype, SLAB, &bytes);
    decode_8bit<T>(cuda, (T *)cuda->quant->weights, w);
    mark_columns(cuda, &s, x);
    for (int64_t r = 0; r < y->shape[0]; r += SLAB) {
        int64_t m = y->shape[0] - r < SLAB ? y->shape[0] - r : SLAB;
        char *out = (char *)y->data + (size_t)(r * w->n) * dtype_bytes(y->dtype);
        struct tensor rows = tensor_2d(out, y->dtype, m, w->n);
        slab_product<T>(cuda, &rows, (const T *)x->data + r * w->k, w, s);
    }
}

void cuda_linear_quantized(struct cuda_dev *cuda, struct product *y, const struct activation *x,
                           const struct weight *w) {
    bool on_codes = cuda_multiplies_codes(cuda, w);
    assert(x->x.dtype == w->dtype || (on_codes && x->x.dtype == DTYPE_F8_E4M3));
    assert(y->y.dtype == w->dtype || y->y.dtype == DTYPE_F32);
    if (!cuda->quant || !(on_codes ? cuda->quant->rows : cuda->quant->weights)) return; /* reserving has failed, and said so */
    if (on_codes)
        cuda_linear_8bit(cuda, y, x, w);
    else if (w->quant == QUANT_FP8_BLOCK)
        cuda_linear_fp8_blocks(cuda, &y->y, &x->x, w);
    else if (quant_is_4bit(w->quant))
        cuda_linear_4bit(cuda, &y->y, &x->x, w);
    else
        BY_DTYPE(w->dtype, product, cuda, &y->y, &x->x, w);
}
