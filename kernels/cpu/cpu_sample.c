/* cpu_sample.c - one token for each row of logits, by the rule that ops.h states.
 *
 * top_k and top_p need a threshold, not an order: both are "the highest value v such
 * that the weight of all candidates >= v reaches a target", with weight 1 for top_k
 * and a fixed-point probability for top_p. A radix search over order-preserving
 * integers finds it in three passes, and integer sums do not depend on their order.
 *
 * A row's logits are copied before anything is done to them: logprobs are those of the
 * logits as they came. */
#include "kernels/cpu/cpu.h"
#include "kernels/philox.h"

#include <math.h>
#include <string.h>

enum { BINS = 2048 };

/* Larger float, larger integer; -inf is the least number that occurs. */
static uint32_t order_key(float x) {
    uint32_t u;
    memcpy(&u, &x, 4);
    return u & 0x80000000u ? ~u : u | 0x80000000u;
}

/* The highest key such that the weight of all keys >= it is at least target. */
static uint32_t threshold_key(const uint32_t *keys, const uint64_t *weights, int64_t n, uint64_t target) {
    static const struct {
        int shift, bits;
    } pass[] = {{21, 11}, {10, 11}, {0, 10}};
    uint64_t above = 0;
    uint32_t prefix = 0;
    for (int p = 0; p < 3; p++) {
        uint64_t bin[BINS] = {0};
        uint32_t known = p == 0 ? 0 : ~0u << (pass[p].shift + pass[p].bits);
        for (int64_t i = 0; i < n; i++)
            if ((keys[i] & known) == prefix)
                bin[keys[i] >> pass[p].shift & ((1u << pass[p].bits) - 1)] += weights ? weights[i] : 1;
        int b = (1 << pass[p].bits) - 1;
        while (b > 0 && above + bin[b] < target) above += bin[b--];
        prefix |= (uint32_t)b << pass[p].shift;
    }
    return prefix;
}

struct candidates { /* scratch of one row */
    float *l;          /* [vocab] logits over temperature; -inf = out */
    uint32_t *key;
    uint64_t *mass;
    float *prob;
};

static void keep_from(float *l, const uint32_t *key, int64_t n, uint32_t threshold) {
    for (int64_t i = 0; i < n; i++)
        if (key[i] < threshold) l[i] = -INFINITY;
}

static void apply_top_k(struct candidates *c, int64_t n, int32_t top_k) {
    if (top_k <= 0 || top_k >= n) return;
    for (int64_t i = 0; i < n; i++) c->key[i] = order_key(c->l[i]);
    keep_from(c->l, c->key, n, threshold_key(c->key, NULL, n, (uint64_t)top_k));
}

static void apply_top_p(const struct simd *simd, struct candidates *c, int64_t n, float top_p, float max) {
    if (top_p >= 1.0f) return;
    for (int64_t i = 0; i < n; i++) c->prob[i] = c->l[i] - max;
    simd->exps(c->prob, c->prob, n);
    uint64_t total = 0;
    for (int64_t i = 0; i < n; i++) {
        c->key[i] = order_key(c->l[i]);
        c->mass[i] = c->l[i] > -INFINITY ? (uint64_t)((double)c->prob[i] * 0x1p40) : 0;
        total += c->mass[i];
    }
    uint64_t target = (uint64_t)ceil((double)total * (double)top_p);
    if (target < 1) target = 1;
    keep_from(c->l, c->key, n, threshold_key(c->key, c->mass, n, target));
}

static void apply_min_p(struct candidates *c, int64_t n, float min_p, float max) {
    if (min_p <= 0.0f) return;
    float least = max + logf(min_p);
    for (int64_t i = 0; i < n; i++)
        if (c->l[i] < least) c->l[i] = -INFINITY;
}

/* Philox's word as a number in (0, 1), and -log(-log u). The highest words would round up
 * to 1, so noise never exceeds MOST_NOISE = -log(-log(1 - 2^-24)). */
static const float MOST_NOISE = 16.7f;

static float gumbel(uint32_t word) {
    float u = ((float)word + 0.5f) * 0x1p-32f;
    if (u >= 1.0f) u = 1.0f - 0x1p-24f;
    return -logf(-logf(u));
}

static struct philox_block noise_of(const struct step_sample *s, int64_t id) {
    return philox4x32((uint32_t)(id / 4), (uint32_t)s->position, 0, 0x62617463u, (uint32_t)s->seed,
                      (uint32_t)(s->seed >> 32));
}

/* argmax of l + Gumbel noise: a draw from softmax(l). `likely` is the id of the highest l:
 * its score is made first, since few others can exceed it whatever their noise. */
