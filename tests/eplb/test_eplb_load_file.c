/* test_eplb_load_file.c - load statistics as a file: golden, changed and cut ones, the way through a file
 * and back; and the memory of all load calls: counting asks for none, every other allocation fails once. */
#include "eplb_load_fixture.h"
#include "support/alloc_fail.h"

#define LOADS WB_TEST_DATA "/loads/"

/* ---- the file -------------------------------------------------------------------------------- */

/* The handle that tests/golden/loads has: made by hand, in another language. */
static void assert_is_golden(const wb_load *load) {
    double counts[6];
    assert_int_equal(wb_load_passes(load), 3);
    assert_int_equal(wb_load_passes_seen(load), 9);
    assert_int_equal(wb_load_pass_counts(load, 0, 1u << WB_PHASE_PREFILL, 2, counts), WB_OK);
    assert_doubles(counts, (double[]){1, 2, 3, 11, 12, 13}, 6);
    assert_int_equal(wb_load_pass_counts(load, 0, 1u << WB_PHASE_DECODE, 2, counts), WB_OK);
    assert_doubles(counts, (double[]){100, 101, 102, 110, 111, 112}, 6);
    assert_int_equal(wb_load_pass_counts(load, 0, ALL, 1, counts), WB_OK);
    assert_doubles(counts, (double[]){0, 4294967295., 0, 7, 0, 0}, 6);
    assert_int_equal(wb_load_pass_counts(load, 0, 1u << WB_PHASE_REPLAY, 0, counts), WB_OK);
    assert_doubles(counts, (double[]){1000, 1001, 1002, 1010, 1011, 1012}, 6);
    assert_int_equal(wb_load_counts(load, 1, ALL, counts), WB_OK);
    assert_doubles(counts, (double[]){.75, 1.}, 2); /* decay .5, age 2 */
}

static void assert_same_bytes(const char *expected_path, const char *found_path) {
    size_t expected_bytes, found_bytes;
    char *expected = temp_read(expected_path, &expected_bytes), *found = temp_read(found_path, &found_bytes);
    assert_int_equal(found_bytes, expected_bytes);
    assert_memory_equal(found, expected, expected_bytes);
    free(expected);
    free(found);
}

static void test_golden_files_are_read_and_written_again(void **state) {
    (void)state;
    static const char *const names[] = {"good.json", "good.msgpack"};
    temp_path dir = temp_dir();
    for (size_t i = 0; i < 2; i++) {
        temp_path golden = temp_in(LOADS, names[i]);
        wb_load *load = NULL;
        if (wb_load_read(golden.text, &load) != WB_OK) fail_msg("%s", wb_error_message());
        assert_is_golden(load);
        for (size_t j = 0; j < 2; j++) {
            temp_path copy = temp_in(dir.text, names[j]), other = temp_in(LOADS, names[j]);
            assert_int_equal(wb_load_save(load, copy.text), WB_OK);
            assert_same_bytes(other.text, copy.text);
        }
        decode(load, 1, 0, 1, 1, (uint8_t[]){1}); /* the draft is off */
        end_pass(load);
        assert_int_equal(wb_load_passes(load), 3);
        decode(load, 0, 1, 1, 2, (uint8_t[]){2, 3}); /* expert 3 is shared */
        end_pass(load);
        decode_n(load, 0, 0, 1);
        end_pass(load);
        assert_int_equal(wb_load_passes(load), 4);
        assert_int_equal(wb_load_passes_seen(load), 11);
        double counts[6];
        assert_int_equal(wb_load_pass_counts(load, 0, ALL, 3, counts),
                         WB_OK); /* the oldest of the file is gone */
        assert_doubles(counts, (double[]){0, 4294967295., 0, 7, 0, 0}, 6);
        wb_load_close(load);
    }
    temp_remove(dir);
}

