/* test_scheduler.c - plans of the scheduler, executed by a model of a device.
 *
 * The model keeps in its "KV cache" the token of each position and draws a token
 * from a hash of all tokens that a row sees through its block table. So a wrong
 * block, slot, order or surplus token changes what is drawn, and the right answer
 * is known from the hash alone. */
#include "tests/unit.h"

#include "base/hash.h"
#include "base/mem.h"
#include "engine/sample/stops.h"
#include "engine/schedule/scheduler.h"

#include <math.h>

enum { VOCAB = 60, STOP_ID = 2, MAX_LEN = 256, MAX_SLOTS = 32, DEPTH = 3, MAX_BLOCKS = 512, MAX_SAMPLES = 64, NAN_SEED = 666 };

/* ---------------------------------------------------------------- the device */

struct device {
    int32_t kv[MAX_BLOCKS][KV_BLOCK];
    int32_t last_sample[MAX_SLOTS];
    int32_t drawn[DEPTH][MAX_SAMPLES];
    struct sample_logprobs logprobs[DEPTH][MAX_SAMPLES];
    bool has_logprobs[DEPTH];
    int64_t n_targets;
    int first, n;
};

/* Made up, but of the right token at the right place. */
static struct sample_logprobs logprobs_for(int32_t id, int32_t position, int32_t n_top) {
    struct sample_logprobs l = {.token = -(float)(id + 1000 * position), .rank = id + 1};
    for (int32_t k = 0; k < MAX_LOGPROBS; k++) l.top_id[k] = k < n_top ? (id + k) % VOCAB : -7;
    for (int32_t k = 0; k < n_top; k++) l.top[k] = -(float)(k + 1000 * position);
    return l;
}

/* What else is to change a draw, as one number. */
static uint64_t hash_adjust(const struct step_sample *s, const struct logit_bias *bias, const int32_t *allowed) {
    float penalties[] = {s->repetition_penalty, s->presence_penalty, s->frequency_penalty, (float)s->n_prompt};
    if (!s->is_adjusted) return 0;
    uint64_t h = hash64(penalties, sizeof penalties, 5);
    h = hash64(bias, (size_t)s->n_bias * sizeof *bias, h);
    return hash64(allowed, (size_t)s->n_allowed * sizeof *allowed, h);
}

static int32_t draw_token(const int32_t *tokens, int32_t n, uint64_t seed, uint64_t adjust, const int32_t *banned,
                          int32_t n_banned) {
    if (seed == NAN_SEED && n >= 12) return -1;
    int32_t id = (int32_t)(hash64(tokens, (size_t)n * sizeof *tokens, seed + 77 + adjust) % VOCAB);
    for (int32_t i = 0; i < n_banned;)
        if (banned[i++] == id) {
            id = (id + 1) % VOCAB;
            i = 0;
        }
    return id;
}

static const int32_t *table_row(const struct step *step, int32_t slot) {
    return step->block_table + (size_t)slot * (size_t)step->block_table_stride;
}

static void device_run(struct device *d, const struct step *step) {
    assert_true(d->n < DEPTH);
    int32_t at = 0;
    for (int32_t i = 0; i < step->n_sequences; i++) { /* the rows are what the sequences say */
        const struct step_sequence *q = &step->sequences[i];
        assert_int_equal(q->first_row, at);
        for (int32_t k = 0; k < q->n_rows; k++, at++) {
            assert_int_equal(step->slot[at], q->slot);
            assert_int_equal(step->position[at], q->first_position + k);
        }
    }
    assert_int_equal(at, step->n_rows);
    for (int32_t r = 0; r < step->n_rows; r++) {
        int32_t token = step->token[r], p = step->position[r];
        if (token < 0) assert_int_equal(~token, step->slot[r]);
        if (token < 0) token = d->last_sample[~token];
        d->kv[table_row(step, step->slot[r])[p / KV_BLOCK]][p % KV_BLOCK] = token;
    }
    int at_ring = (d->first + d->n++) % DEPTH;
    int32_t *drawn = d->drawn[at_ring];
    d->has_logprobs[at_ring] = step->has_logprobs;
    for (int32_t i = 0; i < step->n_samples; i++) {
        const struct step_sample *s = &step->samples[i];
        int32_t tokens[MAX_LEN], n = step->position[s->row] + 1;
        if (s->has_target) {
            assert_true(s->wants_logprob && step->has_logprobs);
            drawn[i] = s->target;
            d->logprobs[at_ring][i] = logprobs_for(s->target, n, s->n_top);
            d->n_targets++;
            continue;
        }
        assert_int_equal(s->position, n);
        for (int32_t p = 0; p < n; p++) tokens[p] = d->kv[table_row(step, s->slot)[p / KV_BLOCK]][p % KV_BLOCK];
        assert_true(!s->is_adjusted || step->has_adjusted);
        assert_true(s->first_bias + s->n_bias <= step->n_bias && s->first_allowed + s->n_allowed <= step->n_allowed);
        uint64_t adjust = hash_adjust(s, s->n_bias ? step->bias + s->first_bias : NULL,
                                      s->n_allowed ? step->allowed + s->first_allowed : NULL);
        drawn[i] = draw_token(tokens, n, s->seed, adjust, step->banned + s->first_banned, s->n_banned);
        d->last_sample[s->slot] = drawn[i];
        assert_true(!s->wants_logprob || step->has_logprobs);
        if (s->wants_logprob) d->logprobs[at_ring][i] = logprobs_for(drawn[i], n, s->n_top);
    }
}

