/* tokenizer_load.c - tokenizer.json and its companions into a struct tokenizer.
 *
 * The file is Hugging Face's `tokenizers` format. Each part that this program has
 * is read, here or in tokenizer_steps.c; any other is an error that names the key and
 * the value. Every id and length comes from a file that nobody vouches for, and is
 * checked. */
#include "base/file.h"
#include "base/mem.h"
#include "engine/text/tokenizer_private.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_FILE = 48 << 20, MAX_CONFIG = 16 << 20, MAX_VALUES = 1 << 23 };

static bool flag(const json_t *o, const char *key) {
    return json_is_true(json_object_get(o, key));
}

/* ---------------------------------------------------------------- vocabulary */

static int hex_digit(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
}

static int16_t fallback_byte(const char *s, size_t n) { /* exactly <0xHH> */
    if (n != 6 || memcmp(s, "<0x", 3) != 0 || s[5] != '>') return -1;
    int high = hex_digit(s[3]), low = hex_digit(s[4]);
    return high < 0 || low < 0 ? -1 : (int16_t)(high * 16 + low);
}

int check_id(const json_t *id, const char *token, struct err *err) {
    if (json_is_integer(id) && json_integer_value(id) >= 0 && json_integer_value(id) < MAX_TOKEN_ID) return 0;
    return err_set(err, E_RANGE, "tokenizer.json: the id of token \"%.40s\" is not in 0 .. %d", token, MAX_TOKEN_ID - 1);
}

static int set_piece(struct vocab *v, int32_t id, const char *text, size_t n, struct err *err) {
    struct piece *p = &v->pieces[id];
    if (p->bytes)
        return err_set(err, E_PARSE, "tokenizer.json: tokens \"%.40s\" and \"%.40s\" have the same id", p->bytes, text);
    if (v->byte_level) p->bytes = bytes_of_letters(text, n, &p->n, &p->foreign);
    else {
        p->bytes = mem_strndup(text, n);
        p->n = (uint32_t)n;
        p->byte = fallback_byte(text, n);
    }
    return 0;
}

/* BPE: {token: id}. */
static int load_vocab(struct vocab *v, const json_t *vocab, struct err *err) {
    const char *key;
    json_t *id;
    int32_t highest = -1;
    int r = 0;
    if (!json_is_object(vocab) || json_object_size(vocab) == 0)
        return err_set(err, E_PARSE, "tokenizer.json: model.vocab is not an object of tokens");
    json_object_foreach((json_t *)vocab, key, id) {
        r = check_id(id, key, err);
        if (r < 0) return r;
        if (json_integer_value(id) > highest) highest = (int32_t)json_integer_value(id);
    }
    if ((size_t)highest > 2 * json_object_size(vocab) + 65536)
        return err_set(err, E_RANGE, "tokenizer.json: id %d for %zu tokens", (int)highest, json_object_size(vocab));
    vocab_room(v, highest);
    json_object_foreach((json_t *)vocab, key, id) {
        r = set_piece(v, (int32_t)json_integer_value(id), key, strlen(key), err);
        if (r < 0) return r;
    }
    vocab_index(v);
    return 0;
}

/* ---------------------------------------------------------------- BPE */

/* "left right", or [left, right] in newer files. */
static bool merge_parts(const json_t *m, const char **left, size_t *left_n, const char **right, size_t *right_n) {
    if (json_is_array(m) && json_array_size(m) == 2) {
        *left = json_string_value(json_array_get(m, 0));
        *right = json_string_value(json_array_get(m, 1));
        if (!*left || !*right) return false;
        *left_n = strlen(*left);
    } else {
        *left = json_string_value(m);
        const char *space = *left ? strchr(*left, ' ') : NULL;
        if (!space) return false;
        *left_n = (size_t)(space - *left);
        *right = space + 1;
    }
    *right_n = strlen(*right);
    return *left_n > 0 && *right_n > 0;
}

static int32_t find_text(const struct vocab *v, const char *text, size_t n, struct buf *joined) {
    uint32_t m;
    bool foreign = false;
    if (!v->byte_level) {
        buf_append(joined, text, n);
        return vocab_find(v, text, n);
    }
    char *bytes = bytes_of_letters(text, n, &m, &foreign);
    int32_t id = foreign ? -1 : vocab_find(v, bytes, m);
    buf_append(joined, bytes, m);
    free(bytes);
    return id;
}

