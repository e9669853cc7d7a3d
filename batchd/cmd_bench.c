/* cmd_bench.c - batchd bench: which measurement, of which model; and how a roof is shown. */
#include "base/log.h"
#include "batchd/bench.h"
#include "batchd/command.h"
#include "batchd/exit.h"
#include "batchd/roof.h"
#include "batchd/verbs.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

void bench_add_roof(json_t *o, const char *device_name, const struct engine_roof *roof) {
    const char *why = roof_void(device_name, roof);
    json_object_set_new(o, "copy_bytes_per_s", json_real(roof->copy_bytes_per_s));
    json_object_set_new(o, "copy_bytes", json_integer(roof->copy_bytes));
    json_object_set_new(o, "matrix_flop_per_s", json_real(roof->flop_per_s));
    json_object_set_new(o, "matrix_size", json_integer(roof->matrix_size));
    json_object_set_new(o, "dtype", json_string(roof->dtype));
    if (*roof->quantization) {
        json_object_set_new(o, "quantization", json_string(roof->quantization));
        json_object_set_new(o, "quantized_flop_per_s", json_real(roof->quant_flop_per_s));
    }
    json_object_set_new(o, "void", why ? json_string(why) : json_null());
}

void bench_print_roof(const char *device_name, const struct engine_roof *roof) {
    const char *why = roof_void(device_name, roof);
    if (why) printf("VOID                %s\n", why);
    printf("copy                %.1f GB/s read and written, %" PRId64 " MiB\n", roof->copy_bytes_per_s / 1e9,
           roof->copy_bytes >> 20);
    printf("matrix rate         %.2f TFLOP/s, %s, %d^3\n", roof->flop_per_s / 1e12, roof->dtype, roof->matrix_size);
    if (*roof->quantization)
        printf("                    %.2f TFLOP/s, %s\n", roof->quant_flop_per_s / 1e12, roof->quantization);
}

static int with_model(const struct args *args, int (*run)(const struct args *args, const char *folder)) {
    char *folder = NULL;
    int code = command_model_folder(&folder, args);
    if (code == EXIT_DONE) code = run(args, folder);
    free(folder);
    return code;
}

int cmd_bench(const struct args *args) {
    const char *what = args->words[0];
    if (strcmp(what, "kernels") == 0) return bench_kernels(args);
    bool is_tune = strcmp(what, "tune") == 0;
    if (!is_tune && strcmp(what, "throughput") != 0)
        log_error("bench: no \"%s\"; there are throughput, kernels and tune", what);
    else if (args->n_words > 1) log_error("bench %s: what is \"%s\"?", what, args->words[1]);
    else if (args->shape) log_error("bench %s takes --model, not --shape", what);
    else return with_model(args, is_tune ? bench_tune : bench_throughput);
    return EXIT_USAGE;
}
