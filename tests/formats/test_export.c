/* test_export.c - what is exported and imported again is the same record: random records, each layout's own
 * limits apart; and what a layout has no place for is refused. usage: test_export [SEED] */
#include "export_fixture.h"

/* The record as the layout can say it. */
static wb_record said(const export_place *p, uint32_t i, wb_export_layout layout) {
    wb_record r = p->records[i].record;
    const bool lines = layout == WB_EXPORT_SGLANG || layout == WB_EXPORT_VLLM;
    if (!wb_export_keeps_indexer(layout)) r.indexer = NULL;
    if (!lines) {
        r.sampling = NULL;
        r.mask_ids = r.mask_ends = NULL;
    }
    if (layout != WB_EXPORT_VERL) return r;
    r.sampling_logprobs = NULL;
    r.logprobs = NULL; /* a batch has them where all records do */
    r.n_spans = 0;     /* and versions where a record has one */
    return r;
}

static void read_back(const export_place *p, wb_export_layout layout, wb_import_layout back) {
    wb_import *import = NULL;
    wb_record found_record;
    bool found = false;
    assert_int_equal(wb_import_open("exported", p->bytes, p->size, back, &p->f.model, &import), WB_OK);
    for (uint32_t i = 0; i < EXPORT_N; i++) {
        const wb_record expected = said(p, i, layout);
        if (wb_import_next(import, &found_record, &found) != WB_OK)
            fail_msg("seed %" PRIu64 ": %s", export_seed, wb_error_message());
        assert_true(found);
        const char *difference = fixture_difference(&p->f.model, &expected, &found_record);
        if (difference)
            fail_msg("seed %" PRIu64 ", %s, record %u: another %s", export_seed,
                     wb_export_layout_name(layout), i, difference);
    }
    assert_int_equal(wb_import_next(import, &found_record, &found), WB_OK);
    assert_false(found);
    wb_import_close(import);
}

static void round_trip(wb_export_layout layout, wb_import_layout back, uint32_t E, uint32_t K, bool holes,
                       export_kind kind, fixture_rng *rng) {
    export_place p;
    export_open(&p, rng, E, K, holes, kind);
    if (export_to(&p, layout) != WB_OK) fail_msg("%s", wb_error_message());
    read_back(&p, layout, back);
    export_close(&p);
}

static void test_round_trip(void **unused) {
    (void)unused;
    static const struct {
        wb_export_layout to;
        wb_import_layout from;
        bool holes;
    } layouts[] = {{WB_EXPORT_SGLANG, WB_IMPORT_SGLANG, true},
                   {WB_EXPORT_VLLM, WB_IMPORT_VLLM, false},
                   {WB_EXPORT_VERL, WB_IMPORT_VERL, true},
                   {WB_EXPORT_SLIME, WB_IMPORT_SLIME, true}};
    fixture_rng rng = {export_seed};
    print_message("seed %" PRIu64 "\n", export_seed);
    for (size_t i = 0; i < sizeof layouts / sizeof layouts[0]; i++) {
        const wb_export_layout to = layouts[i].to;
        const wb_import_layout from = layouts[i].from;
        const bool holes = layouts[i].holes;
        round_trip(to, from, 64, 4, holes, EXPORT_PLAIN, &rng);
        round_trip(to, from, 256, 8, holes, EXPORT_PLAIN, &rng);
        round_trip(to, from, 300, 3, holes, EXPORT_PLAIN, &rng);
        round_trip(to, from, 256, 4, holes, EXPORT_INDEXED, &rng);
        if (to == WB_EXPORT_VLLM) continue;
        round_trip(to, from, 64, 4, holes, EXPORT_DIFFERING, &rng);
        round_trip(to, from, 300, 3, holes, EXPORT_DIFFERING, &rng);
    }
}

