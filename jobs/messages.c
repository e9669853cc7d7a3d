/* messages.c - see messages.h. */
#include "jobs/messages.h"

#include <stdbool.h>
#include <string.h>

static bool is_text_part(const json_t *part) {
    const char *type = json_string_value(json_object_get(part, "type"));
    return type && strcmp(type, "text") == 0 && json_is_string(json_object_get(part, "text"));
}

static const char *content_problem(const json_t *message, const char **code) {
    const json_t *content = json_object_get(message, "content");
    if (json_is_string(content)) return NULL;
    if ((!content || json_is_null(content)) && json_object_size(message) > (content ? 2u : 1u)) return NULL;
    for (size_t i = 0; i < json_array_size(content); i++) {
        if (is_text_part(json_array_get(content, i))) continue;
        *code = "unsupported_content";
        return "messages: a part of a content that is no text; only {\"type\": \"text\", \"text\": \"...\"} is built";
    }
    if (json_array_size(content) > 0) return NULL;
    return "messages: each needs \"role\" and \"content\", a string or parts of text";
}

const char *messages_problem(const json_t *messages, const char **code) {
    *code = "bad_value";
    if (json_array_size(messages) == 0) return "messages: not a list of messages";
    for (size_t i = 0; i < json_array_size(messages); i++) {
        const json_t *m = json_array_get(messages, i), *role = json_object_get(m, "role");
        if (!json_is_string(role) || json_string_length(role) == 0 || json_string_length(role) > 64)
            return "messages: each needs a \"role\", a string, and \"content\"";
        const char *problem = content_problem(m, code);
        if (problem) return problem;
    }
    return NULL;
}

int messages_is_extra(const char *key) {
    return strcmp(key, "tools") == 0 || strcmp(key, "documents") == 0 || strcmp(key, "chat_template_kwargs") == 0;
}

static bool is_list_of_objects(const json_t *v) {
    for (size_t i = 0; i < json_array_size(v); i++)
        if (!json_is_object(json_array_get(v, i))) return false;
    return json_is_array(v);
}

const char *messages_extras_problem(const json_t *row, const char **code) {
    const json_t *tools = json_object_get(row, "tools"), *documents = json_object_get(row, "documents");
    const json_t *kwargs = json_object_get(row, "chat_template_kwargs");
    *code = "bad_value";
    if (tools && !json_is_null(tools) && !is_list_of_objects(tools)) return "tools: not a list of objects";
    if (documents && !json_is_null(documents) && !is_list_of_objects(documents)) return "documents: not a list of objects";
    if (kwargs && !json_is_null(kwargs) && !json_is_object(kwargs)) return "chat_template_kwargs: not an object";
    return NULL;
}
