/* quantize_4bit.c - nf4, fp4 and double quantization; see quantize.h. */
#include "kernels/quantize.h"

#include <assert.h>
#include <math.h>
#include <pthread.h>
#include <string.h>

/* Quantiles of a normal distribution, from the QLoRA paper (arXiv 2305.14314). */
static const float nf4_codes[16] = {
    -1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f,
    -0.28444138169288635f, -0.18477343022823334f, -0.09105003625154495f, 0.0f,
    0.07958029955625534f, 0.16093020141124725f, 0.24611230194568634f, 0.33791524171829224f,
    0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f,
};

/* Sign, two bits of exponent, one of mantissa; divided by 12. Code 8 is minus zero. */
static const float fp4_codes[16] = {
    0.0f, 0.005208333333f, 0.66666667f, 1.0f, 0.33333333f, 0.5f, 0.16666667f, 0.25f,
    -0.0f, -0.005208333333f, -0.66666667f, -1.0f, -0.33333333f, -0.5f, -0.16666667f, -0.25f,
};

const float *quant_codes(enum quant_kind kind) {
    assert(quant_is_4bit(kind));
    return kind == QUANT_FP4 ? fp4_codes : nf4_codes;
}

bool quant_block_is_valid(int64_t block) {
    return block >= 32 && block <= 4096 && (block & (block - 1)) == 0;
}

static float largest(const float *x, int64_t n) {
    float most = 0;
    for (int64_t i = 0; i < n; i++) most = fabsf(x[i]) > most ? fabsf(x[i]) : most;
    return most;
}

/* Four halvings of the 15 middles between neighbours, as f32 computes them. */
static uint8_t nf4_nearest(float x) {
    static const float middle[15] = {
        -0.848096371f, -0.610632896f, -0.45999527f, -0.33967942f, -0.234607399f, -0.137911737f,
        -0.0455250181f, 0.0397901498f, 0.120255247f, 0.203521252f, 0.292013764f,
        0.389312536f, 0.501663446f, 0.64278692f, 0.861478448f,
    };
    int code = 0;
    for (int half = 8; half > 0; half /= 2)
        if (x > middle[code + half - 1]) code += half;
    return (uint8_t)code;
}

/* The sizes in ascending order are codes 0 1 6 7 4 5 2 3. */
static uint8_t fp4_nearest(float x) {
    static const float middle[7] = {0.00260417f, 0.0859375f, 0.20833333f, 0.29166667f,
                                    0.4166667f,  0.583333f,  0.8333333f};
    static const uint8_t code[8] = {0, 1, 6, 7, 4, 5, 2, 3};
    int rank = 0;
    for (int i = 0; i < 7; i++) rank += fabsf(x) > middle[i];
    return (uint8_t)(code[rank] | (x < 0 ? 8 : 0));
}

static float clamp1(float x) {
    return x < -1 ? -1 : x > 1 ? 1 : x;
}

void quant_4bit(uint8_t *packed, float *absmax, const float *w, int64_t n, int64_t block, enum quant_kind kind) {
    assert(quant_is_4bit(kind) && quant_block_is_valid(block));
    for (int64_t b = 0; b < n; b += block) { /* a block is even, so it begins a byte */
        int64_t m = n - b < block ? n - b : block;
        float most = largest(w + b, m), scale = 1.0f / (most > 1e-38f ? most : 1e-38f);
        absmax[b / block] = most;
        for (int64_t i = b; i < b + m; i += 2) {
            float x = clamp1(w[i] * scale), y = i + 1 < b + m ? clamp1(w[i + 1] * scale) : 0;
            packed[i / 2] = kind == QUANT_FP4 ? (uint8_t)(fp4_nearest(x) << 4 | fp4_nearest(y))
                                              : (uint8_t)(nf4_nearest(x) << 4 | nf4_nearest(y));
        }
    }
}

void quant_4bit_back(float *w, const uint8_t *packed, const float *absmax, int64_t first, int64_t n, int64_t block,
                     const float codes[16]) {
    for (int64_t i = 0, at = first; i < n; i++, at++)
        w[i] = codes[at % 2 ? packed[at / 2] & 15 : packed[at / 2] >> 4] * absmax[at / block];
}

/* ---------------------------------------------------------------- double quantization */

static float dynamic_map[256];
static uint8_t nearest_code[QUANT_STEPS]; /* of the i-th even step from -1 to 1 */

/* End j of 0.1 .. 1 in equal parts: counted from the nearer end and rounded once, as
 * PyTorch does it. */
static float division(int j, int parts) {
    float step = (1.0f - 0.1f) / (float)parts;
    return j < (parts + 1) / 2 ? fmaf(step, (float)j, 0.1f) : fmaf(-step, (float)(parts - j), 1.0f);
}

