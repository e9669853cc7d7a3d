/* pipeline.c - see pipeline.h. */
#include "batchd/pipeline.h"
#include "base/clock.h"
#include "base/hash.h"
#include "base/mailbox.h"
#include "base/mem.h"
#include "base/utf8.h"
#include "batchd/logprobs_json.h"

#include <assert.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum { SPARE = 256 }; /* rows beyond those that the engine runs: none of its steps shall starve */

struct pipeline {
    struct engine *engine;
    struct mailbox *feed, *done;
    pthread_t feeder, finisher;
    int32_t capacity;
    pthread_mutex_t lock;      /* of the table alone */
    struct row_work **table;   /* rows inside the engine, by tag; open addressing */
    size_t table_size;
    atomic_bool stop;
};

/* ---------------------------------------------------------------- rows inside the engine */

static uint64_t tag_of(const struct row_work *row) {
    return (uint64_t)row->result.job_id << 32 | (uint64_t)row->result.row;
}

static void table_put(struct pipeline *p, struct row_work *row) {
    pthread_mutex_lock(&p->lock);
    size_t mask = p->table_size - 1, i = hash64_mix(tag_of(row), 0) & mask;
    while (p->table[i]) i = (i + 1) & mask;
    p->table[i] = row;
    pthread_mutex_unlock(&p->lock);
}

/* Take out, and move up those that the hole would hide. */
static struct row_work *table_take(struct pipeline *p, uint64_t tag) {
    pthread_mutex_lock(&p->lock);
    size_t mask = p->table_size - 1, i = hash64_mix(tag, 0) & mask;
    while (p->table[i] && tag_of(p->table[i]) != tag) i = (i + 1) & mask;
    struct row_work *row = p->table[i];
    p->table[i] = NULL;
    for (size_t k = (i + 1) & mask; row && p->table[k]; k = (k + 1) & mask) {
        struct row_work *moved = p->table[k];
        p->table[k] = NULL;
        size_t to = hash64_mix(tag_of(moved), 0) & mask;
        while (p->table[to]) to = (to + 1) & mask;
        p->table[to] = moved;
    }
    pthread_mutex_unlock(&p->lock);
    return row;
}

/* ---------------------------------------------------------------- feeder */

static void fail_row(struct row_work *row, const char *code, const char *message) {
    snprintf(row->error, sizeof row->error, "%.*s", (int)sizeof row->error - 1, message);
    utf8_trim(row->error);
    row->result.status = ROW_FAILED;
    row->result.finish_reason = "error";
    row->result.error_code = code;
    row->result.error = row->error;
}

/* The date that a template writes is the job's, so that a row says the same whenever it runs. */
static int encode_chat(const struct tokenizer *tok, const struct job_ref *job, const struct prompt *prompt,
                       struct token_list *out, struct err *err) {
    struct chat_text chat = {0};
    struct chat_options options = {.chat_template = job->chat_template, .add_generation_prompt = true,
                                   .now = job->work.submitted_us / 1000000};
    int r = tokenizer_render_chat(tok, &chat, prompt->variables, &options, err);
    struct encode_options o = {.parse_special = true, .plain = chat.plain, .n_plain = chat.n_plain};
    if (job->work.settings.allow_special_tokens) o.n_plain = 0;
    if (r == 0) r = tokenizer_encode(tok, out, chat.text.data ? chat.text.data : "", chat.text.n, &o, err);
    chat_text_clear(&chat);
    return r;
}

/* Rows of columns become a user message where the model speaks in messages. */
static bool wants_chat(const struct tokenizer *tok, const struct job_ref *job, const struct prompt *prompt) {
    const char *chat = job->work.settings.chat;
    if (prompt->kind != PROMPT_TEXT) return prompt->kind == PROMPT_MESSAGES;
    if (chat && strcmp(chat, "always") == 0) return true;
    if (chat && strcmp(chat, "never") == 0) return false;
    return job->chat_template || tokenizer_has_chat_template(tok);
}

