/* chat_parse.c - from a template's text to its tree. See chat.h. */
#include "base/mem.h"
#include "engine/text/chat.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

/* ---------------------------------------------------------------- arena */

struct arena_chunk {
    struct arena_chunk *next;
    size_t used, cap;
    _Alignas(16) char data[];
};

void *arena_alloc(struct arena *a, size_t bytes) {
    bytes = (bytes + 15) & ~(size_t)15;
    struct arena_chunk *c = a->chunks;
    if (!c || c->used + bytes > c->cap) {
        size_t cap = bytes > 4096 ? bytes : 4096;
        c = mem_alloc(sizeof *c + cap);
        *c = (struct arena_chunk){.next = a->chunks, .cap = cap};
        a->chunks = c;
    }
    void *p = c->data + c->used;
    c->used += bytes;
    a->bytes += bytes;
    memset(p, 0, bytes);
    return p;
}

char *arena_text(struct arena *a, const char *s, size_t n) {
    char *copy = arena_alloc(a, n + 1);
    if (n) memcpy(copy, s, n);
    return copy;
}

void arena_clear(struct arena *a) {
    while (a->chunks) {
        struct arena_chunk *next = a->chunks->next;
        free(a->chunks);
        a->chunks = next;
    }
}

/* ---------------------------------------------------------------- tokens of an expression */

struct parser {
    struct chat_template *t;
    const char *source, *at, *end; /* of the whole template */
    const char *close;    /* end of the tag that is being read */
    struct err *err;
    int depth;
    bool failed;
    bool trim_next;       /* the tag before said -%} or -}} */
};

static void *fail(struct parser *p, int code, const char *what, const char *name, size_t n) {
    if (!p->failed) err_set(p->err, code, "%s%s%.*s%s", what, n ? " \"" : "", (int)(n > 60 ? 60 : n), name, n ? "\"" : "");
    p->failed = true;
    return NULL;
}

static void skip_space(struct parser *p) {
    while (p->at < p->close && isspace((unsigned char)*p->at)) p->at++;
}

static bool is_name_char(char c) {
    return isalnum((unsigned char)c) || c == '_';
}

/* The name at the place, not taken; its length, 0 = none. */
static size_t peek_name(struct parser *p) {
    skip_space(p);
    size_t n = 0;
    if (p->at < p->close && (isalpha((unsigned char)*p->at) || *p->at == '_'))
        while (p->at + n < p->close && is_name_char(p->at[n])) n++;
    return n;
}

static bool take_word(struct parser *p, const char *word) {
    size_t n = peek_name(p);
    if (n != strlen(word) || memcmp(p->at, word, n) != 0) return false;
    p->at += n;
    return true;
}

static bool take(struct parser *p, const char *symbol) {
    skip_space(p);
    size_t n = strlen(symbol);
    if ((size_t)(p->close - p->at) < n || memcmp(p->at, symbol, n) != 0) return false;
    p->at += n;
    return true;
}

static char *take_name(struct parser *p) {
    size_t n = peek_name(p);
    if (n == 0) return fail(p, E_PARSE, "a name is missing before", p->at, (size_t)(p->close - p->at));
    char *name = arena_text(&p->t->arena, p->at, n);
    p->at += n;
    return name;
}

/* ---------------------------------------------------------------- expressions */

static struct expr *parse_expr(struct parser *p);

static struct expr *new_expr(struct parser *p, enum expr_kind kind, struct expr *a, struct expr *b) {
    struct expr *e = arena_alloc(&p->t->arena, sizeof *e);
    e->kind = kind;
    e->a = a;
    e->b = b;
    return e;
}

static struct expr *parse_string(struct parser *p) {
    char quote = *p->at++;
    struct expr *e = new_expr(p, EXPR_STRING, NULL, NULL);
    char *out = arena_alloc(&p->t->arena, (size_t)(p->close - p->at) + 1);
    e->text = out;
    while (p->at < p->close && *p->at != quote) {
        char c = *p->at++;
        if (c == '\\' && p->at < p->close) {
            c = *p->at++;
            if (c == 'n') c = '\n';
            else if (c == 't') c = '\t';
            else if (c == 'r') c = '\r';
            else if (c != '\\' && c != '\'' && c != '"') return fail(p, E_UNSUPPORTED, "unsupported escape", &c, 1);
        }
        out[e->n++] = c;
    }
    if (p->at >= p->close) return fail(p, E_PARSE, "a string does not end", "", 0);
    p->at++;
    return e;
}

