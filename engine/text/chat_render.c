/* chat_render.c - walking a template's blocks for one conversation. See chat.h.
 *
 * Scopes are Jinja's: what a for, a macro, a with or a captured block sets ends with it;
 * an if has none of its own. */
#include "base/mem.h"
#include "engine/text/chat_tree.h"

#include <stdlib.h>
#include <string.h>

/* ---------------------------------------------------------------- setting */

static void set_namespace(struct interp *in, const struct expr *target, struct value v) {
    struct value of = eval_expr(in, target->a);
    if (in->r < 0) return;
    if (of.kind != VALUE_NAMESPACE) chat_fail(in, E_PARSE, "%s is no namespace: nothing in it can be set", target->a->name->text);
    else if (target->name->text[0] == '_') chat_fail(in, E_PARSE, "a namespace holds no names that begin with _");
    else dict_set(in, of.dict, value_string(target->name->text, target->name->n, false), v);
}

static void assign(struct interp *in, const struct expr *target, struct value v) {
    if (in->r < 0) return;
    if (target->kind == EXPR_NAME) {
        scope_bind(in, target->name, v);
        return;
    }
    if (target->kind == EXPR_ATTRIBUTE) {
        set_namespace(in, target, v);
        return;
    }
    const struct list *items = value_items(in, &v);
    size_t n = 0, i = 0;
    for (const struct expr *t = target->items; t; t = t->next) n++;
    if (in->r == 0 && n != items->n) chat_fail(in, E_PARSE, "%zu values for %zu names", items->n, n);
    for (const struct expr *t = target->items; t && in->r == 0; t = t->next) assign(in, t, items->items[i++]);
}

/* ---------------------------------------------------------------- scopes and captures */

static void render_in_scope(struct interp *in, const struct node *body) {
    struct scope *outer = in->scope;
    in->scope = scope_new(in, outer);
    render_nodes(in, body);
    in->scope = outer;
}

/* What the body writes, as a string. */
static struct value capture(struct interp *in, const struct node *body) {
    struct text *outer = in->out;
    in->out = text_new(in, 0);
    render_in_scope(in, body);
    struct value v = text_value(in->out);
    in->out = outer;
    return v;
}

static struct value captured_through(struct interp *in, const struct node *node) {
    struct value v = capture(in, node->body);
    if (!node->expr || in->r < 0) return v;
    in->hole = v;
    return eval_expr(in, node->expr);
}

static void write_value(struct interp *in, const struct value *v) {
    if (in->r < 0) return;
    print_value(in, in->out, v);
    if (in->out->used > CHAT_MAX_OUTPUT) chat_fail(in, E_RANGE, "its output passes 8 MiB");
}

/* ---------------------------------------------------------------- macros */

static const struct value *take_keyword(struct call *call, const char *name) {
    for (size_t i = 0; i < call->n_keywords; i++)
        if (call->keywords[i].name && strcmp(call->keywords[i].name, name) == 0) {
            call->keywords[i].name = NULL; /* taken */
            return &call->keywords[i].value;
        }
    return NULL;
}

/* What no parameter took: kwargs and varargs where the body names them, else an error. */
static void bind_rest(struct interp *in, const struct node *m, struct call *call, size_t taken) {
    struct chat_template *t = (struct chat_template *)in->template;
    struct value rest = {.kind = VALUE_DICT, .dict = dict_new(in)}, more = value_list(VALUE_TUPLE, list_new(in, 0));
    const char *name = m->name ? m->name->text : "caller";
    if (m->caller) {
        const struct value *caller = take_keyword(call, "caller");
        scope_bind(in, chat_name(t, "caller", 6, false), caller ? *caller : value_undefined("caller"));
    }
    for (size_t i = 0; i < call->n_keywords; i++)
        if (call->keywords[i].name) dict_set(in, rest.dict, value_literal(call->keywords[i].name), call->keywords[i].value);
    for (size_t i = taken; i < call->n; i++) list_push(in, more.list, call->args[i]);
    if (m->kwargs) scope_bind(in, chat_name(t, "kwargs", 6, false), rest);
    else if (rest.dict->n > 0)
        chat_fail(in, E_PARSE, "macro %s does not take %.*s=", name, (int)rest.dict->pairs[0].key.n, rest.dict->pairs[0].key.text);
    if (m->varargs) scope_bind(in, chat_name(t, "varargs", 7, false), more);
    else if (more.list->n > 0) chat_fail(in, E_PARSE, "macro %s takes fewer arguments", name);
}

