/* test_alloc_fail_rebalance.c - every allocation of a manager is made to fail in turn on one rank of two,
 * when it opens, decides, solves in its thread, and moves: that rank says so, the other one names it, the
 * last map stays with the weights that it names, nothing leaks, and the next rebalance goes well. And
 * boundaries that move nothing allocate nothing. A hang is a failure by alarm. */
#include "rebalance_core.h"
#include "support/alloc_fail.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <dlfcn.h>
#include <pthread.h>

enum { RANKS = 2, POOR = 1, SEED = 11 };

/* What a manager does; the allocations of one of these are refused, or of none. */
typedef enum part { NOTHING, OPENING, DECIDING, SOLVING, MOVING } part;

typedef struct life {
    core core;
    wb_rebalance_options options;
    part part;
    long left; /* allocations of the part that succeed before one is refused; -1: it was */
    /* Boundaries that started no solver and moved nothing, and what they and their passes allocated. */
    long idle_boundaries, idle_allocations;
} life;

static bool is_poor(const life *l) {
    return wb_comm_rank(l->core.comm) == POOR;
}

/* ---- the solver's thread ----------------------------------------------------------------------- */

/* For the thread that the calling one starts next: allocations that succeed before one is refused, or -1. */
static _Thread_local long child_left = -1;
static atomic_bool child_refused;

#if ALLOC_FAIL_WORKS
/* One at a time: there is one poor rank. */
static struct {
    void *(*run)(void *);
    void *arg;
    long left;
} child;

static void *run_child(void *unused) {
    (void)unused;
    alloc_fail_this_thread_at(child.left);
    void *result = child.run(child.arg);
    child_refused = alloc_fail_this_thread_failed();
    return result;
}

/* In place of the system's own, which it calls. */
int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *), void *arg) {
    int (*create)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
    void *const found = dlsym(RTLD_NEXT, "pthread_create");
    memcpy(&create, &found, sizeof create); /* C has no cast from an object to a function */
    if (child_left < 0) return create(thread, attributes, run, arg);
    child.run = run, child.arg = arg, child.left = child_left;
    child_left = -1;
    return create(thread, attributes, run_child, NULL);
}
#endif

/* ---- a life with a refusal ----------------------------------------------------------------------- */

static void begin_part(const life *l, part which) {
    if (which == l->part && is_poor(l) && l->left >= 0) alloc_fail_this_thread_at(l->left);
}

static void end_part(life *l, part which) {
    if (which == l->part && is_poor(l) && l->left >= 0) l->left = alloc_fail_this_thread_left();
}

/* As core_open, but for the manager. */
static void open_core(core *c) {
    const wb_exchange_memory memory = core_memory(c);
    c->placement = core_topology(RANKS, CORE_EXPERTS + 4 * RANKS, NULL);
    CORE_OK(c, wb_exchange_open(c->comm, &memory, &c->exchange));
    core_add_kind(c, 300);
    core_add_kind(c, 7);
}

static void open_manager(life *l) {
    core *c = &l->core;
    const wb_expert_store store = core_store(c);
    begin_part(l, OPENING);
    const wb_status status = wb_rebalance_open(&store, &l->options, &c->manager);
    end_part(l, OPENING);
    if (status == WB_OK) return;
    CORE_CHECK(c, !c->manager && l->part == OPENING);
    CORE_CHECK(c, status == (is_poor(l) ? WB_OUT_OF_MEMORY : WB_PEER));
    CORE_CHECK(c, strstr(wb_error_message(), is_poor(l) ? "bytes" : "rank 1"));
    CORE_OK(c, wb_rebalance_open(&store, &l->options, &c->manager));
}

/* Somebody else has changed the placement, to a later epoch. */
static void change_placement(core *c) {
    for (uint32_t l = 0; l < CORE_LAYERS; l++) {
        const wb_layer_map map = wb_placement_layer(c->placement, l);
        CORE_OK(c, wb_placement_set_layer(c->placement, l, map.expert_of_slot, map.replica_of_slot, 7));
    }
}

