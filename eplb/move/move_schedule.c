/* move_schedule.c - puts the moves of one layer into groups and picks their sources. Refuses: reading
 * placements and building the index (move_plan.c).
 *
 * A slot is *blocked* while its old content is the last copy in a place (rank, node or cluster) where
 * another slot waits for it. Never overwriting a blocked slot keeps every expert reachable, and as near as
 * it was: what a rank holds is copied inside the rank, what a node holds never enters it again. Blocked
 * slots wait until the copies they are kept for have been made, or until they were copied into a shadow
 * slot of their rank.
 *
 * Why one shadow slot a rank is enough. Say every slot that waits is blocked. Give each blocked slot, and
 * each shadow that is a last copy, one pair (rank, expert) of those waited for: its own rank's, if that
 * rank waits for the content; else one of its node's, whose ranks do not have it; else one of another
 * node's, which has none. Being last copies, no two get the same pair; and there are no more pairs than
 * slots that wait. So no shadow is a last copy, and none is kept for a slot still to be overwritten, as
 * that slot would not be blocked. All shadows can be had, and one copy into any of them unblocks a slot
 * for the next group. A group thus writes a slot for good, or the next one does, whatever the earlier
 * choices were.
 *
 * In a group an expert leaves a rank at most once for its node and once for others (so the copies double
 * from group to group), and enters a rank at most once. A link carries no more in one direction than takes
 * as long as a group's latency, or one move: the slowest rank of a group holds up all, and few full ranks
 * beside many idle ones cost more than a further group. */
#include "move/move_internal.h"

#include <stdlib.h>
#include <string.h>

static uint32_t present_group(const wb_mover *m) {
    return m->n_groups + 1;
}

static uint32_t rank_of(const wb_mover *m, uint32_t slot) {
    return m->frame->rank_of_slot[slot];
}

static bool is_full(const wb_mover *m, const wb_rank_traffic *t) {
    return t->node_in + t->node_out + t->network_in + t->network_out >= m->options->group_moves;
}

/* Whether a rank may take part in one more move of the present group. A reload is a move over the network
 * here. */
static bool can_receive(const wb_mover *m, uint32_t rank, wb_move_kind kind) {
    const wb_rank_traffic *t = &m->ranks[rank].now;
    if (is_full(m, t)) return false;
    return kind == WB_MOVE_NODE ? t->node_in < m->node_lane : t->network_in < m->network_lane;
}
static bool can_send(const wb_mover *m, uint32_t rank, wb_move_kind kind) {
    const wb_rank_traffic *t = &m->ranks[rank].now;
    if (is_full(m, t)) return false;
    return kind == WB_MOVE_NODE ? t->node_out < m->node_lane : t->network_out < m->network_lane;
}

/* ---- slots that wait ------------------------------------------------------------------------- */

/* Whether a copy at this rank is the last one in a place where the expert is waited for. */
static bool is_last_copy(const wb_mover *m, uint32_t place) {
    for (; place != WB_NO_PLACE; place = m->places[place].parent)
        if (m->places[place].copies == 1 && m->places[place].pending > 0) return true;
    return false;
}

static void queue_for_next_group(wb_mover *m, uint32_t slot) {
    m->slots[slot].state = WB_SLOT_READY;
    m->next[m->n_next++] = (uint64_t)m->wanted[slot] << 32 | slot;
}

static void block(wb_mover *m, uint32_t slot) {
    wb_move_slot *s = &m->slots[slot];
    wb_move_rank *rank = &m->ranks[rank_of(m, slot)];
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
            queue_for_next_group(m, slot);
    }
}

/* Whether the present group may overwrite the slot. If not, the slot waits for another group or to be
 * unblocked. */
