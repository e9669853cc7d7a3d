/* chat_arithmetic.c - + - * / // % ** as Python has them, within 64 bits. */
#include "base/mem.h"
#include "engine/text/chat_tree.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static struct value mismatch(struct interp *in, const struct value *a, const struct value *b) {
    if (a->kind == VALUE_UNDEFINED || b->kind == VALUE_UNDEFINED) {
        const char *name = a->kind == VALUE_UNDEFINED ? a->text : b->text;
        return chat_fail(in, E_PARSE, "%s is undefined", name ? name : "an operand");
    }
    return chat_fail(in, E_PARSE, "an operator between a %s and a %s", value_kind_name(a), value_kind_name(b));
}

static struct value overflow(struct interp *in) {
    return chat_fail(in, E_RANGE, "a number is too large");
}

static struct value power_of_ints(struct interp *in, int64_t x, int64_t y) {
    int64_t out = 1;
    if (y < 0) return x ? value_float(pow((double)x, (double)y)) : chat_fail(in, E_PARSE, "0 to a negative power");
    if (x == 0 || x == 1) return value_int(y == 0 ? 1 : x);
    if (x == -1) return value_int(y % 2 ? -1 : 1);
    for (; y > 0; y--)
        if (__builtin_mul_overflow(out, x, &out)) return overflow(in);
    return value_int(out);
}

static struct value of_ints(struct interp *in, int op, int64_t x, int64_t y) {
    int64_t out = 0;
    if (strchr("/%", op <= 255 ? op : '/') && op != OP_POWER && y == 0) return chat_fail(in, E_PARSE, "a division by zero");
    switch (op) {
    case '+': return __builtin_add_overflow(x, y, &out) ? overflow(in) : value_int(out);
    case '-': return __builtin_sub_overflow(x, y, &out) ? overflow(in) : value_int(out);
    case '*': return __builtin_mul_overflow(x, y, &out) ? overflow(in) : value_int(out);
    case '/': return value_float((double)x / (double)y);
    case OP_POWER: return power_of_ints(in, x, y);
    default: break;
    }
    if (y == -1) return op == '%' ? value_int(0) : of_ints(in, '-', 0, x);
    int64_t quotient = x / y, rest = x % y;
    if (rest != 0 && (rest < 0) != (y < 0)) quotient--, rest += y; /* towards minus infinity */
    return value_int(op == '%' ? rest : quotient);
}

static struct value of_floats(struct interp *in, int op, double x, double y) {
    if (op != '+' && op != '-' && op != '*' && op != OP_POWER && y == 0) return chat_fail(in, E_PARSE, "a division by zero");
    double rest;
    switch (op) {
    case '+': return value_float(x + y);
    case '-': return value_float(x - y);
    case '*': return value_float(x * y);
    case '/': return value_float(x / y);
    case OP_POWER: return x < 0 && y != floor(y) ? chat_fail(in, E_UNSUPPORTED, "a complex number") : value_float(pow(x, y));
    default: break;
    }
    rest = fmod(x, y);
    if (rest != 0 && (rest < 0) != (y < 0)) rest += y;
    if (op == '%') return value_float(rest == 0 ? copysign(0, y) : rest);
    double quotient = (x - rest) / y, whole = floor(quotient);
    if (quotient == 0) return value_float(copysign(0, x / y));
    return value_float(quotient - whole > 0.5 ? whole + 1 : whole);
}

static struct value add_strings(struct interp *in, const struct value *a, const struct value *b) {
    if (!a->safe && !b->safe) return string_concat(in, a, b);
    struct value left = a->safe ? *a : string_escape(in, a), right = b->safe ? *b : string_escape(in, b);
    left = string_concat(in, &left, &right);
    left.safe = true;
    return left;
}

static struct value add_lists(struct interp *in, const struct value *a, const struct value *b) {
    struct list *list = list_new(in, a->list->n + b->list->n);
    if (list->n == 0) return value_list(a->kind, list);
    if (a->list->n) memcpy(list->items, a->list->items, a->list->n * sizeof *list->items);
    if (b->list->n) memcpy(list->items + a->list->n, b->list->items, b->list->n * sizeof *list->items);
    return value_list(a->kind, list);
}

static struct value repeat_string(struct interp *in, const struct value *s, int64_t times) {
    size_t n = 0;
    if (times <= 0 || s->n == 0) return value_string("", 0, false);
    if (!size_mul(s->n, (size_t)times, &n) || !chat_room(in, n)) return chat_room(in, SIZE_MAX / 2), *s;
    struct text *t = text_new(in, n);
    for (; times > 0 && in->r == 0; times--) text_add_string(in, t, s);
    return text_value(t);
}

