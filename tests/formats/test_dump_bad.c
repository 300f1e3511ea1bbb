/* test_dump_bad.c - what must not be believed, and what must survive: golden bad files, a file cut at every
 * byte, every bit flipped, counts that lie, writers that are refused or run out of disk. */
#include "dump_fixture.h"
#include "dump_layout.h"

#include <errno.h>
#include <inttypes.h>
#include <malloc.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/resource.h>
#include <sys/syscall.h>
// clang-format off
#include <cmocka.h>
// clang-format on

#define OK(call) assert_string_equal((call) == WB_OK ? "" : wb_error_message(), "")

enum { N = 4 };

typedef struct place {
    char directory[64];
    char path[96];
    fixture_model f;
    fixture_record records[N];
    uint64_t begins[N]; /* byte of each record */
    uint8_t *bytes;     /* of the finished file */
    size_t size;
} place;

/* A finished dump of N records, small enough for a test a bit: a shared prompt, a bitmap, two runs, zstd. */
static int setup(void **state) {
    place *p = calloc(1, sizeof *p);
    fixture_rng rng = {77};
    fixture_directory(p->directory);
    snprintf(p->path, sizeof p->path, "%s/part-0.wbr", p->directory);
    fixture_model_init(&p->f, 2, 16, 4);
    wb_dump_options options = wb_dump_options_default();
    options.codec = WB_CODEC_ZSTD;
    wb_dump_writer *w = NULL;
    OK(wb_dump_create(p->path, &p->f.model, &options, &w));
    for (uint32_t i = 0; i < N; i++) {
        char rid[16];
        snprintf(rid, sizeof rid, "r%u", i);
        fixture_record *r = &p->records[i];
        fixture_record_init(r, &p->f.model, &rng, rid, 4, i == 3 ? 40 : 9, 0, i == 2 ? 2 : 1, i == 2);
        r->record.group = i / 2;
        if (i == 1) memcpy(r->ids, p->records[0].ids, 4 * wb_route_row_bytes(&p->f.model));
        if (i > 1) fixture_record_sample(r, &rng, i == 2);
        if (i == 3) /* rows that zstd makes smaller */
            for (uint32_t t = 1; t < 39; t++) memcpy(r->ids + t * 8, r->ids, 8);
        OK(wb_dump_append(w, &r->record));
    }
    OK(wb_dump_finish(w));
    p->bytes = fixture_read_file(p->path, &p->size);
    wb_dump *d = NULL;
    OK(wb_dump_open(p->path, &d));
    for (uint32_t i = 0; i < N; i++) {
        wb_dump_entry e;
        OK(wb_dump_get_entry(d, i, &e));
        p->begins[i] = e.offset;
        if (i == 1) assert_int_equal(e.prefix_rows, 4);
        if (i == 3) assert_int_equal(e.codec, WB_CODEC_ZSTD);
    }
    wb_dump_close(d);
    *state = p;
    return 0;
}

static int teardown(void **state) {
    place *p = *state;
    fixture_remove(p->directory);
    for (uint32_t i = 0; i < N; i++) fixture_record_free(&p->records[i]);
    free(p->bytes);
    free(p);
    return 0;
}

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
    {"bad_codec_packed", WB_UNSUPPORTED, "\"packed\""},
    {"bad_rows_beyond_tokens", WB_CORRUPT, "run 0 of 6 rows"},
    {"bad_rows_more_than_data", WB_CORRUPT, "choices), found"},
    {"bad_runs_overlap", WB_CORRUPT, "run 1"},
    {"bad_valid_length", WB_CORRUPT, "valid"},
    {"bad_id_out_of_range", WB_CORRUPT, "record b: position 0, MoE layer 0 (model layer 1): expert 8 is out"},
    {"bad_id_repeated", WB_CORRUPT,
     "record b: position 0, MoE layer 0 (model layer 1): expert 5 is chosen twice"},
    {"bad_zstd_frame", WB_CORRUPT, "record b: zstd"},
    {"bad_zstd_rows_missing", WB_CORRUPT, "expected 20"},
    {"bad_zstd_rows_beyond", WB_CORRUPT, "record b: zstd"},
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

/* ---- cut and damaged ---------------------------------------------------------------------------- */

/* NULL when the open dump holds exactly the first n records of the fixture, else what is wrong. A record that
 * is refused (status in *status) is no difference. */
