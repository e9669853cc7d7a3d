/* paths.h - where things are: the database, and what is looked for beside the
 * executable, so that a build tree may be moved. */
#ifndef BATCHD_BATCHD_PATHS_H
#define BATCHD_BATCHD_PATHS_H

#include "base/err.h"

#include <stdbool.h>

/* --db, else BATCHD_DB, else $XDG_DATA_HOME/batchd/batchd.db (XDG_DATA_HOME itself
 * falls back to ~/.local/share); absolute, with links resolved, where its folder is there. The
 * caller's to free. E_CONFIG: no home. */
int paths_database(char **out, const char *flag, struct err *err);

/* --cache-dir, else $XDG_CACHE_HOME/batchd, else ~/.cache/batchd. The caller's to free; NULL: no home. */
char *paths_cache(const char *flag);

/* batchd_sqlite.so beside the executable, else in PREFIX/lib/batchd; NULL when it
 * is in neither. The caller's to free. */
char *paths_extension(void);

/* The demo model of the build tree that the program runs from, or NULL for an
 * installed program. The caller's to free. */
char *paths_demo_model(void);

#endif
