/* chat_methods.c - the methods of strings, as Python has them. */
#include "base/mem.h"
#include "base/utf8.h"
#include "engine/text/chat_value.h"

#include <string.h>
#include <utf8proc.h>

#define COUNT(table) (sizeof table / sizeof *table)

/* ---------------------------------------------------------------- arguments */

static bool given(const struct value *v) {
    return v->kind != VALUE_MISSING && v->kind != VALUE_NONE;
}

/* A string argument; fails for another kind. */
static bool wants_string(struct interp *in, const struct value *v) {
    if (v->kind == VALUE_STRING) return true;
    chat_fail(in, E_PARSE, "a method of a string got a %s", value_kind_name(v));
    return false;
}

static int64_t integer(struct interp *in, const struct value *v, int64_t missing) {
    if (!given(v)) return missing;
    if (v->kind == VALUE_INT || v->kind == VALUE_BOOL) return v->number;
    chat_fail(in, E_PARSE, "a method of a string got a %s for a number", value_kind_name(v));
    return missing;
}

/* ---------------------------------------------------------------- strip, case, replace */

static struct value stripped(struct interp *in, const struct value *self, struct call *call, bool left, bool right) {
    const struct value *chars = &call->slot[0];
    if (given(chars) && !wants_string(in, chars)) return *self;
    return string_strip(in, self, given(chars) ? chars : NULL, left, right);
}

static struct value strip(struct interp *in, const struct value *self, struct call *call) {
    return stripped(in, self, call, true, true);
}

static struct value lstrip(struct interp *in, const struct value *self, struct call *call) {
    return stripped(in, self, call, true, false);
}

static struct value rstrip(struct interp *in, const struct value *self, struct call *call) {
    return stripped(in, self, call, false, true);
}

static struct value upper(struct interp *in, const struct value *self, struct call *call) {
    return string_case(in, self, CASE_UPPER);
}

static struct value lower(struct interp *in, const struct value *self, struct call *call) {
    return string_case(in, self, CASE_LOWER);
}

static struct value title(struct interp *in, const struct value *self, struct call *call) {
    return string_case(in, self, CASE_TITLE);
}

static struct value capitalize(struct interp *in, const struct value *self, struct call *call) {
    return string_case(in, self, CASE_CAPITALIZE);
}

static struct value swapcase(struct interp *in, const struct value *self, struct call *call) {
    return string_case(in, self, CASE_SWAP);
}

static struct value replace(struct interp *in, const struct value *self, struct call *call) {
    if (!wants_string(in, &call->slot[0]) || !wants_string(in, &call->slot[1])) return *self;
    return string_replace(in, self, &call->slot[0], &call->slot[1], integer(in, &call->slot[2], -1));
}

/* ---------------------------------------------------------------- splitting */

static size_t space_at(const struct value *s, size_t i) {
    size_t len;
    return is_python_space(utf8_decode(s->text + i, s->n - i, &len)) ? len : 0;
}

static void split_at_spaces(struct interp *in, struct list *out, const struct value *s, int64_t limit) {
    struct value rest = string_strip(in, s, NULL, true, false);
    while (rest.n > 0 && in->r == 0) {
        if (limit-- == 0) {
            list_push(in, out, rest); /* white space at its end stays */
            return;
        }
        size_t i = 0;
        while (i < rest.n && space_at(&rest, i) == 0) i++;
        list_push(in, out, string_part(&rest, 0, i));
        rest = string_part(&rest, i, rest.n);
        rest = string_strip(in, &rest, NULL, true, false);
    }
}

static void split_at(struct interp *in, struct list *out, const struct value *s, const struct value *by, int64_t limit) {
    size_t at = 0;
    for (; limit != 0 && in->r == 0 && at < s->n; limit--) {
        const char *found = memmem(s->text + at, s->n - at, by->text, by->n);
        if (!found) break;
        size_t i = (size_t)(found - s->text);
        list_push(in, out, string_part(s, at, i));
        at = i + by->n;
    }
    list_push(in, out, string_part(s, at, s->n));
}

/* The last place of `by` in s that ends by `end`; SIZE_MAX = none. */
static size_t find_last(const struct value *s, const struct value *by, size_t end) {
    for (size_t i = end + 1; i-- > by->n;)
        if (by->n == 0 || memcmp(s->text + i - by->n, by->text, by->n) == 0) return i - by->n;
    return SIZE_MAX;
}

static void reverse(struct list *list) {
    for (size_t i = 0; i < list->n / 2; i++) {
        struct value v = list->items[i];
        list->items[i] = list->items[list->n - 1 - i];
        list->items[list->n - 1 - i] = v;
    }
}

