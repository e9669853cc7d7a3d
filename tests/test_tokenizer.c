/* test_tokenizer.c - published vectors of real tokenizers, ids and decoded text;
 * properties; hostile files. */
#include "tests/unit.h"

#include "base/file.h"
#include "base/hash.h"
#include "base/mem.h"
#include "engine/engine.h"

#include <jansson.h>
#include <pthread.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static struct tokenizer *open_family(const char *family) {
    char dir[500];
    struct err err = ERR_INIT;
    struct tokenizer *tok = NULL;
    snprintf(dir, sizeof dir, "%s/%s", test_data(), family);
    assert_ok(tokenizer_open(&tok, dir, &err), &err);
    return tok;
}

static void check_ids(const struct tokenizer *tok, const char *text, size_t n, const int32_t *want, size_t n_want,
                      bool add_special) {
    struct token_list got = {0};
    struct err err = ERR_INIT;
    struct encode_options o = {.add_special = add_special, .parse_special = true};
    assert_ok(tokenizer_encode(tok, &got, text, n, &o, &err), &err);
    bool same = got.n == n_want && (n_want == 0 || memcmp(got.ids, want, n_want * sizeof *want) == 0);
    for (size_t i = 0; !same && i < got.n; i++)
        fprintf(stderr, "%d%s", got.ids[i], i < n_want && want[i] == got.ids[i] ? " " : "! ");
    if (!same) fail_msg("ids of %zu bytes \"%.60s\" differ: %zu, expected %zu", n, text, got.n, n_want);
    token_list_clear(&got);
}

/* ids of one line of a .out file */
static size_t read_ids(char *line, int32_t *out) {
    size_t n = 0;
    for (char *at = line, *end; *at; at = end) {
        long id = strtol(at, &end, 10);
        if (end == at) break;
        out[n++] = (int32_t)id;
    }
    return n;
}

static int check_llamacpp(const struct tokenizer *tok, const char *family, const char *name) {
    static const char separator[] = "\n__ggml_vocab_test__\n";
    char path[600], *texts, *ids;
    size_t n, m;
    int count = 0;
    struct err err = ERR_INIT;
    snprintf(path, sizeof path, "%s/%s/vectors/%s.inp", test_data(), family, name);
    assert_ok(file_read(path, 1 << 20, &texts, &n, &err), &err);
    snprintf(path, sizeof path, "%s/%s/vectors/%s.out", test_data(), family, name);
    assert_ok(file_read(path, 1 << 20, &ids, &m, &err), &err);
    char *line = ids;
    for (char *text = texts; text; count++) {
        int32_t want[4096];
        char *end = strstr(text, separator), *line_end = strchr(line, '\n');
        if (line_end) *line_end = '\0';
        size_t text_n = end ? (size_t)(end - text) : (size_t)(texts + n - text);
        check_ids(tok, text, text_n, want, read_ids(line, want), false);
        text = end ? end + sizeof separator - 1 : NULL;
        line = line_end ? line_end + 1 : line + strlen(line);
    }
    free(texts);
    free(ids);
    return count;
}

/* transformers' clean_up_tokenization: spaces before some marks and contractions go. */
static char *clean_up(const char *text) {
    static const char *const pairs[][2] = {{" .", "."},     {" ?", "?"},     {" !", "!"},     {" ,", ","},    {" ' ", "'"},
                                           {" n't", "n't"}, {" 'm", "'m"}, {" 's", "'s"}, {" 've", "'ve"}, {" 're", "'re"}};
    char *s = mem_strdup(text);
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
        size_t from = strlen(pairs[i][0]), to = strlen(pairs[i][1]);
        for (char *hit = s; (hit = strstr(hit, pairs[i][0]));) {
            memmove(hit + to, hit + from, strlen(hit + from) + 1);
            memcpy(hit, pairs[i][1], to);
            hit += to;
        }
    }
    return s;
}

static void check_decoded(const struct tokenizer *tok, const int32_t *ids, size_t n, const char *want, bool skip_special,
                          bool cleaned) {
    struct buf text = BUF_INIT(0);
    tokenizer_decode(tok, &text, ids, n, skip_special);
    char *got = cleaned ? clean_up(text.data ? text.data : "") : mem_strdup(text.data ? text.data : "");
    assert_string_equal(got, want);
    free(got);
    buf_clear(&text);
}

