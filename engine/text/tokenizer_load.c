/* tokenizer_load.c - tokenizer.json and its companions into a struct tokenizer.
 *
 * The file is Hugging Face's `tokenizers` format. Each part that this program has
 * is read here; any other is an error that names the key and the value. Every id
 * and length comes from a file that nobody vouches for, and is checked. */
#include "base/file.h"
#include "base/mem.h"
#include "base/utf8.h"
#include "engine/text/tokenizer_private.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_FILE = 128 << 20, MAX_CONFIG = 16 << 20 };

/* What \s and friends mean follows Unicode, as in the library that made the file. */
static const char GPT2_PATTERN[] =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

static int unsupported(struct err *err, const char *key, const char *value) {
    return err_set(err, E_UNSUPPORTED, "tokenizer.json: %s \"%s\" is not supported", key, value ? value : "?");
}

static const char *type_of(const json_t *o) {
    const char *type = json_string_value(json_object_get(o, "type"));
    return type ? type : "";
}

static bool flag(const json_t *o, const char *key) {
    return json_is_true(json_object_get(o, key));
}

/* The steps of a part: itself, or those of a Sequence. */
static size_t n_steps(const json_t *part, const char *list) {
    if (!part || json_is_null(part)) return 0;
    return strcmp(type_of(part), "Sequence") == 0 ? json_array_size(json_object_get(part, list)) : 1;
}

static const json_t *step_at(const json_t *part, const char *list, size_t i) {
    return strcmp(type_of(part), "Sequence") == 0 ? json_array_get(json_object_get(part, list), i) : part;
}

/* ---------------------------------------------------------------- bytes as characters */

/* GPT-2's byte-level vocabularies write each byte as a printable character: bytes that
 * are printable in Latin-1 as themselves, the others as U+0100 and up, in order. */
static bool byte_is_itself(int c) {
    return (c >= '!' && c <= '~') || (c >= 0xa1 && c <= 0xac) || (c >= 0xae && c <= 0xff);
}

static void fill_byte_of(int16_t byte_of[512]) {
    for (int i = 0; i < 512; i++) byte_of[i] = -1;
    int next = 0x100;
    for (int c = 0; c < 256; c++) byte_of[byte_is_itself(c) ? c : next++] = (int16_t)c;
}

/* A piece as the bytes it stands for; one that is not written in that alphabet stays. */
static char *bytes_of_piece(const int16_t byte_of[512], const char *piece, size_t n, uint32_t *out_n) {
    char *bytes = mem_alloc(n + 1);
    size_t m = 0, len;
    for (size_t i = 0; i < n; i += len) {
        int32_t cp = utf8_decode(piece + i, n - i, &len);
        if (cp < 0 || cp >= 512 || byte_of[cp] < 0) {
            memcpy(bytes, piece, n);
            m = n;
            break;
        }
        bytes[m++] = (char)byte_of[cp];
    }
    bytes[m] = '\0';
    *out_n = (uint32_t)m;
    return bytes;
}

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

/* ---------------------------------------------------------------- model */

static void room_for_id(struct bpe *b, int32_t id) {
    size_t need = (size_t)id + 1;
    if (need <= b->n_ids) return;
    size_t cap = 1024;
    while (cap < need) cap *= 2;
    b->pieces = mem_realloc(b->pieces, cap, sizeof *b->pieces);
    memset(b->pieces + b->n_ids, 0, (cap - b->n_ids) * sizeof *b->pieces);
    for (size_t i = b->n_ids; i < cap; i++) b->pieces[i].byte = -1;
    b->n_ids = need;
}

static int check_id(const json_t *id, const char *token, struct err *err) {
    if (json_is_integer(id) && json_integer_value(id) >= 0 && json_integer_value(id) < MAX_TOKEN_ID) return 0;
    return err_set(err, E_RANGE, "tokenizer.json: the id of token \"%.40s\" is not in 0 .. %d", token, MAX_TOKEN_ID - 1);
}

