/* safetensors.c - see safetensors.h. */
#include "engine/model/safetensors.h"
#include "base/file.h"
#include "base/mapped.h"
#include "base/mem.h"
#include "engine/model/json_members.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    MAX_HEADER = 16 << 20,
    MAX_INDEX = 16 << 20,
    MAX_TENSORS = 65536, /* of all shards together */
    MAX_SHARDS = 1024,
    MAX_NAME = 255,
    MAX_ENTRY = 4096, /* bytes of JSON that describe one tensor */
};

struct shard {
    char *name; /* of the file, without its folder */
    void *data; /* the whole file, mapped */
    size_t bytes;
    struct stat st; /* when it was opened */
};

struct checkpoint {
    struct shard *shards;
    size_t n_shards;
    struct checkpoint_tensor *tensors; /* ascending name once open */
    size_t n, cap;
};

static const struct {
    const char *text;
    size_t bytes;
    bool is_float;
    enum dtype dtype;
} file_dtypes[] = {
    {"F32", 4, true, DTYPE_F32}, {"F16", 2, true, DTYPE_F16}, {"BF16", 2, true, DTYPE_BF16},
    {"F64", 8, false, 0},        {"I64", 8, false, 0},        {"I32", 4, false, 0},
    {"I16", 2, false, 0},        {"I8", 1, false, 0},         {"U8", 1, false, 0},
    {"U16", 2, false, 0},        {"U32", 4, false, 0},        {"U64", 8, false, 0},
    {"BOOL", 1, false, 0},       {"F8_E4M3", 1, false, 0},    {"F8_E5M2", 1, false, 0},
    {"F8_E8M0", 1, false, 0},    {"C64", 8, false, 0},
};

/* ---------------------------------------------------------------- one tensor */

static int parse_dtype(struct checkpoint_tensor *t, const json_t *dtype, size_t *element, struct err *err) {
    const char *text = json_string_value(dtype);
    for (size_t i = 0; text && i < sizeof file_dtypes / sizeof *file_dtypes; i++) {
        if (strcmp(text, file_dtypes[i].text) != 0) continue;
        t->dtype_text = file_dtypes[i].text;
        t->is_float = file_dtypes[i].is_float;
        t->dtype = file_dtypes[i].dtype;
        *element = file_dtypes[i].bytes;
        return 0;
    }
    return err_set(err, E_PARSE, "tensor %s: dtype %s is not known", t->name, text ? text : "(missing)");
}

static int parse_shape(struct checkpoint_tensor *t, const json_t *shape, size_t element, struct err *err) {
    if (!json_is_array(shape) || json_array_size(shape) > SAFETENSORS_MAX_DIMS)
        return err_set(err, E_PARSE, "tensor %s: shape is not an array of at most %d numbers", t->name,
                       SAFETENSORS_MAX_DIMS);
    t->bytes = element;
    t->n_dims = (int32_t)json_array_size(shape);
    for (int32_t i = 0; i < t->n_dims; i++) {
        const json_t *dim = json_array_get(shape, (size_t)i);
        if (!json_is_integer(dim) || json_integer_value(dim) < 0)
            return err_set(err, E_PARSE, "tensor %s: a dimension is not a count", t->name);
        t->shape[i] = json_integer_value(dim);
        if (!size_mul(t->bytes, (size_t)t->shape[i], &t->bytes))
            return err_set(err, E_PARSE, "tensor %s: the product of its shape overflows", t->name);
    }
    return 0;
}

/* Where the tensor lies in the file's data; shape and dtype must make as many bytes. */
static int parse_place(struct checkpoint_tensor *t, const json_t *offsets, struct json_slice data, struct err *err) {
    const json_t *b = json_array_get(offsets, 0), *e = json_array_get(offsets, 1);
    if (json_array_size(offsets) != 2 || !json_is_integer(b) || !json_is_integer(e))
        return err_set(err, E_PARSE, "tensor %s: data_offsets is not a pair of numbers", t->name);
    int64_t begin = json_integer_value(b), end = json_integer_value(e);
    if (begin < 0 || end < begin || (uint64_t)end > data.n)
        return err_set(err, E_PARSE, "tensor %s: [%" PRId64 ", %" PRId64 ") is not inside the file's %zu bytes of data",
                       t->name, begin, end, data.n);
    if ((uint64_t)(end - begin) != t->bytes)
        return err_set(err, E_PARSE, "tensor %s: shape and dtype make %zu bytes, data_offsets %" PRId64, t->name,
                       t->bytes, end - begin);
    t->data = data.data + begin;
    return 0;
}

