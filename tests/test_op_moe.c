/* test_op_moe.c - op_moe_experts: bit for bit what its rule makes of op_linear's and op_glu's
 * results for each expert, and a row's bits are the same whatever other rows choose.
 *
 * Sizes are such that on a GPU experts have no rows, fewer than a tile of its grouped product,
 * several tiles, and tiles that hang over on both sides; with some of the mixtures it must go
 * another way (widths that are no multiple of 8, more experts than a grouped product takes). */
#include "tests/aid_ops.h"

#include <math.h>

enum { MOST_EXPERTS = 20 };

struct mixture {
    int width, inner;
    struct weight *up[MOST_EXPERTS], *down[MOST_EXPERTS];
    struct moe moe;
};

static void mixture_new(struct bed *b, struct mixture *m, int n_experts, int top_k, int width, int inner) {
    float *ignored;
    *m = (struct mixture){.width = width, .inner = inner};
    for (int e = 0; e < n_experts; e++) {
        m->up[e] = bed_weight(b, 2 * inner, width, b->dtype, &ignored, NULL);
        m->down[e] = bed_weight(b, width, inner, b->dtype, &ignored, NULL);
    }
    m->moe = (struct moe){n_experts, top_k, ACT_SILU, m->up, m->down};
}

struct mixed {
    float *out;      /* [T, width] */
    float *share;    /* [T, top_k] */
    int32_t *choice; /* [T, top_k] */
};

static struct mixed run_mixture(struct bed *b, const struct mixture *m, const struct tensor *x,
                                const struct tensor *router) {
    int64_t t = x->shape[0], k = m->moe.top_k, places = t * k;
    struct moe_room room = {.choice = bed_tensor(b, DTYPE_I32, t, k, NULL),
                            .share = bed_tensor(b, DTYPE_F32, t, k, NULL),
                            .places = bed_tensor(b, DTYPE_I32, t, k, NULL),
                            .first = bed_tensor(b, DTYPE_I32, m->moe.n_experts + 1, 1, NULL),
                            .gathered = bed_tensor(b, b->dtype, places, m->width, NULL),
                            .up = bed_tensor(b, b->dtype, places, 2 * m->inner, NULL),
                            .active = bed_tensor(b, b->dtype, places, m->inner, NULL),
                            .down = bed_tensor(b, b->dtype, places, m->width, NULL)};
    struct tensor out = bed_random_tensor(b, b->dtype, t, m->width, 1); /* what is there does not matter */
    op_moe_experts(b->dev, &out, &(struct activation){.x = *x}, &(struct product){.y = *router}, &m->moe, &room);
    struct mixed r = {.out = bed_get(b, &out), .share = bed_get(b, &room.share)};
    r.choice = (int32_t *)bed_floats(b, places);
    dev_download(b->dev, r.choice, room.choice.data, tensor_bytes(&room.choice));
    return r;
}

/* What expert e makes of all rows, by the operations that a gated MLP is made of. */
static float *one_expert(struct bed *b, const struct mixture *m, const struct tensor *x, int e) {
    int64_t t = x->shape[0];
    struct activation in = {.x = *x}, active = {.x = bed_tensor(b, b->dtype, t, m->inner, NULL)};
    struct product up = {.y = bed_tensor(b, b->dtype, t, 2 * m->inner, NULL)};
    struct product y = {.y = bed_tensor(b, b->dtype, t, m->width, NULL)};
    op_linear(b->dev, &up, &in, m->up[e]);
    op_glu(b->dev, &active, &up, ACT_SILU);
    op_linear(b->dev, &y, &active, m->down[e]);
    return bed_get(b, &y.y);
}

/* The experts with the highest numbers, the highest first, ties to the lower expert; shares are
 * the softmax among them. */
static void check_choice(const struct mixture *m, const float *logits, const int32_t *choice, const float *share) {
    double total = 0;
    for (int i = 0; i < m->moe.top_k; i++) {
        int n_better = 0;
        float mine = logits[choice[i]];
        for (int e = 0; e < m->moe.n_experts; e++) n_better += logits[e] > mine || (logits[e] == mine && e < choice[i]);
        assert_int_equal(n_better, i);
        total += exp((double)mine);
    }
    for (int i = 0; i < m->moe.top_k; i++)
        assert_true(fabs((double)share[i] - exp((double)logits[choice[i]]) / total) < 1e-6);
}

static int place_of(const int32_t *choice, int top_k, int expert) {
    int i = 0;
    while (i < top_k && choice[i] != expert) i++;
    return i < top_k ? i : -1;
}

static void check_row(const struct bed *b, const struct mixture *m, const struct mixed *got, float *const *made, int r) {
    const int32_t *choice = got->choice + r * m->moe.top_k;
    const float *share = got->share + r * m->moe.top_k;
    for (int c = 0; c < m->width; c++) {
        float want = 0;
        for (int e = 0; e < m->moe.n_experts; e++) {
            int at = place_of(choice, m->moe.top_k, e);
            if (at < 0) continue;
            float part = share[at] * made[e][r * m->width + c];
            want = rounded(want + rounded(part, b->dtype), b->dtype);
        }
        if (got->out[r * m->width + c] != want)
            fail_msg("%s, %d experts of %d x %d: row %d, column %d is %.9g, not %.9g", dtype_name(b->dtype),
                     m->moe.n_experts, m->width, m->inner, r, c, (double)got->out[r * m->width + c], (double)want);
    }
}

