/* chat_render.c - walking a template's tree for one conversation. See chat.h.
 *
 * A string remembers which of its bytes came from a message. Concatenation,
 * trimming, slicing and case keep that, so that the caller can encode a row's own
 * words as plain text: only what the template itself wrote may be a control token. */
#include "base/mem.h"
#include "engine/text/chat.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

enum value_kind { VALUE_UNDEFINED, VALUE_NONE, VALUE_BOOL, VALUE_INT, VALUE_STRING, VALUE_MESSAGES, VALUE_MESSAGE, VALUE_LOOP };

struct run { /* a stretch of a string of one origin */
    const char *text;
    size_t n;
    bool plain; /* from a message */
    struct run *next;
};

struct value {
    enum value_kind kind;
    int64_t number;        /* BOOL, INT; MESSAGES: how many; LOOP: index from 0 */
    int64_t length;        /* LOOP */
    struct run *runs;      /* STRING */
    const struct chat_message *messages; /* MESSAGES, MESSAGE */
};

struct binding {
    const char *name;
    struct value value;
};

struct renderer {
    struct arena arena;
    struct chat_text *out;
    struct binding bindings[256];
    size_t n_bindings, frame; /* `set` looks for its variable from `frame` on */
    int64_t steps;
    int depth;
    struct err *err;
    int r;
};

static struct value fail(struct renderer *rd, int code, const char *text) {
    if (rd->r == 0) rd->r = err_set(rd->err, code, "chat template: %s", text);
    return (struct value){.kind = VALUE_UNDEFINED};
}

/* ---------------------------------------------------------------- strings */

static struct value string_of(struct renderer *rd, const char *text, size_t n, bool plain) {
    struct value v = {.kind = VALUE_STRING};
    if (n == 0) return v;
    v.runs = arena_alloc(&rd->arena, sizeof *v.runs);
    *v.runs = (struct run){text, n, plain, NULL};
    return v;
}

static size_t string_length(const struct value *v) {
    size_t n = 0;
    for (const struct run *r = v->runs; r; r = r->next) n += r->n;
    return n;
}

/* One piece of memory with the whole string. */
static const char *string_flat(struct renderer *rd, const struct value *v, size_t *n) {
    *n = string_length(v);
    if (v->runs && !v->runs->next) return v->runs->text;
    char *flat = arena_alloc(&rd->arena, *n + 1), *at = flat;
    for (const struct run *r = v->runs; r; at += r->n, r = r->next) memcpy(at, r->text, r->n);
    return flat;
}

/* Bytes [begin, end) of a string, with their origins. */
static struct value substring(struct renderer *rd, const struct value *v, size_t begin, size_t end) {
    struct value out = {.kind = VALUE_STRING};
    struct run **last = &out.runs;
    size_t at = 0;
    for (const struct run *r = v->runs; r && at < end; at += r->n, r = r->next) {
        size_t from = begin > at ? begin - at : 0, to = end - at < r->n ? end - at : r->n;
        if (from >= to) continue;
        *last = arena_alloc(&rd->arena, sizeof **last);
        **last = (struct run){r->text + from, to - from, r->plain, NULL};
        last = &(*last)->next;
    }
    return out;
}

static struct value concat(struct renderer *rd, const struct value *a, const struct value *b) {
    struct value out = substring(rd, a, 0, SIZE_MAX), tail = substring(rd, b, 0, SIZE_MAX);
    struct run **last = &out.runs;
    while (*last) last = &(*last)->next;
    *last = tail.runs;
    return out;
}

static struct value to_string(struct renderer *rd, const struct value *v) {
    char number[32];
    switch (v->kind) {
    case VALUE_STRING: return *v;
    case VALUE_UNDEFINED: return string_of(rd, "", 0, false);
    case VALUE_NONE: return string_of(rd, "None", 4, false);
    case VALUE_BOOL: return v->number ? string_of(rd, "True", 4, false) : string_of(rd, "False", 5, false);
    case VALUE_INT:
        snprintf(number, sizeof number, "%lld", (long long)v->number);
        return string_of(rd, arena_text(&rd->arena, number, strlen(number)), strlen(number), false);
    default: return fail(rd, E_UNSUPPORTED, "a message or a list as text is not supported");
    }
}

