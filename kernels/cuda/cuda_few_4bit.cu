/* cuda_few_4bit.cu - products of few rows with 4-bit weights: the codes are all that is read.
 *
 * The bits are those of decoding and cuda_linear_few.cu: a number is rounded to the compute
 * dtype before it is multiplied, and a sum is one accumulator over ascending steps of 16 columns
 * (mma.m16n8k16). Here the rows of x are A and 8 rows of w are B.
 *
 * Where a multiprocessor has many rows of w: a block's warps take 8 or 16 each (few4_kernel; where
 * it has few: deep_kernel). All fetch codes, absmax and x into a ring, 256
 * columns a stage; a warp turns its codes into fragments of B while the products of the 64
 * columns before are under way. A row's 64 columns, a block of the format, are 8 words; lane l
 * needs byte l % 4 of each, since B wants columns 2 (l % 4) and the next. */
#include "kernels/cuda/cuda_mma.cuh"
#include "kernels/cuda/cuda_quantize.h"

#include <assert.h>
#include <string.h>

enum {
    FEW4_ROWS = 32,     /* of x, the most */
    FEW4_COLUMNS = 256, /* of a stage */
    FEW4_BLOCKS = FEW4_COLUMNS / QUANT_BLOCK,
    FEW4_STEPS = QUANT_BLOCK / 16,
    CODE_BYTES = FEW4_COLUMNS / 2,
    X_BYTES = FEW4_COLUMNS * 2,
    ABSMAX_BYTES = 16, /* of a row in a stage */
    MAX_PARTS = 4,
    MAX_WARPS = 8,
    N_TILE = 8,
};

struct part4 { /* a segment; pointers are to its first row */
    int32_t first_row, n_rows;
    const uint8_t *codes; /* [n_rows][k / 2] */
    const char *absmax;   /* [n_rows][k / 64] of f32, or of u8, and: */
    const float *absmax2; /* NULL: absmax are not codes */
    const float *map;
    int64_t first_block; /* of the tensor */
    float mean;
    float values[16]; /* of codes */
};

template <typename T> struct few4_args {
    T *y;       /* [m, n] */
    const T *x; /* [m, k] */
    int32_t m, n, k, n_parts;
    struct part4 parts[MAX_PARTS];
};

/* 64 columns: A of 16 rows of x each (of 8 in rows 0 .. 7 where TILES is 1), B of 8 of w. */
template <int TILES, int NT> struct few4_fragments {
    static constexpr int SETS = (TILES + 1) / 2;
    uint32_t a[SETS][FEW4_STEPS][4], b[NT][FEW4_STEPS][2];
};

struct few4_stage { /* addresses in shared memory */
    uint32_t codes, x, absmax;
};

/* ---------------------------------------------------------------- shared memory */

/* 4 bytes to shared memory. */
__device__ __forceinline__ void copy_word(uint32_t to, const void *from) {
#if CUDA_HAS_ASYNC_COPY
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to), "l"(from));
#else
    asm volatile("st.shared.b32 [%0], %1;" ::"r"(to), "r"(*(const uint32_t *)from) : "memory");
#endif
}

__device__ __forceinline__ float shared_float(uint32_t at) {
    float x;
    asm volatile("ld.shared.f32 %0, [%1];" : "=f"(x) : "r"(at));
    return x;
}

__device__ __forceinline__ uint32_t shared_byte(uint32_t at) {
    uint32_t x;
    asm volatile("ld.shared.u8 %0, [%1];" : "=r"(x) : "r"(at));
    return x;
}

__device__ __forceinline__ void shared_words(uint32_t w[4], uint32_t at) {
    asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(w[0]), "=r"(w[1]), "=r"(w[2]), "=r"(w[3])
                 : "r"(at));
}

/* Chunks of 16 bytes are swapped by XOR, so that eight rows of one column lie in different banks. */
__device__ __forceinline__ uint32_t few4_at(uint32_t base, int row, int row_bytes, int chunk) {
    return base + (uint32_t)(row * row_bytes + ((chunk ^ (row & 7)) << 4));
}

/* A table of 16 values is read at any 32 places at once: each value has its bank. It may change
 * never, so reading it need not stay in order. */
__device__ __forceinline__ float table_value(uint32_t table, uint32_t offset) {
    float x;
    asm("ld.shared.f32 %0, [%1];" : "=f"(x) : "r"(table | offset));
    return x;
}

/* ---------------------------------------------------------------- fragments */

