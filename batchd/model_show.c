/* model_show.c - see model_show.h. */
#include "batchd/model_show.h"
#include "batchd/command.h"
#include "batchd/exit.h"
#include "engine/engine.h"

#include <stdlib.h>
#include <string.h>

static const int gpus[] = {16, 24, 80, 141}; /* GB, that is 10^9 bytes */
static const char *const kinds[] = {"none", "int8", "fp8", "fp4", "nf4", "nf4-dq"};
static const char *const kv_dtypes[] = {"auto", "fp8"};

enum { N_GPUS = sizeof gpus / sizeof *gpus, N_KINDS = sizeof kinds / sizeof *kinds, N_KVS = 2 };

struct room { /* under one quantization and KV cache dtype */
    const char *kind, *kv_dtype;
    struct model_plan plan;
    int64_t tokens[N_GPUS]; /* that the KV cache holds; 0 = the model does not fit */
};

struct facts {
    const char *name, *path;
    bool has_weights; /* else all follows from config.json */
    struct model_info info;
    struct tokenizer *tok; /* NULL: it cannot be read, and why */
    struct err tok_err;
    struct room rooms[N_KINDS * N_KVS];
    size_t n_rooms;
};

/* ---------------------------------------------------------------- gathering */

static int plan_room(struct room *out, const struct facts *f, const char *kind, const char *kv_dtype, struct err *err) {
    struct engine_options o = ENGINE_OPTIONS_DEFAULT;
    o.model_dir = f->path;
    if (!f->has_weights) o.load_format = "dummy";
    o.quantization = kind;
    o.kv_cache_dtype = kv_dtype;
    *out = (struct room){.kind = kind, .kv_dtype = kv_dtype};
    int r = model_plan(&out->plan, &o, err);
    for (int i = 0; r == 0 && i < N_GPUS; i++)
        out->tokens[i] = model_plan_kv_tokens(&out->plan, &o, (int64_t)gpus[i] * 1000000000);
    return r;
}

/* A checkpoint that is quantized already can become nothing else: such rows are left out. */
static void plan_rooms(struct facts *f) {
    for (int k = 0; k < N_KINDS; k++)
        for (int v = 0; v < N_KVS; v++)
            if (plan_room(&f->rooms[f->n_rooms], f, kinds[k], kv_dtypes[v], NULL) == 0) f->n_rooms++;
}

static int64_t kv_bytes(const struct facts *f, const char *kv_dtype) {
    for (size_t i = 0; i < f->n_rooms; i++)
        if (strcmp(f->rooms[i].kv_dtype, kv_dtype) == 0) return f->rooms[i].plan.kv_token_bytes;
    return 0;
}

/* ---------------------------------------------------------------- as JSON */

static json_t *stop_ids_json(const struct model_info *m) {
    json_t *list = json_array();
    for (int32_t i = 0; i < m->n_stop_ids; i++) json_array_append_new(list, json_integer(m->stop_ids[i]));
    return list;
}

/* 0.6f as 0.6. */
static json_t *real_json(float x) {
    char text[24];
    snprintf(text, sizeof text, "%.7g", (double)x);
    return json_real(strtod(text, NULL));
}

/* What a job has where neither flag nor row says otherwise. */
static json_t *sampling_json(const struct model_info *m) {
    json_t *o = json_pack("{s:o}", "temperature", real_json(m->has_temperature ? m->temperature : 0.0f));
    if (m->has_top_p) json_object_set_new(o, "top_p", real_json(m->top_p));
    if (m->has_top_k) json_object_set_new(o, "top_k", json_integer(m->top_k));
    if (m->has_min_p) json_object_set_new(o, "min_p", real_json(m->min_p));
    if (m->repetition_penalty > 0 && m->repetition_penalty != 1.0f)
        json_object_set_new(o, "repetition_penalty", real_json(m->repetition_penalty));
    return o;
}

static json_t *room_json(const struct room *r) {
    json_t *tokens = json_object();
    for (int i = 0; i < N_GPUS; i++) {
        char key[24];
        snprintf(key, sizeof key, "%d", gpus[i]);
        json_object_set_new(tokens, key, json_integer(r->tokens[i]));
    }
    return json_pack("{s:s, s:s, s:I, s:I, s:I, s:o}", "quantization", r->kind, "kv_cache_dtype", r->kv_dtype,
                     "weight_bytes", (json_int_t)r->plan.weight_bytes, "step_bytes", (json_int_t)r->plan.step_bytes,
                     "kv_bytes_per_token", (json_int_t)r->plan.kv_token_bytes, "kv_tokens_by_gpu_gb", tokens);
}

static json_t *tokenizer_json(const struct facts *f) {
    if (!f->tok) return json_pack("{s:s}", "error", f->tok_err.text);
    return json_pack("{s:I, s:b, s:b}", "ids", (json_int_t)tokenizer_n_ids(f->tok), "adds_bos", tokenizer_adds_bos(f->tok),
                     "chat_template", tokenizer_has_chat_template(f->tok));
}

