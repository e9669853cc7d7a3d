/* jobs.h - rows in, rows out. The one public header of jobs/.
 *
 * A job is one submitted file, a request one of its rows, a result that row's
 * outcome, a lease 256 consecutive requests handed to one engine. All of it is
 * one SQLite file (schema.sql). The parts, in the order a row meets them: store,
 * sampling parameters, submit, worker (leases, publication), prompts, readers,
 * export.
 *
 * A struct store is one connection and belongs to one thread. */
#ifndef BATCHD_JOBS_JOBS_H
#define BATCHD_JOBS_JOBS_H

#include "base/buf.h"
#include "base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* ------------------------------------------------------------------ store */

struct store;

enum store_mode {
    STORE_READ,   /* must exist; never written through this connection */
    STORE_WRITE,  /* must exist */
    STORE_CREATE, /* made (0600, with its folder) when missing */
};

/* E_NOT_FOUND; E_PARSE: not an SQLite file or not ours; E_CONFIG: a newer schema;
 * E_PERMISSION; E_BUSY: locked for longer than 10 s; E_FULL: disk full; E_IO. The
 * same codes come from every function that takes a store. */
int store_open(struct store **out, const char *path, enum store_mode mode, struct err *err);
void store_close(struct store *s); /* NULL is fine */
const char *store_path(const struct store *s);

/* SQLite's quick_check. E_IO: the file is damaged, with its first complaint. */
int store_check(struct store *s, struct err *err);

/* E_IO: the file was deleted, or another is in its place: what is written now is lost. */
int store_check_place(struct store *s, struct err *err);

/* Changes whenever another connection commits; cheap to poll. */
int64_t store_data_version(struct store *s);

/* ------------------------------------------------------------------ sampling parameters */

/* The keys under OpenAI's and vLLM's names, their types and limits, in one table
 * (params.c). A field counts only where its bit is set, so that flags, row keys
 * and a model's own defaults can be laid over each other. */
enum param_bit {
    PARAM_MAX_TOKENS = 1 << 0,
    PARAM_MIN_TOKENS = 1 << 1,
    PARAM_TEMPERATURE = 1 << 2,
    PARAM_TOP_P = 1 << 3,
    PARAM_TOP_K = 1 << 4,
    PARAM_MIN_P = 1 << 5,
    PARAM_SEED = 1 << 6,
    PARAM_STOP = 1 << 7,
    PARAM_STOP_TOKEN_IDS = 1 << 8,
    PARAM_IGNORE_EOS = 1 << 9,
    PARAM_PRESENCE_PENALTY = 1 << 10,
    PARAM_FREQUENCY_PENALTY = 1 << 11,
    PARAM_REPETITION_PENALTY = 1 << 12,
    PARAM_LOGIT_BIAS = 1 << 13,
    PARAM_ALLOWED_TOKEN_IDS = 1 << 14,
    PARAM_BANNED_TOKEN_IDS = 1 << 15,
    PARAM_LOGPROBS = 1 << 16,
    PARAM_TOP_LOGPROBS = 1 << 17,
    PARAM_PROMPT_LOGPROBS = 1 << 18,
};

struct params { /* all zero = nothing set; give back with params_clear */
    uint32_t set; /* param_bit */
    uint32_t second; /* of these: last given by a second name, as max_completion_tokens */
    int64_t max_tokens, min_tokens, top_k;
    int64_t logprobs, top_logprobs, prompt_logprobs; /* but for top_logprobs, -1 = none, though the job has some */
    double temperature, top_p, min_p;
    double presence_penalty, frequency_penalty, repetition_penalty;
    uint64_t seed;
    bool ignore_eos;
    char **stop; /* <= 16 of <= 256 bytes */
    size_t n_stop;
    int64_t *stop_token_ids; /* <= 64 */
    size_t n_stop_token_ids;
    int64_t *logit_bias_ids; /* <= 1024 */
    double *logit_bias;      /* as many: what is added to the logit */
    size_t n_logit_bias;
    int64_t *allowed_token_ids, *banned_token_ids; /* <= 1024 each; allowed: none = all are */
    size_t n_allowed_token_ids, n_banned_token_ids;
};
void params_clear(struct params *p);

