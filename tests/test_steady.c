/* test_steady.c - steps take no memory: neither the host's, counted by a malloc of our own in
 * front of the library's, nor the device's, which counts for itself.
 *
 * What counts is a call between a plan and its results, from our code or from the C library on
 * our behalf; a GPU's driver and libraries do as they like. Of a plan's results only those that
 * end no request count, for a completion is new memory. */
#include "tests/unit.h"

#include "base/mem.h"
#include "engine/model/model.h"
#include "engine/schedule/blocks.h"
#include "engine/schedule/scheduler.h"

#include <link.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/wait.h>
#include <unistd.h>

#if defined __SANITIZE_ADDRESS__ || defined __SANITIZE_THREAD__
#define HAS_COUNTER 0 /* malloc is the sanitizer's; the guard of mem.h watches instead */
#else
#define HAS_COUNTER 1
#endif

/* ---------------------------------------------------------------- the counter */

enum { MAX_RANGES = 8 };

static atomic_bool is_counting;
static atomic_long n_counted;
static struct range {
    uintptr_t from, to;
} ranges[MAX_RANGES]; /* code whose calls count */
static int n_ranges;

#if HAS_COUNTER
extern void *__libc_malloc(size_t n), *__libc_calloc(size_t n, size_t size), *__libc_realloc(void *p, size_t n);
extern void *__libc_memalign(size_t align, size_t n);

static void count(const void *caller) {
    if (!is_counting) return;
    for (int i = 0; i < n_ranges; i++)
        if ((uintptr_t)caller >= ranges[i].from && (uintptr_t)caller < ranges[i].to) n_counted++;
}

void *malloc(size_t n) {
    count(__builtin_return_address(0));
    return __libc_malloc(n);
}

void *calloc(size_t n, size_t size) {
    count(__builtin_return_address(0));
    return __libc_calloc(n, size);
}

void *realloc(void *p, size_t n) {
    count(__builtin_return_address(0));
    return __libc_realloc(p, n);
}

void *aligned_alloc(size_t align, size_t n) {
    count(__builtin_return_address(0));
    return __libc_memalign(align, n);
}

int posix_memalign(void **out, size_t align, size_t n) {
    count(__builtin_return_address(0));
    *out = __libc_memalign(align, n);
    return *out ? 0 : 12;
}
#endif

/* The program itself has no name; where a GPU works, the C library is called by its driver too. */
static bool is_ours(const char *name) {
    bool is_cuda = strcmp(test_device(), "cuda") == 0;
    return !*name || strstr(name, "libbatchd_cuda.so") || (!is_cuda && strstr(name, "libc.so"));
}

static int note_ranges(struct dl_phdr_info *info, size_t size, void *arg) {
    for (int i = 0; is_ours(info->dlpi_name) && i < info->dlpi_phnum && n_ranges < MAX_RANGES; i++) {
        const ElfW(Phdr) *p = &info->dlpi_phdr[i];
        uintptr_t from = info->dlpi_addr + p->p_vaddr;
        if (p->p_type == PT_LOAD && (p->p_flags & PF_X)) ranges[n_ranges++] = (struct range){from, from + p->p_memsz};
    }
    return 0;
}

static void begin_counting(void) {
    is_counting = true;
}

static void end_counting(void) {
    is_counting = false;
}

/* When all libraries are there. */
static void reset_counter(void) {
    n_ranges = 0;
    n_counted = 0;
    dl_iterate_phdr(note_ranges, NULL);
    assert_true(n_ranges > 0);
}

/* ---------------------------------------------------------------- a model under load */

enum { SLOTS = 12, ROWS = 40, MAX_LEN = 160, N_REQUESTS = 40, POOL = 20, DEPTH = 2 };

struct load {
    struct dev *dev;
    struct model *model;
    struct runner *runner;
    struct scheduler *scheduler;
    int n_done, n_under_way;
};

struct way {
    const char *dir, *quantization;
    enum dtype dtype;
    bool fp8_kv_cache;
};

