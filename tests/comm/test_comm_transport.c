/* test_comm_transport.c - a transport of one's own: its functions are copied and called, and refused where
 * one is missing. */
#include "wb_comm.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
// clang-format off
#include <cmocka.h>
// clang-format on

static wb_status own_broadcast(wb_comm *comm, void *buffer, size_t bytes, int root) {
    (void)comm, (void)buffer, (void)bytes, (void)root;
    return WB_OK;
}

static wb_status own_all_gather(wb_comm *comm, const void *send, size_t bytes, void *recv) {
    (void)comm;
    memcpy(recv, send, bytes);
    return WB_OK;
}

static wb_status own_all_to_all_v(wb_comm *comm, const void *send, const size_t *send_bytes,
                                  const size_t *send_offsets, void *recv, const size_t *recv_bytes,
                                  const size_t *recv_offsets) {
    (void)comm, (void)recv_bytes;
    memcpy((char *)recv + recv_offsets[0], (const char *)send + send_offsets[0], send_bytes[0]);
    return WB_OK;
}

static wb_status own_barrier(wb_comm *comm) {
    ++*(int *)wb_comm_state(comm);
    return WB_OK;
}

static void own_abort(wb_comm *comm) {
    (void)comm;
}

static const wb_comm_ops own_ops = {.size = sizeof(wb_comm_ops),
                                    .name = "own",
                                    .broadcast = own_broadcast,
                                    .all_gather = own_all_gather,
                                    .all_to_all_v = own_all_to_all_v,
                                    .barrier = own_barrier,
                                    .abort = own_abort,
                                    .close = wb_comm_delete};

static void test_own_transport(void **unused) {
    (void)unused;
    int barriers = 0;
    wb_comm *comm = NULL;
    wb_comm_ops ops = own_ops;
    assert_int_equal(wb_comm_new(&ops, 0, 1, &barriers, &comm), WB_OK);
    memset(&ops, 0, sizeof ops); /* it was copied */
    assert_string_equal(wb_comm_name(comm), "own");
    assert_ptr_equal(wb_comm_state(comm), &barriers);
    assert_int_equal(wb_comm_barrier(comm), WB_OK);
    assert_int_equal(barriers, 1);
    float one = 1;
    assert_int_equal(wb_comm_all_reduce_f32(comm, &one, 1), WB_OK);
    assert_true(one == 1);
    wb_comm_close(comm);
}

static int elsewhere;

/* Refused with `expected` in the message, and *comm_out as it was. */
static void expect_new_refused(const wb_comm_ops *ops, int rank, int size, const char *expected) {
    wb_comm *comm = (wb_comm *)&elsewhere;
    assert_int_equal(wb_comm_new(ops, rank, size, NULL, &comm), WB_INVALID_ARGUMENT);
    assert_non_null(strstr(wb_error_message(), expected));
    assert_ptr_equal(comm, (wb_comm *)&elsewhere);
}

static void test_own_transport_refused(void **unused) {
    (void)unused;
    wb_comm_ops ops = own_ops;
#define EXPECT_MISSING(member, expected)          \
    do {                                          \
        ops.member = NULL;                        \
        expect_new_refused(&ops, 0, 1, expected); \
        ops.member = own_ops.member;              \
    } while (0)
    EXPECT_MISSING(name, "name is NULL");
    EXPECT_MISSING(broadcast, "transport own: broadcast is NULL");
    EXPECT_MISSING(all_gather, "transport own: all_gather is NULL");
    EXPECT_MISSING(all_to_all_v, "transport own: all_to_all_v is NULL");
    EXPECT_MISSING(barrier, "transport own: barrier is NULL");
    EXPECT_MISSING(abort, "transport own: abort is NULL");
    EXPECT_MISSING(close, "transport own: close is NULL");
#undef EXPECT_MISSING
    ops.size -= sizeof(void *);
    expect_new_refused(&ops, 0, 1, "expected ops of");
    ops.size = 0;
    expect_new_refused(&ops, 0, 1, "found 0");
    expect_new_refused(&own_ops, 1, 1, "found 1 of 1");
    expect_new_refused(&own_ops, -1, 1, "found -1 of 1");
    expect_new_refused(&own_ops, 0, 0, "found 0 of 0");
    expect_new_refused(NULL, 0, 1, "wb_comm_new");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_own_transport),
        cmocka_unit_test(test_own_transport_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
