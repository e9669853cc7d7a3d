/* engine.h - token ids in, token ids out. The one public header of engine/.
 *
 * Three parts, from simple to special: text (tokenizer, chat template), the
 * description of a model folder, and the engine itself, which runs requests in
 * continuous batches on one device.
 *
 * tests/fake/ holds a second implementation of this header, without a model. */
#ifndef BATCHD_ENGINE_ENGINE_H
#define BATCHD_ENGINE_ENGINE_H

#include "base/buf.h"
#include "base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* ------------------------------------------------------------------ text */

/* What a model folder says about text: tokenizer.json, and where they are there
 * tokenizer_config.json, special_tokens_map.json and chat_template.jinja.
 * Immutable once open: any thread may use it. */
struct tokenizer;

int tokenizer_open(struct tokenizer **out, const char *model_dir, struct err *err);
void tokenizer_close(struct tokenizer *tok); /* NULL is fine */

size_t tokenizer_n_ids(const struct tokenizer *tok); /* one more than the highest id */
bool tokenizer_adds_bos(const struct tokenizer *tok); /* the post-processor puts a token in front */

struct token_list { /* all zero = empty; give back with token_list_clear */
    int32_t *ids;
    size_t n, cap;
};
void token_list_clear(struct token_list *list);
void token_list_push(struct token_list *list, int32_t id);

struct text_span { /* bytes [begin, end) of a text */
    size_t begin, end;
};

struct encode_options {     /* all zero = plain text as it stands */
    bool add_special;       /* run the post-processor (BOS where the family has one) */
    bool parse_special;     /* special tokens written out in the text become their ids */
    const struct text_span *plain; /* ascending spans where parse_special does not hold: a row's */
    size_t n_plain;                /* own text can never become a control token */
};

/* Append the ids of n bytes of valid UTF-8. E_PARSE when the bytes are not UTF-8,
 * E_RANGE when a pattern of the pre-tokenizer runs into its limits. Time is
 * O(n log n) whatever the text. */
int tokenizer_encode(const struct tokenizer *tok, struct token_list *out, const char *text, size_t n,
                     const struct encode_options *options, struct err *err);

/* Append the text of n ids: exactly what the ids say, no clean-up of spaces, bytes
 * that are not UTF-8 as U+FFFD. Ids out of range give nothing. */
void tokenizer_decode(const struct tokenizer *tok, struct buf *out, const int32_t *ids, size_t n,
                      bool skip_special);

/* The same, token by token: what was pushed is in `text` as soon as later tokens
 * cannot change it. After detokenizer_finish the text equals tokenizer_decode's. */
struct detokenizer {
    const struct tokenizer *tok; /* borrowed */
    struct buf text;             /* decoded so far */
    struct buf held;             /* bytes that may be part of an unfinished character */
    bool started;                /* a token was pushed: the leading-space rule is spent */
    bool skip_special;
};
void detokenizer_init(struct detokenizer *d, const struct tokenizer *tok, bool skip_special);
void detokenizer_push(struct detokenizer *d, int32_t id);
void detokenizer_finish(struct detokenizer *d);
void detokenizer_clear(struct detokenizer *d);

/* Append the bytes that one id stands for, special tokens as they are written. A character
 * may be cut into several tokens, so they need not be UTF-8. */
void tokenizer_token_bytes(const struct tokenizer *tok, struct buf *out, int32_t id);

struct chat_text {           /* all zero = empty; give back with chat_text_clear */
    struct buf text;         /* the rendered conversation */
    struct text_span *plain; /* the parts that came from messages, ascending */
    size_t n_plain, cap_plain;
};
void chat_text_clear(struct chat_text *t);

bool tokenizer_has_chat_template(const struct tokenizer *tok);

/* A template of the user's own. Immutable. E_UNSUPPORTED names the construct that the
 * interpreter does not have; E_RANGE: it is too large or nested too deeply. */
struct chat_template;
int chat_template_new(struct chat_template **out, const char *source, size_t n, struct err *err);
void chat_template_free(struct chat_template *t); /* NULL is fine */

struct chat_options {
    const struct chat_template *chat_template; /* in place of the model's; NULL = the model's */
    bool add_generation_prompt;
    int64_t now; /* for templates that write the date: seconds since 1970; 0 = the clock */
};

