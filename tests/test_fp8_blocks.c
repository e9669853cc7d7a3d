/* test_fp8_blocks.c - weights in fp8 with scales for blocks: every number, every border; models
 * whose weights stay so compute what they compute with the numbers. Models against torch are in
 * test_quantization.c, products in test_op_fp8_blocks.c. */
#include "tests/aid_jobs.h"
#include "tests/aid_model.h"

#include "base/file.h"
#include "base/mem.h"
#include "engine/model/fp8_blocks.h"
#include "engine/model/model_private.h"
#include "engine/model/quantization.h"

#include <jansson.h>
#include <math.h>
#include <unistd.h>

static const char name[] = "a.weight";

/* One weight [n, k] of all codes but NaN in turn, with scales [sn, sk] of the dtype "F32" or
 * "BF16"; sk 0: with scales [sn]. */
static struct checkpoint *make(const char *suffix, int64_t n, int64_t k, int64_t sn, int64_t sk, const char *scale_dtype) {
    char header[400], shape[40], *path = temp_path("w.safetensors");
    bool is_f32 = strcmp(scale_dtype, "F32") == 0;
    snprintf(shape, sizeof shape, sk ? "%ld,%ld" : "%ld", (long)sn, (long)sk);
    if (sk == 0) sk = 1;
    long codes = (long)(n * k), scales = (long)(sn * sk * (is_f32 ? 4 : 2));
    int bytes = snprintf(header, sizeof header,
                         "{\"a.weight\":{\"dtype\":\"F8_E4M3\",\"shape\":[%ld,%ld],\"data_offsets\":[0,%ld]},"
                         "\"a.%s\":{\"dtype\":\"%s\",\"shape\":[%s],\"data_offsets\":[%ld,%ld]}}",
                         (long)n, (long)k, codes, suffix, scale_dtype, shape, codes, codes + scales);
    uint64_t length = (uint64_t)bytes;
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fwrite(&length, 8, 1, f);
    fwrite(header, 1, (size_t)bytes, f);
    for (long i = 0; i < codes; i++) putc((int)((i * 7 % 127) | (i % 3 ? 0 : 128)), f);
    for (int64_t i = 0; i < sn * sk; i++) {
        float x = 0.01f * (float)(i + 1);
        uint16_t half = bf16_from_f32(x);
        fwrite(is_f32 ? (void *)&x : (void *)&half, is_f32 ? 4 : 2, 1, f);
    }
    fclose(f);
    struct checkpoint *c;
    struct err err = ERR_INIT;
    assert_ok(checkpoint_open_file(&c, path, &err), &err);
    free(path);
    return c;
}

static float scale_at(const struct checkpoint *c, const char *suffix, int64_t i) {
    char scale_name[40];
    float x;
    snprintf(scale_name, sizeof scale_name, "a.%s", suffix);
    const struct checkpoint_tensor *t = checkpoint_find(c, scale_name);
    numbers_read(&x, (const char *)t->data + (size_t)i * dtype_bytes(t->dtype), t->dtype, 1);
    return x;
}

static void check_numbers(const char *suffix, int64_t n, int64_t k, struct fp8_block block, const char *scale_dtype,
                          enum dtype dtype) {
    int64_t sn = (n + block.rows - 1) / block.rows, sk = (k + block.cols - 1) / block.cols;
    struct checkpoint *c = make(suffix, n, k, sn, sk, scale_dtype);
    const uint8_t *codes = checkpoint_find(c, name)->data;
    struct tensor t;
    struct fp8_blocks kept;
    struct err err = ERR_INIT;
    assert_true(fp8_blocks_is(c, name));
    assert_ok(fp8_blocks_keep(NULL, c, name, n, k, block, &err), &err);
    assert_ok(fp8_blocks_keep(&kept, c, name, n, k, block, &err), &err);
    assert_ptr_equal(kept.codes, codes);
    for (int64_t i = 0; i < sn * sk; i++) assert_true(kept.scale[i] == scale_at(c, suffix, i));
    free(kept.scale);
    assert_ok(fp8_blocks_read(&t, c, name, n, k, block, dtype, &err), &err);
    assert_int_equal(t.dtype, dtype == DTYPE_BF16 ? DTYPE_BF16 : DTYPE_F32);
    for (int64_t i = 0; i < n * k; i++) {
        float x = fp8_to_f32(codes[i]) * scale_at(c, suffix, i / k / block.rows * sk + i % k / block.cols);
        if (t.dtype == DTYPE_BF16) assert_int_equal(((uint16_t *)t.data)[i], bf16_from_f32(x));
        else assert_memory_equal((float *)t.data + i, &x, 4);
    }
    free(t.data);
    checkpoint_close(c);
}

