/* file.h - whole files in and out. */
#ifndef BATCHD_BASE_FILE_H
#define BATCHD_BASE_FILE_H

#include "base/err.h"

#include <stddef.h>
#include <stdio.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Read all of a regular file of at most `max` bytes. *data is the caller's and
 * has a terminator behind its n bytes. E_NOT_FOUND when there is none, E_RANGE
 * above max. */
int file_read(const char *path, size_t max, char **data, size_t *n, struct err *err);

/* "dir/name", the caller's to free. */
char *path_join(const char *dir, const char *name);

/* A file that replaces `path` whole or not at all: written beside it under
 * another name, synced, renamed. Where `path` is a symbolic link it stays one, and
 * what it names is replaced. file_new_commit or file_new_abort ends it and frees. */
struct file_new;
int file_new_open(struct file_new **out, const char *path, struct err *err);
FILE *file_new_stream(struct file_new *f); /* borrowed until commit or abort */
const char *file_new_path(const struct file_new *f); /* the temporary name */
int file_new_commit(struct file_new *f, struct err *err);
void file_new_abort(struct file_new *f); /* NULL is fine */

#ifdef __cplusplus
}
#endif
#endif
