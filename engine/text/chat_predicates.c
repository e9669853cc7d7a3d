/* chat_predicates.c - Jinja's tests: what stands behind `is`. */
#include "engine/text/chat_tree.h"

#include <string.h>

#define COUNT(table) (sizeof table / sizeof *table)

static struct value is_defined(struct interp *in, const struct value *v, struct call *call) {
    return value_bool(v->kind != VALUE_UNDEFINED);
}

static struct value is_undefined(struct interp *in, const struct value *v, struct call *call) {
    return value_bool(v->kind == VALUE_UNDEFINED);
}

static struct value is_none(struct interp *in, const struct value *v, struct call *call) {
    return value_bool(v->kind == VALUE_NONE);
}

static struct value is_boolean(struct interp *in, const struct value *v, struct call *call) {
    return value_bool(v->kind == VALUE_BOOL);
}

static struct value is_true(struct interp *in, const struct value *v, struct call *call) {
    return value_bool(v->kind == VALUE_BOOL && v->number);
}

static struct value is_false(struct interp *in, const struct value *v, struct call *call) {
    return value_bool(v->kind == VALUE_BOOL && !v->number);
}

static struct value is_integer(struct interp *in, const struct value *v, struct call *call) {
    return value_bool(v->kind == VALUE_INT);
}

static struct value is_float(struct interp *in, const struct value *v, struct call *call) {
    return value_bool(v->kind == VALUE_FLOAT);
}

static struct value is_number(struct interp *in, const struct value *v, struct call *call) {
    return value_bool(value_is_number(v));
}

static struct value is_string(struct interp *in, const struct value *v, struct call *call) {
    return value_bool(v->kind == VALUE_STRING);
}

static struct value is_mapping(struct interp *in, const struct value *v, struct call *call) {
    return value_bool(v->kind == VALUE_DICT);
}

static struct value is_iterable(struct interp *in, const struct value *v, struct call *call) {
    return value_bool(value_is_sequence(v) || v->kind == VALUE_STRING || v->kind == VALUE_DICT || v->kind == VALUE_UNDEFINED ||
                      v->kind == VALUE_LOOP);
}

/* Has a length and items by key: a view of a dict has not. */
static struct value is_sequence(struct interp *in, const struct value *v, struct call *call) {
    return value_bool(v->kind == VALUE_LIST || v->kind == VALUE_TUPLE || (v->kind == VALUE_VIEW && v->list->is_range) ||
                      v->kind == VALUE_STRING || v->kind == VALUE_DICT || v->kind == VALUE_UNDEFINED);
}

static struct value is_callable(struct interp *in, const struct value *v, struct call *call) {
    return value_bool(v->kind == VALUE_MACRO || v->kind == VALUE_FUNCTION || v->kind == VALUE_METHOD || v->kind == VALUE_UNDEFINED);
}

static struct value is_lower(struct interp *in, const struct value *v, struct call *call) {
    struct value s = value_to_string(in, v);
    return value_bool(string_has_case(&s, false));
}

static struct value is_upper(struct interp *in, const struct value *v, struct call *call) {
    struct value s = value_to_string(in, v);
    return value_bool(string_has_case(&s, true));
}

static struct value is_escaped(struct interp *in, const struct value *v, struct call *call) {
    return value_bool(v->kind == VALUE_STRING && v->safe);
}

static bool divides(struct interp *in, const struct value *v, const struct value *by) {
    struct value rest = value_arithmetic(in, '%', v, by), zero = value_int(0);
    return in->r == 0 && value_equal(in, &rest, &zero);
}

static struct value is_divisible(struct interp *in, const struct value *v, struct call *call) {
    return value_bool(divides(in, v, &call->slot[0]));
}

static struct value is_even(struct interp *in, const struct value *v, struct call *call) {
    struct value two = value_int(2);
    return value_bool(divides(in, v, &two));
}

