/* cmd_run.c - batchd run: submit, work and export in one process.
 *
 * The job's key is made of the file's content and the settings, so that the same
 * command after an interruption finds its job and goes on. */
#include "base/clock.h"
#include "base/log.h"
#include "batchd/command.h"
#include "batchd/engine_flags.h"
#include "batchd/exit.h"
#include "batchd/job_flags.h"
#include "batchd/model_arg.h"
#include "batchd/serving.h"
#include "batchd/signals.h"
#include "batchd/verbs.h"
#include "batchd/watch.h"

#include <inttypes.h>
#include <stdlib.h>
#include <sys/stat.h>

static int set_model(struct job_flags *f, struct store *s, const struct args *args) {
    struct err err = ERR_INIT;
    if (args->model) return job_flags_model(&f->settings.model, s, args);
    return model_arg_default(&f->settings.model, &err) < 0 ? exit_with(ABOUT_MODEL, &err) : EXIT_DONE;
}

/* The job of a pipe has no key unless one is given. */
static int set_key(struct job_flags *f, const struct args *args, char key[128]) {
    struct err err = ERR_INIT;
    char hex[65];
    if (args->key) return EXIT_DONE;
    int r = submit_content_key(&f->options, hex, &err);
    if (r < 0) return exit_with(ABOUT_INPUT, &err);
    if (r == 1) return EXIT_DONE;
    if (args->fresh) snprintf(key, 128, "run:%s:%" PRId64, hex, clock_wall_us());
    else snprintf(key, 128, "run:%s", hex);
    f->options.key = key;
    return EXIT_DONE;
}

/* Whoever serves the database does the work: a daemon, or another `run`, which ends with its
 * own job. When it has gone, this process takes its place. */
static int work(struct store *s, int64_t job_id, const struct args *args) {
    struct engine_flags engine = {.options = ENGINE_OPTIONS_DEFAULT};
    int code = engine_flags_read(&engine, args);
    struct daemon_options o = {
        .db_path = store_path(s), .engine = engine.options, .only_job = job_id, .once = true, .lock_wait_ms = 200};
    bool busy = code == EXIT_DONE, told = false;
    while (busy) {
        busy = worker_is_alive(store_path(s), NULL);
        if (!busy) code = serve_until_end(&o, s, args, &busy);
        if (!busy) break;
        if (!told) log_info("a daemon serves this database: it does the work");
        told = true;
        code = watch_job_while_served(s, job_id, args);
        busy = code == EXIT_TEMPORARY;
        if (busy) log_info("nobody serves this database any more: going on with job %" PRId64 " here", job_id);
        else if (code < EXIT_DATA) code = EXIT_DONE; /* the job says how it ended */
    }
    engine_flags_clear(&engine);
    return signals_seen() ? signals_exit_code() : code;
}

static int export_job(struct store *s, int64_t job_id, const struct args *args) {
    struct err err = ERR_INIT;
    int64_t n = 0;
    if (!args->output) return EXIT_DONE;
    struct export_options o = command_export_options(args);
    if (command_output_is_stdout(args)) command_quiet_pipe();
    if (job_export(s, job_id, &o, &n, &err) < 0) return exit_with(ABOUT_OUTPUT, &err);
    if (!command_output_is_stdout(args)) log_info("%" PRId64 " row%s written to %s", n, command_s(n), args->output);
    return EXIT_DONE;
}

static void print_summary(const struct job_info *j, const struct args *args) {
    char done[32], tokens[32], duration[24], begin[600];
    double seconds = (double)(j->finished_us - j->started_us) / 1e6;
    if (args->json) command_print_json(command_job_json(j));
    if (j->error) log_error("job %" PRId64 ": %s", j->job_id, j->error);
    log_info("job %" PRId64 " %s: %s row%s done, %" PRId64 " failed, %" PRId64 " rejected; %s tokens in %s (%.0f tok/s)",
             j->job_id, j->state, command_count(done, j->n_done), command_s(j->n_done), j->n_failed, j->n_rejected,
             command_count(tokens, j->completion_tokens), command_duration(duration, seconds),
             seconds > 0 ? (double)j->completion_tokens / seconds : 0);
    command_begin(begin, args);
    if (!args->output) log_info("next: %s results %" PRId64 ", or %s export %" PRId64 " -o FILE", begin, j->job_id, begin, j->job_id);
}