/* A record whose rows begin in the prompt, and with them what indexers chose. */
static void test_indexer_rows_that_begin_later(void **unused) {
    (void)unused;
    export_place p;
    fixture_rng rng = {export_seed};
    export_open(&p, &rng, 64, 4, false, EXPORT_INDEXED);
    fixture_record *f = &p.records[1];
    f->routes[0].ids = f->ids + 2 * wb_route_row_bytes(&p.f.model);
    f->routes[0].start = 2;
    f->routes[0].rows = f->record.n_tokens - 3;
    fixture_record_index(f, &p.f.model, &rng, 2);
    export_write(&p);
    assert_int_equal(export_to(&p, WB_EXPORT_SGLANG), WB_OK);
    read_back(&p, WB_EXPORT_SGLANG, WB_IMPORT_SGLANG);
    export_refused(&p, WB_EXPORT_SLIME, WB_UNSUPPORTED, "expected what indexers chose at positions 0..");
    export_close(&p);
}

/* A batch has log-probabilities and a weight version where all its records have them. */
static void test_verl_has_logprobs_where_all_do(void **unused) {
    (void)unused;
    export_place p;
    wb_import *import = NULL;
    fixture_rng rng = {export_seed};
    export_open(&p, &rng, 64, 4, false, EXPORT_PLAIN);
    wb_dump_close(p.dump);
    unlink(p.path);
    wb_dump_writer *writer = NULL;
    assert_int_equal(wb_dump_create(p.path, &p.f.model, NULL, &writer), WB_OK);
    for (uint32_t i = 0; i < EXPORT_N; i++) {
        fixture_record *f = &p.records[i];
        f->spans[0] = (wb_span){0, f->record.n_tokens, 40 + i};
        f->record.logprobs = f->logprobs;
        f->record.n_spans = 1;
        f->record.sampling = NULL;
        f->record.sampling_logprobs = NULL;
        f->record.mask_ids = f->record.mask_ends = NULL;
        assert_int_equal(wb_dump_append(writer, &f->record), WB_OK);
    }
    assert_int_equal(wb_dump_finish(writer), WB_OK);
    assert_int_equal(wb_dump_open(p.path, &p.dump), WB_OK);
    assert_int_equal(export_to(&p, WB_EXPORT_VERL), WB_OK);
    assert_int_equal(wb_import_open("exported", p.bytes, p.size, WB_IMPORT_VERL, &p.f.model, &import), WB_OK);
    for (uint32_t i = 0; i < EXPORT_N; i++) {
        wb_record r;
        bool found = false;
        if (wb_import_next(import, &r, &found) != WB_OK) fail_msg("%s", wb_error_message());
        assert_null(fixture_difference(&p.f.model, &p.records[i].record, &r));
    }
    wb_import_close(import);
    export_close(&p);
}

/* ---- what has no place ---------------------------------------------------------------------------- */

static void test_what_has_no_place(void **unused) {
    (void)unused;
    export_place p;
    fixture_rng rng = {export_seed};
    wb_dump_writer *writer = NULL;
    export_open(&p, &rng, 64, 4, false, EXPORT_PLAIN);
    wb_dump_close(p.dump);
    unlink(p.path);
    /* One record of 8 tokens whose row 5, of the fifth token, is missing. */
    fixture_record f;
    uint8_t valid[1] = {0xdf};
    fixture_record_init(&f, &p.f.model, &rng, "holed", 3, 8, 0, 1, false);
    f.routes[0].valid = valid;
    assert_int_equal(wb_dump_create(p.path, &p.f.model, NULL, &writer), WB_OK);
    assert_int_equal(wb_dump_append(writer, &f.record), WB_OK);
    assert_int_equal(wb_dump_finish(writer), WB_OK);
    assert_int_equal(wb_dump_open(p.path, &p.dump), WB_OK);
    export_refused(&p, WB_EXPORT_VLLM, WB_UNSUPPORTED, "record holed: position 5: expected a row");
    export_refused(&p, (wb_export_layout)9, WB_INVALID_ARGUMENT, "layout 9 is none");
    assert_int_equal(export_to(&p, WB_EXPORT_SGLANG), WB_OK);
    fixture_record_free(&f);
    export_close(&p);
}

