/* test_eplb_dump_counts.c - the counts of a step of a dump, against a walk over positions that adds up one id
 * after the other; what is refused; the same counts from any number of threads. */
#include "formats/dump_fixture.h"
#include "support/temp_files.h"
#include "support/test_seed.h"
#include "wb_eplb.h"
#include "wb_random.h"

#include <inttypes.h>

/* OpenMP's, where the library has it; tests are not compiled with it. */
void omp_set_num_threads(int n) __attribute__((weak));

enum { L = 3, E = 300, K = 4, N_RECORDS = 37, MAX_TOKENS = 400, N_RANKS = 5 };

static uint64_t seed;
static temp_path dir;
static fixture_model model;
static fixture_record records[N_RECORDS];
static wb_dump *dump;

/* Records with 0 to 3 runs of up to MAX_TOKENS tokens, some with bitmaps. `spoil`: the last but one of
 * them has an id that is no expert. */
static void make_dump(bool rows, bool spoil) {
    fixture_rng rng = {seed};
    wb_dump_writer *writer = NULL;
    wb_dump_options options = wb_dump_options_default();
    options.trust_ids = true;
    fixture_directory(dir.text);
    temp_path path = temp_in(dir.text, "part-0.wbr");
    fixture_model_init(&model, L, E, K);
    assert_int_equal(wb_dump_create(path.text, &model.model, &options, &writer), WB_OK);
    for (uint32_t i = 0; i < N_RECORDS; i++) {
        char rid[16];
        snprintf(rid, sizeof rid, "r%" PRIu32, i);
        fixture_record_init(&records[i], &model.model, &rng, rid, 9, 40 + fixture_below(&rng, MAX_TOKENS), 0,
                            rows ? 1 + i % 3 : 0, i % 2 == 1);
        if (spoil && i == N_RECORDS - 3) wb_route_id_set(records[i].ids, wb_route_dtype(E), 5 * L * K + 1, E);
        if (spoil && i == N_RECORDS - 3) records[i].bits[0] = 0xff;
        assert_int_equal(wb_dump_append(writer, &records[i].record), WB_OK);
    }
    assert_int_equal(wb_dump_finish(writer), WB_OK);
    assert_int_equal(wb_dump_open(path.text, &dump), WB_OK);
}

static int remove_dump(void **unused) {
    (void)unused;
    wb_dump_close(dump);
    for (uint32_t i = 0; i < N_RECORDS; i++) fixture_record_free(&records[i]);
    temp_remove(dir);
    return 0;
}

/* ---- the naive counts ---------------------------------------------------------------------------- */

static uint32_t rows_of(uint64_t record) {
    uint32_t n = 0;
    for (uint32_t t = 0; t < records[record].record.n_tokens; t++)
        if (wb_record_row(&model.model, &records[record].record, t)) n++;
    return n;
}

/* expected [M][N_RANKS][L][E] */
static uint64_t naive(const uint64_t *numbers, uint64_t n, uint32_t M, const uint8_t *dead,
                      uint32_t *expected) {
    uint64_t total = 0, before = 0, in_batch[64] = {0};
    uint32_t live[N_RANKS], n_live = 0;
    for (uint32_t r = 0; r < N_RANKS; r++)
        if (!dead[r]) live[n_live++] = r;
    for (uint64_t j = 0; j < n; j++) total += rows_of(numbers[j]);
    for (uint64_t j = 0; j < n; j++) {
        const uint64_t i = numbers[j];
        uint32_t rows = rows_of(i), b = 0;
        while (b + 1 < M && (2 * before + rows) * M >= 2 * total * (b + 1)) b++;
        uint32_t *counts = expected + ((size_t)b * N_RANKS + live[in_batch[b]++ % n_live]) * L * E;
        for (uint32_t t = 0; t < records[i].record.n_tokens; t++) {
            const void *row = wb_record_row(&model.model, &records[i].record, t);
            for (uint32_t k = 0; row && k < L * K; k++) counts[k / K * E + wb_route_id(row, WB_U16, k)]++;
        }
        before += rows;
    }
    return total;
}

