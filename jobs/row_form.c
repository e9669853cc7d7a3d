/* row_form.c - see row_form.h. */
#include "jobs/row_form.h"
#include "base/mem.h"
#include "base/suggest.h"
#include "base/utf8.h"
#include "jobs/batch_line.h"
#include "jobs/json_text.h"
#include "jobs/messages.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* The name or id in a message may have been cut within a character: the rest is still said. */
void row_form_reject(struct reject *out, const struct input_row *row, const char *code, const char *message) {
    char *valid = utf8_repaired(message);
    *out = (struct reject){.line = row->line, .byte = row->byte};
    snprintf(out->code, sizeof out->code, "%s", code);
    snprintf(out->message, sizeof out->message, "%.*s", (int)sizeof out->message - 1, valid);
    utf8_trim(out->message);
    free(valid);
}

static const char *code_name(int code) {
    switch (code) {
    case E_RANGE: return "out_of_range";
    case E_UNSUPPORTED: return "unsupported_parameter";
    default: return "bad_value";
    }
}

/* ---------------------------------------------------------------- columns */

static int32_t find_column(const struct row_form *f, const char *name) {
    for (size_t i = 0; i < f->n_columns; i++)
        if (strcmp(f->columns[i], name) == 0) return (int32_t)i;
    return -1;
}

static int wanted_column(struct row_form *f, const char *name, const char *flag, int32_t *out, struct err *err) {
    *out = find_column(f, name);
    if (*out >= 0) return 0;
    struct buf all = BUF_INIT(500);
    for (size_t i = 0; i < f->n_columns; i++) buf_printf(&all, "%s%s", i ? ", " : "", f->columns[i]);
    const char *near = suggest(name, (const char *const *)f->columns, f->n_columns);
    int r = near ? err_set(err, E_USAGE, "%s: no column \"%s\" (%s). Did you mean \"%s\"? Columns: %s", f->source_name,
                           name, flag, near, all.data)
                 : err_set(err, E_USAGE, "%s: no column \"%s\" (%s). Columns: %s", f->source_name, name, flag,
                           all.data ? all.data : "");
    buf_clear(&all);
    return r;
}

static int pick_prompt_column(struct row_form *f, struct err *err) {
    if (f->o->prompt_col) return wanted_column(f, f->o->prompt_col, "--prompt-col", &f->prompt_column, err);
    f->prompt_column = find_column(f, "prompt");
    if (f->prompt_column < 0 && f->n_columns == 1) {
        f->prompt_column = 0;
        if (!f->o->settings->template_text && strpbrk(f->columns[0], ";\t|"))
            return err_set(err, E_USAGE, "%s: one column, \"%s\"; if it is several, divide them by commas, or by tabs with"
                           " --format tsv; if not, say --prompt-col", f->source_name, f->columns[0]);
    }
    if (f->prompt_column >= 0 || f->o->settings->template_text) return 0;
    struct buf all = BUF_INIT(500);
    for (size_t i = 0; i < f->n_columns; i++) buf_printf(&all, "%s%s", i ? ", " : "", f->columns[i]);
    int r = err_set(err, E_USAGE, "%s: no column \"prompt\"; say --prompt-col NAME or --template. Columns: %s",
                    f->source_name, all.data ? all.data : "");
    buf_clear(&all);
    return r;
}

static int pick_id_column(struct row_form *f, struct err *err) {
    if (f->o->id_col) return wanted_column(f, f->o->id_col, "--id-col", &f->id_column, err);
    f->id_column = find_column(f, "custom_id");
    if (f->id_column < 0) f->id_column = find_column(f, "id");
    return 0;
}

