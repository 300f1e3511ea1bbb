/* test_eplb_dispatch.c - dispatch but for quota: nearness and evenness of static, the hash of dynamic, the
 * turns of fake, reading of rows, and the loads and traffic of each policy against sums over single
 * tokens. */
#include "eplb_dispatch_fixture.h"
#include "wb_random.h"

#include <math.h>

static uint64_t seed = 977;

/* ---- static ---------------------------------------------------------------------------------- */

typedef struct near_class {
    uint32_t n;           /* replicas that are as near as any */
    uint32_t slots[1024]; /* they */
    bool own, node;
} near_class;

/* The nearest replicas of `expert` for `rank`, found the long way. */
static void nearest(const wb_placement *p, uint32_t layer, uint32_t expert, uint32_t rank, near_class *out) {
    const int32_t *map = wb_placement_experts_of(p, layer);
    const uint32_t *node_of = p->topology.node_of_rank;
    for (int distance = 0; distance < 3; distance++) {
        *out = (near_class){.own = distance == 0, .node = distance == 1};
        for (uint32_t slot = 0; slot < p->topology.n_slots; slot++) {
            uint32_t at = p->rank_of_slot[slot];
            if (map[slot] != (int32_t)expert || (distance == 0 && at != rank)) continue;
            if (distance == 1 && node_of[at] != node_of[rank]) continue;
            assert_true(out->n < 1024);
            out->slots[out->n++] = slot;
        }
        if (out->n > 0) return;
    }
}

/* Of the ranks that are as near to the same replicas as `rank`, how many go to each of these: even to within
 * one. */
static void check_even(const wb_placement *p, const near_class *nearby, uint32_t layer, uint32_t expert,
                       uint32_t rank, const uint32_t *chosen /* [R] */) {
    const uint32_t *node_of = p->topology.node_of_rank;
    uint32_t min = UINT32_MAX, max = 0;
    for (uint32_t i = 0; i < nearby->n; i++) {
        uint32_t n = 0;
        for (uint32_t other = 0; other < p->topology.n_ranks; other++) {
            near_class theirs;
            if (p->topology.dead[other] || (nearby->node && node_of[other] != node_of[rank])) continue;
            nearest(p, layer, expert, other, &theirs);
            n +=
                theirs.own == nearby->own && theirs.node == nearby->node && chosen[other] == nearby->slots[i];
        }
        if (n < min) min = n;
        if (n > max) max = n;
    }
    assert_in_range(max - min, 0, 1);
}

static void test_static_is_near_and_even(void **unused) {
    (void)unused;
    uint64_t random = seed;
    near_class nearby;
    for (uint32_t round = 0; round < 60; round++) {
        wb_placement *p = random_placement(&random, 14, 8, 30, 2);
        uint32_t R = p->topology.n_ranks, E = p->n_experts, layer = pick(&random, 0, 1);
        uint32_t *chosen = take((size_t)R * E, sizeof *chosen), *at_once = take(R, sizeof *at_once);
        wb_owner memory = {0};
        wb_dispatch_frame frame = {0};
        assert_ok(wb_dispatch_frame_open(p, &memory, &frame));
        wb_dispatch_frame_read(&frame, layer);
        for (uint32_t rank = 0; rank < R; rank++) {
            const wb_physical_id *table = NULL;
            wb_dispatch *d = NULL;
            if (p->topology.dead[rank]) continue;
            assert_ok(wb_dispatch_open(p, WB_DISPATCH_STATIC, rank, &d));
            assert_ok(wb_dispatch_table(d, layer, &table));
            for (uint32_t e = 0; e < E; e++) chosen[e * R + rank] = table[e].slot;
            wb_dispatch_close(d);
        }
        for (uint32_t e = 0; e < E; e++) {
            wb_static_slots(&frame, e, at_once);
            for (uint32_t rank = 0; rank < R; rank++) {
                if (p->topology.dead[rank]) continue;
                nearest(p, layer, e, rank, &nearby);
                bool found = false;
                for (uint32_t i = 0; i < nearby.n; i++) found |= nearby.slots[i] == chosen[e * R + rank];
                assert_true(found);
                assert_int_equal(chosen[e * R + rank], at_once[rank]);
                if (!nearby.own) check_even(p, &nearby, layer, e, rank, chosen + (size_t)e * R);
            }
        }
        wb_owner_close(&memory);
        free(chosen);
        free(at_once);
        wb_placement_close(p);
    }
}

