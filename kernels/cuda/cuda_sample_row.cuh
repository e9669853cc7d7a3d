/* cuda_sample_row.cuh - how a block draws one token from one row of logits, by the rule that
 * ops.h states.
 *
 * What a row asks for decides how often it is read:
 *
 *   greedy, or temperature alone   once
 *   min_p                          twice: the highest logit, then the draw
 *   top_p                          twice: cuda_sample_nucleus.cuh
 *   top_k, and top_p besides       twice: the highest logit and a histogram, then those
 *                                  near the top go into the list, where the thresholds
 *                                  and the draw are found
 *   either, and the list was       once more for the draw and twice for each threshold:
 *   wrong or too short (many       a histogram of the whole row, then one bin of it goes
 *   ties, large top_k)             into the list (if it is too large, a read for each of
 *                                  the integer's digits) */
#ifndef BATCHD_KERNELS_CUDA_CUDA_SAMPLE_ROW_CUH
#define BATCHD_KERNELS_CUDA_CUDA_SAMPLE_ROW_CUH

#include "kernels/cuda/cuda_sample_nucleus.cuh"

__device__ __noinline__ int32_t sample_greedy(struct source s) {
    uint64_t top = highest<false>(&s, NULL);
    return is_number(ranked_float(top)) ? ranked_id(top) : -1;
}

/* Temperature and nothing else: what the pass needs to know at its beginning comes from a
 * glance at the row, what can go wrong is looked at when it is over. */
__device__ __noinline__ int32_t sample_plain(struct source s, const struct step_sample *sample) {
    struct limits none = {0, -INFINITY};
    struct drawing d = drawing_of(sample, &none, -INFINITY);
    float x, most;
    best_clear();
    int32_t likely = glance(&s, &x);
    if (likely >= 0) consider(&d, likely, x, word_of(noise_of(&d, likely / 4), likely % 4));
    __syncthreads();
    draw_pass(&s, &d, &most);
    float max = ranked_float(block_max(ranked(most, 0)));
    if (!is_number(max)) return -1;
    if (isinf(max / sample->temperature)) return sample_greedy(s);
    return ranked_id(block_max(ranked(d.best, d.id)));
}

/* 0 = off */
__device__ __forceinline__ int32_t top_k_of(const struct source *s, const struct step_sample *sample) {
    return sample->top_k > 0 && sample->top_k < s->n ? sample->top_k : 0;
}

/* The token drawn, -1 where there is none; for all threads. */
__device__ __noinline__ int32_t sample_filtered(struct source s, const struct step_sample *sample) {
    int32_t top_k = top_k_of(&s, sample);
    if (!top_k && sample->top_p < 1.0f && sample->temperature >= LEAST_TEMPERATURE)
        return sample_nucleus(&s, sample);
    float top_p = sample->top_p, min_p = sample->min_p, temperature = sample->temperature;
    bool has_threshold = top_k || top_p < 1.0f, is_listed = false;
    struct ruler guessed = {0, 0};
    if (has_threshold) guessed = ruler_by_glance(&s, temperature);
    uint64_t best = has_threshold ? highest<true>(&s, &guessed) : highest<false>(&s, NULL);
    float top = ranked_float(best), max = top / temperature;
    if (!is_number(top)) return -1;
    if (isinf(max)) return ranked_id(best);
    struct search q = {temperature, ruler_at(temperature, top, 0), max, {0, -INFINITY}};
    if (has_threshold) {
        int end = list_end(top_k);
        struct listing listing = list_fill(&s, &q, &guessed, end, top_p < 1.0f && !top_k);
        is_listed = limit_in_list(&q, &listing, top_k, top_p);
        if (!is_listed) limit_in_row(&s, &q, listing.mass, top_k, top_p);
    }
    if (min_p > 0.0f) q.limits.least = max + logf(min_p);
    return draw_filtered(&s, sample, &q.limits, top, is_listed);
}

__device__ __forceinline__ int32_t sample_row(const struct source *s, const struct step_sample *sample) {
    int32_t top_k = top_k_of(s, sample);
    bool is_filtered = top_k || sample->top_p < 1.0f || sample->min_p > 0.0f;
    if (sample->temperature <= 0.0f) return sample_greedy(*s);
    if (is_filtered || sample->temperature < LEAST_TEMPERATURE) return sample_filtered(*s, sample);
    return sample_plain(*s, sample);
}

#endif
