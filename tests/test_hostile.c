/* test_hostile.c - model files that were tampered with: tokenizer.json, config.json,
 * generation_config.json, safetensors. 10,000 mutations of good files each, always the
 * same ones; BATCHD_FUZZ_RUNS says how many instead, BATCHD_FUZZ_SEED which.
 *
 * A file must be refused with words or give something that works; and reading it must
 * not allocate more than 64 MiB, which is measured where no sanitizer is in the way. */
#include "tests/unit.h"

#include "base/file.h"
#include "base/hash.h"
#include "base/mem.h"
#include "engine/engine.h"
#include "engine/model/config.h"
#include "engine/model/model.h"
#include "engine/model/safetensors.h"

#include <dirent.h>
#include <glob.h>
#include <malloc.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---------------------------------------------------------------- what is allocated */

enum { MOST_MEMORY = 64 << 20 };

static size_t live_bytes, peak_bytes;

#if defined __SANITIZE_ADDRESS__ || defined __SANITIZE_THREAD__ || !defined __GLIBC__
enum { MEASURES_MEMORY = 0 };
#else
enum { MEASURES_MEMORY = 1 };
void *__libc_malloc(size_t n);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *p, size_t n);
void __libc_free(void *p);

static void *count(void *p) {
    if (p) live_bytes += malloc_usable_size(p);
    if (live_bytes > peak_bytes) peak_bytes = live_bytes;
    return p;
}

static void discount(void *p) {
    if (p) live_bytes -= malloc_usable_size(p);
}

void *malloc(size_t n) {
    return count(__libc_malloc(n));
}

void *calloc(size_t n, size_t size) {
    return count(__libc_calloc(n, size));
}

void *realloc(void *p, size_t n) {
    discount(p);
    void *moved = __libc_realloc(p, n);
    if (!moved && n > 0) count(p); /* where it was */
    return count(moved);
}

void free(void *p) {
    discount(p);
    __libc_free(p);
}
#endif

/* ---------------------------------------------------------------- mutation */

static uint64_t random_state;

static size_t random_below(size_t n) {
    random_state++;
    return n ? (size_t)(hash64_mix(random_state, 77) % n) : 0;
}

enum { MAX_SEEDS = 32, MAX_BYTES = 1 << 17 };

struct corpus {
    char *seeds[MAX_SEEDS];
    size_t n_bytes[MAX_SEEDS];
    size_t n;
};

static void read_corpus(struct corpus *c, const char *pattern) {
    glob_t found;
    struct err err = ERR_INIT;
    assert_int_equal(glob(pattern, 0, NULL, &found), 0);
    c->n = 0;
    for (size_t i = 0; i < found.gl_pathc && c->n < MAX_SEEDS; i++, c->n++)
        assert_ok(file_read(found.gl_pathv[i], MAX_BYTES / 2, &c->seeds[c->n], &c->n_bytes[c->n], &err), &err);
    globfree(&found);
}

static void free_corpus(struct corpus *c) {
    for (size_t i = 0; i < c->n; i++) free(c->seeds[i]);
}

struct bytes {
    char data[MAX_BYTES];
    size_t n;
};

/* `gone` bytes at `at` make way for others; not when there is no room. */
static void splice(struct bytes *b, size_t at, size_t gone, const char *text, size_t n) {
    if (b->n - gone + n > MAX_BYTES) return;
    memmove(b->data + at + n, b->data + at + gone, b->n - at - gone);
    memcpy(b->data + at, text, n);
    b->n += n - gone;
}

/* Something that ends where JSON's values and keys do, or any few bytes. */
static size_t some_length(const struct bytes *b, size_t at) {
    size_t left = b->n - at, i = 0;
    if (random_below(2)) return random_below(left < 9 ? left + 1 : 9);
    while (i < left && !strchr(",:]}", b->data[at + i])) i++;
    return i;
}

static size_t some_place(const struct bytes *b) {
    size_t at = random_below(b->n);
    if (random_below(3) == 0) return at;
    while (at > 0 && !strchr(",:[{", b->data[at - 1])) at--; /* the beginning of a value or a key */
    return at;
}

