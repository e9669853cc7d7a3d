/* detokenizer.c - token ids to text, all at once or as they come.
 *
 * Byte-level vocabularies: the tokens' bytes are joined, and what is not UTF-8
 * becomes U+FFFD, one for each longest ill-formed part. SentencePiece-style ones:
 * a run of byte-fallback tokens is decoded together, and if the run is not UTF-8
 * each of its bytes becomes U+FFFD; then leading spaces are stripped. */
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
        while (skip < n && skip < (size_t)d->tok->strip_start && text[skip] == d->tok->strip_char) skip++;
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

void detokenizer_push(struct detokenizer *d, int32_t id) {
    const struct bpe *b = &d->tok->bpe;
    if (id < 0 || (size_t)id >= b->n_ids || !b->pieces[id].bytes) return;
    const struct piece *p = &b->pieces[id];
    if (p->special && d->skip_special) return;
    if (d->tok->decode_bytes) {
        buf_append(&d->held, p->bytes, p->n);
        settle_bytes(d, false);
    } else if (p->byte >= 0 && d->tok->decode_fallback) {
        buf_putc(&d->held, (char)p->byte);
    } else {
        settle_run(d);
        emit_text(d, p->text ? p->text : p->bytes, p->text ? p->text_n : p->n);
    }
}

void detokenizer_finish(struct detokenizer *d) {
    if (d->tok->decode_bytes) settle_bytes(d, true);
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
    const struct bpe *b = &tok->bpe;
    if (id < 0 || (size_t)id >= b->n_ids || !b->pieces[id].bytes) return;
    const struct piece *p = &b->pieces[id];
    if (p->byte >= 0 && tok->decode_fallback) buf_putc(out, (char)p->byte);
    else if (p->text && !tok->decode_bytes) buf_append(out, p->text, p->text_n);
    else buf_append(out, p->bytes, p->n);
}
