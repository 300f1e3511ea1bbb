/* test_dump.c - what is written is read back: every shape of record, every codec, by number and by rid,
 * from one file and from a directory. Golden files must keep decoding to the same records. */
#include "dump_fixture.h"
#include "dump_share.h"
#include "dump_state.h"
#include "support/test_seed.h"

#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
// clang-format off
#include <cmocka.h>
// clang-format on

#define OK(call) assert_string_equal((call) == WB_OK ? "" : wb_error_message(), "")

typedef struct place {
    char directory[64];
    char path[96];
} place;

static int setup(void **state) {
    place *p = calloc(1, sizeof *p);
    fixture_directory(p->directory);
    snprintf(p->path, sizeof p->path, "%s/part-0.wbr", p->directory);
    *state = p;
    return 0;
}

static int teardown(void **state) {
    place *p = *state;
    fixture_remove(p->directory);
    free(p);
    return 0;
}

static void write_records(const char *path, const wb_route_model *m, const wb_dump_options *options,
                          fixture_record *records, size_t n, bool finish) {
    wb_dump_writer *w = NULL;
    OK(wb_dump_create(path, m, options, &w));
    for (size_t i = 0; i < n; i++) OK(wb_dump_append(w, &records[i].record));
    if (finish) {
        OK(wb_dump_finish(w));
        return;
    }
    /* What a crash leaves: all of the records and nothing after them. */
    size_t size = 0;
    uint8_t *bytes = fixture_read_file(path, &size);
    OK(wb_dump_finish(w));
    fixture_write_file(path, bytes, size);
    free(bytes);
}

/* What the file says about a record is what the record says: the version is that of its last span. */
static void expect_entry(wb_dump *d, uint64_t i, const wb_record *record) {
    const uint32_t n = record->n_spans;
    wb_dump_entry e;
    OK(wb_dump_get_entry(d, i, &e));
    assert_int_equal(e.n_tokens, record->n_tokens);
    assert_int_equal(e.n_spans, n);
    assert_int_equal(e.weight_version, n > 0 ? record->spans[n - 1].weight_version : 0);
    assert_int_equal(e.valid_rows, wb_record_count_rows(record));
}

static void expect_records(const char *path, const wb_route_model *m, fixture_record *records, size_t n) {
    wb_dump *d = NULL;
    OK(wb_dump_open(path, &d));
    OK(wb_route_model_match(m, wb_dump_model(d)));
    assert_int_equal(wb_dump_get_info(d).records, n);
    assert_int_equal(wb_dump_get_info(d).lost_bytes, 0);
    for (size_t i = n; i-- > 0;) { /* backwards: a prefix is met before its base */
        wb_record found;
        OK(wb_dump_find(d, records[i].rid, &found));
        const char *difference = fixture_difference(m, &records[i].record, &found);
        assert_string_equal(difference ? difference : "", "");
        OK(wb_record_check(m, &found, true));
        if (i % 2) wb_dump_release(d, i);
    }
    for (size_t i = 0; i < n; i++) { /* again, after releases */
        wb_record found;
        OK(wb_dump_record(d, i, &found));
        const char *difference = fixture_difference(m, &records[i].record, &found);
        assert_string_equal(difference ? difference : "", "");
        assert_int_equal((uintptr_t)found.tokens % 4, 0);
        assert_int_equal((uintptr_t)found.logprobs % 4, 0);
        assert_int_equal((uintptr_t)found.sampling_logprobs % 4, 0);
        assert_int_equal((uintptr_t)found.mask_ids % 4, 0);
        assert_int_equal((uintptr_t)found.mask_ends % 4, 0);
        expect_entry(d, i, &records[i].record);
    }
    wb_dump_close(d);
    wb_dump_info info;
    OK(wb_dump_verify(path, NULL, NULL, &info));
    assert_int_equal(info.records, n);
}

