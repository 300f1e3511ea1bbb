/* threads_team.c - how a team of threads ends, and how long its ranks wait. Refuses: meeting
 * (comm_threads.c). */
#include "threads_team.h"

#include <stdio.h>

void wb_team_fail(wb_team *shared, const char *failure) {
    if (wb_team_stopped(shared)) return;
    shared->failed = true;
    shared->only_closed = false;
    snprintf(shared->failure, sizeof shared->failure, "%s", failure);
    pthread_cond_broadcast(&shared->changed);
}

void wb_team_close_rank(wb_team *shared, int rank) {
    char text[64];
    const bool stopped = wb_team_stopped(shared);
    snprintf(text, sizeof text, "rank %d gave up: it closed its communicator", rank);
    shared->closed[rank] = true;
    wb_team_fail(shared, text);
    shared->only_closed = !stopped;
}

bool wb_team_stopped(const wb_team *shared) {
    return shared->failed && !shared->only_closed;
}

void wb_team_fail_late(wb_team *shared, const bool *here, double seconds) {
    char text[sizeof shared->failure];
    size_t used = (size_t)snprintf(text, sizeof text, "waited %g s: ", seconds);
    const char *comma = "";
    for (int r = 0; r < shared->size && used < sizeof text; r++) {
        if (here[r]) continue;
        used += (size_t)snprintf(text + used, sizeof text - used, "%srank %d did not come", comma, r);
        comma = ", ";
    }
    if (comma[0] == '\0' && used < sizeof text)
        snprintf(text + used, sizeof text - used, "all ranks came, and it did not end");
    wb_team_fail(shared, text);
}

struct timespec wb_team_deadline(double seconds) {
    struct timespec deadline;
    clock_gettime(CLOCK_MONOTONIC, &deadline);
    const time_t whole = (time_t)seconds;
    deadline.tv_sec += whole;
    deadline.tv_nsec += (long)((seconds - (double)whole) * 1e9);
    if (deadline.tv_nsec >= 1000000000L) deadline.tv_sec++, deadline.tv_nsec -= 1000000000L;
    return deadline;
}
