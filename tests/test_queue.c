/* test_queue.c - from submit to a finished job: leases, publication, the fence, and what
 * comes back after a worker ends in whatever way. */
#include "tests/unit.h"
#include "tests/aid_jobs.h"

#include "base/buf.h"
#include "jobs/locks.h"
#include "jobs/store.h"
#include "jobs/unfinished.h"

#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static const struct worker_options options = {.lock_wait_ms = 0, .device = "cpu"};

/* ---------------------------------------------------------------- aids */

struct queue { /* a database, a job or more, a worker */
    struct store *s;
    struct worker *w;
    const char *db;
};

static struct queue fresh(const char *name) {
    struct err err = ERR_INIT;
    struct queue q = {0};
    char *path = temp_path(name);
    assert_ok(store_open(&q.s, path, STORE_CREATE, &err), &err);
    q.db = store_path(q.s);
    free(path);
    return q;
}

static void start(struct queue *q) {
    struct err err = ERR_INIT;
    assert_ok(worker_open(&q->w, q->s, &options, &err), &err);
}

static void end(struct queue *q) {
    worker_close(q->w);
    store_close(q->s);
}

/* A job of n rows "row 0", "row 1", ... in leases of `lease_rows`. */
static int64_t submit(struct queue *q, int n, int64_t lease_rows, int32_t priority) {
    struct err err = ERR_INIT;
    struct buf text = BUF_INIT(0);
    struct submit_report report;
    buf_puts(&text, "id,prompt\n");
    for (int i = 0; i < n; i++) buf_printf(&text, "r%d,row %d\n", i, i);
    assert_ok(submit_text(q->s, "in.csv", text.data, (struct submit_options){.lease_rows = lease_rows, .priority = priority}, &report, &err), &err);
    assert_int_equal(report.n_rows, n);
    buf_clear(&text);
    return report.job_id;
}

static struct lease take(struct queue *q, int64_t job) {
    struct err err = ERR_INIT;
    struct lease l = {0};
    bool found = false;
    assert_ok(worker_lease(q->w, job, &l, &found, &err), &err);
    if (!found) assert_null(l.rows);
    return l;
}

static void publish(struct queue *q, int64_t job, int64_t first, int64_t end_row) {
    struct err err = ERR_INIT;
    for (int64_t row = first; row < end_row; row++) {
        struct result_row r = ok_result(job, row, "text");
        assert_ok(worker_publish(q->w, &r, 1, &err), &err);
    }
}

static void assert_state(struct queue *q, int64_t job, const char *state) {
    struct err err = ERR_INIT;
    struct job_info j;
    assert_ok(job_get(q->s, job, NULL, &j, &err), &err);
    assert_string_equal(j.state, state);
    job_info_clear(&j);
}

static struct result_row failed_result(int64_t job, int64_t row) {
    return (struct result_row){.job_id = job, .row = row, .status = ROW_FAILED, .finish_reason = "error", .prompt_tokens = 3, .attempt = 1,
                               .wait_us = 1, .queue_us = -1, .prefill_us = -1, .ttft_us = -1, .decode_us = -1, .e2e_us = -1,
                               .error_code = "context_length", .error = "the prompt is too long"};
}

/* ---------------------------------------------------------------- leases */

static void leases_hold_every_row_once_in_order(void **state) {
    struct queue q = fresh("leases.db");
    int64_t job = submit(&q, 10, 4, 0), next = 0;
    static const size_t sizes[] = {4, 4, 2};
    start(&q);
    assert_state(&q, job, "queued");
    for (int k = 0; k < 3; k++) {
        struct lease l = take(&q, job);
        assert_int_equal(l.lease_no, k);
        assert_int_equal(l.n_rows, sizes[k]);
        assert_true(l.leased_mono_ns > 0 && l.leased_wall_us > 0);
        for (size_t i = 0; i < l.n_rows; i++, next++) {
            char input[60];
            snprintf(input, sizeof input, "[\"r%d\",\"row %d\"]", (int)next, (int)next);
            assert_int_equal(l.rows[i].row, next);
            assert_string_equal(l.rows[i].input, input);
            assert_null(l.rows[i].params);
        }
        lease_clear(&l);
        assert_state(&q, job, "running");
    }
    assert_int_equal(take(&q, job).n_rows, 0);
    assert_int_equal(take(&q, 99).n_rows, 0);
    end(&q);
}

static void a_job_without_a_size_has_leases_of_256(void **state) {
    struct queue q = fresh("256.db");
    submit(&q, 513, 0, 0);
    char *sizes = look_text(q.db, "SELECT group_concat(n_rows) FROM (SELECT n_rows FROM lease ORDER BY lease_no)");
    assert_string_equal(sizes, "256,256,1");
    free(sizes);
    end(&q);
}

static int64_t next_job(struct queue *q, int64_t only) {
    struct err err = ERR_INIT;
    struct job_work work;
    bool found = false;
    assert_ok(worker_next_job(q->w, only, &work, &found, &err), &err);
    int64_t job = found ? work.job_id : 0;
    if (found) job_work_clear(&work);
    return job;
}

static void jobs_of_one_priority_take_turns(void **state) {
    struct queue q = fresh("turns.db");
    int64_t a = submit(&q, 2, 1, 0), b = submit(&q, 2, 1, 0), urgent = submit(&q, 1, 1, 5), idle = submit(&q, 1, 1, -5);
    const int64_t order[] = {urgent, a, b, a, b, idle, 0};
    start(&q);
    assert_int_equal(next_job(&q, b), b);
    assert_int_equal(next_job(&q, 77), 0);
    for (int i = 0; i < 7; i++) {
        int64_t job = next_job(&q, 0);
        assert_int_equal(job, order[i]);
        struct lease l = take(&q, job);
        lease_clear(&l);
    }
    end(&q);
}

