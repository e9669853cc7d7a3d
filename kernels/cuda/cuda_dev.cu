/* cuda_dev.cu - the CUDA device: memory, copies, the order of things, and the table of
 * operations. Built into libbatchd_cuda.so, which the program opens at run time. */
#include "kernels/cuda/cuda.h"

#include "base/mem.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool cuda_ok(struct cuda_dev *cuda, cudaError_t e, const char *what) {
    if (e == cudaSuccess) return true;
    dev_fail(&cuda->dev, E_DEVICE, "%s: %s", what, cudaGetErrorString(e));
    return false;
}

/* ---------------------------------------------------------------- memory */

static int64_t cuda_memory_available(const struct dev *dev) {
    size_t available = 0, total = 0;
    return cudaMemGetInfo(&available, &total) == cudaSuccess ? (int64_t)available : 0;
}

static void *cuda_alloc(struct dev *dev, size_t bytes) {
    struct cuda_dev *cuda = cuda_of(dev);
    void *p = NULL;
    if (cudaMalloc(&p, bytes ? bytes : 1) != cudaSuccess) {
        cudaGetLastError(); /* out of memory is an answer, not a failure of the device */
        return NULL;
    }
    cuda_ok(cuda, cudaMemsetAsync(p, 0, bytes, cuda->stream), "clearing memory");
    cuda->n_allocations++;
    dev->n_growths++;
    return p;
}

static void cuda_free(struct dev *dev, void *p) {
    struct cuda_dev *cuda = cuda_of(dev);
    cuda_loader_drain(cuda);
    cuda_graphs_close(cuda); /* they may use it */
    cudaFree(p);             /* waits for what uses it */
    cuda->n_allocations--;
}

static void *cuda_host_alloc(struct dev *dev, size_t bytes) {
    void *p = NULL;
    if (cudaMallocHost(&p, bytes ? bytes : 1) != cudaSuccess) {
        cudaGetLastError();
        return NULL;
    }
    memset(p, 0, bytes);
    return p;
}

static void cuda_host_free(struct dev *dev, void *p) { cudaFreeHost(p); }

void *cuda_scratch(struct cuda_dev *cuda, size_t bytes) {
    if (bytes <= cuda->scratch_bytes) return cuda->scratch;
    assert(!cuda->is_recording);
    cuda_graphs_close(cuda);
    cudaFree(cuda->scratch);
    cuda->scratch = NULL;
    cuda->scratch_bytes = 0;
    if (!cuda_ok(cuda, cudaMalloc(&cuda->scratch, bytes), "scratch memory of the kernels")) return NULL;
    cuda->scratch_bytes = bytes;
    cuda->dev.n_growths++;
    return cuda->scratch;
}

static void cuda_upload(struct dev *dev, void *dst, const void *src, size_t bytes) {
    struct cuda_dev *cuda = cuda_of(dev);
    if (bytes == 0) return;
    cuda_ok(cuda, cudaMemcpyAsync(dst, src, bytes, cudaMemcpyHostToDevice, cuda->stream), "upload");
    cuda_ok(cuda, cudaStreamSynchronize(cuda->stream), "upload"); /* src may be gone when we return */
}

static void cuda_download(struct dev *dev, void *dst, const void *src, size_t bytes) {
    struct cuda_dev *cuda = cuda_of(dev);
    if (bytes == 0) return;
    cuda_loader_drain(cuda);
    cuda_ok(cuda, cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToHost, cuda->stream), "download");
    cuda_ok(cuda, cudaStreamSynchronize(cuda->stream), "download");
}

static void cuda_fetch(struct dev *dev, void *dst, const void *src, size_t bytes) {
    struct cuda_dev *cuda = cuda_of(dev);
    if (bytes == 0) return;
    cuda_ok(cuda, cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToHost, cuda->stream), "fetch");
}

