/* logprobs_json.c - see logprobs_json.h. */
#include "batchd/logprobs_json.h"
#include "base/utf8.h"

#include <string.h>

static const float LEAST = -9999.0f; /* JSON has no infinity; the peers write this */

static void put_number(struct buf *out, float x) {
    if (x > LEAST) buf_printf(out, "%.7g", (double)x);
    else buf_puts(out, "-9999.0");
}

static void put_token(struct buf *out, const struct tokenizer *tok, int32_t id) {
    struct buf bytes = BUF_INIT(0);
    tokenizer_token_bytes(tok, &bytes, id);
    if (utf8_valid_prefix(bytes.data ? bytes.data : "", bytes.n) == bytes.n) buf_put_json(out, bytes.data, bytes.n);
    else {
        buf_puts(out, "\"bytes:");
        for (size_t i = 0; i < bytes.n; i++) buf_printf(out, "\\\\x%02x", (unsigned char)bytes.data[i]);
        buf_putc(out, '"');
    }
    buf_clear(&bytes);
}

/* ---------------------------------------------------------------- a place's alternatives */

struct keys { /* of the object being written */
    struct text_span at[ENGINE_MAX_LOGPROBS + 1];
    size_t n;
};

static bool has_key(const struct buf *out, const struct keys *keys, const char *key, size_t n) {
    for (size_t i = 0; i < keys->n; i++) {
        struct text_span k = keys->at[i];
        if (k.end - k.begin == n && memcmp(out->data + k.begin, key, n) == 0) return true;
    }
    return false;
}

static void put_pair(struct buf *out, struct keys *keys, const struct tokenizer *tok, int32_t id, float x) {
    struct buf key = BUF_INIT(0);
    put_token(&key, tok, id);
    if (!has_key(out, keys, key.data, key.n)) {
        if (keys->n > 0) buf_putc(out, ',');
        keys->at[keys->n++] = (struct text_span){out->n, out->n + key.n};
        buf_append(out, key.data, key.n);
        buf_putc(out, ':');
        put_number(out, x);
    }
    buf_clear(&key);
}

static void put_alternatives(struct buf *out, const struct tokenizer *tok, const struct logprobs *l, int32_t i, int32_t id) {
    struct keys keys = {.n = 0};
    buf_putc(out, '{');
    for (int32_t k = 0; k < l->n_top && l->top_ids[i * l->n_top + k] >= 0; k++)
        put_pair(out, &keys, tok, l->top_ids[i * l->n_top + k], l->top[i * l->n_top + k]);
    put_pair(out, &keys, tok, id, l->token[i]);
    buf_putc(out, '}');
}

/* ---------------------------------------------------------------- the whole */

static size_t n_characters(const struct buf *text, size_t from, size_t end) {
    size_t count = 0;
    for (size_t i = from; i < end; i++) count += ((unsigned char)text->data[i] & 0xc0) != 0x80;
    return count;
}

/* Whole characters that are held back, because byte tokens are decoded together. */
static size_t n_held(const struct buf *held) {
    return held->n == 0 ? 0 : n_characters(held, 0, utf8_valid_prefix(held->data, held->n));
}

/* Where each token's text begins in the completion's; what is not a whole character yet
 * begins where the character will. */
static void put_offsets(struct buf *out, const struct tokenizer *tok, const int32_t *tokens, int32_t n) {
    struct detokenizer d;
    size_t seen = 0, characters = 0;
    detokenizer_init(&d, tok, true);
    for (int32_t i = 0; i < n; i++) {
        characters += n_characters(&d.text, seen, d.text.n);
        seen = d.text.n;
        buf_printf(out, i ? ",%zu" : "%zu", characters + n_held(&d.held));
        detokenizer_push(&d, tokens[i]);
    }
    detokenizer_clear(&d);
}

void logprobs_json(struct buf *out, const struct tokenizer *tok, const struct engine_completion *c) {
    const struct logprobs *l = &c->logprobs;
    buf_puts(out, "{\"tokens\":[");
    for (int32_t i = 0; i < l->n; i++) {
        if (i) buf_putc(out, ',');
        put_token(out, tok, c->tokens[i]);
    }
    buf_puts(out, "],\"token_logprobs\":[");
    for (int32_t i = 0; i < l->n; i++) {
        if (i) buf_putc(out, ',');
        put_number(out, l->token[i]);
    }
    buf_puts(out, "],\"top_logprobs\":[");
    for (int32_t i = 0; i < l->n; i++) {
        if (i) buf_putc(out, ',');
        put_alternatives(out, tok, l, i, c->tokens[i]);
    }
    buf_puts(out, "],\"text_offset\":[");
    put_offsets(out, tok, c->tokens, l->n);
    buf_puts(out, "]}");
}

/* ---------------------------------------------------------------- of the prompt */

static void put_described(struct buf *out, const struct tokenizer *tok, int32_t id, float x, int32_t rank) {
    buf_printf(out, "\"%d\":{\"logprob\":", id);
    put_number(out, x);
    buf_printf(out, ",\"rank\":%d,\"decoded_token\":", rank);
    put_token(out, tok, id);
    buf_putc(out, '}');
}

void prompt_logprobs_json(struct buf *out, const struct tokenizer *tok, const struct engine_completion *c) {
    const struct logprobs *l = &c->prompt_logprobs;
    buf_puts(out, "[null");
    for (int32_t i = 0; i < l->n; i++) {
        int32_t own = c->prompt_tokens[i + 1];
        buf_puts(out, ",{");
        put_described(out, tok, own, l->token[i], l->rank[i]);
        for (int32_t k = 0; k < l->n_top; k++) {
            int32_t at = i * l->n_top + k, id = l->top_ids[at];
            if (id < 0 || id == own) continue;
            buf_putc(out, ',');
            put_described(out, tok, id, l->top[at], k + 1);
        }
        buf_putc(out, '}');
    }
    buf_putc(out, ']');
}
