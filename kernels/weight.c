/* weight.c - the memory of weights, and what goes into it: numbers as they are, numbers
 * quantized on the way, numbers that are quantized already. See ops.h. */
#include "base/hash.h"
#include "base/mem.h"
#include "base/team.h"
#include "kernels/backend.h"
#include "kernels/ops.h"
#include "kernels/product_room.h"

#include <assert.h>
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

static int64_t round_up(int64_t x, int64_t to) {
    return (x + to - 1) / to * to;
}

static size_t code_bytes(int64_t n_pad, int64_t k_pad, enum quant_kind quant) {
    return (size_t)n_pad * (size_t)k_pad / (quant_is_4bit(quant) ? 2 : 1);
}

struct weight *weight_new(struct dev *dev, int64_t n, int64_t k, enum dtype dtype) {
    return weight_new_quantized(dev, n, k, dtype, QUANT_NONE);
}

struct weight *weight_new_quantized(struct dev *dev, int64_t n, int64_t k, enum dtype dtype, enum quant_kind quant) {
    assert(n > 0 && k > 0 && (dtype == DTYPE_F32 || dtype == DTYPE_BF16 || dtype == DTYPE_F16));
    struct weight *w = mem_zalloc(1, sizeof *w);
    w->n = n;
    w->k = k;
    w->n_pad = round_up(n, 16);
    w->k_pad = round_up(k, 16);
    w->dtype = dtype;
    w->quant = quant;
    w->block_rows = w->block_cols = quant == QUANT_FP8_BLOCK ? WEIGHT_FP8_BLOCK : 0;
    w->data = dev_alloc(dev, quant == QUANT_NONE ? dev->backend->weight_bytes(w->n_pad, w->k_pad, dtype)
                                                 : code_bytes(w->n_pad, w->k_pad, quant));
    bool has_scale = quant == QUANT_INT8 || quant == QUANT_FP8;
    if (has_scale) w->scale = tensor_1d(dev_alloc(dev, (size_t)w->n_pad * 4), DTYPE_F32, w->n_pad);
    if (!w->data || (has_scale && !w->scale.data)) {
        weight_free(dev, w);
        return NULL;
    }
    if (quant != QUANT_NONE && dev->backend->weight_reserve) dev->backend->weight_reserve(dev, w);
    return w;
}

bool weight_keeps_fp8_blocks(const struct dev *dev) {
    return dev->backend->keeps_fp8_blocks;
}

struct weight *weight_new_fp8_blocks(struct dev *dev, int64_t n, int64_t k, enum dtype dtype, int64_t block_rows,
                                     int64_t block_cols) {
    assert(block_rows > 0 && block_cols > 0);
    struct weight *w = weight_new_quantized(dev, n, k, dtype, QUANT_FP8_BLOCK);
    if (!w) return NULL;
    w->block_rows = block_rows;
    w->block_cols = block_cols;
    return w;
}

void weight_free(struct dev *dev, struct weight *w) {
    if (!w) return;
    for (int32_t i = 0; i < w->n_segments; i++) {
        if (w->segments[i].is_shared) continue;
        dev_free(dev, w->segments[i].absmax.data);
        dev_free(dev, w->segments[i].absmax2.data);
        dev_free(dev, w->segments[i].map.data);
    }
    dev_free(dev, w->data);
    dev_free(dev, w->scale.data);
    dev_free(dev, w->bias.data);
    free(w->segments);
    free(w);
}

static size_t held(const struct tensor *t) {
    return t->data ? tensor_bytes(t) : 0;
}

size_t weight_bytes(const struct weight *w) {
    size_t bytes = held(&w->bias) + held(&w->scale);
    bytes += w->quant == QUANT_NONE ? (size_t)w->n_pad * (size_t)w->k_pad * dtype_bytes(w->dtype)
                                    : code_bytes(w->n_pad, w->k_pad, w->quant);
    for (int32_t i = 0; i < w->n_segments; i++) {
        const struct weight_segment *s = &w->segments[i];
        if (!s->is_shared) bytes += held(&s->absmax) + held(&s->absmax2) + held(&s->map);
    }
    return bytes;
}

