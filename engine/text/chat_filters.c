/* chat_filters.c - filters on texts, numbers and single values. Those on lists are in
 * chat_filters_list.c. Parameters have Jinja's names and order; tojson's are transformers'. */
#include "base/mem.h"
#include "base/utf8.h"
#include "engine/text/chat_tree.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#define COUNT(table) (sizeof table / sizeof *table)

static bool given(const struct value *v) {
    return v->kind != VALUE_MISSING;
}

static int64_t integer(struct interp *in, const struct value *v, int64_t missing) {
    if (!given(v)) return missing;
    if (v->kind == VALUE_INT || v->kind == VALUE_BOOL) return v->number;
    chat_fail(in, E_PARSE, "a filter got a %s for a number", value_kind_name(v));
    return missing;
}

static bool flag(const struct value *v) {
    return given(v) && value_is_true(v);
}

/* The value as text. What `safe` marked keeps its mark in Jinja through every filter; here it
 * is refused, but for the filters that give the value as it is. */
static struct value text_of(struct interp *in, const struct value *v) {
    if (v->kind == VALUE_STRING && v->safe) return chat_fail(in, E_UNSUPPORTED, "unsupported: a filter on a text marked safe"), *v;
    return value_to_string(in, v);
}

/* ---------------------------------------------------------------- texts */

static struct value filter_trim(struct interp *in, const struct value *self, struct call *call) {
    struct value s = text_of(in, self);
    const struct value *chars = call->slot[0].kind == VALUE_STRING ? &call->slot[0] : NULL;
    return string_strip(in, &s, chars, true, true);
}

static struct value filter_upper(struct interp *in, const struct value *self, struct call *call) {
    struct value s = text_of(in, self);
    return string_case(in, &s, CASE_UPPER);
}

static struct value filter_lower(struct interp *in, const struct value *self, struct call *call) {
    struct value s = text_of(in, self);
    return string_case(in, &s, CASE_LOWER);
}

static struct value filter_capitalize(struct interp *in, const struct value *self, struct call *call) {
    struct value s = text_of(in, self);
    return string_case(in, &s, CASE_CAPITALIZE);
}

/* Jinja's own idea of a title: a word begins behind a space, - ( { [ or <. */
static struct value filter_title(struct interp *in, const struct value *self, struct call *call) {
    struct value s = text_of(in, self), low = string_case(in, &s, CASE_LOWER);
    struct text *t = text_new(in, low.n + 16);
    bool begins = true;
    size_t len;
    for (size_t i = 0; i < low.n && in->r == 0; i += len) {
        int32_t c = utf8_decode(low.text + i, low.n - i, &len);
        struct value one = string_part(&low, i, i + len);
        bool between = is_python_space(c) || (c < 128 && c && strchr("-({[<", c));
        if (begins && !between) one = string_case(in, &one, CASE_UPPER);
        text_add_string(in, t, &one);
        begins = between;
    }
    return text_value(t);
}

static struct value filter_string(struct interp *in, const struct value *self, struct call *call) {
    return value_to_string(in, self);
}

static struct value filter_safe(struct interp *in, const struct value *self, struct call *call) {
    struct value s = value_to_string(in, self);
    s.safe = true;
    return s;
}

static struct value filter_escape(struct interp *in, const struct value *self, struct call *call) {
    struct value s = value_to_string(in, self);
    return s.safe ? s : string_escape(in, &s);
}

static struct value filter_replace(struct interp *in, const struct value *self, struct call *call) {
    struct value s = text_of(in, self), old = text_of(in, &call->slot[0]), by = text_of(in, &call->slot[1]);
    const struct value *count = &call->slot[2];
    return string_replace(in, &s, &old, &by, count->kind == VALUE_NONE ? -1 : integer(in, count, -1));
}

static struct value filter_format(struct interp *in, const struct value *self, struct call *call) {
    struct value s = text_of(in, self), args;
    if (call->n_keywords) {
        args = (struct value){.kind = VALUE_DICT, .dict = dict_new(in)};
        for (size_t i = 0; i < call->n_keywords; i++)
            dict_set(in, args.dict, value_literal(call->keywords[i].name), call->keywords[i].value);
    } else {
        args = value_list(VALUE_TUPLE, list_new(in, call->n));
        for (size_t i = 0; i < args.list->n; i++) args.list->items[i] = call->args[i];
    }
    return format_percent(in, &s, &args);
}