/* How far counting was when it was told last; it never goes back. */
typedef struct told {
    uint64_t done, total;
} told;

static void tell(void *ctx, uint64_t done, uint64_t total) {
    told *t = ctx;
    assert_true(done >= t->done && done <= total);
    *t = (told){done, total};
}

/* NULL numbers: the first n. */
static void check_numbered(const uint64_t *numbers, uint64_t n, uint32_t M, const wb_topology *topology) {
    uint32_t *expected = calloc((size_t)M * N_RANKS * L * E, sizeof *expected),
             *found = malloc(N_RANKS * E * 4);
    uint64_t all[N_RECORDS];
    for (uint64_t i = 0; i < N_RECORDS; i++) all[i] = i;
    uint64_t rows = naive(numbers ? numbers : all, n, M, topology->dead, expected);
    wb_dump_counts *counts = NULL;
    told progress = {0};
    assert_int_equal(wb_dump_counts_open(dump, numbers, n, M, topology, tell, &progress, &counts), WB_OK);
    assert_true(progress.done == n && progress.total == n);
    assert_int_equal(wb_dump_counts_rows(counts), rows);
    for (uint32_t b = 0; b < M; b++)
        for (uint32_t l = 0; l < L; l++) {
            const double *loads = wb_dump_counts_loads(counts) + ((size_t)b * L + l) * E;
            memset(found, 0xa5, N_RANKS * E * 4);
            assert_int_equal(wb_dump_counts_fill(counts, b, l, found), WB_OK);
            for (uint32_t e = 0; e < E; e++) {
                double sum = 0;
                for (uint32_t r = 0; r < N_RANKS; r++) {
                    uint32_t tokens = expected[(((size_t)b * N_RANKS + r) * L + l) * E + e];
                    assert_int_equal(found[r * E + e], tokens);
                    sum += tokens;
                }
                assert_true(loads[e] == sum);
            }
        }
    wb_dump_counts_close(counts);
    free(found);
    free(expected);
}

static void check_counts(uint64_t first, uint64_t n, uint32_t M, const wb_topology *topology) {
    uint64_t numbers[N_RECORDS];
    for (uint64_t i = 0; i < n; i++) numbers[i] = first + i;
    check_numbered(numbers, n, M, topology);
}

/* ---- tests --------------------------------------------------------------------------------------- */

static void test_as_a_walk(void **unused) {
    (void)unused;
    uint64_t random = seed;
    make_dump(true, false);
    for (int round = 0; round < 40; round++) {
        uint8_t dead[N_RANKS] = {0};
        for (uint32_t r = 0; r < N_RANKS; r++) dead[r] = wb_random_below(&random, 4) == 0;
        dead[wb_random_below(&random, N_RANKS)] = 0;
        const wb_topology t = {.n_ranks = N_RANKS, .n_nodes = 1, .n_slots = N_RANKS * E, .dead = dead};
        uint64_t first = wb_random_below(&random, N_RECORDS);
        uint64_t n = 1 + wb_random_below(&random, (uint32_t)(N_RECORDS - first));
        check_counts(first, n, 1 + wb_random_below(&random, 50), &t);
    }
    const uint8_t none[N_RANKS] = {0};
    const wb_topology t = {.n_ranks = N_RANKS, .n_nodes = 1, .n_slots = N_RANKS * E, .dead = none};
    check_counts(0, N_RECORDS, 4, &t);
    check_numbered(NULL, N_RECORDS - 5, 4, &t);
    uint64_t backwards[N_RECORDS / 2]; /* every other record, the last one first */
    for (uint64_t i = 0; i < N_RECORDS / 2; i++) backwards[i] = N_RECORDS - 1 - 2 * i;
    check_numbered(backwards, N_RECORDS / 2, 3, &t);
    for (int threads = 1; threads <= 3 && omp_set_num_threads; threads++) {
        omp_set_num_threads(threads);
        check_counts(0, N_RECORDS, 4, &t);
    }
}

