/* test_op_sample.c - op_sample against its rule (kernels/ops.h), written out plainly in
 * double precision with sorting where the kernel searches; and the frequencies of what
 * it draws. Each case runs on every instruction set with one thread and with two. */
#include "tests/aid_ops.h"

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

/* ---------------------------------------------------------------- one call of op_sample */

enum { MAX_SAMPLES = 500, SLOTS = 4 };

struct draws { /* what goes in, all zero but for what a case sets; and what came out */
    struct step_sample sample[MAX_SAMPLES];
    int32_t banned[64];
    int32_t drawn[MAX_SAMPLES], last[SLOTS];
};

/* Greedy, nothing banned. */
static void draws_begin(struct draws *d, int n) {
    *d = (struct draws){0};
    for (int i = 0; i < n; i++) d->sample[i] = (struct step_sample){.row = i, .position = 100 + i, .top_p = 1};
}

static void draw(struct bed *b, struct draws *d, const struct tensor *logits, const struct weight *w) {
    int32_t n = (int32_t)logits->shape[0];
    struct step step = {.n_rows = n, .n_samples = n, .samples = d->sample, .banned = d->banned};
    struct tensor drawn = bed_tensor(b, DTYPE_I32, n, 1, NULL), last = bed_tensor(b, DTYPE_I32, SLOTS, 1, NULL);
    struct product y = {.y = *logits, .weight = w};
    op_sample(b->dev, drawn.data, last.data, &y, step_upload(b->dev, &step));
    dev_download(b->dev, d->drawn, drawn.data, tensor_bytes(&drawn));
    dev_download(b->dev, d->last, last.data, tensor_bytes(&last));
    for (int32_t i = 0; i < n; i++) b->digest = b->digest * 1000003 + (uint64_t)d->drawn[i];
}

static int32_t draw_one(struct bed *b, const float *logits, int vocab, struct step_sample sample,
                        const int32_t *banned) {
    static struct draws d;
    draws_begin(&d, 1);
    d.sample[0] = sample;
    if (sample.n_banned) memcpy(d.banned, banned, (size_t)sample.n_banned * sizeof *banned);
    struct tensor t = bed_tensor(b, DTYPE_F32, 1, vocab, logits);
    draw(b, &d, &t, NULL);
    return d.drawn[0];
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

struct candidate {
    int32_t id;
    double l, p;
};

static int by_logit(const void *a, const void *b) {
    const struct candidate *x = a, *y = b;
    return x->l < y->l ? 1 : x->l > y->l ? -1 : x->id - y->id;
}

static int with_ties(const struct candidate *c, int n, int kept) {
    while (kept < n && c[kept].l == c[kept - 1].l) kept++;
    return kept;
}

/* Sort, cut, draw. False where f32 could rightly decide otherwise. */
static bool naive_draw(const float *logits, int n, const struct step_sample *s, const int32_t *banned, int32_t *drawn) {
    struct candidate c[512];
    int kept = n;
    bool is_clear = true;
    for (int i = 0; i < n; i++) c[i] = (struct candidate){i, (double)logits[i] / (double)s->temperature, 0};
    for (int i = 0; i < s->n_banned; i++) c[banned[s->first_banned + i]].l = -INFINITY;
    qsort(c, (size_t)n, sizeof *c, by_logit);
    while (kept > 0 && isinf(c[kept - 1].l)) kept--;
    if (s->top_k > 0 && s->top_k < kept) kept = with_ties(c, kept, s->top_k);
    double total = 0, mass = 0;
    for (int i = 0; i < kept; i++) total += c[i].p = exp(c[i].l - c[0].l);
    if (s->top_p < 1) {
        int i = 0;
        while (i < kept && mass < (double)s->top_p * total) {
            int next = with_ties(c, kept, i + 1);
            for (; i < next; i++) mass += c[i].p;
            if (fabs(mass - (double)s->top_p * total) < 1e-5 * total) is_clear = false;
        }
        kept = i;
    }
    for (int i = 0; i < kept; i++)
        if (s->min_p > 0 && c[i].l < c[0].l && fabs(c[i].p - (double)s->min_p) < 1e-5) is_clear = false;
    while (s->min_p > 0 && kept > 1 && c[kept - 1].p < (double)s->min_p) kept--;

    double best = -INFINITY, second = -INFINITY;
    for (int i = 0; i < kept; i++) {
        uint32_t id = (uint32_t)c[i].id;
        struct philox_block r = philox4x32(id / 4, (uint32_t)s->position, 0, 0x62617463, (uint32_t)s->seed,
                                           (uint32_t)(s->seed >> 32));
        double u = (r.word[id % 4] + 0.5) / 0x1p32, score = c[i].l - log(-log(u));
        second = fmax(second, fmin(score, best));
        if (score > best) *drawn = c[i].id;
        best = fmax(score, best);
    }
    return is_clear && best - second > 1e-3;
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
        if (!naive_draw(l + i * vocab, vocab, &d.sample[i], d.banned, &want)) n_unclear++;
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

/* Pearson's statistic of `rounds` steps of draws against softmax(l / temperature) of the
 * first `kept` ids, whose logits descend. By position under one seed, or by seed. */
static double chi_square(struct bed *b, const float *l, int vocab, int kept, struct step_sample how, bool by_seed) {
    enum { ROUNDS = 20 };
    static struct draws d;
    double total = 0, chi = 0;
    int64_t count[64] = {0};
    float *rows = bed_floats(b, MAX_SAMPLES * vocab);
    for (int i = 0; i < MAX_SAMPLES; i++) memcpy(rows + i * vocab, l, (size_t)vocab * sizeof *l);
    struct tensor t = bed_tensor(b, DTYPE_F32, MAX_SAMPLES, vocab, rows);
    draws_begin(&d, MAX_SAMPLES);
    for (int round = 0; round < ROUNDS; round++) {
        for (int i = 0; i < MAX_SAMPLES; i++) {
            int at = round * MAX_SAMPLES + i;
            d.sample[i] = how;
            d.sample[i].row = i;
            d.sample[i].position = by_seed ? 17 : at;
            d.sample[i].seed = by_seed ? (uint64_t)at : 42;
        }
        draw(b, &d, &t, NULL);
        for (int i = 0; i < MAX_SAMPLES; i++) count[d.drawn[i]]++;
    }
    for (int i = 0; i < kept; i++) total += exp((double)l[i] / (double)how.temperature);
    for (int i = 0; i < vocab; i++) {
        double expected = ROUNDS * MAX_SAMPLES * exp((double)l[i] / (double)how.temperature) / total;
        if (i >= kept) assert_int_equal(count[i], 0);
        else chi += ((double)count[i] - expected) * ((double)count[i] - expected) / expected;
    }
    return chi;
}

static void frequencies(struct bed *b) {
    enum { V = 20 };
    float l[V];
    for (int i = 0; i < V; i++) l[i] = -0.15f * (float)i;
    struct step_sample plain = {.temperature = 1, .top_p = 1}, warm = {.temperature = 2, .top_p = 1, .top_k = 10};
    /* The statistic exceeds these with probability 0.001 at 19 and 9 degrees of freedom. */
    assert_true(chi_square(b, l, V, V, plain, false) < 43.82);
    assert_true(chi_square(b, l, V, V, plain, true) < 43.82);
    assert_true(chi_square(b, l, V, 10, warm, false) < 27.88);
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
    cmocka_unit_test(a_draw_does_not_see_other_rows),
    cmocka_unit_test(frequencies_are_those_of_softmax),
};
UNIT_MAIN(tests)