static void round_trip(const char *path, const wb_route_model *m, const wb_dump_options *options,
                       uint64_t seed) {
    fixture_rng rng = {seed};
    enum { N = 14 };
    fixture_record records[N];
    for (uint32_t i = 0; i < N; i++) {
        char rid[32];
        snprintf(rid, sizeof rid, "req-%u-\xc3\xa9", i);
        uint32_t n_tokens = i == 0 ? 0 : i == 1 ? 1 : 2 + fixture_below(&rng, 60);
        uint32_t prompt = n_tokens ? fixture_below(&rng, n_tokens + 1) : 0;
        fixture_record_init(&records[i], m, &rng, rid, prompt, n_tokens, fixture_below(&rng, 9), i % 4,
                            i % 3 == 0);
        if (i % 5 == 4) records[i].record.logprobs = NULL;
        if (i % 2 == 1) fixture_record_sample(&records[i], &rng, i % 4 == 3);
    }
    write_records(path, m, options, records, N, seed % 2 == 0);
    expect_records(path, m, records, N);
    for (uint32_t i = 0; i < N; i++) fixture_record_free(&records[i]);
    unlink(path);
}

static const struct {
    uint32_t L, E, K;
} shapes[] = {{3, 8, 2},   {5, 128, 8},   {2, 256, 8}, {4, 160, 8},
              {2, 257, 8}, {3, 65536, 4}, {1, 1, 1},   {2, 16, 16}};
enum { N_SHAPES = sizeof shapes / sizeof shapes[0] };

static void test_round_trip_shapes(void **state) {
    place *p = *state;
    for (size_t s = 0; s < N_SHAPES; s++) {
        for (int variant = 0; variant < 6; variant++) {
            fixture_model f;
            fixture_model_init(&f, shapes[s].L, shapes[s].E, shapes[s].K);
            wb_dump_options options = wb_dump_options_default();
            options.codec = (wb_codec)(variant % 3);
            if (variant >= 3) options.chunk_bytes = 3 * wb_route_row_bytes(&f.model) + 1;
            round_trip(p->path, &f.model, &options, s * 6 + (size_t)variant);
        }
    }
}

static void test_property(void **state) {
    place *p = *state;
    uint64_t seed = test_seed(0, NULL);
    print_message("seed %" PRIu64 "\n", seed);
    fixture_rng rng = {seed};
    for (int i = 0; i < 40; i++) {
        fixture_model f;
        uint32_t E = 1 + fixture_below(&rng, i % 2 ? 256 : 700), K = 1 + fixture_below(&rng, E < 12 ? E : 12);
        fixture_model_init(&f, 1 + fixture_below(&rng, 6), E, K);
        if (i % 3 == 0) fixture_model_vary(&f, fixture_below(&rng, E));
        wb_dump_options options = wb_dump_options_default();
        options.codec = (wb_codec)fixture_below(&rng, 3);
        options.zstd_level = 1 + (int)fixture_below(&rng, 19);
        options.chunk_bytes = 1 + fixture_below(&rng, 4000);
        options.producer = "property test";
        round_trip(p->path, &f.model, &options, fixture_next(&rng));
    }
}

static void test_empty_dump(void **state) {
    place *p = *state;
    fixture_model f;
    fixture_model_init(&f, 2, 8, 2);
    write_records(p->path, &f.model, NULL, NULL, 0, true);
    expect_records(p->path, &f.model, NULL, 0);
    wb_dump *d = NULL;
    OK(wb_dump_open(p->directory, &d));
    wb_record r;
    assert_int_equal(wb_dump_find(d, "nobody", &r), WB_NOT_FOUND);
    assert_non_null(strstr(wb_error_message(), "nobody"));
    assert_int_equal(wb_dump_record(d, 0, &r), WB_INVALID_ARGUMENT);
    wb_dump_close(d);
}

/* With 256 experts every byte is an expert, 255 too; and an invalid row is a bit, not a value. */
static void test_expert_255(void **state) {
    place *p = *state;
    fixture_model f;
    fixture_model_init(&f, 2, 256, 4);
    fixture_rng rng = {1};
    fixture_record r;
    fixture_record_init(&r, &f.model, &rng, "r", 3, 12, 0, 1, true);
    memset(r.bits, 0xff, 2);
    r.bits[0] = 0xfd;
    for (uint32_t i = 0; i < 11 * 2; i++)
        for (uint32_t k = 0; k < 4; k++) r.ids[i * 4 + k] = (uint8_t)(255 - k);
    memset(r.ids + 8, 0, 8); /* row 1 is not valid: what it holds is no matter */
    write_records(p->path, &f.model, NULL, &r, 1, true);
    expect_records(p->path, &f.model, &r, 1);
    wb_dump *d = NULL;
    wb_record found;
    OK(wb_dump_open(p->path, &d));
    OK(wb_dump_record(d, 0, &found));
    assert_int_equal(wb_route_id(wb_record_row(&f.model, &found, 0), WB_U8, 0), 255);
    assert_null(wb_record_row(&f.model, &found, 1));
    assert_null(wb_record_row(&f.model, &found, 11));
    wb_dump_close(d);
    fixture_record_free(&r);
}

