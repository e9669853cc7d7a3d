/* job_model.c - see job_model.h. */
#include "batchd/job_model.h"
#include "base/mem.h"
#include "batchd/model_arg.h"
#include "batchd/model_files.h"

#include <stdlib.h>
#include <string.h>

void job_model_clear(struct job_model *m) {
    free(m->dir);
    free(m->name);
    free(m->files_json);
    *m = (struct job_model){0};
}

int job_model_resolve(struct job_model *out, struct store *s, const struct job_settings *set, const char *by_default,
                      struct err *err) {
    const char *model = set->model ? set->model : by_default;
    struct model_entry entry;
    if (!model)
        return err_set(err, E_NOT_FOUND, "the job names no model and the daemon has no default; submit it with --model");
    if (strchr(model, '/')) {
        *out = (struct job_model){.dir = mem_strdup(model)};
        return 0;
    }
    int r = model_get(s, model, &entry, err);
    if (r < 0) return r;
    *out = (struct job_model){mem_strdup(entry.path), mem_strdup(entry.name), mem_strdup(entry.files_json)};
    model_entry_clear(&entry);
    return 0;
}

static bool same_text(const char *a, const char *b) {
    return a && b ? strcmp(a, b) == 0 : a == b;
}

bool job_model_is_same(const struct job_model *loaded, const struct job_model *wanted) {
    return same_text(loaded->dir, wanted->dir) && same_text(loaded->name, wanted->name) &&
           (!wanted->name || same_text(loaded->files_json, wanted->files_json));
}

/* A file that was only touched need not be hashed again the next time. */
static int remember_times(struct job_model *m, struct store *s, const struct model_files *files, struct err *err) {
    char *text = model_files_to_json(files);
    int r = model_touch(s, m->name, m->files_json, text, err);
    free(m->files_json);
    m->files_json = text;
    return r;
}

static int verify(struct job_model *m, struct store *s, struct err *err) {
    struct model_files files;
    bool touched = false;
    int r = model_files_from_json(&files, m->files_json, err);
    if (r < 0) return r;
    r = model_files_verify(&files, m->dir, &touched, err);
    if (r == E_CONFIG) model_arg_wrap_change(err, m->name, m->dir);
    if (r == 0 && touched) r = remember_times(m, s, &files, err);
    model_files_clear(&files);
    return r;
}

static int look(struct job_model *m, struct err *err) {
    struct model_files files;
    int r = model_files_list(&files, m->dir, NULL, err);
    if (r < 0) return r;
    r = model_files_hash(&files, m->dir, true, NULL, NULL, err);
    if (r == 0) m->files_json = model_files_to_json(&files);
    model_files_clear(&files);
    return r;
}

int job_model_look(struct job_model *m, struct store *s, struct err *err) {
    return m->name ? verify(m, s, err) : look(m, err);
}

struct weights_seen job_model_seen(const struct job_model *m) {
    return (struct weights_seen){.path = m->dir, .files_json = m->files_json, .is_whole = m->name != NULL};
}