static void put_piece(struct bytes *b) {
    static const char *const pieces[] = {
        "0", "1", "-1", "2", "65535", "1048575", "4294967296", "9223372036854775807", "18446744073709551616", "1e308", "-0.5",
        "null", "true", "false", "\"\"", "\"a\"", "\"\\u0000\"", "\"\\ud83d\\ude00\"", "{}", "[]", "[[]]", "{", "}", "[", "]", ",", ":",
        "\"<0x-1>\"", "\"<0x41>\"", "\"\xe2\x96\x81\"", "\"\xc4\xa0\"", "\"(\"", "\"(a*)*b\"", "\"\\\\s+|\\\\S\"", "\"[^a-z]?\"",
        "{\"type\":\"NFKD\"}", "{\"type\":\"ByteLevel\"}", "{\"type\":\"Sequence\",\"normalizers\":[]}", "{\"String\":\"a\"}",
        "{\"Regex\":\"(?=a)\"}", "\"Unigram\"", "\"BPE\"", "\"Removed\"", "\"first\"", "\"F64\"", "\"BF16\"", "\"b\"", "\xff", "\\"};
    const char *piece = pieces[random_below(sizeof pieces / sizeof *pieces)];
    size_t at = some_place(b);
    splice(b, at, some_length(b, at), piece, strlen(piece));
}

static void repeat_stretch(struct bytes *b, const struct bytes *from) {
    char copy[512];
    size_t begin = some_place(from), n = 1 + random_below(sizeof copy);
    if (n > from->n - begin) n = from->n - begin;
    memcpy(copy, from->data + begin, n);
    splice(b, some_place(b), 0, copy, n);
}

static void mutate(struct bytes *b, const struct corpus *c) {
    if (b->n == 0) return;
    switch (random_below(8)) {
    case 0: b->data[random_below(b->n)] ^= (char)(1 << random_below(8)); break;
    case 1: b->data[random_below(b->n)] = (char)random_below(256); break;
    case 2: b->data[random_below(b->n < 8 ? b->n : 8)] += (char)(random_below(9) - 4); break; /* a length */
    case 3: b->n = random_below(8) ? b->n : random_below(b->n); break;
    case 4: repeat_stretch(b, b); break;
    case 5: {
        static struct bytes other;
        size_t k = random_below(c->n);
        other.n = c->n_bytes[k];
        memcpy(other.data, c->seeds[k], other.n);
        if (other.n) repeat_stretch(b, &other);
        break;
    }
    default: put_piece(b);
    }
}

/* ---------------------------------------------------------------- the cases */

static char dir[] = "/tmp/batchd-hostile-XXXXXX";

static const char *in_dir(const char *name) {
    static char path[200];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    return path;
}

static void write_bytes(const char *name, const struct bytes *b) {
    unlink(in_dir(name)); /* some file systems flush one that is cut and written anew */
    FILE *f = fopen(in_dir(name), "w");
    assert_non_null(f);
    assert_int_equal(fwrite(b->data, 1, b->n, f), b->n);
    assert_int_equal(fclose(f), 0);
}

static long setting(const char *name, long otherwise) {
    const char *value = getenv(name);
    return value ? atol(value) : otherwise;
}

/* Reads the file in `dir`; 0, or a negative code with words in err. */
typedef int read_one(struct err *err);

/* The share of mutations that do no harm is bounded from both sides: a mutator that
 * changes nothing, or leaves nothing whole, tests nothing. part: one run in so many. */
static void run_mutations(const char *seeds, const char *name, read_one *fn, long part) {
    static struct bytes b;
    struct corpus c;
    long runs = setting("BATCHD_FUZZ_RUNS", test_is_quick() ? 1000 : 10000) / part, n_good = 0;
    read_corpus(&c, seeds);
    for (long i = 0; i < runs; i++) {
        struct err err = ERR_INIT;
        random_state = (uint64_t)(setting("BATCHD_FUZZ_SEED", 1) * 1000000007 + i * 1000);
        size_t k = (size_t)i % c.n;
        b.n = c.n_bytes[k];
        memcpy(b.data, c.seeds[k], b.n);
        for (size_t m = 1 + random_below(3); m > 0; m--) mutate(&b, &c);
        write_bytes(name, &b);
        peak_bytes = live_bytes;
        size_t before = live_bytes;
        int r = fn(&err);
        if (peak_bytes - before > MOST_MEMORY) fail_msg("run %ld: %zu bytes of memory", i, peak_bytes - before);
        if (r < 0 && (err.code >= 0 || strlen(err.text) < 8)) fail_msg("run %ld: %d, \"%s\"", i, r, err.text);
        n_good += r == 0;
    }
    free_corpus(&c);
    unlink(in_dir(name));
    if (runs >= 1000) assert_in_range(n_good, runs / 50, runs * 9 / 10);
}

