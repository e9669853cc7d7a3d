/* weight_cache.c - see weight_cache.h.
 *
 * The file: struct file_head, struct file_entry for each weight, the images, each at a multiple
 * of ALIGN. Numbers are as this kind of machine has them. */
#include "engine/model/weight_cache.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/log.h"
#include "base/mapped.h"
#include "base/mem.h"
#include "base/team.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

enum { ALIGN = 64, MAX_NAME = 240, MAX_ENTRIES = 1 << 20, MAX_CHECKERS = 8, LANES = 8 };
enum { SMALL = 1 << 20 }; /* a file that is checked in less time than a thread takes to start */

static const char magic[16] = "batchd weights 1", prefix[] = "weights-", suffix[] = ".cache";

struct file_head {
    char magic[16];
    char key[SHA256_HEX + 7];
    uint64_t n_entries, bytes; /* of the whole file */
    uint64_t checksum;         /* of the entries */
};

struct file_entry {
    char name[MAX_NAME];
    uint64_t offset, bytes, checksum;
};

struct weight_cache {
    char *path, *dir;
    char key[SHA256_HEX];
    int64_t limit;

    /* a file that is read; data NULL: there is none */
    char *data;
    size_t bytes;
    const struct file_entry *found;
    uint64_t n_found;

    /* its images are checked by these, from before there is a device until they are on it */
    struct team checkers;
    atomic_ullong next; /* to be checked */
    atomic_bool is_damaged;

    /* one that is written */
    struct file_entry *entries;
    const struct weight **weights;
    uint64_t n_entries;
    struct dev *dev;
    pthread_t thread;
    bool is_writing;
};

/* ---------------------------------------------------------------- checksums */

/* Of n bytes, a multiple of ALIGN, after those before. Eight sums side by side: as fast as
 * memory. One word that differs always shows. */
static void sum_up(uint64_t sums[LANES], const void *data, size_t n) {
    const char *at = data;
    for (size_t i = 0; i < n; i += LANES * 8)
        for (int l = 0; l < LANES; l++) {
            uint64_t word;
            memcpy(&word, at + i + 8 * l, 8);
            word = (sums[l] ^ word) * 0x9e3779b97f4a7c15u;
            sums[l] = word << 29 | word >> 35;
        }
}

static uint64_t sum_end(const uint64_t sums[LANES]) {
    return hash64(sums, LANES * 8, 0);
}

static uint64_t checksum_of(const void *data, size_t n) {
    uint64_t sums[LANES] = {0};
    sum_up(sums, data, n);
    return sum_end(sums);
}

static void *check_images(void *arg) {
    struct weight_cache *c = arg;
    for (uint64_t i; !c->is_damaged && (i = atomic_fetch_add(&c->next, 1)) < c->n_found;) {
        const struct file_entry *e = &c->found[i];
        if (checksum_of(c->data + e->offset, e->bytes) != e->checksum) c->is_damaged = true;
    }
    return NULL;
}

/* ---------------------------------------------------------------- read */

static size_t table_bytes(uint64_t n_entries) {
    size_t bytes = sizeof(struct file_head) + (size_t)n_entries * sizeof(struct file_entry);
    return (bytes + ALIGN - 1) / ALIGN * ALIGN;
}

/* What the head and the entries say lies in the file, and is what was written. */
static bool table_is_whole(struct weight_cache *c) {
    struct file_head head;
    if (c->bytes < sizeof head) return false;
    memcpy(&head, c->data, sizeof head);
    if (memcmp(head.magic, magic, sizeof magic) != 0 || memcmp(head.key, c->key, sizeof c->key) != 0 ||
        head.bytes != c->bytes || head.n_entries < 1 || head.n_entries > MAX_ENTRIES ||
        table_bytes(head.n_entries) > c->bytes)
        return false;
    c->found = (const struct file_entry *)(const void *)(c->data + sizeof head);
    c->n_found = head.n_entries;
    if (hash64(c->found, (size_t)c->n_found * sizeof *c->found, 0) != head.checksum) return false;
    for (uint64_t i = 0; i < c->n_found; i++) {
        const struct file_entry *e = &c->found[i];
        if (e->offset % ALIGN || e->bytes % ALIGN || e->offset > c->bytes || e->bytes > c->bytes - e->offset) return false;
        if (!memchr(e->name, 0, MAX_NAME)) return false;
    }
    return true;
}