static struct value strip(struct renderer *rd, const struct value *v) {
    size_t n, begin = 0;
    const char *s = string_flat(rd, v, &n);
    while (begin < n && isspace((unsigned char)s[begin])) begin++;
    while (n > begin && isspace((unsigned char)s[n - 1])) n--;
    return substring(rd, v, begin, n);
}

static struct value change_case(struct renderer *rd, const struct value *v, int (*fn)(int)) {
    struct value out = substring(rd, v, 0, SIZE_MAX);
    for (struct run *r = out.runs; r; r = r->next) {
        char *copy = arena_text(&rd->arena, r->text, r->n);
        for (size_t i = 0; i < r->n; i++) {
            if ((unsigned char)copy[i] >= 0x80) return fail(rd, E_UNSUPPORTED, "upper and lower take ASCII only");
            copy[i] = (char)fn((unsigned char)copy[i]);
        }
        r->text = copy;
    }
    return out;
}

/* ---------------------------------------------------------------- filters, methods, tests */

static struct value filter_trim(struct renderer *rd, const struct value *v) {
    struct value s = to_string(rd, v);
    return strip(rd, &s);
}

static struct value filter_upper(struct renderer *rd, const struct value *v) {
    struct value s = to_string(rd, v);
    return change_case(rd, &s, toupper);
}

static struct value filter_lower(struct renderer *rd, const struct value *v) {
    struct value s = to_string(rd, v);
    return change_case(rd, &s, tolower);
}

static struct value filter_string(struct renderer *rd, const struct value *v) {
    return to_string(rd, v);
}

static struct value filter_length(struct renderer *rd, const struct value *v) {
    struct value out = {.kind = VALUE_INT};
    if (v->kind == VALUE_MESSAGES) out.number = v->number;
    else if (v->kind == VALUE_STRING) { /* characters, as in Python */
        for (const struct run *r = v->runs; r; r = r->next)
            for (size_t i = 0; i < r->n; i++) out.number += ((unsigned char)r->text[i] & 0xc0) != 0x80;
    } else return fail(rd, E_PARSE, "length of something that has none");
    return out;
}

static struct value item(const struct value *list, int64_t i) {
    if (i < 0) i += list->number;
    if (i < 0 || i >= list->number) return (struct value){.kind = VALUE_UNDEFINED};
    return (struct value){.kind = VALUE_MESSAGE, .messages = list->messages + i};
}

static struct value filter_first(struct renderer *rd, const struct value *v) {
    return v->kind == VALUE_MESSAGES ? item(v, 0) : fail(rd, E_UNSUPPORTED, "first of something that is not a list");
}

static struct value filter_last(struct renderer *rd, const struct value *v) {
    return v->kind == VALUE_MESSAGES ? item(v, -1) : fail(rd, E_UNSUPPORTED, "last of something that is not a list");
}

struct function {
    const char *name;
    struct value (*apply)(struct renderer *rd, const struct value *v);
};

static const struct function filters[] = {{"trim", filter_trim},     {"length", filter_length}, {"count", filter_length},
                                          {"upper", filter_upper},   {"lower", filter_lower},   {"string", filter_string},
                                          {"first", filter_first},   {"last", filter_last}};
static const struct function methods[] = {{"strip", filter_trim}, {"upper", filter_upper}, {"lower", filter_lower}};
static const char *const test_names[] = {"defined", "undefined", "none", "string", "true", "false", "mapping", "iterable"};

static const struct function *find_function(const struct function *table, size_t n, const char *name) {
    for (size_t i = 0; i < n; i++)
        if (strcmp(table[i].name, name) == 0) return &table[i];
    return NULL;
}

#define FIND(table, name) find_function(table, sizeof table / sizeof *table, name)

bool chat_has_filter(const char *name) {
    return FIND(filters, name) != NULL;
}

bool chat_has_method(const char *name) {
    return FIND(methods, name) != NULL;
}

bool chat_has_test(const char *name) {
    for (size_t i = 0; i < sizeof test_names / sizeof *test_names; i++)
        if (strcmp(test_names[i], name) == 0) return true;
    return false;
}

