/* test_config.c - which config.json runs, what it comes to, and what the refusal of
 * the others says. The numbers of tests/data/rope come from transformers. */
#include "tests/unit.h"

#include "base/file.h"
#include "base/mem.h"
#include "engine/model/config.h"

#include <dirent.h>
#include <jansson.h>
#include <math.h>
#include <unistd.h>

static char dir[] = "/tmp/batchd-config-XXXXXX";

static void write_text(const char *name, const char *text) {
    char path[600];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    unlink(path);
    if (!text) return;
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    assert_int_equal(fclose(f), 0);
}

/* A small Llama's config.json with `changes` (a JSON object) laid over it; a
 * change {"key": "-"} takes the key away. */
static void write_config(const char *changes) {
    static const char base[] =
        "{\"model_type\":\"llama\",\"hidden_size\":64,\"num_hidden_layers\":2,\"num_attention_heads\":4,"
        "\"num_key_value_heads\":2,\"intermediate_size\":96,\"vocab_size\":100,\"max_position_embeddings\":256,"
        "\"rms_norm_eps\":1e-5,\"hidden_act\":\"silu\",\"eos_token_id\":2,\"torch_dtype\":\"bfloat16\"}";
    json_t *root = json_loads(base, 0, NULL), *over = json_loads(changes, 0, NULL), *value;
    const char *key;
    assert_non_null(over);
    json_object_update(root, over);
    json_object_foreach(over, key, value)
        if (json_is_string(value) && strcmp(json_string_value(value), "-") == 0) json_object_del(root, key);
    char *text = json_dumps(root, 0);
    write_text("config.json", text);
    free(text);
    json_decref(over);
    json_decref(root);
}

static struct model_config taken(const char *changes) {
    struct model_config c;
    struct err err = ERR_INIT;
    write_config(changes);
    assert_ok(config_read(&c, dir, &err), &err);
    return c;
}

static void refused(const char *changes, int code, const char *text) {
    struct model_config c;
    struct err err = ERR_INIT;
    write_config(changes);
    assert_err(config_read(&c, dir, &err), code, text, &err);
}

/* ---------------------------------------------------------------- real files */

static int read_real(struct model_config *c, const char *name, struct err *err) {
    char path[600];
    snprintf(path, sizeof path, "%s/configs/%s", test_data(), name);
    return config_read(c, path, err);
}

static void llama_3_1_8b(void **state) {
    if (!test_data()) skip();
    struct model_config c;
    struct err err = ERR_INIT;
    assert_ok(read_real(&c, "meta-llama--Llama-3.1-8B-Instruct", &err), &err);
    const struct model_info *m = &c.info;
    assert_string_equal(m->family, "llama");
    assert_int_equal(m->n_layers, 32);
    assert_int_equal(m->hidden, 4096);
    assert_int_equal(m->n_heads, 32);
    assert_int_equal(m->n_kv_heads, 8);
    assert_int_equal(m->head_dim, 128);
    assert_int_equal(m->intermediate, 14336);
    assert_int_equal(m->vocab, 128256);
    assert_int_equal(m->context, 131072);
    assert_int_equal(m->sliding_window, 0);
    assert_false(m->tied_embeddings);
    assert_int_equal(m->n_stop_ids, 3);
    assert_int_equal(m->stop_ids[2], 128009);
    assert_true(m->has_temperature && m->temperature == 0.6f && m->has_top_p && m->top_p == 0.9f && m->top_k == 50);
    assert_int_equal(c.positions.scaling, ROPE_LLAMA3);
    assert_true(c.positions.theta == 500000.0f && c.positions.factor == 8.0f && c.positions.original_context == 8192);
    assert_true(c.norm_eps == 1e-5f);
    assert_string_equal(c.torch_dtype, "bfloat16");
}

static void mistral_7b_v0_1_slides(void **state) {
    if (!test_data()) skip();
    struct model_config c;
    struct err err = ERR_INIT;
    assert_ok(read_real(&c, "mistralai--Mistral-7B-v0.1", &err), &err);
    assert_string_equal(c.info.family, "mistral");
    assert_int_equal(c.info.sliding_window, 4096);
    assert_int_equal(c.info.n_kv_heads, 8);
    assert_false(c.info.has_temperature || c.info.has_top_p || c.info.has_top_k);
    assert_ok(read_real(&c, "mistralai--Mistral-7B-Instruct-v0.2", &err), &err);
    assert_int_equal(c.info.sliding_window, 0);
    assert_true(c.positions.theta == 1e6f);
}

