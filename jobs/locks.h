/* locks.h - who is alive on a database: locks on the file PATH.lock beside it.
 *
 * The daemon holds the whole file (flock); the loader of job J holds byte 1 + J (an
 * open-file-description lock, which does not meet flock on a local disk). The kernel
 * gives both back when their process dies, so there is no clock and no process id
 * that could be mistaken. The file stays; it holds the daemon's pid for messages. */
#ifndef BATCHD_JOBS_LOCKS_H
#define BATCHD_JOBS_LOCKS_H

#include "base/err.h"

#include <stdint.h>

/* Wait at most wait_ms; close(*fd) gives it back. E_BUSY names the holder's pid. */
int lock_daemon(int *fd, const char *db_path, int64_t wait_ms, struct err *err);

/* At once or E_BUSY: the job's loader is alive. */
int lock_loader(int *fd, const char *db_path, int64_t job_id, struct err *err);

#endif
