/* chat_print.c - values as text: Python's str() and repr(), and JSON as json.dumps writes it.
 * What came from the row stays marked; quotes, brackets and commas are the template's. */
#include "base/utf8.h"
#include "engine/text/chat_value.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

/* ---------------------------------------------------------------- numbers */

/* The shortest digits that read back as x, laid out as Python does. */
static void float_text(double x, char out[40]) {
    char digits[40];
    if (isnan(x) || isinf(x)) {
        strcpy(out, isnan(x) ? "nan" : x < 0 ? "-inf" : "inf");
        return;
    }
    int precision = 0;
    do snprintf(digits, sizeof digits, "%.*e", precision, x);
    while (strtod(digits, NULL) != x && precision++ < 17);
    int exponent = atoi(strchr(digits, 'e') + 1);
    if (exponent < -4 || exponent >= 16) { /* 1e-05, 1.5e+16 */
        *strchr(digits, 'e') = '\0';
        snprintf(out, 40, "%.24se%c%02d", digits, exponent < 0 ? '-' : '+', abs(exponent) % 1000);
        return;
    }
    int decimals = precision - exponent;
    snprintf(out, 40, "%.*f", decimals > 1 ? decimals : 1, x);
}

static void add_number(struct interp *in, struct text *out, const struct value *v) {
    char text[40];
    if (v->kind == VALUE_INT) snprintf(text, sizeof text, "%" PRId64, v->number);
    else float_text(v->real, text);
    text_add_literal(in, out, text);
}

/* ---------------------------------------------------------------- repr */

static bool is_printable(int32_t c) {
    utf8proc_category_t k = utf8proc_category(c);
    return c == ' ' || (k != UTF8PROC_CATEGORY_CN && k != UTF8PROC_CATEGORY_CC && k != UTF8PROC_CATEGORY_CF &&
                        k != UTF8PROC_CATEGORY_CS && k != UTF8PROC_CATEGORY_CO && k != UTF8PROC_CATEGORY_ZL &&
                        k != UTF8PROC_CATEGORY_ZP && k != UTF8PROC_CATEGORY_ZS);
}

static void repr_character(struct interp *in, struct text *out, const char *s, size_t n, int32_t c, char quote, bool plain) {
    char text[16];
    const char *name = c > 0 && c < 128 ? strchr("\nn\tt\rr", c) : NULL;
    if (c == quote || c == '\\') snprintf(text, sizeof text, "\\%c", (char)c);
    else if (name && (name[0] < ' ')) snprintf(text, sizeof text, "\\%c", name[1]);
    else if (is_printable(c)) {
        text_add(in, out, s, n, plain);
        return;
    } else if (c < 0x100) snprintf(text, sizeof text, "\\x%02x", (unsigned)c);
    else if (c < 0x10000) snprintf(text, sizeof text, "\\u%04x", (unsigned)c);
    else snprintf(text, sizeof text, "\\U%08x", (unsigned)c);
    text_add(in, out, text, strlen(text), plain);
}

static void repr_string(struct interp *in, struct text *out, const struct value *v) {
    bool single = v->n && memchr(v->text, '\'', v->n), twice = v->n && memchr(v->text, '"', v->n);
    char quote = single && !twice ? '"' : '\'';
    size_t len;
    text_add(in, out, &quote, 1, false);
    for (size_t i = 0; i < v->n && in->r == 0; i += len) {
        int32_t c = utf8_decode(v->text + i, v->n - i, &len);
        repr_character(in, out, v->text + i, len, c, quote, string_plain_at(v, i));
    }
    text_add(in, out, &quote, 1, false);
}

static void repr_items(struct interp *in, struct text *out, const struct list *list) {
    for (size_t i = 0; i < list->n && in->r == 0; i++) {
        if (i > 0) text_add_literal(in, out, ", ");
        print_repr(in, out, &list->items[i]);
    }
}

static void repr_list(struct interp *in, struct text *out, const struct value *v) {
    bool tuple = v->kind == VALUE_TUPLE;
    text_add_literal(in, out, tuple ? "(" : "[");
    repr_items(in, out, v->list);
    text_add_literal(in, out, tuple ? v->list->n == 1 ? ",)" : ")" : "]");
}

