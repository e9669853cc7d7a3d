/* cuda_attention.cu - paged attention on the GPU: on the tensor cores for 16-bit numbers, by the
 * plain kernel for float32; and when the splits of a row's keys are taken side by side. */
#include "kernels/cuda/cuda_attention.cuh"
#include "kernels/cuda/cuda_attention_plain.cuh"

template <bool FP8>
static void plain_attention(struct cuda_dev *cuda, struct activation *out, const struct tensor *q,
                            const void *slab, const struct attention_args &a, const struct step *step) {
    int64_t pairs = (int64_t)step->n_rows * a.n_heads;
    unsigned blocks = (unsigned)((pairs + PLAIN_WARPS - 1) / PLAIN_WARPS);
    cuda_launch(cuda, "attention", plain_attention_kernel<FP8>, dim3(blocks), PLAIN_WARPS * 32, 0,
                (float *)out->x.data, (const float *)q->data, slab, step->position, step->slot,
                step->block_table, a, pairs);
}

static struct attention_args args_of(const struct attention_shape *shape, const struct step *step) {
    const float log2_e = 1.44269504f;
    struct attention_args a = {};
    a.n_heads = shape->n_heads;
    a.n_kv_heads = shape->n_kv_heads;
    a.group = shape->n_heads / shape->n_kv_heads;
    a.head_dim = shape->head_dim;
    a.window = shape->sliding_window;
    a.block_table_stride = step->block_table_stride;
    a.is_adjusted = shape->softcap > 0 || shape->alibi;
    a.scale = shape->scale;
    a.scale_log2 = a.is_adjusted ? log2_e : shape->scale * log2_e;
    a.softcap = shape->softcap;
    a.alibi = shape->alibi;
    a.alibi_scale = shape->alibi_scale;
    a.alibi_bf16 = shape->alibi_bf16;
    return a;
}

/* ---------------------------------------------------------------- splits side by side */

/* Where a walk would leave multiprocessors idle and is long enough for a second kernel to pay.
 * The choice rests on what a graph's key knows, the rows and the table's width, and never shows in
 * the bits. */
enum { LEAST_SPLITS = 3 };
static const int64_t MOST_SPLIT_BYTES = (int64_t)64 << 20;

/* Splits that keys in so many blocks, or of a window among them, can lie in. */
static int32_t most_splits(int32_t n_blocks, int32_t window) {
    int64_t all = ((int64_t)n_blocks * KV_BLOCK + ATTENTION_SPLIT - 1) / ATTENTION_SPLIT;
    int64_t seen = window > 0 ? ((int64_t)window + ATTENTION_SPLIT - 2) / ATTENTION_SPLIT + 1 : all;
    return (int32_t)(seen < all ? seen : all);
}

static int64_t split_bytes(int64_t n_items, int32_t n_heads, int32_t head_dim, int32_t n_splits) {
    return n_items * n_heads * n_splits * (head_dim + 2) * (int64_t)sizeof(float);
}

/* So many items' blocks, that walk all splits, find a multiprocessor each and leave some idle. */
static int64_t most_idle_items(const struct cuda_dev *cuda, int32_t n_heads, int32_t n_kv_heads) {
    int32_t tiles = (n_heads / n_kv_heads + 63) / 64;
    return (cuda->prop.multiProcessorCount - 1) / ((int64_t)n_kv_heads * tiles);
}

int32_t cuda_attention_splits(const struct dev *dev, const struct attention_shape *shape, enum dtype dtype,
                              const struct step *step) {
    const struct cuda_dev *cuda = (const struct cuda_dev *)dev;
    int32_t n = most_splits(step->block_table_stride, shape->sliding_window);
    int64_t n_items = cuda_step_of(step)->n_single;
    if (dtype == DTYPE_F32 || n < LEAST_SPLITS || n_items == 0) return 1;
    if (n_items > most_idle_items(cuda, shape->n_heads, shape->n_kv_heads)) return 1;
    int64_t bytes = split_bytes(n_items, shape->n_heads, shape->head_dim, n);
    return bytes <= (int64_t)cuda->scratch_bytes ? n : 1;
}

static int64_t split_reserve_bytes(const struct cuda_dev *cuda, const struct step_limits *limits) {
    int32_t n_splits = most_splits(limits->n_blocks, 0);
    if (limits->n_heads == 0 || limits->kv_dtype == DTYPE_F32 || n_splits < LEAST_SPLITS) return 0;
    int64_t n_items = most_idle_items(cuda, limits->n_heads, limits->n_kv_heads);
    if (n_items > limits->n_slots) n_items = limits->n_slots;
    int64_t bytes = split_bytes(n_items, limits->n_heads, limits->head_dim, n_splits);
    return bytes < MOST_SPLIT_BYTES ? bytes : MOST_SPLIT_BYTES;
}

static struct split_room room_of(const struct cuda_dev *cuda, const struct attention_shape *shape,
                                 enum dtype dtype, const struct step *step) {
    struct split_room room = {cuda_attention_splits(&cuda->dev, shape, dtype, step), (float *)cuda->scratch,
                              NULL};
    int64_t places = (int64_t)cuda_step_of(step)->n_single * shape->n_heads * room.n_splits;
    room.ml = (float2 *)(room.o + places * shape->head_dim);
    return room;
}

/* ---------------------------------------------------------------- memory */

int64_t cuda_attention_reserve_bytes(const struct cuda_dev *cuda, const struct step_limits *limits) {
    int64_t expanded = 0, splits = split_reserve_bytes(cuda, limits);
    if (cuda->has_wgmma) step_expanded_tiles(limits, &expanded);
    return expanded > splits ? expanded : splits;
}

void cuda_attention_reserve(struct cuda_dev *cuda, const struct step_limits *limits) {
    int64_t bytes = 0;
    int32_t n_tiles = cuda->has_wgmma ? step_expanded_tiles(limits, &bytes) : 0;
    cuda->expanded = {};
    if (!cuda_scratch(cuda, (size_t)cuda_attention_reserve_bytes(cuda, limits)) || n_tiles == 0) return;
    cuda->expanded = {n_tiles, limits->n_kv_heads, limits->head_dim, limits->n_heads / limits->n_kv_heads,
                      (size_t)bytes};
}

/* ---------------------------------------------------------------- the operation */

void cuda_attention(struct dev *dev, struct activation *out, const struct tensor *q,
                    const struct kv_cache *kv, int32_t layer, const struct attention_shape *shape,
                    const struct step *step) {
    struct cuda_dev *cuda = cuda_of(dev);
    struct attention_args a = args_of(shape, step);
    bool is_fp8 = kv->dtype == DTYPE_F8_E4M3;
    if (shape->head_dim > MAX_HEAD_DIM || shape->head_dim % 8 != 0) {
        dev_fail(dev, E_UNSUPPORTED, "heads of %d dimensions; multiples of 8 up to %d are supported",
                 shape->head_dim, MAX_HEAD_DIM);
        return;
    }
    if (q->dtype == DTYPE_F32) {
        auto run = is_fp8 ? plain_attention<true> : plain_attention<false>;
        run(cuda, out, q, kv->slab[layer], a, step);
    } else {
        attention_fn *run = q->dtype == DTYPE_F16 ? (is_fp8 ? cuda_attention_f16_fp8 : cuda_attention_f16)
                                                  : (is_fp8 ? cuda_attention_bf16_fp8 : cuda_attention_bf16);
        const struct split_room room = room_of(cuda, shape, q->dtype, step);
        run(cuda, out, q, kv, layer, &a, &room, step);
    }
}
