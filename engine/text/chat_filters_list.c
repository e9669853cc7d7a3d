/* chat_filters_list.c - filters on lists and dicts. Those that are generators in Jinja give
 * an iterator here, worked out at once: it is true, has no length and is spent once walked. */
#include "base/mem.h"
#include "engine/text/chat_tree.h"

#include <ctype.h>
#include <string.h>

#define COUNT(table) (sizeof table / sizeof *table)

static bool given(const struct value *v) {
    return v->kind != VALUE_MISSING;
}

static bool flag(const struct value *v) {
    return given(v) && value_is_true(v);
}

static struct value iterator(struct list *list) {
    return value_list(VALUE_ITERATOR, list);
}

static struct list *copy_of(struct interp *in, const struct list *items) {
    struct list *list = list_new(in, items->n);
    if (list->n) memcpy(list->items, items->items, list->n * sizeof *list->items);
    return list;
}

static struct value pair_of(struct interp *in, struct value a, struct value b) {
    struct list *pair = list_new(in, 2);
    if (pair->n == 2) pair->items[0] = a, pair->items[1] = b;
    return value_list(VALUE_TUPLE, pair);
}

/* ---------------------------------------------------------------- attributes of items */

static struct value part_of(struct interp *in, const struct value *of, const char *name, size_t n) {
    int64_t number = 0;
    bool digits = n > 0 && n < 10;
    for (size_t i = 0; i < n && digits; i++) {
        digits = isdigit((unsigned char)name[i]);
        number = number * 10 + (name[i] - '0');
    }
    struct value key = digits ? value_int(number) : value_string(name, n, false);
    return value_item(in, of, &key);
}

/* item.a.b.0 of attribute "a.b.0"; `missing` takes the place of what is undefined, NULL = nothing does. */
static struct value attribute_of(struct interp *in, const struct value *item, const struct value *attribute,
                                 const struct value *missing) {
    struct value v = *item;
    if (!given(attribute) || attribute->kind == VALUE_NONE) return v;
    if (attribute->kind != VALUE_STRING) return value_item(in, item, attribute);
    for (size_t at = 0; at <= attribute->n && in->r == 0;) {
        const char *dot = memchr(attribute->text + at, '.', attribute->n - at);
        size_t end = dot ? (size_t)(dot - attribute->text) : attribute->n;
        v = part_of(in, &v, attribute->text + at, end - at);
        if (missing && missing->kind != VALUE_NONE && v.kind == VALUE_UNDEFINED) v = *missing;
        at = end + 1;
    }
    return v;
}

/* ---------------------------------------------------------------- ends and orders */

static struct value filter_first(struct interp *in, const struct value *self, struct call *call) {
    if (self->kind == VALUE_ITERATOR) /* one item is spent */
        return self->list->next < self->list->n ? self->list->items[self->list->next++] : value_undefined("first of nothing");
    const struct list *items = value_items(in, self);
    return items->n ? items->items[0] : value_undefined("first of nothing");
}

static struct value filter_last(struct interp *in, const struct value *self, struct call *call) {
    if (self->kind == VALUE_ITERATOR) return chat_fail(in, E_PARSE, "last of a generator");
    const struct list *items = value_items(in, self);
    return items->n ? items->items[items->n - 1] : value_undefined("last of nothing");
}

static struct value filter_list(struct interp *in, const struct value *self, struct call *call) {
    return value_list(VALUE_LIST, copy_of(in, value_items(in, self)));
}

static struct value filter_reverse(struct interp *in, const struct value *self, struct call *call) {
    struct value back = value_int(-1);
    if (self->kind == VALUE_STRING) return value_slice(in, self, NULL, NULL, &back);
    const struct list *items = value_items(in, self);
    struct list *list = list_new(in, items->n);
    for (size_t i = 0; i < list->n; i++) list->items[i] = items->items[items->n - 1 - i];
    return self->kind == VALUE_ITERATOR ? value_list(VALUE_LIST, list) : iterator(list);
}

/* What an item is ordered by: its attribute, in lower case where case does not count. */
static struct value sort_key(struct interp *in, const struct value *item, const struct value *attribute, bool case_sensitive) {
    struct value key = attribute_of(in, item, attribute, NULL);
    return key.kind == VALUE_STRING && !case_sensitive ? string_case(in, &key, CASE_LOWER) : key;
}

