/* utf8.h - the few questions about UTF-8 that more than one folder asks. */
#ifndef BATCHD_BASE_UTF8_H
#define BATCHD_BASE_UTF8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Bytes from the start that are valid UTF-8 (no overlong forms, no surrogates,
 * nothing above U+10FFFF); n when all are. */
size_t utf8_valid_prefix(const char *s, size_t n);

/* The code point at s and its length 1..4; -1 and length 1 where s is not valid. n > 0. */
int32_t utf8_decode(const char *s, size_t n, size_t *len);

/* 1..4 bytes into out; cp must be a Unicode scalar value. */
size_t utf8_encode(int32_t cp, char out[4]);

/* The text with U+FFFD in place of what is not valid; the caller's to free. */
char *utf8_repaired(const char *text);

/* End the text where it is no longer valid: a limit has cut it within a character. */
void utf8_trim(char *text);

/* Could these n bytes, not valid as they are, be the beginning of one valid character? */
bool utf8_is_incomplete(const char *s, size_t n);

/* Length of the ill-formed part at s, where no valid character begins: what a decoder
 * replaces by one U+FFFD (Unicode 3.9, "maximal subpart"). At least 1. n > 0. */
size_t utf8_ill_formed(const char *s, size_t n);

#endif
