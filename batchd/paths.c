/* paths.c - see paths.h. */
#include "batchd/paths.h"
#include "base/buf.h"
#include "base/file.h"
#include "base/mem.h"

#include <limits.h>
#include <pwd.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static bool is_set(const char *value) {
    return value && *value;
}

int paths_database(char **out, const char *flag, struct err *err) {
    const char *env = getenv("BATCHD_DB"), *data = getenv("XDG_DATA_HOME"), *home = getenv("HOME");
    if (is_set(flag)) return *out = mem_strdup(flag), 0;
    if (is_set(env)) return *out = mem_strdup(env), 0;
    /* The XDG specification says to ignore a relative folder. */
    if (is_set(data) && *data == '/') return *out = path_join(data, "batchd/batchd.db"), 0;
    if (!is_set(home)) {
        const struct passwd *entry = getpwuid(getuid());
        home = entry ? entry->pw_dir : NULL;
    }
    if (!is_set(home)) return err_set(err, E_CONFIG, "no home folder to keep a database in; name one with --db");
    *out = path_join(home, ".local/share/batchd/batchd.db");
    return 0;
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

bool paths_in_build_tree(void) {
    char *path = paths_demo_model();
    bool found = path != NULL;
    free(path);
    return found;
}
