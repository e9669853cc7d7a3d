/* test_op_adjust.c - what op_sample does to logits before it draws (penalties, bias, allowed
 * ids) and the logprobs that it reports: against the rule in double precision, transformers'
 * repetition penalty and torch's log_softmax (tests/data/sampling/make.py). Each case runs on
 * every instruction set with one thread and with two. */
#include "tests/aid_sample.h"

#include <jansson.h>
#include <math.h>

/* ---------------------------------------------------------------- fixtures */

static void each_line(const char *path, struct bed *b, void (*fn)(struct bed *, const json_t *)) {
    char *line = NULL;
    size_t cap = 0;
    int n = 0;
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    for (; getline(&line, &cap, f) > 0; n++) {
        json_t *root = json_loads(line, 0, NULL);
        assert_non_null(root);
        fn(b, root);
        json_decref(root);
    }
    assert_true(n >= 3);
    free(line);
    fclose(f);
}

static double number_at(const json_t *o, const char *key, int i) {
    return json_number_value(json_array_get(json_object_get(o, key), (size_t)i));
}

static int length_of(const json_t *o, const char *key) {
    return (int)json_array_size(json_object_get(o, key));
}

static struct tensor scores_of(struct bed *b, const json_t *line, int rows) {
    int vocab = length_of(line, "scores");
    float *l = bed_floats(b, rows * vocab);
    for (int i = 0; i < rows * vocab; i++) l[i] = (float)number_at(line, "scores", i % vocab);
    return bed_tensor(b, DTYPE_F32, rows, vocab, l);
}

/* ---------------------------------------------------------------- repetition penalty, as transformers has it */

/* The order of all processed scores: of n samples the k-th has the k - 1 highest banned. */
static void repetition_line(struct bed *b, const json_t *line) {
    static struct draws d;
    int vocab = length_of(line, "scores"), n = length_of(line, "history");
    draws_begin(&d, vocab);
    for (int p = 0; p < n; p++) d.history[2][p] = (int32_t)number_at(line, "history", p);
    for (int k = 0; k < vocab; k++) {
        struct step_sample *s = &d.sample[k];
        d.banned[k] = (int32_t)number_at(line, "order", k);
        s->n_banned = k;
        s->is_adjusted = true;
        s->slot = 2;
        s->position = n;
        s->n_prompt = k % (n + 1); /* prompt and output count alike */
        s->repetition_penalty = (float)json_number_value(json_object_get(line, "penalty"));
    }
    struct tensor t = scores_of(b, line, vocab);
    draw(b, &d, &t, NULL);
    for (int k = 0; k < vocab; k++) assert_int_equal(d.drawn[k], d.banned[k]);
}

static void repetition(struct bed *b) {
    each_line("tests/data/sampling/repetition.jsonl", b, repetition_line);
}

static void repetition_penalty_is_that_of_transformers(void **state) {
    each_bed(repetition);
}

/* ---------------------------------------------------------------- the rule */

static bool is_allowed(const struct draws *d, const struct step_sample *s, int32_t id) {
    for (int32_t i = 0; i < s->n_allowed; i++)
        if (d->allowed[s->first_allowed + i] == id) return true;
    return s->n_allowed == 0;
}

/* What a sample asks for, in double precision, in the order that ops.h states. */
static void adjust_plainly(double *l, int vocab, const struct draws *d, const struct step_sample *s) {
    for (int32_t id = 0; id < vocab; id++) {
        int n_seen = 0, n_output = 0;
        for (int32_t p = 0; p < s->position; p++) {
            n_seen += d->history[s->slot][p] == id;
            n_output += d->history[s->slot][p] == id && p >= s->n_prompt;
        }
        if (!is_allowed(d, s, id)) l[id] = -INFINITY;
        for (int32_t i = 0; i < s->n_bias; i++)
            if (d->bias[s->first_bias + i].id == id) l[id] += (double)d->bias[s->first_bias + i].add;
        if (n_seen > 0 && s->repetition_penalty > 0)
            l[id] = l[id] > 0 ? l[id] / (double)s->repetition_penalty : l[id] * (double)s->repetition_penalty;
        if (n_output > 0) l[id] -= (double)s->frequency_penalty * n_output + (double)s->presence_penalty;
    }
}

/* Ascending, without twins: of `most` ids that could be there, some. */
static int32_t choose_ids(struct bed *b, int32_t *ids, int32_t vocab, int32_t most) {
    int32_t n = 0, every = 1 + vocab / most;
    for (int32_t id = bed_random_below(b, every); id < vocab && n < most; id += 1 + bed_random_below(b, 2 * every - 1))
        ids[n++] = id;
    return n;
}

