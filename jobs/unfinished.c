/* unfinished.c - see unfinished.h. Errors are let go: whoever comes next tries again. */
#include "jobs/unfinished.h"
#include "jobs/locks.h"

#include <unistd.h>

enum { REMOVE_ROWS = 1 << 16 };

static int64_t last_row(struct store *s, int64_t job_id) {
    sqlite3_stmt *st = sql_prepare(s, "SELECT max(id) FROM request WHERE id BETWEEN ?1 AND ?2", NULL);
    if (!st) return -1;
    sql_bind_int(st, 1, row_id(job_id, 0));
    sql_bind_int(st, 2, row_id(job_id, UINT32_MAX));
    int64_t last = -1;
    if (sql_step(s, st, NULL) == 1 && sqlite3_column_type(st, 0) != SQLITE_NULL)
        last = sqlite3_column_int64(st, 0) - row_id(job_id, 0);
    sqlite3_reset(st);
    return last;
}

static int run_with_id(struct store *s, const char *text, int64_t job_id) {
    sqlite3_stmt *st = sql_prepare(s, text, NULL);
    if (!st) return E_IO;
    sql_bind_int(st, 1, job_id);
    return sql_run(s, st, NULL);
}

/* Who has the lock of a job that is loading knows that its loader is dead. But a loader may have finished between
 * a look at the state and the lock: then the job is whole, and not ours to touch. */
static bool is_loading(struct store *s, int64_t job_id) {
    sqlite3_stmt *st = sql_prepare(s, "SELECT 1 FROM job WHERE job_id = ?1 AND state = 'loading'", NULL);
    if (!st) return false;
    sql_bind_int(st, 1, job_id);
    bool found = sql_step(s, st, NULL) == 1;
    sqlite3_reset(st);
    return found;
}

/* The job itself goes, and its number is the next one's if no other came behind it. */
static void give_number_back(struct store *s, int64_t job_id) {
    if (sql_exec(s, "BEGIN IMMEDIATE", NULL) < 0) return;
    int r = run_with_id(s, "DELETE FROM job WHERE job_id = ?1 AND state = 'loading'", job_id);
    if (r == 0 && sqlite3_changes(s->db) > 0)
        r = run_with_id(s, "UPDATE sqlite_sequence SET seq = ?1 - 1 WHERE name = 'job' AND seq = ?1", job_id);
    if (r == 0) r = sql_exec(s, "COMMIT", NULL);
    if (r < 0) sql_rollback(s);
}

void unfinished_remove(struct store *s, int64_t job_id) {
    if (!is_loading(s, job_id)) return;
    int64_t last = last_row(s, job_id);
    for (int64_t row = 0; row <= last; row += REMOVE_ROWS) { /* in steps, so that nobody waits long */
        sqlite3_stmt *rows = sql_prepare(s,
                                         "DELETE FROM request WHERE id BETWEEN ?1 AND ?2"
                                         " AND EXISTS (SELECT 1 FROM job WHERE job_id = ?3 AND state = 'loading')",
                                         NULL);
        if (!rows) return;
        sql_bind_int(rows, 1, row_id(job_id, row));
        sql_bind_int(rows, 2, row_id(job_id, row + REMOVE_ROWS - 1));
        sql_bind_int(rows, 3, job_id);
        if (sql_run(s, rows, NULL) < 0) return;
    }
    give_number_back(s, job_id);
}

void unfinished_clean(struct store *s) {
    int64_t dead[64];
    size_t n = 0;
    sqlite3_stmt *st = sql_prepare(s, "SELECT job_id FROM job WHERE state = 'loading'", NULL);
    while (st && n < 64 && sql_step(s, st, NULL) == 1) dead[n++] = sqlite3_column_int64(st, 0);
    if (st) sqlite3_reset(st);
    for (size_t i = 0; i < n; i++) {
        int lock;
        if (lock_loader(&lock, store_path(s), dead[i], NULL) < 0) continue; /* it lives */
        unfinished_remove(s, dead[i]);
        close(lock);
    }
}
