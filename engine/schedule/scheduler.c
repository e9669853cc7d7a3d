/* scheduler.c - see scheduler.h. */
#include "engine/schedule/scheduler.h"
#include "base/mem.h"
#include "engine/sample/logprobs.h"
#include "engine/schedule/step_batch.h"
#include "engine/schedule/blocks.h"
#include "engine/schedule/sequence.h"

#include <assert.h>
#include <stdlib.h>

/* Where the chain of blocks begins for sequences whose keys are turned otherwise, so that they
 * find none of the others'. */
static const uint64_t OTHER_KEYS = UINT64_MAX;

struct draw { /* a sample of a plan, and for whom */
    struct sequence *sequence;
    uint32_t epoch;
    bool is_target; /* the logprob of a prompt token, not a draw */
};

struct plan { /* one not yet applied */
    struct draw *draws; /* [max_samples] */
    int32_t n_draws;
    struct step_report report;
};

struct done_queue { /* completions in order of finishing; a ring */
    struct engine_completion **at;
    size_t first, n, cap;
};

struct scheduler {
    struct scheduler_options options;
    struct sequence_limits limits;
    struct blocks *blocks;
    struct step_batch batch;
    struct sequence_list waiting, running; /* oldest first; all running are older than all waiting */
    int32_t *free_slots;
    int32_t n_free_slots;
    struct plan *plans; /* ring of depth + 1: the last applied one's report stays readable */
    int32_t first_plan, n_plans;
    const struct step_report *applied;
    struct done_queue done;
    int32_t rope;                 /* of the step being planned: its sequences have one in common */
    const struct sequence *stuck; /* head of waiting that did not fit ... */
    int32_t stuck_free;           /* ... when so many blocks were free */
    struct engine_stats sums;
};

/* ---------------------------------------------------------------- open and close */

struct scheduler *scheduler_new(const struct scheduler_options *options) {
    assert(options->n_slots > 0 && options->max_rows > 0 && options->depth > 0);
    struct scheduler *s = mem_zalloc(1, sizeof *s);
    s->options = *options;
    s->limits = (struct sequence_limits){options->model, options->tokenizer, options->max_model_len, options->n_blocks};
    s->blocks = blocks_new(options->n_blocks);
    int32_t samples = options->max_samples, least = options->n_slots < options->max_rows ? options->n_slots : options->max_rows;
    if (samples == 0) samples = least;
    assert(samples >= least);
    step_batch_init(&s->batch, options->n_slots, options->max_rows, samples, blocks_for(options->max_model_len));
    size_t slots = (size_t)options->n_slots;
    s->free_slots = mem_zalloc(slots, sizeof *s->free_slots);
    for (int32_t i = options->n_slots; i-- > 0;) s->free_slots[s->n_free_slots++] = i;
    s->plans = mem_zalloc((size_t)options->depth + 1, sizeof *s->plans);
    for (int32_t i = 0; i <= options->depth; i++) {
        s->plans[i].draws = mem_zalloc((size_t)samples, sizeof *s->plans[i].draws);
        s->plans[i].report.finished = mem_zalloc(slots, sizeof(uint64_t));
        s->plans[i].report.preempted = mem_zalloc(slots, sizeof(uint64_t));
    }
    s->applied = &s->plans[0].report;
    s->done = (struct done_queue){.at = mem_zalloc(2 * slots, sizeof *s->done.at), .cap = 2 * slots};
    return s;
}

static void free_list(struct sequence_list *l) {
    while (l->first) {
        struct sequence *q = l->first;
        sequence_list_remove(l, q);
        sequence_free(q);
    }
}

/* Ended sequences live on only in draws that are not applied yet. */
static void free_ended(struct scheduler *s) {
    for (; s->n_plans > 0; s->n_plans--, s->first_plan = (s->first_plan + 1) % (s->options.depth + 1)) {
        struct plan *p = &s->plans[s->first_plan];
        for (int32_t i = 0; i < p->n_draws; i++) {
            struct sequence *q = p->draws[i].sequence;
            if (--q->n_under_way == 0 && q->state == SEQUENCE_DONE) sequence_free(q);
        }
    }
}

void scheduler_free(struct scheduler *s) {
    if (!s) return;
    free_ended(s);
    free_list(&s->running);
    free_list(&s->waiting);
    struct engine_completion *c;
    while ((c = scheduler_take_done(s))) engine_completion_free(c);
    for (int32_t i = 0; i <= s->options.depth; i++) {
        free(s->plans[i].draws);
        free(s->plans[i].report.finished);
        free(s->plans[i].report.preempted);
    }
    free(s->plans);
    free(s->done.at);
    free(s->free_slots);
    step_batch_clear(&s->batch);
    blocks_free(s->blocks);
    free(s);
}

