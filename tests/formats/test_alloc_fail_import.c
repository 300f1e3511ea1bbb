/* test_alloc_fail_import.c - every allocation of reading answers of other systems is made to fail in turn,
 * those of jansson and msgpack-c apart. Each time the call says "out of memory" and nothing leaks. */
#include "import_fixture.h"
#include "support/alloc_fail.h"
#include "wb_export.h"

#include <setjmp.h>
#include <stdarg.h>
// clang-format off
#include <cmocka.h>
// clang-format on

static wb_status read_all(const json_t *file, const uint8_t *bytes, size_t size,
                          const wb_route_model *model) {
    wb_import *import = NULL;
    bool found = true;
    wb_status status = wb_import_open("answers", bytes, size, import_layout_of(file), model, &import);
    while (status == WB_OK && found) {
        wb_record record;
        status = wb_import_next(import, &record, &found);
    }
    wb_import_close(import);
    return status;
}

static long every_allocation(const json_t *file, const uint8_t *bytes, size_t size,
                             const wb_route_model *model) {
    for (long n = 0;; n++) {
        long live = 0;
        alloc_fail_arm(n, false);
        const wb_status status = read_all(file, bytes, size, model);
        const bool failed = alloc_fail_disarm(&live);
        if (live != 0) fail_msg("allocation %ld fails: %ld blocks are not freed", n, live);
        assert_int_equal(status, failed ? WB_OUT_OF_MEMORY : WB_OK);
        if (!failed) return n;
    }
}

static void test_every_good_file(void **unused) {
    (void)unused;
    json_t *manifest = import_manifest_open();
    const json_t *files = json_object_get(manifest, "good"), *file;
    size_t i;
    json_array_foreach(files, i, file) {
        fixture_model f;
        size_t size = 0;
        uint8_t *bytes = import_file(file, &size);
        import_model_of(manifest, file, &f);
        assert_true(every_allocation(file, bytes, size, &f.model) > 5);
        free(bytes);
    }
    json_decref(manifest);
}

/* ---- and back ------------------------------------------------------------------------------------- */

static wb_status forget(void *ctx, const void *bytes, size_t size) {
    (void)ctx;
    (void)bytes;
    (void)size;
    return WB_OK;
}

static char directory[64], path[96];

/* Three records that every layout has a place for. */
static int make_dump(void **unused) {
    (void)unused;
    fixture_rng rng = {7};
    fixture_model f;
    wb_dump_writer *writer = NULL;
    fixture_directory(directory);
    snprintf(path, sizeof path, "%s/run.wbr", directory);
    fixture_model_init(&f, 3, 64, 4);
    wb_status status = wb_dump_create(path, &f.model, NULL, &writer);
    for (int i = 0; i < 3 && status == WB_OK; i++) {
        fixture_record record;
        char rid[16];
        snprintf(rid, sizeof rid, "r%d", i);
        fixture_record_init(&record, &f.model, &rng, rid, 4, 9, 0, 1, false);
        status = wb_dump_append(writer, &record.record);
        fixture_record_free(&record);
    }
    return status == WB_OK && wb_dump_finish(writer) == WB_OK ? 0 : -1;
}

static int remove_dump(void **unused) {
    (void)unused;
    fixture_remove(directory);
    return 0;
}

static bool refuse(void *ctx, wb_status status) {
    (void)ctx;
    (void)status;
    return false;
}

static wb_status export_once(wb_export_layout layout) {
    wb_dump *dump = NULL;
    wb_status status = wb_dump_open(path, &dump);
    if (status == WB_OK) status = wb_export_dump(dump, layout, forget, NULL, refuse, NULL, NULL);
    wb_dump_close(dump);
    return status;
}

static void every_allocation_of_export(wb_export_layout layout) {
    for (long n = 0;; n++) {
        long live = 0;
        alloc_fail_arm(n, false);
        const wb_status status = export_once(layout);
        const bool failed = alloc_fail_disarm(&live);
        if (live != 0)
            fail_msg("layout %d, allocation %ld fails: %ld blocks are not freed", (int)layout, n, live);
        /* Opening a dump says of a file that memory is short. */
        if (failed && status == WB_IO)
            assert_non_null(strstr(wb_error_message(), strerror(ENOMEM)));
        else
            assert_int_equal(status, failed ? WB_OUT_OF_MEMORY : WB_OK);
        if (!failed) return;
    }
}

static void test_export(void **unused) {
    (void)unused;
    for (int layout = 0; layout < 5; layout++) every_allocation_of_export((wb_export_layout)layout);
}

int main(void) {
    if (!ALLOC_FAIL_WORKS) {
        printf("skipped: a sanitizer has malloc\n");
        return 77;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_good_file),
        cmocka_unit_test_setup_teardown(test_export, make_dump, remove_dump),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
