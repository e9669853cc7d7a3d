/* serving.c - see serving.h. */
#include "batchd/serving.h"
#include "base/log.h"
#include "batchd/command.h"
#include "batchd/exit.h"
#include "batchd/progress.h"
#include "batchd/signals.h"

#include <inttypes.h>

static void show(struct progress *p, struct daemon *d, struct store *reader) {
    struct daemon_stats now;
    struct job_info job = {0};
    daemon_stats(d, &now);
    if (now.job_id == 0 || job_get(reader, now.job_id, NULL, &job, NULL) < 0) return;
    struct progress_state state = {.n_total = job.n_rows,
                                   .n_finished = job.n_done + job.n_failed,
                                   .n_failed = job.n_failed,
                                   .n_tokens = job.completion_tokens,
                                   .n_running = now.engine_is_loaded ? now.engine.n_running : 0,
                                   .what = "rows"};
    if (job_is_final(&job)) progress_clear(p);
    else progress_update(p, &state);
    job_info_clear(&job);
}

static int end_code(struct daemon *d, bool model_failed, bool once, bool *busy) {
    struct err err = ERR_INIT;
    int r = daemon_join(d, &err);
    if (busy) *busy = r == E_BUSY;
    if (r == 0 || (busy && r == E_BUSY)) return EXIT_DONE;
    if (once && r == E_BUSY) return log_info("%s", err.text), EXIT_TEMPORARY; /* cron's next one meets the last one: no news */
    if (model_failed) return exit_with(ABOUT_MODEL, &err);
    log_error("%s", err.text);
    return r == E_DEVICE ? EXIT_ENGINE : exit_code(ABOUT_DATABASE, r);
}

int serve_until_end(const struct daemon_options *options, struct store *reader, const struct args *args, bool *busy) {
    struct daemon *d;
    struct daemon_options o = *options;
    struct err err = ERR_INIT;
    struct daemon_stats last;
    bool stopping = false;
    o.on_end = signals_wake;
    if (daemon_start(&d, &o, &err) < 0) return exit_with(ABOUT_DATABASE, &err);
    struct progress *progress = progress_new(args);
    while (!daemon_wait(d, 0)) {
        if (signals_seen() && !stopping) {
            stopping = true;
            daemon_stats(d, &last);
            log_info("stopping: rows at work may finish within 10 s; once more ends at once");
            daemon_ask_stop(d);
        }
        show(progress, d, reader);
        signals_wait(progress_interval_ms(progress));
    }
    progress_free(progress);
    daemon_stats(d, &last);
    if (last.rows_published > 0) log_info("%" PRId64 " row%s saved", last.rows_published, command_s(last.rows_published));
    return end_code(d, last.model_failed, o.once, busy);
}
