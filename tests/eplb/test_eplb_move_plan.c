/* test_eplb_move_plan.c - every plan is carried out on simulated slots that remember layer, expert and a
 * checksum. Checked group by group: what may run at the same time, bounds, kinds, sources, entries into
 * nodes; at the end the map, the bytes and the seconds. */
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

enum { MAX_P = 32, MAX_R = 1024, MAX_E = 1024, MAX_L = 4, MAX_CELLS = MAX_R + 2 * MAX_P };

static uint64_t random_state;
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
    uint32_t node_in, node_out, network_in, network_out, reload_in, local;
} traffic;

typedef struct machine {
    const wb_placement *from, *to;
    const wb_topology *t;
    wb_move_options options;
    cell cells[MAX_CELLS];                      /* slots, then shadow slots */
    bool written[MAX_CELLS], read[MAX_CELLS];   /* in this group */
    bool done[MAX_R];                           /* in this layer */
    bool node_used[MAX_P], network_used[MAX_P]; /* by the expert in hand, as a source in this group */
    bool rank_had[MAX_E][MAX_P], node_had[MAX_E][MAX_P]; /* at first or from a group before */
    uint32_t entries[MAX_E][MAX_P], reloads[MAX_E];      /* of an expert into a node; from the checkpoint */
    uint32_t fetches[MAX_E][MAX_P];                      /* of an expert into a rank */
    uint32_t sent_now[MAX_P], sent[MAX_P];
    traffic now[MAX_P];
    uint32_t network_in[MAX_P], network_out[MAX_P]; /* in all layers */
    double seconds, bytes[4];
    uint64_t count[4], shadow_copies;
} machine;

static uint32_t rank_of_cell(const machine *m, uint32_t id) {
    uint32_t S = m->t->n_slots;
    return id < S ? wb_placement_rank_of(m->to, (wb_physical_id){id}) : (id - S) / m->options.n_shadow;
}

static uint32_t n_cells(const machine *m) {
    return m->t->n_slots + m->t->n_ranks * m->options.n_shadow;
}

static void begin_layer(machine *m, uint32_t layer) {
    wb_layer_map map = wb_placement_layer(m->from, layer);
    memset(m->done, 0, sizeof m->done);
    memset(m->rank_had, 0, sizeof m->rank_had);
    memset(m->node_had, 0, sizeof m->node_had);
    memset(m->entries, 0, sizeof m->entries);
    memset(m->reloads, 0, sizeof m->reloads);
    memset(m->fetches, 0, sizeof m->fetches);
    memset(m->sent, 0, sizeof m->sent);
    for (uint32_t s = 0; s < m->t->n_slots; s++) {
        uint32_t r = rank_of_cell(m, s);
        int32_t e = m->t->dead[r] ? -1 : map.expert_of_slot[s];
        m->cells[s] = cell_of(layer, e);
        if (e >= 0) m->rank_had[e][r] = m->node_had[e][m->t->node_of_rank[r]] = true;
    }
}

/* Sends and receives in this group; a reload is a receive. */
static uint32_t load_of(const machine *m, uint32_t rank) {
    const traffic *t = &m->now[rank];
    return t->node_in + t->node_out + t->network_in + t->network_out + t->reload_in;
}

/* Moves of a group in one direction of a rank's link: what takes no longer than the latency of a group, or
 * one. */
static uint32_t lane_of(const machine *m, wb_move_kind kind) {
    const wb_cost_model *cost = &m->options.cost;
    double rate = kind == WB_MOVE_NODE ? cost->node_bytes_per_second : cost->network_bytes_per_second;
    double moves = cost->seconds_per_group * rate / cost->expert_bytes;
    return moves < 1 ? 1 : moves > 1000 ? 1000 : (uint32_t)moves;
}

static bool can_send(const machine *m, uint32_t rank, wb_move_kind kind) {
    uint32_t out = kind == WB_MOVE_NODE ? m->now[rank].node_out : m->now[rank].network_out;
    return load_of(m, rank) < m->options.group_moves && out < lane_of(m, kind);
}