static int encode_prompt(const struct tokenizer *tok, const struct job_ref *job, const struct prompt *prompt,
                         struct token_list *out, struct err *err) {
    if (wants_chat(tok, job, prompt)) return encode_chat(tok, job, prompt, out, err);
    struct encode_options o = {.add_special = true, .parse_special = job->work.settings.allow_special_tokens};
    return tokenizer_encode(tok, out, prompt->text, strlen(prompt->text), &o, err);
}

static int32_t *narrow_ids(const int64_t *ids, size_t n) {
    int32_t *out = n ? mem_zalloc(n, sizeof *out) : NULL;
    for (size_t i = 0; i < n; i++) out[i] = (int32_t)ids[i];
    return out;
}

/* Chat's "logprobs": true counts its alternatives in a key of its own. */
static int32_t n_logprobs(const struct params *p) {
    int64_t n = p->set & PARAM_LOGPROBS ? p->logprobs : -1;
    if (!(p->set & PARAM_TOP_LOGPROBS) || ((p->set & PARAM_LOGPROBS) && n < 0)) return (int32_t)n;
    if (p->top_logprobs > n && (n >= 0 || p->top_logprobs > 0)) n = p->top_logprobs;
    return (int32_t)n;
}

static void set_adjustments(struct sampling *s, const struct params *p) {
    if (p->set & PARAM_REPETITION_PENALTY) s->repetition_penalty = (float)p->repetition_penalty;
    if (p->set & PARAM_PRESENCE_PENALTY) s->presence_penalty = (float)p->presence_penalty;
    if (p->set & PARAM_FREQUENCY_PENALTY) s->frequency_penalty = (float)p->frequency_penalty;
    s->allowed_token_ids = narrow_ids(p->allowed_token_ids, s->n_allowed_token_ids = p->n_allowed_token_ids);
    s->banned_token_ids = narrow_ids(p->banned_token_ids, s->n_banned_token_ids = p->n_banned_token_ids);
    s->logit_bias_ids = narrow_ids(p->logit_bias_ids, s->n_logit_bias = p->n_logit_bias);
    if (p->n_logit_bias) s->logit_bias = mem_zalloc(p->n_logit_bias, sizeof *s->logit_bias);
    for (size_t i = 0; i < p->n_logit_bias; i++) s->logit_bias[i] = (float)p->logit_bias[i];
}

static void set_sampling(struct sampling *s, const struct model_info *model, const struct prompt *prompt) {
    const struct params *p = &prompt->params;
    if (model->has_temperature) s->temperature = model->temperature;
    if (model->has_top_p) s->top_p = model->top_p;
    if (model->has_top_k) s->top_k = model->top_k;
    if (model->has_min_p) s->min_p = model->min_p;
    if (model->repetition_penalty > 0) s->repetition_penalty = model->repetition_penalty;
    if (p->set & PARAM_MAX_TOKENS) s->max_tokens = (int32_t)p->max_tokens;
    if (p->set & PARAM_MIN_TOKENS) s->min_tokens = (int32_t)p->min_tokens;
    if (p->set & PARAM_TEMPERATURE) s->temperature = (float)p->temperature;
    if (p->set & PARAM_TOP_P) s->top_p = (float)p->top_p;
    if (p->set & PARAM_TOP_K) s->top_k = p->top_k < 0 ? 0 : (int32_t)p->top_k;
    if (p->set & PARAM_MIN_P) s->min_p = (float)p->min_p;
    if (p->set & PARAM_IGNORE_EOS) s->ignore_eos = p->ignore_eos;
    s->seed = prompt->seed;
    s->logprobs = n_logprobs(p);
    if (p->set & PARAM_PROMPT_LOGPROBS) s->prompt_logprobs = (int32_t)p->prompt_logprobs;
    if (p->n_stop) s->stop = mem_zalloc(p->n_stop, sizeof *s->stop);
    for (; s->n_stop < p->n_stop; s->n_stop++) s->stop[s->n_stop] = mem_strdup(p->stop[s->n_stop]);
    s->stop_token_ids = narrow_ids(p->stop_token_ids, s->n_stop_token_ids = p->n_stop_token_ids);
    set_adjustments(s, p);
}

