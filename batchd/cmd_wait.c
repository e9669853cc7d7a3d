/* cmd_wait.c - batchd wait: until jobs are final, then with their exit code. */
#include "base/clock.h"
#include "batchd/command.h"
#include "batchd/exit.h"
#include "batchd/signals.h"
#include "batchd/verbs.h"
#include "batchd/watch.h"

/* Seconds that are left of --timeout; -1 = no limit. */
static int64_t seconds_left(const struct args *args, int64_t start_ns) {
    if (args->timeout_s < 0) return -1;
    int64_t left = args->timeout_s - (clock_mono_ns() - start_ns) / 1000000000;
    return left > 0 ? left : 0;
}

int cmd_wait(const struct args *args) {
    struct store *s = NULL;
    int64_t start = clock_mono_ns();
    size_t n = args->key ? 1 : args->n_words;
    int worst = EXIT_DONE, code = command_open(&s, args, STORE_READ);
    signals_listen();
    for (size_t i = 0; i < n && code == EXIT_DONE; i++) {
        struct job_info job = {0}, last = {0};
        code = command_job(&job, s, args, i);
        if (code != EXIT_DONE) break;
        int of_job = watch_job(s, job.job_id, seconds_left(args, start), args, &last);
        if (args->json) command_print_json(command_job_json(&last));
        job_info_clear(&job);
        job_info_clear(&last);
        if (of_job == EXIT_TIMEOUT || signals_seen()) code = of_job;
        else worst = command_worse(of_job, worst);
    }
    store_close(s);
    return code == EXIT_DONE ? worst : code;
}
