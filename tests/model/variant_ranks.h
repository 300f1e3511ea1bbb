/* variant_ranks.h - a body for each rank, which is a thread, of every variant of a model on 1 to n ranks. */
#ifndef WB_VARIANT_RANKS_H
#define WB_VARIANT_RANKS_H

#include "model_fixture.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <pthread.h>

enum { MAX_VARIANT_RANKS = 4 };

typedef struct rank_state {
    wb_comm *comm;
    wb_config config;
    pthread_t thread;
} rank_state;

static inline void on_every_variant(int max_ranks, void *(*body)(void *rank)) {
    assert_true(max_ranks <= MAX_VARIANT_RANKS);
    for (int v = 0; v < N_VARIANTS; v++)
        for (int n_ranks = 1; n_ranks <= max_ranks; n_ranks++) {
            rank_state ranks[MAX_VARIANT_RANKS];
            wb_comm *comms[MAX_VARIANT_RANKS];
            MUST(wb_comm_open_threads(n_ranks, comms));
            for (int r = 0; r < n_ranks; r++) {
                ranks[r] = (rank_state){.comm = comms[r], .config = variant_config((variant)v)};
                assert_int_equal(0, pthread_create(&ranks[r].thread, NULL, body, &ranks[r]));
            }
            for (int r = 0; r < n_ranks; r++) pthread_join(ranks[r].thread, NULL);
            for (int r = 0; r < n_ranks; r++) wb_comm_close(comms[r]);
        }
}

#endif
