/* test_profile.c - the time of steps on the device, and of the operations in them. */
#include "tests/unit.h"

#include "kernels/backend.h"
#include "kernels/dev.h"
#include "kernels/ops.h"

enum { ROWS = 8, WIDTH = 32 };

struct rig {
    struct dev *dev;
    struct tensor x, residual, norm, gate_up, y;
    struct weight *w;
};

static struct tensor room(struct dev *dev, int64_t rows, int64_t cols) {
    return tensor_2d(dev_alloc(dev, (size_t)(rows * cols) * 4), DTYPE_F32, rows, cols);
}

static struct rig open_rig(void) {
    struct rig r;
    struct err err = ERR_INIT;
    assert_ok(dev_open(&r.dev, &(struct dev_options){test_device(), 2, NULL}, &err), &err);
    r.x = room(r.dev, ROWS, WIDTH);
    r.residual = room(r.dev, ROWS, WIDTH);
    r.norm = room(r.dev, WIDTH, 1);
    r.gate_up = room(r.dev, ROWS, 2 * WIDTH);
    r.y = room(r.dev, ROWS, WIDTH);
    r.w = weight_new(r.dev, WIDTH, WIDTH, DTYPE_F32);
    return r;
}

static void close_rig(struct rig *r) {
    struct tensor *all[] = {&r->x, &r->residual, &r->norm, &r->gate_up, &r->y};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) dev_free(r->dev, all[i]->data);
    weight_free(r->dev, r->w);
    dev_close(r->dev);
}

/* Three products, two norms, one activation function. */
static void operate(struct rig *r) {
    struct activation x = {.x = r->x};
    struct product y = {.y = r->y}, gate_up = {.y = r->gate_up};
    struct addend add = {.y = &y};
    struct norm norm = {.kind = NORM_RMS, .eps = 1e-5f, .weight = r->norm};
    op_linear(r->dev, &y, &x, r->w);
    op_linear(r->dev, &y, &x, r->w);
    op_residual_norm(r->dev, &x, &r->residual, &add, &norm);
    op_glu(r->dev, &x, &gate_up, ACT_SILU);
    op_linear(r->dev, &y, &x, r->w);
    op_residual_norm(r->dev, &x, &r->residual, &add, &norm);
}

static struct dev_step_time run_step(struct rig *r, int n_operate) {
    struct err err = ERR_INIT;
    int64_t step = dev_step_begin(r->dev);
    for (int i = 0; i < n_operate; i++) operate(r);
    dev_step_end(r->dev);
    assert_ok(dev_wait(r->dev, dev_mark(r->dev), &err), &err);
    return dev_step_time(r->dev, step);
}

static void every_operation_counts_for_its_class(void **state) {
    struct rig r = open_rig();
    struct dev_profile p;
    int64_t busy = 0, sum = 0;
    operate(&r); /* outside of steps nothing counts */
    dev_profile(r.dev, 1);
    for (int i = 0; i < 20; i++) {
        busy += run_step(&r, 3).busy_ns;
        operate(&r);
    }
    dev_profile_read(r.dev, &p);
    assert_int_equal(p.n_steps, 20);
    assert_int_equal(p.busy_ns, busy);
    static const int64_t want[N_OP_CLASSES] = {[CLASS_LINEAR] = 180, [CLASS_NORM] = 120, [CLASS_ACTIVATION] = 60};
    for (int c = 0; c < N_OP_CLASSES; c++) {
        assert_int_equal(p.n_ops[c], want[c]);
        assert_true(want[c] ? p.ns[c] > 0 : p.ns[c] == 0);
        sum += p.ns[c];
    }
    /* All of a step but what lies before its first operation; a GPU rounds to half a microsecond. */
    assert_true(sum <= busy + 200000 && sum > busy / 2);
    dev_profile(r.dev, 0);
    run_step(&r, 1);
    dev_profile_read(r.dev, &p);
    assert_int_equal(p.n_steps, 20);
    close_rig(&r);
}

static void one_step_in_so_many_is_profiled(void **state) {
    struct rig r = open_rig();
    struct dev_profile p;
    enum { STEPS = 4000 };
    dev_profile(r.dev, 16);
    for (int i = 0; i < 16; i++) run_step(&r, 1);
    dev_profile_read(r.dev, &p);
    assert_int_equal(p.n_steps, 0); /* not the first ones */
    for (int i = 0; i < STEPS; i++) run_step(&r, 0);
    dev_profile_read(r.dev, &p);
    assert_true(p.n_steps > STEPS / 16 * 3 / 4 && p.n_steps < STEPS / 16 * 5 / 4);
    close_rig(&r);
}

