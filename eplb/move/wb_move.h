/* wb_move.h - the plan that turns one placement into another: which expert is copied from which slot to
 * which, in groups between which the layer can go on working. A plan names what moves; it moves nothing.
 *
 * Online. Letters and common rules: as in wb_eplb.h.
 */
#ifndef WB_MOVE_H
#define WB_MOVE_H

#include "wb_base.h"
#include "wb_cost_model.h"
#include "wb_placement.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum wb_move_kind {
    WB_MOVE_LOCAL,   /* copy inside a rank */
    WB_MOVE_NODE,    /* between ranks of a node */
    WB_MOVE_NETWORK, /* between nodes: an expert enters a node at most once a layer */
    WB_MOVE_RELOAD   /* no live rank has the expert: from the checkpoint; `from` is WB_NO_SLOT */
} wb_move_kind;

/* One slot gets another expert. Each slot is written once at most in a plan. */
typedef struct wb_move {
    uint32_t layer, expert;
    wb_move_kind kind;
    wb_physical_id from, to; /* live slots, 0..S-1 */
} wb_move;

/* Moves of one layer that are made together:
 *
 *   1. Each move is read from its slot `from`, as that was before the group, into a shadow slot of the rank
 *      of `to`: the i-th move of the group to a rank into shadow slot i of that rank, i < n_shadow. A slot
 *      may be read and overwritten by one group, so this goes for local moves too. The layer still works.
 *   2. When all ranks have what they wait for, each copies its shadow slots to the slots `to` and takes over
 *      the map of wb_move_apply_group, between two passes.
 *
 * Under that map every expert has a replica on a live rank, and no slot is named that holds anything else. */
typedef struct wb_move_group {
    uint32_t layer;
    bool last; /* of the layer: afterwards it is as in `to` */
    /* moves[begin] .. moves[end - 1], by rank of `to`; none where only the map changes */
    uint64_t begin, end;
} wb_move_group;

typedef struct wb_move_options {
    size_t size; /* of this struct; set by the initialiser */
    /* Shadow slots of a rank, shared by all layers: what it receives in a group. 1 (default) or 2. */
    uint32_t n_shadow;
    /* Maximum number of experts that one rank sends in a group, 1..; default 32. Of these as many over each
     * link (to ranks of its node, to other nodes) as fit in cost.seconds_per_group, at least one: a group
     * lasts as long as its slowest rank, which would hold up all the others for longer than a further group
     * costs. */
    uint32_t group_moves;
    wb_cost_model cost; /* default wb_cost_model_default() */
} wb_move_options;
WB_API void wb_move_options_init(wb_move_options *options_out, size_t size);
static inline wb_move_options wb_move_options_default(void) {
    wb_move_options options;
    wb_move_options_init(&options, sizeof options);
    return options;
}

typedef struct wb_move_plan {
    uint64_t n_moves;
    const wb_move *moves; /* [n_moves] by group. Owner: the plan */
    uint32_t n_groups;
    const wb_move_group *groups; /* [n_groups] by layer, ascending. Owner: the plan */
    /* Moved, by kind. The copies from shadow slots, one a move, are not counted. */
    double local_bytes, node_bytes, network_bytes, reload_bytes;
    /* Sum over groups of the slowest rank, its copies from shadow slots and the latency; reloads at network
     * speed */
    double seconds;
} wb_move_plan;

/* What turns `from` into `to`, for n layers (layers [n]; NULL: the first n; 0: no moves; a layer listed twice
 * is an error). `options` NULL: the defaults. Ranks that are dead in `to` neither send nor receive. MISMATCH
 * on other shapes; ranks that died since `from` are the one difference allowed. Neither placement is kept.
 *
 * The end is `to` up to the order of slots within ranks, which is free: what a rank has and keeps stays in
 * its slot, so that only what a rank lacks is moved, once each. What a node holds when its layer begins does
 * not enter it. A lost expert is reloaded once, in preference to other moves. */
WB_API wb_status wb_move_plan_open(const wb_placement *from, const wb_placement *to, uint32_t n,
                                   const uint32_t *layers, const wb_move_options *options,
                                   wb_move_plan **plan_out);
WB_API void wb_move_plan_close(wb_move_plan *plan); /* NULL is a no-op */

/* Puts the map of the group's layer as it is after the group into `placement` (of the shape of `to`, its dead
 * ranks dead), whatever it has there, and sets the layer's epoch. Replicas are numbered in slot order, after
 * the layer's last group as in `to`. With nothing changed: INVALID_ARGUMENT for a group outside [0, n_groups)
 * and while an expert that died with its ranks has not been reloaded; MISMATCH on other numbers of layers,
 * experts, ranks or slots. */
WB_API wb_status wb_move_apply_group(const wb_move_plan *plan, uint32_t group, uint64_t epoch,
                                     wb_placement *placement);

#ifdef __cplusplus
}
#endif
#endif
