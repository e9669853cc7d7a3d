/* cmd_status.c - batchd status: jobs and how far they are. */
#include "batchd/command.h"
#include "batchd/exit.h"
#include "batchd/signals.h"
#include "batchd/terminal.h"
#include "batchd/verbs.h"

#include <inttypes.h>
#include <stdlib.h>
#include <unistd.h>

struct jobs {
    struct job_info *list;
    size_t n;
};

static void jobs_clear(struct jobs *jobs) {
    for (size_t i = 0; i < jobs->n; i++) job_info_clear(&jobs->list[i]);
    free(jobs->list);
    *jobs = (struct jobs){0};
}

/* While a job is loading, nobody knows how many rows it will have. */
static int percent_of(const struct job_info *j) {
    return j->n_rows > 0 ? (int)(100 * (j->n_done + j->n_failed) / j->n_rows) : 0;
}

/* Whoever submitted the job chose this text. */
static void print_text(const char *label, const char *text) {
    printf("%s", label);
    terminal_print_line(stdout, text);
    printf("\n");
}

static json_t *daemon_json(const struct store *s) {
    int pid = 0;
    bool alive = worker_is_alive(store_path(s), &pid);
    return json_pack("{s:b, s:o}", "alive", alive, "pid", alive ? json_integer(pid) : json_null());
}

static void print_daemon(const struct store *s) {
    int pid = 0;
    if (worker_is_alive(store_path(s), &pid)) printf("daemon: alive, pid %d\n", pid);
    else printf("daemon: none; start one with `batchd serve`\n");
}

static void print_table(const struct store *s, const struct jobs *jobs) {
    char time[20], rows[32];
    print_daemon(s);
    if (jobs->n == 0) {
        printf("no jobs in %s\n", store_path(s));
        return;
    }
    printf("%5s  %-9s  %12s  %4s  %8s  %8s  %-19s  %s\n", "JOB", "STATE", "ROWS", "%", "FAILED", "REJECTED", "SUBMITTED",
           "NAME");
    for (size_t i = 0; i < jobs->n; i++) {
        const struct job_info *j = &jobs->list[i];
        printf("%5" PRId64 "  %-9s  %12s  %3d%%  %8" PRId64 "  %8" PRId64 "  %-19s", j->job_id, j->state,
               command_count(rows, j->n_rows), percent_of(j), j->n_failed, j->n_rejected,
               command_time(time, j->submitted_us));
        print_text("  ", j->name ? j->name : "");
    }
}

static void print_one(const struct store *s, const struct job_info *j) {
    char time[20], a[32], b[32];
    printf("job %" PRId64 "  %s  %d%%\n", j->job_id, j->state, percent_of(j));
    if (j->name) print_text("  name        ", j->name);
    if (j->key) print_text("  key         ", j->key);
    print_text("  model       ", j->model ? j->model : "the daemon's default");
    if (j->weights) printf("  weights     %.16s\n", j->weights);
    printf("  rows        %s: %s done, %" PRId64 " failed; %" PRId64 " lines rejected\n", command_count(a, j->n_rows),
           command_count(b, j->n_done), j->n_failed, j->n_rejected);
    printf("  tokens      %s prompt, %s completion\n", command_count(a, j->prompt_tokens),
           command_count(b, j->completion_tokens));
    printf("  submitted   %s\n", command_time(time, j->submitted_us));
    printf("  started     %s\n", command_time(time, j->started_us));
    printf("  finished    %s\n", command_time(time, j->finished_us));
    if (j->finished_us > j->started_us && j->started_us > 0)
        printf("  speed       %.1f tokens/s\n",
               (double)j->completion_tokens / ((double)(j->finished_us - j->started_us) / 1e6));
    if (j->error) print_text("  error       ", j->error);
    if (!job_is_final(j)) print_daemon(s);
}

static void print_json(const struct store *s, const struct jobs *jobs, bool one) {
    if (one) {
        command_print_json(command_job_json(&jobs->list[0]));
        return;
    }
    json_t *list = json_array();
    for (size_t i = 0; i < jobs->n; i++) json_array_append_new(list, command_job_json(&jobs->list[i]));
    command_print_json(json_pack("{s:o, s:o}", "daemon", daemon_json(s), "jobs", list));
}

static int load(struct jobs *out, struct store *s, const struct args *args, bool one) {
    struct err err = ERR_INIT;
    if (!one) return job_list(s, &out->list, &out->n, &err) < 0 ? exit_with(ABOUT_DATABASE, &err) : EXIT_DONE;
    struct job_info job;
    int code = command_job(&job, s, args, 0);
    if (code != EXIT_DONE) return code;
    out->list = malloc(sizeof job);
    if (!out->list) abort();
    out->list[0] = job;
    out->n = 1;
    return EXIT_DONE;
}

static bool all_final(const struct jobs *jobs) {
    for (size_t i = 0; i < jobs->n; i++)
        if (!job_is_final(&jobs->list[i])) return false;
    return true;
}

static int show(struct store *s, const struct args *args, bool *over) {
    struct jobs jobs = {0};
    bool one = args->n_words > 0 || args->key;
    int code = load(&jobs, s, args, one);
    if (code == EXIT_DONE) {
        if (args->watch && !args->json && isatty(STDOUT_FILENO)) printf("\033[H\033[2J");
        if (args->json) print_json(s, &jobs, one);
        else if (one) print_one(s, &jobs.list[0]);
        else print_table(s, &jobs);
        *over = !args->watch || all_final(&jobs) || fflush(stdout) != 0;
    }
    jobs_clear(&jobs);
    return code;
}

int cmd_status(const struct args *args) {
    struct store *s = NULL;
    bool over = false;
    int code = command_open(&s, args, STORE_READ);
    if (args->watch) {
        signals_listen();
        command_quiet_pipe();
    }
    while (code == EXIT_DONE && !over) {
        code = show(s, args, &over);
        if (code == EXIT_DONE && !over) signals_wait(1000);
        if (args->watch && signals_seen()) code = signals_exit_code();
    }
    store_close(s);
    return code;
}