static bool load_open(struct load *l, const struct way *way) {
    struct err err = ERR_INIT;
    struct model_options model = {
        .dir = way->dir, .dtype = way->dtype, .dummy = true, .max_positions = MAX_LEN, .fp8_kv_cache = way->fp8_kv_cache};
    struct runner_options runner = {
        .n_blocks = POOL, .n_slots = SLOTS, .max_rows = ROWS, .max_samples = ROWS, .max_len = MAX_LEN};
    *l = (struct load){0};
    assert_ok(quantization_parse(&model.quantization, way->quantization, &err), &err);
    assert_ok(dev_open(&l->dev, &(struct dev_options){.kind = test_device(), .threads = 2}, &err), &err);
    bool can = dev_computes(l->dev, way->dtype) && !(way->fp8_kv_cache && strcmp(dev_kind(l->dev), "cuda") == 0);
    if (!can) {
        dev_close(l->dev);
        return false;
    }
    assert_ok(model_open(&l->model, l->dev, &model, &err), &err);
    assert_ok(runner_open(&l->runner, l->model, &runner, &err), &err);
    struct scheduler_options scheduler = {.model = model_get_info(l->model),
                                          .max_model_len = MAX_LEN,
                                          .n_blocks = POOL,
                                          .n_slots = SLOTS,
                                          .max_rows = ROWS,
                                          .max_samples = ROWS,
                                          .depth = DEPTH};
    l->scheduler = scheduler_new(&scheduler);
    return true;
}

static void load_close(struct load *l) {
    scheduler_free(l->scheduler);
    runner_close(l->runner);
    model_close(l->model);
    dev_close(l->dev);
}

/* Of all kinds: greedy and drawn, filtered, with penalties, lists, stop ids that are banned for a
 * while, logprobs of output and prompt. */
static void add_request(struct load *l, int i) {
    struct engine_request *r = engine_request_new();
    int32_t vocab = model_get_info(l->model)->vocab;
    r->tag = (uint64_t)i;
    r->n_tokens = (size_t)(1 + i * 7 % 70);
    r->tokens = mem_zalloc(r->n_tokens, sizeof *r->tokens);
    for (size_t k = 0; k < r->n_tokens; k++) r->tokens[k] = (int32_t)((size_t)i * 31 + k * k * 17) % vocab;
    struct sampling *s = &r->sampling;
    s->max_tokens = 5 + i * 11 % 80;
    s->ignore_eos = i % 4 != 0;
    s->min_tokens = i % 4 ? 0 : 6;
    s->temperature = i % 3 ? 0.9f : 0;
    s->top_p = i % 5 ? 1 : 0.8f;
    s->top_k = i % 6 ? 0 : 9;
    s->seed = (uint64_t)i;
    s->frequency_penalty = i % 7 ? 0 : 0.4f;
    s->logprobs = i % 8 ? -1 : 5;
    s->prompt_logprobs = i % 13 ? -1 : 2;
    if (i % 9 == 2) {
        s->n_logit_bias = 2;
        s->logit_bias_ids = mem_zalloc(2, sizeof *s->logit_bias_ids);
        s->logit_bias = mem_zalloc(2, sizeof *s->logit_bias);
        s->logit_bias_ids[1] = 5;
    }
    scheduler_add(l->scheduler, r);
}

static void submit_planned(struct load *l) {
    struct err err = ERR_INIT;
    const struct step *step;
    begin_counting();
    while (l->n_under_way < DEPTH && (step = scheduler_plan(l->scheduler, 1))) {
        assert_ok(step_submit(l->runner, step, &err), &err);
        l->n_under_way++;
    }
    end_counting();
}

static void apply_oldest(struct load *l) {
    struct err err = ERR_INIT;
    struct step_result result;
    begin_counting();
    assert_ok(step_collect(l->runner, &result, &err), &err);
    long before = n_counted;
    scheduler_apply(l->scheduler, result.drawn, result.logprobs, 1);
    end_counting();
    l->n_under_way--;
    if (scheduler_report(l->scheduler)->n_finished > 0) n_counted = before;
    for (struct engine_completion *c; (c = scheduler_take_done(l->scheduler)); l->n_done++) {
        assert_int_not_equal(c->finish, FINISH_ERROR);
        engine_completion_free(c);
    }
}

