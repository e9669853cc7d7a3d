/* test_tokenizer_golden.c - 5,000 texts that are hard to tokenize, by the tokenizers of
 * the test data, and 240 of them by small tokenizers with every part that
 * tokenizer.json may have: the ids and the decoded text must be those of the Hugging
 * Face library. tests/data/tokenizer/golden.py made the files and says what is in them. */
#include "tests/unit.h"

#include "base/file.h"
#include "base/mem.h"
#include "engine/engine.h"

#include <jansson.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zstd.h>

#define GOLDEN "tests/data/tokenizer/"

enum { DIGEST = 6, MAX_TEXTS = 5000, MAX_BYTES = 8 << 20 };

struct texts {
    char *all;
    const char *at[MAX_TEXTS];
    size_t n_bytes[MAX_TEXTS];
    size_t n;
};

static void read_texts(struct texts *t) {
    struct err err = ERR_INIT;
    char *packed;
    size_t n;
    assert_ok(file_read(GOLDEN "texts.zst", 1 << 20, &packed, &n, &err), &err);
    t->all = mem_alloc(MAX_BYTES);
    size_t size = ZSTD_decompress(t->all, MAX_BYTES, packed, n);
    assert_false(ZSTD_isError(size));
    free(packed);
    t->n = 0;
    for (size_t at = 0; at < size; t->n++) {
        assert_true(t->n < MAX_TEXTS);
        t->n_bytes[t->n] = (unsigned char)t->all[at] | (size_t)(unsigned char)t->all[at + 1] << 8;
        t->at[t->n] = t->all + at + 2;
        at += 2 + t->n_bytes[t->n];
    }
}

static uint64_t fnv(uint64_t h, const void *data, size_t n) {
    for (size_t i = 0; i < n; i++) h = (h ^ ((const unsigned char *)data)[i]) * 0x100000001b3;
    return h;
}

static uint64_t hash_ids(const struct token_list *ids) {
    uint64_t h = 0xcbf29ce484222325;
    for (size_t i = 0; i < ids->n; i++) {
        uint32_t id = (uint32_t)ids->ids[i];
        unsigned char bytes[4] = {id & 255, id >> 8 & 255, id >> 16 & 255, id >> 24};
        h = fnv(h, bytes, 4);
    }
    return h;
}

static bool is_known(const unsigned char *digest) { /* the library itself panicked */
    return memcmp(digest, "\xff\xff\xff\xff\xff\xff", DIGEST) != 0;
}

/* "ids" or "decoded text", what is not as it should be; NULL = all is. */
static const char *difference(const struct tokenizer *tok, const char *text, size_t n, bool add_special,
                              const unsigned char *want) {
    struct token_list ids = {0};
    struct buf back = BUF_INIT(0);
    struct err err = ERR_INIT;
    struct encode_options o = {.add_special = add_special, .parse_special = true};
    assert_ok(tokenizer_encode(tok, &ids, text, n, &o, &err), &err);
    tokenizer_decode(tok, &back, ids.ids, ids.n, false);
    uint64_t h = hash_ids(&ids), d = fnv(0xcbf29ce484222325, back.data, back.n);
    unsigned char got[DIGEST] = {h & 255, h >> 8 & 255, h >> 16 & 255, h >> 24 & 255, d & 255, d >> 8 & 255};
    bool ids_differ = memcmp(got, want, 4) != 0, text_differs = memcmp(got + 4, want + 4, 2) != 0;
    token_list_clear(&ids);
    buf_clear(&back);
    return ids_differ ? "ids" : text_differs ? "decoded text" : NULL;
}

static size_t count_differences(const char *name, const struct tokenizer *tok, const struct texts *t, size_t n,
                                const unsigned char *digests) {
    size_t bad = 0;
    for (size_t i = 0; i < n; i++) {
        const unsigned char *want = digests + i * DIGEST;
        const char *what = is_known(want) ? difference(tok, t->at[i], t->n_bytes[i], i % 2 == 1, want) : NULL;
        if (what && bad++ < 3)
            fprintf(stderr, "%s: %s of text %zu \"%.*s\"\n", name, what, i, (int)t->n_bytes[i], t->at[i]);
    }
    return bad;
}

