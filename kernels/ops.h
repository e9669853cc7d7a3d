/* ops.h - the operations a forward pass is written in.
 *
 * The data of a layer moves like this, T token rows at a time:
 *
 *   activation --linear--> product --qkv_finish--> q, KV cache --attention--> activation
 *   activation --linear--> product --residual_norm--> residual stream, activation
 *   activation --linear--> product --glu or act--> activation
 *
 * A *product* is what a matrix product leaves behind: raw numbers whose row
 * scales, column scales and bias are still pending. Its consumers (qkv_finish,
 * glu, act, residual_norm, sample) apply what is pending and emit an *activation*,
 * which is ready to be multiplied. So a quantized weight or activation changes
 * linear and its consumers, never the forward pass.
 *
 * Batch invariance: what an operation computes for one row depends on nothing
 * but that row (for attention: and its own sequence's cache), bit for bit,
 * whatever else is in the step and however many threads there are.
 *
 * Compute dtype: the dtype of the activations, F32 or BF16 (a GPU: or F16). Sums are in
 * f32. With BF16 and F16 the results are rounded where Hugging Face's modules round. */
#ifndef BATCHD_KERNELS_OPS_H
#define BATCHD_KERNELS_OPS_H

#include "kernels/dev.h"
#include "kernels/quantize.h"
#include "kernels/tensor.h"

#include <stdbool.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---------------------------------------------------------------- weights */

/* A run of consecutive rows of a weight that came from one checkpoint tensor and
 * were quantized as one (double quantization's offset is per tensor), before
 * Q|K|V or gate|up rows were put together. Tensors are on the device. */
struct weight_segment {
    int64_t first_row, n_rows;
    int64_t from_row;       /* 4-bit kinds, fp8-block: of the tensor, whose blocks begin at its own row 0 */
    bool is_shared;         /* the tensors below belong to a segment before it */
    size_t offset;          /* of the tensor's codes in the weight's data, in bytes */
    int64_t block;          /* 4-bit kinds: numbers that share an absmax */
    float codes[16];        /* 4-bit kinds: what a code is worth; on the host */
    struct tensor absmax;   /* f32 [blocks], or u8 where they are quantized too; fp8-block: f32 scales of the tensor,
                               [blocks of rows][blocks of columns] */
    struct tensor absmax2;  /* f32 [blocks / QUANT_NESTED_BLOCK] */
    struct tensor map;      /* f32 [256] */
    float mean;             /* absmax[i] = map[code] * absmax2[i / QUANT_NESTED_BLOCK] + mean */
};

/* w[N,K], as `y = x w^T` wants it. Without quantization the device keeps the numbers in an
 * order of its own choosing, with N and K padded by zeros to multiples of 16. Quantized
 * weights are alike on every device: 8-bit rows of k_pad numbers (fp8-block too), or each
 * segment's numbers without gaps, two a byte, from its offset on. */
struct weight {
    int64_t n, k;         /* logical sizes */
    int64_t n_pad, k_pad; /* as stored */
    enum dtype dtype;     /* F32 or BF16, on a GPU also F16; what quantized numbers are turned into for a product */
    enum quant_kind quant;
    enum int8_outliers outliers; /* int8: a rule of products, which the codes do not show; ROW when new */
    void *data;
    struct weight_segment *segments; /* ascending first_row, covering [0, n) when loaded */
    int32_t n_segments;
    size_t used;          /* 4-bit kinds: bytes of data taken so far */
    int64_t block_rows, block_cols; /* fp8-block: numbers of a tensor that share a scale */
    struct tensor scale;  /* 8-bit kinds: f32 [n_pad], of rows; int8: 127 = the scale */
    struct tensor bias;   /* f32 [n_pad] or no tensor */
};

