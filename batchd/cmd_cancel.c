/* cmd_cancel.c - batchd cancel: stop jobs; finished rows stay. */
#include "base/log.h"
#include "batchd/command.h"
#include "batchd/exit.h"
#include "batchd/verbs.h"

#include <inttypes.h>
#include <string.h>

static int cancel_one(struct store *s, const struct args *args, size_t which) {
    struct err err = ERR_INIT;
    struct job_info job = {0};
    int code = command_job(&job, s, args, which);
    if (code != EXIT_DONE) return code;
    int r = strcmp(job.state, "cancelled") == 0 ? 0 : job_cancel(s, job.job_id, "cancelled by batchd cancel", &err);
    if (r == E_EXISTS) {
        log_error("%s", err.text);
        code = EXIT_FAILED;
    } else if (r < 0) {
        code = exit_with(ABOUT_DATABASE, &err);
    } else {
        log_info("job %" PRId64 " is cancelled; its finished rows stay", job.job_id);
        struct job_info now = {0};
        if (args->json && job_get(s, job.job_id, NULL, &now, NULL) == 0) command_print_json(command_job_json(&now));
        job_info_clear(&now);
    }
    job_info_clear(&job);
    return code;
}

int cmd_cancel(const struct args *args) {
    struct store *s = NULL;
    size_t n = args->key ? 1 : args->n_words;
    int code = command_open(&s, args, STORE_WRITE);
    for (size_t i = 0; i < n && s; i++) {
        int one = cancel_one(s, args, i);
        if (code == EXIT_DONE) code = one;
    }
    store_close(s);
    return code;
}
