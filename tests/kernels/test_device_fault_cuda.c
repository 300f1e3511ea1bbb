/* test_device_fault_cuda.c - device_fault_core.h on CUDA; 77, with the reason, where there is no device.
 * argv[1]: the seed. */
#include "device_fault_core.h"
#include "support/test_seed.h"

enum { SKIP = 77 };

int main(int argc, char **argv) {
    const uint64_t seed = test_seed(argc, argv);
    wb_device *cuda = NULL;
    printf("seed %" PRIu64 "\n", seed);
    const wb_status status = wb_device_open_cuda(0, NULL, &cuda);
    if (status == WB_UNSUPPORTED) {
        printf("skipped: %s\n", wb_error_message());
        return SKIP;
    }
    if (status != WB_OK) {
        fprintf(stderr, "%s\n", wb_error_message());
        return 1;
    }
    const int failures = device_fault_run(cuda, wb_mix64(seed));
    wb_device_close(cuda);
    return failures == 0 ? 0 : 1;
}
