/* tokenizer_steps.c - the parts of tokenizer.json around the model: normalizer,
 * pre-tokenizer, post-processor, decoder. A part that this program does not have is
 * an error that names the key and the value. */
#include "base/mem.h"
#include "engine/text/tokenizer_private.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_DEPTH = 8 };

/* What GPT-2's own pre-tokenizer splits by. */
static const char GPT2_PATTERN[] =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

/* ASCII's punctuation and Unicode's, as of Unicode 8, which is what the library knows. */
static const char PUNCTUATION_PATTERN[] =
    "(?![\\x{61d}\\x{9fd}\\x{a76}\\x{c77}\\x{c84}\\x{1b7d}-\\x{1b7e}\\x{2e43}-\\x{2e4f}\\x{2e52}-\\x{2e5d}\\x{10ead}"
    "\\x{10f55}-\\x{10f59}\\x{10f86}-\\x{10f89}\\x{1144b}-\\x{1144f}\\x{1145a}-\\x{1145b}\\x{1145d}\\x{11660}-\\x{1166c}"
    "\\x{116b9}\\x{1183b}\\x{11944}-\\x{11946}\\x{119e2}\\x{11a3f}-\\x{11a46}\\x{11a9a}-\\x{11a9c}\\x{11a9e}-\\x{11aa2}"
    "\\x{11c41}-\\x{11c45}\\x{11c70}-\\x{11c71}\\x{11ef7}-\\x{11ef8}\\x{11fff}\\x{12ff1}-\\x{12ff2}\\x{16e97}-\\x{16e9a}"
    "\\x{16fe2}\\x{1e95e}-\\x{1e95f}])[\\p{P}$+<=>^`|~\\x{166d}\\x{111c9}]";

/* \w in the sense of another library than the one that patterns are written for. */
#define WHITESPACE_WORD "\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}\\x{200c}\\x{200d}\\x{24b6}-\\x{24e9}" \
                        "\\x{1f130}-\\x{1f149}\\x{1f150}-\\x{1f169}\\x{1f170}-\\x{1f189}"
static const char WHITESPACE_PATTERN[] = "[" WHITESPACE_WORD "]+|[^\\s" WHITESPACE_WORD "]+";

int unsupported(struct err *err, const char *key, const char *value) {
    return err_set(err, E_UNSUPPORTED, "tokenizer.json: %s \"%.60s\" is not supported", key, value ? value : "?");
}

static int missing(struct err *err, const char *key) {
    return err_set(err, E_PARSE, "tokenizer.json: %s is missing or of another kind", key);
}

static const char *text_at(const json_t *o, const char *key) {
    return json_string_value(json_object_get(o, key));
}

static const char *type_of(const json_t *o) {
    const char *type = text_at(o, "type");
    return type ? type : "";
}

static bool flag_or(const json_t *o, const char *key, bool absent) {
    const json_t *v = json_object_get(o, key);
    return json_is_boolean(v) ? json_is_true(v) : absent;
}

/* ---------------------------------------------------------------- sequences */

typedef int load_one(struct tokenizer *tok, const json_t *o, struct err *err);

/* Call `one` for the part, or for each part of a Sequence, which may hold others. */
static int each_step(struct tokenizer *tok, const json_t *part, const char *list, load_one *one, struct err *err) {
    struct {
        const json_t *items;
        size_t next;
    } stack[MAX_DEPTH];
    int depth = 0, r = 0;
    if (!part || json_is_null(part)) return 0;
    if (strcmp(type_of(part), "Sequence") != 0) return one(tok, part, err);
    stack[0].items = json_object_get(part, list);
    stack[0].next = 0;
    if (!json_is_array(stack[0].items)) return missing(err, list);
    while (r == 0 && depth >= 0) {
        const json_t *o = json_array_get(stack[depth].items, stack[depth].next++);
        if (!o) depth--;
        else if (strcmp(type_of(o), "Sequence") != 0) r = one(tok, o, err);
        else if (!json_is_array(json_object_get(o, list))) r = missing(err, list);
        else if (++depth == MAX_DEPTH) r = unsupported(err, list, "Sequence nested deeper than 8");
        else {
            stack[depth].items = json_object_get(o, list);
            stack[depth].next = 0;
        }
    }
    return r;
}

/* ---------------------------------------------------------------- normalizer */