struct keyed {
    struct value key, item;
};

/* Merge runs of `width` items from a to b; equal ones keep their order. */
static void merge(struct interp *in, struct keyed *b, const struct keyed *a, size_t n, size_t width, int sign) {
    for (size_t from = 0; from < n && in->r == 0; from += 2 * width) {
        size_t i = from, mid = from + width < n ? from + width : n, j = mid, end = from + 2 * width < n ? from + 2 * width : n;
        for (size_t k = from; k < end; k++) {
            bool right = j < end && (i >= mid || (chat_charge(in, 0) && sign * value_compare(in, &a[j].key, &a[i].key) < 0));
            b[k] = a[right ? j++ : i++];
        }
    }
}

static struct list *sorted(struct interp *in, const struct list *items, const struct value *attribute, bool case_sensitive,
                           bool reverse) {
    size_t n = items->n;
    struct list *out = list_new(in, n);
    if (out->n == 0 || !chat_room(in, 2 * n * sizeof(struct keyed))) return out;
    struct keyed *a = arena_alloc(&in->arena, n * sizeof *a), *b = arena_alloc(&in->arena, n * sizeof *b);
    for (size_t i = 0; i < n && in->r == 0; i++)
        a[i] = (struct keyed){sort_key(in, &items->items[i], attribute, case_sensitive), items->items[i]};
    for (size_t width = 1; width < n; width *= 2) {
        merge(in, b, a, n, width, reverse ? -1 : 1);
        struct keyed *t = a;
        a = b;
        b = t;
    }
    for (size_t i = 0; i < n; i++) out->items[i] = a[i].item;
    return out;
}

static struct value filter_sort(struct interp *in, const struct value *self, struct call *call) {
    const struct value *attribute = &call->slot[2];
    if (attribute->kind == VALUE_STRING && memchr(attribute->text, ',', attribute->n))
        return chat_fail(in, E_UNSUPPORTED, "unsupported: sort by several attributes");
    return value_list(VALUE_LIST, sorted(in, value_items(in, self), attribute, flag(&call->slot[1]), flag(&call->slot[0])));
}

static struct value filter_dictsort(struct interp *in, const struct value *self, struct call *call) {
    struct value by = value_int(given(&call->slot[1]) && value_is(&call->slot[1], "value"));
    if (self->kind != VALUE_DICT) return chat_fail(in, E_PARSE, "dictsort of a %s", value_kind_name(self));
    struct list *pairs = list_new(in, self->dict->n);
    for (size_t i = 0; i < pairs->n; i++) pairs->items[i] = pair_of(in, self->dict->pairs[i].key, self->dict->pairs[i].value);
    return value_list(VALUE_LIST, sorted(in, pairs, &by, flag(&call->slot[0]), flag(&call->slot[2])));
}

static struct value extreme(struct interp *in, const struct value *self, struct call *call, int sign) {
    const struct list *items = value_items(in, self);
    struct value best = value_undefined("the extreme of nothing"), best_key = best;
    for (size_t i = 0; i < items->n && in->r == 0; i++) {
        struct value key = sort_key(in, &items->items[i], &call->slot[1], flag(&call->slot[0]));
        if (i > 0 && sign * value_compare(in, &key, &best_key) <= 0) continue;
        best = items->items[i];
        best_key = key;
    }
    return best;
}

static struct value filter_min(struct interp *in, const struct value *self, struct call *call) {
    return extreme(in, self, call, -1);
}

static struct value filter_max(struct interp *in, const struct value *self, struct call *call) {
    return extreme(in, self, call, 1);
}

static struct value filter_unique(struct interp *in, const struct value *self, struct call *call) {
    const struct list *items = value_items(in, self);
    struct list *out = list_new(in, 0), *seen = list_new(in, 0);
    for (size_t i = 0; i < items->n && in->r == 0; i++) {
        struct value key = sort_key(in, &items->items[i], &call->slot[1], flag(&call->slot[0])), all = value_list(VALUE_LIST, seen);
        if (!value_can_be_key(in, &key) || value_contains(in, &all, &key)) continue;
        list_push(in, seen, key);
        list_push(in, out, items->items[i]);
    }
    return iterator(out);
}

