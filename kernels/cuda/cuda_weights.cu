/* cuda_weights.cu - weights on their way to the device.
 *
 * A checkpoint lies in mapped files. Threads copy pieces of it into pinned memory, converting
 * them to the weight's dtype on the way, and from there to the device, each over two buffers
 * and a stream of its own, so that reading, converting and copying overlap. What is to be
 * quantized goes up as it is, into memory as large as those buffers, and becomes codes from
 * there: a quantized weight takes no more room while it is loaded. weight_load only hands
 * pieces over; whatever reads weights waits for all of them first (cuda_loader_drain). */
#include "kernels/cuda/cuda_quantize.h"
#include "kernels/cuda/cuda_random.cuh"

#include "base/mem.h"

#include <assert.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

size_t cuda_weight_bytes(int64_t n_pad, int64_t k_pad, enum dtype dtype) {
    return (size_t)n_pad * (size_t)k_pad * dtype_bytes(dtype);
}

/* ---------------------------------------------------------------- dtypes */

static float number_at(const void *p, enum dtype t, int64_t i) {
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
        for (int64_t i = 0; i < n; i++) ((uint16_t *)out)[i] = bf16_from_f32(number_at(in, from, i));
    else if (to == DTYPE_F16)
        for (int64_t i = 0; i < n; i++) ((uint16_t *)out)[i] = f16_from_f32(number_at(in, from, i));
    else
        for (int64_t i = 0; i < n; i++) ((float *)out)[i] = number_at(in, from, i);
}

/* ---------------------------------------------------------------- threads that load */

enum { LOADERS = 6, BUFFER_BYTES = 2 << 20 };

struct piece { /* rows of one tensor */
    const char *from;
    char *to; /* device; what is quantized goes through memory of the lane's instead */
    int64_t rows, k, k_pad;
    enum dtype from_dtype, dtype;
    struct quantizing quantizing; /* of kind QUANT_NONE: it is not */
};

struct cuda_loader {
    struct cuda_dev *cuda;
    pthread_t threads[LOADERS];
    int n_threads;
    pthread_mutex_t lock; /* of what follows */
    pthread_cond_t work, idle;
    struct piece *pieces; /* a queue */
    size_t first, n, cap;
    int n_busy, n_lanes;
    bool stop;
    cudaError_t error; /* the first */

    /* Device memory, while weights are quantized. Changes only when no piece is under way. */
    char *stages; /* [LOADERS][2] of stage_bytes */
    size_t stage_bytes;
    int32_t *not_finite;
};

static void fill(char *to, const struct piece *p) {
    size_t in = (size_t)p->k * dtype_bytes(p->from_dtype), used = (size_t)p->k * dtype_bytes(p->dtype);
    size_t out = (size_t)p->k_pad * dtype_bytes(p->dtype);
    if (in == out && p->from_dtype == p->dtype) {
        memcpy(to, p->from, in * (size_t)p->rows);
        return;
    }
    for (int64_t r = 0; r < p->rows; r++, to += out) {
        convert(to, p->dtype, p->from + (size_t)r * in, p->from_dtype, p->k);
        memset(to + used, 0, out - used);
    }
}

struct lane { /* of one thread */
    int id;
    cudaStream_t stream;
    char *buffer[2];
    cudaEvent_t copied[2];
    size_t bytes; /* of a buffer */
    int next;
};

static cudaError_t lane_open(struct lane *l) {
    cudaError_t e = cudaStreamCreateWithFlags(&l->stream, cudaStreamNonBlocking);
    l->bytes = BUFFER_BYTES;
    for (int b = 0; e == cudaSuccess && b < 2; b++) {
        e = cudaMallocHost((void **)&l->buffer[b], l->bytes);
        if (e == cudaSuccess) e = cudaEventCreateWithFlags(&l->copied[b], cudaEventDisableTiming);
    }
    return e;
}

