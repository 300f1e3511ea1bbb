/* test_import_archive.c - an archive of as many numbered samples as a training step has: read in time that
 * grows with their number, and how far the import is, is said; one without routes ends nothing. */
#include "dump_fixture.h"
#include "wb_export.h"
#include "wb_import.h"

#include <time.h>

#include <setjmp.h>
#include <stdarg.h>
// clang-format off
#include <cmocka.h>
// clang-format on

enum { RECORDS = 5000 };

typedef struct archive {
    uint8_t *bytes;
    size_t size, room;
} archive;

static wb_status take(void *ctx, const void *bytes, size_t size) {
    archive *a = ctx;
    if (a->size + size > a->room) {
        a->room = 2 * (a->size + size);
        a->bytes = realloc(a->bytes, a->room);
        if (!a->bytes) abort();
    }
    memcpy(a->bytes + a->size, bytes, size);
    a->size += size;
    return WB_OK;
}

static void name_record(char name[16], int i) {
    snprintf(name, 16, "r%d", i);
}

/* Samples r0, r1, .. of a dump, as slime numbers them; `aborted` says how they ended. */
static void make_archive(const wb_route_model *model, int records, bool aborted, archive *a) {
    fixture_rng rng = {35};
    char directory[64], path[96];
    wb_dump_writer *writer = NULL;
    wb_dump *dump = NULL;
    fixture_directory(directory);
    snprintf(path, sizeof path, "%s/run.wbr", directory);
    assert_int_equal(wb_dump_create(path, model, NULL, &writer), WB_OK);
    for (int i = 0; i < records; i++) {
        fixture_record record;
        char rid[16];
        name_record(rid, i);
        fixture_record_init(&record, model, &rng, rid, 3, 6, 0, 1, false);
        record.record.finish = aborted ? WB_FINISH_ABORT : WB_FINISH_STOP;
        assert_int_equal(wb_dump_append(writer, &record.record), WB_OK);
        fixture_record_free(&record);
    }
    assert_int_equal(wb_dump_finish(writer), WB_OK);
    assert_int_equal(wb_dump_open(path, &dump), WB_OK);
    assert_int_equal(wb_export_dump(dump, WB_EXPORT_SLIME, take, a, NULL, NULL, NULL), WB_OK);
    wb_dump_close(dump);
    fixture_remove(directory);
}

/* With members that are looked through one after the other it took minutes. Sanitizers need some seconds. */
static void test_numbered_samples_take_time_by_their_number(void **unused) {
    (void)unused;
    archive a = {0};
    fixture_model f;
    wb_import *import = NULL;
    fixture_model_init(&f, 2, 8, 2);
    make_archive(&f.model, RECORDS, false, &a);
    const clock_t begin = clock();
    size_t before = 0;
    assert_int_equal(wb_import_open("archive", a.bytes, a.size, WB_IMPORT_SLIME, &f.model, &import), WB_OK);
    assert_int_equal(wb_import_bytes_read(import), 0);
    for (int i = 0; i < RECORDS; i++) {
        char rid[16];
        bool found = false;
        wb_record r;
        name_record(rid, i);
        if (wb_import_next(import, &r, &found) != WB_OK) fail_msg("%s", wb_error_message());
        assert_true(found);
        assert_string_equal(r.rid, rid);
        const size_t now = wb_import_bytes_read(import), expected = a.size / RECORDS * (size_t)(i + 1);
        assert_true(now > before && now <= a.size);
        assert_true(now >= expected && now - expected <= RECORDS);
        before = now;
    }
    assert_int_equal(before, a.size);
    const double seconds = (double)(clock() - begin) / CLOCKS_PER_SEC;
    print_message("%d samples in %.3f s\n", (int)RECORDS, seconds);
    assert_true(seconds < 10);
    wb_import_close(import);
    free(a.bytes);
}

/* Members whose name begins so, in the archive and in its directory, get one that no importer asks for. */
static void forget(archive *a, const char *name) {
    const size_t length = strlen(name);
    int found = 0;
    for (size_t i = 0; i + length <= a->size; i++) {
        if (memcmp(a->bytes + i, name, length) != 0) continue;
        a->bytes[i] = 'x';
        found++;
    }
    assert_int_equal(found, 2);
}

/* Of three samples number `without` has no routes and, with `is_hole`, no tokens. */
static void check_without(int without, bool aborted, bool is_hole) {
    archive a = {0};
    fixture_model f;
    wb_import *import = NULL;
    char name[48];
    fixture_model_init(&f, 2, 8, 2);
    make_archive(&f.model, 3, aborted, &a);
    snprintf(name, sizeof name, "rollout_routed_experts_%d.npy", without);
    forget(&a, name);
    snprintf(name, sizeof name, "tokens_%d.npy", without);
    if (is_hole) forget(&a, name);
    assert_int_equal(wb_import_open("archive", a.bytes, a.size, WB_IMPORT_SLIME, &f.model, &import), WB_OK);
    for (int i = 0; i < 3; i++) {
        char rid[16];
        bool found = false;
        wb_record r;
        name_record(rid, i);
        const wb_status status = wb_import_next(import, &r, &found);
        if (i == without && (is_hole || !aborted)) {
            assert_int_equal(status, WB_NOT_FOUND);
            assert_non_null(strstr(wb_error_message(), rid));
            continue;
        }
        if (status != WB_OK) fail_msg("%s", wb_error_message());
        assert_true(found);
        assert_string_equal(r.rid, rid);
        assert_int_equal(r.n_routes, i != without);
    }
    wb_record r;
    bool found = true;
    assert_int_equal(wb_import_next(import, &r, &found), WB_OK);
    assert_false(found);
    wb_import_close(import);
    free(a.bytes);
}

static void test_a_sample_without_routes_ends_nothing(void **unused) {
    (void)unused;
    for (int without = 0; without < 3; without++)
        for (int aborted = 0; aborted < 2; aborted++) check_without(without, aborted, false);
    check_without(1, false, true);
    check_without(1, true, true);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_sample_without_routes_ends_nothing),
        cmocka_unit_test(test_numbered_samples_take_time_by_their_number),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
