/* test_dump_copy.c - records of one dump in another: the same bytes where that can be, the same records
 * always.
 * usage: test_dump_copy [SEED] */
#include "dump_fixture.h"

#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
// clang-format off
#include <cmocka.h>
// clang-format on

#define OK(call) assert_string_equal((call) == WB_OK ? "" : wb_error_message(), "")

enum { RECORDS = 12, PROMPT = 6 };

static uint64_t seed = 1;

typedef struct copies {
    char directory[64], from[96], to[96];
    fixture_model f;
    fixture_rng rng;
    fixture_record records[RECORDS];
    wb_dump *dump;
} copies;

/* Groups of three that share their prompts, in chunks or not, with bitmaps and samplings. */
static int make(void **state) {
    copies *c = calloc(1, sizeof *c);
    wb_dump_options options = wb_dump_options_default();
    wb_dump_writer *w = NULL;
    c->rng.state = seed;
    fixture_directory(c->directory);
    snprintf(c->from, sizeof c->from, "%s/from.wbr", c->directory);
    snprintf(c->to, sizeof c->to, "%s/to.wbr", c->directory);
    fixture_model_init(&c->f, 2, seed % 2 ? 16 : 300, 4);
    if (seed % 3 == 0) options.codec = WB_CODEC_ZSTD;
    if (seed % 5 == 0) options.chunk_bytes = 100;
    OK(wb_dump_create(c->from, &c->f.model, &options, &w));
    for (uint32_t i = 0; i < RECORDS; i++) {
        fixture_record *r = &c->records[i];
        char rid[16];
        snprintf(rid, sizeof rid, "r%u", i);
        fixture_record_init(r, &c->f.model, &c->rng, rid, PROMPT, 12 + fixture_below(&c->rng, 30), 0, 1,
                            i % 3 == 2 && i % 2);
        r->record.group = i / 3;
        if (i % 3) memcpy(r->ids, c->records[i - i % 3].ids, PROMPT * wb_route_row_bytes(&c->f.model));
        if (i % 4 == 3) fixture_record_sample(r, &c->rng, true);
        OK(wb_dump_append(w, &r->record));
    }
    OK(wb_dump_finish(w));
    OK(wb_dump_open(c->from, &c->dump));
    *state = c;
    return 0;
}

static int unmake(void **state) {
    copies *c = *state;
    wb_dump_close(c->dump);
    fixture_remove(c->directory);
    for (uint32_t i = 0; i < RECORDS; i++) fixture_record_free(&c->records[i]);
    free(c);
    return 0;
}

/* Copies the records of the bits of `chosen` and compares what is there with the fixture. */
static void copy(copies *c, uint32_t chosen) {
    wb_dump_writer *w = NULL;
    wb_dump *d = NULL;
    uint64_t n = 0;
    (void)unlink(c->to);
    OK(wb_dump_create(c->to, &c->f.model, NULL, &w));
    for (uint32_t i = 0; i < RECORDS; i++)
        if (chosen >> i & 1) OK(wb_dump_append_stored(w, c->dump, i));
    OK(wb_dump_finish(w));
    wb_dump_info info;
    OK(wb_dump_verify(c->to, NULL, NULL, &info));
    OK(wb_dump_open(c->to, &d));
    for (uint32_t i = 0; i < RECORDS; i++) {
        wb_record r;
        if (!(chosen >> i & 1)) continue;
        OK(wb_dump_record(d, n++, &r));
        const char *what = fixture_difference(&c->f.model, &c->records[i].record, &r);
        if (what) fail_msg("seed %" PRIu64 ", chosen %x: record %u: another %s", seed, chosen, i, what);
    }
    assert_int_equal(wb_dump_get_info(d).records, n);
    wb_dump_close(d);
}

/* A copy of a copy of a record without its base is in one run, as the record was at first. */
static void test_one_run(void **state) {
    copies *c = *state;
    wb_dump_writer *w = NULL;
    wb_dump *d = NULL;
    wb_record r;
    OK(wb_dump_create(c->to, &c->f.model, NULL, &w));
    OK(wb_dump_append_stored(w, c->dump, 1));
    OK(wb_dump_finish(w));
    OK(wb_dump_open(c->to, &d));
    OK(wb_dump_record(d, 0, &r));
    assert_int_equal(r.n_routes, 1);
    assert_int_equal(r.routes[0].rows, c->records[1].record.routes[0].rows);
    wb_dump_close(d);
}

