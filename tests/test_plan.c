/* test_plan.c - what a GPU will hold of a model, said beforehand: against what loading the
 * model takes, and against the arithmetic done once more by hand. */
#include "tests/unit.h"

#include "engine/engine.h"
#include "engine/model/model_private.h"
#include "engine/plan.h"
#include "kernels/backend.h"

#include <unistd.h>

#define MIB ((int64_t)1 << 20)

static struct engine_options of(const char *dir, const char *quantization) {
    struct engine_options o = ENGINE_OPTIONS_DEFAULT;
    o.model_dir = dir;
    o.quantization = quantization;
    return o;
}

static struct model_plan plan_of(const struct engine_options *o) {
    struct model_plan p;
    struct err err = ERR_INIT;
    assert_ok(model_plan(&p, o, &err), &err);
    return p;
}

static void add_scratch(struct weight_scratch *most, const struct weight *w) {
    if (!w) return;
    struct weight_scratch s = weight_scratch_planned(w->n, w->k, w->dtype, w->quant);
    if (s.numbers > most->numbers) most->numbers = s.numbers;
    if (s.codes > most->codes) most->codes = s.codes;
}

/* What a GPU, which this device need not be, would hold beside the weights. */
static int64_t scratch_of(const struct weights *w) {
    struct weight_scratch most = {0};
    for (int32_t i = 0; i < w->n_layers; i++) {
        const struct layer_weights *l = &w->layers[i];
        struct weight *const all[] = {l->qkv, l->o, l->up, l->down};
        for (size_t k = 0; k < sizeof all / sizeof *all; k++) add_scratch(&most, all[k]);
        for (int32_t e = 0; l->expert_up && e < w->n_experts; e++) {
            add_scratch(&most, l->expert_up[e]);
            add_scratch(&most, l->expert_down[e]);
        }
    }
    return (int64_t)(most.numbers + most.codes);
}

static void weights_take_what_was_planned(void **state) {
    static const char *const dirs[] = {"tests/models/tiny-mistral", "tests/models/tiny-falcon-40b", "tests/models/tiny-mixtral",
                                       "tests/models/tiny-nf4-dq", "tests/models/tiny-fp8-block"};
    static const char *const kinds[] = {"none", "int8", "fp8", "nf4", "nf4-dq"};
    for (size_t d = 0; d < sizeof dirs / sizeof *dirs; d++)
        for (size_t k = 0; k < (d >= 3 ? 1 : sizeof kinds / sizeof *kinds); k++) {
            struct engine_options o = of(dirs[d], kinds[k]);
            o.dtype = "float32";
            struct model_plan p = plan_of(&o);
            struct err err = ERR_INIT;
            struct dev *dev;
            struct model *m;
            struct model_options mo = {.dir = dirs[d], .dtype = DTYPE_F32};
            assert_ok(quantization_parse(&mo.quantization, kinds[k], &err), &err);
            assert_ok(dev_open(&dev, &(struct dev_options){.kind = "cpu", .threads = 1}, &err), &err);
            assert_ok(model_open(&m, dev, &mo, &err), &err);
            int64_t scratch = scratch_of(&m->weights);
            assert_int_equal(scratch > 0, k > 0 || d >= 3);
            double held = (double)model_weight_bytes(m), planned = (double)(p.weight_bytes - scratch - model_beside_bytes(m));
            if (planned < held || planned > 1.01 * held) /* with 4 bits a block more a tensor */
                fail_msg("%s %s: %.0f planned, %.0f held", dirs[d], kinds[k], planned, held);
            struct runner_options r = plan_runner(&o, true);
            assert_true(p.step_bytes >= runner_tensor_bytes(m, &r));
            model_close(m);
            dev_close(dev);
        }
}

