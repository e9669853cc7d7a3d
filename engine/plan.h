/* plan.h - how the memory of a GPU is divided: weights, a step's tensors, keys and values.
 * Pure arithmetic: engine_open sizes the KV cache with it, and model_plan says beforehand
 * what that will give. */
#ifndef BATCHD_ENGINE_PLAN_H
#define BATCHD_ENGINE_PLAN_H

#include "engine/engine.h"
#include "engine/model/model.h"

/* What options name by words, NULL being "auto". */
bool plan_is_dummy(const struct engine_options *o);     /* weights: random numbers */
bool plan_has_fp8_cache(const struct engine_options *o); /* keys and values */

/* The dtype to compute in, on a GPU that has bfloat16; which another device may not. */
enum dtype plan_dtype(const struct engine_options *o, const struct model_info *m);

/* How many rows and sequences a step has on a GPU or on the CPU where no flag says. */
struct runner_options plan_runner(const struct engine_options *o, bool is_gpu);

/* Bytes for keys and values on a GPU: what the share of the memory that is free behind the
 * weights, or the limit on all that we take, leaves beside a step's tensors and the
 * libraries' own. */
int64_t plan_kv_bytes(const struct engine_options *o, int64_t available, int64_t weight_bytes, int64_t step_bytes);

/* KV blocks that so many bytes hold; no more than so many sequences of max_model_len can use. */
int64_t plan_kv_blocks(int64_t bytes, int64_t block_bytes, int32_t max_num_seqs, int32_t max_model_len);

#endif