static struct value filter_center(struct interp *in, const struct value *self, struct call *call) {
    struct value s = text_of(in, self);
    const struct native *center = chat_string_method("center", 6);
    struct value width = value_int(integer(in, &call->slot[0], 80));
    struct call inner = {.args = &width, .n = 1};
    return native_call(in, center, &s, &inner);
}

static struct value filter_indent(struct interp *in, const struct value *self, struct call *call) {
    if (self->kind != VALUE_STRING) return chat_fail(in, E_PARSE, "indent of a %s", value_kind_name(self));
    struct value s = text_of(in, self), space = value_literal(" "), width = call->slot[0];
    if (!given(&width)) width = value_int(4);
    if (width.kind != VALUE_STRING) width = value_arithmetic(in, '*', &space, &width);
    struct value newline = value_literal("\n"), all = string_concat(in, &s, &newline);
    struct call none = {0};
    struct value lines = native_call(in, chat_string_method("splitlines", 10), &all, &none);
    if (in->r < 0) return *self;
    struct text *t = text_new(in, s.n + 64);
    bool blank = flag(&call->slot[2]);
    for (size_t i = 0; i < lines.list->n && in->r == 0; i++) {
        const struct value *line = &lines.list->items[i];
        if (i > 0) text_add_string(in, t, &newline);
        if (i > 0 ? blank || line->n > 0 : flag(&call->slot[1])) text_add_string(in, t, &width);
        text_add_string(in, t, line);
    }
    return text_value(t);
}

static struct value filter_truncate(struct interp *in, const struct value *self, struct call *call) {
    struct value s = *self, end = given(&call->slot[2]) ? call->slot[2] : value_literal("...");
    int64_t length = integer(in, &call->slot[0], 255);
    int64_t leeway = call->slot[3].kind == VALUE_NONE ? 5 : integer(in, &call->slot[3], 5);
    if (end.kind != VALUE_STRING || length < (int64_t)string_characters(&end) || leeway < 0)
        return chat_fail(in, E_PARSE, "truncate: arguments that do not fit");
    if (value_length(in, &s) <= length + leeway) return s;
    if (s.kind != VALUE_STRING || s.safe) return chat_fail(in, E_UNSUPPORTED, "unsupported: truncate of what is no plain string");
    s = string_part(&s, 0, string_byte_of(&s, (size_t)length - string_characters(&end)));
    const char *space = s.n ? memrchr(s.text, ' ', s.n) : NULL;
    if (!flag(&call->slot[1]) && space) s.n = (size_t)(space - s.text);
    return string_concat(in, &s, &end);
}

static struct value filter_wordcount(struct interp *in, const struct value *self, struct call *call) {
    struct value s = text_of(in, self);
    int64_t n = 0;
    bool in_word = false;
    size_t len;
    for (size_t i = 0; i < s.n; i += len) {
        int32_t c = utf8_decode(s.text + i, s.n - i, &len);
        utf8proc_category_t k = utf8proc_category(c);
        bool word = c == '_' || (k >= UTF8PROC_CATEGORY_LU && k <= UTF8PROC_CATEGORY_LO) ||
                    (k >= UTF8PROC_CATEGORY_ND && k <= UTF8PROC_CATEGORY_NO);
        n += word && !in_word;
        in_word = word;
    }
    return value_int(n);
}

/* ---------------------------------------------------------------- numbers */

static struct value undefined_number(struct interp *in, const struct value *v) {
    return chat_fail(in, E_PARSE, "%s is undefined", v->text ? v->text : "a number");
}

static struct value filter_int(struct interp *in, const struct value *self, struct call *call) {
    bool ok;
    if (self->kind == VALUE_UNDEFINED) return undefined_number(in, self);
    struct value v = value_to_int(in, self, integer(in, &call->slot[1], 10), &ok);
    if (ok || in->r < 0) return v;
    v = value_to_float(in, self, &ok); /* "42.9" is 42 */
    if (ok && isfinite(v.real)) return value_to_int(in, &v, 10, &ok);
    return given(&call->slot[0]) ? call->slot[0] : value_int(0);
}

static struct value filter_float(struct interp *in, const struct value *self, struct call *call) {
    bool ok;
    if (self->kind == VALUE_UNDEFINED) return undefined_number(in, self);
    struct value v = value_to_float(in, self, &ok);
    return ok ? v : given(&call->slot[0]) ? call->slot[0] : value_float(0);
}

static struct value filter_abs(struct interp *in, const struct value *self, struct call *call) {
    if (!value_is_number(self)) return chat_fail(in, E_PARSE, "abs of a %s", value_kind_name(self));
    if (self->kind == VALUE_FLOAT) return value_float(fabs(self->real));
    if (self->number < 0) return value_negate(in, self);
    return self->kind == VALUE_BOOL ? value_int(self->number) : *self;
}