static const char *difference(place *p, wb_dump *d, uint64_t n, wb_status *status) {
    *status = WB_OK;
    for (uint64_t i = 0; i < n && *status == WB_OK; i++) {
        wb_record r;
        *status = wb_dump_record(d, i, &r);
        const char *what =
            *status == WB_OK ? fixture_difference(&p->f.model, &p->records[i].record, &r) : NULL;
        if (what) return what;
    }
    return NULL;
}

static void test_cut_everywhere(void **state) {
    place *p = *state;
    for (size_t cut = 0; cut < p->size; cut++) {
        fixture_write_file(p->path, p->bytes, cut);
        uint32_t whole = 0;
        uint64_t end = p->begins[0];
        size_t index = p->size; /* where it begins: what the trailer says */
        memcpy(&index, p->bytes + p->size - WB_TRAILER_BYTES + WB_TRAILER_OFFSET_AT, 8);
        for (; whole < N; whole++) {
            uint64_t next = whole + 1 < N ? p->begins[whole + 1] : index;
            if (next > cut) break;
            end = next;
        }
        wb_dump *d = NULL;
        wb_status status = wb_dump_open(p->path, &d);
        if (cut < p->begins[0]) {
            assert_int_equal(status, WB_CORRUPT);
            assert_non_null(strstr(wb_error_message(), "header"));
            assert_null(d);
            continue;
        }
        OK(status);
        wb_dump_info info = wb_dump_get_info(d);
        assert_int_equal(info.records, whole);
        assert_int_equal(info.files_without_index, 1);
        assert_int_equal(info.lost_bytes, cut - end);
        char where[64];
        snprintf(where, sizeof where, "part-0.wbr: byte %" PRIu64 ": ", end);
        assert_string_equal(cut == end ? "" : info.lost_where[0] ? "lost" : "", cut == end ? "" : "lost");
        if (cut != end) assert_non_null(strstr(info.lost_where, where));
        assert_null(difference(p, d, whole, &status));
        OK(status);
        wb_dump_close(d);
        OK(wb_dump_verify(p->path, NULL, NULL, &info));
        assert_int_equal(info.lost_bytes, cut - end);
    }
}

/* Every bit of the finished file: found, or of no consequence. */
static void test_flip_finished(void **state) {
    place *p = *state;
    for (size_t bit = 0; bit < 8 * p->size; bit++) {
        p->bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
        fixture_write_file(p->path, p->bytes, p->size);
        p->bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
        wb_dump_info info;
        wb_status status = wb_dump_verify(p->path, NULL, NULL, &info);
        if (status == WB_OK) fail_msg("bit %zu of byte %zu flipped: not noticed", bit % 8, bit / 8);
        wb_dump *d = NULL;
        if (wb_dump_open(p->path, &d) != WB_OK) continue;
        const char *what = difference(p, d, N, &status);
        if (what) fail_msg("bit %zu of byte %zu flipped: another %s", bit % 8, bit / 8, what);
        assert_int_not_equal(status, WB_OK);
        wb_dump_close(d);
    }
}

/* Without an index a length that grew looks like a cut: then records are missing, and the dump says so. */
static void test_flip_unfinished(void **state) {
    place *p = *state;
    size_t size = 0;
    memcpy(&size, p->bytes + p->size - WB_TRAILER_BYTES + WB_TRAILER_OFFSET_AT, 8);
    for (size_t bit = 0; bit < 8 * size; bit++) {
        p->bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
        fixture_write_file(p->path, p->bytes, size);
        p->bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
        wb_dump *d = NULL;
        if (wb_dump_open(p->path, &d) != WB_OK) continue;
        wb_dump_info info = wb_dump_get_info(d);
        wb_status status;
        const char *what = difference(p, d, info.records, &status);
        if (what) fail_msg("bit %zu of byte %zu flipped: another %s", bit % 8, bit / 8, what);
        if (status == WB_OK && (info.lost_bytes == 0 || info.records == N))
            fail_msg("bit %zu of byte %zu flipped: not noticed", bit % 8, bit / 8);
        wb_dump_close(d);
    }
}

