/* cmd_version.c - batchd version [--json]. */
#include "batchd/command.h"
#include "batchd/exit.h"
#include "batchd/verbs.h"
#include "batchd/version.h"

#include <gnu/libc-version.h>
#include <jansson.h>
#include <sqlite3.h>
#include <zstd.h>

int cmd_version(const struct args *args) {
    if (!args->json) {
        printf("batchd %s\n", VERSION_TEXT);
        return EXIT_DONE;
    }
    command_print_json(json_pack("{s:s, s:s, s:s, s:s, s:s}", "version", VERSION_TEXT, "compiler", __VERSION__,
                                 "sqlite", sqlite3_libversion(), "zstd", ZSTD_versionString(), "libc",
                                 gnu_get_libc_version()));
    return EXIT_DONE;
}
