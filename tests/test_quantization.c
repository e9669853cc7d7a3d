/* test_quantization.c - models whose weights are quantized: on load, and by others
 * before (tests/models/make_quantized.py); what is refused. The arithmetic itself has
 * test_quantize.c and test_op_quant.c. */
#include "tests/aid_model.h"

#include "base/file.h"
#include "base/mem.h"
#include "engine/model/model_private.h"
#include "kernels/backend.h"

#include <jansson.h>
#include <math.h>
#include <unistd.h>

static const char source[] = "tests/models/tiny-llama3";
static char dir[] = "/tmp/batchd-quant-XXXXXX";

enum { MAX_PROMPT = 64 };

struct reference { /* a line of reference.jsonl */
    json_t *root, *prompt, *greedy, *logits;
};

static bool next_reference(struct reference *r, FILE *f) {
    char *line = NULL;
    size_t cap = 0;
    ssize_t n = getline(&line, &cap, f);
    r->root = n > 0 ? json_loads(line, 0, NULL) : NULL;
    free(line);
    r->prompt = json_object_get(r->root, "prompt_ids");
    r->greedy = json_object_get(r->root, "greedy_ids");
    r->logits = json_object_get(r->root, "logits");
    return r->root != NULL;
}

static FILE *open_references(const char *kind) {
    char path[600];
    snprintf(path, sizeof path, "tests/models/tiny-%s/reference.jsonl", kind);
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    return f;
}

static int32_t read_prompt(const struct reference *ref, int32_t ids[MAX_PROMPT]) {
    int32_t n = (int32_t)json_array_size(ref->prompt);
    for (int32_t i = 0; i < n; i++) ids[i] = (int32_t)json_integer_value(json_array_get(ref->prompt, (size_t)i));
    return n;
}

/* Prompt and n further ids, each the highest of its logits. */
static void greedy(struct rig *r, int32_t *ids, int32_t n_prompt, int32_t n) {
    float *logits = mem_zalloc((size_t)(n_prompt + n) * (size_t)r->vocab, sizeof *logits);
    for (int32_t i = 0; i < n; i++) ids[n_prompt + i] = rig_logits(r, 0, ids, n_prompt + i, 16, 0, logits);
    free(logits);
}

/* ---------------------------------------------------------------- checkpoints of bitsandbytes */

/* |difference| <= part of the logits' rms; greedy ids equal. */
static void check_against_transformers(const char *kind, double part) {
    char path[600];
    struct rig r;
    struct reference ref;
    FILE *f = open_references(kind);
    int lines = 0;
    snprintf(path, sizeof path, "tests/models/tiny-%s", kind);
    rig_open(&r, path, &(struct rig_options){DTYPE_F32, 1, false});
    for (; next_reference(&ref, f); lines++) {
        int32_t ids[MAX_PROMPT * 2], n = read_prompt(&ref, ids), n_greedy = (int32_t)json_array_size(ref.greedy);
        float *logits = mem_zalloc((size_t)n * (size_t)r.vocab, sizeof *logits);
        rig_logits(&r, 0, ids, n, 16, 0, logits);
        double squares = 0, worst = 0;
        for (int32_t i = 0; i < n * r.vocab; i++) {
            json_t *row = json_array_get(ref.logits, (size_t)(i / r.vocab));
            double want = json_number_value(json_array_get(row, (size_t)(i % r.vocab)));
            squares += want * want;
            worst = fmax(worst, fabs((double)logits[i] - want));
        }
        double rms = sqrt(squares / (n * r.vocab));
        if (worst > part * rms) fail_msg("%s: a logit is off by %g, the rms is %g", kind, worst, rms);
        greedy(&r, ids, n, n_greedy);
        for (int32_t i = 0; i < n_greedy; i++)
            assert_int_equal(ids[n + i], json_integer_value(json_array_get(ref.greedy, (size_t)i)));
        free(logits);
        json_decref(ref.root);
    }
    assert_int_equal(lines, 4);
    fclose(f);
    rig_close(&r);
}

static void checkpoints_compute_what_transformers_computes(void **state) {
    check_against_transformers("nf4", 1e-4);
    check_against_transformers("nf4-dq", 1e-4);
    check_against_transformers("fp4", 1e-4);
    check_against_transformers("fp8", 1e-3);
    check_against_transformers("fp8-tensor", 1e-3);
    check_against_transformers("fp8-block", 1e-4);
    check_against_transformers("fp8-block-ct", 1e-4);
    check_against_transformers("int8", 1e-3); /* a rounding that falls otherwise is a whole code */
}

