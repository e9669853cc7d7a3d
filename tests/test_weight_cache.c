/* test_weight_cache.c - weights that were quantized on load, kept on disk and read again:
 * nothing that is computed changes, damage is noticed, and the folder keeps to its limit. */
#include "tests/aid_model.h"

#include "base/file.h"
#include "base/log.h"
#include "base/mem.h"

#include <dirent.h>
#include <fcntl.h>
#include <jansson.h>
#include <sys/stat.h>
#include <unistd.h>

static char root[] = "/tmp/batchd-cache-XXXXXX";
static char folder[100], model[100]; /* of the cache; of a model whose files may be changed */

enum { N = 20 };

static void copy(const char *from, const char *to) {
    char *data;
    size_t n;
    struct err err = ERR_INIT;
    assert_ok(file_read(from, 1 << 24, &data, &n, &err), &err);
    FILE *f = fopen(to, "w");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
    free(data);
}

static void copy_model(const char *name) {
    static const char *const files[] = {"config.json", "model.safetensors"};
    for (int i = 0; i < 2; i++) {
        char from[200], to[200];
        snprintf(from, sizeof from, "tests/models/%s/%s", name, files[i]);
        snprintf(to, sizeof to, "%s/%s", model, files[i]);
        copy(from, to);
    }
}

/* The logits of N ids, the caller's; the rig is closed. */
static float *take_logits(struct rig *r) {
    int32_t ids[N];
    for (int32_t i = 0; i < N; i++) ids[i] = (7 * i + 3) % 60;
    float *logits = mem_zalloc(N * (size_t)r->vocab, sizeof *logits);
    rig_logits(r, 0, ids, N, 16, 0, logits);
    assert_true(N * (size_t)r->vocab >= 60);
    rig_close(r);
    return logits;
}

static float *logits_with(const char *dir, const char *quantization, enum dtype dtype, int64_t limit) {
    struct rig r;
    rig_open_cached(&r, dir, &(struct rig_options){dtype, 1, false}, quantization,
                    &(struct weight_cache_options){folder, limit});
    return take_logits(&r);
}

static bool same(const float *a, const float *b) {
    return memcmp(a, b, N * 60 * sizeof *a) == 0;
}

/* How many files of weights there are; *path: of one of them, if asked. */
static int files(char *path, size_t size) {
    int n = 0;
    struct dirent *d;
    DIR *f = opendir(folder);
    while (f && (d = readdir(f))) {
        if (*d->d_name == '.') continue;
        assert_int_equal(strncmp(d->d_name, "weights-", 8), 0);
        if (path) snprintf(path, size, "%s/%s", folder, d->d_name);
        n++;
    }
    if (f) closedir(f);
    return n;
}

static void empty_folder(void) {
    char path[400];
    while (files(path, sizeof path) > 0) assert_int_equal(unlink(path), 0);
}

/* Zeros in place of a layer's quantized numbers, while size, time and inode stay. */
static void wipe_numbers(void) {
    char path[200], *data;
    size_t n;
    struct stat st;
    struct err err = ERR_INIT;
    struct checkpoint *c;
    snprintf(path, sizeof path, "%s/model.safetensors", model);
    assert_int_equal(stat(path, &st), 0);
    assert_ok(checkpoint_open_file(&c, path, &err), &err);
    const struct checkpoint_tensor *t = checkpoint_find(c, "model.layers.1.mlp.up_proj.weight");
    assert_ok(file_read(path, 1 << 24, &data, &n, &err), &err);
    char *at = memmem(data, n, t->data, t->bytes);
    assert_non_null(at);
    memset(at, 0, t->bytes);
    int fd = open(path, O_WRONLY);
    assert_int_equal(pwrite(fd, at, t->bytes, at - data), t->bytes);
    checkpoint_close(c);
    struct timespec times[2] = {st.st_atim, st.st_mtim};
    assert_int_equal(futimens(fd, times), 0);
    close(fd);
    free(data);
}

