/* adjust.h - what a request asks to be done to logits, as op_sample takes it.
 *
 * Bias and banned ids become one ascending list, a ban being a bias of -inf. Belongs to the
 * sequence that it is made for. */
#ifndef BATCHD_ENGINE_SAMPLE_ADJUST_H
#define BATCHD_ENGINE_SAMPLE_ADJUST_H

#include "engine/engine.h"
#include "kernels/ops.h"

struct adjust { /* all zero = nothing is asked for; give back with adjust_clear */
    bool is_used;
    struct logit_bias *bias; /* ascending ids, none twice */
    int32_t n_bias;
    int32_t *allowed;        /* n_allowed > 0: no other id can be drawn */
    int32_t n_allowed;
};

void adjust_init(struct adjust *a, const struct sampling *p);
void adjust_clear(struct adjust *a);

/* NULL, or what is wrong with ids that do not suit a vocabulary of so many; text is the
 * caller's room for it. */
const char *adjust_refuse(const struct sampling *p, int32_t vocab, char *text, size_t n);

#endif