static bool passes_test(const struct value *v, const char *name) {
    if (strcmp(name, "defined") == 0) return v->kind != VALUE_UNDEFINED;
    if (strcmp(name, "undefined") == 0) return v->kind == VALUE_UNDEFINED;
    if (strcmp(name, "none") == 0) return v->kind == VALUE_NONE;
    if (strcmp(name, "string") == 0) return v->kind == VALUE_STRING;
    if (strcmp(name, "true") == 0) return v->kind == VALUE_BOOL && v->number;
    if (strcmp(name, "false") == 0) return v->kind == VALUE_BOOL && !v->number;
    if (strcmp(name, "mapping") == 0) return v->kind == VALUE_MESSAGE;
    return v->kind == VALUE_MESSAGES || v->kind == VALUE_MESSAGE || v->kind == VALUE_STRING; /* iterable */
}

/* ---------------------------------------------------------------- expressions */

static struct value eval(struct renderer *rd, const struct expr *e);

static struct value bool_of(bool b) {
    return (struct value){.kind = VALUE_BOOL, .number = b};
}

static struct value int_of(int64_t n) {
    return (struct value){.kind = VALUE_INT, .number = n};
}

static bool is_true(const struct value *v) {
    switch (v->kind) {
    case VALUE_BOOL:
    case VALUE_INT:
    case VALUE_MESSAGES: return v->number != 0;
    case VALUE_STRING: return string_length(v) > 0;
    case VALUE_MESSAGE:
    case VALUE_LOOP: return true;
    default: return false;
    }
}

static struct value lookup(const struct renderer *rd, const char *name) {
    for (size_t i = rd->n_bindings; i-- > 0;)
        if (strcmp(rd->bindings[i].name, name) == 0) return rd->bindings[i].value;
    return (struct value){.kind = VALUE_UNDEFINED};
}

/* A role that every template knows is the template's business; any other text is the row's. */
static bool is_known_role(const char *role) {
    static const char *const roles[] = {"system", "user", "assistant", "tool", "developer", "function", "model"};
    for (size_t i = 0; i < sizeof roles / sizeof *roles; i++)
        if (strcmp(roles[i], role) == 0) return true;
    return false;
}

static struct value loop_field(const struct value *loop, const char *key) {
    if (strcmp(key, "index") == 0) return int_of(loop->number + 1);
    if (strcmp(key, "index0") == 0) return int_of(loop->number);
    if (strcmp(key, "revindex") == 0) return int_of(loop->length - loop->number);
    if (strcmp(key, "revindex0") == 0) return int_of(loop->length - loop->number - 1);
    if (strcmp(key, "length") == 0) return int_of(loop->length);
    if (strcmp(key, "first") == 0) return bool_of(loop->number == 0);
    if (strcmp(key, "last") == 0) return bool_of(loop->number + 1 == loop->length);
    return (struct value){.kind = VALUE_UNDEFINED};
}

static struct value field(struct renderer *rd, const struct value *of, const struct value *key) {
    size_t n;
    if (key->kind == VALUE_INT && of->kind == VALUE_MESSAGES) return item(of, key->number);
    if (key->kind != VALUE_STRING) return fail(rd, E_UNSUPPORTED, "unsupported index");
    const char *flat = string_flat(rd, key, &n), *name = arena_text(&rd->arena, flat, n);
    if (of->kind == VALUE_UNDEFINED) return fail(rd, E_PARSE, "a field of something that is undefined");
    if (of->kind == VALUE_LOOP) return loop_field(of, name);
    if (of->kind != VALUE_MESSAGE) return (struct value){.kind = VALUE_UNDEFINED};
    const struct chat_message *m = of->messages;
    if (strcmp(name, "role") == 0) return string_of(rd, m->role, strlen(m->role), !is_known_role(m->role));
    if (strcmp(name, "content") == 0) return string_of(rd, m->content, strlen(m->content), true);
    return (struct value){.kind = VALUE_UNDEFINED};
}

static int64_t slice_end(struct renderer *rd, const struct expr *e, int64_t missing, int64_t n) {
    if (!e) return missing;
    struct value v = eval(rd, e);
    if (v.kind != VALUE_INT) {
        fail(rd, E_UNSUPPORTED, "a slice by something that is not a number");
        return 0;
    }
    int64_t i = v.number < 0 ? v.number + n : v.number;
    return i < 0 ? 0 : i > n ? n : i;
}

