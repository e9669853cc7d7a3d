/* roof.c - see roof.h. */
#include "batchd/roof.h"

#include <string.h>

static double longer(double a, double b) {
    return a > b ? a : b;
}

static double shorter(double a, double b) {
    return a < b ? a : b;
}

/* Positions whose keys a token reads, halfway through its completion; the mean over layers. */
static double positions_in_sight(const struct engine_work *w, const struct roof_shape *s) {
    double n = s->input_len + s->output_len / 2;
    return w->sliding_share * shorter(n, w->sliding_window) + (1 - w->sliding_share) * n;
}

/* Query-key pairs of a prompt: the causal half, or a band of it; the mean over layers. */
static double prompt_pairs(const struct engine_work *w, const struct roof_shape *s) {
    double n = s->input_len, band = shorter(n, w->sliding_window);
    return w->sliding_share * (band * n - band * band / 2) + (1 - w->sliding_share) * n * n / 2;
}

/* Products of so many rows: each kind of weight at its own rate. */
static double layer_seconds(const struct engine_work *w, const struct engine_roof *d, double rows) {
    double plain = w->row_flop - w->row_flop_quant, s = plain * rows / d->flop_per_s;
    return w->row_flop_quant > 0 ? s + w->row_flop_quant * rows / d->quant_flop_per_s : s;
}

struct roof_step roof_step(const struct engine_work *w, const struct engine_roof *d, const struct roof_shape *s) {
    double prompts = s->n_seqs / s->output_len, rows = s->n_seqs + prompts * s->input_len;
    double matrix = d->flop_per_s, copy = d->copy_bytes_per_s;
    return (struct roof_step){
        .layers = longer(layer_seconds(w, d, rows), w->layer_bytes / copy),
        .head = longer(w->head_flop * s->n_seqs / matrix, w->head_bytes / copy),
        .kv = w->kv_bytes * s->n_seqs * positions_in_sight(w, s) / copy,
        .prompt_attention = w->pair_flop * prompts * prompt_pairs(w, s) / (ROOF_ATTENTION * matrix),
    };
}

double roof_tokens_per_s(const struct engine_work *w, const struct engine_roof *d, const struct roof_shape *s) {
    struct roof_step t = roof_step(w, d, s);
    return s->n_seqs / (t.layers + t.head + t.kv + t.prompt_attention);
}

const char *roof_void(const char *device_name, const struct engine_roof *d) {
    if (!strstr(device_name, "H200")) return NULL;
    if (d->copy_bytes_per_s < 4.0e12) return "an H200 copies 4.0 TB/s or more";
    bool is_16_bit = strcmp(d->dtype, "bfloat16") == 0 || strcmp(d->dtype, "float16") == 0;
    if (is_16_bit && d->flop_per_s < 700e12) return "an H200 multiplies at 700 TFLOP/s or more";
    return NULL;
}