static void bind_params(struct interp *in, const struct node *m, struct call *call) {
    size_t i = 0;
    for (const struct param *p = m->params; p && in->r == 0; p = p->next, i++) {
        const struct value *v = i < call->n ? &call->args[i] : take_keyword(call, p->name->text);
        scope_bind(in, p->name, v ? *v : p->value ? (struct value){.kind = VALUE_MISSING} : value_undefined(p->name->text));
    }
    bind_rest(in, m, call, i < call->n ? i : call->n);
    for (const struct param *p = m->params; p && in->r == 0; p = p->next) { /* a default may read what stands before it */
        struct binding *b = in->scope->first;
        while (b && b->name != p->name) b = b->next;
        if (b && b->value.kind == VALUE_MISSING && p->value) b->value = eval_expr(in, p->value);
    }
}

struct value macro_call(struct interp *in, const struct macro *m, struct call *call) {
    struct scope *outer = in->scope;
    enum flow flow = in->flow;
    struct value v = value_literal("");
    if (!chat_enter(in)) return v;
    in->scope = scope_new(in, m->scope);
    in->flow = FLOW_ON;
    bind_params(in, m->node, call);
    if (in->r == 0) v = capture(in, m->node->body);
    in->scope = outer;
    in->flow = flow;
    in->depth--;
    return v;
}

static struct value macro_value(struct interp *in, const struct node *node) {
    struct macro *m = arena_alloc(&in->arena, sizeof *m);
    *m = (struct macro){node, in->scope};
    return (struct value){.kind = VALUE_MACRO, .macro = m};
}

static void render_call(struct interp *in, const struct node *node) {
    struct value caller = macro_value(in, node), v = eval_call(in, node->expr, &caller);
    write_value(in, &v);
}

/* ---------------------------------------------------------------- loops */

static void forget(struct scope *s) {
    for (struct binding *b = s->first; b; b = b->next) b->value.kind = VALUE_MISSING;
}

/* The items that the loop takes: all, or those that pass its `if`. */
static const struct list *loop_items(struct interp *in, const struct node *node, const struct value *v) {
    const struct list *all = value_items(in, v);
    if (!node->filter || in->r < 0) return all;
    struct list *kept = list_new(in, 0);
    struct scope *outer = in->scope;
    in->scope = scope_new(in, outer);
    for (size_t i = 0; i < all->n && in->r == 0; i++) {
        assign(in, node->target, all->items[i]);
        struct value passes = in->r == 0 ? eval_expr(in, node->filter) : value_none();
        if (in->r == 0 && value_is_true(&passes)) list_push(in, kept, all->items[i]);
    }
    in->scope = outer;
    return kept;
}

static void render_turns(struct interp *in, struct loop *loop) {
    const struct chat_name *name = chat_name((struct chat_template *)in->template, "loop", 4, false);
    struct scope *outer = in->scope;
    in->scope = scope_new(in, outer);
    for (; loop->index < loop->items->n && in->r == 0 && in->flow != FLOW_BREAK; loop->index++) {
        forget(in->scope); /* what the body sets ends with the turn */
        in->flow = FLOW_ON;
        if (name) scope_bind(in, name, (struct value){.kind = VALUE_LOOP, .loop = loop});
        assign(in, loop->node->target, loop->items->items[loop->index]);
        render_nodes(in, loop->node->body);
    }
    in->flow = FLOW_ON;
    in->scope = outer;
}

