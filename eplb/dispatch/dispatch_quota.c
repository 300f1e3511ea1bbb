/* dispatch_quota.c - exact integer shares of replicas for one micro-batch, and whose tokens make them
 * up. Refuses: the handle, expectations.
 *
 *     expert --hub: first C free, then 1--> (expert, node) --spoke: first c free, then MAJOR--> rank, room
 *
 * Tokens flow from experts over hubs (an expert on a node) and spokes (an expert on a rank) to ranks.
 * Let c be the expert's tokens that come from that rank, and C those that come from that node. A
 * replica's share up to c can be tokens of its own rank, and a node's shares up to C tokens of the node,
 * both at the same time. So these units are free, every further unit over a spoke is a token that leaves
 * its rank (MAJOR), and over a hub one that leaves its node (1): the cheapest flow has as few as
 * possible of the first, then of the second. Experts that are on one rank only have no choice: their
 * tokens are `fixed` and not part of the flow.
 *
 * The room of a rank is T less its fixed tokens, where T is the maximum rank load. First, with free
 * arcs, the smallest T that lets all tokens through: it starts from a lower bound, and while a largest
 * flow leaves tokens over, the minimum cut says by how much T must grow at least (Newton's method), so
 * that T is never too large and the last cut proves it. Then the cheapest flow at that T. */
#include "dispatch/dispatch_flow.h"
#include "dispatch/dispatch_internal.h"

#include <inttypes.h>

#define MAX_TOKENS ((uint64_t)1 << 31)

/* The network of one layer. Node numbers: split experts, hubs, ranks. Arcs: hub arcs (of hub h: arc h),
 * spokes. */
typedef struct network {
    wb_owner memory;
    const wb_dispatch_frame *frame;
    uint32_t n_split, n_hubs, n_spokes;
    uint32_t *expert;     /* [n_split] */
    uint32_t *first_slot; /* [n_spokes]: frame->slots[first_slot[a]] is the first slot of spoke a */
    int64_t *fixed;       /* [R] tokens of experts that are on one rank only */
    wb_flow flow;
} network;

static uint32_t rank_at(const wb_dispatch_frame *frame, uint32_t j) {
    return frame->placement->rank_of_slot[frame->slots[j]];
}
static uint32_t node_at(const wb_dispatch_frame *frame, uint32_t j) {
    return frame->placement->topology.node_of_rank[rank_at(frame, j)];
}

/* Tokens of one rank's slots [first, end) of an expert, evenly. */
static void share_evenly(uint64_t tokens, uint32_t first, uint32_t end, uint32_t *shares_out) {
    uint32_t n = end - first;
    for (uint32_t i = 0; i < n; i++)
        shares_out[first + i] = (uint32_t)(tokens / n + (i < tokens % n ? 1 : 0));
}

static bool is_split(const wb_dispatch_frame *frame, uint32_t expert, uint64_t tokens) {
    uint32_t first = frame->begin[expert], last = frame->begin[expert + 1] - 1;
    return tokens > 0 && rank_at(frame, first) != rank_at(frame, last);
}

/* Sizes, fixed loads, and the shares of experts that are not split. */
static wb_status count_network(network *net, const uint64_t *tokens, uint32_t *shares_out) {
    const wb_dispatch_frame *frame = net->frame;
    for (uint32_t e = 0; e < frame->placement->n_experts; e++) {
        uint32_t first = frame->begin[e], end = frame->begin[e + 1];
        if (tokens[e] > MAX_TOKENS)
            return wb_fail(WB_CAPACITY,
                           "quota: layer %" PRIu32 ", expert %" PRIu32 ": expected at most %" PRIu64
                           " tokens, found %" PRIu64,
                           frame->layer, e, MAX_TOKENS, tokens[e]);
        if (!is_split(frame, e, tokens[e])) {
            net->fixed[rank_at(frame, first)] += (int64_t)tokens[e];
            share_evenly(tokens[e], first, end, shares_out);
            continue;
        }
        net->expert[net->n_split++] = e;
        for (uint32_t j = first; j < end; j++) {
            net->n_hubs += j == first || node_at(frame, j) != node_at(frame, j - 1);
            net->n_spokes += j == first || rank_at(frame, j) != rank_at(frame, j - 1);
        }
    }
    return WB_OK;
}

/* Tails and heads; costs and free units come with set_nearness. */
static void build_network(network *net) {
    const wb_dispatch_frame *frame = net->frame;
    uint32_t hub = 0, spoke = 0, first_rank = net->n_split + net->n_hubs;
    for (uint32_t i = 0; i < net->n_split; i++) {
        uint32_t first = frame->begin[net->expert[i]], end = frame->begin[net->expert[i] + 1];
        for (uint32_t j = first; j < end; j++) {
            if (j == first || node_at(frame, j) != node_at(frame, j - 1)) {
                net->flow.arcs[hub] = (wb_flow_arc){.tail = i, .head = net->n_split + hub};
                hub++;
            }
            if (j == first || rank_at(frame, j) != rank_at(frame, j - 1)) {
                net->flow.arcs[net->n_hubs + spoke] =
                    (wb_flow_arc){.tail = net->n_split + hub - 1, .head = first_rank + rank_at(frame, j)};
                net->first_slot[spoke++] = j;
            }
        }
    }
    wb_flow_link(&net->flow);
}