static void check_second_start(const char *name, const char *kind, enum dtype dtype) {
    copy_model(name);
    empty_folder();
    float *plain = logits_with(model, kind, dtype, 0), *first = logits_with(model, kind, dtype, 1 << 30);
    assert_int_equal(files(NULL, 0), 1);
    float *second = logits_with(model, kind, dtype, 1 << 30);
    assert_int_equal(files(NULL, 0), 1);
    assert_true(same(plain, first));
    if (!same(first, second)) fail_msg("%s in %s: other logits from the cache", name, kind);
    free(plain);
    free(first);
    free(second);
}

static void a_second_start_computes_the_same(void **state) {
    static const char *const kinds[] = {"int8", "fp4", "nf4", "nf4-dq", "fp8", "nf4 except o_proj"};
    for (int i = 0; i < 6; i++) check_second_start("tiny-llama3", kinds[i], i % 2 ? DTYPE_F32 : DTYPE_BF16);
    check_second_start("tiny-falcon-40b", "nf4-dq", DTYPE_F32); /* rows of a tensor in several places */
    check_second_start("tiny-falcon-40b", "int8", DTYPE_F32);
    check_second_start("tiny-qwen2", "nf4", DTYPE_F32);         /* a bias */
    check_second_start("tiny-mixtral", "nf4", DTYPE_F32);
    check_second_start("tiny-mixtral-fused", "nf4", DTYPE_F32); /* experts in one tensor */
}

static void the_checkpoints_numbers_are_not_needed_again(void **state) {
    copy_model("tiny-llama3");
    empty_folder();
    float *first = logits_with(model, "nf4", DTYPE_F32, 1 << 30);
    wipe_numbers();
    float *fresh = logits_with(model, "nf4", DTYPE_F32, 0), *cached = logits_with(model, "nf4", DTYPE_F32, 1 << 30);
    assert_true(same(first, cached));
    assert_false(same(first, fresh));
    free(first);
    free(fresh);
    free(cached);
}

/* The device may choose another dtype than the one that was expected when the file was looked for. */
static void a_file_is_found_before_the_dtype_is_known(void **state) {
    static const enum dtype dtypes[] = {DTYPE_F32, DTYPE_BF16};
    copy_model("tiny-llama3");
    empty_folder();
    for (int i = 0; i < 2; i++) {
        float *first = logits_with(model, "nf4", dtypes[i], 1 << 30);
        assert_int_equal(files(NULL, 0), i + 1);
        free(first);
    }
    float *want[] = {logits_with(model, "nf4", DTYPE_F32, 1 << 30), logits_with(model, "nf4", DTYPE_BF16, 1 << 30)};
    assert_false(same(want[0], want[1]));
    wipe_numbers(); /* the files alone have them */
    for (int i = 0; i < 4; i++) {
        struct rig r;
        rig_open_begun(&r, model, &(struct rig_options){dtypes[i % 2], 1, false}, dtypes[i / 2], "nf4",
                       &(struct weight_cache_options){folder, 1 << 30});
        float *got = take_logits(&r);
        assert_true(same(want[i % 2], got));
        free(got);
    }
    assert_int_equal(files(NULL, 0), 2);
    free(want[0]);
    free(want[1]);
}

/* Nobody opens the model then: a device that is not there, say. */
static void a_folder_that_was_begun_can_be_closed(void **state) {
    struct model_folder *f;
    struct model_options options = {.dir = model, .dtype = DTYPE_F32, .cache = {folder, 1 << 30}};
    struct err err = ERR_INIT;
    copy_model("demo");
    empty_folder();
    free(logits_with(model, "int8", DTYPE_F32, 1 << 30));
    assert_ok(quantization_parse(&options.quantization, "int8", &err), &err);
    assert_ok(model_folder_open(&f, model, false, &err), &err);
    model_folder_begin(f, &options);
    model_folder_close(f);
    assert_int_equal(files(NULL, 0), 1);
}

