/* store.c - opening a database: ours or nothing; and the statements on it. */
#include "jobs/store.h"
#include "base/clock.h"
#include "base/hash.h"
#include "base/mem.h"
#include "jobs/zrow.h"

#include <errno.h>
#include <libgen.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { APPLICATION_ID = 0x42544348, SCHEMA_VERSION = 3, BUSY_MS = 10000 };

/* schema.sql travels inside the program. */
__asm__(".section .rodata\n"
        ".global batchd_schema_sql\n"
        "batchd_schema_sql:\n"
        ".incbin \"schema.sql\"\n"
        ".byte 0\n"
        ".previous\n");
extern const char batchd_schema_sql[];

/* ---------------------------------------------------------------- errors */

static int code_of(int sqlite) {
    switch (sqlite & 0xff) {
    case SQLITE_BUSY:
    case SQLITE_LOCKED: return E_BUSY;
    case SQLITE_FULL: return E_FULL;
    case SQLITE_READONLY:
    case SQLITE_PERM:
    case SQLITE_CANTOPEN:
    case SQLITE_AUTH: return E_PERMISSION;
    case SQLITE_NOTADB: return E_PARSE;
    case SQLITE_NOMEM: return E_NO_MEMORY;
    case SQLITE_CORRUPT: return E_IO;
    default: return E_IO;
    }
}

static const char *remedy_of(int sqlite) {
    switch (sqlite & 0xff) {
    case SQLITE_BUSY: return "; another process holds the database, try again";
    case SQLITE_FULL: return "; make room on the disk, nothing finished is lost";
    case SQLITE_READONLY: return "; check the owner and mode of the file and its folder";
    case SQLITE_CORRUPT: return "; restore a backup, or try .recover in sqlite3";
    case SQLITE_NOTADB: return "; name another file with --db";
    case SQLITE_CANTOPEN: return "; the folder must be writable too, for the -wal and -shm files beside the database";
    default: return "";
    }
}

int sql_error(struct store *s, struct err *err) {
    int last = errno, code = sqlite3_extended_errcode(s->db), why = sqlite3_system_errno(s->db);
    if (code == SQLITE_IOERR_WRITE && why == 0) why = last; /* a failed COMMIT does not keep it */
    bool full = (code & 0xff) == SQLITE_IOERR && (why == ENOSPC || why == EFBIG || why == EDQUOT);
    if ((code & 0xff) == SQLITE_READONLY && s->mode == STORE_READ && code != SQLITE_READONLY)
        return err_set(err, E_PERMISSION, "%s cannot be read: its folder must be writable for you, for the -wal and -shm files"
                       " that SQLite keeps beside it; copy the database to a folder of yours, or ask for an export", s->path);
    if (full) return err_set(err, E_FULL, "%s: the disk is full (%s)%s", s->path, strerror(why), remedy_of(SQLITE_FULL));
    return err_set(err, code_of(code), "%s: %s%s", s->path, sqlite3_errmsg(s->db), remedy_of(code));
}

/* ---------------------------------------------------------------- statements */

struct kept {
    const char *text;
    sqlite3_stmt *st;
};

sqlite3_stmt *sql_prepare(struct store *s, const char *text, struct err *err) {
    for (size_t i = 0; i < s->n_kept; i++) {
        if (s->kept[i].text != text) continue;
        sqlite3_reset(s->kept[i].st);
        sqlite3_clear_bindings(s->kept[i].st);
        return s->kept[i].st;
    }
    sqlite3_stmt *st;
    if (sqlite3_prepare_v3(s->db, text, -1, SQLITE_PREPARE_PERSISTENT, &st, NULL) != SQLITE_OK) {
        sql_error(s, err);
        return NULL;
    }
    s->kept = mem_realloc(s->kept, s->n_kept + 1, sizeof *s->kept);
    s->kept[s->n_kept++] = (struct kept){text, st};
    return st;
}

void sql_bind_text(sqlite3_stmt *st, int i, const char *text) {
    sqlite3_bind_text(st, i, text, -1, SQLITE_TRANSIENT);
}

void sql_bind_int(sqlite3_stmt *st, int i, int64_t v) {
    sqlite3_bind_int64(st, i, v);
}

