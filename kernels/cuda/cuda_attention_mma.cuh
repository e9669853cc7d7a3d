/* cuda_attention_mma.cuh - attention on the tensor cores (mma.sync m16n8k16); T is
 * __nv_bfloat16 or __half.
 *
 * A block takes one item (query tokens of one sequence) and one KV head. Its rows are
 * (token, head of the group) pairs, 16 to a warp; the warps share tiles of 64 keys that
 * cp.async brings into a ring in shared memory, K and V in turn. What is computed for a
 * row is the same whatever the item, the warp and the number of warps: scores of a tile
 * by k steps of 16 ascending; its maximum; exponents of base 2; the sum of a tile's
 * weights in one fixed order of lanes; P V by k steps of 16 keys ascending. Tiles of
 * which a row sees nothing leave its sums as they are, bit for bit.
 *
 * Kernels are made for some widths; a head of another size goes through the next wider one,
 * its rows filled up with zeros, which change no sum.
 *
 * An fp8 cache: a lane takes four neighbouring codes where it takes two numbers twice of a
 * 16-bit one, so a k step's 16 dimensions, and columns of the output, come in another order
 * (queries and stores follow); codes are exact in T. A key's scale is applied to its score,
 * a value's to its weight before that is rounded. */
#ifndef BATCHD_KERNELS_CUDA_ATTENTION_MMA_CUH
#define BATCHD_KERNELS_CUDA_ATTENTION_MMA_CUH

#include "kernels/cuda/cuda_attention_rows.cuh"

/* A kind of head, and its tiles in shared memory: rows of WIDTH numbers or codes. A stage of
 * the ring holds KEYS of them; wide heads and lean blocks take two stages a tile, so that a
 * block with one warp stays small. Eight rows must begin in eight different groups of banks:
 * chunks of 16 bytes are swapped by XOR where a row has a multiple of eight of them, else rows
 * are padded to an odd number.
 *
 * Decoding over codes waits for instructions rather than for memory, which more warps hide: its
 * blocks of one warp are lean. */
template <typename T, int WIDTH_, bool EXACT_, bool FP8_, bool LEAN_ = false> struct head_kind {
    using number = T;
    using lean = head_kind<T, WIDTH_, EXACT_, FP8_, FP8_ && WIDTH_ <= 128>;
    static constexpr int WIDTH = WIDTH_;     /* a multiple of 16 */
    static constexpr bool EXACT = EXACT_;    /* head_dim is WIDTH */
    static constexpr bool FP8 = FP8_;        /* of the cache */
    static constexpr int STEPS = WIDTH / 16; /* of a score */
    static constexpr bool LEAN = LEAN_;
    static constexpr bool FEW_REGISTERS = WIDTH > 128 || LEAN; /* for queries, and for the sums of two splits */
    static constexpr int KEYS = FEW_REGISTERS ? 32 : 64, PARTS = ATTENTION_TILE / KEYS;
    static constexpr int BYTES_EACH = FP8 ? 1 : 2, CHUNKS = WIDTH * BYTES_EACH / 16;
    static constexpr int COPY = FP8 && !EXACT ? 8 : 16; /* bytes of a row that are copied at once */
    static constexpr bool XOR = CHUNKS % 8 == 0;
    static constexpr int STRIDE = XOR ? CHUNKS : CHUNKS | 1; /* chunks from row to row */
    static constexpr int SCALES = KEYS * STRIDE * 16;        /* where the scales of an fp8 stage are */
    static constexpr int BYTES = SCALES + (FP8 ? KEYS * 4 : 0);
    static constexpr int QUERY_BYTES = FEW_REGISTERS ? STEPS * 32 * 16 : 0; /* of a warp, in shared memory */
    static constexpr int LEAST_BLOCKS = LEAN ? 12 : 0; /* of one warp, that a multiprocessor runs at once */

    static __device__ __forceinline__ int at(int row, int chunk) { /* bytes */
        return (row * STRIDE + (XOR ? chunk ^ (row & 7) : chunk)) * 16;
    }
    static __device__ __forceinline__ int head_dim(const attention_args &a) {
        return EXACT ? WIDTH : a.head_dim;
    }
};

/* ---------------------------------------------------------------- queries */

