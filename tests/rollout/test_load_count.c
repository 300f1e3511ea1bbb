/* test_load_count.c - what an engine's steps count for a manager of experts, by phase, layer and expert: each
 * row of each record once; and a manager of other experts is refused. Argument 1 sets the seed. */
#include "manage/rebalance_state.h"
#include "rebalance_fixture.h"
#include "support/test_seed.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

static uint64_t base_seed;

enum { ASKS = 5 };

/* The counts of the records, which have their routes from elsewhere: from what was returned; and their rows
 * behind the prompts. */
static wb_load *load_of_records(mover *m, uint64_t *n_decoded_out) {
    const wb_load_region region = {"records", N_LAYERS, N_EXPERTS, 0};
    wb_load *load;
    must(wb_load_open(1, &region, NULL, &load), "load");
    *n_decoded_out = 0;
    for (int i = 0; i < ASKS; i++) {
        wb_completion *found = wb_engine_poll(m->engine);
        if (!found) abort();
        *n_decoded_out += found->record.n_tokens - 1 - found->record.prompt_len;
        must(wb_load_add_record(load, 0, wb_model_routes(m->model), &found->record, false), "record");
        wb_completion_free(found);
    }
    must(wb_load_end_pass(load, NULL), "pass");
    return load;
}

static void compare_counts(const mover *m, const wb_load *expected_load) {
    uint32_t phases_seen = 0;
    for (uint32_t phase = 0; phase < WB_N_PHASES; phase++) {
        double found[N_LAYERS * N_EXPERTS], expected[N_LAYERS * N_EXPERTS];
        must(wb_load_counts(m->manager->load, 0, 1u << phase, found), "counts");
        must(wb_load_counts(expected_load, 0, 1u << phase, expected), "counts");
        for (int c = 0; c < N_LAYERS * N_EXPERTS; c++) {
            if (found[c] > 0) phases_seen |= 1u << phase;
            if (found[c] == expected[c]) continue;
            fprintf(stderr, "seed %" PRIu64 ", phase %u, layer %d, expert %d: expected %g, found %g\n",
                    m->seed, phase, c / N_EXPERTS, c % N_EXPERTS, expected[c], found[c]);
            abort();
        }
    }
    if (phases_seen != (1u << WB_PHASE_PREFILL | 1u << WB_PHASE_DECODE)) abort();
}

static void play_counted(mover *m) {
    dice d = {m->seed + (uint64_t)rank_of(m)};
    ask asks[ASKS];
    const uint32_t vocab = (uint32_t)config_of(m).vocab_size;
    for (uint32_t i = 0; i < ASKS; i++) {
        asks[i] = ask_random(&d, i, vocab, 20, 12); /* room for all at once: none is fed again */
        asks[i].request.return_routes = true;
        asks[i].request.n_stop = 0;
        must(wb_engine_submit(m->engine, ask_request(&asks[i])), "submit");
    }
    run_dry(m->engine, 1000);
    must(wb_rebalance_boundary(m->manager), "the pass of the last step");
    uint64_t n_decoded;
    wb_load *expected = load_of_records(m, &n_decoded);
    compare_counts(m, expected);
    const uint64_t found = wb_engine_get_stats(m->engine).decode_tokens;
    if (found != n_decoded) {
        fprintf(stderr, "seed %" PRIu64 ": decode_tokens: expected %" PRIu64 ", found %" PRIu64 "\n", m->seed,
                n_decoded, found);
        abort();
    }
    wb_load_close(expected);
}

static void expect_counts(int n_ranks, uint64_t seed, wb_config config, int32_t max_drafts) {
    mover movers[MAX_RANKS];
    wb_rebalance_options options = wb_rebalance_options_default();
    options.every = 1000000;
    for (int r = 0; r < n_ranks; r++)
        movers[r] = (mover){.seed = seed,
                            .options = options,
                            .config = config,
                            .max_drafts = max_drafts,
                            .feeds_once = true,
                            .play = play_counted};
    run_movers(n_ranks, movers);
}

static void test_rule_27_each_row_counts_once_in_its_phase_and_layer(void **state) {
    (void)state;
    for (int n = 1; n <= 2; n++) expect_counts(n, base_seed, moving_config(), 0);
}

/* A draft that was wrong does not count, and what a state is fed again after it counts once; MTP layers are
 * none of those that are counted. */
static void test_rule_27_drafts_of_mtp_layers_do_not_count(void **state) {
    (void)state;
    for (uint64_t seed = base_seed; seed < base_seed + 10; seed++)
        for (int i = 0; i < 2 * N_GUESSING; i++)
            expect_counts(i % 2 + 1, seed, guessing_config(guessing_families[i / 2]), 1);
}

/* Before it runs: a step could not be counted on that rank alone. */
static void play_other_model(mover *m) {
    const wb_config config = tiny_config(WB_FAMILY_QWEN3_MOE, N_EXPERTS, 3, N_LAYERS - 1, 0);
    rig other = rig_open(&config, 7, 1, NULL);
    wb_engine_options options = wb_engine_options_default();
    wb_engine *engine = NULL;
    options.n_blocks = 64;
    options.rebalance = m->manager;
    if (wb_engine_open(other.model, &options, &engine) != WB_MISMATCH || engine) abort();
    if (!strstr(wb_error_message(), "a manager of 3 layers of 12 experts, expected 2 of 12")) abort();
    rig_close(&other);
}

static void test_a_manager_of_another_model_is_refused(void **state) {
    (void)state;
    mover movers[MAX_RANKS] = {
        {.seed = base_seed, .options = wb_rebalance_options_default(), .play = play_other_model}};
    run_movers(1, movers);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rule_27_each_row_counts_once_in_its_phase_and_layer),
        cmocka_unit_test(test_rule_27_drafts_of_mtp_layers_do_not_count),
        cmocka_unit_test(test_a_manager_of_another_model_is_refused),
    };
    base_seed = test_seed(argc, argv);
    printf("seed %" PRIu64 "\n", base_seed);
    alarm(120);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
