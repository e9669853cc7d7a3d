/* normalize.c - tokenizer.json's normalizers: what happens to text before it is cut. */
#include "engine/text/tokenizer_private.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

static bool is_ascii(const char *s, size_t n) {
    for (size_t i = 0; i < n; i++)
        if ((unsigned char)s[i] >= 0x80) return false;
    return true;
}

static void replace_all(struct buf *out, const char *text, size_t n, const char *from, const char *to) {
    size_t from_n = strlen(from), to_n = strlen(to);
    for (const char *end = text + n; text < end;) {
        const char *hit = memmem(text, (size_t)(end - text), from, from_n);
        if (!hit) hit = end;
        buf_append(out, text, (size_t)(hit - text));
        if (hit == end) return;
        buf_append(out, to, to_n);
        text = hit + from_n;
    }
}

static int compose(struct buf *out, const char *text, size_t n, utf8proc_option_t extra, struct err *err) {
    if (is_ascii(text, n)) {
        buf_append(out, text, n);
        return 0;
    }
    utf8proc_uint8_t *result = NULL;
    utf8proc_ssize_t m = utf8proc_map((const utf8proc_uint8_t *)text, (utf8proc_ssize_t)n, &result,
                                      UTF8PROC_STABLE | UTF8PROC_COMPOSE | extra);
    if (m < 0) return err_set(err, E_PARSE, "text cannot be normalized: %s", utf8proc_errmsg(m));
    buf_append(out, result, (size_t)m);
    free(result);
    return 0;
}

static int one_step(const struct normalize_step *step, struct buf *out, const char *text, size_t n, struct err *err) {
    switch (step->kind) {
    case NORMALIZE_PREPEND:
        if (n > 0) buf_puts(out, step->to);
        buf_append(out, text, n);
        return 0;
    case NORMALIZE_REPLACE: replace_all(out, text, n, step->from, step->to); return 0;
    case NORMALIZE_NFC: return compose(out, text, n, 0, err);
    case NORMALIZE_NFKC: return compose(out, text, n, UTF8PROC_COMPAT, err);
    }
    return 0;
}

int normalize(const struct normalize_step *steps, size_t n_steps, struct buf *out, const char *text, size_t n,
              struct err *err) {
    struct buf now = BUF_INIT(0), next = BUF_INIT(0);
    buf_append(&now, text, n);
    int r = 0;
    for (size_t i = 0; r == 0 && i < n_steps; i++) {
        buf_reset(&next);
        r = one_step(&steps[i], &next, now.data ? now.data : "", now.n, err);
        struct buf spare = now;
        now = next;
        next = spare;
    }
    if (r == 0) buf_append(out, now.data, now.n);
    buf_clear(&now);
    buf_clear(&next);
    return r;
}
