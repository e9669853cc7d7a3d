/* chat_tree.h - a template as tokens and as a tree. */
#ifndef BATCHD_ENGINE_TEXT_CHAT_TREE_H
#define BATCHD_ENGINE_TEXT_CHAT_TREE_H

#include "engine/text/chat_value.h"

/* ---------------------------------------------------------------- tokens (chat_lex.c) */

enum token_kind {
    TOKEN_END, TOKEN_DATA, TOKEN_OUTPUT_BEGIN, TOKEN_OUTPUT_END, TOKEN_BLOCK_BEGIN, TOKEN_BLOCK_END,
    TOKEN_NAME, TOKEN_STRING, TOKEN_INT, TOKEN_FLOAT, TOKEN_OPERATOR,
};

/* Operators of two characters; those of one are the character. */
enum { OP_EQ = 256, OP_NE, OP_LE, OP_GE, OP_POWER, OP_FLOOR };

struct token {
    enum token_kind kind;
    int op;
    int line;
    const char *text; /* DATA, NAME, STRING: the text */
    size_t n;
    int64_t number;
    double real;
};

struct token_array {
    struct token *tokens;
    size_t n, cap;
};

/* Tokens of a template, the last one TOKEN_END; texts belong to `arena`. */
int chat_lex(struct arena *arena, struct token_array *out, const char *source, size_t n, struct err *err);

/* ---------------------------------------------------------------- expressions */

enum expr_kind {
    EXPR_CONST, EXPR_NAME, EXPR_TUPLE, EXPR_LIST, EXPR_DICT,
    EXPR_ATTRIBUTE, /* a.name */
    EXPR_ITEM,      /* a[b] */
    EXPR_SLICE,     /* a[first:second:third], each may be NULL */
    EXPR_NOT, EXPR_NEGATE, EXPR_PLUS,
    EXPR_AND, EXPR_OR,
    EXPR_ARITHMETIC, /* op: + - * / % OP_FLOOR OP_POWER */
    EXPR_CONCAT,     /* items */
    EXPR_COMPARE,    /* a, and items with their op: < OP_LE ... 'i' in, 'n' not in */
    EXPR_IF,         /* a if b else c */
    EXPR_FILTER, EXPR_TEST, /* native, a, args */
    EXPR_CALL,       /* a, args */
    EXPR_HOLE,       /* what a block holds, for its filter */
};

enum arg_kind { ARG_VALUE, ARG_KEYWORD, ARG_LIST /* *a */, ARG_DICT /* **a */ };

struct arg {
    enum arg_kind kind;
    const struct chat_name *name;
    struct expr *value;
    struct arg *next;
};

struct expr {
    enum expr_kind kind;
    int op;
    int height;
    struct value constant;
    const struct chat_name *name;
    const struct native *native;
    struct expr *a, *b, *c, *d;
    struct expr *items, *next; /* TUPLE, LIST, CONCAT, COMPARE; DICT: key, value, key ... */
    struct arg *args;
};

/* ---------------------------------------------------------------- statements */

enum node_kind {
    NODE_TEXT, NODE_OUTPUT, NODE_IF, NODE_FOR, NODE_SET, NODE_SET_BLOCK, NODE_MACRO, NODE_CALL, NODE_FILTER, NODE_WITH,
    NODE_SCOPE, NODE_BREAK, NODE_CONTINUE,
};

struct param {
    const struct chat_name *name;
    struct expr *value; /* default of a macro's, value of a with's; NULL = none */
    struct expr *target; /* of a with */
    struct param *next;
};

struct node {
    enum node_kind kind;
    const char *text; /* TEXT */
    size_t n;
    const struct chat_name *name; /* MACRO */
    struct expr *expr;   /* OUTPUT; IF's condition; FOR's list; SET's value; CALL's call; the filter of FILTER and SET_BLOCK */
    struct expr *filter; /* FOR: its `if`, or NULL */
    struct expr *target; /* FOR, SET, SET_BLOCK */
    struct param *params; /* MACRO, CALL, WITH */
    bool varargs, kwargs, caller; /* MACRO, CALL: its body names them */
    bool recursive; /* FOR: its loop may be called */
    struct node *body, *orelse; /* IF: elif is an IF alone in orelse */
    struct node *next;
};

/* ---------------------------------------------------------------- parsing */

struct parser {
    struct chat_template *t;
    const struct token *at;
    struct err *err;
    int depth;
    int loops; /* for bodies around the place */
    bool failed;
    bool varargs, kwargs, caller; /* a name of these was read */
};

void *parse_fail(struct parser *p, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
void *parse_unexpected(struct parser *p); /* fails: what stands at the place */
bool parse_enter(struct parser *p); /* one level deeper; every success is paired with p->depth-- */
bool at_op(const struct parser *p, int op);
bool at_word(const struct parser *p, const char *word);
bool take_op(struct parser *p, int op);
bool take_word(struct parser *p, const char *word);
bool expect_op(struct parser *p, int op);
const struct chat_name *expect_name(struct parser *p);

bool is_word(const struct token *t, const char *word);

struct expr *new_expr(struct parser *p, enum expr_kind kind, struct expr *a, struct expr *b);
void grow_height(struct expr *e, const struct expr *child);                 /* e is above child */
void add_item(struct expr *e, struct expr ***last, struct expr *item);      /* to e->items */

struct expr *parse_operand(struct parser *p);    /* with its sign, filters and tests */
struct expr *parse_or(struct parser *p);         /* all but a choice */
struct expr *parse_expression(struct parser *p);
/* A tuple without brackets, or one expression; `until` is a word that ends it, or NULL. */
struct expr *parse_tuple(struct parser *p, bool with_condition, const char *until);
struct expr *parse_target(struct parser *p, bool with_namespace, const char *until);
/* One or more filters on the hole; `inline_first`: the first has no | before it. */
struct expr *parse_filters_on_hole(struct parser *p, bool inline_first);

/* chat_statements.c: the whole template. */
struct node *parse_template(struct parser *p);

/* ---------------------------------------------------------------- walking */

struct value eval_expr(struct interp *in, const struct expr *e); /* chat_eval.c */
struct scope *scope_new(struct interp *in, struct scope *parent);
void scope_bind(struct interp *in, const struct chat_name *name, struct value v); /* in the innermost one */
struct value eval_call(struct interp *in, const struct expr *e, const struct value *caller); /* caller: of a {% call %}, or NULL */

/* chat_render.c */
struct value macro_call(struct interp *in, const struct macro *m, struct call *call);
struct value loop_call(struct interp *in, const struct loop *loop, struct call *call); /* of a recursive for */
void render_nodes(struct interp *in, const struct node *node);

#endif