static struct expr *parse_call(struct parser *p, char *name) {
    if (strcmp(name, "raise_exception") != 0) return fail(p, E_UNSUPPORTED, "unsupported function", name, strlen(name));
    struct expr *e = new_expr(p, EXPR_CALL, parse_expr(p), NULL);
    e->text = name;
    if (!take(p, ")")) return fail(p, E_PARSE, "a ) is missing", "", 0);
    return e;
}

static struct expr *parse_name(struct parser *p) {
    char *name = take_name(p);
    if (!name) return NULL;
    static const struct {
        const char *word;
        enum expr_kind kind;
        int64_t number;
    } words[] = {{"true", EXPR_BOOL, 1},  {"True", EXPR_BOOL, 1}, {"false", EXPR_BOOL, 0}, {"False", EXPR_BOOL, 0},
                 {"none", EXPR_NONE, 0}, {"None", EXPR_NONE, 0}};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        if (strcmp(name, words[i].word) != 0) continue;
        struct expr *e = new_expr(p, words[i].kind, NULL, NULL);
        e->number = words[i].number;
        return e;
    }
    if (take(p, "(")) return parse_call(p, name);
    struct expr *e = new_expr(p, EXPR_NAME, NULL, NULL);
    e->text = name;
    e->n = strlen(name);
    return e;
}

static struct expr *parse_atom(struct parser *p) {
    skip_space(p);
    if (p->at >= p->close) return fail(p, E_PARSE, "an expression is missing", "", 0);
    char c = *p->at;
    if (c == '\'' || c == '"') return parse_string(p);
    if (isdigit((unsigned char)c)) {
        struct expr *e = new_expr(p, EXPR_INT, NULL, NULL);
        while (p->at < p->close && isdigit((unsigned char)*p->at) && e->number < 1000000000)
            e->number = e->number * 10 + (*p->at++ - '0');
        if (p->at < p->close && (*p->at == '.' || isdigit((unsigned char)*p->at)))
            return fail(p, E_UNSUPPORTED, "unsupported number", p->at, 1);
        return e;
    }
    if (take(p, "(")) {
        struct expr *e = parse_expr(p);
        if (!take(p, ")")) return fail(p, E_PARSE, "a ) is missing", "", 0);
        return e;
    }
    if (isalpha((unsigned char)c) || c == '_') return parse_name(p);
    return fail(p, E_UNSUPPORTED, "unsupported construct", p->at, 1);
}

static struct expr *parse_brackets(struct parser *p, struct expr *of) {
    struct expr *from = NULL, *to = NULL;
    skip_space(p);
    if (p->at < p->close && *p->at != ':') from = parse_expr(p);
    bool slice = take(p, ":");
    skip_space(p);
    if (slice && p->at < p->close && *p->at != ']') to = parse_expr(p);
    if (!take(p, "]")) return fail(p, E_UNSUPPORTED, "unsupported index", "", 0);
    struct expr *e = new_expr(p, slice ? EXPR_SLICE : EXPR_INDEX, of, from);
    e->c = to;
    return e;
}

static struct expr *parse_dot(struct parser *p, struct expr *of) {
    char *name = take_name(p);
    if (!name) return NULL;
    if (take(p, "(")) {
        if (!chat_has_method(name)) return fail(p, E_UNSUPPORTED, "unsupported method", name, strlen(name));
        if (!take(p, ")")) return fail(p, E_UNSUPPORTED, "unsupported arguments of method", name, strlen(name));
        struct expr *e = new_expr(p, EXPR_METHOD, of, NULL);
        e->text = name;
        return e;
    }
    struct expr *key = new_expr(p, EXPR_STRING, NULL, NULL);
    key->text = name;
    key->n = strlen(name);
    return new_expr(p, EXPR_INDEX, of, key);
}

