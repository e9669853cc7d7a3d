/* prompt.c - what a request says to the model. Pure; any thread. */
#include "base/hash.h"
#include "base/mem.h"
#include "jobs/jobs.h"
#include "jobs/json_text.h"
#include "jobs/messages.h"
#include "jobs/template.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_PROMPT = 64 << 20 };

void prompt_clear(struct prompt *p) {
    free(p->text);
    free(p->variables);
    params_clear(&p->params);
    *p = (struct prompt){0};
}

struct cells { /* the template's view of a row */
    const struct job_work *job;
    const json_t *input;
    char *dumped;  /* a value that is no string, as JSON */
};

static const char *cell_of(void *arg, const char *name) {
    struct cells *c = arg;
    const json_t *v = NULL;
    if (json_is_object(c->input)) v = json_object_get(c->input, name);
    for (size_t i = 0; json_is_array(c->input) && i < c->job->n_columns; i++)
        if (strcmp(c->job->columns[i], name) == 0) v = json_array_get(c->input, i);
    if (!v || json_is_string(v)) return json_string_value(v);
    if (json_is_null(v)) return "";
    free(c->dumped);
    c->dumped = json_text(v);
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

/* ---------------------------------------------------------------- what a chat template reads */

static void add_message(json_t *messages, const char *role, const char *content) {
    if (content) json_array_append_new(messages, json_pack("{s:s, s:s}", "role", role, "content", content));
}

/* Takes `messages`; `input` is a JSONL row, or NULL. */
static void set_variables(struct prompt *p, const struct job_work *job, json_t *messages, const json_t *input) {
    static const char *const keys[] = {"tools", "documents"};
    const char *of_job = job->settings.chat_kwargs;
    json_t *all = of_job ? json_loads(of_job, 0, NULL) : NULL, *kwargs = json_object_get(input, "chat_template_kwargs");
    if (!all) all = json_object();
    if (json_is_object(kwargs)) json_object_update(all, kwargs);
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        if (json_object_get(input, keys[i])) json_object_set(all, keys[i], json_object_get(input, keys[i]));
    json_object_set_new(all, "messages", messages);
    p->variables = json_dumps(all, JSON_COMPACT);
    json_decref(all);
}

static void set_user_message(struct prompt *p, const struct job_work *job, const char *system, const json_t *input) {
    json_t *messages = json_array();
    add_message(messages, "system", system);
    add_message(messages, "user", p->text);
    set_variables(p, job, messages, input);
}

static int from_messages(struct prompt *p, const struct job_work *job, const json_t *input, struct err *err) {
    const char *code, *problem = messages_problem(json_object_get(input, "messages"), &code);
    if (problem) return err_set(err, E_PARSE, "%s", problem);
    json_t *messages = json_array();
    p->kind = PROMPT_MESSAGES;
    add_message(messages, "system", job->settings.system_text);
    json_array_extend(messages, json_object_get(input, "messages"));
    set_variables(p, job, messages, input);
    return 0;
}

static int from_object(struct prompt *p, const struct job_work *job, const json_t *input, struct err *err) {
    const char *text = json_string_value(json_object_get(input, job->prompt_key ? job->prompt_key : "prompt"));
    if (json_object_get(input, "messages") && !text) return from_messages(p, job, input, err);
    if (!text) return err_set(err, E_PARSE, "the row has no prompt");
    const char *system = json_string_value(json_object_get(input, "system"));
    bool always = job->settings.chat && strcmp(job->settings.chat, "always") == 0;
    p->kind = system ? PROMPT_MESSAGES : always || job->settings.system_text ? PROMPT_TEXT : PROMPT_RAW;
    p->text = mem_strdup(text);
    if (p->kind != PROMPT_RAW) set_user_message(p, job, system ? system : job->settings.system_text, input); /* the row's own first */
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
    json_t *input = row->input ? json_loads(row->input, 0, NULL) : NULL;
    int r;
    if (!row->input) r = err_set(err, E_PARSE, "the stored row is damaged");
    else if (!input) r = err_set(err, E_PARSE, "the stored row is not JSON");
    else if (job->settings.template_text) r = from_template(&p, job, input, err);
    else if (json_is_object(input)) r = from_object(&p, job, input, err);
    else r = from_cells(&p, job, input, err);
    if (r == 0 && p.kind == PROMPT_TEXT && !p.variables) set_user_message(&p, job, job->settings.system_text, NULL);
    if (r == 0) r = add_params(&p, job, row, err);
    json_decref(input);
    if (r < 0) prompt_clear(&p);
    else *out = p;
    return r;
}