static void run_load(struct load *l) {
    l->n_done = 0;
    for (int i = 0; i < N_REQUESTS; i++) add_request(l, i);
    while (!scheduler_is_idle(l->scheduler) || l->n_under_way > 0) {
        submit_planned(l);
        apply_oldest(l);
    }
    assert_int_equal(l->n_done, N_REQUESTS);
    struct engine_stats stats;
    scheduler_stats(l->scheduler, &stats);
    assert_true(stats.n_steps > 60 && stats.n_preemptions > 0);
}

/* A GPU records small steps when it has met a few like them, which takes memory. */
static void run_recorded(struct load *l) {
    for (int i = 0; strcmp(dev_kind(l->dev), "cuda") == 0 && i < 6; i++) run_load(l);
}

static void check_way(const struct way *way) {
    struct load l;
    if (!load_open(&l, way)) return;
    run_recorded(&l);
    reset_counter();
    run_load(&l);
    load_close(&l); /* what follows may end the case */
    if (n_counted > 0) fail_msg("%s, %s: memory was taken %ld times in steps", way->dir, way->quantization, (long)n_counted);
}

static void steps_take_no_memory(void **state) {
    static const struct way ways[] = {
        {"tests/models/tiny-llama3", "none", DTYPE_F32, false},  {"tests/models/tiny-llama3", "none", DTYPE_BF16, false},
        {"tests/models/tiny-llama3", "nf4", DTYPE_BF16, false},  {"tests/models/tiny-llama3", "int8", DTYPE_BF16, false},
        {"tests/models/tiny-llama3", "fp8", DTYPE_BF16, false},  {"tests/models/tiny-llama3", "none", DTYPE_BF16, true},
        {"tests/models/tiny-mixtral", "none", DTYPE_BF16, false}, {"tests/models/tiny-phi", "none", DTYPE_BF16, false},
    };
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) check_way(&ways[i]);
}

/* The device's memory is counted by the device. */
static void check_device(const struct way *way) {
    struct load l;
    if (!load_open(&l, way)) return;
    int64_t before = dev_n_growths(l.dev);
    assert_true(before > 0);
    run_load(&l);
    int64_t in_steps = runner_n_growths(l.runner), after = dev_n_growths(l.dev);
    load_close(&l);
    assert_int_equal(in_steps, 0);
    assert_int_equal(after, before);
}

static void steps_take_no_memory_of_the_device(void **state) {
    check_device(&(struct way){"tests/models/tiny-llama3", "none", DTYPE_F32, false});
    check_device(&(struct way){"tests/models/tiny-llama3", "int8", DTYPE_BF16, false});
    check_device(&(struct way){"tests/models/tiny-llama3", "none", DTYPE_BF16, true});
    check_device(&(struct way){"tests/models/tiny-mixtral", "none", DTYPE_BF16, false});
}

/* ---------------------------------------------------------------- they would be seen */

static void an_allocation_is_counted(void **state) {
    if (!HAS_COUNTER) skip();
    reset_counter();
    free(mem_alloc(10));
    assert_int_equal(n_counted, 0);
    begin_counting();
    char *volatile p = mem_alloc(10);
    p = mem_realloc(p, 20, 1);
    end_counting();
    free(p);
    assert_int_equal(n_counted, 2);
}

static void the_guard_of_debug_builds_ends_the_process(void **state) {
#ifdef MEM_GUARD
    pid_t child = fork();
    if (child == 0) {
        signal(SIGABRT, SIG_DFL);
        if (!freopen("/dev/null", "w", stderr)) _exit(3);
        mem_forbid(true);
        free(mem_alloc(1));
        _exit(0);
    }
    int status;
    waitpid(child, &status, 0);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
#else
    assert_false(mem_forbid(true));
    free(mem_alloc(1));
    assert_false(mem_forbid(false));
#endif
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(an_allocation_is_counted),
    cmocka_unit_test(the_guard_of_debug_builds_ends_the_process),
    cmocka_unit_test(steps_take_no_memory),
    cmocka_unit_test(steps_take_no_memory_of_the_device),
};

UNIT_MAIN(tests)
