/* test_dump_indexer.c - what indexers chose, through a dump and back: every codec, whole files, cut ones and
 * changed ones; models and records that cannot be; how many bytes a token takes.
 * usage: test_dump_indexer [SEED] */
#include "dump_fixture.h"
#include "support/test_seed.h"

#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
// clang-format off
#include <cmocka.h>
// clang-format on

#define OK(call) assert_string_equal((call) == WB_OK ? "" : wb_error_message(), "")

enum { RECORDS = 8 };

static uint64_t seed;

typedef struct place {
    char directory[64], path[96], copy[96];
    fixture_model f;
    fixture_rng rng;
    fixture_record records[RECORDS];
} place;

/* Records without routes too, and some without indexer rows. */
static int setup(void **state) {
    place *p = calloc(1, sizeof *p);
    p->rng.state = seed++;
    fixture_directory(p->directory);
    snprintf(p->path, sizeof p->path, "%s/part-0.wbr", p->directory);
    snprintf(p->copy, sizeof p->copy, "%s/copy.wbr", p->directory);
    fixture_model_init(&p->f, 3, 16, 4);
    fixture_model_index(&p->f, 1 + fixture_below(&p->rng, 20));
    p->f.model.indexer_rate = (uint32_t[]){0, 1, 4}[fixture_below(&p->rng, 3)];
    for (uint32_t i = 0; i < RECORDS; i++) {
        char rid[16];
        snprintf(rid, sizeof rid, "r%u", i);
        fixture_record_init(&p->records[i], &p->f.model, &p->rng, rid, 3, 3 + fixture_below(&p->rng, 200), 0,
                            i % 3, false);
        p->records[i].record.group = i / 4;
        if (i % 4 != 3) fixture_record_index(&p->records[i], &p->f.model, &p->rng, fixture_below(&p->rng, 9));
    }
    *state = p;
    return 0;
}

static int teardown(void **state) {
    place *p = *state;
    fixture_remove(p->directory);
    for (uint32_t i = 0; i < RECORDS; i++) fixture_record_free(&p->records[i]);
    free(p);
    return 0;
}

static void write_all(const place *p, const char *path, const wb_dump_options *options) {
    wb_dump_writer *w = NULL;
    unlink(path);
    OK(wb_dump_create(path, &p->f.model, options, &w));
    for (uint32_t i = 0; i < RECORDS; i++) OK(wb_dump_append(w, &p->records[i].record));
    OK(wb_dump_finish(w));
}

/* The first `n` records are there and say what they said; those that cannot be read are named by `status`. */
static uint64_t expect_records(const place *p, wb_dump *d) {
    const uint64_t n = wb_dump_get_info(d).records;
    uint64_t read = 0;
    for (uint64_t i = 0; i < n; i++) {
        wb_record r;
        if (wb_dump_record(d, i, &r) != WB_OK) continue;
        const char *what = NULL;
        for (uint32_t k = 0; k < RECORDS; k++)
            if (strcmp(p->records[k].rid, r.rid) == 0)
                what = fixture_difference(&p->f.model, &p->records[k].record, &r);
        if (what) fail_msg("record %s: another %s", r.rid, what);
        wb_dump_release(d, i);
        read++;
    }
    return read;
}

static void expect_all(const place *p, const char *path) {
    wb_dump *d = NULL;
    wb_dump_info info;
    OK(wb_dump_verify(path, NULL, NULL, &info));
    OK(wb_dump_open(path, &d));
    OK(wb_route_model_match(&p->f.model, wb_dump_model(d)));
    assert_int_equal(expect_records(p, d), RECORDS);
    wb_dump_close(d);
}

static void test_round_trip(void **state) {
    place *p = *state;
    for (int variant = 0; variant < 6; variant++) {
        wb_dump_options options = wb_dump_options_default();
        options.codec = (wb_codec)(variant % 3);
        if (variant >= 3) options.chunk_bytes = 1 + fixture_below(&p->rng, 300);
        write_all(p, p->path, &options);
        expect_all(p, p->path);
    }
}

