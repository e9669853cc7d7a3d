/* step_batch.c - see step_batch.h. */
#include "engine/schedule/step_batch.h"
#include "base/mem.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

enum { BANNED_OF_SAMPLE = 8, LISTED = 4096 }; /* room to begin with is twice that */

/* A step takes memory only here: what requests list has no bound, so that longer lists than there
 * ever were make the arrays grow. */
static void *room_for(void *list, int32_t *cap, int32_t n, size_t size) {
    if (n <= *cap) return list;
    *cap = 2 * n;
    bool forbidden = mem_forbid(false);
    list = mem_realloc(list, (size_t)*cap, size);
    mem_forbid(forbidden);
    return list;
}

void step_batch_init(struct step_batch *b, int32_t n_slots, int32_t max_rows, int32_t max_samples,
                     int32_t block_table_stride) {
    size_t slots = (size_t)n_slots, rows = (size_t)max_rows;
    *b = (struct step_batch){.max_rows = max_rows, .max_samples = max_samples};
    b->token = mem_zalloc(rows, sizeof *b->token);
    b->position = mem_zalloc(rows, sizeof *b->position);
    b->slot = mem_zalloc(rows, sizeof *b->slot);
    b->sequences = mem_zalloc(slots, sizeof *b->sequences);
    b->samples = mem_zalloc((size_t)max_samples, sizeof *b->samples);
    b->block_table = mem_zalloc(slots * (size_t)block_table_stride, sizeof *b->block_table);
    b->banned = room_for(NULL, &b->cap_banned, max_samples * BANNED_OF_SAMPLE, sizeof *b->banned);
    b->bias = room_for(NULL, &b->cap_bias, LISTED, sizeof *b->bias);
    b->allowed = room_for(NULL, &b->cap_allowed, LISTED, sizeof *b->allowed);
    b->step = (struct step){.token = b->token,
                            .position = b->position,
                            .slot = b->slot,
                            .sequences = b->sequences,
                            .samples = b->samples,
                            .block_table = b->block_table,
                            .block_table_stride = block_table_stride};
}

void step_batch_clear(struct step_batch *b) {
    free(b->token);
    free(b->position);
    free(b->slot);
    free(b->sequences);
    free(b->samples);
    free(b->block_table);
    free(b->banned);
    free(b->bias);
    free(b->allowed);
}

void step_batch_reset(struct step_batch *b) {
    b->step.n_rows = b->step.n_sequences = b->step.n_samples = 0;
    b->step.n_bias = b->step.n_allowed = 0;
    b->step.has_adjusted = b->step.has_logprobs = false;
    b->n_banned = 0;
    b->adjusted = NULL;
}

int32_t step_batch_room(const struct step_batch *b) {
    return b->max_rows - b->step.n_rows;
}

static void ban(struct step_batch *b, const int32_t *ids, int32_t n) {
    b->banned = room_for(b->banned, &b->cap_banned, b->n_banned + n, sizeof *b->banned);
    memcpy(b->banned + b->n_banned, ids, (size_t)n * sizeof *ids);
    b->n_banned += n;
    b->step.banned = b->banned;
}

static bool is_same(const void *a, const void *b, int32_t n, size_t size) {
    return n == 0 || memcmp(a, b, (size_t)n * size) == 0;
}

/* The rows of a job have one list more often than not: then the sample before has it. */
static bool has_lists(const struct step_batch *b, const struct step_sample *s, const struct adjust *a) {
    return s && s->n_bias == a->n_bias && s->n_allowed == a->n_allowed &&
           is_same(b->bias + s->first_bias, a->bias, a->n_bias, sizeof *a->bias) &&
           is_same(b->allowed + s->first_allowed, a->allowed, a->n_allowed, sizeof *a->allowed);
}