static struct expr *parse_filter(struct parser *p, struct expr *of) {
    char *name = take_name(p);
    if (!name) return NULL;
    if (!chat_has_filter(name)) return fail(p, E_UNSUPPORTED, "unsupported filter", name, strlen(name));
    if (take(p, "(") && !take(p, ")")) return fail(p, E_UNSUPPORTED, "unsupported arguments of filter", name, strlen(name));
    struct expr *e = new_expr(p, EXPR_FILTER, of, NULL);
    e->text = name;
    return e;
}

static struct expr *parse_postfix(struct parser *p) {
    struct expr *e = parse_atom(p);
    while (e && !p->failed) {
        if (take(p, "[")) e = parse_brackets(p, e);
        else if (take(p, ".")) e = parse_dot(p, e);
        else if (take(p, "|")) e = parse_filter(p, e);
        else break;
    }
    return e;
}

static struct expr *parse_unary(struct parser *p) {
    if (take(p, "-")) return new_expr(p, EXPR_MINUS, parse_postfix(p), NULL);
    return parse_postfix(p);
}

struct operator {
    const char *symbol;
    enum expr_kind kind;
};

static struct expr *parse_left(struct parser *p, struct expr *(*operand)(struct parser *), const struct operator *ops) {
    struct expr *e = operand(p);
    for (size_t i = 0; !p->failed && ops[i].symbol;) {
        if (take(p, ops[i].symbol)) {
            e = new_expr(p, ops[i].kind, e, operand(p));
            i = 0;
        } else i++;
    }
    return e;
}

static struct expr *parse_product(struct parser *p) {
    static const struct operator ops[] = {{"*", EXPR_MUL}, {"%", EXPR_MOD}, {NULL, 0}};
    return parse_left(p, parse_unary, ops);
}

static struct expr *parse_sum(struct parser *p) {
    static const struct operator ops[] = {{"+", EXPR_ADD}, {"-", EXPR_SUB}, {NULL, 0}};
    return parse_left(p, parse_product, ops);
}

static struct expr *parse_concat(struct parser *p) {
    static const struct operator ops[] = {{"~", EXPR_CONCAT}, {NULL, 0}};
    return parse_left(p, parse_sum, ops);
}

static struct expr *parse_is(struct parser *p, struct expr *of) {
    bool negated = take_word(p, "not");
    char *name = take_name(p);
    if (!name) return NULL;
    if (!chat_has_test(name)) return fail(p, E_UNSUPPORTED, "unsupported test", name, strlen(name));
    struct expr *e = new_expr(p, EXPR_TEST, of, NULL);
    e->text = name;
    return negated ? new_expr(p, EXPR_NOT, e, NULL) : e;
}

static struct expr *parse_comparison(struct parser *p) {
    static const struct operator ops[] = {{"==", EXPR_EQ}, {"!=", EXPR_NE}, {"<=", EXPR_LE},
                                          {">=", EXPR_GE}, {"<", EXPR_LT},  {">", EXPR_GT}};
    struct expr *e = parse_concat(p);
    while (!p->failed) {
        size_t i = 0, n = sizeof ops / sizeof *ops;
        while (i < n && !take(p, ops[i].symbol)) i++;
        if (i < n) e = new_expr(p, ops[i].kind, e, parse_concat(p));
        else if (take_word(p, "in")) e = new_expr(p, EXPR_IN, e, parse_concat(p));
        else if (take_word(p, "is")) e = parse_is(p, e);
        else {
            const char *before = p->at;
            if (take_word(p, "not") && take_word(p, "in")) e = new_expr(p, EXPR_NOT_IN, e, parse_concat(p));
            else {
                p->at = before;
                break;
            }
        }
    }
    return e;
}

static struct expr *parse_not(struct parser *p) {
    if (!take_word(p, "not")) return parse_comparison(p);
    if (++p->depth > CHAT_MAX_DEPTH) return fail(p, E_RANGE, "an expression is nested too deeply", "", 0);
    struct expr *e = new_expr(p, EXPR_NOT, parse_not(p), NULL);
    p->depth--;
    return e;
}

static struct expr *parse_and(struct parser *p) {
    struct expr *e = parse_not(p);
    while (!p->failed && take_word(p, "and")) e = new_expr(p, EXPR_AND, e, parse_not(p));
    return e;
}

static struct expr *parse_or(struct parser *p) {
    struct expr *e = parse_and(p);
    while (!p->failed && take_word(p, "or")) e = new_expr(p, EXPR_OR, e, parse_and(p));
    return e;
}

