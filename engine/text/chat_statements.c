/* chat_statements.c - blocks, from tokens to a tree; a template's beginning and end. */
#include "base/hash.h"
#include "base/mem.h"
#include "engine/text/chat_tree.h"

#include <stdlib.h>
#include <string.h>

/* ---------------------------------------------------------------- bodies */

static struct node *parse_statement(struct parser *p);

static struct node *new_node(struct parser *p, enum node_kind kind) {
    struct node *n = arena_alloc(&p->t->arena, sizeof *n);
    n->kind = kind;
    return n;
}

/* Is the tag at the place one of these words, separated by spaces? */
static bool ends_body(const struct parser *p, const char *words) {
    for (const char *w = words; w && *w;) {
        size_t n = strcspn(w, " ");
        if (p->at->kind == TOKEN_NAME && p->at->n == n && memcmp(p->at->text, w, n) == 0) return true;
        w += n + (w[n] == ' ');
    }
    return false;
}

static void end_block(struct parser *p) {
    if (p->failed) return;
    if (p->at->kind == TOKEN_BLOCK_END) p->at++;
    else parse_unexpected(p);
}

static struct node *parse_output(struct parser *p) {
    struct node *n = new_node(p, NODE_OUTPUT);
    n->expr = parse_tuple(p, true, NULL);
    if (p->failed) return NULL;
    if (p->at->kind == TOKEN_OUTPUT_END) p->at++;
    else parse_unexpected(p);
    return n;
}

static struct node *parse_text(struct parser *p) {
    struct node *n = new_node(p, NODE_TEXT);
    n->text = p->at->text;
    n->n = p->at++->n;
    return n;
}

/* Statements up to a block tag whose word is among `until`; the place is that word then.
 * NULL: up to the end of the template. */
static struct node *parse_until(struct parser *p, const char *until) {
    struct node *first = NULL, **last = &first;
    while (!p->failed && p->at->kind != TOKEN_END) {
        struct node *n;
        if (p->at->kind == TOKEN_DATA) n = parse_text(p);
        else if (p->at++->kind == TOKEN_OUTPUT_BEGIN) n = parse_output(p);
        else if (ends_body(p, until)) return first;
        else {
            n = parse_statement(p);
            end_block(p);
        }
        if (p->failed) break;
        *last = n;
        last = &n->next;
    }
    if (until && !p->failed) parse_fail(p, E_PARSE, "the template ends where %s is missing", until);
    return first;
}

/* The end of a block's first tag, and its body. */
static struct node *parse_body(struct parser *p, const char *until) {
    take_op(p, ':');
    end_block(p);
    if (!parse_enter(p)) return NULL;
    struct node *n = parse_until(p, until);
    p->depth--;
    return n;
}

/* The body of a block that one word ends. */
static struct node *parse_whole_body(struct parser *p, const char *end) {
    struct node *n = parse_body(p, end);
    take_word(p, end);
    return n;
}

/* ---------------------------------------------------------------- tags */

static struct node *parse_if(struct parser *p) {
    struct node *first = new_node(p, NODE_IF), *n = first;
    for (;;) { /* not by recursion: elif may stand there a thousand times */
        n->expr = parse_tuple(p, false, NULL);
        n->body = parse_body(p, "elif else endif");
        if (!take_word(p, "elif")) break;
        n = n->orelse = new_node(p, NODE_IF);
    }
    if (take_word(p, "else")) n->orelse = parse_body(p, "endif");
    take_word(p, "endif");
    return first;
}

static struct node *parse_for(struct parser *p) {
    struct node *n = new_node(p, NODE_FOR);
    n->target = parse_target(p, false, "in");
    if (!take_word(p, "in")) return parse_fail(p, E_PARSE, "for without in");
    n->expr = parse_tuple(p, false, "recursive");
    if (take_word(p, "if")) n->filter = parse_expression(p);
    n->recursive = take_word(p, "recursive");
    p->loops++;
    n->body = parse_body(p, "else endfor");
    p->loops--;
    if (take_word(p, "else")) n->orelse = parse_body(p, "endfor");
    take_word(p, "endfor");
    return n;
}

static struct node *parse_set(struct parser *p) {
    struct node *n = new_node(p, NODE_SET);
    n->target = parse_target(p, true, NULL);
    if (take_op(p, '=')) {
        n->expr = parse_tuple(p, true, NULL);
        return n;
    }
    n->kind = NODE_SET_BLOCK;
    n->expr = parse_filters_on_hole(p, false);
    n->body = parse_whole_body(p, "endset");
    return n;
}

/* (a, b=1), whose opening bracket has been taken. */
static struct param *parse_params(struct parser *p) {
    struct param *first = NULL, **last = &first;
    bool defaults = false;
    while (!p->failed && !at_op(p, ')')) {
        if (first && !expect_op(p, ',')) break;
        if (p->failed) break;
        struct param *param = arena_alloc(&p->t->arena, sizeof *param);
        param->name = expect_name(p);
        if (take_op(p, '=')) param->value = parse_expression(p), defaults = true;
        else if (defaults) parse_fail(p, E_PARSE, "a parameter without a default behind one with");
        *last = param;
        last = &param->next;
    }
    expect_op(p, ')');
    return first;
}

