/* suggest.c - see suggest.h. Edit distance by the usual two-row table, with the
 * swap of neighbours counted as one edit, since that is how people mistype. */
#include "base/suggest.h"

#include <ctype.h>
#include <string.h>

enum { MAX_WORD = 64 };

static size_t min3(size_t a, size_t b, size_t c) {
    size_t m = a < b ? a : b;
    return m < c ? m : c;
}

static size_t distance(const char *a, size_t n, const char *b, size_t m) {
    size_t rows[3][MAX_WORD + 1];
    size_t *before = rows[0], *last = rows[1], *row = rows[2];
    for (size_t j = 0; j <= m; j++) last[j] = j;
    for (size_t i = 1; i <= n; i++) {
        row[0] = i;
        for (size_t j = 1; j <= m; j++) {
            size_t differs = tolower((unsigned char)a[i - 1]) != tolower((unsigned char)b[j - 1]);
            row[j] = min3(last[j] + 1, row[j - 1] + 1, last[j - 1] + differs);
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] && before[j - 2] + 1 < row[j])
                row[j] = before[j - 2] + 1;
        }
        size_t *spare = before;
        before = last;
        last = row;
        row = spare;
    }
    return last[m];
}

const char *suggest(const char *given, const char *const *words, size_t n_words) {
    size_t n = strlen(given), best = (n + 2) / 3 + 1;
    const char *found = NULL;
    if (n > MAX_WORD) return NULL;
    for (size_t i = 0; i < n_words; i++) {
        size_t m = strlen(words[i]);
        if (m > MAX_WORD) continue;
        size_t d = distance(given, n, words[i], m);
        if (d < best) {
            best = d;
            found = words[i];
        }
    }
    return found;
}
