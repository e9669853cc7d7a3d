/* added.c - added tokens: strings that are tokens of their own wherever they stand.
 * A trie finds the leftmost match and, there, the longest. */
#include "base/mem.h"
#include "base/utf8.h"
#include "engine/text/tokenizer_private.h"

#include <string.h>
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

void added_insert(struct added_tokens *a, int32_t token, const char *form, size_t n) {
    if (a->n_nodes == 0) new_node(a, 0);
    int32_t node = 0;
    if (n == 0) return;
    for (size_t i = 0; i < n; i++) {
        unsigned char byte = (unsigned char)form[i];
        int32_t c = node ? child_of(a, node, byte) : a->first[byte];
        if (!c) {
            c = new_node(a, byte);
            a->nodes[c].next_sibling = a->nodes[node].first_child;
            a->nodes[node].first_child = c;
            if (node == 0) {
                a->first[byte] = c;
                a->only = byte;
                a->n_first++;
            }
        }
        node = c;
    }
    if (a->nodes[node].token < 0) a->nodes[node].token = token;
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

/* \w of the library whose ids these must be: Alphabetic, marks, decimal digits,
 * connectors and joiners. */
static bool is_word(int32_t cp) {
    switch (utf8proc_category(cp)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC: return true;
    default: break;
    }
    return cp == 0x200c || cp == 0x200d || (cp >= 0x24b6 && cp <= 0x24e9) || (cp >= 0x1f130 && cp <= 0x1f149) ||
           (cp >= 0x1f150 && cp <= 0x1f169) || (cp >= 0x1f170 && cp <= 0x1f189);
}

static size_t char_before(const char *text, size_t at) {
    size_t i = at - 1;
    while (i > 0 && ((unsigned char)text[i] & 0xc0) == 0x80) i--;
    return i;
}

static bool stands_alone(const char *text, size_t n, size_t begin, size_t end) {
    size_t len;
    if (begin > 0 && is_word(utf8_decode(text + char_before(text, begin), 4, &len))) return false;
    return end == n || !is_word(utf8_decode(text + end, n - end, &len));
}

static void take_spaces_before(const char *text, size_t n, size_t from, struct added_match *m) {
    size_t len;
    while (m->begin > from) {
        size_t i = char_before(text, m->begin);
        if (i < from || !char_is_space(utf8_decode(text + i, n - i, &len))) return;
        m->begin = i;
    }
}

/* A token that is white space itself matches again within what it took: the end of a run is
 * looked for once. */
static void take_spaces_behind(const char *text, size_t n, struct added_search *s, struct added_match *m) {
    size_t len, end = m->end;
    if (end >= s->space_from && end < s->space_end) {
        m->end = s->space_end;
        return;
    }
    while (end < n && char_is_space(utf8_decode(text + end, n - end, &len))) end += len;
    s->space_from = m->end;
    s->space_end = m->end = end;
}

/* The longest token that begins at text[at]; -1 = none. */
static int32_t longest_at(const struct added_tokens *a, const char *text, size_t n, size_t at, size_t *end) {
    int32_t node = a->first[(unsigned char)text[at]], best = -1;
    for (size_t i = at + 1; node; i++) {
        if (a->nodes[node].token >= 0) {
            best = a->nodes[node].token;
            *end = i;
        }
        node = i < n ? child_of(a, node, (unsigned char)text[i]) : 0;
    }
    return best;
}

/* Where a token may begin, at or behind `at`; n = nowhere. */
static size_t next_candidate(const struct added_tokens *a, const char *text, size_t n, size_t at) {
    if (at >= n || a->n_first == 0) return n;
    if (a->n_first == 1) {
        const char *hit = memchr(text + at, a->only, n - at);
        return hit ? (size_t)(hit - text) : n;
    }
    while (at < n && !a->first[(unsigned char)text[at]]) at++;
    return at;
}

/* A match that is not allowed is passed over as a whole; but one that only reaches into
 * plain text must not hide a control token behind its first character. */
static size_t behind_refused(const struct encode_options *o, size_t begin, size_t end) {
    return o->parse_special && o->n_plain > 0 && is_in_plain(o, begin, end) ? begin + 1 : end;
}

bool added_next(const struct added_tokens *a, const char *text, size_t n, struct added_search *s,
                const struct encode_options *options, struct added_match *out) {
    size_t at = s->from, end = 0;
    while ((at = next_candidate(a, text, n, at)) < n) {
        int32_t token = longest_at(a, text, n, at, &end);
        if (token < 0) {
            at++;
            continue;
        }
        const struct added_token *t = &a->tokens[token];
        bool refused = t->special && (!options->parse_special || is_in_plain(options, at, end));
        if (refused || (t->single_word && !stands_alone(text, n, at, end))) {
            at = refused ? behind_refused(options, at, end) : end;
            continue;
        }
        *out = (struct added_match){at, end, t->id};
        s->from = end;
        if (t->lstrip) take_spaces_before(text, n, s->done, out);
        if (t->rstrip) take_spaces_behind(text, n, s, out);
        if (t->lstrip && out->begin < s->done) out->begin = s->done;
        s->done = out->end;
        if (out->begin < out->end) return true;
        at = end; /* nothing but white space, which the match before has taken */
    }
    return false;
}
