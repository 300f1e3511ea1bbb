/* test_rebalance_peers.c - what one rank has otherwise than the others, and what others do meanwhile:
 * options, epochs, maps, a slower solver, a device that fails where there is no way back. All ranks come out
 * together. Argument 1 sets the seed. */
#include "rebalance_threads.h"

static bool is_odd_one(const core *c) {
    return wb_comm_rank(c->comm) == 1;
}

/* Passes until something is given up or a boundary fails; which is its status. */
static wb_status until_failure(core *c, void (*pass)(core *c, uint64_t *random)) {
    uint64_t random = c->seed + (uint64_t)wb_comm_rank(c->comm);
    wb_status status = WB_OK;
    for (int i = 0; i < 5000 && status == WB_OK && wb_rebalance_get_stats(c->manager).failures == 0; i++) {
        pass(c, &random);
        status = core_boundary(c);
    }
    return status;
}

static void skewed_pass(core *c, uint64_t *random) {
    core_skewed_pass(c, 20, random);
}

/* ---- options ------------------------------------------------------------------------------------- */

static void change_option(int which, wb_rebalance_options *o) {
    switch (which) {
    case 0:
        o->every++;
        break;
    case 1:
        o->sigmas++;
        break;
    case 2:
        o->layers_per_chunk = 1;
        break;
    case 3:
        o->load.window++;
        break;
    case 4:
        o->patience--;
        break;
    case 5:
        o->check_every++;
        break;
    case 6:
        o->move.n_shadow = 2;
        break;
    default:
        o->move.cost.seconds_per_group *= 2;
        break;
    }
}

static int open_otherwise(wb_comm *comm, uint64_t seed) {
    core state = {.comm = comm, .seed = seed}, *c = &state;
    wb_rebalance_options options = core_options();
    core_open(c, &options);
    const wb_expert_store store = core_store(c);
    for (int which = 0; which < 8; which++) {
        wb_rebalance *manager = NULL;
        options = core_options();
        if (is_odd_one(c)) change_option(which, &options);
        CORE_CHECK(c, wb_rebalance_open(&store, &options, &manager) == WB_PEER && !manager);
        CORE_CHECK(c,
                   strstr(wb_error_message(), "rank 1") && strstr(wb_error_message(), "rebalance options"));
    }
    core_close(c);
    return c->failures;
}

static void test_options_that_differ_are_named(void **state) {
    (void)state;
    on_ranks(3, open_otherwise);
}

/* ---- no way back ----------------------------------------------------------------------------------- */

static wb_status failing_take(void *context, const wb_placement *placement) {
    core *c = context;
    return is_odd_one(c) ? wb_fail(WB_DEVICE, "no device") : core_take(c, placement);
}

static wb_status failing_copy(void *context, void *to, const void *from, size_t bytes) {
    core *c = context;
    return is_odd_one(c) ? wb_fail(WB_DEVICE, "no device") : core_copy(c, to, from, bytes);
}

/* The job ends on all ranks, at once: the test's alarm is later than a timeout, of which there is none. */
static int lose_the_device(wb_comm *comm, uint64_t seed) {
    int failures = 0;
    core state = {.comm = comm, .seed = seed}, *c = &state;
    const wb_rebalance_options options = core_options();
    core_open(c, &options);
    wb_rebalance_close(c->manager);
    wb_expert_store store = core_store(c);
    if (seed % 2 == 0)
        store.take = failing_take;
    else
        store.memory.copy = failing_copy;
    CORE_OK(c, wb_rebalance_open(&store, &options, &c->manager));
    const wb_status status = until_failure(c, skewed_pass);
    CORE_CHECK(c, status == (is_odd_one(c) ? WB_DEVICE : WB_PEER));
    CORE_CHECK(c, strstr(wb_error_message(), is_odd_one(c) ? "no device" : "rank 1"));
    core_close(c);
    return failures + c->failures;
}

static void test_rule_22_a_device_that_fails_in_the_flip_ends_the_job(void **state) {
    (void)state;
    for (int i = 0; i < 2; i++, base_seed++) on_ranks(3, lose_the_device);
}

/* ---- maps ------------------------------------------------------------------------------------------ */

/* Another map in layer l, with the experts that it names. */
static void deal(core *c, uint32_t l, uint64_t epoch) {
    int32_t experts[64];
    const wb_layer_map map = wb_placement_layer(c->placement, l);
    const uint32_t S = wb_placement_topology(c->placement)->n_slots;
    for (uint32_t s = 0; s < S; s++) experts[s] = map.expert_of_slot[S - 1 - s];
    CORE_OK(c, wb_placement_set_layer(c->placement, l, experts, NULL, epoch));
    for (int k = 0; k < c->n_kinds; k++) core_fill_kind(c, k);
}