/* Token by token, the text only ever grows, and ends as the whole does. */
static void check_incremental(const struct tokenizer *tok, const int32_t *ids, size_t n) {
    struct buf whole = BUF_INIT(0);
    tokenizer_decode(tok, &whole, ids, n, false);
    struct detokenizer d;
    detokenizer_init(&d, tok, false);
    for (size_t i = 0; i < n; i++) {
        detokenizer_push(&d, ids[i]);
        assert_true(d.text.n <= whole.n);
        if (d.text.n) assert_memory_equal(d.text.data, whole.data, d.text.n);
    }
    detokenizer_finish(&d);
    assert_int_equal(d.text.n, whole.n);
    detokenizer_clear(&d);
    buf_clear(&whole);
}

static int check_json(const struct tokenizer *tok, const char *family, const char *name, bool cleaned, bool skips) {
    char path[600];
    if (strncmp(name, "tests/", 6) == 0) snprintf(path, sizeof path, "%s", name);
    else snprintf(path, sizeof path, "%s/%s/vectors/%s.json", test_data(), family, name);
    json_t *list = json_load_file(path, JSON_ALLOW_NUL, NULL);
    assert_non_null(list);
    size_t i;
    json_t *v;
    json_array_foreach(list, i, v) {
        int32_t ids[4096];
        const json_t *want = json_object_get(v, "ids"), *text = json_object_get(v, "text");
        size_t n = json_array_size(want);
        for (size_t k = 0; k < n; k++) ids[k] = (int32_t)json_integer_value(json_array_get(want, k));
        check_ids(tok, json_string_value(text), json_string_length(text), ids, n,
                  json_is_true(json_object_get(v, "add_special")));
        const char *decoded = json_string_value(json_object_get(v, "decoded"));
        const char *skipped = json_string_value(json_object_get(v, "decoded_skip_special"));
        if (decoded) check_decoded(tok, ids, n, decoded, skips, cleaned);
        if (skipped) check_decoded(tok, ids, n, skipped, true, cleaned);
        check_incremental(tok, ids, n);
    }
    int count = (int)json_array_size(list);
    json_decref(list);
    return count;
}

struct family {
    const char *dir, *llamacpp, *json;
    bool cleaned; /* decoded text was made with clean_up_tokenization_spaces */
    int n;        /* vectors there are */
    bool skips;   /* its decoded text is without special tokens */
};

static void check_family(const struct family *f) {
    if (!test_data()) skip();
    struct tokenizer *tok = open_family(f->dir);
    int n = 0;
    if (f->llamacpp) n += check_llamacpp(tok, f->dir, f->llamacpp);
    if (f->json) n += check_json(tok, f->dir, f->json, f->cleaned, f->skips);
    assert_int_equal(n, f->n);
    tokenizer_close(tok);
}

#define FAMILY(name, ...)                                \
    static void name##_vectors(void **state) {           \
        check_family(&(struct family){__VA_ARGS__});     \
    }
FAMILY(llama_2, "tokenizers/llama-2", "llamacpp", "swift-transformers", false, 47 + 18, false)
FAMILY(llama_3, "tokenizers/llama-3", "llamacpp", "swift-transformers", true, 47 + 18, false)
FAMILY(gpt_2, "tokenizers/gpt-2", "llamacpp", "swift-transformers", true, 47 + 18, false)
FAMILY(qwen2, "tokenizers/qwen2", "llamacpp", NULL, false, 47, false)
FAMILY(mistral_v1, "tokenizers/mistral-v1", NULL, "tests/data/tokenizer/mistral-v1.json", false, 65, false)
FAMILY(phi_2, "tokenizers/phi-2", NULL, "tests/data/tokenizer/phi-2.json", false, 65, false)
FAMILY(gpt_neox, "tokenizers/gpt-neox-20b", "llamacpp-mpt", NULL, false, 47, false)
FAMILY(phi_3, "tokenizers/phi-3-mini", "llamacpp", NULL, false, 47, false)
FAMILY(falcon, "tokenizers/falcon", "llamacpp", "swift-transformers", true, 47 + 19, false)
FAMILY(stories, "models/stories260K", NULL, "generated", false, 50, true)

static const char *const families[] = {"tokenizers/llama-2", "tokenizers/llama-3", "tokenizers/gpt-2",
                                       "tokenizers/qwen2",   "tokenizers/mistral-v1", "tokenizers/falcon"};

