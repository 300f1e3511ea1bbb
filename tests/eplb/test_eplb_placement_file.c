/* test_eplb_placement_file.c - trees and placements in files: what is written reads back the same from
 * JSON and msgpack, what is cut, damaged or of another shape is refused by name, and counts and dumps lead
 * to the balanced placement. */
#include "eplb_folder_fixture.h"
#include "files/offline/tree_file.h"
#include "placement_core.h"
#include "support/test_seed.h"
#include "wb_random.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <signal.h>
#include <sys/resource.h>

static uint64_t seed;

/* Literals with NULs in them. */
#define PUT(name, literal) put_bytes(name, literal, sizeof(literal) - 1)

static size_t files_in_dir(void) {
    DIR *d = opendir(dir.text);
    size_t n = 0;
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d));) n += e->d_name[0] != '.';
    closedir(d);
    return n;
}

/* ---- trees ----------------------------------------------------------------------------------- */

static void refused_tree(temp_path path, wb_status expected, const char *part) {
    json_t *untouched = (json_t *)&seed;
    wb_status status = wb_tree_read(path.text, &untouched);
    if (status != expected) fail_msg("status %d, message '%s' (%s)", status, wb_error_message(), part);
    assert_ptr_equal(untouched, &seed);
    assert_message_has(path.text);
    assert_message_has(part);
}

static json_t *read_tree(temp_path path) {
    json_t *root = NULL;
    if (wb_tree_read(path.text, &root) != WB_OK) fail_msg("%s", wb_error_message());
    return root;
}

static void assert_tree(temp_path path, const char *json) {
    json_t *found = read_tree(path), *expected = json_loads(json, JSON_ALLOW_NUL, NULL);
    assert_non_null(expected);
    if (!json_equal(found, expected)) {
        char *text = json_dumps(found, JSON_COMPACT);
        fail_msg("expected %s, found %s", json, text);
    }
    json_decref(found);
    json_decref(expected);
}

static void test_tree_round_trip(void **unused) {
    (void)unused;
    const char *text =
        "{\"ints\":[0,1,-1,127,128,-32,-33,-128,-129,255,256,32767,-32768,-32769,65535,65536,"
        "2147483647,-2147483648,-2147483649,4294967295,4294967296,9223372036854775807,"
        "-9223372036854775808],\"reals\":[0.1,-2.5e-300,1.7976931348623157e308,3.0,-0.0],"
        "\"\":{\"a\":[],\"b\":{}},\"t\":true,\"f\":false,\"n\":null,\"s\":[\"\",\"\xc3\xa9\"]}";
    json_t *tree = json_loads(text, 0, NULL);
    assert_non_null(tree);
    const char *names[] = {"t.json", "t.msgpack", "t", "t.json.bin"};
    for (size_t i = 0; i < 4; i++) {
        temp_path path = temp_in(dir.text, names[i]);
        assert_int_equal(wb_tree_write(path.text, tree), WB_OK);
        assert_tree(path, text);
        char *bytes = temp_read(path.text, NULL);
        assert_true((bytes[0] == '{') == (i == 0));
        free(bytes);
    }
    assert_int_equal(files_in_dir(), 4); /* no temporary names are left */
    json_t *again = read_tree(temp_in(dir.text, "t"));
    json_t *zero = json_array_get(json_object_get(again, "reals"), 4);
    assert_true(signbit(json_real_value(zero)));
    json_decref(again);
    json_decref(tree);
}

/* Each of msgpack's encodings, also where a shorter one would do. */
static void test_msgpack_encodings(void **unused) {
    (void)unused;
    assert_tree(
        PUT("a", "\x81\xa1k\x9c\x05\xff\xcc\x05\xcd\x01\x00\xce\x00\x00\x00\x05\xcf\0\0\0\0\0\0\0\x05\xd0\xfb"
                 "\xd1\xff\xfb\xd2\xff\xff\xff\xfb\xd3\xff\xff\xff\xff\xff\xff\xff\xfb\xd0\x7f\xe0"),
        "{\"k\":[5,-1,5,256,5,5,-5,-5,-5,-5,127,-32]}");
    assert_tree(
        PUT("b", "\xde\x00\x01\xd9\x01k\xdc\x00\x05\xca\x3f\x80\x00\x00\xcb\x3f\xf8\0\0\0\0\0\0\xc0\xc2\xc3"),
        "{\"k\":[1.0,1.5,null,false,true]}");
    assert_tree(PUT("c", "\xdf\0\0\0\x01\xda\0\x01k\xdd\0\0\0\x01\xdb\0\0\0\x02hi"), "{\"k\":[\"hi\"]}");
    assert_tree(PUT("d", "\x80"), "{}");
    assert_tree(PUT("e", " \t\r\n{\"k\": 1}\n"), "{\"k\":1}");
    assert_tree(PUT("f", "\x92\x01\x90"), "[1,[]]");
    assert_tree(PUT("g", "\xdc\0\x01\x80"), "[{}]");
    assert_tree(PUT("h", " [1, [2]]"), "[1,[2]]");
    assert_tree(PUT("i", "[ ]"), "[]");
}

