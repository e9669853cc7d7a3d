/* cuda_algorithm.cu - which of cuBLASLt's algorithms serves a product of m rows.
 *
 * Choices are kept by (N, K, types, bucket of m); a bucket is a power of two. When a bucket is
 * first met, the first candidate that gives the reference's bits at both ends of y is taken,
 * which costs a few products. A bucket that goes on being used is worth a look at the clock:
 * at its TUNE_AFTER-th product, or when somebody asks for it (op_linear_tune), all candidates are
 * timed, on the operands at hand, and the quickest one with the right bits stays. What was chosen is
 * remembered in a file, by cuBLASLt's version and the kind of device; a choice from the file is checked like
 * any other.
 *
 * The reference is our own kernel (cuda_linear_few.cu), so that it is the same whatever the
 * library's heuristics say, and after a restart. A shape for which no algorithm agrees with it,
 * and devices that cannot run it, have cuBLASLt's first candidate for 16 rows instead. */
#include "kernels/cuda/cuda_linear.h"

#include "base/file.h"
#include "base/log.h"
#include "base/mem.h"

#include <ctype.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { TUNE_AFTER = 32, TIMED_RUNS = 3, TUNING_ROUNDS = 5, MAX_FILE = 4 << 20, PROBE_ROWS = FEW_ROWS };

struct reference {
    struct linear_shape shape;
    bool is_ours;
    cublasLtMatmulAlgo_t algorithm; /* otherwise */
};

struct choice {
    struct linear_shape shape;
    int64_t bucket;
    cublasLtMatmulAlgo_t algorithm;
    bool is_checked; /* in this process */
    bool is_tuned;
    bool is_slow; /* no algorithm has the right bits: the reference, 16 rows at a time */
    int32_t uses;
};

struct algorithms {
    struct reference *references;
    size_t n_references, cap_references;
    struct choice *choices;
    size_t n_choices, cap_choices;
    bool is_changed;              /* since the file was read */
    int32_t *differs;             /* device: a comparison's answer */
    struct linear_tuning *tuning; /* the product under way is to be tuned now; else NULL */
    cudaEvent_t before, after;
};

static int64_t bucket_of(int64_t m) {
    int64_t b = 1;
    while (b < m) b *= 2;
    return b;
}

/* ---------------------------------------------------------------- the file */

/* "CACHE/batchd/algorithms-VERSION-DEVICE.txt", or NULL; the caller's to free. */
static char *file_path(const struct cuda_dev *cuda, bool make_folder) {
    const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    char name[160], folder[4000];
    if (cache && *cache == '/')
        snprintf(folder, sizeof folder, "%s", cache);
    else if (home && *home == '/')
        snprintf(folder, sizeof folder, "%s/.cache", home);
    else
        return NULL;
    if (make_folder) mkdir(folder, 0700);
    strncat(folder, "/batchd", sizeof folder - strlen(folder) - 1);
    if (make_folder) mkdir(folder, 0700);
    snprintf(name, sizeof name, "algorithms-%zu-%.80s.txt", cublasLtGetVersion(), cuda->prop.name);
    for (char *c = name; *c; c++)
        if (!isalnum((unsigned char)*c) && *c != '.') *c = '-';
    return path_join(folder, name);
}

/* Room for one more, and at first for all that a model has, so that a step seldom allocates. */
static void *room_for_one(void *list, size_t n, size_t *cap, size_t size) {
    if (n < *cap) return list;
    *cap = *cap ? 2 * *cap : 256;
    return mem_realloc(list, *cap, size);
}

static struct choice *add_choice(struct algorithms *a, const struct linear_shape *s, int64_t bucket) {
    a->choices = (struct choice *)room_for_one(a->choices, a->n_choices, &a->cap_choices, sizeof *a->choices);
    struct choice *c = &a->choices[a->n_choices++];
    *c = {};
    c->shape = *s;
    c->bucket = bucket;
    return c;
}

