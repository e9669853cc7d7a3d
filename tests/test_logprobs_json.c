/* test_logprobs_json.c - logprobs as JSON: with real tokenizers the tokens, put together, are
 * the text, and offsets point to where each token begins in it. */
#include "tests/unit.h"

#include "base/mem.h"
#include "base/utf8.h"
#include "batchd/logprobs_json.h"
#include "engine/sample/logprobs.h"

#include <jansson.h>
#include <math.h>

static const char *const texts[] = {
    "The quick brown fox jumps over the lazy dog.\n",
    "  leading blanks, \"quotes\", back\\slashes,\ttabs\r\n\n and control\x01 characters",
    "Gr\xc3\xbc\xc3\x9f" "e \xe6\x97\xa5\xe6\x9c\xac\xe8\xaa\x9e \xf0\x9f\x98\x80\xf0\x9f\x8f\xb4 \xe0\xa4\xa8\xe0\xa4\xae\xe0\xa4\xb8\xe0\xa5\x8d\xe0\xa4\xa4\xe0\xa5\x87",
    "def f(x):\n    return x ** 2  # 12345 67.89",
};

enum { N_TOP = 3 };

/* Made-up numbers: token k of place i has -(k + i / 10). */
static struct engine_completion *completion_of(const struct tokenizer *tok, const char *text) {
    struct engine_completion *c = mem_zalloc(1, sizeof *c);
    struct token_list ids = {0};
    struct err err = ERR_INIT;
    assert_ok(tokenizer_encode(tok, &ids, text, strlen(text), &(struct encode_options){0}, &err), &err);
    c->tokens = ids.ids;
    c->n_tokens = ids.n;
    logprobs_init(&c->logprobs, (int32_t)ids.n, N_TOP);
    for (size_t i = 0; i < ids.n; i++) {
        struct sample_logprobs l = {.token = -(float)i / 10, .rank = 1};
        for (int k = 0; k < N_TOP; k++) {
            l.top_id[k] = k == 0 ? ids.ids[i] : (int32_t)((i * 37 + (size_t)k * 101) % tokenizer_n_ids(tok));
            l.top[k] = -(float)k - (float)i / 10;
        }
        logprobs_push(&c->logprobs, &l);
    }
    return c;
}

static json_t *parsed(struct buf *json) {
    json_error_t why;
    json_t *root = json_loadb(json->data, json->n, JSON_REJECT_DUPLICATES, &why);
    if (!root) fail_msg("%s in %s", why.text, json->data);
    buf_clear(json);
    return root;
}

/* "bytes:\x.." back into bytes. */
static void append_token(struct buf *out, const char *token) {
    if (strncmp(token, "bytes:", 6) != 0) {
        buf_puts(out, token);
        return;
    }
    for (const char *at = token + 6; *at; at += 4) {
        assert_true(at[0] == '\\' && at[1] == 'x');
        buf_putc(out, (char)strtol((char[]){at[2], at[3], 0}, NULL, 16));
    }
}

static size_t offset_of_character(const char *text, size_t n) {
    size_t at = 0;
    for (; n > 0 && text[at]; n--) {
        at++;
        while (((unsigned char)text[at] & 0xc0) == 0x80) at++;
    }
    return at;
}

static void check_text(const struct tokenizer *tok, const char *name, const char *text) {
    struct engine_completion *c = completion_of(tok, text);
    struct buf json = BUF_INIT(0), whole = BUF_INIT(0), joined = BUF_INIT(0);
    logprobs_json(&json, tok, c);
    json_t *root = parsed(&json);
    tokenizer_decode(tok, &whole, c->tokens, c->n_tokens, true);
    for (size_t i = 0; i < c->n_tokens; i++) {
        const char *token = json_string_value(json_array_get(json_object_get(root, "tokens"), i));
        json_t *top = json_array_get(json_object_get(root, "top_logprobs"), i);
        double x = json_number_value(json_array_get(json_object_get(root, "token_logprobs"), i));
        json_int_t offset = json_integer_value(json_array_get(json_object_get(root, "text_offset"), i));
        assert_non_null(token);
        assert_true(fabs(x + (double)i / 10) < 1e-6);
        assert_true(json_number_value(json_object_get(top, token)) == x && json_object_size(top) <= N_TOP);
        const char *there = whole.data + offset_of_character(whole.data, (size_t)offset);
        bool begins = strncmp(there, token, strlen(token)) == 0;
        if (i == 0 && *token == ' ') begins |= strncmp(there, token + 1, strlen(token) - 1) == 0; /* a blank that was put there */
        if (strncmp(token, "bytes:", 6) != 0 && !begins)
            fail_msg("%s: token %zu \"%s\" does not begin at %lld of \"%s\"", name, i, token, (long long)offset, whole.data);
        append_token(&joined, token);
    }
    size_t blank = joined.n > whole.n && *joined.data == ' ';
    if (strcmp(joined.data + blank, whole.data) != 0) fail_msg("%s: \"%s\", not \"%s\"", name, joined.data, whole.data);
    json_decref(root);
    buf_clear(&whole);
    buf_clear(&joined);
    engine_completion_free(c);
}