static void test_numbers_beyond_signed_integers_have_no_place(void **unused) {
    (void)unused;
    export_place p;
    fixture_rng rng = {export_seed};
    export_open(&p, &rng, 64, 4, false, EXPORT_PLAIN);
    for (wb_export_layout layout = WB_EXPORT_NPZ; layout <= WB_EXPORT_SLIME; layout++) {
        p.records[2].record.group = INT64_MAX;
        export_write(&p);
        assert_int_equal(export_to(&p, layout), WB_OK);
        p.records[2].record.group++;
        export_write(&p);
        export_refused(&p, layout, WB_UNSUPPORTED,
                       "record r2 \"\\ \xc3\xa4: expected a group of at most 9223372036854775807, found "
                       "9223372036854775808");
    }
    p.records[2].record.group = 0;
    ((wb_span *)p.records[2].record.spans)[0].weight_version = UINT64_MAX;
    export_write(&p);
    for (wb_export_layout layout = WB_EXPORT_NPZ; layout <= WB_EXPORT_SLIME; layout++)
        export_refused(&p, layout, WB_UNSUPPORTED, "span 0: expected a weight version of at most");
    export_close(&p);
}

/* No layout can say that a choice of an indexer is not known. */
static void test_unknown_choices_have_no_place(void **unused) {
    (void)unused;
    export_place p;
    fixture_rng rng = {export_seed};
    export_open(&p, &rng, 64, 4, false, EXPORT_INDEXED);
    p.records[3].indexer.rows--; /* of the last row it is not known */
    export_write(&p);
    export_refused(&p, WB_EXPORT_SGLANG, WB_UNSUPPORTED,
                   "record r3 \"\\ \xc3\xa4: expected what indexers chose");
    export_refused(&p, WB_EXPORT_SLIME, WB_UNSUPPORTED,
                   "record r3 \"\\ \xc3\xa4: expected what indexers chose");
    assert_int_equal(export_to(&p, WB_EXPORT_NPZ), WB_OK);
    export_close(&p);
}

static void test_unsigned_ids_have_no_filler(void **unused) {
    (void)unused;
    export_place p;
    fixture_rng rng = {export_seed};
    export_open(&p, &rng, 64, 4, false, EXPORT_DIFFERING);
    export_refused(&p, WB_EXPORT_VLLM, WB_UNSUPPORTED,
                   "MoE layer 1 (model layer 2) has 3 choices and others up to 4: vLLM's layout");
    assert_int_equal(export_to(&p, WB_EXPORT_NPZ), WB_OK);
    export_close(&p);
}

static wb_status full(void *ctx, const void *bytes, size_t size) {
    (void)bytes;
    size_t *left = ctx;
    if (size > *left) return wb_fail(WB_IO, "the disk is full");
    *left -= size;
    return WB_OK;
}

static void test_a_full_disk_is_said(void **unused) {
    (void)unused;
    export_place p;
    fixture_rng rng = {export_seed};
    export_open(&p, &rng, 64, 4, false, EXPORT_PLAIN);
    for (int layout = 0; layout < 5; layout++)
        for (size_t room = 0; room < 3000; room += 611) {
            size_t left = room;
            assert_int_equal(wb_export_dump(p.dump, (wb_export_layout)layout, full, &left, NULL, NULL, NULL),
                             WB_IO);
            assert_string_equal(wb_error_message(), "the disk is full");
        }
    export_close(&p);
}

static void test_layouts(void **unused) {
    (void)unused;
    static const char *const names[] = {"npz", "sglang", "vllm", "verl", "slime"};
    wb_export_layout layout = WB_EXPORT_NPZ;
    for (size_t i = 0; i < 5; i++) {
        assert_int_equal(wb_export_layout_find(names[i], &layout), WB_OK);
        assert_int_equal(layout, i);
        assert_string_equal(wb_export_layout_name(layout), names[i]);
    }
    assert_int_equal(wb_export_layout_find("npy", &layout), WB_INVALID_ARGUMENT);
    assert_non_null(strstr(wb_error_message(), "expected one of npz sglang vllm verl slime, found npy"));
    assert_string_equal(wb_export_layout_name((wb_export_layout)5), "unknown");
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_layouts),
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_verl_has_logprobs_where_all_do),
        cmocka_unit_test(test_indexer_rows_that_begin_later),
        cmocka_unit_test(test_what_has_no_place),
        cmocka_unit_test(test_numbers_beyond_signed_integers_have_no_place),
        cmocka_unit_test(test_unknown_choices_have_no_place),
        cmocka_unit_test(test_unsigned_ids_have_no_filler),
        cmocka_unit_test(test_a_full_disk_is_said),
    };
    if (argc > 1) export_seed = strtoull(argv[1], NULL, 10);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