static int parse_entry(struct checkpoint_tensor *t, struct json_slice entry, struct json_slice data, struct err *err) {
    size_t element = 0;
    json_error_t why = {.text = "more than 4096 bytes"};
    json_t *root = entry.n <= MAX_ENTRY ? json_loadb(entry.data, entry.n, JSON_REJECT_DUPLICATES, &why) : NULL;
    int r = root ? 0 : err_set(err, E_PARSE, "tensor %s: %s", t->name, why.text);
    if (r == 0) r = parse_dtype(t, json_object_get(root, "dtype"), &element, err);
    if (r == 0) r = parse_shape(t, json_object_get(root, "shape"), element, err);
    if (r == 0) r = parse_place(t, json_object_get(root, "data_offsets"), data, err);
    json_decref(root);
    return r;
}

/* ---------------------------------------------------------------- one file */

/* Free text for people; only its form is checked. */
static int check_metadata(struct json_slice text, struct err *err) {
    struct json_members members;
    struct json_slice key, value;
    int more;
    if (text.n == 4 && memcmp(text.data, "null", 4) == 0) return 0;
    json_members_init(&members, text);
    while ((more = json_members_next(&members, &key, &value)) > 0)
        if (*value.data != '"') break;
    return more == 0 ? 0 : err_set(err, E_PARSE, "__metadata__ is not an object of strings");
}

static int add_tensor(struct checkpoint *c, char *name, struct json_slice entry, struct json_slice data,
                      struct err *err) {
    struct checkpoint_tensor t = {.name = name, .file = (int32_t)c->n_shards - 1};
    if (c->n == MAX_TENSORS) return err_set(err, E_PARSE, "more than %d tensors", MAX_TENSORS);
    int r = parse_entry(&t, entry, data, err);
    if (r < 0) return r;
    if (c->n == c->cap) {
        c->cap = c->cap ? c->cap * 2 : 64;
        c->tensors = mem_realloc(c->tensors, c->cap, sizeof *c->tensors);
    }
    c->tensors[c->n++] = t;
    return 0;
}

static int add_tensors(struct checkpoint *c, struct json_slice header, struct json_slice data, struct err *err) {
    struct json_members members;
    struct json_slice key, value;
    int more, r = 0;
    json_members_init(&members, header);
    while (r == 0 && (more = json_members_next(&members, &key, &value)) != 0) {
        if (more < 0) return err_set(err, E_PARSE, "header: %s", members.error);
        char *name = json_slice_string(key, MAX_NAME);
        if (!name) return err_set(err, E_PARSE, "header: a name is not a string of at most %d bytes", MAX_NAME);
        bool is_metadata = strcmp(name, "__metadata__") == 0;
        r = is_metadata ? check_metadata(value, err) : add_tensor(c, name, value, data, err);
        if (is_metadata || r < 0) free(name);
    }
    return r;
}

static int by_place(const void *a, const void *b) {
    const struct checkpoint_tensor *x = a, *y = b;
    if (x->data != y->data) return (uintptr_t)x->data < (uintptr_t)y->data ? -1 : 1;
    return x->bytes < y->bytes ? -1 : x->bytes > y->bytes;
}

/* Sorted by place, the tensors must lie end to end over all of the data. */
static int check_tiling(struct checkpoint_tensor *t, size_t n, struct json_slice data, struct err *err) {
    const char *at = data.data;
    if (n > 0) qsort(t, n, sizeof *t, by_place);
    for (size_t i = 0; i < n; i++) {
        const char *begin = t[i].data;
        if (begin < at) return err_set(err, E_PARSE, "tensor %s overlaps tensor %s", t[i].name, t[i - 1].name);
        if (begin > at)
            return err_set(err, E_PARSE, "%zu bytes before tensor %s belong to none", (size_t)(begin - at), t[i].name);
        at += t[i].bytes;
    }
    if (at == data.data + data.n) return 0;
    return err_set(err, E_PARSE, "%zu bytes at the end belong to no tensor", (size_t)(data.data + data.n - at));
}

static uint64_t load_le64(const unsigned char *p) {
    uint64_t v = 0;
    for (int i = 7; i >= 0; i--) v = v << 8 | p[i];
    return v;
}

static int read_header(struct checkpoint *c, struct err *err) {
    const struct shard *s = &c->shards[c->n_shards - 1];
    size_t first = c->n;
    uint64_t n = load_le64(s->data);
    if (n > MAX_HEADER)
        return err_set(err, E_PARSE, "the header claims %" PRIu64 " bytes; at most %d are allowed", n, MAX_HEADER);
    if (n > s->bytes - 8)
        return err_set(err, E_PARSE, "the header claims %" PRIu64 " bytes, the file has %zu", n, s->bytes);
    struct json_slice header = {(const char *)s->data + 8, (size_t)n};
    struct json_slice data = {header.data + n, s->bytes - 8 - (size_t)n};
    int r = add_tensors(c, header, data, err);
    return r < 0 ? r : check_tiling(c->tensors + first, c->n - first, data, err);
}