static double cpu_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* A million of one letter, or of spaces, in less than a second each; ten where a sanitizer
 * is in the way, which is still far from a square. */
static void long_runs_take_no_time(void **state) {
    if (!test_data()) skip();
    size_t n = test_is_quick() ? 1 << 17 : 1 << 20;
    char *text = mem_alloc(n);
    for (size_t f = 0; f < sizeof families / sizeof *families; f++) {
        struct tokenizer *tok = open_family(families[f]);
        for (const char *c = "a 0-"; *c; c++) {
            struct token_list ids = {0};
            struct err err = ERR_INIT;
            memset(text, *c, n);
            double start = cpu_seconds();
            assert_ok(tokenizer_encode(tok, &ids, text, n, &(struct encode_options){.parse_special = true}, &err), &err);
            double s = cpu_seconds() - start;
            if (getenv("BATCHD_TEST_TIMES")) fprintf(stderr, "%s: %.3f s for %zu of '%c'\n", families[f], s, n, *c);
            if (s > (test_is_quick() ? 10.0 : 1.0)) fail_msg("%s: %.1f s for %zu of '%c'", families[f], s, n, *c);
            struct buf back = BUF_INIT(0);
            tokenizer_decode(tok, &back, ids.ids, ids.n, false);
            assert_int_equal(back.n, n);
            buf_clear(&back);
            token_list_clear(&ids);
        }
        tokenizer_close(tok);
    }
    free(text);
}

static double seconds_to_encode(const struct tokenizer *tok, const char *unit, size_t n) {
    struct buf text = BUF_INIT(0);
    struct token_list ids = {0};
    struct err err = ERR_INIT;
    while (text.n < n) buf_puts(&text, unit);
    double start = cpu_seconds();
    assert_ok(tokenizer_encode(tok, &ids, text.data, text.n, &(struct encode_options){.parse_special = true}, &err), &err);
    double s = cpu_seconds() - start;
    token_list_clear(&ids);
    buf_clear(&text);
    return s;
}

/* Texts that would take a square of their length somewhere: marks to be put in order, white
 * space that may end in a newline, the beginnings of tokens. */
static void hostile_texts_take_no_time(void **state) {
    if (!test_data()) skip();
    static const char *const units[] = {"\xcc\x81\xcc\x96", "e\xcc\x96\xcc\x81", "\xe0\xbd\xb3", " \n", "\n ", "'s", "\xcc\x81 ", "<|", "<|im_start",
                                        "a\xcc\x81", "\xe1\x84\x80\xe1\x85\xa1", "1,", "\xe2\x96\x81", "\xf0\x9f\x98\x80", "\r", "      x"};
    size_t n = test_is_quick() ? 1 << 17 : 1 << 20;
    for (size_t f = 0; f < sizeof families / sizeof *families; f++) {
        struct tokenizer *tok = open_family(families[f]);
        for (size_t i = 0; i < sizeof units / sizeof *units; i++) {
            double s = seconds_to_encode(tok, units[i], n);
            if (getenv("BATCHD_TEST_TIMES")) fprintf(stderr, "%s: %.3f s for unit %zu\n", families[f], s, i);
            if (s > (test_is_quick() ? 10.0 : 3.0)) fail_msg("%s: %.1f s for %zu bytes of unit %zu", families[f], s, n, i);
        }
        tokenizer_close(tok);
    }
}

/* A token that is a space and takes all white space behind it matches at every space. */
static void a_token_of_white_space_takes_no_time(void **state) {
    static const char json[] =
        "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[]},\"added_tokens\":[{\"id\":1,\"content\":\" \","
        "\"single_word\":false,\"lstrip\":true,\"rstrip\":true,\"normalized\":false,\"special\":false}]}";
    char dir[] = "/tmp/batchd-space-XXXXXX", path[60];
    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/tokenizer.json", dir);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(json, f);
    fclose(f);
    struct tokenizer *tok;
    struct err err = ERR_INIT;
    assert_ok(tokenizer_open(&tok, dir, &err), &err);
    static const char *const units[] = {" ", " \n", "a  "};
    for (size_t i = 0; i < sizeof units / sizeof *units; i++) {
        double s = seconds_to_encode(tok, units[i], 1 << 20);
        if (s > 3.0) fail_msg("%.1f s for unit %zu", s, i);
    }
    tokenizer_close(tok);
    remove(path);
    rmdir(dir);
}

