/* vocab.c - the tokens of a vocabulary, by id and by their bytes. */
#include "base/hash.h"
#include "base/mem.h"
#include "base/utf8.h"
#include "engine/text/tokenizer_private.h"

#include <stdlib.h>
#include <string.h>

void vocab_room(struct vocab *v, int32_t id) {
    size_t need = (size_t)id + 1;
    if (need <= v->n_ids) return;
    if (need > v->cap) {
        size_t cap = v->cap ? v->cap : 1024;
        while (cap < need) cap *= 2;
        v->pieces = mem_realloc(v->pieces, cap, sizeof *v->pieces);
        memset(v->pieces + v->cap, 0, (cap - v->cap) * sizeof *v->pieces);
        for (size_t i = v->cap; i < cap; i++) v->pieces[i].byte = -1;
        v->cap = cap;
    }
    v->n_ids = need;
}

void vocab_clear(struct vocab *v) {
    for (size_t i = 0; i < v->n_ids; i++) {
        free(v->pieces[i].bytes);
        free(v->pieces[i].text);
    }
    free(v->pieces);
    free(v->by_bytes);
}

int32_t vocab_find(const struct vocab *v, const char *bytes, size_t n) {
    size_t mask = v->table_size - 1;
    for (size_t i = hash64(bytes, n, 0) & mask; v->by_bytes[i] >= 0; i = (i + 1) & mask) {
        const struct piece *p = &v->pieces[v->by_bytes[i]];
        if (p->n == n && memcmp(p->bytes, bytes, n) == 0) return v->by_bytes[i];
    }
    return -1;
}

static bool same_bytes(const struct piece *a, const struct piece *b) {
    return a->n == b->n && memcmp(a->bytes, b->bytes, a->n) == 0;
}

void vocab_index(struct vocab *v) {
    v->table_size = 16;
    while (v->table_size < v->n_ids * 2) v->table_size *= 2;
    v->by_bytes = mem_alloc(v->table_size * sizeof *v->by_bytes);
    memset(v->by_bytes, 0xff, v->table_size * sizeof *v->by_bytes);
    size_t mask = v->table_size - 1;
    for (size_t id = 0; id < v->n_ids; id++) {
        const struct piece *p = &v->pieces[id];
        if (!p->bytes || p->foreign) continue;
        size_t i = hash64(p->bytes, p->n, 0) & mask;
        while (v->by_bytes[i] >= 0 && !same_bytes(&v->pieces[v->by_bytes[i]], p)) i = (i + 1) & mask;
        v->by_bytes[i] = (int32_t)id; /* of two equal pieces the later one holds */
    }
    for (int c = 0; c < 256; c++) v->byte_token[c] = -1;
    for (size_t id = 0; id < v->n_ids; id++)
        if (v->pieces[id].byte >= 0 && !v->byte_level) v->byte_token[v->pieces[id].byte] = (int32_t)id;
    for (int c = 0; c < 256 && v->byte_level; c++) {
        char one = (char)c;
        v->byte_token[c] = vocab_find(v, &one, 1);
    }
}

/* ---------------------------------------------------------------- bytes as letters */

/* Bytes that are printable in Latin-1 stand for themselves, the others are U+0100 and
 * up, in order. */
static bool byte_is_itself(int c) {
    return (c >= '!' && c <= '~') || (c >= 0xa1 && c <= 0xac) || (c >= 0xae && c <= 0xff);
}

static int32_t letter_of(int byte) {
    if (byte_is_itself(byte)) return byte;
    if (byte <= ' ') return 0x100 + byte;
    return byte == 0xad ? 0x143 : 0x121 + (byte - 0x7f);
}

static int byte_of_letter(int32_t cp) { /* -1 = no letter of the alphabet */
    if (cp >= 0 && cp < 0x100) return byte_is_itself((int)cp) ? (int)cp : -1;
    if (cp >= 0x100 && cp <= 0x120) return (int)cp - 0x100;
    if (cp >= 0x121 && cp <= 0x142) return (int)cp - 0x121 + 0x7f;
    return cp == 0x143 ? 0xad : -1;
}

size_t byte_letter(unsigned char byte, char out[2]) {
    int32_t cp = letter_of(byte);
    if (cp < 0x80) {
        out[0] = (char)cp;
        return 1;
    }
    out[0] = (char)(0xc0 | cp >> 6);
    out[1] = (char)(0x80 | (cp & 0x3f));
    return 2;
}

char *bytes_of_letters(const char *piece, size_t n, uint32_t *out_n, bool *foreign) {
    char *bytes = mem_alloc(n + 1);
    size_t m = 0, len;
    *foreign = false;
    for (size_t i = 0; i < n; i += len) {
        int byte = byte_of_letter(utf8_decode(piece + i, n - i, &len));
        if (byte < 0) {
            *foreign = true;
            memcpy(bytes, piece, n);
            m = n;
            break;
        }
        bytes[m++] = (char)byte;
    }
    bytes[m] = '\0';
    *out_n = (uint32_t)m;
    return bytes;
}
