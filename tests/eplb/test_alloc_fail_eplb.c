/* test_alloc_fail_eplb.c - every allocation of placements, solvers, files, dispatch, load statistics, move
 * plans and the simulator is made to fail in turn: the call says so or does without, nothing leaks, and
 * outputs stay as they were. */
#include "formats/dump_fixture.h"
#include "placement_core.h"
#include "support/alloc_fail.h"
#include "support/temp_files.h"

enum { L = 2, E = 6, K = 2, M = 3, R = 4, S = 10, T = 5 };

typedef struct place {
    temp_path dir, map_json, map_msgpack, counts, batches, loads_file, dump, saved;
    wb_topology topology;
    wb_placement *from, *to;
    wb_comm *comm;
    double loads[M * L * E];
    uint32_t counts_of_rank[R * E];
    uint8_t ids[T * K];
    fixture_model model;
    fixture_record record;
    wb_routed_rows rows;
    wb_eplb_algorithm algorithm;
    wb_dispatch_policy policy;
    wb_map_layout layout;
    const char *path; /* of the body that runs */
    bool touched;     /* an output was written by a call that failed */
} place;

/* ---- what is there before -------------------------------------------------------------------- */

static void make_dump(place *p) {
    wb_dump_writer *writer = NULL;
    assert_int_equal(wb_dump_create(p->dump.text, &p->model.model, NULL, &writer), WB_OK);
    assert_int_equal(wb_dump_append(writer, &p->record.record), WB_OK);
    assert_int_equal(wb_dump_finish(writer), WB_OK);
}

static const wb_load_region region = {.name = "target", .n_layers = L, .n_experts = E};

/* A window of three passes. */
static wb_status fill_load(const place *p, wb_load *load) {
    for (int pass = 0; pass < 3; pass++) {
        WB_TRY(wb_load_record(load, 0, WB_PHASE_DECODE, pass % L, &p->rows));
        WB_TRY(wb_load_end_pass(load, NULL));
    }
    return WB_OK;
}

static wb_load *make_load(const place *p) {
    wb_load_options options = {sizeof options, .window = 4, .decay = 1};
    wb_load *load = NULL;
    assert_int_equal(wb_load_open(1, &region, &options, &load), WB_OK);
    assert_int_equal(fill_load(p, load), WB_OK);
    return load;
}

static void make_files(place *p) {
    static const char two[] = "{\"logical_count\": [[1,2,3,4,5,6],[6,5,4,3,2,1]]}";
    static const char three[] = "{\"logical_count\": [[[1,2,3,4,5,6],[6,5,4,3,2,1]]]}";
    p->map_json = temp_in(p->dir.text, "map.json");
    p->map_msgpack = temp_in(p->dir.text, "map.msgpack");
    p->counts = temp_in(p->dir.text, "counts.json");
    p->batches = temp_in(p->dir.text, "batches.json");
    p->loads_file = temp_in(p->dir.text, "loads.msgpack");
    p->dump = temp_in(p->dir.text, "part-0.wbr");
    assert_int_equal(wb_placement_save(p->to, p->map_json.text, WB_MAP_SGLANG, NULL), WB_OK);
    assert_int_equal(wb_placement_save(p->to, p->map_msgpack.text, WB_MAP_SGLANG, NULL), WB_OK);
    temp_write(p->counts.text, two, sizeof two - 1);
    temp_write(p->batches.text, three, sizeof three - 1);
    wb_load *load = make_load(p);
    assert_int_equal(wb_load_save(load, p->loads_file.text), WB_OK);
    wb_load_close(load);
    make_dump(p);
}