static void lane_close(struct lane *l) {
    if (l->stream) cudaStreamSynchronize(l->stream);
    for (int b = 0; b < 2; b++) {
        cudaFreeHost(l->buffer[b]);
        if (l->copied[b]) cudaEventDestroy(l->copied[b]);
    }
    if (l->stream) cudaStreamDestroy(l->stream);
}

/* Its codes come from the lane's memory on the device, which is free again when the buffer is. */
static cudaError_t lane_quantize(const struct cuda_loader *loader, const struct lane *l,
                                 const struct piece *p, int b, size_t bytes) {
    char *stage = loader->stages + (size_t)(2 * l->id + b) * loader->stage_bytes;
    cudaError_t e = cudaMemcpyAsync(stage, l->buffer[b], bytes, cudaMemcpyHostToDevice, l->stream);
    if (e != cudaSuccess) return e;
    quantize_numbers(l->stream, &p->quantizing, stage, p->dtype);
    return cudaGetLastError();
}

static cudaError_t lane_send(const struct cuda_loader *loader, struct lane *l, const struct piece *p) {
    int b = l->next;
    size_t bytes = (size_t)(p->rows * p->k_pad) * dtype_bytes(p->dtype);
    l->next = 1 - b;
    cudaError_t e = cudaEventSynchronize(l->copied[b]);
    if (e == cudaSuccess && bytes > l->bytes) { /* a row longer than a buffer */
        cudaFreeHost(l->buffer[b]);
        l->buffer[b] = NULL;
        e = cudaMallocHost((void **)&l->buffer[b], bytes);
    }
    if (e != cudaSuccess) return e;
    fill(l->buffer[b], p);
    e = p->quantizing.kind != QUANT_NONE
            ? lane_quantize(loader, l, p, b, bytes)
            : cudaMemcpyAsync(p->to, l->buffer[b], bytes, cudaMemcpyHostToDevice, l->stream);
    return e == cudaSuccess ? cudaEventRecord(l->copied[b], l->stream) : e;
}

/* With the lock held: the next piece, or false when the loader stops. */
static bool take_piece(struct cuda_loader *l, struct piece *out) {
    while (l->n == 0 && !l->stop) pthread_cond_wait(&l->work, &l->lock);
    if (l->n == 0) return false;
    *out = l->pieces[l->first++];
    if (--l->n == 0) l->first = 0;
    l->n_busy++;
    return true;
}

static void *loader_main(void *arg) {
    struct cuda_loader *l = (struct cuda_loader *)arg;
    struct lane lane = {};
    struct piece p;
    cudaSetDevice(l->cuda->id);
    cudaError_t e = lane_open(&lane);
    pthread_mutex_lock(&l->lock);
    lane.id = l->n_lanes++;
    while (take_piece(l, &p)) {
        bool is_last = l->n == 0;
        pthread_mutex_unlock(&l->lock);
        if (e == cudaSuccess) e = lane_send(l, &lane, &p);
        if (e == cudaSuccess && is_last) e = cudaStreamSynchronize(lane.stream);
        pthread_mutex_lock(&l->lock);
        if (e != cudaSuccess && l->error == cudaSuccess) l->error = e;
        if (--l->n_busy == 0 && l->n == 0) pthread_cond_broadcast(&l->idle);
    }
    pthread_mutex_unlock(&l->lock);
    lane_close(&lane);
    return NULL;
}

static struct cuda_loader *loader_open(struct cuda_dev *cuda) {
    struct cuda_loader *l = (struct cuda_loader *)mem_zalloc(1, sizeof *l);
    l->cuda = cuda;
    pthread_mutex_init(&l->lock, NULL);
    pthread_cond_init(&l->work, NULL);
    pthread_cond_init(&l->idle, NULL);
    while (l->n_threads < LOADERS && pthread_create(&l->threads[l->n_threads], NULL, loader_main, l) == 0)
        l->n_threads++;
    if (l->n_threads == 0) dev_fail(&cuda->dev, E_NO_MEMORY, "cannot start a thread to load weights");
    return l;
}

