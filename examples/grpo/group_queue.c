/* group_queue.c - which rank generates which prompt group. Groups wait in one queue and go to the ranks that
 * could run them now, so that a rank whose samples end early takes what another would still have waiting.
 * Who gets what follows from the steps of the engine alone, never from a clock: a run that is repeated or
 * resumed on as many ranks hands out the same. What a sample is does not depend on its rank.
 * The engine's lend_requests does the same for requests that callers have already bound to ranks. Here it
 * would have nothing to lend, since no group waits on a rank, and it would take single samples where a group
 * that stays together has its prompt prefilled once. */
#include "grpo.h"

int64_t group_queue_room(int64_t max_running, int64_t unfinished, int64_t samples) {
    /* A group larger than the engine's limit is run in parts, by a rank that has nothing else. */
    if (unfinished == 0 && samples > max_running) return 1;
    return (max_running - unfinished) / samples;
}

int group_queue_next(int n_ranks, int64_t *room) {
    int most = 0;
    for (int r = 1; r < n_ranks; r++)
        if (room[r] > room[most]) most = r;
    if (room[most] < 1) return -1;
    room[most]--;
    return most;
}
