/* mapped.h - files that are mapped for reading, remembered by address: when one is cut short
 * meanwhile, touching it is a SIGBUS, and the handler can say which file it was.
 *
 * Any thread may note and forget; mapped_file may be called from a signal handler. */
#ifndef BATCHD_BASE_MAPPED_H
#define BATCHD_BASE_MAPPED_H

#include <stddef.h>

/* Beyond a thousand files at once the rest go without a name. */
void mapped_note(const void *data, size_t bytes, const char *path);

/* Before munmap; NULL is fine. */
void mapped_forget(const void *data);

/* The path of the file that is mapped there, or NULL. */
const char *mapped_file(const void *address);

#endif
