/* watch.h - wait for jobs that another process works on. */
#ifndef BATCHD_BATCHD_WATCH_H
#define BATCHD_BATCHD_WATCH_H

#include "batchd/options.h"
#include "jobs/jobs.h"

/* Wait until the job is final, with progress. Returns the job's exit code, 124 after
 * timeout_s (< 0 = never), 130 or 143 after a signal. *last (may be NULL) is the job
 * as it was last seen, the caller's. */
int watch_job(struct store *s, int64_t job_id, int64_t timeout_s, const struct args *args, struct job_info *last);

/* The same, but when nobody serves the database any more it returns 75. */
int watch_job_while_served(struct store *s, int64_t job_id, const struct args *args);

#endif