static void render_loop(struct interp *in, const struct node *node, const struct value *over, int64_t depth) {
    const struct list *items = loop_items(in, node, over);
    if (in->r < 0) return;
    if (items->n == 0) {
        render_in_scope(in, node->orelse);
        return;
    }
    struct loop *loop = arena_alloc(&in->arena, sizeof *loop);
    *loop = (struct loop){.node = node, .scope = in->scope, .items = items, .depth = depth, .changed = {.kind = VALUE_MISSING}};
    render_turns(in, loop);
}

static void render_for(struct interp *in, const struct node *node) {
    struct value over = eval_expr(in, node->expr);
    if (in->r == 0) render_loop(in, node, &over, 1);
}

struct value loop_call(struct interp *in, const struct loop *loop, struct call *call) {
    struct text *out = in->out;
    struct scope *scope = in->scope;
    if (!loop->node->recursive || call->n != 1 || call->n_keywords > 0)
        return chat_fail(in, E_PARSE, "a call of a loop that is not recursive, or without a list");
    if (!chat_enter(in)) return value_undefined(NULL);
    in->out = text_new(in, 0);
    in->scope = loop->scope;
    render_loop(in, loop->node, &call->args[0], loop->depth + 1);
    struct value v = text_value(in->out);
    in->out = out;
    in->scope = scope;
    in->depth--;
    return v;
}

/* ---------------------------------------------------------------- nodes */

static void render_with(struct interp *in, const struct node *node) {
    struct scope *outer = in->scope, *inner = scope_new(in, outer);
    for (const struct param *p = node->params; p && in->r == 0; p = p->next) {
        struct value v = eval_expr(in, p->value);
        in->scope = inner;
        assign(in, p->target, v);
        in->scope = outer;
    }
    in->scope = inner;
    render_nodes(in, node->body);
    in->scope = outer;
}

/* The branch of an if and its elifs that holds. */
static const struct node *chosen_branch(struct interp *in, const struct node *node) {
    for (;;) {
        struct value v = eval_expr(in, node->expr);
        if (in->r < 0) return NULL;
        if (value_is_true(&v)) return node->body;
        const struct node *next = node->orelse;
        if (!next || next->kind != NODE_IF || next->next) return next;
        node = next; /* an elif, or an else with nothing but an if */
    }
}

static void render_node(struct interp *in, const struct node *node) {
    struct value v;
    switch (node->kind) {
    case NODE_TEXT:
        v = value_string(node->text, node->n, false);
        write_value(in, &v);
        break;
    case NODE_OUTPUT:
        v = eval_expr(in, node->expr);
        write_value(in, &v);
        break;
    case NODE_IF: render_nodes(in, chosen_branch(in, node)); break;
    case NODE_FOR: render_for(in, node); break;
    case NODE_SET: assign(in, node->target, eval_expr(in, node->expr)); break;
    case NODE_SET_BLOCK: assign(in, node->target, captured_through(in, node)); break;
    case NODE_MACRO: scope_bind(in, node->name, macro_value(in, node)); break;
    case NODE_CALL: render_call(in, node); break;
    case NODE_FILTER:
        v = captured_through(in, node);
        if (in->r == 0 && v.kind != VALUE_STRING) chat_fail(in, E_PARSE, "a filter block gives a %s", value_kind_name(&v));
        write_value(in, &v);
        break;
    case NODE_WITH: render_with(in, node); break;
    case NODE_SCOPE: render_in_scope(in, node->body); break;
    case NODE_BREAK: in->flow = FLOW_BREAK; break;
    case NODE_CONTINUE: in->flow = FLOW_CONTINUE; break;
    }
}

void render_nodes(struct interp *in, const struct node *node) {
    if (!node || !chat_enter(in)) return;
    for (; node && in->flow == FLOW_ON && chat_charge(in, 0); node = node->next) render_node(in, node);
    in->depth--;
}
