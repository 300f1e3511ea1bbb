/* test_packed_weights.c - a model for inference only, whose matrices the device keeps in the order in which
 * its products read them: what it holds is the weights of a model for all uses, packed, in every slot of
 * every placement, after a load, a creation, a clone and a copy; its logits and routes are the same bits; and
 * what reads rows as they lie refuses it. Argument 1 sets the seed. */
#include "packed_model.h"

enum { ROUNDS = 12 };

/* ---- what it holds ------------------------------------------------------------------------------- */

static _Atomic int32_t others_packed;

/* Slots that have no expert are left as memory was: packed, a slot of one byte's copies is the same. */
static void expect_packed(wb_model *m, const wb_model *whole) {
    EXPECT(m->inference_only && !whole->inference_only);
    const counts n = unpack(m);
    EXPECT(n.experts > 0);
    others_packed += n.others;
    expect_weights(m, whole);
    expect_empty_slots_untouched(m);
    MUST(wb_model_pack_weights(m));
}

/* A variant whose experts have gate and up, or down too, in whole groups of rows. */
static wb_config packed_variant(uint64_t *state) {
    wb_config config = variant_config((variant)random_below(state, N_VARIANTS));
    config.expert_width = random_below(state, 2) == 0 ? 8 : 24;
    wb_config wide = config;
    wide.hidden_size = 32;
    return wb_config_check(&wide) == WB_OK ? wide : config;
}

static wb_placement *random_for(rank *r, const wb_model *model) {
    const wb_route_model *routes = wb_model_routes(model);
    return placement_random((int32_t)routes->n_moe_layers, (int32_t)wb_route_weighted(routes), r->of,
                            &r->state, true);
}

static void create_clone_and_copy(rank *r) {
    const wb_config config = packed_variant(&r->state);
    const wb_model_options alone = whole_options(r);
    wb_model *whole, *other_whole, *model, *other, *created, *clone;
    MUST(wb_model_create(&config, 7, 0.25F, &alone, &whole));
    MUST(wb_model_create(&config, 8, 0.25F, &alone, &other_whole));
    wb_placement *from = random_for(r, whole), *to = random_for(r, whole);
    wb_model_options options = options_of(r, from);
    MUST(wb_model_create(&config, 7, 0.25F, &options, &model));
    MUST(wb_model_create(&config, 8, 0.25F, &options, &other));

    options.placement = to;
    options.inference_only = true;
    MUST(wb_model_create(&config, 7, 0.25F, &options, &created));
    expect_packed(created, whole);
    /* Replaced in all slots, by weights that travel where `to` has them on another rank; twice. */
    MUST(wb_model_copy_weights(created, other));
    expect_packed(created, other_whole);
    MUST(wb_model_copy_weights(created, model));
    expect_packed(created, whole);
    MUST(wb_model_clone(other, &options, &clone));
    expect_packed(clone, other_whole);

    wb_model *rounded, *rounded_whole;
    wb_model_options rounded_alone = alone;
    options.dtype = rounded_alone.dtype = WB_BF16;
    options.placement = NULL;
    MUST(wb_model_clone(whole, &rounded_alone, &rounded_whole));
    MUST(wb_model_clone(model, &options, &rounded));
    expect_packed(rounded, rounded_whole);
    wb_placement_close(from);
    wb_placement_close(to);
    wb_model *const models[] = {whole, other_whole, model, other, created, clone, rounded, rounded_whole};
    for (size_t i = 0; i < sizeof models / sizeof models[0]; i++) wb_model_close(models[i]);
}

static void test_every_slot_is_packed_once(void **unused) {
    (void)unused;
    for (int i = 0; i < 2 * ROUNDS; i++)
        on_ranks(1 + i % MAX_RANKS, base_seed + (uint64_t)i, create_clone_and_copy, NULL, NULL);
    assert_true(others_packed > 0);
}

/* ---- what it computes ---------------------------------------------------------------------------- */

