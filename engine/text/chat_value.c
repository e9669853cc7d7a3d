/* chat_value.c - values of a template: making, comparing, measuring, walking them. */
#include "base/mem.h"
#include "engine/text/chat_value.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

/* ---------------------------------------------------------------- failure and limits */

struct value chat_fail(struct interp *in, int code, const char *fmt, ...) {
    if (in->r == 0) {
        char text[600];
        va_list ap;
        va_start(ap, fmt);
        vsnprintf(text, sizeof text, fmt, ap);
        va_end(ap);
        in->r = err_set(in->err, code, "chat template: %s", text);
    }
    return value_undefined(NULL);
}

bool chat_work(struct interp *in, size_t n) {
    in->work += (int64_t)(n < CHAT_MAX_MEMORY ? n : CHAT_MAX_MEMORY);
    if (in->work <= 256 * (int64_t)CHAT_MAX_STEPS) return in->r == 0;
    chat_fail(in, E_RANGE, "it takes more than a million steps");
    return false;
}

bool chat_charge(struct interp *in, size_t n) {
    return chat_work(in, n + 256);
}

bool chat_room(struct interp *in, size_t n) {
    if (n <= CHAT_MAX_MEMORY && in->arena.bytes + n <= CHAT_MAX_MEMORY) return in->r == 0;
    chat_fail(in, E_RANGE, "it needs more than 64 MiB of memory");
    return false;
}

bool chat_enter(struct interp *in) {
    if (in->r < 0) return false;
    if (in->depth < CHAT_MAX_DEPTH) return in->depth++, true;
    chat_fail(in, E_RANGE, "calls or values are nested too deeply");
    return false;
}

/* ---------------------------------------------------------------- making values */

struct value value_undefined(const char *name) {
    return (struct value){.kind = VALUE_UNDEFINED, .text = name};
}

struct value value_none(void) {
    return (struct value){.kind = VALUE_NONE};
}

struct value value_bool(bool b) {
    return (struct value){.kind = VALUE_BOOL, .number = b};
}

struct value value_int(int64_t n) {
    return (struct value){.kind = VALUE_INT, .number = n};
}

struct value value_float(double x) {
    return (struct value){.kind = VALUE_FLOAT, .real = x};
}

struct value value_string(const char *text, size_t n, bool plain) {
    return (struct value){.kind = VALUE_STRING, .plain = plain, .n = n, .text = text};
}

struct value value_literal(const char *text) {
    return value_string(text, strlen(text), false);
}

struct value value_list(enum value_kind kind, struct list *list) {
    return (struct value){.kind = kind, .list = list};
}

struct value value_method(struct interp *in, const struct native *f, const struct value *self) {
    struct value *copy = arena_alloc(&in->arena, sizeof *copy);
    *copy = *self;
    return (struct value){.kind = VALUE_METHOD, .native = f, .self = copy};
}

struct list *list_new(struct interp *in, size_t n) {
    struct list *list = arena_alloc(&in->arena, sizeof *list);
    if (n == 0 || !chat_charge(in, n) || !chat_room(in, n * sizeof *list->items)) return list;
    list->items = arena_alloc(&in->arena, n * sizeof *list->items);
    list->n = n;
    return list;
}

/* Room doubles, so it is full at each power of two from 4 on. For lists made by pushing alone. */
void list_push(struct interp *in, struct list *list, struct value v) {
    size_t n = list->n, bytes = n * sizeof v;
    bool full = n == 0 || (n >= 4 && (n & (n - 1)) == 0);
    if (full) {
        size_t more = n ? 2 * bytes : 4 * sizeof v;
        if (!chat_charge(in, n) || !chat_room(in, more)) return;
        list->items = arena_resize(&in->arena, list->items, bytes, more);
    }
    list->items[list->n++] = v;
}

struct dict *dict_new(struct interp *in) {
    return arena_alloc(&in->arena, sizeof(struct dict));
}

