/* progress.h - how far it is, on standard error.
 *
 * On a terminal a bar that is redrawn in place and makes way for messages;
 * elsewhere a message every 30 seconds; nothing with -q or --no-progress. Calls
 * come from one thread; messages may come from any. */
#ifndef BATCHD_BATCHD_PROGRESS_H
#define BATCHD_BATCHD_PROGRESS_H

#include "batchd/options.h"

#include <stdbool.h>
#include <stdint.h>

struct progress_state {
    int64_t n_total, n_finished; /* rows */
    int64_t n_failed;            /* of those */
    int64_t n_tokens;            /* completion tokens so far; the rate is made from differences */
    int32_t n_running;           /* sequences in the batch, -1 = not known here */
    const char *what;            /* "rows", "bytes" */
};

struct progress;

struct progress *progress_new(const struct args *args);

/* How long to wait between updates, ms: short for a bar. */
int64_t progress_interval_ms(const struct progress *p);

void progress_update(struct progress *p, const struct progress_state *state);

/* Take the bar away; it comes back with the next update. */
void progress_clear(struct progress *p);
void progress_free(struct progress *p); /* clears; NULL is fine */

#endif
