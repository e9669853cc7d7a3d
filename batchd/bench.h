/* bench.h - what the parts of `batchd bench` share. */
#ifndef BATCHD_BATCHD_BENCH_H
#define BATCHD_BATCHD_BENCH_H

#include "batchd/options.h"
#include "engine/engine.h"

#include <jansson.h>

/* `bench throughput` on the model in this folder; an exit code. */
int bench_throughput(const struct args *args, const char *folder);

/* `bench tune` on the model in this folder; an exit code. */
int bench_tune(const struct args *args, const char *folder);

/* `bench kernels [PART...]`; an exit code. */
int bench_kernels(const struct args *args);

/* The roof's two rates as JSON (into o) and as two lines of text. */
void bench_add_roof(json_t *o, const char *device_name, const struct engine_roof *roof);
void bench_print_roof(const char *device_name, const struct engine_roof *roof);

#endif
