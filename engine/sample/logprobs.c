/* logprobs.c - see logprobs.h. */
#include "engine/sample/logprobs.h"
#include "base/mem.h"

#include <stdlib.h>
#include <string.h>

void logprobs_init(struct logprobs *l, int32_t n_tokens, int32_t n_top) {
    size_t n = (size_t)n_tokens, tops = n * (size_t)n_top;
    *l = (struct logprobs){.n_top = n_top};
    l->token = mem_zalloc(n, sizeof *l->token);
    l->rank = mem_zalloc(n, sizeof *l->rank);
    l->top_ids = mem_zalloc(tops, sizeof *l->top_ids);
    l->top = mem_zalloc(tops, sizeof *l->top);
}

void logprobs_clear(struct logprobs *l) {
    free(l->token);
    free(l->rank);
    free(l->top_ids);
    free(l->top);
    *l = (struct logprobs){0};
}

void logprobs_push(struct logprobs *l, const struct sample_logprobs *from) {
    size_t top = (size_t)l->n_top, at = (size_t)l->n * top;
    l->token[l->n] = from->token;
    l->rank[l->n++] = from->rank;
    memcpy(l->top_ids + at, from->top_id, top * sizeof *l->top_ids);
    memcpy(l->top + at, from->top, top * sizeof *l->top);
}

struct logprobs logprobs_copy(const struct logprobs *l, int32_t n) {
    size_t count = (size_t)n, tops = count * (size_t)l->n_top;
    struct logprobs out = {.n = n, .n_top = l->n_top};
    out.token = mem_dup(l->token, count * sizeof *out.token);
    out.rank = mem_dup(l->rank, count * sizeof *out.rank);
    out.top_ids = mem_dup(l->top_ids, tops * sizeof *out.top_ids);
    out.top = mem_dup(l->top, tops * sizeof *out.top);
    return out;
}