static bool may_write(wb_mover *m, uint32_t slot) {
    const wb_move_slot *s = &m->slots[slot];
    if (s->read_in == present_group(m)) {
        queue_for_next_group(m, slot);
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
        m->ranks[place->rank].shadow[i].read_in = present_group(m);
        return place->shadow;
    }
    uint32_t i = place->first_holder;
    while (m->slots[m->holders[i]].state == WB_SLOT_WRITTEN) i++;
    m->slots[m->holders[i]].read_in = present_group(m);
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

static void write_inside_rank(wb_mover *m, uint32_t slot) {
    m->ranks[rank_of(m, slot)].now.local++;
    write_slot(m, slot, WB_MOVE_LOCAL, read_copy(m, &m->places[m->slots[slot].wants]));
}

static void write_from(wb_mover *m, uint32_t slot, wb_move_kind kind, const wb_move_source *source) {
    wb_move_rank *in = &m->ranks[rank_of(m, slot)], *out = &m->ranks[source->rank];
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

static void reload(wb_mover *m, uint32_t slot) {
    wb_move_rank *in = &m->ranks[rank_of(m, slot)];
    in->now.network_in++;
    in->entered++;
    write_slot(m, slot, WB_MOVE_RELOAD, WB_NO_SLOT);
}

/* ---- sources --------------------------------------------------------------------------------- */

static int by_traffic(const void *a, const void *b) {
    const wb_move_source *x = a, *y = b;
    if (x->sent_now != y->sent_now) return x->sent_now < y->sent_now ? -1 : 1;
    if (x->sent != y->sent) return x->sent < y->sent ? -1 : 1;
    return x->rank < y->rank ? -1 : x->rank > y->rank;
}

/* The ranks of a place that have the expert and may still send, those that have sent least first. Each is
 * to be used once, which keeps the order right while they are used. */
static uint32_t list_sources(wb_mover *m, const wb_move_place *place, wb_move_kind kind) {
    uint32_t n = 0;
    for (uint32_t p = place->first_rank; p < place->end_rank; p++) {
        uint32_t rank = m->places[p].rank;
        const wb_move_rank *r = &m->ranks[rank];
        if (m->places[p].copies == 0 || !can_send(m, rank, kind)) continue;
        m->sources[n++] = (wb_move_source){
            .place = p, .sent_now = r->now.node_out + r->now.network_out, .sent = r->sent, .rank = rank};
    }
    qsort(m->sources, n, sizeof *m->sources, by_traffic);
    return n;
}

/* ---- one expert in one group ----------------------------------------------------------------- */

static uint32_t node_of(const wb_mover *m, uint64_t key) {
    return m->places[m->slots[(uint32_t)key].wants].parent;
}

/* The end of the run of keys, all of one expert, whose slots are on the node of the first. */
static uint32_t end_of_node(const wb_mover *m, const uint64_t *keys, uint32_t n, uint32_t begin) {
    uint32_t end = begin + 1;
    while (end < n && node_of(m, keys[end]) == node_of(m, keys[begin])) end++;
    return end;
}

/* Slots of a node that has the expert: from their own rank, else from another one of the node. */
static void serve_node(wb_mover *m, const uint64_t *keys, uint32_t n) {
    uint32_t n_chosen = 0;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t slot = (uint32_t)keys[i];
        if (m->places[m->slots[slot].wants].copies == 0)
            m->chosen[n_chosen++] = slot;
        else if (may_write(m, slot))
            write_inside_rank(m, slot);
    }
    if (n_chosen == 0) return;
    uint32_t n_sources = list_sources(m, &m->places[node_of(m, keys[0])], WB_MOVE_NODE), used = 0;
    uint32_t served = UINT32_MAX; /* the last rank that got the expert: its other slots copy from it later */
    for (uint32_t i = 0; i < n_chosen; i++) {
        uint32_t slot = m->chosen[i], rank = rank_of(m, slot);
        if (rank == served || used == n_sources || !can_receive(m, rank, WB_MOVE_NODE)) {
            queue_for_next_group(m, slot);
        } else if (may_write(m, slot)) {
            write_from(m, slot, WB_MOVE_NODE, &m->sources[used++]);
            served = rank;
        }
    }
}

static bool enters_before(const wb_mover *m, uint32_t slot, uint32_t other) {
    const wb_move_rank *a = &m->ranks[rank_of(m, slot)], *b = &m->ranks[rank_of(m, other)];
    if (a->now.network_in != b->now.network_in) return a->now.network_in < b->now.network_in;
    return a->entered < b->entered;
}

/* Of slots that an expert may enter by, that of the rank with the fewest such receives, or WB_NO_SLOT. The
 * others wait. */
static uint32_t choose_entry(wb_mover *m, const uint64_t *keys, uint32_t n) {
    uint32_t entry = WB_NO_SLOT;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t slot = (uint32_t)keys[i], waits = slot;
        if (!can_receive(m, rank_of(m, slot), WB_MOVE_NETWORK)) {
            queue_for_next_group(m, slot);
            continue;
        }
        if (!may_write(m, slot)) continue;
        if (entry == WB_NO_SLOT || enters_before(m, slot, entry)) {
            waits = entry;
            entry = slot;
        }
        if (waits != WB_NO_SLOT) queue_for_next_group(m, waits);
    }
    return entry;
}