static void phi_2(void **state) {
    if (!test_data()) skip();
    struct model_config c;
    struct err err = ERR_INIT;
    assert_ok(read_real(&c, "microsoft--phi-2", &err), &err);
    assert_string_equal(c.info.family, "phi");
    assert_true(c.info.head_dim == 80 && c.positions.n_rotated == 32 && c.info.n_kv_heads == 32);
    assert_true(c.norm == NORM_LAYER && c.norm_eps == 1e-5f && c.block == BLOCK_PARALLEL && c.mlp == MLP_PLAIN);
    assert_true(c.act == ACT_GELU_TANH && !c.qk_norm && !c.info.tied_embeddings && c.info.intermediate == 10240);
    assert_int_equal(c.biases, BIAS_QKV | BIAS_O | BIAS_MLP | BIAS_NORM | BIAS_HEAD);
}

static void specials_of_real_families(void **state) {
    if (!test_data()) skip();
    struct model_config c;
    struct err err = ERR_INIT;
    assert_ok(read_real(&c, "tiiuae--falcon-7b", &err), &err);
    assert_true(c.info.n_heads == 71 && c.info.n_kv_heads == 1 && c.block == BLOCK_PARALLEL && !c.names->mlp_norm);
    assert_true(c.info.intermediate == 4 * 4544 && c.positions.n_rotated == 64 && c.act == ACT_GELU);
    assert_ok(read_real(&c, "tiiuae--falcon-40b", &err), &err);
    assert_true(c.info.n_kv_heads == 8 && c.names->mlp_norm && c.biases == BIAS_NORM);
    assert_ok(read_real(&c, "mosaicml--mpt-30b", &err), &err);
    assert_true(c.positions.alibi == ALIBI_MPT && c.positions.n_rotated == 0 && c.info.head_dim == 112);
    assert_true(c.info.context == 8192 && c.info.tied_embeddings && c.biases == 0 && c.clip_qkv == 0);
    assert_ok(read_real(&c, "google--gemma-2-2b-it", &err), &err);
    assert_true(c.attention_scale == 0.0625f && c.attention_softcap == 50 && c.logit_softcap == 30);
    assert_true(config_layer_slides(&c, 0) && !config_layer_slides(&c, 1) && c.info.sliding_window == 4096);
    assert_ok(read_real(&c, "google--gemma-7b", &err), &err);
    assert_true(c.act == ACT_GELU_TANH && c.norm == NORM_RMS_ONE_PLUS && c.info.tied_embeddings);
    assert_ok(read_real(&c, "Qwen--Qwen2.5-7B-Instruct", &err), &err);
    assert_true(c.biases == BIAS_QKV && c.info.sliding_window == 0 && !config_layer_slides(&c, 27));
    assert_ok(read_real(&c, "microsoft--Phi-3-mini-128k-instruct", &err), &err);
    assert_true(c.positions.scaling == ROPE_LONGROPE && c.positions.original_context == 4096);
    assert_true(fabs((double)c.positions.attention_factor - sqrt(1 + log(32) / log(4096))) < 1e-6);
    assert_ok(read_real(&c, "mistralai--Mixtral-8x7B-Instruct-v0.1", &err), &err);
    assert_true(c.n_experts == 8 && c.experts_per_row == 2 && c.mlp == MLP_EXPERTS);
}

static void llama_2_7b_has_no_rope_theta(void **state) {
    if (!test_data()) skip();
    struct model_config c;
    struct err err = ERR_INIT;
    assert_ok(read_real(&c, "meta-llama--Llama-2-7b-hf", &err), &err);
    assert_true(c.positions.theta == 10000.0f);
    assert_int_equal(c.positions.scaling, ROPE_DEFAULT);
}

/* Every config.json of the test data is of a family that runs, or is refused by its name. */
static void every_real_family_runs_or_is_refused_by_name(void **state) {
    if (!test_data()) skip();
    char path[600];
    int n_taken = 0, n_refused = 0;
    snprintf(path, sizeof path, "%s/configs", test_data());
    DIR *d = opendir(path);
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d));) {
        char *text, file[1000], *family, expected[300];
        size_t n;
        snprintf(file, sizeof file, "%s/%s/config.json", path, e->d_name);
        if (*e->d_name == '.' || file_read(file, 1 << 20, &text, &n, NULL) < 0) continue;
        family = strstr(text, "\"model_type\": \"");
        assert_non_null(family);
        family += strlen("\"model_type\": \"");
        *strchr(family, '"') = '\0';
        struct model_config c;
        struct err err = ERR_INIT;
        if (families_find(family)) {
            assert_ok(read_real(&c, e->d_name, &err), &err);
            n_taken++;
        } else {
            snprintf(expected, sizeof expected, "config.json: model_type \"%s\" is not supported (%s are)", family,
                     families_list());
            assert_err(read_real(&c, e->d_name, &err), E_UNSUPPORTED, expected, &err);
            n_refused++;
        }
        free(text);
    }
    closedir(d);
    assert_true(n_taken >= 22 && n_taken + n_refused >= 24);
}

/* ---------------------------------------------------------------- defaults */

