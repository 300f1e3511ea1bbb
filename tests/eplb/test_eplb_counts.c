/* test_eplb_counts.c - counts from files of any origin: JSON, msgpack and PyTorch's give the same numbers,
 * what is no table of counts is refused by name, a pickle runs nothing, rows are mapped to MoE layers,
 * files are summed, and a row of zeros and one rank's view are seen for what they are (rule 33). */
#include "eplb_folder_fixture.h"
#include "files/offline/number_file.h"
#include "support/test_seed.h"
#include "wb_eplb.h"
#include "wb_random.h"

#include <inttypes.h>
#include <unistd.h>

#define TORCH WB_TEST_DATA "/torch/"

static uint64_t seed;

static wb_counts *read_ok(const char *path, const wb_moe_layers *layers) {
    wb_counts *c = NULL;
    if (wb_counts_read(1, &path, layers, &c) != WB_OK) fail_msg("%s", wb_error_message());
    return c;
}

static void refused_with(const char *path, const wb_moe_layers *layers, wb_status expected,
                         const char *part) {
    wb_counts *untouched = (wb_counts *)&seed;
    const wb_status status = wb_counts_read(1, &path, layers, &untouched);
    if (status != expected) fail_msg("%s: status %d, '%s' (%s)", path, status, wb_error_message(), part);
    assert_ptr_equal(untouched, &seed);
    assert_message_has(path);
    assert_message_has(part);
}

static void refused(const char *path, wb_status expected, const char *part) {
    refused_with(path, NULL, expected, part);
}

/* As make_torch_files.py made them: 100 pass + 10 layer + expert, the passes from `first` on, times
 * `factor`. */
static void assert_values(const wb_counts *c, uint32_t passes, uint32_t first, double factor) {
    const wb_counts_info i = wb_counts_get_info(c);
    const double *loads = wb_counts_loads(c);
    assert_int_equal(i.n_passes, passes);
    assert_int_equal(i.n_layers, 4);
    assert_int_equal(i.n_experts, 8);
    for (uint32_t p = 0; p < passes; p++)
        for (uint32_t l = 0; l < 4; l++)
            for (uint32_t e = 0; e < 8; e++)
                assert_true(loads[(p * 4 + l) * 8 + e] == factor * (100 * (p + first) + 10 * l + e));
}

/* ---- files of torch.save ----------------------------------------------------------------------- */

static void test_torch_files(void **unused) {
    (void)unused;
    static const struct {
        const char *path, *layout;
        uint32_t passes;
    } files[] = {
        {TORCH "good_recorder.pt", "SGLang recorder, logical_count", 3},
        {TORCH "good_protocol4.pt", "SGLang recorder, logical_count", 3},
        {TORCH "good_zip64.pt", "SGLang recorder, logical_count", 3},
        {TORCH "good_no_crc.pt", "SGLang recorder, logical_count", 3},
        {TORCH "good_one_pass.pt", "SGLang recorder, logical_count", 1},
        {TORCH "good_ordered.pt", "PyTorch, logical_count", 1},
        {TORCH "good_tensor.pt", "PyTorch tensor", 3},
        {TORCH "good_list.pt", "SGLang recorder, logical_count", 3},
        {TORCH "good_tensor_list.pt", "PyTorch, logical_count", 3},
        {TORCH "good_rows.pt", "PyTorch list", 3},
        {TORCH "good_byte.pt", "PyTorch tensor", 2},
        {TORCH "good_short.pt", "PyTorch tensor", 2},
        {TORCH "good_double.pt", "PyTorch tensor", 2},
    };
    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
        wb_counts *c = read_ok(files[i].path, NULL);
        assert_values(c, files[i].passes, 0, 1);
        assert_string_equal(wb_counts_get_info(c).layout, files[i].layout);
        wb_counts_close(c);
    }
}