/* All zeros, no segments; NULL when the device has no memory for it. */
struct weight *weight_new(struct dev *dev, int64_t n, int64_t k, enum dtype dtype);
struct weight *weight_new_quantized(struct dev *dev, int64_t n, int64_t k, enum dtype dtype, enum quant_kind quant);
void weight_free(struct dev *dev, struct weight *w); /* NULL is fine */
size_t weight_bytes(const struct weight *w);         /* device memory held */

/* fp8-block, of which a new weight has blocks of 128 x 128: does the device multiply with it? */
enum { WEIGHT_FP8_BLOCK = 128 };
bool weight_keeps_fp8_blocks(const struct dev *dev);
struct weight *weight_new_fp8_blocks(struct dev *dev, int64_t n, int64_t k, enum dtype dtype, int64_t block_rows,
                                     int64_t block_cols);

/* What such a weight of `n_tensors` checkpoint tensors will hold, bias left out; fp8-block: and the scales. */
size_t weight_bytes_planned(int64_t n, int64_t k, enum dtype dtype, enum quant_kind quant, int n_tensors);

/* Scratch that products with quantized weights take on a GPU, beside the weights: of each kind as much as the
 * weight takes that needs most. Of dtype, where the weight suits the tensor cores: in 16 bits, n and k in
 * multiples of 16. 8-bit kinds in float32 or of other shapes take something else, of the same order. */
struct weight_scratch {
    size_t numbers; /* codes turned back */
    size_t codes;   /* rows turned into codes, and sums of their products */
};
struct weight_scratch weight_scratch_planned(int64_t n, int64_t k, enum dtype dtype, enum quant_kind quant);
bool weight_has_scratch(const struct dev *dev); /* does this device take any? */

/* Copy a checkpoint tensor's rows from host memory (row-major [rows, k], F32,
 * F16 or BF16, unaligned is fine; there until dev_sync) to rows [first_row, first_row + rows).
 * A quantized weight rounds them to its dtype and quantizes them, as one tensor; they must be
 * finite, which some devices see for themselves: weight_load_finds_nan. dev_sync is E_PARSE then. */
bool weight_load_finds_nan(const struct dev *dev);
void weight_load(struct dev *dev, struct weight *w, int64_t first_row, const struct tensor *host);

/* Rows [from, from + n_rows) of a checkpoint tensor go to rows [to, to + n_rows) of a weight. */
struct weight_run {
    int64_t from, to, n_rows;
};

/* The same where a tensor's rows are spread over the weight; the runs cover the tensor. */
void weight_load_runs(struct dev *dev, struct weight *w, const struct tensor *host, const struct weight_run *runs,
                      int n_runs);

struct quantized { /* a tensor that is quantized already, in host memory; the codes are there until dev_sync */
    int64_t n_rows;
    const void *codes;     /* [n_rows][k], or [(n_rows k + 1) / 2] of two numbers each */
    const float *scale;    /* int8, fp8: [n_rows]; fp8-block: [blocks of rows][blocks of columns] */
    int64_t block;         /* 4-bit kinds */
    const float *values;   /* [16]: what a code is worth */
    const float *absmax;   /* [blocks], or NULL and: */
    const uint8_t *absmax_codes; /* [blocks] */
    const float *absmax2, *map;  /* [blocks / QUANT_NESTED_BLOCK], [256] */
    float mean;
};
void weight_load_quantized(struct dev *dev, struct weight *w, const struct quantized *host,
                           const struct weight_run *runs, int n_runs);

/* Rows [first_row, first_row + rows) of normal numbers from a seed: dummy weights. The same
 * each time on the same kind of device. */
void weight_random(struct dev *dev, struct weight *w, int64_t first_row, int64_t rows, uint64_t seed, float deviation);

/* f32 [n] from host memory, in the checkpoint's dtype. */
void weight_load_bias(struct dev *dev, struct weight *w, int64_t first_row, const struct tensor *host);

/* A loaded quantized weight as bytes, its bias left out, which put() is given piece by piece: to
 * be kept on disk. May run in a thread of its own while the device works with the weight. What
 * put returns below 0 ends it. */