static void refused(const uint64_t *numbers, uint64_t n, uint32_t M, uint32_t n_slots, const char *part) {
    const wb_topology t = {.n_ranks = N_RANKS, .n_nodes = 1, .n_slots = n_slots};
    wb_dump_counts *counts = (wb_dump_counts *)&seed;
    assert_int_equal(wb_dump_counts_open(dump, numbers, n, M, &t, NULL, NULL, &counts), WB_INVALID_ARGUMENT);
    assert_ptr_equal(counts, &seed);
    assert_message_has(part);
}

static void test_refuses(void **unused) {
    (void)unused;
    make_dump(true, false);
    const uint64_t beyond[] = {0, N_RECORDS};
    refused(NULL, N_RECORDS + 1, 2, N_RANKS * E, "expected 1 or more of the 37, found 38");
    refused(beyond, 2, 2, N_RANKS * E, "records[1]: expected below 37, found 37");
    refused(NULL, UINT64_MAX, 2, N_RANKS * E, "found 18446744073709551615");
    refused(NULL, 0, 2, N_RANKS * E, "found 0");
    refused(NULL, 1, 0, N_RANKS * E, "micro-batches");
    refused(NULL, 1, 1, E - 1, "slots");
}

/* A step without rows is counted: it has none. */
static void test_no_rows(void **unused) {
    (void)unused;
    const uint8_t none[N_RANKS] = {0};
    const wb_topology t = {.n_ranks = N_RANKS, .n_nodes = 1, .n_slots = N_RANKS * E, .dead = none};
    make_dump(false, false);
    check_counts(0, N_RECORDS, 3, &t);
}

/* The first record at fault is named, and the dump can be read on. */
static void test_a_bad_id(void **unused) {
    (void)unused;
    const uint8_t none[N_RANKS] = {0};
    const wb_topology t = {.n_ranks = N_RANKS, .n_nodes = 1, .n_slots = N_RANKS * E, .dead = none};
    wb_dump_counts *counts = (wb_dump_counts *)&seed;
    make_dump(true, true);
    assert_int_not_equal(wb_dump_counts_open(dump, NULL, N_RECORDS, 2, &t, NULL, NULL, &counts), WB_OK);
    assert_message_has("r34");
    assert_ptr_equal(counts, &seed);
    check_counts(0, N_RECORDS - 3, 2, &t);
}

/* ---- faults ------------------------------------------------------------------------------------- */

/* What the library takes for the rows of each record; 0: its own count. */
static uint64_t claimed_rows;
uint64_t __real_wb_record_count_rows(const wb_record *record);
uint64_t __wrap_wb_record_count_rows(const wb_record *record);
uint64_t __wrap_wb_record_count_rows(const wb_record *record) {
    return claimed_rows ? claimed_rows : __real_wb_record_count_rows(record);
}

/* Counts of a rank in a micro-batch are 32 bits wide. */
static void test_too_many_rows(void **unused) {
    (void)unused;
    const wb_topology t = {.n_ranks = 2, .n_nodes = 1, .n_slots = 2 * E};
    static const struct {
        uint64_t n, claimed;
        uint32_t batches;
        wb_status expected;
    } cases[] = {{2, UINT32_MAX, 1, WB_OK}, /* a record for each rank */
                 {2, UINT64_C(1) << 32, 1, WB_CAPACITY},
                 {4, UINT64_C(1) << 31, 1, WB_CAPACITY}, /* two records a rank, 2^32 rows together */
                 {4, (UINT64_C(1) << 31) - 1, 1, WB_OK},
                 {4, UINT64_C(1) << 31, 2, WB_OK}};
    make_dump(true, false);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        wb_dump_counts *counts = NULL;
        claimed_rows = cases[i].claimed;
        wb_status status =
            wb_dump_counts_open(dump, NULL, cases[i].n, cases[i].batches, &t, NULL, NULL, &counts);
        claimed_rows = 0;
        assert_int_equal(status, cases[i].expected);
        if (status != WB_OK) assert_message_has("4294967296 rows");
        if (status != WB_OK) assert_null(counts);
        wb_dump_counts_close(counts);
    }
}

