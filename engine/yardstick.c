/* yardstick.c - engine.h's measurements, which run on the engine thread. */
#include "engine/engine_call.h"
#include "engine/model/measure.h"

struct matmul_rate {
    int32_t n_rows;
    double seconds, rows_per_s;
};

static int matmul_rate(struct model *m, struct runner *r, void *arg, struct err *err) {
    struct matmul_rate *q = arg;
    return runner_matmul_rate(r, q->n_rows, q->seconds, &q->rows_per_s, err);
}

int engine_matmul_rate(struct engine *e, int32_t n_rows, double seconds, double *rows_per_s, struct err *err) {
    struct matmul_rate q = {.n_rows = n_rows, .seconds = seconds};
    int r = engine_call(e, matmul_rate, &q, err);
    if (r == 0) *rows_per_s = q.rows_per_s;
    return r;
}

static int profile(struct model *m, struct runner *r, void *arg, struct err *err) {
    measure_profile(arg, m);
    return 0;
}

int engine_profile(struct engine *e, struct engine_profile *out, struct err *err) {
    return engine_call(e, profile, out, err);
}

static int roof(struct model *m, struct runner *r, void *arg, struct err *err) {
    runner_note_tokens(r, false); /* what is measured brings tokens of its own to the device */
    int e = measure_roof(arg, m, err);
    runner_note_tokens(r, true);
    return e;
}

int engine_measure_roof(struct engine *e, struct engine_roof *out, struct err *err) {
    return engine_call(e, roof, out, err);
}