static void memory_is_divided_as_documented(void **state) {
    struct engine_options o = of("tests/models/tiny-mistral", NULL);
    struct model_info info;
    struct err err = ERR_INIT;
    assert_ok(model_describe(&info, o.model_dir, &err), &err);
    o.max_num_seqs = 16;
    o.max_num_batched_tokens = 64;
    o.max_model_len = 32;
    struct model_plan p = plan_of(&o);
    assert_string_equal(info.dtype, "bfloat16");
    assert_int_equal(p.kv_token_bytes, 2 * info.n_layers * info.n_kv_heads * info.head_dim * 2);
    assert_int_equal(model_plan_kv_tokens(&p, &o, (int64_t)16 << 30), 2 * 16 * 32); /* all that can be used */
    int64_t gpu = p.weight_bytes + p.step_bytes + 1000 * MIB;
    int64_t room = (int64_t)(0.95 * (double)(gpu - p.weight_bytes)) - p.step_bytes - 768 * MIB;
    o.max_model_len = p.max_model_len = info.context;
    o.max_num_seqs = p.max_num_seqs = 4096;
    assert_true(room > 0);
    int64_t useful = 2 * (int64_t)4096 * ((info.context + 31) / 32 * 32), fits = room / p.kv_token_bytes / 32 * 32;
    assert_int_equal(model_plan_kv_tokens(&p, &o, gpu), fits < useful ? fits : useful);
    o.gpu_memory_limit = p.weight_bytes + p.step_bytes + 769 * MIB;
    assert_int_equal(model_plan_kv_tokens(&p, &o, gpu), MIB / p.kv_token_bytes / 32 * 32);
    o.gpu_memory_limit = 0;
    assert_int_equal(model_plan_kv_tokens(&p, &o, p.weight_bytes + 700 * MIB), 0);
    assert_int_equal(model_plan_kv_tokens(&p, &o, p.weight_bytes - 1), 0);
}

static void an_fp8_cache_and_quantized_weights_take_less(void **state) {
    struct engine_options plain = of("tests/models/demo", "none"), small = of("tests/models/demo", "nf4-dq");
    small.kv_cache_dtype = "fp8";
    struct model_plan a = plan_of(&plain), b = plan_of(&small);
    assert_int_equal(a.kv_token_bytes, 4 * 2 * 4 * 32 * 2);
    assert_int_equal(b.kv_token_bytes, 4 * 2 * 4 * (32 + 4));
    assert_true(b.weight_bytes < a.weight_bytes);
    struct err err = ERR_INIT;
    struct model_plan none;
    struct engine_options bad = of("tests/models/tiny-nf4", "int8"), gone = of("tests/models/none", NULL);
    assert_err(model_plan(&none, &bad, &err), E_UNSUPPORTED, "quantized to nf4 already", &err);
    assert_err(model_plan(&none, &gone, &err), E_NOT_FOUND, "config.json", &err);
}

/* A checkpoint's, and those that config.json alone describes; beside them room to turn the largest back. */
static void weights_in_fp8_blocks_take_a_byte_each(void **state) {
    struct engine_options blocks = of("tests/models/tiny-fp8-block", NULL), plain = of("tests/models/tiny-llama3", NULL);
    int64_t numbers = 2 * (128 * 32 + 32 * 64 + 96 * 32 + 32 * 48), scales = 2 * (8 * 2 + 2 * 3 + 6 * 2 + 2 * 2);
    int64_t scratch = 2 * 128 * 32;
    assert_int_equal(plan_of(&blocks).weight_bytes, plan_of(&plain).weight_bytes - numbers + 4 * scales + scratch);
    blocks.load_format = "dummy";
    plain.load_format = "dummy";
    assert_int_equal(plan_of(&blocks).weight_bytes, plan_of(&plain).weight_bytes - numbers + 4 * scales + scratch);
}

/* ---------------------------------------------------------------- rooms of products of codes */

struct shape { /* of a model whose config.json alone is there */
    const char *type, *more;
    int64_t layers, hidden, heads, kv_heads, ffn, vocab, experts;
};
static const struct shape mistral_7b = {"mistral", "", 32, 4096, 32, 8, 14336, 32000, 1};
static const struct shape llama_70b = {"llama", "", 80, 8192, 64, 8, 28672, 128256, 1};
static const struct shape mixtral = {
    "mixtral", ",\"num_local_experts\":8,\"num_experts_per_tok\":2", 32, 4096, 32, 8, 14336, 32000,
    8};

enum { DIR_SIZE = 32 };

static void shape_write(char dir[DIR_SIZE], const struct shape *s) {
    char path[64];
    snprintf(dir, DIR_SIZE, "/tmp/batchd-test-plan-XXXXXX");
    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/config.json", dir);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fprintf(f,
            "{\"model_type\":\"%s\",\"num_hidden_layers\":%d,\"hidden_size\":%d,\"num_attention_heads\":%d,"
            "\"num_key_value_heads\":%d,\"intermediate_size\":%d,\"vocab_size\":%d,\"torch_dtype\":\"bfloat16\",\"tie_word_embeddings\":false%s}",
            s->type, (int)s->layers, (int)s->hidden, (int)s->heads, (int)s->kv_heads, (int)s->ffn, (int)s->vocab, s->more);
    assert_int_equal(fclose(f), 0);
}

