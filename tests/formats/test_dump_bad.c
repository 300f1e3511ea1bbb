/* test_dump_bad.c - what must not be believed: golden bad files, counts that lie, files that do not belong
 * together. */
#include "dump_place.h"

#include <inttypes.h>
#include <malloc.h>
#include <sys/resource.h>

/* ---- golden files ------------------------------------------------------------------------------- */

static const struct {
    const char *name;
    wb_status status;
    const char *says; /* part of the message */
} bad_files[] = {
    {"bad_empty_file", WB_CORRUPT, "bad_empty_file.wbr: byte 0: the file was cut inside its header"},
    {"bad_not_a_dump", WB_UNSUPPORTED, "not a waybill.routes file"},
    {"bad_not_msgpack", WB_CORRUPT, "byte 0"},
    {"bad_header_array32_count", WB_CORRUPT, "byte 0"},
    {"bad_header_map32_count", WB_CORRUPT, "byte 0"},
    {"bad_header_bin32_count", WB_CORRUPT, "byte 0"},
    {"bad_header_str32_count", WB_CORRUPT, "byte 0"},
    {"bad_header_deep", WB_CORRUPT, "nested too deeply"},
    {"bad_format", WB_UNSUPPORTED, "not a waybill.routes file"},
    {"bad_version_2", WB_UNSUPPORTED, "version 2"},
    {"bad_dtype_u16_for_8_experts", WB_UNSUPPORTED, "u16"},
    {"bad_dtype_unknown", WB_UNSUPPORTED, "u7"},
    {"bad_experts_65537", WB_CORRUPT, "65537"},
    {"bad_top_k_over_experts", WB_CORRUPT, "top_k"},
    {"bad_layers_not_ascending", WB_CORRUPT, "moe_layers[1]"},
    {"bad_layer_beyond_model", WB_CORRUPT, "moe_layers[1]"},
    {"bad_top_k_list_short", WB_CORRUPT, "top_k: expected one for each of moe_layers"},
    {"bad_top_k_list_zero", WB_CORRUPT, "layer_top_k[1]: expected 1..2, found 0"},
    {"bad_top_k_list_over_experts", WB_CORRUPT, "top_k: expected 1..8, found 9"},
    {"bad_top_k_list_of_texts", WB_CORRUPT, "top_k: expected integers below 2^32"},
    {"bad_weightless_all", WB_CORRUPT, "n_weightless: expected 0..7, found 8"},
    {"bad_weightless_twice", WB_CORRUPT, "weightless: expected the key once"},
    {"bad_header_checksum", WB_CORRUPT, "checksum"},
    {"bad_record_checksum", WB_CORRUPT, "checksum"},
    {"bad_rows_checksum", WB_CORRUPT, "record b: the checksum of its rows"},
    {"bad_no_checksum", WB_CORRUPT, "xxh3"},
    {"bad_key_missing", WB_CORRUPT, "lacks"},
    {"bad_key_twice", WB_CORRUPT, "twice"},
    {"bad_spans_twice", WB_CORRUPT, "twice"},
    {"bad_rid_twice", WB_CORRUPT, "dump/bad_rid_twice.wbr already"},
    {"bad_rid_empty", WB_CORRUPT, "rid is not"},
    {"bad_rid_not_utf8", WB_CORRUPT, "rid is not"},
    {"bad_finish", WB_CORRUPT, "finish"},
    {"bad_prompt_beyond_tokens", WB_CORRUPT, "prompt_len"},
    {"bad_logprobs_length", WB_CORRUPT, "logprobs"},
    {"bad_spans_overlap", WB_CORRUPT, "span 1"},
    {"bad_codec_unknown", WB_UNSUPPORTED, "unknown codec \"squeezed\""},
    {"bad_rows_beyond_tokens", WB_CORRUPT, "run 0 of 6 rows"},
    {"bad_rows_more_than_data", WB_CORRUPT, "layers), found"},
    {"bad_runs_overlap", WB_CORRUPT, "run 1"},
    {"bad_valid_length", WB_CORRUPT, "valid"},
    {"bad_id_out_of_range", WB_CORRUPT, "record b: position 0, MoE layer 0 (model layer 1): expert 8 is out"},
    {"bad_id_repeated", WB_CORRUPT,
     "record b: position 0, MoE layer 0 (model layer 1): expert 5 is chosen twice"},
    {"bad_zstd_frame", WB_CORRUPT, "record b: zstd"},
    {"bad_zstd_rows_missing", WB_CORRUPT, "expected 20"},
    {"bad_zstd_rows_beyond", WB_CORRUPT, "record b: zstd"},
    {"bad_packed_frame", WB_CORRUPT, "record b: a packed chunk does not hold whole rows"},
    {"bad_packed_rows_missing", WB_CORRUPT, "expected 20"},
    {"bad_packed_rows_beyond", WB_CORRUPT, "record b: a packed chunk does not hold whole rows, or more than"},
    {"bad_zstd_bomb", WB_CORRUPT, "too small to hold"},
    {"bad_prefix_unknown", WB_CORRUPT, "prefix"},
    {"bad_prefix_itself", WB_CORRUPT, "not a record before it"},
    {"bad_prefix_of_prefix", WB_CORRUPT, "a record with a prefix"},
    {"bad_prefix_too_long", WB_CORRUPT, "prefix"},
    {"bad_prefix_not_valid", WB_CORRUPT, "does not hold the rows"},
    {"bad_sampling_temperature", WB_CORRUPT, "sampling temperature: expected 0 or more, finite, found inf"},
    {"bad_sampling_key_missing", WB_CORRUPT, "sampling lacks one of temperature, top_k, top_p"},
    {"bad_sampling_logprobs_length", WB_CORRUPT, "sampling_logprobs does not have"},
    {"bad_mask_without_ends", WB_CORRUPT, "sampling_mask lacks ids or ends"},
    {"bad_mask_ends_length", WB_CORRUPT, "sampling_mask.ends does not have"},
    {"bad_mask_ends_beyond_ids", WB_CORRUPT, "sampling_mask.ends does not end with the number of ids"},
    {"bad_mask_ends_before_ids_end", WB_CORRUPT, "sampling_mask.ends does not end with the number of ids"},
    {"bad_mask_ends_back", WB_CORRUPT, "mask of position 3: expected an end above 4"},
    {"bad_mask_empty_set", WB_CORRUPT, "mask of position 2: expected an end above 0"},
    {"bad_mask_without_token", WB_CORRUPT, "mask of position 4: the sampled token 0 is not in it"},
    {"bad_mask_ids_twice", WB_CORRUPT, "mask of position 5: expected ascending ids below 2^31, found 0"},
    {"bad_mask_id_too_large", WB_CORRUPT, "expected ascending ids below 2^31, found 2147483648"},
    {"bad_sampling_key_twice", WB_CORRUPT, "a key is there twice"},
    {"bad_mask_key_twice", WB_CORRUPT, "a key is there twice"},
    {"bad_prefix_key_twice", WB_CORRUPT, "a key is there twice"},
    {"bad_digest", WB_CORRUPT, "the digest of the tokens: expected"},
    {"bad_indexer_source_after", WB_CORRUPT, "indexer_source[0]: expected layer 0"},
    {"bad_indexer_sources_short", WB_CORRUPT, "header model indexer: source: expected one for each"},
    {"bad_indexer_k_zero", WB_CORRUPT, "indexer_k: expected 1..1073741824"},
    {"bad_indexer_key_twice", WB_CORRUPT, "indexer: expected the key once"},
    {"bad_indexer_of_no_model", WB_CORRUPT, "record b: indexer: the model of the header has no layer"},
    {"bad_indexer_without_data", WB_CORRUPT, "indexer lacks one of start, rows, codec, xxh3, data"},
    {"bad_indexer_valid", WB_CORRUPT, "indexer has valid, or codec packed"},
    {"bad_indexer_packed", WB_CORRUPT, "indexer has valid, or codec packed"},
    {"bad_indexer_checksum", WB_CORRUPT, "record b: the checksum of its indexer rows"},
    {"bad_indexer_cell_missing", WB_CORRUPT, "record b: indexer: the data is not that of 4 cells"},
    {"bad_indexer_cell_beyond", WB_CORRUPT, "record b: indexer: the data is not that of 4 cells"},
    {"bad_indexer_count_beyond_data", WB_CORRUPT, "record b: indexer: the data is not that of 4 cells"},
    {"bad_indexer_number_too_long", WB_CORRUPT, "record b: indexer: the data is not that of 4 cells"},
    {"bad_indexer_count_over_k", WB_CORRUPT,
     "record b: indexer: position 2, model layer 2: expected a count of at most 2, found 3"},
    {"bad_indexer_position_beyond", WB_CORRUPT,
     "record b: indexer: position 1, model layer 2: expected positions below 2, found 2"},
    {"bad_indexer_rate_type", WB_CORRUPT, "header model indexer: rate: expected an unsigned integer"},
    {"bad_indexer_rate_count", WB_CORRUPT,
     "record b: indexer: position 2, model layer 2: expected a count of 1, found 0"},
    {"bad_indexer_rate_beyond", WB_CORRUPT,
     "record b: indexer: position 1, model layer 2: expected positions below 1, found 1"},
    {"bad_indexer_rows_beyond", WB_CORRUPT, "record b: indexer: 2 rows from position 4"},
    {"bad_indexer_frame", WB_CORRUPT, "record b: a chunk does not say how much it holds"},
    {"bad_indexer_bomb", WB_CORRUPT, "record b: a chunk does not say how much it holds, or too much"},
    {"bad_index_offset", WB_CORRUPT, "byte"},
    {"bad_index_overlap", WB_CORRUPT, "overlap"},
    {"bad_index_rid", WB_CORRUPT, "another rid"},
    {"bad_index_short", WB_CORRUPT, "byte"},
    {"bad_index_checksum", WB_CORRUPT, "checksum"},
    {"bad_trailer", WB_CORRUPT, "trailer is damaged"},
    {"bad_object_between", WB_CORRUPT, "byte"},
    {"bad_object_after", WB_CORRUPT, "expected a map"},
    {"bad_map_after", WB_CORRUPT, "lacks"},
};

