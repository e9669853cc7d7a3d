/* cpu_dev.c - the CPU device: memory, threads, and which instruction set to use. */
#include "base/clock.h"
#include "base/mem.h"
#include "kernels/cpu/cpu.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void cpu_close(struct dev *dev) {
    struct cpu_dev *cpu = cpu_of(dev);
    assert(cpu->n_allocations == 0);
    pool_free(cpu->pool);
    free(cpu->scratch);
    free(cpu);
}

static int64_t cpu_memory_available(const struct dev *dev) {
    FILE *f = fopen("/proc/meminfo", "re");
    char line[200];
    long long kib = 0;
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "MemAvailable: %lld", &kib) == 1) break;
    if (f) fclose(f);
    return kib ? kib * 1024 : (int64_t)sysconf(_SC_AVPHYS_PAGES) * sysconf(_SC_PAGESIZE);
}

enum { ALIGNMENT = 256, LARGE = 64 << 20 };

/* Fresh pages are zero already, so a large pool costs memory only where it is used. The
 * system would promise more than it has, and end the process when it is asked to keep
 * the promise; so a large request is held against what is free now. */
static void *cpu_alloc(struct dev *dev, size_t bytes) {
    size_t total;
    if (!size_add(bytes, 2 * ALIGNMENT, &total)) return NULL;
    if (total > LARGE && (int64_t)(total / 2) > cpu_memory_available(dev) / 2) return NULL;
    char *raw = calloc(1, total);
    if (!raw) return NULL;
    char *p = (char *)(((uintptr_t)raw + 2 * ALIGNMENT - 1) & ~(uintptr_t)(ALIGNMENT - 1));
    memcpy(p - sizeof raw, &raw, sizeof raw);
    cpu_of(dev)->n_allocations++;
    dev->n_growths++;
    return p;
}

static void cpu_free(struct dev *dev, void *p) {
    void *raw;
    memcpy(&raw, (char *)p - sizeof raw, sizeof raw);
    free(raw);
    cpu_of(dev)->n_allocations--;
}

static void cpu_copy(struct dev *dev, void *dst, const void *src, size_t bytes) {
    if (bytes) memcpy(dst, src, bytes);
}

struct copy {
    char *dst;
    const char *src;
    size_t bytes;
};

static void copy_part(void *arg, int part, int n_parts, int thread) {
    const struct copy *c = arg;
    int64_t begin, end;
    pool_share((int64_t)c->bytes, part, n_parts, &begin, &end);
    memcpy(c->dst + begin, c->src + begin, (size_t)(end - begin));
}

/* One thread does not fill the memory's bandwidth. */
static void cpu_copy_within(struct dev *dev, void *dst, const void *src, size_t bytes) {
    struct pool *pool = cpu_of(dev)->pool;
    struct copy c = {dst, src, bytes};
    pool_run(pool, copy_part, &c, pool_parts(pool, (int64_t)(bytes >> 12) + 1, 400));
}

static void cpu_sync(struct dev *dev) {
}

static void *cpu_host_alloc(struct dev *dev, size_t bytes) {
    return mem_try_zalloc(bytes ? bytes : 1, 1);
}

static void cpu_host_free(struct dev *dev, void *p) {
    free(p);
}

static int64_t cpu_mark(struct dev *dev) {
    return 0;
}

static void cpu_wait(struct dev *dev, int64_t mark) {
}

static void cpu_stamp(struct dev *dev, int32_t i) {
    cpu_of(dev)->stamps[i] = clock_mono_ns();
}

static double cpu_stamp_ns(struct dev *dev, int32_t from, int32_t to) {
    return (double)(cpu_of(dev)->stamps[to] - cpu_of(dev)->stamps[from]);
}

static const struct step *cpu_step_upload(struct dev *dev, const struct step *host) {
    return host; /* every operation is done when it returns */
}

void *cpu_scratch(struct cpu_dev *cpu, size_t bytes) {
    if (bytes <= cpu->scratch_bytes) return cpu->scratch;
    void *p = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (!p) {
        dev_fail(&cpu->dev, E_NO_MEMORY, "no memory for %zu bytes of scratch; lower --max-num-batched-tokens", bytes);
        return NULL;
    }
    cpu->dev.n_growths++;
    free(cpu->scratch);
    cpu->scratch = p;
    cpu->scratch_bytes = bytes;
    return p;
}