static struct value is_odd(struct interp *in, const struct value *v, struct call *call) {
    struct value two = value_int(2), one = value_int(1), rest = value_arithmetic(in, '%', v, &two);
    return value_bool(in->r == 0 && value_equal(in, &rest, &one));
}

static struct value is_equal(struct interp *in, const struct value *v, struct call *call) {
    return value_bool(value_equal(in, v, &call->slot[0]));
}

static struct value is_not_equal(struct interp *in, const struct value *v, struct call *call) {
    return value_bool(!value_equal(in, v, &call->slot[0]));
}

static struct value is_less(struct interp *in, const struct value *v, struct call *call) {
    return value_bool(value_compare(in, v, &call->slot[0]) < 0);
}

static struct value is_at_most(struct interp *in, const struct value *v, struct call *call) {
    return value_bool(value_compare(in, v, &call->slot[0]) <= 0);
}

static struct value is_greater(struct interp *in, const struct value *v, struct call *call) {
    return value_bool(value_compare(in, v, &call->slot[0]) > 0);
}

static struct value is_at_least(struct interp *in, const struct value *v, struct call *call) {
    return value_bool(value_compare(in, v, &call->slot[0]) >= 0);
}

static struct value is_in(struct interp *in, const struct value *v, struct call *call) {
    return value_bool(value_contains(in, &call->slot[0], v));
}

/* The same object. Small things are; of strings and numbers Python promises nothing. */
static struct value is_same(struct interp *in, const struct value *v, struct call *call) {
    const struct value *other = &call->slot[0];
    if (v->kind != other->kind) return value_bool(false);
    if (v->kind == VALUE_STRING || v->kind == VALUE_FLOAT) return chat_fail(in, E_UNSUPPORTED, "unsupported: sameas of a %s", value_kind_name(v));
    if (v->kind == VALUE_NONE) return value_bool(true);
    return value_bool(value_is_number(v) ? v->number == other->number : v->list == other->list);
}

static struct value is_a_filter(struct interp *in, const struct value *v, struct call *call) {
    return value_bool(v->kind == VALUE_STRING && chat_filter(v->text, v->n));
}

static struct value is_a_test(struct interp *in, const struct value *v, struct call *call) {
    return value_bool(v->kind == VALUE_STRING && chat_test(v->text, v->n));
}

static const struct native tests[] = {
    {"!=", "other!", is_not_equal},
    {"<", "other!", is_less},
    {"<=", "other!", is_at_most},
    {"==", "other!", is_equal},
    {">", "other!", is_greater},
    {">=", "other!", is_at_least},
    {"boolean", "", is_boolean},
    {"callable", "", is_callable},
    {"defined", "", is_defined},
    {"divisibleby", "num!", is_divisible},
    {"eq", "other!", is_equal},
    {"equalto", "other!", is_equal},
    {"escaped", "", is_escaped},
    {"even", "", is_even},
    {"false", "", is_false},
    {"filter", "", is_a_filter},
    {"float", "", is_float},
    {"ge", "other!", is_at_least},
    {"greaterthan", "other!", is_greater},
    {"gt", "other!", is_greater},
    {"in", "seq!", is_in},
    {"integer", "", is_integer},
    {"iterable", "", is_iterable},
    {"le", "other!", is_at_most},
    {"lessthan", "other!", is_less},
    {"lower", "", is_lower},
    {"lt", "other!", is_less},
    {"mapping", "", is_mapping},
    {"ne", "other!", is_not_equal},
    {"none", "", is_none},
    {"number", "", is_number},
    {"odd", "", is_odd},
    {"sameas", "other!", is_same},
    {"sequence", "", is_sequence},
    {"string", "", is_string},
    {"test", "", is_a_test},
    {"true", "", is_true},
    {"undefined", "", is_undefined},
    {"upper", "", is_upper},
};

const struct native *chat_test(const char *name, size_t n) {
    return native_find(tests, COUNT(tests), name, n);
}