/* No piece is under way. */
static void stages_close(struct cuda_loader *l) {
    cudaFree(l->stages);
    cudaFree(l->not_finite);
    l->stages = NULL;
    l->not_finite = NULL;
    l->stage_bytes = 0;
}

void cuda_loader_close(struct cuda_dev *cuda) {
    struct cuda_loader *l = cuda->loader;
    if (!l) return;
    pthread_mutex_lock(&l->lock);
    l->stop = true;
    pthread_cond_broadcast(&l->work);
    pthread_mutex_unlock(&l->lock);
    for (int i = 0; i < l->n_threads; i++) pthread_join(l->threads[i], NULL);
    pthread_cond_destroy(&l->work);
    pthread_cond_destroy(&l->idle);
    pthread_mutex_destroy(&l->lock);
    stages_close(l);
    free(l->pieces);
    free(l);
    cuda->loader = NULL;
}

/* All pieces that were handed over are on the device. Its copies are over too: a thread that is
 * idle has no more to send, but its last copies may be under way, so wait for the device as a
 * whole. */
static bool loader_settle(struct cuda_dev *cuda) {
    struct cuda_loader *l = cuda->loader;
    pthread_mutex_lock(&l->lock);
    while (l->n > 0 || l->n_busy > 0) pthread_cond_wait(&l->idle, &l->lock);
    cudaError_t e = l->error;
    l->error = cudaSuccess;
    pthread_mutex_unlock(&l->lock);
    return cuda_ok(cuda, e, "loading weights") && cuda_ok(cuda, cudaDeviceSynchronize(), "loading weights");
}

void cuda_loader_wait(struct cuda_dev *cuda) {
    struct cuda_loader *l = cuda->loader;
    int32_t not_finite = 0;
    cuda->is_loading = false;
    loader_settle(cuda);
    if (!l->stages) return;
    cuda_ok(cuda, cudaMemcpy(&not_finite, l->not_finite, sizeof not_finite, cudaMemcpyDeviceToHost),
            "loading weights");
    stages_close(l);
    if (not_finite) dev_fail(&cuda->dev, E_PARSE, "weights that are to be quantized are not finite");
}

static void give(struct cuda_loader *l, const struct piece *p) {
    pthread_mutex_lock(&l->lock);
    if (l->first + l->n == l->cap) {
        l->cap = 2 * l->cap + 64;
        l->pieces = (struct piece *)mem_realloc(l->pieces, l->cap, sizeof *l->pieces);
    }
    l->pieces[l->first + l->n++] = *p;
    pthread_cond_signal(&l->work);
    pthread_mutex_unlock(&l->lock);
}

/* False after an error. */
static bool loader_begin(struct cuda_dev *cuda) {
    if (!cuda->loader) cuda->loader = loader_open(cuda);
    cuda->is_loading = true;
    /* The memory may still be being cleared, on the device's stream. */
    return cuda->dev.failed.code == 0 &&
           cuda_ok(cuda, cudaStreamSynchronize(cuda->stream), "loading weights");
}

void cuda_weight_load(struct dev *dev, struct weight *w, int64_t first_row, const struct tensor *host) {
    struct cuda_dev *cuda = cuda_of(dev);
    size_t in_row = (size_t)w->k * dtype_bytes(host->dtype),
           out_row = (size_t)w->k_pad * dtype_bytes(w->dtype);
    int64_t rows = host->shape[0], most = (int64_t)(BUFFER_BYTES / out_row);
    if (most < 1) most = 1;
    if (!loader_begin(cuda)) return;
    for (int64_t r = 0; r < rows; r += most) {
        struct piece p = {(const char *)host->data + (size_t)r * in_row,
                          (char *)w->data + (size_t)(first_row + r) * out_row,
                          rows - r < most ? rows - r : most,
                          w->k,
                          w->k_pad,
                          host->dtype,
                          w->dtype,
                          {}};
        give(cuda->loader, &p);
    }
}

