/* serving.h - a daemon seen from the main thread: signals stop it, progress is shown,
 * its end becomes an exit code. */
#ifndef BATCHD_BATCHD_SERVING_H
#define BATCHD_BATCHD_SERVING_H

#include "batchd/daemon.h"
#include "batchd/options.h"

/* Run a daemon to its end. `reader` is the main thread's own connection, for progress.
 * The exit code; a signal's first arrival is not an error here (signals_seen tells).
 * *busy (may be NULL): another daemon serves the database, and nothing was said. */
int serve_until_end(const struct daemon_options *options, struct store *reader, const struct args *args, bool *busy);

#endif
