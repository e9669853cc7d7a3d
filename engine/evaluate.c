/* evaluate.c - engine.h's perplexity, which runs on the engine thread: the logprob of each
 * token of a text in its window, taken from the samples' targets. */
#include "base/mem.h"
#include "engine/engine_call.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>

struct evaluation {
    const int32_t *ids;
    size_t n;
    int32_t window, bos;
    struct engine_perplexity out;
};

struct window_step { /* the arrays of one step, with room for max_rows rows */
    int32_t *token, *position, *slot;
    struct step_sample *samples;
    int32_t *blocks;
    int32_t rope; /* of the window */
};

/* Rows of one sequence: row i reads context[i] and is asked for the token behind it, but for
 * the window's last, which nothing follows. */
static int run_rows(struct runner *r, struct window_step *s, const int32_t *context, int32_t first, int32_t n_rows,
                    int32_t n_context, double *nats, struct err *err) {
    struct step_sequence sequence = {.first_row = 0, .n_rows = n_rows, .first_position = first};
    struct step step = {.n_rows = n_rows,
                        .token = s->token,
                        .position = s->position,
                        .slot = s->slot,
                        .n_sequences = 1,
                        .sequences = &sequence,
                        .block_table = s->blocks,
                        .block_table_stride = (n_context + KV_BLOCK - 1) / KV_BLOCK,
                        .samples = s->samples,
                        .has_logprobs = true,
                        .rope = s->rope};
    for (int32_t i = 0; i < n_rows; i++) {
        s->token[i] = context[first + i];
        s->position[i] = first + i;
        s->slot[i] = 0;
        if (first + i + 1 == n_context) continue;
        s->samples[step.n_samples++] = (struct step_sample){.row = i,
                                                            .position = first + i + 1,
                                                            .top_p = 1.0f,
                                                            .wants_logprob = true,
                                                            .has_target = true,
                                                            .target = context[first + i + 1]};
    }
    if (step.n_samples == 0) return 0;
    struct step_result result;
    int e = step_submit(r, &step, err);
    if (e == 0) e = step_collect(r, &result, err);
    for (int32_t i = 0; e == 0 && i < result.n_samples; i++) {
        if (!isfinite(result.logprobs[i].token))
            return err_set(err, E_RANGE, "the logits at position %d of a window are not finite", first + i);
        *nats -= (double)result.logprobs[i].token;
    }
    return e;
}

/* One window: `context` of n tokens, the first of which is given. */
static int run_window(struct runner *r, struct window_step *s, const int32_t *context, int32_t n, int32_t max_rows,
                      double *nats, struct err *err) {
    int e = 0;
    for (int32_t first = 0; e == 0 && first < n; first += max_rows)
        e = run_rows(r, s, context, first, n - first < max_rows ? n - first : max_rows, n, nats, err);
    return e;
}

static int evaluate(struct model *m, struct runner *r, void *arg, struct err *err) {
    struct evaluation *v = arg;
    int32_t rows = runner_get_options(r)->max_samples, given = v->bos >= 0 ? 1 : 0; /* <= max_rows */
    int32_t change = model_get_info(m)->rope_switch;
    int e = 0;
    size_t room = (size_t)v->window, n_blocks = room / KV_BLOCK + 1, ids = room - (size_t)given;
    int32_t *context = mem_zalloc(room, sizeof *context);
    struct window_step s = {.token = mem_zalloc((size_t)rows, sizeof *s.token),
                            .position = mem_zalloc((size_t)rows, sizeof *s.position),
                            .slot = mem_zalloc((size_t)rows, sizeof *s.slot),
                            .samples = mem_zalloc((size_t)rows, sizeof *s.samples),
                            .blocks = mem_zalloc(n_blocks, sizeof *s.blocks)};
    for (size_t i = 0; i < n_blocks; i++) s.blocks[i] = (int32_t)i;
    for (size_t at = 0; e == 0 && at < v->n; at += ids) {
        int32_t n = (int32_t)(v->n - at < ids ? v->n - at : ids);
        context[0] = v->bos;
        for (int32_t i = 0; i < n; i++) context[given + i] = v->ids[at + (size_t)i];
        s.rope = change > 0 && given + n > change;
        e = run_window(r, &s, context, given + n, rows, &v->out.nats, err);
        v->out.n_tokens += given + n - 1;
    }
    free(context);
    free(s.token);
    free(s.position);
    free(s.slot);
    free(s.samples);
    free(s.blocks);
    return e;
}

int engine_perplexity(struct engine *e, struct engine_perplexity *out, const int32_t *ids, size_t n, int32_t window,
                      int32_t bos, struct err *err) {
    struct evaluation v = {.ids = ids, .n = n, .window = window, .bos = bos};
    if (window < 2 || window > engine_max_model_len(e))
        return err_set(err, E_USAGE, "a window of %d tokens is not in 2 .. %d", window, engine_max_model_len(e));
    int r = engine_call(e, evaluate, &v, err);
    if (r < 0) return r;
    if (v.out.n_tokens == 0) return err_set(err, E_RANGE, "the text has no token to be scored");
    v.out.nats /= (double)v.out.n_tokens;
    *out = v.out;
    return 0;
}