static void set_supply(network *net, const uint64_t *tokens) {
    net->flow.supply_left = 0;
    for (uint32_t i = 0; i < net->n_split; i++) {
        net->flow.supply[i] = (int64_t)tokens[net->expert[i]];
        net->flow.supply_left += net->flow.supply[i];
    }
}

/* ---- the smallest maximum load --------------------------------------------------------------- */

/* A load that the maximum cannot be below. */
static int64_t load_bound(const network *net, const uint64_t *tokens) {
    const wb_dispatch_frame *frame = net->frame;
    const wb_placement *placement = frame->placement;
    int64_t live = frame->live_before[placement->topology.n_ranks], total = 0, bound = 0;
    for (uint32_t e = 0; e < placement->n_experts; e++) total += (int64_t)tokens[e];
    bound = (total + live - 1) / live;
    for (uint32_t rank = 0; rank < placement->topology.n_ranks; rank++)
        if (net->fixed[rank] > bound) bound = net->fixed[rank];
    return bound;
}

/* With free arcs: raises the load until all tokens fit. What is left over can only reach ranks that are
 * full of tokens that have nowhere else to go: these ranks must take it all, evenly at best. */
static int64_t min_load(network *net, const uint64_t *tokens) {
    uint32_t R = net->frame->placement->topology.n_ranks, first_rank = net->n_split + net->n_hubs;
    int64_t load = load_bound(net, tokens);
    for (uint32_t rank = 0; rank < R; rank++) net->flow.room[rank] = load - net->fixed[rank];
    set_supply(net, tokens);
    for (;;) {
        wb_flow_send(&net->flow);
        if (net->flow.supply_left == 0) return load;
        int64_t reached = 0;
        for (uint32_t rank = 0; rank < R; rank++)
            reached += net->flow.level[first_rank + rank] != WB_FLOW_FAR;
        int64_t more = (net->flow.supply_left + reached - 1) / reached;
        for (uint32_t rank = 0; rank < R; rank++) net->flow.room[rank] += more;
        load += more;
    }
}

/* ---- nearness -------------------------------------------------------------------------------- */

/* Free units of the hubs and spokes of split expert i, from its column of counts [R]; *hub and *spoke go
 * on to the next. */
static void set_near(network *net, uint32_t i, const uint32_t *column, uint32_t *hub, uint32_t *spoke) {
    const wb_dispatch_frame *frame = net->frame;
    wb_flow_arc *hubs = net->flow.arcs, *spokes = hubs + net->n_hubs;
    for (; *hub < net->n_hubs && hubs[*hub].tail == i; ++*hub) {
        wb_flow_arc *arc = &hubs[*hub];
        uint32_t node = node_at(frame, net->first_slot[*spoke]);
        *arc = (wb_flow_arc){.tail = i, .head = arc->head, .cost = 1};
        for (uint32_t rank = frame->node_begin[node]; rank < frame->node_begin[node + 1]; rank++)
            arc->near += column[rank];
        for (; *spoke < net->n_spokes && spokes[*spoke].tail == arc->head; ++*spoke) {
            spokes[*spoke].flow = 0;
            spokes[*spoke].near = column[rank_at(frame, net->first_slot[*spoke])];
            spokes[*spoke].cost = WB_FLOW_MAJOR;
        }
    }
}

static wb_status set_nearness(network *net, const uint32_t *counts) {
    const wb_placement *placement = net->frame->placement;
    uint32_t R = placement->topology.n_ranks, E = placement->n_experts, *columns = NULL;
    uint32_t i = 0, hub = 0, spoke = 0;
    WB_TRY(WB_OWN(&net->memory, columns, (size_t)R * WB_COLUMN_BLOCK, "columns of counts"));
    for (uint32_t first = 0; first < E && i < net->n_split; first += WB_COLUMN_BLOCK) {
        uint32_t n = E - first < WB_COLUMN_BLOCK ? E - first : WB_COLUMN_BLOCK;
        if (net->expert[i] >= first + n) continue;
        wb_dispatch_columns(placement, counts, first, n, columns);
        for (; i < net->n_split && net->expert[i] < first + n; i++)
            set_near(net, i, columns + (size_t)(net->expert[i] - first) * R, &hub, &spoke);
    }
    return WB_OK;
}

/* ---- shares ---------------------------------------------------------------------------------- */

/* The flow of each spoke, over the slots of its rank. */
static void write_shares(const network *net, uint32_t *shares_out) {
    const wb_dispatch_frame *frame = net->frame;
    for (uint32_t i = 0, a = 0; i < net->n_split; i++) {
        uint32_t end = frame->begin[net->expert[i] + 1];
        for (uint32_t j = frame->begin[net->expert[i]], next; j < end; j = next) {
            for (next = j + 1; next < end && rank_at(frame, next) == rank_at(frame, j);) next++;
            share_evenly(net->flow.arcs[net->n_hubs + a++].flow, j, next, shares_out);
        }
    }
}