static int device_collect(struct device *d) {
    assert_true(d->n > 0);
    int at = d->first;
    d->first = (d->first + 1) % DEPTH;
    d->n--;
    return at;
}

/* ---------------------------------------------------------------- a run */

static const struct model_info model = {.vocab = VOCAB, .context = MAX_LEN, .stop_ids = {STOP_ID}, .n_stop_ids = 1};

struct run {
    struct scheduler *scheduler;
    struct device device;
    int lookahead;
    int64_t now;
    int64_t n_mixed;  /* steps with prefill and decode rows */
    int32_t max_rows, max_samples;
};

static struct run *run_with(int32_t n_blocks, int32_t n_slots, int32_t max_rows, int32_t max_samples, int lookahead) {
    struct run *r = mem_zalloc(1, sizeof *r);
    r->scheduler = scheduler_new(&(struct scheduler_options){.model = &model,
                                                             .max_model_len = MAX_LEN,
                                                             .n_blocks = n_blocks,
                                                             .n_slots = n_slots,
                                                             .max_rows = max_rows,
                                                             .max_samples = max_samples,
                                                             .depth = lookahead + 1});
    r->lookahead = lookahead;
    r->max_rows = max_rows;
    r->max_samples = max_samples ? max_samples : n_slots < max_rows ? n_slots : max_rows;
    return r;
}

static struct run *run_new(int32_t n_blocks, int32_t n_slots, int32_t max_rows, int lookahead) {
    return run_with(n_blocks, n_slots, max_rows, 0, lookahead);
}

static void run_free(struct run *r) {
    scheduler_free(r->scheduler);
    free(r);
}

static void collect_one(struct run *r) {
    int at = device_collect(&r->device);
    const struct sample_logprobs *logprobs = r->device.has_logprobs[at] ? r->device.logprobs[at] : NULL;
    scheduler_apply(r->scheduler, r->device.drawn[at], logprobs, ++r->now);
    const struct step_report *report = scheduler_report(r->scheduler);
    assert_int_equal(report->n_rows, report->n_prefill + report->n_decode);
    r->n_mixed += report->n_prefill > 0 && report->n_decode > 0;
}

/* One turn of the engine's loop; false when there is nothing left to do. */
static bool turn(struct run *r) {
    while (r->device.n <= r->lookahead) {
        const struct step *step = scheduler_plan(r->scheduler, ++r->now);
        if (!step) break;
        assert_true(step->n_rows > 0 && step->n_rows <= r->max_rows && step->n_samples <= r->max_samples);
        device_run(&r->device, step);
    }
    scheduler_check(r->scheduler);
    if (r->device.n == 0) return false;
    collect_one(r);
    scheduler_check(r->scheduler);
    return true;
}

static void run_all(struct run *r) {
    for (int i = 0; turn(r); i++) assert_true(i < 1000000);
    assert_true(scheduler_is_idle(r->scheduler));
}

static struct engine_request *request(uint64_t tag, const int32_t *tokens, size_t n, int32_t max_tokens) {
    struct engine_request *q = engine_request_new();
    q->tag = tag;
    q->tokens = mem_dup(tokens, n * sizeof *tokens);
    q->n_tokens = n;
    q->sampling.max_tokens = max_tokens;
    q->sampling.seed = tag;
    return q;
}

