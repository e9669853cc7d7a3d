/* row_reader.c - see row_reader.h.
 *
 * CSV is fed to libcsv one physical line at a time: the callback that ends a row
 * then fires within the line that ended it, which gives exact line numbers even
 * where quoted fields hold newlines. */
#include "jobs/row_reader.h"
#include "base/mem.h"
#include "base/utf8.h"

#include <csv.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum { MAX_LINE = ROW_MAX_FIELD, MAX_JSON_DEPTH = 64 };

struct row_reader {
    const struct source *source;
    enum input_format format;
    size_t at;            /* the next physical line */
    int64_t line;         /* its number, from 1 */
    struct csv_parser csv;
    bool csv_is_open;
    struct buf text;      /* cells of the row, each with its terminator */
    size_t *begins;       /* of each cell in text */
    size_t n_cells, cells_cap;
    char **cells;
    size_t n_columns;     /* of the first row; 0 = not read yet */
    bool row_done, too_large;
    bool lost;            /* see row_reader_is_lost */
    json_t *json;
};

/* ---------------------------------------------------------------- formats */

static bool has_extension(const char *name, const char *extension) {
    size_t n = strlen(name), m = strlen(extension);
    return n > m && strcasecmp(name + n - m, extension) == 0;
}

enum input_format row_format(const struct source *source, enum input_format asked) {
    if (asked != INPUT_AUTO) return asked;
    if (has_extension(source->name, ".csv")) return INPUT_CSV;
    if (has_extension(source->name, ".tsv")) return INPUT_TSV;
    if (has_extension(source->name, ".jsonl") || has_extension(source->name, ".ndjson")) return INPUT_JSONL;
    if (has_extension(source->name, ".txt")) return INPUT_LINES;
    for (size_t i = 0; i < source->size; i++)
        if (!strchr(" \t\r\n\xef\xbb\xbf", source->data[i]))
            return source->data[i] == '{' || source->data[i] == '[' ? INPUT_JSONL : INPUT_CSV;
    return INPUT_CSV;
}

/* ---------------------------------------------------------------- libcsv */

static void cell_end(void *data, size_t n, void *arg) {
    struct row_reader *r = arg;
    if (r->n_cells == r->cells_cap) {
        r->cells_cap = r->cells_cap ? r->cells_cap * 2 : 16;
        r->begins = mem_realloc(r->begins, r->cells_cap, sizeof *r->begins);
        r->cells = mem_realloc(r->cells, r->cells_cap, sizeof *r->cells);
    }
    if (r->n_cells == ROW_MAX_COLUMNS) {
        r->too_large = true;
        return;
    }
    r->begins[r->n_cells++] = r->text.n;
    buf_append(&r->text, data ? data : "", n);
    buf_putc(&r->text, '\0');
    if (r->text.full) r->too_large = true;
}

static void row_end(int c, void *arg) {
    struct row_reader *r = arg;
    r->row_done = true;
}

/* libcsv's field buffer is bounded by what it may allocate. */
static void *bounded_realloc(void *p, size_t n) {
    return n > ROW_MAX_FIELD ? NULL : realloc(p, n);
}

static void open_csv(struct row_reader *r) {
    if (csv_init(&r->csv, CSV_STRICT | CSV_STRICT_FINI | CSV_APPEND_NULL) != 0) abort();
    if (r->format == INPUT_TSV) csv_set_delim(&r->csv, '\t');
    csv_set_realloc_func(&r->csv, bounded_realloc);
    csv_set_blk_size(&r->csv, 1 << 18); /* it grows by so much at a time, not by doubling */
    r->csv_is_open = true;
}

static void begin_row(struct row_reader *r) {
    if (!r->csv_is_open) open_csv(r);
    r->n_cells = 0;
    r->row_done = r->too_large = false;
    buf_reset(&r->text);
}

struct row_reader *row_reader_new(const struct source *source, enum input_format format) {
    struct row_reader *r = mem_zalloc(1, sizeof *r);
    r->source = source;
    r->format = format;
    r->line = 1;
    r->text.max = (size_t)4 * ROW_MAX_FIELD;
    if (source->size >= 3 && memcmp(source->data, "\xef\xbb\xbf", 3) == 0) r->at = 3;
    return r;
}

void row_reader_free(struct row_reader *r) {
    if (!r) return;
    if (r->csv_is_open) csv_free(&r->csv);
    buf_clear(&r->text);
    free(r->begins);
    free(r->cells);
    json_decref(r->json);
    free(r);
}

bool row_reader_is_lost(const struct row_reader *r) {
    return r->lost;
}

int64_t row_reader_byte(const struct row_reader *r) {
    return (int64_t)r->at;
}

/* ---------------------------------------------------------------- lines */

/* Bytes of the physical line at `at`, its terminator (LF, CRLF or CR) included. */
static size_t line_length(const struct source *s, size_t at) {
    const char *begin = s->data + at, *end = s->data + s->size;
    const char *lf = memchr(begin, '\n', (size_t)(end - begin));
    size_t n = lf ? (size_t)(lf + 1 - begin) : (size_t)(end - begin);
    const char *cr = memchr(begin, '\r', n);
    if (cr && cr + 1 < begin + n && cr[1] != '\n') return (size_t)(cr + 1 - begin);
    return n;
}

