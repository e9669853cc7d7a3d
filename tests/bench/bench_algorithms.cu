/* bench_algorithms.cu - what batch invariance costs in matrix products: the quickest of
 * cuBLASLt's algorithms that may be used (kernels/cuda/cuda_linear_lt.cu: no split-K, not id
 * 16) beside the quickest of all, for the four products of a Mistral-7B layer.
 *
 *   nvcc -O3 -arch=native tests/bench/bench_algorithms.cu -lcublasLt -o /tmp/b && /tmp/b
 *
 * Candidates take turns, nine times, four products each over weights that do not stay in the
 * cache; the median counts. */
#include <cublasLt.h>
#include <cuda_bf16.h>

#include <algorithm>
#include <stdio.h>

enum { MOST = 32, TURNS = 9, PRODUCTS = 4, WORKSPACE = 64 << 20 };

static cublasLtHandle_t lt;
static __nv_bfloat16 *w, *x, *y;
static void *workspace;

struct problem {
    int m, n, k;
    cublasLtMatmulDesc_t product;
    cublasLtMatrixLayout_t w, x, y;
};

struct candidate {
    cublasLtMatmulAlgo_t algorithm;
    bool is_allowed;
    float ms[TURNS];
};

__global__ void random_kernel(__nv_bfloat16 *p, size_t n) {
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x)
        p[i] = __float2bfloat16((float)((unsigned)(i * 2654435761u) >> 8) * 0x1p-23f - 1.0f);
}

static struct problem problem_of(int m, int n, int k) {
    struct problem p = {m, n, k};
    cublasOperation_t transposed = CUBLAS_OP_T;
    cublasLtMatmulDescCreate(&p.product, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    cublasLtMatmulDescSetAttribute(p.product, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof transposed);
    cublasLtMatrixLayoutCreate(&p.w, CUDA_R_16BF, k, n, k);
    cublasLtMatrixLayoutCreate(&p.x, CUDA_R_16BF, k, m, k);
    cublasLtMatrixLayoutCreate(&p.y, CUDA_R_16BF, n, m, n);
    return p;
}

static bool is_allowed(const cublasLtMatmulAlgo_t *a) {
    int id = 0, splits = 1;
    size_t n;
    cublasLtMatmulAlgoConfigGetAttribute(a, CUBLASLT_ALGO_CONFIG_ID, &id, sizeof id, &n);
    cublasLtMatmulAlgoConfigGetAttribute(a, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &splits, sizeof splits, &n);
    return id != 16 && splits <= 1;
}

/* The heuristics' list, with or without split-K in it. */
static int candidates(const struct problem *p, bool any, struct candidate *out) {
    cublasLtMatmulPreference_t preference;
    cublasLtMatmulHeuristicResult_t found[MOST / 2];
    size_t bytes = WORKSPACE;
    unsigned none = CUBLASLT_REDUCTION_SCHEME_NONE;
    int n = 0, kept = 0;
    cublasLtMatmulPreferenceCreate(&preference);
    cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &bytes,
                                         sizeof bytes);
    if (!any)
        cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &none,
                                             sizeof none);
    cublasLtMatmulAlgoGetHeuristic(lt, p->product, p->w, p->x, p->y, p->y, preference, MOST / 2, found, &n);
    for (int i = 0; i < n; i++)
        if (any || is_allowed(&found[i].algo)) out[kept++] = {found[i].algo, !any, {}};
    return kept;
}

static float time_of(const struct problem *p, const cublasLtMatmulAlgo_t *a) {
    static cudaEvent_t before, after;
    float one = 1.0f, zero = 0.0f, ms = 0.0f;
    if (!before) cudaEventCreate(&before), cudaEventCreate(&after);
    cudaEventRecord(before);
    for (int i = 0; i < PRODUCTS; i++)
        cublasLtMatmul(lt, p->product, &one, w + (size_t)i * p->n * p->k, p->w, x, p->x, &zero, y, p->y, y,
                       p->y, a, workspace, WORKSPACE, 0);
    cudaEventRecord(after);
    cudaEventSynchronize(after);
    cudaEventElapsedTime(&ms, before, after);
    return ms / PRODUCTS;
}

/* Milliseconds of the quickest: allowed, and any. */
static void measure(const struct problem *p, double best[2]) {
    struct candidate list[MOST];
    int n = candidates(p, false, list);
    n += candidates(p, true, list + n);
    for (int turn = 0; turn < TURNS; turn++)
        for (int i = 0; i < n; i++) list[i].ms[turn] = time_of(p, &list[i].algorithm);
    best[0] = best[1] = 1e9;
    for (int i = 0; i < n; i++) {
        std::sort(list[i].ms, list[i].ms + TURNS);
        double median = list[i].ms[TURNS / 2];
        if (list[i].is_allowed) best[0] = std::min(best[0], median);
        best[1] = std::min(best[1], median);
    }
}

int main(void) {
    static const int shapes[][2] = {{6144, 4096}, {4096, 4096}, {28672, 4096}, {4096, 14336}};
    const size_t n_w = (size_t)PRODUCTS * 28672 * 4096, n_x = (size_t)4096 * 14336,
                 n_y = (size_t)4096 * 28672;
    cublasLtCreate(&lt);
    cudaMalloc(&w, n_w * 2);
    cudaMalloc(&x, n_x * 2);
    cudaMalloc(&y, n_y * 2);
    cudaMalloc(&workspace, WORKSPACE);
    random_kernel<<<4096, 256>>>(w, n_w);
    random_kernel<<<4096, 256>>>(x, n_x);
    for (int m = 2048; m <= 4096; m *= 2) {
        double sum[2] = {0, 0};
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
            struct problem p = problem_of(m, shapes[i][0], shapes[i][1]);
            double best[2];
            measure(&p, best);
            printf("M %d N %d K %d: allowed %.1f us, any %.1f us, cost %.2f %%\n", m, p.n, p.k, best[0] * 1e3,
                   best[1] * 1e3, 100 * (best[0] / best[1] - 1));
            sum[0] += best[0];
            sum[1] += best[1];
        }
        printf("M %d, a layer: cost %.2f %%\n", m, 100 * (sum[0] / sum[1] - 1));
    }
    return cudaDeviceSynchronize() == cudaSuccess ? 0 : 1;
}