const struct value *dict_get(struct interp *in, const struct dict *dict, const struct value *key) {
    for (size_t i = 0; i < dict->n; i++)
        if (value_equal(in, &dict->pairs[i].key, key)) return &dict->pairs[i].value;
    return NULL;
}

const struct value *dict_get_text(struct interp *in, const struct dict *dict, const char *key) {
    struct value v = value_literal(key);
    return dict_get(in, dict, &v);
}

bool value_can_be_key(struct interp *in, const struct value *v) {
    for (size_t i = 0; v->kind == VALUE_TUPLE && i < v->list->n; i++) { /* ((1, 2), []) */
        if (!chat_enter(in)) return false;
        bool can = value_can_be_key(in, &v->list->items[i]);
        in->depth--;
        if (!can) return false;
    }
    if (v->kind != VALUE_LIST && v->kind != VALUE_DICT) return true;
    chat_fail(in, E_PARSE, "a %s as a key", value_kind_name(v));
    return false;
}

void dict_set(struct interp *in, struct dict *dict, struct value key, struct value v) {
    if (!value_can_be_key(in, &key)) return;
    struct value *old = (struct value *)dict_get(in, dict, &key);
    if (old) {
        *old = v;
        return;
    }
    if (dict->n == dict->cap) {
        size_t cap = dict->cap ? 2 * dict->cap : 4, bytes = cap * sizeof *dict->pairs;
        if (!chat_room(in, bytes)) return;
        dict->pairs = arena_resize(&in->arena, dict->pairs, dict->n * sizeof *dict->pairs, bytes);
        dict->cap = cap;
    }
    dict->pairs[dict->n++] = (struct pair){key, v};
}

static struct value dict_from_json(struct interp *in, const json_t *json) {
    struct dict *dict = dict_new(in);
    size_t n = json_object_size(json);
    struct value out = {.kind = VALUE_DICT, .dict = dict};
    if (!chat_charge(in, n) || !chat_room(in, n * sizeof *dict->pairs)) return out;
    dict->pairs = n ? arena_alloc(&in->arena, n * sizeof *dict->pairs) : NULL;
    dict->cap = n;
    for (void *it = json_object_iter((json_t *)json); it && in->r == 0; it = json_object_iter_next((json_t *)json, it)) {
        const char *key = json_object_iter_key(it); /* keys of an object differ: no need to look */
        struct value v = value_from_json(in, json_object_iter_value(it));
        dict->pairs[dict->n++] = (struct pair){value_string(key, strlen(key), true), v};
    }
    return out;
}

static struct value list_from_json(struct interp *in, const json_t *json) {
    struct list *list = list_new(in, json_array_size(json));
    for (size_t i = 0; i < list->n && in->r == 0; i++) list->items[i] = value_from_json(in, json_array_get(json, i));
    return value_list(VALUE_LIST, list);
}

struct value value_from_json(struct interp *in, const json_t *json) {
    struct value v = value_none();
    switch (json_typeof(json)) {
    case JSON_STRING: return value_string(json_string_value(json), json_string_length(json), true);
    case JSON_INTEGER: return value_int(json_integer_value(json));
    case JSON_REAL: return value_float(json_real_value(json));
    case JSON_TRUE: return value_bool(true);
    case JSON_FALSE: return value_bool(false);
    case JSON_NULL: return v;
    default: break;
    }
    if (!chat_enter(in)) return v;
    v = json_is_object(json) ? dict_from_json(in, json) : list_from_json(in, json);
    in->depth--;
    return v;
}

/* ---------------------------------------------------------------- asking values */

bool value_is(const struct value *v, const char *text) {
    return v->kind == VALUE_STRING && v->n == strlen(text) && memcmp(v->text, text, v->n) == 0;
}

bool value_is_number(const struct value *v) {
    return v->kind == VALUE_BOOL || v->kind == VALUE_INT || v->kind == VALUE_FLOAT;
}

bool value_is_sequence(const struct value *v) {
    return v->kind >= VALUE_LIST && v->kind <= VALUE_ITERATOR;
}

