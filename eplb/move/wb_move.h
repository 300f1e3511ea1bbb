/* wb_move.h - the plan that turns one placement into another: which expert is copied from which slot to
 * which, in groups that can run at the same time. A plan names what moves; it moves nothing.
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

/* All moves of a group may run at the same time, each group after the one before. */
typedef struct wb_move {
    uint32_t group, layer, expert;
    wb_move_kind kind;
    wb_physical_id from, to; /* slots; S + rank * n_shadow + i is shadow slot i of a rank */
} wb_move;

typedef struct wb_move_options {
    size_t size;       /* of this struct; set by the initialiser */
    uint32_t n_shadow; /* spare slots of a rank, 1 (default) or 2, shared by all layers: they break cycles */
    /* Maximum number of sends and receives (reloads too) of one rank in a group, 1..; default 32.
     *
     * Transfers per link and direction are also capped at what fits in cost.seconds_per_group (at least one),
     * so that groups finish together: a group lasts as long as its slowest rank, and one full rank would hold
     * up all the others for longer than a further group costs. */
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
    const wb_move *moves; /* [n_moves] by layer, then group; groups are numbered through. Owner: the plan */
    uint32_t n_groups;
    uint64_t changed_slots;                                      /* live slots that get another expert */
    double local_bytes, node_bytes, network_bytes, reload_bytes; /* moved, by kind */
    double seconds; /* sum over groups of the slowest rank and the latency; reloads at network speed */
} wb_move_plan;

/* What turns `from` into `to`, for n layers (layers [n]; NULL: the first n; 0: no moves; a layer listed twice
 * is an error). `options` NULL: the defaults. Ranks that are dead in `to` neither send nor receive. MISMATCH
 * on other shapes; ranks that died since `from` are the one difference allowed.
 *
 * In a group no slot is written twice, and none is both read and written. What a rank holds when its layer
 * begins is not sent to it, what a node holds does not enter it, a lost expert is reloaded once; slots that
 * become empty are left as they are. */
WB_API wb_status wb_move_plan_open(const wb_placement *from, const wb_placement *to, uint32_t n,
                                   const uint32_t *layers, const wb_move_options *options,
                                   wb_move_plan **plan_out);
WB_API void wb_move_plan_close(wb_move_plan *plan); /* NULL is a no-op */

#ifdef __cplusplus
}
#endif
#endif