/* Is this a sampling key (built or known by name)? */
bool params_is_key(const char *key);

/* Set one key from JSON text of its value; null sets nothing, as with the peers. E_RANGE or E_PARSE: "temperature: 11 is not
 * in 0 .. 10"; E_UNSUPPORTED: a key that is known by name but not built, with a value
 * that would change the result ("n: 2 is not built yet; only 1 is"); E_NOT_FOUND: no such key.
 * max_completion_tokens is max_tokens; given by both names, the two must agree (E_PARSE). */
int params_set_json(struct params *p, const char *key, const char *json, struct err *err);

/* Set one key from a flag's or a cell's plain text ("0.8", "END"). Same errors. */
int params_set_text(struct params *p, const char *key, const char *text, struct err *err);

/* A JSON object of what is set (the caller's), and back. */
char *params_to_json(const struct params *p);
int params_from_json(struct params *p, const char *json, struct err *err);

/* Lay what is set in `over` over p (copies). */
void params_overlay(struct params *p, const struct params *over);

/* ------------------------------------------------------------------ submit */

/* What a job carries so that a daemon can run it without a flag. NULL and 0 mean
 * "the daemon's default" (model) or "auto". */
struct job_settings {
    char *model;          /* absolute folder, or a registered name */
    char *dtype;          /* auto, float32, bfloat16 */
    char *quantization;   /* NULL = none, nf4, "nf4 except A,B": as engine.h has it */
    char *kv_cache_dtype; /* NULL = auto, fp8 */
    int64_t max_model_len;
    char *template_text;  /* {column} template, or NULL */
    char *system_text;    /* first message of every row, or NULL */
    char *chat;           /* auto, always, never */
    char *chat_template;  /* Jinja in place of the model's, or NULL */
    char *chat_kwargs;    /* variables of the chat template, a JSON object, or NULL; a row's own lie over them */
    bool allow_special_tokens; /* control tokens written out in a row's text become such */
    uint64_t seed;        /* a row's seed is hash(seed, row) unless the row sets one */
    struct params params; /* defaults of the rows */
};
void job_settings_clear(struct job_settings *s);

enum input_format { INPUT_AUTO, INPUT_CSV, INPUT_TSV, INPUT_JSONL, INPUT_LINES };

struct submit_options {
    const char *path;          /* "-" = standard input */
    enum input_format format;  /* AUTO: by extension (.csv .tsv .jsonl .ndjson .txt), else by content */
    const char *prompt_col;    /* CSV column or JSONL key of the prompt; NULL = "prompt", or the only column */
    const char *id_col;        /* NULL = "custom_id", else "id", else the row number */
    const char *param_cols;    /* CSV columns, comma separated, that are sampling parameters; `@name` always is */
    const char *key;           /* idempotency key, NULL = none */
    const char *name;          /* for people, NULL = the file's name */
    int32_t priority;          /* -100 .. 100 */
    bool skip_rejects;         /* --reject skip: store bad lines in rejects, keep the good rows */
    int64_t lease_rows;        /* 0 = 256 */
    const struct job_settings *settings;
    void (*progress)(void *arg, int64_t rows, int64_t bytes, int64_t total_bytes); /* may be NULL */
    void *progress_arg;
    const volatile int *stop;  /* becomes non-zero: give up with E_INTERRUPTED; may be NULL */
};

struct reject { /* a line that did not become a request */
    int64_t line;     /* 1 = first physical line of the file */
    int64_t byte;     /* offset of the line's first byte */
    char code[24];    /* column_count, stray_quote, unterminated_quote, utf8, nul, field_size, json, ... */
    char message[300];
};

struct submit_report {
    int64_t job_id;
    int64_t n_rows, n_rejected;
    bool existed;              /* the key's job was there already, with the same content */
    bool prompts_are_alike;    /* the template has no column in it */
    char other_model[100];     /* the first that a line of a batch file names and that is not the job's; "" = none */
    bool input_is_read;        /* an E_IO is the database's, not the input's */
    struct reject rejects[10]; /* the first ones */
};

