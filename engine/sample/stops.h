/* stops.h - where a text that grows meets its first stop string.
 *
 * "First" is the one that is complete first when the text is read byte by byte,
 * so the answer does not depend on how tokens cut the text; of two that are
 * complete at the same byte, the longer. */
#ifndef BATCHD_ENGINE_SAMPLE_STOPS_H
#define BATCHD_ENGINE_SAMPLE_STOPS_H

#include <stddef.h>

/* The offset at which the text ends: the begin of the first stop string whose last
 * byte is at or after `from`; SIZE_MAX where there is none. text[0, from) was
 * searched before (or is not to be searched). Empty stop strings never match. */
size_t stops_find(const char *text, size_t n, size_t from, char *const *stop, size_t n_stop);

#endif
