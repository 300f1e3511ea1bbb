/* bench_packed.c - a replayed step as it came beside the same step packed and planned, between threads.
 *
 * Usage: bench_packed [RANKS [REPEATS]]
 */
#include "bench/bench_packed.h"
#include "support/usage.h"

#include <pthread.h>

static int repeats = 11;

static void *run_rank(void *comm) {
    bench_run(comm, repeats);
    return NULL;
}

int main(int argc, char **argv) {
    int code;
    if (usage_ends(argc, argv, 0, 2, "usage: bench_packed [RANKS [REPEATS]]\n", &code)) return code;
    const int ranks = argc > 1 ? atoi(argv[1]) : 4;
    wb_comm *comms[16];
    pthread_t threads[16];
    if (argc > 2) repeats = atoi(argv[2]);
    if (ranks < 1 || ranks > 16 || repeats < 1 || repeats > MAX_REPEATS) return 2;
    must(wb_comm_open_threads(ranks, comms));
    for (int r = 0; r < ranks; r++)
        if (pthread_create(&threads[r], NULL, run_rank, comms[r]) != 0) return 1;
    for (int r = 0; r < ranks; r++) pthread_join(threads[r], NULL);
    for (int r = 0; r < ranks; r++) wb_comm_close(comms[r]);
    return 0;
}
