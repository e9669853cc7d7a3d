/* pattern.c - the patterns of tokenizer.json, under PCRE2.
 *
 * The files are written for Oniguruma with Ruby's syntax. Where the two libraries
 * read a construct differently it is translated, or refused; what \s and \w hold is
 * spelled out. Patterns come with a model, so they run under limits. PCRE2 keeps its
 * state on the heap, or in compiled code with a stack of its own; nothing recurses
 * with the length of a text. */
#include "base/mem.h"
#include "engine/text/tokenizer_private.h"

#include <stdlib.h>
#include <string.h>

enum { HAS_SCRIPT_PREFIX = PCRE2_MAJOR > 10 || PCRE2_MINOR >= 40 };
enum { MATCH_LIMIT = 50000000, HEAP_LIMIT_KIB = 262144, MAX_PATTERN = 65536 };

struct pattern {
    pcre2_code *code;
    bool compiled;      /* by the just-in-time compiler */
    bool matches_empty;
};

struct matcher {
    pcre2_match_data *data;
    pcre2_match_context *context;
};

/* ---------------------------------------------------------------- translation */

#define SPACES "\\x{9}-\\x{d} \\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}"
#define CLASS_WORD "\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}\\x{24b6}-\\x{24e9}\\x{1f130}-\\x{1f149}" \
                   "\\x{1f150}-\\x{1f169}\\x{1f170}-\\x{1f189}"
#define WORD CLASS_WORD "\\x{b2}\\x{b3}\\x{b9}\\x{bc}-\\x{be}" /* outside of classes these count, too */

struct escape {
    char letter;
    const char *outside, *inside; /* of a class; NULL = refused there */
};

static const struct escape escapes[] = {
    {'s', "[" SPACES "]", SPACES},
    {'S', "[^" SPACES "]", "\\S\\x{180e}"}, /* PCRE2 alone takes U+180E for a space */
    {'w', "[" WORD "]", CLASS_WORD},
    {'W', "[^" WORD "]", NULL},
    {'h', "[0-9a-fA-F]", "0-9a-fA-F"},
    {'H', "[^0-9a-fA-F]", NULL},
    {'d', "\\d", "\\d"},
    {'D', "\\D", "\\D"},
    {'n', "\\n", "\\n"},
    {'r', "\\r", "\\r"},
    {'t', "\\t", "\\t"},
    {'f', "\\f", "\\f"},
    {'v', "\\x{b}", "\\x{b}"}, /* a vertical tab; to PCRE2 a set */
    {'a', "\\a", "\\a"},
    {'e', "\\e", "\\e"},
    {'p', "\\p", "\\p"},
    {'P', "\\P", "\\P"},
    {'x', "\\x", "\\x"},
    {'b', "(?:(?<=[" WORD "])(?![" WORD "])|(?<![" WORD "])(?=[" WORD "]))", "\\b"},
    {'B', "(?:(?<=[" WORD "])(?=[" WORD "])|(?<![" WORD "])(?![" WORD "]))", NULL},
    {'A', "\\A", NULL},
    {'z', "\\z", NULL},
    {'Z', "\\Z", NULL},
};

struct translation {
    struct buf out;
    const char *at, *end;
    int in_class; /* how deep: a class in a class adds to it */
};

static int refuse(struct err *err, const char *what, const char *at, const char *end) {
    int shown = (int)(end - at < 8 ? end - at : 8);
    return err_set(err, E_UNSUPPORTED, "pattern: %s \"%.*s\" is not supported", what, shown, at);
}

