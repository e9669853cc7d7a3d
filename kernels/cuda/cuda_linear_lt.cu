/* cuda_linear_lt.cu - matrix products by cuBLASLt. Nothing is allocated in a call: its
 * descriptions of a product lie on the stack. */
#include "kernels/cuda/cuda_linear.h"

#include <stdio.h>

static cudaDataType_t type_of(enum dtype t) {
    switch (t) {
    case DTYPE_BF16: return CUDA_R_16BF;
    case DTYPE_F16: return CUDA_R_16F;
    case DTYPE_F8_E4M3: return CUDA_R_8F_E4M3;
    case DTYPE_I8: return CUDA_R_8I;
    case DTYPE_I32: return CUDA_R_32I;
    default: return CUDA_R_32F;
    }
}

struct problem { /* cuBLASLt counts in columns: its C[n, m] is our y[m, n] */
    cublasLtMatmulDescOpaque_t product;
    cublasLtMatrixLayoutOpaque_t w, x, y;
};

/* Sums of fp8 products stay in the tensor cores to their end, in the bits that these keep; to
 * promote them on the way costs 8 to 12 % of the rate (docs/benchmarks.md). */
static bool describe(cublasLtMatmulDesc_t product, const struct linear_shape *s) {
    bool integers = s->in == DTYPE_I8;
    int8_t fast = 1;
    cublasStatus_t e = integers ? cublasLtMatmulDescInit(product, CUBLAS_COMPUTE_32I, CUDA_R_32I)
                                : cublasLtMatmulDescInit(product, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    if (e == CUBLAS_STATUS_SUCCESS && s->in == DTYPE_F8_E4M3)
        e = cublasLtMatmulDescSetAttribute(product, CUBLASLT_MATMUL_DESC_FAST_ACCUM, &fast, sizeof fast);
    return e == CUBLAS_STATUS_SUCCESS;
}

static bool problem_init(struct problem *p, const struct linear_shape *s, int64_t m) {
    cublasOperation_t transposed = CUBLAS_OP_T;
    return describe(&p->product, s) &&
           cublasLtMatmulDescSetAttribute(&p->product, CUBLASLT_MATMUL_DESC_TRANSA, &transposed,
                                          sizeof transposed) == CUBLAS_STATUS_SUCCESS &&
           cublasLtMatrixLayoutInit(&p->w, type_of(s->in), (uint64_t)s->k, (uint64_t)s->n, s->ldw) ==
               CUBLAS_STATUS_SUCCESS &&
           cublasLtMatrixLayoutInit(&p->x, type_of(s->in), (uint64_t)s->k, (uint64_t)m, s->k) ==
               CUBLAS_STATUS_SUCCESS &&
           cublasLtMatrixLayoutInit(&p->y, type_of(s->out), (uint64_t)s->n, (uint64_t)m, s->n) ==
               CUBLAS_STATUS_SUCCESS;
}

bool lt_multiply(struct cuda_dev *cuda, const struct linear_shape *s, int64_t m,
                 const struct linear_operands *o, const cublasLtMatmulAlgo_t *algorithm) {
    static const float ones[] = {1.0f, 1.0f / (1 << FP8_F16_SHIFT)}, zero = 0.0f;
    static const int32_t one_integer = 1; /* zero has the same bits in both */
    const float *one = &ones[s->in == DTYPE_F8_E4M3 && s->out == DTYPE_F16];
    const void *alpha = s->in == DTYPE_I8 ? (const void *)&one_integer : one;
    struct problem p;
    return problem_init(&p, s, m) &&
           cublasLtMatmul(cuda->linear->lt, &p.product, alpha, o->w, &p.w, o->x, &p.x, &zero, o->y, &p.y, o->y,
                          &p.y, algorithm, cuda->linear->workspace, LINEAR_WORKSPACE,
                          cuda->stream) == CUBLAS_STATUS_SUCCESS;
}

/* No split of K; id 16 has been seen to give other bits than all the rest. */
static bool is_allowed(const cublasLtMatmulAlgo_t *algorithm) {
    int32_t id = 0, splits = 1;
    uint32_t scheme = 0;
    size_t n;
    cublasLtMatmulAlgoConfigGetAttribute(algorithm, CUBLASLT_ALGO_CONFIG_ID, &id, sizeof id, &n);
    cublasLtMatmulAlgoConfigGetAttribute(algorithm, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &splits, sizeof splits,
                                         &n);
    cublasLtMatmulAlgoConfigGetAttribute(algorithm, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME, &scheme,
                                         sizeof scheme, &n);
    return id != 16 && splits <= 1 && scheme == CUBLASLT_REDUCTION_SCHEME_NONE;
}

int lt_candidates(struct cuda_dev *cuda, const struct linear_shape *s, int64_t m,
                  cublasLtMatmulAlgo_t out[MAX_CANDIDATES]) {
    cublasLtMatmulPreferenceOpaque_t preference;
    cublasLtMatmulHeuristicResult_t found[MAX_CANDIDATES];
    size_t workspace = LINEAR_WORKSPACE;
    uint32_t schemes = CUBLASLT_REDUCTION_SCHEME_NONE;
    struct problem p;
    int n = 0, kept = 0;
    if (!problem_init(&p, s, m) || cublasLtMatmulPreferenceInit(&preference) != CUBLAS_STATUS_SUCCESS)
        return 0;
    cublasLtMatmulPreferenceSetAttribute(&preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace,
                                         sizeof workspace);
    cublasLtMatmulPreferenceSetAttribute(&preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &schemes,
                                         sizeof schemes);
    if (cublasLtMatmulAlgoGetHeuristic(cuda->linear->lt, &p.product, &p.w, &p.x, &p.y, &p.y, &preference,
                                       MAX_CANDIDATES, found, &n) != CUBLAS_STATUS_SUCCESS)
        return 0;
    for (int i = 0; i < n; i++)
        if (found[i].state == CUBLAS_STATUS_SUCCESS && is_allowed(&found[i].algo))
            out[kept++] = found[i].algo;
    return kept;
}

static int32_t config_of(const cublasLtMatmulAlgo_t *algorithm, cublasLtMatmulAlgoConfigAttributes_t what) {
    int32_t value = 0;
    size_t n;
    cublasLtMatmulAlgoConfigGetAttribute(algorithm, what, &value, sizeof value, &n);
    return value;
}

void lt_describe(char *out, size_t bytes, const cublasLtMatmulAlgo_t *algorithm) {
    snprintf(out, bytes, "%d, tile %d, stages %d", config_of(algorithm, CUBLASLT_ALGO_CONFIG_ID),
             config_of(algorithm, CUBLASLT_ALGO_CONFIG_TILE_ID),
             config_of(algorithm, CUBLASLT_ALGO_CONFIG_STAGES_ID));
}

bool lt_accepts(struct cuda_dev *cuda, const struct linear_shape *s, int64_t m,
                const cublasLtMatmulAlgo_t *algorithm) {
    struct problem p;
    cublasLtMatmulHeuristicResult_t result;
    return is_allowed(algorithm) && problem_init(&p, s, m) &&
           cublasLtMatmulAlgoCheck(cuda->linear->lt, &p.product, &p.w, &p.x, &p.y, &p.y, algorithm,
                                   &result) == CUBLAS_STATUS_SUCCESS &&
           result.workspaceSize <= LINEAR_WORKSPACE;
}
