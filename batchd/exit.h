/* exit.h - the exit codes, what they mean, and which one an error leads to.
 *
 * Codes from 64 up are those of sysexits(3), so that cron and systemd know 75 as
 * "try again later". The same error has another code where it is about another
 * thing: a missing input file is 66, a missing job is 4. */
#ifndef BATCHD_BATCHD_EXIT_H
#define BATCHD_BATCHD_EXIT_H

#include "base/err.h"

enum {
    EXIT_DONE = 0,
    EXIT_FAILED = 1,
    EXIT_USAGE = 2,
    EXIT_PARTIAL = 3,
    EXIT_NOT_FOUND = 4,
    EXIT_CANCELLED = 5,
    EXIT_DATA = 65,
    EXIT_INPUT = 66,
    EXIT_MODEL = 69,
    EXIT_ENGINE = 70,
    EXIT_OUTPUT = 73,
    EXIT_IO = 74,
    EXIT_TEMPORARY = 75,
    EXIT_PERMISSION = 77,
    EXIT_CONFIG = 78,
    EXIT_TIMEOUT = 124,
    EXIT_SIGINT = 130,
    EXIT_SIGTERM = 143,
};

/* What the error is about. */
enum exit_about {
    ABOUT_FLAGS,    /* what was typed */
    ABOUT_DATABASE, /* opening or using the database */
    ABOUT_INPUT,    /* the file of prompts */
    ABOUT_OUTPUT,   /* a file that is written */
    ABOUT_MODEL,    /* a model folder, a device */
};

int exit_code(enum exit_about about, int error); /* error: E_*, negative */

/* Show the error and return its exit code. */
int exit_with(enum exit_about about, const struct err *err);

const char *exit_meaning(int code); /* NULL: not one of ours */

#endif
