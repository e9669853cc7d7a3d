/* cuda_tma.cu - see cuda_tma.cuh. */
#include "kernels/cuda/cuda_tma.cuh"

typedef CUresult encode_fn(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *, const cuuint64_t *,
                           const cuuint64_t *, const cuuint32_t *, const cuuint32_t *, CUtensorMapInterleave,
                           CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

/* The driver's function, without linking with the driver's library. */
static encode_fn *encoder(void) {
    static encode_fn *fn;
    enum cudaDriverEntryPointQueryResult found;
    void *p = NULL;
    if (fn) return fn;
    if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &p, 12000, cudaEnableDefault, &found) ==
            cudaSuccess &&
        found == cudaDriverEntryPointSuccess)
        fn = (encode_fn *)p;
    return fn;
}

bool tma_map(CUtensorMap *map, enum dtype dtype, const void *data, int64_t rows, int64_t columns, int64_t ld,
             int box_rows) {
    cuuint64_t size[2] = {(cuuint64_t)columns, (cuuint64_t)rows}, stride[1] = {(cuuint64_t)ld * 2};
    cuuint32_t box[2] = {TMA_COLUMNS, (cuuint32_t)box_rows}, unit[2] = {1, 1};
    CUtensorMapDataType type =
        dtype == DTYPE_F16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
    return encoder() &&
           encoder()(map, type, 2, (void *)data, size, stride, box, unit, CU_TENSOR_MAP_INTERLEAVE_NONE,
                     CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                     CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}