static void a_number_is_code_times_scale(void **state) {
    check_numbers("weight_scale_inv", 1, 1, (struct fp8_block){128, 128}, "F32", DTYPE_F32);
    check_numbers("weight_scale_inv", 300, 257, (struct fp8_block){128, 128}, "F32", DTYPE_F32);
    check_numbers("weight_scale_inv", 256, 128, (struct fp8_block){128, 128}, "BF16", DTYPE_BF16);
    check_numbers("weight_scale", 33, 70, (struct fp8_block){16, 24}, "BF16", DTYPE_F16);
    check_numbers("weight_scale", 5, 9, (struct fp8_block){1, 4}, "F32", DTYPE_BF16);
    check_numbers("weight_scale_inv", 2100, 1000, (struct fp8_block){128, 128}, "F32", DTYPE_BF16); /* several threads */
}

static void other_scales_are_not_of_blocks(void **state) {
    struct checkpoint *rows = make("weight_scale", 7, 5, 7, 1, "F32"), *one = make("weight_scale", 7, 5, 1, 1, "F32");
    assert_false(fp8_blocks_is(rows, name));
    assert_false(fp8_blocks_is(one, name));
    assert_false(fp8_blocks_is(one, "a.weight_scale"));
    assert_false(fp8_blocks_is(one, "b.weight"));
    checkpoint_close(rows);
    checkpoint_close(one);
}

/* transformers calls it weight_scale_inv where there are no blocks either. */
static void one_scale_is_that_of_all_rows_under_either_name(void **state) {
    static const char *const suffixes[] = {"weight_scale_inv", "weight_scale"};
    for (int i = 0; i < 2; i++) {
        struct checkpoint *c = make(suffixes[i], 7, 5, 1, 0, "BF16");
        struct quantized_tensor t;
        struct err err = ERR_INIT;
        assert_int_equal(quantized_kind(c, name), QUANT_FP8);
        assert_ok(quantized_tensor_read(&t, c, name, 7, 5, &err), &err);
        for (int r = 0; r < 7; r++) assert_true(t.scale[r] == scale_at(c, suffixes[i], 0));
        quantized_tensor_clear(&t);
        checkpoint_close(c);
    }
}

static void put_code(int code, long from_end) {
    char *path = temp_path("w.safetensors");
    FILE *f = fopen(path, "r+");
    assert_non_null(f);
    fseek(f, -from_end, SEEK_END);
    putc(code, f);
    fclose(f);
    free(path);
}

static void a_plan_does_not_read_the_codes(void **state) {
    struct checkpoint *c = make("weight_scale", 7, 5, 7, 1, "F32");
    struct quantized_tensor t;
    struct err err = ERR_INIT;
    assert_ok(quantized_tensor_check(c, name, &err), &err);
    put_code(0xff, 7 * 4 + 7 * 5 - (3 * 5 + 2));
    assert_ok(quantized_tensor_read(&t, c, name, 7, 5, &err), &err);
    quantized_tensor_clear(&t);
    assert_err(quantized_tensor_check(c, name, &err), E_PARSE, "a.weight: the number at [3, 2] is not finite", &err);
    checkpoint_close(c);
}

static void refused(int64_t sn, int64_t sk, const char *scale_dtype, struct fp8_block block, int64_t k, int code,
                    const char *part) {
    struct checkpoint *c = make("weight_scale_inv", 40, 30, sn, sk, scale_dtype);
    struct tensor t;
    struct fp8_blocks kept;
    struct err err = ERR_INIT;
    assert_err(fp8_blocks_keep(NULL, c, name, 40, k, block, &err), code, part, &err);
    assert_err(fp8_blocks_keep(&kept, c, name, 40, k, block, &err), code, part, &err);
    assert_err(fp8_blocks_read(&t, c, name, 40, k, block, DTYPE_F32, &err), code, part, &err);
    checkpoint_close(c);
}

