/* cuda_linear.cu - matrix products: which of the ways serves one (cuda_linear.h), and the
 * plain kernel for float32 and for shapes whose rows are not aligned to 16 bytes: small models
 * and tests. */
#include "kernels/cuda/cuda_linear.h"

#include "base/mem.h"

#include <assert.h>
#include <stdlib.h>

bool cuda_linear_open(struct cuda_dev *cuda) {
    struct cuda_linear *l = (struct cuda_linear *)mem_zalloc(1, sizeof *l);
    cuda->linear = l;
    cublasStatus_t s = cublasLtCreate(&l->lt);
    if (s != CUBLAS_STATUS_SUCCESS) {
        dev_fail(&cuda->dev, E_DEVICE, "cuBLASLt: %s", cublasLtGetStatusString(s));
        return false;
    }
    return cuda_ok(cuda, cudaMalloc(&l->workspace, LINEAR_WORKSPACE), "workspace") && algorithms_open(cuda);
}

void cuda_linear_close(struct cuda_dev *cuda) {
    struct cuda_linear *l = cuda->linear;
    if (!l) return;
    algorithms_close(cuda);
    cudaFree(l->workspace);
    if (l->lt) cublasLtDestroy(l->lt);
    free(l);
}

/* ---------------------------------------------------------------- the plain kernel */

enum { PLAIN_TILE = 16 };

/* y[m, n] in tiles of 16 x 16; each sum runs over k in ascending order. */
template <typename U, typename T, typename W>
__global__ void plain_kernel(U *y, const T *x, const W *w, int64_t m, int64_t n, int64_t k, int64_t ldw) {
    __shared__ float xs[PLAIN_TILE][PLAIN_TILE], ws[PLAIN_TILE][PLAIN_TILE + 1];
    int64_t row = (int64_t)blockIdx.y * PLAIN_TILE + threadIdx.y,
            col = (int64_t)blockIdx.x * PLAIN_TILE + threadIdx.x;
    int64_t w_row = (int64_t)blockIdx.x * PLAIN_TILE + threadIdx.y;
    float sum = 0.0f;
    for (int64_t at = 0; at < k; at += PLAIN_TILE) {
        int64_t i = at + threadIdx.x;
        xs[threadIdx.y][threadIdx.x] = row < m && i < k ? cuda_float(x[row * k + i]) : 0.0f;
        ws[threadIdx.y][threadIdx.x] = w_row < n && i < k ? cuda_float(w[w_row * ldw + i]) : 0.0f;
        __syncthreads();
        for (int j = 0; j < PLAIN_TILE && at + j < k; j++)
            sum = fmaf(xs[threadIdx.y][j], ws[threadIdx.x][j], sum);
        __syncthreads();
    }
    if (row < m && col < n) y[row * n + col] = cuda_round<U>(sum);
}

template <typename U, typename T, typename W>
static void launch_plain(struct cuda_dev *cuda, struct product *y, const struct activation *x,
                         const struct weight *w) {
    int64_t m = x->x.shape[0], n = w->n;
    dim3 grid((unsigned)((n + PLAIN_TILE - 1) / PLAIN_TILE), (unsigned)((m + PLAIN_TILE - 1) / PLAIN_TILE));
    dim3 block(PLAIN_TILE, PLAIN_TILE);
    plain_kernel<<<grid, block, 0, cuda->stream>>>((U *)y->y.data, (const T *)x->x.data, (const W *)w->data,
                                                   m, n, w->k, w->k_pad);
    cuda_launched(cuda, "a matrix product");
}

template <typename T>
static void plain_16(struct cuda_dev *cuda, struct product *y, const struct activation *x,
                     const struct weight *w) {
    if (x->x.dtype == DTYPE_F32)
        launch_plain<float, float, T>(cuda, y, x, w);
    else if (y->y.dtype == DTYPE_F32)
        launch_plain<float, T, T>(cuda, y, x, w);
    else
        launch_plain<T, T, T>(cuda, y, x, w);
}

static void plain_linear(struct cuda_dev *cuda, struct product *y, const struct activation *x,
                         const struct weight *w) {
    if (w->dtype == DTYPE_F32)
        launch_plain<float, float, float>(cuda, y, x, w);
    else if (w->dtype == DTYPE_F16)
        plain_16<__half>(cuda, y, x, w);
    else
        plain_16<__nv_bfloat16>(cuda, y, x, w);
}

/* ---------------------------------------------------------------- any product */

static bool is_plain(const struct activation *x, const struct weight *w) {
    return x->x.dtype == DTYPE_F32 || w->n % 8 || w->k % 8;
}

void cuda_linear(struct dev *dev, struct product *y, const struct activation *x, const struct weight *w) {
    struct cuda_dev *cuda = cuda_of(dev);
    int64_t m = x->x.shape[0];
    cuda_loader_drain(cuda);
    if (w->quant != QUANT_NONE) {
        cuda_linear_quantized(cuda, y, x, w);
        return;
    }
    if (is_plain(x, w)) {
        plain_linear(cuda, y, x, w);
        return;
    }
    assert(x->x.dtype == w->dtype);
    struct linear_shape s = {w->n, w->k, w->k_pad, w->dtype, y->y.dtype};
    struct linear_operands o = {y->y.data, x->x.data, w->data};
    if (m <= TMA_ROWS && algorithms_follow_ours(cuda, &s, w->data)) {
        if (cuda_linear_tma(cuda, &s, m, &o)) return;
        if (m <= FEW_ROWS) {
            cuda_linear_few(cuda, &s, m, &o);
            return;
        }
    }
    algorithms_multiply(cuda, &s, m, &o);
}