/* One line a choice: n k ldw in out bucket, and the algorithm's eight numbers. */
static bool read_line(struct algorithms *a, const char *line) {
    struct linear_shape s = {};
    int in, out;
    int64_t bucket;
    cublasLtMatmulAlgo_t algorithm = {};
    uint64_t *d = algorithm.data;
    static_assert(sizeof algorithm.data / sizeof *algorithm.data == 8, "eight numbers");
    int n = sscanf(line,
                   "%" SCNd64 " %" SCNd64 " %" SCNd64 " %d %d %" SCNd64 " %" SCNx64 " %" SCNx64 " %" SCNx64
                   " %" SCNx64 " %" SCNx64 " %" SCNx64 " %" SCNx64 " %" SCNx64,
                   &s.n, &s.k, &s.ldw, &in, &out, &bucket, &d[0], &d[1], &d[2], &d[3], &d[4], &d[5], &d[6],
                   &d[7]);
    if (n != 14) return false;
    s.in = (enum dtype)in;
    s.out = (enum dtype)out;
    struct choice *c = add_choice(a, &s, bucket);
    c->algorithm = algorithm;
    c->is_tuned = true;
    return true;
}

/* A file that is not there, or not ours, is no choices. */
static void read_file(struct cuda_dev *cuda, struct algorithms *a) {
    char *path = file_path(cuda, false), *text = NULL;
    size_t n;
    if (path && file_read(path, MAX_FILE, &text, &n, NULL) == 0) {
        for (char *save, *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save))
            if (*line != '#' && !read_line(a, line)) break;
    }
    free(text);
    free(path);
}

static void write_choice(FILE *f, const struct choice *c) {
    const struct linear_shape *s = &c->shape;
    fprintf(f, "%" PRId64 " %" PRId64 " %" PRId64 " %d %d %" PRId64, s->n, s->k, s->ldw, (int)s->in,
            (int)s->out, c->bucket);
    for (int i = 0; i < 8; i++) fprintf(f, " %" PRIx64, c->algorithm.data[i]);
    fputc('\n', f);
}

/* Only what was timed: the rest costs nothing to find again. */
static void write_file(struct cuda_dev *cuda, const struct algorithms *a) {
    char *path = file_path(cuda, true);
    struct file_new *file;
    struct err err = {};
    if (!path) return;
    if (file_new_open(&file, path, &err) == 0) {
        FILE *f = file_new_stream(file);
        fputs("# batchd: n k ldw in out rows, cublasLtMatmulAlgo_t\n", f);
        for (size_t i = 0; i < a->n_choices; i++)
            if (a->choices[i].is_tuned && !a->choices[i].is_slow) write_choice(f, &a->choices[i]);
        file_new_commit(file, &err);
    }
    if (err.code) log_info("the quickest ways to multiply are not remembered: %s", err.text);
    free(path);
}

/* ---------------------------------------------------------------- open and close */

bool algorithms_open(struct cuda_dev *cuda) {
    struct algorithms *a = (struct algorithms *)mem_zalloc(1, sizeof *a);
    cuda->linear->algorithms = a;
    a->choices = (struct choice *)room_for_one(NULL, 0, &a->cap_choices, sizeof *a->choices);
    a->references = (struct reference *)room_for_one(NULL, 0, &a->cap_references, sizeof *a->references);
    read_file(cuda, a);
    return cuda_ok(cuda, cudaMalloc((void **)&a->differs, sizeof *a->differs), "workspace") &&
           cuda_ok(cuda, cudaEventCreate(&a->before), "an event") &&
           cuda_ok(cuda, cudaEventCreate(&a->after), "an event");
}

void algorithms_close(struct cuda_dev *cuda) {
    struct algorithms *a = cuda->linear->algorithms;
    if (!a) return;
    if (a->is_changed) write_file(cuda, a);
    if (a->before) cudaEventDestroy(a->before);
    if (a->after) cudaEventDestroy(a->after);
    cudaFree(a->differs);
    free(a->references);
    free(a->choices);
    free(a);
}

/* ---------------------------------------------------------------- the right bits */

static __global__ void compare_kernel(int32_t *differs, const uint16_t *a, const uint16_t *b, int64_t n) {
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n && a[i] != b[i]) *differs = 1;
}

static bool same_bits(struct cuda_dev *cuda, const void *a, const void *b, size_t bytes) {
    int64_t n = (int64_t)bytes / 2;
    int32_t differs = 0, *flag = cuda->linear->algorithms->differs;
    cudaMemsetAsync(flag, 0, sizeof *flag, cuda->stream);
    compare_kernel<<<(unsigned)((n + 255) / 256), 256, 0, cuda->stream>>>(flag, (const uint16_t *)a,
                                                                          (const uint16_t *)b, n);
    cudaMemcpyAsync(&differs, flag, sizeof differs, cudaMemcpyDeviceToHost, cuda->stream);
    return cuda_ok(cuda, cudaStreamSynchronize(cuda->stream), "a check of algorithms") && !differs;
}

