/* migrate_walk.c - see migrate_walk.h. */
#include "manage/migrate_walk.h"
#include "wb_check.h"

wb_status wb_migrate_find_parts(wb_migration *m, uint32_t layer, wb_physical_id slot, size_t *bytes_out) {
    const wb_expert_store *s = m->store;
    WB_TRY(s->slot(s->context, layer, slot, m->max_parts, m->parts, &m->n_parts));
    if (m->n_parts > m->max_parts) {
        WB_TRY(WB_GROW(m->parts, m->n_parts, &m->max_parts, "migration"));
        WB_TRY(s->slot(s->context, layer, slot, m->max_parts, m->parts, &m->n_parts));
    }
    *bytes_out = 0;
    for (size_t i = 0; i < m->n_parts; i++) *bytes_out += wb_migrate_aligned(m->parts[i].bytes);
    return WB_OK;
}

/* Where the next move of a walk through a round goes; `last` is that of the one before. A group's moves are
 * in the order of their ranks, and a rank's, which are all of one group, take its shadow slots in turn. */
static wb_move_place place_move(const wb_migration *m, const wb_move *move, uint64_t number,
                                const wb_move_place *last) {
    const uint32_t to = wb_placement_rank_of(m->placement, move->to);
    return (wb_move_place){.from_rank = wb_placement_rank_of(m->placement, move->from),
                           .to_rank = to,
                           .shadow = last && last->to_rank == to ? last->shadow + 1 : 0,
                           .checked = m->check_every > 0 && number % m->check_every == 0};
}

wb_status wb_migrate_visit(wb_migration *m, wb_visit_fn *visit) {
    wb_move_place place, last;
    uint64_t number = m->moves;
    for (uint32_t i = 0; i < m->n_groups; i++) {
        const wb_move_plan *plan = m->groups[i].plan;
        const wb_move_group *group = &plan->groups[m->groups[i].group];
        for (uint64_t j = group->begin; j < group->end; j++, number++, last = place) {
            place = place_move(m, &plan->moves[j], number, j > group->begin ? &last : NULL);
            if (place.from_rank != m->rank && place.to_rank != m->rank) continue;
            WB_TRY(visit(m, &plan->moves[j], &place));
        }
    }
    return WB_OK;
}
