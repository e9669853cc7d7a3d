/* options.h - what was typed.
 *
 * One table (options.c) holds every flag: its name, what it takes, which verbs know
 * it, what help says about it. Parsing, help and the test of the manual page all
 * read that table. */
#ifndef BATCHD_BATCHD_OPTIONS_H
#define BATCHD_BATCHD_OPTIONS_H

#include "base/err.h"
#include "jobs/jobs.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

enum verb {
    VERB_SUBMIT, VERB_RUN, VERB_SERVE, VERB_STATUS, VERB_WAIT, VERB_CANCEL, VERB_RESULTS, VERB_EXPORT,
    VERB_SQL, VERB_MODELS, VERB_TOKENIZE, VERB_BENCH, VERB_EVAL, VERB_DOCTOR, VERB_VERSION, VERB_HELP,
    N_VERBS,
    VERB_NONE = N_VERBS,
};

/* Strings are borrowed from argv or the environment; the rest goes with args_clear. */
struct args {
    enum verb verb;
    const char **words; /* what is not a flag, the verb left out */
    size_t n_words;

    /* every verb */
    const char *db, *log_format;
    bool help, version, quiet, verbose, no_progress, no_color, json;

    /* what a job is */
    const char *template_text, *system_text, *prompt_col, *id_col, *param_cols, *format, *key, *name;
    const char *chat_template, *chat_kwargs;
    bool allow_special_tokens;
    const char *reject, *chat, *model, *dtype, *quantization, *quantization_skip, *int8_outliers, *kv_cache_dtype;
    int64_t priority, max_model_len, seed;
    struct params params; /* the sampling flags */
    const char **stops;
    size_t n_stops;

    /* submit, run, wait, results, export */
    const char *output, *output_format;
    bool parsable, wait, fresh, force, only_ok, csv_raw, failed, watch;
    int64_t timeout_s, limit, row; /* -1 = not given */

    /* the engine */
    const char *device, *load_format, *cache_dir;
    int64_t cache_size; /* -1 = not given */
    int64_t threads, max_num_seqs, max_num_batched_tokens, kv_cache_memory_bytes, gpu_memory_limit;
    double gpu_memory_utilization;
    bool once;

    /* sql, tokenize, models, bench */
    bool write, jsonl, decode;
    const char *shape;
    int64_t input_len, output_len, num_prompts;

    /* eval */
    const char *text;
    int64_t window, max_chars;
};

/* Fill args from the command line. E_USAGE says what is wrong, with a suggestion
 * where something near it exists. With --help nothing but the verb is checked. */
int args_parse(struct args *args, int argc, char **argv, struct err *err);
void args_clear(struct args *args);

/* Print the flags of a verb, or the global ones with VERB_NONE. */
void options_print(FILE *out, enum verb verb);

#endif
