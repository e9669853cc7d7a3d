/* chat_variables.c - what a template is given, and what is made of its output.
 *
 * All strings of a row are its own words, but one kind: a role that templates know, in
 * a message, may become part of a control token. */
#include "base/mem.h"
#include "engine/text/chat_tree.h"

#include <stdlib.h>
#include <string.h>

const char *const chat_token_names[CHAT_TOKENS] = {"bos_token", "eos_token", "unk_token", "pad_token"};

/* ---------------------------------------------------------------- messages */

static bool is_known_role(const struct value *role) {
    static const char *const roles[] = {"system", "user", "assistant", "tool", "developer", "function", "model", "ipython",
                                        "observation", "environment", "context", "human", "bot", "chatbot", "tool_response"};
    for (size_t i = 0; i < sizeof roles / sizeof *roles; i++)
        if (value_is(role, roles[i])) return true;
    return false;
}

/* The texts of a content's parts, a newline between them. */
static struct value joined_parts(struct interp *in, const struct list *parts) {
    struct text *t = text_new(in, 0);
    for (size_t i = 0; i < parts->n && in->r == 0; i++) {
        const struct value *part = &parts->items[i], *text = part;
        if (part->kind == VALUE_DICT) text = dict_get_text(in, part->dict, "text");
        const struct value *type = part->kind == VALUE_DICT ? dict_get_text(in, part->dict, "type") : NULL;
        if (!text || text->kind != VALUE_STRING) {
            int n = type && type->kind == VALUE_STRING && type->n < 40 ? (int)type->n : 0;
            return chat_fail(in, E_UNSUPPORTED, "a part of a message's content that is no text%s%.*s", n ? ": " : "", n, n ? type->text : "");
        }
        if (i > 0) text_add(in, t, "\n", 1, true);
        text_add_string(in, t, text);
    }
    return text_value(t);
}

/* The model's reasoning goes under several names; as in transformers, a template that reads
 * reasoning_content or thinking finds it. */
static void name_reasoning(struct interp *in, struct dict *message) {
    static const char *const names[] = {"reasoning_content", "thinking", "reasoning"};
    const struct value *v = NULL;
    for (size_t i = 0; i < 3; i++) {
        const struct value *found = dict_get_text(in, message, names[i]);
        if (!v && found && found->kind != VALUE_NONE) v = found;
    }
    if (!v) return;
    struct value reasoning = *v;
    if (!dict_get_text(in, message, "thinking")) dict_set(in, message, value_literal("thinking"), reasoning);
    dict_set(in, message, value_literal("reasoning_content"), reasoning);
}

static void prepare_message(struct interp *in, struct dict *message) {
    name_reasoning(in, message);
    struct value *role = (struct value *)dict_get_text(in, message, "role");
    if (role && is_known_role(role)) role->plain = false;
    struct value *content = (struct value *)dict_get_text(in, message, "content");
    if (content && content->kind == VALUE_LIST && !in->template->reads_parts) *content = joined_parts(in, content->list);
}

static void prepare_messages(struct interp *in, const struct value *messages) {
    for (size_t i = 0; messages->kind == VALUE_LIST && i < messages->list->n && in->r == 0; i++)
        if (messages->list->items[i].kind == VALUE_DICT) prepare_message(in, messages->list->items[i].dict);
}

/* ---------------------------------------------------------------- variables */

static void define(struct interp *in, const char *name, struct value v) {
    const struct chat_name *known = chat_name((struct chat_template *)in->template, name, strlen(name), false);
    if (known) scope_bind(in, known, v); /* else the template never asks for it */
}

static void define_all(struct interp *in, const json_t *variables, const struct chat_options *o, const struct chat_tokens *tokens) {
    const char *name;
    json_t *json;
    define(in, "tools", value_none());
    define(in, "documents", value_none());
    define(in, "add_generation_prompt", value_bool(o->add_generation_prompt));
    for (size_t i = 0; i < CHAT_TOKENS; i++)
        if (tokens->text[i]) define(in, chat_token_names[i], value_literal(tokens->text[i]));
    json_object_foreach((json_t *)variables, name, json) {
        struct value v = value_from_json(in, json);
        if (strcmp(name, "messages") == 0) prepare_messages(in, &v);
        define(in, name, v);
    }
}

/* ---------------------------------------------------------------- output */

static void add_span(struct chat_text *out, size_t begin, size_t end) {
    if (out->n_plain == out->cap_plain) {
        out->cap_plain = out->cap_plain ? out->cap_plain * 2 : 8;
        out->plain = mem_realloc(out->plain, out->cap_plain, sizeof *out->plain);
    }
    out->plain[out->n_plain++] = (struct text_span){begin, end};
}

static void hand_over(struct interp *in, struct chat_text *out) {
    struct value all = text_value(in->out);
    buf_append(&out->text, in->out->data, in->out->used);
    for (size_t i = 0, end; i < all.n; i = end) {
        bool plain = string_plain_at(&all, i);
        for (end = i + 1; end < all.n && string_plain_at(&all, end) == plain;) end++;
        if (plain) add_span(out, i, end);
    }
}

bool chat_has_tools(const char *variables) {
    json_t *json = json_loads(variables, JSON_ALLOW_NUL, NULL);
    const json_t *tools = json_object_get(json, "tools");
    bool has = tools && !json_is_null(tools);
    json_decref(json);
    return has;
}

int chat_template_render(const struct chat_template *t, struct chat_text *out, const char *variables,
                         const struct chat_options *o, const struct chat_tokens *tokens, struct err *err) {
    json_error_t why;
    json_t *json = json_loads(variables, JSON_ALLOW_NUL, &why);
    if (!json_is_object(json)) {
        json_decref(json);
        return err_set(err, E_PARSE, "chat template: its variables are no JSON object: %s", json ? "" : why.text);
    }
    struct interp *in = mem_zalloc(1, sizeof *in);
    in->template = t;
    in->err = err;
    in->now = o->now;
    in->scope = scope_new(in, NULL);
    in->out = text_new(in, 1024);
    define_all(in, json, o, tokens);
    if (in->r == 0) render_nodes(in, t->root);
    int r = in->r;
    if (r == 0) hand_over(in, out);
    arena_clear(&in->arena);
    free(in);
    json_decref(json);
    return r;
}

void chat_text_clear(struct chat_text *t) {
    buf_clear(&t->text);
    free(t->plain);
    *t = (struct chat_text){0};
}
