/* chat_eval.c - the value of an expression. */
#include "base/mem.h"
#include "engine/text/chat_tree.h"

#include <string.h>

/* ---------------------------------------------------------------- names */

struct scope *scope_new(struct interp *in, struct scope *parent) {
    struct scope *s = arena_alloc(&in->arena, sizeof *s);
    s->parent = parent;
    return s;
}

static struct binding *find_binding(const struct scope *s, const struct chat_name *name) {
    struct binding *b = s->first;
    while (b && b->name != name) b = b->next;
    return b;
}

void scope_bind(struct interp *in, const struct chat_name *name, struct value v) {
    struct binding *b = find_binding(in->scope, name);
    if (!b) {
        if (!chat_room(in, sizeof *b)) return;
        b = arena_alloc(&in->arena, sizeof *b);
        b->name = name;
        b->next = in->scope->first;
        in->scope->first = b;
    }
    b->value = v;
}

static struct value lookup(struct interp *in, const struct chat_name *name) {
    for (const struct scope *s = in->scope; s; s = s->parent) {
        const struct binding *b = find_binding(s, name);
        if (b && b->value.kind != VALUE_MISSING) return b->value;
    }
    const struct native *f = chat_function(name->text, name->n);
    return f ? (struct value){.kind = VALUE_FUNCTION, .native = f} : value_undefined(name->text);
}

/* ---------------------------------------------------------------- calls */

/* What * spreads, and ** spreads, are counted with what is written. */
static void add_dict_args(struct interp *in, struct call *call, const struct value *v) {
    if (v->kind != VALUE_DICT) {
        chat_fail(in, E_PARSE, "** of a %s", value_kind_name(v));
        return;
    }
    size_t n = call->n_keywords + v->dict->n;
    if (!chat_room(in, n * sizeof *call->keywords)) return;
    call->keywords = arena_resize(&in->arena, call->keywords, call->n_keywords * sizeof *call->keywords, n * sizeof *call->keywords);
    for (size_t i = 0; i < v->dict->n; i++) {
        const struct value *key = &v->dict->pairs[i].key;
        if (key->kind != VALUE_STRING) chat_fail(in, E_PARSE, "** of a dict with keys that are no strings");
        else
            call->keywords[call->n_keywords++] =
                (struct keyword){arena_text(&in->arena, key->text, key->n), v->dict->pairs[i].value};
    }
}

static void eval_args(struct interp *in, struct call *call, const struct arg *args) {
    struct list *positional = list_new(in, 0);
    size_t n_keywords = 0;
    for (const struct arg *a = args; a; a = a->next) n_keywords += a->kind == ARG_KEYWORD;
    call->keywords = arena_alloc(&in->arena, n_keywords * sizeof *call->keywords);
    for (const struct arg *a = args; a && in->r == 0; a = a->next) {
        struct value v = eval_expr(in, a->value);
        if (in->r < 0) return;
        if (a->kind == ARG_VALUE) list_push(in, positional, v);
        else if (a->kind == ARG_KEYWORD) call->keywords[call->n_keywords++] = (struct keyword){a->name->text, v};
        else if (a->kind == ARG_DICT) add_dict_args(in, call, &v);
        else {
            const struct list *more = value_items(in, &v);
            for (size_t i = 0; i < more->n && in->r == 0; i++) list_push(in, positional, more->items[i]);
        }
    }
    call->args = positional->items;
    call->n = positional->n;
}

struct value chat_call(struct interp *in, const struct value *callee, struct call *call) {
    switch (callee->kind) {
    case VALUE_FUNCTION: return native_call(in, callee->native, callee, call);
    case VALUE_METHOD: return native_call(in, callee->native, callee->self, call);
    case VALUE_MACRO: return macro_call(in, callee->macro, call);
    case VALUE_LOOP: return loop_call(in, callee->loop, call);
    case VALUE_UNDEFINED: return chat_fail(in, E_PARSE, "%s is undefined", callee->text ? callee->text : "what is called");
    default: return chat_fail(in, E_PARSE, "a call of a %s", value_kind_name(callee));
    }
}

struct value eval_call(struct interp *in, const struct expr *e, const struct value *caller) {
    struct call call = {0};
    struct value callee = eval_expr(in, e->a);
    if (in->r == 0) eval_args(in, &call, e->args);
    if (in->r < 0) return callee;
    if (caller) {
        size_t n = call.n_keywords;
        call.keywords = arena_resize(&in->arena, call.keywords, n * sizeof *call.keywords, (n + 1) * sizeof *call.keywords);
        call.keywords[call.n_keywords++] = (struct keyword){"caller", *caller};
    }
    return chat_call(in, &callee, &call);
}

static struct value eval_native(struct interp *in, const struct expr *e) {
    struct call call = {0};
    struct value self = eval_expr(in, e->a);
    if (in->r == 0) eval_args(in, &call, e->args);
    if (in->r < 0) return self;
    struct value v = native_call(in, e->native, &self, &call);
    return e->kind == EXPR_TEST ? value_bool(value_is_true(&v)) : v;
}

/* ---------------------------------------------------------------- literals of many parts */

static struct value eval_list(struct interp *in, const struct expr *e) {
    struct list *list = list_new(in, 0);
    for (const struct expr *item = e->items; item && in->r == 0; item = item->next) list_push(in, list, eval_expr(in, item));
    return value_list(e->kind == EXPR_LIST ? VALUE_LIST : VALUE_TUPLE, list);
}

