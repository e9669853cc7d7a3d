/* cuda_moe.cu - a mixture of experts on the GPU.
 *
 * Which rows chose an expert is known on the device alone. There each row is copied to one
 * place for each of its experts, so that an expert's rows lie together in ascending order; a
 * product of all experts at once (cuda_linear_grouped.cu) reads their numbers there. Then a row
 * adds up what its experts made of it.
 *
 * Weights of 4 bits become numbers first, one expert's at a time, in front of the product of its
 * rows.
 *
 * Where the device or the weights are not made for that, every expert computes every row, and
 * a row takes what it chose: with few rows that costs nothing, for a step waits for the
 * weights; with many it is n_experts / top_k times the work.
 *
 * Either way experts are added in ascending order, each part and each sum rounded, as on the
 * CPU. */
#include "kernels/cuda/cuda_linear.h"
#include "kernels/cuda/cuda_linear_grouped.h"
#include "kernels/cuda/cuda_quantize.h"
#include "kernels/cuda/cuda_rows.cuh"

/* ---------------------------------------------------------------- the router's choice */

/* One warp a row: the top_k highest of the router's numbers, ties to the lower expert, and
 * their softmax among themselves. */
template <typename T>
__global__ void choose_kernel(int32_t *choice, float *share, const T *router, int32_t n_experts,
                              int32_t top_k, int64_t n_rows) {
    cuda_begin();
    int64_t row = (int64_t)blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5);
    int lane = threadIdx.x & 31;
    if (row >= n_rows) return;
    const T *logits = router + row * n_experts;
    int32_t *chosen = choice + row * top_k;
    float *shares = share + row * top_k, first = 0.0f, sum = 0.0f;
    for (int32_t i = 0; i < top_k; i++) {
        float best = -INFINITY;
        int32_t at = n_experts;
        for (int32_t e = lane; e < n_experts; e += 32) {
            bool is_taken = false;
            for (int32_t j = 0; j < i; j++) is_taken |= chosen[j] == e;
            float x = cuda_float(logits[e]);
            if (is_taken || (at < n_experts && !(x > best))) continue;
            best = x;
            at = e;
        }
        for (int d = 16; d > 0; d >>= 1) {
            float x = __shfl_xor_sync(~0u, best, d);
            int32_t e = __shfl_xor_sync(~0u, at, d);
            if (e < n_experts && (at == n_experts || x > best || (x == best && e < at))) {
                best = x;
                at = e;
            }
        }
        if (i == 0) first = best;
        float weight = expf(best - first);
        if (lane == 0) {
            chosen[i] = at;
            shares[i] = weight;
        }
        __syncwarp(); /* the next round reads what is taken */
        sum += weight;
    }
    for (int32_t i = lane; i < top_k; i += 32) shares[i] /= sum;
}

template <typename T>
static void choose_rows(struct cuda_dev *cuda, const struct product *router, const struct moe *moe,
                        const struct moe_room *room) {
    enum { WARPS = 4 };
    int64_t rows = router->y.shape[0];
    cuda_launch(cuda, "moe_experts", choose_kernel<T>, (unsigned)((rows + WARPS - 1) / WARPS), WARPS * 32, 0,
                (int32_t *)room->choice.data, (float *)room->share.data, (const T *)router->y.data,
                moe->n_experts, moe->top_k, rows);
}

/* ---------------------------------------------------------------- rows by expert */

enum { PLACE_THREADS = 1024 };

/* The sum over the block's threads before this one, and over all. */
__device__ __forceinline__ int32_t sum_before(int32_t x, int32_t *all) {
    __shared__ int32_t sums[PLACE_THREADS / 32];
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    int32_t sum = x, before = 0;
    for (int d = 1; d < 32; d <<= 1) {
        int32_t other = __shfl_up_sync(~0u, sum, d);
        if (lane >= d) sum += other;
    }
    __syncthreads(); /* of an earlier call */
    if (lane == 31) sums[warp] = sum;
    __syncthreads();
    *all = 0;
    for (int w = 0; w < PLACE_THREADS / 32; w++) {
        if (w < warp) before += sums[w];
        *all += sums[w];
    }
    return before + sum - x;
}

