/* unigram.c - the segmentation of a word whose pieces are likeliest together.
 *
 * Viterbi over byte positions: the best way to each position is the best way to an
 * earlier one and a piece between the two. Pieces that begin at a position are found
 * by walking a trie, whose edges lie in one hash table. A character that no piece
 * covers alone counts as unknown, ten below the worst piece. Sums are made and
 * compared in double, left to right, first come first kept, as in the library whose
 * ids these must be. */
#include "base/hash.h"
#include "base/mem.h"
#include "base/utf8.h"
#include "engine/text/tokenizer_private.h"

#include <stdlib.h>
#include <string.h>

struct trie_edge { /* child 0 = empty place */
    int32_t node;
    int32_t child;
    unsigned char byte;
};

static const double UNK_PENALTY = 10.0;

/* ---------------------------------------------------------------- trie */

static size_t edge_place(const struct unigram *u, int32_t node, unsigned char byte) {
    size_t mask = u->edges_size - 1, i = hash64_mix((uint64_t)node, byte) & mask;
    while (u->edges[i].child && (u->edges[i].node != node || u->edges[i].byte != byte)) i = (i + 1) & mask;
    return i;
}

static void grow_edges(struct unigram *u) {
    struct trie_edge *old = u->edges;
    size_t old_size = u->edges_size;
    u->edges_size = old_size ? old_size * 2 : 1024;
    u->edges = mem_zalloc(u->edges_size, sizeof *u->edges);
    for (size_t i = 0; i < old_size; i++)
        if (old[i].child) u->edges[edge_place(u, old[i].node, old[i].byte)] = old[i];
    free(old);
}

static int32_t trie_node(struct unigram *u) {
    if (u->n_nodes == u->nodes_cap) {
        u->nodes_cap = u->nodes_cap ? u->nodes_cap * 2 : 1024;
        u->ids = mem_realloc(u->ids, u->nodes_cap, sizeof *u->ids);
    }
    u->ids[u->n_nodes] = -1;
    return (int32_t)u->n_nodes++;
}

static void trie_insert(struct unigram *u, const struct piece *p, int32_t id) {
    int32_t node = 0;
    for (uint32_t k = 0; k < p->n; k++) {
        if (u->n_edges * 2 >= u->edges_size) grow_edges(u);
        struct trie_edge *e = &u->edges[edge_place(u, node, (unsigned char)p->bytes[k])];
        if (!e->child) {
            *e = (struct trie_edge){node, trie_node(u), (unsigned char)p->bytes[k]};
            u->n_edges++;
        }
        node = e->child;
    }
    u->ids[node] = id; /* of two equal pieces the later one holds */
}

int unigram_index(struct unigram *u, const struct vocab *v, struct err *err) {
    double worst = 0;
    size_t bytes = 0;
    grow_edges(u);
    trie_node(u);
    for (size_t id = 0; id < u->n_scores; id++) {
        if (id == 0 || u->scores[id] < worst) worst = u->scores[id];
        bytes += v->pieces[id].n;
        if (bytes > MAX_TRIE) return err_set(err, E_RANGE, "tokenizer.json: the pieces have more than %d bytes", MAX_TRIE);
        trie_insert(u, &v->pieces[id], (int32_t)id);
    }
    u->unk_score = worst - UNK_PENALTY;
    return 0;
}

void unigram_clear(struct unigram *u) {
    free(u->scores);
    free(u->edges);
    free(u->ids);
}

/* ---------------------------------------------------------------- a word */

struct way { /* the best one to a position */
    double score;
    int32_t begin; /* of its last piece, -1 = none yet */
    int32_t id;
};

static void offer(struct way *to, double score, size_t begin, int32_t id) {
    if (to->begin >= 0 && !(score > to->score)) return;
    *to = (struct way){score, (int32_t)begin, id};
}

static void find_ways(const struct unigram *u, const struct vocab *v, struct way *ways, const char *word, size_t n) {
    for (size_t at = 0, len; at < n; at += len) {
        bool covered = false;
        utf8_decode(word + at, n - at, &len);
        int32_t node = 0;
        for (size_t end = at; end < n;) {
            node = u->edges[edge_place(u, node, (unsigned char)word[end])].child;
            if (!node) break;
            end++;
            if (u->ids[node] < 0) continue;
            offer(&ways[end], u->scores[u->ids[node]] + ways[at].score, at, u->ids[node]);
            covered = covered || end - at == len;
        }
        if (!covered) offer(&ways[at + len], u->unk_score + ways[at].score, at, v->unk_id);
    }
}

/* Text that became `id`, as tokens: an unknown part may be a piece after all, once it is
 * put together, or is spelled in bytes. */
static void push_part(const struct vocab *v, struct token_list *out, const char *text, size_t n, int32_t id) {
    if (id != v->unk_id) {
        token_list_push(out, id);
        return;
    }
    int32_t whole = vocab_find(v, text, n);
    bool spelled = whole < 0 && v->byte_fallback;
    for (size_t i = 0; spelled && i < n; i++) spelled = v->byte_token[(unsigned char)text[i]] >= 0;
    if (!spelled) token_list_push(out, whole >= 0 ? whole : id);
    for (size_t i = 0; spelled && i < n; i++) token_list_push(out, v->byte_token[(unsigned char)text[i]]);
}

void unigram_encode(const struct unigram *u, const struct vocab *v, struct token_list *out, const char *word, size_t n) {
    if (n == 0) return;
    struct way *ways = mem_alloc((n + 1) * sizeof *ways);
    for (size_t i = 0; i <= n; i++) ways[i] = (struct way){0, -1, -1};
    find_ways(u, v, ways, word, n);
    size_t n_parts = 0;
    for (size_t end = n; end > 0; n_parts++) { /* turn the way round: each part's end at its begin */
        size_t begin = (size_t)ways[end].begin;
        ways[begin].score = (double)end;
        end = begin;
    }
    for (size_t at = 0, end; n_parts > 0; at = end, n_parts--) {
        end = (size_t)ways[at].score;
        int32_t id = ways[end].id;
        while (id == v->unk_id && v->fuse_unk && n_parts > 1 && ways[(size_t)ways[end].score].id == id) {
            end = (size_t)ways[end].score;
            n_parts--;
        }
        push_part(v, out, word + at, end - at, id);
    }
    free(ways);
}
