/* test_eplb_dispatch_quota.c - quota: the least maximum load and the nearest tokens, against enumeration
 * and against a flow of its own; and that the tokens of all ranks, handed out through their handles, are
 * the shares. */
#include "eplb_dispatch_fixture.h"

static uint64_t seed = 4242;

/* ---- exactly optimal: every division of small layers is tried -------------------------------- */

typedef struct score {
    uint32_t load; /* of the fullest rank */
    uint32_t on_rank, on_node;
} score;

static bool better(score a, score b) {
    if (a.load != b.load) return a.load < b.load;
    if (a.on_rank != b.on_rank) return a.on_rank > b.on_rank;
    return a.on_node > b.on_node;
}

static uint32_t min(uint32_t a, uint32_t b) {
    return a < b ? a : b;
}

/* What shares [S] are worth. on_node counts the tokens that stay on their rank too. */
static score score_of(const wb_placement *p, const uint32_t *counts, const uint32_t *shares) {
    uint32_t R = p->topology.n_ranks, N = p->topology.n_nodes, E = p->n_experts;
    const int32_t *map = wb_placement_experts_of(p, 0);
    score s = {0, 0, 0};
    for (uint32_t e = 0; e < E; e++) {
        uint32_t here[64] = {0}, tokens[64] = {0};
        for (uint32_t r = 0; r < R; r++) {
            uint32_t share = 0;
            for (uint32_t slot = p->first_slot[r]; slot < p->first_slot[r + 1]; slot++)
                if (map[slot] == (int32_t)e) share += shares[slot];
            s.on_rank += min(share, counts[r * E + e]);
            here[p->topology.node_of_rank[r]] += share;
            tokens[p->topology.node_of_rank[r]] += counts[r * E + e];
        }
        for (uint32_t node = 0; node < N; node++) s.on_node += min(here[node], tokens[node]);
    }
    for (uint32_t r = 0; r < R; r++) {
        uint32_t load = 0;
        for (uint32_t slot = p->first_slot[r]; slot < p->first_slot[r + 1]; slot++) load += shares[slot];
        if (load > s.load) s.load = load;
    }
    return s;
}

/* Tries all ways to give `left` tokens of the expert of replica j to replicas j.. and those of later
 * experts to theirs. */
static void try_all(const wb_placement *p, const uint32_t *counts, uint32_t e, uint32_t j, uint32_t left,
                    uint32_t *shares, score *best) {
    wb_layer_map map = wb_placement_layer(p, 0);
    if (e == p->n_experts) {
        score s = score_of(p, counts, shares);
        if (better(s, *best)) *best = s;
        return;
    }
    uint32_t slot = map.replicas[j].slot, next_left = 0;
    if (j + 1 < map.replica_begin[e + 1]) {
        for (uint32_t n = 0; n <= left; n++) {
            shares[slot] = n;
            try_all(p, counts, e, j + 1, left - n, shares, best);
        }
        return;
    }
    shares[slot] = left;
    for (uint32_t r = 0; e + 1 < p->n_experts && r < p->topology.n_ranks; r++)
        next_left += counts[r * p->n_experts + e + 1];
    try_all(p, counts, e + 1, j + 1, next_left, shares, best);
}

static void test_quota_is_optimal_against_enumeration(void **unused) {
    (void)unused;
    uint64_t random = seed;
    for (uint32_t round = 0; round < 1500; round++) {
        wb_placement *p = random_placement(&random, 6, 3, 5, 1);
        uint32_t *counts = random_counts(p, 3, &random), *shares = take(p->topology.n_slots, sizeof *shares);
        assert_ok(wb_dispatch_quota(p, 0, counts, shares));
        score found = score_of(p, counts, shares), best = {UINT32_MAX, 0, 0};
        uint32_t first = 0;
        for (uint32_t r = 0; r < p->topology.n_ranks; r++) first += counts[r * p->n_experts];
        try_all(p, counts, 0, 0, first, shares, &best);
        if (memcmp(&found, &best, sizeof found) != 0)
            fail_msg("seed %" PRIu64 ", round %u: load %u, on rank %u, on node %u; expected %u, %u, %u", seed,
                     round, found.load, found.on_rank, found.on_node, best.load, best.on_rank, best.on_node);
        free(counts);
        free(shares);
        wb_placement_close(p);
    }
}

/* ---- the certificate: one token less of load does not fit ------------------------------------ */

