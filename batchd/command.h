/* command.h - what several commands do the same way: open the database, find the
 * job that was named, show times and JSON. Main thread. */
#ifndef BATCHD_BATCHD_COMMAND_H
#define BATCHD_BATCHD_COMMAND_H

#include "batchd/options.h"
#include "jobs/jobs.h"

#include <jansson.h>

/* Commands return exit codes. 0 and *out, or the error has been shown. */
int command_open(struct store **out, const struct args *args, enum store_mode mode);

/* For writing (`mode`), or for reading where that is all that the file's mode allows. */
int command_open_or_read(struct store **out, const struct args *args, enum store_mode mode);

/* The job named by args->words[which], or by --key. */
int command_job(struct job_info *out, struct store *s, const struct args *args, size_t which);

/* The code that `wait` and `run` end with: 0, 1, 3 or 5 of a final job. */
int command_job_code(const struct job_info *j);
int command_worse(int a, int b); /* of two such codes */

/* One job as `status --json` and `wait --json` show it; the caller's. */
json_t *command_job_json(const struct job_info *j);

/* What -o and its companions say. */
struct export_options command_export_options(const struct args *args);
bool command_output_is_stdout(const struct args *args); /* -o - or no -o */

/* The model folder that -m names, else the demo model; the caller's. */
int command_model_folder(char **out, const struct args *args);

/* A string, null for NULL. Names of files may be any bytes: what is not UTF-8 is U+FFFD. */
json_t *command_text_json(const char *text);

/* One line on standard output; takes the value. */
void command_print_json(json_t *value);

/* "2026-11-20 14:03:11" in local time, "-" for 0. */
const char *command_time(char out[20], int64_t wall_us);

/* "0:38", "2:04:11" */
const char *command_duration(char out[24], double seconds);

/* How a command on this database begins: "batchd", or "batchd --db PATH" where --db was given. */
const char *command_begin(char out[600], const struct args *args);

/* 2,310 */
const char *command_count(char out[32], int64_t n);
const char *command_s(int64_t n); /* "s" behind a word that n things are called by, "" for one */

/* A reader that goes away (`batchd results 1 | head`) ends the program quietly. */
void command_quiet_pipe(void);

#endif