static int32_t draw(const float *l, int64_t n, const struct step_sample *s, int32_t likely) {
    int32_t id = likely;
    float best = l[id] + gumbel(noise_of(s, id).word[id % 4]);
    for (int64_t i = 0; i < n; i += 4) {
        int64_t m = n - i < 4 ? n - i : 4;
        bool any = false;
        for (int64_t j = 0; j < m; j++) any |= l[i + j] + MOST_NOISE >= best;
        if (!any) continue;
        struct philox_block r = noise_of(s, i);
        for (int64_t j = 0; j < m; j++) {
            if (l[i + j] + MOST_NOISE < best) continue;
            float score = l[i + j] + gumbel(r.word[j]);
            if (score < best || (score == best && i + j > id)) continue;
            best = score;
            id = (int32_t)(i + j);
        }
    }
    return id;
}

/* ---------------------------------------------------------------- penalties, bias, allowed ids */

struct sampler {
    struct cpu_dev *cpu;
    int32_t *drawn;
    struct sample_logprobs *logprobs; /* or NULL */
    const struct product *logits;
    const struct step *step;
    char *scratch;
    size_t scratch_bytes; /* of one thread */
};

static const uint32_t SEEN = 1u << 31; /* the other bits count */

/* What the sequence holds before the sample's position: SEEN, and how often as output. */
static void count_history(uint32_t *counts, int64_t n, const struct sampler *a, const struct step_sample *s) {
    const struct step *step = a->step;
    for (int32_t p = 0; p < s->position; p++) {
        int64_t id = *history_at(a->cpu->dev.history, step->block_table, step->block_table_stride, s->slot, p);
        if (id < 0 || id >= n) continue;
        if (p >= s->n_prompt) counts[id]++;
        counts[id] |= SEEN;
    }
}

static float penalized(float l, uint32_t count, const struct step_sample *s) {
    float r = s->repetition_penalty, n = (float)(count & ~SEEN);
    if (r > 0) l = l > 0 ? l / r : l * r;
    if (n == 0) return l;
    l -= s->frequency_penalty * n;
    return l - s->presence_penalty;
}

static void keep_allowed(struct candidates *c, int64_t n, const int32_t *allowed, int32_t n_allowed) {
    memset(c->key, 0, (size_t)n * sizeof *c->key);
    for (int32_t i = 0; i < n_allowed; i++)
        if (allowed[i] >= 0 && allowed[i] < n) c->key[allowed[i]] = 1;
    for (int64_t i = 0; i < n; i++)
        if (!c->key[i]) c->l[i] = -INFINITY;
}

static void adjust(struct candidates *c, int64_t n, const struct sampler *a, const struct step_sample *s) {
    const struct logit_bias *bias = a->step->bias + s->first_bias;
    if (s->n_allowed > 0) keep_allowed(c, n, a->step->allowed + s->first_allowed, s->n_allowed);
    for (int32_t i = 0; i < s->n_bias; i++)
        if (bias[i].id >= 0 && bias[i].id < n) c->l[bias[i].id] += bias[i].add;
    bool repeats = s->repetition_penalty > 0 && s->repetition_penalty != 1;
    if (!repeats && s->presence_penalty == 0 && s->frequency_penalty == 0) return;
    memset(c->key, 0, (size_t)n * sizeof *c->key);
    count_history(c->key, n, a, s);
    for (int64_t i = 0; i < n; i++)
        if (c->key[i]) c->l[i] = penalized(c->l[i], c->key[i], s);
}

/* ---------------------------------------------------------------- logprobs */

/* Insert into the n highest, which are in order; equal ones came in order of id. */
static void keep_highest(struct sample_logprobs *out, int32_t n, float l, int32_t id) {
    int32_t at = n;
    while (at > 0 && (out->top_id[at - 1] < 0 || l > out->top[at - 1])) at--;
    for (int32_t i = n - 1; i > at; i--) {
        out->top[i] = out->top[i - 1];
        out->top_id[i] = out->top_id[i - 1];
    }
    if (at == n) return;
    out->top[at] = l;
    out->top_id[at] = id;
}

static bool is_full(const struct sample_logprobs *out, int32_t n, float l) {
    return n == 0 || (out->top_id[n - 1] >= 0 && l <= out->top[n - 1]);
}

/* The highest of the raw logits in c->l, as logprobs, and what to subtract from a logit to
 * make it one; NaN where there is no softmax. */
static float find_highest(const struct simd *simd, struct candidates *c, int64_t n, const struct step_sample *s,
                          struct sample_logprobs *out) {
    bool has_nan;
    double sum = 0;
    float max = simd->max(c->l, n, &has_nan);
    *out = (struct sample_logprobs){.token = NAN};
    for (int32_t i = 0; i < MAX_LOGPROBS; i++) out->top_id[i] = -1;
    if (has_nan || isinf(max)) return NAN;
    for (int64_t i = 0; i < n; i++) c->prob[i] = c->l[i] - max;
    simd->exps(c->prob, c->prob, n);
    for (int64_t i = 0; i < n; i++) sum += (double)c->prob[i];
    for (int64_t i = 0; i < n; i++)
        if (!is_full(out, s->n_top, c->l[i])) keep_highest(out, s->n_top, c->l[i], (int32_t)i);
    float less = max + (float)log(sum);
    for (int32_t i = 0; i < s->n_top && out->top_id[i] >= 0; i++) out->top[i] -= less;
    return less;
}

