/* test_base.c - status and messages, memory and its owners, hashes and random numbers against known
 * values, text. */
#include "hash_lanes.h"
#include "wb_check.h"
#include "wb_hash.h"
#include "wb_isa.h"
#include "wb_memory.h"
#include "wb_options.h"
#include "wb_random.h"
#include "wb_text.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
// clang-format off
#include <cmocka.h>
// clang-format on

static void test_status(void **state) {
    (void)state;
    assert_string_equal(wb_status_string(WB_OK), "ok");
    assert_string_equal(wb_status_string(WB_DEVICE), "device error");
    assert_string_equal(wb_status_string((wb_status)99), "unknown status");
    assert_int_equal(wb_fail(WB_IO, "%s: byte %d", "file", 7), WB_IO);
    assert_string_equal(wb_error_message(), "file: byte 7");
    assert_int_equal(wb_fail_context(WB_PEER, "rank %d", 3), WB_PEER);
    assert_string_equal(wb_error_message(), "rank 3: file: byte 7");
    assert_int_equal(wb_fail(WB_IO, "again: %s", wb_error_message()), WB_IO);
    assert_string_equal(wb_error_message(), "again: rank 3: file: byte 7");
    char text[3000];
    memset(text, 'x', sizeof text);
    text[sizeof text - 1] = '\0';
    wb_fail(WB_IO, "%s", text);
    assert_int_equal(strlen(wb_error_message()), 1023);
    wb_fail_context(WB_IO, "before");
    assert_int_equal(strlen(wb_error_message()), 1023);
    assert_memory_equal(wb_error_message(), "before: xxx", 11);
}

static void test_dtype(void **state) {
    (void)state;
    assert_int_equal(wb_dtype_size(WB_BF16), 2);
    assert_string_equal(wb_dtype_name(WB_BF16), "bf16");
    assert_int_equal(wb_dtype_size((wb_dtype)99), 0);
}

/* ---- memory ---------------------------------------------------------------------------------- */

static void test_alloc(void **state) {
    (void)state;
    uint64_t *block = NULL;
    assert_int_equal(WB_NEW(block, 0, "nothing"), WB_OK);
    assert_non_null(block);
    free(block);
    assert_int_equal(WB_NEW(block, SIZE_MAX / 4, "too much"), WB_OUT_OF_MEMORY);
    assert_null(block);
    assert_non_null(strstr(wb_error_message(), "too much"));
}

static void test_grow_keeps_what_is_there(void **state) {
    (void)state;
    uint32_t *array = NULL;
    size_t capacity = 0, moves = 0, none = 0;
    assert_int_equal(WB_GROW(array, none, &capacity, "array"), WB_OK);
    assert_non_null(array);
    for (uint32_t n = 0; n < 5000; n++) {
        size_t before = capacity;
        assert_int_equal(WB_GROW(array, n + 1u, &capacity, "array"), WB_OK);
        assert_true(capacity > n);
        moves += capacity != before;
        array[n] = n;
    }
    assert_true(moves < 10); /* doubling */
    for (uint32_t n = 0; n < 5000; n++) assert_int_equal(array[n], n);
    uint32_t *same = array;
    size_t before = capacity;
    assert_int_equal(WB_GROW(array, SIZE_MAX / 2, &capacity, "too much"), WB_OUT_OF_MEMORY);
    assert_ptr_equal(array, same);
    assert_int_equal(capacity, before);
    free(array);
}

/* Leaks and double frees are for the sanitizer and the tests that fail each allocation. */
static void test_owner(void **state) {
    (void)state;
    wb_owner owner = {0};
    uint64_t *a = NULL;
    long double *b = NULL;
    assert_int_equal(WB_OWN(&owner, a, 3, "a"), WB_OK);
    assert_int_equal(WB_OWN(&owner, b, 0, "b"), WB_OK);
    assert_non_null(b);
    assert_int_equal((uintptr_t)b % _Alignof(max_align_t), 0);
    for (int i = 0; i < 3; i++) assert_int_equal(a[i], 0);
    assert_int_equal(WB_OWN(&owner, a, SIZE_MAX / 8, "too much"), WB_OUT_OF_MEMORY);

    wb_host_buffer first = {0}, second = {0};
    assert_int_equal(wb_host_reserve(&owner, &first, 0, 4, "buffer"), WB_OK);
    assert_non_null(first.data);
    assert_int_equal(wb_host_reserve(&owner, &first, 250, 4, "buffer"), WB_OK);
    assert_int_equal(wb_host_reserve(&owner, &second, 8, 1, "buffer"), WB_OK);
    void *data = first.data;
    assert_int_equal(wb_host_reserve(&owner, &first, 10, 4, "buffer"), WB_OK);
    assert_ptr_equal(first.data, data);
    assert_int_equal(first.bytes, 1000);
    assert_int_equal(wb_host_reserve(&owner, &first, SIZE_MAX, 4, "buffer"), WB_OUT_OF_MEMORY);
    assert_ptr_equal(first.data, data);
    assert_int_equal(wb_host_reserve(&owner, &first, 5000, 4, "buffer"),
                     WB_OK); /* from the middle of the list */
    wb_owner_close(&owner);
    wb_owner_close(&owner);
}

