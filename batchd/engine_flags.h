/* engine_flags.h - the engine's flags, and its settings for tests from the environment:
 * BATCHD_LOOKAHEAD=0|1|2 and BATCHD_STEP_LOG=FILE (docs/engine.md). */
#ifndef BATCHD_BATCHD_ENGINE_FLAGS_H
#define BATCHD_BATCHD_ENGINE_FLAGS_H

#include "batchd/options.h"
#include "engine/engine.h"

struct engine_flags { /* give back with engine_flags_clear, after the engine is closed */
    struct engine_options options; /* dtype and max_model_len too; model_dir is left NULL */
    char *quantization, *cache_dir; /* the options' */
};

/* --quantization, --int8-outliers and --quantization-skip as one text, which engine.h and jobs.h
 * take; NULL = none. The caller's. Returns an exit code; the error has been shown. */
int engine_flags_quantization(char **out, const struct args *args);

/* Returns an exit code; the error has been shown. */
int engine_flags_read(struct engine_flags *out, const struct args *args);
void engine_flags_clear(struct engine_flags *f);

#endif
