/* test_rebalance_failures.c - what fails in a rebalance leaves the last map, is counted and named: damaged
 * experts, a store that fails, registries and maps that differ, a solver that takes its time. Argument 1 sets
 * the seed. */
#include "rebalance_threads.h"

/* ---- failures that leave the last map ------------------------------------------------------------ */

/* Damages what is copied from another rank. */
static wb_status damaging_copy(void *context, void *to, const void *from, size_t bytes) {
    core *c = context;
    memcpy(to, from, bytes);
    if (c->damage_copy > 0 && --c->damage_copy == 0 && bytes > 0) ((unsigned char *)to)[bytes / 2] ^= 1;
    return WB_OK;
}

static int damage_a_move(wb_comm *comm, uint64_t seed) {
    core state = {.comm = comm, .seed = seed}, *c = &state;
    wb_rebalance_options options = core_options();
    options.every = 20; /* more than the window: a decision sees no load of before the last one */
    uint64_t random = seed + (uint64_t)wb_comm_rank(comm);
    core_open(c, &options);
    /* Another exchange, whose copies can be damaged. */
    wb_rebalance_close(c->manager);
    wb_exchange_close(c->exchange);
    wb_exchange_memory memory = core_memory(c);
    memory.copy = damaging_copy;
    CORE_OK(c, wb_exchange_open(comm, &memory, &c->exchange));
    const wb_expert_store store = core_store(c);
    CORE_OK(c, wb_rebalance_open(&store, &options, &c->manager));
    c->damage_copy = wb_comm_rank(comm) == 1 ? 1 : 0;
    wb_rebalance_stats stats = wb_rebalance_get_stats(c->manager);
    for (int i = 0; i < 2000 && stats.failures == 0; i++) {
        core_skewed_pass(c, 20, &random);
        CORE_OK(c, core_boundary(c));
        stats = wb_rebalance_get_stats(c->manager);
    }
    CORE_CHECK(c, stats.failures == 1 && stats.verdict == WB_REBALANCE_FAILED);
    CORE_CHECK(c, strstr(stats.failure, wb_comm_rank(comm) == 1 ? "expected checksum" : "rank 1"));
    core_check_slots(c);
    /* And goes on, with another layer: the map that was given up stays so. */
    const uint64_t groups = wb_rebalance_get_stats(c->manager).groups;
    for (int i = 0; i < 2000 && wb_rebalance_get_stats(c->manager).groups == groups; i++) {
        crowded_pass(c, &random);
        CORE_OK(c, core_boundary(c));
    }
    CORE_CHECK(c, wb_rebalance_get_stats(c->manager).groups > groups);
    CORE_CHECK(c, wb_rebalance_get_stats(c->manager).failures == 1);
    core_check_slots(c);
    core_close(c);
    return c->failures;
}

/* A pass that fails while experts are under way, by puts and by the exchange: the boundary is ended on all
 * ranks, what was under way comes to the slots that the map then names, and rebalances go on. */
static int fail_passes(wb_comm *comm, uint64_t seed, int host_ranks) {
    core state = {.comm = comm, .seed = seed, .halves = true, .host_ranks = host_ranks}, *c = &state;
    const wb_rebalance_options options = core_options();
    uint64_t random = seed + (uint64_t)wb_comm_rank(comm);
    core_open(c, &options);
    c->pass_fails = true;
    core_rebalance(c, &random);
    CORE_CHECK(c, c->n_failed_beside_moves > 0);
    const wb_rebalance_stats stats = wb_rebalance_get_stats(c->manager);
    CORE_CHECK(c, stats.failures == 0 && stats.moves > 0 && stats.groups > 0);
    CORE_OK(c, wb_placement_check_equal(c->placement, comm));
    c->pass_fails = false;
    for (int i = 0; i < 40; i++) {
        crowded_pass(c, &random);
        CORE_OK(c, core_boundary(c));
    }
    CORE_CHECK(c, wb_rebalance_get_stats(c->manager).failures == 0);
    core_check_slots(c);
    core_close(c);
    return c->failures;
}

