/* json_members.c - see json_members.h. */
#include "engine/model/json_members.h"
#include "base/mem.h"

#include <jansson.h>
#include <string.h>

enum { MAX_VALUE_DEPTH = 3 };

void json_members_init(struct json_members *m, struct json_slice object) {
    *m = (struct json_members){.left = object};
}

static int malformed(struct json_members *m, const char *why) {
    m->error = why;
    return -1;
}

static void skip_space(struct json_slice *s) {
    while (s->n > 0 && (*s->data == ' ' || *s->data == '\t' || *s->data == '\n' || *s->data == '\r')) {
        s->data++;
        s->n--;
    }
}

static bool take_char(struct json_slice *s, char c) {
    if (s->n == 0 || *s->data != c) return false;
    s->data++;
    s->n--;
    return true;
}

/* Bytes of the string that begins s, both quotes included; 0 = it does not end. */
static size_t string_length(struct json_slice s) {
    for (size_t i = 1; i < s.n; i++) {
        if (s.data[i] == '"') return i + 1;
        if (s.data[i] == '\\') i++;
    }
    return 0;
}

/* Bytes of the object or array that begins s; 0 = it does not end, or is too deep. */
static size_t nested_length(struct json_slice s) {
    int depth = 0;
    for (size_t i = 0; i < s.n; i++) {
        char c = s.data[i];
        if (c == '"') {
            size_t n = string_length((struct json_slice){s.data + i, s.n - i});
            if (n == 0) return 0;
            i += n - 1;
        } else if (c == '{' || c == '[') {
            if (++depth > MAX_VALUE_DEPTH) return 0;
        } else if ((c == '}' || c == ']') && --depth == 0) return i + 1;
    }
    return 0;
}

static size_t value_length(struct json_slice s) {
    if (s.n == 0) return 0;
    if (*s.data == '"') return string_length(s);
    if (*s.data == '{' || *s.data == '[') return nested_length(s);
    size_t n = 0;
    while (n < s.n && !memchr(",}] \t\r\n", s.data[n], 7)) n++;
    return n;
}

static struct json_slice take(struct json_slice *s, size_t n) {
    struct json_slice head = {s->data, n};
    s->data += n;
    s->n -= n;
    return head;
}

static int end_of_object(struct json_members *m) {
    skip_space(&m->left);
    return m->left.n == 0 ? 0 : malformed(m, "something follows the JSON object");
}

int json_members_next(struct json_members *m, struct json_slice *key, struct json_slice *value) {
    struct json_slice *left = &m->left;
    skip_space(left);
    if (!m->begun && !take_char(left, '{')) return malformed(m, "not a JSON object");
    skip_space(left);
    if (take_char(left, '}')) return end_of_object(m);
    if (m->begun && !take_char(left, ',')) return malformed(m, "no comma or brace after a value");
    m->begun = true;
    skip_space(left);
    size_t n = left->n > 0 && *left->data == '"' ? string_length(*left) : 0;
    if (n == 0) return malformed(m, "no key where one is due");
    *key = take(left, n);
    skip_space(left);
    if (!take_char(left, ':')) return malformed(m, "no colon after a key");
    skip_space(left);
    n = value_length(*left);
    if (n == 0) return malformed(m, "a value is missing, does not end or is nested too deeply");
    *value = take(left, n);
    return 1;
}

char *json_slice_string(struct json_slice s, size_t max) {
    if (s.n > 6 * max + 2) return NULL; /* \u0000 is the longest way to write a byte */
    json_t *v = json_loadb(s.data, s.n, JSON_DECODE_ANY, NULL);
    char *text = json_is_string(v) && json_string_length(v) <= max ? mem_strdup(json_string_value(v)) : NULL;
    json_decref(v);
    return text;
}
