/* cmd_serve.c - batchd serve: the daemon. */
#include "batchd/command.h"
#include "batchd/engine_flags.h"
#include "batchd/exit.h"
#include "batchd/model_arg.h"
#include "batchd/paths.h"
#include "batchd/serving.h"
#include "batchd/signals.h"
#include "batchd/verbs.h"

#include <stdlib.h>

enum { LOCK_WAIT_MS = 5000 };

/* The model of jobs that name none: --model, else the demo model if there is one. */
static int default_model(char **out, struct store *s, const struct args *args) {
    struct err err = ERR_INIT;
    if (args->model) return model_arg_check(out, s, args->model, &err) < 0 ? exit_with(ABOUT_MODEL, &err) : EXIT_DONE;
    *out = paths_demo_model();
    return EXIT_DONE;
}

int cmd_serve(const struct args *args) {
    struct store *store = NULL;
    struct engine_flags engine = {.options = ENGINE_OPTIONS_DEFAULT};
    char *model = NULL;
    int code = command_open(&store, args, STORE_CREATE);
    if (code == EXIT_DONE) code = default_model(&model, store, args);
    if (code == EXIT_DONE) code = engine_flags_read(&engine, args);
    if (code == EXIT_DONE) {
        signals_listen();
        struct daemon_options o = {.db_path = store_path(store),
                                   .engine = engine.options,
                                   .default_model = model,
                                   .once = args->once,
                                   .lock_wait_ms = LOCK_WAIT_MS};
        code = serve_until_end(&o, store, args, NULL);
    }
    engine_flags_clear(&engine);
    store_close(store);
    free(model);
    return code;
}
