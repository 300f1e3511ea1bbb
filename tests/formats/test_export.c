/* test_export.c - what is exported and imported again is the same record: random records, each layout's own
 * limits apart; and what a layout has no place for is refused. usage: test_export [SEED] */
#include "dump_fixture.h"
#include "wb_export.h"
#include "wb_import.h"

#include <inttypes.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
// clang-format off
#include <cmocka.h>
// clang-format on

static uint64_t seed = 35;

enum { N = 9 };

typedef struct place {
    char directory[64], path[96];
    fixture_model f;
    fixture_record records[N];
    wb_dump *dump;
    uint8_t *bytes; /* what was exported */
    size_t size, room;
} place;

/* Records of different lengths; `holes`: runs with gaps and invalid rows. */
static void make_records(place *p, fixture_rng *rng, bool holes) {
    for (uint32_t i = 0; i < N; i++) {
        char rid[32];
        const uint32_t prompt = 2 + fixture_below(rng, 8), n = prompt + 4 + fixture_below(rng, 12);
        const uint32_t start = i % 3 == 1 ? fixture_below(rng, prompt) : 0;
        snprintf(rid, sizeof rid, "r%u \"\\ \xc3\xa4", i);
        fixture_record_init(&p->records[i], &p->f.model, rng, rid, prompt, n, start, holes ? i % 3 + 1 : 1,
                            holes && i % 2);
        p->records[i].bits[0] |= 1; /* a batch of verl's has a row of each record */
        if (i % 4 == 1) fixture_record_sample(&p->records[i], rng, i % 8 == 1);
        p->records[i].record.group = i / 3;
        if (i % 4 == 2) p->records[i].record.logprobs = NULL;
        if (i % 4 == 3) p->records[i].record.n_spans = 0;
    }
}

static void open_place(place *p, fixture_rng *rng, uint32_t E, uint32_t K, bool holes) {
    wb_dump_writer *writer = NULL;
    memset(p, 0, sizeof *p);
    fixture_directory(p->directory);
    snprintf(p->path, sizeof p->path, "%s/run.wbr", p->directory);
    fixture_model_init(&p->f, 4, E, K);
    make_records(p, rng, holes);
    assert_int_equal(wb_dump_create(p->path, &p->f.model, NULL, &writer), WB_OK);
    for (uint32_t i = 0; i < N; i++) assert_int_equal(wb_dump_append(writer, &p->records[i].record), WB_OK);
    assert_int_equal(wb_dump_finish(writer), WB_OK);
    assert_int_equal(wb_dump_open(p->path, &p->dump), WB_OK);
}

static void close_place(place *p) {
    wb_dump_close(p->dump);
    fixture_remove(p->directory);
    for (uint32_t i = 0; i < N; i++) fixture_record_free(&p->records[i]);
    free(p->bytes);
}

static wb_status take(void *ctx, const void *bytes, size_t size) {
    place *p = ctx;
    if (p->size + size > p->room) {
        p->room = 2 * (p->size + size);
        p->bytes = realloc(p->bytes, p->room);
        if (!p->bytes) abort();
    }
    memcpy(p->bytes + p->size, bytes, size);
    p->size += size;
    return WB_OK;
}

static wb_status export_to(place *p, wb_export_layout layout) {
    p->size = 0;
    return wb_export_dump(p->dump, layout, take, p, NULL, NULL, NULL);
}