/* Another process cancels job 1 as soon as the choice of a job has begun. */
static int cancel_meanwhile(unsigned event, void *arg, void *statement, void *sql) {
    struct queue *q = arg;
    if (strstr(sqlite3_sql(statement), "SELECT job_id, model")) look_exec(q->db, "UPDATE job SET state = 'cancelled' WHERE job_id = 1");
    return 0;
}

static void a_cancel_meanwhile_does_not_hide_other_jobs(void **state) {
    struct queue q = fresh("meanwhile.db");
    int64_t a = submit(&q, 1, 1, 0), b = submit(&q, 1, 1, 0);
    start(&q);
    sqlite3_trace_v2(q.s->db, SQLITE_TRACE_STMT, cancel_meanwhile, &q);
    assert_int_equal(next_job(&q, 0), a); /* was ready when it was chosen */
    sqlite3_trace_v2(q.s->db, 0, NULL, NULL);
    assert_int_equal(take(&q, a).n_rows, 0);
    assert_int_equal(next_job(&q, 0), b);
    end(&q);
}

static void settings_travel_with_the_job(void **state) {
    struct queue q = fresh("settings.db");
    struct err err = ERR_INIT;
    struct submit_report report;
    struct job_settings set = {.model = (char *)"/models/x", .dtype = (char *)"bfloat16", .quantization = (char *)"none",
                               .kv_cache_dtype = (char *)"auto", .max_model_len = 512, .template_text = (char *)"{b}: {a}",
                               .system_text = (char *)"Be brief.", .chat = (char *)"always", .seed = 1234,
                               .chat_template = (char *)"{{ messages }}", .chat_kwargs = (char *)"{\"a\":[1]}",
                               .allow_special_tokens = true};
    assert_ok(params_from_json(&set.params, "{\"temperature\": 0.5}", &err), &err);
    assert_ok(submit_text(q.s, "in.csv", "a,b,id,temperature,@max_tokens\n1,2,x,0.25,9\n3,4,y,,\n",
                          (struct submit_options){.settings = &set, .param_cols = "temperature"}, &report, &err), &err);
    struct job_work work;
    bool found;
    start(&q);
    assert_ok(worker_next_job(q.w, 0, &work, &found, &err), &err);
    assert_true(found);
    assert_string_equal(work.settings.model, "/models/x");
    assert_string_equal(work.settings.dtype, "bfloat16");
    assert_string_equal(work.settings.quantization, "none");
    assert_string_equal(work.settings.kv_cache_dtype, "auto");
    assert_int_equal(work.settings.max_model_len, 512);
    assert_string_equal(work.settings.template_text, "{b}: {a}");
    assert_string_equal(work.settings.system_text, "Be brief.");
    assert_string_equal(work.settings.chat, "always");
    assert_int_equal(work.settings.seed, 1234);
    assert_string_equal(work.settings.chat_template, "{{ messages }}");
    assert_string_equal(work.settings.chat_kwargs, "{\"a\":[1]}");
    assert_true(work.settings.allow_special_tokens);
    assert_true(work.settings.params.set == PARAM_TEMPERATURE && work.settings.params.temperature == 0.5);
    assert_int_equal(work.n_columns, 5);
    assert_string_equal(work.columns[1], "b");
    assert_int_equal(work.id_column, 2);
    assert_int_equal(work.prompt_column, -1);
    assert_true(work.submitted_us > 0);
    struct lease l = take(&q, work.job_id);
    assert_string_equal(l.rows[0].params, "{\"max_tokens\":9,\"temperature\":0.25}");
    assert_null(l.rows[1].params);
    lease_clear(&l);
    job_work_clear(&work);
    params_clear(&set.params);
    end(&q);
}

/* ---------------------------------------------------------------- publication */

static void the_last_row_ends_the_job(void **state) {
    struct queue q = fresh("done.db");
    struct err err = ERR_INIT;
    struct job_info j;
    int64_t job = submit(&q, 5, 2, 0);
    start(&q);
    for (int k = 0; k < 3; k++) {
        struct lease l = take(&q, job);
        lease_clear(&l);
    }
    publish(&q, job, 0, 4);
    assert_state(&q, job, "running");
    assert_int_equal(look_int(q.db, "SELECT count(*) FROM lease WHERE state = 2"), 2);
    assert_true(look_int(q.db, "SELECT percent FROM jobs") == 80);
    publish(&q, job, 4, 5);
    assert_ok(job_get(q.s, job, NULL, &j, &err), &err);
    assert_string_equal(j.state, "done");
    assert_int_equal(j.n_done, 5);
    assert_int_equal(j.n_failed, 0);
    assert_int_equal(j.prompt_tokens, 15);
    assert_int_equal(j.completion_tokens, 25);
    assert_true(j.submitted_us > 0 && j.started_us >= j.submitted_us && j.finished_us >= j.started_us);
    assert_true(job_is_final(&j));
    job_info_clear(&j);
    assert_int_equal(look_int(q.db, "SELECT count(*) FROM lease WHERE state <> 2 OR epoch IS NOT NULL"), 0);
    end(&q);
}

static void failed_rows_make_it_partial(void **state) {
    struct queue q = fresh("partial.db");
    struct err err = ERR_INIT;
    int64_t job = submit(&q, 3, 0, 0);
    start(&q);
    struct lease l = take(&q, job);
    struct result_row rows[] = {ok_result(job, 0, "a"), failed_result(job, 1), ok_result(job, 2, "c")};
    assert_ok(worker_publish(q.w, rows, 3, &err), &err);
    assert_state(&q, job, "partial");
    assert_int_equal(look_int(q.db, "SELECT n_done * 10 + n_failed FROM job"), 21);
    assert_int_equal(look_int(q.db, "SELECT count(*) FROM failures WHERE row = 1 AND custom_id = 'r1' AND code = 'context_length'"
                                    " AND message = 'the prompt is too long'"), 1);
    assert_int_equal(look_int(q.db, "SELECT count(*) FROM metrics WHERE row = 1 AND status = 'failed' AND queue_ms IS NULL AND e2e_ms IS NULL"
                                    " AND tpot_ms IS NULL AND error LIKE 'context_length%'"), 1);
    assert_int_equal(look_int(q.db, "SELECT completion IS NULL FROM result WHERE status = 1"), 1);
    lease_clear(&l);
    end(&q);
}