/* ---------------------------------------------------------------- coming and going */

static void push_done(struct done_queue *q, struct engine_completion *c) {
    if (q->n == q->cap) {
        size_t cap = 2 * q->cap;
        struct engine_completion **at = mem_zalloc(cap, sizeof *at);
        for (size_t i = 0; i < q->n; i++) at[i] = q->at[(q->first + i) % q->cap];
        free(q->at);
        *q = (struct done_queue){at, 0, q->n, cap};
    }
    q->at[(q->first + q->n++) % q->cap] = c;
}

struct engine_completion *scheduler_take_done(struct scheduler *s) {
    struct done_queue *q = &s->done;
    if (q->n == 0) return NULL;
    struct engine_completion *c = q->at[q->first];
    q->first = (q->first + 1) % q->cap;
    q->n--;
    return c;
}

void scheduler_add(struct scheduler *s, struct engine_request *request) {
    struct engine_completion *error = NULL;
    struct sequence *q = sequence_new(request, &s->limits, &error);
    if (q) sequence_list_add(&s->waiting, q);
    else push_done(&s->done, error);
}

/* Draws under way for it are void from now on. */
static void stop_running(struct scheduler *s, struct sequence *q) {
    sequence_list_remove(&s->running, q);
    blocks_release(s->blocks, &q->table);
    s->free_slots[s->n_free_slots++] = q->slot;
    q->epoch++;
}

static void preempt(struct scheduler *s, struct sequence *q, struct step_report *report) {
    stop_running(s, q);
    q->n_computed = q->n_pending = 0;
    q->n_described = q->prompt_logprobs.n;
    q->preemptions++;
    q->state = SEQUENCE_WAITING;
    sequence_list_add_first(&s->waiting, q);
    s->sums.n_preemptions++;
    if (report->n_preempted < s->options.n_slots) report->preempted[report->n_preempted++] = q->request->tag;
}

static void end(struct scheduler *s, struct sequence *q, struct engine_completion *c) {
    if (q->state == SEQUENCE_RUNNING) stop_running(s, q);
    else sequence_list_remove(&s->waiting, q);
    q->state = SEQUENCE_DONE;
    if (s->stuck == q) s->stuck = NULL;
    push_done(&s->done, c);
    if (q->n_under_way == 0) sequence_free(q);
}

static void abort_in(struct scheduler *s, struct sequence_list *l, uint64_t first, uint64_t last) {
    for (struct sequence *q = l->first, *next; q; q = next) {
        next = q->next;
        if (q->request->tag < first || q->request->tag > last) continue;
        end(s, q, sequence_completion(q, FINISH_ABORTED, NULL, NULL));
    }
}

void scheduler_abort(struct scheduler *s, uint64_t first, uint64_t last) {
    abort_in(s, &s->running, first, last);
    abort_in(s, &s->waiting, first, last);
}

/* ---------------------------------------------------------------- planning */

/* Hand n rows of q to the step being planned. What they write is written before any
 * later row reads it, in the same step too (ops.h: keys and values of all rows come
 * before attention), so full blocks of known tokens can be found from now on. */
static void give_rows(struct scheduler *s, struct plan *p, struct sequence *q, int32_t n) {
    if (sequence_is_decoding(q)) p->report.n_decode += n;
    else p->report.n_prefill += n;
    int32_t n_targets = sequence_n_targets(q, n);
    bool has_draw = step_batch_add(&s->batch, q, n);
    for (int32_t i = 0; i < n_targets + has_draw; i++, q->n_under_way++)
        p->draws[p->n_draws++] = (struct draw){q, q->epoch, i < n_targets};
    assert(p->n_draws == s->batch.step.n_samples);
    int32_t settled = q->n_computed < q->n_tokens ? q->n_computed : q->n_tokens;
    blocks_publish(s->blocks, &q->table, q->tokens, settled);
}

/* Room for one more position; takes it from the youngest. False: q itself was that. */
static bool make_room(struct scheduler *s, struct plan *p, struct sequence *q) {
    while (blocks_reserve(s->blocks, &q->table, q->n_computed + 1) < 0) {
        struct sequence *youngest = s->running.last;
        preempt(s, youngest, &p->report);
        if (youngest == q) return false;
    }
    return true;
}