/* The job is there: bring it to its end, and its results out. */
static int finish_job(struct store *s, int64_t job_id, const struct args *args) {
    struct err err = ERR_INIT;
    struct job_info job = {0};
    int code = EXIT_DONE;
    struct export_options o = command_export_options(args);
    /* A file in the way must show before the work is done. */
    if (args->output && job_export_check(s, job_id, &o, &err) < 0) return exit_with(ABOUT_OUTPUT, &err);
    if (job_get(s, job_id, NULL, &job, &err) < 0) return exit_with(ABOUT_DATABASE, &err);
    if (!job_is_final(&job)) {
        if (job.n_done + job.n_failed > 0)
            log_info("going on with job %" PRId64 ": %" PRId64 " of %" PRId64 " rows are there", job_id,
                     job.n_done + job.n_failed, job.n_rows);
        job_info_clear(&job);
        code = work(s, job_id, args);
        if (code == EXIT_DONE && job_get(s, job_id, NULL, &job, &err) < 0) code = exit_with(ABOUT_DATABASE, &err);
    } else if (job_is_given_up(&job)) {
        log_warn("job %" PRId64 " was %s before; %s starts over", job_id, job.state, args->key ? "another --key" : "--fresh");
    }
    if (code == EXIT_DONE && !job_is_final(&job)) {
        log_error("job %" PRId64 " is not finished; the same command goes on with it", job_id);
        code = EXIT_FAILED;
    }
    if (code == EXIT_DONE) {
        print_summary(&job, args);
        code = export_job(s, job_id, args);
        if (code == EXIT_DONE) code = command_job_code(&job);
    } else if (signals_seen()) {
        log_info("interrupted; the same command goes on with job %" PRId64, job_id);
    }
    job_info_clear(&job);
    return code;
}

/* By its content the job is found again: it is not to be replaced, --force or not. */
static bool is_input(const char *output, const char *input) {
    struct stat a, b;
    return output && stat(output, &a) == 0 && stat(input, &b) == 0 && S_ISREG(a.st_mode) && a.st_dev == b.st_dev &&
           a.st_ino == b.st_ino;
}

/* Flags that would be left without an effect, and say that something else was meant. */
static int check_flags(const struct args *args) {
    const char *of_output = args->output_format ? "--output-format" : args->only_ok ? "--only-ok" : args->csv_raw ? "--csv-raw"
                          : args->force         ? "--force"         : NULL;
    if (of_output && !args->output) log_error("%s is about the file that -o names; say -o FILE", of_output);
    else if (is_input(args->output, args->words[0])) log_error("-o names the input, %s; name another file", args->words[0]);
    else if (args->fresh && args->key) log_error("--fresh goes without --key; a key that is new starts over, too");
    else return EXIT_DONE;
    return EXIT_USAGE;
}

int cmd_run(const struct args *args) {
    struct store *store = NULL;
    struct job_flags flags = {0};
    struct submit_report report;
    char key[128];
    int code = check_flags(args);
    if (code == EXIT_DONE) code = job_flags_read(&flags, args);
    if (code == EXIT_DONE) code = command_open(&store, args, STORE_CREATE);
    if (code == EXIT_DONE) code = set_model(&flags, store, args);
    if (code == EXIT_DONE) code = set_key(&flags, args, key);
    if (code == EXIT_DONE) {
        signals_listen();
        code = job_flags_submit(&flags, store, args, &report);
    }
    if (code == EXIT_DONE) code = finish_job(store, report.job_id, args);
    job_flags_clear(&flags);
    store_close(store);
    return code;
}
