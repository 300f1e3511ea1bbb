/* move_plan.c - opening a move plan: checks, memory, the sums; and the maps between its groups. Refuses: what
 * a layer's change asks for (move_index.c), its groups (move_schedule.c), carrying a plan out. */
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

wb_status wb_move_check_options(const wb_move_options *options) {
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

/* ---- memory ---------------------------------------------------------------------------------- */

/* Rows are of the layers of the set, ascending. */
typedef struct owned_plan {
    wb_move_plan plan; /* first: what the caller has is a pointer to it */
    wb_owner memory;
    wb_move_group *groups; /* plan.groups */
    uint32_t n_layers, n_experts, n_ranks, n_slots;
    uint32_t *row_of_layer;  /* [L] */
    int32_t *before, *after; /* [rows][S] the maps before the first group and after the last one */
    uint32_t *replica;       /* [rows][S] of `after` */
} owned_plan;

static wb_status open_rows(owned_plan *o, uint32_t rows, uint64_t n_moves, wb_move **moves_out) {
    size_t row_bytes = o->n_slots * sizeof(int32_t);
    WB_TRY(WB_OWN(&o->memory, o->row_of_layer, o->n_layers, "move plan"));
    WB_TRY(WB_OWN_ALLOC(&o->memory, o->before, rows, row_bytes, "move plan"));
    WB_TRY(WB_OWN_ALLOC(&o->memory, o->after, rows, row_bytes, "move plan"));
    WB_TRY(WB_OWN_ALLOC(&o->memory, o->replica, rows, row_bytes, "move plan"));
    return WB_OWN(&o->memory, *moves_out, (size_t)n_moves, "move plan");
}

static wb_status open_mover(wb_mover *m) {
    size_t S = m->frame->topology.n_slots, E = m->frame->n_experts, R = m->frame->topology.n_ranks;
    const char *what = "move plan";
    WB_TRY(WB_OWN(&m->memory, m->replaced, S, what));
    WB_TRY(WB_OWN(&m->memory, m->wishes, S, what));
    WB_TRY(WB_OWN(&m->memory, m->spare, S, what));
    WB_TRY(WB_OWN(&m->memory, m->experts, E, what));
    WB_TRY(WB_OWN(&m->memory, m->holders, 2 * S, what));
    WB_TRY(WB_OWN(&m->memory, m->waiters, 2 * S, what));
    WB_TRY(WB_OWN(&m->memory, m->ranks, R, what));
    WB_TRY(WB_OWN(&m->memory, m->staged, R * WB_MAX_SHADOW, what));
    WB_TRY(WB_OWN(&m->memory, m->order, R, what));
    WB_TRY(WB_OWN(&m->memory, m->old, R, what));
    WB_TRY(WB_OWN(&m->memory, m->path, R, what));
    return WB_OWN(&m->memory, m->count, (S > E ? S : E) + 1, what);
}

/* ---- the plan -------------------------------------------------------------------------------- */

/* A bound on the moves: slots that hold another expert in `to`. */
static uint64_t count_changes(const wb_placement *from, const wb_placement *to, const uint8_t *chosen) {
    uint64_t n = 0;
    for (uint32_t l = 0; l < to->n_layers; l++) {
        if (!chosen[l]) continue;
        const int32_t *a = wb_placement_experts_of(from, l), *b = wb_placement_experts_of(to, l);
        for (uint32_t s = 0; s < to->topology.n_slots; s++) n += b[s] >= 0 && b[s] != a[s];
    }
    return n;
}

static uint32_t lane_of(const wb_move_options *options, double bytes_per_second) {
    double moves = options->cost.seconds_per_group * bytes_per_second / options->cost.expert_bytes;
    if (!(moves > 1)) return 1;
    return moves < options->group_moves ? (uint32_t)moves : options->group_moves;
}

static void sum_up(wb_move_plan *plan, double expert_bytes) {
    uint64_t n[4] = {0};
    for (uint64_t i = 0; i < plan->n_moves; i++) n[plan->moves[i].kind]++;
    plan->local_bytes = (double)n[WB_MOVE_LOCAL] * expert_bytes;
    plan->node_bytes = (double)n[WB_MOVE_NODE] * expert_bytes;
    plan->network_bytes = (double)n[WB_MOVE_NETWORK] * expert_bytes;
    plan->reload_bytes = (double)n[WB_MOVE_RELOAD] * expert_bytes;
}

/* A layer of which only the map changes, because slots become empty or replicas have other numbers, has a
 * group without moves. */
static wb_status plan_layer(owned_plan *o, wb_mover *m, const wb_placement *from, uint32_t layer,
                            uint32_t row) {
    size_t S = o->n_slots, n_groups = m->n_groups;
    const int32_t *experts = wb_placement_experts_of(from, layer);
    const uint32_t *replica = from->replica_of_slot + layer * S;
    int32_t *before = o->before + row * S;
    o->row_of_layer[layer] = row;
    for (uint32_t s = 0; s < S; s++)
        before[s] = m->frame->dead[m->frame->rank_of_slot[s]] ? WB_NO_EXPERT : experts[s];
    m->layer = layer;
    m->held = o->after + row * S;
    memcpy(m->held, before, S * sizeof *before);
    wb_move_index_layer(m);
    WB_TRY(wb_move_schedule_layer(m));
    wb_move_finish_layer(m, o->replica + row * S);
    if (m->n_groups == n_groups && (memcmp(m->held, experts, S * sizeof *experts) != 0 ||
                                    memcmp(o->replica + row * S, replica, S * sizeof *replica) != 0))
        WB_TRY(wb_move_end_group(m));
    if (m->n_groups > n_groups) m->groups[m->n_groups - 1].last = true;
    return WB_OK;
}

static wb_status fill_plan(owned_plan *o, const wb_placement *from, const wb_placement *to, uint32_t n_chosen,
                           const uint8_t *chosen, const wb_move_options *options) {
    o->n_layers = to->n_layers;
    o->n_experts = to->n_experts;
    o->n_ranks = to->topology.n_ranks;
    o->n_slots = to->topology.n_slots;
    wb_mover m = {.frame = to,
                  .options = options,
                  .lanes = {lane_of(options, options->cost.node_bytes_per_second),
                            lane_of(options, options->cost.network_bytes_per_second)}};
    wb_status status = open_rows(o, n_chosen, count_changes(from, to, chosen), &m.moves);
    if (status == WB_OK) status = open_mover(&m);
    for (uint32_t l = 0, row = 0; status == WB_OK && l < o->n_layers; l++)
        if (chosen[l]) status = plan_layer(o, &m, from, l, row++);
    wb_owner_close(&m.memory);
    o->groups = m.groups;
    o->plan = (wb_move_plan){.n_moves = m.n_moves,
                             .moves = m.moves,
                             .n_groups = (uint32_t)m.n_groups,
                             .groups = m.groups,
                             .seconds = m.seconds};
    sum_up(&o->plan, options->cost.expert_bytes);
    return status;
}

wb_status wb_move_plan_open(const wb_placement *from, const wb_placement *to, uint32_t n,
                            const uint32_t *layers, const wb_move_options *options, wb_move_plan **plan_out) {
    wb_move_options own = wb_move_options_default();
    WB_TRY(wb_options_read(&own, sizeof own, options, "move plan"));
    WB_TRY(wb_move_check_options(&own));
    WB_TRY(wb_placement_check_shape(from, to));
    WB_TRY(check_ranks(from, to));
    owned_plan *owned = NULL;
    uint8_t *chosen = NULL;
    WB_TRY(WB_NEW(chosen, to->n_layers, "move plan"));
    wb_status status = choose_layers(to->n_layers, n, layers, chosen);
    if (status == WB_OK) status = WB_NEW(owned, 1, "move plan");
    if (status == WB_OK) status = fill_plan(owned, from, to, n, chosen, &own);
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
    free(owned->groups);
    free(owned);
}

/* ---- the map after a group ------------------------------------------------------------------- */

static wb_status check_target(const owned_plan *o, uint32_t group, const wb_placement *placement) {
    if (group >= o->plan.n_groups)
        return wb_fail(WB_INVALID_ARGUMENT, "move plan: group: expected below %" PRIu32 ", found %" PRIu32,
                       o->plan.n_groups, group);
    const wb_topology *t = &placement->topology;
    if (t->n_ranks != o->n_ranks || t->n_slots != o->n_slots)
        return wb_fail(WB_MISMATCH,
                       "move plan: placement has %" PRIu32 " ranks and %" PRIu32 " slots, expected %" PRIu32
                       " and %" PRIu32,
                       t->n_ranks, t->n_slots, o->n_ranks, o->n_slots);
    return wb_placement_check_size(placement, o->n_layers, o->n_experts, "move plan");
}

wb_status wb_move_apply_group(const wb_move_plan *plan, uint32_t group, uint64_t epoch,
                              wb_placement *placement) {
    const owned_plan *o = (const owned_plan *)plan;
    WB_TRY(check_target(o, group, placement));
    const wb_move_group *g = &plan->groups[group];
    size_t row = o->row_of_layer[g->layer] * (size_t)o->n_slots;
    if (g->last) return wb_placement_set_layer(placement, g->layer, o->after + row, o->replica + row, epoch);
    int32_t *experts = NULL;
    WB_TRY(WB_NEW(experts, o->n_slots, "move plan"));
    memcpy(experts, o->before + row, o->n_slots * sizeof *experts);
    for (uint64_t i = g->end; i-- > 0 && plan->moves[i].layer == g->layer;)
        experts[plan->moves[i].to.slot] = (int32_t)plan->moves[i].expert;
    wb_status status = wb_placement_set_layer(placement, g->layer, experts, NULL, epoch);
    free(experts);
    return status;
}