static void a_result_counts_once(void **state) {
    struct queue q = fresh("once.db");
    struct err err = ERR_INIT;
    int64_t job = submit(&q, 2, 0, 0);
    start(&q);
    struct lease l = take(&q, job);
    struct result_row rows[] = {ok_result(job, 0, "first"), ok_result(job, 0, "second")};
    assert_ok(worker_publish(q.w, rows, 2, &err), &err);
    assert_ok(worker_publish(q.w, rows + 1, 1, &err), &err);
    assert_int_equal(worker_n_published(q.w), 1);
    assert_int_equal(look_int(q.db, "SELECT n_done * 100 + completion_tokens FROM job"), 105);
    char *text = look_text(q.db, "SELECT completion FROM result");
    assert_string_equal(text, "first");
    free(text);
    assert_state(&q, job, "running");
    assert_ok(worker_publish(q.w, rows, 0, &err), &err);
    lease_clear(&l);
    end(&q);
}

static void one_transaction_may_serve_several_jobs(void **state) {
    struct queue q = fresh("several.db");
    struct err err = ERR_INIT;
    int64_t a = submit(&q, 1, 0, 0), b = submit(&q, 2, 0, 0);
    start(&q);
    struct lease la = take(&q, a), lb = take(&q, b);
    struct result_row rows[] = {ok_result(b, 1, "x"), ok_result(a, 0, "y"), ok_result(b, 0, "z")};
    assert_ok(worker_publish(q.w, rows, 3, &err), &err);
    assert_state(&q, a, "done");
    assert_state(&q, b, "done");
    lease_clear(&la);
    lease_clear(&lb);
    end(&q);
}

/* ---------------------------------------------------------------- ends of a worker */

static void close_gives_leases_back(void **state) {
    struct queue q = fresh("close.db");
    int64_t job = submit(&q, 4, 2, 0);
    start(&q);
    struct lease l = take(&q, job);
    lease_clear(&l);
    publish(&q, job, 0, 1);
    worker_close(q.w);
    q.w = NULL;
    assert_int_equal(look_int(q.db, "SELECT count(*) FROM lease WHERE state = 0"), 2);
    assert_int_equal(look_int(q.db, "SELECT count(*) FROM daemon WHERE state = 'stopped'"), 1);
    assert_false(worker_is_alive(q.db, NULL));
    start(&q);
    l = take(&q, job);
    assert_int_equal(l.lease_no, 0);
    assert_int_equal(l.n_rows, 1); /* row 0 has its result */
    assert_int_equal(l.rows[0].row, 1);
    lease_clear(&l);
    end(&q);
}

static void a_dead_workers_leases_are_ready_again(void **state) {
    struct queue q = fresh("dead.db");
    int64_t job = submit(&q, 6, 3, 0);
    store_close(q.s); /* a connection does not cross a fork */
    char *path = temp_path("dead.db");
    pid_t child = fork();
    if (child == 0) {
        struct lease l;
        bool found;
        struct result_row r = ok_result(job, 1, "by the dead");
        bool ok = store_open(&q.s, path, STORE_WRITE, NULL) == 0 && worker_open(&q.w, q.s, &options, NULL) == 0 &&
                  worker_lease(q.w, job, &l, &found, NULL) == 0 && worker_lease(q.w, job, &l, &found, NULL) == 0 &&
                  worker_publish(q.w, &r, 1, NULL) == 0;
        _exit(ok ? 0 : 1); /* no worker_close: as after SIGKILL */
    }
    int status;
    waitpid(child, &status, 0);
    assert_int_equal(status, 0);
    struct err err = ERR_INIT;
    assert_ok(store_open(&q.s, path, STORE_WRITE, &err), &err);
    q.db = store_path(q.s);
    assert_int_equal(look_int(q.db, "SELECT count(*) FROM lease WHERE state = 1"), 2);
    start(&q);
    assert_int_equal(look_int(q.db, "SELECT count(*) FROM lease WHERE state = 0"), 2);
    struct lease l = take(&q, job);
    assert_int_equal(l.n_rows, 2);
    assert_int_equal(l.rows[0].row, 0);
    assert_int_equal(l.rows[1].row, 2);
    lease_clear(&l);
    l = take(&q, job);
    lease_clear(&l);
    publish(&q, job, 0, 6);
    assert_state(&q, job, "done");
    assert_int_equal(look_int(q.db, "SELECT count(*) FROM result WHERE completion = 'by the dead'"), 1);
    free(path);
    end(&q);
}

/* Rows that were still under way when their lease was given back are published all the
 * same; the lease is then ready, and empty. */
static void an_empty_lease_is_closed_and_passed_over(void **state) {
    struct queue q = fresh("empty.db");
    struct err err = ERR_INIT;
    int64_t job = submit(&q, 6, 2, 0);
    start(&q);
    for (int k = 0; k < 2; k++) {
        struct lease l = take(&q, job);
        lease_clear(&l);
    }
    assert_ok(worker_release(q.w, &err), &err);
    publish(&q, job, 0, 4);
    assert_int_equal(look_int(q.db, "SELECT count(*) FROM lease WHERE state = 0"), 3);
    struct lease l = take(&q, job);
    assert_int_equal(l.lease_no, 2);
    assert_int_equal(l.n_rows, 2);
    assert_int_equal(look_int(q.db, "SELECT count(*) FROM lease WHERE state = 2 AND lease_no < 2"), 2);
    lease_clear(&l);
    publish(&q, job, 4, 6);
    assert_state(&q, job, "done");
    end(&q);
}

