/* blocks.h - who may write where in the KV cache.
 *
 * The cache is cut into equal blocks of KV_BLOCK token positions. A sequence
 * reaches its positions through its block table: position i lives in block
 * ids[i / KV_BLOCK], at place i % KV_BLOCK.
 *
 * Full blocks whose tokens are settled may be published; a later sequence that
 * begins with the same tokens then shares them. What a block holds is named by its
 * identity, a number given once: two blocks have the same identity only if their
 * tokens and the identities of the blocks before them are equal, compared and not
 * only hashed, so that no collision can hand out a foreign prefix.
 *
 * Invariants: a block is on the free list if and only if refs == 0; it can be found
 * if and only if its identity is not 0, used or free. A free block stays findable
 * until it is taken for new content, least recently used first. A published block
 * is never written again. blocks_check() verifies what can be verified.
 *
 * Every operation is O(1) per block touched; nothing is allocated after blocks_new.
 * Belongs to the engine thread; no locking. */
#ifndef BATCHD_ENGINE_SCHEDULE_BLOCKS_H
#define BATCHD_ENGINE_SCHEDULE_BLOCKS_H

#include "kernels/ops.h"

#include <stdint.h>

struct blocks;

struct block_table {       /* a sequence's view; ids == NULL: it has none */
    int32_t *ids;          /* [cap] block ids in token order; borrowed: the slot's row of the step's table */
    int32_t n, cap;        /* blocks in use, room */
    int32_t n_published;   /* of those, counted from the front: findable, or a twin of one that is */
    uint64_t identity;     /* of block n_published - 1; 0 = none */
};

/* Blocks that n_tokens positions take. */
static inline int32_t blocks_for(int32_t n_tokens) {
    return (n_tokens + KV_BLOCK - 1) / KV_BLOCK;
}

struct blocks *blocks_new(int32_t n_blocks);
void blocks_free(struct blocks *b); /* NULL is fine */

int32_t blocks_n_free(const struct blocks *b);

/* Fill an empty table with the published blocks that hold the beginning of
 * tokens[0, n_tokens); the number of tokens found, a multiple of KV_BLOCK. The last
 * token is never found: its row must be computed, for its logits are needed. */
int32_t blocks_match(struct blocks *b, struct block_table *table, const int32_t *tokens, int32_t n_tokens);

/* Make room in `table` for n_tokens positions in total. All or nothing: E_FULL
 * changes neither the pool nor the table, so the caller may preempt a sequence and
 * try again. The table must have room for that many ids (assert). */
int blocks_reserve(struct blocks *b, struct block_table *table, int32_t n_tokens);

/* tokens[0, n_settled) are known for good, and their keys and values will be written
 * before a row that is handed out after this call reads them: publish the blocks that
 * they fill. */
void blocks_publish(struct blocks *b, struct block_table *table, const int32_t *tokens, int32_t n_settled);

/* Drop this table's hold on its blocks, last block first, so that the tail of a
 * shared prefix is reused before its head. The table is empty afterwards. */
void blocks_release(struct blocks *b, struct block_table *table);

/* Assert the invariants; for tests. */
void blocks_check(const struct blocks *b);

#endif
