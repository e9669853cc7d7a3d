/* test_stops.c - stop strings in a text that grows. */
#include "tests/unit.h"

#include "engine/sample/stops.h"

static size_t find(const char *text, size_t from, size_t n_stop, const char *const *stop) {
    return stops_find(text, strlen(text), from, (char *const *)stop, n_stop);
}

static void a_text_without_stop_strings_goes_on(void **state) {
    const char *stop[] = {"END", ""};
    assert_true(find("some text EN", 0, 2, stop) == SIZE_MAX);
    assert_true(find("", 0, 2, stop) == SIZE_MAX);
    assert_true(find("text", 0, 0, stop) == SIZE_MAX);
}

static void the_text_ends_before_the_stop_string(void **state) {
    const char *stop[] = {"END"};
    assert_int_equal(find("abcEND", 0, 1, stop), 3);
    assert_int_equal(find("END", 0, 1, stop), 0);
    assert_int_equal(find("aENDbEND", 0, 1, stop), 1);
}

static void the_first_to_be_complete_wins(void **state) {
    const char *stop[] = {"d", "bcd", "cdef"};
    assert_int_equal(find("abcdef", 0, 3, stop), 1); /* both end at d: the longer */
    const char *inner[] = {"abcd", "c"};
    assert_int_equal(find("abcd", 0, 2, inner), 2);
}

/* However the text is cut into pieces, the answer is that of the whole. */
static void pieces_do_not_matter(void **state) {
    const char *stop[] = {"aab", "ba", "\xe2\x82\xac"};
    unsigned seed = 7;
    for (int round = 0; round < 2000; round++) {
        char text[41] = {0};
        for (int i = 0; i < 37; i++) {
            seed = seed * 1103515245u + 12345u;
            text[i] = "aabcc"[seed >> 16 & 3];
        }
        if (round % 3 == 0) memcpy(text + 30, "\xe2\x82\xac", 3);
        size_t whole = find(text, 0, 3, stop), n = strlen(text), pieces = SIZE_MAX;
        for (size_t done = 0; done < n && pieces == SIZE_MAX;) {
            seed = seed * 1103515245u + 12345u;
            size_t next = done + 1 + (seed >> 16) % 4;
            if (next > n) next = n;
            pieces = stops_find(text, next, done, (char *const *)stop, 3);
            done = next;
        }
        assert_true(whole == pieces);
    }
}

/* Text before `from` is left alone, unless the string ends at or after it. */
static void searched_text_is_not_searched_again(void **state) {
    const char *stop[] = {"END"};
    assert_true(find("aENDb", 4, 1, stop) == SIZE_MAX);
    assert_int_equal(find("aENDb", 3, 1, stop), 1);
    assert_int_equal(find("aENDbEND", 4, 1, stop), 5);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(a_text_without_stop_strings_goes_on),
    cmocka_unit_test(the_text_ends_before_the_stop_string),
    cmocka_unit_test(the_first_to_be_complete_wins),
    cmocka_unit_test(pieces_do_not_matter),
    cmocka_unit_test(searched_text_is_not_searched_again),
};
UNIT_MAIN(tests)