size_t weight_bytes_planned(int64_t n, int64_t k, enum dtype dtype, enum quant_kind quant, int n_tensors) {
    int64_t n_pad = round_up(n, 16), k_pad = round_up(k, 16), blocks = quant_blocks(n * k, QUANT_BLOCK) + n_tensors;
    if (quant == QUANT_NONE) return (size_t)n_pad * (size_t)k_pad * dtype_bytes(dtype);
    size_t bytes = code_bytes(n_pad, k_pad, quant);
    if (quant == QUANT_FP8_BLOCK) return bytes;
    if (!quant_is_4bit(quant)) return bytes + (size_t)n_pad * 4;
    if (quant != QUANT_NF4_DQ) return bytes + (size_t)blocks * 4;
    return bytes + (size_t)blocks + (size_t)(quant_blocks(blocks, QUANT_NESTED_BLOCK) + n_tensors * 257) * 4;
}

struct weight_scratch weight_scratch_planned(int64_t n, int64_t k, enum dtype dtype, enum quant_kind quant) {
    struct weight_scratch s = {.codes = product_room_bytes(quant, n, k)};
    if (quant_is_decoded(quant)) s.numbers = (size_t)round_up(n, 16) * (size_t)round_up(k, 16) * dtype_bytes(dtype);
    return s;
}

bool weight_has_scratch(const struct dev *dev) {
    return dev->backend->weight_reserve != NULL;
}

/* ---------------------------------------------------------------- segments */

static void add_segment(struct weight *w, const struct weight_segment *s) {
    assert(s->first_row >= 0 && s->first_row + s->n_rows <= w->n);
    int32_t at = w->n_segments++;
    w->segments = mem_realloc(w->segments, (size_t)w->n_segments, sizeof *w->segments);
    for (; at > 0 && w->segments[at - 1].first_row > s->first_row; at--) w->segments[at] = w->segments[at - 1];
    w->segments[at] = *s;
}

/* A run of a tensor whose scales its runs share. */
static void add_run(struct weight *w, struct weight_segment s, const struct weight_run *run, bool is_shared) {
    s.first_row = run->to;
    s.n_rows = run->n_rows;
    s.from_row = run->from;
    s.is_shared = is_shared;
    add_segment(w, &s);
}

static void add_plain_segment(struct weight *w, int64_t first_row, int64_t rows) {
    add_segment(w, &(struct weight_segment){.first_row = first_row, .n_rows = rows});
}

const struct weight_segment *weight_segment_of(const struct weight *w, int64_t row) {
    const struct weight_segment *s = w->segments;
    while (row >= s->first_row + s->n_rows) s++;
    return s;
}

/* Room on the device. */
static bool reserve(struct dev *dev, struct tensor *out, enum dtype dtype, int64_t n) {
    struct tensor t = tensor_1d(dev_alloc(dev, (size_t)n * dtype_bytes(dtype)), dtype, n);
    if (t.data) *out = t;
    else dev_fail(dev, E_NO_MEMORY, "no memory for the scales of a quantized weight");
    return t.data != NULL;
}

/* A copy on the device; nothing where there is none on the host. */
static void store(struct dev *dev, struct tensor *out, enum dtype dtype, int64_t n, const void *host) {
    if (host && reserve(dev, out, dtype, n)) dev_upload(dev, out->data, host, tensor_bytes(out));
}

/* Rows that lie k_pad apart. */
static void store_rows(struct dev *dev, char *to, const char *from, int64_t n, int64_t k, int64_t k_pad) {
    if (k == k_pad) {
        weight_upload(dev, to, from, (size_t)(n * k));
        return;
    }
    char *padded = mem_zalloc((size_t)n, (size_t)k_pad);
    for (int64_t r = 0; r < n; r++) memcpy(padded + r * k_pad, from + r * k, (size_t)k);
    dev_upload(dev, to, padded, (size_t)(n * k_pad));
    free(padded);
}

static struct weight_segment segment_8bit(const struct weight *w, const struct weight_run *run) {
    return (struct weight_segment){
        .first_row = run->to, .n_rows = run->n_rows, .offset = (size_t)(run->to * w->k_pad)};
}