enum { N = 48 };

static void fill_lists(struct bed *b, struct draws *d, int vocab) {
    int32_t ids[100];
    draws_begin(d, N);
    for (int s = 0; s < SLOTS; s++) /* texts repeat themselves */
        for (int p = 0; p < HISTORY; p++) d->history[s][p] = bed_random_below(b, p % 3 ? vocab / 4 : vocab);
    for (int at = 0; at < 3; at++) {
        int32_t n = choose_ids(b, ids, vocab, 60);
        for (int32_t i = 0; i < 60; i++) {
            float add = i % 7 == 3 ? -INFINITY : 4 * bed_random(b);
            d->bias[at * 60 + i] = (struct logit_bias){i < n ? ids[i] : vocab + i, add};
            d->allowed[at * 60 + i] = i < n ? ids[i] : vocab + i; /* ids that are none are harmless */
        }
    }
    for (int i = 0; i < 64; i++) d->banned[i] = bed_random_below(b, vocab);
}

/* Every combination of what a sample can ask for, at all lengths of history. */
static void set_samples(struct bed *b, struct draws *d) {
    for (int i = 0; i < N; i++) {
        struct step_sample *s = &d->sample[i];
        s->slot = i % SLOTS;
        s->position = i == 0 ? 0 : bed_random_below(b, HISTORY + 1);
        s->n_prompt = i % 5 ? bed_random_below(b, s->position + 1) : s->position;
        s->is_adjusted = i % 12 != 11;
        if (i % 2) s->repetition_penalty = i % 4 == 1 ? 1.4f : 0.6f;
        if (i % 3) s->presence_penalty = bed_random(b);
        if (i % 7) s->frequency_penalty = 0.4f * bed_random(b);
        if (i % 4 > 1) s->first_bias = i % 3 * 60, s->n_bias = 60 - i % 2 * 23;
        if (i % 6 == 4) s->first_allowed = i % 3 * 60, s->n_allowed = 60 - i % 5;
        if (i % 5 == 2) s->first_banned = i % 20, s->n_banned = 30;
        if (i % 8 > 3) s->temperature = 1.5f, s->seed = (uint64_t)i;
        if (i % 16 > 11) s->top_k = 20, s->top_p = 0.9f;
    }
}

static void check_rule(struct bed *b, int vocab, bool has_bias) {
    static struct draws d;
    int n_unclear = 0, n_changed = 0;
    float *ignored, *bias = NULL;
    double *plain = malloc((size_t)vocab * sizeof *plain), *l = malloc((size_t)vocab * sizeof *l);
    struct weight *w = has_bias ? bed_weight(b, vocab, 1, b->dtype, &ignored, &bias) : NULL;
    struct tensor t = bed_random_tensor(b, DTYPE_F32, N, vocab, 5);
    float *logits = bed_get(b, &t);
    fill_lists(b, &d, vocab);
    set_samples(b, &d);
    draw(b, &d, &t, w);
    for (int i = 0; i < N; i++) {
        struct step_sample *s = &d.sample[i];
        int32_t want = -2, unchanged = -2;
        for (int k = 0; k < vocab; k++)
            plain[k] = l[k] = (double)(bias ? logits[i * vocab + k] + bias[k] : logits[i * vocab + k]);
        if (s->is_adjusted) adjust_plainly(l, vocab, &d, s);
        bool is_clear = draw_plainly(l, vocab, s, d.banned, &want);
        n_changed += draw_plainly(plain, vocab, s, d.banned, &unchanged) && is_clear && want != unchanged;
        n_unclear += !is_clear;
        if (is_clear && d.drawn[i] != want)
            fail_msg("%s: row %d of %d tokens draws %d, not %d", dev_name(b->dev), i, vocab, d.drawn[i], want);
    }
    assert_true(n_unclear < N / 4 && n_changed > N / 8);
    free(plain);
    free(l);
}

static void rule(struct bed *b) {
    check_rule(b, 203, false);
    check_rule(b, 64, true);
    if (!test_is_quick()) check_rule(b, 19001, true); /* more than is counted at a time */
}

static void adjusted_draws_follow_the_rule(void **state) {
    each_bed(rule);
}

