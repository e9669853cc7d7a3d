/* hash.c - see hash.h. The 64-bit hash folds 8-byte words through a 64x64->128
 * bit multiplication, whose two halves are xored together. */
#include "base/hash.h"
#include "base/mem.h"

#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

uint64_t hash64_mix(uint64_t a, uint64_t b) {
    unsigned __int128 m = (unsigned __int128)(a ^ 0x9e3779b97f4a7c15u) * (b ^ 0xd6e8feb86659fd93u);
    uint64_t h = (uint64_t)m ^ (uint64_t)(m >> 64);
    h ^= h >> 29;
    h *= 0xbf58476d1ce4e5b9u;
    return h ^ h >> 32;
}

uint64_t hash64(const void *data, size_t n, uint64_t seed) {
    const unsigned char *p = data;
    uint64_t h = hash64_mix(seed, n);
    for (; n >= 8; p += 8, n -= 8) {
        uint64_t w;
        memcpy(&w, p, 8);
        h = hash64_mix(h, w);
    }
    uint64_t tail = 0;
    if (n) memcpy(&tail, p, n);
    return hash64_mix(h, tail);
}

struct sha256 {
    EVP_MD_CTX *ctx;
};

/* Nothing of it depends on data: it fails where memory is short, or where libcrypto is not whole. */
static void or_die(int ok) {
    if (ok == 1) return;
    fprintf(stderr, "batchd: libcrypto has no SHA-256\n");
    abort();
}

struct sha256 *sha256_new(void) {
    struct sha256 *s = mem_zalloc(1, sizeof *s);
    s->ctx = EVP_MD_CTX_new();
    or_die(s->ctx && EVP_DigestInit_ex(s->ctx, EVP_sha256(), NULL));
    return s;
}

void sha256_add(struct sha256 *s, const void *data, size_t n) {
    or_die(EVP_DigestUpdate(s->ctx, data, n));
}

void sha256_add_text(struct sha256 *s, const char *text) {
    uint64_t n = text ? strlen(text) : UINT64_MAX;
    sha256_add(s, &n, sizeof n);
    if (text) sha256_add(s, text, (size_t)n);
}

void sha256_finish(struct sha256 *s, char hex[SHA256_HEX]) {
    unsigned char digest[(SHA256_HEX - 1) / 2];
    or_die(EVP_DigestFinal_ex(s->ctx, digest, NULL));
    EVP_MD_CTX_free(s->ctx);
    for (size_t i = 0; i < sizeof digest; i++) {
        hex[2 * i] = "0123456789abcdef"[digest[i] >> 4];
        hex[2 * i + 1] = "0123456789abcdef"[digest[i] & 15];
    }
    hex[2 * sizeof digest] = '\0';
    free(s);
}
