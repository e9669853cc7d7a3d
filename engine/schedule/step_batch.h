/* step_batch.h - the arrays of one step, as the scheduler fills them.
 *
 * One batch serves all steps: a submitted step's arrays may be reused. The block
 * table is as persistent as the slots; a slot's row belongs to the sequence that
 * holds the slot. Belongs to the engine thread. */
#ifndef BATCHD_ENGINE_SCHEDULE_STEP_BATCH_H
#define BATCHD_ENGINE_SCHEDULE_STEP_BATCH_H

#include "engine/schedule/sequence.h"
#include "kernels/ops.h"

#include <stddef.h>

struct step_batch {
    struct step step;      /* points into the arrays below */
    int32_t max_rows, max_samples;
    int32_t *token, *position, *slot; /* [max_rows] */
    struct step_sequence *sequences;  /* [n_slots] */
    struct step_sample *samples;      /* [max_samples] */
    int32_t *block_table;             /* [n_slots][stride] */
    int32_t *banned;                  /* grows */
    int32_t n_banned, cap_banned;
    struct logit_bias *bias;          /* grows */
    int32_t *allowed;                 /* grows */
    int32_t cap_bias, cap_allowed;
    const struct step_sample *adjusted; /* the last sample with lists; NULL = none yet */
};

void step_batch_init(struct step_batch *b, int32_t n_slots, int32_t max_rows, int32_t max_samples,
                     int32_t block_table_stride);
void step_batch_clear(struct step_batch *b);

void step_batch_reset(struct step_batch *b); /* no rows */
int32_t step_batch_room(const struct step_batch *b); /* rows that still fit */

/* How many of what the sequence is behind fit, with the samples that they need. */
int32_t step_batch_fits(const struct step_batch *b, const struct sequence *s);

/* The sequence's next n rows, which fit; whether the last of them draws a sample. Samples
 * before that one tell logprobs of the prompt. The sequence takes note: n_computed,
 * n_described, and n_pending where there is a draw. */
bool step_batch_add(struct step_batch *b, struct sequence *s, int32_t n);

#endif