/* Three far ranks for two replicas: the odd one is not always the first replica's. */
static void test_static_remainders_do_not_pile_up(void **unused) {
    (void)unused;
    enum { E = 100, L = 4 };
    uint32_t slots_of_rank[5] = {E, E, 0, 0, 0}, first = 0, *counts = take(5 * E, sizeof *counts);
    double *tokens = take((size_t)2 * E, sizeof *tokens);
    wb_topology t = {.n_ranks = 5, .n_nodes = 5, .n_slots = 2 * E, .slots_of_rank = slots_of_rank};
    wb_placement *p = NULL;
    assert_ok(wb_placement_open(&t, L, E, &p));
    for (uint32_t i = 0; i < 5 * E; i++) counts[i] = 1;
    for (uint32_t layer = 0; layer < L; layer++) {
        wb_dispatch_traffic traffic;
        assert_ok(wb_dispatch_loads(p, WB_DISPATCH_STATIC, layer, counts, tokens, &traffic));
        for (uint32_t slot = 0; slot < E; slot++) first += tokens[slot] == 3;
    }
    assert_in_range(first, L * E / 2 - 60, L * E / 2 + 60);
    free(counts);
    free(tokens);
    wb_placement_close(p);
}

static void test_static_follows_every_change(void **unused) {
    (void)unused;
    wb_topology t = {.n_ranks = 2, .n_nodes = 1, .n_slots = 4};
    const int32_t map[] = {3, 2, 1, 0}, ids32[] = {0, 1, 2, 3};
    const uint8_t ids[] = {0, 1, 2, 3};
    wb_routed_rows rows = {.ids = ids, .dtype = WB_U8, .T = 1, .K = 4};
    wb_physical_id out[4];
    wb_placement *p = NULL;
    wb_dispatch *d = NULL;
    assert_ok(wb_placement_open(&t, 1, 4, &p));
    assert_ok(wb_dispatch_open(p, WB_DISPATCH_STATIC, 0, &d));
    assert_ok(wb_dispatch_rows(d, 0, &rows, NULL, out));
    for (uint32_t i = 0; i < 4; i++) assert_int_equal(out[i].slot, i);
    assert_ok(wb_placement_set_layer(p, 0, map, NULL, 5));
    assert_ok(wb_dispatch_rows(d, 0, &rows, NULL, out));
    for (uint32_t i = 0; i < 4; i++) assert_int_equal(out[i].slot, 3 - i);
    assert_ok(wb_placement_set_layer(p, 0, ids32, NULL, 5)); /* another map at the same epoch */
    assert_ok(wb_dispatch_rows(d, 0, &rows, NULL, out));
    for (uint32_t i = 0; i < 4; i++) assert_int_equal(out[i].slot, i);
    wb_dispatch_close(d);
    wb_placement_close(p);
}

/* ---- dynamic --------------------------------------------------------------------------------- */

/* Tokens that are replicated over ranks: each rank's pick is every rank's. */
static void test_sglang_32962_replica_choice_is_the_same_on_every_rank(void **unused) {
    (void)unused;
    enum { T = 200, K = 4 };
    uint64_t random = seed, keys[T];
    wb_physical_id first[T * K], out[T * K];
    uint16_t ids[T * K];
    for (uint32_t round = 0; round < 20; round++) {
        wb_placement *p = random_placement(&random, 12, 20, 60, 1);
        bool any = false;
        for (uint32_t i = 0; i < T * K; i++) ids[i] = (uint16_t)pick(&random, 0, p->n_experts - 1);
        for (uint32_t i = 0; i < T; i++) keys[i] = wb_random(&random);
        wb_routed_rows rows = {.ids = ids, .dtype = WB_U16, .T = T, .K = K};
        for (uint32_t rank = 0; rank < p->topology.n_ranks; rank++) {
            wb_dispatch *d = NULL;
            if (p->topology.dead[rank]) continue;
            assert_ok(wb_dispatch_open(p, WB_DISPATCH_DYNAMIC, rank, &d));
            assert_ok(wb_dispatch_rows(d, 0, &rows, keys, out));
            if (!any) memcpy(first, out, sizeof out);
            any = true;
            assert_memory_equal(first, out, sizeof out);
            for (uint32_t i = 0; i < T * K; i++)
                assert_int_equal(wb_placement_experts_of(p, 0)[out[i].slot], ids[i]);
            wb_dispatch_close(d);
        }
        wb_placement_close(p);
    }
}

