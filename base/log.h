/* log.h - messages for people, on stderr. Data goes to stdout and never through
 * here. Thread-safe; each message is one write of one line. */
#ifndef BATCHD_BASE_LOG_H
#define BATCHD_BASE_LOG_H

#include <stdbool.h>

#ifdef __cplusplus
extern "C" {
#endif

enum log_level { LOG_ERROR, LOG_WARN, LOG_INFO, LOG_DEBUG };

void log_set_level(enum log_level level); /* messages above it are dropped; starts at LOG_INFO */
enum log_level log_level(void);
void log_set_json(bool json); /* one JSON object a line: time, level, message */

void log_error(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void log_warn(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void log_info(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void log_debug(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* Called before each line, under the log's lock, so that a progress bar can
 * clear itself; NULL = none. */
void log_set_before(void (*fn)(void *arg), void *arg);

#ifdef __cplusplus
}
#endif
#endif
