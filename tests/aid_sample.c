/* aid_sample.c - see aid_sample.h. */
#include "tests/aid_sample.h"

#include "base/hash.h"
#include "kernels/philox.h"

#include <math.h>

enum { MOST_LOGITS = 20003 };

/* ---------------------------------------------------------------- one call of op_sample */

void draws_begin(struct draws *d, int n) {
    *d = (struct draws){0};
    for (int i = 0; i < n; i++) d->sample[i] = (struct step_sample){.row = i, .position = 100 + i, .top_p = 1};
}

static int32_t greater(int32_t a, int32_t b) {
    return a > b ? a : b;
}

/* The step's flags, and how long its lists are. */
static void describe(struct step *step) {
    for (int32_t i = 0; i < step->n_samples; i++) {
        const struct step_sample *s = &step->samples[i];
        step->has_adjusted |= s->is_adjusted;
        step->has_logprobs |= s->wants_logprob;
        step->n_bias = greater(step->n_bias, s->first_bias + s->n_bias);
        step->n_allowed = greater(step->n_allowed, s->first_allowed + s->n_allowed);
    }
}

/* The slots' histories in blocks that lie about. */
static struct tensor put_history(struct bed *b, struct bed_step *paged, const struct draws *d) {
    static int32_t blocks[BED_BLOCKS * KV_BLOCK];
    struct tensor t = bed_tensor(b, DTYPE_I32, BED_BLOCKS, KV_BLOCK, NULL);
    step_begin(paged, 7);
    memset(blocks, 0xff, sizeof blocks);
    for (int32_t slot = 0; slot < SLOTS; slot++) {
        paged->sequences[slot] = (struct step_sequence){.slot = slot, .n_rows = HISTORY};
        for (int32_t p = 0; p < HISTORY; p++)
            blocks[paged->table[slot * BED_STRIDE + p / KV_BLOCK] * KV_BLOCK + p % KV_BLOCK] = d->history[slot][p];
    }
    dev_upload(b->dev, t.data, blocks, sizeof blocks);
    step_set_history(b->dev, t.data);
    return t;
}

struct draw_room draw_room(struct bed *b, int64_t n) {
    return (struct draw_room){bed_tensor(b, DTYPE_I32, n, 1, NULL), bed_tensor(b, DTYPE_I32, SLOTS, 1, NULL),
                              bed_tensor(b, DTYPE_F32, n, sizeof(struct sample_logprobs) / sizeof(float), NULL)};
}

void draw(struct bed *b, struct draws *d, const struct tensor *logits, const struct weight *w) {
    struct draw_room room = draw_room(b, logits->shape[0]);
    draw_into(b, d, &room, logits, w);
}

void draw_into(struct bed *b, struct draws *d, const struct draw_room *room, const struct tensor *logits,
               const struct weight *w) {
    static struct bed_step paged;
    int32_t n = (int32_t)logits->shape[0];
    struct step step = {.n_rows = n, .n_samples = n, .samples = d->sample, .banned = d->banned, .bias = d->bias,
                        .allowed = d->allowed};
    describe(&step);
    if (step.has_adjusted) {
        put_history(b, &paged, d);
        step.n_sequences = SLOTS;
        step.sequences = paged.sequences;
        step.block_table = paged.table;
        step.block_table_stride = BED_STRIDE;
    }
    struct product y = {.y = *logits, .weight = w};
    struct sample_logprobs *logprobs = step.has_logprobs ? room->logprobs.data : NULL;
    op_sample(b->dev, room->drawn.data, room->last.data, logprobs, &y, step_upload(b->dev, &step));
    dev_download(b->dev, d->drawn, room->drawn.data, tensor_bytes(&room->drawn));
    dev_download(b->dev, d->last, room->last.data, tensor_bytes(&room->last));
    if (logprobs) dev_download(b->dev, d->logprobs, logprobs, tensor_bytes(&room->logprobs));
    for (int32_t i = 0; i < n; i++) b->digest = b->digest * 1000003 + (uint64_t)d->drawn[i];
    if (logprobs) b->digest = hash64(d->logprobs, tensor_bytes(&room->logprobs), b->digest);
    step_set_history(b->dev, NULL);
}

int32_t draw_one(struct bed *b, const float *logits, int vocab, struct step_sample sample, const int32_t *banned) {
    static struct draws d;
    draws_begin(&d, 1);
    d.sample[0] = sample;
    if (sample.n_banned) memcpy(d.banned, banned, (size_t)sample.n_banned * sizeof *banned);
    struct tensor t = bed_tensor(b, DTYPE_F32, 1, vocab, logits);
    draw(b, &d, &t, NULL);
    return d.drawn[0];
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

bool draw_plainly(const double *logits, int n, const struct step_sample *s, const int32_t *banned, int32_t *drawn) {
    static struct candidate c[MOST_LOGITS];
    double temperature = s->temperature > 0 ? (double)s->temperature : 1;
    int kept = n;
    bool is_clear = true;
    assert_true(n <= MOST_LOGITS);
    for (int i = 0; i < n; i++) c[i] = (struct candidate){i, logits[i] / temperature, 0};
    for (int i = 0; i < s->n_banned; i++) c[banned[s->first_banned + i]].l = -INFINITY;
    qsort(c, (size_t)n, sizeof *c, by_logit);
    while (kept > 0 && isinf(c[kept - 1].l)) kept--;
    if (s->temperature <= 0) {
        *drawn = c[0].id;
        return kept == 1 || c[0].l - c[1].l > 1e-3;
    }
    if (s->top_k > 0 && s->top_k < kept) kept = with_ties(c, kept, s->top_k);
    double total = 0, mass = 0;
    int sure = kept; /* of those kept: they are by any rounding */
    for (int i = 0; i < kept; i++) total += c[i].p = exp(c[i].l - c[0].l);
    if (s->top_p < 1) {
        int i = 0;
        while (i < kept && mass < ((double)s->top_p + 1e-5) * total) {
            int next = with_ties(c, kept, i + 1);
            if (mass < ((double)s->top_p - 1e-5) * total) sure = next;
            for (; i < next; i++) mass += c[i].p;
        }
        kept = i;
        if (sure > kept) sure = kept;
    }
    for (int i = 0; i < kept; i++)
        if (s->min_p > 0 && c[i].l < c[0].l && fabs(c[i].p - (double)s->min_p) < 1e-5) is_clear = false;
    while (s->min_p > 0 && kept > 1 && c[kept - 1].p < (double)s->min_p) kept--;

    double best = -INFINITY, second = -INFINITY;
    int at = 0;
    for (int i = 0; i < kept; i++) {
        uint32_t id = (uint32_t)c[i].id;
        struct philox_block r = philox4x32(id / 4, (uint32_t)s->position, 0, 0x62617463, (uint32_t)s->seed,
                                           (uint32_t)(s->seed >> 32));
        double u = (r.word[id % 4] + 0.5) / 0x1p32, score = c[i].l - log(-log(u));
        second = fmax(second, fmin(score, best));
        if (score > best) at = i;
        best = fmax(score, best);
    }
    *drawn = c[at].id;
    return is_clear && at < sure && best - second > 1e-3;
}