/* Chi-square of `cells` counts that should be even, of `total` in all, less what chance may make of it: at
 * most 0. */
static double chi_square_excess(const uint32_t *counts, uint32_t cells, uint32_t total) {
    double sum = 0, expected = (double)total / cells, freedom = cells - 1;
    for (uint32_t i = 0; i < cells; i++) sum += (counts[i] - expected) * (counts[i] - expected) / expected;
    return sum - (freedom + 8.5 * sqrt(freedom) + 12);
}

/* Keys 0, step, 2 step, ...: the picks of expert 0 among n replicas are even, and so are its picks
 * together with those of the same tokens for expert 1, and with those of the next layer. */
static void check_unbiased(uint32_t n, uint64_t step) {
    enum { T = 20000 };
    static uint8_t ids[T][2];
    static uint64_t keys[T];
    static wb_physical_id out[T][2], next[T][2];
    wb_topology t = {.n_ranks = n, .n_nodes = 1, .n_slots = 2 * n};
    uint32_t alone[16] = {0}, experts[256] = {0}, layers[256] = {0};
    wb_placement *p = NULL;
    wb_dispatch *d = NULL;
    for (uint32_t i = 0; i < T; i++) {
        keys[i] = i * step;
        ids[i][1] = 1;
    }
    wb_routed_rows rows = {.ids = ids, .dtype = WB_U8, .T = T, .K = 2};
    assert_ok(wb_placement_open(&t, 2, 2, &p));
    assert_ok(wb_dispatch_open(p, WB_DISPATCH_DYNAMIC, 0, &d));
    assert_ok(wb_dispatch_rows(d, 0, &rows, keys, &out[0][0]));
    assert_ok(wb_dispatch_rows(d, 1, &rows, keys, &next[0][0]));
    for (uint32_t i = 0; i < T; i++) {
        uint32_t at = out[i][0].slot / 2; /* each rank has both experts */
        alone[at]++;
        experts[at * n + out[i][1].slot / 2]++;
        layers[at * n + next[i][0].slot / 2]++;
    }
    bool even = chi_square_excess(alone, n, T) <= 0 && chi_square_excess(experts, n * n, T) <= 0 &&
                chi_square_excess(layers, n * n, T) <= 0;
    if (!even) fail_msg("step %" PRIu64 ", %u replicas: the picks are not even", step, n);
    wb_dispatch_close(d);
    wb_placement_close(p);
}

static void test_vllm_40810_strided_tokens_are_not_biased(void **unused) {
    (void)unused;
    const uint64_t steps[] = {1, 2, 3, 4, 8, 64, (uint64_t)1 << 32};
    const uint32_t replicas[] = {2, 3, 4, 5, 8, 16};
    for (size_t s = 0; s < sizeof steps / sizeof *steps; s++)
        for (size_t i = 0; i < sizeof replicas / sizeof *replicas; i++) check_unbiased(replicas[i], steps[s]);
}

/* ---- fake ------------------------------------------------------------------------------------ */

