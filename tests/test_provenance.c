/* test_provenance.c - the files of a model folder, their hashes, and what a job notes of them. */
#include "tests/unit.h"
#include "tests/aid_jobs.h"

#include "base/file.h"
#include "base/mem.h"
#include "batchd/model_files.h"

#include <sys/stat.h>
#include <time.h>

/* ---------------------------------------------------------------- files */

static void copy(const char *from, const char *to) {
    struct err err = ERR_INIT;
    char *data;
    size_t n;
    assert_ok(file_read(from, 64 << 20, &data, &n, &err), &err);
    temp_write(to, data, n);
    free(data);
}

/* A copy of a small model; the caller's to free. */
static char *model_copy(const char *name) {
    static const char *const files[] = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
                                        "model.safetensors", "README.md"};
    char *dir = temp_path(name);
    mkdir(dir, 0700);
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        char *from = path_join("tests/models/demo", files[i]), *to = path_join(dir, files[i]);
        copy(from, to);
        free(from);
        free(to);
    }
    return dir;
}

static void patch(const char *dir, const char *file, long at, const char *bytes) {
    char *path = path_join(dir, file);
    FILE *f = fopen(path, "r+");
    assert_non_null(f);
    fseek(f, at, SEEK_SET);
    fputs(bytes, f);
    fclose(f);
    free(path);
}

static void set_time(const char *dir, const char *file, time_t when) {
    char *path = path_join(dir, file);
    struct timespec times[2] = {{when, 0}, {when, 0}};
    assert_int_equal(utimensat(0, path, times, 0), 0);
    free(path);
}

static struct model_files hashed(const char *dir, bool headers) {
    struct model_files f = {0};
    struct err err = ERR_INIT;
    assert_ok(model_files_list(&f, dir, NULL, &err), &err);
    assert_ok(model_files_hash(&f, dir, headers, NULL, NULL, &err), &err);
    return f;
}

static const struct model_file *file_of(const struct model_files *f, const char *name) {
    for (size_t i = 0; i < f->n; i++)
        if (strcmp(f->list[i].name, name) == 0) return &f->list[i];
    return NULL;
}

/* What sha256sum says of the first n bytes. */
static void sha256sum(char hex[SHA256_HEX], const char *dir, const char *file, long n) {
    char command[4200];
    snprintf(command, sizeof command, "head -c %ld '%s/%s' | sha256sum", n, dir, file);
    FILE *f = popen(command, "r");
    assert_non_null(f);
    assert_non_null(fgets(hex, SHA256_HEX, f));
    pclose(f);
}

static void the_files_that_are_read_are_hashed(void **state) {
    char *dir = model_copy("hashed"), hex[SHA256_HEX];
    struct model_files f = hashed(dir, false), brief = hashed(dir, true);
    assert_int_equal(f.n, 5);
    assert_null(file_of(&f, "README.md"));
    for (size_t i = 0; i < f.n; i++) {
        sha256sum(hex, dir, f.list[i].name, (long)f.list[i].size);
        assert_string_equal(f.list[i].sha256, hex);
        bool is_weights = strcmp(f.list[i].name, "model.safetensors") == 0;
        assert_int_equal(strcmp(brief.list[i].sha256, hex) == 0, !is_weights);
    }
    FILE *weights = popen("od -An -t u8 -N 8 tests/models/demo/model.safetensors", "r");
    long header = 0;
    assert_int_equal(fscanf(weights, "%ld", &header), 1);
    pclose(weights);
    sha256sum(hex, dir, "model.safetensors", 8 + header);
    assert_string_equal(file_of(&brief, "model.safetensors")->sha256, hex);
    model_files_clear(&f);
    model_files_clear(&brief);
    free(dir);
}

static void a_list_comes_back_from_json(void **state) {
    char *dir = model_copy("json"), *text;
    struct model_files f = hashed(dir, false), again = {0};
    struct err err = ERR_INIT;
    text = model_files_to_json(&f);
    assert_ok(model_files_from_json(&again, text, &err), &err);
    assert_int_equal(again.n, f.n);
    assert_int_equal(model_files_compare(&f, &again, NULL, NULL), 0);
    for (size_t i = 0; i < f.n; i++) assert_int_equal(again.list[i].mtime_us, f.list[i].mtime_us);
    model_files_clear(&again);
    static const char *const bad[] = {"", "{}", "[1]", "[{\"name\":\"x\"}]"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) assert_err(model_files_from_json(&again, bad[i], &err), E_PARSE, "damaged", &err);
    model_files_clear(&f);
    free(text);
    free(dir);
}

