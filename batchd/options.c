/* options.c - see options.h. getopt_long cuts the command line up; the table says
 * what each piece means. Long names must be written out: an abbreviation that is
 * unique today would break somebody's cron job when a flag is added. */
#include "batchd/options.h"
#include "base/mem.h"
#include "base/suggest.h"
#include "base/utf8.h"
#include "batchd/verbs.h"

#include <ctype.h>
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum option_kind {
    KIND_FLAG,     /* bool */
    KIND_TEXT,     /* const char *, UTF-8 and not empty: it goes into the database */
    KIND_PATH,     /* const char *, not empty, any bytes */
    KIND_CHOICE,   /* const char *, one of `value` cut at | */
    KIND_INT,      /* int64_t in min..max */
    KIND_REAL,     /* double, above min and up to max */
    KIND_SIZE,     /* int64_t of bytes: 268435456, 256M, 1GiB */
    KIND_DURATION, /* int64_t of seconds: 90, 90s, 5m, 6h, 1d */
    KIND_PARAM,    /* a sampling key of jobs.h, `-` for `_` */
    KIND_SWITCH,   /* a sampling key that the flag alone sets to true */
    KIND_STOP,     /* may be given several times */
};

#define V(name) (1u << VERB_##name)
#define LOADS (V(SUBMIT) | V(RUN))
#define ENGINE (V(RUN) | V(SERVE) | V(BENCH) | V(EVAL))
#define ONE_JOB (V(STATUS) | V(WAIT) | V(CANCEL) | V(RESULTS) | V(EXPORT))
#define ALL ((1u << N_VERBS) - 1)
#define AT(field) offsetof(struct args, field)

struct option_def {
    const char *name;
    char letter; /* 0 = none */
    enum option_kind kind;
    size_t at;         /* in struct args */
    uint32_t verbs;
    const char *value; /* how help calls what it takes, or the choices */
    const char *help;  /* lines after the first begin with \n */
    int64_t min, max;
};

