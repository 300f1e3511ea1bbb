/* test_indexer_requests.c - requests that ask what indexers chose: how large their records are in a dump,
 * which come back as they were; who may ask, from which token on, and what such a request takes of the
 * prefix cache.
 * usage: test_indexer_requests [SEED] */
#include "engine.h"
#include "indexer_world.h"
#include "support/temp_files.h"

/* What no test changes. */
static world w;

static int open_group(void **state) {
    (void)state;
    w = open_world(false, WB_F32);
    return 0;
}

static int close_group(void **state) {
    (void)state;
    close_world(&w);
    return 0;
}

/* ---- dumps ----------------------------------------------------------------------------------------- */

/* Bytes of a dump of all records, with what indexers chose or without; which comes back as it was. */
static uint64_t dump_bytes(const char *folder, bool with) {
    const wb_route_model *routes = wb_model_routes(w.r.model);
    wb_dump_writer *writer = NULL;
    wb_dump *dump = NULL;
    wb_dump_info info;
    char path[512];
    snprintf(path, sizeof path, "%s/%s.wbr", folder, with ? "with" : "without");
    assert_ok(wb_dump_create(path, routes, NULL, &writer));
    for (int i = 0; i < REQUESTS; i++) {
        wb_record record = w.done[i]->record;
        if (!with) record.indexer = NULL;
        assert_ok(wb_dump_append(writer, &record));
    }
    assert_ok(wb_dump_finish(writer));
    assert_ok(wb_dump_verify(path, NULL, NULL, &info));
    assert_ok(wb_dump_open(path, &dump));
    assert_ok(wb_route_model_match(routes, wb_dump_model(dump)));
    for (int i = 0; i < REQUESTS; i++) {
        wb_record record;
        assert_ok(wb_dump_find(dump, w.done[i]->record.rid, &record));
        const char *what =
            indexer_difference(routes, with ? w.done[i]->record.indexer : NULL, record.indexer);
        if (what) fail_msg("request %d: %s differ", i, what);
    }
    wb_dump_close(dump);
    return info.bytes;
}

/* Sorted and as differences: of each cell its count, and a byte for an entry; of a choice of all no entry. */
static void test_a_dump_has_them_in_few_bytes(void **state) {
    (void)state;
    const temp_path folder = temp_dir();
    const uint32_t S = wb_indexer_columns(wb_model_routes(w.r.model));
    uint64_t cells = 0, entries = 0;
    for (int i = 0; i < REQUESTS; i++) {
        const wb_indexer_rows *rows = w.done[i]->record.indexer;
        if (!rows) continue;
        cells += (uint64_t)rows->rows * S;
        entries += rows->ends[(size_t)rows->rows * S - 1];
    }
    const uint64_t with = dump_bytes(folder.text, true), without = dump_bytes(folder.text, false);
    print_message("%" PRIu64 " cells with %" PRIu64 " entries in %" PRIu64 " bytes\n", cells, entries,
                  with - without);
    assert_true(entries > 100 && with > without);
    assert_true(with - without <= cells + entries + REQUESTS * 64);
    temp_remove(folder);
}

/* ---- requests ------------------------------------------------------------------------------------- */

