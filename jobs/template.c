/* template.c - see template.h. */
#include "jobs/template.h"
#include "base/mem.h"
#include "base/suggest.h"
#include "base/utf8.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

enum filter { FILTER_NONE, FILTER_TRIM, FILTER_JSON };

struct segment {
    char *text;         /* literal text, or a column's name */
    char *whole;        /* column: all between the braces, where that may be a name too; else NULL */
    size_t n;
    bool is_column;
    enum filter filter;
    int64_t max_chars;  /* 0 = all */
};

struct template {
    struct segment *segments;
    size_t n, cap;
};

static struct segment *add(struct template *t) {
    if (t->n == t->cap) {
        t->cap = t->cap ? t->cap * 2 : 8;
        t->segments = mem_realloc(t->segments, t->cap, sizeof *t->segments);
    }
    t->segments[t->n] = (struct segment){0};
    return &t->segments[t->n++];
}

static void add_literal(struct template *t, const char *text, size_t n) {
    if (n == 0) return;
    struct segment *s = add(t);
    s->text = mem_strndup(text, n);
    s->n = n;
}

static int check_column(const char *name, char *const *columns, size_t n, struct err *err) {
    if (!columns) return 0;
    struct buf all = BUF_INIT(600);
    for (size_t i = 0; i < n; i++) {
        if (strcmp(columns[i], name) == 0) {
            buf_clear(&all);
            return 0;
        }
        buf_printf(&all, "%s%s", i ? ", " : "", columns[i]);
    }
    const char *near = suggest(name, (const char *const *)columns, n);
    int r = near ? err_set(err, E_USAGE, "no column \"%s\". Did you mean \"%s\"? Columns: %s", name, near, all.data)
                 : err_set(err, E_USAGE, "no column \"%s\". Columns: %s", name, all.data ? all.data : "(none)");
    buf_clear(&all);
    return r;
}

/* What stands between braces: name, then |filter or :length. A name may hold both signs
 * when there is a column of exactly that name. */
static int add_column(struct template *t, const char *text, size_t n, char *const *columns, size_t n_columns,
                      struct err *err) {
    struct segment *s = add(t);
    s->is_column = true;
    s->text = mem_strndup(text, n);
    for (size_t i = 0; columns && i < n_columns; i++)
        if (strcmp(columns[i], s->text) == 0) return 0;
    char *mark = strrchr(s->text, '|'), *colon = strrchr(s->text, ':'), *end;
    if (mark && strcmp(mark, "|trim") == 0) s->filter = FILTER_TRIM;
    else if (mark && strcmp(mark, "|json") == 0) s->filter = FILTER_JSON;
    else if (mark) return err_set(err, E_USAGE, "template: no filter \"%s\"; trim and json are there", mark + 1);
    else if (colon && colon[1]) {
        long long chars = strtoll(colon + 1, &end, 10);
        if (isdigit((unsigned char)colon[1]) && *end == '\0' && chars > 0) {
            s->max_chars = chars;
            mark = colon;
        }
    }
    if (mark && !columns) s->whole = mem_strdup(s->text);
    if (mark) *mark = '\0';
    return check_column(s->text, columns, n_columns, err);
}

static int compile(struct template *t, const char *text, char *const *columns, size_t n_columns, struct err *err) {
    const char *begin = text;
    for (const char *at = text; *at; at++) {
        if (*at != '{' && *at != '}') continue;
        if (at[0] == at[1]) { /* a brace, written twice */
            add_literal(t, begin, (size_t)(at + 1 - begin));
            begin = ++at + 1;
            continue;
        }
        const char *close = *at == '{' ? strpbrk(at + 1, "{}") : NULL;
        if (!close || *close != '}')
            return err_set(err, E_USAGE, "template: a lone %c at character %zu; write it twice to mean the brace itself",
                           *at, (size_t)(at - text) + 1);
        add_literal(t, begin, (size_t)(at - begin));
        int r = add_column(t, at + 1, (size_t)(close - at - 1), columns, n_columns, err);
        if (r < 0) return r;
        at = close;
        begin = close + 1;
    }
    add_literal(t, begin, strlen(begin));
    return 0;
}

int template_compile(struct template **out, const char *text, char *const *columns, size_t n_columns,
                     struct err *err) {
    struct template *t = mem_zalloc(1, sizeof *t);
    int r = compile(t, text, columns, n_columns, err);
    if (r < 0) template_free(t);
    else *out = t;
    return r;
}

void template_free(struct template *t) {
    if (!t) return;
    for (size_t i = 0; i < t->n; i++) {
        free(t->segments[i].text);
        free(t->segments[i].whole);
    }
    free(t->segments);
    free(t);
}

bool template_has_columns(const struct template *t) {
    for (size_t i = 0; i < t->n; i++)
        if (t->segments[i].is_column) return true;
    return false;
}

static void append_cell(const struct segment *s, struct buf *out, const char *cell) {
    size_t n = strlen(cell), len;
    if (s->filter == FILTER_TRIM) {
        while (n > 0 && isspace((unsigned char)*cell)) cell++, n--;
        while (n > 0 && isspace((unsigned char)cell[n - 1])) n--;
    }
    if (s->max_chars) {
        size_t bytes = 0;
        for (int64_t i = 0; i < s->max_chars && bytes < n; i++, bytes += len) utf8_decode(cell + bytes, n - bytes, &len);
        n = bytes;
    }
    if (s->filter == FILTER_JSON) buf_put_json(out, cell, n);
    else buf_append(out, cell, n);
}

int template_render(const struct template *t, struct buf *out, template_cell *cell, void *arg, struct err *err) {
    for (size_t i = 0; i < t->n; i++) {
        const struct segment *s = &t->segments[i];
        if (!s->is_column) {
            buf_append(out, s->text, s->n);
            continue;
        }
        const char *value = s->whole ? cell(arg, s->whole) : NULL;
        if (value) { /* columns were not known when it was compiled: the whole is a name */
            buf_puts(out, value);
            continue;
        }
        value = cell(arg, s->text);
        if (!value) return err_set(err, E_PARSE, "the row has no \"%s\", which the template wants", s->text);
        append_cell(s, out, value);
    }
    return out->full ? err_set(err, E_RANGE, "the prompt is too long") : 0;
}
