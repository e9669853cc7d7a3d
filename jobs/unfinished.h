/* unfinished.h - jobs that were not loaded whole are removed: by their loader when it meets
 * an error, by the next loader or worker when it died. */
#ifndef BATCHD_JOBS_UNFINISHED_H
#define BATCHD_JOBS_UNFINISHED_H

#include "jobs/store.h"

/* Remove a job in state 'loading', whose lock the caller has: it is its loader, or there is none
 * any more. A job in another state stays as it is. */
void unfinished_remove(struct store *s, int64_t job_id);

/* Remove all whose loader is dead. */
void unfinished_clean(struct store *s);

#endif