static void cuda_copy(struct dev *dev, void *dst, const void *src, size_t bytes) {
    struct cuda_dev *cuda = cuda_of(dev);
    if (bytes == 0) return;
    cuda_ok(cuda, cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToDevice, cuda->stream), "copy");
}

/* ---------------------------------------------------------------- order */

static void cuda_sync(struct dev *dev) {
    struct cuda_dev *cuda = cuda_of(dev);
    cuda_loader_drain(cuda);
    cuda_ok(cuda, cudaStreamSynchronize(cuda->stream), "the device");
}

static int64_t cuda_mark(struct dev *dev) {
    struct cuda_dev *cuda = cuda_of(dev);
    int64_t mark = cuda->next_mark++;
    cuda_ok(cuda, cudaEventRecord(cuda->marks[mark % CUDA_MARKS], cuda->stream), "mark");
    return mark;
}

static void cuda_wait(struct dev *dev, int64_t mark) {
    struct cuda_dev *cuda = cuda_of(dev);
    assert(mark < cuda->next_mark && mark >= cuda->next_mark - CUDA_MARKS);
    cuda_ok(cuda, cudaEventSynchronize(cuda->marks[mark % CUDA_MARKS]), "the device");
}

/* ---------------------------------------------------------------- open and close */

static void cuda_close(struct dev *dev) {
    struct cuda_dev *cuda = cuda_of(dev);
    assert(cuda->n_allocations == 0);
    cuda_loader_close(cuda);
    if (cuda->stream) cudaStreamSynchronize(cuda->stream);
    cuda_graphs_close(cuda);
    cuda_step_close(cuda);
    cuda_linear_close(cuda);
    cuda_quantized_close(cuda);
    cuda_profile_close(cuda);
    cudaFree(cuda->scratch);
    for (int i = 0; i < CUDA_MARKS; i++)
        if (cuda->marks[i]) cudaEventDestroy(cuda->marks[i]);
    if (cuda->stream) cudaStreamDestroy(cuda->stream);
    free(cuda);
}

static bool cuda_computes(const struct dev *dev, enum dtype dtype) {
    const struct cuda_dev *cuda = (const struct cuda_dev *)dev;
    return dtype == DTYPE_F32 || dtype == DTYPE_F16 || (dtype == DTYPE_BF16 && cuda->has_bf16);
}

static const struct backend *cuda_backend(void) {
    static struct backend b;
    b.kind = "cuda";
    b.close = cuda_close;
    b.computes = cuda_computes;
    b.memory_available = cuda_memory_available;
    b.alloc = cuda_alloc;
    b.free = cuda_free;
    b.host_alloc = cuda_host_alloc;
    b.host_free = cuda_host_free;
    b.upload = cuda_upload;
    b.download = cuda_download;
    b.fetch = cuda_fetch;
    b.copy = cuda_copy;
    b.sync = cuda_sync;
    b.mark = cuda_mark;
    b.wait = cuda_wait;
    b.replay = cuda_replay;
    b.record = cuda_record;
    b.record_end = cuda_record_end;
    b.step_upload = cuda_step_upload;
    b.stamp = cuda_stamp;
    b.stamp_ns = cuda_stamp_ns;
    b.range_push = cuda_range_push;
    b.range_pop = cuda_range_pop;
    b.weight_bytes = cuda_weight_bytes;
    b.weight_load = cuda_weight_load;
    b.weight_random = cuda_weight_random;
    b.weight_upload = cuda_weight_upload;
    b.weight_read = cuda_weight_read;
    b.weight_quantize = cuda_weight_quantize;
    b.keeps_fp8_blocks = true;
    b.weight_reserve = cuda_quantized_reserve;
    b.knows_outliers_of_batch = true;
    b.linear = cuda_linear;
    b.linear_tune = cuda_linear_tune;
    b.linear_takes = cuda_linear_takes;
    b.quantize = cuda_quantize;
    b.linear_reserve = cuda_linear_reserve;
    b.step_reserve = cuda_step_reserve;
    b.step_reserve_bytes = cuda_step_reserve_bytes;
    b.embed = cuda_embed;
    b.residual_norm = cuda_residual_norm;
    b.qkv_finish = cuda_qkv_finish;
    b.attention = cuda_attention;
    b.attention_splits = cuda_attention_splits;
    b.glu = cuda_glu;
    b.act = cuda_act;
    b.moe_experts = cuda_moe_experts;
    b.logits_finish = cuda_logits_finish;
    b.gather = cuda_gather;
    b.sample = cuda_sample;
    b.sample_reserve = cuda_sample_reserve;
    return &b;
}