/* Whether a rank has a copy that no earlier move of the group overwrites. */
static bool can_give(const machine *m, uint32_t rank, const wb_move *move) {
    for (uint32_t c = 0; c < n_cells(m); c++)
        if (rank_of_cell(m, c) == rank && !m->written[c] && m->cells[c].layer == (int32_t)move->layer &&
            m->cells[c].expert == (int32_t)move->expert)
            return true;
    return false;
}

/* Of the ranks that could have sent this move none has sent less: in this group, in this layer, by number. */
static void check_source(const machine *m, const wb_move *move, uint32_t source) {
    uint32_t to = rank_of_cell(m, move->to.slot);
    const bool *used = move->kind == WB_MOVE_NODE ? m->node_used : m->network_used;
    assert_false(used[source]);
    for (uint32_t r = 0; r < m->t->n_ranks; r++) {
        if (r == source || m->t->dead[r] || used[r] || !can_send(m, r, move->kind)) continue;
        if (move->kind == WB_MOVE_NODE && m->t->node_of_rank[r] != m->t->node_of_rank[to]) continue;
        bool less = m->sent_now[r] != m->sent_now[source] ? m->sent_now[r] < m->sent_now[source]
                    : m->sent[r] != m->sent[source]       ? m->sent[r] < m->sent[source]
                                                          : r < source;
        if (less) assert_false(can_give(m, r, move));
    }
}

static void check_kind(machine *m, const wb_move *move) {
    uint32_t to = rank_of_cell(m, move->to.slot), node = m->t->node_of_rank[to], e = move->expert;
    if (move->kind != WB_MOVE_LOCAL) assert_int_equal(++m->fetches[e][to], 1);
    if (move->kind == WB_MOVE_RELOAD) {
        assert_int_equal(move->from.slot, WB_NO_SLOT);
        for (uint32_t n = 0; n < m->t->n_nodes; n++) assert_false(m->node_had[e][n]);
        assert_int_equal(++m->reloads[e], 1);
        assert_int_equal(++m->entries[e][node], 1);
        m->now[to].reload_in++;
        return;
    }
    assert_true(move->from.slot < n_cells(m));
    uint32_t from = rank_of_cell(m, move->from.slot);
    assert_false(m->t->dead[from]);
    assert_int_equal(from == to, move->kind == WB_MOVE_LOCAL);
    if (move->kind == WB_MOVE_LOCAL) {
        m->now[to].local++;
        return;
    }
    check_source(m, move, from);
    assert_false(m->rank_had[e][to]);
    m->sent_now[from]++;
    m->sent[from]++;
    if (move->kind == WB_MOVE_NODE) {
        assert_int_equal(m->t->node_of_rank[from], node);
        m->node_used[from] = true;
        m->now[from].node_out++;
        m->now[to].node_in++;
    } else {
        assert_int_equal(move->kind, WB_MOVE_NETWORK);
        assert_int_not_equal(m->t->node_of_rank[from], node);
        assert_false(m->node_had[e][node]);
        assert_int_equal(++m->entries[e][node], 1);
        m->network_used[from] = true;
        m->now[from].network_out++;
        m->network_out[from]++;
        m->network_in[to]++;
        m->now[to].network_in++;
    }
}

static void check_target(machine *m, const wb_move *move) {
    uint32_t to = move->to.slot;
    assert_true(to < n_cells(m));
    assert_false(m->t->dead[rank_of_cell(m, to)]);
    assert_false(m->written[to]);
    assert_false(m->read[to]);
    if (to >= m->t->n_slots) {
        assert_int_equal(move->kind, WB_MOVE_LOCAL);
        m->shadow_copies++;
        return;
    }
    wb_layer_map old = wb_placement_layer(m->from, move->layer), new = wb_placement_layer(m->to, move->layer);
    assert_int_equal(new.expert_of_slot[to], (int32_t)move->expert);
    assert_int_not_equal(old.expert_of_slot[to], new.expert_of_slot[to]);
    assert_false(m->done[to]);
    m->done[to] = true;
}

static double max(double a, double b) {
    return a > b ? a : b;
}

