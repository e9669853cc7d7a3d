/* test_blocks.c - KV blocks: counts, sharing, order of reuse, and a long random run
 * against a model of the cache's content. */
#include "tests/unit.h"

#include "base/hash.h"
#include "engine/schedule/blocks.h"

enum { MAX_BLOCKS = 16 };

struct holder { /* a table with its ids */
    int32_t ids[MAX_BLOCKS];
    struct block_table table;
};

static struct block_table *table_of(struct holder *h) {
    memset(h, 0, sizeof *h);
    h->table = (struct block_table){.ids = h->ids, .cap = MAX_BLOCKS};
    return &h->table;
}

static void fill(int32_t *tokens, int32_t n, int32_t first) {
    for (int32_t i = 0; i < n; i++) tokens[i] = first + i;
}

static void reserve_is_all_or_nothing(void **state) {
    struct blocks *b = blocks_new(4);
    struct holder h;
    struct block_table *t = table_of(&h);
    assert_int_equal(blocks_reserve(b, t, 5 * KV_BLOCK), E_FULL);
    assert_int_equal(blocks_n_free(b), 4);
    assert_int_equal(t->n, 0);
    assert_int_equal(blocks_reserve(b, t, 2 * KV_BLOCK + 1), 0);
    assert_int_equal(t->n, 3);
    assert_int_equal(blocks_reserve(b, t, 3 * KV_BLOCK), 0); /* fits what is there */
    assert_int_equal(blocks_n_free(b), 1);
    assert_int_equal(blocks_reserve(b, t, 5 * KV_BLOCK), E_FULL);
    assert_int_equal(t->n, 3);
    blocks_release(b, t);
    assert_int_equal(blocks_n_free(b), 4);
    blocks_check(b);
    blocks_free(b);
}

static void a_published_prefix_is_shared(void **state) {
    struct blocks *b = blocks_new(8);
    int32_t tokens[4 * KV_BLOCK];
    fill(tokens, 4 * KV_BLOCK, 100);
    struct holder h1, h2;
    struct block_table *t1 = table_of(&h1), *t2 = table_of(&h2);
    assert_int_equal(blocks_reserve(b, t1, 3 * KV_BLOCK), 0);
    blocks_publish(b, t1, tokens, 3 * KV_BLOCK - 1); /* two full blocks and a begun one */
    assert_int_equal(t1->n_published, 2);
    assert_int_equal(blocks_match(b, t2, tokens, 4 * KV_BLOCK), 2 * KV_BLOCK);
    assert_memory_equal(h1.ids, h2.ids, 2 * sizeof *h1.ids);
    blocks_check(b);
    blocks_release(b, t1);
    assert_int_equal(blocks_n_free(b), 6); /* the two shared ones are still held */
    blocks_release(b, t2);
    assert_int_equal(blocks_n_free(b), 8);
    blocks_check(b);
    blocks_free(b);
}

static void the_last_token_is_never_found(void **state) {
    struct blocks *b = blocks_new(8);
    int32_t tokens[2 * KV_BLOCK];
    fill(tokens, 2 * KV_BLOCK, 7);
    struct holder h1, h2;
    struct block_table *t1 = table_of(&h1);
    assert_int_equal(blocks_reserve(b, t1, 2 * KV_BLOCK), 0);
    blocks_publish(b, t1, tokens, 2 * KV_BLOCK);
    static const struct {
        int32_t n, found;
    } want[] = {{2 * KV_BLOCK, KV_BLOCK}, {KV_BLOCK + 1, KV_BLOCK}, {KV_BLOCK, 0}, {1, 0}, {0, 0}};
    for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
        struct block_table *t2 = table_of(&h2);
        assert_int_equal(blocks_match(b, t2, tokens, want[i].n), want[i].found);
        blocks_release(b, t2);
    }
    blocks_release(b, t1);
    blocks_free(b);
}