typedef int weight_image_fn(void *arg, const void *data, size_t n, struct err *err);
size_t weight_image_bytes(const struct weight *w);
int weight_image_write(struct dev *dev, const struct weight *w, weight_image_fn *put, void *arg, struct err *err);

/* Into a new weight, instead of loading it. The bytes must be aligned to 64 and stay until
 * dev_sync. False, and nothing has changed: they are no image of such a weight. */
bool weight_image_read(struct dev *dev, struct weight *w, const void *image, size_t bytes);

/* The segment that holds a row. */
const struct weight_segment *weight_segment_of(const struct weight *w, int64_t row);

/* ---------------------------------------------------------------- products and activations */

/* x[T,K], ready to be multiplied. Whoever wants one may ask for codes, once op_linear_takes has
 * said that the products they are for take them; what computes it then emits codes, in the
 * memory of the numbers, or not, as x.dtype tells. */
struct activation {
    struct tensor x;         /* F32, BF16 or F16; F8_E4M3: number = code * scale */
    struct tensor row_scale; /* f32 [T]: room for the scales of codes, or no tensor */
    bool wants_fp8;          /* the request */
};

/* y[T,N] with what is pending: w's bias and, unless row_scale is NULL, scales: then a number
 * is y * (row_scale * w->scale), with F16 also * 2^FP8_F16_SHIFT, rounded to y's dtype, before
 * its bias is added. */
struct product {
    struct tensor y;             /* F32, BF16 or F16 */
    struct tensor scale_room;    /* f32 [T]: op_linear may leave scales pending, here or in x; or no tensor */
    const float *row_scale;      /* f32 [T] on the device */
    const struct weight *weight; /* NULL: nothing is pending */
};

enum { FP8_F16_SHIFT = 18 }; /* sums of products of codes reach beyond F16's 65504 */

/* y[T,N] = x[T,K] * w[N,K]^T. y->y has room for T rows of w->n columns; y->weight and
 * y->row_scale are set.
 *
 * Quantized weights, the rule on every device:
 *   4-bit, fp8-block  numbers are turned back into the weight's dtype, then multiplied as usual.
 *   int8    a row of x is quantized to 127 = its largest size below INT8_OUTLIER; the product
 *           of integers is exact; scales are applied in f32; then the row's numbers of size
 *           INT8_OUTLIER and above, times their weights in the weight's dtype, are added in
 *           ascending k. Which columns these are is a matter of the row alone (w->outliers): so
 *           a row's bits do not depend on the others. With INT8_OUTLIERS_BATCH they do: a column
 *           in which some row of the product has such a number is 0 in all rows' codes and added
 *           apart in all of them.
 *   fp8     a row of x is quantized to 448 = its largest size; products of e4m3 numbers are
 *           added in f32 (tensor cores keep fewer bits of a sum), the sum is rounded to y's
 *           dtype, as what a fast product leaves, then the scales of row and column are applied. */
enum { INT8_OUTLIER = 6 };
void op_linear(struct dev *dev, struct product *y, const struct activation *x, const struct weight *w);

/* Does the device follow this rule of w->outliers? INT8_OUTLIERS_ROW every one does. */
bool op_linear_knows_outliers(const struct dev *dev, enum int8_outliers rule);

struct linear_tuning { /* what the choice of a way to multiply came to; times are of one product */
    int64_t most_rows;    /* the choice is for more than half as many rows, up to this */
    int32_t n_candidates; /* 0: there was nothing to choose */
    int32_t n_right;      /* of them, with the bits that any number of rows has */
    double first_ns;      /* of the one that is taken where nobody looks at the clock */
    double best_ns;
    char algorithm[48];   /* the quickest, in the library's own numbers */
};

/* Does the device know more than one way to multiply? */
bool op_linear_can_tune(const struct dev *dev);

/* op_linear; where the device has several ways to do it, all are timed now and the quickest one
 * with the right bits is used, and remembered by later processes too. Waits for the device. */
