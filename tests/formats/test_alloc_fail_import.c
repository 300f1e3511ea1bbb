/* test_alloc_fail_import.c - every allocation of reading answers of other systems is made to fail in turn,
 * those of jansson and msgpack-c apart. Each time the call says "out of memory" and nothing leaks. */
#include "import_fixture.h"
#include "support/alloc_fail.h"

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

int main(void) {
    if (!ALLOC_FAIL_WORKS) {
        printf("skipped: a sanitizer has malloc\n");
        return 77;
    }
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_every_good_file)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