static void *room_for_rows(struct cuda_dev *cuda, const struct linear_shape *s) {
    return cuda_scratch(cuda, (size_t)(FEW_ROWS * s->n) * dtype_bytes(s->out));
}

/* Up to FEW_ROWS rows by the reference. */
static bool reference_multiply(struct cuda_dev *cuda, const struct reference *r, int64_t m,
                               const struct linear_operands *o) {
    if (!r->is_ours) return lt_multiply(cuda, &r->shape, m, o, &r->algorithm);
    cuda_linear_few(cuda, &r->shape, m, o);
    return cuda->dev.failed.code == 0;
}

static const struct reference *find_reference(const struct algorithms *a, const struct linear_shape *s) {
    for (size_t i = 0; i < a->n_references; i++)
        if (linear_shape_equal(&a->references[i].shape, s)) return &a->references[i];
    return NULL;
}

/* Numbers in [-1, 1), as bf16 or fp16. */
template <typename T> __global__ void probe_kernel(T *x, int64_t n) {
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) x[i] = cuda_round<T>((float)((uint32_t)i * 2654435761u >> 8) * 0x1p-23f - 1.0f);
}

/* Does one of cuBLASLt's algorithms give our kernel's bits? Asked with rows of x that are the
 * same each time, so that the answer is. */
static bool is_ours_followed(struct cuda_dev *cuda, const struct linear_shape *s, const void *w,
                             const cublasLtMatmulAlgo_t *list, int n) {
    size_t bytes = (size_t)(PROBE_ROWS * s->n) * dtype_bytes(s->out);
    int64_t n_x = PROBE_ROWS * s->k;
    char *room = (char *)cuda_scratch(cuda, 2 * bytes + (size_t)n_x * 2);
    if (!room) return false;
    struct linear_operands ours = {room, room + 2 * bytes, w}, theirs = {room + bytes, room + 2 * bytes, w};
    unsigned blocks = (unsigned)((n_x + 255) / 256);
    if (s->in == DTYPE_F16)
        probe_kernel<<<blocks, 256, 0, cuda->stream>>>((__half *)ours.x, n_x);
    else
        probe_kernel<<<blocks, 256, 0, cuda->stream>>>((__nv_bfloat16 *)ours.x, n_x);
    cuda_linear_few(cuda, s, PROBE_ROWS, &ours);
    for (int i = 0; i < n; i++)
        if (lt_multiply(cuda, s, PROBE_ROWS, &theirs, &list[i]) && same_bits(cuda, ours.y, theirs.y, bytes))
            return true;
    return false;
}

static const struct reference *reference_of(struct cuda_dev *cuda, const struct linear_shape *s,
                                            const void *w) {
    struct algorithms *a = cuda->linear->algorithms;
    const struct reference *known = find_reference(a, s);
    if (known) return known;
    cublasLtMatmulAlgo_t list[MAX_CANDIDATES];
    int n = lt_candidates(cuda, s, PROBE_ROWS, list);
    bool is_8_bit = dtype_bytes(s->in) == 1;
    struct reference r = {};
    r.shape = *s;
    if (is_8_bit && n == 0) {
        dev_fail(&cuda->dev, E_DEVICE, "cuBLASLt has no product of 8-bit codes of %lld x %lld", (long long)s->n,
                 (long long)s->k);
        return NULL;
    }
    r.is_ours = !is_8_bit && (is_ours_followed(cuda, s, w, list, n) || n == 0);
    if (!r.is_ours) r.algorithm = list[0];
    if (cuda->dev.failed.code) return NULL;
    log_debug("products of %lld x %lld follow %s", (long long)s->n, (long long)s->k,
              r.is_ours ? "our kernel" : "cuBLASLt's first algorithm");
    a->references = (struct reference *)room_for_one(a->references, a->n_references, &a->cap_references,
                                                     sizeof *a->references);
    a->references[a->n_references] = r;
    return &a->references[a->n_references++];
}

bool algorithms_follow_ours(struct cuda_dev *cuda, const struct linear_shape *s, const void *w) {
    const struct reference *r = reference_of(cuda, s, w);
    return r && r->is_ours;
}

bool algorithms_know(const struct cuda_dev *cuda, const struct linear_shape *s) {
    return find_reference(cuda->linear->algorithms, s) != NULL;
}

