/* test_replay_padding.c - where padding rows go: distinct experts, spread over the ranks that hold them. */
#include "replay_expect.h"

enum { LAYERS = 3 };

/* Where the experts of a model are: expert_rank [LAYERS][E], or NULL for blocks. */
typedef struct place {
    uint32_t E, K, R;
    const int32_t *expert_rank;
} place;

static int32_t rank_of(const place *p, uint32_t l, uint32_t e) {
    if (p->expert_rank) return p->expert_rank[l * p->E + e];
    uint64_t rank = 0;
    while (e >= (uint64_t)p->E * (rank + 1) / p->R) rank++;
    return (int32_t)rank;
}

/* E slots a rank: those of its experts in each layer, the others empty; the last of rank 0's, which then has
 * one more, holds a second replica of an expert of the last rank. */
static void set_layer_of(const place *p, uint32_t l, wb_placement *placement) {
    const uint32_t n = p->E + 1;
    int32_t *experts = malloc(p->R * n * sizeof *experts);
    uint32_t *replicas = calloc(p->R * n, sizeof *replicas);
    for (uint32_t s = 0; s < p->R * n; s++) experts[s] = WB_NO_EXPERT;
    for (uint32_t e = 0; e < p->E; e++) experts[(uint32_t)rank_of(p, l, e) * n + e] = (int32_t)e;
    experts[n - 1] = (int32_t)p->E - 1;
    replicas[n - 1] = 1;
    OK(wb_placement_set_layer(placement, l, experts, replicas, 1));
    free(replicas);
    free(experts);
}

static wb_placement *placement_of(const place *p) {
    const wb_topology topology = {.n_ranks = p->R, .n_nodes = 1, .n_slots = p->R * (p->E + 1)};
    wb_placement *placement = NULL;
    OK(wb_placement_open(&topology, LAYERS, p->E, &placement));
    for (uint32_t l = 0; l < LAYERS; l++) set_layer_of(p, l, placement);
    return placement;
}

static wb_replay *open_place(const place *p, const wb_placement *placement) {
    wb_route_model m = fixture_model(p->E, p->K, LAYERS);
    wb_replay_options o = wb_replay_options_default();
    if (!placement) o.n_ranks = (int32_t)p->R;
    o.placement = placement;
    wb_replay *r = NULL;
    OK(wb_replay_open(&m, &o, &r));
    return r;
}

/* Adds the row's ids to counts [E], and checks that they are distinct. */
static void count_row(wb_replay *r, int32_t mb, int32_t l, uint32_t t, int64_t *counts) {
    const uint32_t K = wb_replay_model(r)->top_k;
    wb_replay_slice slice;
    OK(wb_replay_rows(r, mb, l, t, 1, &slice));
    assert_int_equal(slice.direction[0], WB_ROW_PADDING);
    for (uint32_t k = 0; k < K; k++) {
        uint32_t id = wb_route_id(slice.ids, r->dtype, k);
        assert_true(id < wb_replay_model(r)->num_experts);
        counts[id]++;
        for (uint32_t j = 0; j < k; j++) assert_int_not_equal(id, wb_route_id(slice.ids, r->dtype, j));
    }
}

/* Choices of each rank when each choice of a row goes to the emptiest rank that has an expert left: the best
 * that distinct ids allow. */
static void best_spread(const place *p, uint32_t l, uint32_t rows, int64_t *ranks) {
    int64_t *left = calloc(p->R, sizeof *left);
    memset(ranks, 0, p->R * sizeof *ranks);
    for (uint32_t t = 0; t < rows; t++) {
        memset(left, 0, p->R * sizeof *left);
        for (uint32_t e = 0; e < p->E; e++) left[rank_of(p, l, e)]++;
        for (uint32_t k = 0; k < p->K; k++) {
            uint32_t best = UINT32_MAX;
            for (uint32_t r = 0; r < p->R; r++)
                if (left[r] > 0 && (best == UINT32_MAX || ranks[r] < ranks[best])) best = r;
            left[best]--;
            ranks[best]++;
        }
    }
    free(left);
}