static void test_fake_is_even_across_calls(void **unused) {
    (void)unused;
    uint64_t random = seed;
    for (uint32_t round = 0; round < 30; round++) {
        wb_placement *p = random_placement(&random, 8, 12, 20, 2);
        const int32_t *map = wb_placement_experts_of(p, 1);
        uint32_t rank = 0, *counts = take(p->topology.n_slots, sizeof *counts), min = UINT32_MAX, max = 0;
        wb_dispatch *d = NULL;
        while (p->topology.dead[rank]) rank++;
        assert_ok(wb_dispatch_open(p, WB_DISPATCH_FAKE, rank, &d));
        for (uint32_t call = 0; call < 9; call++) {
            const uint8_t ids[30] = {0}, valid[] = {(uint8_t)wb_random(&random), 0xff};
            wb_physical_id out[30];
            wb_routed_rows rows = {
                .ids = ids, .dtype = WB_U8, .T = pick(&random, 0, 10), .K = 3, .valid = valid};
            assert_ok(wb_dispatch_rows(d, 1, &rows, NULL, out));
            for (uint32_t i = 0; i < rows.T * 3; i++) {
                bool is_valid = valid[i / 3 / 8] >> (i / 3 % 8) & 1;
                assert_int_equal(is_valid, out[i].slot != WB_NO_SLOT);
                if (is_valid) counts[out[i].slot]++;
            }
            assert_ok(wb_dispatch_rows(d, 0, &rows, NULL, out)); /* another layer has turns of its own */
        }
        for (uint32_t r = 0; r < p->topology.n_ranks; r++) {
            uint32_t on_rank = 0, filled = 0;
            for (uint32_t slot = p->first_slot[r]; slot < p->first_slot[r + 1]; slot++) {
                if (map[slot] == WB_NO_EXPERT) assert_int_equal(counts[slot], 0);
                filled += map[slot] != WB_NO_EXPERT;
                on_rank += counts[slot];
            }
            if (filled == 0) continue;
            for (uint32_t slot = p->first_slot[r]; slot < p->first_slot[r + 1]; slot++)
                if (map[slot] != WB_NO_EXPERT)
                    assert_in_range(counts[slot], on_rank / filled, (on_rank + filled - 1) / filled);
            if (on_rank < min) min = on_rank;
            if (on_rank > max) max = on_rank;
        }
        assert_in_range(max - min, 0, 1);
        wb_dispatch_close(d);
        free(counts);
        wb_placement_close(p);
    }
}

/* ---- rows ------------------------------------------------------------------------------------ */

/* u8 and u16 at any alignment, with stride and padding rows, against the table. */
static void test_rows_of_any_layout(void **unused) {
    (void)unused;
    enum { T = 19, K = 3, E = 40 };
    uint64_t random = seed;
    wb_topology t = {.n_ranks = 3, .n_nodes = 1, .n_slots = 50};
    wb_placement *p = NULL;
    wb_dispatch *d = NULL;
    const wb_physical_id *table = NULL;
    assert_ok(wb_placement_open(&t, 1, E, &p));
    assert_ok(wb_dispatch_open(p, WB_DISPATCH_STATIC, 2, &d));
    assert_ok(wb_dispatch_table(d, 0, &table));
    for (uint32_t variant = 0; variant < 32; variant++) {
        bool wide = variant & 1, padded = variant & 8;
        size_t width = wide ? 2 : 1, stride = variant & 2 ? K * width : K * width + 5,
               skew = variant >> 2 & 1;
        uint8_t *block = take(T * stride + skew, 1), valid[] = {0xa7, 0x3c, 0x05};
        wb_physical_id out[T * K];
        memset(block, wide ? 0xff : 200, T * stride + skew);
        for (uint32_t i = 0; i < T * K; i++) {
            uint8_t *at = block + skew + i / K * stride + i % K * width;
            bool keep = !padded || (valid[i / K / 8] >> (i / K % 8) & 1);
            at[0] = keep ? (uint8_t)pick(&random, 0, E - 1) : 0xfe; /* padding rows hold what they like */
            if (wide) at[1] = keep ? 0 : 0xfe;
        }
        wb_routed_rows rows = {block + skew,         wide ? WB_U16 : WB_U8, variant & 16 ? stride : 0, T, K,
                               padded ? valid : NULL};
        if (stride != K * width) rows.row_stride = stride;
        assert_ok(wb_dispatch_rows(d, 0, &rows, NULL, out));
        for (uint32_t i = 0; i < T * K; i++) {
            bool keep = !padded || (valid[i / K / 8] >> (i / K % 8) & 1);
            uint32_t id = block[skew + i / K * stride + i % K * width];
            assert_int_equal(out[i].slot, keep ? table[id].slot : WB_NO_SLOT);
        }
        free(block);
    }
    wb_dispatch_close(d);
    wb_placement_close(p);
}

