/* test_digest_cuda.c - the digest of bytes on a GPU is that of the CPU, wherever the bytes begin. */
#include "ops_test.h"

enum { MOST = 1 << 20, ROOM = MOST + 16 };

static uint64_t digest_of(wb_device *dev, const void *data, size_t bytes) {
    uint64_t digest = 0;
    assert_ok(dev->digest(dev, data, bytes, &digest));
    return digest;
}

static void test_a_gpu_has_the_digest_of_the_cpu(void **state) {
    (void)state;
    wb_device *cpu = open_cpu(1), *gpu = NULL;
    assert_ok(wb_device_open_cuda(0, NULL, &gpu));
    uint8_t *bytes = random_bytes(ROOM);
    void *memory = NULL;
    assert_ok(gpu->mem_alloc(gpu, ROOM, &memory));
    assert_ok(gpu->to_device(gpu, memory, bytes, ROOM));
    for (int trial = 0; trial < 60; trial++) {
        const size_t start = (size_t)rng_range(0, 15);
        const size_t n = (size_t)(trial < 30 ? rng_range(0, 70) : trial == 59 ? MOST : rng_range(0, MOST));
        assert_true(digest_of(gpu, (char *)memory + start, n) == digest_of(cpu, bytes + start, n));
    }
    gpu->mem_free(gpu, memory);
    free(bytes);
    wb_device_close(gpu);
    wb_device_close(cpu);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_a_gpu_has_the_digest_of_the_cpu)};
    rng_open(argc, argv);
    if (wb_device_count_cuda() == 0) {
        printf("no CUDA device\n");
        return 77;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