/* counts[1:, :, 1:] of [4][8][9], its last dimensions exchanged: [3][8][8]. */
static void test_torch_view(void **unused) {
    (void)unused;
    wb_counts *c = read_ok(TORCH "good_view.pt", NULL);
    const double *loads = wb_counts_loads(c);
    assert_int_equal(wb_counts_get_info(c).n_layers, 8);
    for (uint32_t p = 0; p < 3; p++)
        for (uint32_t l = 0; l < 8; l++)
            for (uint32_t e = 0; e < 8; e++)
                assert_true(loads[(p * 8 + l) * 8 + e] == 100 * (p + 1) + 10 * e + l + 1);
    wb_counts_close(c);
}

static void test_torch_refused(void **unused) {
    (void)unused;
    refused(TORCH "bad_code.pt", WB_UNSUPPORTED, "system");
    assert_int_equal(access("waybill-ran-a-pickle", F_OK), -1);
    refused(TORCH "bad_numpy.pt", WB_UNSUPPORTED, "numpy");
    refused(TORCH "bad_bfloat16.pt", WB_UNSUPPORTED, "BFloat16Storage");
    refused(TORCH "bad_negative.pt", WB_CORRUPT, "logical_count[0][1]: expected a count, found a negative");
    refused(TORCH "bad_nan.pt", WB_CORRUPT, "logical_count[0][1]: expected a count, found NaN");
    refused(TORCH "bad_empty.pt", WB_MISMATCH, "dimension 0");
    refused(TORCH "bad_four_dimensions.pt", WB_MISMATCH, "2..3 dimensions, found 4");
    refused(TORCH "bad_expanded.pt", WB_CORRUPT, "view within its storage of 1 ");
    refused(TORCH "bad_offset.pt", WB_CORRUPT, "view within its storage of 96 ");
    refused(TORCH "bad_offset_one.pt", WB_CORRUPT, "view within its storage of 96 ");
    refused(TORCH "bad_stride.pt", WB_CORRUPT, "view within its storage of 96 ");
    refused(TORCH "bad_stride_inner.pt", WB_CORRUPT, "view within its storage of 96 ");
    refused(TORCH "bad_list.pt", WB_MISMATCH, "logical_count[1]: expected a list of 2 experts");
    refused(TORCH "bad_list_text.pt", WB_CORRUPT, "logical_count[0][1]: expected a count");
    refused(TORCH "bad_tensor_list.pt", WB_MISMATCH, "logical_count[1]: expected a tensor of the shape");
    refused(TORCH "bad_list_again.pt", WB_CORRUPT, "expected at most a number for each of the file's");
    refused(TORCH "bad_records.pt", WB_UNSUPPORTED, "\"records\" of SGLang's recorder modes");
    refused(TORCH "bad_legacy.pt", WB_UNSUPPORTED, "torch.save(torch.load(old), new)");
    refused(TORCH "bad_big_endian.pt", WB_UNSUPPORTED, "byteorder: expected little, found big");
    refused(TORCH "bad_compressed.pt", WB_UNSUPPORTED, "found a compressed one (method 8)");
    refused(TORCH "bad_twice.pt", WB_CORRUPT, "zip: data.pkl is there twice");
    refused(TORCH "bad_short_storage.pt", WB_CORRUPT, "96 elements of 4 bytes, found 380 bytes");
    refused(TORCH "bad_no_storage.pt", WB_CORRUPT, "data/0");
    refused(TORCH "bad_no_pickle.pt", WB_UNSUPPORTED, "data.pkl");
    refused(TORCH "bad_pickle_cut.pt", WB_CORRUPT, "an opcode that ends it");
    refused(TORCH "bad_pickle_after.pt", WB_CORRUPT, "the end after one value");
    refused(TORCH "bad_crc.pt", WB_CORRUPT, "data/0: expected the checksum");
    refused(TORCH "good_map.pt", WB_NOT_FOUND, "logical_count");
}

/* More than is read is refused by its size: a file with a hole takes neither the memory nor the time. */
static void test_torch_too_large(void **unused) {
    (void)unused;
    const temp_path path = put("large.pt", "PK\x03\x04");
    assert_int_equal(truncate(path.text, (off_t)(1 << 30) + 1), 0);
    refused(path.text, WB_UNSUPPORTED, "expected at most 1073741824 bytes, found 1073741825");
}

/* A member that the directory calls compressed, or encrypted, though its bytes in the file are as many as it
 * has; and one of other bytes in the file than it has. */