static void test_tree_refuses(void **unused) {
    (void)unused;
    refused_tree(temp_in(dir.text, "absent"), WB_NOT_FOUND, strerror(ENOENT));
    refused_tree(dir, WB_IO, "known before it is read, found a directory");
    temp_path pipe = temp_in(dir.text, "pipe");
    assert_int_equal(mkfifo(pipe.text, 0600), 0);
    refused_tree(pipe, WB_IO, "found a pipe: write it to a file first"); /* and does not wait for a writer */
    assert_int_equal(unlink(pipe.text), 0);
    refused_tree(put("x", ""), WB_CORRUPT, "empty");
    refused_tree(put("x", "  \n"), WB_CORRUPT, "neither");
    refused_tree(put("x", "1"), WB_CORRUPT, "neither");
    refused_tree(put("x", "\x01\x91"), WB_CORRUPT, "neither");
    refused_tree(put("x", "[1, 2"), WB_CORRUPT, "line 1, byte 5");
    refused_tree(put("x", "[1] 2"), WB_CORRUPT, "line 1, byte 5: end of file expected");
    refused_tree(PUT("x", "PK\x03\x04 archive"), WB_UNSUPPORTED, "PyTorch");
    refused_tree(PUT("x", "\x80\x02}q\x00."), WB_UNSUPPORTED, "torch.save(torch.load(old), new)");
    refused_tree(PUT("x", "\x80\x04\x95"), WB_UNSUPPORTED, "PyTorch");
    /* YAML: a NUL could be written as JSON, and then not be read again */
    refused_tree(PUT("x", "a: b\0c"), WB_CORRUPT, "line 1: expected UTF-8 without NUL");
    refused_tree(PUT("x", "a\0: b"), WB_CORRUPT, "line 1: expected a key and a colon");
    /* JSON */
    refused_tree(put("x", "{\"k\": 1,\n \"k\": 2}"), WB_CORRUPT, "line 2, byte 13: duplicate");
    refused_tree(put("x", "{\"k\": NaN}"), WB_CORRUPT, "line 1");
    refused_tree(put("x", "{\"k\": 1e999}"), WB_CORRUPT, "line 1");
    refused_tree(put("x", "{\"k\": 99999999999999999999}"), WB_CORRUPT, "line 1");
    refused_tree(put("x", "{} {}"), WB_CORRUPT, "line 1, byte 4: end of file expected");
    refused_tree(put("x", "{\"k\": [1, 2"), WB_CORRUPT, "line 1");
    refused_tree(PUT("x", "{\"k\0\": 1}"), WB_CORRUPT, "line 1");
    /* msgpack */
    refused_tree(PUT("x", "\x81\xa1k\xc4\x01z"), WB_CORRUPT, "byte 3: expected a number");
    refused_tree(PUT("x", "\x81\xa1k\xd4\x01z"), WB_CORRUPT, "byte 3: expected a number");
    refused_tree(PUT("x", "\x81\xa1k\xc1"), WB_CORRUPT, "byte 3: 0xc1");
    refused_tree(PUT("x", "\x81\xa1k\xcf\xff\xff\xff\xff\xff\xff\xff\xff"), WB_CORRUPT, "byte 3: a number");
    refused_tree(PUT("x", "\x81\xa1k\xca\x7f\xc0\0\0"), WB_CORRUPT, "byte 3: expected a finite");
    refused_tree(PUT("x", "\x81\xa1k\xcb\xff\xf0\0\0\0\0\0\0"), WB_CORRUPT, "byte 3: expected a finite");
    refused_tree(PUT("x", "\x82\xa1k\x01\xa1k\x02"), WB_CORRUPT, "byte 4: a key is there twice");
    refused_tree(PUT("x", "\x81\x01\x02"), WB_CORRUPT, "byte 1: expected a string");
    refused_tree(PUT("x", "\x81\xa2k\0\x02"), WB_CORRUPT, "byte 1: a string has a NUL");
    refused_tree(PUT("x", "\x81\xa1k\xa2\xc3("), WB_CORRUPT, "byte 3: a string is not UTF-8");
    refused_tree(PUT("x", "\x80\x80"), WB_CORRUPT, "byte 1: expected the end");
    refused_tree(PUT("x", "\x81\xa1k\xdd\xff\xff\xff\xff"), WB_CORRUPT, "byte 3: a count");
    refused_tree(PUT("x", "\xdf\x7f\xff\xff\xff"), WB_CORRUPT, "byte 0: a count");
}