static void what_does_not_fit_is_refused_by_name(void **state) {
    struct fp8_block block = {16, 16};
    refused(3, 2, "F32", (struct fp8_block){0}, 30, E_PARSE, "a.weight_scale_inv has scales for blocks, but config.json");
    refused(3, 3, "F32", block, 30, E_PARSE, "a.weight_scale_inv has shape [3, 3], expected [3, 2] for blocks of 16 x 16");
    refused(2, 2, "F32", block, 30, E_PARSE, "expected [3, 2]");
    refused(3, 2, "F32", block, 31, E_PARSE, "a.weight does not have the shape [40, 31]");
    refused(3, 2, "I16", block, 30, E_UNSUPPORTED, "a.weight_scale_inv has dtype I16");
}

static void refused_number(const struct checkpoint *c, const char *part) {
    struct fp8_block block = {16, 16};
    struct tensor t;
    struct fp8_blocks kept;
    struct err err = ERR_INIT;
    assert_err(fp8_blocks_read(&t, c, name, 40, 30, block, DTYPE_F32, &err), E_PARSE, part, &err);
    assert_err(fp8_blocks_keep(&kept, c, name, 40, 30, block, &err), E_PARSE, part, &err);
}

/* The last scale, that of rows from 32 and columns from 16 on. */
static void put_scale(float x) {
    char *path = temp_path("w.safetensors");
    FILE *f = fopen(path, "r+");
    assert_non_null(f);
    fseek(f, -4, SEEK_END);
    fwrite(&x, 4, 1, f);
    fclose(f);
    free(path);
}

/* The files are patched in the mapping: they are in this process's own folder. */
static void numbers_that_are_not_finite_are_refused(void **state) {
    struct checkpoint *c = make("weight_scale_inv", 40, 30, 3, 2, "F32");
    struct fp8_blocks kept;
    struct err err = ERR_INIT;
    put_code(0x7f, 40 * 30 + 6 * 4 - (20 * 30 + 17));
    refused_number(c, "a.weight: a number from [20, 16] on is not finite");
    assert_ok(fp8_blocks_keep(NULL, c, name, 40, 30, (struct fp8_block){16, 16}, &err), &err); /* a plan reads scales alone */
    put_scale(1.0f / 0.0f);
    refused_number(c, "a.weight_scale_inv: number 5 is not finite");
    checkpoint_close(c);
    c = make("weight_scale_inv", 40, 30, 3, 2, "F32");
    put_scale(3e38f);
    refused_number(c, "16] on is not finite");
    for (long row = 32; row < 40; row++)
        for (long i = 16; i < 30; i++) put_code((int)(i & 1) << 7 | 0x38, 40 * 30 + 6 * 4 - (row * 30 + i)); /* 1 and -1 */
    assert_ok(fp8_blocks_keep(&kept, c, name, 40, 30, (struct fp8_block){16, 16}, &err), &err);
    free(kept.scale);
    checkpoint_close(c);
}

/* ---------------------------------------------------------------- models */

enum { N_IDS = 40, MAX_TENSORS = 400, ROWS = 24, COLS = 20 };

struct written { /* a tensor on its way into a file */
    const struct checkpoint_tensor *from;
    uint8_t *codes; /* of what is put in blocks, and: */
    float *scale;
    int64_t n_scales;
};

static bool is_for_blocks(const struct checkpoint_tensor *t) {
    return t->n_dims == 2 && (strstr(t->name, ".layers.") || strstr(t->name, ".h.")) && !strstr(t->name, "norm") &&
           !strstr(t->name, ".gate.weight") && strstr(t->name, ".weight");
}

static void put_in_blocks(struct written *w) {
    int64_t n = w->from->shape[0], k = w->from->shape[1], sk = (k + COLS - 1) / COLS;
    float *numbers = mem_zalloc((size_t)(n * k), sizeof *numbers);
    numbers_read(numbers, w->from->data, w->from->dtype, n * k);
    w->n_scales = (n + ROWS - 1) / ROWS * sk;
    w->codes = mem_zalloc((size_t)(n * k), 1);
    w->scale = mem_zalloc((size_t)w->n_scales, sizeof *w->scale);
    for (int64_t i = 0; i < n * k; i++) {
        float *scale = &w->scale[i / k / ROWS * sk + i % k / COLS];
        *scale = fmaxf(*scale, fabsf(numbers[i]) / 448);
    }
    for (int64_t i = 0; i < n * k; i++) {
        float scale = w->scale[i / k / ROWS * sk + i % k / COLS];
        w->codes[i] = scale > 0 ? fp8_from_f32(numbers[i] / scale) : 0;
    }
    free(numbers);
}

