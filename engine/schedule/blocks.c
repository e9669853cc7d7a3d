/* blocks.c - see blocks.h. A free list in order of eviction, and a hash table of
 * what is published; both are threaded through one array of blocks. */
#include "engine/schedule/blocks.h"
#include "base/hash.h"
#include "base/mem.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

enum { NONE = -1 };

struct block {
    uint64_t identity;  /* 0 = not published */
    uint64_t parent;    /* identity of the block before; 0 = the sequence begins here */
    int32_t refs;       /* block tables that hold it */
    int32_t prev, next; /* free list, NONE at its ends */
    int32_t chain;      /* next in its bucket */
    int32_t tokens[KV_BLOCK];
};

struct blocks {
    struct block *at;
    int32_t n;
    int32_t first_free, last_free, n_free; /* first is taken next */
    int32_t *bucket;
    uint64_t bucket_mask;
    uint64_t last_identity;
};

static void free_list_remove(struct blocks *b, int32_t id) {
    struct block *k = &b->at[id];
    if (k->prev != NONE) b->at[k->prev].next = k->next;
    else b->first_free = k->next;
    if (k->next != NONE) b->at[k->next].prev = k->prev;
    else b->last_free = k->prev;
    b->n_free--;
}

/* What nobody can find goes first: it is of no further use. */
static void free_list_add(struct blocks *b, int32_t id) {
    struct block *k = &b->at[id];
    bool front = k->identity == 0;
    k->prev = front ? NONE : b->last_free;
    k->next = front ? b->first_free : NONE;
    if (k->prev != NONE) b->at[k->prev].next = id;
    else b->first_free = id;
    if (k->next != NONE) b->at[k->next].prev = id;
    else b->last_free = id;
    b->n_free++;
}

struct blocks *blocks_new(int32_t n_blocks) {
    assert(n_blocks > 0);
    struct blocks *b = mem_zalloc(1, sizeof *b);
    uint64_t buckets = 16;
    while (buckets < 2 * (uint64_t)n_blocks) buckets *= 2;
    b->n = n_blocks;
    b->at = mem_zalloc((size_t)n_blocks, sizeof *b->at);
    b->bucket = mem_alloc(buckets * sizeof *b->bucket);
    b->bucket_mask = buckets - 1;
    memset(b->bucket, 0xff, buckets * sizeof *b->bucket);
    b->first_free = b->last_free = NONE;
    for (int32_t i = n_blocks - 1; i >= 0; i--) free_list_add(b, i);
    return b;
}

void blocks_free(struct blocks *b) {
    if (!b) return;
    free(b->at);
    free(b->bucket);
    free(b);
}

int32_t blocks_n_free(const struct blocks *b) {
    return b->n_free;
}

/* ---------------------------------------------------------------- what is published */

static int32_t *bucket_of(const struct blocks *b, uint64_t parent, const int32_t *tokens) {
    return &b->bucket[hash64(tokens, KV_BLOCK * sizeof *tokens, parent) & b->bucket_mask];
}

static int32_t find(const struct blocks *b, uint64_t parent, const int32_t *tokens) {
    int32_t id = *bucket_of(b, parent, tokens);
    while (id != NONE) {
        const struct block *k = &b->at[id];
        if (k->parent == parent && memcmp(k->tokens, tokens, sizeof k->tokens) == 0) break;
        id = k->chain;
    }
    return id;
}

static void unpublish(struct blocks *b, int32_t id) {
    struct block *k = &b->at[id];
    int32_t *at = bucket_of(b, k->parent, k->tokens);
    while (*at != id) at = &b->at[*at].chain;
    *at = k->chain;
    k->identity = 0;
}

static void publish_one(struct blocks *b, int32_t id, uint64_t parent, const int32_t *tokens) {
    struct block *k = &b->at[id];
    assert(k->identity == 0 && k->refs > 0);
    int32_t *bucket = bucket_of(b, parent, tokens);
    k->identity = ++b->last_identity;
    k->parent = parent;
    memcpy(k->tokens, tokens, sizeof k->tokens);
    k->chain = *bucket;
    *bucket = id;
}

void blocks_publish(struct blocks *b, struct block_table *table, const int32_t *tokens, int32_t n_settled) {
    for (; (table->n_published + 1) * KV_BLOCK <= n_settled; table->n_published++) {
        const int32_t *content = tokens + table->n_published * KV_BLOCK;
        int32_t mine = table->ids[table->n_published], known = find(b, table->identity, content);
        if (known == NONE) publish_one(b, mine, table->identity, content);
        /* Two sequences that computed the same tokens side by side: one block is known,
         * its twin stays private, and what follows continues the known one's chain. */
        table->identity = b->at[known == NONE ? mine : known].identity;
    }
}

int32_t blocks_match(struct blocks *b, struct block_table *table, const int32_t *tokens, int32_t n_tokens) {
    assert(table->n == 0);
    for (; (table->n + 1) * KV_BLOCK < n_tokens; table->n++) {
        int32_t id = find(b, table->identity, tokens + table->n * KV_BLOCK);
        if (id == NONE) break;
        if (b->at[id].refs++ == 0) free_list_remove(b, id);
        table->ids[table->n] = id;
        table->identity = b->at[id].identity;
        table->n_published++;
    }
    return table->n * KV_BLOCK;
}

/* ---------------------------------------------------------------- taking and giving back */

static int32_t take(struct blocks *b) {
    int32_t id = b->first_free;
    struct block *k = &b->at[id];
    free_list_remove(b, id);
    if (k->identity) unpublish(b, id);
    k->refs = 1;
    return id;
}

int blocks_reserve(struct blocks *b, struct block_table *table, int32_t n_tokens) {
    int32_t n = blocks_for(n_tokens);
    assert(n <= table->cap);
    if (n - table->n > b->n_free) return E_FULL;
    while (table->n < n) table->ids[table->n++] = take(b);
    return 0;
}

void blocks_release(struct blocks *b, struct block_table *table) {
    while (table->n > 0) {
        int32_t id = table->ids[--table->n];
        assert(b->at[id].refs > 0);
        if (--b->at[id].refs == 0) free_list_add(b, id);
    }
    table->n_published = 0;
    table->identity = 0;
}

void blocks_check(const struct blocks *b) {
    int32_t n_free = 0, n_unused = 0, prev = NONE;
    for (int32_t id = b->first_free; id != NONE; prev = id, id = b->at[id].next, n_free++)
        assert(b->at[id].refs == 0 && b->at[id].prev == prev && n_free < b->n);
    assert(prev == b->last_free && n_free == b->n_free);
    int32_t n_published = 0, n_findable = 0;
    for (int32_t id = 0; id < b->n; id++) {
        const struct block *k = &b->at[id];
        assert(k->refs >= 0);
        n_unused += k->refs == 0;
        n_published += k->identity != 0;
        n_findable += k->identity != 0 && find(b, k->parent, k->tokens) == id;
    }
    assert(n_unused == n_free && n_findable == n_published);
}