static void test_a_placement_is_read_from_the_same_file(void **state) {
    (void)state;
    wb_placement *placement = NULL;
    const wb_topology topology = {2, 1, 4, NULL, NULL, NULL};
    if (wb_placement_read(LOADS "good.json", &topology, 2, 3, NULL, NULL, NULL, &placement) != WB_OK)
        fail_msg("%s", wb_error_message());
    wb_layer_map map = wb_placement_layer(placement, 0);
    assert_int_equal(map.replica_begin[2] - map.replica_begin[1], 2); /* the expert with 2^32 tokens */
    wb_placement_close(placement);
}

static void test_a_handle_goes_through_a_file_after_the_ring_has_turned(void **state) {
    (void)state;
    static const char *const names[] = {"a.json", "a.msgpack"};
    const wb_load_region regions[] = {{"target", 2, 300, 1}, {"M\xc3\xbcller", 1, 4, 0}};
    wb_load *load = open_load(2, regions, 3, 0.1);
    temp_path dir = temp_dir();
    for (uint32_t pass = 0; pass < 5; pass++) {
        decode_n(load, 1, (uint8_t)(40 * pass), 100 + pass);
        decode(load, 1, 0, 1, 1, (uint8_t[]){(uint8_t)(pass % 4)});
        end_pass(load);
    }
    assert_int_equal(wb_load_enable(load, 0, false), WB_OK);
    decode(load, 1, 0, 1, 1, (uint8_t[]){3}); /* the open pass does not go into the file */
    for (size_t i = 0; i < 2; i++) {
        temp_path path = temp_in(dir.text, names[i]),
                  again = temp_in(dir.text, i == 0 ? "b.json" : "b.msgpack");
        wb_load *copy = NULL;
        assert_int_equal(wb_load_save(load, path.text), WB_OK);
        assert_int_equal(wb_load_read(path.text, &copy), WB_OK);
        assert_int_equal(wb_load_passes(copy), 3);
        assert_int_equal(wb_load_passes_seen(copy), 5);
        for (uint32_t region = 0; region < 2; region++) {
            double expected[600], found[600];
            assert_int_equal(wb_load_counts(load, region, ALL, expected), WB_OK);
            assert_int_equal(wb_load_counts(copy, region, ALL, found), WB_OK);
            assert_doubles(found, expected, region == 0 ? 600 : 4);
        }
        assert_int_equal(wb_load_save(copy, again.text), WB_OK);
        assert_same_bytes(path.text, again.text);
        decode_n(copy, 0, 1, 1); /* still off */
        end_pass(copy);
        assert_int_equal(wb_load_passes_seen(copy), 5);
        wb_load_close(copy);
    }
    wb_load_close(load);

    load = open_one(1, 1, 0, 1); /* no pass at all */
    temp_path path = temp_in(dir.text, "empty.json");
    assert_int_equal(wb_load_save(load, path.text), WB_OK);
    wb_load_close(load);
    assert_int_equal(wb_load_read(path.text, &load), WB_OK);
    assert_int_equal(wb_load_passes(load), 0);
    path = temp_in(dir.text, "no_such_folder/all.json");
    assert_int_equal(wb_load_save(load, path.text), WB_IO);
    assert_message_has(path.text);
    wb_load_close(load);
    temp_remove(dir);
}

/* The golden text with its first `old` replaced. */
static void write_changed(const char *path, const char *old, const char *new) {
    char *text = temp_read(LOADS "good.json", NULL), *at = strstr(text, old), changed[4096];
    if (!at) fail_msg("no %s in the golden file", old);
    int n = snprintf(changed, sizeof changed, "%.*s%s%s", (int)(at - text), text, new, at + strlen(old));
    assert_true(n > 0 && (size_t)n < sizeof changed);
    temp_write(path, changed, (size_t)n);
    free(text);
}