/* All results are there and the job does not know, as in a database put together from a
 * backup: leasing finds nothing to do and ends it. */
static void a_job_of_empty_leases_ends(void **state) {
    struct queue q = fresh("ends.db");
    struct err err = ERR_INIT;
    int64_t job = submit(&q, 4, 2, 0);
    start(&q);
    for (int k = 0; k < 2; k++) {
        struct lease l = take(&q, job);
        lease_clear(&l);
    }
    publish(&q, job, 0, 4);
    look_exec(q.db, "UPDATE job SET state = 'queued', finished_at = NULL; UPDATE lease SET state = 0");
    struct lease l = {0};
    bool found = true;
    assert_ok(worker_lease(q.w, job, &l, &found, &err), &err);
    assert_false(found);
    assert_state(&q, job, "done");
    end(&q);
}

static void a_second_worker_waits_outside(void **state) {
    struct queue q = fresh("second.db");
    struct err err = ERR_INIT;
    struct worker *other = NULL;
    char text[100];
    int pid = 0;
    assert_false(worker_is_alive(q.db, &pid));
    start(&q);
    assert_true(worker_is_alive(q.db, &pid));
    assert_int_equal(pid, getpid());
    snprintf(text, sizeof text, "another batchd (pid %d) serves ", (int)getpid());
    assert_err(worker_open(&other, q.s, &options, &err), E_BUSY, text, &err);
    assert_null(other);
    assert_ok(worker_beat(q.w, "running", &err), &err);
    assert_int_equal(look_int(q.db, "SELECT count(*) FROM daemon WHERE state = 'running' AND epoch = 1 AND device = 'cpu'"), 1);
    worker_close(NULL);
    end(&q);
}

/* Who may read the database sees whether it is served, and by whom. */
static void a_reader_of_another_user_sees_the_worker(void **state) {
    enum { NOBODY = 65534 };
    if (geteuid() != 0) skip();
    struct queue q = fresh("seen.db");
    char *folder = temp_path("");
    assert_int_equal(chmod(folder, 0755), 0);
    assert_int_equal(chmod(q.db, 0644), 0);
    start(&q);
    pid_t child = fork();
    if (child == 0) {
        int pid = 0;
        bool is_other = setresgid(NOBODY, NOBODY, NOBODY) == 0 && setresuid(NOBODY, NOBODY, NOBODY) == 0;
        _exit(is_other && worker_is_alive(q.db, &pid) && pid == getppid() ? 0 : 1);
    }
    int status;
    waitpid(child, &status, 0);
    assert_int_equal(status, 0);
    end(&q);
    assert_int_equal(chmod(folder, 0700), 0);
    free(folder);
}

/* ---------------------------------------------------------------- rows that are gone */

static void assert_ended_short(struct queue *q, int64_t job, int64_t n_done, const char *why) {
    struct err err = ERR_INIT;
    struct job_info j;
    assert_ok(job_get(q->s, job, NULL, &j, &err), &err);
    assert_string_equal(j.state, "failed");
    assert_int_equal(j.n_done, n_done);
    assert_non_null(j.error);
    assert_non_null(strstr(j.error, why));
    assert_true(job_is_final(&j) && j.finished_us > 0);
    job_info_clear(&j);
    assert_int_equal(look_int(q->db, "SELECT count(*) FROM lease WHERE state <> 2"), 0);
}

/* Somebody deletes requests by hand: what is left of the job is done, and the job ends. */
static void rows_that_are_gone_end_the_job_with_a_word(void **state) {
    struct queue q = fresh("gone.db");
    int64_t job = submit(&q, 7, 2, 0), next = 0;
    static const int64_t left[] = {0, 4, 5, 6};
    look_exec(q.db, "DELETE FROM request WHERE id & 4294967295 IN (1, 2, 3)"); /* half a lease, and a whole one */
    start(&q);
    for (int k = 0; k < 3; k++) {
        struct lease l = take(&q, job);
        for (size_t i = 0; i < l.n_rows; i++, next++) {
            assert_int_equal(l.rows[i].row, left[next]);
            assert_state(&q, job, "running");
        }
        lease_clear(&l);
    }
    publish(&q, job, 4, 7);
    assert_state(&q, job, "running");
    publish(&q, job, 0, 1);
    assert_ended_short(&q, job, 4, "3 of its 7 rows are gone from the database");
    assert_int_equal(next_job(&q, 0), 0);
    end(&q);
}

static void a_job_whose_rows_are_all_gone_ends(void **state) {
    struct queue q = fresh("all.db");
    int64_t job = submit(&q, 5, 2, 0), other = submit(&q, 1, 1, 0);
    look_exec(q.db, "DELETE FROM request WHERE id >> 32 = 1");
    start(&q);
    assert_int_equal(take(&q, job).n_rows, 0);
    assert_int_equal(next_job(&q, 0), other);
    look_exec(q.db, "DELETE FROM lease WHERE job_id = 2"); /* so that the look at leases is job 1's */
    assert_ended_short(&q, job, 0, "5 of its 5 rows are gone from the database");
    end(&q);
}

/* While they are at work: their results have no request any more, those beside them do. */
static void rows_that_go_while_they_are_at_work_cost_no_others(void **state) {
    struct queue q = fresh("flight.db");
    struct err err = ERR_INIT;
    int64_t job = submit(&q, 4, 0, 0);
    start(&q);
    struct lease l = take(&q, job);
    struct result_row rows[] = {ok_result(job, 0, "a"), ok_result(job, 1, "b"), ok_result(job, 2, "c")}, last = ok_result(job, 3, "d");
    look_exec(q.db, "DELETE FROM request WHERE id & 4294967295 IN (1, 3)");
    assert_ok(worker_publish(q.w, rows, 3, &err), &err);
    assert_int_equal(worker_n_published(q.w), 2);
    assert_ok(worker_publish(q.w, &last, 1, &err), &err);
    assert_int_equal(look_int(q.db, "SELECT count(*) FROM result"), 2);
    assert_ended_short(&q, job, 2, "2 of its 4 rows are gone from the database");
    lease_clear(&l);
    end(&q);
}

