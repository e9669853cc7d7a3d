/* bpe.c - byte pair encoding of one word.
 *
 * The rule: while neighbours can be merged, merge the pair of lowest rank, leftmost
 * first. Symbols form a linked list, candidates a heap by (rank, position), and a
 * candidate that no longer holds when it comes up is skipped, so that a word of n
 * symbols takes O(n log n) whatever it is. */
#include "base/hash.h"
#include "base/mem.h"
#include "base/utf8.h"
#include "engine/text/tokenizer_private.h"

#include <stdlib.h>
#include <string.h>

/* ---------------------------------------------------------------- merges */

static size_t merge_place(const struct bpe *b, uint64_t pair) {
    size_t mask = b->merges_size - 1, i = hash64_mix(pair, 1) & mask;
    while (b->merges[i].rank != UINT32_MAX && b->merges[i].pair != pair) i = (i + 1) & mask;
    return i;
}

void bpe_reserve_merges(struct bpe *b, size_t n) {
    b->merges_size = 16;
    while (b->merges_size < n * 2 + 1) b->merges_size *= 2;
    b->merges = mem_alloc(b->merges_size * sizeof *b->merges);
    for (size_t i = 0; i < b->merges_size; i++) b->merges[i] = (struct merge){0, UINT32_MAX, -1};
}