/* Data columns never become sampling parameters by accident: `@key`, or named by --param-cols. */
static int pick_param_columns(struct row_form *f, struct err *err) {
    struct buf list = BUF_INIT(0);
    int r = 0;
    for (size_t i = 0; i < f->n_columns; i++)
        if (f->columns[i][0] == '@') f->param_keys[i] = mem_strdup(f->columns[i] + 1);
    buf_puts(&list, f->o->param_cols ? f->o->param_cols : "");
    char *save = NULL;
    for (char *name = list.data ? strtok_r(list.data, ",", &save) : NULL; r == 0 && name; name = strtok_r(NULL, ",", &save)) {
        int32_t column;
        r = wanted_column(f, name, "--param-cols", &column, err);
        if (r == 0 && !f->param_keys[column]) f->param_keys[column] = mem_strdup(name);
    }
    for (size_t i = 0; r == 0 && i < f->n_columns; i++)
        if (f->param_keys[i] && !params_is_key(f->param_keys[i]))
            r = err_set(err, E_USAGE, "%s: column \"%s\" names no sampling parameter", f->source_name, f->columns[i]);
    buf_clear(&list);
    return r;
}

static int read_header(struct row_form *f, struct row_reader *reader, struct err *err) {
    struct input_row row;
    struct reject reject;
    enum read_result got = row_reader_next(reader, &row, &reject);
    if (got == READ_END) return err_set(err, E_PARSE, "%s is empty; it needs a header and rows", f->source_name);
    if (got == READ_REJECT)
        return err_set(err, E_PARSE, "%s:%" PRId64 ": bad header: %s", f->source_name, reject.line, reject.message);
    f->columns = mem_zalloc(row.n_cells, sizeof *f->columns);
    f->param_keys = mem_zalloc(row.n_cells, sizeof *f->param_keys);
    for (; f->n_columns < row.n_cells; f->n_columns++) {
        const char *name = row.cells[f->n_columns];
        if (find_column(f, name) >= 0)
            return err_set(err, E_PARSE, "%s:%" PRId64 ": two columns are named \"%s\"; rename one", f->source_name, row.line, name);
        f->columns[f->n_columns] = mem_strdup(name);
    }
    return 0;
}

static int set_up_csv(struct row_form *f, struct row_reader *reader, struct err *err) {
    int r = read_header(f, reader, err);
    if (r == 0) r = pick_prompt_column(f, err);
    if (r == 0) r = pick_id_column(f, err);
    if (r == 0) r = pick_param_columns(f, err);
    if (r == 0 && f->prompt_column >= 0) f->prompt_name = mem_strdup(f->columns[f->prompt_column]);
    if (r == 0 && f->id_column >= 0) f->id_name = mem_strdup(f->columns[f->id_column]);
    return r;
}

int row_form_init(struct row_form *f, struct row_reader *reader, enum input_format format, struct err *err) {
    const char *text = f->o->settings->template_text;
    f->prompt_column = f->id_column = -1;
    int r = 0;
    if (format == INPUT_CSV || format == INPUT_TSV) r = set_up_csv(f, reader, err);
    else if (format == INPUT_LINES) {
        f->columns = mem_zalloc(1, sizeof *f->columns);
        f->param_keys = mem_zalloc(1, sizeof *f->param_keys);
        f->columns[f->n_columns++] = mem_strdup("prompt");
        f->prompt_column = 0;
        f->prompt_name = mem_strdup("prompt");
    } else {
        f->prompt_name = mem_strdup(f->o->prompt_col ? f->o->prompt_col : "prompt");
        f->id_name = mem_strdup(f->o->id_col);
    }
    struct template *t = NULL;
    if (r == 0 && text) r = template_compile(&t, text, f->columns, f->n_columns, err);
    if (t) f->report->prompts_are_alike = !template_has_columns(t);
    template_free(t);
    return r;
}

void row_form_clear(struct row_form *f) {
    template_free(f->template);
    for (size_t i = 0; i < f->n_columns; i++) {
        free(f->columns[i]);
        free(f->param_keys[i]);
    }
    free(f->columns);
    free(f->param_keys);
    free(f->prompt_name);
    free(f->id_name);
    *f = (struct row_form){0};
}

int row_form_begin(struct row_form *f, const struct input_row *row, struct err *err) {
    size_t n = 0;
    const char *key;
    json_t *v;
    if (f->template || !f->o->settings->template_text) return 0;
    char **keys = mem_zalloc(json_object_size(row->json), sizeof *keys);
    json_object_foreach((json_t *)row->json, key, v) keys[n++] = (char *)key;
    int r = template_compile(&f->template, f->o->settings->template_text, keys, n, err);
    free(keys);
    return r < 0 ? err_wrap(err, "%s:%" PRId64, f->source_name, row->line) : 0;
}