void sql_bind_int_or_null(sqlite3_stmt *st, int i, int64_t v) {
    if (v < 0) sqlite3_bind_null(st, i);
    else sqlite3_bind_int64(st, i, v);
}

int sql_step(struct store *s, sqlite3_stmt *st, struct err *err) {
    int r = sqlite3_step(st);
    if (r == SQLITE_ROW) return 1;
    if (r == SQLITE_DONE) {
        sqlite3_reset(st);
        return 0;
    }
    r = sql_error(s, err);
    sqlite3_reset(st);
    return r;
}

int sql_run(struct store *s, sqlite3_stmt *st, struct err *err) {
    int r = sql_step(s, st, err);
    sqlite3_reset(st);
    return r < 0 ? r : 0;
}

int sql_exec(struct store *s, const char *text, struct err *err) {
    return sqlite3_exec(s->db, text, NULL, NULL, NULL) == SQLITE_OK ? 0 : sql_error(s, err);
}

void sql_rollback(struct store *s) {
    if (!sqlite3_get_autocommit(s->db)) sqlite3_exec(s->db, "ROLLBACK", NULL, NULL, NULL);
}

char *sql_text(sqlite3_stmt *st, int column) {
    return mem_strdup((const char *)sqlite3_column_text(st, column));
}

/* ---------------------------------------------------------------- opening */

static int64_t pragma_int(struct store *s, const char *text) {
    sqlite3_stmt *st;
    int64_t v = -1;
    if (sqlite3_prepare_v2(s->db, text, -1, &st, NULL) == SQLITE_OK && sqlite3_step(st) == SQLITE_ROW)
        v = sqlite3_column_int64(st, 0);
    sqlite3_finalize(st);
    return v;
}

/* Several processes may create the same database at once: the first one does. Going to
 * WAL needs the file alone for a moment, and SQLite does not always wait for that itself. */
static int create_schema(struct store *s, struct err *err) {
    char version[160];
    int r = 0;
    for (int64_t deadline = clock_mono_ns() + BUSY_MS * (int64_t)1000000;;) {
        r = sql_exec(s, "PRAGMA auto_vacuum = INCREMENTAL; PRAGMA journal_mode = WAL;", err);
        if (r != E_BUSY || clock_mono_ns() > deadline) break;
        clock_sleep_ms(5);
    }
    if (r == 0) r = sql_exec(s, "BEGIN IMMEDIATE", err);
    if (r < 0) return r;
    if (pragma_int(s, "PRAGMA user_version") == 0) {
        snprintf(version, sizeof version,
                 "PRAGMA application_id = %d; PRAGMA user_version = %d;"
                 "INSERT INTO meta VALUES ('schema_version', %d);"
                 "INSERT INTO daemon(id, epoch) VALUES (1, 0);",
                 APPLICATION_ID, SCHEMA_VERSION, SCHEMA_VERSION);
        r = sql_exec(s, batchd_schema_sql, err);
        if (r == 0) r = sql_exec(s, version, err);
    }
    if (r == 0) r = sql_exec(s, "COMMIT", err);
    if (r < 0) sql_rollback(s);
    return r;
}

/* From version 1: logprobs, chat templates. A daemon of that version would write rows that no longer fit. */
static const char from_version_1[] = "ALTER TABLE result ADD COLUMN logprobs ANY;"
                                     "ALTER TABLE result ADD COLUMN prompt_logprobs ANY;"
                                     "ALTER TABLE job ADD COLUMN chat_settings TEXT;"
                                     "UPDATE meta SET value = 2 WHERE key = 'schema_version';"
                                     "PRAGMA user_version = 2;";

/* From version 2: which weights a job ran on. A daemon of that version would not note it. */
static const char from_version_2[] = "CREATE TABLE weights (weights_id INTEGER PRIMARY KEY, sha256 TEXT NOT NULL UNIQUE,"
                                     " whole INTEGER NOT NULL CHECK (whole IN (0, 1)), path TEXT NOT NULL,"
                                     " files TEXT NOT NULL, met_at INTEGER NOT NULL) STRICT;"
                                     "ALTER TABLE job ADD COLUMN weights_id INTEGER REFERENCES weights;"
                                     "UPDATE meta SET value = 3 WHERE key = 'schema_version';"
                                     "PRAGMA user_version = 3;";

