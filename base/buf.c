/* buf.c - see buf.h. */
#include "base/buf.h"
#include "base/mem.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { DEFAULT_MAX = 1 << 30 };

void buf_clear(struct buf *b) {
    free(b->data);
    b->data = NULL;
    b->n = b->cap = 0;
    b->full = false;
}

void buf_reset(struct buf *b) {
    b->n = 0;
    b->full = false;
    if (b->data) b->data[0] = '\0';
}

char *buf_reserve(struct buf *b, size_t n) {
    size_t max = b->max ? b->max : DEFAULT_MAX;
    if (b->full || n > max - b->n) {
        b->full = true;
        return NULL;
    }
    if (b->n + n + 1 > b->cap) {
        size_t cap = b->cap ? b->cap * 2 : 64;
        if (cap < b->n + n + 1) cap = b->n + n + 1;
        b->data = mem_realloc(b->data, cap, 1);
        b->cap = cap;
    }
    b->data[b->n + n] = '\0';
    return b->data + b->n;
}

void buf_append(struct buf *b, const void *data, size_t n) {
    char *at = buf_reserve(b, n);
    if (!at) return;
    if (n) memcpy(at, data, n);
    b->n += n;
}

void buf_puts(struct buf *b, const char *s) {
    buf_append(b, s, strlen(s));
}

void buf_putc(struct buf *b, char c) {
    buf_append(b, &c, 1);
}

void buf_printf(struct buf *b, const char *fmt, ...) {
    va_list ap, again;
    va_start(ap, fmt);
    va_copy(again, ap);
    int n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    char *at = n < 0 ? NULL : buf_reserve(b, (size_t)n);
    if (at) {
        vsnprintf(at, (size_t)n + 1, fmt, again);
        b->n += (size_t)n;
    }
    va_end(again);
}

void buf_put_json(struct buf *b, const char *s, size_t n) {
    buf_putc(b, '"');
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)s[i];
        if (c == '"' || c == '\\') buf_printf(b, "\\%c", c);
        else if (c == '\n') buf_puts(b, "\\n");
        else if (c == '\t') buf_puts(b, "\\t");
        else if (c == '\r') buf_puts(b, "\\r");
        else if (c < 0x20) buf_printf(b, "\\u%04x", c);
        else buf_putc(b, s[i]);
    }
    buf_putc(b, '"');
}

char *buf_take(struct buf *b) {
    char *text = b->data ? b->data : mem_strndup("", 0);
    b->data = NULL;
    b->n = b->cap = 0;
    b->full = false;
    return text;
}