static void test_depth(void **unused) {
    (void)unused;
    for (size_t depth = 1; depth < 40; depth++) { /* of the arrays inside the map */
        char bytes[64] = "\x81\xa1k";
        memset(bytes + 3, '\x91', depth);
        bytes[3 + depth] = 1;
        temp_path path = put_bytes("deep", bytes, depth + 4);
        json_t *root = json_object(), *node = json_integer(1);
        for (size_t d = 0; d < depth; d++) {
            json_t *outer = json_array();
            json_array_append_new(outer, node);
            node = outer;
        }
        json_object_set_new(root, "k", node);
        temp_path written = temp_in(dir.text, "written");
        wb_status status = wb_tree_write(written.text, root);
        if (depth < 16) {
            json_decref(read_tree(path));
            assert_int_equal(status, WB_OK);
            json_decref(read_tree(written));
        } else {
            refused_tree(path, WB_CORRUPT, "nested too deeply");
            assert_int_equal(status, WB_INVALID_ARGUMENT);
        }
        json_decref(root);
    }
    assert_int_equal(files_in_dir(), 2);
}

/* Longer than any tree should be, and sparse on the disk. */
static void test_huge_file(void **unused) {
    (void)unused;
    temp_path path = put("huge", "{");
    assert_int_equal(truncate(path.text, ((off_t)1 << 30) + 1), 0);
    refused_tree(path, WB_UNSUPPORTED, "at most");
}

/* What was there before stays, and no temporary name is left. */
static void test_write_fails(void **unused) {
    (void)unused;
    const char *names[] = {"old.json", "old.msgpack"};
    json_t *large = json_object(), *numbers = json_array();
    for (int i = 0; i < 100000; i++) json_array_append_new(numbers, json_integer(i));
    json_object_set_new(large, "k", numbers);
    struct rlimit before, small = {.rlim_cur = 8192};
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    small.rlim_max = before.rlim_max;
    signal(SIGXFSZ, SIG_IGN);
    for (int i = 0; i < 2; i++) {
        temp_path path = put(names[i], "{\"old\": 1}");
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
        wb_status status = wb_tree_write(path.text, large);
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
        assert_int_equal(status, WB_IO);
        assert_message_has(path.text);
        assert_message_has(strerror(EFBIG));
        assert_tree(path, "{\"old\":1}");
        assert_int_equal(files_in_dir(), (size_t)i + 1);
    }
    temp_path nowhere = temp_in(dir.text, "no/such.json");
    assert_int_equal(wb_tree_write(nowhere.text, large), WB_IO);
    assert_message_has(strerror(ENOENT));
    json_decref(large);
}

/* ---- placements: there and back -------------------------------------------------------------- */

static wb_placement *read_ok(temp_path path, const wb_topology *t, uint32_t L, uint32_t E) {
    wb_placement *p = NULL;
    if (wb_placement_read(path.text, t, L, E, NULL, NULL, NULL, &p) != WB_OK)
        fail_msg("%s", wb_error_message());
    return p;
}

static bool has_key(temp_path path, const char *key) {
    json_t *root = read_tree(path);
    bool has = json_object_get(root, key);
    json_decref(root);
    return has;
}

