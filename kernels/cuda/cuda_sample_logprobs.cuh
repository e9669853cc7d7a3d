/* cuda_sample_logprobs.cuh - log_softmax of a row's logits at one token and at the highest.
 *
 * The row is read twice: for the highest logit and a histogram, then for the sum, in fixed
 * point, while those near the top go into the list of cuda_sample_threshold.cuh. The highest are
 * taken from the list one by one; from the row itself where too many tie for the list. */
#ifndef BATCHD_KERNELS_CUDA_CUDA_SAMPLE_LOGPROBS_CUH
#define BATCHD_KERNELS_CUDA_CUDA_SAMPLE_LOGPROBS_CUH

#include "kernels/cuda/cuda_sample_threshold.cuh"

/* ranked() of the highest below `below` in the list. */
__device__ uint64_t next_listed(uint64_t below) {
    uint64_t best = 0;
    for (int i = threadIdx.x; i < sh.n_listed; i += THREADS) {
        uint64_t r = ranked(((const float *)sh.list_x)[i], sh.list_id[i]);
        if (r < below && r > best) best = r;
    }
    return block_max(best);
}

__device__ uint64_t next_in_row(const struct source *s, uint64_t below) {
    uint64_t best = 0;
    int32_t n = s->n;
    each_group(s, [=, &best](float4 v, int group) {
        for (int j = 0; j < 4; j++) {
            int32_t id = group * 4 + j;
            uint64_t r = ranked(pick(v, j), id);
            if (id < n && r < below && r > best) best = r;
        }
    });
    return block_max(best);
}

/* Every thread has the list; thread 0 writes. */
__device__ void write_highest(struct sample_logprobs *out, const struct source *s, int32_t n_top,
                              bool is_listed, float less) {
    uint64_t below = ~0ull;
    int32_t n = n_top < s->n ? n_top : s->n;
    for (int32_t i = 0; i < n; i++) {
        below = is_listed ? next_listed(below) : next_in_row(s, below);
        if (threadIdx.x != 0) continue;
        out->top_id[i] = ranked_id(below);
        out->top[i] = ranked_float(below) - less;
    }
    for (int32_t i = n + threadIdx.x; i < MAX_LOGPROBS; i += THREADS) {
        out->top_id[i] = -1;
        out->top[i] = 0.0f;
    }
}

/* What a logit is less than its own by, when it is a logprob. The list, and whether the
 * n_top highest are in it. */
__device__ float list_highest(const struct source *s, int32_t n_top, float top, const struct ruler *guessed,
                              bool *is_listed) {
    struct search q = {1.0f, ruler_at(1.0f, top, 0), top, {0, -INFINITY}};
    struct listing listing = list_fill(s, &q, guessed, n_top > 0 ? list_end(n_top) : 0, true);
    int32_t n_above = 0;
    for (int i = threadIdx.x; i < sh.n_listed; i += THREADS)
        n_above += ((const float *)sh.list_x)[i] > listing.unlisted;
    *is_listed = block_sum((uint64_t)n_above) >= (uint64_t)n_top;
    return top + logf((float)((double)listing.mass * 0x1p-40));
}

/* How many logits are higher. */
__device__ uint64_t n_higher(const struct source *s, float x) {
    uint64_t higher = 0;
    each_group(s, [&](float4 v, int) {
        for (int j = 0; j < 4; j++) higher += pick(v, j) > x;
    });
    return block_sum(higher);
}

/* For one row, whose token is *id; -1 instead where the logits are not finite. */
__device__ void row_logprobs(struct sample_logprobs *out, const struct source *s, int32_t n_top,
                             int32_t *id) {
    struct ruler guessed = ruler_by_glance(s, 1.0f);
    float top = ranked_float(highest<true>(s, &guessed));
    int32_t token = *id;
    bool is_listed = true;
    __syncthreads(); /* everybody has the token */
    if (threadIdx.x == 0) out->token = NAN;
    if (!is_number(top)) {
        if (threadIdx.x == 0) *id = -1;
        return;
    }
    float less = list_highest(s, n_top, top, &guessed, &is_listed);
    write_highest(out, s, n_top, is_listed, less);
    if (token < 0 || token >= s->n) return;
    float x = s->bias ? s->x[token] + s->bias[token] : s->x[token];
    uint64_t higher = n_higher(s, x);
    if (threadIdx.x != 0) return;
    out->token = x - less;
    out->rank = 1 + (int32_t)higher;
}

#endif
