/* test_eplb_map_layouts.c - maps in other engines' files: each layout is recognised and read, what is
 * written reads back the same, what does not fit is refused by its place, and counts are solved as was
 * asked. */
#include "eplb_folder_fixture.h"
#include "placement/placement_internal.h"
#include "support/test_seed.h"
#include "wb_eplb.h"
#include "wb_random.h"

#include <inttypes.h>

enum { L = 3, E = 5, R = 3, S = 9 };
static const uint32_t layers[L] = {3, 4, 10};
static const wb_topology topology = {.n_ranks = R, .n_nodes = 2, .n_slots = S};

static uint64_t seed;

/* Every expert once and then any: full slots in a random order, replicas in slot order. */
static wb_placement *random_placement(const wb_topology *t, uint64_t *rng) {
    wb_placement *p = NULL;
    int32_t experts[64];
    assert_int_equal(wb_placement_open(t, L, E, &p), WB_OK);
    for (uint32_t l = 0; l < L; l++) {
        for (uint32_t s = 0; s < t->n_slots; s++) experts[s] = (int32_t)(s < E ? s : wb_random_below(rng, E));
        for (uint32_t s = t->n_slots; s-- > 1;) {
            const uint32_t k = wb_random_below(rng, s + 1);
            const int32_t kept = experts[s];
            experts[s] = experts[k];
            experts[k] = kept;
        }
        assert_int_equal(wb_placement_set_layer(p, l, experts, NULL, 0), WB_OK);
    }
    return p;
}

static void assert_same_and_close(const wb_placement *expected, wb_placement *found) {
    assert_int_equal(wb_placement_hash(found), wb_placement_hash(expected));
    wb_placement_close(found);
}

/* ---- there and back ---------------------------------------------------------------------------- */

static void test_round_trip(void **unused) {
    (void)unused;
    static const char *const said[] = {"SGLang, physical_to_logical_map", "vLLM, bare array",
                                       "TensorRT-LLM, initial_global_assignments", "Ascend, layer_list"};
    static const uint32_t uneven[R] = {4, 0, 8};
    const wb_topology other = {.n_ranks = R, .n_nodes = 1, .n_slots = 12, .slots_of_rank = uneven};
    uint64_t rng = seed;
    for (int i = 0; i < 20; i++)
        for (int layout = 0; layout < 4; layout++) {
            const wb_topology *t = i % 2 ? &other : &topology;
            wb_placement *p = random_placement(t, &rng), *back = NULL;
            const uint32_t *numbers = i % 3 ? layers : NULL;
            const char *recognised = NULL;
            temp_path path = temp_in(dir.text, i % 4 < 2 ? "map.json" : "map");
            assert_int_equal(wb_placement_save(p, path.text, (wb_map_layout)layout, numbers), WB_OK);
            if (wb_placement_read(path.text, t, L, E, numbers, NULL, &recognised, &back) != WB_OK)
                fail_msg("%s", wb_error_message());
            assert_string_equal(recognised, said[layout]);
            assert_same_and_close(p, back);
            wb_placement_close(p);
        }
}

/* Replicas that are not in slot order: its own layout keeps the order, the others cannot. */
static void test_replica_order(void **unused) {
    (void)unused;
    const int32_t experts[S] = {0, 1, 2, 3, 4, 0, 1, 2, 3};
    const uint32_t replicas[S] = {1, 0, 0, 0, 0, 0, 1, 1, 1};
    wb_placement *p = NULL, *back = NULL, *in_order = NULL;
    assert_int_equal(wb_placement_open(&topology, L, E, &p), WB_OK);
    assert_int_equal(wb_placement_clone(p, &in_order), WB_OK);
    assert_int_equal(wb_placement_set_layer(p, 1, experts, replicas, 0), WB_OK);
    assert_int_equal(wb_placement_set_layer(in_order, 1, experts, NULL, 0), WB_OK);
    for (int layout = 0; layout < 4; layout++) {
        temp_path path = temp_in(dir.text, "map.json");
        assert_int_equal(wb_placement_save(p, path.text, (wb_map_layout)layout, NULL), WB_OK);
        assert_int_equal(wb_placement_read(path.text, &topology, L, E, NULL, NULL, NULL, &back), WB_OK);
        assert_same_and_close(layout == WB_MAP_SGLANG ? p : in_order, back);
    }
    wb_placement_close(in_order);
    wb_placement_close(p);
}

