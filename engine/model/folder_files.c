/* folder_files.c - which files of a model folder are read: config.c, safetensors.c and
 * tokenizer_load.c open them under these names. */
#include "base/file.h"
#include "base/mem.h"
#include "engine/engine.h"
#include "engine/model/safetensors.h"

#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct names {
    char **list;
    size_t n;
};

static void add(struct names *names, const char *name) {
    names->list = mem_realloc(names->list, names->n + 1, sizeof *names->list);
    names->list[names->n++] = mem_strdup(name);
}

static bool add_if_there(struct names *names, const char *dir, const char *name) {
    char *path = path_join(dir, name);
    bool is_there = access(path, F_OK) == 0;
    free(path);
    if (is_there) add(names, name);
    return is_there;
}

static int by_name(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

bool model_has_weights(const char *model_dir) {
    static const char ending[] = ".safetensors";
    const size_t n_ending = sizeof ending - 1;
    bool has = false;
    DIR *dir = opendir(model_dir);
    for (const struct dirent *e; dir && !has && (e = readdir(dir));) {
        size_t n = strlen(e->d_name);
        has = n > n_ending && strcmp(e->d_name + n - n_ending, ending) == 0;
    }
    if (dir) closedir(dir);
    return has;
}

int model_list_files(char ***out, size_t *n, const char *model_dir, struct err *err) {
    static const char *const known[] = {"config.json", "generation_config.json", "tokenizer.json",
                                        "tokenizer_config.json", "chat_template.jinja",
                                        "additional_chat_templates/tool_use.jinja"};
    struct names names = {0};
    struct checkpoint *c;
    int r = checkpoint_open(&c, model_dir, err);
    if (r < 0) return r;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) add_if_there(&names, model_dir, known[i]);
    bool is_one_file = add_if_there(&names, model_dir, "model.safetensors"); /* which then counts alone */
    if (!is_one_file) add(&names, "model.safetensors.index.json");
    for (size_t i = 0; !is_one_file && i < checkpoint_n_files(c); i++) add(&names, checkpoint_file_name(c, i));
    checkpoint_close(c);
    qsort(names.list, names.n, sizeof *names.list, by_name);
    *out = names.list;
    *n = names.n;
    return 0;
}
