/* chat_string.c - strings that know which of their bytes came from the row.
 *
 * A string is a part of a struct text, or borrowed. Adding to a string that ends where
 * its text ends uses the room behind it, so that `a = a + b` in a loop is linear. */
#include "base/mem.h"
#include "base/utf8.h"
#include "engine/text/chat_value.h"

#include <string.h>
#include <utf8proc.h>

/* ---------------------------------------------------------------- texts */

struct text *text_new(struct interp *in, size_t cap) {
    struct text *t = arena_alloc(&in->arena, sizeof *t);
    if (cap > 0 && chat_room(in, cap)) {
        t->data = arena_alloc(&in->arena, cap);
        t->cap = cap;
    }
    return t;
}

/* Room for n more bytes. Strings may point into the data already when `moves` is not set:
 * then it is an error to come here without room. */
static bool text_reserve(struct interp *in, struct text *t, size_t n) {
    if (in->r < 0) return false;
    if (n <= t->cap - t->used) return true;
    size_t cap = t->cap * 2 > t->used + n ? t->cap * 2 : t->used + n + 16;
    if (!chat_room(in, (cap - t->cap) * (t->marks ? 2 : 1))) return false;
    t->data = arena_resize(&in->arena, t->data, t->cap, cap);
    if (t->marks) t->marks = arena_resize(&in->arena, t->marks, t->cap, cap);
    t->cap = cap;
    return true;
}

/* From here on the text has bytes of both origins. */
static bool text_mark(struct interp *in, struct text *t) {
    if (t->marks) return true;
    if (!chat_room(in, t->cap)) return false;
    t->marks = arena_alloc(&in->arena, t->cap);
    memset(t->marks, t->plain, t->used);
    return true;
}

void text_add(struct interp *in, struct text *t, const char *s, size_t n, bool plain) {
    if (n == 0 || !chat_work(in, n + 2) || !text_reserve(in, t, n)) return;
    if (t->used == 0 && !t->marks) t->plain = plain;
    if (t->plain != plain && !text_mark(in, t)) return;
    if (t->marks) memset(t->marks + t->used, plain, n);
    memcpy(t->data + t->used, s, n);
    t->used += n;
}

void text_add_literal(struct interp *in, struct text *t, const char *s) {
    text_add(in, t, s, strlen(s), false);
}

static const uint8_t *marks_of(const struct value *s) {
    return s->owner && s->owner->marks ? s->owner->marks + (s->text - s->owner->data) : NULL;
}

void text_add_string(struct interp *in, struct text *t, const struct value *v) {
    const uint8_t *marks = marks_of(v);
    if (!marks) {
        text_add(in, t, v->text, v->n, v->plain);
        return;
    }
    for (size_t i = 0, end; i < v->n && in->r == 0; i = end) {
        for (end = i + 1; end < v->n && marks[end] == marks[i];) end++;
        text_add(in, t, v->text + i, end - i, marks[i]);
    }
}

struct value text_value(struct text *t) {
    struct value v = value_string(t->data, t->used, t->plain);
    v.owner = t;
    return v;
}

/* ---------------------------------------------------------------- parts */

bool string_plain_at(const struct value *s, size_t byte) {
    const uint8_t *marks = marks_of(s);
    return marks ? marks[byte] : s->plain;
}

struct value string_part(const struct value *s, size_t begin, size_t end) {
    struct value part = *s;
    part.text = s->n ? s->text + begin : s->text;
    part.n = end > begin ? end - begin : 0;
    return part;
}

size_t string_characters(const struct value *s) {
    size_t n = 0;
    for (size_t i = 0; i < s->n; i++) n += ((unsigned char)s->text[i] & 0xc0) != 0x80;
    return n;
}

size_t string_byte_of(const struct value *s, size_t character) {
    size_t i = 0;
    for (; i < s->n; i++)
        if (((unsigned char)s->text[i] & 0xc0) != 0x80 && character-- == 0) break;
    return i;
}

/* Is the end of `s` the end of what its text uses, with room for n more bytes? */
static bool can_extend(const struct value *s, size_t n) {
    const struct text *t = s->owner;
    return t && s->n > 0 && s->text + s->n == t->data + t->used && n <= t->cap - t->used;
}

