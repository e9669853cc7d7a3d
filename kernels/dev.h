/* dev.h - a device: memory, and the order in which operations run.
 *
 * Operations (ops.h) are queued on the device and return nothing. The device
 * keeps the first error; later operations then do nothing, and dev_sync reports
 * it once. The CPU device has finished an operation when the call returns; a GPU
 * has not, so whatever an operation reads must stay as it is until dev_sync or
 * the step's event. A device belongs to one thread at a time. */
#ifndef BATCHD_KERNELS_DEV_H
#define BATCHD_KERNELS_DEV_H

#include "base/err.h"
#include "kernels/tensor.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct dev;

struct dev_options {
    const char *kind;    /* "auto", "cpu", "cuda" */
    int32_t threads;     /* CPU: threads that compute, 0 = one a core */
    const char *variant; /* CPU: NULL = the best this processor has, "v2", "v3", "v4" for tests */
};

int dev_open(struct dev **out, const struct dev_options *options, struct err *err);
void dev_close(struct dev *dev); /* NULL is fine; all memory must have gone back */

const char *dev_name(const struct dev *dev);         /* "cpu (x86-64-v3, 2 threads)" */
const char *dev_kind(const struct dev *dev);         /* "cpu", "cuda" */
bool dev_computes(const struct dev *dev, enum dtype dtype); /* activations may be F32, BF16, F16: which? */
int64_t dev_memory_available(const struct dev *dev); /* bytes that dev_alloc could give now */

/* Cleared memory, aligned to 256 bytes; NULL when there is none. */
void *dev_alloc(struct dev *dev, size_t bytes);
void dev_free(struct dev *dev, void *p); /* NULL is fine */

/* How often the device took memory, dev_alloc's and what operations need to work in; steps take
 * none when room for them was reserved (ops.h: step_reserve). */
int64_t dev_n_growths(const struct dev *dev);

void dev_upload(struct dev *dev, void *dst, const void *src, size_t bytes);   /* host to device */
void dev_download(struct dev *dev, void *dst, const void *src, size_t bytes); /* device to host; waits */
void dev_copy(struct dev *dev, void *dst, const void *src, size_t bytes);     /* within the device; queued */

/* Wait for all that was queued; the first error since the last call, or 0. */
int dev_sync(struct dev *dev, struct err *err);

/* Results on their way back while more is queued: a copy into memory of dev_host_alloc
 * (cleared, the host's, quick to copy to; NULL when there is none), a mark behind it, and a
 * wait for that mark alone. Of the marks made, the last 16 can be waited for. */
void *dev_host_alloc(struct dev *dev, size_t bytes);
void dev_host_free(struct dev *dev, void *p); /* NULL is fine */
void dev_fetch(struct dev *dev, void *dst, const void *src, size_t bytes);
int64_t dev_mark(struct dev *dev);
int dev_wait(struct dev *dev, int64_t mark, struct err *err); /* as dev_sync, up to the mark */

/* Small steps of one kind over and over: what was queued between dev_record and
 * dev_record_end is queued again by dev_replay in one go, where the device can. The key
 * stands for all that the host decided in between; what lies in memory may change, the
 * addresses may not. False: not recorded, or the device has no such thing; queue it as usual.
 * Nothing can be recorded in a step that is profiled. */
bool dev_can_record(const struct dev *dev);
bool dev_replay(struct dev *dev, uint64_t key);
void dev_record(struct dev *dev);
void dev_record_end(struct dev *dev, uint64_t key); /* and replay once: recording does not run */

/* ---------------------------------------------------------------- time on the device (profile.c) */

/* Note the time when the device gets here; 0 <= stamp < DEV_STAMPS. */
enum { DEV_STAMPS = 64 };
void dev_stamp(struct dev *dev, int32_t stamp);

/* Nanoseconds between two stamps that were noted; waits for all that was queued. 0 after an error. */
double dev_stamp_ns(struct dev *dev, int32_t from, int32_t to);

/* A step is what the device does from dev_step_begin, right before its first operation, to
 * dev_step_end, behind its last. Of the steps begun the last 16 can be asked for, when a mark
 * behind their end was waited for. */
struct dev_step_time {
    int64_t busy_ns; /* from begin to end, waits between operations included */
    int64_t gap_ns;  /* from the end of the step before to this begin; 0 for the first step */
};
int64_t dev_step_begin(struct dev *dev); /* returns the step's number, from 0 */
void dev_step_end(struct dev *dev);
struct dev_step_time dev_step_time(struct dev *dev, int64_t step);

/* What the operations of a step are for; which class an operation is of stands in ops.c. */
enum op_class { CLASS_LINEAR, CLASS_ATTENTION, CLASS_NORM, CLASS_QKV, CLASS_ACTIVATION, CLASS_EMBED, CLASS_SAMPLE, N_OP_CLASSES };
const char *op_class_name(enum op_class c); /* "linear", ... */

/* Profile one step in `every`, chosen by a hash of its number so that no rhythm of the steps
 * is hit or missed: the time is noted before each operation. 0 = none (when opened). A step's
 * part comes in when dev_step_time asks about it. */
struct dev_profile {
    int64_t n_steps;
    int64_t busy_ns; /* of these steps */
    int64_t ns[N_OP_CLASSES], n_ops[N_OP_CLASSES]; /* until the next operation begins */
};
void dev_profile(struct dev *dev, int32_t every);
void dev_profile_read(const struct dev *dev, struct dev_profile *out);

#ifdef __cplusplus
}
#endif
#endif
