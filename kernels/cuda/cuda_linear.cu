/* cuda_linear.cu - matrix products by cuBLASLt, and weights in the layout that it reads.
 *
 * Batch invariance: a row's sums must not depend on how many rows the step has. Every
 * algorithm that does not split K adds up in one order (cuBLASLt's id 16 is the exception);
 * so any of them may serve a number of rows, once it has been seen to give the same bits as
 * the product's reference algorithm, on the real operands and with the real epilogue. Of
 * those the quickest is taken, by a look at the clock when a shape is first met.
 * Algorithms are kept by (N, K, types, bucket of M); a bucket is a power of two.
 *
 * float32, and shapes whose rows are not aligned to 16 bytes, go through a plain kernel:
 * they are for small models and tests. */
#include "kernels/cuda/cuda.h"

#include "base/mem.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_CANDIDATES = 16, WORKSPACE = 32 << 20, REFERENCE_ROWS = 16 };

struct shape { /* y[m, n] = x[m, k] w[n, k]^T */
    int64_t n, k, ldw;
    enum dtype in, out;
    int64_t bucket; /* of m; 0 = the reference */
};

struct choice {
    struct shape shape;
    cublasLtMatmulAlgo_t algo;
};

struct cuda_linear {
    cublasLtHandle_t lt;
    void *workspace;
    struct choice *choices;
    size_t n_choices;
    int32_t *differs; /* device: a comparison's answer */
    cudaEvent_t before, after;
};

static bool lt_ok(struct cuda_dev *cuda, cublasStatus_t s, const char *what) {
    if (s == CUBLAS_STATUS_SUCCESS) return true;
    dev_fail(&cuda->dev, E_DEVICE, "%s: %s", what, cublasLtGetStatusString(s));
    return false;
}

bool cuda_linear_open(struct cuda_dev *cuda) {
    struct cuda_linear *l = (struct cuda_linear *)mem_zalloc(1, sizeof *l);
    cuda->linear = l;
    return lt_ok(cuda, cublasLtCreate(&l->lt), "cuBLASLt") &&
           cuda_ok(cuda, cudaMalloc(&l->workspace, WORKSPACE), "workspace") &&
           cuda_ok(cuda, cudaMalloc((void **)&l->differs, sizeof *l->differs), "workspace") &&
           cuda_ok(cuda, cudaEventCreate(&l->before), "an event") &&
           cuda_ok(cuda, cudaEventCreate(&l->after), "an event");
}

void cuda_linear_close(struct cuda_dev *cuda) {
    struct cuda_linear *l = cuda->linear;
    if (!l) return;
    if (l->before) cudaEventDestroy(l->before);
    if (l->after) cudaEventDestroy(l->after);
    cudaFree(l->differs);
    cudaFree(l->workspace);
    if (l->lt) cublasLtDestroy(l->lt);
    free(l->choices);
    free(l);
}

/* ---------------------------------------------------------------- one product */

static cudaDataType_t type_of(enum dtype t) { return t == DTYPE_BF16 ? CUDA_R_16BF : CUDA_R_32F; }

struct problem { /* cuBLASLt counts in columns: its C[n, m] is our y[m, n] */
    cublasLtMatmulDesc_t desc;
    cublasLtMatrixLayout_t w, x, y;
};

static void problem_clear(struct problem *p) {
    if (p->desc) cublasLtMatmulDescDestroy(p->desc);
    if (p->w) cublasLtMatrixLayoutDestroy(p->w);
    if (p->x) cublasLtMatrixLayoutDestroy(p->x);
    if (p->y) cublasLtMatrixLayoutDestroy(p->y);
}

static bool problem_init(struct problem *p, const struct shape *s, int64_t m) {
    cublasOperation_t transposed = CUBLAS_OP_T;
    *p = {};
    return cublasLtMatmulDescCreate(&p->desc, CUBLAS_COMPUTE_32F, CUDA_R_32F) == CUBLAS_STATUS_SUCCESS &&
           cublasLtMatmulDescSetAttribute(p->desc, CUBLASLT_MATMUL_DESC_TRANSA, &transposed,
                                          sizeof transposed) == CUBLAS_STATUS_SUCCESS &&
           cublasLtMatrixLayoutCreate(&p->w, type_of(s->in), (uint64_t)s->k, (uint64_t)s->n, s->ldw) ==
               CUBLAS_STATUS_SUCCESS &&
           cublasLtMatrixLayoutCreate(&p->x, type_of(s->in), (uint64_t)s->k, (uint64_t)m, s->k) ==
               CUBLAS_STATUS_SUCCESS &&
           cublasLtMatrixLayoutCreate(&p->y, type_of(s->out), (uint64_t)s->n, (uint64_t)m, s->n) ==
               CUBLAS_STATUS_SUCCESS;
}

