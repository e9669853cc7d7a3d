/* cmd_models.c - batchd models: short names for model folders, and what is in them. */
#include "base/log.h"
#include "base/mem.h"
#include "batchd/command.h"
#include "batchd/exit.h"
#include "batchd/model_files.h"
#include "batchd/model_show.h"
#include "batchd/progress.h"
#include "batchd/verbs.h"
#include "engine/engine.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* ---------------------------------------------------------------- hashes, with a bar */

static void show_bytes(void *arg, int64_t bytes, int64_t total) {
    struct progress_state state = {.n_total = total >> 20, .n_finished = bytes >> 20, .n_running = -1, .what = "MiB"};
    progress_update(arg, &state);
}

/* What the folder holds, every byte of it hashed; `more`: see model_files_list. */
static int describe_files(struct model_files *out, const char *dir, const struct model_files *more,
                          const struct args *args, struct err *err) {
    int r = model_files_list(out, dir, more, err);
    if (r < 0) return r;
    struct progress *p = progress_new(args);
    r = model_files_hash(out, dir, false, show_bytes, p, err);
    progress_free(p);
    if (r < 0) model_files_clear(out);
    return r;
}

/* ---------------------------------------------------------------- add, check, remove */

static int add_folder(struct store *s, const struct args *args, const char *folder) {
    struct err err = ERR_INIT;
    struct model_info info;
    struct model_files files;
    int r = model_describe(&info, folder, &err);
    if (r == 0) r = describe_files(&files, folder, NULL, args, &err);
    if (r < 0) return exit_with(ABOUT_MODEL, &err);
    char *text = model_files_to_json(&files);
    int code = model_add(s, args->name, folder, text, &err) < 0 ? exit_with(ABOUT_DATABASE, &err) : EXIT_DONE;
    if (code == EXIT_DONE) log_info("%s: %s, %zu files", args->name, folder, files.n);
    free(text);
    model_files_clear(&files);
    return code;
}

static int add(struct store *s, const struct args *args, const char *dir) {
    char *folder = realpath(dir, NULL);
    if (!folder) {
        log_error("no model folder %s: %s", dir, strerror(errno));
        return EXIT_MODEL;
    }
    int code = add_folder(s, args, folder);
    free(folder);
    return code;
}

struct differences {
    bool json;
    json_t *list; /* [{"file","change"}] */
};

static void note_difference(void *arg, enum file_change change, const char *name) {
    static const char *const what[] = {"changed", "missing", "new"};
    struct differences *d = arg;
    json_array_append_new(d->list, json_pack("{s:s, s:s}", "file", name, "change", what[change]));
    if (!d->json) printf("%s: %s\n", what[change], name);
}

static int check(const struct model_entry *m, const struct args *args, json_t *all) {
    struct err err = ERR_INIT;
    struct model_files then = {0}, now = {0};
    struct differences d = {args->json, json_array()};
    int r = model_files_from_json(&then, m->files_json, &err), code = EXIT_FAILED, n = 0;
    if (r == 0) r = describe_files(&now, m->path, &then, args, &err);
    if (r == 0) n = model_files_compare(&then, &now, note_difference, &d);
    if (r < 0) {
        err_wrap(&err, "model %s", m->name);
        code = exit_with(ABOUT_MODEL, &err);
    } else if (n == 0) {
        if (!args->json) printf("%s: %zu files as they were added\n", m->name, now.n);
        code = EXIT_DONE;
    } else {
        log_error("%s has changed since it was added; `batchd models add %s --name %s` takes it as it is now", m->name,
                  m->path, m->name);
    }
    json_array_append_new(all, json_pack("{s:s, s:o, s:b, s:o}", "name", m->name, "path", command_text_json(m->path), "same",
                                         code == EXIT_DONE, "differences", d.list));
    model_files_clear(&then);
    model_files_clear(&now);
    return code;
}

