/* chat_access.c - a.name, a[key], a[from:to]; the methods of dicts, lists and loops.
 *
 * There is nothing behind a value but what stands here. Methods that would change a
 * list or a dict are not there, as in Jinja's immutable sandbox. */
#include "base/mem.h"
#include "engine/text/chat_value.h"

#include <string.h>

#define COUNT(table) (sizeof table / sizeof *table)

/* ---------------------------------------------------------------- dicts */

static struct value dict_get_or(struct interp *in, const struct value *self, struct call *call) {
    if (!value_can_be_key(in, &call->slot[0])) return value_none();
    const struct value *v = dict_get(in, self->dict, &call->slot[0]);
    return v ? *v : call->slot[1].kind == VALUE_MISSING ? value_none() : call->slot[1];
}

static struct value dict_keys(struct interp *in, const struct value *self, struct call *call) {
    struct list *list = list_new(in, self->dict->n);
    for (size_t i = 0; i < list->n; i++) list->items[i] = self->dict->pairs[i].key;
    return value_list(VALUE_VIEW, list);
}

static struct value dict_values(struct interp *in, const struct value *self, struct call *call) {
    struct list *list = list_new(in, self->dict->n);
    for (size_t i = 0; i < list->n; i++) list->items[i] = self->dict->pairs[i].value;
    return value_list(VALUE_VIEW, list);
}

static struct value dict_items(struct interp *in, const struct value *self, struct call *call) {
    struct list *list = list_new(in, self->dict->n);
    for (size_t i = 0; i < list->n; i++) {
        struct list *pair = list_new(in, 2);
        if (pair->n == 2) {
            pair->items[0] = self->dict->pairs[i].key;
            pair->items[1] = self->dict->pairs[i].value;
        }
        list->items[i] = value_list(VALUE_TUPLE, pair);
    }
    return value_list(VALUE_VIEW, list);
}

static struct value itself(struct interp *in, const struct value *self, struct call *call) {
    return *self; /* a copy of what cannot be changed */
}

static const struct native dict_methods[] = {{"get", "key! default", dict_get_or}, {"items", "", dict_items},
                                             {"keys", "", dict_keys},             {"values", "", dict_values},
                                             {"copy", "", itself}};
static const char *const dict_forbidden[] = {"clear", "fromkeys", "pop", "popitem", "setdefault", "update"};

/* ---------------------------------------------------------------- lists */

static struct value list_index(struct interp *in, const struct value *self, struct call *call) {
    for (size_t i = 0; i < self->list->n && in->r == 0; i++)
        if (value_equal(in, &self->list->items[i], &call->slot[0])) return value_int((int64_t)i);
    return chat_fail(in, E_PARSE, "index: the value is not in the list");
}

static struct value list_count(struct interp *in, const struct value *self, struct call *call) {
    int64_t n = 0;
    for (size_t i = 0; i < self->list->n && in->r == 0; i++) n += value_equal(in, &self->list->items[i], &call->slot[0]);
    return value_int(n);
}

static const struct native list_methods[] = {{"index", "value!", list_index}, {"count", "value!", list_count}, {"copy", "", itself}};

/* ---------------------------------------------------------------- loops */

static struct value loop_cycle(struct interp *in, const struct value *self, struct call *call) {
    if (call->n == 0) return chat_fail(in, E_PARSE, "loop.cycle without values");
    return call->args[self->loop->index % call->n];
}

static struct value loop_changed(struct interp *in, const struct value *self, struct call *call) {
    struct loop *loop = self->loop;
    struct list *now = list_new(in, call->n);
    for (size_t i = 0; i < now->n; i++) now->items[i] = call->args[i];
    struct value v = value_list(VALUE_TUPLE, now);
    bool same = loop->changed.kind != VALUE_MISSING && value_equal(in, &loop->changed, &v);
    loop->changed = v;
    return value_bool(!same);
}

static const struct native loop_methods[] = {{"cycle", NULL, loop_cycle}, {"changed", NULL, loop_changed}};

