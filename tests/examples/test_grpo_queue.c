/* test_grpo_queue.c - the queue of prompt groups: each group is handed out once, and ranks that get groups as
 * they have room end sooner than ranks that were given theirs beforehand. */
#include "../../examples/grpo/group_queue.c"
#include "support/test_seed.h"
#include "wb_random.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_RANKS = 5, MAX_GROUPS = 60, SAMPLES = 4, MAX_RUNNING = 8 };
static uint64_t seed;

/* A rank with the steps that its requests still need; the first MAX_RUNNING of them run. */
typedef struct rank {
    int64_t n, left[MAX_GROUPS * SAMPLES];
} rank;

static void give(rank *to, const int64_t *lengths, int64_t group) {
    for (int64_t i = 0; i < SAMPLES; i++) to->left[to->n++] = lengths[group * SAMPLES + i];
}

static void run_step(rank *r) {
    int64_t kept = 0;
    for (int64_t i = 0; i < r->n; i++) {
        int64_t left = r->left[i] - (i < MAX_RUNNING);
        if (left > 0) r->left[kept++] = left;
    }
    r->n = kept;
}

/* Steps until all groups are done. */
static int64_t steps_with_queue(int n_ranks, int64_t n_groups, const int64_t *lengths) {
    rank ranks[MAX_RANKS] = {{0}};
    int64_t next = 0, steps = 0, room[MAX_RANKS];
    for (bool busy = true; busy; steps++) {
        for (int r = 0; r < n_ranks; r++) room[r] = group_queue_room(MAX_RUNNING, ranks[r].n, SAMPLES);
        for (int to; next < n_groups && (to = group_queue_next(n_ranks, room)) >= 0;)
            give(&ranks[to], lengths, next++);
        busy = false;
        for (int r = 0; r < n_ranks; r++) {
            run_step(&ranks[r]);
            busy = busy || ranks[r].n > 0;
        }
        busy = busy || next < n_groups;
        assert_true(steps < 1000000);
    }
    return steps;
}

static int64_t steps_when_bound(int n_ranks, int64_t n_groups, const int64_t *lengths) {
    rank ranks[MAX_RANKS] = {{0}};
    int64_t most = 0;
    for (int64_t g = 0; g < n_groups; g++) give(&ranks[g % n_ranks], lengths, g);
    for (int r = 0; r < n_ranks; r++) {
        int64_t steps = 0;
        for (; ranks[r].n > 0; steps++) run_step(&ranks[r]);
        if (steps > most) most = steps;
    }
    return most;
}

/* One group in eight is ten times as long. */
static void test_ranks_do_not_wait_for_the_slowest(void **state) {
    (void)state;
    int64_t queued = 0, bound = 0;
    for (uint64_t round = 0; round < 200; round++) {
        int64_t lengths[MAX_GROUPS * SAMPLES], n_groups = 20 + (int64_t)(wb_mix64(seed ^ round) % 41);
        int n_ranks = 2 + (int)(wb_mix64(seed + round) % 4);
        for (int64_t g = 0; g < n_groups; g++) {
            uint64_t random = wb_mix64(wb_mix64(seed ^ round) + (uint64_t)g);
            int64_t length = (random >> 32) % 8 == 0 ? 100 : 1 + (int64_t)(random % 10);
            for (int64_t i = 0; i < SAMPLES; i++) lengths[g * SAMPLES + i] = length;
        }
        queued += steps_with_queue(n_ranks, n_groups, lengths);
        bound += steps_when_bound(n_ranks, n_groups, lengths);
    }
    print_message("steps: %lld from a queue, %lld bound to ranks\n", (long long)queued, (long long)bound);
    assert_true(queued * 10 <= bound * 9);
}

static void test_a_group_goes_to_the_rank_with_most_room(void **state) {
    (void)state;
    int64_t room[3] = {1, 3, 2};
    const int expected[] = {1, 1, 2, 0, 1, 2, -1};
    for (size_t i = 0; i < sizeof expected / sizeof expected[0]; i++)
        assert_int_equal(group_queue_next(3, room), expected[i]);
}

static void test_a_group_larger_than_the_limit_is_run_alone(void **state) {
    (void)state;
    assert_int_equal(group_queue_room(8, 0, 16), 1);
    assert_int_equal(group_queue_room(8, 1, 16), 0);
    assert_int_equal(group_queue_room(64, 0, 16), 4);
    assert_int_equal(group_queue_room(64, 49, 16), 0);
}

int main(int argc, char **argv) {
    seed = test_seed(argc, argv);
    print_message("seed %llu\n", (unsigned long long)seed);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ranks_do_not_wait_for_the_slowest),
        cmocka_unit_test(test_a_group_goes_to_the_rank_with_most_room),
        cmocka_unit_test(test_a_group_larger_than_the_limit_is_run_alone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