/* Sixteen samples of one prompt: it is stored once, and read back in each. */
static void share_prompts(const char *path, wb_codec codec, size_t chunk_bytes, bool finish) {
    enum { N = 16, PROMPT = 40 };
    fixture_model f;
    fixture_model_init(&f, 4, 128, 8);
    size_t row = wb_route_row_bytes(&f.model);
    fixture_rng rng = {codec + chunk_bytes};
    fixture_record records[N];
    for (uint32_t i = 0; i < N; i++) {
        char rid[32];
        snprintf(rid, sizeof rid, "s%u", i);
        /* The last ends with its prompt: all of its rows are shared. */
        fixture_record_init(&records[i], &f.model, &rng, rid, PROMPT, i + 1 == N ? PROMPT : PROMPT + 8, 0, 1,
                            false);
        records[i].record.group = 3;
        records[i].record.sample = i;
        memcpy(records[i].tokens, records[0].tokens, PROMPT * sizeof(uint32_t));
        memcpy(records[i].ids, records[0].ids, (PROMPT - 1) * row);
    }
    uint8_t *other = records[5].ids + 10 * row; /* the same experts in another order: shares only 10 rows */
    uint8_t id = other[0];
    other[0] = other[1];
    other[1] = id;
    wb_dump_options options = wb_dump_options_default();
    options.codec = codec;
    options.chunk_bytes = chunk_bytes;
    write_records(path, &f.model, &options, records, N, finish);
    expect_records(path, &f.model, records, N);
    wb_dump *d = NULL;
    OK(wb_dump_open(path, &d));
    for (uint32_t i = 0; i < N; i++) {
        wb_dump_entry e;
        OK(wb_dump_get_entry(d, i, &e));
        if (i == 0)
            assert_null(e.prefix_rid);
        else
            assert_string_equal(e.prefix_rid, "s0");
        if (i == 5)
            assert_int_equal(e.prefix_rows, 10);
        else if (i > 0)
            assert_int_equal(e.prefix_rows, PROMPT - 1);
    }
    /* The base's rows live as long as any record that shares them. */
    wb_record last, base;
    OK(wb_dump_record(d, N - 1, &last));
    OK(wb_dump_record(d, 0, &base));
    /* Freed bytes may look the same for a while: that the base is there is asked, not only seen. */
    wb_dump_release(d, 0);
    assert_non_null(d->records[0].loaded);
    assert_null(fixture_difference(&f.model, &records[N - 1].record, &last));
    wb_dump_release(d, N - 1);
    assert_null(d->records[0].loaded);
    wb_dump_close(d);
    for (uint32_t i = 0; i < N; i++) fixture_record_free(&records[i]);
    unlink(path);
}

/* A record is held as often as it was given: a release of one holder takes nothing from the others, and
 * after the last one the rows are gone from memory, as is seen by their being decoded anew. */
static void test_held_twice(void **state) {
    (void)state;
    static const char *const names[] = {"good_zstd.wbr", "good_packed.wbr", "good_chunks.wbr"};
    for (int n = 0; n < 3; n++) {
        char path[512];
        snprintf(path, sizeof path, "%s/dump/%s", WB_TEST_DATA, names[n]);
        wb_dump *d = NULL;
        wb_record first, second;
        OK(wb_dump_open(path, &d));
        OK(wb_dump_record(d, 1, &first));
        OK(wb_dump_find(d, first.rid, &second));
        assert_ptr_equal(first.routes, second.routes);
        wb_dump_release(d, 1);
        assert_non_null(d->records[1].loaded->joined);
        assert_null(fixture_difference(wb_dump_model(d), &first, &second));
        OK(wb_record_check(wb_dump_model(d), &first, true));
        wb_dump_release(d, 1);
        assert_null(d->records[1].loaded);
        wb_dump_release(d, 1); /* not held: nothing to give back */
        OK(wb_dump_record(d, 1, &first));
        assert_int_equal(d->records[1].held, 1);
        OK(wb_record_check(wb_dump_model(d), &first, true));
        wb_dump_close(d);
    }
}

static void test_prefix_sharing(void **state) {
    place *p = *state;
    for (int i = 0; i < 12; i++) share_prompts(p->path, (wb_codec)(i % 3), i & 2 ? 100 : 1 << 20, i & 1);
}