static void test_torch_members_that_are_not_stored(void **unused) {
    (void)unused;
    static const struct {
        size_t field; /* of a record of the directory: flags at 8, method at 10, bytes in the file at 20 */
        char value;
        const char *part;
    } cases[] = {{10, 8, "data.pkl: expected a member that is stored, found a compressed one (method 8)"},
                 {8, 1, "data.pkl: expected a member that is stored, found an encrypted one (method 0)"},
                 {20, 1, "data.pkl: expected a member that is stored, found a compressed one (method 0)"}};
    for (size_t i = 0; i < 3; i++) {
        size_t size = 0, at = 0;
        char *bytes = temp_read(TORCH "good_recorder.pt", &size);
        while (at + 4 < size && memcmp(bytes + at, "PK\1\2", 4) != 0) at++; /* the first, of data.pkl */
        bytes[at + cases[i].field] = cases[i].value;
        temp_path path = temp_in(dir.text, "member.pt");
        temp_write(path.text, bytes, size);
        refused(path.text, WB_UNSUPPORTED, cases[i].part);
        free(bytes);
    }
}

/* A file cut anywhere is refused; one with a byte changed is refused by name, or gives finite counts. */
static void test_torch_cut_and_damaged(void **unused) {
    (void)unused;
    const char *names[] = {TORCH "good_recorder.pt", TORCH "good_zip64.pt", TORCH "good_protocol4.pt"};
    temp_path path = temp_in(dir.text, "damaged.pt");
    const char *text = path.text;
    uint64_t rng = seed;
    for (size_t f = 0; f < 3; f++) {
        size_t size = 0;
        char *bytes = temp_read(names[f], &size);
        for (size_t cut = 0; cut < size; cut++) {
            wb_counts *untouched = (wb_counts *)&seed;
            temp_write(text, bytes, cut);
            assert_int_not_equal(wb_counts_read(1, &text, NULL, &untouched), WB_OK);
            assert_ptr_equal(untouched, &seed);
            assert_message_has(text);
        }
        for (int trial = 0; trial < 3000; trial++) {
            const size_t at = wb_random_below(&rng, (uint32_t)size);
            const char old = bytes[at];
            wb_counts *c = NULL;
            bytes[at] = (char)(uint8_t)wb_random(&rng);
            temp_write(text, bytes, size);
            if (wb_counts_read(1, &text, NULL, &c) != WB_OK) assert_message_has(text);
            wb_counts_close(c);
            bytes[at] = old;
        }
        free(bytes);
    }
}

/* ---- pickles by hand --------------------------------------------------------------------------- */

#define PICKLE(literal, expected, part)                                                                 \
    do {                                                                                                \
        wb_pickle p = {0};                                                                              \
        wb_status s = wb_pickle_read((const uint8_t *)(literal), sizeof(literal) - 1, &p);              \
        if (s != (expected)) fail_msg("%s: status %d, '%s'", part, s, s ? wb_error_message() : "read"); \
        if (s != WB_OK) assert_message_has(part);                                                       \
        wb_pickle_close(&p);                                                                            \
    } while (0)

