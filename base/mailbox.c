/* mailbox.c - see mailbox.h. A ring under one lock; waits are on the monotonic clock. */
#include "base/mailbox.h"
#include "base/clock.h"
#include "base/mem.h"

#include <assert.h>
#include <pthread.h>
#include <stdlib.h>
#include <time.h>

struct mailbox {
    pthread_mutex_t lock;
    pthread_cond_t changed; /* an item came or went, or the box was closed */
    void **ring;
    size_t cap, first, n;
    bool closed;
};

struct mailbox *mailbox_new(size_t cap) {
    assert(cap > 0);
    struct mailbox *m = mem_zalloc(1, sizeof *m);
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_mutex_init(&m->lock, NULL);
    pthread_cond_init(&m->changed, &attr);
    pthread_condattr_destroy(&attr);
    m->ring = mem_zalloc(cap, sizeof *m->ring);
    m->cap = cap;
    return m;
}

void mailbox_free(struct mailbox *m) {
    if (!m) return;
    assert(m->n == 0);
    pthread_cond_destroy(&m->changed);
    pthread_mutex_destroy(&m->lock);
    free(m->ring);
    free(m);
}

static struct timespec deadline_of(int64_t timeout_ms) {
    int64_t at = clock_mono_ns() + timeout_ms * 1000000;
    return (struct timespec){.tv_sec = at / 1000000000, .tv_nsec = at % 1000000000};
}

/* One wait; false when the deadline has passed. */
static bool wait_change(struct mailbox *m, int64_t timeout_ms, const struct timespec *deadline) {
    if (timeout_ms == 0) return false;
    if (timeout_ms < 0) return pthread_cond_wait(&m->changed, &m->lock) == 0;
    return pthread_cond_timedwait(&m->changed, &m->lock, deadline) == 0;
}

bool mailbox_put(struct mailbox *m, void *item, int64_t timeout_ms) {
    assert(item);
    struct timespec deadline = deadline_of(timeout_ms > 0 ? timeout_ms : 0);
    pthread_mutex_lock(&m->lock);
    while (!m->closed && m->n == m->cap)
        if (!wait_change(m, timeout_ms, &deadline)) break;
    bool ok = !m->closed && m->n < m->cap;
    if (ok) {
        m->ring[(m->first + m->n++) % m->cap] = item;
        pthread_cond_broadcast(&m->changed);
    }
    pthread_mutex_unlock(&m->lock);
    return ok;
}

void *mailbox_take(struct mailbox *m, int64_t timeout_ms) {
    struct timespec deadline = deadline_of(timeout_ms > 0 ? timeout_ms : 0);
    void *item = NULL;
    pthread_mutex_lock(&m->lock);
    while (m->n == 0 && !m->closed)
        if (!wait_change(m, timeout_ms, &deadline)) break;
    if (m->n > 0) {
        item = m->ring[m->first];
        m->first = (m->first + 1) % m->cap;
        m->n--;
        pthread_cond_broadcast(&m->changed);
    }
    pthread_mutex_unlock(&m->lock);
    return item;
}

void mailbox_close(struct mailbox *m) {
    pthread_mutex_lock(&m->lock);
    m->closed = true;
    pthread_cond_broadcast(&m->changed);
    pthread_mutex_unlock(&m->lock);
}

bool mailbox_is_closed(struct mailbox *m) {
    pthread_mutex_lock(&m->lock);
    bool closed = m->closed;
    pthread_mutex_unlock(&m->lock);
    return closed;
}
