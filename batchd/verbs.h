/* verbs.h - the commands: what they are called, what help says, what runs them. */
#ifndef BATCHD_BATCHD_VERBS_H
#define BATCHD_BATCHD_VERBS_H

#include "batchd/options.h"

struct verb_def {
    const char *name;
    const char *arguments;        /* behind the verb, as help shows it */
    const char *summary;          /* one line */
    const char *text;             /* paragraphs */
    const char *examples;         /* lines of shell */
    int exits[20];                /* codes it ends with, 0 first; -1 ends the list */
    size_t min_words, max_words;
    int (*run)(const struct args *args); /* returns the exit code */
};

extern const struct verb_def verbs[N_VERBS]; /* in the order of enum verb */

/* The verb of that name, or VERB_NONE. */
enum verb verb_find(const char *name);

/* The verb nearest to a name that is none, or NULL. */
const char *verb_suggest(const char *name);

void verbs_print(FILE *out);                 /* the overview */
void verb_print_help(FILE *out, enum verb v); /* all about one */

int cmd_submit(const struct args *args);
int cmd_run(const struct args *args);
int cmd_serve(const struct args *args);
int cmd_status(const struct args *args);
int cmd_wait(const struct args *args);
int cmd_cancel(const struct args *args);
int cmd_results(const struct args *args);
int cmd_export(const struct args *args);
int cmd_sql(const struct args *args);
int cmd_models(const struct args *args);
int cmd_tokenize(const struct args *args);
int cmd_bench(const struct args *args);
int cmd_eval(const struct args *args);
int cmd_doctor(const struct args *args);
int cmd_version(const struct args *args);
int cmd_help(const struct args *args);

#endif
