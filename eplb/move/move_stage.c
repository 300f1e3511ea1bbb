/* move_stage.c - one move of a group: which slots may be overwritten, where an expert can come from, and what
 * a move changes. Refuses: which rank gets what (move_schedule.c).
 *
 * All moves of a group read the state before it, so that a slot can be read and overwritten at once. What
 * counts for overwriting is the state after it: a slot may be overwritten unless its expert would then have
 * no copy, or none on a node where a rank still waits for it. So every expert can be had between groups, and
 * a node that has one never asks other nodes for it. */
#include "move/move_internal.h"

/* ---- which slots may be overwritten ---------------------------------------------------------- */

/* Whether a node has a copy of the expert when the group is over, in other slots than `except`. */
static bool stays_on_node(const wb_mover *m, uint32_t expert, uint32_t node, uint32_t except) {
    const wb_move_expert *e = &m->experts[expert];
    const uint32_t *slots = m->holders + e->begin;
    for (uint32_t i = 0; i < e->n_old + e->n_new; i++) {
        bool stays = slots[i] != except && (i >= e->n_old || !m->replaced[slots[i]]);
        if (stays && wb_move_node_of(m, slots[i]) == node) return true;
    }
    return false;
}

bool wb_move_is_awaited(const wb_mover *m, uint32_t expert, uint32_t node) {
    const wb_move_expert *e = &m->experts[expert];
    for (uint32_t i = 0; i < e->n_waiters; i++)
        if (m->frame->node_of_rank[m->waiters[e->begin + i]] == node) return true;
    return false;
}

uint32_t wb_move_find_room(const wb_mover *m, uint32_t rank) {
    uint32_t node = m->frame->node_of_rank[rank], n = m->ranks[rank].n_spare;
    const uint32_t *spare = m->spare + m->frame->first_slot[rank];
    for (uint32_t i = n; i-- > 0;) {
        if (m->held[spare[i]] < 0) return i;
        uint32_t expert = (uint32_t)m->held[spare[i]];
        const wb_move_expert *e = &m->experts[expert];
        if (e->n_old + e->n_new - e->n_replaced == 1) continue;
        if (!wb_move_is_awaited(m, expert, node) || stays_on_node(m, expert, node, spare[i])) return i;
    }
    return n;
}

/* ---- where an expert comes from -------------------------------------------------------------- */

static bool sends_before(const wb_move_rank *a, const wb_move_rank *b) {
    uint32_t a_now = a->sends[0] + a->sends[1], b_now = b->sends[0] + b->sends[1];
    return a_now != b_now ? a_now < b_now : a->sent < b->sent;
}

/* A slot with the expert on a rank of the node, or of other nodes, that may still send: of the rank that has
 * sent least in the group, then in the layer. Else WB_NO_SLOT. */
static uint32_t choose_sender(const wb_mover *m, const wb_move_expert *e, wb_move_kind kind, uint32_t node) {
    const wb_move_rank *best = NULL;
    uint32_t slot = WB_NO_SLOT;
    for (uint32_t i = e->begin; i < e->begin + e->n_old && !(best && best->sent == 0); i++) {
        uint32_t rank = wb_move_rank_of(m, m->holders[i]);
        if ((m->frame->node_of_rank[rank] == node) != (kind == WB_MOVE_NODE)) continue;
        if (!wb_move_can_send(m, rank, kind) || (best && !sends_before(&m->ranks[rank], best))) continue;
        best = &m->ranks[rank];
        slot = m->holders[i];
    }
    return slot;
}

/* The nearest of the expert's old slots: on the rank, else on its node, else any; from the checkpoint if
 * there is none. */
static wb_move_source find_nearest(const wb_mover *m, const wb_move_expert *e, uint32_t rank) {
    wb_move_source source = {e->n_old > 0 ? WB_MOVE_NETWORK : WB_MOVE_RELOAD, WB_NO_SLOT};
    for (uint32_t i = e->begin; i < e->begin + e->n_old && source.kind != WB_MOVE_LOCAL; i++) {
        if (wb_move_node_of(m, m->holders[i]) != m->frame->node_of_rank[rank]) continue;
        bool here = wb_move_rank_of(m, m->holders[i]) == rank;
        source = (wb_move_source){here ? WB_MOVE_LOCAL : WB_MOVE_NODE, m->holders[i]};
    }
    return source;
}

bool wb_move_find_source(const wb_mover *m, uint32_t rank, uint32_t expert, wb_move_source *source_out) {
    const wb_move_expert *e = &m->experts[expert];
    uint32_t node = m->frame->node_of_rank[rank], *slots = m->holders + e->begin;
    wb_move_source source = find_nearest(m, e, rank);
    /* It enters a node once and is loaded once: what the group brings already is waited for. */
    if (source.kind == WB_MOVE_NETWORK || source.kind == WB_MOVE_RELOAD)
        for (uint32_t i = e->n_old; i < e->n_old + e->n_new; i++)
            if (source.kind == WB_MOVE_RELOAD || wb_move_node_of(m, slots[i]) == node) return false;
    if (source.kind == WB_MOVE_NODE || source.kind == WB_MOVE_NETWORK) {
        source.slot = choose_sender(m, e, source.kind, node);
        if (source.slot == WB_NO_SLOT) return false;
    }
    *source_out = source;
    return true;
}

