/* verbs.c - see verbs.h. The table is the manual: `batchd help VERB` prints it, and
 * the manual page (scripts/manual) is made of what it prints. */
#include "batchd/verbs.h"
#include "base/suggest.h"
#include "batchd/exit.h"

#include <string.h>

const struct verb_def verbs[N_VERBS] = {
    [VERB_SUBMIT] =
        {"submit", "FILE|- [flags]", "load a file of prompts as a job", .run = cmd_submit,
         .text =
             "Reads CSV, TSV, JSONL or plain lines, checks every row, and stores them as one job,\n"
             "or nothing at all when a line is bad. A daemon (`batchd serve`) does the work.\n"
             "\n"
             "CSV needs a header. The prompt is --template, or the column --prompt-col, or\n"
             "the column `prompt`, or the only column. JSONL lines hold \"prompt\" or \"messages\",\n"
             "an optional \"id\", and sampling keys (max_tokens, temperature, ...) of their own row,\n"
             "or all of that as the \"body\" of an OpenAI batch file, which loads as it is.\n"
             "\n"
             "With --key the command may be repeated: the job is stored once.\n",
         .examples =
             "batchd submit reviews.csv --template 'Summarise: {text}' --max-tokens 64 -m ./models/qwen\n"
             "batchd submit --key \"night-$(date +%F)\" --wait -q today.jsonl -m ./models/qwen\n"
             "job=$(batchd submit --parsable prompts.jsonl -m ./models/qwen)\n",
         .exits = {0, 1, 2, 3, 5, 65, 66, 69, 74, 75, 77, 78, 124, 130, 143, -1}, .min_words = 1, .max_words = 1},
    [VERB_RUN] =
        {"run", "FILE|- [-o OUT] [flags]", "submit, work and export in one process", .run = cmd_run,
         .text =
             "Loads the file as `submit` does, works on it here and now, and writes OUT when all\n"
             "rows are finished. Interrupted, it is continued by the same command: the job is found\n"
             "by the content of the file and the settings. Where a daemon serves the database, the\n"
             "daemon does the work and `run` waits for it; should that end first, `run` goes on itself.\n",
         .examples = "batchd run reviews.csv --prompt-col text -m ./models/qwen -o out.jsonl\n"
                     "batchd run reviews.csv --prompt-col text -m ./models/qwen -o out.jsonl   # again: continues\n"
                     "batchd run openai-batch.jsonl -m ./models/qwen -o out.jsonl   # a file made for OpenAI's batch interface\n",
         .exits = {0, 1, 2, 3, 5, 65, 66, 69, 70, 73, 74, 75, 77, 78, 130, 143, -1}, .min_words = 1, .max_words = 1},
    [VERB_SERVE] =
        {"serve", "[flags]", "the daemon: work on whatever is submitted", .run = cmd_serve,
         .text =
             "Runs in the foreground, one process per database. It loads the model that the next\n"
             "job names and swaps when another is needed. SIGTERM or Ctrl-C: no new rows, those\n"
             "that run may finish within 10 seconds, everything finished is committed, exit 0; a\n"
             "second signal ends it at once. Killed at any moment it loses only rows in flight,\n"
             "which the next daemon computes again.\n"
             "\n"
             "A second one on the same database waits 5 seconds for the first to go, then exits with\n"
             "75; with --once -q it says nothing then, so that cron may start one every few minutes.\n",
         .examples = "batchd serve\n"
                     "batchd serve --once -q                 # for cron: until the queue is empty\n"
                     "batchd serve -m ./models/qwen --max-num-seqs 32 --kv-cache-memory-bytes 2G\n",
         .exits = {0, 2, 4, 69, 70, 74, 75, 77, 78, 130, 143, -1}, .min_words = 0, .max_words = 0},
    [VERB_STATUS] =
        {"status", "[JOB] [flags]", "jobs and how far they are", .run = cmd_status,
         .text = "Without JOB a table of all jobs, and whether a daemon is alive; with JOB, or --key,\n"
                 "one job in full. States: loading queued running done partial failed cancelled.\n",
         .examples = "batchd status\nbatchd status 7 --watch\nbatchd status --json | jq '.jobs[] | select(.state==\"running\")'\n",
         .exits = {0, 2, 4, 74, 75, 77, 78, 130, 143, -1}, .min_words = 0, .max_words = 1},
    [VERB_WAIT] =
        {"wait", "JOB... [flags]", "wait until jobs are final", .run = cmd_wait,
         .text = "Ends with the job's exit code: 0 done, 3 some rows failed or were rejected, 1 failed,\n"
                 "5 cancelled; of several jobs the worst one's.\n",
         .examples = "batchd wait 7\nbatchd wait --key night-2026-11-20 --timeout 6h\n",
         .exits = {0, 1, 2, 3, 4, 5, 74, 75, 77, 78, 124, 130, 143, -1}, .min_words = 1, .max_words = 1000},
    [VERB_CANCEL] =
        {"cancel", "JOB... [flags]", "stop jobs; finished rows stay", .run = cmd_cancel,
         .text = "Rows that are finished keep their results; no further rows are written. A job that\n"
                 "is cancelled already is left as it is; one that is done cannot be cancelled (exit 1).\n",
         .examples = "batchd cancel 7\n",
         .exits = {0, 1, 2, 4, 74, 75, 77, 78, -1}, .min_words = 1, .max_words = 1000},
    [VERB_RESULTS] =
        {"results", "JOB [flags]", "print finished rows", .run = cmd_results,
         .text = "Works while the job runs. On a terminal, control characters in the text are shown\n"
                 "as escapes. --json prints one object a line, as `export` writes them.\n",
         .examples = "batchd results 7 -n 3\nbatchd results 7 --failed\nbatchd results 7 --row 41 --json\n",
         .exits = {0, 2, 4, 74, 75, 77, 78, -1}, .min_words = 1, .max_words = 1},
    [VERB_EXPORT] =
        {"export", "JOB [-o FILE] [flags]", "write the results as JSONL or CSV", .run = cmd_export,
         .text = "All finished rows in the order of the input, failed ones with an error and no\n"
                 "completion. The file appears whole or not at all. Without -o: standard output.\n"
                 "--format openai: lines as OpenAI's batch interface and vLLM's run_batch write them, a\n"
                 "chat completion where the row has messages, else a text completion.\n",
         .examples = "batchd export 7 -o out.jsonl\nbatchd export --key night-2026-11-20 -o out.csv --only-ok\n"
                     "batchd export 7 --format openai | jq -r '.custom_id + \": \" + .response.body.choices[0].message.content'\n",
         .exits = {0, 2, 4, 73, 74, 75, 77, 78, -1}, .min_words = 1, .max_words = 1},
    [VERB_SQL] =
        {"sql", "[--write] [ARGUMENTS]", "the sqlite3 shell on the database", .run = cmd_sql,
         .text = "Starts the stock sqlite3 with the extension loaded, so that the view `results` shows\n"
                 "text. Read-only unless --write is given. What is not a flag of batchd goes to sqlite3,\n"
                 "and the exit code is sqlite3's.\n"
                 "Views: jobs metrics failures rejects results.\n",
         .examples = "batchd sql \"SELECT custom_id, completion FROM results WHERE job_id = 7 LIMIT 5\"\n"
                     "batchd sql -csv -header \"SELECT * FROM metrics\"\n",
         .exits = {0, 1, 2, 4, 74, 75, 77, 78, -1}, .min_words = 0, .max_words = 1000000},
    [VERB_MODELS] =
        {"models", "list | show NAME|DIR | add DIR --name NAME | check [NAME] | remove NAME", "names for model folders", .run = cmd_models,
         .text = "add reads the folder's config.json and weights' headers and records the SHA-256 of every\n"
                 "file that the engine reads; check computes them again (without NAME: of all models) and\n"
                 "names what has changed. A job that names a model runs on the files that were added or\n"
                 "not at all, and notes their hash: the column `weights` of the views jobs and results.\n"
                 "remove forgets the name; the folder stays.\n"
                 "\n"
                 "show takes a name or a folder: family and shape, tokenizer, stop ids, what sampling the\n"
                 "model asks for, and how many tokens GPUs of several sizes hold beside its weights under\n"
                 "each quantization, by the rule by which the engine divides memory.\n",
         .examples = "batchd models add ~/models/Qwen2.5-0.5B --name qwen\nbatchd models check\nbatchd models remove qwen\n",
         .exits = {0, 1, 2, 4, 65, 69, 74, 75, 77, 78, -1}, .min_words = 1, .max_words = 2},
    [VERB_TOKENIZE] =
        {"tokenize", "-m DIR [--jsonl] [--decode]", "text to token ids and back", .run = cmd_tokenize,
         .text =
             "Needs tokenizer.json alone. Reads standard input line by line and prints one JSON\n"
             "array of ids a line. No BOS unless \"add_special\" is true; special tokens written out\n"
             "in the text become their ids (in prompts of jobs only with --allow-special-tokens).\n"
             "\n"
             "--decode goes back: each line is a JSON array of ids; the exact text is printed and a\n"
             "newline. Text may hold newlines of its own: --jsonl --decode prints objects instead.\n",
         .examples = "echo 'Once upon a time' | batchd tokenize -m ./models/stories260K\n"
                     "echo '[403, 407]' | batchd tokenize -m ./models/stories260K --decode\n",
         .exits = {0, 2, 4, 65, 66, 69, 74, 75, 77, 78, -1}, .min_words = 0, .max_words = 0},
    [VERB_BENCH] =
        {"bench", "throughput -m DIR | kernels [PART...] | tune -m DIR [flags]", "measure the engine alone", .run = cmd_bench,
         .text =
             "throughput: unique random prompts, end-of-text ignored, no database. First the device's copy\n"
             "bandwidth and matrix rate are measured, and after the run the roof that they put on\n"
             "this model and shape stands beside output tokens/s, with the fraction reached; also\n"
             "total tokens/s, steps, the time that the device was idle between steps and the shares\n"
             "that each class of operations had of the rest, and the rate of the model's matrix\n"
             "products alone at as many rows as there are sequences.\n"
             "docs/benchmarks.md has the arithmetic.\n"
             "\n"
             "kernels: each operation of a forward pass by itself, on random numbers at the sizes of\n"
             "well-known models, without a model folder: microseconds, GB/s, TFLOP/s, and the share\n"
             "of what the device could do. PART is linear, experts, attention, rows or\n"
             "sample. --quantization: of the weights that linear and experts multiply with; GB/s are\n"
             "then those of their codes.\n"
             "\n"
             "tune: on a GPU, all ways that cuBLASLt knows to make the model's products are timed, at\n"
             "1, 2, 4 ... rows and at the most of a step. The quickest one whose bits are right is\n"
             "remembered in ~/.cache/batchd (or $XDG_CACHE_HOME/batchd), for this GPU and all later\n"
             "runs. Without it a shape is tuned when it has been used 32 times. Answers stay the\n"
             "same. The CPU has nothing to tune.\n",
         .examples = "batchd bench throughput -m ./models/qwen --input-len 128 --output-len 128 --num-prompts 64\n"
                     "batchd bench throughput -m ./config-only --load-format dummy --json\n"
                     "batchd bench kernels linear attention --shape llama-3.1-8b --device cuda\n"
                     "batchd bench tune -m ./models/qwen --max-num-batched-tokens 4096\n",
         .exits = {0, 2, 4, 69, 70, 74, 75, 77, 78, 130, 143, -1}, .min_words = 1, .max_words = 6},
    [VERB_EVAL] =
        {"eval", "perplexity -m DIR --text FILE [flags]", "measure how good a model's numbers are", .run = cmd_eval,
         .text = "perplexity: the text's tokens in windows that do not overlap, each begun with the model's\n"
                 "BOS, which is not scored (a tokenizer that adds none: the window's first token is not\n"
                 "scored). Prints e to the mean of -log(probability) over all tokens that are. For the\n"
                 "cost of a --quantization or --dtype.\n",
         .examples = "batchd eval perplexity -m ./models/qwen --text wiki.txt\n"
                     "batchd eval perplexity -m ./models/qwen --text wiki.txt --quantization nf4-dq --json\n",
         .exits = {0, 2, 4, 65, 66, 69, 70, 74, 75, 77, 78, -1}, .min_words = 1, .max_words = 1},
    [VERB_DOCTOR] =
        {"doctor", "[flags]", "look for what could go wrong", .run = cmd_doctor,
         .text = "One line a check: OK, WARN or FAIL, and what to do about it. Exit 1 when one fails.\n",
         .examples = "batchd doctor\n",
         .exits = {0, 1, 2, 78, -1}, .min_words = 0, .max_words = 0},
    [VERB_VERSION] =
        {"version", "[--json]", "the version", .run = cmd_version,
         .text = "The version of the program, and with --json of the libraries it runs with.\n",
         .examples = "batchd version --json\n", .exits = {0, 2, -1}, .min_words = 0, .max_words = 0},
    [VERB_HELP] =
        {"help", "[COMMAND]", "what a command does, its flags, exit codes, examples", .run = cmd_help,
         .text = "Without COMMAND, all commands.\n",
         .examples = "batchd help submit\n", .exits = {0, 2, -1}, .min_words = 0, .max_words = 1},
};

