/* chat_parse.c - the operands of expressions, from tokens to a tree: literals, names, what
 * stands behind them in brackets or behind a dot, filters and tests. */
#include "base/mem.h"
#include "engine/text/chat_tree.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

/* ---------------------------------------------------------------- the parser's place */

void *parse_fail(struct parser *p, int code, const char *fmt, ...) {
    if (!p->failed) {
        char text[200];
        va_list ap;
        va_start(ap, fmt);
        vsnprintf(text, sizeof text, fmt, ap);
        va_end(ap);
        err_set(p->err, code, "line %d: %s", p->at->line, text);
    }
    p->failed = true;
    return NULL;
}

static const char *op_text(int op, char buf[2]) {
    static const char *const pairs[] = {"==", "!=", "<=", ">=", "**", "//"};
    if (op >= OP_EQ) return pairs[op - OP_EQ];
    buf[0] = (char)op;
    buf[1] = '\0';
    return buf;
}

void *parse_unexpected(struct parser *p) {
    const struct token *t = p->at;
    int n = (int)(t->n > 40 ? 40 : t->n);
    char buf[2];
    switch (t->kind) {
    case TOKEN_END: return parse_fail(p, E_PARSE, "the template ends inside a block");
    case TOKEN_OUTPUT_END:
    case TOKEN_BLOCK_END: return parse_fail(p, E_PARSE, "something is missing before the end of the tag");
    case TOKEN_OPERATOR: return parse_fail(p, E_PARSE, "unexpected \"%s\"", op_text(t->op, buf));
    case TOKEN_NAME: return parse_fail(p, E_PARSE, "unexpected \"%.*s\"", n, t->text);
    case TOKEN_STRING: return parse_fail(p, E_PARSE, "unexpected string \"%.*s\"", n, t->text);
    default: return parse_fail(p, E_PARSE, "unexpected number");
    }
}

bool parse_enter(struct parser *p) {
    if (p->failed) return false;
    if (p->depth == CHAT_MAX_NESTING) return parse_fail(p, E_RANGE, "blocks or expressions are nested too deeply"), false;
    p->depth++;
    return true;
}

bool at_op(const struct parser *p, int op) {
    return p->at->kind == TOKEN_OPERATOR && p->at->op == op;
}

bool is_word(const struct token *t, const char *word) {
    return t->kind == TOKEN_NAME && t->n == strlen(word) && memcmp(t->text, word, t->n) == 0;
}

bool at_word(const struct parser *p, const char *word) {
    return is_word(p->at, word);
}

bool take_op(struct parser *p, int op) {
    if (p->failed || !at_op(p, op)) return false;
    p->at++;
    return true;
}

bool take_word(struct parser *p, const char *word) {
    if (p->failed || !at_word(p, word)) return false;
    p->at++;
    return true;
}

bool expect_op(struct parser *p, int op) {
    if (take_op(p, op)) return true;
    parse_unexpected(p);
    return false;
}

const struct chat_name *expect_name(struct parser *p) {
    if (p->failed || p->at->kind != TOKEN_NAME) return parse_unexpected(p);
    const struct token *t = p->at++;
    return chat_name(p->t, t->text, t->n, true);
}

/* ---------------------------------------------------------------- tree */

static int height_of(const struct expr *e) {
    return e ? e->height : 0;
}

struct expr *new_expr(struct parser *p, enum expr_kind kind, struct expr *a, struct expr *b) {
    struct expr *e = arena_alloc(&p->t->arena, sizeof *e);
    e->kind = kind;
    e->a = a;
    e->b = b;
    e->height = 1 + (height_of(a) > height_of(b) ? height_of(a) : height_of(b));
    if (e->height > CHAT_MAX_HEIGHT) parse_fail(p, E_RANGE, "an expression is too long");
    return e;
}

void grow_height(struct expr *e, const struct expr *child) {
    if (height_of(child) >= e->height) e->height = child->height + 1;
}

static struct expr *constant(struct parser *p, struct value v) {
    struct expr *e = new_expr(p, EXPR_CONST, NULL, NULL);
    e->constant = v;
    return e;
}

