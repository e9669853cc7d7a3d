/* json_members.h - the members of one big JSON object, one after the other,
 * without a tree of all of them in memory.
 *
 * The header of a safetensors file may be 16 MiB of foreign JSON; as a tree that
 * can be fifty times as much. So the object is only cut into members here, and
 * each member's value, which is small, is given to a real parser. The cut is
 * exact for valid JSON; what is inside a value is the parser's to judge. */
#ifndef BATCHD_ENGINE_MODEL_JSON_MEMBERS_H
#define BATCHD_ENGINE_MODEL_JSON_MEMBERS_H

#include <stdbool.h>
#include <stddef.h>

struct json_slice { /* borrowed from the text */
    const char *data;
    size_t n;
};

struct json_members {
    struct json_slice left; /* not yet read */
    bool begun;
    const char *error;      /* why the last call gave -1 */
};

void json_members_init(struct json_members *m, struct json_slice object);

/* 1: the next member, the key with its quotes. 0: the object has ended and only
 * white space follows it. -1: malformed, or a value nested deeper than three
 * levels; m->error says which. */
int json_members_next(struct json_members *m, struct json_slice *key, struct json_slice *value);

/* The text of a JSON string, the caller's to free; NULL where it is none, is not
 * UTF-8, holds NUL or is longer than `max` bytes. */
char *json_slice_string(struct json_slice s, size_t max);

#endif
