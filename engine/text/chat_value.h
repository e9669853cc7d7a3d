/* chat_value.h - what a template computes with: values like Python's, and the state
 * of one rendering.
 *
 * A string knows which of its bytes came from the row. Every operation keeps that, so
 * that only what the template itself wrote, or a role that templates know, can become
 * a control token.
 *
 * Values are small and copied; what they point to belongs to the rendering's arena, to
 * the template or to the row's JSON, and is never changed, but for namespaces,
 * iterators and the unused end of a text.
 *
 * An operation that fails says so with chat_fail and returns anything; its callers go
 * on with harmless values until in->r is looked at. */
#ifndef BATCHD_ENGINE_TEXT_CHAT_VALUE_H
#define BATCHD_ENGINE_TEXT_CHAT_VALUE_H

#include "engine/text/chat.h"

#include <jansson.h>

enum value_kind {
    VALUE_UNDEFINED, /* text: the name that was not there, or NULL */
    VALUE_MISSING,   /* an argument that was not given */
    VALUE_NONE, VALUE_BOOL, VALUE_INT, VALUE_FLOAT, VALUE_STRING,
    VALUE_LIST, VALUE_TUPLE,
    VALUE_VIEW,      /* range(), items(), keys(), values() */
    VALUE_ITERATOR,  /* what map() and its kind give: can be walked once */
    VALUE_DICT, VALUE_NAMESPACE, VALUE_LOOP,
    VALUE_MACRO, VALUE_FUNCTION,
    VALUE_METHOD,    /* function, and what it is a method of in `self` */
};

struct value {
    enum value_kind kind;
    bool plain; /* STRING: from the row; holds where owner has no marks */
    bool safe;  /* STRING: went through `safe`: + escapes what it is added to */
    union {
        int64_t number; /* BOOL, INT */
        double real;
        size_t n;       /* STRING: bytes */
    };
    union {
        const char *text;      /* STRING: UTF-8, not terminated */
        struct list *list;     /* LIST, TUPLE, VIEW, ITERATOR */
        struct dict *dict;     /* DICT, NAMESPACE */
        struct loop *loop;
        struct macro *macro;
        const struct native *native;
    };
    union {
        struct text *owner; /* STRING: what `text` points into, NULL = borrowed and of one origin */
        const struct value *self;
    };
};

struct text { /* growing bytes; a string may be any part of [0, used) */
    char *data;
    uint8_t *marks; /* 1 = from the row; NULL = `plain` holds for all */
    size_t used, cap;
    bool plain;
};

struct list {
    struct value *items;
    size_t n;
    size_t next;    /* ITERATOR: items before it are spent */
    bool is_range;  /* VIEW: range(), which has indices */
};

struct pair {
    struct value key, value;
};

struct dict { /* in order of insertion */
    struct pair *pairs;
    size_t n, cap;
};

struct loop {
    const struct node *node; /* its for */
    struct scope *scope;     /* around the for */
    const struct list *items;
    size_t index;
    int64_t depth;           /* 1, and one more in each call of a recursive one */
    struct value changed; /* MISSING before the first loop.changed() */
};

struct macro {
    const struct node *node; /* its parameters and body */
    struct scope *scope;     /* where it was defined */
};

struct binding {
    const struct chat_name *name;
    struct value value;
    struct binding *next;
};

struct scope {
    struct binding *first;
    struct scope *parent;
};

enum flow { FLOW_ON, FLOW_BREAK, FLOW_CONTINUE };

struct interp { /* one rendering */
    struct arena arena;
    const struct chat_template *template;
    struct scope *scope;
    struct text *out;   /* what is written goes here */
    struct value hole;  /* what the filter of a {% filter %} or {% set %} block takes */
    enum flow flow;
    int64_t work;       /* in 256ths of a step */
    int depth;
    int64_t now;        /* strftime_now: seconds since 1970 */
    struct err *err;
    int r;              /* 0, or the first failure */
};

/* ---------------------------------------------------------------- calls */

enum { CALL_SLOTS = 6 };

struct keyword {
    const char *name;
    struct value value;
};

struct call {
    struct value *args;
    size_t n;
    struct keyword *keywords;
    size_t n_keywords;
    struct value slot[CALL_SLOTS]; /* a native's parameters in order, MISSING where not given */
};

struct native { /* a filter, test, method or function */
    const char *name;
    const char *params; /* "old! new! count", ! = required; NULL = it reads args and keywords itself */
    struct value (*fn)(struct interp *in, const struct value *self, struct call *call);
};

const struct native *native_find(const struct native *table, size_t n, const char *name, size_t name_n);
struct value native_call(struct interp *in, const struct native *f, const struct value *self, struct call *call);

const struct native *chat_filter(const char *name, size_t n); /* NULL = there is none */
const struct native *chat_test(const char *name, size_t n);
const struct native *chat_function(const char *name, size_t n);
const struct native *chat_string_method(const char *name, size_t n);

/* The filters over lists (chat_filters_list.c). */
const struct native *chat_list_filter(const char *name, size_t n);

/* ---------------------------------------------------------------- failure and limits */