static void describe(json_t *header, const char *tensor, const char *dtype, const struct checkpoint_tensor *shape_of,
                     int64_t rows, size_t *at, size_t bytes) {
    json_t *shape = json_array();
    for (int32_t i = 0; i < shape_of->n_dims; i++) json_array_append_new(shape, json_integer(shape_of->shape[i]));
    if (rows > 0) {
        json_array_set_new(shape, 0, json_integer(rows));
        json_array_set_new(shape, 1, json_integer((shape_of->shape[1] + COLS - 1) / COLS));
    }
    json_object_set_new(header, tensor, json_pack("{s:s, s:o, s:[I, I]}", "dtype", dtype, "shape", shape, "data_offsets",
                                                  (json_int_t)*at, (json_int_t)(*at + bytes)));
    *at += bytes;
}

static void write_tensors(FILE *f, struct written *w, size_t n) {
    json_t *header = json_object();
    size_t at = 0;
    for (size_t i = 0; i < n; i++) {
        const struct checkpoint_tensor *t = w[i].from;
        char scale[200];
        snprintf(scale, sizeof scale, "%s_scale_inv", t->name);
        if (w[i].codes) describe(header, t->name, "F8_E4M3", t, 0, &at, t->bytes / dtype_bytes(t->dtype));
        else describe(header, t->name, t->dtype_text, t, 0, &at, t->bytes);
        if (w[i].codes) describe(header, scale, "F32", t, (t->shape[0] + ROWS - 1) / ROWS, &at, (size_t)w[i].n_scales * 4);
    }
    char *text = json_dumps(header, JSON_COMPACT);
    uint64_t length = strlen(text);
    fwrite(&length, 8, 1, f);
    fwrite(text, 1, length, f);
    for (size_t i = 0; i < n; i++) {
        size_t bytes = w[i].from->bytes;
        fwrite(w[i].codes ? w[i].codes : w[i].from->data, 1, w[i].codes ? bytes / dtype_bytes(w[i].from->dtype) : bytes, f);
        if (w[i].codes) fwrite(w[i].scale, 4, (size_t)w[i].n_scales, f);
    }
    free(text);
    json_decref(header);
}

static void write_config(const char *from, const char *to) {
    json_t *config = json_load_file(from, 0, NULL);
    assert_non_null(config);
    json_object_set_new(config, "quantization_config",
                        json_pack("{s:s, s:[i, i]}", "quant_method", "fp8", "weight_block_size", ROWS, COLS));
    assert_int_equal(json_dump_file(config, to, 0), 0);
    json_decref(config);
}

/* The model of tests/models with the linear layers' weights in blocks, in dir. */
static void write_model(const char *model, const char *dir) {
    char from[300], to[300];
    struct checkpoint *c;
    struct err err = ERR_INIT;
    static struct written w[MAX_TENSORS];
    size_t n = 0;
    snprintf(from, sizeof from, "tests/models/%s/config.json", model);
    snprintf(to, sizeof to, "%s/config.json", dir);
    write_config(from, to);
    snprintf(from, sizeof from, "tests/models/%s/model.safetensors", model);
    snprintf(to, sizeof to, "%s/model.safetensors", dir);
    assert_ok(checkpoint_open_file(&c, from, &err), &err);
    assert_true(checkpoint_n_tensors(c) <= MAX_TENSORS);
    for (; n < checkpoint_n_tensors(c); n++) {
        w[n] = (struct written){.from = checkpoint_at(c, n)};
        if (is_for_blocks(w[n].from)) put_in_blocks(&w[n]);
    }
    FILE *f = fopen(to, "w");
    assert_non_null(f);
    write_tensors(f, w, n);
    assert_int_equal(fclose(f), 0);
    for (size_t i = 0; i < n; i++) {
        free(w[i].codes);
        free(w[i].scale);
    }
    checkpoint_close(c);
}

static float *logits_of(struct rig *r) {
    int32_t ids[N_IDS];
    for (int32_t i = 0; i < N_IDS; i++) ids[i] = (7 * i + 3) % 60;
    float *logits = mem_zalloc(N_IDS * (size_t)r->vocab, sizeof *logits);
    rig_logits(r, 0, ids, N_IDS, 16, 0, logits);
    return logits;
}

static int64_t planned_bytes(const char *dir, enum dtype dtype, const char *quantization, bool keeps_fp8_blocks) {
    struct model_folder *f;
    struct quantization q;
    struct weights_plan plan;
    struct err err = ERR_INIT;
    assert_ok(model_folder_open(&f, dir, false, &err), &err);
    assert_ok(quantization_parse(&q, quantization, &err), &err);
    assert_ok(weights_plan(&plan, &f->config, f->checkpoint, dtype, &q, keeps_fp8_blocks, &err), &err);
    model_folder_close(f);
    return plan.bytes;
}

