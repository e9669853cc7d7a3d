/* normalize.c - tokenizer.json's normalizers: what happens to text before it is cut.
 *
 * Ids must be those of Hugging Face's library, whose tables of normalization are
 * Unicode 9's: to it a mark or a compatibility character that is newer is a letter
 * like any other, which combines with nothing and becomes nothing else. */
#include "base/mem.h"
#include "base/utf8.h"
#include "engine/text/tokenizer_private.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

struct range {
    int32_t first, last;
};

static const struct range newer_marks[] = {
    {0x7fd, 0x7fd},     {0x898, 0x89f},     {0x8ca, 0x8d3},     {0x9fe, 0x9fe},     {0xafa, 0xaff},
    {0xb55, 0xb55},     {0xc04, 0xc04},     {0xc3c, 0xc3c},     {0xd00, 0xd00},     {0xd3b, 0xd3c},
    {0xd81, 0xd81},     {0xeba, 0xeba},     {0x1715, 0x1715},   {0x180f, 0x180f},   {0x1abf, 0x1ace},
    {0x1cf7, 0x1cf7},   {0x1df6, 0x1dfa},   {0xa82c, 0xa82c},   {0xa8ff, 0xa8ff},   {0x10d24, 0x10d27},
    {0x10eab, 0x10eac}, {0x10f46, 0x10f50}, {0x10f82, 0x10f85}, {0x11070, 0x11070}, {0x11073, 0x11074},
    {0x110c2, 0x110c2}, {0x11145, 0x11146}, {0x111c9, 0x111c9}, {0x111ce, 0x111cf}, {0x1133b, 0x1133b},
    {0x1145e, 0x1145e}, {0x1182c, 0x1183a}, {0x11930, 0x11935}, {0x11937, 0x11938}, {0x1193b, 0x1193e},
    {0x11940, 0x11940}, {0x11942, 0x11943}, {0x119d1, 0x119d7}, {0x119da, 0x119e0}, {0x119e4, 0x119e4},
    {0x11a01, 0x11a0a}, {0x11a33, 0x11a39}, {0x11a3b, 0x11a3e}, {0x11a47, 0x11a47}, {0x11a51, 0x11a5b},
    {0x11a8a, 0x11a99}, {0x11d31, 0x11d36}, {0x11d3a, 0x11d3a}, {0x11d3c, 0x11d3d}, {0x11d3f, 0x11d45},
    {0x11d47, 0x11d47}, {0x11d8a, 0x11d8e}, {0x11d90, 0x11d91}, {0x11d93, 0x11d97}, {0x11ef3, 0x11ef6},
    {0x16f4f, 0x16f4f}, {0x16f7f, 0x16f87}, {0x16fe4, 0x16fe4}, {0x16ff0, 0x16ff1}, {0x1cf00, 0x1cf2d},
    {0x1cf30, 0x1cf46}, {0x1e130, 0x1e136}, {0x1e2ae, 0x1e2ae}, {0x1e2ec, 0x1e2ef},
};

static const struct range newer_compatible[] = {
    {0x32ff, 0x32ff},   {0xa7f2, 0xa7f4},   {0xab69, 0xab69},   {0x10781, 0x10785},
    {0x10787, 0x107b0}, {0x107b2, 0x107ba}, {0x1f16c, 0x1f16c}, {0x1fbf0, 0x1fbf9},
};

static bool is_in(const struct range *ranges, size_t n, int32_t cp) {
    size_t low = 0, high = n;
    while (low < high) { /* the first range that ends at cp or behind it */
        size_t mid = (low + high) / 2;
        if (ranges[mid].last < cp) low = mid + 1;
        else high = mid;
    }
    return low < n && ranges[low].first <= cp;
}

static bool is_newer_mark(int32_t cp) {
    return cp >= 0x7fd && is_in(newer_marks, sizeof newer_marks / sizeof *newer_marks, cp);
}

enum { HANGUL_T_BASE = 0x11a7 }; /* a vowel, which utf8proc takes for an empty final consonant and drops */

/* What the forms leave as it is, and what combines with nothing before it. */
static bool is_left_alone(int32_t cp) {
    return is_newer_mark(cp) || cp == HANGUL_T_BASE ||
           (cp >= 0x32ff && is_in(newer_compatible, sizeof newer_compatible / sizeof *newer_compatible, cp));
}

bool char_is_space(int32_t cp) {
    return cp == ' ' || (cp >= 9 && cp <= 13) || cp == 0x85 || cp == 0xa0 || cp == 0x1680 ||
           (cp >= 0x2000 && cp <= 0x200a) || cp == 0x2028 || cp == 0x2029 || cp == 0x202f || cp == 0x205f ||
           cp == 0x3000;
}

