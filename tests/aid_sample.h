/* aid_sample.h - one call of op_sample: samples, lists and histories in, tokens and their
 * logprobs out. */
#ifndef BATCHD_TESTS_AID_SAMPLE_H
#define BATCHD_TESTS_AID_SAMPLE_H

#include "tests/aid_ops.h"

enum { MAX_SAMPLES = 500, SLOTS = 4, MAX_LISTED = 1024, HISTORY = 320 };

struct draws { /* what goes in, all zero but for what a case sets; and what came out */
    struct step_sample sample[MAX_SAMPLES];
    int32_t banned[64];
    int32_t history[SLOTS][HISTORY]; /* tokens of each slot's sequence */
    struct logit_bias bias[MAX_LISTED];
    int32_t allowed[MAX_LISTED];
    int32_t drawn[MAX_SAMPLES], last[SLOTS];
    struct sample_logprobs logprobs[MAX_SAMPLES];
};

/* n samples: greedy, nothing banned, at positions 100, 101 .. */
void draws_begin(struct draws *d, int n);

/* One sample for each row of logits; the weight's bias is pending. The step's lists are
 * those of `d` up to the last that a sample names. */
void draw(struct bed *b, struct draws *d, const struct tensor *logits, const struct weight *w);

/* The same, into memory that one has for many calls. */
struct draw_room {
    struct tensor drawn, last, logprobs;
};
struct draw_room draw_room(struct bed *b, int64_t n);
void draw_into(struct bed *b, struct draws *d, const struct draw_room *room, const struct tensor *logits,
               const struct weight *w);

int32_t draw_one(struct bed *b, const float *logits, int vocab, struct step_sample sample, const int32_t *banned);

/* The rule of op_sample on logits in double precision, whatever was done to them before;
 * sorting where the kernels search. False where f32 could rightly decide otherwise. */
bool draw_plainly(const double *logits, int n, const struct step_sample *s, const int32_t *banned, int32_t *drawn);

#endif