/* As SQLite does where foreign keys are on: with the request goes its result. */
static void a_result_that_goes_with_its_request_still_counts(void **state) {
    struct queue q = fresh("cascade.db");
    int64_t job = submit(&q, 3, 0, 0);
    start(&q);
    struct lease l = take(&q, job);
    publish(&q, job, 0, 2);
    look_exec(q.db, "PRAGMA foreign_keys = ON; DELETE FROM request WHERE id & 4294967295 = 0");
    publish(&q, job, 2, 3);
    assert_state(&q, job, "done");
    assert_int_equal(look_int(q.db, "SELECT n_done FROM job"), 3);
    lease_clear(&l);
    end(&q);
}

/* A bit has fallen over in the file: that row can have no prompt, and the others have theirs. */
static void a_damaged_row_is_handed_out_without_its_input(void **state) {
    struct queue q = fresh("damaged.db");
    struct err err = ERR_INIT;
    int64_t job = submit(&q, 3, 0, 0);
    struct job_work work = {.prompt_column = 1};
    struct prompt p;
    look_exec(q.db, "UPDATE request SET input = x'28B52FFD2000' WHERE id & 4294967295 = 1");
    start(&q);
    struct lease l = take(&q, job);
    assert_int_equal(l.n_rows, 3);
    for (size_t i = 0; i < 3; i++) {
        if (i == 1) assert_err(prompt_build(&p, &work, &l.rows[i], &err), E_PARSE, "the stored row is damaged", &err);
        else assert_ok(prompt_build(&p, &work, &l.rows[i], &err), &err);
        if (i != 1) prompt_clear(&p);
    }
    lease_clear(&l);
    end(&q);
}

/* ---------------------------------------------------------------- the fence */

static void an_old_epoch_writes_nothing(void **state) {
    struct queue q = fresh("fence.db");
    struct err err = ERR_INIT;
    int64_t job = submit(&q, 4, 2, 0), ids[4];
    start(&q);
    struct lease l = take(&q, job), none = {0};
    bool found = true;
    /* Another daemon got past the lock (a network file system) and took all over. */
    look_exec(q.db, "UPDATE daemon SET epoch = 2; UPDATE lease SET epoch = 2 WHERE state = 1");
    struct result_row r = ok_result(job, 0, "late");
    assert_err(worker_publish(q.w, &r, 1, &err), E_FENCED, "another batchd has taken over", &err);
    assert_non_null(strstr(err.text, "(epoch 2, this one is 1)"));
    assert_err(worker_lease(q.w, job, &none, &found, &err), E_FENCED, "taken over", &err);
    assert_null(none.rows);
    assert_err(worker_release(q.w, &err), E_FENCED, "taken over", &err);
    assert_err(worker_beat(q.w, "running", &err), E_FENCED, "taken over", &err);
    assert_err(worker_fail_job(q.w, job, "reason", &err), E_FENCED, "taken over", &err);
    look_exec(q.db, "UPDATE job SET state = 'cancelled'");
    assert_int_equal(worker_cancelled(q.w, ids, 4, &err), 0); /* not its leases any more */
    worker_close(q.w);
    assert_int_equal(look_int(q.db, "SELECT count(*) FROM result"), 0);
    assert_int_equal(look_int(q.db, "SELECT count(*) FROM lease WHERE state = 1 AND epoch = 2"), 1);
    assert_int_equal(look_int(q.db, "SELECT count(*) FROM daemon WHERE state = 'starting'"), 1);
    lease_clear(&l);
    store_close(q.s);
}

/* ---------------------------------------------------------------- jobs that end early */

static void a_cancelled_job_takes_no_results(void **state) {
    struct queue q = fresh("cancel.db");
    struct err err = ERR_INIT;
    int64_t job = submit(&q, 6, 2, 0), other = submit(&q, 2, 2, 0), ids[4] = {0};
    start(&q);
    struct lease l = take(&q, job);
    lease_clear(&l);
    publish(&q, job, 0, 1);
    assert_int_equal(worker_cancelled(q.w, ids, 4, &err), 0);
    assert_ok(job_cancel(q.s, job, "by hand", &err), &err);
    publish(&q, job, 1, 2);
    assert_state(&q, job, "cancelled");
    assert_int_equal(look_int(q.db, "SELECT count(*) FROM result"), 1);
    assert_int_equal(look_int(q.db, "SELECT n_done FROM job WHERE state = 'cancelled' AND error = 'by hand' AND finished_at > 0"), 1);
    assert_int_equal(take(&q, job).n_rows, 0);
    assert_int_equal(worker_cancelled(q.w, ids, 4, &err), 1);
    assert_int_equal(ids[0], job);
    assert_int_equal(worker_cancelled(q.w, ids, 4, &err), 0);
    assert_int_equal(next_job(&q, 0), other);
    assert_err(job_cancel(q.s, job, "again", &err), E_EXISTS, "is cancelled already", &err);
    assert_err(job_cancel(q.s, 77, "none", &err), E_NOT_FOUND, "no job 77 in ", &err);
    end(&q);
}