static void absent_keys_mean_what_they_mean_to_transformers(void **state) {
    struct model_config c = taken("{\"num_key_value_heads\":\"-\",\"rms_norm_eps\":\"-\",\"hidden_act\":\"-\"}");
    assert_int_equal(c.info.n_kv_heads, 4);
    assert_int_equal(c.info.head_dim, 16);
    assert_true(c.norm_eps == 1e-6f && c.positions.theta == 10000.0f);
    assert_true(c.biases == 0 && !c.info.tied_embeddings);
    assert_int_equal(c.info.sliding_window, 0);
    c = taken("{\"model_type\":\"mistral\",\"num_attention_heads\":8,\"num_key_value_heads\":\"-\",\"max_"
              "position_embeddings\":\"-\"}");
    assert_int_equal(c.info.sliding_window, 4096);
    assert_int_equal(c.info.n_kv_heads, 8);
    assert_int_equal(c.info.context, 131072);
    c = taken("{\"model_type\":\"mistral\",\"sliding_window\":null}");
    assert_int_equal(c.info.sliding_window, 0);
    assert_true(taken("{\"eos_token_id\":\"-\"}").info.n_stop_ids == 1);
    assert_int_equal(taken("{\"model_type\":\"falcon\",\"eos_token_id\":\"-\"}").info.stop_ids[0], 11);
    assert_int_equal(taken("{\"model_type\":\"phi3\",\"eos_token_id\":\"-\"}").info.n_stop_ids, 0); /* 32000 of 100 */
    assert_int_equal(taken("{\"eos_token_id\":null}").info.n_stop_ids, 0);
    c = taken("{\"sliding_window\":7}"); /* Llama knows no window */
    assert_int_equal(c.info.sliding_window, 0);
}

static void head_dim_may_differ_from_hidden_over_heads(void **state) {
    assert_int_equal(taken("{\"head_dim\":32}").info.head_dim, 32);
    assert_int_equal(taken("{\"head_dim\":null}").info.head_dim, 16);
    assert_int_equal(taken("{\"hidden_size\":66,\"head_dim\":8}").info.head_dim, 8);
}

static void flags_are_read(void **state) {
    struct model_config c = taken("{\"attention_bias\":true,\"mlp_bias\":true,\"tie_word_embeddings\":true}");
    assert_true(c.biases == (BIAS_QKV | BIAS_O | BIAS_MLP) && c.info.tied_embeddings);
    assert_string_equal(taken("{\"torch_dtype\":\"-\",\"dtype\":\"float16\"}").torch_dtype, "float16");
    assert_string_equal(taken("{\"dtype\":\"float32\"}").torch_dtype, "float32"); /* of both, the newer */
}

static void rope_in_both_spellings(void **state) {
    struct model_config c = taken("{\"rope_theta\":5000,\"rope_scaling\":{\"type\":\"linear\",\"factor\":2.5}}");
    assert_true(c.positions.theta == 5000.0f && c.positions.scaling == ROPE_LINEAR && c.positions.factor == 2.5f);
    c = taken("{\"rope_parameters\":{\"rope_type\":\"linear\",\"factor\":4,\"rope_theta\":7000.0}}");
    assert_true(c.positions.theta == 7000.0f && c.positions.scaling == ROPE_LINEAR && c.positions.factor == 4.0f);
    c = taken("{\"rope_scaling\":{},\"rope_parameters\":{\"rope_type\":\"default\",\"rope_theta\":123.0}}");
    assert_true(c.positions.theta == 123.0f && c.positions.scaling == ROPE_DEFAULT);
    c = taken("{\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8,\"low_freq_factor\":1,\"high_freq_"
              "factor\":4}}");
    assert_int_equal(c.positions.original_context, 256); /* max_position_embeddings */
}

/* Phi-3 has a key of its own beside max_position_embeddings, and what stands among the
 * parameters of longrope is not heard. */
static void phi3_has_its_original_context_outside(void **state) {
    static const char keys[] = "{\"model_type\":\"phi3\",\"max_position_embeddings\":8192%s,\"rope_parameters\":{"
                               "\"rope_type\":\"longrope\",\"original_max_position_embeddings\":256,"
                               "\"short_factor\":[1,1,1,1,1,1,1,1],\"long_factor\":[2,2,2,2,2,2,2,2]}}";
    char text[400];
    snprintf(text, sizeof text, keys, "");
    assert_int_equal(taken(text).info.rope_switch, 4096);
    snprintf(text, sizeof text, keys, ",\"original_max_position_embeddings\":512");
    assert_int_equal(taken(text).info.rope_switch, 512);
}

/* The official files of Gemma 1 say "gelu" and mean its tanh form; Gemma 2 means what it says. */
static void gelu_of_both_gemmas(void **state) {
    struct model_config c = taken("{\"model_type\":\"gemma\",\"hidden_act\":\"gelu\"}");
    assert_int_equal(c.act, ACT_GELU_TANH);
    c = taken("{\"model_type\":\"gemma2\",\"hidden_activation\":\"gelu\"}");
    assert_true(c.act == ACT_GELU && c.embed_scale == 8.0f);
}

