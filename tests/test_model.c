/* test_model.c - opening a model folder: what is said of it, what is refused, and
 * what happens to weights that are random or broken. */
#include "tests/aid_model.h"

#include "base/file.h"
#include "base/mem.h"
#include "engine/model/safetensors.h"

#include <math.h>
#include <unistd.h>

static const char tiny_llama3[] = "tests/models/tiny-llama3", tiny_mistral[] = "tests/models/tiny-mistral";
static char dir[] = "/tmp/batchd-model-XXXXXX";

static void in_dir(char path[600], const char *name) {
    snprintf(path, 600, "%s/%s", dir, name);
}

static void write_bytes(const char *name, const char *data, size_t n) {
    char path[600];
    in_dir(path, name);
    unlink(path);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

/* `from`/name as dir/name, each `old` in it replaced by a text of the same length (NULL: none). */
static void copy_file(const char *from, const char *name, const char *old, const char *new) {
    char path[600], *data;
    size_t n, hits = 0;
    struct err err = ERR_INIT;
    snprintf(path, sizeof path, "%s/%s", from, name);
    assert_ok(file_read(path, 1 << 20, &data, &n, &err), &err);
    if (old) {
        assert_int_equal(strlen(old), strlen(new));
        for (char *at = data; (at = memmem(at, n - (size_t)(at - data), old, strlen(old))); hits++)
            memcpy(at, new, strlen(new));
        assert_true(hits > 0);
    }
    write_bytes(name, data, n);
    free(data);
}

static void copy_model(const char *from) {
    copy_file(from, "config.json", NULL, NULL);
    copy_file(from, "model.safetensors", NULL, NULL);
}

/* One more key in front of dir/config.json. */
static void add_to_config(const char *key_and_value) {
    char path[600], *text, *longer = NULL;
    size_t n;
    struct err err = ERR_INIT;
    in_dir(path, "config.json");
    assert_ok(file_read(path, 1 << 20, &text, &n, &err), &err);
    assert_true(asprintf(&longer, "{%s,%s", key_and_value, strchr(text, '{') + 1) > 0);
    write_bytes("config.json", longer, strlen(longer));
    free(longer);
    free(text);
}

/* The copied model must be refused, by model_describe and by model_open. */
static void refused(int code, const char *text) {
    struct model_info info;
    struct dev *dev;
    struct model *m = NULL;
    struct err err = ERR_INIT;
    assert_err(model_describe(&info, dir, &err), code, text, &err);
    assert_ok(dev_open(&dev, &(struct dev_options){.kind = test_device(), .threads = 1}, &err), &err);
    assert_err(model_open(&m, dev, &(struct model_options){.dir = dir}, &err), code, text, &err);
    assert_null(m);
    dev_close(dev);
}

/* ---------------------------------------------------------------- description */

static void describes_stories(void **state) {
    if (!test_data()) skip();
    static const struct {
        const char *name, *dtype;
        int number;
    } forms[] = {{"stories260K", "float32", 4},
                 {"stories260K-bf16", "bfloat16", 2},
                 {"stories260K-f16-sharded", "float16", 2}};
    for (size_t i = 0; i < 3; i++) {
        char path[600];
        struct model_info m;
        struct err err = ERR_INIT;
        snprintf(path, sizeof path, "%s/models/%s", test_data(), forms[i].name);
        assert_ok(model_describe(&m, path, &err), &err);
        assert_string_equal(m.family, "llama");
        assert_string_equal(m.dtype, forms[i].dtype);
        assert_int_equal(m.n_params, 260032);
        assert_int_equal(m.n_layers, 5);
        assert_int_equal(m.hidden, 64);
        assert_int_equal(m.n_heads, 8);
        assert_int_equal(m.n_kv_heads, 4);
        assert_int_equal(m.head_dim, 8);
        assert_int_equal(m.context, 512);
        assert_int_equal(m.kv_bytes_per_token, 5 * 2 * 4 * 8 * forms[i].number);
        assert_true(m.tied_embeddings);
    }
}

/* Numbers of parameters as transformers counts them: sum(p.numel() for p in model.parameters()). */
static void describes_the_tiny_models(void **state) {
    struct model_info m;
    struct err err = ERR_INIT;
    assert_ok(model_describe(&m, tiny_llama3, &err), &err);
    assert_int_equal(m.n_params, 26336);
    assert_false(m.tied_embeddings);
    assert_int_equal(m.sliding_window, 0);
    assert_int_equal(m.n_stop_ids, 2);
    assert_int_equal(m.stop_ids[1], 5);
    assert_ok(model_describe(&m, tiny_mistral, &err), &err);
    assert_int_equal(m.n_params, 21664);
    assert_true(m.tied_embeddings);
    assert_int_equal(m.sliding_window, 8);
    assert_string_equal(m.family, "mistral");
}

/* From config.json alone; the numbers are transformers', of its classes on the meta device. */
static void counts_the_parameters_of_real_models(void **state) {
    static const struct {
        const char *name;
        int64_t n_params;
    } models[] = {
        {"HuggingFaceTB--SmolLM2-135M-Instruct", 134515008},
        {"Qwen--Qwen2.5-0.5B-Instruct", 494032768},
        {"Qwen--Qwen2.5-7B-Instruct", 7615616512},
        {"Qwen--Qwen3-0.6B", 596049920},
        {"TinyLlama--TinyLlama-1.1B-Chat-v1.0", 1100048384},
        {"google--gemma-2-2b-it", 2614341888},
        {"google--gemma-2b", 2506172416},
        {"google--gemma-7b", 8537680896},
        {"meta-llama--Llama-2-70b-hf", 68976648192},
        {"meta-llama--Llama-2-7b-hf", 6738415616},
        {"meta-llama--Llama-3.1-70B-Instruct", 70553706496},
        {"meta-llama--Llama-3.1-8B-Instruct", 8030261248},
        {"meta-llama--Llama-3.2-1B-Instruct", 1235814400},
        {"microsoft--Phi-3-mini-128k-instruct", 3821079552},
        {"microsoft--Phi-3-mini-4k-instruct", 3821079552},
        {"microsoft--phi-2", 2779683840},
        {"mistralai--Mistral-7B-Instruct-v0.2", 7241732096},
        {"mistralai--Mistral-7B-v0.1", 7241732096},
        {"mistralai--Mixtral-8x7B-Instruct-v0.1", 46702792704},
        {"mixtral-8x7b-dolphin-2.5", 46702809088},
        {"mosaicml--mpt-30b", 29957200896},
        {"mosaicml--mpt-7b", 6649286656},
        {"tiiuae--falcon-180B-chat", 178557088768},
        {"tiiuae--falcon-40b", 41303293952},
        {"tiiuae--falcon-7b", 6921720704},
    };
    if (!test_data()) skip();
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        char path[600];
        struct model_info m;
        struct err err = ERR_INIT;
        snprintf(path, sizeof path, "%s/configs/%s", test_data(), models[i].name);
        assert_ok(model_describe_config(&m, path, &err), &err);
        if (m.n_params != models[i].n_params) fail_msg("%s: %lld", models[i].name, (long long)m.n_params);
    }
}

