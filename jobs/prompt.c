/* prompt.c - what a request says to the model. Pure; any thread. */
#include "base/hash.h"
#include "base/mem.h"
#include "jobs/jobs.h"
#include "jobs/template.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_PROMPT = 64 << 20 };

void prompt_clear(struct prompt *p) {
    free(p->text);
    for (size_t i = 0; i < p->n_messages; i++) {
        free(p->roles[i]);
        free(p->contents[i]);
    }
    free(p->roles);
    free(p->contents);
    params_clear(&p->params);
    *p = (struct prompt){0};
}

struct cells { /* the template's view of a row */
    const struct job_work *job;
    const json_t *input;
    char *dumped;  /* a value that is no string, as JSON */
};

/* The shortest decimals that read back as x: 0.1 is "0.1", where jansson writes 17 digits. */
static char *real_text(double x) {
    char text[40];
    int digits = 15;
    do snprintf(text, sizeof text, "%.*g", digits, x);
    while (strtod(text, NULL) != x && digits++ < 17);
    if (!strpbrk(text, ".e")) strcat(text, ".0");
    return mem_strdup(text);
}

static const char *cell_of(void *arg, const char *name) {
    struct cells *c = arg;
    const json_t *v = NULL;
    if (json_is_object(c->input)) v = json_object_get(c->input, name);
    for (size_t i = 0; json_is_array(c->input) && i < c->job->n_columns; i++)
        if (strcmp(c->job->columns[i], name) == 0) v = json_array_get(c->input, i);
    if (!v || json_is_string(v)) return json_string_value(v);
    if (json_is_null(v)) return "";
    free(c->dumped);
    c->dumped = json_is_real(v) ? real_text(json_real_value(v)) : json_dumps(v, JSON_ENCODE_ANY | JSON_COMPACT);
    return c->dumped;
}

static int from_template(struct prompt *p, const struct job_work *job, const json_t *input, struct err *err) {
    struct template *t = NULL;
    struct buf text = BUF_INIT(MAX_PROMPT);
    struct cells cells = {.job = job, .input = input};
    int r = template_compile(&t, job->settings.template_text, job->columns, job->n_columns, err);
    if (r == 0) r = template_render(t, &text, cell_of, &cells, err);
    if (r == 0) p->text = buf_take(&text);
    p->kind = PROMPT_TEXT;
    template_free(t);
    free(cells.dumped);
    buf_clear(&text);
    return r;
}

static void add_message(struct prompt *p, const char *role, const char *content) {
    p->roles = mem_realloc(p->roles, p->n_messages + 1, sizeof *p->roles);
    p->contents = mem_realloc(p->contents, p->n_messages + 1, sizeof *p->contents);
    p->roles[p->n_messages] = mem_strdup(role);
    p->contents[p->n_messages++] = mem_strdup(content);
}

static int from_messages(struct prompt *p, const struct job_work *job, const json_t *messages, struct err *err) {
    size_t i;
    json_t *m;
    p->kind = PROMPT_MESSAGES;
    if (job->settings.system_text) add_message(p, "system", job->settings.system_text);
    json_array_foreach(messages, i, m) {
        const char *role = json_string_value(json_object_get(m, "role"));
        const char *content = json_string_value(json_object_get(m, "content"));
        if (!role || !content) return err_set(err, E_PARSE, "message %zu has no role or content", i);
        add_message(p, role, content);
    }
    return 0;
}

static int from_object(struct prompt *p, const struct job_work *job, const json_t *input, struct err *err) {
    const json_t *messages = json_object_get(input, "messages");
    const char *text = json_string_value(json_object_get(input, job->prompt_key ? job->prompt_key : "prompt"));
    if (messages && !text) return from_messages(p, job, messages, err);
    if (!text) return err_set(err, E_PARSE, "the row has no prompt");
    const char *system = json_string_value(json_object_get(input, "system"));
    bool always = job->settings.chat && strcmp(job->settings.chat, "always") == 0;
    if (system) { /* the row's own takes the place of the job's */
        p->kind = PROMPT_MESSAGES;
        add_message(p, "system", system);
        add_message(p, "user", text);
        return 0;
    }
    p->kind = always || job->settings.system_text ? PROMPT_TEXT : PROMPT_RAW;
    p->text = mem_strdup(text);
    return 0;
}

static int from_cells(struct prompt *p, const struct job_work *job, const json_t *input, struct err *err) {
    const char *text = job->prompt_column >= 0 ? json_string_value(json_array_get(input, (size_t)job->prompt_column)) : NULL;
    if (!text) return err_set(err, E_PARSE, "the row has no prompt");
    p->kind = PROMPT_TEXT;
    p->text = mem_strdup(text);
    return 0;
}

static int add_params(struct prompt *p, const struct job_work *job, const struct request_row *row, struct err *err) {
    struct params own = {0};
    int r = row->params ? params_from_json(&own, row->params, err) : 0;
    if (r == 0) {
        params_overlay(&p->params, &job->settings.params);
        params_overlay(&p->params, &own);
        /* A seed in the job's own parameters is the job's seed; a row's own is taken as it is. */
        uint64_t job_seed = job->settings.params.set & PARAM_SEED ? job->settings.params.seed : job->settings.seed;
        p->seed = own.set & PARAM_SEED ? own.seed : hash64_mix(job_seed, (uint64_t)row->row) >> 1;
    }
    params_clear(&own);
    return r;
}

int prompt_build(struct prompt *out, const struct job_work *job, const struct request_row *row, struct err *err) {
    struct prompt p = {0};
    json_t *input = json_loads(row->input, 0, NULL);
    int r;
    if (!input) r = err_set(err, E_PARSE, "the stored row is not JSON");
    else if (job->settings.template_text) r = from_template(&p, job, input, err);
    else if (json_is_object(input)) r = from_object(&p, job, input, err);
    else r = from_cells(&p, job, input, err);
    if (r == 0) r = add_params(&p, job, row, err);
    json_decref(input);
    if (r < 0) prompt_clear(&p);
    else *out = p;
    return r;
}
