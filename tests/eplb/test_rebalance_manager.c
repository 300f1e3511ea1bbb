/* test_rebalance_manager.c - the manager between threads: experts and maps move together, a chunk of one
 * layer and all at once end alike, noise and one rank's view move nothing, and what fails leaves the last
 * map. Argument 1 sets the seed. */
#include "rebalance_core.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <pthread.h>
#include <time.h>
#include <unistd.h>

static uint64_t base_seed;

typedef struct job {
    wb_comm *comm;
    uint64_t seed;
    int (*body)(wb_comm *comm, uint64_t seed);
    int failures;
} job;

static void *run_job(void *arg) {
    job *j = arg;
    j->failures = j->body(j->comm, j->seed);
    return NULL;
}

static void on_ranks(int n, int (*body)(wb_comm *comm, uint64_t seed)) {
    wb_comm *comms[MAX_CORE_RANKS];
    pthread_t threads[MAX_CORE_RANKS];
    job jobs[MAX_CORE_RANKS];
    assert_int_equal(wb_comm_open_threads(n, comms), WB_OK);
    for (int r = 0; r < n; r++) {
        jobs[r] = (job){comms[r], base_seed, body, 0};
        assert_int_equal(pthread_create(&threads[r], NULL, run_job, &jobs[r]), 0);
    }
    for (int r = 0; r < n; r++) pthread_join(threads[r], NULL);
    for (int r = 0; r < n; r++) wb_comm_close(comms[r]);
    for (int r = 0; r < n; r++) assert_int_equal(jobs[r].failures, 0);
}

static void test_rule_22_maps_and_weights_change_together(void **state) {
    (void)state;
    for (int n = 1; n <= MAX_CORE_RANKS; n++) on_ranks(n, rebalance_core_run);
}

/* ---- chunks -------------------------------------------------------------------------------------- */

/* One decision on the same counts. */
static uint64_t hash_after(wb_comm *comm, uint64_t seed, int64_t layers_per_chunk, int *failures) {
    core state = {.comm = comm, .seed = seed}, *c = &state;
    wb_rebalance_options options = core_options();
    options.layers_per_chunk = layers_per_chunk;
    uint64_t random = seed + (uint64_t)wb_comm_rank(comm);
    core_open(c, &options);
    for (int i = 0; i < 4; i++) {
        core_skewed_pass(c, 20, &random);
        CORE_OK(c, core_boundary(c));
    }
    for (int i = 0; i < 2000 && wb_rebalance_get_stats(c->manager).rebalances == 0; i++)
        CORE_OK(c, core_boundary(c));
    CORE_CHECK(c, wb_rebalance_get_stats(c->manager).rebalances == 1);
    const uint64_t hash = wb_placement_hash(c->placement);
    core_close(c);
    *failures += c->failures;
    return hash;
}

static int compare_chunks(wb_comm *comm, uint64_t seed) {
    int failures = 0;
    const uint64_t all = hash_after(comm, seed, WB_ALL_MOE_LAYERS, &failures);
    return failures + (hash_after(comm, seed, 1, &failures) != all) +
           (hash_after(comm, seed, 3, &failures) != all);
}

static void test_rule_24_chunks_end_alike(void **state) {
    (void)state;
    on_ranks(2, compare_chunks);
    on_ranks(4, compare_chunks);
}

static void expect_refused(wb_rebalance_options options, const char *words) {
    core c = {0};
    assert_int_equal(wb_comm_open_self(&c.comm), WB_OK);
    const wb_exchange_memory memory = core_memory(&c);
    assert_int_equal(wb_exchange_open(c.comm, &memory, &c.exchange), WB_OK);
    c.placement = core_topology(1, CORE_EXPERTS, NULL);
    const wb_expert_store store = core_store(&c);
    assert_int_equal(wb_rebalance_open(&store, &options, &c.manager), WB_INVALID_ARGUMENT);
    assert_non_null(strstr(wb_error_message(), words));
    assert_null(c.manager);
    core_close(&c);
    wb_comm_close(c.comm);
}

static void test_rule_24_no_layers_a_chunk_is_an_error(void **state) {
    (void)state;
    for (int64_t n = -1; n <= 0; n++) {
        wb_rebalance_options options = core_options();
        options.layers_per_chunk = n;
        expect_refused(options, "layers_per_chunk: expected 1 or more");
    }
}

/* Found at open, and not by each move. */
static void test_shadow_slots_out_of_range_are_refused(void **state) {
    (void)state;
    for (uint32_t n = 0; n <= 3; n += 3) {
        wb_rebalance_options options = core_options();
        options.move.n_shadow = n;
        expect_refused(options, "n_shadow: expected 1..2");
    }
}

/* ---- what is no reason to move -------------------------------------------------------------------- */

static wb_rebalance_stats decide_on(core *c, uint32_t passes, void (*pass)(core *, uint64_t *)) {
    uint64_t random = c->seed + (uint64_t)wb_comm_rank(c->comm);
    for (uint32_t i = 0; i < passes; i++) {
        pass(c, &random);
        CORE_OK(c, core_boundary(c));
    }
    for (int i = 0; i < 2000 && wb_rebalance_get_stats(c->manager).stage != WB_REBALANCE_RECORDING; i++)
        CORE_OK(c, core_boundary(c));
    return wb_rebalance_get_stats(c->manager);
}