/* Kuhn's augmenting: finds a rank for one more token of `expert` when no rank may have more than `load`. */
static bool place(const wb_placement *p, uint32_t expert, uint32_t load, uint32_t *at /* [R][E] */,
                  uint32_t *loads, bool *tried) {
    const int32_t *map = wb_placement_experts_of(p, 0);
    uint32_t E = p->n_experts;
    for (uint32_t slot = 0; slot < p->topology.n_slots; slot++) {
        uint32_t rank = p->rank_of_slot[slot];
        if (map[slot] != (int32_t)expert || tried[rank]) continue;
        tried[rank] = true;
        bool fits = loads[rank] < load;
        for (uint32_t other = 0; !fits && other < E; other++) {
            if (other == expert || at[rank * E + other] == 0) continue;
            fits = place(p, other, load, at, loads, tried);
            if (!fits) continue;
            at[rank * E + other]--;
            loads[rank]--;
        }
        if (!fits) continue;
        at[rank * E + expert]++;
        loads[rank]++;
        return true;
    }
    return false;
}

static bool load_fits(const wb_placement *p, const uint32_t *counts, uint32_t load) {
    uint32_t R = p->topology.n_ranks, E = p->n_experts;
    uint32_t *at = take((size_t)R * E, sizeof *at), *loads = take(R, sizeof *loads);
    bool *tried = take(R, sizeof *tried), fits = true;
    for (uint32_t i = 0; fits && i < R * E; i++)
        for (uint32_t token = 0; fits && token < counts[i]; token++) {
            memset(tried, 0, R * sizeof *tried);
            fits = place(p, i % E, load, at, loads, tried);
        }
    free(at);
    free(loads);
    free(tried);
    return fits;
}

static void test_quota_load_is_the_minimum_of_another_flow(void **unused) {
    (void)unused;
    uint64_t random = seed + 1;
    for (uint32_t round = 0; round < 150; round++) {
        wb_placement *p = random_placement(&random, 24, 30, 40, 1);
        uint32_t *counts = random_counts(p, pick(&random, 1, 6), &random);
        uint32_t *shares = take(p->topology.n_slots, sizeof *shares);
        assert_ok(wb_dispatch_quota(p, 0, counts, shares));
        uint32_t load = score_of(p, counts, shares).load;
        if (!load_fits(p, counts, load) || (load > 0 && load_fits(p, counts, load - 1)))
            fail_msg("seed %" PRIu64 ", round %u: %u is not the least load", seed + 1, round, load);
        free(counts);
        free(shares);
        wb_placement_close(p);
    }
}

/* A1 and A2 on node 0, A3 on node 1, all tokens from node 0: what is near is not to take more than its
 * part. */
static void test_sglang_13423_locality_does_not_break_balance(void **unused) {
    (void)unused;
    const uint32_t slots_of_rank[] = {1, 1, 1, 1};
    const int32_t map[] = {0, 0, 0, 1};
    wb_topology t = {.n_ranks = 4, .n_nodes = 2, .n_slots = 4, .slots_of_rank = slots_of_rank};
    wb_placement *p = NULL;
    assert_ok(wb_placement_open(&t, 1, 2, &p));
    assert_ok(wb_placement_set_layer(p, 0, map, NULL, 1));
    const uint32_t counts[] = {60, 0, 30, 0, 0, 0, 0, 5};
    uint32_t shares[4];
    assert_ok(wb_dispatch_quota(p, 0, counts, shares));
    const uint32_t expected[] = {30, 30, 30, 5};
    assert_memory_equal(shares, expected, sizeof shares);

    /* static: the two replicas of a node serve the ranks of a node that have none in equal parts */
    const int32_t two[] = {0, 0, 1, 1};
    const uint32_t slots4[] = {1, 1, 0, 0, 1, 1}, nodes[] = {0, 0, 0, 0, 1, 1};
    wb_topology t2 = {
        .n_ranks = 6, .n_nodes = 2, .n_slots = 4, .slots_of_rank = slots4, .node_of_rank = nodes};
    wb_placement *q = NULL;
    wb_dispatch_traffic traffic;
    const uint32_t even[] = {8, 0, 8, 0, 8, 0, 8, 0, 0, 0, 0, 0};
    double tokens[4];
    assert_ok(wb_placement_open(&t2, 1, 2, &q));
    assert_ok(wb_placement_set_layer(q, 0, two, NULL, 1));
    assert_ok(wb_dispatch_loads(q, WB_DISPATCH_STATIC, 0, even, tokens, &traffic));
    assert_true(tokens[0] == 16 && tokens[1] == 16);
    wb_placement_close(q);
    wb_placement_close(p);
}