static void add_lists(struct step_batch *b, struct step_sample *out, const struct adjust *a) {
    struct step *step = &b->step;
    out->n_bias = a->n_bias;
    out->n_allowed = a->n_allowed;
    if (has_lists(b, b->adjusted, a)) {
        out->first_bias = b->adjusted->first_bias;
        out->first_allowed = b->adjusted->first_allowed;
        return;
    }
    out->first_bias = step->n_bias;
    out->first_allowed = step->n_allowed;
    step->bias = b->bias = room_for(b->bias, &b->cap_bias, step->n_bias + a->n_bias, sizeof *b->bias);
    step->allowed = b->allowed = room_for(b->allowed, &b->cap_allowed, step->n_allowed + a->n_allowed, sizeof *b->allowed);
    if (a->n_bias > 0) memcpy(b->bias + step->n_bias, a->bias, (size_t)a->n_bias * sizeof *a->bias);
    if (a->n_allowed > 0) memcpy(b->allowed + step->n_allowed, a->allowed, (size_t)a->n_allowed * sizeof *a->allowed);
    step->n_bias += a->n_bias;
    step->n_allowed += a->n_allowed;
    b->adjusted = out;
}

static void add_adjust(struct step_batch *b, struct step_sample *out, const struct sequence *s) {
    const struct sampling *p = &s->request->sampling;
    if (!s->adjust.is_used) return;
    b->step.has_adjusted = out->is_adjusted = true;
    out->repetition_penalty = p->repetition_penalty;
    out->presence_penalty = p->presence_penalty;
    out->frequency_penalty = p->frequency_penalty;
    out->n_prompt = s->n_prompt;
    add_lists(b, out, &s->adjust);
}

static void add_sample(struct step_batch *b, struct sequence *s) {
    const struct sampling *p = &s->request->sampling;
    struct step_sample *out = &b->samples[b->step.n_samples++];
    *out = (struct step_sample){.row = b->step.n_rows - 1,
                                .slot = s->slot,
                                .position = s->n_computed,
                                .top_k = p->top_k,
                                .temperature = p->temperature,
                                .top_p = p->top_p,
                                .min_p = p->min_p,
                                .seed = p->seed};
    if (s->n_stop_ids > 0 && sequence_n_new(s) < p->min_tokens) {
        out->first_banned = b->n_banned;
        out->n_banned = s->n_stop_ids;
        ban(b, s->stop_ids, s->n_stop_ids);
    }
    add_adjust(b, out, s);
    if (p->logprobs >= 0) {
        b->step.has_logprobs = out->wants_logprob = true;
        out->n_top = p->logprobs;
    }
    s->n_pending++;
}

static bool is_target(const struct sequence *s, int32_t position) {
    return s->request->sampling.prompt_logprobs >= 0 && position >= s->n_described && position < s->n_prompt - 1;
}

/* The row computed last tells the logprob of the prompt token behind it. */
static void add_target(struct step_batch *b, const struct sequence *s) {
    struct step_sample *out = &b->samples[b->step.n_samples++];
    *out = (struct step_sample){.row = b->step.n_rows - 1,
                                .slot = s->slot,
                                .position = s->n_computed,
                                .wants_logprob = true,
                                .n_top = s->request->sampling.prompt_logprobs,
                                .has_target = true,
                                .target = s->tokens[s->n_computed]};
    b->step.has_logprobs = true;
}

int32_t step_batch_fits(const struct step_batch *b, const struct sequence *s) {
    int32_t behind = sequence_n_behind(s), rows = step_batch_room(b), samples = b->max_samples - b->step.n_samples;
    int32_t n = behind < rows ? behind : rows, targets = sequence_n_targets(s, n);
    if (targets > samples) /* rows that were told before come first, and want no logits */
        return samples + (s->n_described > s->n_computed ? s->n_described - s->n_computed : 0);
    return n > 0 && n == behind && targets == samples ? n - 1 : n; /* no room for the draw */
}

bool step_batch_add(struct step_batch *b, struct sequence *s, int32_t n) {
    assert(n > 0 && n <= step_batch_fits(b, s));
    bool wants_sample = n == sequence_n_behind(s);
    struct step *step = &b->step;
    b->sequences[step->n_sequences++] = (struct step_sequence){s->slot, step->n_rows, n, s->n_computed};
    for (int32_t i = 0; i < n; i++) {
        int32_t p = s->n_computed++, row = step->n_rows++;
        /* Only the newest sample can be unseen here, and that is what ~slot stands for. */
        b->token[row] = p < s->n_tokens ? s->tokens[p] : ~s->slot;
        b->position[row] = p;
        b->slot[row] = s->slot;
        if (is_target(s, p)) {
            s->n_described = p + 1;
            add_target(b, s);
        }
    }
    if (wants_sample) add_sample(b, s);
    return wants_sample;
}
