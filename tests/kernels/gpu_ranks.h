/* gpu_ranks.h - what tests of several ranks with a GPU each begin with: who the ranks are, their GPUs, and
 * what failed. For programs under mpirun that exit with one verdict. */
#ifndef WB_GPU_RANKS_H
#define WB_GPU_RANKS_H

#include "wb_check.h"
#include "wb_device.h"

#include <mpi.h>
#include <stdio.h>

static int rank, ranks, failures;

static void check(bool held, const char *what) {
    if (held) return;
    failures++;
    fprintf(stderr, "rank %d: expected %s; latest message: %s\n", rank, what, wb_error_message());
}

static void must(wb_status status) {
    if (status == WB_OK) return;
    fprintf(stderr, "rank %d: %s\n", rank, wb_error_message());
    MPI_Abort(MPI_COMM_WORLD, 1);
}

/* A GPU for each rank of the host, counted round; NULL: there is none. */
static wb_device *open_device(void) {
    MPI_Comm host;
    int on_host = 0;
    wb_device *dev = NULL;
    MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &host);
    MPI_Comm_rank(host, &on_host);
    MPI_Comm_free(&host);
    const int count = wb_device_count_cuda();
    if (count > 0) must(wb_device_open_cuda(on_host % count, NULL, &dev));
    return dev;
}

#endif