/* Up to the last value of a width: with E 256 and 65536 all ones is an expert, with one expert less it is
 * refused. */
static void test_widest_ids(void **unused) {
    (void)unused;
    const uint32_t experts[] = {255, 256, 65535, 65536};
    for (int i = 0; i < 4; i++) {
        wb_topology t = {.n_ranks = 2, .n_nodes = 1, .n_slots = experts[i]};
        const uint8_t ids[] = {0xff, 0xff};
        wb_placement *p = NULL;
        wb_dispatch *d = NULL;
        wb_physical_id out;
        wb_routed_rows rows = {.ids = ids, .dtype = i < 2 ? WB_U8 : WB_U16, .T = 1, .K = 1};
        assert_ok(wb_placement_open(&t, 1, experts[i], &p));
        assert_ok(wb_dispatch_open(p, WB_DISPATCH_STATIC, 0, &d));
        if (i % 2 == 0) {
            assert_fails(wb_dispatch_rows(d, 0, &rows, NULL, &out), WB_INVALID_ARGUMENT, "choice 0");
        } else {
            assert_ok(wb_dispatch_rows(d, 0, &rows, NULL, &out));
            assert_int_equal(out.slot, experts[i] - 1);
        }
        wb_dispatch_close(d);
        wb_placement_close(p);
    }
}

/* A slot is a struct, which no call takes for an id. Its bytes passed as ids are refused where they are
 * none. */
static void test_sglang_25285_ids_are_mapped_once(void **unused) {
    (void)unused;
    wb_topology t = {.n_ranks = 4, .n_nodes = 1, .n_slots = 12};
    const uint8_t ids[] = {5, 0, 5, 1};
    const uint8_t half[] = {1};
    wb_physical_id out[4], twice[4] = {{77}, {77}, {77}, {77}};
    wb_placement *p = NULL;
    assert_ok(wb_placement_open(&t, 2, 6, &p));
    for (int policy = 0; policy < 4; policy++) {
        const uint64_t keys[] = {1, 2};
        wb_dispatch *d = NULL;
        const uint32_t counts[24] = {[18] = 9, [19] = 9, [23] = 9};
        assert_ok(wb_dispatch_open(p, (wb_dispatch_policy)policy, 3, &d));
        if (policy == WB_DISPATCH_QUOTA) assert_ok(wb_dispatch_set_counts(d, 1, counts));
        wb_routed_rows rows = {.ids = ids, .dtype = WB_U8, .T = 2, .K = 2};
        assert_ok(wb_dispatch_rows(d, 1, &rows, keys, out));
        uint16_t again[] = {2, (uint16_t)(out[0].slot % 6), (uint16_t)(6 + out[0].slot % 6), 11};
        rows = (wb_routed_rows){.ids = again, .dtype = WB_U16, .T = 2, .K = 2};
        assert_fails(wb_dispatch_rows(d, 1, &rows, keys, twice), WB_INVALID_ARGUMENT,
                     "layer 1, row 1, choice 0");
        for (int i = 0; i < 4; i++) assert_int_equal(twice[i].slot, 77);
        rows.valid = half; /* what a row that is not valid holds is nobody's concern */
        rows.T = policy == WB_DISPATCH_QUOTA ? 0 : 2;
        assert_ok(wb_dispatch_rows(d, 1, &rows, keys, out));
        wb_dispatch_close(d);
    }
    wb_placement_close(p);
}