static void weight_bytes_count_all_that_is_loaded(void **state) {
    struct rig r;
    rig_open(&r, tiny_mistral, &(struct rig_options){DTYPE_F32, 1, false});
    assert_int_equal(model_weight_bytes(r.model), 21664 * 4); /* all sizes are multiples of 16: no padding */
    rig_close(&r);
    rig_open(&r, tiny_mistral, &(struct rig_options){DTYPE_BF16, 1, false});
    assert_int_equal(model_weight_bytes(r.model), 21664 * 2 + 5 * 32 * 2); /* five norms stay f32 */
    rig_close(&r);
}

static void picks_a_dtype(void **state) {
    struct model_info m = {.dtype = "bfloat16"};
    enum dtype t;
    struct err err = ERR_INIT;
    struct dev *dev;
    assert_ok(dev_open(&dev, &(struct dev_options){.kind = "cpu"}, &err), &err);
    assert_ok(model_pick_dtype(&t, "auto", &m, dev, &err), &err);
    assert_int_equal(t, DTYPE_BF16);
    assert_ok(model_pick_dtype(&t, "float32", &m, dev, &err), &err);
    assert_int_equal(t, DTYPE_F32);
    strcpy(m.dtype, "float16");
    assert_ok(model_pick_dtype(&t, NULL, &m, dev, &err), &err);
    assert_int_equal(t, DTYPE_F32);
    assert_ok(model_pick_dtype(&t, "bfloat16", &m, dev, &err), &err);
    assert_int_equal(t, DTYPE_BF16);
    assert_err(model_pick_dtype(&t, "float16", &m, dev, &err), E_UNSUPPORTED, "dtype float16 does not run on cpu", &err);
    assert_err(model_pick_dtype(&t, "half", &m, dev, &err), E_UNSUPPORTED, "dtype half", &err);
    assert_err(model_pick_dtype(&t, "int8", &m, dev, &err), E_USAGE, "no dtype \"int8\"", &err);
    dev_close(dev);
}

