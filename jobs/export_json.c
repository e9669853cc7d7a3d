/* export_json.c - our own form of a row, and what OpenAI's shares with it; see export_json.h. */
#include "jobs/export_json.h"
#include "base/utf8.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

/* ---------------------------------------------------------------- of both forms */

const char *export_row_id(const struct result_view *v, char number[24]) {
    if (v->custom_id) return v->custom_id;
    snprintf(number, 24, "%" PRId64, v->row);
    return number;
}

json_t *export_completion_json(const struct result_view *v) {
    json_t *text = v->completion ? json_stringn(v->completion, v->completion_bytes) : NULL;
    return text ? text : json_null();
}

json_t *export_error_json(const struct result_view *v) {
    if (!v->error_code) return json_null();
    char *message = utf8_repaired(v->error ? v->error : ""); /* older versions cut it anywhere */
    json_t *error = json_pack("{s:s, s:s}", "code", v->error_code, "message", message);
    free(message);
    return error;
}

/* ---------------------------------------------------------------- our own */

static void set_text(json_t *o, const char *key, const char *text) {
    json_object_set_new(o, key, text ? json_string(text) : json_null());
}

static void set_ms(json_t *o, const char *key, double ms) {
    json_object_set_new(o, key, ms < 0 ? json_null() : json_real(ms));
}

static json_t *usage_json(const struct result_view *v) {
    return json_pack("{s:i, s:i, s:i, s:i}", "prompt_tokens", v->prompt_tokens, "completion_tokens", v->completion_tokens,
                     "total_tokens", v->prompt_tokens + v->completion_tokens, "cached_tokens", v->cached_tokens);
}

static json_t *metrics_json(const struct result_view *v) {
    json_t *m = json_object();
    set_ms(m, "wait_ms", v->wait_ms);
    set_ms(m, "queue_ms", v->queue_ms);
    set_ms(m, "prefill_ms", v->prefill_ms);
    set_ms(m, "ttft_ms", v->ttft_ms);
    set_ms(m, "decode_ms", v->decode_ms);
    set_ms(m, "tpot_ms", v->tpot_ms);
    set_ms(m, "e2e_ms", v->e2e_ms);
    json_object_set_new(m, "preemptions", json_integer(v->preemptions));
    json_object_set_new(m, "attempt", json_integer(v->attempt));
    return m;
}

/* The input under its column names, or the line's own object as it was written. */
static void write_input(FILE *f, const struct export_job *job, const char *input) {
    json_t *cells = *input == '[' ? json_loads(input, 0, NULL) : NULL;
    if (!cells) {
        fputs(input, f);
        return;
    }
    json_t *o = json_object();
    for (size_t i = 0; i < job->n_columns && i < json_array_size(cells); i++)
        json_object_set(o, job->columns[i], json_array_get(cells, i));
    json_dumpf(o, f, JSON_COMPACT);
    json_decref(o);
    json_decref(cells);
}

void export_json_line(FILE *f, const struct export_job *job, const struct result_view *v) {
    char number[24];
    json_t *o = json_object();
    set_text(o, "id", export_row_id(v, number));
    json_object_set_new(o, "row", json_integer(v->row));
    set_text(o, "status", v->status);
    json_object_set_new(o, "completion", export_completion_json(v));
    set_text(o, "finish_reason", v->finish_reason);
    json_object_set_new(o, "error", export_error_json(v));
    json_object_set_new(o, "usage", usage_json(v));
    json_object_set_new(o, "metrics", metrics_json(v));
    char *text = json_dumps(o, JSON_COMPACT | JSON_REAL_PRECISION(12));
    fprintf(f, "%.*s", (int)strlen(text) - 1, text); /* the object is still open */
    if (v->logprobs) fprintf(f, ",\"logprobs\":%s", v->logprobs);
    if (v->prompt_logprobs) fprintf(f, ",\"prompt_logprobs\":%s", v->prompt_logprobs);
    fputs(",\"input\":", f);
    write_input(f, job, v->input);
    fputs("}\n", f);
    free(text);
    json_decref(o);
}
