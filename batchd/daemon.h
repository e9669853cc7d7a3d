/* daemon.h - serving a database: leases in, results out. `serve` and `run` are this.
 *
 * daemon_start starts the jobs thread, which owns the only writing connection and
 * the pipeline. The caller (main thread) watches signals and shows progress. */
#ifndef BATCHD_BATCHD_DAEMON_H
#define BATCHD_BATCHD_DAEMON_H

#include "engine/engine.h"
#include "jobs/jobs.h"

#include <stdbool.h>
#include <stdint.h>

struct daemon_options {           /* strings borrowed until daemon_join */
    const char *db_path;
    struct engine_options engine; /* model_dir, dtype and max_model_len come from each job */
    const char *default_model;    /* folder for jobs that name none; NULL = such jobs fail */
    int64_t only_job;             /* serve this job alone and end with it; 0 = all */
    bool once;                    /* end when nothing is left to do */
    int64_t lock_wait_ms;         /* for another daemon to go */
    void (*on_end)(void);         /* called by the jobs thread as the last thing; may be NULL */
};

struct daemon;

int daemon_start(struct daemon **out, const struct daemon_options *options, struct err *err);

/* Lease no more; finish what runs within 10 seconds, give up the rest, commit, end. */
void daemon_ask_stop(struct daemon *d);

/* Has the jobs thread ended? Waits at most timeout_ms for it. */
bool daemon_wait(struct daemon *d, int64_t timeout_ms);

struct daemon_stats {
    int64_t job_id;               /* leased from last, 0 = none yet */
    int64_t rows_published;       /* since start */
    struct engine_stats engine;   /* of the engine that is loaded now */
    bool engine_is_loaded;
    bool model_failed;            /* only_job's model could not be loaded: daemon_join says why */
};
void daemon_stats(struct daemon *d, struct daemon_stats *out);

/* Wait for the end and free. 0, or why it ended: E_BUSY another daemon holds the lock,
 * E_FENCED another took over, E_DEVICE the engine failed, or an error of the store. */
int daemon_join(struct daemon *d, struct err *err);

#endif
