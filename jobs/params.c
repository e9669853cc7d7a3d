/* params.c - sampling parameters: one table of names, types and limits. */
#include "base/mem.h"
#include "jobs/jobs.h"

#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_STOPS = 16, MAX_STOP_BYTES = 256, MAX_STOP_IDS = 64, MAX_IDS = 1024, MOST_ID = (1 << 24) - 1, MOST_BIAS = 100, MOST_LOGPROBS = 20 };

enum kind { KIND_INT, KIND_REAL, KIND_SEED, KIND_BOOL, KIND_STOP, KIND_IDS, KIND_BIAS, KIND_LOGPROBS };

/* Two lines in a row with one bit are two names of one parameter; the second is read, never written. */
static const struct spec {
    const char *name;
    enum param_bit bit;
    enum kind kind;
    size_t offset;
    double least, most;
    bool above; /* least itself is out */
    size_t count;  /* a list: where its length is */
    size_t longest;
} specs[] = {
    {"max_tokens", PARAM_MAX_TOKENS, KIND_INT, offsetof(struct params, max_tokens), 1, 1 << 20, false, 0, 0},
    {"max_completion_tokens", PARAM_MAX_TOKENS, KIND_INT, offsetof(struct params, max_tokens), 1, 1 << 20, false, 0, 0},
    {"min_tokens", PARAM_MIN_TOKENS, KIND_INT, offsetof(struct params, min_tokens), 0, 1 << 20, false, 0, 0},
    {"temperature", PARAM_TEMPERATURE, KIND_REAL, offsetof(struct params, temperature), 0, 10, false, 0, 0},
    {"top_p", PARAM_TOP_P, KIND_REAL, offsetof(struct params, top_p), 0, 1, true, 0, 0},
    {"top_k", PARAM_TOP_K, KIND_INT, offsetof(struct params, top_k), -1, 1 << 24, false, 0, 0}, /* -1: off, as in vLLM */
    {"min_p", PARAM_MIN_P, KIND_REAL, offsetof(struct params, min_p), 0, 1, false, 0, 0},
    {"seed", PARAM_SEED, KIND_SEED, offsetof(struct params, seed), 0, 0, false, 0, 0},
    {"stop", PARAM_STOP, KIND_STOP, 0, 0, 0, false, 0, 0},
    {"stop_token_ids", PARAM_STOP_TOKEN_IDS, KIND_IDS, offsetof(struct params, stop_token_ids), 0, MOST_ID, false,
     offsetof(struct params, n_stop_token_ids), MAX_STOP_IDS},
    {"ignore_eos", PARAM_IGNORE_EOS, KIND_BOOL, offsetof(struct params, ignore_eos), 0, 0, false, 0, 0},
    {"presence_penalty", PARAM_PRESENCE_PENALTY, KIND_REAL, offsetof(struct params, presence_penalty), -2, 2, false, 0, 0},
    {"frequency_penalty", PARAM_FREQUENCY_PENALTY, KIND_REAL, offsetof(struct params, frequency_penalty), -2, 2, false, 0, 0},
    {"repetition_penalty", PARAM_REPETITION_PENALTY, KIND_REAL, offsetof(struct params, repetition_penalty), 0, 10, true, 0, 0},
    {"logit_bias", PARAM_LOGIT_BIAS, KIND_BIAS, offsetof(struct params, logit_bias_ids), 0, MOST_ID, false,
     offsetof(struct params, n_logit_bias), MAX_IDS},
    {"allowed_token_ids", PARAM_ALLOWED_TOKEN_IDS, KIND_IDS, offsetof(struct params, allowed_token_ids), 0, MOST_ID, false,
     offsetof(struct params, n_allowed_token_ids), MAX_IDS},
    {"banned_token_ids", PARAM_BANNED_TOKEN_IDS, KIND_IDS, offsetof(struct params, banned_token_ids), 0, MOST_ID, false,
     offsetof(struct params, n_banned_token_ids), MAX_IDS},
    {"logprobs", PARAM_LOGPROBS, KIND_LOGPROBS, offsetof(struct params, logprobs), 0, MOST_LOGPROBS, false, 0, 0},
    {"top_logprobs", PARAM_TOP_LOGPROBS, KIND_INT, offsetof(struct params, top_logprobs), 0, MOST_LOGPROBS, false, 0, 0},
    {"prompt_logprobs", PARAM_PROMPT_LOGPROBS, KIND_LOGPROBS, offsetof(struct params, prompt_logprobs), 0, MOST_LOGPROBS, false,
     0, 0},
};

