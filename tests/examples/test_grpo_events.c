/* test_grpo_events.c - the files of events: the checksum's published values, and the bytes of a file with one
 * number, worked out by hand from the descriptions of TFRecord and of protocol buffers. */
#include "../../examples/grpo/event_file.c"
#include "../../examples/grpo/paths.c"
#include "support/temp_files.h"

#include <dirent.h>

/* RFC 3720, B.4, and the check value of CRC-32C. */
static void test_checksums(void **state) {
    (void)state;
    uint8_t data[32] = {0};
    assert_int_equal(crc32c(data, 32), 0x8a9136aa);
    memset(data, 0xff, 32);
    assert_int_equal(crc32c(data, 32), 0x62a8ab43);
    for (int i = 0; i < 32; i++) data[i] = (uint8_t)i;
    assert_int_equal(crc32c(data, 32), 0x46dd794e);
    assert_int_equal(crc32c((const uint8_t *)"123456789", 9), 0xe3069283);
    assert_int_equal(masked_crc32c((const uint8_t *)"123456789", 9), 0xc78ab0e5);
}

/* The frame at *at, whose event begins with a time: what follows that. */
static void expect_frame(const char *text, size_t *at, const void *expected, size_t n) {
    const uint8_t *frame = (const uint8_t *)text + *at, *event = frame + 12;
    uint8_t head[12] = {(uint8_t)(n + 9)}, tail[4];
    little_endian(masked_crc32c(head, 8), head + 8, 4);
    little_endian(masked_crc32c(event, n + 9), tail, 4);
    assert_memory_equal(frame, head, 12);
    assert_int_equal(event[0], 0x09); /* field 1, eight bytes */
    assert_memory_equal(event + 9, expected, n);
    assert_memory_equal(event + 9 + n, tail, 4);
    *at += 12 + 9 + n + 4;
}

static void test_bytes(void **state) {
    (void)state;
    static const uint8_t version[] = "\x10\x00\x1a\x0d"
                                     "brain.Event:2";
    static const uint8_t start[] = {0x10, 0xac, 0x02, 0x3a, 0x02, 0x08, 0x01}; /* step 300 */
    /* step 300, a summary of 14 bytes: a value of 12: the tag of 5 bytes, and 1.5 */
    static const uint8_t number[] = "\x10\xac\x02\x2a\x0e\x0a\x0c\x0a\x05"
                                    "a/b_c"
                                    "\x15\x00\x00\xc0\x3f";
    const temp_path dir = temp_dir(), inner = temp_in(dir.text, "events");
    event_file *file;
    assert_int_equal(event_file_open(inner.text, 300, &file), WB_OK);
    assert_int_equal(event_file_add(file, "a", "b_c", 1.5), WB_OK);
    assert_int_equal(event_file_end_step(file, 300), WB_OK);
    char *text;
    size_t n, at = 0;
    assert_int_equal(wb_file_read(file->path, 1 << 20, &text, &n), WB_OK); /* flushed, not closed */
    expect_frame(text, &at, version, sizeof version - 1);
    expect_frame(text, &at, start, sizeof start);
    expect_frame(text, &at, number, sizeof number - 1);
    assert_int_equal(at, n);
    free(text);
    event_file_close(file);
    temp_remove(dir);
}

static void test_no_folder(void **state) {
    (void)state;
    event_file *file = NULL;
    assert_int_equal(event_file_open("/dev/null/events", 0, &file), WB_IO);
    assert_null(file);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_checksums), cmocka_unit_test(test_bytes),
                                       cmocka_unit_test(test_no_folder)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
