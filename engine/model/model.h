/* model.h - a model on a device, and the steps it runs.
 *
 * model_open reads a folder and puts its weights on a device; a runner adds the
 * KV cache, persistent sequence slots and room for one step's tensors. Steps are
 * submitted and collected in order; up to RUNNER_DEPTH may be under way, and a
 * step may use samples of the one before it that nobody has seen yet (~slot
 * tokens, see kernels/ops.h). Belongs to the engine thread. */
#ifndef BATCHD_ENGINE_MODEL_MODEL_H
#define BATCHD_ENGINE_MODEL_MODEL_H

#include "base/err.h"
#include "engine/engine.h"
#include "engine/model/quantization.h"
#include "engine/model/weight_cache.h"
#include "kernels/dev.h"
#include "kernels/ops.h"

#include <stdbool.h>
#include <stdint.h>

struct model;
struct model_folder;

struct model_options {
    struct model_folder *folder; /* borrowed; NULL: it is read from dir */
    const char *dir;
    enum dtype dtype;    /* compute dtype: F32, BF16 or F16 */
    struct quantization quantization; /* on load; borrowed */
    bool fp8_kv_cache;   /* keys and values in fp8; else in dtype */
    struct weight_cache_options cache; /* of what is quantized on load; borrowed */
    bool dummy;          /* of dir: weights N(0, 1/sqrt K) from a fixed seed; config.json alone is read */
    int32_t max_positions; /* length of the RoPE table; 0 = the model's context */
};

/* The folder's files of json and the headers of its weights, unless those are dummies. E_NOT_FOUND,
 * E_PARSE, E_RANGE: what is wrong with which file, key or tensor; E_UNSUPPORTED: the key and the value
 * that this program does not compute; *out is NULL then. */
int model_folder_open(struct model_folder **out, const char *dir, bool dummy, struct err *err);
void model_folder_close(struct model_folder *f); /* NULL is fine */
const struct model_info *model_folder_info(const struct model_folder *f);

/* model_open with these options will follow: what takes time and needs no device begins, which is the
 * check of weights that were quantized before. The device may still choose another dtype. */
void model_folder_begin(struct model_folder *f, const struct model_options *options);

/* The errors of model_folder_open; E_UNSUPPORTED: what the device does not compute; E_NO_MEMORY,
 * before any is taken. */
int model_open(struct model **out, struct dev *dev, const struct model_options *options, struct err *err);
void model_close(struct model *m); /* NULL is fine */

const struct model_info *model_get_info(const struct model *m);
int64_t model_weight_bytes(const struct model *m);

/* What a model holds on the device beside its weights: tables of positions, and on a GPU the scratch of
 * products with quantized weights. */
int64_t model_beside_bytes(const struct model *m);

/* Compute dtype that "auto", "float32", "bfloat16", "float16", "half" mean for this checkpoint
 * on this device: auto is the checkpoint's, or what the device has instead (fp16 checkpoints run
 * in float32 on the CPU, bf16 ones in float16 on compute capability 7.5). E_UNSUPPORTED where the
 * device does not compute in what was asked for. */
int model_pick_dtype(enum dtype *out, const char *asked, const struct model_info *info, const struct dev *dev,
                     struct err *err);

enum { RUNNER_DEPTH = 3 }; /* steps under way at most: look-ahead 2 and the one being collected */

struct runner;

struct runner_options {
    int32_t n_blocks;   /* KV blocks of KV_BLOCK tokens */
    int32_t n_slots;    /* sequences at once */
    int32_t max_rows;   /* token rows of a step */
    int32_t max_samples; /* rows of a step that want logits; <= n_slots unless a caller wants all logits */
    int32_t max_len;     /* positions of a sequence; 0 = what the KV cache holds */
};

/* Memory of a step's tensors: a matter of the model's config and dtype alone. */
int64_t runner_tensor_bytes(const struct model *m, const struct runner_options *options);

/* The most that its steps have. */
struct step_limits runner_limits(const struct model *m, const struct runner_options *options);

/* Device memory that a step takes, the KV cache left out: tensors, and what is reserved beside them. */
int64_t runner_step_bytes(const struct model *m, const struct runner_options *options);

/* E_NO_MEMORY: the KV cache or a step's tensors do not fit. One runner a device at a time. */
int runner_open(struct runner **out, struct model *m, const struct runner_options *options, struct err *err);
void runner_close(struct runner *r); /* NULL is fine */
const struct runner_options *runner_get_options(const struct runner *r);

/* Of the steps so far: how often the device had to take memory for one. None should. */
int64_t runner_n_growths(const struct runner *r);

/* Queue one step; its arrays may be reused when the call returns. Fails only when
 * RUNNER_DEPTH steps are under way (assert) or the device already failed. */
int step_submit(struct runner *r, const struct step *step, struct err *err);

struct step_result {
    const int32_t *drawn;  /* [n_samples] in the step's order, -1 = logits not finite; borrowed
                              until the next step_submit or step_collect */
    const struct sample_logprobs *logprobs; /* [n_samples], NULL where the step asked for none; borrowed likewise */
    const float *logits;   /* [n_samples, vocab] where runner_keep_logits asked, else NULL */
    int32_t n_samples;
};

/* Wait for the oldest step under way. */
int step_collect(struct runner *r, struct step_result *out, struct err *err);

/* Hand out logits with each result from now on (tests, evaluation); costs a copy. */
void runner_keep_logits(struct runner *r, bool keep);

/* The device's time in steps, as far as they were collected: all, and those of ENGINE_LARGE_STEP
 * rows or more. The gap before the first step after runner_rest counts as nobody's. */
void runner_device_time(const struct runner *r, struct engine_device_time *all, struct engine_device_time *large);
void runner_rest(struct runner *r);

/* Off: what op_embed sees is no sequence's token. On when opened. */
void runner_note_tokens(struct runner *r, bool on);

/* Time `seconds` of the model's matrix products alone at n_rows rows; rows per second. */
int runner_matmul_rate(struct runner *r, int32_t n_rows, double seconds, double *rows_per_s, struct err *err);

#endif
