/* safetensors.h - the weights of a model folder, mapped and checked.
 *
 * Format: https://github.com/huggingface/safetensors - 8 bytes of header length,
 * a JSON header, then the data. Everything the header claims is checked before
 * it is used: sizes by checked arithmetic, ranges inside the file, no overlap and
 * no holes, no duplicate names. What a hostile header can cost is bounded: 16 MiB
 * of header, 65,536 tensors, less than 64 MiB of memory.
 *
 * Immutable once open. The files are mapped: one that is cut short while it is
 * open ends the process with SIGBUS (base/mapped.h). */
#ifndef BATCHD_ENGINE_MODEL_SAFETENSORS_H
#define BATCHD_ENGINE_MODEL_SAFETENSORS_H

#include "base/err.h"
#include "base/hash.h"
#include "kernels/tensor.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { SAFETENSORS_MAX_DIMS = 8 };

struct checkpoint_tensor {
    char *name;
    const char *dtype_text; /* as the file says it: "F32", "BF16", "I64" ...; static */
    bool is_float;          /* dtype is F32, F16 or BF16 */
    enum dtype dtype;       /* only where is_float */
    int32_t n_dims;
    int64_t shape[SAFETENSORS_MAX_DIMS];
    const void *data;       /* in the mapping, not aligned */
    size_t bytes;
    int32_t file;           /* which shard, 0 .. */
};

struct checkpoint;

/* model.safetensors, or the shards that model.safetensors.index.json names.
 * E_NOT_FOUND: neither is there; E_PARSE: the text names the file and the tensor. */
int checkpoint_open(struct checkpoint **out, const char *model_dir, struct err *err);

/* One file, whatever its name. */
int checkpoint_open_file(struct checkpoint **out, const char *path, struct err *err);
void checkpoint_close(struct checkpoint *c); /* NULL is fine */

size_t checkpoint_n_files(const struct checkpoint *c);
const char *checkpoint_file_name(const struct checkpoint *c, size_t i); /* without the folder */

/* What tells these files from others without reading them through: each one's size, time of
 * change, inode and header. */
void checkpoint_identify(const struct checkpoint *c, struct sha256 *s);

size_t checkpoint_n_tensors(const struct checkpoint *c);
const struct checkpoint_tensor *checkpoint_at(const struct checkpoint *c, size_t i); /* ascending name */
const struct checkpoint_tensor *checkpoint_find(const struct checkpoint *c, const char *name); /* NULL = none */

#endif