static int load_merges(struct tokenizer *tok, const json_t *merges, struct err *err) {
    const struct vocab *v = &tok->vocab;
    struct buf joined = BUF_INIT(0);
    int r = 0;
    size_t n = json_array_size(merges);
    if (!json_is_array(merges)) return err_set(err, E_PARSE, "tokenizer.json: model.merges is not an array");
    if (n > MAX_MERGES) return err_set(err, E_RANGE, "tokenizer.json: model.merges has more than %d pairs", MAX_MERGES);
    bpe_reserve_merges(&tok->bpe, n);
    for (size_t i = 0; r == 0 && i < n; i++) {
        const char *left, *right;
        size_t left_n, right_n;
        buf_reset(&joined);
        if (!merge_parts(json_array_get(merges, i), &left, &left_n, &right, &right_n)) {
            r = err_set(err, E_PARSE, "tokenizer.json: model.merges[%zu] is not a pair", i);
            break;
        }
        int32_t a = find_text(v, left, left_n, &joined), b = find_text(v, right, right_n, &joined);
        int32_t result = a < 0 || b < 0 ? -1 : vocab_find(v, joined.data, joined.n);
        if (result >= 0) bpe_add_merge(&tok->bpe, a, b, (uint32_t)i, result);
        else
            r = err_set(err, E_PARSE, "tokenizer.json: model.merges[%zu] names a token that is not in the vocabulary", i);
    }
    buf_clear(&joined);
    return r;
}

/* With a ByteLevel pre-tokenizer a byte that has no letter of its own would have to be
 * spelled as the bytes of its letter; no vocabulary lacks one. */
static int check_letters(const struct vocab *v, struct err *err) {
    for (int c = 0; c < 256 && v->byte_level && v->byte_fallback; c++)
        if (v->byte_token[c] < 0) return unsupported(err, "model.byte_fallback", "together with ByteLevel");
    return 0;
}

