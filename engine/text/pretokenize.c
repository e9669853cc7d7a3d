/* pretokenize.c - cutting text into words by the patterns of tokenizer.json.
 *
 * Patterns come with the model, so they run under PCRE2 with limits. PCRE2 keeps
 * its state on the heap or in JIT-compiled code with a stack of its own; nothing
 * here recurses with the length of a text. */
#include "base/mem.h"
#include "engine/text/tokenizer_private.h"

#include <stdlib.h>

enum { MATCH_LIMIT = 50000000, HEAP_LIMIT_KIB = 262144 };

void span_list_push(struct span_list *l, size_t begin, size_t end) {
    if (l->n == l->cap) {
        l->cap = l->cap ? l->cap * 2 : 64;
        l->spans = mem_realloc(l->spans, l->cap, sizeof *l->spans);
    }
    l->spans[l->n++] = (struct text_span){begin, end};
}

int split_compile(struct split_step *out, const char *pattern, size_t n, struct err *err) {
    int code;
    PCRE2_SIZE at;
    out->pattern = pcre2_compile((PCRE2_SPTR)pattern, n, PCRE2_UTF | PCRE2_UCP, &code, &at, NULL);
    if (!out->pattern) {
        PCRE2_UCHAR text[200];
        pcre2_get_error_message(code, text, sizeof text);
        return err_set(err, E_PARSE, "pre_tokenizer pattern: %s at offset %zu", (const char *)text, (size_t)at);
    }
    pcre2_jit_compile(out->pattern, PCRE2_JIT_COMPLETE); /* slower without, but the same */
    return 0;
}

struct matcher {
    pcre2_match_data *data;
    pcre2_match_context *context;
};

static int next_match(const struct split_step *step, const struct matcher *m, const char *text, size_t n, size_t from,
                      struct text_span *out, bool *found, struct err *err) {
    uint32_t flags = PCRE2_NO_UTF_CHECK;
    int r = pcre2_match(step->pattern, (PCRE2_SPTR)text, n, from, flags, m->data, m->context);
    if (r == PCRE2_ERROR_JIT_STACKLIMIT)
        r = pcre2_match(step->pattern, (PCRE2_SPTR)text, n, from, flags | PCRE2_NO_JIT, m->data, m->context);
    *found = r > 0;
    if (r < 0 && r != PCRE2_ERROR_NOMATCH)
        return err_set(err, E_RANGE, "a pattern of the tokenizer runs into its limits on this text (PCRE2 error %d)", r);
    if (*found) {
        const PCRE2_SIZE *at = pcre2_get_ovector_pointer(m->data);
        *out = (struct text_span){at[0], at[1]};
    }
    return 0;
}

static void emit(const struct split_step *step, struct span_list *out, size_t base, size_t begin, size_t end,
                 bool is_match) {
    if (begin == end) return;
    if (is_match != step->invert && step->removed) return;
    span_list_push(out, base + begin, base + end);
}

/* A span is matched as a text of its own: look-behind and look-ahead end at its borders. */
static int split_one(const struct split_step *step, const struct matcher *m, struct span_list *out, const char *text,
                     struct text_span span, struct err *err) {
    const char *s = text + span.begin;
    size_t n = span.end - span.begin, from = 0, done = 0;
    while (from < n) {
        struct text_span hit;
        bool found;
        int r = next_match(step, m, s, n, from, &hit, &found, err);
        if (r < 0) return r;
        if (!found) break;
        if (hit.end == hit.begin) { /* an empty match cuts nothing; look behind the next character */
            from = hit.end + 1;
            while (from < n && ((unsigned char)s[from] & 0xc0) == 0x80) from++;
            continue;
        }
        emit(step, out, span.begin, done, hit.begin, false);
        emit(step, out, span.begin, hit.begin, hit.end, true);
        from = done = hit.end;
    }
    emit(step, out, span.begin, done, n, false);
    return 0;
}

int split_spans(const struct split_step *step, struct span_list *out, const struct span_list *in, const char *text,
                struct err *err) {
    struct matcher m = {pcre2_match_data_create(1, NULL), pcre2_match_context_create(NULL)};
    pcre2_set_match_limit(m.context, MATCH_LIMIT);
    pcre2_set_heap_limit(m.context, HEAP_LIMIT_KIB);
    out->n = 0;
    int r = 0;
    for (size_t i = 0; r == 0 && i < in->n; i++) r = split_one(step, &m, out, text, in->spans[i], err);
    pcre2_match_context_free(m.context);
    pcre2_match_data_free(m.data);
    return r;
}
