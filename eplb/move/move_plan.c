/* move_plan.c - opening a move plan: checks, the index of each layer's change, the sums. Refuses: the
 * order of the moves and their sources (move_schedule.c), carrying a plan out. */
#include "cost/cost_model.h"
#include "move/move_internal.h"
#include "wb_options.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

WB_OPTIONS_END(wb_move_options, cost);
void wb_move_options_init(wb_move_options *options_out, size_t size) {
    const wb_move_options defaults = {.n_shadow = 1, .group_moves = 32, .cost = wb_cost_model_default()};
    wb_options_init(options_out, size, &defaults, sizeof defaults);
}

/* ---- checks ---------------------------------------------------------------------------------- */

static wb_status check_options(const wb_move_options *options) {
    if (options->n_shadow < 1 || options->n_shadow > WB_MAX_SHADOW)
        return wb_fail(WB_INVALID_ARGUMENT, "move plan: n_shadow: expected 1..%d, found %" PRIu32,
                       WB_MAX_SHADOW, options->n_shadow);
    if (options->group_moves < 1)
        return wb_fail(WB_INVALID_ARGUMENT, "move plan: group_moves: expected 1 or more, found 0");
    return wb_cost_model_check(&options->cost, "move plan");
}

static wb_status check_ranks(const wb_placement *from, const wb_placement *to) {
    for (uint32_t r = 0; r < to->topology.n_ranks; r++) {
        if (from->node_of_rank[r] != to->node_of_rank[r])
            return wb_fail(WB_MISMATCH,
                           "move plan: node of rank %" PRIu32 ": expected %" PRIu32 ", found %" PRIu32, r,
                           from->node_of_rank[r], to->node_of_rank[r]);
        if (from->dead[r] && !to->dead[r])
            return wb_fail(WB_MISMATCH,
                           "move plan: rank %" PRIu32 " is live, expected dead: it is so in `from`", r);
    }
    return WB_OK;
}

/* chosen_out [L], zeroed: 1 for each layer of the set. */
static wb_status choose_layers(uint32_t n_layers, uint32_t n, const uint32_t *layers, uint8_t *chosen_out) {
    for (uint32_t i = 0; i < n; i++) {
        uint32_t l = layers ? layers[i] : i;
        if (l >= n_layers)
            return wb_fail(WB_INVALID_ARGUMENT,
                           "move plan: layers[%" PRIu32 "]: expected 0..%" PRIu32 ", found %" PRIu32, i,
                           n_layers - 1, l);
        if (chosen_out[l]++)
            return wb_fail(WB_INVALID_ARGUMENT,
                           "move plan: layers[%" PRIu32 "]: layer %" PRIu32 " is listed before", i, l);
    }
    return WB_OK;
}

/* ---- the index of a layer's change ----------------------------------------------------------- */

/* sorted [S]: the slots with an expert, by (expert, slot); begin [E + 1]: where each expert's are. */
static void sort_slots(uint32_t S, uint32_t E, const int32_t *expert, uint32_t *begin, uint32_t *sorted) {
    memset(begin, 0, ((size_t)E + 1) * sizeof *begin);
    for (uint32_t s = 0; s < S; s++)
        if (expert[s] >= 0) begin[expert[s]]++;
    for (uint32_t e = 0, n = 0; e <= E; e++) {
        n += begin[e];
        begin[e] = n;
    }
    for (uint32_t s = S; s-- > 0;)
        if (expert[s] >= 0) sorted[--begin[expert[s]]] = s;
}

/* Dead ranks hold nothing; they wait for nothing, as their slots are empty in `to`. */
static void compare_maps(wb_mover *m, const int32_t *from, const int32_t *to) {
    m->n_pending = 0;
    for (uint32_t s = 0; s < m->frame->topology.n_slots; s++) {
        bool changes = to[s] >= 0 && to[s] != from[s];
        m->held[s] = m->frame->dead[m->frame->rank_of_slot[s]] ? WB_NO_EXPERT : from[s];
        m->wanted[s] = changes ? to[s] : WB_NO_EXPERT;
        m->slots[s] = (wb_move_slot){
            .holds = WB_NO_PLACE, .wants = WB_NO_PLACE, .state = changes ? WB_SLOT_READY : WB_SLOT_LASTING};
        m->n_pending += changes;
    }
}

/* The slots of one rank that have the expert or wait for it, from holders[*h] and waiters[*w] on. */
static void index_rank(wb_mover *m, uint32_t expert, uint32_t at, uint32_t *h, uint32_t *w) {
    wb_move_place *place = &m->places[at];
    const uint32_t *rank_of_slot = m->frame->rank_of_slot;
    place->first_holder = *h;
    for (; *h < m->holder_begin[expert + 1] && rank_of_slot[m->holders[*h]] == place->rank; ++*h) {
        uint32_t slot = m->holders[*h];
        m->slots[slot].holds = at;
        place->copies++;
        if (m->wanted[slot] >= 0) continue;
        if (!place->lasting) place->slot = slot;
        place->lasting = true;
    }
    place->end_holder = *h;
    for (; *w < m->waiter_begin[expert + 1] && rank_of_slot[m->waiters[*w]] == place->rank; ++*w) {
        m->slots[m->waiters[*w]].wants = at;
        place->pending++;
    }
}

