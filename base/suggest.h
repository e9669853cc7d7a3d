/* suggest.h - "did you mean": the nearest of some known words. */
#ifndef BATCHD_BASE_SUGGEST_H
#define BATCHD_BASE_SUGGEST_H

#include <stddef.h>

/* The word nearest to `given` by edit distance, or NULL when none is near (more
 * than a third of its letters differ). Borrowed from `words`. */
const char *suggest(const char *given, const char *const *words, size_t n_words);

#endif