static struct engine_request *make_request(struct pipeline *p, struct row_work *row) {
    struct err err = ERR_INIT;
    struct prompt prompt = {0};
    struct token_list ids = {0};
    struct engine_request *r = NULL;
    if (prompt_build(&prompt, &row->job->work, &row->row, &err) < 0) {
        fail_row(row, "bad_prompt", err.text);
        return NULL;
    }
    row->result.seed = prompt.seed;
    if (encode_prompt(engine_tokenizer(p->engine), row->job, &prompt, &ids, &err) < 0)
        fail_row(row, "bad_prompt", err.text);
    else {
        r = engine_request_new();
        r->tag = tag_of(row);
        r->tokens = ids.ids;
        r->n_tokens = ids.n;
        ids = (struct token_list){0};
        set_sampling(&r->sampling, engine_model(p->engine), &prompt);
    }
    token_list_clear(&ids);
    prompt_clear(&prompt);
    return r;
}

static void hand_back(struct pipeline *p, struct row_work *row) {
    mailbox_put(p->done, row, -1); /* has room for all that may be inside */
}

static void *feed_rows(void *arg) {
    struct pipeline *p = arg;
    struct row_work *row;
    while ((row = mailbox_take(p->feed, -1))) {
        struct engine_request *r = p->stop ? NULL : make_request(p, row);
        if (!r) {
            row->dropped = p->stop;
            hand_back(p, row);
            continue;
        }
        uint64_t tag = tag_of(row);
        table_put(p, row); /* from here on the finisher may give it back */
        bool taken = false;
        while (!taken && !p->stop && engine_failure(p->engine, NULL) == 0) taken = engine_submit(p->engine, r, 100);
        if (taken) continue;
        engine_request_free(r);
        row = table_take(p, tag);
        if (!row) continue; /* the finisher did */
        row->dropped = true;
        hand_back(p, row);
    }
    return NULL;
}

/* ---------------------------------------------------------------- finisher */

static int64_t us_between(int64_t from_ns, int64_t to_ns) {
    return from_ns > 0 && to_ns >= from_ns ? (to_ns - from_ns) / 1000 : -1;
}

static void set_times(struct row_work *row, const struct engine_completion *c) {
    struct result_row *r = &row->result;
    r->queue_us = us_between(row->leased_ns, c->scheduled_ns);
    r->prefill_us = us_between(c->scheduled_ns, c->first_token_ns);
    r->ttft_us = us_between(row->leased_ns, c->first_token_ns);
    r->decode_us = us_between(c->first_token_ns, c->last_token_ns);
    r->e2e_us = us_between(row->leased_ns, c->last_token_ns);
}

static void set_text(struct pipeline *p, struct row_work *row, const struct engine_completion *c) {
    struct buf text = BUF_INIT(0);
    tokenizer_decode(engine_tokenizer(p->engine), &text, c->tokens, c->n_tokens, true);
    size_t n = text.n < c->text_bytes ? text.n : c->text_bytes;
    text_compress(&row->text, &row->result.codec, text.data ? text.data : "", n);
    row->result.text = row->text.data ? row->text.data : "";
    row->result.text_bytes = row->text.n;
    buf_clear(&text);
}

typedef void json_writer(struct buf *out, const struct tokenizer *tok, const struct engine_completion *c);

static void set_packed(struct pipeline *p, struct packed_text *out, struct buf *room, json_writer *write,
                       const struct engine_completion *c) {
    struct buf json = BUF_INIT(0);
    write(&json, engine_tokenizer(p->engine), c);
    text_compress(room, &out->codec, json.data, json.n);
    out->data = room->data;
    out->bytes = room->n;
    buf_clear(&json);
}

static void set_logprobs(struct pipeline *p, struct row_work *row, const struct engine_completion *c) {
    struct result_row *r = &row->result;
    if (c->logprobs.token) set_packed(p, &r->logprobs, &row->logprobs, logprobs_json, c);
    if (c->prompt_tokens) set_packed(p, &r->prompt_logprobs, &row->prompt_logprobs, prompt_logprobs_json, c);
}