/* One block an expert; a thread takes consecutive ones of the n choices. An expert's places
 * begin behind those of the experts before it. */
__global__ void __launch_bounds__(PLACE_THREADS)
    place_kernel(int32_t *place, int32_t *first, const int32_t *choice, int64_t n) {
    cuda_begin();
    int32_t expert = (int32_t)blockIdx.x, n_mine = 0, n_lower = 0, all_mine, all_lower;
    int64_t share = (n + PLACE_THREADS - 1) / PLACE_THREADS;
    int64_t begin = min(n, threadIdx.x * share), end = min(n, begin + share);
    for (int64_t i = begin; i < end; i++) {
        n_mine += choice[i] == expert;
        n_lower += choice[i] < expert;
    }
    int32_t at = sum_before(n_mine, &all_mine);
    sum_before(n_lower, &all_lower);
    at += all_lower;
    for (int64_t i = begin; i < end; i++)
        if (choice[i] == expert) place[i] = at++;
    if (threadIdx.x == 0) first[expert] = all_lower;
    if (threadIdx.x == 0 && blockIdx.x == gridDim.x - 1) first[expert + 1] = all_lower + all_mine;
}

/* A block a row, 8 numbers a unit. */
__global__ void spread_kernel(uint4 *out, const uint4 *x, const int32_t *place, int32_t top_k, int64_t n) {
    cuda_begin();
    int64_t row = blockIdx.x;
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
        uint4 v = x[row * n + i];
        for (int32_t j = 0; j < top_k; j++) out[place[row * top_k + j] * n + i] = v;
    }
}

/* The place of the row's expert with the lowest number above `expert`, which becomes that one. */
__device__ __forceinline__ int32_t next_place(int32_t *expert, const int32_t *chosen, int32_t top_k) {
    int32_t at = -1;
    for (int32_t j = 0; j < top_k; j++)
        if (chosen[j] > *expert && (at < 0 || chosen[j] < chosen[at])) at = j;
    *expert = chosen[at];
    return at;
}

/* A block a row: its experts' numbers times their shares, in ascending order of experts. */
template <typename T, int V>
__global__ void combine_kernel(T *out, const T *y, const int32_t *choice, const float *share,
                               const int32_t *place, int32_t top_k, int64_t h) {
    cuda_begin();
    int64_t row = blockIdx.x, first = row * top_k;
    for (int64_t i = threadIdx.x * V; i < h; i += blockDim.x * V) {
        float sum[V] = {};
        int32_t expert = -1;
        for (int32_t j = 0; j < top_k; j++) {
            int32_t at = next_place(&expert, choice + first, top_k);
            pack_of<T, V> v = load<T, V>(y + place[first + at] * h + i);
#pragma unroll
            for (int k = 0; k < V; k++) {
                float part = cuda_float(cuda_round<T>(__fmul_rn(share[first + at], cuda_float(v.x[k]))));
                sum[k] = cuda_float(cuda_round<T>(__fadd_rn(sum[k], part)));
            }
        }
        pack_of<T, V> o;
#pragma unroll
        for (int k = 0; k < V; k++) o.x[k] = cuda_round<T>(sum[k]);
        store<T, V>(out + row * h + i, o);
    }
}

template <typename T>
static void combine_rows(struct cuda_dev *cuda, struct tensor *out, const struct moe_room *room) {
    constexpr int V = 16 / sizeof(T);
    int64_t h = out->shape[1];
    auto kernel = h % V == 0 ? combine_kernel<T, V> : combine_kernel<T, 1>;
    cuda_launch(cuda, "moe_experts", kernel, (unsigned)out->shape[0], 256, 0, (T *)out->data,
                (const T *)room->down.data, (const int32_t *)room->choice.data,
                (const float *)room->share.data, (const int32_t *)room->places.data,
                (int32_t)room->choice.shape[1], h);
}

