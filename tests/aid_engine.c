/* aid_engine.c - see aid_engine.h. */
#include "tests/aid_engine.h"

bool is_cuda(void) {
    return strcmp(test_device(), "cuda") == 0;
}

struct engine *open_engine(const struct run *run) {
    struct engine *e;
    struct err err = ERR_INIT;
    struct engine_options o = ENGINE_OPTIONS_DEFAULT;
    o.model_dir = run->dir;
    o.device = test_device();
    o.dtype = run->dtype;
    o.kv_cache_dtype = run->kv_dtype;
    if (run->quantization) o.quantization = run->quantization;
    o.threads = run->threads;
    o.max_num_batched_tokens = run->rows;
    o.lookahead = run->lookahead;
    o.max_num_seqs = run->seqs;
    o.kv_cache_memory_bytes = run->kv_bytes;
    o.max_model_len = run->max_len;
    o.step_log = run->step_log;
    if (run->load_format) o.load_format = run->load_format;
    int r = engine_open(&e, &o, &err);
    if (r == E_UNSUPPORTED && is_cuda()) skip(); /* a GPU without bfloat16 */
    assert_ok(r, &err);
    return e;
}

struct engine_completion *collect(struct engine *e) {
    struct engine_completion *c = engine_collect(e, 120000);
    assert_non_null(c);
    return c;
}

struct engine_request *text_request(struct engine *e, const char *text) {
    struct engine_request *r = engine_request_new();
    struct token_list ids = {0};
    struct err err = ERR_INIT;
    struct encode_options o = {.add_special = true};
    assert_ok(tokenizer_encode(engine_tokenizer(e), &ids, text, strlen(text), &o, &err), &err);
    r->tokens = ids.ids;
    r->n_tokens = ids.n;
    return r;
}