static const struct option_def options[] = {
    /* what a job is */
    {"template", 0, KIND_PATH, AT(template_text), LOADS, "TEXT|@FILE",
     "the prompt, with {column} for a column's cell; {{ and }} are braces;\n"
     "{column|trim}, {column|json} and {column:500} (characters) also work.\n"
     "From a file, one newline at its end is dropped", 0, 0},
    {"system", 0, KIND_PATH, AT(system_text), LOADS, "TEXT|@FILE", "a system message in front of every row", 0, 0},
    {"prompt-col", 0, KIND_TEXT, AT(prompt_col), LOADS, "NAME",
     "the column or key that holds the prompt (default: prompt, or the only one)", 0, 0},
    {"id-col", 0, KIND_TEXT, AT(id_col), LOADS, "NAME",
     "the column that names the rows (default: custom_id, else id, else the row number)", 0, 0},
    {"param-cols", 0, KIND_TEXT, AT(param_cols), LOADS, "A,B",
     "columns that are sampling parameters; a column called @max_tokens always is", 0, 0},
    {"format", 0, KIND_CHOICE, AT(format), LOADS, "auto|csv|tsv|jsonl|lines",
     "of the input (default: by extension, else by content)", 0, 0},
    {"chat", 0, KIND_CHOICE, AT(chat), LOADS, "auto|always|never",
     "make each prompt a user message of the model's chat template. auto: rows\n"
     "from CSV, lines or --template, when the model has a template", 0, 0},
    {"chat-template", 0, KIND_PATH, AT(chat_template), LOADS, "FILE", "a chat template (Jinja) in place of the model's", 0, 0},
    {"chat-template-kwargs", 0, KIND_TEXT, AT(chat_kwargs), LOADS, "JSON",
     "variables of the chat template: '{\"enable_thinking\": false}'", 0, 0},
    {"allow-special-tokens", 0, KIND_FLAG, AT(allow_special_tokens), LOADS, NULL,
     "control tokens written out in a row, such as <|im_end|>, are taken as\n"
     "such; without this they are plain text", 0, 0},
    {"reject", 0, KIND_CHOICE, AT(reject), LOADS, "fail|skip",
     "bad lines stop the submit (default), or go to the view `rejects`", 0, 0},
    {"name", 0, KIND_TEXT, AT(name), LOADS, "TEXT", "for people (default: the file's name)", 0, 0},
    {"priority", 0, KIND_INT, AT(priority), LOADS, "N", "-100 .. 100, higher runs first (default 0)", -100, 100},
    {"key", 0, KIND_TEXT, AT(key), LOADS, "KEY",
     "a name that makes repeating harmless: submitted again it is the same job", 0, 0},
    {"key", 0, KIND_TEXT, AT(key), ONE_JOB, "KEY", "the job that was submitted with this key", 0, 0},

    /* sampling */
    {"max-tokens", 0, KIND_PARAM, 0, LOADS, "N", "length of a completion at most (default 256)", 0, 0},
    {"min-tokens", 0, KIND_PARAM, 0, LOADS, "N", "no end of text before (default 0)", 0, 0},
    {"temperature", 0, KIND_PARAM, 0, LOADS, "X", "0 = greedy (default: the model's, else 0)", 0, 0},
    {"top-p", 0, KIND_PARAM, 0, LOADS, "X", "0 < X <= 1 (default: the model's, else 1 = off)", 0, 0},
    {"top-k", 0, KIND_PARAM, 0, LOADS, "N", "0 = off (default: the model's, else 0)", 0, 0},
    {"min-p", 0, KIND_PARAM, 0, LOADS, "X", "0 = off (default 0)", 0, 0},
    {"seed", 0, KIND_INT, AT(seed), LOADS, "N", "of the job; each row draws its own from it (default 0)", 0, INT64_MAX},
    {"stop", 0, KIND_STOP, 0, LOADS, "TEXT", "end a completion before this text; may be given 16 times", 0, 0},
    {"presence-penalty", 0, KIND_PARAM, 0, LOADS, "X", "-2 .. 2: less for tokens that the completion has (default 0)", 0, 0},
    {"frequency-penalty", 0, KIND_PARAM, 0, LOADS, "X", "-2 .. 2: the same, for each time it has them (default 0)", 0, 0},
    {"repetition-penalty", 0, KIND_PARAM, 0, LOADS, "X",
     "divides what speaks for tokens of prompt and completion (default 1 = off)", 0, 0},
    {"logit-bias", 0, KIND_PARAM, 0, LOADS, "JSON", "{\"ID\": X, ...}: added to the logits of token ids, -100 .. 100", 0, 0},
    {"logprobs", 0, KIND_PARAM, 0, LOADS, "N", "the log probability of each token and of the N likeliest, 0 .. 20 (default: none)", 0, 0},
    {"prompt-logprobs", 0, KIND_PARAM, 0, LOADS, "N", "the same for the tokens of the prompt", 0, 0},
    {"ignore-eos", 0, KIND_SWITCH, 0, LOADS, NULL, "the model's end-of-text does not end a completion", 0, 0},

    /* the model and the engine */
    {"model", 'm', KIND_PATH, AT(model), LOADS, "DIR|NAME",
     "a value with a / is a folder, others are names of `batchd models`", 0, 0},
    {"model", 'm', KIND_PATH, AT(model), V(SERVE), "DIR|NAME", "for jobs that name no model", 0, 0},
    {"model", 'm', KIND_PATH, AT(model), V(TOKENIZE) | V(BENCH) | V(EVAL), "DIR|NAME",
     "a value with a / is a folder, others are names of `batchd models`", 0, 0},
    {"dtype", 0, KIND_CHOICE, AT(dtype), LOADS | V(BENCH) | V(EVAL), "auto|float32|bfloat16|float16|half",
     "to compute in (default auto: the checkpoint's)", 0, 0},
    {"quantization", 0, KIND_CHOICE, AT(quantization), LOADS | V(BENCH) | V(EVAL), "none|int8|fp4|nf4|nf4-dq|fp8",
     "of the layers' weights, as they are loaded (default none: as the checkpoint has them)", 0, 0},
    {"kv-cache-dtype", 0, KIND_CHOICE, AT(kv_cache_dtype), LOADS | V(BENCH) | V(EVAL), "auto|fp8",
     "of keys and values (default auto: as --dtype); fp8 has a scale for each token and head", 0, 0},
    {"quantization-skip", 0, KIND_TEXT, AT(quantization_skip), LOADS | V(BENCH) | V(EVAL), "A,B",
     "modules whose weights stay as they are: down_proj, model.layers.0, ...", 0, 0},
    {"int8-outliers", 0, KIND_CHOICE, AT(int8_outliers), LOADS | V(BENCH) | V(EVAL), "row|batch",
     "what int8 multiplies in 16 bits: a row's numbers of 6.0 and above (default), or\n"
     "as bitsandbytes does all columns where some row of the step has one: then an\n"
     "answer depends on the rows that it shares steps with", 0, 0},
    {"cache-dir", 0, KIND_PATH, AT(cache_dir), ENGINE, "DIR",
     "keeps weights that --quantization has made, for the next start\n"
     "(default: $XDG_CACHE_HOME/batchd, else ~/.cache/batchd)", 0, 0},
    {"cache-size", 0, KIND_SIZE, AT(cache_size), ENGINE, "BYTES",
     "that it may take, as 20G; those used longest ago make room; 0 = keep none (default 64G)", 0, INT64_MAX},
    {"max-model-len", 0, KIND_INT, AT(max_model_len), LOADS | V(BENCH) | V(EVAL), "N",
     "longest sequence in tokens (default: the model's context)", 1, INT32_MAX},
    {"device", 0, KIND_CHOICE, AT(device), ENGINE, "auto|cpu|cuda", "to run on (default auto: a GPU where one can be used)", 0, 0},
    {"threads", 0, KIND_INT, AT(threads), ENGINE, "N", "of the CPU device (default: all cores)", 1, 1024},
    {"max-num-seqs", 0, KIND_INT, AT(max_num_seqs), ENGINE, "N", "sequences at once (default 64 on the CPU, 2048 on a GPU)", 1, 65536},
    {"max-num-batched-tokens", 0, KIND_INT, AT(max_num_batched_tokens), ENGINE, "N",
     "token rows of a step (default 512 on the CPU, 4096 on a GPU)", 1, 1 << 20},
    {"kv-cache-memory-bytes", 0, KIND_SIZE, AT(kv_cache_memory_bytes), ENGINE, "BYTES",
     "for keys and values, as 268435456, 256M or 1G (default: on the CPU the smaller\n"
     "of 1G and a quarter of the memory that is free, on a GPU what is left)", 1, INT64_MAX},
    {"gpu-memory-utilization", 0, KIND_REAL, AT(gpu_memory_utilization), ENGINE, "X",
     "share of the GPU memory that is free (default 0.95)", 0, 1},
    {"gpu-memory-limit", 0, KIND_SIZE, AT(gpu_memory_limit), ENGINE, "BYTES",
     "for weights, steps and keys and values together, as 12G", 1, INT64_MAX},
    {"load-format", 0, KIND_CHOICE, AT(load_format), V(BENCH), "auto|dummy",
     "dummy: random weights, config.json alone is needed (default auto)", 0, 0},

    /* serve */
    {"once", 0, KIND_FLAG, AT(once), V(SERVE), NULL, "end when the queue is empty", 0, 0},

    /* submit, run */
    {"parsable", 0, KIND_FLAG, AT(parsable), V(SUBMIT), NULL, "print the job's number and nothing else", 0, 0},
    {"wait", 0, KIND_FLAG, AT(wait), V(SUBMIT), NULL, "wait for the job and end with its exit code, as `batchd wait`", 0, 0},
    {"output", 'o', KIND_PATH, AT(output), V(RUN) | V(EXPORT), "FILE", "write the results here; - is standard output", 0, 0},
    {"output-format", 0, KIND_CHOICE, AT(output_format), V(RUN), "jsonl|csv|openai", "of -o (default: by extension, else jsonl)", 0, 0},
    {"fresh", 0, KIND_FLAG, AT(fresh), V(RUN), NULL, "start over, although a job of this file and settings is there", 0, 0},

    /* readers */
    {"format", 0, KIND_CHOICE, AT(output_format), V(EXPORT), "jsonl|csv|openai", "default: by the extension of -o, else jsonl", 0, 0},
    {"only-ok", 0, KIND_FLAG, AT(only_ok), V(RUN) | V(EXPORT), NULL, "leave failed rows out of the file", 0, 0},
    {"csv-raw", 0, KIND_FLAG, AT(csv_raw), V(RUN) | V(EXPORT), NULL,
     "no ' before cells that a spreadsheet would take for a formula", 0, 0},
    {"force", 0, KIND_FLAG, AT(force), V(RUN) | V(EXPORT), NULL, "replace a file that is not this job's own", 0, 0},
    {"limit", 'n', KIND_INT, AT(limit), V(RESULTS), "N", "rows at most (default 10, 0 = all)", 0, INT64_MAX},
    {"failed", 0, KIND_FLAG, AT(failed), V(RESULTS), NULL, "failed rows only", 0, 0},
    {"row", 0, KIND_INT, AT(row), V(RESULTS), "N", "this row only; rows count from 0", 0, UINT32_MAX},
    {"watch", 0, KIND_FLAG, AT(watch), V(STATUS), NULL, "show again every second, until all jobs shown are final", 0, 0},
    {"timeout", 0, KIND_DURATION, AT(timeout_s), V(SUBMIT) | V(WAIT), "TIME",
     "wait so long at most: 90, 90s, 5m, 6h, 1d; then exit 124", 0, 0},

    /* sql, tokenize, models, bench */
    {"write", 0, KIND_FLAG, AT(write), V(SQL), NULL, "open the database for writing", 0, 0},
    {"jsonl", 0, KIND_FLAG, AT(jsonl), V(TOKENIZE), NULL,
     "lines are objects with \"text\" and optional \"add_special\" (default false);\n"
     "with --decode, lines that come out are objects with \"text\"", 0, 0},
    {"decode", 0, KIND_FLAG, AT(decode), V(TOKENIZE), NULL, "lines are JSON arrays of ids; print their text", 0, 0},
    {"name", 0, KIND_TEXT, AT(name), V(MODELS), "NAME", "to add under: letters, digits, . _ - and 64 of them at most", 0, 0},
    {"text", 0, KIND_PATH, AT(text), V(EVAL), "FILE", "the text, in UTF-8", 0, 0},
    {"window", 0, KIND_INT, AT(window), V(EVAL), "N", "tokens of a window, BOS among them (default 256)", 2, INT32_MAX},
    {"max-chars", 0, KIND_INT, AT(max_chars), V(EVAL), "N", "read so many characters of the text (default 5000)", 1,
     INT64_MAX},
    {"input-len", 0, KIND_INT, AT(input_len), V(BENCH), "N", "tokens of each prompt (default 64)", 1, 1 << 20},
    {"output-len", 0, KIND_INT, AT(output_len), V(BENCH), "N", "tokens of each completion (default 64)", 1, 1 << 20},
    {"num-prompts", 0, KIND_INT, AT(num_prompts), V(BENCH), "N", "how many requests (default 256)", 1, 10000000},
    {"shape", 0, KIND_CHOICE, AT(shape), V(BENCH), "phi-2|mistral-7b|llama-3.1-8b|gemma-7b|llama-70b|mixtral-8x7b|small|all",
     "kernels: sizes of the operands (default: small on the CPU, else all but small)", 0, 0},
    {"json", 0, KIND_FLAG, AT(json),
     V(SUBMIT) | V(RUN) | V(STATUS) | V(WAIT) | V(CANCEL) | V(RESULTS) | V(MODELS) | V(BENCH) | V(EVAL) |
     V(DOCTOR) | V(VERSION),
     NULL, "print JSON", 0, 0},

    /* every verb */
    {"db", 0, KIND_PATH, AT(db), ALL, "PATH",
     "the database (default: $BATCHD_DB, else ~/.local/share/batchd/batchd.db)", 0, 0},
    {"quiet", 'q', KIND_FLAG, AT(quiet), ALL, NULL, "print nothing but data and errors", 0, 0},
    {"verbose", 'v', KIND_FLAG, AT(verbose), ALL, NULL, "print more about what happens", 0, 0},
    {"no-progress", 0, KIND_FLAG, AT(no_progress), ALL, NULL, "no progress bar and no progress lines", 0, 0},
    {"no-color", 0, KIND_FLAG, AT(no_color), ALL, NULL, "no colours; NO_COLOR in the environment does the same", 0, 0},
    {"log-format", 0, KIND_CHOICE, AT(log_format), ALL, "text|json", "of messages on standard error (default text)", 0, 0},
    {"help", 'h', KIND_FLAG, AT(help), ALL, NULL, "show this", 0, 0},
    {"version", 0, KIND_FLAG, AT(version), 0, NULL, "show the version", 0, 0},
};
enum { N_OPTIONS = sizeof options / sizeof *options };