void op_linear_tune(struct dev *dev, struct product *y, const struct activation *x, const struct weight *w,
                    struct linear_tuning *out);

/* Does op_linear with this weight take rows of codes of this dtype, besides numbers? */
bool op_linear_takes(const struct dev *dev, const struct weight *w, enum dtype codes);

/* out = the codes of x's numbers, F8_E4M3, with their scales. Only where op_linear_takes them. */
void op_quantize(struct dev *dev, struct activation *out, const struct activation *x);

/* ---------------------------------------------------------------- a step */

enum { KV_BLOCK = 32 };       /* token positions in a KV block */
enum { ATTENTION_TILE = 64 }; /* keys in a tile of attention's reduction tree */
enum { ATTENTION_SPLIT = 512 }; /* keys in a split of it; a multiple of the tile */

/* Consecutive rows of a step that belong to one sequence: positions
 * first_position .. first_position + n_rows - 1. */
struct step_sequence {
    int32_t slot;
    int32_t first_row, n_rows;
    int32_t first_position;
};

enum { MAX_LOGPROBS = 20 }; /* alternatives reported beside a token */

/* A row whose logits are wanted, and how to draw a token from them. */
struct step_sample {
    int32_t row;          /* of the step */
    int32_t slot;         /* the draw becomes this slot's last sample */
    int32_t position;     /* of the token to be drawn: the row's position + 1 */
    int32_t top_k;        /* 0 = off */
    float temperature;    /* 0 = greedy */
    float top_p, min_p;
    uint64_t seed;
    int32_t first_banned, n_banned; /* ids that cannot be drawn: banned[first_banned ..] */

    bool is_adjusted;     /* one of the next lines is in use */
    float repetition_penalty;                  /* > 0; 0 and 1 = off */
    float presence_penalty, frequency_penalty; /* 0 = off */
    int32_t n_prompt;     /* the sequence's tokens from this position on are its output */
    int32_t first_bias, n_bias;       /* bias[first_bias ..], ascending ids */
    int32_t first_allowed, n_allowed; /* allowed[first_allowed ..]: no other id can be drawn; 0 = all */

    bool wants_logprob;   /* of the token */
    int32_t n_top;        /* and of so many highest, 0 .. MAX_LOGPROBS */
    bool has_target;      /* nothing is drawn: the token is `target`, and stays out of last_sample */
    int32_t target;
};

struct logit_bias { /* added to one id's logit; -inf bans it */
    int32_t id;
    float add;
};

struct sample_logprobs { /* log_softmax of the raw logits, in f32 */
    float token;               /* of the token drawn, or of the target */
    int32_t rank;              /* of that token: 1 = no logit is higher */
    int32_t top_id[MAX_LOGPROBS]; /* n_top of them, highest first, ties in order of id; -1 behind the last */
    float top[MAX_LOGPROBS];
};

/* One step: T token rows of several sequences, prefill and decode rows alike. */
struct step {
    int32_t n_rows;             /* T */
    const int32_t *token;       /* [T] id, or ~slot: the last sample of that slot */
    const int32_t *position;    /* [T] */
    const int32_t *slot;        /* [T] */
    int32_t n_sequences;
    const struct step_sequence *sequences; /* ascending, covering all rows */
    const int32_t *block_table; /* [n_slots][block_table_stride] KV block ids by slot */
    int32_t block_table_stride;
    int32_t n_samples;
    const struct step_sample *samples; /* ascending row */
    const int32_t *banned;
    bool has_adjusted, has_logprobs;   /* some sample is_adjusted, some wants_logprob */
    int32_t n_bias, n_allowed;
    const struct logit_bias *bias;     /* [n_bias] */
    const int32_t *allowed;            /* [n_allowed] */
    int32_t rope;                      /* which of the model's rotary tables holds for all rows; no operation reads it */
};

