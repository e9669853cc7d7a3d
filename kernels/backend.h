/* backend.h - the function table that a device's backend fills.
 *
 * Private to kernels/: dev.c and ops.c check arguments and call through it. One
 * process may hold devices of several backends, and tests compare them op by op. */
#ifndef BATCHD_KERNELS_BACKEND_H
#define BATCHD_KERNELS_BACKEND_H

#include "kernels/dev.h"
#include "kernels/ops.h"

#ifdef __cplusplus
extern "C" {
#endif

/* profile.c divides them */
enum { STEP_STAMPS = 2 * 16, PROFILE_STAMPS = 2048, N_STAMPS = DEV_STAMPS + STEP_STAMPS + PROFILE_STAMPS };

struct profile {
    bool in_step;     /* between a step's begin and end */
    bool in_range;    /* an operation's range is open */
    int32_t every;    /* 0 = off */
    int64_t step;     /* whose operations were noted last */
    bool is_noting;   /* between its begin and end */
    bool is_noted;    /* its end has come, its times were not read yet */
    int32_t n;        /* operations */
    uint8_t classes[PROFILE_STAMPS];
    struct dev_profile sums;
};

/* An operation of this class comes next. */
void profile_op(struct dev *dev, enum op_class c);

struct weight_source {         /* a tensor's numbers */
    const struct tensor *host; /* in host memory until dev_sync; NULL: normal numbers, as weight_random says */
    int64_t n_rows;
    uint64_t seed;
    float deviation;
};

struct backend {
    const char *kind;
    void (*close)(struct dev *dev);
    bool (*computes)(const struct dev *dev, enum dtype dtype);
    int64_t (*memory_available)(const struct dev *dev);
    void *(*alloc)(struct dev *dev, size_t bytes);
    void (*free)(struct dev *dev, void *p);
    void (*upload)(struct dev *dev, void *dst, const void *src, size_t bytes);
    void (*download)(struct dev *dev, void *dst, const void *src, size_t bytes);
    void (*copy)(struct dev *dev, void *dst, const void *src, size_t bytes);
    void (*sync)(struct dev *dev);
    void *(*host_alloc)(struct dev *dev, size_t bytes);
    void (*host_free)(struct dev *dev, void *p);
    void (*fetch)(struct dev *dev, void *dst, const void *src, size_t bytes);
    int64_t (*mark)(struct dev *dev);
    void (*wait)(struct dev *dev, int64_t mark);
    bool (*replay)(struct dev *dev, uint64_t key); /* NULL: the device records nothing */
    void (*record)(struct dev *dev);
    void (*record_end)(struct dev *dev, uint64_t key);
    const struct step *(*step_upload)(struct dev *dev, const struct step *host);

    void (*stamp)(struct dev *dev, int32_t i); /* note the time when the device gets here, i < N_STAMPS */
    double (*stamp_ns)(struct dev *dev, int32_t from, int32_t to); /* both were noted, and are over */
    void (*range_push)(const char *name); /* for a profiler that listens, nested; NULL: none can */
    void (*range_pop)(void);

    size_t (*weight_bytes)(int64_t n_pad, int64_t k_pad, enum dtype dtype);
    void (*weight_load)(struct dev *dev, struct weight *w, int64_t first_row, const struct tensor *host);

    void (*weight_random)(struct dev *dev, struct weight *w, int64_t first_row, int64_t rows, uint64_t seed,
                          float deviation);

    /* See op_linear_reserve and step_reserve; may be NULL. */
    void (*linear_reserve)(struct dev *dev, const struct weight *w, int64_t max_rows);
    void (*step_reserve)(struct dev *dev, const struct step_limits *limits);
    int64_t (*step_reserve_bytes)(const struct dev *dev, const struct step_limits *limits);

    /* Bytes that stay as they are until dev_sync, of a weight that is read after it. NULL: dev_upload. */
    void (*weight_upload)(struct dev *dev, void *to, const void *from, size_t bytes);

    /* Back to the host, by any thread; false: it failed. NULL: the memory is the host's. */
    bool (*weight_read)(struct dev *dev, void *to, const void *from, size_t bytes);

    /* One tensor's numbers into a quantized weight, as weight_load_runs says; E_PARSE, by the next
     * dev_sync, where they are not finite. The segments, one a run, have their places and room for
     * absmax; nf4-dq's mean goes into the first. NULL: the host quantizes. fp8-block: random codes under
     * a scale of 1, and the segment has its scales. */
    void (*weight_quantize)(struct dev *dev, const struct weight *w, struct weight_segment *segments,
                            const struct weight_run *runs, int n_runs, const struct weight_source *from);

    bool keeps_fp8_blocks; /* its products know that kind too */

    /* Scratch that products with a quantized weight will need; may be NULL. */
    void (*weight_reserve)(struct dev *dev, const struct weight *w);

    bool knows_outliers_of_batch; /* INT8_OUTLIERS_BATCH */
    void (*linear)(struct dev *dev, struct product *y, const struct activation *x, const struct weight *w);
    void (*linear_tune)(struct dev *dev, struct product *y, const struct activation *x, const struct weight *w,
                        struct linear_tuning *out); /* NULL: it has one way only */
    bool (*linear_takes)(const struct dev *dev, const struct weight *w, enum dtype codes); /* NULL: numbers alone */
    void (*quantize)(struct dev *dev, struct activation *out, const struct activation *x); /* NULL likewise */
    void (*embed)(struct dev *dev, struct tensor *residual, const struct weight *table, float scale,
                  const struct step *step);
    void (*residual_norm)(struct dev *dev, struct activation *out, struct tensor *residual,
                          const struct addend *add, const struct norm *norm);
    void (*qkv_finish)(struct dev *dev, struct tensor *q, struct kv_cache *kv, int32_t layer,
                       const struct product *qkv, const struct attention_shape *shape,
                       const struct head_rules *rules, const struct step *step);
    void (*attention)(struct dev *dev, struct activation *out, const struct tensor *q, const struct kv_cache *kv,
                      int32_t layer, const struct attention_shape *shape, const struct step *step);
    int32_t (*attention_splits)(const struct dev *dev, const struct attention_shape *shape, enum dtype dtype,
                                const struct step *step); /* NULL: always 1 */
    void (*glu)(struct dev *dev, struct activation *out, const struct product *gate_up, enum act act);
    void (*act)(struct dev *dev, struct activation *out, const struct product *y, enum act act);
    void (*moe_experts)(struct dev *dev, struct tensor *out, const struct activation *x, const struct product *router,
                        const struct moe *moe, const struct moe_room *room); /* NULL: the device has none */
    void (*gather)(struct dev *dev, struct activation *out, const struct activation *x, const struct step *step);
    void (*logits_finish)(struct dev *dev, struct product *logits, float softcap);
    void (*sample)(struct dev *dev, int32_t *drawn, int32_t *last_sample, struct sample_logprobs *logprobs,
                   const struct product *logits, const struct step *step);
    void (*sample_reserve)(struct dev *dev, int64_t n_samples, int64_t vocab);
};

struct dev { /* the beginning of every backend's own device struct */
    const struct backend *backend;
    char name[96];
    struct err failed;    /* the first error since the last dev_sync */
    int32_t *last_sample; /* see step_set_last_sample */
    int32_t *history;     /* see step_set_history */
    int64_t n_steps;      /* begun */
    int64_t n_growths;    /* see dev_n_growths */
    struct profile profile;
};

static inline void weight_upload(struct dev *dev, void *to, const void *from, size_t bytes) {
    if (dev->backend->weight_upload) dev->backend->weight_upload(dev, to, from, bytes);
    else dev->backend->upload(dev, to, from, bytes);
}

/* Where the token of a position is, see step_set_history. */
#ifdef __CUDACC__
__host__ __device__
#endif
static inline int32_t *history_at(int32_t *history, const int32_t *block_table, int32_t stride, int32_t slot,
                                  int32_t position) {
    int64_t block = block_table[(int64_t)slot * stride + position / KV_BLOCK];
    return history + block * KV_BLOCK + position % KV_BLOCK;
}

/* Head sizes whose chunks of prompts go through warpgroup products on compute capability 9.0, with keys
 * and values of an fp8 cache as numbers in scratch. A constant where hd is one. */
#define HAS_WIDE_HEADS(hd) ((hd) == 64 || (hd) == 128 || (hd) == 256)

/* Latch an error: later operations do nothing until dev_sync has reported it. */
void dev_fail(struct dev *dev, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

int cpu_dev_open(struct dev **out, const struct dev_options *options, struct err *err);

/* From libbatchd_cuda.so, which is opened at the first call (cuda_library.c). E_DEVICE: it
 * is not there, or there is no usable device. */
int cuda_library_dev_open(struct dev **out, const struct dev_options *options, struct err *err);

#ifdef __cplusplus
}
#endif
#endif
