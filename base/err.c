/* err.c - see err.h. */
#include "base/err.h"
#include "base/utf8.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* Bytes of foreign files end up in messages, and these in a terminal, in JSON and in the
 * database: no control characters, and nothing that is not UTF-8, such as what the limit has cut. */
static void one_line(char *s) {
    for (char *at = s; *at; at++)
        if ((unsigned char)*at < 0x20 || *at == 0x7f) *at = ' ';
    for (size_t n; (n = utf8_valid_prefix(s, strlen(s))) < strlen(s); s += n)
        s[n] = utf8_is_incomplete(s + n, strlen(s + n)) ? '\0' : '?';
}

int err_set(struct err *err, int code, const char *fmt, ...) {
    if (!err) return code;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(err->text, sizeof err->text, fmt, ap);
    va_end(ap);
    one_line(err->text);
    err->code = code;
    return code;
}

int err_wrap(struct err *err, const char *fmt, ...) {
    if (!err) return E_FAIL;
    char old[sizeof err->text], head[sizeof err->text];
    memcpy(old, err->text, sizeof old);
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(head, sizeof head, fmt, ap);
    va_end(ap);
    size_t n = strlen(head);
    if (n > sizeof err->text - 3) n = sizeof err->text - 3;
    memcpy(err->text, head, n);
    snprintf(err->text + n, sizeof err->text - n, ": %.*s", (int)(sizeof err->text - n - 3), old);
    one_line(err->text);
    return err->code;
}
