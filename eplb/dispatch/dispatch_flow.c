/* dispatch_flow.c - integer min-cost flow by primal and dual steps: Dijkstra prices the nodes, blocking
 * flows (Dinic) send along the ways that the prices make cheapest. Few ways differ in cost, so there are
 * few rounds. Refuses: anything else. */
#include "dispatch/dispatch_flow.h"

wb_status wb_flow_open(wb_owner *memory, uint32_t n_nodes, uint32_t n_sources, uint32_t n_sinks,
                       uint32_t n_arcs, wb_flow *flow_out) {
    wb_flow f = {.n_nodes = n_nodes, .n_sources = n_sources, .n_sinks = n_sinks, .n_arcs = n_arcs};
    size_t n = n_nodes, links = 2 * (size_t)n_arcs;
    const char *what = "flow of quotas";
    WB_TRY(WB_OWN(memory, f.arcs, n_arcs, what));
    WB_TRY(WB_OWN(memory, f.supply, n_sources, what));
    WB_TRY(WB_OWN(memory, f.room, n_sinks, what));
    WB_TRY(WB_OWN(memory, f.links_begin, n + 2, what));
    WB_TRY(WB_OWN(memory, f.links, links, what));
    WB_TRY(WB_OWN(memory, f.price, n, what));
    WB_TRY(WB_OWN(memory, f.level, n, what));
    WB_TRY(WB_OWN(memory, f.cursor, n, what));
    WB_TRY(WB_OWN(memory, f.queue, n, what));
    WB_TRY(WB_OWN(memory, f.path, n, what));
    WB_TRY(WB_OWN(memory, f.distance, n, what));
    WB_TRY(WB_OWN(memory, f.heap, links, what));
    *flow_out = f;
    return WB_OK;
}

void wb_flow_link(wb_flow *f) {
    uint32_t *end = f->links_begin + 1; /* counts, then where each node's links end so far */
    for (uint32_t a = 0; a < f->n_arcs; a++) {
        end[f->arcs[a].tail + 1]++;
        end[f->arcs[a].head + 1]++;
    }
    for (uint32_t v = 0; v < f->n_nodes; v++) end[v + 1] += end[v];
    for (uint32_t a = 0; a < f->n_arcs; a++) {
        f->links[end[f->arcs[a].tail]++] = a << 1;
        f->links[end[f->arcs[a].head]++] = a << 1 | 1;
    }
}

/* ---- residual arcs --------------------------------------------------------------------------- */

typedef struct residual {
    uint32_t to;
    int64_t cost, room; /* room 0: not there */
} residual;

/* Of the two pieces of an arc only the one that comes next is there: the cheaper is filled first and emptied
 * last. */
static residual follow(const wb_flow *f, uint32_t link) {
    const wb_flow_arc *a = &f->arcs[link >> 1];
    if (!(link & 1))
        return a->flow < a->near ? (residual){a->head, 0, (int64_t)a->near - a->flow}
                                 : (residual){a->head, a->cost, INT64_MAX};
    return a->flow > a->near ? (residual){a->tail, -a->cost, (int64_t)a->flow - a->near}
                             : (residual){a->tail, 0, a->flow};
}

/* What `link` out of `from` can take on a cheapest way. */
static int64_t cheapest_room(const wb_flow *f, uint32_t from, residual r) {
    return r.cost + f->price[from] == f->price[r.to] ? r.room : 0;
}

/* A sink with room. Its price is that of the cheapest way to any of them: none is below it, no node above. */
static bool ends_here(const wb_flow *f, uint32_t node) {
    uint32_t first_sink = f->n_nodes - f->n_sinks;
    return node >= first_sink && f->room[node - first_sink] > 0;
}

/* ---- sending --------------------------------------------------------------------------------- */

