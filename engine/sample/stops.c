/* stops.c - see stops.h. */
#include "engine/sample/stops.h"

#include <stdint.h>
#include <string.h>

size_t stops_find(const char *text, size_t n, size_t from, char *const *stop, size_t n_stop) {
    size_t best = SIZE_MAX, best_end = SIZE_MAX;
    for (size_t i = 0; i < n_stop; i++) {
        size_t length = strlen(stop[i]);
        if (length == 0 || length > n) continue;
        size_t at = from >= length ? from - length + 1 : 0;
        const char *hit = memmem(text + at, n - at, stop[i], length);
        if (!hit) continue;
        size_t begin = (size_t)(hit - text), end = begin + length;
        if (end > best_end || (end == best_end && begin > best)) continue;
        best = begin;
        best_end = end;
    }
    return best;
}
