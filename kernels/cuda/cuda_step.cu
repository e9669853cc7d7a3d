/* cuda_step.cu - a step's arrays on their way to the device: one pinned buffer, one copy.
 *
 * A pinned buffer is used again when its copy is over. On the device all steps share one
 * buffer, for the copies lie in the stream's order like everything else; so arrays of steps
 * of one size lie at the same addresses, which graphs rely on (cuda_graph.cu). */
#include "kernels/cuda/cuda.h"

#include "base/mem.h"

#include <stdlib.h>
#include <string.h>

/* Both grow, with room to spare: in a step's life only once or twice. */
static bool staging_room(struct cuda_dev *cuda, struct cuda_staging *s, size_t bytes) {
    size_t room = bytes + bytes / 2 + 65536;
    if (!s->copied &&
        !cuda_ok(cuda, cudaEventCreateWithFlags(&s->copied, cudaEventDisableTiming), "an event"))
        return false;
    if (bytes > s->bytes) {
        cudaStreamSynchronize(cuda->stream);
        cudaFreeHost(s->host);
        s->host = NULL;
        s->bytes = 0;
        if (!cuda_ok(cuda, cudaMallocHost((void **)&s->host, room), "staging memory")) return false;
        s->bytes = room;
    }
    if (bytes > cuda->step_bytes) {
        cudaStreamSynchronize(cuda->stream); /* nobody reads the old one */
        cuda_graphs_close(cuda);
        cudaFree(cuda->step_room);
        cuda->step_room = NULL;
        cuda->step_bytes = 0;
        if (!cuda_ok(cuda, cudaMalloc((void **)&cuda->step_room, room), "staging memory")) return false;
        cuda->step_bytes = room;
    }
    return true;
}

void cuda_step_close(struct cuda_dev *cuda) {
    for (int i = 0; i < CUDA_STAGINGS; i++) {
        struct cuda_staging *s = &cuda->staging[i];
        cudaFreeHost(s->host);
        if (s->copied) cudaEventDestroy(s->copied);
    }
    cudaFree(cuda->step_room);
}

static size_t aligned(size_t bytes) { return (bytes + 255) & ~(size_t)255; }

struct packer {
    char *host, *device;
    size_t at;
};

/* Copy n bytes to the staging; the address that the device will know them by. */
static void *pack(struct packer *p, const void *data, size_t bytes) {
    void *device = p->device + p->at;
    if (bytes && data)
        memcpy(p->host + p->at, data, bytes); /* a step may lack what its operations do not read */
    p->at += aligned(bytes);
    return device;
}

static int32_t n_items_of(const struct step *s) {
    int32_t n = 0;
    for (int32_t i = 0; i < s->n_sequences; i++)
        n += (s->sequences[i].n_rows + ATTENTION_QUERIES - 1) / ATTENTION_QUERIES;
    return n;
}

/* Decode rows apart from chunks of prompts; of each kind the longest first. */
static int by_work(const void *a, const void *b) {
    const struct attention_item *x = (const struct attention_item *)a, *y = (const struct attention_item *)b;
    if ((x->n_rows == 1) != (y->n_rows == 1)) return x->n_rows == 1 ? -1 : 1;
    int64_t wx = (int64_t)x->first_position + x->n_rows, wy = (int64_t)y->first_position + y->n_rows;
    if (wx != wy) return wx > wy ? -1 : 1;
    return x->first_row < y->first_row ? -1 : x->first_row > y->first_row;
}

static void make_items(struct attention_item *items, const struct step *s, int32_t *n_single,
                       int32_t *most_tokens) {
    int32_t n = 0;
    *n_single = *most_tokens = 0;
    for (int32_t i = 0; i < s->n_sequences; i++) {
        const struct step_sequence *q = &s->sequences[i];
        for (int32_t r = 0; r < q->n_rows; r += ATTENTION_QUERIES) {
            int32_t rows = q->n_rows - r < ATTENTION_QUERIES ? q->n_rows - r : ATTENTION_QUERIES;
            *n_single += rows == 1;
            if (rows > *most_tokens) *most_tokens = rows;
            items[n++] = {q->slot, q->first_row + r, rows, q->first_position + r};
        }
    }
    qsort(items, (size_t)n, sizeof *items, by_work);
}