static void a_touched_file_is_hashed_once_and_a_changed_one_refused(void **state) {
    char *dir = model_copy("touched");
    struct model_files then = hashed(dir, false);
    struct err err = ERR_INIT;
    bool touched = true;
    assert_ok(model_files_verify(&then, dir, &touched, &err), &err);
    assert_false(touched);
    set_time(dir, "tokenizer.json", 1000000000);
    assert_ok(model_files_verify(&then, dir, &touched, &err), &err);
    assert_true(touched);
    assert_int_equal(file_of(&then, "tokenizer.json")->mtime_us, (int64_t)1000000000000000);
    assert_ok(model_files_verify(&then, dir, &touched, &err), &err);
    assert_false(touched);
    patch(dir, "model.safetensors", 100000, "x"); /* its size is the same */
    set_time(dir, "model.safetensors", 1000000001);
    assert_ok(model_files_glance(&then, dir, &err), &err);
    assert_err(model_files_verify(&then, dir, &touched, &err), E_CONFIG, "model.safetensors has changed", &err);
    char *more = path_join(dir, "tokenizer_config.json");
    temp_write(more, "{}", 2);
    assert_err(model_files_glance(&then, dir, &err), E_CONFIG, "tokenizer_config.json has changed", &err);
    remove(more);
    assert_err(model_files_glance(&then, dir, &err), E_CONFIG, "tokenizer_config.json is missing", &err);
    free(more);
    model_files_clear(&then);
    free(dir);
}

static void a_new_file_that_counts_is_a_difference(void **state) {
    char *dir = model_copy("new"), *more = path_join(dir, "chat_template.jinja"), *idle = path_join(dir, "notes.txt");
    struct model_files then = hashed(dir, false);
    struct err err = ERR_INIT;
    temp_write(idle, "x", 1);
    assert_ok(model_files_glance(&then, dir, &err), &err);
    temp_write(more, "x", 1);
    assert_err(model_files_glance(&then, dir, &err), E_CONFIG, "chat_template.jinja is new", &err);
    model_files_clear(&then);
    free(more);
    free(idle);
    free(dir);
}

/* ---------------------------------------------------------------- jobs */

#define ONE "[{\"name\":\"a\",\"size\":1,\"sha256\":\"11\"},{\"name\":\"b\",\"size\":2,\"sha256\":\"22\"}]"
#define ONE_TOUCHED "[{\"name\":\"a\",\"size\":1,\"mtime_us\":7,\"sha256\":\"11\"},{\"name\":\"b\",\"size\":2,\"mtime_us\":8,\"sha256\":\"22\"}]"
#define OTHER "[{\"name\":\"a\",\"size\":1,\"sha256\":\"11\"},{\"name\":\"b\",\"size\":2,\"sha256\":\"33\"}]"

static void a_job_keeps_to_the_weights_it_began_with(void **state) {
    struct store *s;
    struct worker *w;
    struct submit_report first, second;
    struct err err = ERR_INIT;
    char *db = temp_path("weights.db");
    assert_ok(store_open(&s, db, STORE_CREATE, &err), &err);
    assert_ok(submit_text(s, "one.csv", "prompt\nx\n", (struct submit_options){0}, &first, &err), &err);
    assert_ok(submit_text(s, "two.csv", "prompt\ny\n", (struct submit_options){0}, &second, &err), &err);
    assert_ok(worker_open(&w, s, &(struct worker_options){.device = "cpu"}, &err), &err);

    int64_t one = 0, again = 0, elsewhere = 0, whole = 0, other = 0;
    assert_ok(worker_note_weights(w, first.job_id, &(struct weights_seen){"/m", ONE, false}, &one, &err), &err);
    assert_ok(worker_note_weights(w, first.job_id, &(struct weights_seen){"/m", ONE_TOUCHED, false}, &again, &err), &err);
    assert_ok(worker_note_weights(w, first.job_id, &(struct weights_seen){"/copy", ONE, false}, &elsewhere, &err), &err);
    assert_int_equal(again, one);
    assert_int_equal(elsewhere, one);
    assert_err(worker_note_weights(w, first.job_id, &(struct weights_seen){"/m", OTHER, false}, &other, &err), E_CONFIG, "(b differs)", &err);
    assert_err(worker_note_weights(w, first.job_id, &(struct weights_seen){"/m", ONE, true}, &other, &err), E_CONFIG, "began with other weights", &err);
    assert_int_equal(look_int(db, "SELECT count(*) FROM weights"), 1);
    assert_ok(worker_note_weights(w, second.job_id, &(struct weights_seen){"/m", ONE, true}, &whole, &err), &err);
    assert_true(whole != one);
    assert_int_equal(look_int(db, "SELECT count(DISTINCT weights) FROM jobs WHERE length(weights) = 64"), 2);

    struct job_work work;
    struct job_info info;
    bool found;
    assert_ok(worker_next_job(w, first.job_id, &work, &found, &err), &err);
    assert_true(found && work.weights_id == one);
    job_work_clear(&work);
    assert_ok(job_get(s, second.job_id, NULL, &info, &err), &err);
    assert_int_equal(strlen(info.weights), 64);
    job_info_clear(&info);
    worker_close(w);
    store_close(s);
    free(db);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(the_files_that_are_read_are_hashed),
    cmocka_unit_test(a_list_comes_back_from_json),
    cmocka_unit_test(a_touched_file_is_hashed_once_and_a_changed_one_refused),
    cmocka_unit_test(a_new_file_that_counts_is_a_difference),
    cmocka_unit_test(a_job_keeps_to_the_weights_it_began_with),
};

UNIT_MAIN(tests)