/* ---------------------------------------------------------------- families */

static void check_family(const char *family) {
    struct texts texts;
    struct err err = ERR_INIT;
    struct tokenizer *tok = NULL;
    char path[600], *digests;
    size_t n;
    if (!test_data()) skip();
    snprintf(path, sizeof path, "%s/tokenizers/%s", test_data(), family);
    if (access(path, F_OK) != 0) skip();
    assert_ok(tokenizer_open(&tok, path, &err), &err);
    snprintf(path, sizeof path, GOLDEN "%s.bin", family);
    assert_ok(file_read(path, 1 << 20, &digests, &n, &err), &err);
    read_texts(&texts);
    assert_int_equal(texts.n, MAX_TEXTS);
    assert_int_equal(n, texts.n * DIGEST);
    size_t bad = count_differences(family, tok, &texts, texts.n, (const unsigned char *)digests);
    if (bad) fail_msg("%s: %zu of %zu texts differ", family, bad, texts.n);
    tokenizer_close(tok);
    free(digests);
    free(texts.all);
}

#define FAMILY(name, folder)            \
    static void name(void **state) {    \
        check_family(folder);           \
    }
FAMILY(falcon, "falcon")
FAMILY(gpt_2, "gpt-2")
FAMILY(gpt_neox, "gpt-neox-20b")
FAMILY(llama_2, "llama-2")
FAMILY(llama_3, "llama-3")
FAMILY(mistral_v1, "mistral-v1")
FAMILY(phi_2, "phi-2")
FAMILY(phi_3, "phi-3-mini")
FAMILY(qwen2, "qwen2")

/* ---------------------------------------------------------------- every part */

static void open_json(struct tokenizer **tok, const json_t *whole, const char *name) {
    char dir[] = "/tmp/batchd-test-XXXXXX";
    struct err err = ERR_INIT;
    assert_non_null(mkdtemp(dir));
    char *path = path_join(dir, "tokenizer.json");
    assert_int_equal(json_dump_file(whole, path, JSON_COMPACT), 0);
    int r = tokenizer_open(tok, dir, &err);
    unlink(path);
    rmdir(dir);
    free(path);
    if (r < 0) fail_msg("%s: %s", name, err.text);
}

static void every_part_of_the_format(void **state) {
    struct texts texts;
    struct err err = ERR_INIT;
    char *digests;
    size_t n, i, bad = 0;
    json_t *root = json_load_file(GOLDEN "parts.json", 0, NULL), *o;
    assert_non_null(root);
    json_t *list = json_object_get(root, "tokenizers");
    assert_ok(file_read(GOLDEN "parts.bin", 1 << 20, &digests, &n, &err), &err);
    read_texts(&texts);
    assert_true(json_array_size(list) > 100);
    size_t n_texts = n / DIGEST / json_array_size(list);
    assert_int_equal(n_texts * DIGEST * json_array_size(list), n);
    json_array_foreach(list, i, o) {
        struct tokenizer *tok = NULL;
        json_t *parts = json_object_get(o, "parts"), *whole = json_copy(parts);
        json_t *model = json_copy(json_object_get(json_object_get(root, "models"), json_string_value(json_object_get(o, "model"))));
        json_object_update(model, json_object_get(o, "overrides"));
        json_object_set_new(whole, "model", model);
        char *name = json_dumps(o, JSON_COMPACT);
        open_json(&tok, whole, name);
        bad += count_differences(name, tok, &texts, n_texts, (const unsigned char *)digests + i * n_texts * DIGEST);
        tokenizer_close(tok);
        json_decref(whole);
        free(name);
    }
    if (bad) fail_msg("%zu texts differ", bad);
    json_decref(root);
    free(digests);
    free(texts.all);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(every_part_of_the_format),
    cmocka_unit_test(falcon),
    cmocka_unit_test(gpt_2),
    cmocka_unit_test(gpt_neox),
    cmocka_unit_test(llama_2),
    cmocka_unit_test(llama_3),
    cmocka_unit_test(mistral_v1),
    cmocka_unit_test(phi_2),
    cmocka_unit_test(phi_3),
    cmocka_unit_test(qwen2),
};
UNIT_MAIN(tests)
