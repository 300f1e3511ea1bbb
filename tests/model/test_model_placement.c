/* test_model_placement.c - a model's experts under random placements: uneven slots, ranks without any, up to
 * four replicas, empty slots, another map in each layer, on 1 to 4 ranks. Every replica holds the expert's
 * weights, from wherever they came; nothing writes into an empty slot; what is saved is the same bytes.
 * Argument 1 sets the seed. */
#include "placed_model.h"
#include "wb_checkpoint_dir.h"

enum { ROUNDS = 8 };

static wb_placement *random_for(rank *r, const wb_model *model) {
    const wb_route_model *routes = wb_model_routes(model);
    return placement_random((int32_t)routes->n_moe_layers, (int32_t)wb_route_weighted(routes), r->of,
                            &r->state, true);
}

/* ---- files --------------------------------------------------------------------------------------- */

static void open_and_save(rank *r) {
    wb_model *model, *whole;
    const wb_model_options alone = whole_options(r);
    MUST(wb_model_open(r->dir, &alone, &whole));
    wb_placement *placement = random_for(r, whole);
    const wb_model_options options = options_of(r, placement);
    MUST(wb_model_open(r->dir, &options, &model));
    EXPECT(wb_placement_hash(wb_model_placement(model)) == wb_placement_hash(placement));
    wb_placement_close(placement);
    expect_weights(model, whole);
    expect_empty_slots_untouched(model);
    MUST(wb_model_save(model, r->save));
    wb_model_close(model);
    wb_model_close(whole);
}

static void save_by_default(rank *r) {
    wb_model *whole;
    const wb_model_options alone = whole_options(r);
    MUST(wb_model_open(r->dir, &alone, &whole));
    MUST(wb_model_save(whole, r->save));
    wb_model_close(whole);
}

/* An element of the middle of one tensor of one replica is another one: the save names it, and nothing is
 * written. */
static void save_differing(rank *r) {
    const wb_model_options options = options_of(r, NULL);
    wb_model *model;
    MUST(wb_model_open(r->dir, &options, &model));
    wb_placement *placement = random_for(r, model);
    wb_model_close(model);
    const wb_model_options placed = options_of(r, placement);
    MUST(wb_model_open(r->dir, &placed, &model));
    int32_t i = random_below(&r->state, wb_model_n_tensors(model)), tries = 0;
    while (wb_model_n_replicas(model, i) == 1 && tries++ < wb_model_n_tensors(model))
        i = (i + 1) % wb_model_n_tensors(model);
    const int32_t n = wb_model_n_replicas(model, i);
    const wb_tensor t = wb_model_replica(model, i, random_below(&r->state, n));
    if (t.data) ((float *)t.data)[t.n / 2] += 1;
    EXPECT(wb_model_save(model, r->save) == (n > 1 ? WB_MISMATCH : WB_OK));
    if (n > 1) EXPECT_MESSAGE(t.name);
    if (n > 1) EXPECT(!temp_exists(r->save));
    wb_model_close(model);
    wb_placement_close(placement);
}

static void test_replicas_that_differ_are_not_saved(void **unused) {
    (void)unused;
    for (int i = 0; i < ROUNDS; i++) {
        const temp_path dir = temp_dir(), out = temp_in(dir.text, "out");
        on_ranks(1 + i % MAX_RANKS, base_seed + 400 + (uint64_t)i, save_differing,
                 temp_in(WB_TEST_DATA, "olmoe").text, out.text);
        temp_remove(dir);
    }
}

/* The shards of a save together have each tensor of `expected` once, with its bytes. */
static void expect_shards(const char *dir, int R, const char *expected) {
    wb_safetensors *all, *reference, *shard;
    size_t n = 0;
    MUST(wb_safetensors_open(dir, NULL, &all));
    MUST(wb_safetensors_open(expected, NULL, &reference));
    for (int r = 0; r < R; r++) {
        const temp_path path = temp_in(dir, wb_shard_name_of(r, R).text);
        if (!temp_exists(path.text)) continue;
        MUST(wb_safetensors_open(path.text, NULL, &shard));
        n += wb_safetensors_count(shard);
        wb_safetensors_close(shard);
    }
    assert_int_equal(n, wb_safetensors_count(reference));
    for (size_t i = 0; i < wb_safetensors_count(reference); i++) {
        wb_tensor_view found, wanted;
        MUST(wb_safetensors_get(reference, i, &wanted));
        MUST(wb_safetensors_find(all, wanted.name, &found));
        assert_int_equal(found.bytes, wanted.bytes);
        assert_memory_equal(found.data, wanted.data, wanted.bytes);
    }
    wb_safetensors_close(reference);
    wb_safetensors_close(all);
}

