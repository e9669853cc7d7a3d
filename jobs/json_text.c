/* json_text.c - see json_text.h. */
#include "jobs/json_text.h"
#include "base/buf.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_TEXT = 64 << 20 };

/* The shortest decimals that read back as x: 0.1 is "0.1", where jansson writes 17 digits. */
static void put_real(struct buf *out, double x) {
    char text[40];
    int digits = 15;
    do snprintf(text, sizeof text, "%.*g", digits, x);
    while (strtod(text, NULL) != x && digits++ < 17);
    if (!strpbrk(text, ".e")) strcat(text, ".0");
    buf_puts(out, text);
}

/* A string of JSON text, its quotes included. */
static size_t string_length(const char *json) {
    size_t n = 1;
    while (json[n] && json[n] != '"') n += json[n] == '\\' && json[n + 1] ? 2 : 1;
    return n + 1;
}

/* jansson's own text, its reals replaced. */
char *json_text(const json_t *v) {
    char *json = json_dumps(v, JSON_ENCODE_ANY | JSON_COMPACT);
    struct buf out = BUF_INIT(MAX_TEXT);
    for (const char *at = json; at && *at;) {
        bool is_number = *at == '-' || (*at >= '0' && *at <= '9');
        size_t n = is_number ? strspn(at, "+-.0123456789eE") : *at == '"' ? string_length(at) : 1;
        if (is_number && strcspn(at, ".eE") < n) put_real(&out, strtod(at, NULL));
        else buf_append(&out, at, n);
        at += n;
    }
    free(json);
    return buf_take(&out);
}
