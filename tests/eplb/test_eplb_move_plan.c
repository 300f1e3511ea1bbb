/* test_eplb_move_plan.c - every plan is carried out on simulated slots that remember layer, expert and a
 * checksum, through shadow slots, and its maps are compared with what the slots hold after each group.
 * Checked group by group: bounds, kinds, entries into nodes; at the end the map, the number of moves, bytes,
 * seconds. */
#include "wb_eplb.h"
#include "wb_random.h"

#include <inttypes.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { MAX_P = 32, MAX_S = 1024, MAX_E = 1024, MAX_L = 4, MAX_SHADOW = 2 };

static uint64_t random_state, seed = 1;
static uint32_t below(uint32_t n) {
    return (uint32_t)((wb_mix64(random_state++) >> 32) % n);
}

/* ---- the interpreter ------------------------------------------------------------------------- */

typedef struct cell {
    int32_t layer, expert; /* -1: nothing */
    uint64_t checksum;
} cell;

static cell cell_of(uint32_t layer, int32_t expert) {
    if (expert < 0) return (cell){-1, -1, 0};
    return (cell){(int32_t)layer, expert, wb_mix64((uint64_t)layer << 32 | (uint32_t)expert)};
}

typedef struct traffic {
    uint32_t node_in, node_out, network_in, network_out, local;
} traffic;

typedef struct machine {
    const wb_placement *from, *to;
    const wb_topology *t;
    const wb_move_options *options;
    wb_placement *map; /* what wb_move_apply_group makes */
    cell cells[MAX_S], shadow[MAX_P][MAX_SHADOW];
    uint32_t staged[MAX_P];
    bool written[MAX_S];                                 /* in this layer */
    bool rank_had[MAX_E][MAX_P], node_had[MAX_E][MAX_P]; /* at first or from a group before */
    uint32_t entries[MAX_E][MAX_P];                      /* of an expert into a node, reloads too */
    uint32_t reloads[MAX_E];
    bool lost[MAX_E]; /* no live rank has it yet */
    traffic now[MAX_P];
    uint32_t sent[MAX_P], network_in[MAX_P], network_out[MAX_P]; /* in all layers */
    double seconds;
    uint64_t count[4];
} machine;

static uint32_t rank_of(const machine *m, uint32_t slot) {
    return wb_placement_rank_of(m->to, (wb_physical_id){slot});
}

static void begin_layer(machine *m, uint32_t layer) {
    wb_layer_map map = wb_placement_layer(m->from, layer);
    memset(m->written, 0, sizeof m->written);
    memset(m->rank_had, 0, sizeof m->rank_had);
    memset(m->node_had, 0, sizeof m->node_had);
    memset(m->entries, 0, sizeof m->entries);
    memset(m->reloads, 0, sizeof m->reloads);
    memset(m->lost, true, sizeof m->lost);
    for (uint32_t s = 0; s < m->t->n_slots; s++) {
        uint32_t r = rank_of(m, s);
        int32_t e = m->t->dead[r] ? -1 : map.expert_of_slot[s];
        m->cells[s] = cell_of(layer, e);
        if (e < 0) continue;
        m->rank_had[e][r] = m->node_had[e][m->t->node_of_rank[r]] = true;
        m->lost[e] = false;
    }
}

static void check_network_move(machine *m, const wb_move *move, uint32_t from, uint32_t to) {
    uint32_t node = m->t->node_of_rank[to], e = move->expert;
    assert_false(m->node_had[e][node]);
    assert_int_equal(++m->entries[e][node], 1);
    m->now[to].network_in++;
    m->network_in[to]++;
    if (move->kind == WB_MOVE_RELOAD) {
        for (uint32_t n = 0; n < m->t->n_nodes; n++) assert_false(m->node_had[e][n]);
        assert_int_equal(++m->reloads[e], 1);
        return;
    }
    assert_int_equal(move->kind, WB_MOVE_NETWORK);
    assert_int_not_equal(m->t->node_of_rank[from], node);
    m->now[from].network_out++;
    m->network_out[from]++;
    m->sent[from]++;
}

/* The kind is the nearest one that there is: what a rank has is copied inside it, what its node has comes
 * from there. */
static void check_kind(machine *m, const wb_move *move, uint32_t to) {
    uint32_t from = move->kind == WB_MOVE_RELOAD ? UINT32_MAX : rank_of(m, move->from.slot);
    assert_int_equal(move->kind == WB_MOVE_LOCAL, m->rank_had[move->expert][to]);
    assert_int_equal(move->kind == WB_MOVE_LOCAL, from == to);
    if (from != UINT32_MAX) assert_false(m->t->dead[from]);
    if (move->kind == WB_MOVE_LOCAL) {
        m->now[to].local++;
    } else if (move->kind == WB_MOVE_NODE) {
        assert_int_equal(m->t->node_of_rank[from], m->t->node_of_rank[to]);
        m->now[from].node_out++;
        m->now[to].node_in++;
        m->sent[from]++;
    } else {
        check_network_move(m, move, from, to);
    }
}

