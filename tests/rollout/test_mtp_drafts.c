/* test_mtp_drafts.c - drafts of MTP layers: what a request returns is what it returns without them, whatever
 * is drafted, on any number of ranks and while experts move, which those of MTP layers never do. Argument 1
 * sets the seed. */
#include "engine.h"
#include "engine_rig.h"
#include "rebalance_fixture.h"
#include "support/test_seed.h"

static uint64_t base_seed;

static wb_engine *open_engine(wb_model *model, dice *d, bool drafts) {
    wb_engine_options options = wb_engine_options_default();
    options.block_size = (int32_t)pick(d, 1, 6);
    options.n_blocks = (int32_t)pick(d, 52, 64) / options.block_size;
    options.max_batch_tokens = (int32_t)pick(d, 3, 24);
    options.max_running = (int32_t)pick(d, 1, 6);
    options.prefix_cache = pick(d, 0, 1) == 0;
    options.max_drafts = drafts ? (int32_t)pick(d, 1, 3) : 0;
    wb_engine *engine = NULL;
    assert_ok(wb_engine_open(model, &options, &engine));
    return engine;
}

static wb_engine_stats run_some(wb_model *model, uint64_t seed, bool drafts) {
    enum { N = 8 };
    dice d = {seed};
    wb_engine *engine = open_engine(model, &d, drafts);
    ask asks[N];
    for (uint32_t i = 0; i < N; i++) {
        asks[i] = ask_random(&d, i, 7, 16, 28);
        if (i % 2 == 1) { /* the prompt of the one before: a state is taken over at a prompt's end alone */
            asks[i].request.n_tokens = asks[i - 1].request.n_tokens;
            memcpy(asks[i].prompt, asks[i - 1].prompt, sizeof asks[i].prompt);
        }
        assert_ok(wb_engine_submit(engine, ask_request(&asks[i])));
    }
    run_dry(engine, 2000);
    for (wb_completion *found; (found = wb_engine_poll(engine));) {
        ask *a = asks;
        while (strcmp(a->rid, found->record.rid) != 0) a++;
        wb_completion *alone = run_alone(model, a);
        const char *what = difference(wb_model_routes(model), alone, found);
        if (what) fail_msg("seed %d: request %s: %s differ", (int)seed, a->rid, what);
        assert_record_good(model, found);
        wb_completion_free(alone);
        wb_completion_free(found);
    }
    const wb_engine_stats stats = wb_engine_get_stats(engine);
    wb_engine_close(engine);
    return stats;
}

static void expect_no_draft_shown(wb_family family) {
    const wb_config c = guessing_config(family);
    rig r = rig_open(&c, 5, 1, NULL);
    uint64_t drafts = 0, accepted = 0, preemptions = 0, taken_over = 0;
    for (uint64_t i = 0; i < 20; i++) {
        const wb_engine_stats stats = run_some(r.model, base_seed + i, true);
        assert_true(stats.accepted_drafts <= stats.drafts);
        drafts += stats.drafts, accepted += stats.accepted_drafts;
        preemptions += stats.preemptions, taken_over += stats.taken_over_tokens;
    }
    printf("%" PRIu64 " of %" PRIu64 " drafts accepted, %" PRIu64 " preemptions, %" PRIu64
           " tokens taken over\n",
           accepted, drafts, preemptions, taken_over);
    assert_true(accepted > 0 && accepted < drafts && preemptions > 0 && taken_over > 0);
    assert_int_equal(run_some(r.model, base_seed, false).drafts, 0);
    rig_close(&r);
}

static void test_rule_8_what_is_returned_shows_no_draft(void **state) {
    (void)state;
    for (int i = 0; i < N_GUESSING; i++) expect_no_draft_shown(guessing_families[i]);
}

/* Every decode of a request alone in a pool with room is fed as many drafts as there may be, over the ends of
 * blocks too, and blocks that were held for them alone are free behind the step. */