/* Bytes as they are; they must stay where they are until the device was waited for. */
void cuda_weight_upload(struct dev *dev, void *to, const void *from, size_t bytes) {
    struct cuda_dev *cuda = cuda_of(dev);
    if (!loader_begin(cuda)) return;
    for (size_t at = 0; at < bytes; at += BUFFER_BYTES) {
        int64_t n = (int64_t)(bytes - at < BUFFER_BYTES ? bytes - at : BUFFER_BYTES);
        struct piece p = {(const char *)from + at, (char *)to + at, 1, n, n, DTYPE_U8, DTYPE_U8, {}};
        give(cuda->loader, &p);
    }
}

/* On a stream of the calling thread, beside what the device's own thread does. */
bool cuda_weight_read(struct dev *dev, void *to, const void *from, size_t bytes) {
    return cudaSetDevice(cuda_of(dev)->id) == cudaSuccess &&
           cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, cudaStreamPerThread) == cudaSuccess &&
           cudaStreamSynchronize(cudaStreamPerThread) == cudaSuccess;
}

/* ---------------------------------------------------------------- weights that are quantized on their way */

/* Memory of the lanes', for pieces of so many bytes. */
static bool stages_reserve(struct cuda_dev *cuda, size_t bytes) {
    struct cuda_loader *l = cuda->loader;
    if (bytes <= l->stage_bytes) return true;
    if (!loader_settle(cuda)) return false;
    if (!l->not_finite &&
        (!cuda_ok(cuda, cudaMalloc((void **)&l->not_finite, sizeof *l->not_finite), "loading weights") ||
         !cuda_ok(cuda, cudaMemset(l->not_finite, 0, sizeof *l->not_finite), "loading weights")))
        return false;
    cudaFree(l->stages);
    l->stages = NULL;
    l->stage_bytes = 0;
    if (!cuda_ok(cuda, cudaMalloc((void **)&l->stages, LOADERS * 2 * bytes), "loading weights")) return false;
    l->stage_bytes = bytes;
    return true;
}

static struct quantizing quantizing_of(const struct weight *w, int64_t n_rows, int32_t *not_finite) {
    struct quantizing q = {};
    q.kind = w->quant;
    q.dtype = w->dtype;
    q.n_rows = n_rows;
    q.k = w->k;
    q.k_pad = w->k_pad;
    q.not_finite = not_finite;
    return q;
}

static void give_quantized(struct cuda_loader *l, const char *from, enum dtype dtype,
                           const struct quantizing *q) {
    struct piece p = {from, NULL, q->n_rows, q->k, q->k, dtype, dtype, *q};
    give(l, &p);
}

/* Pieces of whole blocks: a tensor's numbers are one long row. */
static void give_blocks(struct cuda_dev *cuda, const struct weight *w, const struct tensor *host,
                        uint8_t *codes, float *absmax) {
    int64_t n = host->shape[0] * w->k, most = BUFFER_BYTES / (int64_t)dtype_bytes(host->dtype);
    struct quantizing q = quantizing_of(w, 1, cuda->loader->not_finite);
    for (int64_t at = 0; at < n; at += most) {
        q.k = n - at < most ? n - at : most;
        q.codes = codes + at / 2;
        q.scale = absmax + at / QUANT_BLOCK;
        give_quantized(cuda->loader, (const char *)host->data + (size_t)at * dtype_bytes(host->dtype),
                       host->dtype, &q);
    }
}

/* Pieces of whole rows of a run. */
static void give_rows(struct cuda_dev *cuda, const struct weight *w, const struct tensor *host,
                      const struct weight_run *run, float *scale) {
    int64_t row = w->k * (int64_t)dtype_bytes(host->dtype), most = BUFFER_BYTES / row;
    struct quantizing q = quantizing_of(w, 0, cuda->loader->not_finite);
    if (most < 1) most = 1;
    for (int64_t r = 0; r < run->n_rows; r += most) {
        q.n_rows = run->n_rows - r < most ? run->n_rows - r : most;
        q.codes = (uint8_t *)w->data + (run->to + r) * w->k_pad;
        q.scale = scale + r;
        give_quantized(cuda->loader, (const char *)host->data + (run->from + r) * row, host->dtype, &q);
    }
}