static cublasStatus_t multiply(struct cuda_dev *cuda, const struct problem *p,
                               const cublasLtMatmulAlgo_t *algo, void *y, const void *x, const void *w) {
    static const float one = 1.0f, zero = 0.0f;
    return cublasLtMatmul(cuda->linear->lt, p->desc, &one, w, p->w, x, p->x, &zero, y, p->y, y, p->y, algo,
                          cuda->linear->workspace, WORKSPACE, cuda->stream);
}

/* ---------------------------------------------------------------- which algorithm */

static bool is_allowed(const cublasLtMatmulAlgo_t *algo) {
    int32_t id = 0, splits = 1;
    uint32_t scheme = 0;
    size_t n;
    cublasLtMatmulAlgoConfigGetAttribute(algo, CUBLASLT_ALGO_CONFIG_ID, &id, sizeof id, &n);
    cublasLtMatmulAlgoConfigGetAttribute(algo, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &splits, sizeof splits, &n);
    cublasLtMatmulAlgoConfigGetAttribute(algo, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME, &scheme, sizeof scheme,
                                         &n);
    return id != 16 && splits <= 1 && scheme == CUBLASLT_REDUCTION_SCHEME_NONE;
}

static int candidates(struct cuda_dev *cuda, const struct problem *p, cublasLtMatmulHeuristicResult_t *out) {
    cublasLtMatmulPreference_t pref;
    size_t workspace = WORKSPACE;
    uint32_t schemes = CUBLASLT_REDUCTION_SCHEME_NONE;
    int n = 0, kept = 0;
    if (cublasLtMatmulPreferenceCreate(&pref) != CUBLAS_STATUS_SUCCESS) return 0;
    cublasLtMatmulPreferenceSetAttribute(pref, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace,
                                         sizeof workspace);
    cublasLtMatmulPreferenceSetAttribute(pref, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &schemes,
                                         sizeof schemes);
    if (cublasLtMatmulAlgoGetHeuristic(cuda->linear->lt, p->desc, p->w, p->x, p->y, p->y, pref,
                                       MAX_CANDIDATES, out, &n) != CUBLAS_STATUS_SUCCESS)
        n = 0;
    cublasLtMatmulPreferenceDestroy(pref);
    for (int i = 0; i < n; i++)
        if (out[i].state == CUBLAS_STATUS_SUCCESS && is_allowed(&out[i].algo)) out[kept++] = out[i];
    return kept;
}

/* Milliseconds of one run after a first one; negative: it does not run. */
static float time_of(struct cuda_dev *cuda, const struct problem *p, const cublasLtMatmulAlgo_t *algo,
                     void *y, const void *x, const void *w) {
    struct cuda_linear *l = cuda->linear;
    enum { RUNS = 3 };
    float ms = -1.0f;
    if (multiply(cuda, p, algo, y, x, w) != CUBLAS_STATUS_SUCCESS) return -1.0f;
    cudaEventRecord(l->before, cuda->stream);
    for (int i = 0; i < RUNS; i++) multiply(cuda, p, algo, y, x, w);
    cudaEventRecord(l->after, cuda->stream);
    if (!cuda_ok(cuda, cudaEventSynchronize(l->after), "a look at algorithms")) return -1.0f;
    cudaEventElapsedTime(&ms, l->before, l->after);
    return ms / RUNS;
}

static const struct choice *find_choice(const struct cuda_linear *l, const struct shape *s) {
    for (size_t i = 0; i < l->n_choices; i++) {
        const struct shape *c = &l->choices[i].shape;
        if (c->n == s->n && c->k == s->k && c->ldw == s->ldw && c->in == s->in && c->out == s->out &&
            c->bucket == s->bucket)
            return &l->choices[i];
    }
    return NULL;
}

static const struct choice *keep_choice(struct cuda_linear *l, const struct shape *s,
                                        const cublasLtMatmulAlgo_t *algo) {
    l->choices = (struct choice *)mem_realloc(l->choices, l->n_choices + 1, sizeof *l->choices);
    l->choices[l->n_choices] = {*s, *algo};
    return &l->choices[l->n_choices++];
}