/* ---------------------------------------------------------------- values */

static bool is_of(const struct option_def *o, enum verb verb) {
    return verb == VERB_NONE ? o->verbs == ALL || o->verbs == 0 || o->at == AT(json) : (o->verbs >> verb & 1) != 0;
}

/* Is `text` one of the words of `choices`, which are cut at | ? */
static bool is_choice(const char *choices, const char *text) {
    size_t n = strlen(text);
    for (const char *at = choices; n > 0 && (at = strstr(at, text)); at += n)
        if ((at == choices || at[-1] == '|') && (at[n] == '|' || at[n] == '\0')) return true;
    return false;
}

/* A whole number and the rest of the text behind it. */
static bool read_int(const char *text, int64_t *out, const char **rest) {
    char *end;
    errno = 0;
    long long value = strtoll(text, &end, 10);
    if (end == text || errno != 0 || isspace((unsigned char)*text)) return false;
    *out = value;
    *rest = end;
    return true;
}

/* The multiplier of a unit, 0 = no such unit. */
static int64_t size_unit(const char *unit) {
    static const char letters[] = "KMGT";
    if (*unit == '\0') return 1;
    const char *at = strchr(letters, toupper((unsigned char)*unit));
    if (!at || (unit[1] && strcmp(unit + 1, "iB") != 0 && strcmp(unit + 1, "B") != 0)) return 0;
    return (int64_t)1 << (10 * (at - letters + 1));
}

