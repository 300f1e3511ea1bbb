/* test_capture_weights.c - capture while the weights change on the way, in f32 and bf16, on one rank and on
 * two. `test_capture_weights --seed N` runs one schedule. */
#include "changing_weights.h"
#include "support/cpu_split.h"

#include <pthread.h>
#include <unistd.h>

enum { N_SCHEDULES = 30, FIRST_SEED = 4100, N_RANKS = 2 };

typedef struct job {
    wb_comm *comm;
    uint64_t first, n;
    changing_totals totals;
    int failures;
} job;

static void *run_rank(void *arg) {
    job *j = arg;
    for (uint64_t seed = j->first; seed < j->first + j->n; seed++)
        j->failures += changing_weights(seed, j->comm, &j->totals);
    return NULL;
}

static void run_on_ranks(int n_ranks, job *jobs) {
    wb_comm *comms[N_RANKS];
    pthread_t threads[N_RANKS];
    must(wb_comm_open_threads(n_ranks, comms), "comms");
    for (int r = 0; r < n_ranks; r++) {
        jobs[r].comm = comms[r];
        if (pthread_create(&threads[r], NULL, run_rank, &jobs[r]) != 0) abort();
    }
    for (int r = 0; r < n_ranks; r++) {
        pthread_join(threads[r], NULL);
        wb_comm_close(comms[r]);
    }
}

int main(int argc, char **argv) {
    uint64_t first = FIRST_SEED, n = N_SCHEDULES;
    if (argc == 3 && strcmp(argv[1], "--seed") == 0) {
        first = strtoull(argv[2], NULL, 10);
        n = 1;
    } else if (argc != 1) {
        fprintf(stderr, "usage: test_capture_weights [--seed N]\n");
        return 2;
    }
    alarm(300); /* a hang is a failure */
    cpu_split.always = true;
    int failures = 0;
    changing_totals t = {0};
    for (int n_ranks = 1; n_ranks <= N_RANKS; n_ranks++) {
        job jobs[N_RANKS] = {{.first = first, .n = n}, {.first = first, .n = n}};
        run_on_ranks(n_ranks, jobs);
        for (int r = 0; r < n_ranks; r++) {
            failures += jobs[r].failures;
            t.preemptions += jobs[r].totals.preemptions;
            t.refed_by_other_weights += jobs[r].totals.refed_by_other_weights;
            t.compared_with_trainer += jobs[r].totals.compared_with_trainer;
        }
    }
    printf("test_capture_weights: seeds %" PRIu64 "..%" PRIu64 ", %" PRIu64 " preemptions, %" PRIu64
           " requests fed again by other weights, %" PRIu64 " compared with the trainer, %d failures\n",
           first, first + n - 1, t.preemptions, t.refed_by_other_weights, t.compared_with_trainer, failures);
    const bool too_easy = n > 1 && (t.preemptions < 20 || t.refed_by_other_weights < 20 ||
                                    t.compared_with_trainer < 20 || cpu_split.split == 0);
    if (too_easy) fprintf(stderr, "the test is too easy\n");
    return failures == 0 && !too_easy ? 0 : 1;
}
