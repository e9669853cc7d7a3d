/* pipeline.h - rows through one engine: feeder thread, engine, finisher thread.
 *
 *   feed mailbox -> feeder (prompt, chat template, tokens) -> engine
 *                -> finisher (text, compression) -> done mailbox
 *
 * A struct row_work belongs to whoever holds it: the jobs thread until pipeline_feed,
 * then the feeder, then the pipeline's table until its completion is back, then the
 * finisher, and from pipeline_take on the jobs thread again. */
#ifndef BATCHD_BATCHD_PIPELINE_H
#define BATCHD_BATCHD_PIPELINE_H

#include "engine/engine.h"
#include "jobs/jobs.h"

struct job_ref { /* a job's settings, shared by its rows; the jobs thread counts */
    struct job_work work;
    struct chat_template *chat_template; /* of the job's own, NULL = the model's */
    int64_t refs;
};

struct row_work {
    struct job_ref *job;
    struct request_row row;
    int64_t leased_ns;      /* t0, monotonic */
    struct result_row result; /* filled on the way */
    struct buf text, logprobs, prompt_logprobs; /* result's pointers go into them */
    char error[300];        /* result.error points to it */
    bool dropped;           /* aborted: there is no result to publish */
};

struct pipeline;

int pipeline_open(struct pipeline **out, const struct engine_options *options, struct err *err);

/* Stop at once and free. All rows must have been taken. NULL is fine. */
void pipeline_close(struct pipeline *p);

struct engine *pipeline_engine(struct pipeline *p);
int32_t pipeline_capacity(const struct pipeline *p); /* rows that may be inside at once */

/* Hand a row over; at most pipeline_capacity may be inside, so this never waits. */
void pipeline_feed(struct pipeline *p, struct row_work *row);

/* The next finished row, or NULL after timeout_ms. When the engine fails, the rows that
 * it held come out as dropped. */
struct row_work *pipeline_take(struct pipeline *p, int64_t timeout_ms);

#endif
