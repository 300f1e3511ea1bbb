/* test_digest.c - the digest of bytes on a device: that of the CPU tells any changed byte, any two words that
 * changed places and any other length, wherever the bytes begin. */
#include "ops_test.h"

static uint64_t digest_of(wb_device *dev, const void *data, size_t bytes) {
    uint64_t digest = 0;
    assert_ok(dev->digest(dev, data, bytes, &digest));
    return digest;
}

static void test_a_change_is_told(void **state) {
    (void)state;
    wb_device *dev = open_cpu(1);
    for (int trial = 0; trial < 200; trial++) {
        const size_t n = (size_t)rng_range(17, 400), at = (size_t)rng_range(0, (int64_t)n - 1);
        const size_t start = (size_t)rng_range(0, 9);
        uint8_t *bytes = random_bytes(n + start), *data = bytes + start;
        const uint64_t digest = digest_of(dev, data, n);
        data[at] ^= (uint8_t)(1u << rng_range(0, 7));
        assert_true(digest_of(dev, data, n) != digest);
        assert_true(digest_of(dev, data, n - 1) != digest);
        uint8_t *elsewhere = random_bytes(n + 9);
        const uint64_t changed = digest_of(dev, data, n);
        memcpy(elsewhere + (9 - start), data, n);
        assert_true(digest_of(dev, elsewhere + (9 - start), n) == changed);
        uint8_t word[8];
        memcpy(word, data, 8);
        const bool same = memcmp(data, data + 8, 8) == 0;
        memcpy(data, data + 8, 8);
        memcpy(data + 8, word, 8);
        assert_true(same || digest_of(dev, data, n) != changed);
        free(bytes);
        free(elsewhere);
    }
    assert_true(digest_of(dev, NULL, 0) == 0);
    wb_device_close(dev);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_a_change_is_told)};
    rng_open(argc, argv);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