static void test_empty_slots(void **unused) {
    (void)unused;
    const int32_t experts[S] = {0, 1, 2, 3, 4, 0, 1, 2, -1};
    wb_placement *p = NULL, *back = NULL;
    assert_int_equal(wb_placement_open(&topology, L, E, &p), WB_OK);
    assert_int_equal(wb_placement_set_layer(p, 2, experts, NULL, 0), WB_OK);
    temp_path path = temp_in(dir.text, "map.json");
    for (int layout = 0; layout < 4; layout++) {
        const wb_status status = wb_placement_save(p, path.text, (wb_map_layout)layout, NULL);
        assert_int_equal(status, layout < WB_MAP_TRTLLM ? WB_OK : WB_UNSUPPORTED);
        if (status == WB_OK) {
            assert_int_equal(wb_placement_read(path.text, &topology, L, E, NULL, NULL, NULL, &back), WB_OK);
            assert_same_and_close(p, back);
        } else {
            assert_message_has("layer 2 slot 8 empty");
            assert_message_has(path.text);
        }
    }
    assert_int_equal(wb_placement_save(p, path.text, (wb_map_layout)4, NULL), WB_INVALID_ARGUMENT);
    wb_placement_close(p);
}

static void test_names(void **unused) {
    (void)unused;
    for (int i = 0; i < 4; i++) {
        wb_map_layout found = (wb_map_layout)9;
        assert_int_equal(wb_map_layout_parse(wb_map_layout_name((wb_map_layout)i), &found), WB_OK);
        assert_int_equal(found, i);
    }
    wb_map_layout untouched = (wb_map_layout)9;
    assert_int_equal(wb_map_layout_parse("yaml", &untouched), WB_INVALID_ARGUMENT);
    assert_message_has("sglang, vllm, trtllm, ascend, found yaml");
    assert_int_equal(untouched, 9);
    assert_string_equal(wb_map_layout_name((wb_map_layout)9), "unknown layout");
}

/* ---- files as the engines write them ----------------------------------------------------------- */

enum { SMALL_L = 2, SMALL_S = 4 };
static const wb_topology small = {.n_ranks = 2, .n_nodes = 1, .n_slots = SMALL_S};
static const uint32_t small_layers[] = {3, 7};

static void assert_small(const char *text, const uint32_t *numbers, const int32_t *first,
                         const int32_t *second, const char *said) {
    wb_placement *p = NULL;
    const char *recognised = NULL;
    temp_path path = put("map", text);
    if (wb_placement_read(path.text, &small, SMALL_L, 3, numbers, NULL, &recognised, &p) != WB_OK)
        fail_msg("%s: %s", text, wb_error_message());
    assert_memory_equal(wb_placement_layer(p, 0).expert_of_slot, first, SMALL_S * sizeof *first);
    assert_memory_equal(wb_placement_layer(p, 1).expert_of_slot, second, SMALL_S * sizeof *second);
    assert_non_null(strstr(recognised, said));
    wb_placement_close(p);
}

static const int32_t row_a[] = {0, 1, 2, 0}, row_b[] = {2, 1, 0, 1};
#define A "[0, 1, 2, 0]"
#define B "[2, 1, 0, 1]"