template <int TILES, int NT>
__device__ __forceinline__ void few4_load_x(few4_fragments<TILES, NT> &f, uint32_t x, int block, int m,
                                            int lane) {
    if constexpr (TILES == 1) {
#pragma unroll
        for (int s = 0; s < FEW4_STEPS; s += 2) {
            uint32_t r[4];
            load_matrices(r, few4_at(x, min(lane & 7, m - 1), X_BYTES, 8 * block + 2 * s + (lane >> 3)));
            f.a[0][s][0] = r[0], f.a[0][s][1] = 0, f.a[0][s][2] = r[1], f.a[0][s][3] = 0;
            f.a[0][s + 1][0] = r[2], f.a[0][s + 1][1] = 0, f.a[0][s + 1][2] = r[3], f.a[0][s + 1][3] = 0;
        }
    } else {
#pragma unroll
        for (int q = 0; q < TILES / 2; q++)
#pragma unroll
            for (int s = 0; s < FEW4_STEPS; s++)
                load_matrices(f.a[q][s], few4_at(x, min(16 * q + (lane & 15), m - 1), X_BYTES,
                                                 8 * block + 2 * s + (lane >> 4)));
    }
}

struct few4_row {        /* of w, as a lane knows it */
    uint32_t table, map; /* addresses of what codes are worth, and codes of absmax */
    float mean;
    bool is_nested;
};

__device__ __forceinline__ float few4_absmax(const struct few4_row &r, uint32_t absmax, int block) {
    if (!r.is_nested) return shared_float(absmax + 4 * (uint32_t)block);
    float value = shared_float(r.map + 4 * shared_byte(absmax + (uint32_t)block));
    return __fadd_rn(__fmul_rn(value, shared_float(absmax + 4)), r.mean);
}

/* A block of one row: its words become the lane's part of B. */
template <typename T>
__device__ __forceinline__ void few4_decode(uint32_t b[FEW4_STEPS][2], const struct few4_row &r, float absmax,
                                            uint32_t codes, int row, int block, int lane) {
    uint32_t w[8];
    shared_words(w, few4_at(codes, row, CODE_BYTES, 2 * block));
    shared_words(w + 4, few4_at(codes, row, CODE_BYTES, 2 * block + 1));
#pragma unroll
    for (int i = 0; i < 8; i++) {
        /* Four times the code is its value's place; the first of two codes is the high one. */
        uint32_t turned = __funnelshift_r(w[i], w[i], (8 * (lane & 3) + 30) & 31);
        float first = table_value(r.table, turned >> 4 & 0x3c), second = table_value(r.table, turned & 0x3c);
        b[i / 2][i % 2] = two_of<T>(__fmul_rn(first, absmax), __fmul_rn(second, absmax));
    }
}

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

template <typename T, int TILES, int NT>
__device__ __forceinline__ void few4_multiply(float sums[NT][(TILES + 1) / 2][4],
                                              const few4_fragments<TILES, NT> &f) {
#pragma unroll
    for (int s = 0; s < FEW4_STEPS; s++)
#pragma unroll
        for (int t = 0; t < NT; t++)
#pragma unroll
            for (int q = 0; q < (TILES + 1) / 2; q++)
                multiply_add<T>(sums[t][q], f.a[q][s], f.b[t][s][0], f.b[t][s][1]);
}

/* ---------------------------------------------------------------- kernel */