/* A row's draw and logprobs alone are those among others. */
static void neighbours(struct bed *b) {
    enum { V = 131 };
    static struct draws d, one;
    struct tensor t = bed_random_tensor(b, DTYPE_F32, N, V, 4);
    fill_lists(b, &d, V);
    set_samples(b, &d);
    for (int i = 0; i < N; i++) d.sample[i].wants_logprob = i % 3 > 0, d.sample[i].n_top = i % 21;
    draw(b, &d, &t, NULL);
    for (int i = 0; i < N; i++) {
        struct tensor row = rows_from(&t, i, 1);
        one = d;
        one.sample[0] = d.sample[i];
        one.sample[0].row = 0;
        draw(b, &one, &row, NULL);
        assert_int_equal(one.drawn[0], d.drawn[i]);
        if (d.sample[i].wants_logprob) assert_memory_equal(&one.logprobs[0], &d.logprobs[i], sizeof *d.logprobs);
    }
}

static void an_adjusted_draw_does_not_see_other_rows(void **state) {
    each_bed(neighbours);
}

static void nothing_left(struct bed *b) {
    enum { V = 24 };
    static struct draws d;
    float l[2 * V];
    for (int i = 0; i < 2 * V; i++) l[i] = (float)(i % V);
    l[V + 3] = NAN;
    struct tensor t = bed_tensor(b, DTYPE_F32, 2, V, l);
    draws_begin(&d, 2);
    for (int i = 0; i < 2; i++) {
        d.sample[i].is_adjusted = d.sample[i].wants_logprob = true;
        d.sample[i].n_bias = 1 - i;
        d.sample[i].position = 0;
    }
    d.sample[0].n_allowed = 1;
    d.allowed[0] = 5;
    d.bias[0] = (struct logit_bias){5, -INFINITY};
    draw(b, &d, &t, NULL);
    assert_int_equal(d.drawn[0], -1);
    assert_int_equal(d.drawn[1], -1);
    d.bias[0].add = -100;
    draw(b, &d, &t, NULL);
    assert_int_equal(d.drawn[0], 5);
}

static void nothing_left_or_nan_gives_minus_one(void **state) {
    each_bed(nothing_left);
}

/* ---------------------------------------------------------------- the history */

/* op_embed keeps the tokens of its rows, drawn ones too, where the block table says. */
static void history(struct bed *b) {
    static struct bed_step s;
    float *ignored;
    struct weight *table = bed_weight(b, 50, 16, b->dtype, &ignored, NULL);
    struct tensor kept = bed_tensor(b, DTYPE_I32, BED_BLOCKS, KV_BLOCK, NULL);
    int32_t last_host[SLOTS] = {0, 41, 42, 43}, got[BED_BLOCKS * KV_BLOCK];
    struct tensor last = bed_tensor(b, DTYPE_I32, SLOTS, 1, NULL);
    dev_upload(b->dev, last.data, last_host, sizeof last_host);
    step_begin(&s, 3);
    step_add(&s, 3, 100, 1);
    step_add(&s, 0, 20, 50);
    step_add(&s, 1, 0, 7);
    s.token[0] = ~3;
    for (int32_t r = 1; r < s.step.n_rows; r++) s.token[r] = r % 40;
    struct tensor residual = bed_tensor(b, b->dtype, s.step.n_rows, 16, NULL);
    step_set_last_sample(b->dev, last.data);
    step_set_history(b->dev, kept.data);
    op_embed(b->dev, &residual, table, 1.0f, step_upload(b->dev, &s.step));
    step_set_history(b->dev, NULL);
    dev_download(b->dev, got, kept.data, sizeof got);
    for (int32_t r = 0; r < s.step.n_rows; r++) {
        int32_t p = s.position[r], block = s.table[s.slot[r] * BED_STRIDE + p / KV_BLOCK];
        assert_int_equal(got[block * KV_BLOCK + p % KV_BLOCK], r == 0 ? 43 : r % 40);
        got[block * KV_BLOCK + p % KV_BLOCK] = 0;
    }
    for (int32_t i = 0; i < BED_BLOCKS * KV_BLOCK; i++) assert_int_equal(got[i], 0);
}

static void embedding_keeps_the_tokens(void **state) {
    each_bed(history);
}

/* ---------------------------------------------------------------- logprobs */

static void assert_logprob(const struct bed *b, double got, double want) {
    if (!(fabs(got - want) <= 2e-6 + 3e-7 * fabs(want)))
        fail_msg("%s: logprob %.9g, not %.9g", dev_name(b->dev), got, want);
}