static struct engine_request *simple_request(uint64_t tag, int32_t n, int32_t max_tokens) {
    int32_t tokens[MAX_LEN + 10];
    for (int32_t i = 0; i < n; i++) tokens[i] = 3 + (int32_t)((tag * 7 + (uint64_t)i) % 50);
    return request(tag, tokens, (size_t)n, max_tokens);
}

static struct engine_completion *the_only_completion(struct run *r) {
    struct engine_completion *c = scheduler_take_done(r->scheduler);
    assert_non_null(c);
    assert_null(scheduler_take_done(r->scheduler));
    return c;
}

/* ---------------------------------------------------------------- a set of requests and their answers */

enum { REQUESTS = 120 };

struct expected {
    int32_t tokens[MAX_LEN];
    int32_t n, n_sampled;
    enum finish_reason finish;
};

/* Lists that many requests have in common, and lists of their own. */
static void add_lists(struct sampling *s, uint64_t tag) {
    int32_t bias[] = {41, 3, 17, 3}, banned[] = {9, 3}, allowed[] = {8, 2, (int32_t)(tag % 50)};
    float add[] = {1, 2, 3, 4};
    s->logit_bias_ids = mem_dup(bias, sizeof bias);
    s->logit_bias = mem_dup(add, sizeof add);
    s->n_logit_bias = 4;
    s->banned_token_ids = mem_dup(banned, sizeof banned);
    s->n_banned_token_ids = 2;
    if (tag % 8 != 3) return;
    s->allowed_token_ids = mem_dup(allowed, sizeof allowed);
    s->n_allowed_token_ids = 3;
}

/* hash_adjust of what such a request asks for, told once more. */
static uint64_t hash_request(const struct engine_request *q) {
    static const struct logit_bias merged[] = {{3, -INFINITY}, {9, -INFINITY}, {17, 3}, {41, 1}};
    const struct sampling *p = &q->sampling;
    struct step_sample s = {.repetition_penalty = p->repetition_penalty,
                            .presence_penalty = p->presence_penalty,
                            .frequency_penalty = p->frequency_penalty,
                            .n_prompt = (int32_t)q->n_tokens,
                            .n_bias = p->n_logit_bias ? 4 : 0,
                            .n_allowed = (int32_t)p->n_allowed_token_ids};
    s.is_adjusted = s.n_bias > 0 || p->repetition_penalty != 1 || p->presence_penalty != 0 || p->frequency_penalty != 0;
    return hash_adjust(&s, merged, p->allowed_token_ids);
}

/* Three families of prompts with long common beginnings, and lengths of all kinds. */
static struct engine_request *numbered_request(uint64_t tag) {
    int32_t tokens[MAX_LEN], n = 1 + (int32_t)(hash64_mix(tag, 1) % 150);
    for (int32_t i = 0; i < n; i++) tokens[i] = i < 100 ? 3 + (int32_t)((tag % 3 * 11 + (uint64_t)i) % 50) : 3 + (int32_t)(tag % 50);
    struct engine_request *q = request(tag, tokens, (size_t)n, 1 + (int32_t)(hash64_mix(tag, 2) % 90));
    q->sampling.ignore_eos = tag % 4 == 0;
    q->sampling.min_tokens = tag % 5 == 0 ? 20 : 0;
    if (tag % 7 == 0) {
        q->sampling.stop_token_ids = mem_alloc(2 * sizeof(int32_t));
        q->sampling.stop_token_ids[0] = 30;
        q->sampling.stop_token_ids[1] = 31;
        q->sampling.n_stop_token_ids = 2;
    }
    if (tag % 6 == 1) q->sampling.repetition_penalty = 1.0f + (float)tag;
    if (tag % 6 == 2) q->sampling.presence_penalty = 0.5f;
    if (tag % 9 == 2) q->sampling.frequency_penalty = 0.25f;
    if (tag % 4 == 3) add_lists(&q->sampling, tag);
    if (tag % 10 < 3) q->sampling.logprobs = (int32_t)(tag % 10) * 4;
    if (tag % 6 == 4) q->sampling.prompt_logprobs = (int32_t)(tag % 5);
    return q;
}

static bool is_stop(const struct sampling *p, int32_t id) {
    if (!p->ignore_eos && id == STOP_ID) return true;
    for (size_t i = 0; i < p->n_stop_token_ids; i++)
        if (p->stop_token_ids[i] == id) return true;
    return false;
}

