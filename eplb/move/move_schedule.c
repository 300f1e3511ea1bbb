/* move_schedule.c - the groups of one layer: which ranks receive what in each. Refuses: what a single move
 * needs (move_stage.c), reading placements (move_plan.c).
 *
 * A rank can receive when one of its slots may be overwritten. If none may, each of its spare slots holds an
 * expert that a certain other rank waits for, since it is the last copy in the world or on a node where it is
 * awaited: if that rank gets it in the same group, the slot is free. That rank may have to make room in turn.
 * The chain of such ranks ends at one that has room, or comes back to a rank that it has passed: what lies
 * behind that one is a cycle, in which each rank overwrites what the next one gets. The cycle goes as it is,
 * whatever the ranks before it wanted.
 *
 * So each group moves something, with one shadow slot a rank and one send a link: at its start no rank has
 * sent or received, the chain from any rank that waits finds an end or a cycle, and each rank of it sends
 * once. */
#include "move/move_internal.h"

#include <string.h>

/* ---- chains ---------------------------------------------------------------------------------- */

/* The rank by which the last one of the path can make room, of several the one that waits for most, with the
 * spare slot in the link; or WB_NO_RANK. */
static uint32_t next_of_chain(const wb_mover *m, wb_move_link *link) {
    uint32_t node = m->frame->node_of_rank[link->rank], most = 0, next = WB_NO_RANK;
    const uint32_t *spare = m->spare + m->frame->first_slot[link->rank];
    for (uint32_t i = 0; i < m->ranks[link->rank].n_spare; i++) {
        uint32_t expert = (uint32_t)m->held[spare[i]];
        const wb_move_expert *e = &m->experts[expert];
        bool near = wb_move_is_awaited(m, expert, node);
        if (!wb_move_can_send(m, link->rank, near ? WB_MOVE_NODE : WB_MOVE_NETWORK)) continue;
        for (uint32_t k = 0; k < e->n_waiters; k++) {
            uint32_t rank = m->waiters[e->begin + k];
            const wb_move_rank *r = &m->ranks[rank];
            if (r->stuck || r->n_wishes <= most || !wb_move_can_receive(m, rank)) continue;
            if (near && m->frame->node_of_rank[rank] != node) continue;
            most = r->n_wishes;
            next = rank;
            link->spare = i;
            link->slot = spare[i];
        }
    }
    return next;
}

/* The links [begin, n) of the path: each rank gets what the one before it sends, the last one's goes to `to`,
 * which overwrites `room`. */
static void stage_chain(wb_mover *m, uint32_t begin, uint32_t n, uint32_t to, uint32_t room) {
    for (uint32_t i = n; i-- > begin;) {
        const wb_move_link *link = &m->path[i];
        bool near = m->frame->node_of_rank[to] == m->frame->node_of_rank[link->rank];
        wb_move_source source = {near ? WB_MOVE_NODE : WB_MOVE_NETWORK, link->slot};
        wb_move_stage(m, to, (uint32_t)m->held[link->slot], source, room);
        to = link->rank;
        room = link->spare;
    }
}

static uint32_t add_to_path(wb_mover *m, uint32_t n, uint32_t rank) {
    m->path[n] = (wb_move_link){.rank = rank};
    m->ranks[rank].path_index = n + 1;
    return n + 1;
}

/* Makes room on a rank that has none, or moves a cycle that its chain leads to. False: there is neither, for
 * this rank and for all that were tried. */
static bool follow_chain(wb_mover *m, uint32_t rank) {
    uint32_t n = add_to_path(m, 0, rank);
    while (n > 0) {
        uint32_t next = next_of_chain(m, &m->path[n - 1]);
        if (next == WB_NO_RANK) {
            wb_move_rank *last = &m->ranks[m->path[--n].rank];
            last->stuck = true;
            last->path_index = 0;
            continue;
        }
        uint32_t begin = 0, room = 0;
        if (m->ranks[next].path_index > 0) {
            begin = m->ranks[next].path_index - 1;
            room = m->path[begin].spare;
        } else if ((room = wb_move_find_room(m, next)) == m->ranks[next].n_spare) {
            n = add_to_path(m, n, next);
            continue;
        }
        stage_chain(m, begin, n, next, room);
        while (n > 0) m->ranks[m->path[--n].rank].path_index = 0;
        return true;
    }
    return false;
}

/* ---- a group --------------------------------------------------------------------------------- */

/* What a rank with room is to get: a lost expert, else one of a rank that waits for much, since that rank may
 * then have room too. False: none can be had in this group. */
static bool choose_wish(const wb_mover *m, uint32_t rank, uint32_t *expert_out, wb_move_source *source_out) {
    const uint32_t *wishes = m->wishes + m->frame->first_slot[rank];
    uint32_t best = 0;
    for (uint32_t i = 0; i < m->ranks[rank].n_wishes; i++) {
        wb_move_source source;
        if (!wb_move_find_source(m, rank, wishes[i], &source)) continue;
        uint32_t score = UINT32_MAX;
        if (source.kind != WB_MOVE_RELOAD) {
            uint32_t from = wb_move_rank_of(m, source.slot);
            score = wb_move_can_receive(m, from) ? 1 + m->ranks[from].n_wishes : 1;
        }
        if (score <= best) continue;
        best = score;
        *expert_out = wishes[i];
        *source_out = source;
    }
    return best > 0;
}

/* One more expert for a rank that can receive, if one can be had. */
static void serve(wb_mover *m, uint32_t rank) {
    uint32_t expert, room;
    wb_move_source source;
    while ((room = wb_move_find_room(m, rank)) == m->ranks[rank].n_spare)
        if (m->ranks[rank].stuck || !follow_chain(m, rank) || !wb_move_can_receive(m, rank)) return;
    if (choose_wish(m, rank, &expert, &source)) wb_move_stage(m, rank, expert, source, room);
}

/* Of the n ranks in mover->order those that wait, first those that wait for most, equal ones as they were.
 * Returns how many. */
static uint32_t order_ranks(wb_mover *m, uint32_t n) {
    uint32_t max = 0, kept = 0, *old = m->order;
    m->order = m->old;
    m->old = old;
    for (uint32_t i = 0; i < n; i++)
        if (m->ranks[old[i]].n_wishes > max) max = m->ranks[old[i]].n_wishes;
    memset(m->count, 0, (max + 1) * sizeof *m->count);
    for (uint32_t i = 0; i < n; i++) m->count[max - m->ranks[old[i]].n_wishes]++;
    for (uint32_t i = 0; i < max; i++) {
        kept += m->count[i];
        m->count[i] = kept - m->count[i];
    }
    for (uint32_t i = 0; i < n; i++)
        if (m->ranks[old[i]].n_wishes > 0) m->order[m->count[max - m->ranks[old[i]].n_wishes]++] = old[i];
    return kept;
}

wb_status wb_move_schedule_layer(wb_mover *m) {
    uint32_t n = m->frame->topology.n_ranks;
    for (uint32_t r = 0; r < n; r++) m->order[r] = r;
    while ((n = order_ranks(m, n)) > 0) {
        for (uint32_t pass = 0; pass < m->options->n_shadow; pass++)
            for (uint32_t i = 0; i < n; i++)
                if (wb_move_can_receive(m, m->order[i])) serve(m, m->order[i]);
        WB_TRY(wb_move_end_group(m));
    }
    return WB_OK;
}