static void test_pickles(void **unused) {
    (void)unused;
    PICKLE("\x80\x02N.", WB_OK, "None");
    PICKLE("\x80\x02]q\0h\0a.", WB_OK, "a list that holds itself");
    PICKLE("\x80\x02}(X\1\0\0\0aK\1u.", WB_OK, "a dict");
    PICKLE("\x80\x04\x95\x04\0\0\0\0\0\0\0\x8c\x01"
           "a\x94.",
           WB_OK, "a text of protocol 4");
    PICKLE("\x80\x02\x8a\x08\xff\xff\xff\xff\xff\xff\xff\xff.", WB_OK, "-1");
    /* What can run code: all the names, and the opcodes beside REDUCE that call. */
    PICKLE("\x80\x02"
           "cos\nsystem\n(X\2\0\0\0lstR.",
           WB_UNSUPPORTED, "os.system");
    PICKLE("\x80\x02"
           "c__builtin__\neval\n)R.",
           WB_UNSUPPORTED, "__builtin__.eval");
    PICKLE("\x80\x04\x8c\x02os\x8c\x06system\x93.", WB_UNSUPPORTED, "os.system");
    PICKLE("\x80\x02"
           "ctorch\nload\n)R.",
           WB_UNSUPPORTED, "torch.load");
    PICKLE("\x80\x02"
           "ctorch._utils\n_rebuild_tensor\n)R.",
           WB_UNSUPPORTED, "_rebuild_tensor");
    PICKLE("\x80\x02"
           "(ios\nsystem\n.",
           WB_UNSUPPORTED, "0x69"); /* INST */
    PICKLE("\x80\x02"
           "(N)o.",
           WB_UNSUPPORTED, "0x6f");                      /* OBJ */
    PICKLE("\x80\x02N)\x81.", WB_UNSUPPORTED, "0x81");   /* NEWOBJ */
    PICKLE("\x80\x04N)}\x92.", WB_UNSUPPORTED, "0x92");  /* NEWOBJ_EX */
    PICKLE("\x80\x02N}b.", WB_UNSUPPORTED, "0x62");      /* BUILD */
    PICKLE("\x80\x02\x82\x01.", WB_UNSUPPORTED, "0x82"); /* EXT1 */
    PICKLE("\x80\x02Pos\n.", WB_UNSUPPORTED, "0x50");    /* PERSID */
    PICKLE("\x80\x02"
           "ccollections\nOrderedDict\nN\x85R.",
           WB_CORRUPT, "made empty");
    PICKLE("\x80\x02"
           "ctorch\nIntStorage\n)R.",
           WB_CORRUPT, "a call of");
    PICKLE("\x80\x02N)R.", WB_CORRUPT, "a call of");
    PICKLE("\x80\x02"
           "ctorch._utils\n_rebuild_tensor_v2\n)R.",
           WB_CORRUPT, "a tensor");
    PICKLE("\x80\x02NQ.", WB_CORRUPT, "a storage");
    PICKLE("\x80\x02(X\7\0\0\0storage"
           "ccollections\nOrderedDict\nX\1\0\0\0"
           "0NK\1tQ.",
           WB_CORRUPT, "a storage");
    /* Stacks, memos and lengths that are not there. */
    PICKLE("\x80\x02.", WB_CORRUPT, "a value on the stack");
    PICKLE("\x80\x02NN.", WB_CORRUPT, "the end after one value");
    PICKLE("\x80\x02(.", WB_CORRUPT, "a value on the stack");
    PICKLE("\x80\x02t.", WB_CORRUPT, "a mark");
    PICKLE("\x80\x02N\x86.", WB_CORRUPT, "a mark, or values");
    PICKLE("\x80\x02N(\x85.", WB_CORRUPT, "a mark, or values");
    PICKLE("\x80\x02NNa.", WB_CORRUPT, "a list for items");
    PICKLE("\x80\x02(Na.", WB_CORRUPT, "a list for items");
    PICKLE("\x80\x02](NNu.", WB_CORRUPT, "a dict for items");
    PICKLE("\x80\x02}(NNNu.", WB_CORRUPT, "as many values as keys");
    PICKLE("\x80\x02h\0.", WB_CORRUPT, "a number that the memo has");
    PICKLE("\x80\x02j\xff\xff\xff\xff.", WB_CORRUPT, "a number that the memo has");
    PICKLE("\x80\x02Nr\xff\xff\xff\xff.", WB_CORRUPT, "the next number of the memo");
    PICKLE("\x80\x02X\xff\xff\xff\xff.", WB_CORRUPT, "more bytes");
    PICKLE("\x80\x02X\xff.", WB_CORRUPT, "more bytes");
    PICKLE("\x80\x02G\0.", WB_CORRUPT, "8 bytes");
    PICKLE("\x80\x02\x8a\x09\0\0\0\0\0\0\0\0\0.", WB_UNSUPPORTED, "64 bits");
    PICKLE("\x80\x02"
           "cos.",
           WB_CORRUPT, "the end of a line");
    PICKLE("\x80\x01N.", WB_CORRUPT, "protocol 2 to 5");
    PICKLE("\x80\x04\x95\xff\0\0\0\0\0\0\0N.", WB_CORRUPT, "a frame within");
    PICKLE("", WB_CORRUPT, "an opcode that ends it");
}