/* ---------------------------------------------------------------- one value of many */

static struct value filter_join(struct interp *in, const struct value *self, struct call *call) {
    const struct list *items = value_items(in, self);
    struct value by = given(&call->slot[0]) ? value_to_string(in, &call->slot[0]) : value_literal("");
    struct text *t = text_new(in, 0);
    for (size_t i = 0; i < items->n && in->r == 0; i++) {
        struct value v = attribute_of(in, &items->items[i], &call->slot[1], NULL);
        if (i > 0) text_add_string(in, t, &by);
        print_value(in, t, &v);
    }
    return text_value(t);
}

static struct value filter_sum(struct interp *in, const struct value *self, struct call *call) {
    const struct list *items = value_items(in, self);
    struct value sum = given(&call->slot[1]) ? call->slot[1] : value_int(0);
    if (sum.kind == VALUE_STRING) return chat_fail(in, E_PARSE, "sum of strings");
    for (size_t i = 0; i < items->n && in->r == 0; i++) {
        struct value v = attribute_of(in, &items->items[i], &call->slot[0], NULL);
        sum = value_arithmetic(in, '+', &sum, &v);
    }
    return sum;
}

static struct value filter_items(struct interp *in, const struct value *self, struct call *call) {
    struct call none = {0};
    if (self->kind == VALUE_UNDEFINED) return iterator(list_new(in, 0));
    if (self->kind != VALUE_DICT) return chat_fail(in, E_PARSE, "items of a %s", value_kind_name(self));
    struct value method = value_attribute(in, self, "items", 5), view = chat_call(in, &method, &none);
    return in->r < 0 ? view : iterator(view.list);
}

/* ---------------------------------------------------------------- rows and columns */

static struct value filter_batch(struct interp *in, const struct value *self, struct call *call) {
    const struct list *items = value_items(in, self);
    struct list *out = list_new(in, 0), *row = NULL;
    const struct value *count = &call->slot[0], *fill = &call->slot[1];
    if (count->kind != VALUE_INT || count->number < 1) return chat_fail(in, E_PARSE, "batch by something that is no count");
    for (size_t i = 0; i < items->n && in->r == 0; i++) {
        if (i % (size_t)count->number == 0) list_push(in, out, value_list(VALUE_LIST, row = list_new(in, 0)));
        list_push(in, row, items->items[i]);
    }
    while (row && given(fill) && fill->kind != VALUE_NONE && row->n < (size_t)count->number && chat_charge(in, 0))
        list_push(in, row, *fill);
    return iterator(out);
}

static struct value filter_slice(struct interp *in, const struct value *self, struct call *call) {
    const struct list *items = value_items(in, self);
    struct list *out = list_new(in, 0);
    const struct value *count = &call->slot[0], *fill = &call->slot[1];
    if (count->kind != VALUE_INT || count->number < 1) return chat_fail(in, E_PARSE, "slice by something that is no count");
    size_t slices = (size_t)count->number, each = items->n / slices, more = items->n % slices, at = 0;
    for (size_t i = 0; i < slices && chat_charge(in, 0); i++) {
        struct list *row = list_new(in, 0);
        for (size_t k = 0; k < each + (i < more); k++) list_push(in, row, items->items[at++]);
        if (given(fill) && fill->kind != VALUE_NONE && i >= more) list_push(in, row, *fill);
        list_push(in, out, value_list(VALUE_LIST, row));
    }
    return iterator(out);
}

/* ---------------------------------------------------------------- map and select */

/* Call the filter or test that the first argument names, with the arguments behind it. */
static struct value call_named(struct interp *in, const struct native *(*find)(const char *, size_t), const struct value *name,
                               const struct value *item, const struct call *call, size_t skip) {
    const struct native *f = name->kind == VALUE_STRING ? find(name->text, name->n) : NULL;
    if (!f)
        return chat_fail(in, E_UNSUPPORTED, "unsupported filter or test \"%.*s\"",
                         name->kind == VALUE_STRING && name->n < 40 ? (int)name->n : 0, name->kind == VALUE_STRING ? name->text : "");
    struct call inner = {.args = call->args + skip, .n = call->n - skip, .keywords = call->keywords, .n_keywords = call->n_keywords};
    return native_call(in, f, item, &inner);
}