typedef struct maps {
    uint64_t hash, epochs;
} maps;

static maps maps_of(const core *c) {
    maps m = {.hash = wb_placement_hash(c->placement)};
    for (uint32_t l = 0; l < CORE_LAYERS; l++) m.epochs += wb_placement_layer(c->placement, l).epoch;
    return m;
}

/* Both ranks have given up, and have the maps of before. */
static void check_failure(life *l, const wb_rebalance_stats *stats, maps before) {
    core *c = &l->core;
    const maps after = maps_of(c);
    CORE_CHECK(c, stats->stage == WB_REBALANCE_RECORDING && stats->verdict == WB_REBALANCE_FAILED);
    CORE_CHECK(c, strstr(stats->failure, is_poor(l) ? "bytes" : "rank 1"));
    CORE_CHECK(c, after.hash == before.hash && after.epochs == before.epochs);
    core_check_slots(c);
}

/* Four experts that are on one rank alone are hot, and after a failure four of the other rank: groups before
 * it may have evened out the first. */
static void count_pass(core *c, uint64_t *random) {
    const uint32_t changed = wb_rebalance_get_stats(c->manager).failures > 0;
    for (uint32_t l = 0; l < CORE_LAYERS; l++) {
        double weights[CORE_EXPERTS];
        for (uint32_t e = 0; e < CORE_EXPERTS; e++) weights[e] = e / 4 == 2 + (l + changed) % 2 ? 20 : 1;
        core_record(c, l, 200, weights, random);
    }
}

static void pass_and_boundary(life *l, uint64_t *random) {
    core *c = &l->core;
    const maps before = maps_of(c);
    const wb_rebalance_stats old = wb_rebalance_get_stats(c->manager);
    const part which = old.stage == WB_REBALANCE_RECORDING ? DECIDING : MOVING;
    if (l->part == SOLVING && is_poor(l)) child_left = l->left;
    begin_part(l, which);
    const long allocated = alloc_count_here();
    count_pass(c, random);
    CORE_OK(c, core_boundary(c));
    const long n = alloc_count_here() - allocated;
    end_part(l, which);
    const wb_rebalance_stats stats = wb_rebalance_get_stats(c->manager);
    if (l->part == SOLVING && is_poor(l) && child_left < 0) l->left = -1; /* it has gone to the solver */
    child_left = -1;
    CORE_CHECK(c, stats.failures <= old.failures + 1);
    if (stats.failures > old.failures) check_failure(l, &stats, before);
    if (stats.stage != old.stage || stats.stage == WB_REBALANCE_MOVING) return;
    l->idle_boundaries++;
    l->idle_allocations += n;
}

/* Until a rebalance has ended, whatever failed before. */
static void live(life *l) {
    core *c = &l->core;
    uint64_t random = SEED + (uint64_t)wb_comm_rank(c->comm);
    open_core(c);
    open_manager(l);
    change_placement(c);
    for (int i = 0; i < 1000 && wb_rebalance_get_stats(c->manager).rebalances == 0; i++)
        pass_and_boundary(l, &random);
    const wb_rebalance_stats stats = wb_rebalance_get_stats(c->manager);
    CORE_CHECK(c, stats.rebalances == 1 && stats.moves > 0);
    core_check_slots(c);
    core_close(c); /* waits for the solver */
    const bool refused = l->part == SOLVING ? child_refused : l->left < 0;
    if (l->part > OPENING && is_poor(l)) CORE_CHECK(c, stats.failures == refused);
}

/* Passes of which nothing comes, whatever is decided. */
static void idle(life *l) {
    core *c = &l->core;
    uint64_t random = SEED + (uint64_t)wb_comm_rank(c->comm);
    open_core(c);
    open_manager(l);
    for (int i = 0; i < 60; i++) pass_and_boundary(l, &random);
    CORE_CHECK(c, wb_rebalance_get_stats(c->manager).groups == 0);
    core_close(c);
}