static void test_refusals(void **unused) {
    (void)unused;
    const uint8_t dead[] = {0, 1};
    const uint8_t ids[] = {0, 1};
    const uint32_t counts[4] = {0}, of_dead[] = {0, 0, 1, 0};
    const wb_physical_id *table = NULL;
    wb_topology t = {.n_ranks = 2, .n_nodes = 1, .n_slots = 8, .dead = dead};
    wb_placement *p = NULL;
    wb_dispatch *none = NULL, *d = NULL;
    wb_physical_id out[2] = {{77}, {77}};
    wb_dispatch_policy policy = WB_DISPATCH_FAKE;
    wb_dispatch_traffic traffic = {.node_tokens = 77};
    double tokens[8] = {77};
    assert_ok(wb_placement_open(&t, 3, 2, &p));
    assert_fails(wb_dispatch_open(p, WB_DISPATCH_STATIC, 2, &none), WB_INVALID_ARGUMENT, "rank");
    assert_fails(wb_dispatch_open(p, (wb_dispatch_policy)4, 0, &none), WB_INVALID_ARGUMENT, "policy");
    assert_null(none);
    assert_ok(wb_dispatch_open(p, WB_DISPATCH_DYNAMIC, 0, &d));
    wb_routed_rows rows = {.ids = ids, .dtype = WB_U8, .T = 1, .K = 2};
    assert_fails(wb_dispatch_rows(d, 0, &rows, NULL, out), WB_INVALID_ARGUMENT, "keys");
    assert_fails(wb_dispatch_rows(d, 3, &rows, NULL, out), WB_INVALID_ARGUMENT, "layer");
    assert_fails(wb_dispatch_table(d, 0, &table), WB_INVALID_ARGUMENT, "static");
    assert_fails(wb_dispatch_set_counts(d, 0, counts), WB_INVALID_ARGUMENT, "quota");
    rows.row_stride = 1;
    assert_fails(wb_dispatch_rows(d, 0, &rows, NULL, out), WB_INVALID_ARGUMENT, "row_stride");
    rows = (wb_routed_rows){.ids = ids, .dtype = WB_I32, .T = 1, .K = 2};
    assert_fails(wb_dispatch_rows(d, 0, &rows, NULL, out), WB_INVALID_ARGUMENT, "dtype");
    assert_int_equal(out[0].slot, 77);
    assert_fails(wb_dispatch_loads(p, WB_DISPATCH_STATIC, 3, counts, tokens, &traffic), WB_INVALID_ARGUMENT,
                 "layer");
    assert_fails(wb_dispatch_loads(p, (wb_dispatch_policy)9, 0, counts, tokens, &traffic),
                 WB_INVALID_ARGUMENT, "policy");
    for (int i = 0; i < 4; i++)
        assert_fails(wb_dispatch_loads(p, (wb_dispatch_policy)i, 0, of_dead, tokens, &traffic),
                     WB_INVALID_ARGUMENT, "rank 1 is dead");
    assert_true(tokens[0] == 77 && traffic.node_tokens == 77);
    assert_fails(wb_dispatch_policy_parse("lp", &policy), WB_INVALID_ARGUMENT, "lp");
    for (int i = 0; i < 4; i++) {
        assert_ok(wb_dispatch_policy_parse(wb_dispatch_policy_name((wb_dispatch_policy)i), &policy));
        assert_int_equal(policy, i);
    }
    assert_string_equal(wb_dispatch_policy_name((wb_dispatch_policy)4), "unknown");
    wb_dispatch_close(d);
    wb_dispatch_close(NULL);
    wb_placement_close(p);
}

/* ---- loads and traffic ----------------------------------------------------------------------- */

typedef struct sums {
    double tokens[1024], sent[2][64], got[2][64]; /* [slot], [inside, outside the node][rank] */
} sums;

static void add(const wb_placement *p, sums *s, uint32_t from, uint32_t slot, double tokens) {
    uint32_t to = p->rank_of_slot[slot];
    int way = p->topology.node_of_rank[to] != p->topology.node_of_rank[from];
    s->tokens[slot] += tokens;
    if (to == from) return;
    s->sent[way][from] += tokens;
    s->got[way][to] += tokens;
}

static uint32_t filled_on(const wb_placement *p, const int32_t *map, uint32_t rank) {
    uint32_t n = 0;
    for (uint32_t slot = p->first_slot[rank]; slot < p->first_slot[rank + 1]; slot++)
        n += map[slot] != WB_NO_EXPERT;
    return n;
}