static int32_t n_banned_of(const struct step *s) {
    int32_t n = 0;
    for (int32_t i = 0; i < s->n_samples; i++) {
        int32_t end = s->samples[i].first_banned + s->samples[i].n_banned;
        if (end > n) n = end;
    }
    return n;
}

/* Slots are numbered from 0; the table is sent up to the highest that the step names. */
static int32_t n_slots_of(const struct step *s) {
    int32_t n = 0;
    for (int32_t i = 0; i < s->n_sequences; i++)
        if (s->sequences[i].slot >= n) n = s->sequences[i].slot + 1;
    return n;
}

/* Only the table rows of the step's own slots are copied, to their places. */
static void *pack_block_table(struct packer *p, const struct step *s, int32_t n_slots) {
    size_t row = (size_t)s->block_table_stride * sizeof(int32_t);
    char *host = p->host + p->at;
    void *device = p->device + p->at;
    for (int32_t i = 0; i < s->n_sequences; i++) {
        const struct step_sequence *q = &s->sequences[i];
        size_t used = (size_t)((q->first_position + q->n_rows + KV_BLOCK - 1) / KV_BLOCK) * sizeof(int32_t);
        memcpy(host + (size_t)q->slot * row, s->block_table + (size_t)q->slot * (size_t)s->block_table_stride,
               used);
    }
    p->at += aligned((size_t)n_slots * row);
    return device;
}

const struct step *cuda_step_upload(struct dev *dev, const struct step *host) {
    struct cuda_dev *cuda = cuda_of(dev);
    struct cuda_staging *s = &cuda->staging[cuda->next_staging];
    cuda->next_staging = (cuda->next_staging + 1) % CUDA_STAGINGS;
    size_t t = (size_t)host->n_rows, n_items = (size_t)n_items_of(host), n_banned = (size_t)n_banned_of(host);
    size_t n_bias = (size_t)host->n_bias, n_allowed = (size_t)host->n_allowed;
    int32_t n_slots = n_slots_of(host);
    size_t table = (size_t)n_slots * (size_t)host->block_table_stride * sizeof(int32_t);
    size_t bytes = 3 * aligned(t * 4) + aligned((size_t)host->n_sequences * sizeof *host->sequences) +
                   aligned(table) + aligned((size_t)host->n_samples * sizeof *host->samples) +
                   aligned(n_banned * 4) + aligned(n_bias * sizeof *host->bias) + aligned(n_allowed * 4) +
                   aligned(n_items * sizeof(struct attention_item));
    s->step.step = *host;
    if (!staging_room(cuda, s, bytes)) return &s->step.step;
    if (s->in_use) cuda_ok(cuda, cudaEventSynchronize(s->copied), "staging");
    struct packer p = {s->host, cuda->step_room, 0};
    struct step *d = &s->step.step;
    d->token = (const int32_t *)pack(&p, host->token, t * 4);
    d->position = (const int32_t *)pack(&p, host->position, t * 4);
    d->slot = (const int32_t *)pack(&p, host->slot, t * 4);
    d->sequences = (const struct step_sequence *)pack(&p, host->sequences,
                                                      (size_t)host->n_sequences * sizeof *host->sequences);
    d->samples =
        (const struct step_sample *)pack(&p, host->samples, (size_t)host->n_samples * sizeof *host->samples);
    s->step.n_items = (int32_t)n_items;
    make_items((struct attention_item *)(s->host + p.at), host, &s->step.n_single, &s->step.most_tokens);
    s->step.items = (const struct attention_item *)(cuda->step_room + p.at);
    p.at += aligned(n_items * sizeof(struct attention_item));
    /* What differs from step to step of one size comes last, so that the rest keeps its place. */
    d->banned = (const int32_t *)pack(&p, host->banned, n_banned * 4);
    d->bias = (const struct logit_bias *)pack(&p, host->bias, n_bias * sizeof *host->bias);
    d->allowed = (const int32_t *)pack(&p, host->allowed, n_allowed * 4);
    d->block_table = (const int32_t *)pack_block_table(&p, host, n_slots);
    cuda_ok(cuda, cudaMemcpyAsync(cuda->step_room, s->host, p.at, cudaMemcpyHostToDevice, cuda->stream),
            "a step's upload");
    cuda_ok(cuda, cudaEventRecord(s->copied, cuda->stream), "a step's upload");
    s->in_use = true;
    return d;
}