static void store_8bit(struct dev *dev, struct weight *w, const struct quantized *q, const struct weight_run *run) {
    struct weight_segment s = segment_8bit(w, run);
    store_rows(dev, (char *)w->data + s.offset, (const char *)q->codes + run->from * w->k, run->n_rows, w->k, w->k_pad);
    dev_upload(dev, (float *)w->scale.data + run->to, q->scale + run->from, (size_t)run->n_rows * 4);
    add_segment(w, &s);
}

/* Numbers of 4 bits are not taken apart: a block may straddle rows. */
static void store_4bit(struct dev *dev, struct weight *w, const struct quantized *q, const struct weight_run *runs,
                       int n_runs) {
    int64_t n = q->n_rows * w->k, blocks = quant_blocks(n, q->block);
    struct weight_segment s = {.offset = w->used, .block = q->block, .mean = q->mean};
    w->used += (size_t)(q->n_rows * w->k_pad / 2);
    weight_upload(dev, (char *)w->data + s.offset, q->codes, (size_t)(n + 1) / 2);
    memcpy(s.codes, q->values, sizeof s.codes);
    if (q->absmax) store(dev, &s.absmax, DTYPE_F32, blocks, q->absmax);
    else store(dev, &s.absmax, DTYPE_U8, blocks, q->absmax_codes);
    store(dev, &s.absmax2, DTYPE_F32, quant_blocks(blocks, QUANT_NESTED_BLOCK), q->absmax2);
    store(dev, &s.map, DTYPE_F32, 256, q->map);
    for (int i = 0; i < n_runs; i++) add_run(w, s, &runs[i], i > 0);
}

/* Rows go where they belong; which scales are theirs, their row in the tensor tells. */
static void store_fp8_blocks(struct dev *dev, struct weight *w, const struct quantized *q, const struct weight_run *runs,
                             int n_runs) {
    int64_t blocks = quant_blocks(q->n_rows, w->block_rows) * quant_blocks(w->k, w->block_cols);
    struct weight_segment s = {0};
    store(dev, &s.absmax, DTYPE_F32, blocks, q->scale);
    for (int i = 0; i < n_runs; i++) {
        s.offset = (size_t)(runs[i].to * w->k_pad);
        store_rows(dev, (char *)w->data + s.offset, (const char *)q->codes + runs[i].from * w->k, runs[i].n_rows, w->k,
                   w->k_pad);
        add_run(w, s, &runs[i], i > 0);
    }
}

void weight_load_quantized(struct dev *dev, struct weight *w, const struct quantized *q, const struct weight_run *runs,
                           int n_runs) {
    assert(w->quant != QUANT_NONE);
    if (quant_is_4bit(w->quant)) store_4bit(dev, w, q, runs, n_runs);
    else if (w->quant == QUANT_FP8_BLOCK) store_fp8_blocks(dev, w, q, runs, n_runs);
    else
        for (int i = 0; i < n_runs; i++) store_8bit(dev, w, q, &runs[i]);
}

/* ---------------------------------------------------------------- numbers that the device quantizes */

/* Of a whole tensor, without its rows. */
static struct weight_segment segment_4bit(struct dev *dev, struct weight *w, int64_t n_rows) {
    int64_t blocks = quant_blocks(n_rows * w->k, QUANT_BLOCK);
    struct weight_segment s = {.offset = w->used, .block = QUANT_BLOCK};
    w->used += (size_t)(n_rows * w->k_pad / 2);
    memcpy(s.codes, quant_codes(w->quant), sizeof s.codes);
    if (w->quant == QUANT_NF4_DQ) {
        reserve(dev, &s.absmax, DTYPE_U8, blocks);
        reserve(dev, &s.absmax2, DTYPE_F32, quant_blocks(blocks, QUANT_NESTED_BLOCK));
        store(dev, &s.map, DTYPE_F32, 256, quant_dynamic_map());
    } else reserve(dev, &s.absmax, DTYPE_F32, blocks);
    return s;
}