/* ---------------------------------------------------------------- what does not fit together */

static void folders_without_a_model_are_refused(void **state) {
    struct model_info m;
    struct err err = ERR_INIT;
    char path[600];
    in_dir(path, "config.json");
    unlink(path);
    assert_err(model_describe(&m, dir, &err), E_NOT_FOUND, "has no config.json", &err);
    copy_file(tiny_llama3, "config.json", NULL, NULL);
    in_dir(path, "model.safetensors");
    unlink(path);
    refused(E_NOT_FOUND, "has neither model.safetensors nor");
    write_bytes("model.safetensors", "", 0);
    refused(E_PARSE, "0 bytes are too few");
}

static void weights_that_contradict_the_config_are_refused(void **state) {
    copy_model(tiny_llama3);
    copy_file(tiny_llama3, "config.json", "\"vocab_size\": 64", "\"vocab_size\": 65");
    refused(E_PARSE, "model.embed_tokens.weight has shape [64, 32], expected [65, 32]");
    copy_file(tiny_llama3, "config.json", "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3");
    refused(E_PARSE, "no tensor model.layers.2.input_layernorm.weight");
    copy_file(tiny_llama3, "config.json", "\"head_dim\": 16", "\"head_dim\":  8");
    refused(E_PARSE, "model.layers.0.self_attn.q_proj.weight has shape [64, 32], expected [32, 32]");
    copy_file(tiny_llama3, "config.json", "\"num_key_value_heads\": 2", "\"num_key_value_heads\": 1");
    refused(E_PARSE, "model.layers.0.self_attn.k_proj.weight has shape [32, 32], expected [16, 32]");
    copy_file(tiny_llama3, "config.json", "\"mlp_bias\": true", "\"mlp_bias\":false");
    refused(E_UNSUPPORTED, "tensor model.layers.0.mlp.gate_proj.bias is there, but config.json says");
    copy_model(tiny_mistral);
    copy_file(tiny_mistral, "config.json", "\"model_type\": \"mistral\"", "\"model_type\": \"llama\"  ");
    add_to_config("\"attention_bias\": true");
    refused(E_PARSE, "no tensor model.layers.0.self_attn.q_proj.bias");
}

static void missing_tensors_are_named(void **state) {
    copy_model(tiny_llama3);
    copy_file(tiny_llama3, "model.safetensors", "\"model.norm.weight\"", "\"model.norn.weight\"");
    refused(E_PARSE, "no tensor model.norm.weight");
    copy_file(tiny_llama3, "model.safetensors", "1.self_attn.o_proj.bias", "1.self_attn.o_proj.bios");
    refused(E_PARSE, "no tensor model.layers.1.self_attn.o_proj.bias");
    copy_file(tiny_llama3, "model.safetensors", "\"BF16\"", "\"I16\" ");
    refused(E_UNSUPPORTED, "tensor model.embed_tokens.weight has dtype I16; F32, F16 and BF16 are supported");
}

/* config.json does not say tied, and there is no lm_head.weight: the embedding it is. */
static void a_head_that_is_not_there_is_the_embedding(void **state) {
    struct model_info m;
    struct err err = ERR_INIT;
    copy_model(tiny_llama3);
    copy_file(tiny_llama3, "model.safetensors", "\"lm_head.weight\"", "\"lm_heat.weight\"");
    assert_ok(model_describe(&m, dir, &err), &err);
    assert_true(m.tied_embeddings);
    assert_int_equal(m.n_params, 26336 - 64 * 32);
}

/* dir/model.safetensors of tiny_llama3, its head overwritten with its embedding. */
static void write_the_embedding_twice(void) {
    char path[600], *data;
    size_t n;
    struct checkpoint *c;
    struct err err = ERR_INIT;
    assert_ok(checkpoint_open(&c, tiny_llama3, &err), &err);
    const struct checkpoint_tensor *embed = checkpoint_find(c, "model.embed_tokens.weight"),
                                   *head = checkpoint_find(c, "lm_head.weight");
    snprintf(path, sizeof path, "%s/model.safetensors", tiny_llama3);
    assert_ok(file_read(path, 1 << 20, &data, &n, &err), &err);
    memcpy(memmem(data, n, head->data, head->bytes), embed->data, head->bytes);
    write_bytes("model.safetensors", data, n);
    free(data);
    checkpoint_close(c);
}

