/* dispatch_flow.h - integer flow from sources to sinks, exact: the largest, and the cheapest of the largest.
 *
 * Nodes are numbered: sources first, sinks last. An arc has no upper bound; its first `near` units are free,
 * each unit beyond costs `cost`. Costs are sums of two ranks, WB_FLOW_MAJOR and 1: no path is long enough for
 * the lower to reach the higher, so that the cheapest flow is the lexicographically cheapest one. Refuses:
 * experts and ranks. */
#ifndef WB_DISPATCH_FLOW_H
#define WB_DISPATCH_FLOW_H

#include "wb_check.h"
#include "wb_memory.h"

#define WB_FLOW_MAJOR ((int64_t)1 << 32)

typedef struct wb_flow_arc {
    uint32_t tail, head;
    uint32_t flow, near; /* at most 2^31 */
    int64_t cost;
} wb_flow_arc;

typedef struct wb_flow_entry {
    int64_t distance;
    uint32_t node;
} wb_flow_entry;

typedef struct wb_flow {
    uint32_t n_nodes, n_sources, n_sinks, n_arcs;
    wb_flow_arc *arcs; /* [n_arcs] the caller's to fill */
    int64_t *supply;   /* [n_sources] units not yet sent */
    int64_t *room;     /* [n_sinks] units that still fit */
    int64_t supply_left;

    uint32_t *links_begin; /* [n_nodes + 1] */
    uint32_t *links;       /* [2 n_arcs] arc << 1 | (1: backwards) */
    /* [n_nodes] cost of the cheapest way there, at most that of the cheapest to a sink with room */
    int64_t *price;
    /* [n_nodes] steps from a source with supply by cheapest ways; WB_FLOW_FAR: not reached */
    uint32_t *level;
    uint32_t *cursor;    /* [n_nodes] next link to try */
    uint32_t *queue;     /* [n_nodes] */
    uint32_t *path;      /* [n_nodes] links */
    int64_t *distance;   /* [n_nodes] */
    wb_flow_entry *heap; /* [2 n_arcs] */
    uint32_t heap_size, sink_level;
} wb_flow;

#define WB_FLOW_FAR UINT32_MAX

/* All zero; arcs, then wb_flow_link, then supply, supply_left and room are the caller's to fill. n_arcs below
 * 2^30. The arrays belong to `memory`. */
wb_status wb_flow_open(wb_owner *memory, uint32_t n_nodes, uint32_t n_sources, uint32_t n_sinks,
                       uint32_t n_arcs, wb_flow *flow_out);
void wb_flow_link(wb_flow *flow); /* after tails and heads are set */

/* Sends all that goes by the cheapest ways at the present prices. Afterwards the nodes whose level is not
 * WB_FLOW_FAR are those that supply left over can still reach at these prices; no sink with room is among
 * them. */
void wb_flow_send(wb_flow *flow);

/* Raises prices to the next cheapest way; false: there is none. */
bool wb_flow_raise(wb_flow *flow);

#endif