static void quantize_on_device(struct dev *dev, struct weight *w, const struct weight_source *from,
                               const struct weight_run *runs, int n_runs) {
    struct weight_segment *s = mem_zalloc((size_t)n_runs, sizeof *s);
    bool is_4bit = quant_is_4bit(w->quant);
    if (is_4bit) s[0] = segment_4bit(dev, w, from->n_rows);
    for (int i = 0; !is_4bit && i < n_runs; i++) s[i] = segment_8bit(w, &runs[i]);
    if (dev->failed.code == 0) dev->backend->weight_quantize(dev, w, s, runs, n_runs, from);
    for (int i = 0; i < n_runs; i++)
        if (is_4bit) add_run(w, s[0], &runs[i], i > 0);
        else add_segment(w, &s[i]);
    free(s);
}

bool weight_load_finds_nan(const struct dev *dev) {
    return dev->backend->weight_quantize != NULL;
}

/* ---------------------------------------------------------------- numbers from a checkpoint */

/* Numbers first .. first + n - 1. */
static void read_numbers(float *out, const struct tensor *t, int64_t first, int64_t n) {
    numbers_read(out, (const char *)t->data + (size_t)first * dtype_bytes(t->dtype), t->dtype, n);
}

/* f32 [n], as the model has them: in its own dtype. */
static void read_rounded(float *out, const struct tensor *t, int64_t first, int64_t n, enum dtype dtype) {
    read_numbers(out, t, first, n);
    if (dtype == t->dtype) return;
    for (int64_t i = 0; i < n; i++) out[i] = number_rounded(out[i], dtype);
}

/* A tensor on its way: pieces of it are quantized by as many threads as there are cores. */
struct quantizing {
    const struct weight *w;
    const struct tensor *host;
    uint8_t *codes;
    float *scale; /* of rows, or the absmax of blocks */
    int64_t n_pieces;
    atomic_llong next;
};

enum { BLOCKS_A_PIECE = 1024 };

static void quantize_row(const struct quantizing *q, int64_t row, float *numbers) {
    int64_t k = q->w->k;
    read_rounded(numbers, q->host, row * k, k, q->w->dtype);
    q->scale[row] = q->w->quant == QUANT_INT8 ? quant_int8((int8_t *)q->codes + row * k, numbers, k)
                                              : quant_fp8(q->codes + row * k, numbers, k);
}

static void quantize_blocks(const struct quantizing *q, int64_t piece, float *numbers) {
    int64_t size = BLOCKS_A_PIECE * QUANT_BLOCK, at = piece * size, n = q->host->shape[0] * q->w->k - at;
    if (n > size) n = size;
    read_rounded(numbers, q->host, at, n, q->w->dtype);
    quant_4bit(q->codes + at / 2, q->scale + at / QUANT_BLOCK, numbers, n, QUANT_BLOCK, q->w->quant);
}

static void *quantize_pieces(void *arg) {
    struct quantizing *q = arg;
    bool is_4bit = quant_is_4bit(q->w->quant);
    float *numbers = mem_zalloc((size_t)(is_4bit ? BLOCKS_A_PIECE * QUANT_BLOCK : q->w->k), sizeof *numbers);
    for (int64_t i; (i = atomic_fetch_add(&q->next, 1)) < q->n_pieces;)
        if (is_4bit) quantize_blocks(q, i, numbers);
        else quantize_row(q, i, numbers);
    free(numbers);
    return NULL;
}

/* A thread is worth its start for some hundred thousand numbers. */
static void quantize_tensor(struct quantizing *q) {
    team_do((q->host->shape[0] * q->w->k) >> 18, quantize_pieces, q);
}

static void load_8bit(struct dev *dev, struct weight *w, const struct tensor *host, const struct weight_run *runs,
                      int n_runs) {
    int64_t n = host->shape[0];
    struct quantizing work = {.w = w, .host = host, .n_pieces = n};
    work.codes = mem_alloc((size_t)(n * w->k));
    work.scale = mem_zalloc((size_t)n, sizeof *work.scale);
    quantize_tensor(&work);
    struct quantized q = {.n_rows = n, .codes = work.codes, .scale = work.scale};
    weight_load_quantized(dev, w, &q, runs, n_runs);
    free(work.codes);
    free(work.scale);
}

