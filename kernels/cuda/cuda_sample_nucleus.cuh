/* cuda_sample_nucleus.cuh - top_p alone: the row is read twice, for the highest logit and a
 * histogram that tells roughly where the threshold will be; then for the mass, the draw among
 * those surely above it, and a list of those near it, where the threshold is found. */
#ifndef BATCHD_KERNELS_CUDA_CUDA_SAMPLE_NUCLEUS_CUH
#define BATCHD_KERNELS_CUDA_CUDA_SAMPLE_NUCLEUS_CUH

#include "kernels/cuda/cuda_sample_draw.cuh"

struct bracket { /* places on the ruler that counted: what lies from `from` to before `to` is listed */
    float from, to;
};

/* Bins [0, end) fit into the list, and if they hold the threshold all before it goes there too.
 * Else as many bins around that of the threshold as fit; none if it alone is too large. */
__device__ void bracket_around(int bin, int end) {
    int from = bin, to = bin + 1;
    uint32_t n = sh.counts[bin];
    bool grows = n <= LIST;
    if (!grows) from = to = 0;
    for (int turn = 0; grows; turn++) { /* the guess is good to a part of a bin */
        int next = turn % 2 ? from - 1 : to;
        grows = turn < 8 && next >= 1 && next < BINS - 1 && (n += sh.counts[next]) <= LIST;
        if (!grows) break;
        if (turn % 2)
            from = next;
        else
            to = next + 1;
    }
    sh.bracket_from = bin < end ? 0 : from;
    sh.bracket_to = bin < end ? end : to;
}

/* Where the threshold will be, from the numbers of logits that highest<true> left in the bins. */
__device__ struct bracket bracket_of(const struct ruler *ruler, float top, float top_p) {
    float top_place = place_of(ruler, top);
    uint64_t w[BINS_OF_THREAD], sum = 0;
    __syncthreads(); /* the histogram is complete */
#pragma unroll
    for (int i = 0; i < BINS_OF_THREAD; i++)
        sum += w[i] = bin_mass_guess(threadIdx.x * BINS_OF_THREAD + i, top_place);
    bins_find(w, top_p_target(block_sum(sum), top_p));
    int bin = sh.found_bin;
    int end = list_end(0);
    if (threadIdx.x == 0) bracket_around(bin < BINS - 1 ? bin : BINS - 1, end);
    __syncthreads();
    float from = (float)sh.bracket_from, to = (float)sh.bracket_to;
    return {from > 0.0f ? from : -INFINITY, to > 0.0f ? to : -INFINITY};
}

/* The bracket's own ruler: its logits have bins enough for each to be nearly alone in one. */
__device__ __forceinline__ struct ruler zoomed(const struct ruler *ruler, const struct bracket *bracket) {
    float from = fmaxf(bracket->from, 0.0f), factor = (float)BINS / (bracket->to - from);
    return {ruler->scale * factor, (ruler->top - from) * factor};
}

/* x / by, rounded as division rounds, in five steps; reciprocal: 1 / by. */
__device__ __forceinline__ float divided(float x, float by, float reciprocal) {
    float q = x * reciprocal;
    float near = fmaf(fmaf(-q, by, x), reciprocal, q);
    float exact = fmaf(fmaf(-near, by, x), reciprocal, near);
    return fabsf(q) < INFINITY ? exact : q;
}

struct nucleus {          /* what a pass over the row has found */
    uint64_t mass, above; /* of the whole row; of what lies before the bracket */
    float below;          /* the highest logit behind the bracket */
};

/* A group of four: their mass, and which of them lie before the bracket. */
__device__ __forceinline__ unsigned nucleus_group(struct nucleus *found, const struct search *q,
                                                  const struct ruler *ruler, const struct bracket *bracket,
                                                  float reciprocal, float4 v, int group) {
    unsigned above = 0;
#pragma unroll
    for (int j = 0; j < 4; j++) {
        float x = pick(v, j), place = place_of(ruler, x);
        uint64_t mass = mass_of(divided(x, q->temperature, reciprocal), q->max);
        found->mass += mass;
        if (place < bracket->from) {
            found->above += mass;
            above |= 1u << j;
        } else if (place < bracket->to) {
            int at = atomicAdd(&sh.n_listed, 1);
            ((float *)sh.list_x)[at] = x;
            sh.list_id[at] = group * 4 + j;
        } else {
            found->below = fmaxf(found->below, x);
        }
    }
    return above;
}

