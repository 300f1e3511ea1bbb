/* move_slots.c - which slots may be overwritten, and what a move does to the copies of an expert.
 * Refuses: which slot is served from where (move_schedule.c).
 *
 * A slot is *blocked* while its old content is the last copy in a place (rank, node or cluster) where
 * another slot waits for it. Never overwriting a blocked slot keeps every expert reachable, and as near
 * as it was: what a rank holds is copied inside the rank, what a node holds never enters it again.
 * Blocked slots wait until the copies they are kept for have been made, or until they were copied into a
 * shadow slot of their rank.
 *
 * Why one shadow slot a rank is enough, so that every plan ends. Suppose that all slots that still wait are
 * blocked. Whatever is kept, be it a blocked slot or a shadow slot with a last copy, is kept for somebody:
 * charge it to a pair (rank, expert) that is waited for. That is the pair of its own rank if this rank waits
 * for the content; else one of its node, whose waiting ranks have no copy; else one of another node, which
 * has no copy at all. As each is the last copy in its place, no two are charged to the same pair. There are
 * at most as many pairs as slots that wait, and the blocked slots are all the slots that wait: they use up
 * the pairs, so that no shadow slot has a last copy. Nor is one kept for a slot still to be overwritten,
 * since with its content in the shadow that slot would not be blocked. So all shadow slots are free, and one
 * copy into any of them unblocks a slot for the next group. A group writes a slot for good, or the next one
 * does, whatever the choices were before. */
#include "move/move_internal.h"

/* ---- slots that wait ------------------------------------------------------------------------- */

/* Whether a copy at this rank is the last one in a place where the expert is waited for. */
static bool is_last_copy(const wb_mover *m, uint32_t place) {
    for (; place != WB_NO_PLACE; place = m->places[place].parent)
        if (m->places[place].copies == 1 && m->places[place].pending > 0) return true;
    return false;
}

void wb_move_queue(wb_mover *m, uint32_t slot) {
    m->slots[slot].state = WB_SLOT_READY;
    m->next[m->n_next++] = (uint64_t)m->wanted[slot] << 32 | slot;
}

static void block(wb_mover *m, uint32_t slot) {
    wb_move_slot *s = &m->slots[slot];
    wb_move_rank *rank = &m->ranks[wb_move_rank_of(m, slot)];
    s->state = WB_SLOT_BLOCKED;
    if (s->queued) return;
    s->queued = true;
    s->next_in_queue = WB_NO_SLOT;
    if (rank->first_queued == WB_NO_SLOT)
        rank->first_queued = slot;
    else
        m->slots[rank->last_queued].next_in_queue = slot;
    rank->last_queued = slot;
}

/* The rank's slot that has been blocked for longest, or WB_NO_SLOT. Slots that are blocked no more leave
 * the queue. */
static uint32_t first_blocked(wb_mover *m, wb_move_rank *rank) {
    while (rank->first_queued != WB_NO_SLOT) {
        wb_move_slot *s = &m->slots[rank->first_queued];
        if (s->state == WB_SLOT_BLOCKED) break;
        s->queued = false;
        rank->first_queued = s->next_in_queue;
    }
    return rank->first_queued;
}

/* A place does not block any more: nothing waits there, or a copy will last. Each happens once, so that
 * all calls together look at each slot a few times. */
static void wake(wb_mover *m, const wb_move_place *place) {
    for (uint32_t i = place->first_holder; i < place->end_holder; i++) {
        uint32_t slot = m->holders[i];
        if (m->slots[slot].state == WB_SLOT_BLOCKED && !is_last_copy(m, m->slots[slot].holds))
            wb_move_queue(m, slot);
    }
}

/* Whether the present group may overwrite the slot. If not, the slot waits for another group or to be
 * unblocked. */
bool wb_move_may_write(wb_mover *m, uint32_t slot) {
    const wb_move_slot *s = &m->slots[slot];
    if (s->read_in == wb_move_present_group(m)) {
        wb_move_queue(m, slot);
        return false;
    }
    if (is_last_copy(m, s->holds)) {
        block(m, slot);
        return false;
    }
    return true;
}

/* ---- moves ----------------------------------------------------------------------------------- */

static void append(wb_mover *m, wb_move_kind kind, uint32_t expert, uint32_t from, uint32_t to) {
    m->moves[m->n_moves++] = (wb_move){
        .group = m->n_groups, .layer = m->layer, .expert = expert, .kind = kind, .from = {from}, .to = {to}};
}

