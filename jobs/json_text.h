/* json_text.h - JSON as text that keeps numbers readable. */
#ifndef BATCHD_JOBS_JSON_TEXT_H
#define BATCHD_JOBS_JSON_TEXT_H

#include <jansson.h>

/* Compact JSON of any value; a real has the fewest digits that read back as the same number,
 * where jansson's own text has 17: 0.1 is "0.1". The caller's to free. */
char *json_text(const json_t *v);

#endif