/* The most that steps will have. */
struct step_limits {
    int32_t n_rows, n_samples, n_slots;
    int32_t n_blocks;     /* of a sequence: the block table's stride */
    int32_t n_banned, n_bias, n_allowed;
    int64_t vocab;
    enum dtype kv_dtype;  /* of the cache, */
    int32_t head_dim;     /* and the size of its heads */
    int32_t n_heads, n_kv_heads;
};

/* Take the memory that such steps need beside their tensors, so that none is taken in a step; where
 * it is short, the device fails. Steps that have more than that take it when they come. */
void step_reserve(struct dev *dev, const struct step_limits *limits);

/* Device memory of it, but for copies of steps. */
int64_t step_reserve_bytes(const struct dev *dev, const struct step_limits *limits);

/* The part of it in which a GPU of compute capability 9.0 turns an fp8 cache's codes into numbers for
 * chunks of prompts: how many tiles of ATTENTION_TILE keys and values, and the bytes of all. 0: none. */
int32_t step_expanded_tiles(const struct step_limits *limits, int64_t *bytes);

/* The same for products of up to max_rows rows. */
void op_linear_reserve(struct dev *dev, const struct weight *w, int64_t max_rows);

/* ---------------------------------------------------------------- KV cache */

/* F8_E4M3: a key or value of a head is codes and a scale, 448 = its largest number, NaN where one is
 * not finite; a number = code * scale. It is quantized as it is, not rounded to the compute dtype
 * before. Attention takes a key's scale times the product of q and the codes, or their numbers,
 * in f32; where weights are rounded for a product (a GPU), a value's scale is part of its weight. */
struct kv_cache {             /* keys and values of all layers */
    enum dtype dtype;         /* F32, BF16, F16 or F8_E4M3 */
    int32_t n_layers, n_blocks, n_kv_heads, head_dim;
    void **slab;              /* [n_layers] of [n_blocks][2: K, V][n_kv_heads] tiles; a tile is
                                 [KV_BLOCK][head_dim] numbers, and with F8_E4M3 f32 [KV_BLOCK] behind them:
                                 scales */
};

int kv_cache_open(struct kv_cache **out, struct dev *dev, enum dtype dtype, int32_t n_layers, int32_t n_blocks,
                  int32_t n_kv_heads, int32_t head_dim, struct err *err);
void kv_cache_close(struct dev *dev, struct kv_cache *kv); /* NULL is fine */
int64_t kv_cache_block_bytes(enum dtype dtype, int32_t n_layers, int32_t n_kv_heads, int32_t head_dim);

/* ---------------------------------------------------------------- operations */

/* cos and sin, f32 [max_position][n_rotated / 2] each, of position * inv_freq[i] (the
 * angle in f32, as Hugging Face computes it), times attention_scaling. */
struct rope {
    int32_t n_rotated; /* leading dimensions of a head that turn, the rest pass through; 0 = none, no tables */
    struct tensor cos, sin;
};
int rope_open(struct rope *out, struct dev *dev, const float *inv_freq, int32_t n_rotated, int32_t max_position,
              float attention_scaling, struct err *err);
void rope_close(struct dev *dev, struct rope *rope);

struct attention_shape {
    int32_t n_heads, n_kv_heads, head_dim; /* query head h reads KV head h / (n_heads / n_kv_heads) */
    float scale;                           /* head_dim^-0.5 unless the family says otherwise */
    int32_t sliding_window;                /* key j is seen from i iff i - window < j <= i; 0 = no window */
    float softcap;                         /* a scaled score s becomes softcap tanh(s / softcap); 0 = it does not */
    const float *alibi;                    /* f32 [n_heads] on the device: slopes; NULL = no ALiBi */
    float alibi_scale;                     /* alibi_scale (slope j - slope i) is added to the scaled score of key j */
    bool alibi_bf16;                       /* slope j and slope i are each rounded to BF16 first, as Falcon's are */
};

