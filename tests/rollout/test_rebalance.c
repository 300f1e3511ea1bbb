/* test_rebalance.c - experts move while an engine generates: no token, log-probability, mask or route depends
 * on it, at 1 to 4 ranks, with redundant experts, uneven slots and dead ranks that feed requests of their
 * own; nor when all weights are replaced between the load and the moves; layers that a table routes become
 * balanced too. Argument 1 sets the seed. */
#include "rebalance_fixture.h"
#include "support/test_seed.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

static uint64_t base_seed;

static void fill_movers(mover *movers, uint64_t seed, wb_rebalance_options options, void (*play)(mover *)) {
    for (int r = 0; r < MAX_RANKS; r++) movers[r] = (mover){.seed = seed, .options = options, .play = play};
}

/* Of several ranks experts must have moved, or nothing was tested. */
static uint64_t run_on_ranks(uint64_t seed, wb_rebalance_options options, void (*play)(mover *)) {
    uint64_t moves = 0;
    for (int n = 1; n <= MAX_RANKS; n++) {
        mover movers[MAX_RANKS];
        fill_movers(movers, seed, options, play);
        run_movers(n, movers);
        if (n > 1) moves += movers[0].stats.moves;
        for (int r = 0; r < n; r++) {
            assert_int_equal(movers[r].stats.failures, 0);
            assert_int_equal(movers[r].stats.moves, movers[0].stats.moves);
        }
    }
    return moves;
}

static void play_two_loads(mover *m) {
    answer_as_alone(m, 5, 0, 10);
    answer_as_alone(m, 5, 10, 10);
}

static void test_rule_26_results_do_not_depend_on_moves(void **state) {
    uint64_t moves = 0;
    (void)state;
    for (uint64_t i = 0; i < 4; i++) {
        wb_rebalance_options o = eager_options();
        o.layers_per_chunk = i % 2 == 0 ? 1 : WB_ALL_MOE_LAYERS;
        o.move.n_shadow = i < 2 ? 1 : 2;
        o.solver.algorithm = i == 3 ? WB_EPLB_INCREMENTAL : WB_EPLB_BALANCED;
        moves += run_on_ranks(base_seed + i, o, play_two_loads);
    }
    assert_true(moves > 50);
}

/* Nor where experts are put into the memory of the others' devices beside a step whose rows go there too. */
static void test_rule_26_results_do_not_depend_on_what_is_put(void **state) {
    uint64_t moves = 0;
    (void)state;
    for (int n = 2; n <= MAX_RANKS; n++) {
        mover movers[MAX_RANKS];
        fill_movers(movers, base_seed + 20 + (uint64_t)n, eager_options(), play_two_loads);
        for (int r = 0; r < n; r++) movers[r].shares = true;
        const uint64_t put = __atomic_load_n(&fake_bytes_put, __ATOMIC_RELAXED);
        run_movers(n, movers);
        for (int r = 0; r < n; r++) assert_int_equal(movers[r].stats.failures, 0);
        moves += movers[0].stats.moves;
        if (movers[0].stats.moves > 0) assert_true(__atomic_load_n(&fake_bytes_put, __ATOMIC_RELAXED) > put);
    }
    assert_true(moves > 0);
    assert_int_equal(unshared_late, 0);
}

/* Weights that were replaced since the load was counted move as they are now. */
static void play_new_weights(mover *m) {
    answer_as_alone(m, 5, 0, 10);
    wb_placement *everywhere = full_placement(wb_comm_size(m->comm), N_LAYERS);
    wb_model *other = moving_model(m, 6, everywhere, false);
    must(wb_engine_set_weights(m->engine, other, 1), "weights");
    answer_as_alone(m, 6, 10, 10);
    wb_model_close(other);
    wb_placement_close(everywhere);
}

static void test_rule_23_weights_replaced_before_a_move(void **state) {
    (void)state;
    assert_true(run_on_ranks(base_seed + 10, eager_options(), play_new_weights) > 0);
}

/* ---- layers that are routed by a table ------------------------------------------------------------ */

/* Of a job, in the layers that a table routes: the sum of their balancedness under the first placement and
 * the last one, with the load of all answers. */
typedef struct hashed {
    double first, last;
    bool moved; /* whether such a layer has another map than at first */
} hashed;

static double balancedness_of(const wb_placement *placement, uint32_t layer, const double *loads) {
    double of_rank[MAX_RANKS];
    wb_placement_rank_loads(placement, layer, loads, of_rank);
    return wb_placement_balancedness(placement, of_rank);
}

