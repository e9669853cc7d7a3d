/* export_json.h - a finished row as one line of JSON: in our own form, with all that is known
 * of it, or in that of the output files of OpenAI's batch interface. Private to jobs/. */
#ifndef BATCHD_JOBS_EXPORT_JSON_H
#define BATCHD_JOBS_EXPORT_JSON_H

#include "jobs/jobs.h"

#include <jansson.h>

struct export_job { /* what lines say of their job, or need to know of it */
    int64_t job_id;
    char **columns;    /* CSV input: names of the cells; else NULL */
    size_t n_columns;
    char *model;       /* whose answers these are: a folder or a registered name, in UTF-8; NULL = not known */
    char *prompt_key;  /* JSONL input */
    bool has_template; /* the rows are what a template is filled from */
};

/* {"id", "row", "status", "completion", "finish_reason", "error", "usage", "metrics", "input"} and,
 * where the row asked for them, "logprobs" and "prompt_logprobs". */
void export_json_line(FILE *f, const struct export_job *job, const struct result_view *v);

/* {"id", "custom_id", "response", "error"}. The body of the response is a chat completion where the
 * row is a conversation, else a text completion. A failed row has no response and an error. */
void export_openai_line(FILE *f, const struct export_job *job, const struct result_view *v);

/* The row's id, else its number, which is written into `number`. */
const char *export_row_id(const struct result_view *v, char number[24]);

json_t *export_completion_json(const struct result_view *v); /* its text, or null */
json_t *export_error_json(const struct result_view *v);      /* {"code", "message"}, or null */

#endif