/* {"String": text} or {"Regex": pattern}; a string stays one where the caller can use it. */
static int load_replace(struct normalize_step *s, const json_t *o, const char *key, struct err *err) {
    const json_t *pattern = json_object_get(o, "pattern");
    const char *literal = text_at(pattern, "String"), *regex = text_at(pattern, "Regex"), *to = text_at(o, "content");
    s->kind = NORMALIZE_REPLACE;
    if ((!literal || !*literal) && !regex) return unsupported(err, key, "Replace without a pattern");
    if (!to) return missing(err, "content of Replace");
    s->to = mem_strdup(to);
    if (literal) {
        s->from = mem_strdup(literal);
        return 0;
    }
    int r = pattern_compile(&s->pattern, regex, strlen(regex), err);
    return r < 0 ? err_wrap(err, "tokenizer.json: %s", key) : 0;
}

static int load_one_normalizer(struct tokenizer *tok, const json_t *o, struct err *err) {
    static const struct {
        const char *type;
        enum normalize_kind kind;
    } plain[] = {{"NFC", NORMALIZE_NFC},   {"NFD", NORMALIZE_NFD},
                 {"NFKC", NORMALIZE_NFKC}, {"NFKD", NORMALIZE_NFKD},
                 {"Lowercase", NORMALIZE_LOWERCASE}, {"StripAccents", NORMALIZE_STRIP_ACCENTS}};
    const char *type = type_of(o);
    if (tok->n_normalizers == MAX_STEPS) return unsupported(err, "normalizer", "more than 32 steps");
    struct normalize_step *s = &tok->normalizers[tok->n_normalizers++];
    for (size_t i = 0; i < sizeof plain / sizeof *plain; i++) {
        if (strcmp(type, plain[i].type) != 0) continue;
        s->kind = plain[i].kind;
        return 0;
    }
    if (strcmp(type, "Replace") == 0) return load_replace(s, o, "normalizer", err);
    if (strcmp(type, "Prepend") == 0) {
        s->kind = NORMALIZE_PREPEND;
        s->to = mem_strdup(text_at(o, "prepend"));
        return s->to ? 0 : missing(err, "prepend of normalizer Prepend");
    }
    if (strcmp(type, "Strip") == 0) {
        s->kind = NORMALIZE_STRIP;
        s->left = flag_or(o, "strip_left", true);
        s->right = flag_or(o, "strip_right", true);
        return 0;
    }
    return unsupported(err, "normalizer.type", type);
}

int load_normalizer(struct tokenizer *tok, const json_t *part, struct err *err) {
    return each_step(tok, part, "normalizers", load_one_normalizer, err);
}

/* ---------------------------------------------------------------- pre-tokenizer */

static struct pre_step *new_pre_step(struct tokenizer *tok, struct err *err) {
    if (tok->n_pre == MAX_STEPS) {
        unsupported(err, "pre_tokenizer", "more than 32 steps");
        return NULL;
    }
    struct pre_step *s = &tok->pre[tok->n_pre++];
    s->letters = tok->vocab.byte_level;
    return s;
}

static int read_behavior(enum split_behavior *out, const json_t *o, const char *absent, struct err *err) {
    static const char *const names[] = {"Isolated", "Removed", "Contiguous", "MergedWithPrevious", "MergedWithNext"};
    const char *name = json_object_get(o, "behavior") ? text_at(o, "behavior") : absent;
    for (size_t i = 0; name && i < sizeof names / sizeof *names; i++) {
        if (strcmp(name, names[i]) != 0) continue;
        *out = (enum split_behavior)i;
        return 0;
    }
    return unsupported(err, "pre_tokenizer.behavior", name);
}

static int add_split(struct tokenizer *tok, const char *pattern, bool is_literal, enum split_behavior behavior,
                     bool invert, struct err *err) {
    struct pre_step *s = new_pre_step(tok, err);
    if (!s) return E_UNSUPPORTED;
    s->kind = PRE_SPLIT;
    s->behavior = behavior;
    s->invert = invert;
    int r = is_literal ? pattern_compile_literal(&s->pattern, pattern, strlen(pattern), err)
                       : pattern_compile(&s->pattern, pattern, strlen(pattern), err);
    return r < 0 ? err_wrap(err, "tokenizer.json: pre_tokenizer") : 0;
}