/* tests/data/rope/inv_freq.jsonl: {"config": ..., "inv_freq": [...], ...} a line. */
static void inv_freq_equals_transformers(void **state) {
    FILE *f = fopen("tests/data/rope/inv_freq.jsonl", "r");
    assert_non_null(f);
    char *line = NULL;
    size_t cap = 0, n_lines = 0;
    for (; getline(&line, &cap, f) > 0; n_lines++) {
        json_t *root = json_loads(line, 0, NULL);
        const json_t *want = json_object_get(root, "inv_freq");
        char *changes = json_dumps(json_object_get(root, "config"), 0);
        struct model_config c = taken(changes);
        float got[MAX_HEAD_DIM / 2];
        int32_t n_positions = (int32_t)json_integer_value(json_object_get(root, "n_positions"));
        positions_inv_freq(&c.positions, (n_positions ? n_positions : c.info.context) > c.positions.original_context, got);
        assert_int_equal(json_array_size(want), c.positions.n_rotated / 2);
        double attention = json_number_value(json_object_get(root, "attention_factor"));
        assert_true(fabs((double)c.positions.attention_factor - (attention > 0 ? attention : 1)) < 1e-6);
        for (size_t i = 0; i < json_array_size(want); i++) {
            double w = json_number_value(json_array_get(want, i));
            if (!(fabs((double)got[i] - w) <= 1e-6 * w))
                fail_msg("%s: inv_freq[%zu] is %.9g, not %.9g", changes, i, (double)got[i], w);
        }
        free(changes);
        json_decref(root);
    }
    assert_true(n_lines >= 14);
    free(line);
    fclose(f);
}

/* ---------------------------------------------------------------- generation_config.json */

static struct model_config generation(const char *text) {
    write_text("generation_config.json", text);
    struct model_config c = taken("{}");
    write_text("generation_config.json", NULL);
    return c;
}

static void generation_config_overrides_stop_ids(void **state) {
    struct model_config c = generation("{\"eos_token_id\":[7,8,9]}");
    assert_int_equal(c.info.n_stop_ids, 3);
    assert_int_equal(c.info.stop_ids[0], 7);
    c = generation("{\"eos_token_id\":5}");
    assert_true(c.info.n_stop_ids == 1 && c.info.stop_ids[0] == 5);
    c = generation("{\"eos_token_id\":null}");
    assert_true(c.info.n_stop_ids == 1 && c.info.stop_ids[0] == 2);
    c = generation("{}");
    assert_true(c.info.n_stop_ids == 1 && c.info.stop_ids[0] == 2);
    c = taken("{\"eos_token_id\":null}");
    assert_int_equal(c.info.n_stop_ids, 0);
}

static void sampling_defaults_need_do_sample(void **state) {
    struct model_info m = generation("{\"temperature\":0.6,\"top_p\":0.9}").info;
    assert_false(m.has_temperature || m.has_top_p || m.has_top_k);
    m = generation("{\"do_sample\":true,\"temperature\":0.6,\"top_p\":0.9,\"top_k\":20}").info;
    assert_true(m.has_temperature && m.temperature == 0.6f && m.has_top_p && m.top_p == 0.9f && m.has_top_k &&
                m.top_k == 20);
    m = generation("{\"do_sample\":true}").info;
    assert_true(m.has_temperature && m.temperature == 1.0f && !m.has_top_p && m.has_top_k && m.top_k == 50 && !m.has_min_p);
    m = generation("{\"do_sample\":true,\"top_k\":0,\"min_p\":0.05}").info;
    assert_true(m.has_top_k && m.top_k == 0 && m.has_min_p && m.min_p == 0.05f);
    m = generation("{\"do_sample\":false,\"temperature\":0.6}").info;
    assert_false(m.has_temperature);
}

static void a_repetition_penalty_holds_without_do_sample(void **state) {
    assert_true(generation("{\"repetition_penalty\":1.05}").info.repetition_penalty == 1.05f);
    assert_true(generation("{\"do_sample\":true,\"repetition_penalty\":1.1}").info.repetition_penalty == 1.1f);
    assert_true(generation("{\"repetition_penalty\":null}").info.repetition_penalty == 1.0f);
    assert_true(taken("{}").info.repetition_penalty == 1.0f);
}

static void what_is_not_applied_is_named(void **state) {
    struct model_info m = generation("{\"num_beams\":1,\"typical_p\":0.5,\"suppress_tokens\":[],\"guidance_scale\":null}").info;
    assert_string_equal(m.not_applied, "");
    m = generation("{\"num_beams\":4,\"suppress_tokens\":[3],\"forced_eos_token_id\":2,\"early_stopping\":true}").info;
    assert_string_equal(m.not_applied, "num_beams, suppress_tokens, forced_eos_token_id");
    m = generation("{\"do_sample\":true,\"typical_p\":0.5,\"no_repeat_ngram_size\":3}").info;
    assert_string_equal(m.not_applied, "no_repeat_ngram_size, typical_p");
    m = generation("{\"num_beams\":4,\"min_length\":4,\"min_new_tokens\":4,\"no_repeat_ngram_size\":4,\"bad_words_ids\":[[1]],"
                   "\"encoder_repetition_penalty\":4,\"suppress_tokens\":[1],\"begin_suppress_tokens\":[1]}").info;
    assert_int_equal(strlen(m.not_applied), sizeof m.not_applied - 1); /* cut, and whole as a string */
}