/* Nodes without the expert: one slot of each gets it over the network. */
static void enter_nodes(wb_mover *m, const wb_move_place *cluster, const uint64_t *keys, uint32_t n) {
    uint32_t n_sources = list_sources(m, cluster, WB_MOVE_NETWORK), used = 0;
    for (uint32_t i = 0, end; i < n; i = end) {
        end = end_of_node(m, keys, n, i);
        if (m->places[node_of(m, keys[i])].copies > 0) continue;
        uint32_t slot = choose_entry(m, keys + i, end - i);
        if (slot == WB_NO_SLOT) continue;
        if (used == n_sources)
            queue_for_next_group(m, slot);
        else
            write_from(m, slot, WB_MOVE_NETWORK, &m->sources[used++]);
    }
}

/* The slots of `keys` wait for one expert and were not known to be blocked. */
static void serve_expert(wb_mover *m, const uint64_t *keys, uint32_t n) {
    const wb_move_place *cluster = &m->places[keys[0] >> 32];
    if (cluster->copies == 0) {
        uint32_t slot = choose_entry(m, keys, n);
        if (slot != WB_NO_SLOT) reload(m, slot);
        return;
    }
    bool enters = false;
    for (uint32_t i = 0, end; i < n; i = end) {
        end = end_of_node(m, keys, n, i);
        if (m->places[node_of(m, keys[i])].copies > 0)
            serve_node(m, keys + i, end - i);
        else
            enters = true;
    }
    if (enters) enter_nodes(m, cluster, keys, n);
}

/* ---- the end of a group ---------------------------------------------------------------------- */

/* What the group has written counts as copies from now on. */
static void add_copies(wb_mover *m) {
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
    if (shadow->read_in == present_group(m) || m->slots[shadow->owner].state != WB_SLOT_WRITTEN ||
        is_last_copy(m, shadow->place))
        return false;
    m->places[shadow->place].shadow = WB_NO_SLOT;
    for (uint32_t p = shadow->place; p != WB_NO_PLACE; p = m->places[p].parent) m->places[p].copies--;
    shadow->place = WB_NO_PLACE;
    return true;
}

/* Slots that are still blocked go into free shadow slots, in this group: the next one can overwrite them. */
static void fill_shadows(wb_mover *m, uint32_t rank) {
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
        queue_for_next_group(m, slot);
    }
}

/* Seconds that the moves of one rank take: the kinds run beside each other, in and out too. */
static double seconds_of(const wb_rank_traffic *t, const wb_cost_model *cost) {
    uint32_t node = t->node_in > t->node_out ? t->node_in : t->node_out;
    uint32_t network = t->network_in > t->network_out ? t->network_in : t->network_out;
    double seconds = t->local * cost->expert_bytes / cost->local_bytes_per_second;
    double node_seconds = node * cost->expert_bytes / cost->node_bytes_per_second;
    double network_seconds = network * cost->expert_bytes / cost->network_bytes_per_second;
    if (node_seconds > seconds) seconds = node_seconds;
    return network_seconds > seconds ? network_seconds : seconds;
}

static void finish_group(wb_mover *m) {
    double slowest = 0;
    add_copies(m);
    for (uint32_t r = 0; r < m->frame->topology.n_ranks; r++) {
        fill_shadows(m, r);
        double seconds = seconds_of(&m->ranks[r].now, &m->options->cost);
        if (seconds > slowest) slowest = seconds;
        m->ranks[r].now = (wb_rank_traffic){0};
    }
    m->seconds += slowest + m->options->cost.seconds_per_group;
    m->n_groups++;
}

static int by_expert_and_slot(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

/* What was queued for the next group is what the present one tries. */
static void begin_group(wb_mover *m) {
    uint64_t *tried = m->ready;
    m->ready = m->next;
    m->n_ready = m->n_next;
    m->next = tried;
    m->n_next = 0;
    m->group_begin = m->n_moves;
    qsort(m->ready, m->n_ready, sizeof *m->ready, by_expert_and_slot);
}

void wb_move_schedule_layer(wb_mover *m) {
    m->n_next = 0;
    for (uint32_t s = 0; s < m->frame->topology.n_slots; s++)
        if (m->slots[s].state == WB_SLOT_READY) queue_for_next_group(m, s);
    while (m->n_pending > 0) {
        begin_group(m);
        for (uint32_t i = 0, end; i < m->n_ready; i = end) {
            for (end = i + 1; end < m->n_ready && m->ready[end] >> 32 == m->ready[i] >> 32;) end++;
            serve_expert(m, m->ready + i, end - i);
        }
        finish_group(m);
    }
}