/* ---------------------------------------------------------------- one row */

void request_clear(struct request *q) {
    free(q->input);
    params_clear(&q->params);
}

static bool bad(struct reject *reject, const struct input_row *row, const char *code, const char *message) {
    row_form_reject(reject, row, code, message);
    return false;
}

static bool csv_request(struct row_form *f, const struct input_row *row, struct request *q, struct reject *reject) {
    struct err err = ERR_INIT;
    json_t *cells = json_array();
    for (size_t i = 0; i < row->n_cells; i++) json_array_append_new(cells, json_string(row->cells[i]));
    q->input = json_dumps(cells, JSON_COMPACT);
    json_decref(cells);
    for (size_t i = 0; i < row->n_cells; i++) {
        if (!f->param_keys[i] || !*row->cells[i]) continue;
        int r = params_set_text(&q->params, f->param_keys[i], row->cells[i], &err);
        if (r < 0) return bad(reject, row, code_name(r), err.text);
    }
    if (f->id_column >= 0 && *row->cells[f->id_column]) q->custom_id = row->cells[f->id_column];
    return true;
}

static bool json_id(struct row_form *f, const struct input_row *row, struct request *q, struct reject *reject) {
    static const char *const names[] = {"custom_id", "id"};
    const json_t *id = f->id_name ? json_object_get(row->json, f->id_name) : NULL;
    for (int i = 0; !f->id_name && !id && i < 2; i++) id = json_object_get(row->json, names[i]);
    if (!id || json_is_null(id) || (json_is_string(id) && json_string_length(id) == 0)) return true;
    if (json_is_integer(id)) {
        snprintf(q->id_text, sizeof q->id_text, "%" JSON_INTEGER_FORMAT, json_integer_value(id));
        q->custom_id = q->id_text;
    } else if (json_is_string(id)) q->custom_id = json_string_value(id);
    else return bad(reject, row, "bad_value", "the id is neither a string nor a whole number");
    return true;
}

/* From here on `object` is what asks: the line itself, or the body of a line of a batch file. */
static bool check_messages(const struct input_row *row, const json_t *object, struct reject *reject) {
    const char *code, *problem = messages_problem(json_object_get(object, "messages"), &code);
    if (!problem) problem = messages_extras_problem(object, &code);
    return !problem || bad(reject, row, code, problem);
}

/* OpenAI's completions take lists, too: of one string, which is that string, and of more, which
 * would be several answers to one line. */
static bool check_prompt_list(const struct row_form *f, const struct input_row *row, const json_t *list, struct reject *reject) {
    size_t n = json_array_size(list), n_strings = 0, n_ids = 0;
    char text[200];
    for (size_t i = 0; i < n; i++) {
        n_strings += json_is_string(json_array_get(list, i));
        n_ids += json_is_integer(json_array_get(list, i)) || json_is_array(json_array_get(list, i));
    }
    const char *code = "unsupported_content";
    if (n == 1 && n_strings == 1) return true;
    if (n > 0 && n_strings == n) snprintf(text, sizeof text, "%.60s: a list of %zu strings; give each a line of its own", f->prompt_name, n);
    else if (n > 0 && n_ids == n) snprintf(text, sizeof text, "%.60s: token ids are not built; give the text that they stand for", f->prompt_name);
    else {
        code = "bad_value";
        snprintf(text, sizeof text, "%.60s: neither a string nor a list of one", f->prompt_name);
    }
    return bad(reject, row, code, text);
}

static bool json_prompt(struct row_form *f, const struct input_row *row, const json_t *object, struct reject *reject) {
    const json_t *prompt = json_object_get(object, f->prompt_name), *messages = json_object_get(object, "messages");
    char text[200];
    if (f->o->settings->template_text) return true; /* its cells are looked up when it is rendered */
    if (prompt && messages) return bad(reject, row, "bad_value", "both a prompt and messages");
    if (messages) return check_messages(row, object, reject);
    if (json_is_string(prompt)) return true;
    if (json_is_array(prompt)) return check_prompt_list(f, row, prompt, reject);
    snprintf(text, sizeof text, prompt ? "%.60s: not a string" : "neither \"%.60s\" nor \"messages\"", f->prompt_name);
    return bad(reject, row, "bad_value", text);
}

