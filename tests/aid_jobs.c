/* aid_jobs.c - see aid_jobs.h. */
#include "tests/aid_jobs.h"
#include "base/file.h"
#include "base/mem.h"
#include "tests/unit.h"

#include <ftw.h>
#include <sqlite3.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char folder[64];
static pid_t owner;

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw) {
    return remove(path);
}

static void remove_folder(void) {
    if (getpid() == owner) nftw(folder, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

char *temp_path(const char *name) {
    if (!folder[0]) {
        strcpy(folder, "/tmp/batchd-test-XXXXXX");
        if (!mkdtemp(folder)) abort();
        owner = getpid();
        atexit(remove_folder);
    }
    return path_join(folder, name);
}

void temp_write(const char *path, const void *data, size_t n) {
    FILE *f = fopen(path, "w");
    if (!f || fwrite(data, 1, n, f) != n || fclose(f) != 0) abort();
}

struct store *fresh_store(const char *name) {
    struct err err = ERR_INIT;
    struct store *s = NULL;
    char *path = temp_path(name);
    unlink(path);
    assert_ok(store_open(&s, path, STORE_CREATE, &err), &err);
    free(path);
    return s;
}

static sqlite3_stmt *look(const char *db, const char *sql, sqlite3 **out) {
    sqlite3_stmt *st = NULL;
    if (sqlite3_open(db, out) != SQLITE_OK) abort();
    sqlite3_busy_timeout(*out, 20000);
    if (sqlite3_prepare_v2(*out, sql, -1, &st, NULL) != SQLITE_OK || sqlite3_step(st) != SQLITE_ROW) {
        fprintf(stderr, "%s: %s\n", sql, sqlite3_errmsg(*out));
        abort();
    }
    return st;
}

int64_t look_int(const char *db, const char *sql) {
    sqlite3 *c;
    sqlite3_stmt *st = look(db, sql, &c);
    int64_t v = sqlite3_column_int64(st, 0);
    sqlite3_finalize(st);
    sqlite3_close(c);
    return v;
}

char *look_text(const char *db, const char *sql) {
    sqlite3 *c;
    sqlite3_stmt *st = look(db, sql, &c);
    char *v = mem_strdup((const char *)sqlite3_column_text(st, 0));
    sqlite3_finalize(st);
    sqlite3_close(c);
    return v;
}

void look_exec(const char *db, const char *sql) {
    sqlite3 *c;
    if (sqlite3_open(db, &c) != SQLITE_OK) abort();
    sqlite3_busy_timeout(c, 20000);
    if (sqlite3_exec(c, sql, NULL, NULL, NULL) != SQLITE_OK) {
        fprintf(stderr, "%s: %s\n", sql, sqlite3_errmsg(c));
        abort();
    }
    sqlite3_close(c);
}

void assert_look(struct store *s, const char *sql, const char *expected) {
    char *got = look_text(store_path(s), sql);
    assert_string_equal(got, expected);
    free(got);
}

int submit_text(struct store *s, const char *name, const char *text, struct submit_options options,
                struct submit_report *report, struct err *err) {
    static const struct job_settings none;
    char *path = temp_path(name);
    temp_write(path, text, strlen(text));
    options.path = path;
    if (!options.settings) options.settings = &none;
    int r = job_submit(s, &options, report, err);
    free(path);
    return r;
}

struct result_row ok_result(int64_t job_id, int64_t row, const char *text) {
    return (struct result_row){.job_id = job_id, .row = row, .status = ROW_OK, .finish_reason = "stop", .codec = CODEC_RAW,
                               .text = text, .text_bytes = strlen(text), .prompt_tokens = 3, .completion_tokens = 5,
                               .attempt = 1, .wait_us = 1, .queue_us = 2, .prefill_us = 3000, .ttft_us = 3002,
                               .decode_us = 8000, .e2e_us = 11002, .seed = 7};
}