/* Damages a byte of record i's rows in the file, and opens the dump anew. */
static void damage_rows(uint64_t i) {
    temp_path path = temp_in(dir.text, "part-0.wbr");
    size_t bytes = 0;
    char *text = temp_read(path.text, &bytes);
    wb_record record;
    assert_int_equal(wb_dump_record(dump, i, &record), WB_OK);
    size_t row_bytes = wb_route_row_bytes(&model.model);
    const char *at = memmem(text, bytes, record.routes[0].ids, record.routes[0].rows * row_bytes);
    assert_non_null(at);
    text[at - text] ^= 1;
    wb_dump_close(dump);
    temp_write(path.text, text, bytes);
    free(text);
    assert_int_equal(wb_dump_open(path.text, &dump), WB_OK);
}

/* Of two records at fault the first is named, whatever each suffers from: record 34 has an id that is none,
 * and rows of one record are damaged. */
static void test_two_bad_records(void **unused) {
    (void)unused;
    const wb_topology t = {.n_ranks = N_RANKS, .n_nodes = 1, .n_slots = N_RANKS * E};
    static const struct {
        uint64_t damaged;
        wb_status expected;
        const char *named;
    } cases[] = {{N_RECORDS - 2, WB_INVALID_ARGUMENT, "r34"}, {4, WB_CORRUPT, "r4"}};
    for (int i = 0; i < 2; i++) {
        wb_dump_counts *counts = (wb_dump_counts *)&seed;
        if (i > 0) remove_dump(NULL);
        make_dump(true, true);
        damage_rows(cases[i].damaged);
        assert_int_equal(wb_dump_counts_open(dump, NULL, N_RECORDS, 2, &t, NULL, NULL, &counts),
                         cases[i].expected);
        assert_message_has(cases[i].named);
        assert_ptr_equal(counts, &seed);
    }
}

/* A caller may hold a record while a step that has it is counted and a placement is made of it: rows that
 * were decoded for the caller stay. (That what the calls hold is freed: test_alloc_fail_eplb.) */
static void test_the_caller_holds_a_record(void **unused) {
    (void)unused;
    static const char *const names[] = {"good_zstd.wbr", "good_chunks.wbr"};
    const wb_topology t = {.n_ranks = 2, .n_nodes = 1, .n_slots = 8};
    for (int n = 0; n < 2; n++) {
        temp_path path;
        snprintf(path.text, sizeof path.text, "%s/dump/%s", WB_TEST_DATA, names[n]);
        wb_dump *d = NULL;
        wb_record held;
        wb_dump_counts *counts = NULL;
        wb_placement *placement = NULL;
        assert_int_equal(wb_dump_open(path.text, &d), WB_OK);
        assert_int_equal(wb_dump_record(d, 1, &held), WB_OK);
        size_t bytes = held.routes[0].rows * wb_route_row_bytes(wb_dump_model(d));
        uint8_t *before = malloc(bytes);
        assert_non_null(before);
        memcpy(before, held.routes[0].ids, bytes);
        assert_int_equal(wb_dump_counts_open(d, NULL, 3, 1, &t, NULL, NULL, &counts), WB_OK);
        assert_memory_equal(before, held.routes[0].ids, bytes);
        assert_int_equal(wb_placement_from_dump(d, &t, NULL, &placement), WB_OK);
        assert_memory_equal(before, held.routes[0].ids, bytes);
        wb_placement_close(placement);
        wb_dump_counts_close(counts);
        wb_dump_release(d, 1);
        wb_dump_close(d);
        free(before);
    }
}

int main(int argc, char **argv) {
    seed = test_seed(argc, argv);
    printf("test_eplb_dump_counts: seed %" PRIu64 "\n", seed);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_as_a_walk, remove_dump),
        cmocka_unit_test_teardown(test_refuses, remove_dump),
        cmocka_unit_test_teardown(test_no_rows, remove_dump),
        cmocka_unit_test_teardown(test_a_bad_id, remove_dump),
        cmocka_unit_test_teardown(test_too_many_rows, remove_dump),
        cmocka_unit_test_teardown(test_two_bad_records, remove_dump),
        cmocka_unit_test(test_the_caller_holds_a_record),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
