/* submit.h - what ingest.c offers the rest of jobs/. */
#ifndef BATCHD_JOBS_SUBMIT_H
#define BATCHD_JOBS_SUBMIT_H

#include "jobs/jobs.h"

/* Remove jobs whose loader died before it was done. */
void submit_clean(struct store *s);

#endif
