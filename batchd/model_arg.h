/* model_arg.h - from what a person writes behind --model to a folder.
 *
 * A value with a / is a folder; any other is a name of `batchd models`. With
 * neither, a program in its build tree has the demo model; an installed one has none. */
#ifndef BATCHD_BATCHD_MODEL_ARG_H
#define BATCHD_BATCHD_MODEL_ARG_H

#include "base/err.h"
#include "jobs/jobs.h"

/* What a job keeps of --model: an absolute folder, or the name as it is. The folder's
 * config and headers are read so that a mistake shows now. E_NOT_FOUND,
 * E_PARSE, E_UNSUPPORTED. `s` may be NULL: then names cannot be resolved (E_NOT_FOUND).
 * The caller's to free. */
int model_arg_check(char **out, struct store *s, const char *value, struct err *err);

/* The folder of what a job keeps. E_CONFIG: a registered model's files have other sizes now.
 * The caller's to free. */
int model_arg_folder(char **out, struct store *s, const char *value, struct err *err);

/* Are its files there, with the sizes that they had when it was added? E_CONFIG names one that is not. */
int model_arg_check_sizes(const struct model_entry *entry, struct err *err);

/* Says of an error about a registered model's files what to do. */
void model_arg_wrap_change(struct err *err, const char *name, const char *dir);

/* The demo model, told to the person; E_CONFIG with what to do when there is none. */
int model_arg_default(char **out, struct err *err);

#endif