static void end_group(machine *m, const wb_move *moves, uint64_t n) {
    const wb_cost_model *cost = &m->options.cost;
    double slowest = 0;
    for (uint32_t r = 0; r < m->t->n_ranks; r++) {
        const traffic *t = &m->now[r];
        assert_true(load_of(m, r) <= m->options.group_moves);
        assert_true(t->node_in <= lane_of(m, WB_MOVE_NODE));
        assert_true(t->node_out <= lane_of(m, WB_MOVE_NODE));
        assert_true(t->network_in + t->reload_in <= lane_of(m, WB_MOVE_NETWORK));
        assert_true(t->network_out <= lane_of(m, WB_MOVE_NETWORK));
        double x = cost->expert_bytes;
        slowest = max(slowest, t->local * x / cost->local_bytes_per_second);
        slowest = max(slowest, max(t->node_in, t->node_out) * x / cost->node_bytes_per_second);
        slowest = max(slowest,
                      max(t->network_in + t->reload_in, t->network_out) * x / cost->network_bytes_per_second);
    }
    m->seconds += slowest + cost->seconds_per_group;
    cell *gets = malloc((size_t)n * sizeof *gets);
    assert_non_null(gets);
    for (uint64_t i = 0; i < n; i++) {
        bool reload = moves[i].kind == WB_MOVE_RELOAD;
        cell is = cell_of(moves[i].layer, (int32_t)moves[i].expert);
        gets[i] = reload ? is : m->cells[moves[i].from.slot];
        assert_memory_equal(&gets[i], &is, sizeof is);
    }
    for (uint64_t i = 0; i < n; i++) {
        uint32_t to = rank_of_cell(m, moves[i].to.slot);
        m->cells[moves[i].to.slot] = gets[i];
        m->rank_had[moves[i].expert][to] = m->node_had[moves[i].expert][m->t->node_of_rank[to]] = true;
    }
    free(gets);
}

static void run_group(machine *m, const wb_move *moves, uint64_t n) {
    memset(m->written, 0, sizeof m->written);
    memset(m->read, 0, sizeof m->read);
    memset(m->now, 0, sizeof m->now);
    memset(m->sent_now, 0, sizeof m->sent_now);
    for (uint64_t i = 0; i < n; i++) {
        if (i == 0 || moves[i].expert != moves[i - 1].expert) {
            memset(m->node_used, 0, sizeof m->node_used);
            memset(m->network_used, 0, sizeof m->network_used);
        }
        check_kind(m, &moves[i]);
        check_target(m, &moves[i]);
        m->written[moves[i].to.slot] = true;
        if (moves[i].kind != WB_MOVE_RELOAD) {
            assert_false(m->written[moves[i].from.slot]);
            m->read[moves[i].from.slot] = true;
        }
        m->count[moves[i].kind]++;
        m->bytes[moves[i].kind] += m->options.cost.expert_bytes;
    }
    end_group(m, moves, n);
}

static bool in_set(uint32_t layer, uint32_t n, const uint32_t *layers) {
    for (uint32_t i = 0; layers && i < n; i++)
        if (layers[i] == layer) return true;
    return !layers;
}

/* After the plan's groups of one layer: its map, and each changed slot written. */
static uint64_t check_layer(const machine *m, uint32_t layer) {
    wb_layer_map old = wb_placement_layer(m->from, layer), new = wb_placement_layer(m->to, layer);
    uint64_t changed = 0;
    for (uint32_t s = 0; s < m->t->n_slots; s++) {
        if (new.expert_of_slot[s] < 0) continue;
        cell is = cell_of(layer, new.expert_of_slot[s]);
        assert_memory_equal(&m->cells[s], &is, sizeof is);
        bool changes = new.expert_of_slot[s] != old.expert_of_slot[s];
        assert_int_equal(m->done[s], changes);
        changed += changes;
    }
    return changed;
}

static void check_sums(const machine *m, const wb_move_plan *plan) {
    assert_true(plan->local_bytes == m->bytes[WB_MOVE_LOCAL]);
    assert_true(plan->node_bytes == m->bytes[WB_MOVE_NODE]);
    assert_true(plan->network_bytes == m->bytes[WB_MOVE_NETWORK]);
    assert_true(plan->reload_bytes == m->bytes[WB_MOVE_RELOAD]);
    double difference = plan->seconds - m->seconds;
    assert_true(difference <= 1e-9 * m->seconds && -difference <= 1e-9 * m->seconds);
}

