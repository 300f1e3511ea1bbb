/* rebalance_move.c - the plans of a decision, carried out round by round: at each boundary groups of as many
 * layers as may move together, where no rank sends for two of them or receives for two. Refuses: making a
 * round (migrate.c), what becomes of one that fails (rebalance.c). */
#include "manage/rebalance_state.h"
#include "wb_check.h"

#include <string.h>

void wb_rebalance_drop_plans(wb_rebalance *m) {
    for (uint32_t i = 0; i < m->n_chosen; i++) wb_move_plan_close(m->plans[i]);
    m->n_chosen = 0;
}

/* The group may join the round: then its ranks are busy. A rank sends and receives at the same time. */
static bool join_round(wb_rebalance *m, const wb_move_plan *plan, const wb_move_group *group) {
    const wb_placement *placement = m->migration.placement;
    const wb_move *moves = plan->moves;
    for (uint64_t i = group->begin; i < group->end; i++)
        if (m->sends[wb_placement_rank_of(placement, moves[i].from)] ||
            m->receives[wb_placement_rank_of(placement, moves[i].to)])
            return false;
    for (uint64_t i = group->begin; i < group->end; i++) {
        m->sends[wb_placement_rank_of(placement, moves[i].from)] = true;
        m->receives[wb_placement_rank_of(placement, moves[i].to)] = true;
    }
    return true;
}

/* m->round and m->moving (=) the next group of each layer that can be moved now, layers in turn; how many.
 * The first layer that is left always can. */
static uint32_t choose_round(wb_rebalance *m) {
    uint32_t n = 0;
    memset(m->sends, 0, m->n_ranks * sizeof *m->sends);
    memset(m->receives, 0, m->n_ranks * sizeof *m->receives);
    for (uint32_t i = 0; i < m->n_chosen && n < m->options.layers_per_chunk; i++) {
        const wb_move_plan *plan = m->plans[i];
        const uint32_t group = m->next_group[i];
        if (group == plan->n_groups || !join_round(m, plan, &plan->groups[group])) continue;
        m->moving[n] = i;
        m->round[n++] = (wb_round_group){plan, group};
    }
    return n;
}

static bool all_done(const wb_rebalance *m) {
    for (uint32_t i = 0; i < m->n_chosen; i++)
        if (m->next_group[i] < m->plans[i]->n_groups) return false;
    return true;
}

wb_status wb_rebalance_start_round(wb_rebalance *m, bool *dead_out) {
    const uint32_t n = choose_round(m);
    *dead_out = false;
    if (n == 0) return WB_OK;
    WB_TRY(wb_migrate_start(&m->migration, n, m->round, m->latest_epoch + 1, dead_out));
    m->n_moving = n;
    return WB_OK;
}

wb_status wb_rebalance_end_round(wb_rebalance *m, bool *done_out, bool *dead_out) {
    const uint32_t n = m->n_moving;
    *dead_out = false;
    m->n_moving = 0;
    if (n > 0) {
        WB_TRY(wb_migrate_end(&m->migration, dead_out));
        m->latest_epoch++;
        m->stats.groups += n;
        for (uint32_t i = 0; i < n; i++) m->next_group[m->moving[i]]++;
    }
    *done_out = all_done(m);
    return WB_OK;
}