/* Each source's tokens one (source, slot) pair at a time. */
static void add_all(const wb_placement *p, wb_dispatch_policy policy, const uint32_t *counts, sums *s) {
    const int32_t *map = wb_placement_experts_of(p, 0);
    uint32_t S = p->topology.n_slots, E = p->n_experts, n_filled = 0;
    for (uint32_t rank = 0; rank < p->topology.n_ranks; rank++) n_filled += filled_on(p, map, rank) > 0;
    for (uint32_t rank = 0; rank < p->topology.n_ranks; rank++) {
        const wb_physical_id *table = NULL;
        wb_dispatch *d = NULL;
        if (p->topology.dead[rank]) continue;
        assert_ok(wb_dispatch_open(p, WB_DISPATCH_STATIC, rank, &d));
        assert_ok(wb_dispatch_table(d, 0, &table));
        for (uint32_t e = 0; e < E; e++) {
            double c = counts[rank * E + e];
            uint32_t n = 0;
            for (uint32_t slot = 0; slot < S; slot++) n += map[slot] == (int32_t)e;
            if (policy == WB_DISPATCH_STATIC) add(p, s, rank, table[e].slot, c);
            for (uint32_t slot = 0; slot < S; slot++) {
                if (policy == WB_DISPATCH_DYNAMIC && map[slot] == (int32_t)e) add(p, s, rank, slot, c / n);
                if (policy == WB_DISPATCH_FAKE && map[slot] != WB_NO_EXPERT)
                    add(p, s, rank, slot, c / n_filled / filled_on(p, map, p->rank_of_slot[slot]));
            }
        }
        wb_dispatch_close(d);
    }
}

static void assert_close(double found, double expected) {
    double difference = found > expected ? found - expected : expected - found;
    assert_true(difference <= 1e-9 * (1 + expected));
}

static void test_loads_are_sums_over_tokens(void **unused) {
    (void)unused;
    const wb_dispatch_policy policies[] = {WB_DISPATCH_STATIC, WB_DISPATCH_DYNAMIC, WB_DISPATCH_FAKE};
    uint64_t random = seed + 1;
    for (uint32_t round = 0; round < 90; round++) {
        wb_dispatch_policy policy = policies[round % 3];
        wb_placement *p = random_placement(&random, 14, 40, 30, 1);
        uint32_t *counts = random_counts(p, 50, &random);
        double *tokens = take(p->topology.n_slots, sizeof *tokens), total[2] = {0}, max[2] = {0};
        wb_dispatch_traffic traffic;
        sums s = {0};
        assert_in_range(p->topology.n_slots, 1, 1024);
        add_all(p, policy, counts, &s);
        assert_ok(wb_dispatch_loads(p, policy, 0, counts, tokens, &traffic));
        for (uint32_t slot = 0; slot < p->topology.n_slots; slot++)
            assert_close(tokens[slot], s.tokens[slot]);
        for (int way = 0; way < 2; way++)
            for (uint32_t rank = 0; rank < p->topology.n_ranks; rank++) {
                total[way] += s.sent[way][rank];
                if (s.sent[way][rank] > max[way]) max[way] = s.sent[way][rank];
                if (s.got[way][rank] > max[way]) max[way] = s.got[way][rank];
            }
        assert_close(traffic.node_tokens, total[0]);
        assert_close(traffic.network_tokens, total[1]);
        assert_close(traffic.max_rank_node, max[0]);
        assert_close(traffic.max_rank_network, max[1]);
        free(counts);
        free(tokens);
        wb_placement_close(p);
    }
}

int main(void) {
    printf("seed %" PRIu64 "\n", seed);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_static_is_near_and_even),
        cmocka_unit_test(test_static_remainders_do_not_pile_up),
        cmocka_unit_test(test_static_follows_every_change),
        cmocka_unit_test(test_sglang_32962_replica_choice_is_the_same_on_every_rank),
        cmocka_unit_test(test_vllm_40810_strided_tokens_are_not_biased),
        cmocka_unit_test(test_fake_is_even_across_calls),
        cmocka_unit_test(test_rows_of_any_layout),
        cmocka_unit_test(test_widest_ids),
        cmocka_unit_test(test_sglang_25285_ids_are_mapped_once),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_loads_are_sums_over_tokens),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
