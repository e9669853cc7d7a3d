/* chat_format.c - "%s" % x and "{}".format(x): what templates use of Python's two ways. */
#include "base/utf8.h"
#include "engine/text/chat_value.h"

#include <ctype.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_WIDTH = 10000 };

/* A conversion: %-08.3f, or what stands behind the colon in {:<8.3f}. */
struct spec {
    bool left, right, center, zero, plus, space, sharp, comma;
    struct value fill; /* one character */
    int64_t width, precision; /* -1 = none */
    char type;                /* 0 = none */
};

static void pad(struct interp *in, struct text *out, const struct value *fill, int64_t n) {
    for (; n > 0 && in->r == 0; n--) text_add_string(in, out, fill);
}

static void add_padded(struct interp *in, struct text *out, const struct value *v, const struct spec *spec, bool number) {
    int64_t room = spec->width - (int64_t)string_characters(v);
    if (room < 0) room = 0;
    int64_t before = spec->center ? room / 2 : spec->left || (!number && !spec->right) ? 0 : room;
    size_t sign = number && spec->zero && !spec->left && v->n > 0 && strchr("+- ", v->text[0]) ? 1 : 0;
    text_add(in, out, v->text, sign, false); /* a sign stands before the zeros */
    pad(in, out, &spec->fill, before);
    struct value rest = string_part(v, sign, v->n);
    text_add_string(in, out, &rest);
    pad(in, out, &spec->fill, room - before);
}

static void add_integer(struct interp *in, struct text *out, int64_t n, const struct spec *spec) {
    char digits[80], text[100];
    const char *format = spec->type == 'x' ? "%" PRIx64 : spec->type == 'X' ? "%" PRIX64 : spec->type == 'o' ? "%" PRIo64 : "%" PRIu64;
    uint64_t u = n < 0 ? -(uint64_t)n : (uint64_t)n;
    snprintf(digits, sizeof digits, format, u);
    if (spec->comma) {
        size_t len = strlen(digits), k = 0;
        char with[80];
        for (size_t i = 0; i < len; i++) {
            if (i > 0 && (len - i) % 3 == 0) with[k++] = ',';
            with[k++] = digits[i];
        }
        with[k] = '\0';
        strcpy(digits, with);
    }
    snprintf(text, sizeof text, "%s%s", n < 0 ? "-" : spec->plus ? "+" : spec->space ? " " : "", digits);
    struct value v = value_literal(text);
    add_padded(in, out, &v, spec, true);
}

static void add_real(struct interp *in, struct text *out, double x, const struct spec *spec) {
    char format[16], text[400];
    int64_t precision = spec->precision < 0 ? 6 : spec->precision;
    if (precision > 60 || x > 1e200 || x < -1e200) {
        chat_fail(in, E_UNSUPPORTED, "unsupported width of a number");
        return;
    }
    snprintf(format, sizeof format, "%%%s.*%c", spec->plus ? "+" : spec->space ? " " : "", spec->type ? spec->type : 'g');
    snprintf(text, sizeof text, format, (int)precision, x);
    struct value v = value_literal(text);
    add_padded(in, out, &v, spec, true);
}

static void add_text(struct interp *in, struct text *out, const struct value *v, const struct spec *spec) {
    struct value s = *v;
    if (spec->precision >= 0) s = string_part(v, 0, string_byte_of(v, (size_t)spec->precision));
    add_padded(in, out, &s, spec, false);
}

/* ---------------------------------------------------------------- "%s" % x */

struct percent {
    const struct value *args; /* the right side */
    size_t next;
    bool keyed;
};

static struct value next_arg(struct interp *in, struct percent *p) {
    if (p->args->kind != VALUE_TUPLE) {
        if (p->next++ == 0) return *p->args;
    } else if (p->next < p->args->list->n) return p->args->list->items[p->next++];
    return chat_fail(in, E_PARSE, "not enough values for a format");
}

static int64_t number_in(struct interp *in, const struct value *f, size_t *i) {
    int64_t n = 0;
    for (; *i < f->n && isdigit((unsigned char)f->text[*i]); (*i)++) {
        n = n * 10 + f->text[*i] - '0';
        if (n > MAX_WIDTH) return chat_fail(in, E_RANGE, "a format is too wide"), 0;
    }
    return n;
}

