/* cmd_tokenize.c - batchd tokenize: lines of text to arrays of token ids, and back. */
#include "base/log.h"
#include "batchd/command.h"
#include "batchd/exit.h"
#include "batchd/verbs.h"
#include "engine/engine.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

struct text_line { /* what a line asks for */
    const char *text;
    size_t n;
    bool add_special;
    json_t *root; /* owns text, where the line is JSON */
};

static int parse_object(struct text_line *out, const char *line, size_t n, struct err *err) {
    json_error_t e;
    json_t *root = json_loadb(line, n, JSON_ALLOW_NUL, &e);
    const json_t *text = json_object_get(root, "text"), *special = json_object_get(root, "add_special");
    if (!root) err_set(err, E_PARSE, "not JSON: %s", e.text);
    else if (!json_is_string(text)) err_set(err, E_PARSE, "no string \"text\" in the object");
    else if (special && !json_is_boolean(special)) err_set(err, E_PARSE, "\"add_special\" is not true or false");
    else {
        *out = (struct text_line){json_string_value(text), json_string_length(text), json_is_true(special), root};
        return 0;
    }
    json_decref(root);
    return E_PARSE;
}

static void print_ids(const struct token_list *ids) {
    putchar('[');
    for (size_t i = 0; i < ids->n; i++) printf("%s%" PRId32, i ? ", " : "", ids->ids[i]);
    puts("]");
}

static int encode_line(const struct tokenizer *tok, const char *line, size_t n, const struct args *args, struct err *err) {
    struct text_line t = {.text = line, .n = n};
    struct token_list ids = {0};
    if (args->jsonl && parse_object(&t, line, n, err) < 0) return E_PARSE;
    struct encode_options o = {.add_special = t.add_special, .parse_special = true};
    int r = tokenizer_encode(tok, &ids, t.text, t.n, &o, err);
    if (r == 0) print_ids(&ids);
    token_list_clear(&ids);
    json_decref(t.root);
    return r;
}

static int read_ids(struct token_list *out, const char *line, size_t n, const struct tokenizer *tok, struct err *err) {
    json_error_t e;
    json_t *root = json_loadb(line, n, 0, &e), *id;
    size_t i;
    int r = 0;
    if (!json_is_array(root)) r = err_set(err, E_PARSE, "not a JSON array of ids");
    json_array_foreach(root, i, id) {
        json_int_t value = json_integer_value(id);
        if (!json_is_integer(id) || value < 0 || (size_t)value >= tokenizer_n_ids(tok)) {
            r = err_set(err, E_RANGE, "item %zu is no id of this tokenizer (0 .. %zu)", i + 1, tokenizer_n_ids(tok) - 1);
            break;
        }
        token_list_push(out, (int32_t)value);
    }
    json_decref(root);
    return r;
}

static int decode_line(const struct tokenizer *tok, const char *line, size_t n, const struct args *args, struct err *err) {
    struct token_list ids = {0};
    struct buf text = BUF_INIT(0);
    int r = read_ids(&ids, line, n, tok, err);
    if (r == 0) {
        tokenizer_decode(tok, &text, ids.ids, ids.n, false);
        if (args->jsonl) command_print_json(json_pack("{s:s%}", "text", text.data ? text.data : "", text.n));
        else {
            fwrite(text.data ? text.data : "", 1, text.n, stdout);
            putchar('\n');
        }
    }
    buf_clear(&text);
    token_list_clear(&ids);
    return r;
}

static int each_line(const struct tokenizer *tok, const struct args *args) {
    struct err err = ERR_INIT;
    char *line = NULL;
    size_t cap = 0;
    int code = EXIT_DONE;
    ssize_t n;
    for (int64_t number = 1; code == EXIT_DONE && (n = getline(&line, &cap, stdin)) >= 0; number++) {
        size_t len = (size_t)n;
        if (len > 0 && line[len - 1] == '\n') line[--len] = '\0';
        int r = args->decode ? decode_line(tok, line, len, args, &err) : encode_line(tok, line, len, args, &err);
        if (r == 0) continue;
        log_error("standard input, line %" PRId64 ": %s", number, err.text);
        code = EXIT_DATA;
    }
    if (code == EXIT_DONE && ferror(stdin)) {
        log_error("cannot read standard input: %s", strerror(errno));
        code = EXIT_INPUT;
    }
    free(line);
    return code;
}

int cmd_tokenize(const struct args *args) {
    struct err err = ERR_INIT;
    struct tokenizer *tok = NULL;
    char *folder = NULL;
    int code = command_model_folder(&folder, args);
    if (code == EXIT_DONE) code = tokenizer_open(&tok, folder, &err) < 0 ? exit_with(ABOUT_MODEL, &err) : each_line(tok, args);
    tokenizer_close(tok);
    free(folder);
    return code;
}