static struct expr *parse_expr(struct parser *p) {
    if (p->failed) return NULL;
    if (++p->depth > CHAT_MAX_DEPTH) return fail(p, E_RANGE, "an expression is nested too deeply", "", 0);
    struct expr *e = parse_or(p);
    if (!p->failed && take_word(p, "if")) {
        struct expr *choice = new_expr(p, EXPR_IF, e, parse_or(p));
        if (take_word(p, "else")) choice->c = parse_expr(p);
        e = choice;
    }
    p->depth--;
    return e;
}

/* ---------------------------------------------------------------- tags and text */

/* The end of a tag that begins at `at`, strings skipped; NULL = it does not end. */
static const char *tag_end(const char *at, const char *end, const char *closer) {
    char quote = 0;
    for (; at + 1 < end; at++) {
        if (quote) {
            if (*at == '\\') at++;
            else if (*at == quote) quote = 0;
        } else if (*closer != '#' && (*at == '\'' || *at == '"')) quote = *at;
        else if (at[0] == closer[0] && at[1] == closer[1]) return at;
    }
    return NULL;
}

/* Text up to the next tag, with the white space that the tags on both sides take. */
static struct node *text_node(struct parser *p, const char *begin, const char *end, bool at_tag, char tag, bool minus) {
    if (p->trim_next)
        while (begin < end && isspace((unsigned char)*begin)) begin++;
    p->trim_next = false;
    if (minus)
        while (end > begin && isspace((unsigned char)end[-1])) end--;
    else if (at_tag && tag != '{') { /* lstrip_blocks */
        const char *line = end;
        while (line > p->source && (line[-1] == ' ' || line[-1] == '\t')) line--;
        if (line == p->source || line[-1] == '\n') end = line > begin ? line : begin;
    }
    if (begin == end) return NULL;
    struct node *node = arena_alloc(&p->t->arena, sizeof *node);
    node->kind = NODE_TEXT;
    node->text = arena_text(&p->t->arena, begin, (size_t)(end - begin));
    node->n = (size_t)(end - begin);
    return node;
}

enum stop { STOP_END, STOP_ENDIF, STOP_ENDFOR, STOP_ELSE, STOP_ELIF };

static struct node *parse_body(struct parser *p, enum stop *stop);

/* Take a tag's closing bracket; with it the newline that trim_blocks drops. */
static void end_tag(struct parser *p, bool block) {
    skip_space(p);
    if (p->at < p->close && !p->failed) fail(p, E_UNSUPPORTED, "unsupported construct", p->at, (size_t)(p->close - p->at));
    bool minus = p->close[0] == '-';
    p->at = p->close + (minus ? 3 : 2);
    p->trim_next = minus;
    if (block && !minus && p->at < p->end && *p->at == '\n') p->at++;
}

static struct node *parse_if(struct parser *p) {
    struct node *node = arena_alloc(&p->t->arena, sizeof *node);
    node->kind = NODE_IF;
    node->expr = parse_expr(p);
    end_tag(p, true);
    enum stop stop = STOP_END;
    node->body = parse_body(p, &stop);
    if (stop == STOP_ELIF) node->orelse = parse_if(p);
    else if (stop == STOP_ELSE) {
        end_tag(p, true);
        node->orelse = parse_body(p, &stop);
        if (stop != STOP_ENDIF) return fail(p, E_PARSE, "an if does not end", "", 0);
        end_tag(p, true);
    } else if (stop == STOP_ENDIF) end_tag(p, true);
    else return fail(p, E_PARSE, "an if does not end", "", 0);
    return node;
}

static struct node *parse_for(struct parser *p) {
    struct node *node = arena_alloc(&p->t->arena, sizeof *node);
    node->kind = NODE_FOR;
    node->text = take_name(p);
    if (take(p, ",")) return fail(p, E_UNSUPPORTED, "unsupported construct: two variables of a for", "", 0);
    if (!p->failed && !take_word(p, "in")) return fail(p, E_PARSE, "for without in", "", 0);
    node->expr = parse_or(p);
    if (take_word(p, "if")) node->filter = parse_or(p);
    end_tag(p, true);
    enum stop stop = STOP_END;
    node->body = parse_body(p, &stop);
    if (stop == STOP_ELSE) {
        end_tag(p, true);
        node->orelse = parse_body(p, &stop);
    }
    if (stop != STOP_ENDFOR) return fail(p, E_PARSE, "a for does not end", "", 0);
    end_tag(p, true);
    return node;
}