/* Each of the ids as the target, with any number of alternatives. */
static void torch_line(struct bed *b, const json_t *line) {
    static struct draws d;
    int vocab = length_of(line, "scores");
    struct tensor t = scores_of(b, line, vocab);
    draws_begin(&d, vocab);
    for (int i = 0; i < vocab; i++) {
        struct step_sample *s = &d.sample[i];
        s->wants_logprob = s->has_target = true;
        s->target = i;
        s->n_top = i % (MAX_LOGPROBS + 1);
    }
    draw(b, &d, &t, NULL);
    for (int i = 0; i < vocab; i++) {
        assert_int_equal(d.drawn[i], i);
        assert_logprob(b, (double)d.logprobs[i].token, number_at(line, "logprobs", i));
        assert_int_equal(number_at(line, "top", d.logprobs[i].rank - 1), i);
        for (int k = 0; k < d.sample[i].n_top; k++) {
            int id = (int)number_at(line, "top", k);
            assert_int_equal(d.logprobs[i].top_id[k], id);
            assert_logprob(b, (double)d.logprobs[i].top[k], number_at(line, "logprobs", id));
        }
    }
    for (int i = 0; i < SLOTS; i++) assert_int_equal(d.last[i], 0); /* nothing was drawn */
}

static void torch_logprobs(struct bed *b) {
    each_line("tests/data/sampling/logprobs.jsonl", b, torch_line);
}

static void logprobs_are_those_of_torch(void **state) {
    each_bed(torch_logprobs);
}

static double log_sum(const float *l, int n) {
    double max = -INFINITY, sum = 0;
    for (int i = 0; i < n; i++) max = fmax(max, (double)l[i]);
    for (int i = 0; i < n; i++) sum += exp((double)l[i] - max);
    return max + log(sum);
}

/* The highest of row `l` that is not among the n before; ties to the lowest id. */
static int32_t next_highest(const float *l, int vocab, const int32_t *before, int n) {
    int32_t best = -1;
    for (int32_t id = 0; id < vocab; id++) {
        bool is_taken = false;
        for (int k = 0; k < n; k++) is_taken |= before[k] == id;
        if (!is_taken && (best < 0 || l[id] > l[best])) best = id;
    }
    return best;
}

enum { ROWS = 6 };

/* The logits as they came count, whatever was done to them for the draw. */
static void check_logprobs(struct bed *b, int vocab, float range, int n_levels) {
    static struct draws d;
    float *l = bed_floats(b, ROWS * vocab);
    for (int i = 0; i < ROWS * vocab; i++)
        l[i] = n_levels ? range * (float)bed_random_below(b, n_levels) : range * bed_random(b);
    struct tensor t = bed_tensor(b, DTYPE_F32, ROWS, vocab, l);
    fill_lists(b, &d, vocab);
    set_samples(b, &d);
    for (int i = 0; i < ROWS; i++) {
        d.sample[i].wants_logprob = true;
        d.sample[i].n_top = i * 4;
        if (vocab < 30) d.sample[i].n_banned = d.sample[i].n_allowed = d.sample[i].n_bias = 0; /* leave some */
    }
    draw(b, &d, &t, NULL);
    for (int i = 0; i < ROWS; i++) {
        const float *row = l + i * vocab;
        const struct sample_logprobs *got = &d.logprobs[i];
        double less = log_sum(row, vocab);
        assert_true(d.drawn[i] >= 0);
        assert_logprob(b, (double)got->token, (double)row[d.drawn[i]] - less);
        int rank = 1;
        for (int k = 0; k < vocab; k++) rank += row[k] > row[d.drawn[i]];
        assert_int_equal(got->rank, rank);
        for (int k = 0; k < i * 4; k++) {
            int32_t id = k < vocab ? next_highest(row, vocab, got->top_id, k) : -1;
            assert_int_equal(got->top_id[k], id);
            if (id >= 0) assert_logprob(b, (double)got->top[k], (double)row[id] - less);
            else assert_true(got->top[k] == 0);
        }
    }
}

static void logprobs(struct bed *b) {
    check_logprobs(b, 203, 5, 0);
    check_logprobs(b, 9, 5, 0); /* fewer ids than are asked for */
    check_logprobs(b, 500, 2, 3);
    check_logprobs(b, 8000, 1, 1); /* all tie, and are too many for a list */
    check_logprobs(b, 8000, 0.001f, 0);
    check_logprobs(b, 8000, 40, 0);
}

static void logprobs_are_those_of_the_logits_as_they_came(void **state) {
    each_bed(logprobs);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(repetition_penalty_is_that_of_transformers),
    cmocka_unit_test(adjusted_draws_follow_the_rule),
    cmocka_unit_test(an_adjusted_draw_does_not_see_other_rows),
    cmocka_unit_test(nothing_left_or_nan_gives_minus_one),
    cmocka_unit_test(embedding_keeps_the_tokens),
    cmocka_unit_test(logprobs_are_those_of_torch),
    cmocka_unit_test(logprobs_are_those_of_the_logits_as_they_came),
};
UNIT_MAIN(tests)
