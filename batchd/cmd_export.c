/* cmd_export.c - batchd export: a job's results as a file. */
#include "base/log.h"
#include "batchd/command.h"
#include "batchd/exit.h"
#include "batchd/verbs.h"

#include <inttypes.h>

int cmd_export(const struct args *args) {
    struct err err = ERR_INIT;
    struct store *s = NULL;
    struct job_info job = {0};
    struct export_options o = command_export_options(args);
    int64_t n = 0;
    /* The database remembers which file was a job's own, where it can be written. */
    int code = command_open_or_read(&s, args, STORE_WRITE);
    if (code == EXIT_DONE) code = command_job(&job, s, args, 0);
    if (code == EXIT_DONE && job_export(s, job.job_id, &o, &n, &err) < 0) code = exit_with(ABOUT_OUTPUT, &err);
    if (code == EXIT_DONE && !command_output_is_stdout(args)) log_info("%" PRId64 " row%s written to %s", n, command_s(n), args->output);
    if (code == EXIT_DONE && !job_is_final(&job))
        log_warn("job %" PRId64 " is %s: these are the rows finished so far", job.job_id, job.state);
    job_info_clear(&job);
    store_close(s);
    return code;
}
