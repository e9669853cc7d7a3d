/* job_flags.h - the flags of `submit` and `run` as what jobs.h takes. */
#ifndef BATCHD_BATCHD_JOB_FLAGS_H
#define BATCHD_BATCHD_JOB_FLAGS_H

#include "batchd/options.h"
#include "batchd/progress.h"
#include "jobs/jobs.h"

struct job_flags {   /* give back with job_flags_clear */
    struct job_settings settings;
    struct submit_options options; /* borrows from args and settings */
};

/* Everything but the model. Returns an exit code; the error has been shown. */
int job_flags_read(struct job_flags *out, const struct args *args);
void job_flags_clear(struct job_flags *f);

/* --model, checked as far as can be without loading it. *out stays NULL when none
 * was given. Returns an exit code. */
int job_flags_model(char **out, struct store *s, const struct args *args);

/* Load the file, with progress and the summary; the first rejects where there are
 * some. Returns an exit code. */
int job_flags_submit(struct job_flags *f, struct store *s, const struct args *args, struct submit_report *report);

#endif