static int map_file(struct shard *out, const char *path, struct err *err) {
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return err_set(err, errno == ENOENT ? E_NOT_FOUND : errno == EACCES ? E_PERMISSION : E_IO, "cannot open: %s",
                       strerror(errno));
    struct stat st;
    int r = 0;
    if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode)) r = err_set(err, E_IO, "not a regular file");
    else if (st.st_size < 8)
        r = err_set(err, E_PARSE, "%lld bytes are too few for a safetensors file", (long long)st.st_size);
    if (r == 0) {
        out->bytes = (size_t)st.st_size;
        out->st = st;
        out->data = mmap(NULL, out->bytes, PROT_READ, MAP_PRIVATE, fd, 0);
        if (out->data == MAP_FAILED) r = err_set(err, E_IO, "cannot map: %s", strerror(errno));
    }
    close(fd);
    return r;
}

static int add_file(struct checkpoint *c, const char *path, const char *name, struct err *err) {
    struct shard s;
    int r = map_file(&s, path, err);
    if (r == 0) {
        mapped_note(s.data, s.bytes, path);
        s.name = mem_strdup(name);
        c->shards = mem_realloc(c->shards, c->n_shards + 1, sizeof *c->shards);
        c->shards[c->n_shards++] = s;
        r = read_header(c, err);
    }
    if (r < 0) err_wrap(err, "%s", path);
    return r;
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const struct checkpoint_tensor *)a)->name, ((const struct checkpoint_tensor *)b)->name);
}

/* Sort for checkpoint_find; a name may be there once. */
static int finish(struct checkpoint *c, struct err *err) {
    if (c->n > 0) qsort(c->tensors, c->n, sizeof *c->tensors, by_name);
    for (size_t i = 1; i < c->n; i++) {
        const struct checkpoint_tensor *a = &c->tensors[i - 1], *b = &c->tensors[i];
        if (strcmp(a->name, b->name) != 0) continue;
        if (a->file == b->file)
            return err_set(err, E_PARSE, "%s: tensor %s is there twice", c->shards[a->file].name, a->name);
        return err_set(err, E_PARSE, "tensor %s is in %s and in %s", a->name, c->shards[a->file].name,
                       c->shards[b->file].name);
    }
    return 0;
}

/* ---------------------------------------------------------------- shards */

/* A shard is a file of the folder itself: the index cannot lead anywhere else. */
static bool is_plain_name(const char *name) {
    return name && *name && !strchr(name, '/') && *name != '.';
}

/* Ascending keys make runs of one shard, so the last one is tried first. */
static int shard_index(const struct checkpoint *c, const char *name) {
    for (size_t i = c->n_shards; i-- > 0;)
        if (strcmp(c->shards[i].name, name) == 0) return (int)i;
    return -1;
}

static int add_shard(struct checkpoint *c, const char *dir, const char *tensor, const char *shard, struct err *err) {
    if (!is_plain_name(shard))
        return err_set(err, E_PARSE, "the shard of %s is not the name of a file in the folder", tensor);
    if (shard_index(c, shard) >= 0) return 0;
    if (c->n_shards == MAX_SHARDS) return err_set(err, E_PARSE, "more than %d shards", MAX_SHARDS);
    char *path = path_join(dir, shard);
    int r = add_file(c, path, shard, err);
    free(path);
    return r;
}

static int check_in_shard(struct checkpoint *c, const char *dir, const char *tensor, const char *shard,
                          struct err *err) {
    const struct checkpoint_tensor *t = checkpoint_find(c, tensor);
    if (t && t->file == shard_index(c, shard)) return 0;
    return err_set(err, E_PARSE, "tensor %s is not in %s", tensor, shard);
}

/* Call fn for each (tensor, shard) of the index. */
static int each_mapping(struct checkpoint *c, const char *dir, struct json_slice weight_map,
                        int (*fn)(struct checkpoint *, const char *, const char *, const char *, struct err *),
                        struct err *err) {
    struct json_members members;
    struct json_slice key, value;
    int more, r = 0, n = 0;
    json_members_init(&members, weight_map);
    while (r == 0 && (more = json_members_next(&members, &key, &value)) != 0) {
        if (more < 0) return err_set(err, E_PARSE, "weight_map: %s", members.error);
        if (++n > MAX_TENSORS) return err_set(err, E_PARSE, "weight_map: more than %d tensors", MAX_TENSORS);
        char *tensor = json_slice_string(key, MAX_NAME), *shard = json_slice_string(value, MAX_NAME);
        if (tensor && shard) r = fn(c, dir, tensor, shard, err);
        else r = err_set(err, E_PARSE, "weight_map: not pairs of strings of at most %d bytes", MAX_NAME);
        free(tensor);
        free(shard);
    }
    return r;
}