static void a_different_beginning_is_not_shared(void **state) {
    struct blocks *b = blocks_new(8);
    int32_t x[2 * KV_BLOCK + 1], y[2 * KV_BLOCK + 1];
    fill(x, 2 * KV_BLOCK + 1, 0);
    fill(y, 2 * KV_BLOCK + 1, 0);
    y[0] = 99; /* the second block has the same tokens, behind another first one */
    struct holder h1, h2;
    struct block_table *t1 = table_of(&h1), *t2 = table_of(&h2);
    assert_int_equal(blocks_reserve(b, t1, 2 * KV_BLOCK), 0);
    blocks_publish(b, t1, x, 2 * KV_BLOCK);
    assert_int_equal(blocks_match(b, t2, y, 2 * KV_BLOCK + 1), 0);
    blocks_release(b, t1);
    blocks_free(b);
}

static void freed_blocks_stay_findable_until_reused_tail_first(void **state) {
    struct blocks *b = blocks_new(4);
    int32_t tokens[3 * KV_BLOCK + 1];
    fill(tokens, 3 * KV_BLOCK + 1, 0);
    struct holder h1, h2, h3;
    struct block_table *t1 = table_of(&h1), *t2 = table_of(&h2), *t3 = table_of(&h3);
    assert_int_equal(blocks_reserve(b, t1, 3 * KV_BLOCK), 0);
    blocks_publish(b, t1, tokens, 3 * KV_BLOCK);
    blocks_release(b, t1);
    assert_int_equal(blocks_reserve(b, t2, 2 * KV_BLOCK), 0); /* the unused block, then the prefix's last */
    assert_int_equal(blocks_match(b, t3, tokens, 3 * KV_BLOCK + 1), 2 * KV_BLOCK);
    assert_int_equal(blocks_n_free(b), 0);
    blocks_release(b, t3);
    blocks_release(b, t2);
    blocks_check(b);
    assert_int_equal(blocks_match(b, t3, tokens, 3 * KV_BLOCK + 1), 2 * KV_BLOCK);
    blocks_release(b, t3);
    blocks_free(b);
}

static void twins_continue_one_chain(void **state) {
    struct blocks *b = blocks_new(8);
    int32_t tokens[2 * KV_BLOCK + 1];
    fill(tokens, 2 * KV_BLOCK + 1, 0);
    struct holder h1, h2, h3;
    struct block_table *t1 = table_of(&h1), *t2 = table_of(&h2), *t3 = table_of(&h3);
    assert_int_equal(blocks_reserve(b, t1, KV_BLOCK), 0);
    assert_int_equal(blocks_reserve(b, t2, 2 * KV_BLOCK), 0);
    blocks_publish(b, t1, tokens, KV_BLOCK);
    blocks_publish(b, t2, tokens, 2 * KV_BLOCK); /* its first block is a twin of t1's */
    assert_int_equal(blocks_match(b, t3, tokens, 2 * KV_BLOCK + 1), 2 * KV_BLOCK);
    assert_int_equal(h3.ids[0], h1.ids[0]);
    assert_int_equal(h3.ids[1], h2.ids[1]);
    blocks_check(b);
    blocks_release(b, t1);
    blocks_release(b, t2);
    blocks_release(b, t3);
    blocks_check(b);
    blocks_free(b);
}

/* ---------------------------------------------------------------- a long random run */

enum { POOL = 40, SEQUENCES = 12, LONGEST = MAX_BLOCKS * KV_BLOCK };

struct sequence_model {
    struct holder h;
    int32_t tokens[LONGEST];
    int32_t n, written; /* tokens, positions with content */
    bool live;
};

struct pool_model {
    struct blocks *blocks;
    uint64_t content[POOL][KV_BLOCK]; /* what a forward pass would have written: a hash of the prefix */
    struct sequence_model seq[SEQUENCES];
    uint64_t random;
    int64_t n_shared, n_full;
};

static uint32_t roll(struct pool_model *m, uint32_t n) {
    m->random = m->random * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(m->random >> 33) % n;
}