static json_t *facts_json(const struct facts *f) {
    const struct model_info *m = &f->info;
    json_t *o = json_pack("{s:o, s:o, s:s, s:s, s:I, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:b, s:I}", "name",
                          command_text_json(f->name), "path", command_text_json(f->path), "family", m->family, "dtype", m->dtype, "parameters", (json_int_t)m->n_params,
                          "layers", m->n_layers, "hidden", m->hidden, "heads", m->n_heads, "kv_heads", m->n_kv_heads,
                          "head_dim", m->head_dim, "vocabulary", m->vocab, "context", m->context, "sliding_window",
                          m->sliding_window, "tied_embeddings", m->tied_embeddings, "kv_bytes_per_token",
                          (json_int_t)m->kv_bytes_per_token);
    json_t *rooms = json_array();
    json_object_set_new(o, "has_weights", json_boolean(f->has_weights));
    for (size_t i = 0; i < f->n_rooms; i++) json_array_append_new(rooms, room_json(&f->rooms[i]));
    json_object_set_new(o, "tokenizer", tokenizer_json(f));
    json_object_set_new(o, "stop_token_ids", stop_ids_json(m));
    json_object_set_new(o, "sampling", sampling_json(m));
    json_object_set_new(o, "not_applied", json_string(m->not_applied));
    json_object_set_new(o, "gpus", rooms);
    return o;
}

/* ---------------------------------------------------------------- for people */

static void print_model(const struct facts *f) {
    const struct model_info *m = &f->info;
    char n[32], kv[32], fp8[32];
    printf("%s\n  folder      %s\n", f->name, f->path);
    if (!f->has_weights) puts("  weights     none here: what follows is what config.json says of them");
    printf("  family      %s, %s, %s parameters\n", m->family, m->dtype, command_count(n, m->n_params));
    printf("  shape       %d layers, hidden %d, %d heads of %d, %d key/value heads\n", m->n_layers, m->hidden, m->n_heads,
           m->head_dim, m->n_kv_heads);
    printf("  vocabulary  %d%s\n", m->vocab, m->tied_embeddings ? ", tied embeddings" : "");
    printf("  context     %d tokens", m->context);
    if (m->sliding_window) printf(", sliding window %d", m->sliding_window);
    printf("; a token's keys and values: %s bytes", command_count(kv, m->kv_bytes_per_token));
    if (f->n_rooms) printf(", in fp8 %s", command_count(fp8, kv_bytes(f, "fp8")));
    putchar('\n');
}

static void print_text(const struct facts *f) {
    char n[32];
    if (!f->tok) printf("  tokenizer   cannot be used: %s\n", f->tok_err.text);
    else
        printf("  tokenizer   %s ids, %s; %s\n", command_count(n, (int64_t)tokenizer_n_ids(f->tok)),
               tokenizer_adds_bos(f->tok) ? "adds BOS" : "adds no BOS",
               tokenizer_has_chat_template(f->tok) ? "with a chat template" : "no chat template");
}

static void print_sampling(const struct model_info *m) {
    printf("  stops       ");
    for (int32_t i = 0; i < m->n_stop_ids; i++) printf("%s%d", i ? ", " : "", m->stop_ids[i]);
    printf("%s\n  sampling    ", m->n_stop_ids ? "" : "none");
    if (m->has_temperature && m->temperature > 0) printf("temperature %g", (double)m->temperature);
    else printf("greedy");
    if (m->has_top_p) printf(", top_p %g", (double)m->top_p);
    if (m->has_top_k) printf(", top_k %d", m->top_k);
    if (m->has_min_p) printf(", min_p %g", (double)m->min_p);
    if (m->repetition_penalty > 0 && m->repetition_penalty != 1.0f)
        printf(", repetition_penalty %g", (double)m->repetition_penalty);
    if (*m->not_applied) printf("\n              not applied: %s of generation_config.json", m->not_applied);
    putchar('\n');
}

static void print_rooms(const struct facts *f) {
    char n[32];
    if (f->n_rooms == 0) return;
    printf("\n  tokens that the KV cache holds on a GPU of so many GB, all of it free (- : does not fit;\n"
           "  never more than all sequences that may be under way can use); weights: with tables\n"
           "  of positions, and the room that a GPU needs to multiply with quantized ones\n\n");
    printf("  %-14s  %9s", "", "weights");
    for (int i = 0; i < N_GPUS; i++) printf("  %8d GB", gpus[i]);
    putchar('\n');
    for (size_t i = 0; i < f->n_rooms; i++) {
        const struct room *r = &f->rooms[i];
        char what[40];
        snprintf(what, sizeof what, "%s%s", r->kind, strcmp(r->kv_dtype, "fp8") == 0 ? ", fp8 KV" : "");
        double gb = (double)r->plan.weight_bytes / 1e9;
        printf("  %-14s  %6.*f %s", what, gb < 1 ? 1 : 2, gb < 1 ? gb * 1000 : gb, gb < 1 ? "MB" : "GB");
        for (int k = 0; k < N_GPUS; k++) printf("  %11s", r->tokens[k] ? command_count(n, r->tokens[k]) : "-");
        putchar('\n');
    }
}

int model_show(const struct args *args, const char *name, const char *path) {
    struct facts f = {.name = name, .path = path, .has_weights = model_has_weights(path)};
    struct err err = ERR_INIT;
    int r = f.has_weights ? model_describe(&f.info, path, &err) : model_describe_config(&f.info, path, &err);
    if (r < 0) return exit_with(ABOUT_MODEL, &err);
    if (tokenizer_open(&f.tok, path, &f.tok_err) < 0) f.tok = NULL;
    plan_rooms(&f);
    if (args->json) command_print_json(facts_json(&f));
    else {
        print_model(&f);
        print_text(&f);
        print_sampling(&f.info);
        print_rooms(&f);
    }
    tokenizer_close(f.tok);
    return EXIT_DONE;
}
