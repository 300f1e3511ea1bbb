/* replay_ranks.h - ranks as threads, for the tests of replay and packing. A failure ends the process: the
 * test is then red. */
#ifndef WB_REPLAY_RANKS_H
#define WB_REPLAY_RANKS_H

#include "replay_fixture.h"

#include <pthread.h>

enum { MAX_RANKS = 4 };

static uint64_t base_seed;

#define EXPECT(condition)                                                                                    \
    do {                                                                                                     \
        if (!(condition)) {                                                                                  \
            fprintf(stderr, "%s:%d: seed %" PRIu64 ": %s (%s)\n", __FILE__, __LINE__, base_seed, #condition, \
                    wb_error_message());                                                                     \
            exit(1);                                                                                         \
        }                                                                                                    \
    } while (0)
#define MUST(call) EXPECT((call) == WB_OK)

typedef struct rank {
    wb_comm *comm;
    uint64_t state; /* the same on every rank */
    int number, of;
    void (*work)(struct rank *);
} rank;

static inline void *run_rank(void *arg) {
    rank *r = arg;
    r->number = wb_comm_rank(r->comm);
    r->of = wb_comm_size(r->comm);
    r->work(r);
    return NULL;
}

static inline void on_ranks(int R, uint64_t seed, void (*work)(rank *)) {
    wb_comm *comms[MAX_RANKS];
    pthread_t threads[MAX_RANKS];
    rank ranks[MAX_RANKS];
    MUST(wb_comm_open_threads(R, comms));
    for (int i = 0; i < R; i++) {
        ranks[i] = (rank){.comm = comms[i], .state = wb_mix64(seed), .work = work};
        EXPECT(pthread_create(&threads[i], NULL, run_rank, &ranks[i]) == 0);
    }
    for (int i = 0; i < R; i++) pthread_join(threads[i], NULL);
    for (int i = 0; i < R; i++) wb_comm_close(comms[i]);
}

#endif