/* Mass, list, and the draw among those before the bracket. What has no mass is below any
 * threshold. From the row's end to its beginning, as in list_fill. */
__device__ struct nucleus nucleus_pass(const struct source *s, const struct search *q,
                                       const struct ruler *ruler, const struct bracket *bracket,
                                       struct drawing *d) {
    struct nucleus found = {0, 0, -INFINITY};
    float reciprocal = 1.0f / q->temperature;
    uint32_t seen = order_key(-INFINITY);
    if (threadIdx.x == 0) sh.n_listed = 0;
    best_clear();
    for (int turn = (n_turns(s) - 1) / AHEAD * AHEAD; turn >= 0; turn -= AHEAD) {
        float4 v[AHEAD];
        groups_of_turns(v, s, turn);
        raise_floor(d, &seen);
#pragma unroll
        for (int a = 0; a < AHEAD; a++) {
            int group = threadIdx.x + (turn + a) * THREADS;
            float m = max_of(v[a]);
            if (divided(m, q->temperature, reciprocal) - q->max < -NO_MASS) continue;
            unsigned above = nucleus_group(&found, q, ruler, bracket, reciprocal, v[a], group);
            /* The keys of Philox's rounds are made anew: kept, they would be spilled. */
            asm volatile("" : "+r"(d->k0), "+r"(d->k1));
            if (above) consider_group(d, group, v[a], m, above);
        }
    }
    found.mass = block_sum(found.mass); /* and the list is complete */
    found.above = block_sum(found.above);
    found.below = ranked_float(block_max(ranked(found.below, 0)));
    return found;
}

/* The threshold, from the list; 0 if it is not there. */
__device__ uint32_t nucleus_key(const struct nucleus *found, const struct search *q,
                                const struct ruler *ruler, float top_p) {
    uint64_t target = top_p_target(found->mass, top_p);
    if (found->above >= target) return 0;
    struct search in_list = *q;
    in_list.ruler = *ruler;
    uint32_t key = threshold_key(list_source(), in_list, true, target - found->above);
    return order_key(found->below / q->temperature) < key ? key : 0; /* all that tie are in the list */
}

/* A call by itself: inlined, it takes registers from sample_plain. */
__device__ __noinline__ int32_t sample_nucleus(const struct source *s, const struct step_sample *sample) {
    float temperature = sample->temperature, top_p = sample->top_p;
    struct ruler guessed = ruler_by_glance(s, temperature);
    uint64_t best = highest<true>(s, &guessed);
    float top = ranked_float(best), max = top / temperature;
    if (!is_number(top)) return -1;
    if (isinf(max)) return ranked_id(best);
    struct search q = {temperature, ruler_at(temperature, top, 0), max, {0, -INFINITY}};
    struct limits limits = {0, sample->min_p > 0.0f ? max + logf(sample->min_p) : -INFINITY};
    struct bracket bracket = bracket_of(&guessed, top, top_p);
    struct drawing d = filtered_drawing(sample, &limits, top);
    struct nucleus found = nucleus_pass(s, &q, &guessed, &bracket, &d);
    struct ruler fine = zoomed(&guessed, &bracket);
    limits.key = d.limits.key = nucleus_key(&found, &q, &fine, top_p);
    if (limits.key) {
        draw_listed(&d);
        return ranked_id(block_max(ranked(d.best, d.id)));
    }
    limit_in_row(s, &q, found.mass, 0, top_p);
    limits.key = q.limits.key;
    return draw_filtered(s, sample, &limits, top, false);
}

#endif