static int64_t time_unit(const char *unit) {
    if (*unit == '\0' || strcmp(unit, "s") == 0) return 1;
    if (strcmp(unit, "m") == 0) return 60;
    if (strcmp(unit, "h") == 0) return 3600;
    return strcmp(unit, "d") == 0 ? 86400 : 0;
}

/* What a flag takes, for whoever wrote something else. */
static const char *expects(const struct option_def *o) {
    switch (o->kind) {
    case KIND_SIZE: return "bytes, as 268435456, 256M or 1G";
    case KIND_DURATION: return "a time, as 90, 90s, 5m, 6h or 1d";
    default: return "a whole number";
    }
}

static int set_number(const struct option_def *o, int64_t *out, const char *text, struct err *err) {
    int64_t value = 0, unit = 1;
    const char *rest = "";
    bool ok = read_int(text, &value, &rest);
    if (ok && o->kind == KIND_SIZE) unit = size_unit(rest);
    else if (ok && o->kind == KIND_DURATION) unit = time_unit(rest);
    else if (ok && *rest) ok = false;
    int64_t min = o->kind == KIND_DURATION ? 0 : o->min, max = o->kind == KIND_DURATION ? 1000000000 : o->max;
    if (!ok || unit == 0) return err_set(err, E_USAGE, "--%s takes %s, not \"%s\"", o->name, expects(o), text);
    if (__builtin_mul_overflow(value, unit, &value) || value < min || value > max)
        return err_set(err, E_USAGE, "--%s: %s is not in %" PRId64 " .. %" PRId64, o->name, text, min, max);
    *out = value;
    return 0;
}

