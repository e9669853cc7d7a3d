/* export_openai.c - a row as a line of the output files of OpenAI's batch interface and vLLM's
 * run_batch; see export_json.h. Ids are made of the job's number and the row's, so that an export
 * says the same each time. */
#include "jobs/export_json.h"
#include "base/mem.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* A conversation; a prompt that the model's template wrapped into one is still a prompt. */
static bool is_chat(const struct export_job *job, const struct result_view *v) {
    json_t *input = job->has_template || *v->input != '{' ? NULL : json_loads(v->input, 0, NULL);
    bool is = json_object_get(input, "messages") && !json_is_string(json_object_get(input, job->prompt_key ? job->prompt_key : "prompt"));
    json_decref(input);
    return is;
}

/* ---------------------------------------------------------------- logprobs */

/* What logprobs_json.c writes for a token that is no UTF-8 by itself: bytes:\xe2\x82. The
 * number of bytes, into out; -1: it is text. */
static int64_t spelled_bytes(const char *token, size_t n, unsigned char *out) {
    static const char head[] = "bytes:";
    size_t at = strlen(head), count = 0;
    if (n <= at || strncmp(token, head, at) != 0) return -1;
    for (; at < n; at += 4) {
        char digits[3] = {0};
        if (n - at < 4 || token[at] != '\\' || token[at + 1] != 'x') return -1;
        memcpy(digits, token + at + 2, 2);
        if (strspn(digits, "0123456789abcdef") != 2) return -1;
        out[count++] = (unsigned char)strtoul(digits, NULL, 16);
    }
    return (int64_t)count;
}

static json_t *token_json(const char *token, size_t n, const json_t *logprob) {
    unsigned char *spelled = mem_zalloc(n + 1, 1);
    int64_t count = spelled_bytes(token, n, spelled);
    json_t *bytes = json_array();
    for (size_t i = 0; i < (count < 0 ? n : (size_t)count); i++)
        json_array_append_new(bytes, json_integer(count < 0 ? (unsigned char)token[i] : spelled[i]));
    free(spelled);
    return json_pack("{s:s%, s:O, s:o}", "token", token, n, "logprob", logprob, "bytes", bytes);
}

/* From the form of text completions, which is how they are stored, to that of chat. */
static json_t *chat_logprobs(const json_t *stored) {
    json_t *content = json_array(), *token, *x;
    const char *key;
    size_t i;
    json_array_foreach(json_object_get(stored, "tokens"), i, token) {
        json_t *top = json_array(), *others = json_array_get(json_object_get(stored, "top_logprobs"), i);
        json_object_foreach(others, key, x) json_array_append_new(top, token_json(key, strlen(key), x));
        json_t *one = token_json(json_string_value(token), json_string_length(token),
                                 json_array_get(json_object_get(stored, "token_logprobs"), i));
        json_object_set_new(one, "top_logprobs", top);
        json_array_append_new(content, one);
    }
    return json_pack("{s:o, s:n}", "content", content, "refusal");
}

/* Null also where a token in it is the character NUL, which jansson knows no key of. */
static json_t *parsed(const char *text) {
    json_t *v = text ? json_loads(text, JSON_ALLOW_NUL, NULL) : NULL;
    return v ? v : json_null();
}

static json_t *logprobs_of(const struct result_view *v, bool chat) {
    json_t *stored = parsed(v->logprobs);
    if (!chat || json_is_null(stored)) return stored;
    json_t *converted = chat_logprobs(stored);
    json_decref(stored);
    return converted;
}

/* ---------------------------------------------------------------- the line */

static json_t *choice_json(const struct result_view *v, bool chat) {
    json_t *text = export_completion_json(v);
    json_t *choice = chat ? json_pack("{s:i, s:{s:s, s:o, s:n}}", "index", 0, "message", "role", "assistant", "content", text, "refusal")
                          : json_pack("{s:i, s:o}", "index", 0, "text", text);
    json_object_set_new(choice, "logprobs", logprobs_of(v, chat));
    json_object_set_new(choice, "finish_reason", json_string(v->finish_reason));
    return choice;
}

static json_t *usage_json(const struct result_view *v) {
    return json_pack("{s:i, s:i, s:i, s:{s:i}}", "prompt_tokens", v->prompt_tokens, "completion_tokens", v->completion_tokens,
                     "total_tokens", v->prompt_tokens + v->completion_tokens, "prompt_tokens_details", "cached_tokens", v->cached_tokens);
}

/* The last part of a folder's path, as where lines of a batch file name a model. */
static const char *model_name(const struct export_job *job) {
    const char *slash = job->model ? strrchr(job->model, '/') : NULL;
    return slash ? slash + 1 : job->model ? job->model : "";
}

static json_t *body_json(const struct export_job *job, const struct result_view *v, const char *number) {
    bool chat = is_chat(job, v);
    json_t *choice = choice_json(v, chat);
    json_t *body = json_pack("{s:s++, s:s, s:I, s:s, s:[O], s:o}", "id", chat ? "chatcmpl" : "cmpl", "-", number, "object",
                             chat ? "chat.completion" : "text_completion", "created", (json_int_t)(v->finished_us / 1000000),
                             "model", model_name(job), "choices", choice, "usage", usage_json(v));
    if (v->prompt_logprobs) json_object_set_new(chat ? body : choice, "prompt_logprobs", parsed(v->prompt_logprobs)); /* where vLLM has them */
    json_decref(choice);
    return body;
}

void export_openai_line(FILE *f, const struct export_job *job, const struct result_view *v) {
    char id[24], number[60];
    snprintf(number, sizeof number, "%" PRId64 "-%" PRId64, job->job_id, v->row);
    json_t *o = json_pack("{s:s+, s:s}", "id", "batch_req_", number, "custom_id", export_row_id(v, id));
    json_t *response = v->error_code ? json_null()
                                     : json_pack("{s:i, s:s+, s:o}", "status_code", 200, "request_id", "req_", number, "body",
                                                 body_json(job, v, number));
    json_object_set_new(o, "response", response);
    json_object_set_new(o, "error", export_error_json(v));
    json_dumpf(o, f, JSON_COMPACT | JSON_REAL_PRECISION(9)); /* more than logprobs are stored with */
    putc('\n', f);
    json_decref(o);
}