static struct value repeat_list(struct interp *in, const struct value *v, int64_t times) {
    size_t n = 0;
    if (times < 0) times = 0;
    if (!size_mul(v->list->n, (size_t)times, &n)) n = SIZE_MAX / 64;
    struct list *list = list_new(in, n);
    for (size_t i = 0; i < list->n; i++) list->items[i] = v->list->items[i % v->list->n];
    return value_list(v->kind, list);
}

static bool is_int(const struct value *v) {
    return v->kind == VALUE_INT || v->kind == VALUE_BOOL;
}

static struct value repeat(struct interp *in, const struct value *a, const struct value *b) {
    const struct value *what = is_int(a) ? b : a, *times = is_int(a) ? a : b;
    if (!is_int(times)) return mismatch(in, a, b);
    if (what->kind == VALUE_STRING && !what->safe) return repeat_string(in, what, times->number);
    if (what->kind == VALUE_LIST || what->kind == VALUE_TUPLE) return repeat_list(in, what, times->number);
    return mismatch(in, a, b);
}

struct value value_arithmetic(struct interp *in, int op, const struct value *a, const struct value *b) {
    if (value_is_number(a) && value_is_number(b)) {
        if (is_int(a) && is_int(b)) return of_ints(in, op, a->number, b->number);
        return of_floats(in, op, value_real(a), value_real(b));
    }
    if (op == '+' && a->kind == b->kind && a->kind == VALUE_STRING) return add_strings(in, a, b);
    if (op == '+' && a->kind == b->kind && (a->kind == VALUE_LIST || a->kind == VALUE_TUPLE)) return add_lists(in, a, b);
    if (op == '*') return repeat(in, a, b);
    if (op == '%' && a->kind == VALUE_STRING && !a->safe) return format_percent(in, a, b);
    return mismatch(in, a, b);
}

struct value value_negate(struct interp *in, const struct value *v) {
    struct value zero = value_int(0);
    if (v->kind == VALUE_FLOAT) return value_float(-v->real);
    return is_int(v) ? of_ints(in, '-', 0, v->number) : mismatch(in, &zero, v);
}

/* ---------------------------------------------------------------- int() and float() of strings */

/* The digits without the underscores that Python allows between them. */
static bool number_text(const struct value *v, char out[64]) {
    size_t n = 0;
    for (size_t i = 0; i < v->n; i++) {
        char c = v->text[i];
        bool between = i > 0 && i + 1 < v->n && isalnum((unsigned char)v->text[i - 1]) && isalnum((unsigned char)v->text[i + 1]);
        if (c == '_' ? !between : !isalnum((unsigned char)c) && !strchr("+-.", c ? c : 'x')) return false;
        if (c != '_') out[n++] = c;
        if (n == 63) return false;
    }
    out[n] = '\0';
    return n > 0;
}

struct value value_to_int(struct interp *in, const struct value *v, int64_t base, bool *ok) {
    char text[64], *end;
    *ok = true;
    if (is_int(v)) return value_int(v->number);
    if (v->kind == VALUE_FLOAT) {
        if (v->real > -9e18 && v->real < 9e18) return value_int((int64_t)v->real);
        if (isfinite(v->real)) return overflow(in);
    }
    *ok = false;
    if (v->kind != VALUE_STRING) return value_int(0);
    struct value s = string_strip(in, v, NULL, true, true);
    if (!number_text(&s, text) || base < 0 || base > 36 || base == 1) return value_int(0);
    const char *p = text + (*text == '-' || *text == '+');
    if (base != 10 && *p == '0' && strchr("xXoObB", p[1]) && p[1]) return chat_fail(in, E_UNSUPPORTED, "unsupported: int() of \"%s\"", text);
    if (!isalnum((unsigned char)*p)) return value_int(0);
    errno = 0;
    int64_t n = strtoll(text, &end, (int)base);
    if (*end) return value_int(0);
    if (errno) return overflow(in);
    *ok = true;
    return value_int(n);
}

struct value value_to_float(struct interp *in, const struct value *v, bool *ok) {
    char text[64], *end;
    *ok = value_is_number(v);
    if (*ok) return value_float(value_real(v));
    if (v->kind != VALUE_STRING) return value_float(0);
    struct value s = string_strip(in, v, NULL, true, true);
    if (!number_text(&s, text) || strpbrk(text, "xXpP(")) return value_float(0);
    double x = strtod(text, &end);
    *ok = *end == '\0';
    return value_float(*ok ? x : 0);
}
