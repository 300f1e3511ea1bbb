/* test_safetensors.c - what is written is read back; a file that lies is refused and never read out of
 * bounds. */
#include "support/temp_files.h"

#include "wb_json.h"
#include "wb_tensor_io.h"

/* ---- helpers --------------------------------------------------------------------------------- */

typedef struct raw_file {
    unsigned char bytes[65536];
    size_t n;
} raw_file;

/* A file with `header` as its text and `data_bytes` of data. */
static void make_raw(raw_file *raw, const char *header, size_t data_bytes) {
    size_t length = strlen(header);
    assert_true(8 + length + data_bytes <= sizeof raw->bytes);
    for (int i = 0; i < 8; i++) raw->bytes[i] = (unsigned char)(length >> (8 * i));
    memcpy(raw->bytes + 8, header, length);
    for (size_t i = 0; i < data_bytes; i++) raw->bytes[8 + length + i] = (unsigned char)(i * 7 + 1);
    raw->n = 8 + length + data_bytes;
}

/* Touches every byte that an opened file offers, so that a sanitizer or the mapping's end would speak up. */
static uint64_t touch(const wb_safetensors *st) {
    uint64_t sum = 0;
    for (size_t i = 0; i < wb_safetensors_count(st); i++) {
        wb_tensor_view view;
        if (wb_safetensors_get(st, i, &view) != WB_OK) continue;
        uint64_t elements = 1;
        for (int32_t d = 0; d < view.n_dims; d++) elements *= (uint64_t)view.shape[d];
        assert_int_equal(elements * wb_dtype_size(view.dtype), view.bytes);
        for (size_t b = 0; b < view.bytes; b++) sum += ((const unsigned char *)view.data)[b];
    }
    return sum;
}

static temp_path dir;

static int setup(void **state) {
    (void)state;
    dir = temp_dir();
    return 0;
}

static int teardown(void **state) {
    (void)state;
    temp_remove(dir);
    return 0;
}

/* Opening a file with this header and data fails with `status` and a message that names file and `part`. */
static void expect_refused(const char *header, size_t data_bytes, wb_status status, const char *part) {
    static raw_file raw;
    temp_path path = temp_in(dir.text, "bad.safetensors");
    wb_safetensors *st = (wb_safetensors *)&raw;
    make_raw(&raw, header, data_bytes);
    temp_write(path.text, raw.bytes, raw.n);
    wb_status found = wb_safetensors_open(path.text, NULL, &st);
    if (found != status)
        fail_msg("%s: expected %d, found %d: %s", header, (int)status, (int)found, wb_error_message());
    assert_ptr_equal(st, &raw);
    assert_message_has("bad.safetensors");
    assert_message_has(part);
}

/* ---- round trip ------------------------------------------------------------------------------ */

static const wb_dtype all_dtypes[] = {WB_U8,   WB_U16, WB_I32,     WB_I64,     WB_F32,
                                      WB_BF16, WB_F16, WB_F8_E4M3, WB_F8_E8M0, WB_I8};
enum { N_DTYPES = sizeof all_dtypes / sizeof all_dtypes[0] };

