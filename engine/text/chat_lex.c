/* chat_lex.c - a template's text as tokens, with the white space that tags take.
 *
 * Inside a tag } ends nothing while a bracket is open, so {{ {'a': {}} }} is one tag. */
#include "base/mem.h"
#include "base/utf8.h"
#include "engine/text/chat_tree.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

struct lexer {
    struct arena *arena;
    struct token_array *out;
    const char *s;      /* newlines are \n alone */
    size_t n, at;
    int line;
    bool line_starting; /* what was read last ended with a newline */
    char open[CHAT_MAX_NESTING]; /* brackets of the tag that wait for their end */
    int n_open;
    struct err *err;
    int r;
};

static bool fail(struct lexer *l, int code, const char *what, const char *text, size_t n) {
    if (l->r == 0)
        l->r = err_set(l->err, code, "line %d: %s%s%.*s%s", l->line, what, n ? " \"" : "", (int)(n > 40 ? 40 : n), text,
                       n ? "\"" : "");
    return false;
}

static struct token *push(struct lexer *l, enum token_kind kind) {
    struct token_array *a = l->out;
    if (a->n == a->cap) {
        a->cap = a->cap ? 2 * a->cap : 256;
        a->tokens = mem_realloc(a->tokens, a->cap, sizeof *a->tokens);
    }
    struct token *t = &a->tokens[a->n++];
    *t = (struct token){.kind = kind, .line = l->line};
    return t;
}

static char at(const struct lexer *l, size_t i) {
    return i < l->n ? l->s[i] : '\0';
}

/* Go on to `to`; newlines on the way count. */
static void advance(struct lexer *l, size_t to) {
    for (size_t i = l->at; i < to; i++) l->line += l->s[i] == '\n';
    if (to > l->at) l->line_starting = l->s[to - 1] == '\n';
    l->at = to;
}

static size_t skip_space(const struct lexer *l, size_t i) {
    for (size_t len; i < l->n && is_python_space(utf8_decode(l->s + i, l->n - i, &len)); i += len) {}
    return i;
}

static size_t strip_end(const struct lexer *l, size_t begin, size_t end) {
    while (end > begin) {
        size_t i = end - 1, len;
        while (i > begin && ((unsigned char)l->s[i] & 0xc0) == 0x80) i--;
        if (!is_python_space(utf8_decode(l->s + i, end - i, &len))) break;
        end = i;
    }
    return end;
}

/* ---------------------------------------------------------------- text between tags */

/* lstrip_blocks: white space alone between the start of the line and a tag goes. */
static size_t strip_line(const struct lexer *l, size_t begin, size_t end) {
    size_t line = end;
    while (line > begin && l->s[line - 1] != '\n') line--;
    if (line == begin && !l->line_starting) return end;
    return skip_space(l, line) >= end ? line : end;
}

/* Text [l->at, end), which a tag ends with this sign; lstrip: not an output. */
static void push_text(struct lexer *l, size_t end, char sign, bool lstrip) {
    size_t begin = l->at, cut = end;
    if (sign == '-') cut = strip_end(l, begin, end);
    else if (sign != '+' && lstrip) cut = strip_line(l, begin, end);
    if (cut == begin) return;
    struct token *t = push(l, TOKEN_DATA);
    t->text = l->s + begin;
    t->n = cut - begin;
}

static char sign_at(const struct lexer *l, size_t i) {
    char c = at(l, i);
    return c == '-' || c == '+' ? c : 0;
}

/* Does a block tag of this one word begin at i ({% raw %})? *sign and *end are set. */
static bool is_word_tag(const struct lexer *l, size_t i, const char *word, char *sign, size_t *end) {
    size_t n = strlen(word);
    if (at(l, i) != '{' || at(l, i + 1) != '%') return false;
    *sign = sign_at(l, i + 2);
    size_t k = skip_space(l, i + 2 + (*sign != 0));
    if (l->n - k < n || memcmp(l->s + k, word, n) != 0) return false;
    k = skip_space(l, k + n);
    *end = k;
    if (at(l, k) == '-' || at(l, k) == '+') k++;
    return at(l, k) == '%' && at(l, k + 1) == '}';
}