enum norm_kind {
    NORM_RMS,          /* w * (x / rms(x)); the quotient is rounded before it is multiplied */
    NORM_RMS_ONE_PLUS, /* (1 + w) * x / rms(x), rounded once: Gemma */
    NORM_LAYER,        /* w * (x - mean(x)) / deviation(x) + bias, rounded once */
};

struct norm {
    enum norm_kind kind;
    float eps;           /* added to the mean square, or to the variance */
    struct tensor weight; /* f32 [n] */
    struct tensor bias;   /* f32 [n] or no tensor; NORM_LAYER only */
};

enum act { ACT_SILU, ACT_GELU, ACT_GELU_TANH }; /* x sigmoid(x); by erf; by tanh, "gelu_new" */

/* residual[T,H] = scale times the embedding of each row's token. Where there is a history
 * (step_set_history), the token also goes there. */
void op_embed(struct dev *dev, struct tensor *residual, const struct weight *table, float scale,
              const struct step *step);

struct addend { /* what the residual stream is still to take in; all NULL = nothing */
    const struct product *y;
    const struct product *z; /* added to y first: attention and MLP of a parallel block */
    const struct norm *post; /* y is normed before it is added: Gemma 2. Of the kind of the norm that follows; no z */
};

/* residual += y, y + z or post(y); out = norm(residual). add NULL = nothing. */
void op_residual_norm(struct dev *dev, struct activation *out, struct tensor *residual, const struct addend *add,
                      const struct norm *norm);

struct head_rules {                     /* what befalls a head after its bias, in this order */
    float clip;                         /* numbers are cut to [-clip, clip]; 0 = they are not */
    const struct norm *q_norm, *k_norm; /* over head_dim; NULL = none */
    const struct rope *rope;            /* q and k; "half" rotation: dimension i with i + n_rotated / 2 */
};

/* qkv[T, (n_heads + 2 n_kv_heads) head_dim] -> bias and rules; q[T, n_heads head_dim]; k and
 * v into their cache slots, which the rows' positions and block tables name. */
void op_qkv_finish(struct dev *dev, struct tensor *q, struct kv_cache *kv, int32_t layer, const struct product *qkv,
                   const struct attention_shape *shape, const struct head_rules *rules, const struct step *step);

/* out[T, n_heads head_dim] = softmax(score(q, k)) v over the cache, causal; score = scale q k^T,
 * soft-capped, ALiBi added. One reduction tree for every row: tiles of 64 keys ascending inside
 * absolute splits of 512; each split starts fresh (m, l, O); splits are folded left to right,
 * unnormalised, in f32; one division at the end. */
void op_attention(struct dev *dev, struct activation *out, const struct tensor *q, const struct kv_cache *kv,
                  int32_t layer, const struct attention_shape *shape, const struct step *step);

/* How many splits of a decode row's keys the device takes side by side, at most, when it attends in
 * activations of this dtype for an uploaded step: 1 where one after the other is as quick, or where
 * step_reserve made no room for their sums. The bits are the same. */
int32_t op_attention_splits(const struct dev *dev, const struct attention_shape *shape, enum dtype dtype,
                            const struct step *step);

/* gate_up[T, 2 F] = gate | up -> out[T, F] = act(gate) * up; act(gate) is rounded. */
void op_glu(struct dev *dev, struct activation *out, const struct product *gate_up, enum act act);

/* out[T, F] = act(y). */
void op_act(struct dev *dev, struct activation *out, const struct product *y, enum act act);

/* A mixture of experts: each row goes through the top_k of n_experts gated MLPs. */
struct moe {
    int32_t n_experts, top_k;
    enum act act;
    struct weight *const *up;   /* [n_experts] of [2 F, H]: gate | up; no bias */
    struct weight *const *down; /* [n_experts] of [H, F]; no bias */
};

/* Room for the T rows of a step, of which each has a place among P = T top_k for each of its
 * experts. What is there is a device's own business. */