static void test_foreign_files(void **unused) {
    (void)unused;
    assert_small("[" A ", " B "]", NULL, row_a, row_b, "vLLM, bare array");
    assert_small(A, NULL, row_a, row_a, "one array for all layers");
    assert_small("{\"num_slots\": 4, \"initial_global_assignments\": {\"7\": " B ", \"3\": " A
                 "}, \"layer_updates_per_iter\": 0}",
                 small_layers, row_a, row_b, "TensorRT-LLM");
    /* YAML, as TensorRT-LLM's files are: lists in brackets, over several lines, or with dashes at either
     * depth. */
    assert_small(
        "num_slots: 4\ninitial_global_assignments:\n  3: [0, 1, 2, 0]\n  7: [2, 1,\n    0, 1]  # wrapped\n\n"
        "layer_updates_per_iter: 0\n",
        small_layers, row_a, row_b, "TensorRT-LLM");
    assert_small("---\n# made by hand\ninitial_global_assignments:\n  \"7\":\n    - 2\n    - 1\n    - 0\n    "
                 "- 1\n  '3':\n  - 0\n"
                 "  - 1\n  - 2\n  - 0\nname: a plan",
                 small_layers, row_a, row_b, "TensorRT-LLM");
    assert_small("initial_global_assignments:\r\n   61:\r\n      [2, 1, 0, 1,]\r\n   9: [0,1,2,0]\r\n", NULL,
                 row_a, row_b, "TensorRT-LLM");
    assert_small("{\"initial_global_assignments\": {\"61\": " B ", \"9\": " A "}}", NULL, row_a, row_b,
                 "TensorRT-LLM");
#define DEVICES(x, y)                                                                 \
    "\"device_count\": 2, \"device_list\": [{\"device_id\": 1, \"device_expert\": " y \
    "}, {\"device_id\": 0, "                                                          \
    "\"device_expert\": " x "}]}"
#define ASCEND(first, second)                                          \
    "{\"moe_layer_count\": 2, \"layer_list\": [{\"layer_id\": " second \
    ", " DEVICES("[2, 1]", "[0, 1]") ", {\"layer_id\": " first ", " DEVICES("[0, 1]", "[2, 0]") "]}"
    assert_small(ASCEND("0", "1"), NULL, row_a, row_b, "Ascend");
    assert_small(ASCEND("0", "1"), small_layers, row_a, row_b, "Ascend");
    assert_small(ASCEND("3", "7"), small_layers, row_a, row_b, "Ascend");
    assert_small(ASCEND("5", "6"), NULL, row_a, row_b, "Ascend");
    /* Rows for all hidden layers, of which 3 and 7 are MoE layers: the others may be no maps. */
#define NONE "[9, 9, 9, 9], "
#define HIDDEN "[" NONE NONE NONE A ", " NONE NONE NONE B ", [0, 0, 0, 0]]"
    assert_small(HIDDEN, small_layers, row_a, row_b, "vLLM, bare array");
    assert_small("{\"physical_to_logical_map\": " HIDDEN "}", small_layers, row_a, row_b, "SGLang");
    wb_placement *p = NULL;
    const char *said = NULL;
    const int32_t second[] = {2, 1, 0, 2};
    assert_int_equal(
        wb_placement_read(WB_TEST_DATA "/torch/good_map.pt", &small, 2, 3, NULL, NULL, &said, &p), WB_OK);
    assert_memory_equal(wb_placement_layer(p, 1).expert_of_slot, second, sizeof second);
    assert_string_equal(said, "SGLang, physical_to_logical_map");
    wb_placement_close(p);
}

static void refused(const char *text, wb_status expected, const char *part) {
    wb_placement *untouched = (wb_placement *)&seed;
    temp_path path = put("map", text);
    const char *said = "untouched";
    const wb_status status =
        wb_placement_read(path.text, &small, SMALL_L, 3, small_layers, NULL, &said, &untouched);
    if (status != expected) fail_msg("status %d, message '%s' of %s", status, wb_error_message(), text);
    assert_ptr_equal(untouched, &seed);
    assert_string_equal(said, "untouched");
    assert_message_has(path.text);
    assert_message_has(part);
}

static void test_yaml_refused(void **unused) {
    (void)unused;
    refused("abc", WB_CORRUPT, "YAML line 1: expected a key and a colon");
    refused("# nothing\n", WB_CORRUPT, "YAML line 2: expected a map");
    refused("a:1", WB_CORRUPT, "line 1: expected a blank after the colon");
    refused("a: 1\na: 2", WB_CORRUPT, "line 2: expected each key once");
    refused("a: [1, 2\n", WB_CORRUPT, "line 2: expected a ]");
    refused("a: [1 2]", WB_CORRUPT, "line 1: expected a comma or ]");
    refused("a: [1, x]", WB_CORRUPT, "line 1: expected a whole number");
    refused("a: [99999999999999999999]", WB_CORRUPT, "line 1: expected a whole number");
    refused("a: [1] 2", WB_CORRUPT, "line 1: expected the end of the line");
    refused("a: 1.5", WB_CORRUPT, "line 1: expected the end of the line");
    refused("a:\n -1\n", WB_CORRUPT, "line 2: expected a blank after -");
    refused("a:\n  b: 1\n c: 2\n", WB_CORRUPT, "line 3: expected the indentation of the keys above");
    refused("a: 1\n  b: 1\n", WB_CORRUPT, "line 2: expected the indentation of the keys above");
    refused("a: {b: 1}", WB_CORRUPT, "line 1: expected a number, a list or plain text");
    refused("a: &anchor 1", WB_CORRUPT, "line 1: expected a number, a list or plain text");
    refused("a: !!python/object:os.system 1", WB_CORRUPT, "line 1: expected a number, a list or plain text");
    refused("a: \xff", WB_CORRUPT, "line 1: expected UTF-8");
    refused("\"a: 1", WB_CORRUPT, "line 1: expected a key in quotes");
    refused("a: 1\n", WB_NOT_FOUND, "layer_list");
    refused("initial_global_assignments:\n", WB_NOT_FOUND, "layer_list");
    char deep[600] = "";
    for (int i = 0; i < 20; i++) {
        for (int k = 0; k < i; k++) strcat(deep, " ");
        strcat(deep, "a:\n");
    }
    refused(deep, WB_CORRUPT, "fewer maps inside each other");
}

