/* positions.h - how a model knows where a token stands: the frequencies of rotary
 * embedding with their scalings, or ALiBi's slopes. */
#ifndef BATCHD_ENGINE_MODEL_POSITIONS_H
#define BATCHD_ENGINE_MODEL_POSITIONS_H

#include "engine/model/config_reader.h"
#include "engine/model/families.h"

#include <stdbool.h>
#include <stdint.h>

enum { MAX_HEAD_DIM = 256 };

enum rope_scaling { ROPE_DEFAULT, ROPE_LINEAR, ROPE_LLAMA3, ROPE_YARN, ROPE_LONGROPE };
enum alibi { ALIBI_NONE, ALIBI_MPT, ALIBI_FALCON };

struct positions {
    int32_t n_rotated;    /* leading dimensions of a head that turn; 0 with ALiBi */
    float theta;
    enum rope_scaling scaling;
    float factor;                            /* linear, llama3, yarn */
    float low_freq_factor, high_freq_factor; /* llama3 */
    float beta_fast, beta_slow;              /* yarn: turns within original_context */
    bool truncate;                           /* yarn: those borders become whole dimensions */
    int32_t original_context;                /* llama3, yarn, longrope */
    float attention_factor;                  /* yarn, longrope: cosines and sines are multiplied by it; else 1 */
    float short_factor[MAX_HEAD_DIM / 2], long_factor[MAX_HEAD_DIM / 2]; /* longrope */
    enum alibi alibi;
    float alibi_bias_max; /* ALIBI_MPT */
};

/* rope_theta, partial_rotary_factor and rope_scaling, which transformers 5 writes as one
 * object, rope_parameters. The family says what an absent key means. */
void positions_read_rope(struct positions *p, struct reader *rd, const struct family *f, int32_t head_dim,
                         int32_t context);

/* inv_freq[n_rotated / 2], scaling applied; formulas as in transformers' modeling_rope_utils.py.
 * is_long: longrope's long factors. */
void positions_inv_freq(const struct positions *p, bool is_long, float *inv_freq);

/* slopes[n_heads] of ALiBi, as the family's code in transformers makes them. */
void positions_alibi_slopes(const struct positions *p, int32_t n_heads, float *slopes);

#endif