/* A warp's fragments of q, a k step each: in registers, or where each lane finds its own. */
template <typename H> struct query_rows {
    uint32_t q[H::FEW_REGISTERS ? 1 : H::STEPS][4];
    uint32_t room; /* this lane's, in shared memory */

    __device__ __forceinline__ void put(int step, const uint32_t a[4]) {
        if constexpr (H::FEW_REGISTERS)
            store_shared(room + (uint32_t)step * 512, a);
        else
            for (int i = 0; i < 4; i++) q[step][i] = a[i];
    }
    __device__ __forceinline__ void get(uint32_t a[4], int step) const {
        if constexpr (H::FEW_REGISTERS)
            load_shared(a, room + (uint32_t)step * 512);
        else
            for (int i = 0; i < 4; i++) a[i] = q[step][i];
    }
};

/* A row's numbers of a k step that a lane takes, two by two. */
template <typename H>
__device__ __forceinline__ void query_pairs(uint32_t pair[2], const typename H::number *row, int step,
                                            int head_dim, bool there, int lane) {
    if constexpr (H::FP8) {
        int d = 16 * step + 4 * (lane & 3);
        uint2 v = there && d < head_dim ? *(const uint2 *)(row + d) : make_uint2(0, 0);
        pair[0] = even_halves(v.x, v.y);
        pair[1] = odd_halves(v.x, v.y);
    } else
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int d = 16 * step + 8 * half + 2 * (lane & 3);
            pair[half] = there && d < head_dim ? *(const uint32_t *)(row + d) : 0u;
        }
}

/* Row r of the item: token r / group, head r % group of the KV head's. */
template <typename H>
__device__ __forceinline__ void load_queries(query_rows<H> &to, const typename H::number *queries,
                                             const attention_args &a, int32_t kv_head, int32_t first_row,
                                             int32_t n_rows, int32_t tile_row, int lane) {
    const typename H::number *row[2];
    bool there[2];
    int hd = H::head_dim(a);
#pragma unroll
    for (int h = 0; h < 2; h++) {
        int32_t r = tile_row + lane / 4 + 8 * h;
        there[h] = r < n_rows;
        if (!there[h]) r = 0;
        row[h] =
            queries + ((int64_t)(first_row + r / a.group) * a.n_heads + kv_head * a.group + r % a.group) * hd;
    }
#pragma unroll
    for (int step = 0; step < H::STEPS; step++) {
        uint32_t top[2], bottom[2];
        query_pairs<H>(top, row[0], step, hd, there[0], lane);
        query_pairs<H>(bottom, row[1], step, hd, there[1], lane);
        const uint32_t fragment[4] = {top[0], bottom[0], top[1], bottom[1]};
        to.put(step, fragment);
    }
}

/* ---------------------------------------------------------------- the two products */

/* Scores of a stage's keys: s[j] are those of keys 8 j .. 8 j + 7 of the stage. */
template <typename H>
__device__ __forceinline__ void stage_scores(float (*s)[4], const query_rows<H> &queries, uint32_t keys,
                                             int lane) {
    using T = typename H::number;
    constexpr int OCTETS = H::KEYS / 8;
#pragma unroll
    for (int j = 0; j < OCTETS; j++) s[j][0] = s[j][1] = s[j][2] = s[j][3] = 0.0f;
    /* Lanes 0-7, 8-15, ... name the rows of four 8 x 8 matrices: k halves of one and the next eight keys. */
    int key = (lane & 7) + ((lane >> 4) << 3), half = lane >> 3 & 1;
#pragma unroll
    for (int step = 0; step < H::STEPS; step++) {
        uint32_t q[4];
        queries.get(q, step);
#pragma unroll
        for (int j = 0; j < OCTETS; j += 2) {
            uint32_t b[4];
            load_matrices(b, keys + (uint32_t)H::at(8 * j + key, 2 * step + half));
            multiply_add<T>(s[j], q, b[0], b[1]);
            multiply_add<T>(s[j + 1], q, b[2], b[3]);
        }
    }
}