static int set_real(const struct option_def *o, double *out, const char *text, struct err *err) {
    char *end;
    double value = strtod(text, &end);
    if (end == text || *end || !(value > (double)o->min) || !(value <= (double)o->max))
        return err_set(err, E_USAGE, "--%s: %s is not above %" PRId64 " and up to %" PRId64, o->name, text, o->min, o->max);
    *out = value;
    return 0;
}

/* Of a row the error begins with "max_tokens: "; here it is the flag and what was written. */
static int set_param(struct params *p, const char *name, const char *text, struct err *err) {
    struct err of_row = ERR_INIT;
    char key[32];
    snprintf(key, sizeof key, "%s", name);
    for (char *c = key; *c; c++)
        if (*c == '-') *c = '_';
    if (params_set_text(p, key, text, &of_row) == 0) return 0;
    size_t n = strlen(key);
    const char *why = strncmp(of_row.text, key, n) == 0 && strncmp(of_row.text + n, ": ", 2) == 0 ? of_row.text + n + 2 : of_row.text;
    return err_set(err, E_USAGE, "--%s \"%.100s\": %s", name, text, why);
}

static int set_option(struct args *args, const struct option_def *o, const char *text, struct err *err) {
    void *at = (char *)args + o->at;
    switch (o->kind) {
    case KIND_FLAG: *(bool *)at = true; return 0;
    case KIND_TEXT:
        if (utf8_valid_prefix(text, strlen(text)) < strlen(text)) return err_set(err, E_USAGE, "--%s is not UTF-8", o->name);
        __attribute__((fallthrough));
    case KIND_PATH:
        if (!*text) return err_set(err, E_USAGE, "--%s is empty; is a variable of the shell not set?", o->name);
        *(const char **)at = text;
        return 0;
    case KIND_CHOICE:
        if (!is_choice(o->value, text))
            return err_set(err, E_USAGE, "--%s is one of %s, not \"%s\"", o->name, o->value, text);
        *(const char **)at = text;
        return 0;
    case KIND_REAL: return set_real(o, at, text, err);
    case KIND_INT:
    case KIND_SIZE:
    case KIND_DURATION: return set_number(o, at, text, err);
    case KIND_PARAM: return set_param(&args->params, o->name, text, err);
    case KIND_SWITCH: return set_param(&args->params, o->name, "true", err);
    case KIND_STOP:
        args->stops = mem_realloc(args->stops, args->n_stops + 1, sizeof *args->stops);
        args->stops[args->n_stops++] = text;
        return 0;
    }
    return 0;
}

