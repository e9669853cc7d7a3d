/* seen_ids.h - which ids a file has had, and on what line. 128 bits of hash stand for an
 * id's text, so that a million of them take 48 MiB at most. */
#ifndef BATCHD_JOBS_SEEN_IDS_H
#define BATCHD_JOBS_SEEN_IDS_H

#include <stddef.h>
#include <stdint.h>

struct seen_ids { /* all zero = empty; give back with seen_ids_clear */
    struct seen_id *table;
    size_t size, n; /* size: a power of two, at least twice n */
};

/* The line where the id was seen before; 0 = never, and from now on it was on `line` (from 1). */
int64_t seen_ids_add(struct seen_ids *seen, const char *id, int64_t line);
void seen_ids_clear(struct seen_ids *seen);

#endif