/* Codes are worth something else in blocks of another size, of which there are as many. */
static void other_blocks_make_another_file(void **state) {
    char path[300];
    copy_model("tiny-fp8-block");
    empty_folder();
    float *first = logits_with(model, "nf4", DTYPE_F32, 1 << 30);
    snprintf(path, sizeof path, "%s/config.json", model);
    json_t *config = json_load_file(path, 0, NULL);
    json_t *block = json_object_get(json_object_get(config, "quantization_config"), "weight_block_size");
    assert_int_equal(json_array_set_new(block, 1, json_integer(25)), 0);
    assert_int_equal(json_dump_file(config, path, 0), 0);
    json_decref(config);
    float *fresh = logits_with(model, "nf4", DTYPE_F32, 0), *second = logits_with(model, "nf4", DTYPE_F32, 1 << 30);
    assert_int_equal(files(NULL, 0), 2);
    assert_true(same(fresh, second));
    assert_false(same(first, second));
    free(first);
    free(fresh);
    free(second);
}

/* What the checkpoint has in blocks already is not kept once more. */
static void weights_in_blocks_are_read_from_the_checkpoint(void **state) {
    copy_model("tiny-fp8-block");
    empty_folder();
    float *first = logits_with(model, "nf4 except o_proj", DTYPE_F32, 1 << 30);
    float *second = logits_with(model, "nf4 except o_proj", DTYPE_F32, 1 << 30);
    assert_true(same(first, second));
    assert_int_equal(files(NULL, 0), 1);
    free(first);
    free(second);
}

static void what_makes_other_weights_makes_another_file(void **state) {
    char path[200];
    struct timespec times[2] = {{.tv_sec = 1}, {.tv_sec = 1000000}};
    copy_model("tiny-llama3");
    empty_folder();
    free(logits_with(model, "nf4", DTYPE_F32, 1 << 30));
    free(logits_with(model, "fp4", DTYPE_F32, 1 << 30));
    assert_int_equal(files(NULL, 0), 2);
    free(logits_with(model, "nf4 except o_proj", DTYPE_F32, 1 << 30));
    free(logits_with(model, "nf4", DTYPE_BF16, 1 << 30));
    assert_int_equal(files(NULL, 0), 4);
    snprintf(path, sizeof path, "%s/model.safetensors", model);
    assert_int_equal(utimensat(AT_FDCWD, path, times, 0), 0);
    free(logits_with(model, "nf4", DTYPE_F32, 1 << 30));
    assert_int_equal(files(NULL, 0), 5);
    free(logits_with(model, NULL, DTYPE_F32, 1 << 30));
    assert_int_equal(files(NULL, 0), 5);
}

/* At `at` another byte, or the end. */
static void damage(const char *path, off_t at, bool cut) {
    uint8_t byte;
    int fd = open(path, O_RDWR);
    assert_int_equal(pread(fd, &byte, 1, at), 1);
    byte ^= 0x40;
    if (cut) assert_int_equal(ftruncate(fd, at), 0);
    else assert_int_equal(pwrite(fd, &byte, 1, at), 1);
    close(fd);
}

static void a_damaged_file_is_written_anew(void **state) {
    char path[400], *whole, *again;
    size_t n, n_again;
    struct err err = ERR_INIT;
    copy_model("tiny-llama3");
    empty_folder();
    float *want = logits_with(model, "nf4-dq", DTYPE_F32, 1 << 30);
    assert_int_equal(files(path, sizeof path), 1);
    assert_ok(file_read(path, 1 << 24, &whole, &n, &err), &err);
    log_set_level(LOG_ERROR); /* it warns each time */
    for (size_t at = 0, i = 0; at < n; at += i < 8 ? 21 : n / 13, i++) {
        damage(path, (off_t)at, i % 5 == 4);
        float *got = logits_with(model, "nf4-dq", DTYPE_F32, 1 << 30);
        assert_true(same(want, got));
        assert_ok(file_read(path, 1 << 24, &again, &n_again, &err), &err);
        assert_int_equal(n, n_again);
        assert_memory_equal(whole, again, n);
        free(again);
        free(got);
    }
    free(whole);
    free(want);
    log_set_level(LOG_INFO);
}

