/* bench_kernels.c - batchd bench kernels: a line, or a JSON object a line, for each operation
 * and size, as soon as it is measured. */
#include "base/log.h"
#include "batchd/bench.h"
#include "batchd/command.h"
#include "batchd/exit.h"
#include "batchd/version.h"

#include <string.h>

struct printer {
    const struct engine_kernel_device *device;
    bool json, started;
    char shape[32]; /* of the line before */
};

static void print_json(struct printer *p, const struct engine_kernel_figure *f) {
    json_t *o = json_pack("{s:s, s:s, s:s, s:s, s:f, s:f, s:f, s:f, s:f}", "device", p->device->name, "shape", f->shape,
                          "kernel", f->kernel, "case", f->what, "us", f->seconds * 1e6, "bytes", f->bytes, "flop", f->flop,
                          "roof_us", f->roof_seconds * 1e6, "fraction_of_roof", f->roof_seconds / f->seconds);
    json_object_set_new(o, "version", json_string(VERSION_TEXT));
    bench_add_roof(o, p->device->name, &p->device->roof);
    command_print_json(o);
}

static void print_head(struct printer *p, const struct engine_kernel_figure *f) {
    if (!p->started) {
        printf("device              %s\n", p->device->name);
        bench_print_roof(p->device->name, &p->device->roof);
    }
    if (strcmp(p->shape, f->shape) != 0)
        printf("\n%-22s %-26s %10s %9s %9s  %s\n", f->shape, "", "us", "GB/s", "TFLOP/s", "of roof");
    p->started = true;
    snprintf(p->shape, sizeof p->shape, "%s", f->shape);
}

static void print_number(double x, const char *format) {
    char text[32] = "-";
    if (x > 0) snprintf(text, sizeof text, format, x);
    printf(" %9s", text);
}

static void print_line(struct printer *p, const struct engine_kernel_figure *f) {
    print_head(p, f);
    printf("%-22s %-26s %10.1f", f->kernel, f->what, f->seconds * 1e6);
    print_number(f->bytes / f->seconds / 1e9, "%.0f");
    print_number(f->flop / f->seconds / 1e12, "%.2f");
    printf("  %.2f\n", f->roof_seconds / f->seconds);
    fflush(stdout);
}

static void print(void *arg, const struct engine_kernel_figure *f) {
    struct printer *p = arg;
    if (p->json) print_json(p, f);
    else print_line(p, f);
}

/* The first flag given that only `bench throughput` knows, or NULL. */
static const char *foreign_flag(const struct args *a) {
    if (a->model) return "--model";
    if (a->input_len) return "--input-len";
    if (a->output_len) return "--output-len";
    if (a->num_prompts) return "--num-prompts";
    if (a->load_format) return "--load-format";
    if (a->max_model_len) return "--max-model-len";
    if (a->max_num_seqs) return "--max-num-seqs";
    if (a->max_num_batched_tokens) return "--max-num-batched-tokens";
    if (a->kv_cache_memory_bytes) return "--kv-cache-memory-bytes";
    if (a->kv_cache_dtype) return "--kv-cache-dtype";
    if (a->cache_dir) return "--cache-dir";
    if (a->cache_size >= 0) return "--cache-size";
    if (a->quantization_skip) return "--quantization-skip";
    if (a->int8_outliers) return "--int8-outliers";
    if (a->gpu_memory_limit) return "--gpu-memory-limit";
    if (a->gpu_memory_utilization > 0) return "--gpu-memory-utilization";
    return NULL;
}

int bench_kernels(const struct args *args) {
    struct err err = ERR_INIT;
    struct engine_kernel_device device = {0};
    struct printer p = {.device = &device, .json = args->json};
    struct engine_kernel_options o = {.device = args->device,
                                      .dtype = args->dtype,
                                      .threads = (int32_t)args->threads,
                                      .shape = args->shape,
                                      .quantization = args->quantization,
                                      .parts = args->words + 1,
                                      .n_parts = args->n_words - 1};
    const char *flag = foreign_flag(args);
    if (flag) {
        log_error("bench kernels takes no %s", flag);
        return EXIT_USAGE;
    }
    int r = engine_bench_kernels(&o, &device, print, &p, &err);
    if (r == 0) return EXIT_DONE;
    return exit_with(r == E_USAGE ? ABOUT_FLAGS : ABOUT_MODEL, &err);
}