/* Scratch for a look at a shape's reference, and at its products. */
void cuda_linear_reserve(struct dev *dev, const struct weight *w, int64_t max_rows) {
    size_t sums = 2 * (size_t)(PROBE_ROWS * w->n_pad) * sizeof(float),
           x = (size_t)(PROBE_ROWS * w->k_pad) * 2;
    cuda_scratch(cuda_of(dev), sums + x);
}

/* Are rows [first, first + n) of y the reference's? */
static bool agrees(struct cuda_dev *cuda, const struct reference *r, const struct linear_operands *o,
                   int64_t first, int64_t n, void *room) {
    const struct linear_shape *s = &r->shape;
    struct linear_operands rows = linear_rows(s, o, first), again = rows;
    again.y = room;
    return reference_multiply(cuda, r, n, &again) &&
           same_bits(cuda, rows.y, room, (size_t)(n * s->n) * dtype_bytes(s->out));
}

/* Runs it, and looks at all rows of y. */
static bool is_right_everywhere(struct cuda_dev *cuda, const struct reference *r, int64_t m,
                                const struct linear_operands *o, const cublasLtMatmulAlgo_t *algorithm) {
    void *room = room_for_rows(cuda, &r->shape);
    bool ok = room && lt_multiply(cuda, &r->shape, m, o, algorithm);
    for (int64_t i = 0; ok && i < m; i += FEW_ROWS)
        ok = agrees(cuda, r, o, i, m - i < FEW_ROWS ? m - i : FEW_ROWS, room);
    return ok;
}

/* Runs it, and looks at the first and the last rows of y. */
static bool is_right(struct cuda_dev *cuda, const struct reference *r, int64_t m,
                     const struct linear_operands *o, const cublasLtMatmulAlgo_t *algorithm) {
    int64_t n = m < FEW_ROWS ? m : FEW_ROWS;
    void *room = room_for_rows(cuda, &r->shape);
    return room && lt_multiply(cuda, &r->shape, m, o, algorithm) && agrees(cuda, r, o, 0, n, room) &&
           agrees(cuda, r, o, m - n, n, room);
}

/* ---------------------------------------------------------------- which one */

static struct choice *find_choice(const struct algorithms *a, const struct linear_shape *s, int64_t bucket) {
    for (size_t i = 0; i < a->n_choices; i++)
        if (a->choices[i].bucket == bucket && linear_shape_equal(&a->choices[i].shape, s))
            return &a->choices[i];
    return NULL;
}

/* The first candidate with the right bits. */
static void choose_first(struct cuda_dev *cuda, struct choice *c, const struct reference *r, int64_t m,
                         const struct linear_operands *o) {
    cublasLtMatmulAlgo_t list[MAX_CANDIDATES];
    int n = lt_candidates(cuda, &c->shape, c->bucket, list);
    c->is_slow = true;
    c->is_tuned = false;
    for (int i = 0; i < n && c->is_slow; i++) {
        if (!is_right(cuda, r, m, o, &list[i])) continue;
        c->algorithm = list[i];
        c->is_slow = false;
    }
    if (c->is_slow)
        log_warn("cuBLASLt has no algorithm with the reference's bits for %lld x %lld x %lld: such products "
                 "are slow",
                 (long long)m, (long long)c->shape.n, (long long)c->shape.k);
}

static float time_once(struct cuda_dev *cuda, const struct linear_shape *s, int64_t m,
                       const struct linear_operands *o, const cublasLtMatmulAlgo_t *algorithm) {
    struct algorithms *a = cuda->linear->algorithms;
    float ms = -1.0f;
    cudaEventRecord(a->before, cuda->stream);
    for (int i = 0; i < TIMED_RUNS; i++) lt_multiply(cuda, s, m, o, algorithm);
    cudaEventRecord(a->after, cuda->stream);
    if (!cuda_ok(cuda, cudaEventSynchronize(a->after), "a look at algorithms")) return -1.0f;
    cudaEventElapsedTime(&ms, a->before, a->after);
    return ms / TIMED_RUNS;
}