static void round_trip(const wb_placement *p, const wb_topology *t, const char *name, bool in_order) {
    temp_path path = temp_in(dir.text, name);
    assert_int_equal(wb_placement_save(p, path.text, WB_MAP_SGLANG, NULL), WB_OK);
    wb_placement *back = read_ok(path, t, p->n_layers, p->n_experts);
    for (uint32_t l = 0; l < p->n_layers; l++) {
        assert_int_equal(back->epoch[l], 0);
        back->epoch[l] = p->epoch[l];
    }
    assert_true(core_same(p, back));
    assert_true(has_key(path, "replica_of_slot") == !in_order);
    wb_placement_close(back);
}

/* Empty slots, dead ranks and replicas in any order. */
static void test_vllm_53022_a_placement_from_a_file(void **unused) {
    (void)unused;
    const wb_topology t = core_topology();
    wb_placement *p = core_open(&t, CORE_L, CORE_E, seed);
    wb_placement *trivial = NULL;
    assert_int_equal(wb_placement_open(&t, CORE_L, CORE_E, &trivial), WB_OK);
    round_trip(trivial, &t, "t.json", true);
    round_trip(trivial, &t, "t.msgpack", true);
    wb_layer_map last = wb_placement_layer(p, CORE_L - 1); /* one layer out of order is enough */
    bool in_order = true;
    for (uint32_t i = 0; i + 1 < last.replica_begin[CORE_E]; i++) {
        uint32_t slot = last.replicas[i].slot, next = last.replicas[i + 1].slot;
        if (last.expert_of_slot[slot] == last.expert_of_slot[next] && slot > next) in_order = false;
    }
    assert_int_equal(
        wb_placement_set_layer(trivial, CORE_L - 1, last.expert_of_slot, last.replica_of_slot, 0), WB_OK);
    round_trip(trivial, &t, "u.json", in_order);
    round_trip(trivial, &t, "u.msgpack", in_order);
    temp_path path = temp_in(dir.text, "u.json");
    json_t *root = read_tree(path);
    assert_int_equal(json_integer_value(json_object_get(root, "n_ranks")), CORE_P);
    assert_int_equal(json_integer_value(json_object_get(root, "n_nodes")), 2);
    assert_int_equal(json_integer_value(json_object_get(root, "n_experts")), CORE_E);
    json_decref(root);
    wb_placement_close(trivial);
    wb_placement_close(p);
}

static void test_70000_slots(void **unused) {
    (void)unused;
    const wb_topology t = {.n_ranks = 11, .n_nodes = 3, .n_slots = 70000};
    wb_placement *p = core_open(&t, 2, 65536, seed);
    round_trip(p, &t, "large.json", false);
    round_trip(p, &t, "large.msgpack", false);
    wb_placement_close(p);
}

/* A file cut anywhere, or with a byte changed, is refused or read as another placement; never more. */
static void test_cut_and_damaged(void **unused) {
    (void)unused;
    const wb_topology t = core_topology();
    wb_placement *p = core_open(&t, 2, CORE_E, seed);
    const char *names[] = {"d.json", "d.msgpack"};
    uint64_t rng = seed;
    for (int i = 0; i < 2; i++) {
        temp_path path = temp_in(dir.text, names[i]);
        assert_int_equal(wb_placement_save(p, path.text, WB_MAP_SGLANG, NULL), WB_OK);
        size_t size;
        char *bytes = temp_read(path.text, &size);
        for (size_t cut = 0; cut + (i == 0) < size; cut++) { /* JSON's last byte is a newline */
            wb_placement *untouched = (wb_placement *)&seed;
            temp_write(path.text, bytes, cut);
            wb_status status = wb_placement_read(path.text, &t, 2, CORE_E, NULL, NULL, NULL, &untouched);
            if (i == 1 && cut == 1) status = WB_CORRUPT; /* an empty map, or so it seems */
            assert_int_equal(status, WB_CORRUPT);
            assert_ptr_equal(untouched, &seed);
            assert_message_has(path.text);
        }
        for (int trial = 0; trial < 500; trial++) {
            size_t at = wb_random_below(&rng, (uint32_t)size);
            char old = bytes[at];
            bytes[at] = (char)(uint8_t)wb_random(&rng);
            temp_write(path.text, bytes, size);
            wb_placement *q = NULL;
            if (wb_placement_read(path.text, &t, 2, CORE_E, NULL, NULL, NULL, &q) != WB_OK)
                assert_message_has(path.text);
            wb_placement_close(q);
            bytes[at] = old;
        }
        free(bytes);
    }
    wb_placement_close(p);
}

