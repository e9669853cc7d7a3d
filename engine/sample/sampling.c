/* sampling.c - requests and completions as things to make and to free.
 *
 * The rule by which tokens are drawn is the device's (op_sample in kernels/ops.h). */
#include "base/mem.h"
#include "engine/engine.h"
#include "engine/sample/logprobs.h"

#include <stdlib.h>

const struct sampling SAMPLING_DEFAULT = {.max_tokens = 256, .top_p = 1.0f, .repetition_penalty = 1.0f, .logprobs = -1, .prompt_logprobs = -1};

struct engine_request *engine_request_new(void) {
    struct engine_request *r = mem_zalloc(1, sizeof *r);
    r->sampling = SAMPLING_DEFAULT;
    return r;
}

void engine_request_free(struct engine_request *r) {
    if (!r) return;
    for (size_t i = 0; i < r->sampling.n_stop; i++) free(r->sampling.stop[i]);
    free(r->sampling.stop);
    free(r->sampling.stop_token_ids);
    free(r->sampling.logit_bias_ids);
    free(r->sampling.logit_bias);
    free(r->sampling.allowed_token_ids);
    free(r->sampling.banned_token_ids);
    free(r->tokens);
    free(r);
}

void engine_completion_free(struct engine_completion *c) {
    if (!c) return;
    free(c->tokens);
    logprobs_clear(&c->logprobs);
    logprobs_clear(&c->prompt_logprobs);
    free(c->prompt_tokens);
    free(c);
}
