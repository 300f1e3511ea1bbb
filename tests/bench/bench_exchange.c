/* bench_exchange.c - the data plane beside the control plane, between threads.
 *
 * Usage: bench_exchange [ranks]
 */
#include "bench/bench_exchange.h"

#include <pthread.h>

static void *run_rank(void *comm) {
    bench_run(comm, true);
    return NULL;
}

int main(int argc, char **argv) {
    const int ranks = argc > 1 ? atoi(argv[1]) : 2;
    wb_comm *comms[MOST_RANKS];
    pthread_t threads[MOST_RANKS];
    if (ranks < 1 || ranks > MOST_RANKS) return 2;
    must(wb_comm_open_threads(ranks, comms));
    for (int r = 0; r < ranks; r++)
        if (pthread_create(&threads[r], NULL, run_rank, comms[r]) != 0) return 1;
    for (int r = 0; r < ranks; r++) pthread_join(threads[r], NULL);
    for (int r = 0; r < ranks; r++) wb_comm_close(comms[r]);
    return 0;
}