/* Every layer's load is counted, and that of a hash layer is the table's: of this rank's own answers. */
static void play_hashed(mover *m) {
    const wb_placement *placement = wb_model_placement(m->model);
    const wb_hash_routes *hash = wb_model_hash_routes(m->model);
    double loads[N_LAYERS * N_EXPERTS];
    hashed *h = m->context;
    wb_placement *first;
    must(wb_placement_clone(placement, &first), "placement");
    for (uint32_t part = 0; part < 4; part++) answer_as_alone(m, 5, 8 * part, 8);
    for (uint32_t i = 0; i < N_LAYERS * N_EXPERTS; i++)
        loads[i] = (double)m->counts[i / N_EXPERTS][i % N_EXPERTS];
    must(wb_comm_all_reduce_f64(m->comm, loads, N_LAYERS * N_EXPERTS), "loads");
    for (uint32_t i = 0; i < hash->n_hash_layers; i++) {
        const uint32_t l = hash->hash_layers[i];
        const size_t bytes = wb_placement_topology(placement)->n_slots * sizeof(int32_t);
        h->first += balancedness_of(first, l, &loads[l * N_EXPERTS]);
        h->last += balancedness_of(placement, l, &loads[l * N_EXPERTS]);
        h->moved |= memcmp(wb_placement_layer(first, l).expert_of_slot,
                           wb_placement_layer(placement, l).expert_of_slot, bytes) != 0;
    }
    wb_placement_close(first);
}

/* Experts of hash layers move while they are used, at 1 to 4 ranks; answers are those of one rank, and the
 * load of these layers becomes more even. All layers are counted, each by its own number. */
static void test_rule_26_hash_layers_are_balanced_live(void **state) {
    double first = 0, last = 0;
    int moved = 0, jobs = 0;
    (void)state;
    for (int n = 1; n <= MAX_RANKS; n++)
        for (uint64_t i = 0; i < 3; i++, jobs++) {
            mover movers[MAX_RANKS];
            hashed of_rank[MAX_RANKS] = {{0}};
            wb_rebalance_options o = eager_options();
            o.load.window = 1000;
            fill_movers(movers, base_seed + 60 + 8 * (uint64_t)n + i, o, play_hashed);
            for (int r = 0; r < n; r++) movers[r].config = hashing_config(), movers[r].context = &of_rank[r];
            run_movers(n, movers);
            for (int r = 0; r < n; r++) {
                assert_int_equal(movers[r].stats.failures, 0);
                assert_true(movers[r].stats.decisions > 0);
                assert_int_equal(movers[r].stats.layers_without_load, 0);
                assert_true(of_rank[r].first == of_rank[0].first && of_rank[r].last == of_rank[0].last);
            }
            if (n == 1) assert_true(of_rank[0].first == 2 && of_rank[0].last == 2);
            moved += of_rank[0].moved;
            first += of_rank[0].first / 2, last += of_rank[0].last / 2;
        }
    printf("balancedness of hash layers: %.3f, after they moved %.3f; in %d of %d jobs\n", first / jobs,
           last / jobs, moved, jobs);
    assert_true(moved >= jobs / 2);
    assert_true(last > first);
}

/* ---- how long a step waits ------------------------------------------------------------------------ */

/* Bytes of the largest slot. */
static size_t slot_bytes(const mover *m) {
    const wb_expert_store store = wb_model_expert_store(m->model);
    const wb_physical_id first = {
        wb_placement_first_slot(wb_model_placement(m->model), (uint32_t)rank_of(m))};
    size_t largest = 0;
    for (uint32_t l = 0; l < N_LAYERS; l++) {
        wb_expert_part parts[8];
        size_t n, bytes = 0;
        must(store.slot(store.context, l, first, 8, parts, &n), "slot");
        if (n == 0 || n > 8) abort();
        for (size_t i = 0; i < n; i++) bytes += parts[i].bytes;
        if (bytes > largest) largest = bytes;
    }
    return largest;
}

/* A step makes one round of moves at most, by which this rank receives n_shadow experts, as by one group. */
static void play_step_by_step(mover *m) {
    dice d = {m->seed + (uint64_t)rank_of(m)};
    const size_t most = m->options.move.n_shadow * slot_bytes(m);
    ask asks[20];
    for (uint32_t i = 0; i < 20; i++) {
        asks[i] = ask_random(&d, i, (uint32_t)moving_config().vocab_size, 20, 24);
        must(wb_engine_submit(m->engine, ask_request(&asks[i])), "submit");
    }
    for (bool busy = true; busy;) {
        const wb_rebalance_stats before = wb_rebalance_get_stats(m->manager);
        must(wb_engine_step(m->engine, &busy), "step");
        const wb_rebalance_stats after = wb_rebalance_get_stats(m->manager);
        if (after.boundaries > before.boundaries + 1 || after.groups > before.groups + N_LAYERS) abort();
        if (after.bytes > before.bytes + most) abort();
    }
}