/* More cancelled jobs than the caller has room for: the rest come with the next call. */
static void cancelled_jobs_are_told_in_pieces(void **state) {
    struct queue q = fresh("pieces.db");
    struct err err = ERR_INIT;
    int64_t ids[2], sum = 0;
    start(&q);
    for (int i = 0; i < 3; i++) {
        int64_t job = submit(&q, 1, 1, 0);
        struct lease l = take(&q, job);
        lease_clear(&l);
        assert_ok(job_cancel(q.s, job, NULL, &err), &err);
    }
    assert_int_equal(worker_cancelled(q.w, ids, 2, &err), 2);
    sum = ids[0] + ids[1];
    assert_int_equal(worker_cancelled(q.w, ids, 2, &err), 1);
    assert_int_equal(sum + ids[0], 1 + 2 + 3);
    assert_int_equal(worker_cancelled(q.w, ids, 2, &err), 0);
    end(&q);
}

static void a_job_that_cannot_run_fails_with_its_reason(void **state) {
    struct queue q = fresh("failed.db");
    struct err err = ERR_INIT;
    struct job_info j;
    int64_t job = submit(&q, 2, 1, 0), other = submit(&q, 1, 1, 0);
    start(&q);
    assert_ok(worker_fail_job(q.w, job, "no config.json in /models/x", &err), &err);
    assert_ok(job_get(q.s, job, NULL, &j, &err), &err);
    assert_string_equal(j.state, "failed");
    assert_string_equal(j.error, "no config.json in /models/x");
    assert_true(job_is_final(&j) && j.finished_us > 0);
    job_info_clear(&j);
    assert_int_equal(take(&q, job).n_rows, 0);
    assert_int_equal(next_job(&q, 0), other);
    assert_ok(worker_fail_job(q.w, job, "again", &err), &err); /* a final state stays */
    char *why = look_text(q.db, "SELECT error FROM job WHERE job_id = 1");
    assert_string_equal(why, "no config.json in /models/x");
    free(why);
    end(&q);
}

/* ---------------------------------------------------------------- submit as part of the queue */

static void a_key_names_one_content(void **state) {
    struct queue q = fresh("key.db");
    struct err err = ERR_INIT;
    struct submit_report report;
    struct job_info j;
    struct job_settings warm = {0};
    assert_ok(params_from_json(&warm.params, "{\"temperature\": 1}", &err), &err);
    struct submit_options o = {.key = "night", .name = "the nightly one"};
    assert_ok(submit_text(q.s, "a.csv", "prompt\nx\n", o, &report, &err), &err);
    int64_t job = report.job_id;
    assert_false(report.existed);
    assert_ok(submit_text(q.s, "a.csv", "prompt\nx\n", o, &report, &err), &err);
    assert_true(report.existed);
    assert_int_equal(report.job_id, job);
    assert_int_equal(report.n_rows, 1);
    assert_err(submit_text(q.s, "a.csv", "prompt\ny\n", o, &report, &err), E_PARSE, "key \"night\" belongs to job 1, which has other rows or settings", &err);
    o.settings = &warm;
    assert_err(submit_text(q.s, "a.csv", "prompt\nx\n", o, &report, &err), E_PARSE, "key \"night\" belongs to job 1", &err);
    assert_int_equal(look_int(q.db, "SELECT count(*) FROM job"), 1);
    assert_ok(job_get(q.s, 0, "night", &j, &err), &err);
    assert_int_equal(j.job_id, job);
    assert_string_equal(j.name, "the nightly one");
    job_info_clear(&j);
    assert_err(job_get(q.s, 0, "day", &j, &err), E_NOT_FOUND, "no job with key \"day\"", &err);
    params_clear(&warm.params);
    end(&q);
}

static void everything_that_changes_results_changes_the_content_key(void **state) {
    struct err err = ERR_INIT;
    struct job_settings sets[7] = {{0}, {.model = (char *)"m"}, {.template_text = (char *)"m"}, {.system_text = (char *)"m"}, {.seed = 1},
                                   {.max_model_len = 1}, {0}};
    char keys[9][65], again[65];
    char *path = temp_path("content.csv");
    temp_write(path, "prompt,id\nx,y\n", 14);
    assert_ok(params_from_json(&sets[6].params, "{\"top_k\": 3}", &err), &err);
    for (int i = 0; i < 7; i++) assert_ok(submit_content_key(&(struct submit_options){.path = path, .settings = &sets[i]}, keys[i], &err), &err);
    assert_ok(submit_content_key(&(struct submit_options){.path = path, .settings = sets, .prompt_col = "id"}, keys[7], &err), &err);
    assert_ok(submit_content_key(&(struct submit_options){.path = path, .settings = sets, .priority = 3, .name = "n"}, again, &err), &err);
    assert_string_equal(again, keys[0]);
    temp_write(path, "prompt,id\nx,z\n", 14);
    assert_ok(submit_content_key(&(struct submit_options){.path = path, .settings = sets}, keys[8], &err), &err);
    for (int i = 0; i < 9; i++)
        for (int k = 0; k < i; k++) assert_string_not_equal(keys[i], keys[k]);
    params_clear(&sets[6].params);
    free(path);
}

/* A loader that died leaves a job in the state loading: the next submit or daemon removes
 * it; one that lives is let be. */
static void what_a_dead_loader_left_is_removed(void **state) {
    struct queue q = fresh("loader.db");
    struct err err = ERR_INIT;
    struct submit_report report;
    int lock;
    static const char half[] = "INSERT INTO job(job_id, key, state, content, submitted_at) VALUES (50, 'k', 'loading', 'c', 1);"
                               "INSERT INTO request(id, input) VALUES (50 << 32, '[]'), ((50 << 32) + 70000, '[]');"
                               "INSERT INTO reject VALUES (50, 3, 9, 'json', 'm')";
    look_exec(q.db, half);
    assert_ok(lock_loader(&lock, q.db, 50, &err), &err);
    assert_err(submit_text(q.s, "a.csv", "prompt\nx\n", (struct submit_options){.key = "k"}, &report, &err), E_BUSY,
               "key \"k\" is being submitted by another process", &err);
    start(&q);
    assert_int_equal(look_int(q.db, "SELECT count(*) FROM job WHERE job_id = 50"), 1);
    assert_int_equal(next_job(&q, 0), 0);
    assert_err(job_cancel(q.s, 50, "enough", &err), E_BUSY, "job 50 is still being loaded", &err);
    close(lock); /* it dies */
    assert_ok(submit_text(q.s, "a.csv", "prompt\nx\n", (struct submit_options){.key = "k"}, &report, &err), &err);
    assert_int_equal(report.job_id, 50);
    assert_int_equal(look_int(q.db, "SELECT (SELECT count(*) FROM job) * 100 + (SELECT count(*) FROM request) * 10 + (SELECT count(*) FROM reject)"), 110);
    worker_close(q.w);
    look_exec(q.db, "DELETE FROM request; DELETE FROM lease; DELETE FROM job");
    look_exec(q.db, half);
    start(&q);
    assert_int_equal(look_int(q.db, "SELECT (SELECT count(*) FROM job) + (SELECT count(*) FROM request) + (SELECT count(*) FROM reject)"), 0);
    end(&q);
}

