/* pool.c - see pool.h.
 *
 * `ticket` holds the number of the job in its high half and how many of its parts
 * nobody has taken in its low half. Whoever lowers it by one owns a part, and a job
 * cannot end before that part is done; so `fn`, `arg` and `n_parts` may be read
 * after a part was taken, and not before. */
#include "kernels/cpu/pool.h"
#include "base/mem.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

/* A look costs about 30 ns. Between bursts of looks the processor is offered to others:
 * it may be the caller itself that waits for it. */
enum { LOOKS = 32, BURSTS = 24 };

/* A part is never smaller than LEAST_NS, and larger as soon as every thread has one; more
 * parts than threads let a thread that was held up do fewer. */
enum { LEAST_NS = 1500, PART_NS = 6000, PARTS_PER_THREAD = 4 };

struct pool {
    int n_threads;
    pthread_t *threads; /* n_threads - 1 */
    int n_started;
    pool_fn *fn;
    void *arg;
    int n_parts;
    _Atomic uint64_t ticket;
    atomic_int n_done;        /* parts of this job */
    atomic_int n_sleepers;
    atomic_bool caller_sleeps;
    atomic_bool stop;
    pthread_mutex_t lock;
    pthread_cond_t work_came, work_ended;
};

struct worker {
    struct pool *pool;
    int thread;
};

static void cpu_relax(void) {
#if defined __x86_64__
    __builtin_ia32_pause();
#endif
}

static bool take_part(struct pool *p, int *part) {
    uint64_t t = p->ticket;
    while ((uint32_t)t > 0) {
        if (!atomic_compare_exchange_weak(&p->ticket, &t, t - 1)) continue;
        *part = p->n_parts - (int)(uint32_t)t;
        return true;
    }
    return false;
}

static void run_parts(struct pool *p, int thread) {
    int part;
    while (take_part(p, &part)) {
        int n_parts = p->n_parts; /* the job may be gone once n_done has been raised */
        p->fn(p->arg, part, n_parts, thread);
        if (atomic_fetch_add(&p->n_done, 1) + 1 < n_parts || !p->caller_sleeps) continue;
        pthread_mutex_lock(&p->lock);
        pthread_cond_signal(&p->work_ended);
        pthread_mutex_unlock(&p->lock);
    }
}

static bool has_news(struct pool *p) {
    return (uint32_t)p->ticket > 0 || p->stop;
}

static void wait_for_work(struct pool *p) {
    for (int i = 0; i < BURSTS; i++) {
        for (int j = 0; j < LOOKS; j++) {
            if (has_news(p)) return;
            cpu_relax();
        }
        sched_yield();
    }
    pthread_mutex_lock(&p->lock);
    p->n_sleepers++; /* before the last look: the caller raises the ticket, then looks here */
    while (!has_news(p)) pthread_cond_wait(&p->work_came, &p->lock);
    p->n_sleepers--;
    pthread_mutex_unlock(&p->lock);
}

static void *work(void *arg) {
    struct worker *w = arg;
    struct pool *p = w->pool;
    for (;;) {
        wait_for_work(p);
        if (p->stop) break;
        run_parts(p, w->thread);
    }
    free(w);
    return NULL;
}

/* Signals are for the main thread, but a fault must find its handler in the thread that made it. */
static void block_signals(sigset_t *before) {
    static const int faults[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTRAP};
    sigset_t set;
    sigfillset(&set);
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++) sigdelset(&set, faults[i]);
    pthread_sigmask(SIG_SETMASK, &set, before);
}

static int start_threads(struct pool *p) {
    sigset_t before;
    int r = 0;
    block_signals(&before);
    for (int i = 1; i < p->n_threads && r == 0; i++) {
        struct worker *w = mem_alloc(sizeof *w);
        *w = (struct worker){p, i};
        r = pthread_create(&p->threads[i - 1], NULL, work, w);
        if (r == 0) p->n_started++;
        else free(w);
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return r;
}

int pool_new(struct pool **out, int n_threads, struct err *err) {
    struct pool *p = mem_zalloc(1, sizeof *p);
    p->n_threads = n_threads;
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->work_came, NULL);
    pthread_cond_init(&p->work_ended, NULL);
    p->threads = mem_zalloc((size_t)n_threads, sizeof *p->threads);
    int r = start_threads(p);
    if (r != 0) {
        int n = p->n_started;
        pool_free(p);
        return err_set(err, E_DEVICE, "only %d of %d threads could be started (%s); lower --threads", n + 1,
                       n_threads, strerror(r));
    }
    *out = p;
    return 0;
}

static void wake_sleepers(struct pool *p) {
    if (p->n_sleepers == 0) return;
    pthread_mutex_lock(&p->lock);
    pthread_cond_broadcast(&p->work_came);
    pthread_mutex_unlock(&p->lock);
}

void pool_free(struct pool *p) {
    if (!p) return;
    p->stop = true;
    wake_sleepers(p);
    for (int i = 0; i < p->n_started; i++) pthread_join(p->threads[i], NULL);
    pthread_cond_destroy(&p->work_came);
    pthread_cond_destroy(&p->work_ended);
    pthread_mutex_destroy(&p->lock);
    free(p->threads);
    free(p);
}

int pool_n_threads(const struct pool *p) {
    return p->n_threads;
}

/* Only parts that a worker has begun are waited for. */
static void wait_for_end(struct pool *p) {
    for (int i = 0; i < BURSTS; i++) {
        for (int j = 0; j < LOOKS; j++) {
            if (p->n_done == p->n_parts) return;
            cpu_relax();
        }
        sched_yield();
    }
    pthread_mutex_lock(&p->lock);
    p->caller_sleeps = true;
    while (p->n_done != p->n_parts) pthread_cond_wait(&p->work_ended, &p->lock);
    p->caller_sleeps = false;
    pthread_mutex_unlock(&p->lock);
}

void pool_run(struct pool *p, pool_fn *fn, void *arg, int n_parts) {
    if (n_parts <= 1 || p->n_threads == 1) {
        for (int i = 0; i < n_parts; i++) fn(arg, i, n_parts, 0);
        return;
    }
    p->fn = fn;
    p->arg = arg;
    p->n_parts = n_parts;
    p->n_done = 0;
    uint64_t job = (p->ticket >> 32) + 1;
    p->ticket = job << 32 | (uint32_t)n_parts;
    wake_sleepers(p);
    run_parts(p, 0);
    wait_for_end(p);
}

int pool_parts(const struct pool *p, int64_t n, double ns) {
    double work = (double)n * ns, parts = work / PART_NS;
    if (parts < p->n_threads) parts = p->n_threads;
    if (parts > p->n_threads * PARTS_PER_THREAD) parts = p->n_threads * PARTS_PER_THREAD;
    if (parts > work / LEAST_NS) parts = work / LEAST_NS;
    if (parts > (double)n) parts = (double)n;
    return p->n_threads == 1 || parts < 2 ? 1 : (int)parts;
}

void pool_share(int64_t n, int part, int n_parts, int64_t *begin, int64_t *end) {
    *begin = n * part / n_parts;
    *end = n * (part + 1) / n_parts;
}
