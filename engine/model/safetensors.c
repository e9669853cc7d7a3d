/* safetensors.c - see safetensors.h. */
#include "engine/model/safetensors.h"
#include "base/file.h"
#include "base/mem.h"

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
    MAX_TENSORS = 65536, /* of all shards together */
    MAX_SHARDS = 1024,
    MAX_INDEX = 64 << 20,
};

struct mapping {
    void *data;
    size_t bytes;
};

struct checkpoint {
    struct mapping *maps;
    size_t n_maps;
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
};

/* ---------------------------------------------------------------- one file */

static int map_file(struct mapping *out, const char *path, struct err *err) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return err_set(err, errno == ENOENT ? E_NOT_FOUND : E_IO, "cannot open %s: %s", path, strerror(errno));
    struct stat st;
    int r = 0;
    if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode)) r = err_set(err, E_IO, "%s is not a regular file", path);
    else if (st.st_size < 8)
        r = err_set(err, E_PARSE, "%s has %lld bytes, too few for a safetensors file", path, (long long)st.st_size);
    if (r == 0) {
        void *data = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (data == MAP_FAILED) r = err_set(err, E_IO, "cannot map %s: %s", path, strerror(errno));
        else *out = (struct mapping){data, (size_t)st.st_size};
    }
    close(fd);
    return r;
}

static uint64_t load_le64(const unsigned char *p) {
    uint64_t v = 0;
    for (int i = 7; i >= 0; i--) v = v << 8 | p[i];
    return v;
}

static int parse_dtype(struct checkpoint_tensor *t, const char *text, size_t *element, struct err *err) {
    for (size_t i = 0; text && i < sizeof file_dtypes / sizeof *file_dtypes; i++) {
        if (strcmp(text, file_dtypes[i].text) != 0) continue;
        strcpy(t->dtype_text, text);
        t->is_float = file_dtypes[i].is_float;
        t->dtype = file_dtypes[i].dtype;
        *element = file_dtypes[i].bytes;
        return 0;
    }
    return err_set(err, E_PARSE, "tensor %s: dtype %s is not known", t->name, text ? text : "(missing)");
}

static int parse_shape(struct checkpoint_tensor *t, const json_t *shape, size_t element, size_t *bytes,
                       struct err *err) {
    if (!json_is_array(shape) || json_array_size(shape) > SAFETENSORS_MAX_DIMS)
        return err_set(err, E_PARSE, "tensor %s: shape is not an array of at most %d numbers", t->name,
                       SAFETENSORS_MAX_DIMS);
    *bytes = element;
    t->n_dims = (int32_t)json_array_size(shape);
    for (int32_t i = 0; i < t->n_dims; i++) {
        const json_t *dim = json_array_get(shape, (size_t)i);
        if (!json_is_integer(dim) || json_integer_value(dim) < 0)
            return err_set(err, E_PARSE, "tensor %s: a dimension is not a count", t->name);
        t->shape[i] = json_integer_value(dim);
        if (!size_mul(*bytes, (size_t)t->shape[i], bytes))
            return err_set(err, E_PARSE, "tensor %s: its shape has more bytes than there are", t->name);
    }
    return 0;
}

/* One entry of the header; data_bytes is what the file has behind its header. */
static int parse_tensor(struct checkpoint_tensor *t, const char *name, const json_t *entry, const char *data,
                        size_t data_bytes, struct err *err) {
    size_t element = 0, bytes = 0;
    memset(t, 0, sizeof *t);
    t->name = mem_strdup(name);
    int r = parse_dtype(t, json_string_value(json_object_get(entry, "dtype")), &element, err);
    if (r == 0) r = parse_shape(t, json_object_get(entry, "shape"), element, &bytes, err);
    const json_t *offsets = json_object_get(entry, "data_offsets");
    const json_t *b = json_array_get(offsets, 0), *e = json_array_get(offsets, 1);
    if (r == 0 && (json_array_size(offsets) != 2 || !json_is_integer(b) || !json_is_integer(e)))
        r = err_set(err, E_PARSE, "tensor %s: data_offsets is not a pair of numbers", name);
    if (r < 0) goto fail;
    json_int_t begin = json_integer_value(b), end = json_integer_value(e);
    if (begin < 0 || end < begin || (uint64_t)end > data_bytes) {
        r = err_set(err, E_PARSE, "tensor %s: data [%" PRId64 ", %" PRId64 ") is not inside the file's %zu bytes of data", name,
                    (int64_t)begin, (int64_t)end, data_bytes);
        goto fail;
    }
    if ((size_t)(end - begin) != bytes) {
        r = err_set(err, E_PARSE, "tensor %s: shape and dtype make %zu bytes, data_offsets %" PRId64, name, bytes,
                    (int64_t)(end - begin));
        goto fail;
    }
    t->data = data + begin;
    t->bytes = bytes;
    return 0;
fail:
    free(t->name);
    return r;
}

