/* exit.c - see exit.h. */
#include "batchd/exit.h"
#include "base/log.h"

#include <stddef.h>

static int code_of_database(int error) {
    switch (error) {
    case E_NOT_FOUND: return EXIT_NOT_FOUND;
    case E_USAGE: return EXIT_USAGE;
    default: return EXIT_IO;
    }
}

static int code_of_input(int error) {
    switch (error) {
    case E_USAGE: return EXIT_USAGE;
    case E_PARSE:
    case E_RANGE:
    case E_UNSUPPORTED: return EXIT_DATA;
    default: return EXIT_INPUT;
    }
}

int exit_code(enum exit_about about, int error) {
    switch (error) {
    case E_OK: return EXIT_DONE;
    case E_FULL:
    case E_BUSY:
    case E_FENCED: return EXIT_TEMPORARY;
    case E_PERMISSION: return EXIT_PERMISSION;
    case E_CONFIG: return EXIT_CONFIG;
    case E_INTERRUPTED: return EXIT_SIGINT;
    case E_FAIL: return EXIT_FAILED;
    default: break;
    }
    switch (about) {
    case ABOUT_FLAGS: return EXIT_USAGE;
    case ABOUT_DATABASE: return code_of_database(error);
    case ABOUT_INPUT: return code_of_input(error);
    case ABOUT_OUTPUT: return error == E_IO ? EXIT_IO : EXIT_OUTPUT;
    case ABOUT_MODEL: return EXIT_MODEL;
    }
    return EXIT_FAILED;
}

int exit_with(enum exit_about about, const struct err *err) {
    log_error("%s", err->text);
    return exit_code(about, err->code);
}

const char *exit_meaning(int code) {
    static const struct {
        int code;
        const char *meaning;
    } table[] = {
        {EXIT_DONE, "success"},
        {EXIT_FAILED, "failed: the job, or an internal error"},
        {EXIT_USAGE, "the command line makes no sense"},
        {EXIT_PARTIAL, "finished, but some rows failed or lines were rejected"},
        {EXIT_NOT_FOUND, "no such job, model or database"},
        {EXIT_CANCELLED, "the job was cancelled"},
        {EXIT_DATA, "the input has bad lines or no rows"},
        {EXIT_INPUT, "the input cannot be read"},
        {EXIT_MODEL, "no usable model or device, or no daemon to wait for"},
        {EXIT_ENGINE, "the engine failed while running; finished rows are saved"},
        {EXIT_OUTPUT, "the output cannot be created, or is there already"},
        {EXIT_IO, "input/output or database error"},
        {EXIT_TEMPORARY, "temporary: another daemon, a lock, a full disk; try again"},
        {EXIT_PERMISSION, "permission denied"},
        {EXIT_CONFIG, "configuration: no model named, one whose files have changed, or a newer database"},
        {EXIT_TIMEOUT, "--timeout is over"},
        {EXIT_SIGINT, "interrupted (Ctrl-C; of serve, a second one); finished rows are saved"},
        {EXIT_SIGTERM, "terminated (SIGTERM; of serve, a second one); finished rows are saved"},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if (table[i].code == code) return table[i].meaning;
    return NULL;
}