/* Keys of the OpenAI and vLLM interfaces that are not built, and the value that changes nothing. */
static const struct neutral {
    const char *name;
    double number; /* this number, or null, false, {} or []; tool_choice and response_format have a word, too */
    const char *remedy; /* what to write, where it is not simply less */
} neutrals[] = {
    {"n", 1, "only 1 is; give each completion a line of its own"},
    {"best_of", 1, "only 1 is"},
    {"tools", 0, "beside messages it goes to the chat template"},
    {"tool_choice", 0, "only \"none\" and \"auto\" are"},
    {"response_format", 0, "only {\"type\": \"text\"} is"},
    {"stream", 0, "leave it out, results are read when they are whole"},
    {"functions", 0, NULL},
    {"echo", 0, NULL},
    {"guided_json", NAN, NULL},
    {"guided_choice", NAN, NULL},
    {"guided_regex", NAN, NULL},
    {"guided_grammar", NAN, NULL},
    {"structured_outputs", NAN, NULL},
    {"include_stop_str_in_output", 0, NULL},
    {"truncate_prompt_tokens", NAN, NULL},
    {"bad_words", 0, NULL},
    {"length_penalty", 1, "only 1 is"},
    {"use_beam_search", 0, NULL},
};

static const struct spec *find_spec(const char *key) {
    for (size_t i = 0; i < sizeof specs / sizeof *specs; i++)
        if (strcmp(specs[i].name, key) == 0) return &specs[i];
    return NULL;
}

static bool is_second(const struct spec *s) {
    return s > specs && s[-1].bit == s->bit;
}

static const struct neutral *find_neutral(const char *key) {
    for (size_t i = 0; i < sizeof neutrals / sizeof *neutrals; i++)
        if (strcmp(neutrals[i].name, key) == 0) return &neutrals[i];
    return NULL;
}

bool params_is_key(const char *key) {
    return find_spec(key) || find_neutral(key);
}

static void clear_stops(struct params *p) {
    for (size_t i = 0; i < p->n_stop; i++) free(p->stop[i]);
    free(p->stop);
    p->stop = NULL;
    p->n_stop = 0;
}

static int64_t **ids_of(const struct params *p, const struct spec *s) {
    return (int64_t **)((char *)p + s->offset);
}

static size_t *count_of(const struct params *p, const struct spec *s) {
    return (size_t *)((char *)p + s->count);
}

/* Takes over the arrays; `bias` for KIND_BIAS alone. */
static void put_list(struct params *p, const struct spec *s, int64_t *ids, double *bias, size_t n) {
    free(*ids_of(p, s));
    *ids_of(p, s) = ids;
    *count_of(p, s) = n;
    if (s->kind != KIND_BIAS) return;
    free(p->logit_bias);
    p->logit_bias = bias;
}

void params_clear(struct params *p) {
    clear_stops(p);
    for (size_t i = 0; i < sizeof specs / sizeof *specs; i++)
        if (specs[i].kind == KIND_IDS || specs[i].kind == KIND_BIAS) put_list(p, &specs[i], NULL, NULL, 0);
    *p = (struct params){0};
}

/* ---------------------------------------------------------------- one value */

static int range_error(const struct spec *s, double v, struct err *err) {
    const char *fmt = s->above ? "%s: %.15g is not above %.15g and up to %.15g" : "%s: %.15g is not in %.15g .. %.15g";
    return err_set(err, E_RANGE, fmt, s->name, v, s->least, s->most);
}

/* By which other name was p given what `s` names? NULL: by none. */
static const char *given_as(const struct params *p, const struct spec *s) {
    bool now = is_second(s), before = p->second & s->bit;
    if (!(p->set & s->bit) || now == before) return NULL;
    return now ? s[-1].name : s[1].name;
}

static int put_int(struct params *p, const struct spec *s, int64_t x, struct err *err) {
    int64_t *at = (int64_t *)((char *)p + s->offset);
    const char *before = given_as(p, s);
    if (before && *at != x)
        return err_set(err, E_PARSE, "%s: %" PRId64 " here and %" PRId64 " as %s, which is the same; leave one out", s->name, x, *at, before);
    *at = x;
    return 0;
}