static struct tensor first_rows(const struct tensor *t, int64_t n) {
    return tensor_2d(t->data, t->dtype, n, t->shape[1]);
}

/* cuda_glu has a limit to rows that a step keeps, but not its rows times their experts. */
static void glu_rows(struct cuda_dev *cuda, const struct tensor *active, const struct tensor *up,
                     enum act act) {
    enum { MOST = 1 << 15 };
    for (int64_t r = 0; r < up->shape[0]; r += MOST) {
        int64_t n = up->shape[0] - r < MOST ? up->shape[0] - r : MOST;
        char *to = (char *)active->data + (size_t)(r * active->shape[1]) * dtype_bytes(active->dtype);
        char *from = (char *)up->data + (size_t)(r * up->shape[1]) * dtype_bytes(up->dtype);
        struct activation out = {tensor_2d(to, active->dtype, n, active->shape[1])};
        struct product in = {tensor_2d(from, up->dtype, n, up->shape[1])};
        cuda_glu(&cuda->dev, &out, &in, act);
    }
}

/* Of all experts, as groups; or, where is_decoded, what becomes of one at a time. */
struct expert_weights {
    struct weight *const *of;
    struct group_weights groups;
    bool is_decoded;
};

static bool are_groups(struct expert_weights *out, struct cuda_dev *cuda, enum dtype x,
                       struct weight *const *w, int32_t n_experts) {
    out->of = w;
    out->is_decoded = false;
    return x == w[0]->dtype && cuda_group_weights(&out->groups, cuda, w, n_experts);
}

/* Weights whose codes become numbers, and whose products have the grouped product's bits whatever
 * their number of rows: few rows go the other way. */
static bool are_decoded(struct expert_weights *out, struct cuda_dev *cuda, enum dtype x,
                        struct weight *const *w, int32_t n_experts) {
    const struct weight *one = w[0];
    struct linear_shape s = {one->n, one->k, one->k_pad, one->dtype, one->dtype};
    for (int32_t e = 0; e < n_experts; e++)
        if (!quant_is_decoded(w[e]->quant)) return false;
    *out = {w, {one->dtype, 1, one->n, one->k, one->k_pad, {cuda->quant->weights}}, true};
    return x == one->dtype && x != DTYPE_F32 && cuda->capability >= 80 && one->n % 8 == 0 && one->k % 8 == 0 &&
           algorithms_know(cuda, &s) && algorithms_follow_ours(cuda, &s, NULL);
}

static void multiply_experts(struct cuda_dev *cuda, struct tensor *y, const struct tensor *x,
                             const struct expert_weights *w, int32_t n_experts, const int32_t *first) {
    for (int32_t e = 0; w->is_decoded && e < n_experts; e++) {
        cuda_decode(cuda, cuda->quant->weights, w->of[e]);
        cuda_linear_grouped(cuda, y, x, &w->groups, first + e);
    }
    if (!w->is_decoded) cuda_linear_grouped(cuda, y, x, &w->groups, first);
}

static void grouped_experts(struct cuda_dev *cuda, struct tensor *out, const struct tensor *x,
                            const struct moe *moe, const struct moe_room *room,
                            const struct expert_weights *up_weights,
                            const struct expert_weights *down_weights) {
    int64_t t = x->shape[0], n = t * moe->top_k;
    const int32_t *choice = (const int32_t *)room->choice.data;
    int32_t *place = (int32_t *)room->places.data, *first = (int32_t *)room->first.data;
    struct tensor gathered = first_rows(&room->gathered, n), up = first_rows(&room->up, n);
    struct tensor active = first_rows(&room->active, n), down = first_rows(&room->down, n);
    cuda_launch(cuda, "moe_experts", place_kernel, (unsigned)moe->n_experts, PLACE_THREADS, 0, place, first,
                choice, n);
    cuda_launch(cuda, "moe_experts", spread_kernel, (unsigned)t, 128, 0, (uint4 *)gathered.data,
                (const uint4 *)x->data, (const int32_t *)place, moe->top_k, x->shape[1] / 8);
    multiply_experts(cuda, &up, &gathered, up_weights, moe->n_experts, first);
    glu_rows(cuda, &active, &up, moe->act);
    multiply_experts(cuda, &down, &active, down_weights, moe->n_experts, first);
    BY_DTYPE(out->dtype, combine_rows, cuda, out, room);
}

