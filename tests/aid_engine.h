/* aid_engine.h - an engine on the device that is tested, and requests for it. */
#ifndef BATCHD_TESTS_AID_ENGINE_H
#define BATCHD_TESTS_AID_ENGINE_H

#include "tests/unit.h"

#include "engine/engine.h"

static const char demo[] = "tests/models/demo";

bool is_cuda(void); /* the device is a GPU */

struct run { /* zeros: look-ahead 0, else what an engine has where no option says */
    const char *dir, *dtype, *load_format; /* load_format NULL: weights from files */
    const char *kv_dtype;                  /* NULL = as dtype */
    const char *quantization;              /* NULL = none */
    int threads, rows, lookahead, seqs;
    int64_t kv_bytes, max_len;
    enum { ALONE, TOGETHER, SHUFFLED } order; /* of the requests, where there is a set of them */
    FILE *step_log;
};

/* Fails the test where it cannot be opened; skips it on a GPU without bfloat16. */
struct engine *open_engine(const struct run *run);

/* The next completion, which must come within two minutes. */
struct engine_completion *collect(struct engine *e);

/* The text's tokens, greedy. */
struct engine_request *text_request(struct engine *e, const char *text);

#endif
