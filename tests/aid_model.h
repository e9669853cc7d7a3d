/* aid_model.h - a model with room for a few sequences, and steps put together row
 * by row, for tests of the forward pass. */
#ifndef BATCHD_TESTS_AID_MODEL_H
#define BATCHD_TESTS_AID_MODEL_H

#include "tests/unit.h"

#include "engine/model/model.h"

enum { RIG_SLOTS = 4, RIG_ROWS = 96, RIG_CONTEXT = 1024, RIG_BLOCKS = RIG_CONTEXT / KV_BLOCK };

struct rig {
    struct dev *dev;
    struct model *model;
    struct runner *runner; /* keeps logits */
    int32_t table[RIG_SLOTS * RIG_BLOCKS]; /* a slot's blocks are neither together nor in order */
    int32_t vocab, rope; /* rope: of all steps, as the longest sequence has it */
};

struct rig_options {
    enum dtype dtype;
    int threads;
    bool dummy;
};

void rig_open(struct rig *r, const char *dir, const struct rig_options *options);
/* For sequences of at most so many tokens. */
void rig_open_for(struct rig *r, const char *dir, const struct rig_options *options, int32_t max_positions);
void rig_open_quantized(struct rig *r, const char *dir, const struct rig_options *options, const char *quantization);
void rig_open_cached(struct rig *r, const char *dir, const struct rig_options *options, const char *quantization,
                     const struct weight_cache_options *cache);
/* The same from a folder that was read, and begun with, when `expected` was to be the dtype. */
void rig_open_begun(struct rig *r, const char *dir, const struct rig_options *options, enum dtype expected,
                    const char *quantization, const struct weight_cache_options *cache);
/* As on a device that does not multiply with weights in fp8 with scales for blocks. */
void rig_open_expanded(struct rig *r, const char *dir, const struct rig_options *options, const char *quantization);
void rig_close(struct rig *r);

struct batch { /* one step; all zero = empty */
    int32_t token[RIG_ROWS], position[RIG_ROWS], slot[RIG_ROWS];
    struct step_sequence sequences[RIG_SLOTS];
    struct step_sample samples[RIG_ROWS];
    int32_t n_rows, n_sequences, n_samples;
};

/* Rows of one sequence at positions first ..; the last n_wanted of them draw greedily.
 * token NULL: each row takes the slot's last sample. */
void batch_add(struct batch *b, int32_t slot, const int32_t *token, int32_t first, int32_t n, int32_t n_wanted);

void rig_submit(struct rig *r, const struct batch *b);
struct step_result rig_collect(struct rig *r);
struct step_result rig_run(struct rig *r, const struct batch *b);

/* Run ids[0 .. n) in chunks and copy the logits of positions from .. n - 1 to
 * logits [n - from][vocab]; returns what the last row drew. */
int32_t rig_logits(struct rig *r, int32_t slot, const int32_t *ids, int32_t n, int32_t chunk, int32_t from,
                   float *logits);

#endif
