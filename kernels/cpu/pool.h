/* pool.h - the threads that compute on the CPU device.
 *
 * pool_run splits work into as many parts as there are threads and returns when
 * all are done; the calling thread does part 0. Idle threads spin for some
 * microseconds, since the next operation usually follows at once, and then sleep. */
#ifndef BATCHD_KERNELS_CPU_POOL_H
#define BATCHD_KERNELS_CPU_POOL_H

#include <stdint.h>

struct pool;

struct pool *pool_new(int n_threads);
void pool_free(struct pool *p); /* NULL is fine */
int pool_n_threads(const struct pool *p);

typedef void pool_fn(void *arg, int part, int n_parts);
void pool_run(struct pool *p, pool_fn *fn, void *arg);

/* Part `part` of `n` equal things: [*begin, *end). */
void pool_share(int64_t n, int part, int n_parts, int64_t *begin, int64_t *end);

#endif
