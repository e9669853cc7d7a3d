/* job_flags.c - see job_flags.h. */
#include "batchd/job_flags.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/utf8.h"
#include "batchd/command.h"
#include "batchd/engine_flags.h"
#include "batchd/exit.h"
#include "batchd/model_arg.h"
#include "batchd/signals.h"
#include "engine/engine.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_TEXT = 1 << 20 }; /* bytes of a template or system text */

/* TEXT or @FILE; of a file's text one newline at the end is dropped, for editors add it. */
static int read_text(char **out, const char *flag, const char *value, struct err *err) {
    size_t n;
    if (!value) return 0;
    bool is_file = *value == '@';
    if (!is_file) *out = mem_strndup(value, n = strlen(value));
    else if (file_read(value + 1, MAX_TEXT, out, &n, err) < 0) return err_wrap(err, "--%s", flag);
    const char *problem = strlen(*out) != n ? "holds NUL bytes" : utf8_valid_prefix(*out, n) < n ? "is not UTF-8" : NULL;
    if (problem) {
        free(*out);
        *out = NULL;
        return err_set(err, is_file ? E_PARSE : E_USAGE, "--%s: %s %s", flag, is_file ? value + 1 : "it", problem);
    }
    if (!is_file) return 0;
    if (n > 0 && (*out)[n - 1] == '\n') (*out)[--n] = '\0';
    if (n > 0 && (*out)[n - 1] == '\r') (*out)[--n] = '\0';
    return 0;
}

/* --chat-template, checked as far as can be without a conversation. */
static int read_chat_template(char **out, const struct args *args, struct err *err) {
    struct chat_template *t = NULL;
    size_t n;
    if (!args->chat_template) return 0;
    if (args->chat && strcmp(args->chat, "never") == 0) return err_set(err, E_USAGE, "--chat-template is of no use with --chat never");
    if (file_read(args->chat_template, MAX_TEXT, out, &n, err) < 0) return err_wrap(err, "--chat-template");
    int r = strlen(*out) == n ? chat_template_new(&t, *out, n, err) : err_set(err, E_PARSE, "it holds NUL bytes");
    chat_template_free(t);
    return r < 0 ? err_wrap(err, "%s", args->chat_template) : 0;
}

static int read_chat_kwargs(char **out, const struct args *args, struct err *err) {
    json_error_t why;
    if (!args->chat_kwargs) return 0;
    json_t *json = json_loads(args->chat_kwargs, JSON_REJECT_DUPLICATES, &why);
    if (json_is_object(json)) *out = json_dumps(json, JSON_COMPACT);
    else err_set(err, E_USAGE, "--chat-template-kwargs is no JSON object: %s", json ? args->chat_kwargs : why.text);
    json_decref(json);
    return *out ? 0 : E_USAGE;
}

static int set_stops(struct params *p, const struct args *args, struct err *err) {
    if (args->n_stops == 0) return 0;
    json_t *list = json_array();
    for (size_t i = 0; i < args->n_stops; i++)
        if (json_array_append_new(list, json_string(args->stops[i])) < 0) {
            json_decref(list);
            return err_set(err, E_USAGE, "--stop is not valid UTF-8");
        }
    char *text = json_dumps(list, JSON_COMPACT);
    int r = params_set_json(p, "stop", text, err);
    free(text);
    json_decref(list);
    return r;
}

static enum input_format input_format_of(const char *name) {
    static const char *const names[] = {"auto", "csv", "tsv", "jsonl", "lines"};
    static const enum input_format formats[] = {INPUT_AUTO, INPUT_CSV, INPUT_TSV, INPUT_JSONL, INPUT_LINES};
    for (size_t i = 0; name && i < 5; i++)
        if (strcmp(names[i], name) == 0) return formats[i];
    return INPUT_AUTO;
}