/* The answer by definition, one token after another. */
static struct expected answer(const struct engine_request *q) {
    struct expected e = {.finish = FINISH_LENGTH};
    int32_t all[2 * MAX_LEN], n = (int32_t)q->n_tokens, banned[3], n_banned = 0;
    memcpy(all, q->tokens, q->n_tokens * sizeof *all);
    for (int32_t id = 0; id < VOCAB; id++)
        if (is_stop(&q->sampling, id)) banned[n_banned++] = id;
    while (e.n_sampled < q->sampling.max_tokens && n < MAX_LEN) {
        int32_t id = draw_token(all, n, q->sampling.seed, hash_request(q), banned, e.n_sampled < q->sampling.min_tokens ? n_banned : 0);
        e.n_sampled++;
        if (is_stop(&q->sampling, id)) {
            e.finish = FINISH_STOP;
            break;
        }
        all[n++] = e.tokens[e.n++] = id;
    }
    return e;
}

/* Those of tokens at positions from `first` on. */
static void check_logprobs(const struct logprobs *l, const int32_t *tokens, int32_t n, int32_t first, int32_t n_top) {
    if (n_top < 0) {
        assert_true(l->n == 0 && !l->token);
        return;
    }
    assert_int_equal(l->n, n);
    assert_int_equal(l->n_top, n_top);
    for (int32_t i = 0; i < l->n; i++) {
        struct sample_logprobs want = logprobs_for(tokens[i], first + i, n_top);
        assert_true(l->token[i] == want.token && l->rank[i] == want.rank);
        assert_memory_equal(l->top_ids + i * n_top, want.top_id, (size_t)n_top * sizeof(int32_t));
        assert_memory_equal(l->top + i * n_top, want.top, (size_t)n_top * sizeof(float));
    }
}

static void check_answer(const struct engine_completion *c) {
    struct engine_request *q = numbered_request(c->tag);
    struct expected e = answer(q);
    assert_int_equal(c->finish, e.finish);
    assert_int_equal(c->n_tokens, e.n);
    assert_int_equal(c->n_completion_tokens, e.n_sampled);
    assert_memory_equal(c->tokens, e.tokens, (size_t)e.n * sizeof *e.tokens);
    assert_int_equal(c->n_prompt_tokens, q->n_tokens);
    assert_true(c->n_cached_tokens % KV_BLOCK == 0 && c->n_cached_tokens < c->n_prompt_tokens);
    assert_true(0 < c->scheduled_ns && c->scheduled_ns < c->first_token_ns && c->first_token_ns <= c->last_token_ns);
    assert_true((c->last_token_ns > c->first_token_ns) == (c->n_completion_tokens > 1));
    assert_true(c->text_bytes == SIZE_MAX);
    check_logprobs(&c->logprobs, c->tokens, (int32_t)c->n_tokens, c->n_prompt_tokens, q->sampling.logprobs);
    check_logprobs(&c->prompt_logprobs, q->tokens + 1, (int32_t)q->n_tokens - 1, 1, q->sampling.prompt_logprobs);
    assert_int_equal(c->prompt_tokens != NULL, q->sampling.prompt_logprobs >= 0);
    if (c->prompt_tokens) {
        assert_memory_equal(c->prompt_tokens, q->tokens, q->n_tokens * sizeof *q->tokens);
        assert_int_equal(c->n_cached_tokens, 0);
    }
    engine_request_free(q);
}

/* ---------------------------------------------------------------- cases */

static void a_request_alone_gives_its_answer(void **state) {
    for (int lookahead = 0; lookahead <= 2; lookahead++)
        for (uint64_t tag = 1; tag <= 30; tag++) {
            struct run *r = run_new(8, 1, 16, lookahead);
            scheduler_add(r->scheduler, numbered_request(tag));
            run_all(r);
            struct engine_completion *c = the_only_completion(r);
            check_answer(c);
            assert_int_equal(c->preemptions, 0);
            engine_completion_free(c);
            run_free(r);
        }
}

struct totals {
    int64_t preemptions, cached, mixed;
};