/* A copy has the bytes of the first dump, and one without the record whose prompt it shares says the same. */
static void test_copy(void **state) {
    place *p = *state;
    wb_dump *d = NULL;
    write_all(p, p->path, NULL);
    OK(wb_dump_open(p->path, &d));
    for (uint32_t chosen = 1; chosen < 1u << RECORDS; chosen = 2 * chosen + 1) {
        wb_dump_writer *w = NULL;
        wb_dump *copy = NULL;
        unlink(p->copy);
        OK(wb_dump_create(p->copy, &p->f.model, NULL, &w));
        for (uint32_t i = 0; i < RECORDS; i++)
            if (chosen >> i & 1) OK(wb_dump_append_stored(w, d, RECORDS - 1 - i));
        OK(wb_dump_finish(w));
        OK(wb_dump_open(p->copy, &copy));
        assert_int_equal(expect_records(p, copy), wb_dump_get_info(copy).records);
        wb_dump_close(copy);
    }
    wb_dump_close(d);
}

/* A file cut anywhere has its whole records; one with a byte changed has no record that says otherwise. */
static void test_damage(void **state) {
    place *p = *state;
    size_t size = 0;
    wb_dump_options options = wb_dump_options_default();
    options.codec = seed % 2 ? WB_CODEC_ZSTD : WB_CODEC_RAW;
    write_all(p, p->path, &options);
    uint8_t *bytes = fixture_read_file(p->path, &size);
    for (int i = 0; i < 300; i++) {
        const size_t at = fixture_next(&p->rng) % size;
        const uint8_t before = bytes[at];
        wb_dump *d = NULL;
        if (i % 2) bytes[at] ^= (uint8_t)(1 + fixture_below(&p->rng, 255));
        fixture_write_file(p->copy, bytes, i % 2 ? size : at);
        if (wb_dump_open(p->copy, &d) == WB_OK) expect_records(p, d);
        wb_dump_close(d);
        d = NULL;
        if (wb_dump_salvage(p->copy, NULL, NULL, &d) == WB_OK)
            assert_int_equal(expect_records(p, d), wb_dump_get_info(d).records);
        wb_dump_close(d);
        bytes[at] = before;
    }
    free(bytes);
}

/* ---- what cannot be ----------------------------------------------------------------------------- */

static void refused(const wb_route_model *m, const wb_record *r, const char *says) {
    assert_int_equal(wb_record_check(m, r, false), WB_INVALID_ARGUMENT);
    if (!strstr(wb_error_message(), says)) fail_msg("expected \"%s\", found %s", says, wb_error_message());
}

/* Lists, what they choose, and whether that is stored as the first positions that there are. */
static void test_lists_are_choices(void **state) {
    (void)state;
    static const struct {
        int32_t list[4];
        uint32_t count;
        bool all;
    } cases[] = {{{-1, -1, -1, -1}, 0, true}, {{0, -1, -1, -1}, 1, true}, {{1, -1, -1, -1}, 1, false},
                 {{0, 1, 2, -1}, 3, true},    {{0, 1, 3, -1}, 3, false},  {{0, 1, 2, 3}, 4, true},
                 {{0, 2, 3, 4}, 4, false},    {{1, 2, 3, 4}, 4, false}};
    enum { N = sizeof cases / sizeof cases[0] };
    for (size_t i = 0; i < N; i++) {
        const wb_indexer_choice choice = wb_indexer_of_list(cases[i].list, 4);
        int32_t list[5] = {7, 7, 7, 7, 7};
        assert_int_equal(cases[i].count, choice.count);
        assert_true(cases[i].all == !choice.positions);
        wb_indexer_to_list(&choice, 4, list);
        assert_memory_equal(cases[i].list, list, sizeof cases[i].list);
        assert_int_equal(7, list[4]);
        /* The same, too, where the first positions are stored one by one. */
        const wb_indexer_choice stored = {choice.count, (const uint32_t *)cases[i].list};
        for (size_t j = 0; j < N; j++) {
            assert_true((i == j) == wb_indexer_same(stored, wb_indexer_of_list(cases[j].list, 4)));
            assert_true((i == j) == wb_indexer_same(wb_indexer_of_list(cases[j].list, 4), stored));
        }
    }
}