static int by_place(const void *a, const void *b) {
    const struct checkpoint_tensor *x = a, *y = b;
    if (x->data != y->data) return (uintptr_t)x->data < (uintptr_t)y->data ? -1 : 1;
    return x->bytes < y->bytes ? -1 : x->bytes > y->bytes;
}

/* Sorted by place, the tensors must lie end to end over all of the data. */
static int check_tiling(struct checkpoint_tensor *t, size_t n, const char *data, size_t bytes, struct err *err) {
    qsort(t, n, sizeof *t, by_place);
    const char *at = data;
    for (size_t i = 0; i < n; i++) {
        if ((const char *)t[i].data < at) return err_set(err, E_PARSE, "tensor %s overlaps another", t[i].name);
        if ((const char *)t[i].data > at)
            return err_set(err, E_PARSE, "%zu bytes before tensor %s belong to none",
                           (size_t)((const char *)t[i].data - at), t[i].name);
        at += t[i].bytes;
    }
    if (at != data + bytes)
        return err_set(err, E_PARSE, "%zu bytes at the end belong to no tensor", (size_t)(data + bytes - at));
    return 0;
}

static int too_deep(const char *json, size_t n) {
    int depth = 0, text = 0;
    for (size_t i = 0; i < n; i++) {
        if (text) {
            if (json[i] == '\\') i++;
            else if (json[i] == '"') text = 0;
        } else if (json[i] == '"') text = 1;
        else if (json[i] == '{' || json[i] == '[') {
            if (++depth > 4) return 1;
        } else if (json[i] == '}' || json[i] == ']') depth--;
    }
    return 0;
}

static int add_tensors(struct checkpoint *c, const json_t *header, const struct mapping *map, size_t header_bytes,
                       struct err *err) {
    const char *data = (const char *)map->data + 8 + header_bytes, *name;
    size_t data_bytes = map->bytes - 8 - header_bytes, first = c->n;
    json_t *entry;
    json_object_foreach((json_t *)header, name, entry) {
        if (strcmp(name, "__metadata__") == 0) continue;
        if (c->n == MAX_TENSORS) return err_set(err, E_PARSE, "more than %d tensors", MAX_TENSORS);
        if (c->n == c->cap) {
            c->cap = c->cap ? c->cap * 2 : 64;
            c->tensors = mem_realloc(c->tensors, c->cap, sizeof *c->tensors);
        }
        int r = parse_tensor(&c->tensors[c->n], name, entry, data, data_bytes, err);
        if (r < 0) return r;
        c->n++;
    }
    return check_tiling(c->tensors + first, c->n - first, data, data_bytes, err);
}

static int add_file(struct checkpoint *c, const char *path, struct err *err) {
    struct mapping map;
    int r = map_file(&map, path, err);
    if (r < 0) return r;
    c->maps = mem_realloc(c->maps, c->n_maps + 1, sizeof *c->maps);
    c->maps[c->n_maps++] = map;
    uint64_t header_bytes = load_le64(map.data);
    if (header_bytes > MAX_HEADER || header_bytes > map.bytes - 8)
        return err_set(err, E_PARSE, "%s: the header claims %" PRIu64 " bytes, the file has %zu", path, header_bytes,
                       map.bytes);
    const char *text = (const char *)map.data + 8;
    if (too_deep(text, (size_t)header_bytes)) return err_set(err, E_PARSE, "%s: header is nested too deeply", path);
    json_error_t why;
    json_t *header = json_loadb(text, (size_t)header_bytes, JSON_REJECT_DUPLICATES, &why);
    if (!json_is_object(header)) r = err_set(err, E_PARSE, "%s: header is not a JSON object: %s", path, why.text);
    else r = add_tensors(c, header, &map, (size_t)header_bytes, err);
    json_decref(header);
    if (r < 0 && !strstr(err ? err->text : path, path)) err_wrap(err, "%s", path);
    return r;
}