/* Milliseconds of one run after a first one, the best of some rounds; negative: it does not run. */
static float time_of(struct cuda_dev *cuda, const struct linear_shape *s, int64_t m,
                     const struct linear_operands *o, const cublasLtMatmulAlgo_t *algorithm, int n_rounds) {
    float least = -1.0f;
    if (!lt_multiply(cuda, s, m, o, algorithm)) return -1.0f;
    for (int i = 0; i < n_rounds; i++) {
        float ms = time_once(cuda, s, m, o, algorithm);
        if (ms >= 0.0f && (least < 0.0f || ms < least)) least = ms;
    }
    return least;
}

/* From the choice made without a clock to the quickest. In passing, only what is quicker is
 * looked at closely; for a report all candidates are, and the chosen one in every row. */
static void tune(struct cuda_dev *cuda, struct choice *c, const struct reference *r, int64_t m,
                 const struct linear_operands *o, struct linear_tuning *report) {
    cublasLtMatmulAlgo_t list[MAX_CANDIDATES];
    int n = lt_candidates(cuda, &c->shape, c->bucket, list), n_right = 0;
    int n_rounds = report ? TUNING_ROUNDS : 1;
    float first = time_of(cuda, &c->shape, m, o, &c->algorithm, n_rounds), least = first;
    for (int i = 0; i < n; i++) {
        float ms = time_of(cuda, &c->shape, m, o, &list[i], n_rounds);
        bool is_quicker = ms >= 0.0f && ms < least;
        if (ms < 0.0f || (!is_quicker && !report) || !is_right(cuda, r, m, o, &list[i])) continue;
        n_right++;
        if (!is_quicker || (report && !is_right_everywhere(cuda, r, m, o, &list[i]))) continue;
        least = ms;
        c->algorithm = list[i];
    }
    c->is_tuned = true;
    cuda->linear->algorithms->is_changed = true;
    if (!report) return;
    *report = {c->bucket, n, n_right, first * 1e6, least * 1e6, ""};
    lt_describe(report->algorithm, sizeof report->algorithm, &c->algorithm);
}

/* Whatever a file or an earlier product said of it. */
static void tune_now(struct cuda_dev *cuda, struct choice *c, const struct reference *r, int64_t m,
                     const struct linear_operands *o, struct linear_tuning *report) {
    choose_first(cuda, c, r, m, o);
    c->is_checked = true;
    if (c->is_slow)
        *report = {c->bucket, 0, 0, 0, 0, "none has the right bits"};
    else
        tune(cuda, c, r, m, o, report);
}

void cuda_linear_tune(struct dev *dev, struct product *y, const struct activation *x, const struct weight *w,
                      struct linear_tuning *out) {
    struct algorithms *a = cuda_of(dev)->linear->algorithms;
    a->tuning = out;
    cuda_linear(dev, y, x, w);
    a->tuning = NULL;
}

/* 16 rows at a time. */
static void multiply_slowly(struct cuda_dev *cuda, const struct reference *r, int64_t m,
                            const struct linear_operands *o) {
    for (int64_t i = 0; i < m; i += FEW_ROWS) {
        struct linear_operands rows = linear_rows(&r->shape, o, i);
        reference_multiply(cuda, r, m - i < FEW_ROWS ? m - i : FEW_ROWS, &rows);
    }
}

void algorithms_multiply(struct cuda_dev *cuda, const struct linear_shape *s, int64_t m,
                         const struct linear_operands *o) {
    const struct reference *r = reference_of(cuda, s, o->w);
    if (!r) return;
    struct algorithms *a = cuda->linear->algorithms;
    int64_t bucket = bucket_of(m);
    struct choice *c = find_choice(a, s, bucket);
    if (!c) c = add_choice(a, s, bucket);
    if (a->tuning) {
        tune_now(cuda, c, r, m, o, a->tuning);
    } else if (!c->is_checked) {
        bool is_from_file = c->is_tuned && lt_accepts(cuda, s, m, &c->algorithm);
        if (!is_from_file || !is_right(cuda, r, m, o, &c->algorithm)) choose_first(cuda, c, r, m, o);
        c->is_checked = true;
    }
    if (!c->is_tuned && !c->is_slow && !cuda->is_recording && ++c->uses >= TUNE_AFTER)
        tune(cuda, c, r, m, o, NULL);
    if (c->is_slow)
        multiply_slowly(cuda, r, m, o);
    else if (!lt_multiply(cuda, s, m, o, &c->algorithm))
        dev_fail(&cuda->dev, E_DEVICE, "cuBLASLt refuses a product of %lld x %lld x %lld", (long long)m,
                 (long long)s->n, (long long)s->k);
}