static void test_records_that_cannot_be(void **state) {
    place *p = *state;
    const wb_route_model *m = &p->f.model;
    /* Rows of positions 2 and 3, two columns: {0, 2} {} and {1} {0, 1, 2}, the last not stored. */
    uint32_t counts[4] = {2, 0, 1, 3}, positions[3] = {0, 2, 1}, tokens[6] = {0};
    uint64_t ends[4] = {2, 2, 3, 3};
    wb_indexer_rows run = {2, 2, counts, ends, positions};
    wb_record r = {.rid = "x", .prompt_len = 2, .n_tokens = 6, .tokens = tokens, .indexer = &run};
    p->f.model.indexer_k = 3;
    p->f.model.indexer_rate = 0;
    OK(wb_record_check(m, &r, false));
    wb_indexer_choice choice;
    assert_true(wb_indexer_at(m, r.indexer, 3, 1, &choice));
    assert_true(choice.count == 3 && !choice.positions && wb_indexer_position(&choice, 2) == 2);
    assert_false(wb_indexer_at(m, r.indexer, 1, 0, &choice));
    assert_false(wb_indexer_at(m, r.indexer, 4, 0, &choice));
    assert_int_equal(wb_indexer_column(m, 0), 0);
    assert_int_equal(wb_indexer_column(m, 1), 0);
    assert_int_equal(wb_indexer_column(m, 2), 1);
    assert_int_equal(wb_indexer_layer(m, 0), 0);
    assert_int_equal(wb_indexer_layer(m, 1), 2);

    run.rows = 4;
    refused(m, &r, "4 rows from position 2 must be inside [0, 5)");
    run.rows = 2;
    counts[3] = 4;
    refused(m, &r, "position 3, model layer 2: expected a count of at most 3, found 4");
    counts[3] = 3;
    positions[1] = 3;
    refused(m, &r, "position 2, model layer 0: expected positions below 3, found 3");
    positions[1] = 0;
    refused(m, &r, "position 2, model layer 0: expected a position above 0, found 0");
    positions[1] = 2;
    ends[1] = 3;
    refused(m, &r, "position 2, model layer 2: expected an end of 2, found 3");
    ends[1] = 1;
    refused(m, &r, "expected an end of 2, found 1");
    ends[1] = 2;
    /* Ends that go back: there are as many positions as the last end says, none here. */
    memset(ends, 0, sizeof ends);
    ends[0] = 2;
    run.positions = NULL;
    refused(m, &r, "position 2, model layer 0: expected an end of at most that of the last cell, 0, found 2");
    ends[0] = 0;
    OK(wb_record_check(m, &r, false));
    memcpy(ends, (uint64_t[]){2, 2, 3, 3}, sizeof ends);
    refused(m, &r, "counts, ends or positions NULL");
    run.positions = positions;
    run.counts = NULL;
    refused(m, &r, "counts, ends or positions NULL");
    run.counts = counts;
    OK(wb_record_check(m, &r, false));
    p->f.model.n_indexer_layers = p->f.model.indexer_k = 0;
    refused(m, &r, "the model has no layer with an indexer");
}

/* Where the rate is known, a choice is of the entries that are complete, of as many as k allows. */
static void test_records_at_a_rate(void **state) {
    place *p = *state;
    wb_route_model *m = &p->f.model;
    enum { K = 3, ROWS = 20 };
    uint32_t counts[2 * ROWS], positions[2 * ROWS * K], tokens[ROWS + 1] = {0};
    uint64_t ends[2 * ROWS], at;
    wb_indexer_rows run = {0, ROWS, counts, ends, positions};
    wb_record r = {.rid = "x", .prompt_len = 2, .n_tokens = ROWS + 1, .tokens = tokens, .indexer = &run};
    m->indexer_k = K;
    for (uint32_t rate = 1; rate <= ROWS + 2; rate++) {
        m->indexer_rate = rate;
        /* The last ones that the token sees. */
        at = 0;
        for (uint32_t cell = 0; cell < 2 * ROWS; cell++) {
            const uint32_t seen = (cell / 2 + 1) / rate;
            counts[cell] = seen < K ? seen : K;
            for (uint32_t j = 0; j < counts[cell]; j++) positions[at++] = seen - counts[cell] + j;
            ends[cell] = at;
        }
        OK(wb_record_check(m, &r, false));
        for (uint32_t cell = 0; cell < 2 * ROWS; cell++) {
            const uint32_t position = cell / 2, layer = cell % 2 ? 2 : 0, seen = (position + 1) / rate;
            const uint32_t count = counts[cell];
            char says[160];
            assert_int_equal(wb_indexer_seen(m, position), seen);
            assert_int_equal(wb_indexer_count(m, position), count);
            for (int more = -1; more <= 1; more += 2) {
                counts[cell] = count + (uint32_t)more;
                snprintf(says, sizeof says,
                         "record x: indexer: position %" PRIu32 ", model layer %" PRIu32
                         ": expected a count of %" PRIu32 ", found %" PRIu32,
                         position, layer, count, counts[cell]);
                refused(m, &r, says);
            }
            counts[cell] = count;
            if (count == 0) continue;
            positions[ends[cell] - 1] = seen;
            snprintf(says, sizeof says,
                     "record x: indexer: position %" PRIu32 ", model layer %" PRIu32
                     ": expected positions below %" PRIu32 ", found %" PRIu32,
                     position, layer, seen, seen);
            refused(m, &r, says);
            positions[ends[cell] - 1] = seen - 1;
        }
        OK(wb_record_check(m, &r, false));
    }
}