/* ---------------------------------------------------------------- folders */

static int by_name(const void *a, const void *b) {
    return strcmp(((const struct checkpoint_tensor *)a)->name, ((const struct checkpoint_tensor *)b)->name);
}

static int finish(struct checkpoint *c, struct err *err) {
    qsort(c->tensors, c->n, sizeof *c->tensors, by_name);
    for (size_t i = 1; i < c->n; i++)
        if (strcmp(c->tensors[i - 1].name, c->tensors[i].name) == 0)
            return err_set(err, E_PARSE, "tensor %s is in two shards", c->tensors[i].name);
    return 0;
}

/* A shard is a file of the folder itself: the index cannot lead anywhere else. */
static int is_plain_name(const char *name) {
    return name && *name && !strchr(name, '/') && name[0] != '.';
}

static int add_shards(struct checkpoint *c, const char *dir, const json_t *weight_map, const char *index,
                      struct err *err) {
    const char *tensor, *seen[MAX_SHARDS];
    size_t n_seen = 0;
    json_t *value;
    json_object_foreach((json_t *)weight_map, tensor, value) {
        const char *shard = json_string_value(value);
        if (!is_plain_name(shard))
            return err_set(err, E_PARSE, "%s: shard of %s is not the name of a file in the folder", index, tensor);
        size_t i = 0;
        while (i < n_seen && strcmp(seen[i], shard) != 0) i++;
        if (i < n_seen) continue;
        if (n_seen == MAX_SHARDS) return err_set(err, E_PARSE, "%s: more than %d shards", index, MAX_SHARDS);
        seen[n_seen++] = shard;
        char *path = path_join(dir, shard);
        int r = add_file(c, path, err);
        free(path);
        if (r < 0) return r;
    }
    return 0;
}

static int open_sharded(struct checkpoint *c, const char *dir, const char *index, struct err *err) {
    char *text;
    size_t n;
    int r = file_read(index, MAX_INDEX, &text, &n, err);
    if (r < 0) return r;
    json_error_t why;
    json_t *root = json_loadb(text, n, JSON_REJECT_DUPLICATES, &why);
    const json_t *weight_map = json_object_get(root, "weight_map");
    if (!root) r = err_set(err, E_PARSE, "%s: %s", index, why.text);
    else if (!json_is_object(weight_map)) r = err_set(err, E_PARSE, "%s: no object weight_map", index);
    else r = add_shards(c, dir, weight_map, index, err);
    if (r == 0) r = finish(c, err);
    const char *name;
    json_t *shard;
    if (r == 0)
        json_object_foreach((json_t *)weight_map, name, shard) {
            if (checkpoint_find(c, name)) continue;
            r = err_set(err, E_PARSE, "%s: tensor %s is not in %s", index, name, json_string_value(shard));
            break;
        }
    json_decref(root);
    free(text);
    return r;
}

static int close_if(int r, struct checkpoint *c, struct checkpoint **out) {
    if (r < 0) checkpoint_close(c);
    else *out = c;
    return r;
}

int checkpoint_open_file(struct checkpoint **out, const char *path, struct err *err) {
    struct checkpoint *c = mem_zalloc(1, sizeof *c);
    int r = add_file(c, path, err);
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
    for (size_t i = 0; i < c->n_maps; i++) munmap(c->maps[i].data, c->maps[i].bytes);
    for (size_t i = 0; i < c->n; i++) free(c->tensors[i].name);
    free(c->maps);
    free(c->tensors);
    free(c);
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