static bool is_ascii_alnum(char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

/* \uHHHH */
static int translate_u(struct translation *t, struct err *err) {
    const char *digits = t->at + 2;
    if (t->end - digits < 4 || strspn(digits, "0123456789abcdefABCDEF") < 4) return refuse(err, "escape", t->at, t->end);
    buf_printf(&t->out, "\\x{%.4s}", digits);
    t->at += 6;
    return 0;
}

/* Of \p{L}, \p{^Han}, \x{41}. To newer PCRE2 the name of a script alone stands for more than the script. */
static void copy_braces(struct translation *t, bool is_property) {
    if (t->at == t->end || *t->at != '{') return;
    const char *close = memchr(t->at, '}', (size_t)(t->end - t->at));
    size_t n = close ? (size_t)(close + 1 - t->at) : 1, open = n > 1 && t->at[1] == '^' ? 2 : 1;
    bool is_script = is_property && n - open > 3 && strncmp(t->at + open, "Any}", 4) != 0;
    buf_append(&t->out, t->at, open);
    if (is_script && HAS_SCRIPT_PREFIX) buf_puts(&t->out, "sc:");
    buf_append(&t->out, t->at + open, n - open);
    t->at += n;
}

static int translate_escape(struct translation *t, struct err *err) {
    if (t->end - t->at < 2) return err_set(err, E_PARSE, "pattern ends in a backslash");
    char c = t->at[1];
    if (c == 'u') return translate_u(t, err);
    if (!is_ascii_alnum(c)) {
        buf_append(&t->out, t->at, 2);
        t->at += 2;
        return 0;
    }
    for (size_t i = 0; i < sizeof escapes / sizeof *escapes; i++) {
        const char *as = t->in_class ? escapes[i].inside : escapes[i].outside;
        if (escapes[i].letter != c || !as) continue;
        buf_puts(&t->out, as);
        t->at += 2;
        if (strchr("pPx", c)) copy_braces(t, c != 'x');
        return 0;
    }
    return refuse(err, "escape", t->at, t->end);
}

/* [:name:], as a member of a class. The others hold what no short set of PCRE2's is equal to. */
static int translate_named_class(struct translation *t, struct err *err) {
    static const struct {
        const char *name, *as;
    } known[] = {{"[:digit:]", "\\d"},          {"[:^digit:]", "\\D"},   {"[:xdigit:]", "0-9a-fA-F"}, {"[:space:]", SPACES},
                 {"[:blank:]", "\\x{9}\\p{Zs}"}, {"[:word:]", CLASS_WORD}, {"[:punct:]", "\\p{P}\\p{S}"}, {"[:cntrl:]", "\\p{Cc}"}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        size_t n = strlen(known[i].name);
        if ((size_t)(t->end - t->at) < n || memcmp(t->at, known[i].name, n) != 0) continue;
        buf_puts(&t->out, known[i].as);
        t->at += n;
        return 0;
    }
    return refuse(err, "class", t->at, t->end);
}

static int translate_in_class(struct translation *t, struct err *err) {
    const char next = t->end - t->at > 1 ? t->at[1] : '\0';
    if (t->at[0] == '[' && (next == '^' || next == ']')) return refuse(err, "a class in a class,", t->at, t->end);
    if (t->at[0] == '[' && next != ':') { /* [a[bc]] is [abc] */
        t->in_class++;
        t->at++;
        return 0;
    }
    if (t->at[0] == '[') return translate_named_class(t, err);
    if (t->at[0] == '&' && next == '&') return refuse(err, "intersection", t->at, t->end);
    if (t->at[0] != ']' || --t->in_class == 0) buf_putc(&t->out, *t->at);
    t->at++;
    return 0;
}

/* The start of a class, with a ']' that stands first and so is a member. */
static void enter_class(struct translation *t) {
    t->in_class = 1;
    buf_putc(&t->out, *t->at++);
    if (t->at < t->end && *t->at == '^') buf_putc(&t->out, *t->at++);
    if (t->at < t->end && *t->at == ']') {
        buf_puts(&t->out, "\\]");
        t->at++;
    }
}

/* (?m) lets a dot match newlines in Ruby, and (?x) begins another syntax. */
static int check_group(const struct translation *t, struct err *err) {
    if (t->end - t->at < 3 || t->at[0] != '(') return 0;
    if (t->at[1] == '*') return refuse(err, "verb", t->at, t->end);
    if (t->at[1] != '?') return 0;
    if (strchr("RPC|&+(0123456789", t->at[2])) return refuse(err, "group", t->at, t->end);
    for (const char *p = t->at + 2; p < t->end && *p != ':' && *p != ')'; p++) {
        if (*p != 'i' && *p != '-' && *p != 'm' && *p != 'x') return 0;
        if (*p != 'i' && *p != '-') return refuse(err, "flag", t->at, t->end);
        if (p + 1 < t->end && p[1] == ')') return refuse(err, "flag without a group", t->at, t->end);
    }
    return 0;
}

/* {n,m}. To Ruby {,m} is a quantifier too, and a + behind it repeats it once more. */
static int translate_interval(struct translation *t, struct err *err) {
    const char *p = t->at + 1 + strspn(t->at + 1, "0123456789,");
    if (p == t->at + 1 || p >= t->end || *p != '}') {
        buf_puts(&t->out, "\\{");
        t->at++;
        return 0;
    }
    if (p + 1 < t->end && p[1] == '+') return refuse(err, "repetition", t->at, t->end);
    buf_puts(&t->out, t->at[1] == ',' ? "{0" : "{");
    buf_append(&t->out, t->at + 1, (size_t)(p - t->at));
    t->at = p + 1;
    return 0;
}

static int translate(struct translation *t, struct err *err) {
    int r = 0;
    while (r == 0 && t->at < t->end) {
        if (*t->at == '\\') r = translate_escape(t, err);
        else if (t->in_class) r = translate_in_class(t, err);
        else if (*t->at == '[') enter_class(t);
        else if (*t->at == '{') r = translate_interval(t, err);
        else {
            r = check_group(t, err);
            buf_putc(&t->out, *t->at++);
        }
    }
    if (r == 0 && t->out.full) r = err_set(err, E_RANGE, "pattern is longer than 64 KiB");
    return r;
}

/* ---------------------------------------------------------------- compilation */

static int compile(struct pattern **out, const char *regex, size_t n, uint32_t flags, struct err *err) {
    int code;
    PCRE2_SIZE at;
    pcre2_code *compiled = pcre2_compile((PCRE2_SPTR)regex, n, flags | PCRE2_UTF, &code, &at, NULL);
    if (!compiled) {
        PCRE2_UCHAR text[200];
        pcre2_get_error_message(code, text, sizeof text);
        return err_set(err, E_PARSE, "pattern: %s at offset %zu", (const char *)text, (size_t)at);
    }
    uint32_t empty = 1;
    pcre2_pattern_info(compiled, PCRE2_INFO_MATCHEMPTY, &empty);
    struct pattern *p = mem_zalloc(1, sizeof *p);
    p->code = compiled;
    p->matches_empty = empty;
    p->compiled = pcre2_jit_compile(compiled, PCRE2_JIT_COMPLETE) == 0; /* slower without, but the same */
    *out = p;
    return 0;
}

int pattern_compile(struct pattern **out, const char *regex, size_t n, struct err *err) {
    struct translation t = {.out = BUF_INIT(MAX_PATTERN), .at = regex, .end = regex + n};
    int r = translate(&t, err);
    if (r == 0) r = compile(out, t.out.data ? t.out.data : "", t.out.n, PCRE2_UCP | PCRE2_MULTILINE, err);
    buf_clear(&t.out);
    return r;
}

int pattern_compile_literal(struct pattern **out, const char *text, size_t n, struct err *err) {
    return compile(out, text, n, PCRE2_LITERAL, err);
}

void pattern_free(struct pattern *p) {
    if (!p) return;
    pcre2_code_free(p->code);
    free(p);
}

/* ---------------------------------------------------------------- matching */

struct matcher *matcher_new(void) {
    struct matcher *m = mem_zalloc(1, sizeof *m);
    m->data = pcre2_match_data_create(1, NULL);
    m->context = pcre2_match_context_create(NULL);
    if (!m->data || !m->context) abort();
    pcre2_set_match_limit(m->context, MATCH_LIMIT);
    pcre2_set_heap_limit(m->context, HEAP_LIMIT_KIB);
    return m;
}

void matcher_free(struct matcher *m) {
    if (!m) return;
    pcre2_match_data_free(m->data);
    pcre2_match_context_free(m->context);
    free(m);
}

static int search(const struct pattern *p, struct matcher *m, const char *text, size_t n, size_t from, struct err *err) {
    int r = PCRE2_ERROR_JIT_STACKLIMIT;
    if (p->compiled) r = pcre2_jit_match(p->code, (PCRE2_SPTR)text, n, from, 0, m->data, m->context);
    if (r == PCRE2_ERROR_JIT_STACKLIMIT)
        r = pcre2_match(p->code, (PCRE2_SPTR)text, n, from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, m->data, m->context);
    if (r >= 0) return 1; /* 0: more groups than there is room for, which nobody asks about */
    if (r == PCRE2_ERROR_NOMATCH) return 0;
    return err_set(err, E_RANGE, "a pattern of the tokenizer runs into its limits on this text (PCRE2 error %d)", r);
}

static size_t behind_char(const char *text, size_t n, size_t at) {
    at++;
    while (at < n && ((unsigned char)text[at] & 0xc0) == 0x80) at++;
    return at;
}

int pattern_next(const struct pattern *p, struct matcher *m, struct pattern_search *s, const char *text, size_t n,
                 struct text_span *out, struct err *err) {
    while (s->from < n || (s->from == n && p->matches_empty)) {
        int r = search(p, m, text, n, s->from, err);
        if (r <= 0) return r;
        const PCRE2_SIZE *at = pcre2_get_ovector_pointer(m->data);
        if (at[1] < at[0]) return err_set(err, E_UNSUPPORTED, "a pattern of the tokenizer matches backwards");
        if (at[0] == at[1] && s->any && s->last_end == at[1]) {
            s->from = behind_char(text, n, s->from);
            continue;
        }
        *out = (struct text_span){at[0], at[1]};
        s->from = s->last_end = at[1];
        s->any = true;
        return 1;
    }
    return 0;
}
