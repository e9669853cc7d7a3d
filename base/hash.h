/* hash.h - fingerprints.
 *
 * hash64 is for hash tables, seeds and block chains: fast, well mixed, the same
 * on every machine, no defence against an adversary. sha256 (libcrypto) names the
 * content of files, jobs and families. */
#ifndef BATCHD_BASE_HASH_H
#define BATCHD_BASE_HASH_H

#include <stddef.h>
#include <stdint.h>

uint64_t hash64(const void *data, size_t n, uint64_t seed);
uint64_t hash64_mix(uint64_t a, uint64_t b); /* two numbers into one */

enum { SHA256_HEX = 65 }; /* 64 digits and a terminator */

struct sha256;
struct sha256 *sha256_new(void);
void sha256_add(struct sha256 *s, const void *data, size_t n);
void sha256_finish(struct sha256 *s, char hex[SHA256_HEX]); /* frees s */

/* Adds the length first, so that ("ab","c") and ("a","bc") differ. NULL differs from "". */
void sha256_add_text(struct sha256 *s, const char *text);

#endif
