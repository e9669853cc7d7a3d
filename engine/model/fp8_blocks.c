/* fp8_blocks.c - see fp8_blocks.h. */
#include "engine/model/fp8_blocks.h"
#include "base/mem.h"
#include "base/team.h"
#include "kernels/ops.h"

#include <inttypes.h>
#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_NAME = 256, THREAD_NUMBERS = 1 << 20 };

static const struct checkpoint_tensor *scale_of(const struct checkpoint *c, const char *name) {
    static const char *const suffixes[] = {"weight_scale_inv", "weight_scale"};
    size_t n = strlen(name), tail = strlen("weight");
    const struct checkpoint_tensor *t = NULL;
    if (n <= tail || strcmp(name + n - tail, "weight") != 0) return NULL;
    for (int i = 0; !t && i < 2; i++) {
        char beside[MAX_NAME];
        snprintf(beside, sizeof beside, "%.*s%s", (int)(n - tail), name, suffixes[i]);
        t = checkpoint_find(c, beside);
    }
    return t;
}

bool fp8_blocks_is(const struct checkpoint *c, const char *name) {
    const struct checkpoint_tensor *t = checkpoint_find(c, name), *scale = t ? scale_of(c, name) : NULL;
    if (!scale || strcmp(t->dtype_text, "F8_E4M3") != 0 || scale->n_dims != 2) return false;
    /* weight_scale may also be one number, or one a row */
    return strstr(scale->name, "weight_scale_inv") || scale->shape[1] != 1 ||
           (scale->shape[0] != 1 && scale->shape[0] != t->shape[0]);
}

static int64_t n_blocks(int64_t n, int64_t block) {
    return (n + block - 1) / block;
}

/* ---------------------------------------------------------------- codes to numbers */

struct turning {
    const uint8_t *codes;
    const float *scale;  /* [n_blocks(rows)][n_blocks(k)] */
    const float *values; /* [256]: of codes; NaN where a code is none */
    int64_t rows, k;
    struct fp8_block block;
    struct tensor to;       /* no tensor: numbers are looked at, no more */
    atomic_llong next, bad; /* bad: the first number that is not finite that was met, -1 = none */
};

/* Columns [first, first + n) of a row share a scale. */
static bool turn_run(const struct turning *t, int64_t row, int64_t first, int64_t n, float scale) {
    const uint8_t *codes = t->codes + row * t->k + first;
    bool is_finite = true;
    for (int64_t i = 0; i < n; i++) {
        float x = t->values[codes[i]] * scale;
        is_finite &= isfinite(x) != 0;
        if (t->to.dtype == DTYPE_BF16) ((uint16_t *)t->to.data)[row * t->k + first + i] = bf16_from_f32(x);
        else ((float *)t->to.data)[row * t->k + first + i] = x;
    }
    return is_finite;
}

/* The scale is finite; that its products are too need hardly ever be tried. */
static bool run_is_finite(const struct turning *t, int64_t row, int64_t first, int64_t n, float scale) {
    const uint8_t *codes = t->codes + row * t->k + first;
    int n_bad = 0;
    for (int64_t i = 0; i < n; i++) n_bad += (codes[i] & 0x7f) == 0x7f;
    for (int64_t i = 0; !isfinite(scale * 448) && i < n; i++) n_bad += !isfinite(t->values[codes[i]] * scale);
    return n_bad == 0;
}

static void turn_row(struct turning *t, int64_t row) {
    const float *scale = t->scale + row / t->block.rows * n_blocks(t->k, t->block.cols);
    bool (*one)(const struct turning *, int64_t, int64_t, int64_t, float) = t->to.data ? turn_run : run_is_finite;
    for (int64_t first = 0; first < t->k; first += t->block.cols) {
        int64_t n = t->k - first < t->block.cols ? t->k - first : t->block.cols;
        if (!one(t, row, first, n, scale[first / t->block.cols])) t->bad = row * t->k + first;
    }
}

static void *turn_rows(void *arg) {
    struct turning *t = arg;
    for (int64_t row; (row = atomic_fetch_add(&t->next, 1)) < t->rows;) turn_row(t, row);
    return NULL;
}

/* ---------------------------------------------------------------- tensors of a checkpoint */

