/* cuda_few_4bit_deep.cuh - few rows with 4-bit weights where a multiprocessor has few rows of w.
 *
 * Then a block has few sums, whose products wait for each other; so the warp that has them does
 * nothing else, and others decode for it, a stage ahead: its fragments of B lie in shared memory
 * as it wants them. */
#ifndef BATCHD_KERNELS_CUDA_FEW_4BIT_DEEP_CUH
#define BATCHD_KERNELS_CUDA_FEW_4BIT_DEEP_CUH

#include "kernels/cuda/cuda_few_4bit.cuh"

enum {
    DEEP_STAGES = 6,
    DEEP_TILES = 6,
    DEEP_THREADS = 640,
    FRAGMENTS_BYTES = FEW4_BLOCKS * FEW4_STEPS * 32 * 8
};

__device__ __forceinline__ void store_pair(uint32_t at, const uint32_t v[2]) {
    asm volatile("st.shared.v2.b32 [%0], {%1,%2};" ::"r"(at), "r"(v[0]), "r"(v[1]));
}

__device__ __forceinline__ void load_pair(uint32_t v[2], uint32_t at) {
    asm volatile("ld.shared.v2.b32 {%0,%1}, [%2];" : "=r"(v[0]), "=r"(v[1]) : "r"(at));
}

/* A stage's products of one tile of 8 rows of w. */
template <typename T, int TILES>
__device__ __forceinline__ void deep_multiply(float sums[1][(TILES + 1) / 2][4], uint32_t fragments,
                                              uint32_t x, int m, int lane) {
    few4_fragments<TILES, 1> f[2];
    auto load = [&](few4_fragments<TILES, 1> &to, int block) {
        few4_load_x<TILES, 1>(to, x, block, m, lane);
#pragma unroll
        for (int s = 0; s < FEW4_STEPS; s++)
            load_pair(to.b[0][s], fragments + (uint32_t)(((block * FEW4_STEPS + s) * 32 + lane) * 8));
    };
    load(f[0], 0);
#pragma unroll
    for (int b = 0; b < FEW4_BLOCKS; b++) {
        if (b + 1 < FEW4_BLOCKS) load(f[(b + 1) % 2], b + 1);
        few4_multiply<T, TILES, 1>(sums, f[b % 2]);
    }
}

