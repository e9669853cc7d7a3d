/* chat_settings.c - what a job says about its chat template, as one JSON object in a column. */
#include "jobs/chat_settings.h"
#include "base/mem.h"

#include <jansson.h>

char *chat_settings_to_json(const struct job_settings *s) {
    if (!s->chat_template && !s->chat_kwargs && !s->allow_special_tokens) return NULL;
    json_t *all = json_object();
    if (s->chat_template) json_object_set_new(all, "template", json_string(s->chat_template));
    if (s->chat_kwargs) json_object_set_new(all, "kwargs", json_loads(s->chat_kwargs, 0, NULL));
    if (s->allow_special_tokens) json_object_set_new(all, "allow_special_tokens", json_true());
    char *text = json_dumps(all, JSON_COMPACT | JSON_SORT_KEYS);
    json_decref(all);
    return text;
}

void chat_settings_from_json(struct job_settings *s, const char *text) {
    json_t *all = text ? json_loads(text, 0, NULL) : NULL, *kwargs = json_object_get(all, "kwargs");
    s->chat_template = mem_strdup(json_string_value(json_object_get(all, "template")));
    s->chat_kwargs = json_is_object(kwargs) ? json_dumps(kwargs, JSON_COMPACT) : NULL;
    s->allow_special_tokens = json_is_true(json_object_get(all, "allow_special_tokens"));
    json_decref(all);
}