static struct value slice(struct renderer *rd, const struct expr *e) {
    struct value of = eval(rd, e->a);
    if (of.kind != VALUE_MESSAGES) return fail(rd, E_UNSUPPORTED, "a slice of something that is not a list");
    int64_t from = slice_end(rd, e->b, 0, of.number), to = slice_end(rd, e->c, of.number, of.number);
    if (to < from) to = from;
    return (struct value){.kind = VALUE_MESSAGES, .messages = of.messages + from, .number = to - from};
}

static int compare(struct renderer *rd, const struct value *a, const struct value *b) {
    if (a->kind == VALUE_STRING && b->kind == VALUE_STRING) {
        size_t n, m;
        const char *s = string_flat(rd, a, &n), *t = string_flat(rd, b, &m);
        int c = memcmp(s, t, n < m ? n : m);
        return c ? c : n < m ? -1 : n > m;
    }
    bool a_number = a->kind == VALUE_INT || a->kind == VALUE_BOOL, b_number = b->kind == VALUE_INT || b->kind == VALUE_BOOL;
    if (a_number && b_number) return a->number < b->number ? -1 : a->number > b->number;
    if (a->kind == b->kind && (a->kind == VALUE_NONE || a->kind == VALUE_UNDEFINED)) return 0;
    return 2; /* not equal, and neither comes first */
}

static bool contains(struct renderer *rd, const struct value *part, const struct value *whole) {
    size_t n, m;
    if (whole->kind == VALUE_MESSAGE && part->kind == VALUE_STRING) {
        const char *key = string_flat(rd, part, &n);
        return (n == 4 && memcmp(key, "role", 4) == 0) || (n == 7 && memcmp(key, "content", 7) == 0);
    }
    if (whole->kind != VALUE_STRING || part->kind != VALUE_STRING) {
        fail(rd, E_UNSUPPORTED, "unsupported operands of in");
        return false;
    }
    const char *s = string_flat(rd, part, &n), *t = string_flat(rd, whole, &m);
    return n == 0 || memmem(t, m, s, n) != NULL;
}

static struct value arithmetic(struct renderer *rd, enum expr_kind kind, const struct value *a, const struct value *b) {
    if (kind == EXPR_ADD && a->kind == VALUE_STRING && b->kind == VALUE_STRING) return concat(rd, a, b);
    if (a->kind != VALUE_INT || b->kind != VALUE_INT) return fail(rd, E_PARSE, "operands of + - * % that do not fit");
    int64_t x = a->number, y = b->number, out = 0;
    bool bad = kind == EXPR_ADD ? __builtin_add_overflow(x, y, &out)
               : kind == EXPR_SUB ? __builtin_sub_overflow(x, y, &out)
               : kind == EXPR_MUL ? __builtin_mul_overflow(x, y, &out)
                                  : y == 0 || y == -1;
    if (kind == EXPR_MOD && !bad) out = (x % y + y) % y; /* the sign of the divisor, as in Python */
    if (kind == EXPR_MOD && y == -1) return int_of(0);
    return bad ? fail(rd, E_RANGE, "a number overflows") : int_of(out);
}

static struct value binary(struct renderer *rd, const struct expr *e) {
    struct value a = eval(rd, e->a), b = eval(rd, e->b);
    if (rd->r < 0) return a;
    if (e->kind == EXPR_CONCAT) {
        a = to_string(rd, &a);
        b = to_string(rd, &b);
        return concat(rd, &a, &b);
    }
    if (e->kind == EXPR_IN) return bool_of(contains(rd, &a, &b));
    if (e->kind == EXPR_NOT_IN) return bool_of(!contains(rd, &a, &b));
    if (e->kind < EXPR_EQ) return arithmetic(rd, e->kind, &a, &b);
    int c = compare(rd, &a, &b);
    if (e->kind == EXPR_EQ) return bool_of(c == 0);
    if (e->kind == EXPR_NE) return bool_of(c != 0);
    if (c == 2) return fail(rd, E_PARSE, "an order between things that have none");
    switch (e->kind) {
    case EXPR_LT: return bool_of(c < 0);
    case EXPR_LE: return bool_of(c <= 0);
    case EXPR_GT: return bool_of(c > 0);
    default: return bool_of(c >= 0);
    }
}