/* Random text comes back as it was (NFC families: text that is NFC already). */
static void text_round_trips(void **state) {
    if (!test_data()) skip();
    static const char *const parts[] = {"word ", "  ", "\n", "\t", "1234", "é", "東京", "😀", "'s", "<", "|", ">", "\\", "ß", "_"};
    for (size_t f = 0; f < sizeof families / sizeof *families; f++) {
        struct tokenizer *tok = open_family(families[f]);
        for (uint64_t i = 0; i < 300; i++) {
            struct buf text = BUF_INIT(0), back = BUF_INIT(0);
            struct token_list ids = {0};
            struct err err = ERR_INIT;
            for (uint64_t k = 0; k < 1 + i % 40; k++)
                buf_puts(&text, parts[hash64_mix(i, k) % (sizeof parts / sizeof *parts)]);
            assert_ok(tokenizer_encode(tok, &ids, text.data, text.n, &(struct encode_options){0}, &err), &err);
            tokenizer_decode(tok, &back, ids.ids, ids.n, false);
            assert_string_equal(back.data ? back.data : "", text.data);
            check_incremental(tok, ids.ids, ids.n);
            buf_clear(&text);
            buf_clear(&back);
            token_list_clear(&ids);
        }
        tokenizer_close(tok);
    }
}

static void write_folder(char *dir, const char *json) {
    strcpy(dir, "/tmp/batchd-test-XXXXXX");
    assert_non_null(mkdtemp(dir));
    char *path = path_join(dir, "tokenizer.json");
    FILE *f = fopen(path, "w");
    fputs(json, f);
    fclose(f);
    free(path);
}

static void remove_folder(const char *dir) {
    char *path = path_join(dir, "tokenizer.json");
    unlink(path);
    rmdir(dir);
    free(path);
}

/* U+B1B0 and the final consonant U+11A8 are U+B1B1; the vowel U+11A7 just before it joins nothing. */
static void a_vowel_is_no_empty_final_consonant(void **state) {
    static const char json[] = "{\"normalizer\":{\"type\":\"NFC\"},\"model\":{\"type\":\"BPE\",\"merges\":[],\"vocab\":"
                               "{\"\ub1b0\":0,\"\u11a7\":1,\"\ub1b1\":2,\"a\":3}}}";
    static const char text[] = "\ub1b0\u11a7a\ub1b0\u11a8\ub1b0\u11a7";
    static const int32_t want[] = {0, 1, 3, 2, 0, 1};
    char dir[32];
    write_folder(dir, json);
    struct tokenizer *tok;
    struct err err = ERR_INIT;
    assert_ok(tokenizer_open(&tok, dir, &err), &err);
    check_ids(tok, text, sizeof text - 1, want, sizeof want / sizeof *want, false);
    tokenizer_close(tok);
    remove_folder(dir);
}

static void plain_text_never_becomes_a_control_token(void **state) {
    if (!test_data()) skip();
    struct tokenizer *tok = open_family("tokenizers/llama-3");
    struct err err = ERR_INIT;
    static const char text[] = "<|eot_id|>say <|eot_id|>";
    struct text_span plain[] = {{10, sizeof text - 1}};
    struct encode_options cases[] = {{0}, {.parse_special = true}, {.parse_special = true, .plain = plain, .n_plain = 1}};
    size_t want[] = {0, 2, 1};
    for (int c = 0; c < 3; c++) {
        struct token_list ids = {0};
        assert_ok(tokenizer_encode(tok, &ids, text, sizeof text - 1, &cases[c], &err), &err);
        size_t n = 0;
        for (size_t i = 0; i < ids.n; i++) n += ids.ids[i] == 128009;
        assert_int_equal(n, want[c]);
        token_list_clear(&ids);
    }
    tokenizer_close(tok);
}

/* A special token that is looked for in normalized text must be found in raw text where
 * there are plain spans, and nowhere that touches one. */
