/* fake_text.c - the text half of the fake engine: one id a byte.
 *
 * Ids 0..255 are bytes, 256 begins a text, 257 ends one; no text turns into the
 * latter two. Any folder name will do, there need not be a folder. A conversation
 * is rendered as lines of "role: content". */
#include "base/mem.h"
#include "base/utf8.h"
#include "engine/engine.h"
#include "tests/fake/fake.h"

#include <assert.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

struct tokenizer {
    char unused;
};

int tokenizer_open(struct tokenizer **out, const char *model_dir, struct err *err) {
    *out = mem_zalloc(1, sizeof **out);
    return 0;
}

void tokenizer_close(struct tokenizer *tok) {
    free(tok);
}

size_t tokenizer_n_ids(const struct tokenizer *tok) {
    return FAKE_VOCAB;
}

bool tokenizer_adds_bos(const struct tokenizer *tok) {
    return true;
}

void token_list_clear(struct token_list *list) {
    free(list->ids);
    *list = (struct token_list){0};
}

void token_list_push(struct token_list *list, int32_t id) {
    if (list->n == list->cap) {
        list->cap = list->cap ? 2 * list->cap : 32;
        list->ids = mem_realloc(list->ids, list->cap, sizeof *list->ids);
    }
    list->ids[list->n++] = id;
}

int tokenizer_encode(const struct tokenizer *tok, struct token_list *out, const char *text, size_t n,
                     const struct encode_options *options, struct err *err) {
    size_t valid = utf8_valid_prefix(text, n);
    if (valid < n) return err_set(err, E_PARSE, "byte %zu of the text is not UTF-8", valid);
    if (options->add_special) token_list_push(out, FAKE_BOS);
    for (size_t i = 0; i < n; i++) token_list_push(out, (unsigned char)text[i]);
    return 0;
}

/* Move what is settled from `held` to `text`: whole characters, and U+FFFD for a byte
 * that can belong to none. */
static void settle(struct detokenizer *d, bool all) {
    const char *p = d->held.data;
    size_t n = d->held.n;
    while (n > 0) {
        size_t valid = utf8_valid_prefix(p, n);
        buf_append(&d->text, p, valid);
        p += valid;
        n -= valid;
        if (n == 0 || (!all && utf8_is_incomplete(p, n))) break;
        buf_puts(&d->text, "\xef\xbf\xbd");
        p++;
        n--;
    }
    char rest[8];
    memcpy(rest, n ? p : "", n);
    buf_reset(&d->held);
    buf_append(&d->held, rest, n);
}

void detokenizer_init(struct detokenizer *d, const struct tokenizer *tok, bool skip_special) {
    *d = (struct detokenizer){.tok = tok, .skip_special = skip_special};
}

void detokenizer_push(struct detokenizer *d, int32_t id) {
    d->started = true;
    if (id < 0 || id > 255) return;
    buf_putc(&d->held, (char)id);
    settle(d, false);
}

void detokenizer_finish(struct detokenizer *d) {
    settle(d, true);
}

void detokenizer_clear(struct detokenizer *d) {
    buf_clear(&d->text);
    buf_clear(&d->held);
}

void tokenizer_token_bytes(const struct tokenizer *tok, struct buf *out, int32_t id) {
    if (id >= 0 && id <= 255) buf_putc(out, (char)id);
}

void tokenizer_decode(const struct tokenizer *tok, struct buf *out, const int32_t *ids, size_t n,
                      bool skip_special) {
    struct detokenizer d;
    detokenizer_init(&d, tok, skip_special);
    for (size_t i = 0; i < n; i++) detokenizer_push(&d, ids[i]);
    detokenizer_finish(&d);
    buf_append(out, d.text.data, d.text.n);
    detokenizer_clear(&d);
}

void chat_text_clear(struct chat_text *t) {
    buf_clear(&t->text);
    free(t->plain);
    *t = (struct chat_text){0};
}

bool tokenizer_has_chat_template(const struct tokenizer *tok) {
    return true;
}

int chat_template_new(struct chat_template **out, const char *source, size_t n, struct err *err) {
    *out = NULL; /* templates are not looked at: a conversation is rendered as said above */
    return 0;
}

void chat_template_free(struct chat_template *t) {
    assert(!t);
}

static void add_message(struct chat_text *out, const json_t *message) {
    const char *role = json_string_value(json_object_get(message, "role"));
    const char *content = json_string_value(json_object_get(message, "content"));
    buf_printf(&out->text, "%s: ", role ? role : "");
    size_t begin = out->text.n;
    buf_puts(&out->text, content ? content : "");
    out->plain = mem_realloc(out->plain, out->n_plain + 1, sizeof *out->plain);
    out->plain[out->n_plain++] = (struct text_span){begin, out->text.n};
    out->cap_plain = out->n_plain;
    buf_putc(&out->text, '\n');
}

int tokenizer_render_chat(const struct tokenizer *tok, struct chat_text *out, const char *variables,
                          const struct chat_options *options, struct err *err) {
    json_t *json = json_loads(variables, 0, NULL), *messages = json_object_get(json, "messages"), *m;
    size_t i;
    json_array_foreach(messages, i, m) add_message(out, m);
    if (options->add_generation_prompt) buf_puts(&out->text, "assistant: ");
    json_decref(json);
    return 0;
}