/* In a TSV file a line of tabs is a row of empty cells. */
static bool is_blank(const char *s, size_t n, bool tab_counts) {
    for (size_t i = 0; i < n; i++)
        if (s[i] != ' ' && s[i] != '\r' && s[i] != '\n' && (s[i] != '\t' || tab_counts)) return false;
    return true;
}

static void skip_blank_lines(struct row_reader *r) {
    while (r->at < r->source->size) {
        size_t n = line_length(r->source, r->at);
        if (!is_blank(r->source->data + r->at, n, r->format == INPUT_TSV)) break;
        r->at += n;
        r->line++;
    }
}

static enum read_result refuse(struct reject *out, int64_t line, int64_t byte, const char *code, const char *fmt, ...) {
    va_list ap;
    *out = (struct reject){.line = line, .byte = byte};
    snprintf(out->code, sizeof out->code, "%s", code);
    va_start(ap, fmt);
    vsnprintf(out->message, sizeof out->message, fmt, ap);
    va_end(ap);
    utf8_trim(out->message);
    return READ_REJECT;
}

/* Bytes that no format may hold; false when there are none. */
static bool bad_bytes(const char *s, size_t n, int64_t line, int64_t byte, struct reject *reject) {
    const char *nul = memchr(s, '\0', n);
    size_t valid = utf8_valid_prefix(s, n);
    if (nul) refuse(reject, line, byte, "nul", "a NUL byte at byte %" PRId64, byte + (nul - s));
    else if (valid < n)
        refuse(reject, line, byte, "utf8", "not UTF-8 at byte %" PRId64 "; convert the file, for instance with iconv",
               byte + (int64_t)valid);
    return nul || valid < n;
}

/* ---------------------------------------------------------------- CSV */

/* Go on behind the first physical line of a bad row. */
static void resume_behind(struct row_reader *r, size_t begin, int64_t line) {
    r->at = begin + line_length(r->source, begin);
    r->line = line + 1;
}

static bool csv_is_too_large(struct csv_parser *p) {
    return csv_error(p) == CSV_ENOMEM || csv_error(p) == CSV_ETOOBIG;
}

/* Where the quote stands that is still open at `end`; a doubled quote closes and opens none. */
static int64_t open_quote(const struct source *s, size_t begin, size_t end) {
    size_t at = begin;
    bool quoted = false;
    for (size_t i = begin; i < end; i++) {
        if (s->data[i] != '"') continue;
        if (quoted && i + 1 < end && s->data[i + 1] == '"') i++;
        else if ((quoted = !quoted)) at = i;
    }
    return (int64_t)at;
}

static enum read_result bad_row(struct row_reader *r, size_t begin, int64_t line, bool at_end, struct reject *reject) {
    int64_t byte = (int64_t)begin, last = r->line - 1, quote = open_quote(r->source, begin, r->at);
    bool single = r->n_columns <= 1, too_large = r->too_large || csv_is_too_large(&r->csv);
    r->lost = single && (!too_large || last > line);
    csv_free(&r->csv); /* its state is that of the bad row */
    r->csv_is_open = false;
    resume_behind(r, begin, line);
    if (too_large && last > line)
        return refuse(reject, line, byte, "field_size",
                      "the quote that opens at byte %" PRId64 " holds more than 16 MiB; is it closed?", quote);
    if (too_large)
        return refuse(reject, line, byte, "field_size",
                      "a field has more than 16 MiB, or the row more than 64 MiB or %d columns; shorten it", ROW_MAX_COLUMNS);
    if (at_end)
        return refuse(reject, line, byte, "unterminated_quote",
                      "unterminated quote starting at byte %" PRId64 " (lines %" PRId64 "-%" PRId64
                      " would be one field). Close it, or write \"\" for a quote%s",
                      quote, line, last, single ? "" : ", or use --reject skip");
    return refuse(reject, line, byte, "stray_quote",
                  "a quote inside a field. Put the field in quotes and write \"\" for a quote%s",
                  single ? "" : ", or use --reject skip");
}

static enum read_result csv_row(struct row_reader *r, size_t begin, int64_t line, struct input_row *row,
                                struct reject *reject) {
    const char *data = r->source->data + begin;
    if (bad_bytes(data, r->at - begin, line, (int64_t)begin, reject)) {
        if (r->n_columns != 1) resume_behind(r, begin, line);
        return READ_REJECT;
    }
    if (r->n_columns == 0) r->n_columns = r->n_cells;
    if (r->n_cells != r->n_columns) {
        resume_behind(r, begin, line);
        return refuse(reject, line, (int64_t)begin, "column_count",
                      "%zu columns, the header has %zu. Quote fields that hold the delimiter", r->n_cells, r->n_columns);
    }
    for (size_t i = 0; i < r->n_cells; i++) r->cells[i] = r->text.data + r->begins[i];
    *row = (struct input_row){.line = line, .byte = (int64_t)begin, .cells = r->cells, .n_cells = r->n_cells};
    return READ_ROW;
}

