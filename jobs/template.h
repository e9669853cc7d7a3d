/* template.h - prompts from columns: "Summarise: {text}".
 *
 *   {name}       the column, as it is          {{ and }}   braces
 *   {name|trim}  without outer white space     {name|json} as a JSON string
 *   {name:500}   its first 500 characters
 *
 * Substituted text is never looked at again. Immutable once compiled. Needs no
 * more than base, since the SQLite extension renders prompts too. */
#ifndef BATCHD_JOBS_TEMPLATE_H
#define BATCHD_JOBS_TEMPLATE_H

#include "base/buf.h"
#include "base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct template;

/* columns NULL: any name will do (JSONL). E_USAGE: an unknown column, with the nearest
 * one, or braces that do not match. */
int template_compile(struct template **out, const char *text, char *const *columns, size_t n_columns,
                     struct err *err);
void template_free(struct template *t); /* NULL is fine */

/* Is there a column in it, or does it say the same of every row? */
bool template_has_columns(const struct template *t);

/* The text of a column, or NULL when the row has none: then E_PARSE. */
typedef const char *template_cell(void *arg, const char *name);

int template_render(const struct template *t, struct buf *out, template_cell *cell, void *arg, struct err *err);

#endif