/* The part that has a row; the last for rows that are not there. */
template <typename T> __device__ __forceinline__ int few4_part_of(const few4_args<T> &a, int row) {
    int p = 0;
    while (p + 1 < a.n_parts && row >= a.parts[p].first_row + a.parts[p].n_rows) p++;
    return p;
}

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
    for (int i = tid; i < a.n_parts * 16; i += n_threads)
        values[i / 16][i % 16] = a.parts[i / 16].values[i % 16];
    for (int p = 0; p < a.n_parts; p++)
        for (int i = tid; a.parts[p].map && i < 256; i += n_threads) maps[p][i] = a.parts[p].map[i];

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
        if (stage >= n_stages) return;
        for (int i = tid; i < a.m * (X_BYTES / 16); i += n_threads) {
            int row = i / (X_BYTES / 16), chunk = i % (X_BYTES / 16);
            copy_async(few4_at(to, row, X_BYTES, chunk),
                       a.x + (int64_t)row * a.k + stage * FEW4_COLUMNS + chunk * 8, true);
        }
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
    for (int t = 0; t < NT; t++) {
        int p = few4_part_of(a, first + warp_row + N_TILE * t);
        rows[t] = {(uint32_t)__cvta_generic_to_shared(values[p]), (uint32_t)__cvta_generic_to_shared(maps[p]),
                   a.parts[p].mean, a.parts[p].absmax2 != NULL};
    }
    float sums[NT][SETS][4] = {};
    few4_fragments<TILES, NT> f[2];
    copies_wait<STAGES - 1>();
    __syncthreads();
    few4_load<T, TILES, NT>(f[0], stage_at(0), rows, warp_row, 0, a.m, lane);
    for (int s = 0; s < n_stages; s++) {
        few4_stage stage = stage_at(s);
#pragma unroll
        for (int b = 0; b < FEW4_BLOCKS;
             b++) { /* the next block's fragments while this one's are multiplied */
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
    for (int t = 0; t < NT; t++)
#pragma unroll
        for (int q = 0; q < SETS; q++)
#pragma unroll
            for (int c = 0; c < 4; c++) {
                int token = 16 * q + (lane >> 2) + 8 * (c >> 1);
                int row = first + warp_row + N_TILE * t + 2 * (lane & 3) + (c & 1);
                if (row < a.n && token < a.m) a.y[(int64_t)token * a.n + row] = cuda_round<T>(sums[t][q][c]);
            }
}

/* ---------------------------------------------------------------- kernel: few rows of w a multiprocessor */

/* With few rows of w a block has few sums, whose products wait for each other; so the warp that
 * has them does nothing else, and others decode for it, a stage ahead: its fragments of B lie in
 * shared memory as it wants them. */
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
    for (int i = tid; i < a.n_parts * 16; i += n_threads)
        values[i / 16][i % 16] = a.parts[i / 16].values[i % 16];
    for (int p = 0; p < a.n_parts; p++)
        for (int i = tid; a.parts[p].map && i < 256; i += n_threads) maps[p][i] = a.parts[p].map[i];

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
        if (stage >= n_stages) return;
        for (int i = tid; i < a.m * (X_BYTES / 16); i += n_fetchers) {
            int x_row = i / (X_BYTES / 16), chunk = i % (X_BYTES / 16);
            copy_async(few4_at(to, x_row, X_BYTES, chunk),
                       a.x + (int64_t)x_row * a.k + stage * FEW4_COLUMNS + chunk * 8, true);
        }
    };

    int p = few4_part_of(a, first + tile * N_TILE);
    few4_row of = {(uint32_t)__cvta_generic_to_shared(values[p]), (uint32_t)__cvta_generic_to_shared(maps[p]),
                   a.parts[p].mean, a.parts[p].absmax2 != NULL};
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
    if (decodes) return;
#pragma unroll
    for (int q = 0; q < SETS; q++)
#pragma unroll
        for (int c = 0; c < 4; c++) {
            int token = 16 * q + (lane >> 2) + 8 * (c >> 1);
            int column = first + tile * N_TILE + 2 * (lane & 3) + (c & 1);
            if (column < a.n && token < a.m)
                a.y[(int64_t)token * a.n + column] = cuda_round<T>(sums[0][q][c]);
        }
}

/* ---------------------------------------------------------------- launch */

struct few4_plan {
    int nt, warps;
};

static int tiles_of(int64_t m) { return m <= 8 ? 1 : m <= 16 ? 2 : 4; }

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
            int64_t resident = (int64_t)(room / (few4_bytes(nt, warps, m) + 6144));
            if (resident > 2 * MAX_WARPS / warps) resident = 2 * MAX_WARPS / warps; /* registers */
            if (resident < 1 || few4_bytes(nt, warps, m) + 6144 > cuda->prop.sharedMemPerBlockOptin) continue;
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
    static bool prepared;
    if (!prepared)
        prepared = cuda_ok(cuda,
                           cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                (int)cuda->prop.sharedMemPerBlockOptin - 6144),
                           "linear");
    int rows = warps * NT * N_TILE;
    cuda_launch(cuda, "a 4-bit product of few rows", kernel, dim3((unsigned)((a.n + rows - 1) / rows)),
                (unsigned)warps * 32, few4_bytes(NT, warps, a.m), a);
}

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
    static bool prepared;
    if (!prepared)
        prepared = cuda_ok(cuda,
                           cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                (int)cuda->prop.sharedMemPerBlockOptin - 6144),
                           "linear");
    int decoders = tiles <= 4 ? 4 : 2, rows = tiles * N_TILE;
    cuda_launch(cuda, "a 4-bit product of few rows", kernel, dim3((unsigned)((a.n + rows - 1) / rows)),
                (unsigned)(tiles * (decoders + 1) * 32), deep_bytes(tiles, a.m), a, tiles, decoders);
}

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
    if (tiles > 0 && deep_bytes(tiles, m) + 6144 <= cuda->prop.sharedMemPerBlockOptin)
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
