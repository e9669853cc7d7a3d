/* watch.c - see watch.h. The store tells cheaply whether anybody has written. */
#include "batchd/watch.h"
#include "base/clock.h"
#include "base/log.h"
#include "batchd/command.h"
#include "batchd/exit.h"
#include "batchd/progress.h"
#include "batchd/signals.h"

#include <inttypes.h>

enum { LOOK_MS = 200 };

static void show(struct progress *p, const struct job_info *j) {
    struct progress_state now = {.n_total = j->n_rows,
                                 .n_finished = j->n_done + j->n_failed,
                                 .n_failed = j->n_failed,
                                 .n_tokens = j->completion_tokens,
                                 .n_running = -1,
                                 .what = "rows"};
    progress_update(p, &now);
}

/* Somebody must do the work: say so once when nobody does. */
static void warn_alone(struct store *s, int64_t job_id, const struct args *args, bool *warned) {
    char begin[600];
    if (*warned || worker_is_alive(store_path(s), NULL)) return;
    *warned = true;
    log_warn("no daemon serves this database; job %" PRId64 " waits for `%s serve`", job_id, command_begin(begin, args));
}

static int watch(struct store *s, int64_t job_id, int64_t timeout_s, bool while_served, const struct args *args,
                 struct job_info *last) {
    struct err err = ERR_INIT;
    struct job_info job = {0};
    struct progress *progress = progress_new(args);
    int64_t deadline = timeout_s < 0 ? INT64_MAX : clock_mono_ns() + timeout_s * 1000000000;
    int64_t version = -1;
    bool warned = false;
    int code;
    for (;;) {
        int64_t now = store_data_version(s);
        if (store_check_place(s, &err) < 0) {
            code = exit_with(ABOUT_DATABASE, &err);
            break;
        }
        if (now != version) {
            version = now;
            job_info_clear(&job);
            if (job_get(s, job_id, NULL, &job, &err) < 0) {
                code = exit_with(ABOUT_DATABASE, &err);
                break;
            }
            code = command_job_code(&job);
            if (job_is_final(&job)) break;
        }
        show(progress, &job);
        if (signals_seen()) {
            code = signals_exit_code();
            break;
        }
        if (clock_mono_ns() >= deadline) {
            log_warn("job %" PRId64 " is %s, %" PRId64 " of %" PRId64 " rows are there; the --timeout is over", job_id,
                     job.state, job.n_done + job.n_failed, job.n_rows);
            code = EXIT_TIMEOUT;
            break;
        }
        if (while_served && !worker_is_alive(store_path(s), NULL)) {
            code = EXIT_TEMPORARY;
            break;
        }
        if (!while_served) warn_alone(s, job_id, args, &warned);
        signals_wait(LOOK_MS);
    }
    progress_free(progress);
    /* Why it failed, also under -q: cron mails what is printed. Of `run` the summary has it. */
    if (!while_served && job.error && job_is_final(&job)) log_error("job %" PRId64 ": %s", job_id, job.error);
    if (last) *last = job;
    else job_info_clear(&job);
    return code;
}

int watch_job(struct store *s, int64_t job_id, int64_t timeout_s, const struct args *args, struct job_info *last) {
    return watch(s, job_id, timeout_s, false, args, last);
}

int watch_job_while_served(struct store *s, int64_t job_id, const struct args *args) {
    return watch(s, job_id, -1, true, args, NULL);
}