static int load_split(struct tokenizer *tok, const json_t *o, struct err *err) {
    const json_t *pattern = json_object_get(o, "pattern");
    const char *regex = text_at(pattern, "Regex"), *literal = text_at(pattern, "String");
    enum split_behavior behavior;
    int r = read_behavior(&behavior, o, NULL, err);
    if (r < 0) return r;
    if (!regex && (!literal || !*literal)) return unsupported(err, "pre_tokenizer.pattern", literal);
    return add_split(tok, regex ? regex : literal, !regex, behavior, flag_or(o, "invert", false), err);
}

static int load_byte_level(struct tokenizer *tok, const json_t *o, struct err *err) {
    if (tok->vocab.byte_level) return unsupported(err, "pre_tokenizer", "ByteLevel twice");
    if (flag_or(o, "add_prefix_space", true)) {
        struct pre_step *s = new_pre_step(tok, err);
        if (!s) return E_UNSUPPORTED;
        s->kind = PRE_BYTE_LEVEL;
        s->prepend = PREPEND_ALWAYS;
    }
    int r = flag_or(o, "use_regex", true) ? add_split(tok, GPT2_PATTERN, false, SPLIT_ISOLATED, false, err) : 0;
    tok->vocab.byte_level = true;
    return r;
}

static int read_prepend(enum prepend *out, const json_t *o, struct err *err) {
    const char *scheme = text_at(o, "prepend_scheme");
    *out = flag_or(o, "add_prefix_space", true) ? PREPEND_ALWAYS : PREPEND_NEVER;
    if (!scheme) return 0;
    if (strcmp(scheme, "always") == 0) *out = PREPEND_ALWAYS;
    else if (strcmp(scheme, "first") == 0) *out = PREPEND_FIRST;
    else if (strcmp(scheme, "never") == 0) *out = PREPEND_NEVER;
    else return unsupported(err, "Metaspace.prepend_scheme", scheme);
    return 0;
}

static int read_replacement(char out[5], const json_t *o, struct err *err) {
    const char *text = text_at(o, "replacement");
    if (!text || !*text || strlen(text) > 4) return unsupported(err, "Metaspace.replacement", text);
    strcpy(out, text);
    return 0;
}

static int load_metaspace(struct tokenizer *tok, const json_t *o, struct err *err) {
    struct pre_step *s = new_pre_step(tok, err);
    if (!s) return E_UNSUPPORTED;
    if (tok->vocab.byte_level) return unsupported(err, "pre_tokenizer", "Metaspace behind ByteLevel");
    s->kind = PRE_METASPACE;
    int r = read_replacement(s->space, o, err);
    if (r == 0) r = read_prepend(&s->prepend, o, err);
    if (r < 0 || !flag_or(o, "split", true)) return r;
    return add_split(tok, s->space, true, SPLIT_MERGED_NEXT, false, err);
}

static int load_one_pre_tokenizer(struct tokenizer *tok, const json_t *o, struct err *err) {
    const char *type = type_of(o);
    enum split_behavior behavior;
    if (strcmp(type, "Split") == 0) return load_split(tok, o, err);
    if (strcmp(type, "ByteLevel") == 0) return load_byte_level(tok, o, err);
    if (strcmp(type, "Metaspace") == 0) return load_metaspace(tok, o, err);
    if (strcmp(type, "Whitespace") == 0) return add_split(tok, WHITESPACE_PATTERN, false, SPLIT_REMOVED, true, err);
    if (strcmp(type, "WhitespaceSplit") == 0) return add_split(tok, "\\s", false, SPLIT_REMOVED, false, err);
    if (strcmp(type, "Punctuation") == 0) {
        int r = read_behavior(&behavior, o, "Isolated", err);
        return r < 0 ? r : add_split(tok, PUNCTUATION_PATTERN, false, behavior, false, err);
    }
    if (strcmp(type, "Digits") == 0) {
        behavior = flag_or(o, "individual_digits", false) ? SPLIT_ISOLATED : SPLIT_CONTIGUOUS;
        return add_split(tok, "\\p{N}", false, behavior, false, err);
    }
    return unsupported(err, "pre_tokenizer.type", type);
}

int load_pre_tokenizer(struct tokenizer *tok, const json_t *part, struct err *err) {
    return each_step(tok, part, "pretokenizers", load_one_pre_tokenizer, err);
}

