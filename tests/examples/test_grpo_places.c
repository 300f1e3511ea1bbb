/* test_grpo_places.c - where waybill-grpo has its experts at the start: files of --init-placement whose rows
 * are all hidden layers, or that name them, are held against the model's MoE layers; and a run that resumes
 * under --eplb off has no replicas. */
#include "../../examples/grpo/expert_places.c"
#include "../../examples/grpo/option_resume.c"
#include "../../examples/grpo/option_table.c"
#include "../../examples/grpo/paths.c"
#include "support/temp_files.h"

enum { L = 2, HIDDEN_LAYERS = 4, E = 4 };

/* Hidden layers 1 and 3 are MoE layers. */
static const wb_config config = {
    .n_layers = HIDDEN_LAYERS, .moe_layer_mask = {10}, .router = {.n_experts = E, .top_k = 1}};

static wb_status open_file(const char *text, wb_placement **placement_out) {
    const temp_path dir = temp_dir(), path = temp_in(dir.text, "places.json");
    options o = option_defaults;
    o.eplb = EPLB_STATIC;
    o.init_placement = path.text;
    temp_write(path.text, text, strlen(text));
    const wb_status status = expert_places_open(&o, &config, 2, NULL, false, placement_out);
    temp_remove(dir);
    return status;
}

static void opens(const char *text, const int32_t expected[L][E]) {
    wb_placement *placement = NULL;
    if (open_file(text, &placement) != WB_OK) fail_msg("%s: %s", text, wb_error_message());
    assert_int_equal(wb_placement_layers(placement), L);
    for (uint32_t l = 0; l < L; l++)
        assert_memory_equal(wb_placement_layer(placement, l).expert_of_slot, expected[l], sizeof expected[l]);
    wb_placement_close(placement);
}

static void refuses(const char *text, const char *part) {
    wb_placement *placement = NULL;
    assert_int_equal(open_file(text, &placement), WB_MISMATCH);
    assert_null(placement);
    if (!strstr(wb_error_message(), part)) fail_msg("%s: found '%s'", part, wb_error_message());
    assert_non_null(strstr(wb_error_message(), "--init-placement"));
}

#define A "[3, 2, 1, 0]"
#define B "[1, 0, 3, 2]"

static void test_maps_name_hidden_layers(void **unused) {
    (void)unused;
    static const int32_t expected[L][E] = {{3, 2, 1, 0}, {1, 0, 3, 2}};
    opens("[" A ", " B "]", expected);
    opens("[" B ", " A ", " A ", " B "]", expected); /* of all hidden layers */
    opens("{\"initial_global_assignments\": {\"1\": " A ", \"3\": " B "}}", expected);
    refuses("{\"initial_global_assignments\": {\"1\": " A ", \"2\": " B "}}",
            "expected the hidden layer 3 as MoE layer 1, found 2");
    refuses("[" A ", " A ", " B "]", "array has 3 layers");
}

/* The two experts with load of a layer are not on one rank, whichever rows the file has. */
static void test_counts_are_of_hidden_layers(void **unused) {
    (void)unused;
    static const char *const texts[] = {
        "{\"logical_count\": [[9, 9, 0, 0], [9, 0, 9, 0]]}",
        "{\"logical_count\": [[0, 0, 0, 0], [9, 9, 0, 0], [0, 0, 0, 0], [9, 0, 9, 0]]}"};
    static const int32_t loaded[L][2] = {{0, 1}, {0, 2}};
    for (size_t i = 0; i < 2; i++) {
        wb_placement *placement = NULL;
        if (open_file(texts[i], &placement) != WB_OK) fail_msg("%s: %s", texts[i], wb_error_message());
        for (uint32_t l = 0; l < L; l++) {
            const wb_layer_map map = wb_placement_layer(placement, l);
            uint32_t ranks[2];
            for (int k = 0; k < 2; k++)
                ranks[k] = wb_placement_rank_of(placement, map.replicas[map.replica_begin[loaded[l][k]]]);
            assert_int_not_equal(ranks[0], ranks[1]);
        }
        wb_placement_close(placement);
    }
    refuses("{\"logical_count\": [[9, 9, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [9, 0, 9, 0]]}",
            "expected no counts in hidden layer 0, which is no MoE layer");
}

/* ---- options of a checkpoint ------------------------------------------------------------------- */

static options resumed(eplb_mode eplb, bool eplb_given, bool redundant_given) {
    options saved = option_defaults, o = option_defaults;
    saved.eplb = EPLB_STATIC;
    saved.redundant_experts = 5;
    o.eplb = eplb;
    o.quiet = true;
    if (eplb_given) o.given[option_find("--eplb") - option_rows] = true;
    if (redundant_given) o.given[option_find("--redundant-experts") - option_rows] = true;
    if (redundant_given) o.redundant_experts = 3;
    json_t *texts = options_to_json(&saved);
    assert_non_null(texts);
    assert_int_equal(options_resume(&o, texts, "checkpoint", true), WB_OK);
    json_decref(texts);
    return o;
}

static void test_off_has_no_replicas(void **unused) {
    (void)unused;
    assert_int_equal(resumed(EPLB_OFF, false, false).redundant_experts,
                     5); /* --eplb is the checkpoint's too */
    assert_int_equal(resumed(EPLB_LIVE, true, false).redundant_experts, 5);
    assert_int_equal(resumed(EPLB_OFF, true, false).redundant_experts, 0);
    assert_int_equal(resumed(EPLB_OFF, true, true).redundant_experts, 3); /* refused by options_check */
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_maps_name_hidden_layers),
        cmocka_unit_test(test_counts_are_of_hidden_layers),
        cmocka_unit_test(test_off_has_no_replicas),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