static int set_number(struct params *p, const struct spec *s, const json_t *v, struct err *err) {
    double x = json_number_value(v);
    bool whole = json_is_integer(v) || (json_is_real(v) && x == floor(x) && fabs(x) < 1e15);
    if (!json_is_number(v)) return err_set(err, E_PARSE, "%s: not a number", s->name);
    if (s->kind != KIND_REAL && !whole) return err_set(err, E_PARSE, "%s: %g is not a whole number", s->name, x);
    if (!(x <= s->most) || !(s->above ? x > s->least : x >= s->least)) return range_error(s, x, err);
    if (s->kind != KIND_REAL) return put_int(p, s, (int64_t)x, err);
    *(double *)((char *)p + s->offset) = x;
    return 0;
}

/* How many alternatives; or, in chat's form, whether: then top_logprobs has the number. */
static int set_logprobs(struct params *p, const struct spec *s, const json_t *v, struct err *err) {
    if (!json_is_boolean(v)) {
        if (json_is_number(v)) return set_number(p, s, v, err);
        return err_set(err, E_PARSE, "%s: neither a number nor true or false", s->name);
    }
    *(int64_t *)((char *)p + s->offset) = json_is_true(v) ? 0 : -1;
    return 0;
}

static int set_seed(struct params *p, const json_t *v, struct err *err) {
    if (!json_is_integer(v) || json_integer_value(v) < 0)
        return err_set(err, E_RANGE, "seed: not a whole number in 0 .. 9223372036854775807");
    p->seed = (uint64_t)json_integer_value(v);
    return 0;
}

/* One string or a list of them; json_array_get of a string is NULL. */
static int set_stop(struct params *p, const json_t *v, struct err *err) {
    size_t n = json_is_string(v) ? 1 : json_array_size(v);
    if (!json_is_string(v) && !json_is_array(v)) return err_set(err, E_PARSE, "stop: neither a string nor a list of strings");
    if (n > MAX_STOPS) return err_set(err, E_RANGE, "stop: %zu strings, at most %d are allowed", n, MAX_STOPS);
    for (size_t i = 0; i < n; i++) {
        const json_t *s = json_is_string(v) ? v : json_array_get(v, i);
        if (!json_is_string(s)) return err_set(err, E_PARSE, "stop: holds something that is not a string");
        size_t bytes = json_string_length(s);
        if (bytes < 1 || bytes > MAX_STOP_BYTES || strlen(json_string_value(s)) != bytes)
            return err_set(err, E_RANGE, "stop: a string of %zu bytes; 1 .. %d without NUL are allowed", bytes, MAX_STOP_BYTES);
    }
    clear_stops(p);
    p->stop = mem_zalloc(n, sizeof *p->stop);
    p->n_stop = n;
    for (size_t i = 0; i < n; i++)
        p->stop[i] = mem_strdup(json_string_value(json_is_string(v) ? v : json_array_get(v, i)));
    return 0;
}

static int too_long(const struct spec *s, size_t n, struct err *err) {
    if (n <= s->longest) return 0;
    return err_set(err, E_RANGE, "%s: %zu ids, at most %zu are allowed", s->name, n, s->longest);
}

static int set_ids(struct params *p, const struct spec *s, const json_t *v, struct err *err) {
    size_t n = json_array_size(v);
    if (!json_is_array(v)) return err_set(err, E_PARSE, "%s: not a list of token ids", s->name);
    if (too_long(s, n, err) < 0) return E_RANGE;
    for (size_t i = 0; i < n; i++) {
        const json_t *id = json_array_get(v, i);
        if (!json_is_integer(id)) return err_set(err, E_PARSE, "%s: holds something that is not a token id", s->name);
        if (json_integer_value(id) < 0 || json_integer_value(id) > (json_int_t)s->most)
            return range_error(s, (double)json_integer_value(id), err);
    }
    int64_t *ids = mem_zalloc(n, sizeof *ids);
    for (size_t i = 0; i < n; i++) ids[i] = json_integer_value(json_array_get(v, i));
    put_list(p, s, ids, NULL, n);
    return 0;
}

