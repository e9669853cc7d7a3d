/* zrow.c - see zrow.h; compression, and the functions for our own connections. */
#include "jobs/zrow.h"
#include "jobs/jobs.h"

#include <pthread.h>
#include <stdlib.h>
#include <zstd.h>

enum { LEVEL = 3, SAVES_AT_LEAST = 8 };

int sqlite3_batchdsqlite_init(sqlite3 *db, char **message, const struct sqlite3_api_routines *api);

int zrow_register(sqlite3 *db, struct err *err) {
    if (sqlite3_batchdsqlite_init(db, NULL, NULL) == SQLITE_OK) return 0;
    return err_set(err, E_IO, "cannot register SQL functions: %s", sqlite3_errmsg(db));
}

/* A compression context is large; each thread keeps one. */
static pthread_key_t ctx_key;
static pthread_once_t ctx_once = PTHREAD_ONCE_INIT;

static void free_ctx(void *ctx) {
    ZSTD_freeCCtx(ctx);
}

static void make_key(void) {
    pthread_key_create(&ctx_key, free_ctx);
}

static ZSTD_CCtx *thread_ctx(void) {
    pthread_once(&ctx_once, make_key);
    ZSTD_CCtx *ctx = pthread_getspecific(ctx_key);
    if (ctx) return ctx;
    ctx = ZSTD_createCCtx();
    if (!ctx) abort();
    ZSTD_CCtx_setParameter(ctx, ZSTD_c_compressionLevel, LEVEL);
    ZSTD_CCtx_setParameter(ctx, ZSTD_c_checksumFlag, 1);
    pthread_setspecific(ctx_key, ctx);
    return ctx;
}

void text_compress(struct buf *out, enum text_codec *codec, const char *text, size_t n) {
    size_t before = out->n, bound = ZSTD_compressBound(n);
    char *at = n > SAVES_AT_LEAST ? buf_reserve(out, bound) : NULL;
    size_t got = at ? ZSTD_compress2(thread_ctx(), at, bound, text, n) : 0;
    if (at && !ZSTD_isError(got) && got + SAVES_AT_LEAST < n) {
        out->n = before + got;
        *codec = CODEC_ZSTD;
        return;
    }
    out->n = before;
    buf_append(out, text, n);
    *codec = CODEC_RAW;
}