/* Seven decades; decade i has 2^i middles of an even division of 0.1 .. 1, of either sign. */
static void fill_map(void) {
    int n = 128;
    dynamic_map[127] = 0;
    dynamic_map[255] = 1;
    for (int i = 0; i < 7; i++) {
        int parts = 1 << i;
        float power = (float)pow(10, i - 6);
        for (int j = 0; j < parts; j++, n++) {
            dynamic_map[n] = power * ((division(j, parts) + division(j + 1, parts)) / 2);
            dynamic_map[254 - n] = -dynamic_map[n];
        }
    }
}

static void fill_tables(void) {
    fill_map();
    int code = 0;
    for (int i = 0; i < QUANT_STEPS; i++) {
        float x = (float)(-1 + 2.0 * i / (QUANT_STEPS - 1));
        while (code < 255 && x > (dynamic_map[code] + dynamic_map[code + 1]) / 2) code++;
        nearest_code[i] = (uint8_t)code;
    }
}

static void tables_ready(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, fill_tables);
}

const float *quant_dynamic_map(void) {
    tables_ready();
    return dynamic_map;
}

const uint8_t *quant_nested_steps(void) {
    tables_ready();
    return nearest_code;
}

/* Eight lanes of four interleaved sums, each in levels: a level's sum is passed on and begun
 * again after 2^power additions. */
enum { LANES = 8, SUMS = 4 * LANES, LEVELS = 4 };

static int log2_up(int64_t n) {
    int log = 0;
    while (((int64_t)1 << log) < n) log++;
    return log;
}

static void add_up(float *to, float *from) {
    for (int i = 0; i < SUMS; i++) {
        to[i] += from[i];
        from[i] = 0;
    }
}

static void add_groups(float sum[SUMS], const float *x, int64_t n_groups) {
    float level[LEVELS][SUMS] = {{0}};
    int power = log2_up(n_groups) / LEVELS > 4 ? log2_up(n_groups) / LEVELS : 4;
    int64_t run = (int64_t)1 << power, n_runs = n_groups / run;
    for (int64_t g = 0; g < n_groups; g++) {
        for (int i = 0; i < SUMS; i++) level[0][i] += x[g * SUMS + i];
        if ((g + 1) % run != 0 || g >= n_runs * run) continue;
        int64_t done = g + 1;
        for (int l = 1; l < LEVELS; l++) {
            add_up(level[l], level[l - 1]);
            if ((done & ((run - 1) << (l * power))) != 0) break;
        }
    }
    for (int l = 1; l < LEVELS; l++) add_up(level[0], level[l]);
    memcpy(sum, level[0], sizeof level[0]);
}

float quant_mean(const float *x, int64_t n) {
    float sum[SUMS], total = 0;
    int64_t n_groups = n / SUMS, at = n_groups * SUMS;
    if (n < LANES) {
        /* Too short for lanes: four sums, which take turns. */
        float s[4] = {0};
        for (int64_t i = 0; i < n / 4 * 4; i++) s[i % 4] += x[i];
        for (int64_t i = n / 4 * 4; i < n; i++) s[0] += x[i];
        return (((s[0] + s[1]) + s[2]) + s[3]) / (float)n;
    }
    add_groups(sum, x, n_groups);
    for (; at + LANES <= n; at += LANES)
        for (int i = 0; i < LANES; i++) sum[i] += x[at + i];
    for (int k = 1; k < 4; k++)
        for (int i = 0; i < LANES; i++) sum[i] += sum[k * LANES + i];
    for (; at < n; at++) total += x[at];
    for (int i = 0; i < LANES; i++) total += sum[i];
    return total / (float)n;
}

void quant_nested(uint8_t *codes, float *absmax2, float *offset, const float *absmax, int64_t n) {
    tables_ready();
    float mean = quant_mean(absmax, n);
    for (int64_t b = 0; b < n; b += QUANT_NESTED_BLOCK) {
        int64_t m = n - b < QUANT_NESTED_BLOCK ? n - b : QUANT_NESTED_BLOCK;
        float most = 0;
        for (int64_t i = b; i < b + m; i++) {
            float x = fabsf(absmax[i] - mean);
            most = x > most ? x : most;
        }
        float scale = 1.0f / most;
        absmax2[b / QUANT_NESTED_BLOCK] = most;
        for (int64_t i = b; i < b + m; i++) {
            float x = clamp1((absmax[i] - mean) * scale);
            codes[i] = most > 0 ? nearest_code[(int)((x + 1.0f) * (0.5f * (QUANT_STEPS - 1)) + 0.5f)] : 0;
        }
    }
    *offset = mean;
}

void quant_nested_back(float *absmax, const uint8_t *codes, const float *absmax2, float offset, int64_t n) {
    tables_ready();
    for (int64_t i = 0; i < n; i++) absmax[i] = dynamic_map[codes[i]] * absmax2[i / QUANT_NESTED_BLOCK] + offset;
}