static int renew_views(struct store *s, struct err *err) {
    int r = sql_exec(s, "DROP VIEW IF EXISTS results; DROP VIEW IF EXISTS rejects; DROP VIEW IF EXISTS failures;"
                        "DROP VIEW IF EXISTS metrics; DROP VIEW IF EXISTS jobs;", err);
    return r < 0 ? r : sql_exec(s, strstr(batchd_schema_sql, "CREATE VIEW"), err);
}

static int migrate(struct store *s, struct err *err) {
    int pid = 0;
    if (worker_is_alive(s->path, &pid))
        return err_set(err, E_BUSY, "%s is served by an older batchd (pid %d); end that first, then the database is brought"
                                    " up to date", s->path, pid);
    int r = sql_exec(s, "BEGIN IMMEDIATE", err);
    if (r < 0) return r;
    int64_t version = pragma_int(s, "PRAGMA user_version"); /* somebody else may have been first */
    if (version == 1) r = sql_exec(s, from_version_1, err);
    if (r == 0 && version <= 2) r = sql_exec(s, from_version_2, err);
    if (r == 0 && version < SCHEMA_VERSION) r = renew_views(s, err);
    if (r == 0) r = sql_exec(s, "COMMIT", err);
    if (r < 0) sql_rollback(s);
    return r;
}

struct identity {
    int64_t id, version, tables;
};

/* In one transaction: another process may be creating the schema just now. */
static int read_identity(struct store *s, struct identity *out, struct err *err) {
    int r = sql_exec(s, "BEGIN", err);
    if (r < 0) return r;
    out->tables = pragma_int(s, "SELECT count(*) FROM sqlite_schema");
    out->id = out->tables < 0 ? -1 : pragma_int(s, "PRAGMA application_id");
    out->version = out->id < 0 ? -1 : pragma_int(s, "PRAGMA user_version");
    if (out->version < 0) r = sql_error(s, err);
    sql_rollback(s);
    return r;
}

static int check_ours(struct store *s, struct err *err) {
    struct identity is;
    int r = read_identity(s, &is, err);
    if (r < 0) return r;
    s->version = SCHEMA_VERSION;
    if (is.id == 0 && is.version == 0 && is.tables == 0) {
        if (s->mode == STORE_CREATE) return create_schema(s, err);
        return err_set(err, E_NOT_FOUND, "%s is an empty database; submit a job to make it batchd's", s->path);
    }
    if (is.id != APPLICATION_ID)
        return err_set(err, E_PARSE, "%s is a database of another program, not batchd's; name another file with --db", s->path);
    if (is.version > SCHEMA_VERSION)
        return err_set(err, E_CONFIG, "%s is from a newer batchd (schema %lld, this is %d); upgrade batchd", s->path,
                       (long long)is.version, SCHEMA_VERSION);
    if (is.version < SCHEMA_VERSION && s->mode != STORE_READ) return migrate(s, err);
    s->version = is.version;
    return 0;
}

static int set_up(struct store *s, struct err *err) {
    sqlite3_busy_timeout(s->db, BUSY_MS);
    sqlite3_extended_result_codes(s->db, 1);
    sqlite3_db_config(s->db, SQLITE_DBCONFIG_DEFENSIVE, 1, NULL);
    sqlite3_db_config(s->db, SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0, NULL);
    int r = check_ours(s, err);
    if (r == 0)
        r = sql_exec(s,
                     "PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; PRAGMA temp_store = MEMORY;"
                     "PRAGMA cell_size_check = ON; PRAGMA mmap_size = 0; PRAGMA journal_size_limit = 67108864;"
                     "PRAGMA cache_size = -16384;",
                     err);
    if (r == 0) r = zrow_register(s->db, err);
    if (r == 0 && s->mode == STORE_READ) r = sql_exec(s, "PRAGMA query_only = ON", err);
    return r;
}

