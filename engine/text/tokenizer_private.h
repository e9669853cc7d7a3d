/* tokenizer_private.h - what the files of engine/text/ share about a tokenizer.
 *
 * A text passes through these stages, each a file of its own:
 *
 *   added tokens (added.c) -> normalizer (normalize.c) -> added tokens that match
 *   normalized text -> pre-tokenizer (pretokenize.c) -> BPE (bpe.c) or Unigram
 *   (unigram.c) -> post-processor
 *
 * All of it is read from tokenizer.json by tokenizer_load.c and tokenizer_steps.c
 * and never changes, but for the cache of words, which only speeds things up. */
#ifndef BATCHD_ENGINE_TEXT_TOKENIZER_PRIVATE_H
#define BATCHD_ENGINE_TEXT_TOKENIZER_PRIVATE_H

#define PCRE2_CODE_UNIT_WIDTH 8
#include "engine/engine.h"

#include <jansson.h>
#include <pcre2.h>
#include <stdbool.h>
#include <stdint.h>

/* What a hostile file can cost is bounded by these: no single allocation passes 64 MiB. */
enum {
    MAX_TOKEN_ID = 1 << 20,
    MAX_STEPS = 32,
    MAX_MERGES = (1 << 21) - 1,
    MAX_TRIE = 1 << 21,        /* bytes of all pieces of a Unigram, of all added tokens */
    MAX_TOKEN_TEXT = 4096,     /* of one token, decoded */
    MAX_TOKEN_TEXTS = 64 << 20 /* of all */
};

/* ---------------------------------------------------------------- patterns (pattern.c) */

struct pattern;

/* A pattern as tokenizer.json means it (Oniguruma, Ruby's syntax), compiled by PCRE2.
 * E_UNSUPPORTED: a construct that the two read differently and that is not translated. */
int pattern_compile(struct pattern **out, const char *regex, size_t n, struct err *err);
int pattern_compile_literal(struct pattern **out, const char *text, size_t n, struct err *err);
void pattern_free(struct pattern *p); /* NULL is fine */

struct matcher; /* what a match needs; one for each encode call */
struct matcher *matcher_new(void);
void matcher_free(struct matcher *m);

struct pattern_search { /* {0} = from the start of a text */
    size_t from;
    size_t last_end;    /* where the last match ended, with `any` */
    bool any;
};

/* The next match, leftmost; an empty one right behind the last match does not count.
 * 1: found, 0: none, negative: the pattern ran into its limits. */
int pattern_next(const struct pattern *p, struct matcher *m, struct pattern_search *s, const char *text, size_t n,
                 struct text_span *out, struct err *err);

/* ---------------------------------------------------------------- vocabulary (vocab.c) */

struct piece {          /* all zero = no such id */
    char *bytes;        /* what the model sees: raw bytes for byte-level BPE */
    uint32_t n;
    char *text;         /* what decoding gives before bytes are joined; NULL = as bytes */
    uint32_t text_n;
    int16_t byte;       /* 0..255: the token <0xHH> of byte fallback, else -1 */
    bool special;       /* skipped on request */
    bool foreign;       /* of a byte-level vocabulary, but not written in its alphabet: never found */
};

struct vocab {
    struct piece *pieces; /* [n_ids] by id */
    size_t n_ids, cap;
    int32_t *by_bytes;    /* hash table of ids, -1 = empty; size a power of two */
    size_t table_size;
    int32_t byte_token[256]; /* one id for each byte: its own piece, or <0xHH>; -1 = none */
    int32_t unk_id;       /* -1 = none */
    bool byte_level;      /* symbols begin as bytes; otherwise as characters */
    bool byte_fallback;
    bool fuse_unk;
};

void vocab_room(struct vocab *v, int32_t id);  /* id becomes one of n_ids */
void vocab_index(struct vocab *v);             /* by_bytes and byte_token, from pieces */
void vocab_clear(struct vocab *v);
int32_t vocab_find(const struct vocab *v, const char *bytes, size_t n); /* -1 = not in the vocabulary */

/* GPT-2's alphabet: each byte as a printable character, U+0021..U+0143. */
size_t byte_letter(unsigned char byte, char out[2]); /* 1 or 2 bytes of UTF-8 */

/* A piece as the bytes that its letters stand for, the caller's; *foreign and the piece
 * itself where it has others. */
char *bytes_of_letters(const char *piece, size_t n, uint32_t *out_n, bool *foreign);

/* ---------------------------------------------------------------- BPE (bpe.c) */