/* Codes that stay codes give every logit the bits that their numbers give it, in less memory. */
static void check_model(const char *dir, enum dtype dtype, const char *quantization, bool is_smaller) {
    struct rig kept, expanded;
    rig_open_quantized(&kept, dir, &(struct rig_options){dtype, 2, false}, quantization);
    rig_open_expanded(&expanded, dir, &(struct rig_options){dtype, 1, false}, quantization);
    float *a = logits_of(&kept), *b = logits_of(&expanded);
    assert_memory_equal(a, b, N_IDS * (size_t)kept.vocab * sizeof *a);
    int64_t few = model_weight_bytes(kept.model), many = model_weight_bytes(expanded.model);
    bool keeps = weight_keeps_fp8_blocks(kept.dev);
    if (keeps && is_smaller) assert_true(few < many);
    else assert_int_equal(few, many);
    assert_true(planned_bytes(dir, dtype, quantization, keeps) >= few);
    assert_true(planned_bytes(dir, dtype, quantization, false) >= many);
    if (!quantization) assert_int_equal(planned_bytes(dir, dtype, NULL, keeps), few);
    free(a);
    free(b);
    rig_close(&kept);
    rig_close(&expanded);
}

/* Rows of several tensors in a weight, a tensor's rows in several places, biases, experts. */
static void models_compute_the_same_with_codes_as_with_their_numbers(void **state) {
    static const char *const models[] = {"tiny-mistral", "tiny-qwen2", "tiny-phi3", "tiny-falcon-40b", "tiny-mixtral"};
    char dir[] = "/tmp/batchd-blocks-XXXXXX", file[100];
    assert_non_null(mkdtemp(dir));
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        write_model(models[i], dir);
        check_model(dir, DTYPE_F32, NULL, true);
        check_model(dir, DTYPE_BF16, NULL, true);
        check_model(dir, DTYPE_BF16, "nf4", false);
        check_model(dir, DTYPE_F32, "nf4 except layers.0,h.0", true);
    }
    snprintf(file, sizeof file, "%s/config.json", dir);
    unlink(file);
    snprintf(file, sizeof file, "%s/model.safetensors", dir);
    unlink(file);
    rmdir(dir);
}

/* What config.json alone says: the same memory as the checkpoint, and the same numbers each time. */
static void dummy_weights_are_in_blocks_too(void **state) {
    static const char dir[] = "tests/models/tiny-fp8-block";
    int64_t biases = 2 * 4 * (128 + 32 + 96 + 32); /* of qkv, o, up and down in two layers; dummies have none */
    struct rig loaded, dummies[2];
    float *logits[2];
    rig_open(&loaded, dir, &(struct rig_options){DTYPE_BF16, 1, false});
    for (int i = 0; i < 2; i++) {
        rig_open(&dummies[i], dir, &(struct rig_options){DTYPE_BF16, 1 + i, true});
        assert_int_equal(model_weight_bytes(dummies[i].model), model_weight_bytes(loaded.model) - biases);
        logits[i] = logits_of(&dummies[i]);
    }
    assert_memory_equal(logits[0], logits[1], N_IDS * (size_t)loaded.vocab * sizeof(float));
    double squares = 0;
    for (int64_t i = 0; i < N_IDS * (int64_t)loaded.vocab; i++) squares += (double)logits[0][i] * (double)logits[0][i];
    double rms = sqrt(squares / (N_IDS * (double)loaded.vocab));
    assert_true(rms > 0.3 && rms < 3); /* rows of the head are as long as a norm makes them short */
    for (int i = 0; i < 2; i++) {
        free(logits[i]);
        rig_close(&dummies[i]);
    }
    rig_close(&loaded);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(a_number_is_code_times_scale),
    cmocka_unit_test(other_scales_are_not_of_blocks),
    cmocka_unit_test(one_scale_is_that_of_all_rows_under_either_name),
    cmocka_unit_test(a_plan_does_not_read_the_codes),
    cmocka_unit_test(what_does_not_fit_is_refused_by_name),
    cmocka_unit_test(numbers_that_are_not_finite_are_refused),
    cmocka_unit_test(models_compute_the_same_with_codes_as_with_their_numbers),
    cmocka_unit_test(dummy_weights_are_in_blocks_too),
};

UNIT_MAIN(tests)