/* Steps are submitted ahead: while one that was profiled waits to be asked about, none is noted
 * over it. */
static void steps_ahead_do_not_spoil_a_profile(void **state) {
    struct rig r = open_rig();
    struct dev_profile p;
    struct err err = ERR_INIT;
    dev_profile(r.dev, 1);
    int64_t one = dev_step_begin(r.dev);
    operate(&r);
    dev_step_end(r.dev);
    int64_t two = dev_step_begin(r.dev);
    operate(&r);
    operate(&r);
    dev_step_end(r.dev);
    assert_ok(dev_sync(r.dev, &err), &err);
    dev_step_time(r.dev, one);
    dev_step_time(r.dev, two);
    dev_profile_read(r.dev, &p);
    assert_int_equal(p.n_steps, 1);
    assert_int_equal(p.n_ops[CLASS_LINEAR], 3);
    close_rig(&r);
}

static void a_step_of_too_many_operations_is_left_out(void **state) {
    struct rig r = open_rig();
    struct dev_profile p;
    dev_profile(r.dev, 1);
    run_step(&r, 400); /* 2,400 */
    dev_profile_read(r.dev, &p);
    assert_int_equal(p.n_steps, 0);
    run_step(&r, 300);
    dev_profile_read(r.dev, &p);
    assert_int_equal(p.n_steps, 1);
    assert_int_equal(p.n_ops[CLASS_LINEAR], 900);
    close_rig(&r);
}

/* Stamps lie on one clock: a step's time and the gap before it add up to the whole. */
static void steps_and_gaps_add_up(void **state) {
    enum { STEPS = 40, BYTES = 1 << 22 };
    struct rig r = open_rig();
    char *p = dev_alloc(r.dev, 2 * BYTES);
    double total = 0, all = 0;
    dev_stamp(r.dev, 5);
    for (int i = 0; i < STEPS; i++) {
        assert_int_equal(dev_step_begin(r.dev), i);
        dev_copy(r.dev, p, p + BYTES, BYTES);
        dev_step_end(r.dev);
        dev_copy(r.dev, p, p + BYTES, BYTES); /* between steps */
        dev_stamp(r.dev, 6);
        all = dev_stamp_ns(r.dev, 5, 6); /* waits */
        struct dev_step_time t = dev_step_time(r.dev, i);
        assert_true(t.busy_ns > 0);
        assert_true(i == 0 ? t.gap_ns == 0 : t.gap_ns > 0);
        total += (double)(t.busy_ns + t.gap_ns);
        assert_true(total <= all * 1.01 + 50000); /* a GPU rounds each time to half a microsecond */
    }
    assert_true(total > all / 4);
    dev_free(r.dev, p);
    close_rig(&r);
}

/* ---------------------------------------------------------------- ranges */

static char ranges[400]; /* what a profiler would have seen */

static void note_push(const char *name) {
    strcat(strcat(ranges, name), "(");
}

static void note_pop(void) {
    strcat(ranges, ")");
}

/* The device's own table with recorders in it. */
static void steps_and_operations_are_ranges(void **state) {
    struct rig r = open_rig();
    struct backend listening = *r.dev->backend;
    const struct backend *own = r.dev->backend;
    listening.range_push = note_push;
    listening.range_pop = note_pop;
    r.dev->backend = &listening;
    operate(&r); /* outside of steps: none */
    run_step(&r, 1);
    run_step(&r, 0);
    assert_string_equal(ranges, "step(linear()linear()norm()activation()linear()norm())step()");
    r.dev->backend = own;
    close_rig(&r);
}

static void classes_have_names(void **state) {
    for (int a = 0; a < N_OP_CLASSES; a++)
        for (int b = 0; b < a; b++)
            assert_string_not_equal(op_class_name((enum op_class)a), op_class_name((enum op_class)b));
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(every_operation_counts_for_its_class),
    cmocka_unit_test(one_step_in_so_many_is_profiled),
    cmocka_unit_test(steps_ahead_do_not_spoil_a_profile),
    cmocka_unit_test(a_step_of_too_many_operations_is_left_out),
    cmocka_unit_test(steps_and_gaps_add_up),
    cmocka_unit_test(steps_and_operations_are_ranges),
    cmocka_unit_test(classes_have_names),
};
UNIT_MAIN(tests)