double value_real(const struct value *v) {
    return v->kind == VALUE_FLOAT ? v->real : (double)v->number;
}

bool value_is_true(const struct value *v) {
    switch (v->kind) {
    case VALUE_BOOL:
    case VALUE_INT: return v->number != 0;
    case VALUE_FLOAT: return v->real != 0;
    case VALUE_STRING: return v->n > 0;
    case VALUE_LIST:
    case VALUE_TUPLE:
    case VALUE_VIEW: return v->list->n > 0;
    case VALUE_DICT: return v->dict->n > 0;
    case VALUE_UNDEFINED:
    case VALUE_MISSING:
    case VALUE_NONE: return false;
    default: return true;
    }
}

const char *value_kind_name(const struct value *v) {
    static const char *const names[] = {"undefined value", "missing value", "none",      "bool", "int",       "float",
                                        "string",          "list",          "tuple",     "view", "generator", "dict",
                                        "namespace",       "loop",          "macro",     "function", "method"};
    return names[v->kind];
}

int64_t value_length(struct interp *in, const struct value *v) {
    switch (v->kind) {
    case VALUE_STRING: chat_charge(in, v->n); return (int64_t)string_characters(v);
    case VALUE_LIST:
    case VALUE_TUPLE:
    case VALUE_VIEW: return (int64_t)v->list->n;
    case VALUE_DICT: return (int64_t)v->dict->n;
    case VALUE_LOOP: return (int64_t)v->loop->items->n;
    case VALUE_UNDEFINED: return 0;
    default: chat_fail(in, E_PARSE, "a %s has no length", value_kind_name(v)); return 0;
    }
}

static bool dicts_equal(struct interp *in, const struct dict *a, const struct dict *b) {
    if (a->n != b->n) return false;
    for (size_t i = 0; i < a->n && in->r == 0; i++) {
        const struct value *other = dict_get(in, b, &a->pairs[i].key);
        if (!other || !value_equal(in, &a->pairs[i].value, other)) return false;
    }
    return true;
}

static bool lists_equal(struct interp *in, const struct list *a, const struct list *b) {
    if (a->n != b->n) return false;
    for (size_t i = 0; i < a->n && in->r == 0; i++)
        if (!value_equal(in, &a->items[i], &b->items[i])) return false;
    return true;
}

static bool same_kind_equal(struct interp *in, const struct value *a, const struct value *b) {
    switch (a->kind) {
    case VALUE_STRING: return a->n == b->n && chat_charge(in, a->n) && (a->n == 0 || memcmp(a->text, b->text, a->n) == 0);
    case VALUE_UNDEFINED:
    case VALUE_NONE: return true;
    case VALUE_LIST:
    case VALUE_TUPLE:
    case VALUE_VIEW:
    case VALUE_DICT: {
        if (a->list == b->list) return true;
        if (!chat_charge(in, 0) || !chat_enter(in)) return false;
        bool is = a->kind == VALUE_DICT ? dicts_equal(in, a->dict, b->dict) : lists_equal(in, a->list, b->list);
        in->depth--;
        return is;
    }
    default: return a->list == b->list;
    }
}

bool value_equal(struct interp *in, const struct value *a, const struct value *b) {
    if (value_is_number(a) && value_is_number(b)) {
        if (a->kind != VALUE_FLOAT && b->kind != VALUE_FLOAT) return a->number == b->number;
        return value_real(a) == value_real(b);
    }
    return a->kind == b->kind && same_kind_equal(in, a, b);
}

static int compare_strings(struct interp *in, const struct value *a, const struct value *b) {
    size_t n = a->n < b->n ? a->n : b->n;
    chat_charge(in, n);
    int c = n ? memcmp(a->text, b->text, n) : 0; /* the order of UTF-8 is that of code points */
    return c ? c : (a->n > b->n) - (a->n < b->n);
}