static struct node *parse_set(struct parser *p) {
    struct node *node = arena_alloc(&p->t->arena, sizeof *node);
    node->kind = NODE_SET;
    node->text = take_name(p);
    if (p->failed) return NULL;
    if (!take(p, "=")) return fail(p, E_UNSUPPORTED, "unsupported form of set", p->at, (size_t)(p->close - p->at));
    node->expr = parse_expr(p);
    end_tag(p, true);
    return node;
}

/* A block tag; an end of the enclosing one goes to *stop, its closing bracket not yet taken. */
static struct node *parse_block(struct parser *p, enum stop *stop) {
    static const struct {
        const char *word;
        enum stop stop;
    } stops[] = {{"endif", STOP_ENDIF}, {"endfor", STOP_ENDFOR}, {"else", STOP_ELSE}, {"elif", STOP_ELIF}};
    for (size_t i = 0; i < sizeof stops / sizeof *stops; i++)
        if (take_word(p, stops[i].word)) {
            *stop = stops[i].stop;
            return NULL;
        }
    if (take_word(p, "if")) return parse_if(p);
    if (take_word(p, "for")) return parse_for(p);
    if (take_word(p, "set")) return parse_set(p);
    return fail(p, E_UNSUPPORTED, "unsupported tag", p->at, peek_name(p));
}

static const char *next_tag(const char *at, const char *end) {
    for (; at + 1 < end; at++)
        if (*at == '{' && (at[1] == '{' || at[1] == '%' || at[1] == '#')) return at;
    return end;
}

static struct node *parse_tag(struct parser *p, char tag, enum stop *stop) {
    static const char *const closers[] = {"}}", "%}", "#}"};
    const char *close = tag_end(p->at, p->end, closers[tag == '{' ? 0 : tag == '%' ? 1 : 2]);
    if (!close) return fail(p, E_PARSE, "a tag does not end", "", 0);
    p->close = close > p->at && close[-1] == '-' ? close - 1 : close;
    if (tag == '#') {
        p->at = p->close;
        end_tag(p, true);
        return NULL;
    }
    if (tag == '%') return parse_block(p, stop);
    struct node *node = arena_alloc(&p->t->arena, sizeof *node);
    node->kind = NODE_OUTPUT;
    node->expr = parse_expr(p);
    end_tag(p, false);
    return node;
}

static struct node *parse_body(struct parser *p, enum stop *stop) {
    struct node *first = NULL, **last = &first;
    *stop = STOP_END;
    if (++p->depth > CHAT_MAX_DEPTH) return fail(p, E_RANGE, "blocks are nested too deeply", "", 0);
    while (p->at < p->end && *stop == STOP_END && !p->failed) {
        const char *tag = next_tag(p->at, p->end);
        bool at_tag = tag < p->end, minus = at_tag && tag + 2 < p->end && tag[2] == '-';
        struct node *node = text_node(p, p->at, tag, at_tag, at_tag ? tag[1] : 0, minus);
        if (node) {
            *last = node;
            last = &node->next;
        }
        p->at = at_tag ? tag + (minus ? 3 : 2) : tag;
        if (!at_tag) break;
        node = parse_tag(p, tag[1], stop);
        if (!node) continue;
        *last = node;
        last = &node->next;
    }
    p->depth--;
    return first;
}

int chat_parse(struct chat_template *t, const char *source, size_t n, struct err *err) {
    if (n > CHAT_MAX_TEMPLATE) return err_set(err, E_RANGE, "the template has %zu bytes, more than 64 KiB", n);
    if (n > 0 && source[n - 1] == '\n') n--; /* keep_trailing_newline is off */
    struct parser p = {.t = t, .source = source, .at = source, .end = source + n, .close = source, .err = err};
    enum stop stop;
    t->root = parse_body(&p, &stop);
    if (!p.failed && stop != STOP_END) fail(&p, E_PARSE, "an end or else without a beginning", "", 0);
    return p.failed ? err->code : 0;
}
