/* test_workspace.c - buffers of a workspace grow, never shrink, and end with it. */
#include "wb_workspace.h"

#include <setjmp.h>
#include <stdarg.h>
// clang-format off
#include <cmocka.h>
// clang-format on

static void test_grows_and_never_shrinks(void **state) {
    (void)state;
    wb_device *device;
    assert_int_equal(wb_device_open_cpu(1, &device), WB_OK);
    wb_workspace memory = {.device = device};
    wb_buffer first = {0}, second = {0};
    wb_host_buffer host = {0};
    assert_int_equal(wb_reserve(&memory, &first, 0, 10, 4), WB_OK);
    assert_non_null(first.data);
    assert_int_equal(wb_reserve(&memory, &first, 25, 10, 4), WB_OK);
    assert_int_equal(wb_reserve(&memory, &second, 1, 1, 1), WB_OK);
    void *data = first.data;
    assert_int_equal(wb_reserve(&memory, &first, 1, 10, 4), WB_OK);
    assert_ptr_equal(first.data, data);
    assert_int_equal(first.bytes, 1000);
    assert_int_equal(wb_reserve(&memory, &first, INT64_MAX, INT64_MAX, 4), WB_CAPACITY);
    assert_int_equal(wb_reserve(&memory, &first, -1, 1, 4), WB_CAPACITY);
    assert_int_equal(wb_reserve(&memory, &first, (int64_t)1 << 60, 1, 4), WB_OUT_OF_MEMORY);
    assert_ptr_equal(first.data, data);
    assert_int_equal(wb_reserve_host(&memory, &host, INT64_MAX, 4, "host"), WB_CAPACITY);
    assert_int_equal(wb_reserve_host(&memory, &host, 3, 4, "host"), WB_OK);

    static const float numbers[3] = {1, 2, 3};
    float back[3];
    assert_int_equal(wb_upload(&memory, &second, numbers, 3, sizeof(float)), WB_OK);
    assert_int_equal(wb_device_download(device, back, second.data, sizeof back), WB_OK);
    assert_memory_equal(back, numbers, sizeof back);
    wb_workspace_close(&memory);
    assert_null(first.data);
    wb_workspace_close(&memory);
    wb_device_close(device);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_grows_and_never_shrinks)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