static struct spec percent_spec(struct interp *in, const struct value *f, size_t *i) {
    struct spec s = {.precision = -1, .right = true, .fill = value_literal(" ")};
    for (; *i < f->n && f->text[*i] && strchr("-0+ #", f->text[*i]); (*i)++) {
        char c = f->text[*i];
        s.left |= c == '-';
        s.zero |= c == '0';
        s.plus |= c == '+';
        s.space |= c == ' ';
        s.sharp |= c == '#';
    }
    s.width = number_in(in, f, i);
    if (*i < f->n && f->text[*i] == '.') {
        ++*i;
        s.precision = number_in(in, f, i);
    }
    while (*i < f->n && f->text[*i] && strchr("hlL", f->text[*i])) ++*i;
    s.type = *i < f->n ? f->text[(*i)++] : 0;
    return s;
}

static void percent_convert(struct interp *in, struct text *out, const struct value *v, struct spec *s) {
    bool integer = s->type && strchr("diuxXo", s->type), real = s->type && strchr("eEfFgG", s->type);
    if (s->sharp || (integer && s->precision >= 0) || (!integer && !real && !(s->type && strchr("sr", s->type)))) {
        chat_fail(in, E_UNSUPPORTED, "unsupported format \"%%%c\"", s->type ? s->type : '?');
        return;
    }
    if (s->zero && !s->left && (integer || real)) s->fill = value_literal("0");
    if (integer || real) {
        if (!value_is_number(v) || (v->kind == VALUE_FLOAT && strchr("xXo", s->type)))
            chat_fail(in, E_PARSE, "a format of a number got a %s", value_kind_name(v));
        else if (real) add_real(in, out, value_real(v), s);
        else {
            bool ok;
            struct value n = value_to_int(in, v, 10, &ok);
            if (in->r == 0) add_integer(in, out, n.number, s);
        }
        return;
    }
    struct text *t = text_new(in, 0);
    if (s->type == 's') print_value(in, t, v);
    else print_repr(in, t, v);
    struct value text = text_value(t);
    add_text(in, out, &text, s);
}

/* %(name)s */
static struct value keyed_arg(struct interp *in, const struct value *f, size_t *i, struct percent *p) {
    const char *end = memchr(f->text + *i, ')', f->n - *i);
    if (!end || p->args->kind != VALUE_DICT) return chat_fail(in, E_PARSE, "a format with names needs a dict");
    struct value key = value_string(f->text + *i + 1, (size_t)(end - f->text) - *i - 1, false);
    const struct value *v = dict_get(in, p->args->dict, &key);
    *i = (size_t)(end - f->text) + 1;
    p->keyed = true;
    return v ? *v : chat_fail(in, E_PARSE, "a format names a key that is not there");
}

struct value format_percent(struct interp *in, const struct value *f, const struct value *args) {
    struct percent p = {.args = args};
    struct text *out = text_new(in, f->n);
    for (size_t i = 0; i < f->n && in->r == 0;) {
        const char *found = memchr(f->text + i, '%', f->n - i);
        size_t at = found ? (size_t)(found - f->text) : f->n;
        struct value before = string_part(f, i, at), v = value_undefined(NULL);
        text_add_string(in, out, &before);
        i = at + 1;
        if (!found) break;
        bool keyed = i < f->n && f->text[i] == '(';
        if (keyed) v = keyed_arg(in, f, &i, &p);
        struct spec s = percent_spec(in, f, &i);
        if (s.type == '%') {
            text_add_literal(in, out, "%");
            continue;
        }
        if (!keyed) v = next_arg(in, &p);
        if (in->r == 0) percent_convert(in, out, &v, &s);
    }
    bool all = args->kind == VALUE_TUPLE ? p.next == args->list->n : p.next > 0 || value_is_sequence(args) || args->kind == VALUE_DICT;
    if (in->r == 0 && !all && !p.keyed) return chat_fail(in, E_PARSE, "not all values of a format were used");
    return text_value(out);
}

/* ---------------------------------------------------------------- "{}".format(x) */

