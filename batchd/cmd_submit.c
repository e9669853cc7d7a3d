/* cmd_submit.c - batchd submit: a file becomes a job. */
#include "base/log.h"
#include "batchd/command.h"
#include "batchd/exit.h"
#include "batchd/job_flags.h"
#include "batchd/paths.h"
#include "batchd/signals.h"
#include "batchd/verbs.h"
#include "batchd/watch.h"

#include <inttypes.h>
#include <stdlib.h>

/* A job without a model is for the daemon's default one. Refuse it where there will
 * be none as far as can be seen. */
static int check_no_model(struct store *s, const struct args *args) {
    if (args->model || worker_is_alive(store_path(s), NULL)) return EXIT_DONE;
    char *demo = paths_demo_model();
    if (demo) log_info("no --model: `batchd serve` without --model will use the demo model, %s", demo);
    else log_error("no model: name one with --model DIR, or start `batchd serve --model DIR` first");
    free(demo);
    return demo ? EXIT_DONE : EXIT_CONFIG;
}

static void print_report(const struct args *args, const struct submit_report *r) {
    if (args->parsable) printf("%" PRId64 "\n", r->job_id);
    else if (args->json)
        command_print_json(json_pack("{s:I, s:I, s:I, s:b}", "job_id", (json_int_t)r->job_id, "rows",
                                     (json_int_t)r->n_rows, "rejected", (json_int_t)r->n_rejected, "existed",
                                     r->existed));
    fflush(stdout);
}

static int wait_for(struct store *s, const struct args *args, int64_t job_id) {
    struct err err = ERR_INIT;
    struct job_info job = {0};
    char begin[600];
    if (job_get(s, job_id, NULL, &job, &err) < 0) return exit_with(ABOUT_DATABASE, &err);
    bool final = job_is_final(&job);
    int code = command_job_code(&job);
    job_info_clear(&job);
    if (final) return code;
    if (!worker_is_alive(store_path(s), NULL)) {
        log_error("job %" PRId64 " is stored, but no daemon is alive to wait for; run `%s serve --once`", job_id,
                  command_begin(begin, args));
        return EXIT_MODEL;
    }
    return watch_job(s, job_id, args->timeout_s, args, NULL);
}

static int check_flags(const struct args *args) {
    if (args->timeout_s >= 0 && !args->wait) log_error("--timeout goes with --wait");
    else if (args->parsable && args->json) log_error("--parsable or --json, not both");
    else return EXIT_DONE;
    return EXIT_USAGE;
}

/* The key's job is there, but nobody will work on it any more: an error where it is waited for. */
static void tell_ended(struct store *s, int64_t job_id, bool waits) {
    struct err err = ERR_INIT;
    struct job_info job = {0};
    if (job_get(s, job_id, NULL, &job, &err) < 0) return;
    if (job_is_given_up(&job))
        (waits ? log_error : log_warn)("job %" PRId64 " is %s: %s; another --key submits it anew", job_id, job.state,
                                       job.error ? job.error : "?");
    job_info_clear(&job);
}

int cmd_submit(const struct args *args) {
    struct store *store = NULL;
    struct job_flags flags = {0};
    struct submit_report report;
    char begin[600];
    int code = check_flags(args);
    if (code == EXIT_DONE) code = job_flags_read(&flags, args);
    if (code == EXIT_DONE) code = command_open(&store, args, STORE_CREATE);
    if (code == EXIT_DONE) code = job_flags_model(&flags.settings.model, store, args);
    if (code == EXIT_DONE) code = check_no_model(store, args);
    if (code != EXIT_DONE) goto out;
    signals_listen();
    code = job_flags_submit(&flags, store, args, &report);
    if (code != EXIT_DONE) goto out;
    print_report(args, &report);
    if (report.existed) tell_ended(store, report.job_id, args->wait);
    if (args->wait) code = wait_for(store, args, report.job_id);
    else if (!worker_is_alive(store_path(store), NULL)) log_info("next: %s serve --once", command_begin(begin, args));
out:
    job_flags_clear(&flags);
    store_close(store);
    return code;
}
