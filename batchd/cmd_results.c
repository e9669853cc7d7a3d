/* cmd_results.c - batchd results: finished rows, to read. */
#include "batchd/command.h"
#include "batchd/exit.h"
#include "batchd/terminal.h"
#include "batchd/verbs.h"

#include <inttypes.h>
#include <string.h>

static void print_bytes(const char *label, const char *text, size_t n) {
    printf("%s", label);
    terminal_print(stdout, text, n);
    printf("\n");
}

static void print_text(const char *label, const char *text) {
    print_bytes(label, text, strlen(text));
}

static int print_row(void *arg, const struct result_view *v, struct err *err) {
    (void)arg;
    (void)err;
    if (v->custom_id) print_text("-- ", v->custom_id);
    else printf("-- row %" PRId64 "\n", v->row);
    printf("   %s, %d prompt and %d completion tokens", v->finish_reason ? v->finish_reason : v->status,
           v->prompt_tokens, v->completion_tokens);
    if (v->ttft_ms >= 0) printf(", first token after %.1f ms", v->ttft_ms);
    printf("\n");
    if (v->completion) print_bytes("", v->completion, v->completion_bytes); /* there may be a NUL in it */
    if (v->error) print_text("   error: ", v->error);
    return ferror(stdout) ? E_IO : 0; /* an end without a word: main has it */
}

static int print_json(struct store *s, const struct job_info *job, const struct result_filter *filter) {
    struct err err = ERR_INIT;
    int64_t n;
    struct export_options o = {.format = EXPORT_JSONL, .filter = *filter};
    return job_export(s, job->job_id, &o, &n, &err) < 0 ? exit_with(ABOUT_DATABASE, &err) : EXIT_DONE;
}

int cmd_results(const struct args *args) {
    struct err err = ERR_INIT;
    struct store *s = NULL;
    struct job_info job = {0};
    struct result_filter filter = {.limit = args->limit, .only_failed = args->failed};
    if (args->row >= 0) filter = (struct result_filter){.first_row = args->row, .end_row = args->row + 1, .only_failed = args->failed};
    int code = command_open(&s, args, STORE_READ);
    if (code == EXIT_DONE) code = command_job(&job, s, args, 0);
    if (code == EXIT_DONE) {
        if (args->json) code = print_json(s, &job, &filter);
        else if (results_each(s, job.job_id, &filter, print_row, NULL, &err) < 0 && err.code) code = exit_with(ABOUT_DATABASE, &err);
    }
    job_info_clear(&job);
    store_close(s);
    return code;
}