static struct value raise(struct renderer *rd, const struct expr *e) {
    struct value v = eval(rd, e->a);
    size_t n;
    v = to_string(rd, &v);
    const char *text = string_flat(rd, &v, &n);
    return fail(rd, E_PARSE, arena_text(&rd->arena, text, n));
}

static struct value eval_inner(struct renderer *rd, const struct expr *e) {
    struct value a, b;
    switch (e->kind) {
    case EXPR_STRING: return string_of(rd, e->text, e->n, false);
    case EXPR_INT: return int_of(e->number);
    case EXPR_BOOL: return bool_of(e->number);
    case EXPR_NONE: return (struct value){.kind = VALUE_NONE};
    case EXPR_NAME: return lookup(rd, e->text);
    case EXPR_INDEX:
        a = eval(rd, e->a);
        b = eval(rd, e->b);
        return rd->r < 0 ? a : field(rd, &a, &b);
    case EXPR_SLICE: return slice(rd, e);
    case EXPR_NOT: a = eval(rd, e->a); return bool_of(!is_true(&a));
    case EXPR_MINUS:
        a = eval(rd, e->a);
        b = int_of(0);
        return arithmetic(rd, EXPR_SUB, &b, &a);
    case EXPR_AND: a = eval(rd, e->a); return is_true(&a) ? eval(rd, e->b) : a;
    case EXPR_OR: a = eval(rd, e->a); return is_true(&a) ? a : eval(rd, e->b);
    case EXPR_IF:
        b = eval(rd, e->b);
        if (is_true(&b)) return eval(rd, e->a);
        return e->c ? eval(rd, e->c) : (struct value){.kind = VALUE_UNDEFINED};
    case EXPR_FILTER: a = eval(rd, e->a); return rd->r < 0 ? a : FIND(filters, e->text)->apply(rd, &a);
    case EXPR_METHOD:
        a = eval(rd, e->a);
        if (rd->r == 0 && a.kind != VALUE_STRING) return fail(rd, E_PARSE, "a method of something that is not text");
        return rd->r < 0 ? a : FIND(methods, e->text)->apply(rd, &a);
    case EXPR_TEST: a = eval(rd, e->a); return bool_of(passes_test(&a, e->text));
    case EXPR_CALL: return raise(rd, e);
    default: return binary(rd, e);
    }
}

static struct value eval(struct renderer *rd, const struct expr *e) {
    if (rd->r < 0) return (struct value){.kind = VALUE_UNDEFINED};
    if (++rd->steps > CHAT_MAX_STEPS) return fail(rd, E_RANGE, "it takes more than a million steps");
    if (rd->arena.bytes > 4 * (size_t)CHAT_MAX_OUTPUT) return fail(rd, E_RANGE, "it needs too much memory");
    return eval_inner(rd, e);
}

/* ---------------------------------------------------------------- nodes */

static void emit(struct renderer *rd, const struct value *v) {
    struct chat_text *out = rd->out;
    for (const struct run *r = v->runs; r; r = r->next) {
        size_t begin = out->text.n;
        buf_append(&out->text, r->text, r->n);
        if (!r->plain || out->text.n == begin) continue;
        if (out->n_plain > 0 && out->plain[out->n_plain - 1].end == begin) {
            out->plain[out->n_plain - 1].end = out->text.n;
            continue;
        }
        if (out->n_plain == out->cap_plain) {
            out->cap_plain = out->cap_plain ? out->cap_plain * 2 : 8;
            out->plain = mem_realloc(out->plain, out->cap_plain, sizeof *out->plain);
        }
        out->plain[out->n_plain++] = (struct text_span){begin, out->text.n};
    }
    if (out->text.full) fail(rd, E_RANGE, "its output passes 8 MiB");
}

static void bind(struct renderer *rd, const char *name, struct value v) {
    for (size_t i = rd->n_bindings; i-- > rd->frame;)
        if (strcmp(rd->bindings[i].name, name) == 0) {
            rd->bindings[i].value = v;
            return;
        }
    if (rd->n_bindings == sizeof rd->bindings / sizeof *rd->bindings) fail(rd, E_RANGE, "it has too many variables");
    else rd->bindings[rd->n_bindings++] = (struct binding){name, v};
}

static void render(struct renderer *rd, const struct node *node);

