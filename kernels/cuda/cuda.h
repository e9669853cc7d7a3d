/* cuda.h - private to kernels/cuda/: the device, and what its kernels share.
 *
 * One stream carries everything in order. A step's arrays travel in one pinned
 * staging buffer and one copy (cuda_step.cu); nothing is allocated in a step. */
#ifndef BATCHD_KERNELS_CUDA_CUDA_H
#define BATCHD_KERNELS_CUDA_CUDA_H

#include "kernels/backend.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

/* Query tokens of one sequence that one attention item takes. */
enum { ATTENTION_QUERIES = 128 };

struct attention_item { /* consecutive query rows of one sequence */
    int32_t slot;
    int32_t first_row;      /* of the step */
    int32_t n_rows;         /* 1 .. ATTENTION_QUERIES */
    int32_t first_position; /* of first_row; its last key is itself */
    int32_t tile;           /* of the sequence's keys, where they are expanded (struct expanded_room); -1 = they are not */
};

/* Scratch memory for keys and values of an fp8 cache as 16-bit numbers: cuda_attention_expand.cuh. */
struct expanded_room {
    int32_t n_tiles;             /* of ATTENTION_TILE keys; 0 = there is none */
    int32_t n_kv_heads, head_dim; /* that it was reserved for, */
    int32_t group;               /* and query heads to one of keys */
    size_t bytes;
};

struct expanded_tile {
    int32_t slot, first_key;     /* a multiple of ATTENTION_TILE */
    int32_t first_position, end; /* of the sequence's rows: what they see may begin behind first_key, or end before */
};

struct cuda_step {                      /* a step whose arrays are on the device */
    struct step step;                   /* counts are for the host, pointers for the device */
    const struct attention_item *items; /* device: those of one row first, then those whose keys are expanded;
                                           longest context first */
    int32_t n_items, n_single, n_expanded; /* n_single: of one row */
    int32_t most_tokens;                /* of an item */
    const struct expanded_tile *tiles;  /* device: [n_tiles] */
    int32_t n_tiles;
};

struct cuda_staging { /* of one step under way */
    char *host;
    size_t bytes;
    cudaEvent_t copied;
    bool in_use;
    struct cuda_step step;
};

enum { CUDA_STAGINGS = 4, CUDA_MARKS = 16 }; /* more than steps, and their marks, can be under way */

struct cuda_linear; /* cuda_linear.h */
struct cuda_loader; /* cuda_weights.cu */
struct cuda_graph;  /* cuda_graph.cu */

struct cuda_dev {
    struct dev dev;
    int id;
    struct cudaDeviceProp prop;
    cudaStream_t stream;
    struct cuda_staging staging[CUDA_STAGINGS];
    int next_staging;
    char *step_room; /* on the device: the step's arrays */
    size_t step_bytes;
    cudaEvent_t marks[CUDA_MARKS];
    int64_t next_mark;
    struct cuda_linear *linear;
    struct cuda_loader *loader; /* NULL before the first weight is loaded */
    bool is_loading;            /* pieces of weights are on their way */
    int capability;             /* that this build's code is for, 75 or 90 say; the device may have more */
    bool has_bf16;              /* this build and the device compute in it: 8.0 and above */
    bool has_wgmma;             /* this build has the device's own matrix instructions */
    bool is_recording;          /* what is launched becomes a graph */
    struct cuda_graph *graphs;  /* a list */
    struct cuda_quant *quant;   /* cuda_quantize.cu: scratch of quantized products */
    struct expanded_room expanded;
    void *scratch;              /* cuda_scratch */
    size_t scratch_bytes;
    int64_t n_allocations;
    cudaEvent_t stamps[N_STAMPS]; /* made when first noted */
};

static inline struct cuda_dev *cuda_of(struct dev *dev) { return (struct cuda_dev *)dev; }

static inline const struct cuda_step *cuda_step_of(const struct step *step) {
    return (const struct cuda_step *)step; /* step is its first member */
}

/* False, and the device has failed, unless the call went well. */
bool cuda_ok(struct cuda_dev *cuda, cudaError_t e, const char *what);

/* After a launch. */
static inline void cuda_launched(struct cuda_dev *cuda, const char *what) {
    cuda_ok(cuda, cudaGetLastError(), what);
}

