/* measure.h - what a device can do at best, and what a model asks of it: the two sides of a
 * roof. Belongs to the engine thread. */
#ifndef BATCHD_ENGINE_MODEL_MEASURE_H
#define BATCHD_ENGINE_MODEL_MEASURE_H

#include "engine/engine.h"
#include "engine/model/model.h"

/* A GPU settles on the quickest way to multiply when it has met a shape about so many times. */
enum { MEASURE_SETTLING_RUNS = 40 };

/* See engine_measure_roof. */
int measure_roof(struct engine_roof *out, struct model *m, struct err *err);

/* The same for any device and dtype; quant: QUANT_NONE, or a kind whose products are measured too. */
int measure_device(struct engine_roof *out, struct dev *dev, enum dtype dtype, enum quant_kind quant, struct err *err);

/* From the weights as they lie on the device. */
void measure_work(struct engine_work *out, const struct model *m);

/* The device's profile so far. */
void measure_profile(struct engine_profile *out, const struct model *m);

/* t = random normal numbers of this deviation. t is F32 or BF16, [rows, cols]. E_NO_MEMORY. */
int measure_fill(struct dev *dev, struct tensor *t, uint64_t seed, float deviation, struct err *err);

#endif