static void expect_same_file(const char *a, const char *b) {
    size_t a_bytes, b_bytes;
    char *x = temp_read(a, &a_bytes), *y = temp_read(b, &b_bytes);
    assert_int_equal(a_bytes, b_bytes);
    assert_memory_equal(x, y, a_bytes);
    free(x);
    free(y);
}

static void test_a_checkpoint_is_the_same_under_any_placement(void **unused) {
    (void)unused;
    static const char *const families[] = {"qwen3_moe", "olmoe"};
    for (int i = 0; i < 2 * ROUNDS; i++) {
        const temp_path dir = temp_dir(), from = temp_in(WB_TEST_DATA, families[i % 2]);
        const temp_path plain = temp_in(dir.text, "plain"), placed = temp_in(dir.text, "placed");
        const int R = 1 + i % MAX_RANKS;
        on_ranks(1, 0, save_by_default, from.text, plain.text);
        on_ranks(R, base_seed + (uint64_t)i, open_and_save, from.text, placed.text);
        if (R == 1)
            expect_same_file(temp_in(plain.text, "model.safetensors").text,
                             temp_in(placed.text, "model.safetensors").text);
        expect_shards(placed.text, R, plain.text);
        temp_remove(dir);
    }
}

/* ---- new models, copies -------------------------------------------------------------------------- */

static void create_and_clone(rank *r) {
    const wb_config config = variant_config((variant)random_below(&r->state, N_VARIANTS));
    const wb_model_options alone = whole_options(r);
    wb_model *whole, *model, *clone, *rounded, *rounded_whole;
    MUST(wb_model_create(&config, 7, 0.25F, &alone, &whole));
    wb_placement *placement = random_for(r, whole);
    wb_model_options options = options_of(r, placement);
    MUST(wb_model_create(&config, 7, 0.25F, &options, &model));
    expect_weights(model, whole);
    expect_empty_slots_untouched(model);

    options.placement = NULL;
    MUST(wb_model_clone(model, &options, &clone));
    EXPECT(wb_placement_hash(wb_model_placement(clone)) == wb_placement_hash(placement));
    EXPECT(wb_placement_layer(wb_model_placement(clone), 0).epoch == 1);
    expect_weights(clone, whole);
    expect_empty_slots_untouched(clone);

    wb_model_options rounded_alone = alone;
    options.dtype = rounded_alone.dtype = WB_BF16;
    MUST(wb_model_clone(whole, &rounded_alone, &rounded_whole));
    MUST(wb_model_clone(model, &options, &rounded));
    expect_weights(rounded, rounded_whole);
    expect_empty_slots_untouched(rounded);
    wb_placement_close(placement);
    wb_model *const models[] = {whole, model, clone, rounded, rounded_whole};
    for (size_t i = 0; i < sizeof models / sizeof models[0]; i++) wb_model_close(models[i]);
}

static void test_new_models_and_clones_are_the_same_under_any_placement(void **unused) {
    (void)unused;
    for (int i = 0; i < 2 * ROUNDS; i++)
        on_ranks(1 + i % MAX_RANKS, base_seed + 100 + (uint64_t)i, create_and_clone, NULL, NULL);
}

/* The slots of each rank in another order, in every layer. */
static void shuffle_within_ranks(wb_placement *p, uint64_t *state) {
    const uint32_t S = wb_placement_topology(p)->n_slots, R = wb_placement_topology(p)->n_ranks;
    int32_t *experts = take(S, sizeof(int32_t));
    for (uint32_t l = 0; l < wb_placement_layers(p); l++) {
        memcpy(experts, wb_placement_layer(p, l).expert_of_slot, S * sizeof *experts);
        for (uint32_t r = 0; r < R; r++) {
            const uint32_t first = wb_placement_first_slot(p, r);
            shuffle(state, (int32_t)(wb_placement_first_slot(p, r + 1) - first), experts + first);
        }
        MUST(wb_placement_set_layer(p, l, experts, NULL, 2));
    }
    free(experts);
}