/* One model, or all; the worst code. */
static int check_all(struct store *s, const struct args *args, const char *name) {
    struct err err = ERR_INIT;
    struct model_entry *models = NULL;
    size_t n = 0;
    int code = EXIT_DONE;
    if (name) models = mem_zalloc(n = 1, sizeof *models);
    if ((name ? model_get(s, name, models, &err) : model_list(s, &models, &n, &err)) < 0) {
        free(models);
        return exit_with(ABOUT_DATABASE, &err);
    }
    json_t *all = json_array();
    for (size_t i = 0; i < n; i++) {
        int its = check(&models[i], args, all);
        if (its > code) code = its;
        model_entry_clear(&models[i]);
    }
    free(models);
    if (args->json) command_print_json(all);
    else json_decref(all);
    return code;
}

static int remove_name(struct store *s, const char *name) {
    struct err err = ERR_INIT;
    if (model_remove(s, name, &err) < 0) return exit_with(ABOUT_DATABASE, &err);
    log_info("%s: no name any more; its folder stays as it is", name);
    return EXIT_DONE;
}

/* ---------------------------------------------------------------- list, show */

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
        json_array_append_new(all, json_pack("{s:s, s:o, s:f, s:o}", "name", m->name, "path", command_text_json(m->path), "added_at",
                                             (double)m->added_us / 1e6, "files", json_loads(m->files_json, 0, NULL)));
        model_entry_clear(m);
    }
    free(models);
    if (args->json) command_print_json(all);
    else json_decref(all);
    if (n == 0) log_info("no models are registered; `batchd models add DIR --name NAME` adds one");
    return EXIT_DONE;
}

static int show_named(struct store *s, const struct args *args, const char *name) {
    struct err err = ERR_INIT;
    struct model_entry m = {0};
    if (model_get(s, name, &m, &err) < 0) return exit_with(ABOUT_DATABASE, &err);
    int code = model_show(args, m.name, m.path);
    model_entry_clear(&m);
    return code;
}

/* ---------------------------------------------------------------- the command */

enum what { WHAT_ADD, WHAT_LIST, WHAT_CHECK, WHAT_SHOW, WHAT_REMOVE, N_WHATS };
static const char *const words[N_WHATS] = {"add", "list", "check", "show", "remove"};

static int find_what(enum what *out, const struct args *args) {
    static const char *const usages[N_WHATS] = {"add DIR --name NAME", "list", "check [NAME]", "show NAME|DIR", "remove NAME"};
    int w = 0;
    while (w < N_WHATS && strcmp(words[w], args->words[0]) != 0) w++;
    *out = (enum what)w;
    bool needs_word = w == WHAT_ADD || w == WHAT_SHOW || w == WHAT_REMOVE;
    if (w == N_WHATS) log_error("models: no \"%s\"; there are list, show, add, check and remove", args->words[0]);
    else if ((needs_word && args->n_words < 2) || (w == WHAT_LIST && args->n_words > 1) || (w == WHAT_ADD) != (args->name != NULL))
        log_error("usage: batchd models %s", usages[w]);
    else return EXIT_DONE;
    return EXIT_USAGE;
}

int cmd_models(const struct args *args) {
    struct store *s = NULL;
    const char *name = args->n_words > 1 ? args->words[1] : NULL;
    enum what what;
    int code = find_what(&what, args);
    if (code == EXIT_DONE && what == WHAT_SHOW && strchr(name, '/')) return model_show(args, name, name);
    if (code == EXIT_DONE)
        code = what == WHAT_ADD || what == WHAT_REMOVE ? command_open(&s, args, STORE_CREATE)
                                                       : command_open_or_read(&s, args, STORE_CREATE);
    if (code != EXIT_DONE) return code;
    switch (what) {
    case WHAT_ADD: code = add(s, args, name); break;
    case WHAT_CHECK: code = check_all(s, args, name); break;
    case WHAT_SHOW: code = show_named(s, args, name); break;
    case WHAT_REMOVE: code = remove_name(s, name); break;
    default: code = list(s, args); break;
    }
    store_close(s);
    return code;
}