/* ---- handed out ------------------------------------------------------------------------------ */

/* All tokens of `rank` in calls of random sizes; adds them up by slot and checks that each slot has the
 * expert. */
static void hand_out(const wb_placement *p, uint32_t rank, uint32_t layer, const uint32_t *counts,
                     uint32_t *slot_tokens, uint64_t *random) {
    uint32_t E = p->n_experts, n = 0, done = 0;
    const int32_t *map = wb_placement_experts_of(p, layer);
    uint16_t *ids = tokens_of(counts + (size_t)rank * E, E, random, &n);
    wb_physical_id *out = take(n, sizeof *out);
    wb_dispatch *d = NULL;
    assert_ok(wb_dispatch_open(p, WB_DISPATCH_QUOTA, rank, &d));
    for (int again = 0; again < 2; again++) { /* set_counts starts over */
        assert_ok(wb_dispatch_set_counts(d, layer, counts));
        uint32_t end = again ? n : n / 2;
        for (done = 0; done < end;) {
            uint32_t T = pick(random, 1, end - done);
            wb_routed_rows rows = {.ids = ids + done, .dtype = WB_U16, .T = T, .K = 1};
            assert_ok(wb_dispatch_rows(d, layer, &rows, NULL, out + done));
            done += T;
        }
    }
    for (uint32_t i = 0; i < n; i++) {
        assert_true(out[i].slot < p->topology.n_slots);
        assert_int_equal(map[out[i].slot], ids[i]);
        slot_tokens[out[i].slot]++;
    }
    for (uint32_t e = 0; e < E; e++) { /* all are gone now */
        const uint16_t id = (uint16_t)e;
        wb_physical_id poison = {77};
        wb_routed_rows one = {.ids = &id, .dtype = WB_U16, .T = 1, .K = 1};
        assert_fails(wb_dispatch_rows(d, layer, &one, NULL, &poison), WB_MISMATCH, "tokens of rank");
        assert_int_equal(poison.slot, 77);
    }
    wb_dispatch_close(d);
    free(ids);
    free(out);
}

static void test_all_ranks_rows_are_the_shares(void **unused) {
    (void)unused;
    uint64_t random = seed + 2;
    for (uint32_t round = 0; round < 60; round++) {
        wb_placement *p = random_placement(&random, 12, 20, 30, 2);
        uint32_t S = p->topology.n_slots, layer = pick(&random, 0, 1);
        uint32_t *counts = random_counts(p, 9, &random);
        uint32_t *shares = take(S, sizeof *shares), *found = take(S, sizeof *found);
        assert_ok(wb_dispatch_quota(p, layer, counts, shares));
        for (uint32_t rank = 0; rank < p->topology.n_ranks; rank++)
            if (!p->topology.dead[rank]) hand_out(p, rank, layer, counts, found, &random);
        assert_memory_equal(found, shares, S * sizeof *found);
        free(counts);
        free(shares);
        free(found);
        wb_placement_close(p);
    }
}

/* Loads and traffic of quota are those of the optimum: the split by source gives nothing away. */
static void test_quota_loads_are_the_optimum(void **unused) {
    (void)unused;
    uint64_t random = seed + 3;
    for (uint32_t round = 0; round < 200; round++) {
        wb_placement *p = random_placement(&random, 12, 20, 30, 1);
        uint32_t S = p->topology.n_slots, total = 0, *shares = take(S, sizeof *shares);
        uint32_t *counts = random_counts(p, 9, &random);
        double *loads = take(S, sizeof *loads);
        wb_dispatch_traffic traffic;
        assert_ok(wb_dispatch_quota(p, 0, counts, shares));
        assert_ok(wb_dispatch_loads(p, WB_DISPATCH_QUOTA, 0, counts, loads, &traffic));
        for (uint32_t slot = 0; slot < S; slot++) {
            assert_true(loads[slot] == (double)shares[slot]);
            total += shares[slot];
        }
        score s = score_of(p, counts, shares);
        assert_true(traffic.network_tokens == (double)(total - s.on_node));
        assert_true(traffic.node_tokens == (double)(s.on_node - s.on_rank));
        free(counts);
        free(shares);
        free(loads);
        wb_placement_close(p);
    }
}

/* ---- refused --------------------------------------------------------------------------------- */