/* ---- numbers --------------------------------------------------------------------------------- */

/* Values of xxHash's own test vectors and of Vigna's splitmix64.c. */
static void test_known_values(void **state) {
    (void)state;
    assert_int_equal(wb_hash64("", 0), UINT64_C(0x2d06800538d394c2));
    char hex[33];
    wb_hash128_hex("", 0, hex);
    assert_string_equal(hex, "99aa06d3014798d86001c324468d497f");
    uint64_t splitmix_state = 1234567; /* its n-th output is the mix of state + (n - 1) steps */
    assert_int_equal(wb_mix64(splitmix_state), UINT64_C(6457827717110365317));
    assert_int_equal(wb_mix64(splitmix_state + WB_RANDOM_STEP), UINT64_C(3203168211198807973));
}

/* Each piece by another instruction set than the one before: they share the state too. */
static void test_hash_of_every_instruction_set(void **state) {
    (void)state;
    static const wb_hash_lanes *const lanes[WB_ISAS] = WB_ISA_EACH(wb_hash_lanes);
    const int isas = (int)wb_isa_of_machine() + 1;
    static uint8_t bytes[20000];
    uint64_t random = 9;
    for (size_t i = 0; i < sizeof bytes; i++) bytes[i] = (uint8_t)wb_random(&random);
    for (int i = 0; i < 300; i++) {
        size_t begin = wb_random(&random) % 64, size = wb_random(&random) % (sizeof bytes - 64), at = 0;
        uint64_t expected = lanes[0]->once(bytes + begin, size);
        assert_int_equal(wb_hash64(bytes + begin, size), expected);
        for (int isa = 0; isa < isas; isa++)
            assert_int_equal(lanes[isa]->once(bytes + begin, size), expected);
        wb_hash hash;
        wb_hash_start(&hash);
        for (int isa = i; at < size; isa++) {
            size_t n = 1 + wb_random(&random) % 3000;
            if (n > size - at) n = size - at;
            lanes[isa % isas]->add(hash.state, bytes + begin + at, n);
            at += n;
        }
        assert_int_equal(wb_hash_value(&hash), expected);
    }
}

static void test_hash_in_pieces(void **state) {
    (void)state;
    uint8_t bytes[3000];
    uint64_t random = 1;
    for (size_t i = 0; i < sizeof bytes; i++) bytes[i] = (uint8_t)wb_random(&random);
    for (int round = 0; round < 200; round++) {
        size_t size = wb_random_below(&random, sizeof bytes + 1);
        wb_hash hash;
        wb_hash_start(&hash);
        for (size_t at = 0, n; at < size; at += n) {
            n = 1 + wb_random_below(&random, (uint32_t)(size - at));
            wb_hash_add(&hash, bytes + at, n);
        }
        assert_int_equal(wb_hash_value(&hash), wb_hash64(bytes, size));
        assert_int_equal(wb_hash64_seeded(bytes, size, 0), wb_hash64(bytes, size));
        assert_int_not_equal(wb_hash64_seeded(bytes, size, 1), wb_hash64(bytes, size));
    }
}

static void test_random(void **state) {
    (void)state;
    uint64_t stream = 77, again = 77;
    uint32_t seen[7] = {0};
    for (int i = 0; i < 7000; i++) {
        uint32_t x = wb_random_below(&stream, 7);
        assert_true(x < 7);
        seen[x]++;
        assert_int_equal(wb_random_below(&again, 7), x);
    }
    for (int i = 0; i < 7; i++) assert_in_range(seen[i], 850, 1150); /* 1000 +- 5 standard deviations */
    assert_true(wb_random_unit(0) == 0);
    assert_true(wb_random_unit(UINT64_MAX) < 1);
    assert_int_not_equal(wb_random_at(3, 4), wb_random_at(4, 3));
}

/* Sampled tokens and searches are made of these numbers: they never change. Computed apart from the
 * library, by the rule in wb_random.h. */
