/* log.c - see log.h. */
#include "base/log.h"
#include "base/buf.h"
#include "base/clock.h"
#include "base/utf8.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static atomic_int max_level = LOG_INFO;
static atomic_bool as_json;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static void (*before)(void *arg);
static void *before_arg;

void log_set_level(enum log_level level) {
    max_level = (int)level;
}

enum log_level log_level(void) {
    return (enum log_level)max_level;
}

void log_set_json(bool json) {
    as_json = json;
}

void log_set_before(void (*fn)(void *arg), void *arg) {
    pthread_mutex_lock(&lock);
    before = fn;
    before_arg = arg;
    pthread_mutex_unlock(&lock);
}

/* Names of foreign files get into messages: what is no UTF-8 becomes U+FFFD. */
static void line_json(struct buf *out, const char *level, const char *text) {
    buf_printf(out, "{\"time_us\":%" PRId64 ",\"level\":\"%s\",\"message\":", clock_wall_us(), level);
    char *valid = utf8_repaired(text);
    buf_put_json(out, valid, strlen(valid));
    free(valid);
    buf_puts(out, "}\n");
}

/* A control character must not reach a terminal. */
static void line_text(struct buf *out, enum log_level level, const char *name, const char *text) {
    buf_puts(out, "batchd: ");
    if (level != LOG_INFO) buf_printf(out, "%s: ", name);
    for (; *text; text++) buf_putc(out, (unsigned char)*text < 0x20 || *text == 0x7f ? ' ' : *text);
    buf_putc(out, '\n');
}

static void emit(enum log_level level, const char *fmt, va_list ap) {
    static const char *const names[] = {"error", "warning", "info", "debug"};
    if ((int)level > max_level) return;
    char text[2000];
    vsnprintf(text, sizeof text, fmt, ap);
    struct buf out = BUF_INIT(16384);
    if (as_json) line_json(&out, names[level], text);
    else line_text(&out, level, names[level], text);
    pthread_mutex_lock(&lock);
    if (before) before(before_arg);
    ssize_t n = write(STDERR_FILENO, out.data, out.n);
    (void)n; /* there is nowhere left to complain */
    pthread_mutex_unlock(&lock);
    buf_clear(&out);
}

#define DEFINE(name, level)            \
    void name(const char *fmt, ...) {  \
        va_list ap;                    \
        va_start(ap, fmt);             \
        emit(level, fmt, ap);          \
        va_end(ap);                    \
    }
DEFINE(log_error, LOG_ERROR)
DEFINE(log_warn, LOG_WARN)
DEFINE(log_info, LOG_INFO)
DEFINE(log_debug, LOG_DEBUG)