static void shape_remove(const char *dir) {
    char path[64];
    snprintf(path, sizeof path, "%s/config.json", dir);
    unlink(path);
    rmdir(dir);
}

static int64_t planned(const struct shape *s, const char *quantization) {
    char dir[DIR_SIZE];
    shape_write(dir, s);
    struct engine_options o = of(dir, quantization);
    o.load_format = "dummy";
    o.max_model_len = 1024;
    int64_t bytes = plan_of(&o).weight_bytes, tables = 2 * 1024 * (128 / 2) * 4;
    o.max_model_len = 2048;
    assert_int_equal(plan_of(&o).weight_bytes, bytes + tables);
    shape_remove(dir);
    return bytes - tables;
}

/* Embedding, head, router and norms stay as they are; the rest is `number` bytes a number and `row` a row. */
static int64_t weights_of(const struct shape *s, int64_t number, int64_t row) {
    int64_t h = s->hidden, q = h, qkv = q + 2 * s->kv_heads * 128;
    int64_t router = s->experts > 1 ? 16 * h * 2 : 0; /* 8 rows and 8 of zeros */
    int64_t attention = number * (qkv * h + h * q) + row * (qkv + h);
    int64_t mlp = number * (2 * s->ffn * h + h * s->ffn) + row * (2 * s->ffn + h);
    return 2 * s->vocab * h * 2 + s->layers * (attention + router + s->experts * mlp + 2 * h * 4) + h * 4;
}

/* The parts in the order in which they lie, each with an end at a multiple of 256 bytes. Of gate and up
 * together, n = 28,672 or 57,344: their integers make theirs the largest. */
static void int8_has_room_for_codes_columns_and_integers(void **state) {
    int64_t mistral = 4096LL * 4096 + 4096 * 4 + 513 * (4096 / 32) * 4 + (513 * 4 + 252) + 513 * 4096 * 2 + 4096 * 4 +
                      4096LL * 28672 + 2048LL * 28672 * 4;
    int64_t llama = 4096LL * 8192 + 4096 * 4 + 513 * (8192 / 32) * 4 + (513 * 4 + 252) + 513 * 8192 * 2 + 8192 * 4 +
                    8192LL * 57344 + 2048LL * 57344 * 4;
    assert_int_equal(planned(&mistral_7b, "int8"), weights_of(&mistral_7b, 1, 4) + mistral);
    assert_int_equal(planned(&llama_70b, "int8"), weights_of(&llama_70b, 1, 4) + llama);
    assert_int_equal(planned(&mixtral, "int8"), weights_of(&mixtral, 1, 4) + mistral); /* one expert at a time */
}

/* Of the longest rows, those of the MLP's way down. */
static void fp8_has_room_for_the_codes_of_4096_rows(void **state) {
    assert_int_equal(planned(&mistral_7b, "fp8"), weights_of(&mistral_7b, 1, 4) + 4096LL * 14336 + 4096 * 4);
    assert_int_equal(planned(&llama_70b, "fp8"), weights_of(&llama_70b, 1, 4) + 4096LL * 28672 + 4096 * 4);
    assert_int_equal(planned(&mixtral, "fp8"), weights_of(&mixtral, 1, 4) + 4096LL * 14336 + 4096 * 4);
}

static void numbers_of_16_bits_need_no_room(void **state) {
    assert_int_equal(planned(&mistral_7b, "none"), weights_of(&mistral_7b, 2, 0));
    assert_int_equal(planned(&llama_70b, "none"), weights_of(&llama_70b, 2, 0));
    assert_int_equal(planned(&mixtral, "none"), weights_of(&mixtral, 2, 0));
}

/* ---------------------------------------------------------------- what does not fit, and what does */

static int64_t memory_there_is;

static int64_t that_memory(const struct dev *dev) {
    return memory_there_is;
}

static void no_reserve(struct dev *dev, const struct weight *w) {}