/* Every logit has the same bits whether bitsandbytes or we have quantized the weights. */
static void check_own(const char *kind, enum dtype dtype) {
    char path[600];
    struct rig theirs, ours;
    struct reference ref;
    FILE *f = open_references(kind);
    snprintf(path, sizeof path, "tests/models/tiny-%s", kind);
    rig_open(&theirs, path, &(struct rig_options){dtype, 2, false});
    rig_open_quantized(&ours, source, &(struct rig_options){dtype, 1, false}, kind);
    assert_int_equal(model_weight_bytes(theirs.model), model_weight_bytes(ours.model));
    while (next_reference(&ref, f)) {
        int32_t ids[MAX_PROMPT], n = read_prompt(&ref, ids);
        size_t n_logits = (size_t)n * (size_t)ours.vocab;
        float *a = mem_zalloc(n_logits, sizeof *a), *b = mem_zalloc(n_logits, sizeof *b);
        int32_t first = rig_logits(&theirs, 0, ids, n, 16, 0, a), second = rig_logits(&ours, 0, ids, n, 7, 0, b);
        assert_int_equal(first, second);
        assert_memory_equal(a, b, n_logits * sizeof *a);
        free(a);
        free(b);
        json_decref(ref.root);
    }
    fclose(f);
    rig_close(&theirs);
    rig_close(&ours);
}

static void checkpoints_equal_our_own_quantization_of_their_source(void **state) {
    static const char *const kinds[] = {"nf4", "nf4-dq", "int8", "fp8"}; /* fp4's ties fall otherwise on a CPU */
    for (size_t i = 0; i < 4; i++) {
        check_own(kinds[i], DTYPE_F32);
        check_own(kinds[i], DTYPE_BF16);
    }
}

/* ---------------------------------------------------------------- on load */

static int64_t bytes_with(const char *quantization, bool dummy) {
    struct rig r;
    rig_open_quantized(&r, source, &(struct rig_options){DTYPE_BF16, 1, dummy}, quantization);
    int64_t bytes = model_weight_bytes(r.model);
    rig_close(&r);
    return bytes;
}

static void weights_shrink_but_for_skipped_ones(void **state) {
    int64_t none = bytes_with(NULL, false), int8 = bytes_with("int8", false), nf4 = bytes_with("nf4", false);
    int64_t dq = bytes_with("nf4-dq", false), skipped = bytes_with("nf4 except o_proj,layers.1", false);
    int64_t layer = 32 * (64 + 2 * 32) + 32 * 64 + 3 * 32 * 48; /* numbers in the weights of a layer */
    assert_int_equal(none - nf4, 2 * (layer * 2 - layer / 2 - layer / 64 * 4));
    assert_int_equal(none - int8, 2 * (layer - 4 * (128 + 32 + 96 + 32)));
    assert_int_equal(none - skipped, (layer - 32 * 64) * 2 - (layer - 32 * 64) / 2 - (layer - 32 * 64) / 64 * 4);
    assert_int_equal(bytes_with("nf4-dq", true), dq - 2 * 4 * (128 + 32 + 96 + 32)); /* dummies have no bias */
}

/* Root mean square of the difference from the logits that the plain weights give, as a share of
 * theirs; chunks of 5 and of 16 give the same bits. */
static double distance(const char *path, const char *quantization) {
    enum { N = 24 };
    int32_t ids[N];
    float *logits[3];
    struct rig r;
    double off = 0, size = 0;
    for (int32_t i = 0; i < N; i++) ids[i] = (7 * i + 3) % 60;
    for (int i = 0; i < 3; i++) {
        rig_open_quantized(&r, path, &(struct rig_options){DTYPE_F32, 1, false}, i == 0 ? NULL : quantization);
        logits[i] = mem_zalloc(N * (size_t)r.vocab, sizeof(float));
        rig_logits(&r, 0, ids, N, i == 1 ? 5 : 16, 0, logits[i]);
        rig_close(&r);
    }
    for (int32_t i = 0; i < N * r.vocab; i++) {
        off += pow((double)logits[1][i] - (double)logits[0][i], 2);
        size += pow((double)logits[0][i], 2);
    }
    assert_memory_equal(logits[1], logits[2], N * (size_t)r.vocab * sizeof(float));
    for (int i = 0; i < 3; i++) free(logits[i]);
    return sqrt(off / size);
}

