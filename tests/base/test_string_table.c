/* test_string_table.c - the string table against a plain list, under random adds and removes. */
#include "wb_memory.h"
#include "wb_random.h"
#include "wb_string_table.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
// clang-format off
#include <cmocka.h>
// clang-format on

enum { NAMES = 400, STEPS = 20000 };

static size_t name_of(uint32_t i, char *text) {
    return (size_t)snprintf(text, 32, "rid-%u", i * 7919u);
}

static void check_all(const wb_string_table *table, const uint64_t *value, const bool *present) {
    char text[32];
    size_t count = 0;
    for (uint32_t i = 0; i < NAMES; i++) {
        uint64_t found = 0;
        size_t length = name_of(i, text);
        assert_int_equal(wb_string_table_find(table, text, length, &found), present[i]);
        if (present[i]) assert_int_equal(found, value[i]);
        count += present[i];
    }
    assert_int_equal(table->count, count);
}

/* Adds and removes in random order keep every string findable: a hole that a removal leaves must not hide
 * what stands behind. */
static void test_adds_and_removes(void **state) {
    (void)state;
    wb_string_table table = {0};
    static uint64_t value[NAMES];
    static bool present[NAMES];
    char text[32];
    uint64_t random = 11;
    print_message("seed 11\n");
    for (int step = 0; step < STEPS; step++) {
        uint32_t i = wb_random_below(&random, NAMES);
        size_t length = name_of(i, text);
        if (present[i]) {
            wb_string_table_remove(&table, text, length);
        } else {
            const char *own = NULL;
            value[i] = wb_random(&random);
            assert_int_equal(wb_string_table_add(&table, text, length, value[i], &own), WB_OK);
            assert_string_equal(own, text);
            assert_ptr_not_equal(own, text);
        }
        present[i] = !present[i];
        if (step % 100 == 0) check_all(&table, value, present);
    }
    check_all(&table, value, present);
    wb_string_table_remove(&table, "never there", 11);
    check_all(&table, value, present);
    wb_string_table_free(&table);
    uint64_t found;
    assert_false(wb_string_table_find(&table, "x", 1, &found));
}

static void test_prefixes_are_other_strings(void **state) {
    (void)state;
    wb_string_table table = {0};
    uint64_t found = 0;
    assert_int_equal(wb_string_table_add(&table, "abcdef", 3, 1, NULL), WB_OK);
    assert_false(wb_string_table_find(&table, "abcd", 4, &found));
    assert_false(wb_string_table_find(&table, "ab", 2, &found));
    assert_true(wb_string_table_find(&table, "abc", 3, &found));
    assert_int_equal(found, 1);
    assert_int_equal(wb_string_table_add(&table, "", 0, 2, NULL), WB_OK);
    assert_true(wb_string_table_find(&table, "", 0, &found));
    assert_int_equal(found, 2);
    wb_string_table_free(&table);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_adds_and_removes),
                                       cmocka_unit_test(test_prefixes_are_other_strings)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