/* All records: the bytes between header and index are the same, and so is what each says of itself. */
static void test_whole(void **state) {
    copies *c = *state;
    size_t from_size = 0, to_size = 0;
    wb_dump_entry first, last, copied;
    wb_dump *d = NULL;
    copy(c, (1u << RECORDS) - 1);
    OK(wb_dump_get_entry(c->dump, 0, &first));
    OK(wb_dump_get_entry(c->dump, RECORDS - 1, &last));
    OK(wb_dump_open(c->to, &d));
    OK(wb_dump_get_entry(d, 0, &copied));
    uint8_t *from = fixture_read_file(c->from, &from_size), *to = fixture_read_file(c->to, &to_size);
    const size_t bytes = (size_t)(last.offset + last.bytes - first.offset);
    assert_true(copied.offset + bytes <= to_size);
    assert_memory_equal(from + first.offset, to + copied.offset, bytes);
    OK(wb_dump_get_entry(c->dump, 1, &first));
    OK(wb_dump_get_entry(d, 1, &copied));
    assert_int_equal(copied.prefix_rows, first.prefix_rows);
    assert_true(copied.prefix_rows > 0);
    assert_true(copied.has_digest && copied.group == 0 && copied.sample == c->records[1].record.sample);
    free(from);
    free(to);
    wb_dump_close(d);
}

/* Some records: those whose first rows another one has are whole without it too. */
static void test_some(void **state) {
    copies *c = *state;
    for (int i = 0; i < 40; i++) copy(c, (uint32_t)fixture_next(&c->rng) & ((1u << RECORDS) - 1));
    copy(c, 0);
    copy(c, 2);
}

/* A record of the base's rid that is another one is not taken for it: record 1 keeps its own first rows. */
static void test_another_base(void **state) {
    copies *c = *state;
    wb_dump_writer *w = NULL;
    wb_dump *d = NULL;
    wb_record r, other = c->records[3].record;
    other.rid = "r0";
    OK(wb_dump_create(c->to, &c->f.model, NULL, &w));
    OK(wb_dump_append(w, &other));
    OK(wb_dump_append_stored(w, c->dump, 1));
    OK(wb_dump_finish(w));
    OK(wb_dump_open(c->to, &d));
    OK(wb_dump_find(d, "r1", &r));
    assert_null(fixture_difference(&c->f.model, &c->records[1].record, &r));
    wb_dump_close(d);
}

/* What is refused leaves the file as it was. */
static void test_refused(void **state) {
    copies *c = *state;
    wb_dump_writer *w = NULL;
    fixture_model wide;
    size_t before = 0, after = 0;
    OK(wb_dump_create(c->to, &c->f.model, NULL, &w));
    OK(wb_dump_append_stored(w, c->dump, 0));
    free(fixture_read_file(c->to, &before));
    assert_int_equal(wb_dump_append_stored(w, c->dump, 0), WB_INVALID_ARGUMENT);
    assert_non_null(strstr(wb_error_message(), "r0"));
    assert_int_equal(wb_dump_append_stored(w, c->dump, RECORDS), WB_INVALID_ARGUMENT);
    assert_int_equal(wb_dump_append_stored(NULL, c->dump, 0), WB_INVALID_ARGUMENT);
    assert_int_equal(wb_dump_append_stored(w, NULL, 0), WB_INVALID_ARGUMENT);
    free(fixture_read_file(c->to, &after));
    assert_int_equal(before, after);
    OK(wb_dump_append_stored(w, c->dump, 1));
    OK(wb_dump_finish(w));
    fixture_model_init(&wide, 2, c->f.model.num_experts, 5);
    (void)unlink(c->to);
    OK(wb_dump_create(c->to, &wide.model, NULL, &w));
    assert_int_equal(wb_dump_append_stored(w, c->dump, 0), WB_MISMATCH);
    OK(wb_dump_finish(w));
}

/* Ids that are out of range have the right checksums: the writer looks at them, unless it trusts them. */
static void test_bad_ids(void **state) {
    copies *c = *state;
    char path[512];
    wb_dump *d = NULL;
    wb_dump_options options = wb_dump_options_default();
    snprintf(path, sizeof path, "%s/dump/bad_id_out_of_range.wbr", WB_TEST_DATA);
    OK(wb_dump_open(path, &d));
    for (int trusted = 0; trusted < 2; trusted++) {
        wb_dump_writer *w = NULL;
        options.trust_ids = trusted;
        (void)unlink(c->to);
        OK(wb_dump_create(c->to, wb_dump_model(d), &options, &w));
        OK(wb_dump_append_stored(w, d, 0));
        assert_int_equal(wb_dump_append_stored(w, d, 1), trusted ? WB_OK : WB_INVALID_ARGUMENT);
        OK(wb_dump_finish(w));
    }
    wb_dump_close(d);
}

#define WITH_COPIES(test) cmocka_unit_test_setup_teardown(test, make, unmake)

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        WITH_COPIES(test_whole),        WITH_COPIES(test_one_run), WITH_COPIES(test_some),
        WITH_COPIES(test_another_base), WITH_COPIES(test_refused), WITH_COPIES(test_bad_ids),
    };
    int failures = 0;
    const uint64_t first = argc > 1 ? strtoull(argv[1], NULL, 10) : 1, last = argc > 1 ? first : 15;
    for (seed = first; seed <= last; seed++) {
        printf("seed %" PRIu64 "\n", seed);
        failures += cmocka_run_group_tests(tests, NULL, NULL);
    }
    return failures > 0;
}