/* t rows, of which every `apart`-th also runs alone. */
static void check_mixture(struct bed *b, const struct mixture *m, const struct tensor *router, int apart) {
    int t = (int)router->shape[0], n = m->moe.n_experts;
    struct tensor x = bed_random_tensor(b, b->dtype, t, m->width, 2);
    struct mixed got = run_mixture(b, m, &x, router);
    float *logits = bed_get(b, router), *made[MOST_EXPERTS];
    for (int e = 0; e < n; e++) made[e] = one_expert(b, m, &x, e);
    for (int r = 0; r < t; r++) {
        check_choice(m, logits + r * n, got.choice + r * m->moe.top_k, got.share + r * m->moe.top_k);
        check_row(b, m, &got, made, r);
        if (r % apart) continue;
        struct tensor one_x = rows_from(&x, r, 1), one_router = rows_from(router, r, 1);
        assert_memory_equal(run_mixture(b, m, &one_x, &one_router).out, got.out + r * m->width,
                            (size_t)m->width * sizeof *got.out);
    }
}

static struct tensor any_choice(struct bed *b, const struct mixture *m, int t) {
    return bed_random_tensor(b, b->dtype, t, m->moe.n_experts, 2);
}

/* Most rows like the last expert best, then the first, by ties; some like the one before last. */
static struct tensor crowded(struct bed *b, const struct mixture *m, int t) {
    int n = m->moe.n_experts;
    float *logits = bed_floats(b, t * n);
    for (int r = 0; r < t; r++) logits[r * n + (r % 7 == 3 && n > 1 ? n - 2 : n - 1)] = 1;
    return bed_tensor(b, b->dtype, t, n, logits);
}

static void small_mixtures(struct bed *b) {
    static const int shapes[][4] = {
        {5, 3, 24, 40}, {1, 1, 16, 24}, {4, 4, 8, 8}, {3, 2, 20, 36}, {MOST_EXPERTS, 2, 16, 24}};
    static const int rows[] = {1, 20, 60};
    if (!op_has_moe_experts(b->dev)) return;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        struct mixture m;
        mixture_new(b, &m, shapes[i][0], shapes[i][1], shapes[i][2], shapes[i][3]);
        for (int k = 0; k < 3; k++) {
            struct tensor any = any_choice(b, &m, rows[k]), many = crowded(b, &m, rows[k]);
            check_mixture(b, &m, &any, 1);
            check_mixture(b, &m, &many, 9);
        }
    }
}

static void a_mixture_is_the_sum_of_its_best_experts(void **state) {
    each_bed(small_mixtures);
}

static void large_mixtures(struct bed *b) {
    struct mixture m;
    if (!op_has_moe_experts(b->dev)) return;
    int rows[] = {30, test_is_quick() ? 150 : 700};
    mixture_new(b, &m, 6, 2, 264, 280);
    for (int i = 0; i < 2; i++) {
        struct tensor any = any_choice(b, &m, rows[i]), many = crowded(b, &m, rows[i]);
        check_mixture(b, &m, &any, 97);
        check_mixture(b, &m, &many, 97);
    }
}

static void experts_may_have_any_number_of_rows(void **state) {
    each_bed(large_mixtures);
}

static struct weight *quantized_weight(struct bed *b, int64_t n, int64_t k, enum quant_kind kind) {
    struct weight *w = weight_new_quantized(b->dev, n, k, b->dtype, kind);
    float *numbers = bed_floats(b, n * k);
    assert_non_null(w);
    if (kind == QUANT_FP8_BLOCK) { /* nothing becomes that when it is loaded */
        weight_random(b->dev, w, 0, n, b->random, 0.5f);
        return w;
    }
    for (int64_t i = 0; i < n * k; i++) numbers[i] = rounded(bed_random(b), b->dtype);
    struct tensor host = tensor_2d(numbers, DTYPE_F32, n, k);
    weight_load(b->dev, w, 0, &host);
    return w;
}

static void check_quantized(struct bed *b, enum quant_kind kind) {
    enum { N = 4, WIDTH = 256, INNER = 128 };
    struct mixture m = {.width = WIDTH, .inner = INNER};
    struct err err = {0};
    for (int e = 0; e < N; e++) {
        m.up[e] = quantized_weight(b, 2 * INNER, WIDTH, kind);
        m.down[e] = quantized_weight(b, WIDTH, INNER, kind);
    }
    m.moe = (struct moe){N, 2, ACT_SILU, m.up, m.down};
    for (int t = 20; t <= 140; t += 120) {
        struct tensor any = any_choice(b, &m, t);
        check_mixture(b, &m, &any, 19);
    }
    assert_ok(dev_sync(b->dev, &err), &err);
    for (int e = 0; e < N; e++) {
        weight_free(b->dev, m.up[e]);
        weight_free(b->dev, m.down[e]);
    }
}

static void quantized_mixtures(struct bed *b) {
    static const enum quant_kind kinds[] = {QUANT_INT8, QUANT_FP4, QUANT_NF4, QUANT_NF4_DQ, QUANT_FP8};
    if (!op_has_moe_experts(b->dev)) return;
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) check_quantized(b, kinds[i]);
    if (weight_keeps_fp8_blocks(b->dev)) check_quantized(b, QUANT_FP8_BLOCK);
}

static void experts_may_be_quantized(void **state) {
    each_bed(quantized_mixtures);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(a_mixture_is_the_sum_of_its_best_experts),
    cmocka_unit_test(experts_may_have_any_number_of_rows),
    cmocka_unit_test(experts_may_be_quantized),
};
UNIT_MAIN(tests)