static void check_text(const struct tokenizer *tok, const char *text) {
    struct token_list ids = {0};
    struct buf whole = BUF_INIT(0);
    struct detokenizer d;
    struct err err = ERR_INIT;
    struct encode_options o = {.add_special = true, .parse_special = true};
    if (tokenizer_encode(tok, &ids, text, strlen(text), &o, &err) < 0) assert_true(ids.n == 0 && err.text[0]);
    detokenizer_init(&d, tok, false);
    for (size_t i = 0; i < ids.n; i++) {
        assert_in_range(ids.ids[i], 0, tokenizer_n_ids(tok) - 1);
        detokenizer_push(&d, ids.ids[i]);
    }
    detokenizer_finish(&d);
    tokenizer_decode(tok, &whole, ids.ids, ids.n, false);
    assert_int_equal(d.text.n, whole.n);
    if (whole.n) assert_memory_equal(d.text.data, whole.data, whole.n);
    detokenizer_clear(&d);
    buf_clear(&whole);
    token_list_clear(&ids);
}

static int read_tokenizer(struct err *err) {
    struct tokenizer *tok = NULL;
    int r = tokenizer_open(&tok, dir, err);
    if (r < 0) {
        assert_non_null(strstr(err->text, dir));
        return r;
    }
    check_text(tok, "");
    check_text(tok, "The  <|end|> in 1234, it's \xc3\xa9t\xc3\xa9\n\t\xf0\x9f\x98\x80</s>the");
    check_text(tok, "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa                                    !");
    tokenizer_close(tok);
    return 0;
}

static int read_config(struct err *err) {
    struct model_config c;
    int r = config_read(&c, dir, err);
    if (r < 0) return r;
    assert_true(c.info.n_layers > 0 && c.info.n_layers <= MAX_LAYERS);
    assert_true(c.info.vocab > 0 && c.info.context > 0 && c.info.head_dim > 0);
    assert_true(c.info.n_kv_heads > 0 && c.info.n_heads % c.info.n_kv_heads == 0);
    return 0;
}

static int read_safetensors(struct err *err) {
    struct checkpoint *c = NULL;
    size_t sum = 0;
    int r = checkpoint_open_file(&c, in_dir("model.safetensors"), err);
    for (size_t i = 0; r == 0 && i < checkpoint_n_tensors(c); i++) { /* every byte can be read */
        const struct checkpoint_tensor *t = checkpoint_at(c, i);
        for (size_t b = 0; b < t->bytes; b++) sum += ((const unsigned char *)t->data)[b];
        assert_ptr_equal(checkpoint_find(c, t->name), t);
    }
    assert_true(sum < SIZE_MAX);
    checkpoint_close(c);
    return r;
}

static void tokenizers(void **state) {
    run_mutations("tests/data/fuzz/tokenizer/*.json", "tokenizer.json", read_tokenizer, 1);
}

static void configs(void **state) {
    run_mutations("tests/models/*/config.json", "config.json", read_config, 1);
}

static void checkpoints(void **state) {
    run_mutations("tests/data/fuzz/safetensors/*.safetensors", "model.safetensors", read_safetensors, 1);
}

static struct dev *cpu;

static int load_model(struct err *err) {
    struct model *m = NULL;
    int r = model_open(&m, cpu, &(struct model_options){.dir = dir, .dtype = DTYPE_F32}, err);
    model_close(m);
    return r;
}