static void test_round_trip_of_every_dtype(void **state) {
    (void)state;
    enum { SCALAR = N_DTYPES, EMPTY, N };
    wb_tensor_view views[N], found;
    static unsigned char data[N][48];
    for (size_t i = 0; i < N; i++) {
        wb_dtype dtype = i < N_DTYPES ? all_dtypes[i] : WB_F32;
        const char *const name = i < N_DTYPES ? wb_dtype_name(dtype) : i == SCALAR ? "scalar" : "empty";
        views[i] = (wb_tensor_view){.name = name,
                                    .dtype = dtype,
                                    .n_dims = 2,
                                    .shape = {2, 3},
                                    .data = data[i],
                                    .bytes = 6 * wb_dtype_size(dtype)};
        for (size_t b = 0; b < sizeof data[i]; b++) data[i][b] = (unsigned char)(b * 31 + i * 7);
    }
    views[SCALAR].n_dims = 0;
    views[SCALAR].bytes = 4;
    views[EMPTY].shape[0] = 0;
    views[EMPTY].bytes = 0;
    temp_path path = temp_in(dir.text, "round.safetensors"),
              temporary = temp_in(dir.text, "round.safetensors.tmp");
    assert_int_equal(wb_safetensors_write(path.text, N, views, "{\"format\": \"pt\"}"), WB_OK);
    assert_false(temp_exists(temporary.text));
    wb_safetensors *st = NULL;
    assert_int_equal(wb_safetensors_open(path.text, NULL, &st), WB_OK);
    assert_int_equal(wb_safetensors_count(st), N);
    for (size_t i = 0; i < N; i++) {
        assert_int_equal(wb_safetensors_find(st, views[i].name, &found), WB_OK);
        assert_int_equal(found.dtype, views[i].dtype);
        assert_int_equal(found.n_dims, views[i].n_dims);
        for (int32_t d = 0; d < found.n_dims; d++) assert_int_equal(found.shape[d], views[i].shape[d]);
        assert_int_equal(found.bytes, views[i].bytes);
        if (found.bytes > 0) assert_memory_equal(found.data, views[i].data, found.bytes);
        assert_int_equal((uintptr_t)found.data % wb_dtype_size(found.dtype), 0);
        assert_string_equal(found.file, path.text);
    }
    assert_int_equal(wb_safetensors_find(st, "nobody", &found), WB_NOT_FOUND);
    assert_message_has("nobody");
    assert_int_equal(wb_safetensors_get(st, N, &found), WB_INVALID_ARGUMENT);
    wb_safetensors_close(st);
    wb_safetensors_close(NULL);
}

static void test_empty_file_of_no_tensors(void **state) {
    (void)state;
    temp_path path = temp_in(dir.text, "none.safetensors");
    wb_safetensors *st = NULL;
    wb_tensor_view view;
    assert_int_equal(wb_safetensors_write(path.text, 0, NULL, NULL), WB_OK);
    assert_int_equal(wb_safetensors_open(path.text, NULL, &st), WB_OK);
    assert_int_equal(wb_safetensors_count(st), 0);
    assert_int_equal(wb_safetensors_find(st, "x", &view), WB_NOT_FOUND);
    wb_safetensors_close(st);
}

static void test_writer_refuses_views_that_lie(void **state) {
    (void)state;
    float data[4] = {0};
    temp_path path = temp_in(dir.text, "refused.safetensors");
    wb_tensor_view good = {
        .name = "a", .dtype = WB_F32, .n_dims = 1, .shape = {4}, .data = data, .bytes = 16};
    wb_tensor_view pair[2] = {good, good};
    assert_int_equal(wb_safetensors_write(path.text, 2, pair, NULL), WB_INVALID_ARGUMENT);
    assert_message_has("tensor a: the name is taken");
    wb_tensor_view bad = good;
    bad.bytes = 15;
    assert_int_equal(wb_safetensors_write(path.text, 1, &bad, NULL), WB_INVALID_ARGUMENT);
    assert_message_has("bytes: expected 16");
    bad = good;
    bad.n_dims = 5;
    assert_int_equal(wb_safetensors_write(path.text, 1, &bad, NULL), WB_INVALID_ARGUMENT);
    bad = good;
    bad.name = "__metadata__";
    assert_int_equal(wb_safetensors_write(path.text, 1, &bad, NULL), WB_INVALID_ARGUMENT);
    bad = good;
    bad.n_dims = 2;
    bad.shape[0] = bad.shape[1] = INT64_C(1) << 40;
    assert_int_equal(wb_safetensors_write(path.text, 1, &bad, NULL), WB_INVALID_ARGUMENT);
    bad.shape[0] = -4;
    assert_int_equal(wb_safetensors_write(path.text, 1, &bad, NULL), WB_INVALID_ARGUMENT);
    assert_int_equal(wb_safetensors_write(path.text, 1, &good, "{\"a\": 1}"), WB_INVALID_ARGUMENT);
    assert_int_equal(wb_safetensors_write(path.text, 1, &good, "[]"), WB_CORRUPT);
    const temp_path nowhere = temp_in(dir.text, "no_such_folder/x.safetensors");
    assert_int_equal(wb_safetensors_write(nowhere.text, 1, &good, NULL), WB_IO);
    assert_message_has(nowhere.text);
    temp_path temporary = temp_in(dir.text, "refused.safetensors.tmp");
    assert_false(temp_exists(path.text));
    assert_false(temp_exists(temporary.text));
}

