/* cuda_sample_adjust.cuh - penalties, bias and allowed ids: a row's logits, changed as ops.h
 * states, copied to memory of the block's own. The logits themselves stay as they came, for
 * their logprobs are asked for afterwards.
 *
 * A block counts the sequence's tokens in shared memory, one slice of the vocabulary after
 * another: integer sums, whatever the order, and no table that grows with the context. The
 * sequence's tokens are read again for each slice, from the L2 cache. */
#ifndef BATCHD_KERNELS_CUDA_CUDA_SAMPLE_ADJUST_CUH
#define BATCHD_KERNELS_CUDA_CUDA_SAMPLE_ADJUST_CUH

#include "kernels/cuda/cuda_sample_block.cuh"

struct adjusting { /* one row */
    const struct step_sample *sample;
    int32_t *history;
    const int32_t *block_table;
    int32_t stride;
    const struct logit_bias *bias;
    const int32_t *allowed;
    bool repeats, counts; /* penalties on what occurs at all, on what was put out */
};

/* What shared memory says of a token; the other bits count it in the output. */
enum : uint32_t {
    MARK_SEEN = 1u << 31,
    MARK_BIASED = 1u << 30,
    MARK_ALLOWED = 1u << 29,
    MARK_COUNT = MARK_ALLOWED - 1
};

__device__ __forceinline__ struct adjusting adjusting_of(const struct step_sample *sample, int32_t *history,
                                                         const struct step *step) {
    struct adjusting a = {sample, history, step->block_table, step->block_table_stride, NULL, NULL,
                          false,  false};
    a.bias = step->bias + sample->first_bias;
    a.allowed = step->allowed + sample->first_allowed;
    a.repeats = sample->repetition_penalty > 0.0f && sample->repetition_penalty != 1.0f;
    a.counts = sample->presence_penalty != 0.0f || sample->frequency_penalty != 0.0f;
    return a;
}

__device__ __forceinline__ void mark(int32_t id, int32_t first, int32_t n, uint32_t bit) {
    if (id >= first && id < first + n) atomicOr(&sh.slice[id - first], bit);
}

__device__ void mark_history(const struct adjusting *a, int32_t first, int32_t n) {
    int32_t n_prompt = a->sample->n_prompt, begin = a->repeats ? 0 : n_prompt;
    if (!a->repeats && !a->counts) return;
    for (int32_t p = begin + threadIdx.x; p < a->sample->position; p += THREADS) {
        int32_t id = *history_at(a->history, a->block_table, a->stride, a->sample->slot, p);
        if (id < first || id >= first + n) continue;
        if (p >= n_prompt) atomicAdd(&sh.slice[id - first], 1u);
        atomicOr(&sh.slice[id - first], (uint32_t)MARK_SEEN);
    }
}

/* sh.slice = the marks of ids first .. first + n - 1. */
__device__ void mark_slice(const struct adjusting *a, int32_t first, int32_t n) {
    __syncthreads(); /* the slice before has been read */
    for (int32_t k = threadIdx.x; k < n; k += THREADS) sh.slice[k] = 0;
    __syncthreads();
    mark_history(a, first, n);
    for (int32_t i = threadIdx.x; i < a->sample->n_bias; i += THREADS)
        mark(a->bias[i].id, first, n, MARK_BIASED);
    for (int32_t i = threadIdx.x; i < a->sample->n_allowed; i += THREADS)
        mark(a->allowed[i], first, n, MARK_ALLOWED);
    __syncthreads();
}

/* The list ascends. */
__device__ float bias_of(const struct adjusting *a, int32_t id) {
    int32_t low = 0, high = a->sample->n_bias - 1;
    while (low < high) {
        int32_t middle = (low + high) / 2;
        if (a->bias[middle].id < id)
            low = middle + 1;
        else
            high = middle;
    }
    return a->bias[low].add;
}

/* Each step rounded by itself, as on the CPU: no multiply-add. */
__device__ float adjusted(const struct adjusting *a, int32_t id, float l, uint32_t marks) {
    const struct step_sample *s = a->sample;
    if (s->n_allowed > 0 && !(marks & MARK_ALLOWED)) l = -INFINITY;
    if (marks & MARK_BIASED) l = __fadd_rn(l, bias_of(a, id));
    if (!(marks & MARK_SEEN)) return l;
    if (a->repeats) l = l > 0.0f ? __fdiv_rn(l, s->repetition_penalty) : __fmul_rn(l, s->repetition_penalty);
    uint32_t count = marks & MARK_COUNT;
    if (count == 0) return l;
    l = __fsub_rn(l, __fmul_rn(s->frequency_penalty, (float)count));
    return __fsub_rn(l, s->presence_penalty);
}

/* out[0, n) = the row's logits as they are to be drawn from, bias included. */
__device__ void adjust_row(float *out, const float *x, const float *bias, int32_t n,
                           const struct adjusting *a) {
    for (int32_t first = 0; first < n; first += SLICE) {
        int32_t size = n - first < SLICE ? n - first : SLICE;
        mark_slice(a, first, size);
        for (int32_t k = threadIdx.x; k < size; k += THREADS) {
            int32_t id = first + k;
            float l = bias ? __fadd_rn(x[id], bias[id]) : x[id];
            out[id] = adjusted(a, id, l, sh.slice[k]);
        }
    }
    __syncthreads();
}

#endif
