/* utf8.c - see utf8.h. Table 3-7 of the Unicode Standard, version 14. */
#include "base/utf8.h"
#include "base/buf.h"

#include <string.h>

/* Length that the first byte announces and the range of the second byte; 0 = not a first byte. */
static size_t announced(unsigned char c, unsigned char *lo, unsigned char *hi) {
    *lo = 0x80;
    *hi = 0xbf;
    if (c < 0x80) return 1;
    if (c >= 0xc2 && c <= 0xdf) return 2;
    if (c == 0xe0) *lo = 0xa0;
    if (c == 0xed) *hi = 0x9f;
    if (c >= 0xe0 && c <= 0xef) return 3;
    if (c == 0xf0) *lo = 0x90;
    if (c == 0xf4) *hi = 0x8f;
    if (c >= 0xf0 && c <= 0xf4) return 4;
    return 0;
}

/* Bytes that fit the form that the first byte announces, 0 when it announces none. */
static size_t matching(const char *s, size_t n, size_t *want) {
    unsigned char lo, hi;
    *want = announced((unsigned char)s[0], &lo, &hi);
    if (*want == 0) return 0;
    size_t have = 1;
    while (have < *want && have < n) {
        unsigned char c = (unsigned char)s[have];
        if (c < lo || c > hi) break;
        lo = 0x80;
        hi = 0xbf;
        have++;
    }
    return have;
}

int32_t utf8_decode(const char *s, size_t n, size_t *len) {
    size_t want, have = matching(s, n, &want);
    *len = 1;
    if (have == 0 || have < want) return -1;
    static const unsigned char first_mask[] = {0, 0x7f, 0x1f, 0x0f, 0x07};
    int32_t cp = (unsigned char)s[0] & first_mask[want];
    for (size_t i = 1; i < want; i++) cp = cp << 6 | ((unsigned char)s[i] & 0x3f);
    *len = want;
    return cp;
}

size_t utf8_valid_prefix(const char *s, size_t n) {
    size_t i = 0;
    while (i < n) {
        if ((unsigned char)s[i] < 0x80) {
            i++;
            continue;
        }
        size_t want, have = matching(s + i, n - i, &want);
        if (have == 0 || have < want) break;
        i += want;
    }
    return i;
}

char *utf8_repaired(const char *text) {
    struct buf out = BUF_INIT(0);
    size_t left = strlen(text);
    buf_puts(&out, "");
    while (left > 0) {
        size_t n = utf8_valid_prefix(text, left);
        buf_append(&out, text, n);
        if (n == left) break;
        buf_puts(&out, "\xef\xbf\xbd");
        n += utf8_ill_formed(text + n, left - n);
        text += n;
        left -= n;
    }
    return buf_take(&out);
}

void utf8_trim(char *text) {
    text[utf8_valid_prefix(text, strlen(text))] = '\0';
}

bool utf8_is_incomplete(const char *s, size_t n) {
    if (n == 0) return false;
    size_t want, have = matching(s, n, &want);
    return have == n && have < want;
}

size_t utf8_encode(int32_t cp, char out[4]) {
    if (cp < 0x80) {
        out[0] = (char)cp;
        return 1;
    }
    if (cp < 0x800) {
        out[0] = (char)(0xc0 | cp >> 6);
        out[1] = (char)(0x80 | (cp & 0x3f));
        return 2;
    }
    if (cp < 0x10000) {
        out[0] = (char)(0xe0 | cp >> 12);
        out[1] = (char)(0x80 | (cp >> 6 & 0x3f));
        out[2] = (char)(0x80 | (cp & 0x3f));
        return 3;
    }
    out[0] = (char)(0xf0 | cp >> 18);
    out[1] = (char)(0x80 | (cp >> 12 & 0x3f));
    out[2] = (char)(0x80 | (cp >> 6 & 0x3f));
    out[3] = (char)(0x80 | (cp & 0x3f));
    return 4;
}

size_t utf8_ill_formed(const char *s, size_t n) {
    size_t want, have = matching(s, n, &want);
    return have > 0 ? have : 1;
}
