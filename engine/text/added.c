/* added.c - added tokens: strings that are tokens of their own wherever they stand.
 * A trie finds the leftmost match and, there, the longest. */
#include "base/mem.h"
#include "base/utf8.h"
#include "engine/text/tokenizer_private.h"

#include <utf8proc.h>

static int32_t new_node(struct added_tokens *a, unsigned char byte) {
    if (a->n_nodes == a->cap) {
        a->cap = a->cap ? a->cap * 2 : 256;
        a->nodes = mem_realloc(a->nodes, a->cap, sizeof *a->nodes);
    }
    a->nodes[a->n_nodes] = (struct trie_node){0, 0, -1, byte};
    return (int32_t)a->n_nodes++;
}

static int32_t child_of(const struct added_tokens *a, int32_t node, unsigned char byte) {
    int32_t c = a->nodes[node].first_child;
    while (c && a->nodes[c].byte != byte) c = a->nodes[c].next_sibling;
    return c;
}

void added_insert(struct added_tokens *a, int32_t token) {
    const struct added_token *t = &a->tokens[token];
    if (a->n_nodes == 0) new_node(a, 0);
    int32_t node = 0;
    for (size_t i = 0; i < t->n; i++) {
        unsigned char byte = (unsigned char)t->content[i];
        int32_t c = child_of(a, node, byte);
        if (!c) {
            c = new_node(a, byte);
            a->nodes[c].next_sibling = a->nodes[node].first_child;
            a->nodes[node].first_child = c;
        }
        node = c;
    }
    a->nodes[node].token = token;
}

static bool is_in_plain(const struct encode_options *o, size_t begin, size_t end) {
    size_t low = 0, high = o->n_plain;
    while (low < high) { /* the first span that ends behind `begin` */
        size_t mid = (low + high) / 2;
        if (o->plain[mid].end <= begin) low = mid + 1;
        else high = mid;
    }
    return low < o->n_plain && o->plain[low].begin < end;
}

static bool is_word(int32_t cp) {
    if (cp == '_') return true;
    utf8proc_category_t c = utf8proc_category(cp);
    return (c >= UTF8PROC_CATEGORY_LU && c <= UTF8PROC_CATEGORY_NO);
}

static size_t char_before(const char *text, size_t at) {
    size_t i = at - 1;
    while (i > 0 && ((unsigned char)text[i] & 0xc0) == 0x80) i--;
    return i;
}

static bool stands_alone(const char *text, size_t n, size_t begin, size_t end) {
    size_t len;
    if (begin > 0 && is_word(utf8_decode(text + char_before(text, begin), n, &len))) return false;
    return end == n || !is_word(utf8_decode(text + end, n - end, &len));
}

static bool is_space(int32_t cp) {
    return cp == ' ' || (cp >= 9 && cp <= 13) || cp == 0x85 || cp == 0xa0 || cp == 0x1680 ||
           (cp >= 0x2000 && cp <= 0x200a) || cp == 0x2028 || cp == 0x2029 || cp == 0x202f || cp == 0x205f ||
           cp == 0x3000;
}

static void take_spaces(const struct added_token *t, const char *text, size_t n, size_t from, struct added_match *m) {
    size_t len;
    while (t->lstrip && m->begin > from) {
        size_t i = char_before(text, m->begin);
        if (i < from || !is_space(utf8_decode(text + i, n - i, &len))) break;
        m->begin = i;
    }
    while (t->rstrip && m->end < n && is_space(utf8_decode(text + m->end, n - m->end, &len))) m->end += len;
}

/* The longest token at text[at] that may be taken there; -1 = none. */
static int32_t longest_at(const struct added_tokens *a, const char *text, size_t n, size_t at,
                          const struct encode_options *o) {
    int32_t node = 0, best = -1;
    for (size_t i = at; i < n; i++) {
        node = child_of(a, node, (unsigned char)text[i]);
        if (!node) break;
        int32_t token = a->nodes[node].token;
        if (token < 0) continue;
        const struct added_token *t = &a->tokens[token];
        if (t->special && (!o->parse_special || is_in_plain(o, at, i + 1))) continue;
        if (t->single_word && !stands_alone(text, n, at, i + 1)) continue;
        best = token;
    }
    return best;
}

bool added_next(const struct added_tokens *a, const char *text, size_t n, size_t from,
                const struct encode_options *options, struct added_match *out) {
    if (a->n_nodes == 0) return false;
    for (size_t i = from; i < n; i++) {
        int32_t token = longest_at(a, text, n, i, options);
        if (token < 0) continue;
        const struct added_token *t = &a->tokens[token];
        *out = (struct added_match){i, i + t->n, t->id};
        take_spaces(t, text, n, from, out);
        return true;
    }
    return false;
}