static void test_golden_files_open(void **state) {
    (void)state;
    static const char *const names[] = {"qwen3_moe", "olmoe", "deepseek_v2", "deepseek_v3"};
    static const char *const stems[] = {"model", "ref", "grads"};
    for (size_t f = 0; f < sizeof names / sizeof names[0]; f++) {
        for (size_t s = 0; s < 3; s++) {
            temp_path golden = temp_in(WB_TEST_DATA, names[f]);
            wb_safetensors *st = NULL;
            assert_int_equal(wb_safetensors_open(golden.text, stems[s], &st), WB_OK);
            assert_true(wb_safetensors_count(st) > 15);
            assert_true(touch(st) > 0);
            wb_safetensors_close(st);
        }
    }
    temp_path ref = temp_in(WB_TEST_DATA, "olmoe/ref.safetensors");
    wb_safetensors *st = NULL;
    wb_tensor_view view;
    assert_int_equal(wb_safetensors_open(ref.text, NULL, &st), WB_OK);
    assert_int_equal(wb_safetensors_find(st, "input_ids", &view), WB_OK);
    assert_int_equal(view.dtype, WB_I64);
    assert_int_equal(view.shape[0] * view.shape[1], 48);
    wb_safetensors_close(st);
}

/* ---- files that lie -------------------------------------------------------------------------- */

#define TWO_TENSORS                                                                                          \
    "{\"__metadata__\":{\"format\":\"pt\"},\"a\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[0,16]" \
    "},"                                                                                                     \
    "\"b\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[16,19]}}"

static void test_bad_headers_are_refused(void **state) {
    (void)state;
    static const struct {
        const char *header;
        size_t data;
        const char *part;
    } bad[] = {
        {"", 0, "JSON"},
        {"{", 0, "JSON line 1"},
        {"[]", 0, "expected a JSON object"},
        {"{} x", 0, "JSON"},
        {"{\"a\":1}", 0, "tensor a: expected an object"},
        {"{\"a\":{},\"a\":{}}", 0, "duplicate"},
        {"{\"__metadata__\":3}", 0, "__metadata__: expected an object"},
        {"{\"__metadata__\":{\"k\":3}}", 0, "__metadata__: k: expected a string"},
        {"{\"a\":{\"shape\":[2],\"data_offsets\":[0,8]}}", 8, "tensor a: dtype"},
        {"{\"a\":{\"dtype\":7,\"shape\":[2],\"data_offsets\":[0,8]}}", 8, "tensor a: dtype"},
        {"{\"a\":{\"dtype\":\"AVERYLONGDTYPENAME\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8,
         "tensor a: dtype"},
        {"{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,8]}}", 8, "tensor a: shape"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":2,\"data_offsets\":[0,8]}}", 8, "tensor a: shape"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[-2],\"data_offsets\":[0,8]}}", 8, "tensor a: shape"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2.0],\"data_offsets\":[0,8]}}", 8, "tensor a: shape"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2]}}", 8, "tensor a: data_offsets"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0]}}", 8, "tensor a: data_offsets"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8,8]}}", 8, "tensor a: data_offsets"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[8,0]}}", 8, "begin <= end"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[-8,0]}}", 8, "at least 0"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,9]}}", 8, "<= 8, found [0, 9]"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[0,8]}}", 8, "3 elements of F32"},
        {"{\"a\":{\"dtype\":\"F8_E4M3\",\"shape\":[3],\"data_offsets\":[0,8]}}", 8, "3 elements of F8_E4M3"},
        {"{\"a\":{\"dtype\":\"F4\",\"shape\":[3],\"data_offsets\":[0,1]}}", 1, "3 elements of F4"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,0]}}", 0,
         "overflow"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[4611686018427387904,2],\"data_offsets\":[0,0]}}", 0,
         "overflow"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[4611686018427387904],\"data_offsets\":[0,0]}}", 0, "elements"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[99999999999999999999],\"data_offsets\":[0,0]}}", 0, "JSON"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},"
         "\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[3,7]}}",
         7, "tensor b: data_offsets [3, 7]"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},"
         "\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[5,9]}}",
         9, "a gap"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}", 5, "1 bytes of no tensor"},
        {"{}", 1, "1 bytes of no tensor"},
        {"{\"a\\u0000b\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}", 0, "JSON"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        expect_refused(bad[i].header, bad[i].data, WB_CORRUPT, bad[i].part);
}