static struct totals run_everybody(int32_t n_blocks, int32_t n_slots, int32_t max_rows, int lookahead, uint64_t order) {
    int32_t most = order % 2 ? MAX_SAMPLES : 0; /* with and without samples to spare */
    struct run *r = run_with(n_blocks, n_slots, max_rows, most, lookahead);
    uint64_t tags[REQUESTS];
    for (int i = 0; i < REQUESTS; i++) tags[i] = (uint64_t)i + 1;
    for (int i = REQUESTS - 1; i > 0; i--) {
        int k = (int)(hash64_mix(order, (uint64_t)i) % (uint64_t)(i + 1));
        uint64_t t = tags[i];
        tags[i] = tags[k];
        tags[k] = t;
    }
    int added = 0, seen = 0;
    bool done[REQUESTS + 1] = {false};
    struct totals sum = {0};
    int64_t sampled = 0;
    uint64_t turns = 0;
    for (bool more = true; more || added < REQUESTS; turns++) {
        for (uint64_t n = hash64_mix(order, turns) % 9; n > 0 && added < REQUESTS; n--)
            scheduler_add(r->scheduler, numbered_request(tags[added++]));
        more = turn(r);
        struct engine_completion *c;
        while ((c = scheduler_take_done(r->scheduler))) {
            check_answer(c);
            assert_false(done[c->tag]);
            done[c->tag] = true;
            seen++;
            sum.preemptions += c->preemptions;
            sum.cached += c->n_cached_tokens;
            sampled += c->n_completion_tokens;
            engine_completion_free(c);
        }
    }
    assert_int_equal(seen, REQUESTS);
    struct engine_stats stats;
    scheduler_stats(r->scheduler, &stats);
    assert_int_equal(stats.n_preemptions, sum.preemptions);
    assert_int_equal(stats.n_cached_tokens, sum.cached);
    assert_int_equal(stats.n_completion_tokens, sampled);
    assert_int_equal(stats.kv_blocks_used, 0);
    sum.mixed = r->n_mixed;
    run_free(r);
    return sum;
}

static void everybody_together_gives_the_same_answers(void **state) {
    static const int32_t rows[] = {5, 16, 64, 512};
    static const int32_t blocks[] = {8, 13, 40, 400};
    static const int32_t slots[] = {1, 3, 16, 32};
    int64_t preemptions = 0, cached = 0, mixed = 0;
    int n = test_is_quick() ? 40 : 400;
    for (int i = 0; i < n; i++) {
        uint64_t h = hash64_mix((uint64_t)i, 99);
        struct totals t = run_everybody(blocks[h % 4], slots[h / 4 % 4], rows[h / 16 % 4], i % 3, (uint64_t)i);
        preemptions += t.preemptions;
        cached += t.cached;
        mixed += t.mixed;
    }
    assert_true(preemptions > n && cached > 100 * n && mixed > 10 * n);
}

/* Each prompt token but the first is told about exactly once, preempted or not. */
static void prompt_logprobs_are_computed_once(void **state) {
    for (int lookahead = 0; lookahead <= 2; lookahead++) {
        struct run *r = run_with(6, 4, 32, 7, lookahead);
        int64_t n = 0, preemptions = 0;
        for (uint64_t tag = 0; tag < 12; tag++) {
            struct engine_request *q = simple_request(tag, 3 + (int32_t)tag * 9, 90);
            q->sampling.prompt_logprobs = 2;
            q->sampling.ignore_eos = true;
            n += (int64_t)q->n_tokens - 1;
            scheduler_add(r->scheduler, q);
        }
        run_all(r);
        struct engine_completion *c;
        while ((c = scheduler_take_done(r->scheduler))) {
            assert_int_equal(c->prompt_logprobs.n, c->n_prompt_tokens - 1);
            preemptions += c->preemptions;
            engine_completion_free(c);
        }
        assert_true(preemptions > 3);
        if (lookahead == 0) assert_int_equal(r->device.n_targets, n);
        assert_true(r->device.n_targets >= n); /* what was under way at a preemption is asked for again */
        run_free(r);
    }
}

static void a_step_mixes_decode_and_prefill_within_its_budget(void **state) {
    struct run *r = run_new(64, 4, 32, 0);
    scheduler_add(r->scheduler, simple_request(1, 10, 50));
    device_run(&r->device, scheduler_plan(r->scheduler, 1));
    collect_one(r);
    scheduler_add(r->scheduler, simple_request(2, 100, 50));
    scheduler_add(r->scheduler, simple_request(3, 5, 50));
    const struct step *step = scheduler_plan(r->scheduler, 2);
    assert_int_equal(step->n_rows, 32); /* one row of 1, 31 of 2: 3 has to wait */
    assert_int_equal(step->n_sequences, 2);
    assert_int_equal(step->sequences[0].n_rows, 1);
    assert_int_equal(step->sequences[0].first_position, 10);
    assert_int_equal(step->sequences[1].n_rows, 31);
    assert_int_equal(step->n_samples, 1);
    assert_int_equal(scheduler_n_waiting(r->scheduler), 1);
    device_run(&r->device, step);
    collect_one(r);
    const struct step_report *report = scheduler_report(r->scheduler);
    assert_int_equal(report->step, 2);
    assert_int_equal(report->n_decode, 1);
    assert_int_equal(report->n_prefill, 31);
    run_all(r);
    run_free(r);
}

