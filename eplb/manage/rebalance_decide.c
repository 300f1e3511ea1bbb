/* rebalance_decide.c - whether another placement is worth having: what was counted, what of it is a load,
 * what is more than noise, and what pays its move.
 *
 * All of it depends on sums over ranks and on options that ranks have alike, so that all ranks decide the
 * same. */
#include "manage/rebalance_state.h"
#include "wb_check.h"
#include "wb_hash.h"

#include <math.h>

/* ---- counts -------------------------------------------------------------------------------------- */

/* Passes that the window's weights add up to. */
static double weighted_passes(const wb_rebalance *m) {
    const double n = wb_load_passes(m->load), decay = m->options.load.decay;
    return decay == 1 ? n : (1 - pow(decay, n)) / (1 - decay);
}

static const double *counts_of(const wb_rebalance *m, uint32_t layer) {
    return m->counts + (size_t)layer * m->n_experts;
}

wb_status wb_rebalance_take_counts(wb_rebalance *m) {
    const size_t n = (size_t)m->n_layers * m->n_experts;
    WB_TRY(wb_comm_agree(m->comm, wb_load_counts(m->load, 0, m->options.phases, m->counts)));
    WB_TRY(wb_comm_all_reduce_f64(m->comm, m->counts, n));
    /* Kept: the window goes on while the solver's thread works with what it was now. */
    m->passes = weighted_passes(m);
    m->stats.layers_without_load = m->stats.one_sided_layers = 0;
    for (uint32_t l = 0; l < m->n_layers; l++) {
        double sum = 0;
        uint32_t rank;
        for (uint32_t e = 0; e < m->n_experts; e++) sum += counts_of(m, l)[e];
        m->stats.layers_without_load += sum == 0;
        /* It is told, and balanced like any other: the counts are of all ranks. */
        m->stats.one_sided_layers += wb_load_in_one_block(m->n_experts, counts_of(m, l), m->n_ranks, &rank);
        m->usable[l] = sum > 0;
    }
    return WB_OK;
}

/* ---- maximum rank loads ---------------------------------------------------------------------------- */

typedef struct layer_load {
    double mean, max;
    uint32_t rank; /* the one with the maximum */
} layer_load;

static layer_load load_under(wb_rebalance *m, const wb_placement *placement, uint32_t layer) {
    layer_load load = {0};
    uint32_t live = 0;
    wb_placement_rank_loads(placement, layer, counts_of(m, layer), m->rank_loads);
    for (uint32_t r = 0; r < m->n_ranks; r++) {
        if (wb_placement_topology(placement)->dead[r]) continue;
        live++;
        load.mean += m->rank_loads[r];
        if (m->rank_loads[r] <= load.max) continue;
        load.max = m->rank_loads[r];
        load.rank = r;
    }
    load.mean /= live;
    return load;
}

/* Sum of means over sum of maxima of the layers with a load: the part of the time that is used. */
static double balancedness_under(wb_rebalance *m, const wb_placement *placement) {
    double means = 0, maxima = 0;
    for (uint32_t l = 0; l < m->n_layers; l++) {
        if (!m->usable[l]) continue;
        const layer_load load = load_under(m, placement, l);
        means += load.mean, maxima += load.max;
    }
    return maxima > 0 ? means / maxima : 1;
}

wb_rebalance_verdict wb_rebalance_judge_counts(wb_rebalance *m) {
    uint32_t usable = 0;
    for (uint32_t l = 0; l < m->n_layers; l++) usable += m->usable[l];
    m->stats.balancedness = balancedness_under(m, m->migration.placement);
    m->stats.expected_balancedness = 0;
    if (usable == 0) return WB_REBALANCE_NO_LOAD;
    return m->stats.balancedness > m->options.enough ? WB_REBALANCE_BALANCED : WB_REBALANCE_MOVED;
}

/* ---- gains --------------------------------------------------------------------------------------- */

/* The variance of a rank's load, of Poisson's law by expert: a replica has 1 / n of its expert's tokens. */
static double variance_of(const wb_rebalance *m, uint32_t layer, uint32_t rank) {
    const wb_placement *placement = m->migration.placement;
    const wb_layer_map map = wb_placement_layer(placement, layer);
    double variance = 0;
    for (uint32_t s = wb_placement_first_slot(placement, rank);
         s < wb_placement_first_slot(placement, rank + 1); s++) {
        const int32_t e = map.expert_of_slot[s];
        if (e < 0) continue;
        const double n = map.replica_begin[e + 1] - map.replica_begin[e];
        variance += counts_of(m, layer)[e] / (n * n);
    }
    return variance;
}

/* Chooses the layer, with its plan, if what it gains is worth its move. */
static wb_status weigh_move(wb_rebalance *m, const wb_placement *found, uint32_t layer, double gain) {
    const wb_cost_model *cost = &m->options.move.cost;
    wb_move_plan *plan;
    WB_TRY(wb_move_plan_open(m->migration.placement, found, 1, &layer, &m->options.move, &plan));
    const double gained = gain / m->passes * cost->seconds_per_token * m->options.horizon_passes;
    if (!(gained > plan->seconds)) {
        wb_move_plan_close(plan);
        return WB_OK;
    }
    m->layers[m->n_chosen] = layer;
    m->next_group[m->n_chosen] = 0;
    m->plans[m->n_chosen++] = plan;
    m->chosen = WB_REBALANCE_MOVED;
    return WB_OK;
}

static void add_plan(wb_hash *hash, uint32_t layer, const wb_move_plan *plan) {
    const uint64_t sizes[] = {layer, plan->n_groups, plan->n_moves};
    wb_hash_add(hash, sizes, sizeof sizes);
    for (uint32_t i = 0; i < plan->n_groups; i++)
        wb_hash_add(hash, &plan->groups[i].end, sizeof plan->groups[i].end);
    for (uint64_t i = 0; i < plan->n_moves; i++) {
        const wb_move *move = &plan->moves[i];
        const uint32_t what[] = {move->expert, move->from.slot, move->to.slot};
        wb_hash_add(hash, what, sizeof what);
    }
}

static uint64_t digest_of(const wb_rebalance *m) {
    wb_hash hash;
    wb_hash_start(&hash);
    for (uint32_t i = 0; i < m->n_chosen; i++) add_plan(&hash, m->layers[i], m->plans[i]);
    return wb_hash_value(&hash);
}

wb_status wb_rebalance_choose_layers(void *manager, const wb_placement *found) {
    wb_rebalance *m = manager;
    const double noise = sqrt(2 * log((double)m->n_ranks)) + m->options.sigmas;
    m->chosen = WB_REBALANCE_NOISE;
    for (uint32_t l = 0; l < m->n_layers; l++) {
        if (!m->usable[l]) continue;
        const layer_load now = load_under(m, m->migration.placement, l), then = load_under(m, found, l);
        const double gain = now.max - then.max;
        if (!(gain > noise * sqrt(variance_of(m, l, now.rank)))) continue;
        if (m->chosen == WB_REBALANCE_NOISE) m->chosen = WB_REBALANCE_NO_GAIN;
        WB_TRY(weigh_move(m, found, l, gain));
    }
    m->expected_balancedness = balancedness_under(m, found);
    m->plans_digest = digest_of(m);
    return WB_OK;
}