int job_flags_read(struct job_flags *out, const struct args *args) {
    struct err err = ERR_INIT;
    struct job_settings *s = &out->settings;
    *out = (struct job_flags){0};
    int code = engine_flags_quantization(&s->quantization, args);
    if (code != EXIT_DONE) return code;
    if (read_text(&s->template_text, "template", args->template_text, &err) < 0 ||
        read_text(&s->system_text, "system", args->system_text, &err) < 0)
        return exit_with(ABOUT_INPUT, &err);
    int r = read_chat_template(&s->chat_template, args, &err);
    if (r == 0) r = read_chat_kwargs(&s->chat_kwargs, args, &err);
    if (r < 0) return exit_with(r == E_USAGE ? ABOUT_FLAGS : ABOUT_INPUT, &err);
    s->allow_special_tokens = args->allow_special_tokens;
    params_overlay(&s->params, &args->params);
    if (set_stops(&s->params, args, &err) < 0) return exit_with(ABOUT_FLAGS, &err);
    s->kv_cache_dtype = args->kv_cache_dtype && strcmp(args->kv_cache_dtype, "auto") != 0
                            ? mem_strdup(args->kv_cache_dtype)
                            : NULL; /* as in jobs before there was the flag */
    s->dtype = mem_strdup(args->dtype ? args->dtype : "auto");
    s->chat = mem_strdup(args->chat ? args->chat : "auto");
    s->max_model_len = args->max_model_len;
    s->seed = (uint64_t)args->seed;
    out->options = (struct submit_options){
        .path = args->words[0],
        .format = input_format_of(args->format),
        .prompt_col = args->prompt_col,
        .id_col = args->id_col,
        .param_cols = args->param_cols,
        .key = args->key,
        .name = args->name,
        .priority = (int32_t)args->priority,
        .skip_rejects = args->reject && strcmp(args->reject, "skip") == 0,
        .settings = s,
        .stop = &signals_stop,
    };
    return EXIT_DONE;
}

void job_flags_clear(struct job_flags *f) {
    job_settings_clear(&f->settings);
    *f = (struct job_flags){0};
}

int job_flags_model(char **out, struct store *s, const struct args *args) {
    struct err err = ERR_INIT;
    *out = NULL;
    if (!args->model) return EXIT_DONE;
    return model_arg_check(out, s, args->model, &err) < 0 ? exit_with(ABOUT_MODEL, &err) : EXIT_DONE;
}

static void show_progress(void *arg, int64_t rows, int64_t bytes, int64_t total_bytes) {
    struct progress_state now = {
        .n_total = total_bytes, .n_finished = bytes, .n_running = -1, .what = "bytes"};
    if (total_bytes > 0) progress_update(arg, &now);
}

/* The error's own text has the first one. */
static void show_rejects(const char *path, const struct submit_report *report) {
    if (report->n_rejected == 1) return;
    int64_t n = report->n_rejected < 10 ? report->n_rejected : 10;
    for (int64_t i = 0; i < n; i++)
        log_error("%s:%" PRId64 ": %s", path, report->rejects[i].line, report->rejects[i].message);
    if (report->n_rejected > n) log_error("and %" PRId64 " more bad lines", report->n_rejected - n);
}

int job_flags_submit(struct job_flags *f, struct store *s, const struct args *args, struct submit_report *report) {
    struct err err = ERR_INIT;
    struct progress *progress = progress_new(args);
    int64_t start = clock_mono_ns();
    *report = (struct submit_report){0};
    f->options.progress = show_progress;
    f->options.progress_arg = progress;
    int r = job_submit(s, &f->options, report, &err);
    progress_free(progress);
    f->options.progress = NULL;
    f->options.progress_arg = NULL;
    if (r < 0) {
        if (r == E_PARSE) show_rejects(f->options.path, report);
        int code = exit_with(r == E_IO && report->input_is_read ? ABOUT_DATABASE : ABOUT_INPUT, &err);
        return r == E_INTERRUPTED ? signals_exit_code() : code;
    }
    char rows[32], begin[600];
    double seconds = (double)(clock_mono_ns() - start) / 1e9;
    if (report->existed)
        log_info("job %" PRId64 ": this key and content are there already, nothing was loaded", report->job_id);
    else
        log_info("job %" PRId64 ": %s row%s read, %" PRId64 " rejected, %.2f s", report->job_id,
                 command_count(rows, report->n_rows), command_s(report->n_rows), report->n_rejected, seconds);
    if (report->prompts_are_alike) log_warn("the template has no {column} in it: every row asks the same");
    if (*report->other_model)
        log_warn("the lines ask for the model \"%s\", which is not looked at: that of --model answers, or the daemon's", report->other_model);
    if (report->n_rejected > 0 && !report->existed)
        log_info("rejected lines: %s sql \"SELECT * FROM rejects WHERE job_id = %" PRId64 "\"", command_begin(begin, args),
                 report->job_id);
    return EXIT_DONE;
}