struct moe_room {
    struct tensor choice;   /* i32 [T, top_k] */
    struct tensor share;    /* f32 [T, top_k] */
    struct tensor places;   /* i32 [T, top_k] */
    struct tensor first;    /* i32 [n_experts + 1, 1] */
    struct tensor gathered; /* [P, H] */
    struct tensor up;       /* [P, 2 F] */
    struct tensor active;   /* [P, F] */
    struct tensor down;     /* [P, H] */
};

/* router[T, n_experts]; out[T, H] = for each row the sum over its best experts of share times
 * down(act(gate x) * up x), where the shares are the softmax over the router's numbers,
 * divided by its sum over the chosen ones. Best: the highest number, ties to the lower
 * expert. Experts are added in ascending order, each sum rounded. */
void op_moe_experts(struct dev *dev, struct tensor *out, const struct activation *x, const struct product *router,
                    const struct moe *moe, const struct moe_room *room);
bool op_has_moe_experts(const struct dev *dev); /* not every device has them */

/* out[S, K] = the rows of x that want logits. */
void op_gather(struct dev *dev, struct activation *out, const struct activation *x, const struct step *step);

/* logits[S, V], in place: the bias is added, then l becomes softcap tanh(l / softcap) unless
 * softcap is 0. Nothing is pending afterwards. */
void op_logits_finish(struct dev *dev, struct product *logits, float softcap);

/* Draw one token for each of the step's samples from logits[S, V]; f32, bias pending.
 *
 * Rule, the same on every device. Where the sample is_adjusted, each logit is changed in
 * this order, rounded after each step: outside of `allowed` it is -inf; + bias; if the
 * token occurs in the sequence before `position`, logit > 0 ? logit / repetition_penalty :
 * logit * repetition_penalty; if it occurs c > 0 times from n_prompt on,
 * - frequency_penalty * c, then - presence_penalty. Then banned ids are -inf.
 * Greedy: the highest logit, ties to the
 * lowest id. Else l = logit / temperature; keep the top_k highest (all that tie with the k-th);
 * of those the smallest set of highest l whose softmax mass reaches top_p (all that tie with
 * its last member); of those the ones with probability >= min_p times the highest; then
 * argmax of l - log(-log u), ties to the lowest id, where u of token i is from
 * Philox4x32-10 with key = seed and counter = (i / 4, position, 0, 0x62617463), word i % 4,
 * mapped to (0, 1) as (word + 0.5) / 2^32.
 *
 * last_sample i32 [n_slots]: written at each sample's slot; where a slot has several
 * samples in a step (logits of a prompt), the last of them stays.
 * drawn i32 [S]: the id, or -1 where a logit was NaN or all were -inf.
 * logprobs [S]: written where wants_logprob; may be NULL where the step has none. They are
 * those of the logits as they came, before everything above but the pending bias.
 *
 * Which kernels are queued depends on n_rows, n_samples, has_adjusted and has_logprobs only. */
void op_sample(struct dev *dev, int32_t *drawn, int32_t *last_sample, struct sample_logprobs *logprobs,
               const struct product *logits, const struct step *step);

/* Take the memory that op_sample works in with up to so many samples; step_reserve does. */
void op_sample_reserve(struct dev *dev, int64_t n_samples, int64_t vocab);

/* A view of the device's copy of a step, good until the step after next is uploaded. Its block
 * table may be narrower than the host's; that and what op_sample depends on say which kernels it
 * takes, and with which arguments. */
const struct step *step_upload(struct dev *dev, const struct step *host);

/* last_sample for op_embed's ~slot rows. Set once after open. */
void step_set_last_sample(struct dev *dev, int32_t *last_sample);

/* history i32 [n_blocks][KV_BLOCK]: the token of each position, beside its keys and values
 * and found through the same block tables, so that whatever becomes of the blocks (a shared
 * prefix, preemption) becomes of it too. Penalties read it. NULL = there is none. */
void step_set_history(struct dev *dev, int32_t *history);

#ifdef __cplusplus
}
#endif
#endif