static void test_more_tokens_than_announced(void **unused) {
    (void)unused;
    wb_topology t = {.n_ranks = 2, .n_nodes = 1, .n_slots = 6};
    wb_placement *p = NULL;
    wb_dispatch *d = NULL;
    assert_ok(wb_placement_open(&t, 2, 4, &p));
    assert_ok(wb_dispatch_open(p, WB_DISPATCH_QUOTA, 1, &d));
    const uint32_t counts[] = {1, 1, 1, 1, 2, 0, 3, 1};
    const uint8_t ids[] = {0, 2, 0, 2, 3, 2, 1, 2};
    wb_physical_id out[8] = {{77}, {77}, {77}, {77}, {77}, {77}, {77}, {77}};
    wb_routed_rows rows = {.ids = ids, .dtype = WB_U8, .T = 3, .K = 2};
    assert_fails(wb_dispatch_rows(d, 1, &rows, NULL, out), WB_INVALID_ARGUMENT, "layer 1");
    assert_ok(wb_dispatch_set_counts(d, 1, counts));
    rows.T = 4;
    assert_fails(wb_dispatch_rows(d, 1, &rows, NULL, out), WB_MISMATCH, "layer 1, expert");
    for (int i = 0; i < 8; i++) assert_int_equal(out[i].slot, 77);
    rows.T = 3; /* what was refused has not been counted */
    assert_ok(wb_dispatch_rows(d, 1, &rows, NULL, out));
    rows = (wb_routed_rows){.ids = ids + 1, .dtype = WB_U8, .T = 1, .K = 1};
    assert_fails(wb_dispatch_rows(d, 1, &rows, NULL, out), WB_MISMATCH,
                 "layer 1, expert 2: expected 3 tokens of rank 1, found 4");
    const uint8_t padding[] = {0};
    rows.valid = padding;
    assert_ok(wb_dispatch_rows(d, 1, &rows, NULL, out));
    assert_true(out[0].slot == WB_NO_SLOT);

    uint64_t random = seed;
    set_random_layer(p, 1, 9, &random);
    assert_fails(wb_dispatch_rows(d, 1, &rows, NULL, out), WB_MISMATCH, "epoch 9");
    wb_dispatch_close(d);
    wb_placement_close(p);
}

static void test_bad_counts(void **unused) {
    (void)unused;
    const uint8_t dead[] = {0, 0, 1};
    wb_topology t = {.n_ranks = 3, .n_nodes = 1, .n_slots = 6, .dead = dead};
    wb_placement *p = NULL;
    wb_dispatch *d = NULL;
    uint32_t shares[6] = {77, 77, 77, 77, 77, 77};
    assert_ok(wb_placement_open(&t, 1, 2, &p));
    assert_ok(wb_dispatch_open(p, WB_DISPATCH_QUOTA, 1, &d));
    const uint32_t of_dead[] = {1, 1, 1, 1, 0, 1};
    assert_fails(wb_dispatch_quota(p, 0, of_dead, shares), WB_INVALID_ARGUMENT, "rank 2 is dead");
    assert_fails(wb_dispatch_set_counts(d, 0, of_dead), WB_INVALID_ARGUMENT, "rank 2 is dead");
    const uint32_t max[] = {1u << 31, 0, 0, 0, 0, 0};
    const uint32_t too_many[] = {1u << 31, 0, 1, 0, 0, 0};
    assert_fails(wb_dispatch_quota(p, 0, too_many, shares), WB_CAPACITY, "expert 0");
    assert_fails(wb_dispatch_quota(p, 1, max, shares), WB_INVALID_ARGUMENT, "layer");
    for (int i = 0; i < 6; i++) assert_int_equal(shares[i], 77);
    assert_ok(wb_dispatch_quota(p, 0, max, shares));
    assert_int_equal(shares[0], 1u << 30);
    assert_int_equal(shares[2], 1u << 30);
    wb_dispatch_close(d);
    wb_placement_close(p);
}

int main(void) {
    printf("seed %" PRIu64 "\n", seed);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_quota_is_optimal_against_enumeration),
        cmocka_unit_test(test_quota_load_is_the_minimum_of_another_flow),
        cmocka_unit_test(test_sglang_13423_locality_does_not_break_balance),
        cmocka_unit_test(test_all_ranks_rows_are_the_shares),
        cmocka_unit_test(test_quota_loads_are_the_optimum),
        cmocka_unit_test(test_more_tokens_than_announced),
        cmocka_unit_test(test_bad_counts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
