/* model_files.c - see model_files.h. */
#include "batchd/model_files.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/mem.h"
#include "engine/engine.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

void model_files_clear(struct model_files *f) {
    for (size_t i = 0; i < f->n; i++) free(f->list[i].name);
    free(f->list);
    *f = (struct model_files){0};
}

static struct model_file *find(const struct model_files *f, const char *name) {
    for (size_t i = 0; i < f->n; i++)
        if (strcmp(f->list[i].name, name) == 0) return &f->list[i];
    return NULL;
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const struct model_file *)a)->name, ((const struct model_file *)b)->name);
}

/* Put the file's name, size and time in the list; missing is no error where `optional`. */
static int add_file(struct model_files *f, const char *dir, const char *name, bool optional, struct err *err) {
    struct stat st;
    char *path = path_join(dir, name);
    int r = stat(path, &st), why = errno;
    if (r < 0 && !optional) err_set(err, why == ENOENT ? E_NOT_FOUND : E_IO, "%s: %s", path, strerror(why));
    free(path);
    if (r < 0) return optional ? 0 : why == ENOENT ? E_NOT_FOUND : E_IO;
    f->list = mem_realloc(f->list, f->n + 1, sizeof *f->list);
    f->list[f->n++] = (struct model_file){.name = mem_strdup(name),
                                          .size = st.st_size,
                                          .mtime_us = (int64_t)st.st_mtim.tv_sec * 1000000 + st.st_mtim.tv_nsec / 1000};
    return 0;
}

int model_files_list(struct model_files *out, const char *dir, const struct model_files *more, struct err *err) {
    struct model_files f = {0};
    char **names = NULL;
    size_t n = 0;
    int r = model_list_files(&names, &n, dir, err);
    for (size_t i = 0; i < n; i++) {
        if (r == 0) r = add_file(&f, dir, names[i], false, err);
        free(names[i]);
    }
    free(names);
    for (size_t i = 0; r == 0 && more && i < more->n; i++)
        if (!find(&f, more->list[i].name)) r = add_file(&f, dir, more->list[i].name, true, err);
    if (r < 0) {
        model_files_clear(&f);
        return r;
    }
    qsort(f.list, f.n, sizeof *f.list, by_name);
    *out = f;
    return 0;
}

/* ---------------------------------------------------------------- hashes */

enum { PIECE = 1 << 20, MAX_THREADS = 16, MAX_HEADER = 16 << 20, TELL_MS = 250 };

struct hashing {
    struct model_files *files;
    const char *dir;
    bool headers;
    atomic_size_t next;
    atomic_llong bytes;
    atomic_int n_threads; /* at work */
    pthread_mutex_t lock; /* of err */
    struct err err;
};

static void fail(struct hashing *h, int code, const char *path, int why) {
    pthread_mutex_lock(&h->lock);
    if (h->err.code == 0) err_set(&h->err, code, "cannot read %s: %s", path, strerror(why));
    pthread_mutex_unlock(&h->lock);
}

/* How much of the file is hashed: 8 bytes say how long a safetensors header is. */
static int64_t span_of(const struct hashing *h, const struct model_file *f, int fd) {
    size_t n = strlen(f->name), tail = strlen(".safetensors");
    uint8_t prefix[8];
    uint64_t header = 0;
    if (!h->headers || n < tail || strcmp(f->name + n - tail, ".safetensors") != 0) return INT64_MAX;
    if (pread(fd, prefix, 8, 0) == 8)
        for (int i = 7; i >= 0; i--) header = header << 8 | prefix[i];
    return 8 + (int64_t)(header < MAX_HEADER ? header : MAX_HEADER);
}

static void hash_file(struct hashing *h, struct model_file *f, char *piece) {
    char *path = path_join(h->dir, f->name);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) fail(h, E_IO, path, errno);
    int64_t left = fd < 0 ? 0 : span_of(h, f, fd);
    ssize_t n = fd < 0 ? -1 : 0;
    struct sha256 *sha = sha256_new();
    while (left > 0 && (n = read(fd, piece, left < PIECE ? (size_t)left : PIECE)) > 0) {
        sha256_add(sha, piece, (size_t)n);
        atomic_fetch_add(&h->bytes, n);
        left -= n;
    }
    if (fd >= 0 && n < 0) fail(h, E_IO, path, errno);
    char hex[SHA256_HEX];
    sha256_finish(sha, hex);
    if (n >= 0) memcpy(f->sha256, hex, sizeof hex);
    if (fd >= 0) close(fd);
    free(path);
}

static void *hash_files(void *arg) {
    struct hashing *h = arg;
    char *piece = mem_alloc(PIECE);
    for (size_t i; (i = atomic_fetch_add(&h->next, 1)) < h->files->n;)
        if (!*h->files->list[i].sha256) hash_file(h, &h->files->list[i], piece);
    free(piece);
    atomic_fetch_sub(&h->n_threads, 1);
    return NULL;
}

static int64_t bytes_to_hash(const struct model_files *f) {
    int64_t bytes = 0;
    for (size_t i = 0; i < f->n; i++)
        if (!*f->list[i].sha256) bytes += f->list[i].size;
    return bytes;
}

