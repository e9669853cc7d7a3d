/* chat.h - chat templates from inside: a small part of Jinja, parsed once into a
 * tree (chat_parse.c) and walked for each conversation (chat_render.c).
 *
 * Templates come with models from strangers. The interpreter has no attributes of
 * the host, no imports and no files, and is bounded in template size, depth, steps
 * and output. A construct that it does not have is refused by name when the
 * template is parsed. Settings are transformers': trim_blocks and lstrip_blocks. */
#ifndef BATCHD_ENGINE_TEXT_CHAT_H
#define BATCHD_ENGINE_TEXT_CHAT_H

#include "engine/text/tokenizer_private.h"

enum { CHAT_MAX_TEMPLATE = 65536, CHAT_MAX_STEPS = 1000000, CHAT_MAX_DEPTH = 32, CHAT_MAX_OUTPUT = 8 << 20 };

/* Memory that lives as long as a template, or as one rendering. */
struct arena {
    struct arena_chunk *chunks;
    size_t bytes; /* handed out */
};
void *arena_alloc(struct arena *a, size_t bytes); /* cleared */
char *arena_text(struct arena *a, const char *s, size_t n);
void arena_clear(struct arena *a);

enum expr_kind {
    EXPR_STRING, EXPR_INT, EXPR_BOOL, EXPR_NONE, EXPR_NAME,
    EXPR_INDEX,  /* a[b], a.b */
    EXPR_SLICE,  /* a[b:c] */
    EXPR_NOT, EXPR_MINUS,
    EXPR_AND, EXPR_OR, EXPR_ADD, EXPR_SUB, EXPR_MUL, EXPR_MOD, EXPR_CONCAT,
    EXPR_EQ, EXPR_NE, EXPR_LT, EXPR_LE, EXPR_GT, EXPR_GE, EXPR_IN, EXPR_NOT_IN,
    EXPR_IF,     /* a if b else c */
    EXPR_FILTER, /* a | text */
    EXPR_TEST,   /* a is text */
    EXPR_CALL,   /* text(a): raise_exception */
    EXPR_METHOD, /* a.text() */
};

struct expr {
    enum expr_kind kind;
    const char *text; /* string literal, name, filter, test, method */
    size_t n;
    int64_t number;
    struct expr *a, *b, *c;
};

enum node_kind { NODE_TEXT, NODE_OUTPUT, NODE_IF, NODE_FOR, NODE_SET };

struct node {
    enum node_kind kind;
    const char *text;   /* TEXT: the text; FOR and SET: the variable */
    size_t n;
    struct expr *expr;  /* OUTPUT, IF's condition, FOR's list, SET's value */
    struct expr *filter; /* FOR: `if` behind the list, or NULL */
    struct node *body, *orelse; /* IF: elif is an IF alone in orelse */
    struct node *next;
};

struct chat_template {
    struct arena arena;
    struct node *root;
};

/* Tables of what there is, for the parser to refuse the rest by name. */
bool chat_has_filter(const char *name);
bool chat_has_test(const char *name);
bool chat_has_method(const char *name);

int chat_parse(struct chat_template *t, const char *source, size_t n, struct err *err);

#endif
