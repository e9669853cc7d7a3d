/* row_form.h - what the rows of one input file ask: which column or key is the prompt, the id,
 * a sampling parameter, and what is wrong with a row. Neither database nor job is known here.
 *
 * A CSV file's header says it once for all rows; a JSONL line says it for itself, as the line's
 * own object or the body of a line of a batch file (batch_line.h). */
#ifndef BATCHD_JOBS_ROW_FORM_H
#define BATCHD_JOBS_ROW_FORM_H

#include "jobs/jobs.h"
#include "jobs/row_reader.h"
#include "jobs/template.h"

struct row_form { /* the first three are the caller's to set; the rest is zero before row_form_init */
    const struct submit_options *o;
    const char *source_name;      /* for messages */
    struct submit_report *report; /* takes prompts_are_alike and other_model */
    char **columns;               /* CSV, lines: names of the header */
    size_t n_columns;
    int32_t prompt_column, id_column; /* CSV; -1 = none */
    char **param_keys;            /* CSV: sampling key of each column, or NULL */
    char *prompt_name, *id_name;  /* as the job records them; NULL = none */
    struct template *template;    /* JSONL: of the first line */
};

/* Reads the header where the format has one. E_PARSE: none, or a bad one; E_USAGE: a flag or
 * the template names a column that is not there. Give back with row_form_clear, after errors too. */
int row_form_init(struct row_form *f, struct row_reader *reader, enum input_format format, struct err *err);
void row_form_clear(struct row_form *f);

/* Before each row of a JSONL file; its first one names the columns that a template may use.
 * E_USAGE: it lacks one; in later lines that is a bad line. */
int row_form_begin(struct row_form *f, const struct input_row *row, struct err *err);

struct request { /* a row on its way into the table; all zero before, give back with request_clear */
    const char *custom_id; /* borrowed from the row or the request, NULL = none */
    char id_text[32];
    char *input;           /* JSON */
    struct params params;
};
void request_clear(struct request *q);

/* False: the row is bad, and `reject` says why. */
bool row_form_request(struct row_form *f, const struct input_row *row, struct request *q, struct reject *reject);

/* A row as a reject; a message that is too long is cut. */
void row_form_reject(struct reject *out, const struct input_row *row, const char *code, const char *message);

#endif