static void rsplit_at_spaces(struct interp *in, struct list *out, const struct value *s, int64_t limit) {
    struct value rest = string_strip(in, s, NULL, false, true);
    while (rest.n > 0 && in->r == 0) {
        if (limit-- == 0) {
            list_push(in, out, rest);
            break;
        }
        size_t i = rest.n, k = i;
        while (k > 0) {
            do k--;
            while (k > 0 && ((unsigned char)rest.text[k] & 0xc0) == 0x80);
            if (space_at(&rest, k)) break;
            i = k;
        }
        list_push(in, out, string_part(&rest, i, rest.n));
        rest = string_part(&rest, 0, i);
        rest = string_strip(in, &rest, NULL, false, true);
    }
    reverse(out);
}

static void rsplit_at(struct interp *in, struct list *out, const struct value *s, const struct value *by, int64_t limit) {
    size_t end = s->n;
    for (; limit != 0 && in->r == 0; limit--) {
        size_t i = find_last(s, by, end);
        if (i == SIZE_MAX) break;
        list_push(in, out, string_part(s, i + by->n, end));
        end = i;
    }
    list_push(in, out, string_part(s, 0, end));
    reverse(out);
}

static struct value split_any(struct interp *in, const struct value *self, struct call *call, bool right) {
    const struct value *by = &call->slot[0];
    int64_t limit = integer(in, &call->slot[1], -1);
    struct list *out = list_new(in, 0);
    chat_charge(in, 4 * self->n);
    if (given(by) && !wants_string(in, by)) return *self;
    if (given(by) && by->n == 0) return chat_fail(in, E_PARSE, "split by an empty string");
    if (!given(by)) (right ? rsplit_at_spaces : split_at_spaces)(in, out, self, limit);
    else (right ? rsplit_at : split_at)(in, out, self, by, limit);
    return value_list(VALUE_LIST, out);
}

static struct value split(struct interp *in, const struct value *self, struct call *call) {
    return split_any(in, self, call, false);
}

static struct value rsplit(struct interp *in, const struct value *self, struct call *call) {
    return split_any(in, self, call, true);
}

static bool is_line_end(int32_t c) {
    return (c >= 10 && c <= 13) || (c >= 28 && c <= 30) || c == 0x85 || c == 0x2028 || c == 0x2029;
}

static struct value splitlines(struct interp *in, const struct value *self, struct call *call) {
    struct list *out = list_new(in, 0);
    bool keep = call->slot[0].kind != VALUE_MISSING && value_is_true(&call->slot[0]);
    size_t begin = 0, len;
    for (size_t i = 0; i < self->n && in->r == 0; i += len) {
        if (!is_line_end(utf8_decode(self->text + i, self->n - i, &len))) continue;
        if (self->text[i] == '\r' && i + 1 < self->n && self->text[i + 1] == '\n') len = 2;
        list_push(in, out, string_part(self, begin, keep ? i + len : i));
        begin = i + len;
    }
    if (begin < self->n) list_push(in, out, string_part(self, begin, self->n));
    return value_list(VALUE_LIST, out);
}

static struct value partition_at(struct interp *in, const struct value *self, const struct value *by, bool right) {
    if (!wants_string(in, by)) return *self;
    if (by->n == 0) return chat_fail(in, E_PARSE, "partition by an empty string");
    const char *found = self->n ? memmem(self->text, self->n, by->text, by->n) : NULL;
    size_t i = right ? find_last(self, by, self->n) : found ? (size_t)(found - self->text) : SIZE_MAX;
    struct list *out = list_new(in, 3);
    chat_charge(in, 4 * self->n);
    if (out->n < 3) return *self;
    for (int k = 0; k < 3; k++) out->items[k] = value_string("", 0, false);
    if (i == SIZE_MAX) out->items[right ? 2 : 0] = *self;
    else {
        out->items[0] = string_part(self, 0, i);
        out->items[1] = *by;
        out->items[2] = string_part(self, i + by->n, self->n);
    }
    return value_list(VALUE_TUPLE, out);
}

static struct value partition(struct interp *in, const struct value *self, struct call *call) {
    return partition_at(in, self, &call->slot[0], false);
}

static struct value rpartition(struct interp *in, const struct value *self, struct call *call) {
    return partition_at(in, self, &call->slot[0], true);
}

/* ---------------------------------------------------------------- looking */

/* The part of the string between the characters that two arguments name. */
static struct value window(struct interp *in, const struct value *self, const struct value *from, const struct value *to) {
    struct value missing = value_none();
    if (!given(from) && !given(to)) return *self;
    return value_slice(in, self, given(from) ? from : &missing, given(to) ? to : &missing, NULL);
}