static void generation_refused(const char *text, int code, const char *part) {
    struct model_config c;
    struct err err = ERR_INIT;
    write_config("{}");
    write_text("generation_config.json", text);
    assert_err(config_read(&c, dir, &err), code, part, &err);
    write_text("generation_config.json", NULL);
}

static void hostile_generation_configs_are_refused(void **state) {
    generation_refused("{\"eos_token_id\":100}", E_RANGE, "generation_config.json: eos_token_id: 100");
    generation_refused("{\"eos_token_id\":[1,-1]}", E_RANGE, "eos_token_id: [1,-1]");
    generation_refused("{\"eos_token_id\":\"</s>\"}", E_RANGE, "eos_token_id");
    generation_refused("{\"eos_token_id\":[0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16]}", E_RANGE, "more than 16");
    generation_refused("{\"do_sample\":true,\"temperature\":-1}", E_RANGE, "generation_config.json: temperature: -1");
    generation_refused("{\"do_sample\":true,\"top_p\":1.5}", E_RANGE, "top_p: 1.5 is not in");
    generation_refused("{\"do_sample\":true,\"top_k\":-3}", E_RANGE, "top_k: -3 is not in");
    generation_refused("{\"do_sample\":true,\"min_p\":2}", E_RANGE, "min_p: 2 is not in");
    generation_refused("{\"repetition_penalty\":0}", E_RANGE, "repetition_penalty: 0 is not in");
    generation_refused("{\"do_sample\":\"yes\"}", E_PARSE, "do_sample: \"yes\" is not true or false");
    generation_refused("{\"temperature\":NaN}", E_PARSE, "generation_config.json:1");
    generation_refused("[]", E_PARSE, "generation_config.json is not a JSON object");
}

/* ---------------------------------------------------------------- refusals */

static void unsupported_values_are_refused_by_name(void **state) {
    refused("{\"model_type\":\"gpt2\"}", E_UNSUPPORTED,
            "config.json: model_type \"gpt2\" is not supported (llama, mistral, ");
    refused("{\"hidden_act\":\"relu\"}", E_UNSUPPORTED, "hidden_act \"relu\" is not supported (silu, gelu,");
    refused("{\"quantization_config\":{\"quant_method\":\"gptq\"}}", E_UNSUPPORTED,
            "quantization_config.quant_method \"gptq\"");
    refused("{\"quantization_config\":{}}", E_UNSUPPORTED, "quantization_config.quant_method");
    refused("{\"rope_scaling\":{\"type\":\"dynamic\",\"factor\":2.0}}", E_UNSUPPORTED,
            "rope_scaling.rope_type \"dynamic\"");
    refused("{\"rope_parameters\":{\"full_attention\":{\"rope_type\":\"default\",\"rope_theta\":5.0}}}", E_UNSUPPORTED,
            "config.json: rope_parameters.full_attention: {");
    refused("{\"rope_scaling\":{\"factor\":4.0}}", E_UNSUPPORTED, "rope_scaling.factor: 4.0 needs a rope_type");
    refused("{\"model_type\":\"phi\",\"partial_rotary_factor\":0.2}", E_UNSUPPORTED,
            "partial_rotary_factor: 0.2 of head_dim 16 is not supported");
    refused("{\"model_type\":\"phi\",\"partial_rotary_factor\":0}", E_UNSUPPORTED, "partial_rotary_factor: 0 of head_dim 16");
    refused("{\"partial_rotary_factor\":0.5}", E_UNSUPPORTED,
            "config.json: partial_rotary_factor: 0.5 is not supported in this family");
    refused("{\"rope_parameters\":{\"rope_theta\":\"x\",\"partial_rotary_factor\":0.45}}", E_PARSE,
            "config.json: rope_parameters.rope_theta: \"x\" is not a number");
    refused("{\"rope_scaling\":{\"original_max_position_embeddings\":0},\"original_max_position_embeddings\":-1}", E_RANGE,
            "config.json: rope_scaling.original_max_position_embeddings: 0 is not in");
    refused("{\"rope_parameters\":{\"rope_type\":\"default\",\"partial_rotary_factor\":0.45}}", E_UNSUPPORTED,
            "partial_rotary_factor: 0.45");
    refused("{\"head_dim\":12}", E_UNSUPPORTED, "head_dim 12 is not supported (multiples of 8 up to 256 are)");
    refused("{\"head_dim\":512}", E_UNSUPPORTED, "head_dim 512 is not supported");
    refused("{\"model_type\":\"mistral\",\"attention_bias\":true}", E_UNSUPPORTED,
            "attention_bias: true is not supported in this family");
    refused("{\"model_type\":\"mistral\",\"sliding_window\":8,\"layer_types\":[\"sliding_attention\",\"full_"
            "attention\"]}",
            E_UNSUPPORTED, "layer_types \"full_attention\"");
}

