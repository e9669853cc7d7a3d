/* test_op_sample.c - op_sample against its rule (kernels/ops.h), written out plainly in
 * double precision with sorting where the kernel searches; and the frequencies of what
 * it draws. Each case runs on every instruction set with one thread and with two. */
#include "tests/aid_sample.h"

#include "kernels/philox.h"

#include <math.h>

/* Random123's kat_vectors, "philox4x32 10": counter, key, result. */
static void philox_gives_the_known_answers(void **state) {
    static const uint32_t known[][10] = {
        {0, 0, 0, 0, 0, 0, 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8},
        {0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0x408f276d, 0x41c83b0e, 0xa20bc7c6,
         0x6d5451fd},
        {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344, 0xa4093822, 0x299f31d0, 0xd16cfe09, 0x94fdcceb, 0x5001e420,
         0x24126ea1},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        const uint32_t *k = known[i];
        struct philox_block r = philox4x32(k[0], k[1], k[2], k[3], k[4], k[5]);
        assert_memory_equal(r.word, k + 6, sizeof r.word);
    }
}

/* ---------------------------------------------------------------- greedy, and what cannot be drawn */

static void greedy(struct bed *b) {
    enum { V = 37 };
    static const struct step_sample plain = {.top_p = 1};
    float l[V];
    for (int i = 0; i < V; i++) l[i] = -3;
    assert_int_equal(draw_one(b, l, V, plain, NULL), 0); /* all tie */
    l[35] = l[9] = l[22] = -1;
    assert_int_equal(draw_one(b, l, V, plain, NULL), 9);
    l[36] = 0;
    assert_int_equal(draw_one(b, l, V, plain, NULL), 36);
    l[0] = 7;
    assert_int_equal(draw_one(b, l, V, plain, NULL), 0);
    struct step_sample cold = {.top_p = 1, .temperature = 1e-40f, .seed = 5};
    assert_int_equal(draw_one(b, l, V, cold, NULL), 0);
    struct step_sample first = {.top_p = 1, .temperature = 5, .top_k = 1, .seed = 5};
    assert_int_equal(draw_one(b, l, V, first, NULL), 0);
    int32_t banned[] = {0, 36, 9, V, -1}; /* ids that are none are harmless */
    struct step_sample without = {.top_p = 1, .n_banned = 5};
    assert_int_equal(draw_one(b, l, V, without, banned), 22);
}

static void greedy_takes_the_lowest_of_the_highest(void **state) {
    each_bed(greedy);
}

static void bias(struct bed *b) {
    enum { V = 24, ROWS = 6 };
    static struct draws d;
    float *ignored, *added;
    struct weight *w = bed_weight(b, V, 1, b->dtype, &ignored, &added);
    struct tensor t = bed_random_tensor(b, DTYPE_F32, ROWS, V, 1);
    float *l = bed_get(b, &t);
    draws_begin(&d, ROWS);
    draw(b, &d, &t, w);
    for (int r = 0; r < ROWS; r++) {
        int best = 0;
        for (int i = 1; i < V; i++)
            if (l[r * V + i] + added[i] > l[r * V + best] + added[best]) best = i;
        assert_int_equal(d.drawn[r], best);
    }
}

static void the_pending_bias_counts(void **state) {
    each_bed(bias);
}

static void nothing_to_draw(struct bed *b) {
    enum { V = 21 };
    static const struct step_sample how[] = {{.top_p = 1}, {.top_p = 0.9f, .temperature = 1, .top_k = 5}};
    int32_t all[V];
    float l[V];
    for (int i = 0; i < V; i++) all[i] = i;
    for (int h = 0; h < 2; h++) {
        for (int at = 0; at < V; at++) { /* one NaN, wherever it is, whatever its sign */
            for (int i = 0; i < V; i++) l[i] = (float)i;
            l[at] = at % 2 ? NAN : -NAN;
            assert_int_equal(draw_one(b, l, V, how[h], NULL), -1);
        }
        for (int i = 0; i < V; i++) l[i] = -INFINITY;
        assert_int_equal(draw_one(b, l, V, how[h], NULL), -1);
        for (int i = 0; i < V; i++) l[i] = 1;
        struct step_sample none = how[h];
        none.n_banned = V;
        assert_int_equal(draw_one(b, l, V, none, all), -1);
        none.n_banned = V - 1;
        assert_int_equal(draw_one(b, l, V, none, all), V - 1);
        for (int i = 0; i < V - 2; i++) l[i] = -INFINITY;
        int32_t one = draw_one(b, l, V, how[h], NULL);
        assert_true(one == V - 2 || one == V - 1);
    }
}