/* Behind the end of a block or comment tag at i: its sign, two characters, and then all white
 * space with -, nothing with +, else one newline (trim_blocks). */
static size_t behind_end(const struct lexer *l, size_t i, bool trim) {
    char sign = sign_at(l, i);
    i += 2 + (sign != 0);
    if (sign == '-') return skip_space(l, i);
    return !sign && trim && at(l, i) == '\n' ? i + 1 : i;
}

static bool lex_raw(struct lexer *l, size_t begin_end) {
    advance(l, behind_end(l, begin_end, false));
    size_t end;
    char sign;
    for (size_t i = l->at; i < l->n; i++) {
        if (l->s[i] != '{' || !is_word_tag(l, i, "endraw", &sign, &end)) continue;
        push_text(l, i, sign, true);
        advance(l, behind_end(l, end, true));
        return true;
    }
    return fail(l, E_PARSE, "a raw block does not end", "", 0);
}

static bool lex_comment(struct lexer *l, size_t i) {
    for (; i + 1 < l->n; i++) {
        if (l->s[i] != '#' || l->s[i + 1] != '}') continue;
        bool sign = i > l->at && sign_at(l, i - 1);
        advance(l, behind_end(l, i - sign, true));
        return true;
    }
    return fail(l, E_PARSE, "a comment does not end", "", 0);
}

/* ---------------------------------------------------------------- inside a tag */

static bool is_name_start(char c) {
    return isalpha((unsigned char)c) || c == '_';
}

static void lex_name(struct lexer *l) {
    size_t i = l->at;
    while (is_name_start(at(l, i)) || isdigit((unsigned char)at(l, i))) i++;
    struct token *t = push(l, TOKEN_NAME);
    t->text = l->s + l->at;
    t->n = i - l->at;
    advance(l, i);
}

static size_t digits(const struct lexer *l, size_t i) {
    while (isdigit((unsigned char)at(l, i)) || (at(l, i) == '_' && isdigit((unsigned char)at(l, i + 1)))) i++;
    return i;
}

static size_t radix_end(const struct lexer *l, int *radix) {
    char c = (char)tolower((unsigned char)at(l, l->at + 1));
    *radix = at(l, l->at) != '0' ? 10 : c == 'x' ? 16 : c == 'o' ? 8 : c == 'b' ? 2 : 10;
    size_t i = l->at + 2;
    while (isxdigit((unsigned char)at(l, i)) || at(l, i) == '_') i++;
    return *radix == 10 ? digits(l, l->at) : i;
}

static bool lex_number(struct lexer *l) {
    int radix;
    size_t end = radix_end(l, &radix);
    bool real = false;
    if (radix == 10 && at(l, end) == '.' && isdigit((unsigned char)at(l, end + 1)) && (l->at == 0 || l->s[l->at - 1] != '.'))
        real = true, end = digits(l, end + 1);
    if (radix == 10 && (at(l, end) == 'e' || at(l, end) == 'E')) {
        size_t i = end + 1 + (at(l, end + 1) == '-' || at(l, end + 1) == '+');
        if (isdigit((unsigned char)at(l, i))) real = true, end = digits(l, i);
    }
    char text[64];
    size_t n = 0;
    for (size_t i = l->at + (radix == 10 ? 0 : 2); i < end && n < sizeof text - 1; i++)
        if (l->s[i] != '_') text[n++] = l->s[i];
    text[n] = '\0';
    struct token *t = push(l, real ? TOKEN_FLOAT : TOKEN_INT);
    char *rest = text;
    if (n >= sizeof text - 1) return fail(l, E_RANGE, "a number is too long", l->s + l->at, end - l->at);
    t->real = real ? strtod(text, &rest) : 0;
    if (!real) {
        unsigned long long u = strtoull(text, &rest, radix);
        if (u > INT64_MAX) return fail(l, E_RANGE, "a number is too large", text, n);
        t->number = (int64_t)u;
        if (radix == 10 && n > 1 && text[0] == '0' && u > 0) rest = text;
    }
    if (*rest || n == 0) return fail(l, E_PARSE, "not a number:", l->s + l->at, end - l->at);
    advance(l, end);
    return true;
}

