/* cuda_quantize_nested.cu - double quantization while a model is loaded: absmax become codes of
 * 8 bits, as quant_nested of kernels/quantize.h makes them.
 *
 * quant_mean adds in levels: groups of SUMS numbers are added up in runs, the sums of runs in
 * runs again, and so on; what is left over of each level is added at the end. The sums of a
 * level are independent of each other, so each is a thread's. */
#include "kernels/cuda/cuda_quantize.h"

enum { LANES = 8, SUMS = 4 * LANES, LEVELS = 4, FOLD_THREADS = 256 };

struct level { /* [n][SUMS] */
    float *sums;
    int64_t n;
};

struct levels { /* the first is the numbers themselves; a level is the sums of the runs of the one before */
    struct level level[LEVELS];
    int64_t run;
};

/* ---------------------------------------------------------------- the mean */

__device__ __forceinline__ float sum_from(const float *x, int64_t first, int64_t end, int i) {
    float sum = 0;
    for (int64_t g = first; g < end; g++) sum = __fadd_rn(sum, x[g * SUMS + i]);
    return sum;
}

__global__ void fold_kernel(struct level out, const float *in, int64_t run) {
    int64_t at = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, g = at / SUMS;
    if (g < out.n) out.sums[at] = sum_from(in, g * run, (g + 1) * run, (int)(at % SUMS));
}

__device__ float mean_of_few(const float *x, int64_t n) {
    float s[4] = {};
    for (int64_t i = 0; i < n / 4 * 4; i++) s[i % 4] = __fadd_rn(s[i % 4], x[i]);
    for (int64_t i = n / 4 * 4; i < n; i++) s[0] = __fadd_rn(s[0], x[i]);
    return __fdiv_rn(__fadd_rn(__fadd_rn(__fadd_rn(s[0], s[1]), s[2]), s[3]), (float)n);
}

/* One warp: the leftovers of all levels, and the numbers that fill no group. */
__global__ void mean_kernel(float *mean, const float *x, int64_t n, struct levels l) {
    __shared__ float sum[SUMS];
    int i = (int)threadIdx.x;
    float total = 0;
    for (int k = 0; k < LEVELS; k++) {
        int64_t first = k + 1 < LEVELS ? l.level[k + 1].n * l.run : 0;
        float left = sum_from(l.level[k].sums, first, l.level[k].n, i);
        total = k == 0 ? left : __fadd_rn(total, left);
    }
    sum[i] = total;
    __syncwarp();
    if (i > 0) return;
    if (n < LANES) {
        *mean = mean_of_few(x, n);
        return;
    }
    int64_t at = l.level[0].n * SUMS;
    for (; at + LANES <= n; at += LANES)
        for (int j = 0; j < LANES; j++) sum[j] = __fadd_rn(sum[j], x[at + j]);
    for (int j = LANES; j < SUMS; j++) sum[j % LANES] = __fadd_rn(sum[j % LANES], sum[j]);
    total = 0;
    for (; at < n; at++) total = __fadd_rn(total, x[at]);
    for (int j = 0; j < LANES; j++) total = __fadd_rn(total, sum[j]);
    *mean = __fdiv_rn(total, (float)n);
}

static int64_t run_of(int64_t n_groups) {
    int log = 0;
    while ((int64_t)1 << log < n_groups) log++;
    return (int64_t)1 << (log / LEVELS > 4 ? log / LEVELS : 4);
}

/* ---------------------------------------------------------------- codes */

/* One block of threads a block of absmax. */
__global__ void nested_kernel(uint8_t *codes, float *absmax2, const float *absmax, int64_t n,
                              const float *mean, const uint8_t *nearest) {
    __shared__ float largest[QUANT_NESTED_BLOCK / 32];
    int64_t i = (int64_t)blockIdx.x * QUANT_NESTED_BLOCK + threadIdx.x;
    float x = i < n ? __fsub_rn(absmax[i], *mean) : 0.0f, most = fabsf(x);
    for (int d = 16; d > 0; d /= 2) most = fmaxf(most, __shfl_xor_sync(0xffffffff, most, d));
    if (threadIdx.x % 32 == 0) largest[threadIdx.x / 32] = most;
    __syncthreads();
    for (int w = 0; w < QUANT_NESTED_BLOCK / 32; w++) most = fmaxf(most, largest[w]);
    if (threadIdx.x == 0) absmax2[blockIdx.x] = most;
    if (i >= n) return;
    if (most > 0) {
        x = __fmul_rn(x, __fdiv_rn(1.0f, most));
        x = x < -1 ? -1 : x > 1 ? 1 : x;
        codes[i] = nearest[(int)__fadd_rn(__fmul_rn(__fadd_rn(x, 1.0f), 0.5f * (QUANT_STEPS - 1)), 0.5f)];
    } else {
        codes[i] = 0;
    }
}

static size_t aligned(size_t bytes) { return (bytes + 255) / 256 * 256; }

float quantize_nested(struct cuda_dev *cuda, uint8_t *codes, float *absmax2, const float *absmax, int64_t n) {
    struct levels l = {};
    size_t bytes = aligned(sizeof(float)) + QUANT_STEPS;
    float mean = 0;
    l.level[0] = {(float *)absmax, n / SUMS};
    l.run = run_of(l.level[0].n);
    for (int i = 1; i < LEVELS; i++) {
        l.level[i].n = l.level[i - 1].n / l.run;
        bytes += aligned((size_t)l.level[i].n * SUMS * sizeof(float));
    }
    char *room = (char *)cuda_scratch(cuda, bytes);
    if (!room) return 0;
    float *mean_room = (float *)room;
    uint8_t *nearest = (uint8_t *)(room + aligned(sizeof(float)));
    char *at = (char *)nearest + QUANT_STEPS;
    cudaMemcpyAsync(nearest, quant_nested_steps(), QUANT_STEPS, cudaMemcpyHostToDevice, cuda->stream);
    for (int i = 1; i < LEVELS; at += aligned((size_t)l.level[i++].n * SUMS * sizeof(float))) {
        l.level[i].sums = (float *)at;
        unsigned blocks = (unsigned)((l.level[i].n * SUMS + FOLD_THREADS - 1) / FOLD_THREADS);
        if (blocks > 0)
            fold_kernel<<<blocks, FOLD_THREADS, 0, cuda->stream>>>(l.level[i], l.level[i - 1].sums, l.run);
    }
    mean_kernel<<<1, SUMS, 0, cuda->stream>>>(mean_room, absmax, n, l);
    nested_kernel<<<(unsigned)quant_blocks(n, QUANT_NESTED_BLOCK), QUANT_NESTED_BLOCK, 0, cuda->stream>>>(
        codes, absmax2, absmax, n, mean_room, nearest);
    cuda_launched(cuda, "double quantization");
    cudaMemcpyAsync(&mean, mean_room, sizeof mean, cudaMemcpyDeviceToHost, cuda->stream);
    cuda_ok(cuda, cudaStreamSynchronize(cuda->stream), "double quantization");
    return mean;
}
