/* test_roof.c - roofs against tests/data/roof/make_roof.py, which counts from layer sizes; what
 * engines say of themselves; and that a device's yardsticks measure something. */
#include "tests/unit.h"

#include "batchd/roof.h"
#include "engine/model/measure.h"

#include <jansson.h>
#include <math.h>

static json_t *fixture(void) {
    json_error_t at;
    json_t *f = json_load_file("tests/data/roof/roof.json", 0, &at);
    if (!f) fail_msg("roof.json: %s", at.text);
    return f;
}

static double number(const json_t *o, const char *key) {
    const json_t *v = json_object_get(o, key);
    assert_non_null(v);
    return json_number_value(v);
}

static void assert_close(double got, double want, const char *what) {
    if (!(fabs(got - want) <= 1e-9 * fabs(want))) fail_msg("%s: %.17g, not %.17g", what, got, want);
}

static struct engine_work work_of(const json_t *o) {
    return (struct engine_work){.row_flop = number(o, "row_flop"),
                                .layer_bytes = number(o, "layer_bytes"),
                                .row_flop_quant = number(o, "row_flop_quant"),
                                .head_flop = number(o, "head_flop"),
                                .head_bytes = number(o, "head_bytes"),
                                .kv_bytes = number(o, "kv_bytes"),
                                .pair_flop = number(o, "pair_flop"),
                                .sliding_window = (int32_t)number(o, "sliding_window"),
                                .sliding_share = number(o, "sliding_share")};
}

static void roofs_are_those_of_the_script(void **state) {
    json_t *f = fixture(), *c;
    size_t i;
    json_array_foreach(json_object_get(f, "cases"), i, c) {
        const char *model = json_string_value(json_object_get(c, "model"));
        struct engine_work work = work_of(json_object_get(json_object_get(f, "work"), model));
        struct engine_roof device = {.copy_bytes_per_s = number(c, "copy"), .flop_per_s = number(c, "matrix")};
        if (json_object_get(c, "faster")) device.quant_flop_per_s = device.flop_per_s * number(c, "faster");
        struct roof_shape shape = {number(c, "input_len"), number(c, "output_len"), number(c, "n_seqs")};
        struct roof_step t = roof_step(&work, &device, &shape);
        const double parts[] = {t.layers, t.head, t.kv, t.prompt_attention};
        for (size_t k = 0; k < 4; k++)
            assert_close(parts[k], json_number_value(json_array_get(json_object_get(c, "parts_s"), k)), model);
        assert_close(roof_tokens_per_s(&work, &device, &shape), number(c, "tokens_per_s"), model);
    }
    assert_int_equal(i, 98);
    json_decref(f);
}

static struct engine_work work_of_engine(const char *folder, const char *quantization) {
    struct engine *e;
    struct err err = ERR_INIT;
    struct engine_options o = ENGINE_OPTIONS_DEFAULT;
    struct engine_work w;
    o.model_dir = folder;
    o.device = "cpu"; /* what a model asks for does not depend on it, and not each runs on a GPU */
    o.dtype = "bfloat16";
    o.load_format = "dummy";
    o.quantization = quantization;
    assert_ok(engine_open(&e, &o, &err), &err);
    engine_work(e, &w);
    engine_close(e);
    return w;
}

/* What is multiplied is what the checkpoint holds, whatever the weights are put together to. */
static void engines_know_their_work(void **state) {
    json_t *f = fixture(), *m;
    size_t i;
    json_array_foreach(json_object_get(f, "models"), i, m) {
        const char *folder = json_string_value(json_object_get(m, "folder"));
        struct engine_work w = work_of_engine(folder, NULL);
        assert_close(w.row_flop, number(m, "row_flop"), folder);
        assert_close(w.head_flop, number(m, "head_flop"), folder);
        assert_close(w.kv_bytes, 2 * number(m, "kv_numbers"), folder);
        assert_close(w.pair_flop, number(m, "pair_flop"), folder);
        assert_true(w.row_flop_quant == 0);
        double bytes = 2 * number(m, "layer_numbers"); /* and padding to multiples of 16, and biases */
        assert_true(w.layer_bytes >= bytes && w.layer_bytes < 1.6 * bytes && w.head_bytes >= w.head_flop);
    }
    assert_int_equal(i, 6);
    struct engine_work half = work_of_engine("tests/models/tiny-gemma2", NULL);
    assert_true(half.sliding_window > 0 && half.sliding_share > 0.2 && half.sliding_share < 0.8);
    struct engine_work slides = work_of_engine("tests/models/tiny-mistral", NULL);
    assert_true(slides.sliding_window > 0 && fabs(slides.sliding_share - 1) < 1e-9);
    json_decref(f);
}