static void a_row_of_an_unseen_sample_names_its_slot(void **state) {
    struct run *r = run_new(16, 2, 64, 2);
    scheduler_add(r->scheduler, simple_request(1, 4, 3));
    const struct step *step = scheduler_plan(r->scheduler, 1);
    assert_int_equal(step->n_rows, 4);
    device_run(&r->device, step);
    for (int i = 0; i < 2; i++) {
        step = scheduler_plan(r->scheduler, 2);
        assert_int_equal(step->n_rows, 1);
        assert_int_equal(step->token[0], ~step->slot[0]);
        assert_int_equal(step->position[0], 4 + i);
        device_run(&r->device, step);
    }
    collect_one(r);
    assert_null(scheduler_plan(r->scheduler, 3)); /* all of max_tokens is under way: no surplus */
    run_all(r);
    run_free(r);
}

static void short_rows_finish_before_long_ones_admitted_earlier(void **state) {
    struct run *r = run_new(64, 4, 64, 1);
    struct engine_request *longer = simple_request(1, 20, 60), *shorter = simple_request(2, 20, 3);
    longer->sampling.ignore_eos = shorter->sampling.ignore_eos = true;
    scheduler_add(r->scheduler, longer);
    scheduler_add(r->scheduler, shorter);
    run_all(r);
    struct engine_completion *c = scheduler_take_done(r->scheduler);
    assert_int_equal(c->tag, 2);
    engine_completion_free(c);
    engine_completion_free(the_only_completion(r));
    run_free(r);
}

static void the_youngest_is_preempted_and_the_oldest_goes_on(void **state) {
    struct run *r = run_new(8, 4, 64, 0);
    for (uint64_t tag = 1; tag <= 3; tag++) {
        struct engine_request *q = simple_request(tag, 40, 120);
        q->sampling.ignore_eos = true;
        scheduler_add(r->scheduler, q);
    }
    run_all(r);
    int32_t preemptions[4] = {0};
    for (int i = 0; i < 3; i++) {
        struct engine_completion *c = scheduler_take_done(r->scheduler);
        assert_int_equal(c->tag, i + 1);
        assert_int_equal(c->n_completion_tokens, 120);
        preemptions[c->tag] = c->preemptions;
        engine_completion_free(c);
    }
    assert_int_equal(preemptions[1], 0);
    assert_true(preemptions[2] + preemptions[3] > 0);
    run_free(r);
}

