/* config_reader.c - see config_reader.h. */
#include "engine/model/config_reader.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

const json_t *reader_get(const struct reader *rd, const char *key) {
    const json_t *v = json_object_get(rd->object, key);
    return json_is_null(v) ? NULL : v;
}

bool reader_is_absent(const struct reader *rd, const char *key) {
    return json_object_get(rd->object, key) == NULL;
}

void reader_complain(struct reader *rd, int code, const char *key, const char *what) {
    if (rd->r < 0) return;
    char value[64] = {0};
    if (json_dumpb(json_object_get(rd->object, key), value, 60, JSON_ENCODE_ANY | JSON_COMPACT) > 60)
        memcpy(value + strlen(value), "...", 4);
    rd->r = err_set(rd->err, code, "%s%s: %s %s", rd->where, key, value, what);
}

void reader_missing(struct reader *rd, const char *key) {
    if (rd->r == 0) rd->r = err_set(rd->err, E_PARSE, "%s%s is missing", rd->where, key);
}

int64_t reader_int(struct reader *rd, const char *key, int64_t by_default, int64_t least, int64_t most) {
    const json_t *v = reader_get(rd, key);
    char range[80];
    if (!v && by_default != READER_REQUIRED) return by_default;
    snprintf(range, sizeof range, "is not in %lld .. %lld", (long long)least, (long long)most);
    if (!v) reader_missing(rd, key);
    else if (!json_is_integer(v)) reader_complain(rd, E_PARSE, key, "is not a whole number");
    else if (json_integer_value(v) < least || json_integer_value(v) > most) reader_complain(rd, E_RANGE, key, range);
    return rd->r < 0 ? least : json_integer_value(v);
}

double reader_number(struct reader *rd, const char *key, double by_default, double least, double most) {
    const json_t *v = reader_get(rd, key);
    char range[80];
    if (!v && !isnan(by_default)) return by_default;
    snprintf(range, sizeof range, "is not in %g .. %g", least, most);
    if (!v) reader_missing(rd, key);
    else if (!json_is_number(v)) reader_complain(rd, E_PARSE, key, "is not a number");
    else if (!(json_number_value(v) >= least && json_number_value(v) <= most)) reader_complain(rd, E_RANGE, key, range);
    return rd->r < 0 ? least : json_number_value(v);
}

bool reader_bool(struct reader *rd, const char *key, bool by_default) {
    const json_t *v = reader_get(rd, key);
    if (!v) return by_default;
    if (!json_is_boolean(v)) reader_complain(rd, E_PARSE, key, "is not true or false");
    return json_is_true(v);
}

const char *reader_text(struct reader *rd, const char *key) {
    const json_t *v = reader_get(rd, key);
    if (v && !json_is_string(v)) reader_complain(rd, E_PARSE, key, "is not a string");
    return json_string_value(v);
}

void reader_refuse(struct reader *rd, const char *key, const char *value, const char *supported) {
    if (rd->r < 0) return;
    rd->r = err_set(rd->err, E_UNSUPPORTED, "%s%s \"%.80s\" is not supported (%s)", rd->where, key, value, supported);
}
