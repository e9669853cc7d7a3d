/* cuda_moe.cu - a mixture of experts on the GPU.
 *
 * Which rows chose an expert is known on the device alone, and the number of a matrix
 * product's rows on the host alone. So every expert computes every row, and a row takes
 * what it chose. With few rows that costs nothing, for a step waits for the weights;
 * with many it is n_experts / top_k times the work. Experts are added in ascending
 * order, each part and each sum rounded, as on the CPU. */
#include "kernels/cuda/cuda_rows.cuh"

/* One warp a row: the top_k highest of the router's numbers, ties to the lower expert, and
 * their softmax among themselves. */
template <typename T>
__global__ void choose_kernel(int32_t *choice, float *share, const T *router, int32_t n_experts,
                              int32_t top_k, int64_t n_rows) {
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
    choose_kernel<T><<<(unsigned)((rows + WARPS - 1) / WARPS), WARPS * 32, 0, cuda->stream>>>(
        (int32_t *)room->choice.data, (float *)room->share.data, (const T *)router->y.data, moe->n_experts,
        moe->top_k, rows);
    cuda_launched(cuda, "moe_experts");
}

/* out += share y for the rows that chose the expert; is_first: out holds nothing yet. */
template <typename T>
__global__ void add_share_kernel(T *out, const T *y, const int32_t *choice, const float *share,
                                 int32_t expert, int32_t top_k, bool is_first, int64_t h) {
    int64_t row = blockIdx.x;
    const int32_t *chosen = choice + row * top_k;
    int32_t place = -1;
    for (int32_t i = 0; i < top_k; i++)
        if (chosen[i] == expert) place = i;
    if (place < 0 && !is_first) return;
    float weight = place < 0 ? 0.0f : share[row * top_k + place];
    for (int64_t i = threadIdx.x; i < h; i += blockDim.x) {
        float part = place < 0 ? 0.0f : cuda_float(cuda_round<T>(weight * cuda_float(y[row * h + i])));
        out[row * h + i] = cuda_round<T>(is_first ? part : cuda_float(out[row * h + i]) + part);
    }
}

template <typename T>
static void add_rows(struct cuda_dev *cuda, struct tensor *out, const struct tensor *y,
                     const struct moe_room *room, int32_t expert) {
    add_share_kernel<T><<<(unsigned)out->shape[0], 256, 0, cuda->stream>>>(
        (T *)out->data, (const T *)y->data, (const int32_t *)room->choice.data,
        (const float *)room->share.data, expert, (int32_t)room->choice.shape[1], expert == 0, out->shape[1]);
    cuda_launched(cuda, "moe_experts");
}

static struct tensor first_rows(const struct tensor *t, int64_t n) {
    return tensor_2d(t->data, t->dtype, n, t->shape[1]);
}

void cuda_moe_experts(struct dev *dev, struct tensor *out, const struct activation *x,
                      const struct product *router, const struct moe *moe, const struct moe_room *room) {
    struct cuda_dev *cuda = cuda_of(dev);
    int64_t t = x->x.shape[0];
    struct product up = {first_rows(&room->up, t)}, y = {first_rows(&room->down, t)};
    struct activation active = {first_rows(&room->active, t)};
    BY_DTYPE(router->y.dtype, choose_rows, cuda, router, moe, room);
    for (int32_t e = 0; e < moe->n_experts; e++) {
        up.weight = moe->up[e];
        cuda_linear(dev, &up, x, moe->up[e]);
        cuda_glu(dev, &active, &up, moe->act);
        cuda_linear(dev, &y, &active, moe->down[e]);
        BY_DTYPE(out->dtype, add_rows, cuda, out, &y.y, room, e);
    }
}