static struct value eval_dict(struct interp *in, const struct expr *e) {
    struct value v = {.kind = VALUE_DICT, .dict = dict_new(in)};
    for (const struct expr *key = e->items; key && in->r == 0; key = key->next->next) {
        struct value k = eval_expr(in, key), item = eval_expr(in, key->next);
        if (in->r == 0) dict_set(in, v.dict, k, item);
    }
    return v;
}

static struct value eval_concat(struct interp *in, const struct expr *e) {
    struct value all = value_literal("");
    for (const struct expr *item = e->items; item && in->r == 0; item = item->next) {
        struct value v = eval_expr(in, item);
        if (in->r == 0) v = value_to_string(in, &v);
        v.safe = false;
        if (in->r == 0) all = item == e->items ? v : string_concat(in, &all, &v);
    }
    return all;
}

/* ---------------------------------------------------------------- operators */

static bool compares(struct interp *in, int op, const struct value *a, const struct value *b) {
    switch (op) {
    case OP_EQ: return value_equal(in, a, b);
    case OP_NE: return !value_equal(in, a, b);
    case 'i': return value_contains(in, b, a);
    case 'n': return !value_contains(in, b, a);
    case '<': return value_compare(in, a, b) < 0;
    case OP_LE: return value_compare(in, a, b) <= 0;
    case '>': return value_compare(in, a, b) > 0;
    default: return value_compare(in, a, b) >= 0;
    }
}

/* a < b < c: each operand once, up to the first that fails. */
static struct value eval_comparison(struct interp *in, const struct expr *e) {
    struct value a = eval_expr(in, e->a);
    for (const struct expr *item = e->items; item && in->r == 0; item = item->next) {
        struct value b = eval_expr(in, item->a);
        if (in->r < 0 || !compares(in, item->op, &a, &b)) return value_bool(false);
        a = b;
    }
    return value_bool(in->r == 0);
}

static struct value eval_arithmetic(struct interp *in, const struct expr *e) {
    struct value a = eval_expr(in, e->a), b = eval_expr(in, e->b);
    return in->r < 0 ? a : value_arithmetic(in, e->op, &a, &b);
}

static struct value eval_slice(struct interp *in, const struct expr *e) {
    struct value none = value_none(), of = eval_expr(in, e->a), from = e->b ? eval_expr(in, e->b) : none;
    struct value to = e->c ? eval_expr(in, e->c) : none, step = e->d ? eval_expr(in, e->d) : none;
    return in->r < 0 ? of : value_slice(in, &of, &from, &to, &step);
}

static struct value eval_choice(struct interp *in, const struct expr *e) {
    struct value condition = eval_expr(in, e->b);
    if (in->r < 0) return condition;
    if (value_is_true(&condition)) return eval_expr(in, e->a);
    return e->c ? eval_expr(in, e->c) : value_undefined("a choice without else");
}

static struct value eval_plus(struct interp *in, const struct value *v) {
    struct value zero = value_int(0);
    return v->kind == VALUE_FLOAT || in->r < 0 ? *v : value_arithmetic(in, '+', v, &zero);
}

static struct value eval_inside(struct interp *in, const struct expr *e) {
    struct value a, b;
    switch (e->kind) {
    case EXPR_CONST: return e->constant;
    case EXPR_NAME: return lookup(in, e->name);
    case EXPR_HOLE: return in->hole;
    case EXPR_TUPLE:
    case EXPR_LIST: return eval_list(in, e);
    case EXPR_DICT: return eval_dict(in, e);
    case EXPR_CONCAT: return eval_concat(in, e);
    case EXPR_COMPARE: return eval_comparison(in, e);
    case EXPR_ARITHMETIC: return eval_arithmetic(in, e);
    case EXPR_SLICE: return eval_slice(in, e);
    case EXPR_IF: return eval_choice(in, e);
    case EXPR_FILTER:
    case EXPR_TEST: return eval_native(in, e);
    case EXPR_CALL: return eval_call(in, e, NULL);
    default: break;
    }
    a = eval_expr(in, e->a);
    if (in->r < 0) return a;
    switch (e->kind) {
    case EXPR_ATTRIBUTE: return value_attribute(in, &a, e->name->text, e->name->n);
    case EXPR_ITEM: b = eval_expr(in, e->b); return in->r < 0 ? b : value_item(in, &a, &b);
    case EXPR_NOT: return value_bool(!value_is_true(&a));
    case EXPR_NEGATE: return value_negate(in, &a);
    case EXPR_PLUS: return value_is_number(&a) ? eval_plus(in, &a) : chat_fail(in, E_PARSE, "+ before a %s", value_kind_name(&a));
    case EXPR_AND: return value_is_true(&a) ? eval_expr(in, e->b) : a;
    default: return value_is_true(&a) ? a : eval_expr(in, e->b); /* EXPR_OR */
    }
}

struct value eval_expr(struct interp *in, const struct expr *e) {
    if (!chat_charge(in, 0) || !chat_enter(in)) return value_undefined(NULL);
    struct value v = eval_inside(in, e);
    in->depth--;
    if (in->arena.bytes > CHAT_MAX_MEMORY) chat_room(in, CHAT_MAX_MEMORY);
    return v;
}