/* A file that does not say the rate is of a model that does; one that says another is not. What one file of a
 * dump says is so of all. */
static void test_the_rate_of_files(void **state) {
    place *p = *state;
    wb_route_model with = p->f.model, without = with, other = with;
    wb_dump_writer *w = NULL;
    wb_dump *d = NULL;
    char path[128];
    /* Cells of nothing, which no indexer chooses of something. */
    uint32_t counts[4] = {0}, tokens[4] = {0};
    uint64_t ends[4] = {0};
    wb_indexer_rows run = {1, 2, counts, ends, NULL};
    wb_record r = {.rid = "x", .prompt_len = 2, .n_tokens = 4, .tokens = tokens, .indexer = &run};
    with.indexer_rate = 2;
    without.indexer_rate = 0;
    other.indexer_rate = 3;
    OK(wb_route_model_match(&with, &without));
    OK(wb_route_model_match(&without, &with));
    assert_int_equal(wb_route_model_match(&with, &other), WB_MISMATCH);
    assert_non_null(strstr(wb_error_message(), "model indexer_rate: expected 2, found 3"));
    for (int i = 0; i < 3; i++) {
        const wb_route_model *models[] = {&without, &with, &other};
        snprintf(path, sizeof path, "%s/files-%d.wbr", p->directory, i);
        OK(wb_dump_create(path, models[i], NULL, &w));
        r.rid = (const char *[]){"x", "y", "z"}[i];
        assert_int_equal(wb_dump_append(w, &r), i == 0 ? WB_OK : WB_INVALID_ARGUMENT);
        OK(wb_dump_finish(w));
        if (i == 0) {
            wb_record found;
            OK(wb_dump_open(path, &d));
            assert_int_equal(wb_dump_model(d)->indexer_rate, 0);
            OK(wb_dump_record(d, 0, &found));
            wb_dump_close(d);
        }
        const wb_status opened = wb_dump_open(p->directory, &d);
        if (i == 2) {
            assert_int_equal(opened, WB_MISMATCH);
            continue;
        }
        OK(opened);
        assert_int_equal(wb_dump_model(d)->indexer_rate, i == 0 ? 0 : 2);
        wb_record found;
        assert_int_equal(wb_dump_record(d, 0, &found), i == 0 ? WB_OK : WB_CORRUPT);
        if (i > 0)
            assert_non_null(strstr(wb_error_message(), "position 1, model layer 0: expected a count of 1"));
        wb_dump_close(d);
        d = NULL;
    }
}