static void repr_dict(struct interp *in, struct text *out, const struct dict *dict) {
    text_add_literal(in, out, "{");
    for (size_t i = 0; i < dict->n && in->r == 0; i++) {
        if (i > 0) text_add_literal(in, out, ", ");
        print_repr(in, out, &dict->pairs[i].key);
        text_add_literal(in, out, ": ");
        print_repr(in, out, &dict->pairs[i].value);
    }
    text_add_literal(in, out, "}");
}

static void repr_inside(struct interp *in, struct text *out, const struct value *v) {
    switch (v->kind) {
    case VALUE_UNDEFINED: text_add_literal(in, out, "Undefined"); break;
    case VALUE_NONE: text_add_literal(in, out, "None"); break;
    case VALUE_BOOL: text_add_literal(in, out, v->number ? "True" : "False"); break;
    case VALUE_INT:
    case VALUE_FLOAT: add_number(in, out, v); break;
    case VALUE_STRING:
        if (v->safe) chat_fail(in, E_UNSUPPORTED, "unsupported: a text marked safe inside a printed value");
        else repr_string(in, out, v);
        break;
    case VALUE_LIST:
    case VALUE_TUPLE: repr_list(in, out, v); break;
    case VALUE_DICT: repr_dict(in, out, v->dict); break;
    case VALUE_NAMESPACE:
        text_add_literal(in, out, "<Namespace ");
        repr_dict(in, out, v->dict);
        text_add_literal(in, out, ">");
        break;
    default: chat_fail(in, E_UNSUPPORTED, "unsupported: a %s as text", value_kind_name(v));
    }
}

void print_repr(struct interp *in, struct text *out, const struct value *v) {
    if (!chat_charge(in, 0) || !chat_enter(in)) return;
    repr_inside(in, out, v);
    in->depth--;
}

void print_value(struct interp *in, struct text *out, const struct value *v) {
    if (v->kind == VALUE_STRING) text_add_string(in, out, v);
    else if (v->kind != VALUE_UNDEFINED) print_repr(in, out, v);
}

struct value value_to_string(struct interp *in, const struct value *v) {
    if (v->kind == VALUE_STRING) return *v;
    struct text *t = text_new(in, 0);
    print_value(in, t, v);
    return text_value(t);
}

/* ---------------------------------------------------------------- JSON */

static void write_character(struct interp *in, struct text *out, int32_t c, const char *s, size_t n, bool plain, bool ascii) {
    static const char from[] = "\"\\\n\r\t\f\b", to[] = "\"\\nrtfb";
    char text[16];
    const char *p = c > 0 && c < 128 ? strchr(from, c) : NULL;
    if (p) snprintf(text, sizeof text, "\\%c", to[p - from]);
    else if (c < 0x20 || (ascii && c > 0x7e && c < 0x10000)) snprintf(text, sizeof text, "\\u%04x", (unsigned)c);
    else if (ascii && c >= 0x10000)
        snprintf(text, sizeof text, "\\u%04x\\u%04x", 0xd800 + ((unsigned)(c - 0x10000) >> 10),
                 0xdc00 + ((unsigned)(c - 0x10000) & 0x3ff));
    else {
        text_add(in, out, s, n, plain);
        return;
    }
    text_add(in, out, text, strlen(text), plain);
}

static void quote_string(struct interp *in, struct text *out, const struct value *v, bool ascii) {
    size_t len;
    text_add_literal(in, out, "\"");
    for (size_t i = 0; i < v->n && in->r == 0; i += len) {
        int32_t c = utf8_decode(v->text + i, v->n - i, &len);
        write_character(in, out, c, v->text + i, len, string_plain_at(v, i), ascii && c != 0x7f);
    }
    text_add_literal(in, out, "\"");
}

static void write_break(struct interp *in, struct text *out, const struct json_style *style, int level) {
    if (!style->indent) return;
    text_add_literal(in, out, "\n");
    for (int i = 0; i < level && in->r == 0; i++) text_add_string(in, out, style->indent);
}

