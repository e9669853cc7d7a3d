/* batchd_sqlite.c - the SQL functions that make text out of what the tables hold.
 *
 *   batchd_text(x)        TEXT and NULL pass through; a zstd frame is decoded, with the
 *                         dictionary that it names, from the table zdict of any schema
 *   batchd_text(x, 0)     the same, but NULL where the frame is damaged
 *   batchd_prompt(input, template, columns, prompt_column)   what a request asks
 *
 * Built twice: into the program, and as batchd_sqlite.so for the stock sqlite3. Both
 * functions read their arguments and zdict and nothing else (INNOCUOUS). */
#ifndef SQLITE_CORE
#include <sqlite3ext.h>
SQLITE_EXTENSION_INIT1
#else
#include <sqlite3.h>
#endif

#include "jobs/template.h"
#include "jobs/zrow.h"

#include <stdlib.h>
#include <zstd.h>

struct decoder { /* one for each connection; freed with its last function */
    ZSTD_DCtx *ctx;
    ZSTD_DDict *dict; /* the one used last */
    unsigned dict_id;
    int refs;
};

static void decoder_unref(void *arg) {
    struct decoder *d = arg;
    if (--d->refs > 0) return;
    ZSTD_freeDCtx(d->ctx);
    ZSTD_freeDDict(d->dict);
    free(d);
}

/* ---------------------------------------------------------------- frames */

/* The dictionary of a frame, from the first attached schema that has it. */
static const ZSTD_DDict *find_dict(struct decoder *d, sqlite3 *db, unsigned id) {
    if (d->dict && d->dict_id == id) return d->dict;
    sqlite3_stmt *schemas, *st;
    ZSTD_DDict *found = NULL;
    if (sqlite3_prepare_v2(db, "SELECT name FROM pragma_database_list", -1, &schemas, NULL) != SQLITE_OK) return NULL;
    while (!found && sqlite3_step(schemas) == SQLITE_ROW) {
        char *text = sqlite3_mprintf("SELECT dict FROM \"%w\".zdict WHERE dict_id = ?", sqlite3_column_text(schemas, 0));
        if (sqlite3_prepare_v2(db, text, -1, &st, NULL) == SQLITE_OK) {
            sqlite3_bind_int64(st, 1, id);
            if (sqlite3_step(st) == SQLITE_ROW)
                found = ZSTD_createDDict(sqlite3_column_blob(st, 0), (size_t)sqlite3_column_bytes(st, 0));
            sqlite3_finalize(st);
        }
        sqlite3_free(text);
    }
    sqlite3_finalize(schemas);
    if (!found) return NULL;
    ZSTD_freeDDict(d->dict);
    d->dict = found;
    d->dict_id = id;
    return found;
}

/* The decoded text (free with sqlite3_free), or NULL and a reason. */
static char *decode(struct decoder *d, sqlite3 *db, const void *frame, size_t n, size_t *out_n, const char **why) {
    unsigned long long size = ZSTD_getFrameContentSize(frame, n);
    if (size == ZSTD_CONTENTSIZE_ERROR || size == ZSTD_CONTENTSIZE_UNKNOWN || size > ZROW_MAX) {
        *why = "not a zstd frame of at most 64 MiB";
        return NULL;
    }
    unsigned id = ZSTD_getDictID_fromFrame(frame, n);
    const ZSTD_DDict *dict = id ? find_dict(d, db, id) : NULL;
    if (id && !dict) {
        *why = "the frame's dictionary is not in zdict";
        return NULL;
    }
    char *text = sqlite3_malloc64(size + 1);
    if (!text) {
        *why = "out of memory";
        return NULL;
    }
    size_t got = dict ? ZSTD_decompress_usingDDict(d->ctx, text, size, frame, n, dict)
                      : ZSTD_decompressDCtx(d->ctx, text, size, frame, n);
    if (ZSTD_isError(got) || got != size) {
        *why = "damaged zstd frame";
        sqlite3_free(text);
        return NULL;
    }
    text[got] = '\0';
    *out_n = got;
    return text;
}

static void fn_text(sqlite3_context *ctx, int argc, sqlite3_value **argv) {
    int type = sqlite3_value_type(argv[0]);
    const char *why = NULL;
    if (type != SQLITE_BLOB) {
        sqlite3_result_value(ctx, argv[0]);
        return;
    }
    size_t n;
    char *text = decode(sqlite3_user_data(ctx), sqlite3_context_db_handle(ctx), sqlite3_value_blob(argv[0]),
                        (size_t)sqlite3_value_bytes(argv[0]), &n, &why);
    if (text) sqlite3_result_text64(ctx, text, n, sqlite3_free, SQLITE_UTF8);
    else if (argc > 1 && !sqlite3_value_int(argv[1])) sqlite3_result_null(ctx);
    else {
        char *message = sqlite3_mprintf("batchd_text: %s", why);
        sqlite3_result_error(ctx, message, -1);
        sqlite3_free(message);
    }
}

