/* cuda_few_4bit_ring.cuh - few rows with 4-bit weights where a multiprocessor has many rows of w:
 * a block's warps take 8 or 16 each. All fetch codes, absmax and x into a ring, 256 columns a
 * stage; a warp turns its codes into fragments of B while the products of the 64 columns before
 * are under way. */
#ifndef BATCHD_KERNELS_CUDA_FEW_4BIT_RING_CUH
#define BATCHD_KERNELS_CUDA_FEW_4BIT_RING_CUH

#include "kernels/cuda/cuda_few_4bit.cuh"

enum { MAX_WARPS = 8 };

/* A block of the format, 64 columns: of x, and of NT tiles of 8 rows of w from first_row on. */
template <typename T, int TILES, int NT>
__device__ __forceinline__ void few4_load(few4_fragments<TILES, NT> &f, const struct few4_stage &stage,
                                          const struct few4_row rows[NT], int first_row, int block, int m,
                                          int lane) {
    few4_load_x<TILES, NT>(f, stage.x, block, m, lane);
#pragma unroll
    for (int t = 0; t < NT; t++) {
        int row = first_row + N_TILE * t + (lane >> 2);
        float absmax = few4_absmax(rows[t], stage.absmax + (uint32_t)(row * ABSMAX_BYTES), block);
        few4_decode<T>(f.b[t], rows[t], absmax, stage.codes, row, block, lane);
    }
}

/* Of the ring. */
__host__ __device__ constexpr int few4_stages(int tiles, int nt) {
    return (nt == 1 ? 8 : 4) * (tiles == 4 ? 3 : 4) / 4;
}

template <typename T, int TILES, int NT>
__global__ void __launch_bounds__(MAX_WARPS * 32, 2) few4_kernel(const __grid_constant__ few4_args<T> a) {
    constexpr int STAGES = few4_stages(TILES, NT), SETS = (TILES + 1) / 2;
    extern __shared__ __align__(1024) char few4_room[];
    __shared__ __align__(64) float values[MAX_PARTS][16];
    __shared__ float maps[MAX_PARTS][256];
    cuda_release();
    int tid = (int)threadIdx.x, lane = tid & 31, warp = tid >> 5, n_threads = (int)blockDim.x;
    int block_rows = n_threads / 32 * N_TILE * NT, first = (int)blockIdx.x * block_rows,
        n_stages = a.k / FEW4_COLUMNS;
    uint32_t room = (uint32_t)__cvta_generic_to_shared(few4_room);
    uint32_t x_at = (uint32_t)(block_rows * CODE_BYTES), absmax_at = x_at + (uint32_t)(a.m * X_BYTES);
    uint32_t stage_bytes = absmax_at + (uint32_t)(block_rows * ABSMAX_BYTES);
    few4_fill_tables(values, maps, a, tid, n_threads);

    /* What a thread fetches of a stage: a chunk of codes of 2 NT rows, and the absmax of at most one. */
    const uint8_t *codes[2 * NT];
    int code_row = tid >> 3, row_step = n_threads / 8;
#pragma unroll
    for (int i = 0; i < 2 * NT; i++) {
        int row = first + code_row + i * row_step;
        const struct part4 &p = a.parts[few4_part_of(a, row)];
        codes[i] = row < a.n ? p.codes + (int64_t)(row - p.first_row) * (a.k / 2) + (tid & 7) * 16 : NULL;
    }
    bool has_absmax = tid < block_rows && first + tid < a.n;
    const struct part4 &part = a.parts[few4_part_of(a, first + tid)];
    int64_t absmax_block = (int64_t)(first + tid - part.first_row) * (a.k / QUANT_BLOCK);
    auto fetch_w = [&](int stage) {
        uint32_t to = room + (uint32_t)(stage % STAGES) * stage_bytes;
        if (stage >= n_stages) return;
#pragma unroll
        for (int i = 0; i < 2 * NT; i++) {
            bool there = codes[i] != NULL;
            copy_async(few4_at(to, code_row + i * row_step, CODE_BYTES, tid & 7),
                       there ? codes[i] + (int64_t)stage * CODE_BYTES : (const uint8_t *)a.x, there);
        }
        if (!has_absmax) return;
        uint32_t absmax = to + absmax_at + (uint32_t)(tid * ABSMAX_BYTES);
        int64_t block = absmax_block + stage * FEW4_BLOCKS;
        if (!part.absmax2) {
            copy_async(absmax, part.absmax + 4 * block, true);
        } else {
            copy_word(absmax, part.absmax + block);
            copy_word(absmax + 4, part.absmax2 + (part.first_block + block) / QUANT_NESTED_BLOCK);
        }
    };
    auto fetch_x = [&](int stage) {
        uint32_t to = room + (uint32_t)(stage % STAGES) * stage_bytes + x_at;
        if (stage < n_stages) few4_fetch_x(a, to, stage, tid, n_threads);
    };
    auto stage_at = [&](int stage) {
        uint32_t at = room + (uint32_t)(stage % STAGES) * stage_bytes;
        return few4_stage{at, at + x_at, at + absmax_at};
    };

    /* Weights do not come from the kernel before: the ring is filled with them while it runs. */
    for (int s = 0; s < STAGES; s++) fetch_w(s);
    cuda_follow();
    for (int s = 0; s < STAGES; s++) {
        fetch_x(s);
        copies_commit();
    }
    int warp_row = warp * N_TILE * NT; /* of the block's */
    few4_row rows[NT];
#pragma unroll
    for (int t = 0; t < NT; t++)
        rows[t] = few4_row_at(a, values, maps, first + warp_row + N_TILE * t);
    float sums[NT][SETS][4] = {};
    few4_fragments<TILES, NT> f[2];
    copies_wait<STAGES - 1>();
    __syncthreads();
    few4_load<T, TILES, NT>(f[0], stage_at(0), rows, warp_row, 0, a.m, lane);
    for (int s = 0; s < n_stages; s++) {
        few4_stage stage = stage_at(s);
#pragma unroll
        for (int b = 0; b < FEW4_BLOCKS; b++) { /* the next fragments while these are multiplied */
            if (b + 1 < FEW4_BLOCKS) {
                few4_load<T, TILES, NT>(f[(b + 1) % 2], stage, rows, warp_row, b + 1, a.m, lane);
            } else if (s + 1 < n_stages) {
                copies_wait<STAGES - 2>();
                __syncthreads(); /* the next stage is there, and nobody reads this one any more */
                fetch_w(s + STAGES);
                fetch_x(s + STAGES);
                copies_commit();
                few4_load<T, TILES, NT>(f[0], stage_at(s + 1), rows, warp_row, 0, a.m, lane);
            }
            few4_multiply<T, TILES, NT>(sums, f[b % 2]);
        }
    }
    copies_wait<0>();
#pragma unroll
    for (int t = 0; t < NT; t++) few4_store<T, SETS>(a, sums[t], first + warp_row + N_TILE * t, lane);
}

#endif