static int load_bpe(struct tokenizer *tok, const json_t *model, struct err *err) {
    static const char *const affixes[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    for (int i = 0; i < 2; i++) {
        const char *s = json_string_value(json_object_get(model, affixes[i]));
        if (s && *s) return unsupported(err, affixes[i], s);
    }
    if (json_number_value(json_object_get(model, "dropout")) > 0) return unsupported(err, "model.dropout", "above 0");
    tok->vocab.fuse_unk = flag(model, "fuse_unk");
    tok->bpe.ignore_merges = flag(model, "ignore_merges");
    int r = load_vocab(&tok->vocab, json_object_get(model, "vocab"), err);
    const char *unk = json_string_value(json_object_get(model, "unk_token"));
    if (r == 0 && unk) tok->vocab.unk_id = vocab_find(&tok->vocab, unk, strlen(unk));
    if (r == 0) r = check_letters(&tok->vocab, err);
    return r < 0 ? r : load_merges(tok, json_object_get(model, "merges"), err);
}

/* ---------------------------------------------------------------- Unigram */

/* [[piece, log probability], ...], ids by position. */
static int load_scores(struct tokenizer *tok, const json_t *list, struct err *err) {
    size_t n = json_array_size(list);
    if (n == 0 || n > MAX_TOKEN_ID)
        return err_set(err, E_PARSE, "tokenizer.json: model.vocab is not a list of 1 .. %d pieces", MAX_TOKEN_ID);
    vocab_room(&tok->vocab, (int32_t)n - 1);
    tok->unigram.scores = mem_zalloc(n, sizeof *tok->unigram.scores);
    tok->unigram.n_scores = n;
    for (size_t i = 0; i < n; i++) {
        const json_t *item = json_array_get(list, i), *text = json_array_get(item, 0), *score = json_array_get(item, 1);
        if (json_array_size(item) != 2 || !json_is_string(text) || !json_is_number(score) ||
            !isfinite(json_number_value(score)))
            return err_set(err, E_PARSE, "tokenizer.json: model.vocab[%zu] is not a piece and its score", i);
        tok->unigram.scores[i] = json_number_value(score);
        int r = set_piece(&tok->vocab, (int32_t)i, json_string_value(text), json_string_length(text), err);
        if (r < 0) return r;
    }
    return 0;
}

static int load_unigram(struct tokenizer *tok, const json_t *model, struct err *err) {
    if (tok->vocab.byte_level) return unsupported(err, "pre_tokenizer ByteLevel with model", "Unigram");
    tok->is_unigram = true;
    tok->vocab.fuse_unk = true; /* always, in this model */
    int r = load_scores(tok, json_object_get(model, "vocab"), err);
    const json_t *unk = json_object_get(model, "unk_id");
    if (r == 0 && !json_is_integer(unk)) r = unsupported(err, "model.unk_id of Unigram", "null");
    if (r == 0 && (json_integer_value(unk) < 0 || (size_t)json_integer_value(unk) >= tok->unigram.n_scores))
        r = err_set(err, E_RANGE, "tokenizer.json: model.unk_id %lld is no piece", (long long)json_integer_value(unk));
    if (r < 0) return r;
    tok->vocab.unk_id = (int32_t)json_integer_value(unk);
    vocab_index(&tok->vocab);
    return unigram_index(&tok->unigram, &tok->vocab, err);
}

static int load_model(struct tokenizer *tok, const json_t *model, struct err *err) {
    if (!json_is_object(model)) return err_set(err, E_PARSE, "tokenizer.json: no model");
    const char *type = json_string_value(json_object_get(model, "type"));
    bool is_list = json_is_array(json_object_get(model, "vocab"));
    if (!type) type = is_list ? "Unigram" : "BPE"; /* old files */
    tok->vocab.byte_fallback = flag(model, "byte_fallback");
    tok->vocab.unk_id = -1;
    if (strcmp(type, "BPE") == 0) return load_bpe(tok, model, err);
    if (strcmp(type, "Unigram") == 0) return load_unigram(tok, model, err);
    return unsupported(err, "model.type", type);
}

/* SentencePiece-style BPE gets whole texts as one word. Where no token has `space` behind
 * another character, the text may be cut in front of it with the same result. Not where
 * unknown characters vanish, so that their neighbours meet; nor where unk or a <0xHH>,
 * whose text ends in '>', merges with a space. */
static void learn_spaces(struct tokenizer *tok) {
    static const char space[] = "\xe2\x96\x81"; /* U+2581 */
    const struct vocab *v = &tok->vocab;
    if (tok->is_unigram || v->byte_level || tok->bpe.ignore_merges) return;
    if (v->unk_id < 0 || vocab_find(v, space, 3) < 0) return;
    for (size_t i = 0; i < v->n_ids; i++) {
        const struct piece *p = &v->pieces[i];
        for (size_t k = 1; p->bytes && k + 3 <= p->n; k++)
            if (memcmp(p->bytes + k, space, 3) == 0) tok->before_space[(unsigned char)p->bytes[k - 1]] = true;
    }
    const struct piece *unk = &v->pieces[v->unk_id];
    if (unk->n == 0 || tok->before_space['>'] || tok->before_space[(unsigned char)unk->bytes[unk->n - 1]]) return;
    memcpy(tok->space, space, sizeof space);
    tok->splits_at_space = true;
}

/* ---------------------------------------------------------------- added tokens */

/* What the token says when it is decoded; what the model knows its id by stays. */
static void set_added_text(struct tokenizer *tok, const struct added_token *t, const char *text, size_t n) {
    struct piece *p = &tok->vocab.pieces[t->id];
    bool foreign;
    free(p->text);
    if (tok->vocab.byte_level) p->text = bytes_of_letters(text, n, &p->text_n, &foreign);
    else {
        p->text = mem_strndup(text, n);
        p->text_n = (uint32_t)n;
    }
    if (!p->bytes) {
        p->bytes = mem_strndup(p->text, p->text_n);
        p->n = p->text_n;
    }
    p->special = t->special;
}

/* The id that the library gives a token, whatever the file says: the model's own, else `next`. */
static int32_t added_id(const struct vocab *v, const json_t *id, const char *content, int32_t next) {
    struct buf text = BUF_INIT(0);
    int32_t own = find_text(v, content, strlen(content), &text), said = (int32_t)json_integer_value(id);
    const struct piece *p = (size_t)said < v->n_ids ? &v->pieces[said] : NULL;
    bool is_foreign = p && p->bytes && p->foreign && strcmp(p->bytes, content) == 0; /* which cannot be found */
    buf_clear(&text);
    return is_foreign ? said : own >= 0 ? own : next;
}

static int load_one_added(struct tokenizer *tok, const json_t *o, struct added_token *t, int32_t next, struct err *err) {
    const char *content = json_string_value(json_object_get(o, "content"));
    const json_t *id = json_object_get(o, "id");
    if (!content || !*content) return err_set(err, E_PARSE, "tokenizer.json: an added token has no content");
    int r = check_id(id, content, err);
    if (r < 0) return r;
    int32_t expected = added_id(&tok->vocab, id, content, next);
    if (json_integer_value(id) != expected)
        return err_set(err, E_UNSUPPORTED, "tokenizer.json: added token \"%.40s\" has id %lld, which is not supported (%d is)",
                       content, (long long)json_integer_value(id), (int)expected);
    *t = (struct added_token){mem_strdup(content),     strlen(content),   expected,
                              flag(o, "single_word"), flag(o, "lstrip"), flag(o, "rstrip"),
                              flag(o, "normalized"),  flag(o, "special")};
    vocab_room(&tok->vocab, t->id);
    set_added_text(tok, t, t->content, t->n);
    return 0;
}

/* A token that matches normalized text is looked for, and said, in its own normalized form. Where a
 * text has plain spans, which do not survive the normalizer, special tokens are looked
 * for in the raw text whatever they say. */
static int index_one_added(struct tokenizer *tok, struct matcher *m, size_t i, size_t *bytes, struct err *err) {
    struct added_token *t = &tok->added[i];
    *bytes += t->n;
    if (*bytes > MAX_TRIE)
        return err_set(err, E_RANGE, "tokenizer.json: the added tokens have more than %d bytes", MAX_TRIE);
    if (!t->normalized) added_insert(&tok->raw, (int32_t)i, t->content, t->n);
    if (!t->normalized || t->special) added_insert(&tok->control, (int32_t)i, t->content, t->n);
    if (!t->normalized) return 0;
    struct buf form = BUF_INIT(MAX_TOKEN_TEXT);
    int r = normalize(tok->normalizers, tok->n_normalizers, m, &form, t->content, t->n, err);
    *bytes += form.n;
    if (r == 0 && form.n == 0)
        r = err_set(err, E_UNSUPPORTED, "tokenizer.json: of added token \"%.40s\" the normalizer leaves nothing, which is "
                    "not supported", t->content);
    if (r == 0) {
        added_insert(&tok->normalized, (int32_t)i, form.data, form.n);
        set_added_text(tok, t, form.data, form.n);
    }
    buf_clear(&form);
    return r;
}

static int index_added(struct tokenizer *tok, struct err *err) {
    struct matcher *m = matcher_new();
    size_t bytes = 0;
    int r = 0;
    tok->raw.tokens = tok->normalized.tokens = tok->control.tokens = tok->added;
    for (size_t i = 0; r == 0 && i < tok->n_added; i++) r = index_one_added(tok, m, i, &bytes, err);
    matcher_free(m);
    return r;
}

static int load_added(struct tokenizer *tok, const json_t *list, struct err *err) {
    size_t n = json_array_size(list);
    int32_t next = 0; /* behind the model's tokens, of which there may be fewer than ids, and all added ones */
    if (n > MAX_TOKEN_ID) return err_set(err, E_RANGE, "tokenizer.json: more than %d added tokens", MAX_TOKEN_ID);
    for (size_t i = 0; i < tok->vocab.n_ids; i++) next += tok->vocab.pieces[i].bytes != NULL;
    tok->added = mem_zalloc(n, sizeof *tok->added);
    for (size_t i = 0; i < n; i++) {
        int r = load_one_added(tok, json_array_get(list, i), &tok->added[i], next, err);
        if (r < 0) return r;
        if (tok->added[i].id >= next) next = tok->added[i].id + 1;
        tok->n_added++;
    }
    return index_added(tok, err);
}

/* ---------------------------------------------------------------- companions */

/* A token is named by its text, or by an object with its content. */
static char *token_text(const json_t *v) {
    const char *text = json_is_object(v) ? json_string_value(json_object_get(v, "content")) : json_string_value(v);
    return mem_strdup(text);
}

static void take_template(struct model_chat *chat, const char *source, size_t n) {
    chat_template_free(chat->template);
    *chat = (struct model_chat){0};
    chat_template_new(&chat->template, source, n, &chat->refused);
}

/* chat_template: a string, or a list of named ones of which "default" counts, and "tool_use"
 * for rows with tools. */
static void take_config_template(struct tokenizer *tok, const json_t *v) {
    if (json_is_string(v)) take_template(&tok->chat, json_string_value(v), json_string_length(v));
    for (size_t i = 0; json_is_array(v) && i < json_array_size(v); i++) {
        const json_t *named = json_array_get(v, i), *source = json_object_get(named, "template");
        const char *name = json_string_value(json_object_get(named, "name"));
        if (!name || !json_is_string(source)) continue;
        if (strcmp(name, "default") == 0) take_template(&tok->chat, json_string_value(source), json_string_length(source));
        if (strcmp(name, "tool_use") == 0) take_template(&tok->chat_tools, json_string_value(source), json_string_length(source));
    }
}

/* A template in a file of its own goes before one in tokenizer_config.json. */
static void take_template_file(struct model_chat *chat, const char *dir, const char *name) {
    char *path = path_join(dir, name), *text = NULL;
    size_t n;
    if (file_read(path, MAX_CONFIG, &text, &n, NULL) == 0) take_template(chat, text, n);
    free(text);
    free(path);
}

static int load_companions(struct tokenizer *tok, const char *dir, struct err *err) {
    char *config_path = path_join(dir, "tokenizer_config.json"), *text = NULL;
    size_t n;
    int r = file_read(config_path, MAX_CONFIG, &text, &n, err);
    if (r == 0) {
        json_error_t why;
        /* model_max_length is often 10^30 */
        json_t *root = json_loadb(text, n, JSON_DECODE_INT_AS_REAL, &why);
        if (!root) r = err_set(err, E_PARSE, "%s:%d: %s", config_path, why.line, why.text);
        for (size_t i = 0; i < CHAT_TOKENS; i++) tok->chat_tokens.text[i] = token_text(json_object_get(root, chat_token_names[i]));
        take_config_template(tok, json_object_get(root, "chat_template"));
        json_decref(root);
        free(text);
        text = NULL;
    } else if (r == E_NOT_FOUND) r = 0;
    take_template_file(&tok->chat, dir, "chat_template.jinja");
    take_template_file(&tok->chat_tools, dir, "additional_chat_templates/tool_use.jinja");
    free(config_path);
    return r;
}

/* A tree of JSON is many times its text, an array of zeros most of all; so the values are
 * counted before it is built: commas, colons and brackets outside of strings. */
static bool has_few_values(const char *text, size_t n) {
    size_t values = 0;
    bool in_string = false;
    for (size_t i = 0; i < n && values <= MAX_VALUES; i++) {
        char c = text[i];
        if (c == '"') in_string = !in_string;
        else if (in_string && c == '\\') i++;
        else if (!in_string && (c == ',' || c == ':' || c == '[' || c == '{')) values++;
    }
    return values <= MAX_VALUES;
}

static int parse(json_t **root, const char *path, const char *text, size_t n, struct err *err) {
    json_error_t why;
    if (!has_few_values(text, n)) return err_set(err, E_RANGE, "%s has more than %d values", path, MAX_VALUES);
    *root = json_loadb(text, n, 0, &why);
    if (!*root) return err_set(err, E_PARSE, "%s:%d: %s", path, why.line, why.text);
    return json_is_object(*root) ? 0 : err_set(err, E_PARSE, "%s is not a JSON object", path);
}

int tokenizer_load(struct tokenizer *tok, const char *model_dir, struct err *err) {
    char *path = path_join(model_dir, "tokenizer.json"), *text = NULL;
    size_t n;
    json_t *root = NULL;
    int r = file_read(path, MAX_FILE, &text, &n, err);
    if (r == 0) r = parse(&root, path, text, n, err);
    if (r == 0) r = load_normalizer(tok, json_object_get(root, "normalizer"), err);
    if (r == 0) r = load_pre_tokenizer(tok, json_object_get(root, "pre_tokenizer"), err);
    if (r == 0) r = load_model(tok, json_object_get(root, "model"), err);
    if (r == 0) learn_spaces(tok);
    if (r == 0) r = load_added(tok, json_object_get(root, "added_tokens"), err);
    if (r == 0) r = load_post_processor(tok, json_object_get(root, "post_processor"), err);
    if (r == 0) r = load_decoder(tok, json_object_get(root, "decoder"), err);
    if (r == 0) r = load_companions(tok, model_dir, err);
    if (r < 0 && !strstr(err ? err->text : path, model_dir)) err_wrap(err, "%s", model_dir);
    json_decref(root);
    free(text);
    free(path);
    return r;
}
