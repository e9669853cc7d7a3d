/* plan.c - see plan.h. */
#include "engine/plan.h"
#include "engine/model/model_private.h"
#include "engine/schedule/blocks.h"

#include <string.h>

enum { CPU_SEQS = 64, CPU_ROWS = 512, CUDA_SEQS = 2048, CUDA_ROWS = 4096 };

static bool is_word(const char *given, const char *word) {
    return given && strcmp(given, word) == 0;
}

bool plan_is_dummy(const struct engine_options *o) {
    return is_word(o->load_format, "dummy");
}

bool plan_has_fp8_cache(const struct engine_options *o) {
    return is_word(o->kv_cache_dtype, "fp8");
}

struct runner_options plan_runner(const struct engine_options *o, bool is_gpu) {
    int32_t rows = is_gpu ? CUDA_ROWS : CPU_ROWS, slots = is_gpu ? CUDA_SEQS : CPU_SEQS;
    if (o->max_num_batched_tokens > 0) rows = o->max_num_batched_tokens;
    if (o->max_num_seqs > 0) slots = o->max_num_seqs;
    return (struct runner_options){.n_slots = slots, .max_rows = rows, .max_samples = rows < slots ? rows : slots};
}

static int64_t smaller(int64_t a, int64_t b) {
    return a < b ? a : b;
}

int64_t plan_kv_bytes(const struct engine_options *o, int64_t available, int64_t weight_bytes, int64_t step_bytes) {
    const int64_t libraries = (int64_t)768 << 20;
    double share = o->gpu_memory_utilization > 0 ? o->gpu_memory_utilization : 0.95;
    int64_t bytes = (int64_t)(share * (double)available) - step_bytes - libraries;
    if (o->gpu_memory_limit > 0) bytes = smaller(bytes, o->gpu_memory_limit - weight_bytes - step_bytes - libraries);
    return bytes > 0 ? bytes : 0;
}

int64_t plan_kv_blocks(int64_t bytes, int64_t block_bytes, int32_t max_num_seqs, int32_t max_model_len) {
    int64_t useful = 2 * (int64_t)max_num_seqs * blocks_for(max_model_len);
    return smaller(smaller(bytes / block_bytes, useful), INT32_MAX);
}

/* ---------------------------------------------------------------- a GPU that is not there */

enum dtype plan_dtype(const struct engine_options *o, const struct model_info *m) {
    const char *name = !o->dtype || is_word(o->dtype, "auto") ? m->dtype : o->dtype;
    if (strcmp(name, "float32") == 0) return DTYPE_F32;
    return strcmp(name, "bfloat16") == 0 ? DTYPE_BF16 : DTYPE_F16;
}

/* Rows that are drawn from with penalties at once: two a multiprocessor. */
enum { GPU_ROOMS = 2 * 132 };

/* step_reserve_bytes of the largest GPU. */
static int64_t reserve_bytes(const struct step_limits *l) {
    int64_t expanded, sample = smaller(l->n_samples, GPU_ROOMS) * ((l->vocab + 3) / 4 * 4) * (int64_t)sizeof(float);
    step_expanded_tiles(l, &expanded);
    return sample > expanded ? sample : expanded;
}

/* Reads the folder into m and counts its weights; a GPU keeps those in fp8 with scales for blocks. */
static int plan_weights(struct model_plan *out, struct model *m, const struct engine_options *o, struct err *err) {
    struct quantization quantization;
    struct weights_plan plan;
    struct model_folder *folder;
    int r = model_folder_open(&folder, o->model_dir, plan_is_dummy(o), err);
    if (r < 0) return r;
    m->config = folder->config;
    m->dtype = plan_dtype(o, &m->config.info);
    r = quantization_parse(&quantization, o->quantization, err);
    if (r == 0) r = weights_plan(&plan, &m->config, folder->checkpoint, m->dtype, &quantization, true, err);
    model_folder_close(folder);
    int32_t most = o->max_model_len > 0 ? (int32_t)o->max_model_len : 0;
    if (r == 0) out->weight_bytes = plan.bytes + weights_scratch_bytes(&plan) + model_table_bytes(&m->config, most);
    return r;
}

int model_plan(struct model_plan *out, const struct engine_options *o, struct err *err) {
    struct model m = {0};
    struct model_plan plan = {0};
    int r = plan_weights(&plan, &m, o, err);
    if (r < 0) return r;
    const struct model_info *info = &m.config.info;
    struct runner_options runner = plan_runner(o, true);
    m.kv_dtype = plan_has_fp8_cache(o) ? DTYPE_F8_E4M3 : m.dtype;
    struct step_limits limits = runner_limits(&m, &runner);
    plan.step_bytes = runner_tensor_bytes(&m, &runner) + reserve_bytes(&limits);
    plan.kv_block_bytes = kv_cache_block_bytes(m.kv_dtype, info->n_layers, info->n_kv_heads, info->head_dim);
    plan.kv_token_bytes = plan.kv_block_bytes / KV_BLOCK;
    plan.max_num_seqs = runner.n_slots;
    plan.max_model_len = o->max_model_len > 0 ? (int32_t)o->max_model_len : info->context;
    *out = plan;
    return 0;
}

int64_t model_plan_kv_tokens(const struct model_plan *plan, const struct engine_options *o, int64_t gpu_bytes) {
    int64_t available = gpu_bytes - plan->weight_bytes;
    if (available <= 0) return 0;
    int64_t bytes = plan_kv_bytes(o, available, plan->weight_bytes, plan->step_bytes);
    return KV_BLOCK * plan_kv_blocks(bytes, plan->kv_block_bytes, plan->max_num_seqs, plan->max_model_len);
}