static void plain_text_never_helps_to_write_a_control_token(void **state) {
    char dir[64], *json;
    size_t n;
    struct err err = ERR_INIT;
    struct tokenizer *tok = NULL;
    static const char text[] = "<|end|>a<|end|><|end|>";
    static const struct {
        struct text_span plain;
        size_t n;
    } cases[] = {{{7, 8}, 3}, {{0, 8}, 2}, {{0, 3}, 2}, {{5, 9}, 1}, {{14, 16}, 1}, {{0, 22}, 0}, {{21, 22}, 2}};
    assert_ok(file_read("tests/data/fuzz/tokenizer/bytes.json", 1 << 16, &json, &n, &err), &err);
    write_folder(dir, json);
    assert_ok(tokenizer_open(&tok, dir, &err), &err);
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        struct token_list ids = {0};
        struct encode_options o = {.parse_special = true, .plain = &cases[c].plain, .n_plain = 1};
        assert_ok(tokenizer_encode(tok, &ids, text, sizeof text - 1, &o, &err), &err);
        size_t n_special = 0;
        for (size_t i = 0; i < ids.n; i++) n_special += ids.ids[i] == 108;
        if (n_special != cases[c].n) fail_msg("case %zu: %zu", c, n_special);
        token_list_clear(&ids);
    }
    tokenizer_close(tok);
    remove_folder(dir);
    free(json);
}

static void bytes_that_are_not_utf8_are_refused(void **state) {
    struct tokenizer *tok = NULL;
    struct err err = ERR_INIT;
    struct token_list ids = {0};
    assert_ok(tokenizer_open(&tok, "tests/models/demo", &err), &err);
    assert_err(tokenizer_encode(tok, &ids, "ab\xff", 3, &(struct encode_options){0}, &err), E_PARSE, "byte 2", &err);
    tokenizer_close(tok);
}

/* ---------------------------------------------------------------- threads */

struct sharer {
    const struct tokenizer *tok;
    const struct buf *texts;
    struct token_list ids;
    pthread_t thread;
};

enum { N_SHARED = 2000, N_SHARERS = 4 };

static void *encode_all(void *arg) {
    struct sharer *s = arg;
    struct err err = ERR_INIT;
    for (int i = 0; i < N_SHARED; i++)
        tokenizer_encode(s->tok, &s->ids, s->texts[i].data, s->texts[i].n, &(struct encode_options){0}, &err);
    return NULL;
}

/* They fill one cache of words; what each gets is what a fresh tokenizer gives. */
static void threads_share_a_tokenizer(void **state) {
    struct tokenizer *tok = NULL, *fresh = NULL;
    struct err err = ERR_INIT;
    struct sharer sharers[N_SHARERS] = {0};
    struct token_list want = {0};
    static struct buf texts[N_SHARED];
    for (uint64_t i = 0; i < N_SHARED; i++) {
        texts[i] = (struct buf)BUF_INIT(0);
        for (uint64_t k = 0; k < 8; k++) buf_printf(&texts[i], "w%x ", (unsigned)(hash64_mix(i, k) % 3000));
    }
    assert_ok(tokenizer_open(&tok, "tests/models/demo", &err), &err);
    for (int i = 0; i < N_SHARERS; i++) {
        sharers[i].tok = tok;
        sharers[i].texts = texts;
        assert_int_equal(pthread_create(&sharers[i].thread, NULL, encode_all, &sharers[i]), 0);
    }
    for (int i = 0; i < N_SHARERS; i++) pthread_join(sharers[i].thread, NULL);
    for (int i = 0; i < N_SHARED; i++) {
        if (i % 100 == 0) {
            tokenizer_close(fresh);
            assert_ok(tokenizer_open(&fresh, "tests/models/demo", &err), &err);
        }
        assert_ok(tokenizer_encode(fresh, &want, texts[i].data, texts[i].n, &(struct encode_options){0}, &err), &err);
        buf_clear(&texts[i]);
    }
    for (int i = 0; i < N_SHARERS; i++) {
        assert_int_equal(sharers[i].ids.n, want.n);
        assert_memory_equal(sharers[i].ids.ids, want.ids, want.n * sizeof *want.ids);
        token_list_clear(&sharers[i].ids);
    }
    token_list_clear(&want);
    tokenizer_close(fresh);
    tokenizer_close(tok);
}

/* ---------------------------------------------------------------- hostile files */