static void forget_file(struct weight_cache *c) {
    c->is_damaged = true; /* or it does not matter any more */
    team_end(&c->checkers);
    mapped_forget(c->data);
    if (c->data) munmap(c->data, c->bytes);
    c->data = NULL;
    c->found = NULL;
    c->n_found = 0;
}

static void drop_file(struct weight_cache *c) {
    log_warn("%s is damaged; the weights are quantized anew", c->path);
    forget_file(c);
    unlink(c->path);
}

/* A file that is not there is no matter; one that cannot be is gone afterwards. */
static void find_file(struct weight_cache *c) {
    struct stat st;
    int fd = open(c->path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return;
    if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_size > 0) {
        c->bytes = (size_t)st.st_size;
        c->data = mmap(NULL, c->bytes, PROT_READ, MAP_PRIVATE, fd, 0);
        if (c->data == MAP_FAILED) c->data = NULL;
    }
    close(fd);
    if (c->data) mapped_note(c->data, c->bytes, c->path);
    if (c->data && table_is_whole(c)) team_begin(&c->checkers, c->bytes < SMALL ? 0 : MAX_CHECKERS, check_images, c);
    else drop_file(c);
}

bool weight_cache_is_whole(struct weight_cache *c) {
    if (!c || !c->data) return true;
    check_images(c);
    team_end(&c->checkers);
    if (c->is_damaged) {
        drop_file(c);
        return false;
    }
    utimensat(AT_FDCWD, c->path, NULL, 0); /* used now: see make_room */
    return true;
}

/* What config.json says of tensors: which there are, where their rows go, and what codes of
 * blocks are worth. */
static void add_config(struct sha256 *s, const struct model_config *c) {
    const struct model_info *m = &c->info;
    int32_t sizes[] = {m->n_layers, m->hidden,    m->intermediate, m->n_heads,         m->n_kv_heads,
                       m->head_dim, c->n_experts, (int32_t)c->qkv, c->fp8_block.rows, c->fp8_block.cols};
    sha256_add_text(s, c->family->model_type);
    sha256_add(s, sizes, sizeof sizes);
}

static void key_of(char key[SHA256_HEX], const struct checkpoint *checkpoint, const struct model_config *config,
                   enum dtype dtype, const struct quantization *quantization) {
    struct sha256 *s = sha256_new();
    sha256_add(s, magic, sizeof magic);
    add_config(s, config);
    sha256_add_text(s, dtype_name(dtype));
    sha256_add_text(s, quant_name(quantization->kind));
    sha256_add_text(s, quantization->skip);
    checkpoint_identify(checkpoint, s);
    sha256_finish(s, key);
}

struct weight_cache *weight_cache_open(const struct weight_cache_options *options, const struct checkpoint *checkpoint,
                                       const struct model_config *config, enum dtype dtype,
                                       const struct quantization *quantization) {
    if (!options->dir || options->limit_bytes <= 0 || !checkpoint || quantization->kind == QUANT_NONE) return NULL;
    struct weight_cache *c = mem_zalloc(1, sizeof *c);
    char name[sizeof prefix + SHA256_HEX + sizeof suffix];
    c->dir = mem_strdup(options->dir);
    c->limit = options->limit_bytes;
    key_of(c->key, checkpoint, config, dtype, quantization);
    snprintf(name, sizeof name, "%s%s%s", prefix, c->key, suffix);
    c->path = path_join(c->dir, name);
    find_file(c);
    return c;
}

