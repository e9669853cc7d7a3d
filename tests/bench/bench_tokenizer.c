/* bench_tokenizer.c - time the tokenizer on the lines of a file, with as many threads as asked.
 *
 *   bench_tokenizer MODEL_DIR TEXT_FILE THREADS ROUNDS
 *
 * A line is one text, as a row of a job is; threads take the next 64 of them. Prints one
 * JSON object: seconds of each round, tokens and bytes of one. tests/bench/bench_tokenizer.py
 * runs it beside the Hugging Face library. */
#include "base/clock.h"
#include "base/file.h"
#include "base/mem.h"
#include "engine/engine.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SHARE = 64, MAX_THREADS = 64 };

struct bench {
    struct tokenizer *tok;
    struct text_span *lines;
    const char *text;
    size_t n_lines, bytes;
    _Atomic size_t next, n_tokens;
};

static void encode_share(struct bench *b, size_t first, size_t end) {
    struct encode_options o = {.add_special = true, .parse_special = true};
    struct token_list ids = {0};
    struct err err = ERR_INIT;
    for (size_t i = first; i < end; i++) {
        struct text_span s = b->lines[i];
        if (tokenizer_encode(b->tok, &ids, b->text + s.begin, s.end - s.begin, &o, &err) == 0) continue;
        fprintf(stderr, "line %zu: %s\n", i + 1, err.text);
        exit(1);
    }
    atomic_fetch_add(&b->n_tokens, ids.n);
    token_list_clear(&ids);
}

static void *work(void *arg) {
    struct bench *b = arg;
    for (size_t first; (first = atomic_fetch_add(&b->next, SHARE)) < b->n_lines;)
        encode_share(b, first, first + SHARE < b->n_lines ? first + SHARE : b->n_lines);
    return NULL;
}

static double one_round(struct bench *b, int n_threads) {
    pthread_t threads[MAX_THREADS];
    atomic_store(&b->next, 0);
    atomic_store(&b->n_tokens, 0);
    int64_t start = clock_mono_ns();
    for (int i = 0; i < n_threads; i++) pthread_create(&threads[i], NULL, work, b);
    for (int i = 0; i < n_threads; i++) pthread_join(threads[i], NULL);
    return (double)(clock_mono_ns() - start) / 1e9;
}

static void cut_lines(struct bench *b, size_t n) {
    size_t cap = 0, begin = 0;
    for (size_t i = 0; i <= n; i++) {
        if (i < n && b->text[i] != '\n') continue;
        if (i > begin) {
            if (b->n_lines == cap) b->lines = mem_realloc(b->lines, cap = cap ? cap * 2 : 1024, sizeof *b->lines);
            b->lines[b->n_lines++] = (struct text_span){begin, i};
            b->bytes += i - begin;
        }
        begin = i + 1;
    }
}

int main(int argc, char **argv) {
    struct bench b = {0};
    struct err err = ERR_INIT;
    char *text;
    size_t n;
    int n_threads = argc == 5 ? atoi(argv[3]) : 0, rounds = argc == 5 ? atoi(argv[4]) : 0;
    if (n_threads < 1 || n_threads > MAX_THREADS || rounds < 1) {
        fputs("bench_tokenizer MODEL_DIR TEXT_FILE THREADS ROUNDS\n", stderr);
        return 2;
    }
    int64_t start = clock_mono_ns();
    if (tokenizer_open(&b.tok, argv[1], &err) < 0 || file_read(argv[2], 1 << 30, &text, &n, &err) < 0) {
        fprintf(stderr, "%s\n", err.text);
        return 1;
    }
    double load = (double)(clock_mono_ns() - start) / 1e9;
    b.text = text;
    cut_lines(&b, n);
    printf("{\"load_s\": %.3f, \"seconds\": [", load);
    for (int i = 0; i < rounds; i++) printf("%s%.6f", i ? ", " : "", one_round(&b, n_threads));
    printf("], \"texts\": %zu, \"bytes\": %zu, \"tokens\": %zu}\n", b.n_lines, b.bytes, (size_t)b.n_tokens);
    tokenizer_close(b.tok);
    free(b.lines);
    free(text);
}