/* For which architecture this build's kernels are: what runs may be older code, compiled for
 * the device when it is loaded. */
static __global__ void probe_kernel(int32_t *has) {
#ifdef __CUDA_ARCH__
    has[0] = __CUDA_ARCH__ / 10;
#endif
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    has[1] = 1;
#endif
}

static bool probe_build(struct cuda_dev *cuda) {
    int32_t has[2] = {}, *flags = (int32_t *)cuda_scratch(cuda, sizeof has);
    if (!flags || !cuda_ok(cuda, cudaMemsetAsync(flags, 0, sizeof has, cuda->stream), "memory")) return false;
    probe_kernel<<<1, 1, 0, cuda->stream>>>(flags);
    bool ok = cuda_ok(cuda, cudaGetLastError(), "this build has no code for the device") &&
              cuda_ok(cuda, cudaMemcpyAsync(has, flags, sizeof has, cudaMemcpyDeviceToHost, cuda->stream),
                      "a first kernel") &&
              cuda_ok(cuda, cudaStreamSynchronize(cuda->stream), "a first kernel");
    cuda->capability = has[0];
    cuda->has_bf16 = cuda->capability >= 80;
    cuda->has_wgmma = has[1] && cuda->prop.major == 9;
    return ok;
}

static int check_device(struct cuda_dev *cuda, struct err *err) {
    int n = 0;
    cudaError_t e = cudaGetDeviceCount(&n);
    if (e != cudaSuccess || n == 0)
        return err_set(err, E_DEVICE, "no usable CUDA device: %s",
                       e == cudaSuccess ? "none is there" : cudaGetErrorString(e));
    e = cudaSetDevice(cuda->id);
    if (e == cudaSuccess) e = cudaGetDeviceProperties(&cuda->prop, cuda->id);
    if (e != cudaSuccess)
        return err_set(err, E_DEVICE, "CUDA device %d: %s", cuda->id, cudaGetErrorString(e));
    if (cuda->prop.major * 10 + cuda->prop.minor < 75)
        return err_set(err, E_DEVICE, "%s has compute capability %d.%d; 7.5 is needed", cuda->prop.name,
                       cuda->prop.major, cuda->prop.minor);
    return 0;
}

extern "C" int cuda_dev_open(struct dev **out, const struct dev_options *options, struct err *err) {
    struct cuda_dev *cuda = (struct cuda_dev *)mem_zalloc(1, sizeof *cuda);
    cuda->dev.backend = cuda_backend();
    int r = check_device(cuda, err);
    if (r < 0) {
        free(cuda);
        return r;
    }
    snprintf(cuda->dev.name, sizeof cuda->dev.name, "cuda (%.60s)", cuda->prop.name);
    bool ok = cuda_ok(cuda, cudaStreamCreateWithFlags(&cuda->stream, cudaStreamNonBlocking), "a stream");
    for (int i = 0; ok && i < CUDA_MARKS; i++)
        ok = cuda_ok(cuda, cudaEventCreateWithFlags(&cuda->marks[i], cudaEventDisableTiming), "an event");
    ok = ok && probe_build(cuda) && cuda_linear_open(cuda);
    if (!ok) {
        r = err_set(err, E_DEVICE, "%s: %s", cuda->prop.name, cuda->dev.failed.text);
        cuda_close(&cuda->dev);
        return r;
    }
    *out = &cuda->dev;
    return 0;
}