static void values_that_make_no_sense_are_refused(void **state) {
    refused("{\"num_attention_heads\":0}", E_RANGE, "config.json: num_attention_heads: 0 is not in 1 .. 4096");
    refused("{\"num_attention_heads\":-4}", E_RANGE, "num_attention_heads: -4");
    refused("{\"num_key_value_heads\":0}", E_RANGE, "num_key_value_heads: 0");
    refused("{\"num_key_value_heads\":3}", E_RANGE,
            "num_attention_heads: 4 is not a multiple of num_key_value_heads: 3");
    refused("{\"num_key_value_heads\":8}", E_RANGE, "is not a multiple");
    refused("{\"hidden_size\":66}", E_RANGE, "hidden_size: 66 is not a multiple of num_attention_heads: 4");
    refused("{\"hidden_size\":-64}", E_RANGE, "hidden_size: -64");
    refused("{\"hidden_size\":64.0}", E_PARSE, "hidden_size: 64.0 is not a whole number");
    refused("{\"hidden_size\":\"64\"}", E_PARSE, "hidden_size: \"64\" is not a whole number");
    refused("{\"hidden_size\":\"-\"}", E_PARSE, "config.json: hidden_size is missing");
    refused("{\"hidden_size\":null}", E_PARSE, "config.json: hidden_size is missing");
    refused("{\"model_type\":\"-\"}", E_PARSE, "config.json: model_type is missing");
    refused("{\"model_type\":[\"llama\"]}", E_PARSE, "model_type: [\"llama\"] is not a string");
    refused("{\"num_hidden_layers\":1000000000}", E_RANGE, "num_hidden_layers: 1000000000 is not in");
    refused("{\"num_hidden_layers\":0}", E_RANGE, "num_hidden_layers: 0");
    refused("{\"intermediate_size\":9223372036854775807}", E_RANGE, "intermediate_size: 9223372036854775807");
    refused("{\"vocab_size\":0}", E_RANGE, "vocab_size: 0");
    refused("{\"head_dim\":0}", E_RANGE, "head_dim: 0");
    refused("{\"max_position_embeddings\":-1}", E_RANGE, "max_position_embeddings: -1");
    refused("{\"rms_norm_eps\":-1e-5}", E_RANGE, "rms_norm_eps: -1");
    refused("{\"rms_norm_eps\":[]}", E_PARSE, "rms_norm_eps: [] is not a number");
    refused("{\"rope_theta\":0}", E_RANGE, "rope_theta: 0 is not in");
    refused("{\"rope_theta\":-10000.0}", E_RANGE, "rope_theta: -10000.0");
    refused("{\"rope_theta\":1e300}", E_RANGE, "rope_theta: 1");
    refused("{\"rope_scaling\":5}", E_PARSE, "rope_scaling: 5 is not an object");
    refused("{\"rope_scaling\":{\"rope_type\":\"linear\"}}", E_PARSE, "config.json: rope_scaling.factor is missing");
    refused("{\"rope_scaling\":{\"rope_type\":\"linear\",\"factor\":0}}", E_RANGE, "rope_scaling.factor: 0 is not in");
    refused("{\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8,\"low_freq_factor\":4,\"high_freq_"
            "factor\":4}}",
            E_RANGE, "rope_scaling.high_freq_factor: 4 is not above low_freq_factor");
    refused("{\"rope_scaling\":{\"rope_type\":\"longrope\",\"long_factor\":[1,1,1,1,1,1,1,1]}}", E_PARSE,
            "rope_scaling.short_factor is missing");
    refused("{\"rope_scaling\":{\"rope_type\":\"longrope\",\"long_factor\":[1],\"short_factor\":[1,1,1,1,1,1,1,1]}}",
            E_RANGE, "rope_scaling.long_factor: [1] is not a list of one number for each two rotated dimensions");
    refused("{\"rope_scaling\":{\"rope_type\":\"longrope\",\"long_factor\":[1,1,1,0,1,1,1,1],\"short_factor\":"
            "[1,1,1,1,1,1,1,1]}}",
            E_RANGE, "rope_scaling.long_factor: [1,1,1,0,1,1,1,1] is not a list of numbers in");
    refused("{\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":0.5}}", E_RANGE, "rope_scaling.factor: 0.5 is not in");
    refused("{\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":4,\"truncate\":1}}", E_PARSE,
            "rope_scaling.truncate: 1 is not true or false");
    refused("{\"model_type\":\"mistral\",\"sliding_window\":0}", E_RANGE, "sliding_window: 0");
    refused("{\"eos_token_id\":100}", E_RANGE, "config.json: eos_token_id: 100 is not a token id below vocab_size");
    refused("{\"attention_bias\":1}", E_PARSE, "attention_bias: 1 is not true or false");
}

