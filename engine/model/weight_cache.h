/* weight_cache.h - weights that were quantized on load, kept on disk: the next start reads codes
 * and need not read the checkpoint's numbers.
 *
 * A file of the folder, "weights-KEY.cache", holds all quantized weights of a model, as
 * weight_image_write has them, each with a checksum. KEY stands for the checkpoint (each file's
 * size, time of change, inode and header), what config.json says of its tensors, compute dtype,
 * kind of quantization, modules left out, and the format's version. A file that is damaged is as good as none, and is written
 * anew. Together the files take no more than a limit; those used longest ago make room.
 *
 * Belongs to the thread that loads weights; what is written is written by a thread of its own,
 * while the model is already at work. */
#ifndef BATCHD_ENGINE_MODEL_WEIGHT_CACHE_H
#define BATCHD_ENGINE_MODEL_WEIGHT_CACHE_H

#include "engine/model/config.h"
#include "engine/model/quantization.h"
#include "engine/model/safetensors.h"
#include "kernels/ops.h"

struct weight_cache_options { /* all zero = no cache */
    const char *dir;          /* made where it is not there */
    int64_t limit_bytes;      /* of all files together */
};

struct weight_cache;

/* The file of these weights, which threads check from now on, or the beginning of one; no device is
 * needed yet. NULL: no cache is wanted, or nothing is to be quantized; checkpoint NULL: dummy weights. */
struct weight_cache *weight_cache_open(const struct weight_cache_options *options, const struct checkpoint *checkpoint,
                                       const struct model_config *config, enum dtype dtype,
                                       const struct quantization *quantization);

/* From the file into a new weight; the file's bytes are read until dev_sync. False: it is not
 * there. c NULL is fine. Whether they are right shows later: see weight_cache_is_whole. */
bool weight_cache_load(struct weight_cache *c, struct dev *dev, struct weight *w, const char *name);

/* After dev_sync: was every byte of the file what was written? If not, nothing that was loaded may
 * be used: the file is gone, and the weights are to be loaded once more, as if it had not been
 * there. True also where there was none. c NULL is fine. */
bool weight_cache_is_whole(struct weight_cache *c);

/* A weight that was quantized just now and stays until weight_cache_close. */
void weight_cache_keep(struct weight_cache *c, const struct weight *w, const char *name);

/* All weights are loaded, and dev_sync was called: what was kept is written from now on. */
void weight_cache_begin(struct weight_cache *c, struct dev *dev);

/* Waits until all is written; before the weights and the device go. NULL is fine. */
void weight_cache_close(struct weight_cache *c);

#endif