static void test_foreign_files_refused(void **unused) {
    (void)unused;
    refused("[" A "]", WB_MISMATCH,
            "array has 1 layers, expected 2 or all hidden layers, of which the last MoE layer is 7");
    refused("[" A "," A "," A "," A "," A "," A "," A "]", WB_MISMATCH, "array has 7 layers");
    refused("{\"physical_to_logical_map\": [" A ", " B "], \"replica_of_slot\": [[0,0,0,1]]}", WB_MISMATCH,
            "replica_of_slot has 1 layers");
    refused("[0, 1, 2]", WB_MISMATCH, "array has 3 slots, expected 4");
    refused("[0, 1, 2, 3]", WB_INVALID_ARGUMENT, "layer 0 slot 3 holds expert 3");
    refused("[0, 1, 1, 0]", WB_INVALID_ARGUMENT, "no slot for expert 2");
    refused("[0, 1, 2, 0.5]", WB_CORRUPT, "array[3]: expected an integer");
    refused("[]", WB_MISMATCH, "array has 0 slots, expected 4");
#define TRT(layers_text) "{\"initial_global_assignments\": " layers_text "}"
    refused(TRT("[]"), WB_CORRUPT, "expected an object of layers");
    refused(TRT("{\"3\": " A "}"), WB_MISMATCH, "has 1 layers, expected 2");
    refused(TRT("{\"0\": " A ", \"1\": " B "}"), WB_MISMATCH, "the hidden layer 3 as MoE layer 0, found 0");
    refused(TRT("{\"3\": " A ", \"8\": " B "}"), WB_MISMATCH, "the hidden layer 7 as MoE layer 1, found 8");
    refused(TRT("{\"3\": " A ", \"seven\": " B "}"), WB_CORRUPT, "found seven");
    refused(TRT("{\"3\": " A ", \"03\": " B "}"), WB_CORRUPT, "layer 3 is there twice");
    refused(TRT("{\"3\": " A ", \"-7\": " B "}"), WB_CORRUPT, "found -7");
    refused(TRT("{\"3\": " A ", \"7\": [0, 1]}"), WB_MISMATCH, "initial_global_assignments.7 has 2 slots");
    refused(TRT("{\"3\": " A ", \"7\": [0, 1, 2, 9]}"), WB_INVALID_ARGUMENT, "layer 1 slot 3 holds expert 9");
    refused("{\"layer_list\": {}}", WB_CORRUPT, "layer_list: expected an array of 2 layers");
    refused("{\"layer_list\": []}", WB_MISMATCH, "layer_list: expected an array of 2 layers, found 0");
    refused("{\"layer_list\": [{}, {}]}", WB_CORRUPT, "layer_id: expected a number");
    refused("{\"layer_list\": [1, 2]}", WB_CORRUPT, "layer_id: expected a number");
    refused("{\"layer_list\": [{\"layer_id\": 0}, {\"layer_id\": 0}]}", WB_CORRUPT, "layer 0 is there twice");
    refused("{\"layer_list\": [{\"layer_id\": 0}, {\"layer_id\": 7}]}", WB_MISMATCH, "the hidden layer 3");
    refused("{\"layer_list\": [{\"layer_id\": 0}, {\"layer_id\": 1}]}", WB_CORRUPT,
            "MoE layer 0: device_list");
#define ONE(devices)                                                                        \
    "{\"layer_list\": [{\"layer_id\": 0, \"device_list\": " devices "}, {\"layer_id\": 1, " \
    "\"device_list\": []}]}"
    refused(ONE("[1]"), WB_MISMATCH, "expected an array of 2 devices, found 1");
    refused(ONE("[1, 2]"), WB_CORRUPT, "device_id: expected a number below 2");
    refused(ONE("[{\"device_id\": 2}, {}]"), WB_CORRUPT,
            "device_id: expected a number below 2, found another");
    refused(ONE("[{\"device_id\": 0}, {}]"), WB_CORRUPT, "MoE layer 0, device 0, device_expert");
    refused(
        ONE("[{\"device_id\": 0, \"device_expert\": [0, 1]}, {\"device_id\": 0, \"device_expert\": [0]}]"),
        WB_CORRUPT, "device_id 0 is there twice");
    refused(ONE("[{\"device_id\": 0, \"device_expert\": [0, 1, 2]}, {}]"), WB_MISMATCH,
            "has 3 experts, expected at most the 2 slots");
}