/* ---- a move ---------------------------------------------------------------------------------- */

/* Removes a value that is in the list, whose last element takes its place. */
static void remove_from(uint32_t *list, uint32_t *n, uint32_t value) {
    uint32_t i = 0;
    while (list[i] != value) i++;
    list[i] = list[--*n];
}

static void count_traffic(wb_mover *m, wb_move_rank *to, wb_move_source source) {
    if (source.kind == WB_MOVE_LOCAL) {
        to->local++;
        return;
    }
    uint32_t link = source.kind != WB_MOVE_NODE;
    to->receives[link]++;
    if (source.kind == WB_MOVE_RELOAD) return;
    wb_move_rank *from = &m->ranks[wb_move_rank_of(m, source.slot)];
    from->sends[link]++;
    from->sent++;
}

void wb_move_stage(wb_mover *m, uint32_t rank, uint32_t expert, wb_move_source source, uint32_t spare) {
    wb_move_rank *r = &m->ranks[rank];
    wb_move_expert *e = &m->experts[expert];
    uint32_t first = m->frame->first_slot[rank], slot = m->spare[first + spare];
    count_traffic(m, r, source);
    m->staged[rank * (size_t)WB_MAX_SHADOW + r->n_staged++] = (wb_move){
        .layer = m->layer, .expert = expert, .kind = source.kind, .from = {source.slot}, .to = {slot}};
    m->spare[first + spare] = m->spare[first + --r->n_spare];
    remove_from(m->wishes + first, &r->n_wishes, expert);
    remove_from(m->waiters + e->begin, &e->n_waiters, rank);
    m->holders[e->begin + e->n_old + e->n_new++] = slot;
    if (m->held[slot] < 0) return;
    m->replaced[slot] = true;
    m->experts[m->held[slot]].n_replaced++;
}

/* ---- the end of a group ---------------------------------------------------------------------- */

/* Seconds that a rank takes: both links and local copies run beside each other, in and out too; then what was
 * staged is copied to its slots. */
static double seconds_of(const wb_move_rank *r, const wb_cost_model *cost) {
    const double rates[2] = {cost->node_bytes_per_second, cost->network_bytes_per_second};
    double seconds = r->local * cost->expert_bytes / cost->local_bytes_per_second;
    for (int link = 0; link < 2; link++) {
        uint32_t n = r->sends[link] > r->receives[link] ? r->sends[link] : r->receives[link];
        if (n * cost->expert_bytes / rates[link] > seconds) seconds = n * cost->expert_bytes / rates[link];
    }
    return seconds + r->n_staged * cost->expert_bytes / cost->local_bytes_per_second;
}

/* The group is over: what it wrote are copies like others, and what it overwrote is gone. */
static void finish_moves(wb_mover *m, const wb_move *moves, uint64_t n) {
    for (uint64_t i = 0; i < n; i++) {
        wb_move_expert *e = &m->experts[moves[i].expert];
        e->n_old += e->n_new;
        e->n_new = 0;
    }
    for (uint64_t i = 0; i < n; i++) {
        uint32_t slot = moves[i].to.slot;
        if (m->replaced[slot]) {
            wb_move_expert *old = &m->experts[m->held[slot]];
            remove_from(m->holders + old->begin, &old->n_old, slot);
            old->n_replaced--;
            m->replaced[slot] = false;
        }
        m->held[slot] = (int32_t)moves[i].expert;
    }
}

wb_status wb_move_end_group(wb_mover *m) {
    WB_TRY(WB_GROW(m->groups, m->n_groups + 1, &m->groups_capacity, "move plan"));
    uint64_t begin = m->n_moves;
    double slowest = 0;
    for (uint32_t i = 0; i < m->frame->topology.n_ranks; i++) {
        wb_move_rank *r = &m->ranks[i];
        double seconds = seconds_of(r, &m->options->cost);
        if (seconds > slowest) slowest = seconds;
        for (uint32_t k = 0; k < r->n_staged; k++)
            m->moves[m->n_moves++] = m->staged[i * (size_t)WB_MAX_SHADOW + k];
        r->sends[0] = r->sends[1] = r->receives[0] = r->receives[1] = r->local = r->n_staged = 0;
        r->stuck = false;
    }
    finish_moves(m, m->moves + begin, m->n_moves - begin);
    m->groups[m->n_groups++] = (wb_move_group){.layer = m->layer, .begin = begin, .end = m->n_moves};
    m->seconds += slowest + m->options->cost.seconds_per_group;
    return WB_OK;
}
