/* logprobs_json.h - logprobs as the interfaces that people know write them. */
#ifndef BATCHD_BATCHD_LOGPROBS_JSON_H
#define BATCHD_BATCHD_LOGPROBS_JSON_H

#include "engine/engine.h"

/* OpenAI's form for completions: {"tokens", "token_logprobs", "top_logprobs", "text_offset"}.
 * A place's alternatives are an object from token to logprob, the highest first, the sampled
 * token among them. A token that is no UTF-8 by itself is written "bytes:\\xe2\\x82". Of two
 * that read the same the likelier stands. text_offset counts characters of the completion. */
void logprobs_json(struct buf *out, const struct tokenizer *tok, const struct engine_completion *c);

/* vLLM's form for prompts: a list with null for the first token, then for each place an
 * object from token ids to {"logprob", "rank", "decoded_token"}, the prompt's own token first. */
void prompt_logprobs_json(struct buf *out, const struct tokenizer *tok, const struct engine_completion *c);

#endif