static int fail_passes_beside_puts(wb_comm *comm, uint64_t seed) {
    return fail_passes(comm, seed, MAX_CORE_RANKS);
}

static int fail_passes_beside_sends(wb_comm *comm, uint64_t seed) {
    return fail_passes(comm, seed, 0);
}

static void test_a_pass_that_fails_beside_moves(void **state) {
    (void)state;
    for (int n = 2; n <= MAX_CORE_RANKS; n++) {
        on_ranks(n, fail_passes_beside_puts);
        on_ranks(n, fail_passes_beside_sends);
    }
}

static void test_canary_finds_a_damaged_expert(void **state) {
    (void)state;
    on_ranks(2, damage_a_move);
    on_ranks(3, damage_a_move);
}

static int refuse_a_slot(wb_comm *comm, uint64_t seed) {
    core state = {.comm = comm, .seed = seed}, *c = &state;
    const wb_rebalance_options options = core_options();
    uint64_t random = seed + (uint64_t)wb_comm_rank(comm);
    core_open(c, &options);
    c->refuse_slots = wb_comm_rank(comm) == 0;
    wb_rebalance_stats stats = wb_rebalance_get_stats(c->manager);
    for (int i = 0; i < 2000 && stats.failures == 0; i++) {
        core_skewed_pass(c, 20, &random);
        CORE_OK(c, core_boundary(c));
        stats = wb_rebalance_get_stats(c->manager);
    }
    CORE_CHECK(c, stats.failures == 1 && stats.groups == 0);
    c->refuse_slots = false;
    core_rebalance(c, &random);
    core_close(c);
    return c->failures;
}

static void test_a_store_that_fails_leaves_the_map(void **state) {
    (void)state;
    on_ranks(3, refuse_a_slot);
}

/* Rank 1's device fails to put, and then puts other bytes: neither is taken over by anybody. */
static int put_badly(wb_comm *comm, uint64_t seed) {
    core state = {.comm = comm, .seed = seed, .host_ranks = MAX_CORE_RANKS, .halves = true}, *c = &state;
    const wb_rebalance_options options = core_options();
    uint64_t random = seed + (uint64_t)wb_comm_rank(comm);
    core_open(c, &options);
    for (uint64_t failures = 1; failures <= 2; failures++) {
        c->refuse_puts = failures == 1 && wb_comm_rank(comm) == 1;
        c->damage_put = failures == 2 && wb_comm_rank(comm) == 1;
        const uint64_t groups = wb_rebalance_get_stats(c->manager).groups;
        wb_rebalance_stats stats = wb_rebalance_get_stats(c->manager);
        for (int i = 0; i < 2000 && stats.failures < failures; i++) {
            core_skewed_pass(c, 20, &random);
            CORE_OK(c, core_boundary(c));
            stats = wb_rebalance_get_stats(c->manager);
        }
        CORE_CHECK(c, stats.failures == failures && stats.groups >= groups);
        const char *expected = failures == 2             ? "checksum"
                               : wb_comm_rank(comm) == 1 ? "made to fail"
                                                         : "rank 1";
        CORE_CHECK(c, strstr(stats.failure, expected) || (failures == 2 && strstr(stats.failure, "rank")));
        core_check_slots(c);
    }
    c->damage_put = false;
    core_rebalance(c, &random);
    core_close(c);
    return c->failures;
}

static void test_what_is_put_badly_leaves_the_map(void **state) {
    (void)state;
    on_ranks(2, put_badly);
    on_ranks(3, put_badly);
}

/* What the last rank registers for an expert is not what the others do: a tensor of another size, or one
 * more. */
