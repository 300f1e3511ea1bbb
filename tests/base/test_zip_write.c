/* test_zip_write.c - archives as they are written: read again by wb_zip.h, small ones, ones of many members,
 * and ones of more than 4 GiB, in address space of which only the pages that are used take memory. */
#include "wb_zip.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
// clang-format off
#include <cmocka.h>
// clang-format on

#define OK(call) assert_string_equal((call) == WB_OK ? "" : wb_error_message(), "")

typedef struct space {
    uint8_t *bytes;
    size_t size, at;
} space;

static wb_status put(void *ctx, const void *bytes, size_t size) {
    space *s = ctx;
    assert_true(size <= s->size - s->at);
    memcpy(s->bytes + s->at, bytes, size);
    s->at += size;
    return WB_OK;
}

static space space_open(size_t size) {
    void *bytes =
        mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (bytes == MAP_FAILED) skip(); /* a machine that has no such address space */
    return (space){bytes, size, 0};
}

static void add(wb_zip_writer *zip, const char *name, const char *text) {
    OK(wb_zip_begin(zip, name));
    OK(wb_zip_add(zip, text, strlen(text)));
    OK(wb_zip_end(zip));
}

static void expect(const wb_zip *zip, size_t *at, const char *name, const char *text) {
    wb_zip_name found;
    wb_zip_member member;
    OK(wb_zip_next(zip, at, &found, &member));
    assert_int_equal(found.length, strlen(name));
    assert_memory_equal(found.text, name, found.length);
    assert_int_equal(member.size, strlen(text));
    assert_memory_equal(member.bytes, text, member.size);
}

/* Members before and behind `before` bytes that are not an archive's. */
static void write_and_read(size_t before) {
    space s = space_open(before + (1 << 20));
    wb_zip_writer w = {.write = put, .ctx = &s, .at = before};
    wb_zip zip;
    s.at = before;
    add(&w, "a/one", "first");
    add(&w, "a/none", "");
    add(&w, "a/two", "second");
    OK(wb_zip_finish(&w));
    assert_int_equal(w.at, s.at);
    wb_zip_free(&w);
    OK(wb_zip_open(s.bytes, s.at, &zip));
    assert_int_equal(zip.n_members, 3);
    OK(wb_zip_check(&zip));
    size_t at = zip.directory;
    expect(&zip, &at, "a/one", "first");
    expect(&zip, &at, "a/none", "");
    expect(&zip, &at, "a/two", "second");
    assert_int_equal(at, zip.directory_end);
    munmap(s.bytes, s.size);
}

/* Up to, at and beyond what four bytes can say of where members and directory are. */
static void test_any_place(void **state) {
    (void)state;
    const size_t limit = (size_t)UINT32_MAX;
    write_and_read(0);
    for (size_t less = 0; less < 400; less++) write_and_read(limit - less);
    write_and_read(limit + 1);
    write_and_read(5 * limit);
}

/* As many as two bytes can say, and more. */
static void test_many_members(void **state) {
    (void)state;
    for (uint32_t n = UINT16_MAX - 1; n < UINT16_MAX + 3; n++) {
        space s = space_open((size_t)n * 256);
        wb_zip_writer w = {.write = put, .ctx = &s};
        wb_zip zip;
        char name[16];
        for (uint32_t i = 0; i < n; i++) {
            snprintf(name, sizeof name, "m%u", i);
            add(&w, name, name);
        }
        OK(wb_zip_finish(&w));
        wb_zip_free(&w);
        OK(wb_zip_open(s.bytes, s.at, &zip));
        assert_int_equal(zip.n_members, n);
        OK(wb_zip_check(&zip));
        size_t at = zip.directory;
        for (uint32_t i = 0; i < n; i++) {
            snprintf(name, sizeof name, "m%u", i);
            expect(&zip, &at, name, name);
        }
        munmap(s.bytes, s.size);
    }
}

/* The check value of the standard, and every length, whole and in two pieces, against bit by bit. */
static void test_checksum(void **state) {
    (void)state;
    uint8_t bytes[100];
    uint32_t plain = 0xffffffff;
    assert_int_equal(wb_zip_checksum(0, "123456789", 9), 0xcbf43926);
    for (size_t n = 0; n <= sizeof bytes; n++) {
        const uint32_t whole = wb_zip_checksum(0, bytes, n);
        assert_int_equal(whole, (uint32_t)~plain);
        for (size_t cut = 0; cut <= n; cut++)
            assert_int_equal(wb_zip_checksum(wb_zip_checksum(0, bytes, cut), bytes + cut, n - cut), whole);
        if (n == sizeof bytes) break;
        bytes[n] = (uint8_t)(n * 151 + 7);
        plain ^= bytes[n];
        for (int bit = 0; bit < 8; bit++) plain = plain >> 1 ^ (plain & 1 ? 0xedb88320 : 0);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_any_place), cmocka_unit_test(test_many_members),
                                       cmocka_unit_test(test_checksum)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