static void even_pass(core *c, uint64_t *state) {
    core_skewed_pass(c, 0, state);
}

static void no_pass(core *c, uint64_t *state) {
    (void)c, (void)state;
}

/* The experts of the last rank's block alone, in all layers but the first, which is even. */
static void one_sided_pass(core *c, uint64_t *state) {
    const int R = wb_comm_size(c->comm);
    for (uint32_t l = 0; l < CORE_LAYERS; l++) {
        double weights[CORE_EXPERTS];
        for (int e = 0; e < CORE_EXPERTS; e++) weights[e] = l == 0 || e >= CORE_EXPERTS * (R - 1) / R;
        core_record(c, l, 200, weights, state);
    }
}

/* Only layer 2, and that with a skew: the others were dense, or nobody looked. */
static void lonely_pass(core *c, uint64_t *state) {
    double weights[CORE_EXPERTS];
    for (int e = 0; e < CORE_EXPERTS; e++) weights[e] = e == 3 ? 30 : 1;
    core_record(c, 2, 200, weights, state);
}

static int judge_loads(wb_comm *comm, uint64_t seed) {
    int failures = 0;
    const struct {
        void (*pass)(core *, uint64_t *);
        wb_rebalance_verdict verdict;
        double enough, horizon_passes;
        uint32_t without_load, one_sided;
    } cases[] = {
        {even_pass, WB_REBALANCE_NOISE, 1, 1e18, 0, 0},
        {no_pass, WB_REBALANCE_NO_LOAD, 1, 1e18, CORE_LAYERS, 0},
        {one_sided_pass, WB_REBALANCE_MOVED, 1, 1e18, 0, CORE_LAYERS - 1},
        {lonely_pass, WB_REBALANCE_BALANCED, 1e-9, 1e18, CORE_LAYERS - 1, 0},
        {lonely_pass, WB_REBALANCE_NO_GAIN, 1, 0, CORE_LAYERS - 1, 0},
        {lonely_pass, WB_REBALANCE_MOVED, 1, 1e18, CORE_LAYERS - 1, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        core state = {.comm = comm, .seed = seed + i}, *c = &state;
        wb_rebalance_options options = core_options();
        options.enough = cases[i].enough, options.horizon_passes = cases[i].horizon_passes;
        core_open(c, &options);
        const wb_rebalance_stats stats = decide_on(c, 4, cases[i].pass);
        if (stats.verdict != cases[i].verdict)
            fprintf(stderr, "case %zu: verdict %s\n", i, wb_rebalance_verdict_name(stats.verdict));
        CORE_CHECK(c, stats.verdict == cases[i].verdict);
        CORE_CHECK(c, (stats.moves > 0) == (cases[i].verdict == WB_REBALANCE_MOVED));
        CORE_CHECK(c, stats.layers_without_load == cases[i].without_load);
        CORE_CHECK(c, stats.one_sided_layers == cases[i].one_sided);
        for (uint32_t l = 0; l < CORE_LAYERS; l++)
            if (l != 2 && cases[i].pass == lonely_pass)
                CORE_CHECK(c, wb_placement_layer(c->placement, l).epoch == 0);
        core_close(c);
        failures += c->failures;
    }
    return failures;
}

static void test_rule_33_noise_and_no_information_move_nothing(void **state) {
    (void)state;
    on_ranks(4, judge_loads);
}

/* ---- failures that leave the last map ------------------------------------------------------------ */

/* Damages what is copied from another rank. */
static wb_status damaging_copy(void *context, void *to, const void *from, size_t bytes) {
    core *c = context;
    memcpy(to, from, bytes);
    if (c->damage_copy > 0 && --c->damage_copy == 0 && bytes > 0) ((unsigned char *)to)[bytes / 2] ^= 1;
    return WB_OK;
}

/* Layer 2 alone, on experts that lie together at first. */
static void crowded_pass(core *c, uint64_t *state) {
    double weights[CORE_EXPERTS];
    for (int e = 0; e < CORE_EXPERTS; e++) weights[e] = e >= 8 && e < 12 ? 30 : 1;
    core_record(c, 2, 200, weights, state);
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
        cmocka_unit_test(test_rule_22_maps_and_weights_change_together),
        cmocka_unit_test(test_rule_24_chunks_end_alike),
        cmocka_unit_test(test_rule_24_no_layers_a_chunk_is_an_error),
        cmocka_unit_test(test_shadow_slots_out_of_range_are_refused),
        cmocka_unit_test(test_rule_33_noise_and_no_information_move_nothing),
        cmocka_unit_test(test_canary_finds_a_damaged_expert),
        cmocka_unit_test(test_a_store_that_fails_leaves_the_map),
        cmocka_unit_test(test_a_map_that_differs_is_found_by_its_rank),
        cmocka_unit_test(test_a_solver_that_is_late_is_given_up),
    };
    base_seed = argc > 1 ? strtoull(argv[1], NULL, 10) : (uint64_t)time(NULL);
    printf("seed %" PRIu64 "\n", base_seed);
    alarm(300);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
