/* test_ops_cuda.c - every op on CUDA gives the bits of the CPU. 77 where there is no CUDA device.
 *
 * Of bf16 operands test_ops_bf16 says the same. */
#include "cuda_memory.h"

#include "all_ops.h"

static void test_every_op_gives_the_bits_of_the_cpu(void **state) {
    wb_device *cpu = open_cpu(0);
    (void)state;
    for (int large = 0; large < 2; large++) {
        const uint64_t seed = rng_next();
        const outputs expected = run_all_ops(cpu, seed, large), found = run_all_ops(cuda, seed, large);
        assert_same_outputs(&expected, &found, cpu->name, cuda->name);
    }
    const uint64_t seed = rng_next();
    const outputs expected = run_wide_ops(cpu, seed), found = run_wide_ops(cuda, seed);
    assert_same_outputs(&expected, &found, cpu->name, cuda->name);
    wb_device_close(cpu);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_every_op_gives_the_bits_of_the_cpu)};
    rng_open(argc, argv);
    open_cuda();
    if (!cuda) return 77;
    const int failures = cmocka_run_group_tests(tests, NULL, NULL);
    wb_device_close(cuda);
    return failures;
}
