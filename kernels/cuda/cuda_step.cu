/* cuda_step.cu - a step's arrays on their way to the device: one pinned buffer, one copy.
 *
 * A pinned buffer is used again when its copy is over. On the device all steps share one
 * buffer, for the copies lie in the stream's order like everything else; so arrays of steps
 * of one size lie at the same addresses, which graphs rely on (cuda_graph.cu). Both are taken
 * when a runner opens. */
#include "kernels/cuda/cuda.h"

#include "base/mem.h"

#include <string.h>

enum { LEAST_STRIDE = 32 }; /* blocks: 1,024 tokens */

/* What the copy's arrays are counted by. */
struct step_sizes {
    size_t rows, sequences, samples, items, tiles, banned, bias, allowed, table; /* table: numbers in it */
};

static size_t aligned(size_t bytes) { return (bytes + 255) & ~(size_t)255; }

/* Of the copy; the staging has as many items again, to sort them with. */
static size_t step_bytes(const struct step_sizes *n) {
    return 3 * aligned(n->rows * sizeof(int32_t)) + aligned(n->sequences * sizeof(struct step_sequence)) +
           aligned(n->samples * sizeof(struct step_sample)) +
           aligned(n->items * sizeof(struct attention_item)) +
           aligned(n->tiles * sizeof(struct expanded_tile)) + aligned(n->banned * sizeof(int32_t)) +
           aligned(n->bias * sizeof(struct logit_bias)) + aligned(n->allowed * sizeof(int32_t)) +
           aligned(n->table * sizeof(int32_t));
}

static bool host_room(struct cuda_dev *cuda, struct cuda_staging *s, size_t bytes) {
    if (!s->copied &&
        !cuda_ok(cuda, cudaEventCreateWithFlags(&s->copied, cudaEventDisableTiming), "an event"))
        return false;
    if (bytes <= s->bytes) return true;
    cudaStreamSynchronize(cuda->stream);
    cudaFreeHost(s->host);
    s->host = NULL;
    s->bytes = 0;
    if (!cuda_ok(cuda, cudaMallocHost((void **)&s->host, bytes), "staging memory")) return false;
    s->bytes = bytes;
    cuda->dev.n_growths++;
    return true;
}

static bool device_room(struct cuda_dev *cuda, size_t bytes) {
    if (bytes <= cuda->step_bytes) return true;
    cudaStreamSynchronize(cuda->stream); /* nobody reads the old one */
    cuda_graphs_close(cuda);
    cudaFree(cuda->step_room);
    cuda->step_room = NULL;
    cuda->step_bytes = 0;
    if (!cuda_ok(cuda, cudaMalloc((void **)&cuda->step_room, bytes), "staging memory")) return false;
    cuda->step_bytes = bytes;
    cuda->dev.n_growths++;
    return true;
}

/* Where more is needed than was reserved, there will be room to spare. */
static bool staging_room(struct cuda_dev *cuda, struct cuda_staging *s, const struct step_sizes *n) {
    size_t device = step_bytes(n), host = device + n->items * sizeof(struct attention_item);
    return host_room(cuda, s, host <= s->bytes ? host : host + host / 2) &&
           device_room(cuda, device <= cuda->step_bytes ? device : device + device / 2);
}

/* Tables of more are made when they are needed: many slots, and sequences that fill the context. */
static const size_t MOST_RESERVED = (size_t)16 << 20;

/* A table is as wide as its longest sequence, in powers of two: few kinds of steps for graphs to
 * know, and a copy of some KiB where contexts are long but sequences are not. */
static int32_t table_stride(int32_t n_blocks, int32_t most) {
    int32_t stride = LEAST_STRIDE;
    while (stride < n_blocks) stride *= 2;
    return stride < most ? stride : most;
}

void cuda_step_reserve(struct dev *dev, const struct step_limits *limits) {
    struct cuda_dev *cuda = cuda_of(dev);
    size_t rows = (size_t)limits->n_rows, slots = (size_t)limits->n_slots;
    cuda_attention_reserve(cuda, limits);
    struct step_sizes n = {rows,
                           slots,
                           (size_t)limits->n_samples,
                           slots + rows / ATTENTION_QUERIES,
                           (size_t)cuda->expanded.n_tiles,
                           (size_t)limits->n_banned,
                           (size_t)limits->n_bias,
                           (size_t)limits->n_allowed,
                           slots * (size_t)table_stride(limits->n_blocks, limits->n_blocks)};
    if (n.table > MOST_RESERVED) n.table = MOST_RESERVED;
    size_t device = step_bytes(&n), host = device + n.items * sizeof(struct attention_item);
    for (int i = 0; i < CUDA_STAGINGS; i++) host_room(cuda, &cuda->staging[i], host);
    device_room(cuda, device);
}