static void cpu_step_reserve(struct dev *dev, const struct step_limits *limits) {
    cpu_scratch(cpu_of(dev), cpu_attention_bytes(cpu_of(dev), limits));
}

static bool cpu_computes(const struct dev *dev, enum dtype dtype) {
    return dtype == DTYPE_F32 || dtype == DTYPE_BF16;
}

static const struct backend cpu_backend = {
    .kind = "cpu",
    .close = cpu_close,
    .computes = cpu_computes,
    .memory_available = cpu_memory_available,
    .alloc = cpu_alloc,
    .free = cpu_free,
    .upload = cpu_copy,
    .download = cpu_copy,
    .copy = cpu_copy_within,
    .sync = cpu_sync,
    .host_alloc = cpu_host_alloc,
    .host_free = cpu_host_free,
    .fetch = cpu_copy,
    .mark = cpu_mark,
    .wait = cpu_wait,
    .step_upload = cpu_step_upload,
    .stamp = cpu_stamp,
    .stamp_ns = cpu_stamp_ns,
    .weight_bytes = cpu_weight_bytes,
    .weight_load = cpu_weight_load,
    .keeps_fp8_blocks = true,
    .linear_reserve = cpu_linear_reserve,
    .step_reserve = cpu_step_reserve,
    .knows_outliers_of_batch = true,
    .linear = cpu_linear,
    .embed = cpu_embed,
    .residual_norm = cpu_residual_norm,
    .qkv_finish = cpu_qkv_finish,
    .attention = cpu_attention,
    .glu = cpu_glu,
    .act = cpu_act,
    .moe_experts = cpu_moe_experts,
    .gather = cpu_gather,
    .logits_finish = cpu_logits_finish,
    .sample = cpu_sample,
    .sample_reserve = cpu_sample_reserve,
};

struct variant {
    const char *name, *full_name;
    const struct simd *simd;
    bool (*runs_here)(void);
};

#if defined __x86_64__
extern const struct simd simd_v2, simd_v3, simd_v4;

static bool has_v2(void) {
    return __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("popcnt");
}
static bool has_v3(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
}
static bool has_v4(void) {
    return has_v3() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl");
}

static const struct variant variants[] = { /* best first */
    {"v4", "x86-64-v4", &simd_v4, has_v4},
    {"v3", "x86-64-v3", &simd_v3, has_v3},
    {"v2", "x86-64-v2", &simd_v2, has_v2},
};
#else
extern const struct simd simd_plain;

static bool has_plain(void) {
    return true;
}

static const struct variant variants[] = {{"plain", "plain C", &simd_plain, has_plain}};
#endif

static int pick_variant(const struct variant **out, const char *asked, struct err *err) {
    for (size_t i = 0; i < sizeof variants / sizeof *variants; i++) {
        if (asked && strcmp(asked, variants[i].name) != 0) continue;
        if (!variants[i].runs_here()) continue;
        *out = &variants[i];
        return 0;
    }
    if (asked) return err_set(err, E_DEVICE, "this processor does not run the %s kernels", asked);
    return err_set(err, E_DEVICE, "this processor is older than x86-64-v2 (SSE4.2); batchd needs that much");
}

int cpu_dev_open(struct dev **out, const struct dev_options *options, struct err *err) {
    const struct variant *variant = NULL;
    int r = pick_variant(&variant, options->variant, err);
    if (r < 0) return r;
    int threads = options->threads > 0 ? options->threads : (int)sysconf(_SC_NPROCESSORS_ONLN);
    if (threads < 1) threads = 1;
    if (threads > 256) return err_set(err, E_RANGE, "threads: %d is more than 256", threads);
    struct pool *pool;
    r = pool_new(&pool, threads, err);
    if (r < 0) return r;
    struct cpu_dev *cpu = mem_zalloc(1, sizeof *cpu);
    cpu->dev.backend = &cpu_backend;
    snprintf(cpu->dev.name, sizeof cpu->dev.name, "cpu (%s, %d thread%s)", variant->full_name, threads,
             threads == 1 ? "" : "s");
    cpu->simd = variant->simd;
    cpu->pool = pool;
    *out = &cpu->dev;
    return 0;
}