static int compare_lists(struct interp *in, const struct list *a, const struct list *b) {
    int c = 0;
    if (!chat_charge(in, 0) || !chat_enter(in)) return 0;
    for (size_t i = 0; i < a->n && i < b->n && in->r == 0 && c == 0; i++)
        if (!value_equal(in, &a->items[i], &b->items[i])) c = value_compare(in, &a->items[i], &b->items[i]);
    in->depth--;
    return c ? c : (a->n > b->n) - (a->n < b->n);
}

int value_compare(struct interp *in, const struct value *a, const struct value *b) {
    if (value_is_number(a) && value_is_number(b)) {
        if (a->kind != VALUE_FLOAT && b->kind != VALUE_FLOAT) return (a->number > b->number) - (a->number < b->number);
        return (value_real(a) > value_real(b)) - (value_real(a) < value_real(b));
    }
    if (a->kind == VALUE_STRING && b->kind == VALUE_STRING) return compare_strings(in, a, b);
    if (a->kind == b->kind && (a->kind == VALUE_LIST || a->kind == VALUE_TUPLE)) return compare_lists(in, a->list, b->list);
    chat_fail(in, E_PARSE, "no order between a %s and a %s", value_kind_name(a), value_kind_name(b));
    return 0;
}

static bool list_contains(struct interp *in, const struct list *list, const struct value *part) {
    chat_charge(in, 16 * list->n);
    for (size_t i = 0; i < list->n && in->r == 0; i++)
        if (value_equal(in, &list->items[i], part)) return true;
    return false;
}

bool value_contains(struct interp *in, const struct value *whole, const struct value *part) {
    if (whole->kind == VALUE_STRING && part->kind == VALUE_STRING) {
        chat_charge(in, 4 * whole->n);
        return part->n == 0 || (whole->n > 0 && memmem(whole->text, whole->n, part->text, part->n));
    }
    if (whole->kind == VALUE_DICT) {
        chat_charge(in, 16 * whole->dict->n);
        return value_can_be_key(in, part) && dict_get(in, whole->dict, part) != NULL;
    }
    if (value_is_sequence(whole)) return list_contains(in, value_items(in, whole), part);
    if (whole->kind != VALUE_UNDEFINED)
        chat_fail(in, E_PARSE, "a %s in a %s", value_kind_name(part), value_kind_name(whole));
    return false;
}

/* ---------------------------------------------------------------- walking */

static const struct list *list_of_characters(struct interp *in, const struct value *s) {
    struct list *list = list_new(in, string_characters(s));
    for (size_t i = 0, at = 0; i < list->n; i++) {
        size_t end = at + 1;
        while (end < s->n && ((unsigned char)s->text[end] & 0xc0) == 0x80) end++;
        list->items[i] = string_part(s, at, end);
        at = end;
    }
    return list;
}

static const struct list *list_of_keys(struct interp *in, const struct dict *dict) {
    struct list *list = list_new(in, dict->n);
    for (size_t i = 0; i < list->n; i++) list->items[i] = dict->pairs[i].key;
    return list;
}

/* What is left of an iterator, which is empty afterwards. */
static const struct list *list_of_rest(struct interp *in, struct list *list) {
    struct list *rest = arena_alloc(&in->arena, sizeof *rest);
    rest->items = list->items + list->next;
    rest->n = list->n - list->next;
    list->next = list->n;
    return rest;
}

const struct list *value_items(struct interp *in, const struct value *v) {
    static const struct list empty;
    switch (v->kind) {
    case VALUE_LIST:
    case VALUE_TUPLE:
    case VALUE_VIEW: return v->list;
    case VALUE_ITERATOR: return list_of_rest(in, v->list);
    case VALUE_STRING: return list_of_characters(in, v);
    case VALUE_DICT: return list_of_keys(in, v->dict);
    case VALUE_UNDEFINED: return &empty;
    default: chat_fail(in, E_PARSE, "a %s cannot be walked", value_kind_name(v)); return &empty;
    }
}