struct value string_concat(struct interp *in, const struct value *a, const struct value *b) {
    if (b->n == 0 && !a->safe) return *a;
    struct value out = *a;
    out.safe = false;
    if (!can_extend(a, b->n)) {
        bool grows = a->owner && a->text + a->n == a->owner->data + a->owner->used;
        struct text *t = text_new(in, (a->n + b->n) * (grows ? 2 : 1) + 32);
        text_add_string(in, t, a);
        out = text_value(t);
    }
    text_add_string(in, out.owner, b);
    if (in->r < 0) return *a;
    out.n = a->n + b->n;
    return out;
}

/* ---------------------------------------------------------------- white space */

bool is_python_space(int32_t c) {
    if (c < 0x80) return (c >= 9 && c <= 13) || (c >= 28 && c <= 32);
    return c == 0x85 || c == 0xa0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 ||
           c == 0x202f || c == 0x205f || c == 0x3000;
}

/* Is the character at s[i] to be stripped: white space, or one of `chars`? */
static bool strips(const char *s, size_t n, const struct value *chars) {
    if (chars) return memmem(chars->text ? chars->text : "", chars->n, s, n) != NULL;
    size_t len;
    return is_python_space(utf8_decode(s, n, &len));
}

static size_t character_at(const struct value *s, size_t i) {
    size_t end = i + 1;
    while (end < s->n && ((unsigned char)s->text[end] & 0xc0) == 0x80) end++;
    return end - i;
}

struct value string_strip(struct interp *in, const struct value *s, const struct value *chars, bool left, bool right) {
    size_t begin = 0, end = s->n;
    if (chars && chars->kind != VALUE_STRING) chars = NULL;
    while (left && begin < end && strips(s->text + begin, character_at(s, begin), chars)) begin += character_at(s, begin);
    while (right && end > begin) {
        size_t i = end - 1;
        while (i > begin && ((unsigned char)s->text[i] & 0xc0) == 0x80) i--;
        if (!strips(s->text + i, end - i, chars)) break;
        end = i;
    }
    chat_charge(in, s->n - (end - begin));
    return string_part(s, begin, end);
}

/* ---------------------------------------------------------------- replacing */

/* An empty `old` stands between all characters. */
static void replace_between(struct interp *in, struct text *t, const struct value *s, const struct value *by, int64_t count) {
    size_t i = 0;
    for (; count != 0 && i <= s->n && in->r == 0; count--) {
        text_add_string(in, t, by);
        if (i == s->n) return;
        size_t n = character_at(s, i);
        struct value c = string_part(s, i, i + n);
        text_add_string(in, t, &c);
        i += n;
    }
    struct value rest = string_part(s, i, s->n);
    text_add_string(in, t, &rest);
}

struct value string_replace(struct interp *in, const struct value *s, const struct value *old, const struct value *by,
                            int64_t count) {
    struct text *t = text_new(in, s->n + 16);
    size_t at = 0;
    chat_charge(in, 4 * s->n);
    if (old->n == 0) {
        replace_between(in, t, s, by, count);
        return text_value(t);
    }
    for (; count != 0 && at < s->n && in->r == 0; count--) {
        const char *found = memmem(s->text + at, s->n - at, old->text, old->n);
        if (!found) break;
        size_t i = (size_t)(found - s->text);
        struct value before = string_part(s, at, i);
        text_add_string(in, t, &before);
        text_add_string(in, t, by);
        at = i + old->n;
    }
    if (at == 0) return *s;
    struct value rest = string_part(s, at, s->n);
    text_add_string(in, t, &rest);
    return text_value(t);
}

struct value string_escape(struct interp *in, const struct value *s) {
    static const char from[] = "&<>'\"";
    static const char *const to[] = {"&amp;", "&lt;", "&gt;", "&#39;", "&#34;"};
    struct text *t = text_new(in, s->n + 16);
    for (size_t i = 0; i < s->n && in->r == 0; i++) {
        const char *p = s->text[i] ? strchr(from, s->text[i]) : NULL;
        bool plain = string_plain_at(s, i);
        if (p) text_add(in, t, to[p - from], strlen(to[p - from]), plain);
        else text_add(in, t, s->text + i, 1, plain);
    }
    struct value out = text_value(t);
    out.safe = true;
    return out;
}

/* ---------------------------------------------------------------- case */

/* Characters whose other case is more than one character, as far as templates may meet them. */
static const char *special_upper(int32_t c) {
    static const struct {
        int32_t c;
        const char *text;
    } table[] = {{0xdf, "SS"},    {0x149, "ʼN"},    {0x1f0, "J̌"},   {0x390, "Ϊ́"},   {0x3b0, "Ϋ́"},  {0x587, "ԵՒ"},
                 {0xfb00, "FF"},  {0xfb01, "FI"},  {0xfb02, "FL"}, {0xfb03, "FFI"}, {0xfb04, "FFL"}, {0xfb05, "ST"},
                 {0xfb06, "ST"}};
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if (table[i].c == c) return table[i].text;
    return NULL;
}