static void every_family_runs_quantized(void **state) {
    static const char *const families[] = {"phi", "qwen2", "qwen3", "phi3", "gemma", "gemma2", "falcon-7b",
                                           "falcon-40b", "falcon-rw", "mpt", "mixtral", "mixtral-fused"};
    if (strcmp(test_device(), "cpu") != 0) skip();
    for (size_t i = 0; i < sizeof families / sizeof *families; i++) {
        char path[100];
        snprintf(path, sizeof path, "tests/models/tiny-%s", families[i]);
        double int8 = distance(path, "int8"), fp8 = distance(path, "fp8"), dq = distance(path, "nf4-dq");
        if (!(int8 > 0 && int8 < fp8 && fp8 < dq && dq < 0.9))
            fail_msg("%s is off by %.3f in int8, %.3f in fp8, %.3f in nf4-dq", families[i], int8, fp8, dq);
    }
}

static void skipped_modules_are_named_by_their_parts(void **state) {
    static const char module[] = "model.layers.1.self_attn.q_proj";
    static const struct {
        const char *skip;
        bool skips;
    } cases[] = {{NULL, false},           {"", false},       {"q_proj", true},      {"layers.1", true},
                 {"layers.1.mlp", false}, {"proj", false},   {"self_attn", true},   {"o_proj,q_proj", true},
                 {"k_proj,,", false},     {"layers", true},  {"model", true},       {"attn.q_proj", false},
                 {"1.self_attn", true},   {"q_pro", false},  {module, true},        {"model.layers.11", false}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_int_equal(quantization_skips(&(struct quantization){.skip = cases[i].skip}, module), cases[i].skips);
}

static void unknown_kinds_are_refused(void **state) {
    struct quantization q;
    struct err err = ERR_INIT;
    assert_ok(quantization_parse(&q, NULL, &err), &err);
    assert_int_equal(q.kind, QUANT_NONE);
    assert_ok(quantization_parse(&q, "nf4-dq except a.b,c", &err), &err);
    assert_int_equal(q.kind, QUANT_NF4_DQ);
    assert_string_equal(q.skip, "a.b,c");
    assert_err(quantization_parse(&q, "int4", &err), E_USAGE, "no quantization \"int4\"", &err);
    assert_err(quantization_parse(&q, "", &err), E_USAGE, "no quantization", &err);
    assert_err(quantization_parse(&q, "nf4nf4nf4nf4nf4nf4nf4", &err), E_USAGE, "no quantization", &err);
}

static void rules_of_outliers_are_int8s(void **state) {
    struct quantization q;
    struct err err = ERR_INIT;
    assert_ok(quantization_parse(&q, "int8", &err), &err);
    assert_int_equal(q.outliers, INT8_OUTLIERS_ROW);
    assert_ok(quantization_parse(&q, "int8 outliers batch", &err), &err);
    assert_true(q.kind == QUANT_INT8 && q.outliers == INT8_OUTLIERS_BATCH && !q.skip);
    assert_ok(quantization_parse(&q, "int8 outliers row except a outliers batch", &err), &err);
    assert_true(q.kind == QUANT_INT8 && q.outliers == INT8_OUTLIERS_ROW);
    assert_string_equal(q.skip, "a outliers batch");
    assert_ok(quantization_parse(&q, "none outliers batch except a", &err), &err);
    assert_true(q.kind == QUANT_NONE && q.outliers == INT8_OUTLIERS_BATCH);
    assert_string_equal(q.skip, "a");
    assert_err(quantization_parse(&q, "int8 outliers column", &err), E_USAGE, "no rule of outliers \"column\"", &err);
    assert_err(quantization_parse(&q, "nf4 outliers batch", &err), E_USAGE, "nf4 has no outliers", &err);
    assert_err(quantization_parse(&q, "int8 outliers batch nf4nf4nf4nf4nf4nf4nf4nf4nf4", &err), E_USAGE, "no rule", &err);
}

/* ---------------------------------------------------------------- bad input */

/* `from`/name into dir, the first `old` replaced by as many other bytes; NULL: as it is. */
static void copy_file(const char *from, const char *name, const char *old, const void *new, ptrdiff_t behind,
                      size_t n) {
    char path[600], *data;
    size_t size;
    struct err err = ERR_INIT;
    snprintf(path, sizeof path, "%s/%s", from, name);
    assert_ok(file_read(path, 1 << 20, &data, &size, &err), &err);
    if (old) {
        char *at = memmem(data, size, old, strlen(old));
        assert_non_null(at);
        memcpy(at + behind, new, n);
    }
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, size, f), size);
    assert_int_equal(fclose(f), 0);
    free(data);
}