struct value chat_fail(struct interp *in, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* Count a step, and n 256ths of one: work on n bytes. False when the limit is passed. */
bool chat_charge(struct interp *in, size_t n);
bool chat_work(struct interp *in, size_t n); /* the latter alone */

/* May n more bytes be allocated? Fails otherwise. */
bool chat_room(struct interp *in, size_t n);

/* One level deeper; false, and a failure, at the limit. Every success is paired with in->depth--. */
bool chat_enter(struct interp *in);

/* ---------------------------------------------------------------- making values (chat_value.c) */

struct value value_undefined(const char *name);
struct value value_none(void);
struct value value_bool(bool b);
struct value value_int(int64_t n);
struct value value_float(double x);
struct value value_string(const char *text, size_t n, bool plain); /* borrowed */
struct value value_literal(const char *text);                      /* the template's own, borrowed */
struct value value_list(enum value_kind kind, struct list *list);
struct value value_method(struct interp *in, const struct native *f, const struct value *self);
struct value value_from_json(struct interp *in, const json_t *json); /* strings borrowed, as the row's */

struct list *list_new(struct interp *in, size_t n); /* n undefined items; empty where there is no room */
void list_push(struct interp *in, struct list *list, struct value v);
struct dict *dict_new(struct interp *in);
bool value_can_be_key(struct interp *in, const struct value *v); /* fails for a list and a dict */
void dict_set(struct interp *in, struct dict *dict, struct value key, struct value v);
const struct value *dict_get(struct interp *in, const struct dict *dict, const struct value *key);
const struct value *dict_get_text(struct interp *in, const struct dict *dict, const char *key);

/* ---------------------------------------------------------------- asking values */

bool value_is(const struct value *v, const char *text); /* a string that reads so */
bool value_is_true(const struct value *v);
bool value_is_number(const struct value *v);    /* bool, int, float */
bool value_is_sequence(const struct value *v);  /* list, tuple, view, iterator */
double value_real(const struct value *v);       /* of a number */
const char *value_kind_name(const struct value *v);
int64_t value_length(struct interp *in, const struct value *v); /* fails where there is none */
bool value_equal(struct interp *in, const struct value *a, const struct value *b);

/* < 0, 0, > 0; fails where the two have no order. */
int value_compare(struct interp *in, const struct value *a, const struct value *b);
bool value_contains(struct interp *in, const struct value *whole, const struct value *part);

/* What a for walks: an iterator's rest is spent by it. Fails for what cannot be walked. */
const struct list *value_items(struct interp *in, const struct value *v);

/* a.name and a[key] in Jinja's order of looking: attributes first, or items first. */
struct value value_attribute(struct interp *in, const struct value *of, const char *name, size_t n);
struct value value_item(struct interp *in, const struct value *of, const struct value *key);
struct value value_slice(struct interp *in, const struct value *of, const struct value *from, const struct value *to,
                         const struct value *step);

/* ---------------------------------------------------------------- texts and strings (chat_string.c) */

struct text *text_new(struct interp *in, size_t cap);
void text_add(struct interp *in, struct text *t, const char *s, size_t n, bool plain);
void text_add_literal(struct interp *in, struct text *t, const char *s);
void text_add_string(struct interp *in, struct text *t, const struct value *v); /* keeps the origins */
struct value text_value(struct text *t); /* all of it */

bool string_plain_at(const struct value *s, size_t byte);
struct value string_part(const struct value *s, size_t begin, size_t end);
struct value string_concat(struct interp *in, const struct value *a, const struct value *b);
struct value string_escape(struct interp *in, const struct value *s); /* HTML */
struct value string_strip(struct interp *in, const struct value *s, const struct value *chars, bool left, bool right);
struct value string_replace(struct interp *in, const struct value *s, const struct value *old, const struct value *by,
                            int64_t count);
enum string_case { CASE_UPPER, CASE_LOWER, CASE_TITLE, CASE_CAPITALIZE, CASE_SWAP };
struct value string_case(struct interp *in, const struct value *s, enum string_case how);
bool string_has_case(const struct value *s, bool upper); /* isupper, islower */
size_t string_characters(const struct value *s);
size_t string_byte_of(const struct value *s, size_t character); /* n where it is past the end */
bool is_python_space(int32_t c);

/* ---------------------------------------------------------------- printing (chat_print.c) */

struct value value_to_string(struct interp *in, const struct value *v); /* str(v) */
void print_value(struct interp *in, struct text *out, const struct value *v); /* the same, appended */
void print_repr(struct interp *in, struct text *out, const struct value *v);

struct json_style {
    bool ascii, sort_keys;
    const struct value *indent; /* a string, or NULL: one line */
    struct value item_separator, key_separator;
};
void print_json(struct interp *in, struct text *out, const struct value *v, const struct json_style *style);

/* "%s %d" % args (chat_format.c); args: a tuple, a dict or one value. */
struct value format_percent(struct interp *in, const struct value *format, const struct value *args);
/* "{} {name}".format(...) */
struct value format_braces(struct interp *in, const struct value *format, const struct call *call);

/* ---------------------------------------------------------------- arithmetic (chat_arithmetic.c) */

struct value value_arithmetic(struct interp *in, int op, const struct value *a, const struct value *b);
struct value value_negate(struct interp *in, const struct value *v);
struct value value_to_int(struct interp *in, const struct value *v, int64_t base, bool *ok);
struct value value_to_float(struct interp *in, const struct value *v, bool *ok);

/* ---------------------------------------------------------------- calls of templates (chat_eval.c) */

struct value chat_call(struct interp *in, const struct value *callee, struct call *call);

#endif