/* The record as the layout can say it. */
static wb_record said(const place *p, uint32_t i, wb_export_layout layout) {
    wb_record r = p->records[i].record;
    const bool lines = layout == WB_EXPORT_SGLANG || layout == WB_EXPORT_VLLM;
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

static void round_trip(wb_export_layout layout, wb_import_layout back, uint32_t E, uint32_t K, bool holes,
                       fixture_rng *rng) {
    place p;
    wb_import *import = NULL;
    wb_record found_record;
    bool found = false;
    open_place(&p, rng, E, K, holes);
    if (export_to(&p, layout) != WB_OK) fail_msg("%s", wb_error_message());
    assert_int_equal(wb_import_open("exported", p.bytes, p.size, back, &p.f.model, &import), WB_OK);
    for (uint32_t i = 0; i < N; i++) {
        const wb_record expected = said(&p, i, layout);
        if (wb_import_next(import, &found_record, &found) != WB_OK)
            fail_msg("seed %" PRIu64 ": %s", seed, wb_error_message());
        assert_true(found);
        const char *difference = fixture_difference(&p.f.model, &expected, &found_record);
        if (difference)
            fail_msg("seed %" PRIu64 ", %s, record %u: another %s", seed, wb_export_layout_name(layout), i,
                     difference);
    }
    assert_int_equal(wb_import_next(import, &found_record, &found), WB_OK);
    assert_false(found);
    wb_import_close(import);
    close_place(&p);
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
    fixture_rng rng = {seed};
    print_message("seed %" PRIu64 "\n", seed);
    for (size_t i = 0; i < sizeof layouts / sizeof layouts[0]; i++) {
        round_trip(layouts[i].to, layouts[i].from, 64, 4, layouts[i].holes, &rng);
        round_trip(layouts[i].to, layouts[i].from, 256, 8, layouts[i].holes, &rng);
        round_trip(layouts[i].to, layouts[i].from, 300, 3, layouts[i].holes, &rng);
    }
}

/* A batch has log-probabilities and a weight version where all its records have them. */
static void test_verl_has_logprobs_where_all_do(void **unused) {
    (void)unused;
    place p;
    wb_import *import = NULL;
    fixture_rng rng = {seed};
    open_place(&p, &rng, 64, 4, false);
    wb_dump_close(p.dump);
    unlink(p.path);
    wb_dump_writer *writer = NULL;
    assert_int_equal(wb_dump_create(p.path, &p.f.model, NULL, &writer), WB_OK);
    for (uint32_t i = 0; i < N; i++) {
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
    for (uint32_t i = 0; i < N; i++) {
        wb_record r;
        bool found = false;
        if (wb_import_next(import, &r, &found) != WB_OK) fail_msg("%s", wb_error_message());
        assert_null(fixture_difference(&p.f.model, &p.records[i].record, &r));
    }
    wb_import_close(import);
    close_place(&p);
}

/* ---- what has no place ---------------------------------------------------------------------------- */

static void refused(place *p, wb_export_layout layout, wb_status expected, const char *part) {
    const wb_status status = export_to(p, layout);
    if (status != expected || !strstr(wb_error_message(), part))
        fail_msg("seed %" PRIu64 ": expected %d with '%s', found %d: %s", seed, (int)expected, part,
                 (int)status, wb_error_message());
}

static void test_what_has_no_place(void **unused) {
    (void)unused;
    place p;
    fixture_rng rng = {seed};
    wb_dump_writer *writer = NULL;
    open_place(&p, &rng, 64, 4, false);
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
    refused(&p, WB_EXPORT_VLLM, WB_UNSUPPORTED, "record holed: position 5: expected a row");
    refused(&p, (wb_export_layout)9, WB_INVALID_ARGUMENT, "layout 9 is none");
    assert_int_equal(export_to(&p, WB_EXPORT_SGLANG), WB_OK);
    fixture_record_free(&f);
    close_place(&p);
}

/* ---- what is left out ----------------------------------------------------------------------------- */

typedef struct skipping {
    uint32_t n;
    char messages[4][256];
} skipping;

static bool leave(void *ctx, wb_status status) {
    skipping *s = ctx;
    assert_true(status == WB_UNSUPPORTED);
    assert_true(s->n < 4);
    snprintf(s->messages[s->n++], sizeof s->messages[0], "%s", wb_error_message());
    return true;
}

/* Of the N records 1 has no rows, and a row of 2 is missing. */
static void spoil(place *p, uint8_t *valid) {
    wb_dump_writer *writer = NULL;
    wb_record *bare = &p->records[1].record;
    bare->n_routes = 0;
    bare->finish = WB_FINISH_ABORT;
    valid[0] = 0xf7;
    p->records[2].routes[0].valid = valid;
    wb_dump_close(p->dump);
    unlink(p->path);
    assert_int_equal(wb_dump_create(p->path, &p->f.model, NULL, &writer), WB_OK);
    for (uint32_t i = 0; i < N; i++) assert_int_equal(wb_dump_append(writer, &p->records[i].record), WB_OK);
    assert_int_equal(wb_dump_finish(writer), WB_OK);
    assert_int_equal(wb_dump_open(p->path, &p->dump), WB_OK);
}

/* Those that are not left out are read back, in order. */
static void assert_kept(const place *p, wb_import_layout from, const bool is_kept[N]) {
    wb_import *import = NULL;
    wb_record r;
    bool found = false;
    assert_int_equal(wb_import_open("exported", p->bytes, p->size, from, &p->f.model, &import), WB_OK);
    for (uint32_t i = 0; i < N; i++) {
        if (!is_kept[i]) continue;
        if (wb_import_next(import, &r, &found) != WB_OK) fail_msg("%s", wb_error_message());
        assert_true(found);
        assert_string_equal(r.rid, p->records[i].record.rid);
        assert_int_equal(wb_record_count_rows(&r), wb_record_count_rows(&p->records[i].record));
    }
    assert_int_equal(wb_import_next(import, &r, &found), WB_OK);
    assert_false(found);
    wb_import_close(import);
}

static void leave_out(place *p, wb_export_layout to, wb_import_layout from, bool bare, bool holed) {
    const bool is_kept[N] = {true, !bare, !holed, true, true, true, true, true, true};
    static const char *const parts[] = {"expected rows, found none", "expected a row"};
    const bool is_refused[] = {bare, holed};
    skipping s = {0};
    p->size = 0;
    const wb_status status = wb_export_dump(p->dump, to, take, p, leave, NULL, &s);
    if (status != WB_OK) fail_msg("seed %" PRIu64 ": %s", seed, wb_error_message());
    assert_int_equal(s.n, bare + holed);
    for (uint32_t i = 0, k = 0; i < 2; i++) {
        if (!is_refused[i]) continue;
        char rid[80];
        snprintf(rid, sizeof rid, "record %s: ", p->records[1 + i].record.rid);
        if (!strstr(s.messages[k], parts[i]) || !strstr(s.messages[k], rid)) fail_msg("%s", s.messages[k]);
        k++;
    }
    assert_kept(p, from, is_kept);
}

static void test_refused_records_are_left_out(void **unused) {
    (void)unused;
    place p;
    uint8_t valid[8];
    fixture_rng rng = {seed};
    memset(valid, 0xff, sizeof valid);
    open_place(&p, &rng, 64, 4, false);
    spoil(&p, valid);
    refused(&p, WB_EXPORT_VERL, WB_UNSUPPORTED, "record r1");
    leave_out(&p, WB_EXPORT_SGLANG, WB_IMPORT_SGLANG, false, false);
    leave_out(&p, WB_EXPORT_VLLM, WB_IMPORT_VLLM, false, true);
    leave_out(&p, WB_EXPORT_VERL, WB_IMPORT_VERL, true, false);
    close_place(&p);
}

static void test_nothing_is_left(void **unused) {
    (void)unused;
    place p;
    skipping s = {0};
    fixture_record f;
    fixture_rng rng = {seed};
    wb_dump_writer *writer = NULL;
    open_place(&p, &rng, 64, 4, false);
    wb_dump_close(p.dump);
    unlink(p.path);
    fixture_record_init(&f, &p.f.model, &rng, "bare", 3, 8, 0, 0, false);
    assert_int_equal(wb_dump_create(p.path, &p.f.model, NULL, &writer), WB_OK);
    assert_int_equal(wb_dump_append(writer, &f.record), WB_OK);
    assert_int_equal(wb_dump_finish(writer), WB_OK);
    assert_int_equal(wb_dump_open(p.path, &p.dump), WB_OK);
    assert_int_equal(wb_export_dump(p.dump, WB_EXPORT_VERL, take, &p, leave, NULL, &s), WB_NOT_FOUND);
    assert_int_equal(s.n, 1);
    assert_int_equal(p.size, 0);
    fixture_record_free(&f);
    close_place(&p);
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
    place p;
    fixture_rng rng = {seed};
    open_place(&p, &rng, 64, 4, false);
    for (int layout = 0; layout < 5; layout++)
        for (size_t room = 0; room < 3000; room += 611) {
            size_t left = room;
            assert_int_equal(wb_export_dump(p.dump, (wb_export_layout)layout, full, &left, NULL, NULL, NULL),
                             WB_IO);
            assert_string_equal(wb_error_message(), "the disk is full");
        }
    close_place(&p);
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
        cmocka_unit_test(test_what_has_no_place),
        cmocka_unit_test(test_refused_records_are_left_out),
        cmocka_unit_test(test_nothing_is_left),
        cmocka_unit_test(test_a_full_disk_is_said),
    };
    if (argc > 1) seed = strtoull(argv[1], NULL, 10);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
