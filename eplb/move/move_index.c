/* move_index.c - what the change of one layer asks of each rank: the experts it waits for, the slots it may
 * overwrite, and for each expert who has it and who waits. Refuses: groups (move_schedule.c).
 *
 * The order of slots within a rank is free. So a rank keeps, in their slots, the copies that it has and is to
 * have; what it is to have beyond them are its wishes, and any of its other slots will do for any of
 * these. */
#include "move/move_internal.h"

#include <string.h>

/* wanted [E], zeros before and after. */
static void compare_rank(wb_mover *m, uint32_t rank, const int32_t *to, uint32_t *wanted) {
    uint32_t first = m->frame->first_slot[rank], end = m->frame->first_slot[rank + 1];
    wb_move_rank *r = &m->ranks[rank];
    *r = (wb_move_rank){0};
    for (uint32_t s = first; s < end; s++)
        if (to[s] >= 0) wanted[to[s]]++;
    for (uint32_t s = first; s < end; s++) {
        int32_t e = m->held[s];
        if (e < 0) continue;
        m->experts[e].n_old++;
        if (wanted[e] > 0)
            wanted[e]--;
        else
            m->spare[first + r->n_spare++] = s;
    }
    for (uint32_t s = first; s < end; s++) {
        if (m->held[s] < 0) m->spare[first + r->n_spare++] = s;
        if (to[s] < 0 || wanted[to[s]] == 0) continue;
        wanted[to[s]]--;
        m->experts[to[s]].n_waiters++;
        m->wishes[first + r->n_wishes++] = (uint32_t)to[s];
    }
}

/* Lists who holds an expert and who waits for it, with room for the copies to come behind those there are. */
static void list_by_expert(wb_mover *m) {
    for (uint32_t e = 0, begin = 0; e < m->frame->n_experts; e++) {
        wb_move_expert *expert = &m->experts[e];
        expert->begin = begin;
        begin += expert->n_old + expert->n_waiters;
        expert->n_old = expert->n_waiters = 0;
    }
    for (uint32_t s = 0; s < m->frame->topology.n_slots; s++) {
        if (m->held[s] < 0) continue;
        wb_move_expert *expert = &m->experts[m->held[s]];
        m->holders[expert->begin + expert->n_old++] = s;
    }
    for (uint32_t r = 0; r < m->frame->topology.n_ranks; r++)
        for (uint32_t i = 0; i < m->ranks[r].n_wishes; i++) {
            wb_move_expert *expert = &m->experts[m->wishes[m->frame->first_slot[r] + i]];
            m->waiters[expert->begin + expert->n_waiters++] = r;
        }
}

void wb_move_index_layer(wb_mover *m) {
    const int32_t *to = wb_placement_experts_of(m->frame, m->layer);
    uint32_t E = m->frame->n_experts;
    memset(m->experts, 0, E * sizeof *m->experts);
    memset(m->count, 0, E * sizeof *m->count);
    for (uint32_t r = 0; r < m->frame->topology.n_ranks; r++) compare_rank(m, r, to, m->count);
    list_by_expert(m);
}

/* Of the slots of a rank as many hold an expert as in `to`, and have its replica numbers there; further ones
 * become empty. first [E]: WB_NO_SLOT before and after; next [S]. */
static void finish_rank(wb_mover *m, uint32_t rank, uint32_t *first, uint32_t *next, uint32_t *replica_out) {
    const int32_t *to = wb_placement_experts_of(m->frame, m->layer);
    const uint32_t *replica = m->frame->replica_of_slot + (size_t)m->layer * m->frame->topology.n_slots;
    uint32_t begin = m->frame->first_slot[rank], end = m->frame->first_slot[rank + 1];
    for (uint32_t s = end; s-- > begin;) {
        if (to[s] < 0) continue;
        next[s] = first[to[s]];
        first[to[s]] = s;
    }
    for (uint32_t s = begin; s < end; s++) {
        uint32_t at = m->held[s] < 0 ? WB_NO_SLOT : first[m->held[s]];
        if (at == WB_NO_SLOT) {
            m->held[s] = WB_NO_EXPERT;
            replica_out[s] = 0;
            continue;
        }
        first[m->held[s]] = next[at];
        replica_out[s] = replica[at];
    }
}

void wb_move_finish_layer(wb_mover *m, uint32_t *replica_out) {
    for (uint32_t e = 0; e < m->frame->n_experts; e++) m->count[e] = WB_NO_SLOT;
    for (uint32_t r = 0; r < m->frame->topology.n_ranks; r++)
        finish_rank(m, r, m->count, m->holders, replica_out);
}
