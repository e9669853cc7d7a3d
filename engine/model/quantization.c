/* quantization.c - see quantization.h. */
#include "engine/model/quantization.h"
#include "base/mem.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_NAME = 256 };

/* ---------------------------------------------------------------- what is asked for */

/* Cuts the text where `word` stands and returns what is behind it, or NULL. */
static char *cut(char *text, const char *word) {
    char *at = strstr(text, word);
    if (!at) return NULL;
    *at = '\0';
    return at + strlen(word);
}

int quantization_parse(struct quantization *out, const char *text, struct err *err) {
    static const char between[] = " except ";
    const char *skip = text ? strstr(text, between) : NULL;
    char kind[40];
    *out = (struct quantization){0};
    if (!text) return 0;
    snprintf(kind, sizeof kind, "%.*s", (int)(skip ? skip - text : (ptrdiff_t)strlen(text)), text);
    out->skip = skip ? skip + strlen(between) : NULL;
    const char *outliers = cut(kind, " outliers ");
    if (!quant_from_name(&out->kind, kind))
        return err_set(err, E_USAGE, "no quantization \"%s\": none, int8, fp4, nf4, nf4-dq and fp8 are known", text);
    if (!outliers) return 0;
    if (!int8_outliers_from_name(&out->outliers, outliers))
        return err_set(err, E_USAGE, "no rule of outliers \"%s\": row and batch are known", outliers);
    if (out->kind == QUANT_INT8 || out->kind == QUANT_NONE) return 0;
    return err_set(err, E_USAGE, "%s has no outliers; int8 has", kind);
}

/* ---------------------------------------------------------------- config.json */

/* The methods whose tensors can be read; NULL, or what is wrong. */
static const char *method_fault(const char *method, const json_t *config) {
    const char *format = json_string_value(json_object_get(config, "format"));
    if (strcmp(method, "bitsandbytes") == 0 || strcmp(method, "fp8") == 0) return NULL;
    if (strcmp(method, "compressed-tensors") != 0) return method;
    return format && strcmp(format, "float-quantized") == 0 ? NULL : format ? format : method;
}

int quantization_check_config(const json_t *config, const char *where, struct err *err) {
    if (!config || json_is_null(config)) return 0;
    const char *method = json_string_value(json_object_get(config, "quant_method"));
    bool by_keys = json_is_true(json_object_get(config, "load_in_4bit")) ||
                   json_is_true(json_object_get(config, "load_in_8bit")); /* before there was quant_method */
    const json_t *threshold = json_object_get(config, "llm_int8_threshold");
    const char *fault = method ? method_fault(method, config) : by_keys ? NULL : "?";
    if (fault)
        return err_set(err, E_UNSUPPORTED,
                       "%squantization_config.%s \"%.80s\" is not supported (bitsandbytes, fp8 and compressed-tensors' "
                       "float-quantized are, and checkpoints in float32, bfloat16 and float16)",
                       where, method && fault != method ? "format" : "quant_method", fault);
    if (json_is_true(json_object_get(config, "load_in_8bit")) && threshold &&
        json_number_value(threshold) != (double)INT8_OUTLIER)
        return err_set(err, E_UNSUPPORTED, "%squantization_config.llm_int8_threshold %g is not supported (%d is)",
                       where, json_number_value(threshold), INT8_OUTLIER);
    return 0;
}

/* Of the first group of modules that has one: all have the same. */
static const json_t *block_structure(const json_t *config) {
    const char *name;
    json_t *group;
    json_object_foreach(json_object_get(config, "config_groups"), name, group) {
        const json_t *block = json_object_get(json_object_get(group, "weights"), "block_structure");
        if (block && !json_is_null(block)) return block;
    }
    return NULL;
}

int quantization_read_block(struct fp8_block *out, const json_t *config, const char *where, struct err *err) {
    enum { MAX_BLOCK = 1 << 16 };
    const json_t *block = json_object_get(config, "weight_block_size");
    if (!block || json_is_null(block)) block = block_structure(config);
    *out = (struct fp8_block){0};
    if (!block) return 0;
    int64_t rows = json_integer_value(json_array_get(block, 0)), cols = json_integer_value(json_array_get(block, 1));
    if (json_array_size(block) != 2 || rows < 1 || rows > MAX_BLOCK || cols < 1 || cols > MAX_BLOCK)
        return err_set(err, E_RANGE, "%squantization_config: the sizes of blocks are not two numbers in 1 .. %d", where,
                       MAX_BLOCK);
    *out = (struct fp8_block){(int32_t)rows, (int32_t)cols};
    return 0;
}

