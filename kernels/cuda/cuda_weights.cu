/* cuda_weights.cu - weights on their way to the device.
 *
 * A checkpoint lies in mapped files. Threads copy pieces of it into pinned memory, converting
 * them to the weight's dtype on the way, and from there to the device, each over two buffers
 * and a stream of its own, so that reading, converting and copying overlap. weight_load only
 * hands pieces over; whatever reads weights waits for all of them first (cuda_loader_drain). */
#include "kernels/cuda/cuda.h"

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

enum { LOADERS = 6, BUFFER_BYTES = 4 << 20 };

struct piece { /* rows of one tensor */
    const char *from;
    char *to; /* device */
    int64_t rows, k, k_pad;
    enum dtype from_dtype, dtype;
};

struct cuda_loader {
    struct cuda_dev *cuda;
    pthread_t threads[LOADERS];
    int n_threads;
    pthread_mutex_t lock; /* of what follows */
    pthread_cond_t work, idle;
    struct piece *pieces; /* a queue */
    size_t first, n, cap;
    int n_busy;
    bool stop;
    cudaError_t error; /* the first */
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

static cudaError_t lane_send(struct lane *l, const struct piece *p) {
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
    e = cudaMemcpyAsync(p->to, l->buffer[b], bytes, cudaMemcpyHostToDevice, l->stream);
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
    while (take_piece(l, &p)) {
        bool is_last = l->n == 0;
        pthread_mutex_unlock(&l->lock);
        if (e == cudaSuccess) e = lane_send(&lane, &p);
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
    free(l->pieces);
    free(l);
    cuda->loader = NULL;
}

/* The device's copies are over too: a thread that is idle has no more to send, but its last
 * copies may be under way, so wait for the device as a whole. */
void cuda_loader_wait(struct cuda_dev *cuda) {
    struct cuda_loader *l = cuda->loader;
    pthread_mutex_lock(&l->lock);
    while (l->n > 0 || l->n_busy > 0) pthread_cond_wait(&l->idle, &l->lock);
    cudaError_t e = l->error;
    l->error = cudaSuccess;
    pthread_mutex_unlock(&l->lock);
    cuda->is_loading = false;
    cuda_ok(cuda, e, "loading weights");
    cuda_ok(cuda, cudaDeviceSynchronize(), "loading weights");
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

void cuda_weight_load(struct dev *dev, struct weight *w, int64_t first_row, const struct tensor *host) {
    struct cuda_dev *cuda = cuda_of(dev);
    size_t in_row = (size_t)w->k * dtype_bytes(host->dtype),
           out_row = (size_t)w->k_pad * dtype_bytes(w->dtype);
    int64_t rows = host->shape[0], most = (int64_t)(BUFFER_BYTES / out_row);
    if (most < 1) most = 1;
    if (!cuda->loader) cuda->loader = loader_open(cuda);
    if (cuda->dev.failed.code) return;
    /* The memory may still be being cleared, on the device's stream. */
    if (!cuda_ok(cuda, cudaStreamSynchronize(cuda->stream), "loading weights")) return;
    cuda->is_loading = true;
    for (int64_t r = 0; r < rows; r += most) {
        struct piece p = {(const char *)host->data + (size_t)r * in_row,
                          (char *)w->data + (size_t)(first_row + r) * out_row,
                          rows - r < most ? rows - r : most,
                          w->k,
                          w->k_pad,
                          host->dtype,
                          w->dtype};
        give(cuda->loader, &p);
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
    else if (w->dtype == DTYPE_F16)
        random_kernel<<<2048, 256, 0, cuda->stream>>>((__half *)w->data + at, rows, w->k, w->k_pad,
                                                      mix64(seed), deviation);
    else
        random_kernel<<<2048, 256, 0, cuda->stream>>>((float *)w->data + at, rows, w->k, w->k_pad,
                                                      mix64(seed), deviation);
    cuda_launched(cuda, "random weights");
}