static void test_a_decode_has_as_many_drafts_as_asked_for(void **state) {
    (void)state;
    const wb_config c = guessing_config(WB_FAMILY_DEEPSEEK_V3);
    rig r = rig_open(&c, 5, 1, NULL);
    for (int32_t max_drafts = 1; max_drafts <= 5; max_drafts++) {
        wb_engine_options options = wb_engine_options_default();
        options.block_size = 3, options.n_blocks = 12, options.max_drafts = max_drafts;
        wb_engine *engine = NULL;
        assert_ok(wb_engine_open(r.model, &options, &engine));
        ask a = ask_fixed("a", 3, 24);
        for (uint32_t i = 0; i < a.request.n_tokens; i++) a.prompt[i] = i;
        assert_ok(wb_engine_submit(engine, ask_request(&a)));
        uint64_t drafts = 0;
        for (bool busy = true; busy;) {
            const wb_engine_stats before = wb_engine_get_stats(engine);
            /* Of the new tokens the first one comes with the prefill, the others are fed and count. */
            const int32_t left = 24 - 1 - (int32_t)before.decode_tokens - 1;
            if (before.steps > 0) drafts += (uint64_t)(left < max_drafts ? left : max_drafts);
            assert_ok(wb_engine_step(engine, &busy));
            const wb_engine_stats now = wb_engine_get_stats(engine);
            assert_int_equal(now.drafts, drafts);
            const int32_t length = 3 + 1 + (int32_t)now.decode_tokens;
            if (busy) assert_true(now.n_blocks - now.free_blocks <= (length + 2) / 3);
        }
        assert_int_equal(wb_engine_get_stats(engine).free_blocks, 12);
        wb_completion_free(wb_engine_poll(engine));
        wb_engine_close(engine);
    }
    rig_close(&r);
}

/* Steps of CUDA become graphs, those of the MTP layers too. */
static void test_on_cuda(void **state) {
    (void)state;
    if (wb_device_count_cuda() == 0) skip();
    uint64_t accepted = 0;
    for (uint64_t i = 0; i < 4 * N_GUESSING; i++) {
        const wb_config c = guessing_config(guessing_families[i / 4]);
        wb_device *device = NULL;
        assert_ok(wb_device_open_cuda(0, NULL, &device));
        rig r = rig_open_on(&c, 5, device, NULL, i % 2 == 0 ? WB_F32 : WB_BF16);
        accepted += run_some(r.model, base_seed + i, true).accepted_drafts;
        rig_close(&r);
    }
    printf("%" PRIu64 " drafts accepted on CUDA\n", accepted);
    assert_true(accepted > 0);
}

/* Where an expert of the decoder is, by slot, and where one of the MTP layers is. */
typedef struct places {
    uint64_t decoder, mtp;
} places;

static places places_of(const wb_model *model) {
    return (places){wb_placement_hash(wb_model_placement(model)),
                    wb_placement_hash(wb_model_placement(wb_model_mtp(model)))};
}

static void play_and_look(mover *m) {
    const places before = places_of(m->model);
    answer_as_alone(m, 5, 0, 10);
    answer_as_alone(m, 5, 10, 10);
    const places after = places_of(m->model);
    if (after.mtp != before.mtp) abort();
    if (wb_rebalance_get_stats(m->manager).moves > 0 && after.decoder == before.decoder) abort();
    *(wb_engine_stats *)m->context = wb_engine_get_stats(m->engine);
}

/* Rows of two and of four ranks go by mailboxes, where MTP layers have fewer slots than the decoder. */
static void test_rebalance_moves_experts_of_the_decoder_only(void **state) {
    (void)state;
    uint64_t moves = 0, drafts = 0, accepted = 0;
    for (int i = 0; i < MAX_RANKS * N_GUESSING; i++) {
        const int n = i % MAX_RANKS + 1;
        mover movers[MAX_RANKS];
        wb_engine_stats stats[MAX_RANKS];
        for (int r = 0; r < MAX_RANKS; r++)
            movers[r] = (mover){.seed = base_seed + (uint64_t)n,
                                .dead = {[1] = n == 3},
                                .options = eager_options(),
                                .config = guessing_config(guessing_families[i / MAX_RANKS]),
                                .max_drafts = 3,
                                .shares = i % 2 == 1,
                                .play = play_and_look,
                                .context = &stats[r]};
        run_movers(n, movers);
        moves += n > 1 ? movers[0].stats.moves : 0;
        for (int r = 0; r < n; r++) drafts += stats[r].drafts, accepted += stats[r].accepted_drafts;
    }
    printf("%" PRIu64 " moves, %" PRIu64 " of %" PRIu64 " drafts accepted\n", moves, accepted, drafts);
    assert_true(moves > 0 && accepted > 0);
}

