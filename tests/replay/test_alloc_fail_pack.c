/* test_alloc_fail_pack.c - every allocation of a packing fails once: the call says OUT_OF_MEMORY, nothing
 * leaks, and other ranks learn of it. */
#include "pack_fixture.h"
#include "support/alloc_fail.h"

enum { SEQUENCES = 9, PATIENCE = 10000 };

static wb_route_model model;
static full_record records[SEQUENCES];
static wb_pack_sequence sequences[SEQUENCES];
static wb_comm *comm;

static wb_status pack_and_move(wb_comm *c) {
    wb_pack_options options = wb_pack_options_default();
    wb_pack *pack = NULL;
    options.max_rows = 24;
    options.n_updates = 2;
    wb_status status = wb_pack_open(c, &model, &options, SEQUENCES, sequences, &pack);
    if (status == WB_OK) status = wb_pack_move(pack, c, 1, sequences);
    wb_pack_close(pack);
    return status;
}

static void test_a_packing_survives_each_failed_allocation(void **unused) {
    (void)unused;
    long live, n = 0;
    for (; n < PATIENCE; n++) {
        alloc_fail_arm(n, false);
        const wb_status status = pack_and_move(comm);
        const bool failed = alloc_fail_disarm(&live);
        assert_int_equal(live, 0);
        assert_int_equal(status, failed ? WB_OUT_OF_MEMORY : WB_OK);
        if (!failed) break;
    }
    assert_in_range(n, 50, PATIENCE - 1);
}

/* On rank 1 alone: no rank is left waiting, and all can go on. */
static void fail_on_one_rank(rank *r) {
    bool failed = true;
    for (long n = 0; failed && n < PATIENCE; n++) {
        if (r->number == 1) alloc_fail_this_thread_at(n);
        const wb_status status = pack_and_move(r->comm);
        uint64_t any = r->number == 1 && alloc_fail_this_thread_failed();
        if (any) EXPECT(status == WB_OUT_OF_MEMORY);
        MUST(wb_comm_all_reduce_max_u64(r->comm, &any));
        failed = any != 0;
        if (failed && r->number != 1) EXPECT(status == WB_PEER);
        if (!failed) EXPECT(status == WB_OK && n > 50);
    }
    EXPECT(!failed);
}

static void test_a_rank_without_memory_stops_all(void **unused) {
    (void)unused;
    on_ranks(3, 1, fail_on_one_rank);
}

int main(void) {
    if (!ALLOC_FAIL_WORKS) {
        print_message("skipped: a sanitizer owns the allocator\n");
        return 77;
    }
    model = fixture_model(16, 2, 3);
    for (uint32_t i = 0; i < SEQUENCES; i++) {
        full_open(&records[i], &model, i + 1, 12);
        sequences[i] = (wb_pack_sequence){&records[i].f.record, records[i].f.record.n_tokens, i % 2};
    }
    if (wb_comm_open_self(&comm) != WB_OK) return 1;
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_a_packing_survives_each_failed_allocation),
                                       cmocka_unit_test(test_a_rank_without_memory_stops_all)};
    const int failures = cmocka_run_group_tests(tests, NULL, NULL);
    for (uint32_t i = 0; i < SEQUENCES; i++) full_close(&records[i]);
    wb_comm_close(comm);
    return failures;
}