/* Who found a job loading and gets its lock may have got it from a loader that is through. */
static void a_job_that_is_loaded_is_not_taken_for_a_dead_one(void **state) {
    enum { LOADERS = 4, JOBS = 40 };
    struct queue q = fresh("whole.db");
    struct err err = ERR_INIT;
    struct submit_report report;
    assert_ok(submit_text(q.s, "a.csv", "prompt\nx\ny\n", (struct submit_options){0}, &report, &err), &err);
    unfinished_remove(q.s, report.job_id);
    assert_int_equal(look_int(q.db, "SELECT (SELECT count(*) FROM job) * 10 + (SELECT count(*) FROM request)"), 12);
    pid_t pids[LOADERS];
    for (int i = 0; i < LOADERS; i++) {
        pids[i] = fork();
        if (pids[i] > 0) continue;
        char name[40];
        struct store *s;
        int r = store_open(&s, q.db, STORE_CREATE, NULL);
        snprintf(name, sizeof name, "%d.csv", i);
        for (int j = 0; r == 0 && j < JOBS; j++) r = submit_text(s, name, "prompt\nx\ny\nz\n", (struct submit_options){0}, &report, NULL);
        _exit(r == 0 ? 0 : 1);
    }
    for (int i = 0; i < LOADERS; i++) {
        int status;
        waitpid(pids[i], &status, 0);
        assert_int_equal(status, 0);
    }
    assert_int_equal(look_int(q.db, "SELECT count(*) FROM job"), LOADERS * JOBS + 1);
    assert_int_equal(look_int(q.db, "SELECT sum(n_rows) - (SELECT count(*) FROM request) FROM job"), 0);
    end(&q);
}

static void count_progress(void *arg, int64_t rows, int64_t bytes, int64_t total) {
    int *calls = arg;
    assert_true(rows >= 0 && bytes <= total && total > 0);
    ++*calls;
}

static void an_interrupted_submit_leaves_nothing(void **state) {
    struct queue q = fresh("stop.db");
    struct err err = ERR_INIT;
    struct submit_report report;
    struct buf text = BUF_INIT(0);
    volatile int stop = 1;
    int calls = 0;
    buf_puts(&text, "prompt\n");
    for (int i = 0; i < 9000; i++) buf_printf(&text, "row %d\n", i);
    assert_err(submit_text(q.s, "a.csv", text.data, (struct submit_options){.stop = &stop}, &report, &err), E_INTERRUPTED, "stopped; nothing was stored", &err);
    assert_int_equal(look_int(q.db, "SELECT (SELECT count(*) FROM job) + (SELECT count(*) FROM request)"), 0);
    stop = 0;
    assert_ok(submit_text(q.s, "a.csv", text.data, (struct submit_options){.stop = &stop, .progress = count_progress, .progress_arg = &calls}, &report, &err), &err);
    assert_int_equal(calls, 9);
    assert_int_equal(report.job_id, 1); /* what was refused has not used up a number */
    assert_int_equal(look_int(q.db, "SELECT count(*) FROM request"), 9000);
    /* A bad line behind the first chunk: what is stored already goes again. */
    buf_puts(&text, "x,y\n");
    assert_err(submit_text(q.s, "a.csv", text.data, (struct submit_options){0}, &report, &err), E_PARSE, "a.csv:9002: 2 columns", &err);
    assert_int_equal(look_int(q.db, "SELECT count(*) FROM request"), 9000);
    assert_ok(submit_text(q.s, "b.csv", "prompt\nx\n", (struct submit_options){0}, &report, &err), &err);
    assert_int_equal(report.job_id, 2);
    look_exec(q.db, "DELETE FROM lease WHERE job_id = 2; DELETE FROM job WHERE job_id = 2"); /* that one did have it */
    assert_ok(submit_text(q.s, "b.csv", "prompt\ny\n", (struct submit_options){0}, &report, &err), &err);
    assert_int_equal(report.job_id, 3);
    buf_clear(&text);
    end(&q);
}

static void jobs_are_listed_oldest_first(void **state) {
    struct queue q = fresh("list.db");
    struct err err = ERR_INIT;
    struct job_info *jobs;
    size_t n;
    for (int i = 0; i < 20; i++) submit(&q, 1 + i, 0, i - 10);
    assert_ok(job_list(q.s, &jobs, &n, &err), &err);
    assert_int_equal(n, 20);
    for (size_t i = 0; i < n; i++) {
        assert_int_equal(jobs[i].job_id, i + 1);
        assert_int_equal(jobs[i].n_rows, i + 1);
        assert_int_equal(jobs[i].priority, (int)i - 10);
        assert_string_equal(jobs[i].name, "in.csv");
        assert_false(job_is_final(&jobs[i]));
        job_info_clear(&jobs[i]);
    }
    free(jobs);
    end(&q);
}

/* ---------------------------------------------------------------- faults */

static int64_t steps_left;