/* A large file goes to the device while threads check it: what was loaded is thrown away. */
static void a_large_file_is_checked_while_it_is_loaded(void **state) {
    char path[400];
    struct stat st;
    copy_model("demo");
    empty_folder();
    float *want = logits_with(model, "int8", DTYPE_F32, 1 << 30);
    assert_int_equal(files(path, sizeof path), 1);
    assert_int_equal(stat(path, &st), 0);
    assert_true(st.st_size > 2 << 20);
    log_set_level(LOG_ERROR); /* it warns each time */
    for (int i = 1; i < 4; i++) {
        damage(path, st.st_size * i / 4, false);
        float *got = logits_with(model, "int8", DTYPE_F32, 1 << 30);
        assert_true(same(want, got));
        free(got);
    }
    log_set_level(LOG_INFO);
    float *again = logits_with(model, "int8", DTYPE_F32, 1 << 30);
    assert_true(same(want, again));
    free(again);
    free(want);
}

static void what_was_used_longest_ago_makes_room(void **state) {
    char path[400];
    struct stat st;
    copy_model("tiny-llama3");
    empty_folder();
    free(logits_with(model, "nf4", DTYPE_F32, 1 << 30));
    assert_int_equal(files(path, sizeof path), 1);
    assert_int_equal(stat(path, &st), 0);
    char oldest[400];
    strcpy(oldest, path);
    struct timespec times[2] = {{.tv_sec = 1}, {.tv_sec = 1000000}};
    assert_int_equal(utimensat(AT_FDCWD, oldest, times, 0), 0);
    free(logits_with(model, "nf4 except layers.1", DTYPE_F32, 1 << 30)); /* smaller */
    assert_int_equal(files(NULL, 0), 2);
    free(logits_with(model, "nf4 except layers.0", DTYPE_F32, 2 * st.st_size - 1));
    assert_int_equal(files(NULL, 0), 2);
    assert_int_equal(access(oldest, F_OK), -1);
    free(logits_with(model, "nf4", DTYPE_F32, st.st_size - 1)); /* would never fit */
    assert_int_equal(files(NULL, 0), 2);
    free(logits_with(model, "nf4", DTYPE_F32, st.st_size)); /* alone it does */
    assert_int_equal(files(path, sizeof path), 1);
    assert_string_equal(path, oldest);
    assert_int_equal(utimensat(AT_FDCWD, oldest, times, 0), 0);
    free(logits_with(model, "nf4", DTYPE_F32, st.st_size)); /* used again */
    assert_int_equal(stat(oldest, &st), 0);
    assert_true(st.st_mtim.tv_sec > 1000000);
}

static int put(void *arg, const void *data, size_t n, struct err *err) {
    char **at = arg;
    memcpy(*at, data, n);
    *at += n;
    return 0;
}

/* An image with some bytes changed is taken or refused, and never read beyond its end. */
static void changed_images_do_no_harm(void **state) {
    enum { ROWS = 24, K = 96 };
    static float numbers[ROWS * K];
    struct dev *dev;
    struct err err = ERR_INIT;
    uint64_t random = 7;
    assert_ok(dev_open(&dev, &(struct dev_options){.kind = "cpu", .threads = 1}, &err), &err);
    for (int i = 0; i < ROWS * K; i++) numbers[i] = (float)(i * 37 % 101 - 50);
    struct tensor host = tensor_2d(numbers, DTYPE_F32, ROWS, K);
    static const struct weight_run runs[] = {{8, 0, 8}, {0, 8, 8}, {16, 16, 8}};
    static const enum quant_kind kinds[] = {QUANT_INT8, QUANT_NF4, QUANT_NF4_DQ};
    for (int i = 0; i < 3000; i++) {
        struct weight *w = weight_new_quantized(dev, ROWS, K, DTYPE_F32, kinds[i % 3]);
        weight_load_runs(dev, w, &host, runs, 3);
        size_t n = weight_image_bytes(w);
        char *image = aligned_alloc(64, n), *at = image;
        assert_ok(weight_image_write(dev, w, put, &at, &err), &err);
        assert_ptr_equal(at, image + n);
        for (int j = 0; i >= 3 && j < 1 + i % 4; j++) {
            random = random * 6364136223846793005u + 1442695040888963407u;
            image[(random >> 33) % (i % 2 ? n : 500)] = (char)(random >> 25);
        }
        struct weight *other = weight_new_quantized(dev, ROWS, K, DTYPE_F32, kinds[i % 3]);
        bool taken = weight_image_read(dev, other, image, i % 7 == 6 ? n - 64 : n);
        assert_true(i >= 3 || taken);
        if (i < 3) assert_int_equal(weight_bytes(w), weight_bytes(other));
        assert_ok(dev_sync(dev, &err), &err);
        weight_free(dev, other);
        weight_free(dev, w);
        free(image);
    }
    dev_close(dev);
}

