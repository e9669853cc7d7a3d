/* aid_jobs.h - what the tests of jobs/ share: a folder of their own, input files, a look
 * into a database from outside. */
#ifndef BATCHD_TESTS_AID_JOBS_H
#define BATCHD_TESTS_AID_JOBS_H

#include "jobs/jobs.h"

/* A path in this process's own folder, which is removed at exit; the caller's to free. */
char *temp_path(const char *name);
void temp_write(const char *path, const void *data, size_t n);

/* An empty database of that name in the folder. */
struct store *fresh_store(const char *name);

/* Through a connection of its own, as a user of the stock sqlite3 would. */
int64_t look_int(const char *db, const char *sql);
char *look_text(const char *db, const char *sql); /* the first cell, the caller's */
void look_exec(const char *db, const char *sql);
void assert_look(struct store *s, const char *sql, const char *expected); /* of the first cell */

/* Submit `text` as a file called `name` under the given options (path and settings are filled in). */
int submit_text(struct store *s, const char *name, const char *text, struct submit_options options,
                struct submit_report *report, struct err *err);

/* A result of row `row`: its text says which row it is. */
struct result_row ok_result(int64_t job_id, int64_t row, const char *text);

#endif