/* ---------------------------------------------------------------- parsing */

static int unknown_flag(enum verb verb, const char *raw, struct err *err) {
    const char *words[N_OPTIONS];
    char name[64];
    size_t n = 0;
    bool elsewhere = false;
    snprintf(name, sizeof name, "%.*s", (int)strcspn(raw + 2, "="), raw + 2);
    for (size_t i = 0; i < N_OPTIONS; i++) {
        bool is_its = is_of(&options[i], verb);
        if (is_its && strcmp(options[i].name, name) == 0) return err_set(err, E_USAGE, "--%s takes no value", name);
        if (is_its) words[n++] = options[i].name;
        else if (strcmp(options[i].name, name) == 0) elsewhere = true;
    }
    const char *of = verb == VERB_NONE ? "batchd" : verbs[verb].name, *near = suggest(name, words, n);
    for (size_t i = 0; !near && strlen(name) > 2 && i < n; i++)
        if (strncmp(words[i], name, strlen(name)) == 0) near = words[i];
    if (elsewhere && verb == VERB_NONE)
        return err_set(err, E_USAGE, "--%s belongs to a command and goes behind it", name);
    if (elsewhere) return err_set(err, E_USAGE, "%s has no flag --%s; see `batchd help %s`", of, name, of);
    if (near) return err_set(err, E_USAGE, "no flag --%s; did you mean --%s?", name, near);
    if (verb == VERB_NONE) return err_set(err, E_USAGE, "no flag --%s; see `batchd help`", name);
    return err_set(err, E_USAGE, "no flag --%s; see `batchd help %s`", name, of);
}