/* The same of codes: a matrix is a k step of eight keys, two codes in each 16-bit number. */
template <typename H>
__device__ __forceinline__ void stage_scores_fp8(float (*s)[4], const query_rows<H> &queries, uint32_t keys,
                                                 int lane) {
    using T = typename H::number;
    constexpr int OCTETS = H::KEYS / 8;
#pragma unroll
    for (int j = 0; j < OCTETS; j++) s[j][0] = s[j][1] = s[j][2] = s[j][3] = 0.0f;
#pragma unroll
    for (int step = 0; step < H::STEPS; step++) {
        uint32_t q[4];
        queries.get(q, step);
#pragma unroll
        for (int j = 0; j < OCTETS; j += 4) {
            uint32_t codes[4];
            load_matrices(codes, keys + (uint32_t)H::at(8 * j + lane, step));
#pragma unroll
            for (int i = 0; i < 4; i++)
                multiply_add<T>(s[j + i], q, codes_even<T>(codes[i]), codes_odd<T>(codes[i]));
        }
    }
#pragma unroll
    for (int j = 0; j < OCTETS; j++) {
        float2 scale = load_two(keys + (uint32_t)(H::SCALES + (8 * j + 2 * (lane & 3)) * 4));
        s[j][0] *= scale.x;
        s[j][1] *= scale.y;
        s[j][2] *= scale.x;
        s[j][3] *= scale.y;
    }
}

/* Weights of a k step of 16 keys, rounded, as A's fragment. */
template <typename T> __device__ __forceinline__ void weights_of_step(uint32_t p[4], const float (*s)[4]) {
    p[0] = two_of<T>(s[0][0], s[0][1]);
    p[1] = two_of<T>(s[0][2], s[0][3]);
    p[2] = two_of<T>(s[1][0], s[1][1]);
    p[3] = two_of<T>(s[1][2], s[1][3]);
}

/* o += the weights s of a stage's keys times its values. */
template <typename H>
__device__ __forceinline__ void stage_values(float (*o)[4], const float (*s)[4], uint32_t values, int lane) {
    using T = typename H::number;
    int key = lane & 15, column = lane >> 4;
#pragma unroll
    for (int step = 0; step < H::KEYS / 16; step++) {
        uint32_t p[4];
        weights_of_step<T>(p, s + 2 * step);
#pragma unroll
        for (int i = 0; i < H::WIDTH / 8; i += 2) {
            uint32_t b[4];
            load_matrices_transposed(b, values + (uint32_t)H::at(16 * step + key, i + column));
            multiply_add<T>(o[i], p, b[0], b[1]);
            multiply_add<T>(o[i + 1], p, b[2], b[3]);
        }
    }
}

/* The same of codes. Transposed, a 16-bit number of the matrix is a key's codes of two columns:
 * even ones make o[2 i], odd ones o[2 i + 1]. */
template <typename H>
__device__ __forceinline__ void stage_values_fp8(float (*o)[4], float (*s)[4], uint32_t values, int lane) {
    using T = typename H::number;
#pragma unroll
    for (int j = 0; j < H::KEYS / 8; j++) {
        float2 scale = load_two(values + (uint32_t)(H::SCALES + (8 * j + 2 * (lane & 3)) * 4));
        s[j][0] *= scale.x;
        s[j][1] *= scale.y;
        s[j][2] *= scale.x;
        s[j][3] *= scale.y;
    }
#pragma unroll
    for (int steps = 0; steps < H::KEYS / 16; steps += 2) {
        uint32_t p[2][4];
        weights_of_step<T>(p[0], s + 2 * steps);
        weights_of_step<T>(p[1], s + 2 * steps + 2);
#pragma unroll
        for (int i = 0; i < H::CHUNKS; i++) {
            uint32_t codes[4]; /* of 32 keys */
            load_matrices_transposed(codes, values + (uint32_t)H::at(16 * steps + lane, i));
#pragma unroll
            for (int n = 0; n < 2; n++) {
                uint32_t one = codes[2 * n], two = codes[2 * n + 1];
                multiply_add<T>(o[2 * i], p[n], codes_even<T>(one), codes_even<T>(two));
                multiply_add<T>(o[2 * i + 1], p[n], codes_odd<T>(one), codes_odd<T>(two));
            }
        }
    }
}

/* ---------------------------------------------------------------- the ring */

/* Of each tile its keys, then its values, PARTS stages each. WARPS warps from thread FIRST on fill
 * it; where others are in the block (FIRST > 0), they wait for each other at the named barrier 4. */