static int setup(void **state) {
    place *p = calloc(1, sizeof *p);
    fixture_rng rng = {7};
    fixture_directory(p->dir.text);
    p->topology = (wb_topology){.n_ranks = R, .n_nodes = 2, .n_slots = S};
    p->from = core_open(&p->topology, L, E, 1);
    p->to = core_open(&p->topology, L, E, 2);
    assert_int_equal(wb_comm_open_self(&p->comm), WB_OK);
    for (uint32_t i = 0; i < M * L * E; i++) p->loads[i] = 1 + fixture_below(&rng, 50);
    for (uint32_t i = 0; i < R * E; i++) p->counts_of_rank[i] = T * K + fixture_below(&rng, 50);
    for (uint32_t i = 0; i < T * K; i++) p->ids[i] = (uint8_t)(i % E);
    p->rows = (wb_routed_rows){.ids = p->ids, .dtype = WB_U8, .T = T, .K = K};
    fixture_model_init(&p->model, L, E, K);
    fixture_record_init(&p->record, &p->model.model, &rng, "r0", 3, 12, 0, 2, true);
    make_files(p);
    *state = p;
    return 0;
}

static int teardown(void **state) {
    place *p = *state;
    temp_remove(p->dir);
    fixture_record_free(&p->record);
    wb_placement_close(p->from);
    wb_placement_close(p->to);
    wb_comm_close(p->comm);
    free(p);
    return 0;
}

/* ---- the loop -------------------------------------------------------------------------------- */

/* Runs `body` with its n-th allocation failing, for every n, once and for good; before that once with all
 * of them, so that what libraries keep for the life of the process is there. */
static void every_allocation(place *p, wb_status (*body)(place *)) {
    if (body(p) != WB_OK) fail_msg("%s", wb_error_message());
    for (int ever_after = 0; ever_after < 2; ever_after++) {
        for (long n = 0;; n++) {
            long live = 0;
            p->touched = false;
            alloc_fail_arm(n, ever_after);
            wb_status status = body(p);
            bool failed = alloc_fail_disarm(&live);
            if (live != 0) fail_msg("allocation %ld fails: %ld blocks are not freed", n, live);
            if (p->touched) fail_msg("allocation %ld fails: an output was written", n);
            if (status != (failed ? WB_OUT_OF_MEMORY : WB_OK))
                fail_msg("allocation %ld fails: status %d (%s)", n, status, wb_error_message());
            if (failed) continue;
            print_message("%ld allocations\n", n);
            assert_true(n > 0);
            break;
        }
    }
}

/* Opens through `call`, whose output is `handle`, and notes whether a failure wrote it. */
#define OPEN(p, status, type, handle, call)            \
    type *handle = (type *)(p);                        \
    wb_status status = (call);                         \
    if (status != WB_OK) {                             \
        (p)->touched |= (void *)handle != (void *)(p); \
        return status;                                 \
    }

/* ---- placements ------------------------------------------------------------------------------ */

static wb_status open_and_clone(place *p) {
    wb_placement *copy = (wb_placement *)p;
    OPEN(p, status, wb_placement, opened, wb_placement_open(&p->topology, L, E, &opened));
    status = wb_placement_clone(opened, &copy);
    wb_placement_close(opened);
    if (status == WB_OK)
        wb_placement_close(copy);
    else
        p->touched |= (void *)copy != (void *)p;
    return status;
}

static wb_status change(place *p) {
    wb_layer_map map = wb_placement_layer(p->to, 1);
    uint64_t hash = wb_placement_hash(p->from);
    wb_status status = wb_placement_set_layer(p->from, 1, map.expert_of_slot, map.replica_of_slot, map.epoch);
    if (status != WB_OK) p->touched |= wb_placement_hash(p->from) != hash;
    hash = wb_placement_hash(p->from);
    if (status == WB_OK) status = wb_placement_keep_slots(p->from, p->to);
    if (status != WB_OK) p->touched |= wb_placement_hash(p->from) != hash;
    return status;
}

static wb_status broadcast(place *p) {
    return wb_placement_broadcast(p->from, p->comm, 0);
}

static void test_placement(void **state) {
    every_allocation(*state, open_and_clone);
    every_allocation(*state, change);
    every_allocation(*state, broadcast);
}

/* ---- files ----------------------------------------------------------------------------------- */

static wb_status read_placement(place *p) {
    OPEN(p, status, wb_placement, found,
         wb_placement_read(p->path, &p->topology, L, E, NULL, NULL, NULL, &found));
    wb_placement_close(found);
    return status;
}

static wb_status save(place *p) {
    return wb_placement_save(p->to, p->saved.text, p->layout, NULL);
}