/* Levels by breadth first search, up to the first level that has an end; false: there is none. */
static bool find_levels(wb_flow *f) {
    uint32_t head = 0, tail = 0;
    f->sink_level = WB_FLOW_FAR;
    for (uint32_t v = 0; v < f->n_nodes; v++) f->level[v] = WB_FLOW_FAR;
    for (uint32_t v = 0; v < f->n_sources; v++) {
        if (f->supply[v] == 0) continue;
        f->level[v] = 0;
        f->queue[tail++] = v;
    }
    while (head < tail) {
        uint32_t v = f->queue[head++];
        if (f->level[v] >= f->sink_level) break;
        f->cursor[v] = f->links_begin[v];
        for (uint32_t k = f->links_begin[v]; k < f->links_begin[v + 1]; k++) {
            residual r = follow(f, f->links[k]);
            if (f->level[r.to] != WB_FLOW_FAR || cheapest_room(f, v, r) == 0) continue;
            f->level[r.to] = f->level[v] + 1;
            f->queue[tail++] = r.to;
            if (f->sink_level == WB_FLOW_FAR && ends_here(f, r.to)) f->sink_level = f->level[r.to];
        }
    }
    return f->sink_level != WB_FLOW_FAR;
}

static uint32_t link_start(const wb_flow *f, uint32_t link) {
    return link & 1 ? f->arcs[link >> 1].head : f->arcs[link >> 1].tail;
}

/* Sends as much as fits from `source` along path[0 .. length - 1] to sink `end`. Returns the length of the
 * path up to the first link that is full now. */
static uint32_t send_along(wb_flow *f, uint32_t source, uint32_t length, uint32_t end, int64_t limit) {
    int64_t *room = &f->room[end - (f->n_nodes - f->n_sinks)];
    int64_t units = f->supply[source] < *room ? f->supply[source] : *room;
    if (units > limit) units = limit;
    for (uint32_t i = 0; i < length; i++) {
        residual r = follow(f, f->path[i]);
        if (r.room < units) units = r.room;
    }
    uint32_t kept = length;
    for (uint32_t i = length; i-- > 0;) {
        if (follow(f, f->path[i]).room == units) kept = i;
        wb_flow_arc *a = &f->arcs[f->path[i] >> 1];
        a->flow = f->path[i] & 1 ? a->flow - (uint32_t)units : a->flow + (uint32_t)units;
    }
    f->supply[source] -= units;
    f->supply_left -= units;
    *room -= units;
    return kept;
}

/* All that goes from `source` by ascending levels. */
static void send_from(wb_flow *f, uint32_t source) {
    uint32_t v = source, length = 0;
    while (f->supply[source] > 0) {
        if (f->level[v] == f->sink_level && ends_here(f, v)) {
            uint32_t kept = send_along(f, source, length, v, INT64_MAX);
            if (kept < length) v = link_start(f, f->path[kept]);
            length = kept;
            continue;
        }
        bool ahead = false;
        for (; f->level[v] < f->sink_level && f->cursor[v] < f->links_begin[v + 1]; f->cursor[v]++) {
            uint32_t link = f->links[f->cursor[v]];
            residual r = follow(f, link);
            if (f->level[r.to] != f->level[v] + 1 || cheapest_room(f, v, r) == 0) continue;
            f->path[length++] = link;
            v = r.to;
            ahead = true;
            break;
        }
        if (ahead) continue;
        if (length == 0) return;
        v = link_start(f, f->path[--length]);
        f->cursor[v]++;
    }
}

/* The ends that are two links from `source` take of `supply` in proportion to their room, of which there is
 * `rooms` in all; returns the sum of their room before. With `supply` 0 it only adds up. */