/* ---- where experts go ---------------------------------------------------------------------------- */

/* Boundaries until a decision: more than the steps of all requests. */
enum { EVERY = 1500 };

typedef struct whereabouts {
    places at_end;
    bool moved_on; /* requests were answered while experts moved */
    wb_engine_stats engine;
} whereabouts;

/* Until that stage, or until a decision has been carried out. */
static void pass_boundaries(mover *m, wb_rebalance_stage until) {
    for (;;) {
        const wb_rebalance_stats stats = wb_rebalance_get_stats(m->manager);
        if (stats.stage == until && stats.decisions > 0) return;
        if (stats.stage == WB_REBALANCE_RECORDING && stats.decisions > 0) return;
        must(wb_rebalance_boundary(m->manager), "boundary");
    }
}

/* The decision comes when all requests were counted; others are answered while it is carried out. */
static void play_decided(mover *m) {
    whereabouts *w = m->context;
    const uint64_t mtp = places_of(m->model).mtp;
    answer_as_alone(m, 5, 0, 10);
    if (wb_rebalance_get_stats(m->manager).decisions > 0) abort();
    pass_boundaries(m, WB_REBALANCE_MOVING);
    w->moved_on = wb_rebalance_get_stats(m->manager).stage == WB_REBALANCE_MOVING;
    answer_as_alone(m, 5, 10, 10);
    pass_boundaries(m, WB_REBALANCE_RECORDING);
    w->at_end = places_of(m->model);
    if (w->at_end.mtp != mtp) abort();
    w->engine = wb_engine_get_stats(m->engine);
}

static whereabouts run_decided(int n, uint64_t seed, wb_family family, int32_t max_drafts) {
    mover movers[MAX_RANKS];
    whereabouts found[MAX_RANKS];
    wb_rebalance_options options = eager_options();
    options.every = EVERY;
    options.load.window = EVERY;
    options.patience = UINT32_MAX;
    options.layers_per_chunk = 1;
    for (int r = 0; r < n; r++)
        movers[r] = (mover){.seed = seed,
                            .options = options,
                            .config = guessing_config(family),
                            .max_drafts = max_drafts,
                            .feeds_once = true,
                            .play = play_decided,
                            .context = &found[r]};
    run_movers(n, movers);
    return found[0];
}

/* Experts are placed by what requests were sent to, whatever was guessed on the way: the same places with
 * drafts and without, and answers that are the same in the middle of a move. */
static void test_places_are_the_same_with_drafts_and_without(void **state) {
    (void)state;
    static const int ranks[] = {1, 2, 4};
    int n_moved_on = 0;
    for (int i = 0; i < 3 * N_GUESSING; i++) {
        const int n = ranks[i % 3];
        const wb_family family = guessing_families[i / 3];
        const whereabouts with = run_decided(n, base_seed + (uint64_t)i, family, 1),
                          without = run_decided(n, base_seed + (uint64_t)i, family, 0);
        assert_true(with.engine.drafts > 0 && without.engine.drafts == 0);
        assert_true(with.moved_on == without.moved_on);
        n_moved_on += with.moved_on;
        assert_true(with.at_end.decoder == without.at_end.decoder);
    }
    assert_true(n_moved_on > 0);
}

/* Some would wait for the others. */
static void play_alone(mover *m) {
    ask a = ask_fixed("a", 3, 4);
    bool busy;
    for (uint32_t i = 0; i < a.request.n_tokens; i++) a.prompt[i] = i;
    must(wb_engine_submit(m->engine, ask_request(&a)), "submit");
    *(wb_status *)m->context = wb_engine_step(m->engine, &busy);
}

