/* cmd_doctor.c - batchd doctor: what could go wrong on this machine, one line a check. */
#include "base/mem.h"
#include "batchd/command.h"
#include "batchd/exit.h"
#include "batchd/model_arg.h"
#include "batchd/paths.h"
#include "batchd/terminal.h"
#include "batchd/verbs.h"
#include "batchd/version.h"

#include <inttypes.h>
#include <libgen.h>
#include <sched.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

enum verdict { OK, WARN, FAIL };

struct report {
    const struct args *args;
    json_t *list;
    bool failed, color;
};

__attribute__((format(printf, 4, 5))) static void say(struct report *r, enum verdict v, const char *what, const char *fmt, ...) {
    static const char *const words[] = {"OK", "WARN", "FAIL"}, *const colors[] = {"32", "33", "31"};
    char text[600];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    if (v == FAIL) r->failed = true;
    if (r->args->json)
        json_array_append_new(r->list, json_pack("{s:s, s:s, s:o}", "check", what, "verdict", words[v], "text", command_text_json(text)));
    else if (r->color) printf("\033[%sm%-4s\033[0m  %-10s %s\n", colors[v], words[v], what, text);
    else printf("%-4s  %-10s %s\n", words[v], what, text);
}

static void check_machine(struct report *r) {
    cpu_set_t cpus;
    char n[32];
    CPU_ZERO(&cpus);
    int cores = sched_getaffinity(0, sizeof cpus, &cpus) == 0 ? CPU_COUNT(&cpus) : 1;
    int64_t available = 0, kib = 0;
    FILE *f = fopen("/proc/meminfo", "re");
    char line[200];
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "MemAvailable: %" SCNd64, &kib) == 1) available = kib >> 10;
    if (f) fclose(f);
    say(r, OK, "cpu", "%d cores for this process", cores);
    if (available < 512) say(r, WARN, "memory", "%s MiB are available; a model needs its weights and a KV cache", command_count(n, available));
    else say(r, OK, "memory", "%s MiB are available", command_count(n, available));
    if (time(NULL) < 1700000000) say(r, WARN, "clock", "the wall clock is in the past; times of jobs will look odd");
    else say(r, OK, "clock", "the wall clock looks right");
}

/* Locks and shared memory of SQLite do not work over a network. */
static bool is_network(long type) {
    static const long types[] = {0x6969, 0xFF534D42, 0x517B, 0xFE534D42, 0x01021997, 0x65735546};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (type == types[i]) return true;
    return false;
}

static void check_disk(struct report *r, const char *db) {
    char *copy = mem_strdup(db), *dir = dirname(copy), n[32];
    struct statvfs vfs;
    struct statfs fs;
    if (statvfs(dir, &vfs) < 0) {
        say(r, OK, "disk", "%s is not there yet; it will be made", dir);
    } else {
        int64_t mib = (int64_t)vfs.f_bavail * (int64_t)vfs.f_frsize >> 20;
        if (mib < 256) say(r, WARN, "disk", "%s MiB are free in %s; when it is full, results wait", command_count(n, mib), dir);
        else say(r, OK, "disk", "%s MiB are free in %s", command_count(n, mib), dir);
        if (statfs(dir, &fs) == 0 && is_network((long)fs.f_type))
            say(r, FAIL, "disk", "%s is on a network file system, where SQLite's locks are not safe; use a local disk", dir);
        if (access(dir, W_OK) != 0) say(r, FAIL, "disk", "%s is not writable for you; name a database with --db", dir);
    }
    free(copy);
}

static void check_models(struct report *r, struct store *s) {
    struct err err = ERR_INIT;
    struct model_entry *models = NULL;
    size_t n = 0, n_good = 0;
    if (model_list(s, &models, &n, &err) < 0) say(r, FAIL, "models", "%s", err.text);
    for (size_t i = 0; i < n; i++) {
        if (model_arg_check_sizes(&models[i], &err) == 0) n_good++;
        else say(r, WARN, "models", "%s", err.text);
        model_entry_clear(&models[i]);
    }
    free(models);
    if (n > 0 && n_good == n) say(r, OK, "models", "names: %zu; the files have the sizes that they had, `batchd models check` reads them", n);
}

static void check_database(struct report *r, const char *db) {
    struct err err = ERR_INIT;
    struct store *s = NULL;
    if (access(db, F_OK) != 0) {
        say(r, OK, "database", "%s is not there yet; the first submit makes it", db);
        return;
    }
    int code = store_open(&s, db, STORE_READ, &err);
    if (code == 0) code = store_check(s, &err);
    if (code < 0) say(r, FAIL, "database", "%s", err.text);
    else say(r, OK, "database", "%s: quick_check is ok", db);
    if (code == 0 && access(db, W_OK) != 0) say(r, WARN, "database", "not writable for you: its results can be read, no more");
    if (code == 0) check_models(r, s);
    store_close(s);
    int pid = 0;
    if (worker_is_alive(db, &pid)) say(r, OK, "daemon", "alive, pid %d", pid);
    else say(r, OK, "daemon", "none; `batchd serve` starts one");
}

static bool on_path(const char *program) {
    const char *path = getenv("PATH");
    char *copy = mem_strdup(path ? path : "/usr/bin:/bin"), *save = NULL, file[4096];
    bool found = false;
    for (char *dir = strtok_r(copy, ":", &save); dir && !found; dir = strtok_r(NULL, ":", &save)) {
        snprintf(file, sizeof file, "%s/%s", dir, program);
        found = access(file, X_OK) == 0;
    }
    free(copy);
    return found;
}

static void check_installation(struct report *r) {
    char *extension = paths_extension(), *demo = paths_demo_model();
    say(r, OK, "program", "batchd %s", VERSION_TEXT);
    if (extension) say(r, OK, "extension", "%s", extension);
    else say(r, WARN, "extension", "batchd_sqlite.so is not beside the program: `batchd sql` will show no text; run make");
    if (on_path("sqlite3")) say(r, OK, "sqlite3", "the shell is there");
    else say(r, WARN, "sqlite3", "the shell is missing: `batchd sql` needs it; apt-get install sqlite3");
    if (demo) say(r, OK, "model", "demo model %s", demo);
    else say(r, OK, "model", "no default; name one with --model");
    free(extension);
    free(demo);
}

int cmd_doctor(const struct args *args) {
    struct err err = ERR_INIT;
    struct report r = {.args = args, .list = json_array(), .color = terminal_has_color(STDOUT_FILENO, args->no_color)};
    char *db;
    if (paths_database(&db, args->db, &err) < 0) {
        json_decref(r.list);
        return exit_with(ABOUT_DATABASE, &err);
    }
    check_installation(&r);
    check_machine(&r);
    check_disk(&r, db);
    check_database(&r, db);
    free(db);
    if (args->json) command_print_json(r.list);
    else json_decref(r.list);
    return r.failed ? EXIT_FAILED : EXIT_DONE;
}