static void requests_that_cannot_run_come_back_at_once(void **state) {
    struct run *r = run_new(4, 2, 64, 1);
    int32_t bad[] = {5, VOCAB, 5}, negative[] = {-1};
    const struct {
        struct engine_request *q;
        const char *code, *text;
    } cases[] = {
        {simple_request(1, 0, 5), "empty_prompt", "no tokens"},
        {simple_request(2, MAX_LEN, 5), "context_length", "prompt has 256 tokens, the context is 256"},
        {simple_request(3, MAX_LEN + 9, 5), "context_length", "prompt has 265 tokens, the context is 256"},
        {request(4, bad, 3, 5), "bad_token", "id 60 of the prompt is not in the vocabulary of 60"},
        {request(5, negative, 1, 5), "bad_token", "id -1"},
        {simple_request(6, 120, 20), "context_length", "5 KV blocks, there are 4"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        size_t n = cases[i].q->n_tokens;
        scheduler_add(r->scheduler, cases[i].q);
        struct engine_completion *c = the_only_completion(r);
        assert_int_equal(c->tag, i + 1);
        assert_int_equal(c->finish, FINISH_ERROR);
        assert_string_equal(c->error_code, cases[i].code);
        if (!strstr(c->error, cases[i].text)) fail_msg("\"%s\" lacks \"%s\"", c->error, cases[i].text);
        assert_int_equal(c->n_prompt_tokens, n);
        assert_int_equal(c->scheduled_ns, 0);
        engine_completion_free(c);
    }
    scheduler_add(r->scheduler, simple_request(7, 120, 9)); /* 128 positions fit */
    run_all(r);
    engine_completion_free(the_only_completion(r));
    run_free(r);
}

static void the_context_cuts_max_tokens(void **state) {
    struct run *r = run_new(64, 2, 64, 1);
    struct engine_request *q = simple_request(1, MAX_LEN - 7, 5000);
    q->sampling.ignore_eos = true;
    scheduler_add(r->scheduler, q);
    run_all(r);
    struct engine_completion *c = the_only_completion(r);
    assert_int_equal(c->n_tokens, 7);
    assert_int_equal(c->finish, FINISH_LENGTH);
    engine_completion_free(c);
    run_free(r);
}

static void a_draw_that_is_not_finite_fails_its_row_alone(void **state) {
    for (int lookahead = 0; lookahead <= 2; lookahead++) {
        struct run *r = run_new(64, 4, 64, lookahead);
        struct engine_request *q = simple_request(1, 10, 50);
        q->sampling.seed = NAN_SEED;
        q->sampling.ignore_eos = true;
        scheduler_add(r->scheduler, q);
        scheduler_add(r->scheduler, numbered_request(2));
        run_all(r);
        for (int i = 0; i < 2; i++) {
            struct engine_completion *c = scheduler_take_done(r->scheduler);
            if (c->tag == 2) check_answer(c);
            else {
                assert_int_equal(c->finish, FINISH_ERROR);
                assert_string_equal(c->error_code, "numeric");
                assert_int_equal(c->n_tokens, 2);
            }
            engine_completion_free(c);
        }
        run_free(r);
    }
}

static void a_common_beginning_is_computed_once(void **state) {
    struct run *r = run_new(64, 4, 512, 1);
    for (uint64_t tag = 1; tag <= 3; tag++) {
        int32_t tokens[101];
        for (int32_t i = 0; i < 100; i++) tokens[i] = 3 + i % 50;
        tokens[100] = (int32_t)tag;
        scheduler_add(r->scheduler, request(tag, tokens, 101, 1));
    }
    const struct step *step = scheduler_plan(r->scheduler, 1); /* all three in one step */
    assert_int_equal(step->n_rows, 101 + 2 * (101 - 96));
    device_run(&r->device, step);
    run_all(r);
    for (int i = 0; i < 3; i++) {
        struct engine_completion *c = scheduler_take_done(r->scheduler);
        assert_int_equal(c->n_cached_tokens, c->tag == 1 ? 0 : 96);
        engine_completion_free(c);
    }
    run_free(r);
}

/* Samples are published too, but only once they are known. */
static void what_was_generated_is_shared(void **state) {
    for (int lookahead = 0; lookahead <= 2; lookahead++) {
        struct run *r = run_new(64, 4, 64, lookahead);
        struct engine_request *q = simple_request(20 + (uint64_t)lookahead, 10, 100);
        int32_t tokens[110];
        memcpy(tokens, q->tokens, 10 * sizeof *tokens);
        q->sampling.ignore_eos = true;
        scheduler_add(r->scheduler, q);
        run_all(r);
        struct engine_completion *c = the_only_completion(r);
        memcpy(tokens + 10, c->tokens, 100 * sizeof *tokens);
        engine_completion_free(c);
        scheduler_add(r->scheduler, request(2, tokens, 110, 5));
        run_all(r);
        c = the_only_completion(r);
        assert_int_equal(c->n_cached_tokens, 96);
        engine_completion_free(c);
        run_free(r);
    }
}

static void aborted_requests_come_back_and_leave_nothing(void **state) {
    for (int lookahead = 0; lookahead <= 2; lookahead++) {
        struct run *r = run_new(40, 8, 32, lookahead);
        int n_aborted = 0, n_done = 0;
        for (uint64_t tag = 1; tag <= REQUESTS; tag++) scheduler_add(r->scheduler, numbered_request(tag));
        for (int i = 0; turn(r); i++) {
            if (i % 20 == 10) scheduler_abort(r->scheduler, (uint64_t)i, (uint64_t)i + 6);
            struct engine_completion *c;
            while ((c = scheduler_take_done(r->scheduler))) {
                n_done++;
                if (c->finish == FINISH_ABORTED) n_aborted++;
                else check_answer(c);
                engine_completion_free(c);
            }
        }
        assert_int_equal(n_done, REQUESTS);
        assert_true(n_aborted > 5);
        run_free(r);
    }
}

static void freeing_in_the_middle_loses_no_memory(void **state) {
    for (int steps = 0; steps < 40; steps++) {
        struct run *r = run_new(20, 8, 32, 2);
        for (uint64_t tag = 1; tag <= 20; tag++) scheduler_add(r->scheduler, numbered_request(tag));
        for (int i = 0; i < steps; i++) turn(r);
        scheduler_abort(r->scheduler, 3, 5);
        run_free(r); /* the address sanitizer has the verdict */
    }
}

/* With the demo model's tokenizer: the text ends before the first stop string, whatever
 * tokens it is spread over, and the tokens go up to the one that completed it. */
static void stop_strings_end_the_text(void **state) {
    struct tokenizer *tok;
    struct err err = ERR_INIT;
    assert_ok(tokenizer_open(&tok, "tests/models/demo", &err), &err);
    int n_met = 0, n_across = 0;
    for (uint64_t tag = 1; tag <= 200; tag++) {
        struct engine_request *q = simple_request(tag, 10, 40);
        q->sampling.ignore_eos = true;
        q->sampling.min_tokens = tag % 3 ? 0 : 10;
        struct expected e = answer(q);
        char stop[8] = {0}, *list[] = {stop};
        struct buf text = BUF_INIT(0), early = BUF_INIT(0);
        tokenizer_decode(tok, &text, e.tokens, (size_t)e.n, true);
        tokenizer_decode(tok, &early, e.tokens, (size_t)q->sampling.min_tokens, true);
        memcpy(stop, text.data + tag % (text.n - 3), 2 + tag % 2);
        size_t want = stops_find(text.data, text.n, q->sampling.min_tokens ? early.n : 0, list, 1);
        q->sampling.stop = mem_zalloc(1, sizeof(char *));
        q->sampling.stop[0] = mem_strdup(stop);
        q->sampling.n_stop = 1;
        struct run *r = run_new(64, 2, 64, (int)(tag % 3));
        scheduler_free(r->scheduler);
        r->scheduler = scheduler_new(&(struct scheduler_options){.model = &model, .tokenizer = tok,
            .max_model_len = MAX_LEN, .n_blocks = 64, .n_slots = 2, .max_rows = 64, .depth = r->lookahead + 1});
        scheduler_add(r->scheduler, q);
        run_all(r);
        struct engine_completion *c = the_only_completion(r);
        assert_true(c->text_bytes == want);
        assert_int_equal(c->finish, want == SIZE_MAX ? FINISH_LENGTH : FINISH_STOP);
        assert_memory_equal(c->tokens, e.tokens, c->n_tokens * sizeof *e.tokens);
        if (want != SIZE_MAX) { /* no token fewer would do */
            struct buf got = BUF_INIT(0), before = BUF_INIT(0);
            tokenizer_decode(tok, &got, c->tokens, c->n_tokens, true);
            tokenizer_decode(tok, &before, c->tokens, c->n_tokens - 1, true);
            assert_memory_equal(got.data, text.data, want + strlen(stop));
            n_met++;
            n_across += before.n > want;
            buf_clear(&got);
            buf_clear(&before);
        }
        engine_completion_free(c);
        run_free(r);
        buf_clear(&text);
        buf_clear(&early);
    }
    assert_true(n_met > 100 && n_across > 20);
    tokenizer_close(tok);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(a_request_alone_gives_its_answer),
    cmocka_unit_test(everybody_together_gives_the_same_answers),
    cmocka_unit_test(prompt_logprobs_are_computed_once),
    cmocka_unit_test(a_step_mixes_decode_and_prefill_within_its_budget),
    cmocka_unit_test(a_row_of_an_unseen_sample_names_its_slot),
    cmocka_unit_test(short_rows_finish_before_long_ones_admitted_earlier),
    cmocka_unit_test(the_youngest_is_preempted_and_the_oldest_goes_on),
    cmocka_unit_test(requests_that_cannot_run_come_back_at_once),
    cmocka_unit_test(the_context_cuts_max_tokens),
    cmocka_unit_test(a_draw_that_is_not_finite_fails_its_row_alone),
    cmocka_unit_test(a_common_beginning_is_computed_once),
    cmocka_unit_test(what_was_generated_is_shared),
    cmocka_unit_test(aborted_requests_come_back_and_leave_nothing),
    cmocka_unit_test(freeing_in_the_middle_loses_no_memory),
    cmocka_unit_test(stop_strings_end_the_text),
};
UNIT_MAIN(tests)