static void expect_peer(int32_t drafts_of_0, int32_t drafts_of_1) {
    mover movers[MAX_RANKS];
    wb_status status[MAX_RANKS];
    for (int r = 0; r < MAX_RANKS; r++)
        movers[r] = (mover){.seed = base_seed,
                            .options = eager_options(),
                            .config = guessing_config(WB_FAMILY_DEEPSEEK_V3),
                            .max_drafts = r == 1 ? drafts_of_1 : drafts_of_0,
                            .play = play_alone,
                            .context = &status[r]};
    run_movers(2, movers);
    assert_int_equal(status[0], WB_PEER);
    assert_int_equal(status[1], WB_PEER);
}

static void test_ranks_have_as_many_drafts(void **state) {
    (void)state;
    expect_peer(0, 1);
    expect_peer(3, 2);
}

/* ---- a draft that cannot be made ----------------------------------------------------------------- */

/* Some calls of sample fail: those of steps, and those of the drafts behind them. Of this thread. */
static _Thread_local wb_sample_fn *device_sample;
static _Thread_local int samples, failed;

static wb_status failing_sample(wb_device *dev, int64_t B, int64_t V, const float *logits,
                                const wb_sample_params *params, const wb_sample_kept *kept, int32_t *tokens,
                                float *logprobs) {
    samples++;
    if (samples % 4 == 0 || samples % 7 == 0) {
        failed++;
        return wb_fail(WB_DEVICE, "sample: made to fail");
    }
    return device_sample(dev, B, V, logits, params, kept, tokens, logprobs);
}

/* Rank 1 has the failures; the context counts those of this rank's steps. */
static void play_in_spite(mover *m) {
    ask a = ask_fixed("a", 3, 24);
    a.request.temperature = 0;
    for (uint32_t i = 0; i < a.request.n_tokens; i++) a.prompt[i] = i;
    const wb_config config = guessing_config(WB_FAMILY_DEEPSEEK_V3);
    rig r = rig_open(&config, 5, 1, NULL);
    wb_completion *alone = run_alone(r.model, &a);
    const bool fails = rank_of(m) == 1;
    device_sample = m->device->sample, samples = failed = 0;
    if (fails) m->device->sample = failing_sample;
    must(wb_engine_submit(m->engine, ask_request(&a)), "submit");
    for (bool busy = true; busy;) {
        const wb_status status = wb_engine_step(m->engine, &busy);
        if (status != WB_OK && status != (fails ? WB_DEVICE : WB_PEER)) abort();
        *(int *)m->context += status != WB_OK;
    }
    /* Each is told, but for one of drafts that no step came after. */
    if (fails && failed - *(int *)m->context > 1) abort();
    wb_completion *found = wb_engine_poll(m->engine);
    const char *what = found ? difference(wb_model_routes(r.model), alone, found) : "all";
    if (what && strcmp(what, "spans") != 0) abort();
    wb_completion_free(alone);
    wb_completion_free(found);
    rig_close(&r);
}

static void test_a_draft_that_fails_is_told_by_the_next_step(void **state) {
    (void)state;
    mover movers[MAX_RANKS];
    int failures[MAX_RANKS] = {0};
    for (int r = 0; r < MAX_RANKS; r++)
        movers[r] = (mover){.seed = base_seed,
                            .options = eager_options(),
                            .config = guessing_config(WB_FAMILY_DEEPSEEK_V3),
                            .max_drafts = 3,
                            .play = play_in_spite,
                            .context = &failures[r]};
    run_movers(2, movers);
    assert_true(failures[0] > 2);
    assert_int_equal(failures[0], failures[1]);
}

int main(int argc, char **argv) {
    base_seed = test_seed(argc, argv);
    printf("seed %" PRIu64 "\n", base_seed);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rule_8_what_is_returned_shows_no_draft),
        cmocka_unit_test(test_a_decode_has_as_many_drafts_as_asked_for),
        cmocka_unit_test(test_on_cuda),
        cmocka_unit_test(test_rebalance_moves_experts_of_the_decoder_only),
        cmocka_unit_test(test_ranks_have_as_many_drafts),
        cmocka_unit_test(test_places_are_the_same_with_drafts_and_without),
        cmocka_unit_test(test_a_draft_that_fails_is_told_by_the_next_step),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
