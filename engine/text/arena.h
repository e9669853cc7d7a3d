/* arena.h - memory that is given back all at once: that of a template, or of one rendering.
 *
 * An arena belongs to one thread. Blocks are cleared and aligned to 16 bytes. */
#ifndef BATCHD_ENGINE_TEXT_ARENA_H
#define BATCHD_ENGINE_TEXT_ARENA_H

#include <stddef.h>

struct arena { /* all zero = empty; give back with arena_clear */
    struct arena_chunk *chunks;
    size_t bytes; /* handed out */
};

void *arena_alloc(struct arena *a, size_t bytes);
char *arena_text(struct arena *a, const char *s, size_t n); /* a copy with a terminator */

/* A block of old_bytes, now of `bytes`; it may move. What is new is not cleared. */
void *arena_resize(struct arena *a, void *p, size_t old_bytes, size_t bytes);

void arena_clear(struct arena *a);

#endif