template <typename H, int WARPS, int STAGES, int FIRST = 0> struct kv_ring {
    uint32_t room; /* shared memory */
    const char *slab;
    const int32_t *table;
    int32_t first_tile, n_stages;
    int32_t first, end; /* keys outside are zeros: their weight is 0, and 0 times NaN is NaN */
    int32_t kv_head;

    __device__ __forceinline__ uint32_t room_of(int stage) const {
        return room + (uint32_t)(stage % STAGES * H::BYTES);
    }

    static __device__ __forceinline__ int thread() { return (int)threadIdx.x - FIRST; }

    static __device__ __forceinline__ void sync() {
        if (FIRST > 0)
            named_sync<4, WARPS * 32>();
        else if (WARPS == 1)
            __syncwarp();
        else
            __syncthreads();
    }

    /* KV_BLOCK keys or values. */
    __device__ __forceinline__ void fetch_block(const attention_args &a, uint32_t to, int first_row,
                                                int32_t key, int which) const {
        constexpr int UNITS = H::WIDTH * H::BYTES_EACH / H::COPY, EACH = H::COPY / H::BYTES_EACH;
        int32_t hd = H::head_dim(a), block = key < end ? table[key / KV_BLOCK] : 0;
        int64_t tile = kv_tile_of(a, block, which, kv_head);
        const char *from = slab + tile * kv_tile_bytes(hd, H::BYTES_EACH, H::FP8);
        for (int i = thread(); i < KV_BLOCK * UNITS; i += WARPS * 32) {
            int row = i / UNITS, unit = i % UNITS;
            bool there = key + row >= first && key + row < end && (H::EXACT || unit * EACH < hd);
            uint32_t place = (uint32_t)H::at(first_row + row, unit * H::COPY / 16) + unit * H::COPY % 16;
            if constexpr (H::LEAN && H::EXACT) /* the same place, by fewer instructions */
                copy_async<H::COPY>(to + place, from + i * H::COPY, there);
            else
                copy_async<H::COPY>(to + place, from + (row * hd + unit * EACH) * H::BYTES_EACH, there);
        }
        if constexpr (H::FP8)
            if (thread() < KV_BLOCK) {
                int row = thread();
                copy_async<4>(to + (uint32_t)(H::SCALES + (first_row + row) * 4),
                              from + KV_BLOCK * hd + row * 4, key + row >= first && key + row < end);
            }
    }

    __device__ __forceinline__ void fetch(const attention_args &a, int stage) const {
        if (stage < n_stages) {
            int32_t tile = first_tile + stage / (2 * H::PARTS) * ATTENTION_TILE;
            int which = stage / H::PARTS & 1, part = stage % H::PARTS;
#pragma unroll
            for (int row = 0; row < H::KEYS; row += KV_BLOCK)
                fetch_block(a, room_of(stage), row, tile + part * H::KEYS + row, which);
        }
        copies_commit(); /* an empty group too: groups are counted */
    }

    /* A stage that has arrived; everybody is through with the one before, whose room is filled again. */
    __device__ __forceinline__ uint32_t next(const attention_args &a, int stage) const {
        copies_wait<STAGES - 2>();
        sync();
        fetch(a, stage + STAGES - 1);
        return room_of(stage);
    }
};

/* ---------------------------------------------------------------- kernel */

/* Four neighbouring numbers of a row: of columns 8 i .. 8 i + 7 of o where i is even. */
template <typename T> __device__ __forceinline__ uint2 four_of(const float (*o)[4], int h, float times) {
    return make_uint2(two_of<T>(o[0][2 * h] * times, o[1][2 * h] * times),
                      two_of<T>(o[0][2 * h + 1] * times, o[1][2 * h + 1] * times));
}

template <typename H>
__device__ __forceinline__ void store_rows(typename H::number *out, const mma_sums<H::WIDTH> &sums,
                                           const attention_args &a, int32_t kv_head, int32_t first_row,
                                           int32_t n_rows, int32_t tile_row, int lane) {
    using T = typename H::number;
    int hd = H::head_dim(a);
#pragma unroll
    for (int h = 0; h < 2; h++) {
        int32_t r = tile_row + lane / 4 + 8 * h;
        if (r >= n_rows) continue;
        int64_t row = first_row + r / a.group;
        T *to = out + (row * a.n_heads + kv_head * a.group + r % a.group) * hd;
        float inverse = 1.0f / sums.l[h];
#pragma unroll
        for (int i = 0; i < H::WIDTH / 8; i++) {
            if (H::FP8 && i % 2) continue;
            int d = 8 * i + (H::FP8 ? 4 : 2) * (lane & 3);
            if (!H::EXACT && d >= hd) continue;
            if constexpr (H::FP8)
                *(uint2 *)(to + d) = four_of<T>(sums.o + i, h, inverse);
            else
                *(uint32_t *)(to + d) = two_of<T>(sums.o[i][2 * h] * inverse, sums.o[i][2 * h + 1] * inverse);
        }
    }
}