static void test_bad_files_are_refused(void **state) {
    (void)state;
    static const struct {
        const char *old, *new;
        wb_status status;
        const char *message;
    } cases[] = {
        {"waybill.loads", "waybill.roads", WB_UNSUPPORTED, "not a waybill.loads file"},
        {"\"format\"", "\"Format\"", WB_UNSUPPORTED, "not a waybill.loads file"},
        {"\"version\":1", "\"version\":2", WB_UNSUPPORTED,
         "version 2 of the format; this program reads version 1"},
        {"\"version\":1", "\"version\":1.0", WB_UNSUPPORTED, "version 1 of"},
        {"\"version\"", "\"Version\"", WB_UNSUPPORTED, "version nothing of"},
        {"\"window\":4", "\"window\":0", WB_CORRUPT, "at most the window of 0"},
        {"\"window\":4", "\"window\":2", WB_CORRUPT, "at most the window of 2, found 3"},
        {"\"window\":4", "\"window\":-4", WB_CORRUPT,
         "window: expected a whole number up to 4294967295, found -4"},
        {"\"window\":4", "\"window\":4.5", WB_CORRUPT,
         "window: expected a whole number up to 4294967295, found 4.5"},
        {"\"window\":4", "\"window\":4294967296", WB_CORRUPT, "window"},
        {"\"window\":4", "\"window\":4294967295", WB_CAPACITY, "over the limit"},
        {"\"window\":4,", "", WB_CORRUPT, "window: expected a whole number up to 4294967295, found nothing"},
        {"\"decay\":0.5", "\"decay\":0", WB_CORRUPT, "decay: expected (0, 1], found 0"},
        {"\"decay\":0.5", "\"decay\":\"x\"", WB_CORRUPT, "decay: expected a number, found a string"},
        {"\"passes_seen\":9", "\"passes_seen\":2", WB_CORRUPT,
         "passes_seen: expected at least the 3 in the file"},
        {"\"passes_seen\":9", "\"passes_seen\":-1", WB_CORRUPT, "passes_seen"},
        {"\"regions\":[", "\"regions\":[],\"more\":[", WB_CORRUPT, "regions: expected an array of 1..64"},
        {"\"regions\":[", "\"regions\":{},\"more\":[", WB_CORRUPT,
         "regions: expected an array of 1..64, found a map"},
        {"\"regions\":[", "\"regions\":[7,", WB_CORRUPT, "region 0: name: expected a string, found nothing"},
        {"\"name\":\"draft\"", "\"name\":\"target\"", WB_CORRUPT, "both named"},
        {"\"name\":\"draft\"", "\"name\":null", WB_CORRUPT, "region 1: name: expected a string, found null"},
        {"\"n_layers\":2", "\"n_layers\":3", WB_CORRUPT,
         "pass 0: prefill: expected an array of 3, found an array of 2"},
        {"\"n_layers\":2", "\"n_layers\":0", WB_CORRUPT, "n_layers: expected 1..65536, found 0"},
        {"\"n_layers\":2", "\"n_layers\":true", WB_CORRUPT, "region 0: n_layers"},
        {"\"n_experts\":3", "\"n_experts\":4", WB_CORRUPT,
         "prefill, layer 0: expected an array of 4, found an array of 3"},
        {"\"n_experts\":3", "\"n_experts\":65537", WB_CORRUPT, "n_experts"},
        {"\"n_shared\":1", "\"n_shared\":65534", WB_CORRUPT, "n_shared"},
        {"\"on\":true", "\"on\":1", WB_CORRUPT, "region 0: on: expected true or false, found 1"},
        {"{\"decode\":[[3,4]]},{},{}", "{\"decode\":[[3,4]]},{}", WB_CORRUPT,
         "region 1: passes: expected an array of 3"},
        {"{\"decode\":[[3,4]]},{},{}", "{\"decode\":[[3,4]]},{},7", WB_CORRUPT, "expected a map, found 7"},
        {"\"passes\":[{\"decode\":[[3,4]]}", "\"passes\":[{\"decode\":[]}", WB_CORRUPT,
         "decode: expected an array of 1"},
        {"[3,4]", "[3,-4]", WB_CORRUPT,
         "pass 0: decode, layer 0, expert 1: expected a whole number up to 4294967295"},
        {"[3,4]", "[3.0,4]", WB_CORRUPT, "expert 0: expected a whole number up to 4294967295, found 3"},
        {"[3,4]", "[3,4294967296]", WB_CORRUPT, "found 4294967296"},
        {"[3,4]", "[3,\"4\"]", WB_CORRUPT, "found a string"},
        {"[3,4]", "[3,4,5]", WB_CORRUPT, "found an array of 3"},
        {"[[3,4]]", "[34]", WB_CORRUPT, "layer 0: expected an array of 2, found 34"},
        {"\"logical_count\":[[[101", "\"logical_count\":[[[102", WB_CORRUPT,
         "logical_count, pass 0: expected the sum"},
        {"\"logical_count\":", "\"logical_count\":[],\"old\":", WB_CORRUPT,
         "logical_count: expected an array of 3"},
        {"\"logical_count\":", "\"Logical_count\":", WB_CORRUPT,
         "logical_count: expected an array of 3, found nothing"},
    };
    temp_path dir = temp_dir(), path = temp_in(dir.text, "bad.json");
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        wb_load *load = (wb_load *)&load;
        write_changed(path.text, cases[i].old, cases[i].new);
        wb_status status = wb_load_read(path.text, &load);
        if (status != cases[i].status)
            fail_msg("%s: status %d: %s", cases[i].new, (int)status, wb_error_message());
        assert_message_has(cases[i].message);
        assert_message_has(path.text);
        assert_ptr_equal(load, &load);
    }
    write_changed(path.text, "\"n_shared\":0", "\"n_shared\":0,\"note\":\"other keys are skipped\"");
    wb_load *load = NULL;
    assert_int_equal(wb_load_read(path.text, &load), WB_OK);
    assert_is_golden(load);
    wb_load_close(load);
    assert_int_equal(wb_load_read(temp_in(dir.text, "no_such_folder/all.json").text, &load), WB_NOT_FOUND);
    temp_remove(dir);
}