static void bad_files_are_refused_with_a_reason(void **state) {
#define MODEL(vocab, merges) "{\"model\":{\"type\":\"BPE\",\"vocab\":{" vocab "},\"merges\":[" merges "]}}"
    static const struct {
        const char *json, *reason;
    } cases[] = {
        {"", "tokenizer.json"},
        {"{\"model\":", "tokenizer.json"},
        {"[]", "not a JSON object"},
        {"{}", "no model"},
        {"{\"model\":{\"type\":\"WordPiece\"}}", "model.type \"WordPiece\""},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":7,\"merges\":[]}}", "model.vocab"},
        {MODEL("\"a\":-1", ""), "is not in 0"},
        {MODEL("\"a\":99999999", ""), "is not in 0"},
        {MODEL("\"a\":900000", ""), "for 1 tokens"},
        {MODEL("\"a\":\"x\"", ""), "is not in 0"},
        {MODEL("\"a\":0,\"b\":0", ""), "same id"},
        {MODEL("\"a\":0,\"b\":1", "\"a b\""), "not in the vocabulary"},
        {MODEL("\"a\":0", "\"ab\""), "not a pair"},
        {MODEL("\"a\":0", "7"), "not a pair"},
        {"{\"pre_tokenizer\":{\"type\":\"BertPreTokenizer\"}}", "\"BertPreTokenizer\""},
        {"{\"normalizer\":{\"type\":\"Precompiled\"}}", "normalizer.type \"Precompiled\""},
        {"{\"normalizer\":{\"type\":\"Sequence\"}}", "normalizers"},
        {"{\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"String\":\"a\"},\"behavior\":\"Half\"}}", "\"Half\""},
        {"{\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"[a[^b]]\"},\"behavior\":\"Isolated\"}}", "class"},
        {"{\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"[a-z&&[^b]]\"},\"behavior\":\"Isolated\"}}", "intersection"},
        {"{\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(?m).\"},\"behavior\":\"Isolated\"}}", "flag"},
        {"{\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"a{1,3}+\"},\"behavior\":\"Isolated\"}}", "repetition"},
        {"{\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(?R)\"},\"behavior\":\"Isolated\"}}", "group"},
        {"{\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"\\\\Rx\"},\"behavior\":\"Isolated\"}}", "escape"},
        {"{\"model\":{\"type\":\"Unigram\",\"vocab\":[]}}", "model.vocab"},
        {"{\"model\":{\"type\":\"Unigram\",\"vocab\":[[\"a\"]]}}", "model.vocab[0]"},
        {"{\"model\":{\"type\":\"Unigram\",\"vocab\":[[\"a\",-1]]}}", "model.unk_id"},
        {"{\"model\":{\"type\":\"Unigram\",\"vocab\":[[\"a\",-1]],\"unk_id\":1}}", "model.unk_id 1"},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[],\"end_of_word_suffix\":\"x\"}}", "end_of_word_suffix"},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[],\"dropout\":0.1}}", "model.dropout"},
        {"{\"model\":{\"vocab\":{\"a\":0},\"merges\":[]},\"decoder\":{\"type\":\"WordPiece\"}}", "decoder.type \"WordPiece\""},
        {"{\"model\":{\"vocab\":{\"a\":0},\"merges\":[]},\"post_processor\":{\"type\":\"RobertaProcessing\",\"cls\":[\"b\",7],\"sep\":[\"a\",0]}}",
         "id 7"},
        {"{\"model\":{\"vocab\":{\"a\":0},\"merges\":[]},\"added_tokens\":[{\"content\":\"b\",\"id\":-4}]}", "is not in 0"},
        {"{\"model\":{\"vocab\":{\"a\":0},\"merges\":[]},\"added_tokens\":[{\"content\":\"b\",\"id\":999999}]}", "has id 999999"},
        {"{\"model\":{\"vocab\":{\"a\":0},\"merges\":[]},\"added_tokens\":[{\"content\":\"b\",\"id\":1},{\"content\":\"c\",\"id\":3}]}",
         "\"c\" has id 3, which is not supported (2 is)"},
        {"{\"model\":{\"vocab\":{\"a\":0,\"b\":1},\"merges\":[]},\"added_tokens\":[{\"content\":\"b\",\"id\":2}]}",
         "\"b\" has id 2, which is not supported (1 is)"},
        {"{\"normalizer\":{\"type\":\"Strip\"},\"model\":{\"vocab\":{\"a\":0},\"merges\":[]},"
         "\"added_tokens\":[{\"content\":\" \",\"id\":1,\"normalized\":true}]}", "normalizer leaves nothing"},
        {"{\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"[[:alpha:]]\"},\"behavior\":\"Isolated\"}}", "class"},
        {"{\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(\"},\"behavior\":\"Isolated\"}}", "pattern"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char dir[64];
        struct err err = ERR_INIT;
        struct tokenizer *tok = NULL;
        write_folder(dir, cases[i].json);
        int r = tokenizer_open(&tok, dir, &err);
        if (r >= 0 || !strstr(err.text, cases[i].reason)) fail_msg("case %zu: %d %s", i, r, err.text);
        remove_folder(dir);
    }
}

