/* command.c - see command.h. */
#include "batchd/command.h"
#include "base/log.h"
#include "base/utf8.h"
#include "batchd/exit.h"
#include "batchd/model_arg.h"
#include "batchd/paths.h"

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static int open_store(struct store **out, const struct args *args, enum store_mode mode, bool or_read) {
    struct err err = ERR_INIT;
    char *path;
    if (paths_database(&path, args->db, &err) < 0) return exit_with(ABOUT_DATABASE, &err);
    int r = store_open(out, path, mode, &err);
    if (r == E_PERMISSION && or_read && store_open(out, path, STORE_READ, NULL) == 0) r = 0;
    free(path);
    return r < 0 ? exit_with(ABOUT_DATABASE, &err) : EXIT_DONE;
}

int command_open(struct store **out, const struct args *args, enum store_mode mode) {
    return open_store(out, args, mode, false);
}

int command_open_or_read(struct store **out, const struct args *args, enum store_mode mode) {
    return open_store(out, args, mode, true);
}

int command_job(struct job_info *out, struct store *s, const struct args *args, size_t which) {
    struct err err = ERR_INIT;
    int64_t id = 0;
    if (!args->key) {
        const char *word = args->words[which];
        char *end;
        errno = 0;
        id = strtoll(word, &end, 10);
        if (end == word || *end || errno || id <= 0) {
            log_error("a job is named by its number, not \"%s\"; `batchd status` lists them, --key finds one by key", word);
            return EXIT_USAGE;
        }
    }
    return job_get(s, id, args->key, out, &err) < 0 ? exit_with(ABOUT_DATABASE, &err) : EXIT_DONE;
}

int command_job_code(const struct job_info *j) {
    if (strcmp(j->state, "cancelled") == 0) return EXIT_CANCELLED;
    if (strcmp(j->state, "failed") == 0) return EXIT_FAILED;
    return j->n_failed > 0 || j->n_rejected > 0 ? EXIT_PARTIAL : EXIT_DONE;
}

static int badness(int code) {
    static const int order[] = {EXIT_DONE, EXIT_PARTIAL, EXIT_CANCELLED, EXIT_FAILED};
    for (int i = 0; i < 4; i++)
        if (order[i] == code) return i;
    return 4;
}

int command_worse(int a, int b) {
    return badness(a) >= badness(b) ? a : b;
}

json_t *command_text_json(const char *text) {
    if (!text) return json_null();
    json_t *json = json_string(text);
    if (json) return json;
    char *repaired = utf8_repaired(text);
    json = json_string(repaired);
    free(repaired);
    return json;
}

static json_t *time_or_null(int64_t wall_us) {
    return wall_us > 0 ? json_real((double)wall_us / 1e6) : json_null();
}

json_t *command_job_json(const struct job_info *j) {
    return json_pack("{s:I, s:o, s:o, s:s, s:o, s:o, s:I, s:I, s:I, s:I, s:I, s:I, s:i, s:o, s:o, s:o, s:o}", //
                     "job_id", (json_int_t)j->job_id, "key", command_text_json(j->key), "name", command_text_json(j->name),
                     "state", j->state, "model", command_text_json(j->model), "error", command_text_json(j->error), //
                     "rows", (json_int_t)j->n_rows, "done", (json_int_t)j->n_done, "failed", (json_int_t)j->n_failed,
                     "rejected", (json_int_t)j->n_rejected, "prompt_tokens", (json_int_t)j->prompt_tokens,
                     "completion_tokens", (json_int_t)j->completion_tokens, "priority", (int)j->priority, //
                     "submitted_at", time_or_null(j->submitted_us), "started_at", time_or_null(j->started_us),
                     "finished_at", time_or_null(j->finished_us), "weights", command_text_json(j->weights));
}

static enum export_format export_format_of(const char *name) {
    if (!name) return EXPORT_AUTO;
    if (strcmp(name, "openai") == 0) return EXPORT_OPENAI;
    return strcmp(name, "csv") == 0 ? EXPORT_CSV : EXPORT_JSONL;
}

struct export_options command_export_options(const struct args *args) {
    return (struct export_options){.path = args->output,
                                   .format = export_format_of(args->output_format),
                                   .filter = {.only_ok = args->only_ok},
                                   .force = args->force,
                                   .csv_raw = args->csv_raw};
}

bool command_output_is_stdout(const struct args *args) {
    return !args->output || strcmp(args->output, "-") == 0;
}

int command_model_folder(char **out, const struct args *args) {
    struct err err = ERR_INIT;
    struct store *s = NULL;
    bool is_name = args->model && !strchr(args->model, '/');
    int code = is_name ? command_open(&s, args, STORE_READ) : EXIT_DONE;
    if (code != EXIT_DONE) return code;
    int r = args->model ? model_arg_folder(out, s, args->model, &err) : model_arg_default(out, &err);
    store_close(s);
    return r < 0 ? exit_with(ABOUT_MODEL, &err) : EXIT_DONE;
}

void command_print_json(json_t *value) {
    char *text = json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY | JSON_REAL_PRECISION(15));
    puts(text ? text : "null");
    free(text);
    json_decref(value);
}

const char *command_time(char out[20], int64_t wall_us) {
    time_t t = (time_t)(wall_us / 1000000);
    struct tm tm;
    if (wall_us <= 0 || !localtime_r(&t, &tm) || strftime(out, 20, "%Y-%m-%d %H:%M:%S", &tm) == 0)
        snprintf(out, 20, "-");
    return out;
}

const char *command_duration(char out[24], double seconds) {
    int64_t s = seconds > 0 ? (int64_t)(seconds + 0.5) : 0;
    if (s >= 3600) snprintf(out, 24, "%" PRId64 ":%02d:%02d", s / 3600, (int)(s / 60 % 60), (int)(s % 60));
    else snprintf(out, 24, "%d:%02d", (int)(s / 60), (int)(s % 60));
    return out;
}

const char *command_count(char out[32], int64_t n) {
    char digits[24];
    size_t k = 0;
    int len = snprintf(digits, sizeof digits, "%" PRId64, n);
    for (int i = 0; i < len; i++) {
        bool group = i > 0 && (len - i) % 3 == 0 && digits[i - 1] != '-';
        if (group) out[k++] = ',';
        out[k++] = digits[i];
    }
    out[k] = '\0';
    return out;
}

/* Single quotes where the shell would not take the path as it is. */
const char *command_begin(char out[600], const struct args *args) {
    static const char plain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._/-+,:@%=";
    bool quote = args->db && args->db[strspn(args->db, plain)] != '\0';
    if (!args->db) snprintf(out, 600, "batchd");
    else snprintf(out, 600, quote ? "batchd --db '%s'" : "batchd --db %s", args->db);
    return out;
}

const char *command_s(int64_t n) {
    return n == 1 ? "" : "s";
}

static void on_pipe(int signal) {
    (void)signal;
    _exit(EXIT_DONE);
}

void command_quiet_pipe(void) {
    struct sigaction action = {.sa_handler = on_pipe};
    sigaction(SIGPIPE, &action, NULL);
}
