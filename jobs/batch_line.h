/* batch_line.h - a line of the batch files that OpenAI's batch interface and vLLM's run_batch
 * take: {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {...}}.
 * The request is its body; the id stands outside. */
#ifndef BATCHD_JOBS_BATCH_LINE_H
#define BATCHD_JOBS_BATCH_LINE_H

#include "base/err.h"

#include <jansson.h>
#include <stdbool.h>

/* Has it an object `body`, beside custom_id, method or url, and no prompt of its own? A body
 * that is text, or stands alone, is data. */
bool batch_line_is(const json_t *line, const char *prompt_key);

/* Can it be answered, and does its body have what its url asks for? E_UNSUPPORTED: another
 * endpoint or method than are built; E_PARSE. */
int batch_line_check(const json_t *line, const char *prompt_key, struct err *err);

/* The model that the body names, where that is another than `model`, a folder or a name (NULL:
 * none); else NULL. A folder is known by its last part: "org/m" is /models/m. Borrowed. */
const char *batch_line_other_model(const json_t *line, const char *model);

#endif
