/* worker.h - a worker from inside jobs/. */
#ifndef BATCHD_JOBS_WORKER_H
#define BATCHD_JOBS_WORKER_H

#include "jobs/store.h"

struct worker {
    struct store *s;  /* borrowed: the only writing connection of the process */
    int lock;         /* file descriptor of the lock */
    int64_t epoch;
    int64_t last_job; /* served last, for taking turns */
    int64_t n_published;
    void (*on_short)(int64_t job_id, const char *why); /* as in worker_options */
};

/* Has this job a lease to take? Without the index all that are done would be walked. */
#define LEASE_IS_READY(job_id) "EXISTS (SELECT 1 FROM lease l INDEXED BY lease_ready WHERE l.job_id = " job_id " AND l.state = 0)"

/* Begin a writing transaction; E_FENCED, and no transaction, when the epoch has moved on. */
int worker_begin(struct worker *w, struct err *err);

/* Commit when r is 0, else roll back; the error stays. */
int worker_commit(struct worker *w, int r, struct err *err);

/* Within a worker's transaction: close the job's leases whose rows all have results, and
 * the job itself where that was all of it (publish.c). */
int worker_close_done(struct worker *w, int64_t job_id, struct err *err);

#endif