static int64_t spread_from(wb_flow *f, uint32_t source, int64_t supply, int64_t rooms) {
    int64_t sum = 0;
    for (uint32_t k = f->links_begin[source]; k < f->links_begin[source + 1]; k++) {
        uint32_t hub = follow(f, f->links[k]).to;
        f->path[0] = f->links[k];
        for (uint32_t m = f->links_begin[hub]; m < f->links_begin[hub + 1]; m++) {
            residual r = follow(f, f->links[m]);
            if (cheapest_room(f, source, follow(f, f->links[k])) == 0) break;
            if (cheapest_room(f, hub, r) == 0 || !ends_here(f, r.to)) continue;
            int64_t room = f->room[r.to - (f->n_nodes - f->n_sinks)];
            int64_t part = (int64_t)((double)supply * (double)room / (double)rooms);
            sum += room;
            f->path[1] = f->links[m];
            if (part > 0) (void)send_along(f, source, 2, r.to, part);
        }
    }
    return sum;
}

/* Sources in turn would each fill the first ends they find and leave the last ones long ways round: first
 * all of them spread evenly what they can. */
static void spread(wb_flow *f) {
    for (uint32_t v = 0; v < f->n_sources; v++) {
        int64_t rooms = f->supply[v] > 0 ? spread_from(f, v, 0, 1) : 0;
        if (rooms > 0) (void)spread_from(f, v, f->supply[v], rooms);
    }
}

void wb_flow_send(wb_flow *f) {
    spread(f);
    while (find_levels(f))
        for (uint32_t v = 0; v < f->n_sources; v++)
            if (f->level[v] == 0) send_from(f, v);
}

/* ---- prices ---------------------------------------------------------------------------------- */

static void heap_push(wb_flow *f, int64_t distance, uint32_t node) {
    uint32_t i = f->heap_size++;
    for (; i > 0 && f->heap[(i - 1) / 2].distance > distance; i = (i - 1) / 2)
        f->heap[i] = f->heap[(i - 1) / 2];
    f->heap[i] = (wb_flow_entry){distance, node};
}

static wb_flow_entry heap_pop(wb_flow *f) {
    wb_flow_entry nearest = f->heap[0], last = f->heap[--f->heap_size];
    uint32_t i = 0;
    for (uint32_t child; (child = 2 * i + 1) < f->heap_size; i = child) {
        if (child + 1 < f->heap_size && f->heap[child + 1].distance < f->heap[child].distance) child++;
        if (f->heap[child].distance >= last.distance) break;
        f->heap[i] = f->heap[child];
    }
    f->heap[i] = last;
    return nearest;
}

/* The next node in order of distance: those at the present distance wait in the queue, the farther ones in
 * the heap. */
static bool next_node(wb_flow *f, uint32_t *n_queued, wb_flow_entry *entry) {
    if (*n_queued > 0) {
        entry->node = f->queue[--*n_queued];
        return true;
    }
    while (f->heap_size > 0) {
        *entry = heap_pop(f);
        if (entry->distance == f->distance[entry->node]) return true;
    }
    return false;
}

bool wb_flow_raise(wb_flow *f) {
    uint32_t n_queued = 0;
    int64_t best = INT64_MAX;
    wb_flow_entry at = {0, 0};
    f->heap_size = 0;
    for (uint32_t v = 0; v < f->n_nodes; v++) f->distance[v] = INT64_MAX;
    for (uint32_t v = 0; v < f->n_sources; v++) {
        if (f->supply[v] == 0) continue;
        f->distance[v] = 0;
        f->queue[n_queued++] = v;
    }
    while (next_node(f, &n_queued, &at)) {
        uint32_t v = at.node;
        if (ends_here(f, v)) {
            best = at.distance;
            break;
        }
        for (uint32_t k = f->links_begin[v]; k < f->links_begin[v + 1]; k++) {
            residual r = follow(f, f->links[k]);
            int64_t distance = at.distance + r.cost + f->price[v] - f->price[r.to];
            if (r.room == 0 || distance >= f->distance[r.to]) continue;
            f->distance[r.to] = distance;
            if (distance == at.distance)
                f->queue[n_queued++] = r.to;
            else
                heap_push(f, distance, r.to);
        }
    }
    if (best == INT64_MAX) return false;
    for (uint32_t v = 0; v < f->n_nodes; v++) f->price[v] += f->distance[v] < best ? f->distance[v] : best;
    return true;
}