/* ---- placements: what does not fit ----------------------------------------------------------- */

/* 2 layers of 4 slots on 2 ranks, 3 experts. */
static void refused(const char *json, wb_status expected, const char *part) {
    const wb_topology t = {.n_ranks = 2, .n_nodes = 1, .n_slots = 4};
    wb_placement *untouched = (wb_placement *)&seed;
    temp_path path = put("p.json", json);
    wb_status status = wb_placement_read(path.text, &t, 2, 3, NULL, NULL, NULL, &untouched);
    if (status != expected) fail_msg("status %d, message '%s' of %s", status, wb_error_message(), json);
    assert_ptr_equal(untouched, &seed);
    char start[600];
    snprintf(start, sizeof start, "%s: ", path.text);
    assert_true(strncmp(wb_error_message(), start, strlen(start)) == 0);
    assert_null(strstr(wb_error_message() + 1, path.text)); /* once */
    assert_message_has(part);
}

#define MAP "{\"physical_to_logical_map\": "
#define GOOD MAP "[[0, 1, 2, 0], [2, 1, 0, -1]]"

static void test_map_refuses(void **unused) {
    (void)unused;
    refused("{}", WB_NOT_FOUND, "physical_to_logical_map or logical_count");
    refused("{\"replica_of_slot\": [[0,0,0,0],[0,0,0,0]]}", WB_NOT_FOUND, "neither");
    refused(MAP "7}", WB_CORRUPT, "physical_to_logical_map: expected an array of 2 layers");
    refused(MAP "[]}", WB_MISMATCH, "physical_to_logical_map has 0 layers, expected 2");
    refused(MAP "[[0,1,2,0]]}", WB_MISMATCH, "physical_to_logical_map has 1 layers, expected 2");
    refused(MAP "[[0,1,2,0],[0,1,2]]}", WB_MISMATCH, "physical_to_logical_map[1] has 3 slots, expected 4");
    refused(MAP "[[0,1,2,0],[0,1,2,0,1]]}", WB_MISMATCH, "physical_to_logical_map[1] has 5 slots");
    refused(MAP "[[0,1,2,0],3]}", WB_CORRUPT, "physical_to_logical_map[1]: expected an array of 4 slots");
    refused(MAP "[[0,1,2,0],[0,1,2,1.0]]}", WB_CORRUPT, "physical_to_logical_map[1][3]: expected an integer");
    refused(MAP "[[0,1,2,0],[\"0\",1,2,0]]}", WB_CORRUPT, "physical_to_logical_map[1][0]: expected an");
    refused(MAP "[[0,1,2,0],[4294967296,1,2,0]]}", WB_CORRUPT,
            "[1][0]: expected -1..2147483647, found 4294967296");
    refused(MAP "[[0,1,2,0],[-2,1,2,0]]}", WB_CORRUPT, "found -2");
    refused(MAP "[[0,1,2,0],[0,1,2,3]]}", WB_INVALID_ARGUMENT, "layer 1 slot 3 holds expert 3");
    refused(MAP "[[0,1,2,0],[0,1,1,0]]}", WB_INVALID_ARGUMENT, "layer 1 has no slot for expert 2");
    refused(GOOD ", \"replica_of_slot\": 1}", WB_CORRUPT, "replica_of_slot: expected an array");
    refused(GOOD ", \"replica_of_slot\": [[0,0,0,1]]}", WB_MISMATCH,
            "replica_of_slot has 1 layers, expected 2");
    refused(GOOD ", \"replica_of_slot\": [[0,0,0,1],[0]]}", WB_MISMATCH, "replica_of_slot[1] has 1 slots");
    refused(GOOD ", \"replica_of_slot\": [[0,0,0,1],[0,0,0,-1]]}", WB_CORRUPT, "replica_of_slot[1][3]");
    refused(GOOD ", \"replica_of_slot\": [[0,0,0,0],[0,0,0,0]]}", WB_INVALID_ARGUMENT, "layer 0 slot 3");
    refused(GOOD ", \"replica_of_slot\": [[0,0,0,2],[0,0,0,0]]}", WB_INVALID_ARGUMENT, "layer 0 slot 3");
}