static void byte_tokens_are_exactly_six_characters(void **state) {
    char dir[64];
    struct err err = ERR_INIT;
    struct tokenizer *tok = NULL;
    write_folder(dir, "{\"model\":{\"type\":\"BPE\",\"byte_fallback\":true,\"vocab\":{\"<0x-1>\":0,\"<0x4G>\":1,\"<0x41>\":2,"
                      "\"<0x041>\":3},\"merges\":[]},\"decoder\":{\"type\":\"ByteFallback\"}}");
    assert_ok(tokenizer_open(&tok, dir, &err), &err);
    struct buf text = BUF_INIT(0);
    tokenizer_decode(tok, &text, (int32_t[]){0, 1, 2, 3, -5, 77}, 6, false);
    assert_string_equal(text.data, "<0x-1><0x4G>A<0x041>");
    buf_clear(&text);
    tokenizer_close(tok);
    remove_folder(dir);
}

/* Any damage to a good file gives an error or a tokenizer that works, never a crash. */
static void damaged_files_do_no_harm(void **state) {
    char *good, dir[64];
    size_t n;
    struct err err = ERR_INIT;
    assert_ok(file_read("tests/models/demo/tokenizer.json", 1 << 20, &good, &n, &err), &err);
    int cases = test_is_quick() ? 60 : 600;
    for (int i = 0; i < cases; i++) {
        char *bad = mem_strndup(good, n);
        for (uint64_t k = 0; k < 1 + (uint64_t)i % 8; k++) {
            uint64_t r = hash64_mix((uint64_t)i, k);
            bad[r % n] = "\"{}[]:,0-9a\\x"[(r >> 40) % 12];
        }
        if (i % 5 == 0) bad[hash64_mix((uint64_t)i, 99) % n] = '\0';
        write_folder(dir, bad);
        struct tokenizer *tok = NULL;
        if (tokenizer_open(&tok, dir, &err) == 0) {
            struct token_list ids = {0};
            tokenizer_encode(tok, &ids, "Add 12, é <|end|>", 18, &(struct encode_options){.parse_special = true}, &err);
            token_list_clear(&ids);
        }
        tokenizer_close(tok);
        remove_folder(dir);
        free(bad);
    }
    free(good);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(llama_2_vectors),
    cmocka_unit_test(llama_3_vectors),
    cmocka_unit_test(gpt_2_vectors),
    cmocka_unit_test(qwen2_vectors),
    cmocka_unit_test(mistral_v1_vectors),
    cmocka_unit_test(phi_2_vectors),
    cmocka_unit_test(gpt_neox_vectors),
    cmocka_unit_test(phi_3_vectors),
    cmocka_unit_test(falcon_vectors),
    cmocka_unit_test(stories_vectors),
    cmocka_unit_test(long_runs_take_no_time),
    cmocka_unit_test(hostile_texts_take_no_time),
    cmocka_unit_test(a_token_of_white_space_takes_no_time),
    cmocka_unit_test(text_round_trips),
    cmocka_unit_test(a_vowel_is_no_empty_final_consonant),
    cmocka_unit_test(plain_text_never_becomes_a_control_token),
    cmocka_unit_test(plain_text_never_helps_to_write_a_control_token),
    cmocka_unit_test(bytes_that_are_not_utf8_are_refused),
    cmocka_unit_test(threads_share_a_tokenizer),
    cmocka_unit_test(bad_files_are_refused_with_a_reason),
    cmocka_unit_test(byte_tokens_are_exactly_six_characters),
    cmocka_unit_test(damaged_files_do_no_harm),
};
UNIT_MAIN(tests)
