/* provenance.c - which weights a job's results are made with.
 *
 * A job is noted once, before its first lease, by the hash of all that its model folder
 * holds. From then on it runs on those weights alone: results of two models under one job
 * would be told apart by nobody. */
#include "base/clock.h"
#include "base/hash.h"
#include "jobs/worker.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

static const char *text_of(const json_t *file, const char *key) {
    return json_string_value(json_object_get(file, key));
}

/* [{"name","size","sha256"}] and nothing else. */
static json_t *plain_files(const char *files_json) {
    json_t *all = json_loads(files_json, 0, NULL), *plain = json_array(), *file;
    size_t i;
    json_array_foreach(all, i, file)
        json_array_append_new(plain, json_pack("{s:O, s:O, s:O}", "name", json_object_get(file, "name"), "size",
                                               json_object_get(file, "size"), "sha256", json_object_get(file, "sha256")));
    json_decref(all);
    return plain;
}

static void hash_files(const json_t *files, bool is_whole, char hex[SHA256_HEX]) {
    struct sha256 *sha = sha256_new();
    const json_t *file;
    size_t i;
    sha256_add_text(sha, is_whole ? "whole files" : "headers");
    json_array_foreach(files, i, file) {
        int64_t size = json_integer_value(json_object_get(file, "size"));
        sha256_add_text(sha, text_of(file, "name"));
        sha256_add(sha, &size, sizeof size);
        sha256_add_text(sha, text_of(file, "sha256"));
    }
    sha256_finish(sha, hex);
}

static int find(struct worker *w, const char *sha256, int64_t *weights_id, struct err *err) {
    sqlite3_stmt *st = sql_prepare(w->s, "SELECT weights_id FROM weights WHERE sha256 = ?1", err);
    if (!st) return sql_error(w->s, err);
    sql_bind_text(st, 1, sha256);
    int r = sql_step(w->s, st, err);
    *weights_id = r == 1 ? sqlite3_column_int64(st, 0) : 0;
    sqlite3_reset(st);
    return r < 0 ? r : 0;
}

static int insert(struct worker *w, const struct weights_seen *seen, const json_t *files, const char *sha256,
                  struct err *err) {
    sqlite3_stmt *st = sql_prepare(
        w->s, "INSERT INTO weights(sha256, whole, path, files, met_at) VALUES (?1, ?2, ?3, ?4, ?5)", err);
    if (!st) return sql_error(w->s, err);
    char *text = json_dumps(files, JSON_COMPACT);
    sql_bind_text(st, 1, sha256);
    sql_bind_int(st, 2, seen->is_whole);
    sql_bind_text(st, 3, seen->path);
    sql_bind_text(st, 4, text);
    sql_bind_int(st, 5, clock_wall_us());
    free(text);
    return sql_run(w->s, st, err);
}

static const json_t *file_named(const json_t *files, const char *name) {
    const json_t *file;
    size_t i;
    json_array_foreach(files, i, file)
        if (text_of(file, "name") && name && strcmp(text_of(file, "name"), name) == 0) return file;
    return NULL;
}

/* The name of one file that is not the same in both; "" where the lists agree. */
static const char *difference(const json_t *a, const json_t *b) {
    const json_t *lists[] = {a, b}, *file;
    size_t i;
    for (int k = 0; k < 2; k++)
        json_array_foreach(lists[k], i, file) {
            const json_t *other = file_named(lists[1 - k], text_of(file, "name"));
            if (!other || !json_equal((json_t *)file, (json_t *)other)) return text_of(file, "name");
        }
    return "";
}

/* The job began with other weights: E_CONFIG. */
static int refuse(struct worker *w, int64_t job_id, const struct weights_seen *seen, const json_t *files, struct err *err) {
    sqlite3_stmt *st = sql_prepare(
        w->s, "SELECT w.whole, w.files FROM job j JOIN weights w ON w.weights_id = j.weights_id WHERE j.job_id = ?1", err);
    if (!st) return sql_error(w->s, err);
    sql_bind_int(st, 1, job_id);
    int r = sql_step(w->s, st, err);
    if (r < 0) return r;
    json_t *before = json_loads(r == 1 ? (const char *)sqlite3_column_text(st, 1) : "[]", 0, NULL);
    bool alike = r == 1 && sqlite3_column_int(st, 0) == seen->is_whole;
    sqlite3_reset(st);
    err_set(err, E_CONFIG, "job %lld began with other weights than %s holds now%s%s%s; submit it anew to run it on"
                           " these", (long long)job_id, seen->path, alike ? " (" : "", alike ? difference(before, files) : "",
            alike ? " differs)" : "");
    json_decref(before);
    return E_CONFIG;
}

static int note(struct worker *w, int64_t job_id, int64_t weights_id, bool *noted, struct err *err) {
    sqlite3_stmt *st = sql_prepare(
        w->s, "UPDATE job SET weights_id = ?2 WHERE job_id = ?1 AND coalesce(weights_id, ?2) = ?2", err);
    if (!st) return sql_error(w->s, err);
    sql_bind_int(st, 1, job_id);
    sql_bind_int(st, 2, weights_id);
    int r = sql_run(w->s, st, err);
    *noted = r == 0 && sqlite3_changes(w->s->db) > 0;
    return r;
}

int worker_note_weights(struct worker *w, int64_t job_id, const struct weights_seen *seen, int64_t *weights_id,
                        struct err *err) {
    char sha256[SHA256_HEX];
    int64_t id = 0;
    bool noted = false;
    int r = worker_begin(w, err);
    if (r < 0) return r;
    json_t *files = plain_files(seen->files_json);
    hash_files(files, seen->is_whole, sha256);
    r = find(w, sha256, &id, err);
    if (r == 0 && id == 0) {
        r = insert(w, seen, files, sha256, err);
        id = sqlite3_last_insert_rowid(w->s->db);
    }
    if (r == 0) r = note(w, job_id, id, &noted, err);
    if (r == 0 && !noted) r = refuse(w, job_id, seen, files, err);
    json_decref(files);
    r = worker_commit(w, r, err);
    if (r == 0) *weights_id = id;
    return r;
}