static int by_value(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

/* Of the choices of `rows` rows, ranks have what the best spread gives them, up to one; and each rank's
 * experts share its choices evenly. */
static void check_spread(const place *p, uint32_t l, uint32_t rows, const int64_t *counts) {
    int64_t *ranks = calloc(p->R, sizeof *ranks), *best = calloc(p->R, sizeof *best);
    for (uint32_t e = 0; e < p->E; e++) {
        ranks[rank_of(p, l, e)] += counts[e];
        for (uint32_t f = 0; f < e; f++)
            if (rank_of(p, l, e) == rank_of(p, l, f)) assert_true(llabs(counts[e] - counts[f]) <= 1);
    }
    best_spread(p, l, rows, best);
    qsort(ranks, p->R, sizeof *ranks, by_value);
    qsort(best, p->R, sizeof *best, by_value);
    for (uint32_t r = 0; r < p->R; r++)
        if (llabs(ranks[r] - best[r]) > 1)
            fail_msg("layer %u, rank number %u: %" PRId64 " choices, expected %" PRId64, l, r, ranks[r],
                     best[r]);
    free(ranks);
    free(best);
}

/* A step of padding rows in micro-batch 1, spread over the ranks of p. */
static void check_step(const place *p, wb_replay *r, uint32_t rows, uint32_t parts) {
    OK(wb_replay_begin(r, WB_REPLAY_ROLLOUT, 2));
    wb_segment s[4];
    for (uint32_t i = 0; i < parts; i++)
        s[i] = (wb_segment){WB_SEGMENT_PADDING, NULL, 0, rows / parts + (i < rows % parts), NULL};
    OK(wb_replay_plan(r, 1, (int32_t)parts, s));
    int64_t *counts = calloc(p->E, sizeof *counts);
    for (uint32_t l = 0; l < LAYERS; l++) {
        memset(counts, 0, p->E * sizeof *counts);
        for (uint32_t t = 0; t < rows; t++) count_row(r, 1, (int32_t)l, t, counts);
        check_spread(p, l, rows, counts);
    }
    wb_replay_metrics metrics;
    wb_replay_get_metrics(r, &metrics, NULL);
    assert_true(metrics.padding_rows == rows && metrics.rows == rows && metrics.fallback_share == 0);
    free(counts);
    wb_replay_abort(r);
}

static void check_padding(const place *p, uint32_t rows, uint32_t parts) {
    wb_placement *placement = p->expert_rank ? placement_of(p) : NULL;
    wb_replay *r = open_place(p, placement);
    check_step(p, r, rows, parts);
    wb_replay_close(r);
    wb_placement_close(placement);
}

static void test_bug_38_padding_not_all_to_expert_0(void **unused) {
    (void)unused;
    check_padding(&(place){128, 8, 8, NULL}, 37, 1);
    check_padding(&(place){128, 8, 4, NULL}, 1000, 3); /* K > R, several padding segments */
    check_padding(&(place){256, 8, 16, NULL}, 1, 1);
    check_padding(&(place){512, 10, 32, NULL}, 129, 2); /* u16 */
    check_padding(&(place){60, 4, 8, NULL}, 50, 1);     /* R does not divide E */
    check_padding(&(place){6, 6, 4, NULL}, 5, 1);       /* K = E */
    check_padding(&(place){4, 2, 8, NULL}, 9, 1);       /* more ranks than experts */
    check_padding(&(place){16, 2, 1, NULL}, 0, 1);
}

static void test_rule_17_padding_is_spread_over_the_ranks_of_a_placement(void **unused) {
    (void)unused;
    enum { E = 32, R = 6 };
    int32_t interleaved[LAYERS * E], uneven[LAYERS * E], small[LAYERS * E];
    for (int32_t i = 0; i < LAYERS * E; i++) {
        int32_t l = i / E, e = i % E;
        interleaved[i] = (e + l) % 4;
        uneven[i] = e % 7 == l ? 1 : e % 3 == 0 ? 4 : 5; /* ranks 0, 2, 3 hold none */
        small[i] = e < 3 ? e : 3 + l;                    /* three ranks of one expert each, one of the rest */
    }
    for (uint32_t rows = 1; rows < 60; rows += 7) {
        check_padding(&(place){E, 4, 4, interleaved}, rows, 1);
        check_padding(&(place){E, 6, 4, interleaved}, rows, 2);
        check_padding(&(place){E, 4, R, uneven}, rows, 1);
        check_padding(&(place){E, 8, R, uneven}, rows, 3);
        check_padding(&(place){E, 2, R, small}, rows, 1);
        check_padding(&(place){E, 8, R, small}, rows, 1); /* the small ranks are in every row */
        check_padding(&(place){E, 32, R, small}, rows, 1);
    }
}

static void test_rule_17_a_placement_is_checked_and_followed_when_it_changes(void **unused) {
    (void)unused;
    enum { E = 8, R = 4 };
    int32_t ranks[LAYERS * E];
    for (int i = 0; i < LAYERS * E; i++) ranks[i] = i % R;
    const place p = {E, 2, R, ranks};
    wb_placement *placement = placement_of(&p);
    wb_route_model m = fixture_model(E, 2, LAYERS + 1);
    wb_replay_options o = wb_replay_options_default();
    wb_replay *r = NULL, *const none = NULL;
    o.placement = placement;
    assert_int_equal(wb_replay_open(&m, &o, &r), WB_INVALID_ARGUMENT);
    HAS_MESSAGE("placement: expected 4 MoE layers of 8 experts, found 3 of 8");
    assert_ptr_equal(r, none);
    m = fixture_model(E, 2, LAYERS);
    o.dispatch = WB_DISPATCH_QUOTA;
    assert_int_equal(wb_replay_open(&m, &o, &r), WB_INVALID_ARGUMENT);
    assert_ptr_equal(r, none);

    r = open_place(&p, placement);
    check_step(&p, r, 7, 1);
    for (int i = 0; i < LAYERS * E; i++) ranks[i] = i % E < 2 ? i % E : 2 + i / E % 2;
    for (uint32_t l = 0; l < LAYERS; l++) set_layer_of(&p, l, placement);
    check_step(&p, r, 7, 1);
    wb_replay_close(r);
    wb_placement_close(placement);
}

static void test_rule_17_padding_starts_elsewhere_in_each_layer(void **unused) {
    (void)unused;
    wb_route_model m = fixture_model(64, 4, 4);
    wb_replay *r = open_replay(&m, WB_MISSING_STRICT);
    wb_segment s = {WB_SEGMENT_PADDING, NULL, 0, 1, NULL};
    plan_one(r, 1, &s);
    int64_t total[64] = {0};
    for (int32_t l = 0; l < 4; l++) count_row(r, 0, l, 0, total);
    for (int e = 0; e < 64; e++) assert_true(total[e] <= 1);
    wb_replay_close(r);
}

static void test_rule_17_padding_starts_elsewhere_in_each_micro_batch(void **unused) {
    (void)unused;
    wb_route_model m = fixture_model(64, 4, 2);
    wb_replay *r = open_replay(&m, WB_MISSING_STRICT);
    wb_segment s = {WB_SEGMENT_PADDING, NULL, 0, 1, NULL};
    OK(wb_replay_begin(r, WB_REPLAY_ROLLOUT, 16));
    int64_t total[64] = {0};
    for (int32_t mb = 0; mb < 16; mb++) {
        OK(wb_replay_plan(r, mb, 1, &s));
        count_row(r, mb, 1, 0, total);
    }
    for (int e = 0; e < 64; e++) assert_int_equal(total[e], 1);
    wb_replay_close(r);
}

/* Rows of padding between rows of a record: neither the counts nor the metrics see them. */
static void test_rule_10_padding_is_not_counted(void **unused) {
    (void)unused;
    wb_route_model m = fixture_model(16, 2, 2);
    fixture_record f;
    fixture_complete(&f, &m, 1, 5);
    for (int mode = WB_REPLAY_OFF; mode <= WB_REPLAY_ROLLOUT; mode += 2) {
        int64_t counts[16], expected[16] = {0};
        wb_replay *r = open_replay(&m, WB_MISSING_STRICT);
        OK(wb_replay_add(r, &m, &f.record));
        wb_segment s[] = {{WB_SEGMENT_PADDING, NULL, 0, 3, NULL},
                          fixture_segment(&f, 0, 4),
                          {WB_SEGMENT_PADDING, NULL, 0, 5, NULL}};
        OK(wb_replay_begin(r, (wb_replay_mode)mode, 1));
        OK(wb_replay_plan(r, 0, 3, s));
        for (uint32_t t = 0; t < 4 && mode == WB_REPLAY_ROLLOUT; t++)
            for (uint32_t l = 0; l < 2; l++)
                for (uint32_t k = 0; k < 2; k++) expected[fixture_id(&m, 1, t, l, k)]++;
        OK(wb_replay_counts(r, 0, WB_ALL_LAYERS, 0, 12, counts));
        assert_memory_equal(counts, expected, sizeof counts);
        for (int32_t l = 0; l < 2; l++) {
            uint8_t native[12][2];
            for (int t = 0; t < 12; t++) memcpy(native[t], (uint8_t[]){14, 15}, 2);
            wb_replay_slice slice;
            OK(wb_replay_rows(r, 0, l, 0, 12, &slice));
            OK(wb_replay_store(r, 0, l, 0, 12, NULL, 0, native, 2));
        }
        wb_replay_metrics metrics;
        wb_replay_layer_metrics layers[2];
        wb_replay_get_metrics(r, &metrics, layers);
        assert_true(metrics.padding_rows == 8 && metrics.rows == 12 && metrics.forced_rows == 4);
        assert_true(layers[0].tokens == 4 && layers[1].tokens == 4);
        wb_replay_close(r);
    }
    fixture_close(&f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bug_38_padding_not_all_to_expert_0),
        cmocka_unit_test(test_rule_17_padding_is_spread_over_the_ranks_of_a_placement),
        cmocka_unit_test(test_rule_17_a_placement_is_checked_and_followed_when_it_changes),
        cmocka_unit_test(test_rule_17_padding_starts_elsewhere_in_each_layer),
        cmocka_unit_test(test_rule_17_padding_starts_elsewhere_in_each_micro_batch),
        cmocka_unit_test(test_rule_10_padding_is_not_counted),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