/* Fresh sums of tiles first .. end - 1 of the ring, the first of which begins with `stage`. */
template <typename H, int WARPS, int STAGES>
__device__ __forceinline__ void
walk_tiles(mma_sums<H::WIDTH> &sums, const kv_ring<H, WARPS, STAGES> &ring, const query_rows<H> &queries,
           const mma_rows &rows, const attention_args &a, int first, int end, int &stage, int lane) {
    sums_clear(sums);
    for (int n = first; n < end; n++) {
        float s[8][4];
#pragma unroll
        for (int part = 0; part < H::PARTS; part++, stage++)
            if constexpr (H::FP8)
                stage_scores_fp8<H>(s + part * H::KEYS / 8, queries, ring.next(a, stage), lane);
            else
                stage_scores<H>(s + part * H::KEYS / 8, queries, ring.next(a, stage), lane);
        tile_weights(s, sums, rows, ring.first_tile + n * ATTENTION_TILE, a, lane);
#pragma unroll
        for (int part = 0; part < H::PARTS; part++, stage++)
            if constexpr (H::FP8)
                stage_values_fp8<H>(sums.o, s + part * H::KEYS / 8, ring.next(a, stage), lane);
            else
                stage_values<H>(sums.o, s + part * H::KEYS / 8, ring.next(a, stage), lane);
    }
}

template <typename H, int WARPS, int STAGES> constexpr int mma_room() {
    return STAGES * H::BYTES + WARPS * H::QUERY_BYTES;
}

template <typename H, int WARPS, int STAGES>
__global__ void __launch_bounds__(WARPS * 32, WARPS == 1 ? H::LEAST_BLOCKS : 0)
    mma_attention_kernel(typename H::number *out, const typename H::number *q, const void *slab,
                         const struct attention_item *items, const int32_t *block_table, attention_args a) {
    extern __shared__ __align__(128) char room[];
    cuda_begin();
    const struct attention_item item = items[blockIdx.x];
    int32_t kv_head = blockIdx.y, n_rows = item.n_rows * a.group;
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    int32_t block_row = (int32_t)blockIdx.z * WARPS * 16, tile_row = block_row + warp * 16;
    if (block_row >= n_rows) return;
    int32_t last_token = min(n_rows, block_row + WARPS * 16) - 1,
            end = item.first_position + last_token / a.group + 1;
    int32_t first = first_key_of(a, item.first_position + block_row / a.group);
    int32_t first_tile = first / ATTENTION_TILE * ATTENTION_TILE;
    int32_t n_tiles = (end - first_tile + ATTENTION_TILE - 1) / ATTENTION_TILE;
    uint32_t shared = (uint32_t)__cvta_generic_to_shared(room);
    kv_ring<H, WARPS, STAGES> ring = {shared,
                                      (const char *)slab,
                                      block_table + (int64_t)item.slot * a.block_table_stride,
                                      first_tile,
                                      2 * H::PARTS * n_tiles,
                                      first,
                                      end,
                                      kv_head};
    for (int i = 0; i < STAGES - 1; i++) ring.fetch(a, i);
    query_rows<H> queries;
    queries.room = shared + (uint32_t)(STAGES * H::BYTES + warp * H::QUERY_BYTES + lane * 16);
    load_queries<H>(queries, q, a, kv_head, item.first_row, n_rows, tile_row, lane);
    const mma_rows rows = rows_of_lane(a, item, kv_head, tile_row, lane);
    mma_sums<H::WIDTH> sums;
    kept_sums<H::WIDTH, H::FEW_REGISTERS> kept;
    for (int n = 0, stage = 0, split_end; n < n_tiles; n = split_end) {
        bool is_first = n == 0;
        split_end = min(n_tiles, tiles_to_split_end(first_tile, n));
        walk_tiles<H>(sums, ring, queries, rows, a, n, split_end, stage, lane);
        if (!is_first) sums_fold(kept, sums);
        if (split_end < n_tiles) sums_keep(kept, sums);
    }
    store_rows<H>(out, sums, a, kv_head, item.first_row, n_rows, tile_row, lane);
}

#endif