static bool is_name(const char *text, const char *name, size_t n) {
    return strlen(text) == n && memcmp(text, name, n) == 0;
}

static struct value loop_field(const struct loop *loop, const char *name, size_t n) {
    int64_t i = (int64_t)loop->index, count = (int64_t)loop->items->n;
    const struct value *items = loop->items->items;
    if (is_name("index", name, n)) return value_int(i + 1);
    if (is_name("index0", name, n)) return value_int(i);
    if (is_name("revindex", name, n)) return value_int(count - i);
    if (is_name("revindex0", name, n)) return value_int(count - i - 1);
    if (is_name("length", name, n)) return value_int(count);
    if (is_name("first", name, n)) return value_bool(i == 0);
    if (is_name("last", name, n)) return value_bool(i + 1 == count);
    if (is_name("depth", name, n)) return value_int(loop->depth);
    if (is_name("depth0", name, n)) return value_int(loop->depth - 1);
    if (is_name("previtem", name, n) && i > 0) return items[i - 1];
    if (is_name("nextitem", name, n) && i + 1 < count) return items[i + 1];
    return (struct value){.kind = VALUE_MISSING};
}

/* ---------------------------------------------------------------- attributes and items */

/* The attribute proper: a method, a loop's field. MISSING = none; undefined = one that is not
 * to be reached. */
static struct value own_attribute(struct interp *in, const struct value *of, const char *name, size_t n) {
    const struct native *f = NULL;
    switch (of->kind) {
    case VALUE_DICT:
        f = native_find(dict_methods, COUNT(dict_methods), name, n);
        for (size_t i = 0; !f && i < COUNT(dict_forbidden); i++)
            if (is_name(dict_forbidden[i], name, n)) return value_undefined(dict_forbidden[i]);
        break;
    case VALUE_LIST:
    case VALUE_TUPLE: f = native_find(list_methods, COUNT(list_methods) - (of->kind == VALUE_TUPLE), name, n); break;
    case VALUE_STRING: f = chat_string_method(name, n); break;
    case VALUE_LOOP:
        f = native_find(loop_methods, COUNT(loop_methods), name, n);
        if (!f) return loop_field(of->loop, name, n);
        break;
    default: break;
    }
    return f ? value_method(in, f, of) : (struct value){.kind = VALUE_MISSING};
}

static struct value undefined_named(struct interp *in, const char *name, size_t n) {
    return value_undefined(arena_text(&in->arena, name, n < 60 ? n : 60));
}

static struct value no_attribute_of_undefined(struct interp *in, const struct value *of) {
    return chat_fail(in, E_PARSE, "%s is undefined", of->text ? of->text : "a value whose field is read");
}

/* A key of a dict, MISSING where there is none. */
static struct value own_key(struct interp *in, const struct value *of, const struct value *key) {
    const struct value *v = NULL;
    if (of->kind == VALUE_DICT || (of->kind == VALUE_NAMESPACE && key->kind == VALUE_STRING)) {
        chat_charge(in, 16 * of->dict->n);
        v = dict_get(in, of->dict, key);
    }
    return v ? *v : (struct value){.kind = VALUE_MISSING};
}

struct value value_attribute(struct interp *in, const struct value *of, const char *name, size_t n) {
    if (of->kind == VALUE_UNDEFINED) return no_attribute_of_undefined(in, of);
    struct value key = value_string(name, n, false), v = own_attribute(in, of, name, n);
    if (v.kind == VALUE_MISSING) v = own_key(in, of, &key);
    return v.kind == VALUE_MISSING ? undefined_named(in, name, n) : v;
}

static bool has_indices(const struct value *v) {
    return v->kind == VALUE_LIST || v->kind == VALUE_TUPLE || (v->kind == VALUE_VIEW && v->list->is_range);
}

static struct value indexed(struct interp *in, const struct value *of, int64_t i) {
    if (of->kind != VALUE_STRING && !has_indices(of)) return (struct value){.kind = VALUE_MISSING};
    int64_t n = value_length(in, of);
    if (i < 0) i += n;
    if (i < 0 || i >= n) return (struct value){.kind = VALUE_MISSING};
    if (of->kind != VALUE_STRING) return of->list->items[i];
    size_t begin = string_byte_of(of, (size_t)i);
    return string_part(of, begin, string_byte_of(of, (size_t)i + 1));
}

