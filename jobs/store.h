/* store.h - the connection and short ways to run statements on it; private to jobs/.
 *
 * A statement is prepared once and kept under its text (a string literal): prepare, bind,
 * step until there is no row; reset it where that is not waited for. */
#ifndef BATCHD_JOBS_STORE_H
#define BATCHD_JOBS_STORE_H

#include "jobs/jobs.h"

#include <sqlite3.h>

struct store {
    sqlite3 *db;
    char *path;
    enum store_mode mode;
    int64_t version;   /* of the schema; an older one is met where the store is only read */
    struct kept *kept; /* prepared statements */
    size_t n_kept;
};

/* A prepared statement, reset and unbound; NULL with err set when it does not compile. */
sqlite3_stmt *sql_prepare(struct store *s, const char *text, struct err *err);

void sql_bind_text(sqlite3_stmt *st, int i, const char *text); /* NULL = NULL; copied */
void sql_bind_int(sqlite3_stmt *st, int i, int64_t v);
void sql_bind_int_or_null(sqlite3_stmt *st, int i, int64_t v); /* below 0 = NULL */

/* 1 = a row, 0 = done, negative = E_*. */
int sql_step(struct store *s, sqlite3_stmt *st, struct err *err);

/* Step a statement that gives no rows, then reset it. */
int sql_run(struct store *s, sqlite3_stmt *st, struct err *err);

/* Text without parameters: BEGIN IMMEDIATE, COMMIT, ... */
int sql_exec(struct store *s, const char *text, struct err *err);
void sql_rollback(struct store *s);

int sql_error(struct store *s, struct err *err); /* what the last call on the connection says, as an E_* */

char *sql_text(sqlite3_stmt *st, int column); /* a copy, NULL = NULL */

static inline int64_t row_id(int64_t job_id, int64_t row) {
    return job_id << 32 | row;
}

#endif
