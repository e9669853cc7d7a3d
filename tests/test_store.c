/* test_store.c - opening a database: made with care, ours or nothing, every refusal with
 * its remedy. */
#include "tests/unit.h"
#include "tests/aid_jobs.h"

#include "base/file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum { NOBODY = 65534 };

static void create(const char *path) {
    struct err err = ERR_INIT;
    struct store *s = NULL;
    assert_ok(store_open(&s, path, STORE_CREATE, &err), &err);
    store_close(s);
}

static void assert_refused(const char *path, enum store_mode mode, int code, const char *part) {
    struct err err = ERR_INIT;
    struct store *s = NULL;
    assert_err(store_open(&s, path, mode, &err), code, part, &err);
    assert_null(s);
    assert_non_null(strstr(err.text, path));
}

/* ---------------------------------------------------------------- creation */

static void a_new_database_is_private_and_ours(void **state) {
    char *path = temp_path("deep/er/new.db"), *folder = temp_path("deep/er");
    struct stat st;
    create(path);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    assert_int_equal(stat(folder, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0700);
    assert_int_equal(look_int(path, "PRAGMA application_id"), 0x42544348);
    assert_int_equal(look_int(path, "PRAGMA user_version"), 3);
    assert_int_equal(look_int(path, "SELECT value FROM meta WHERE key = 'schema_version'"), 3);
    assert_int_equal(look_int(path, "SELECT count(*) FROM daemon WHERE epoch = 0"), 1);
    char *mode = look_text(path, "PRAGMA journal_mode");
    assert_string_equal(mode, "wal");
    free(mode);
    free(path);
    free(folder);
}

static void opening_again_changes_nothing(void **state) {
    struct err err = ERR_INIT;
    char *path = temp_path("again.db");
    create(path);
    look_exec(path, "INSERT INTO model(name, path, files, added_at) VALUES ('m', '/m', '[]', 1)");
    for (int mode = STORE_READ; mode <= STORE_CREATE; mode++) {
        struct store *s;
        assert_ok(store_open(&s, path, (enum store_mode)mode, &err), &err);
        assert_string_equal(store_path(s), path);
        assert_ok(store_check(s, &err), &err);
        store_close(s);
    }
    assert_int_equal(look_int(path, "SELECT count(*) FROM model"), 1);
    store_close(NULL);
    free(path);
}

static void processes_may_create_it_at_once(void **state) {
    char *path = temp_path("race.db");
    pid_t children[6];
    for (int i = 0; i < 6; i++) {
        children[i] = fork();
        if (children[i] > 0) continue;
        struct store *s = NULL;
        _exit(store_open(&s, path, STORE_CREATE, NULL) == 0 ? 0 : 1);
    }
    for (int i = 0; i < 6; i++) {
        int status;
        waitpid(children[i], &status, 0);
        assert_int_equal(status, 0);
    }
    assert_int_equal(look_int(path, "SELECT count(*) FROM daemon"), 1);
    free(path);
}

/* ---------------------------------------------------------------- not ours */

static void a_missing_database_is_not_made_by_readers(void **state) {
    char *path = temp_path("missing.db");
    assert_refused(path, STORE_READ, E_NOT_FOUND, "no database ");
    assert_refused(path, STORE_WRITE, E_NOT_FOUND, "submit a job first, or name one with --db");
    assert_int_not_equal(access(path, F_OK), 0);
    free(path);
}

static void what_is_no_database_is_left_alone(void **state) {
    char *folder = temp_path("folder.db"), *text = temp_path("text.db"), *data;
    char lines[6001] = "";
    size_t n;
    struct err err = ERR_INIT;
    mkdir(folder, 0700);
    for (int i = 0; i < 1000; i++) strcat(lines, "hello\n");
    temp_write(text, lines, 6000);
    for (int mode = STORE_READ; mode <= STORE_CREATE; mode++) {
        assert_refused(folder, (enum store_mode)mode, E_PARSE, "is not a database file");
        assert_refused(text, (enum store_mode)mode, E_PARSE, "file is not a database; name another file with --db");
    }
    assert_ok(file_read(text, 10000, &data, &n, &err), &err);
    assert_string_equal(data, lines);
    free(data);
    free(folder);
    free(text);
}

static void another_programs_database_is_left_alone(void **state) {
    char *tables = temp_path("tables.db"), *marked = temp_path("marked.db"), *versioned = temp_path("versioned.db");
    look_exec(tables, "CREATE TABLE notes(x)");
    look_exec(marked, "PRAGMA application_id = 77; CREATE TABLE job(x)");
    look_exec(versioned, "PRAGMA user_version = 1");
    const char *paths[] = {tables, marked, versioned};
    for (int i = 0; i < 3; i++)
        for (int mode = STORE_READ; mode <= STORE_CREATE; mode++)
            assert_refused(paths[i], (enum store_mode)mode, E_PARSE, "is a database of another program, not batchd's; name another file with --db");
    assert_int_equal(look_int(tables, "SELECT count(*) FROM sqlite_schema"), 1);
    char *mode = look_text(tables, "PRAGMA journal_mode");
    assert_string_equal(mode, "delete");
    free(mode);
    free(tables);
    free(marked);
    free(versioned);
}

static void an_empty_file_becomes_ours_only_when_submitting(void **state) {
    char *path = temp_path("empty.db");
    temp_write(path, "", 0);
    assert_refused(path, STORE_READ, E_NOT_FOUND, "is an empty database; submit a job");
    assert_refused(path, STORE_WRITE, E_NOT_FOUND, "is an empty database; submit a job");
    create(path);
    assert_int_equal(look_int(path, "PRAGMA user_version"), 3);
    free(path);
}

static void a_newer_schema_is_refused(void **state) {
    char *path = temp_path("newer.db");
    create(path);
    look_exec(path, "PRAGMA user_version = 4");
    for (int mode = STORE_READ; mode <= STORE_CREATE; mode++)
        assert_refused(path, (enum store_mode)mode, E_CONFIG, "is from a newer batchd (schema 4, this is 3); upgrade batchd");
    free(path);
}

/* ---------------------------------------------------------------- older schemas */

enum { N_OLD = 2 }; /* versions before this one */

/* A copy of what a batchd of that version left behind (tests/data/database/make.sh). */
static char *old_database(int version, const char *name) {
    char *path = temp_path(name), *data, from[60];
    size_t n;
    struct err err = ERR_INIT;
    snprintf(from, sizeof from, "tests/data/database/version%d.db", version);
    assert_ok(file_read(from, 16 << 20, &data, &n, &err), &err);
    temp_write(path, data, n);
    free(data);
    return path;
}

static int count_view(void *arg, const struct result_view *v, struct err *err) {
    assert_null(v->logprobs);
    assert_true(!v->completion || strlen(v->completion) == v->completion_bytes);
    ++*(int *)arg;
    return 0;
}

static void a_reader_leaves_old_versions_as_they_are(void **state) {
    for (int version = 1; version <= N_OLD; version++) {
        char *path = old_database(version, version == 1 ? "read1.db" : "read2.db");
        struct store *s;
        struct job_info job;
        struct err err = ERR_INIT;
        int n = 0;
        assert_ok(store_open(&s, path, STORE_READ, &err), &err);
        assert_ok(results_each(s, 1, &(struct result_filter){0}, count_view, &n, &err), &err);
        assert_ok(job_get(s, 2, NULL, &job, &err), &err);
        assert_null(job.weights);
        job_info_clear(&job);
        store_close(s);
        assert_int_equal(n, 4);
        assert_int_equal(look_int(path, "PRAGMA user_version"), version);
        free(path);
    }
}

/* Same tables, columns, indexes and views as a new database, same rows as before. */
static void bring_up_to_date(int version, enum store_mode mode) {
    static const char rows[] = "SELECT group_concat(id || status || codec || coalesce(hex(completion), '-') || e2e_us, ' ')"
                               " FROM (SELECT * FROM result ORDER BY id)";
    static const char columns[] = "SELECT group_concat(x) FROM (SELECT t.name || '.' || c.name || ' ' || c.type || c.\"notnull\""
                                  " || c.pk AS x FROM sqlite_schema t, pragma_table_info(t.name) c WHERE t.name NOT LIKE"
                                  " 'sqlite_%' AND t.name <> 'results' ORDER BY t.name, c.cid)";
    static const char others[] = "SELECT group_concat(sql) FROM (SELECT sql FROM sqlite_schema WHERE type <> 'table' AND sql IS"
                                 " NOT NULL ORDER BY name)";
    char *path = old_database(version, "old_write.db"), *fresh = temp_path("fresh2.db");
    char *before = look_text(path, rows);
    struct store *s;
    struct err err = ERR_INIT;
    int n = 0;
    for (int again = 0; again < 2; again++) {
        assert_ok(store_open(&s, path, mode, &err), &err);
        assert_ok(store_check(s, &err), &err);
        assert_ok(results_each(s, 1, &(struct result_filter){0}, count_view, &n, &err), &err);
        store_close(s);
    }
    assert_int_equal(n, 8);
    assert_int_equal(look_int(path, "PRAGMA user_version"), 3);
    assert_int_equal(look_int(path, "SELECT value FROM meta WHERE key = 'schema_version'"), 3);
    assert_int_equal(look_int(path, "SELECT count(*) FROM jobs WHERE weights IS NULL"), 4);
    assert_int_equal(look_int(path, "SELECT count(*) FROM model"), version >= 2);
    create(fresh);
    const char *const shapes[] = {columns, others};
    for (int i = 0; i < 2; i++) {
        char *old = look_text(path, shapes[i]), *new = look_text(fresh, shapes[i]);
        assert_string_equal(old, new);
        free(old);
        free(new);
    }
    char *after = look_text(path, rows);
    assert_string_equal(after, before);
    free(before);
    free(after);
    free(path);
    free(fresh);
}

static void a_writer_brings_old_versions_up_to_date(void **state) {
    for (int version = 1; version <= N_OLD; version++)
        for (int mode = STORE_WRITE; mode <= STORE_CREATE; mode++) bring_up_to_date(version, (enum store_mode)mode);
}

static void an_old_version_is_left_to_its_daemon(void **state) {
    char *path = old_database(1, "old_served.db"), *lock = temp_path("old_served.db.lock");
    int fd = open(lock, O_CREAT | O_RDWR, 0600);
    assert_int_equal(flock(fd, LOCK_EX), 0);
    assert_refused(path, STORE_WRITE, E_BUSY, "is served by an older batchd");
    assert_int_equal(look_int(path, "PRAGMA user_version"), 1);
    close(fd);
    free(path);
    free(lock);
}

/* ---------------------------------------------------------------- damage, permissions */

static void damage_is_found(void **state) {
    struct err err = ERR_INIT;
    struct store *s;
    char *path = temp_path("damaged.db");
    create(path);
    look_exec(path, "WITH RECURSIVE k(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM k WHERE i < 500)"
                    " INSERT INTO request(id, input) SELECT i, hex(randomblob(200)) FROM k; PRAGMA wal_checkpoint(TRUNCATE)");
    struct stat st;
    stat(path, &st);
    FILE *f = fopen(path, "r+");
    fseek(f, st.st_size - 8 * 4096, SEEK_SET);
    for (int i = 0; i < 4 * 4096; i++) putc(0x5a, f);
    fclose(f);
    assert_ok(store_open(&s, path, STORE_WRITE, &err), &err);
    assert_err(store_check(s, &err), E_IO, "is damaged: ", &err);
    store_close(s);
    free(path);
}

static void a_reader_does_not_write(void **state) {
    struct err err = ERR_INIT;
    struct store *s;
    struct job_info *jobs;
    size_t n;
    char *path = temp_path("reader.db");
    create(path);
    assert_ok(store_open(&s, path, STORE_READ, &err), &err);
    assert_ok(job_list(s, &jobs, &n, &err), &err);
    assert_int_equal(n, 0);
    free(jobs);
    assert_err(model_add(s, "m", "/m", "[]", &err), E_PERMISSION, "readonly", &err);
    store_close(s);
    free(path);
}

static void commits_of_others_show(void **state) {
    struct err err = ERR_INIT;
    struct store *s;
    char *path = temp_path("version.db");
    create(path);
    assert_ok(store_open(&s, path, STORE_READ, &err), &err);
    int64_t before = store_data_version(s);
    assert_true(store_data_version(s) == before);
    look_exec(path, "INSERT INTO meta VALUES ('x', 1)");
    assert_true(store_data_version(s) != before);
    store_close(s);
    free(path);
}

/* What somebody without rights is told: 0, or the number of the first wrong answer. */
static int answers_to_nobody(const char *ours, const char *theirs, const char *fresh, const char *below) {
    struct err err = ERR_INIT;
    struct store *s = NULL;
    if (setresgid(NOBODY, NOBODY, NOBODY) < 0 || setresuid(NOBODY, NOBODY, NOBODY) < 0) return 9;
    if (store_open(&s, ours, STORE_READ, &err) != E_PERMISSION || !strstr(err.text, "no permission to read")) return 1;
    if (store_open(&s, theirs, STORE_WRITE, &err) != E_PERMISSION || !strstr(err.text, "no permission to write")) return 2;
    if (store_open(&s, theirs, STORE_CREATE, &err) != E_PERMISSION || !strstr(err.text, "no permission to write")) return 3;
    if (store_open(&s, fresh, STORE_CREATE, &err) != E_PERMISSION || !strstr(err.text, "check the mode of its folder")) return 4;
    if (store_open(&s, below, STORE_CREATE, &err) != E_PERMISSION || !strstr(err.text, "cannot make folder")) return 5;
    /* Even to read, SQLite makes files beside a database in WAL mode. */
    if (store_open(&s, theirs, STORE_READ, &err) != E_PERMISSION || !strstr(err.text, "its folder must be writable for you")) return 6;
    return s ? 7 : 0;
}

static void rights_are_asked_for(void **state) {
    if (geteuid() != 0) skip(); /* only root can become somebody else */
    char *ours = temp_path("ours.db"), *theirs = temp_path("theirs.db"), *fresh = temp_path("fresh.db");
    char *below = temp_path("sub/fresh.db"), *folder = temp_path("");
    create(ours);
    create(theirs);
    chmod(theirs, 0644);
    chmod(folder, 0755);
    pid_t child = fork();
    if (child == 0) _exit(answers_to_nobody(ours, theirs, fresh, below));
    int status;
    waitpid(child, &status, 0);
    assert_int_equal(status >> 8, 0);
    assert_true(WIFEXITED(status));
    char *paths[] = {ours, theirs, fresh, below, folder};
    for (int i = 0; i < 5; i++) free(paths[i]);
}

static void a_folder_that_cannot_be(void **state) {
    char *file = temp_path("file"), *path = temp_path("file/x.db");
    temp_write(file, "x", 1);
    struct err err = ERR_INIT;
    struct store *s = NULL;
    int r = store_open(&s, path, STORE_CREATE, &err);
    assert_true(r == E_IO || r == E_PERMISSION);
    assert_non_null(strstr(err.text, "file"));
    assert_null(s);
    free(file);
    free(path);
}

/* ---------------------------------------------------------------- registered models */

static void models_are_kept_by_name(void **state) {
    struct err err = ERR_INIT;
    struct store *s;
    struct model_entry m, *all;
    size_t n;
    char *path = temp_path("models.db");
    assert_ok(store_open(&s, path, STORE_CREATE, &err), &err);
    assert_ok(model_add(s, "demo-1.0_x", "/models/demo", "[{\"name\":\"config.json\"}]", &err), &err);
    assert_ok(model_add(s, "a", "/models/a", "[]", &err), &err);
    assert_ok(model_get(s, "demo-1.0_x", &m, &err), &err);
    assert_string_equal(m.path, "/models/demo");
    assert_string_equal(m.files_json, "[{\"name\":\"config.json\"}]");
    assert_true(m.added_us > 0);
    model_entry_clear(&m);
    assert_ok(model_list(s, &all, &n, &err), &err);
    assert_int_equal(n, 2);
    for (size_t i = 0; i < n; i++) model_entry_clear(&all[i]);
    free(all);
    assert_err(model_get(s, "nobody", &m, &err), E_NOT_FOUND, "\"nobody\"", &err);
    static const char *const bad[] = {"", ".", "..", "a/b", "a b", "é", "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) assert_true(model_add(s, bad[i], "/m", "[]", &err) < 0);
    assert_int_equal(look_int(path, "SELECT count(*) FROM model"), 2);
    assert_ok(model_touch(s, "a", "[1]", "[2]", &err), &err);
    assert_int_equal(look_int(path, "SELECT count(*) FROM model WHERE files = '[]'"), 1);
    assert_ok(model_touch(s, "a", "[]", "[2]", &err), &err);
    assert_int_equal(look_int(path, "SELECT count(*) FROM model WHERE files = '[2]'"), 1);
    look_exec(path, "INSERT INTO job(job_id, state, model, content, submitted_at) VALUES (7, 'queued', 'a', 'x', 1)");
    assert_err(model_remove(s, "a", &err), E_FAIL, "job 7 is not finished and needs model \"a\"", &err);
    look_exec(path, "UPDATE job SET state = 'done'");
    assert_ok(model_remove(s, "a", &err), &err);
    assert_err(model_remove(s, "a", &err), E_NOT_FOUND, "\"a\"", &err);
    assert_int_equal(look_int(path, "SELECT count(*) FROM model"), 1);
    store_close(s);
    free(path);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(a_new_database_is_private_and_ours),
    cmocka_unit_test(opening_again_changes_nothing),
    cmocka_unit_test(processes_may_create_it_at_once),
    cmocka_unit_test(a_missing_database_is_not_made_by_readers),
    cmocka_unit_test(what_is_no_database_is_left_alone),
    cmocka_unit_test(another_programs_database_is_left_alone),
    cmocka_unit_test(an_empty_file_becomes_ours_only_when_submitting),
    cmocka_unit_test(a_newer_schema_is_refused),
    cmocka_unit_test(a_reader_leaves_old_versions_as_they_are),
    cmocka_unit_test(a_writer_brings_old_versions_up_to_date),
    cmocka_unit_test(an_old_version_is_left_to_its_daemon),
    cmocka_unit_test(damage_is_found),
    cmocka_unit_test(a_reader_does_not_write),
    cmocka_unit_test(commits_of_others_show),
    cmocka_unit_test(rights_are_asked_for),
    cmocka_unit_test(a_folder_that_cannot_be),
    cmocka_unit_test(models_are_kept_by_name),
};

UNIT_MAIN(tests)