static bool has_parts(const char *module, const char *part, size_t n) {
    const char *at = module;
    while (at) {
        if (strncmp(at, part, n) == 0 && (at[n] == '.' || !at[n])) return true;
        at = strchr(at, '.');
        if (at) at++;
    }
    return false;
}

bool quantization_skips(const struct quantization *q, const char *module) {
    for (const char *at = q->skip; at && *at;) {
        size_t n = strcspn(at, ",");
        if (n > 0 && has_parts(module, at, n)) return true;
        at += n + (at[n] == ',');
    }
    return false;
}

/* ---------------------------------------------------------------- tensors of a checkpoint */

static const struct checkpoint_tensor *beside(const struct checkpoint *c, const char *name, const char *suffix) {
    char whole[MAX_NAME];
    snprintf(whole, sizeof whole, "%s%s", name, suffix);
    return checkpoint_find(c, whole);
}

static const struct checkpoint_tensor *state_of(const struct checkpoint *c, const char *name, bool *is_nf4) {
    const struct checkpoint_tensor *t = beside(c, name, ".quant_state.bitsandbytes__nf4");
    *is_nf4 = t != NULL;
    return t ? t : beside(c, name, ".quant_state.bitsandbytes__fp4");
}

/* X.SCB of X.weight */
static const struct checkpoint_tensor *beside_module(const struct checkpoint *c, const char *name, const char *suffix) {
    char module[MAX_NAME];
    size_t n = strlen(name), tail = strlen(".weight");
    if (n <= tail || n >= sizeof module || strcmp(name + n - tail, ".weight") != 0) return NULL;
    snprintf(module, sizeof module, "%.*s", (int)(n - tail), name);
    return beside(c, module, suffix);
}

enum quant_kind quantized_kind(const struct checkpoint *c, const char *name) {
    bool is_nf4;
    const struct checkpoint_tensor *t = checkpoint_find(c, name);
    if (!t) return QUANT_NONE;
    if (state_of(c, name, &is_nf4))
        return !is_nf4 ? QUANT_FP4 : beside(c, name, ".nested_absmax") ? QUANT_NF4_DQ : QUANT_NF4;
    if (strcmp(t->dtype_text, "I8") == 0) return QUANT_INT8;
    return strcmp(t->dtype_text, "F8_E4M3") == 0 && !fp8_blocks_is(c, name) ? QUANT_FP8 : QUANT_NONE;
}

/* A copy of n finite floats: the file's own are not aligned. */
static int copy_floats(float **out, const struct checkpoint_tensor *t, const char *name, const char *suffix, int64_t n,
                       struct err *err) {
    if (!t) return err_set(err, E_PARSE, "%s is quantized, but there is no tensor %s%s", name, name, suffix);
    if (strcmp(t->dtype_text, "F32") != 0 || t->bytes != (size_t)n * sizeof(float))
        return err_set(err, E_PARSE, "tensor %s has %zu bytes of %s, expected %" PRId64 " numbers of F32", t->name,
                       t->bytes, t->dtype_text, n);
    *out = mem_dup(t->data, t->bytes);
    for (int64_t i = 0; i < n; i++)
        if (!isfinite((*out)[i]))
            return err_set(err, E_PARSE, "tensor %s: number %" PRId64 " is not finite", t->name, i);
    return 0;
}

static int floats_of(float **out, struct quantized_tensor *t, const struct checkpoint *c, const char *name,
                     const char *suffix, int64_t n, struct err *err) {
    t->n_tensors++;
    return copy_floats(out, beside(c, name, suffix), name, suffix, n, err);
}

/* ---------------------------------------------------------------- 8 bits */

static int read_8bit(struct quantized_tensor *out, const struct checkpoint *c, const struct checkpoint_tensor *t,
                     int64_t rows, int64_t k, struct err *err) {
    const struct checkpoint_tensor *format = beside_module(c, t->name, ".weight_format");
    if (t->n_dims != 2 || t->shape[0] != rows || t->shape[1] != k)
        return err_set(err, E_PARSE, "%s does not have the shape [%" PRId64 ", %" PRId64 "]", t->name, rows, k);
    if (format && (format->bytes != 1 || *(const uint8_t *)format->data != 0))
        return err_set(err, E_UNSUPPORTED, "tensor %s: only rows as they come (0) are supported", format->name);
    out->n_tensors += 2;
    out->q = (struct quantized){.n_rows = rows, .codes = t->data};
    int r = copy_floats(&out->scale, beside_module(c, t->name, ".SCB"), t->name, ", its module's .SCB", rows, err);
    out->q.scale = out->scale;
    return r;
}