static void test_deep_nesting_is_refused(void **state) {
    (void)state;
    static char header[60000];
    for (size_t i = 0; i + 1 < sizeof header; i++) header[i] = '[';
    expect_refused(header, 0, WB_CORRUPT, "depth");
    memcpy(header, "{\"a\":", 5);
    expect_refused(header, 0, WB_CORRUPT, "depth");
}

static void test_unsupported_dtypes_open_but_are_not_given(void **state) {
    (void)state;
    raw_file raw;
    wb_safetensors *st = NULL;
    wb_tensor_view view = {0};
    temp_path path = temp_in(dir.text, "exotic.safetensors");
    make_raw(&raw,
             "{\"a\":{\"dtype\":\"F8_E5M2\",\"shape\":[3],\"data_offsets\":[0,3]},"
             "\"b\":{\"dtype\":\"NEW_42\",\"shape\":[3],\"data_offsets\":[3,4]},"
             "\"c\":{\"dtype\":\"U8\",\"shape\":[1,1,1,1,2],\"data_offsets\":[4,6]},"
             "\"d\":{\"dtype\":\"U8\",\"shape\":[1,1,1,2],\"data_offsets\":[6,8]}}",
             8);
    temp_write(path.text, raw.bytes, raw.n);
    assert_int_equal(wb_safetensors_open(path.text, NULL, &st), WB_OK);
    assert_int_equal(wb_safetensors_find(st, "a", &view), WB_UNSUPPORTED);
    assert_message_has("tensor a: dtype F8_E5M2");
    assert_int_equal(wb_safetensors_find(st, "b", &view), WB_UNSUPPORTED);
    assert_message_has("NEW_42");
    assert_int_equal(wb_safetensors_find(st, "c", &view), WB_UNSUPPORTED);
    assert_message_has("5 dimensions");
    assert_null(view.name);
    assert_int_equal(wb_safetensors_find(st, "d", &view), WB_OK);
    wb_safetensors_close(st);
}

static void test_header_length_beyond_the_file_is_refused(void **state) {
    (void)state;
    static const uint64_t lengths[] = {
        3, 100, (uint64_t)1 << 31, (uint64_t)1 << 32, (uint64_t)1 << 63, UINT64_MAX};
    temp_path path = temp_in(dir.text, "length.safetensors");
    wb_safetensors *st = NULL;
    for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        unsigned char bytes[10] = {0, 0, 0, 0, 0, 0, 0, 0, '{', '}'};
        for (int b = 0; b < 8; b++) bytes[b] = (unsigned char)(lengths[i] >> (8 * b));
        temp_write(path.text, bytes, sizeof bytes);
        assert_int_equal(wb_safetensors_open(path.text, NULL, &st), WB_CORRUPT);
        assert_message_has("length.safetensors: byte 0");
    }
}

