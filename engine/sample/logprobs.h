/* logprobs.h - a struct logprobs (engine.h) that fills as its sequence goes on. */
#ifndef BATCHD_ENGINE_SAMPLE_LOGPROBS_H
#define BATCHD_ENGINE_SAMPLE_LOGPROBS_H

#include "engine/engine.h"
#include "kernels/ops.h"

/* Room for n_tokens with n_top alternatives each; n stays 0. */
void logprobs_init(struct logprobs *l, int32_t n_tokens, int32_t n_top);
void logprobs_clear(struct logprobs *l);

/* One token more, for which there must be room. */
void logprobs_push(struct logprobs *l, const struct sample_logprobs *from);

/* A copy of the first n. */
struct logprobs logprobs_copy(const struct logprobs *l, int32_t n);

#endif
