/* test_moe_placement.c - forward, capture and gradients under random placements: uneven slots, ranks without
 * any, dead ranks, up to four replicas, empty slots, another map in each layer, 1 to 4 ranks, replicas chosen
 * by rank and by token. Routes, log-probabilities and logits are the bits of one rank; gradients differ in
 * the order of sums alone. Argument 1 sets the seed. */
#include "model_ranks.h"
#include "placement_fixture.h"
#include "support/test_seed.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <pthread.h>

enum { MAX_RANKS = 4, ROUNDS = 3 };

static uint64_t base_seed;

typedef struct rank {
    wb_comm *comm;
    uint64_t seed;
    int failures;
} rank;

static void run_variant(rank *r, variant v, wb_dispatch_policy dispatch) {
    const wb_config config = variant_config(v);
    uint64_t state = r->seed;
    wb_comm *self;
    MUST(wb_comm_open_self(&self));
    ranks_test test = {.name = wb_dispatch_policy_name(dispatch), .seed = r->seed};
    test.whole = fixture_create(&config, r->seed, self, 1);
    const wb_route_model *routes = wb_model_routes(test.whole.model);
    wb_placement *placement =
        placement_random((int32_t)routes->n_moe_layers, (int32_t)wb_route_weighted(routes),
                         wb_comm_size(r->comm), &state, true);
    test.spread = fixture_create_placed(&config, r->seed, r->comm, 1, placement, dispatch);
    wb_placement_close(placement);
    r->failures += ranks_test_run(&test);
    wb_comm_close(self);
}

static void *run_rank(void *arg) {
    rank *r = arg;
    for (int v = 0; v < N_VARIANTS; v++) {
        run_variant(r, (variant)v, WB_DISPATCH_STATIC);
        run_variant(r, (variant)v, WB_DISPATCH_DYNAMIC);
    }
    return NULL;
}

static void on_ranks(int R, uint64_t seed) {
    wb_comm *comms[MAX_RANKS];
    pthread_t threads[MAX_RANKS];
    rank ranks[MAX_RANKS];
    MUST(wb_comm_open_threads(R, comms));
    for (int i = 0; i < R; i++) {
        ranks[i] = (rank){.comm = comms[i], .seed = seed};
        assert_int_equal(pthread_create(&threads[i], NULL, run_rank, &ranks[i]), 0);
    }
    int failures = 0;
    for (int i = 0; i < R; i++) {
        pthread_join(threads[i], NULL);
        failures += ranks[i].failures;
    }
    for (int i = 0; i < R; i++) wb_comm_close(comms[i]);
    assert_int_equal(failures, 0);
}

static void test_rule_26_no_bit_depends_on_the_placement(void **unused) {
    (void)unused;
    for (int i = 0; i < ROUNDS; i++)
        for (int R = 1; R <= MAX_RANKS; R++) on_ranks(R, base_seed + (uint64_t)(10 * i + R));
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_rule_26_no_bit_depends_on_the_placement)};
    base_seed = test_seed(argc, argv);
    printf("seed %" PRIu64 "\n", base_seed);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
