/* measure.c - see measure.h. */
#include "engine/model/measure.h"
#include "base/mem.h"
#include "engine/model/model_private.h"

#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* Runs back to back between two stamps, so that the time to launch the first counts little,
 * and tries of that, of which the best counts. One of each is enough of what takes so long. */
enum { RUNS = 5, TRIES = 4, LONG_NS = 200000000 };

typedef void run_fn(struct dev *dev, void *arg);

/* Nanoseconds of one run. */
static double time_runs(struct dev *dev, run_fn *run, void *arg, int n) {
    dev_stamp(dev, 0);
    for (int i = 0; i < n; i++) run(dev, arg);
    dev_stamp(dev, 1);
    return dev_stamp_ns(dev, 0, 1) / n;
}

static bool is_cpu(const struct dev *dev) {
    return strcmp(dev_kind(dev), "cpu") == 0;
}

static double best_ns(struct dev *dev, run_fn *run, void *arg) {
    double best = time_runs(dev, run, arg, 1); /* pages, caches and clocks warm up */
    bool is_long = best > LONG_NS;
    if (!is_long && !is_cpu(dev)) time_runs(dev, run, arg, MEASURE_SETTLING_RUNS);
    for (int t = 0; t < (is_long ? 1 : TRIES); t++) {
        double ns = time_runs(dev, run, arg, is_long ? 1 : RUNS);
        if (t == 0 || ns < best) best = ns;
    }
    return best;
}

/* ---------------------------------------------------------------- random numbers */

enum { FILL_ROWS = 4096 };

/* Rows [first, first + n) of t from the rows of a random weight: op_embed is the one operation
 * that brings a weight's numbers into a tensor, whatever the device's order of them is. */
static void fill_rows(struct dev *dev, struct tensor *t, int64_t first, int32_t n, const struct weight *from,
                      int32_t *ids, int32_t *zeros) {
    struct tensor rows = tensor_2d((char *)t->data + (size_t)(first * t->shape[1]) * dtype_bytes(t->dtype), t->dtype, n,
                                   t->shape[1]);
    struct step_sequence one = {.n_rows = 1}; /* embedding reads token ids alone */
    struct step step = {.n_rows = n, .token = ids, .position = zeros, .slot = zeros, .n_sequences = 1, .sequences = &one,
                        .block_table = zeros, .block_table_stride = 1};
    op_embed(dev, &rows, from, 1.0f, step_upload(dev, &step));
}

int measure_fill(struct dev *dev, struct tensor *t, uint64_t seed, float deviation, struct err *err) {
    int64_t rows = t->shape[0], n = rows < FILL_ROWS ? rows : FILL_ROWS;
    struct weight *from = weight_new(dev, n, t->shape[1], t->dtype);
    if (!from) return err_set(err, E_NO_MEMORY, "no memory for random numbers of %" PRId64 " x %" PRId64, n, t->shape[1]);
    weight_random(dev, from, 0, n, seed, deviation);
    int32_t *ids = mem_zalloc(2 * (size_t)n, sizeof *ids);
    for (int32_t i = 0; i < n; i++) ids[i] = i;
    for (int64_t r = 0; r < rows; r += n)
        fill_rows(dev, t, r, (int32_t)(rows - r < n ? rows - r : n), from, ids, ids + n);
    int r = dev_sync(dev, err);
    free(ids);
    weight_free(dev, from);
    return r;
}

/* ---------------------------------------------------------------- the products of a layer */

enum { N_PRODUCTS = 4 };

struct products {
    const struct weight *of[N_PRODUCTS]; /* NULL: the family has none */
};

static struct products products_of(const struct layer_weights *l) {
    return (struct products){{l->qkv, l->o, l->up, l->down}};
}

/* ---------------------------------------------------------------- the device at its best */

static int64_t min64(int64_t a, int64_t b) {
    return a < b ? a : b;
}

struct copy {
    void *dst;
    const void *src;
    size_t bytes;
};

static void run_copy(struct dev *dev, void *arg) {
    const struct copy *c = arg;
    dev_copy(dev, c->dst, c->src, c->bytes);
}

