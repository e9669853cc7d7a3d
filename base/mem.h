/* mem.h - allocation, and arithmetic on sizes that come from outside.
 *
 * mem_alloc and friends never return NULL: a small allocation that fails ends
 * the process, and the queue brings the work back. Whatever takes its size from
 * a file or a row uses mem_try and checks. All memory goes back with free(). */
#ifndef BATCHD_BASE_MEM_H
#define BATCHD_BASE_MEM_H

#include <stdbool.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

void *mem_alloc(size_t bytes);                /* not cleared */
void *mem_zalloc(size_t n, size_t size);      /* cleared; n * size must not overflow */
void *mem_realloc(void *p, size_t n, size_t size);
char *mem_strdup(const char *s);              /* NULL gives NULL */
char *mem_strndup(const char *s, size_t n);   /* n bytes and a terminator */
void *mem_dup(const void *p, size_t bytes);

/* Debug builds (V=asan, V=tsan): while it is forbidden to this thread, a call of the above or
 * below ends the process, for it was said that nothing is allocated here. Otherwise nothing
 * happens. Returns how it was before. */
bool mem_forbid(bool forbidden);

void *mem_try(size_t bytes);          /* NULL when there is none */
void *mem_try_zalloc(size_t n, size_t size); /* cleared; NULL when there is none or n * size overflows */

/* *out = a * b or a + b; false, and *out untouched, on overflow. */
bool size_mul(size_t a, size_t b, size_t *out);
bool size_add(size_t a, size_t b, size_t *out);

#ifdef __cplusplus
}
#endif
#endif
