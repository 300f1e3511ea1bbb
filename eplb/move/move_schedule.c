/* move_schedule.c - puts the moves of one layer into groups and picks their sources. Refuses: reading
 * placements and building the index (move_plan.c), which slots may be overwritten (move_slots.c).
 *
 * In a group an expert leaves a rank at most once for its node and once for others (so the copies double
 * from group to group), and enters a rank at most once. Transfers per link and direction are capped at
 * what fits in the latency of a group (at least one), so that groups finish together: the slowest rank
 * of a group holds up all, and few full ranks beside many idle ones cost more than a further group. */
#include "move/move_internal.h"

#include <stdlib.h>

/* ---- the limits of a group ------------------------------------------------------------------- */

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
        else if (wb_move_may_write(m, slot))
            wb_move_write_inside_rank(m, slot);
    }
    if (n_chosen == 0) return;
    uint32_t n_sources = list_sources(m, &m->places[node_of(m, keys[0])], WB_MOVE_NODE), used = 0;
    uint32_t served = UINT32_MAX; /* the last rank that got the expert: its other slots copy from it later */
    for (uint32_t i = 0; i < n_chosen; i++) {
        uint32_t slot = m->chosen[i], rank = wb_move_rank_of(m, slot);
        if (rank == served || used == n_sources || !can_receive(m, rank, WB_MOVE_NODE)) {
            wb_move_queue(m, slot);
        } else if (wb_move_may_write(m, slot)) {
            wb_move_write_from(m, slot, WB_MOVE_NODE, &m->sources[used++]);
            served = rank;
        }
    }
}

static bool enters_before(const wb_mover *m, uint32_t slot, uint32_t other) {
    const wb_move_rank *a = &m->ranks[wb_move_rank_of(m, slot)], *b = &m->ranks[wb_move_rank_of(m, other)];
    if (a->now.network_in != b->now.network_in) return a->now.network_in < b->now.network_in;
    return a->entered < b->entered;
}

/* Of slots that an expert may enter by, that of the rank with the fewest such receives, or WB_NO_SLOT. The
 * others wait. */
static uint32_t choose_entry(wb_mover *m, const uint64_t *keys, uint32_t n) {
    uint32_t entry = WB_NO_SLOT;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t slot = (uint32_t)keys[i], waits = slot;
        if (!can_receive(m, wb_move_rank_of(m, slot), WB_MOVE_NETWORK)) {
            wb_move_queue(m, slot);
            continue;
        }
        if (!wb_move_may_write(m, slot)) continue;
        if (entry == WB_NO_SLOT || enters_before(m, slot, entry)) {
            waits = entry;
            entry = slot;
        }
        if (waits != WB_NO_SLOT) wb_move_queue(m, waits);
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
            wb_move_queue(m, slot);
        else
            wb_move_write_from(m, slot, WB_MOVE_NETWORK, &m->sources[used++]);
    }
}

/* The slots of `keys` wait for one expert and were not known to be blocked. */
static void serve_expert(wb_mover *m, const uint64_t *keys, uint32_t n) {
    const wb_move_place *cluster = &m->places[keys[0] >> 32];
    if (cluster->copies == 0) {
        uint32_t slot = choose_entry(m, keys, n);
        if (slot != WB_NO_SLOT) wb_move_reload(m, slot);
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

/* ---- groups ---------------------------------------------------------------------------------- */

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
    wb_move_add_copies(m);
    for (uint32_t r = 0; r < m->frame->topology.n_ranks; r++) {
        wb_move_fill_shadows(m, r);
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
        if (m->slots[s].state == WB_SLOT_READY) wb_move_queue(m, s);
    while (m->n_pending > 0) {
        begin_group(m);
        for (uint32_t i = 0, end; i < m->n_ready; i = end) {
            for (end = i + 1; end < m->n_ready && m->ready[end] >> 32 == m->ready[i] >> 32;) end++;
            serve_expert(m, m->ready + i, end - i);
        }
        finish_group(m);
    }
}
