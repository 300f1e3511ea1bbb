/* move_stage.c - one move of a group: which slots may be overwritten, where an expert can come from, and what
 * a move changes. Refuses: which rank gets what (move_schedule.c).
 *
 * All moves of a group read the state before it, so that a slot can be read and overwritten at once. What
 * counts for overwriting is the state after it: a slot may be overwritten unless its expert would then have no
 * copy, or none on a node where a rank still waits for it. So every expert can be had between groups, and a
 * node that has one never asks other nodes for it. */
#include "move/move_internal.h"

/* ---- which slots may be overwritten ---------------------------------------------------------- */

bool wb_move_stays_on_node(const wb_mover *m, uint32_t expert, uint32_t node, uint32_t except) {
    const wb_move_expert *e = &m->experts[expert];
    const uint32_t *slots = m->holders + e->begin;
    for (uint32_t i = 0; i < e->n_old + e->n_new; i++)
        if (slots[i] != except && wb_move_node_of(m, slots[i]) == node &&
            (i >= e->n_old || !m->replaced[slots[i]]))
            return true;
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
        if (!wb_move_is_awaited(m, expert, node) || wb_move_stays_on_node(m, expert, node, spare[i]))
            return i;
    }
    return n;
}

/* ---- where an expert comes from -------------------------------------------------------------- */

/* Whether rank a is to send rather than rank b: the one that has sent less in the group, then in the layer. */
static bool sends_before(const wb_mover *m, uint32_t a, uint32_t b) {
    const wb_move_rank *x = &m->ranks[a], *y = &m->ranks[b];
    uint32_t x_now = x->sends[0] + x->sends[1], y_now = y->sends[0] + y->sends[1];
    if (x_now != y_now) return x_now < y_now;
    if (x->sent != y->sent) return x->sent < y->sent;
    return a < b;
}

bool wb_move_find_source(const wb_mover *m, uint32_t rank, uint32_t expert, wb_move_source *source_out) {
    const wb_move_expert *e = &m->experts[expert];
    const uint32_t *slots = m->holders + e->begin;
    uint32_t node = m->frame->node_of_rank[rank], best[2] = {WB_NO_SLOT, WB_NO_SLOT};
    bool on_node = false;
    for (uint32_t i = 0; i < e->n_old; i++) {
        uint32_t from = wb_move_rank_of(m, slots[i]);
        if (from == rank) {
            *source_out = (wb_move_source){WB_MOVE_LOCAL, slots[i]};
            return true;
        }
        bool near = m->frame->node_of_rank[from] == node;
        uint32_t *found = &best[near ? 0 : 1];
        on_node |= near;
        if (!wb_move_can_send(m, from, near ? WB_MOVE_NODE : WB_MOVE_NETWORK)) continue;
        if (*found == WB_NO_SLOT || sends_before(m, from, wb_move_rank_of(m, *found))) *found = slots[i];
    }
    if (on_node) {
        *source_out = (wb_move_source){WB_MOVE_NODE, best[0]};
        return best[0] != WB_NO_SLOT;
    }
    /* It enters a node once, and is loaded from the checkpoint once: others wait for what comes now. */
    for (uint32_t i = e->n_old; i < e->n_old + e->n_new; i++)
        if (e->n_old == 0 || wb_move_node_of(m, slots[i]) == node) return false;
    *source_out = (wb_move_source){e->n_old == 0 ? WB_MOVE_RELOAD : WB_MOVE_NETWORK, best[1]};
    return e->n_old == 0 || best[1] != WB_NO_SLOT;
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
    r->staged[r->n_staged++] = (wb_move){
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
        for (uint32_t k = 0; k < r->n_staged; k++) m->moves[m->n_moves++] = r->staged[k];
        r->sends[0] = r->sends[1] = r->receives[0] = r->receives[1] = r->local = r->n_staged = 0;
        r->stuck = false;
    }
    finish_moves(m, m->moves + begin, m->n_moves - begin);
    m->groups[m->n_groups++] = (wb_move_group){.layer = m->layer, .begin = begin, .end = m->n_moves};
    m->seconds += slowest + m->options->cost.seconds_per_group;
    return WB_OK;
}