/* ---------------------------------------------------------------- prompts */

struct cells { /* JSON values through SQLite's own JSON functions */
    sqlite3 *db;
    const char *input;   /* array of cells, or object */
    const char *columns; /* JSON array of names, NULL for an object */
    sqlite3_stmt *st;    /* holds the text handed out last */
};

static const char *cell_of(void *arg, const char *name) {
    struct cells *c = arg;
    static const char by_column[] = "SELECT v.value FROM json_each(?1) v JOIN json_each(?2) k ON k.key = v.key "
                                    "WHERE k.value = ?3";
    static const char by_key[] = "SELECT CASE type WHEN 'true' THEN 'true' WHEN 'false' THEN 'false' "
                                 "WHEN 'null' THEN '' ELSE value END FROM json_each(?1) WHERE key = ?3 AND ?2 IS NULL";
    sqlite3_finalize(c->st);
    c->st = NULL;
    if (sqlite3_prepare_v2(c->db, c->columns ? by_column : by_key, -1, &c->st, NULL) != SQLITE_OK) return NULL;
    sqlite3_bind_text(c->st, 1, c->input, -1, SQLITE_TRANSIENT);
    sqlite3_bind_text(c->st, 2, c->columns, -1, SQLITE_TRANSIENT);
    sqlite3_bind_text(c->st, 3, name, -1, SQLITE_TRANSIENT);
    return sqlite3_step(c->st) == SQLITE_ROW ? (const char *)sqlite3_column_text(c->st, 0) : NULL;
}

static void result_prompt(sqlite3_context *ctx, struct cells *c, const char *template_text, const char *column) {
    if (template_text) {
        struct template *t = NULL;
        struct buf out = BUF_INIT(ZROW_MAX);
        if (template_compile(&t, template_text, NULL, 0, NULL) == 0 && template_render(t, &out, cell_of, c, NULL) == 0)
            sqlite3_result_text64(ctx, out.data ? out.data : "", out.n, SQLITE_TRANSIENT, SQLITE_UTF8);
        buf_clear(&out);
        template_free(t);
        return;
    }
    const char *text = column ? cell_of(c, column) : NULL;
    if (!text && !c->columns) text = cell_of(c, "messages");
    if (text) sqlite3_result_text(ctx, text, -1, SQLITE_TRANSIENT);
    else sqlite3_result_text(ctx, c->input, -1, SQLITE_TRANSIENT);
}

static void fn_prompt(sqlite3_context *ctx, int argc, sqlite3_value **argv) {
    struct cells c = {.db = sqlite3_context_db_handle(ctx), .columns = (const char *)sqlite3_value_text(argv[2])};
    const char *why = NULL;
    char *decoded = NULL;
    size_t n;
    if (sqlite3_value_type(argv[0]) == SQLITE_BLOB) {
        decoded = decode(sqlite3_user_data(ctx), c.db, sqlite3_value_blob(argv[0]), (size_t)sqlite3_value_bytes(argv[0]),
                         &n, &why);
        if (!decoded) {
            sqlite3_result_error(ctx, why, -1);
            return;
        }
        c.input = decoded;
    } else c.input = (const char *)sqlite3_value_text(argv[0]);
    if (c.input)
        result_prompt(ctx, &c, (const char *)sqlite3_value_text(argv[1]), (const char *)sqlite3_value_text(argv[3]));
    sqlite3_finalize(c.st);
    sqlite3_free(decoded);
}

/* ---------------------------------------------------------------- entry point */

int sqlite3_batchdsqlite_init(sqlite3 *db, char **message, const struct sqlite3_api_routines *api);

int sqlite3_batchdsqlite_init(sqlite3 *db, char **message, const struct sqlite3_api_routines *api) {
#ifndef SQLITE_CORE
    SQLITE_EXTENSION_INIT2(api);
#endif
    static const struct {
        const char *name;
        int argc;
        void (*fn)(sqlite3_context *, int, sqlite3_value **);
    } functions[] = {{"batchd_text", 1, fn_text}, {"batchd_text", 2, fn_text}, {"batchd_prompt", 4, fn_prompt}};
    struct decoder *d = calloc(1, sizeof *d);
    if (!d || !(d->ctx = ZSTD_createDCtx())) {
        free(d);
        return SQLITE_NOMEM;
    }
    int r = SQLITE_OK;
    for (size_t i = 0; i < sizeof functions / sizeof *functions && r == SQLITE_OK; i++) {
        d->refs++; /* given back through decoder_unref, also when the call fails */
        r = sqlite3_create_function_v2(db, functions[i].name, functions[i].argc,
                                       SQLITE_UTF8 | SQLITE_INNOCUOUS | SQLITE_DETERMINISTIC, d, functions[i].fn, NULL,
                                       NULL, decoder_unref);
    }
    return r;
}
