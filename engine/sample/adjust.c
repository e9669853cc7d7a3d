/* adjust.c - see adjust.h. */
#include "engine/sample/adjust.h"
#include "base/mem.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static int by_id(const void *a, const void *b) {
    const struct logit_bias *x = a, *y = b;
    return x->id < y->id ? -1 : x->id > y->id;
}

/* Twins become one. Nothing is left of an id's bias where it is banned: x - inf = -inf. */
static int32_t merge(struct logit_bias *list, int32_t n) {
    int32_t kept = 0;
    qsort(list, (size_t)n, sizeof *list, by_id);
    for (int32_t i = 0; i < n; i++) {
        if (kept > 0 && list[kept - 1].id == list[i].id) list[kept - 1].add += list[i].add;
        else list[kept++] = list[i];
    }
    return kept;
}

void adjust_init(struct adjust *a, const struct sampling *p) {
    int32_t n = 0;
    *a = (struct adjust){0};
    if (p->n_logit_bias + p->n_banned_token_ids > 0)
        a->bias = mem_alloc((p->n_logit_bias + p->n_banned_token_ids) * sizeof *a->bias);
    for (size_t i = 0; i < p->n_logit_bias; i++)
        a->bias[n++] = (struct logit_bias){p->logit_bias_ids[i], p->logit_bias[i]};
    for (size_t i = 0; i < p->n_banned_token_ids; i++)
        a->bias[n++] = (struct logit_bias){p->banned_token_ids[i], -INFINITY};
    if (n > 0) a->n_bias = merge(a->bias, n);
    a->n_allowed = (int32_t)p->n_allowed_token_ids;
    if (a->n_allowed > 0) a->allowed = mem_dup(p->allowed_token_ids, p->n_allowed_token_ids * sizeof *a->allowed);
    a->is_used = a->n_bias > 0 || a->n_allowed > 0 || p->repetition_penalty != 1.0f || p->presence_penalty != 0 ||
                 p->frequency_penalty != 0;
}

void adjust_clear(struct adjust *a) {
    free(a->bias);
    free(a->allowed);
    *a = (struct adjust){0};
}

static bool fit(const char *key, const int32_t *ids, size_t n, int32_t vocab, char *text, size_t room) {
    for (size_t i = 0; i < n; i++) {
        if (ids[i] >= 0 && ids[i] < vocab) continue;
        snprintf(text, room, "%s: id %d is not in the vocabulary of %d", key, ids[i], vocab);
        return false;
    }
    return true;
}

const char *adjust_refuse(const struct sampling *p, int32_t vocab, char *text, size_t n) {
    bool ok = fit("logit_bias", p->logit_bias_ids, p->n_logit_bias, vocab, text, n) &&
              fit("allowed_token_ids", p->allowed_token_ids, p->n_allowed_token_ids, vocab, text, n) &&
              fit("banned_token_ids", p->banned_token_ids, p->n_banned_token_ids, vocab, text, n);
    return ok ? NULL : "bad_token";
}