/* ---------------------------------------------------------------- post-processor */

/* Tokens go outside of those that an earlier processor has put there. */
static void put_around(struct tokenizer *tok, struct token_list *before, const struct token_list *after) {
    for (size_t i = 0; i < tok->before.n; i++) token_list_push(before, tok->before.ids[i]);
    token_list_clear(&tok->before);
    tok->before = *before;
    *before = (struct token_list){0};
    for (size_t i = 0; i < after->n; i++) token_list_push(&tok->after, after->ids[i]);
}

static int template_token(const json_t *post, const json_t *special, struct token_list *to, struct err *err) {
    const char *name = text_at(special, "id");
    const json_t *ids = name ? json_object_get(json_object_get(json_object_get(post, "special_tokens"), name), "ids") : NULL;
    if (!json_is_array(ids))
        return err_set(err, E_PARSE, "tokenizer.json: post_processor names a token \"%.60s\" that it does not define",
                       name ? name : "?");
    for (size_t i = 0; i < json_array_size(ids); i++) {
        int r = check_id(json_array_get(ids, i), name, err);
        if (r < 0) return r;
        token_list_push(to, (int32_t)json_integer_value(json_array_get(ids, i)));
    }
    return 0;
}

static int load_template(struct tokenizer *tok, const json_t *o, struct err *err) {
    const json_t *single = json_object_get(o, "single");
    struct token_list before = {0}, after = {0};
    int r = 0, n_texts = 0;
    for (size_t i = 0; r == 0 && i < json_array_size(single); i++) {
        const json_t *item = json_array_get(single, i), *special = json_object_get(item, "SpecialToken");
        const char *text = text_at(json_object_get(item, "Sequence"), "id");
        if (special) r = template_token(o, special, n_texts ? &after : &before, err);
        else if (text && strcmp(text, "A") == 0) n_texts++;
        else r = unsupported(err, "post_processor.single", text);
    }
    if (r == 0 && n_texts != 1) r = unsupported(err, "post_processor.single", "a template without one Sequence A");
    if (r == 0) put_around(tok, &before, &after);
    token_list_clear(&before);
    token_list_clear(&after);
    return r;
}

/* ["</s>", 2] */
static int load_pair(struct token_list *to, const json_t *o, const char *key, struct err *err) {
    const json_t *pair = json_object_get(o, key), *id = json_array_get(pair, 1);
    int r = json_array_size(pair) == 2 ? check_id(id, key, err) : missing(err, key);
    if (r == 0) token_list_push(to, (int32_t)json_integer_value(id));
    return r;
}

static int load_one_post_processor(struct tokenizer *tok, const json_t *o, struct err *err) {
    const char *type = type_of(o);
    if (strcmp(type, "ByteLevel") == 0) return 0; /* concerns offsets alone */
    if (strcmp(type, "TemplateProcessing") == 0) return load_template(tok, o, err);
    if (strcmp(type, "BertProcessing") != 0 && strcmp(type, "RobertaProcessing") != 0)
        return unsupported(err, "post_processor.type", type);
    struct token_list before = {0}, after = {0};
    int r = load_pair(&before, o, "cls", err);
    if (r == 0) r = load_pair(&after, o, "sep", err);
    if (r == 0) put_around(tok, &before, &after);
    token_list_clear(&before);
    token_list_clear(&after);
    return r;
}

int load_post_processor(struct tokenizer *tok, const json_t *part, struct err *err) {
    int r = each_step(tok, part, "processors", load_one_post_processor, err);
    for (int k = 0; r == 0 && k < 2; k++) {
        const struct token_list *l = k ? &tok->after : &tok->before;
        for (size_t i = 0; r == 0 && i < l->n; i++)
            if ((size_t)l->ids[i] >= tok->vocab.n_ids || !tok->vocab.pieces[l->ids[i]].bytes)
                r = err_set(err, E_RANGE, "tokenizer.json: post_processor adds id %d, which no token has", (int)l->ids[i]);
    }
    return r;
}

/* ---------------------------------------------------------------- decoder */

