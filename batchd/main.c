/* main.c - where the program begins: read the command line, set up messages, run
 * the verb. Everything a verb does is in its cmd_*.c. */
#include "base/log.h"
#include "batchd/command.h"
#include "batchd/exit.h"
#include "batchd/options.h"
#include "batchd/signals.h"
#include "batchd/verbs.h"
#include "batchd/version.h"

#include <errno.h>
#include <fcntl.h>
#include <locale.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* A file that is opened where standard output or error is closed would take its number, and
 * then what is printed. These give an error instead, as closed ones do. */
static void hold_standard_files(void) {
    int fd;
    do fd = open("/dev/null", fcntl(STDIN_FILENO, F_GETFD) < 0 ? O_WRONLY : O_RDONLY);
    while (fd >= 0 && fd <= STDERR_FILENO);
    if (fd >= 0) close(fd);
}

/* A full disk under `batchd results > file` shows only when the last bytes go out. */
static int flush_stdout(int code) {
    bool flushed = fflush(stdout) == 0;
    if (code != EXIT_DONE || (flushed && !ferror(stdout))) return code;
    if (flushed) return log_error("cannot write to standard output"), EXIT_IO; /* the reason has gone by */
    log_error("cannot write to standard output: %s", strerror(errno));
    return errno == ENOSPC ? EXIT_TEMPORARY : EXIT_IO;
}

static int run_verb(const struct args *args) {
    if (args->version) return printf("batchd %s\n", VERSION_TEXT), EXIT_DONE;
    if (args->help && args->verb != VERB_NONE) return verb_print_help(stdout, args->verb), EXIT_DONE;
    if (args->help) return verbs_print(stdout), EXIT_DONE;
    if (args->verb != VERB_NONE) return verbs[args->verb].run(args);
    verbs_print(stderr);
    return EXIT_USAGE;
}

int main(int argc, char **argv) {
    struct err err = ERR_INIT;
    struct args args;
    hold_standard_files();
    setlocale(LC_CTYPE, "");
    command_quiet_pipe();
    signals_guard_files();
    int code;
    if (args_parse(&args, argc, argv, &err) < 0) {
        code = exit_with(ABOUT_FLAGS, &err);
    } else {
        if (args.quiet) log_set_level(LOG_ERROR);
        else if (args.verbose) log_set_level(LOG_DEBUG);
        log_set_json(args.log_format && strcmp(args.log_format, "json") == 0);
        code = flush_stdout(run_verb(&args));
    }
    args_clear(&args);
    return code;
}