static int check(const struct checkpoint_tensor *t, const struct checkpoint_tensor *scale, int64_t rows, int64_t k,
                 struct fp8_block block, struct err *err) {
    if (block.rows <= 0)
        return err_set(err, E_PARSE, "tensor %s has scales for blocks, but config.json's quantization_config says no "
                       "weight_block_size", scale->name);
    if (t->n_dims != 2 || t->shape[0] != rows || t->shape[1] != k)
        return err_set(err, E_PARSE, "%s does not have the shape [%" PRId64 ", %" PRId64 "]", t->name, rows, k);
    if (!scale->is_float)
        return err_set(err, E_UNSUPPORTED, "tensor %s has dtype %s; F32, F16 and BF16 are supported", scale->name,
                       scale->dtype_text);
    if (scale->shape[0] != n_blocks(rows, block.rows) || scale->shape[1] != n_blocks(k, block.cols))
        return err_set(err, E_PARSE, "%s has shape [%" PRId64 ", %" PRId64 "], expected [%" PRId64 ", %" PRId64
                       "] for blocks of %d x %d", scale->name, scale->shape[0], scale->shape[1],
                       n_blocks(rows, block.rows), n_blocks(k, block.cols), block.rows, block.cols);
    return 0;
}

/* In f32, finite; the caller's. */
static int read_scales(float **out, const struct checkpoint_tensor *t, struct err *err) {
    int64_t n = t->shape[0] * t->shape[1];
    float *scale = mem_zalloc((size_t)n, sizeof *scale);
    numbers_read(scale, t->data, t->dtype, n);
    for (int64_t i = 0; i < n; i++)
        if (!isfinite(scale[i])) {
            free(scale);
            return err_set(err, E_PARSE, "tensor %s: number %" PRId64 " is not finite", t->name, i);
        }
    *out = scale;
    return 0;
}

static const float *values_of(float values[256]) {
    for (int code = 0; code < 256; code++) values[code] = fp8_to_f32((uint8_t)code);
    return values;
}

/* The numbers go to t->to, if it has a place for them. */
static int turn_all(struct turning *t, const char *name, struct err *err) {
    float values[256];
    t->values = values_of(values);
    t->bad = -1;
    team_do(t->rows * t->k / THREAD_NUMBERS, turn_rows, t);
    if (t->bad < 0) return 0;
    return err_set(err, E_PARSE, "tensor %s: a number from [%lld, %lld] on is not finite", name,
                   (long long)t->bad / (long long)t->k, (long long)t->bad % (long long)t->k);
}

/* Checked, with scales that are the caller's. */
static int open_tensor(struct turning *out, const struct checkpoint *c, const char *name, int64_t rows, int64_t k,
                       struct fp8_block block, float **scales, struct err *err) {
    const struct checkpoint_tensor *t = checkpoint_find(c, name), *scale = scale_of(c, name);
    int r = check(t, scale, rows, k, block, err);
    if (r == 0) r = read_scales(scales, scale, err);
    if (r == 0) *out = (struct turning){.codes = t->data, .scale = *scales, .rows = rows, .k = k, .block = block};
    return r;
}

int fp8_blocks_keep(struct fp8_blocks *out, const struct checkpoint *c, const char *name, int64_t rows, int64_t k,
                    struct fp8_block block, struct err *err) {
    struct turning work;
    float *scales = NULL;
    int r = open_tensor(&work, c, name, rows, k, block, &scales, err);
    if (r == 0 && out) r = turn_all(&work, name, err);
    if (r < 0 || !out) free(scales);
    else *out = (struct fp8_blocks){work.codes, scales};
    return r;
}

int fp8_blocks_read(struct tensor *out, const struct checkpoint *c, const char *name, int64_t rows, int64_t k,
                    struct fp8_block block, enum dtype dtype, struct err *err) {
    struct turning work;
    float *scales = NULL;
    int r = open_tensor(&work, c, name, rows, k, block, &scales, err);
    if (r < 0) return r;
    if (dtype != DTYPE_BF16) dtype = DTYPE_F32;
    void *numbers = mem_try((size_t)(rows * k) * dtype_bytes(dtype));
    if (!numbers) r = err_set(err, E_NO_MEMORY, "no memory for the numbers of %s", name);
    work.to = tensor_2d(numbers, dtype, rows, k);
    if (numbers) r = turn_all(&work, name, err);
    free(scales);
    if (r < 0) free(numbers);
    else *out = work.to;
    return r;
}
