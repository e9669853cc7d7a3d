/* sequence.h - one request while the engine works on it.
 *
 *        prompt          samples that were seen     drawn by steps under way
 *   [0 ............ n_prompt .............. n_tokens ....... n_tokens + n_pending)
 *   [0 ................... n_computed: rows handed out to steps ...............)
 *
 * A sequence is n_tokens + n_pending - n_computed rows behind, and that is all the
 * scheduler asks: there are no phases. Preemption takes n_computed back to 0 and
 * forgets what is pending; what was seen stays, and becomes part of what is computed
 * again. A draw depends on seed and position only, so the same tokens follow.
 *
 * Owned by the scheduler; belongs to the engine thread. */
#ifndef BATCHD_ENGINE_SCHEDULE_SEQUENCE_H
#define BATCHD_ENGINE_SCHEDULE_SEQUENCE_H

#include "engine/engine.h"
#include "engine/sample/adjust.h"
#include "engine/schedule/blocks.h"

#include <stdbool.h>
#include <stdint.h>

enum sequence_state { SEQUENCE_WAITING, SEQUENCE_RUNNING, SEQUENCE_DONE };

struct sequence {
    struct sequence *prev, *next;   /* in the scheduler's list of its state */
    enum sequence_state state;
    struct engine_request *request;
    int32_t *tokens;                /* [n_prompt + max_new] */
    int32_t n_prompt, n_tokens, n_computed, n_pending;
    int32_t rope;                   /* 1: it may grow beyond the model's rope_switch; the same for all its keys */
    int32_t max_new;                /* samples at most: max_tokens, cut to the room in the context */
    int32_t slot;                   /* while running */
    struct block_table table;       /* while running */
    uint32_t epoch;                 /* counts preemptions and the end: draws of an earlier one are void */
    int32_t n_under_way;            /* draws of all epochs in steps under way; freed only at 0 */
    int32_t *stop_ids;              /* the model's, unless ignored, and the request's */
    int32_t n_stop_ids;
    struct adjust adjust;           /* penalties and the like */
    struct logprobs logprobs;       /* of the samples that were seen, where asked for */
    struct logprobs prompt_logprobs; /* of prompt tokens 1 .. n, where asked for: seen once, kept for good */
    int32_t n_described;            /* prompt tokens whose logprobs are in it or under way */
    struct detokenizer text;        /* of the samples, where there are stop strings */
    size_t searched;                /* bytes of text without a stop string, or too early for one */
    size_t text_bytes;              /* SIZE_MAX = no stop string met */
    bool stopped_by_id;             /* the last token is a stop id */
    int32_t n_cached;               /* tokens found in the cache when first scheduled */
    int32_t preemptions;
    int64_t scheduled_ns, first_token_ns, last_token_ns;
};

struct sequence_limits { /* what all sequences of an engine share; borrowed */
    const struct model_info *model;
    const struct tokenizer *tokenizer; /* NULL: stop strings are never met */
    int32_t max_model_len;
    int32_t n_blocks; /* of the whole pool */
};

/* A sequence for the request, which is its own from now on; NULL, and *error to be
 * sent back, when the request cannot run. The request is freed in that case. */
struct sequence *sequence_new(struct engine_request *request, const struct sequence_limits *limits,
                              struct engine_completion **error);
void sequence_free(struct sequence *s); /* NULL is fine */

/* Rows that could be computed now. */
int32_t sequence_n_behind(const struct sequence *s);

/* How many of the next n rows tell the logprob of a prompt token that nobody has told yet. */
int32_t sequence_n_targets(const struct sequence *s, int32_t n);

/* Tokens, counted from the first, that may be found in the prefix cache: rows that are to
 * tell logprobs must be computed. */
int32_t sequence_n_cacheable(const struct sequence *s);

/* What is behind is one row, a sample to be continued, rather than prompt. */
bool sequence_is_decoding(const struct sequence *s);

/* Samples, seen and pending. */
int32_t sequence_n_new(const struct sequence *s);

/* Positions whose keys and values can be needed at all: the last sample's are not. */
int32_t sequence_longest(const struct sequence *s);

/* Take a sample that was pending; true when it was the last, *finish saying why.
 * logprobs: of it, read where the request asks for them. */
bool sequence_accept(struct sequence *s, int32_t id, const struct sample_logprobs *logprobs, int64_t now_ns,
                     enum finish_reason *finish);

/* What goes back to the caller. error_code (static) and text where it failed, else NULL. */
struct engine_completion *sequence_completion(const struct sequence *s, enum finish_reason finish,
                                              const char *error_code, const char *error);

/* Doubly linked, oldest first. */
struct sequence_list {
    struct sequence *first, *last;
    int32_t n;
};
void sequence_list_add(struct sequence_list *l, struct sequence *s);       /* at the end */
void sequence_list_add_first(struct sequence_list *l, struct sequence *s);
void sequence_list_remove(struct sequence_list *l, struct sequence *s);

#endif