static void quantized_layers_weigh_less(void **state) {
    static const char folder[] = "tests/models/demo";
    struct engine_work plain = work_of_engine(folder, NULL), fp8 = work_of_engine(folder, "fp8");
    struct engine_work nf4 = work_of_engine(folder, "nf4"), some = work_of_engine(folder, "int8 except down_proj");
    assert_true(fp8.row_flop == plain.row_flop && fp8.row_flop_quant == fp8.row_flop);
    assert_true(fp8.layer_bytes < 0.6 * plain.layer_bytes && fp8.layer_bytes > 0.5 * plain.layer_bytes);
    assert_true(nf4.row_flop == plain.row_flop && nf4.row_flop_quant == 0);
    assert_true(nf4.layer_bytes < 0.35 * plain.layer_bytes && nf4.layer_bytes > 0.25 * plain.layer_bytes);
    assert_true(some.row_flop_quant > 0.5 * plain.row_flop && some.row_flop_quant < plain.row_flop);
    assert_true(fp8.head_bytes == plain.head_bytes);
}

static void a_slow_h200_is_void(void **state) {
    struct engine_roof good = {.copy_bytes_per_s = 4.2e12, .flop_per_s = 780e12, .dtype = "bfloat16"}, bad = good;
    assert_null(roof_void("cuda (NVIDIA H200)", &good));
    bad.copy_bytes_per_s = 3.9e12;
    assert_non_null(roof_void("cuda (NVIDIA H200)", &bad));
    assert_null(roof_void("cuda (NVIDIA L4)", &bad));
    bad = good;
    bad.flop_per_s = 690e12;
    assert_non_null(roof_void("cuda (NVIDIA H200)", &bad));
    snprintf(bad.dtype, sizeof bad.dtype, "float32"); /* no tensor cores there */
    assert_null(roof_void("cuda (NVIDIA H200)", &bad));
}

/* ---------------------------------------------------------------- yardsticks */

static struct dev *open_device(void) {
    struct dev *dev;
    struct err err = ERR_INIT;
    assert_ok(dev_open(&dev, &(struct dev_options){test_device(), 2, NULL}, &err), &err);
    return dev;
}

static void a_copy_is_a_copy(void **state) {
    struct dev *dev = open_device();
    struct err err = ERR_INIT;
    enum { N = 3 << 20 };
    static uint8_t from[N], to[N];
    uint8_t *a = dev_alloc(dev, N), *b = dev_alloc(dev, N);
    for (size_t i = 0; i < N; i++) from[i] = (uint8_t)(i * 7 + (i >> 8));
    dev_upload(dev, a, from, N);
    dev_copy(dev, b + 1, a, N - 2); /* odd: parts must meet */
    dev_copy(dev, b, a, 0);
    dev_download(dev, to, b, N);
    assert_ok(dev_sync(dev, &err), &err);
    assert_int_equal(to[0], 0);
    assert_memory_equal(to + 1, from, N - 2);
    assert_int_equal(to[N - 1], 0);
    dev_free(dev, a);
    dev_free(dev, b);
    dev_close(dev);
}

static void random_numbers_have_the_deviation_asked_for(void **state) {
    enum { ROWS = 5000, COLS = 24 }; /* more rows than one fill brings */
    struct dev *dev = open_device();
    struct err err = ERR_INIT;
    struct tensor t = tensor_2d(dev_alloc(dev, ROWS * COLS * 4), DTYPE_F32, ROWS, COLS);
    static float x[ROWS * COLS];
    double sum = 0, squares = 0;
    assert_ok(measure_fill(dev, &t, 3, 0.5f, &err), &err);
    dev_download(dev, x, t.data, sizeof x);
    assert_ok(dev_sync(dev, &err), &err);
    for (int i = 0; i < ROWS * COLS; i++) {
        sum += x[i];
        squares += (double)x[i] * x[i];
    }
    assert_true(fabs(sum / (ROWS * COLS)) < 0.01);
    assert_true(fabs(sqrt(squares / (ROWS * COLS)) - 0.5) < 0.01);
    dev_free(dev, t.data);
    dev_close(dev);
}

static void devices_have_rates(void **state) {
    struct dev *dev = open_device();
    struct err err = ERR_INIT;
    struct engine_roof roof = {0};
    bool is_cpu = strcmp(test_device(), "cpu") == 0;
    assert_ok(measure_device(&roof, dev, DTYPE_BF16, is_cpu ? QUANT_INT8 : QUANT_NONE, &err), &err);
    assert_true(roof.copy_bytes_per_s > 1e8 && roof.copy_bytes_per_s < 1e14); /* what any machine does, and none */
    assert_true(roof.flop_per_s > 1e8 && roof.flop_per_s < 1e17);
    assert_true(roof.copy_bytes >= 16 << 20 && roof.matrix_size >= 512);
    assert_string_equal(roof.dtype, "bfloat16");
    assert_string_equal(roof.quantization, is_cpu ? "int8" : "");
    assert_true(!is_cpu || (roof.quant_flop_per_s > 1e8 && roof.quant_flop_per_s < 1e17));
    dev_close(dev); /* asserts that all memory has gone back */
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(roofs_are_those_of_the_script),
    cmocka_unit_test(engines_know_their_work),
    cmocka_unit_test(quantized_layers_weigh_less),
    cmocka_unit_test(a_slow_h200_is_void),
    cmocka_unit_test(a_copy_is_a_copy),
    cmocka_unit_test(random_numbers_have_the_deviation_asked_for),
    cmocka_unit_test(devices_have_rates),
};
UNIT_MAIN(tests)
