/* wordcache.c - words that were encoded before. Texts repeat themselves: nine words
 * of ten are found here and cost one hash and one comparison.
 *
 * A place holds a pointer that goes from NULL to an entry once, by compare and swap,
 * and an entry never changes; so readers need no lock, and a word gives the same ids
 * whether it is found or not. When its two places are taken a word is not kept. */
#include "base/hash.h"
#include "base/mem.h"
#include "engine/text/tokenizer_private.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum { N_PLACES = 1 << 16, CACHED_IDS_MAX = 8 };

struct cached_word {
    uint64_t hash;
    uint8_t n, n_ids;
    char word[CACHED_WORD_MAX];
    int32_t ids[]; /* [n_ids] */
};

struct word_cache {
    _Atomic(struct cached_word *) places[N_PLACES];
};

struct word_cache *word_cache_new(void) {
    return mem_zalloc(1, sizeof(struct word_cache));
}

void word_cache_free(struct word_cache *c) {
    if (!c) return;
    for (size_t i = 0; i < N_PLACES; i++) free(atomic_load_explicit(&c->places[i], memory_order_relaxed));
    free(c);
}

uint64_t word_hash(const char *word, size_t n) {
    return hash64(word, n, 0);
}

bool word_cache_get(const struct word_cache *c, struct token_list *out, uint64_t hash, const char *word, size_t n) {
    for (size_t k = 0; k < 2; k++) {
        const struct cached_word *w = atomic_load_explicit(&c->places[(hash ^ k) % N_PLACES], memory_order_acquire);
        if (!w || w->hash != hash || w->n != n || memcmp(w->word, word, n) != 0) continue;
        for (uint8_t i = 0; i < w->n_ids; i++) token_list_push(out, w->ids[i]);
        return true;
    }
    return false;
}

void word_cache_put(struct word_cache *c, const int32_t *ids, size_t n_ids, uint64_t hash, const char *word, size_t n) {
    if (n > CACHED_WORD_MAX || n_ids == 0 || n_ids > CACHED_IDS_MAX) return;
    size_t k = 0;
    while (k < 2 && atomic_load_explicit(&c->places[(hash ^ k) % N_PLACES], memory_order_relaxed)) k++;
    if (k == 2) return;
    struct cached_word *w = mem_alloc(sizeof *w + n_ids * sizeof *ids), *none = NULL;
    *w = (struct cached_word){.hash = hash, .n = (uint8_t)n, .n_ids = (uint8_t)n_ids};
    memcpy(w->word, word, n);
    memcpy(w->ids, ids, n_ids * sizeof *ids);
    if (!atomic_compare_exchange_strong_explicit(&c->places[(hash ^ k) % N_PLACES], &none, w, memory_order_release,
                                                 memory_order_relaxed))
        free(w);
}
