/* chat.h - chat templates from inside.
 *
 * The Jinja that model folders bring, with transformers' settings: trim_blocks,
 * lstrip_blocks, loop controls, {% generation %}, tojson without HTML escapes,
 * raise_exception, strftime_now. Parsed once (chat_lex.c, chat_parse.c, chat_operators.c,
 * chat_statements.c) into a tree (chat_tree.h) that is walked for each conversation
 * (chat_variables.c, chat_render.c, chat_eval.c) over values like Python's (chat_value.h).
 *
 * Templates come from strangers. There are no attributes of the host, no imports and
 * no files to reach, nothing can be changed but a namespace, and all of it is bounded
 * by the limits below. A tag, filter or test that is not built is refused by name when
 * the template is parsed; a method or function, when it is called. */
#ifndef BATCHD_ENGINE_TEXT_CHAT_H
#define BATCHD_ENGINE_TEXT_CHAT_H

#include "engine/text/arena.h"
#include "engine/text/tokenizer_private.h"

enum {
    CHAT_MAX_TEMPLATE = 65536, /* bytes */
    CHAT_MAX_NESTING = 64,     /* of blocks, brackets and unary operators, as written */
    CHAT_MAX_HEIGHT = 400,     /* of an expression's tree: a + b + c ... */
    CHAT_MAX_DEPTH = 1000,     /* of the walk: calls of macros in macros */
    CHAT_MAX_STEPS = 1000000,  /* of the walk; an operation on n bytes counts n / 256 more */
    CHAT_MAX_MEMORY = 64 << 20,
    CHAT_MAX_OUTPUT = 8 << 20,
    CHAT_MAX_RANGE = 100000,   /* range(), as in Jinja's sandbox */
};

struct chat_name { /* a name as the template writes it; one struct for each, compared by address */
    struct chat_name *next;
    size_t n;
    char text[];
};

enum { CHAT_NAME_BUCKETS = 256 };

struct chat_template {
    struct arena arena;
    struct chat_name *names[CHAT_NAME_BUCKETS];
    struct node *root;
    bool reads_parts; /* it names "text": content may be a list of parts */
};

/* The name, NULL where the template does not know it and `add` is not set. */
const struct chat_name *chat_name(struct chat_template *t, const char *text, size_t n, bool add);

int chat_parse(struct chat_template *t, const char *source, size_t n, struct err *err);

#endif