/* A cut file in a directory does not take the others with it, even when cut in its header. */
static void test_cut_part(void **state) {
    place *p = *state;
    char second[96];
    snprintf(second, sizeof second, "%s/part-1.wbr", p->directory);
    for (size_t cut = 0; cut <= 40; cut += 20) {
        fixture_write_file(second, p->bytes, cut);
        wb_dump *d = NULL;
        OK(wb_dump_open(p->directory, &d));
        wb_dump_info info = wb_dump_get_info(d);
        assert_int_equal(info.files, 2);
        assert_int_equal(info.records, N);
        assert_int_equal(info.lost_bytes, cut);
        assert_int_equal(info.files_cut, 1);
        assert_ptr_equal(strstr(info.lost_where, second), info.lost_where);
        assert_non_null(strstr(info.lost_where, "part-1.wbr: byte 0: "));
        wb_dump_close(d);
    }
}

/* One rule for a file that was cut inside its header, at byte 0 too: it holds nothing. A directory in which
 * another file says the model is a dump, whichever comes first; where none does there is no dump. */
static void test_rule_29_cut_before_its_header(void **state) {
    place *p = *state;
    for (size_t cut = 0; cut <= 40; cut += 20) {
        char names[2][96];
        for (int i = 0; i < 2; i++) {
            snprintf(names[i], sizeof names[i], "%s/part-%d.wbr", p->directory, 1 - i);
            fixture_write_file(names[i], p->bytes, i == 0 ? p->size : cut);
        }
        wb_dump *d = NULL;
        OK(wb_dump_open(p->directory, &d));
        assert_int_equal(wb_dump_get_info(d).records, N);
        assert_int_equal(wb_dump_get_info(d).files_cut, 1);
        wb_dump_close(d);
        d = NULL;
        assert_int_equal(wb_dump_open(names[1], &d), WB_CORRUPT);
        assert_non_null(strstr(wb_error_message(), "no file with a whole header"));
        fixture_write_file(names[0], p->bytes, cut);
        assert_int_equal(wb_dump_open(p->directory, &d), WB_CORRUPT);
        assert_non_null(strstr(wb_error_message(), names[1]));
        assert_null(d);
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

/* ---- writers ------------------------------------------------------------------------------------ */

static void test_create_refuses(void **state) {
    place *p = *state;
    wb_dump_writer *w = (wb_dump_writer *)p;
    const wb_route_model *m = &p->f.model;
    assert_int_equal(wb_dump_create(p->path, m, NULL, &w), WB_IO); /* it exists */
    assert_non_null(strstr(wb_error_message(), p->path));
    char path[96];
    snprintf(path, sizeof path, "%s/no_such_folder/x.wbr", p->directory);
    assert_int_equal(wb_dump_create(path, m, NULL, &w), WB_IO);
    assert_int_equal(wb_dump_create(NULL, m, NULL, &w), WB_INVALID_ARGUMENT);
    snprintf(path, sizeof path, "%s/new.wbr", p->directory);
    wb_route_model bad = *m;
    bad.num_experts = 65537;
    assert_int_equal(wb_dump_create(path, &bad, NULL, &w), WB_INVALID_ARGUMENT);
    bad = *m;
    bad.top_k = bad.num_experts + 1;
    assert_int_equal(wb_dump_create(path, &bad, NULL, &w), WB_INVALID_ARGUMENT);
    assert_non_null(strstr(wb_error_message(), "top_k"));
    bad = *m;
    bad.fingerprint[3] = 'X';
    assert_int_equal(wb_dump_create(path, &bad, NULL, &w), WB_INVALID_ARGUMENT);
    wb_dump_options o = wb_dump_options_default();
    o.codec = (wb_codec)9;
    assert_int_equal(wb_dump_create(path, m, &o, &w), WB_INVALID_ARGUMENT);
    o = wb_dump_options_default();
    o.chunk_bytes = ((size_t)1 << 30) + 1;
    assert_int_equal(wb_dump_create(path, m, &o, &w), WB_INVALID_ARGUMENT);
    o = wb_dump_options_default();
    o.codec = WB_CODEC_ZSTD;
    o.zstd_level = 20;
    assert_int_equal(wb_dump_create(path, m, &o, &w), WB_INVALID_ARGUMENT);
    o = wb_dump_options_default();
    o.reserved[6] = 2;
    assert_int_equal(wb_dump_create(path, m, &o, &w), WB_INVALID_ARGUMENT);
    assert_non_null(strstr(wb_error_message(), "dump options: reserved[6]: expected 0, found 2"));
    assert_ptr_equal(w, p); /* written only on success */
    assert_int_equal(access(path, F_OK), -1);
}

/* Options of callers that were compiled with another version: an earlier one's struct ends before fields that
 * then have their default, a later one's may have more fields as long as they are zero. */
static void test_options_of_other_versions(void **state) {
    place *p = *state;
    const wb_route_model *m = &p->f.model;
    struct {
        wb_dump_options known;
        uint64_t later;
    } options = {.known = {.size = 0}};
    char path[96];
    snprintf(path, sizeof path, "%s/new.wbr", p->directory);
    wb_dump_writer *w = NULL;
    assert_int_equal(wb_dump_create(path, m, &options.known, &w), WB_INVALID_ARGUMENT);
    assert_non_null(strstr(wb_error_message(), "dump options"));

    wb_dump_options_init(&options.known, sizeof options);
    assert_int_equal(options.known.size, sizeof options);
    OK(wb_dump_create(path, m, &options.known, &w));
    OK(wb_dump_finish(w));
    unlink(path);
    options.later = 1;
    assert_int_equal(wb_dump_create(path, m, &options.known, &w), WB_INVALID_ARGUMENT);

    size_t earlier = offsetof(wb_dump_options, chunk_bytes);
    wb_dump_options_init(&options.known, earlier);
    options.known.chunk_bytes = 0;                    /* not valid, but not the earlier version's */
    options.known.producer = (const char *)(void *)p; /* nor is this */
    OK(wb_dump_create(path, m, &options.known, &w));
    OK(wb_dump_append(w, &p->records[0].record));
    OK(wb_dump_finish(w));
}

static void test_append_refuses(void **state) {
    place *p = *state;
    char path[96];
    snprintf(path, sizeof path, "%s/new.wbr", p->directory);
    wb_dump_writer *w = NULL;
    OK(wb_dump_create(path, &p->f.model, NULL, &w));
    OK(wb_dump_append(w, &p->records[0].record));
    size_t before = 0, after = 0;
    free(fixture_read_file(path, &before));
    assert_int_equal(wb_dump_append(w, &p->records[0].record), WB_INVALID_ARGUMENT);
    assert_non_null(strstr(wb_error_message(), "r0"));
    uint8_t *ids = p->records[1].ids;
    size_t last = 7 * 8 + 7; /* of the last row that position 7 has */
    uint8_t good = ids[last];
    ids[last] = 16;
    assert_int_equal(wb_dump_append(w, &p->records[1].record), WB_INVALID_ARGUMENT);
    assert_non_null(
        strstr(wb_error_message(), "record r1: position 7, MoE layer 1 (model layer 2): expert 16"));
    ids[last] = ids[last - 1];
    assert_int_equal(wb_dump_append(w, &p->records[1].record), WB_INVALID_ARGUMENT);
    assert_non_null(strstr(wb_error_message(), "chosen twice"));
    ids[last] = good;
    wb_route_rows late = {1, 8, ids, NULL}; /* the last token has no row */
    wb_record r = p->records[1].record;
    r.routes = &late;
    assert_int_equal(wb_dump_append(w, &r), WB_INVALID_ARGUMENT);
    r = p->records[1].record;
    r.prompt_len = r.n_tokens + 1;
    assert_int_equal(wb_dump_append(w, &r), WB_INVALID_ARGUMENT);
    r = p->records[1].record;
    r.rid = "";
    assert_int_equal(wb_dump_append(w, &r), WB_INVALID_ARGUMENT);
    free(fixture_read_file(path, &after));
    assert_int_equal(before, after);
    OK(wb_dump_append(w, &p->records[1].record));
    OK(wb_dump_finish(w));
    OK(wb_dump_finish(NULL));
}

/* A disk that fills up: every append that fails leaves whole records only, and the writer lives on; once
 * there is room, a record that failed can be appended. */
static void test_disk_full(void **state) {
    place *p = *state;
    signal(SIGXFSZ, SIG_IGN);
    struct rlimit old, low;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    char path[96];
    snprintf(path, sizeof path, "%s/full.wbr", p->directory);
    for (size_t limit = 1; limit < p->size; limit += 3) {
        wb_dump_writer *w = NULL;
        low = old;
        low.rlim_cur = limit;
        setrlimit(RLIMIT_FSIZE, &low);
        wb_status status = wb_dump_create(path, &p->f.model, NULL, &w);
        uint32_t written = 0, failed = 0;
        uint32_t order[N], again[N];
        for (uint32_t i = 0; i < N && status == WB_OK; i++) {
            wb_status appended = wb_dump_append(w, &p->records[i].record);
            if (appended == WB_OK) {
                order[written++] = i;
                continue;
            }
            assert_int_equal(appended, WB_IO);
            assert_non_null(strstr(wb_error_message(), strerror(EFBIG)));
            again[failed++] = i;
        }
        if (limit % 2) setrlimit(RLIMIT_FSIZE, &old);
        for (uint32_t i = 0; limit % 2 && i < failed; i++) {
            OK(wb_dump_append(w, &p->records[again[i]].record));
            order[written++] = again[i];
        }
        if (status != WB_OK) assert_int_equal(access(path, F_OK), -1);
        /* The index may find room or not: the records are there either way. */
        if (status == WB_OK) (void)wb_dump_finish(w);
        setrlimit(RLIMIT_FSIZE, &old);
        if (status != WB_OK) continue;
        wb_dump *d = NULL;
        OK(wb_dump_open(path, &d));
        assert_int_equal(wb_dump_get_info(d).records, written);
        assert_int_equal(wb_dump_get_info(d).lost_bytes, 0);
        for (uint32_t i = 0; i < written; i++) {
            wb_record r;
            OK(wb_dump_record(d, i, &r));
            assert_null(fixture_difference(&p->f.model, &p->records[order[i]].record, &r));
        }
        wb_dump_close(d);
        unlink(path);
    }
}

/* The C library's, which a test makes fail. */
static bool cutting_fails;
int ftruncate(int fd, off_t size) {
    if (cutting_fails) {
        errno = EIO;
        return -1;
    }
    return (int)syscall(SYS_ftruncate, fd, size);
}

/* A record that is written in part and cannot be cut off: the writer says so and writes nothing behind it, or
 * what follows could not be read. The records before it are there. */
static void test_cannot_be_cut_back(void **state) {
    place *p = *state;
    signal(SIGXFSZ, SIG_IGN);
    struct rlimit old, low;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    char path[96];
    snprintf(path, sizeof path, "%s/part.wbr", p->directory);
    wb_dump_writer *w = NULL;
    size_t before = 0, after = 0;
    OK(wb_dump_create(path, &p->f.model, NULL, &w));
    OK(wb_dump_append(w, &p->records[0].record));
    free(fixture_read_file(path, &before));
    low = old;
    low.rlim_cur = before + 20;
    setrlimit(RLIMIT_FSIZE, &low);
    cutting_fails = true;
    wb_status status = wb_dump_append(w, &p->records[1].record);
    cutting_fails = false;
    setrlimit(RLIMIT_FSIZE, &old);
    assert_int_equal(status, WB_IO);
    assert_non_null(strstr(wb_error_message(), "cannot be cut back"));
    for (uint32_t i = 1; i < 3; i++) {
        assert_int_equal(wb_dump_append(w, &p->records[i].record), WB_IO);
        assert_non_null(strstr(wb_error_message(), "holds part of an object"));
    }
    assert_int_equal(wb_dump_finish(w), WB_IO);
    free(fixture_read_file(path, &after));
    assert_int_equal(after, before + 20);
    wb_dump *d = NULL;
    wb_record r;
    OK(wb_dump_open(path, &d));
    assert_int_equal(wb_dump_get_info(d).records, 1);
    assert_int_equal(wb_dump_get_info(d).lost_bytes, 20);
    OK(wb_dump_record(d, 0, &r));
    assert_null(fixture_difference(&p->f.model, &p->records[0].record, &r));
    wb_dump_close(d);
    unlink(path);
}

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

#define WITH_DUMP(test) cmocka_unit_test_setup_teardown(test, setup, teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden_bad),
        cmocka_unit_test(test_golden_bad_in_64_mib),
        WITH_DUMP(test_cut_everywhere),
        WITH_DUMP(test_flip_finished),
        WITH_DUMP(test_flip_unfinished),
        WITH_DUMP(test_cut_part),
        WITH_DUMP(test_rule_29_cut_before_its_header),
        WITH_DUMP(test_counts),
        WITH_DUMP(test_create_refuses),
        WITH_DUMP(test_options_of_other_versions),
        WITH_DUMP(test_append_refuses),
        WITH_DUMP(test_disk_full),
        WITH_DUMP(test_cannot_be_cut_back),
        WITH_DUMP(test_between_files),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