static void open_both(rank *r) {
    wb_model_options options = options_of(r, NULL);
    for (int i = 0; i < 2; i++) {
        wb_model *model, *packed;
        options.dtype = i == 0 ? WB_F32 : WB_BF16;
        options.inference_only = false;
        MUST(wb_model_open(r->dir, &options, &model));
        options.inference_only = true;
        MUST(wb_model_open(r->dir, &options, &packed));
        expect_same_steps(model, packed);
        EXPECT(unpack(packed).experts > 0);
        expect_weights(packed, model);
        wb_model_close(packed);
        wb_model_close(model);
    }
}

static void test_checkpoints_give_the_same_bits(void **unused) {
    (void)unused;
    static const char *const dirs[] = {"qwen3_moe",
                                       "olmoe",
                                       "deepseek_v2",
                                       "deepseek_v3",
                                       "oracles/gpt_oss_plain",
                                       "oracles/gpt_oss_mxfp4",
                                       "oracles/deepseek_v3_fp8",
                                       "oracles/deepseek_v3_mtp",
                                       "oracles/deepseek_v4_released",
                                       "oracles/qwen3_next_plain"};
    for (size_t i = 0; i < sizeof dirs / sizeof dirs[0]; i++)
        on_ranks(1, base_seed, open_both, temp_in(WB_TEST_DATA, dirs[i]).text, NULL);
}

static void clone_both(rank *r) {
    const wb_config config = packed_variant(&r->state);
    wb_placement *placement;
    wb_model *model, *packed;
    wb_model_options options = whole_options(r);
    MUST(wb_model_create(&config, 7, 0.25F, &options, &model));
    placement = random_for(r, model);
    wb_model_close(model);
    options = options_of(r, placement);
    MUST(wb_model_create(&config, 7, 0.25F, &options, &model));
    options.placement = NULL;
    options.inference_only = true;
    MUST(wb_model_clone(model, &options, &packed));
    expect_same_steps(model, packed);
    wb_placement_close(placement);
    wb_model_close(packed);
    wb_model_close(model);
}

static void test_variants_on_ranks_give_the_same_bits(void **unused) {
    (void)unused;
    for (int i = 0; i < 2 * ROUNDS; i++)
        on_ranks(1 + i % MAX_RANKS, base_seed + 100 + (uint64_t)i, clone_both, NULL, NULL);
}

/* ---- what refuses it ----------------------------------------------------------------------------- */

static void expect_refused(wb_status status, const char *who) {
    EXPECT(status == WB_UNSUPPORTED);
    EXPECT_MESSAGE(who);
    EXPECT_MESSAGE("without inference_only");
}

static void use_otherwise(rank *r) {
    const wb_config config = packed_variant(&r->state);
    wb_model_options options = options_of(r, NULL);
    wb_model *model, *packed, *out = NULL;
    wb_train *train = NULL;
    MUST(wb_model_create(&config, 7, 0.25F, &options, &model));
    options.inference_only = true;
    MUST(wb_model_clone(model, &options, &packed));
    expect_refused(wb_train_open(packed, NULL, &train), "training");
    expect_refused(wb_model_save(packed, "nowhere"), "save");
    expect_refused(wb_model_save_as_opened(packed, "nowhere"), "save");
    expect_refused(wb_model_copy_weights(model, packed), "copy weights");
    expect_refused(wb_model_clone(packed, &options, &out), "copy weights");
    EXPECT(!train && !out && !temp_exists("nowhere"));
    wb_model_close(packed);
    wb_model_close(model);
    options.inference_only = r->number == 0;
    if (r->of > 1) EXPECT(wb_model_create(&config, 7, 0.25F, &options, &out) == WB_PEER);
    if (r->of > 1) EXPECT_MESSAGE("inference_only");
}

static void test_what_reads_rows_as_they_lie_refuses_it(void **unused) {
    (void)unused;
    for (int R = 1; R <= 2; R++) on_ranks(R, base_seed + (uint64_t)R, use_otherwise, NULL, NULL);
}

int main(int argc, char **argv) {
    placed_model_begin(argc, argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_slot_is_packed_once),
        cmocka_unit_test(test_checkpoints_give_the_same_bits),
        cmocka_unit_test(test_variants_on_ranks_give_the_same_bits),
        cmocka_unit_test(test_what_reads_rows_as_they_lie_refuses_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
