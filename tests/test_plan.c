/* test_plan.c - what a GPU will hold of a model, said beforehand: against what loading the
 * model takes, and against the arithmetic done once more by hand. */
#include "tests/unit.h"

#include "engine/engine.h"
#include "engine/model/model.h"
#include "engine/plan.h"
#include "kernels/dev.h"

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
            double held = (double)model_weight_bytes(m), planned = (double)p.weight_bytes;
            bool has_scratch = strncmp(kinds[k], "nf4", 3) == 0 || d >= 3; /* room to turn weights back, which a CPU has not */
            if (planned < held || (!has_scratch && planned > 1.001 * held))
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

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(weights_take_what_was_planned),
    cmocka_unit_test(memory_is_divided_as_documented),
    cmocka_unit_test(weights_in_fp8_blocks_take_a_byte_each),
    cmocka_unit_test(an_fp8_cache_and_quantized_weights_take_less),
};

UNIT_MAIN(tests)
