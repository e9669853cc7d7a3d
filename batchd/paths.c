/* paths.c - see paths.h. */
#include "batchd/paths.h"
#include "base/file.h"
#include "base/mem.h"

#include <libgen.h>
#include <limits.h>
#include <pwd.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static bool is_set(const char *value) {
    return value && *value;
}

/* NULL: there is none. */
static const char *home_folder(void) {
    const char *home = getenv("HOME");
    if (is_set(home)) return home;
    const struct passwd *entry = getpwuid(getuid());
    return entry && is_set(entry->pw_dir) ? entry->pw_dir : NULL;
}

/* The one name of a file, links resolved: locks lie beside the database, and two names of it
 * would have two locks. A file that is not there yet is named by its folder; takes `path`. */
static char *real_name(char *path) {
    char *real = realpath(path, NULL);
    if (!real) {
        char *copy = mem_strdup(path), *folder = realpath(dirname(copy), NULL);
        const char *slash = strrchr(path, '/');
        if (folder) real = path_join(folder, slash ? slash + 1 : path);
        free(folder);
        free(copy);
    }
    if (!real) return path;
    free(path);
    return real;
}

int paths_database(char **out, const char *flag, struct err *err) {
    const char *env = getenv("BATCHD_DB"), *data = getenv("XDG_DATA_HOME"), *home = home_folder();
    char *path;
    if (is_set(flag)) path = mem_strdup(flag);
    else if (is_set(env)) path = mem_strdup(env);
    /* The XDG specification says to ignore a relative folder. */
    else if (is_set(data) && *data == '/') path = path_join(data, "batchd/batchd.db");
    else if (home) path = path_join(home, ".local/share/batchd/batchd.db");
    else return err_set(err, E_CONFIG, "no home folder to keep a database in; name one with --db");
    *out = real_name(path);
    return 0;
}

char *paths_cache(const char *flag) {
    const char *cache = getenv("XDG_CACHE_HOME"), *home = home_folder();
    if (is_set(flag)) return mem_strdup(flag);
    if (is_set(cache) && *cache == '/') return path_join(cache, "batchd");
    return home ? path_join(home, ".cache/batchd") : NULL;
}

/* The folder of the executable, "." when the kernel does not tell. */
static char *exe_dir(void) {
    char path[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", path, sizeof path - 1);
    if (n <= 0) return mem_strdup(".");
    path[n] = '\0';
    char *slash = strrchr(path, '/');
    if (!slash) return mem_strdup(".");
    *slash = '\0';
    return mem_strdup(slash == path ? "/" : path);
}

/* dir/name when there is such a thing, else NULL. */
static char *existing(const char *dir, const char *name) {
    struct stat st;
    char *path = path_join(dir, name);
    if (stat(path, &st) == 0) return path;
    free(path);
    return NULL;
}

char *paths_extension(void) {
    char *dir = exe_dir();
    char *path = existing(dir, "batchd_sqlite.so");
    if (!path) path = existing(dir, "../lib/batchd/batchd_sqlite.so");
    if (!path) path = existing(BATCHD_PREFIX "/lib/batchd", "batchd_sqlite.so");
    free(dir);
    return path;
}

/* The program is build/batchd or build/VARIANT/batchd, in tests build/tests/batchd-fake. */
char *paths_demo_model(void) {
    char *dir = exe_dir();
    size_t n = strlen(dir);
    if (n > 6 && strcmp(dir + n - 6, "/tests") == 0) dir[n - 6] = '\0';
    char *path = existing(dir, "../tests/models/demo");
    if (!path) path = existing(dir, "../../tests/models/demo");
    free(dir);
    if (!path) return NULL;
    char *real = realpath(path, NULL);
    free(path);
    return real;
}
