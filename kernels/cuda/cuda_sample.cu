/* cuda_sample.cu - one token for each row of logits: the kernels of op_sample.
 *
 *   sample_kernel    one block a row: rows that are drawn from as they are
 *   adjusted_kernel  rows with penalties, bias or allowed ids, drawn from a changed copy; a
 *                    block has room for one and takes one after another
 *   logprob_kernel   after both, one block a row
 *
 * The last two are queued only where the step has such rows. Each looks at every sample and
 * leaves the others alone, so that what is queued does not depend on which they are. */
#include "kernels/cuda/cuda_sample_adjust.cuh"
#include "kernels/cuda/cuda_sample_logprobs.cuh"
#include "kernels/cuda/cuda_sample_row.cuh"

struct sampling { /* what the kernels share */
    int32_t *drawn, *last_sample;
    const float *logits, *bias; /* bias: or NULL */
    int32_t vocab, n_samples;
    struct step step; /* its arrays are on the device */
};

/* For thread 0 to know: a later sample of the step has the same slot. */
__device__ bool is_last_of_slot(const struct step_sample *samples, int32_t i, int32_t n) {
    bool later = false;
    for (int32_t k = i + 1 + threadIdx.x; k < n; k += THREADS) later |= samples[k].slot == samples[i].slot;
    return !__syncthreads_or(later);
}

static __global__ void __launch_bounds__(THREADS, 2)
    sample_kernel(int32_t *drawn, int32_t *last_sample, const float *logits, const float *bias, int32_t vocab,
                  const struct step_sample *samples, int32_t n_samples, const int32_t *banned) {
    cuda_begin();
    int32_t i = blockIdx.x;
    const struct step_sample *sample = samples + i;
    if (sample->has_target && threadIdx.x == 0) drawn[i] = sample->target;
    if (sample->has_target || sample->is_adjusted) return;
    struct source s =
        row_source(logits + (int64_t)i * vocab, bias, vocab, banned + sample->first_banned, sample->n_banned);
    bool is_last = is_last_of_slot(samples, i, n_samples);
    int32_t id = sample_row(&s, sample);
    if (threadIdx.x != 0) return;
    drawn[i] = id;
    if (is_last) last_sample[sample->slot] = id;
}

static __global__ void __launch_bounds__(THREADS, 2)
    adjusted_kernel(struct sampling k, int32_t *history, float *room, int64_t room_stride) {
    cuda_begin();
    float *row = room + blockIdx.x * room_stride;
    for (int32_t i = blockIdx.x; i < k.n_samples; i += gridDim.x) {
        const struct step_sample *sample = k.step.samples + i;
        if (!sample->is_adjusted || sample->has_target) continue;
        struct adjusting a = adjusting_of(sample, history, &k.step);
        adjust_row(row, k.logits + (int64_t)i * k.vocab, k.bias, k.vocab, &a);
        struct source s =
            row_source(row, NULL, k.vocab, k.step.banned + sample->first_banned, sample->n_banned);
        bool is_last = is_last_of_slot(k.step.samples, i, k.n_samples);
        int32_t id = sample_row(&s, sample);
        if (threadIdx.x != 0) continue;
        k.drawn[i] = id;
        if (is_last) k.last_sample[sample->slot] = id;
    }
}

static __global__ void __launch_bounds__(THREADS, 2)
    logprob_kernel(struct sampling k, struct sample_logprobs *logprobs) {
    cuda_begin();
    int32_t i = blockIdx.x;
    const struct step_sample *sample = k.step.samples + i;
    if (!sample->wants_logprob) return;
    struct source s = row_source(k.logits + (int64_t)i * k.vocab, k.bias, k.vocab, NULL, 0);
    row_logprobs(logprobs + i, &s, sample->n_top, k.drawn + i);
}

/* ---------------------------------------------------------------- memory of the adjusted rows */

static int64_t room_stride(int64_t vocab) { return (vocab + 3) / 4 * 4; } /* rows stay aligned for float4 */

/* As many blocks as run at once. */
static int64_t n_rooms(const struct cuda_dev *cuda, int64_t n_samples) {
    int64_t most = 2 * (int64_t)cuda->prop.multiProcessorCount;
    return n_samples < most ? n_samples : most;
}

int64_t cuda_sample_bytes(const struct cuda_dev *cuda, int64_t n_samples, int64_t vocab) {
    return n_rooms(cuda, n_samples) * room_stride(vocab) * (int64_t)sizeof(float);
}

void cuda_sample_reserve(struct dev *dev, int64_t n_samples, int64_t vocab) {
    cuda_scratch(cuda_of(dev), (size_t)cuda_sample_bytes(cuda_of(dev), n_samples, vocab));
}

static void draw_adjusted(struct cuda_dev *cuda, const struct sampling *k) {
    float *room = (float *)cuda_scratch(cuda, (size_t)cuda_sample_bytes(cuda, k->n_samples, k->vocab));
    if (!room) return;
    unsigned blocks = (unsigned)n_rooms(cuda, k->n_samples);
    cuda_launch(cuda, "sample with penalties", adjusted_kernel, blocks, THREADS, 0, *k, cuda->dev.history,
                room, room_stride(k->vocab));
}

/* ---------------------------------------------------------------- the operation */

void cuda_sample(struct dev *dev, int32_t *drawn, int32_t *last_sample, struct sample_logprobs *logprobs,
                 const struct product *logits, const struct step *step) {
    struct cuda_dev *cuda = cuda_of(dev);
    unsigned n = (unsigned)step->n_samples;
    const float *bias = logits->weight ? (const float *)logits->weight->bias.data : NULL;
    struct sampling k = {
        drawn,           last_sample, (const float *)logits->y.data, bias, (int32_t)logits->y.shape[1],
        step->n_samples, *step};
    cuda_launch(cuda, "sample", sample_kernel, n, THREADS, 0, drawn, last_sample, k.logits, bias, k.vocab,
                step->samples, step->n_samples, step->banned);
    if (step->has_adjusted) draw_adjusted(cuda, &k);
    if (!step->has_logprobs) return;
    cuda_launch(cuda, "logprobs", logprob_kernel, n, THREADS, 0, k, logprobs);
}
