/* model_files.h - the files of a model folder, by name, size, time and SHA-256: what `models
 * add` records, what `models check` compares, what a job notes of the weights it runs on. */
#ifndef BATCHD_BATCHD_MODEL_FILES_H
#define BATCHD_BATCHD_MODEL_FILES_H

#include "base/err.h"
#include "base/hash.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct model_file {
    char *name;
    int64_t size, mtime_us;   /* mtime_us 0 = not known */
    char sha256[SHA256_HEX]; /* "" = not computed */
};

struct model_files { /* ascending name; all zero = none; give back with model_files_clear */
    struct model_file *list;
    size_t n;
};
void model_files_clear(struct model_files *f);

/* What the engine reads of the folder, and, where `more` is not NULL, what that names besides
 * and is there. Nothing is hashed. */
int model_files_list(struct model_files *out, const char *dir, const struct model_files *more, struct err *err);

/* Called by the thread that hashes, about four times a second and at the end. */
typedef void model_files_progress(void *arg, int64_t bytes, int64_t total_bytes);

/* Compute what is not computed yet, several files at once. headers: of a safetensors file the
 * header alone, which takes milliseconds: other tensors of the same names and shapes look alike. */
int model_files_hash(struct model_files *f, const char *dir, bool headers, model_files_progress *tell, void *arg,
                     struct err *err);

/* JSON [{"name","size","mtime_us","sha256"}], the caller's; and back. E_PARSE. */
char *model_files_to_json(const struct model_files *f);
int model_files_from_json(struct model_files *out, const char *text, struct err *err);

enum file_change { FILE_CHANGED, FILE_MISSING, FILE_NEW };
typedef void model_files_difference(void *arg, enum file_change change, const char *name);

/* Call fn, which may be NULL, for each file whose size or hash differs; how many. Hashes count
 * where both are known. */
int model_files_compare(const struct model_files *then, const struct model_files *now, model_files_difference *fn,
                        void *arg);

/* By sizes alone, which takes no time: E_CONFIG names a file that differs. */
int model_files_glance(const struct model_files *then, const char *dir, struct err *err);

/* Are the files of the folder those of `then`? One whose time is another, but not its size, is
 * hashed, and has its new time in `then` afterwards: *touched. E_CONFIG names one that differs. */
int model_files_verify(struct model_files *then, const char *dir, bool *touched, struct err *err);

#endif