/* Groups beyond what the writer remembers, rows that begin late, and bitmaps before which sharing stops. */
static void test_prefix_corners(void **state) {
    place *p = *state;
    fixture_model f;
    fixture_model_init(&f, 2, 64, 4);
    size_t row = wb_route_row_bytes(&f.model);
    fixture_rng rng = {4};
    enum { N = 200 };
    fixture_record *records = calloc(N, sizeof *records);
    fixture_record first;
    fixture_record_init(&first, &f.model, &rng, "first", 20, 30, 0, 1, false);
    for (uint32_t i = 0; i < N; i++) {
        char rid[32];
        snprintf(rid, sizeof rid, "c%u", i);
        fixture_record_init(&records[i], &f.model, &rng, rid, 20, 30, i % 7 == 3 ? 5 : 0, 1 + i % 2,
                            i % 5 == 2);
        records[i].record.group = i < 100 ? i : i % 10; /* more groups than are remembered, then few */
        memcpy(records[i].ids, first.ids, 20 * row);
        records[i].bits[0] = 0xff; /* when it has bits: eleven rows and no more can be shared */
        records[i].bits[1] = 0x57;
    }
    write_records(p->path, &f.model, NULL, records, N, true);
    expect_records(p->path, &f.model, records, N);
    wb_dump *d = NULL;
    OK(wb_dump_open(p->path, &d));
    for (uint32_t i = 0; i < N; i++) {
        wb_dump_entry e;
        OK(wb_dump_get_entry(d, i, &e));
        if (i < 100)
            assert_null(e.prefix_rid);
        else if (i >= 150 && i % 5 == 2)
            assert_int_equal(e.prefix_rows, 11 - records[i].routes[0].start);
        else if (i >= 150)
            assert_true(e.prefix_rows > 0);
    }
    wb_dump_close(d);
    for (uint32_t i = 0; i < N; i++) fixture_record_free(&records[i]);
    fixture_record_free(&first);
    free(records);
}

/* A record whose first `rows` rows are of a prompt of group `group`; `run` is its run. */
static wb_record prompt_of(uint64_t group, uint32_t rows, wb_route_rows *run, const uint8_t *ids) {
    *run = (wb_route_rows){0, rows, ids, NULL};
    return (wb_record){.rid = "r", .group = group, .prompt_len = rows, .n_routes = 1, .routes = run};
}

/* What the writer remembers stays below WB_SHARE_BYTES: the groups used longest ago are forgotten. Sizes are
 * claimed by the width of a row; nothing reads the rows of a base that is larger than its block. */
static void test_shared_rows_are_bounded(void **state) {
    (void)state;
    const size_t third = WB_SHARE_BYTES / 3 + 1, row_bytes = 64;
    uint8_t ids[64] = {0};
    wb_share share = {0};
    wb_route_rows run;
    uint64_t base = 0;
    for (uint64_t group = 0; group < 3; group++) {
        wb_share_base offer = {.group = group, .record = group, .rows = (uint32_t)(third / row_bytes) + 1};
        offer.ids = calloc(1, row_bytes);
        assert_non_null(offer.ids);
        wb_share_keep(&share, row_bytes, offer);
        assert_true(share.bytes > 0 && share.bytes <= WB_SHARE_BYTES);
        if (group != 1) continue;
        wb_record record = prompt_of(0, 1, &run, ids); /* group 0 is used: group 1 is the oldest now */
        assert_int_equal(wb_share_find(&share, row_bytes, &record, &base), 1);
    }
    for (uint64_t group = 0; group < 3; group++) {
        wb_record record = prompt_of(group, 1, &run, ids);
        assert_int_equal(wb_share_find(&share, row_bytes, &record, &base), group == 1 ? 0 : 1);
    }
    wb_share_free(&share);
    assert_int_equal(share.bytes, 0);

    /* One prompt that is larger than all of it is not remembered. */
    wb_share_base offer;
    wb_record record = prompt_of(0, 3, &run, ids);
    OK(wb_share_prepare(WB_SHARE_BYTES / 2, &record, 0, &offer));
    assert_null(offer.ids);
}