/* Render a conversation. `variables` is a JSON object: "messages", an array of objects with
 * a role, a content (a string, or parts of which the texts are taken) and whatever else the
 * template reads; "tools", "documents" and further variables where they are there.
 * E_UNSUPPORTED names the construct that the interpreter does not have; E_RANGE: a limit
 * on steps, depth, memory or output; E_PARSE: the template's own raise_exception, with its
 * text, or an operation that makes no sense. */
int tokenizer_render_chat(const struct tokenizer *tok, struct chat_text *out, const char *variables,
                          const struct chat_options *options, struct err *err);

/* ------------------------------------------------------------------ model */

struct model_info {
    char family[32];            /* config.json's model_type */
    char dtype[16];             /* of the checkpoint: "float32", "bfloat16", "float16" */
    int64_t n_params;
    int32_t n_layers, hidden, n_heads, n_kv_heads, head_dim, intermediate, vocab;
    int32_t context;            /* longest sequence, tokens */
    int32_t sliding_window;     /* 0 = none */
    int32_t rope_switch;        /* a sequence of more positions has a second set of rotary frequencies; 0 = there is none */
    bool tied_embeddings;
    int64_t kv_bytes_per_token; /* in the checkpoint's dtype */
    int32_t stop_ids[16];       /* generation_config.json, else config.json's eos */
    int32_t n_stop_ids;
    bool has_temperature;       /* generation_config.json's defaults, where it gives them */
    float temperature;
    bool has_top_p;
    float top_p;
    bool has_top_k;
    int32_t top_k;
    bool has_min_p;
    float min_p;
    float repetition_penalty;   /* 1 = none */
    char not_applied[120];      /* keys of generation_config.json that ask for what is not built, ", " between */
};

/* Read config.json, generation_config.json and the headers of the weights, load nothing. */
int model_describe(struct model_info *out, const char *model_dir, struct err *err);

/* The same from config.json and generation_config.json alone; its torch_dtype is the dtype. */
int model_describe_config(struct model_info *out, const char *model_dir, struct err *err);

/* Is some file of weights in the folder? */
bool model_has_weights(const char *model_dir);

/* Names of the files of the folder that are read, ascending: config.json, the weights and their
 * index, and of those that may be missing what is there. The weights' headers are checked on the
 * way. The caller frees each name, then the list. */
int model_list_files(char ***out, size_t *n, const char *model_dir, struct err *err);

/* ------------------------------------------------------------------ engine */

struct engine_options {
    const char *model_dir;
    const char *device;             /* "auto" = cuda where it can be used, "cpu", "cuda" */
    const char *dtype;              /* "auto" = the checkpoint's, "float32", "bfloat16", "float16" */
    const char *quantization;       /* "none", "int8", "fp4", "nf4", "nf4-dq", "fp8": what float weights of
                                       layers become as they are loaded; NULL = none. "nf4 except A,B":
                                       the modules that A or B name stay as they are. "int8 outliers
                                       batch": columns as bitsandbytes has them (ops.h: op_linear), so that an
                                       answer depends on what shares its steps; "none outliers batch": of a
                                       checkpoint that is int8 already */
    const char *cache_dir;          /* keeps weights that were quantized on load for the next start; NULL = none */
    int64_t cache_bytes;            /* that it may take; 0 = no cache */
    const char *kv_cache_dtype;     /* "auto" = dtype, "fp8": a scale for each token and head */
    const char *load_format;        /* "auto", "dummy" (random weights, config.json alone is read) */
    int64_t max_model_len;          /* 0 = the model's context, or what the KV cache holds of it */
    int32_t max_num_seqs;           /* 0 = 64 on the CPU, 2048 on CUDA */
    int32_t max_num_batched_tokens; /* 0 = 512 on the CPU, 4096 on CUDA: rows of a step */
    int64_t kv_cache_memory_bytes;  /* 0 = on the CPU the smaller of 1 GiB and a quarter of available memory,
                                       on CUDA what the next two leave; and no more than twice what
                                       max_num_seqs of the longest sequences take */
    double gpu_memory_utilization;  /* share of the free device memory to use, 0 = 0.95 */
    int64_t gpu_memory_limit;       /* bytes that weights, step and KV cache may take, 0 = no limit */
    int32_t threads;                /* 0 = all cores */
    int32_t lookahead;              /* steps submitted before the oldest is collected: 0, 1, 2; -1 = what
                                       suits the device: 0 on the CPU, where a step is over when it is submitted, else 1 */
    int32_t profile_every;          /* profile one step in so many: see engine_profile; 0 = none */
    FILE *step_log;                 /* NULL, or one line a step: see docs/engine.md */
};
extern const struct engine_options ENGINE_OPTIONS_DEFAULT;

