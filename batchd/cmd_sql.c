/* cmd_sql.c - batchd sql: the stock sqlite3 shell with our functions loaded. */
#include "base/log.h"
#include "base/mem.h"
#include "batchd/command.h"
#include "batchd/exit.h"
#include "batchd/paths.h"
#include "batchd/verbs.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char *load_line(const char *extension) {
    struct buf b = BUF_INIT(0);
    buf_printf(&b, ".load \"%s\"", extension);
    return buf_take(&b);
}

static int become_shell(const struct args *args, const char *db, const char *load) {
    const char **argv = mem_zalloc(args->n_words + 8, sizeof *argv);
    size_t n = 0;
    argv[n++] = "sqlite3";
    if (!args->write) argv[n++] = "-readonly";
    if (load) {
        argv[n++] = "-cmd";
        argv[n++] = load;
    }
    argv[n++] = db;
    for (size_t i = 0; i < args->n_words; i++) argv[n++] = args->words[i];
    execvp("sqlite3", (char **)argv);
    free(argv);
    log_error("cannot start sqlite3: %s; install the package sqlite3", strerror(errno));
    return EXIT_CONFIG;
}

int cmd_sql(const struct args *args) {
    struct store *s = NULL;
    int code = command_open(&s, args, args->write ? STORE_WRITE : STORE_READ); /* with clear errors */
    if (code != EXIT_DONE) return code;
    char *db = mem_strdup(store_path(s)), *extension = paths_extension(), *load = extension ? load_line(extension) : NULL;
    store_close(s);
    if (!extension) log_warn("batchd_sqlite.so was not found beside the program: the view results will not show text");
    code = become_shell(args, db, load);
    free(load);
    free(extension);
    free(db);
    return code;
}
