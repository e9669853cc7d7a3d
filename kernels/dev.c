/* dev.c - see dev.h. */
#include "kernels/dev.h"
#include "base/mem.h"
#include "kernels/backend.h"

#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

int dev_open(struct dev **out, const struct dev_options *options, struct err *err) {
    const char *kind = options->kind ? options->kind : "auto";
    if (strcmp(kind, "cpu") == 0) return cpu_dev_open(out, options, err);
    if (strcmp(kind, "cuda") == 0) return cuda_library_dev_open(out, options, err);
    if (strcmp(kind, "auto") != 0) return err_set(err, E_USAGE, "no device \"%s\": auto, cpu and cuda are known", kind);
    if (cuda_library_dev_open(out, options, NULL) == 0) return 0;
    return cpu_dev_open(out, options, err);
}

void dev_close(struct dev *dev) {
    if (dev) dev->backend->close(dev);
}

const char *dev_name(const struct dev *dev) {
    return dev->name;
}

const char *dev_kind(const struct dev *dev) {
    return dev->backend->kind;
}

bool dev_computes(const struct dev *dev, enum dtype dtype) {
    return dev->backend->computes(dev, dtype);
}

int64_t dev_memory_available(const struct dev *dev) {
    return dev->backend->memory_available(dev);
}

void *dev_alloc(struct dev *dev, size_t bytes) {
    return dev->backend->alloc(dev, bytes);
}

void dev_free(struct dev *dev, void *p) {
    if (p) dev->backend->free(dev, p);
}

void dev_upload(struct dev *dev, void *dst, const void *src, size_t bytes) {
    dev->backend->upload(dev, dst, src, bytes);
}

void dev_download(struct dev *dev, void *dst, const void *src, size_t bytes) {
    dev->backend->download(dev, dst, src, bytes);
}

void dev_copy(struct dev *dev, void *dst, const void *src, size_t bytes) {
    if (dev->failed.code == 0) dev->backend->copy(dev, dst, src, bytes);
}

/* The latched error is told once. */
static int take_failure(struct dev *dev, struct err *err) {
    int r = dev->failed.code;
    if (r) err_set(err, r, "%s", dev->failed.text);
    dev->failed.code = 0;
    return r;
}

int dev_sync(struct dev *dev, struct err *err) {
    dev->backend->sync(dev);
    return take_failure(dev, err);
}

void *dev_host_alloc(struct dev *dev, size_t bytes) {
    return dev->backend->host_alloc(dev, bytes);
}

void dev_host_free(struct dev *dev, void *p) {
    if (p) dev->backend->host_free(dev, p);
}

void dev_fetch(struct dev *dev, void *dst, const void *src, size_t bytes) {
    dev->backend->fetch(dev, dst, src, bytes);
}

int64_t dev_mark(struct dev *dev) {
    return dev->backend->mark(dev);
}

int dev_wait(struct dev *dev, int64_t mark, struct err *err) {
    dev->backend->wait(dev, mark);
    return take_failure(dev, err);
}

int64_t dev_n_growths(const struct dev *dev) {
    return dev->n_growths;
}

bool dev_can_record(const struct dev *dev) {
    return dev->backend->replay != NULL && !dev->profile.is_noting; /* what is noted is queued one by one */
}

bool dev_replay(struct dev *dev, uint64_t key) {
    return dev->backend->replay && dev->failed.code == 0 && dev->backend->replay(dev, key);
}

void dev_record(struct dev *dev) {
    assert(dev->backend->record);
    if (dev->failed.code == 0) dev->backend->record(dev);
}

void dev_record_end(struct dev *dev, uint64_t key) {
    dev->backend->record_end(dev, key);
}

void dev_fail(struct dev *dev, int code, const char *fmt, ...) {
    if (dev->failed.code) return;
    char text[sizeof dev->failed.text];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    err_set(&dev->failed, code, "%s", text);
}
