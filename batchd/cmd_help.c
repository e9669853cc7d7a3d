/* cmd_help.c - batchd help [COMMAND]. */
#include "base/log.h"
#include "batchd/exit.h"
#include "batchd/verbs.h"

int cmd_help(const struct args *args) {
    if (args->n_words == 0) return verbs_print(stdout), EXIT_DONE;
    enum verb v = verb_find(args->words[0]);
    if (v == VERB_NONE) {
        const char *near = verb_suggest(args->words[0]);
        log_error(near ? "no command \"%s\"; did you mean %s?" : "no command \"%s\"; `batchd help` lists them",
                  args->words[0], near);
        return EXIT_USAGE;
    }
    verb_print_help(stdout, v);
    return EXIT_DONE;
}