/* Weights that were quantized by others, loaded to the end. */
static void quantized_checkpoints(void **state) {
    static const char *const kinds[] = {"nf4", "nf4-dq", "int8", "fp8", "fp8-block", "fp8-block-ct"};
    struct err err = ERR_INIT;
    assert_ok(dev_open(&cpu, &(struct dev_options){.kind = "cpu", .threads = 1}, &err), &err);
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        char config[100], weights[100];
        static struct bytes b;
        char *text;
        snprintf(config, sizeof config, "tests/models/tiny-%s/config.json", kinds[i]);
        snprintf(weights, sizeof weights, "tests/models/tiny-%s/model.safetensors", kinds[i]);
        assert_ok(file_read(config, MAX_BYTES, &text, &b.n, &err), &err);
        memcpy(b.data, text, b.n);
        write_bytes("config.json", &b);
        free(text);
        run_mutations(weights, "model.safetensors", load_model, 5);
        unlink(in_dir("config.json"));
    }
    dev_close(cpu);
}

/* ---------------------------------------------------------------- bombs */

/* `open`, `item` n times with commas between, `close`. */
static void check_bomb(const char *open, const char *item, size_t n, const char *close, const char *reason) {
    struct err err = ERR_INIT;
    struct tokenizer *tok = NULL;
    FILE *f = fopen(in_dir("tokenizer.json"), "w");
    assert_non_null(f);
    fputs(open, f);
    for (size_t i = 0; i < n; i++) {
        if (i) fputc(',', f);
        fprintf(f, item, i, i);
    }
    fputs(close, f);
    assert_int_equal(fclose(f), 0);
    peak_bytes = live_bytes;
    size_t before = live_bytes;
    int r = tokenizer_open(&tok, dir, &err);
    if (MEASURES_MEMORY) assert_true(peak_bytes > before);
    if (r >= 0 || !strstr(err.text, reason)) fail_msg("%s %s: %d %s", open, item, r, err.text);
    if (peak_bytes - before > MOST_MEMORY) fail_msg("%s %s: %zu bytes of memory", open, item, peak_bytes - before);
    unlink(in_dir("tokenizer.json"));
}

static void small_files_that_would_be_large(void **state) {
    check_bomb("{\"model\":{\"type\":\"BPE\",\"vocab\":{", "\"%zu\":3%05zu", 1000, "},\"merges\":[]}}", "for 1000 tokens");
    check_bomb("{\"model\":{\"vocab\":{\"a\":0},\"merges\":[]},\"added_tokens\":[", "{\"content\":\"x%zu\",\"id\":3%05zu}", 100, "]}", "has id 300000");
    check_bomb("{\"model\":", "[", 1, "", "tokenizer.json");
    check_bomb("{\"pre_tokenizer\":{\"type\":\"Split\",\"behavior\":\"Isolated\",\"pattern\":{\"Regex\":\"", "(a{0,9999}){0,9999}", 1, "\"}}}", "pattern");
    check_bomb("{\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[", "{\"type\":\"NFC\"}", 40, "]}}", "more than 32");
    check_bomb("{\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[",
               "{\"type\":\"Replace\",\"pattern\":{\"String\":\"a\"},\"content\":\"aaaaaaaaaaaaaaaa\"}", 10,
               "]},\"model\":{\"vocab\":{\"a\":0},\"merges\":[]},\"added_tokens\":[{\"content\":\"a\",\"id\":0,\"normalized\":true}]}", "too long");
}

static void a_large_array_of_nothing(void **state) {
    if (test_is_quick()) skip();
    FILE *f = fopen(in_dir("tokenizer.json"), "w");
    struct err err = ERR_INIT;
    struct tokenizer *tok = NULL;
    assert_non_null(f);
    fputs("{\"model\":[0", f);
    for (int i = 0; i < 9 << 20; i++) fputs(",0", f);
    fputs("]}", f);
    assert_int_equal(fclose(f), 0);
    peak_bytes = live_bytes;
    size_t before = live_bytes;
    assert_err(tokenizer_open(&tok, dir, &err), E_RANGE, "more than 8388608 values", &err);
    assert_true(peak_bytes - before <= MOST_MEMORY);
    unlink(in_dir("tokenizer.json"));
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(tokenizers),
    cmocka_unit_test(configs),
    cmocka_unit_test(checkpoints),
    cmocka_unit_test(quantized_checkpoints),
    cmocka_unit_test(small_files_that_would_be_large),
    cmocka_unit_test(a_large_array_of_nothing),
};

static int make_dir(void **state) {
    return mkdtemp(dir) ? 0 : -1;
}

static int drop_dir(void **state) {
    return rmdir(dir);
}

int main(int argc, char **argv) {
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, make_dir, drop_dir);
}