struct merge {
    uint64_t pair;  /* left id << 32 | right id; rank UINT32_MAX = empty place */
    uint32_t rank;  /* lower merges first */
    int32_t result;
};

struct bpe {
    struct merge *merges; /* hash table */
    size_t merges_size;
    bool ignore_merges;   /* a word that is in the vocabulary is one token */
};

void bpe_reserve_merges(struct bpe *b, size_t n);
void bpe_add_merge(struct bpe *b, int32_t left, int32_t right, uint32_t rank, int32_t result);

struct bpe_scratch; /* grows with the longest word; one for each encode call */
struct bpe_scratch *bpe_scratch_new(void);
void bpe_scratch_free(struct bpe_scratch *s);

/* Append the ids of one word. O(n log n). */
void bpe_encode(const struct bpe *b, const struct vocab *v, struct bpe_scratch *s, struct token_list *out,
                const char *word, size_t n);

/* ---------------------------------------------------------------- Unigram (unigram.c) */

struct unigram {
    double *scores;          /* [n_scores] by id, log probabilities */
    size_t n_scores;
    double unk_score;
    struct trie_edge *edges; /* hash table of a trie over the pieces' bytes */
    size_t n_edges, edges_size;
    int32_t *ids;            /* [n_nodes]: the piece that ends at a node, -1 = none */
    size_t n_nodes, nodes_cap;
};

int unigram_index(struct unigram *u, const struct vocab *v, struct err *err); /* scores are there already */
void unigram_clear(struct unigram *u);

/* Append the ids of the likeliest segmentation; O(n x longest piece). */
void unigram_encode(const struct unigram *u, const struct vocab *v, struct token_list *out, const char *word, size_t n);

/* ---------------------------------------------------------------- words known (wordcache.c) */

/* What words became. A place is filled once and then stays, so that any thread may
 * read and fill it without a lock. At most 8 MiB. */
struct word_cache;
struct word_cache *word_cache_new(void);
void word_cache_free(struct word_cache *c);

enum { CACHED_WORD_MAX = 40 }; /* bytes */

uint64_t word_hash(const char *word, size_t n);
bool word_cache_get(const struct word_cache *c, struct token_list *out, uint64_t hash, const char *word, size_t n);
void word_cache_put(struct word_cache *c, const int32_t *ids, size_t n_ids, uint64_t hash, const char *word, size_t n);

/* ---------------------------------------------------------------- added tokens (added.c) */

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
    int32_t first[256];               /* root's child for a byte, 0 = none */
    int n_first;                      /* how many of them there are */
    unsigned char only;               /* the one, where there is one */
};

void added_insert(struct added_tokens *a, int32_t token, const char *form, size_t n);

struct added_search { /* {0} = from the start of a text */
    size_t from;      /* where the next match may begin */
    size_t done;      /* text before this belongs to earlier matches */
    size_t space_from, space_end; /* white space that an rstrip took last; nothing behind it is */
};

struct added_match {
    size_t begin, end; /* with the white space that lstrip and rstrip take; may lie in the match before */
    int32_t id;
};

/* The next match, leftmost and then longest; false: none. Special tokens count only
 * where options->parse_special says so, outside its plain spans. */
bool added_next(const struct added_tokens *a, const char *text, size_t n, struct added_search *s,
                const struct encode_options *options, struct added_match *out);

/* ---------------------------------------------------------------- normalizer (normalize.c) */

enum normalize_kind {
    NORMALIZE_PREPEND,
    NORMALIZE_REPLACE,
    NORMALIZE_NFC,
    NORMALIZE_NFD,
    NORMALIZE_NFKC,
    NORMALIZE_NFKD,
    NORMALIZE_LOWERCASE,
    NORMALIZE_STRIP_ACCENTS,
    NORMALIZE_STRIP,
};

struct normalize_step {
    enum normalize_kind kind;
    char *from, *to;         /* PREPEND: to; REPLACE: from or pattern, and to */
    struct pattern *pattern;
    bool left, right;        /* STRIP */
};

void normalize_step_clear(struct normalize_step *s);

/* Append the normalized form of n bytes of UTF-8. */
int normalize(const struct normalize_step *steps, size_t n_steps, struct matcher *m, struct buf *out, const char *text,
              size_t n, struct err *err);

bool char_is_space(int32_t cp); /* Unicode's White_Space */

/* ---------------------------------------------------------------- pre-tokenizer (pretokenize.c) */