/* At least so many bytes for the kernel queued next, good until the next call; grows
 * outside of steps only in effect, since the first steps ask for the most. NULL after an error. */
void *cuda_scratch(struct cuda_dev *cuda, size_t bytes);

/* cuda_step.cu */
const struct step *cuda_step_upload(struct dev *dev, const struct step *host);
void cuda_step_reserve(struct dev *dev, const struct step_limits *limits);
int64_t cuda_step_reserve_bytes(const struct dev *dev, const struct step_limits *limits);
void cuda_step_close(struct cuda_dev *cuda);

/* cuda_profile.cu */
void cuda_stamp(struct dev *dev, int32_t i);
double cuda_stamp_ns(struct dev *dev, int32_t from, int32_t to);
void cuda_range_push(const char *name);
void cuda_range_pop(void);
void cuda_profile_close(struct cuda_dev *cuda);

/* cuda_graph.cu */
bool cuda_replay(struct dev *dev, uint64_t key);
void cuda_record(struct dev *dev);
void cuda_record_end(struct dev *dev, uint64_t key);
void cuda_graphs_close(struct cuda_dev *cuda);

/* cuda_weights.cu */
size_t cuda_weight_bytes(int64_t n_pad, int64_t k_pad, enum dtype dtype);
void cuda_weight_load(struct dev *dev, struct weight *w, int64_t first_row, const struct tensor *host);
void cuda_weight_random(struct dev *dev, struct weight *w, int64_t first_row, int64_t rows, uint64_t seed,
                        float deviation);
bool cuda_weight_read(struct dev *dev, void *to, const void *from, size_t bytes);
void cuda_weight_upload(struct dev *dev, void *to, const void *from, size_t bytes);
void cuda_weight_quantize(struct dev *dev, const struct weight *w, struct weight_segment *segments,
                          const struct weight_run *runs, int n_runs, const struct weight_source *from);
void cuda_loader_close(struct cuda_dev *cuda);
void cuda_loader_wait(struct cuda_dev *cuda);

/* Before weights are read: all that was handed over has arrived. */
static inline void cuda_loader_drain(struct cuda_dev *cuda) {
    if (cuda->is_loading) cuda_loader_wait(cuda);
}

/* cuda_linear.cu */
bool cuda_linear_open(struct cuda_dev *cuda);
void cuda_linear_close(struct cuda_dev *cuda);
void cuda_linear(struct dev *dev, struct product *y, const struct activation *x, const struct weight *w);

/* cuda_algorithm.cu */
void cuda_linear_reserve(struct dev *dev, const struct weight *w, int64_t max_rows);
void cuda_linear_tune(struct dev *dev, struct product *y, const struct activation *x, const struct weight *w,
                      struct linear_tuning *out);

/* cuda_linear_8bit.cu */
bool cuda_linear_takes(const struct dev *dev, const struct weight *w, enum dtype codes);
void cuda_quantize(struct dev *dev, struct activation *out, const struct activation *x);

/* cuda_quantize.cu: cuda_linear where the weight is quantized. Its scratch is taken when the
 * weight is made, before the KV cache takes what is left. */
void cuda_quantized_reserve(struct dev *dev, const struct weight *w);
void cuda_quantized_close(struct cuda_dev *cuda);
void cuda_linear_quantized(struct cuda_dev *cuda, struct product *y, const struct activation *x,
                           const struct weight *w);

/* cuda_norm.cu */
void cuda_residual_norm(struct dev *dev, struct activation *out, struct tensor *residual,
                        const struct addend *add, const struct norm *norm);

/* cuda_rows.cu */
void cuda_embed(struct dev *dev, struct tensor *residual, const struct weight *table, float scale,
                const struct step *step);
void cuda_logits_finish(struct dev *dev, struct product *logits, float softcap);
void cuda_gather(struct dev *dev, struct activation *out, const struct activation *x,
                 const struct step *step);

/* cuda_qkv.cu */
void cuda_qkv_finish(struct dev *dev, struct tensor *q, struct kv_cache *kv, int32_t layer,
                     const struct product *qkv, const struct attention_shape *shape,
                     const struct head_rules *rules, const struct step *step);

