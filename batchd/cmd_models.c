/* cmd_models.c - batchd models: short names for model folders, and what is in them. */
#include "base/file.h"
#include "base/hash.h"
#include "base/log.h"
#include "base/mem.h"
#include "batchd/command.h"
#include "batchd/exit.h"
#include "batchd/model_arg.h"
#include "batchd/verbs.h"
#include "engine/engine.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* ---------------------------------------------------------------- files of a folder */

static int by_name(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* Names of the regular files in dir, sorted. */
static int list_files(char ***out, size_t *n, const char *dir, struct err *err) {
    DIR *d = opendir(dir);
    if (!d) return err_set(err, E_NOT_FOUND, "cannot read the folder %s: %s", dir, strerror(errno));
    char **names = NULL;
    size_t count = 0;
    for (struct dirent *e; (e = readdir(d));) {
        struct stat st;
        char *path = path_join(dir, e->d_name);
        if (e->d_name[0] != '.' && stat(path, &st) == 0 && S_ISREG(st.st_mode)) {
            names = mem_realloc(names, count + 1, sizeof *names);
            names[count++] = mem_strdup(e->d_name);
        }
        free(path);
    }
    closedir(d);
    if (count > 0) qsort(names, count, sizeof *names, by_name);
    *out = names;
    *n = count;
    return 0;
}

static int add_file(json_t *list, const char *dir, const char *name, struct err *err) {
    char hex[SHA256_HEX], *path = path_join(dir, name);
    struct stat st;
    int r = sha256_file(path, hex, err);
    if (r == 0 && stat(path, &st) < 0) r = err_set(err, E_IO, "%s: %s", path, strerror(errno));
    if (r == 0)
        json_array_append_new(list, json_pack("{s:s, s:I, s:s}", "name", name, "size", (json_int_t)st.st_size, "sha256", hex));
    free(path);
    return r;
}

/* [{"name","size","sha256"}] of the folder; NULL after an error. */
static json_t *describe_files(const char *dir, struct err *err) {
    char **names = NULL;
    size_t n = 0;
    json_t *list = json_array();
    int r = list_files(&names, &n, dir, err);
    for (size_t i = 0; i < n; i++) {
        if (r == 0) r = add_file(list, dir, names[i], err);
        free(names[i]);
    }
    free(names);
    if (r == 0) return list;
    json_decref(list);
    return NULL;
}

/* ---------------------------------------------------------------- add, check */

static int add(struct store *s, const struct args *args, const char *dir) {
    struct err err = ERR_INIT;
    struct model_info info;
    char *folder = dir ? realpath(dir, NULL) : NULL;
    if (!dir || !args->name) {
        log_error("usage: batchd models add DIR --name NAME");
        return EXIT_USAGE;
    }
    if (!folder) {
        log_error("no model folder %s: %s", dir, strerror(errno));
        return EXIT_MODEL;
    }
    int code = EXIT_DONE;
    json_t *files = NULL;
    if (model_describe(&info, folder, &err) < 0 || !(files = describe_files(folder, &err)))
        code = exit_with(ABOUT_MODEL, &err);
    if (code == EXIT_DONE) {
        char *text = json_dumps(files, JSON_COMPACT);
        if (model_add(s, args->name, folder, text, &err) < 0) code = exit_with(ABOUT_DATABASE, &err);
        else log_info("%s: %s, %zu files", args->name, folder, json_array_size(files));
        free(text);
    }
    json_decref(files);
    free(folder);
    return code;
}

static const json_t *file_named(const json_t *files, const char *name) {
    size_t i;
    json_t *f;
    json_array_foreach(files, i, f) {
        const char *its = json_string_value(json_object_get(f, "name"));
        if (its && strcmp(its, name) == 0) return f;
    }
    return NULL;
}

/* One line a difference; how many. */
static int compare(const json_t *then, const json_t *now) {
    int n = 0;
    size_t i;
    json_t *f;
    json_array_foreach(then, i, f) {
        const char *name = json_string_value(json_object_get(f, "name"));
        const json_t *other = name ? file_named(now, name) : NULL;
        if (other && json_equal(f, (json_t *)other)) continue;
        printf("%s: %s\n", other ? "changed" : "missing", name ? name : "?");
        n++;
    }
    json_array_foreach(now, i, f) {
        const char *name = json_string_value(json_object_get(f, "name"));
        if (name && file_named(then, name)) continue;
        printf("new: %s\n", name);
        n++;
    }
    return n;
}

static int check(const struct model_entry *m) {
    struct err err = ERR_INIT;
    json_t *then = json_loads(m->files_json, 0, NULL), *now = describe_files(m->path, &err);
    int code = EXIT_FAILED;
    if (!now) {
        code = exit_with(ABOUT_MODEL, &err);
    } else if (compare(then, now) == 0) {
        printf("%s: %zu files as they were added\n", m->name, json_array_size(now));
        code = EXIT_DONE;
    } else {
        log_error("%s has changed since it was added; `batchd models add %s --name %s` takes it as it is now", m->name,
                  m->path, m->name);
    }
    json_decref(then);
    json_decref(now);
    return code;
}

/* ---------------------------------------------------------------- list, show */

static json_t *info_json(const struct model_info *m) {
    return json_pack("{s:s, s:s, s:I, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:b, s:I}", "family", m->family, "dtype",
                     m->dtype, "parameters", (json_int_t)m->n_params, "layers", m->n_layers, "hidden", m->hidden,
                     "heads", m->n_heads, "kv_heads", m->n_kv_heads, "head_dim", m->head_dim, "vocabulary", m->vocab,
                     "context", m->context, "sliding_window", m->sliding_window, "tied_embeddings", m->tied_embeddings,
                     "kv_bytes_per_token", (json_int_t)m->kv_bytes_per_token);
}

static void print_info(const char *name, const char *path, const struct model_info *m) {
    char n[32], kv[32];
    printf("%s\n  folder      %s\n", name, path);
    printf("  family      %s, %s, %s parameters\n", m->family, m->dtype, command_count(n, m->n_params));
    printf("  shape       %d layers, hidden %d, %d heads of %d, %d key/value heads\n", m->n_layers, m->hidden, m->n_heads,
           m->head_dim, m->n_kv_heads);
    printf("  vocabulary  %d%s\n", m->vocab, m->tied_embeddings ? ", tied embeddings" : "");
    printf("  context     %d tokens", m->context);
    if (m->sliding_window) printf(", sliding window %d", m->sliding_window);
    printf("; %s bytes of keys and values per token\n", command_count(kv, m->kv_bytes_per_token));
}

static int show(const struct args *args, const char *name, const char *path) {
    struct err err = ERR_INIT;
    struct model_info info;
    if (model_describe(&info, path, &err) < 0) return exit_with(ABOUT_MODEL, &err);
    if (args->json) {
        json_t *o = info_json(&info);
        json_object_set_new(o, "name", json_string(name));
        json_object_set_new(o, "path", json_string(path));
        command_print_json(o);
    } else {
        print_info(name, path, &info);
    }
    return EXIT_DONE;
}

static int list(struct store *s, const struct args *args) {
    struct err err = ERR_INIT;
    struct model_entry *models = NULL;
    size_t n = 0;
    char time[20];
    if (model_list(s, &models, &n, &err) < 0) return exit_with(ABOUT_DATABASE, &err);
    json_t *all = json_array();
    for (size_t i = 0; i < n; i++) {
        struct model_entry *m = &models[i];
        if (!args->json) printf("%-20s  %s  %s\n", m->name, command_time(time, m->added_us), m->path);
        json_array_append_new(all, json_pack("{s:s, s:s, s:f, s:o}", "name", m->name, "path", m->path, "added_at",
                                             (double)m->added_us / 1e6, "files", json_loads(m->files_json, 0, NULL)));
        model_entry_clear(m);
    }
    free(models);
    if (args->json) command_print_json(all);
    else json_decref(all);
    if (n == 0) log_info("no models are registered; `batchd models add DIR --name NAME` adds one");
    return EXIT_DONE;
}

static int with_entry(struct store *s, const struct args *args, const char *name, bool checking) {
    struct err err = ERR_INIT;
    struct model_entry m = {0};
    if (strchr(name, '/') && !checking) return show(args, name, name);
    int r = model_get(s, name, &m, &err);
    if (r < 0) return exit_with(ABOUT_DATABASE, &err);
    int code = checking ? check(&m) : show(args, m.name, m.path);
    model_entry_clear(&m);
    return code;
}

int cmd_models(const struct args *args) {
    struct store *s = NULL;
    const char *what = args->words[0], *name = args->n_words > 1 ? args->words[1] : NULL;
    bool is_add = strcmp(what, "add") == 0, is_show = strcmp(what, "show") == 0, is_check = strcmp(what, "check") == 0;
    if (!is_add && !is_show && !is_check && strcmp(what, "list") != 0) {
        log_error("models: no \"%s\"; there are list, show, add and check", what);
        return EXIT_USAGE;
    }
    if ((is_show || is_check) && !name) {
        log_error("usage: batchd models %s NAME", what);
        return EXIT_USAGE;
    }
    int code = command_open(&s, args, STORE_CREATE);
    if (code == EXIT_DONE) {
        if (is_add) code = add(s, args, name);
        else if (is_show || is_check) code = with_entry(s, args, name, is_check);
        else code = list(s, args);
    }
    store_close(s);
    return code;
}