static void add_rank_to(wb_move_place *above, const wb_move_place *rank, uint32_t at) {
    above->end_rank = at + 1;
    above->end_holder = rank->end_holder;
    above->copies += rank->copies;
    above->pending += rank->pending;
    above->lasting |= rank->lasting;
}

/* The places of an expert, ranks ascending; *node_end, *rank_end: one past the places in use. */
static void index_expert(wb_mover *m, uint32_t expert, uint32_t *node_end, uint32_t *rank_end) {
    const uint32_t *rank_of_slot = m->frame->rank_of_slot, *node_of_rank = m->frame->node_of_rank;
    uint32_t h = m->holder_begin[expert], h_end = m->holder_begin[expert + 1];
    uint32_t w = m->waiter_begin[expert], w_end = m->waiter_begin[expert + 1];
    uint32_t node = UINT32_MAX;
    m->places[expert] = (wb_move_place){.parent = WB_NO_PLACE, .first_rank = *rank_end, .first_holder = h};
    while (h < h_end || w < w_end) {
        uint32_t slot = h == h_end                                    ? m->waiters[w]
                        : w == w_end || m->holders[h] < m->waiters[w] ? m->holders[h]
                                                                      : m->waiters[w];
        uint32_t rank = rank_of_slot[slot], at = (*rank_end)++;
        if (node_of_rank[rank] != node) {
            node = node_of_rank[rank];
            m->places[(*node_end)++] = (wb_move_place){.parent = expert, .first_rank = at, .first_holder = h};
        }
        m->places[at] = (wb_move_place){.parent = *node_end - 1,
                                        .rank = rank,
                                        .first_rank = at,
                                        .slot = WB_NO_SLOT,
                                        .shadow = WB_NO_SLOT};
        index_rank(m, expert, at, &h, &w);
        m->places[at].end_rank = at + 1;
        add_rank_to(&m->places[*node_end - 1], &m->places[at], at);
        add_rank_to(&m->places[expert], &m->places[at], at);
    }
}

static void index_layer(wb_mover *m, const wb_placement *from, uint32_t layer) {
    uint32_t S = m->frame->topology.n_slots, E = m->frame->n_experts;
    m->layer = layer;
    compare_maps(m, wb_placement_experts_of(from, layer), wb_placement_experts_of(m->frame, layer));
    if (m->n_pending == 0) return;
    sort_slots(S, E, m->held, m->holder_begin, m->holders);
    sort_slots(S, E, m->wanted, m->waiter_begin, m->waiters);
    uint32_t node_end = m->first_node_place, rank_end = m->first_rank_place;
    for (uint32_t e = 0; e < E; e++)
        if (m->waiter_begin[e] < m->waiter_begin[e + 1]) index_expert(m, e, &node_end, &rank_end);
    for (uint32_t r = 0; r < m->frame->topology.n_ranks; r++) {
        wb_move_rank *rank = &m->ranks[r];
        *rank = (wb_move_rank){.first_queued = WB_NO_SLOT, .last_queued = WB_NO_SLOT};
        for (uint32_t i = 0; i < WB_MAX_SHADOW; i++) rank->shadow[i].place = WB_NO_PLACE;
    }
}

/* ---- memory ---------------------------------------------------------------------------------- */

/* Places of one level: an expert has one for each of `parts` at most, and each place has a slot that holds
 * or waits. */
static uint32_t place_bound(uint32_t S, uint32_t E, uint32_t parts) {
    uint64_t all = (uint64_t)E * parts, used = 2 * (uint64_t)S;
    return (uint32_t)(all < used ? all : used);
}

static wb_status open_mover(wb_mover *m) {
    const wb_topology *t = &m->frame->topology;
    size_t S = t->n_slots, E = m->frame->n_experts, R = t->n_ranks;
    m->first_node_place = (uint32_t)E;
    m->first_rank_place = m->first_node_place + place_bound(t->n_slots, m->frame->n_experts, t->n_nodes);
    size_t n_places = m->first_rank_place + (size_t)place_bound(t->n_slots, m->frame->n_experts, t->n_ranks);
    const char *what = "move plan";
    WB_TRY(WB_OWN(&m->memory, m->held, S, what));
    WB_TRY(WB_OWN(&m->memory, m->wanted, S, what));
    WB_TRY(WB_OWN(&m->memory, m->holders, S, what));
    WB_TRY(WB_OWN(&m->memory, m->holder_begin, E + 1, what));
    WB_TRY(WB_OWN(&m->memory, m->waiters, S, what));
    WB_TRY(WB_OWN(&m->memory, m->waiter_begin, E + 1, what));
    WB_TRY(WB_OWN(&m->memory, m->places, n_places, what));
    WB_TRY(WB_OWN(&m->memory, m->slots, S, what));
    WB_TRY(WB_OWN(&m->memory, m->ranks, R, what));
    WB_TRY(WB_OWN(&m->memory, m->ready, S, what));
    WB_TRY(WB_OWN(&m->memory, m->next, S, what));
    WB_TRY(WB_OWN(&m->memory, m->chosen, S, what));
    return WB_OWN(&m->memory, m->sources, R, what);
}