/* A macro's body, which says whether it wants varargs, kwargs, caller. Loops outside do not count. */
static void parse_macro_body(struct parser *p, struct node *n, const char *end) {
    struct parser outer = *p;
    p->varargs = p->kwargs = p->caller = false;
    p->loops = 0;
    n->body = parse_whole_body(p, end);
    n->varargs = p->varargs;
    n->kwargs = p->kwargs;
    n->caller = p->caller;
    p->varargs |= outer.varargs;
    p->kwargs |= outer.kwargs;
    p->caller |= outer.caller;
    p->loops = outer.loops;
}

static struct node *parse_macro(struct parser *p) {
    struct node *n = new_node(p, NODE_MACRO);
    n->name = expect_name(p);
    if (expect_op(p, '(')) n->params = parse_params(p);
    parse_macro_body(p, n, "endmacro");
    return n;
}

static struct node *parse_call_block(struct parser *p) {
    struct node *n = new_node(p, NODE_CALL);
    if (take_op(p, '(')) n->params = parse_params(p);
    n->expr = parse_expression(p);
    if (!p->failed && n->expr->kind != EXPR_CALL) return parse_fail(p, E_PARSE, "a call block without a call");
    parse_macro_body(p, n, "endcall");
    return n;
}

static struct node *parse_filter_block(struct parser *p) {
    struct node *n = new_node(p, NODE_FILTER);
    n->expr = parse_filters_on_hole(p, true);
    n->body = parse_whole_body(p, "endfilter");
    return n;
}

static struct node *parse_with(struct parser *p) {
    struct node *n = new_node(p, NODE_WITH);
    struct param **last = &n->params;
    while (!p->failed && p->at->kind != TOKEN_BLOCK_END) {
        if (n->params && !expect_op(p, ',')) break;
        struct param *param = arena_alloc(&p->t->arena, sizeof *param);
        param->target = parse_target(p, false, "=");
        if (expect_op(p, '=')) param->value = parse_expression(p);
        *last = param;
        last = &param->next;
    }
    n->body = parse_whole_body(p, "endwith");
    return n;
}

/* {% generation %} marks what a model wrote, for training: here it is a scope. */
static struct node *parse_generation(struct parser *p) {
    struct node *n = new_node(p, NODE_SCOPE);
    int loops = p->loops;
    p->loops = 0;
    n->body = parse_whole_body(p, "endgeneration");
    p->loops = loops;
    return n;
}

static struct node *parse_jump(struct parser *p, enum node_kind kind, const char *word) {
    return p->loops ? new_node(p, kind) : parse_fail(p, E_PARSE, "%s outside of a loop", word);
}

static struct node *parse_statement(struct parser *p) {
    if (take_word(p, "if")) return parse_if(p);
    if (take_word(p, "for")) return parse_for(p);
    if (take_word(p, "set")) return parse_set(p);
    if (take_word(p, "macro")) return parse_macro(p);
    if (take_word(p, "call")) return parse_call_block(p);
    if (take_word(p, "filter")) return parse_filter_block(p);
    if (take_word(p, "with")) return parse_with(p);
    if (take_word(p, "generation")) return parse_generation(p);
    if (take_word(p, "break")) return parse_jump(p, NODE_BREAK, "break");
    if (take_word(p, "continue")) return parse_jump(p, NODE_CONTINUE, "continue");
    if (p->at->kind != TOKEN_NAME) return parse_unexpected(p);
    int n = (int)(p->at->n > 40 ? 40 : p->at->n);
    bool is_end = (n > 3 && memcmp(p->at->text, "end", 3) == 0) || at_word(p, "else") || at_word(p, "elif");
    if (is_end) return parse_fail(p, E_PARSE, "%.*s without a beginning", n, p->at->text);
    return parse_fail(p, E_UNSUPPORTED, "unsupported tag \"%.*s\"", n, p->at->text);
}

/* ---------------------------------------------------------------- a template */

const struct chat_name *chat_name(struct chat_template *t, const char *text, size_t n, bool add) {
    struct chat_name **bucket = &t->names[hash64(text, n, 0) % CHAT_NAME_BUCKETS];
    for (struct chat_name *name = *bucket; name; name = name->next)
        if (name->n == n && memcmp(name->text, text, n) == 0) return name;
    if (!add) return NULL;
    struct chat_name *name = arena_alloc(&t->arena, sizeof *name + n + 1);
    memcpy(name->text, text, n);
    name->n = n;
    name->next = *bucket;
    return *bucket = name;
}

int chat_parse(struct chat_template *t, const char *source, size_t n, struct err *err) {
    if (n > CHAT_MAX_TEMPLATE) return err_set(err, E_RANGE, "the template has %zu bytes, more than 64 KiB", n);
    struct token_array tokens = {0};
    int r = chat_lex(&t->arena, &tokens, source, n, err);
    if (r == 0) {
        struct parser p = {.t = t, .at = tokens.tokens, .err = err};
        t->root = parse_until(&p, NULL);
        if (p.failed) r = err->code;
    }
    free(tokens.tokens);
    return r;
}

int chat_template_new(struct chat_template **out, const char *source, size_t n, struct err *err) {
    struct chat_template *t = mem_zalloc(1, sizeof *t);
    struct err why = ERR_INIT;
    int r = chat_parse(t, source, n, &why);
    if (r < 0) {
        chat_template_free(t);
        return err_set(err, r, "%s", why.text);
    }
    *out = t;
    return 0;
}

void chat_template_free(struct chat_template *t) {
    if (!t) return;
    arena_clear(&t->arena);
    free(t);
}
