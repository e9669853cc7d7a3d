/* detokenizer.c - token ids to text, all at once or as they come.
 *
 * Byte-level vocabularies: the tokens' bytes are joined, and what is not UTF-8
 * becomes U+FFFD, one for each longest ill-formed part. SentencePiece-style ones:
 * a run of byte-fallback tokens is decoded together, and if the run is not UTF-8
 * each of its bytes becomes U+FFFD; then leading spaces are stripped. Without a
 * decoder tokens stand with a space between. */
#include "base/utf8.h"
#include "engine/text/tokenizer_private.h"

#include <stdint.h>
#include <string.h>

static const char REPLACEMENT[] = "\xef\xbf\xbd";

void detokenizer_init(struct detokenizer *d, const struct tokenizer *tok, bool skip_special) {
    *d = (struct detokenizer){.tok = tok, .skip_special = skip_special};
}

void detokenizer_clear(struct detokenizer *d) {
    buf_clear(&d->text);
    buf_clear(&d->held);
}

static void drop_held(struct buf *held, size_t n) {
    memmove(held->data, held->data + n, held->n - n);
    held->n -= n;
    held->data[held->n] = '\0';
}

/* Move to `text` what later bytes cannot change. */
static void settle_bytes(struct detokenizer *d, bool at_end) {
    size_t done = 0;
    while (done < d->held.n) {
        const char *at = d->held.data + done;
        size_t left = d->held.n - done, ok = utf8_valid_prefix(at, left);
        buf_append(&d->text, at, ok);
        done += ok;
        if (ok == left) break;
        if (!at_end && utf8_is_incomplete(at + ok, left - ok)) break;
        buf_puts(&d->text, REPLACEMENT);
        done += utf8_ill_formed(at + ok, left - ok);
    }
    if (done) drop_held(&d->held, done);
}

/* Text of a SentencePiece-style token; the strip rule holds at the very start. */
static void emit_text(struct detokenizer *d, const char *text, size_t n) {
    size_t skip = 0;
    if (!d->started) {
        const struct decoder *r = &d->tok->decoder;
        while (skip < n && skip < (size_t)r->strip_start && text[skip] == r->strip_char) skip++;
    }
    if (n > 0) d->started = true;
    buf_append(&d->text, text + skip, n - skip);
}

/* The run of byte tokens is over. */
static void settle_run(struct detokenizer *d) {
    if (d->held.n == 0) return;
    if (utf8_valid_prefix(d->held.data, d->held.n) == d->held.n) emit_text(d, d->held.data, d->held.n);
    else
        for (size_t i = 0; i < d->held.n; i++) emit_text(d, REPLACEMENT, sizeof REPLACEMENT - 1);
    buf_reset(&d->held);
}

/* The first token of a text loses the marks that the pre-tokenizer had put in front. */
static void emit_first(struct detokenizer *d, const struct piece *p) {
    const char *drops = d->tok->decoder.first_drops, *at = p->bytes, *end = at + p->n;
    size_t drops_n = strlen(drops);
    for (const char *hit; (hit = memmem(at, (size_t)(end - at), drops, drops_n)); at = hit + drops_n)
        emit_text(d, at, (size_t)(hit - at));
    emit_text(d, at, (size_t)(end - at));
    d->started = true;
}

void detokenizer_push(struct detokenizer *d, int32_t id) {
    const struct vocab *v = &d->tok->vocab;
    const struct decoder *rules = &d->tok->decoder;
    if (id < 0 || (size_t)id >= v->n_ids || !v->pieces[id].bytes) return;
    const struct piece *p = &v->pieces[id];
    if (p->special && d->skip_special) return;
    const char *text = p->text ? p->text : p->bytes;
    size_t n = p->text ? p->text_n : p->n;
    if (rules->bytes) {
        buf_append(&d->held, text, n);
        settle_bytes(d, false);
    } else if (p->byte >= 0 && rules->fallback) {
        buf_putc(&d->held, (char)p->byte);
    } else if (*rules->first_drops && !d->started && d->held.n == 0) {
        emit_first(d, p);
    } else {
        settle_run(d);
        if (rules->spaced && d->started) buf_putc(&d->text, ' ');
        emit_text(d, text, n);
        if (rules->spaced) d->started = true;
    }
}

void detokenizer_finish(struct detokenizer *d) {
    if (d->tok->decoder.bytes) settle_bytes(d, true);
    else settle_run(d);
}

void tokenizer_decode(const struct tokenizer *tok, struct buf *out, const int32_t *ids, size_t n, bool skip_special) {
    struct detokenizer d;
    detokenizer_init(&d, tok, skip_special);
    for (size_t i = 0; i < n; i++) detokenizer_push(&d, ids[i]);
    detokenizer_finish(&d);
    buf_append(out, d.text.data, d.text.n);
    detokenizer_clear(&d);
}

void tokenizer_token_bytes(const struct tokenizer *tok, struct buf *out, int32_t id) {
    const struct vocab *v = &tok->vocab;
    if (id < 0 || (size_t)id >= v->n_ids || !v->pieces[id].bytes) return;
    const struct piece *p = &v->pieces[id];
    if (p->byte >= 0 && tok->decoder.fallback) buf_putc(out, (char)p->byte);
    else if (p->text) buf_append(out, p->text, p->text_n);
    else buf_append(out, p->bytes, p->n);
}
