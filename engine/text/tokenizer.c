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
    tok->cache = word_cache_new();
    int r = tokenizer_load(tok, model_dir, err);
    if (r < 0) tokenizer_close(tok);
    else *out = tok;
    return r;
}

void tokenizer_close(struct tokenizer *tok) {
    if (!tok) return;
    vocab_clear(&tok->vocab);
    unigram_clear(&tok->unigram);
    word_cache_free(tok->cache);
    free(tok->bpe.merges);
    for (size_t i = 0; i < tok->n_added; i++) free(tok->added[i].content);
    free(tok->added);
    free(tok->raw.nodes);
    free(tok->normalized.nodes);
    free(tok->control.nodes);
    for (size_t i = 0; i < tok->n_normalizers; i++) normalize_step_clear(&tok->normalizers[i]);
    for (size_t i = 0; i < tok->n_pre; i++) pattern_free(tok->pre[i].pattern);
    for (size_t i = 0; i < tok->decoder.n_steps; i++) normalize_step_clear(&tok->decoder.steps[i]);
    token_list_clear(&tok->before);
    token_list_clear(&tok->after);
    for (size_t i = 0; i < CHAT_TOKENS; i++) free(tok->chat_tokens.text[i]);
    chat_template_free(tok->chat.template);
    chat_template_free(tok->chat_tools.template);
    free(tok);
}

size_t tokenizer_n_ids(const struct tokenizer *tok) {
    return tok->vocab.n_ids;
}

bool tokenizer_adds_bos(const struct tokenizer *tok) {
    return tok->before.n > 0;
}

/* ---------------------------------------------------------------- encoding */

struct encoder { /* one call's state */
    const struct tokenizer *tok;
    struct token_list *out;
    const struct encode_options *options;
    struct bpe_scratch *bpe;
    struct matcher *matcher;
    struct buf normalized;
    struct words words;
    struct err *err;
};

/* One word by the model, or as it was encoded before. */
static void encode_word(struct encoder *e, const char *word, size_t n) {
    const struct tokenizer *tok = e->tok;
    if (n > CACHED_WORD_MAX) {
        if (tok->is_unigram) unigram_encode(&tok->unigram, &tok->vocab, e->out, word, n);
        else bpe_encode(&tok->bpe, &tok->vocab, e->bpe, e->out, word, n);
        return;
    }
    uint64_t hash = word_hash(word, n);
    if (word_cache_get(tok->cache, e->out, hash, word, n)) return;
    size_t before = e->out->n;
    if (tok->is_unigram) unigram_encode(&tok->unigram, &tok->vocab, e->out, word, n);
    else bpe_encode(&tok->bpe, &tok->vocab, e->bpe, e->out, word, n);
    if (e->out->n > before) word_cache_put(tok->cache, e->out->ids + before, e->out->n - before, hash, word, n);
}

/* A piece that may be a whole text: cut in front of spaces, where nothing can merge. */
static void encode_piece(struct encoder *e, const char *text, size_t n) {
    const struct tokenizer *tok = e->tok;
    size_t space_n = strlen(tok->space), begin = 0, at = 1;
    while (tok->splits_at_space && at + space_n <= n) {
        const char *hit = memchr(text + at, tok->space[0], n - at - space_n + 1);
        if (!hit) break;
        at = (size_t)(hit - text);
        if (memcmp(hit, tok->space, space_n) == 0 && !tok->before_space[(unsigned char)text[at - 1]]) {
            encode_word(e, text + begin, at - begin);
            begin = at;
        }
        at++;
    }
    encode_word(e, text + begin, n - begin);
}

/* Text without added tokens: cut into words, each word encoded. */
static int encode_words(struct encoder *e, const char *text, size_t n, bool at_start) {
    if (n == 0) return 0;
    e->words.at_start = at_start;
    int r = pre_tokenize(e->tok->pre, e->tok->n_pre, e->matcher, &e->words, text, n, e->err);
    for (size_t i = 0; r == 0 && i < e->words.spans.n; i++) {
        struct text_span s = e->words.spans.spans[i];
        if (s.begin < s.end) encode_piece(e, e->words.text + s.begin, s.end - s.begin);
    }
    return r;
}