static void describe_token(struct sample_logprobs *out, const float *logits, const float *bias, int64_t n, int32_t id,
                           float less) {
    float l = bias ? logits[id] + bias[id] : logits[id];
    out->token = l - less;
    out->rank = 1;
    for (int64_t i = 0; i < n; i++) out->rank += (bias ? logits[i] + bias[i] : logits[i]) > l;
}

/* ---------------------------------------------------------------- a row */

/* From the copy in c->l. */
static int32_t sample_row(struct candidates *c, int64_t n, const struct sampler *a, const struct step_sample *s) {
    const struct simd *simd = a->cpu->simd;
    bool has_nan;
    if (s->is_adjusted) adjust(c, n, a, s);
    for (int32_t i = 0; i < s->n_banned; i++) {
        int32_t id = a->step->banned[s->first_banned + i];
        if (id >= 0 && id < n) c->l[id] = -INFINITY;
    }
    float max = simd->max(c->l, n, &has_nan);
    if (has_nan || isinf(max)) return -1;
    int32_t best = 0;
    while (c->l[best] != max) best++;
    if (s->temperature <= 0.0f || isinf(max / s->temperature)) return best; /* so cold that it overflows */
    simd->logits(c->l, c->l, NULL, s->temperature, n);
    max = c->l[best];
    apply_top_k(c, n, s->top_k);
    apply_top_p(simd, c, n, s->top_p, max);
    apply_min_p(c, n, s->min_p, max);
    return draw(c->l, n, s, best);
}

/* The target, unless the row is not finite. */
static int32_t target_of(const struct candidates *c, int64_t n, const struct sampler *a, const struct step_sample *s) {
    bool has_nan;
    float max = a->cpu->simd->max(c->l, n, &has_nan);
    return has_nan || isinf(max) ? -1 : s->target;
}

static void sample_one(struct candidates *c, int64_t n, const struct sampler *a, int64_t i) {
    const struct step_sample *s = &a->step->samples[i];
    const float *logits = row_of(&a->logits->y, i), *bias = a->logits->weight ? a->logits->weight->bias.data : NULL;
    float less = NAN;
    a->cpu->simd->logits(c->l, logits, bias, 1.0f, n);
    if (s->wants_logprob) less = find_highest(a->cpu->simd, c, n, s, &a->logprobs[i]);
    int32_t id = s->has_target ? target_of(c, n, a, s) : sample_row(c, n, a, s);
    if (s->wants_logprob && id >= 0) describe_token(&a->logprobs[i], logits, bias, n, id, less);
    a->drawn[i] = id;
}

static void sample_part(void *arg, int part, int n_parts, int thread) {
    const struct sampler *a = arg;
    int64_t begin, end, n = a->logits->y.shape[1];
    pool_share(a->step->n_samples, part, n_parts, &begin, &end);
    char *at = a->scratch + (size_t)thread * a->scratch_bytes;
    struct candidates c;
    c.mass = (uint64_t *)at;
    c.l = (float *)(c.mass + n);
    c.prob = c.l + n;
    c.key = (uint32_t *)(c.prob + n);
    for (int64_t i = begin; i < end; i++) sample_one(&c, n, a, i);
}

static size_t thread_bytes(int64_t vocab) {
    return ((size_t)vocab * 20 + 127) / 64 * 64;
}

void cpu_sample(struct dev *dev, int32_t *drawn, int32_t *last_sample, struct sample_logprobs *logprobs,
                const struct product *logits, const struct step *step) {
    struct cpu_dev *cpu = cpu_of(dev);
    size_t bytes = thread_bytes(logits->y.shape[1]);
    char *scratch = cpu_scratch(cpu, bytes * (size_t)pool_n_threads(cpu->pool));
    if (!scratch) return;
    struct sampler a = {cpu, drawn, logprobs, logits, step, scratch, bytes};
    pool_run(cpu->pool, sample_part, &a, pool_parts(cpu->pool, step->n_samples, (double)logits->y.shape[1]));
    for (int32_t i = 0; i < step->n_samples; i++)
        if (!step->samples[i].has_target) last_sample[step->samples[i].slot] = drawn[i];
}

void cpu_sample_reserve(struct dev *dev, int64_t n_samples, int64_t vocab) {
    struct cpu_dev *cpu = cpu_of(dev);
    cpu_scratch(cpu, thread_bytes(vocab) * (size_t)pool_n_threads(cpu->pool));
}