/* Load a file as a job, or refuse it whole: after an error the database holds
 * nothing of it. E_IO / E_NOT_FOUND: the input cannot be read; E_PARSE: bad lines
 * (report->rejects has the first ten), no rows, a key that already names other
 * content; E_USAGE: unknown column in a template or flag, with a suggestion;
 * E_INTERRUPTED. Rows with duplicate ids are bad lines (both line numbers named). */
int job_submit(struct store *s, const struct submit_options *options, struct submit_report *report,
               struct err *err);

/* The key `run` uses: sha256 of the input's bytes and of all that settings and options say
 * about the result. 1: there is none, for the input is standard input or a pipe, which is
 * read once. */
int submit_content_key(const struct submit_options *options, char hex[65], struct err *err);

/* ------------------------------------------------------------------ worker */

/* The right to serve a database: the lock file beside it and an epoch in it. Every
 * write of a worker checks the epoch in its own transaction; E_FENCED means that
 * another daemon took over and nothing was written. E_IO also when the file itself is gone. */
struct worker;

struct worker_options {
    int64_t lock_wait_ms; /* 5000; how long to wait for another daemon's lock */
    const char *device;   /* what to show in status */
    void (*on_short)(int64_t job_id, const char *why); /* a job ended although rows of it are gone; may be NULL */
};

/* E_BUSY names the pid that holds the lock. Leases of earlier epochs are ready again afterwards. */
int worker_open(struct worker **out, struct store *s, const struct worker_options *options, struct err *err);
int worker_beat(struct worker *w, const char *state, struct err *err); /* every 5 s; state: one word for people */
void worker_close(struct worker *w); /* clean shutdown: leases back, lock released; NULL is fine */

struct job_work { /* a job with work to do; give back with job_work_clear */
    int64_t job_id;
    struct job_settings settings;
    char **columns;       /* names of the input cells (CSV), else NULL */
    size_t n_columns;
    int32_t prompt_column, id_column; /* index, -1 = none */
    char *prompt_key;     /* JSONL: the key that holds the prompt */
    int64_t submitted_us; /* wall clock */
    int64_t weights_id;   /* that it began with, 0 = none yet */
};
void job_work_clear(struct job_work *j);

/* The job to lease from next: highest priority, then in turns. false in *found: nothing
 * is ready. When `only` is not 0, only that job. */
int worker_next_job(struct worker *w, int64_t only, struct job_work *out, bool *found, struct err *err);

struct request_row {
    int64_t row;      /* 0-based in the job */
    char *input;      /* JSON: array of cells (CSV, TSV, lines) or the line's own object (JSONL); NULL = it is damaged */
    char *params;     /* JSON object of the row's own sampling keys, or NULL */
};
struct lease { /* give back with lease_clear */
    int64_t job_id, lease_no;
    struct request_row *rows; /* without those that have a result already */
    size_t n_rows;
    int64_t leased_mono_ns, leased_wall_us; /* t0 */
};
void lease_clear(struct lease *l);

/* Take the job's next ready lease that has rows to do; *found false when there is none. */
int worker_lease(struct worker *w, int64_t job_id, struct lease *out, bool *found, struct err *err);

enum row_status { ROW_OK = 0, ROW_FAILED = 1 };
enum text_codec { CODEC_RAW = 0, CODEC_ZSTD = 1, CODEC_ZSTD_DICT = 2 };

struct packed_text { /* as text_compress leaves it; data NULL = none */
    const void *data;
    size_t bytes;
    enum text_codec codec;
};

struct result_row {
    int64_t job_id, row;
    enum row_status status;
    const char *finish_reason; /* "stop", "length", "error" */
    enum text_codec codec;
    const void *text;          /* codec RAW: UTF-8 text; else a zstd frame. NULL where status is FAILED */
    size_t text_bytes;
    int32_t prompt_tokens, cached_tokens, completion_tokens, preemptions, attempt;
    int64_t wait_us, queue_us, prefill_us, ttft_us, decode_us, e2e_us; /* -1 = did not happen */
    uint64_t seed;
    const char *error_code, *error; /* NULL where status is OK */
    struct packed_text logprobs, prompt_logprobs; /* JSON, where the row asked for them */
};