/* cuda_act.cu */
void cuda_glu(struct dev *dev, struct activation *out, const struct product *gate_up, enum act act);
void cuda_act(struct dev *dev, struct activation *out, const struct product *y, enum act act);

/* cuda_moe.cu */
void cuda_moe_experts(struct dev *dev, struct tensor *out, const struct activation *x,
                      const struct product *router, const struct moe *moe, const struct moe_room *room);

/* cuda_attention.cu */
void cuda_attention(struct dev *dev, struct activation *out, const struct tensor *q,
                    const struct kv_cache *kv, int32_t layer, const struct attention_shape *shape,
                    const struct step *step);
int32_t cuda_attention_splits(const struct dev *dev, const struct attention_shape *shape, enum dtype dtype,
                              const struct step *step);
int64_t cuda_attention_reserve_bytes(const struct cuda_dev *cuda, const struct step_limits *limits);
void cuda_attention_reserve(struct cuda_dev *cuda, const struct step_limits *limits);

/* cuda_sample.cu */
void cuda_sample(struct dev *dev, int32_t *drawn, int32_t *last_sample, struct sample_logprobs *logprobs,
                 const struct product *logits, const struct step *step);
int64_t cuda_sample_bytes(const struct cuda_dev *cuda, int64_t n_samples, int64_t vocab);
void cuda_sample_reserve(struct dev *dev, int64_t n_samples, int64_t vocab);

#ifdef __cplusplus

/* Kernels of compute capability 9.0 may begin while the one before still runs (programmatic
 * dependent launch). Such a kernel calls cuda_release first, which lets the next begin, and
 * cuda_follow before it reads or writes what others do, which waits for the one before. */
__device__ __forceinline__ void cuda_release() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

__device__ __forceinline__ void cuda_follow() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/* Both at once, first thing in a kernel with nothing to do before. */
__device__ __forceinline__ void cuda_begin() {
    cuda_release();
    cuda_follow();
}

/* Launch a kernel that calls both. */
template <typename... P, typename... A>
static inline void cuda_launch(struct cuda_dev *cuda, const char *what, void (*kernel)(P...), dim3 grid,
                               unsigned threads, size_t shared_bytes, A... args) {
    cudaLaunchAttribute overlap = {};
    cudaLaunchConfig_t config = {};
    overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    overlap.val.programmaticStreamSerializationAllowed = 1;
    config.gridDim = grid;
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = shared_bytes;
    config.stream = cuda->stream;
    config.attrs = &overlap;
    config.numAttrs = cuda->capability >= 90 ? 1 : 0;
    cuda_ok(cuda, cudaLaunchKernelEx(&config, kernel, P(args)...), what);
}

/* Let a kernel use so many bytes of dynamic shared memory, more than it may unasked. Once is
 * enough: *allowed, a static of the caller's for each kernel, remembers it. False: the device has failed. */
template <typename... P>
static inline bool cuda_allow_shared(struct cuda_dev *cuda, const char *what, void (*kernel)(P...), int bytes,
                                     bool *allowed) {
    if (!*allowed)
        *allowed = cuda_ok(
            cuda, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), what);
    return *allowed;
}

/* The larger; NaN where either is, for a NaN must not vanish in a maximum. */
__device__ __forceinline__ float max_or_nan(float x, float y) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    float z;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(z) : "f"(x), "f"(y));
    return z;
#else
    return y > x || y != y ? y : x;
#endif
}

/* Kernels are written once for all compute dtypes; T is float, __nv_bfloat16 or __half. */
template <typename T> __device__ __forceinline__ float cuda_float(T x);
template <> __device__ __forceinline__ float cuda_float<float>(float x) { return x; }
template <> __device__ __forceinline__ float cuda_float<__nv_bfloat16>(__nv_bfloat16 x) {
    return __bfloat162float(x);
}
template <> __device__ __forceinline__ float cuda_float<__half>(__half x) { return __half2float(x); }

template <typename T> __device__ __forceinline__ T cuda_round(float x);
template <> __device__ __forceinline__ float cuda_round<float>(float x) { return x; }
template <> __device__ __forceinline__ __nv_bfloat16 cuda_round<__nv_bfloat16>(float x) {
    return __float2bfloat16_rn(x);
}
template <> __device__ __forceinline__ __half cuda_round<__half>(float x) { return __float2half_rn(x); }
#endif

#endif