/* Reads what the slot held before the group. */
static void stage(machine *m, const wb_move *move) {
    assert_true(move->to.slot < m->t->n_slots);
    uint32_t to = rank_of(m, move->to.slot);
    cell is = cell_of(move->layer, (int32_t)move->expert), got = is;
    assert_false(m->t->dead[to]);
    assert_false(m->written[move->to.slot]);
    m->written[move->to.slot] = true;
    assert_int_equal(move->kind == WB_MOVE_RELOAD, move->from.slot == WB_NO_SLOT);
    if (move->kind != WB_MOVE_RELOAD) {
        assert_true(move->from.slot < m->t->n_slots);
        got = m->cells[move->from.slot];
    }
    assert_memory_equal(&got, &is, sizeof is);
    check_kind(m, move, to);
    assert_true(m->staged[to] < m->options->n_shadow);
    m->shadow[to][m->staged[to]++] = got;
    m->count[move->kind]++;
}

static double max(double a, double b) {
    return a > b ? a : b;
}

/* Sends of a group over one link of a rank: what takes no longer than the latency of a group, or one. */
static double lane_of(const machine *m, double bytes_per_second) {
    const wb_cost_model *cost = &m->options->cost;
    return max(1, floor(cost->seconds_per_group * bytes_per_second / cost->expert_bytes));
}

static void check_traffic(machine *m) {
    const wb_cost_model *cost = &m->options->cost;
    double slowest = 0, x = cost->expert_bytes;
    for (uint32_t r = 0; r < m->t->n_ranks; r++) {
        const traffic *t = &m->now[r];
        assert_true(t->node_out + t->network_out <= m->options->group_moves);
        assert_true(t->node_out <= lane_of(m, cost->node_bytes_per_second));
        assert_true(t->network_out <= lane_of(m, cost->network_bytes_per_second));
        double seconds = t->local * x / cost->local_bytes_per_second;
        seconds = max(seconds, max(t->node_in, t->node_out) * x / cost->node_bytes_per_second);
        seconds = max(seconds, max(t->network_in, t->network_out) * x / cost->network_bytes_per_second);
        slowest = max(slowest, seconds + m->staged[r] * x / cost->local_bytes_per_second);
    }
    m->seconds += slowest + cost->seconds_per_group;
}

/* Every expert that had a copy has one. Once none is missing the map can be had: it names what the slots
 * hold, replicas in slot order. */
static void check_map(machine *m, const wb_move_plan *plan, uint32_t group) {
    uint32_t layer = plan->groups[group].layer, S = m->t->n_slots;
    uint32_t copies[MAX_E] = {0};
    bool complete = true;
    for (uint32_t s = 0; s < S; s++)
        if (m->cells[s].expert >= 0) copies[m->cells[s].expert]++;
    for (uint32_t e = 0; e < wb_placement_experts(m->to); e++) {
        assert_true(copies[e] > 0 || m->lost[e]);
        m->lost[e] = copies[e] == 0;
        complete &= copies[e] > 0;
    }
    wb_status status = wb_move_apply_group(plan, group, 100 + group, m->map);
    assert_int_equal(status, complete ? WB_OK : WB_INVALID_ARGUMENT);
    if (!complete) return;
    wb_layer_map map = wb_placement_layer(m->map, layer);
    assert_int_equal(map.epoch, 100 + group);
    memset(copies, 0, sizeof copies);
    for (uint32_t s = 0; s < S; s++) {
        int32_t e = map.expert_of_slot[s];
        bool emptied = plan->groups[group].last && e < 0;
        if (!emptied) assert_int_equal(e, m->cells[s].expert);
        if (!plan->groups[group].last && e >= 0) assert_int_equal(map.replica_of_slot[s], copies[e]++);
    }
}

static void run_group(machine *m, const wb_move_plan *plan, uint32_t group) {
    const wb_move_group *g = &plan->groups[group];
    memset(m->staged, 0, sizeof m->staged);
    memset(m->now, 0, sizeof m->now);
    for (uint64_t i = g->begin; i < g->end; i++) {
        assert_int_equal(plan->moves[i].layer, g->layer);
        if (i > g->begin)
            assert_true(rank_of(m, plan->moves[i - 1].to.slot) <= rank_of(m, plan->moves[i].to.slot));
        stage(m, &plan->moves[i]);
    }
    check_traffic(m);
    memset(m->staged, 0, sizeof m->staged);
    for (uint64_t i = g->begin; i < g->end; i++) {
        uint32_t e = plan->moves[i].expert, slot = plan->moves[i].to.slot, r = rank_of(m, slot);
        m->cells[slot] = m->shadow[r][m->staged[r]++];
        m->rank_had[e][r] = m->node_had[e][m->t->node_of_rank[r]] = true;
    }
    check_map(m, plan, group);
}

/* ---- what a plan promises -------------------------------------------------------------------- */

