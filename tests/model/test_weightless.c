/* test_weightless.c - a model with experts without weights and a K of its own in each MoE layer, over ranks
 * and under random placements: routes, log-probabilities and logits are the bits of one rank, forward and
 * forced; gradients differ in the order of sums alone; no slot is ever of an expert without weights. Argument
 * 1 sets the seed. */
#include "made_up_fixture.h"
#include "model_ranks.h"
#include "placement_fixture.h"
#include "support/test_seed.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <pthread.h>

enum { MAX_RANKS = 4 };

static uint64_t base_seed;

typedef struct rank {
    wb_comm *comm;
    uint64_t seed;
    int failures;
} rank;

static void run_placed(rank *r, wb_dispatch_policy dispatch, bool replicas) {
    wb_config config;
    wb_comm *self;
    uint64_t state = r->seed;
    MUST(made_up_config(&config));
    MUST(wb_comm_open_self(&self));
    ranks_test test = {.name = wb_dispatch_policy_name(dispatch), .seed = r->seed};
    test.whole = made_up_fixture_placed(self, &config, r->seed, NULL, WB_DISPATCH_STATIC);
    const wb_route_model *routes = wb_model_routes(test.whole.model);
    wb_placement *placement =
        placement_random((int32_t)routes->n_moe_layers, (int32_t)wb_route_weighted(routes),
                         wb_comm_size(r->comm), &state, replicas);
    test.spread = made_up_fixture_placed(r->comm, &config, r->seed, placement, dispatch);
    wb_placement_close(placement);
    r->failures += ranks_test_run(&test);
    wb_comm_close(self);
}

static void *run_rank(void *arg) {
    rank *r = arg;
    for (int replicas = 0; replicas < 2; replicas++) {
        run_placed(r, WB_DISPATCH_STATIC, replicas);
        run_placed(r, WB_DISPATCH_DYNAMIC, replicas);
    }
    return NULL;
}

static void on_ranks(int R, uint64_t seed) {
    wb_comm *comms[MAX_RANKS];
    pthread_t threads[MAX_RANKS];
    rank ranks[MAX_RANKS];
    int failures = 0;
    MUST(wb_comm_open_threads(R, comms));
    for (int i = 0; i < R; i++) {
        ranks[i] = (rank){.comm = comms[i], .seed = seed};
        assert_int_equal(pthread_create(&threads[i], NULL, run_rank, &ranks[i]), 0);
    }
    for (int i = 0; i < R; i++) {
        pthread_join(threads[i], NULL);
        failures += ranks[i].failures;
    }
    for (int i = 0; i < R; i++) wb_comm_close(comms[i]);
    assert_int_equal(failures, 0);
}

static void test_rule_37_no_bit_depends_on_ranks_or_placement(void **unused) {
    (void)unused;
    for (int R = 1; R <= MAX_RANKS; R++) on_ranks(R, base_seed + (uint64_t)R);
}

/* The model says it of itself, and a placement that has slots for all experts is refused. */
static void test_rule_37_weightless_experts_have_no_slots(void **unused) {
    (void)unused;
    wb_config config;
    wb_comm *self;
    MUST(made_up_config(&config));
    MUST(wb_comm_open_self(&self));
    fixture f = made_up_fixture_placed(self, &config, base_seed, NULL, WB_DISPATCH_STATIC);
    const wb_route_model *routes = wb_model_routes(f.model);
    assert_int_equal(routes->num_experts, 8);
    assert_int_equal(routes->n_weightless, 2);
    assert_int_equal(routes->layer_top_k[1], 3);
    assert_int_equal(wb_placement_experts(wb_model_placement(f.model)), 6);
    for (int32_t i = 0; i < wb_model_n_tensors(f.model); i++)
        assert_true(wb_model_tensor(f.model, i).expert < 6);
    wb_placement *all = NULL;
    const wb_topology topology = {.n_ranks = 1, .n_nodes = 1, .n_slots = 8};
    MUST(wb_placement_open(&topology, 3, 8, &all));
    wb_device *device;
    wb_model *refused = NULL;
    MUST(wb_device_open_cpu(1, &device));
    const wb_model_options options = {.size = sizeof options,
                                      .device = device,
                                      .comm = self,
                                      .dtype = WB_F32,
                                      .activations = WB_F32,
                                      .placement = all};
    assert_int_equal(wb_model_new(&config, &made_up_family, &options, &refused), WB_MISMATCH);
    assert_non_null(strstr(wb_error_message(), "experts: expected 6, as in the model, found 8"));
    wb_device_close(device);
    wb_placement_close(all);
    fixture_close(&f);
    wb_comm_close(self);
}

/* A family whose keys do not say it cannot be written with them, or the file would be of another model. */
static void test_other_families_cannot_write_them(void **unused) {
    (void)unused;
    wb_config config;
    wb_family_rules other = made_up_family;
    char *text = NULL;
    other.layer_choices = false;
    MUST(made_up_config(&config));
    assert_int_equal(wb_config_text(&config, &other, NULL, WB_F32, &text), WB_UNSUPPORTED);
    assert_non_null(strstr(wb_error_message(), "no keys for experts without weights"));
    assert_null(text);
}

int main(int argc, char **argv) {
    base_seed = test_seed(argc, argv);
    printf("seed %" PRIu64 "\n", base_seed);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rule_37_no_bit_depends_on_ranks_or_placement),
        cmocka_unit_test(test_rule_37_weightless_experts_have_no_slots),
        cmocka_unit_test(test_other_families_cannot_write_them),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