static int measure_copy(struct engine_roof *out, struct dev *dev, struct err *err) {
    int64_t most = is_cpu(dev) ? (int64_t)128 << 20 : (int64_t)4 << 30, least = 16 << 20;
    int64_t bytes = min64(most, dev_memory_available(dev) * 2 / 5) / least * least;
    char *memory = bytes > 0 ? dev_alloc(dev, 2 * (size_t)bytes) : NULL;
    if (!memory)
        return err_set(err, E_NO_MEMORY, "no memory to measure copies: %" PRId64 " MiB are free; lower --gpu-memory-utilization",
                       dev_memory_available(dev) >> 20);
    struct copy c = {memory + bytes, memory, (size_t)bytes};
    double ns = best_ns(dev, run_copy, &c);
    int r = dev_sync(dev, err);
    dev_free(dev, memory);
    if (r < 0) return r;
    out->copy_bytes = bytes;
    out->copy_bytes_per_s = 2 * (double)bytes / ns * 1e9;
    return 0;
}

struct multiplication {
    struct product y;
    struct activation x;
    struct weight *w;
};

static void run_product(struct dev *dev, void *arg) {
    struct multiplication *m = arg;
    op_linear(dev, &m->y, &m->x, m->w);
}

/* x as codes, where the product takes them: the rate is that of the product alone. */
static int as_codes(struct dev *dev, struct multiplication *m, struct err *err) {
    int64_t n = m->x.x.shape[0];
    struct activation codes = {.x = tensor_2d(dev_alloc(dev, (size_t)(n * n)), DTYPE_F8_E4M3, n, n)};
    codes.row_scale = tensor_1d(dev_alloc(dev, (size_t)n * 4), DTYPE_F32, n);
    m->y.scale_room = codes.row_scale;
    if (!codes.x.data || !codes.row_scale.data) {
        dev_free(dev, codes.x.data);
        dev_free(dev, codes.row_scale.data);
        return err_set(err, E_NO_MEMORY, "no memory for matrices of %" PRId64, n);
    }
    op_quantize(dev, &codes, &m->x);
    m->x = codes;
    return 0;
}

/* y = x w^T, all [n, n] and random. */
static int multiply(double *ns, struct dev *dev, int64_t n, enum dtype dtype, enum quant_kind quant, struct err *err) {
    struct tensor x = tensor_2d(dev_alloc(dev, (size_t)(n * n) * dtype_bytes(dtype)), dtype, n, n);
    struct tensor y = tensor_2d(dev_alloc(dev, (size_t)(n * n) * dtype_bytes(dtype)), dtype, n, n);
    struct weight *w = weight_new_quantized(dev, n, n, dtype, quant);
    int r = 0;
    if (!x.data || !y.data || !w) r = err_set(err, E_NO_MEMORY, "no memory for matrices of %" PRId64, n);
    if (r == 0) r = measure_fill(dev, &x, 1, 1, err);
    if (r == 0) {
        struct multiplication m = {{.y = y}, {.x = x}, w};
        weight_random(dev, w, 0, n, 2, 0.02f);
        if (op_linear_takes(dev, w, DTYPE_F8_E4M3)) r = as_codes(dev, &m, err);
        if (r == 0) *ns = best_ns(dev, run_product, &m);
        if (r == 0) r = dev_sync(dev, err);
        if (m.x.x.data != x.data) dev_free(dev, m.x.x.data);
        dev_free(dev, m.x.row_scale.data);
    }
    weight_free(dev, w);
    dev_free(dev, y.data);
    dev_free(dev, x.data);
    return r;
}

/* FLOP/s of products of size n. */
static int product_rate(double *out, struct dev *dev, int64_t n, enum dtype dtype, enum quant_kind quant, struct err *err) {
    double ns = 0;
    int r = multiply(&ns, dev, n, dtype, quant, err);
    if (r == 0) *out = 2.0 * (double)n * (double)n * (double)n / ns * 1e9;
    return r;
}

static int measure_products(struct engine_roof *out, struct dev *dev, enum dtype dtype, enum quant_kind quant,
                            struct err *err) {
    int64_t n = is_cpu(dev) ? 1024 : 8192;
    while (n > 512 && 5 * n * n * (int64_t)dtype_bytes(dtype) > dev_memory_available(dev)) n /= 2;
    out->matrix_size = (int32_t)n;
    snprintf(out->dtype, sizeof out->dtype, "%s", dtype_name(dtype));
    int r = product_rate(&out->flop_per_s, dev, n, dtype, QUANT_NONE, err);
    if (r < 0 || quant == QUANT_NONE) return r;
    snprintf(out->quantization, sizeof out->quantization, "%s", quant_name(quant));
    return product_rate(&out->quant_flop_per_s, dev, n, dtype, quant, err);
}

