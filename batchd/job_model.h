/* job_model.h - which model folder a job runs on, and what it held when it was loaded.
 * Belongs to the jobs thread. */
#ifndef BATCHD_BATCHD_JOB_MODEL_H
#define BATCHD_BATCHD_JOB_MODEL_H

#include "jobs/jobs.h"

struct job_model { /* all zero = none; give back with job_model_clear */
    char *dir;
    char *name;       /* of `models add`, NULL = a folder without a name */
    char *files_json; /* with a name as it was added, else what job_model_look saw */
};
void job_model_clear(struct job_model *m);

/* The job's model, or the daemon's default where it names none. E_NOT_FOUND. */
int job_model_resolve(struct job_model *out, struct store *s, const struct job_settings *set, const char *by_default,
                      struct err *err);

/* Would one that is loaded do for the other? */
bool job_model_is_same(const struct job_model *loaded, const struct job_model *wanted);

/* Before it is loaded. A name's files must be those that were added: E_CONFIG names one that is
 * not. Of other folders the headers of the weights and all small files are hashed. */
int job_model_look(struct job_model *m, struct store *s, struct err *err);

/* What worker_note_weights takes; borrowed. */
struct weights_seen job_model_seen(const struct job_model *m);

#endif
