/* test_exchange_gpus.c - the data plane over NCCL between GPUs, a thread of this process each: the common
 * core on two GPUs and on all, and how it ends. 77, with the reason, where there are fewer than two. */
#ifdef WB_HAVE_NCCL
#include "comm/exchange_cuda.h"
#include "comm/exchange_dies.h"
#include "support/test_seed.h"
#include "wb_comm_nccl.h"

#include <pthread.h>

enum { SKIP = 77 };

/* What the threads do now. */
typedef int trial(wb_comm *comm);
static trial *now;
static bool check_sizes;
static size_t failing, way;
static uint64_t seed;

typedef struct worker {
    pthread_t thread;
    wb_comm *control;
    int failures;
} worker;

static void *run_rank(void *argument) {
    worker *me = argument;
    wb_comm *comm = NULL;
    const int rank = wb_comm_rank(me->control);
    if (wb_comm_open_nccl(me->control, rank, check_sizes, &comm) == WB_OK) {
        me->failures = now(comm);
    } else {
        fprintf(stderr, "rank %d: %s\n", rank, wb_error_message());
        me->failures = 1;
    }
    wb_comm_close(comm);
    wb_comm_close(me->control);
    cuda_forget(rank);
    return NULL;
}

/* Returns the failures of all ranks. */
static int on_gpus(int ranks, trial *what) {
    wb_comm *controls[DEVICE_RANKS];
    worker workers[DEVICE_RANKS];
    int failures = 0;
    now = what;
    if (wb_comm_open_threads(ranks, controls) != WB_OK) return 1;
    for (int r = 0; r < ranks; r++) {
        workers[r] = (worker){.control = controls[r]};
        if (pthread_create(&workers[r].thread, NULL, run_rank, &workers[r]) != 0) abort();
    }
    for (int r = 0; r < ranks; r++) {
        pthread_join(workers[r].thread, NULL);
        failures += workers[r].failures;
    }
    return failures;
}

static int core(wb_comm *comm) {
    return exchange_core_run(comm, false, seed);
}

static int failure(wb_comm *comm) {
    return exchange_failures[failing].body(comm, false, way);
}

static int dies(wb_comm *comm) {
    return exchange_dies(comm, false, seed + way, (dying_way)failing);
}

/* Sizes that disagree are found where they are compared. */
static int run_failures(void) {
    int failures = 0;
    core_timeout = 2;
    for (failing = 0; failing < EXCHANGE_FAILURES; failing++)
        for (way = 0; way < exchange_failures[failing].ways; way++) {
            check_sizes = exchange_failures[failing].body == exchange_mismatch ||
                          exchange_failures[failing].body == exchange_unlisted;
            failures += on_gpus(2, failure);
        }
    check_sizes = false;
    for (failing = 0; failing < IS_KILLED; failing++)
        for (way = 0; way < 3; way++) failures += on_gpus(2, dies);
    return failures;
}

int main(int argc, char **argv) {
    int gpus = wb_device_count_cuda();
    wb_status status = WB_OK;
    if (gpus > DEVICE_RANKS) gpus = DEVICE_RANKS;
    if (gpus < 2) {
        printf("skip: expected two GPUs or more, found %d\n", gpus);
        return SKIP;
    }
    for (int r = 0; r < gpus && status == WB_OK; r++) status = cuda_open_rank(r, r);
    if (status == WB_OK) status = cuda_arena_open();
    if (status != WB_OK) {
        printf("skip: %s\n", wb_error_message());
        return SKIP;
    }
    seed = test_seed(argc, argv);
    printf("test_exchange_gpus: seed %" PRIu64 "\n", seed);
    alarm(500);
    core_foreign_allocations = true;
    int failures = on_gpus(2, core);
    if (gpus > 2) failures += on_gpus(gpus, core);
    failures += run_failures();
    cuda_arena_close();
    return failures > 0;
}

#else
#include <stdio.h>

int main(void) {
    printf("skip: built without NCCL\n");
    return 77;
}
#endif