static const struct file_entry *find_entry(const struct weight_cache *c, const char *name) {
    for (uint64_t i = 0; i < c->n_found; i++)
        if (strcmp(c->found[i].name, name) == 0) return &c->found[i];
    return NULL;
}

bool weight_cache_load(struct weight_cache *c, struct dev *dev, struct weight *w, const char *name) {
    const struct file_entry *e = c ? find_entry(c, name) : NULL;
    if (!e) return false;
    if (weight_image_read(dev, w, c->data + e->offset, e->bytes)) return true;
    log_warn("%s has another weight %s; it is quantized anew", c->path, name);
    return false;
}

/* ---------------------------------------------------------------- room in the folder */

struct kept_file {
    char *path;
    int64_t bytes;
    struct timespec used;
};

static bool ends_with(const char *text, const char *end) {
    size_t n = strlen(text), m = strlen(end);
    return n >= m && strcmp(text + n - m, end) == 0;
}

/* What a process that died has left: a day is longer than any writing takes. */
static bool is_leftover(const char *name, const struct stat *st) {
    return strstr(name, ".cache.tmp-") && st->st_mtim.tv_sec + 24 * 3600 < time(NULL);
}

static struct kept_file *list_files(const char *dir, size_t *n) {
    struct kept_file *files = NULL;
    struct dirent *d;
    struct stat st;
    DIR *folder = opendir(dir);
    *n = 0;
    while (folder && (d = readdir(folder))) {
        if (strncmp(d->d_name, prefix, strlen(prefix)) != 0) continue;
        char *path = path_join(dir, d->d_name);
        bool is_file = stat(path, &st) == 0 && S_ISREG(st.st_mode);
        if (is_file && is_leftover(d->d_name, &st)) unlink(path);
        if (!is_file || !ends_with(d->d_name, suffix)) {
            free(path);
            continue;
        }
        files = mem_realloc(files, *n + 1, sizeof *files);
        files[(*n)++] = (struct kept_file){path, st.st_size, st.st_mtim};
    }
    if (folder) closedir(folder);
    return files;
}

static int by_use(const void *a, const void *b) {
    const struct timespec *x = &((const struct kept_file *)a)->used, *y = &((const struct kept_file *)b)->used;
    if (x->tv_sec != y->tv_sec) return x->tv_sec < y->tv_sec ? -1 : 1;
    return x->tv_nsec < y->tv_nsec ? -1 : x->tv_nsec > y->tv_nsec;
}

/* So much of the limit is left, or becomes so: files used longest ago go. */
static bool make_room(const struct weight_cache *c, int64_t bytes) {
    struct statvfs fs;
    size_t n;
    struct kept_file *files = list_files(c->dir, &n);
    int64_t all = bytes;
    for (size_t i = 0; i < n; i++) all += files[i].bytes;
    if (n > 0) qsort(files, n, sizeof *files, by_use);
    for (size_t i = 0; i < n; i++) {
        if (all > c->limit && bytes <= c->limit && unlink(files[i].path) == 0) all -= files[i].bytes;
        free(files[i].path);
    }
    free(files);
    bool fits = statvfs(c->dir, &fs) != 0 || (uint64_t)fs.f_bavail * fs.f_frsize / 2 > (uint64_t)bytes;
    return all <= c->limit && fits; /* a cache leaves half of what is free to others */
}

/* ---------------------------------------------------------------- write */

struct writing { /* of an image */
    FILE *stream;
    uint64_t sums[LANES];
};

static int put(void *arg, const void *data, size_t n, struct err *err) {
    struct writing *w = arg;
    sum_up(w->sums, data, n);
    if (fwrite(data, 1, n, w->stream) == n) return 0;
    return err_set(err, errno == ENOSPC ? E_FULL : E_IO, "%s", strerror(errno));
}