static int register_otherwise(wb_comm *comm, uint64_t seed) {
    int failures = 0;
    const bool last = wb_comm_rank(comm) == wb_comm_size(comm) - 1;
    for (int more = 0; more < 2; more++) {
        core state = {.comm = comm, .seed = seed}, *c = &state;
        const wb_rebalance_options options = core_options();
        uint64_t random = seed + (uint64_t)wb_comm_rank(comm);
        core_open(c, &options);
        if (last || !more) core_add_kind(c, last && !more ? 40 : 41);
        wb_rebalance_stats stats = wb_rebalance_get_stats(c->manager);
        for (int i = 0; i < 2000 && stats.failures == 0; i++) {
            core_skewed_pass(c, 20, &random);
            CORE_OK(c, core_boundary(c));
            stats = wb_rebalance_get_stats(c->manager);
        }
        CORE_CHECK(c, stats.failures == 1 && stats.verdict == WB_REBALANCE_FAILED);
        CORE_CHECK(c, strstr(stats.failure, "expected parts of the shape") || strstr(stats.failure, "rank"));
        core_check_slots(c);
        core_close(c);
        failures += c->failures;
    }
    return failures;
}

static void test_parts_that_differ_between_ranks_do_not_move(void **state) {
    (void)state;
    on_ranks(2, register_otherwise);
    on_ranks(4, register_otherwise);
}

/* A rank whose solver finds another placement than the others'. */
static int disagree(wb_comm *comm, uint64_t seed) {
    core state = {.comm = comm, .seed = seed}, *c = &state;
    wb_rebalance_options options = core_options();
    uint64_t random = seed + (uint64_t)wb_comm_rank(comm);
    if (wb_comm_rank(comm) == 1) options.solver.algorithm = WB_EPLB_DEEPSEEK;
    core_open(c, &options);
    wb_rebalance_stats stats = wb_rebalance_get_stats(c->manager);
    for (int i = 0; i < 2000 && stats.failures == 0; i++) {
        core_skewed_pass(c, 20, &random);
        CORE_OK(c, core_boundary(c));
        stats = wb_rebalance_get_stats(c->manager);
        if (stats.groups > 0) break;
    }
    CORE_CHECK(c, stats.failures == 1 && stats.groups == 0);
    CORE_CHECK(c, strstr(stats.failure, "rank 1"));
    core_close(c);
    return c->failures;
}

static void test_a_map_that_differs_is_found_by_its_rank(void **state) {
    (void)state;
    on_ranks(2, disagree);
    on_ranks(4, disagree);
}

/* ---- a solver that takes its time ----------------------------------------------------------------- */

static int wait_for_a_slow_solver(wb_comm *comm, uint64_t seed) {
    core state = {.comm = comm, .seed = seed}, *c = &state;
    wb_rebalance_options options = core_options();
    uint64_t random = seed + (uint64_t)wb_comm_rank(comm);
    options.patience = 1;
    options.solver.algorithm = WB_EPLB_MICROBATCH;
    options.solver.trials = 5000000;
    core_open(c, &options);
    for (int i = 0; i < 12; i++) {
        core_skewed_pass(c, 20, &random);
        CORE_OK(c, core_boundary(c));
    }
    const wb_rebalance_stats stats = wb_rebalance_get_stats(c->manager);
    CORE_CHECK(c, stats.failures >= 1 && stats.groups == 0 && stats.verdict == WB_REBALANCE_LATE);
    CORE_CHECK(c, strstr(stats.failure, "has not ended after 1 passes"));
    core_close(c);
    return c->failures;
}

static void test_a_solver_that_is_late_is_given_up(void **state) {
    (void)state;
    on_ranks(2, wait_for_a_slow_solver);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_canary_finds_a_damaged_expert),
        cmocka_unit_test(test_a_pass_that_fails_beside_moves),
        cmocka_unit_test(test_a_store_that_fails_leaves_the_map),
        cmocka_unit_test(test_what_is_put_badly_leaves_the_map),
        cmocka_unit_test(test_parts_that_differ_between_ranks_do_not_move),
        cmocka_unit_test(test_a_map_that_differs_is_found_by_its_rank),
        cmocka_unit_test(test_a_solver_that_is_late_is_given_up),
    };
    rebalance_begin(argc, argv);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
