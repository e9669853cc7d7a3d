/* mem.c - see mem.h. */
#include "base/mem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef MEM_GUARD
static _Thread_local bool is_forbidden;

bool mem_forbid(bool forbidden) {
    bool before = is_forbidden;
    is_forbidden = forbidden;
    return before;
}

static void check_allowed(void) {
    if (!is_forbidden) return;
    is_forbidden = false;
    fprintf(stderr, "batchd: memory is allocated in a step\n");
    abort();
}
#else
bool mem_forbid(bool forbidden) {
    return false;
}

static void check_allowed(void) {
}
#endif

static void *or_die(void *p, size_t bytes) {
    check_allowed();
    if (p) return p;
    fprintf(stderr, "batchd: out of memory (%zu bytes)\n", bytes);
    abort();
}

static size_t product_or_die(size_t n, size_t size) {
    size_t bytes = 0;
    if (!size_mul(n, size, &bytes)) or_die(NULL, (size_t)-1);
    return bytes;
}

void *mem_alloc(size_t bytes) {
    return or_die(malloc(bytes ? bytes : 1), bytes);
}

void *mem_zalloc(size_t n, size_t size) {
    size_t bytes = product_or_die(n, size);
    return or_die(calloc(bytes ? bytes : 1, 1), bytes);
}

void *mem_realloc(void *p, size_t n, size_t size) {
    size_t bytes = product_or_die(n, size);
    return or_die(realloc(p, bytes ? bytes : 1), bytes);
}

char *mem_strdup(const char *s) {
    return s ? mem_strndup(s, strlen(s)) : NULL;
}

char *mem_strndup(const char *s, size_t n) {
    char *copy = mem_alloc(n + 1);
    if (n) memcpy(copy, s, n);
    copy[n] = '\0';
    return copy;
}

void *mem_dup(const void *p, size_t bytes) {
    void *copy = mem_alloc(bytes);
    if (bytes) memcpy(copy, p, bytes);
    return copy;
}

void *mem_try(size_t bytes) {
    check_allowed();
    return malloc(bytes ? bytes : 1);
}

void *mem_try_zalloc(size_t n, size_t size) {
    size_t bytes;
    check_allowed();
    if (!size_mul(n, size, &bytes)) return NULL;
    return calloc(bytes ? bytes : 1, 1);
}

bool size_mul(size_t a, size_t b, size_t *out) {
    size_t r;
    if (__builtin_mul_overflow(a, b, &r)) return false;
    *out = r;
    return true;
}

bool size_add(size_t a, size_t b, size_t *out) {
    size_t r;
    if (__builtin_add_overflow(a, b, &r)) return false;
    *out = r;
    return true;
}
