/* cuda_rows.cu - operations that treat each row by itself: embedding, gather, the last touch
 * to logits. Memory-bound: 16 bytes a thread where the shape allows (V = elements in 16
 * bytes), else one element (V = 1). */
#include "kernels/cuda/cuda_rows.cuh"

#include <stdio.h>

static bool is_aligned(const void *p) { return ((uintptr_t)p & 15) == 0; }

/* ---------------------------------------------------------------- embedding */

struct tokens { /* of a step's rows, and where they are kept */
    const int32_t *token, *position, *slot, *last_sample;
    int32_t *history; /* or NULL */
    const int32_t *block_table;
    int32_t stride;
};

template <typename T, int V>
__global__ void embed_kernel(T *residual, const T *table, struct tokens t, float scale, int64_t h, int64_t ld,
                             int64_t n_ids) {
    cuda_begin();
    int64_t row = blockIdx.x;
    int32_t id = t.token[row];
    if (id < 0) id = t.last_sample[~id];
    if (id < 0 || id >= n_ids) id = 0; /* a sample of logits that were not finite: its sequence ends */
    if (t.history && threadIdx.x == 0)
        *history_at(t.history, t.block_table, t.stride, t.slot[row], t.position[row]) = id;
    for (int64_t i = (int64_t)threadIdx.x * V; i < h; i += (int64_t)blockDim.x * V) {
        pack_of<T, V> v = load<T, V>(table + (int64_t)id * ld + i);
        if (scale != 1.0f)
#pragma unroll
            for (int j = 0; j < V; j++) v.x[j] = cuda_round<T>(scale * cuda_float(v.x[j]));
        store<T, V>(residual + row * h + i, v);
    }
}

template <typename T>
static void embed_rows(struct cuda_dev *cuda, struct tensor *residual, const struct weight *table,
                       float scale, const struct step *step) {
    int64_t h = table->k;
    constexpr int V = 16 / sizeof(T);
    dim3 grid((unsigned)step->n_rows);
    struct tokens t = {
        step->token,       step->position,          step->slot, cuda->dev.last_sample, cuda->dev.history,
        step->block_table, step->block_table_stride};
    if (h % V == 0)
        cuda_launch(cuda, "embed", embed_kernel<T, V>, grid, 128, 0, (T *)residual->data,
                    (const T *)table->data, t, scale, h, table->k_pad, table->n);
    else
        cuda_launch(cuda, "embed", embed_kernel<T, 1>, grid, 128, 0, (T *)residual->data,
                    (const T *)table->data, t, scale, h, table->k_pad, table->n);
}

void cuda_embed(struct dev *dev, struct tensor *residual, const struct weight *table, float scale,
                const struct step *step) {
    cuda_loader_drain(cuda_of(dev));
    BY_DTYPE(residual->dtype, embed_rows, cuda_of(dev), residual, table, scale, step);
}

/* ---------------------------------------------------------------- gather */

template <typename U>
__global__ void gather_kernel(U *out, const U *x, const struct step_sample *samples, int64_t n) {
    cuda_begin();
    int64_t s = blockIdx.x, row = samples[s].row;
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) out[s * n + i] = x[row * n + i];
}

void cuda_gather(struct dev *dev, struct activation *out, const struct activation *x,
                 const struct step *step) {
    struct cuda_dev *cuda = cuda_of(dev);
    int64_t bytes = x->x.shape[1] * (int64_t)dtype_bytes(x->x.dtype);
    if (step->n_samples == 0) return;
    if (bytes % 16 == 0 && is_aligned(out->x.data) && is_aligned(x->x.data))
        cuda_launch(cuda, "gather", gather_kernel<uint4>, (unsigned)step->n_samples, 128, 0,
                    (uint4 *)out->x.data, (const uint4 *)x->x.data, step->samples, bytes / 16);
    else
        cuda_launch(cuda, "gather", gather_kernel<uint16_t>, (unsigned)step->n_samples, 128, 0,
                    (uint16_t *)out->x.data, (const uint16_t *)x->x.data, step->samples, bytes / 2);
}

/* ---------------------------------------------------------------- logits */

__global__ void finish_kernel(float *logits, const float *bias, float softcap, int64_t vocab) {
    cuda_begin();
    float *row = logits + (int64_t)blockIdx.y * vocab;
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= vocab) return;
    float x = bias ? row[i] + bias[i] : row[i];
    row[i] = softcap > 0 ? softcap * tanhf(x / softcap) : x;
}

void cuda_logits_finish(struct dev *dev, struct product *logits, float softcap) {
    struct cuda_dev *cuda = cuda_of(dev);
    int64_t vocab = logits->y.shape[1];
    if (logits->y.shape[0] == 0) return;
    dim3 grid((unsigned)((vocab + 255) / 256), (unsigned)logits->y.shape[0]);
    cuda_launch(cuda, "logits_finish", finish_kernel, grid, 256, 0, (float *)logits->y.data, bias_of(logits),
                softcap, vocab);
}