static void plan_decode(struct scheduler *s, struct plan *p) {
    for (struct sequence *q = s->running.first, *next; q && step_batch_room(&s->batch) > 0; q = next) {
        bool takes_part = sequence_is_decoding(q) && q->rope == s->rope;
        if (takes_part && !make_room(s, p, q)) return;
        next = q->next; /* after make_room, which may have taken the next one */
        if (takes_part) give_rows(s, p, q, 1);
    }
}

static void plan_chunk(struct scheduler *s, struct plan *p, struct sequence *q) {
    int32_t n = step_batch_fits(&s->batch, q);
    if (n > 0) give_rows(s, p, q, n);
}

/* Blocks for all known tokens and one more block, so that what is admitted is not
 * preempted at once. The whole prompt is reserved here: prefill never runs dry. */
static bool admit(struct scheduler *s, struct sequence *q) {
    if (s->n_free_slots == 0) return false;
    if (s->stuck == q && blocks_n_free(s->blocks) <= s->stuck_free) return false;
    int32_t slot = s->free_slots[s->n_free_slots - 1], stride = s->batch.step.block_table_stride;
    int32_t n = q->n_tokens + KV_BLOCK, longest = sequence_longest(q);
    q->table = (struct block_table){.ids = s->batch.block_table + (size_t)slot * (size_t)stride, .cap = stride};
    if (q->rope) q->table.identity = OTHER_KEYS;
    int32_t n_cached = blocks_match(s->blocks, &q->table, q->tokens, sequence_n_cacheable(q));
    if (blocks_reserve(s->blocks, &q->table, n < longest ? n : longest) < 0) {
        blocks_release(s->blocks, &q->table);
        s->stuck = q;
        s->stuck_free = blocks_n_free(s->blocks);
        return false;
    }
    s->stuck = NULL;
    s->n_free_slots--;
    q->slot = slot;
    q->n_computed = n_cached;
    q->state = SEQUENCE_RUNNING;
    sequence_list_remove(&s->waiting, q);
    sequence_list_add(&s->running, q);
    return true;
}

static void note_first_schedule(struct scheduler *s, struct sequence *q, int64_t now_ns) {
    if (q->scheduled_ns) return;
    q->scheduled_ns = now_ns;
    q->n_cached = q->n_computed;
    s->sums.n_prompt_tokens += q->n_prompt;
    s->sums.n_cached_tokens += q->n_cached;
}

static void plan_waiting(struct scheduler *s, struct plan *p, int64_t now_ns) {
    while (s->waiting.first && step_batch_room(&s->batch) > 0) {
        struct sequence *q = s->waiting.first;
        if (q->rope != s->rope || !admit(s, q)) return;
        note_first_schedule(s, q, now_ns);
        plan_chunk(s, p, q);
    }
}

static struct plan *plan_at(struct scheduler *s, int32_t i) {
    return &s->plans[(s->first_plan + i) % (s->options.depth + 1)];
}

/* A plan that came to no rows is begun again; preemptions that it made stay noted. */
static struct plan *begin_plan(struct scheduler *s) {
    assert(s->n_plans < s->options.depth);
    struct plan *p = plan_at(s, s->n_plans);
    p->n_draws = 0;
    p->report.n_prefill = p->report.n_decode = p->report.n_finished = 0;
    step_batch_reset(&s->batch);
    return p;
}

static void push_plan(struct scheduler *s, struct plan *p) {
    s->n_plans++;
    s->sums.n_steps++;
    s->sums.n_step_rows += s->batch.step.n_rows;
    p->report.step = s->sums.n_steps;
    p->report.n_rows = s->batch.step.n_rows;
    p->report.n_running = s->running.n;
    p->report.n_waiting = s->waiting.n;
    p->report.n_blocks_used = s->options.n_blocks - blocks_n_free(s->blocks);
    plan_at(s, s->n_plans)->report.n_preempted = 0;
}

static const struct step *plan(struct scheduler *s, int64_t now_ns) {
    struct plan *p = begin_plan(s);
    s->batch.step.rope = s->rope;
    int64_t n_preempted = s->sums.n_preemptions;
    plan_decode(s, p);
    for (struct sequence *q = s->running.first; q; q = q->next)
        if (!sequence_is_decoding(q) && q->rope == s->rope) plan_chunk(s, p, q);
    /* Whoever was preempted just now would only come back to be preempted again. */
    if (s->sums.n_preemptions == n_preempted) plan_waiting(s, p, now_ns);
    if (s->batch.step.n_rows == 0) return NULL;
    push_plan(s, p);
    return &s->batch.step;
}