/* Hexadecimal of exactly n digits at *i, as UTF-8. */
static bool unescape_code(struct lexer *l, size_t *i, size_t n, char *out, size_t *out_n) {
    int32_t cp = 0;
    for (size_t k = 0; k < n; k++) {
        char c = at(l, *i + k);
        if (!isxdigit((unsigned char)c)) return fail(l, E_PARSE, "an escape in a string is cut short", "", 0);
        cp = cp * 16 + (isdigit((unsigned char)c) ? c - '0' : tolower((unsigned char)c) - 'a' + 10);
        if (cp > 0x10ffff) return fail(l, E_PARSE, "an escape in a string is no character", "", 0);
    }
    if (cp >= 0xd800 && cp < 0xe000) return fail(l, E_UNSUPPORTED, "a surrogate in a string", "", 0);
    *out_n += utf8_encode(cp, out + *out_n);
    *i += n;
    return true;
}

/* The escape behind a backslash at *i - 1, as Python reads it. */
static bool unescape(struct lexer *l, size_t *i, char *out, size_t *n) {
    static const char names[] = "nrtabfv\\'\"", codes[] = "\n\r\t\a\b\f\v\\'\"";
    char c = at(l, (*i)++);
    const char *p = c ? strchr(names, c) : NULL;
    if (p) return out[(*n)++] = codes[p - names], true;
    if (c == '\n') return true;
    if (c == 'x') return unescape_code(l, i, 2, out, n);
    if (c == 'u') return unescape_code(l, i, 4, out, n);
    if (c == 'U') return unescape_code(l, i, 8, out, n);
    if (c == 'N') return fail(l, E_UNSUPPORTED, "unsupported escape", "\\N", 2);
    if (c >= '0' && c <= '7') {
        int32_t cp = c - '0';
        for (int k = 0; k < 2 && at(l, *i) >= '0' && at(l, *i) <= '7'; k++) cp = cp * 8 + at(l, (*i)++) - '0';
        *n += utf8_encode(cp, out + *n);
        return true;
    }
    out[(*n)++] = '\\';
    out[(*n)++] = c;
    return true;
}

static bool lex_string(struct lexer *l) {
    char quote = l->s[l->at];
    size_t end = l->at + 1, n = 0;
    while (end < l->n && l->s[end] != quote) end += l->s[end] == '\\' ? 2 : 1;
    if (end >= l->n) return fail(l, E_PARSE, "a string does not end", "", 0);
    struct token *t = push(l, TOKEN_STRING);
    char *out = arena_alloc(l->arena, end - l->at + 1);
    for (size_t i = l->at + 1; i < end;) {
        char c = l->s[i++];
        if (c != '\\') out[n++] = c;
        else if (!unescape(l, &i, out, &n)) return false;
    }
    t->text = out;
    t->n = n;
    advance(l, end + 1);
    return true;
}

static bool lex_bracket(struct lexer *l, char c) {
    if (strchr("([{", c)) {
        if (l->n_open == CHAT_MAX_NESTING) return fail(l, E_RANGE, "brackets are nested too deeply", "", 0);
        l->open[l->n_open++] = c == '(' ? ')' : c == '[' ? ']' : '}';
    } else if (strchr(")]}", c)) {
        if (l->n_open == 0 || l->open[--l->n_open] != c) return fail(l, E_PARSE, "a bracket without its beginning:", &c, 1);
    }
    return true;
}