static void test_counts_refuse(void **unused) {
    (void)unused;
    refused("{\"logical_count\": []}", WB_MISMATCH, "logical_count is empty");
    refused("{\"logical_count\": {}}", WB_CORRUPT, "logical_count: expected an array of 2 layers");
    refused("{\"logical_count\": [[1,2,3]]}", WB_MISMATCH, "logical_count has 1 layers, expected 2");
    refused("{\"logical_count\": [[1,2,3],[1,2]]}", WB_MISMATCH,
            "logical_count[1] has 2 experts, expected 3");
    refused("{\"logical_count\": [[1,2,3],[1,2,\"3\"]]}", WB_CORRUPT,
            "logical_count[1][2]: expected a count");
    refused("{\"logical_count\": [[1,2,3],[1,2,-3]]}", WB_CORRUPT, "logical_count[1][2]: expected a count");
    refused("{\"logical_count\": [[[1,2,3],[1,2,3]],[[1,2,3]]]}", WB_MISMATCH,
            "logical_count[1] has 1 layers");
    refused("{\"logical_count\": [[[1,2,3],[1,2,3]],[[1,2,3],[1,2,-1]]]}", WB_CORRUPT,
            "logical_count[1][1][2]");
    refused("{\"logical_count\": [[[1,2,3],[1,2,3]],7]}", WB_CORRUPT, "logical_count[1]: expected an array");
}

static void test_topology_refused(void **unused) {
    (void)unused;
    const wb_topology t = {.n_ranks = 0, .n_nodes = 1, .n_slots = 4};
    const char *texts[] = {GOOD "}", "{\"logical_count\": [[1,2,3],[1,2,3]]}"};
    for (int i = 0; i < 2; i++) {
        temp_path path = put("p.json", texts[i]);
        wb_placement *p = NULL;
        assert_int_equal(wb_placement_read(path.text, &t, 2, 3, NULL, NULL, NULL, &p), WB_INVALID_ARGUMENT);
        assert_message_has(path.text);
        assert_message_has("ranks");
    }
}

/* ---- from counts ----------------------------------------------------------------------------- */

static void assert_equal_and_close(wb_placement *a, wb_placement *b) {
    assert_true(core_same(a, b));
    wb_placement_close(a);
    wb_placement_close(b);
}

static void test_counts(void **unused) {
    (void)unused;
    const wb_topology t = {.n_ranks = 2, .n_nodes = 1, .n_slots = 6};
    const double loads[] = {10, 0, 7, 3, 1, 90};
    const char *texts[] = {
        "{\"logical_count\": [[10, 0, 7], [3, 1, 90]]}",
        "{\"logical_count\": [[[10.0, 0.0, 7.0], [3e0, 1, 9e1]]], \"physical_to_logical_map\": null}",
        "{\"logical_count\": [[[4, 0, 7], [1, 1, 88]], [[0, 0, 0], [0, 0, 0]], [[6, 0, 0], [2, 0, 2]]]}",
    };
    for (int i = 0; i < 3; i++) {
        wb_placement *expected = NULL;
        assert_int_equal(wb_eplb_solve(&t, 2, 3, 1, loads, NULL, &expected), WB_OK);
        assert_equal_and_close(read_ok(put("c.json", texts[i]), &t, 2, 3), expected);
    }
}

/* Both keys: the map is what was decided, the counts are why. */
static void test_map_wins(void **unused) {
    (void)unused;
    const wb_topology t = {.n_ranks = 2, .n_nodes = 1, .n_slots = 4};
    const int32_t experts[] = {2, 1, 0, -1};
    wb_placement *p = read_ok(put("b.json", "{\"logical_count\": [[9, 9, 0], [\"not\", \"looked\", \"at\"]],"
                                            " \"physical_to_logical_map\": [[0, 1, 2, 0], [2, 1, 0, -1]]}"),
                              &t, 2, 3);
    assert_memory_equal(wb_placement_layer(p, 1).expert_of_slot, experts, sizeof experts);
    wb_placement_close(p);
}

/* ---- from a dump ----------------------------------------------------------------------------- */

enum { DUMP_L = 3, DUMP_E = 20, DUMP_K = 4, DUMP_N = 5 };

/* Records with 0 to 3 runs, some with bitmaps; `n_runs` 0: none has rows. `spoil`: an id that is no
 * expert. */