static enum read_result next_csv(struct row_reader *r, struct input_row *row, struct reject *reject) {
    skip_blank_lines(r);
    if (r->at >= r->source->size) return READ_END;
    size_t begin = r->at;
    int64_t line = r->line;
    begin_row(r);
    while (!r->row_done && r->at < r->source->size) {
        size_t n = line_length(r->source, r->at);
        size_t taken = csv_parse(&r->csv, r->source->data + r->at, n, cell_end, row_end, r);
        r->at += n;
        r->line++;
        if (taken < n || r->too_large || r->at - begin > r->text.max) {
            r->too_large |= r->at - begin > r->text.max;
            return bad_row(r, begin, line, false, reject);
        }
    }
    if (!r->row_done && csv_fini(&r->csv, cell_end, row_end, r) != 0) return bad_row(r, begin, line, true, reject);
    return csv_row(r, begin, line, row, reject);
}

/* ---------------------------------------------------------------- JSONL, lines */

static bool too_deep(const char *s, size_t n) {
    int depth = 0;
    bool text = false;
    for (size_t i = 0; i < n; i++) {
        if (text) {
            if (s[i] == '\\') i++;
            else if (s[i] == '"') text = false;
        } else if (s[i] == '"') text = true;
        else if (s[i] == '{' || s[i] == '[') {
            if (++depth > MAX_JSON_DEPTH) return true;
        } else if (s[i] == '}' || s[i] == ']') depth--;
    }
    return false;
}

/* Does a list begin here, or an object that goes on in the next line? */
static bool begins_document(const char *s, size_t n) {
    while (n > 1 && strchr(" \t", s[n - 1])) n--;
    return s[0] == '[' || (s[0] == '{' && n == 1);
}

/* In words that do not need jansson's manual. */
static enum read_result refuse_json(const json_error_t *why, int64_t line, int64_t byte, struct reject *reject) {
    switch (json_error_code(why)) {
    case json_error_null_character:
        return refuse(reject, line, byte, "nul", "the character \\u0000 at column %d; leave it out", why->column);
    case json_error_numeric_overflow:
        return refuse(reject, line, byte, "json", "a number at column %d is too large to keep; write it as a string", why->column);
    default: return refuse(reject, line, byte, "json", "not JSON: %s (column %d)", why->text, why->column);
    }
}

static enum read_result json_row(struct row_reader *r, const char *s, size_t n, int64_t line, int64_t byte,
                                 struct input_row *row, struct reject *reject) {
    json_error_t why;
    json_decref(r->json);
    r->json = NULL;
    if (too_deep(s, n)) return refuse(reject, line, byte, "json", "nested more than %d deep", MAX_JSON_DEPTH);
    r->json = json_loadb(s, n, JSON_DECODE_ANY | JSON_REJECT_DUPLICATES, &why);
    r->lost = !r->json && line == 1 && begins_document(s, n);
    if (r->lost)
        return refuse(reject, line, byte, "json",
                      "a JSON document over several lines; JSONL is one object a line, as `jq -c .` (of a list: `jq -c '.[]'`)"
                      " writes it");
    if (!r->json) return refuse_json(&why, line, byte, reject);
    if (!json_is_object(r->json) && !json_is_string(r->json))
        return refuse(reject, line, byte, "json", "neither an object nor a string");
    *row = (struct input_row){.line = line, .byte = byte, .json = r->json, .text = s, .text_bytes = n};
    return READ_ROW;
}

static enum read_result next_line(struct row_reader *r, struct input_row *row, struct reject *reject) {
    skip_blank_lines(r);
    if (r->at >= r->source->size) return READ_END;
    size_t begin = r->at, n = line_length(r->source, begin);
    int64_t line = r->line++;
    const char *s = r->source->data + begin;
    r->at += n;
    while (n > 0 && (s[n - 1] == '\n' || s[n - 1] == '\r')) n--;
    if (n > MAX_LINE) return refuse(reject, line, (int64_t)begin, "field_size", "the line has %zu bytes, more than 16 MiB", n);
    if (bad_bytes(s, n, line, (int64_t)begin, reject)) return READ_REJECT;
    if (r->format == INPUT_JSONL) return json_row(r, s, n, line, (int64_t)begin, row, reject);
    buf_reset(&r->text);
    r->n_cells = 0;
    cell_end((void *)s, n, r);
    r->cells[0] = r->text.data;
    *row = (struct input_row){.line = line, .byte = (int64_t)begin, .cells = r->cells, .n_cells = 1};
    return READ_ROW;
}

enum read_result row_reader_next(struct row_reader *r, struct input_row *row, struct reject *reject) {
    r->lost = false;
    if (r->format == INPUT_CSV || r->format == INPUT_TSV) return next_csv(r, row, reject);
    return next_line(r, row, reject);
}