static void test_save(void **state) {
    place *p = *state;
    for (int i = 0; i < 6; i++) {
        static const wb_map_layout layouts[] = {WB_MAP_SGLANG, WB_MAP_SGLANG, WB_MAP_VLLM,
                                                WB_MAP_TRTLLM, WB_MAP_TRTLLM, WB_MAP_ASCEND};
        p->saved = temp_in(p->dir.text, i == 0 ? "saved.msgpack" : i == 3 ? "saved.yaml" : "saved.json");
        p->layout = layouts[i];
        every_allocation(p, save);
        p->path = p->saved.text;
        every_allocation(p, read_placement);
    }
    DIR *dir = opendir(p->dir.text);
    for (struct dirent *entry; (entry = readdir(dir));) assert_null(strstr(entry->d_name, ".tmp"));
    closedir(dir);
}

static wb_status read_counts(place *p) {
    const char *const paths[] = {p->path, p->path};
    OPEN(p, status, wb_counts, found, wb_counts_read(2, paths, NULL, &found));
    if (status == WB_OK) {
        const wb_counts_run poison = {7, 7, 7};
        wb_counts_run run = poison;
        status = wb_counts_find_run(found, &run);
        p->touched |= status != WB_OK && memcmp(&run, &poison, sizeof run) != 0;
    }
    wb_counts_close(found);
    return status;
}

static wb_status read_dump(place *p) {
    wb_dump *dump = NULL;
    wb_placement *found = (wb_placement *)p;
    WB_TRY(wb_dump_open(p->dump.text, &dump));
    wb_status status = wb_placement_from_dump(dump, &p->topology, NULL, &found);
    wb_dump_close(dump);
    if (status == WB_OK)
        wb_placement_close(found);
    else
        p->touched |= (void *)found != (void *)p;
    return status;
}

static wb_status count_dump(place *p) {
    wb_dump *dump = NULL;
    wb_dump_counts *found = (wb_dump_counts *)p;
    WB_TRY(wb_dump_open(p->dump.text, &dump));
    wb_status status =
        wb_dump_counts_open(dump, NULL, wb_dump_get_info(dump).records, 2, &p->topology, NULL, NULL, &found);
    if (status == WB_OK)
        wb_dump_counts_close(found);
    else
        p->touched |= (void *)found != (void *)p;
    wb_dump_close(dump);
    return status;
}

static void test_read(void **state) {
    place *p = *state;
    const char *paths[] = {p->map_json.text, p->map_msgpack.text, p->counts.text, p->batches.text};
    for (int i = 0; i < 4; i++) {
        p->path = paths[i];
        every_allocation(p, read_placement);
    }
    const char *const counts[] = {p->counts.text, WB_TEST_DATA "/torch/good_recorder.pt",
                                  WB_TEST_DATA "/torch/good_zip64.pt", WB_TEST_DATA "/torch/good_list.pt"};
    for (int i = 0; i < 4; i++) {
        p->path = counts[i];
        every_allocation(p, read_counts);
    }
    every_allocation(p, read_dump);
    every_allocation(p, count_dump);
}

/* ---- solvers --------------------------------------------------------------------------------- */

static wb_status solve(place *p) {
    wb_eplb_options options = wb_eplb_options_default();
    options.algorithm = p->algorithm;
    options.threads = 1;
    options.trials = 10;
    options.current = p->from;
    options.horizon_steps = 1e12;
    OPEN(p, status, wb_placement, found, wb_eplb_solve(&p->topology, L, E, M, p->loads, &options, &found));
    wb_placement_close(found);
    return status;
}

static void test_solve(void **state) {
    place *p = *state;
    const wb_topology usual = p->topology;
    for (int a = WB_EPLB_DEEPSEEK; a <= WB_EPLB_MICROBATCH; a++) {
        p->algorithm = (wb_eplb_algorithm)a;
        if (a == WB_EPLB_DEEPSEEK) p->topology.n_ranks = 2; /* it wants even shares */
        wb_placement *from = p->from;
        if (a == WB_EPLB_DEEPSEEK) p->from = core_open(&p->topology, L, E, 1);
        every_allocation(p, solve);
        if (a == WB_EPLB_DEEPSEEK) wb_placement_close(p->from);
        p->from = from;
        p->topology = usual;
    }
}