static void load_4bit(struct dev *dev, struct weight *w, const struct tensor *host, const struct weight_run *runs,
                      int n_runs) {
    int64_t n = host->shape[0] * w->k, blocks = quant_blocks(n, QUANT_BLOCK);
    struct quantizing work = {.w = w, .host = host, .n_pieces = quant_blocks(blocks, BLOCKS_A_PIECE)};
    work.codes = mem_alloc((size_t)(n + 1) / 2);
    work.scale = mem_zalloc((size_t)blocks, sizeof *work.scale);
    uint8_t *absmax_codes = mem_zalloc((size_t)blocks, 1);
    float *absmax2 = mem_zalloc((size_t)quant_blocks(blocks, QUANT_NESTED_BLOCK), sizeof *absmax2);
    quantize_tensor(&work);
    struct quantized q = {.n_rows = host->shape[0],
                          .codes = work.codes,
                          .block = QUANT_BLOCK,
                          .values = quant_codes(w->quant),
                          .absmax = work.scale};
    if (w->quant == QUANT_NF4_DQ) {
        quant_nested(absmax_codes, absmax2, &q.mean, work.scale, blocks);
        q.absmax = NULL;
        q.absmax_codes = absmax_codes;
        q.absmax2 = absmax2;
        q.map = quant_dynamic_map();
    }
    weight_load_quantized(dev, w, &q, runs, n_runs);
    free(work.codes);
    free(work.scale);
    free(absmax_codes);
    free(absmax2);
}

static void load_plain(struct dev *dev, struct weight *w, const struct tensor *host, const struct weight_run *run) {
    struct tensor rows = tensor_2d((char *)host->data + (size_t)(run->from * w->k) * dtype_bytes(host->dtype),
                                   host->dtype, run->n_rows, w->k);
    add_plain_segment(w, run->to, run->n_rows);
    dev->backend->weight_load(dev, w, run->to, &rows);
}

void weight_load_runs(struct dev *dev, struct weight *w, const struct tensor *host, const struct weight_run *runs,
                      int n_runs) {
    assert(host->shape[1] == w->k && w->quant != QUANT_FP8_BLOCK);
    if (w->quant != QUANT_NONE && dev->backend->weight_quantize) {
        quantize_on_device(dev, w, &(struct weight_source){.host = host, .n_rows = host->shape[0]}, runs, n_runs);
        return;
    }
    if (quant_is_4bit(w->quant)) load_4bit(dev, w, host, runs, n_runs);
    else if (w->quant != QUANT_NONE) load_8bit(dev, w, host, runs, n_runs);
    else
        for (int i = 0; i < n_runs; i++) load_plain(dev, w, host, &runs[i]);
}

void weight_load(struct dev *dev, struct weight *w, int64_t first_row, const struct tensor *host) {
    weight_load_runs(dev, w, host, &(struct weight_run){0, first_row, host->shape[0]}, 1);
}

void weight_load_bias(struct dev *dev, struct weight *w, int64_t first_row, const struct tensor *host) {
    int64_t n = host->shape[0];
    assert(first_row >= 0 && first_row + n <= w->n);
    if (!w->bias.data) {
        w->bias = tensor_1d(dev_alloc(dev, (size_t)w->n_pad * 4), DTYPE_F32, w->n_pad);
        if (!w->bias.data) {
            dev_fail(dev, E_NO_MEMORY, "no memory for a bias of %lld numbers", (long long)w->n);
            return;
        }
    }
    float *values = mem_zalloc((size_t)n, sizeof *values);
    read_numbers(values, host, 0, n);
    dev_upload(dev, (float *)w->bias.data + first_row, values, (size_t)n * 4);
    free(values);
}

/* ---------------------------------------------------------------- dummy weights */

/* Normal numbers by Box and Muller from a counter. */
static void random_row(float *out, int64_t n, uint64_t seed, uint64_t row, float deviation) {
    for (int64_t i = 0; i < n; i += 2) {
        uint64_t r = hash64_mix(hash64_mix(seed, row), (uint64_t)i);
        double u = ((double)(r >> 32) + 0.5) / 4294967296.0, v = (double)(uint32_t)r / 4294967296.0;
        double radius = sqrt(-2.0 * log(u)) * deviation;
        out[i] = (float)(radius * cos(6.283185307179586 * v));
        if (i + 1 < n) out[i + 1] = (float)(radius * sin(6.283185307179586 * v));
    }
}