/* Mistral-7B's sizes, on a device of so many bytes that has scratch as a GPU has, or none as the CPU. */
static void assert_refused(int64_t memory, bool has_scratch, enum quant_kind kind, const char *text) {
    char dir[DIR_SIZE];
    struct dev *dev;
    struct model *m = NULL;
    struct err err = ERR_INIT;
    struct model_options mo = {.dir = dir, .dtype = DTYPE_BF16, .dummy = true, .quantization = {.kind = kind}};
    shape_write(dir, &mistral_7b);
    assert_ok(dev_open(&dev, &(struct dev_options){.kind = "cpu", .threads = 1}, &err), &err);
    const struct backend *own = dev->backend;
    struct backend small = *own;
    small.memory_available = that_memory;
    small.weight_reserve = has_scratch ? no_reserve : NULL;
    memory_there_is = memory;
    dev->backend = &small;
    assert_err(model_open(&m, dev, &mo, &err), E_NO_MEMORY, text, &err);
    dev->backend = own;
    dev_close(dev);
    shape_remove(dir);
}

static void a_refusal_counts_scratch_and_names_what_fits_with_it(void **state) {
    int64_t int8 = weights_of(&mistral_7b, 1, 4), room = planned(&mistral_7b, "int8") - int8;
    int64_t nf4 = planned(&mistral_7b, "nf4");
    char text[120];
    assert_true(nf4 < int8);
    snprintf(text, sizeof text, "; --quantization int8 takes %d", (int)((int8 + room) / MIB));
    assert_refused(int8 + room, true, QUANT_NONE, text);
    snprintf(text, sizeof text, "; --quantization nf4 takes %d", (int)(nf4 / MIB));
    assert_refused(int8 + room - 1, true, QUANT_NONE, text);
    snprintf(text, sizeof text, "; --quantization int8 takes %d", (int)(int8 / MIB));
    assert_refused(int8, false, QUANT_NONE, text);
    snprintf(text, sizeof text, "the weights need %d MiB in bfloat16, %d MiB are available", (int)((int8 + room) / MIB),
             (int)((int8 + room - 1) / MIB));
    assert_refused(int8 + room - 1, true, QUANT_INT8, text);
}

/* Against what engine_open divides by: --gpu-memory-limit is for all that the model takes. */
static void a_model_knows_what_lies_beside_its_weights(void **state) {
    static const char *const dirs[] = {"tests/models/tiny-phi3", "tests/models/tiny-mpt", "tests/models/tiny-nf4"};
    for (size_t d = 0; d < sizeof dirs / sizeof *dirs; d++) {
        struct engine_options o = of(dirs[d], NULL);
        struct err err = ERR_INIT;
        struct dev *dev;
        struct model *m;
        assert_ok(dev_open(&dev, &(struct dev_options){.kind = "cpu", .threads = 1}, &err), &err);
        const struct backend *own = dev->backend;
        struct backend gpu = *own;
        gpu.weight_reserve = no_reserve;
        dev->backend = &gpu;
        assert_ok(model_open(&m, dev, &(struct model_options){.dir = dirs[d], .dtype = DTYPE_F32}, &err), &err);
        o.dtype = "float32";
        double planned = (double)plan_of(&o).weight_bytes, takes = (double)(model_weight_bytes(m) + model_beside_bytes(m));
        if (planned < takes || planned > 1.01 * takes) fail_msg("%s: %.0f planned, takes %.0f", dirs[d], planned, takes);
        assert_int_equal(model_beside_bytes(m) > scratch_of(&m->weights), m->rope[0].n_rotated > 0);
        assert_int_equal(scratch_of(&m->weights) > 0, strstr(dirs[d], "nf4") != NULL);
        model_close(m);
        dev->backend = own;
        dev_close(dev);
    }
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(weights_take_what_was_planned),
    cmocka_unit_test(memory_is_divided_as_documented),
    cmocka_unit_test(weights_in_fp8_blocks_take_a_byte_each),
    cmocka_unit_test(an_fp8_cache_and_quantized_weights_take_less),
    cmocka_unit_test(int8_has_room_for_codes_columns_and_integers),
    cmocka_unit_test(fp8_has_room_for_the_codes_of_4096_rows),
    cmocka_unit_test(numbers_of_16_bits_need_no_room),
    cmocka_unit_test(a_refusal_counts_scratch_and_names_what_fits_with_it),
    cmocka_unit_test(a_model_knows_what_lies_beside_its_weights),
};

UNIT_MAIN(tests)