static bool is_ascii(const char *s, size_t n) {
    unsigned char all = 0;
    for (size_t i = 0; i < n; i++) all |= (unsigned char)s[i];
    return all < 0x80;
}

/* ---------------------------------------------------------------- the four forms */

static utf8proc_option_t form_flags(enum normalize_kind kind) {
    switch (kind) {
    case NORMALIZE_NFC: return UTF8PROC_STABLE | UTF8PROC_COMPOSE;
    case NORMALIZE_NFD: return UTF8PROC_STABLE | UTF8PROC_DECOMPOSE;
    case NORMALIZE_NFKC: return UTF8PROC_STABLE | UTF8PROC_COMPOSE | UTF8PROC_COMPAT;
    default: return UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT;
    }
}

static void put_char(struct buf *out, int32_t cp) {
    char bytes[4];
    buf_append(out, bytes, utf8_encode(cp, bytes));
}

enum { LONG_RUN = 32 };

struct mark {
    int32_t cp;
    uint64_t order; /* combining class << 32 | place, so that sorting by it is stable */
};

static int by_order(const void *a, const void *b) {
    uint64_t x = ((const struct mark *)a)->order, y = ((const struct mark *)b)->order;
    return x < y ? -1 : x > y;
}

/* Three letters of Tibetan are no marks, but become two marks each. */
static bool becomes_marks(int32_t cp) {
    return cp == 0xf73 || cp == 0xf75 || cp == 0xf81;
}

static uint64_t combining_class(int32_t cp) {
    return (uint64_t)utf8proc_get_property(cp)->combining_class;
}

static bool is_mark(int32_t cp) {
    return cp >= 0x300 && (becomes_marks(cp) || combining_class(cp) > 0);
}

/* A run of marks, in canonical order. */
static void put_sorted(struct buf *out, const char *text, size_t n) {
    struct mark *marks = mem_alloc(2 * n * sizeof *marks);
    size_t m = 0, len;
    for (size_t i = 0; i < n; i += len) {
        int32_t cp = utf8_decode(text + i, n - i, &len);
        if (becomes_marks(cp)) marks[m++].cp = 0xf71;
        marks[m++].cp = cp == 0xf73 ? 0xf72 : cp == 0xf75 ? 0xf74 : cp == 0xf81 ? 0xf80 : cp;
    }
    for (size_t i = 0; i < m; i++) marks[i].order = combining_class(marks[i].cp) << 32 | i;
    qsort(marks, m, sizeof *marks, by_order);
    for (size_t i = 0; i < m; i++) put_char(out, marks[i].cp);
    free(marks);
}

/* utf8proc sorts marks one by one, which takes a square of their number; so long runs are
 * sorted before it sees them. True: `out` has the text. */
static bool sort_marks(struct buf *out, const char *text, size_t n) {
    size_t done = 0, len;
    for (size_t i = 0, run; i < n; i = run + len) {
        for (run = i, len = 1; run < n && is_mark(utf8_decode(text + run, n - run, &len)); run += len) {}
        if (run - i < LONG_RUN) continue;
        buf_append(out, text + done, i - done);
        put_sorted(out, text + i, run - i);
        done = run;
    }
    if (done == 0) return false;
    buf_append(out, text + done, n - done);
    return true;
}

static int form_part(struct buf *out, const char *text, size_t n, utf8proc_option_t flags, struct err *err) {
    if (is_ascii(text, n)) {
        buf_append(out, text, n);
        return 0;
    }
    utf8proc_uint8_t *result = NULL;
    struct buf sorted = BUF_INIT(0);
    if (sort_marks(&sorted, text, n)) {
        text = sorted.data;
        n = sorted.n;
    }
    utf8proc_ssize_t m = utf8proc_map((const utf8proc_uint8_t *)text, (utf8proc_ssize_t)n, &result, flags);
    buf_clear(&sorted);
    if (m < 0) return err_set(err, E_PARSE, "text cannot be normalized: %s", utf8proc_errmsg(m));
    buf_append(out, result, (size_t)m);
    free(result);
    return 0;
}

/* Parts between characters that are left alone. */
static int form(struct buf *out, const char *text, size_t n, enum normalize_kind kind, struct err *err) {
    size_t begin = 0, len;
    for (size_t i = 0; i < n; i += len) {
        len = 1;
        if ((unsigned char)text[i] < 0xc0 || !is_left_alone(utf8_decode(text + i, n - i, &len))) continue;
        int r = form_part(out, text + begin, i - begin, form_flags(kind), err);
        if (r < 0) return r;
        buf_append(out, text + i, len);
        begin = i + len;
    }
    return form_part(out, text + begin, n - begin, form_flags(kind), err);
}

