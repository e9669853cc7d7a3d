/* config_reader.h - typed, range-checked reading of a JSON object's keys.
 *
 * The first error stops all later reads, so that a reader of many keys checks once, at
 * the end. Messages name file, key and value: "config.json: hidden_size: 0 is not in ...". */
#ifndef BATCHD_ENGINE_MODEL_CONFIG_READER_H
#define BATCHD_ENGINE_MODEL_CONFIG_READER_H

#include "base/err.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

struct reader {
    const json_t *object;
    const char *where; /* what messages put before a key: "config.json: " */
    struct err *err;
    int r;             /* 0, or the first error */
};

#define READER_REQUIRED INT64_MIN /* a default that says: the key must be there */

/* NULL where the key is absent or null. */
const json_t *reader_get(const struct reader *rd, const char *key);
bool reader_is_absent(const struct reader *rd, const char *key); /* a null is there */

int64_t reader_int(struct reader *rd, const char *key, int64_t by_default, int64_t least, int64_t most);
/* by_default NaN: the key must be there. */
double reader_number(struct reader *rd, const char *key, double by_default, double least, double most);
bool reader_bool(struct reader *rd, const char *key, bool by_default);
/* NULL where there is none; borrowed from the object. */
const char *reader_text(struct reader *rd, const char *key);

/* "key: value what", with the value as the file has it, cut where it is long. */
void reader_complain(struct reader *rd, int code, const char *key, const char *what);
/* E_UNSUPPORTED: key "value" is not supported (supported). */
void reader_refuse(struct reader *rd, const char *key, const char *value, const char *supported);
void reader_missing(struct reader *rd, const char *key);

#endif