/* ---- counts ------------------------------------------------------------------------------------ */

/* With the algorithm and the groups that were asked for. */
static void test_counts_are_solved_as_asked(void **unused) {
    (void)unused;
    const double loads[2 * 8] = {9, 1, 7, 3, 2, 8, 5, 6, 4, 4, 1, 30, 2, 2, 9, 1};
    const wb_topology t = {.n_ranks = 4, .n_nodes = 2, .n_slots = 12};
    const char *text = "{\"logical_count\": [[9,1,7,3,2,8,5,6],[4,4,1,30,2,2,9,1]]}";
    temp_path path = put("counts.json", text);
    uint64_t seen[WB_EPLB_N_ALGORITHMS + 1];
    for (int i = 0; i <= WB_EPLB_N_ALGORITHMS; i++) {
        wb_eplb_options options = wb_eplb_options_default();
        wb_placement *found = NULL, *expected = NULL;
        const char *said = NULL;
        options.algorithm = i < WB_EPLB_N_ALGORITHMS ? (wb_eplb_algorithm)i : WB_EPLB_DEEPSEEK;
        options.n_groups = i < WB_EPLB_N_ALGORITHMS ? 1 : 4;
        assert_int_equal(wb_placement_read(path.text, &t, 2, 8, NULL, &options, &said, &found), WB_OK);
        assert_int_equal(wb_eplb_solve_counts(&t, 2, 8, 1, loads, &options, &expected), WB_OK);
        assert_string_equal(said, "logical_count");
        seen[i] = wb_placement_hash(found);
        assert_same_and_close(expected, found);
        wb_placement_close(expected);
    }
    assert_int_not_equal(seen[WB_EPLB_DEEPSEEK], seen[WB_EPLB_BALANCED]);
    assert_int_not_equal(seen[WB_EPLB_DEEPSEEK], seen[WB_EPLB_N_ALGORITHMS]); /* groups */
}

/* Published figures are max / mean of replicas that share evenly. By hand: ranks have 4, 2 and 6, 2. */
static void test_even_split(void **unused) {
    (void)unused;
    const wb_topology t = {.n_ranks = 2, .n_nodes = 1, .n_slots = 4};
    const int32_t experts[] = {0, 1, 0, 2};
    const double loads[3 * 3] = {4, 2, 0, 8, 2, -0.0, 0, 0, 0};
    wb_placement *p = NULL;
    wb_even_split split;
    assert_int_equal(wb_placement_open(&t, 3, 3, &p), WB_OK);
    for (uint32_t l = 0; l < 3; l++) assert_int_equal(wb_placement_set_layer(p, l, experts, NULL, 0), WB_OK);
    assert_int_equal(wb_even_split_of(p, 1, loads, &split), WB_OK);
    assert_true(split.balancedness == (3.0 / 4 + 5.0 / 6) / 2);
    assert_true(split.min_layer == 3.0 / 4);
    assert_true(split.max_over_mean == (4.0 / 3 + 6.0 / 5) / 2);
    assert_true(split.max_layer == 4.0 / 3);
    assert_true(split.balancedness_time == 8.0 / 10);
    assert_int_equal(wb_even_split_of(p, 1, (double[9]){0}, &split), WB_OK);
    assert_true(split.balancedness == 1 && split.max_over_mean == 1 && split.min_layer == 1 &&
                split.max_layer == 1 && split.balancedness_time == 1);
    wb_placement_close(p);
}

int main(int argc, char **argv) {
    seed = test_seed(argc, argv);
    printf("test_eplb_map_layouts: seed %" PRIu64 "\n", seed);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_round_trip, setup, teardown),
        cmocka_unit_test_setup_teardown(test_replica_order, setup, teardown),
        cmocka_unit_test_setup_teardown(test_empty_slots, setup, teardown),
        cmocka_unit_test(test_names),
        cmocka_unit_test_setup_teardown(test_foreign_files, setup, teardown),
        cmocka_unit_test_setup_teardown(test_yaml_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(test_foreign_files_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(test_counts_are_solved_as_asked, setup, teardown),
        cmocka_unit_test(test_even_split),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
