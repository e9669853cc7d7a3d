/* sequence.c - see sequence.h. */
#include "engine/schedule/sequence.h"
#include "base/mem.h"
#include "engine/sample/logprobs.h"
#include "engine/sample/stops.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

/* ---------------------------------------------------------------- from request to sequence */

static struct engine_completion *completion_new(const struct engine_request *r) {
    struct engine_completion *c = mem_zalloc(1, sizeof *c);
    c->tag = r->tag;
    c->text_bytes = SIZE_MAX;
    c->n_prompt_tokens = (int32_t)r->n_tokens;
    return c;
}

static void set_error(struct engine_completion *c, const char *code, const char *text) {
    c->finish = FINISH_ERROR;
    c->error_code = code;
    snprintf(c->error, sizeof c->error, "%s", text);
}

/* NULL when the request can run; otherwise error_code, and its text. */
static const char *refuse(char *text, size_t n, const struct engine_request *r, const struct sequence_limits *limits) {
    if (r->n_tokens == 0) {
        snprintf(text, n, "the prompt has no tokens");
        return "empty_prompt";
    }
    if (r->n_tokens >= (size_t)limits->max_model_len) {
        snprintf(text, n, "prompt has %zu tokens, the context is %d", r->n_tokens, limits->max_model_len);
        return "context_length";
    }
    for (size_t i = 0; i < r->n_tokens; i++) {
        if (r->tokens[i] >= 0 && r->tokens[i] < limits->model->vocab) continue;
        snprintf(text, n, "id %d of the prompt is not in the vocabulary of %d", r->tokens[i], limits->model->vocab);
        return "bad_token";
    }
    return adjust_refuse(&r->sampling, limits->model->vocab, text, n);
}

static void collect_stop_ids(struct sequence *s, const struct model_info *model) {
    const struct sampling *p = &s->request->sampling;
    size_t n_model = p->ignore_eos ? 0 : (size_t)model->n_stop_ids, n = n_model + p->n_stop_token_ids;
    if (n == 0) return;
    s->stop_ids = mem_alloc(n * sizeof *s->stop_ids);
    if (n_model) memcpy(s->stop_ids, model->stop_ids, n_model * sizeof *s->stop_ids);
    if (n > n_model) memcpy(s->stop_ids + n_model, p->stop_token_ids, (n - n_model) * sizeof *s->stop_ids);
    s->n_stop_ids = (int32_t)n;
}

static int32_t least(int32_t a, int32_t b) {
    return a < b ? a : b;
}

struct sequence *sequence_new(struct engine_request *request, const struct sequence_limits *limits,
                              struct engine_completion **error) {
    const struct sampling *p = &request->sampling;
    assert(p->max_tokens >= 1 && p->logprobs <= ENGINE_MAX_LOGPROBS && p->prompt_logprobs <= ENGINE_MAX_LOGPROBS);
    char text[sizeof (*error)->error];
    const char *code = refuse(text, sizeof text, request, limits);
    int32_t n = (int32_t)request->n_tokens, max_new = 0;
    if (!code) {
        max_new = least(request->sampling.max_tokens, limits->max_model_len - n);
        if (blocks_for(n + max_new - 1) > limits->n_blocks) {
            snprintf(text, sizeof text, "%d tokens need %d KV blocks, there are %d", n + max_new,
                     blocks_for(n + max_new - 1), limits->n_blocks);
            code = "context_length";
        }
    }
    if (code) {
        *error = completion_new(request);
        set_error(*error, code, text);
        engine_request_free(request);
        return NULL;
    }
    struct sequence *s = mem_zalloc(1, sizeof *s);
    s->request = request;
    s->n_prompt = s->n_tokens = n;
    s->max_new = max_new;
    s->rope = limits->model->rope_switch > 0 && sequence_longest(s) > limits->model->rope_switch;
    s->tokens = mem_alloc((size_t)(n + max_new) * sizeof *s->tokens);
    memcpy(s->tokens, request->tokens, (size_t)n * sizeof *s->tokens);
    s->text_bytes = SIZE_MAX;
    collect_stop_ids(s, limits->model);
    adjust_init(&s->adjust, &request->sampling);
    if (p->logprobs >= 0) logprobs_init(&s->logprobs, max_new, p->logprobs);
    if (p->prompt_logprobs >= 0) logprobs_init(&s->prompt_logprobs, n - 1, p->prompt_logprobs);
    if (request->sampling.n_stop > 0 && limits->tokenizer) detokenizer_init(&s->text, limits->tokenizer, true);
    return s;
}

void sequence_free(struct sequence *s) {
    if (!s) return;
    if (s->text.tok) detokenizer_clear(&s->text);
    engine_request_free(s->request);
    free(s->tokens);
    free(s->stop_ids);
    adjust_clear(&s->adjust);
    logprobs_clear(&s->logprobs);
    logprobs_clear(&s->prompt_logprobs);
    free(s);
}

/* ---------------------------------------------------------------- where it stands */

int32_t sequence_n_new(const struct sequence *s) {
    return s->n_tokens - s->n_prompt + s->n_pending;
}