/* ---------------------------------------------------------------- the others */

static void replace_text(struct buf *out, const char *text, size_t n, const char *from, const char *to) {
    size_t from_n = strlen(from), to_n = strlen(to);
    for (const char *end = text + n; text < end;) {
        const char *hit = from_n == 1 ? memchr(text, from[0], (size_t)(end - text))
                                      : memmem(text, (size_t)(end - text), from, from_n);
        if (!hit) hit = end;
        buf_append(out, text, (size_t)(hit - text));
        if (hit == end) return;
        buf_append(out, to, to_n);
        text = hit + from_n;
    }
}

static int replace_matches(const struct normalize_step *step, struct matcher *m, struct buf *out, const char *text,
                           size_t n, struct err *err) {
    struct pattern_search s = {0};
    struct text_span hit;
    size_t done = 0;
    int r;
    while ((r = pattern_next(step->pattern, m, &s, text, n, &hit, err)) > 0) {
        buf_append(out, text + done, hit.begin - done);
        buf_puts(out, step->to);
        done = hit.end;
    }
    buf_append(out, text + done, n - done);
    return r;
}

static void lowercase(struct buf *out, const char *text, size_t n) {
    size_t len;
    for (size_t i = 0; i < n; i += len) {
        int32_t cp = utf8_decode(text + i, n - i, &len);
        if (cp == 0x130) buf_puts(out, "i\xcc\x87"); /* the one that becomes two */
        else put_char(out, utf8proc_tolower(cp));
    }
}

static bool is_accent(int32_t cp) {
    utf8proc_category_t c = utf8proc_category(cp);
    bool is_mark = c == UTF8PROC_CATEGORY_MN || c == UTF8PROC_CATEGORY_MC || c == UTF8PROC_CATEGORY_ME;
    return cp == 0x1cf2 || cp == 0x1cf3 /* marks once */ || (is_mark && !is_newer_mark(cp));
}

static void strip_accents(struct buf *out, const char *text, size_t n) {
    size_t len;
    for (size_t i = 0; i < n; i += len)
        if (!is_accent(utf8_decode(text + i, n - i, &len))) buf_append(out, text + i, len);
}

static void strip(const struct normalize_step *step, struct buf *out, const char *text, size_t n) {
    size_t begin = 0, len;
    while (step->left && begin < n && char_is_space(utf8_decode(text + begin, n - begin, &len))) begin += len;
    for (size_t i; step->right && n > begin; n = i) {
        i = n - 1;
        while (i > begin && ((unsigned char)text[i] & 0xc0) == 0x80) i--;
        if (!char_is_space(utf8_decode(text + i, n - i, &len))) break;
    }
    buf_append(out, text + begin, n - begin);
}

static int one_step(const struct normalize_step *step, struct matcher *m, struct buf *out, const char *text, size_t n,
                    struct err *err) {
    switch (step->kind) {
    case NORMALIZE_PREPEND:
        if (n > 0) buf_puts(out, step->to);
        buf_append(out, text, n);
        return 0;
    case NORMALIZE_REPLACE:
        if (step->pattern) return replace_matches(step, m, out, text, n, err);
        replace_text(out, text, n, step->from, step->to);
        return 0;
    case NORMALIZE_LOWERCASE: lowercase(out, text, n); return 0;
    case NORMALIZE_STRIP_ACCENTS: strip_accents(out, text, n); return 0;
    case NORMALIZE_STRIP: strip(step, out, text, n); return 0;
    default: return form(out, text, n, step->kind, err);
    }
}

void normalize_step_clear(struct normalize_step *s) {
    free(s->from);
    free(s->to);
    pattern_free(s->pattern);
}

int normalize(const struct normalize_step *steps, size_t n_steps, struct matcher *m, struct buf *out, const char *text,
              size_t n, struct err *err) {
    struct buf now = BUF_INIT(out->max), next = BUF_INIT(out->max); /* steps that double a text add up */
    int r = 0;
    for (size_t i = 0; r == 0 && i < n_steps; i++) {
        buf_reset(&next);
        r = one_step(&steps[i], m, i + 1 < n_steps ? &next : out, text, n, err);
        struct buf spare = now;
        now = next;
        next = spare;
        text = now.data ? now.data : "";
        n = now.n;
    }
    if (n_steps == 0) buf_append(out, text, n);
    if (r == 0 && (out->full || now.full || next.full)) r = err_set(err, E_RANGE, "the normalized text is too long");
    buf_clear(&now);
    buf_clear(&next);
    return r;
}