static void quantize_checkpoint(struct cuda_dev *cuda, const struct weight *w, const struct tensor *host,
                                const struct weight_run *runs, const struct weight_segment *segments,
                                int n_runs, float *absmax) {
    size_t row = (size_t)w->k * dtype_bytes(host->dtype);
    bool is_4bit = quant_is_4bit(w->quant);
    if (!loader_begin(cuda) || !stages_reserve(cuda, is_4bit || row < BUFFER_BYTES ? BUFFER_BYTES : row))
        return;
    if (is_4bit) give_blocks(cuda, w, host, (uint8_t *)w->data + segments->offset, absmax);
    for (int i = 0; !is_4bit && i < n_runs; i++)
        give_rows(cuda, w, host, &runs[i], (float *)w->scale.data + runs[i].to);
}

/* Random numbers need not travel: they become codes where they are made. */
static void quantize_made_up(struct cuda_dev *cuda, const struct weight *w, const struct weight_source *from,
                             const struct weight_segment *segment, float *absmax) {
    struct quantizing q = quantizing_of(w, from->n_rows, NULL); /* they are finite */
    q.codes = (uint8_t *)w->data + segment->offset;
    if (w->scale.data) absmax = (float *)w->scale.data + segment->first_row;
    q.scale = absmax;
    quantize_random(cuda->stream, &q, from->seed, from->deviation);
    cuda_launched(cuda, "random weights");
}

void cuda_weight_quantize(struct dev *dev, const struct weight *w, struct weight_segment *segments,
                          const struct weight_run *runs, int n_runs, const struct weight_source *from) {
    struct cuda_dev *cuda = cuda_of(dev);
    bool is_nested = w->quant == QUANT_NF4_DQ;
    if (is_nested && (!cuda->quant || !cuda->quant->weights)) return; /* reserving has failed, and said so */
    /* absmax that become codes too lie where products will have the weight's numbers. */
    float *absmax = is_nested ? (float *)cuda->quant->weights : (float *)segments->absmax.data;
    if (from->host)
        quantize_checkpoint(cuda, w, from->host, runs, segments, n_runs, absmax);
    else
        quantize_made_up(cuda, w, from, segments, absmax);
    if (!is_nested || (cuda->loader && !loader_settle(cuda))) return;
    segments->mean = quantize_nested(cuda, (uint8_t *)segments->absmax.data, (float *)segments->absmax2.data,
                                     absmax, quant_blocks(from->n_rows * w->k, QUANT_BLOCK));
}

/* ---------------------------------------------------------------- random weights */

template <typename T>
__global__ void random_kernel(T *w, int64_t n, int64_t k, int64_t k_pad, uint64_t seed, float deviation) {
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n * k;
         i += (int64_t)gridDim.x * blockDim.x) {
        w[i / k * k_pad + i % k] = cuda_round<T>(random_normal(seed, i) * deviation);
    }
}

void cuda_weight_random(struct dev *dev, struct weight *w, int64_t first_row, int64_t rows, uint64_t seed,
                        float deviation) {
    struct cuda_dev *cuda = cuda_of(dev);
    int64_t at = first_row * w->k_pad;
    if (w->dtype == DTYPE_BF16)
        random_kernel<<<2048, 256, 0, cuda->stream>>>((__nv_bfloat16 *)w->data + at, rows, w->k, w->k_pad,
                                                      mix64(seed), deviation);
    else if (w->dtype == DTYPE_F16)
        random_kernel<<<2048, 256, 0, cuda->stream>>>((__half *)w->data + at, rows, w->k, w->k_pad,
                                                      mix64(seed), deviation);
    else
        random_kernel<<<2048, 256, 0, cuda->stream>>>((float *)w->data + at, rows, w->k, w->k_pad,
                                                      mix64(seed), deviation);
    cuda_launched(cuda, "random weights");
}
