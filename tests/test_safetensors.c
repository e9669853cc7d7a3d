/* test_safetensors.c - what the loader takes and what it refuses. Files are built
 * here; tests/data/safetensors holds mutated headers with the verdict of the
 * format's own library. */
#include "tests/unit.h"

#include "base/mem.h"
#include "batchd/signals.h"
#include "engine/model/safetensors.h"

#include <jansson.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#if defined __SANITIZE_ADDRESS__ || defined __SANITIZE_THREAD__
enum { MEASURES_MEMORY = 0 }; /* a sanitizer's own memory would be measured */
#else
enum { MEASURES_MEMORY = 1 };
#endif

static char dir[] = "/tmp/batchd-safetensors-XXXXXX";

static const char *in_dir(const char *name) {
    static char path[600];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    return path;
}

static void write_bytes(const char *name, const void *data, size_t n) {
    unlink(in_dir(name)); /* ext4 flushes a file that is cut and written anew */
    FILE *f = fopen(in_dir(name), "w");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

/* A file with this header (its length first) and n_data bytes 0, 1, 2 ... behind it. */
static size_t build(char *out, const char *header, size_t n_header, size_t n_data) {
    for (int i = 0; i < 8; i++) out[i] = (char)(n_header >> 8 * i);
    memcpy(out + 8, header, n_header);
    for (size_t i = 0; i < n_data; i++) out[8 + n_header + i] = (char)i;
    return 8 + n_header + n_data;
}

static void write_model(const char *name, const char *header, size_t n_data) {
    char *bytes = mem_alloc(strlen(header) + n_data + 8);
    write_bytes(name, bytes, build(bytes, header, strlen(header), n_data));
    free(bytes);
}

static int open_it(struct checkpoint **c, struct err *err) {
    return checkpoint_open_file(c, in_dir("model.safetensors"), err);
}

/* The header with n_data bytes behind it must be refused with these words, and the file be named. */
static void refused(const char *header, size_t n_data, const char *part) {
    struct checkpoint *c = NULL;
    struct err err = ERR_INIT;
    write_model("model.safetensors", header, n_data);
    assert_err(open_it(&c, &err), E_PARSE, part, &err);
    assert_non_null(strstr(err.text, in_dir("model.safetensors")));
    assert_null(c);
}

/* ---------------------------------------------------------------- good files */

static const char good[] =
    "{\"__metadata__\":{\"format\":\"pt\"},"
    "\"w\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]},"
    "\"b\":{\"dtype\":\"BF16\",\"shape\":[2],\"data_offsets\":[24,28]},"
    "\"none\":{\"dtype\":\"F16\",\"shape\":[0,9223372036854775807],\"data_offsets\":[28,28]},"
    "\"one\":{\"dtype\":\"I64\",\"shape\":[],\"data_offsets\":[28,36]}}";
enum { GOOD_DATA = 36 };

static void reads_a_file(void **state) {
    struct checkpoint *c;
    struct err err = ERR_INIT;
    char padded[sizeof good + 5];
    snprintf(padded, sizeof padded, "%s     ", good);
    write_model("model.safetensors", padded, GOOD_DATA);
    assert_ok(checkpoint_open(&c, dir, &err), &err);
    assert_int_equal(checkpoint_n_tensors(c), 4);
    const struct checkpoint_tensor *w = checkpoint_find(c, "w"), *b = checkpoint_find(c, "b");
    assert_true(w->is_float && w->dtype == DTYPE_F32 && w->n_dims == 2 && w->shape[0] == 2 && w->shape[1] == 3);
    assert_true(b->is_float && b->dtype == DTYPE_BF16 && b->bytes == 4);
    assert_int_equal(*(const unsigned char *)b->data, 24);
    assert_int_equal((const char *)b->data - (const char *)w->data, 24);
    assert_false(checkpoint_find(c, "one")->is_float);
    assert_string_equal(checkpoint_find(c, "one")->dtype_text, "I64");
    assert_int_equal(checkpoint_find(c, "one")->n_dims, 0);
    assert_int_equal(checkpoint_find(c, "none")->bytes, 0);
    assert_null(checkpoint_find(c, "__metadata__"));
    assert_null(checkpoint_find(c, "x"));
    assert_string_equal(checkpoint_at(c, 0)->name, "b");
    checkpoint_close(c);
}

static void reads_an_empty_checkpoint(void **state) {
    struct checkpoint *c;
    struct err err = ERR_INIT;
    write_model("model.safetensors", "{}", 0);
    assert_ok(open_it(&c, &err), &err);
    assert_int_equal(checkpoint_n_tensors(c), 0);
    assert_null(checkpoint_find(c, "w"));
    checkpoint_close(c);
}

static void reads_names_with_escapes(void **state) {
    struct checkpoint *c;
    struct err err = ERR_INIT;
    write_model("model.safetensors",
                "{ \"a\\\"}\\u00e9\\\\\" :\t{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}\n}", 1);
    assert_ok(open_it(&c, &err), &err);
    assert_non_null(checkpoint_find(c, "a\"}\xc3\xa9\\"));
    checkpoint_close(c);
}

/* ---------------------------------------------------------------- hostile headers */

#define T(name, dtype, shape, from, to) \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":[" #from "," #to "]}"

static void refuses_what_is_no_header(void **state) {
    refused("", 0, "not a JSON object");
    refused("[]", 0, "not a JSON object");
    refused("{", 0, "no key");
    refused("{}x", 0, "follows the JSON object");
    refused("{} {}", 0, "follows the JSON object");
    refused("{\"w\"}", 0, "no colon");
    refused("{\"w\":}", 0, "a value is missing");
    refused("{\"w\":{\"dtype\":\"U8\"", 0, "does not end");
    refused("{\"w\":\"x", 0, "does not end");
    refused("{" T("w", "U8", "[1]", 0, 1) ",}", 1, "no key");
    refused("{" T("w", "U8", "[1]", 0, 1) " " T("v", "U8", "[1]", 1, 2) "}", 2, "no comma");
    refused("{" T("w", "U8", "[1]", 0, 1) "}}", 1, "follows the JSON object");
    refused("{\"w\":[]}", 0, "tensor w");
    refused("{\"w\":null}", 0, "tensor w");
    refused("{\"w\":{\"dtype\":\"U8\",\"shape\":[[1]],\"data_offsets\":[0,1]}}", 1, "a dimension is not a count");
    refused("{\"w\":{\"dtype\":\"U8\",\"shape\":[[[1]]],\"data_offsets\":[0,1]}}", 1, "nested too deeply");
    refused("{\"\xff\xfe\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, "a name is not a string");
    refused("{\"\\u0000\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, "a name is not a string");
    refused("{\"__metadata__\":{\"a\":1}}", 0, "__metadata__");
    refused("{\"__metadata__\":[]}", 0, "__metadata__");
}

static void refuses_tensors_that_lie(void **state) {
    refused("{" T("w", "F33", "[1]", 0, 4) "}", 4, "tensor w: dtype F33 is not known");
    refused("{\"w\":{\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "tensor w: dtype (missing)");
    refused("{" T("w", "F32", "[-1]", 0, 4) "}", 4, "tensor w: a dimension is not a count");
    refused("{" T("w", "F32", "[1.0]", 0, 4) "}", 4, "tensor w: a dimension is not a count");
    refused("{" T("w", "F32", "[\"1\"]", 0, 4) "}", 4, "tensor w: a dimension is not a count");
    refused("{" T("w", "F32", "1", 0, 4) "}", 4, "tensor w: shape is not an array");
    refused("{" T("w", "U8", "[1,1,1,1,1,1,1,1,1]", 0, 1) "}", 1, "at most 8");
    refused("{" T("w", "F32", "[1]", 0, 5) "}", 5, "tensor w: shape and dtype make 4 bytes, data_offsets 5");
    refused("{" T("w", "F32", "[2]", 0, 4) "}", 4, "tensor w: shape and dtype make 8 bytes");
    refused("{" T("w", "F32", "[1]", 0, 4) "}", 3, "tensor w: [0, 4) is not inside the file's 3 bytes");
    refused("{" T("w", "F32", "[1]", 4, 0) "}", 4, "is not inside");
    refused("{" T("w", "F32", "[1]", -4, 0) "}", 4, "is not inside");
    refused("{" T("w", "U8", "[1]", 9223372036854775806, 9223372036854775807) "}", 4, "is not inside");
    refused("{" T("w", "U8", "[1]", 0, 18446744073709551616) "}", 4, "tensor w");
    refused("{\"w\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0]}}", 4, "not a pair");
    refused("{\"w\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4,8]}}", 4, "not a pair");
    refused("{\"w\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4, "not a pair");
    refused("{\"w\":{\"dtype\":\"F32\",\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "duplicate");
    /* products that wrap round to 0 and to 4 */
    refused("{" T("w", "F32", "[4611686018427387904]", 0, 0) "}", 0, "overflows");
    refused("{" T("w", "F32", "[4611686018427387905]", 0, 4) "}", 4, "overflows");
    refused("{" T("w", "F32", "[4294967296,4294967296]", 0, 0) "}", 0, "overflows");
}

static void refuses_overlaps_holes_and_duplicates(void **state) {
    refused("{" T("a", "U8", "[4]", 0, 4) "," T("b", "U8", "[4]", 2, 6) "}", 6, "tensor b overlaps tensor a");
    refused("{" T("a", "U8", "[4]", 0, 4) "," T("b", "U8", "[4]", 0, 4) "}", 4, "overlaps");
    refused("{" T("a", "U8", "[4]", 0, 4) "," T("b", "U8", "[2]", 6, 8) "}", 8, "2 bytes before tensor b");
    refused("{" T("a", "U8", "[4]", 1, 5) "}", 5, "1 bytes before tensor a");
    refused("{" T("a", "U8", "[4]", 0, 4) "}", 9, "5 bytes at the end");
    refused("{}", 1, "1 bytes at the end");
    refused("{" T("a", "U8", "[4]", 0, 4) "," T("a", "U8", "[4]", 4, 8) "}", 8, "tensor a is there twice");
    refused("{" T("a", "U8", "[0]", 0, 0) "," T("\\u0061", "U8", "[0]", 0, 0) "}", 0, "tensor a is there twice");
}

static void refuses_a_header_longer_than_the_file(void **state) {
    struct checkpoint *c = NULL;
    struct err err = ERR_INIT;
    unsigned char bytes[16] = {0, 0, 0, 0, 0, 0, 0, 0x10, '{', '}'};
    write_bytes("model.safetensors", bytes, sizeof bytes); /* 2^60 */
    assert_err(open_it(&c, &err), E_PARSE, "the header claims 1152921504606846976 bytes", &err);
    memset(bytes, 0xff, 8);
    write_bytes("model.safetensors", bytes, sizeof bytes);
    assert_err(open_it(&c, &err), E_PARSE, "the header claims 18446744073709551615 bytes", &err);
    memcpy(bytes, (char[]){9, 0, 0, 0, 0, 0, 0, 0}, 8);
    write_bytes("model.safetensors", bytes, sizeof bytes);
    assert_err(open_it(&c, &err), E_PARSE, "the header claims 9 bytes, the file has 16", &err);
    write_bytes("model.safetensors", bytes, 7);
    assert_err(open_it(&c, &err), E_PARSE, "7 bytes are too few", &err);
    write_bytes("model.safetensors", bytes, 0);
    assert_err(open_it(&c, &err), E_PARSE, "0 bytes are too few", &err);
}

static void refuses_every_truncation(void **state) {
    struct checkpoint *c = NULL;
    struct err err = ERR_INIT;
    char bytes[sizeof good + 8 + GOOD_DATA];
    size_t n = build(bytes, good, strlen(good), GOOD_DATA);
    for (size_t cut = 0; cut < n; cut++) {
        write_bytes("model.safetensors", bytes, cut);
        assert_int_equal(open_it(&c, &err), E_PARSE);
    }
    write_bytes("model.safetensors", bytes, n);
    assert_ok(open_it(&c, &err), &err);
    checkpoint_close(c);
}

static void refuses_what_is_no_file(void **state) {
    struct checkpoint *c = NULL;
    struct err err = ERR_INIT;
    unlink(in_dir("model.safetensors"));
    assert_err(checkpoint_open(&c, dir, &err), E_NOT_FOUND, "neither model.safetensors nor", &err);
    assert_err(open_it(&c, &err), E_NOT_FOUND, "model.safetensors", &err);
    assert_int_equal(mkdir(in_dir("model.safetensors"), 0700), 0);
    assert_err(checkpoint_open(&c, dir, &err), E_IO, "not a regular file", &err);
    assert_int_equal(rmdir(in_dir("model.safetensors")), 0);
    assert_int_equal(mkfifo(in_dir("model.safetensors"), 0600), 0);
    assert_err(checkpoint_open(&c, dir, &err), E_IO, "not a regular file", &err);
    unlink(in_dir("model.safetensors"));
}

/* ---------------------------------------------------------------- what a header may cost */

/* Fill `size` bytes of header from repetitions of fmt with a running number in it. */
static char *repeat(const char *open, const char *fmt, const char *close, size_t size, long max) {
    char *text = mem_alloc(size + 200);
    size_t n = (size_t)sprintf(text, "%s", open);
    for (long i = 0; n < size - 200 && i < max; i++) {
        if (i > 0) text[n++] = ',';
        n += (size_t)sprintf(text + n, fmt, i);
    }
    strcpy(text + n, close);
    return text;
}

/* Open in a child, so that its peak of memory is its own; KiB. */
static long peak_of_opening(int *verdict) {
    int answer[2];
    assert_int_equal(pipe(answer), 0);
    pid_t child = fork();
    if (child == 0) {
        struct checkpoint *c = NULL;
        int r = verdict ? open_it(&c, NULL) : 0;
        assert_int_equal(write(answer[1], &r, sizeof r), sizeof r);
        _exit(0);
    }
    int r = 0, status;
    struct rusage usage;
    assert_int_equal(read(answer[0], &r, sizeof r), sizeof r);
    assert_int_equal(wait4(child, &status, 0, &usage), child);
    if (verdict) *verdict = r;
    close(answer[0]);
    close(answer[1]);
    return usage.ru_maxrss;
}

static void hostile_headers_cost_little_memory(void **state) {
    enum { ALL = (16 << 20) - 300 };
    static const struct {
        const char *open, *fmt, *close;
        long max;
    } headers[] = {
        {"{", "\"t%ld\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}", "}", 65537},  /* one too many */
        {"{", "\"t%0240ld\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}", "}", 1 << 30}, /* long names */
        {"{\"w\":{\"dtype\":\"U8\",\"shape\":[", "[]", "],\"data_offsets\":[0,0]}}", 1 << 30},
        {"{\"w\":{", "\"%ld\":0", "}}", 1 << 30},
        {"{\"__metadata__\":{", "\"%ld\":\"\"", "}}", 1 << 30}, /* allowed */
        {"{", "\"%ld\":{}", "}", 1 << 30},
        {"{\"", "%ld", "\":{}}", 1 << 30},
    };
    for (size_t i = 0; i < sizeof headers / sizeof *headers; i++) {
        char *text = repeat(headers[i].open, headers[i].fmt, headers[i].close, ALL, headers[i].max);
        write_model("model.safetensors", text, 0);
        free(text);
        long before = peak_of_opening(NULL);
        int verdict = 0;
        long kib = peak_of_opening(&verdict) - before;
        assert_int_equal(verdict, i == 1 || i == 4 ? 0 : E_PARSE);
        if (MEASURES_MEMORY && kib > 64 << 10) fail_msg("header %zu costs %ld KiB", i, kib);
    }
    char *text = repeat("{", "\"t%ld\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}", "}",
                        32 << 20, 1 << 30);
    refused(text, 0, "at most 16777216 are allowed");
    free(text);
}

/* ---------------------------------------------------------------- shards */

static void write_index(const char *text) {
    unlink(in_dir("model.safetensors"));
    write_bytes("model.safetensors.index.json", text, strlen(text));
}

static void index_refused(const char *text, int code, const char *part) {
    struct checkpoint *c = NULL;
    struct err err = ERR_INIT;
    write_index(text);
    assert_err(checkpoint_open(&c, dir, &err), code, part, &err);
    assert_null(c);
}

static void reads_shards(void **state) {
    struct checkpoint *c;
    struct err err = ERR_INIT;
    write_model("a.safetensors", "{" T("x", "U8", "[1]", 0, 1) "," T("y", "U8", "[2]", 1, 3) "}", 3);
    write_model("b.safetensors", "{" T("z", "U8", "[1]", 0, 1) "}", 1);
    write_index("{\"metadata\":{\"total_size\":4},\"weight_map\":"
                "{\"x\":\"a.safetensors\",\"z\":\"b.safetensors\",\"y\":\"a.safetensors\"}}");
    assert_ok(checkpoint_open(&c, dir, &err), &err);
    assert_int_equal(checkpoint_n_tensors(c), 3);
    assert_int_equal(checkpoint_find(c, "y")->bytes, 2);
    assert_int_not_equal(checkpoint_find(c, "y")->file, checkpoint_find(c, "z")->file);
    checkpoint_close(c);
}

static void refuses_an_index_that_lies(void **state) {
    write_model("a.safetensors", "{" T("x", "U8", "[1]", 0, 1) "}", 1);
    write_model("b.safetensors", "{" T("z", "U8", "[1]", 0, 1) "}", 1);
    write_model("c.safetensors", "{" T("x", "U8", "[1]", 0, 1) "}", 1);
    write_model("d.safetensors", "{" T("d", "U8", "[2]", 0, 1) "}", 1);
    const char *const names[] = {"../a.safetensors", "/etc/passwd", "s/a.safetensors", "..", ".", "", ".hidden"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char text[200];
        snprintf(text, sizeof text, "{\"weight_map\":{\"x\":\"%s\"}}", names[i]);
        index_refused(text, E_PARSE, "the shard of x is not the name of a file in the folder");
    }
    index_refused("{\"weight_map\":{\"x\":\"gone.safetensors\"}}", E_NOT_FOUND, "gone.safetensors: cannot open");
    index_refused("{\"weight_map\":{\"x\":\"a.safetensors\",\"z\":\"a.safetensors\"}}", E_PARSE,
                  "tensor z is not in a.safetensors");
    index_refused("{\"weight_map\":{\"x\":\"a.safetensors\",\"z\":\"b.safetensors\",\"v\":\"b.safetensors\"}}", E_PARSE,
                  "tensor v is not in b.safetensors");
    index_refused("{\"weight_map\":{\"z\":\"a.safetensors\",\"x\":\"b.safetensors\"}}", E_PARSE, "is not in");
    index_refused("{\"weight_map\":{\"x\":\"a.safetensors\",\"y\":\"c.safetensors\"}}", E_PARSE, "tensor x is in ");
    index_refused("{\"weight_map\":{\"d\":\"d.safetensors\"}}", E_PARSE, "d.safetensors: tensor d");
    index_refused("{\"weight_map\":{\"x\":1}}", E_PARSE, "not pairs of strings");
    index_refused("{\"weight_map\":[]}", E_PARSE, "weight_map");
    index_refused("{\"metadata\":{}}", E_PARSE, "no weight_map");
    index_refused("{\"weight_map\":{}", E_PARSE, "model.safetensors.index.json");
    index_refused("", E_PARSE, "not a JSON object");
}

static void reads_a_real_sharded_folder(void **state) {
    if (!test_data()) skip();
    char path[600];
    struct checkpoint *c;
    struct err err = ERR_INIT;
    snprintf(path, sizeof path, "%s/models/stories260K-f16-sharded", test_data());
    assert_ok(checkpoint_open(&c, path, &err), &err);
    assert_non_null(checkpoint_find(c, "model.norm.weight"));
    assert_int_equal(checkpoint_find(c, "model.embed_tokens.weight")->shape[0], 512);
    checkpoint_close(c);
}

/* ---------------------------------------------------------------- the format's own verdict */

static void verdicts_agree_with_the_formats_own_library(void **state) {
    FILE *f = fopen("tests/data/safetensors/verdicts.jsonl", "r");
    assert_non_null(f);
    char *line = NULL;
    size_t cap = 0;
    int n = 0;
    for (; getline(&line, &cap, f) > 0; n++) {
        json_t *root = json_loads(line, 0, NULL);
        const char *header = json_string_value(json_object_get(root, "header"));
        bool ok = json_is_true(json_object_get(root, "ok"));
        struct checkpoint *c = NULL;
        struct err err = ERR_INIT;
        write_model("model.safetensors", header, (size_t)json_integer_value(json_object_get(root, "n_data")));
        if ((open_it(&c, &err) == 0) != ok) fail_msg("line %d: %s: %s", n + 1, header, ok ? err.text : "was taken");
        checkpoint_close(c);
        json_decref(root);
    }
    assert_int_equal(n, 400);
    free(line);
    fclose(f);
}

/* ---------------------------------------------------------------- mutations */

static uint64_t random_state;
static uint32_t random_below(uint32_t n) { /* splitmix64 */
    uint64_t z = random_state += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return (uint32_t)((z ^ z >> 31) >> 32) % n;
}

/* Put text in the place of `gone` bytes at `at`. */
static void splice(char *bytes, size_t *n, size_t at, size_t gone, const char *text, size_t n_text) {
    memmove(bytes + at + n_text, bytes + at + gone, *n - at - gone);
    memcpy(bytes + at, text, n_text);
    *n += n_text - gone;
}

static void mutate(char *bytes, size_t *n) {
    static const char *const pieces[] = {"0", "1", "-1", "9223372036854775807", "18446744073709551615", "4294967296",
                                         "{", "}", "[", "]", ",", "\"", "\\", "null", "1e9", "\"F64\"", "\"BF16\"",
                                         "\"b\"", "\"dtype\"", "\x80", ""};
    size_t header = 8 + strlen(good), at = 8 + random_below((uint32_t)header - 8);
    if (at >= *n) at = *n - 1;
    size_t gone = random_below(6) < *n - at ? random_below(6) : 0;
    if (gone > *n - at) gone = *n - at;
    const char *piece = pieces[random_below(sizeof pieces / sizeof *pieces)];
    switch (random_below(6)) {
    case 0: bytes[random_below((uint32_t)*n)] ^= (char)(1 << random_below(8)); break;
    case 1: bytes[at] = (char)random_below(256); break;
    case 2: splice(bytes, n, at, gone, piece, strlen(piece)); break;
    case 3: bytes[random_below(2)] += (char)(random_below(9) - 4); break; /* the length */
    case 4: *n = random_below((uint32_t)*n) + 1; break;
    case 5: { /* a stretch of the file once more */
        char copy[64];
        size_t m = random_below(sizeof copy);
        if (m > *n - at) m = *n - at;
        memcpy(copy, bytes + at, m);
        splice(bytes, n, at, 0, copy, m);
    }
    }
}

/* Whatever opens is consistent: every byte belongs to one tensor, and can be read. */
static void check_invariants(const struct checkpoint *c, size_t file_bytes) {
    size_t total = 0, sum = 0;
    for (size_t i = 0; i < checkpoint_n_tensors(c); i++) {
        const struct checkpoint_tensor *t = checkpoint_at(c, i);
        for (size_t b = 0; b < t->bytes; b++) sum += ((const unsigned char *)t->data)[b];
        total += t->bytes;
        assert_ptr_equal(checkpoint_find(c, t->name), t);
        if (t->is_float) {
            size_t numbers = 1;
            for (int32_t d = 0; d < t->n_dims; d++) numbers *= (size_t)t->shape[d];
            assert_int_equal(numbers * dtype_bytes(t->dtype), t->bytes);
        }
    }
    assert_true(total + 8 <= file_bytes);
    assert_true(total == 0 || sum > 0 || total < 2);
}

static void mutations_are_refused_or_consistent(void **state) {
    int n_files = test_is_quick() ? 2000 : 20000, n_good = 0;
    for (int i = 0; i < n_files; i++) {
        char bytes[4096];
        size_t n = build(bytes, good, strlen(good), GOOD_DATA);
        random_state = (uint64_t)i;
        for (uint32_t m = random_below(4) + 1; m > 0; m--) mutate(bytes, &n);
        write_bytes("model.safetensors", bytes, n);
        struct checkpoint *c = NULL;
        struct err err = ERR_INIT;
        int r = open_it(&c, &err);
        if (r == 0) {
            check_invariants(c, n);
            n_good++;
        } else {
            assert_int_equal(r, E_PARSE);
            assert_non_null(strstr(err.text, "model.safetensors"));
        }
        checkpoint_close(c);
    }
    assert_in_range(n_good, n_files / 100, n_files / 2); /* some mutations do no harm, most do */
}

static int make_dir(void **state) {
    return mkdtemp(dir) ? 0 : -1;
}

static int drop_dir(void **state) {
    char command[100];
    snprintf(command, sizeof command, "rm -rf %s", dir);
    return system(command);
}

/* In a process of its own: what the program says when a file shrinks under it. */
static void a_file_that_is_cut_short_ends_the_program_with_its_name(void **state) {
    static const char header[] = "{\"a\":{\"dtype\":\"U8\",\"shape\":[65536],\"data_offsets\":[0,65536]}}";
    int out[2], status;
    char said[400] = "";
    write_model("model.safetensors", header, 65536);
    assert_int_equal(pipe(out), 0);
    pid_t child = fork();
    if (child == 0) {
        struct checkpoint *c;
        dup2(out[1], STDERR_FILENO);
        signals_guard_files();
        if (open_it(&c, NULL) < 0 || truncate(in_dir("model.safetensors"), 4096) < 0) _exit(1);
        const volatile char *data = checkpoint_at(c, 0)->data;
        _exit(data[40000] == 0 ? 2 : 3);
    }
    close(out[1]);
    for (ssize_t n = 0, got; (got = read(out[0], said + n, sizeof said - 1 - (size_t)n)) > 0;) n += got;
    close(out[0]);
    waitpid(child, &status, 0);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 74);
    if (!strstr(said, in_dir("model.safetensors")) || !strstr(said, "was cut short")) fail_msg("%s", said);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(a_file_that_is_cut_short_ends_the_program_with_its_name),
    cmocka_unit_test(reads_a_file),
    cmocka_unit_test(reads_an_empty_checkpoint),
    cmocka_unit_test(reads_names_with_escapes),
    cmocka_unit_test(refuses_what_is_no_header),
    cmocka_unit_test(refuses_tensors_that_lie),
    cmocka_unit_test(refuses_overlaps_holes_and_duplicates),
    cmocka_unit_test(refuses_a_header_longer_than_the_file),
    cmocka_unit_test(refuses_every_truncation),
    cmocka_unit_test(refuses_what_is_no_file),
    cmocka_unit_test(hostile_headers_cost_little_memory),
    cmocka_unit_test(reads_shards),
    cmocka_unit_test(refuses_an_index_that_lies),
    cmocka_unit_test(reads_a_real_sharded_folder),
    cmocka_unit_test(verdicts_agree_with_the_formats_own_library),
    cmocka_unit_test(mutations_are_refused_or_consistent),
};

int main(int argc, char **argv) {
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, make_dir, drop_dir);
}