/* ---- dispatch -------------------------------------------------------------------------------- */

static wb_status dispatch(place *p) {
    static const uint64_t keys[T] = {1, 2, 3, 4, 5};
    wb_physical_id out[T * K];
    OPEN(p, status, wb_dispatch, d, wb_dispatch_open(p->to, p->policy, 1, &d));
    for (uint32_t l = 0; l < L && status == WB_OK; l++) {
        memset(out, 0xa5, sizeof out);
        if (p->policy == WB_DISPATCH_QUOTA) status = wb_dispatch_set_counts(d, l, p->counts_of_rank);
        if (status == WB_OK) status = wb_dispatch_rows(d, l, &p->rows, keys, out);
        for (uint32_t i = 0; i < T * K && status != WB_OK; i++) p->touched |= out[i].slot != 0xa5a5a5a5u;
    }
    wb_dispatch_close(d);
    return status;
}

static wb_status dispatch_table(place *p) {
    int32_t table[E + 1 + S];
    memset(table, 0xa5, sizeof table);
    wb_status status = wb_dispatch_fill_table(p->to, p->policy, 1, 1, table);
    for (uint32_t i = 0; i < E + 1 + S && status != WB_OK; i++) p->touched |= table[i] != (int32_t)0xa5a5a5a5;
    return status;
}

static wb_status dispatch_loads(place *p) {
    double tokens[S];
    wb_dispatch_traffic traffic;
    return wb_dispatch_loads(p->to, p->policy, 1, p->counts_of_rank, tokens, &traffic);
}

static wb_status dispatch_quota(place *p) {
    uint32_t shares[S];
    return wb_dispatch_quota(p->to, 1, p->counts_of_rank, shares);
}

static void test_dispatch(void **state) {
    place *p = *state;
    for (int policy = WB_DISPATCH_STATIC; policy <= WB_DISPATCH_FAKE; policy++) {
        p->policy = (wb_dispatch_policy)policy;
        every_allocation(p, dispatch);
    }
    p->policy = WB_DISPATCH_STATIC;
    every_allocation(p, dispatch_table);
    p->policy = WB_DISPATCH_QUOTA;
    every_allocation(p, dispatch_loads);
    every_allocation(p, dispatch_quota);
}

/* ---- load statistics ------------------------------------------------------------------------- */

static wb_status load_record(place *p) {
    wb_load_options options = {sizeof options, .window = 2, .decay = 0.5};
    OPEN(p, status, wb_load, load, wb_load_open(1, &region, &options, &load));
    double counts[L * E];
    if (status == WB_OK) status = fill_load(p, load);
    if (status == WB_OK) status = wb_load_add_record(load, 0, &p->model.model, &p->record.record, false);
    if (status == WB_OK) status = wb_load_end_pass(load, NULL);
    if (status == WB_OK) status = wb_load_counts(load, 0, WB_PHASES_ALL, counts);
    wb_load_close(load);
    return status;
}

static wb_status load_report(place *p) {
    double by_layer[L], mean, weighted;
    OPEN(p, status, wb_load, load, wb_load_read(p->loads_file.text, &load));
    status = wb_load_balancedness(load, 0, WB_PHASES_ALL, 0, p->to, by_layer, &mean, &weighted);
    wb_load_close(load);
    return status;
}

static wb_status load_save(place *p) {
    OPEN(p, status, wb_load, load, wb_load_read(p->loads_file.text, &load));
    status = wb_load_save(load, p->saved.text);
    wb_load_close(load);
    return status;
}

static wb_status load_spread(place *p) {
    uint8_t ranks[12 * L], nodes[12 * L];
    return wb_token_spread(p->to, WB_DISPATCH_STATIC, 0, &p->model.model, &p->record.record, ranks, nodes);
}

static void test_load(void **state) {
    place *p = *state;
    p->saved = temp_in(p->dir.text, "saved_loads.json");
    every_allocation(p, load_record);
    every_allocation(p, load_report);
    every_allocation(p, load_save);
    every_allocation(p, load_spread);
}