/* To the nearest, ties to even: through decimals, as Python rounds. */
static double round_decimal(double x, int64_t precision) {
    char text[400];
    if (precision <= 0) {
        double scale = pow(10, (double)-precision);
        return nearbyint(x / scale) * scale;
    }
    snprintf(text, sizeof text, "%.*f", (int)(precision > 60 ? 60 : precision), x);
    return strtod(text, NULL);
}

static struct value filter_round(struct interp *in, const struct value *self, struct call *call) {
    int64_t precision = integer(in, &call->slot[0], 0);
    const struct value *method = &call->slot[1];
    if (!value_is_number(self)) return chat_fail(in, E_PARSE, "round of a %s", value_kind_name(self));
    double x = value_real(self), scale = pow(10, (double)precision);
    if (given(method) && value_is(method, "ceil")) return value_float((ceil(x * scale) + 0.0) / scale);
    if (given(method) && value_is(method, "floor")) return value_float((floor(x * scale) + 0.0) / scale);
    if (given(method) && !value_is(method, "common")) return chat_fail(in, E_PARSE, "round: no such method");
    if (self->kind == VALUE_FLOAT) return value_float(fabs(x) < 1e300 ? round_decimal(x, precision) : x);
    return precision >= 0 ? value_int(self->number) : value_int((int64_t)round_decimal(x, precision));
}

/* ---------------------------------------------------------------- any value */

static struct value filter_default(struct interp *in, const struct value *self, struct call *call) {
    bool takes = self->kind == VALUE_UNDEFINED || (flag(&call->slot[1]) && !value_is_true(self));
    return !takes ? *self : given(&call->slot[0]) ? call->slot[0] : value_literal("");
}

static struct value filter_length(struct interp *in, const struct value *self, struct call *call) {
    return value_int(value_length(in, self));
}

/* indent=4 or a string; a number of spaces else. */
static struct value json_indent(struct interp *in, const struct value *v) {
    struct value space = value_literal(" ");
    if (v->kind == VALUE_STRING) return *v;
    return value_arithmetic(in, '*', &space, v);
}

static struct value filter_tojson(struct interp *in, const struct value *self, struct call *call) {
    const struct value *indent = &call->slot[1], *separators = &call->slot[2];
    struct value indent_text;
    struct json_style style = {.ascii = flag(&call->slot[0]), .sort_keys = flag(&call->slot[3])};
    if (given(indent) && indent->kind != VALUE_NONE) {
        indent_text = json_indent(in, indent);
        style.indent = &indent_text;
    }
    style.item_separator = value_literal(style.indent ? "," : ", ");
    style.key_separator = value_literal(": ");
    if (given(separators) && separators->kind != VALUE_NONE) {
        const struct list *two = value_items(in, separators);
        if (two->n != 2 || two->items[0].kind != VALUE_STRING || two->items[1].kind != VALUE_STRING)
            return chat_fail(in, E_PARSE, "tojson: separators are two strings");
        style.item_separator = two->items[0];
        style.key_separator = two->items[1];
    }
    struct text *t = text_new(in, 256);
    if (in->r == 0) print_json(in, t, self, &style);
    return text_value(t);
}

static const struct native filters[] = {
    {"abs", "", filter_abs},
    {"capitalize", "", filter_capitalize},
    {"center", "width", filter_center},
    {"count", "", filter_length},
    {"d", "default_value boolean", filter_default},
    {"default", "default_value boolean", filter_default},
    {"e", "", filter_escape},
    {"escape", "", filter_escape},
    {"float", "default", filter_float},
    {"format", NULL, filter_format},
    {"indent", "width first blank", filter_indent},
    {"int", "default base", filter_int},
    {"length", "", filter_length},
    {"lower", "", filter_lower},
    {"replace", "old! new! count", filter_replace},
    {"round", "precision method", filter_round},
    {"safe", "", filter_safe},
    {"string", "", filter_string},
    {"title", "", filter_title},
    {"tojson", "ensure_ascii indent separators sort_keys", filter_tojson},
    {"trim", "chars", filter_trim},
    {"truncate", "length killwords end leeway", filter_truncate},
    {"upper", "", filter_upper},
    {"wordcount", "", filter_wordcount},
};

const struct native *chat_filter(const char *name, size_t n) {
    const struct native *f = native_find(filters, COUNT(filters), name, n);
    return f ? f : chat_list_filter(name, n);
}