/* Sampling of one request, under OpenAI's and vLLM's names. Order of application: allowed
 * and banned ids, logit bias, repetition, frequency, presence penalty; temperature, top_k,
 * top_p, min_p; then one draw by Gumbel's trick with Philox keyed by (seed, position), so
 * that a token does not depend on its neighbours. The rule in full is op_sample's. */
struct sampling {
    int32_t max_tokens; /* >= 1 */
    int32_t min_tokens; /* stop ids and end-of-sequence cannot be sampled before */
    float temperature;  /* 0 = greedy; ties go to the lowest id */
    float top_p;        /* (0, 1]; 1 = off */
    float min_p;        /* [0, 1]; 0 = off */
    int32_t top_k;      /* 0 = off */
    uint64_t seed;
    bool ignore_eos;    /* the model's stop ids do not stop; those of the request do */
    char **stop;        /* stop strings; the completion ends before the first one */
    size_t n_stop;
    int32_t *stop_token_ids; /* besides the model's */
    size_t n_stop_token_ids;
    float repetition_penalty; /* > 0, for tokens of the prompt and the completion; 1 = off */
    float presence_penalty, frequency_penalty; /* for tokens of the completion; 0 = off */
    int32_t *logit_bias_ids;  /* any order; an id that is there twice gets the sum */
    float *logit_bias;        /* as many */
    size_t n_logit_bias;
    int32_t *allowed_token_ids, *banned_token_ids; /* allowed: none = all are */
    size_t n_allowed_token_ids, n_banned_token_ids;
    int32_t logprobs;         /* of each sampled token and of so many highest, 0 .. 20; -1 = none */
    int32_t prompt_logprobs;  /* the same of the prompt's tokens but the first, whose place has no logits */
};
extern const struct sampling SAMPLING_DEFAULT; /* 256 tokens, greedy */

struct engine_request { /* from engine_request_new; the engine frees it */
    uint64_t tag;       /* the caller's; comes back in the completion */
    int32_t *tokens;    /* the prompt */
    size_t n_tokens;
    struct sampling sampling; /* owns its arrays */
};
struct engine_request *engine_request_new(void); /* SAMPLING_DEFAULT, no tokens */
void engine_request_free(struct engine_request *r);

enum { ENGINE_MAX_LOGPROBS = 20 };

/* log_softmax of the raw logits (before penalties, bias and temperature), in f32, of n
 * tokens one after another and of the n_top highest at each of their places. */
struct logprobs { /* all zero = none */
    int32_t n, n_top;
    float *token;     /* [n] */
    int32_t *rank;    /* [n]: 1 = no token is likelier */
    int32_t *top_ids; /* [n][n_top], highest first, ties in order of id; -1 beyond the vocabulary */
    float *top;       /* [n][n_top] */
};

enum finish_reason { FINISH_STOP, FINISH_LENGTH, FINISH_ERROR, FINISH_ABORTED };

struct engine_completion { /* give back with engine_completion_free */
    uint64_t tag;
    enum finish_reason finish;
    int32_t *tokens;     /* sampled ids; a stop id that ended the text is not among them */
    size_t n_tokens;
    struct logprobs logprobs; /* of tokens, where asked for; none where the request failed */
    struct logprobs prompt_logprobs; /* likewise of prompt_tokens[1 ..] */
    int32_t *prompt_tokens;   /* [n_prompt_tokens], where prompt_logprobs was asked for, else NULL */
    size_t text_bytes;   /* cut the decoded text here (a stop string), SIZE_MAX = nowhere */
    int32_t n_prompt_tokens, n_cached_tokens;
    int32_t n_completion_tokens; /* sampled, the stop id included */
    int32_t preemptions;
    int64_t scheduled_ns, first_token_ns, last_token_ns; /* monotonic clock; 0 = did not happen */
    const char *error_code; /* FINISH_ERROR: context_length, empty_prompt, bad_token, numeric; static */
    char error[200];
};
void engine_completion_free(struct engine_completion *c); /* NULL is fine */

/* What an engine with these options would need on a GPU; nothing but the folder is looked at,
 * and there need not be a GPU. With dummy weights config.json alone is read. The rule by which
 * engine_open divides memory. */