static bool starts(const struct value *s, const struct value *with) {
    return with->n <= s->n && (with->n == 0 || memcmp(s->text, with->text, with->n) == 0);
}

static bool ends(const struct value *s, const struct value *with) {
    return with->n <= s->n && (with->n == 0 || memcmp(s->text + s->n - with->n, with->text, with->n) == 0);
}

static struct value matches(struct interp *in, const struct value *self, struct call *call,
                            bool (*fn)(const struct value *, const struct value *)) {
    struct value s = window(in, self, &call->slot[1], &call->slot[2]);
    const struct value *what = &call->slot[0];
    if (what->kind != VALUE_TUPLE) return value_bool(wants_string(in, what) && fn(&s, what));
    for (size_t i = 0; i < what->list->n && in->r == 0; i++)
        if (wants_string(in, &what->list->items[i]) && fn(&s, &what->list->items[i])) return value_bool(true);
    return value_bool(false);
}

static struct value startswith(struct interp *in, const struct value *self, struct call *call) {
    return matches(in, self, call, starts);
}

static struct value endswith(struct interp *in, const struct value *self, struct call *call) {
    return matches(in, self, call, ends);
}

/* Character index of a part, -1 = not there. */
static int64_t find_character(struct interp *in, const struct value *self, struct call *call, bool last) {
    if (!wants_string(in, &call->slot[0])) return -1;
    if (given(&call->slot[1]) || given(&call->slot[2]))
        return chat_fail(in, E_UNSUPPORTED, "unsupported arguments of method \"find\""), -1;
    chat_charge(in, 4 * self->n);
    const struct value *what = &call->slot[0];
    const char *found = self->n ? memmem(self->text, self->n, what->text, what->n) : NULL;
    size_t i = last ? find_last(self, what, self->n) : found ? (size_t)(found - self->text) : SIZE_MAX;
    if (what->n == 0) i = last ? self->n : 0;
    if (i == SIZE_MAX) return -1;
    struct value before = string_part(self, 0, i);
    return (int64_t)string_characters(&before);
}

static struct value find(struct interp *in, const struct value *self, struct call *call) {
    return value_int(find_character(in, self, call, false));
}

static struct value rfind(struct interp *in, const struct value *self, struct call *call) {
    return value_int(find_character(in, self, call, true));
}

static struct value string_index(struct interp *in, const struct value *self, struct call *call) {
    int64_t i = find_character(in, self, call, false);
    return i < 0 ? chat_fail(in, E_PARSE, "index: no such text") : value_int(i);
}

static struct value count(struct interp *in, const struct value *self, struct call *call) {
    const struct value *what = &call->slot[0];
    if (!wants_string(in, what)) return *self;
    chat_charge(in, 4 * self->n);
    if (what->n == 0) return value_int((int64_t)string_characters(self) + 1);
    int64_t n = 0;
    for (size_t at = 0; at < self->n; n++) {
        const char *found = memmem(self->text + at, self->n - at, what->text, what->n);
        if (!found) break;
        at = (size_t)(found - self->text) + what->n;
    }
    return value_int(n);
}

/* ---------------------------------------------------------------- classes of characters */

static bool is_letter(int32_t c) {
    utf8proc_category_t k = utf8proc_category(c);
    return k >= UTF8PROC_CATEGORY_LU && k <= UTF8PROC_CATEGORY_LO;
}

static bool is_digit(int32_t c) {
    return utf8proc_category(c) == UTF8PROC_CATEGORY_ND || c == 0xb2 || c == 0xb3 || c == 0xb9;
}

static bool is_letter_or_digit(int32_t c) {
    utf8proc_category_t k = utf8proc_category(c);
    return is_letter(c) || (k >= UTF8PROC_CATEGORY_ND && k <= UTF8PROC_CATEGORY_NO);
}

static struct value all_are(const struct value *s, bool (*fn)(int32_t)) {
    size_t len;
    for (size_t i = 0; i < s->n; i += len)
        if (!fn(utf8_decode(s->text + i, s->n - i, &len))) return value_bool(false);
    return value_bool(s->n > 0);
}

static struct value isalpha_all(struct interp *in, const struct value *self, struct call *call) {
    return all_are(self, is_letter);
}

static struct value isdigit_all(struct interp *in, const struct value *self, struct call *call) {
    return all_are(self, is_digit);
}

static struct value isalnum_all(struct interp *in, const struct value *self, struct call *call) {
    return all_are(self, is_letter_or_digit);
}

static struct value isspace_all(struct interp *in, const struct value *self, struct call *call) {
    return all_are(self, is_python_space);
}

static struct value isupper_all(struct interp *in, const struct value *self, struct call *call) {
    return value_bool(string_has_case(self, true));
}