/* The slot that is read when a rank gives its copy away: if possible one that nobody waits to overwrite. */
static uint32_t read_copy(wb_mover *m, const wb_move_place *place) {
    if (place->slot != WB_NO_SLOT) return place->slot;
    if (place->shadow != WB_NO_SLOT) {
        uint32_t n_shadow = m->options->n_shadow;
        uint32_t i = (place->shadow - m->frame->topology.n_slots) % n_shadow;
        m->ranks[place->rank].shadow[i].read_in = wb_move_present_group(m);
        return place->shadow;
    }
    uint32_t i = place->first_holder;
    while (m->slots[m->holders[i]].state == WB_SLOT_WRITTEN) i++;
    m->slots[m->holders[i]].read_in = wb_move_present_group(m);
    return m->holders[i];
}

/* Writes a slot for good. Its new copy counts from the next group on, its old one no more. */
static void write_slot(wb_mover *m, uint32_t slot, wb_move_kind kind, uint32_t from) {
    wb_move_slot *s = &m->slots[slot];
    append(m, kind, (uint32_t)m->wanted[slot], from, slot);
    s->state = WB_SLOT_WRITTEN;
    m->n_pending--;
    for (uint32_t p = s->holds; p != WB_NO_PLACE; p = m->places[p].parent) m->places[p].copies--;
    for (uint32_t p = s->wants; p != WB_NO_PLACE; p = m->places[p].parent)
        if (--m->places[p].pending == 0) wake(m, &m->places[p]);
}

void wb_move_write_inside_rank(wb_mover *m, uint32_t slot) {
    m->ranks[wb_move_rank_of(m, slot)].now.local++;
    write_slot(m, slot, WB_MOVE_LOCAL, read_copy(m, &m->places[m->slots[slot].wants]));
}

void wb_move_write_from(wb_mover *m, uint32_t slot, wb_move_kind kind, const wb_move_source *source) {
    wb_move_rank *in = &m->ranks[wb_move_rank_of(m, slot)], *out = &m->ranks[source->rank];
    out->sent++;
    if (kind == WB_MOVE_NODE) {
        in->now.node_in++;
        out->now.node_out++;
    } else {
        in->now.network_in++;
        in->entered++;
        out->now.network_out++;
    }
    write_slot(m, slot, kind, read_copy(m, &m->places[source->place]));
}

void wb_move_reload(wb_mover *m, uint32_t slot) {
    wb_move_rank *in = &m->ranks[wb_move_rank_of(m, slot)];
    in->now.network_in++;
    in->entered++;
    write_slot(m, slot, WB_MOVE_RELOAD, WB_NO_SLOT);
}

/* ---- the end of a group ---------------------------------------------------------------------- */

/* What the group has written counts as copies from now on. */
void wb_move_add_copies(wb_mover *m) {
    for (uint64_t i = m->group_begin; i < m->n_moves; i++) {
        uint32_t slot = m->moves[i].to.slot, at = m->slots[slot].wants;
        if (m->places[at].slot == WB_NO_SLOT) m->places[at].slot = slot;
        for (uint32_t p = at; p != WB_NO_PLACE; p = m->places[p].parent) {
            m->places[p].copies++;
            if (m->places[p].lasting) continue;
            m->places[p].lasting = true;
            wake(m, &m->places[p]);
        }
    }
}

/* Whether the present group may write the shadow slot; it then holds nothing any more. */
static bool free_shadow(wb_mover *m, wb_move_shadow *shadow) {
    if (shadow->place == WB_NO_PLACE) return true;
    if (shadow->read_in == wb_move_present_group(m) || m->slots[shadow->owner].state != WB_SLOT_WRITTEN ||
        is_last_copy(m, shadow->place))
        return false;
    m->places[shadow->place].shadow = WB_NO_SLOT;
    for (uint32_t p = shadow->place; p != WB_NO_PLACE; p = m->places[p].parent) m->places[p].copies--;
    shadow->place = WB_NO_PLACE;
    return true;
}

/* Slots that are still blocked go into free shadow slots, in this group: the next one can overwrite them. */
void wb_move_fill_shadows(wb_mover *m, uint32_t rank) {
    wb_move_rank *r = &m->ranks[rank];
    uint32_t n_shadow = m->options->n_shadow;
    for (uint32_t i = 0; i < n_shadow; i++) {
        uint32_t slot = first_blocked(m, r);
        if (slot == WB_NO_SLOT) return;
        wb_move_shadow *shadow = &r->shadow[i];
        if (!free_shadow(m, shadow)) continue;
        uint32_t at = m->slots[slot].holds, id = m->frame->topology.n_slots + rank * n_shadow + i;
        append(m, WB_MOVE_LOCAL, (uint32_t)m->held[slot], slot, id);
        r->now.local++;
        *shadow = (wb_move_shadow){.place = at, .owner = slot};
        m->places[at].shadow = id;
        for (uint32_t p = at; p != WB_NO_PLACE; p = m->places[p].parent) m->places[p].copies++;
        wb_move_queue(m, slot);
    }
}