int model_files_hash(struct model_files *f, const char *dir, bool headers, model_files_progress *tell, void *arg,
                     struct err *err) {
    struct hashing h = {.files = f, .dir = dir, .headers = headers, .lock = PTHREAD_MUTEX_INITIALIZER};
    int64_t total = bytes_to_hash(f);
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    pthread_t threads[MAX_THREADS];
    int n = 0, wanted = cores < 1 ? 1 : cores > MAX_THREADS ? MAX_THREADS : (int)cores;
    while (n < wanted && (size_t)n < f->n) {
        atomic_fetch_add(&h.n_threads, 1);
        if (pthread_create(&threads[n], NULL, hash_files, &h) != 0) abort();
        n++;
    }
    for (int64_t waited = 0; tell && h.n_threads > 0; waited += 10) {
        clock_sleep_ms(10);
        if (waited % TELL_MS == 0) tell(arg, h.bytes, total);
    }
    for (int i = 0; i < n; i++) pthread_join(threads[i], NULL);
    if (tell) tell(arg, h.bytes, total);
    return h.err.code < 0 ? err_set(err, h.err.code, "%s", h.err.text) : 0;
}

/* ---------------------------------------------------------------- JSON */

char *model_files_to_json(const struct model_files *f) {
    json_t *list = json_array();
    for (size_t i = 0; i < f->n; i++) {
        const struct model_file *file = &f->list[i];
        json_array_append_new(list, json_pack("{s:s, s:I, s:I, s:s}", "name", file->name, "size", (json_int_t)file->size,
                                              "mtime_us", (json_int_t)file->mtime_us, "sha256", file->sha256));
    }
    char *text = json_dumps(list, JSON_COMPACT);
    json_decref(list);
    return text;
}

int model_files_from_json(struct model_files *out, const char *text, struct err *err) {
    struct model_files f = {0};
    json_t *list = json_loads(text, 0, NULL), *file;
    size_t i;
    f.list = mem_zalloc(json_array_size(list) + 1, sizeof *f.list);
    json_array_foreach(list, i, file) {
        const char *name = json_string_value(json_object_get(file, "name"));
        const char *sha256 = json_string_value(json_object_get(file, "sha256"));
        if (!name || !sha256) break;
        struct model_file *to = &f.list[f.n++];
        to->name = mem_strdup(name);
        to->size = json_integer_value(json_object_get(file, "size"));
        to->mtime_us = json_integer_value(json_object_get(file, "mtime_us"));
        snprintf(to->sha256, sizeof to->sha256, "%s", sha256);
    }
    bool ok = json_is_array(list) && f.n == json_array_size(list);
    json_decref(list);
    if (ok) *out = f;
    else model_files_clear(&f);
    return ok ? 0 : err_set(err, E_PARSE, "the database's list of model files is damaged");
}

/* ---------------------------------------------------------------- differences */

static bool differs(const struct model_file *a, const struct model_file *b) {
    return a->size != b->size || (*a->sha256 && *b->sha256 && strcmp(a->sha256, b->sha256) != 0);
}

int model_files_compare(const struct model_files *then, const struct model_files *now, model_files_difference *fn,
                        void *arg) {
    int n = 0;
    for (size_t i = 0; i < then->n; i++) {
        const struct model_file *other = find(now, then->list[i].name);
        if (other && !differs(&then->list[i], other)) continue;
        n++;
        if (fn) fn(arg, other ? FILE_CHANGED : FILE_MISSING, then->list[i].name);
    }
    for (size_t i = 0; i < now->n; i++) {
        if (find(then, now->list[i].name)) continue;
        n++;
        if (fn) fn(arg, FILE_NEW, now->list[i].name);
    }
    return n;
}

static void say_which(void *arg, enum file_change change, const char *name) {
    static const char *const what[] = {"has changed", "is missing", "is new"};
    struct err *err = arg;
    if (!err || err->code < 0) return;
    err_set(err, E_CONFIG, "%s %s since it was added", name, what[change]);
}

/* Those whose time is as it was keep their hash; the others are hashed. */
static int hash_touched(struct model_files *now, const struct model_files *then, const char *dir, bool *touched,
                        struct err *err) {
    *touched = false;
    for (size_t i = 0; i < now->n; i++) {
        const struct model_file *before = find(then, now->list[i].name);
        if (before->mtime_us == now->list[i].mtime_us)
            memcpy(now->list[i].sha256, before->sha256, sizeof before->sha256);
        else *touched = true;
    }
    return *touched ? model_files_hash(now, dir, false, NULL, NULL, err) : 0;
}

/* The list as it is now, when it is `then`'s but for hashes. */
static int list_alike(struct model_files *out, const struct model_files *then, const char *dir, struct err *err) {
    struct err why = ERR_INIT;
    int r = model_files_list(out, dir, then, err);
    if (r < 0) return r;
    if (model_files_compare(then, out, say_which, &why) == 0) return 0;
    model_files_clear(out);
    return err_set(err, E_CONFIG, "%s", why.text);
}

int model_files_glance(const struct model_files *then, const char *dir, struct err *err) {
    struct model_files now = {0};
    int r = list_alike(&now, then, dir, err);
    model_files_clear(&now);
    return r;
}

int model_files_verify(struct model_files *then, const char *dir, bool *touched, struct err *err) {
    struct model_files now;
    struct err why = ERR_INIT;
    int r = list_alike(&now, then, dir, err);
    if (r < 0) return r;
    r = hash_touched(&now, then, dir, touched, err);
    if (r == 0 && model_files_compare(then, &now, say_which, &why) > 0) r = err_set(err, E_CONFIG, "%s", why.text);
    if (r == 0) {
        struct model_files before = *then;
        *then = now;
        now = before;
    }
    model_files_clear(&now);
    return r;
}
