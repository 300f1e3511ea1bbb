/* main.c - waybill-grpo: GRPO training of a Mixture-of-Experts model under routing replay, one process a
 * rank. */
#include "open_sizes.h"
#include "wb_comm_mpi.h"
#include "wb_threads.h"

#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static wb_status make_base(const options *o, wb_device *device, wb_comm *comm, int *signal_out) {
    report *r;
    WB_TRY(report_open(o, wb_comm_rank(comm) == 0, 0, &r));
    wb_status status = warmup_make_base(o, device, comm, r, signal_out);
    report_close(r);
    return status;
}

/* The ranks on this host: how many, and which of them this one is. */
static int ranks_of_host(int *rank_out) {
    MPI_Comm host;
    int ranks = 1;
    *rank_out = 0;
    if (MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &host) == MPI_SUCCESS) {
        MPI_Comm_size(host, &ranks);
        MPI_Comm_rank(host, rank_out);
        MPI_Comm_free(&host);
    }
    return ranks;
}

/* The cores of this host shared out over the ranks on it, and no more than mpirun bound this rank to. */
static int default_threads(int ranks) {
    const int cores = wb_host_cores();
    int share = cores > ranks ? cores / ranks : 1;
    cpu_set_t bound;
    if (sched_getaffinity(0, sizeof bound, &bound) == 0 && CPU_COUNT(&bound) < share)
        share = CPU_COUNT(&bound);
    return share;
}

/* *gpu_out: of a rank on a GPU, which one. */
static wb_status open_device(const options *o, wb_device **device_out, int *gpu_out) {
    int rank;
    const int ranks = ranks_of_host(&rank), gpus = wb_device_count_cuda();
    *gpu_out = gpus > 0 ? rank % gpus : 0;
    if (o->device == WB_BACKEND_CUDA) return wb_device_open_cuda(*gpu_out, NULL, device_out);
    return wb_device_open_cpu(o->threads > 0 ? (int)o->threads : default_threads(ranks), device_out);
}

static wb_status plan(const options *o, int rank) {
    const wb_status status = rank == 0 ? memory_plan_print(o) : WB_OK;
    if (status != WB_OK) report_failure(rank, status);
    return status;
}

static wb_status run_on(const options *o, wb_device *device, wb_comm *comm, int *signal_out) {
    return o->make_base ? make_base(o, device, comm, signal_out) : training_run(o, device, comm, signal_out);
}

static wb_status run(const options *o, int *signal_out) {
    wb_comm *control, *between_gpus = NULL;
    WB_TRY(wb_comm_open_mpi(MPI_COMM_WORLD, &control));
    wb_device *device = NULL;
    int gpu = 0;
    wb_status status = wb_comm_set_timeout(control, (double)o->peer_timeout);
    if (status == WB_OK) status = open_device(o, &device, &gpu);
    /* Another instruction set would still give the same bits; another program would not. */
    if (status == WB_OK)
        status = wb_comm_check_equal(control, wb_version(), strlen(wb_version()), "Waybill's version");
    if (status == WB_OK) status = data_plane_open(o->device, gpu, control, &between_gpus);
    if (status == WB_OK) status = run_on(o, device, between_gpus ? between_gpus : control, signal_out);
    wb_device_close(device);
    if (status != WB_OK) return status;
    wb_comm_close(between_gpus);
    wb_comm_close(control);
    return WB_OK;
}

/* True when stdout is a pipe that nobody reads any more. */
static bool reader_is_gone(void) {
    struct pollfd out = {.fd = STDOUT_FILENO, .events = POLLOUT};
    return poll(&out, 1, 0) == 1 && (out.revents & POLLERR) != 0;
}

/* The exit status, once what was said is known to be written; 1 where it is not. Before MPI ends, which
 * leaves another errno than the write's. */
static int end(int code) {
    if (fflush(stdout) == 0 && !ferror(stdout)) return code;
    const int error = errno;
    if (reader_is_gone()) return code; /* `| head` has what it wanted */
    fprintf(stderr, "waybill-grpo: the output cannot be written: %s\n", strerror(error));
    return code != 0 ? code : 1;
}

int main(int argc, char **argv) {
    int rank = 0, action = 0, stopped = 0;
    options o;
    signal(SIGPIPE, SIG_IGN); /* a reward program that stops reading is judged by its answer */
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    wb_status status = options_parse(argc, argv, rank == 0, &o, &action);
    if (status != WB_OK && rank == 0) fprintf(stderr, "waybill-grpo: %s\n", wb_error_message());
    if (status == WB_OK && action == 0 && o.plan_ranks > 0) {
        status = plan(&o, rank);
        const int code = end(status == WB_OK ? 0 : 1);
        MPI_Finalize();
        return code;
    }
    if (status == WB_OK && action == 0) {
        interrupt_watch();
        status = run(&o, &stopped);
        if (status != WB_OK) {
            report_failure(rank, status);
            if (status == WB_PEER) sleep(1); /* the rank that knows more speaks first */
            MPI_Abort(MPI_COMM_WORLD, 1);
        }
    }
    const int code = end(stopped != 0 ? 128 + stopped : status == WB_OK ? 0 : 2); /* as a shell says it */
    MPI_Finalize();
    return code;
}