static void test_cut_files_are_refused(void **state) {
    (void)state;
    static const char *const names[] = {"good.json", "good.msgpack"};
    temp_path dir = temp_dir(), path = temp_in(dir.text, "cut");
    for (size_t i = 0; i < 2; i++) {
        temp_path golden = temp_in(LOADS, names[i]);
        size_t bytes;
        char *data = temp_read(golden.text, &bytes);
        if (i == 0) bytes--; /* the newline at its end */
        for (size_t cut = 0; cut < bytes; cut += 3) {
            wb_load *load = NULL;
            temp_write(path.text, data, cut);
            if (wb_load_read(path.text, &load) != WB_CORRUPT) fail_msg("%s cut at %zu", names[i], cut);
            assert_null(load);
        }
        free(data);
    }
    temp_remove(dir);
}

/* ---- memory ---------------------------------------------------------------------------------- */

static void test_sglang_6967_counting_allocates_nothing(void **state) {
    (void)state;
    if (!ALLOC_FAIL_WORKS) skip();
    wb_load *load = open_one(2, 300, 1, 2);
    wb_route_model model = model_of(2, 300, 1);
    const wb_route_rows run = {0, 2, (uint16_t[]){0, 1, 299, 3}, NULL};
    wb_record record = record_of(1, 3, 1, &run);
    uint16_t ids[] = {0, 299, 300};
    wb_routed_rows rows = {.ids = ids, .dtype = WB_U16, .T = 3, .K = 1};
    double counts[600];
    long live;
    wb_status failed = WB_OK;
    alloc_fail_arm(0, true);
    for (int pass = 0; pass < 4; pass++) {
        failed |= wb_load_record(load, 0, WB_PHASE_DECODE, 1, &rows);
        failed |= wb_load_add_record(load, 0, &model, &record, false);
        failed |= wb_load_end_pass(load, NULL);
        failed |= wb_load_counts(load, 0, ALL, counts);
        failed |= wb_load_pass_counts(load, 0, ALL, 0, counts);
    }
    bool tried = alloc_fail_disarm(&live);
    assert_int_equal(failed, WB_OK);
    assert_false(tried);
    assert_int_equal(live, 0);
    wb_load_close(load);
}