static struct value map_attribute(struct interp *in, const struct value *self, struct call *call) {
    const struct list *items = value_items(in, self);
    struct list *out = list_new(in, items->n);
    struct value attribute = {.kind = VALUE_MISSING}, missing = value_none();
    for (size_t i = 0; i < call->n_keywords; i++) {
        if (strcmp(call->keywords[i].name, "attribute") == 0) attribute = call->keywords[i].value;
        else if (strcmp(call->keywords[i].name, "default") == 0) missing = call->keywords[i].value;
        else return chat_fail(in, E_PARSE, "map has no parameter %.40s", call->keywords[i].name);
    }
    if (!given(&attribute)) return chat_fail(in, E_PARSE, "map needs a filter or an attribute");
    for (size_t i = 0; i < out->n && in->r == 0; i++) out->items[i] = attribute_of(in, &items->items[i], &attribute, &missing);
    return iterator(out);
}

static struct value filter_map(struct interp *in, const struct value *self, struct call *call) {
    if (!value_is_true(self)) return iterator(list_new(in, 0));
    if (call->n == 0) return map_attribute(in, self, call);
    const struct list *items = value_items(in, self);
    struct list *out = list_new(in, items->n);
    for (size_t i = 0; i < out->n && chat_charge(in, 0); i++)
        out->items[i] = call_named(in, chat_filter, &call->args[0], &items->items[i], call, 1);
    return iterator(out);
}

static struct value select_items(struct interp *in, const struct value *self, struct call *call, bool want, bool by_attribute) {
    if (!value_is_true(self)) return iterator(list_new(in, 0));
    const struct list *items = value_items(in, self);
    struct list *out = list_new(in, 0);
    if (by_attribute && call->n == 0) return chat_fail(in, E_PARSE, "an attribute is missing");
    for (size_t i = 0; i < items->n && chat_charge(in, 0); i++) {
        struct value v = by_attribute ? attribute_of(in, &items->items[i], &call->args[0], NULL) : items->items[i];
        if (call->n > by_attribute) v = call_named(in, chat_test, &call->args[by_attribute], &v, call, 1 + (size_t)by_attribute);
        if (in->r == 0 && value_is_true(&v) == want) list_push(in, out, items->items[i]);
    }
    return iterator(out);
}

static struct value filter_select(struct interp *in, const struct value *self, struct call *call) {
    return select_items(in, self, call, true, false);
}

static struct value filter_reject(struct interp *in, const struct value *self, struct call *call) {
    return select_items(in, self, call, false, false);
}

static struct value filter_selectattr(struct interp *in, const struct value *self, struct call *call) {
    return select_items(in, self, call, true, true);
}

static struct value filter_rejectattr(struct interp *in, const struct value *self, struct call *call) {
    return select_items(in, self, call, false, true);
}

static const struct native filters[] = {
    {"batch", "linecount! fill_with", filter_batch},
    {"dictsort", "case_sensitive by reverse", filter_dictsort},
    {"first", "", filter_first},
    {"items", "", filter_items},
    {"join", "d attribute", filter_join},
    {"last", "", filter_last},
    {"list", "", filter_list},
    {"map", NULL, filter_map},
    {"max", "case_sensitive attribute", filter_max},
    {"min", "case_sensitive attribute", filter_min},
    {"reject", NULL, filter_reject},
    {"rejectattr", NULL, filter_rejectattr},
    {"reverse", "", filter_reverse},
    {"select", NULL, filter_select},
    {"selectattr", NULL, filter_selectattr},
    {"slice", "slices! fill_with", filter_slice},
    {"sort", "reverse case_sensitive attribute", filter_sort},
    {"sum", "attribute start", filter_sum},
    {"unique", "case_sensitive attribute", filter_unique},
};

const struct native *chat_list_filter(const char *name, size_t n) {
    return native_find(filters, COUNT(filters), name, n);
}
