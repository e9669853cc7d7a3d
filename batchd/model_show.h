/* model_show.h - what `models show` says of a model folder: what it is, how it speaks and
 * samples, and how much of it a GPU holds. */
#ifndef BATCHD_BATCHD_MODEL_SHOW_H
#define BATCHD_BATCHD_MODEL_SHOW_H

#include "batchd/options.h"

/* On standard output; the exit code. */
int model_show(const struct args *args, const char *name, const char *path);

#endif
