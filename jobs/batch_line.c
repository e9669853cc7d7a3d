/* batch_line.c - see batch_line.h. */
#include "jobs/batch_line.h"

#include <string.h>

bool batch_line_is(const json_t *line, const char *prompt_key) {
    static const char *const beside[] = {"custom_id", "method", "url"};
    if (!json_is_object(json_object_get(line, "body"))) return false;
    if (json_object_get(line, prompt_key) || json_object_get(line, "messages")) return false;
    for (size_t i = 0; i < sizeof beside / sizeof *beside; i++)
        if (json_object_get(line, beside[i])) return true;
    return false;
}

static bool ends_in(const char *text, const char *end) {
    size_t n = strlen(text), m = strlen(end);
    return n >= m && strcmp(text + n - m, end) == 0;
}

int batch_line_check(const json_t *line, const char *prompt_key, struct err *err) {
    const char *method = json_string_value(json_object_get(line, "method")), *url = json_string_value(json_object_get(line, "url"));
    const json_t *body = json_object_get(line, "body");
    if (!method || !url)
        return err_set(err, E_PARSE, "%s: missing or no string; beside \"body\" stand \"method\": \"POST\" and \"url\": \"/v1/chat/completions\"",
                       method ? "url" : "method");
    if (strcmp(method, "POST") != 0) return err_set(err, E_UNSUPPORTED, "method: \"%.40s\" is not built; only \"POST\" is", method);
    bool chat = ends_in(url, "/v1/chat/completions");
    if (!chat && !ends_in(url, "/v1/completions"))
        return err_set(err, E_UNSUPPORTED, "url: \"%.80s\" is not built; only /v1/chat/completions and /v1/completions are", url);
    const char *needed = chat ? "messages" : prompt_key, *other = chat ? prompt_key : "messages";
    if (json_object_get(body, needed)) return 0;
    return err_set(err, E_PARSE, "body: no \"%.60s\", which %s needs%s", needed, chat ? "/v1/chat/completions" : "/v1/completions",
                   !json_object_get(body, other) ? "" : chat ? "; a prompt goes to /v1/completions" : "; messages go to /v1/chat/completions");
}

static const char *last_part(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

const char *batch_line_other_model(const json_t *line, const char *model) {
    const char *asked = json_string_value(json_object_get(json_object_get(line, "body"), "model"));
    if (!asked || (model && strcmp(last_part(asked), last_part(model)) == 0)) return NULL;
    return asked;
}