static void test_random_known_values(void **state) {
    (void)state;
    uint64_t stream = 77;
    assert_int_equal(wb_random(&stream), UINT64_C(0x6258cbe07c1ff081));
    assert_int_equal(wb_random(&stream), UINT64_C(0x5709ba31dfe2649c));
    assert_int_equal(wb_random(&stream), UINT64_C(0x8795cc503eda4f23));
    assert_int_equal(stream, 80);
    stream = 77;
    static const uint32_t below[] = {384, 339, 529, 740};
    for (int i = 0; i < 4; i++) assert_int_equal(wb_random_below(&stream, 1000), below[i]);
    assert_int_equal(wb_random_at(3, 4), UINT64_C(0xcbee8b904eceac0c));
    assert_int_equal(wb_random_at(0, 0), UINT64_C(0xa706dd2f4d197e6f));
}

/* What two versions of a library know: the later one has a field more. */
typedef struct early_options {
    size_t size;
    uint32_t a, b;
} early_options;
typedef struct late_options {
    size_t size;
    uint32_t a, b;
    uint64_t c;
} late_options;

static void test_options_of_other_versions(void **state) {
    (void)state;
    const early_options early_defaults = {sizeof early_defaults, 1, 2};
    const late_options late_defaults = {sizeof late_defaults, 1, 2, 3};
    early_options early;
    wb_options_init(&early, sizeof early, &late_defaults, sizeof late_defaults);
    assert_int_equal(early.size, sizeof early);
    early.b = 20;
    late_options own = late_defaults; /* a later library serves an earlier caller */
    assert_int_equal(wb_options_read(&own, sizeof own, &early, "x"), WB_OK);
    assert_true(own.size == sizeof own && own.a == 1 && own.b == 20 && own.c == 3);

    wb_options_init(NULL, sizeof early, &late_defaults, sizeof late_defaults);

    late_options late;
    wb_options_init(&late, sizeof late, &early_defaults, sizeof early_defaults);
    assert_true(late.size == sizeof late && late.b == 2 && late.c == 0);
    early_options earlier_own =
        early_defaults; /* an earlier library, a later caller who asks for nothing new */
    assert_int_equal(wb_options_read(&earlier_own, sizeof earlier_own, &late, "x"), WB_OK);
    assert_int_equal(earlier_own.size, sizeof earlier_own);
    late.c = 1;
    assert_int_equal(wb_options_read(&earlier_own, sizeof earlier_own, &late, "x"), WB_INVALID_ARGUMENT);
    late.size = 0;
    assert_int_equal(wb_options_read(&own, sizeof own, &late, "x"), WB_INVALID_ARGUMENT);
    late.size = (size_t)1 << 40; /* what was never set is not believed, or it would be read to its end */
    assert_int_equal(wb_options_read(&own, sizeof own, &late, "x"), WB_INVALID_ARGUMENT);
    assert_int_equal(wb_options_read(&own, sizeof own, NULL, "x"), WB_OK);
    assert_int_equal(own.b, 20);

    uint8_t reserved[3] = {0};
    assert_int_equal(wb_options_check_reserved(reserved, sizeof reserved, "x"), WB_OK);
    reserved[2] = 7;
    assert_int_equal(wb_options_check_reserved(reserved, sizeof reserved, "x"), WB_INVALID_ARGUMENT);
    assert_string_equal(wb_error_message(), "x: reserved[2]: expected 0, found 7 (set for a later library?)");
}

static void test_text(void **state) {
    (void)state;
    assert_true(wb_text_ok("ok \xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80", 14));
    static const char *const bad[] = {"\x80",         "\xc0\x80",         "\xe0\x80\x80",
                                      "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xc3"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) assert_false(wb_text_ok(bad[i], strlen(bad[i])));
    assert_false(wb_text_ok("a\0b", 3));
    char *text = NULL;
    assert_int_equal(wb_text_format(&text, "%s-%d", "a", 12), WB_OK);
    assert_string_equal(text, "a-12");
    free(text);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_status),
        cmocka_unit_test(test_dtype),
        cmocka_unit_test(test_alloc),
        cmocka_unit_test(test_grow_keeps_what_is_there),
        cmocka_unit_test(test_owner),
        cmocka_unit_test(test_known_values),
        cmocka_unit_test(test_hash_in_pieces),
        cmocka_unit_test(test_hash_of_every_instruction_set),
        cmocka_unit_test(test_random),
        cmocka_unit_test(test_text),
        cmocka_unit_test(test_options_of_other_versions),
        cmocka_unit_test(test_random_known_values),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