/* As many containers inside each other as bytes: no call is as deep. */
static void test_pickle_depth(void **unused) {
    (void)unused;
    const size_t size = WB_PICKLE_MAX_BYTES;
    uint8_t *bytes = malloc(size + 1);
    wb_pickle p = {0};
    assert_non_null(bytes);
    memset(bytes, ']', size / 2);
    memset(bytes + size / 2, 'a', size / 2);
    bytes[size - 1] = '.';
    assert_int_equal(wb_pickle_read(bytes, size, &p), WB_OK);
    assert_true(p.n_values == size / 2 && p.n_items == size / 2 - 1);
    wb_pickle_close(&p);
    assert_int_equal(wb_pickle_read(bytes, size + 1, &p), WB_UNSUPPORTED);
    assert_message_has("1048576 bytes");
    free(bytes);
}

/* ---- JSON and msgpack -------------------------------------------------------------------------- */

static void test_trees(void **unused) {
    (void)unused;
    static const char *const texts[] = {"{\"logical_count\": [[1, 2, 3], [4, 5, 6]]}",
                                        "{\"x\": 1, \"logical_count\": [[[1, 2, 3], [4, 5, 6]]]}",
                                        "[[1, 2, 3], [4, 5, 6]]", "[[[1.0, 2e0, 3], [4, 5, 6]]]"};
    for (size_t i = 0; i < 4; i++) {
        wb_counts *c = read_ok(put("c.json", texts[i]).text, NULL);
        const wb_counts_info info = wb_counts_get_info(c);
        assert_int_equal(info.n_passes, 1);
        assert_int_equal(info.n_layers, 2);
        for (int k = 0; k < 6; k++) assert_true(wb_counts_loads(c)[k] == k + 1);
        assert_string_equal(info.layout, i < 2 ? "logical_count" : "bare array");
        assert_int_equal(info.layers[1], 1);
        wb_counts_close(c);
    }
    wb_counts *c = read_ok(put("c.msgpack", "\x92\x93\x01\x02\x03\x93\x04\x05\x06").text, NULL);
    for (int k = 0; k < 6; k++) assert_true(wb_counts_loads(c)[k] == k + 1);
    wb_counts_close(c);
    c = read_ok(WB_TEST_DATA "/loads/good.json", NULL); /* the library's own window */
    assert_int_equal(wb_counts_get_info(c).n_layers, 2);
    assert_int_equal(wb_counts_get_info(c).n_experts, 3);
    wb_counts_close(c);
}

static void test_trees_refused(void **unused) {
    (void)unused;
    refused(temp_in(dir.text, "absent").text, WB_NOT_FOUND, "absent");
    refused(put("c.json", "{\"records\": []}").text, WB_UNSUPPORTED, "record with mode stat");
    refused(put("c.json", "{}").text, WB_NOT_FOUND, "logical_count or an array");
    refused(put("c.json", "[]").text, WB_MISMATCH, "array is empty, expected counts");
    refused(put("c.json", "[[]]").text, WB_MISMATCH, "array[0] is empty");
    refused(put("c.json", "[1, 2]").text, WB_CORRUPT, "array[0]: expected an array of experts");
    refused(put("c.json", "[[[[1]]]]").text, WB_CORRUPT, "array[0][0][0]: expected a count");
    refused(put("c.json", "[[1, 2], [3]]").text, WB_MISMATCH, "array[1] has 1 experts, expected 2");
    refused(put("c.json", "[[[1], [2]], [[3]]]").text, WB_MISMATCH, "array[1] has 1 layers, expected 2");
    refused(put("c.json", "[[1, \"2\"]]").text, WB_CORRUPT, "array[0][1]: expected a count");
    refused(put("c.json", "[[1, -2]]").text, WB_CORRUPT, "array[0][1]: expected a count, found a negative");
    refused(put("c.json", "{\"logical_count\": 7}").text, WB_CORRUPT, "logical_count: expected an array");
}

