/* pretokenize.c - cutting a text into words, as tokenizer.json's pre-tokenizers say.
 *
 * Each step cuts the pieces that the one before has left; a piece is a text of its
 * own, so look-behind and look-ahead end at its borders. Metaspace and ByteLevel may
 * also put a space in front of a piece, which makes a new text. What ByteLevel does
 * to the bytes is done by the vocabulary, which holds raw bytes; only a step behind
 * it sees the letters that stand for bytes, and its cuts are carried back. */
#include "base/mem.h"
#include "engine/text/tokenizer_private.h"

#include <stdlib.h>
#include <string.h>

void span_list_push(struct span_list *l, size_t begin, size_t end) {
    if (l->n == l->cap) {
        l->cap = l->cap ? l->cap * 2 : 64;
        l->spans = mem_realloc(l->spans, l->cap, sizeof *l->spans);
    }
    l->spans[l->n++] = (struct text_span){begin, end};
}

void words_clear(struct words *w) {
    free(w->spans.spans);
    free(w->spare.spans);
    buf_clear(&w->text_of);
    buf_clear(&w->spare_text);
    buf_clear(&w->letters);
}

/* ---------------------------------------------------------------- Split */

struct joiner { /* parts on their way to a list, neighbours joined as the behavior says */
    const struct pre_step *step;
    struct span_list *out;
    size_t base, begin, end; /* the part that waits */
    bool waits, last_match;
};

static bool are_joined(enum split_behavior behavior, bool before, bool now) {
    switch (behavior) {
    case SPLIT_CONTIGUOUS: return before == now;
    case SPLIT_MERGED_PREVIOUS: return now && !before;
    case SPLIT_MERGED_NEXT: return before && !now;
    default: return false;
    }
}

static void push_waiting(struct joiner *j) {
    if (j->waits && j->begin < j->end) span_list_push(j->out, j->base + j->begin, j->base + j->end);
    j->waits = false;
}

/* Parts come in order and without a gap; an empty match is a part too. */
static void push_part(struct joiner *j, size_t begin, size_t end, bool is_match) {
    is_match = is_match != j->step->invert;
    if (j->waits && are_joined(j->step->behavior, j->last_match, is_match)) {
        j->end = end;
    } else {
        push_waiting(j);
        j->begin = begin;
        j->end = end;
        j->waits = !(is_match && j->step->behavior == SPLIT_REMOVED);
    }
    j->last_match = is_match;
}

static int split_one(const struct pre_step *step, struct matcher *m, struct span_list *out, size_t base,
                     const char *text, size_t n, struct err *err) {
    struct joiner j = {.step = step, .out = out, .base = base};
    struct pattern_search s = {0};
    struct text_span hit;
    size_t done = 0;
    int r;
    while ((r = pattern_next(step->pattern, m, &s, text, n, &hit, err)) > 0) {
        if (done < hit.begin) push_part(&j, done, hit.begin, false);
        push_part(&j, hit.begin, hit.end, true);
        done = hit.end;
    }
    if (done < n) push_part(&j, done, n, false);
    push_waiting(&j);
    return r;
}

/* Cut the letters of a piece's bytes, then count back: a letter is a byte. */
static int split_letters(const struct pre_step *step, struct matcher *m, struct words *w, struct text_span piece,
                         struct err *err) {
    size_t first = w->spare.n, at = 0, byte = piece.begin;
    char letter[2];
    buf_reset(&w->letters);
    for (size_t i = piece.begin; i < piece.end; i++)
        buf_append(&w->letters, letter, byte_letter((unsigned char)w->text[i], letter));
    int r = split_one(step, m, &w->spare, 0, w->letters.data ? w->letters.data : "", w->letters.n, err);
    for (size_t i = first; r == 0 && i < w->spare.n; i++) {
        struct text_span *s = &w->spare.spans[i];
        size_t end = s->end;
        for (; at < s->begin; byte++) at += byte_letter((unsigned char)w->text[byte], letter);
        s->begin = byte;
        for (; at < end; byte++) at += byte_letter((unsigned char)w->text[byte], letter);
        s->end = byte;
    }
    return r;
}

static int split_all(const struct pre_step *step, struct matcher *m, struct words *w, struct err *err) {
    int r = 0;
    for (size_t i = 0; r == 0 && i < w->spans.n; i++) {
        struct text_span s = w->spans.spans[i];
        if (step->letters) r = split_letters(step, m, w, s, err);
        else r = split_one(step, m, &w->spare, s.begin, w->text + s.begin, s.end - s.begin, err);
    }
    return r;
}

/* ---------------------------------------------------------------- spaces in front */

static bool starts_with(const char *text, size_t n, const char *what, size_t what_n) {
    return n >= what_n && memcmp(text, what, what_n) == 0;
}

static void put_piece(struct buf *out, const struct pre_step *step, const char *text, size_t n, bool is_first) {
    bool to_front = step->prepend == PREPEND_ALWAYS || (step->prepend == PREPEND_FIRST && is_first);
    if (step->kind == PRE_BYTE_LEVEL) {
        if (to_front && !starts_with(text, n, " ", 1)) buf_putc(out, ' ');
        buf_append(out, text, n);
        return;
    }
    size_t space_n = strlen(step->space);
    if (to_front && !starts_with(text, n, " ", 1) && !starts_with(text, n, step->space, space_n))
        buf_append(out, step->space, space_n);
    for (size_t i = 0, run; i < n; i += run) {
        const char *hit = memchr(text + i, ' ', n - i);
        run = hit ? (size_t)(hit - text) - i : n - i;
        buf_append(out, text + i, run);
        if (!hit) return;
        buf_append(out, step->space, space_n);
        run++;
    }
}

/* The pieces, changed, as a new text. */
static void put_all(const struct pre_step *step, struct words *w) {
    buf_reset(&w->spare_text);
    for (size_t i = 0; i < w->spans.n; i++) {
        struct text_span s = w->spans.spans[i];
        size_t begin = w->spare_text.n;
        put_piece(&w->spare_text, step, w->text + s.begin, s.end - s.begin, w->at_start && s.begin == 0);
        span_list_push(&w->spare, begin, w->spare_text.n);
    }
    struct buf spare = w->text_of;
    w->text_of = w->spare_text;
    w->spare_text = spare;
    w->text = w->text_of.data ? w->text_of.data : "";
}

/* ---------------------------------------------------------------- all steps */

int pre_tokenize(const struct pre_step *steps, size_t n_steps, struct matcher *m, struct words *w, const char *text,
                 size_t n, struct err *err) {
    w->text = text;
    w->spans.n = 0;
    if (n > 0) span_list_push(&w->spans, 0, n);
    for (size_t i = 0; i < n_steps; i++) {
        w->spare.n = 0;
        if (steps[i].kind != PRE_SPLIT) put_all(&steps[i], w);
        else {
            int r = split_all(&steps[i], m, w, err);
            if (r < 0) return r;
        }
        struct span_list spare = w->spans;
        w->spans = w->spare;
        w->spare = spare;
    }
    return w->text_of.full || w->spare_text.full ? err_set(err, E_RANGE, "the text is longer than 1 GiB") : 0;
}