static void nan_or_nothing_left_gives_minus_one(void **state) {
    each_bed(nothing_to_draw);
}

static void last_samples(struct bed *b) {
    enum { V = 16 };
    static struct draws d;
    static const int32_t slots[] = {2, 0, 2, 2, 3};
    struct tensor t = bed_random_tensor(b, DTYPE_F32, 5, V, 3);
    draws_begin(&d, 5);
    for (int i = 0; i < 5; i++) d.sample[i].slot = slots[i];
    draw(b, &d, &t, NULL);
    assert_int_equal(d.last[0], d.drawn[1]);
    assert_int_equal(d.last[1], 0); /* untouched */
    assert_int_equal(d.last[2], d.drawn[3]);
    assert_int_equal(d.last[3], d.drawn[4]);
}

static void a_slot_keeps_the_last_of_its_samples(void **state) {
    each_bed(last_samples);
}

/* ---------------------------------------------------------------- the rule */

static const double *doubles(const float *x, int n) {
    static double out[512];
    for (int i = 0; i < n; i++) out[i] = (double)x[i];
    return out;
}

/* Random logits: smooth, or so coarse that many tie. */
static void check_rule(struct bed *b, int vocab, const struct step_sample *how, bool coarse) {
    enum { N = 60 };
    static struct draws d;
    int n_unclear = 0;
    draws_begin(&d, N);
    float *l = bed_floats(b, N * vocab);
    for (int i = 0; i < N * vocab; i++) l[i] = coarse ? (float)bed_random_below(b, 6) : 6 * bed_random(b);
    for (int i = 0; i < 64; i++) d.banned[i] = bed_random_below(b, vocab);
    for (int i = 0; i < N; i++) {
        int32_t position = d.sample[i].position;
        d.sample[i] = *how;
        d.sample[i].row = i;
        d.sample[i].position = position;
        d.sample[i].seed = how->seed + (uint64_t)(i % 3) * 0x123456789abcdef;
        d.sample[i].first_banned = i % 50;
        d.sample[i].n_banned = i % 14;
    }
    struct tensor t = bed_tensor(b, DTYPE_F32, N, vocab, l);
    draw(b, &d, &t, NULL);
    for (int i = 0; i < N; i++) {
        int32_t want = -2;
        if (!draw_plainly(doubles(l + i * vocab, vocab), vocab, &d.sample[i], d.banned, &want)) n_unclear++;
        else if (d.drawn[i] != want)
            fail_msg("%s: row %d of %d tokens (temperature %g, top-k %d, top-p %g, min-p %g) draws %d, not %d",
                     dev_name(b->dev), i, vocab, (double)how->temperature, how->top_k, (double)how->top_p,
                     (double)how->min_p, d.drawn[i], want);
    }
    assert_true(n_unclear < N / 4);
}

static void rule(struct bed *b) {
    static const struct step_sample how[] = {
        {.temperature = 1, .top_p = 1},
        {.temperature = 0.6f, .top_p = 1, .seed = 1},
        {.temperature = 3, .top_p = 1, .top_k = 4, .seed = ~UINT64_C(0)},
        {.temperature = 3, .top_p = 1, .top_k = 1000, .seed = 3},
        {.temperature = 2, .top_p = 0.37f, .seed = 4},
        {.temperature = 1.5f, .top_p = 0.93f, .seed = 5},
        {.temperature = 2, .top_p = 1e-6f, .seed = 6},
        {.temperature = 2, .top_p = 1, .min_p = 0.11f, .seed = 7},
        {.temperature = 2, .top_p = 1, .min_p = 1, .seed = 8},
        {.temperature = 4, .top_p = 0.8f, .top_k = 30, .min_p = 0.3f, .seed = 9},
    };
    for (size_t i = 0; i < sizeof how / sizeof *how; i++) {
        check_rule(b, 203, &how[i], false);
        check_rule(b, 48, &how[i], true);
    }
}

static void draws_follow_the_rule(void **state) {
    each_bed(rule);
}

/* Long rows: flat ones, of which thousands of tokens are left to be drawn; with so many ties that no
 * list holds them; with a few tokens high above all others. */
enum long_row { FLAT, TIED, PEAKED, N_LONG_ROWS };

static float long_logit(struct bed *b, enum long_row kind) {
    float x = bed_random(b) + bed_random(b) + bed_random(b);
    if (kind == TIED) return (float)bed_random_below(b, 4);
    return kind == PEAKED && bed_random_below(b, 2000) == 0 ? 15 + 3 * x : 2 * x;
}