static int load_vocab(struct bpe *b, const json_t *vocab, const int16_t byte_of[512], struct err *err) {
    const char *key;
    json_t *id;
    int32_t highest = -1;
    if (!json_is_object(vocab) || json_object_size(vocab) == 0)
        return err_set(err, E_PARSE, "tokenizer.json: model.vocab is not an object of tokens");
    json_object_foreach((json_t *)vocab, key, id) {
        int r = check_id(id, key, err);
        if (r < 0) return r;
        if (json_integer_value(id) > highest) highest = (int32_t)json_integer_value(id);
    }
    if ((size_t)highest > 16 * json_object_size(vocab) + 65536)
        return err_set(err, E_RANGE, "tokenizer.json: id %d for %zu tokens", highest, json_object_size(vocab));
    room_for_id(b, highest);
    json_object_foreach((json_t *)vocab, key, id) {
        struct piece *p = &b->pieces[json_integer_value(id)];
        size_t n = strlen(key);
        if (p->bytes)
            return err_set(err, E_PARSE, "tokenizer.json: tokens \"%.40s\" and \"%.40s\" have the same id", p->bytes, key);
        if (b->byte_level) p->bytes = bytes_of_piece(byte_of, key, n, &p->n);
        else {
            p->bytes = mem_strndup(key, n);
            p->n = (uint32_t)n;
            p->byte = fallback_byte(key, n);
        }
    }
    return 0;
}

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

static int load_merges(struct bpe *b, const json_t *merges, const int16_t byte_of[512], struct err *err) {
    struct buf joined = BUF_INIT(0);
    int r = 0;
    size_t n = json_array_size(merges);
    if (!json_is_array(merges)) return err_set(err, E_PARSE, "tokenizer.json: model.merges is not an array");
    bpe_reserve_merges(b, n);
    for (size_t i = 0; r == 0 && i < n; i++) {
        const char *part[2];
        size_t part_n[2];
        int32_t id[2];
        buf_reset(&joined);
        if (!merge_parts(json_array_get(merges, i), &part[0], &part_n[0], &part[1], &part_n[1])) {
            r = err_set(err, E_PARSE, "tokenizer.json: model.merges[%zu] is not a pair", i);
            break;
        }
        for (int k = 0; k < 2; k++) {
            uint32_t m = (uint32_t)part_n[k];
            char *bytes = b->byte_level ? bytes_of_piece(byte_of, part[k], part_n[k], &m) : NULL;
            id[k] = bpe_find(b, bytes ? bytes : part[k], m);
            buf_append(&joined, bytes ? bytes : part[k], m);
            free(bytes);
        }
        int32_t result = bpe_find(b, joined.data, joined.n);
        if (id[0] < 0 || id[1] < 0 || result < 0)
            r = err_set(err, E_PARSE, "tokenizer.json: model.merges[%zu] names a token that is not in the vocabulary", i);
        else bpe_add_merge(b, id[0], id[1], (uint32_t)i, result);
    }
    buf_clear(&joined);
    return r;
}