static void test_directory(void **state) {
    place *p = *state;
    fixture_model f;
    fixture_model_init(&f, 3, 128, 8);
    fixture_rng rng = {9};
    fixture_record records[6];
    for (uint32_t i = 0; i < 6; i++) {
        char rid[32];
        snprintf(rid, sizeof rid, "d%u", i);
        fixture_record_init(&records[i], &f.model, &rng, rid, 4, 20, 0, 1, false);
    }
    for (uint32_t part = 0; part < 3; part++) {
        char path[96];
        snprintf(path, sizeof path, "%s/part-%u.wbr", p->directory, part);
        write_records(path, &f.model, NULL, records + 2 * part, 2, part != 1);
    }
    char other[96];
    snprintf(other, sizeof other, "%s/notes.txt", p->directory);
    fixture_write_file(other, "not a dump", 10);
    expect_records(p->directory, &f.model, records, 6);
    wb_dump *d = NULL;
    OK(wb_dump_open(p->directory, &d));
    assert_int_equal(wb_dump_get_info(d).files, 3);
    assert_int_equal(wb_dump_get_info(d).files_without_index, 1);
    wb_dump_close(d);
    for (uint32_t i = 0; i < 6; i++) fixture_record_free(&records[i]);
}

/* A dump made by version 1 once: file, and what is in it. Written by make_golden_dumps.c, whose records come
 * from the same fixture with the same seeds. */
static void golden(const char *name, uint32_t L, uint32_t E, uint32_t K, uint64_t seed, uint32_t n_tokens,
                   bool valid, bool sampled) {
    char path[512];
    snprintf(path, sizeof path, "%s/dump/%s", WB_TEST_DATA, name);
    const bool indexed = strstr(name, "indexer") != NULL;
    fixture_model f;
    fixture_model_init(&f, L, E, K);
    if (indexed) fixture_model_index(&f, 5);
    if (strstr(name, "indexer_rate")) f.model.indexer_rate = 3;
    if (strstr(name, "layers")) fixture_model_vary(&f, 3);
    fixture_rng rng = {seed};
    fixture_record records[3];
    for (uint32_t i = 0; i < 3; i++) {
        char rid[32];
        snprintf(rid, sizeof rid, "golden-%u", i);
        fixture_record_init(&records[i], &f.model, &rng, rid, 5, n_tokens + i, i, 1 + i % 2, valid);
        records[i].record.group = 1;
        if (i > 0 && !valid) memcpy(records[i].ids, records[0].ids, 5 * wb_route_row_bytes(&f.model));
        if (sampled) fixture_record_sample(&records[i], &rng, i > 0);
        if (indexed) fixture_record_index(&records[i], &f.model, &rng, i);
    }
    expect_records(path, &f.model, records, 3);
    for (uint32_t i = 0; i < 3; i++) fixture_record_free(&records[i]);
}

static void test_golden(void **state) {
    (void)state;
    golden("good_u8.wbr", 2, 8, 2, 11, 12, false, false);
    golden("good_u8_valid.wbr", 2, 256, 4, 12, 12, true, false);
    golden("good_u16.wbr", 2, 300, 2, 13, 12, false, false);
    golden("good_zstd.wbr", 2, 8, 2, 14, 100, false, false);
    golden("good_packed.wbr", 2, 8, 2, 18, 100, true, false);
    golden("good_chunks.wbr", 2, 8, 2, 15, 12, true, false);
    golden("good_no_index.wbr", 2, 8, 2, 16, 12, false, false);
    golden("good_sampling.wbr", 2, 8, 2, 17, 12, false, true);
    golden("good_indexer.wbr", 2, 8, 2, 19, 12, false, true);
    golden("good_indexer_zstd.wbr", 2, 8, 2, 20, 200, true, false);
    golden("good_indexer_rate.wbr", 2, 8, 2, 22, 40, true, false);
    golden("good_layers_top_k.wbr", 3, 12, 4, 21, 40, true, false);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_round_trip_shapes, setup, teardown),
        cmocka_unit_test_setup_teardown(test_property, setup, teardown),
        cmocka_unit_test_setup_teardown(test_empty_dump, setup, teardown),
        cmocka_unit_test_setup_teardown(test_expert_255, setup, teardown),
        cmocka_unit_test(test_held_twice),
        cmocka_unit_test_setup_teardown(test_prefix_sharing, setup, teardown),
        cmocka_unit_test_setup_teardown(test_prefix_corners, setup, teardown),
        cmocka_unit_test(test_shared_rows_are_bounded),
        cmocka_unit_test_setup_teardown(test_directory, setup, teardown),
        cmocka_unit_test(test_golden),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
