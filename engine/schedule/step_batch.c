/* step_batch.c - see step_batch.h. */
#include "engine/schedule/step_batch.h"
#include "base/mem.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

void step_batch_init(struct step_batch *b, int32_t n_slots, int32_t max_rows, int32_t block_table_stride) {
    size_t slots = (size_t)n_slots, rows = (size_t)max_rows;
    *b = (struct step_batch){.max_rows = max_rows};
    b->token = mem_zalloc(rows, sizeof *b->token);
    b->position = mem_zalloc(rows, sizeof *b->position);
    b->slot = mem_zalloc(rows, sizeof *b->slot);
    b->sequences = mem_zalloc(slots, sizeof *b->sequences);
    b->samples = mem_zalloc(slots, sizeof *b->samples);
    b->block_table = mem_zalloc(slots * (size_t)block_table_stride, sizeof *b->block_table);
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
}

void step_batch_reset(struct step_batch *b) {
    b->step.n_rows = b->step.n_sequences = b->step.n_samples = 0;
    b->n_banned = 0;
}

int32_t step_batch_room(const struct step_batch *b) {
    return b->max_rows - b->step.n_rows;
}

static void ban(struct step_batch *b, const int32_t *ids, int32_t n) {
    if (b->n_banned + n > b->cap_banned) {
        b->cap_banned = 2 * (b->n_banned + n);
        b->banned = mem_realloc(b->banned, (size_t)b->cap_banned, sizeof *b->banned);
    }
    memcpy(b->banned + b->n_banned, ids, (size_t)n * sizeof *ids);
    b->n_banned += n;
    b->step.banned = b->banned;
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
    s->n_pending++;
}

bool step_batch_add(struct step_batch *b, struct sequence *s, int32_t n) {
    assert(n > 0 && n <= step_batch_room(b) && n <= sequence_n_behind(s));
    bool wants_sample = n == sequence_n_behind(s);
    struct step *step = &b->step;
    b->sequences[step->n_sequences++] = (struct step_sequence){s->slot, step->n_rows, n, s->n_computed};
    for (int32_t i = 0; i < n; i++) {
        int32_t p = s->n_computed++, row = step->n_rows++;
        /* Only the newest sample can be unseen here, and that is what ~slot stands for. */
        b->token[row] = p < s->n_tokens ? s->tokens[p] : ~s->slot;
        b->position[row] = p;
        b->slot[row] = s->slot;
    }
    if (wants_sample) add_sample(b, s);
    return wants_sample;
}