static temp_path alloc_dir;
static wb_load *alloc_load;

static wb_status open_body(void) {
    const wb_load_region regions[] = {{"target", 2, 3, 0}, {"draft", 1, 2, 0}};
    wb_load *load = NULL;
    wb_status status = wb_load_open(2, regions, NULL, &load);
    wb_load_close(load);
    return status;
}

static wb_status report_body(void) {
    wb_placement *placement = NULL;
    wb_route_model model = model_of(2, 2, 1);
    const wb_route_rows run = {0, 2, (uint8_t[]){0, 1, 1, 1}, NULL};
    wb_record record = record_of(1, 3, 1, &run);
    double mean;
    uint8_t ranks[4], nodes[4];
    wb_status status = wb_placement_open(&(wb_topology){2, 1, 4, NULL, NULL, NULL}, 2, 2, &placement);
    if (status == WB_OK) status = wb_load_balancedness(alloc_load, 0, ALL, 0, placement, NULL, &mean, NULL);
    for (int policy = 0; policy < 2 && status == WB_OK; policy++) {
        ranks[0] = nodes[0] = 77;
        status = wb_token_spread(placement, (wb_dispatch_policy)policy, 0, &model, &record, ranks, nodes);
        if (status != WB_OK) assert_true(ranks[0] == 77 && nodes[0] == 77);
    }
    wb_placement_close(placement);
    return status;
}

static wb_status file_body(void) {
    static const char *const names[] = {"x.json", "x.msgpack"};
    wb_status status = WB_OK;
    for (size_t i = 0; i < 2 && status == WB_OK; i++) {
        wb_load *load = NULL;
        temp_path path = temp_in(alloc_dir.text, names[i]);
        status = wb_load_save(alloc_load, path.text);
        if (status == WB_OK) status = wb_load_read(path.text, &load);
        wb_load_close(load);
    }
    return status;
}

static void fail_each(wb_status (*body)(void)) {
    assert_int_equal(body(), WB_OK); /* what is set up once and kept: Jansson's seed */
    for (long n = 0;; n++) {
        long live;
        alloc_fail_arm(n, false);
        wb_status status = body();
        bool failed = alloc_fail_disarm(&live);
        if (live != 0) fail_msg("allocation %ld: %ld blocks are not freed", n, live);
        if (!failed) {
            assert_int_equal(status, WB_OK);
            assert_true(n > 0);
            return;
        }
        if (status != WB_OUT_OF_MEMORY)
            fail_msg("allocation %ld: %d, %s", n, (int)status, wb_error_message());
    }
}

static void test_each_allocation_of_open_fails_once(void **state) {
    (void)state;
    if (!ALLOC_FAIL_WORKS) skip();
    fail_each(open_body);
}

static void test_each_allocation_of_a_report_fails_once(void **state) {
    (void)state;
    if (!ALLOC_FAIL_WORKS) skip();
    alloc_load = two_by_two();
    fail_each(report_body);
    wb_load_close(alloc_load);
}

static void test_each_allocation_of_a_file_fails_once(void **state) {
    (void)state;
    if (!ALLOC_FAIL_WORKS) skip();
    alloc_load = two_by_two();
    alloc_dir = temp_dir();
    fail_each(file_body);
    temp_remove(alloc_dir);
    wb_load_close(alloc_load);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden_files_are_read_and_written_again),
        cmocka_unit_test(test_a_placement_is_read_from_the_same_file),
        cmocka_unit_test(test_a_handle_goes_through_a_file_after_the_ring_has_turned),
        cmocka_unit_test(test_bad_files_are_refused),
        cmocka_unit_test(test_cut_files_are_refused),
        cmocka_unit_test(test_sglang_6967_counting_allocates_nothing),
        cmocka_unit_test(test_each_allocation_of_open_fails_once),
        cmocka_unit_test(test_each_allocation_of_a_report_fails_once),
        cmocka_unit_test(test_each_allocation_of_a_file_fails_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