/* A header length above the limit is refused although the (sparse) file is long enough. */
static void test_header_above_the_limit_is_refused(void **state) {
    (void)state;
    unsigned char bytes[8];
    uint64_t length = WB_SAFETENSORS_MAX_HEADER + 1;
    temp_path path = temp_in(dir.text, "sparse.safetensors");
    wb_safetensors *st = NULL;
    for (int b = 0; b < 8; b++) bytes[b] = (unsigned char)(length >> (8 * b));
    temp_write(path.text, bytes, sizeof bytes);
    assert_int_equal(truncate(path.text, (off_t)(length + 100)), 0);
    assert_int_equal(wb_safetensors_open(path.text, NULL, &st), WB_CORRUPT);
    assert_message_has("at most 100000000");
}

static void test_every_truncation_is_refused(void **state) {
    (void)state;
    raw_file raw;
    temp_path path = temp_in(dir.text, "cut.safetensors");
    wb_safetensors *st = NULL;
    make_raw(&raw, TWO_TENSORS, 19);
    for (size_t n = 0; n < raw.n; n++) {
        temp_write(path.text, raw.bytes, n);
        assert_int_equal(wb_safetensors_open(path.text, NULL, &st), WB_CORRUPT);
        assert_message_has("cut.safetensors");
    }
    temp_write(path.text, raw.bytes, raw.n);
    assert_int_equal(wb_safetensors_open(path.text, NULL, &st), WB_OK);
    wb_safetensors_close(st);
}

static void test_every_bit_flip_is_refused_or_in_bounds(void **state) {
    (void)state;
    raw_file raw;
    temp_path path = temp_in(dir.text, "flip.safetensors");
    size_t refused = 0, header_bits = (8 + strlen(TWO_TENSORS)) * 8;
    make_raw(&raw, TWO_TENSORS, 19);
    for (size_t bit = 0; bit < header_bits; bit++) {
        wb_safetensors *st = NULL;
        raw.bytes[bit / 8] ^= (unsigned char)(1u << (bit % 8));
        temp_write(path.text, raw.bytes, raw.n);
        if (wb_safetensors_open(path.text, NULL, &st) == WB_OK) {
            touch(st);
            wb_safetensors_close(st);
        } else {
            refused++;
        }
        raw.bytes[bit / 8] ^= (unsigned char)(1u << (bit % 8));
    }
    assert_true(refused > header_bits / 2);
    assert_true(refused < header_bits); /* a flip in a name gives another name */
}

static void test_missing_files_and_directories(void **state) {
    (void)state;
    wb_safetensors *st = NULL;
    temp_path empty = temp_in(dir.text, "empty");
    assert_int_equal(mkdir(empty.text, 0777), 0);
    assert_int_equal(wb_safetensors_open(temp_in(dir.text, "no_such_folder").text, NULL, &st), WB_NOT_FOUND);
    assert_int_equal(wb_safetensors_open(NULL, NULL, &st), WB_INVALID_ARGUMENT);
    assert_int_equal(wb_safetensors_open(empty.text, NULL, &st), WB_NOT_FOUND);
    assert_message_has("model.safetensors.index.json");
    assert_int_equal(wb_safetensors_open(empty.text, "grads", &st), WB_NOT_FOUND);
    assert_message_has("grads.safetensors");
}

/* ---- shards ---------------------------------------------------------------------------------- */

static void write_one(const char *shard_dir, const char *file, const char *name, float value) {
    temp_path path = temp_in(shard_dir, file);
    wb_tensor_view view = {
        .name = name, .dtype = WB_F32, .n_dims = 1, .shape = {1}, .data = &value, .bytes = 4};
    assert_int_equal(wb_safetensors_write(path.text, 1, &view, NULL), WB_OK);
}

