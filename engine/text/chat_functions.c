/* chat_functions.c - the functions that a template finds by name, and how a native is called. */
#include "base/clock.h"
#include "base/mem.h"
#include "engine/text/chat_tree.h"

#include <string.h>
#include <time.h>

#define COUNT(table) (sizeof table / sizeof *table)

/* ---------------------------------------------------------------- natives */

const struct native *native_find(const struct native *table, size_t n, const char *name, size_t name_n) {
    for (size_t i = 0; i < n; i++)
        if (strlen(table[i].name) == name_n && memcmp(table[i].name, name, name_n) == 0) return &table[i];
    return NULL;
}

/* The words of `params`, one by one: how long the one at w is, and whether it is required. */
static size_t param_word(const char *w, bool *required) {
    size_t n = strcspn(w, " ");
    *required = n > 0 && w[n - 1] == '!';
    return n;
}

/* Place of a name among the words of `params`; how many there are for a name that is not there. */
static size_t param_place(const char *params, const char *name) {
    size_t place = 0;
    bool required;
    for (const char *w = params; *w; place++) {
        size_t n = param_word(w, &required);
        if (name && strlen(name) == n - required && memcmp(w, name, n - required) == 0) break;
        w += n + (w[n] == ' ');
    }
    return place;
}

static bool has_required(struct interp *in, const struct native *f, const struct call *call) {
    bool required;
    size_t i = 0;
    for (const char *w = f->params; *w; i++) {
        size_t n = param_word(w, &required);
        if (required && call->slot[i].kind == VALUE_MISSING) return chat_fail(in, E_PARSE, "%s needs more arguments", f->name), false;
        w += n + (w[n] == ' ');
    }
    return true;
}

static bool bind_slots(struct interp *in, const struct native *f, struct call *call) {
    for (size_t i = 0; i < CALL_SLOTS; i++) call->slot[i].kind = VALUE_MISSING;
    size_t n = param_place(f->params, NULL);
    if (call->n > n) return chat_fail(in, E_PARSE, "%s takes at most %zu arguments", f->name, n), false;
    for (size_t i = 0; i < call->n; i++) call->slot[i] = call->args[i];
    for (size_t i = 0; i < call->n_keywords; i++) {
        size_t place = param_place(f->params, call->keywords[i].name);
        if (place == n || call->slot[place].kind != VALUE_MISSING)
            return chat_fail(in, E_PARSE, "%s does not take %.40s=", f->name, call->keywords[i].name), false;
        call->slot[place] = call->keywords[i].value;
    }
    return has_required(in, f, call);
}

struct value native_call(struct interp *in, const struct native *f, const struct value *self, struct call *call) {
    if (in->r < 0 || !chat_charge(in, 0)) return value_undefined(NULL);
    if (!f->fn) return chat_fail(in, E_UNSUPPORTED, "unsupported function or method \"%s\"", f->name);
    if (f->params && !bind_slots(in, f, call)) return value_undefined(NULL);
    return f->fn(in, self, call);
}

/* ---------------------------------------------------------------- functions */

static struct value raise_exception(struct interp *in, const struct value *self, struct call *call) {
    struct value v = value_to_string(in, &call->slot[0]);
    return chat_fail(in, E_PARSE, "%.*s", (int)(v.n < 500 ? v.n : 500), v.n ? v.text : "");
}

static struct value strftime_now(struct interp *in, const struct value *self, struct call *call) {
    char format[128], text[512];
    const struct value *f = &call->slot[0];
    time_t now = (time_t)(in->now ? in->now : clock_wall_us() / 1000000);
    struct tm tm;
    if (f->kind != VALUE_STRING || f->n >= sizeof format) return chat_fail(in, E_PARSE, "strftime_now without a format");
    if (f->n) memcpy(format, f->text, f->n);
    format[f->n] = '\0';
    if (strstr(format, "%f")) return chat_fail(in, E_UNSUPPORTED, "unsupported format \"%%f\" of a time");
    size_t n = *format ? strftime(text, sizeof text, format, localtime_r(&now, &tm)) : 0;
    return value_string(arena_text(&in->arena, text, n), n, false);
}