static int bad_flag(enum verb verb, const char *raw, int letter, bool lacks_value, struct err *err) {
    if (lacks_value) return err_set(err, E_USAGE, "%s needs a value", raw);
    if (strncmp(raw, "--", 2) == 0) return unknown_flag(verb, raw, err);
    for (size_t i = 0; verb == VERB_NONE && i < N_OPTIONS; i++)
        if (options[i].letter == letter) return err_set(err, E_USAGE, "-%c belongs to a command and goes behind it", letter);
    return err_set(err, E_USAGE, "no flag -%c; see `batchd help%s%s`", letter, verb == VERB_NONE ? "" : " ",
                   verb == VERB_NONE ? "" : verbs[verb].name);
}

static void add_word(struct args *args, const char *word) {
    args->words = mem_realloc(args->words, args->n_words + 1, sizeof *args->words);
    args->words[args->n_words++] = word;
}

/* getopt_long's own tables for one verb; index[i] leads back from longs[i]. */
struct getopt_tables {
    char letters[2 * N_OPTIONS + 3];
    struct option longs[N_OPTIONS + 1];
    const struct option_def *defs[N_OPTIONS];
};

static void tables_fill(struct getopt_tables *t, enum verb verb) {
    size_t n = 0, k = 0;
    memset(t, 0, sizeof *t);
    /* '-': words come in their place, as code 1. For the global flags '+': stop at the verb. */
    t->letters[k++] = verb == VERB_NONE ? '+' : '-';
    t->letters[k++] = ':';
    for (size_t i = 0; i < N_OPTIONS; i++) {
        const struct option_def *o = &options[i];
        if (!is_of(o, verb)) continue;
        bool takes = o->value != NULL;
        t->longs[n].name = o->name;
        t->longs[n].has_arg = takes ? required_argument : no_argument;
        t->longs[n].val = 256;
        t->defs[n++] = o;
        if (!o->letter) continue;
        t->letters[k++] = o->letter;
        if (takes) t->letters[k++] = ':';
    }
}

static const struct option_def *by_letter(const struct getopt_tables *t, int letter) {
    for (size_t i = 0; t->defs[i]; i++)
        if (t->defs[i]->letter == letter) return t->defs[i];
    return NULL;
}

/* Read flags and words of argv[1..]; *used = index of the first argument not read. */
static int parse_some(struct args *args, enum verb verb, int argc, char **argv, int *used, struct err *err) {
    struct getopt_tables t;
    tables_fill(&t, verb);
    optind = 0; /* begin anew, the GNU way */
    opterr = 0;
    for (;;) {
        int at = optind ? optind : 1, which = -1;
        int c = getopt_long(argc, argv, t.letters, t.longs, &which);
        const char *raw = at < argc ? argv[at] : "";
        if (c == -1) break;
        if (c == '?' || c == ':') {
            if (bad_flag(verb, raw, optopt, c == ':', err) < 0) return err->code;
        } else if (c == 1) {
            add_word(args, optarg);
        } else {
            const struct option_def *o = c == 256 ? t.defs[which] : by_letter(&t, c);
            if (c == 256 && strcspn(raw + 2, "=") != strlen(o->name)) return unknown_flag(verb, raw, err);
            if (set_option(args, o, optarg, err) < 0) return err->code;
        }
    }
    *used = optind;
    return 0;
}

/* How many arguments from the front are flags of ours: what follows goes to sqlite3. */
static int own_arguments(int argc, char **argv, enum verb verb) {
    int i = 1;
    while (i < argc) {
        const struct option_def *o = NULL;
        const char *a = argv[i];
        bool is_long = strncmp(a, "--", 2) == 0;
        for (size_t k = 0; k < N_OPTIONS && !o; k++) {
            if (!is_of(&options[k], verb)) continue;
            bool same = is_long ? strlen(options[k].name) == strcspn(a + 2, "=") &&
                                      strncmp(a + 2, options[k].name, strlen(options[k].name)) == 0
                                : a[0] == '-' && a[1] && a[1] == options[k].letter && !a[2];
            if (same) o = &options[k];
        }
        if (!o) break;
        i += o->value && !(is_long && strchr(a, '=')) ? 2 : 1;
    }
    return i < argc ? i : argc;
}