static void *run_life(void *arg) {
    life *l = arg;
    if (l->part == NOTHING)
        idle(l);
    else
        live(l);
    return NULL;
}

static wb_rebalance_options eager(void) {
    wb_rebalance_options o = core_options();
    o.every = 2;
    o.solver.trials = 20;
    return o;
}

/* Fills lives [RANKS], which begin as `first`. */
static void run_lives(life first, life *lives) {
    wb_comm *comms[RANKS];
    pthread_t threads[RANKS];
    child_refused = false;
    assert_int_equal(wb_comm_open_threads(RANKS, comms), WB_OK);
    for (int r = 0; r < RANKS; r++) {
        lives[r] = first;
        lives[r].core.comm = comms[r];
        assert_int_equal(pthread_create(&threads[r], NULL, run_life, &lives[r]), 0);
    }
    for (int r = 0; r < RANKS; r++) pthread_join(threads[r], NULL);
    for (int r = 0; r < RANKS; r++) wb_comm_close(comms[r]);
}

/* Whether there was such an allocation. */
static bool refuse(part which, long n) {
    life lives[RANKS];
    long live_blocks;
    alloc_fail_arm(ALLOC_FAIL_NEVER, false);
    run_lives((life){.core.seed = SEED, .options = eager(), .part = which, .left = n}, lives);
    alloc_fail_disarm(&live_blocks);
    for (int r = 0; r < RANKS; r++)
        if (lives[r].core.failures > 0) fail_msg("allocation %ld fails", n);
    if (live_blocks != 0) fail_msg("allocation %ld fails: %ld blocks are not freed", n, live_blocks);
    return which == SOLVING ? child_refused : lives[POOR].left < 0;
}

/* `min`: fewer would mean that the part was not reached. */
static void refuse_all(part which, long min) {
    long n = 0;
    while (refuse(which, n)) n++;
    print_message("%ld allocations\n", n);
    assert_true(n >= min);
}

static void test_alloc_fail_open(void **state) {
    (void)state;
    refuse_all(OPENING, 20);
}

/* The pass that is counted, maps that others have changed, the sums, and the solver's start. */
static void test_alloc_fail_decide(void **state) {
    (void)state;
    refuse_all(DECIDING, 10);
}

static void test_alloc_fail_solve(void **state) {
    (void)state;
    refuse_all(SOLVING, 10);
}

static void test_alloc_fail_move(void **state) {
    (void)state;
    refuse_all(MOVING, 10);
}

/* ---- boundaries that move nothing ---------------------------------------------------------------- */

static void expect_no_allocations(wb_rebalance_options options) {
    life lives[RANKS];
    run_lives((life){.core.seed = SEED, .options = options}, lives);
    for (int r = 0; r < RANKS; r++) {
        assert_int_equal(lives[r].core.failures, 0);
        assert_true(lives[r].idle_boundaries >= 50);
        assert_int_equal(lives[r].idle_allocations, 0);
    }
}

/* Between decisions, at those that end at once, and while the solver is at work. */
static void test_boundaries_that_move_nothing_allocate_nothing(void **state) {
    (void)state;
    wb_rebalance_options seldom = eager(), easy = eager(), slow = eager();
    seldom.every = 1000;
    expect_no_allocations(seldom);
    easy.enough = 1e-9;
    expect_no_allocations(easy);
    slow.solver.algorithm = WB_EPLB_MICROBATCH;
    slow.solver.trials = 20000000;
    expect_no_allocations(slow);
}

int main(void) {
    if (!ALLOC_FAIL_WORKS) return 77;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_alloc_fail_open),
        cmocka_unit_test(test_alloc_fail_decide),
        cmocka_unit_test(test_alloc_fail_solve),
        cmocka_unit_test(test_alloc_fail_move),
        cmocka_unit_test(test_boundaries_that_move_nothing_allocate_nothing),
    };
    alarm(300);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
