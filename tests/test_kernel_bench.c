/* test_kernel_bench.c - how `bench kernels` takes the time of an operation: cold operands in
 * turn, recordings where the device can make them, and what becomes of errors. */
#include "tests/unit.h"

#include "base/clock.h"
#include "engine/bench/kernel_bench.h"
#include "kernels/backend.h"

enum { SETS = 6, REPLAY_US = 200 };

struct seen {
    int32_t runs[SETS], n_runs, n_recorded, n_replays, n_figures;
    bool is_recording, fails_to_record;
    uint64_t key;
    struct engine_kernel_figure figure;
};

static struct seen seen;

static void spin_us(int64_t us) {
    int64_t end = clock_mono_ns() + us * 1000;
    while (clock_mono_ns() < end) {}
}

static void run(struct kernel_bench *b, void *arg, int32_t i) {
    assert_ptr_equal(arg, &seen);
    seen.runs[i % SETS]++;
    seen.n_runs++;
    if (seen.is_recording) seen.n_recorded++;
    else spin_us(1);
}

static void run_long(struct kernel_bench *b, void *arg, int32_t i) {
    seen.runs[i % SETS]++;
    seen.n_runs++;
    spin_us(80);
}

static void take_figure(void *arg, const struct engine_kernel_figure *f) {
    seen.figure = *f;
    seen.n_figures++;
}

/* A recording device, of the CPU's parts: a replay takes REPLAY_US. */
static void record(struct dev *dev) {
    assert_false(seen.is_recording);
    seen.is_recording = true;
}

static void record_end(struct dev *dev, uint64_t key) {
    seen.is_recording = false;
    seen.key = key;
    if (seen.fails_to_record) dev_fail(dev, E_DEVICE, "no room for a recording");
}

static bool replay(struct dev *dev, uint64_t key) {
    if (seen.fails_to_record || key != seen.key) return false;
    seen.n_replays++;
    spin_us(REPLAY_US);
    return true;
}

static const struct kernel_shape shape = {.name = "made up"};

struct bench_rig {
    struct kernel_bench b;
    struct backend recording;
    const struct backend *own;
    struct err err;
};

static void open_rig(struct bench_rig *r, bool can_record) {
    *r = (struct bench_rig){0};
    seen = (struct seen){0};
    assert_ok(dev_open(&r->b.dev, &(struct dev_options){"cpu", 1, NULL}, &r->err), &r->err);
    r->own = r->b.dev->backend;
    r->recording = *r->own;
    r->recording.record = record;
    r->recording.record_end = record_end;
    r->recording.replay = replay;
    if (can_record) r->b.dev->backend = &r->recording;
    r->b.dtype = DTYPE_F32;
    r->b.is_cpu = !can_record;
    r->b.shape = &shape;
    r->b.roof = (struct engine_roof){.copy_bytes_per_s = 1e9, .flop_per_s = 1e12};
    r->b.each = take_figure;
    r->b.err = &r->err;
}

static void close_rig(struct bench_rig *r) {
    bench_case_end(&r->b);
    free(r->b.memory);
    free(r->b.weights);
    r->b.dev->backend = r->own;
    dev_close(r->b.dev);
}

/* But for a few runs of the warm-up. */
static void sets_take_turns(void) {
    for (int i = 0; i < SETS; i++) {
        assert_true(seen.runs[i] >= seen.n_runs / SETS - 20);
        assert_true(seen.runs[i] > 50);
    }
}

static void the_roof_is_the_longer_of_two_times(void **state) {
    struct bench_rig r;
    open_rig(&r, false);
    bench_time(&r.b, "op", "case", 3e6, 2e9, run, &seen, SETS); /* 3 ms of bytes, 2 ms of FLOP */
    assert_true(seen.figure.roof_seconds > 2.999e-3 && seen.figure.roof_seconds < 3.001e-3);
    bench_time(&r.b, "op", "case", 3e6, 5e9, run, &seen, SETS);
    assert_true(seen.figure.roof_seconds > 4.999e-3 && seen.figure.roof_seconds < 5.001e-3);
    assert_string_equal(seen.figure.shape, "made up");
    assert_int_equal(seen.n_figures, 2);
    sets_take_turns();
    close_rig(&r);
}

