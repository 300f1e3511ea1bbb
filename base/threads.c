/* threads.c - see wb_threads.h. Refuses: starting threads. */
#include "wb_check.h"
#include "wb_threads.h"

#include <inttypes.h>
#include <limits.h>
#include <unistd.h>

int wb_host_cores(void) {
    const long cores = sysconf(_SC_NPROCESSORS_ONLN);
    return cores < 1 ? 1 : cores > INT_MAX ? INT_MAX : (int)cores;
}

wb_status wb_threads_check(uint64_t threads, const char *what) {
    const int cores = wb_host_cores();
    if (threads <= (uint64_t)cores) return WB_OK;
    return wb_fail(WB_INVALID_ARGUMENT, "%s: expected at most %d, the cores of this host, found %" PRIu64,
                   what, cores, threads);
}