/* The messages that the loop takes: all, or those that pass its `if`. */
static struct value loop_list(struct renderer *rd, const struct node *node) {
    struct value list = eval(rd, node->expr);
    if (rd->r == 0 && list.kind != VALUE_MESSAGES) return fail(rd, E_UNSUPPORTED, "for over something that is not the messages");
    if (rd->r < 0 || !node->filter) return list;
    struct chat_message *kept = arena_alloc(&rd->arena, (size_t)list.number * sizeof *kept);
    int64_t n = 0;
    for (int64_t i = 0; i < list.number && rd->r == 0; i++) {
        size_t height = rd->n_bindings, frame = rd->frame;
        rd->frame = height;
        bind(rd, node->text, item(&list, i));
        struct value pass = eval(rd, node->filter);
        if (is_true(&pass)) kept[n++] = list.messages[i];
        rd->n_bindings = height;
        rd->frame = frame;
    }
    return (struct value){.kind = VALUE_MESSAGES, .messages = kept, .number = n};
}

static void render_for(struct renderer *rd, const struct node *node) {
    struct value list = loop_list(rd, node);
    if (rd->r == 0 && list.number == 0) render(rd, node->orelse);
    for (int64_t i = 0; i < list.number && rd->r == 0; i++) {
        size_t height = rd->n_bindings, frame = rd->frame;
        rd->frame = height; /* what the body sets ends with the turn */
        bind(rd, node->text, item(&list, i));
        bind(rd, "loop", (struct value){.kind = VALUE_LOOP, .number = i, .length = list.number});
        render(rd, node->body);
        rd->n_bindings = height;
        rd->frame = frame;
    }
}

static void render(struct renderer *rd, const struct node *node) {
    if (++rd->depth > 4 * CHAT_MAX_DEPTH) fail(rd, E_RANGE, "blocks are nested too deeply");
    for (; node && rd->r == 0; node = node->next) {
        struct value v;
        if (++rd->steps > CHAT_MAX_STEPS) fail(rd, E_RANGE, "it takes more than a million steps");
        switch (node->kind) {
        case NODE_TEXT: v = string_of(rd, node->text, node->n, false); break;
        case NODE_OUTPUT:
            v = eval(rd, node->expr);
            if (rd->r == 0) v = to_string(rd, &v);
            break;
        case NODE_IF:
            v = eval(rd, node->expr);
            if (rd->r == 0) render(rd, is_true(&v) ? node->body : node->orelse);
            continue;
        case NODE_FOR: render_for(rd, node); continue;
        case NODE_SET:
            v = eval(rd, node->expr);
            if (rd->r == 0) bind(rd, node->text, v);
            continue;
        }
        if (rd->r == 0) emit(rd, &v);
    }
    rd->depth--;
}

int chat_template_render(const struct chat_template *t, struct chat_text *out, const struct chat_message *messages,
                         size_t n, bool add_generation_prompt, const char *bos, const char *eos, struct err *err) {
    struct renderer *rd = mem_zalloc(1, sizeof *rd);
    out->text.max = CHAT_MAX_OUTPUT;
    rd->out = out;
    rd->err = err;
    bind(rd, "messages", (struct value){.kind = VALUE_MESSAGES, .messages = messages, .number = (int64_t)n});
    bind(rd, "add_generation_prompt", bool_of(add_generation_prompt));
    bind(rd, "bos_token", string_of(rd, bos ? bos : "", bos ? strlen(bos) : 0, false));
    bind(rd, "eos_token", string_of(rd, eos ? eos : "", eos ? strlen(eos) : 0, false));
    render(rd, t->root);
    int r = rd->r;
    arena_clear(&rd->arena);
    free(rd);
    return r;
}

void chat_text_clear(struct chat_text *t) {
    buf_clear(&t->text);
    free(t->plain);
    *t = (struct chat_text){0};
}

int chat_template_new(struct chat_template **out, const char *source, size_t n, struct err *err) {
    struct chat_template *t = mem_zalloc(1, sizeof *t);
    int r = chat_parse(t, source, n, err);
    if (r < 0) chat_template_free(t);
    else *out = t;
    return r;
}

void chat_template_free(struct chat_template *t) {
    if (!t) return;
    arena_clear(&t->arena);
    free(t);
}