/* One transaction: results, counters, and leases that are complete now; a job whose
 * last row this was becomes done, or partial where rows failed, or failed with a word
 * where rows are gone from the table. Rows that have a result already, or are gone, or
 * whose job is cancelled, are left out silently. */
int worker_publish(struct worker *w, const struct result_row *rows, size_t n, struct err *err);

/* Rows that went in since worker_open: without those that were left out. */
int64_t worker_n_published(const struct worker *w);

/* Give leases back unworked (drain): rows without result are ready again. */
int worker_release(struct worker *w, struct err *err);

/* The whole job cannot run (its model cannot be loaded): state failed, with the reason. */
int worker_fail_job(struct worker *w, int64_t job_id, const char *message, struct err *err);

/* What a model folder holds. */
struct weights_seen {
    const char *path;       /* absolute folder */
    const char *files_json; /* [{"name","size","sha256"}], ascending name; further keys do not count */
    bool is_whole;          /* hashes of whole files; else of a safetensors file its header's alone */
};

/* Note that the job runs on these weights; *weights_id is their number, the same for the same
 * content wherever it lies. E_CONFIG: the job began with others, and names a file that differs. */
int worker_note_weights(struct worker *w, int64_t job_id, const struct weights_seen *seen, int64_t *weights_id,
                        struct err *err);

/* Jobs cancelled since the last call; fills ids, returns how many (<= cap), or E_*. */
int worker_cancelled(struct worker *w, int64_t *ids, size_t cap, struct err *err);

/* Is a worker alive on this database (its lock is held)? *pid may be NULL. */
bool worker_is_alive(const char *db_path, int *pid);

/* Compress one text: the frame when it is smaller by more than 8 bytes, else raw. Thread-safe. */
void text_compress(struct buf *out, enum text_codec *codec, const char *text, size_t n);

/* ------------------------------------------------------------------ prompts */

/* What a request says to the model, from its cells and the job's template. Pure; any thread. */
enum prompt_kind {
    PROMPT_RAW,      /* `text` as it stands (JSONL prompt of a job without system_text and chat "always") */
    PROMPT_TEXT,     /* `text`, to be one user message, behind settings.system_text, where the chat mode says so */
    PROMPT_MESSAGES, /* a conversation, in `variables` */
};
struct prompt { /* all zero = empty; give back with prompt_clear */
    enum prompt_kind kind;
    char *text;
    char *variables;          /* what the chat template reads, a JSON object: "messages" (system_text, or a
                                 JSONL row's own "system", first), and what else the row gives it; NULL for RAW */
    struct params params;     /* the job's, with the row's own over them */
    uint64_t seed;            /* the row's, else hash(job seed, row) */
};
void prompt_clear(struct prompt *p);
int prompt_build(struct prompt *out, const struct job_work *job, const struct request_row *row, struct err *err);

/* ------------------------------------------------------------------ readers */

struct job_info {
    int64_t job_id;
    char *key, *name, *state, *model, *error, *weights; /* weights: sha256, NULL = not known; state: loading queued running done partial failed cancelled */
    int64_t n_rows, n_done, n_failed, n_rejected; /* n_done: ok ones */
    int64_t prompt_tokens, completion_tokens;
    int32_t priority;
    int64_t submitted_us, started_us, finished_us; /* wall clock, 0 = not yet */
};
void job_info_clear(struct job_info *j);

/* By id, or by key when key is not NULL. E_NOT_FOUND: "no job 7". */
int job_get(struct store *s, int64_t job_id, const char *key, struct job_info *out, struct err *err);
int job_list(struct store *s, struct job_info **out, size_t *n, struct err *err); /* newest last; free each, then *out */
bool job_is_final(const struct job_info *j);
bool job_is_given_up(const struct job_info *j); /* failed or cancelled: nobody works on what is left of it */
int job_cancel(struct store *s, int64_t job_id, const char *reason, struct err *err); /* E_EXISTS when already final, E_BUSY while it is loading */