/* What a family's own keys may not say. */
static void specials_that_are_not_computed_are_refused(void **state) {
    refused("{\"model_type\":\"falcon\",\"parallel_attn\":false,\"new_decoder_architecture\":true}", E_UNSUPPORTED,
            "parallel_attn: false does not go with new_decoder_architecture");
    refused("{\"model_type\":\"falcon\",\"num_ln_in_parallel_attn\":2}", E_UNSUPPORTED, "num_ln_in_parallel_attn: 2");
    refused("{\"model_type\":\"falcon\",\"new_decoder_architecture\":true,\"num_kv_heads\":3}", E_RANGE,
            "num_kv_heads: 3 does not go with num_attention_heads");
    refused("{\"model_type\":\"mpt\",\"d_model\":64,\"n_layers\":2,\"n_heads\":4,\"attn_config\":{\"alibi\":false}}",
            E_UNSUPPORTED, "attn_config.alibi: false is not supported");
    refused("{\"model_type\":\"mpt\",\"d_model\":64,\"n_layers\":2,\"n_heads\":4,\"attn_config\":{\"qk_ln\":true}}",
            E_UNSUPPORTED, "attn_config.qk_ln: true is not supported");
    refused("{\"model_type\":\"mpt\",\"d_model\":64,\"n_layers\":2,\"n_heads\":4,\"attn_config\":7}", E_PARSE,
            "attn_config: 7 is not an object");
    refused("{\"model_type\":\"mpt\",\"d_model\":64,\"n_layers\":2,\"n_heads\":4,\"no_bias\":false}", E_UNSUPPORTED,
            "no_bias: false");
    refused("{\"model_type\":\"mixtral\",\"num_experts_per_tok\":9}", E_RANGE, "num_experts_per_tok: 9 is not in 1 .. 8");
    refused("{\"model_type\":\"gemma2\",\"attn_logit_softcapping\":-1}", E_RANGE, "attn_logit_softcapping: -1");
    refused("{\"model_type\":\"gemma2\",\"layer_types\":[\"full_attention\"]}", E_RANGE,
            "layer_types: [\"full_attention\"] is not a list of one kind a layer");
    refused("{\"model_type\":\"qwen2\",\"layer_types\":[\"sliding_attention\",\"full_attention\"]}", E_UNSUPPORTED,
            "layer_types \"sliding_attention\" is not supported (it needs a sliding_window)");
    refused("{\"model_type\":\"phi3\",\"attention_bias\":true}", E_UNSUPPORTED, "attention_bias: true");
}

static void a_long_value_is_cut_in_the_message(void **state) {
    char changes[3000] = "{\"hidden_size\":\"";
    memset(changes + strlen(changes), 'x', 2000);
    strcat(changes, "\"}");
    refused(changes, E_PARSE, "hidden_size: ");
    snprintf(changes, sizeof changes, "{\"hidden_size\":[%0100d]}", 0);
    struct model_config c;
    struct err err = ERR_INIT;
    write_text("config.json", "{\"model_type\":\"llama\",\"hidden_size\":[1,2,3,4,5,6,7,8,9,10,11,12,13,14,"
                              "15,16,17,18,19,20,21,22,23,24,25]}");
    assert_err(config_read(&c, dir, &err), E_PARSE, "hidden_size: [1,2,3,4,5,", &err);
    assert_non_null(strstr(err.text, "... is not a whole number"));
}

static void files_that_are_no_config_are_refused(void **state) {
    struct model_config c;
    struct err err = ERR_INIT;
    assert_err(config_read(&c, "/nonexistent/model", &err), E_NOT_FOUND, "/nonexistent/model has no config.json", &err);
    write_text("config.json", "");
    assert_int_equal(config_read(&c, dir, &err), E_PARSE);
    write_text("config.json", "{\"model_type\":");
    assert_err(config_read(&c, dir, &err), E_PARSE, "config.json:1: ", &err);
    write_text("config.json", "[1]");
    assert_err(config_read(&c, dir, &err), E_PARSE, "is not a JSON object", &err);
    write_text("config.json", "{\"rms_norm_eps\":NaN}");
    assert_err(config_read(&c, dir, &err), E_PARSE, "config.json:1", &err);
    char *deep = mem_alloc((2 << 20) + 1);
    memset(deep, '[', 2 << 20);
    deep[2 << 20] = '\0';
    write_text("config.json", deep);
    assert_err(config_read(&c, dir, &err), E_RANGE, "more than the 1048576 allowed", &err);
    deep[100000] = '\0';
    write_text("config.json", deep);
    assert_int_equal(config_read(&c, dir, &err), E_PARSE);
    free(deep);
}