/* One scale for all blocks; what is further from 0 than so many deviations, one number in two
 * million, is cut. */
enum { DUMMY_DEVIATIONS = 5 };
static const float code_deviation = 448.0f / DUMMY_DEVIATIONS;

static void random_codes_on_device(struct dev *dev, struct weight *w, const float *scale, int64_t blocks,
                                   const struct weight_run *run, uint64_t seed) {
    struct weight_source from = {.n_rows = run->n_rows, .seed = seed, .deviation = code_deviation};
    struct weight_segment s = {.first_row = run->to, .offset = (size_t)(run->to * w->k_pad)};
    store(dev, &s.absmax, DTYPE_F32, blocks, scale);
    if (dev->failed.code == 0) dev->backend->weight_quantize(dev, w, &s, run, 1, &from);
    add_run(w, s, run, false);
}

static void random_codes(struct dev *dev, struct weight *w, const float *scale, const struct weight_run *run,
                         uint64_t seed) {
    int64_t k = w->k;
    uint8_t *codes = mem_alloc((size_t)(run->n_rows * k));
    float *numbers = mem_zalloc((size_t)k, sizeof *numbers);
    for (int64_t r = 0; r < run->n_rows; r++) {
        random_row(numbers, k, seed, (uint64_t)(run->to + r), code_deviation);
        for (int64_t i = 0; i < k; i++) codes[r * k + i] = fp8_from_f32(numbers[i]);
    }
    struct quantized q = {.n_rows = run->n_rows, .codes = codes, .scale = scale};
    weight_load_quantized(dev, w, &q, run, 1);
    free(codes);
    free(numbers);
}

static void random_fp8_blocks(struct dev *dev, struct weight *w, int64_t first_row, int64_t rows, uint64_t seed,
                              float deviation) {
    int64_t blocks = quant_blocks(rows, w->block_rows) * quant_blocks(w->k, w->block_cols);
    struct weight_run run = {0, first_row, rows};
    float *scale = mem_zalloc((size_t)blocks, sizeof *scale);
    for (int64_t i = 0; i < blocks; i++) scale[i] = deviation / code_deviation;
    if (dev->backend->weight_quantize) random_codes_on_device(dev, w, scale, blocks, &run, seed);
    else random_codes(dev, w, scale, &run, seed);
    free(scale);
}

void weight_random(struct dev *dev, struct weight *w, int64_t first_row, int64_t rows, uint64_t seed, float deviation) {
    if (w->quant == QUANT_FP8_BLOCK) {
        random_fp8_blocks(dev, w, first_row, rows, seed, deviation);
        return;
    }
    if (w->quant == QUANT_NONE && dev->backend->weight_random) {
        add_plain_segment(w, first_row, rows);
        dev->backend->weight_random(dev, w, first_row, rows, seed, deviation);
        return;
    }
    if (dev->backend->weight_quantize && w->quant != QUANT_NONE) {
        struct weight_source from = {.n_rows = rows, .seed = seed, .deviation = deviation};
        quantize_on_device(dev, w, &from, &(struct weight_run){0, first_row, rows}, 1);
        return;
    }
    int64_t k = w->k, at_once = w->quant == QUANT_NONE ? 1 : rows; /* what is quantized is one tensor */
    float *numbers = mem_zalloc((size_t)at_once, (size_t)k * sizeof *numbers);
    if (w->quant == QUANT_NONE) add_plain_segment(w, first_row, rows);
    for (int64_t r = 0; r < rows; r += at_once) {
        for (int64_t i = 0; i < at_once; i++)
            random_row(numbers + i * k, k, seed, (uint64_t)(first_row + r + i), deviation);
        struct tensor t = tensor_2d(numbers, DTYPE_F32, at_once, k);
        if (w->quant == QUANT_NONE) dev->backend->weight_load(dev, w, first_row + r, &t);
        else weight_load(dev, w, first_row, &t);
    }
    free(numbers);
}