/* A key of an object that is a token id, or -1. */
static int64_t id_of_key(const char *key) {
    size_t n = strlen(key);
    if (n == 0 || n > 8 || strspn(key, "0123456789") != n) return -1;
    int64_t id = strtoll(key, NULL, 10);
    return id <= MOST_ID ? id : -1;
}

/* {"50256": -100, ...}: token ids, and what is added to their logits. */
static int set_bias(struct params *p, const struct spec *s, const json_t *v, struct err *err) {
    size_t n = 0;
    const char *key;
    json_t *x;
    if (!json_is_object(v)) return err_set(err, E_PARSE, "%s: not an object of token ids and numbers", s->name);
    if (too_long(s, json_object_size(v), err) < 0) return E_RANGE;
    json_object_foreach((json_t *)v, key, x) {
        if (id_of_key(key) < 0) return err_set(err, E_PARSE, "%s: \"%.40s\" is not a token id", s->name, key);
        if (!json_is_number(x)) return err_set(err, E_PARSE, "%s: the value of %s is not a number", s->name, key);
        if (!(fabs(json_number_value(x)) <= MOST_BIAS))
            return err_set(err, E_RANGE, "%s: %.15g is not in -%d .. %d", s->name, json_number_value(x), MOST_BIAS, MOST_BIAS);
    }
    int64_t *ids = mem_zalloc(json_object_size(v), sizeof *ids);
    double *bias = mem_zalloc(json_object_size(v), sizeof *bias);
    json_object_foreach((json_t *)v, key, x) {
        ids[n] = id_of_key(key);
        bias[n++] = json_number_value(x);
    }
    put_list(p, s, ids, bias, n);
    return 0;
}

static bool is_neutral(const struct neutral *k, const json_t *v) {
    if (json_is_null(v) || json_is_false(v)) return true;
    if (json_is_number(v)) return json_number_value(v) == k->number;
    if (json_is_string(v))
        return strcmp(k->name, "tool_choice") == 0 &&
               (strcmp(json_string_value(v), "none") == 0 || strcmp(json_string_value(v), "auto") == 0);
    const char *type = json_string_value(json_object_get(v, "type"));
    if (strcmp(k->name, "response_format") == 0 && type && strcmp(type, "text") == 0) return true;
    return (json_is_object(v) && json_object_size(v) == 0) || (json_is_array(v) && json_array_size(v) == 0);
}

static int set_value(struct params *p, const char *key, const json_t *v, struct err *err) {
    const struct spec *s = find_spec(key);
    const struct neutral *k = s ? NULL : find_neutral(key);
    if (!s && !k) return err_set(err, E_NOT_FOUND, "no sampling parameter \"%s\"", key);
    if (k && is_neutral(k, v)) return 0;
    if (k) {
        char *text = json_dumps(v, JSON_ENCODE_ANY | JSON_COMPACT);
        int r = err_set(err, E_UNSUPPORTED, "%s: %.60s is not built yet%s%s", key, text ? text : "?", k->remedy ? "; " : "",
                        k->remedy ? k->remedy : "");
        free(text);
        return r;
    }
    if (json_is_null(v)) return 0; /* "not set", as in OpenAI's interface */
    int r;
    switch (s->kind) {
    case KIND_INT:
    case KIND_REAL: r = set_number(p, s, v, err); break;
    case KIND_LOGPROBS: r = set_logprobs(p, s, v, err); break;
    case KIND_SEED: r = set_seed(p, v, err); break;
    case KIND_STOP: r = set_stop(p, v, err); break;
    case KIND_IDS: r = set_ids(p, s, v, err); break;
    case KIND_BIAS: r = set_bias(p, s, v, err); break;
    default:
        r = json_is_boolean(v) ? 0 : err_set(err, E_PARSE, "%s: neither true nor false", key);
        if (r == 0) p->ignore_eos = json_is_true(v);
    }
    if (r < 0) return r;
    p->set |= s->bit;
    p->second = is_second(s) ? p->second | s->bit : p->second & ~(uint32_t)s->bit;
    return 0;
}

/* ---------------------------------------------------------------- the interface */

int params_set_json(struct params *p, const char *key, const char *json, struct err *err) {
    json_error_t why;
    json_t *v = json_loads(json, JSON_DECODE_ANY, &why);
    if (!v) return err_set(err, E_PARSE, "%s: %s", key, why.text);
    int r = set_value(p, key, v, err);
    json_decref(v);
    return r;
}