/* The kernels' scratch is one after another's. */
int64_t cuda_step_reserve_bytes(const struct dev *dev, const struct step_limits *limits) {
    const struct cuda_dev *cuda = (const struct cuda_dev *)dev;
    int64_t sample = cuda_sample_bytes(cuda, limits->n_samples, limits->vocab);
    int64_t attention = cuda_attention_reserve_bytes(cuda, limits);
    return sample > attention ? sample : attention;
}

void cuda_step_close(struct cuda_dev *cuda) {
    for (int i = 0; i < CUDA_STAGINGS; i++) {
        struct cuda_staging *s = &cuda->staging[i];
        cudaFreeHost(s->host);
        if (s->copied) cudaEventDestroy(s->copied);
    }
    cudaFree(cuda->step_room);
}

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

/* Decode rows apart from chunks of prompts, and of these those whose keys are expanded; of each
 * kind the longest first. */
static bool comes_before(const struct attention_item *x, const struct attention_item *y) {
    if ((x->n_rows == 1) != (y->n_rows == 1)) return x->n_rows == 1;
    if (x->n_rows > 1 && (x->tile < 0) != (y->tile < 0)) return x->tile >= 0;
    int64_t wx = (int64_t)x->first_position + x->n_rows, wy = (int64_t)y->first_position + y->n_rows;
    return wx != wy ? wx > wy : x->first_row < y->first_row;
}

/* x[0, first) and x[first, n) are in order. */
static void merge_items(struct attention_item *x, int32_t first, int32_t n, struct attention_item *spare) {
    if (!comes_before(&x[first], &x[first - 1])) return;
    memcpy(spare, x, (size_t)first * sizeof *x);
    for (int32_t out = 0, i = 0, j = first; i < first; out++)
        x[out] = j < n && comes_before(&x[j], &spare[i]) ? x[j++] : spare[i++];
}

/* Not qsort, which takes memory. Sequences come oldest first, so that most are in order already. */
static void sort_items(struct attention_item *x, int32_t n, struct attention_item *spare) {
    for (int32_t run = 1; run < n; run *= 2)
        for (int32_t at = 0; at + run < n; at += 2 * run)
            merge_items(x + at, run, n - at < 2 * run ? n - at : 2 * run, spare);
}

/* Tiles that a sequence's keys take where they are expanded: many rows read them, and there is
 * room behind `used`. 0: they stay codes. */
static int32_t expanded_tiles(const struct expanded_room *room, const struct step_sequence *q, int32_t used) {
    enum { LEAST_ROWS = 256 }; /* of (token, head) pairs: twice what one block turns codes into numbers for */
    int32_t n = (q->first_position + q->n_rows + ATTENTION_TILE - 1) / ATTENTION_TILE;
    return q->n_rows > 1 && q->n_rows * room->group >= LEAST_ROWS && n <= room->n_tiles - used ? n : 0;
}

static int32_t n_tiles_of(const struct expanded_room *room, const struct step *s) {
    int32_t n = 0;
    for (int32_t i = 0; i < s->n_sequences; i++) n += expanded_tiles(room, &s->sequences[i], n);
    return n;
}

/* Writes the n tiles of a sequence from `tile` on. */
static void make_tiles(struct expanded_tile *tiles, int32_t tile, int32_t n, const struct step_sequence *q) {
    for (int32_t i = 0; i < n; i++)
        tiles[tile + i] = {q->slot, i * ATTENTION_TILE, q->first_position, q->first_position + q->n_rows};
}