void add_item(struct expr *e, struct expr ***last, struct expr *item) {
    if (!item) return;
    grow_height(e, item);
    **last = item;
    *last = &item->next;
}

/* ---------------------------------------------------------------- atoms */

static struct expr *parse_name(struct parser *p) {
    static const struct {
        const char *word;
        enum value_kind kind;
        bool is;
    } words[] = {{"true", VALUE_BOOL, true},   {"True", VALUE_BOOL, true},  {"false", VALUE_BOOL, false},
                 {"False", VALUE_BOOL, false}, {"none", VALUE_NONE, false}, {"None", VALUE_NONE, false}};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (take_word(p, words[i].word)) return constant(p, words[i].kind == VALUE_NONE ? value_none() : value_bool(words[i].is));
    p->varargs |= at_word(p, "varargs");
    p->kwargs |= at_word(p, "kwargs");
    p->caller |= at_word(p, "caller");
    struct expr *e = new_expr(p, EXPR_NAME, NULL, NULL);
    e->name = expect_name(p);
    return e;
}

/* Strings that stand side by side are one. */
static struct expr *parse_strings(struct parser *p) {
    const struct token *t = p->at++;
    if (t->n == 4 && memcmp(t->text, "text", 4) == 0) p->t->reads_parts = true;
    if (p->at->kind != TOKEN_STRING) return constant(p, value_string(t->text, t->n, false));
    size_t n = t->n;
    for (const struct token *k = p->at; k->kind == TOKEN_STRING; k++) n += k->n;
    char *joined = arena_alloc(&p->t->arena, n + 1);
    memcpy(joined, t->text, t->n);
    n = t->n;
    for (; p->at->kind == TOKEN_STRING; n += p->at++->n) memcpy(joined + n, p->at->text, p->at->n);
    return constant(p, value_string(joined, n, false));
}

static struct expr *parse_list(struct parser *p) {
    struct expr *e = new_expr(p, EXPR_LIST, NULL, NULL), **last = &e->items;
    while (!p->failed && !at_op(p, ']')) {
        if (e->items && !expect_op(p, ',')) break;
        if (at_op(p, ']')) break;
        add_item(e, &last, parse_expression(p));
    }
    expect_op(p, ']');
    return e;
}

static struct expr *parse_dict(struct parser *p) {
    struct expr *e = new_expr(p, EXPR_DICT, NULL, NULL), **last = &e->items;
    while (!p->failed && !at_op(p, '}')) {
        if (e->items && !expect_op(p, ',')) break;
        if (at_op(p, '}')) break;
        add_item(e, &last, parse_expression(p));
        if (!expect_op(p, ':')) break;
        add_item(e, &last, parse_expression(p));
    }
    expect_op(p, '}');
    return e;
}

static bool ends_tuple(const struct parser *p, const char *until) {
    return p->at->kind == TOKEN_OUTPUT_END || p->at->kind == TOKEN_BLOCK_END || at_op(p, ')') || (until && at_word(p, until));
}

static struct expr *tuple_of(struct parser *p, struct expr *(*element)(struct parser *), bool empty_is_fine,
                             const char *until) {
    struct expr *e = new_expr(p, EXPR_TUPLE, NULL, NULL), **last = &e->items;
    bool is_tuple = false;
    while (!p->failed) {
        if (e->items && !expect_op(p, ',')) break;
        if (ends_tuple(p, until)) break;
        add_item(e, &last, element(p));
        if (!at_op(p, ',')) break;
        is_tuple = true;
    }
    if (is_tuple || p->failed) return e;
    if (e->items) return e->items;
    return empty_is_fine ? e : parse_unexpected(p);
}

struct expr *parse_tuple(struct parser *p, bool with_condition, const char *until) {
    return tuple_of(p, with_condition ? parse_expression : parse_or, false, until);
}