static void refused(const char *quantization, int code, const char *text) {
    struct dev *dev;
    struct model *m = NULL;
    struct err err = ERR_INIT;
    struct model_options options = {.dir = dir};
    assert_ok(quantization_parse(&options.quantization, quantization, &err), &err);
    assert_ok(dev_open(&dev, &(struct dev_options){.kind = test_device(), .threads = 1}, &err), &err);
    assert_err(model_open(&m, dev, &options, &err), code, text, &err);
    assert_null(m);
    dev_close(dev);
}

/* A folder of bitsandbytes with one text in the weights' file, or in config.json, changed. */
static void refused_weights(const char *kind, const char *old, const char *new, int code, const char *text) {
    char from[600];
    snprintf(from, sizeof from, "tests/models/tiny-%s", kind);
    copy_file(from, "config.json", NULL, NULL, 0, 0);
    copy_file(from, "model.safetensors", old, new, 0, strlen(new));
    refused(NULL, code, text);
}

static void broken_checkpoints_are_refused_by_tensor(void **state) {
    refused_weights("nf4", "down_proj.weight.absmax", "down_proj.weight.absmaX", E_PARSE,
                    "there is no tensor model.layers.0.mlp.down_proj.weight.absmax");
    refused_weights("nf4", "\"blocksize\": 64", "\"blocksize\": 96", E_UNSUPPORTED,
                    "quant_state.bitsandbytes__nf4: blocksize 96 is not a power of two");
    refused_weights("nf4", "\"blocksize\": 64", "\"blocksize\": 32", E_PARSE, "numbers of F32");
    refused_weights("nf4", "\"shape\": [", "\"shape\": {", E_PARSE, "is not a JSON object");
    refused_weights("nf4-dq", "nested_blocksize\": 256", "nested_blocksize\": 128", E_UNSUPPORTED,
                    "nested_blocksize 128");
    refused_weights("nf4-dq", "nested_offset", "nested_offseT", E_PARSE, "no number nested_offset");
    refused_weights("nf4-dq", "down_proj.weight.nested_quant_map", "down_proj.weight.nested_quant_maP", E_PARSE,
                    "no tensor model.layers.0.mlp.down_proj.weight.nested_quant_map");
    refused_weights("fp8", "down_proj.weight_scale", "down_proj.weight_scalE", E_PARSE,
                    "its module has no tensor weight_scale");
    refused_weights("fp8", "weight_scale\":{\"dtype\":\"F32\"", "weight_scale\":{\"dtype\":\"I32\"", E_UNSUPPORTED,
                    "numbers of I32");
    refused_weights("fp8-block", "down_proj.weight_scale_inv", "down_proj.weight_scale_inV", E_PARSE,
                    "its module has no tensor weight_scale");
    refused_weights("fp8-block", "weight_scale_inv\":{\"dtype\":\"F32\"", "weight_scale_inv\":{\"dtype\":\"I32\"", E_UNSUPPORTED,
                    "weight_scale_inv has dtype I32");
    refused_weights("int8", "down_proj.SCB", "down_proj.ScB", E_PARSE,
                    "down_proj.weight is quantized, but there is no tensor");
    refused_weights("int8", "mlp.down_proj.weight\":{\"dtype\":\"I8\"", "mlp.down_proj.weight\":{\"dtype\":\"U8\"",
                    E_UNSUPPORTED, "dtype U8");
}

static void a_checkpoint_is_not_quantized_twice(void **state) {
    copy_file("tests/models/tiny-nf4", "config.json", NULL, NULL, 0, 0);
    copy_file("tests/models/tiny-nf4", "model.safetensors", NULL, NULL, 0, 0);
    refused("fp8", E_UNSUPPORTED, "q_proj.weight is quantized to nf4 already, which cannot become fp8");
}

