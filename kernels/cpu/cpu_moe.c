/* cpu_moe.c - a mixture of experts: each row's best experts, and their MLPs' sum.
 *
 * Experts take their turn in ascending order; one gathers the rows that chose it, runs its
 * three steps on them and adds to their results. A row's sum is therefore always in the
 * order of its experts' numbers, whatever other rows are there. */
#include "kernels/cpu/cpu.h"

#include <math.h>
#include <string.h>

struct routing {
    const struct product *router;
    const struct moe *moe;
    const struct moe_room *room;
};

static float logit_of(const struct tensor *t, int64_t row, int32_t expert) {
    const void *at = row_of(t, row);
    return t->dtype == DTYPE_BF16 ? bf16_to_f32(((const uint16_t *)at)[expert]) : ((const float *)at)[expert];
}

/* The row's experts, best first, ties to the lower number, and their shares, which add up to 1:
 * softmax over all experts, divided by the sum over the chosen ones. */
static void choose(const struct routing *a, int64_t row) {
    int32_t *choice = row_of(&a->room->choice, row), k = a->moe->top_k;
    float *share = row_of(&a->room->share, row), sum = 0.0f;
    for (int32_t i = 0; i < k; i++) {
        int32_t best = -1;
        for (int32_t e = 0; e < a->moe->n_experts; e++) {
            bool is_taken = false;
            for (int32_t j = 0; j < i; j++) is_taken |= choice[j] == e;
            if (is_taken) continue;
            if (best < 0 || logit_of(&a->router->y, row, e) > logit_of(&a->router->y, row, best)) best = e;
        }
        choice[i] = best;
        share[i] = expf(logit_of(&a->router->y, row, best) - logit_of(&a->router->y, row, choice[0]));
        sum += share[i];
    }
    for (int32_t i = 0; i < k; i++) share[i] /= sum;
}

static void choose_part(void *arg, int part, int n_parts, int thread) {
    const struct routing *a = arg;
    int64_t begin, end;
    pool_share(a->router->y.shape[0], part, n_parts, &begin, &end);
    for (int64_t r = begin; r < end; r++) choose(a, r);
}

/* Where a row holds an expert among its choices, or -1. */
static int32_t place_of(const struct moe_room *room, int64_t row, int32_t expert) {
    const int32_t *choice = row_of(&room->choice, row);
    for (int32_t i = 0; i < room->choice.shape[1]; i++)
        if (choice[i] == expert) return i;
    return -1;
}

static struct tensor first_rows(const struct tensor *t, int64_t n) {
    return tensor_2d(t->data, t->dtype, n, t->shape[1]);
}

/* The rows that chose the expert, one after the other; how many they are. */
static int64_t gather(struct tensor *out, int32_t *rows, const struct tensor *x, const struct moe_room *room,
                      int32_t expert) {
    size_t bytes = (size_t)x->shape[1] * dtype_bytes(x->dtype);
    int64_t n = 0;
    for (int64_t r = 0; r < x->shape[0]; r++) {
        if (place_of(room, r, expert) < 0) continue;
        memcpy(row_of(out, n), row_of(x, r), bytes);
        rows[n++] = (int32_t)r;
    }
    return n;
}

/* out += share y, the product and the sum rounded as the model's dtype is. */
static void add_share(const struct tensor *out, int64_t row, const struct tensor *y, int64_t i, float share) {
    int64_t n = out->shape[1];
    void *to = row_of(out, row);
    const void *from = row_of(y, i);
    for (int64_t c = 0; c < n; c++) {
        if (out->dtype != DTYPE_BF16) {
            ((float *)to)[c] += share * ((const float *)from)[c];
            continue;
        }
        uint16_t part = bf16_from_f32(share * bf16_to_f32(((const uint16_t *)from)[c]));
        ((uint16_t *)to)[c] = bf16_from_f32(bf16_to_f32(((uint16_t *)to)[c]) + bf16_to_f32(part));
    }
}

struct adding {
    const struct tensor *out, *y;
    const struct moe_room *room;
    int32_t expert;
};

static void add_part(void *arg, int part, int n_parts, int thread) {
    const struct adding *a = arg;
    const int32_t *rows = a->room->places.data;
    int64_t begin, end;
    pool_share(a->y->shape[0], part, n_parts, &begin, &end);
    for (int64_t i = begin; i < end; i++) {
        const float *share = row_of(&a->room->share, rows[i]);
        add_share(a->out, rows[i], a->y, i, share[place_of(a->room, rows[i], a->expert)]);
    }
}

static void run_expert(struct dev *dev, struct tensor *out, const struct activation *x, const struct moe *moe,
                       const struct moe_room *room, int32_t e) {
    struct tensor gathered = room->gathered;
    int64_t n = gather(&gathered, room->places.data, &x->x, room, e);
    if (n == 0) return;
    struct activation in = {.x = first_rows(&room->gathered, n)}, active = {.x = first_rows(&room->active, n)};
    struct product up = {.y = first_rows(&room->up, n), .weight = moe->up[e]};
    struct product y = {.y = first_rows(&room->down, n)};
    cpu_linear(dev, &up, &in, moe->up[e]);
    cpu_glu(dev, &active, &up, moe->act);
    cpu_linear(dev, &y, &active, moe->down[e]);
    struct adding a = {out, &y.y, room, e};
    struct pool *pool = cpu_of(dev)->pool;
    pool_run(pool, add_part, &a, pool_parts(pool, n, 1.0 * (double)out->shape[1]));
}

void cpu_moe_experts(struct dev *dev, struct tensor *out, const struct activation *x, const struct product *router,
                     const struct moe *moe, const struct moe_room *room) {
    struct pool *pool = cpu_of(dev)->pool;
    struct routing a = {router, moe, room};
    pool_run(pool, choose_part, &a, pool_parts(pool, x->x.shape[0], 5.0 * moe->n_experts * moe->top_k));
    memset(out->data, 0, tensor_bytes(out));
    for (int32_t e = 0; e < moe->n_experts; e++) run_expert(dev, out, x, moe, room, e);
}
