/* pool.c - see pool.h. A generation counter tells the workers that there is work;
 * a count of sleepers tells the caller whether anybody must be woken. */
#include "kernels/cpu/pool.h"
#include "base/mem.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>

enum { SPINS = 2000 }; /* some 10-20 microseconds */

struct pool {
    int n_threads;
    pthread_t *threads; /* n_threads - 1 */
    pool_fn *fn;
    void *arg;
    atomic_uint generation; /* raised for each pool_run */
    atomic_int busy;        /* workers that have not finished this generation */
    atomic_int sleepers;
    atomic_bool stop;
    pthread_mutex_t lock;
    pthread_cond_t wake;
};

struct worker {
    struct pool *pool;
    int part;
};

static void cpu_relax(void) {
#if defined __x86_64__
    __builtin_ia32_pause();
#endif
}

static void wait_for_work(struct pool *p, unsigned seen) {
    for (int i = 0; i < SPINS; i++) {
        if (p->generation != seen || p->stop) return;
        cpu_relax();
    }
    pthread_mutex_lock(&p->lock);
    p->sleepers++;
    while (p->generation == seen && !p->stop) pthread_cond_wait(&p->wake, &p->lock);
    p->sleepers--;
    pthread_mutex_unlock(&p->lock);
}

static void *work(void *arg) {
    struct worker *w = arg;
    struct pool *p = w->pool;
    unsigned seen = 0;
    for (;;) {
        wait_for_work(p, seen);
        if (p->stop) break;
        seen++;
        p->fn(p->arg, w->part, p->n_threads);
        p->busy--;
    }
    free(w);
    return NULL;
}

struct pool *pool_new(int n_threads) {
    struct pool *p = mem_zalloc(1, sizeof *p);
    p->n_threads = n_threads;
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->wake, NULL);
    p->threads = mem_zalloc((size_t)n_threads, sizeof *p->threads);
    for (int i = 1; i < n_threads; i++) {
        struct worker *w = mem_alloc(sizeof *w);
        *w = (struct worker){p, i};
        if (pthread_create(&p->threads[i - 1], NULL, work, w) != 0) abort();
    }
    return p;
}

static void wake_sleepers(struct pool *p) {
    if (p->sleepers == 0) return;
    pthread_mutex_lock(&p->lock);
    pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->lock);
}

void pool_free(struct pool *p) {
    if (!p) return;
    p->stop = true;
    wake_sleepers(p);
    for (int i = 1; i < p->n_threads; i++) pthread_join(p->threads[i - 1], NULL);
    pthread_cond_destroy(&p->wake);
    pthread_mutex_destroy(&p->lock);
    free(p->threads);
    free(p);
}

int pool_n_threads(const struct pool *p) {
    return p->n_threads;
}

void pool_run(struct pool *p, pool_fn *fn, void *arg) {
    if (p->n_threads == 1) {
        fn(arg, 0, 1);
        return;
    }
    p->fn = fn;
    p->arg = arg;
    p->busy = p->n_threads - 1;
    p->generation++;
    wake_sleepers(p);
    fn(arg, 0, p->n_threads);
    for (int spins = 0; p->busy != 0; spins++) {
        if (spins < SPINS) cpu_relax();
        else sched_yield();
    }
}

void pool_share(int64_t n, int part, int n_parts, int64_t *begin, int64_t *end) {
    *begin = n * part / n_parts;
    *end = n * (part + 1) / n_parts;
}
