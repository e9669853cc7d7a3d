/* signals.h - Ctrl-C and SIGTERM, asked for and heard by the main thread.
 *
 * The first one raises a flag and wakes signals_wait; the second ends the process
 * at once, which is safe at any moment: what is committed is committed. */
#ifndef BATCHD_BATCHD_SIGNALS_H
#define BATCHD_BATCHD_SIGNALS_H

#include <stdbool.h>
#include <stdint.h>

/* From now on SIGINT and SIGTERM are heard, and SIGPIPE is ignored. Call before
 * threads are made; they inherit the handlers and do no harm. */
void signals_listen(void);

/* From now on a mapped file that is cut short under us ends the process with a message that
 * names it, and exit code 74. */
void signals_guard_files(void);

/* 0, or the signal that came first. */
int signals_seen(void);

/* The same as a flag for code that takes a pointer to one. */
extern volatile int signals_stop;

/* Wait until a signal comes, signals_wake is called or timeout_ms are over. */
void signals_wait(int64_t timeout_ms);
void signals_wake(void); /* from any thread */

/* 128 + the signal that came. */
int signals_exit_code(void);

#endif
