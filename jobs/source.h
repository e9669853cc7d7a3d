/* source.h - an input file in memory: a copy, a mapping where it is large, or for a
 * pipe a spooled copy.
 * The rows of it come from row_reader.h. */
#ifndef BATCHD_JOBS_SOURCE_H
#define BATCHD_JOBS_SOURCE_H

#include "base/err.h"

#include <stdbool.h>
#include <stddef.h>

struct source {      /* give back with source_close */
    const char *name; /* for messages: the path, or "standard input" */
    const char *data; /* size bytes; not terminated */
    size_t size;
    void *map;        /* NULL when size is 0 */
    size_t mapped;    /* bytes of map */
};

/* path "-" = standard input. E_NOT_FOUND, E_IO (a folder, no permission), E_PARSE (compressed, or
 * UTF-16), E_INTERRUPTED (a signal that the program handles came while it waited for a pipe). */
int source_open(struct source *out, const char *path, struct err *err);

/* Is it gone once it is read: standard input, a pipe? */
bool source_is_read_once(const char *path);

void source_close(struct source *s);

#endif