static uint64_t pair_of(int32_t left, int32_t right) {
    return (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
}

void bpe_add_merge(struct bpe *b, int32_t left, int32_t right, uint32_t rank, int32_t result) {
    uint64_t pair = pair_of(left, right);
    b->merges[merge_place(b, pair)] = (struct merge){pair, rank, result}; /* the later of two holds */
}

static const struct merge *merge_of(const struct bpe *b, int32_t left, int32_t right) {
    return &b->merges[merge_place(b, pair_of(left, right))];
}

/* ---------------------------------------------------------------- a word */

enum { SHORT_WORD = 24 };

struct symbol {
    int32_t id;         /* -1 = merged into its left neighbour */
    int32_t prev, next; /* -1 = none */
};

struct candidate {
    uint32_t rank;
    int32_t at;          /* the left symbol */
    int32_t left, right; /* ids when this was found */
    int32_t result;
};

struct bpe_scratch {
    struct symbol *symbols;
    struct candidate *heap;
    size_t symbols_cap, heap_cap, n_heap;
};

struct bpe_scratch *bpe_scratch_new(void) {
    return mem_zalloc(1, sizeof(struct bpe_scratch));
}

void bpe_scratch_free(struct bpe_scratch *s) {
    if (!s) return;
    free(s->symbols);
    free(s->heap);
    free(s);
}

static bool comes_before(const struct candidate *a, const struct candidate *b) {
    return a->rank != b->rank ? a->rank < b->rank : a->at < b->at;
}

static void heap_push(struct bpe_scratch *s, struct candidate c) {
    if (s->n_heap == s->heap_cap) {
        s->heap_cap = s->heap_cap ? s->heap_cap * 2 : 64;
        s->heap = mem_realloc(s->heap, s->heap_cap, sizeof *s->heap);
    }
    size_t i = s->n_heap++;
    while (i > 0 && comes_before(&c, &s->heap[(i - 1) / 2])) {
        s->heap[i] = s->heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    s->heap[i] = c;
}

static struct candidate heap_pop(struct bpe_scratch *s) {
    struct candidate top = s->heap[0], last = s->heap[--s->n_heap];
    size_t i = 0, child;
    while ((child = 2 * i + 1) < s->n_heap) {
        if (child + 1 < s->n_heap && comes_before(&s->heap[child + 1], &s->heap[child])) child++;
        if (!comes_before(&s->heap[child], &last)) break;
        s->heap[i] = s->heap[child];
        i = child;
    }
    if (s->n_heap) s->heap[i] = last;
    return top;
}

static void consider(const struct bpe *b, struct bpe_scratch *s, int32_t at) {
    int32_t next = s->symbols[at].next;
    if (next < 0) return;
    int32_t left = s->symbols[at].id, right = s->symbols[next].id;
    const struct merge *m = merge_of(b, left, right);
    if (m->rank == UINT32_MAX) return;
    heap_push(s, (struct candidate){m->rank, at, left, right, m->result});
}

static int32_t push_symbol(struct bpe_scratch *s, int32_t n, int32_t id) {
    s->symbols[n] = (struct symbol){id, n - 1, n + 1};
    return n + 1;
}

/* Bytes of one character as <0xHH> tokens, if the vocabulary has them all. */
static bool push_fallback(const struct vocab *v, struct bpe_scratch *s, int32_t *n, const char *c, size_t len) {
    if (!v->byte_fallback) return false;
    for (size_t i = 0; i < len; i++)
        if (v->byte_token[(unsigned char)c[i]] < 0) return false;
    for (size_t i = 0; i < len; i++) *n = push_symbol(s, *n, v->byte_token[(unsigned char)c[i]]);
    return true;
}

/* A character that is not in the vocabulary waits as `pending` for the next one that is,
 * so that a run of them can become one unk; bytes of fallback go past it, which the
 * library whose ids these must be does too. */
static int32_t symbols_of_chars(const struct vocab *v, struct bpe_scratch *s, const char *word, size_t n) {
    int32_t count = 0;
    bool pending = false;
    for (size_t i = 0, len; i < n; i += len) {
        utf8_decode(word + i, n - i, &len);
        int32_t id = vocab_find(v, word + i, len);
        if (id < 0 && push_fallback(v, s, &count, word + i, len)) continue;
        if (pending && (id >= 0 || !v->fuse_unk)) count = push_symbol(s, count, v->unk_id);
        if (id >= 0) count = push_symbol(s, count, id);
        pending = id < 0 && v->unk_id >= 0;
    }
    if (pending) count = push_symbol(s, count, v->unk_id);
    return count;
}

static int32_t symbols_of_bytes(const struct vocab *v, struct bpe_scratch *s, const char *word, size_t n) {
    int32_t count = 0;
    bool after_unk = false;
    for (size_t i = 0; i < n; i++) {
        int32_t id = v->byte_token[(unsigned char)word[i]];
        bool is_unk = id < 0;
        if (is_unk && v->unk_id >= 0 && !(after_unk && v->fuse_unk)) id = v->unk_id;
        if (id >= 0) count = push_symbol(s, count, id);
        after_unk = is_unk;
    }
    return count;
}

/* A short word needs no heap: look for the best pair until there is none. */
static void merge_short(const struct bpe *b, struct token_list *out, const struct symbol *symbols, int32_t n) {
    int32_t ids[SHORT_WORD];
    const struct merge *merges[SHORT_WORD];
    for (int32_t i = 0; i < n; i++) ids[i] = symbols[i].id;
    for (int32_t i = 0; i + 1 < n; i++) merges[i] = merge_of(b, ids[i], ids[i + 1]);
    for (;;) {
        int32_t best = -1;
        uint32_t rank = UINT32_MAX;
        for (int32_t i = 0; i + 1 < n; i++)
            if (merges[i]->rank < rank) rank = merges[best = i]->rank;
        if (best < 0) break;
        ids[best] = merges[best]->result;
        n--;
        memmove(ids + best + 1, ids + best + 2, (size_t)(n - best - 1) * sizeof *ids);
        if (best + 1 < n) {
            memmove(merges + best + 1, merges + best + 2, (size_t)(n - best - 2) * sizeof *merges);
            merges[best] = merge_of(b, ids[best], ids[best + 1]);
        }
        if (best > 0) merges[best - 1] = merge_of(b, ids[best - 1], ids[best]);
    }
    for (int32_t i = 0; i < n; i++) token_list_push(out, ids[i]);
}

static void merge_all(const struct bpe *b, struct bpe_scratch *s, int32_t n) {
    s->n_heap = 0;
    for (int32_t i = 0; i + 1 < n; i++) consider(b, s, i);
    while (s->n_heap > 0) {
        struct candidate c = heap_pop(s);
        struct symbol *left = &s->symbols[c.at];
        if (left->id != c.left || left->next < 0 || s->symbols[left->next].id != c.right) continue;
        struct symbol *right = &s->symbols[left->next];
        left->id = c.result;
        left->next = right->next;
        right->id = -1;
        if (left->next >= 0) s->symbols[left->next].prev = c.at;
        consider(b, s, c.at);
        if (left->prev >= 0) consider(b, s, left->prev);
    }
}

void bpe_encode(const struct bpe *b, const struct vocab *v, struct bpe_scratch *s, struct token_list *out,
                const char *word, size_t n) {
    if (n == 0) return;
    int32_t whole = b->ignore_merges ? vocab_find(v, word, n) : -1;
    if (whole >= 0) {
        token_list_push(out, whole);
        return;
    }
    if (n > s->symbols_cap) {
        s->symbols_cap = n < 256 ? 256 : n;
        s->symbols = mem_realloc(s->symbols, s->symbols_cap, sizeof *s->symbols);
    }
    int32_t count = v->byte_level ? symbols_of_bytes(v, s, word, n) : symbols_of_chars(v, s, word, n);
    if (count <= SHORT_WORD) {
        merge_short(b, out, s->symbols, count);
        return;
    }
    s->symbols[count - 1].next = -1;
    merge_all(b, s, count);
    for (int32_t i = 0; i >= 0; i = s->symbols[i].next) token_list_push(out, s->symbols[i].id);
}
