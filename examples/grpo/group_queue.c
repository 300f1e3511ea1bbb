/* group_queue.c - which rank generates which prompt group. Groups wait in one queue and go to the ranks that
 * could run them now, so that a rank whose samples end early takes what another would still have waiting.
 * Who gets what follows from the steps of the engine alone, never from a clock: a run that is repeated or
 * resumed on as many ranks hands out the same. What a sample is does not depend on its rank.
 * The engine's lend_requests does the same for requests that callers have already bound to ranks. Here it
 * would have nothing to lend, since no group waits on a rank, and it would take single samples where a group
 * that stays together has its prompt prefilled once.
 * The longest first (wb_request.expected_tokens) is not asked for either. No sample waits in an engine but
 * those of a group larger than max_running, which have one prompt; it is this queue's order that could
 * say it. But all that is known of a prompt's answers before they come is how long they were an epoch ago: a
 * resumed run would have to find that in the checkpoint, else it would hand out other groups than the run
 * that it goes on with, and its sums would have another order. */
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