/* config.json says tied and the checkpoint has a head all the same, as some fine-tuned models do: it
 * counts where it is another, as it does in transformers. */
static void a_head_of_its_own_goes_before_tied_embeddings(void **state) {
    struct model_info m;
    struct err err = ERR_INIT;
    copy_model(tiny_llama3);
    copy_file(tiny_llama3, "config.json", "\"tie_word_embeddings\": false", "\"tie_word_embeddings\":  true");
    assert_ok(model_describe(&m, dir, &err), &err);
    assert_true(!m.tied_embeddings && m.n_params == 26336);
    write_the_embedding_twice();
    assert_ok(model_describe(&m, dir, &err), &err);
    assert_true(m.tied_embeddings && m.n_params == 26336 - 64 * 32);
}

/* ---------------------------------------------------------------- memory */

static void sizes_beyond_memory_are_refused_before_they_are_taken(void **state) {
    static const char config[] =
        "{\"model_type\":\"llama\",\"hidden_size\":1048576,\"num_hidden_layers\":4096,\"num_attention_heads\":4096,"
        "\"intermediate_size\":4194304,\"vocab_size\":16777216}";
    struct dev *dev;
    struct model *m = NULL;
    struct err err = ERR_INIT;
    write_bytes("config.json", config, strlen(config));
    assert_ok(dev_open(&dev, &(struct dev_options){.kind = test_device(), .threads = 1}, &err), &err);
    struct model_options options = {.dir = dir, .dummy = true};
    assert_err(model_open(&m, dev, &options, &err), E_NO_MEMORY, "the weights need ", &err);
    assert_non_null(strstr(err.text, " MiB are available"));
    assert_null(strstr(err.text, "--quantization")); /* none would do */

    /* Twice what there is in float32: a quarter of that in int8 fits. */
    char twice[300];
    int64_t layer = 4 * (4 * (int64_t)8192 * 8192 + 3 * (int64_t)8192 * 28672);
    snprintf(twice, sizeof twice,
             "{\"model_type\":\"llama\",\"hidden_size\":8192,\"num_hidden_layers\":%d,\"num_attention_heads\":64,"
             "\"intermediate_size\":28672,\"vocab_size\":64}",
             (int)(2 * dev_memory_available(dev) / layer + 1));
    write_bytes("config.json", twice, strlen(twice));
    assert_err(model_open(&m, dev, &options, &err), E_NO_MEMORY, "; --quantization int8 takes ", &err);
    static const char long_context[] = "{\"model_type\":\"llama\",\"hidden_size\":64,\"num_hidden_layers\":1,"
                                       "\"num_attention_heads\":4,\"intermediate_size\":64,\"vocab_size\":64,"
                                       "\"max_position_embeddings\":268435456,\"head_dim\":256}";
    write_bytes("config.json", long_context, strlen(long_context));
    assert_err(model_open(&m, dev, &options, &err), E_NO_MEMORY, "lower --max-model-len", &err);
    options.max_positions = 64;
    assert_ok(model_open(&m, dev, &options, &err), &err);
    model_close(m);
    dev_close(dev);
}

static void a_kv_cache_beyond_memory_is_refused(void **state) {
    struct rig r;
    struct runner *other = NULL;
    struct err err = ERR_INIT;
    rig_open(&r, tiny_llama3, &(struct rig_options){DTYPE_F32, 1, false});
    assert_err(runner_open(&other, r.model, &(struct runner_options){.n_blocks = INT32_MAX, .n_slots = 1, .max_rows = 1, .max_samples = 1},
                           &err), E_NO_MEMORY,
               "KV blocks need 16 KiB each", &err);
    assert_null(other);
    rig_close(&r);
}

/* ---------------------------------------------------------------- numbers */