struct model_plan {
    int64_t weight_bytes;   /* and what lies beside them: tables of positions, a GPU's scratch for quantized ones */
    int64_t step_bytes;     /* tensors of a step and room to draw */
    int64_t kv_token_bytes; /* keys and values of one token, all layers */
    int64_t kv_block_bytes;
    int32_t max_num_seqs, max_model_len;
};
int model_plan(struct model_plan *out, const struct engine_options *options, struct err *err);

/* Tokens that the KV cache holds then, on a GPU with so many bytes free; 0 = it does not fit. */
int64_t model_plan_kv_tokens(const struct model_plan *plan, const struct engine_options *options, int64_t gpu_bytes);

/* The engine runs a thread of its own from open to close. The functions below may
 * be called from any thread. */
struct engine;

/* E_NOT_FOUND, E_PARSE, E_UNSUPPORTED: the model folder; E_DEVICE, E_NO_MEMORY:
 * with the arithmetic of what is needed and what there is. */
int engine_open(struct engine **out, const struct engine_options *options, struct err *err);

/* Stop at once, dropping what runs; then free. NULL is fine. */
void engine_close(struct engine *e);

const struct model_info *engine_model(const struct engine *e);
const struct tokenizer *engine_tokenizer(const struct engine *e); /* NULL with dummy weights and no tokenizer.json */
int32_t engine_max_model_len(const struct engine *e);
int32_t engine_max_num_seqs(const struct engine *e);
const char *engine_device_name(const struct engine *e);
double engine_device_open_s(const struct engine *e); /* seconds of engine_open that went into opening the device */

/* Hand over a request. A prompt too long for the context and the like come back
 * as completions with FINISH_ERROR. False: no room within timeout_ms, or the
 * engine has failed; the request is still the caller's. */
bool engine_submit(struct engine *e, struct engine_request *r, int64_t timeout_ms);

/* The next completion in the order of finishing, or NULL after timeout_ms, or at
 * once when the engine has failed: then engine_failure says why. */
struct engine_completion *engine_collect(struct engine *e, int64_t timeout_ms);

/* Give up all requests whose tag is in [first, last]; each comes back FINISH_ABORTED. Waits while
 * requests that were submitted fill the inbox: somebody else must be collecting then. */
void engine_abort(struct engine *e, uint64_t first, uint64_t last);

/* 0, or the error that stopped the engine (a device failure). */
int engine_failure(struct engine *e, struct err *err);

struct engine_device_time { /* of steps, on the device's own clock */
    int64_t n_steps;
    int64_t busy_ns; /* from a step's first operation to the end of its last */
    int64_t idle_ns; /* between a step's end and the next one's first operation, while there was work */
};

enum { ENGINE_LARGE_STEP = 2048 }; /* rows */

struct engine_stats { /* since open, except where it says now */
    int64_t n_steps;
    int64_t n_step_rows;        /* token rows computed, recomputed ones included */
    int64_t n_prompt_tokens;    /* of admitted requests */
    int64_t n_cached_tokens;
    int64_t n_completion_tokens;
    int64_t n_preemptions;
    int32_t n_running, n_waiting; /* now */
    int32_t kv_blocks_used, kv_blocks_total; /* now */
    struct engine_device_time device, device_large; /* all steps; those of ENGINE_LARGE_STEP rows or more */
};
void engine_stats(struct engine *e, struct engine_stats *out);

/* ------------------------------------------------------------------ yardsticks of `bench` */

/* Rate of the model's matrix products alone at n_rows rows a step: token rows per
 * second, every layer's products and the vocabulary projection, nothing between.
 * Only while no request is in flight. */
int engine_matmul_rate(struct engine *e, int32_t n_rows, double seconds, double *rows_per_s, struct err *err);

struct engine_roof { /* what the device can do at best; best of a few runs each */
    double copy_bytes_per_s; /* bytes read and bytes written */
    double flop_per_s;       /* of a square matrix product of random numbers */
    int64_t copy_bytes;      /* that were copied: 4 GiB, less where less is free */
    int32_t matrix_size;     /* 8192, less on the CPU or where memory is short */
    char dtype[16];          /* of the product: the model's compute dtype */
    double quant_flop_per_s; /* the same with a weight of this kind, where that multiplies otherwise */
    char quantization[16];   /* "int8", "fp8" or "": 4-bit weights are turned back first */
};