/* Text behind the normalizer, where the second kind of added token is looked for. Plain
 * spans do not survive it, so where there are any, no special token is taken here. */
static int encode_normalized(struct encoder *e, const char *text, size_t n, bool at_start) {
    struct encode_options behind = {.parse_special = e->options->parse_special && e->options->n_plain == 0};
    struct added_search s = {0};
    struct added_match m;
    size_t done = 0;
    while (added_next(&e->tok->normalized, text, n, &s, &behind, &m)) {
        int r = done < m.begin ? encode_words(e, text + done, m.begin - done, at_start && done == 0) : 0;
        if (r < 0) return r;
        token_list_push(e->out, m.id);
        done = m.end;
    }
    return encode_words(e, text + done, n - done, at_start && done == 0);
}

/* Raw text between added tokens of the first kind. */
static int encode_fragment(struct encoder *e, const char *text, size_t n, bool at_start) {
    if (n == 0) return 0;
    if (e->tok->n_normalizers == 0) return encode_normalized(e, text, n, at_start);
    buf_reset(&e->normalized);
    int r = normalize(e->tok->normalizers, e->tok->n_normalizers, e->matcher, &e->normalized, text, n, e->err);
    if (r == 0 && e->normalized.n > 0) r = encode_normalized(e, e->normalized.data, e->normalized.n, at_start);
    return r;
}

static int encode_text(struct encoder *e, const char *text, size_t n) {
    const struct added_tokens *added = e->options->n_plain ? &e->tok->control : &e->tok->raw;
    struct added_search s = {0};
    struct added_match m;
    size_t done = 0;
    while (added_next(added, text, n, &s, e->options, &m)) {
        int r = done < m.begin ? encode_fragment(e, text + done, m.begin - done, done == 0) : 0;
        if (r < 0) return r;
        token_list_push(e->out, m.id);
        done = m.end;
    }
    return encode_fragment(e, text + done, n - done, done == 0);
}

int tokenizer_encode(const struct tokenizer *tok, struct token_list *out, const char *text, size_t n,
                     const struct encode_options *options, struct err *err) {
    size_t valid = utf8_valid_prefix(text, n), n_before = out->n;
    if (valid < n) return err_set(err, E_PARSE, "text is not UTF-8 at byte %zu", valid);
    if (n > INT32_MAX / 2) return err_set(err, E_RANGE, "text has %zu bytes, more than 1 GiB", n);
    struct encoder e = {.tok = tok, .out = out, .options = options, .bpe = bpe_scratch_new(), .matcher = matcher_new(),
                        .normalized = BUF_INIT(0), .err = err};
    if (options->add_special)
        for (size_t i = 0; i < tok->before.n; i++) token_list_push(out, tok->before.ids[i]);
    int r = encode_text(&e, text, n);
    if (options->add_special)
        for (size_t i = 0; i < tok->after.n; i++) token_list_push(out, tok->after.ids[i]);
    if (r < 0) out->n = n_before;
    bpe_scratch_free(e.bpe);
    matcher_free(e.matcher);
    buf_clear(&e.normalized);
    words_clear(&e.words);
    return r;
}

/* ---------------------------------------------------------------- chat */

static bool is_there(const struct model_chat *chat) {
    return chat->template || chat->refused.code;
}

bool tokenizer_has_chat_template(const struct tokenizer *tok) {
    return is_there(&tok->chat);
}

int tokenizer_render_chat(const struct tokenizer *tok, struct chat_text *out, const char *variables,
                          const struct chat_options *options, struct err *err) {
    bool tools = !options->chat_template && is_there(&tok->chat_tools) && chat_has_tools(variables);
    const struct model_chat *chat = tools ? &tok->chat_tools : &tok->chat;
    const struct chat_template *t = options->chat_template ? options->chat_template : chat->template;
    if (!t && chat->refused.code) return err_set(err, chat->refused.code, "chat template: %s", chat->refused.text);
    if (!t) return err_set(err, E_NOT_FOUND, "the model has no chat template");
    return chat_template_render(t, out, variables, options, &tok->chat_tokens, err);
}
