/* roof.h - how fast a model could be on a device: arithmetic on measured rates.
 *
 * A step is as long as its parts, one after another: the layers' products at the matrix rate
 * (that of their quantization, if it has one of its own) or as long as reading their weights takes, whichever is longer; the vocabulary projection
 * likewise; keys and values of all positions in sight at the copy rate; and the prompts'
 * attention at ROOF_ATTENTION of the matrix rate. A steady state is assumed: each sequence
 * takes one token, and output_len of them pay for one prompt. */
#ifndef BATCHD_BATCHD_ROOF_H
#define BATCHD_BATCHD_ROOF_H

#include "engine/engine.h"

#define ROOF_ATTENTION 0.6

struct roof_shape {
    double input_len, output_len; /* tokens of each prompt and completion */
    double n_seqs;                /* at once */
};

struct roof_step { /* seconds of a step that takes one token of each sequence */
    double layers, head, kv, prompt_attention;
};

struct roof_step roof_step(const struct engine_work *work, const struct engine_roof *device,
                           const struct roof_shape *shape);

/* Output tokens per second. */
double roof_tokens_per_s(const struct engine_work *work, const struct engine_roof *device,
                         const struct roof_shape *shape);

/* NULL, or why a measurement on this device counts for nothing: it was not the card it should
 * have been (busy, throttled, cut in parts). Static text. */
const char *roof_void(const char *device_name, const struct engine_roof *device);

#endif
