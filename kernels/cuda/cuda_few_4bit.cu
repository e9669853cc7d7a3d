/* cuda_few_4bit.cu - products of few rows with 4-bit weights: the codes are all that is read.
 *
 * The bits are those of decoding and cuda_linear_few.cu: a number is rounded to the compute
 * dtype before it is multiplied, and a sum is one accumulator over ascending steps of 16 columns
 * (mma.m16n8k16). Which of two kernels makes them depends on how many rows of w a multiprocessor
 * has. */
#include "kernels/cuda/cuda_few_4bit_deep.cuh"
#include "kernels/cuda/cuda_few_4bit_ring.cuh"

#include <assert.h>
#include <string.h>

/* ---------------------------------------------------------------- launch: a ring for all warps */

struct few4_plan {
    int nt, warps;
};

static int tiles_of(int64_t m) { return m <= 8 ? 1 : m <= 16 ? 2 : 4; }

/* Of shared memory, for a block's stages. */
static size_t most_stage_bytes(const struct cuda_dev *cuda) {
    return cuda->prop.sharedMemPerBlockOptin - FEW4_OTHER_BYTES;
}

static size_t few4_bytes(int nt, int warps, int64_t m) {
    int64_t rows = warps * nt * N_TILE;
    return (size_t)(few4_stages(tiles_of(m), nt) * (rows * (CODE_BYTES + ABSMAX_BYTES) + m * X_BYTES));
}

/* Blocks of nearly the same number of rows on every multiprocessor, all at once; large ones, since
 * each fetches x. Warps of 16 rows use x better, of 8 are more. */
static struct few4_plan few4_plan_of(const struct cuda_dev *cuda, int64_t n, int64_t m) {
    int processors = cuda->prop.multiProcessorCount;
    size_t room = cuda->prop.sharedMemPerMultiprocessor - 4096;
    struct few4_plan best = {1, 1};
    double least = 1e30;
    for (int nt = 1; nt <= 2; nt++)
        for (int warps = 1; warps <= MAX_WARPS; warps++) {
            int64_t rows = warps * nt * N_TILE, blocks = (n + rows - 1) / rows;
            int64_t a_processor = (blocks + processors - 1) / processors;
            int64_t resident = (int64_t)(room / (few4_bytes(nt, warps, m) + FEW4_OTHER_BYTES));
            if (resident > 2 * MAX_WARPS / warps) resident = 2 * MAX_WARPS / warps; /* registers */
            if (resident < 1 || few4_bytes(nt, warps, m) > most_stage_bytes(cuda)) continue;
            int64_t at_once = a_processor < resident ? a_processor : resident, n_warps = at_once * warps;
            double cost = (double)(a_processor * rows) * (1.0 + (double)m / (double)rows);
            if (a_processor > resident) cost *= 1.2; /* a last round that not all take part in */
            if (n_warps < 4) cost *= 4.0 / (double)n_warps;
            if (n_warps < 12 && nt == 2) cost *= 1.3;
            if (nt == 1) cost *= 1.1;
            if (cost < least * 0.999) least = cost, best = {nt, warps};
        }
    return best;
}

template <typename T, int TILES, int NT>
static void few4_launch(struct cuda_dev *cuda, const few4_args<T> &a, int warps) {
    auto kernel = few4_kernel<T, TILES, NT>;
    static bool allowed;
    cuda_allow_shared(cuda, "linear", kernel, (int)most_stage_bytes(cuda), &allowed);
    int rows = warps * NT * N_TILE;
    cuda_launch(cuda, "a 4-bit product of few rows", kernel, dim3((unsigned)((a.n + rows - 1) / rows)),
                (unsigned)warps * 32, few4_bytes(NT, warps, a.m), a);
}

/* ---------------------------------------------------------------- launch: decoders beside multipliers */

/* Tiles of 8 rows of w a block, one block a multiprocessor; 0: too many for that. */
static int deep_tiles_of(const struct cuda_dev *cuda, int64_t n) {
    int64_t tiles = n / N_TILE, processors = cuda->prop.multiProcessorCount;
    int64_t a_block = (tiles + processors - 1) / processors;
    return a_block <= DEEP_TILES ? (int)a_block : 0;
}