static void write_value(struct interp *in, struct text *out, const struct value *v, const struct json_style *style, int level);

static void write_list(struct interp *in, struct text *out, const struct list *list, const struct json_style *style, int level) {
    text_add_literal(in, out, "[");
    for (size_t i = 0; i < list->n && in->r == 0; i++) {
        if (i > 0) text_add_string(in, out, &style->item_separator);
        write_break(in, out, style, level + 1);
        write_value(in, out, &list->items[i], style, level + 1);
    }
    if (list->n > 0) write_break(in, out, style, level);
    text_add_literal(in, out, "]");
}

static void write_key(struct interp *in, struct text *out, const struct value *key, bool ascii) {
    struct value text = *key;
    if (key->kind == VALUE_NONE) text = value_literal("null");
    else if (key->kind == VALUE_BOOL) text = value_literal(key->number ? "true" : "false");
    else if (value_is_number(key)) text = value_to_string(in, key);
    else if (key->kind != VALUE_STRING) chat_fail(in, E_PARSE, "a %s as a key of JSON", value_kind_name(key));
    if (in->r == 0) quote_string(in, out, &text, ascii);
}

/* Places of the pairs, by key where the style sorts. */
static size_t *key_order(struct interp *in, const struct dict *dict, bool sort) {
    if (!chat_room(in, dict->n * sizeof(size_t))) return NULL;
    size_t *order = arena_alloc(&in->arena, (dict->n + 1) * sizeof *order);
    for (size_t i = 0; i < dict->n; i++) {
        size_t k = i;
        for (; sort && k > 0 && in->r == 0 && chat_charge(in, 0); k--) {
            if (value_compare(in, &dict->pairs[order[k - 1]].key, &dict->pairs[i].key) <= 0) break;
            order[k] = order[k - 1];
        }
        order[k] = i;
    }
    return order;
}

static void write_dict(struct interp *in, struct text *out, const struct dict *dict, const struct json_style *style, int level) {
    const size_t *order = key_order(in, dict, style->sort_keys);
    text_add_literal(in, out, "{");
    for (size_t i = 0; i < dict->n && in->r == 0; i++) {
        if (i > 0) text_add_string(in, out, &style->item_separator);
        write_break(in, out, style, level + 1);
        write_key(in, out, &dict->pairs[order[i]].key, style->ascii);
        text_add_string(in, out, &style->key_separator);
        write_value(in, out, &dict->pairs[order[i]].value, style, level + 1);
    }
    if (dict->n > 0) write_break(in, out, style, level);
    text_add_literal(in, out, "}");
}

static void write_real(struct interp *in, struct text *out, double x) {
    struct value v = value_float(x);
    if (isnan(x)) text_add_literal(in, out, "NaN");
    else if (isinf(x)) text_add_literal(in, out, x < 0 ? "-Infinity" : "Infinity");
    else add_number(in, out, &v);
}

static void write_value(struct interp *in, struct text *out, const struct value *v, const struct json_style *style, int level) {
    if (!chat_charge(in, 0) || !chat_enter(in)) return;
    switch (v->kind) {
    case VALUE_NONE: text_add_literal(in, out, "null"); break;
    case VALUE_BOOL: text_add_literal(in, out, v->number ? "true" : "false"); break;
    case VALUE_INT: add_number(in, out, v); break;
    case VALUE_FLOAT: write_real(in, out, v->real); break;
    case VALUE_STRING: quote_string(in, out, v, style->ascii); break;
    case VALUE_LIST:
    case VALUE_TUPLE: write_list(in, out, v->list, style, level); break;
    case VALUE_DICT: write_dict(in, out, v->dict, style, level); break;
    default: chat_fail(in, E_PARSE, "a %s has no form in JSON", value_kind_name(v));
    }
    in->depth--;
}

void print_json(struct interp *in, struct text *out, const struct value *v, const struct json_style *style) {
    write_value(in, out, v, style, 0);
}