static int64_t bucket_of(int64_t m) {
    int64_t b = 1;
    while (b < m) b *= 2;
    return b;
}

__global__ void compare_kernel(int32_t *differs, const uint16_t *a, const uint16_t *b, int64_t n) {
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n && a[i] != b[i]) *differs = 1;
}

static bool same_bits(struct cuda_dev *cuda, const void *a, const void *b, size_t bytes) {
    int64_t n = (int64_t)bytes / 2;
    int32_t differs = 0, *flag = cuda->linear->differs;
    cudaMemsetAsync(flag, 0, sizeof *flag, cuda->stream);
    compare_kernel<<<(unsigned)((n + 255) / 256), 256, 0, cuda->stream>>>(flag, (const uint16_t *)a,
                                                                          (const uint16_t *)b, n);
    cudaMemcpyAsync(&differs, flag, sizeof differs, cudaMemcpyDeviceToHost, cuda->stream);
    return cuda_ok(cuda, cudaStreamSynchronize(cuda->stream), "a check of algorithms") && !differs;
}

/* The reference of (N, K, types): the quickest for few rows, timed on `rows` of them. */
static const struct choice *reference(struct cuda_dev *cuda, const struct shape *s, int64_t rows, void *y,
                                      const void *x, const void *w) {
    struct shape key = *s;
    key.bucket = 0;
    const struct choice *known = find_choice(cuda->linear, &key);
    if (known) return known;
    cublasLtMatmulHeuristicResult_t list[MAX_CANDIDATES];
    struct problem few = {}, trial = {};
    if (problem_init(&few, s, REFERENCE_ROWS) && problem_init(&trial, s, rows)) {
        int n = candidates(cuda, &few, list);
        float least = 0.0f;
        int best = -1;
        for (int i = 0; i < n; i++) {
            float ms = time_of(cuda, &trial, &list[i].algo, y, x, w);
            if (ms >= 0.0f && (best < 0 || ms < least)) least = ms, best = i;
        }
        if (best >= 0) known = keep_choice(cuda->linear, &key, &list[best].algo);
    }
    problem_clear(&few);
    problem_clear(&trial);
    return known;
}

/* Does `algo` give rows [first, first + rows) of y the reference's bits? */
static bool agrees(struct cuda_dev *cuda, const struct shape *s, const cublasLtMatmulAlgo_t *ref,
                   const void *y, const void *x, const void *w, int64_t first, int64_t rows, void *scratch) {
    struct problem p;
    size_t out = dtype_bytes(s->out), in = dtype_bytes(s->in);
    bool ok =
        problem_init(&p, s, rows) &&
        multiply(cuda, &p, ref, scratch, (const char *)x + (size_t)(first * s->k) * in, w) ==
            CUBLAS_STATUS_SUCCESS &&
        same_bits(cuda, (const char *)y + (size_t)(first * s->n) * out, scratch, (size_t)(rows * s->n) * out);
    problem_clear(&p);
    return ok;
}

