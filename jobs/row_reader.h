/* row_reader.h - the rows of an input file, with line and byte of each.
 *
 * A bad row is a reject with code and message; reading resumes at the physical line
 * after the one where the row began, so that one stray quote costs one row. Where a
 * file has one column, nothing tells a row from a piece of one: there a bad quote ends
 * the reading (row_reader_is_lost), and a row of bad bytes is skipped whole. CSV is
 * RFC 4180 as libcsv reads it in strict mode, with two deviations: blanks around an
 * unquoted field are trimmed, and blank lines are skipped. */
#ifndef BATCHD_JOBS_ROW_READER_H
#define BATCHD_JOBS_ROW_READER_H

#include "jobs/jobs.h"
#include "jobs/source.h"

#include <jansson.h>

enum { ROW_MAX_FIELD = 16 << 20, ROW_MAX_COLUMNS = 4096 };

struct input_row { /* borrowed until the next call */
    int64_t line, byte;
    char **cells;       /* CSV, TSV, lines */
    size_t n_cells;
    const json_t *json; /* JSONL: an object or a string */
    const char *text;   /* JSONL: the line that holds it, without its end; not terminated */
    size_t text_bytes;
};

struct row_reader;

enum read_result { READ_END = 0, READ_ROW = 1, READ_REJECT = 2 };

struct row_reader *row_reader_new(const struct source *source, enum input_format format);
void row_reader_free(struct row_reader *r);

/* A row, a reject, or the end. From the second row of a CSV file on, rows must have as
 * many cells as the first one. */
enum read_result row_reader_next(struct row_reader *r, struct input_row *row, struct reject *reject);

/* Which format a file has, by its extension, else by its first character. */
enum input_format row_format(const struct source *source, enum input_format asked);

/* After a reject: is it unknown where the next row begins, or is there none? */
bool row_reader_is_lost(const struct row_reader *r);

int64_t row_reader_byte(const struct row_reader *r); /* how far it has read */

#endif