static wb_status solve_network(network *net, const uint32_t *counts, const uint64_t *tokens,
                               uint32_t *shares_out) {
    build_network(net);
    int64_t load = min_load(net, tokens);
    WB_TRY(set_nearness(net, counts));
    for (uint32_t rank = 0; rank < net->flow.n_sinks; rank++) net->flow.room[rank] = load - net->fixed[rank];
    set_supply(net, tokens);
    do wb_flow_send(&net->flow);
    while (net->flow.supply_left > 0 && wb_flow_raise(&net->flow));
    write_shares(net, shares_out);
    return WB_OK;
}

static wb_status open_and_solve(network *net, const uint32_t *counts, const uint64_t *tokens,
                                uint32_t *shares_out) {
    uint32_t R = net->frame->placement->topology.n_ranks;
    WB_TRY(WB_OWN(&net->memory, net->expert, net->frame->placement->n_experts, "quota"));
    WB_TRY(WB_OWN(&net->memory, net->fixed, R, "quota"));
    WB_TRY(count_network(net, tokens, shares_out));
    if (net->n_split == 0) return WB_OK;
    WB_TRY(WB_OWN(&net->memory, net->first_slot, net->n_spokes, "quota"));
    WB_TRY(wb_flow_open(&net->memory, net->n_split + net->n_hubs + R, net->n_split, R,
                        net->n_hubs + net->n_spokes, &net->flow));
    return solve_network(net, counts, tokens, shares_out);
}

wb_status wb_quota_shares(const wb_dispatch_frame *frame, const uint32_t *counts, const uint64_t *tokens,
                          uint32_t *shares_out) {
    network net = {.frame = frame};
    wb_status status = open_and_solve(&net, counts, tokens, shares_out);
    wb_owner_close(&net.memory);
    return status;
}

/* The shares in the order of slots. */
static wb_status quota_by_slot(const wb_placement *placement, uint32_t layer, const uint32_t *counts,
                               wb_owner *scratch, uint32_t *shares_out) {
    uint32_t S = placement->topology.n_slots, *shares = NULL;
    uint64_t *tokens = NULL;
    wb_dispatch_frame frame = {0};
    WB_TRY(wb_dispatch_frame_open(placement, scratch, &frame));
    WB_TRY(WB_OWN(scratch, shares, S, "quota"));
    WB_TRY(WB_OWN(scratch, tokens, placement->n_experts, "quota"));
    WB_TRY(wb_dispatch_sum_counts(placement, layer, counts, tokens));
    wb_dispatch_frame_read(&frame, layer);
    WB_TRY(wb_quota_shares(&frame, counts, tokens, shares));
    for (uint32_t slot = 0; slot < S; slot++) shares_out[slot] = 0;
    for (uint32_t j = 0; j < frame.begin[placement->n_experts]; j++) shares_out[frame.slots[j]] = shares[j];
    return WB_OK;
}

wb_status wb_dispatch_quota(const wb_placement *placement, uint32_t layer, const uint32_t *counts,
                            uint32_t *shares_out) {
    wb_owner scratch = {0};
    WB_TRY(wb_dispatch_check_layer(placement, layer));
    wb_status status = quota_by_slot(placement, layer, counts, &scratch, shares_out);
    wb_owner_close(&scratch);
    return status;
}

/* ---- whose tokens ---------------------------------------------------------------------------- */

typedef struct splitter {
    uint32_t *column; /* [R] tokens of each rank not yet sent */
    uint32_t *shares; /* [S] room of each slot */
    wb_quota_send *send;
    void *ctx;
} splitter;

static void send_piece(const splitter *s, uint32_t rank, uint32_t j) {
    uint32_t tokens = s->column[rank] < s->shares[j] ? s->column[rank] : s->shares[j];
    if (tokens == 0) return;
    s->column[rank] -= tokens;
    s->shares[j] -= tokens;
    s->send(s->ctx, rank, j, tokens);
}

/* Tokens of ranks [rank, rank_end) to slots [j, j_end), both in order, until either side has no more. */
static void send_between(const splitter *s, uint32_t rank, uint32_t rank_end, uint32_t j, uint32_t j_end) {
    while (rank < rank_end && j < j_end) {
        send_piece(s, rank, j);
        if (s->column[rank] == 0)
            rank++;
        else
            j++;
    }
}

void wb_quota_split(const wb_dispatch_frame *frame, uint32_t expert, uint32_t *column, uint32_t *shares,
                    wb_quota_send *send, void *ctx) {
    const splitter s = {column, shares, send, ctx};
    uint32_t first = frame->begin[expert], end = frame->begin[expert + 1];
    for (uint32_t j = first; j < end; j++) send_piece(&s, rank_at(frame, j), j);
    for (uint32_t j = first, next; j < end; j = next) {
        uint32_t node = node_at(frame, j);
        for (next = j + 1; next < end && node_at(frame, next) == node;) next++;
        send_between(&s, frame->node_begin[node], frame->node_begin[node + 1], j, next);
    }
    send_between(&s, 0, frame->placement->topology.n_ranks, first, end);
}