static bool is_listed(const char *list, const char *name) {
    size_t n = strlen(name);
    for (const char *at = list; at && *at; at += strcspn(at, ","), at += *at == ',')
        if (strcspn(at, ",") == n && strncmp(at, name, n) == 0) return true;
    return false;
}

/* A line with a prompt or messages is a request: its sampling keys count by their names. A
 * line that a template is filled from is data, as in a CSV file. */
static bool is_param(const struct row_form *f, const json_t *object, const char *key) {
    if (messages_is_extra(key) && json_object_get(object, "messages")) return false;
    if (*key == '@' || is_listed(f->o->param_cols, key)) return true;
    return params_is_key(key) && !f->o->settings->template_text && strcmp(key, f->prompt_name) != 0;
}

static const char *is_there(void *object, const char *name) {
    return json_object_get(object, name) ? "" : NULL;
}

static bool json_params(struct row_form *f, const struct input_row *row, const json_t *object, struct params *out, struct reject *reject) {
    struct err err = ERR_INIT;
    const char *key;
    json_t *v;
    json_object_foreach((json_t *)object, key, v) {
        if (!is_param(f, object, key)) continue;
        char *text = json_dumps(v, JSON_ENCODE_ANY | JSON_COMPACT);
        int r = params_set_json(out, key + (*key == '@'), text, &err); /* key itself is the loop's */
        free(text);
        if (r < 0) return bad(reject, row, code_name(r), err.text);
    }
    return true;
}

/* The request as it is stored: as written, so that 0.10 stays 0.10, where `written` has its text.
 * A prompt that is a list of one string becomes that string. */
static char *stored_text(const struct row_form *f, const json_t *object, const struct input_row *written) {
    const json_t *list = f->template ? NULL : json_object_get(object, f->prompt_name);
    if (!json_is_array(list)) return written ? mem_strndup(written->text, written->text_bytes) : json_text(object);
    json_t *plain = json_copy((json_t *)object);
    json_object_set(plain, f->prompt_name, json_array_get(list, 0));
    char *text = json_text(plain);
    json_decref(plain);
    return text;
}

/* The first of the models that the file asks for and the job does not have, for a warning. */
static void note_model(struct row_form *f, const json_t *line) {
    char *note = f->report->other_model;
    const char *other = batch_line_other_model(line, f->o->settings->model);
    if (*note || !other) return;
    snprintf(note, sizeof f->report->other_model, "%s", other);
    utf8_trim(note);
}

static bool batch_request(struct row_form *f, const struct input_row *row, struct request *q, struct reject *reject) {
    struct err err = ERR_INIT;
    const json_t *body = json_object_get(row->json, "body");
    int r = batch_line_check(row->json, f->prompt_name, &err);
    if (r < 0) return bad(reject, row, code_name(r), err.text);
    if (!json_prompt(f, row, body, reject) || !json_params(f, row, body, &q->params, reject)) return false;
    note_model(f, row->json);
    q->input = stored_text(f, body, NULL);
    return true;
}

static bool json_request(struct row_form *f, const struct input_row *row, struct request *q, struct reject *reject) {
    struct err err = ERR_INIT;
    if (!json_id(f, row, q, reject)) return false;
    if (!f->template && batch_line_is(row->json, f->prompt_name)) return batch_request(f, row, q, reject);
    if (!json_prompt(f, row, row->json, reject)) return false;
    struct buf nothing = BUF_INIT(0);
    bool whole = !f->template || template_render(f->template, &nothing, is_there, (void *)row->json, &err) == 0;
    buf_clear(&nothing);
    if (!whole) return bad(reject, row, "missing_key", err.text);
    if (!json_params(f, row, row->json, &q->params, reject)) return false;
    q->input = stored_text(f, row->json, row);
    return true;
}

bool row_form_request(struct row_form *f, const struct input_row *row, struct request *q, struct reject *reject) {
    return row->json ? json_request(f, row, q, reject) : csv_request(f, row, q, reject);
}
