/* mapped.c - see mapped.h. A handler may look at the table at any moment: an entry counts
 * from when its address is set, and that is set last and cleared first. */
#include "base/mapped.h"
#include "base/mem.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>

enum { MAX_FILES = 1024 };

static struct {
    atomic_uintptr_t begin; /* 0 = free */
    size_t bytes;
    char *path;
} files[MAX_FILES];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

void mapped_note(const void *data, size_t bytes, const char *path) {
    pthread_mutex_lock(&lock);
    int i = 0;
    while (i < MAX_FILES && files[i].begin) i++;
    if (i < MAX_FILES) {
        files[i].bytes = bytes;
        files[i].path = mem_strdup(path);
        files[i].begin = (uintptr_t)data;
    }
    pthread_mutex_unlock(&lock);
}

void mapped_forget(const void *data) {
    pthread_mutex_lock(&lock);
    for (int i = 0; data && i < MAX_FILES; i++) {
        if (files[i].begin != (uintptr_t)data) continue;
        files[i].begin = 0;
        free(files[i].path);
        files[i].path = NULL;
        break;
    }
    pthread_mutex_unlock(&lock);
}

const char *mapped_file(const void *address) {
    uintptr_t at = (uintptr_t)address;
    for (int i = 0; i < MAX_FILES; i++) {
        uintptr_t begin = files[i].begin;
        if (begin && at >= begin && at - begin < files[i].bytes) return files[i].path;
    }
    return NULL;
}
