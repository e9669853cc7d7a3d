/* engine_flags.c - see engine_flags.h. */
#include "batchd/engine_flags.h"
#include "base/log.h"
#include "batchd/exit.h"
#include "batchd/paths.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define DEFAULT_CACHE_BYTES ((int64_t)64 << 30)

static int read_lookahead(struct engine_options *o) {
    const char *text = getenv("BATCHD_LOOKAHEAD");
    if (!text || !*text) return EXIT_DONE;
    if (strlen(text) != 1 || *text < '0' || *text > '2') {
        log_error("BATCHD_LOOKAHEAD is 0, 1 or 2, not \"%s\"", text);
        return EXIT_USAGE;
    }
    o->lookahead = *text - '0';
    return EXIT_DONE;
}

static int open_step_log(struct engine_options *o) {
    const char *path = getenv("BATCHD_STEP_LOG");
    if (!path || !*path) return EXIT_DONE;
    o->step_log = fopen(path, "ae");
    if (o->step_log) return EXIT_DONE;
    log_error("BATCHD_STEP_LOG: cannot open %s: %s", path, strerror(errno));
    return EXIT_OUTPUT;
}

int engine_flags_quantization(char **out, const struct args *args) {
    const char *kind = args->quantization, *skip = args->quantization_skip;
    bool by_batch = args->int8_outliers && strcmp(args->int8_outliers, "batch") == 0;
    if (kind && strcmp(kind, "none") == 0) kind = NULL;
    *out = NULL;
    if (skip && !kind) {
        log_error("--quantization-skip needs --quantization");
        return EXIT_USAGE;
    }
    if (by_batch && kind && strcmp(kind, "int8") != 0) {
        log_error("--int8-outliers batch is for --quantization int8, not %s", kind);
        return EXIT_USAGE;
    }
    if (!kind && !by_batch) return EXIT_DONE;
    if (asprintf(out, "%s%s%s%s", kind ? kind : "none", by_batch ? " outliers batch" : "", skip ? " except " : "",
                 skip ? skip : "") < 0)
        abort();
    return EXIT_DONE;
}

int engine_flags_read(struct engine_flags *out, const struct args *args) {
    struct engine_options *o = &out->options;
    *o = ENGINE_OPTIONS_DEFAULT;
    if (args->device) o->device = args->device;
    if (args->dtype) o->dtype = args->dtype;
    if (args->kv_cache_dtype) o->kv_cache_dtype = args->kv_cache_dtype;
    if (args->load_format) o->load_format = args->load_format;
    o->max_model_len = args->max_model_len;
    o->max_num_seqs = (int32_t)args->max_num_seqs;
    o->max_num_batched_tokens = (int32_t)args->max_num_batched_tokens;
    o->kv_cache_memory_bytes = args->kv_cache_memory_bytes;
    o->gpu_memory_limit = args->gpu_memory_limit;
    o->gpu_memory_utilization = args->gpu_memory_utilization;
    o->threads = (int32_t)args->threads;
    out->cache_dir = paths_cache(args->cache_dir);
    o->cache_dir = out->cache_dir;
    o->cache_bytes = args->cache_size >= 0 ? args->cache_size : DEFAULT_CACHE_BYTES;
    int code = engine_flags_quantization(&out->quantization, args);
    o->quantization = out->quantization;
    if (code == EXIT_DONE) code = read_lookahead(o);
    return code == EXIT_DONE ? open_step_log(o) : code;
}

void engine_flags_clear(struct engine_flags *f) {
    if (f->options.step_log) fclose(f->options.step_log);
    free(f->quantization);
    free(f->cache_dir);
    *f = (struct engine_flags){.options = ENGINE_OPTIONS_DEFAULT};
}