/* ---------------------------------------------------------------- every expert, every row */

/* out += share y for the rows that chose the expert; is_first: out holds nothing yet. */
template <typename T>
__global__ void add_share_kernel(T *out, const T *y, const int32_t *choice, const float *share,
                                 int32_t expert, int32_t top_k, bool is_first, int64_t h) {
    cuda_begin();
    int64_t row = blockIdx.x;
    const int32_t *chosen = choice + row * top_k;
    int32_t place = -1;
    for (int32_t i = 0; i < top_k; i++)
        if (chosen[i] == expert) place = i;
    if (place < 0 && !is_first) return;
    float weight = place < 0 ? 0.0f : share[row * top_k + place];
    for (int64_t i = threadIdx.x; i < h; i += blockDim.x) {
        float part = 0.0f, sum = is_first ? 0.0f : cuda_float(out[row * h + i]);
        if (place >= 0) part = cuda_float(cuda_round<T>(__fmul_rn(weight, cuda_float(y[row * h + i]))));
        out[row * h + i] = cuda_round<T>(__fadd_rn(sum, part));
    }
}

template <typename T>
static void add_rows(struct cuda_dev *cuda, struct tensor *out, const struct tensor *y,
                     const struct moe_room *room, int32_t expert) {
    cuda_launch(cuda, "moe_experts", add_share_kernel<T>, (unsigned)out->shape[0], 256, 0, (T *)out->data,
                (const T *)y->data, (const int32_t *)room->choice.data, (const float *)room->share.data,
                expert, (int32_t)room->choice.shape[1], expert == 0, out->shape[1]);
}

static void all_experts(struct cuda_dev *cuda, struct tensor *out, const struct activation *x,
                        const struct moe *moe, const struct moe_room *room) {
    int64_t t = x->x.shape[0];
    struct product up = {first_rows(&room->up, t)}, y = {first_rows(&room->down, t)};
    struct activation active = {first_rows(&room->active, t)};
    for (int32_t e = 0; e < moe->n_experts; e++) {
        up.weight = moe->up[e];
        cuda_linear(&cuda->dev, &up, x, moe->up[e]);
        cuda_glu(&cuda->dev, &active, &up, moe->act);
        cuda_linear(&cuda->dev, &y, &active, moe->down[e]);
        BY_DTYPE(out->dtype, add_rows, cuda, out, &y.y, room, e);
    }
}

void cuda_moe_experts(struct dev *dev, struct tensor *out, const struct activation *x,
                      const struct product *router, const struct moe *moe, const struct moe_room *room) {
    struct cuda_dev *cuda = cuda_of(dev);
    enum dtype dtype = x->x.dtype;
    struct expert_weights up, down;
    int32_t n = moe->n_experts;
    BY_DTYPE(router->y.dtype, choose_rows, cuda, router, moe, room);
    bool is_grouped =
        are_groups(&up, cuda, dtype, moe->up, n) && are_groups(&down, cuda, dtype, moe->down, n);
    if (!is_grouped && x->x.shape[0] > TMA_ROWS)
        is_grouped =
            are_decoded(&up, cuda, dtype, moe->up, n) && are_decoded(&down, cuda, dtype, moe->down, n);
    if (is_grouped)
        grouped_experts(cuda, out, &x->x, moe, room, &up, &down);
    else
        all_experts(cuda, out, x, moe, room);
}
