/* models.c - registered models: short names for folders, with their files' hashes. */
#include "base/clock.h"
#include "base/mem.h"
#include "jobs/store.h"

#include <stdlib.h>
#include <string.h>

static bool is_name(const char *name) {
    size_t n = strspn(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-");
    return n > 0 && n <= 64 && name[n] == '\0' && strcmp(name, ".") != 0 && strcmp(name, "..") != 0;
}

int model_add(struct store *s, const char *name, const char *path, const char *files_json, struct err *err) {
    if (!is_name(name))
        return err_set(err, E_USAGE, "\"%s\" is no model name: 1 to 64 of letters, digits, . _ and -", name);
    sqlite3_stmt *st = sql_prepare(s,
                                   "INSERT INTO model(name, path, files, added_at) VALUES (?1, ?2, ?3, ?4) ON CONFLICT(name)"
                                   " DO UPDATE SET path = ?2, files = ?3, added_at = ?4",
                                   err);
    if (!st) return sql_error(s, err);
    sql_bind_text(st, 1, name);
    sql_bind_text(st, 2, path);
    sql_bind_text(st, 3, files_json);
    sql_bind_int(st, 4, clock_wall_us());
    return sql_run(s, st, err);
}

int model_touch(struct store *s, const char *name, const char *before, const char *files_json, struct err *err) {
    sqlite3_stmt *st = sql_prepare(s, "UPDATE model SET files = ?3 WHERE name = ?1 AND files = ?2", err);
    if (!st) return sql_error(s, err);
    sql_bind_text(st, 1, name);
    sql_bind_text(st, 2, before);
    sql_bind_text(st, 3, files_json);
    return sql_run(s, st, err);
}

static void read_entry(sqlite3_stmt *st, struct model_entry *m) {
    *m = (struct model_entry){.name = sql_text(st, 0), .path = sql_text(st, 1), .files_json = sql_text(st, 2),
                              .added_us = sqlite3_column_int64(st, 3)};
}

void model_entry_clear(struct model_entry *m) {
    free(m->name);
    free(m->path);
    free(m->files_json);
    *m = (struct model_entry){0};
}

int model_get(struct store *s, const char *name, struct model_entry *out, struct err *err) {
    sqlite3_stmt *st = sql_prepare(s, "SELECT name, path, files, added_at FROM model WHERE name = ?1", err);
    if (!st) return sql_error(s, err);
    sql_bind_text(st, 1, name);
    int r = sql_step(s, st, err);
    if (r == 1) read_entry(st, out);
    sqlite3_reset(st);
    if (r == 0)
        return err_set(err, E_NOT_FOUND, "no model named \"%s\"; register it with `batchd models add DIR --name %s`, or give a folder with a / in it", name, name);
    return r < 0 ? r : 0;
}

int model_list(struct store *s, struct model_entry **out, size_t *n, struct err *err) {
    sqlite3_stmt *st = sql_prepare(s, "SELECT name, path, files, added_at FROM model ORDER BY name", err);
    struct model_entry *list = NULL;
    size_t count = 0;
    int r;
    if (!st) return sql_error(s, err);
    while ((r = sql_step(s, st, err)) == 1) {
        list = mem_realloc(list, count + 1, sizeof *list);
        read_entry(st, &list[count++]);
    }
    if (r < 0) {
        for (size_t i = 0; i < count; i++) model_entry_clear(&list[i]);
        free(list);
        return r;
    }
    *out = list;
    *n = count;
    return 0;
}

/* The first unfinished job that names the model; 0 = none. */
static int job_that_needs(struct store *s, const char *name, int64_t *job_id, struct err *err) {
    sqlite3_stmt *st = sql_prepare(
        s, "SELECT job_id FROM job WHERE model = ?1 AND state IN ('loading', 'queued', 'running') LIMIT 1", err);
    if (!st) return sql_error(s, err);
    sql_bind_text(st, 1, name);
    int r = sql_step(s, st, err);
    *job_id = r == 1 ? sqlite3_column_int64(st, 0) : 0;
    sqlite3_reset(st);
    return r < 0 ? r : 0;
}

static int delete_entry(struct store *s, const char *name, struct err *err) {
    int64_t job_id = 0;
    int r = job_that_needs(s, name, &job_id, err);
    if (r < 0) return r;
    if (job_id) return err_set(err, E_FAIL, "job %lld is not finished and needs model \"%s\"", (long long)job_id, name);
    sqlite3_stmt *st = sql_prepare(s, "DELETE FROM model WHERE name = ?1", err);
    if (!st) return sql_error(s, err);
    sql_bind_text(st, 1, name);
    r = sql_run(s, st, err);
    if (r < 0 || sqlite3_changes(s->db) > 0) return r;
    return err_set(err, E_NOT_FOUND, "no model named \"%s\"; `batchd models list` shows those there are", name);
}

int model_remove(struct store *s, const char *name, struct err *err) {
    int r = sql_exec(s, "BEGIN IMMEDIATE", err);
    if (r < 0) return r;
    r = delete_entry(s, name, err);
    if (r == 0) r = sql_exec(s, "COMMIT", err);
    if (r < 0) sql_rollback(s);
    return r;
}
