/* test_base.c - base/: errors, buffers, sizes, hashes, UTF-8, mailboxes, teams, files. */
#include "tests/unit.h"

#include "base/buf.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/log.h"
#include "base/mailbox.h"
#include "base/mapped.h"
#include "base/mem.h"
#include "base/suggest.h"
#include "base/team.h"
#include "base/utf8.h"

#include <jansson.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/stat.h>
#include <unistd.h>

static void err_wrap_puts_context_before(void **state) {
    struct err err = ERR_INIT;
    assert_int_equal(err_set(&err, E_IO, "no such file %s", "x"), E_IO);
    assert_int_equal(err_wrap(&err, "loading %s", "m"), E_IO);
    assert_string_equal(err.text, "loading m: no such file x");
}

static void mapped_files_are_found_by_address(void **state) {
    static char a[100], b[50];
    mapped_note(a, sizeof a, "/x/a");
    mapped_note(b, sizeof b, "/x/b");
    assert_string_equal(mapped_file(a), "/x/a");
    assert_string_equal(mapped_file(a + 99), "/x/a");
    assert_string_equal(mapped_file(b + 49), "/x/b");
    assert_null(mapped_file(&state));
    assert_null(mapped_file(NULL));
    mapped_forget(a);
    mapped_forget(NULL);
    assert_null(mapped_file(a + 50));
    mapped_note(a, 10, "/x/c");
    assert_string_equal(mapped_file(a + 9), "/x/c");
    assert_true(!mapped_file(a + 10) || strcmp(mapped_file(a + 10), "/x/c") != 0);
    mapped_forget(a);
    mapped_forget(b);
    for (int i = 0; i < 3000; i++) mapped_note(a + i % 100, 1, "/x/many"); /* more than there is room for */
    for (int i = 0; i < 3000; i++) mapped_forget(a + i % 100);
    assert_null(mapped_file(a));
}

static void err_is_one_line_and_never_overflows(void **state) {
    struct err err = ERR_INIT;
    char big[3000];
    memset(big, 'a', sizeof big - 1);
    big[sizeof big - 1] = '\0';
    err_set(&err, E_FAIL, "a\nb\033[31m");
    assert_string_equal(err.text, "a b [31m");
    err_set(&err, E_FAIL, "%s", big);
    for (int i = 0; i < 3; i++) err_wrap(&err, "%s", big);
    assert_int_equal(strlen(err.text), sizeof err.text - 1);
}

static void buf_keeps_its_ceiling(void **state) {
    struct buf b = BUF_INIT(10);
    buf_puts(&b, "12345");
    buf_printf(&b, "%d", 678);
    assert_string_equal(b.data, "12345678");
    buf_puts(&b, "abc");
    assert_true(b.full);
    assert_int_equal(b.n, 8);
    buf_putc(&b, 'x');
    assert_int_equal(b.n, 8);
    char *text = buf_take(&b);
    assert_string_equal(text, "12345678");
    assert_null(b.data);
    free(text);
}

static void sizes_overflow_is_seen(void **state) {
    size_t out = 7;
    assert_false(size_mul((size_t)1 << 60, 32, &out));
    assert_false(size_add((size_t)-1, 1, &out));
    assert_int_equal(out, 7);
    assert_true(size_mul(6, 7, &out));
    assert_int_equal(out, 42);
    assert_null(mem_try_zalloc((size_t)1 << 60, 32));
}

