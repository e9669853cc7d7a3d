/* test_pool.c - every part of a job runs once, whoever runs it, awake or asleep. */
#include "tests/unit.h"

#include "base/clock.h"
#include "kernels/cpu/pool.h"

#include <stdatomic.h>

enum { MOST_PARTS = 40 };

struct job {
    int n_parts, n_threads;
    atomic_int times[MOST_PARTS];
    int plain[MOST_PARTS]; /* no atomics: pool_run's end must make these visible */
    atomic_int faults;
};

static void count_part(void *arg, int part, int n_parts, int thread) {
    struct job *j = arg;
    for (volatile int i = 0; i < part * 30; i++) {} /* up to a microsecond: others get their turn */
    if (n_parts != j->n_parts || part < 0 || part >= n_parts || thread < 0 || thread >= j->n_threads) j->faults++;
    else {
        j->times[part]++;
        j->plain[part] = part + 1;
    }
}

static void run_job(struct pool *p, int n_parts) {
    struct job j = {.n_parts = n_parts, .n_threads = pool_n_threads(p)};
    pool_run(p, count_part, &j, n_parts);
    assert_int_equal(j.faults, 0);
    for (int i = 0; i < n_parts; i++) {
        assert_int_equal(j.times[i], 1);
        assert_int_equal(j.plain[i], i + 1);
    }
}

static struct pool *open_pool(int n_threads) {
    struct err err = ERR_INIT;
    struct pool *p = NULL;
    assert_ok(pool_new(&p, n_threads, &err), &err);
    assert_int_equal(pool_n_threads(p), n_threads);
    return p;
}

static void each_part_runs_once(void **state) {
    static const int threads[] = {1, 2, 3, 9}; /* more than there are processors, too */
    for (size_t t = 0; t < sizeof threads / sizeof *threads; t++) {
        struct pool *p = open_pool(threads[t]);
        for (int i = 0; i < 2000; i++) run_job(p, i % (MOST_PARTS + 1));
        pool_free(p);
    }
}

static void sleeping_threads_wake(void **state) {
    struct pool *p = open_pool(3);
    for (int i = 0; i < 40; i++) {
        clock_sleep_ms(i % 3); /* longer than they keep looking */
        run_job(p, 1 + i % MOST_PARTS);
    }
    pool_free(p);
}

static void slow_part(void *arg, int part, int n_parts, int thread) {
    atomic_int *used = arg;
    clock_sleep_ms(5);
    atomic_fetch_or(used, 1 << thread);
}

/* Parts that take long are done side by side, and the caller waits for them asleep. */
static void threads_share_the_work(void **state) {
    struct pool *p = open_pool(3);
    atomic_int used = 0;
    pool_run(p, slow_part, &used, 40);
    assert_int_equal(used, 7);
    pool_free(p);
}

static void a_pool_that_never_worked_closes(void **state) {
    for (int i = 0; i < 50; i++) pool_free(open_pool(4));
    pool_free(NULL);
}

static void small_work_stays_in_one_part(void **state) {
    struct pool *one = open_pool(1), *four = open_pool(4);
    assert_int_equal(pool_parts(one, 1000, 1e6), 1);
    assert_int_equal(pool_parts(four, 1000, 0.01), 1);
    assert_int_equal(pool_parts(four, 1, 1e9), 1); /* cannot be cut */
    assert_int_equal(pool_parts(four, 3, 1e9), 3);
    assert_true(pool_parts(four, 1000, 1e6) >= 4);
    assert_true(pool_parts(four, 0, 1e6) <= 1);
    pool_free(one);
    pool_free(four);
}

static void shares_cover_everything_once(void **state) {
    for (int64_t n = 0; n < 50; n++)
        for (int parts = 1; parts < 12; parts++) {
            int64_t at = 0, begin, end;
            for (int i = 0; i < parts; i++, at = end) {
                pool_share(n, i, parts, &begin, &end);
                assert_int_equal(begin, at);
                assert_true(end - begin == n / parts || end - begin == (n + parts - 1) / parts);
            }
            assert_int_equal(at, n);
        }
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(each_part_runs_once),
    cmocka_unit_test(sleeping_threads_wake),
    cmocka_unit_test(threads_share_the_work),
    cmocka_unit_test(a_pool_that_never_worked_closes),
    cmocka_unit_test(small_work_stays_in_one_part),
    cmocka_unit_test(shares_cover_everything_once),
};
UNIT_MAIN(tests)