static wb_dump *make_dump(bool rows, bool spoil, double *counts) {
    fixture_model f;
    fixture_rng rng = {seed};
    wb_dump_writer *writer = NULL;
    wb_dump_options options = wb_dump_options_default();
    options.trust_ids = true;
    temp_path path = temp_in(dir.text, "part-0.wbr");
    fixture_model_init(&f, DUMP_L, DUMP_E, DUMP_K);
    assert_int_equal(wb_dump_create(path.text, &f.model, &options, &writer), WB_OK);
    for (uint32_t i = 0; i < DUMP_N; i++) {
        fixture_record r;
        char rid[16];
        snprintf(rid, sizeof rid, "r%u", i);
        fixture_record_init(&r, &f.model, &rng, rid, 9, 40 + i, 0, rows ? i % 4 : 0, i % 2 == 1);
        if (spoil && i == 1) wb_route_id_set(r.ids, WB_U8, 5 * DUMP_L * DUMP_K + 1, DUMP_E);
        if (spoil && i == 1) r.bits[0] = 0xff;
        for (uint32_t t = 0; t < r.record.n_tokens; t++) {
            const void *row = wb_record_row(&f.model, &r.record, t);
            for (uint32_t l = 0; row && !spoil && l < DUMP_L; l++)
                for (uint32_t k = 0; k < DUMP_K; k++)
                    counts[l * DUMP_E + wb_route_id(row, WB_U8, l * DUMP_K + k)]++;
        }
        assert_int_equal(wb_dump_append(writer, &r.record), WB_OK);
        fixture_record_free(&r);
    }
    assert_int_equal(wb_dump_finish(writer), WB_OK);
    wb_dump *dump = NULL;
    assert_int_equal(wb_dump_open(path.text, &dump), WB_OK);
    return dump;
}

static void test_from_dump(void **unused) {
    (void)unused;
    const wb_topology t = {.n_ranks = 4, .n_nodes = 2, .n_slots = 24},
                      small = {.n_ranks = 1, .n_nodes = 1, .n_slots = 19};
    double counts[DUMP_L * DUMP_E] = {0};
    wb_dump *dump = make_dump(true, false, counts);
    wb_placement *p = NULL, *expected = NULL;
    assert_int_equal(wb_placement_from_dump(dump, &t, NULL, &p), WB_OK);
    assert_int_equal(wb_eplb_solve(&t, DUMP_L, DUMP_E, 1, counts, NULL, &expected), WB_OK);
    assert_equal_and_close(p, expected);
    p = NULL;
    assert_int_equal(wb_placement_from_dump(dump, &small, NULL, &p), WB_INVALID_ARGUMENT);
    assert_null(p);
    wb_dump_close(dump);
}

static void test_from_dump_refuses(void **unused) {
    (void)unused;
    const wb_topology t = {.n_ranks = 4, .n_nodes = 2, .n_slots = 24};
    double counts[DUMP_L * DUMP_E] = {0};
    wb_placement *p = NULL;
    wb_dump *dump = make_dump(false, false, counts);
    assert_int_equal(wb_placement_from_dump(dump, &t, NULL, &p), WB_NOT_FOUND);
    assert_message_has("rows of routes");
    wb_dump_close(dump);
    unlink(temp_in(dir.text, "part-0.wbr").text);
    dump = make_dump(true, true, counts);
    assert_int_not_equal(wb_placement_from_dump(dump, &t, NULL, &p), WB_OK);
    assert_message_has("r1");
    assert_null(p);
    wb_dump_close(dump);
}

int main(int argc, char **argv) {
    seed = test_seed(argc, argv);
    printf("test_eplb_placement_file: seed %" PRIu64 "\n", seed);
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_tree_round_trip),
        TEST(test_msgpack_encodings),
        TEST(test_tree_refuses),
        TEST(test_depth),
        TEST(test_huge_file),
        TEST(test_write_fails),
        TEST(test_vllm_53022_a_placement_from_a_file),
        TEST(test_70000_slots),
        TEST(test_cut_and_damaged),
        TEST(test_map_refuses),
        TEST(test_counts_refuse),
        TEST(test_topology_refused),
        TEST(test_counts),
        TEST(test_map_wins),
        TEST(test_from_dump),
        TEST(test_from_dump_refuses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