static struct expr *parse_atom(struct parser *p) {
    const struct token *t = p->at;
    switch (t->kind) {
    case TOKEN_NAME: return parse_name(p);
    case TOKEN_STRING: return parse_strings(p);
    case TOKEN_INT: p->at++; return constant(p, value_int(t->number));
    case TOKEN_FLOAT: p->at++; return constant(p, value_float(t->real));
    default: break;
    }
    if (take_op(p, '[')) return parse_list(p);
    if (take_op(p, '{')) return parse_dict(p);
    if (!take_op(p, '(')) return parse_unexpected(p);
    struct expr *e = tuple_of(p, parse_expression, true, NULL);
    expect_op(p, ')');
    return e;
}

static struct expr *namespace_target(struct parser *p);
static struct expr *plain_target(struct parser *p);

/* What can be set: a name, ns.name, or a tuple of them. */
static struct expr *parse_target_name(struct parser *p, bool with_namespace) {
    if (at_op(p, '(') && parse_enter(p)) {
        p->at++;
        struct expr *tuple = tuple_of(p, with_namespace ? namespace_target : plain_target, false, NULL);
        expect_op(p, ')');
        p->depth--;
        return tuple;
    }
    if (p->failed || p->at->kind != TOKEN_NAME) return parse_unexpected(p);
    struct expr *e = parse_name(p);
    if (e->kind != EXPR_NAME) return parse_fail(p, E_PARSE, "a constant cannot be set");
    if (!with_namespace || !take_op(p, '.')) return e;
    e = new_expr(p, EXPR_ATTRIBUTE, e, NULL);
    e->name = expect_name(p);
    return e;
}

static struct expr *plain_target(struct parser *p) {
    return parse_target_name(p, false);
}

static struct expr *namespace_target(struct parser *p) {
    return parse_target_name(p, true);
}

struct expr *parse_target(struct parser *p, bool with_namespace, const char *until) {
    return tuple_of(p, with_namespace ? namespace_target : plain_target, false, until);
}

/* ---------------------------------------------------------------- what follows an atom */

static struct arg *parse_arg(struct parser *p) {
    struct arg *a = arena_alloc(&p->t->arena, sizeof *a);
    if (take_op(p, '*')) a->kind = ARG_LIST;
    else if (take_op(p, OP_POWER)) a->kind = ARG_DICT;
    else if (p->at->kind == TOKEN_NAME && p->at[1].kind == TOKEN_OPERATOR && p->at[1].op == '=') {
        a->kind = ARG_KEYWORD;
        a->name = expect_name(p);
        p->at++;
    }
    a->value = parse_expression(p);
    return a;
}

/* Arguments up to the closing bracket; the opening one has been taken. */
static void parse_args(struct parser *p, struct expr *call) {
    struct arg **last = &call->args;
    enum arg_kind highest = ARG_VALUE;
    while (!p->failed && !at_op(p, ')')) {
        if (call->args && !expect_op(p, ',')) break;
        if (at_op(p, ')')) break;
        struct arg *a = parse_arg(p);
        if (p->failed) break;
        if (a->kind < highest && !(a->kind == ARG_KEYWORD && highest == ARG_LIST)) parse_fail(p, E_PARSE, "arguments out of order");
        if (a->kind > highest) highest = a->kind;
        if (a->value) grow_height(call, a->value);
        *last = a;
        last = &a->next;
    }
    expect_op(p, ')');
}

static struct expr *parse_call(struct parser *p, struct expr *of) {
    struct expr *e = new_expr(p, EXPR_CALL, of, NULL);
    parse_args(p, e);
    return e;
}

static struct expr *parse_dot(struct parser *p, struct expr *of) {
    if (p->at->kind == TOKEN_INT) return new_expr(p, EXPR_ITEM, of, constant(p, value_int(p->at++->number)));
    struct expr *e = new_expr(p, EXPR_ATTRIBUTE, of, NULL);
    e->name = expect_name(p);
    if (e->name && strcmp(e->name->text, "text") == 0) p->t->reads_parts = true;
    return e;
}

static bool at_slice_end(const struct parser *p) {
    return at_op(p, ':') || at_op(p, ']') || at_op(p, ',');
}

static struct expr *parse_slice(struct parser *p, struct expr *of, struct expr *from) {
    struct expr *e = new_expr(p, EXPR_SLICE, of, from);
    if (!at_slice_end(p)) e->c = parse_expression(p);
    if (take_op(p, ':') && !at_slice_end(p)) e->d = parse_expression(p);
    grow_height(e, e->c);
    grow_height(e, e->d);
    return e;
}