/* One number for all rows, or one a row. */
static int read_fp8_scale(struct quantized_tensor *out, const struct checkpoint_tensor *t, int64_t rows,
                          struct err *err) {
    int64_t n = 1;
    for (int32_t i = 0; i < t->n_dims; i++) n *= t->shape[i];
    if (!t->is_float || (n != 1 && n != rows))
        return err_set(err, E_UNSUPPORTED,
                       "tensor %s has %" PRId64 " numbers of %s; one for all or one for each of %" PRId64
                       " rows is supported",
                       t->name, n, t->dtype_text, rows);
    out->scale = mem_zalloc((size_t)rows, sizeof *out->scale);
    for (int64_t i = 0; i < rows; i++) {
        const char *at = (const char *)t->data + (n == 1 ? 0 : i) * (int64_t)dtype_bytes(t->dtype);
        numbers_read(&out->scale[i], at, t->dtype, 1);
        if (!isfinite(out->scale[i]))
            return err_set(err, E_PARSE, "tensor %s: number %" PRId64 " is not finite", t->name, i);
    }
    return 0;
}

static int read_fp8(struct quantized_tensor *out, const struct checkpoint *c, const struct checkpoint_tensor *t,
                    int64_t rows, int64_t k, struct err *err) {
    const struct checkpoint_tensor *scale = beside_module(c, t->name, ".weight_scale");
    if (t->n_dims != 2 || t->shape[0] != rows || t->shape[1] != k)
        return err_set(err, E_PARSE, "%s does not have the shape [%" PRId64 ", %" PRId64 "]", t->name, rows, k);
    if (!scale) scale = beside_module(c, t->name, ".weight_scale_inv"); /* so it is called without blocks too */
    if (!scale) return err_set(err, E_PARSE, "%s is in F8_E4M3, but its module has no tensor weight_scale", t->name);
    out->n_tensors += 2;
    int r = read_fp8_scale(out, scale, rows, err);
    out->q = (struct quantized){.n_rows = rows, .codes = t->data, .scale = out->scale};
    return r;
}

/* ---------------------------------------------------------------- 4 bits */

static int check_shape(const json_t *shape, const char *name, int64_t rows, int64_t k, struct err *err) {
    if (!shape || json_is_null(shape)) return 0;
    if (json_array_size(shape) == 2 && json_integer_value(json_array_get(shape, 0)) == rows &&
        json_integer_value(json_array_get(shape, 1)) == k)
        return 0;
    return err_set(err, E_PARSE, "%s: the quantized shape is not [%" PRId64 ", %" PRId64 "]", name, rows, k);
}

static int read_state(struct quantized *q, const struct checkpoint_tensor *t, int64_t k, bool is_nested,
                      struct err *err) {
    json_t *state = json_loadb(t->data, t->bytes, 0, NULL);
    const json_t *offset = json_object_get(state, "nested_offset");
    int64_t nested = json_integer_value(json_object_get(state, "nested_blocksize"));
    int r = 0;
    q->block = json_integer_value(json_object_get(state, "blocksize"));
    q->mean = (float)json_number_value(offset);
    if (!json_is_object(state)) r = err_set(err, E_PARSE, "tensor %s is not a JSON object", t->name);
    else if (!quant_block_is_valid(q->block))
        r = err_set(err, E_UNSUPPORTED, "tensor %s: blocksize %" PRId64 " is not a power of two from 32 to 4096",
                    t->name, q->block);
    else if (is_nested && nested != QUANT_NESTED_BLOCK)
        r = err_set(err, E_UNSUPPORTED, "tensor %s: nested_blocksize %" PRId64 " is not %d", t->name, nested,
                    QUANT_NESTED_BLOCK);
    else if (is_nested && (!json_is_number(offset) || !isfinite(q->mean)))
        r = err_set(err, E_PARSE, "tensor %s: no number nested_offset", t->name);
    else r = check_shape(json_object_get(state, "shape"), t->name, q->n_rows, k, err);
    json_decref(state);
    return r;
}

static int read_nested(struct quantized_tensor *out, const struct checkpoint *c, const char *name, int64_t blocks,
                       struct err *err) {
    const struct checkpoint_tensor *codes = beside(c, name, ".absmax");
    out->n_tensors++;
    if (!codes) return err_set(err, E_PARSE, "%s is quantized, but there is no tensor %s.absmax", name, name);
    if (strcmp(codes->dtype_text, "U8") != 0 || codes->bytes != (size_t)blocks)
        return err_set(err, E_PARSE, "tensor %s has %zu bytes of %s, expected %" PRId64 " of U8", codes->name,
                       codes->bytes, codes->dtype_text, blocks);
    out->q.absmax_codes = codes->data;
    int r = floats_of(&out->absmax2, out, c, name, ".nested_absmax", quant_blocks(blocks, QUANT_NESTED_BLOCK), err);
    if (r == 0) r = floats_of(&out->map, out, c, name, ".nested_quant_map", 256, err);
    return r;
}