int measure_device(struct engine_roof *out, struct dev *dev, enum dtype dtype, enum quant_kind quant, struct err *err) {
    struct engine_roof roof = {0};
    int r = measure_copy(&roof, dev, err);
    if (r == 0) r = measure_products(&roof, dev, dtype, quant, err);
    if (r == 0) *out = roof;
    return r;
}

static bool multiplies_otherwise(const struct weight *w) {
    return w->quant == QUANT_INT8 || w->quant == QUANT_FP8;
}

/* All layers' weights that are multiplied otherwise are of one kind. */
static enum quant_kind kind_of(const struct model *m) {
    for (int32_t i = 0; i < m->weights.n_layers; i++) {
        struct products p = products_of(&m->weights.layers[i]);
        for (int k = 0; k < N_PRODUCTS; k++)
            if (p.of[k] && multiplies_otherwise(p.of[k])) return p.of[k]->quant;
    }
    return QUANT_NONE;
}

int measure_roof(struct engine_roof *out, struct model *m, struct err *err) {
    return measure_device(out, m->dev, m->dtype, kind_of(m), err);
}

/* ---------------------------------------------------------------- what the model asks */

static double flop_of(const struct weight *w) {
    return 2.0 * (double)w->n * (double)w->k;
}

/* is_multiplied: a row is multiplied with it; its bytes are read in any case. */
static void add_product(struct engine_work *w, const struct weight *of, bool is_multiplied) {
    w->layer_bytes += (double)weight_bytes(of);
    if (!is_multiplied) return;
    w->row_flop += flop_of(of);
    if (multiplies_otherwise(of)) w->row_flop_quant += flop_of(of);
}

static void add_layer(struct engine_work *w, const struct layer_weights *l) {
    struct products p = products_of(l);
    for (int k = 0; k < N_PRODUCTS; k++)
        if (p.of[k]) add_product(w, p.of[k], true);
}

/* A step reads the weights of all experts, a row is multiplied with some. */
static void add_experts(struct engine_work *w, const struct layer_weights *l, int32_t n_experts, int32_t n_chosen) {
    if (n_experts > 0) add_product(w, l->router, 1);
    for (int32_t e = 0; e < n_experts; e++) {
        add_product(w, l->expert_up[e], e < n_chosen);
        add_product(w, l->expert_down[e], e < n_chosen);
    }
}

void measure_work(struct engine_work *out, const struct model *m) {
    const struct model_info *info = &m->config.info;
    struct engine_work w = {.sliding_window = info->sliding_window};
    for (int32_t i = 0; i < m->weights.n_layers; i++) {
        add_layer(&w, &m->weights.layers[i]);
        add_experts(&w, &m->weights.layers[i], m->weights.n_experts, m->config.experts_per_row);
        if (config_layer_slides(&m->config, i)) w.sliding_share += 1.0 / m->weights.n_layers;
    }
    w.head_flop = flop_of(m->weights.lm_head);
    w.head_bytes = (double)weight_bytes(m->weights.lm_head);
    w.kv_bytes = (double)kv_cache_block_bytes(m->kv_dtype, info->n_layers, info->n_kv_heads, info->head_dim) / KV_BLOCK;
    w.pair_flop = 4.0 * info->n_layers * info->n_heads * info->head_dim;
    *out = w;
}

/* ---------------------------------------------------------------- where time went */

void measure_profile(struct engine_profile *out, const struct model *m) {
    static_assert((int)N_OP_CLASSES <= (int)ENGINE_CLASSES, "engine.h has room for all classes");
    struct dev_profile p;
    dev_profile_read(m->dev, &p);
    *out = (struct engine_profile){.n_steps = p.n_steps, .busy_ns = p.busy_ns, .n_classes = N_OP_CLASSES};
    for (int c = 0; c < N_OP_CLASSES; c++)
        out->classes[c] = (struct engine_class){op_class_name((enum op_class)c), p.ns[c], p.n_ops[c]};
}
