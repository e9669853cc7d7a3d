/* pool.h - the threads that compute on the CPU device.
 *
 * pool_run cuts work into parts and returns when all are done. The calling thread
 * and the workers take parts one by one, so a worker that the system does not run
 * just now delays nobody: on a shared machine a fixed share a thread would make
 * every operation as slow as the unluckiest thread. Which thread takes which part
 * must not matter to the result; a part's numbers come from its index alone.
 *
 * Idle workers spin for some microseconds, since the next operation usually
 * follows at once, and then sleep. */
#ifndef BATCHD_KERNELS_CPU_POOL_H
#define BATCHD_KERNELS_CPU_POOL_H

#include "base/err.h"

#include <stdint.h>

struct pool;

int pool_new(struct pool **out, int n_threads, struct err *err); /* n_threads counts the caller */
void pool_free(struct pool *p);                                  /* NULL is fine */
int pool_n_threads(const struct pool *p);

/* thread: 0 .. n_threads - 1, for scratch of one's own. */
typedef void pool_fn(void *arg, int part, int n_parts, int thread);
void pool_run(struct pool *p, pool_fn *fn, void *arg, int n_parts);

/* How many parts n equal things deserve that take about `ns` nanoseconds each:
 * one when handing over would cost more than it saves. */
int pool_parts(const struct pool *p, int64_t n, double ns);

/* Part `part` of `n` equal things: [*begin, *end). */
void pool_share(int64_t n, int part, int n_parts, int64_t *begin, int64_t *end);

#endif
