/* scheduler.h - which rows go into the next step.
 *
 * A state machine that never calls the device: its owner asks for a plan, submits
 * it, and later applies what the step has drawn.
 *
 *   add -> waiting -> running -> done -> take_done
 *             ^          |
 *             +----------+  preempted: out of KV blocks, computed again later
 *
 * Running and waiting sequences together stay in the order in which they came.
 * A step gives one row to each decoding sequence, oldest first, then chunks of
 * prefill to running ones, then to waiting ones, which become running when a slot
 * is free and their tokens and a block more fit the pool. A decoding sequence that
 * finds no block takes those of the youngest running one. So the oldest is never
 * stopped, and everybody becomes the oldest some day.
 *
 * Plans may run ahead of results: with n plans not yet applied, a sequence's next
 * token may be one that nobody has seen. When it then turns out that the sequence
 * had ended, the surplus draws are dropped. Slots and blocks of an ended sequence
 * are free at once although a surplus row may yet write to them: steps run in the
 * order of their plans, so whoever gets them next writes later.
 *
 * Belongs to the engine thread. */
#ifndef BATCHD_ENGINE_SCHEDULE_SCHEDULER_H
#define BATCHD_ENGINE_SCHEDULE_SCHEDULER_H

#include "engine/engine.h"
#include "kernels/ops.h"

#include <stdbool.h>
#include <stdint.h>

struct scheduler;

struct scheduler_options {
    const struct model_info *model;    /* borrowed: vocabulary, stop ids */
    const struct tokenizer *tokenizer; /* borrowed; NULL: no stop strings */
    int32_t max_model_len;
    int32_t n_blocks;
    int32_t n_slots;  /* sequences running at once */
    int32_t max_rows; /* of a step */
    int32_t max_samples; /* rows of a step that want logits, at least the smaller of n_slots and max_rows; 0 = that */
    int32_t depth;    /* plans not yet applied, at most */
};

struct scheduler *scheduler_new(const struct scheduler_options *options);
void scheduler_free(struct scheduler *s); /* drops what is in it; NULL is fine */

/* Take over a request. One that cannot run is done at once. */
void scheduler_add(struct scheduler *s, struct engine_request *request);

/* The next step, good until the next plan; NULL when there are no rows now (nothing
 * to do, or all waits for results). A step that is returned must be submitted. */
const struct step *scheduler_plan(struct scheduler *s, int64_t now_ns);

/* What the oldest plan not yet applied has drawn, in the order of its samples, and the
 * logprobs of it, NULL where its step has none. */
void scheduler_apply(struct scheduler *s, const int32_t *drawn, const struct sample_logprobs *logprobs, int64_t now_ns);

/* End sequences whose tag is in [first, last], FINISH_ABORTED. */
void scheduler_abort(struct scheduler *s, uint64_t first, uint64_t last);

/* A completion in the order of finishing, the caller's; NULL when there is none. */
struct engine_completion *scheduler_take_done(struct scheduler *s);

int32_t scheduler_n_waiting(const struct scheduler *s);
bool scheduler_is_idle(const struct scheduler *s); /* nothing waiting or running */

/* Sums since the beginning, and how things stand. */
void scheduler_stats(const struct scheduler *s, struct engine_stats *out);

struct step_report {   /* one step, for the step log */
    int64_t step;      /* counted from 1 */
    int32_t n_rows, n_prefill, n_decode;
    int32_t n_running, n_waiting, n_blocks_used; /* when it was planned */
    uint64_t *finished, *preempted; /* tags: finished by its draws; preempted to make room for it */
    int32_t n_finished, n_preempted;
};

/* The step that was applied last; good until the next plan or apply. */
const struct step_report *scheduler_report(const struct scheduler *s);

/* Assert the invariants; for tests. */
void scheduler_check(const struct scheduler *s);

#endif