static bool lex_operator(struct lexer *l) {
    static const struct {
        char text[3];
        int op;
    } pairs[] = {{"==", OP_EQ}, {"!=", OP_NE}, {"<=", OP_LE}, {">=", OP_GE}, {"**", OP_POWER}, {"//", OP_FLOOR}};
    char c = l->s[l->at];
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++)
        if (c == pairs[i].text[0] && at(l, l->at + 1) == pairs[i].text[1]) {
            push(l, TOKEN_OPERATOR)->op = pairs[i].op;
            advance(l, l->at + 2);
            return true;
        }
    if (!strchr("+-*/%~[](){}<>=.:|,;", c)) {
        size_t len;
        utf8_decode(l->s + l->at, l->n - l->at, &len);
        return fail(l, E_PARSE, "unexpected character", l->s + l->at, len);
    }
    push(l, TOKEN_OPERATOR)->op = c;
    advance(l, l->at + 1);
    return lex_bracket(l, c);
}

/* The end of the tag, where it stands here. */
static bool lex_tag_end(struct lexer *l, char kind) {
    char sign = sign_at(l, l->at), closer = kind == '{' ? '}' : '%';
    if (l->n_open > 0 || (kind == '{' && sign == '+')) return false;
    size_t i = l->at + (sign != 0);
    if (at(l, i) != closer || at(l, i + 1) != '}') return false;
    push(l, kind == '{' ? TOKEN_OUTPUT_END : TOKEN_BLOCK_END);
    advance(l, behind_end(l, l->at, kind == '%'));
    return true;
}

static bool lex_tag(struct lexer *l, char kind) {
    l->n_open = 0;
    push(l, kind == '{' ? TOKEN_OUTPUT_BEGIN : TOKEN_BLOCK_BEGIN);
    while (l->r == 0) {
        advance(l, skip_space(l, l->at));
        if (l->at >= l->n) return fail(l, E_PARSE, "a tag does not end", "", 0);
        if (lex_tag_end(l, kind)) return true;
        char c = l->s[l->at];
        if (is_name_start(c)) lex_name(l);
        else if (isdigit((unsigned char)c)) lex_number(l);
        else if (c == '\'' || c == '"') lex_string(l);
        else lex_operator(l);
    }
    return false;
}

/* ---------------------------------------------------------------- the whole */

static size_t next_tag(const struct lexer *l) {
    for (size_t i = l->at; i + 1 < l->n; i++)
        if (l->s[i] == '{' && strchr("%{#", l->s[i + 1]) && l->s[i + 1]) return i;
    return l->n;
}

static void lex_all(struct lexer *l) {
    while (l->r == 0 && l->at < l->n) {
        size_t tag = next_tag(l), raw_end;
        char kind = at(l, tag + 1), sign = sign_at(l, tag + 2), raw_sign;
        push_text(l, tag, tag < l->n ? sign : '+', kind != '{');
        if (tag == l->n) break;
        if (is_word_tag(l, tag, "raw", &raw_sign, &raw_end) && at(l, raw_end) != '+') {
            advance(l, tag);
            lex_raw(l, raw_end);
            continue;
        }
        advance(l, tag + 2 + (sign != 0));
        if (kind == '#') lex_comment(l, l->at);
        else lex_tag(l, kind);
    }
    push(l, TOKEN_END);
}

/* \r\n and \r as \n, and one newline at the end dropped. */
static char *normalized(struct arena *arena, const char *source, size_t *n) {
    char *out = arena_alloc(arena, *n + 1);
    size_t k = 0;
    for (size_t i = 0; i < *n; i++) {
        if (source[i] != '\r') out[k++] = source[i];
        else if (i + 1 == *n || source[i + 1] != '\n') out[k++] = '\n';
    }
    if (k > 0 && out[k - 1] == '\n') k--;
    *n = k;
    return out;
}

int chat_lex(struct arena *arena, struct token_array *out, const char *source, size_t n, struct err *err) {
    struct lexer l = {.arena = arena, .out = out, .n = n, .line = 1, .line_starting = true, .err = err};
    l.s = normalized(arena, source, &l.n);
    if (utf8_valid_prefix(l.s, l.n) < l.n) return err_set(err, E_PARSE, "the template is not UTF-8");
    lex_all(&l);
    return l.r;
}
