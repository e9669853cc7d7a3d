/* aid_ops.c - see aid_ops.h. */
#include "tests/aid_ops.h"

#include "base/hash.h"
#include "base/mem.h"

#include <math.h>

enum { HOST, DEVICE, WEIGHT };

/* ---------------------------------------------------------------- beds */

static void *hold(struct bed *b, int kind, void *p) {
    assert_non_null(p);
    b->held[kind] = mem_realloc(b->held[kind], b->n_held[kind] + 1, sizeof *b->held[kind]);
    b->held[kind][b->n_held[kind]++] = p;
    return p;
}

static void bed_clear(struct bed *b) {
    struct err err = {0};
    assert_ok(dev_sync(b->dev, &err), &err);
    for (size_t i = 0; i < b->n_held[HOST]; i++) free(b->held[HOST][i]);
    for (size_t i = 0; i < b->n_held[DEVICE]; i++) dev_free(b->dev, b->held[DEVICE][i]);
    for (size_t i = 0; i < b->n_held[WEIGHT]; i++) weight_free(b->dev, b->held[WEIGHT][i]);
    for (int i = 0; i < 3; i++) free(b->held[i]);
    dev_close(b->dev);
}

/* False where the processor lacks the instructions. */
static bool try_bed(void (*fn)(struct bed *), const char *kind, const char *variant, int threads, enum dtype dtype,
                    uint64_t *digest) {
    struct bed b = {.dtype = dtype, .random = 2463534242};
    struct err err = {0};
    int r = dev_open(&b.dev, &(struct dev_options){kind, threads, variant}, &err);
    if (r == E_DEVICE) return false;
    assert_ok(r, &err);
    fn(&b);
    *digest = b.digest;
    bed_clear(&b);
    return true;
}

static bool computes(const char *kind, enum dtype dtype) {
    struct dev *dev;
    struct err err = {0};
    assert_ok(dev_open(&dev, &(struct dev_options){.kind = kind}, &err), &err);
    bool yes = dev_computes(dev, dtype);
    dev_close(dev);
    return yes;
}

/* On the GPU, twice: the same bits again. */
static void each_cuda_bed(void (*fn)(struct bed *)) {
    static const enum dtype dtypes[] = {DTYPE_F32, DTYPE_F16, DTYPE_BF16};
    for (size_t d = 0; d < sizeof dtypes / sizeof *dtypes; d++) {
        uint64_t one = 0, two = 0;
        enum dtype dtype = dtypes[d];
        if (!computes("cuda", dtype)) continue;
        assert_true(try_bed(fn, "cuda", NULL, 0, dtype, &one));
        assert_true(try_bed(fn, "cuda", NULL, 0, dtype, &two));
        if (one != two) fail_msg("cuda %s: a second run gives other bits than the first", dtype_name(dtype));
    }
}

void each_bed(void (*fn)(struct bed *)) {
    if (strcmp(test_device(), "cuda") == 0) {
        each_cuda_bed(fn);
        return;
    }
    static const char *const variants[] = {"v2", "v3", "v4", "plain"};
    int n = 0;
    for (size_t v = 0; v < sizeof variants / sizeof *variants; v++)
        for (int d = 0; d < 2; d++) {
            uint64_t one = 0, two = 0;
            enum dtype dtype = d == 0 ? DTYPE_F32 : DTYPE_BF16;
            if (!try_bed(fn, "cpu", variants[v], 1, dtype, &one)) continue;
            assert_true(try_bed(fn, "cpu", variants[v], 2, dtype, &two));
            if (one != two) fail_msg("%s %s: two threads give other bits than one", variants[v], dtype_name(dtype));
            n++;
        }
    assert_true(n >= 2);
}

/* ---------------------------------------------------------------- numbers */