static void test_golden_bad(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof bad_files / sizeof bad_files[0]; i++) {
        char path[512];
        snprintf(path, sizeof path, "%s/dump/%s.wbr", WB_TEST_DATA, bad_files[i].name);
        wb_dump_info info;
        memset(&info, 0xa5, sizeof info);
        wb_dump_info untouched = info;
        wb_status status = wb_dump_verify(path, NULL, NULL, &info);
        if (status != bad_files[i].status || !strstr(wb_error_message(), bad_files[i].says))
            fail_msg("%s: expected %s with \"%s\", found %s: %s", bad_files[i].name,
                     wb_status_string(bad_files[i].status), bad_files[i].says, wb_status_string(status),
                     status == WB_OK ? "" : wb_error_message());
        assert_memory_equal(&info, &untouched, sizeof info);
    }
}

/* ---- counts that lie ---------------------------------------------------------------------------- */

/* Heads that promise 2^32-1 members or bytes, in a file with and without an index after them: refused or read
 * as a cut, with no memory asked for. */
static void test_counts(void **state) {
    place *p = *state;
    static const char *const heads[] = {"\xdd\xff\xff\xff\xff", "\xdf\xff\xff\xff\xff",
                                        "\xc6\xff\xff\xff\xff", "\xdb\xff\xff\xff\xff",
                                        "\xc9\xff\xff\xff\xff", "\xdd\x7f\xff\xff\xff"};
    uint8_t *bytes = malloc(p->size + 5);
    for (size_t i = 0; i < sizeof heads / sizeof heads[0]; i++) {
        for (size_t at = 0; at + 5 <= p->size; at++) {
            memcpy(bytes, p->bytes, p->size);
            memcpy(bytes + at, heads[i], 5);
            fixture_write_file(p->path, bytes, p->size);
            struct mallinfo2 before = mallinfo2();
            wb_dump *d = NULL;
            if (wb_dump_open(p->path, &d) != WB_OK) continue;
            wb_status status;
            assert_null(difference(p, d, wb_dump_get_info(d).records, &status));
            struct mallinfo2 after = mallinfo2();
            assert_true(after.uordblks + after.hblkhd <
                        before.uordblks + before.hblkhd + 64 * p->size + 65536);
            wb_dump_close(d);
        }
    }
    free(bytes);
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    print_message("peak resident set: %ld KiB\n", usage.ru_maxrss);
}

