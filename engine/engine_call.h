/* engine_call.h - a function on the engine thread, between steps. Private to engine/. */
#ifndef BATCHD_ENGINE_ENGINE_CALL_H
#define BATCHD_ENGINE_ENGINE_CALL_H

#include "engine/engine.h"
#include "engine/model/model.h"

typedef int engine_call_fn(struct model *m, struct runner *r, void *arg, struct err *err);

/* What fn returns, with its error; E_DEVICE when the engine has stopped. Waits; only while no
 * request is in flight. */
int engine_call(struct engine *e, engine_call_fn *fn, void *arg, struct err *err);

#endif
