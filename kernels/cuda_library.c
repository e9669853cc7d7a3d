/* cuda_library.c - the CUDA backend as a library that may be there: the same program runs
 * on machines without a GPU, without a driver, without CUDA.
 *
 * libbatchd_cuda.so is looked for beside the executable (a build tree may be moved), one
 * folder above it (test programs), and where `make install` puts it. It stays open. */
#include "base/err.h"
#include "kernels/backend.h"

#include <dlfcn.h>
#include <limits.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

typedef int open_fn(struct dev **out, const struct dev_options *options, struct err *err);

static pthread_once_t once = PTHREAD_ONCE_INIT;
static open_fn *open_device;
static char why_not[400] = "libbatchd_cuda.so is not beside the program; build it with nvcc (make)";

static void *open_at(const char *dir, const char *rest) {
    char path[PATH_MAX + 64];
    snprintf(path, sizeof path, "%s/%s", dir, rest);
    if (access(path, F_OK) != 0) return NULL;
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library) snprintf(why_not, sizeof why_not, "%.380s", dlerror());
    return library;
}

/* Without a driver there is nothing to load the large CUDA libraries for. */
static bool has_driver(void) {
    if (dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL)) return true;
    snprintf(why_not, sizeof why_not, "no NVIDIA driver: libcuda.so.1 is not there");
    return false;
}

static void open_library(void) {
    if (!has_driver()) return;
    char dir[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", dir, sizeof dir - 1);
    if (n <= 0) return;
    dir[n] = '\0';
    char *slash = strrchr(dir, '/');
    if (!slash) return;
    *slash = '\0';
    void *library = open_at(dir, "libbatchd_cuda.so");
    if (!library) library = open_at(dir, "../libbatchd_cuda.so");
    if (!library) library = open_at(dir, "../lib/batchd/libbatchd_cuda.so");
    if (!library) return;
    void *symbol = dlsym(library, "cuda_dev_open");
    if (symbol) memcpy(&open_device, &symbol, sizeof symbol);
    else snprintf(why_not, sizeof why_not, "libbatchd_cuda.so is not ours");
}

int cuda_library_dev_open(struct dev **out, const struct dev_options *options, struct err *err) {
    pthread_once(&once, open_library);
    if (!open_device) return err_set(err, E_DEVICE, "no CUDA: %s", why_not);
    return open_device(out, options, err);
}