/* ---------------------------------------------------------------- mutations */

/* Any value in the place of any other: refused, or within the limits the rest relies on. */
static void mutations_are_refused_or_in_range(void **state) {
    static const char *const keys[] = {
        "hidden_size",    "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
        "head_dim",       "intermediate_size", "vocab_size",          "max_position_embeddings",
        "rms_norm_eps",   "rope_theta",        "rope_scaling",        "rope_parameters",
        "sliding_window", "eos_token_id",      "model_type",          "layer_types",
        "torch_dtype",    "attn_config",       "partial_rotary_factor", "num_kv_heads",
        "alibi",          "num_experts_per_tok"};
    static const char *const values[] = {
        "0",
        "1",
        "-1",
        "7",
        "8",
        "64",
        "1024",
        "1000000000",
        "9223372036854775807",
        "1e308",
        "-0.0",
        "null",
        "true",
        "\"\"",
        "\"mistral\"",
        "\"phi\"",
        "\"falcon\"",
        "\"gemma2\"",
        "\"mixtral\"",
        "0.3",
        "[]",
        "[1,2]",
        "[[[]]]",
        "{}",
        "{\"type\":\"linear\",\"factor\":3}",
        "{\"rope_type\":1}",
        "\"a very long string that does not fit into the room for a dtype\""};
    enum { N_KEYS = sizeof keys / sizeof *keys, N_VALUES = sizeof values / sizeof *values };
    int n_taken = 0, n = 0;
    for (int i = 0; i < N_KEYS * N_VALUES; i++) {
        for (int j = 0; j < N_KEYS; j += test_is_quick() ? 5 : 1, n++) {
            char changes[500];
            snprintf(changes, sizeof changes, "{\"%s\":%s,\"%s\":%s}", keys[i % N_KEYS], values[i / N_KEYS],
                     keys[(i + 1 + j) % N_KEYS], values[(i * 7 + j) % N_VALUES]);
            struct model_config c;
            struct err err = ERR_INIT;
            write_config(changes);
            if (config_read(&c, dir, &err) < 0) {
                assert_true(strlen(err.text) > 10);
                continue;
            }
            const struct model_info *m = &c.info;
            assert_true(m->hidden > 0 && m->n_layers > 0 && m->n_layers <= 4096 && m->vocab > 0 && m->context > 0);
            assert_true(m->n_heads > 0 && m->n_kv_heads > 0 && m->n_heads % m->n_kv_heads == 0 && m->intermediate > 0);
            assert_true(m->head_dim > 0 && m->head_dim <= MAX_HEAD_DIM && m->head_dim % 8 == 0);
            assert_true(m->sliding_window >= 0 && isfinite(c.norm_eps) && c.positions.theta >= 1.0f);
            assert_true(c.positions.n_rotated >= 0 && c.positions.n_rotated <= m->head_dim &&
                        c.positions.n_rotated % 2 == 0 && isfinite(c.attention_scale) && c.attention_scale > 0);
            assert_true(c.mlp != MLP_EXPERTS || (c.experts_per_row > 0 && c.experts_per_row <= c.n_experts));
            n_taken++;
        }
    }
    assert_in_range(n_taken, n / 50, n * 4 / 5);
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
    cmocka_unit_test(llama_3_1_8b),
    cmocka_unit_test(mistral_7b_v0_1_slides),
    cmocka_unit_test(phi_2),
    cmocka_unit_test(specials_of_real_families),
    cmocka_unit_test(llama_2_7b_has_no_rope_theta),
    cmocka_unit_test(every_real_family_runs_or_is_refused_by_name),
    cmocka_unit_test(absent_keys_mean_what_they_mean_to_transformers),
    cmocka_unit_test(head_dim_may_differ_from_hidden_over_heads),
    cmocka_unit_test(flags_are_read),
    cmocka_unit_test(rope_in_both_spellings),
    cmocka_unit_test(phi3_has_its_original_context_outside),
    cmocka_unit_test(gelu_of_both_gemmas),
    cmocka_unit_test(inv_freq_equals_transformers),
    cmocka_unit_test(generation_config_overrides_stop_ids),
    cmocka_unit_test(sampling_defaults_need_do_sample),
    cmocka_unit_test(a_repetition_penalty_holds_without_do_sample),
    cmocka_unit_test(what_is_not_applied_is_named),
    cmocka_unit_test(hostile_generation_configs_are_refused),
    cmocka_unit_test(unsupported_values_are_refused_by_name),
    cmocka_unit_test(values_that_make_no_sense_are_refused),
    cmocka_unit_test(specials_that_are_not_computed_are_refused),
    cmocka_unit_test(a_long_value_is_cut_in_the_message),
    cmocka_unit_test(files_that_are_no_config_are_refused),
    cmocka_unit_test(mutations_are_refused_or_in_range),
};

int main(int argc, char **argv) {
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, make_dir, drop_dir);
}