static void expect_index(const char *shard_dir, const char *text, wb_status status, const char *part) {
    temp_path path = temp_in(shard_dir, "model.safetensors.index.json");
    wb_safetensors *st = NULL;
    temp_write(path.text, text, strlen(text));
    wb_status found = wb_safetensors_open(shard_dir, NULL, &st);
    if (found != status)
        fail_msg("%s: expected %d, found %d: %s", text, (int)status, (int)found, wb_error_message());
    assert_message_has(part);
    assert_null(st);
}

static void test_shards_and_their_index(void **state) {
    (void)state;
    temp_path shards = temp_in(dir.text, "shards"),
              index = temp_in(shards.text, "model.safetensors.index.json");
    wb_safetensors *st = NULL;
    wb_tensor_view view;
    float value;
    assert_int_equal(mkdir(shards.text, 0777), 0);
    write_one(shards.text, "one.safetensors", "a", 1);
    write_one(shards.text, "two.safetensors", "b", 2);
    const char *good = "{\"metadata\":{\"total_size\":8},"
                       "\"weight_map\":{\"a\":\"one.safetensors\",\"b\":\"two.safetensors\"}}";
    temp_write(index.text, good, strlen(good));
    assert_int_equal(wb_safetensors_open(shards.text, NULL, &st), WB_OK);
    assert_int_equal(wb_safetensors_count(st), 2);
    assert_int_equal(wb_safetensors_find(st, "b", &view), WB_OK);
    memcpy(&value, view.data, 4);
    assert_true(value == 2);
    assert_non_null(strstr(view.file, "two.safetensors"));
    wb_safetensors_close(st);

    const char *dir_text = shards.text;
    expect_index(dir_text, "{", WB_CORRUPT, "index.json: JSON");
    expect_index(dir_text, "{}", WB_CORRUPT, "weight_map: expected an object");
    expect_index(dir_text, "{\"weight_map\":[]}", WB_CORRUPT, "weight_map: expected an object");
    expect_index(dir_text, "{\"weight_map\":{\"a\":1}}", WB_CORRUPT, "weight_map: a");
    expect_index(dir_text, "{\"weight_map\":{\"a\":\"../shards/one.safetensors\"}}", WB_CORRUPT,
                 "same directory");
    expect_index(dir_text, "{\"weight_map\":{\"a\":\"..\"}}", WB_CORRUPT, "same directory");
    expect_index(dir_text, "{\"weight_map\":{\"a\":\"three.safetensors\"}}", WB_NOT_FOUND,
                 "three.safetensors");
    expect_index(dir_text, "{\"weight_map\":{\"a\":\"one.safetensors\",\"c\":\"two.safetensors\"}}",
                 WB_CORRUPT, "tensor c is not in two.safetensors");
    expect_index(dir_text, "{\"weight_map\":{\"a\":\"two.safetensors\",\"b\":\"one.safetensors\"}}",
                 WB_CORRUPT, "tensor a is not in two.safetensors");
    write_one(shards.text, "twice.safetensors", "a", 3);
    expect_index(dir_text, "{\"weight_map\":{\"a\":\"one.safetensors\",\"b\":\"twice.safetensors\"}}",
                 WB_CORRUPT, "tensor b is not in twice.safetensors");
    /* A shard that is cut, named by its own path. */
    temp_path two = temp_in(shards.text, "two.safetensors");
    assert_int_equal(truncate(two.text, 20), 0);
    expect_index(dir_text, good, WB_CORRUPT, "two.safetensors: byte 0");
}