static void test_who_may_ask(void **state) {
    (void)state;
    wb_engine_options options = wb_engine_options_default();
    wb_engine *engine = NULL;
    assert_ok(wb_engine_open(w.r.model, &options, &engine));
    assert_int_equal(WB_INVALID_ARGUMENT, wb_engine_submit(engine, ask_request(&w.asks[0])));
    assert_message("request r0: return_indexer: expected an engine with the option indexer, found it off");
    assert_int_equal(0, engine->cells.listed.bytes); /* nor is there memory */
    wb_engine_close(engine);
    rig plain = open_rig();
    options.indexer = true;
    assert_ok(wb_engine_open(plain.model, &options, &engine));
    assert_int_equal(WB_INVALID_ARGUMENT, wb_engine_submit(engine, ask_request(&w.asks[0])));
    assert_message("request r0: return_indexer: the model has no layer with an indexer");
    wb_engine_close(engine);
    rig_close(&plain);

    /* What a record does not say cannot be gone on with, nor what no indexer chose. */
    wb_record earlier = w.done[0]->record;
    wb_indexer_rows rows = *earlier.indexer;
    ask a = ask_fixed("next", 2, 3);
    a.request.return_indexer = true;
    a.request.continues = &earlier;
    engine = open_engine(&w, 16, false);
    earlier.indexer = NULL;
    assert_int_equal(WB_INVALID_ARGUMENT, wb_engine_submit(engine, ask_request(&a)));
    assert_message("found at position 0, indexer 0: no choice of its indexers");
    rows.rows--;
    earlier.indexer = &rows;
    assert_int_equal(WB_INVALID_ARGUMENT, wb_engine_submit(engine, ask_request(&a)));
    uint32_t counts[2 * 128];
    rows.rows++;
    memcpy(counts, rows.counts, rows.rows * 2 * sizeof *counts);
    counts[2 * 4 + 1]--; /* position 4 sees one entry */
    rows.counts = counts;
    assert_int_equal(WB_INVALID_ARGUMENT, wb_engine_submit(engine, ask_request(&a)));
    assert_message("request next: it continues: record r0: indexer: position 4, model layer 3: "
                   "expected a count of 1, found 0");
    rows.counts = w.done[0]->record.indexer->counts;
    wb_completion *c = complete(engine, &a);
    assert_record_good(w.r.model, c);
    assert_int_equal(c->record.n_tokens - 1, c->record.indexer->rows);
    wb_completion_free(c);
    wb_engine_close(engine);
}

/* What is returned begins at routes_start, where routes are too, and is what it is from the start. */
static void test_rule_12_from_routes_start_on(void **state) {
    (void)state;
    const wb_route_model *routes = wb_model_routes(w.r.model);
    wb_engine *engine = open_engine(&w, 9, false);
    const wb_record *whole = &w.done[0]->record;
    ask a = w.asks[0];
    a.request.routes_start = 17;
    wb_completion *c = complete(engine, &a);
    assert_int_equal(17, c->record.indexer->start);
    assert_int_equal(17, c->record.routes[0].start);
    assert_record_good(w.r.model, c);
    for (uint32_t t = 17; t < whole->n_tokens - 1; t++)
        for (uint32_t column = 0; column < 2; column++) {
            wb_indexer_choice x, y;
            assert_true(wb_indexer_at(routes, whole->indexer, t, column, &x));
            assert_true(wb_indexer_at(routes, c->record.indexer, t, column, &y));
            assert_true(x.count == y.count && wb_indexer_common(x, y) == x.count);
        }
    wb_completion_free(c);
    wb_engine_close(engine);
}

/* Three tokens to an entry and two entries: the first 8 tokens choose all that there is. Hits end there,
 * where a longer prompt has a snapshot too, and none ends behind; the request is what it is alone. */
static void test_rule_7_hits_within_the_first_tokens_alone(void **state) {
    (void)state;
    for (uint32_t n = 8; n <= 14; n++) {
        wb_engine *engine = open_engine(&w, 64, true);
        ask first = ask_fixed("first", n, 2), second = ask_fixed("second", n, 9), third = second;
        snprintf(third.rid, sizeof third.rid, "third");
        first.request.return_indexer = second.request.return_indexer = true;
        wb_completion *alone = run_alone(w.r.model, &second);
        wb_completion_free(complete(engine, &first));
        wb_completion *c = complete(engine, &second);
        assert_same(w.r.model, alone, c);
        const uint64_t taken = wb_engine_get_stats(engine).taken_over_tokens;
        assert_int_equal((n - 1) / 4 * 4 <= 8 ? (n - 1) / 4 * 4 : 8, taken);
        wb_completion_free(c);
        wb_completion_free(alone);
        /* One that does not ask takes what there is. */
        wb_completion_free(complete(engine, &third));
        assert_int_equal((n - 1) / 4 * 4, wb_engine_get_stats(engine).taken_over_tokens - taken);
        wb_engine_close(engine);
    }
}

int main(int argc, char **argv) {
    take_seed(argc, argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_dump_has_them_in_few_bytes),
        cmocka_unit_test(test_who_may_ask),
        cmocka_unit_test(test_rule_12_from_routes_start_on),
        cmocka_unit_test(test_rule_7_hits_within_the_first_tokens_alone),
    };
    return cmocka_run_group_tests(tests, open_group, close_group);
}