static void finish_row(struct pipeline *p, struct row_work *row, const struct engine_completion *c) {
    struct result_row *r = &row->result;
    r->prompt_tokens = c->n_prompt_tokens;
    r->cached_tokens = c->n_cached_tokens;
    r->completion_tokens = c->n_completion_tokens;
    r->preemptions = c->preemptions;
    set_times(row, c);
    row->dropped = c->finish == FINISH_ABORTED;
    if (c->finish == FINISH_ERROR) fail_row(row, c->error_code, c->error);
    else if (!row->dropped) {
        r->status = ROW_OK;
        r->finish_reason = c->finish == FINISH_STOP ? "stop" : "length";
        set_text(p, row, c);
        set_logprobs(p, row, c);
    }
}

/* The engine has failed: what it held comes back without a result. */
static void drop_all(struct pipeline *p) {
    for (size_t i = 0; i < p->table_size; i++) {
        pthread_mutex_lock(&p->lock);
        struct row_work *row = p->table[i];
        p->table[i] = NULL;
        pthread_mutex_unlock(&p->lock);
        if (!row) continue;
        row->dropped = true;
        hand_back(p, row);
    }
}

/* Whether the engine has failed is asked first: only when nothing was to be had after that is
 * there no completion that it had made before. */
static void *finish_rows(void *arg) {
    struct pipeline *p = arg;
    while (!p->stop) {
        bool failed = engine_failure(p->engine, NULL) != 0;
        struct engine_completion *c = engine_collect(p->engine, 100);
        if (!c && failed) {
            drop_all(p);
            clock_sleep_ms(20);
        }
        if (!c) continue;
        struct row_work *row = table_take(p, c->tag);
        assert(row || engine_failure(p->engine, NULL) != 0);
        if (row) finish_row(p, row, c); /* else it was dropped, and an abort has been answered after that */
        engine_completion_free(c);
        if (row) hand_back(p, row);
    }
    return NULL;
}

/* ---------------------------------------------------------------- the whole */

static size_t power_of_two_above(size_t n) {
    size_t p = 64;
    while (p < n) p *= 2;
    return p;
}

int pipeline_open(struct pipeline **out, const struct engine_options *options, struct err *err) {
    struct engine *engine;
    int r = engine_open(&engine, options, err);
    if (r < 0) return r;
    if (!engine_tokenizer(engine)) {
        engine_close(engine);
        return err_set(err, E_NOT_FOUND, "%s has no tokenizer.json", options->model_dir);
    }
    struct pipeline *p = mem_zalloc(1, sizeof *p);
    p->engine = engine;
    p->capacity = 4 * engine_max_num_seqs(engine) + SPARE;
    p->feed = mailbox_new((size_t)p->capacity);
    p->done = mailbox_new((size_t)p->capacity);
    p->table_size = power_of_two_above((size_t)p->capacity * 2);
    p->table = mem_zalloc(p->table_size, sizeof *p->table);
    pthread_mutex_init(&p->lock, NULL);
    if (pthread_create(&p->feeder, NULL, feed_rows, p) != 0 || pthread_create(&p->finisher, NULL, finish_rows, p) != 0)
        abort();
    *out = p;
    return 0;
}

void pipeline_close(struct pipeline *p) {
    if (!p) return;
    p->stop = true;
    mailbox_close(p->feed);
    pthread_join(p->feeder, NULL);
    pthread_join(p->finisher, NULL);
    engine_close(p->engine);
    mailbox_free(p->feed);
    mailbox_free(p->done);
    pthread_mutex_destroy(&p->lock);
    free(p->table);
    free(p);
}

struct engine *pipeline_engine(struct pipeline *p) {
    return p->engine;
}

int32_t pipeline_capacity(const struct pipeline *p) {
    return p->capacity;
}

void pipeline_feed(struct pipeline *p, struct row_work *row) {
    bool ok = mailbox_put(p->feed, row, -1);
    assert(ok);
    (void)ok;
}

struct row_work *pipeline_take(struct pipeline *p, int64_t timeout_ms) {
    return mailbox_take(p->done, timeout_ms);
}