static int write_table(const struct weight_cache *c, FILE *f, struct err *err) {
    struct file_head head = {.n_entries = c->n_entries};
    const struct file_entry *last = &c->entries[c->n_entries - 1];
    char zeros[ALIGN] = {0};
    size_t n = (size_t)c->n_entries * sizeof *c->entries, pad = table_bytes(c->n_entries) - sizeof head - n;
    memcpy(head.magic, magic, sizeof magic);
    memcpy(head.key, c->key, sizeof c->key);
    head.bytes = last->offset + last->bytes;
    head.checksum = hash64(c->entries, n, 0);
    if (fseek(f, 0, SEEK_SET) == 0 && fwrite(&head, sizeof head, 1, f) == 1 && fwrite(c->entries, 1, n, f) == n &&
        fwrite(zeros, 1, pad, f) == pad)
        return 0;
    return err_set(err, E_IO, "%s", strerror(errno));
}

static int write_all(struct weight_cache *c, FILE *f, struct err *err) {
    int r = write_table(c, f, err); /* checksums are not known yet */
    for (uint64_t i = 0; r == 0 && i < c->n_entries; i++) {
        struct writing w = {.stream = f};
        r = weight_image_write(c->dev, c->weights[i], put, &w, err);
        c->entries[i].checksum = sum_end(w.sums);
    }
    return r < 0 ? r : write_table(c, f, err);
}

/* The folder and those above it; what cannot be made shows when the file is. */
static void make_folder(const char *dir) {
    char *path = mem_strdup(dir);
    for (char *slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        mkdir(path, 0700);
        *slash = '/';
    }
    mkdir(path, 0700);
    free(path);
}

static void *writer_main(void *arg) {
    struct weight_cache *c = arg;
    struct err err = ERR_INIT;
    struct file_new *file;
    const struct file_entry *last = &c->entries[c->n_entries - 1];
    make_folder(c->dir);
    if (!make_room(c, (int64_t)(last->offset + last->bytes))) {
        log_debug("quantized weights of %llu MiB are not kept: no room in %s",
                  (unsigned long long)(last->offset + last->bytes) >> 20, c->dir);
        return NULL;
    }
    int r = file_new_open(&file, c->path, &err);
    if (r == 0) {
        r = write_all(c, file_new_stream(file), &err);
        if (r < 0) file_new_abort(file);
        else r = file_new_commit(file, &err);
    }
    if (r < 0) log_warn("quantized weights are not kept in %s: %s", c->path, err.text);
    return NULL;
}

void weight_cache_keep(struct weight_cache *c, const struct weight *w, const char *name) {
    if (!c || c->data || strlen(name) >= MAX_NAME || c->n_entries == MAX_ENTRIES) return;
    size_t n = (size_t)c->n_entries++;
    c->entries = mem_realloc(c->entries, n + 1, sizeof *c->entries);
    c->weights = mem_realloc(c->weights, n + 1, sizeof *c->weights);
    c->weights[n] = w;
    memset(&c->entries[n], 0, sizeof c->entries[n]);
    strcpy(c->entries[n].name, name);
}

void weight_cache_begin(struct weight_cache *c, struct dev *dev) {
    if (!c) return;
    forget_file(c);
    if (c->n_entries == 0) return;
    uint64_t at = table_bytes(c->n_entries);
    for (uint64_t i = 0; i < c->n_entries; i++) {
        c->entries[i].offset = at;
        c->entries[i].bytes = weight_image_bytes(c->weights[i]);
        at += c->entries[i].bytes;
    }
    c->dev = dev;
    c->is_writing = pthread_create(&c->thread, NULL, writer_main, c) == 0;
}

void weight_cache_close(struct weight_cache *c) {
    if (!c) return;
    if (c->is_writing) pthread_join(c->thread, NULL);
    forget_file(c);
    free(c->entries);
    free(c->weights);
    free(c->path);
    free(c->dir);
    free(c);
}
