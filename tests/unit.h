/* unit.h - what every test program begins with.
 *
 * A program runs all its cases, or those whose name matches its argument, which
 * may hold * and ?. Reports come as TAP where CMOCKA_MESSAGE_OUTPUT says so. */
#ifndef BATCHD_TESTS_UNIT_H
#define BATCHD_TESTS_UNIT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/err.h"

/* The call must give 0; otherwise the test fails with the error's own text. */
#define assert_ok(call, err)                                                         \
    do {                                                                             \
        int result_ = (call);                                                        \
        if (result_ != 0) fail_msg("%s: %d: %s", #call, result_, (err)->text);       \
    } while (0)

/* The call must fail with `code_` and a text that contains `part`. */
#define assert_err(call, code_, part, err)                                           \
    do {                                                                             \
        int result_ = (call);                                                        \
        if (result_ != (code_)) fail_msg("%s: %d, not %d: %s", #call, result_, (code_), (err)->text); \
        if (!strstr((err)->text, (part))) fail_msg("\"%s\" lacks \"%s\"", (err)->text, (part)); \
    } while (0)

/* Folder of outside test data, or NULL: then the case says skip(). */
static inline const char *test_data(void) {
    const char *dir = getenv("BATCHD_TEST_DATA");
    if (!dir || !*dir) dir = "../shared/data";
    FILE *f = fopen(dir, "r");
    if (!f) return NULL;
    fclose(f);
    return dir;
}

/* The device that tests of kernels and engine run on: `make test-gpu` says cuda. */
static inline const char *test_device(void) {
    const char *device = getenv("BATCHD_TEST_DEVICE");
    return device && *device ? device : "cpu";
}

static inline bool test_is_quick(void) {
    return getenv("BATCHD_QUICK") != NULL;
}

#define UNIT_MAIN(tests)                                                             \
    int main(int argc, char **argv) {                                                \
        if (argc > 1) cmocka_set_test_filter(argv[1]);                               \
        return cmocka_run_group_tests(tests, NULL, NULL);                            \
    }

#endif