/* A flag's text is JSON where it can be; a stop string is taken as it stands. */
int params_set_text(struct params *p, const char *key, const char *text, struct err *err) {
    const struct spec *s = find_spec(key);
    json_t *v = s && s->kind == KIND_STOP ? NULL : json_loads(text, JSON_DECODE_ANY, NULL);
    if (!v) v = json_string(text);
    if (!v) return err_set(err, E_PARSE, "%s: not UTF-8", key);
    int r = set_value(p, key, v, err);
    json_decref(v);
    return r;
}

static json_t *bias_json(const struct params *p) {
    json_t *o = json_object();
    for (size_t i = 0; i < p->n_logit_bias; i++) {
        char key[24];
        snprintf(key, sizeof key, "%lld", (long long)p->logit_bias_ids[i]);
        json_object_set_new(o, key, json_real(p->logit_bias[i]));
    }
    return o;
}

char *params_to_json(const struct params *p) {
    json_t *o = json_object();
    for (size_t i = 0; i < sizeof specs / sizeof *specs; i++) {
        const struct spec *s = &specs[i];
        if (!(p->set & s->bit) || is_second(s)) continue;
        const char *at = (const char *)p + s->offset;
        json_t *v = NULL;
        if (s->kind == KIND_INT) v = json_integer(*(const int64_t *)at);
        else if (s->kind == KIND_LOGPROBS) v = *(const int64_t *)at < 0 ? json_false() : json_integer(*(const int64_t *)at);
        else if (s->kind == KIND_REAL) v = json_real(*(const double *)at);
        else if (s->kind == KIND_SEED) v = json_integer((json_int_t)p->seed);
        else if (s->kind == KIND_BOOL) v = json_boolean(p->ignore_eos);
        else v = s->kind == KIND_BIAS ? bias_json(p) : json_array();
        for (size_t k = 0; s->kind == KIND_STOP && k < p->n_stop; k++) json_array_append_new(v, json_string(p->stop[k]));
        for (size_t k = 0; s->kind == KIND_IDS && k < *count_of(p, s); k++)
            json_array_append_new(v, json_integer((*ids_of(p, s))[k]));
        json_object_set_new(o, s->name, v);
    }
    char *text = json_dumps(o, JSON_COMPACT);
    json_decref(o);
    return text;
}

int params_from_json(struct params *p, const char *json, struct err *err) {
    json_error_t why;
    json_t *o = json_loads(json, 0, &why), *v;
    const char *key;
    if (!json_is_object(o)) {
        json_decref(o);
        return err_set(err, E_PARSE, "sampling parameters are not a JSON object");
    }
    struct params got = {0}; /* all of it or nothing */
    int r = 0;
    json_object_foreach(o, key, v) {
        r = set_value(&got, key, v, err);
        if (r < 0) break;
    }
    if (r == 0) params_overlay(p, &got);
    params_clear(&got);
    json_decref(o);
    return r;
}

void params_overlay(struct params *p, const struct params *over) {
    for (size_t i = 0; i < sizeof specs / sizeof *specs; i++) {
        const struct spec *s = &specs[i];
        if (!(over->set & s->bit) || is_second(s)) continue;
        char *to = (char *)p + s->offset;
        const char *from = (const char *)over + s->offset;
        if (s->kind == KIND_BOOL) p->ignore_eos = over->ignore_eos;
        else if (s->kind == KIND_STOP) {
            clear_stops(p);
            p->stop = mem_zalloc(over->n_stop, sizeof *p->stop);
            for (p->n_stop = 0; p->n_stop < over->n_stop; p->n_stop++) p->stop[p->n_stop] = mem_strdup(over->stop[p->n_stop]);
        } else if (s->kind == KIND_IDS || s->kind == KIND_BIAS) {
            size_t n = *count_of(over, s);
            double *bias = s->kind == KIND_BIAS ? mem_dup(over->logit_bias, n * sizeof *bias) : NULL;
            put_list(p, s, mem_dup(*ids_of(over, s), n * sizeof(int64_t)), bias, n);
        } else memcpy(to, from, 8);
        p->set |= s->bit;
    }
}
