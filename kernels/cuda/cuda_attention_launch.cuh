/* cuda_attention_launch.cuh - which kernel serves a step, for one dtype and one kind of cache.
 * Included by one file for each (cuda_attention_bf16.cu, cuda_attention_bf16_fp8.cu, ...), which
 * compile side by side. */
#ifndef BATCHD_KERNELS_CUDA_ATTENTION_LAUNCH_CUH
#define BATCHD_KERNELS_CUDA_ATTENTION_LAUNCH_CUH

#include "kernels/cuda/cuda_attention_expand.cuh"
#include "kernels/cuda/cuda_attention_split.cuh"
#include "kernels/cuda/cuda_attention_wgmma.cuh"

template <typename T> struct attention_call {
    struct cuda_dev *cuda;
    T *out;
    const T *q;
    const void *slab;
    enum dtype dtype;
    int64_t slab_rows; /* of head_dim numbers */
    const struct cuda_step *step;
    struct attention_args a;
    struct split_room room;
};

template <typename H, int WARPS> constexpr int mma_stages = WARPS == 1 ? 3 : 4;

/* n items from `first`, `rows` rows of (token, head) pairs each at most. */
template <typename H, int WARPS>
static void launch_mma(const struct attention_call<typename H::number> *c, int32_t first, int32_t n,
                       int32_t rows) {
    constexpr int STAGES = mma_stages<H, WARPS>, BYTES = mma_room<H, WARPS, STAGES>(), TILE = WARPS * 16;
    static bool allowed;
    auto kernel = mma_attention_kernel<H, WARPS, STAGES>;
    cuda_allow_shared(c->cuda, "attention", kernel, BYTES, &allowed);
    dim3 grid((unsigned)n, (unsigned)c->a.n_kv_heads, (unsigned)((rows + TILE - 1) / TILE));
    cuda_launch(c->cuda, "attention", kernel, grid, WARPS * 32, BYTES, c->out, c->q, c->slab,
                c->step->items + first, c->step->step.block_table, c->a);
}

enum { WIDE_THREADS = (WGMMA_WARPS + 4) * 32 };

static inline dim3 wide_grid(const struct attention_args *a, int32_t n, int32_t rows) {
    constexpr int TILE = WGMMA_ROWS * WGMMA_GROUPS;
    return dim3((unsigned)n, (unsigned)a->n_kv_heads, (unsigned)((rows + TILE - 1) / TILE));
}

/* False: not on this device. */
template <typename T, int HD>
static bool launch_wide(const struct attention_call<T> *c, int32_t first, int32_t n, int32_t rows) {
    constexpr int BYTES = wide_tile<HD>::RING;
    static bool allowed;
    CUtensorMap map;
    auto kernel = wide_attention_kernel<T, HD>;
    if (!c->cuda->has_wgmma || !tma_map(&map, c->dtype, c->slab, c->slab_rows, HD, HD, KV_BLOCK))
        return false;
    cuda_allow_shared(c->cuda, "attention", kernel, BYTES, &allowed);
    cuda_launch(c->cuda, "attention", kernel, wide_grid(&c->a, n, rows), WIDE_THREADS, BYTES, c->out, c->q,
                map, c->step->items + first, c->step->step.block_table, c->a);
    return true;
}

template <typename T, int HD>
static bool launch_wide_fp8(const struct attention_call<T> *c, int32_t first, int32_t n, int32_t rows) {
    constexpr int BYTES = wide_codes<T, HD>::ROOM;
    static bool allowed;
    auto kernel = wide_fp8_kernel<T, HD>;
    if (!c->cuda->has_wgmma) return false;
    cuda_allow_shared(c->cuda, "attention", kernel, BYTES, &allowed);
    cuda_launch(c->cuda, "attention", kernel, wide_grid(&c->a, n, rows), WIDE_THREADS, BYTES, c->out, c->q,
                c->slab, c->step->items + first, c->step->step.block_table, c->a);
    return true;
}

/* False: not of these heads, or not on this device. */
template <typename T, int HD>
static bool launch_expanded(const struct attention_call<T> *c, int32_t first, int32_t n, int32_t rows) {
    constexpr int BYTES = wide_expanded<HD>::ROOM;
    const struct expanded_room *room = &c->cuda->expanded;
    const struct cuda_step *step = c->step;
    static bool allowed;
    CUtensorMap map;
    auto kernel = expanded_attention_kernel<T, HD>;
    if (room->head_dim != HD || room->n_kv_heads != c->a.n_kv_heads) return false;
    void *scratch = cuda_scratch(c->cuda, room->bytes);
    if (!scratch) return false;
    const expanded_rows<T> numbers = expanded_rows_at<T>(scratch, room);
    /* Described anew for each layer, as what any launch fetches: scratch moves when it grows. */
    if (!tma_map(&map, DTYPE_BF16, scratch, numbers.n_rows(), HD, HD, ATTENTION_TILE)) return false;
    dim3 tiles((unsigned)step->n_tiles, (unsigned)c->a.n_kv_heads, 2);
    cuda_allow_shared(c->cuda, "attention", kernel, BYTES, &allowed);
    cuda_launch(c->cuda, "attention", expand_kernel<T, HD>, tiles, EXPAND_THREADS, 0, numbers,
                (const char *)c->slab, step->tiles, step->step.block_table, c->a);
    cuda_launch(c->cuda, "attention", kernel, wide_grid(&c->a, n, rows), WIDE_THREADS, BYTES, c->out, c->q,
                map, numbers, step->items + first, c->a);
    return true;
}