static void test_a_step_waits_for_one_group_at_most(void **state) {
    (void)state;
    uint64_t moves = 0;
    for (uint32_t n_shadow = 1; n_shadow <= 2; n_shadow++) {
        wb_rebalance_options o = eager_options();
        o.move.n_shadow = n_shadow;
        moves += run_on_ranks(base_seed + 40 + n_shadow, o, play_step_by_step);
    }
    assert_true(moves > 20);
}

/* ---- dead ranks ---------------------------------------------------------------------------------- */

/* The weights come from ranks of which none is dead, and the manager moves no expert to one that is. */
static void play_dead(mover *m) {
    const uint32_t r = (uint32_t)rank_of(m);
    play_new_weights(m);
    if (!m->dead[r]) return;
    const wb_placement *placement = wb_model_placement(m->model);
    for (uint32_t l = 0; l < N_LAYERS; l++)
        for (uint32_t s = wb_placement_first_slot(placement, r);
             s < wb_placement_first_slot(placement, r + 1); s++)
            if (wb_placement_layer(placement, l).expert_of_slot[s] != WB_NO_EXPERT) abort();
    if (wb_rebalance_get_stats(m->manager).bytes > 0) abort();
}

/* Each rank of 2, 3 and 4 in its turn, with replicas chosen by rank and by token; of more than one live rank
 * experts must have moved. */
static void test_rule_26_a_dead_rank_has_the_answers_of_any_other(void **state) {
    uint64_t moves = 0;
    (void)state;
    for (int n = 2; n <= MAX_RANKS; n++)
        for (int k = 0; k < n; k++) {
            mover movers[MAX_RANKS];
            fill_movers(movers, base_seed + 30 + (uint64_t)(n + k), eager_options(), play_dead);
            for (int r = 0; r < n; r++) movers[r].dead[k] = 1;
            run_movers(n, movers);
            for (int r = 0; r < n; r++) assert_int_equal(movers[r].stats.failures, 0);
            moves += movers[k].stats.moves;
            assert_true(movers[k].stats.decisions > 0);
        }
    assert_true(moves > 0);
}

/* ---- what others keep by slot --------------------------------------------------------------------- */

/* A mark of the expert in each slot of each layer. */
static void fill_marks(const mover *m, int32_t layer, uint64_t *marks) {
    const wb_placement *placement = wb_model_placement(m->model);
    const uint32_t first = wb_placement_first_slot(placement, (uint32_t)rank_of(m));
    const uint32_t end = wb_placement_first_slot(placement, (uint32_t)rank_of(m) + 1);
    const wb_layer_map map = wb_placement_layer(placement, (uint32_t)layer);
    for (uint32_t s = first; s < end; s++)
        marks[s - first] = wb_mix64((uint64_t)layer << 32 | (uint32_t)map.expert_of_slot[s]);
}

/* Attached between the load and the moves, as a tensor that the registry gains. */
static void play_attached(mover *m) {
    uint64_t *marks[N_LAYERS], expected[2 * MAX_RANKS * N_EXPERTS];
    const uint32_t r = (uint32_t)rank_of(m);
    const wb_placement *placement = wb_model_placement(m->model);
    const uint32_t n = wb_placement_first_slot(placement, r + 1) - wb_placement_first_slot(placement, r);
    for (int32_t l = 0; l < N_LAYERS; l++) {
        marks[l] = take(n, sizeof *marks[l]);
        fill_marks(m, l, marks[l]);
        must(wb_model_attach_slots(m->model, l, marks[l], sizeof *marks[l]), "attach");
    }
    answer_as_alone(m, 5, 0, 10);
    for (int32_t l = 0; l < N_LAYERS; l++) {
        const int32_t *experts = wb_placement_layer(placement, (uint32_t)l).expert_of_slot;
        fill_marks(m, l, expected);
        for (uint32_t s = 0; s < n; s++)
            if (experts[wb_placement_first_slot(placement, r) + s] >= 0 && marks[l][s] != expected[s])
                abort();
        wb_model_detach_slots(m->model, marks[l]);
        free(marks[l]);
    }
    answer_as_alone(m, 5, 10, 6);
}

static void test_rule_23_what_is_attached_to_slots_moves_with_them(void **state) {
    (void)state;
    assert_true(run_on_ranks(base_seed + 20, eager_options(), play_attached) > 0);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rule_26_results_do_not_depend_on_moves),
        cmocka_unit_test(test_rule_26_results_do_not_depend_on_what_is_put),
        cmocka_unit_test(test_rule_23_weights_replaced_before_a_move),
        cmocka_unit_test(test_rule_26_hash_layers_are_balanced_live),
        cmocka_unit_test(test_a_step_waits_for_one_group_at_most),
        cmocka_unit_test(test_rule_26_a_dead_rank_has_the_answers_of_any_other),
        cmocka_unit_test(test_rule_23_what_is_attached_to_slots_moves_with_them),
    };
    base_seed = test_seed(argc, argv);
    printf("seed %" PRIu64 "\n", base_seed);
    alarm(300);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