/* The folder of the database, as private as the database. */
static int make_folder(const char *path, struct err *err) {
    char *copy = mem_strdup(path), *dir = dirname(copy);
    struct stat st;
    int r = 0;
    for (char *at = dir + 1; r == 0 && *at; at++) {
        if (*at != '/') continue;
        *at = '\0';
        if (mkdir(dir, 0755) < 0 && errno != EEXIST)
            r = err_set(err, E_PERMISSION, "cannot make folder %s: %s", dir, strerror(errno));
        *at = '/';
    }
    if (r == 0 && mkdir(dir, 0700) < 0 && errno != EEXIST)
        r = err_set(err, errno == EACCES || errno == EROFS ? E_PERMISSION : E_IO, "cannot make folder %s: %s", dir,
                    strerror(errno));
    if (r == 0 && (stat(dir, &st) < 0 || !S_ISDIR(st.st_mode)))
        r = err_set(err, E_IO, "no database %s: %s is not a folder", path, dir);
    free(copy);
    return r;
}

static int open_file(struct store *s, struct err *err) {
    struct stat st;
    bool exists = stat(s->path, &st) == 0;
    if (!exists && s->mode != STORE_CREATE)
        return err_set(err, E_NOT_FOUND, "no database %s; submit a job first, or name one with --db", s->path);
    if (exists && !S_ISREG(st.st_mode)) return err_set(err, E_PARSE, "%s is not a database file", s->path);
    if (exists && access(s->path, s->mode == STORE_READ ? R_OK : R_OK | W_OK) < 0)
        return err_set(err, E_PERMISSION, "no permission to %s %s: %s", s->mode == STORE_READ ? "read" : "write", s->path,
                       strerror(errno));
    if (!exists) {
        int r = make_folder(s->path, err);
        if (r < 0) return r;
    }
    mode_t mask = umask(0077);
    int flags = s->mode == STORE_READ ? SQLITE_OPEN_READWRITE : SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE;
    int r = sqlite3_open_v2(s->path, &s->db, flags | SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_EXRESCODE, NULL);
    if (r != SQLITE_OK && s->mode == STORE_READ) { /* no right to write: then read-only will do */
        sqlite3_close(s->db);
        r = sqlite3_open_v2(s->path, &s->db, SQLITE_OPEN_READONLY | SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_EXRESCODE, NULL);
    }
    r = r == SQLITE_OK ? set_up(s, err) : exists ? sql_error(s, err)
        : err_set(err, E_PERMISSION, "cannot create %s: %s; check the mode of its folder", s->path, sqlite3_errmsg(s->db));
    umask(mask);
    return r;
}

int store_open(struct store **out, const char *path, enum store_mode mode, struct err *err) {
    struct store *s = mem_zalloc(1, sizeof *s);
    s->path = mem_strdup(path);
    s->mode = mode;
    int r = open_file(s, err);
    if (r < 0) store_close(s);
    else *out = s;
    return r;
}

void store_close(struct store *s) {
    if (!s) return;
    for (size_t i = 0; i < s->n_kept; i++) sqlite3_finalize(s->kept[i].st);
    free(s->kept);
    sqlite3_close(s->db);
    free(s->path);
    free(s);
}

const char *store_path(const struct store *s) {
    return s->path;
}

int store_check(struct store *s, struct err *err) {
    sqlite3_stmt *st = sql_prepare(s, "PRAGMA quick_check(1)", err);
    if (!st) return E_IO;
    int r = sql_step(s, st, err);
    const char *text = r == 1 ? (const char *)sqlite3_column_text(st, 0) : NULL;
    if (text && strcmp(text, "ok") != 0) r = err_set(err, E_IO, "%s is damaged: %s", s->path, text);
    sqlite3_reset(st);
    return r < 0 ? r : 0;
}

int store_check_place(struct store *s, struct err *err) {
    int moved = 0;
    if (sqlite3_file_control(s->db, "main", SQLITE_FCNTL_HAS_MOVED, &moved) != SQLITE_OK || !moved) return 0;
    return err_set(err, E_IO, "%s was deleted or replaced while it was in use; put it back, or submit once more", s->path);
}

int64_t store_data_version(struct store *s) {
    return pragma_int(s, "PRAGMA data_version");
}