static int check_words(const struct args *args, struct err *err) {
    const struct verb_def *v = &verbs[args->verb];
    bool by_key = args->key && ((1u << args->verb) & ONE_JOB);
    if (args->n_words > v->max_words)
        return err_set(err, E_USAGE, "\"%s\" is one argument too many; see `batchd help %s`", args->words[v->max_words],
                       v->name);
    if (by_key && args->n_words > 0) return err_set(err, E_USAGE, "name the job by its number or by --key, not both");
    if (!by_key && args->n_words < v->min_words)
        return err_set(err, E_USAGE, "usage: batchd %s %s", v->name, v->arguments);
    return 0;
}

static int find_verb(struct args *args, const char *word, struct err *err) {
    args->verb = verb_find(word);
    if (args->verb != VERB_NONE) return 0;
    const char *near = verb_suggest(word);
    if (near) return err_set(err, E_USAGE, "no command \"%s\"; did you mean %s?", word, near);
    return err_set(err, E_USAGE, "no command \"%s\"; `batchd help` lists them", word);
}

int args_parse(struct args *args, int argc, char **argv, struct err *err) {
    int used;
    *args = (struct args){.verb = VERB_NONE, .timeout_s = -1, .limit = 10, .row = -1, .cache_size = -1};
    if (parse_some(args, VERB_NONE, argc, argv, &used, err) < 0) return err->code;
    if (used >= argc) return 0;
    if (find_verb(args, argv[used], err) < 0) return err->code;
    argc -= used;
    argv += used;
    if (args->json) { /* before a verb that prints none it is refused, as it is behind it */
        char *again[] = {argv[0], "--json", NULL};
        if (parse_some(args, args->verb, 2, again, &used, err) < 0) return err->code;
    }
    int own = args->verb == VERB_SQL ? own_arguments(argc, argv, VERB_SQL) : argc;
    if (parse_some(args, args->verb, own, argv, &used, err) < 0) return err->code;
    for (int i = own < argc ? own : used; i < argc; i++) add_word(args, argv[i]);
    return args->help || args->version ? 0 : check_words(args, err);
}

void args_clear(struct args *args) {
    free(args->words);
    free(args->stops);
    params_clear(&args->params);
}

/* ---------------------------------------------------------------- help */

static void print_option(FILE *out, const struct option_def *o) {
    char left[80];
    snprintf(left, sizeof left, "%s%c%s--%s%s%s", o->letter ? "-" : "  ", o->letter ? o->letter : ' ',
             o->letter ? ", " : " ", o->name, o->value ? " " : "", o->value ? o->value : "");
    const char *text = o->help;
    if (strlen(left) > 26) fprintf(out, "  %s\n", left);
    else fprintf(out, "  %-28s", left);
    for (bool first = strlen(left) <= 26; *text; first = false) {
        size_t n = strcspn(text, "\n");
        fprintf(out, "%s%.*s\n", first ? "" : "                              ", (int)n, text);
        text += n + (text[n] == '\n');
    }
}

void options_print(FILE *out, enum verb verb) {
    bool any = false;
    for (size_t i = 0; verb != VERB_NONE && i < N_OPTIONS; i++) {
        if (!is_of(&options[i], verb) || options[i].verbs == ALL) continue;
        if (!any) fprintf(out, "Flags:\n");
        any = true;
        print_option(out, &options[i]);
    }
    fprintf(out, "%sFlags of every command, before or behind it:\n", any ? "\n" : "");
    for (size_t i = 0; i < N_OPTIONS; i++)
        if (options[i].verbs == ALL || (verb == VERB_NONE && options[i].verbs == 0)) print_option(out, &options[i]);
}