static int find_weight_map(struct json_slice index, struct json_slice *weight_map, struct err *err) {
    struct json_members members;
    struct json_slice key, value;
    int more;
    *weight_map = (struct json_slice){NULL, 0};
    json_members_init(&members, index);
    while ((more = json_members_next(&members, &key, &value)) > 0)
        if (key.n == 12 && memcmp(key.data, "\"weight_map\"", 12) == 0) *weight_map = value;
    if (more < 0) return err_set(err, E_PARSE, "%s", members.error);
    return weight_map->n ? 0 : err_set(err, E_PARSE, "no weight_map");
}

static int open_sharded(struct checkpoint *c, const char *dir, const char *index, struct err *err) {
    char *text = NULL;
    struct json_slice weight_map;
    size_t n;
    int r = file_read(index, MAX_INDEX, &text, &n, err);
    if (r < 0) return r;
    r = find_weight_map((struct json_slice){text, n}, &weight_map, err);
    if (r == 0) r = each_mapping(c, dir, weight_map, add_shard, err);
    if (r == 0) r = finish(c, err);
    if (r == 0) r = each_mapping(c, dir, weight_map, check_in_shard, err);
    if (r < 0) err_wrap(err, "%s", index);
    free(text);
    return r;
}

/* ---------------------------------------------------------------- open, close, find */

static int close_if(int r, struct checkpoint *c, struct checkpoint **out) {
    if (r < 0) checkpoint_close(c);
    else *out = c;
    return r;
}

int checkpoint_open_file(struct checkpoint **out, const char *path, struct err *err) {
    struct checkpoint *c = mem_zalloc(1, sizeof *c);
    int r = add_file(c, path, path, err);
    if (r == 0) r = finish(c, err);
    return close_if(r, c, out);
}

int checkpoint_open(struct checkpoint **out, const char *model_dir, struct err *err) {
    char *index = path_join(model_dir, "model.safetensors.index.json");
    char *single = path_join(model_dir, "model.safetensors");
    int r;
    if (access(single, F_OK) == 0) r = checkpoint_open_file(out, single, err);
    else if (access(index, F_OK) == 0) {
        struct checkpoint *c = mem_zalloc(1, sizeof *c);
        r = close_if(open_sharded(c, model_dir, index, err), c, out);
    } else
        r = err_set(err, E_NOT_FOUND, "%s has neither model.safetensors nor model.safetensors.index.json", model_dir);
    free(index);
    free(single);
    return r;
}

void checkpoint_close(struct checkpoint *c) {
    if (!c) return;
    for (size_t i = 0; i < c->n_shards; i++) {
        mapped_forget(c->shards[i].data);
        munmap(c->shards[i].data, c->shards[i].bytes);
        free(c->shards[i].name);
    }
    for (size_t i = 0; i < c->n; i++) free(c->tensors[i].name);
    free(c->shards);
    free(c->tensors);
    free(c);
}

size_t checkpoint_n_files(const struct checkpoint *c) {
    return c->n_shards;
}

const char *checkpoint_file_name(const struct checkpoint *c, size_t i) {
    const char *slash = strrchr(c->shards[i].name, '/');
    return slash ? slash + 1 : c->shards[i].name;
}

void checkpoint_identify(const struct checkpoint *c, struct sha256 *s) {
    for (size_t i = 0; i < c->n_shards; i++) {
        const struct shard *f = &c->shards[i];
        int64_t facts[] = {f->st.st_size, f->st.st_mtim.tv_sec, f->st.st_mtim.tv_nsec, (int64_t)f->st.st_ino,
                           (int64_t)f->st.st_dev};
        sha256_add(s, facts, sizeof facts);
        sha256_add(s, f->data, 8 + (size_t)load_le64(f->data));
    }
}

size_t checkpoint_n_tensors(const struct checkpoint *c) {
    return c->n;
}

const struct checkpoint_tensor *checkpoint_at(const struct checkpoint *c, size_t i) {
    return &c->tensors[i];
}

const struct checkpoint_tensor *checkpoint_find(const struct checkpoint *c, const char *name) {
    struct checkpoint_tensor key = {.name = (char *)name};
    return c->n ? bsearch(&key, c->tensors, c->n, sizeof key, by_name) : NULL;
}