/* FIPS 180-2, appendix B. */
static void sha256_agrees_with_the_standard(void **state) {
    char hex[SHA256_HEX];
    struct sha256 *s = sha256_new();
    sha256_add(s, "abc", 3);
    sha256_finish(s, hex);
    assert_string_equal(hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

static void hash64_spreads(void **state) {
    enum { N = 100000, BUCKETS = 64 };
    int count[BUCKETS] = {0};
    for (uint64_t i = 0; i < N; i++) count[hash64_mix(1, i) % BUCKETS]++;
    for (int i = 0; i < BUCKETS; i++) assert_in_range(count[i], N / BUCKETS * 9 / 10, N / BUCKETS * 11 / 10);
    assert_true(hash64("abcdefgh", 8, 0) != hash64("abcdefgi", 8, 0));
    assert_true(hash64("a\0", 2, 0) != hash64("a", 1, 0));
}

static void utf8_refuses_what_the_standard_refuses(void **state) {
    assert_int_equal(utf8_valid_prefix("a\xc3\xa9\xe6\x9d\xb1\xf0\x9f\x98\x80", 10), 10);
    assert_int_equal(utf8_valid_prefix("ab\xc0\x80", 4), 2);         /* overlong */
    assert_int_equal(utf8_valid_prefix("\xed\xa0\x80", 3), 0);       /* surrogate */
    assert_int_equal(utf8_valid_prefix("\xf4\x90\x80\x80", 4), 0);   /* above U+10FFFF */
    assert_int_equal(utf8_valid_prefix("x\xe6\x9d", 3), 1);          /* cut off */
    assert_true(utf8_is_incomplete("\xe6\x9d", 2));
    assert_false(utf8_is_incomplete("\xe6\x41", 2));
}

/* As Python's decode("utf-8", "replace") does. */
static void utf8_repaired_is_what_python_makes_of_it(void **state) {
    static const char *const cases[][2] = {
        {"", ""},
        {"naïve 日本", "naïve 日本"},
        {"a\xff" "b", "a\ufffdb"},
        {"caf\xe9", "caf\ufffd"},
        {"\xe6\x97", "\ufffd"},
        {"\xed\xa0\x80x", "\ufffd\ufffd\ufffdx"},
        {"\xf0\x9f\x98 \xf0\x9f\x98\x80\x80", "\ufffd 😀\ufffd"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *repaired = utf8_repaired(cases[i][0]);
        assert_string_equal(repaired, cases[i][1]);
        free(repaired);
    }
}

static void an_error_is_one_line_of_utf8(void **state) {
    struct err err = ERR_INIT;
    err_set(&err, E_IO, "a\nb\x1b[0m caf\xe9 \xff.csv");
    assert_string_equal(err.text, "a b [0m caf? ?.csv");
    char long_text[2 * sizeof err.text];
    for (size_t i = 0; i + 3 < sizeof long_text; i += 3) memcpy(long_text + i, "€", 4);
    for (int shift = 0; shift < 3; shift++) {
        err_set(&err, E_IO, "%.*s%s", shift, "xx", long_text);
        assert_int_equal(utf8_valid_prefix(err.text, strlen(err.text)), strlen(err.text));
        assert_true(strlen(err.text) > sizeof err.text - 4);
    }
}

static void utf8_every_scalar_value_round_trips(void **state) {
    for (int32_t cp = 0; cp <= 0x10ffff; cp++) {
        if (cp >= 0xd800 && cp < 0xe000) continue;
        char s[4];
        size_t n = utf8_encode(cp, s), len;
        assert_int_equal(utf8_decode(s, n, &len), cp);
        assert_int_equal(len, n);
    }
}

static void suggest_finds_the_typo(void **state) {
    static const char *const words[] = {"text", "product", "id"};
    assert_string_equal(suggest("txt", words, 3), "text");
    assert_string_equal(suggest("prodcut", words, 3), "product");
    assert_null(suggest("weather", words, 3));
}

static void *put_thousand(void *arg) {
    for (size_t i = 1; i <= 1000; i++) mailbox_put(arg, (void *)i, -1);
    mailbox_close(arg);
    return NULL;
}

static void mailbox_keeps_order_and_ends(void **state) {
    struct mailbox *m = mailbox_new(3);
    pthread_t t;
    pthread_create(&t, NULL, put_thousand, m);
    for (size_t i = 1; i <= 1000; i++) assert_int_equal((size_t)mailbox_take(m, -1), i);
    assert_null(mailbox_take(m, -1));
    pthread_join(t, NULL);
    assert_false(mailbox_put(m, m, 0));
    mailbox_free(m);
}

enum { PIECES = 5000 };

struct counting {
    atomic_int next, n_members, done[PIECES];
};

static void *count(void *arg) {
    struct counting *c = arg;
    c->n_members++;
    for (int i; (i = c->next++) < PIECES;) c->done[i]++;
    return NULL;
}

static void a_team_does_each_piece_once(void **state) {
    static const int most[] = {0, 1, 3, 1000};
    static struct counting c;
    for (int i = 0; i < 4; i++) {
        memset(&c, 0, sizeof c);
        team_do(most[i], count, &c);
        for (int k = 0; k < PIECES; k++) assert_int_equal(c.done[k], 1);
        assert_true(c.n_members >= 1 && c.n_members <= 1 + (most[i] < TEAM_MAX ? most[i] : TEAM_MAX));
    }
    struct team nobody = {0};
    team_end(&nobody);
}

static void mailbox_waits_no_longer_than_told(void **state) {
    struct mailbox *m = mailbox_new(1);
    int64_t start = clock_mono_ns();
    assert_null(mailbox_take(m, 20));
    assert_true(mailbox_put(m, m, 0));
    assert_false(mailbox_put(m, m, 20));
    assert_in_range(clock_mono_ns() - start, 39000000, 2000000000);
    mailbox_take(m, 0);
    mailbox_free(m);
}

/* What log_warn puts on stderr; the caller's. */
static char *logged(const char *message, bool json) {
    char path[] = "/tmp/batchd-log-XXXXXX", *text;
    size_t n;
    struct err err = ERR_INIT;
    int old = dup(STDERR_FILENO), fd = mkstemp(path);
    assert_true(dup2(fd, STDERR_FILENO) >= 0);
    log_set_json(json);
    log_warn("%s", message);
    log_set_json(false);
    assert_true(dup2(old, STDERR_FILENO) >= 0);
    close(old);
    close(fd);
    assert_ok(file_read(path, 10000, &text, &n, &err), &err);
    unlink(path);
    return text;
}

static void a_message_is_one_harmless_line(void **state) {
    const char *message = "a\x1b[31m\"b\\\n\x7f \xc3\xa9 \xff \xe2\x82";
    char *text = logged(message, false);
    assert_string_equal(text, "batchd: warning: a [31m\"b\\   \xc3\xa9 \xff \xe2\x82\n");
    free(text);
    text = logged(message, true);
    json_error_t e;
    json_t *line = json_loads(text, 0, &e);
    if (!line) fail_msg("%s: %s", e.text, text);
    assert_string_equal(json_string_value(json_object_get(line, "level")), "warning");
    assert_string_equal(json_string_value(json_object_get(line, "message")),
                        "a\x1b[31m\"b\\\n\x7f \xc3\xa9 \xef\xbf\xbd \xef\xbf\xbd");
    json_decref(line);
    free(text);
}

static void a_new_file_has_the_rights_that_the_umask_leaves(void **state) {
    char dir[] = "/tmp/batchd-test-XXXXXX";
    struct err err = ERR_INIT;
    struct file_new *f, *g;
    struct stat st;
    assert_non_null(mkdtemp(dir));
    char *path = path_join(dir, "out");
    mode_t old = umask(027);
    assert_ok(file_new_open(&f, path, &err), &err);
    assert_ok(file_new_open(&g, path, &err), &err); /* two at a time have two names */
    umask(old);
    assert_ok(file_new_commit(f, &err), &err);
    file_new_abort(g);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0640);
    unlink(path);
    rmdir(dir);
    free(path);
}

static void put(const char *path, const char *text) {
    struct err err = ERR_INIT;
    struct file_new *f;
    assert_ok(file_new_open(&f, path, &err), &err);
    fputs(text, file_new_stream(f));
    assert_ok(file_new_commit(f, &err), &err);
}

static void a_link_stays_one_and_what_it_names_is_replaced(void **state) {
    char dir[] = "/tmp/batchd-test-XXXXXX", *text = NULL;
    struct err err = ERR_INIT;
    struct file_new *f;
    struct stat st;
    size_t n;
    assert_non_null(mkdtemp(dir));
    char *sub = path_join(dir, "sub"), *file = path_join(sub, "out"), *near = path_join(sub, "near"), *far = path_join(dir, "far"),
         *round = path_join(dir, "round");
    assert_int_equal(mkdir(sub, 0777), 0);
    assert_int_equal(symlink("out", near), 0);
    assert_int_equal(symlink("sub/near", far), 0);
    assert_int_equal(symlink("round", round), 0);
    put(far, "one"); /* names nothing yet */
    put(far, "two");
    assert_int_equal(lstat(far, &st), 0);
    assert_true(S_ISLNK(st.st_mode));
    assert_int_equal(lstat(near, &st), 0);
    assert_true(S_ISLNK(st.st_mode));
    assert_ok(file_read(file, 100, &text, &n, &err), &err);
    assert_string_equal(text, "two");
    assert_err(file_new_open(&f, round, &err), E_IO, "round", &err);
    free(text);
    char *all[] = {far, near, round, file};
    for (int i = 0; i < 4; i++) unlink(all[i]), free(all[i]);
    rmdir(sub);
    rmdir(dir);
    free(sub);
}

static void file_replaces_whole_or_not_at_all(void **state) {
    char dir[] = "/tmp/batchd-test-XXXXXX";
    assert_non_null(mkdtemp(dir));
    struct err err = ERR_INIT;
    char *path = path_join(dir, "out"), *text = NULL;
    size_t n;
    struct file_new *f;
    assert_err(file_read(path, 100, &text, &n, &err), E_NOT_FOUND, "cannot open", &err);
    assert_ok(file_new_open(&f, path, &err), &err);
    fputs("one", file_new_stream(f));
    file_new_abort(f);
    assert_int_equal(access(path, F_OK), -1);
    assert_ok(file_new_open(&f, path, &err), &err);
    fputs("two", file_new_stream(f));
    assert_ok(file_new_commit(f, &err), &err);
    assert_ok(file_read(path, 100, &text, &n, &err), &err);
    assert_string_equal(text, "two");
    free(text);
    assert_err(file_read(path, 2, &text, &n, &err), E_RANGE, "more than", &err);
    assert_err(file_read(dir, 100, &text, &n, &err), E_IO, "not a regular file", &err);
    unlink(path);
    rmdir(dir);
    free(path);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(mapped_files_are_found_by_address),
    cmocka_unit_test(err_wrap_puts_context_before),
    cmocka_unit_test(err_is_one_line_and_never_overflows),
    cmocka_unit_test(buf_keeps_its_ceiling),
    cmocka_unit_test(sizes_overflow_is_seen),
    cmocka_unit_test(sha256_agrees_with_the_standard),
    cmocka_unit_test(hash64_spreads),
    cmocka_unit_test(utf8_refuses_what_the_standard_refuses),
    cmocka_unit_test(utf8_repaired_is_what_python_makes_of_it),
    cmocka_unit_test(an_error_is_one_line_of_utf8),
    cmocka_unit_test(utf8_every_scalar_value_round_trips),
    cmocka_unit_test(suggest_finds_the_typo),
    cmocka_unit_test(mailbox_keeps_order_and_ends),
    cmocka_unit_test(mailbox_waits_no_longer_than_told),
    cmocka_unit_test(a_team_does_each_piece_once),
    cmocka_unit_test(a_link_stays_one_and_what_it_names_is_replaced),
        cmocka_unit_test(file_replaces_whole_or_not_at_all),
    cmocka_unit_test(a_new_file_has_the_rights_that_the_umask_leaves),
    cmocka_unit_test(a_message_is_one_harmless_line),
};
UNIT_MAIN(tests)