struct result_view { /* one finished row, decoded; borrowed for the callback */
    int64_t row;
    const char *custom_id; /* NULL = none */
    const char *status;    /* "ok", "failed" */
    const char *finish_reason, *completion, *error_code, *error; /* NULL where there is none */
    size_t completion_bytes; /* a model may well write a NUL byte */
    const char *input;     /* JSON as in request_row; "null" = it is damaged */
    const char *logprobs, *prompt_logprobs; /* JSON, NULL where the row asked for none */
    int32_t prompt_tokens, cached_tokens, completion_tokens, preemptions, attempt;
    double wait_ms, queue_ms, prefill_ms, ttft_ms, decode_ms, tpot_ms, e2e_ms; /* < 0 = NULL */
    int64_t finished_us;   /* wall clock */
};

/* Call fn for finished rows in row order, from first_row on, in short read
 * transactions; fn returns 0 or an E_* that ends the walk. */
struct result_filter {
    int64_t first_row, end_row; /* rows [first_row, end_row); end_row 0 = to the last */
    int64_t limit;    /* 0 = all */
    bool only_ok, only_failed;
};
int results_each(struct store *s, int64_t job_id, const struct result_filter *filter,
                 int (*fn)(void *arg, const struct result_view *v, struct err *err), void *arg, struct err *err);

/* Rejects of a job in line order. */
int rejects_each(struct store *s, int64_t job_id, int (*fn)(void *arg, const struct reject *r, struct err *err),
                 void *arg, struct err *err);

/* ------------------------------------------------------------------ export */

/* OPENAI: lines as OpenAI's batch interface and vLLM's run_batch write them. */
enum export_format { EXPORT_AUTO, EXPORT_JSONL, EXPORT_CSV, EXPORT_OPENAI };

struct export_options {
    const char *path;  /* NULL or "-" = standard output */
    enum export_format format; /* AUTO: by extension, else JSONL */
    struct result_filter filter; /* all zero = all finished rows */
    bool force;        /* replace a file that is not this job's own earlier export */
    bool csv_raw;      /* no ' before cells that a spreadsheet would take for a formula */
};

/* May this file be written? E_EXISTS, E_NOT_FOUND, E_PERMISSION as job_export would say it:
 * ask before hours of work. */
int job_export_check(struct store *s, int64_t job_id, const struct export_options *options, struct err *err);

/* Write finished rows in input order; *n_rows of them. The file appears whole
 * or not at all; what is no regular file (/dev/null, a FIFO) is written to as it is.
 * The store must be open for writing, to remember which file is the job's own.
 * E_NOT_FOUND: no such job, or no folder; E_EXISTS without force; E_PERMISSION, E_FULL, E_IO. */
int job_export(struct store *s, int64_t job_id, const struct export_options *options, int64_t *n_rows,
               struct err *err);

/* ------------------------------------------------------------------ models */

struct model_entry {
    char *name, *path; /* absolute folder */
    char *files_json;  /* [{"name","size","mtime_us","sha256"}], ascending name, when it was added */
    int64_t added_us;
};
void model_entry_clear(struct model_entry *m);
/* Names are [A-Za-z0-9._-]{1,64}, not "." or ".."; a name that is there is given to the new folder. */
int model_add(struct store *s, const char *name, const char *path, const char *files_json, struct err *err);
int model_get(struct store *s, const char *name, struct model_entry *out, struct err *err);
int model_list(struct store *s, struct model_entry **out, size_t *n, struct err *err);
/* The same files under other times: what was `before` becomes files_json, unless somebody was first. */
int model_touch(struct store *s, const char *name, const char *before, const char *files_json, struct err *err);
/* E_NOT_FOUND; E_FAIL: unfinished jobs name it. */
int model_remove(struct store *s, const char *name, struct err *err);

#endif