static uint64_t next_random(uint64_t *state) { /* Marsaglia's xorshift64 */
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

float bed_random(struct bed *b) {
    return (float)(next_random(&b->random) >> 40) * 0x1p-23f - 1.0f;
}

int32_t bed_random_below(struct bed *b, int32_t n) {
    return (int32_t)((next_random(&b->random) >> 33) % (uint64_t)n);
}

float *bed_floats(struct bed *b, int64_t n) {
    return hold(b, HOST, mem_zalloc((size_t)n, sizeof(float)));
}

float rounded(float x, enum dtype dtype) {
    return dtype == DTYPE_BF16 ? bf16_to_f32(bf16_from_f32(x)) : dtype == DTYPE_F16 ? f16_to_f32(f16_from_f32(x)) : x;
}

struct tensor rows_from(const struct tensor *t, int64_t first, int64_t n) {
    char *at = (char *)t->data + (size_t)(first * t->shape[1]) * dtype_bytes(t->dtype);
    return tensor_2d(at, t->dtype, n, t->shape[1]);
}

/* Numbers in F32 or BF16, in host memory of the bed. */
static void *encoded(struct bed *b, enum dtype dtype, const float *numbers, int64_t n) {
    void *out = hold(b, HOST, mem_zalloc((size_t)n, dtype_bytes(dtype)));
    for (int64_t i = 0; i < n; i++) {
        if (dtype == DTYPE_F32) ((float *)out)[i] = numbers[i];
        else ((uint16_t *)out)[i] = dtype == DTYPE_F16 ? f16_from_f32(numbers[i]) : bf16_from_f32(numbers[i]);
    }
    return out;
}

struct tensor bed_tensor(struct bed *b, enum dtype dtype, int64_t rows, int64_t cols, const float *numbers) {
    struct tensor t = tensor_2d(NULL, dtype, rows, cols);
    t.data = hold(b, DEVICE, dev_alloc(b->dev, tensor_bytes(&t)));
    if (numbers) dev_upload(b->dev, t.data, encoded(b, dtype, numbers, rows * cols), tensor_bytes(&t));
    return t;
}

struct tensor bed_random_tensor(struct bed *b, enum dtype dtype, int64_t rows, int64_t cols, float range) {
    float *numbers = bed_floats(b, rows * cols);
    for (int64_t i = 0; i < rows * cols; i++) numbers[i] = range * bed_random(b);
    return bed_tensor(b, dtype, rows, cols, numbers);
}

float *bed_get(struct bed *b, const struct tensor *t) {
    int64_t n = t->shape[0] * t->shape[1];
    float *out = bed_floats(b, n);
    void *raw = mem_zalloc((size_t)n, dtype_bytes(t->dtype));
    dev_download(b->dev, raw, t->data, tensor_bytes(t));
    b->digest = hash64(raw, tensor_bytes(t), b->digest);
    for (int64_t i = 0; i < n; i++)
        out[i] = t->dtype == DTYPE_F32 ? ((float *)raw)[i] : t->dtype == DTYPE_F16 ? f16_to_f32(((uint16_t *)raw)[i]) : bf16_to_f32(((uint16_t *)raw)[i]);
    free(raw);
    return out;
}

struct weight *bed_weight(struct bed *b, int64_t n, int64_t k, enum dtype dtype, float **w_host, float **bias_host) {
    struct weight *w = hold(b, WEIGHT, weight_new(b->dev, n, k, dtype));
    *w_host = bed_floats(b, n * k);
    for (int64_t i = 0; i < n * k; i++) (*w_host)[i] = rounded(bed_random(b), dtype);
    struct tensor host = tensor_2d(*w_host, DTYPE_F32, n, k);
    weight_load(b->dev, w, 0, &host);
    if (!bias_host) return w;
    *bias_host = bed_floats(b, n);
    for (int64_t i = 0; i < n; i++) (*bias_host)[i] = bed_random(b);
    struct tensor bias = tensor_1d(*bias_host, DTYPE_F32, n);
    weight_load_bias(b->dev, w, 0, &bias);
    return w;
}

void assert_near(const struct bed *b, double got, double want, double slack, enum dtype dtype, const char *what,
                 int64_t row, int64_t column) {
    if (dtype == DTYPE_BF16) slack += fabs(want) * 0x1p-8; /* half a unit in the last of 8 bits */
    if (dtype == DTYPE_F16) slack += fabs(want) * 0x1p-11 + 0x1p-25; /* of 11, and of the smallest */
    if (fabs(got - want) <= slack) return;
    fail_msg("%s, %s: %s[%lld, %lld] is %.9g, reference %.9g +- %.3g", dev_name(b->dev), dtype_name(b->dtype), what,
             (long long)row, (long long)column, got, want, slack);
}

static float *product_of(struct bed *b, const struct weight *w, const struct tensor *rows) {
    struct activation x = {.x = *rows};
    struct product y = {.y = bed_tensor(b, b->dtype, rows->shape[0], w->n, NULL)};
    op_linear(b->dev, &y, &x, w);
    return bed_get(b, &y.y);
}

void assert_alone_as_together(struct bed *b, const struct weight *w, const struct tensor *x, const int *counts,
                              int n_counts) {
    int64_t all = x->shape[0];
    float *want = product_of(b, w, x);
    for (int i = 0; i < n_counts; i++) {
        int64_t m = counts[i], at[] = {0, 1, all / 2 + 1, all - m};
        for (int j = 0; j < 4; j++) {
            if (at[j] + m > all) continue;
            struct tensor some = rows_from(x, at[j], m);
            assert_memory_equal(product_of(b, w, &some), want + at[j] * w->n, (size_t)(m * w->n) * sizeof *want);
        }
    }
}

/* ---------------------------------------------------------------- steps */

void step_begin(struct bed_step *s, uint64_t shuffle) {
    s->step = (struct step){.token = s->token,
                            .position = s->position,
                            .slot = s->slot,
                            .sequences = s->sequences,
                            .block_table = s->table,
                            .block_table_stride = BED_STRIDE};
    for (int32_t i = 0; i < BED_BLOCKS; i++) s->table[i] = i;
    for (int32_t i = BED_BLOCKS - 1; i > 0; i--) {
        int32_t j = (int32_t)(next_random(&shuffle) % (uint64_t)(i + 1)), t = s->table[i];
        s->table[i] = s->table[j];
        s->table[j] = t;
    }
}

void step_add(struct bed_step *s, int32_t slot, int32_t first_position, int32_t n_rows) {
    int32_t first = s->step.n_rows;
    assert_true(slot < BED_SLOTS && first + n_rows <= BED_ROWS);
    assert_true(first_position + n_rows <= BED_STRIDE * KV_BLOCK);
    for (int32_t i = 0; i < n_rows; i++) {
        s->position[first + i] = first_position + i;
        s->slot[first + i] = slot;
        s->token[first + i] = 0;
    }
    s->sequences[s->step.n_sequences++] = (struct step_sequence){slot, first, n_rows, first_position};
    s->step.n_rows += n_rows;
}