/* ---- several files ----------------------------------------------------------------------------- */

static void test_files_are_summed(void **unused) {
    (void)unused;
    const char *paths[] = {TORCH "good_recorder.pt", TORCH "good_recorder_rank1.pt", TORCH "good_tensor.pt"};
    wb_counts *c = NULL;
    assert_int_equal(wb_counts_read(3, paths, NULL, &c), WB_OK);
    assert_values(c, 3, 0, 4); /* 1 + 2 + 1 times */
    wb_counts_close(c);
    const char *unlike[] = {TORCH "good_recorder.pt", TORCH "good_one_pass.pt"};
    assert_int_equal(wb_counts_read(2, unlike, NULL, &c), WB_MISMATCH);
    assert_message_has(
        "good_one_pass.pt: expected 3 passes of 4 layers of 8 experts as in the first file, found 1");
    assert_int_equal(wb_counts_read(0, NULL, NULL, &c), WB_INVALID_ARGUMENT);
}

/* ---- rows and layers --------------------------------------------------------------------------- */

static void test_rows_are_mapped_to_moe_layers(void **unused) {
    (void)unused;
    static const uint32_t two[] = {1, 3}, back[] = {3, 1};
    const wb_moe_layers known = {5, 2, two}, unknown = {0, 2, two}, wrong = {3, 2, two}, order = {0, 2, back},
                        none = {0, 0, two};
    temp_path all = put("all.json", "[[0,0],[1,2],[0,0],[3,4],[0,0]]"),
              moe = put("moe.json", "[[1,2],[3,4]]"), short_one = put("short.json", "[[0,0],[1,2],[0,0]]"),
              dense = put("d.json", "[[0,0],[1,2],[0,5],[3,4],[0,0]]");
    const wb_moe_layers *layers[] = {&known, &unknown};
    for (int i = 0; i < 4; i++) {
        wb_counts *c = read_ok(i % 2 ? all.text : moe.text, layers[i / 2]);
        const wb_counts_info info = wb_counts_get_info(c);
        assert_int_equal(info.n_layers, 2);
        assert_int_equal(info.layers[0], 1);
        assert_int_equal(info.layers[1], 3);
        for (int k = 0; k < 4; k++) assert_true(wb_counts_loads(c)[k] == k + 1);
        wb_counts_close(c);
    }
    refused_with(short_one.text, &known, WB_MISMATCH,
                 "each of 2 MoE layers or of 5 hidden layers, found 3 rows");
    refused_with(short_one.text, &unknown, WB_MISMATCH, "the last MoE layer is 3, found 3 rows");
    refused_with(dense.text, &known, WB_MISMATCH, "no counts in hidden layer 2");
    wb_counts *c = NULL;
    const char *path = all.text;
    assert_int_equal(wb_counts_read(1, &path, &wrong, &c), WB_INVALID_ARGUMENT);
    assert_message_has("below the 3 hidden layers, found 3");
    assert_int_equal(wb_counts_read(1, &path, &order, &c), WB_INVALID_ARGUMENT);
    assert_message_has("ascending");
    assert_int_equal(wb_counts_read(1, &path, &none, &c), WB_INVALID_ARGUMENT);
}

/* ---- what is no information -------------------------------------------------------------------- */