/* The same under a hard limit of address space, where one large allocation would fail. */
static void test_golden_bad_in_64_mib(void **state) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    (void)state;
    skip();
#else
#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
    skip();
#endif
#endif
    struct rlimit old, low;
    assert_int_equal(getrlimit(RLIMIT_DATA, &old), 0);
    low = old;
    low.rlim_cur = 64u << 20;
    assert_int_equal(setrlimit(RLIMIT_DATA, &low), 0);
    test_golden_bad(state);
    setrlimit(RLIMIT_DATA, &old);
#endif
}

/* ---- several files ------------------------------------------------------------------------------ */

static void test_between_files(void **state) {
    place *p = *state;
    char second[96];
    snprintf(second, sizeof second, "%s/part-1.wbr", p->directory);
    fixture_write_file(second, p->bytes, p->size);
    wb_dump *d = NULL;
    assert_int_equal(wb_dump_open(p->directory, &d), WB_CORRUPT);
    assert_non_null(strstr(wb_error_message(), p->path));
    assert_non_null(strstr(wb_error_message(), second));
    unlink(second);
    fixture_model other;
    fixture_model_init(&other, 2, 16, 3);
    wb_dump_writer *w = NULL;
    OK(wb_dump_create(second, &other.model, NULL, &w));
    OK(wb_dump_finish(w));
    assert_int_equal(wb_dump_open(p->directory, &d), WB_MISMATCH);
    assert_non_null(strstr(wb_error_message(), second));
    assert_non_null(strstr(wb_error_message(), "top_k: expected 4, found 3"));
    assert_null(d);
    unlink(second);
    unlink(p->path);
    assert_int_equal(wb_dump_open(p->directory, &d), WB_NOT_FOUND);
    assert_int_equal(wb_dump_open(p->path, &d), WB_IO);
    assert_int_equal(wb_dump_open("/dev/null", &d), WB_IO);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden_bad),
        cmocka_unit_test(test_golden_bad_in_64_mib),
        WITH_DUMP(test_counts),
        WITH_DUMP(test_between_files),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