static struct spec brace_spec(struct interp *in, const struct value *f) {
    struct spec s = {.precision = -1, .fill = value_literal(" ")};
    size_t i = 0, len = 0;
    if (f->n == 0) return s;
    utf8_decode(f->text, f->n, &len);
    if (len < f->n && strchr("<>^", f->text[len]) && f->text[len]) {
        s.fill = string_part(f, 0, len);
        i = len;
    }
    if (i < f->n && f->text[i] && strchr("<>^", f->text[i])) {
        char c = f->text[i++];
        s.left = c == '<';
        s.right = c == '>';
        s.center = c == '^';
    }
    if (i < f->n && f->text[i] && strchr("+- ", f->text[i])) {
        s.plus = f->text[i] == '+';
        s.space = f->text[i++] == ' ';
    }
    if (i < f->n && f->text[i] == '0' && i++ < f->n && !s.left && !s.right && !s.center) {
        s.fill = value_literal("0");
        s.zero = true;
    }
    s.width = number_in(in, f, &i);
    if (i < f->n && f->text[i] == ',') s.comma = true, i++;
    if (i < f->n && f->text[i] == '.') {
        i++;
        s.precision = number_in(in, f, &i);
    }
    if (i < f->n) s.type = f->text[i++];
    if (i < f->n || (s.type && !strchr("sdxXofFeEgG", s.type)))
        chat_fail(in, E_UNSUPPORTED, "unsupported format \"%.*s\"", (int)(f->n > 40 ? 40 : f->n), f->text);
    return s;
}

static void brace_convert(struct interp *in, struct text *out, const struct value *v, const struct value *spec_text) {
    struct spec s = brace_spec(in, spec_text);
    bool integer = (v->kind == VALUE_INT || (v->kind == VALUE_BOOL && s.type)) && (!s.type || strchr("dxXo", s.type));
    if (in->r < 0) return;
    if (spec_text->n == 0) print_value(in, out, v);
    else if (integer && s.precision < 0) add_integer(in, out, v->number, &s);
    else if (value_is_number(v) && s.type && strchr("fFeEgG", s.type) && !s.comma) add_real(in, out, value_real(v), &s);
    else if (v->kind == VALUE_STRING && (!s.type || s.type == 's') && !s.comma && !s.zero) add_text(in, out, v, &s);
    else chat_fail(in, E_UNSUPPORTED, "unsupported format of a %s", value_kind_name(v));
}

/* The value that a field names: "", "0", "name", with .attribute and [key] behind it. */
static struct value field_value(struct interp *in, const struct value *field, const struct call *call, size_t *next) {
    size_t i = 0;
    while (i < field->n && field->text[i] != '.' && field->text[i] != '[') i++;
    if (i < field->n) return chat_fail(in, E_UNSUPPORTED, "unsupported format: a field of a field");
    if (i == 0 || isdigit((unsigned char)field->text[0])) {
        size_t k = 0, n = i ? (size_t)number_in(in, field, &k) : (*next)++;
        if (k < i) return chat_fail(in, E_PARSE, "a field of a format is no number");
        return n < call->n ? call->args[n] : chat_fail(in, E_PARSE, "not enough values for a format");
    }
    for (size_t k = 0; k < call->n_keywords; k++)
        if (strlen(call->keywords[k].name) == i && memcmp(call->keywords[k].name, field->text, i) == 0) return call->keywords[k].value;
    return chat_fail(in, E_PARSE, "a format names a value that is not there");
}

/* {field!r:spec} */
static void brace_field(struct interp *in, struct text *out, const struct value *inside, const struct call *call, size_t *next) {
    size_t colon = 0;
    while (colon < inside->n && inside->text[colon] != ':') colon++;
    struct value spec = string_part(inside, colon < inside->n ? colon + 1 : colon, inside->n);
    if (memchr(inside->text, '!', colon) || (spec.n && memchr(spec.text, '{', spec.n))) {
        chat_fail(in, E_UNSUPPORTED, "unsupported format \"{%.*s}\"", (int)(inside->n > 40 ? 40 : inside->n), inside->text);
        return;
    }
    struct value field = string_part(inside, 0, colon), v = field_value(in, &field, call, next);
    if (in->r == 0) brace_convert(in, out, &v, &spec);
}

struct value format_braces(struct interp *in, const struct value *f, const struct call *call) {
    struct text *out = text_new(in, f->n);
    size_t next = 0;
    for (size_t i = 0; i < f->n && in->r == 0; i++) {
        char c = f->text[i];
        struct value one = string_part(f, i, i + 1);
        if ((c == '{' || c == '}') && i + 1 < f->n && f->text[i + 1] == c) i++;
        else if (c == '}') {
            chat_fail(in, E_PARSE, "a } alone in a format");
            break;
        } else if (c == '{') {
            const char *end = memchr(f->text + i, '}', f->n - i);
            if (!end) chat_fail(in, E_PARSE, "a { alone in a format");
            if (!end) break;
            struct value inside = string_part(f, i + 1, (size_t)(end - f->text));
            brace_field(in, out, &inside, call, &next);
            i = (size_t)(end - f->text);
            continue;
        }
        text_add_string(in, out, &one);
    }
    return text_value(out);
}