int32_t sequence_n_behind(const struct sequence *s) {
    if (sequence_n_new(s) >= s->max_new) return 0; /* the last sample is under way */
    return s->n_tokens + s->n_pending - s->n_computed;
}

int32_t sequence_n_targets(const struct sequence *s, int32_t n) {
    if (s->request->sampling.prompt_logprobs < 0) return 0;
    int32_t begin = s->n_described > s->n_computed ? s->n_described : s->n_computed;
    int32_t end = least(s->n_computed + n, s->n_prompt - 1);
    return end > begin ? end - begin : 0;
}

int32_t sequence_n_cacheable(const struct sequence *s) {
    bool needs_rows = s->request->sampling.prompt_logprobs >= 0 && s->n_described < s->n_prompt - 1;
    return needs_rows ? s->n_described + 1 : s->n_tokens; /* blocks_match leaves the last one out */
}

bool sequence_is_decoding(const struct sequence *s) {
    return sequence_n_behind(s) == 1 && s->n_computed >= s->n_prompt;
}

int32_t sequence_longest(const struct sequence *s) {
    return s->n_prompt + s->max_new - 1;
}

/* ---------------------------------------------------------------- samples */

static bool is_stop_id(const struct sequence *s, int32_t id) {
    for (int32_t i = 0; i < s->n_stop_ids; i++)
        if (s->stop_ids[i] == id) return true;
    return false;
}

/* Text of the first min_tokens samples is no place for a stop string to end. */
static bool meets_stop_string(struct sequence *s) {
    const struct sampling *p = &s->request->sampling;
    const struct buf *text = &s->text.text;
    if (s->n_tokens - s->n_prompt > p->min_tokens && text->n > s->searched)
        s->text_bytes = stops_find(text->data, text->n, s->searched, p->stop, p->n_stop);
    s->searched = text->n;
    return s->text_bytes != SIZE_MAX;
}

/* The last sample: what the detokenizer held back comes out. */
static bool last_bytes_meet_stop_string(struct sequence *s) {
    if (!s->text.tok) return false;
    detokenizer_finish(&s->text);
    return meets_stop_string(s);
}

bool sequence_accept(struct sequence *s, int32_t id, const struct sample_logprobs *logprobs, int64_t now_ns,
                     enum finish_reason *finish) {
    assert(s->n_pending > 0 && s->n_tokens < s->n_prompt + s->max_new);
    s->n_pending--;
    s->tokens[s->n_tokens++] = id;
    if (s->request->sampling.logprobs >= 0) logprobs_push(&s->logprobs, logprobs);
    s->last_token_ns = now_ns;
    if (s->first_token_ns == 0) s->first_token_ns = now_ns;
    *finish = FINISH_STOP;
    s->stopped_by_id = is_stop_id(s, id);
    if (s->stopped_by_id) {
        last_bytes_meet_stop_string(s);
        return true;
    }
    if (s->text.tok) {
        detokenizer_push(&s->text, id);
        if (meets_stop_string(s)) return true;
    }
    if (s->n_tokens < s->n_prompt + s->max_new) return false;
    if (!last_bytes_meet_stop_string(s)) *finish = FINISH_LENGTH;
    return true;
}

struct engine_completion *sequence_completion(const struct sequence *s, enum finish_reason finish,
                                              const char *error_code, const char *error) {
    struct engine_completion *c = completion_new(s->request);
    int32_t n_new = s->n_tokens - s->n_prompt;
    c->n_completion_tokens = n_new;
    c->n_tokens = (size_t)(n_new - s->stopped_by_id);
    c->tokens = mem_dup(s->tokens + s->n_prompt, c->n_tokens * sizeof *c->tokens);
    if (s->logprobs.token && !error_code) c->logprobs = logprobs_copy(&s->logprobs, (int32_t)c->n_tokens);
    if (s->prompt_logprobs.token && !error_code) {
        c->prompt_logprobs = logprobs_copy(&s->prompt_logprobs, s->prompt_logprobs.n);
        c->prompt_tokens = mem_dup(s->tokens, (size_t)s->n_prompt * sizeof *s->tokens);
    }
    c->finish = finish;
    c->text_bytes = s->text_bytes;
    c->n_cached_tokens = s->n_cached;
    c->preemptions = s->preemptions;
    c->scheduled_ns = s->scheduled_ns;
    c->first_token_ns = s->first_token_ns;
    c->last_token_ns = s->last_token_ns;
    if (error_code) set_error(c, error_code, error);
    return c;
}

/* ---------------------------------------------------------------- lists */

void sequence_list_add(struct sequence_list *l, struct sequence *s) {
    s->prev = l->last;
    s->next = NULL;
    if (l->last) l->last->next = s;
    else l->first = s;
    l->last = s;
    l->n++;
}

void sequence_list_add_first(struct sequence_list *l, struct sequence *s) {
    s->prev = NULL;
    s->next = l->first;
    if (l->first) l->first->prev = s;
    else l->last = s;
    l->first = s;
    l->n++;
}

void sequence_list_remove(struct sequence_list *l, struct sequence *s) {
    if (s->prev) s->prev->next = s->next;
    else l->first = s->next;
    if (s->next) s->next->prev = s->prev;
    else l->last = s->prev;
    s->prev = s->next = NULL;
    l->n--;
}
