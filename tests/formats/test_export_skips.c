/* test_export_skips.c - records that a layout has no place for are left out where the caller says so, and the
 * others are as they were. usage: test_export_skips [SEED] */
#include "export_fixture.h"

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

/* Of the records 1 has no rows, and a row of 2 is missing. */
static void spoil(export_place *p, uint8_t *valid) {
    wb_record *bare = &p->records[1].record;
    bare->n_routes = 0;
    bare->finish = WB_FINISH_ABORT;
    valid[0] = 0xf7;
    p->records[2].routes[0].valid = valid;
    export_write(p);
}

/* Those that are not left out are read back, in order. */
static void assert_kept(const export_place *p, wb_import_layout from, const bool is_kept[EXPORT_N]) {
    wb_import *import = NULL;
    wb_record r;
    bool found = false;
    assert_int_equal(wb_import_open("exported", p->bytes, p->size, from, &p->f.model, &import), WB_OK);
    for (uint32_t i = 0; i < EXPORT_N; i++) {
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

static void leave_out(export_place *p, wb_export_layout to, wb_import_layout from, bool bare, bool holed) {
    const bool is_kept[EXPORT_N] = {true, !bare, !holed, true, true, true, true, true, true};
    static const char *const parts[] = {"expected rows, found none", "expected a row"};
    const bool is_refused[] = {bare, holed};
    skipping s = {0};
    p->size = 0;
    const wb_status status = wb_export_dump(p->dump, to, export_take, p, leave, NULL, &s);
    if (status != WB_OK) fail_msg("seed %" PRIu64 ": %s", export_seed, wb_error_message());
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
    export_place p;
    uint8_t valid[8];
    fixture_rng rng = {export_seed};
    memset(valid, 0xff, sizeof valid);
    export_open(&p, &rng, 64, 4, false, EXPORT_PLAIN);
    spoil(&p, valid);
    export_refused(&p, WB_EXPORT_VERL, WB_UNSUPPORTED, "record r1");
    leave_out(&p, WB_EXPORT_SGLANG, WB_IMPORT_SGLANG, false, false);
    leave_out(&p, WB_EXPORT_VLLM, WB_IMPORT_VLLM, false, true);
    leave_out(&p, WB_EXPORT_VERL, WB_IMPORT_VERL, true, false);
    export_close(&p);
}

static void test_nothing_is_left(void **unused) {
    (void)unused;
    export_place p;
    skipping s = {0};
    fixture_record f;
    fixture_rng rng = {export_seed};
    wb_dump_writer *writer = NULL;
    export_open(&p, &rng, 64, 4, false, EXPORT_PLAIN);
    wb_dump_close(p.dump);
    unlink(p.path);
    fixture_record_init(&f, &p.f.model, &rng, "bare", 3, 8, 0, 0, false);
    assert_int_equal(wb_dump_create(p.path, &p.f.model, NULL, &writer), WB_OK);
    assert_int_equal(wb_dump_append(writer, &f.record), WB_OK);
    assert_int_equal(wb_dump_finish(writer), WB_OK);
    assert_int_equal(wb_dump_open(p.path, &p.dump), WB_OK);
    assert_int_equal(wb_export_dump(p.dump, WB_EXPORT_VERL, export_take, &p, leave, NULL, &s), WB_NOT_FOUND);
    assert_int_equal(s.n, 1);
    assert_int_equal(p.size, 0);
    fixture_record_free(&f);
    export_close(&p);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refused_records_are_left_out),
        cmocka_unit_test(test_nothing_is_left),
    };
    if (argc > 1) export_seed = strtoull(argv[1], NULL, 10);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