static int load_model(struct tokenizer *tok, const json_t *model, struct err *err) {
    struct bpe *b = &tok->bpe;
    const char *type = type_of(model);
    if (*type && strcmp(type, "BPE") != 0) return unsupported(err, "model.type", type);
    if (!model) return err_set(err, E_PARSE, "tokenizer.json: no model");
    static const char *const affixes[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    for (int i = 0; i < 2; i++) {
        const char *s = json_string_value(json_object_get(model, affixes[i]));
        if (s && *s) return unsupported(err, affixes[i], s);
    }
    if (json_number_value(json_object_get(model, "dropout")) > 0) return unsupported(err, "model.dropout", "above 0");
    b->byte_fallback = flag(model, "byte_fallback");
    b->fuse_unk = flag(model, "fuse_unk");
    b->ignore_merges = flag(model, "ignore_merges");
    b->unk_id = -1;
    int16_t byte_of[512];
    fill_byte_of(byte_of);
    int r = load_vocab(b, json_object_get(model, "vocab"), byte_of, err);
    if (r < 0) return r;
    bpe_build_table(b);
    const char *unk = json_string_value(json_object_get(model, "unk_token"));
    if (unk) b->unk_id = bpe_find(b, unk, strlen(unk));
    return load_merges(b, json_object_get(model, "merges"), byte_of, err);
}

/* ---------------------------------------------------------------- added tokens */

static int load_one_added(struct tokenizer *tok, const json_t *o, struct added_token *t, struct err *err) {
    const char *content = json_string_value(json_object_get(o, "content"));
    const json_t *id = json_object_get(o, "id");
    if (!content || !*content) return err_set(err, E_PARSE, "tokenizer.json: an added token has no content");
    int r = check_id(id, content, err);
    if (r < 0) return r;
    if ((size_t)json_integer_value(id) > tok->bpe.n_ids + 65536)
        return err_set(err, E_RANGE, "tokenizer.json: added token \"%.40s\" has id %lld, the vocabulary %zu", content,
                       (long long)json_integer_value(id), tok->bpe.n_ids);
    *t = (struct added_token){mem_strdup(content),     strlen(content),   (int32_t)json_integer_value(id),
                              flag(o, "single_word"), flag(o, "lstrip"), flag(o, "rstrip"),
                              flag(o, "normalized"),  flag(o, "special")};
    room_for_id(&tok->bpe, t->id);
    struct piece *p = &tok->bpe.pieces[t->id];
    free(p->bytes);
    p->bytes = mem_strdup(content);
    p->n = (uint32_t)t->n;
    p->special = t->special;
    p->added = true;
    return 0;
}

/* A token that matches normalized text is looked for in its own normalized form. */
static int index_added(struct tokenizer *tok, struct err *err) {
    tok->raw.tokens = tok->normalized.tokens = tok->added;
    for (size_t i = 0; i < tok->n_added; i++) {
        struct added_token *t = &tok->added[i];
        if (!t->normalized || t->special) {
            added_insert(&tok->raw, (int32_t)i);
            continue;
        }
        struct buf form = BUF_INIT(0);
        int r = normalize(tok->normalizers, tok->n_normalizers, &form, t->content, t->n, err);
        if (r < 0) return r;
        free(t->content);
        t->n = form.n;
        t->content = buf_take(&form);
        added_insert(&tok->normalized, (int32_t)i);
    }
    return 0;
}

static int load_added(struct tokenizer *tok, const json_t *list, struct err *err) {
    tok->added = mem_zalloc(json_array_size(list), sizeof *tok->added);
    for (size_t i = 0; i < json_array_size(list); i++) {
        int r = load_one_added(tok, json_array_get(list, i), &tok->added[i], err);
        if (r < 0) return r;
        tok->n_added++;
    }
    return index_added(tok, err);
}

/* ---------------------------------------------------------------- normalizer, pre-tokenizer */

static int load_normalizer(struct tokenizer *tok, const json_t *part, struct err *err) {
    size_t n = n_steps(part, "normalizers");
    if (n > MAX_STEPS) return err_set(err, E_UNSUPPORTED, "tokenizer.json: more than %d normalizers", MAX_STEPS);
    for (size_t i = 0; i < n; i++) {
        const json_t *o = step_at(part, "normalizers", i);
        struct normalize_step *s = &tok->normalizers[i];
        const char *type = type_of(o), *to = NULL, *from = NULL;
        if (strcmp(type, "Prepend") == 0) {
            s->kind = NORMALIZE_PREPEND;
            to = json_string_value(json_object_get(o, "prepend"));
        } else if (strcmp(type, "Replace") == 0) {
            s->kind = NORMALIZE_REPLACE;
            from = json_string_value(json_object_get(json_object_get(o, "pattern"), "String"));
            to = json_string_value(json_object_get(o, "content"));
            if (!from || !*from) return unsupported(err, "normalizer Replace", "pattern that is not a String");
        } else if (strcmp(type, "NFC") == 0) s->kind = NORMALIZE_NFC;
        else if (strcmp(type, "NFKC") == 0) s->kind = NORMALIZE_NFKC;
        else return unsupported(err, "normalizer.type", type);
        if ((s->kind == NORMALIZE_PREPEND || s->kind == NORMALIZE_REPLACE) && !to)
            return err_set(err, E_PARSE, "tokenizer.json: normalizer %s has no text", type);
        s->from = mem_strdup(from);
        s->to = mem_strdup(to);
        tok->n_normalizers++;
    }
    return 0;
}

static int load_split(struct tokenizer *tok, const json_t *o, struct err *err) {
    const json_t *pattern = json_object_get(o, "pattern");
    const char *regex = json_string_value(json_object_get(pattern, "Regex"));
    const char *literal = json_string_value(json_object_get(pattern, "String"));
    const char *behavior = json_string_value(json_object_get(o, "behavior"));
    struct split_step *s = &tok->splits[tok->n_splits];
    if (!behavior || (strcmp(behavior, "Isolated") != 0 && strcmp(behavior, "Removed") != 0))
        return unsupported(err, "pre_tokenizer.behavior", behavior);
    if (!regex && (!literal || strstr(literal, "\\E"))) return unsupported(err, "pre_tokenizer.pattern", literal);
    s->removed = strcmp(behavior, "Removed") == 0;
    s->invert = flag(o, "invert");
    struct buf text = BUF_INIT(65536);
    if (regex) buf_puts(&text, regex);
    else buf_printf(&text, "\\Q%s\\E", literal);
    int r = text.full ? err_set(err, E_RANGE, "tokenizer.json: a pattern is longer than 64 KiB")
                      : split_compile(s, text.data, text.n, err);
    buf_clear(&text);
    if (r == 0) tok->n_splits++;
    return r;
}

static int load_pre_tokenizer(struct tokenizer *tok, const json_t *part, struct err *err) {
    size_t n = n_steps(part, "pretokenizers");
    if (n > MAX_STEPS) return err_set(err, E_UNSUPPORTED, "tokenizer.json: more than %d pre-tokenizers", MAX_STEPS);
    for (size_t i = 0; i < n; i++) {
        const json_t *o = step_at(part, "pretokenizers", i);
        const char *type = type_of(o);
        int r = 0;
        if (strcmp(type, "Split") == 0) r = load_split(tok, o, err);
        else if (strcmp(type, "ByteLevel") == 0) {
            tok->bpe.byte_level = true;
            if (flag(o, "add_prefix_space") && i > 0)
                return unsupported(err, "pre_tokenizer ByteLevel", "add_prefix_space behind another step");
            tok->prefix_space = flag(o, "add_prefix_space");
            const json_t *use = json_object_get(o, "use_regex");
            if (!use || json_is_true(use)) {
                r = split_compile(&tok->splits[tok->n_splits], GPT2_PATTERN, sizeof GPT2_PATTERN - 1, err);
                if (r == 0) tok->n_splits++;
            }
        } else r = unsupported(err, "pre_tokenizer.type", type);
        if (r < 0) return r;
    }
    return 0;
}

/* ---------------------------------------------------------------- post-processor, decoder */

static int load_template_part(struct tokenizer *tok, const json_t *post, const json_t *item, bool *seen_text,
                              struct err *err) {
    const json_t *special = json_object_get(item, "SpecialToken");
    if (!special) {
        *seen_text = true;
        return 0;
    }
    const char *name = json_string_value(json_object_get(special, "id"));
    const json_t *ids = name ? json_object_get(json_object_get(json_object_get(post, "special_tokens"), name), "ids") : NULL;
    if (!json_is_array(ids))
        return err_set(err, E_PARSE, "tokenizer.json: post_processor names a token \"%s\" that it does not define",
                       name ? name : "?");
    for (size_t i = 0; i < json_array_size(ids); i++) {
        int r = check_id(json_array_get(ids, i), name, err);
        if (r < 0) return r;
        token_list_push(*seen_text ? &tok->after : &tok->before, (int32_t)json_integer_value(json_array_get(ids, i)));
    }
    return 0;
}

static int load_post_processor(struct tokenizer *tok, const json_t *part, struct err *err) {
    for (size_t i = 0; i < n_steps(part, "processors"); i++) {
        const json_t *o = step_at(part, "processors", i), *single = json_object_get(o, "single");
        const char *type = type_of(o);
        if (strcmp(type, "ByteLevel") == 0) continue; /* concerns offsets alone */
        if (strcmp(type, "TemplateProcessing") != 0) return unsupported(err, "post_processor.type", type);
        bool seen_text = false;
        for (size_t k = 0; k < json_array_size(single); k++) {
            int r = load_template_part(tok, o, json_array_get(single, k), &seen_text, err);
            if (r < 0) return r;
        }
    }
    return 0;
}

static int load_decoder_step(struct tokenizer *tok, const json_t *o, struct err *err) {
    const char *type = type_of(o);
    if (strcmp(type, "ByteLevel") == 0) tok->decode_bytes = true;
    else if (strcmp(type, "ByteFallback") == 0) tok->decode_fallback = true;
    else if (strcmp(type, "Fuse") == 0) return 0; /* tokens are always joined without a gap */
    else if (strcmp(type, "Replace") == 0) {
        const char *from = json_string_value(json_object_get(json_object_get(o, "pattern"), "String"));
        const char *to = json_string_value(json_object_get(o, "content"));
        if (!from || !*from || !to || tok->decode_from) return unsupported(err, "decoder Replace", from);
        tok->decode_from = mem_strdup(from);
        tok->decode_to = mem_strdup(to);
    } else if (strcmp(type, "Strip") == 0) {
        const char *content = json_string_value(json_object_get(o, "content"));
        json_int_t start = json_integer_value(json_object_get(o, "start"));
        if (!content || strlen(content) != 1 || json_integer_value(json_object_get(o, "stop")) != 0 || start < 0 || start > 16)
            return unsupported(err, "decoder Strip", content);
        tok->strip_char = content[0];
        tok->strip_start = (int32_t)start;
    } else return unsupported(err, "decoder.type", type);
    return 0;
}

/* What a token says before bytes are joined, worked out once. */
static void prepare_texts(struct tokenizer *tok) {
    struct normalize_step replace = {NORMALIZE_REPLACE, tok->decode_from, tok->decode_to};
    for (size_t i = 0; tok->decode_from && i < tok->bpe.n_ids; i++) {
        struct piece *p = &tok->bpe.pieces[i];
        if (!p->bytes || !memmem(p->bytes, p->n, tok->decode_from, strlen(tok->decode_from))) continue;
        struct buf text = BUF_INIT(0);
        normalize(&replace, 1, &text, p->bytes, p->n, NULL);
        p->text_n = (uint32_t)text.n;
        p->text = buf_take(&text);
    }
}

static int load_decoder(struct tokenizer *tok, const json_t *part, struct err *err) {
    for (size_t i = 0; i < n_steps(part, "decoders"); i++) {
        int r = load_decoder_step(tok, step_at(part, "decoders", i), err);
        if (r < 0) return r;
    }
    if (tok->decode_bytes && (tok->decode_from || tok->decode_fallback || tok->strip_start))
        return unsupported(err, "decoder", "ByteLevel together with other steps");
    prepare_texts(tok);
    return 0;
}

/* ---------------------------------------------------------------- companions */

/* A token is named by its text, or by an object with its content. */
static char *token_text(const json_t *v) {
    const char *text = json_is_object(v) ? json_string_value(json_object_get(v, "content")) : json_string_value(v);
    return mem_strdup(text);
}

static void take_template(struct tokenizer *tok, const char *source, size_t n) {
    tok->chat_refused.code = 0;
    chat_template_new(&tok->chat, source, n, &tok->chat_refused);
}

/* chat_template: a string, or a list of named ones of which "default" counts. */
static void take_config_template(struct tokenizer *tok, const json_t *v) {
    for (size_t i = 0; json_is_array(v) && i < json_array_size(v); i++) {
        const char *name = json_string_value(json_object_get(json_array_get(v, i), "name"));
        if (name && strcmp(name, "default") == 0) {
            v = json_object_get(json_array_get(v, i), "template");
            break;
        }
    }
    if (json_is_string(v)) take_template(tok, json_string_value(v), json_string_length(v));
}

static int load_companions(struct tokenizer *tok, const char *dir, struct err *err) {
    char *config_path = path_join(dir, "tokenizer_config.json"), *jinja_path = path_join(dir, "chat_template.jinja");
    char *text = NULL;
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
    if (r == 0 && file_read(jinja_path, MAX_CONFIG, &text, &n, NULL) == 0) {
        chat_template_free(tok->chat);
        tok->chat = NULL;
        take_template(tok, text, n);
        free(text);
    }
    free(config_path);
    free(jinja_path);
    return r;
}

int tokenizer_load(struct tokenizer *tok, const char *model_dir, struct err *err) {
    char *path = path_join(model_dir, "tokenizer.json"), *text = NULL;
    size_t n;
    json_error_t why;
    json_t *root = NULL;
    int r = file_read(path, MAX_FILE, &text, &n, err);
    if (r < 0) goto out;
    root = json_loadb(text, n, 0, &why);
    if (!root) r = err_set(err, E_PARSE, "%s:%d: %s", path, why.line, why.text);
    else if (!json_is_object(root)) r = err_set(err, E_PARSE, "%s is not a JSON object", path);
    if (r == 0) r = load_normalizer(tok, json_object_get(root, "normalizer"), err);
    if (r == 0) r = load_pre_tokenizer(tok, json_object_get(root, "pre_tokenizer"), err);
    if (r == 0) r = load_model(tok, json_object_get(root, "model"), err);
    if (r == 0) r = load_added(tok, json_object_get(root, "added_tokens"), err);
    if (r == 0) r = load_post_processor(tok, json_object_get(root, "post_processor"), err);
    if (r == 0) r = load_decoder(tok, json_object_get(root, "decoder"), err);
    if (r == 0) r = load_companions(tok, model_dir, err);
    if (r < 0 && !strstr(err ? err->text : path, model_dir)) err_wrap(err, "%s", model_dir);
out:
    json_decref(root);
    free(text);
    free(path);
    return r;
}
