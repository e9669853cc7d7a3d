/* team.h - threads that do one piece of work together: each runs the same function, which takes
 * parts of the work (by an atomic counter, say) until none is left.
 *
 * Where the system gives fewer threads, or none, the work takes longer. */
#ifndef BATCHD_BASE_TEAM_H
#define BATCHD_BASE_TEAM_H

#include <pthread.h>
#include <stdint.h>

enum { TEAM_MAX = 16 };

struct team { /* all zero = nobody */
    pthread_t threads[TEAM_MAX];
    int n;
};

/* Begins beside the calling thread, with a thread for each other core, `most` of them at most;
 * arg stays until team_end. */
void team_begin(struct team *t, int64_t most, void *(*work)(void *), void *arg);
void team_end(struct team *t); /* when all have returned; all zero is fine */

/* All of the work: the calling thread takes part. */
void team_do(int64_t most, void *(*work)(void *), void *arg);

#endif
