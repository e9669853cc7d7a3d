/* tokenizer.c - text to token ids: the stages in their order. */
#include "base/mem.h"
#include "base/utf8.h"
#include "engine/text/tokenizer_private.h"

#include <stdlib.h>
#include <string.h>

void token_list_clear(struct token_list *list) {
    free(list->ids);
    *list = (struct token_list){0};
}

void token_list_push(struct token_list *list, int32_t id) {
    if (list->n == list->cap) {
        list->cap = list->cap ? list->cap * 2 : 32;
        list->ids = mem_realloc(list->ids, list->cap, sizeof *list->ids);
    }
    list->ids[list->n++] = id;
}

int tokenizer_open(struct tokenizer **out, const char *model_dir, struct err *err) {
    struct tokenizer *tok = mem_zalloc(1, sizeof *tok);
    int r = tokenizer_load(tok, model_dir, err);
    if (r < 0) tokenizer_close(tok);
    else *out = tok;
    return r;
}

void tokenizer_close(struct tokenizer *tok) {
    if (!tok) return;
    for (size_t i = 0; i < tok->bpe.n_ids; i++) {
        free(tok->bpe.pieces[i].bytes);
        free(tok->bpe.pieces[i].text);
    }
    free(tok->bpe.pieces);
    free(tok->bpe.by_bytes);
    free(tok->bpe.merges);
    for (size_t i = 0; i < tok->n_added; i++) free(tok->added[i].content);
    free(tok->added);
    free(tok->raw.nodes);
    free(tok->normalized.nodes);
    for (size_t i = 0; i < tok->n_normalizers; i++) {
        free(tok->normalizers[i].from);
        free(tok->normalizers[i].to);
    }
    for (size_t i = 0; i < tok->n_splits; i++) pcre2_code_free(tok->splits[i].pattern);
    token_list_clear(&tok->before);
    token_list_clear(&tok->after);
    free(tok->decode_from);
    free(tok->decode_to);
    for (size_t i = 0; i < CHAT_TOKENS; i++) free(tok->chat_tokens.text[i]);
    chat_template_free(tok->chat);
    free(tok);
}

size_t tokenizer_n_ids(const struct tokenizer *tok) {
    return tok->bpe.n_ids;
}

bool tokenizer_adds_bos(const struct tokenizer *tok) {
    return tok->before.n > 0;
}

/* ---------------------------------------------------------------- encoding */

struct encoder { /* one call's state */
    const struct tokenizer *tok;
    struct token_list *out;
    struct bpe_scratch *bpe;
    struct buf normalized;
    struct span_list spans, spare;
    struct err *err;
};

/* Text without added tokens: cut into words, each word encoded. */
static int encode_words(struct encoder *e, const char *text, size_t n) {
    const struct tokenizer *tok = e->tok;
    struct buf prefixed = BUF_INIT(0);
    if (n == 0) return 0;
    if (tok->prefix_space && text[0] != ' ') {
        buf_putc(&prefixed, ' ');
        buf_append(&prefixed, text, n);
        text = prefixed.data;
        n = prefixed.n;
    }
    e->spans.n = 0;
    span_list_push(&e->spans, 0, n);
    int r = 0;
    for (size_t i = 0; r == 0 && i < tok->n_splits; i++) {
        r = split_spans(&tok->splits[i], &e->spare, &e->spans, text, e->err);
        struct span_list swap = e->spans;
        e->spans = e->spare;
        e->spare = swap;
    }
    for (size_t i = 0; r == 0 && i < e->spans.n; i++)
        bpe_encode(&tok->bpe, e->bpe, e->out, text + e->spans.spans[i].begin,
                   e->spans.spans[i].end - e->spans.spans[i].begin);
    buf_clear(&prefixed);
    return r;
}

/* Text behind the normalizer, where the second kind of added token is looked for. */
static int encode_normalized(struct encoder *e, const char *text, size_t n, const struct encode_options *options) {
    size_t at = 0;
    struct added_match m;
    while (added_next(&e->tok->normalized, text, n, at, options, &m)) {
        int r = encode_words(e, text + at, m.begin - at);
        if (r < 0) return r;
        token_list_push(e->out, m.id);
        at = m.end;
    }
    return encode_words(e, text + at, n - at);
}

/* Raw text between added tokens of the first kind. Plain spans do not survive the
 * normalizer, so a fragment that touches one has no special token of the second kind. */
static int encode_fragment(struct encoder *e, const char *text, size_t n, const struct encode_options *options) {
    if (n == 0) return 0;
    struct encode_options behind = {.parse_special = options->parse_special && options->n_plain == 0};
    if (e->tok->n_normalizers == 0) return encode_normalized(e, text, n, &behind);
    buf_reset(&e->normalized);
    int r = normalize(e->tok->normalizers, e->tok->n_normalizers, &e->normalized, text, n, e->err);
    if (r == 0 && e->normalized.n > 0) r = encode_normalized(e, e->normalized.data, e->normalized.n, &behind);
    return r;
}

static int encode_text(struct encoder *e, const char *text, size_t n, const struct encode_options *options) {
    size_t at = 0;
    struct added_match m;
    while (added_next(&e->tok->raw, text, n, at, options, &m)) {
        int r = encode_fragment(e, text + at, m.begin - at, options);
        if (r < 0) return r;
        token_list_push(e->out, m.id);
        at = m.end;
    }
    return encode_fragment(e, text + at, n - at, options);
}

int tokenizer_encode(const struct tokenizer *tok, struct token_list *out, const char *text, size_t n,
                     const struct encode_options *options, struct err *err) {
    size_t valid = utf8_valid_prefix(text, n), n_before = out->n;
    if (valid < n) return err_set(err, E_PARSE, "text is not UTF-8 at byte %zu", valid);
    if (n > INT32_MAX / 2) return err_set(err, E_RANGE, "text has %zu bytes, more than 1 GiB", n);
    struct encoder e = {.tok = tok, .out = out, .bpe = bpe_scratch_new(), .normalized = BUF_INIT(0), .err = err};
    if (options->add_special)
        for (size_t i = 0; i < tok->before.n; i++) token_list_push(out, tok->before.ids[i]);
    int r = encode_text(&e, text, n, options);
    if (options->add_special)
        for (size_t i = 0; i < tok->after.n; i++) token_list_push(out, tok->after.ids[i]);
    if (r < 0) out->n = n_before;
    bpe_scratch_free(e.bpe);
    buf_clear(&e.normalized);
    free(e.spans.spans);
    free(e.spare.spans);
    return r;
}

/* ---------------------------------------------------------------- chat */

bool tokenizer_has_chat_template(const struct tokenizer *tok) {
    return tok->chat || tok->chat_refused.code;
}

int tokenizer_render_chat(const struct tokenizer *tok, struct chat_text *out, const char *variables,
                          const struct chat_options *options, struct err *err) {
    const struct chat_template *t = options->chat_template ? options->chat_template : tok->chat;
    if (!t && tok->chat_refused.code)
        return err_set(err, tok->chat_refused.code, "chat template: %s", tok->chat_refused.text);
    if (!t) return err_set(err, E_NOT_FOUND, "the model has no chat template");
    return chat_template_render(t, out, variables, options, &tok->chat_tokens, err);
}