static struct expr *parse_brackets(struct parser *p, struct expr *of) {
    struct expr *key = at_op(p, ':') ? NULL : parse_expression(p), *e;
    if (take_op(p, ':')) e = parse_slice(p, of, key);
    else e = new_expr(p, EXPR_ITEM, of, key);
    if (at_op(p, ',')) return parse_fail(p, E_UNSUPPORTED, "unsupported index of several parts");
    expect_op(p, ']');
    return e;
}

static struct expr *parse_postfix(struct parser *p, struct expr *e) {
    while (!p->failed) {
        if (take_op(p, '.')) e = parse_dot(p, e);
        else if (take_op(p, '[')) e = parse_brackets(p, e);
        else if (take_op(p, '(')) e = parse_call(p, e);
        else break;
    }
    return e;
}

static struct expr *parse_filter(struct parser *p, struct expr *of) {
    const struct chat_name *name = expect_name(p);
    if (!name) return NULL;
    struct expr *e = new_expr(p, EXPR_FILTER, of, NULL);
    e->native = chat_filter(name->text, name->n);
    if (!e->native) return parse_fail(p, E_UNSUPPORTED, "unsupported filter \"%.40s\"", name->text);
    if (take_op(p, '(')) parse_args(p, e);
    return e;
}

struct expr *parse_filters_on_hole(struct parser *p, bool inline_first) {
    struct expr *e = NULL;
    while (!p->failed && (inline_first || take_op(p, '|'))) {
        e = parse_filter(p, e ? e : new_expr(p, EXPR_HOLE, NULL, NULL));
        inline_first = false;
    }
    return e;
}

/* One argument without brackets may follow a test: x is divisibleby 3. */
static bool at_test_argument(struct parser *p) {
    if (p->at->kind == TOKEN_NAME) return !at_word(p, "else") && !at_word(p, "or") && !at_word(p, "and");
    return p->at->kind == TOKEN_STRING || p->at->kind == TOKEN_INT || p->at->kind == TOKEN_FLOAT || at_op(p, '[') || at_op(p, '{');
}

static struct expr *parse_test(struct parser *p, struct expr *of) {
    bool negated = take_word(p, "not");
    const struct chat_name *name = expect_name(p);
    if (!name) return NULL;
    struct expr *e = new_expr(p, EXPR_TEST, of, NULL);
    e->native = chat_test(name->text, name->n);
    if (!e->native) return parse_fail(p, E_UNSUPPORTED, "unsupported test \"%.40s\"", name->text);
    if (take_op(p, '(')) parse_args(p, e);
    else if (at_word(p, "is")) return parse_fail(p, E_PARSE, "a test behind a test");
    else if (at_test_argument(p) && parse_enter(p)) {
        e->args = arena_alloc(&p->t->arena, sizeof *e->args);
        e->args->value = parse_postfix(p, parse_atom(p));
        if (e->args->value) grow_height(e, e->args->value);
        p->depth--;
    }
    return negated ? new_expr(p, EXPR_NOT, e, NULL) : e;
}

static struct expr *parse_filters(struct parser *p, struct expr *e) {
    while (!p->failed) {
        if (take_op(p, '|')) e = parse_filter(p, e);
        else if (take_word(p, "is")) e = parse_test(p, e);
        else if (take_op(p, '(')) e = parse_call(p, e);
        else break;
    }
    return e;
}

static struct expr *parse_unary(struct parser *p, bool with_filter) {
    struct expr *e = NULL;
    if (!parse_enter(p)) return NULL;
    if (take_op(p, '-')) e = new_expr(p, EXPR_NEGATE, parse_unary(p, false), NULL);
    else if (take_op(p, '+')) e = new_expr(p, EXPR_PLUS, parse_unary(p, false), NULL);
    else e = parse_atom(p);
    e = parse_postfix(p, e);
    if (with_filter) e = parse_filters(p, e);
    p->depth--;
    return e;
}

struct expr *parse_operand(struct parser *p) {
    return parse_unary(p, true);
}