static void test_rule_33_rows_of_zeros_are_no_information(void **unused) {
    (void)unused;
    const wb_topology t = {.n_ranks = 2, .n_nodes = 1, .n_slots = 6};
    wb_counts *c = read_ok(put("z.json", "[[[0,0,0,0],[0,0,9e6,0]],[[0,0,0,0],[0,0,0,1]]]").text, NULL);
    const wb_counts_info info = wb_counts_get_info(c);
    assert_int_equal(info.informed[0], 0);
    assert_int_equal(info.informed[1], 1);
    wb_placement *trivial = NULL, *solved = NULL, *again = NULL;
    assert_int_equal(wb_placement_open(&t, 2, 4, &trivial), WB_OK);
    for (int a = 0; a < WB_EPLB_N_ALGORITHMS; a++) {
        wb_eplb_options options = wb_eplb_options_default();
        options.algorithm = (wb_eplb_algorithm)a;
        options.horizon_steps = 1e18;
        assert_int_equal(wb_eplb_solve_counts(&t, 2, 4, 2, wb_counts_loads(c), &options, &solved), WB_OK);
        assert_memory_equal(wb_placement_layer(solved, 0).expert_of_slot,
                            wb_placement_layer(trivial, 0).expert_of_slot, 6 * sizeof(int32_t));
        if (a != WB_EPLB_INCREMENTAL) /* which may leave a layer that is uneven as it is */
            assert_memory_not_equal(wb_placement_layer(solved, 1).expert_of_slot,
                                    wb_placement_layer(trivial, 1).expert_of_slot, 6 * sizeof(int32_t));
        /* The map that it has, when it has one. */
        const int32_t present[] = {3, 2, 1, 0, 1, 2};
        wb_placement *current = NULL;
        assert_int_equal(wb_placement_clone(trivial, &current), WB_OK);
        assert_int_equal(wb_placement_set_layer(current, 0, present, NULL, 7), WB_OK);
        options.current = current;
        assert_int_equal(wb_eplb_solve_counts(&t, 2, 4, 2, wb_counts_loads(c), &options, &again), WB_OK);
        assert_memory_equal(wb_placement_layer(again, 0).expert_of_slot, present, sizeof present);
        wb_placement_close(again);
        wb_placement_close(solved);
        wb_placement_close(current);
    }
    wb_placement_close(trivial);
    wb_counts_close(c);
}

/* The map of before ranks died names slots that are gone: an even one takes its place. */
static void test_a_map_of_dead_ranks_is_not_kept(void **unused) {
    (void)unused;
    static const uint8_t dead[] = {0, 1, 0};
    const wb_topology before = {.n_ranks = 3, .n_nodes = 1, .n_slots = 6},
                      now = {.n_ranks = 3, .n_nodes = 1, .n_slots = 6, .dead = dead};
    const double zeros[4] = {0};
    wb_placement *current = NULL, *solved = NULL;
    assert_int_equal(wb_placement_open(&before, 1, 4, &current), WB_OK);
    wb_eplb_options options = wb_eplb_options_default();
    options.current = current;
    assert_int_equal(wb_eplb_solve_counts(&now, 1, 4, 1, zeros, &options, &solved), WB_OK);
    assert_int_equal(wb_placement_layer(solved, 0).expert_of_slot[2], WB_NO_EXPERT);
    wb_placement_close(solved);
    wb_placement_close(current);
}

static void test_rule_33_one_ranks_view_is_seen(void **unused) {
    (void)unused;
    uint32_t block = 99;
    /* One block of four; one of two; both ends; none; a boundary that 3 ranks of 8 experts have. */
    wb_counts *c =
        read_ok(put("b.json", "[[0,0,0,0,3,4,0,0],[0,0,0,0,3,4,1,0],[1,0,0,0,0,0,0,1],[0,0,0,0,0,0,0,0],"
                              "[0,0,1,1,1,0,0,0]]")
                    .text,
                NULL);
    assert_true(wb_counts_in_one_block(c, 0, 4, &block));
    assert_int_equal(block, 2);
    assert_true(wb_counts_in_one_block(c, 0, 2, &block));
    assert_int_equal(block, 1);
    assert_false(wb_counts_in_one_block(c, 1, 4, &block));
    assert_true(wb_counts_in_one_block(c, 1, 2, &block));
    assert_false(wb_counts_in_one_block(c, 2, 2, &block));
    assert_false(wb_counts_in_one_block(c, 3, 2, &block));
    assert_false(wb_counts_in_one_block(c, 0, 1, &block));
    assert_true(wb_counts_in_one_block(c, 4, 3, &block)); /* 0..1, 2..4, 5..7 */
    assert_int_equal(block, 1);
    wb_counts_close(c);
    c = read_ok(put("b.json", "[[[0,0,3,0]],[[0,1,0,0]]]").text, NULL); /* over all passes */
    assert_false(wb_counts_in_one_block(c, 0, 2, &block));
    wb_counts_close(c);
}