static bool is_upper(int32_t c) {
    utf8proc_category_t k = utf8proc_category(c);
    return k == UTF8PROC_CATEGORY_LU || (k != UTF8PROC_CATEGORY_LT && utf8proc_tolower(c) != c);
}

static bool is_lower(int32_t c) {
    utf8proc_category_t k = utf8proc_category(c);
    return k == UTF8PROC_CATEGORY_LL || (k != UTF8PROC_CATEGORY_LT && k != UTF8PROC_CATEGORY_LU && utf8proc_toupper(c) != c);
}

static bool is_cased(int32_t c) {
    return is_upper(c) || is_lower(c) || utf8proc_category(c) == UTF8PROC_CATEGORY_LT;
}

static int32_t decode_at(const struct value *s, size_t i, size_t *n) {
    return utf8_decode(s->text + i, s->n - i, n);
}

/* Is the sigma at byte i the last letter of a word? */
static bool is_final_sigma(const struct value *s, size_t i) {
    size_t n, before = i, after = i + 2;
    bool led = false;
    while (before > 0) {
        size_t k = before - 1;
        while (k > 0 && ((unsigned char)s->text[k] & 0xc0) == 0x80) k--;
        int32_t c = decode_at(s, k, &n);
        before = k;
        if (c == '\'' || c == 0xad || utf8proc_category(c) == UTF8PROC_CATEGORY_MN) continue;
        led = is_cased(c);
        break;
    }
    while (led && after < s->n) {
        int32_t c = decode_at(s, after, &n);
        after += n;
        if (c == '\'' || c == 0xad || utf8proc_category(c) == UTF8PROC_CATEGORY_MN) continue;
        return !is_cased(c);
    }
    return led;
}

static void add_case(struct interp *in, struct text *t, const struct value *s, size_t i, bool upper, bool title) {
    size_t n;
    int32_t c = decode_at(s, i, &n), out = c;
    bool plain = string_plain_at(s, i);
    const char *special = upper ? special_upper(c) : c == 0x130 ? "i̇" : NULL;
    if (special && title && c != 0x149 && c != 0x1f0 && c != 0x390 && c != 0x3b0) { /* Ss, Fi: the first letter alone */
        char text[8] = "";
        size_t k = 0;
        for (size_t len; special[k]; k += len) {
            int32_t each = utf8_decode(special + k, strlen(special + k), &len);
            char one[4];
            size_t m = utf8_encode(k ? utf8proc_tolower(each) : each, one);
            memcpy(text + k, one, m);
        }
        text_add(in, t, text, k, plain);
        return;
    }
    if (special) {
        text_add(in, t, special, strlen(special), plain);
        return;
    }
    if (!upper && c == 0x3a3) out = is_final_sigma(s, i) ? 0x3c2 : 0x3c3;
    else out = !upper ? utf8proc_tolower(c) : title ? utf8proc_totitle(c) : utf8proc_toupper(c);
    char text[4];
    text_add(in, t, text, utf8_encode(out, text), plain);
}

struct value string_case(struct interp *in, const struct value *s, enum string_case how) {
    struct text *t = text_new(in, s->n + 16);
    bool in_word = false;
    size_t n;
    for (size_t i = 0; i < s->n && in->r == 0; i += n) {
        int32_t c = decode_at(s, i, &n);
        bool first = how == CASE_TITLE ? !in_word : i == 0;
        bool title = first && (how == CASE_TITLE || how == CASE_CAPITALIZE);
        bool upper = how == CASE_UPPER || title || (how == CASE_SWAP && is_lower(c));
        if (how == CASE_SWAP && !is_cased(c)) text_add(in, t, s->text + i, n, string_plain_at(s, i));
        else add_case(in, t, s, i, upper, title);
        in_word = is_cased(c);
    }
    return text_value(t);
}

bool string_has_case(const struct value *s, bool upper) {
    bool any = false;
    size_t n;
    for (size_t i = 0; i < s->n; i += n) {
        int32_t c = decode_at(s, i, &n);
        if (!is_cased(c)) continue;
        if (upper ? !is_upper(c) : !is_lower(c)) return false;
        any = true;
    }
    return any;
}