static int load_decoder_strip(struct decoder *d, const json_t *o, struct err *err) {
    const char *content = text_at(o, "content");
    json_int_t start = json_integer_value(json_object_get(o, "start"));
    bool is_plain = content && strlen(content) == 1 && (unsigned char)*content < 0x80;
    if (!is_plain || json_integer_value(json_object_get(o, "stop")) != 0 || start < 0 || start > 1 || d->strip_start)
        return unsupported(err, "decoder Strip", "other than one ASCII character at the start");
    d->strip_char = content[0];
    d->strip_start = (int32_t)start;
    return 0;
}

static int load_decoder_metaspace(struct decoder *d, const json_t *o, struct err *err) {
    if (d->n_steps) return unsupported(err, "decoder", "Metaspace behind another step");
    struct normalize_step *s = &d->steps[d->n_steps++];
    enum prepend prepend;
    char space[5];
    int r = read_replacement(space, o, err);
    if (r == 0) r = read_prepend(&prepend, o, err);
    if (r < 0) return r;
    s->kind = NORMALIZE_REPLACE;
    s->from = mem_strdup(space);
    s->to = mem_strdup(" ");
    if (prepend != PREPEND_NEVER) strcpy(d->first_drops, space);
    return 0;
}

/* Steps that look at tokens one by one, then ByteFallback, then Fuse, then Strip: the
 * order that files have, and the only one that is the same when tokens come singly. */
static int load_one_decoder(struct tokenizer *tok, const json_t *o, struct err *err) {
    struct decoder *d = &tok->decoder;
    const char *type = type_of(o);
    if (strcmp(type, "Fuse") == 0) {
        d->spaced = true; /* seen; load_decoder takes it back */
        return 0;
    }
    if (strcmp(type, "Strip") == 0) {
        if (!d->spaced) return unsupported(err, "decoder", "Strip before Fuse");
        return load_decoder_strip(d, o, err);
    }
    bool is_late = d->spaced || d->fallback || d->bytes || d->n_steps == MAX_STEPS;
    if (is_late || (*d->first_drops && strcmp(type, "ByteFallback") != 0))
        return unsupported(err, "decoder: at this place the step", type);
    if (strcmp(type, "ByteLevel") == 0) d->bytes = true;
    else if (strcmp(type, "ByteFallback") == 0) d->fallback = true;
    else if (strcmp(type, "Metaspace") == 0) return load_decoder_metaspace(d, o, err);
    else if (strcmp(type, "Replace") == 0) return load_replace(&d->steps[d->n_steps++], o, "decoder", err);
    else return unsupported(err, "decoder.type", type);
    return 0;
}

/* What a token says before bytes are joined, worked out once. */
static int prepare_texts(struct tokenizer *tok, struct err *err) {
    struct matcher *m = matcher_new();
    struct decoder *d = &tok->decoder;
    size_t all = 0;
    int r = 0;
    for (size_t i = 0; r == 0 && i < tok->vocab.n_ids; i++) {
        struct piece *p = &tok->vocab.pieces[i];
        if (!p->bytes) continue;
        struct buf text = BUF_INIT(MAX_TOKEN_TEXT);
        const char *said = p->text ? p->text : p->bytes;
        size_t said_n = p->text ? p->text_n : p->n;
        r = normalize(d->steps, d->n_steps, m, &text, said, said_n, err);
        bool foreign;
        if (d->bytes && !tok->vocab.byte_level) {
            free(p->text);
            p->text = bytes_of_letters(text.data ? text.data : "", text.n, &p->text_n, &foreign);
        } else if (text.n != said_n || (text.n && memcmp(text.data, said, text.n) != 0)) {
            free(p->text);
            p->text_n = (uint32_t)text.n;
            p->text = buf_take(&text);
        }
        buf_clear(&text);
        all += p->text_n;
        if (r == 0 && all > MAX_TOKEN_TEXTS)
            r = err_set(err, E_RANGE, "tokenizer.json: decoded tokens have more than 64 MiB");
    }
    matcher_free(m);
    return r;
}

int load_decoder(struct tokenizer *tok, const json_t *part, struct err *err) {
    struct decoder *d = &tok->decoder;
    int r = each_step(tok, part, "decoders", load_one_decoder, err);
    if (r < 0) return r;
    d->spaced = !part || json_is_null(part);
    if (tok->vocab.byte_level && (!d->bytes || d->n_steps))
        return unsupported(err, "decoder", "other than ByteLevel behind a ByteLevel pre-tokenizer");
    return d->n_steps || d->bytes ? prepare_texts(tok, err) : 0;
}