static uint64_t content_at(const struct sequence_model *s, int32_t position) {
    return hash64(s->tokens, (size_t)(position + 1) * sizeof *s->tokens, 1);
}

static uint64_t *cell(struct pool_model *m, struct sequence_model *s, int32_t position) {
    return &m->content[s->h.ids[position / KV_BLOCK]][position % KV_BLOCK];
}

/* Blocks at the same place that a sequence was promised must hold its own prefix. */
static void check_content(struct pool_model *m, struct sequence_model *s) {
    int32_t p = s->written ? (int32_t)roll(m, (uint32_t)s->written) : -1;
    if (p >= 0) assert_true(*cell(m, s, p) == content_at(s, p));
}

/* Few families of prompts, so that prefixes of all lengths recur. */
static void start(struct pool_model *m, struct sequence_model *s) {
    table_of(&s->h);
    int32_t family = (int32_t)roll(m, 3), fork = (int32_t)roll(m, LONGEST);
    s->n = 1 + (int32_t)roll(m, LONGEST / 2);
    for (int32_t i = 0; i < s->n; i++) s->tokens[i] = i < fork ? family * 1000 + i : (int32_t)roll(m, 2);
    s->live = true;
    s->written = blocks_match(m->blocks, &s->h.table, s->tokens, s->n);
    m->n_shared += s->written > 0;
    for (int32_t p = 0; p < s->written; p++) assert_true(*cell(m, s, p) == content_at(s, p));
}

/* Room for n tokens, their content, and perhaps publication. */
static void grow(struct pool_model *m, struct sequence_model *s) {
    int32_t n = s->written + 1 + (int32_t)roll(m, 40), before = s->h.table.n, n_free = blocks_n_free(m->blocks);
    if (n > LONGEST) n = LONGEST;
    for (; s->n < n; s->n++) s->tokens[s->n] = (int32_t)roll(m, 2);
    if (blocks_reserve(m->blocks, &s->h.table, n) == E_FULL) {
        assert_int_equal(s->h.table.n, before);
        assert_int_equal(blocks_n_free(m->blocks), n_free);
        m->n_full++;
        return;
    }
    for (; s->written < n; s->written++) *cell(m, s, s->written) = content_at(s, s->written);
    if (roll(m, 4)) blocks_publish(m->blocks, &s->h.table, s->tokens, n);
}

static void step(struct pool_model *m) {
    struct sequence_model *s = &m->seq[roll(m, SEQUENCES)];
    if (!s->live) start(m, s);
    else if (roll(m, 8) == 0) {
        blocks_release(m->blocks, &s->h.table);
        s->live = false;
        s->written = 0;
    } else grow(m, s);
    check_content(m, s);
}

static void random_operations_keep_every_prefix(void **state) {
    struct pool_model *m = calloc(1, sizeof *m);
    m->blocks = blocks_new(POOL);
    m->random = 20240607;
    int n = test_is_quick() ? 100000 : 1000000;
    for (int i = 0; i < n; i++) {
        step(m);
        if (i % 100 == 0) blocks_check(m->blocks);
    }
    for (int i = 0; i < SEQUENCES; i++) blocks_release(m->blocks, &m->seq[i].h.table);
    blocks_check(m->blocks);
    assert_int_equal(blocks_n_free(m->blocks), POOL);
    assert_true(m->n_shared > n / 100 && m->n_full > n / 100);
    blocks_free(m->blocks);
    free(m);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(reserve_is_all_or_nothing),
    cmocka_unit_test(a_published_prefix_is_shared),
    cmocka_unit_test(the_last_token_is_never_found),
    cmocka_unit_test(a_different_beginning_is_not_shared),
    cmocka_unit_test(freed_blocks_stay_findable_until_reused_tail_first),
    cmocka_unit_test(twins_continue_one_chain),
    cmocka_unit_test(random_operations_keep_every_prefix),
};
UNIT_MAIN(tests)