static size_t deep_bytes(int tiles, int64_t m) {
    return (size_t)(2 * tiles * FRAGMENTS_BYTES) +
           DEEP_STAGES * (size_t)(tiles * N_TILE * (CODE_BYTES + ABSMAX_BYTES) + m * X_BYTES);
}

template <typename T, int TILES>
static void deep_launch(struct cuda_dev *cuda, const few4_args<T> &a, int tiles) {
    auto kernel = deep_kernel<T, TILES>;
    static bool allowed;
    cuda_allow_shared(cuda, "linear", kernel, (int)most_stage_bytes(cuda), &allowed);
    int decoders = tiles <= 4 ? 4 : 2, rows = tiles * N_TILE;
    cuda_launch(cuda, "a 4-bit product of few rows", kernel, dim3((unsigned)((a.n + rows - 1) / rows)),
                (unsigned)(tiles * (decoders + 1) * 32), deep_bytes(tiles, a.m), a, tiles, decoders);
}

/* ---------------------------------------------------------------- the product */

template <typename T> static struct part4 part_of(const struct weight *w, const struct weight_segment *g) {
    int64_t first = g->from_row * w->k;
    struct part4 p = {};
    p.first_row = (int32_t)g->first_row;
    p.n_rows = (int32_t)g->n_rows;
    p.codes = (const uint8_t *)w->data + g->offset + first / 2;
    p.first_block = first / QUANT_BLOCK;
    p.absmax = (const char *)g->absmax.data + p.first_block * (int64_t)dtype_bytes(g->absmax.dtype);
    p.absmax2 = (const float *)g->absmax2.data;
    p.map = (const float *)g->map.data;
    p.mean = g->mean;
    memcpy(p.values, g->codes, sizeof p.values);
    return p;
}

template <typename T>
static void few4(struct cuda_dev *cuda, const struct tensor *y, const struct tensor *x,
                 const struct weight *w) {
    int32_t m = (int32_t)y->shape[0];
    few4_args<T> a = {(T *)y->data, (const T *)x->data, m, (int32_t)w->n, (int32_t)w->k, w->n_segments, {}};
    struct few4_plan plan = few4_plan_of(cuda, w->n, m);
    for (int32_t i = 0; i < w->n_segments; i++) a.parts[i] = part_of<T>(w, &w->segments[i]);
    int tiles = deep_tiles_of(cuda, w->n);
    if (tiles > 0 && deep_bytes(tiles, m) <= most_stage_bytes(cuda))
        m <= 8    ? deep_launch<T, 1>(cuda, a, tiles)
        : m <= 16 ? deep_launch<T, 2>(cuda, a, tiles)
                  : deep_launch<T, 4>(cuda, a, tiles);
    else if (m <= 8)
        plan.nt == 1 ? few4_launch<T, 1, 1>(cuda, a, plan.warps) : few4_launch<T, 1, 2>(cuda, a, plan.warps);
    else if (m <= 16)
        plan.nt == 1 ? few4_launch<T, 2, 1>(cuda, a, plan.warps) : few4_launch<T, 2, 2>(cuda, a, plan.warps);
    else
        plan.nt == 1 ? few4_launch<T, 4, 1>(cuda, a, plan.warps) : few4_launch<T, 4, 2>(cuda, a, plan.warps);
}

bool few_4bit_can(const struct cuda_dev *cuda, const struct tensor *y, const struct weight *w) {
    if (cuda->capability < 80 || y->shape[0] > FEW4_ROWS || y->dtype != w->dtype || w->dtype == DTYPE_F32)
        return false;
    if (w->k % FEW4_COLUMNS || w->n % N_TILE || w->n_segments > MAX_PARTS) return false;
    for (int32_t i = 0; i < w->n_segments; i++) {
        const struct weight_segment *g = &w->segments[i];
        if (g->block != QUANT_BLOCK || g->first_row % N_TILE || g->n_rows % N_TILE) return false;
    }
    return true;
}

void cuda_few_4bit(struct cuda_dev *cuda, const struct tensor *y, const struct tensor *x,
                   const struct weight *w) {
    assert(few_4bit_can(cuda, y, w) && y->shape[0] >= 1);
    if (w->dtype == DTYPE_F16)
        few4<__half>(cuda, y, x, w);
    else
        few4<__nv_bfloat16>(cuda, y, x, w);
}