/* By everybody, while the solver is at work: its plans are of the map that was. */
static int change_meanwhile(wb_comm *comm, uint64_t seed) {
    core state = {.comm = comm, .seed = seed}, *c = &state;
    const wb_rebalance_options options = core_options();
    uint64_t random = seed + (uint64_t)wb_comm_rank(comm);
    core_open(c, &options);
    while (wb_rebalance_get_stats(c->manager).stage != WB_REBALANCE_SOLVING) {
        skewed_pass(c, &random);
        CORE_OK(c, core_boundary(c));
    }
    CORE_CHECK(c, wb_rebalance_get_stats(c->manager).verdict == WB_REBALANCE_UNDECIDED);
    deal(c, 1, 7);
    CORE_OK(c, until_failure(c, skewed_pass));
    wb_rebalance_stats stats = wb_rebalance_get_stats(c->manager);
    CORE_CHECK(c, stats.failures == 1 && stats.groups == 0 && stats.verdict == WB_REBALANCE_FAILED);
    CORE_CHECK(c, strstr(stats.failure, "changed by somebody else"));
    core_check_slots(c);
    core_rebalance(c, &random); /* at epochs after the one that it has seen */
    stats = wb_rebalance_get_stats(c->manager);
    CORE_CHECK(c, stats.failures == 1 && stats.epoch > 7);
    CORE_CHECK(c, stats.expected_balancedness > stats.balancedness && stats.longest_pause > 0 &&
                      stats.seconds > stats.longest_pause);
    core_close(c);
    return c->failures;
}

static void test_rule_22_a_map_changed_meanwhile_is_seen_before_a_slot_is_written(void **state) {
    (void)state;
    on_ranks(2, change_meanwhile);
    on_ranks(4, change_meanwhile);
}

/* Layer 2, which is to move, is older on rank 1; all are at a later epoch after the move. */
static int differ_in_epoch(wb_comm *comm, uint64_t seed) {
    core state = {.comm = comm, .seed = seed}, *c = &state;
    const wb_rebalance_options options = core_options();
    core_open(c, &options);
    deal(c, 0, 5);
    deal(c, 2, is_odd_one(c) ? 3 : 4);
    CORE_OK(c, until_failure(c, crowded_pass));
    const wb_rebalance_stats stats = wb_rebalance_get_stats(c->manager);
    CORE_CHECK(c, stats.failures == 1 && stats.groups == 0);
    CORE_CHECK(c, strstr(stats.failure, "checksum") || strstr(stats.failure, "rank"));
    core_check_slots(c);
    core_close(c);
    return c->failures;
}

static void test_canary_is_of_an_epoch(void **state) {
    (void)state;
    on_ranks(2, differ_in_epoch);
}

/* A solver that does not look at the map in force finds the same for both: the plans differ. */
static int differ_in_map(wb_comm *comm, uint64_t seed) {
    core state = {.comm = comm, .seed = seed}, *c = &state;
    wb_rebalance_options options = core_options();
    options.solver.algorithm = WB_EPLB_DEEPSEEK;
    core_open(c, &options);
    if (is_odd_one(c)) deal(c, 2, 0);
    CORE_OK(c, until_failure(c, crowded_pass));
    const wb_rebalance_stats stats = wb_rebalance_get_stats(c->manager);
    CORE_CHECK(c, stats.failures == 1 && stats.groups == 0);
    CORE_CHECK(c, strstr(stats.failure, "moves of experts") && strstr(stats.failure, "rank 1"));
    core_close(c);
    return c->failures;
}

static void test_moves_that_differ_are_named(void **state) {
    (void)state;
    on_ranks(4, differ_in_map);
}

/* ---- a solver that is slower on one rank --------------------------------------------------------- */

static int wait_for_the_slow(wb_comm *comm, uint64_t seed) {
    core state = {.comm = comm, .seed = seed}, *c = &state;
    wb_rebalance_options options = core_options();
    if (is_odd_one(c)) options.solver.algorithm = WB_EPLB_MICROBATCH, options.solver.trials = 2000000;
    core_open(c, &options);
    CORE_OK(c, until_failure(c, skewed_pass));
    CORE_CHECK(c, strstr(wb_rebalance_get_stats(c->manager).failure, "placement maps"));
    const uint64_t boundaries = wb_rebalance_get_stats(c->manager).boundaries;
    CORE_OK(c, wb_comm_check_equal(comm, &boundaries, sizeof boundaries, "boundaries"));
    core_close(c);
    return c->failures;
}

static void test_ranks_wait_for_the_slowest_solver(void **state) {
    (void)state;
    on_ranks(3, wait_for_the_slow);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_options_that_differ_are_named),
        cmocka_unit_test(test_rule_22_a_device_that_fails_in_the_flip_ends_the_job),
        cmocka_unit_test(test_rule_22_a_map_changed_meanwhile_is_seen_before_a_slot_is_written),
        cmocka_unit_test(test_canary_is_of_an_epoch),
        cmocka_unit_test(test_moves_that_differ_are_named),
        cmocka_unit_test(test_ranks_wait_for_the_slowest_solver),
    };
    rebalance_begin(argc, argv);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