/* Counts that come to nothing together, and places that no sum of which fits 64 bits. */
static void impossible_counts_are_refused(void **state) {
    enum { ROWS = 24, K = 96, HEAD = 40, FROM_ROW = HEAD + 16, N_ABSMAX = HEAD + 40, N_ABSMAX2 = HEAD + 48 };
    static float numbers[ROWS * K];
    static const struct {
        enum quant_kind kind;
        int at[2];
        int64_t is[2];
    } cases[] = {
        {QUANT_INT8, {N_ABSMAX, N_ABSMAX2}, {1 << 20, -(1 << 20)}},
        {QUANT_NF4, {N_ABSMAX2, N_ABSMAX2 + 8}, {1 << 20, -(1 << 20)}},
        {QUANT_NF4, {FROM_ROW, FROM_ROW}, {INT64_MAX, INT64_MAX}},
        {QUANT_NF4, {FROM_ROW, FROM_ROW}, {INT64_MIN, INT64_MIN}},
    };
    struct dev *dev;
    struct err err = ERR_INIT;
    assert_ok(dev_open(&dev, &(struct dev_options){.kind = "cpu", .threads = 1}, &err), &err);
    struct tensor host = tensor_2d(numbers, DTYPE_F32, ROWS, K);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct weight *w = weight_new_quantized(dev, ROWS, K, DTYPE_F32, cases[i].kind);
        weight_load(dev, w, 0, &host);
        size_t n = weight_image_bytes(w);
        char *image = aligned_alloc(64, n), *at = image;
        assert_ok(weight_image_write(dev, w, put, &at, &err), &err);
        for (int j = 0; j < 2; j++) memcpy(image + cases[i].at[j], &cases[i].is[j], 8);
        struct weight *other = weight_new_quantized(dev, ROWS, K, DTYPE_F32, cases[i].kind);
        assert_false(weight_image_read(dev, other, image, n));
        weight_free(dev, other);
        weight_free(dev, w);
        free(image);
    }
    assert_ok(dev_sync(dev, &err), &err);
    dev_close(dev);
}

static int make_folders(void **state) {
    if (!mkdtemp(root)) return -1;
    snprintf(folder, sizeof folder, "%s/a/cache", root); /* made when it is needed */
    snprintf(model, sizeof model, "%s/model", root);
    return mkdir(model, 0700);
}

static int remove_folders(void **state) {
    static const char *const names[] = {"model/config.json", "model/model.safetensors", "model", "a/cache", "a", ""};
    empty_folder();
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char path[200];
        snprintf(path, sizeof path, "%s/%s", root, names[i]);
        remove(path);
    }
    return 0;
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(a_second_start_computes_the_same),
    cmocka_unit_test(the_checkpoints_numbers_are_not_needed_again),
    cmocka_unit_test(a_file_is_found_before_the_dtype_is_known),
    cmocka_unit_test(a_folder_that_was_begun_can_be_closed),
    cmocka_unit_test(what_makes_other_weights_makes_another_file),
    cmocka_unit_test(other_blocks_make_another_file),
    cmocka_unit_test(weights_in_blocks_are_read_from_the_checkpoint),
    cmocka_unit_test(a_damaged_file_is_written_anew),
    cmocka_unit_test(a_large_file_is_checked_while_it_is_loaded),
    cmocka_unit_test(what_was_used_longest_ago_makes_room),
    cmocka_unit_test(changed_images_do_no_harm),
    cmocka_unit_test(impossible_counts_are_refused),
};

int main(int argc, char **argv) {
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, make_folders, remove_folders);
}