static void check_long_rows(struct bed *b, const struct step_sample *how) {
    enum { N = 12, V = 20003 };
    static struct draws d;
    static double row[V];
    int n_unclear = 0;
    draws_begin(&d, N);
    float *l = bed_floats(b, N * V);
    for (int i = 0; i < N * V; i++) l[i] = long_logit(b, (enum long_row)(i / V % N_LONG_ROWS));
    for (int i = 0; i < N; i++) {
        d.sample[i] = *how;
        d.sample[i].row = i;
        d.sample[i].position = 40 + i;
        d.sample[i].first_banned = i;
        d.sample[i].n_banned = i % 4;
        d.banned[i] = bed_random_below(b, V);
    }
    struct tensor t = bed_tensor(b, DTYPE_F32, N, V, l);
    draw(b, &d, &t, NULL);
    for (int i = 0; i < N; i++) {
        int32_t want = -2;
        for (int k = 0; k < V; k++) row[k] = (double)l[i * V + k];
        if (!draw_plainly(row, V, &d.sample[i], d.banned, &want)) n_unclear++;
        else if (d.drawn[i] != want)
            fail_msg("%s: long row %d (temperature %g, top-k %d, top-p %g, min-p %g) draws %d, not %d", dev_name(b->dev), i,
                     (double)how->temperature, how->top_k, (double)how->top_p, (double)how->min_p, d.drawn[i], want);
    }
    assert_true(n_unclear < N / 2);
}

static void long_rows(struct bed *b) {
    static const struct step_sample how[] = {
        {.temperature = 0.8f, .top_p = 0.95f, .seed = 1},
        {.temperature = 1, .top_p = 0.3f, .seed = 2},
        {.temperature = 3, .top_p = 0.999f, .seed = 3},
        {.temperature = 1.3f, .top_p = 0.9f, .min_p = 0.01f, .seed = 4},
        {.temperature = 1, .top_p = 1, .top_k = 7000, .seed = 5},
        {.temperature = 1.5f, .top_p = 0.9f, .top_k = 9000, .seed = 6},
    };
    for (size_t i = 0; i < sizeof how / sizeof *how; i++) check_long_rows(b, &how[i]);
}

static void long_rows_follow_the_rule_too(void **state) {
    each_bed(long_rows);
}

/* A row's draw alone is its draw among others, at another place, in another slot. */
static void sample_bits(struct bed *b) {
    enum { V = 131, N = 40 };
    static struct draws d, one;
    struct tensor t = bed_random_tensor(b, DTYPE_F32, N, V, 4);
    draws_begin(&d, N);
    for (int i = 0; i < N; i++) {
        d.sample[i].temperature = (float)(i % 4) * 0.7f;
        d.sample[i].top_k = i % 3 * 20;
        d.sample[i].top_p = i % 5 ? 0.9f : 1;
        d.sample[i].seed = (uint64_t)i;
    }
    draw(b, &d, &t, NULL);
    for (int i = 0; i < N; i++) {
        struct tensor row = rows_from(&t, i, 1);
        draws_begin(&one, 1);
        one.sample[0] = d.sample[i];
        one.sample[0].row = 0;
        one.sample[0].slot = 3;
        draw(b, &one, &row, NULL);
        assert_int_equal(one.drawn[0], d.drawn[i]);
    }
}

static void a_draw_does_not_see_other_rows(void **state) {
    each_bed(sample_bits);
}

/* ---------------------------------------------------------------- frequencies */

enum { MAX_VOCAB = 1000 };

/* A million draws of each kind on a GPU; on the CPU, which has eight beds, ten thousand. */
static int n_rounds(void) {
    if (strcmp(test_device(), "cuda") == 0) return 1000000 / MAX_SAMPLES;
    return test_is_quick() ? 10 : 20;
}

/* What the statistic exceeds with probability 0.001 (Wilson and Hilferty). */
static double chi_square_limit(int freedom) {
    double f = freedom, k = 2 / (9 * f);
    return f * pow(1 - k + 3.0902 * sqrt(k), 3);
}

/* How many of the first ids, whose probabilities p descend, are left to be drawn. */
static int n_kept(const double *p, int vocab, const struct step_sample *how) {
    double total = 0, mass = 0;
    int n = how->top_k > 0 && how->top_k < vocab ? how->top_k : vocab, kept = 0;
    for (int i = 0; i < n; i++) total += p[i];
    while (kept < n && mass < (double)how->top_p * total) mass += p[kept++];
    while (kept > 1 && p[kept - 1] < (double)how->min_p * p[0]) kept--;
    return kept;
}

