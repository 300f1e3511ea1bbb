/* test_eplb_load_ranks.c - load statistics of several ranks: passes are summed over ranks and windows stay
 * in step. Ranks are threads; a hang is a failure by alarm. */
#include "eplb_load_fixture.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>
// clang-format off
#include <cmocka.h>
// clang-format on

enum { RANKS = 3, L = 2, E = 4 };

/* cmocka's asserts belong to the main thread: a rank counts its failed checks. */
typedef struct rank_job {
    wb_comm *comm;
    void (*body)(struct rank_job *job);
    int failures;
    pthread_t thread;
} rank_job;

#define CHECK(job, condition) ((job)->failures += !(condition))

static void *run_rank(void *ctx) {
    rank_job *job = ctx;
    job->body(job);
    return NULL;
}

static void on_ranks(void (*body)(rank_job *job)) {
    wb_comm *comms[RANKS];
    rank_job jobs[RANKS];
    alarm(60);
    assert_int_equal(wb_comm_open_threads(RANKS, comms), WB_OK);
    for (int r = 0; r < RANKS; r++) {
        jobs[r] = (rank_job){.comm = comms[r], .body = body};
        assert_int_equal(pthread_create(&jobs[r].thread, NULL, run_rank, &jobs[r]), 0);
    }
    for (int r = 0; r < RANKS; r++) {
        assert_int_equal(pthread_join(jobs[r].thread, NULL), 0);
        wb_comm_close(comms[r]);
    }
    alarm(0);
    for (int r = 0; r < RANKS; r++) assert_int_equal(jobs[r].failures, 0);
}

static void record_one(rank_job *job, wb_load *load, uint8_t expert, uint32_t n) {
    uint8_t ids[64];
    memset(ids, expert, sizeof ids);
    wb_routed_rows rows = {.ids = ids, .dtype = WB_U8, .T = n, .K = 1};
    CHECK(job, wb_load_record(load, 0, WB_PHASE_DECODE, 1, &rows) == WB_OK);
}

static wb_load *open_window(rank_job *job, uint32_t window, uint32_t n_experts) {
    wb_load *load = NULL;
    wb_load_region region = {"target", L, n_experts, 1};
    CHECK(job,
          wb_load_open(1, &region, &(wb_load_options){sizeof(wb_load_options), window, 1}, &load) == WB_OK);
    return load;
}

static bool counts_are(const wb_load *load, uint32_t age, double e0, double e1, double e2) {
    double counts[L * E];
    const double expected[L * E] = {0, 0, 0, 0, e0, e1, e2, 0};
    if (wb_load_pass_counts(load, 0, ALL, age, counts) != WB_OK) return false;
    return memcmp(counts, expected, sizeof counts) == 0;
}

/* A rank that is idle in some passes: its window still has the same passes as the others'. */
static void windows_in_step(rank_job *job) {
    wb_load *load = open_window(job, 2, E);
    uint8_t me = (uint8_t)wb_comm_rank(job->comm);
    for (uint32_t pass = 0; pass < 4; pass++) {
        if (pass < 2 || me == 0) record_one(job, load, me, pass + 1);
        CHECK(job, wb_load_end_pass(load, job->comm) == WB_OK);
    }
    CHECK(job, wb_load_end_pass(load, job->comm) == WB_OK); /* idle everywhere: does not enter */
    CHECK(job, wb_load_passes(load) == 2 && wb_load_passes_seen(load) == 4);
    CHECK(job, counts_are(load, 0, 4, 0, 0) && counts_are(load, 1, 3, 0, 0));
    record_one(job, load, me, 7);
    CHECK(job, wb_load_end_pass(load, job->comm) == WB_OK);
    CHECK(job, counts_are(load, 0, 7, 7, 7) && counts_are(load, 1, 4, 0, 0));
    wb_load_close(load);
}

/* Balancedness is that of all ranks' tokens: each rank alone loads one expert only. */
static void balance_of_all(rank_job *job) {
    wb_load *load = open_window(job, 4, E);
    wb_topology t = {.n_ranks = E, .n_nodes = 1, .n_slots = E};
    wb_placement *placement = NULL;
    double mean = 0;
    CHECK(job, wb_placement_open(&t, L, E, &placement) == WB_OK);
    record_one(job, load, (uint8_t)wb_comm_rank(job->comm), 8);
    CHECK(job, wb_load_end_pass(load, job->comm) == WB_OK);
    CHECK(job, wb_load_balancedness(load, 0, ALL, 0, placement, NULL, &mean, NULL) == WB_OK);
    CHECK(job, fabs(mean - 0.75) <= 1e-12);
    wb_placement_close(placement);
    wb_load_close(load);
}

static void other_regions(rank_job *job) {
    wb_load *load = open_window(job, 2, wb_comm_rank(job->comm) == 1 ? E + 1 : E);
    record_one(job, load, 0, 1);
    CHECK(job, wb_load_end_pass(load, job->comm) == WB_PEER);
    CHECK(job, strstr(wb_error_message(), "rank 1"));
    CHECK(job, wb_load_passes(load) == 0);
    wb_load_close(load);
}

/* One rank keeps more passes than the others: sums over their windows would be of different passes. */
static void other_window(rank_job *job) {
    wb_load *load = open_window(job, wb_comm_rank(job->comm) == 2 ? 3 : 2, E);
    record_one(job, load, 0, 1);
    CHECK(job, wb_load_end_pass(load, job->comm) == WB_PEER);
    CHECK(job, strstr(wb_error_message(), "rank 2"));
    CHECK(job, wb_load_passes(load) == 0);
    wb_load_close(load);
}

/* Three ranks with more than a third of 2^32 tokens of an expert each. */
static void too_many(rank_job *job) {
    wb_load *load = open_window(job, 2, E);
    record_one(job, load, 2, 5);
    *wb_load_cells(&load->regions[0], load->open, WB_PHASE_DECODE) = UINT32_MAX / RANKS + 1;
    CHECK(job, wb_load_end_pass(load, job->comm) == WB_CAPACITY);
    CHECK(job, wb_load_passes(load) == 0);
    *wb_load_cells(&load->regions[0], load->open, WB_PHASE_DECODE) = 0;
    CHECK(job, wb_load_end_pass(load, job->comm) == WB_OK && counts_are(load, 0, 0, 0, 15));
    wb_load_close(load);
}

static void test_windows_of_ranks_stay_in_step(void **state) {
    (void)state;
    on_ranks(windows_in_step);
}
static void test_balancedness_is_of_all_ranks_tokens(void **state) {
    (void)state;
    on_ranks(balance_of_all);
}
static void test_other_regions_name_the_rank(void **state) {
    (void)state;
    on_ranks(other_regions);
}
static void test_another_window_names_the_rank(void **state) {
    (void)state;
    on_ranks(other_window);
}
static void test_a_sum_beyond_32_bits_is_refused_whole(void **state) {
    (void)state;
    on_ranks(too_many);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_windows_of_ranks_stay_in_step),
        cmocka_unit_test(test_balancedness_is_of_all_ranks_tokens),
        cmocka_unit_test(test_other_regions_name_the_rank),
        cmocka_unit_test(test_another_window_names_the_rank),
        cmocka_unit_test(test_a_sum_beyond_32_bits_is_refused_whole),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