enum verb verb_find(const char *name) {
    for (int v = 0; v < N_VERBS; v++)
        if (strcmp(verbs[v].name, name) == 0) return (enum verb)v;
    return VERB_NONE;
}

const char *verb_suggest(const char *name) {
    const char *names[N_VERBS];
    for (int v = 0; v < N_VERBS; v++) names[v] = verbs[v].name;
    return suggest(name, names, N_VERBS);
}

void verbs_print(FILE *out) {
    fprintf(out, "batchd - prompts from a file through a language model, results in SQLite\n\n"
                 "Usage: batchd [flags] COMMAND [arguments]\n\nCommands:\n");
    for (int v = 0; v < N_VERBS; v++) fprintf(out, "  %-10s %s\n", verbs[v].name, verbs[v].summary);
    fprintf(out, "\n");
    options_print(out, VERB_NONE);
    fprintf(out, "\nbatchd help COMMAND says more. Begin with: batchd run prompts.csv -m DIR -o out.jsonl\n");
}

static void print_indented(FILE *out, const char *lines) {
    while (*lines) {
        size_t n = strcspn(lines, "\n");
        fprintf(out, "  %.*s\n", (int)n, lines);
        lines += n + (lines[n] == '\n');
    }
}

void verb_print_help(FILE *out, enum verb v) {
    const struct verb_def *d = &verbs[v];
    fprintf(out, "batchd %s - %s\n\nUsage: batchd %s %s\n\n%s\n", d->name, d->summary, d->name, d->arguments, d->text);
    options_print(out, v);
    fprintf(out, "\nExit codes:\n");
    for (const int *code = d->exits; *code >= 0; code++) fprintf(out, "  %3d  %s\n", *code, exit_meaning(*code));
    fprintf(out, "\nExamples:\n");
    print_indented(out, d->examples);
}
