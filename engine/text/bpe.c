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

#include <assert.h>
#include <stdlib.h>
#include <string.h>

/* ---------------------------------------------------------------- tables */

static size_t power_of_two_above(size_t n) {
    size_t p = 16;
    while (p < n) p *= 2;
    return p;
}

int32_t bpe_find(const struct bpe *b, const char *bytes, size_t n) {
    size_t mask = b->table_size - 1;
    for (size_t i = hash64(bytes, n, 0) & mask; b->by_bytes[i] >= 0; i = (i + 1) & mask) {
        const struct piece *p = &b->pieces[b->by_bytes[i]];
        if (p->n == n && memcmp(p->bytes, bytes, n) == 0) return b->by_bytes[i];
    }
    return -1;
}

void bpe_build_table(struct bpe *b) {
    b->table_size = power_of_two_above(b->n_ids * 2);
    b->by_bytes = mem_alloc(b->table_size * sizeof *b->by_bytes);
    memset(b->by_bytes, 0xff, b->table_size * sizeof *b->by_bytes);
    size_t mask = b->table_size - 1;
    for (size_t id = 0; id < b->n_ids; id++) {
        const struct piece *p = &b->pieces[id];
        if (!p->bytes || bpe_find(b, p->bytes, p->n) >= 0) continue;
        size_t i = hash64(p->bytes, p->n, 0) & mask;
        while (b->by_bytes[i] >= 0) i = (i + 1) & mask;
        b->by_bytes[i] = (int32_t)id;
    }
    for (int c = 0; c < 256; c++) b->byte_token[c] = -1;
    for (size_t id = 0; id < b->n_ids; id++)
        if (b->pieces[id].byte >= 0 && !b->byte_level) b->byte_token[b->pieces[id].byte] = (int32_t)id;
    for (int c = 0; c < 256 && b->byte_level; c++) {
        char one = (char)c;
        b->byte_token[c] = bpe_find(b, &one, 1);
    }
}

static size_t merge_place(const struct bpe *b, uint64_t pair) {
    size_t mask = b->merges_size - 1, i = hash64_mix(pair, 1) & mask;
    while (b->merges[i].rank != UINT32_MAX && b->merges[i].pair != pair) i = (i + 1) & mask;
    return i;
}

void bpe_reserve_merges(struct bpe *b, size_t n) {
    b->merges_size = power_of_two_above(n * 2 + 1);
    b->merges = mem_alloc(b->merges_size * sizeof *b->merges);
    for (size_t i = 0; i < b->merges_size; i++) b->merges[i] = (struct merge){0, UINT32_MAX, -1};
}

static uint64_t pair_of(int32_t left, int32_t right) {
    return (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
}

bool bpe_add_merge(struct bpe *b, int32_t left, int32_t right, uint32_t rank, int32_t result) {
    uint64_t pair = pair_of(left, right);
    struct merge *m = &b->merges[merge_place(b, pair)];
    bool is_new = m->rank == UINT32_MAX;
    *m = (struct merge){pair, rank, result}; /* of two merges of a pair the later one holds */
    return is_new;
}

/* ---------------------------------------------------------------- a word */

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
    const struct merge *m = &b->merges[merge_place(b, pair_of(left, right))];
    if (m->rank == UINT32_MAX) return;
    heap_push(s, (struct candidate){m->rank, at, left, right, m->result});
}

static int32_t push_symbol(struct bpe_scratch *s, int32_t n, int32_t id) {
    s->symbols[n] = (struct symbol){id, n - 1, n + 1};
    return n + 1;
}

/* Bytes of one character as <0xHH> tokens, if the vocabulary has them all. */
static bool push_fallback(const struct bpe *b, struct bpe_scratch *s, int32_t *n, const char *c, size_t len) {
    if (!b->byte_fallback) return false;
    for (size_t i = 0; i < len; i++)
        if (b->byte_token[(unsigned char)c[i]] < 0) return false;
    for (size_t i = 0; i < len; i++) *n = push_symbol(s, *n, b->byte_token[(unsigned char)c[i]]);
    return true;
}

/* A word as symbols: bytes, or characters with fallback to bytes or to unk. */
static int32_t first_symbols(const struct bpe *b, struct bpe_scratch *s, const char *word, size_t n) {
    int32_t count = 0;
    if (b->byte_level) {
        for (size_t i = 0; i < n; i++) {
            int32_t id = b->byte_token[(unsigned char)word[i]];
            if (id < 0) id = b->unk_id;
            if (id >= 0) count = push_symbol(s, count, id);
        }
        return count;
    }
    bool after_unk = false;
    for (size_t i = 0, len; i < n; i += len) {
        utf8_decode(word + i, n - i, &len);
        int32_t id = bpe_find(b, word + i, len);
        bool is_unk = id < 0 && !push_fallback(b, s, &count, word + i, len);
        if (is_unk && b->unk_id >= 0 && !(after_unk && b->fuse_unk)) count = push_symbol(s, count, b->unk_id);
        if (id >= 0) count = push_symbol(s, count, id);
        after_unk = is_unk;
    }
    return count;
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

void bpe_encode(const struct bpe *b, struct bpe_scratch *s, struct token_list *out, const char *word, size_t n) {
    if (n == 0) return;
    if (b->ignore_merges) {
        int32_t id = bpe_find(b, word, n);
        if (id >= 0) {
            token_list_push(out, id);
            return;
        }
    }
    if (n > s->symbols_cap) {
        s->symbols_cap = n < 256 ? 256 : n;
        s->symbols = mem_realloc(s->symbols, s->symbols_cap, sizeof *s->symbols);
    }
    int32_t count = first_symbols(b, s, word, n);
    if (count == 0) return;
    s->symbols[count - 1].next = -1;
    merge_all(b, s, count);
    for (int32_t i = 0; i >= 0; i = s->symbols[i].next) token_list_push(out, s->symbols[i].id);
}