/* Carries a plan out and checks all that a plan promises. What it counted stays in *m until the next call. */
static void check_plan(const wb_placement *from, const wb_placement *to, uint32_t n, const uint32_t *layers,
                       const wb_move_options *options, const wb_move_plan *plan, machine *m) {
    memset(m, 0, sizeof *m);
    m->from = from;
    m->to = to;
    m->t = wb_placement_topology(to);
    m->options = *options;
    for (uint32_t c = 0; c < MAX_CELLS; c++) m->cells[c] = cell_of(0, -1);
    uint64_t i = 0, changed = 0;
    uint32_t group = 0;
    for (uint32_t l = 0; l < wb_placement_layers(to); l++) {
        if (!in_set(l, n, layers)) continue;
        begin_layer(m, l);
        while (i < plan->n_moves && plan->moves[i].layer == l) {
            uint64_t end = i;
            while (end < plan->n_moves && plan->moves[end].layer == l && plan->moves[end].group == group)
                end++;
            assert_true(end > i);
            run_group(m, plan->moves + i, end - i);
            i = end;
            group++;
        }
        changed += check_layer(m, l);
    }
    assert_int_equal(i, plan->n_moves);
    assert_int_equal(group, plan->n_groups);
    assert_int_equal(changed, plan->changed_slots);
    assert_int_equal(plan->n_moves, changed + m->shadow_copies);
    check_sums(m, plan);
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
    uint32_t live[MAX_R], n = 0, slot = 0;
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
    uint32_t order[MAX_R], S = s->before.n_slots;
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
    int32_t old[MAX_R], new[MAX_R];
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

static void check_random_pairs(uint64_t seed, uint32_t pairs, uint32_t max_ranks, uint32_t max_slots) {
    printf("seed %" PRIu64 ", %u pairs\n", seed, pairs);
    random_state = seed;
    for (uint32_t i = 0; i < pairs; i++) {
        random_shape s;
        wb_placement *from = NULL, *to = NULL;
        wb_move_plan *plan = NULL, *again = NULL;
        uint32_t layers[MAX_L] = {0, 1, 2, 3}, n;
        random_topology(&s, max_ranks, max_slots);
        random_pair(&s, &from, &to);
        wb_move_options options = random_options();
        shuffle(layers, s.L);
        n = below(s.L + 1);
        assert_int_equal(wb_move_plan_open(from, to, n, layers, &options, &plan), WB_OK);
        check_plan(from, to, n, layers, &options, plan, the_machine);
        wb_move_plan_close(plan);
        plan = plan_of(from, to, &options);
        assert_int_equal(wb_move_plan_open(from, to, wb_placement_layers(to), NULL, &options, &again), WB_OK);
        assert_int_equal(plan->n_moves, again->n_moves);
        assert_memory_equal(plan->moves, again->moves, plan->n_moves * sizeof *plan->moves);
        wb_move_plan_close(again);
        wb_move_plan_close(plan);
        wb_placement_close(to);
        wb_placement_close(from);
    }
}

static void test_random_pairs(void **state) {
    (void)state;
    check_random_pairs(1, 4000, 12, 6);
}

static void test_random_pairs_of_few_ranks_with_many_slots(void **state) {
    (void)state;
    check_random_pairs(2, 600, 3, 40);
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

/* A.0 <-> B.0, A.0 <-> A.1, and every slot of four ranks in one cycle, each expert having one copy: one
 * shadow slot does. */
static void test_swap_cycle_needs_one_shadow_slot(void **state) {
    (void)state;
    wb_move_options options = wb_move_options_default();
    for (options.n_shadow = 1; options.n_shadow <= 2; options.n_shadow++) {
        wb_topology two = {.n_ranks = 2, .n_nodes = 1, .n_slots = 2};
        wb_move_plan *plan = plan_between(&two, 2, (int32_t[]){0, 1}, (int32_t[]){1, 0}, &options);
        assert_true(the_machine->shadow_copies >= 1);
        assert_int_equal(the_machine->count[WB_MOVE_NODE], 2);
        wb_move_plan_close(plan);

        wb_topology one = {.n_ranks = 1, .n_nodes = 1, .n_slots = 2};
        plan = plan_between(&one, 2, (int32_t[]){0, 1}, (int32_t[]){1, 0}, &options);
        assert_int_equal(the_machine->count[WB_MOVE_LOCAL], plan->n_moves);
        wb_move_plan_close(plan);

        enum { S = 64 };
        wb_topology four = {.n_ranks = 4, .n_nodes = 2, .n_slots = S};
        int32_t old[S], new[S];
        for (int32_t s = 0; s < S; s++) {
            old[s] = s;
            new[s] = (s * 5 + 3) % S; /* 5 - 1 is a multiple of 4, 3 is odd: one cycle */
        }
        plan = plan_between(&four, S, old, new, &options);
        assert_int_equal(plan->changed_slots, S);
        wb_move_plan_close(plan);
    }
}

/* https://github.com/sgl-project/sglang/pull/22985: one batch of all transfers hangs. */
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
        assert_true(plan->n_groups >= 2 * PER_RANK / bound);
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

/* Four ranks of a node hold experts 0..3 each, four others get one of them each: each holder sends once. */
static void test_sources_are_balanced(void **state) {
    (void)state;
    enum { R = 8, PER_RANK = 4, S = R * PER_RANK };
    wb_topology t = {.n_ranks = R, .n_nodes = 1, .n_slots = S};
    int32_t old[S], new[S];
    for (int32_t s = 0; s < S; s++) {
        old[s] = new[s] = s < S / 2 ? s % PER_RANK : WB_NO_EXPERT;
        if (s >= S / 2 && s % PER_RANK == 0) new[s] = s / PER_RANK - R / 2;
    }
    wb_move_options options = wb_move_options_default();
    wb_move_plan *plan = plan_between(&t, PER_RANK, old, new, &options);
    assert_int_equal(plan->n_groups, 1);
    assert_int_equal(plan->n_moves, 4);
    for (uint32_t r = 0; r < R; r++) assert_int_equal(the_machine->sent[r], r < R / 2);
    wb_move_plan_close(plan);
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

static void assert_empty(const wb_move_plan *plan) {
    assert_int_equal(plan->n_moves, 0);
    assert_int_equal(plan->n_groups, 0);
    assert_int_equal(plan->changed_slots, 0);
    assert_true(plan->seconds == 0);
    assert_true(plan->local_bytes == 0 && plan->node_bytes == 0);
    assert_true(plan->network_bytes == 0 && plan->reload_bytes == 0);
}

static void test_unchanged_placement_moves_nothing(void **state) {
    (void)state;
    wb_topology t = {.n_ranks = 4, .n_nodes = 2, .n_slots = 6};
    wb_move_options options = wb_move_options_default();
    int32_t map[] = {0, 1, 2, 3, 0, 1};
    wb_move_plan *plan = plan_between(&t, 4, map, map, &options);
    assert_empty(plan);
    wb_move_plan_close(plan);
    /* Slots that become empty need no move. */
    plan = plan_between(&t, 4, map, (int32_t[]){0, 1, 2, 3, -1, -1}, &options);
    assert_empty(plan);
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

/* Rank r's content goes on to rank r + 1, the last one's is kept elsewhere: shadow slots let all move at
 * once. */
static void test_a_chain_that_ends_needs_no_more_than_two_groups(void **state) {
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
    assert_true(plan->n_groups <= 2);
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

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_swap_cycle_needs_one_shadow_slot),
        cmocka_unit_test(test_sglang_22985_groups_are_bounded),
        cmocka_unit_test(test_one_network_entry_per_node),
        cmocka_unit_test(test_sources_are_balanced),
        cmocka_unit_test(test_dead_rank_is_no_source_and_lost_expert_is_reloaded),
        cmocka_unit_test(test_unchanged_placement_moves_nothing),
        cmocka_unit_test(test_an_empty_layer_set_moves_nothing),
        cmocka_unit_test(test_a_chain_that_ends_needs_no_more_than_two_groups),
        cmocka_unit_test(test_a_full_shuffle_takes_at_most_twice_the_bound),
        cmocka_unit_test(test_bad_arguments_are_refused),
        cmocka_unit_test(test_random_pairs),
        cmocka_unit_test(test_random_pairs_of_few_ranks_with_many_slots),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