/* Counting a dump that stays open gives back every record that it holds, whatever fails: no decoded row is
 * left in memory. What a record's first access makes is kept until the dump is closed, so each was accessed
 * before. */
static void test_decoded_rows_are_given_back(void **state) {
    place *p = *state;
    const wb_topology t = {.n_ranks = 2, .n_nodes = 1, .n_slots = 8};
    temp_path path;
    snprintf(path.text, sizeof path.text, "%s/dump/good_zstd.wbr", WB_TEST_DATA);
    wb_dump *dump = NULL;
    assert_int_equal(wb_dump_open(path.text, &dump), WB_OK);
    for (uint64_t i = 0; i < 3; i++) {
        wb_record record;
        assert_int_equal(wb_dump_record(dump, i, &record), WB_OK);
        wb_dump_release(dump, i);
    }
    bool failed = true;
    for (long n = 0; failed; n++) {
        wb_dump_counts *counts = (wb_dump_counts *)p;
        long live_blocks;
        alloc_fail_arm(n, false);
        wb_status status = wb_dump_counts_open(dump, NULL, 3, 2, &t, NULL, NULL, &counts);
        if (status == WB_OK) wb_dump_counts_close(counts);
        failed = alloc_fail_disarm(&live_blocks);
        assert_int_equal(status, failed ? WB_OUT_OF_MEMORY : WB_OK);
        assert_int_equal(live_blocks, 0);
    }
    wb_dump_close(dump);
}

/* ---- moves and the simulator ----------------------------------------------------------------- */

static wb_status move(place *p) {
    const wb_move_options options = wb_move_options_default();
    OPEN(p, status, wb_move_plan, plan, wb_move_plan_open(p->from, p->to, L, NULL, &options, &plan));
    wb_placement *map = NULL;
    status = wb_placement_clone(p->from, &map);
    for (uint32_t g = 0; status == WB_OK && g < plan->n_groups; g++) {
        uint64_t before = wb_placement_hash(map);
        status = wb_move_apply_group(plan, g, g + 1, map);
        p->touched |= status != WB_OK && wb_placement_hash(map) != before;
    }
    wb_placement_close(map);
    wb_move_plan_close(plan);
    return status;
}

static wb_status fill_traffic(void *ctx, uint32_t batch, uint32_t layer, uint32_t *counts_out) {
    const place *p = ctx;
    (void)batch, (void)layer;
    memcpy(counts_out, p->counts_of_rank, sizeof p->counts_of_rank);
    return WB_OK;
}

static wb_status simulate(place *p) {
    const wb_traffic traffic = {.n_batches = 2, .fill = fill_traffic, .ctx = p};
    const wb_cost_model cost = wb_cost_model_default();
    double tokens[R];
    wb_simulation result;
    return wb_simulate(p->to, p->policy, &traffic, &cost, tokens, &result);
}

static void test_move_and_simulate(void **state) {
    place *p = *state;
    every_allocation(p, move);
    for (int policy = WB_DISPATCH_STATIC; policy <= WB_DISPATCH_FAKE; policy++) {
        p->policy = (wb_dispatch_policy)policy;
        every_allocation(p, simulate);
    }
}

int main(int argc, char **argv) {
    if (!ALLOC_FAIL_WORKS) {
        printf("skipped: a sanitizer has malloc\n");
        return 77;
    }
    (void)argc;
    if (!getenv("OMP_NUM_THREADS")) { /* one thread; OpenMP looks before main */
        setenv("OMP_NUM_THREADS", "1", 1);
        execv("/proc/self/exe", argv);
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_placement, setup, teardown),
        cmocka_unit_test_setup_teardown(test_save, setup, teardown),
        cmocka_unit_test_setup_teardown(test_read, setup, teardown),
        cmocka_unit_test_setup_teardown(test_solve, setup, teardown),
        cmocka_unit_test_setup_teardown(test_dispatch, setup, teardown),
        cmocka_unit_test_setup_teardown(test_load, setup, teardown),
        cmocka_unit_test_setup_teardown(test_decoded_rows_are_given_back, setup, teardown),
        cmocka_unit_test_setup_teardown(test_move_and_simulate, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