static void check_tokenizer(const char *dir) {
    struct tokenizer *tok;
    struct err err = ERR_INIT;
    assert_ok(tokenizer_open(&tok, dir, &err), &err);
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) check_text(tok, dir, texts[i]);
    tokenizer_close(tok);
}

static void tokens_put_together_are_the_text(void **state) {
    check_tokenizer("tests/models/demo");
}

static void so_they_are_with_real_tokenizers(void **state) {
    static const char *const names[] = {"falcon", "gpt-2", "gpt-neox-20b", "llama-2", "llama-3", "mistral-v1", "phi-2", "qwen2"};
    if (!test_data()) skip();
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char dir[600];
        snprintf(dir, sizeof dir, "%s/tokenizers/%s", test_data(), names[i]);
        check_tokenizer(dir);
    }
}

static void what_is_far_below_has_a_number(void **state) {
    struct tokenizer *tok;
    struct err err = ERR_INIT;
    assert_ok(tokenizer_open(&tok, "tests/models/demo", &err), &err);
    struct engine_completion *c = completion_of(tok, "a");
    struct buf json = BUF_INIT(0);
    c->logprobs.token[0] = c->logprobs.top[0] = -INFINITY;
    logprobs_json(&json, tok, c);
    json_t *root = parsed(&json);
    assert_true(json_number_value(json_array_get(json_object_get(root, "token_logprobs"), 0)) == -9999);
    json_decref(root);
    engine_completion_free(c);
    tokenizer_close(tok);
}

static void prompts_are_in_the_form_of_vllm(void **state) {
    struct tokenizer *tok;
    struct err err = ERR_INIT;
    assert_ok(tokenizer_open(&tok, "tests/models/demo", &err), &err);
    struct engine_completion *c = completion_of(tok, "Sort these words");
    struct buf json = BUF_INIT(0);
    c->prompt_tokens = mem_dup(c->tokens, c->n_tokens * sizeof *c->tokens);
    c->n_prompt_tokens = (int32_t)c->n_tokens;
    c->prompt_logprobs = logprobs_copy(&c->logprobs, (int32_t)c->n_tokens - 1);
    c->prompt_logprobs.rank[0] = 77;
    prompt_logprobs_json(&json, tok, c);
    json_t *root = parsed(&json);
    assert_int_equal(json_array_size(root), c->n_tokens);
    assert_true(json_is_null(json_array_get(root, 0)));
    for (size_t i = 1; i < c->n_tokens; i++) {
        char key[20];
        snprintf(key, sizeof key, "%d", c->prompt_tokens[i]);
        json_t *own = json_object_get(json_array_get(root, i), key);
        assert_int_equal(json_integer_value(json_object_get(own, "rank")), i == 1 ? 77 : 1);
        assert_true(fabs(json_number_value(json_object_get(own, "logprob")) + (double)(i - 1) / 10) < 1e-6);
        assert_true(json_is_string(json_object_get(own, "decoded_token")));
        assert_in_range(json_object_size(json_array_get(root, i)), 2, N_TOP + 1);
    }
    json_decref(root);
    engine_completion_free(c);
    tokenizer_close(tok);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(tokens_put_together_are_the_text),
    cmocka_unit_test(so_they_are_with_real_tokenizers),
    cmocka_unit_test(what_is_far_below_has_a_number),
    cmocka_unit_test(prompts_are_in_the_form_of_vllm),
};
UNIT_MAIN(tests)