const struct step *scheduler_plan(struct scheduler *s, int64_t now_ns) {
    if (!s->running.first && !s->waiting.first) return NULL;
    bool forbidden = mem_forbid(true), has_two = s->options.model->rope_switch > 0;
    if (has_two) s->rope = 1 - s->rope; /* in turns, so that neither waits for the other */
    const struct step *step = plan(s, now_ns);
    if (!step && has_two) {
        s->rope = 1 - s->rope;
        step = plan(s, now_ns);
    }
    mem_forbid(forbidden);
    return step;
}

/* ---------------------------------------------------------------- results */

static void finish(struct scheduler *s, struct plan *p, struct sequence *q, struct engine_completion *c) {
    p->report.finished[p->report.n_finished++] = c->tag;
    end(s, q, c);
}

static void take_draw(struct scheduler *s, struct plan *p, const struct draw *draw, int32_t id,
                      const struct sample_logprobs *logprobs, int64_t now_ns) {
    struct sequence *q = draw->sequence;
    enum finish_reason why;
    if (id < 0) {
        finish(s, p, q, sequence_completion(q, FINISH_ERROR, "numeric",
                                            q->adjust.is_used ? "logits are not finite, or no token may be drawn"
                                                              : "logits are not finite"));
        return;
    }
    if (draw->is_target) {
        logprobs_push(&q->prompt_logprobs, logprobs);
        return;
    }
    s->sums.n_completion_tokens++;
    if (sequence_accept(q, id, logprobs, now_ns, &why)) finish(s, p, q, sequence_completion(q, why, NULL, NULL));
    else blocks_publish(s->blocks, &q->table, q->tokens, q->n_tokens - 1); /* the new one may not be computed */
}

void scheduler_apply(struct scheduler *s, const int32_t *drawn, const struct sample_logprobs *logprobs, int64_t now_ns) {
    assert(s->n_plans > 0);
    struct plan *p = &s->plans[s->first_plan];
    s->first_plan = (s->first_plan + 1) % (s->options.depth + 1);
    s->n_plans--;
    for (int32_t i = 0; i < p->n_draws; i++) {
        struct sequence *q = p->draws[i].sequence;
        q->n_under_way--;
        if (q->epoch == p->draws[i].epoch) take_draw(s, p, &p->draws[i], drawn[i], logprobs ? &logprobs[i] : NULL, now_ns);
        else if (q->state == SEQUENCE_DONE && q->n_under_way == 0) sequence_free(q);
    }
    s->applied = &p->report;
}

const struct step_report *scheduler_report(const struct scheduler *s) {
    return s->applied;
}

/* ---------------------------------------------------------------- how things stand */

int32_t scheduler_n_waiting(const struct scheduler *s) {
    return s->waiting.n;
}

bool scheduler_is_idle(const struct scheduler *s) {
    return s->waiting.n == 0 && s->running.n == 0;
}

void scheduler_stats(const struct scheduler *s, struct engine_stats *out) {
    *out = s->sums;
    out->n_running = s->running.n;
    out->n_waiting = s->waiting.n;
    out->kv_blocks_total = s->options.n_blocks;
    out->kv_blocks_used = s->options.n_blocks - blocks_n_free(s->blocks);
}

static void check_sequence(const struct sequence *q, enum sequence_state state) {
    assert(q->state == state);
    assert(q->n_pending >= 0 && q->n_computed >= 0 && q->n_computed <= q->n_tokens + q->n_pending);
    assert(q->n_tokens + q->n_pending <= q->n_prompt + q->max_new);
    if (state == SEQUENCE_WAITING) assert(q->table.n == 0 && q->n_computed == 0 && q->n_pending == 0);
    else assert(q->table.n >= blocks_for(q->n_computed) && q->slot >= 0);
}

void scheduler_check(const struct scheduler *s) {
    blocks_check(s->blocks);
    assert(s->n_free_slots + s->running.n == s->options.n_slots);
    for (const struct sequence *q = s->running.first; q; q = q->next) check_sequence(q, SEQUENCE_RUNNING);
    for (const struct sequence *q = s->waiting.first; q; q = q->next) check_sequence(q, SEQUENCE_WAITING);
    if (scheduler_is_idle(s)) assert(blocks_n_free(s->blocks) == s->options.n_blocks);
}
