/* model_arg.c - see model_arg.h. */
#include "batchd/model_arg.h"
#include "base/log.h"
#include "base/mem.h"
#include "batchd/model_files.h"
#include "batchd/paths.h"
#include "engine/engine.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static int absolute_folder(char **out, const char *value, struct err *err) {
    struct stat st;
    if (stat(value, &st) < 0) return err_set(err, E_NOT_FOUND, "no model folder %s: %s", value, strerror(errno));
    if (!S_ISDIR(st.st_mode)) return err_set(err, E_NOT_FOUND, "%s is not a folder; --model takes the folder", value);
    char *path = realpath(value, NULL);
    if (!path) return err_set(err, E_NOT_FOUND, "no model folder %s: %s", value, strerror(errno));
    *out = path;
    return 0;
}

void model_arg_wrap_change(struct err *err, const char *name, const char *dir) {
    struct err why = *err;
    err_set(err, why.code, "model %s: %s; `batchd models check %s` says what else, `batchd models add %s --name %s` takes"
                           " it as it is now", name, why.text, name, dir, name);
}

int model_arg_check_sizes(const struct model_entry *entry, struct err *err) {
    struct model_files then;
    int r = model_files_from_json(&then, entry->files_json, err);
    if (r < 0) return r;
    r = model_files_glance(&then, entry->path, err);
    if (r == E_CONFIG) model_arg_wrap_change(err, entry->name, entry->path);
    else if (r < 0) err_wrap(err, "model %s", entry->name);
    model_files_clear(&then);
    return r;
}

static int registered_folder(char **out, struct store *s, const char *name, struct err *err) {
    struct model_entry entry = {0};
    struct stat st;
    int r = s ? model_get(s, name, &entry, err) : E_NOT_FOUND;
    if (r == 0) {
        r = model_arg_check_sizes(&entry, err);
        if (r == 0) *out = mem_strdup(entry.path);
        model_entry_clear(&entry);
        return r;
    }
    if (r != E_NOT_FOUND) return r;
    if (stat(name, &st) == 0 && S_ISDIR(st.st_mode))
        return err_set(err, E_NOT_FOUND, "no registered model \"%s\"; for the folder write ./%s", name, name);
    return err_set(err, E_NOT_FOUND, "no registered model \"%s\"; `batchd models list` shows them, a folder is written "
                                     "with a /", name);
}

int model_arg_folder(char **out, struct store *s, const char *value, struct err *err) {
    return strchr(value, '/') ? absolute_folder(out, value, err) : registered_folder(out, s, value, err);
}

int model_arg_check(char **out, struct store *s, const char *value, struct err *err) {
    struct model_info info;
    char *folder = NULL;
    if (model_arg_folder(&folder, s, value, err) < 0) return err->code;
    if (model_describe(&info, folder, err) < 0) {
        err_wrap(err, "model %s", folder);
        free(folder);
        return err->code;
    }
    if (strchr(value, '/')) {
        *out = folder;
        return 0;
    }
    free(folder);
    *out = mem_strdup(value);
    return 0;
}

int model_arg_default(char **out, struct err *err) {
    char *demo = paths_demo_model();
    if (!demo) return err_set(err, E_CONFIG, "no model: name one with --model DIR, or see `batchd models add`");
    log_info("no --model: using the demo model of this build tree, %s", demo);
    *out = demo;
    return 0;
}