static bool range_argument(struct interp *in, const struct value *v, int64_t *out) {
    if (v->kind == VALUE_MISSING) return true;
    if (v->kind == VALUE_INT || v->kind == VALUE_BOOL) return *out = v->number, true;
    return chat_fail(in, E_PARSE, "range of a %s", value_kind_name(v)), false;
}

static struct value range(struct interp *in, const struct value *self, struct call *call) {
    int64_t from = 0, to = 0, step = 1;
    bool one = call->slot[1].kind == VALUE_MISSING;
    if (!range_argument(in, &call->slot[0], one ? &to : &from) || !range_argument(in, &call->slot[1], &to) ||
        !range_argument(in, &call->slot[2], &step))
        return value_undefined(NULL);
    if (step == 0) return chat_fail(in, E_PARSE, "range with step 0");
    __int128 span = (__int128)to - from, n = step > 0 ? (span + step - 1) / step : (span + step + 1) / step;
    if (step > 0 ? span <= 0 : span >= 0) n = 0;
    if (n > CHAT_MAX_RANGE) return chat_fail(in, E_RANGE, "a range of more than %d numbers", CHAT_MAX_RANGE);
    struct list *list = list_new(in, (size_t)n);
    list->is_range = true;
    for (size_t i = 0; i < list->n; i++) list->items[i] = value_int(from + (int64_t)i * step);
    return value_list(VALUE_VIEW, list);
}

/* dict(mapping or pairs, name=value ...) */
static void fill_dict(struct interp *in, struct dict *dict, struct call *call) {
    if (call->n > 1) chat_fail(in, E_PARSE, "dict takes one argument");
    if (call->n == 1 && call->args[0].kind == VALUE_DICT)
        for (size_t i = 0; i < call->args[0].dict->n && chat_charge(in, 0); i++)
            dict_set(in, dict, call->args[0].dict->pairs[i].key, call->args[0].dict->pairs[i].value);
    else if (call->n == 1) {
        const struct list *pairs = value_items(in, &call->args[0]);
        for (size_t i = 0; i < pairs->n && chat_charge(in, 16 * dict->n); i++) {
            const struct list *pair = value_items(in, &pairs->items[i]);
            if (pair->n != 2) chat_fail(in, E_PARSE, "dict of items that are no pairs");
            else dict_set(in, dict, pair->items[0], pair->items[1]);
        }
    }
    for (size_t i = 0; i < call->n_keywords && in->r == 0; i++)
        dict_set(in, dict, value_literal(call->keywords[i].name), call->keywords[i].value);
}

static struct value new_dict(struct interp *in, const struct value *self, struct call *call) {
    struct value v = {.kind = VALUE_DICT, .dict = dict_new(in)};
    fill_dict(in, v.dict, call);
    return v;
}

static struct value new_namespace(struct interp *in, const struct value *self, struct call *call) {
    struct value v = {.kind = VALUE_NAMESPACE, .dict = dict_new(in)};
    fill_dict(in, v.dict, call);
    for (size_t i = 0; i < v.dict->n; i++) {
        const struct value *key = &v.dict->pairs[i].key;
        if (key->kind == VALUE_STRING && key->n > 0 && key->text[0] == '_')
            return chat_fail(in, E_PARSE, "a namespace holds no names that begin with _");
    }
    return v;
}

static const struct native functions[] = {
    {"cycler", NULL, NULL},
    {"dict", NULL, new_dict},
    {"joiner", NULL, NULL},
    {"lipsum", NULL, NULL},
    {"namespace", NULL, new_namespace},
    {"raise_exception", "message!", raise_exception},
    {"range", "start! stop step", range},
    {"strftime_now", "format!", strftime_now},
};

const struct native *chat_function(const char *name, size_t n) {
    return native_find(functions, COUNT(functions), name, n);
}