/* What a copy takes of the device is known before, taken when it is asked for, and not again. */
static void reserved_copy(const rank *r, const wb_config *config, const wb_model *source,
                          const wb_placement *to, const wb_model *rounded) {
    wb_model_options from_options = options_of(r, source->placement), options = options_of(r, to);
    options.dtype = WB_BF16;
    wb_model *target;
    size_t bytes = SIZE_MAX, before = SIZE_MAX;
    const int R = wb_comm_size(r->comm), me = wb_comm_rank(r->comm);
    MUST(wb_model_create(config, 8, 0.25F, &options, &target));
    MUST(wb_model_measure_copy(config, &options, &from_options, R, me, &bytes));
    const int64_t n_slots =
        wb_model_local_slots(source) + (source->mtp ? wb_model_local_slots(source->mtp) : 0);
    EXPECT((bytes > 0) == (R > 1 && n_slots > 0));
    before = r->device->held_bytes;
    MUST(wb_model_reserve_copy(target, source));
    EXPECT(r->device->held_bytes == before + bytes);
    r->device->peak_bytes = 0;
    MUST(wb_model_copy_weights(target, source));
    EXPECT(r->device->peak_bytes == 0);
    expect_weights(target, rounded);
    wb_model_close(target);

    options.dtype = WB_F32;
    MUST(wb_model_measure_copy(config, &options, &from_options, R, me, &bytes));
    EXPECT(bytes == 0);
    EXPECT(wb_model_measure_copy(config, &options, &from_options, R, R, &before) == WB_INVALID_ARGUMENT);
}

/* Half of the time the source has other experts on this rank, so that they travel. */
static void copy_of(rank *r, const wb_config config) {
    wb_model_options alone = whole_options(r);
    wb_model *source, *source_whole, *target;
    MUST(wb_model_create(&config, 7, 0.25F, &alone, &source_whole));
    wb_placement *from = random_for(r, source_whole), *to;
    const bool same_ranks = random_below(&r->state, 2) == 0;
    if (!same_ranks) {
        to = random_for(r, source_whole);
    } else {
        MUST(wb_placement_clone(from, &to));
        shuffle_within_ranks(to, &r->state);
    }
    wb_model_options options = options_of(r, from);
    MUST(wb_model_create(&config, 7, 0.25F, &options, &source));
    options.placement = to;
    MUST(wb_model_create(&config, 8, 0.25F, &options, &target));
    EXPECT(!same_ranks || !wb_model_copy_travels(target, source));
    MUST(wb_model_copy_weights(target, source));
    expect_weights(target, source_whole);
    expect_empty_slots_untouched(target);

    wb_model *rounded, *rounded_whole;
    options.dtype = alone.dtype = WB_BF16;
    MUST(wb_model_clone(source_whole, &alone, &rounded_whole));
    MUST(wb_model_clone(source, &options, &rounded));
    expect_weights(rounded, rounded_whole);
    expect_empty_slots_untouched(rounded);
    reserved_copy(r, &config, source, to, rounded_whole);
    wb_placement_close(to);
    wb_placement_close(from);
    wb_model *const models[] = {source, source_whole, target, rounded, rounded_whole};
    for (size_t i = 0; i < sizeof models / sizeof models[0]; i++) wb_model_close(models[i]);
}

static void copy_between_placements(rank *r) {
    copy_of(r, variant_config((variant)random_below(&r->state, N_VARIANTS)));
}

/* MTP layers have a placement of their own, which depends on the dead ranks alone. */
static void copy_mtp(rank *r) {
    copy_of(r, variant_config(VARIANT_LATENT_LOW));
}

/* A slot is more than what is rounded at a time. */
static void copy_large_slots(rank *r) {
    wb_config config = variant_config(VARIANT_QWEN3);
    config.expert_width = 1 << 13;
    copy_of(r, config);
}

static void test_weights_are_copied_between_placements(void **unused) {
    (void)unused;
    for (int R = 2; R <= 3; R++) on_ranks(R, base_seed + (uint64_t)R, copy_large_slots, NULL, NULL);
    for (int i = 0; i < 4 * ROUNDS; i++)
        on_ranks(1 + i % MAX_RANKS, base_seed + 200 + (uint64_t)i, copy_between_placements, NULL, NULL);
    for (int i = 0; i < 2 * ROUNDS; i++)
        on_ranks(3 + i % 2, base_seed + 300 + (uint64_t)i, copy_mtp, NULL, NULL);
}

int main(int argc, char **argv) {
    placed_model_begin(argc, argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_checkpoint_is_the_same_under_any_placement),
        cmocka_unit_test(test_replicas_that_differ_are_not_saved),
        cmocka_unit_test(test_new_models_and_clones_are_the_same_under_any_placement),
        cmocka_unit_test(test_weights_are_copied_between_placements),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