/* Of each tile's warps, `decoders` decode; behind all of those, one a tile multiplies. */
template <typename T, int TILES>
__global__ void __launch_bounds__(DEEP_THREADS)
    deep_kernel(const __grid_constant__ few4_args<T> a, int tiles, int decoders) {
    constexpr int SETS = (TILES + 1) / 2;
    extern __shared__ __align__(1024) char few4_room[];
    __shared__ __align__(64) float values[MAX_PARTS][16];
    __shared__ float maps[MAX_PARTS][256];
    cuda_release();
    int tid = (int)threadIdx.x, lane = tid & 31, warp = tid >> 5, n_threads = (int)blockDim.x;
    int block_rows = tiles * N_TILE, first = (int)blockIdx.x * block_rows, n_stages = a.k / FEW4_COLUMNS;
    int n_fetchers = tiles * decoders * 32;
    bool decodes = tid < n_fetchers;
    int tile = decodes ? warp / decoders : warp - tiles * decoders;
    uint32_t fragments = (uint32_t)__cvta_generic_to_shared(few4_room),
             room = fragments + 2 * tiles * FRAGMENTS_BYTES;
    uint32_t x_at = (uint32_t)(block_rows * CODE_BYTES), absmax_at = x_at + (uint32_t)(a.m * X_BYTES);
    uint32_t stage_bytes = absmax_at + (uint32_t)(block_rows * ABSMAX_BYTES);
    few4_fill_tables(values, maps, a, tid, n_threads);

    /* What a thread fetches of a stage: at most a chunk of codes, and the absmax of a row. */
    int code_row = tid >> 3, row = first + code_row;
    const struct part4 &code_part = a.parts[few4_part_of(a, row)];
    const uint8_t *codes =
        code_part.codes + (int64_t)(row - code_part.first_row) * (a.k / 2) + (tid & 7) * 16;
    bool has_codes = code_row < block_rows, codes_there = row < a.n;
    const struct part4 &part = a.parts[few4_part_of(a, first + tid)];
    const char *absmax_from = part.absmax;
    const float *absmax2_from = part.absmax2;
    int64_t absmax_block = (int64_t)(first + tid - part.first_row) * (a.k / QUANT_BLOCK),
            tensor_block = part.first_block + absmax_block;
    bool has_absmax = tid < block_rows && first + tid < a.n;
    auto fetch_w = [&](int stage) {
        uint32_t to = room + (uint32_t)(stage % DEEP_STAGES) * stage_bytes;
        if (stage >= n_stages) return;
        if (has_codes)
            copy_async(few4_at(to, code_row, CODE_BYTES, tid & 7),
                       codes_there ? codes + (int64_t)stage * CODE_BYTES : (const uint8_t *)a.x, codes_there);
        if (!has_absmax) return;
        uint32_t absmax = to + absmax_at + (uint32_t)(tid * ABSMAX_BYTES);
        int64_t block = stage * FEW4_BLOCKS;
        if (!absmax2_from) {
            copy_async(absmax, absmax_from + 4 * (absmax_block + block), true);
        } else {
            copy_word(absmax, absmax_from + absmax_block + block);
            copy_word(absmax + 4, absmax2_from + (tensor_block + block) / QUANT_NESTED_BLOCK);
        }
    };
    auto fetch_x = [&](int stage) {
        uint32_t to = room + (uint32_t)(stage % DEEP_STAGES) * stage_bytes + x_at;
        if (stage < n_stages) few4_fetch_x(a, to, stage, tid, n_fetchers);
    };

    few4_row of = few4_row_at(a, values, maps, first + tile * N_TILE);
    auto fragments_of = [&](int stage) {
        return fragments + (uint32_t)(((stage & 1) * tiles + tile) * FRAGMENTS_BYTES);
    };
    auto decode = [&](int stage) {
        uint32_t from = room + (uint32_t)(stage % DEEP_STAGES) * stage_bytes, to = fragments_of(stage);
        int w_row = tile * N_TILE + (lane >> 2);
        for (int b = warp % decoders; b < FEW4_BLOCKS; b += decoders) {
            uint32_t v[FEW4_STEPS][2];
            float absmax = few4_absmax(of, from + absmax_at + (uint32_t)(w_row * ABSMAX_BYTES), b);
            few4_decode<T>(v, of, absmax, from, w_row, b, lane);
#pragma unroll
            for (int s = 0; s < FEW4_STEPS; s++)
                store_pair(to + (uint32_t)(((b * FEW4_STEPS + s) * 32 + lane) * 8), v[s]);
        }
    };

    /* Weights do not come from the kernel before: the ring is filled with them while it runs. */
    for (int s = 0; decodes && s < DEEP_STAGES - 1; s++) fetch_w(s);
    cuda_follow();
    for (int s = 0; decodes && s < DEEP_STAGES - 1; s++) {
        fetch_x(s);
        copies_commit();
    }
    float sums[1][SETS][4] = {};
    copies_wait<DEEP_STAGES - 2>();
    __syncthreads();
    if (decodes) decode(0);
    for (int s = 0; s < n_stages; s++) {
        copies_wait<DEEP_STAGES - 3>();
        __syncthreads(); /* stage s is decoded, s + 1 has arrived, nobody reads s - 1 any more */
        if (decodes) {
            fetch_w(s + DEEP_STAGES - 1);
            fetch_x(s + DEEP_STAGES - 1);
            copies_commit();
            if (s + 1 < n_stages) decode(s + 1);
        } else {
            deep_multiply<T, TILES>(sums, fragments_of(s),
                                    room + (uint32_t)(s % DEEP_STAGES) * stage_bytes + x_at, a.m, lane);
        }
    }
    copies_wait<0>();
    if (!decodes) few4_store<T, SETS>(a, sums[0], first + tile * N_TILE, lane);
}

#endif