static void outliers_of_a_batch_need_int8_and_a_device_that_knows_them(void **state) {
    copy_file(source, "config.json", NULL, NULL, 0, 0);
    copy_file(source, "model.safetensors", NULL, NULL, 0, 0);
    struct dev *dev;
    struct model *m = NULL;
    struct err err = ERR_INIT;
    struct model_options options = {.dir = dir, .quantization = {.kind = QUANT_INT8, .outliers = INT8_OUTLIERS_BATCH}};
    assert_ok(dev_open(&dev, &(struct dev_options){.kind = test_device(), .threads = 1}, &err), &err);
    const struct backend *backend = dev->backend;
    struct backend lacks = *backend;
    lacks.kind = "one";
    lacks.knows_outliers_of_batch = false;
    dev->backend = &lacks;
    assert_err(model_open(&m, dev, &options, &err), E_UNSUPPORTED,
               "--int8-outliers batch does not run on one; row does, and so does --device cpu", &err);
    assert_null(m);
    options.quantization.outliers = INT8_OUTLIERS_ROW;
    assert_ok(model_open(&m, dev, &options, &err), &err);
    model_close(m);
    dev->backend = backend;
    bool is_known = op_linear_knows_outliers(dev, INT8_OUTLIERS_BATCH);
    dev_close(dev);
    for (int i = 0; i < 2 && is_known; i++) {
        struct rig r;
        rig_open_quantized(&r, i ? "tests/models/tiny-int8" : source, &(struct rig_options){DTYPE_F32, 1, false},
                           i ? "none outliers batch" : "int8 outliers batch");
        const struct layer_weights *l = &r.model->weights.layers[1];
        assert_true(l->qkv->outliers == INT8_OUTLIERS_BATCH && l->down->outliers == INT8_OUTLIERS_BATCH);
        assert_int_equal(r.model->weights.lm_head->outliers, INT8_OUTLIERS_ROW);
        rig_close(&r);
    }
    if (is_known) refused("none outliers batch", E_UNSUPPORTED, "none of the model's weights are int8");
    if (is_known) refused("int8 outliers batch except model", E_UNSUPPORTED, "none of the model's weights are int8");
}

static void other_methods_are_refused(void **state) {
    copy_file("tests/models/tiny-nf4", "model.safetensors", NULL, NULL, 0, 0);
    copy_file("tests/models/tiny-nf4", "config.json", "\"bitsandbytes\"", "\"bitsandbutes\"", 0, 14);
    refused(NULL, E_UNSUPPORTED, "quantization_config.quant_method \"bitsandbutes\" is not supported");
    copy_file("tests/models/tiny-int8", "model.safetensors", NULL, NULL, 0, 0);
    copy_file("tests/models/tiny-int8", "config.json", "threshold\": 6.0", "threshold\": 4.0", 0, 15);
    refused(NULL, E_UNSUPPORTED, "quantization_config.llm_int8_threshold 4 is not supported (6 is)");
}

/* The file's numbers begin behind the header; the tensor's place is in data_offsets. */
static void numbers_that_are_not_finite_are_refused(void **state) {
    static const uint8_t nan_bf16[2] = {0xc0, 0x7f};
    char path[600], *data;
    size_t size;
    struct err err = ERR_INIT;
    copy_file(source, "config.json", NULL, NULL, 0, 0);
    snprintf(path, sizeof path, "%s/model.safetensors", source);
    assert_ok(file_read(path, 1 << 20, &data, &size, &err), &err);
    uint64_t header;
    memcpy(&header, data, 8);
    const char *at = memmem(data, size, "\"model.layers.1.mlp.up_proj.weight\"", 35);
    assert_non_null(at);
    long first = strtol(strstr(at, "data_offsets\":[") + 15, NULL, 10);
    char *numbers = data + 8 + header + first;
    memcpy(numbers + 2 * (5 * 32 + 7), nan_bf16, 2);
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    FILE *f = fopen(path, "w");
    assert_int_equal(fwrite(data, 1, size, f), size);
    assert_int_equal(fclose(f), 0);
    free(data);
    refused("nf4", E_PARSE, "tensor model.layers.1.mlp.up_proj.weight: the number at [5, 7] is not finite");
    refused("int8", E_PARSE, "tensor model.layers.1.mlp.up_proj.weight: the number at [5, 7] is not finite");
}

static int make_dir(void **state) {
    return mkdtemp(dir) ? 0 : -1;
}

static int remove_dir(void **state) {
    char path[600];
    snprintf(path, sizeof path, "%s/config.json", dir);
    unlink(path);
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    unlink(path);
    return rmdir(dir);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(checkpoints_compute_what_transformers_computes),
    cmocka_unit_test(checkpoints_equal_our_own_quantization_of_their_source),
    cmocka_unit_test(weights_shrink_but_for_skipped_ones),
    cmocka_unit_test(every_family_runs_quantized),
    cmocka_unit_test(skipped_modules_are_named_by_their_parts),
    cmocka_unit_test(unknown_kinds_are_refused),
    cmocka_unit_test(rules_of_outliers_are_int8s),
    cmocka_unit_test(broken_checkpoints_are_refused_by_tensor),
    cmocka_unit_test(a_checkpoint_is_not_quantized_twice),
    cmocka_unit_test(outliers_of_a_batch_need_int8_and_a_device_that_knows_them),
    cmocka_unit_test(other_methods_are_refused),
    cmocka_unit_test(numbers_that_are_not_finite_are_refused),
};

int main(int argc, char **argv) {
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