static int by_value(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

/* The (expert, replica) of a rank's slots, sorted; empty slots are all ones. */
static uint32_t content_of(const wb_placement *p, uint32_t layer, uint32_t rank, uint64_t *sorted_out) {
    wb_layer_map map = wb_placement_layer(p, layer);
    uint32_t n = 0;
    for (uint32_t s = wb_placement_first_slot(p, rank); s < wb_placement_first_slot(p, rank + 1); s++)
        sorted_out[n++] = map.expert_of_slot[s] < 0
                              ? UINT64_MAX
                              : (uint64_t)map.expert_of_slot[s] << 32 | map.replica_of_slot[s];
    qsort(sorted_out, n, sizeof *sorted_out, by_value);
    return n;
}

static void check_same_but_order(const wb_placement *expected, const wb_placement *found, uint32_t layer) {
    uint64_t a[MAX_S], b[MAX_S];
    for (uint32_t r = 0; r < wb_placement_topology(expected)->n_ranks; r++) {
        uint32_t n = content_of(expected, layer, r, a);
        assert_int_equal(content_of(found, layer, r, b), n);
        assert_memory_equal(a, b, n * sizeof *a);
    }
}

/* Copies that ranks lack in `from`, dead ones having nothing. No plan makes fewer moves. */
static uint64_t count_missing(const machine *m, uint32_t layer) {
    const int32_t *old = wb_placement_layer(m->from, layer).expert_of_slot;
    const int32_t *new = wb_placement_layer(m->to, layer).expert_of_slot;
    uint64_t missing = 0, changed = 0;
    for (uint32_t r = 0; r < m->t->n_ranks; r++) {
        int32_t more[MAX_E] = {0};
        uint32_t begin = wb_placement_first_slot(m->to, r), end = wb_placement_first_slot(m->to, r + 1);
        for (uint32_t s = begin; s < end; s++) {
            if (new[s] >= 0) more[new[s]]++;
            if (old[s] >= 0) more[old[s]]--;
            changed += new[s] >= 0 && new[s] != old[s];
        }
        for (uint32_t e = 0; e < wb_placement_experts(m->to); e++)
            missing += more[e] > 0 ? (uint32_t)more[e] : 0;
    }
    assert_true(missing <= changed);
    return missing;
}

static bool in_set(uint32_t layer, uint32_t n, const uint32_t *layers) {
    for (uint32_t i = 0; layers && i < n; i++)
        if (layers[i] == layer) return true;
    return !layers;
}

static void check_sums(const machine *m, const wb_move_plan *plan) {
    double x = m->options->cost.expert_bytes, difference = plan->seconds - m->seconds;
    assert_true(plan->local_bytes == (double)m->count[WB_MOVE_LOCAL] * x);
    assert_true(plan->node_bytes == (double)m->count[WB_MOVE_NODE] * x);
    assert_true(plan->network_bytes == (double)m->count[WB_MOVE_NETWORK] * x);
    assert_true(plan->reload_bytes == (double)m->count[WB_MOVE_RELOAD] * x);
    assert_true(difference <= 1e-9 * m->seconds && -difference <= 1e-9 * m->seconds);
}

/* Carries a plan out and checks all that it promises. What it counted stays in *m until the next call. */
static void check_plan(const wb_placement *from, const wb_placement *to, uint32_t n, const uint32_t *layers,
                       const wb_move_options *options, const wb_move_plan *plan, machine *m) {
    *m = (machine){.from = from, .to = to, .t = wb_placement_topology(to), .options = options};
    assert_int_equal(wb_placement_clone(to, &m->map), WB_OK);
    uint64_t i = 0;
    uint32_t group = 0;
    for (uint32_t l = 0; l < wb_placement_layers(to); l++) {
        if (!in_set(l, n, layers)) continue;
        uint64_t first = i;
        uint32_t first_group = group;
        begin_layer(m, l);
        for (; group < plan->n_groups && plan->groups[group].layer == l; group++) {
            const wb_move_group *g = &plan->groups[group];
            bool next = group + 1 < plan->n_groups && plan->groups[group + 1].layer == l;
            assert_int_equal(g->last, !next);
            assert_int_equal(g->begin, i);
            assert_true(g->end > i || (group == first_group && g->last));
            run_group(m, plan, group);
            i = g->end;
        }
        assert_int_equal(i - first, count_missing(m, l));
        check_same_but_order(to, group > first_group ? m->map : from, l);
    }
    assert_int_equal(i, plan->n_moves);
    assert_int_equal(group, plan->n_groups);
    check_sums(m, plan);
    wb_placement_close(m->map);
}

static machine *the_machine;

static wb_move_plan *plan_of(const wb_placement *from, const wb_placement *to,
                             const wb_move_options *options) {
    wb_move_plan *plan = NULL;
    assert_int_equal(wb_move_plan_open(from, to, wb_placement_layers(to), NULL, options, &plan), WB_OK);
    check_plan(from, to, 0, NULL, options, plan, the_machine);
    return plan;
}

/* ---- random placements ----------------------------------------------------------------------- */

static void shuffle(uint32_t *x, uint32_t n) {
    for (uint32_t i = n; i > 1; i--) {
        uint32_t j = below(i), y = x[i - 1];
        x[i - 1] = x[j];
        x[j] = y;
    }
}

typedef struct random_shape {
    uint32_t slots[MAX_P], node[MAX_P];
    uint8_t dead_before[MAX_P], dead_after[MAX_P];
    wb_topology before, after;
    uint32_t L, E;
} random_shape;

static uint32_t live_slots(const random_shape *s, const uint8_t *dead) {
    uint32_t n = 0;
    for (uint32_t r = 0; r < s->before.n_ranks; r++) n += dead[r] ? 0 : s->slots[r];
    return n;
}

static void random_topology(random_shape *s, uint32_t max_ranks, uint32_t max_slots) {
    uint32_t R = 1 + below(max_ranks), N = 1 + below(R < 4 ? R : 4), S = 0, even = 1 + below(max_slots);
    bool uneven = below(3) == 0, dying = below(3) == 0;
    memset(s, 0, sizeof *s);
    for (uint32_t r = 0; r < R; r++) {
        s->slots[r] = uneven ? below(max_slots + 1) : even;
        S += s->slots[r];
        /* the ranks that are left must do for the nodes that are left */
        if (r > 0) s->node[r] = s->node[r - 1];
        if (r > 0 && s->node[r] + 1 < N && (N - 1 - s->node[r] >= R - r || below(2))) s->node[r]++;
        s->dead_after[r] = dying && below(4) == 0;
        s->dead_before[r] = s->dead_after[r] && below(4) == 0;
    }
    if (S == 0) s->slots[0] = S = 1;
    s->before = (wb_topology){R, N, S, s->slots, s->node, s->dead_before};
    s->after = s->before;
    s->after.dead = s->dead_after;
    if (live_slots(s, s->dead_after) == 0) {
        memset(s->dead_after, 0, sizeof s->dead_after);
        memset(s->dead_before, 0, sizeof s->dead_before);
    }
    uint32_t live = live_slots(s, s->dead_after), per_expert = 1 + below(4);
    s->E = live / per_expert > 0 ? live / per_expert : 1;
    s->L = 1 + below(MAX_L);
}

/* Each expert once, the other live slots anything or empty. */
static void random_map(const random_shape *s, const uint8_t *dead, uint32_t empty_percent, int32_t *map) {
    uint32_t live[MAX_S], n = 0, slot = 0;
    for (uint32_t r = 0; r < s->before.n_ranks; r++)
        for (uint32_t i = 0; i < s->slots[r]; i++, slot++) {
            map[slot] = WB_NO_EXPERT;
            if (!dead[r]) live[n++] = slot;
        }
    shuffle(live, n);
    for (uint32_t i = 0; i < n; i++)
        if (i < s->E)
            map[live[i]] = (int32_t)i;
        else if (below(100) >= empty_percent)
            map[live[i]] = (int32_t)below(s->E);
}

/* `to` from `from`: content rotated along cycles of random slots, `length` each; without dead ranks only. */
static void rotate(const random_shape *s, uint32_t length, const int32_t *from, int32_t *to) {
    uint32_t order[MAX_S], S = s->before.n_slots;
    for (uint32_t i = 0; i < S; i++) order[i] = i;
    shuffle(order, S);
    memcpy(to, from, S * sizeof *to);
    for (uint32_t begin = 0; begin < S; begin += length) {
        uint32_t n = S - begin < length ? S - begin : length;
        for (uint32_t i = 0; i < n; i++) to[order[begin + i]] = from[order[begin + (i + 1) % n]];
    }
}

static void random_change(const random_shape *s, const int32_t *from, int32_t *to) {
    uint32_t S = s->before.n_slots;
    bool dying = memcmp(s->dead_before, s->dead_after, sizeof s->dead_before) != 0 ||
                 live_slots(s, s->dead_after) != S;
    uint32_t kind = dying ? 0 : below(6);
    if (kind == 1) rotate(s, S, from, to);            /* one cycle over all slots */
    if (kind == 2) rotate(s, 2, from, to);            /* swaps */
    if (kind == 3) rotate(s, 1 + below(S), from, to); /* disjoint cycles */
    if (kind == 4) memcpy(to, from, S * sizeof *to);  /* nothing */
    if (kind == 0 || kind == 5) random_map(s, s->dead_after, below(2) * below(60), to);
}

static void random_pair(const random_shape *s, wb_placement **from, wb_placement **to) {
    int32_t old[MAX_S], new[MAX_S];
    assert_int_equal(wb_placement_open(&s->before, s->L, s->E, from), WB_OK);
    assert_int_equal(wb_placement_open(&s->after, s->L, s->E, to), WB_OK);
    for (uint32_t l = 0; l < s->L; l++) {
        random_map(s, s->dead_before, below(2) * below(60), old);
        random_change(s, old, new);
        assert_int_equal(wb_placement_set_layer(*from, l, old, NULL, 1), WB_OK);
        assert_int_equal(wb_placement_set_layer(*to, l, new, NULL, 2), WB_OK);
    }
}

static wb_move_options random_options(void) {
    wb_move_options options = wb_move_options_default();
    options.n_shadow = 1 + below(2);
    options.group_moves = below(2) ? 1 + below(32) : 1 + below(3);
    uint32_t scale = below(3); /* many moves of a group on one link, a few, one */
    options.cost.expert_bytes = (scale == 0 ? 1024.0 : scale == 1 ? 131072.0 : 8388608.0) * (1 + below(9));
    return options;
}

/* What is moved in a layer, and where to, does not depend on the layers that are planned with it. */
static void check_part(const wb_move_plan *plan, const wb_move_plan *some, uint32_t n,
                       const uint32_t *layers) {
    uint64_t found = 0;
    for (uint64_t i = 0; i < plan->n_moves; i++)
        if (in_set(plan->moves[i].layer, n, layers)) {
            assert_true(found < some->n_moves);
            assert_memory_equal(&plan->moves[i], &some->moves[found++], sizeof *plan->moves);
        }
    assert_int_equal(found, some->n_moves);
}

static void check_random_pairs(uint32_t pairs, uint32_t max_ranks, uint32_t max_slots) {
    printf("seed %" PRIu64 ", %u pairs\n", seed, pairs);
    random_state = wb_mix64(seed + max_slots);
    for (uint32_t i = 0; i < pairs; i++) {
        random_shape s;
        wb_placement *from = NULL, *to = NULL;
        wb_move_plan *plan = NULL, *again = NULL, *some = NULL;
        uint32_t layers[MAX_L] = {0, 1, 2, 3}, n;
        random_topology(&s, max_ranks, max_slots);
        random_pair(&s, &from, &to);
        wb_move_options options = random_options();
        shuffle(layers, s.L);
        n = below(s.L + 1);
        assert_int_equal(wb_move_plan_open(from, to, n, layers, &options, &some), WB_OK);
        check_plan(from, to, n, layers, &options, some, the_machine);
        plan = plan_of(from, to, &options);
        assert_int_equal(wb_move_plan_open(from, to, wb_placement_layers(to), NULL, &options, &again), WB_OK);
        assert_int_equal(plan->n_moves, again->n_moves);
        assert_int_equal(plan->n_groups, again->n_groups);
        assert_memory_equal(plan->moves, again->moves, plan->n_moves * sizeof *plan->moves);
        check_part(plan, some, n, layers);
        wb_move_plan_close(some);
        wb_move_plan_close(again);
        wb_move_plan_close(plan);
        wb_placement_close(to);
        wb_placement_close(from);
    }
}

static void test_random_pairs(void **state) {
    (void)state;
    check_random_pairs(4000, 12, 6);
}

static void test_random_pairs_of_few_ranks_with_many_slots(void **state) {
    (void)state;
    check_random_pairs(600, 3, 40);
}

/* ---- named cases ----------------------------------------------------------------------------- */

static wb_placement *placement_of(const wb_topology *t, uint32_t E, const int32_t *map) {
    wb_placement *p = NULL;
    assert_int_equal(wb_placement_open(t, 1, E, &p), WB_OK);
    assert_int_equal(wb_placement_set_layer(p, 0, map, NULL, 1), WB_OK);
    return p;
}

/* The plan between two maps of one layer, carried out. */
static wb_move_plan *plan_between(const wb_topology *t, uint32_t E, const int32_t *old, const int32_t *new,
                                  const wb_move_options *options) {
    wb_placement *from = placement_of(t, E, old), *to = placement_of(t, E, new);
    wb_move_plan *plan = plan_of(from, to, options);
    wb_placement_close(to);
    wb_placement_close(from);
    return plan;
}

static void assert_empty(const wb_move_plan *plan) {
    assert_int_equal(plan->n_moves, 0);
    assert_int_equal(plan->n_groups, 0);
    assert_true(plan->seconds == 0);
    assert_true(plan->local_bytes == 0 && plan->node_bytes == 0);
    assert_true(plan->network_bytes == 0 && plan->reload_bytes == 0);
}

/* Each rank gets what another one overwrites: no copy beyond those of the change is made, and all at once. */
static void test_a_cycle_moves_at_once(void **state) {
    (void)state;
    enum { S = 64 };
    wb_move_options options = wb_move_options_default();
    int32_t old[S], new[S];
    for (uint32_t R = 2; R <= 16; R *= 2) {
        wb_topology t = {.n_ranks = R, .n_nodes = R / 2, .n_slots = R};
        for (uint32_t r = 0; r < R; r++) {
            old[r] = (int32_t)r;
            new[r] = (int32_t)((r + 1) % R);
        }
        wb_move_plan *plan = plan_between(&t, R, old, new, &options);
        assert_int_equal(plan->n_moves, R);
        assert_int_equal(plan->n_groups, 1);
        wb_move_plan_close(plan);
    }
    wb_topology four = {.n_ranks = 4, .n_nodes = 2, .n_slots = S};
    for (int32_t s = 0; s < S; s++) {
        old[s] = s;
        new[s] = (s * 5 + 3) % S; /* 5 - 1 is a multiple of 4, 3 is odd: one cycle */
    }
    wb_move_plan_close(plan_between(&four, S, old, new, &options));
}

/* The order of slots within a rank is free: a permutation there moves nothing, not even the map. */
static void test_slots_of_a_rank_trade_places_without_a_move(void **state) {
    (void)state;
    wb_move_options options = wb_move_options_default();
    wb_topology t = {.n_ranks = 2, .n_nodes = 1, .n_slots = 6};
    wb_move_plan *plan =
        plan_between(&t, 6, (int32_t[]){0, 1, 2, 3, 4, 5}, (int32_t[]){2, 0, 1, 3, 5, 4}, &options);
    assert_empty(plan);
    wb_move_plan_close(plan);
    /* Rank 0 gives 0 for 5; what it keeps stays where it is. */
    plan = plan_between(&t, 6, (int32_t[]){0, 1, 2, 3, 4, 5}, (int32_t[]){2, 5, 1, 0, 3, 4}, &options);
    assert_int_equal(plan->n_moves, 2);
    assert_int_equal(plan->n_groups, 1);
    assert_int_equal(plan->moves[0].to.slot, 0);
    assert_int_equal(plan->moves[1].to.slot, 5);
    wb_move_plan_close(plan);
}

/* What rank 0 gives leads to ranks 1 and 2, which give each other something: they trade, without rank 0,
 * whose turn comes later. */
static void test_a_chain_into_a_cycle_leaves_its_beginning_out(void **state) {
    (void)state;
    wb_move_options options = wb_move_options_default();
    wb_topology t = {.n_ranks = 3, .n_nodes = 1, .n_slots = 6};
    wb_move_plan *plan =
        plan_between(&t, 6, (int32_t[]){0, 3, 1, 4, 2, 5}, (int32_t[]){4, 5, 0, 2, 3, 1}, &options);
    assert_int_equal(plan->n_moves, 6);
    assert_int_equal(plan->n_groups, 3);
    assert_int_equal(plan->groups[0].end, 2);
    assert_int_equal(plan->moves[0].expert, 2);
    assert_int_equal(plan->moves[1].expert, 1);
    wb_move_plan_close(plan);
}

/* https://github.com/sgl-project/sglang/pull/22985: one batch of all transfers hangs. A rank receives as many
 * in a group as it has shadow slots. */
static void test_sglang_22985_groups_are_bounded(void **state) {
    (void)state;
    enum { R = 8, PER_RANK = 32, S = R * PER_RANK };
    wb_topology t = {.n_ranks = R, .n_nodes = 2, .n_slots = S};
    int32_t old[S], new[S];
    for (int32_t s = 0; s < S; s++) {
        old[s] = s;
        new[s] = (s + PER_RANK) % S; /* each rank sends all and receives all */
    }
    for (uint32_t bound = 1; bound <= 64; bound *= 2) {
        wb_move_options options = wb_move_options_default();
        options.group_moves = bound;
        wb_move_plan *plan = plan_between(&t, S, old, new, &options); /* checks the bound group by group */
        assert_int_equal(plan->n_groups, PER_RANK);
        wb_move_plan_close(plan);
        options.n_shadow = 2;
        options.cost.expert_bytes = 1024; /* so that a link carries two in a group */
        plan = plan_between(&t, S, old, new, &options);
        assert_int_equal(plan->n_groups, bound == 1 ? PER_RANK : PER_RANK / 2);
        wb_move_plan_close(plan);
    }
}

/* Expert 0 of rank 0 goes to all 16 ranks of four nodes: three entries, the rest inside nodes, doubling
 * from group to group: 1 copy, 3 (one sent inside the node, one out of it), and all in five groups at
 * most. */
static void test_one_network_entry_per_node(void **state) {
    (void)state;
    enum { R = 16, S = 32 };
    wb_topology t = {.n_ranks = R, .n_nodes = 4, .n_slots = S};
    int32_t old[S], new[S];
    for (int32_t r = 0; r < R; r++) {
        old[2 * r] = new[2 * r] = r + 1;
        old[2 * r + 1] = r == 0 ? 0 : WB_NO_EXPERT;
        new[2 * r + 1] = 0;
    }
    wb_move_options options = wb_move_options_default();
    wb_move_plan *plan = plan_between(&t, R + 1, old, new, &options);
    assert_int_equal(the_machine->count[WB_MOVE_NETWORK], 3);
    assert_int_equal(the_machine->count[WB_MOVE_NODE], 12);
    assert_int_equal(the_machine->count[WB_MOVE_LOCAL], 0);
    assert_true(plan->n_groups <= 4);
    assert_true(plan->network_bytes == 3 * options.cost.expert_bytes);
    wb_move_plan_close(plan);
}

/* Four ranks of a node hold experts 0..3 each, other ranks get these between them, 1, 2 or 4 each: each
 * holder sends once, though any might send all. */
static void test_sources_are_balanced(void **state) {
    (void)state;
    enum { HOLDERS = 4, R = 8, PER_RANK = 4, S = R * PER_RANK };
    wb_topology t = {.n_ranks = R, .n_nodes = 1, .n_slots = S};
    wb_move_options options = wb_move_options_default();
    options.cost.expert_bytes = 1024;
    for (int32_t i = 0; i < 6; i++) {
        int32_t old[S], new[S], each = 1 << i % 3;
        options.n_shadow = i < 3 ? 1 : 2;
        for (int32_t s = 0; s < S; s++) {
            int32_t rank = s / PER_RANK - HOLDERS, slot = s % PER_RANK;
            old[s] = new[s] = rank < 0 ? slot : WB_NO_EXPERT;
            if (rank >= 0 && rank < HOLDERS / each && slot < each) new[s] = slot + rank *each;
        }
        wb_move_plan *plan = plan_between(&t, PER_RANK, old, new, &options);
        assert_int_equal(plan->n_groups, i < 3 || each == 1 ? each : each / 2);
        assert_int_equal(plan->n_moves, HOLDERS);
        for (uint32_t r = 0; r < R; r++) assert_int_equal(the_machine->sent[r], r < HOLDERS);
        wb_move_plan_close(plan);
    }
}

/* Rank 1 of four dies: its copy of expert 1 is no source, its expert 2 had no other copy. Expert 2 is
 * loaded once and goes on from there. */
static void test_dead_rank_is_no_source_and_lost_expert_is_reloaded(void **state) {
    (void)state;
    uint8_t dead[4] = {0, 1, 0, 0};
    wb_topology t = {.n_ranks = 4, .n_nodes = 2, .n_slots = 12}, after = t;
    after.dead = dead;
    wb_placement *from = placement_of(&t, 3, (int32_t[]){0, -1, -1, 1, 2, -1, 1, -1, -1, -1, -1, -1});
    wb_placement *to = placement_of(&after, 3, (int32_t[]){0, 1, 2, -1, -1, -1, 1, 2, -1, 0, 2, 2});
    wb_move_options options = wb_move_options_default();
    wb_move_plan *plan = plan_of(from, to, &options);
    assert_int_equal(the_machine->count[WB_MOVE_RELOAD], 1);
    assert_int_equal(the_machine->count[WB_MOVE_NETWORK],
                     3); /* 1 to node 0, 0 to node 1, 2 to the other node */
    assert_int_equal(the_machine->count[WB_MOVE_NODE], 1);
    assert_int_equal(the_machine->count[WB_MOVE_LOCAL], 1); /* rank 3 has expert 2 twice */
    assert_true(plan->reload_bytes == options.cost.expert_bytes);
    wb_move_plan_close(plan);

    wb_move_plan *none = NULL; /* a rank does not come back */
    assert_int_equal(wb_move_plan_open(to, from, wb_placement_layers(to), NULL, &options, &none),
                     WB_MISMATCH);
    assert_null(none);
    wb_placement_close(to);
    wb_placement_close(from);
}

/* The layer cannot work before its lost expert is there: the rank that waits for another one too begins with
 * it. */
static void test_lost_expert_is_reloaded_first(void **state) {
    (void)state;
    uint32_t slots[] = {3, 1, 1};
    uint8_t dead[] = {0, 1, 0};
    wb_topology t = {.n_ranks = 3, .n_nodes = 1, .n_slots = 5, .slots_of_rank = slots}, after = t;
    after.dead = dead;
    wb_placement *from = placement_of(&t, 3, (int32_t[]){0, -1, -1, 1, 2});
    wb_placement *to = placement_of(&after, 3, (int32_t[]){0, 2, 1, -1, 2});
    wb_move_options options = wb_move_options_default();
    wb_move_plan *plan = plan_of(from, to, &options);
    assert_int_equal(plan->n_moves, 2);
    assert_int_equal(plan->moves[0].kind, WB_MOVE_RELOAD);
    wb_move_plan_close(plan);
    wb_placement_close(to);
    wb_placement_close(from);
}

static void test_unchanged_placement_moves_nothing(void **state) {
    (void)state;
    wb_topology t = {.n_ranks = 4, .n_nodes = 2, .n_slots = 6};
    wb_move_options options = wb_move_options_default();
    int32_t map[] = {0, 1, 2, 3, 0, 1};
    wb_move_plan *plan = plan_between(&t, 4, map, map, &options);
    assert_empty(plan);
    wb_move_plan_close(plan);
    /* Slots that become empty need no move, but another map. */
    plan = plan_between(&t, 4, map, (int32_t[]){0, 1, 2, 3, -1, -1}, &options);
    assert_int_equal(plan->n_moves, 0);
    assert_int_equal(plan->n_groups, 1);
    wb_move_plan_close(plan);
}

static void test_an_empty_layer_set_moves_nothing(void **state) {
    (void)state;
    wb_topology t = {.n_ranks = 2, .n_nodes = 1, .n_slots = 2};
    wb_placement *from = placement_of(&t, 2, (int32_t[]){0, 1}), *to = placement_of(&t, 2, (int32_t[]){1, 0});
    wb_move_options options = wb_move_options_default();
    wb_move_plan *plan = NULL;
    uint32_t *no_layers[] = {(uint32_t[]){0}, NULL}; /* NULL stands for the first n layers, never for all */
    for (int i = 0; i < 2; i++) {
        assert_int_equal(wb_move_plan_open(from, to, 0, no_layers[i], &options, &plan), WB_OK);
        assert_empty(plan);
        wb_move_plan_close(plan);
    }
    wb_placement_close(to);
    wb_placement_close(from);
}

/* Rank r's content goes on to rank r + 1, the last one's is kept elsewhere: all move at once. */
static void test_a_chain_that_ends_moves_at_once(void **state) {
    (void)state;
    enum { R = 8 };
    wb_topology t = {.n_ranks = R, .n_nodes = 1, .n_slots = 2 * R};
    int32_t old[2 * R], new[2 * R];
    for (int32_t r = 0; r < R; r++) {
        old[2 * r] = r;
        new[2 * r] = r == 0 ? 0 : r - 1;
        old[2 * r + 1] = new[2 * r + 1] = r == R - 1 ? R - 1 : WB_NO_EXPERT;
    }
    wb_move_options options = wb_move_options_default();
    wb_move_plan *plan = plan_between(&t, R, old, new, &options);
    assert_int_equal(plan->n_groups, 1);
    wb_move_plan_close(plan);
}

/* All slots shuffled, as a solver does that starts anew. No plan is faster than the rank that sends or
 * receives most. */
static void test_a_full_shuffle_takes_at_most_twice_the_bound(void **state) {
    (void)state;
    enum { R = 32, S = 288, E = 256 };
    random_shape s = {.before = {.n_ranks = R, .n_nodes = 4, .n_slots = S}, .E = E};
    wb_move_options options = wb_move_options_default();
    int32_t old[S], new[S];
    random_state = 3;
    for (uint32_t i = 0; i < 20; i++) {
        for (uint32_t r = 0; r < R; r++) s.slots[r] = S / R;
        random_map(&s, s.dead_before, 0, old);
        random_map(&s, s.dead_after, 0, new);
        wb_move_plan *plan = plan_between(&s.before, E, old, new, &options);
        uint32_t max_moves = 0;
        for (uint32_t r = 0; r < R; r++) {
            if (the_machine->network_in[r] > max_moves) max_moves = the_machine->network_in[r];
            if (the_machine->network_out[r] > max_moves) max_moves = the_machine->network_out[r];
        }
        double bound = max_moves * options.cost.expert_bytes / options.cost.network_bytes_per_second;
        assert_true(plan->seconds >= bound && plan->seconds <= 2 * bound);
        wb_move_plan_close(plan);
    }
}

/* ---- arguments ------------------------------------------------------------------------------- */

static void expect(wb_status status, const wb_placement *from, const wb_placement *to, uint32_t n,
                   const uint32_t *layers, const wb_move_options *options, const char *says) {
    wb_move_plan *poison = (wb_move_plan *)&poison, *plan = poison;
    assert_int_equal(wb_move_plan_open(from, to, n, layers, options, &plan), status);
    assert_ptr_equal(plan, poison);
    assert_non_null(strstr(wb_error_message(), says));
}

static void test_bad_arguments_are_refused(void **state) {
    (void)state;
    wb_topology t = {.n_ranks = 4, .n_nodes = 2, .n_slots = 8},
                wide = {.n_ranks = 4, .n_nodes = 1, .n_slots = 8};
    wb_topology uneven = t;
    uneven.slots_of_rank = (uint32_t[]){1, 3, 2, 2};
    wb_placement *from = NULL, *to = NULL, *other = NULL;
    assert_int_equal(wb_placement_open(&t, 3, 8, &from), WB_OK);
    assert_int_equal(wb_placement_open(&t, 3, 8, &to), WB_OK);
    wb_move_options good = wb_move_options_default(), bad = good;
    expect(WB_INVALID_ARGUMENT, from, to, 1, (uint32_t[]){3}, &good, "expected 0..2, found 3");
    expect(WB_INVALID_ARGUMENT, from, to, 3, (uint32_t[]){1, 0, 1}, &good, "layers[2]");
    for (uint32_t n_shadow = 0; n_shadow <= 3; n_shadow += 3) {
        bad.n_shadow = n_shadow;
        expect(WB_INVALID_ARGUMENT, from, to, 0, NULL, &bad, "n_shadow");
    }
    bad = good;
    bad.group_moves = 0;
    expect(WB_INVALID_ARGUMENT, from, to, 0, NULL, &bad, "group_moves");
    bad = good;
    bad.cost.node_bytes_per_second = 0;
    expect(WB_INVALID_ARGUMENT, from, to, 0, NULL, &bad, "node_bytes_per_second");
    bad = good;
    bad.cost.expert_bytes = -1;
    expect(WB_INVALID_ARGUMENT, from, to, 0, NULL, &bad, "expert_bytes");
    bad.cost.expert_bytes = (double)NAN;
    expect(WB_INVALID_ARGUMENT, from, to, 0, NULL, &bad, "expert_bytes");
    wb_placement_close(to);

    assert_int_equal(wb_placement_open(&t, 2, 8, &other), WB_OK);
    expect(WB_MISMATCH, from, other, 0, NULL, &good, "2 layers");
    wb_placement_close(other);
    assert_int_equal(wb_placement_open(&uneven, 3, 8, &other), WB_OK);
    expect(WB_MISMATCH, from, other, 0, NULL, &good, "rank 0");
    wb_placement_close(other);
    assert_int_equal(wb_placement_open(&wide, 3, 8, &other), WB_OK);
    expect(WB_MISMATCH, from, other, 0, NULL, &good, "node");
    wb_placement_close(other);
    wb_placement_close(from);
    wb_move_plan_close(NULL);
}

static void test_a_group_that_is_not_there_is_refused(void **state) {
    (void)state;
    wb_topology t = {.n_ranks = 2, .n_nodes = 1, .n_slots = 2},
                wide = {.n_ranks = 2, .n_nodes = 1, .n_slots = 3};
    wb_placement *from = placement_of(&t, 2, (int32_t[]){0, 1}), *to = placement_of(&t, 2, (int32_t[]){1, 0});
    wb_placement *other = placement_of(&wide, 2, (int32_t[]){0, 1, 1});
    wb_move_plan *plan = NULL;
    assert_int_equal(wb_move_plan_open(from, to, 1, NULL, NULL, &plan), WB_OK);
    uint64_t hash = wb_placement_hash(from);
    assert_int_equal(wb_move_apply_group(plan, 1, 9, from), WB_INVALID_ARGUMENT);
    assert_non_null(strstr(wb_error_message(), "expected below 1, found 1"));
    assert_int_equal(wb_placement_hash(from), hash);
    assert_int_equal(wb_move_apply_group(plan, 0, 9, other), WB_MISMATCH);
    assert_int_equal(wb_move_apply_group(plan, 0, 9, from), WB_OK);
    assert_int_equal(wb_placement_hash(from), wb_placement_hash(to));
    wb_move_plan_close(plan);
    wb_placement_close(other);
    wb_placement_close(to);
    wb_placement_close(from);
}

static int set_up(void **state) {
    (void)state;
    the_machine = malloc(sizeof *the_machine);
    return the_machine ? 0 : -1;
}

static int tear_down(void **state) {
    (void)state;
    free(the_machine);
    return 0;
}

int main(int argc, char **argv) {
    if (argc > 1) seed = strtoull(argv[1], NULL, 10);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_cycle_moves_at_once),
        cmocka_unit_test(test_slots_of_a_rank_trade_places_without_a_move),
        cmocka_unit_test(test_sglang_22985_groups_are_bounded),
        cmocka_unit_test(test_one_network_entry_per_node),
        cmocka_unit_test(test_sources_are_balanced),
        cmocka_unit_test(test_dead_rank_is_no_source_and_lost_expert_is_reloaded),
        cmocka_unit_test(test_lost_expert_is_reloaded_first),
        cmocka_unit_test(test_unchanged_placement_moves_nothing),
        cmocka_unit_test(test_an_empty_layer_set_moves_nothing),
        cmocka_unit_test(test_a_chain_that_ends_moves_at_once),
        cmocka_unit_test(test_a_chain_into_a_cycle_leaves_its_beginning_out),
        cmocka_unit_test(test_a_group_that_is_not_there_is_refused),
        cmocka_unit_test(test_a_full_shuffle_takes_at_most_twice_the_bound),
        cmocka_unit_test(test_bad_arguments_are_refused),
        cmocka_unit_test(test_random_pairs),
        cmocka_unit_test(test_random_pairs_of_few_ranks_with_many_slots),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
