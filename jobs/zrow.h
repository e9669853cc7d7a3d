/* zrow.h - one text as one zstd frame, and the SQL functions that read it.
 *
 * Frames are standard zstd with a checksum. A text that does not get smaller by
 * more than 8 bytes stays as it is. The functions are those of the loadable extension
 * (sqlite_ext/), which has the limit from here. */
#ifndef BATCHD_JOBS_ZROW_H
#define BATCHD_JOBS_ZROW_H

#include "base/err.h"

#include <sqlite3.h>

enum { ZROW_MAX = 64 << 20 }; /* bytes of one decoded text */

/* batchd_text(x): TEXT and NULL pass through, a frame is decoded.
 * batchd_prompt(input, template, columns, prompt_column): what the row asked. */
int zrow_register(sqlite3 *db, struct err *err);

#endif