enum split_behavior { SPLIT_ISOLATED, SPLIT_REMOVED, SPLIT_CONTIGUOUS, SPLIT_MERGED_PREVIOUS, SPLIT_MERGED_NEXT };
enum pre_kind { PRE_SPLIT, PRE_METASPACE, PRE_BYTE_LEVEL };
enum prepend { PREPEND_NEVER, PREPEND_FIRST, PREPEND_ALWAYS };

struct pre_step {
    enum pre_kind kind;
    struct pattern *pattern;      /* SPLIT */
    enum split_behavior behavior;
    bool invert;                  /* what does not match is the match */
    char space[5];                /* METASPACE: what a space becomes */
    enum prepend prepend;         /* METASPACE; BYTE_LEVEL: a space in front of each piece */
    bool letters;                 /* SPLIT behind BYTE_LEVEL: matches byte letters, not bytes */
};

struct span_list { /* pieces of a text */
    struct text_span *spans;
    size_t n, cap;
};
void span_list_push(struct span_list *l, size_t begin, size_t end);

struct words {             /* a text in pieces; begin with {0} */
    const char *text;      /* borrowed, or text_of's */
    struct span_list spans, spare;
    struct buf text_of, spare_text; /* after a step that changes the text */
    struct buf letters;
    bool at_start;         /* the text begins where the whole text does */
};
void words_clear(struct words *w);

/* Cut n bytes by all the steps, in order. */
int pre_tokenize(const struct pre_step *steps, size_t n_steps, struct matcher *m, struct words *w, const char *text,
                 size_t n, struct err *err);

/* ---------------------------------------------------------------- tokenizer */

struct model_chat {
    struct chat_template *template; /* NULL = none, or one that was refused: */
    struct err refused;             /* why, to be told when it is used */
};

/* Tokens that a chat template reads as variables. */
enum { CHAT_TOKENS = 4 };
extern const char *const chat_token_names[CHAT_TOKENS]; /* "bos_token" ... */

struct chat_tokens {
    char *text[CHAT_TOKENS]; /* in the order of the names; NULL = none */
};

struct decoder {
    bool bytes;                     /* ByteLevel: join bytes, then read UTF-8 */
    bool fallback;                  /* ByteFallback */
    bool spaced;                    /* no decoder at all: tokens with a space between */
    char strip_char;                /* Strip behind Fuse: at most strip_start at the very start */
    int32_t strip_start;
    char first_drops[5];            /* Metaspace: the first token loses these; "" = none */
    struct normalize_step steps[MAX_STEPS]; /* token by token */
    size_t n_steps;
};

struct tokenizer {
    struct vocab vocab;
    struct bpe bpe;
    struct unigram unigram;
    bool is_unigram;
    struct word_cache *cache;
    bool splits_at_space;                /* no token holds `space` behind another character than itself: */
    char space[5];                       /* a word may be cut before it, and is, so that words stay short */
    bool before_space[256];              /* last bytes of what may stand before `space` inside a token */
    struct added_token *added;
    size_t n_added;
    struct added_tokens raw, normalized; /* the two kinds */
    struct added_tokens control;         /* raw, and the special ones of the other kind */
    struct normalize_step normalizers[MAX_STEPS];
    size_t n_normalizers;
    struct pre_step pre[MAX_STEPS];
    size_t n_pre;
    struct token_list before, after;     /* what the post-processor puts around a text */
    struct decoder decoder;
    struct chat_tokens chat_tokens;      /* tokenizer_config.json */
    struct model_chat chat, chat_tools;  /* the model's template, and the one for rows with tools */
};

/* Fill an all-zero tokenizer from the folder's files. */
int tokenizer_load(struct tokenizer *tok, const char *model_dir, struct err *err);

/* tokenizer_steps.c: the parts of tokenizer.json around the model. Pre-tokenizer before
 * the vocabulary, which it makes byte-level; decoder behind all tokens. */
int load_normalizer(struct tokenizer *tok, const json_t *part, struct err *err);
int load_pre_tokenizer(struct tokenizer *tok, const json_t *part, struct err *err);
int load_post_processor(struct tokenizer *tok, const json_t *part, struct err *err);
int load_decoder(struct tokenizer *tok, const json_t *part, struct err *err);

int check_id(const json_t *id, const char *token, struct err *err);
int unsupported(struct err *err, const char *key, const char *value);

/* Do these variables hold tools? */
bool chat_has_tools(const char *variables);

/* Render `variables`, a JSON object (chat_variables.c). */
int chat_template_render(const struct chat_template *t, struct chat_text *out, const char *variables,
                         const struct chat_options *options, const struct chat_tokens *tokens, struct err *err);

#endif