static int read_4bit(struct quantized_tensor *out, const struct checkpoint *c, const struct checkpoint_tensor *t,
                     int64_t rows, int64_t k, struct err *err) {
    bool is_nf4, is_nested = beside(c, t->name, ".nested_absmax") != NULL;
    const struct checkpoint_tensor *state = state_of(c, t->name, &is_nf4);
    int64_t n = rows * k;
    out->n_tensors += 2;
    out->q = (struct quantized){.n_rows = rows, .codes = t->data};
    int r = read_state(&out->q, state, k, is_nested, err);
    if (r == 0 && t->bytes != (size_t)(n + 1) / 2)
        r = err_set(err, E_PARSE, "tensor %s has %zu bytes, expected %" PRId64 " for 4 bits a number of [%" PRId64
                    ", %" PRId64 "]", t->name, t->bytes, (n + 1) / 2, rows, k);
    if (r == 0) r = floats_of(&out->values, out, c, t->name, ".quant_map", 16, err);
    if (r < 0) return r;
    int64_t blocks = quant_blocks(n, out->q.block);
    r = is_nested ? read_nested(out, c, t->name, blocks, err)
                  : floats_of(&out->absmax, out, c, t->name, ".absmax", blocks, err);
    out->q.values = out->values;
    out->q.absmax = out->absmax;
    out->q.absmax2 = out->absmax2;
    out->q.map = out->map;
    return r;
}

int quantized_tensor_read(struct quantized_tensor *out, const struct checkpoint *c, const char *name, int64_t rows,
                          int64_t k, struct err *err) {
    const struct checkpoint_tensor *t = checkpoint_find(c, name);
    *out = (struct quantized_tensor){0};
    enum quant_kind kind = quantized_kind(c, name);
    int r = kind == QUANT_INT8  ? read_8bit(out, c, t, rows, k, err)
            : kind == QUANT_FP8 ? read_fp8(out, c, t, rows, k, err)
                                : read_4bit(out, c, t, rows, k, err);
    if (r < 0) quantized_tensor_clear(out);
    return r;
}

int quantized_tensor_check(const struct checkpoint *c, const char *name, struct err *err) {
    const struct checkpoint_tensor *t = checkpoint_find(c, name);
    if (quantized_kind(c, name) != QUANT_FP8) return 0; /* every code of the others is a number */
    const uint8_t *codes = t->data;
    int64_t k = t->shape[1];
    for (int64_t row = 0; row < t->shape[0]; row++, codes += k) {
        int bad = 0;
        for (int64_t i = 0; i < k; i++) bad |= (codes[i] & 0x7f) == 0x7f;
        for (int64_t i = 0; bad && i < k; i++)
            if ((codes[i] & 0x7f) == 0x7f)
                return err_set(err, E_PARSE, "tensor %s: the number at [%" PRId64 ", %" PRId64 "] is not finite", name,
                               row, i);
    }
    return 0;
}

void quantized_tensor_clear(struct quantized_tensor *t) {
    free(t->scale);
    free(t->values);
    free(t->absmax);
    free(t->absmax2);
    free(t->map);
    *t = (struct quantized_tensor){0};
}

/* ---------------------------------------------------------------- float tensors */

int quantization_check_finite(const struct tensor *t, const char *name, struct err *err) {
    int64_t n = t->shape[0] * t->shape[1];
    for (int64_t i = 0; i < n; i++) {
        uint32_t word = 0;
        uint16_t half;
        if (t->dtype == DTYPE_F32) memcpy(&word, (const char *)t->data + 4 * i, 4);
        else {
            memcpy(&half, (const char *)t->data + 2 * i, 2);
            /* The exponent is all ones; fp16 has five bits of it, bf16 eight as f32 does. */
            if (t->dtype == DTYPE_F16) word = (half & 0x7c00) == 0x7c00 ? 0x7f800000 : 0;
            else word = (uint32_t)half << 16;
        }
        if ((word & 0x7f800000) == 0x7f800000)
            return err_set(err, E_PARSE, "tensor %s: the number at [%" PRId64 ", %" PRId64 "] is not finite", name,
                           i / t->shape[1], i % t->shape[1]);
    }
    return 0;
}
