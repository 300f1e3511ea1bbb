/* threads_team.h - what the ranks of a process share (internal): comm_threads.c makes it and meets in it,
 * exchange_threads.c waits in it for its own data, threads_team.c ends it. */
#ifndef WB_THREADS_TEAM_H
#define WB_THREADS_TEAM_H

#include "wb_comm.h"
#include "wb_memory.h"

#include <pthread.h>
#include <time.h>

struct wb_exchange;
struct wb_exchange_memory;

/* What a rank called, in comm_threads.c. */
typedef struct wb_team_posting wb_team_posting;

typedef struct wb_team {
    wb_owner memory;       /* of the arrays */
    pthread_mutex_t mutex; /* guards all below but `postings`, and the queues of exchanges */
    pthread_cond_t changed;
    int size;
    int arrived;       /* ranks in the barrier now */
    bool *here;        /* [size] which ones; owner: memory */
    uint64_t passed;   /* barriers completed */
    bool failed;       /* no meeting succeeds any more, because of ... */
    char failure[512]; /* ... the first failure */
    /* Ranks that closed, [size], owner: memory; and whether nothing else has failed: then the others may
     * still end what they do without those ranks. */
    bool *closed;
    bool only_closed;
    int open; /* communicators not yet closed */
    /* [size]; entry r is written by rank r before the team meets and read until it leaves */
    wb_team_posting *postings;
} wb_team;

/* Under the mutex: no rank meets any more. */
void wb_team_fail(wb_team *team, const char *failure);

/* Under the mutex: the same because a rank closes, which need not have failed. */
void wb_team_close_rank(wb_team *team, int rank);

/* Under the mutex: whether the data plane ends too, whoever it waits for. */
bool wb_team_stopped(const wb_team *team);

/* Under the mutex: fails, since a rank waited for `seconds`, with the names of those that are not `here`,
 * [size]. */
void wb_team_fail_late(wb_team *team, const bool *here, double seconds);

/* The point in time after so many seconds, of the clock of `changed`. */
struct timespec wb_team_deadline(double seconds);

/* wb_comm_ops.open_exchange of threads. */
wb_status wb_threads_open_exchange(wb_comm *comm, const struct wb_exchange_memory *memory,
                                   struct wb_exchange **exchange_out);

#endif
