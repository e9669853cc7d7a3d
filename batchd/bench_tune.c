/* bench_tune.c - batchd bench tune: how the model's products are made on this GPU, a line or a
 * JSON object for each shape and number of rows, and what that gains a step. */
#include "base/log.h"
#include "batchd/bench.h"
#include "batchd/command.h"
#include "batchd/engine_flags.h"
#include "batchd/exit.h"
#include "batchd/version.h"

#include <inttypes.h>

/* Of the KV cache a few blocks would do; the products' operands want room. */
static const double memory_share = 0.5;

struct table {
    const char *device;
    bool json;
    int n_lines;
    const char *product; /* of the line before */
    int32_t most_rows;   /* products of so many rows: */
    double first_seconds, seconds;
};

static void print_json(const struct table *t, const struct engine_tuning *f) {
    json_t *o = json_pack("{s:s, s:s, s:I, s:I, s:i, s:i, s:i, s:i, s:s, s:f, s:f, s:f, s:f, s:s}", "device", t->device,
                          "product", f->product, "n", (json_int_t)f->n, "k", (json_int_t)f->k, "weights", f->n_weights,
                          "rows", f->n_rows, "candidates", f->n_candidates, "right", f->n_right, "algorithm",
                          f->algorithm, "us", f->seconds * 1e6, "first_us", f->first_seconds * 1e6, "gain",
                          f->first_seconds / f->seconds, "flop_per_s",
                          2.0 * f->n_rows * (double)f->n * (double)f->k / f->seconds, "version", VERSION_TEXT);
    command_print_json(o);
}

static void print_line(const struct table *t, const struct engine_tuning *f) {
    if (t->n_lines == 0) printf("device              %s\n", t->device);
    if (t->product != f->product)
        printf("\n%-12s %7s %7s %7s  %-28s %10s %9s %6s\n", f->product, "N", "K", "rows", "way", "us", "TFLOP/s", "gain");
    printf("%-12s %7" PRId64 " %7" PRId64 " %7d  %-28s %10.1f %9.2f %6.2f\n", "", f->n, f->k, f->n_rows,
           *f->algorithm ? f->algorithm : "our own kernel", f->seconds * 1e6,
           2.0 * f->n_rows * (double)f->n * (double)f->k / f->seconds / 1e12, f->first_seconds / f->seconds);
    fflush(stdout);
}

/* All products of a step, each of the model's weights once. */
static void add_to_step(struct table *t, const struct engine_tuning *f) {
    if (f->n_rows < t->most_rows) return;
    if (f->n_rows > t->most_rows) t->first_seconds = t->seconds = 0;
    t->most_rows = f->n_rows;
    t->first_seconds += f->n_weights * f->first_seconds;
    t->seconds += f->n_weights * f->seconds;
}

static void print(void *arg, const struct engine_tuning *f) {
    struct table *t = arg;
    if (t->json) print_json(t, f);
    else print_line(t, f);
    add_to_step(t, f);
    t->product = f->product;
    t->n_lines++;
}

static void print_end(const struct table *t) {
    if (t->n_lines == 0 && t->json) log_info("nothing to tune: %s knows one way to multiply", t->device);
    else if (t->n_lines == 0) printf("device              %s\nnothing to tune     it knows one way to multiply\n", t->device);
    else if (!t->json)
        printf("\nproducts of %d rows: %.3f ms in all, %.3f ms untuned\n", t->most_rows, t->seconds * 1e3, t->first_seconds * 1e3);
}

/* The first flag given that only other measurements know, or NULL. */
static const char *foreign_flag(const struct args *a) {
    if (a->input_len) return "--input-len";
    if (a->output_len) return "--output-len";
    if (a->num_prompts) return "--num-prompts";
    return NULL;
}

static int tune(const struct engine_options *options, bool json) {
    struct err err = ERR_INIT;
    struct engine *e = NULL;
    int r = engine_open(&e, options, &err);
    if (r < 0) return exit_with(ABOUT_MODEL, &err);
    struct table t = {.device = engine_device_name(e), .json = json};
    r = engine_tune(e, print, &t, &err);
    if (r == 0) print_end(&t);
    engine_close(e);
    if (r == 0) return EXIT_DONE;
    int code = exit_with(ABOUT_MODEL, &err);
    return r == E_DEVICE ? EXIT_ENGINE : code;
}

int bench_tune(const struct args *args, const char *folder) {
    struct engine_flags flags = {.options = ENGINE_OPTIONS_DEFAULT};
    const char *foreign = foreign_flag(args);
    if (foreign) {
        log_error("bench tune takes no %s", foreign);
        return EXIT_USAGE;
    }
    int code = engine_flags_read(&flags, args);
    flags.options.model_dir = folder;
    if (flags.options.gpu_memory_utilization == 0) flags.options.gpu_memory_utilization = memory_share;
    if (code == EXIT_DONE) code = tune(&flags.options, args->json);
    engine_flags_clear(&flags);
    return code;
}