/* spare: room for as many items. */
static void make_items(struct attention_item *items, struct attention_item *spare,
                       struct expanded_tile *tiles, const struct expanded_room *room, const struct step *s,
                       struct cuda_step *out) {
    int32_t n = 0;
    out->n_single = out->n_expanded = out->most_tokens = out->n_tiles = 0;
    for (int32_t i = 0; i < s->n_sequences; i++) {
        const struct step_sequence *q = &s->sequences[i];
        int32_t n_tiles = expanded_tiles(room, q, out->n_tiles), tile = n_tiles > 0 ? out->n_tiles : -1;
        make_tiles(tiles, out->n_tiles, n_tiles, q);
        out->n_tiles += n_tiles;
        for (int32_t r = 0; r < q->n_rows; r += ATTENTION_QUERIES) {
            int32_t rows = q->n_rows - r < ATTENTION_QUERIES ? q->n_rows - r : ATTENTION_QUERIES;
            out->n_single += rows == 1;
            out->n_expanded += rows > 1 && tile >= 0;
            if (rows > out->most_tokens) out->most_tokens = rows;
            items[n++] = {q->slot, q->first_row + r, rows, q->first_position + r, tile};
        }
    }
    out->n_items = n;
    sort_items(items, n, spare);
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

static int32_t n_blocks_of(const struct step_sequence *q) {
    return (q->first_position + q->n_rows + KV_BLOCK - 1) / KV_BLOCK;
}

/* The most blocks that a sequence of the step has. */
static int32_t widest_of(const struct step *s) {
    int32_t n = 0;
    for (int32_t i = 0; i < s->n_sequences; i++) n = max(n, n_blocks_of(&s->sequences[i]));
    return n;
}

/* Only the table rows of the step's own slots are copied, to their places. */
static void *pack_block_table(struct packer *p, const struct step *s, int32_t n_slots, int32_t stride) {
    int32_t *host = (int32_t *)(p->host + p->at);
    void *device = p->device + p->at;
    for (int32_t i = 0; i < s->n_sequences; i++) {
        const struct step_sequence *q = &s->sequences[i];
        memcpy(host + (size_t)q->slot * (size_t)stride,
               s->block_table + (size_t)q->slot * (size_t)s->block_table_stride,
               (size_t)n_blocks_of(q) * sizeof *host);
    }
    p->at += aligned((size_t)n_slots * (size_t)stride * sizeof *host);
    return device;
}

const struct step *cuda_step_upload(struct dev *dev, const struct step *host) {
    struct cuda_dev *cuda = cuda_of(dev);
    struct cuda_staging *s = &cuda->staging[cuda->next_staging];
    cuda->next_staging = (cuda->next_staging + 1) % CUDA_STAGINGS;
    size_t t = (size_t)host->n_rows, n_items = (size_t)n_items_of(host);
    int32_t n_slots = n_slots_of(host), stride = table_stride(widest_of(host), host->block_table_stride);
    struct step_sizes n = {t,
                           (size_t)host->n_sequences,
                           (size_t)host->n_samples,
                           n_items,
                           (size_t)n_tiles_of(&cuda->expanded, host),
                           (size_t)n_banned_of(host),
                           (size_t)host->n_bias,
                           (size_t)host->n_allowed,
                           (size_t)n_slots * (size_t)stride};
    s->step.step = *host;
    if (!staging_room(cuda, s, &n)) return &s->step.step;
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
    struct attention_item *items = (struct attention_item *)(s->host + p.at),
                          *spare = (struct attention_item *)(s->host + step_bytes(&n));
    s->step.items = (const struct attention_item *)pack(&p, NULL, n_items * sizeof *items);
    struct expanded_tile *tiles = (struct expanded_tile *)(s->host + p.at);
    s->step.tiles = (const struct expanded_tile *)pack(&p, NULL, n.tiles * sizeof *tiles);
    make_items(items, spare, tiles, &cuda->expanded, host, &s->step);
    /* What differs from step to step of one size comes last, so that the rest keeps its place. */
    d->banned = (const int32_t *)pack(&p, host->banned, n.banned * 4);
    d->bias = (const struct logit_bias *)pack(&p, host->bias, n.bias * sizeof *host->bias);
    d->allowed = (const int32_t *)pack(&p, host->allowed, n.allowed * 4);
    d->block_table = (const int32_t *)pack_block_table(&p, host, n_slots, stride);
    d->block_table_stride = stride;
    cuda_ok(cuda, cudaMemcpyAsync(cuda->step_room, s->host, p.at, cudaMemcpyHostToDevice, cuda->stream),
            "a step's upload");
    cuda_ok(cuda, cudaEventRecord(s->copied, cuda->stream), "a step's upload");
    s->in_use = true;
    return d;
}