static void a_run_takes_as_long_as_it_takes(void **state) {
    struct bench_rig r;
    open_rig(&r, true);
    bench_time(&r.b, "op", "case", 1, 1, run_long, &seen, SETS);
    assert_true(seen.figure.seconds >= 80e-6);
    assert_int_equal(seen.n_replays, 0); /* long enough as it is */
    sets_take_turns();
    close_rig(&r);
}

static void short_runs_are_replayed(void **state) {
    struct bench_rig r;
    open_rig(&r, true);
    bench_time(&r.b, "op", "case", 1, 1, run, &seen, SETS);
    assert_int_equal(seen.n_recorded, 18); /* each set three times */
    assert_true(seen.n_replays > 3);
    assert_true(seen.figure.seconds >= REPLAY_US * 1e-6 / 18);
    uint64_t first = seen.key;
    bench_time(&r.b, "op", "another case", 1, 1, run, &seen, SETS);
    assert_true(seen.key != first);
    assert_int_equal(r.b.error, 0);
    close_rig(&r);
}

static void what_cannot_be_recorded_runs_as_it_is(void **state) {
    struct bench_rig r;
    open_rig(&r, true);
    seen.fails_to_record = true;
    bench_time(&r.b, "op", "case", 1, 1, run, &seen, SETS);
    assert_int_equal(r.b.error, 0);
    assert_int_equal(seen.n_figures, 1);
    assert_int_equal(seen.n_replays, 0);
    assert_true(seen.figure.seconds >= 1e-6);
    close_rig(&r);
}

static void fail_later(struct kernel_bench *b, void *arg, int32_t i) {
    if (++seen.n_runs == 20) dev_fail(b->dev, E_DEVICE, "the card has left");
}

static void an_error_ends_the_measurements(void **state) {
    struct bench_rig r;
    open_rig(&r, false);
    bench_time(&r.b, "op", "case", 1, 1, fail_later, &seen, SETS);
    assert_int_equal(r.b.error, E_DEVICE);
    assert_string_equal(r.err.text, "the card has left");
    assert_int_equal(seen.n_figures, 0);
    struct tensor t = bench_tensor(&r.b, DTYPE_F32, 4, 4);
    assert_null(t.data);
    assert_null(bench_weight(&r.b, 16, 16, QUANT_NONE));
    bench_time(&r.b, "op", "case", 1, 1, run, &seen, SETS);
    assert_int_equal(seen.n_figures, 0);
    close_rig(&r);
}

static void no_memory_says_for_what(void **state) {
    struct bench_rig r;
    open_rig(&r, false);
    bench_tensor(&r.b, DTYPE_F32, (int64_t)1 << 40, 1024);
    assert_int_equal(r.b.error, E_NO_MEMORY);
    assert_non_null(strstr(r.err.text, "made up: no memory for operands of"));
    close_rig(&r);
}

/* Every block is some sequence's and no other's; positions and rows are consecutive. */
static void steps_are_whole(void **state) {
    enum { SEQS = 7, FIRST = 45, EACH = 30 }; /* 75 positions: 3 blocks each */
    struct bench_step s;
    bool used[SEQS * 3] = {0};
    bench_step_init(&s, SEQS, FIRST, EACH, true);
    assert_int_equal(s.n_blocks, SEQS * 3);
    assert_int_equal(s.step.block_table_stride, 3);
    assert_int_equal(s.step.n_samples, SEQS);
    for (int i = 0; i < SEQS * 3; i++) {
        assert_in_range(s.step.block_table[i], 0, SEQS * 3 - 1);
        assert_false(used[s.step.block_table[i]]);
        used[s.step.block_table[i]] = true;
    }
    for (int i = 0; i < SEQS * EACH; i++) {
        assert_int_equal(s.step.slot[i], i / EACH);
        assert_int_equal(s.step.position[i], FIRST + i % EACH);
    }
    assert_int_equal(s.step.samples[2].row, 3 * EACH - 1);
    assert_int_equal(s.step.samples[2].position, FIRST + EACH);
    bench_step_clear(&s);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(the_roof_is_the_longer_of_two_times),
    cmocka_unit_test(a_run_takes_as_long_as_it_takes),
    cmocka_unit_test(short_runs_are_replayed),
    cmocka_unit_test(what_cannot_be_recorded_runs_as_it_is),
    cmocka_unit_test(an_error_ends_the_measurements),
    cmocka_unit_test(no_memory_says_for_what),
    cmocka_unit_test(steps_are_whole),
};
UNIT_MAIN(tests)