/* Chunks whose keys are to be expanded. */
template <typename H>
static bool try_expanded(const struct attention_call<typename H::number> *c, int32_t first, int32_t n,
                         int32_t rows) {
    if constexpr (!H::FP8 || !H::EXACT || !HAS_WIDE_HEADS(H::WIDTH))
        return false;
    else
        return n > 0 && launch_expanded<typename H::number, H::WIDTH>(c, first, n, rows);
}

/* The kernels of wgmma, for chunks; false: there is none for this kind of head. */
template <typename H>
static bool try_wide(const struct attention_call<typename H::number> *c, int32_t first, int32_t n,
                     int32_t rows) {
    using T = typename H::number;
    if constexpr (!H::EXACT || !HAS_WIDE_HEADS(H::WIDTH))
        return false;
    else if constexpr (H::FP8)
        return launch_wide_fp8<T, H::WIDTH>(c, first, n, rows);
    else
        return launch_wide<T, H::WIDTH>(c, first, n, rows);
}

/* As many warps as an item has tiles of 16 rows, 4 at most. */
template <typename H>
static void launch_items(const struct attention_call<typename H::number> *c, int32_t first, int32_t n,
                         int32_t tokens) {
    constexpr bool HAS_TWO = H::EXACT && !H::FP8; /* few items have 17 to 32 rows */
    int32_t rows = tokens * c->a.group;
    if (n == 0) return;
    if (rows >= WGMMA_ROWS && tokens > 1 && try_wide<H>(c, first, n, rows)) return;
    /* With few blocks nothing hides the time that one warp takes to copy a tile. */
    bool is_lonely = n * c->a.n_kv_heads < 2 * c->cuda->prop.multiProcessorCount;
    bool has_room = (size_t)mma_room<H, 4, mma_stages<H, 4>>() <= c->cuda->prop.sharedMemPerBlockOptin;
    if ((rows <= 16 && !is_lonely) || !has_room)
        launch_mma<typename H::lean, 1>(c, first, n, rows);
    else if (HAS_TWO && rows <= 32 && !is_lonely)
        launch_mma<H, HAS_TWO ? 2 : 4>(c, first, n, rows);
    else
        launch_mma<H, 4>(c, first, n, rows);
}

/* Items of one token, their splits side by side: blocks of one warp, for there are many. */
template <typename H> static void launch_splits(const struct attention_call<typename H::number> *c) {
    constexpr int STAGES = mma_stages<H, 1>, BYTES = mma_room<H, 1, STAGES>();
    static bool allowed;
    auto kernel = mma_split_kernel<H, STAGES>;
    cuda_allow_shared(c->cuda, "attention", kernel, BYTES, &allowed);
    unsigned n = (unsigned)c->step->n_single, tiles = (unsigned)(c->a.group + 15) / 16;
    dim3 grid(n, (unsigned)c->a.n_kv_heads, tiles * (unsigned)c->room.n_splits);
    cuda_launch(c->cuda, "attention", kernel, grid, 32, BYTES, c->room, c->q, c->slab, c->step->items,
                c->step->step.block_table, c->a);
    cuda_launch(c->cuda, "attention", fold_splits_kernel<typename H::number>, dim3(n, (unsigned)c->a.n_heads),
                (unsigned)(c->a.head_dim + 63) / 64 * 32, 0, c->out, c->room, c->step->items, c->a);
}

template <typename T, int WIDTH, bool EXACT, bool FP8> static void attend(const struct attention_call<T> *c) {
    using kind = head_kind<T, WIDTH, EXACT, FP8>;
    int32_t n_single = c->step->n_single, n_expanded = c->step->n_expanded, most = c->step->most_tokens;
    int32_t rest = n_single + n_expanded;
    if (c->room.n_splits > 1)
        launch_splits<typename kind::lean>(c);
    else
        launch_items<kind>(c, 0, n_single, 1);
    if (!try_expanded<kind>(c, n_single, n_expanded, most * c->a.group))
        launch_items<kind>(c, n_single, n_expanded, most);
    launch_items<kind>(c, rest, c->step->n_items - rest, most);
}

/* Sizes that models have go through kernels of their own, others through the next wider one. */
template <typename T, bool FP8> static void attend_by_size(const struct attention_call<T> *c) {
    int32_t hd = c->a.head_dim;
    switch (hd) {
    case 64:
        return attend<T, 64, true, FP8>(c);
    case 80:
        return attend<T, 80, true, FP8>(c);
    case 96:
        return attend<T, 96, true, FP8>(c);
    case 112:
        return attend<T, 112, true, FP8>(c);
    case 128:
        return attend<T, 128, true, FP8>(c);
    case 256:
        return attend<T, 256, true, FP8>(c);
    }
    if (hd <= 32) return attend<T, 32, false, FP8>(c);
    if (hd <= 64) return attend<T, 64, false, FP8>(c);
    if (hd <= 128) return attend<T, 128, false, FP8>(c);
    if (hd <= 192) return attend<T, 192, false, FP8>(c);
    attend<T, 256, false, FP8>(c);
}

template <typename T, bool FP8>
static void attention_of_type(struct cuda_dev *cuda, struct activation *out, const struct tensor *q,
                              const struct kv_cache *kv, int32_t layer, const struct attention_args *a,
                              const struct split_room *room, const struct step *step) {
    struct attention_call<T> c = {};
    c.cuda = cuda;
    c.out = (T *)out->x.data;
    c.q = (const T *)q->data;
    c.slab = kv->slab[layer];
    c.dtype = kv->dtype;
    c.slab_rows = (int64_t)kv->n_blocks * 2 * kv->n_kv_heads * KV_BLOCK;
    c.step = cuda_step_of(step);
    c.a = *a;
    c.room = *room;
    attend_by_size<T, FP8>(&c);
}

#endif