/* ---- the plan -------------------------------------------------------------------------------- */

typedef struct owned_plan {
    wb_move_plan plan; /* first: what the caller has is a pointer to it */
    wb_owner memory;
} owned_plan;

static uint64_t count_changes(const wb_placement *from, const wb_placement *to, const uint8_t *chosen) {
    uint64_t n = 0;
    for (uint32_t l = 0; l < to->n_layers; l++) {
        if (!chosen[l]) continue;
        const int32_t *a = wb_placement_experts_of(from, l), *b = wb_placement_experts_of(to, l);
        for (uint32_t s = 0; s < to->topology.n_slots; s++) n += b[s] >= 0 && b[s] != a[s];
    }
    return n;
}

static void sum_up(wb_move_plan *plan, double expert_bytes) {
    uint64_t n[4] = {0};
    for (uint64_t i = 0; i < plan->n_moves; i++) n[plan->moves[i].kind]++;
    plan->local_bytes = (double)n[WB_MOVE_LOCAL] * expert_bytes;
    plan->node_bytes = (double)n[WB_MOVE_NODE] * expert_bytes;
    plan->network_bytes = (double)n[WB_MOVE_NETWORK] * expert_bytes;
    plan->reload_bytes = (double)n[WB_MOVE_RELOAD] * expert_bytes;
}

/* Transfers per link and direction are capped at what fits in the latency of a group (at least one), so that
 * groups finish together. */
static uint32_t lane_of(const wb_move_options *options, double bytes_per_second) {
    double moves = options->cost.seconds_per_group * bytes_per_second / options->cost.expert_bytes;
    if (!(moves > 1)) return 1;
    return moves < options->group_moves ? (uint32_t)moves : options->group_moves;
}

/* A changed slot is written once, and copied to a shadow slot once at most. */
static wb_status fill_plan(owned_plan *owned, const wb_placement *from, const wb_placement *to,
                           const uint8_t *chosen, const wb_move_options *options) {
    wb_move_plan *plan = &owned->plan;
    plan->changed_slots = count_changes(from, to, chosen);
    wb_move *moves = NULL;
    WB_TRY(WB_OWN_ALLOC(&owned->memory, moves, (size_t)plan->changed_slots, 2 * sizeof *moves, "move plan"));
    wb_mover m = {.frame = to,
                  .options = options,
                  .moves = moves,
                  .node_lane = lane_of(options, options->cost.node_bytes_per_second),
                  .network_lane = lane_of(options, options->cost.network_bytes_per_second)};
    wb_status status = open_mover(&m);
    for (uint32_t l = 0; status == WB_OK && l < to->n_layers; l++) {
        if (!chosen[l]) continue;
        index_layer(&m, from, l);
        wb_move_schedule_layer(&m);
    }
    plan->moves = moves;
    plan->n_moves = m.n_moves;
    plan->n_groups = m.n_groups;
    plan->seconds = m.seconds;
    wb_owner_close(&m.memory);
    if (status == WB_OK) sum_up(plan, options->cost.expert_bytes);
    return status;
}

wb_status wb_move_plan_open(const wb_placement *from, const wb_placement *to, uint32_t n,
                            const uint32_t *layers, const wb_move_options *options, wb_move_plan **plan_out) {
    wb_move_options own = wb_move_options_default();
    WB_TRY(wb_options_read(&own, sizeof own, options, "move plan"));
    WB_TRY(check_options(&own));
    WB_TRY(wb_placement_check_shape(from, to));
    WB_TRY(check_ranks(from, to));
    owned_plan *owned = NULL;
    uint8_t *chosen = NULL;
    WB_TRY(WB_NEW(chosen, to->n_layers, "move plan"));
    wb_status status = choose_layers(to->n_layers, n, layers, chosen);
    if (status == WB_OK) status = WB_NEW(owned, 1, "move plan");
    if (status == WB_OK) status = fill_plan(owned, from, to, chosen, &own);
    free(chosen);
    if (status != WB_OK) {
        wb_move_plan_close(owned ? &owned->plan : NULL);
        return status;
    }
    *plan_out = &owned->plan;
    return WB_OK;
}

void wb_move_plan_close(wb_move_plan *plan) {
    if (!plan) return;
    owned_plan *owned = (owned_plan *)plan;
    wb_owner_close(&owned->memory);
    free(owned);
}
