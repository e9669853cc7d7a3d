/* chat_settings.h - what a job says about its chat template, in the database. */
#ifndef BATCHD_JOBS_CHAT_SETTINGS_H
#define BATCHD_JOBS_CHAT_SETTINGS_H

#include "jobs/jobs.h"

char *chat_settings_to_json(const struct job_settings *s); /* NULL where nothing was said */
void chat_settings_from_json(struct job_settings *s, const char *text); /* NULL is fine */

#endif