static void count_draws(struct bed *b, const struct tensor *logits, struct step_sample how, bool by_seed,
                        int64_t count[MAX_VOCAB]) {
    static struct draws d;
    struct draw_room room = draw_room(b, MAX_SAMPLES);
    draws_begin(&d, MAX_SAMPLES);
    for (int round = 0; round < n_rounds(); round++) {
        for (int i = 0; i < MAX_SAMPLES; i++) {
            int at = round * MAX_SAMPLES + i;
            d.sample[i] = how;
            d.sample[i].row = i;
            d.sample[i].position = by_seed ? 17 : at;
            d.sample[i].seed = by_seed ? (uint64_t)at : 42;
        }
        draw_into(b, &d, &room, logits, NULL);
        for (int i = 0; i < MAX_SAMPLES; i++) count[d.drawn[i]]++;
    }
}

/* Pearson's test of the draws against the softmax that is left of logits -slope * id. Ids of
 * fewer than five expected draws are taken together. By position under one seed, or by seed. */
static void check_frequencies(struct bed *b, int vocab, double slope, struct step_sample how, bool by_seed) {
    double p[MAX_VOCAB], total = 0, chi = 0, rare = 0, draws = (double)n_rounds() * MAX_SAMPLES;
    int64_t count[MAX_VOCAB] = {0}, n_rare = 0;
    int freedom = -1;
    float *rows = bed_floats(b, (int64_t)MAX_SAMPLES * vocab);
    for (int i = 0; i < MAX_SAMPLES * vocab; i++) rows[i] = (float)(-slope * (i % vocab));
    struct tensor t = bed_tensor(b, DTYPE_F32, MAX_SAMPLES, vocab, rows);
    for (int i = 0; i < vocab; i++) p[i] = exp((double)rows[i] / (double)how.temperature);
    int kept = n_kept(p, vocab, &how);
    for (int i = 0; i < kept; i++) total += p[i];
    count_draws(b, &t, how, by_seed, count);
    for (int i = 0; i < vocab; i++) {
        double expected = draws * p[i] / total, off = (double)count[i] - expected;
        if (i >= kept) assert_int_equal(count[i], 0);
        else if (expected < 5) {
            rare += expected;
            n_rare += count[i];
        } else {
            chi += off * off / expected;
            freedom++;
        }
    }
    if (rare >= 5) {
        chi += ((double)n_rare - rare) * ((double)n_rare - rare) / rare;
        freedom++;
    }
    if (chi >= chi_square_limit(freedom))
        fail_msg("%s: %d tokens, temperature %g, top-k %d, top-p %g, min-p %g: chi-square %g at %d degrees of freedom",
                 dev_name(b->dev), vocab, (double)how.temperature, how.top_k, (double)how.top_p, (double)how.min_p, chi,
                 freedom);
}

static void frequencies(struct bed *b) {
    static const struct step_sample how[] = {
        {.temperature = 1, .top_p = 1},
        {.temperature = 2, .top_p = 1, .top_k = 10},
        {.temperature = 1.5f, .top_p = 0.71f},
        {.temperature = 1.5f, .top_p = 1, .min_p = 0.31f},
        {.temperature = 1.5f, .top_p = 0.83f, .top_k = 15, .min_p = 0.11f},
    };
    check_frequencies(b, 20, 0.15, how[0], true);
    for (size_t i = 0; i < sizeof how / sizeof *how; i++) {
        check_frequencies(b, 20, 0.15, how[i], false);
        check_frequencies(b, MAX_VOCAB, 0.005, how[i], false);
    }
}

static void frequencies_are_those_of_softmax(void **state) {
    each_bed(frequencies);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(philox_gives_the_known_answers),
    cmocka_unit_test(greedy_takes_the_lowest_of_the_highest),
    cmocka_unit_test(the_pending_bias_counts),
    cmocka_unit_test(nan_or_nothing_left_gives_minus_one),
    cmocka_unit_test(a_slot_keeps_the_last_of_its_samples),
    cmocka_unit_test(draws_follow_the_rule),
    cmocka_unit_test(long_rows_follow_the_rule_too),
    cmocka_unit_test(a_draw_does_not_see_other_rows),
    cmocka_unit_test(frequencies_are_those_of_softmax),
};
UNIT_MAIN(tests)
