/* test_device_fault.c - device_fault_core.h on the CPU, on one thread and on several. argv[1]: the seed. */
#include "device_fault_core.h"
#include "support/test_seed.h"

int main(int argc, char **argv) {
    const uint64_t seed = test_seed(argc, argv);
    int failures = 0;
    printf("seed %" PRIu64 "\n", seed);
    for (int threads = 1; threads <= 3; threads += 2) {
        wb_device *cpu = NULL;
        if (wb_device_open_cpu(threads, &cpu) != WB_OK) return 1;
        failures += device_fault_run(cpu, wb_mix64(seed));
        wb_device_close(cpu);
    }
    return failures == 0 ? 0 : 1;
}