/* A shard with a stale copy of another shard's tensor and one that nobody lists: the index decides. */
static void test_rule_34_the_index_decides(void **state) {
    (void)state;
    temp_path shards = temp_in(dir.text, "stale"), stale = temp_in(shards.text, "two.safetensors"),
              index = temp_in(shards.text, "model.safetensors.index.json");
    const float values[] = {7, 2, 9};
    const wb_tensor_view views[] = {
        {.name = "a", .dtype = WB_F32, .n_dims = 1, .shape = {1}, .data = &values[0], .bytes = 4},
        {.name = "b", .dtype = WB_F32, .n_dims = 1, .shape = {1}, .data = &values[1], .bytes = 4},
        {.name = "extra", .dtype = WB_F32, .n_dims = 1, .shape = {1}, .data = &values[2], .bytes = 4}};
    const char *text = "{\"weight_map\":{\"a\":\"one.safetensors\",\"b\":\"two.safetensors\"}}";
    wb_safetensors *st = NULL;
    wb_tensor_view view;
    float value;
    assert_int_equal(mkdir(shards.text, 0777), 0);
    write_one(shards.text, "one.safetensors", "a", 1);
    assert_int_equal(wb_safetensors_write(stale.text, 3, views, NULL), WB_OK);
    temp_write(index.text, text, strlen(text));
    assert_int_equal(wb_safetensors_open(shards.text, NULL, &st), WB_OK);
    assert_int_equal(wb_safetensors_count(st), 2);
    assert_int_equal(wb_safetensors_find(st, "a", &view), WB_OK);
    memcpy(&value, view.data, 4);
    assert_true(value == 1);
    assert_non_null(strstr(view.file, "one.safetensors"));
    assert_int_equal(wb_safetensors_find(st, "extra", &view), WB_NOT_FOUND);
    assert_non_null(wb_safetensors_note(st));
    assert_non_null(strstr(wb_safetensors_note(st), "two.safetensors: tensor "));
    assert_non_null(strstr(wb_safetensors_note(st), "(2 such tensors)"));
    assert_null(strstr(wb_safetensors_note(st), "such files"));
    wb_safetensors_close(st);

    /* Files that no tensor is listed in are not read, and that is said too. */
    write_one(shards.text, "zero.safetensors", "a", 3);
    write_one(shards.text, "other.safetensors", "b", 4);
    temp_write(temp_in(shards.text, "readme.txt").text, "x", 1);
    assert_int_equal(wb_safetensors_open(shards.text, NULL, &st), WB_OK);
    assert_non_null(strstr(wb_safetensors_note(st), "(2 such tensors); "));
    assert_non_null(
        strstr(wb_safetensors_note(st), "/other.safetensors: not of this model, ignored (2 such files)"));
    wb_safetensors_close(st);

    /* A single file beside the index: nothing says which of the two is the model. */
    write_one(shards.text, "model.safetensors", "a", 5);
    st = NULL;
    assert_int_equal(wb_safetensors_open(shards.text, NULL, &st), WB_INVALID_ARGUMENT);
    assert_message_has("found both");
    assert_message_has("model.safetensors.index.json");
    assert_null(st);

    /* Without the index the single file is, and the shards are said to be left. */
    assert_int_equal(unlink(index.text), 0);
    assert_int_equal(wb_safetensors_open(shards.text, NULL, &st), WB_OK);
    assert_int_equal(wb_safetensors_find(st, "a", &view), WB_OK);
    memcpy(&value, view.data, 4);
    assert_true(value == 5);
    assert_non_null(
        strstr(wb_safetensors_note(st), "one.safetensors: not of this model, ignored (4 such files)"));
    wb_safetensors_close(st);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip_of_every_dtype),
        cmocka_unit_test(test_empty_file_of_no_tensors),
        cmocka_unit_test(test_writer_refuses_views_that_lie),
        cmocka_unit_test(test_golden_files_open),
        cmocka_unit_test(test_bad_headers_are_refused),
        cmocka_unit_test(test_deep_nesting_is_refused),
        cmocka_unit_test(test_unsupported_dtypes_open_but_are_not_given),
        cmocka_unit_test(test_header_length_beyond_the_file_is_refused),
        cmocka_unit_test(test_header_above_the_limit_is_refused),
        cmocka_unit_test(test_every_truncation_is_refused),
        cmocka_unit_test(test_every_bit_flip_is_refused_or_in_bounds),
        cmocka_unit_test(test_missing_files_and_directories),
        cmocka_unit_test(test_shards_and_their_index),
        cmocka_unit_test(test_rule_34_the_index_decides),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
