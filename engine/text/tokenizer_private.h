/* tokenizer_private.h - what the files of engine/text/ share about a tokenizer.
 *
 * A text passes through these stages, each a file of its own:
 *
 *   added tokens (added.c) -> normalizer (normalize.c) -> added tokens that match
 *   normalized text -> pre-tokenizer (pretokenize.c) -> BPE (bpe.c) -> post-processor
 *
 * All of it is read from tokenizer.json by tokenizer_load.c and never changes. */
#ifndef BATCHD_ENGINE_TEXT_TOKENIZER_PRIVATE_H
#define BATCHD_ENGINE_TEXT_TOKENIZER_PRIVATE_H

#define PCRE2_CODE_UNIT_WIDTH 8
#include "engine/engine.h"

#include <pcre2.h>
#include <stdbool.h>
#include <stdint.h>

enum { MAX_TOKEN_ID = 1 << 24, MAX_STEPS = 8 };

/* ---------------------------------------------------------------- vocabulary and merges */

struct piece {          /* all zero = no such id */
    char *bytes;        /* what the model sees: raw bytes for byte-level BPE */
    uint32_t n;
    char *text;         /* what decoding gives before bytes are joined; NULL = as bytes */
    uint32_t text_n;
    int16_t byte;       /* 0..255: the token <0xHH> of byte fallback, else -1 */
    bool special;       /* skipped on request */
    bool added;
};

struct merge {
    uint64_t pair;  /* left id << 32 | right id, 0 with rank UINT32_MAX = empty place */
    uint32_t rank;  /* lower merges first */
    int32_t result;
};

struct bpe {
    struct piece *pieces; /* [n_ids] by id */
    size_t n_ids;
    int32_t *by_bytes;    /* hash table of ids, -1 = empty; size a power of two */
    size_t table_size;
    struct merge *merges; /* hash table */
    size_t merges_size;
    int32_t byte_token[256]; /* one id for each byte: its own piece, or <0xHH>; -1 = none */
    int32_t unk_id;       /* -1 = none */
    bool byte_level;      /* symbols begin as bytes; otherwise as characters */
    bool byte_fallback;
    bool fuse_unk;
    bool ignore_merges;   /* a word that is in the vocabulary is one token */
};

int32_t bpe_find(const struct bpe *b, const char *bytes, size_t n); /* -1 = not in the vocabulary */
void bpe_build_table(struct bpe *b);                                /* by_bytes and byte_token, from pieces */
void bpe_reserve_merges(struct bpe *b, size_t n);
bool bpe_add_merge(struct bpe *b, int32_t left, int32_t right, uint32_t rank, int32_t result);

struct bpe_scratch; /* grows with the longest word; one for each encode call */
struct bpe_scratch *bpe_scratch_new(void);
void bpe_scratch_free(struct bpe_scratch *s);

/* Append the ids of one word. O(n log n). */
void bpe_encode(const struct bpe *b, struct bpe_scratch *s, struct token_list *out, const char *word, size_t n);

/* ---------------------------------------------------------------- added tokens */

struct added_token {
    char *content;
    size_t n;
    int32_t id;
    bool single_word, lstrip, rstrip, normalized, special;
};

struct trie_node {
    int32_t first_child, next_sibling; /* index of a node, 0 = none (0 is the root) */
    int32_t token;                     /* index of an added token, -1 = none */
    unsigned char byte;
};

struct added_tokens { /* all of one kind: matched in raw text, or in normalized text */
    const struct added_token *tokens; /* borrowed from the tokenizer */
    struct trie_node *nodes;
    size_t n_nodes, cap;
};

void added_insert(struct added_tokens *a, int32_t token);

struct added_match {
    size_t begin, end; /* with the white space that lstrip and rstrip take */
    int32_t id;
};

/* The next match at or behind `from`, leftmost and then longest; false: none. Special
 * tokens count only where options->parse_special says so, outside its plain spans. */
bool added_next(const struct added_tokens *a, const char *text, size_t n, size_t from,
                const struct encode_options *options, struct added_match *out);

/* ---------------------------------------------------------------- normalizer */

enum normalize_kind { NORMALIZE_PREPEND, NORMALIZE_REPLACE, NORMALIZE_NFC, NORMALIZE_NFKC };

struct normalize_step {
    enum normalize_kind kind;
    char *from, *to; /* PREPEND: to */
};

/* Append the normalized form of n bytes of UTF-8. */
int normalize(const struct normalize_step *steps, size_t n_steps, struct buf *out, const char *text, size_t n,
              struct err *err);

/* ---------------------------------------------------------------- pre-tokenizer */

struct split_step {
    pcre2_code *pattern;
    bool removed; /* matches are dropped rather than kept as pieces of their own */
    bool invert;  /* what does not match is the match */
};

struct span_list { /* pieces of a text */
    struct text_span *spans;
    size_t n, cap;
};
void span_list_push(struct span_list *l, size_t begin, size_t end);

int split_compile(struct split_step *out, const char *pattern, size_t n, struct err *err);

/* Cut each span of `in` by one step; `out` is emptied first. */
int split_spans(const struct split_step *step, struct span_list *out, const struct span_list *in, const char *text,
                struct err *err);

/* ---------------------------------------------------------------- tokenizer */

/* Tokens that a chat template reads as variables. */
enum { CHAT_TOKENS = 4 };
extern const char *const chat_token_names[CHAT_TOKENS]; /* "bos_token" ... */

struct chat_tokens {
    char *text[CHAT_TOKENS]; /* in the order of the names; NULL = none */
};

struct tokenizer {
    struct bpe bpe;
    struct added_token *added;
    size_t n_added;
    struct added_tokens raw, normalized; /* the two kinds */
    struct normalize_step normalizers[MAX_STEPS];
    size_t n_normalizers;
    struct split_step splits[MAX_STEPS];
    size_t n_splits;
    bool prefix_space;                   /* ByteLevel's add_prefix_space */
    struct token_list before, after;     /* what the post-processor puts around a text */
    bool decode_bytes;                   /* ByteLevel decoder; otherwise the steps of SentencePiece */
    bool decode_fallback;                /* ByteFallback decoder */
    char *decode_from, *decode_to;       /* Replace decoder, NULL = none */
    char strip_char;                     /* Strip decoder: at most strip_start of them at the start */
    int32_t strip_start;
    struct chat_tokens chat_tokens;      /* tokenizer_config.json */
    struct chat_template *chat;          /* NULL = none, or one that was refused: */
    struct err chat_refused;             /* why, to be told when it is used */
};

/* Fill an all-zero tokenizer from the folder's files. */
int tokenizer_load(struct tokenizer *tok, const char *model_dir, struct err *err);

/* Render `variables`, a JSON object (chat_variables.c). */
int chat_template_render(const struct chat_template *t, struct chat_text *out, const char *variables,
                         const struct chat_options *options, const struct chat_tokens *tokens, struct err *err);

#endif