static void dummy_weights_are_the_same_each_time(void **state) {
    enum { N = 20 };
    float logits[2][N * 64];
    int32_t ids[N], drawn[2];
    for (int32_t i = 0; i < N; i++) ids[i] = i;
    for (int i = 0; i < 2; i++) {
        struct rig r;
        rig_open(&r, tiny_mistral, &(struct rig_options){DTYPE_F32, 1, true});
        assert_int_equal(r.vocab, 64);
        drawn[i] = rig_logits(&r, 0, ids, N, N, 0, logits[i]);
        rig_close(&r);
    }
    assert_memory_equal(logits[0], logits[1], sizeof logits[0]);
    assert_int_equal(drawn[0], drawn[1]);
    double sum = 0, squares = 0;
    for (size_t i = 0; i < N * 64; i++) {
        assert_true(isfinite(logits[0][i]));
        sum += (double)logits[0][i];
        squares += (double)logits[0][i] * (double)logits[0][i];
    }
    /* a normed row times weights N(0, 1/sqrt K): numbers of about N(0, 1) */
    assert_true(fabs(sum / (N * 64)) < 0.2 && squares / (N * 64) > 0.5 && squares / (N * 64) < 2.0);
}

/* Logits that are not numbers draw -1, and the next step goes on. */
static void broken_weights_draw_nothing(void **state) {
    char path[600], *bytes;
    size_t n;
    struct checkpoint *c;
    struct err err = ERR_INIT;
    copy_model(tiny_mistral);
    in_dir(path, "model.safetensors");
    assert_ok(file_read(path, 1 << 20, &bytes, &n, &err), &err);
    assert_ok(checkpoint_open(&c, dir, &err), &err);
    const char *first = checkpoint_at(c, 0)->data;
    for (size_t i = 1; i < checkpoint_n_tensors(c); i++)
        if ((const char *)checkpoint_at(c, i)->data < first) first = checkpoint_at(c, i)->data;
    const struct checkpoint_tensor *norm = checkpoint_find(c, "model.norm.weight");
    uint64_t header;
    memcpy(&header, bytes, 8);
    memset(bytes + 8 + header + ((const char *)norm->data - first), 0xff, 2); /* a NaN in bf16 */
    checkpoint_close(c);
    write_bytes("model.safetensors", bytes, n);
    free(bytes);

    struct rig r;
    rig_open(&r, dir, &(struct rig_options){DTYPE_F32, 1, false});
    struct batch b = {0};
    batch_add(&b, 0, (int32_t[]){1, 7, 9}, 0, 3, 1);
    assert_int_equal(rig_run(&r, &b).drawn[0], -1);
    b = (struct batch){0};
    batch_add(&b, 0, NULL, 3, 1, 1);
    assert_int_equal(rig_run(&r, &b).drawn[0], -1);
    rig_close(&r);
}

static void measures_its_matrix_products(void **state) {
    struct rig r;
    double rate = 0;
    struct err err = ERR_INIT;
    rig_open(&r, tiny_llama3, &(struct rig_options){DTYPE_BF16, 1, false});
    assert_ok(runner_matmul_rate(r.runner, 16, 0.02, &rate, &err), &err);
    assert_true(rate > 16);
    assert_err(runner_matmul_rate(r.runner, RIG_ROWS + 1, 0.01, &rate, &err), E_RANGE,
               "97 rows are not in 1 .. 96", &err);
    assert_err(runner_matmul_rate(r.runner, 0, 0.01, &rate, &err), E_RANGE, "0 rows", &err);
    rig_close(&r);
}

static int make_dir(void **state) {
    return mkdtemp(dir) ? 0 : -1;
}

static int drop_dir(void **state) {
    char command[100];
    snprintf(command, sizeof command, "rm -rf %s", dir);
    return system(command);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(describes_stories),
    cmocka_unit_test(describes_the_tiny_models),
    cmocka_unit_test(counts_the_parameters_of_real_models),
    cmocka_unit_test(weight_bytes_count_all_that_is_loaded),
    cmocka_unit_test(picks_a_dtype),
    cmocka_unit_test(folders_without_a_model_are_refused),
    cmocka_unit_test(weights_that_contradict_the_config_are_refused),
    cmocka_unit_test(missing_tensors_are_named),
    cmocka_unit_test(a_head_that_is_not_there_is_the_embedding),
    cmocka_unit_test(a_head_of_its_own_goes_before_tied_embeddings),
    cmocka_unit_test(sizes_beyond_memory_are_refused_before_they_are_taken),
    cmocka_unit_test(a_kv_cache_beyond_memory_is_refused),
    cmocka_unit_test(dummy_weights_are_the_same_each_time),
    cmocka_unit_test(broken_weights_draw_nothing),
    cmocka_unit_test(measures_its_matrix_products),
};

int main(int argc, char **argv) {
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, make_dir, drop_dir);
}
