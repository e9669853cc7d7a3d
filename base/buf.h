/* buf.h - a byte buffer that grows, with a ceiling from birth.
 *
 * Invariant: while data is not NULL, data[n] is '\0', so text can be handed to
 * C functions; the terminator is not counted in n. Past the ceiling an append
 * does nothing and `full` is set, so a caller appends freely and looks once. */
#ifndef BATCHD_BASE_BUF_H
#define BATCHD_BASE_BUF_H

#include <stdbool.h>
#include <stddef.h>

struct buf {     /* BUF_INIT(max) = empty; give back with buf_clear */
    char *data;  /* NULL while nothing was appended */
    size_t n;    /* bytes in use */
    size_t cap;  /* bytes allocated, terminator included */
    size_t max;  /* ceiling of n; 0 = 1 GiB */
    bool full;   /* an append was refused */
};

#define BUF_INIT(max_bytes) {NULL, 0, 0, (max_bytes), false}

void buf_clear(struct buf *b); /* frees; the ceiling stays */
void buf_reset(struct buf *b); /* empties, keeps the memory */

void buf_append(struct buf *b, const void *data, size_t n);
void buf_puts(struct buf *b, const char *s);
void buf_putc(struct buf *b, char c);
void buf_printf(struct buf *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* UTF-8 as a JSON string, its quotes included. */
void buf_put_json(struct buf *b, const char *s, size_t n);

/* Room for n more bytes at the returned place, or NULL past the ceiling; the
 * caller fills them and adds to b->n, then calls nothing but buf_* on it. */
char *buf_reserve(struct buf *b, size_t n);

/* The text as the caller's own, never NULL; the buffer is empty afterwards. */
char *buf_take(struct buf *b);

#endif
