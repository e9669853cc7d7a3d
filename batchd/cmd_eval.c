/* cmd_eval.c - batchd eval perplexity: what a text's tokens cost a model. */
#include "base/file.h"
#include "base/log.h"
#include "base/utf8.h"
#include "batchd/command.h"
#include "batchd/engine_flags.h"
#include "batchd/exit.h"
#include "batchd/verbs.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { WINDOW = 256, MAX_CHARS = 5000, MAX_TEXT = 1 << 28 };

/* The bytes of the first `max` characters; an error where they are not UTF-8. */
static int first_characters(size_t *out, const char *text, size_t n, int64_t max, struct err *err) {
    size_t at = 0, len;
    for (int64_t i = 0; i < max && at < n; i++, at += len)
        if (utf8_decode(text + at, n - at, &len) < 0)
            return err_set(err, E_PARSE, "byte %zu is not UTF-8", at);
    *out = at;
    return 0;
}

static int read_ids(struct token_list *ids, const struct tokenizer *tok, const struct args *args, struct err *err) {
    char *text;
    size_t n;
    int r = file_read(args->text, MAX_TEXT, &text, &n, err);
    if (r < 0) return r;
    r = first_characters(&n, text, n, args->max_chars ? args->max_chars : MAX_CHARS, err);
    if (r == 0) r = tokenizer_encode(tok, ids, text, n, &(struct encode_options){0}, err);
    free(text);
    return r < 0 ? err_wrap(err, "%s", args->text) : 0;
}

/* What the post-processor puts in front of an empty text, or -1. */
static int read_bos(int32_t *bos, const struct tokenizer *tok, struct err *err) {
    struct token_list ids = {0};
    int r = tokenizer_encode(tok, &ids, "", 0, &(struct encode_options){.add_special = true}, err);
    *bos = r == 0 && tokenizer_adds_bos(tok) && ids.n > 0 ? ids.ids[0] : -1;
    token_list_clear(&ids);
    return r;
}

static void show(const struct engine *e, const struct args *args, const struct engine_perplexity *p, int32_t window) {
    const char *quantization = args->quantization ? args->quantization : "none";
    if (args->json) {
        command_print_json(json_pack("{s:f, s:f, s:I, s:i, s:s, s:s, s:s}", "nats", p->nats, "perplexity", exp(p->nats),
                                     "tokens", (json_int_t)p->n_tokens, "window", window, "quantization", quantization,
                                     "device", engine_device_name(e), "family", engine_model(e)->family));
        return;
    }
    printf("device       %s\n", engine_device_name(e));
    printf("perplexity   %.4f\n", exp(p->nats));
    printf("nats         %.6f a token\n", p->nats);
    printf("tokens       %" PRId64 ", in windows of %d\n", p->n_tokens, window);
}

static int measure(struct engine *e, const struct args *args) {
    struct err err = ERR_INIT;
    struct token_list ids = {0};
    struct engine_perplexity p;
    int32_t bos, window = args->window ? (int32_t)args->window : WINDOW;
    const struct tokenizer *tok = engine_tokenizer(e);
    int code = EXIT_DONE;
    if (read_bos(&bos, tok, &err) < 0) code = exit_with(ABOUT_MODEL, &err);
    else if (read_ids(&ids, tok, args, &err) < 0) code = exit_with(ABOUT_INPUT, &err);
    else if (engine_perplexity(e, &p, ids.ids, ids.n, window, bos, &err) < 0)
        code = exit_with(err.code == E_USAGE ? ABOUT_FLAGS : err.code == E_RANGE ? ABOUT_INPUT : ABOUT_MODEL, &err);
    else show(e, args, &p, window);
    token_list_clear(&ids);
    return code;
}

static int with_folder(const struct args *args, const char *folder) {
    struct err err = ERR_INIT;
    struct engine_flags flags = {.options = ENGINE_OPTIONS_DEFAULT};
    struct engine *e = NULL;
    int code = engine_flags_read(&flags, args);
    flags.options.model_dir = folder;
    if (code == EXIT_DONE && engine_open(&e, &flags.options, &err) < 0) code = exit_with(ABOUT_MODEL, &err);
    if (code == EXIT_DONE) code = measure(e, args);
    engine_close(e);
    engine_flags_clear(&flags);
    return code;
}

int cmd_eval(const struct args *args) {
    char *folder = NULL;
    if (strcmp(args->words[0], "perplexity") != 0) {
        log_error("eval: no \"%s\"; there is perplexity", args->words[0]);
        return EXIT_USAGE;
    }
    if (!args->text) {
        log_error("eval perplexity needs --text FILE");
        return EXIT_USAGE;
    }
    int code = command_model_folder(&folder, args);
    if (code == EXIT_DONE) code = with_folder(args, folder);
    free(folder);
    return code;
}