static wb_counts_run find_run(const char *json) {
    wb_counts *c = read_ok(put("b.json", json).text, NULL);
    wb_counts_run run = {99, 99, 99};
    assert_int_equal(wb_counts_find_run(c, &run), WB_OK);
    wb_counts_close(c);
    return run;
}

static void assert_run(const char *json, uint32_t first, uint32_t n_experts, uint32_t n_layers) {
    const wb_counts_run run = find_run(json);
    if (run.first != first || run.n_experts != n_experts || run.n_layers != n_layers)
        fail_msg("%s: found %" PRIu32 " experts from %" PRIu32 " on in %" PRIu32 " layers", json,
                 run.n_experts, run.first, run.n_layers);
}

/* Of an engine of other ranks or with replicas: 3 experts are no block of 2, 4 or 8 ranks. */
static void test_rule_33_the_view_of_a_rank_of_another_engine_is_seen(void **unused) {
    (void)unused;
    assert_run("[[0,0,0,1,2,3,0,0],[0,0,0,0,7,1,0,0],[0,0,0,0,0,0,0,0]]", 3, 3, 2);
    assert_run("[[0,0,1,2,3,1,0,0]]", 2, 4, 1);                   /* half of them */
    assert_run("[[0,0,1,2,3,1,1,0]]", 0, 0, 0);                   /* more */
    assert_run("[[5,0,0,0,0,0,1,1],[1,0,0,0,0,0,0,1]]", 6, 3, 2); /* slots that begin anew with expert 0 */
    assert_run("[[1,0,0,0,0,0,0,0],[0,0,0,0,1,0,0,0]]", 0, 0, 0); /* each layer another one */
    assert_run("[[[0,0,3,0,0,0]],[[0,0,0,0,1,0]]]", 2, 3, 1);     /* over all passes */
    assert_run("[[[0,0,3,0,0,0]],[[0,0,0,0,0,1]]]", 0, 0, 0);
    assert_run("[[0,0,0,0],[0,0,0,0]]", 0, 0, 0);
    assert_run("[[1]]", 0, 0, 0);
#define LAYER_A "[0,2,1,0,0,0]"
#define LAYER_B "[1,1,1,1,1,1]"
    assert_run("[" LAYER_A "," LAYER_A "," LAYER_A "," LAYER_A "," LAYER_B "," LAYER_A "," LAYER_A "," LAYER_A
               "," LAYER_A "," LAYER_A "]",
               1, 2, 9);
    assert_run("[" LAYER_A "," LAYER_A "," LAYER_A "," LAYER_A "," LAYER_B "," LAYER_A "," LAYER_A "," LAYER_A
               "," LAYER_A "," LAYER_B "]",
               0, 0, 0);
}

int main(int argc, char **argv) {
    seed = test_seed(argc, argv);
    printf("test_eplb_counts: seed %" PRIu64 "\n", seed);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_torch_files),
        cmocka_unit_test(test_torch_view),
        cmocka_unit_test(test_torch_refused),
        cmocka_unit_test_setup_teardown(test_torch_too_large, setup, teardown),
        cmocka_unit_test_setup_teardown(test_torch_members_that_are_not_stored, setup, teardown),
        cmocka_unit_test_setup_teardown(test_torch_cut_and_damaged, setup, teardown),
        cmocka_unit_test(test_pickles),
        cmocka_unit_test(test_pickle_depth),
        cmocka_unit_test_setup_teardown(test_trees, setup, teardown),
        cmocka_unit_test_setup_teardown(test_trees_refused, setup, teardown),
        cmocka_unit_test(test_files_are_summed),
        cmocka_unit_test_setup_teardown(test_rows_are_mapped_to_moe_layers, setup, teardown),
        cmocka_unit_test_setup_teardown(test_rule_33_rows_of_zeros_are_no_information, setup, teardown),
        cmocka_unit_test(test_a_map_of_dead_ranks_is_not_kept),
        cmocka_unit_test_setup_teardown(test_rule_33_one_ranks_view_is_seen, setup, teardown),
        cmocka_unit_test_setup_teardown(test_rule_33_the_view_of_a_rank_of_another_engine_is_seen, setup,
                                        teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