static struct value islower_all(struct interp *in, const struct value *self, struct call *call) {
    return value_bool(string_has_case(self, false));
}

/* ---------------------------------------------------------------- putting together */

static struct value join(struct interp *in, const struct value *self, struct call *call) {
    const struct list *items = value_items(in, &call->slot[0]);
    struct text *t = text_new(in, 0);
    for (size_t i = 0; i < items->n && in->r == 0; i++) {
        if (i > 0) text_add_string(in, t, self);
        if (wants_string(in, &items->items[i])) text_add_string(in, t, &items->items[i]);
    }
    return text_value(t);
}

static struct value removeprefix(struct interp *in, const struct value *self, struct call *call) {
    if (!wants_string(in, &call->slot[0]) || !starts(self, &call->slot[0])) return *self;
    return string_part(self, call->slot[0].n, self->n);
}

static struct value removesuffix(struct interp *in, const struct value *self, struct call *call) {
    if (!wants_string(in, &call->slot[0]) || !ends(self, &call->slot[0])) return *self;
    return string_part(self, 0, self->n - call->slot[0].n);
}

static struct value padded(struct interp *in, const struct value *self, struct call *call, bool left, bool right) {
    static const struct value space = {.kind = VALUE_STRING, .n = 1, .text = " "};
    const struct value *fill = given(&call->slot[1]) ? &call->slot[1] : &space;
    int64_t width = integer(in, &call->slot[0], 0), pad = width - (int64_t)string_characters(self);
    if (!wants_string(in, fill) || string_characters(fill) != 1) return chat_fail(in, E_PARSE, "a fill that is no character");
    if (pad <= 0 || !chat_room(in, (size_t)pad)) return *self;
    int64_t before = left && right ? pad / 2 + (pad & width & 1) : left ? pad : 0;
    struct text *t = text_new(in, self->n + (size_t)pad);
    for (int64_t i = 0; i < before && in->r == 0; i++) text_add_string(in, t, fill);
    text_add_string(in, t, self);
    for (int64_t i = before; i < pad && in->r == 0; i++) text_add_string(in, t, fill);
    return text_value(t);
}

static struct value ljust(struct interp *in, const struct value *self, struct call *call) {
    return padded(in, self, call, false, true);
}

static struct value rjust(struct interp *in, const struct value *self, struct call *call) {
    return padded(in, self, call, true, false);
}

static struct value center(struct interp *in, const struct value *self, struct call *call) {
    return padded(in, self, call, true, true);
}

static struct value format(struct interp *in, const struct value *self, struct call *call) {
    return format_braces(in, self, call);
}

/* Without a function: Python has it, and it is refused by name. */
static const struct native methods[] = {
    {"strip", "chars", strip}, {"lstrip", "chars", lstrip}, {"rstrip", "chars", rstrip}, {"upper", "", upper},
    {"lower", "", lower}, {"title", "", title}, {"capitalize", "", capitalize}, {"swapcase", "", swapcase},
    {"replace", "old! new! count", replace}, {"split", "sep maxsplit", split}, {"rsplit", "sep maxsplit", rsplit},
    {"splitlines", "keepends", splitlines}, {"partition", "sep!", partition}, {"rpartition", "sep!", rpartition},
    {"startswith", "prefix! start end", startswith}, {"endswith", "suffix! start end", endswith},
    {"find", "sub! start end", find}, {"rfind", "sub! start end", rfind}, {"index", "sub! start end", string_index},
    {"count", "sub!", count}, {"isalpha", "", isalpha_all}, {"isdigit", "", isdigit_all}, {"isalnum", "", isalnum_all},
    {"isspace", "", isspace_all}, {"isupper", "", isupper_all}, {"islower", "", islower_all}, {"join", "items!", join},
    {"removeprefix", "prefix!", removeprefix}, {"removesuffix", "suffix!", removesuffix}, {"ljust", "width! fill", ljust},
    {"rjust", "width! fill", rjust}, {"center", "width! fill", center}, {"format", NULL, format},
    {"casefold", NULL, NULL}, {"encode", NULL, NULL}, {"expandtabs", NULL, NULL},
    {"format_map", NULL, NULL}, {"isascii", NULL, NULL}, {"isdecimal", NULL, NULL},
    {"isidentifier", NULL, NULL}, {"isnumeric", NULL, NULL}, {"isprintable", NULL, NULL},
    {"istitle", NULL, NULL}, {"rindex", NULL, NULL}, {"translate", NULL, NULL},
    {"zfill", NULL, NULL},
};

const struct native *chat_string_method(const char *name, size_t n) {
    return native_find(methods, COUNT(methods), name, n);
}