static int fail_at_zero(void *arg) {
    return --steps_left == 0;
}

/* From now on the n-th stretch of 10 SQLite instructions fails; n = 0: none. */
static void fail_at(struct queue *q, int64_t n) {
    steps_left = n;
    sqlite3_progress_handler(q->s->db, n ? 10 : 0, fail_at_zero, NULL);
}

static int64_t everything(struct queue *q) {
    return look_int(q->db, "SELECT (SELECT count(*) FROM job) + (SELECT count(*) FROM request) + (SELECT count(*) FROM reject)"
                           " + (SELECT count(*) FROM lease)");
}

static void a_fault_in_submit_leaves_nothing(void **state) {
    struct queue q = fresh("fault-submit.db");
    struct err err = ERR_INIT;
    struct submit_report report;
    struct submit_options o = {.skip_rejects = true, .lease_rows = 2, .key = "k"};
    int r = E_FAIL, n_faults = -1;
    for (int64_t n = 1; r < 0; n++, n_faults++) {
        fail_at(&q, n);
        r = submit_text(q.s, "in.csv", "id,prompt\n1,a\n2,b\n3\n4,d\n", o, &report, &err);
        fail_at(&q, 0);
        if (r < 0) assert_int_equal(everything(&q), 0);
    }
    assert_int_equal(everything(&q), 1 + 3 + 1 + 2);
    assert_in_range(n_faults, 10, 10000);
    end(&q);
}

static void a_fault_in_a_lease_takes_none(void **state) {
    struct queue q = fresh("fault-lease.db");
    struct err err = ERR_INIT;
    int64_t job = submit(&q, 6, 3, 0);
    int r = E_FAIL, n_faults = -1;
    start(&q);
    for (int64_t n = 1; r < 0; n++, n_faults++) {
        struct lease l = {0};
        bool found = false;
        fail_at(&q, n);
        r = worker_lease(q.w, job, &l, &found, &err);
        fail_at(&q, 0);
        assert_int_equal(l.n_rows, r < 0 ? 0 : 3);
        assert_int_equal(look_int(q.db, "SELECT count(*) FROM lease WHERE state = 1"), r < 0 ? 0 : 1);
        assert_state(&q, job, r < 0 ? "queued" : "running");
        lease_clear(&l);
    }
    assert_in_range(n_faults, 3, 10000);
    end(&q);
}

static void a_fault_in_publication_publishes_nothing(void **state) {
    struct queue q = fresh("fault-publish.db");
    struct err err = ERR_INIT;
    int64_t job = submit(&q, 3, 3, 0);
    int r = E_FAIL, n_faults = -1;
    start(&q);
    struct lease l = take(&q, job);
    struct result_row rows[] = {ok_result(job, 0, "a"), failed_result(job, 1), ok_result(job, 2, "c")};
    for (int64_t n = 1; r < 0; n++, n_faults++) {
        fail_at(&q, n);
        r = worker_publish(q.w, rows, 3, &err);
        fail_at(&q, 0);
        assert_int_equal(look_int(q.db, "SELECT count(*) FROM result"), r < 0 ? 0 : 3);
        assert_int_equal(look_int(q.db, "SELECT n_done * 100 + n_failed * 10 + (SELECT sum(state) FROM lease) FROM job"), r < 0 ? 1 : 212);
        assert_state(&q, job, r < 0 ? "running" : "partial");
    }
    assert_in_range(n_faults, 5, 10000);
    lease_clear(&l);
    end(&q);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(leases_hold_every_row_once_in_order),
    cmocka_unit_test(a_job_without_a_size_has_leases_of_256),
    cmocka_unit_test(jobs_of_one_priority_take_turns),
    cmocka_unit_test(a_cancel_meanwhile_does_not_hide_other_jobs),
    cmocka_unit_test(settings_travel_with_the_job),
    cmocka_unit_test(the_last_row_ends_the_job),
    cmocka_unit_test(failed_rows_make_it_partial),
    cmocka_unit_test(a_result_counts_once),
    cmocka_unit_test(one_transaction_may_serve_several_jobs),
    cmocka_unit_test(close_gives_leases_back),
    cmocka_unit_test(a_dead_workers_leases_are_ready_again),
    cmocka_unit_test(an_empty_lease_is_closed_and_passed_over),
    cmocka_unit_test(a_job_of_empty_leases_ends),
    cmocka_unit_test(a_reader_of_another_user_sees_the_worker),
        cmocka_unit_test(rows_that_are_gone_end_the_job_with_a_word),
        cmocka_unit_test(a_job_whose_rows_are_all_gone_ends),
        cmocka_unit_test(rows_that_go_while_they_are_at_work_cost_no_others),
        cmocka_unit_test(a_result_that_goes_with_its_request_still_counts),
        cmocka_unit_test(a_damaged_row_is_handed_out_without_its_input),
        cmocka_unit_test(a_second_worker_waits_outside),
    cmocka_unit_test(an_old_epoch_writes_nothing),
    cmocka_unit_test(a_cancelled_job_takes_no_results),
    cmocka_unit_test(cancelled_jobs_are_told_in_pieces),
    cmocka_unit_test(a_job_that_cannot_run_fails_with_its_reason),
    cmocka_unit_test(a_key_names_one_content),
    cmocka_unit_test(everything_that_changes_results_changes_the_content_key),
    cmocka_unit_test(what_a_dead_loader_left_is_removed),
        cmocka_unit_test(a_job_that_is_loaded_is_not_taken_for_a_dead_one),
    cmocka_unit_test(an_interrupted_submit_leaves_nothing),
    cmocka_unit_test(jobs_are_listed_oldest_first),
    cmocka_unit_test(a_fault_in_submit_leaves_nothing),
    cmocka_unit_test(a_fault_in_a_lease_takes_none),
    cmocka_unit_test(a_fault_in_publication_publishes_nothing),
};

UNIT_MAIN(tests)