/* Takes memory and gives it back; E_NO_MEMORY when there is none. Only while no request is in flight. */
int engine_measure_roof(struct engine *e, struct engine_roof *out, struct err *err);

/* How well the model foretells a text: its n ids in windows of `window` tokens, one behind the
 * other, each by itself and with `bos` as its first token, which is not scored (-1: none; then
 * the window's first id is not scored).
 * Only while no request is in flight, and none may follow: the KV cache is overwritten. */
struct engine_perplexity {
    double nats;      /* -log(probability), the mean of the tokens; e^nats is the perplexity */
    int64_t n_tokens; /* scored */
};
int engine_perplexity(struct engine *e, struct engine_perplexity *out, const int32_t *ids, size_t n, int32_t window,
                      int32_t bos, struct err *err);

struct engine_work { /* what the model asks of a device */
    double row_flop, layer_bytes; /* products of all layers: of one token row; their weights */
    double row_flop_quant;        /* of row_flop, what int8 and fp8 weights do */
    double head_flop, head_bytes; /* the vocabulary projection of one row; its weights */
    double kv_bytes;              /* keys and values of one position, all layers */
    double pair_flop;             /* attention between one query and one key, all layers and heads */
    int32_t sliding_window;       /* 0 = none */
    double sliding_share;         /* of the layers: it holds there */
};
void engine_work(const struct engine *e, struct engine_work *out);

enum { ENGINE_CLASSES = 8 };
struct engine_profile { /* where the device's time went in the steps that were profiled */
    int64_t n_steps, busy_ns;
    int32_t n_classes;
    struct engine_class {
        const char *name; /* "linear", "attention", ...; static */
        int64_t ns, n_ops;
    } classes[ENGINE_CLASSES];
};

/* Needs profile_every. Only while no request is in flight. */
int engine_profile(struct engine *e, struct engine_profile *out, struct err *err);

/* Time the ways in which the device can make each product of the model, at 1, 2, 4 ... rows and
 * the most that a step may have, and have it remember the quickest: `bench tune`. Nothing is
 * reported where the device knows one way only, as the CPU does. `each` runs on the engine
 * thread. Only while no request is in flight. */
struct engine_tuning {
    const char *product;   /* "qkv", "o", "up", "down", "head", ...; static */
    int64_t n, k;          /* of the weight */
    int32_t n_weights;     /* of the model that have this shape */
    int32_t n_rows;
    int32_t n_candidates;  /* 0: one way only */
    int32_t n_right;       /* of them, with the bits that the product has at any number of rows */
    double first_seconds;  /* of one product as it is made untuned; one way only: the same as: */
    double seconds;        /* the way that was chosen */
    char algorithm[48];    /* it, in the library's numbers; "" = our own kernel */
};
typedef void engine_tuning_fn(void *arg, const struct engine_tuning *t);
int engine_tune(struct engine *e, engine_tuning_fn *each, void *arg, struct err *err);

/* Time each operation alone, on a device of its own and without a model: `bench kernels`. */
struct engine_kernel_options {
    const char *device, *dtype; /* as in engine_options; auto is bfloat16 */
    int32_t threads;
    const char *shape;          /* "phi-2", "mistral-7b", "llama-3.1-8b", "gemma-7b", "llama-70b",
                                   "mixtral-8x7b", "small"; "all" but small; NULL = small on the CPU, else all */
    const char *const *parts;   /* "linear", "experts", "attention", "rows", "sample" */
    const char *quantization;   /* of the weights of layers, as in engine_options; NULL = none */
    size_t n_parts;             /* 0 = all */
};

struct engine_kernel_figure {
    const char *shape, *kernel, *what; /* "llama-3.1-8b", "linear qkv", "M 64, N 6144, K 4096" */
    double seconds;                    /* of one run, the best of a few rounds */
    double bytes, flop;                /* that one run has to move and to compute; 0 = does not matter */
    double roof_seconds;               /* bytes at the copy rate, flop at the matrix rate: the longer */
};
struct engine_kernel_device { /* filled before the first figure */
    char name[100];
    struct engine_roof roof;
};
typedef void engine_kernel_fn(void *arg, const struct engine_kernel_figure *f);

/* E_USAGE: a name that is not there; E_DEVICE, E_NO_MEMORY. */
int engine_bench_kernels(const struct engine_kernel_options *o, struct engine_kernel_device *device,
                         engine_kernel_fn *each, void *arg, struct err *err);

#endif