static void test_models_that_cannot_be(void **state) {
    place *p = *state;
    fixture_model *f = &p->f;
    wb_route_model before = f->model;
    OK(wb_route_model_check(&f->model));
    f->indexer_source[2] = 1;
    assert_int_equal(wb_route_model_check(&f->model), WB_INVALID_ARGUMENT);
    assert_non_null(strstr(wb_error_message(), "indexer_source[2]: expected layer 2, or one before it"));
    f->indexer_source[2] = 3;
    assert_int_equal(wb_route_model_check(&f->model), WB_INVALID_ARGUMENT);
    f->indexer_source[2] = 2;
    f->indexer_layers[2] = 1;
    assert_int_equal(wb_route_model_check(&f->model), WB_INVALID_ARGUMENT);
    assert_non_null(strstr(wb_error_message(), "indexer_layers[2]: expected ascending and < 4, found 1"));
    f->indexer_layers[2] = 2;
    f->model.indexer_k = 0;
    assert_int_equal(wb_route_model_check(&f->model), WB_INVALID_ARGUMENT);
    assert_non_null(strstr(wb_error_message(), "indexer_k"));
    f->model = before;
    f->model.indexer_k++;
    OK(wb_route_model_check(&f->model));
    assert_int_equal(wb_route_model_match(&before, &f->model), WB_MISMATCH);
    f->model = before;
    f->model.indexer_rate = (1u << 30) + 1;
    assert_int_equal(wb_route_model_check(&f->model), WB_INVALID_ARGUMENT);
    assert_non_null(strstr(wb_error_message(), "indexer_rate: expected 0..1073741824, and 0 without"));
    f->model.n_indexer_layers = f->model.indexer_k = 0;
    f->model.indexer_rate = 1;
    assert_int_equal(wb_route_model_check(&f->model), WB_INVALID_ARGUMENT);
    f->model.indexer_rate = 0;
    OK(wb_route_model_check(&f->model));
    assert_int_equal(wb_route_model_match(&before, &f->model), WB_MISMATCH);
    f->model = before;
}

/* ---- size --------------------------------------------------------------------------------------- */

/* A prompt that is shorter than what an indexer may choose takes two bytes a cell, not four a position; where
 * it chooses 64 of up to 1000 the positions take at most a byte and a half each. */
static void test_bytes_of_a_cell(void **state) {
    enum { TOKENS = 1001, K = 64 };
    place *p = *state;
    fixture_model_index(&p->f, K);
    p->f.model.indexer_rate = 1;
    const size_t columns = wb_indexer_columns(&p->f.model), cells = (TOKENS - 1) * columns;
    fixture_record r;
    wb_dump_writer *w = NULL;
    wb_dump *d = NULL;
    wb_dump_entry e;
    fixture_record_init(&r, &p->f.model, &p->rng, "long", 3, TOKENS, 0, 0, false);
    fixture_record_index(&r, &p->f.model, &p->rng, 0);
    for (int sparse = 0; sparse < 2; sparse++) {
        uint64_t at = 0;
        for (size_t c = 0; c < cells; c++) {
            const uint32_t seen = (uint32_t)(c / columns) + 1, count = seen < K ? seen : K;
            r.counts[c] = count;
            for (uint32_t i = 0; sparse && i < count; i++)
                r.positions[at++] = i * (seen / count) + fixture_below(&p->rng, seen / count);
            r.ends[c] = at;
        }
        unlink(p->path);
        OK(wb_dump_create(p->path, &p->f.model, NULL, &w));
        OK(wb_dump_append(w, &r.record));
        OK(wb_dump_finish(w));
        OK(wb_dump_open(p->path, &d));
        OK(wb_dump_get_entry(d, 0, &e));
        const double per_cell = (double)(e.bytes - 8 * TOKENS) / (double)cells;
        print_message("%s: %.1f bytes a cell, as u32 %zu\n", sparse ? "64 of 1000" : "all", per_cell,
                      4 * (size_t)K);
        assert_true(per_cell < (sparse ? 1.5 * K : 3));
        wb_dump_close(d);
    }
    fixture_record_free(&r);
}

#define WITH_PLACE(test) cmocka_unit_test_setup_teardown(test, setup, teardown)

int main(int argc, char **argv) {
    seed = test_seed(argc, argv);
    printf("seed %" PRIu64 "\n", seed);
    const struct CMUnitTest tests[] = {
        WITH_PLACE(test_round_trip),
        WITH_PLACE(test_copy),
        WITH_PLACE(test_damage),
        WITH_PLACE(test_lists_are_choices),
        WITH_PLACE(test_records_that_cannot_be),
        WITH_PLACE(test_records_at_a_rate),
        WITH_PLACE(test_the_rate_of_files),
        WITH_PLACE(test_models_that_cannot_be),
        WITH_PLACE(test_bytes_of_a_cell),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