/* The quickest candidate for this many rows whose bits are the reference's at both ends of y. */
static const struct choice *choose(struct cuda_dev *cuda, const struct shape *s, const struct problem *p,
                                   int64_t m, void *y, const void *x, const void *w) {
    int64_t rows = m < REFERENCE_ROWS ? m : REFERENCE_ROWS;
    void *scratch = cuda_scratch(cuda, (size_t)(REFERENCE_ROWS * s->n) * dtype_bytes(s->out));
    if (!scratch) return NULL;
    const struct choice *ref = reference(cuda, s, rows, scratch, x, w);
    if (!ref) return NULL;
    cublasLtMatmulAlgo_t ref_algo = ref->algo;
    cublasLtMatmulHeuristicResult_t list[MAX_CANDIDATES];
    int n = candidates(cuda, p, list), best = -1;
    float least = 0.0f;
    for (int i = 0; i < n; i++) {
        float ms = time_of(cuda, p, &list[i].algo, y, x, w);
        if (ms < 0.0f || (best >= 0 && ms >= least)) continue;
        if (!agrees(cuda, s, &ref_algo, y, x, w, 0, rows, scratch) ||
            !agrees(cuda, s, &ref_algo, y, x, w, m - rows, rows, scratch))
            continue;
        least = ms;
        best = i;
    }
    return keep_choice(cuda->linear, s,
                       best >= 0 ? &list[best].algo : &ref_algo); /* the reference: slow, and right */
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

static void plain_linear(struct cuda_dev *cuda, struct product *y, const struct activation *x,
                         const struct weight *w) {
    int64_t m = x->x.shape[0], n = w->n, k = w->k;
    dim3 grid((unsigned)((n + PLAIN_TILE - 1) / PLAIN_TILE), (unsigned)((m + PLAIN_TILE - 1) / PLAIN_TILE));
    dim3 block(PLAIN_TILE, PLAIN_TILE);
    if (w->dtype == DTYPE_BF16 && x->x.dtype == DTYPE_F32)
        plain_kernel<<<grid, block, 0, cuda->stream>>>((float *)y->y.data, (const float *)x->x.data,
                                                       (const __nv_bfloat16 *)w->data, m, n, k, w->k_pad);
    else if (w->dtype == DTYPE_F32)
        plain_kernel<<<grid, block, 0, cuda->stream>>>((float *)y->y.data, (const float *)x->x.data,
                                                       (const float *)w->data, m, n, k, w->k_pad);
    else if (y->y.dtype == DTYPE_F32)
        plain_kernel<<<grid, block, 0, cuda->stream>>>((float *)y->y.data, (const __nv_bfloat16 *)x->x.data,
                                                       (const __nv_bfloat16 *)w->data, m, n, k, w->k_pad);
    else
        plain_kernel<<<grid, block, 0, cuda->stream>>>((__nv_bfloat16 *)y->y.data,
                                                       (const __nv_bfloat16 *)x->x.data,
                                                       (const __nv_bfloat16 *)w->data, m, n, k, w->k_pad);
    cuda_launched(cuda, "a matrix product");
}

void cuda_linear(struct dev *dev, struct product *y, const struct activation *x, const struct weight *w) {
    struct cuda_dev *cuda = cuda_of(dev);
    int64_t m = x->x.shape[0];
    if (x->x.dtype == DTYPE_F32 || w->n % 8 || w->k % 8) {
        plain_linear(cuda, y, x, w);
        return;
    }
    struct shape s = {w->n, w->k, w->k_pad, w->dtype, y->y.dtype, bucket_of(m)};
    struct problem p;
    assert(x->x.dtype == w->dtype);
    if (!problem_init(&p, &s, m)) {
        dev_fail(dev, E_DEVICE, "cuBLASLt cannot describe a product of %lld x %lld x %lld", (long long)m,
                 (long long)w->n, (long long)w->k);
        problem_clear(&p);
        return;
    }
    const struct choice *c = find_choice(cuda->linear, &s);
    if (!c) c = choose(cuda, &s, &p, m, y->y.data, x->x.data, w->data);
    if (!c)
        dev_fail(dev, E_DEVICE, "cuBLASLt has no algorithm for a product of %lld x %lld x %lld", (long long)m,
                 (long long)w->n, (long long)w->k);
    else
        lt_ok(cuda, multiply(cuda, &p, &c->algo, y->y.data, x->x.data, w->data), "a matrix product");
    problem_clear(&p);
}

/* ---------------------------------------------------------------- weights */

size_t cuda_weight_bytes(int64_t n_pad, int64_t k_pad, enum dtype dtype) {
    return (size_t)n_pad * (size_t)k_pad * dtype_bytes(dtype);
}

static uint16_t to_bf16(const void *p, enum dtype t, int64_t i) {
    if (t == DTYPE_F32) {
        float x;
        memcpy(&x, (const char *)p + i * 4, 4);
        return bf16_from_f32(x);
    }
    uint16_t h;
    memcpy(&h, (const char *)p + i * 2, 2);
    return t == DTYPE_BF16 ? h : bf16_from_f32(f16_to_f32(h));
}

static float to_f32(const void *p, enum dtype t, int64_t i) {
    if (t == DTYPE_F32) {
        float x;
        memcpy(&x, (const char *)p + i * 4, 4);
        return x;
    }
    uint16_t h;
    memcpy(&h, (const char *)p + i * 2, 2);
    return t == DTYPE_BF16 ? bf16_to_f32(h) : f16_to_f32(h);
}

static void convert(void *out, enum dtype to, const void *in, enum dtype from, int64_t n) {
    if (to == from)
        memcpy(out, in, (size_t)n * dtype_bytes(to));
    else if (to == DTYPE_BF16)
        for (int64_t i = 0; i < n; i++) ((uint16_t *)out)[i] = to_bf16(in, from, i);
    else
        for (int64_t i = 0; i < n; i++) ((float *)out)[i] = to_f32(in, from, i);
}

enum { CHUNK_BYTES = 16 << 20 };

/* Through two pinned buffers in turn: one is filled while the other is copied. */
void cuda_weight_load(struct dev *dev, struct weight *w, int64_t first_row, const struct tensor *host) {
    struct cuda_dev *cuda = cuda_of(dev);
    size_t in_row = (size_t)w->k * dtype_bytes(host->dtype),
           out_row = (size_t)w->k_pad * dtype_bytes(w->dtype);
    int64_t rows = host->shape[0], chunk = (int64_t)(CHUNK_BYTES / out_row);
    if (chunk < 1) chunk = 1;
    char *buffer[2] = {};
    cudaEvent_t copied[2] = {};
    bool ok = true;
    for (int b = 0; ok && b < 2; b++)
        ok = cuda_ok(cuda, cudaMallocHost((void **)&buffer[b], (size_t)chunk * out_row), "loading memory") &&
             cuda_ok(cuda, cudaEventCreateWithFlags(&copied[b], cudaEventDisableTiming), "an event");
    for (int64_t r = 0, i = 0; ok && r < rows; r += chunk, i++) {
        int64_t n = rows - r < chunk ? rows - r : chunk;
        char *to = buffer[i % 2];
        if (i >= 2) ok = cuda_ok(cuda, cudaEventSynchronize(copied[i % 2]), "loading");
        for (int64_t k = 0; k < n; k++) {
            convert(to + (size_t)k * out_row, w->dtype, (const char *)host->data + (size_t)(r + k) * in_row,
                    host->dtype, w->k);
            if (w->k_pad > w->k)
                memset(to + (size_t)k * out_row + (size_t)w->k * dtype_bytes(w->dtype), 0,
                       (size_t)(w->k_pad - w->k) * dtype_bytes(w->dtype));
        }
        ok = ok &&
             cuda_ok(cuda,
                     cudaMemcpyAsync((char *)w->data + (size_t)(first_row + r) * out_row, to,
                                     (size_t)n * out_row, cudaMemcpyHostToDevice, cuda->stream),
                     "loading") &&
             cuda_ok(cuda, cudaEventRecord(copied[i % 2], cuda->stream), "loading");
    }
    cudaStreamSynchronize(cuda->stream);
    for (int b = 0; b < 2; b++) {
        cudaFreeHost(buffer[b]);
        if (copied[b]) cudaEventDestroy(copied[b]);
    }
}

/* ---------------------------------------------------------------- random weights */

__host__ __device__ __forceinline__ uint64_t mix64(uint64_t x) { /* splitmix64's finaliser */
    x ^= x >> 30;
    x *= 0xbf58476d1ce4e5b9ull;
    x ^= x >> 27;
    x *= 0x94d049bb133111ebull;
    return x ^ x >> 31;
}

template <typename T>
__global__ void random_kernel(T *w, int64_t n, int64_t k, int64_t k_pad, uint64_t seed, float deviation) {
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n * k;
         i += (int64_t)gridDim.x * blockDim.x) {
        uint64_t r = mix64(seed + (uint64_t)i * 0x9e3779b97f4a7c15ull);
        float u = ((float)(uint32_t)(r >> 32) + 0.5f) * 0x1p-32f, v = (float)(uint32_t)r * 0x1p-32f;
        float x = sqrtf(-2.0f * logf(u < 1.0f ? u : 1.0f - 0x1p-24f)) * cospif(2.0f * v);
        w[i / k * k_pad + i % k] = cuda_round<T>(x * deviation);
    }
}

void cuda_weight_random(struct dev *dev, struct weight *w, int64_t first_row, int64_t rows, uint64_t seed,
                        float deviation) {
    struct cuda_dev *cuda = cuda_of(dev);
    int64_t at = first_row * w->k_pad;
    if (w->dtype == DTYPE_BF16)
        random_kernel<<<2048, 256, 0, cuda->stream>>>((__nv_bfloat16 *)w->data + at, rows, w->k, w->k_pad,
                                                      mix64(seed), deviation);
    else
        random_kernel<<<2048, 256, 0, cuda->stream>>>((float *)w->data + at, rows, w->k, w->k_pad,
                                                      mix64(seed), deviation);
    cuda_launched(cuda, "random weights");
}