struct value value_item(struct interp *in, const struct value *of, const struct value *key) {
    if (of->kind == VALUE_UNDEFINED) return no_attribute_of_undefined(in, of);
    struct value v = own_key(in, of, key);
    if (v.kind == VALUE_MISSING && (key->kind == VALUE_INT || key->kind == VALUE_BOOL)) v = indexed(in, of, key->number);
    if (v.kind == VALUE_MISSING && key->kind == VALUE_STRING) v = own_attribute(in, of, key->text, key->n);
    if (v.kind != VALUE_MISSING) return v;
    return key->kind == VALUE_STRING ? undefined_named(in, key->text, key->n) : value_undefined("an item");
}

/* ---------------------------------------------------------------- slices */

struct bounds {
    int64_t at, step, n; /* n items from `at` on */
};

static int64_t bound(struct interp *in, const struct value *v, int64_t missing) {
    if (!v || v->kind == VALUE_NONE) return missing;
    if (v->kind == VALUE_INT || v->kind == VALUE_BOOL) return v->number;
    chat_fail(in, E_PARSE, "a slice by a %s", value_kind_name(v));
    return missing;
}

static int64_t clamped(int64_t i, int64_t n, int64_t low, int64_t high) {
    if (i < 0) i += n;
    return i < low ? low : i > high ? high : i;
}

static struct bounds slice_bounds(struct interp *in, int64_t n, const struct value *from, const struct value *to,
                                  const struct value *step) {
    struct bounds b = {.step = bound(in, step, 1)};
    if (b.step == 0) chat_fail(in, E_PARSE, "a slice with step 0");
    if (b.step < -n - 1) b.step = -n - 1; /* one item at most: the same */
    if (b.step > n + 1) b.step = n + 1;
    bool back = b.step < 0;
    int64_t low = back ? -1 : 0, high = back ? n - 1 : n;
    b.at = from && from->kind != VALUE_NONE ? clamped(bound(in, from, 0), n, low, high) : back ? high : low;
    int64_t end = to && to->kind != VALUE_NONE ? clamped(bound(in, to, 0), n, low, high) : back ? low : high;
    if (in->r == 0) b.n = back ? (b.at - end - b.step - 1) / -b.step : (end - b.at + b.step - 1) / b.step;
    if (b.n < 0) b.n = 0;
    return b;
}

static struct value slice_string(struct interp *in, const struct value *of, struct bounds b) {
    if (b.n == 0) return value_string("", 0, false);
    if (b.step == 1) {
        size_t begin = string_byte_of(of, (size_t)b.at);
        struct value rest = string_part(of, begin, of->n);
        return string_part(&rest, 0, string_byte_of(&rest, (size_t)b.n));
    }
    const struct list *characters = value_items(in, of);
    struct text *t = text_new(in, of->n);
    for (int64_t i = 0; i < b.n && in->r == 0; i++) text_add_string(in, t, &characters->items[b.at + i * b.step]);
    return text_value(t);
}

struct value value_slice(struct interp *in, const struct value *of, const struct value *from, const struct value *to,
                         const struct value *step) {
    if (of->kind == VALUE_UNDEFINED) return no_attribute_of_undefined(in, of);
    if (of->kind != VALUE_STRING && !has_indices(of)) return chat_fail(in, E_PARSE, "a slice of a %s", value_kind_name(of));
    struct bounds b = slice_bounds(in, value_length(in, of), from, to, step);
    if (in->r < 0) return value_undefined(NULL);
    if (of->kind == VALUE_STRING) return slice_string(in, of, b);
    struct list *list = list_new(in, (size_t)b.n);
    list->is_range = of->list->is_range;
    for (size_t i = 0; i < list->n; i++) list->items[i] = of->list->items[b.at + (int64_t)i * b.step];
    return value_list(of->kind, list);
}
