/* arena.c - see arena.h. Small blocks share chunks; a large one has a chunk of its own,
 * so that a growing text can be moved by realloc and leaves nothing behind. */
#include "engine/text/arena.h"
#include "base/mem.h"

#include <stdlib.h>
#include <string.h>

enum { CHUNK = 8192, LARGE = 2048 };

struct arena_chunk {
    struct arena_chunk *prev, *next; /* next is the older one */
    size_t used, cap;
    _Alignas(16) char data[];
};

static size_t rounded(size_t bytes) {
    return (bytes + 15) & ~(size_t)15;
}

static struct arena_chunk *chunk_new(size_t cap) {
    struct arena_chunk *c = mem_alloc(sizeof *c + cap);
    *c = (struct arena_chunk){.cap = cap};
    return c;
}

static void push_front(struct arena *a, struct arena_chunk *c) {
    c->next = a->chunks;
    if (c->next) c->next->prev = c;
    a->chunks = c;
}

/* Behind the first, which still has room for small blocks. */
static void push_second(struct arena *a, struct arena_chunk *c) {
    c->prev = a->chunks;
    c->next = c->prev->next;
    if (c->next) c->next->prev = c;
    c->prev->next = c;
}

static void *large(struct arena *a, size_t bytes) {
    struct arena_chunk *c = chunk_new(bytes);
    c->used = bytes;
    if (a->chunks) push_second(a, c);
    else push_front(a, c);
    return c->data;
}

static void *uncleared(struct arena *a, size_t bytes) {
    bytes = rounded(bytes);
    a->bytes += bytes;
    if (bytes > LARGE) return large(a, bytes);
    struct arena_chunk *c = a->chunks;
    if (!c || c->used + bytes > c->cap) push_front(a, c = chunk_new(CHUNK));
    void *p = c->data + c->used;
    c->used += bytes;
    return p;
}

void *arena_alloc(struct arena *a, size_t bytes) {
    return memset(uncleared(a, bytes), 0, bytes);
}

char *arena_text(struct arena *a, const char *s, size_t n) {
    char *copy = uncleared(a, n + 1);
    if (n) memcpy(copy, s, n);
    copy[n] = '\0';
    return copy;
}

void *arena_resize(struct arena *a, void *p, size_t old_bytes, size_t bytes) {
    size_t old = rounded(old_bytes), now = rounded(bytes);
    if (old > LARGE && now > LARGE) {
        struct arena_chunk *c = (struct arena_chunk *)((char *)p - offsetof(struct arena_chunk, data));
        c = mem_realloc(c, 1, sizeof *c + now);
        c->used = c->cap = now;
        if (c->prev) c->prev->next = c;
        else a->chunks = c;
        if (c->next) c->next->prev = c;
        a->bytes += now - old;
        return c->data;
    }
    void *moved = uncleared(a, bytes);
    if (p) memcpy(moved, p, old_bytes < bytes ? old_bytes : bytes);
    return moved;
}

void arena_clear(struct arena *a) {
    while (a->chunks) {
        struct arena_chunk *next = a->chunks->next;
        free(a->chunks);
        a->chunks = next;
    }
    a->bytes = 0;
}
